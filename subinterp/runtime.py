"""CPython's runtime seen from inside: interpreters, thread states, locks, and its fields.

`snapshot` may be called in any interpreter, while others are made, run and end. See
docs/runtime.md for what is read how, and under which lock.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Literal

from subinterp import _core

__all__ = [
    "Collector",
    "Field",
    "InterpreterInfo",
    "LockInfo",
    "Snapshot",
    "ThreadInfo",
    "WorkerInfo",
    "fields",
    "layout",
    "snapshot",
]

type Answer = Literal["answered", "busy", "blocked", "parked", "ending", "foreign"]

# CPython's numbers of who made an interpreter.
_MADE_BY = {
    1: "the start of the process",
    2: "Py_NewInterpreter",
    3: "Py_NewInterpreterFromConfig",
    4: "_PyXI_NewInterpreter",
    5: "concurrent.interpreters",
}


@dataclass(frozen=True, slots=True)
class ThreadInfo:
    """A thread state, and the thread it belongs to.

    Attributes
    ----------
    native_id : int or None
        As `ps -L` shows it; None: no thread uses it yet.
    ident : int or None
        As `threading.get_ident` has it.
    name : str or None
        As `threading` has it, if the interpreter answered; else the system's name,
        which may be cut to 15 characters.
    lock : {"holds", "waits", "detached"} or None
        What it does with its interpreter's lock: holds it, waits for it, or runs
        (or sleeps) without it. None: not known.
    function : str or None
        The qualified name of what it runs. None: no Python code, or the interpreter
        did not answer.
    file : str or None
        Where that is.
    line : int or None
        The line it is at.
    """

    native_id: int | None
    ident: int | None
    name: str | None
    lock: Literal["holds", "waits", "detached"] | None
    function: str | None = None
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Collector:
    """An interpreter's garbage collector.

    Attributes
    ----------
    enabled, collecting : bool or None
        Whether it runs by itself, and whether it does now.
    thresholds, counts : tuple of int, or None
        As `gc.get_threshold` and `gc.get_count` have them.
    collections, collected, uncollectable : tuple of int, or None
        Of each generation, as `gc.get_stats` has them; None: the interpreter did not
        answer, or has not imported `gc`.
    """

    enabled: bool | None
    collecting: bool | None
    thresholds: tuple[int, ...] | None
    counts: tuple[int, ...] | None
    collections: tuple[int, ...] | None = None
    collected: tuple[int, ...] | None = None
    uncollectable: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker, which runs in an interpreter.

    Attributes
    ----------
    pool : int
        The pool's number in this process.
    pool_name : str
        Its name; the worker's is that and its index.
    index : int
        The worker's number within the pool.
    state : str
        As in `WorkerStats`.
    thread_id : int
        Of its native thread.
    """

    pool: int
    pool_name: str
    index: int
    state: str
    thread_id: int


@dataclass(frozen=True, slots=True)
class LockInfo:
    """A lock (GIL).

    Attributes
    ----------
    interpreter : int
        Whose it is.
    used_by : tuple of int
        The interpreters that run under it.
    locked : bool
        Whether somebody holds it.
    holder : int or None
        The native thread that does.
    interval : float or None
        Seconds after which a waiting thread asks the holder for it.
    switches : int or None
        How often it went from one thread to another; None: not known.
    """

    interpreter: int
    used_by: tuple[int, ...]
    locked: bool
    holder: int | None
    interval: float | None
    switches: int | None


@dataclass(frozen=True, slots=True)
class InterpreterInfo:
    """An interpreter. What is not known is None.

    Attributes
    ----------
    id : int
        Its number; 0 is the main interpreter.
    made_by : str or None
        The way it was made.
    workers : tuple of WorkerInfo
        The workers of a pool that run in it: one, or `threads_per_interpreter` at most.
    state : {"starting", "ready", "ending"} or None
        How far its life has come.
    own_lock, own_allocator : bool or None
        Whether it has a lock and an allocator for small objects of its own, or shares
        those of the main interpreter.
    lock : int or None
        The interpreter whose lock it uses.
    config : dict
        What it may do: fork, exec, threads, daemon_threads, and whether extension
        modules are checked (check_extensions). Empty: not known.
    collector : Collector
        Its garbage collector.
    threads : tuple of ThreadInfo, or None
        Oldest first.
    answer : str
        "answered" if it reported itself. "busy": it did not in time, somebody holds its
        lock; "blocked": nobody does, all its threads wait or run without it. "parked":
        it waits for a pool, and is not asked. "ending": neither is this one, nor one
        that was left behind. "foreign": it has not loaded this library, and so cannot be asked.
    modules : tuple of str, or None
        Names of what it has imported, if it answered.
    """

    id: int
    made_by: str | None
    workers: tuple[WorkerInfo, ...]
    state: Literal["starting", "ready", "ending"] | None
    own_lock: bool | None
    own_allocator: bool | None
    lock: int | None
    config: dict[str, bool]
    collector: Collector
    threads: tuple[ThreadInfo, ...] | None
    answer: Answer
    modules: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The runtime at one moment.

    Attributes
    ----------
    pid : int
        Of the process.
    time : float
        When, as `time.time` has it.
    interpreter : int
        The one that looked.
    interpreters : tuple of InterpreterInfo
        Oldest first. If the layout is not known: those that have loaded this library.
    locks : tuple of LockInfo
        Each lock once, in the order of its interpreters.
    known : bool
        Whether the runtime's layout was recognised.
    unknown : tuple of str
        The parts of it that were not (see `layout`).
    """

    pid: int
    time: float
    interpreter: int
    interpreters: tuple[InterpreterInfo, ...]
    locks: tuple[LockInfo, ...]
    known: bool
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """What became of a field, or a part of it, that ``_PyRuntimeState`` had in May 2019.

    Attributes
    ----------
    name : str
        The field.
    part : str
        The part of it; "": all.
    where : {"_PyRuntimeState", "PyInterpreterState", "PyThreadState", "thread-local", "gone"}
        Where it lives in this version. Checked against its headers when this was built.
    path : str
        Its name there.
    about : str
        What it is today, and what guards it.
    value : int, str or None
        Its value now, if it has one that can be printed; in the calling interpreter, for
        those of ``PyInterpreterState``. None also if this was built with the headers of
        another patch release.
    """

    name: str
    part: str
    where: str
    path: str
    about: str
    value: int | str | None


def fields() -> list[Field]:
    """Return where the fields of 2019's ``_PyRuntimeState`` live in this version.

    Returns
    -------
    list of Field
        In the order of docs/runtime.md, which has their history.

    Notes
    -----
    Does not block.
    """
    return [Field(*row) for row in _core.runtime_fields()]


def layout() -> dict[str, int | None]:
    """Return where the running Python keeps what `snapshot` reads.

    Returns
    -------
    dict
        Name and offset in bytes; None: it could not be confirmed, and what would be
        read there is unknown. `headers` is 0 if all that the headers said holds here.

    Notes
    -----
    Does not block. It was found out when the library was loaded first.
    """
    return _core.runtime_layout()


def snapshot(timeout: float = 0.1, *, _table: bytes | None = None) -> Snapshot:
    """Return every interpreter, thread state and lock of the process.

    Parameters
    ----------
    timeout : float
        Seconds for which interpreters are waited for that report themselves; 0: what
        they only know themselves is left out, but for those that answer at once.

    Returns
    -------
    Snapshot
        The caller's own; nothing in it changes any more. Parts of it were seen at
        slightly different moments.

    Raises
    ------
    TypeError, ValueError
        If `timeout` is not a number of seconds, or negative.

    Notes
    -----
    Blocks for `timeout` seconds if there is an interpreter that does not answer, else for
    less than a millisecond, with this interpreter's lock released. Running code is
    asked between two steps of its evaluation loop, which costs it about as
    long as a garbage collection of young objects.
    """
    _core.check_timeout(timeout)
    if timeout is None:
        raise TypeError("timeout must be a number of seconds, not None")
    if not 0 <= timeout < math.inf:
        raise ValueError("timeout must be at least 0 and finite")
    parked = {interp_id for interp_id, _ in _core.parked()}
    known = _core.known_interpreters()
    reports = _core.ask_interpreters(
        [i for i, asked in known.items() if asked and i not in parked], timeout
    )
    workers = _workers()
    looked = _core.look_at_runtime(_table)
    offsets = _core.runtime_layout(_table)
    if looked is None:
        interpreters = [_unseen(i, known, parked, workers, reports) for i in sorted(known)]
        locks: list[LockInfo] = []
    else:
        rows = [_Row(*row) for row in reversed(looked[0])]
        owners = {row.own: row.id for row in rows if row.own}
        interpreters = [
            InterpreterInfo(
                id=row.id,
                made_by=None if row.whence is None else _MADE_BY.get(row.whence),
                workers=workers.get(row.id, ()),
                state="ending" if row.finalizing else "ready" if row.ready else "starting",
                own_lock=row.own_lock,
                own_allocator=row.own_allocator,
                lock=owners.get(row.lock),
                config=row.config(),
                collector=row.collector(reports.get(row.id)),
                threads=row.thread_infos(looked[1], offsets["lock_size"], reports.get(row.id)),
                answer=_answer(row, known, parked, reports),
                modules=_modules(reports.get(row.id)),
            )
            for row in rows
        ]
        locks = _locks(rows, looked[1])
    return Snapshot(
        pid=os.getpid(),
        time=time.time(),
        interpreter=_core.current_interpreter_id(),
        interpreters=tuple(interpreters),
        locks=tuple(locks),
        known=looked is not None,
        unknown=tuple(name for name, at in offsets.items() if at is None),
    )


# ---- taking apart what _core gives -----------------------------------------------------

# Modules, what threads run, names of threads, the collector's statistics: see si_report.
type _Report = tuple[
    list[str],
    list[tuple[int, str, str, int]],
    list[tuple[int, str]],
    list[tuple[int, int, int]],
]


# A thread state: its thread as Python and as the system number it, whether it holds and
# whether it waits for the lock.
type _ThreadRow = tuple[int, int, bool | None, bool | None]


@dataclass(frozen=True, slots=True)
class _Row:
    """One interpreter, as `_core.look_at_runtime` has it."""

    id: int
    whence: int | None
    ready: bool
    finalizing: bool
    own_lock: bool | None
    own_allocator: bool | None
    fork: bool | None
    exec: bool | None
    allow_threads: bool | None
    daemon_threads: bool | None
    check_extensions: bool | None
    lock: int
    own: int
    locked: bool | None
    switches: int | None
    interval: int | None
    gc_enabled: bool | None
    gc_collecting: bool | None
    thresholds: list[int | None]
    counts: list[int | None]
    threads: tuple[int, int] | None

    def config(self) -> dict[str, bool]:
        flags = {
            "fork": self.fork,
            "exec": self.exec,
            "threads": self.allow_threads,
            "daemon_threads": self.daemon_threads,
            "check_extensions": self.check_extensions,
        }
        return {name: flag for name, flag in flags.items() if flag is not None}

    def collector(self, report: _Report | None) -> Collector:
        def whole(numbers: list[int | None]) -> tuple[int, ...] | None:
            known = tuple(n for n in numbers if n is not None)
            return known if len(known) == len(numbers) else None

        return Collector(
            self.gc_enabled,
            self.gc_collecting,
            whole(self.thresholds),
            whole(self.counts),
            *_collections(report),
        )

    def rows_of(self, threads: list[_ThreadRow]) -> list[_ThreadRow]:
        """Those of its thread states, oldest first."""
        return [] if self.threads is None else threads[slice(*self.threads)][::-1]

    def thread_infos(
        self, threads: list[_ThreadRow], lock_size: int | None, report: _Report | None
    ) -> tuple[ThreadInfo, ...] | None:
        if self.threads is None:
            return None
        return tuple(
            _thread(one, self.lock, lock_size or 0, report) for one in self.rows_of(threads)
        )


def _workers() -> dict[int, tuple[WorkerInfo, ...]]:
    """Return the workers of each interpreter that has any."""
    found: dict[int, tuple[WorkerInfo, ...]] = {}
    for number, name, _creator, _most, (_queued, _gone, workers) in _core.look_at_pools():
        for index, state, thread_id, interpreter, _memory, _since, _counts in workers:
            if interpreter is not None:
                worker = WorkerInfo(number, name, index, state, thread_id)
                found[interpreter] = (*found.get(interpreter, ()), worker)
    return found


def _answer(
    row: _Row, known: dict[int, bool], parked: set[int], reports: dict[int, _Report | None]
) -> Answer:
    if reports.get(row.id) is not None:
        return "answered"
    if row.id in parked:
        return "parked"
    if row.finalizing or known.get(row.id) is False:
        return "ending"
    if row.id not in reports:
        return "foreign"
    return "busy" if row.locked or row.locked is None else "blocked"


def _unseen(
    interp_id: int,
    known: dict[int, bool],
    parked: set[int],
    workers: dict[int, tuple[WorkerInfo, ...]],
    reports: dict[int, _Report | None],
) -> InterpreterInfo:
    """Return an interpreter of which nothing is known but what it says itself."""
    report = reports.get(interp_id)
    answer: Answer = "busy" if known[interp_id] else "ending"
    if report is not None:
        answer = "answered"
    elif interp_id in parked:
        answer = "parked"
    return InterpreterInfo(
        id=interp_id,
        made_by=_MADE_BY[1] if interp_id == 0 else None,
        workers=workers.get(interp_id, ()),
        state=None,
        own_lock=None,
        own_allocator=None,
        lock=None,
        config={},
        collector=Collector(None, None, None, None, *_collections(report)),
        threads=None,
        answer=answer,
        modules=_modules(report),
    )


def _locks(rows: list[_Row], threads: list[_ThreadRow]) -> list[LockInfo]:
    locks = []
    for owner in rows:
        users = [row for row in rows if owner.own and row.lock == owner.own]
        if not users:
            continue
        holders = [
            native
            for row in users
            for _ident, native, holds, _waits in row.rows_of(threads)
            if holds
        ]
        # As the first of them saw it: it is one lock.
        seen = users[0]
        locks.append(
            LockInfo(
                interpreter=owner.id,
                used_by=tuple(row.id for row in users),
                locked=bool(seen.locked),
                holder=holders[0] if holders else None,
                interval=None if seen.interval is None else seen.interval * 1e-6,
                switches=seen.switches,
            )
        )
    return locks


def _modules(report: _Report | None) -> tuple[str, ...] | None:
    return None if report is None else tuple(report[0])


def _collections(
    report: _Report | None,
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None, tuple[int, ...] | None]:
    stats = report[3] if report is not None else []
    if not stats:
        return None, None, None
    done, collected, uncollectable = zip(*stats, strict=True)
    return done, collected, uncollectable


def _thread(one: _ThreadRow, lock: int, lock_size: int, report: _Report | None) -> ThreadInfo:
    ident, native, holds, waits = one
    state: Literal["holds", "waits", "detached"] | None = None
    if holds:
        state = "holds"
    elif holds is not None:
        # Before 3.15 no field tells; the system says what a thread sleeps on.
        if waits is None and lock and lock_size and native:
            waits = _sleeps_on(native, lock, lock_size)
        state = "waits" if waits else None if waits is None else "detached"
    name = None
    function = file = line = None
    if report is not None and ident:
        name = dict(report[2]).get(ident)
        for thread, qualname, path, number in report[1]:
            if thread == ident:
                function, file, line = qualname, path, number
    if name is None and native:
        name = _system_name(native)
    return ThreadInfo(native or None, ident or None, name, state, function, file, line)


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # it has ended, or the system does not tell
        return None


def _system_name(native: int) -> str | None:
    text = _read(f"/proc/self/task/{native}/comm")
    return None if text is None else text.rstrip("\n")


def _sleeps_on(native: int, start: int, size: int) -> bool | None:
    """Whether a thread is in a system call whose first argument is an address in this range."""
    text = _read(f"/proc/self/task/{native}/syscall")
    if text is None:
        return None
    words = text.split()
    if len(words) < 2 or not words[1].startswith("0x"):
        return False  # it runs
    return start <= int(words[1], 16) < start + size

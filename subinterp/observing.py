"""Looking into a pool: statistics, traces, stacks of its workers."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from subinterp import _core

if TYPE_CHECKING:
    from subinterp.pool import InterpreterPool

__all__ = ["Histogram", "PoolStats", "Trace", "WorkerStats"]

_AT = _core.meter_layout()


# ---- statistics -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, repr=False)
class Histogram:
    """How many durations fell into each of a row of buckets.

    Each bucket is twice as wide as the one before it.

    Attributes
    ----------
    counts : tuple of int
        Bucket ``b`` counts durations of less than ``2**b`` nanoseconds that
        are not in the one before it; the last one has no upper end.
    """

    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    @property
    def buckets(self) -> list[tuple[float, int]]:
        """(upper end in seconds, count) of each bucket that is not empty."""
        last = len(self.counts) - 1
        return [(math.inf if b == last else 2**b * 1e-9, n) for b, n in enumerate(self.counts) if n]

    def percentile(self, percent: float) -> float:
        """Return a bound on what that share of the durations took.

        Parameters
        ----------
        percent : float
            Between 0 and 100.

        Returns
        -------
        float
            Seconds: the upper end of the bucket, so up to twice the duration
            itself. NaN if there are none.

        Raises
        ------
        ValueError
            If `percent` is out of range.
        """
        if not 0 <= percent <= 100:
            raise ValueError("percent must be between 0 and 100")
        below = 0
        for end, n in self.buckets:
            below += n
            if below >= self.count * percent / 100:
                return end
        return math.nan

    def __add__(self, other: Histogram) -> Histogram:
        if not isinstance(other, Histogram):
            return NotImplemented
        return Histogram(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def __repr__(self) -> str:
        shown = ", ".join(f"below {_duration(end)}: {n}" for end, n in self.buckets)
        return f"<Histogram of {self.count}{': ' * bool(shown)}{shown}>"


def _duration(seconds: float) -> str:
    for unit, size in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What one worker has done, and does.

    Attributes
    ----------
    name : str
        As `threading.current_thread` and log records show it in a task.
    index : int
        Its number within the pool.
    thread_id : int
        Of its native thread, as `ps -L` and debuggers show it; 0: none yet.
    interpreter : int or None
        The number of its interpreter; None: it has none yet or any more.
    state : {"starting", "idle", "running", "ending", "abandoned", "ended"}
        What it does now.
    memory_bytes : int or None
        Of the arenas for its interpreter's small objects (up to 512 bytes each),
        in steps of a megabyte. Larger objects, and what libraries allocate,
        lie in a heap that all interpreters share. None: there is no
        interpreter, or Python does not use its own allocator.
    tasks_done, tasks_failed : int
        Calls that returned, and that raised or were stopped; each item of a map is
        a call.
    busy_seconds, idle_seconds : float
        Time with a task, and waiting for one, up to now.
    bytes_in, bytes_out : int
        Of the messages that brought tasks and took results away; what lies in
        shared memory is not counted.
    run_time, wait_time : Histogram
        How long tasks ran, and waited in the queue; a chunk of a map is one.
        `wait_time` is a sample: one task in 64 while tasks are shorter than
        about 20 us, otherwise all.
    """

    name: str
    index: int
    thread_id: int
    interpreter: int | None
    state: str
    memory_bytes: int | None
    tasks_done: int
    tasks_failed: int
    busy_seconds: float
    idle_seconds: float
    bytes_in: int
    bytes_out: int
    run_time: Histogram
    wait_time: Histogram


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has done, and does.

    Attributes
    ----------
    workers : tuple of WorkerStats
        Those there are now, oldest first.
    max_workers, threads_per_interpreter : int
        How many interpreters there may be, and workers in each.
    queue_length : int
        Tasks that no worker has taken; a chunk of a map is one, and one that
        was cancelled is counted until a worker comes across it.
    tasks_done, tasks_failed, busy_seconds, idle_seconds, bytes_in, bytes_out
        Sums over all workers that the pool has had. A task that was abandoned
        has failed, and its time counts until then.
    run_time, wait_time : Histogram
        The same.
    """

    workers: tuple[WorkerStats, ...]
    max_workers: int
    threads_per_interpreter: int
    queue_length: int
    tasks_done: int
    tasks_failed: int
    busy_seconds: float
    idle_seconds: float
    bytes_in: int
    bytes_out: int
    run_time: Histogram
    wait_time: Histogram


def _measures(counts: Sequence[int]) -> dict[str, Any]:
    """Return the fields that workers and pools have in common."""

    def histogram(start: int) -> Histogram:
        return Histogram(tuple(counts[start : start + _AT["buckets"]]))

    return {
        "tasks_done": counts[_AT["done"]],
        "tasks_failed": counts[_AT["failed"]],
        "busy_seconds": counts[_AT["busy"]] * 1e-9,
        "idle_seconds": counts[_AT["idle"]] * 1e-9,
        "bytes_in": counts[_AT["in"]],
        "bytes_out": counts[_AT["out"]],
        "run_time": histogram(_AT["run"]),
        "wait_time": histogram(_AT["wait"]),
    }


def stats(pool: InterpreterPool) -> PoolStats:
    """Return the pool's statistics; see `InterpreterPool.stats`."""
    queue_length, total, found = pool._look()
    workers = []
    for index, state, thread_id, interpreter, memory, since, counts in found:
        # What it is at now counts as well.
        if state in ("running", "idle"):
            counts[_AT["busy" if state == "running" else "idle"]] += since
        total = [a + b for a, b in zip(total, counts, strict=True)]
        workers.append(
            WorkerStats(
                name=_worker_name(pool, index),
                index=index,
                thread_id=thread_id,
                interpreter=interpreter,
                state=state,
                memory_bytes=memory,
                **_measures(counts),
            )
        )
    return PoolStats(
        workers=tuple(workers),
        max_workers=pool._max_workers,
        threads_per_interpreter=pool._threads,
        queue_length=queue_length,
        **_measures(total),
    )


def _worker_name(pool: InterpreterPool, index: int) -> str:
    return f"{pool._name or 'subinterp'}-{index}"


# ---- traces ---------------------------------------------------------------------------

# What si_task_kind says, for tasks whose function has no name.
_KINDS = {0: "call", 1: "call", 2: "map", 3: "worker"}

type _Event = dict[str, Any]


class Trace:
    """A trace of a pool's tasks, written as a file when it ends.

    Made, and begun, by `InterpreterPool.trace`. Leaving its `with` block, or
    `stop`, ends it and writes the file.

    Attributes
    ----------
    path : str
        The file.
    """

    def __init__(self, pool: InterpreterPool, path: str | os.PathLike[str], max_tasks: int) -> None:
        if not isinstance(max_tasks, int):
            raise TypeError(f"max_tasks must be an integer, not {type(max_tasks).__name__}")
        if max_tasks < 1:
            raise ValueError("max_tasks must be at least 1")
        self.path = os.fspath(path)
        self._pool = pool
        self._started = time.time()
        self._file: IO[str] | None = None
        self._core = pool._trace(max_tasks)
        try:
            # Now, so that a path that does not do is known now.
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115
        except BaseException:
            self._core.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            import warnings

            warnings.warn(
                f"a trace was dropped before its stop(): {self.path} is empty",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            file.close()

    def __repr__(self) -> str:
        state = "stopped" if self._file is None else "under way"
        return f"<Trace to {self.path!r}, {state}>"

    def stop(self) -> None:
        """End the trace and write its file. Idempotent.

        Raises
        ------
        OSError
            If the file cannot be written.

        Notes
        -----
        Blocks while the file is written; tasks go on. One that still runs is in
        the file up to now, and marked as unfinished. In the child of a fork
        nothing is written: the file is the parent's.
        """
        file, self._file = self._file, None
        if file is None:
            return
        dropped = self._core.stop()
        if dropped is None:
            os.close(file.fileno())  # what the parent buffered is not ours to write
            return
        with file:
            self._write(file, dropped)

    def _write(self, file: IO[str], dropped: int) -> None:
        import json

        encode = json.JSONEncoder(separators=(",", ":")).encode
        file.write('{"traceEvents":[\n')
        for number, event in enumerate(self._events()):
            file.write((",\n" if number else "") + encode(event))
        about = {
            "pool": self._pool._name,
            "started": self._started,
            "tasks without room": dropped,
            "python": sys.version.split()[0],
        }
        file.write('\n],"displayTimeUnit":"ms","otherData":' + encode(about) + "}\n")

    def _events(self) -> Iterator[_Event]:
        begun, ended = self._core.begun, self._core.ended
        pid = os.getpid()
        # (when, submitting thread, number of the flow, name) of what was submitted.
        pushes: list[tuple[int, int, int, str]] = []
        rows: dict[int, int] = {}
        flow = 0

        def at(ns: int) -> float:
            return max(ns - begun, 0) / 1000

        def meta(what: str, tid: int, **args: object) -> _Event:
            return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}

        yield meta("process_name", 0, name=f"subinterp pool {self._pool._name}")
        while (part := self._core.read()) is not None:
            tid, index, tasks = part
            if tid not in rows:
                rows[tid] = index
                yield meta("thread_name", tid, name=_worker_name(self._pool, index))
                yield meta("thread_sort_index", tid, sort_index=index)
            for name, kind, pushed, pushed_by, begin, end, n_items, n_failed in tasks:
                name = name or _KINDS.get(kind, "task")
                begin = max(begin, begun)
                args: dict[str, object] = {"calls": n_items or 1, "failed": n_failed}
                if not end:
                    args["unfinished"] = True
                if pushed:
                    args["waited_us"] = max(begin - pushed, 0) / 1000
                row: _Event = {"cat": "task", "name": name, "pid": pid, "tid": tid}
                ts = at(begin)
                yield {**row, "ph": "X", "ts": ts, "dur": at(end or ended) - ts, "args": args}
                if pushed:
                    flow += 1
                    pushes.append((pushed, pushed_by, flow, name))
                    row = {**row, "cat": "submit", "name": "submit"}
                    yield {**row, "ph": "f", "bp": "e", "id": flow, "ts": ts}
        # An arrow begins in a slice; those of one thread must not overlap.
        pushes.sort()
        following: dict[int, int] = {}
        for pushed, tid, flow, name in reversed(pushes):
            if tid not in rows and tid not in following:
                yield meta("thread_name", tid, name=f"submits ({tid})")
                yield meta("thread_sort_index", tid, sort_index=-1)
            ns = min(1000, following.get(tid, pushed + 1000) - pushed)
            following[tid] = pushed
            row = {"cat": "submit", "pid": pid, "tid": tid, "ts": at(pushed)}
            yield {**row, "ph": "X", "name": f"submit {name}", "dur": ns / 1000}
            yield {**row, "ph": "s", "name": "submit", "id": flow}


# ---- stacks --------------------------------------------------------------------------------

# Seconds that a worker's thread gets to write its stack.
PATIENCE = 1.0

# Before these, faulthandler can crash on a stack that changes as the signal comes
# (gh-123967, gh-140815). Asked of the Python that runs, which need not be the patch
# release that the extension was built with.
_SAFE_SINCE = {(3, 13): 10, (3, 14): 1}

# One dump at a time: there is one signal. Reentrant, so that a signal handler's is refused
# instead of hanging.
_dumping = threading.RLock()


def dump_tracebacks(pool: InterpreterPool, file: IO[str] | int | None) -> None:
    """Write the stack of each worker; see `InterpreterPool.dump_tracebacks`."""
    if _core.current_interpreter_id() != 0:
        raise RuntimeError(
            "dump_tracebacks must be called in the main interpreter: CPython's faulthandler, "
            "which writes the stacks, serves no other"
        )
    if sys.version_info[2] < _SAFE_SINCE.get(sys.version_info[:2], 0):
        raise RuntimeError(
            "dump_tracebacks needs CPython 3.13.10, 3.14.1 or newer: the faulthandler of "
            f"{sys.version.split()[0]} may crash the process on a thread that runs"
        )
    if file is None:
        file = sys.stderr
        if file is None:
            raise RuntimeError("sys.stderr is None: name a file")
    if not isinstance(file, int) and not callable(getattr(file, "write", None)):
        raise TypeError(
            "file must be a text file or a file descriptor, "
            f"not {type(file).__name__}; open a path first"
        )
    with _dumping:
        if _Dump.under_way:
            raise RuntimeError("a dump is under way in this thread")
        _Dump.under_way = True
        try:
            text = "".join(_stacks(pool))
        finally:
            _Dump.under_way = False
    if isinstance(file, int):
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(file, data) :]
    else:
        file.write(text)
        if hasattr(file, "flush"):
            file.flush()


class _Dump:
    """Guarded by `_dumping`."""

    under_way = False


def _forget_dump() -> None:
    """In the child of a fork: a dump that was under way is the parent's."""
    global _dumping
    _dumping = threading.RLock()
    _Dump.under_way = False


os.register_at_fork(after_in_child=_forget_dump)


def _stacks(pool: InterpreterPool) -> Iterator[str]:
    import faulthandler

    signum = _core.dump_signal()
    if signum < 0:
        raise RuntimeError("all real-time signals of this process have handlers: free one")
    # Writing there never waits.
    fd = os.memfd_create("subinterp-stacks", os.MFD_CLOEXEC)
    try:
        # In the child of a fork: one that the parent registered is not registered again.
        faulthandler.unregister(signum)
        faulthandler.register(signum, fd, all_threads=False, chain=False)
        try:
            if not _core.dump_begin(signum):
                raise RuntimeError("the signal handler of faulthandler was taken away")
            for index, state, thread_id, since in pool._worker_threads():
                told = f" for {since * 1e-9:.3f} s" if since >= 0 else ""
                head = f"Worker {_worker_name(pool, index)} (thread {thread_id}), {state}{told}"
                problem = "it is being started"
                if thread_id:
                    os.ftruncate(fd, 0)
                    os.lseek(fd, 0, os.SEEK_SET)
                    problem = pool._dump_worker(thread_id, signum, PATIENCE)
                if problem:
                    yield f"{head}: {problem}\n\n"
                    continue
                size = os.lseek(fd, 0, os.SEEK_END)
                stack = os.pread(fd, size, 0).decode("utf-8", "backslashreplace")
                if "  File " not in stack:
                    stack = "  (no Python code runs)\n"
                yield f"{head}:\n{stack}\n"
        finally:
            # Before faulthandler lets go: one that is late is not written.
            _core.dump_end()
            faulthandler.unregister(signum)
    finally:
        os.close(fd)

"""Pools of interpreters: the executor."""

from __future__ import annotations

import atexit
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures import Future as _StandardFuture
from itertools import count
from types import CodeType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from subinterp import _core
from subinterp._loops import AsyncMap, enter
from subinterp._policy import Extensions, extension_options

if TYPE_CHECKING:
    from subinterp._progress import Progress
    from subinterp.observing import PoolStats, Trace

__all__ = ["Future", "InterpreterPool"]

# Not `class Future[_T]`: that would put typing.Generic among the bases at run time.
_T = TypeVar("_T")

_pool_numbers = count()


class Future(_core.FutureCore, _StandardFuture[_T]):
    """The caller's handle on a task; a `concurrent.futures.Future`.

    Made by a pool. `result` and `exception` wait in C, and the outcome becomes
    an object of this interpreter when it is first asked for.
    """

    def __init__(self) -> None:
        raise TypeError("futures are made by a pool: use InterpreterPool.submit")

    if TYPE_CHECKING:
        # The C half does not know the type of the result.
        def result(self, timeout: float | None = None) -> _T: ...  # noqa: D102


# The methods of the standard future that the C half replaces would otherwise
# be found there first only by luck of the method resolution order.
assert Future.result is _core.FutureCore.result


def usable_cpus() -> int:
    """Return how many processors this process may use: affinity and cgroup quota."""
    cores = int(_core.usable_cores())
    quota = _cgroup_quota()
    return max(1, min(cores, quota)) if quota else cores


def _cgroup_quota() -> int | None:
    """Whole processors of the control group's quota, rounded up; None: no quota."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    limits: list[float] = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            limits += _quotas("/sys/fs/cgroup", path, _read_v2)
        elif "cpu" in controllers.split(","):
            limits += _quotas(f"/sys/fs/cgroup/{controllers}", path, _read_v1)
    return max(1, -int(-min(limits) // 1)) if limits else None


def _quotas(mount: str, path: str, read: Callable[[str], float | None]) -> list[float]:
    """Limits of a group and of those above it."""
    found = []
    parts = [p for p in path.split("/") if p not in ("", "..")]
    for n in range(len(parts), -1, -1):
        limit = read("/".join([mount, *parts[:n]]))
        if limit is not None:
            found.append(limit)
    return found


def _read_v2(folder: str) -> float | None:
    try:
        with open(f"{folder}/cpu.max") as file:
            quota, period = file.read().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _read_v1(folder: str) -> float | None:
    try:
        with open(f"{folder}/cpu.cfs_quota_us") as file:
            quota = int(file.read())
        with open(f"{folder}/cpu.cfs_period_us") as file:
            period = int(file.read())
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None


# ---- what a worker starts with ----------------------------------------------------

_sent_code: dict[str, bytes] = {}


def _code_for_workers(module: str) -> bytes:
    """Return a module's code object, marshalled: workers import nothing to start."""
    if module not in _sent_code:
        import marshal

        name = f"{_package_folder()}/{module}.py"
        loader = globals().get("__loader__")
        if loader is not None and hasattr(loader, "get_data"):
            source = loader.get_data(name)
        else:
            with open(name, "rb") as file:
                source = file.read()
        code: CodeType = compile(source, name, "exec", dont_inherit=True, optimize=0)
        _sent_code[module] = marshal.dumps(code)
    return _sent_code[module]


def _package_folder() -> str:
    return os.path.dirname(os.path.abspath(__file__))


def _warning_filters() -> list[tuple[Any, ...]] | None:
    """Return the warning filters in force as plain values; None: the usual ones."""
    import warnings

    def pattern(p: Any) -> tuple[str | None, int | None]:
        """Text and flags; no flags: a plain string, as the built-in filters have."""
        return (p, None) if p is None or isinstance(p, str) else (p.pattern, p.flags)

    filters = []
    in_force: Any = warnings.filters
    for action, message, category, module, lineno in in_force:
        text, flags = pattern(message)
        in_module, in_flags = pattern(module)
        # One class, says the documentation; a tuple of them works as well.
        for cls in category if isinstance(category, tuple) else (category,):
            name = cls.__module__, cls.__qualname__
            filters.append((action, text, flags, *name, in_module, in_flags, lineno))
    return None if filters == _INITIAL_FILTERS else filters


# What an interpreter has at its start, unless it was told otherwise.
_INITIAL_FILTERS: list[tuple[Any, ...]] = (
    [
        ("default", None, None, "builtins", "DeprecationWarning", "__main__", None, 0),
        ("ignore", None, None, "builtins", "DeprecationWarning", None, None, 0),
        ("ignore", None, None, "builtins", "PendingDeprecationWarning", None, None, 0),
        ("ignore", None, None, "builtins", "ImportWarning", None, None, 0),
        ("ignore", None, None, "builtins", "ResourceWarning", None, None, 0),
    ]
    if not sys.warnoptions
    else []
)


def _stream_options(name: str) -> dict[str, Any] | None:
    """How a worker's stream reaches the one of that name here."""
    stream = getattr(sys, name)
    if stream is None:
        return None
    # A replaced stream (pytest's capture, a notebook's cell) gets the text
    # itself; the usual one shares its file descriptor.
    forward = stream is not getattr(sys, f"__{name}__") or _core.in_worker()
    return {
        "forward": forward,
        "encoding": "utf-8" if forward else stream.encoding,
        "errors": "surrogateescape" if forward else stream.errors,
        "line_buffering": bool(getattr(stream, "line_buffering", False))
        or (not forward and bool(getattr(stream, "write_through", False))),
    }


_installed: list[str] | None = None


def _installed_folders() -> list[str]:
    """Folders of the standard library and of installed packages, with a slash at the end.

    What a parked interpreter has imported from elsewhere it forgets.
    """
    global _installed
    if _installed is None:
        import site

        scheme = sysconfig.get_paths()
        folders = [scheme[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
        version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
        folders += [f"{prefix}/lib/{version}" for prefix in (sys.base_prefix, sys.base_exec_prefix)]
        folders += site.getsitepackages()
        folders.append(site.getusersitepackages())
        folders += [os.path.realpath(folder) for folder in folders]
        _installed = sorted({os.path.join(folder, "") for folder in folders})
    return _installed


def _creation_key(options: dict[str, Any]) -> str:
    """Tell interpreters apart that were created with different options."""
    extensions = options["extensions"]
    key = f"{options['allow_threads']:d}{options['allow_daemon_threads']:d} "
    if extensions is None:
        return key + "strict"
    return key + f"{extensions['default']} {sorted(extensions['modules'].items())}"


def _log_levels() -> dict[str, Any]:
    from subinterp import _logs

    return _logs.levels()


def _boot_options(
    name: str,
    extensions: Extensions,
    logging_to_main: bool,
    threads: int,
    allow_threads: bool,
    allow_daemon_threads: bool,
) -> dict[str, Any]:
    stdout, stderr = _stream_options("stdout"), _stream_options("stderr")
    options, hint = extension_options(extensions)
    return {
        "worker_code": _code_for_workers("_worker"),
        "extensions": options,
        "extensions_code": b"" if options is None else _code_for_workers("_extensions"),
        "extensions_hint": hint,
        "package": _package_folder(),
        "core": _core.__file__,
        "installed": _installed_folders(),
        "name": name,
        "threads": threads,
        "allow_threads": allow_threads,
        "allow_daemon_threads": allow_daemon_threads,
        "path": [p if isinstance(p, str) else os.fspath(p) for p in sys.path],
        "argv": [str(a) for a in getattr(sys, "argv", [""])],
        "filters": _warning_filters(),
        "switch_interval": None
        if sys.getswitchinterval() == 0.005
        else float(sys.getswitchinterval()),
        "recursion_limit": sys.getrecursionlimit(),
        "logging": _log_levels() if logging_to_main else None,
        "streams": {
            "stdout": stdout,
            "stderr": stderr,
            "forwards": any(s is not None and s["forward"] for s in (stdout, stderr)),
        },
    }


# ---- the pool ------------------------------------------------------------------------


class InterpreterPool(_core.PoolCore, Executor):
    """An executor whose workers are interpreters with a lock of their own.

    Parameters
    ----------
    max_workers : int, optional
        Interpreters at most, with a worker each (but see `threads_per_interpreter`);
        they are started as work comes. None: as many as this process may use
        processors (affinity and cgroup quota).
    thread_name_prefix : str
        Name of the workers' threads, followed by their number.
    initializer : callable, optional
        Called as ``initializer(*initargs)`` in each interpreter before its first
        task. If it raises, the pool is broken.
    initargs : tuple
        Arguments of `initializer`.
    threads_per_interpreter : int
        Workers, each a native thread, in one interpreter. They share its lock, its
        modules and what those keep, as threads of one program do: calls that release
        the lock (reading, sockets, sleeping, compressing) run at the same time, Python
        code runs in one of them at a time. A pool of as many interpreters as there are
        processors, with several threads each, serves work that waits and work that
        computes. Tasks go to the interpreter that has the fewest.
    allow_threads, allow_daemon_threads : bool
        Whether tasks may start threads of their own, and daemon threads. If not,
        ``Thread.start`` raises RuntimeError in a task.
    max_tasks_per_child : int, optional
        Tasks after which a worker's interpreter is replaced by a fresh one,
        never by a parked one (see `set_parked_limit`). None: never.
    extensions : {"auto", "strict", "native"} or mapping
        How workers load extension modules (written in C, Cython, Rust...).
        "auto": those that declare support for an interpreter with its own lock
        as they are, any other as a private copy for each interpreter. "strict":
        CPython's own rule, which refuses the others. "native": all as they are,
        which is safe only for those that share nothing behind Python's back.
        A mapping gives a mode ("auto", "copy", "native", "strict" or "refuse")
        for names of modules; a name covers its submodules, "*" the rest.
    logging_to_main : bool
        Records that workers log are handled by the loggers and handlers of the
        interpreter that makes the pool (as a rule the main one), at its levels;
        they have the worker's name (`threadName`, `worker`) and the number of
        its interpreter (`interpreter`).
    interrupt_grace : float
        Seconds that a task gets to stop once it was interrupted. Then its worker is
        abandoned: another one takes its place, and its future ends with
        `TaskAbandoned`.
    max_abandoned : int, optional
        Abandoned workers whose tasks still run, at most; one more breaks the pool.
        None: as many as `max_workers`, and at least 4. With several workers in an
        interpreter, the others in it finish their tasks, and go on in a fresh one.

    Raises
    ------
    TypeError
        If a number is not of its type, `initializer` is not callable, or
        `extensions` is neither a string nor a mapping of strings.
    ValueError
        If a number is out of range, or a mode is unknown or cannot be had here.
    NotSendableError
        If the initializer or its arguments cannot be sent.

    Notes
    -----
    Workers start with the creator's ``sys.path``, ``sys.argv``, warning
    filters and environment as they are when the pool is made; one that takes a
    parked interpreter as well. Arguments and
    results are copied; see `SharedBuffer`, `share` and `create_channel` for what is
    shared. A pool may be used from any thread, and sent to other interpreters,
    where it is a handle on the same workers
    (which ends with the creator's: a forgotten pool is closed).

    Examples
    --------
    >>> from subinterp import InterpreterPool
    >>> with InterpreterPool(2) as pool:
    ...     list(pool.map(pow, [2, 3], [10, 10]))
    [1024, 59049]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        threads_per_interpreter: int = 1,
        allow_threads: bool = True,
        allow_daemon_threads: bool = True,
        extensions: Extensions = "auto",
        logging_to_main: bool = False,
        interrupt_grace: float = 3.0,
        max_abandoned: int | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = usable_cpus()
        _check_max_workers(max_workers)
        _check_threads(threads_per_interpreter, max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            _warn_of_leaks()
        grace = _checked_grace(interrupt_grace)
        if max_abandoned is None:
            max_abandoned = max(4, max_workers)
        elif not isinstance(max_abandoned, int):
            raise TypeError(f"max_abandoned must be an integer, not {type(max_abandoned).__name__}")
        elif not 0 <= max_abandoned <= 1_000_000:
            raise ValueError("max_abandoned must be between 0 and 1000000")
        name = thread_name_prefix or f"interp{next(_pool_numbers)}"
        options = _boot_options(
            name,
            extensions,
            bool(logging_to_main),
            threads_per_interpreter,
            bool(allow_threads),
            bool(allow_daemon_threads),
        )
        _prepare_interpreter()
        self._open(
            max_workers,
            max_tasks_per_child or 0,
            name,
            _creation_key(options),
            options,
            initializer,
            tuple(initargs),
        )
        self._set_stopping(grace, max_abandoned)

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
    ) -> Iterator[_T]:
        """Apply a function to the items of iterables, results in order.

        Parameters
        ----------
        fn : callable
            Called with one item of each iterable.
        *iterables : iterable
            Read as far as the shortest one goes.
        timeout : float, optional
            Seconds from this call within which every result must be read.
        chunksize : int, optional
            Items sent to a worker at a time. None: chosen from the time that
            earlier items took.
        buffersize : int, optional
            Items taken from the input whose results have not been read yet,
            at most. None: a few chunks for each worker.
        progress : bool, class or callable
            True: a bar of tqdm, which must be installed. A class (or a
            `functools.partial` of one): used as tqdm's, called with ``total``.
            Another callable: called as ``progress(done, total)`` after each
            result is read; ``total`` is None if the input's length is not known.

        Returns
        -------
        iterator
            Results in the order of the input. Work starts now; the input is
            read further as results are read, so it may be endless.

        Raises
        ------
        TimeoutError
            From the iterator, if the time is over.
        NotSendableError
            If an item cannot be sent; names it.
        ImportError
            If `progress` is True and there is no tqdm.
        BaseException
            From the iterator, what a call raised; it ends the iterator, and
            chunks not begun are cancelled.

        Notes
        -----
        Reading a result blocks, with the interpreter's lock released. A map
        over inputs of known length that is not read, or is read after the
        pool's shutdown, is complete all the same; an input of unknown length
        is read up to the bound only, so read its results inside the `with`.
        """
        _check_positive("chunksize", chunksize)
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        if not progress:
            return self._map(fn, iterables, timeout, chunksize, buffersize, False, False)
        check, tracked = _progress()
        check(progress)
        results = self._map(fn, iterables, timeout, chunksize, buffersize, False, False)
        return tracked(results, progress, False)

    def imap_unordered(
        self,
        fn: Callable[[Any], _T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        progress: Progress = False,
    ) -> Iterator[_T]:
        """Apply a function to the items of an iterable, results as they come.

        Parameters
        ----------
        fn : callable
            Called with one item.
        iterable : iterable
            Read as far as the bound on what is in flight allows.
        chunksize : int, optional
            Items sent to a worker at a time. None: chosen from the time that
            earlier items took.
        progress : bool, class or callable
            As for `map`; an item that raised counts as well.

        Returns
        -------
        iterator
            Results, chunk by chunk as workers complete them, in order within a
            chunk. An item that raised does not end it: ``next`` raises its
            exception, and the one after it goes on.

        Raises
        ------
        NotSendableError
            If an item cannot be sent; names it.
        BaseException
            From the iterator, what a call raised.

        Notes
        -----
        Reading a result blocks, with the interpreter's lock released.
        """
        _check_positive("chunksize", chunksize)
        if not progress:
            return self._map(fn, (iterable,), None, chunksize, None, False, True)
        check, tracked = _progress()
        check(progress)
        results = self._map(fn, (iterable,), None, chunksize, None, False, True)
        return tracked(results, progress, True)

    def starmap(
        self,
        fn: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: Progress = False,
    ) -> list[_T]:
        """Apply a function to argument tuples, as `multiprocessing.Pool.starmap`.

        Parameters
        ----------
        fn : callable
            Called as ``fn(*args)``.
        iterable : iterable of iterables
            The arguments of each call.
        chunksize : int, optional
            Calls sent to a worker at a time. None: chosen from the time that
            earlier ones took.
        progress : bool, class or callable
            As for `map`.

        Returns
        -------
        list
            ``[fn(*args) for args in iterable]``, computed in parallel.

        Raises
        ------
        NotSendableError
            If an argument cannot be sent; names it.
        BaseException
            What the first call that failed raised; chunks not begun are cancelled.

        Notes
        -----
        Blocks until all results are there, with the interpreter's lock released.
        """
        _check_positive("chunksize", chunksize)
        if not progress:
            return list(self._map(fn, (iterable,), None, chunksize, None, True, False))
        check, tracked = _progress()
        check(progress)
        results = self._map(fn, (iterable,), None, chunksize, None, True, False)
        return list(tracked(results, progress, False))

    def stats(self) -> PoolStats:
        """Return what the pool and its workers have done, and do now.

        Returns
        -------
        PoolStats
            Plain values in dataclasses, a copy of this moment.

        Notes
        -----
        Does not block, and holds no worker up: workers count for themselves. A call whose result
        has been read is counted. May be called at any time, also after the
        shutdown. In the child of a fork everything is zero.
        """
        from subinterp import observing

        return observing.stats(self)

    def trace(self, path: str | os.PathLike[str], *, max_tasks: int = 500_000) -> Trace:
        """Begin to record what workers do, for a file that Perfetto opens.

        The file has the Chrome trace-event format, which https://ui.perfetto.dev
        and chrome://tracing show: one row a worker, one slice a task, and an
        arrow from its submission.

        Parameters
        ----------
        path : str or path
            Overwritten.
        max_tasks : int
            Tasks recorded at most, in steps of 256 a worker, each in about 130 bytes; what
            comes later is left out, and how much it was is in the file.

        Returns
        -------
        Trace
            Use it in a `with` statement, or call its `stop`: that writes the file.

        Raises
        ------
        OSError
            If the file cannot be opened.
        RuntimeError
            If a trace of this pool is under way.
        ValueError, TypeError
            If `max_tasks` is not a positive integer.

        Notes
        -----
        Does not block. Only tasks that begin during the trace are in it; an
        arrow needs a task that was submitted during it. A chunk of a map is one
        slice. Without a trace under way a task pays nothing for it.

        Examples
        --------
        >>> import tempfile
        >>> from subinterp import InterpreterPool
        >>> with tempfile.TemporaryDirectory() as folder, InterpreterPool(2) as pool:
        ...     with pool.trace(f"{folder}/run.json"):
        ...         pool.submit(pow, 2, 3).result()
        8
        """
        from subinterp import observing

        return observing.Trace(self, path, max_tasks)

    def dump_tracebacks(self, file: IO[str] | int | None = None) -> None:
        """Write the Python stack of every worker, without stopping any.

        Also of those that wait in C, keep their interpreter's lock, or were
        left behind.

        Parameters
        ----------
        file : text file or int, optional
            Where to write: something with a `write` method, or a file
            descriptor. None: ``sys.stderr``.

        Raises
        ------
        RuntimeError
            If it is not called in the main interpreter, no real-time signal
            is free, or CPython is older than 3.13.10 or 3.14.1: its
            faulthandler may crash.
        TypeError
            If `file` is something else.

        Notes
        -----
        Each worker's thread is sent a real-time signal that nobody else uses, and
        has CPython's `faulthandler` write its stack. System calls are
        restarted after it, as far as the system does that: what a C library
        waits for with `poll` or `sleep` may come back early, with EINTR. Blocks
        until all have written, at most a second for each one that does not
        answer; the interpreter's lock is released.
        """
        from subinterp import observing

        observing.dump_tracebacks(self, file)

    async def run(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T:
        """Call ``fn(*args, **kwargs)`` in a worker, and await the result.

        For coroutines of asyncio (with any loop, uvloop's as well) and trio; so also for
        those of anyio.

        Parameters
        ----------
        fn : callable
            As for `submit`: an ordinary function, called in a worker.
        *args, **kwargs
            As for `submit`. Encoded when the coroutine begins.

        Returns
        -------
        object
            What the call returned; made in this interpreter, which owns it.

        Raises
        ------
        RuntimeError
            If the pool was shut down; if no event loop of a library that is known
            runs in this thread.
        NotSendableError, BrokenInterpreterPool
            As `submit`.
        concurrent.futures.CancelledError
            If the pool cancelled the task (``shutdown(cancel_futures=True)``), or, as its
            subclass `TaskInterrupted`, stopped it.
        BaseException
            What the call raised, with the worker's traceback as its cause.

        Notes
        -----
        Does not block the event loop, and does not poll: the notifier's thread
        tells the loop of completed tasks, many at once.

        If the await is cancelled (by ``asyncio.timeout``, a task group, a cancel scope...), the
        task is cancelled if no worker has begun it, and interrupted otherwise, as by
        `Future.interrupt`. The cancellation is not held up by that: the
        task stops in the background, and what becomes of it is not reported. If it
        does not stop within `interrupt_grace`, its worker is abandoned. Until then the
        worker is not free for other tasks.

        Context variables are not sent: the worker has its own. A task of the
        pool itself may await in a loop of its own, but a pool whose every worker does, with
        its tasks still in the queue, is not noticed (`PoolDeadlockError` comes from
        `Future.result` only).
        """
        port, waiter = enter()
        future = self._run(port, waiter, fn, args, kwargs)
        try:
            await waiter
        except BaseException:
            future._give_up()
            raise
        try:
            return future.result()
        finally:
            # Break the cycle future -> exception -> traceback -> frame.
            del future

    def amap(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        unordered: bool = False,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> AsyncMap[_T]:
        """Apply a function to the items of iterables, results for ``async for``.

        Parameters
        ----------
        fn : callable
            An ordinary function, called in a worker with one item of each iterable.
        *iterables : iterable
            Read as far as the shortest one goes, in the event loop; may be endless.
        unordered : bool
            Whether results come chunk by chunk as workers complete them, instead of in
            the order of the input. An item that raised does not end the iterator then.
        chunksize : int, optional
            Items sent to a worker at a time. None: chosen from the time that
            earlier items took.
        buffersize : int, optional
            Items taken from the input whose results have not been read yet,
            at most. None: a few chunks for each worker.

        Returns
        -------
        AsyncMap
            An asynchronous iterator. Work starts when the first result is asked for; the
            input is read further as results are read.

        Raises
        ------
        TypeError
            If `fn` is not callable, an iterable is not one, or a number is not an integer.
        ValueError
            If a number is less than 1.
        NotSendableError
            From the iterator, if an item cannot be sent; names it.
        BaseException
            From the iterator, what a call raised, and as `run`.

        Notes
        -----
        Does not block the event loop, except for what the iterables themselves do.

        When the iterator is left early (``break``, an exception, a cancelled await,
        ``aclose``), what is queued is cancelled and what runs is interrupted; see `run`.

        Examples
        --------
        >>> import asyncio
        >>> from subinterp import InterpreterPool
        >>> async def main():
        ...     with InterpreterPool(2) as pool:
        ...         return [r async for r in pool.amap(pow, [2, 3], [10, 10])]
        >>> asyncio.run(main())
        [1024, 59049]
        """
        _check_positive("chunksize", chunksize)
        _check_positive("buffersize", buffersize)
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        for iterable in iterables:
            if hasattr(iterable, "__aiter__") and not hasattr(iterable, "__iter__"):
                raise TypeError(
                    f"amap takes ordinary iterables, not {type(iterable).__name__}: "
                    "collect an asynchronous one in a list, or await run for each of its items"
                )
            if not hasattr(iterable, "__iter__") and not hasattr(iterable, "__getitem__"):
                raise TypeError(f"{type(iterable).__name__} object is not iterable")
        return AsyncMap(
            lambda port: self._map(
                fn, iterables, None, chunksize, buffersize, False, bool(unordered), port
            )
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and let the workers end.

        Parameters
        ----------
        wait : bool
            Wait until all tasks are done and the workers have ended. A worker
            whose end hangs (a thread that a task left running) is left behind.
        cancel_futures : bool
            Cancel the tasks that no worker has begun.

        Raises
        ------
        RuntimeError
            If a task would wait for the end of the pool that runs it; the pool
            takes no more tasks all the same.

        Notes
        -----
        Idempotent. Waits with the interpreter's lock released. Ctrl-C meanwhile
        cancels and interrupts all tasks, and ends the wait. With
        ``wait=False`` the program still waits for the pool's tasks when it
        ends, except if `cancel_futures` is true as well.
        """
        self._close(cancel_futures, cancel_futures and not wait)
        if wait:
            self._join()

    def resize(self, max_workers: int) -> None:
        """Change how many interpreters the pool has, at most.

        Parameters
        ----------
        max_workers : int
            As in the constructor. Further workers are started as work comes; those
            above it end when their task is done, idle ones at once. The number of
            workers in each interpreter does not change.

        Raises
        ------
        TypeError
            If `max_workers` is not an integer.
        ValueError
            If it is out of range.
        BrokenInterpreterPool
            If the pool is broken.
        RuntimeError
            If the pool was shut down.

        Notes
        -----
        Does not block. A worker stays as long as all others wait for tasks of this
        pool, since it may have to run them.
        """
        _check_max_workers(max_workers)
        _check_threads(self._threads, max_workers)
        self._resize(max_workers)

    def terminate_workers(self) -> None:
        """Shut the pool down, and stop its tasks.

        What is queued is cancelled; what runs is interrupted, as by
        `Future.interrupt`. A task that does not stop within `interrupt_grace` is
        abandoned with its worker.

        Notes
        -----
        Idempotent. Does not block: `shutdown` waits for the end. May be called in a
        task of the pool itself, which is then interrupted, too.
        """
        self._terminate(-1)

    def kill_workers(self) -> None:
        """As `terminate_workers`, without a grace period.

        Tasks that do not stop at once are abandoned: their futures end with
        `TaskAbandoned`, and their code may still run for a while.
        """
        self._terminate(0)

    def __repr__(self) -> str:
        state = "broken" if self._broken else "shut down" if self._is_closing else "open"
        workers = f"{self._n_workers} of {self._max_workers * self._threads} workers"
        return f"<InterpreterPool {self._id}: {workers}, {state}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the pool: workers, queue, throughput."""
        from subinterp import _html

        return _html.pool_html(self)


def _progress() -> tuple[Callable[[object], None], Callable[..., Iterator[Any]]]:
    from subinterp import _progress

    return _progress.check, _progress.Tracked


def _check_max_workers(value: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"max_workers must be an integer, not {type(value).__name__}")
    if value <= 0:
        raise ValueError("max_workers must be greater than 0")
    if value > 4096:
        raise ValueError("max_workers must be at most 4096")


def _check_threads(value: int, max_workers: int) -> None:
    if not isinstance(value, int):
        raise TypeError(f"threads_per_interpreter must be an integer, not {type(value).__name__}")
    if value <= 0:
        raise ValueError("threads_per_interpreter must be greater than 0")
    if value * max_workers > 4096:
        raise ValueError(
            f"max_workers * threads_per_interpreter must be at most 4096, "
            f"not {max_workers} * {value}"
        )


_warned_of_leaks = False


def _warn_of_leaks() -> None:
    """Say once that this Python does not give an interpreter's memory back."""
    global _warned_of_leaks
    if sys.version_info >= (3, 14, 1) or _warned_of_leaks:
        return
    import warnings

    _warned_of_leaks = True
    version = ".".join(map(str, sys.version_info[:3]))
    warnings.warn(
        f"max_tasks_per_child: CPython {version} loses 2 to 5 MB with each interpreter that ends; "
        "use 3.14.1 or newer, or recycle rarely",
        RuntimeWarning,
        stacklevel=3,
    )


def _checked_grace(seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(
            f"interrupt_grace must be a number of seconds, not {type(seconds).__name__}"
        )
    if not 0 <= seconds <= 1e9:
        raise ValueError("interrupt_grace must be between 0 and 1e9 seconds")
    return float(seconds)


def _check_positive(name: str, value: int | None) -> None:
    if value is not None:
        if not isinstance(value, int):
            raise TypeError(f"{name} must be an integer or None")
        if value < 1:
            raise ValueError(f"{name} must be >= 1.")


# ---- the end of the interpreter ---------------------------------------------------------

# Seconds that workers get at exit, after their tasks are done or given up.
EXIT_GRACE = 1.0

_prepared = False


def _prepare_interpreter() -> None:
    """Before the first pool: what CPython needs of this interpreter."""
    global _prepared
    if _prepared:
        return
    if _core.preimport_datetime:
        import datetime  # noqa: F401  (3.13: two interpreters importing it at once can crash)
    # Before threads are joined, as concurrent.futures does for its own pools.
    threading._register_atexit(_core.close_pools_of_this_interpreter)  # type: ignore[attr-defined]
    if _core.current_interpreter_id() == 0:
        atexit.register(_core.abandon_workers, EXIT_GRACE)
        _core.arm_parking(max(4, 2 * usable_cpus()))
    _prepared = True

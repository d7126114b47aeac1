"""Joblib's tasks in interpreters: a backend for `joblib.Parallel`.

::

    import joblib
    import subinterp.integrations.joblib

    subinterp.integrations.joblib.register()
    with joblib.parallel_config(backend="subinterp", n_jobs=2):
        ...  # whatever uses joblib.Parallel, as scikit-learn does

What joblib asks of a backend, and who does it here:

* A `SubinterpBackend` serves one `Parallel` at a time. One that is busy (the results of a
  generator are still being read) hands the next `Parallel` a backend like itself.
* A `_Crew` is a pool and a thread. One at a time has it, so that calls which run at the same
  time never wait for each other, and aborting one leaves the others alone. The last one that
  was given back is kept for the next call.
* joblib's callbacks take the caller's input further, which may do anything: wait, or use
  `Parallel` itself. So they run in the crew's thread, never in the one that all futures of
  this interpreter share.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import Future as StandardFuture
from functools import partial
from typing import Any

from subinterp import _arrays
from subinterp.errors import NotSendableError
from subinterp.integrations import _joblib_worker, in_main_interpreter, need
from subinterp.pool import InterpreterPool

joblib: Any = need("joblib", "1.5", "joblib")

from joblib.parallel import (  # noqa: E402  (not before it is known to be new enough)
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

__all__ = ["SubinterpBackend", "register", "shutdown"]

NAME = "subinterp"

# Seconds that the pool waits for another call before its workers end; as loky's.
IDLE = 300.0


def register(*, make_default: bool = False) -> None:
    """Make the backend known to joblib, by the name "subinterp".

    Parameters
    ----------
    make_default : bool
        Whether `joblib.Parallel` uses it where no backend is named.

    Notes
    -----
    May be called again. Does not block, and starts nothing: the first `Parallel` does.

    Examples
    --------
    >>> import joblib
    >>> from subinterp.integrations.joblib import register
    >>> register()
    >>> with joblib.parallel_config(backend="subinterp", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(pow)(2, n) for n in range(4))
    [1, 2, 4, 8]
    """
    joblib.register_parallel_backend(NAME, SubinterpBackend, make_default=make_default)


def shutdown() -> None:
    """End the workers that are kept for the next call of `joblib.Parallel`.

    Notes
    -----
    Blocks until they have ended. Calls that run are not concerned. The next call starts
    workers anew. At the end of the program it happens by itself.
    """
    global _kept
    with _lock:
        crew, _kept = _kept, None
    if crew is not None:
        crew.end(wait=True)


# ---- the workers ------------------------------------------------------------------------


class _Crew:
    """A pool, and the thread that tells joblib what its workers have completed."""

    def __init__(self, n_jobs: int, options: dict[str, Any]) -> None:
        self.options = options
        initializer, initargs = options["initializer"], options["initargs"]
        try:
            self.pool = InterpreterPool(
                n_jobs,
                thread_name_prefix="joblib",
                initializer=_joblib_worker.prepare,
                initargs=(_joblib_worker.AuthKey(_authkey()), initializer, initargs),
                extensions=options["extensions"],
            )
        except NotSendableError as exc:
            from subinterp import _pickling

            why = Exception(str(exc))
            raise _pickling.explain_call(
                initializer, initargs, {}, why, "initializer", "initargs"
            ) from None
        self.n_jobs = n_jobs
        # Seconds to wait for another call; None: somebody has it.
        self.idle: float | None = None
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Futures that were submitted, until joblib has been told of them.
        self.running: set[Any] = set()
        self.ending = False
        # Whether the thread takes no more messages; decided under the lock.
        self.deaf = False
        self.lock = threading.RLock()
        self.thread = threading.Thread(target=self._listen, name="subinterp-joblib", daemon=True)
        self.thread.start()
        _crews.add(self)

    def suits(self, n_jobs: int, options: dict[str, Any]) -> bool:
        """Return whether it does for another call; it has as many workers then."""
        try:
            if self.options != options:
                return False
            if n_jobs != self.n_jobs:
                self.pool.resize(n_jobs)
                self.n_jobs = n_jobs
            return not self.pool._broken and not self.pool._is_closing
        except Exception:
            return False  # broken or closed in this moment, or arguments that cannot be compared

    def rest(self, idle: float) -> None:
        """Wait for another call, for so many seconds."""
        self.idle = idle
        self.post(_look_again)

    def end(self, wait: bool = False) -> None:
        """End the pool and the thread; whatever is left is cancelled and interrupted."""
        self.pool.terminate_workers()
        self.ending = True
        self.post(_look_again)
        if wait:
            self.pool.shutdown()
            if threading.current_thread() is not self.thread:
                self.thread.join()

    def post(self, message: Callable[[], None]) -> None:
        """Have the thread call `message`; if it has ended, it is called here."""
        with self.lock:
            if not self.deaf:
                self.inbox.put(message)
                return
        message()

    def _listen(self) -> None:
        """Call what is in the inbox, as the crew's thread; until all is told."""
        while not self._is_over():
            try:
                message = self.inbox.get(timeout=self.idle)
            except queue.Empty:
                if self._retires():
                    self.end()
                continue
            message()
            # Whatever it was about may go while this waits.
            del message

    def _is_over(self) -> bool:
        with self.lock:
            self.deaf = self.ending and not self.running and self.inbox.empty()
            return self.deaf

    def _retires(self) -> bool:
        """Leave for good, if nobody has it by now."""
        global _kept
        with _lock:
            if _kept is not self:
                return False
            _kept = None
            self.idle = None
            return True


def _look_again() -> None:
    """Tell the crew's thread to look at what has changed."""


# Those that are there, as long as the program runs.
_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()
_prepared = False


def _prepare() -> None:
    """Before the first crew: see to it that no task holds the end of the program up."""
    global _prepared
    if not _prepared:
        _prepared = True
        # Called before the pools are closed, which lets tasks run to their end.
        threading._register_atexit(_end_all)  # type: ignore[attr-defined]


def _end_all() -> None:
    for crew in list(_crews):
        crew.end()


# Taken by whatever runs when an object is collected, too, which may be in the middle of the rest.
_lock = threading.RLock()
_kept: _Crew | None = None


def _forget() -> None:
    """In the child of a fork: what was there is the parent's."""
    global _lock, _kept, _limiters, _limited
    _lock = threading.RLock()
    _kept = None
    _crews.clear()
    _limiters, _limited = [], 0


os.register_at_fork(after_in_child=_forget)


def _take(n_jobs: int, options: dict[str, Any]) -> _Crew:
    global _kept
    with _lock:
        crew, _kept = _kept, None
        if crew is not None:
            crew.idle = None
    if crew is not None:
        if crew.suits(n_jobs, options):
            return crew
        crew.end()
    crew = _Crew(n_jobs, options)
    _prepare()
    return crew


def _give_back(crew: _Crew, idle: float) -> None:
    global _kept
    if crew.pool._forked:
        return  # it is the parent's
    with _lock:
        other, _kept = _kept, crew
    crew.rest(idle)
    if other is not None:
        other.end()


def _authkey() -> bytes:
    from multiprocessing.process import current_process

    return bytes(current_process().authkey)


class _Workers:
    """What one `Parallel` has of a crew, until it gives it back or aborts."""

    def __init__(self, crew: _Crew, lender: _Lender, openmp: int | None) -> None:
        self.crew = crew
        self.lender = lender
        self.openmp = openmp
        self.aborted = False

    def submit(self, batch: Any, callback: Callable[[Any], None] | None) -> Any:
        future: Any
        try:
            with _arrays.lending(self.lender):
                future = self.crew.pool.submit(_joblib_worker.run, batch, self.openmp)
        except Exception as exc:
            # The caller may be the crew's thread, and joblib would never hear of it.
            future = StandardFuture()
            future.set_exception(_about_the_task(batch, exc))
        else:
            self.crew.running.add(future)
        future.add_done_callback(partial(self._done, callback))
        return future

    def _done(self, callback: Callable[[Any], None] | None, future: Any) -> None:
        self.crew.post(partial(self._tell, callback, future))

    def _tell(self, callback: Callable[[Any], None] | None, future: Any) -> None:
        self.crew.running.discard(future)
        # What joblib has given up it must not hear of: it may be in its next call.
        if callback is None or self.aborted:
            return
        try:
            callback(future)
        except BaseException:
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self.crew.thread)))

    def abort(self) -> None:
        """Cancel what waits, interrupt what runs; does not wait for its end."""
        self.aborted = True
        if not self.crew.pool._forked:
            for future in list(self.crew.running):
                future.interrupt()


def _about_the_task(batch: Any, exc: Exception) -> Exception:
    """Return the error of a batch that cannot be sent: it names the part of the task."""
    if not isinstance(exc, NotSendableError):
        return exc
    from subinterp import _pickling

    for function, args, kwargs in getattr(batch, "items", ()):
        if _pickling._problem((function, args, kwargs)) is not None:
            why = _pickling.explain_call(function, args, kwargs, Exception(str(exc)))
            return NotSendableError(f"in a task of joblib.Parallel, {why}")
    return exc


# ---- large arrays ------------------------------------------------------------------------


class _Lender:
    """Puts each large array of a call's tasks into shared memory, once.

    Parameters
    ----------
    max_nbytes : int, optional
        Arrays of more bytes are lent; None: none are.
    writable : bool
        Whether tasks may write to them; each other's tasks see it, the caller does not.
    """

    def __init__(self, max_nbytes: float | None, writable: bool) -> None:
        self.max_nbytes = max_nbytes
        self.writable = writable
        # By the array's id: itself, weakly, and its copy.
        self._lent: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def __call__(self, array: Any) -> Any:
        in_file = _arrays.lend_file(array)
        if in_file is not None:
            return in_file
        if self.max_nbytes is None or array.nbytes <= self.max_nbytes:
            return None
        # As with joblib's own backends, instances of subclasses are copied.
        if type(array) is not sys.modules["numpy"].ndarray:
            return None
        return _arrays.lend(self._copy_of(array), self.writable)

    def _copy_of(self, array: Any) -> Any:
        key = id(array)
        known = self._lent.get(key)
        if known is not None and known[0]() is array:
            return known[1]
        lent = self._lent
        copy = _arrays.share_ndarray(array)
        lent[key] = weakref.ref(array, lambda _: lent.pop(key, None)), copy
        return copy

    def clear(self) -> None:
        """Forget the copies: their memory goes with the last task that has it."""
        self._lent.clear()


# ---- threads of libraries ------------------------------------------------------------------
# Processes are told in their environment how many threads a library may have. Interpreters have
# one environment, and one copy of OpenBLAS, MKL or OpenMP: a BLAS is limited for the whole
# process, as long as calls run; OpenMP keeps the number for each thread, so workers limit theirs.

_VARIABLES = {
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
    "openmp": "OMP_NUM_THREADS",
}

# What undoes the limits of the calls that run, and how many run.
_limiters: list[Any] = []
_limited = 0


def _controller(explicit: bool) -> Any:
    """Return threadpoolctl's controller of what may be limited; None: there is none."""
    try:
        threadpoolctl: Any = need("threadpoolctl", "3.1", "joblib")
    except ImportError:
        if explicit:
            raise
        return None
    apis = [api for api, name in _VARIABLES.items() if explicit or name not in os.environ]
    return threadpoolctl.ThreadpoolController().select(internal_api=apis)


def _limit(controller: Any, threads: int) -> None:
    global _limited
    with _lock:
        _limited += 1
        if controller is not None:
            _limiters.append(controller.select(user_api="blas").limit(limits=threads))


def _unlimit() -> None:
    global _limited
    with _lock:
        _limited -= 1
        if _limited == 0:
            while _limiters:
                _limiters.pop().restore_original_limits()


# ---- the backend ---------------------------------------------------------------------------


class SubinterpBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """A backend of joblib that runs tasks in interpreters of this process.

    Made by joblib once `register` was called. Its parameters are given to
    `joblib.parallel_config` (with ``backend="subinterp"``) or to `joblib.Parallel`.

    Parameters
    ----------
    nesting_level : int, optional
        Joblib's own.
    inner_max_num_threads : int, optional
        Threads of OpenBLAS, MKL and BLIS in the whole process, and of OpenMP in each worker,
        as long as a call runs. None: as many as processors for each worker, unless a
        variable of the environment (``OPENBLAS_NUM_THREADS``...) says otherwise.
        Needs threadpoolctl.
    initializer : callable, optional
        Called as ``initializer(*initargs)`` in each worker before its first task. If it
        raises, the call fails with `BrokenInterpreterPool`.
    initargs : tuple
        Arguments of `initializer`.
    idle_worker_timeout : float
        Seconds that the workers wait for another call before they end; by default 300.
    extensions : {"auto", "strict", "native"} or mapping
        As for `subinterp.InterpreterPool`.
    max_nbytes : int or str, optional
        Of `joblib.Parallel`: arrays of more bytes ("1M" by default) are put into shared
        memory once for each call, instead of being copied for each task. None: they are not.
    mmap_mode : {"r", "r+", "w+", "c"}, optional
        Of `joblib.Parallel`: whether tasks get such arrays read-only ("r"), writable and
        shared among tasks ("r+", "w+"), or as copies of their own ("c", None).

    Raises
    ------
    TypeError
        From the call, if there is another parameter, or one is not of its type.
    ValueError
        From the call, if a number is out of range, or a mode is unknown.
    ImportError
        From the call, if `inner_max_num_threads` is given and there is no threadpoolctl.
    NotSendableError
        From the call, if a task cannot be sent; names the part of it.

    Notes
    -----
    Workers are kept for the next call; those of calls at the same time end with them. In a
    task, the backend runs nested tasks one after the other, and joblib's default for nested
    tasks is threads, as below loky.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False

    # A batch costs less to hand over than one for a process.
    MIN_IDEAL_BATCH_DURATION = 0.05

    parallel: Any = None
    # joblib's own backends have it by this name.
    _workers: _Workers | None = None
    _in_call = False

    def __del__(self) -> None:
        # joblib has not ended a call that failed before its first task was asked for.
        if self._workers is not None:
            self.abort_everything(ensure_ready=False)
            self.stop_call()
            self.terminate()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers a call with `n_jobs` has: joblib's rules."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if not in_main_interpreter():
            if n_jobs != 1:
                import warnings

                warnings.warn(
                    "Interpreter-backed parallel loops cannot be nested, setting n_jobs=1: "
                    "this is a worker already. Leave the backend out to have threads here",
                    stacklevel=3,
                )
            return 1
        if n_jobs < 0:
            n_jobs = max(int(joblib.cpu_count()) + 1 + n_jobs, 1)
        if n_jobs > 4096:
            raise ValueError(f"n_jobs must be at most 4096, not {n_jobs}")
        return n_jobs

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: object = None,
        require: object = None,
        **options: Any,
    ) -> int:
        """Take workers for a call, and return how many; called by joblib."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self._workers is not None and self.parallel is not parallel:
            raise FallbackToBackend(self._another())
        settings = _Settings({**self.backend_kwargs, **options})
        explicit = self.inner_max_num_threads is not None
        threads = self.inner_max_num_threads or max(int(joblib.cpu_count()) // n_jobs, 1)
        self._threads = threads
        self._controller = _controller(explicit)
        openmp = threads if _has_openmp(self._controller) else None
        self._idle = settings.idle
        self._workers = _Workers(_take(n_jobs, settings.of_crew), settings.lender(), openmp)
        self.parallel = parallel
        return n_jobs

    def _another(self) -> SubinterpBackend:
        """Return a backend like this one, for another `Parallel` at the same time."""
        return type(self)(
            nesting_level=self.nesting_level,
            inner_max_num_threads=self.inner_max_num_threads,
            **self.backend_kwargs,
        )

    def start_call(self) -> None:
        """Begin a call; called by joblib."""
        if not self._in_call:
            self._in_call = True
            _limit(self._controller, self._threads)

    def stop_call(self) -> None:
        """End a call; called by joblib."""
        if self._workers is not None:
            self._workers.lender.clear()
        if self._in_call:
            self._in_call = False
            _unlimit()

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Any:
        """Send a batch of tasks to a worker; called by joblib."""
        workers = self._workers
        if workers is None:
            raise RuntimeError("the call of joblib.Parallel is over")
        return workers.submit(func, callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return the results of a batch, or raise its error; called by joblib."""
        try:
            return out.result()
        except CancelledError as exc:
            if type(exc) is not CancelledError:
                raise
            raise RuntimeError(
                "the workers of joblib.Parallel were shut down before the task was begun"
            ) from None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop the tasks of the call; called by joblib.

        What is queued is cancelled, what runs is interrupted. A task that does not stop
        within 3 seconds is left behind with its worker, and another takes its place.
        """
        workers = self._workers
        if workers is None:
            return
        workers.abort()
        workers.lender.clear()
        if ensure_ready:
            # Of the same crew: its workers are free as soon as their tasks have stopped.
            self._workers = _Workers(workers.crew, workers.lender, workers.openmp)

    def terminate(self) -> None:
        """Give the workers back; called by joblib."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.lender.clear()
            _give_back(workers.crew, self._idle)
        self.reset_batch_stats()


def _has_openmp(controller: Any) -> bool:
    return controller is not None and len(controller.select(user_api="openmp")) > 0


class _Settings:
    """The parameters of a call, checked."""

    # Joblib's own, which have no meaning for interpreters: they share memory, not files.
    UNUSED = frozenset({"temp_folder", "context", "verbose", "prewarm"})

    def __init__(self, given: dict[str, Any]) -> None:
        idle = given.pop("idle_worker_timeout", None)
        if idle is None:
            idle = IDLE
        elif isinstance(idle, bool) or not isinstance(idle, (int, float)):
            raise TypeError(
                f"idle_worker_timeout must be a number of seconds, not {type(idle).__name__}"
            )
        elif not 0 <= idle <= 1e9:
            raise ValueError("idle_worker_timeout must be between 0 and 1e9 seconds")
        self.idle = float(idle)
        initializer = given.pop("initializer", None)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self.of_crew = {
            "initializer": initializer,
            "initargs": tuple(given.pop("initargs", ())),
            "extensions": given.pop("extensions", "auto"),
            # Workers have what was in force at their start.
            "path": list(sys.path),
            "streams": [getattr(sys, n) is getattr(sys, f"__{n}__") for n in ("stdout", "stderr")],
        }
        self.max_nbytes = given.pop("max_nbytes", None)
        self.mode = given.pop("mmap_mode", "r")
        if self.mode not in ("r", "r+", "w+", "c", None):
            raise ValueError(f"mmap_mode must be 'r', 'r+', 'w+', 'c' or None, not {self.mode!r}")
        unknown = sorted(given.keys() - self.UNUSED)
        if unknown:
            hint = ": use idle_worker_timeout" if "timeout" in unknown else ""
            raise TypeError(
                f'the backend "{NAME}" of joblib has no parameter {", ".join(unknown)}{hint}'
            )

    def lender(self) -> _Lender:
        """Return what lends this call's arrays."""
        lends = self.mode in ("r", "r+", "w+")
        return _Lender(self.max_nbytes if lends else None, self.mode != "r")

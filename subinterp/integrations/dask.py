"""Dask workers that run their tasks in a pool of interpreters.

`SubinterpPlugin` gives a Dask worker the executor, from its client or at its start; with
``dask worker --preload subinterp.integrations.dask`` it does so from the command line.

Distributed hands an executor that is none of its own thread pools the function
`_run_task_simple` with a node of the graph, its inputs, and a clock's offset, and expects
a dictionary with the result, its size and times. That function would work in an interpreter
as it does in a process. But it would have every interpreter import distributed, and would
tell nobody which task it runs. So what is sent is the task's own call, wrapped in
`_dask_task.Call`, and the dictionary is made here, in the main interpreter, where
exceptions, sizes and metrics mean what they mean for a task in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import Any

from subinterp.errors import (
    BrokenInterpreterPool,
    NotSendableError,
    RemoteTraceback,
    TaskInterrupted,
)
from subinterp.integrations import in_main_interpreter, need
from subinterp.integrations._dask_task import Call, Frame, Times, take_report
from subinterp.pool import InterpreterPool

need("distributed", "2025.9", "dask")

import click  # noqa: E402  # distributed needs it
import tblib  # noqa: E402  # and this
from dask._task_spec import (  # noqa: E402
    Alias,
    DataNode,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
)
from distributed import Reschedule, WorkerPlugin  # noqa: E402
from distributed.core import error_message  # noqa: E402
from distributed.metrics import context_meter  # noqa: E402
from distributed.metrics import time as now  # noqa: E402
from distributed.sizeof import safe_sizeof  # noqa: E402
from distributed.worker import _run_task, _run_task_simple  # noqa: E402

__all__ = ["InterpreterExecutor", "SubinterpPlugin", "dask_setup"]

logger = logging.getLogger("distributed.worker.subinterp")

EXECUTOR = "subinterp"
THREADS = "threads"
# Nodes of a graph that only say where something is, or hold it.
_DATA = (Alias, DataNode)


class _Run:
    """A task that was submitted and is not complete."""

    def __init__(self, delay: float) -> None:
        self.outcome: Future[dict[str, Any]] = Future()
        # Nobody but us completes it: distributed's own cancellations must not.
        self.outcome.set_running_or_notify_cancel()
        self.context: Context = copy_context()
        self.delay = delay
        self.submitted = now()
        self.sent: Future[tuple[Any, Times]] | None = None
        self.stopped = False


class InterpreterExecutor(Executor):
    """Runs the tasks of one Dask worker in an `InterpreterPool`.

    Parameters
    ----------
    max_workers : int
        Interpreters: as many as the Dask worker has threads.
    in_thread : callable, optional
        Takes a task, its inputs and a clock's offset where the task is one of distributed's
        own, which needs the Dask worker; returns a future as `submit` does.
    on_broken : callable, optional
        Called with the exception, in any thread, when a task finds the pool broken that has
        run others. Such tasks are rescheduled. Those of a pool that never worked fail.
    **options
        For the pool.

    Notes
    -----
    `submit` does not block. Arguments are encoded in a thread of its own, so that large
    ones do not hold up the Dask worker's event loop, and results are decoded outside of
    it as well.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        in_thread: Callable[[GraphNode, dict[Any, Any], float], Future[Any]] | None = None,
        on_broken: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> None:
        self._pool = InterpreterPool(max_workers, **options)
        self._in_thread = in_thread
        self._on_broken = on_broken
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="subinterp-dask-sender")
        self._lock = threading.Lock()  # guards what follows, and the fields of each _Run
        self._runs: dict[Any, _Run] = {}
        self._worked = False  # whether any task got as far as an interpreter

    @property
    def pool(self) -> InterpreterPool:
        """The pool, for its statistics, traces and stacks."""
        return self._pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function, or a task as distributed submits it, in an interpreter."""
        if fn is not _run_task_simple:
            return self._pool.submit(fn, *args, **kwargs)  # such as its benchmarks of memory
        task, data, delay = args
        if self._in_thread is not None and _needs_worker(task):
            return self._in_thread(task, data, delay)
        run = _Run(delay)
        with self._lock:
            self._runs[task.key] = run
        self._sender.submit(self._send, run, task, data)
        return run.outcome

    def interrupt(self, key: Any) -> bool:
        """Stop a task, if it waits or runs here: its slot becomes free.

        Returns
        -------
        bool
            True if it was there and not complete.

        Notes
        -----
        Does not block. The task is rescheduled if anybody still wants its result.
        """
        with self._lock:
            run = self._runs.get(key)
            if run is None:
                return False
            run.stopped = True
            sent: Any = run.sent
        return sent is None or bool(sent.interrupt())

    def _send(self, run: _Run, task: GraphNode, data: dict[Any, Any]) -> None:
        def finish(sent: Future[tuple[Any, Times]]) -> None:
            self._finish(run, task.key, sent.result)

        try:
            if type(task) in _DATA:  # nothing is computed
                start = now()
                result = task(data), (start, now(), 0.0, threading.get_ident())
                self._finish(run, task.key, lambda: result)
                return
            function, args, kwargs = _plain_call(task, data)
            sent: Any = self._pool.submit(Call(function), *args, **kwargs)
            with self._lock:
                run.sent = sent
                stopped = run.stopped
            if stopped:
                sent.interrupt()
            sent.add_done_callback(finish)
        except BaseException as exc:
            # Stopped meanwhile with the pool, which then takes none any more.
            error = TaskInterrupted("the task was stopped") if run.stopped else exc

            def fail() -> tuple[Any, Times]:
                raise error

            self._finish(run, task.key, fail)

    def _finish(self, run: _Run, key: Any, result: Callable[[], tuple[Any, Times]]) -> None:
        """Complete a task, whatever happened: distributed waits for it without a limit."""
        with self._lock:
            if self._runs.get(key) is run:
                del self._runs[key]
        outcome: tuple[Any, Times] | BaseException
        try:
            outcome = result()
        except BaseException as exc:
            outcome = exc
        try:
            if isinstance(outcome, BaseException):
                message = self._failed(outcome, run)
            else:
                self._worked = True
                message = _success(*outcome, run)
        except BaseException as exc:
            message = _erred(exc, _no_times(run), run)
        run.outcome.set_result(message)

    def _failed(self, error: BaseException, run: _Run) -> dict[str, Any]:
        if isinstance(error, BrokenInterpreterPool) and self._worked:
            if self._on_broken is not None:
                self._on_broken(error)
            error = Reschedule()
        elif not isinstance(error, (BrokenInterpreterPool, NotSendableError)):
            self._worked = True
        return _failure(error, run)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and let the workers end; see `InterpreterPool.shutdown`."""
        self._sender.shutdown(wait=wait)
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def terminate(self) -> None:
        """Stop all tasks, and shut down without waiting; see `terminate_workers`."""
        with self._lock:
            for run in self._runs.values():
                run.stopped = True
        self._pool.terminate_workers()


# ---- tasks -------------------------------------------------------------------------------


def _plain_call(
    task: GraphNode, data: dict[Any, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return what a task calls, with the inputs in their places.

    Where something is to be computed inside of the arguments, or several nodes of a graph were
    fused, the task itself is what is called, and does the rest there with dask.
    """
    if type(task) is Task and all(map(_is_data, (*task.args, *task.kwargs.values()))):
        args = tuple(_value(a, data) for a in task.args)
        return task.func, args, {k: _value(a, data) for k, a in task.kwargs.items()}
    return task, (data,), {}


def _is_data(node: Any) -> bool:
    """Return whether an argument is there already: it needs no call of a function."""
    if isinstance(node, NestedContainer):  # a list, tuple, set or dict with inputs in it
        return all(map(_is_data, node.args))
    return not isinstance(node, GraphNode) or type(node) in _DATA


def _value(node: Any, data: dict[Any, Any]) -> Any:
    if isinstance(node, TaskRef):
        return data[node.key]
    return node(data) if isinstance(node, GraphNode) else node


def _needs_worker(task: GraphNode) -> bool:
    """Return whether a task is one of distributed's own, as those that shuffle are."""
    return any(map(_is_distributeds, _functions(task)))


def _functions(node: Any) -> Iterator[Any]:
    """All that a task calls, also those that were fused into it."""
    if isinstance(node, Task):
        yield node.func
        for a in (*node.args, *node.kwargs.values()):
            for inner in a.values() if node.has_subgraph() and type(a) is dict else (a,):
                yield from _functions(inner)


def _is_distributeds(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    package = _package_of(function)
    if package != "dask":
        return package == "distributed"
    # Some of dask's functions import those of distributed, or hold one.
    code = getattr(function, "__code__", None)
    imported = () if code is None else code.co_names
    cells = getattr(function, "__closure__", None) or ()
    return any(name.partition(".")[0] == "distributed" for name in imported) or any(
        _package_of(cell.cell_contents) == "distributed" for cell in cells
    )


def _package_of(obj: Any) -> str:
    return str(getattr(obj, "__module__", None)).partition(".")[0]


# ---- what distributed is told ------------------------------------------------------------


def _no_times(run: _Run) -> Times:
    return run.submitted, now(), 0.0, threading.get_ident()


def _meter(times: Times, run: _Run) -> None:
    """Report what distributed meters around a task in a thread."""
    start, stop, cpu, _ = times

    def digest() -> None:
        context_meter.digest_metric("thread-cpu", cpu, "seconds")
        context_meter.digest_metric("thread-noncpu", max(0.0, stop - start - cpu), "seconds")

    run.context.run(digest)


def _timed(message: dict[str, Any], times: Times, run: _Run) -> dict[str, Any]:
    message["start"] = times[0] + run.delay
    message["stop"] = times[1] + run.delay
    message["thread"] = times[3]
    return message


def _success(value: Any, times: Times, run: _Run) -> dict[str, Any]:
    _meter(times, run)
    message = {
        "op": "task-finished",
        "status": "OK",
        "result": value,
        "nbytes": safe_sizeof(value),
        "type": type(value) if value is not None else None,
    }
    return _timed(message, times, run)


def _failure(exc: BaseException, run: _Run) -> dict[str, Any]:
    if isinstance(exc, TaskInterrupted):
        # Stopped since nobody wanted it, or as the executor ends. Whoever has come to
        # want it since then gets it from a second run.
        return _erred(Reschedule(), _no_times(run), run)
    if isinstance(exc, NotSendableError):
        # The result travels with its times. How the pickling went says nothing more.
        text = str(exc)
        if text.startswith("result[0]"):
            text = "the task's result" + text.removeprefix("result[0]")
        return _erred(NotSendableError(text), _no_times(run), run)
    report = take_report(exc)
    if report is None:
        return _erred(exc, _no_times(run), run)
    times, frames, suppress = report
    _meter(times, run)
    _drop_remote_traceback(exc, suppress)
    if isinstance(exc, (SystemExit, KeyboardInterrupt)):
        # One of these would end the Dask worker.
        exc = RuntimeError(f"the task raised {exc!r}")
    return _erred(exc, times, run, _traceback(frames))


def _erred(exc: BaseException, times: Times, run: _Run, tb: Any = None) -> dict[str, Any]:
    try:
        raise exc
    except BaseException as raised:
        raised.__traceback__ = tb  # not this frame, nor those of this module
        message = error_message(raised)
    message["op"] = "task-erred"
    message["actual_exception"] = exc
    return _timed(message, times, run)


def _drop_remote_traceback(exc: BaseException, suppress: bool) -> None:
    """Take the worker's traceback as text off an exception: it gets the traceback itself.

    A client that lacks this package could not read it.
    """
    last, seen = exc, {id(exc)}
    while last.__cause__ is not None and id(last.__cause__) not in seen:
        if isinstance(last.__cause__, RemoteTraceback):
            last.__cause__ = None
            last.__suppress_context__ = suppress if last is exc else False
            return
        last = last.__cause__
        seen.add(id(last))


def _traceback(frames: list[Frame]) -> Any:
    """Make a traceback, which distributed pickles with tblib, of what was sent of it."""
    made: dict[str, Any] | None = None
    for file, function, line, module in reversed(frames):
        made = {
            "tb_frame": {
                "f_globals": {"__file__": file, "__name__": module},
                "f_code": {"co_filename": file, "co_name": function},
                "f_lineno": line,
            },
            "tb_lineno": line,
            "tb_next": made,
        }
    return None if made is None else tblib.Traceback.from_dict(made).as_traceback()


# ---- frames of other interpreters --------------------------------------------------------

# The oldest versions of CPython that are known to leave other interpreters alone there.
# Earlier ones (3.13.0, 3.14.7) make frame objects for threads of all interpreters, which run
# meanwhile. Distributed samples its threads so, and that ended Dask workers with SIGABRT.
_SAFE_FRAMES = {13: (3, 13, 18), 14: (3, 14, 10), 15: (3, 15, 2)}


class UnsafeFramesError(KeyError):
    """`sys._current_frames` would corrupt memory; a KeyError ends distributed's sampling."""

    def __str__(self) -> str:
        return str(self.args[0])


def _no_frames() -> dict[int, Any]:
    version = ".".join(map(str, sys.version_info[:3]))
    safe = ", ".join(".".join(map(str, v)) for v in _SAFE_FRAMES.values())
    raise UnsafeFramesError(
        f"sys._current_frames() of CPython {version} corrupts memory while tasks run in "
        f"interpreters, and is switched off in this Dask worker; use {safe} or newer"
    )


def _switch_profiles_off(worker: Any) -> None:
    """Keep distributed from looking at frames, where CPython cannot do that safely."""
    if sys.version_info[:3] >= _SAFE_FRAMES.get(sys.version_info.minor, (3, 15)):
        return
    if "profile" in worker.periodic_callbacks:
        worker.periodic_callbacks.pop("profile").stop()
    vars(sys)["_current_frames"] = _no_frames


# ---- the Dask worker's plugin ------------------------------------------------------------


class SubinterpPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed is not looked into
    """Gives each Dask worker a pool of interpreters, one for each of its threads.

    Parameters
    ----------
    default : bool
        Whether tasks run there unless they say otherwise. If not, those annotated with
        ``dask.annotate(executor="subinterp")`` do. ``executor="threads"`` means the
        executor that was the default.
    extensions : {"auto", "strict", "native"} or mapping
        How interpreters load extension modules; see `InterpreterPool`.
    interrupt_grace : float
        Seconds that a cancelled task gets to stop.
    **options
        Further ones of `InterpreterPool`, except `max_workers`.

    Raises
    ------
    TypeError, ValueError
        In the Dask worker, if the pool does not take the options;
        `Client.register_plugin` raises them.
    RuntimeError
        In the Dask worker, if it is not in the main interpreter of its process, or has an
        executor of that name already.

    Examples
    --------
    >>> from distributed import Client
    >>> from subinterp.integrations.dask import SubinterpPlugin
    >>> client = Client(n_workers=1, threads_per_worker=2)  # doctest: +SKIP
    >>> client.register_plugin(SubinterpPlugin())  # doctest: +SKIP
    >>> client.submit(sum, range(1000)).result()  # doctest: +SKIP
    499500
    """

    name = "subinterp"

    def __init__(
        self,
        *,
        default: bool = True,
        extensions: Any = "auto",
        interrupt_grace: float = 3.0,
        **options: Any,
    ) -> None:
        if "max_workers" in options:
            raise TypeError(
                "max_workers cannot be given: there is an interpreter for each thread of the "
                "Dask worker (dask worker --nthreads)"
            )
        self.default = bool(default)
        self.options = {
            "extensions": extensions,
            "interrupt_grace": interrupt_grace,
            "logging_to_main": True,
            **options,
        }
        self._executor: InterpreterExecutor | None = None

    def setup(self, worker: Any) -> None:
        """Give a Dask worker its executor."""
        if not in_main_interpreter():
            raise RuntimeError(
                "this Dask worker is not in the main interpreter of its process: its tasks run in "
                "interpreters only there"
            )
        if EXECUTOR in worker.executors:
            raise RuntimeError(f"this Dask worker has an executor {EXECUTOR!r} already")

        def close(exc: BaseException) -> None:
            logger.error("The Dask worker closes, since its interpreters are broken: %s", exc)
            # As distributed does after errors of its own: a nanny starts another process.
            worker.loop.add_callback(
                worker.close,
                nanny=False,
                executor_wait=False,
                reason="subinterp-broken",
            )

        _switch_profiles_off(worker)

        def in_thread(task: GraphNode, data: dict[Any, Any], delay: float) -> Future[Any]:
            # As `Worker.execute` does it.
            threads: Any = worker.executors[THREADS]
            if "ThreadPoolExecutor" not in str(type(threads)):
                submitted: Future[Any] = threads.submit(_run_task_simple, task, data, delay)
            else:
                active = worker.active_threads, worker.active_threads_lock
                place = worker.execution_state, task.key, *active
                run = copy_context().run
                submitted = threads.submit(run, _run_task, task, data, *place, delay)
            return submitted

        self._executor = InterpreterExecutor(
            worker.state.nthreads,
            in_thread=in_thread,
            on_broken=close,
            **{"thread_name_prefix": f"dask-{worker.name}", **self.options},
        )
        worker.executors[EXECUTOR] = self._executor
        worker.executors.setdefault(THREADS, worker.executors["default"])
        if self.default:
            worker.executors["default"] = self._executor

    async def teardown(self, worker: Any) -> None:
        """Take the executor away; its tasks are stopped, and run elsewhere if wanted."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        if worker.executors.get("default") is executor:
            worker.executors["default"] = worker.executors[THREADS]
        worker.executors.pop(EXECUTOR, None)
        executor.terminate()
        await asyncio.to_thread(executor.shutdown)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Stop a task that nobody wants any more."""
        if (
            finish == "released"
            and start in ("executing", "long-running")
            and self._executor is not None
        ):
            self._executor.interrupt(key)


# ---- dask worker --preload ---------------------------------------------------------------


async def _set_up(
    worker: Any,
    subinterp_by_annotation: bool,
    subinterp_extensions: str,
    subinterp_grace: float,
) -> None:
    """Run the tasks of a Dask worker in interpreters; for ``dask worker --preload``."""
    if not hasattr(worker, "executors"):
        raise TypeError(
            f"subinterp.integrations.dask is a preload of Dask workers, not of a "
            f"{type(worker).__name__}: use --preload of dask worker"
        )
    plugin = SubinterpPlugin(
        default=not subinterp_by_annotation,
        extensions=subinterp_extensions,
        interrupt_grace=subinterp_grace,
    )
    await worker.plugin_add(plugin, catch_errors=False)


dask_setup = click.Command(
    "subinterp",
    callback=_set_up,
    help="Run the tasks of a Dask worker in interpreters.",
    params=[
        click.Option(
            ["--subinterp-by-annotation"],
            is_flag=True,
            help='Only tasks with dask.annotate(executor="subinterp") run in interpreters.',
        ),
        click.Option(
            ["--subinterp-extensions"],
            type=click.Choice(["auto", "strict", "native"]),
            default="auto",
            show_default=True,
            help="How interpreters load extension modules.",
        ),
        click.Option(
            ["--subinterp-grace"],
            type=click.FloatRange(min=0),
            default=3.0,
            show_default=True,
            help="Seconds that a cancelled task gets to stop.",
        ),
    ],
)

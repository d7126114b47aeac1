"""CPython's own tests of its executors, run against InterpreterPool.

They are taken from the running Python's `test` package, so each version brings
its own. What differs is the executor that the tests are given: the mixin below
stands where CPython has ThreadPoolMixin or InterpreterPoolMixin. The tests of its pool of
processes see an InterpreterPool that looks like one.

A test that cannot apply is listed in NOT_APPLICABLE with its reason, and is
reported as skipped.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import types
import unittest
from concurrent.futures import Future
from unittest import mock

import pytest

import subinterp
from _support import wait_until
from _work import Gate, interpreter_id

try:
    from test.test_concurrent_futures import (
        executor as cpython_executor,
    )
    from test.test_concurrent_futures import (
        test_as_completed as cpython_as_completed,
    )
    from test.test_concurrent_futures import (
        test_deadlock as cpython_deadlock,
    )
    from test.test_concurrent_futures import (
        test_init as cpython_init,
    )
    from test.test_concurrent_futures import (
        test_process_pool as cpython_process_pool,
    )
    from test.test_concurrent_futures import (
        test_shutdown as cpython_shutdown,
    )
    from test.test_concurrent_futures import (
        test_wait as cpython_wait,
    )
    from test.test_concurrent_futures import (
        util as cpython_util,
    )
except ImportError as error:
    if not (error.name or "").startswith("test"):
        raise
    pytest.skip(
        f"this Python has no `test` package ({error}): CPython's executor tests did not run",
        allow_module_level=True,
    )

_THREADS = "looks at the private list of threads of ThreadPoolExecutor; "

_CRASH = "ends the process, which is ours as well: interpreters share it"
_IDLE = (
    "counts on a worker being idle once its result is there; ours publishes the result first, "
    "so the next task may start another worker"
)
_PRIVATE = "replaces private parts of ProcessPoolExecutor; "

# Tests that CPython has in these modules for executors with threads or
# processes only, outside the shared classes. "class.test" -> why it cannot
# apply, and what checks the same thing here.
NOT_APPLICABLE = {
    "ThreadPoolWaitTests.test_pending_calls_race": (
        "its tasks share a threading.Event of the caller; see test_stress.py"
    ),
    "ThreadPoolShutdownTest.test_threads_terminate": (
        _THREADS + "every test here checks that no native thread is left"
    ),
    "ThreadPoolShutdownTest.test_context_manager_shutdown": (
        _THREADS + "see test_pool.py::test_context_manager_waits"
    ),
    "ThreadPoolShutdownTest.test_del_shutdown": (
        _THREADS + "see test_pool.py::test_map_results_survive_a_forgotten_pool"
    ),
    "ThreadPoolShutdownTest.test_shutdown_no_wait": (
        _THREADS + "see test_pool.py::test_shutdown_without_wait"
    ),
    "ThreadPoolShutdownTest.test_thread_names_assigned": (
        _THREADS + "see test_pool.py::test_thread_name_prefix"
    ),
    "ThreadPoolShutdownTest.test_thread_names_default": (
        _THREADS + "see test_pool.py::test_thread_name_default"
    ),
    "ThreadPoolShutdownTest.test_cancel_futures_wait_false": (
        "its script names ThreadPoolExecutor; see test_life.py::test_cancel_futures_at_exit"
    ),
    "FailingInitializerResourcesTest.test_spawn": (
        "about the resource tracker of multiprocessing; an InterpreterPool has none"
    ),
    "FailingInitializerResourcesTest.test_forkserver": (
        "about the resource tracker of multiprocessing; an InterpreterPool has none"
    ),
    "ProcessPoolExecutorTest.test_max_workers_too_large": "about a limit of Windows",
    "ProcessPoolExecutorTest.test_killed_child": _CRASH,
    "ProcessPoolExecutorTest.test_broken_process_pool_traceback": _CRASH,
    "ProcessPoolExecutorTest.test_traceback_when_child_process_terminates_abruptly": _CRASH,
    "ProcessPoolExecutorTest.test_force_shutdown_workers_dead_workers": _CRASH,
    "ProcessPoolExecutorTest.test_traceback": (
        "names the private type of the cause; the text is checked in test_functions.py"
    ),
    "ProcessPoolExecutorTest.test_saturation": (
        "counts processes right after submit; our workers start as work comes, see "
        "test_turnover.py::test_more_workers_for_what_is_queued"
    ),
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _IDLE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _IDLE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": (
        "about the start methods of multiprocessing"
    ),
    "ProcessPoolExecutorTest.test_shutdown_no_wait_max_tasks_gh119592": (
        "expects that tasks of a forgotten pool fail; ours runs them, see "
        "test_pool.py::test_map_results_survive_a_forgotten_pool"
    ),
    "ProcessPoolExecutorTest.test_gc_during_max_tasks_worker_exit_gh152967": (
        "expects that tasks of a forgotten pool fail; ours runs them, see "
        "test_pool.py::test_map_results_survive_a_forgotten_pool"
    ),
    "ProcessPoolExecutorTest.test_force_shutdown_during_max_tasks_worker_exit": (
        _PRIVATE + "see test_turnover.py::test_terminate_while_tasks_begin"
    ),
    "ProcessPoolExecutorTest.test_failed_worker_replacement_breaks_pool": (
        _PRIVATE + "see test_turnover.py::test_a_pool_that_cannot_make_workers_breaks"
    ),
    "ProcessPoolExecutorTest.test_python_finalization_error": (
        _PRIVATE + "the threads that it keeps from starting are not there"
    ),
    "ProcessPoolExecutorTest.test_terminate_workers": (
        _PRIVATE + "see test_turnover.py::test_terminate_workers"
    ),
    "ProcessPoolExecutorTest.test_kill_workers": (
        _PRIVATE + "see test_turnover.py::test_kill_workers"
    ),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_invalid_op": (
        "passes a wrong argument to a private method"
    ),
    "ProcessPoolExecutorTest.test_force_shutdown_workers": (
        "asks which signal was sent; see test_turnover.py::test_terminate_workers"
    ),
    "ExecutorDeadlockTest.test_crash_at_task_unpickle": _CRASH,
    "ExecutorDeadlockTest.test_crash_during_func_exec_on_worker": _CRASH,
    "ExecutorDeadlockTest.test_crash_during_result_pickle_on_worker": _CRASH,
    "ExecutorDeadlockTest.test_shutdown_deadlock": _CRASH,
    "ExecutorDeadlockTest.test_crash_big_data": _CRASH,
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": (
        _PRIVATE + "the pipe that it fills is not there"
    ),
}


class InterpreterPoolMixin(cpython_util.ExecutorMixin):
    """Give CPython's tests an InterpreterPool."""

    executor_type = subinterp.InterpreterPool

    def create_event(self):
        # A threading.Event cannot be sent; a pipe is the same in every interpreter.
        gate = Gate()
        self.addCleanup(gate.close)
        return gate


def _run_with_subinterp(*args, **kwargs):
    """Run CPython's scripts with our class, which is not in concurrent.futures."""
    args = [
        arg.replace(
            "from concurrent.futures import InterpreterPool\n",
            "from subinterp import InterpreterPool\n",
        )
        for arg in args
    ]
    assert any("from subinterp import InterpreterPool" in arg for arg in args), args
    return _assert_python_ok(*args, **kwargs)


_assert_python_ok = cpython_shutdown.assert_python_ok


class ShutdownMixin(InterpreterPoolMixin):
    def setUp(self):
        patch = mock.patch.object(cpython_shutdown, "assert_python_ok", _run_with_subinterp)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


class ExecutorTests(cpython_executor.ExecutorTest, InterpreterPoolMixin, cpython_util.BaseTestCase):
    pass


class WaitTests(cpython_wait.WaitTests, InterpreterPoolMixin, cpython_util.BaseTestCase):
    pass


class AsCompletedTests(
    cpython_as_completed.AsCompletedTests, InterpreterPoolMixin, cpython_util.BaseTestCase
):
    pass


class ExecutorShutdownTests(
    cpython_shutdown.ExecutorShutdownTest, ShutdownMixin, cpython_util.BaseTestCase
):
    pass


class InitializerTests(
    cpython_init.InitializerMixin, InterpreterPoolMixin, cpython_util.BaseTestCase
):
    pass


class FailingInitializerTests(
    cpython_init.FailingInitializerMixin, InterpreterPoolMixin, cpython_util.BaseTestCase
):
    def tearDown(self):
        logging.getLogger("concurrent.futures").handlers.clear()
        super().tearDown()


# The tests of ProcessPoolExecutor


class _Workers:
    """Stands for a pool's processes, and for the thread that manages them."""

    def __init__(self, pool):
        self._pool = pool

    def is_alive(self):
        return self._pool._n_workers > 0

    def join(self, timeout=60):
        wait_until(lambda: not self.is_alive(), timeout, "the end of the workers")


class LikeProcesses(subinterp.InterpreterPool):
    """What the tests ask of a ProcessPoolExecutor, on an InterpreterPool."""

    def __init__(self, max_workers=None, mp_context=None, **options):
        super().__init__(max_workers, **options)

    def submit(self, fn, /, *args, **kwargs):
        # Ours raises here what cannot be sent; CPython's future does.
        try:
            return super().submit(fn, *args, **kwargs)
        except pickle.PicklingError as error:
            failed = Future()
            failed.set_exception(error)
            return failed

    @property
    def _processes(self):
        return {n: _Workers(self) for n in range(self._n_workers)}

    @property
    def _executor_manager_thread(self):
        return _Workers(self)


class _Context:
    """Stands for a context of multiprocessing, and for its manager."""

    Process = None

    def __init__(self):
        self._gates = []

    def get_start_method(self, allow_none=False):
        return "spawn"

    def Manager(self):
        return self

    def Event(self):
        self._gates.append(Gate())
        return self._gates[-1]

    def shutdown(self):
        for gate in self._gates:
            gate.close()
        self._gates.clear()

    def join(self):
        pass


# What CPython's pool of processes breaks with, and ours gives to the task alone.
NOT_BROKEN = {
    "test_exit_at_task_unpickle": SystemExit,
    "test_error_at_task_unpickle": pickle.UnpicklingError,
    "test_error_during_result_unpickle_in_result_handler": pickle.UnpicklingError,
    "test_exit_during_result_unpickle_in_result_handler": SystemExit,
}


class LikeProcessesMixin(InterpreterPoolMixin):
    executor_type = LikeProcesses

    def setUp(self):
        name = self._testMethodName
        broken = NOT_BROKEN.get(name, subinterp.BrokenInterpreterPool)
        # Interpreters have one process id: their own number stands for it.
        fake_os = types.SimpleNamespace(getpid=interpreter_id, _exit=os._exit)
        for patch in (
            mock.patch.object(cpython_deadlock, "BrokenProcessPool", broken),
            mock.patch.object(cpython_process_pool, "BrokenProcessPool", broken),
            mock.patch.object(cpython_process_pool, "os", fake_os),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        self._context = _Context()
        super().setUp()

    def get_context(self):
        return self._context


def _taken(theirs, without=object):
    """What a test class of CPython has of its own, without the tests that are listed above."""
    return {
        name: getattr(theirs, name)
        for name in dir(theirs)
        if not name.startswith("__")
        and not hasattr(without, name)
        and f"{theirs.__name__}.{name}" not in NOT_APPLICABLE
    }


ProcessPoolTests = type(
    "ProcessPoolTests",
    (LikeProcessesMixin, cpython_util.BaseTestCase),
    _taken(cpython_process_pool.ProcessPoolExecutorTest, cpython_executor.ExecutorTest),
)

DeadlockTests = type(
    "DeadlockTests",
    (LikeProcessesMixin, cpython_util.BaseTestCase),
    _taken(cpython_deadlock.ExecutorDeadlockTest),
)


@pytest.mark.parametrize(
    ("ours", "taken"),
    [
        (ProcessPoolTests, {"test_max_tasks_per_child", "test_max_tasks_early_shutdown"}),
        (DeadlockTests, {"test_error_at_task_pickle", *NOT_BROKEN}),
    ],
)
def test_what_is_taken_of_the_tests_of_processes(ours, taken):
    assert taken <= set(_tests_of(ours))


OURS = [
    (ExecutorTests, cpython_executor.ExecutorTest),
    (WaitTests, cpython_wait.WaitTests),
    (AsCompletedTests, cpython_as_completed.AsCompletedTests),
    (ExecutorShutdownTests, cpython_shutdown.ExecutorShutdownTest),
    (InitializerTests, cpython_init.InitializerMixin),
    (FailingInitializerTests, cpython_init.FailingInitializerMixin),
]


def _tests_of(cls):
    return sorted(name for name in dir(cls) if name.startswith("test"))


@pytest.mark.parametrize(("ours", "theirs"), OURS, ids=lambda cls: cls.__name__)
def test_every_shared_test_is_taken(ours, theirs):
    assert issubclass(ours, unittest.TestCase)
    assert _tests_of(theirs), f"{theirs} has no tests on {sys.version}"
    for name in _tests_of(theirs):
        assert getattr(ours, name) is getattr(theirs, name)


def test_every_other_test_is_listed():
    """What CPython tests with threads only is listed above, so that nothing is lost."""
    shared = {name for _, theirs in OURS for name in _tests_of(theirs)}
    missing = []
    for module in (cpython_wait, cpython_as_completed, cpython_shutdown, cpython_init):
        for cls in vars(module).values():
            if not (isinstance(cls, type) and issubclass(cls, unittest.TestCase)):
                continue
            if cls.__name__.startswith(("Process", "Interpreter")):
                continue  # about processes, or the same shared tests with another executor
            missing += [
                f"{cls.__name__}.{name}"
                for name in _tests_of(cls)
                if name not in shared and f"{cls.__name__}.{name}" not in NOT_APPLICABLE
            ]
    assert not missing


@pytest.mark.parametrize("name", sorted(NOT_APPLICABLE))
def test_not_applicable(name):
    pytest.skip(NOT_APPLICABLE[name])

"""CPython's own tests of its executors, run against InterpreterPool.

They are taken from the running Python's `test` package, so each version brings
its own. What differs is the executor that the tests are given: the mixin below
stands where CPython has ThreadPoolMixin or InterpreterPoolMixin.

A test that cannot apply is listed in NOT_APPLICABLE with its reason, and is
reported as skipped.
"""

from __future__ import annotations

import logging
import sys
import unittest
from unittest import mock

import pytest

import subinterp
from _work import Gate

try:
    from test.test_concurrent_futures import (
        executor as cpython_executor,
    )
    from test.test_concurrent_futures import (
        test_as_completed as cpython_as_completed,
    )
    from test.test_concurrent_futures import (
        test_init as cpython_init,
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

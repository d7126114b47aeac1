"""Fixtures that every test of subinterp runs under.

Each test is compared before and after: live C objects, interpreters, native
threads, file descriptors. Errors in threads and unraisable errors fail the
test they belong to. A test that hangs is ended, with every stack shown.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import os
import resource
import sys
import threading
import time
from pathlib import Path

import pytest

from _support import (
    ALL_EXECUTORS,
    EXECUTORS,
    MANY_INTERPRETERS,
    SANITIZED,
    Snapshot,
    parked_interpreters,
    wait_until,
)
from _work import Flag

# A single test may take this long before all stacks are dumped and the run
# is ended. A stress test may raise it with @pytest.mark.hard_timeout(seconds).
HARD_TIMEOUT = float(os.environ.get("SUBINTERP_TEST_TIMEOUT", "240"))

# How long things may take to settle after a test before they count as leaked.
GRACE = 3.0

# Bytes of memory the tests may take: what grows without bounds shall be a failed
# test, not a dead machine. Pythons that lose interpreters' memory need more.
MEMORY_LIMIT = int(
    os.environ.get("SUBINTERP_TEST_MEMORY", (16 if MANY_INTERPRETERS == 1 else 20) * 2**30)
)

_stderr_fd: int | None = None


def limit_memory():
    if MEMORY_LIMIT and not SANITIZED:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))


def pytest_configure(config):
    global _stderr_fd
    limit_memory()
    config.addinivalue_line(
        "markers", "hard_timeout(seconds): end the run when the test takes longer"
    )
    config.addinivalue_line(
        "markers", "leaks(*what): what the test leaves behind on purpose, and is not compared"
    )
    config.addinivalue_line(
        "markers", "not_on(*kinds, reason): do not run the contract test on these rivals"
    )
    config.addinivalue_line("markers", "stress: long, sized by SUBINTERP_STRESS")
    for name in ("thread_unsafe", "no_cover", "timeout"):
        config.addinivalue_line("markers", f"{name}: of the tests of joblib")
    # Capture has already redirected file descriptor 2.
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        _stderr_fd = os.dup(2)
    else:
        with capture.global_and_fixture_disabled():
            _stderr_fd = os.dup(2)


def pytest_report_header(config):
    import subinterp

    missing = ", ".join(name for name in ALL_EXECUTORS if name not in EXECUTORS)
    return [
        f"subinterp: {Path(subinterp.__file__).parent}",
        f"executors compared: {', '.join(EXECUTORS)}"
        + (f" (this Python has no: {missing})" if missing else ""),
    ]


@pytest.fixture(scope="session", autouse=True)
def _started_helpers():
    """Start what lives as long as the process, before anything is compared."""
    # Rivals in the contract tests: the tracker holds a pipe and a process.
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    # The first callback of ctypes has libffi open itself, for good.
    import ctypes

    ctypes.CFUNCTYPE(None)(lambda: None)
    # The first callback on a future starts the one notifier thread, if any.
    import subinterp

    with subinterp.InterpreterPool(1) as pool:
        done = threading.Event()
        pool.submit(time.sleep, 0.1).add_done_callback(lambda future: done.set())
        assert done.wait(60), "a done callback never ran"


@pytest.fixture(scope="module", autouse=True)
def _what_was_before_stays(_started_helpers):
    """Spare the collections around each test what was there before the module.

    That is pytest itself, all the tests, and packages: most of their time.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _none_parked(_started_helpers):
    """Start each module without interpreters that others have left to be reused."""
    import subinterp

    subinterp.set_parked_limit(0)
    wait_until(lambda: not parked_interpreters(), what="the end of parked interpreters")
    subinterp.set_parked_limit(4)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _no_leaks_no_hidden_errors(request, _started_helpers):
    marker = request.node.get_closest_marker("hard_timeout")
    timeout = marker.args[0] if marker else HARD_TIMEOUT
    marker = request.node.get_closest_marker("leaks")
    ignore = set(marker.args) if marker else set()

    errors = []

    def thread_hook(args):
        if args.exc_type is not SystemExit:
            errors.append(args.exc_value)

    def unraisable_hook(args):
        errors.append(args.exc_value or RuntimeError(str(args.err_msg)))
        print("unraisable in", args.object, args.err_msg, file=sys.stderr)

    gc.collect()
    before = Snapshot()
    thread_hook_before, unraisable_hook_before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
    faulthandler.dump_traceback_later(timeout, exit=True, file=_stderr_fd)
    try:
        yield
        gc.collect()
    finally:
        faulthandler.cancel_dump_traceback_later()
        threading.excepthook, sys.unraisablehook = thread_hook_before, unraisable_hook_before

    if errors:
        raise ExceptionGroup("errors outside the test's own thread", errors)

    if request.node.stash.get(FAILED, False):
        return  # what a failed test leaves is in its traceback still
    # Pytest keeps the values of fixtures until later.
    request.node.funcargs.clear()

    deadline = time.monotonic() + GRACE
    while leaks := Snapshot().leaks_since(before, ignore):
        if time.monotonic() > deadline:
            pytest.fail("left behind: " + "; ".join(leaks))
        time.sleep(0.01)
        gc.collect()


# Pools ------------------------------------------------------------------------


@pytest.fixture
def pool():
    """A pool of two workers, shut down after the test."""
    import subinterp

    with subinterp.InterpreterPool(2) as pool:
        yield pool


@pytest.fixture
def pool1():
    """A pool of a single worker, shut down after the test."""
    import subinterp

    with subinterp.InterpreterPool(1) as pool:
        yield pool


# Executors: the same body runs on the standard ones and on ours --------------------


def pytest_generate_tests(metafunc):
    """Run a test that takes `executor_kind` on every executor, ours last.

    `@pytest.mark.not_on("spawn", ..., reason=...)` names rivals that are known
    to behave differently; ours cannot be named.
    """
    if "executor_kind" not in metafunc.fixturenames:
        return
    kinds = dict(EXECUTORS)
    for marker in metafunc.definition.iter_markers("not_on"):
        assert marker.kwargs["reason"] and "ours" not in marker.args
        for name in marker.args:
            assert name in ALL_EXECUTORS
            kinds.pop(name, None)
    metafunc.parametrize("executor_kind", kinds)


@pytest.fixture
def make_executor(executor_kind):
    """A function that makes executors, shut down after the test."""
    with contextlib.ExitStack() as stack:

        def make(max_workers=2, **kwargs):
            return stack.enter_context(EXECUTORS[executor_kind](max_workers, **kwargs))

        yield make


@pytest.fixture(scope="module")
def _shared_executors():
    """Executors that take long to start, shared by the tests of a module."""
    with contextlib.ExitStack() as stack:
        made = {}

        def get(kind):
            if kind not in made:
                executor = made[kind] = stack.enter_context(EXECUTORS[kind](2))
                # Start everything it has, so that it is there before each test.
                for future in [executor.submit(time.sleep, 0.5) for _ in range(2)]:
                    future.result()
            return made[kind]

        get("spawn")
        get("fork")
        yield get


@pytest.fixture
def executor(_shared_executors, executor_kind, make_executor):
    """An executor of two workers; those with processes are shared between tests."""
    if executor_kind in ("spawn", "fork"):
        return _shared_executors(executor_kind)
    return make_executor()


@pytest.fixture
def flag(tmp_path):
    """A function that makes events which every kind of executor can be sent."""
    count = itertools.count()

    def make():
        return Flag(tmp_path / f"flag{next(count)}")

    return make


@pytest.fixture
def stop():
    """Shared bytes: the first one, if set, ends tasks that ignore all else; they set the others."""
    import subinterp

    view = memoryview(subinterp.SharedBuffer(4))
    try:
        yield view
    finally:
        view[0] = 1

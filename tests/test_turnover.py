"""Workers that come and go: resizing, recycling, termination, interpreters that fail."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from concurrent.futures import CancelledError

import pytest

import _stopwork as work
import subinterp
from _support import (
    MANY_INTERPRETERS,
    frees_blocked_calls,
    run_script,
    squares_while_resizing,
    wait_until,
)
from _work import Gate, interpreter_id, pass_gate, square
from subinterp import (
    BrokenInterpreterPool,
    InterpreterPool,
    PoolDeadlockError,
    TaskAbandoned,
    TaskInterrupted,
    _core,
)

LONG = 60


@pytest.fixture
def failing():
    """A function that lets so many attempts to make an interpreter fail."""
    yield _core._fail_interpreters
    _core._fail_interpreters(0)


@pytest.fixture
def held():
    """A function that submits a task which waits at a gate; returns both."""
    with contextlib.ExitStack() as stack:

        def submit(pool):
            gate = stack.enter_context(Gate())
            return pool.submit(pass_gate, gate), gate

        yield submit


# resize -----------------------------------------------------------------------------------------


def test_more_workers():
    with InterpreterPool(1) as pool:
        assert len(set(pool.broadcast(interpreter_id))) == 1
        pool.resize(3)
        assert len(set(pool.broadcast(interpreter_id))) == 3
        assert "of 3 workers" in repr(pool)


def test_more_workers_for_what_is_queued(held):
    with InterpreterPool(1) as pool:
        futures = [held(pool) for _ in range(3)]
        wait_until(lambda: futures[0][0].running())
        assert not futures[1][0].running()
        pool.resize(3)
        wait_until(lambda: all(f.running() for f, _ in futures), what="all three at a time")
        for future, gate in futures:
            gate.set()
            assert future.result(LONG) is None


def test_fewer_workers():
    with InterpreterPool(4) as pool:
        assert len(set(pool.broadcast(interpreter_id))) == 4
        pool.resize(1)
        wait_until(lambda: pool._n_workers == 1, what="the end of idle workers")
        assert len(pool.broadcast(interpreter_id)) == 1
        assert list(pool.map(square, range(100))) == [n * n for n in range(100)]
        assert pool._n_workers == 1


def test_fewer_workers_finish_their_tasks(held):
    with InterpreterPool(3) as pool:
        busy = [held(pool) for _ in range(3)]
        wait_until(lambda: all(f.running() for f, _ in busy))
        queued = [pool.submit(square, n) for n in range(50)]
        pool.resize(1)
        assert not any(f.done() for f, _ in busy)
        for future, gate in busy:
            gate.set()
            assert future.result(LONG) is None
        assert [f.result(LONG) for f in queued] == [n * n for n in range(50)]
        wait_until(lambda: pool._n_workers == 1, what="the end of the others")


def test_resizing_under_load():
    n_items = int(4000 * MANY_INTERPRETERS)
    with InterpreterPool(2) as pool:
        results = squares_while_resizing(pool, n_items, 0.001)
        assert results == [n * n for n in range(n_items)]
        pool.resize(2)
        wait_until(lambda: pool._n_workers <= 2)
        assert pool.submit(square, 3).result(LONG) == 9


def test_resizing_with_recycling():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = InterpreterPool(3, max_tasks_per_child=2)
    with pool:
        futures = [pool.submit(square, n) for n in range(60)]
        for n in (1, 4, 2, 3):
            pool.resize(n)
            time.sleep(0.02)
        assert [f.result(LONG) for f in futures] == [n * n for n in range(60)]


def test_a_worker_that_waits_for_the_pool_is_served():
    """The last worker that can run what others wait for does not leave."""
    with InterpreterPool(2) as pool:
        pool.broadcast(interpreter_id)
        with Gate() as gate:
            outer = pool.submit(work.wait_for_two, gate, pool)
            assert gate.wait(LONG)
            pool.resize(1)
            assert outer.result(LONG) == (49, 36)
        wait_until(lambda: pool._n_workers == 1, what="the end of the other")
        with pytest.raises(PoolDeadlockError):
            pool.submit(work.submit_square, pool, 7).result(LONG)


@pytest.mark.parametrize("size", [0, -1, 5000])
def test_sizes_are_checked(pool, size):
    with pytest.raises(ValueError, match="max_workers"):
        pool.resize(size)


def test_sizes_are_integers(pool):
    with pytest.raises(TypeError, match="max_workers must be an integer"):
        pool.resize(1.5)


def test_no_resize_after_shutdown():
    pool = InterpreterPool(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot resize a pool after shutdown"):
        pool.resize(2)


# terminate ---------------------------------------------------------------------------------------


def test_terminate_workers():
    with InterpreterPool(2) as pool:
        busy = [pool.submit(work.loop) for _ in range(2)]
        wait_until(lambda: all(f.running() for f in busy))
        queued = [pool.submit(square, n) for n in range(10)]
        pool.terminate_workers()
        pool.terminate_workers()
        for future in busy:
            assert type(future.exception(LONG)) is TaskInterrupted
        assert all(f.cancelled() for f in queued)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(square, 1)


def test_terminate_while_tasks_begin():
    """Those that a worker has taken and not begun yet are stopped as well."""
    for turn in range(20):
        with InterpreterPool(2) as pool:
            futures = [pool.submit(work.loop) for _ in range(4)]
            time.sleep(0.0 if turn % 2 else 0.02)
            pool.terminate_workers()
            for future in futures:
                with pytest.raises(CancelledError):
                    future.result(LONG)


@frees_blocked_calls
def test_terminate_ends_a_map():
    with InterpreterPool(2) as pool:
        results = pool.map(work.sleep_seconds, [0] + [1000] * 20, chunksize=1)
        assert next(results) is None
        pool.terminate_workers()
        with pytest.raises(CancelledError):
            next(results)


def test_terminate_abandons_what_does_not_stop(stop):
    with InterpreterPool(1, interrupt_grace=0.1) as pool:
        future = pool.submit(work.ignore, stop)
        wait_until(lambda: stop[1])
        pool.terminate_workers()
        assert type(future.exception(LONG)) is TaskAbandoned
    stop[0] = 1


def test_kill_workers(stop):
    with InterpreterPool(2, interrupt_grace=1000) as pool:
        futures = [pool.submit(work.ignore, stop, at=n) for n in (1, 2)]
        wait_until(lambda: stop[1] and stop[2])
        pool.kill_workers()
        for future in futures:
            assert type(future.exception(LONG)) is TaskAbandoned
    stop[0] = 1


def test_terminate_without_workers():
    pool = InterpreterPool(2)
    pool.terminate_workers()
    pool.shutdown()
    pool.terminate_workers()


def test_exit_after_terminate():
    run_script(
        """
        import subinterp

        pool = subinterp.InterpreterPool(2)

        def endless():
            while True:
                pass

        futures = [pool.submit(endless) for _ in range(5)]
        pool.terminate_workers()
        """
    ).clean()


# interpreters that fail --------------------------------------------------------------------------


def test_a_failure_that_passes_is_tried_again(failing):
    failing(2)
    with InterpreterPool(1) as pool:
        assert pool.submit(square, 3).result(LONG) == 9


def test_a_worker_that_fails_is_replaced(failing, held):
    with InterpreterPool(2) as pool:
        first, gate = held(pool)
        wait_until(first.running)
        failing(3)
        second = pool.submit(square, 3)
        wait_until(lambda: pool._n_workers == 1, what="the failure of the second worker")
        third, other_gate = held(pool)
        # It asked for another worker, which runs what is queued beside the first.
        assert second.result(LONG) == 9
        for opened in (gate, other_gate):
            opened.set()
        assert first.result(LONG) is third.result(LONG) is None


def test_a_recycled_worker_that_fails_is_tried_again(failing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = InterpreterPool(1, max_tasks_per_child=1)
    with pool:
        assert pool.submit(square, 2).result(LONG) == 4
        failing(2)
        assert pool.submit(square, 3).result(LONG) == 9


def test_a_pool_that_cannot_make_workers_breaks(failing):
    failing(1000)
    with InterpreterPool(2) as pool:
        with pytest.raises(BrokenInterpreterPool, match="an interpreter could not be created"):
            pool.submit(square, 3).result(LONG)
        with pytest.raises(BrokenInterpreterPool, match="an interpreter could not be created"):
            pool.submit(square, 3)


# recycling ---------------------------------------------------------------------------------------


def test_recycling_says_once_where_it_leaks():
    result = run_script(
        """
        import warnings, subinterp
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                subinterp.InterpreterPool(1).shutdown()
                subinterp.InterpreterPool(1, max_tasks_per_child=3).shutdown()
        for w in caught:
            print(w.category.__name__, w.filename == __file__, str(w.message)[:19])
        """
    ).clean()
    leaks = sys.version_info < (3, 14, 1)
    assert result.stdout == ("RuntimeWarning True max_tasks_per_child\n" if leaks else "")


def test_recycling_while_tasks_are_interrupted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pool = InterpreterPool(2, max_tasks_per_child=2)
    with pool:
        for n in range(10):
            future = pool.submit(work.loop)
            other = pool.submit(square, n)
            wait_until(future.running)
            assert future.interrupt()
            assert type(future.exception(LONG)) is TaskInterrupted
            assert other.result(LONG) == n * n
    assert subinterp._core.live_counts()["pools"] == 0

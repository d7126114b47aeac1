"""Stopping tasks that run: interruption, time limits, workers that are left behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import threading
import time
from concurrent.futures import CancelledError

import pytest

import _stopwork as work
import subinterp
from _support import MANY_INTERPRETERS, frees_blocked_calls, run_script, wait_until
from subinterp import (
    BrokenInterpreterPool,
    ChannelClosed,
    InterpreterPool,
    Interrupt,
    TaskAbandoned,
    TaskInterrupted,
    TaskTimeout,
    create_channel,
)

LONG = 60
SCALE = float(os.environ.get("SUBINTERP_STRESS", "1.0"))
SEED = int(os.environ.get("SUBINTERP_STRESS_SEED", "0")) or random.SystemRandom().getrandbits(32)


def running(pool, fn, *args):
    """Submit a task, and wait until it runs; blocked tasks get time to block."""
    if fn is work.ignore:
        args[0][1] = 0
    elif pool.stats().queue_length == 0 and all(w.state == "idle" for w in pool.stats().workers):
        pool.submit(work.import_what_tasks_need).result(LONG)  # so that it is soon in its code
    future = pool.submit(fn, *args)
    wait_until(future.running, what="the task's start")
    if fn is work.ignore:
        wait_until(lambda: args[0][1], what="its ignoring")
    else:
        time.sleep(0.1)
    return future


def interrupted(future):
    """Interrupt a task; return what the future ended with."""
    assert future.interrupt()
    return future.exception(LONG)


# What can be interrupted -------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [work.loop, work.loop_in_calls], ids=lambda fn: fn.__name__)
def test_python_code(pool, fn):
    error = interrupted(running(pool, fn))
    assert type(error) is TaskInterrupted
    assert isinstance(error, CancelledError)
    assert type(error.__context__) is Interrupt
    assert f"in {fn.__name__}" in str(error.__cause__)
    assert pool.submit(pow, 2, 3).result(LONG) == 8


@frees_blocked_calls
@pytest.mark.parametrize("fn", work.BLOCKED, ids=lambda fn: fn.__name__)
def test_blocked_calls(fn):
    with InterpreterPool(1, interrupt_grace=30) as pool:
        future = running(pool, fn)
        time.sleep(0.2)
        assert type(interrupted(future)) is TaskInterrupted
        assert pool.submit(pow, 2, 3).result(LONG) == 8


@frees_blocked_calls
def test_blocked_beside_a_busy_thread(pool1):
    """That thread may take the request, and set the exception for the one that is blocked.

    (CPython 3.13 may raise such an exception late: what is left of it is taken back.)
    """
    for n in range(10):
        future = running(pool1, work.blocked_beside_a_thread)
        assert type(interrupted(future)) is TaskInterrupted
        assert pool1.submit(work.own, n, 0.005, 0).result(LONG) == n


@frees_blocked_calls
def test_waits_of_the_library(pool):
    """They raise it themselves; what a task waits for in another pool is stopped with it."""
    recv, send = create_channel(maxsize=1)
    inner = InterpreterPool(1)
    with inner, send:
        for task in (
            (work.receive, recv),
            (work.send_when_full, send),
            (work.wait_for, inner, work.loop),
            (work.read_map, inner, work.sleep_seconds),
        ):
            future = running(pool, *task)
            time.sleep(0.1)
            error = interrupted(future)
            assert type(error) is TaskInterrupted, task
            assert type(error.__context__) is Interrupt, task
            with contextlib.suppress(subinterp.ChannelEmpty):
                recv.recv_nowait()


@pytest.mark.parametrize("where", ["finalizer", "callback"])
def test_what_a_finalizer_swallows_is_raised_again(where):
    recv, send = create_channel()
    with InterpreterPool(1, interrupt_grace=60) as pool:
        future = pool.submit(work.swallow_in_callbacks, send)
        while recv.recv(LONG) != where:
            pass
        assert type(interrupted(future)) is TaskInterrupted
        assert "in swallow_in_callbacks" in str(future.exception().__cause__)


def test_a_lambda_by_value(pool1):
    def endless(n):
        while True:
            n += 1

    assert type(interrupted(running(pool1, endless, 1))) is TaskInterrupted


# What the task makes of it -----------------------------------------------------------------------


def test_a_task_that_catches_it_delivers_its_result(pool):
    future = running(pool, work.catch, "finished")
    assert future.interrupt()
    assert future.result(LONG) == "finished"


def test_it_can_be_raised_again(pool):
    recv, send = create_channel()
    future = running(pool, work.catch_twice, send)
    assert recv.recv(LONG) == 0
    assert future.interrupt()
    assert recv.recv(LONG) == 1
    assert future.interrupt()
    assert future.result(LONG) == 2


def test_a_task_that_converts_it_ends_interrupted(pool):
    error = interrupted(running(pool, work.convert))
    assert type(error) is TaskInterrupted
    assert type(error.__context__) is ValueError
    assert error.__context__.args == ("converted",)


@pytest.mark.parametrize(
    "block", [False, pytest.param(True, marks=frees_blocked_calls)], ids=["loop", "blocked"]
)
def test_cleaning_up_is_not_disturbed(pool, block):
    recv, send = create_channel()
    with send:
        future = running(pool, work.clean_up, send, block)
    assert type(interrupted(future)) is TaskInterrupted
    assert list(recv) == [0, 1, 2, 3, 4, "TimeoutError" if block else "Interrupt"]


@frees_blocked_calls
def test_cleaning_up_is_not_slowed_down():
    recv, send = create_channel()
    with InterpreterPool(1, interrupt_grace=30) as pool, send:
        future = running(pool, work.clean_up_in_many_steps, send, 10_000_000)
        assert type(interrupted(future)) is TaskInterrupted
        assert recv.recv_nowait() == "clean"


def test_exception_classes():
    assert issubclass(Interrupt, BaseException)
    assert not issubclass(Interrupt, Exception)
    assert issubclass(TaskTimeout, TimeoutError)
    assert issubclass(TaskAbandoned, TaskInterrupted)
    assert Interrupt is subinterp.errors.Interrupt
    assert f"{Interrupt.__module__}.{Interrupt.__qualname__}" == "subinterp.Interrupt"


# When it comes -----------------------------------------------------------------------------------


def test_a_pending_task_is_cancelled(pool1, stop):
    first = running(pool1, work.ignore, stop)
    second = pool1.submit(work.loop)
    assert second.interrupt()
    assert second.cancelled()
    stop[0] = 1
    assert first.result(LONG) is None


def test_a_complete_task_is_left_alone(pool):
    future = pool.submit(pow, 2, 3)
    assert future.result(LONG) == 8
    assert not future.interrupt()
    assert future.result() == 8
    failed = interrupted_future = running(pool, work.loop)
    interrupted(interrupted_future)
    assert not failed.interrupt()
    assert type(failed.exception()) is TaskInterrupted
    assert not failed.cancelled()


def test_callbacks_see_it(pool):
    seen = []
    done = threading.Event()
    future = running(pool, work.loop)
    future.add_done_callback(lambda f: (seen.append(type(f.exception())), done.set()))
    assert future.interrupt()
    assert done.wait(LONG)
    assert seen == [TaskInterrupted]


def test_neighbours_are_not_hit(pool, stop):
    neighbour = running(pool, work.ignore, stop)
    for _ in range(20):
        interrupted(running(pool, work.loop))
    assert neighbour.running()
    stop[0] = 1
    assert neighbour.result(LONG) is None


def test_recycled_workers():
    with InterpreterPool(1, max_tasks_per_child=1) as pool:
        for n in range(3):
            assert type(interrupted(running(pool, work.loop))) is TaskInterrupted
            assert pool.submit(work.own, n, 0.01, 0).result(LONG) == n


def test_parked_workers():
    from subinterp import _core

    for _ in range(3):
        with InterpreterPool(1) as pool:
            pool.submit(_core._pretend_copies).result(LONG)
            assert type(interrupted(running(pool, work.loop))) is TaskInterrupted
            assert pool.submit(work.own, 7, 0.01, 0).result(LONG) == 7
    assert _core.parked()
    subinterp.set_parked_limit(0)
    wait_until(lambda: not _core.parked(), what="the end of parked interpreters")
    subinterp.set_parked_limit(4)


# Time limits -------------------------------------------------------------------------------------


def test_schedule_passes_arguments(pool):
    assert pool.schedule(pow, (2, 5)).result(LONG) == 32
    assert pool.schedule(pow, [2, 5], {"mod": 7}, timeout=60).result(LONG) == 4


@pytest.mark.parametrize(
    "fn", [work.loop, pytest.param(work.sleep, marks=frees_blocked_calls)], ids=["loop", "sleep"]
)
def test_a_time_limit(pool, fn):
    future = pool.schedule(fn, timeout=0.1)
    with pytest.raises(TimeoutError) as caught:
        future.result(LONG)
    assert type(caught.value) is TaskTimeout
    assert "time limit" in str(caught.value)
    assert f"in {fn.__name__}" in str(caught.value.__cause__)
    assert future.done()


def test_time_in_the_queue_does_not_count(pool1):
    first = pool1.submit(time.sleep, 0.4)
    second = pool1.schedule(work.own, (5, 0.01, 0), timeout=0.35)
    assert second.result(LONG) == 5
    assert first.result(LONG) is None


def test_a_limit_ends_with_its_task(pool1):
    for n in range(50):
        assert pool1.schedule(work.own, (n, 0.0, 0), timeout=0.05).result(LONG) == n
    assert pool1.submit(work.own, 1, 0.2, 0).result(LONG) == 1
    assert pool1.schedule(work.own, (2, 0.2, 1), timeout=1e12).result(LONG) == 2


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_limit_must_be_positive(pool, timeout):
    with pytest.raises(ValueError, match="greater than 0"):
        pool.schedule(work.loop, timeout=timeout)


def test_a_limit_must_be_a_number(pool):
    with pytest.raises(TypeError, match="number of seconds"):
        pool.schedule(work.loop, timeout="1")
    with pytest.raises(TypeError, match="args must be an iterable"):
        pool.schedule(abs, 5)
    with pytest.raises(TypeError, match="kwargs must be a mapping or None, not int"):
        pool.schedule(abs, (), 5)


def test_the_options_are_checked():
    with pytest.raises(TypeError, match="interrupt_grace"):
        InterpreterPool(1, interrupt_grace="1")
    with pytest.raises(ValueError, match="interrupt_grace"):
        InterpreterPool(1, interrupt_grace=-1)
    with pytest.raises(TypeError, match="max_abandoned"):
        InterpreterPool(1, max_abandoned=1.5)
    with pytest.raises(ValueError, match="max_abandoned"):
        InterpreterPool(1, max_abandoned=-1)


# Tasks that do not stop --------------------------------------------------------------------------


def test_a_task_that_swallows_it_is_abandoned(stop):
    with InterpreterPool(1, interrupt_grace=0.2) as pool:
        future = running(pool, work.ignore, stop)
        error = interrupted(future)
        assert type(error) is TaskAbandoned
        assert "did not stop" in str(error)
        # Another worker takes its place.
        assert pool.submit(pow, 2, 3).result(LONG) == 8
        stop[0] = 1


def test_a_c_call_that_keeps_the_lock_is_abandoned():
    with InterpreterPool(1, interrupt_grace=0.1) as pool:
        error = interrupted(running(pool, work.hold_the_lock, 200_000_000))
        assert type(error) is TaskAbandoned
        assert pool.submit(pow, 2, 3).result(LONG) == 8


def test_a_limit_that_is_ignored(stop):
    with InterpreterPool(1, interrupt_grace=0.1) as pool:
        # Importing its module is not to count.
        pool.submit(work.own, 0, 0.0, 0).result(LONG)
        error = pool.schedule(work.ignore, (stop,), timeout=0.5).exception(LONG)
        assert isinstance(error, TimeoutError)
        assert isinstance(error, TaskAbandoned)
        stop[0] = 1


def test_what_was_queued_for_an_abandoned_worker_is_run(stop):
    with InterpreterPool(1, interrupt_grace=0.1) as pool:
        future = running(pool, work.ignore, stop)
        queued = [pool.submit(work.own, n, 0.0, 0) for n in range(20)]
        assert type(interrupted(future)) is TaskAbandoned
        assert [f.result(LONG) for f in queued] == list(range(20))
        stop[0] = 1


def test_an_abandoned_worker_holds_no_channel(stop):
    recv, send = create_channel()
    with InterpreterPool(1, interrupt_grace=0.1) as pool:
        future = pool.submit(work.ignore, stop, send)
        send.close()
        assert recv.recv(LONG) == "begun"
        assert type(interrupted(future)) is TaskAbandoned
        with pytest.raises(ChannelClosed):
            recv.recv(LONG)
        stop[0] = 1


def test_a_worker_that_returns_counts_no_more(stop):
    with InterpreterPool(1, interrupt_grace=0.05, max_abandoned=1) as pool:
        for _ in range(3):
            stop[0] = 0
            future = running(pool, work.ignore, stop)
            alive = subinterp._core.live_counts()["workers"]
            assert type(interrupted(future)) is TaskAbandoned
            stop[0] = 1
            wait_until(lambda alive=alive: subinterp._core.live_counts()["workers"] < alive)
        assert pool.submit(pow, 2, 3).result(LONG) == 8


def test_too_many_break_the_pool(stop):
    with InterpreterPool(1, interrupt_grace=0.05, max_abandoned=1) as pool:
        assert type(interrupted(running(pool, work.ignore, stop))) is TaskAbandoned
        last = running(pool, work.ignore, stop)
        queued = pool.submit(pow, 2, 3)
        assert type(interrupted(last)) is TaskAbandoned
        with pytest.raises(BrokenInterpreterPool, match="2 workers were abandoned"):
            queued.result(LONG)
        with pytest.raises(BrokenInterpreterPool, match="max_abandoned is 1"):
            wait_until(lambda: pool._broken)
            pool.submit(pow, 2, 3)
        stop[0] = 1


# Exit, fork, signals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    ["sum(itertools.repeat(1))", "stubborn()"],
    ids=["c", "python"],
)
def test_exit_does_not_wait_for_abandoned_tasks(task):
    run_script(
        f"""
        import itertools, sys, subinterp

        def stubborn():
            while True:
                try:
                    while True:
                        str(object())
                except BaseException:
                    pass

        with subinterp.InterpreterPool(2, interrupt_grace=0.1) as pool:
            future = pool.schedule(lambda: {task}, timeout=0.2)
            assert isinstance(future.exception(30), subinterp.TaskAbandoned), future
            assert pool.submit(pow, 2, 3).result(30) == 8
        sys.exit(7)
        """,
        timeout=60,
    ).clean(7)


def test_exit_while_a_task_is_interrupted():
    run_script(
        """
        import subinterp, time

        pool = subinterp.InterpreterPool(2, interrupt_grace=0.1)

        def stubborn():
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass

        futures = [pool.submit(stubborn) for _ in range(2)]
        while not all(f.running() for f in futures):
            time.sleep(0.01)
        for future in futures:
            future.interrupt()
        # The pool is left to the end of the program, which joins what can be joined.
        """,
        timeout=60,
    ).clean()


def test_fork():
    run_script(
        """
        import os, sys, time, warnings
        import subinterp
        warnings.simplefilter("ignore", DeprecationWarning)

        def endless():
            while True:
                pass

        def stop_one(pool):
            future = pool.submit(endless)
            while not future.running():
                time.sleep(0.01)
            assert future.interrupt()
            assert type(future.exception(30)) is subinterp.TaskInterrupted

        pool = subinterp.InterpreterPool(1)
        stop_one(pool)
        left = pool.schedule(endless, timeout=1.0)
        while not left.running():
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            assert not left.interrupt()
            with subinterp.InterpreterPool(1) as fresh:
                stop_one(fresh)
                assert isinstance(fresh.schedule(endless, timeout=0.1).exception(30), TimeoutError)
            sys.exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert isinstance(left.exception(30), TimeoutError)
        pool.shutdown()
        """
    ).clean()


@frees_blocked_calls
def test_signals_of_the_program_are_left_alone():
    run_script(
        """
        import os, signal, subinterp, time

        got = []
        for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
            signal.signal(number, lambda number, frame: got.append(number))

        def endless():
            while True:
                pass

        with subinterp.InterpreterPool(1, interrupt_grace=0.3) as pool:
            for fn, outcome in ((endless, subinterp.TaskInterrupted),
                                (lambda: time.sleep(2), subinterp.TaskAbandoned)):
                future = pool.submit(fn)
                while not future.running():
                    time.sleep(0.01)
                time.sleep(0.1)
                assert future.interrupt()
                assert type(future.exception(30)) is outcome, future.exception()
        assert got == []
        os.kill(os.getpid(), signal.SIGRTMAX - 3)
        assert got == [signal.SIGRTMAX - 3]
        """
    ).clean()


@frees_blocked_calls
def test_a_handler_set_later_is_left_alone():
    run_script(
        """
        import signal, subinterp, time

        def blocked():
            time.sleep(1000)

        def stop_one(pool):
            future = pool.submit(blocked)
            while not future.running():
                time.sleep(0.01)
            time.sleep(0.1)
            assert future.interrupt()
            assert type(future.exception(30)) is subinterp.TaskInterrupted

        got = []
        with subinterp.InterpreterPool(1) as pool:
            stop_one(pool)
            taken = [n for n in range(signal.SIGRTMIN, signal.SIGRTMAX + 1)
                     if signal.getsignal(n) is None]
            assert len(taken) <= 1, taken
            for number in range(signal.SIGRTMAX - 5, signal.SIGRTMAX + 1):
                signal.signal(number, lambda number, frame: got.append(number))
            stop_one(pool)
        assert got == []
        """
    ).clean()


# Stress ------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.hard_timeout(1800)
@pytest.mark.parametrize("recycle", [None, 50], ids=["kept", "recycled"])
def test_no_task_is_hit_by_the_interruption_of_another(recycle):
    """Interrupt tasks at random moments of their lives, beside others that nobody interrupts."""
    print("SUBINTERP_STRESS_SEED", SEED)  # shown when the test fails
    rng = random.Random(SEED)
    wanted = max(100, int((100_000 if recycle is None else 5_000 * MANY_INTERPRETERS) * SCALE))
    stopped = asked = 0
    with InterpreterPool(3, interrupt_grace=30, max_tasks_per_child=recycle) as pool:
        done = 0
        while asked < wanted:
            batch = []
            # Few at a time: most are to be interrupted while they run, not in the queue.
            for n in range(12):
                seconds = rng.choice([0.0, 0.0001, 0.0005, 0.002, 0.005])
                limit = rng.choice([None, None, None, seconds or 0.0001])
                args = (done + n, seconds, rng.randrange(4))
                future = pool.schedule(work.own, args, timeout=limit)
                batch.append((done + n, future, limit))
            asks = {}
            for n, future, _ in batch:
                if rng.random() < 0.6:
                    if rng.random() < 0.5:
                        # Most moments are near the task's start or end.
                        with contextlib.suppress(TimeoutError, CancelledError):
                            future.exception(rng.random() * 0.003)
                    asks[n] = future.interrupt()
            for n, future, limit in batch:
                try:
                    assert future.result(LONG) == n
                except CancelledError:  # TaskInterrupted is one
                    assert asks.get(n), (n, future)
                    stopped += not future.cancelled()
                except TaskTimeout:
                    assert limit is not None, (n, future)
            asked += sum(asks.values())
            done += len(batch)
        # Nothing is left that hits what comes afterwards.
        for n in range(100):
            assert pool.submit(work.own, n, 0.001, n % 4).result(LONG) == n
    print(done, "tasks,", asked, "asked to stop,", stopped, "while they ran")
    assert stopped > 0


@pytest.mark.stress
def test_interruptions_of_imports():
    """Fresh interpreters are interrupted while they load the library's own modules."""
    rng = random.Random(1)
    for _ in range(max(5, int(200 * SCALE))):
        with InterpreterPool(1, interrupt_grace=30) as pool:
            future = pool.submit(work.load_core_then_loop)
            wait_until(future.running)
            time.sleep(rng.random() * 0.03)
            assert future.interrupt()
            # One in some thousands is cleared by C code that calls Python code while it imports.
            # Whoever sees that the task goes on asks once more.
            if not concurrent.futures.wait([future], 10).done:
                assert future.interrupt()
            assert type(future.exception(LONG)) is TaskInterrupted
            # It can be loaded afterwards.
            assert pool.submit(work.use_core).result(LONG) is True

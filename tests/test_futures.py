"""Futures: the contract of concurrent.futures, on the standard executors and on ours."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import pickle
import threading
import time
import weakref
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    InvalidStateError,
    as_completed,
    wait,
)

import pytest

import subinterp
from _support import run_script, wait_until
from _work import (
    EmptyError,
    FalsyError,
    Gate,
    PlainError,
    add,
    fail,
    identity,
    interpreter_id,
    pass_gate,
    set_flag,
    square,
)

LONG = 60  # seconds: no test should ever wait this long


class Blocked:
    """Tasks that fill every worker of an executor until `release`."""

    def __init__(self, executor, flag, workers=2):
        self.gate = flag()
        started = [flag() for _ in range(workers)]
        self.futures = [executor.submit(pass_gate, self.gate, n, s) for n, s in enumerate(started)]
        for s in started:
            assert s.wait(LONG)

    def release(self):
        self.gate.set()
        for future in self.futures:
            future.result(LONG)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.release()


def pending_future(executor):
    """A future that no worker has reached: processes take some tasks ahead."""
    return [executor.submit(add, n, n) for n in range(10)][-1]


# Results -----------------------------------------------------------------------


def test_future_type(executor):
    future = executor.submit(add, 1, 2)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LONG) == 3


def test_result(executor):
    future = executor.submit(add, 1, 2)
    assert future.result() == 3
    assert future.result(0) == 3
    assert future.result(timeout=None) == 3
    assert future.exception() is None
    assert future.done() and not future.running() and not future.cancelled()


def test_result_is_one_object(executor):
    future = executor.submit(identity, [1, 2])
    assert future.result(LONG) is future.result(LONG)


def test_exception_is_one_object(executor):
    future = executor.submit(fail, PlainError, "text")
    error = future.exception(LONG)
    assert type(error) is PlainError and error.args == ("text",)
    assert future.exception() is error
    with pytest.raises(PlainError) as caught:
        future.result()
    assert caught.value is error
    assert future.done() and not future.cancelled()


@pytest.mark.parametrize("error", [FalsyError, EmptyError])
@pytest.mark.not_on(
    "threads", "spawn", "fork", "interpreters", reason="3.13.0 takes falsy errors for none"
)
def test_falsy_exception(executor, error):
    with pytest.raises(error):
        executor.submit(fail, error).result(LONG)


def test_none_result_and_falsy_results(executor):
    for value in (None, 0, "", b"", (), [], {}, False, 0.0):
        result = executor.submit(identity, value).result(LONG)
        assert result == value and type(result) is type(value)


def test_timeout(executor, flag):
    gate = flag()
    future = executor.submit(pass_gate, gate, "done")
    for timeout in (0, -1, 0.001, 0.05):
        with pytest.raises(TimeoutError):
            future.result(timeout)
        with pytest.raises(concurrent.futures.TimeoutError):
            future.exception(timeout)
    assert not future.done()
    gate.set()
    assert future.result(LONG) == "done"
    assert future.result(-1) == "done"


def test_timeout_is_not_early(executor, flag):
    gate = flag()
    future = executor.submit(pass_gate, gate)
    for timeout in (0.02, 0.1):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            future.result(timeout)
        assert time.monotonic() - started >= timeout * 0.99
    gate.set()
    future.result(LONG)


def test_states(executor, flag):
    gate, started = flag(), flag()
    future = executor.submit(pass_gate, gate, 1, started)
    assert started.wait(LONG)
    wait_until(future.running, what="running()")
    assert not future.done() and not future.cancelled()
    assert "state=running" in repr(future)
    gate.set()
    assert future.result(LONG) == 1
    assert not future.running() and future.done()
    assert "state=finished returned int" in repr(future)


def test_repr(executor, flag):
    failed = executor.submit(fail, ValueError)
    failed.exception(LONG)
    assert "state=finished raised ValueError" in repr(failed)
    with Blocked(executor, flag):
        waiting = pending_future(executor)
        assert "state=pending" in repr(waiting)
        waiting.cancel()
        assert "state=cancelled" in repr(waiting)


def test_many_threads_read_one_result(executor, flag):
    gate = flag()
    future = executor.submit(pass_gate, gate, [1, 2, 3])
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(future.result(LONG))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(LONG)
    assert len(results) == 8
    assert all(result is results[0] for result in results)


def test_many_futures_in_flight(executor):
    count = 2000
    futures = [executor.submit(square, n) for n in range(count)]
    assert [future.result(LONG) for future in futures] == [n * n for n in range(count)]


def test_results_read_backwards(executor):
    futures = [executor.submit(square, n) for n in range(200)]
    assert [future.result(LONG) for future in reversed(futures)] == [
        n * n for n in reversed(range(200))
    ]


def test_result_dies_with_its_future(executor):
    future = executor.submit(identity, PlainError("an object with weak references"))
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(future.result(LONG))
        del future
        wait_until(lambda: gone() is None, what="the end of the result")
    finally:
        gc.enable()


def test_result_after_shutdown(make_executor):
    executor = make_executor()
    future = executor.submit(add, 1, 2)
    failed = executor.submit(fail, PlainError, 1)
    executor.shutdown()
    assert future.done() and failed.done()
    assert future.result() == 3
    assert type(failed.exception()) is PlainError


def test_set_result_on_finished_future(executor):
    future = executor.submit(add, 1, 2)
    assert future.result(LONG) == 3
    with pytest.raises(InvalidStateError):
        future.set_result(4)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    assert future.result() == 3


# Cancelling ------------------------------------------------------------------------


def test_cancel_pending(executor, flag):
    with Blocked(executor, flag):
        future = pending_future(executor)
        assert future.cancel()
        assert future.cancelled() and future.done() and not future.running()
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception(0)


def test_cancel_running(executor, flag):
    with Blocked(executor, flag) as blocked:
        for future in blocked.futures:
            wait_until(future.running)
            assert not future.cancel()
            assert not future.cancelled()
    assert [future.result() for future in blocked.futures] == [0, 1]


def test_cancel_finished(executor):
    future = executor.submit(add, 1, 2)
    assert future.result(LONG) == 3
    assert not future.cancel()
    assert future.result() == 3


def test_cancelled_task_does_not_run(make_executor, flag):
    executor = make_executor(1)
    ran = flag()
    with Blocked(executor, flag, 1):
        futures = [executor.submit(add, n, n) for n in range(10)]
        futures.append(executor.submit(set_flag, ran))
        assert futures[-1].cancel()
    executor.shutdown()
    assert not ran.is_set()


def test_waiter_sees_cancel(executor, flag):
    with Blocked(executor, flag):
        future = pending_future(executor)
        outcome = []

        def read():
            try:
                outcome.append(future.result(LONG))
            except BaseException as error:
                outcome.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.05)
        assert future.cancel()
        reader.join(LONG)
        assert len(outcome) == 1 and isinstance(outcome[0], CancelledError)


def test_cancel_some_of_many(executor, flag):
    with Blocked(executor, flag):
        futures = [executor.submit(square, n) for n in range(100)]
        cancelled = {n for n in range(20, 100, 3) if futures[n].cancel()}
        assert len(cancelled) == 27
    for n, future in enumerate(futures):
        if n in cancelled:
            assert future.cancelled()
        else:
            assert future.result(LONG) == n * n


# Callbacks --------------------------------------------------------------------------


def test_callback(executor):
    seen = []
    done = threading.Event()
    future = executor.submit(add, 1, 2)
    future.add_done_callback(lambda f: (seen.append(f), done.set()))
    assert done.wait(LONG)
    assert seen == [future]
    assert future.result(0) == 3


def test_callback_sees_the_result(executor, flag):
    gate = flag()
    seen = []
    done = threading.Event()

    def callback(future):
        seen.append((future.done(), future.running(), future.result(0)))
        done.set()

    future = executor.submit(pass_gate, gate, "value")
    future.add_done_callback(callback)
    gate.set()
    assert done.wait(LONG)
    assert seen == [(True, False, "value")]


def test_callback_on_failure(executor):
    seen = []
    done = threading.Event()
    future = executor.submit(fail, PlainError, 5)
    future.add_done_callback(lambda f: (seen.append(f.exception(0)), done.set()))
    assert done.wait(LONG)
    assert type(seen[0]) is PlainError


def test_callback_on_finished_future(executor):
    future = executor.submit(add, 1, 2)
    future.result(LONG)
    seen = []
    future.add_done_callback(lambda f: seen.append((f, threading.get_ident())))
    assert seen == [(future, threading.get_ident())]


def test_callback_on_cancel(executor, flag):
    with Blocked(executor, flag):
        future = pending_future(executor)
        seen = []
        future.add_done_callback(seen.append)
        future.cancel()
        assert seen == [future]
        future.add_done_callback(seen.append)
        assert seen == [future, future]


def test_callbacks_run_in_order(executor, flag):
    gate = flag()
    future = executor.submit(pass_gate, gate)
    order = []
    done = threading.Event()
    for n in range(20):
        future.add_done_callback(lambda f, n=n: order.append(n))
    future.add_done_callback(lambda f: done.set())
    gate.set()
    assert done.wait(LONG)
    assert order == list(range(20))


class LogTexts(logging.Handler):
    """Keeps what is logged as text: the records themselves keep futures alive."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(self.format(record))


def test_failing_callback_is_logged(executor, flag):
    gate = flag()
    done = threading.Event()
    future = executor.submit(pass_gate, gate)

    def bad(f):
        raise PlainError("bad callback")

    future.add_done_callback(bad)
    future.add_done_callback(lambda f: done.set())
    logger, handler = logging.getLogger("concurrent.futures"), LogTexts()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        gate.set()
        assert done.wait(LONG), "one failing callback kept the others from running"
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
    assert len(handler.texts) == 1
    assert "bad callback" in handler.texts[0]


def test_callback_submits_again(executor):
    done = threading.Event()
    values = []

    def again(future):
        values.append(future.result())
        if len(values) < 10:
            executor.submit(add, future.result(), 1).add_done_callback(again)
        else:
            done.set()

    executor.submit(add, 0, 0).add_done_callback(again)
    assert done.wait(LONG)
    assert values == list(range(10))


def test_every_callback_runs_once(executor):
    count = 500
    counts = [0] * count
    left = threading.Semaphore(0)

    def callback(n, future):
        assert future.result(0) == n * n
        counts[n] += 1
        left.release()

    for n in range(count):
        executor.submit(square, n).add_done_callback(lambda f, n=n: callback(n, f))
    for _ in range(count):
        assert left.acquire(timeout=LONG)
    assert counts == [1] * count


def test_callback_keeps_a_dropped_future_alive(executor, flag):
    gate = flag()
    done = threading.Event()
    executor.submit(pass_gate, gate).add_done_callback(lambda f: done.set())
    gc.collect()
    gate.set()
    assert done.wait(LONG)


def test_callback_shuts_the_executor_down(make_executor):
    executor = make_executor()
    done = threading.Event()

    def callback(future):
        executor.shutdown(wait=False)
        done.set()

    executor.submit(add, 1, 2).add_done_callback(callback)
    assert done.wait(LONG)
    with pytest.raises(RuntimeError):
        executor.submit(add, 1, 2)


# wait and as_completed --------------------------------------------------------------


def test_wait_all(executor):
    futures = [executor.submit(square, n) for n in range(50)]
    done, not_done = wait(futures, LONG, ALL_COMPLETED)
    assert done == set(futures) and not not_done
    assert {f.result(0) for f in done} == {n * n for n in range(50)}


def test_wait_first_completed(executor, flag):
    gate = flag()
    slow = executor.submit(pass_gate, gate)
    fast = executor.submit(add, 1, 2)
    done, not_done = wait([slow, fast], LONG, FIRST_COMPLETED)
    assert done == {fast} and not_done == {slow}
    gate.set()
    slow.result(LONG)


def test_wait_first_exception(executor, flag):
    gate = flag()
    slow = executor.submit(pass_gate, gate)
    bad = executor.submit(fail, PlainError)
    done, not_done = wait([slow, bad], LONG, FIRST_EXCEPTION)
    assert done == {bad} and not_done == {slow}
    gate.set()
    slow.result(LONG)


def test_wait_timeout(executor, flag):
    gate = flag()
    slow = executor.submit(pass_gate, gate)
    done, not_done = wait([slow], 0.05)
    assert not done and not_done == {slow}
    done, not_done = wait([slow], 0)
    assert not done and not_done == {slow}
    gate.set()
    assert wait([slow], LONG).done == {slow}


def test_wait_sees_cancel(executor, flag):
    # The standard executors tell waiters only when a worker reaches the task.
    with Blocked(executor, flag) as blocked:
        future = pending_future(executor)
        outcome = []
        waiter = threading.Thread(target=lambda: outcome.append(wait([future], LONG)))
        waiter.start()
        time.sleep(0.05)
        assert future.cancel()
        blocked.release()
        waiter.join(LONG)
        assert outcome[0].done == {future} and not outcome[0].not_done


def test_wait_on_many(executor):
    futures = [executor.submit(square, n) for n in range(1000)]
    assert wait(futures, LONG).done == set(futures)
    assert wait(futures, 0).done == set(futures)


def test_as_completed(executor, flag):
    gate = flag()
    slow = executor.submit(pass_gate, gate, "slow")
    fast = executor.submit(identity, "fast")
    order = []
    for future in as_completed([slow, fast], LONG):
        order.append(future.result(0))
        gate.set()
    assert order == ["fast", "slow"]


def test_as_completed_gives_each_once(executor):
    futures = [executor.submit(square, n) for n in range(300)]
    assert sorted(f.result(0) for f in as_completed(futures + futures, LONG)) == [
        n * n for n in range(300)
    ]


def test_as_completed_timeout(executor, flag):
    gate = flag()
    slow = executor.submit(pass_gate, gate)
    fast = executor.submit(add, 1, 1)
    fast.result(LONG)
    seen = []
    with pytest.raises(TimeoutError):
        for future in as_completed([slow, fast], 0.05):
            seen.append(future)
    assert seen == [fast]
    gate.set()
    slow.result(LONG)


def test_wait_and_callback_and_result_together(executor, flag):
    """Three ways to learn of one end at the same time, none loses it."""

    def once():
        gate = flag()
        future = executor.submit(pass_gate, gate, "v")
        called = threading.Event()
        future.add_done_callback(lambda f: called.set())
        outcome = []
        threads = [
            threading.Thread(target=lambda: outcome.append(future.result(LONG))),
            threading.Thread(
                target=lambda: outcome.append(next(iter(wait([future], LONG).done)).result(0))
            ),
            threading.Thread(
                target=lambda: outcome.append(next(as_completed([future], LONG)).result(0))
            ),
        ]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join(LONG)
        assert outcome == ["v"] * 3
        assert called.wait(LONG)

    for _ in range(20):
        once()


def test_mixed_with_futures_of_threads(pool, flag):
    """Ours and foreign futures wait together."""
    gate = flag()
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        ours = pool.submit(add, 1, 2)
        theirs = threads.submit(pass_gate, gate, 4)
        assert wait([ours, theirs], LONG, FIRST_COMPLETED).done == {ours}
        gate.set()
        assert {f.result(0) for f in as_completed([ours, theirs], LONG)} == {3, 4}


# asyncio ------------------------------------------------------------------------------


def test_run_in_executor(executor):
    async def main():
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *(loop.run_in_executor(executor, square, n) for n in range(50))
        )
        assert results == [n * n for n in range(50)]
        with pytest.raises(PlainError):
            await loop.run_in_executor(executor, fail, PlainError, "x")

    asyncio.run(main())


def test_wrap_future(executor):
    async def main():
        assert await asyncio.wrap_future(executor.submit(add, 1, 2)) == 3
        finished = executor.submit(add, 3, 4)
        finished.result(LONG)
        assert await asyncio.wrap_future(finished) == 7

    asyncio.run(main())


def test_asyncio_timeout_and_cancel(executor, flag):
    gate = flag()

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                asyncio.wrap_future(executor.submit(pass_gate, gate)), timeout=0.05
            )

    asyncio.run(main())
    gate.set()


def test_asyncio_cancel_reaches_a_pending_task(executor, flag):
    async def main():
        future = pending_future(executor)
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped
        for _ in range(1000):  # asyncio passes it on from its loop
            await asyncio.sleep(0.001)
            if future.cancelled():
                break
        assert future.cancelled()

    with Blocked(executor, flag):
        asyncio.run(main())


def test_asyncio_does_not_block_the_loop(executor, flag):
    gate = flag()

    async def main():
        waiting = asyncio.ensure_future(
            asyncio.get_running_loop().run_in_executor(executor, pass_gate, gate, "passed")
        )
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        gate.set()
        assert await waiting == "passed"

    asyncio.run(main())


def test_run_in_executor_leaves_the_interpreter(pool):
    async def main():
        loop = asyncio.get_running_loop()
        here = interpreter_id()
        assert await loop.run_in_executor(pool, interpreter_id) != here

    asyncio.run(main())


# Ours alone ---------------------------------------------------------------------------


def test_future_class_is_public(pool):
    future = pool.submit(add, 1, 2)
    assert isinstance(future, subinterp.Future)
    assert issubclass(subinterp.Future, concurrent.futures.Future)
    assert future.result(LONG) == 3


def test_future_outlives_its_pool():
    pool = subinterp.InterpreterPool(1)
    future = pool.submit(identity, {"a": [1]})
    wait([future], LONG)
    pool.shutdown()
    del pool
    gc.collect()
    assert future.result(0) == {"a": [1]}


def test_results_dropped_unread(pool):
    for n in range(100):
        pool.submit(identity, bytes(10_000))
        pool.submit(fail, PlainError, n)


def test_future_cannot_be_sent(pool):
    future = pool.submit(add, 1, 2)
    with pytest.raises(subinterp.NotSendableError):
        pool.submit(identity, future)
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(future)
    assert future.result(LONG) == 3


def test_threads_wait_for_different_futures(pool):
    """Each thread gets what its own task returned, woken in any order."""
    with Gate() as gate:
        futures = [pool.submit(pass_gate, gate, "first")]
        futures += [pool.submit(identity, n) for n in range(30)]
        outcome = {}
        threads = [
            threading.Thread(target=lambda n=n, f=f: outcome.update({n: f.result(LONG)}))
            for n, f in enumerate(futures)
        ]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join(LONG)
        assert outcome == {0: "first", **{n + 1: n for n in range(30)}}


def test_as_completed_while_submitting(pool):
    futures = [pool.submit(square, n) for n in range(10)]
    seen = 0
    for future in as_completed(futures, LONG):
        future.result(0)
        pool.submit(square, 1)
        seen += 1
    assert seen == 10


def test_wait_from_several_threads(pool):
    futures = [pool.submit(square, n) for n in range(200)]
    outcome = []
    threads = [
        threading.Thread(target=lambda: outcome.append(len(wait(futures, LONG).done)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert outcome == [200] * 4


# Loading a result may run Python code, and other threads with it
# (in processes of their own: what is loaded twice at a time is memory that is freed).

LOADING = """
import sys, threading
import _work, subinterp
from concurrent.futures import wait

loads, outcome = [], []
loading, go_on = threading.Event(), threading.Event()

def load():
    loads.append(threading.get_ident())
    loading.set()
    assert go_on.wait(30)
    if sys.argv[1] == "fails":
        raise _work.PlainError("not loaded")
    return "loaded"

def read():
    try:
        outcome.append(future.result(30))
    except BaseException as error:
        outcome.append(error)

with subinterp.InterpreterPool(1) as pool:
    _work.on_load = load
    future = pool.submit(_work.return_calls_on_load)
    wait([future], 30)
    first = threading.Thread(target=read)
    first.start()
    assert loading.wait(30)
    others = [threading.Thread(target=read) for _ in range(3)]
    for thread in others:
        thread.start()
    others[0].join(0.2)  # so that they are in result()
    go_on.set()
    for thread in (first, *others):
        thread.join(30)
assert len(outcome) == 4
assert len(loads) == 1, loads
assert all(result is outcome[0] for result in outcome), outcome
if sys.argv[1] == "fails":
    assert "not loaded" in str(outcome[0]), outcome
else:
    assert outcome[0] == ["loaded", bytearray(b"x" * 200_000), "s" * 1000]
"""


@pytest.mark.parametrize("load", ["works", "fails"])
def test_threads_that_read_one_future_load_it_once(load):
    run_script(LOADING, args=[load]).clean()


def test_load_that_asks_for_itself_raises():
    run_script(
        """
        import _work, subinterp

        errors = []

        def load():
            try:
                future.result(30)
            except RuntimeError as error:
                errors.append(str(error))
            return "loaded"

        with subinterp.InterpreterPool(1) as pool:
            _work.on_load = load
            future = pool.submit(_work.return_calls_on_load)
            assert future.result(30)[0] == "loaded"
        assert len(errors) == 1 and "same result" in errors[0], errors
        """
    ).clean()


def test_second_observer_while_the_first_begins():
    """The first one makes a Condition, and another thread observes meanwhile."""
    result = run_script(
        """
        import gc, threading, weakref
        import subinterp
        from _support import wait_until
        from _work import Gate, pass_gate

        make_condition = threading.Condition

        def observe(future, hits, name):
            future.add_done_callback(lambda _: hits.append(name))

        def work(pool, gate):
            future, hits, came_between = pool.submit(pass_gate, gate, "passed"), [], []

            def make(*args):
                threading.Condition = make_condition
                second = threading.Thread(target=observe, args=(future, hits, "second"))
                second.start()
                second.join(30)
                came_between.append(not second.is_alive())
                return make_condition(*args)

            threading.Condition = make
            observe(future, hits, "first")
            assert came_between == [True], came_between
            gate.set()
            assert future.result(30) == "passed"
            wait_until(lambda: len(hits) >= 2, what="every callback")
            assert sorted(hits) == ["first", "second"], hits
            return weakref.ref(future)

        def gone(ref):
            gc.collect()
            return ref() is None

        with subinterp.InterpreterPool(1) as pool, Gate() as gate:
            ref = work(pool, gate)
            # One that was to be posted twice would be kept for ever.
            wait_until(lambda: gone(ref), what="the end of the future")
        """
    )
    result.clean()


def test_observers_at_the_same_time():
    """In a process of its own: what is posted twice corrupts memory."""
    result = run_script(
        """
        import sys, threading, time
        import subinterp
        from _support import wait_until

        sys.setswitchinterval(1e-6)
        with subinterp.InterpreterPool(1) as pool:
            for n in range(300):
                future = pool.submit(time.sleep, 0.0005)
                hits = []
                barrier = threading.Barrier(4)

                def observe(future=future, hits=hits, barrier=barrier):
                    barrier.wait()
                    future.add_done_callback(lambda _: hits.append(1))

                threads = [threading.Thread(target=observe) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                future.result()
                wait_until(lambda: len(hits) >= 4, what=f"every callback of round {n}")
                assert len(hits) == 4, (n, hits)
        """
    )
    result.clean()


def test_one_notifier_however_many_threads_need_it():
    """Futures first observed by several threads at once start one notifier."""
    result = run_script(
        """
        import threading, time
        import subinterp
        from subinterp import _notify

        started = []
        start = _notify.start

        def slow_start(notifier):
            started.append(1)
            time.sleep(0.1)
            return start(notifier)

        _notify.start = slow_start
        barrier = threading.Barrier(4)

        def observe():
            # Still running when it is observed: one that is done needs no notifier.
            future = pool.submit(time.sleep, 0.5)
            called = threading.Event()
            barrier.wait()
            future.add_done_callback(lambda future: called.set())
            assert called.wait(60)

        with subinterp.InterpreterPool(1) as pool:
            threads = [threading.Thread(target=observe) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        print(len(started))
        """
    ).clean()
    assert result.stdout == "1\n"

"""Corners: code that runs inside encoding and decoding, odd owners, odd moments."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import math
import threading
import time

import pytest

import subinterp
from _support import run_script, wait_until
from _work import (
    Gate,
    PlainError,
    add,
    fail,
    identity,
    interpreter_id,
    keep,
    pass_gate,
    send_range,
    sleep_return,
    square,
)
from subinterp import (
    ChannelClosed,
    InterpreterPool,
    NotSendableError,
    SharedBuffer,
    create_channel,
    interpreters,
    select,
)

LONG = 60


def call(pool, fn, /, *args, **kwargs):
    return pool.submit(fn, *args, **kwargs).result(LONG)


# Python code that runs while something is encoded or decoded ------------------------------------


class Reenters:
    """Its pickling runs a function of the test."""

    def __init__(self, fn):
        self.fn = fn

    def __reduce__(self):
        return int, (self.fn(),)


def test_submit_inside_the_encoding_of_submit(pool):
    assert call(pool, add, Reenters(lambda: call(pool, square, 3)), 1) == 10


def test_map_inside_the_encoding_of_map(pool):
    items = [Reenters(lambda n=n: sum(pool.map(square, range(n)))) for n in range(10)]
    assert list(pool.map(identity, items)) == [sum(k * k for k in range(n)) for n in range(10)]


def test_shutdown_inside_the_encoding_of_submit():
    pool = InterpreterPool(1)

    def end():
        pool.shutdown()
        return 5

    with contextlib.suppress(RuntimeError):
        assert pool.submit(identity, Reenters(end)).result(LONG) == 5
    with pytest.raises(RuntimeError):
        pool.submit(identity, 1)


def test_send_inside_the_encoding_of_send():
    recv, send = create_channel()

    def again():
        send.send("inner")
        return 7

    send.send(Reenters(again))
    send.close()
    assert sorted(recv, key=str) == [7, "inner"]


def test_close_inside_the_encoding_of_send():
    recv, send = create_channel()

    def close():
        send.close()
        return 7

    with contextlib.suppress(ChannelClosed):
        send.send(Reenters(close))
    assert list(recv) in ([], [7])


def test_pool_dropped_inside_the_encoding():
    holder = [InterpreterPool(1)]

    def drop():
        holder.clear()
        gc.collect()
        return 4

    assert holder[0].submit(identity, Reenters(drop)).result(LONG) == 4


def test_keyboard_interrupt_while_encoding(pool):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.submit(identity, [1, 2, Reenters(interrupt)])
    with pytest.raises(KeyboardInterrupt):
        list(pool.map(identity, [1, 2, Reenters(interrupt)]))
    recv, send = create_channel()
    with pytest.raises(KeyboardInterrupt):
        send.send(Reenters(interrupt))
    assert len(recv) == 0
    assert call(pool, add, 1, 2) == 3


def test_collection_while_encoding(pool):
    """The collector may run at any time, and run anything."""

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            deaths.append(call(pool, square, 2))

    deaths = []
    for _ in range(20):
        Cycle()
        assert call(pool, add, Reenters(gc.collect), 0) >= 0
    gc.collect()
    assert deaths == [4] * 20


def test_values_that_lie_about_equality(pool):
    class Liar:
        def __eq__(self, other):
            raise RuntimeError("do not compare me")

        __hash__ = None

        def __reduce__(self):
            return int, (5,)

    assert call(pool, identity, [Liar(), Liar()]) == [5, 5]
    liar = Liar()
    assert call(pool, lambda: liar) == 5


def test_str_subclass_as_keyword(pool):
    class Key(str):
        __slots__ = ()

    _, kwargs = call(pool, lambda *a, **k: (a, k), **{Key("key"): 1})
    assert kwargs == {"key": 1}


# Inputs of map ----------------------------------------------------------------------------------


def test_input_of_map_uses_the_pool(pool):
    def numbers():
        for n in range(20):
            yield call(pool, square, n)

    assert list(pool.map(square, numbers())) == [n**4 for n in range(20)]


def test_input_of_map_reads_the_same_map(pool):
    """It cannot be read while it is being fed: an error, no crash and no hang."""
    results = None

    def numbers():
        yield 1
        if results is not None:
            yield next(results)
        yield 2

    results = pool.map(square, numbers(), buffersize=1, chunksize=1)
    with contextlib.suppress(ValueError, RuntimeError):
        list(results)
    assert call(pool, add, 1, 2) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopIteration, GeneratorExit, SystemExit])
def test_input_of_map_raises(pool, error):
    class Numbers:
        def __init__(self):
            self.n = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n += 1
            if self.n > 5:
                raise error
            return self.n

    if error is StopIteration:
        assert list(pool.map(square, Numbers())) == [1, 4, 9, 16, 25]
    else:
        with pytest.raises(error):
            list(pool.map(square, Numbers()))
    assert call(pool, add, 1, 2) == 3


def test_input_of_map_shuts_the_pool_down():
    pool = InterpreterPool(2)

    def numbers():
        yield from range(5)
        pool.shutdown(wait=False)
        yield from range(5, 10)

    with contextlib.suppress(RuntimeError):
        assert list(pool.map(square, numbers())) == [n * n for n in range(10)]
    pool.shutdown()


def test_map_function_changed_on_the_way(pool):
    """One call of map uses the function as it was when the call was made."""
    factor = 1

    def times(n):
        return n * factor

    def numbers():
        nonlocal factor
        for n in range(100):
            factor = n  # after the call began
            yield n

    first = list(pool.map(times, numbers(), chunksize=1, buffersize=1))
    assert len(first) == 100
    factor = 3
    assert list(pool.map(times, range(5))) == [0, 3, 6, 9, 12]


def test_map_unsendable_function(pool):
    lock = threading.Lock()
    with pytest.raises(NotSendableError):
        list(pool.map(lambda n: lock, range(5)))
    assert list(pool.map(square, range(3))) == [0, 1, 4]


def test_maps_left_in_cycles(pool):
    for _ in range(20):
        results = pool.map(square, range(100))
        next(results)
        holder = [results]
        holder.append(holder)
        del results, holder
    gc.collect()
    assert call(pool, add, 1, 2) == 3


@pytest.mark.parametrize("timeout", [0, 0.0, -1])
def test_map_timeout_that_has_passed(pool, timeout):
    with Gate() as gate:
        results = pool.map(pass_gate, [gate], timeout=timeout)
        with pytest.raises(TimeoutError):
            next(results)
        gate.set()
        assert call(pool, add, 1, 2) == 3


# Timeouts that are no ordinary numbers ----------------------------------------------------------


def test_odd_timeouts_of_result(pool):
    class Seconds:
        def __float__(self):
            return 30.0

    for timeout in (math.inf, 1e300, 10**9, 5.5, True):
        assert pool.submit(add, 1, 2).result(timeout) == 3
    with Gate() as gate:
        future = pool.submit(pass_gate, gate, 1)
        for timeout in ("1", [], object()):
            with pytest.raises(TypeError):
                future.result(timeout)
        with pytest.raises((TimeoutError, ValueError)):
            future.result(-math.inf)
        with pytest.raises((TimeoutError, ValueError)):
            future.result(math.nan)
        gate.set()
        assert future.result(LONG) == 1


# Pools and futures in other interpreters --------------------------------------------------------


def test_callbacks_inside_a_worker(pool):
    """The thread that runs them lives in the worker's interpreter and ends with it."""

    def work():
        import threading

        import _work
        import subinterp

        done = threading.Event()
        seen = []
        with subinterp.InterpreterPool(1) as inner:
            future = inner.submit(_work.sleep_return, 0.1, 5)
            future.add_done_callback(lambda f: (seen.append(_work.interpreter_id()), done.set()))
            assert done.wait(60)
        return seen == [_work.interpreter_id()]

    for _ in range(3):
        assert call(pool, work)
    assert call(pool, add, 1, 2) == 3


def test_worker_ends_with_callbacks_to_come():
    def work():
        import _work
        import subinterp

        global inner  # it outlives the task
        inner = subinterp.InterpreterPool(1)
        future = inner.submit(_work.sleep_return, 0.3, 5)
        future.add_done_callback(lambda f: None)

    with InterpreterPool(1) as pool:
        call(pool, work)


def test_asyncio_with_a_pool_inside_a_worker(pool):
    def work():
        import asyncio

        import _work
        import subinterp

        async def main():
            loop = asyncio.get_running_loop()
            with subinterp.InterpreterPool(1) as inner:
                calls = [loop.run_in_executor(inner, _work.square, n) for n in range(10)]
                return await asyncio.gather(*calls)

        return asyncio.run(main())

    assert call(pool, work) == [n * n for n in range(10)]


def test_pool_used_by_the_worker_of_another():
    with InterpreterPool(1) as one, InterpreterPool(1) as two:

        def work(other):
            import _work

            return other.submit(_work.interpreter_id).result(60)

        there = call(two, interpreter_id)
        assert call(one, work, two) == there
        assert list(one.map(lambda n: two.submit(abs, -n).result(60), range(5))) == list(range(5))


def test_pools_that_wait_for_each_other():
    """A task of each waits for one of the other: raised, not hung; or served."""
    with InterpreterPool(1) as one, InterpreterPool(1) as two:

        def there_and_back(first, second):
            def back(first):
                import _work

                return first.submit(_work.square, 3).result(2)

            return second.submit(back, first).result(40)

        error = one.submit(there_and_back, one, two).exception(LONG)
        assert isinstance(error, subinterp.PoolDeadlockError | TimeoutError)
        assert call(one, add, 1, 2) == call(two, add, 1, 2) == 3


def test_pool_kept_by_a_worker_of_another():
    one, two = InterpreterPool(1), InterpreterPool(1)
    call(one, keep, two)
    two.shutdown()
    call(one, add, 1, 2)
    one.shutdown()


def test_pool_kept_by_a_worker_ends_with_its_creators_handle():
    """Else a function that names its pool would keep a forgotten pool for ever."""

    def use():
        import _work

        return _work.KEPT[-1].submit(_work.square, 5).result(60)

    with InterpreterPool(1) as one:
        two = InterpreterPool(1)
        call(one, keep, two)
        assert call(one, use) == 25
        del two
        gc.collect()
        with pytest.raises(RuntimeError, match="after shutdown"):
            call(one, use)


def test_pool_kept_by_its_own_worker():
    """A circle of a pool and its worker: leaving the block ends both."""
    with InterpreterPool(1) as pool:
        call(pool, keep, pool)


def test_future_read_in_a_thread_of_a_task(pool):
    def work(pool):
        import threading

        import _work

        future = pool.submit(_work.square, 4)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(future.result(60)))
        thread.start()
        thread.join()
        return seen

    assert call(pool, work, pool) == [16]


def test_initializer_that_blocks_and_shutdown_without_wait():
    with Gate() as gate:
        pool = InterpreterPool(1, initializer=gate.wait)
        future = pool.submit(add, 1, 2)
        pool.shutdown(wait=False)
        time.sleep(0.05)
        assert not future.done()
        gate.set()
        assert future.result(LONG) == 3
        # The pipe must outlive the worker.
        pool.shutdown()


def test_broadcast_and_recycled_workers():
    with InterpreterPool(2, max_tasks_per_child=2) as pool:
        for _ in range(6):
            assert len(pool.broadcast(interpreter_id)) == 2
            assert call(pool, add, 1, 2) == 3


def test_broadcast_from_many_threads():
    with InterpreterPool(3) as pool:
        outcomes = []

        def work(n):
            for _ in range(20):
                outcomes.append(pool.broadcast(identity, n) == [n] * 3)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert outcomes == [True] * 80


def test_broadcast_to_one_pool_inside_a_task(pool):
    """The worker that asks cannot serve itself meanwhile: told, not hung."""

    def work(pool):
        return pool.broadcast(abs, -1)

    error = pool.submit(work, pool).exception(LONG)
    assert error is None or isinstance(error, RuntimeError)
    assert call(pool, add, 1, 2) == 3


def test_shutdown_inside_a_task(pool1):
    """A worker cannot wait for its own end."""

    def work(pool):
        pool.shutdown(wait=True)
        return "done"

    outcome = pool1.submit(work, pool1)
    with contextlib.suppress(RuntimeError):
        assert outcome.result(LONG) == "done"


# Channels in odd places -------------------------------------------------------------------------


def test_two_loops_receive_from_one_channel():
    recv, send = create_channel()
    seen = []

    def loop():
        async def main():
            async for item in recv:
                seen.append(item)

        asyncio.run(main())

    threads = [threading.Thread(target=loop) for _ in range(3)]
    send_while_they_run(threads, send, 300)
    assert sorted(seen) == list(range(300))


def send_while_they_run(threads, send, count):
    for thread in threads:
        thread.start()
    for n in range(count):
        send.send(n)
    send.close()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


def test_async_and_plain_receivers_together():
    recv, send = create_channel()
    seen = []

    async def main():
        async for item in recv:
            seen.append(item)

    threads = [
        threading.Thread(target=lambda: asyncio.run(main())),
        threading.Thread(target=lambda: seen.extend(recv)),
    ]
    send_while_they_run(threads, send, 1000)
    assert sorted(seen) == list(range(1000))


def test_loop_closed_by_force_with_a_waiting_receiver():
    recv, send = create_channel()
    loop = asyncio.new_event_loop()
    task = loop.create_task(recv.recv_async())
    loop.run_until_complete(asyncio.sleep(0.01))
    task._log_destroy_pending = False  # that is the point
    loop.close()
    send.send("for the next one")
    del task, loop
    gc.collect()
    wait_until(lambda: len(recv) == 1, what="the message back in its channel")
    assert recv.recv_nowait() == "for the next one"


def test_select_while_ends_are_closed_elsewhere():
    for _ in range(50):
        pairs = [create_channel() for _ in range(4)]
        outcome = []

        def wait_for_any(receivers, outcome=outcome):
            try:
                outcome.append(select(*receivers, timeout=LONG))
            except ChannelClosed:
                outcome.append("closed")

        thread = threading.Thread(target=wait_for_any, args=([recv for recv, _ in pairs],))
        thread.start()
        for recv, send in pairs:
            send.close()
            recv.close()
        thread.join(LONG)
        assert outcome == ["closed"]


def test_ends_kept_by_many_interpreters():
    recv, send = create_channel()
    with InterpreterPool(3) as pool:
        pool.broadcast(keep, send)
        pool.broadcast(keep, send)
        send.close()
        with pytest.raises(subinterp.RecvTimeout):
            recv.recv(timeout=0.05)
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_recycled_worker_gives_up_its_ends():
    recv, send = create_channel()
    with InterpreterPool(1, max_tasks_per_child=1) as pool:
        call(pool, keep, send)
        send.close()
        with pytest.raises(ChannelClosed):
            recv.recv(timeout=LONG)
        assert call(pool, add, 1, 2) == 3


def test_channel_of_channels(pool):
    """Ends of ends of ends: each hop passes the next pair on."""
    outer_recv, outer_send = create_channel()

    def server(requests):
        served = 0
        for number, answer in requests:
            answer.send(number * 2)
            answer.close()
            served += 1
        return served

    future = pool.submit(server, outer_recv)
    outer_recv.close()
    for n in range(200):
        recv, send = create_channel(1)
        outer_send.send((n, send))
        send.close()
        assert list(recv) == [n * 2]
    outer_send.close()
    assert future.result(LONG) == 200


def test_send_of_a_big_message_survives(pool):
    recv, send = create_channel(1)
    blocks = [bytes([n]) * 5_000_000 for n in range(5)]

    def produce(send, blocks):
        for block in blocks:
            send.send(block)
            send.send(bytearray(block))

    future = pool.submit(produce, send, blocks)
    send.close()
    assert list(recv) == [kind(block) for block in blocks for kind in (bytes, bytearray)]
    future.result(LONG)


def test_sender_in_the_worker_while_the_pool_ends():
    """Tasks that send until they are told: the end of the receiver ends them, and the pool."""
    recv, send = create_channel(5)

    def produce(send):
        from subinterp import ChannelClosed

        count = 0
        try:
            while True:
                send.send(count)
                count += 1
        except ChannelClosed:
            return count

    with InterpreterPool(2) as pool:
        futures = [pool.submit(produce, send) for _ in range(2)]
        for _ in range(50):
            recv.recv(timeout=LONG)
        recv.close()
    assert sum(future.result(0) for future in futures) >= 50


def test_receiver_dropped_while_a_worker_sends(pool):
    recv, send = create_channel()
    future = pool.submit(send_range, send, 0, 10**9)
    for n, item in zip(range(100), recv, strict=False):
        assert item == n
    del recv
    gc.collect()
    assert isinstance(future.exception(LONG), ChannelClosed)


# Shared memory ----------------------------------------------------------------------------------


def test_views_pin_the_memory_of_a_buffer_everywhere(pool):
    view = memoryview(SharedBuffer(1000))[500:]
    gc.collect()
    pool.broadcast(keep, view)
    del view
    gc.collect()

    def touch():
        import _work

        _work.KEPT[-1][0] = 9
        return _work.KEPT[-1][0]

    assert pool.broadcast(touch) == [9, 9]


def test_released_view_of_a_shared_buffer(pool):
    view = memoryview(SharedBuffer(10))
    view.release()
    with pytest.raises((ValueError, NotSendableError)):
        pool.submit(identity, view)
    assert call(pool, add, 1, 2) == 3


def test_view_of_a_view_of_a_buffer_that_came_back(pool):
    buf = SharedBuffer(64)
    view = memoryview(buf)
    for _ in range(10):
        view = call(pool, identity, view)
    view[5] = 55
    assert memoryview(buf)[5] == 55
    assert call(pool, identity, view[5:6])[0] == 55


# Odd moments ------------------------------------------------------------------------------------


def test_interpreter_made_in_a_thread_that_ended():
    made = []
    thread = threading.Thread(target=lambda: made.append(interpreters.create()))
    thread.start()
    thread.join(LONG)
    [interp] = made
    assert interp.call(add, 1, 2) == 3
    interp.close()


def test_pool_dropped_by_another_thread():
    holder = [InterpreterPool(1)]
    future = holder[0].submit(sleep_return, 0.05, 1)
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join(LONG)
    assert future.result(LONG) == 1


def test_environment_and_directory_are_the_process_s(pool, tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    assert call(pool, os.getcwd) == str(tmp_path)


def test_random_is_not_the_same_in_every_worker():
    """Each worker seeds for itself."""

    def roll():
        import random

        return random.random()

    with InterpreterPool(3) as pool:
        assert len(set(pool.broadcast(roll))) == 3


def test_hashes_agree(pool):
    """str hashes are the process's: sets and dicts that travel stay valid."""
    texts = [f"text {n}" for n in range(100)]
    assert list(pool.map(hash, texts)) == list(map(hash, texts))


def test_gc_and_settrace_in_a_task(pool):
    def work():
        import gc
        import sys

        lines = []
        sys.settrace(lambda frame, event, arg: lines.append(event))
        try:
            (lambda: None)()
        finally:
            sys.settrace(None)
        gc.disable()
        gc.collect()
        gc.enable()
        return bool(lines)

    assert call(pool, work)


def test_a_task_replaces_stdout(pool, capfd):
    def work():
        import io
        import sys

        sys.stdout = io.StringIO()
        print("lost")
        sys.stdout = sys.__stdout__
        print("seen")

    call(pool, work)
    assert capfd.readouterr().out == "seen\n"


def test_a_task_forks(pool):
    """A child forked by a worker ends without touching the parent's pool."""
    result = run_script(
        """
        import warnings
        warnings.simplefilter("ignore")
        from subinterp import InterpreterPool

        def work():
            import os
            try:
                pid = os.fork()
            except RuntimeError as error:  # CPython refuses it in interpreters like these
                return "refused"
            if pid == 0:
                os._exit(3)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        with InterpreterPool(1) as pool:
            assert pool.submit(work).result(60) in ("refused", 3)
            assert pool.submit(abs, -1).result(60) == 1
        """
    ).check()
    assert "Traceback" not in result.stderr


def test_infinite_map_in_a_generator_that_is_dropped(pool):
    def squares():
        yield from pool.map(square, itertools.count())

    numbers = squares()
    assert [next(numbers) for _ in range(50)] == [n * n for n in range(50)]
    numbers.close()
    assert call(pool, add, 1, 2) == 3


def test_exceptions_in_flight_while_a_result_is_read(pool):
    """result() inside an except block: the contexts are the usual ones."""
    future = pool.submit(fail, PlainError)
    with pytest.raises(PlainError) as caught:
        try:
            raise KeyError("handled here")
        except KeyError:
            future.result(LONG)
    error = caught.value
    assert isinstance(error.__context__, KeyError) or error.__cause__ is not None

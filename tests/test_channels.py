"""Channels: order, blocking, timeouts, closing, select, asyncio, ends on their way."""

from __future__ import annotations

import _interpreters
import asyncio
import contextlib
import gc
import pickle
import queue
import sys
import threading
import time
import weakref

import pytest

import _work
import subinterp
from _support import in_thread, run_script, wait_until
from _work import (
    Point,
    close_end,
    drop_end,
    echo,
    identity,
    interpreter_id,
    keep,
    pass_gate,
    receive_all,
    receive_name,
    receive_one,
    send_all,
    send_range,
)
from subinterp import (
    ChannelClosed,
    ChannelEmpty,
    ChannelError,
    ChannelFull,
    ChannelTimeout,
    NotSendableError,
    RecvTimeout,
    SendTimeout,
    create_channel,
    select,
)

LONG = 60


def call(pool, fn, /, *args, **kwargs):
    return pool.submit(fn, *args, **kwargs).result(LONG)


# Classes ---------------------------------------------------------------------------------


def test_families_of_the_exceptions():
    assert issubclass(ChannelError, subinterp.SubinterpError)
    assert issubclass(ChannelClosed, ChannelError)
    assert issubclass(ChannelEmpty, ChannelError) and issubclass(ChannelEmpty, queue.Empty)
    assert issubclass(ChannelFull, ChannelError) and issubclass(ChannelFull, queue.Full)
    assert issubclass(ChannelTimeout, ChannelError) and issubclass(ChannelTimeout, TimeoutError)
    assert issubclass(SendTimeout, ChannelTimeout) and issubclass(SendTimeout, queue.Full)
    assert issubclass(RecvTimeout, ChannelTimeout) and issubclass(RecvTimeout, queue.Empty)
    # Each stands for one thing.
    kinds = [ChannelClosed, ChannelEmpty, ChannelFull, SendTimeout, RecvTimeout]
    for one in kinds:
        assert [other for other in kinds if issubclass(one, other)] == [one]
    assert not issubclass(ChannelClosed, queue.Empty | queue.Full | TimeoutError)


def test_create():
    recv, send = create_channel()
    assert isinstance(recv, subinterp.RecvChannel)
    assert isinstance(send, subinterp.SendChannel)
    assert not recv.closed and not send.closed
    assert len(recv) == 0 and recv.qsize() == 0


@pytest.mark.parametrize("maxsize", [-1, -5])
def test_create_negative(maxsize):
    with pytest.raises(ValueError):
        create_channel(maxsize)


@pytest.mark.parametrize("maxsize", [1.5, "1", None])
def test_create_wrong_type(maxsize):
    with pytest.raises(TypeError):
        create_channel(maxsize)


# One thread --------------------------------------------------------------------------------


def test_order():
    recv, send = create_channel()
    for n in range(1000):
        send.send(n)
    assert len(recv) == recv.qsize() == 1000
    assert [recv.recv() for _ in range(1000)] == list(range(1000))
    assert len(recv) == 0


def test_objects_are_copied():
    recv, send = create_channel()
    value = {"a": [1, Point(1, 2)]}
    send.send(value)
    value["a"].append("later")
    back = recv.recv()
    assert back == {"a": [1, Point(1, 2)]}
    assert back is not value


def test_falsy_objects():
    recv, send = create_channel()
    for value in (None, 0, "", b"", [], False):
        send.send(value)
    assert [recv.recv() for _ in range(6)] == [None, 0, "", b"", [], False]


def test_recv_nowait():
    recv, send = create_channel()
    with pytest.raises(ChannelEmpty):
        recv.recv_nowait()
    with pytest.raises(queue.Empty):
        recv.recv_nowait()
    send.send(1)
    assert recv.recv_nowait() == 1
    with pytest.raises(ChannelEmpty):
        recv.recv_nowait()


def test_send_nowait():
    recv, send = create_channel(2)
    send.send_nowait(1)
    send.send_nowait(2)
    with pytest.raises(ChannelFull):
        send.send_nowait(3)
    with pytest.raises(queue.Full):
        send.send_nowait(3)
    assert recv.recv() == 1
    send.send_nowait(4)
    assert [recv.recv(), recv.recv()] == [2, 4]


def test_unbounded_send_never_waits():
    recv, send = create_channel(0)
    for n in range(10_000):
        send.send_nowait(n)
    assert len(recv) == 10_000


@pytest.mark.parametrize("timeout", [0, 0.001, 0.0105, 0.1, -1])
def test_recv_timeout(timeout):
    recv, send = create_channel()
    started = time.monotonic()
    with pytest.raises(RecvTimeout):
        recv.recv(timeout=timeout)
    assert time.monotonic() - started >= timeout * 0.99
    with pytest.raises(TimeoutError):
        recv.recv(timeout=timeout)
    with pytest.raises(queue.Empty):
        recv.recv(timeout)
    send.send(1)
    assert recv.recv(timeout=timeout) == 1


@pytest.mark.parametrize("timeout", [0, 0.001, 0.0105, 0.1, -1])
def test_send_timeout(timeout):
    recv, send = create_channel(1)
    send.send("first", timeout=timeout)
    started = time.monotonic()
    with pytest.raises(SendTimeout):
        send.send("second", timeout=timeout)
    assert time.monotonic() - started >= timeout * 0.99
    with pytest.raises(queue.Full):
        send.send("second", timeout)
    assert recv.recv() == "first"
    with pytest.raises(ChannelEmpty):
        recv.recv_nowait()


@pytest.mark.parametrize("timeout", ["1", [], 1j])
def test_timeout_of_a_wrong_type(timeout):
    recv, send = create_channel(1)
    with pytest.raises(TypeError):
        recv.recv(timeout=timeout)
    with pytest.raises(TypeError):
        send.send(1, timeout=timeout)
    assert len(recv) == 0
    with pytest.raises((TypeError, ValueError)):
        recv.recv(timeout=float("nan"))


def test_endless_timeouts():
    recv, send = create_channel(1)
    for timeout in (1e30, float("inf"), None, 10**12):
        send.send(1, timeout=timeout)
        assert recv.recv(timeout=timeout) == 1
    with pytest.raises((OverflowError, TypeError, ValueError, RecvTimeout)):
        recv.recv(timeout=-(10**400))


# Threads ---------------------------------------------------------------------------------


def test_recv_waits():
    recv, send = create_channel()
    with in_thread(recv.recv) as outcome:
        time.sleep(0.05)
        assert outcome == []
        send.send("there")
    assert outcome == ["there"]


def test_recv_with_timeout_is_woken_early():
    recv, send = create_channel()
    with in_thread(recv.recv, 10 * LONG) as outcome:
        time.sleep(0.02)
        send.send(1)
        wait_until(lambda: outcome == [1])


def test_send_waits_for_room():
    recv, send = create_channel(1)
    send.send(1)
    with in_thread(send.send, 2) as outcome:
        time.sleep(0.05)
        assert outcome == []
        assert len(recv) == 1
        assert recv.recv() == 1
    assert outcome == [None]
    assert recv.recv() == 2


@pytest.mark.parametrize("maxsize", [1, 2, 10])
def test_backpressure(pool, maxsize):
    recv, send = create_channel(maxsize)
    future = pool.submit(send_range, send, 0, 500)
    send.close()
    seen = []
    for item in recv:
        assert len(recv) <= maxsize
        seen.append(item)
    assert seen == list(range(500))
    assert future.result(LONG) == 500


# Failed sends leave the object with the sender ------------------------------------------------


def test_failed_send_keeps_the_object():
    recv, send = create_channel(1)
    send.send("full")
    inner_recv, inner_send = create_channel()
    for attempt in (send.send_nowait, lambda obj: send.send(obj, timeout=0.01)):
        with pytest.raises(queue.Full):
            attempt(inner_recv)
        # The end is still ours: it was not closed with the failed message.
        inner_send.send("still open")
        assert inner_recv.recv() == "still open"
        assert not inner_recv.closed
    assert recv.recv() == "full"


def test_failed_send_of_the_only_end_keeps_the_channel_open():
    _recv, send = create_channel(1)
    send.send("full")
    inner_recv, inner_send = create_channel()
    for _ in range(3):
        with pytest.raises(ChannelFull):
            send.send_nowait([inner_send])
    inner_send.send(1)
    assert inner_recv.recv() == 1
    with pytest.raises(ChannelEmpty):
        inner_recv.recv_nowait()


def test_unsendable():
    recv, send = create_channel()
    with pytest.raises(NotSendableError, match=r"\['conn'\]\[1\]") as caught:
        send.send({"conn": [0, threading.Lock()]})
    assert "lock" in str(caught.value)
    with pytest.raises(NotSendableError):
        send.send_nowait(threading.Lock())
    assert len(recv) == 0
    send.send(1)
    assert recv.recv() == 1


def test_unsendable_with_an_end_inside():
    _recv, send = create_channel()
    inner_recv, inner_send = create_channel()
    with pytest.raises(NotSendableError):
        send.send([inner_send, threading.Lock()])
    inner_send.send(1)
    assert inner_recv.recv() == 1
    inner_send.close()
    with pytest.raises(ChannelClosed):
        inner_recv.recv(timeout=LONG)


def test_message_that_cannot_be_loaded():
    recv, send = create_channel()
    send.send(_work.BadLoad())
    send.send("next")
    with pytest.raises(Exception, match="will not be loaded") as caught:
        recv.recv()
    assert not isinstance(caught.value, ChannelEmpty | ChannelClosed)
    assert recv.recv() == "next"


# Closing ----------------------------------------------------------------------------------


def test_receivers_drain_then_closed():
    recv, send = create_channel()
    send.send(1)
    send.send(2)
    send.close()
    assert not recv.closed
    assert recv.recv() == 1
    assert recv.recv_nowait() == 2
    for attempt in (recv.recv, recv.recv_nowait, lambda: recv.recv(timeout=5)):
        with pytest.raises(ChannelClosed):
            attempt()


def test_send_without_receivers():
    recv, send = create_channel()
    recv.close()
    for attempt in (send.send, send.send_nowait, lambda obj: send.send(obj, timeout=5)):
        with pytest.raises(ChannelClosed):
            attempt(1)


def test_use_of_a_closed_end():
    recv, send = create_channel()
    recv2, send2 = create_channel()
    for end in (recv, send):
        end.close()
        end.close()
        assert end.closed
    with pytest.raises(ChannelClosed):
        recv.recv()
    with pytest.raises(ChannelClosed):
        recv.recv_nowait()
    with pytest.raises(ChannelClosed):
        send.send(1)
    with pytest.raises(ChannelClosed):
        send.send_nowait(1)
    assert list(recv) == []
    # A closed end cannot travel.
    with pytest.raises((ChannelClosed, NotSendableError)):
        send2.send(recv)
    assert len(recv2) == 0


def test_collected_sender_closes():
    recv, send = create_channel()
    send.send(1)
    del send
    gc.collect()
    assert list(recv) == [1]
    with pytest.raises(ChannelClosed):
        recv.recv()


def test_collected_receiver_closes():
    recv, send = create_channel()
    del recv
    gc.collect()
    with pytest.raises(ChannelClosed):
        send.send(1)


def test_close_wakes_a_receiver():
    recv, send = create_channel()
    with in_thread(recv.recv) as outcome:
        time.sleep(0.05)
        send.close()
    assert len(outcome) == 1 and isinstance(outcome[0], ChannelClosed)


def test_close_wakes_all_receivers():
    recv, send = create_channel()
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(recv.recv)) for _ in range(5)]
        time.sleep(0.05)
        send.send("only one")
        send.close()
    kinds = sorted(type(outcome[0]).__name__ for outcome in outcomes)
    assert kinds == ["ChannelClosed"] * 4 + ["str"]


def test_close_wakes_a_sender():
    recv, send = create_channel(1)
    send.send(1)
    with in_thread(send.send, 2) as outcome:
        time.sleep(0.05)
        recv.close()
    assert len(outcome) == 1 and isinstance(outcome[0], ChannelClosed)


def test_closing_the_end_that_waits():
    """close() in one thread frees another that waits on the very same end."""
    recv, send = create_channel()
    with in_thread(recv.recv) as outcome:
        time.sleep(0.05)
        recv.close()
    assert isinstance(outcome[0], ChannelClosed)
    assert not send.closed


def test_context_managers():
    recv, send = create_channel()
    with recv as entered_recv, send as entered_send:
        assert entered_recv is recv and entered_send is send
        send.send(1)
        assert recv.recv() == 1
    assert recv.closed and send.closed


def test_iteration():
    recv, send = create_channel()
    for n in range(5):
        send.send(n)
    send.close()
    assert list(recv) == [0, 1, 2, 3, 4]
    assert list(recv) == []


def test_iteration_waits():
    recv, send = create_channel()
    with in_thread(list, recv) as outcome:
        for n in range(5):
            time.sleep(0.01)
            send.send(n)
        send.close()
    assert outcome == [[0, 1, 2, 3, 4]]


def test_dropped_channel_with_messages():
    _recv, send = create_channel()
    for _ in range(10):
        send.send(bytes(100_000))
    send.send([create_channel() for _ in range(3)])
    # The fixture looks for messages and channels that are left.


def test_repr():
    recv, send = create_channel()
    assert "RecvChannel" in repr(recv) and "SendChannel" in repr(send)
    recv.close()
    assert "closed" in repr(recv)


def test_ends_are_weakly_referable_and_hashable():
    recv, send = create_channel()
    assert len({recv, send}) == 2
    gone = weakref.ref(recv)
    del recv
    gc.collect()
    assert gone() is None


# Between interpreters -------------------------------------------------------------------------


def test_send_from_a_worker(pool):
    recv, send = create_channel()
    future = pool.submit(send_all, send, [1, "two", [3], Point(4, 4)])
    assert [recv.recv(LONG) for _ in range(4)] == [1, "two", [3], Point(4, 4)]
    assert future.result(LONG) == 4


def test_receive_in_a_worker(pool):
    recv, send = create_channel()
    future = pool.submit(receive_all, recv)
    for n in range(100):
        send.send(n)
    send.close()
    assert future.result(LONG) == list(range(100))


def test_echo(pool):
    to_recv, to_send = create_channel()
    from_recv, from_send = create_channel()
    future = pool.submit(echo, to_recv, from_send)
    to_recv.close()
    from_send.close()
    for n in range(500):
        to_send.send(n)
        assert from_recv.recv(LONG) == n
    to_send.close()
    assert future.result(LONG) == 500
    with pytest.raises(ChannelClosed):
        from_recv.recv(LONG)


def test_worker_to_worker(pool):
    recv, send = create_channel(10)
    result = pool.submit(receive_all, recv)
    pool.submit(send_range, send, 0, 5000)
    recv.close()
    send.close()
    assert result.result(LONG) == list(range(5000))


def test_many_to_many():
    recv, send = create_channel(100)
    with subinterp.InterpreterPool(6) as pool:
        receivers = [pool.submit(receive_all, recv) for _ in range(3)]
        senders = [pool.submit(send_range, send, n * 10_000, n * 10_000 + 2000) for n in range(3)]
        send.close()
        recv.close()
        assert [future.result(LONG) for future in senders] == [2000] * 3
        parts = [future.result(LONG) for future in receivers]
    expected = [n * 10_000 + k for n in range(3) for k in range(2000)]
    assert sorted(item for part in parts for item in part) == expected
    for part in parts:  # each receiver sees each sender's messages in their order
        for n in range(3):
            mine = [item for item in part if item // 10_000 == n]
            assert mine == sorted(mine)


def test_message_survives_its_sender():
    with subinterp.InterpreterPool(1) as pool:
        recv, send = create_channel()
        call(pool, send_all, send, ["text", b"x" * 100_000, {"k": [1, 2]}, Point(1, 2)])
        send.close()
    del pool
    gc.collect()
    assert list(recv) == ["text", b"x" * 100_000, {"k": [1, 2]}, Point(1, 2)]


def test_message_with_a_buffer_survives_its_sender():
    def work(send):
        from subinterp import SharedBuffer

        buf = SharedBuffer(1000)
        memoryview(buf)[7] = 7
        send.send([buf, bytearray(b"y" * 200_000)])

    with subinterp.InterpreterPool(1) as pool:
        recv, send = create_channel()
        call(pool, work, send)
    buf, data = recv.recv(LONG)
    assert memoryview(buf)[7] == 7 and data == b"y" * 200_000


# Handles are counted per interpreter ------------------------------------------------------------


def test_end_kept_by_a_worker_holds_the_channel_open(pool1):
    recv, send = create_channel()
    call(pool1, keep, send)
    send.close()
    with pytest.raises(RecvTimeout):
        recv.recv(timeout=0.1)
    call(pool1, _work.drop_kept)
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_worker_that_ends_gives_up_its_ends():
    recv, send = create_channel()
    with subinterp.InterpreterPool(1) as pool:
        call(pool, keep, send)
        send.close()
        with pytest.raises(RecvTimeout):
            recv.recv(timeout=0.1)
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_worker_that_ends_gives_up_its_receiver():
    recv, send = create_channel()
    with subinterp.InterpreterPool(1) as pool:
        call(pool, keep, recv)
        recv.close()
        send.send(1)
    with pytest.raises(ChannelClosed):
        for _ in range(10):
            send.send(1)


def test_end_closed_in_a_worker_leaves_ours_open(pool):
    recv, send = create_channel()
    call(pool, close_end, send)
    call(pool, drop_end, recv)
    send.send(1)
    assert recv.recv() == 1


def test_end_dropped_in_a_worker(pool):
    recv, send = create_channel()
    future = pool.submit(drop_end, send)
    send.close()
    future.result(LONG)
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_end_returned_from_a_worker(pool):
    recv, send = create_channel()
    again = call(pool, identity, send)
    send.close()
    again.send("by the copy")
    assert recv.recv() == "by the copy"
    again.close()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_channel_made_in_a_worker():
    def make():
        from subinterp import create_channel

        recv, send = create_channel()
        send.send("from the maker")
        return recv, send

    with subinterp.InterpreterPool(1) as pool:
        recv, send = call(pool, make)
    assert recv.recv(LONG) == "from the maker"
    send.send(2)
    assert recv.recv(LONG) == 2


def test_ends_in_messages():
    recv, send = create_channel()
    inner_recv, inner_send = create_channel()
    send.send(["take this", {"end": inner_send}])
    inner_send.close()
    with pytest.raises(RecvTimeout):  # the message holds it open
        inner_recv.recv(timeout=0.05)
    got = recv.recv()[1]["end"]
    got.send("through")
    assert inner_recv.recv() == "through"
    got.close()
    with pytest.raises(ChannelClosed):
        inner_recv.recv(timeout=LONG)


def test_ends_in_dropped_messages():
    """A message that nobody receives gives up what it carries."""
    recv, send = create_channel()
    inner_recv, inner_send = create_channel()
    send.send([inner_send])
    inner_send.close()
    with pytest.raises(RecvTimeout):
        inner_recv.recv(timeout=0.05)
    recv.close()
    send.close()
    with pytest.raises(ChannelClosed):
        inner_recv.recv(timeout=LONG)


def test_ends_in_messages_in_dropped_messages():
    recv, send = create_channel()
    middle_recv, middle_send = create_channel()
    inner_recv, inner_send = create_channel()
    middle_send.send(inner_send)
    send.send(middle_recv)
    inner_send.close()
    middle_recv.close()
    with pytest.raises(RecvTimeout):
        inner_recv.recv(timeout=0.05)
    recv.close()
    with pytest.raises(ChannelClosed):
        inner_recv.recv(timeout=LONG)
    with pytest.raises(ChannelClosed):
        middle_send.send(1)


@pytest.mark.leaks("objects")
def test_channel_that_carries_its_own_end():
    """Counting cannot see that nobody is left but the channel itself; nothing worse happens."""
    recv, send = create_channel()
    send.send(recv)
    recv.close()
    with contextlib.suppress(ChannelClosed):
        send.send("is anybody there")
    send.close()


def test_ends_in_a_cancelled_task(pool1, flag):
    gate, started = flag(), flag()
    running = pool1.submit(pass_gate, gate, None, started)
    assert started.wait(LONG)
    recv, send = create_channel()
    future = pool1.submit(drop_end, send)
    send.close()
    with pytest.raises(RecvTimeout):
        recv.recv(timeout=0.05)
    assert future.cancel()
    del future
    gate.set()
    running.result(LONG)
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_ends_in_an_unread_result(pool):
    recv, send = create_channel()
    future = pool.submit(identity, send)
    send.close()
    wait_until(future.done)
    with pytest.raises(RecvTimeout):
        recv.recv(timeout=0.05)
    del future
    gc.collect()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_ends_in_arguments_that_cannot_be_loaded(pool):
    recv, send = create_channel()
    error = pool.submit(identity, [send, _work.BadLoad()]).exception(LONG)
    assert error is not None
    del error
    send.close()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_ends_in_an_exception(pool):
    def work(send):
        raise _work.PlainError(send)

    recv, send = create_channel()
    error = pool.submit(work, send).exception(LONG)
    send.close()
    assert type(error) is _work.PlainError
    error.args[0].send("from the error")
    assert recv.recv(LONG) == "from the error"
    error.args[0].close()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_ends_in_a_closure(pool):
    recv, send = create_channel()

    def work(n):
        send.send(n)

    list(pool.map(work, range(10)))
    assert sorted(recv.recv(LONG) for _ in range(10)) == list(range(10))


def test_same_end_twice_in_one_message(pool):
    recv, send = create_channel()
    back = call(pool, identity, [send, send])
    assert back[0] is back[1]
    send.close()
    back[0].close()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_a_pickle_carries_no_handle():
    """Pickled data may be loaded never or many times: it holds nothing open."""
    recv, send = create_channel()
    try:
        data = pickle.dumps(send)
    except (TypeError, pickle.PicklingError):
        return  # refused: as good
    pickle.loads(data).send("by a loaded end")
    assert recv.recv() == "by a loaded end"
    send.close()
    gc.collect()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)
    with pytest.raises((ChannelError, pickle.UnpicklingError, ValueError)):
        pickle.loads(data).send("too late")


def test_abandoned_interpreter_gives_up_its_ends():
    run_script(
        """
        import threading, time
        from subinterp import InterpreterPool, create_channel, ChannelClosed

        def linger(send):
            import threading, time
            send.send("started")
            threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
            import builtins
            builtins.kept = send

        recv, send = create_channel()
        pool = InterpreterPool(1)
        pool.submit(linger, send).result(60)
        send.close()
        assert recv.recv(timeout=60) == "started"
        pool.shutdown()
        try:
            recv.recv(timeout=60)
        except ChannelClosed:
            print("closed")
        """
    ).check()


# Interpreters of the standard library ------------------------------------------------------------


def run_in_standard_interpreter(source, **ends):
    """Run code in an interpreter made by `_interpreters`, with ends in its __main__.

    They go the way that `concurrent.interpreters` takes for all objects which are
    not shareable by themselves: as a pickle, made here and loaded there.
    """
    interp = _interpreters.create()
    try:
        data = pickle.dumps(ends)
        _interpreters.set___main___attrs(interp, {"data": data, "path": repr(sys.path)})
        prepare = "import sys; sys.path[:] = eval(path); import pickle\n"
        prepare += "globals().update(pickle.loads(data))\n"
        error = _interpreters.exec(interp, prepare + source)
        assert error is None, error
    finally:
        _interpreters.destroy(interp)


def test_ends_into_a_standard_interpreter():
    recv, send = create_channel()
    back_recv, back_send = create_channel()
    send.send([1, 2])
    run_in_standard_interpreter(
        "item = recv.recv(timeout=60)\nback.send(['got', item])\ndel recv, back\n",
        recv=recv,
        back=back_send,
    )
    assert back_recv.recv(timeout=LONG) == ["got", [1, 2]]
    back_send.close()
    with pytest.raises(ChannelClosed):
        back_recv.recv(timeout=LONG)


def test_standard_interpreter_that_ends_gives_up_its_ends():
    recv, send = create_channel()
    run_in_standard_interpreter("send.send('kept')\n", send=send)
    send.close()
    assert recv.recv(timeout=LONG) == "kept"
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


def test_message_between_standard_interpreters():
    recv, send = create_channel()
    run_in_standard_interpreter("send.send({'from': 1})\n", send=send)
    run_in_standard_interpreter(
        "item = recv.recv(timeout=60)\nassert item == {'from': 1}, item\n", recv=recv
    )
    assert len(recv) == 0


def test_ends_through_the_call_of_a_standard_interpreter():
    concurrent_interpreters = pytest.importorskip(
        "concurrent.interpreters", reason="concurrent.interpreters came with Python 3.14"
    )
    recv, send = create_channel()
    back_recv, back_send = create_channel()
    interp = concurrent_interpreters.create()
    try:
        interp.exec(f"import sys; sys.path[:] = {sys.path!r}")
        interp.call(send_all, send, ["through call", [1]])
        assert recv.recv(timeout=LONG) == "through call"
        assert recv.recv(timeout=LONG) == [1]
        send.send("a")
        send.send("b")
        send.close()
        assert interp.call(echo, recv, back_send) == 2
        assert back_recv.recv(timeout=LONG) == "a"
        again = interp.call(identity, back_recv)
        assert again.recv(timeout=LONG) == "b"
    finally:
        interp.close()
    back_send.close()
    with pytest.raises(ChannelClosed):
        back_recv.recv(timeout=LONG)


def test_ends_through_a_queue_of_the_standard_library():
    concurrent_interpreters = pytest.importorskip(
        "concurrent.interpreters", reason="concurrent.interpreters came with Python 3.14"
    )
    queue = concurrent_interpreters.create_queue()
    recv, send = create_channel()
    queue.put(send)
    queue.get().send("through a queue")
    assert recv.recv(timeout=LONG) == "through a queue"


def test_ends_through_our_interpreters():
    interp = subinterp.interpreters.create()
    recv, send = create_channel()
    try:
        interp.call(send_all, send, [1, 2])
        interp.prepare_main(end=send)
        send.close()
        assert [recv.recv(LONG), recv.recv(LONG)] == [1, 2]
        interp.exec("end.send(3)")
        assert recv.recv(LONG) == 3
    finally:
        interp.close()
    with pytest.raises(ChannelClosed):
        recv.recv(timeout=LONG)


# select ----------------------------------------------------------------------------------------


def test_select_ready():
    one, send_one = create_channel()
    two, send_two = create_channel()
    send_two.send("two")
    assert select(one, two) == (two, "two")
    send_one.send("one")
    channel, obj = select(one, two, timeout=5)
    assert channel is one and obj == "one"


def test_select_waits(pool):
    channels = [create_channel() for _ in range(5)]
    receivers = [recv for recv, _ in channels]
    for n in (3, 0, 4):
        with in_thread(select, *receivers) as outcome:
            time.sleep(0.02)
            assert outcome == []
            call(pool, send_all, channels[n][1], [n])
        assert outcome == [(receivers[n], n)]


@pytest.mark.parametrize("timeout", [0, 0.001, 0.0105, 0.1])
def test_select_timeout(timeout):
    one, send_one = create_channel()
    two, send_two = create_channel()
    started = time.monotonic()
    with pytest.raises(RecvTimeout):
        select(one, two, timeout=timeout)
    assert time.monotonic() - started >= timeout * 0.99
    send_one.send(1)
    assert select(one, two, timeout=timeout) == (one, 1)
    del send_two


def test_select_takes_one_message_only():
    one, send_one = create_channel()
    two, send_two = create_channel()
    send_one.send(1)
    send_two.send(2)
    taken = {select(one, two)[1], select(one, two)[1]}
    assert taken == {1, 2}
    with pytest.raises(RecvTimeout):
        select(one, two, timeout=0)


def test_select_is_fair():
    """A channel that is always ready does not starve the other."""
    one, send_one = create_channel()
    two, send_two = create_channel()
    for n in range(1000):
        send_one.send(n)
        send_two.send(n)
    seen = [select(one, two)[0] for _ in range(1000)]
    assert 0 < seen.count(one) < 1000


def test_select_with_closed_channels():
    one, send_one = create_channel()
    two, send_two = create_channel()
    send_one.send("last")
    send_one.close()
    assert select(one, two) == (one, "last")
    # One channel is over: that is an answer, as it is for recv.
    with pytest.raises(ChannelClosed):
        select(one, timeout=LONG)
    send_two.close()
    with pytest.raises(ChannelClosed):
        select(one, two, timeout=LONG)


def test_select_goes_on_while_one_is_open():
    one, send_one = create_channel()
    two, send_two = create_channel()
    send_one.close()
    send_two.send(2)
    assert select(one, two, timeout=LONG) == (two, 2)


def test_select_is_woken_by_the_last_close():
    one, send_one = create_channel()
    two, send_two = create_channel()
    with in_thread(select, one, two) as outcome:
        time.sleep(0.05)
        send_one.close()
        send_two.close()
    assert isinstance(outcome[0], ChannelClosed)


def test_select_wrong_arguments():
    recv, send = create_channel()
    with pytest.raises((TypeError, ValueError)):
        select()
    with pytest.raises(TypeError):
        select(send)
    with pytest.raises(TypeError):
        select(recv, 5)


def test_select_same_channel_twice():
    recv, send = create_channel()
    send.send(1)
    assert select(recv, recv) == (recv, 1)


def test_selects_race_for_messages():
    """Many selecting threads: each message goes to exactly one."""
    channels = [create_channel() for _ in range(3)]
    receivers = [recv for recv, _ in channels]
    seen = []

    def consume():
        while True:
            try:
                seen.append(select(*receivers, timeout=LONG)[1])
            except ChannelClosed:
                return

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(in_thread(consume))
        for n in range(3000):
            channels[n % 3][1].send(n)
        for _, send in channels:
            send.close()
    assert sorted(seen) == list(range(3000))


def test_select_and_recv_race():
    one, send_one = create_channel()
    two, send_two = create_channel()
    seen = []

    def consume_select():
        with contextlib.suppress(ChannelClosed):
            while True:
                seen.append(select(one, two)[1])

    with in_thread(consume_select), in_thread(lambda: seen.extend(one)):
        for n in range(2000):
            (send_one, send_two)[n % 2].send(n)
        send_one.close()
        send_two.close()
    assert sorted(seen) == list(range(2000))


# asyncio ---------------------------------------------------------------------------------------


def test_recv_async(pool):
    async def main():
        recv, send = create_channel()
        send.send("ready")
        assert await recv.recv_async() == "ready"
        waiting = asyncio.ensure_future(recv.recv_async())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        pool.submit(send_all, send, ["woken"])
        assert await asyncio.wait_for(waiting, LONG) == "woken"
        send.close()
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(recv.recv_async(), LONG)

    asyncio.run(main())


def test_async_for(pool):
    async def main():
        recv, send = create_channel(10)
        future = pool.submit(send_range, send, 0, 1000)
        send.close()
        seen = [item async for item in recv]
        assert seen == list(range(1000))
        future.result(LONG)

    asyncio.run(main())


def test_async_recv_does_not_block_the_loop():
    async def main():
        recv, send = create_channel()
        waiting = asyncio.ensure_future(recv.recv_async())
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        send.send(1)
        assert await asyncio.wait_for(waiting, LONG) == 1

    asyncio.run(main())


def test_async_recv_cancelled():
    async def main():
        recv, send = create_channel()
        for _ in range(10):
            waiting = asyncio.ensure_future(recv.recv_async())
            await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        # A cancelled receiver has taken nothing.
        for n in range(10):
            send.send(n)
        assert [await recv.recv_async() for _ in range(10)] == list(range(10))

    asyncio.run(main())


def test_async_cancel_races_with_a_message():
    """Whatever wins, the message is received or still there."""

    async def main():
        recv, send = create_channel()
        for n in range(200):
            waiting = asyncio.ensure_future(recv.recv_async())
            await asyncio.sleep(0)
            send.send(n)
            if n % 2:
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                got = await waiting
            except asyncio.CancelledError:
                got = await asyncio.wait_for(recv.recv_async(), LONG)
            assert got == n

    asyncio.run(main())


def test_async_timeout():
    async def main():
        recv, send = create_channel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(recv.recv_async(), 0.05)
        send.send(1)
        assert await recv.recv_async() == 1

    asyncio.run(main())


def test_many_async_receivers():
    async def main():
        recv, send = create_channel()
        waiting = [asyncio.ensure_future(recv.recv_async()) for _ in range(50)]
        await asyncio.sleep(0.01)
        for n in range(50):
            send.send(n)
        got = await asyncio.wait_for(asyncio.gather(*waiting), LONG)
        assert sorted(got) == list(range(50))

    asyncio.run(main())


def test_async_echo(pool):
    async def main():
        to_recv, to_send = create_channel()
        from_recv, from_send = create_channel()
        future = pool.submit(echo, to_recv, from_send)
        from_send.close()
        for n in range(200):
            to_send.send(n)
            assert await asyncio.wait_for(from_recv.recv_async(), LONG) == n
        to_send.close()
        assert await asyncio.wrap_future(future) == 200

    asyncio.run(main())


def test_async_in_a_worker(pool):
    def work(recv, send):
        import asyncio

        async def main():
            async for item in recv:
                send.send(item * 2)

        asyncio.run(main())
        send.close()
        return "done"

    to_recv, to_send = create_channel()
    from_recv, from_send = create_channel()
    future = pool.submit(work, to_recv, from_send)
    from_send.close()
    for n in range(50):
        to_send.send(n)
    to_send.close()
    assert list(from_recv) == [2 * n for n in range(50)]
    assert future.result(LONG) == "done"


def test_loop_that_ends_while_a_receiver_waits():
    recv, send = create_channel()

    async def main():
        asyncio.ensure_future(recv.recv_async())  # noqa: RUF006 - ends with its loop
        await asyncio.sleep(0.01)

    asyncio.run(main())
    send.send(1)
    assert recv.recv(timeout=LONG) == 1


# Waits that end in other ways ------------------------------------------------------------------


def test_receiver_in_a_worker_learns_of_the_close(pool):
    recv, send = create_channel()
    future = pool.submit(receive_name, recv)
    time.sleep(0.05)
    send.close()
    assert future.result(LONG) == ("ChannelClosed", None)


def test_receiver_in_a_worker_times_out(pool):
    recv, send = create_channel()
    assert call(pool, receive_name, recv, 0.05) == ("RecvTimeout", None)
    send.send(5)
    assert call(pool, receive_one, recv) == 5


def test_exceptions_of_channels_travel(pool):
    recv, send = create_channel()
    with pytest.raises(RecvTimeout):
        call(pool, receive_one, recv, 0.01)
    send.close()
    with pytest.raises(ChannelClosed):
        call(pool, receive_one, recv)


def test_worker_that_waits_leaves_others_alone(pool):
    recv, send = create_channel()
    future = pool.submit(receive_one, recv)
    here = interpreter_id()
    for _ in range(20):
        assert call(pool, interpreter_id) != here
    send.send("end")
    assert future.result(LONG) == "end"


def test_round_trips_in_threads():

    to_recv, to_send = create_channel(1)
    from_recv, from_send = create_channel(1)
    with in_thread(echo, to_recv, from_send) as outcome:
        for n in range(1000):
            to_send.send(n, timeout=LONG)
            assert from_recv.recv(timeout=LONG) == n
        to_send.close()
    assert outcome == [1000]


# Coroutines that will never look ------------------------------------------------------------

ABANDONED_WAIT = """
    import asyncio, builtins, os, sys, threading, time
    import subinterp
    from subinterp import interpreters

    def wait_and_leave(recv, close=False):
        import asyncio, builtins

        loop = asyncio.new_event_loop()

        async def step():
            task = asyncio.ensure_future(recv.recv_async())
            for _ in range(5):
                await asyncio.sleep(0)
            assert not task.done()
            return task

        builtins.kept = loop.run_until_complete(step()), loop, recv
        if close:
            loop.close()

    if __name__ == "__main__":
        recv, send = subinterp.create_channel()
        mode = sys.argv[1]
        if mode == "pool":
            with subinterp.InterpreterPool(1) as pool:
                pool.submit(wait_and_leave, recv).result()
        elif mode == "interpreter":
            interp = interpreters.create()
            interp.call(wait_and_leave, recv)
            interp.close()
        else:
            wait_and_leave(recv, close=True)

        got = []
        thread = threading.Thread(target=lambda: got.append(recv.recv()), daemon=True)
        thread.start()
        time.sleep(0.3)  # so that it waits, behind the coroutine
        send.send("hello")
        thread.join(20)
        print(got, recv.qsize(), flush=True)
        os._exit(0)  # a pending task would be complained about
"""


@pytest.mark.parametrize("mode", ["pool", "interpreter", "loop"])
def test_coroutine_that_is_gone_does_not_keep_the_message(mode):
    """Its interpreter has ended or its loop is closed: the next receiver is told."""
    result = run_script(ABANDONED_WAIT, args=[mode]).check()
    assert result.stdout == "['hello'] 0\n", result

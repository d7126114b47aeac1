"""subinterp.pep554: interpreters and channels as PEP 554 proposed them."""

from __future__ import annotations

import pickle
import threading
import time
import traceback

import pytest

from _support import fresh_interpreter, run_script, wait_until
from subinterp import SharedBuffer, interpreters, pep554

LONG = 60


@pytest.fixture
def interp():
    with fresh_interpreter(pep554) as interp:
        yield interp


@pytest.fixture
def ends():
    return pep554.create_channel()


def later(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


# Interpreters ---------------------------------------------------------------------------


def test_interpreters(interp):
    main = pep554.get_main()
    assert main is pep554.get_current() and main.id == 0 and main.is_running()
    assert main in pep554.list_all() and interp in pep554.list_all()
    assert pep554.Interpreter(interp.id) is interp
    assert pickle.loads(pickle.dumps(interp)) is interp
    assert not interp.is_running()
    assert interp != main and len({interp, main, pep554.get_main()}) == 2
    with pytest.raises(AttributeError):
        interp.id = 5


def test_run_and_bind(interp):
    interp.bind({"a": 1}, b=[2])
    interp.bind([("c", "three")])
    interp.run("""
        total = a + b[0]
    """)
    interp.run("assert total == 3 and c == 'three'")


def test_run_failure(interp):
    with pytest.raises(pep554.RunFailedError, match="KeyError") as caught:
        interp.run("def f():\n    raise KeyError('k')\nf()")
    surrogate = caught.value.__cause__
    assert type(surrogate) is KeyError and surrogate.args == ("k",)
    text = "".join(traceback.format_exception(caught.value))
    assert "in f" in text and "KeyError: 'k'" in text
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value.snapshot, traceback.TracebackException)
    assert "KeyError" in "".join(caught.value.snapshot.format())
    with pytest.raises(KeyError):
        raise caught.value.__cause__


def test_run_is_for_text(interp):
    with pytest.raises(pep554.RunFailedError, match="SyntaxError") as caught:
        interp.run("def (")
    assert isinstance(caught.value.__cause__, SyntaxError)
    for source in (None, 5, print, compile("1", "", "exec")):
        with pytest.raises(TypeError):
            interp.run(source)


def test_errors_of_running_and_closing(interp):
    recv, send = pep554.create_channel()
    recv2, send2 = pep554.create_channel()
    interp.bind(recv=recv2, send=send)
    thread = later(lambda: interp.run("send.send_nowait(1); recv.recv()"))
    recv.recv(LONG)
    assert interp.is_running()
    for call in (interp.close, lambda: interp.run("1"), lambda: interp.bind(a=1)):
        with pytest.raises(RuntimeError, match="running"):
            call()
    send2.send(None, LONG)
    thread.join(LONG)
    for other in (pep554.get_main(), pep554.get_current()):
        with pytest.raises(RuntimeError):
            other.close()
    interp.close()
    for call in (
        interp.close,
        lambda: interp.run("1"),
        lambda: interp.bind(a=1),
        interp.is_running,
    ):
        with pytest.raises(pep554.InterpreterNotFoundError):
            call()
    with pytest.raises(pep554.InterpreterNotFoundError):
        pep554.Interpreter(10**9)


def test_unshareable(interp, ends):
    _, send = ends
    for call in (
        lambda: interp.bind(a=threading.Lock()),
        lambda: send.send(threading.Lock()),
        lambda: send.send_nowait([threading.Lock()]),
    ):
        with pytest.raises(ValueError, match="lock"):
            call()
    with pytest.raises(ValueError, match="at least one"):
        interp.bind()


def test_is_shareable(ends):
    assert all(map(pep554.is_shareable, (*ends, ends, None, 5, memoryview(b"x"))))
    assert not pep554.is_shareable([])


# Channels ---------------------------------------------------------------------------------


def test_send_waits_until_received(ends):
    recv, send = ends
    events = []

    def work():
        send.send("object")
        events.append("sent")

    thread = later(work)
    wait_until(lambda: recv._end.qsize() == 1)
    assert thread.is_alive() and not events
    assert recv.recv() == "object"
    thread.join(LONG)
    assert events == ["sent"]


def test_send_timeout_takes_the_object_back(ends):
    recv, send = ends
    send.send_nowait(1)
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        send.send(2, timeout=0.1)
    assert time.monotonic() - begin >= 0.1
    send.send_nowait(3)
    assert [recv.recv(), recv.recv()] == [1, 3]
    assert recv.recv_nowait() is None
    with pytest.raises(TimeoutError):
        send.send(4, timeout=0)
    assert recv.recv_nowait("nothing") == "nothing"


def test_send_and_receive_race_at_the_deadline(ends):
    """An object arrives, or its sender is told that it did not; never both, never neither."""
    recv, send = ends
    received, sent = [], []

    def receive():
        for _ in range(200):
            item = recv.recv(LONG)
            received.append(item)

    thread = later(receive)
    n = 0
    while thread.is_alive():
        n += 1
        try:
            send.send(n, timeout=0.0001)
        except TimeoutError:
            continue
        except pep554.ChannelClosedError:
            break
        sent.append(n)
    thread.join(LONG)
    assert sent[:200] == received


def test_send_nowait_tells_of_a_receiver(ends):
    recv, send = ends
    assert send.send_nowait(1) is False
    assert recv.recv() == 1
    got = []
    thread = later(lambda: got.append(recv.recv()))
    # It looks for a moment before it sleeps.
    time.sleep(0.3)
    assert send.send_nowait(2) is True
    thread.join(LONG)
    assert got == [2]


def test_recv_timeout(ends):
    recv, _ = ends
    with pytest.raises(TimeoutError):
        recv.recv(timeout=0.05)
    for bad, error in ((-1, ValueError), ("x", TypeError)):
        with pytest.raises(error):
            recv.recv(timeout=bad)


def test_between_interpreters(interp, ends):
    recv, send = ends
    back_recv, back_send = pep554.create_channel()
    interp.bind(recv=recv, back=back_send)
    thread = later(
        lambda: interp.run("""
            while (obj := recv.recv()) is not None:
                back.send(obj)
        """)
    )
    for obj in (1, "text", [1, (2, b"x")], recv):
        send.send(obj, LONG)
        assert back_recv.recv(LONG) == obj
    send.send(None, LONG)
    thread.join(LONG)


def test_closing(ends):
    recv, send = ends
    assert not recv.is_closed and not send.is_closed
    errors = []

    def wait():
        try:
            send.send(1)
        except pep554.ChannelClosedError as error:
            errors.append(error)

    thread = later(wait)
    wait_until(lambda: recv._end.qsize() == 1)
    recv.close()
    thread.join(LONG)
    assert len(errors) == 1
    assert recv.is_closed and send.is_closed
    recv.close()
    for call in (recv.recv, recv.recv_nowait, lambda: send.send(1), lambda: send.send_nowait(1)):
        with pytest.raises(pep554.ChannelClosedError):
            call()


def test_what_is_left_is_received(ends):
    recv, send = ends
    send.send_nowait(1)
    send.close()
    assert recv.recv() == 1
    with pytest.raises(pep554.ChannelClosedError):
        recv.recv()


def test_by_id(ends):
    recv, send = ends
    assert recv.id == send.id and recv != send
    assert pep554.RecvChannel(recv.id) == recv and hash(pep554.RecvChannel(recv.id)) == hash(recv)
    pep554.SendChannel(send.id).send_nowait(5)
    assert pickle.loads(pickle.dumps(recv)).recv() == 5
    queue = interpreters.create_queue()
    for end in (pep554.RecvChannel(10**9), pep554.SendChannel(queue.id)):
        for call in (end.close, lambda end=end: end.is_closed):
            with pytest.raises(pep554.ChannelNotFoundError):
                call()
    for cls in (pep554.RecvChannel, pep554.SendChannel):
        with pytest.raises(TypeError):
            cls("1")
        with pytest.raises(ValueError, match="negative"):
            cls(-1)


def test_send_buffer(ends):
    recv, send = ends
    buf = SharedBuffer(8)
    thread = later(lambda: send.send_buffer(buf))
    view = recv.recv(LONG)
    thread.join(LONG)
    assert isinstance(view, memoryview)
    view[2] = 9
    assert memoryview(buf)[2] == 9
    array = bytearray(b"spam")
    send.send_buffer_nowait(array)
    view = recv.recv()
    array[0] = 0
    assert bytes(view) == b"spam" and not view.readonly


def test_the_end_of_the_sender(interp):
    recv, send = pep554.create_channel(unbounditems=pep554.UNBOUND_ERROR)
    assert send.unbounditems is pep554.UNBOUND_ERROR
    interp.bind(send=send)
    interp.run("send.send_nowait(1)")
    interp.close()
    with pytest.raises(pep554.ItemInterpreterDestroyed):
        recv.recv()
    with pytest.raises(NotImplementedError):
        pep554.create_channel(unbounditems=5)


def test_ctrl_c_takes_the_object_back():
    result = run_script(
        """
        import os, signal, threading
        from subinterp import pep554
        recv, send = pep554.create_channel()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            send.send(1)
        except KeyboardInterrupt:
            print("interrupted", recv.recv_nowait("empty"))
        """
    ).clean()
    assert result.stdout == "interrupted empty\n"

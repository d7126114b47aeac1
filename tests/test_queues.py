"""Queues after PEP 734: what CPython's own tests do not ask for."""

from __future__ import annotations

import copy
import gc
import pickle
import queue as standard_queue
import threading
import time

import pytest

import subinterp
from _support import fresh_interpreter, live_objects, run_script, wait_until
from _work import identity
from subinterp import SharedBuffer, interpreters
from subinterp.interpreters import (
    UNBOUND,
    UNBOUND_ERROR,
    UNBOUND_REMOVE,
    ItemInterpreterDestroyed,
    Queue,
    QueueEmpty,
    QueueError,
    QueueFull,
    QueueNotFoundError,
    create_queue,
)

LONG = 60


@pytest.fixture
def interp():
    with fresh_interpreter(interpreters) as interp:
        yield interp


def echo_until_none(there, back):
    while (item := there.get()) is not None:
        back.put(item)


def put_all(q, items, policy=None):
    for item in items:
        q.put(item, unbounditems=policy)


def test_exceptions():
    assert issubclass(QueueEmpty, QueueError) and issubclass(QueueEmpty, standard_queue.Empty)
    assert issubclass(QueueFull, QueueError) and issubclass(QueueFull, standard_queue.Full)
    assert issubclass(QueueNotFoundError, QueueError) and issubclass(QueueError, RuntimeError)
    assert issubclass(ItemInterpreterDestroyed, QueueError)


def test_round_trips(interp):
    there, back = create_queue(), create_queue(1)
    thread = interp.call_in_thread(echo_until_none, there, back)
    for item in (1, "text", b"x" * 100_000, [1, {"k": (2.5,)}], {1, 2}, (None, True)):
        there.put(item)
        assert back.get(timeout=LONG) == item
    there.put(None)
    thread.join(LONG)
    assert not thread.is_alive()


@pytest.mark.parametrize("timeout", [0.05, 0.3])
def test_fractions_of_a_second(timeout):
    q = create_queue(1)
    begin = time.monotonic()
    with pytest.raises(QueueEmpty):
        q.get(timeout=timeout)
    assert time.monotonic() - begin >= timeout
    q.put(1)
    begin = time.monotonic()
    with pytest.raises(QueueFull):
        q.put(2, timeout=timeout)
    assert time.monotonic() - begin >= timeout
    assert q.get() == 1 and q.empty()


@pytest.mark.parametrize("call", ["put", "get"])
@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-1, ValueError), (-0.001, ValueError), (float("nan"), ValueError), ("1", TypeError)],
)
def test_bad_timeouts(call, timeout, error):
    q = create_queue(1)
    if call == "put":
        q.put(0)
    with pytest.raises(error):
        q.put(1, timeout=timeout) if call == "put" else q.get(timeout=timeout)
    assert q.qsize() == (call == "put")


@pytest.mark.parametrize("id", ["1", 1.0, None, object()])
def test_bad_id_type(id):
    with pytest.raises(TypeError, match="id must be an int"):
        Queue(id)


def test_bad_ids():
    with pytest.raises(ValueError, match="negative"):
        Queue(-1)
    for id in (10**9, 2**63 - 1, 2**63, 2**100):
        with pytest.raises(QueueNotFoundError, match=str(id)):
            Queue(id)


def test_channels_are_no_queues():
    recv, _send = subinterp.create_channel()
    with pytest.raises(QueueNotFoundError):
        Queue(recv.id)


@pytest.mark.parametrize("maxsize", ["1", 1.5, None])
def test_bad_maxsize(maxsize):
    with pytest.raises(TypeError):
        create_queue(maxsize)


@pytest.mark.parametrize("policy", [None, 0, 3, "UNBOUND", object()])
def test_bad_policy(policy):
    with pytest.raises(NotImplementedError, match="unbounditems"):
        create_queue(unbounditems=policy)
    if policy is not None:
        q = create_queue()
        with pytest.raises(NotImplementedError):
            q.put(1, unbounditems=policy)
        with pytest.raises(NotImplementedError):
            q.put_nowait(1, unbounditems=policy)
        assert q.empty()


def test_unshareable():
    q = create_queue()
    for put in (q.put, q.put_nowait):
        with pytest.raises(interpreters.NotShareableError, match=r"obj\[1\]"):
            put([1, threading.Lock()])
        with pytest.raises(TypeError):
            put(threading.Lock())
    assert q.qsize() == 0


def test_one_object_for_a_queue(interp):
    q = create_queue()
    assert Queue(q.id) is q
    assert pickle.loads(pickle.dumps(q)) is q
    assert copy.copy(q) is q and copy.deepcopy(q) is q
    q.put(q)
    assert q.get() is q
    assert interp.call(identity, q) is q
    assert interp.call(identity, [q, q])[1] is q
    assert {q: 1}[Queue(q.id)] == 1
    assert repr(q) == f"Queue({q.id})"


def test_prepare_main_and_id(interp):
    q = create_queue(3, unbounditems=UNBOUND_REMOVE)
    interp.prepare_main(q=q)
    interp.exec(f"""
        from subinterp.interpreters import Queue, UNBOUND_REMOVE
        assert Queue({q.id}) is q
        assert q.maxsize == 3 and q.unbounditems is UNBOUND_REMOVE
        q.put("from there", unbounditems=None)
    """)
    assert q.get() == "from there"


def test_it_lives_as_long_as_somebody_has_it(interp):
    before = live_objects()["channels"]
    q = create_queue()
    id = q.id
    outer = create_queue()
    outer.put(q)
    q.put("kept")
    del q
    gc.collect()
    q = outer.get()
    assert q.id == id and q.get() == "kept"
    interp.prepare_main(q=q)
    del q, outer
    gc.collect()
    assert Queue(id).empty()
    interp.exec("del q")
    gc.collect()
    wait_until(lambda: live_objects()["channels"] == before)
    with pytest.raises(QueueNotFoundError):
        Queue(id)


def test_queues_in_pools(pool):
    q = create_queue()
    pool.submit(put_all, q, range(5)).result(LONG)
    assert [q.get(timeout=LONG) for _ in range(5)] == list(range(5))


def test_shared_memory_stays_shared(interp):
    q, buf = create_queue(), SharedBuffer(4)
    q.put(buf)
    interp.prepare_main(q=q)
    interp.exec("memoryview(q.get())[1] = 7")
    assert memoryview(buf)[1] == 7


# The end of the sender's interpreter ----------------------------------------------------


def test_policies(interp):
    q = create_queue()
    interp.prepare_main(q=q)
    interp.exec("""
        from subinterp.interpreters import UNBOUND, UNBOUND_ERROR, UNBOUND_REMOVE
        for n, policy in enumerate((UNBOUND, UNBOUND_ERROR, UNBOUND_REMOVE, None)):
            q.put(n, unbounditems=policy)
    """)
    q.put("ours")
    interp.close()
    assert q.qsize() == 4
    assert q.get() is UNBOUND
    with pytest.raises(ItemInterpreterDestroyed):
        q.get_nowait()
    assert q.get_nowait() is UNBOUND
    assert q.get() == "ours"


def test_removed_items_make_room(interp):
    q = create_queue(2, unbounditems=UNBOUND_REMOVE)
    interp.call(put_all, q, [1, 2])
    done = []
    threads = [
        threading.Thread(target=lambda n=n: (q.put(n, timeout=LONG), done.append(n)))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    interp.close()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert sorted(done) == [0, 1] == sorted(q.get() for _ in range(2))


def test_forgotten_interpreter():
    """Its items are unbound as soon as the last object that stands for it is gone."""
    q = create_queue(unbounditems=UNBOUND_ERROR)
    interp = interpreters.create()
    interp.call(put_all, q, [1])
    del interp
    gc.collect()
    with pytest.raises(ItemInterpreterDestroyed):
        q.get()


def test_workers_of_pools_are_interpreters_too():
    q = create_queue(unbounditems=UNBOUND)
    with subinterp.InterpreterPool(1) as pool:
        pool.submit(put_all, q, [1, 2]).result(LONG)
        assert q.get() == 1
    assert q.get() is UNBOUND


def test_policies_can_be_sent(interp):
    for policy in (UNBOUND, UNBOUND_ERROR, UNBOUND_REMOVE):
        assert interp.call(identity, policy) is policy
        assert "UNBOUND" in repr(policy)


# Waiting -------------------------------------------------------------------------------------


def test_many_producers_and_consumers():
    q, n = create_queue(3), 300
    made = [interpreters.create() for _ in range(2)]
    received, lock = [], threading.Lock()

    def consume():
        while (item := q.get(timeout=LONG)) is not None:
            with lock:
                received.append(item)

    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for thread in consumers:
        thread.start()
    producers = [
        interp.call_in_thread(put_all, q, list(range(i * n, i * n + n)))
        for i, interp in enumerate(made)
    ]
    for thread in producers:
        thread.join(LONG)
        assert not thread.is_alive()
    for _ in consumers:
        q.put(None)
    for thread in consumers:
        thread.join(LONG)
        assert not thread.is_alive()
    assert sorted(received) == list(range(2 * n))
    for interp in made:
        interp.close()


def test_ctrl_c_ends_a_wait():
    result = run_script(
        """
        import os, signal, threading
        from subinterp.interpreters import create_queue
        q = create_queue(1)
        for wait in (q.get, lambda: (q.put(1), q.put(2))):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                wait()
            except KeyboardInterrupt:
                print("interrupted", q.qsize())
        """
    ).clean()
    assert result.stdout == "interrupted 0\ninterrupted 1\n"


def test_in_the_child_of_a_fork():
    result = run_script(
        """
        import os
        from subinterp import interpreters
        q = interpreters.create_queue()
        q.put(1)
        id = q.id
        pid = os.fork()
        if pid == 0:
            for call in (q.get, q.get_nowait, lambda: q.put(1), lambda: q.put_nowait(1)):
                try:
                    call()
                except interpreters.QueueNotFoundError as error:
                    assert "fork" in str(error), error
                else:
                    os._exit(2)
            own = interpreters.create_queue()
            own.put(5)
            os._exit(0 if own.get() == 5 else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), q.get())
        """
    ).clean()
    assert result.stdout == "0 1\n"


def test_a_wait_in_an_abandoned_interpreter_takes_nothing():
    """What is put later goes to those that are left."""
    result = run_script(
        """
        import time
        from subinterp import InterpreterPool
        from subinterp.interpreters import create_queue
        q, ready = create_queue(), create_queue()

        def hang(q, ready):
            import threading
            def wait():
                q.get()
            for _ in range(3):
                threading.Thread(target=wait).start()
            ready.put(1)
            while True:
                try:
                    while True:
                        time.sleep(0.001)
                except BaseException:
                    pass

        pool = InterpreterPool(1, interrupt_grace=0.1)
        future = pool.submit(hang, q, ready)
        ready.get()
        time.sleep(0.2)
        future.interrupt()
        try:
            future.result()
        except BaseException as error:
            print(type(error).__name__)
        q.put("kept")
        print(q.get(timeout=30))
        pool.shutdown(wait=False)
        """
    ).check()
    assert result.stdout.split() == ["TaskAbandoned", "kept"]

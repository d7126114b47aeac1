"""Tasks that are interrupted, importable by workers: this module imports no test tools."""

import time


def import_what_tasks_need():
    for name in ("queue", "select", "socket", "subprocess", "threading", "subinterp"):
        __import__(name)


def loop():
    while True:
        pass


def loop_in_calls():
    def inner(n):
        return n + 1

    n = 0
    while True:
        n = inner(n)


def sleep():
    time.sleep(1000)


def lock():
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def lock_timed():
    import threading

    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=1000)


def queue_get():
    import queue

    queue.Queue().get()


def queue_get_timed():
    import queue

    queue.Queue().get(timeout=1000)


def simple_queue_get():
    import queue

    queue.SimpleQueue().get()


def event_wait():
    import threading

    threading.Event().wait()


def condition_wait():
    import threading

    condition = threading.Condition()
    with condition:
        condition.wait()


def select():
    import select
    import socket

    a, b = socket.socketpair()
    with a, b:
        select.select([a], [], [])


def socket_recv():
    import socket

    a, b = socket.socketpair()
    with a, b:
        a.recv(1)


def socket_accept():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.accept()


def pipe_read():
    import os

    reading, writing = os.pipe()
    try:
        os.read(reading, 1)
    finally:
        os.close(reading)
        os.close(writing)


def child_process():
    import subprocess
    import sys

    # What run() does after an exception, killing the child and waiting for it, works.
    subprocess.run([sys.executable, "-S", "-c", "import time; time.sleep(1000)"], check=True)


def retries():
    """Swallow what a freed call raises, and block again."""
    import queue

    source = queue.Queue()
    while True:
        try:
            source.get(timeout=1000)
        except queue.Empty:
            continue


def retries_slowly():
    """The same, with a long clean-up before each further try."""
    while True:
        try:
            time.sleep(1000)
        except OSError:
            for n in range(20_000):
                pow(n, 2)


BLOCKED = [
    sleep,
    lock,
    lock_timed,
    queue_get,
    queue_get_timed,
    simple_queue_get,
    event_wait,
    condition_wait,
    select,
    socket_recv,
    socket_accept,
    pipe_read,
    child_process,
    retries,
    retries_slowly,
]


def swallow_in_callbacks(send):
    """Be interrupted where an exception is only reported, never raised any further."""
    import weakref

    class Thing:
        def __del__(self):
            send.send("finalizer")
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                pass

    def callback(ref):
        send.send("callback")
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass

    while True:
        thing = Thing()
        ref = weakref.ref(thing, callback)
        del thing
        send.send(ref() is None)
        time.sleep(0)
        loop()


def blocked_beside_a_thread():
    """Block while another thread of the interpreter runs Python code."""
    import threading

    done = False

    def busy():
        while not done:
            pass

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        time.sleep(1000)
    finally:
        done = True
        thread.join()


def catch(value):
    from subinterp import Interrupt

    try:
        while True:
            pass
    except Interrupt:
        return value


def catch_twice(send):
    from subinterp import Interrupt

    caught = 0
    while caught < 2:
        try:
            send.send(caught)
            while True:
                pass
        except Interrupt:
            caught += 1
    return caught


def convert():
    try:
        while True:
            pass
    except BaseException:
        raise ValueError("converted") from None


def clean_up(send, block):
    """Clean up after an interruption, in steps that block."""
    try:
        time.sleep(1000) if block else loop()
    except BaseException as exc:
        for step in range(5):
            time.sleep(0.02)
            sum(range(1000))
            send.send(step)
        send.send(type(exc).__name__)
        raise


def clean_up_in_many_steps(send, n):
    try:
        time.sleep(1000)
    finally:
        for _ in range(n):
            pass
        send.send("clean")


def ignore_once(stop, item):
    ignore(stop)
    return item


class SlowName:
    """A callable that takes its time to tell its name, and then runs for ever."""

    def __getattr__(self, name):
        if name != "__qualname__":
            raise AttributeError(name)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        return "slow"

    def __call__(self):
        loop()


def ignore(stop, send=None, at=1):
    """Go on until told so, whatever is raised; say when it ignores."""
    while not stop[0]:
        try:
            stop[at] = 1
            if send is not None:
                send.send("begun")
            while not stop[0]:
                time.sleep(0.001)
        except BaseException:
            send = None


def hold_the_lock(steps):
    """Compute in C for a while, with the interpreter's lock held."""
    import itertools

    return sum(itertools.repeat(1, steps))


def receive(recv):
    return recv.recv()


def send_when_full(send):
    while True:
        send.send(0)


def wait_for(pool, fn):
    """Wait for a task of another pool."""
    return pool.submit(fn).result()


def read_map(pool, fn):
    return list(pool.map(fn, [1000]))


def sleep_seconds(seconds):
    time.sleep(seconds)


def own(n, seconds, kind):
    """Return what tells that this task, and no other, was run to its end."""
    until = time.monotonic() + seconds
    if kind == 0:
        while time.monotonic() < until:
            pass
    elif kind == 1:
        time.sleep(seconds)
    elif kind == 2:
        import threading

        event = threading.Event()
        event.wait(seconds)
    else:
        text = []
        while time.monotonic() < until:
            text.append(str(n))
            text = text[-10:]
    return n


def load_core_then_loop():
    import subinterp._core

    while True:
        subinterp._core.usable_cores()


def use_core():
    import subinterp._core

    return subinterp._core.in_worker()


def slow_square(n):
    time.sleep(0.2)
    return n * n


def submit_square(pool, n):
    return pool.submit(slow_square, n).result()


def open_then_square(gate, n):
    gate.set()
    return slow_square(n)


def wait_for_two(gate, pool):
    """Wait for the second of two tasks of the pool that runs this one."""
    first = pool.submit(open_then_square, gate, 6)
    second = pool.submit(slow_square, 7)
    return second.result(), first.result()


def watched(started, stopped):
    """Run until it is interrupted, and say so; gates tell of both."""
    try:
        started.set()
        while True:
            pass
    finally:
        stopped.set()


def watched_after(n, first, started, stopped):
    """Return numbers below `first`, run until interrupted for others."""
    if n < first:
        return n
    return watched(started, stopped)


def await_in_worker(pool, fn, *args):
    """Await a task of a pool in an event loop of this worker."""
    import asyncio

    async def main():
        return await pool.run(fn, *args)

    return asyncio.run(main())

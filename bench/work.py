"""What runs inside the workers: importable, and quick to import."""

import functools
import os
import time
from _thread import get_native_id


def hold(seconds):
    """Keep the worker busy without using a core, and tell which worker it was.

    Parameters
    ----------
    seconds : float
        How long to sleep.

    Returns
    -------
    int
        The native id of the worker's thread, unique on this machine.
    """
    time.sleep(seconds)
    return get_native_id()


def compute(steps):
    """Run pure Python code that needs nothing but a core.

    Parameters
    ----------
    steps : int
        How many times to go through the loop.
    """
    total = 0
    for step in range(steps):
        total = (total * 31 + step) % 1_000_003
    return total


def busy(seconds):
    """Run pure Python code for a time.

    Parameters
    ----------
    seconds : float
        How long.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def read_slowly(seconds):
    """Block in `os.read`, until a timer of the system expires.

    Parameters
    ----------
    seconds : float
        How long.
    """
    timer = os.timerfd_create(time.CLOCK_MONOTONIC)
    try:
        os.timerfd_settime(timer, initial=seconds)
        os.read(timer, 8)
    finally:
        os.close(timer)


def first_and_last(buffer):
    """Read the two outermost bytes of a buffer, without a copy of it."""
    with memoryview(buffer) as view:
        return view[0] + view[-1]


def first_item(array):
    """Read one item of an array."""
    return float(array[0])


def ones(n):
    """Make an array of doubles.

    Parameters
    ----------
    n : int
        How many; they are 8 bytes each.
    """
    import numpy

    return numpy.ones(n)


def prepare(n):
    """Make what `same_ones` returns; long enough for each worker to get one such task."""
    same_ones(n)
    time.sleep(1)


@functools.cache
def same_ones(n):
    """Make such an array once, and return it each time."""
    return ones(n)


def peer(inbox, outbox):
    """Answer messages until one is None.

    An int announces that many further messages, which are only counted; it is
    then sent back. Anything else is sent back at once.

    Parameters
    ----------
    inbox, outbox : channel ends, or queues
        Where messages come from and where answers go.
    """
    receive = inbox.recv if hasattr(inbox, "recv") else inbox.get
    send = outbox.send if hasattr(outbox, "send") else outbox.put
    while (message := receive()) is not None:
        if type(message) is int:
            for _ in range(message):
                receive()
        send(message)


_given = None


def give(*things):
    """Keep what the worker shares with others: see `bench.bench_sync.Guards.things`."""
    global _given
    _given = things


def take_own_lock(worker, count):
    """Take a lock that nobody else wants, and give it back; return how long it took."""
    start, _, locks, _ = _given
    return _take(start, locks[worker], count)


def take_common_lock(worker, count):
    """Take a lock that all workers want, and give it back; return how long it took."""
    start, lock, _, _ = _given
    return _take(start, lock, count)


def _take(start, lock, count):
    start.wait()
    begun = time.perf_counter()
    for _ in range(count):
        with lock:
            pass
    return time.perf_counter() - begun


def count(worker, count):
    """Count with a counter that all workers share; return how long it took."""
    start, lock, _, counter = _given
    start.wait()
    begun = time.perf_counter()
    if hasattr(counter, "add"):
        for _ in range(count):
            counter.add()
    elif hasattr(counter, "value"):
        for _ in range(count):
            with lock:
                counter.value += 1
    else:
        for _ in range(count):
            with lock:
                counter[0] += 1
    return time.perf_counter() - begun

"""What workers do in the tests of locks and the like. Importable in workers."""

from __future__ import annotations

import threading
import time

from subinterp import BrokenLockError

KEPT = []


def hold(lock, held=None, let_go=None):
    """Acquire the lock; release it when told, or keep it."""
    lock.acquire()
    if held is not None:
        held.set()
    if let_go is not None:
        let_go.wait(60)
        lock.release()


def hold_and_keep(lock):
    KEPT.append(lock)
    lock.acquire()


def hold_in_a_daemon(lock, held):
    """Hold the lock in a thread that keeps this interpreter from ending."""

    def run():
        with lock:
            held.set()
            time.sleep(30)

    threading.Thread(target=run, daemon=True).start()
    held.wait(60)


def release(lock):
    lock.release()


def take(lock, *args, **kwargs):
    return lock.acquire(*args, **kwargs)


def take_and_give(lock, times):
    for _ in range(times):
        with lock:
            pass


def try_to_take(lock):
    """Return what came of it, since exceptions travel with their context."""
    try:
        got = lock.acquire(timeout=60)
    except BrokenLockError as error:
        return str(error)
    lock.release()
    return got


def greedy(lock, done, at_work):
    """Hold the lock nearly all the time."""
    with lock:
        at_work.add()
    while not done.is_set():
        with lock:
            pass


def look(lock):
    return lock.locked(), lock.broken


def increment(buffer, lock, times):
    """Not atomic: another thread may come between reading and writing."""
    numbers = memoryview(buffer).cast("q")
    for _ in range(times):
        with lock:
            numbers[0] += 1


def increment_randomly(buffer, lock, times, seed):
    """As `increment`, in all ways of acquiring; return how often it was done."""
    import random

    rng = random.Random(seed)
    numbers = memoryview(buffer).cast("q")
    done = 0
    for _ in range(times):
        way = rng.randrange(4)
        if way == 0:
            got = lock.acquire()
        elif way == 1:
            got = lock.acquire(False)
        elif way == 2:
            got = lock.acquire(timeout=rng.random() * 2e-4)
        else:
            got = lock.acquire(True, timeout=60)
        if got:
            value = numbers[0]
            if rng.randrange(16) == 0:
                time.sleep(1e-5)
            numbers[0] = value + 1
            lock.release()
            done += 1
    return done


def nested(lock, depth):
    if depth == 0:
        return lock._recursion_count()
    with lock:
        return nested(lock, depth - 1)


def count(counter, n, times):
    for _ in range(times):
        counter.add(n)


def count_by_exchange(counter, times):
    for _ in range(times):
        while True:
            value = counter.get()
            if counter.compare_exchange(value, value + 1):
                break


def inside(semaphore, now, most, times):
    """Note in `most` how many are inside at once, at most."""
    for _ in range(times):
        with semaphore:
            n = now.add()
            while True:
                seen = most.get()
                if n <= seen or most.compare_exchange(seen, n):
                    break
            now.sub()


def rounds(barrier, counter, parties, times):
    """Nobody goes on before all have come: the counter tells."""
    for number in range(times):
        counter.add()
        barrier.wait(60)
        if counter.get() < (number + 1) * parties:
            return f"went on early in round {number}"
        barrier.wait(60)
    return None


def arrive(barrier, timeout=None):
    return barrier.wait(timeout)


def wait_in(obj, how, began, timeout=None):
    """Wait for something that does not come; return what came all the same."""
    began.set()
    if how == "acquire":
        return obj.acquire() if timeout is None else obj.acquire(timeout=timeout)
    if how == "with":
        with obj:
            return True
    return obj.wait(timeout)


def hold_and_ignore(lock, held, stop):
    """Hold the lock, and do not stop before one is told so."""
    with lock:
        while not stop.is_set():
            try:
                held.set()
                while not stop.wait(0.001):
                    pass
            except BaseException:
                pass


def hold_and_sleep(lock, held):
    with lock:
        held.set()
        time.sleep(1000)


class IgnoringAction:
    """An action that does not stop before it is told so."""

    def __init__(self, began, stop):
        self.began, self.stop = began, stop

    def __call__(self):
        while not self.stop.is_set():
            try:
                self.began.set()
                while not self.stop.wait(0.001):
                    pass
            except BaseException:
                pass


def broken(barrier):
    import subinterp

    try:
        barrier.wait(60)
    except subinterp.BrokenBarrierError:
        return True
    return False


def wait_for(event, timeout=None):
    return event.wait(timeout)


def told(event, counter):
    counter.add()
    return event.wait(60)


def last_in_a_daemon(barrier, started):
    """Be the last at a barrier whose action does not end."""
    threading.Thread(target=barrier.wait, daemon=True).start()
    started.wait(60)


class ActionStarts:
    """An action that tells when it begins, and goes on."""

    def __init__(self, event):
        self.event = event

    def __call__(self):
        self.event.set()
        time.sleep(30)


def ping_pong(mine, other, times):
    for _ in range(times):
        mine.acquire()
        other.release()


def make_lock():
    from subinterp import Lock

    lock = Lock()
    KEPT.append(lock)
    return lock


def through(obj):
    return obj

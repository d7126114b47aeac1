"""Locks, semaphores, events, barriers, counters: in threads, across interpreters, and broken."""

from __future__ import annotations

import _interpreters
import contextlib
import copy
import ctypes
import gc
import os
import pickle
import random
import signal
import sys
import textwrap
import threading
import time
import weakref

import pytest

import _locks
import subinterp
from _support import (
    MANY_INTERPRETERS,
    frees_blocked_calls,
    in_thread,
    live_objects,
    run_script,
    wait_until,
)
from subinterp import (
    Barrier,
    BoundedSemaphore,
    BrokenBarrierError,
    BrokenLockError,
    Counter,
    Event,
    InterpreterPool,
    Interrupt,
    Lock,
    NotSendableError,
    RLock,
    Semaphore,
    SharedBuffer,
    SyncError,
    TaskAbandoned,
    TaskInterrupted,
    TaskTimeout,
    create_channel,
)

LONG = 60
SCALE = float(os.environ.get("SUBINTERP_STRESS", "1.0"))

LOCKS = [Lock, RLock]
MAKERS = {
    "Lock": Lock,
    "RLock": RLock,
    "Semaphore": lambda: Semaphore(3),
    "BoundedSemaphore": lambda: BoundedSemaphore(3),
    "Event": Event,
    "Barrier": lambda: Barrier(2),
    "Counter": lambda: Counter(3),
}


@pytest.fixture(params=list(MAKERS))
def anything(request):
    return MAKERS[request.param]()


def call(pool, fn, /, *args, **kwargs):
    return pool.submit(fn, *args, **kwargs).result(LONG)


def in_threads(n, fn, *args):
    """Run `fn` in n threads; return their outcomes."""
    outcomes = []
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            outcomes.append(stack.enter_context(in_thread(fn, *args)))
    return [outcome[0] for outcome in outcomes]


def syncs():
    gc.collect()
    return live_objects()["syncs"]


# Lock and RLock in threads of one interpreter ---------------------------------------------------


def test_families_of_the_exceptions():
    assert issubclass(SyncError, subinterp.SubinterpError)
    assert issubclass(BrokenLockError, SyncError)
    assert issubclass(BrokenBarrierError, SyncError)
    assert issubclass(BrokenBarrierError, threading.BrokenBarrierError)
    assert issubclass(SyncError, RuntimeError)


@pytest.mark.parametrize("make", LOCKS)
def test_lock_is_taken_and_given(make):
    lock = make()
    assert not lock.locked()
    assert lock.acquire() is True
    assert lock.locked()
    assert lock.release() is None
    assert not lock.locked() and not lock.broken


@pytest.mark.parametrize("make", LOCKS)
def test_lock_excludes_other_threads(make):
    lock = make()
    lock.acquire()
    assert in_threads(1, lock.acquire, False) == [False]
    assert in_threads(1, lock.acquire, True, 0.01) == [False]
    assert in_threads(1, lock.acquire, True, 0) == [False]
    with in_thread(lambda: lock.acquire() and lock.release()) as outcome:
        time.sleep(0.05)
        assert outcome == []
        lock.release()
    assert outcome == [None]
    assert not lock.locked()


def test_lock_is_not_reentrant():
    lock = Lock()
    lock.acquire()
    assert lock.acquire(False) is False
    assert lock.acquire(timeout=0.01) is False
    lock.release()


@pytest.mark.parametrize("make", LOCKS)
def test_lock_as_a_context_manager(make):
    lock = make()
    with lock as got:
        assert got is True and lock.locked()
    assert not lock.locked()
    with pytest.raises(ZeroDivisionError), lock:
        1 / 0  # noqa: B018
    assert not lock.locked()


@pytest.mark.parametrize(
    ("make", "message"), [(Lock, "release unlocked lock"), (RLock, "un-acquired lock")]
)
def test_release_of_a_free_lock(make, message):
    lock = make()
    with pytest.raises(RuntimeError, match=message):
        lock.release()
    with lock:
        pass
    with pytest.raises(RuntimeError, match=message):
        lock.release()
    assert lock.acquire(False)
    lock.release()


def test_lock_is_released_by_another_thread():
    lock = Lock()
    lock.acquire()
    assert in_threads(1, lock.release) == [None]
    assert lock.acquire(False)
    lock.release()


def test_rlock_is_released_by_its_thread_only():
    lock = RLock()
    with lock:
        (error,) = in_threads(1, lock.release)
        assert isinstance(error, RuntimeError) and "un-acquired" in str(error)
        assert lock.locked()
    assert in_threads(1, lambda: lock.acquire(False) and lock.release()) == [None]


def test_rlock_counts():
    lock = RLock()
    for _ in range(3):
        assert lock.acquire() is True
    assert lock.acquire(False) and lock.acquire(timeout=0)
    assert lock._recursion_count() == 5 and lock._is_owned()
    for _ in range(4):
        lock.release()
        assert in_threads(1, lock.acquire, False) == [False]
    lock.release()
    assert not lock.locked() and not lock._is_owned() and lock._recursion_count() == 0
    assert in_threads(1, lambda: lock.acquire(False) and lock.release()) == [None]


@pytest.mark.parametrize("make", LOCKS)
@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((False, 1), ValueError),
        ((False, 0), ValueError),
        ((True, -2), ValueError),
        ((True, -0.5), ValueError),
        ((True, float("nan")), ValueError),
        ((True, threading.TIMEOUT_MAX * 2), OverflowError),
        ((True, "1"), TypeError),
        ((True, None), TypeError),
        ((True, 1, 2), TypeError),
    ],
)
def test_wrong_arguments_of_acquire(make, args, error):
    lock = make()
    with pytest.raises(error):
        lock.acquire(*args)
    with pytest.raises(TypeError):
        lock.acquire(nonsense=1)
    assert not lock.locked()


@pytest.mark.parametrize("make", LOCKS)
def test_timeouts_of_acquire(make):
    lock = make()
    assert lock.acquire(timeout=threading.TIMEOUT_MAX)
    for timeout in (0, 0.0015, 0.02, 0.1):

        def attempt(timeout=timeout):
            start = time.monotonic()
            return lock.acquire(timeout=timeout), time.monotonic() - start

        ((got, seconds),) = in_threads(1, attempt)
        assert got is False and seconds >= timeout
    assert in_threads(1, lambda: lock.acquire(blocking=False)) == [False]
    lock.release()


def test_timeout_in_the_main_thread():
    """It waits in slices, and more than one."""
    lock = Lock()
    lock.acquire()
    start = time.monotonic()
    assert lock.acquire(timeout=0.23) is False
    assert time.monotonic() - start >= 0.23
    with in_thread(lambda: (time.sleep(0.2), lock.release())):
        assert lock.acquire(timeout=LONG)


def test_waiters_that_give_up_leave_the_lock_usable():
    lock = Lock()
    lock.acquire()
    assert in_threads(8, lock.acquire, True, 0.02) == [False] * 8
    with in_thread(lock.acquire) as outcome:
        lock.release()
    assert outcome == [True]
    lock.release()
    assert not lock.locked()


def test_many_threads_one_lock():
    lock, state = Lock(), [0]

    def work():
        for _ in range(500):
            with lock:
                value = state[0]
                if value % 50 == 0:
                    time.sleep(0)
                state[0] = value + 1

    assert in_threads(8, work) == [None] * 8
    assert state == [4000]


def test_condition_of_the_standard_library():
    """As far as threads of one interpreter go."""
    for lock in (Lock(), RLock(), None):
        condition = threading.Condition(lock)
        ready = []

        def wait(condition=condition, ready=ready):
            with condition:
                return condition.wait_for(lambda: ready, timeout=LONG)

        with in_thread(wait) as outcome, condition:
            ready.append(1)
            condition.notify_all()
        assert outcome == [[1]]


def test_condition_gives_a_nested_rlock_up():
    lock = RLock()
    condition = threading.Condition(lock)

    def notify():
        with condition:
            condition.notify()

    with lock, condition:
        with in_thread(notify) as outcome:
            assert condition.wait(LONG)
        assert lock._recursion_count() == 2
    assert outcome == [None] and not lock.locked()
    with pytest.raises(RuntimeError):
        lock._release_save()


# Who waits is served ----------------------------------------------------------------------------


def test_a_greedy_thread_does_not_keep_others_out():
    """It gives the lock back only to take it again at once, without letting others run."""
    lock, done = Lock(), Event()

    def greedy():
        times = 0
        while not done.is_set():
            with lock:
                times += 1
        return times

    with in_thread(greedy) as outcome:
        for _ in range(20):
            assert lock.acquire(timeout=LONG)
            lock.release()
        done.set()
    assert outcome[0] > 0


def test_greedy_workers_do_not_keep_others_out():
    lock, done, at_work = Lock(), Event(), Counter()
    with InterpreterPool(2) as pool:
        futures = [pool.submit(_locks.greedy, lock, done, at_work) for _ in range(2)]
        wait_until(lambda: at_work.get() == 2)
        for _ in range(50):
            assert lock.acquire(timeout=LONG)
            lock.release()
        done.set()
        for future in futures:
            future.result(LONG)


def test_those_who_wait_long_are_served_in_turn():
    lock, order = Lock(), []
    lock.acquire()

    def take(number):
        with lock:
            order.append(number)
            time.sleep(0.002)

    with contextlib.ExitStack() as stack:
        for number in range(8):
            stack.enter_context(in_thread(take, number))
            time.sleep(0.02)
        lock.release()
    assert order == list(range(8))


@pytest.mark.parametrize("make", LOCKS)
def test_lock_is_given_to_one_that_waits_long(make):
    """Whoever releases it cannot take it again before that one had it."""
    lock, let_go = make(), threading.Event()

    def take():
        with lock:
            assert let_go.wait(LONG)

    lock.acquire()
    with in_thread(take) as outcome:
        # It has left its spin behind, and is listed.
        time.sleep(0.2)
        lock.release()
        assert not lock.acquire(False)
        let_go.set()
    assert outcome == [None]


def test_semaphore_serves_those_who_wait_long_first():
    semaphore, order = Semaphore(0), []

    def take(number):
        semaphore.acquire()
        order.append(number)

    with contextlib.ExitStack() as stack:
        for number in range(20):
            stack.enter_context(in_thread(take, number))
            time.sleep(0.01)
        for number in range(20):
            semaphore.release()
            # It was given away: there is none to be had.
            assert not semaphore.acquire(False)
            wait_until(lambda number=number: len(order) == number + 1)
    assert order == list(range(20))


# Semaphores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Semaphore, BoundedSemaphore])
def test_semaphore_counts(make):
    semaphore = make(2)
    assert semaphore.acquire() is True
    assert semaphore.acquire(timeout=0.5) is True
    assert semaphore.acquire(False) is False
    assert semaphore.acquire(timeout=0.01) is False
    assert semaphore.acquire(timeout=-1) is False
    semaphore.release()
    semaphore.release()
    with semaphore as got:
        assert got is True
        assert semaphore.acquire(blocking=False)
        assert not semaphore.acquire(blocking=False)
        semaphore.release()
    assert semaphore.acquire(False) and semaphore.acquire(False)


def test_semaphore_by_default():
    semaphore = Semaphore()
    assert semaphore.acquire(False) and not semaphore.acquire(False)
    assert Semaphore(value=0).acquire(False) is False


@pytest.mark.parametrize("make", [Semaphore, BoundedSemaphore])
def test_wrong_arguments_of_semaphores(make):
    with pytest.raises(ValueError):
        make(-1)
    with pytest.raises(TypeError):
        make(1.5)
    with pytest.raises(TypeError):
        make("1")
    with pytest.raises(OverflowError):
        make(2**61)
    with pytest.raises(OverflowError):
        make(2**70)
    semaphore = make(1)
    with pytest.raises(ValueError):
        semaphore.acquire(False, 1)
    with pytest.raises(ValueError):
        semaphore.acquire(timeout=float("nan"))
    with pytest.raises(TypeError):
        semaphore.acquire(timeout="1")
    for n in (0, -1):
        with pytest.raises(ValueError):
            semaphore.release(n)
    with pytest.raises(TypeError):
        semaphore.release(1.0)


def test_release_of_many():
    semaphore = Semaphore(0)
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(semaphore.acquire)) for _ in range(40)]
        time.sleep(0.05)
        semaphore.release(n=39)
        wait_until(lambda: sum(len(outcome) for outcome in outcomes) == 39)
        assert not semaphore.acquire(False)
        semaphore.release(3)
    assert outcomes == [[True]] * 40
    assert semaphore.acquire(False) and semaphore.acquire(False)
    assert not semaphore.acquire(False)


def test_bounded_semaphore_is_bounded():
    semaphore = BoundedSemaphore(2)
    with pytest.raises(ValueError, match="too many"):
        semaphore.release()
    semaphore.acquire()
    with pytest.raises(ValueError, match="too many"):
        semaphore.release(2)
    semaphore.release()
    semaphore.acquire()
    semaphore.acquire()
    with in_thread(semaphore.acquire) as outcome:
        time.sleep(0.02)
        with pytest.raises(ValueError, match="too many"):
            semaphore.release(4)
        semaphore.release()
    assert outcome == [True]
    semaphore.release(2)
    none = BoundedSemaphore(0)
    with pytest.raises(ValueError):
        none.release()
    assert isinstance(semaphore, Semaphore)


def test_semaphore_that_would_be_too_large():
    semaphore = Semaphore(2**61 - 1)
    with pytest.raises(OverflowError):
        semaphore.release()
    semaphore.acquire()
    semaphore.release()
    with pytest.raises(OverflowError):
        semaphore.release(2**61 - 1)


# Events -----------------------------------------------------------------------------------------


def test_event():
    event = Event()
    assert event.is_set() is False
    assert event.wait(0) is False and event.wait(0.01) is False and event.wait(-1) is False
    event.set()
    event.set()
    assert event.is_set() is True and event.wait() is True and event.wait(0) is True
    event.clear()
    assert event.is_set() is False and event.wait(0.01) is False
    for wrong in ("1", []):
        with pytest.raises(TypeError):
            event.wait(wrong)


def test_event_wakes_all():
    event, waiting = Event(), Counter()

    def wait():
        waiting.add()
        return event.wait()

    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(wait)) for _ in range(10)]
        wait_until(lambda: waiting.get() == 10)
        time.sleep(0.05)
        assert not any(outcomes)
        event.set()
    assert outcomes == [[True]] * 10


def test_event_that_is_cleared_at_once():
    """Who waited when it was set goes on, as in threading."""
    event = Event()
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(event.wait, LONG)) for _ in range(5)]
        time.sleep(0.1)
        event.set()
        event.clear()
    assert outcomes == [[True]] * 5
    assert not event.is_set()


def test_event_that_is_cleared_at_once_reaches_the_main_thread():
    """Also while it looks at signals, between two slices of its wait."""
    event, done = Event(), Event()

    def pulse():
        time.sleep(0.12)
        event.set()
        event.clear()
        done.set()

    with in_thread(pulse):
        assert event.wait(LONG) is True
        assert done.wait(LONG)


# Barriers ---------------------------------------------------------------------------------------


def test_barrier():
    barrier = Barrier(4)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (4, 0, False)
    for _ in range(5):
        assert sorted(in_threads(4, barrier.wait)) == [0, 1, 2, 3]
        assert barrier.n_waiting == 0
    assert Barrier(1).wait() == 0


def test_barrier_keeps_rounds_apart():
    barrier, counter = Barrier(5), Counter()
    outcomes = in_threads(5, _locks.rounds, barrier, counter, 5, 50)
    assert outcomes == [None] * 5


def test_wrong_arguments_of_barriers():
    for parties in (0, -1):
        with pytest.raises(ValueError):
            Barrier(parties)
    with pytest.raises(TypeError):
        Barrier(1.5)
    with pytest.raises(TypeError):
        Barrier(1, action=5)
    with pytest.raises(TypeError):
        Barrier(1, None, "soon")
    with pytest.raises(TypeError):
        Barrier(1).wait("soon")
    with pytest.raises(TypeError):
        Barrier()


def test_action_of_a_barrier():
    seen = []
    barrier = Barrier(3, lambda: seen.append(barrier.n_waiting))
    assert sorted(in_threads(3, barrier.wait)) == [0, 1, 2]
    assert seen == [3]
    assert sorted(in_threads(3, barrier.wait)) == [0, 1, 2]
    assert seen == [3, 3]


def test_action_that_fails_breaks_the_barrier():
    def fail():
        raise KeyError("from the action")

    barrier = Barrier(3, fail)
    outcomes = in_threads(3, barrier.wait)
    assert sorted(type(outcome) for outcome in outcomes if isinstance(outcome, KeyError)) == [
        KeyError
    ]
    assert sum(isinstance(outcome, BrokenBarrierError) for outcome in outcomes) == 2
    assert barrier.broken
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken


def test_latecomers_wait_while_the_action_runs():
    started, go_on = Event(), Event()

    def act():
        started.set()
        assert go_on.wait(LONG)

    barrier = Barrier(2, act)
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(in_thread(barrier.wait)) for _ in range(2)]
        assert started.wait(LONG)
        later = [stack.enter_context(in_thread(barrier.wait)) for _ in range(2)]
        time.sleep(0.05)
        assert not any(first) and not any(later) and barrier.n_waiting == 2
        go_on.set()
    assert sorted(outcome[0] for outcome in first) == [0, 1]
    assert sorted(outcome[0] for outcome in later) == [0, 1]


def test_timeout_while_the_action_runs_is_not_one():
    """All have come: the barrier will open."""
    barrier = Barrier(2, lambda: time.sleep(0.2))
    with in_thread(barrier.wait, 0.1) as outcome:
        wait_until(lambda: barrier.n_waiting == 1)
        assert barrier.wait() == 1
    assert outcome == [0] and not barrier.broken


def test_latecomer_whose_time_is_up_breaks_the_barrier():
    started, go_on = Event(), Event()

    def act():
        started.set()
        assert go_on.wait(LONG)

    barrier = Barrier(2, act)
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(in_thread(barrier.wait)) for _ in range(2)]
        assert started.wait(LONG)
        with pytest.raises(BrokenBarrierError):
            barrier.wait(0.02)
        go_on.set()
    assert all(isinstance(outcome[0], BrokenBarrierError) for outcome in first)


def test_timeout_breaks_the_barrier():
    barrier = Barrier(3)
    outcomes = in_threads(2, barrier.wait, 0.1)
    assert all(isinstance(outcome, BrokenBarrierError) for outcome in outcomes)
    assert barrier.broken and barrier.n_waiting == 0
    barrier.reset()
    assert sorted(in_threads(3, barrier.wait)) == [0, 1, 2]


def test_timeout_of_the_barrier_itself():
    barrier = Barrier(2, timeout=0.05)
    with pytest.raises(BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    with in_thread(barrier.wait, LONG) as outcome:
        time.sleep(0.1)
        assert barrier.wait() == 1
    assert outcome == [0]
    with pytest.raises(BrokenBarrierError):
        Barrier(2).wait(0)
    with pytest.raises(BrokenBarrierError):
        Barrier(2, timeout=-1).wait()


def test_abort():
    barrier = Barrier(3)
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(barrier.wait)) for _ in range(2)]
        wait_until(lambda: barrier.n_waiting == 2)
        barrier.abort()
    assert all(isinstance(outcome[0], BrokenBarrierError) for outcome in outcomes)
    assert barrier.broken
    with pytest.raises(BrokenBarrierError):
        barrier.wait()


def test_reset():
    barrier = Barrier(3)
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(barrier.wait)) for _ in range(2)]
        wait_until(lambda: barrier.n_waiting == 2)
        barrier.reset()
    assert all(isinstance(outcome[0], BrokenBarrierError) for outcome in outcomes)
    assert not barrier.broken
    assert sorted(in_threads(3, barrier.wait)) == [0, 1, 2]


def test_abort_from_the_action():
    barrier = Barrier(2, lambda: barrier.abort())
    outcomes = in_threads(2, barrier.wait)
    assert all(isinstance(outcome, BrokenBarrierError) for outcome in outcomes)


# Counters ---------------------------------------------------------------------------------------


def test_counter():
    counter = Counter()
    assert counter.get() == 0
    assert counter.add() == 1 and counter.add(10) == 11 and counter.add(-1) == 10
    assert counter.sub() == 9 and counter.sub(10) == -1 and counter.sub(-5) == 4
    assert counter.set(100) is None
    assert counter.exchange(7) == 100 and counter.get() == 7
    assert counter.compare_exchange(7, 8) is True
    assert counter.compare_exchange(7, 9) is False
    assert counter.get() == 8
    assert Counter(-3).get() == -3 and Counter(True).get() == 1
    assert Counter(value=2**63 - 1).get() == 2**63 - 1
    assert Counter(-(2**63)).get() == -(2**63)


def test_counter_does_not_wrap_around():
    counter = Counter(2**63 - 1)
    for operation, n in ((counter.add, 1), (counter.sub, -1), (counter.add, 2**63 - 1)):
        with pytest.raises(OverflowError):
            operation(n)
        assert counter.get() == 2**63 - 1
    assert counter.sub(2**63 - 1) == 0
    counter.set(-(2**63))
    for operation, n in ((counter.sub, 1), (counter.add, -1), (counter.add, -(2**63))):
        with pytest.raises(OverflowError):
            operation(n)
        assert counter.get() == -(2**63)
    assert counter.sub(-(2**63)) == 0


def test_wrong_arguments_of_counters():
    counter = Counter()
    for method in (Counter, counter.add, counter.sub, counter.set, counter.exchange):
        with pytest.raises(OverflowError):
            method(2**63)
        with pytest.raises(OverflowError):
            method(-(2**63) - 1)
        for wrong in (1.5, "1", None):
            with pytest.raises(TypeError):
                method(wrong)
    with pytest.raises(TypeError):
        counter.compare_exchange(0, "1")
    for method in (counter.add, counter.sub):
        with pytest.raises(TypeError):
            method(1, 2)
    with pytest.raises(OverflowError):
        counter.compare_exchange(2**64, 1)
    assert counter.get() == 0


# Objects ----------------------------------------------------------------------------------------


def test_reprs():
    lock, rlock = Lock(), RLock()
    assert repr(lock).startswith("<unlocked subinterp.sync.Lock object at 0x")
    with lock, rlock, rlock:
        assert repr(lock).startswith("<locked subinterp.sync.Lock object at 0x")
        assert "object owner=interpreter 0 count=2 at 0x" in repr(rlock)
    assert repr(rlock).startswith("<unlocked subinterp.sync.RLock object owner=None count=0 at 0x")
    assert repr(Semaphore(3)).endswith(": value=3>")
    bounded = BoundedSemaphore(3)
    bounded.acquire()
    assert repr(bounded).startswith("<subinterp.sync.BoundedSemaphore at 0x")
    assert repr(bounded).endswith(": value=2/3>")
    event = Event()
    assert repr(event).endswith(": unset>")
    event.set()
    assert repr(event).endswith(": set>")
    barrier = Barrier(2)
    assert repr(barrier).endswith(": waiters=0/2>")
    barrier.abort()
    assert repr(barrier).endswith(": broken>")
    assert repr(Counter(-4)).endswith(": value=-4>")


def test_objects(anything):
    """Equal, hashable, weakly referable; copies are the same primitive."""
    other = copy.copy(anything)
    assert other is not anything and other == anything and hash(other) == hash(anything)
    assert type(other) is type(anything) and other.id == anything.id
    assert repr(other) == repr(anything)
    assert copy.deepcopy([anything]) == [anything]
    assert anything != MAKERS[type(anything).__name__]()
    assert anything != 5 and len({anything, other}) == 1
    gone = weakref.ref(other)
    del other
    assert gone() is None


def test_objects_that_were_not_initialised():
    for cls in (Lock, RLock, Semaphore, BoundedSemaphore, Event, Barrier, Counter):
        raw = cls.__new__(cls)
        for use in (repr, hash, pickle.dumps, lambda raw: raw.id):
            with pytest.raises(TypeError, match="not initialised"):
                use(raw)
    for operation in (
        Lock.__new__(Lock).acquire,
        Lock.__new__(Lock).release,
        Semaphore.__new__(Semaphore).acquire,
        Event.__new__(Event).wait,
        Barrier.__new__(Barrier).wait,
        Counter.__new__(Counter).add,
    ):
        with pytest.raises(TypeError, match="not initialised"):
            operation()
    assert Lock.__new__(Lock) != Lock.__new__(Lock)
    lock = Lock()
    with pytest.raises(TypeError, match="before"):
        lock.__init__()


def test_subclasses():
    class Named(Lock):
        def __init__(self, name):
            super().__init__()
            self.name = name

    lock = Named("mine")
    with lock:
        assert lock.locked() and lock.name == "mine"


def test_garbage_is_freed():
    before = syncs()
    things = [make() for make in MAKERS.values() for _ in range(50)]
    assert syncs() == before + len(things)
    copies = [copy.copy(thing) for thing in things]
    assert syncs() == before + len(things)
    things.clear()
    assert syncs() == before + len(copies)
    copies.clear()
    assert syncs() == before


@pytest.mark.parametrize("make", LOCKS)
def test_lock_that_is_dropped_while_it_is_held(make):
    """Nobody could release it, but others may wait for it: it lives on with its interpreter."""
    before = syncs()
    lock = make()
    other = copy.copy(lock)
    lock.acquire()
    del lock
    assert not other._acquire_with(False) or isinstance(other, RLock)
    while other.locked():
        other.release()
    del other
    # What was kept for it is found at the next occasion.
    Lock()
    assert syncs() == before


# Across interpreters ----------------------------------------------------------------------------


def test_everything_travels(pool1, anything):
    """To a worker and back, through channels, in containers and closures: the same one."""
    assert call(pool1, _locks.through, anything) == anything
    assert call(pool1, _locks.through, [{"here": (anything,)}])[0]["here"] == (anything,)
    assert call(pool1, lambda: anything) == anything
    assert call(pool1, lambda x: (type(x).__name__, x.id, repr(x)), anything) == (
        type(anything).__name__,
        anything.id,
        repr(anything),
    )
    recv, send = create_channel()
    send.send(anything)
    assert recv.recv(LONG) == anything
    assert subinterp.interpreters.is_shareable(anything)


def test_lock_across_interpreters(pool1):
    lock, held, let_go = Lock(), Event(), Event()
    future = pool1.submit(_locks.hold, lock, held, let_go)
    assert held.wait(LONG)
    assert lock.locked() and lock.acquire(False) is False and lock.acquire(timeout=0.02) is False
    with in_thread(lock.acquire) as outcome:
        time.sleep(0.02)
        assert outcome == []
        let_go.set()
    assert outcome == [True]
    future.result(LONG)
    assert call(pool1, _locks.take, lock, False) is False
    assert call(pool1, _locks.take, lock, timeout=0.02) is False
    future = pool1.submit(_locks.take, lock)
    time.sleep(0.02)
    lock.release()
    assert future.result(LONG) is True
    # By another interpreter than the one that holds it.
    lock.release()
    assert not lock.locked()


def test_rlock_across_interpreters(pool1):
    lock = RLock()
    assert call(pool1, _locks.nested, lock, 5) == 5
    with lock, lock:
        assert call(pool1, _locks.take, lock, False) is False
        with pytest.raises(RuntimeError, match="un-acquired"):
            call(pool1, _locks.release, lock)
        future = pool1.submit(_locks.nested, lock, 2)
        time.sleep(0.02)
        assert not future.done()
    assert future.result(LONG) == 2


def test_guarded_updates_of_a_shared_buffer(pool):
    buffer, lock = SharedBuffer(8), Lock()
    futures = [pool.submit(_locks.increment, buffer, lock, 100_000) for _ in range(2)]
    for future in futures:
        future.result(LONG)
    assert memoryview(buffer).cast("q")[0] == 200_000


@pytest.mark.parametrize("make", [RLock, lambda: Semaphore(1), lambda: BoundedSemaphore(1)])
def test_guarded_by_something_else(pool, make):
    buffer, lock = SharedBuffer(8), make()
    futures = [pool.submit(_locks.increment, buffer, lock, 10_000) for _ in range(2)]
    for future in futures:
        future.result(LONG)
    assert memoryview(buffer).cast("q")[0] == 20_000


def test_counter_across_interpreters(pool):
    counter = Counter()
    futures = [pool.submit(_locks.count, counter, n, 20_000) for n in (3, -1)]
    futures += [pool.submit(_locks.count_by_exchange, counter, 5_000) for _ in range(2)]
    for future in futures:
        future.result(LONG)
    assert counter.get() == 20_000 * 2 + 5_000 * 2


def test_semaphore_across_interpreters():
    semaphore, now, most = BoundedSemaphore(2), Counter(), Counter()
    with InterpreterPool(4) as pool:
        futures = [pool.submit(_locks.inside, semaphore, now, most, 300) for _ in range(4)]
        for future in futures:
            future.result(LONG)
    assert now.get() == 0 and 1 <= most.get() <= 2
    assert repr(semaphore).endswith("value=2/2>")


def test_semaphores_pass_control_to_and_fro(pool1):
    mine, other = Semaphore(0), Semaphore(0)
    future = pool1.submit(_locks.ping_pong, other, mine, 500)
    for _ in range(500):
        other.release()
        assert mine.acquire(timeout=LONG)
    future.result(LONG)


def test_event_across_interpreters():
    event, waiting = Event(), Counter()
    with InterpreterPool(3) as pool:
        futures = [pool.submit(_locks.told, event, waiting) for _ in range(3)]
        wait_until(lambda: waiting.get() == 3)
        assert not any(future.done() for future in futures)
        event.set()
        assert [future.result(LONG) for future in futures] == [True] * 3
        event.clear()
        assert call(pool, _locks.wait_for, event, 0.01) is False


def test_event_set_by_a_worker(pool1):
    event = Event()
    future = pool1.submit(lambda event: (time.sleep(0.1), event.set()), event)
    assert event.wait(LONG) and event.is_set()
    future.result(LONG)


def test_barrier_across_interpreters():
    barrier, counter = Barrier(4), Counter()
    with InterpreterPool(3) as pool:
        futures = [pool.submit(_locks.rounds, barrier, counter, 4, 50) for _ in range(3)]
        assert _locks.rounds(barrier, counter, 4, 50) is None
        assert [future.result(LONG) for future in futures] == [None] * 3
        futures = [pool.submit(_locks.arrive, barrier) for _ in range(3)]
        indices = [barrier.wait(LONG), *(future.result(LONG) for future in futures)]
        assert sorted(indices) == [0, 1, 2, 3]


def test_barrier_broken_across_interpreters():
    barrier = Barrier(3)
    with InterpreterPool(2) as pool:
        futures = [pool.submit(_locks.broken, barrier) for _ in range(2)]
        wait_until(lambda: barrier.n_waiting == 2)
        barrier.abort()
        assert [future.result(LONG) for future in futures] == [True, True]
        with pytest.raises(BrokenBarrierError):
            call(pool, _locks.arrive, barrier)
        barrier.reset()
        with pytest.raises(threading.BrokenBarrierError):
            call(pool, _locks.arrive, barrier, 0.01)
    assert barrier.broken


def test_action_runs_where_the_last_one_is(pool1):
    here, calls = [], Counter()
    factor = 7

    def act():
        here.append(1)
        calls.add(factor)

    barrier = Barrier(2, act)
    future = pool1.submit(_locks.arrive, barrier)
    wait_until(lambda: barrier.n_waiting == 1)
    assert barrier.wait() == 1
    assert future.result(LONG) == 0
    assert here == [1] and calls.get() == 7
    with in_thread(barrier.wait) as outcome:
        wait_until(lambda: barrier.n_waiting == 1)
        assert call(pool1, _locks.arrive, barrier) == 1
    assert outcome == [0]
    assert here == [1] and calls.get() == 14


def test_action_that_cannot_be_sent(pool1):
    """The barrier is for the threads of one interpreter then."""
    guard = threading.Lock()
    barrier = Barrier(2, lambda: guard.acquire(False))
    with pytest.raises(NotSendableError):
        pool1.submit(_locks.arrive, barrier)
    assert sorted(in_threads(2, barrier.wait)) == [0, 1]
    assert guard.locked()


def test_lock_made_in_a_worker_outlives_it():
    with InterpreterPool(1) as pool:
        lock = call(pool, _locks.make_lock)
        assert call(pool, _locks.look, lock) == (False, False)
    with lock:
        assert lock.locked()
    assert not lock.broken


def test_worker_that_waits_leaves_others_alone(pool):
    """A wait releases the interpreter's lock: other threads there run on."""
    lock, went_on = Lock(), Event()

    def wait(lock, went_on):
        import threading

        thread = threading.Thread(target=went_on.set)
        timer = threading.Timer(0.05, thread.start)
        timer.start()
        got = lock.acquire(timeout=60)
        timer.join()
        thread.join()
        return got

    with lock:
        future = pool.submit(wait, lock, went_on)
        assert went_on.wait(LONG)
        assert not future.done()
    assert future.result(LONG) is True
    lock.release()


def test_locks_in_dropped_messages():
    before = syncs()
    recv, send = create_channel()
    send.send([make() for make in MAKERS.values()])
    assert syncs() == before + len(MAKERS)
    recv.close()
    assert syncs() == before


def test_locks_in_arguments_that_fail(pool1):
    before = syncs()
    with pytest.raises(NotSendableError):
        pool1.submit(_locks.through, [Lock(), threading.Lock()])
    assert syncs() == before


def test_a_pickle_holds_nothing(anything):
    data = pickle.dumps(anything)
    assert pickle.loads(data) == anything and pickle.loads(data) == anything
    before = syncs()
    lock = Lock()
    data = pickle.dumps(lock)
    del lock
    assert syncs() == before
    with pytest.raises(SyncError, match="gone"):
        pickle.loads(data)


def test_a_pickle_elsewhere():
    lock = Lock()
    result = run_script(
        """
        import pickle, sys
        from subinterp import Lock, SyncError
        here = [Lock() for _ in range(1000)]
        try:
            pickle.loads(bytes.fromhex(sys.argv[1]))
        except SyncError as error:
            print(error)
        """,
        args=[pickle.dumps(lock).hex()],
    )
    assert "another process" in result.clean().stdout


def test_in_a_standard_interpreter():
    lock, event, counter = Lock(), Event(), Counter()
    interp = _interpreters.create()
    try:
        data = pickle.dumps((lock, event, counter))
        _interpreters.set___main___attrs(interp, {"data": data, "path": repr(sys.path)})
        error = _interpreters.exec(
            interp,
            textwrap.dedent(
                """
                import sys; sys.path[:] = eval(path)
                import pickle
                lock, event, counter = pickle.loads(data)
                event.set()
                counter.add(5)
                lock.acquire()
                """
            ),
        )
        assert error is None, error
        assert event.is_set() and counter.get() == 5
        assert lock.acquire(timeout=0.01) is False and not lock.broken
    finally:
        _interpreters.destroy(interp)
    assert lock.broken
    with pytest.raises(BrokenLockError):
        lock.acquire()


# Broken locks -----------------------------------------------------------------------------------


def check_broken(lock):
    assert lock.broken and lock.locked()
    assert repr(lock).startswith("<broken ")
    for operation in (lock.acquire, lambda: lock.acquire(False), lambda: lock.acquire(timeout=1)):
        with pytest.raises(BrokenLockError, match="is broken: interpreter"):
            operation()
    with pytest.raises(BrokenLockError):
        lock.release()
    with pytest.raises(BrokenLockError), lock:
        pass


@pytest.mark.parametrize("make", LOCKS)
def test_end_of_the_pool_breaks_the_lock(make):
    lock = make()
    with InterpreterPool(1) as pool:
        call(pool, _locks.hold, lock)
        assert lock.acquire(timeout=0.01) is False and not lock.broken
    check_broken(lock)
    with InterpreterPool(1) as pool:
        assert call(pool, _locks.look, lock) == (True, True)
        assert "is broken" in call(pool, _locks.try_to_take, lock)
        with pytest.raises(BrokenLockError):
            call(pool, _locks.release, lock)


@pytest.mark.parametrize("make", LOCKS)
def test_end_of_the_pool_wakes_those_who_wait(make):
    lock = make()
    with InterpreterPool(2) as others, contextlib.ExitStack() as stack:
        with InterpreterPool(1) as pool:
            call(pool, _locks.hold, lock)
            outcomes = [stack.enter_context(in_thread(lock.acquire)) for _ in range(3)]
            futures = [others.submit(_locks.try_to_take, lock) for _ in range(2)]
            time.sleep(0.1)
            assert not any(outcomes)
        assert all("is broken" in future.result(LONG) for future in futures)
    assert [type(outcome[0]) for outcome in outcomes] == [BrokenLockError] * 3
    check_broken(lock)


def test_main_thread_that_waits_is_told():
    lock = Lock()
    pool = InterpreterPool(1)
    call(pool, _locks.hold, lock)
    with in_thread(lambda: (time.sleep(0.2), pool.shutdown())), pytest.raises(BrokenLockError):
        lock.acquire()


def test_lock_kept_by_an_object_that_stays():
    """The object is in a module of the interpreter when that ends."""
    lock = Lock()
    with InterpreterPool(1) as pool:
        call(pool, _locks.hold_and_keep, lock)
    check_broken(lock)


def test_close_of_an_interpreter_breaks_the_lock():
    lock, free = Lock(), Lock()
    interp = subinterp.interpreters.create()
    interp.call(_locks.hold, lock)
    interp.call(_locks.take_and_give, free, 3)
    assert lock.acquire(timeout=0.01) is False
    interp.close()
    check_broken(lock)
    with free:
        assert not free.broken


def test_recycled_worker_breaks_the_lock():
    lock = Lock()
    with InterpreterPool(1, max_tasks_per_child=1) as pool:
        call(pool, _locks.hold, lock)
        assert "is broken" in call(pool, _locks.try_to_take, lock)
    check_broken(lock)


def test_parked_interpreter_breaks_the_lock_and_can_use_others():
    """The context is opened again for the next pool: what it takes then breaks as well."""
    from subinterp import _core

    lock, other = Lock(), Lock()
    try:
        with InterpreterPool(1) as pool:
            call(pool, _core._pretend_copies)
            call(pool, _locks.hold_and_keep, lock)
        assert _core.parked()
        check_broken(lock)
        with InterpreterPool(1) as pool:
            call(pool, _locks.hold, other)
            assert other.acquire(timeout=0.01) is False and not other.broken
        check_broken(other)
    finally:
        subinterp.set_parked_limit(0)
        wait_until(lambda: not _core.parked())
        subinterp.set_parked_limit(4)


def test_released_elsewhere_before_the_end_is_not_broken():
    lock = Lock()
    with InterpreterPool(1) as pool:
        call(pool, _locks.hold, lock)
        lock.release()
    with lock:
        assert not lock.broken


def test_held_elsewhere_is_not_broken_by_the_end_of_another():
    """Who holds it counts, not who has an object."""
    lock = Lock()
    with lock:
        with InterpreterPool(2) as pool:
            assert call(pool, _locks.take, lock, False) is False
            assert call(pool, _locks.hold_and_keep, Lock()) is None
        assert not lock.broken
    assert not lock.locked()


def test_end_of_one_that_has_only_waited():
    lock = Lock()
    lock.acquire()
    with InterpreterPool(1) as pool:
        assert call(pool, _locks.take, lock, timeout=0.05) is False
    lock.release()
    with lock:
        assert not lock.broken


def test_objects_that_come_and_go_while_the_lock_is_held(pool1):
    """One handle is kept for the interpreter, however many objects are dropped."""
    before = syncs()
    lock = Lock()
    call(pool1, _locks.hold, lock)
    for _ in range(20):
        assert call(pool1, _locks.take, lock, False) is False
    lock.release()
    del lock
    call(pool1, _locks.through, None)
    wait_until(lambda: call(pool1, lambda: subinterp.Lock() and None) is None and syncs() == before)


def test_abandoned_interpreter_breaks_its_lock():
    """A thread there holds it, and would go on doing so."""
    result = run_script(
        """
        from _locks import hold_in_a_daemon, try_to_take
        from subinterp import BrokenLockError, Event, InterpreterPool, Lock

        lock, held = Lock(), Event()
        with InterpreterPool(1) as others:
            pool = InterpreterPool(1)
            pool.submit(hold_in_a_daemon, lock, held).result(60)
            assert lock.acquire(timeout=0.05) is False
            future = others.submit(try_to_take, lock)
            pool.shutdown()
            assert "is broken" in future.result(60)
        try:
            lock.acquire()
        except BrokenLockError:
            print("broken", lock.broken)
        """
    )
    assert result.check().stdout == "broken True\n"


def test_abandoned_interpreter_takes_nothing_any_more():
    result = run_script(
        """
        from subinterp import BrokenLockError, Counter, Event, InterpreterPool, Lock, Semaphore

        def linger(lock, waits, semaphore, go, done, refused):
            import threading

            def attempt(take):
                try:
                    take()
                except BrokenLockError as error:
                    if "was abandoned by its pool" in str(error):
                        refused.add()

            def run():
                attempt(waits.acquire)          # it waits while it is abandoned
                go.wait(60)
                attempt(lock.acquire)
                attempt(lambda: lock.acquire(False))
                attempt(semaphore.acquire)
                done.set()
                threading.Event().wait(30)

            threading.Thread(target=run, daemon=True).start()

        lock, waits, semaphore, go, done = Lock(), Lock(), Semaphore(1), Event(), Event()
        refused = Counter()
        waits.acquire()
        pool = InterpreterPool(1)
        pool.submit(linger, lock, waits, semaphore, go, done, refused).result(60)
        pool.shutdown()
        waits.release()
        go.set()
        assert done.wait(60)
        assert refused.get() == 4, refused
        # Nobody was hurt.
        for free in (lock, waits, semaphore):
            assert free.acquire(timeout=60)
        assert not lock.broken and not waits.broken
        print("fine")
        """
    )
    assert result.check().stdout == "fine\n"


def test_abandoned_interpreter_breaks_the_barrier_whose_action_it_runs():
    result = run_script(
        """
        from _locks import ActionStarts, broken, last_in_a_daemon
        from subinterp import Barrier, Event, InterpreterPool
        from _support import wait_until

        started = Event()
        barrier = Barrier(2, ActionStarts(started))
        with InterpreterPool(1) as others:
            future = others.submit(broken, barrier)
            wait_until(lambda: barrier.n_waiting == 1)
            pool = InterpreterPool(1)
            pool.submit(last_in_a_daemon, barrier, started).result(60)
            pool.shutdown()
            print(future.result(60), barrier.broken)
        """
    )
    assert result.check().stdout == "True True\n"


def test_process_ends_while_locks_are_held_and_waited_for():
    """In workers, threads and daemon threads: no hang, no message."""
    run_script(
        """
        import threading, time
        from _locks import hold, take, try_to_take
        from subinterp import Event, InterpreterPool, Lock

        lock, held = Lock(), Event()
        pool = InterpreterPool(2)
        pool.submit(hold, lock, held)
        assert held.wait(60)
        pool.submit(take, lock, timeout=0.2)
        threading.Thread(target=try_to_take, args=(lock,)).start()
        threading.Thread(target=try_to_take, args=(lock,), daemon=True).start()
        mine = Lock()
        mine.acquire()
        threading.Thread(target=mine.acquire, daemon=True).start()
        """
    ).clean()


def test_exit_breaks_the_locks_of_workers_that_run_on():
    """What runs at exit after they were stopped does not wait for them."""
    result = run_script(
        """
        import atexit

        def at_the_very_end():
            try:
                lock.acquire()
            except BrokenLockError:
                print("broken")

        atexit.register(at_the_very_end)
        from subinterp import BrokenLockError, Event, InterpreterPool, Lock

        def hold_and_run_on(lock, held):
            with lock:
                held.set()
                while True:
                    pass

        lock, held = Lock(), Event()
        pool = InterpreterPool(1)
        pool.submit(hold_and_run_on, lock, held)
        assert held.wait(60)
        pool.shutdown(wait=False, cancel_futures=True)
        """
    )
    assert result.clean().stdout == "broken\n"


# Interruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        "lock.acquire()",
        "lock.acquire(timeout=60)",
        "lock.__enter__()",
        "semaphore.acquire()",
        "event.wait()",
        "barrier.wait()",
    ],
)
def test_ctrl_c(wait):
    result = run_script(
        f"""
        import os, signal, threading, time
        from subinterp import *
        lock, semaphore, event, barrier = Lock(), Semaphore(0), Event(), Barrier(2)
        lock.acquire()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            {wait}
        except KeyboardInterrupt:
            print("interrupted")
        # All of them still work.
        lock.release()
        assert lock.acquire(False)
        semaphore.release()
        assert semaphore.acquire(False)
        assert not barrier.broken and barrier.n_waiting == 0
        thread = threading.Thread(target=barrier.wait)
        thread.start()
        barrier.wait(60)
        thread.join()
        """
    )
    assert result.clean().stdout == "interrupted\n"


def test_handler_of_a_signal_may_use_the_lock_that_is_waited_for():
    """The wait beneath the handler must not be given the lock meanwhile."""
    result = run_script(
        """
        import os, signal, threading, time
        from subinterp import Lock
        lock, entered = Lock(), threading.Event()

        def handler(*args):
            entered.set()
            with lock:
                print("handler")

        signal.signal(signal.SIGUSR1, handler)

        def hold():
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGUSR1)
            entered.wait(60)
            time.sleep(0.2)
            lock.release()

        lock.acquire()
        thread = threading.Thread(target=hold)
        thread.start()
        with lock:
            print("main")
        thread.join()
        """
    )
    assert sorted(result.clean().stdout.split()) == ["handler", "main"]


def test_signals_do_not_shorten_a_wait():
    result = run_script(
        """
        import signal, threading, time
        from subinterp import Event, Lock, Semaphore
        seen = []
        signal.signal(signal.SIGALRM, lambda *args: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        lock = Lock()
        lock.acquire()
        start = time.monotonic()
        assert lock.acquire(timeout=0.3) is False
        assert Event().wait(0.3) is False
        assert Semaphore(0).acquire(timeout=0.3) is False
        assert time.monotonic() - start >= 0.9
        threading.Timer(0.3, lock.release).start()
        lock.acquire()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(len(seen) > 10)
        """
    )
    assert result.clean().stdout == "True\n"


class Stop(BaseException):
    pass


@pytest.mark.parametrize("kind", ["lock", "event", "semaphore", "barrier"])
def test_asynchronous_exception(kind):
    """Sent to a thread that waits, with a signal that interrupts its system call."""
    lock, event, semaphore, barrier = Lock(), Event(), Semaphore(0), Barrier(2)
    lock.acquire()
    wait = {
        "lock": lock.acquire,
        "event": event.wait,
        "semaphore": semaphore.acquire,
        "barrier": barrier.wait,
    }[kind]
    before = signal.signal(signal.SIGUSR2, lambda *args: None)
    signal.siginterrupt(signal.SIGUSR2, True)
    threads = []

    def run():
        threads.append(threading.get_ident())
        wait()

    try:
        with in_thread(run) as outcome:
            wait_until(lambda: threads)
            time.sleep(0.05)
            set_exception = ctypes.pythonapi.PyThreadState_SetAsyncExc
            assert set_exception(ctypes.c_ulong(threads[0]), ctypes.py_object(Stop)) == 1
            deadline = time.monotonic() + LONG
            while not outcome and time.monotonic() < deadline:
                with contextlib.suppress(ProcessLookupError):
                    signal.pthread_kill(threads[0], signal.SIGUSR2)
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert type(outcome[0]) is Stop
    assert not barrier.broken and barrier.n_waiting == 0
    lock.release()
    assert lock.acquire(False)


# Tasks that are interrupted or abandoned ---------------------------------------------------------


@frees_blocked_calls
@pytest.mark.parametrize("timeout", [None, 1000.0], ids=["untimed", "timed"])
@pytest.mark.parametrize(
    ("make", "how"),
    [
        (Lock, "acquire"),
        (Lock, "with"),
        (RLock, "acquire"),
        (lambda: Semaphore(0), "acquire"),
        (lambda: BoundedSemaphore(1), "with"),
        (Event, "wait"),
        (lambda: Barrier(2), "wait"),
    ],
    ids=["lock", "lock-with", "rlock", "semaphore", "bounded-with", "event", "barrier"],
)
def test_interrupted_task_leaves_its_wait(make, how, timeout):
    """And nothing behind: what it waited for works for the others."""
    waited_for, began = make(), Event()
    if isinstance(waited_for, (Lock, RLock, BoundedSemaphore)):
        waited_for.acquire()
    with InterpreterPool(1, interrupt_grace=30) as pool:
        for _ in range(3):
            began.clear()
            future = pool.submit(_locks.wait_in, waited_for, how, began, timeout)
            assert began.wait(LONG)
            time.sleep(0.1)
            assert future.interrupt()
            error = future.exception(LONG)
            assert type(error) is TaskInterrupted
            assert type(error.__context__) is Interrupt
        if isinstance(waited_for, Event):
            waited_for.set()
            assert call(pool, _locks.wait_for, waited_for, LONG)
        elif isinstance(waited_for, Barrier):
            assert waited_for.n_waiting == 0
            assert not waited_for.broken
            future = pool.submit(_locks.arrive, waited_for)
            waited_for.wait(LONG)
            future.result(LONG)
        else:
            waited_for.release()
            assert call(pool, _locks.try_to_take, waited_for) is True
            assert waited_for.acquire(False)


@frees_blocked_calls
def test_numbers_of_a_barrier_without_the_one_that_was_interrupted(pool1):
    barrier, began = Barrier(3), Event()
    future = pool1.submit(_locks.wait_in, barrier, "wait", began, None)
    wait_until(lambda: barrier.n_waiting == 1)
    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(barrier.wait))]
        wait_until(lambda: barrier.n_waiting == 2)
        assert future.interrupt()
        assert type(future.exception(LONG)) is TaskInterrupted
        assert barrier.n_waiting == 1
        outcomes.append(stack.enter_context(in_thread(barrier.wait)))
        wait_until(lambda: barrier.n_waiting == 2)
        outcomes.append([barrier.wait(LONG)])
    assert outcomes == [[0], [1], [2]]


@frees_blocked_calls
def test_interrupted_holder_gives_the_lock_back(pool1):
    lock, began = Lock(), Event()
    future = pool1.submit(_locks.hold_and_sleep, lock, began)
    assert began.wait(LONG)
    assert not lock.acquire(False)
    assert future.interrupt()
    assert type(future.exception(LONG)) is TaskInterrupted
    assert lock.acquire(False)
    assert not lock.broken


@frees_blocked_calls
def test_time_limit_of_a_task_that_waits(pool1):
    lock, began = Lock(), Event()
    lock.acquire()
    future = pool1.schedule(_locks.wait_in, (lock, "acquire", began), timeout=0.2)
    assert type(future.exception(LONG)) is TaskTimeout
    lock.release()
    assert call(pool1, _locks.try_to_take, lock) is True


@pytest.mark.parametrize("make", LOCKS)
def test_abandoned_task_breaks_its_lock(make):
    lock, held, stop = make(), Event(), Event()
    with InterpreterPool(1) as others, InterpreterPool(1, interrupt_grace=0.1) as pool:
        try:
            future = pool.submit(_locks.hold_and_ignore, lock, held, stop)
            assert held.wait(LONG)
            waiting = others.submit(_locks.try_to_take, lock)
            assert lock.acquire(timeout=0.05) is False
            assert future.interrupt()
            assert type(future.exception(LONG)) is TaskAbandoned
            assert "was abandoned" in waiting.result(LONG)
            assert lock.broken
            with pytest.raises(BrokenLockError):
                lock.acquire()
            # The worker in its place can use others.
            assert call(pool, _locks.try_to_take, make()) is True
        finally:
            stop.set()


def test_abandoned_task_breaks_the_barrier_whose_action_it_runs():
    began, stop = Event(), Event()
    barrier = Barrier(2, _locks.IgnoringAction(began, stop))
    with InterpreterPool(1) as others, InterpreterPool(1, interrupt_grace=0.1) as pool:
        try:
            waiting = others.submit(_locks.broken, barrier)
            wait_until(lambda: barrier.n_waiting == 1)
            future = pool.submit(_locks.arrive, barrier)
            assert began.wait(LONG)
            assert future.interrupt()
            assert type(future.exception(LONG)) is TaskAbandoned
            assert waiting.result(LONG) is True
            assert barrier.broken
        finally:
            stop.set()


# Fork -------------------------------------------------------------------------------------------


def test_fork():
    result = run_script(
        """
        import faulthandler, os, signal, threading, time, traceback, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from subinterp import *
        from _locks import hold

        lock, rlock, held, semaphore = Lock(), RLock(), Lock(), Semaphore(1)
        event, barrier, counter = Event(), Barrier(1), Counter()
        bounded = BoundedSemaphore(1)
        event.set()
        held.acquire()
        rlock.acquire()
        stop = Event()

        def busy():
            while not stop.is_set():
                with lock:
                    counter.add()

        pool = InterpreterPool(1)
        started = Event()
        future = pool.submit(hold, Lock(), started, stop)
        assert started.wait(60)
        thread = threading.Thread(target=busy, daemon=True)
        thread.start()

        def child():
            uses = [lock.acquire, lambda: lock.acquire(False), held.acquire, held.release,
                    rlock.acquire, rlock.release, lambda: rlock._release_save(),
                    semaphore.acquire, semaphore.release, bounded.acquire, event.set, event.clear,
                    event.wait, barrier.wait, barrier.abort, barrier.reset, counter.add,
                    counter.get, lambda: counter.set(1), lambda: counter.exchange(1),
                    lambda: counter.compare_exchange(0, 1)]
            for use in uses:
                try:
                    use()
                except SyncError as error:
                    assert "parent of this forked process" in str(error), error
                else:
                    raise AssertionError(use)
            for thing in (lock, rlock, held, semaphore, event, barrier, counter):
                repr(thing), hash(thing), thing.id
            # What is made here works, between interpreters of the child as well.
            mine, theirs = Lock(), Event()
            with InterpreterPool(1) as pool:
                pool.submit(hold, mine, theirs).result(30)
                assert theirs.is_set() and not mine.acquire(timeout=0.01)
            try:
                mine.acquire()
            except BrokenLockError:
                pass
            else:
                raise AssertionError

        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    signal.alarm(40)
                    faulthandler.dump_traceback_later(30)
                    child()
                    del lock, rlock, held, semaphore, event, barrier, counter, bounded
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        stop.set()
        thread.join()
        future.result(60)
        pool.shutdown()
        with lock:
            print("parent goes on")
        """
    )
    assert result.clean().stdout == "parent goes on\n"


# Stress -----------------------------------------------------------------------------------------


def scaled(number, least=1):
    return max(least, int(number * SCALE))


@pytest.mark.stress
@pytest.mark.hard_timeout(900)
@pytest.mark.parametrize("make", [Lock, RLock, lambda: Semaphore(1), lambda: BoundedSemaphore(1)])
def test_stress_every_way_of_acquiring(make):
    """In workers and threads, with time-outs that run out: none lost, none doubled."""
    times = scaled(60_000)
    buffer, lock = SharedBuffer(8), make()
    with InterpreterPool(3) as pool, contextlib.ExitStack() as stack:
        futures = [
            pool.submit(_locks.increment_randomly, buffer, lock, times, seed) for seed in range(3)
        ]
        outcomes = [
            stack.enter_context(
                in_thread(_locks.increment_randomly, buffer, lock, times // 4, seed)
            )
            for seed in (10, 11)
        ]
        done = sum(future.result(600) for future in futures)
    done += sum(outcome[0] for outcome in outcomes)
    assert memoryview(buffer).cast("q")[0] == done
    assert lock.acquire(False)


@pytest.mark.stress
@pytest.mark.hard_timeout(900)
def test_stress_semaphore():
    times = scaled(50_000)
    semaphore, now, most = BoundedSemaphore(3), Counter(), Counter()
    with InterpreterPool(3) as pool, contextlib.ExitStack() as stack:
        futures = [pool.submit(_locks.inside, semaphore, now, most, times) for _ in range(3)]
        for _ in range(3):
            stack.enter_context(in_thread(_locks.inside, semaphore, now, most, times // 4))
        for future in futures:
            future.result(600)
    assert now.get() == 0 and most.get() <= 3
    assert repr(semaphore).endswith("value=3/3>")


@pytest.mark.stress
@pytest.mark.hard_timeout(900)
def test_stress_barrier():
    times = scaled(5_000)
    barrier, counter = Barrier(5), Counter()
    with InterpreterPool(3) as pool, contextlib.ExitStack() as stack:
        futures = [pool.submit(_locks.rounds, barrier, counter, 5, times) for _ in range(3)]
        outcomes = [
            stack.enter_context(in_thread(_locks.rounds, barrier, counter, 5, times))
            for _ in range(2)
        ]
        assert [future.result(600) for future in futures] == [None] * 3
    assert outcomes == [[None]] * 2


@pytest.mark.stress
@pytest.mark.hard_timeout(900)
def test_stress_holders_that_end():
    """Whatever the moment, whoever waits gets the lock or is told; nobody hangs."""
    rng = random.Random(int(os.environ.get("SUBINTERP_STRESS_SEED", "0")) or None)
    for _ in range(max(3, int(scaled(60, 3) * MANY_INTERPRETERS))):
        lock = Lock()
        with contextlib.ExitStack() as stack, InterpreterPool(2) as pool:
            for _ in range(2):
                pool.submit(_locks.take_and_give, lock, rng.randrange(2000))
            outcomes = [
                stack.enter_context(in_thread(_locks.take_and_give, lock, 2000)) for _ in range(2)
            ]
            keeper = pool.submit(_locks.hold, lock)
            time.sleep(rng.random() * 0.01)
            keeper.result(LONG)
        # The pool ended first, and with it the interpreter that kept the lock.
        assert all(isinstance(o[0], BrokenLockError) or o == [None] for o in outcomes)
        check_broken(lock)

"""Locks and the like, as in `threading`, but across interpreters."""

from __future__ import annotations

from subinterp._core import (
    BarrierCore,
    CounterCore,
    EventCore,
    LockCore,
    RLockCore,
    SemaphoreCore,
)

__all__ = ["Barrier", "BoundedSemaphore", "Counter", "Event", "Lock", "RLock", "Semaphore"]


class Lock(LockCore):
    """A lock that threads of all interpreters share.

    It works as `threading.Lock` does, and can be sent through pools and
    channels: what arrives is the same lock.

    Notes
    -----
    The interpreter whose thread acquired it holds it, until anybody releases
    it. If that interpreter ends or is abandoned before, the lock is broken for
    good: whoever waits for it, and whoever tries to acquire or release it
    later, gets BrokenLockError. A task or thread that ends without releasing it
    breaks nothing, as long as its interpreter lives.

    To acquire a lock that is free costs one atomic operation, and so does
    releasing one that nobody waits for. Threads wait asleep, in the order in
    which they came; whoever comes just when it is released may be quicker, but
    not than one that has waited for a millisecond. So nobody who waits is
    passed over for ever, as long as the lock is released now and then.

    A worker that waits for a lock which only a queued task of its own pool
    would release waits for ever: unlike waits for tasks, this is not noticed.
    Use timeouts, or more workers.
    """

    __slots__ = ()


class RLock(RLockCore):
    """A lock that the thread which holds it can acquire again.

    It works as `threading.RLock` does; what is said of Lock holds for it too.

    Notes
    -----
    Its holder is one thread of one interpreter, and only that can release it. A
    thread that runs code of another interpreter (`Interpreter.exec` of the
    standard library does) is not the same holder there.
    """

    __slots__ = ()


class Semaphore(SemaphoreCore):
    """Permits that threads of all interpreters share; as `threading.Semaphore`.

    Parameters
    ----------
    value : int
        How many there are at first.

    Raises
    ------
    OverflowError
        If `value` is 2**61 or more.
    TypeError
        If `value` is not an integer.
    ValueError
        If `value` is negative.

    Notes
    -----
    Permits belong to nobody. Those that an interpreter took and did not give
    back before it ended are lost; nothing breaks.
    """

    __slots__ = ()


class BoundedSemaphore(Semaphore):
    """A Semaphore that never has more permits than at first.

    `release` raises ValueError instead. The parameters are those of Semaphore.
    """

    __slots__ = ()
    _bounded = True


class Event(EventCore):
    """A flag that threads of all interpreters can wait for; as `threading.Event`."""

    __slots__ = ()


class Barrier(BarrierCore):
    """A point where threads of any interpreters wait for each other; as `threading.Barrier`.

    Parameters
    ----------
    parties : int
        How many have to come.
    action : callable, optional
        Is called once all have come, before any goes on, by the one that came
        last. In another interpreter than the one that made the barrier this is
        a copy, which travels there as functions do in messages.
    timeout : float, optional
        Seconds that `wait` waits unless it is told otherwise; None: no limit.

    Raises
    ------
    TypeError
        If `parties` is not an integer, or `action` cannot be called.
    ValueError
        If `parties` is less than 1.

    Notes
    -----
    It breaks if somebody's time runs out, by `abort`, if the action raises, or
    if the interpreter that runs the action ends or is abandoned. An interpreter
    that ends before it came is not missed: only a timeout helps then.
    """

    __slots__ = ()


class Counter(CounterCore):
    """A 64-bit integer that threads of all interpreters change atomically.

    Parameters
    ----------
    value : int
        At first; from -2**63 to 2**63 - 1.

    Raises
    ------
    OverflowError
        If `value` does not fit.
    TypeError
        If `value` is not an integer.

    Notes
    -----
    It never wraps around: `add` and `sub` raise OverflowError and leave it as it
    was. What a thread wrote into shared memory before it changed a counter
    is seen by threads that have seen the change.
    """

    __slots__ = ()

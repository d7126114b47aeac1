"""Locks and counters that two workers share, or have each for themselves."""

import multiprocessing
import threading
from concurrent import futures
from contextlib import contextmanager

from bench import work
from bench.contenders import OURS, WORKERS, Contender
from bench.race import Case, Effort, Figure, race


class Guards(Contender):
    """Two workers, with a barrier, locks and a counter for them.

    Parameters
    ----------
    name : str
    """

    def __init__(self, name):
        self.name = name

    def things(self):
        """Make a barrier, a lock for all, one for each worker, and a function that counts."""
        raise NotImplementedError

    def executor(self, things):
        """Make an executor whose workers know the things."""
        raise NotImplementedError

    @contextmanager
    def open(self):
        """Yield a function that runs a function in all workers at once."""
        with self.executor(self.things()) as executor:

            def run(function, count):
                running = [executor.submit(function, i, count) for i in range(WORKERS)]
                return max(future.result() for future in running)

            yield run


class OurGuards(Guards):
    """Ours, in workers of our pool."""

    ours = True
    needs = ("subinterp:Lock",)

    def things(self):
        from subinterp import Barrier, Counter, Lock

        return Barrier(WORKERS), Lock(), [Lock() for _ in range(WORKERS)], Counter()

    def executor(self, things):
        from subinterp import InterpreterPool

        return InterpreterPool(WORKERS, initializer=work.give, initargs=things)


class ThreadGuards(Guards):
    """`threading.Lock`; the counter is a list that one of them guards."""

    def things(self):
        locks = [threading.Lock() for _ in range(WORKERS)]
        return threading.Barrier(WORKERS), threading.Lock(), locks, [0]

    def executor(self, things):
        return futures.ThreadPoolExecutor(WORKERS, initializer=work.give, initargs=things)


class ProcessGuards(Guards):
    """`multiprocessing.Lock`; the counter is a `Value` that one of them guards."""

    def things(self):
        self.context = multiprocessing.get_context("forkserver")
        make = self.context.Lock
        locks = [make() for _ in range(WORKERS)]
        return self.context.Barrier(WORKERS), make(), locks, self.context.Value("q", lock=False)

    def executor(self, things):
        return futures.ProcessPoolExecutor(
            WORKERS, mp_context=self.context, initializer=work.give, initargs=things
        )


GUARDS = (OurGuards(OURS), ThreadGuards("threading"), ProcessGuards("multiprocessing"))


class FreeLock(Case):
    """Each worker has a lock of its own."""

    name = "lock_free"
    title = "with lock: pass, in two workers, each with its own lock"
    figures = (Figure("each", "one acquire and release"),)
    contenders = GUARDS
    function = work.take_own_lock
    full = Effort(rounds=7, count=200_000)
    short = Effort(rounds=3, count=50_000)

    def turn(self, contender, run):
        each = run(type(self).function, self.effort.count) / self.effort.count
        return {"seconds": each, "each": each}


class ContendedLock(FreeLock):
    """Both workers want the same lock all the time."""

    name = "lock_contended"
    title = "with lock: pass, in two workers, the same lock"
    function = work.take_common_lock
    full = Effort(rounds=7, count=50_000)
    short = Effort(rounds=3, count=10_000)


class CommonCounter(FreeLock):
    """Both workers count with the same counter."""

    name = "counter"
    title = "counter.add() in two workers, the same counter"
    figures = (Figure("each", "one addition"),)
    function = work.count
    full = Effort(rounds=7, count=100_000)
    short = Effort(rounds=3, count=10_000)


bench_lock_free = race(FreeLock)
bench_lock_contended = race(ContendedLock)
bench_counter = race(CommonCounter)

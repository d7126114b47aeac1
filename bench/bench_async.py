"""Coroutines that await tasks."""

import asyncio
import math
import time
from contextlib import contextmanager

from bench.contenders import (
    OURS,
    WORKERS,
    Contender,
    ProcessPool,
    StandardInterpreterPool,
    SubinterpPool,
    ThreadPool,
)
from bench.race import Case, Effort, Figure, race


class Run(SubinterpPool):
    """`InterpreterPool.run` and `amap`."""

    needs = ("subinterp:InterpreterPool",)

    def calls(self, pool, function, items):
        """Return one awaitable for each item."""
        return [pool.run(function, x) for x in items]


class RunInExecutor(Contender):
    """`loop.run_in_executor` on a pool."""

    def __init__(self, pool):
        self.name = pool.name
        self.needs = pool.needs
        self._pool = pool

    @contextmanager
    def open(self, workers=WORKERS):
        with self._pool.open(workers) as executor:
            yield executor

    def calls(self, pool, function, items):
        """Return one awaitable for each item."""
        run = asyncio.get_running_loop().run_in_executor
        return [run(pool, function, x) for x in items]


class OursInExecutor(RunInExecutor):
    """The way that any executor has, on our pool."""

    def __init__(self):
        super().__init__(SubinterpPool())
        self.name = f"{OURS}, run_in_executor"


class Awaits(Case):
    """All awaits are under way before the first result is there."""

    name = "awaits"
    title = "10,000 awaits of math.sqrt in flight: pool.run, and run_in_executor"
    figures = (Figure("rate", "awaits a second", "/s", more_is_better=True),)
    contenders = (
        Run(),
        OursInExecutor(),
        RunInExecutor(StandardInterpreterPool()),
        RunInExecutor(ThreadPool()),
        RunInExecutor(ProcessPool()),
    )
    full = Effort(rounds=7, count=10_000)
    short = Effort(rounds=2, count=10_000)

    def turn(self, contender, pool):
        count = self.effort.count

        async def main():
            start = time.perf_counter()
            results = await asyncio.gather(*contender.calls(pool, math.sqrt, range(count)))
            return time.perf_counter() - start, results

        seconds, results = asyncio.run(main())
        if results != [math.sqrt(x) for x in range(count)]:
            raise AssertionError(f"{contender.name} gave wrong results")
        return {"seconds": seconds, "rate": count / seconds}


class OneAwait(Case):
    """One await at a time: what a task costs on its way through the event loop."""

    name = "await_one"
    title = "await of math.sqrt, one at a time"
    figures = (Figure("p50", "p50"), Figure("p99", "p99"))
    contenders = (Run(), RunInExecutor(StandardInterpreterPool()), RunInExecutor(ThreadPool()))
    full = Effort(rounds=5, count=2000)
    short = Effort(rounds=2, count=500)

    def turn(self, contender, pool):
        async def main():
            taken = []
            for x in range(self.effort.count):
                begin = time.perf_counter()
                (call,) = contender.calls(pool, math.sqrt, (x,))
                await call
                taken.append(time.perf_counter() - begin)
            return sorted(taken)

        taken = asyncio.run(main())
        median, high = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
        return {"seconds": median, "p50": median, "p99": high}


bench_awaits = race(Awaits)
bench_await_one = race(OneAwait)

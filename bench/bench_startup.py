"""A fresh pool."""

import time
from contextlib import nullcontext

from bench import work
from bench.contenders import POOLS, WORKERS
from bench.race import Case, Effort, Figure, race

HOLD = 0.0005  # seconds: long enough for the other worker to take the other task


class FreshPool(Case):
    """Rounds that do not count have made all .pyc files before."""

    name = "startup"
    title = "a fresh pool of 2, until both workers gave a first result"
    figures = (
        Figure("both", "both gave a first result"),
        Figure("first", "the first result"),
        Figure("closed", "shutdown"),
    )
    contenders = POOLS
    full = Effort(rounds=11)
    short = Effort(rounds=3)

    def open(self, contender):
        return nullcontext()

    def turn(self, contender, _):
        seen = set()
        start = time.perf_counter()
        with contender.open(WORKERS) as pool:
            first = None
            while len(seen) < WORKERS:
                tasks = [pool.submit(work.hold, HOLD) for _ in range(WORKERS)]
                for task in tasks:
                    seen.add(task.result())
                    first = first or time.perf_counter() - start
            both = time.perf_counter() - start
        closed = time.perf_counter() - start - both
        return {"seconds": both, "both": both, "first": first, "closed": closed}


bench_startup = race(FreshPool)

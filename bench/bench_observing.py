"""What looking into a pool costs it, and the one who looks."""

import io
import logging
import math
import os
import time
from contextlib import contextmanager

from bench.bench_throughput import FuturesInFlight
from bench.contenders import OURS, POOLS, Contender
from bench.race import Case, Effort, Figure, race

(PLAIN,) = [pool for pool in POOLS if pool.name == OURS]


class Traced(Contender):
    """Ours, with a trace under way."""

    name = f"{OURS}, traced"
    ours = True

    @contextmanager
    def open(self):
        """Return a context manager that holds the pool."""
        with PLAIN.open() as pool, pool.trace(os.devnull, max_tasks=1_000_000):
            yield pool


class TracedTasks(FuturesInFlight):
    """Short tasks, with and without a trace."""

    name = "traced"
    title = "20,000 futures of math.sqrt in flight, with and without a trace"
    contenders = (PLAIN, Traced())


class Looks(Case):
    """Statistics and stacks of two workers that wait."""

    name = "looks"
    title = "A look into a pool of 2"
    figures = (
        Figure("stats", "stats()", "s"),
        Figure("stacks", "dump_tracebacks()", "s"),
    )
    contenders = (PLAIN,)
    full = Effort(rounds=5, count=200)
    short = Effort(rounds=2, count=50)

    def turn(self, contender, pool):
        pool.broadcast(math.sqrt, 2.0)
        count = self.effort.count
        start = time.perf_counter()
        for _ in range(count):
            pool.stats()
        middle = time.perf_counter()
        for _ in range(count):
            pool.dump_tracebacks(io.StringIO())
        end = time.perf_counter()
        return {
            "seconds": end - start,
            "stats": (middle - start) / count,
            "stacks": (end - middle) / count,
        }


def log(n):
    """Log so many records."""
    import logging

    logger = logging.getLogger("subinterp_bench")
    for number in range(n):
        logger.warning("record %d", number)


class Logs(Case):
    """Records of a worker, handled in the main interpreter."""

    name = "logs"
    title = "Log records from a worker to a handler of the main interpreter"
    figures = (Figure("rate", "records a second", "/s", more_is_better=True),)
    contenders = (PLAIN,)
    full = Effort(rounds=5, count=5_000)
    short = Effort(rounds=2, count=1_000)

    @contextmanager
    def open(self, contender):
        import subinterp

        handler = logging.StreamHandler(io.StringIO())
        logger = logging.getLogger("subinterp_bench")
        logger.addHandler(handler)
        logger.propagate = False
        try:
            with subinterp.InterpreterPool(1, logging_to_main=True) as pool:
                yield pool
        finally:
            logger.removeHandler(handler)

    def turn(self, contender, pool):
        start = time.perf_counter()
        pool.submit(log, self.effort.count).result()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": self.effort.count / seconds}


bench_traced = race(TracedTasks)
bench_looks = race(Looks)
bench_logs = race(Logs)

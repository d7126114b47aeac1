"""Work that waits: several workers in one interpreter."""

import time

from bench import work
from bench.contenders import OURS, SubinterpPool, ThreadPool
from bench.race import Case, Effort, Figure, race

READS = 64
# Seconds that a read blocks.
DELAY = 0.005
# Of `work.compute`: about as long.
STEPS = 100_000


class Many(SubinterpPool):
    """A pool of two interpreters, with so many workers each."""

    def __init__(self, threads):
        self.name = OURS if threads == 8 else f"{OURS}, one thread each"
        self.threads = threads

    def executor(self, workers):
        from subinterp import InterpreterPool

        pool = InterpreterPool(workers, threads_per_interpreter=self.threads)
        pool.broadcast(work.read_slowly, 0.001)
        return pool


class SixteenThreads(ThreadPool):
    """As many threads, in one interpreter."""

    def executor(self, workers):
        return super().executor(16)


class BlockingReads(Case):
    """All reads are submitted at once; each blocks for a while in `os.read`."""

    name = "blocking_reads"
    title = f"{READS} reads that block for {DELAY * 1000:.0f} ms: 2 interpreters, 8 threads each"
    figures = (Figure("rate", "reads a second", "/s", more_is_better=True),)
    contenders = (Many(8), Many(1), SixteenThreads())
    full = Effort(rounds=7, count=20)
    short = Effort(rounds=2, count=3)

    def submit(self, pool, n):
        """Submit the task of that number."""
        return pool.submit(work.read_slowly, DELAY)

    def turn(self, contender, pool):
        start = time.perf_counter()
        for _ in range(self.effort.count):
            for future in [self.submit(pool, n) for n in range(READS)]:
                future.result()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": READS * self.effort.count / seconds}


class MixedWork(BlockingReads):
    """Every fourth task computes instead."""

    name = "mixed_work"
    title = "the same, where every fourth task computes in Python instead"
    figures = (Figure("rate", "tasks a second", "/s", more_is_better=True),)

    def submit(self, pool, n):
        return pool.submit(work.compute, STEPS) if n % 4 == 0 else super().submit(pool, n)


bench_blocking_reads = race(BlockingReads)
bench_mixed_work = race(MixedWork)

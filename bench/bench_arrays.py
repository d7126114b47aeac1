"""NumPy arrays on their way: copied once, or not at all."""

import time
from contextlib import contextmanager

from bench import work
from bench.bench_latency import in_turns
from bench.contenders import (
    WORKERS,
    Baseline,
    Contender,
    LokyPool,
    ProcessPool,
    SubinterpPool,
    ThreadPool,
)
from bench.race import Case, Effort, Figure, race


class WithNumPy:
    """A pool whose workers can load NumPy; the standard interpreters' cannot."""

    @property
    def needs(self):
        return (*super().needs, "numpy")


class OurPool(WithNumPy, SubinterpPool):
    """Ours."""


class Threads(WithNumPy, ThreadPool):
    """Threads share the array."""


class Processes(WithNumPy, ProcessPool):
    """Processes get it through a pipe."""


class Loky(WithNumPy, LokyPool):
    """loky's too."""


class Copy(WithNumPy, Baseline):
    """What one copy takes."""


COPY = Copy("array.copy()")
ITEMS = 25_000_000
NBYTES = 8 * ITEMS
RATE = Figure("rate", "bytes a second", "B/s", more_is_better=True)


class Arrays(Case):
    """An array of 200 MB, and workers that have loaded NumPy before."""

    figures = (RATE,)
    contenders = (OurPool(), Threads(), Processes(), Loky(), COPY)
    full = Effort(rounds=9, count=5)
    short = Effort(rounds=3, count=2)
    array = None

    @contextmanager
    def open(self, contender):
        """Yield a pool whose workers all have NumPy and an array."""
        if self.array is None:
            self.array = work.ones(ITEMS)
        with contender.open() as pool:
            if pool is not None:
                for future in [pool.submit(work.prepare, ITEMS) for _ in range(WORKERS)]:
                    future.result()
            yield pool

    def move(self, pool):
        """Move the array once."""
        raise NotImplementedError

    def turn(self, contender, pool):
        count = self.effort.count

        def once():
            if contender is COPY:
                self.array.copy()
            else:
                self.move(pool)

        # Memory that the contender before gave back has to be found again, which on a virtual
        # machine takes many times as long as the copy.
        once()
        start = time.perf_counter()
        for _ in range(count):
            once()
        seconds = (time.perf_counter() - start) / count
        return {"seconds": seconds, "rate": NBYTES / seconds}


class ArrayArgument(Arrays):
    """Threads share the object; everybody else has to copy it."""

    name = "array_argument"
    title = "submit(first_item, a).result() with an array of 200 MB"

    def move(self, pool):
        pool.submit(work.first_item, self.array).result()


class ArrayResult(Arrays):
    """The worker has the array already."""

    name = "array_result"
    title = "submit(same_ones, n).result(), an array of 200 MB"

    def move(self, pool):
        pool.submit(work.same_ones, ITEMS).result()


SIZES = {"1 kB": 1000, "1 MB": 10**6, "200 MB": NBYTES}


class SharedArrays(Contender):
    """Ours, with arrays over shared memory."""

    ours = True
    needs = (*SubinterpPool.needs, "numpy")
    name = f"{SubinterpPool.name}, shared array"

    @contextmanager
    def open(self):
        """Yield a pool, and an array of each size."""
        from subinterp import SharedBuffer

        arrays = {size: SharedBuffer(n).asarray("f8") for size, n in SIZES.items()}
        with SubinterpPool().open() as executor:
            yield executor, arrays


class ThreadArrays(Contender):
    """Threads, with ordinary arrays."""

    needs = ("numpy",)
    name = f"{ThreadPool.name}, array"

    @contextmanager
    def open(self):
        """Yield a pool, and an array of each size."""
        arrays = {size: work.ones(n // 8) for size, n in SIZES.items()}
        with ThreadPool().open() as executor:
            yield executor, arrays


class SharedArray(Case):
    """The worker reads one item."""

    name = "shared_array"
    title = "submit(first_item, a).result(), the array not copied"
    figures = (
        Figure("largest", "p50 of 200 MB"),
        Figure("growth", "p50 of 200 MB / p50 of 1 kB", "x"),
        *(Figure(size, f"p50 of {size}") for size in SIZES if size != "200 MB"),
    )
    contenders = (SharedArrays(), ThreadArrays())
    full = Effort(rounds=9, seconds=0.3, count=1000)
    short = Effort(rounds=3, seconds=0.15, count=300)

    def turn(self, contender, opened):
        pool, arrays = opened
        submit, function = pool.submit, work.first_item

        def call(array):
            return lambda: submit(function, array).result()

        # In turns, for a pool that fell asleep would make one size look slow.
        taken = in_turns([call(array) for array in arrays.values()], self.effort)
        p50 = {size: times[len(times) // 2] for size, times in zip(arrays, taken, strict=True)}
        largest = p50["200 MB"]
        return {"seconds": largest, "largest": largest, "growth": largest / p50["1 kB"], **p50}


bench_array_argument = race(ArrayArgument)
bench_array_result = race(ArrayResult)
bench_shared_array = race(SharedArray)

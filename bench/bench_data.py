"""Large arguments: copied once, or not at all."""

import os
import time
from contextlib import contextmanager

from bench import work
from bench.bench_latency import in_turns
from bench.contenders import (
    POOLS,
    Baseline,
    Contender,
    StandardInterpreterPool,
    SubinterpPool,
    ThreadPool,
)
from bench.race import Case, Effort, Figure, race

COPY = Baseline("bytearray(b)")


class BytesArgument(Case):
    """Threads share the object; everybody else has to copy it."""

    name = "bytes"
    title = "submit(len, b).result() with 50 MB of bytes"
    figures = (Figure("rate", "bytes a second", "B/s", more_is_better=True),)
    contenders = (*POOLS, COPY)
    full = Effort(rounds=9, count=5)
    short = Effort(rounds=3, count=3)
    size = 50_000_000
    data = None

    def open(self, contender):
        if self.data is None:
            self.data = os.urandom(self.size)
        return super().open(contender)

    def turn(self, contender, pool):
        data, count = self.data, self.effort.count
        start = time.perf_counter()
        for _ in range(count):
            if contender is COPY:
                bytearray(data)
            else:
                pool.submit(len, data).result()
        seconds = (time.perf_counter() - start) / count
        return {"seconds": seconds, "rate": len(data) / seconds}


SIZES = {"1 kB": 1000, "1 MB": 10**6, "50 MB": 50 * 10**6, "500 MB": 500 * 10**6}


class Buffers(Contender):
    """A pool, with the kind of buffer that it is sent.

    Parameters
    ----------
    kind : str
        As the reports call the buffer.
    pool : Pool
    make : callable
        Makes a buffer of some bytes.
    """

    def __init__(self, kind, pool, make):
        self.name = f"{pool.name}, {kind}"
        self.ours = pool.ours
        self.needs = pool.needs
        self.pool = pool
        self.make = make

    @contextmanager
    def open(self):
        """Yield a pool, and a buffer of each size."""
        buffers = {size: self.make(nbytes) for size, nbytes in SIZES.items()}
        with self.pool.open() as executor:
            yield executor, buffers


def _shared_buffer(nbytes):
    from subinterp import SharedBuffer

    return SharedBuffer(nbytes)


def _shared_view(nbytes):
    return memoryview(_shared_buffer(nbytes))


def _view(nbytes):
    return memoryview(bytearray(nbytes))


class SharedBuffers(Case):
    """The worker reads the first and the last byte."""

    name = "shared_buffer"
    title = "submit(first_and_last, buffer).result(), the buffer not copied"
    figures = (
        Figure("largest", "p50 of 500 MB"),
        Figure("growth", "p50 of 500 MB / p50 of 1 kB", "x"),
        *(Figure(size, f"p50 of {size}") for size in SIZES if size != "500 MB"),
    )
    contenders = (
        Buffers("SharedBuffer", SubinterpPool(), _shared_buffer),
        Buffers("memoryview", SubinterpPool(), _shared_view),
        Buffers("memoryview", StandardInterpreterPool(), _view),
        Buffers("bytearray", ThreadPool(), bytearray),
    )
    full = Effort(rounds=9, seconds=0.3, count=1000)
    short = Effort(rounds=3, seconds=0.15, count=300)

    def turn(self, contender, opened):
        pool, buffers = opened
        submit, function = pool.submit, work.first_and_last

        def call(buffer):
            return lambda: submit(function, buffer).result()

        # In turns, for a pool that fell asleep would make one size look slow.
        taken = in_turns([call(buffer) for buffer in buffers.values()], self.effort)
        p50 = {size: times[len(times) // 2] for size, times in zip(buffers, taken, strict=True)}
        largest = p50["500 MB"]
        return {"seconds": largest, "largest": largest, "growth": largest / p50["1 kB"], **p50}


bench_bytes = race(BytesArgument)
bench_shared_buffer = race(SharedBuffers)

"""Work that needs a core: two tasks against one, a worker against main."""

import time

from bench import work
from bench.contenders import POOLS, WORKERS
from bench.race import Case, Effort, Figure, race


def timed(action):
    """Return how long `action` takes, in seconds."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Scaling(Case):
    """The calling thread waits while the workers compute."""

    name = "scaling"
    title = "CPU-bound pure-Python tasks"
    figures = (
        Figure("speedup", "speed-up of two tasks", "x", more_is_better=True),
        Figure("overhead", "one task in a worker / in main", "x"),
        Figure("one", "one task in a worker"),
        Figure("two", "two tasks at once"),
    )
    contenders = POOLS
    full = Effort(rounds=9, count=2_500_000)
    short = Effort(rounds=3, count=1_500_000)

    def turn(self, contender, pool):
        steps = self.effort.count

        def in_workers(tasks):
            for future in [pool.submit(work.compute, steps) for _ in range(tasks)]:
                future.result()

        for future in [pool.submit(work.compute, 1000) for _ in range(WORKERS)]:
            future.result()
        main = timed(lambda: work.compute(steps))
        one = timed(lambda: in_workers(1))
        two = timed(lambda: in_workers(2))
        return {
            "seconds": two,
            "speedup": 2 * one / two,
            "overhead": one / main,
            "one": one,
            "two": two,
        }


bench_scaling = race(Scaling)

"""Many small tasks at once."""

import math
import time

from bench.contenders import POOLS, Baseline
from bench.race import Case, Effort, Figure, race


class FuturesInFlight(Case):
    """All futures are made before the first result is asked for."""

    name = "throughput"
    title = "20,000 futures of math.sqrt in flight"
    figures = (Figure("rate", "tasks a second", "/s", more_is_better=True),)
    contenders = POOLS
    full = Effort(rounds=7, count=20_000)
    short = Effort(rounds=2, count=20_000)

    def turn(self, contender, pool):
        submit, function, count = pool.submit, math.sqrt, self.effort.count
        start = time.perf_counter()
        for future in [submit(function, x) for x in range(count)]:
            future.result()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "rate": count / seconds}


SERIAL = Baseline("list comprehension")


class Map(Case):
    """The pools that do not choose a chunk size are given one."""

    name = "map"
    title = "list(map(math.sqrt, range(100_000))), default chunks (processes: chunksize=1000)"
    figures = (Figure("rate", "items a second", "/s", more_is_better=True),)
    contenders = (*POOLS, SERIAL)
    full = Effort(rounds=5, count=100_000)
    short = Effort(rounds=1, count=100_000)

    def turn(self, contender, pool):
        items = range(self.effort.count)
        start = time.perf_counter()
        if contender is SERIAL:
            results = [math.sqrt(x) for x in items]
        else:
            results = list(pool.map(math.sqrt, items, **contender.map_options))
        seconds = time.perf_counter() - start
        if results[-1] != math.sqrt(items[-1]) or len(results) != len(items):
            raise AssertionError(f"{contender.name} gave wrong results")
        return {"seconds": seconds, "rate": len(items) / seconds}


bench_throughput = race(FuturesInFlight)
bench_map = race(Map)

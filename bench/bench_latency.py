"""From submit to result, one task at a time."""

import math
import time

from bench.contenders import POOLS
from bench.race import Case, Effort, Figure, race


def latencies(call, effort, *, pause=0.0):
    """Time single calls.

    Parameters
    ----------
    call : callable
    effort : Effort
        Bounds the number of calls, and the time for all of them.
    pause : float
        How long to sleep before each call, in seconds.

    Returns
    -------
    dict of str to float
        The median and the 99th percentile of the calls, in seconds.
    """
    clock, sleep = time.perf_counter_ns, time.sleep
    deadline = clock() + effort.seconds * 1e9
    taken = []
    for _ in range(max(3, effort.count // 100)):
        call()
    while len(taken) < effort.count:
        if pause:
            sleep(pause)
        start = clock()
        call()
        end = clock()
        taken.append(end - start)
        if end > deadline and len(taken) > 10:
            break
    taken.sort()
    median, high = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    return {"seconds": median / 1e9, "p50": median / 1e9, "p99": high / 1e9}


class HotLatency(Case):
    """One call after the other."""

    name = "latency_hot"
    title = "submit(math.sqrt, x).result(), call after call"
    figures = (Figure("p50", "p50"), Figure("p99", "p99"))
    contenders = POOLS
    pause = 0.0
    full = Effort(rounds=9, seconds=0.4, count=5000)
    short = Effort(rounds=3, seconds=0.2, count=2000)

    def turn(self, contender, pool):
        submit, function = pool.submit, math.sqrt
        return latencies(lambda: submit(function, 2.0).result(), self.effort, pause=self.pause)


class IdleLatency(HotLatency):
    """Calls that find the pool asleep."""

    name = "latency_idle"
    title = "submit(math.sqrt, x).result(), 2 ms between calls"
    pause = 0.002
    full = Effort(rounds=7, seconds=1.0, count=300)
    short = Effort(rounds=3, seconds=0.5, count=150)


bench_latency_hot = race(HotLatency)
bench_latency_idle = race(IdleLatency)

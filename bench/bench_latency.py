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
    (taken,) = in_turns([call], effort, pause=pause)
    median, high = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    return {"seconds": median, "p50": median, "p99": high}


def in_turns(calls, effort, *, pause=0.0):
    """Time several calls in turns: A B C, A B C.

    Parameters
    ----------
    calls : list of callable
    effort : Effort
        Bounds the number of turns of each, and the time for all of them.
    pause : float
        How long to sleep before each call, in seconds.

    Returns
    -------
    list of list of float
        For each of `calls`, the times that it took, sorted, in seconds.
    """
    clock, sleep = time.perf_counter_ns, time.sleep
    deadline = clock() + effort.seconds * 1e9
    for call in calls * max(3, effort.count // 100):
        call()
    taken = [[] for _ in calls]
    for turn in range(effort.count):
        for call, times in zip(calls, taken, strict=True):
            if pause:
                sleep(pause)
            start = clock()
            call()
            end = clock()
            times.append(end - start)
        if end > deadline and turn >= 10:
            break
    return [sorted(time / 1e9 for time in times) for times in taken]


class HotLatency(Case):
    """One call after the other."""

    name = "latency_hot"
    title = "submit(math.sqrt, x).result(), call after call"
    figures = (Figure("p50", "p50"), Figure("p99", "p99"))
    contenders = POOLS
    pause = 0.0
    full = Effort(rounds=15, seconds=0.25, count=5000)
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

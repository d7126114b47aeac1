"""What a worker weighs, and whether tasks leave anything behind."""

import time
from contextlib import nullcontext

from bench import probe
from bench.contenders import OURS, POOLS, Baseline
from bench.race import Case, Effort, Figure, race


class WorkerMemory(Case):
    """The difference between pools of 1 and of 5 workers, for each worker."""

    name = "memory"
    title = "one more worker, after its first task"
    figures = (Figure("pss", "PSS", "B"), Figure("rss", "RSS", "B"))
    contenders = (*POOLS, Baseline(probe.BARE))
    full = Effort(rounds=5)
    short = Effort(rounds=1)
    warm_up = False
    more = 4

    def open(self, contender):
        return nullcontext()

    def turn(self, contender, _):
        start = time.perf_counter()
        few, many = (
            probe.measure("footprint", contender.name, workers=workers)
            for workers in (1, 1 + self.more)
        )
        seconds = time.perf_counter() - start
        each = {key: (many[key] - few[key]) / self.more for key in few}
        return {"seconds": seconds, **each}


class Growth(Case):
    """Rivals do fewer tasks, for they take long."""

    name = "growth"
    title = "memory left behind by 1,000,000 tasks (rivals: 100,000)"
    figures = (
        Figure("rss", "RSS, all tasks", "B"),
        Figure("each", "RSS, each task", "B"),
        Figure("rate", "tasks a second", "/s", more_is_better=True),
    )
    contenders = POOLS
    full = Effort(rounds=3, count=100_000)
    short = Effort(rounds=1, count=20_000)
    warm_up = False
    ours = 1_000_000

    def open(self, contender):
        return nullcontext()

    def turn(self, contender, _):
        tasks = self.ours if contender.name == OURS else self.effort.count
        grown = probe.measure(
            "growth", contender.name, warm_up=max(tasks // 10, 10_000), tasks=tasks
        )
        return {
            "seconds": grown["seconds"],
            "rss": grown["rss"],
            "each": grown["rss"] / tasks,
            "rate": tasks / grown["seconds"],
        }


bench_memory = race(WorkerMemory)
bench_growth = race(Growth)

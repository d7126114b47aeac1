"""Work with NumPy and pandas, and what it takes to have them in a worker.

Interpreters keep what they have imported for the next pool, and everybody's files get warm. So
each turn is a process of its own, and a pool is measured twice in it: the first time together
with its start, its imports and its end; and once more when all that is there.
"""

import math
import time
from contextlib import nullcontext

from bench import probe
from bench.contenders import OURS, Baseline, LokyPool, ProcessPool, SubinterpPool
from bench.contenders import ThreadPool as Threads
from bench.race import Case, Effort, Figure, race

NEEDS = ("numpy", "pandas")


class Needing:
    """A contender that cannot run where the packages are not installed."""

    needs = NEEDS


class NeedingOurs(Needing, SubinterpPool):
    needs = (*SubinterpPool.needs, *NEEDS)


class NeedingThreads(Needing, Threads):
    pass


class NeedingProcesses(Needing, ProcessPool):
    pass


class NeedingLoky(Needing, LokyPool):
    needs = (*LokyPool.needs, *NEEDS)


class Serial(Needing, Baseline):
    pass


SERIAL = Serial(probe.SERIAL)
# The standard library's interpreters import neither.
POOLS = (NeedingOurs(), SERIAL, NeedingThreads(), NeedingProcesses(), NeedingLoky())


class InProcess(Case):
    """A case whose turns run in processes of their own."""

    probe = ""
    warm_up = False

    def open(self, contender):
        return nullcontext()

    def arguments(self, contender):
        """Return what the probe is told."""
        return {"count": self.effort.count}

    def turn(self, contender, _):
        start = time.perf_counter()
        found = probe.measure(self.probe, contender.name, **self.arguments(contender))
        return {"seconds": time.perf_counter() - start, **found}


class Parallel(InProcess):
    figures = (
        Figure("total", "with starting, importing, ending"),
        Figure("warm", "once more, in the same workers"),
        Figure("first", "the first time, without the end"),
    )
    contenders = POOLS
    value = None

    def turn(self, contender, _):
        found = super().turn(contender, _)
        value = found.pop("value")
        self.value = self.value or value
        if not math.isclose(value, self.value, rel_tol=1e-9):
            raise RuntimeError(f"{contender.name} found {value} instead of {self.value}")
        return found


class GroupedFrame(Parallel):
    """Parts of a data frame travel to the workers, what they found comes back."""

    name = "group_apply"
    title = "pandas groupby.apply with a Python function, over a frame split in parts"
    probe = "group_apply"
    full = Effort(rounds=3, count=10_000_000)
    short = Effort(rounds=1, count=1_000_000)


class MonteCarlo(Parallel):
    """Nothing but a seed travels."""

    name = "monte_carlo"
    title = "a Monte-Carlo simulation in NumPy with Python callbacks"
    probe = "monte_carlo"
    full = Effort(rounds=3, count=64)
    short = Effort(rounds=1, count=16)


MAIN = Serial("fresh main")
LATER = f"{OURS}, main has it"


class LaterWorker(NeedingOurs):
    name = LATER


class ImportNumPy(InProcess):
    """The time within the interpreter that imports."""

    name = "import_numpy"
    title = "import numpy"
    probe = "import_numpy"
    figures = (Figure("first", "the first worker"), Figure("next", "another worker"))
    contenders = (NeedingOurs(), LaterWorker(), MAIN)
    full = Effort(rounds=11)
    short = Effort(rounds=3)
    warm_up = True  # the files are read from the disk once

    def arguments(self, contender):
        return {"where": contender.name}


class NumPyMemory(InProcess):
    """The difference between pools of 1 and of 5 workers, for each worker."""

    name = "memory_numpy"
    title = "one more worker that has imported numpy"
    figures = (Figure("pss", "PSS", "B"), Figure("rss", "RSS", "B"))
    contenders = (NeedingOurs(), NeedingThreads(), NeedingProcesses(), NeedingLoky())
    full = Effort(rounds=3)
    short = Effort(rounds=1)
    more = 4

    def turn(self, contender, _):
        start = time.perf_counter()
        few, many = (
            probe.measure("footprint", contender.name, workers=workers, modules=["numpy"])
            for workers in (1, 1 + self.more)
        )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, **{key: (many[key] - few[key]) / self.more for key in few}}


bench_group_apply = race(GroupedFrame)
bench_monte_carlo = race(MonteCarlo)
bench_import_numpy = race(ImportNumPy)
bench_memory_numpy = race(NumPyMemory)

"""What a pool costs while it has nothing to do."""

from contextlib import nullcontext

from bench import probe
from bench.contenders import POOLS, Baseline
from bench.race import Case, Effort, Figure, race


class IdlePool(Case):
    """After a thousand tasks; the caller sleeps."""

    name = "idle"
    title = "CPU time of an idle pool of 2"
    figures = (
        Figure("cpu", "CPU seconds in a second", "s"),
        Figure("wakeups", "wake-ups a second, caller aside", "/s"),
    )
    contenders = (*POOLS, Baseline(probe.NO_POOL))
    full = Effort(rounds=3, seconds=3.0)
    short = Effort(rounds=1, seconds=1.5)
    warm_up = False

    def open(self, contender):
        return nullcontext()

    def turn(self, contender, _):
        found = probe.measure("idle", contender.name, seconds=self.effort.seconds)
        return {"seconds": found["cpu"], **found}


bench_idle = race(IdlePool)

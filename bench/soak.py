"""Real work with pandas and NumPy for a long time: ``python -m bench.soak``.

Two workers do the same pieces of work again and again while memory is sampled. The results are
compared with those of main, and memory must be flat after a warm-up; the exit status says so.
"""

import argparse
import gc
import itertools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import data_work

SEEDS = 8  # of each kind of work: few enough that caches are warm soon
WARM_UP = 0.25  # of the time, which does not count
# Flat means: over the time that counts, memory grows by less than this.
ALLOWED = 4e6  # bytes; or, of what there is,
ALLOWED_SHARE = 0.01


@dataclass(frozen=True)
class Sample:
    """What the process takes at one moment; bytes, or a plain number."""

    seconds: float
    rss: int
    pss: int
    anonymous: int
    maps: int
    threads: int
    files: int
    tasks: int


def sample(start, tasks):
    """Look at this process."""
    gc.collect()
    memory = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, _, rest = line.partition(":")
        memory[key.lower()] = int(rest.split()[0]) * 1024
    with open("/proc/self/maps") as maps:
        count = sum(1 for _ in maps)
    return Sample(
        seconds=time.perf_counter() - start,
        rss=memory["rss"],
        pss=memory["pss"],
        anonymous=memory["anonymous"],
        maps=count,
        threads=len(os.listdir("/proc/self/task")),
        files=len(os.listdir("/proc/self/fd")),
        tasks=tasks,
    )


def slope(points):
    """Return the median of the slopes between all pairs of points: Theil and Sen's estimate.

    A few samples that happen to fall on a peak do not move it.

    References
    ----------
    P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", Journal of the
    American Statistical Association 63 (1968).
    """
    slopes = [
        (y2 - y1) / (x2 - x1)
        for (x1, y1), (x2, y2) in itertools.combinations(points, 2)
        if x2 != x1
    ]
    return median(slopes) if slopes else 0.0


def judge(samples):
    """Return what grows, one line each; nothing if all is flat.

    Parameters
    ----------
    samples : sequence of Sample
        Those after the warm-up, in order.
    """
    grown = []
    duration = samples[-1].seconds - samples[0].seconds
    # Not the PSS, which grows when another process that maps the same files ends.
    for key in ("rss", "anonymous"):
        growth = slope([(one.seconds, getattr(one, key)) for one in samples]) * duration
        allowed = max(ALLOWED, ALLOWED_SHARE * getattr(samples[0], key))
        if growth > allowed:
            grown.append(
                f"{key} grows by {growth / 1e6:.1f} MB in {duration:.0f} s "
                f"({growth / duration * 3600 / 1e6:.0f} MB an hour; {allowed / 1e6:.1f} MB allowed)"
            )
    for key, allowed in (("maps", 50), ("threads", 0), ("files", 0)):
        growth = slope([(one.seconds, getattr(one, key)) for one in samples]) * duration
        if growth > allowed + 0.5:
            grown.append(f"{key} grow by {growth:.0f} in {duration:.0f} s")
    return grown


def show(one):
    """Write one sample."""
    print(
        f"{one.seconds:8.0f} s  {one.tasks:9,} tasks  RSS {one.rss / 1e6:7.1f} MB  "
        f"PSS {one.pss / 1e6:7.1f}  anonymous {one.anonymous / 1e6:7.1f}  "
        f"{one.maps:5} maps  {one.threads:3} threads  {one.files:3} files",
        flush=True,
    )


def work(pool, expected, keys, until):
    """Keep the workers busy until a time; return how many tasks they did.

    Raises
    ------
    RuntimeError
        If a result is not what main found.
    """
    done = 0
    running = []
    while running or time.perf_counter() < until:
        while len(running) < 8 and time.perf_counter() < until:
            key = next(keys)
            running.append((key, pool.submit(data_work.soak, *key)))
        key, task = running.pop(0)
        found = task.result(timeout=300)
        if found != expected[key]:
            raise RuntimeError(f"{key}: {found} instead of {expected[key]}")
        done += 1
    return done


def main(argv=None):
    """Run the test; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=80, help="how many samples are taken")
    parser.add_argument(
        "--pools", type=int, default=1, help="how many pools follow each other (default: one)"
    )
    options = parser.parse_args(argv)

    from subinterp import InterpreterPool

    kinds = [(kind, seed) for kind in data_work.KINDS for seed in range(SEEDS)]
    expected = {key: data_work.soak(*key) for key in kinds}
    keys = itertools.cycle(kinds)
    seconds = options.minutes * 60
    print(f"{options.minutes:g} minutes, {options.workers} workers, {len(kinds)} pieces of work")
    samples = []
    tasks = 0
    start = time.perf_counter()
    per_pool = -(-options.samples // options.pools)
    while len(samples) < options.samples:
        with InterpreterPool(options.workers) as pool:
            for _ in range(min(per_pool, options.samples - len(samples))):
                until = start + seconds * (len(samples) + 1) / options.samples
                tasks += work(pool, expected, keys, until)
                samples.append(sample(start, tasks))
                show(samples[-1])
    counted = [one for one in samples if one.seconds >= WARM_UP * seconds]
    if len(counted) < 3:
        print("too few samples to judge")
        return 1
    grown = judge(counted)
    first, last = counted[0], counted[-1]
    print(
        f"\nafter {first.seconds:.0f} s of warm-up: RSS {first.rss / 1e6:.1f} MB, "
        f"in the end {last.rss / 1e6:.1f} MB; all {tasks:,} results as main's"
    )
    print("\n".join(f"NOT FLAT: {line}" for line in grown) if grown else "flat")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())

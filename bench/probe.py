"""Measurements that need a process to themselves: memory, and idle time.

`measure` runs one of the functions below in a new process, whose other memory
and threads are then those of one contender alone. Processes that the contender
starts count, too.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from bench import data_work, work
from bench.contenders import OURS, POOLS, ROOT, WORKERS
from bench.machine import family

HOLD = 0.02  # seconds: a task this long leaves the next task to another worker


def measure(probe, contender, **arguments):
    """Run a probe in a new process.

    Parameters
    ----------
    probe : str
        The name of a function of this module.
    contender : str
        The name of a pool, or of something else that the probe knows.
    **arguments
        For the probe; what JSON can say.

    Returns
    -------
    dict of str to float
    """
    # Not "-m": child processes would import this module as their main module.
    code = "from bench.probe import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, probe, contender, json.dumps(arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"probe {probe} of {contender} exited with {done.returncode}:\n{done.stderr}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Run the probe that the command line names, and print what it found."""
    probe, contender, arguments = sys.argv[1:]
    print(json.dumps(globals()[probe](contender, **json.loads(arguments))))


# Probes


def footprint(contender, workers, modules=()):
    """Memory of this process and its children with some workers in a pool.

    Each worker has done a first task, and imported some modules. ``"interpreters"``
    stands for bare interpreters, in which nothing ran.
    """
    if contender == BARE:
        held = _bare_interpreters(workers)  # noqa: F841
        return memory()
    with _pool(contender).open(workers) as pool:
        seen = set()
        while len(seen) < workers:
            tasks = [pool.submit(data_work.hold_with, modules, HOLD) for _ in range(workers)]
            seen.update(task.result() for task in tasks)
        return memory()


def growth(contender, warm_up, tasks):
    """Memory that many tasks leave behind."""
    with _pool(contender).open() as pool:
        _run_tasks(pool, warm_up)
        before = memory()
        start = time.perf_counter()
        _run_tasks(pool, tasks)
        seconds = time.perf_counter() - start
        after = memory()
    return {"seconds": seconds} | {key: after[key] - before[key] for key in after}


def idle(contender, seconds):
    """What a pool that worked and has nothing more to do takes from the cores.

    ``"no pool"`` stands for the bare process.
    """
    if contender == NO_POOL:
        return _idle(seconds)
    with _pool(contender).open() as pool:
        _run_tasks(pool, 1000)
        return _idle(seconds)


def group_apply(contender, count):
    """A Python function applied to the groups of a frame of `count` rows."""
    parts = data_work.make_parts(count, PARTS)
    return _twice(contender, data_work.apply_to_groups, parts, _sum_of_sums)


def monte_carlo(contender, count):
    """`count` simulations, each with a seed of its own."""
    import numpy  # noqa: F401

    return _twice(contender, data_work.simulate, range(count), sum)


def joblib_python(contender, count):
    """Pure Python code, in `count` tasks."""
    return _twice_in_joblib(contender, work.compute, [(STEPS,)] * count)


def joblib_small(contender, count):
    """`count` tasks that do next to nothing."""
    return _twice_in_joblib(contender, math.sqrt, [(x,) for x in range(count)])


def joblib_array(contender, count):
    """`count` tasks with the same array of 80 MB, of which each reads one item."""
    array = work.ones(ARRAY)
    return _twice_in_joblib(contender, work.first_item, [(array,)] * count)


def joblib_forest(contender, count):
    """Cross-validation of a random forest by scikit-learn, `count` times."""

    def score():
        return sum(data_work.score_forest(seed) for seed in range(count))

    return _twice_under_joblib(contender, score)


def _twice_in_joblib(contender, function, arguments):
    import joblib

    def call():
        return sum(joblib.Parallel()(joblib.delayed(function)(*args) for args in arguments))

    return _twice_under_joblib(contender, call)


def _twice_under_joblib(contender, call):
    """Call what uses joblib with a backend that starts, and once more, as `_twice` does."""
    import joblib

    gc.collect()
    start = time.perf_counter()
    if contender == OURS:
        from subinterp.integrations import joblib as ours

        ours.register()
    with joblib.parallel_config(backend=contender, n_jobs=WORKERS):
        value = call()
        middle = time.perf_counter()
        again = call()
        end = time.perf_counter()
    if contender == OURS:
        ours.shutdown()
    elif contender == "loky":
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)
    ending = time.perf_counter() - end
    if not math.isclose(again, value):
        raise RuntimeError(f"{contender} found {value}, and then {again}")
    first, warm = middle - start, end - middle
    return {"total": first + ending, "first": first, "warm": warm, "value": value}


def _sum_of_sums(arrays):
    return float(sum(array.sum() for array in arrays))


def _twice(contender, function, items, summarise):
    """Map a function over items in a new pool, and once more.

    Returns
    -------
    dict of str to float
        ``"value"`` is what `summarise` makes of the results, both times the same.
    """
    gc.collect()
    start = time.perf_counter()
    with nullcontext() if contender == SERIAL else _pool(contender).open() as pool:
        run = map if pool is None else pool.map
        value = summarise(list(run(function, items)))
        middle = time.perf_counter()
        again = summarise(list(run(function, items)))
        end = time.perf_counter()
    ending = time.perf_counter() - end
    if again != value:
        raise RuntimeError(f"{contender} found {value}, and then {again}")
    first, warm = middle - start, end - middle
    return {"total": first + ending, "first": first, "warm": warm, "value": value}


def import_numpy(contender, where):
    """The time that two workers, one after the other, or main take to import NumPy."""
    if where == "fresh main":
        # Not this one, which has imported for itself much of what NumPy needs.
        code = "from bench.data_work import import_numpy; print(import_numpy()[0])"
        command = [sys.executable, "-c", code]
        seconds = float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
        return {"first": seconds, "next": seconds}
    if "main has it" in where:
        data_work.import_numpy()
    from subinterp import InterpreterPool

    found = []
    # Pools of one worker each, at the same time: so they are two interpreters.
    with InterpreterPool(1) as one, InterpreterPool(1) as other:
        for pool in (one, other):
            pool.submit(work.hold, 0).result()
            found.append(pool.submit(data_work.import_numpy).result()[0])
    return {"first": found[0], "next": found[1]}


SERIAL = "serial"
PARTS = 16
STEPS = 300_000  # a few hundredths of a second
ARRAY = 10_000_000  # doubles
BARE = "bare interpreter"
NO_POOL = "no pool"
WAVE = 5000  # tasks in flight at once


def _pool(name):
    return next(pool for pool in POOLS if pool.name == name)


def _bare_interpreters(count):
    try:
        import _interpreters
    except ImportError as error:
        raise RuntimeError("this Python cannot make interpreters") from error
    return [_interpreters.create("isolated") for _ in range(count)]


def _run_tasks(pool, count):
    for first in range(0, count, WAVE):
        wave = range(first, min(first + WAVE, count))
        for future in [pool.submit(math.sqrt, x) for x in wave]:
            future.result()
        del future


def _idle(seconds):
    time.sleep(0.5)  # whatever spins has given up by then
    pids = family()
    switches, cpu = _context_switches(pids), _cpu_seconds(pids)
    start = time.perf_counter()
    time.sleep(seconds)
    elapsed = time.perf_counter() - start
    cpu = _cpu_seconds(pids) - cpu
    switches = _context_switches(pids) - switches
    return {"cpu": cpu / elapsed, "wakeups": switches / elapsed}


# What the system tells


def memory():
    """Return RSS and PSS of this process and its children, in bytes."""
    gc.collect()
    total = {"rss": 0, "pss": 0}
    for pid in family():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key.lower() in total:
                total[key.lower()] += int(rest.split()[0]) * 1024
    return total


def _cpu_seconds(pids):
    # The clock id of another process's CPU time, as clock_getcpuclockid makes it.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def _context_switches(pids):
    """Count how often threads, the calling one aside, were put on a core."""
    own = os.getpid()
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            if status.parent.name == str(own):
                continue
            for line in status.read_text().splitlines():
                if "ctxt_switches" in line:
                    total += int(line.split()[1])
    return total

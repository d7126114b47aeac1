"""What Dask tasks of the tests do: importable on Dask workers too, and quick to import."""

import os
import threading
import time
from pathlib import Path


def interpreter(_=None):
    """Return (process, interpreter) that this runs in; 0 is the main interpreter."""
    from subinterp import _core

    return os.getpid(), _core.current_interpreter_id()


def add(a, b=0):
    return a + b


def total(numbers, by=None):
    return sum(numbers) + sum((by or {}).values())


def fail(text):
    try:
        {}["missing"]
    except KeyError:
        raise_it(text)


def raise_it(text):
    raise ZeroDivisionError(text)


class Tally:
    count = 0

    def add(self):
        self.count += 1
        return self.count, interpreter()[1]


def lock(_=None):
    return {"locks": [threading.Lock()]}


def hold(_lock):
    return "held"


def spin(folder, name):
    """Compute for ever, unless the file `done` is there; leaves a file when it begins."""
    (Path(folder) / name).touch()
    while not (Path(folder) / "done").exists():
        sum(range(1000))
    return name


def fail_first(folder, times):
    """Fail as often; return how often it was called, with the interpreters."""
    with (Path(folder) / "calls").open("a") as file:
        file.write(f"{interpreter()[1]}\n")
    calls = (Path(folder) / "calls").read_text().split()
    if len(calls) <= times:
        raise OSError(f"attempt {len(calls)}")
    return [int(call) for call in calls]


def compute(seconds, _=None):
    """Keep a core busy; return (process, start, end)."""
    start = time.time()
    while time.time() < start + seconds:
        sum(range(1000))
    return os.getpid(), start, time.time()


def never_end(folder):
    """Compute in C, where nothing interrupts."""
    (Path(folder) / "begun").touch()
    return sum(range(10**12))


def ask_for_worker():
    from distributed import get_worker

    return get_worker().address


def secede():
    import distributed

    distributed.secede()


def submit_from_task():
    from distributed import worker_client

    with worker_client() as client:
        return client.submit(interpreter).result(timeout=60)


def take_lock():
    from distributed import Lock

    with Lock("daskwork"):
        pass


def submit_by_own_client(address):
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return client.submit(add, 1, 2).result(timeout=60)


def reschedule_first(folder):
    from distributed import Reschedule

    flag = Path(folder) / "flag"
    if not flag.exists():
        flag.touch()
        raise Reschedule
    return interpreter()


def leave():
    raise SystemExit(3)


def log(text):
    import logging

    logging.getLogger("tests.dask").warning(text)


def imported():
    import sys

    return {name for name in ("dask", "distributed", "cloudpickle") if name in sys.modules}

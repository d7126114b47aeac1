"""What else the machine did meanwhile: the measure of a benchmark's noise."""

import os
import time
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


def family():
    """Return the ids of this process and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        if fields := _fields(stat):
            parents[int(stat.parent.name)] = int(fields[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


class Others:
    """Cores that others kept busy since this was made.

    It counts other processes of this machine, and other machines as far as a
    hypervisor tells (steal). Our own processes count until they end; those
    that their parents waited for, for ever.
    """

    def __init__(self):
        self._start = time.perf_counter()
        self._before = self._seconds()

    def cores(self):
        """Return how many cores others used, on average."""
        elapsed = time.perf_counter() - self._start
        return max(0.0, (self._seconds() - self._before) / elapsed)

    @staticmethod
    def _seconds():
        own = 0
        for pid in family():
            # utime, stime, and those of the children it waited for
            own += sum(map(int, _fields(Path(f"/proc/{pid}/stat"))[11:15]))
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
        return (user + nice + system + irq + softirq + steal - own) * TICK


def _fields(stat):
    """Return the fields of a process from its state on, if it still exists."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []

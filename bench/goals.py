"""The figures that subinterp sets out to reach, beside its rivals.

They hold for CPython 3.14 with two workers on two cores. Most are ratios
within one round, since machines differ and drift; the report judges their
medians, and nothing fails when one is missed.
"""

from dataclasses import dataclass

from bench.contenders import OURS


@dataclass(frozen=True)
class Goal:
    """One bound.

    Attributes
    ----------
    case, figure : str
        What is judged.
    text : str
        The bound, as the report shows it.
    bound : float
        In the figure's unit; with a rival, how many times better than it.
    beside : str
        The contender to compare with, if any.
    ours : str
        The contender that is judged.
    more : bool
        Whether `bound` is a lower one. With a rival it always is.
    """

    case: str
    figure: str
    text: str
    bound: float
    beside: str = ""
    ours: str = OURS
    more: bool = False

    def met(self, value):
        """Say whether a value is within the bound."""
        lower = self.more or bool(self.beside)
        return value >= self.bound if lower else value <= self.bound


INTERPRETERS, THREADS = "InterpreterPoolExecutor", "ThreadPoolExecutor"
PROCESSES = "ProcessPoolExecutor"
ARRAY = f"{OURS}, shared array"
BUFFER, VIEW = f"{OURS}, SharedBuffer", f"{OURS}, memoryview"

GOALS = (
    Goal("latency_hot", "p50", "1/25 of interpreters' time", 25, INTERPRETERS),
    Goal("latency_hot", "p50", "1/7 of threads' time", 7, THREADS),
    Goal("latency_hot", "p50", "about 4 us", 4.5e-6),
    Goal("throughput", "rate", "40x interpreters", 40, INTERPRETERS),
    Goal("throughput", "rate", "5x threads", 5, THREADS),
    Goal("throughput", "rate", "about 500,000/s", 450_000, more=True),
    Goal("map", "rate", "3x processes in chunks of 1000", 3, "ProcessPoolExecutor"),
    Goal("map", "rate", "near serial (0.8x)", 0.8, "list comprehension"),
    Goal("map", "rate", "about 7,700,000/s", 7e6, more=True),
    Goal("scaling", "speedup", "1.9x", 1.9, more=True),
    Goal("scaling", "speedup", "as processes (0.97x)", 0.97, "ProcessPoolExecutor"),
    Goal("scaling", "overhead", "no slower than main (1.05x)", 1.05),
    Goal("bytes", "rate", "0.9x bytearray(b)", 0.9, "bytearray(b)"),
    Goal("bytes", "rate", "above interpreters", 1, INTERPRETERS),
    Goal("shared_buffer", "growth", "same at any size (1.25x)", 1.25, ours=BUFFER),
    Goal("shared_buffer", "growth", "same at any size (1.25x)", 1.25, ours=VIEW),
    Goal("array_argument", "rate", "5x processes", 5, PROCESSES),
    Goal("array_result", "rate", "5x processes", 5, PROCESSES),
    Goal("array_argument", "rate", "0.9x a.copy()", 0.9, "array.copy()"),
    Goal("shared_array", "growth", "same at any size (1.25x)", 1.25, ours=ARRAY),
    Goal("startup", "both", "half of interpreters' time", 2, INTERPRETERS),
    Goal("channel_hot", "p50", "5 us", 5e-6),
    Goal("channel_idle", "p50", "20 us", 20e-6),
    Goal("channel_one_way", "rate", "1,000,000/s", 1e6, more=True),
    Goal("memory", "pss", "4.5 MB", 4.5e6),
    Goal("growth", "rss", "none (2 B a task)", 2e6),
    Goal("group_apply", "warm", "1.9x serial", 1.9, "serial"),
    Goal("group_apply", "total", "as processes", 1, "ProcessPoolExecutor"),
    Goal("group_apply", "total", "as loky", 1, "loky"),
    Goal("monte_carlo", "warm", "1.9x serial", 1.9, "serial"),
    Goal("monte_carlo", "total", "as processes", 1, "ProcessPoolExecutor"),
    Goal("monte_carlo", "total", "as loky", 1, "loky"),
    Goal("import_numpy", "first", "1.3x a fresh main", 1 / 1.3, "fresh main"),
    Goal("import_numpy", "next", "1.3x a fresh main", 1 / 1.3, "fresh main"),
    Goal("memory_numpy", "pss", "25 MB", 25e6),
    Goal("interrupt", "p99", "50 ms", 50e-3, ours=f"{OURS}, Python code"),
    Goal("awaits", "rate", "10x interpreters", 10, INTERPRETERS),
    Goal("idle", "cpu", "0 (0.5 ms a second)", 0.5e-3),
    Goal("idle", "wakeups", "0", 0),
)

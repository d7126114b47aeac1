"""joblib's tasks, with its own backends and with ours.

Each turn is a process of its own, in which the backend starts, does the work, does it once more
with the same workers, and ends.
"""

from bench.bench_extensions import Parallel
from bench.contenders import OURS, Contender
from bench.race import Effort, race


class Backend(Contender):
    """One of joblib's backends; the probe makes it."""

    needs = ("joblib", "numpy")

    def __init__(self, name):
        self.name = name


class OurBackend(Backend):
    ours = True
    needs = ("subinterp:InterpreterPool", *Backend.needs)


class SklearnBackend(Backend):
    needs = (*Backend.needs, "sklearn")


class OurSklearnBackend(OurBackend):
    needs = (*OurBackend.needs, "sklearn")


RIVALS = ("loky", "threading")


class Tasks(Parallel):
    contenders = (OurBackend(OURS), *map(Backend, RIVALS))


class PythonTasks(Tasks):
    name = "joblib_python"
    title = "joblib: tasks of pure Python code"
    probe = "joblib_python"
    full = Effort(rounds=5, count=100)
    short = Effort(rounds=2, count=40)


class SmallTasks(Tasks):
    """joblib gathers them in batches."""

    name = "joblib_small"
    title = "joblib: tasks that do next to nothing"
    probe = "joblib_small"
    full = Effort(rounds=5, count=100_000)
    short = Effort(rounds=2, count=20_000)


class ArrayTasks(Tasks):
    """It is shared, as a mapped file or as it is."""

    name = "joblib_array"
    title = "joblib: tasks with the same array of 80 MB"
    probe = "joblib_array"
    full = Effort(rounds=5, count=100)
    short = Effort(rounds=2, count=40)


class ForestTasks(Parallel):
    """Workers import scikit-learn, the main program has it."""

    name = "joblib_forest"
    title = "scikit-learn: cross-validation of a random forest"
    probe = "joblib_forest"
    contenders = (OurSklearnBackend(OURS), *map(SklearnBackend, RIVALS))
    full = Effort(rounds=3, count=6)
    short = Effort(rounds=1, count=2)


bench_joblib_python = race(PythonTasks)
bench_joblib_small = race(SmallTasks)
bench_joblib_array = race(ArrayTasks)
bench_joblib_forest = race(ForestTasks)

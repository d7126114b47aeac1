"""What the second part of the demo computes: how sure the findings of a small study are.

The data set ships with scikit-learn: 442 patients, ten figures of each, and how far their
diabetes went on within a year. The study is repeated very often with patients drawn anew
(with replacement, from the same ones); how much its findings differ says how sure they are.
Each repetition is many small steps of pandas and NumPy, as most such work is.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

PACKAGES = ("numpy", "pandas", "sklearn")
# What scikit-learn calls them, and what they are.
FEATURES = {
    "age": "age",
    "sex": "sex",
    "bmi": "body mass index",
    "bp": "blood pressure",
    "s1": "total cholesterol",
    "s2": "low-density lipoproteins",
    "s3": "high-density lipoproteins",
    "s4": "cholesterol ratio",
    "s5": "triglycerides",
    "s6": "blood sugar",
}


class Finding(NamedTuple):
    """What one repetition of the study found."""

    seed: int
    influence: tuple[float, ...]  # of each feature, as coefficients of a linear model
    explained: float  # share of the variance
    medians: tuple[float, ...]  # of the progression, by quarters of the body mass index
    spread: float  # between age groups, of the mean progression without the extremes


class Interval(NamedTuple):
    """Where a figure lies in 95 % of the repetitions."""

    name: str
    middle: float
    low: float
    high: float


def missing_packages() -> list[str]:
    """Return the packages that this part of the demo needs and that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


@cache
def read_patients() -> Any:
    """Return the data set as a pandas data frame; done once, in main."""
    from sklearn.datasets import load_diabetes

    return load_diabetes(as_frame=True).frame


# The data set of this interpreter or process; a list, so that it can be filled.
_everybody: list[Any] = []


def prepare(frame: Any) -> None:
    """Keep the data set, and import what the work needs; each engine calls this in its workers."""
    import numpy  # noqa: F401
    import pandas  # noqa: F401

    _everybody[:] = [frame]


def repeat_study(seed: int) -> Finding:
    """Do the study with patients drawn by a generator with this seed."""
    import numpy as np
    import pandas as pd

    [everybody] = _everybody
    chosen = np.random.default_rng(seed).integers(len(everybody), size=len(everybody))
    frame = everybody.iloc[chosen].reset_index(drop=True)

    columns = [(frame[name] - frame[name].mean()).to_numpy() for name in FEATURES]
    target = (frame["target"] - frame["target"].mean()).to_numpy()
    matrix = np.column_stack(columns)
    # The normal equations: small enough that no library starts threads of its own.
    solution = np.linalg.solve(matrix.T @ matrix, matrix.T @ target)
    rest = target - matrix @ solution

    quarters = pd.qcut(frame["bmi"], 4, labels=False, duplicates="drop")
    medians = frame.groupby(quarters)["target"].median()
    groups = frame.groupby(pd.cut(frame["age"], 5, labels=False))["target"]
    means = groups.apply(without_extremes)
    # Rounded, as sums may be added up in another order elsewhere.
    return Finding(
        seed,
        tuple(round(float(value), 6) for value in solution),
        round(1 - float(rest @ rest) / float(target @ target), 9),
        tuple(float(value) for value in medians),
        round(float(means.max() - means.min()), 6),
    )


def without_extremes(values: Any) -> float:
    """Return the mean of what is left without the smallest and the largest tenth."""
    ordered = sorted(values)
    cut = len(ordered) // 10
    kept = ordered[cut : len(ordered) - cut]
    return float(sum(kept)) / len(kept)


def intervals(findings: Sequence[Finding]) -> list[Interval]:
    """Return the influence of every feature, the strongest first."""
    import numpy as np

    influence = np.array([finding.influence for finding in findings])
    low, middle, high = np.percentile(influence, (2.5, 50, 97.5), axis=0)
    found = [
        Interval(name, float(middle[at]), float(low[at]), float(high[at]))
        for at, name in enumerate(FEATURES.values())
    ]
    return sorted(found, key=lambda interval: -abs(interval.middle))

"""Work for NumPy and pandas, for workers to import by name."""

from functools import cache


def import_numpy():
    """Import NumPy; return the seconds it took, and which worker did it."""
    import time
    from _thread import get_native_id

    start = time.perf_counter()
    import numpy  # noqa: F401

    return time.perf_counter() - start, get_native_id()


def hold_with(modules, seconds):
    """Import modules and keep the worker busy; return which worker it was."""
    from importlib import import_module

    from bench.work import hold

    for module in modules:
        import_module(module)
    return hold(seconds)


# A frame of measurements, grouped


def make_parts(rows, parts):
    """Make a frame of measurements by many devices, in parts that share no device.

    Returns
    -------
    list of pandas.DataFrame
    """
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(1)
    each = rows // parts
    return [
        pd.DataFrame(
            {
                "device": random.integers(each // 200, size=each) + part * each,
                "value": random.normal(size=each),
                "weight": random.random(size=each),
            }
        )
        for part in range(parts)
    ]


def trimmed(group):
    """Return a mean without extremes, by a loop in Python: what groupby has no name for."""
    pairs = sorted(zip(group["value"].tolist(), group["weight"].tolist(), strict=True))
    cut = len(pairs) // 10
    total = weights = 0.0
    for value, weight in pairs[cut : len(pairs) - cut]:
        total += value * weight
        weights += weight
    return total / weights


def apply_to_groups(frame):
    """Return the trimmed means of all devices in a part, as one array."""
    return frame.groupby("device")[["value", "weight"]].apply(trimmed).to_numpy()


# Monte-Carlo

STEPS, PATHS = 64, 3000


def simulate(seed):
    """Price an option that depends on the whole path; its rule is a Python function.

    Returns
    -------
    float
        The mean payoff over all paths of this seed.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    steps = random.normal(0.0002, 0.02, size=(PATHS, STEPS))
    prices = 100 * np.exp(np.cumsum(steps, axis=1))
    return float(np.apply_along_axis(payoff, 1, prices).mean())


def payoff(path):
    """Pay what is above the mean, unless the price has fallen too far; a rebate for long calms."""
    if path.min() < 70:
        return 0.0
    mean = path.mean()
    calm = longest = 0
    last = 100.0
    for price in path.tolist():
        calm = calm + 1 if abs(price - last) < 1.0 else 0
        longest = max(longest, calm)
        last = price
    return max(path[-1] - mean, 0.0) + 0.01 * longest


# What the soak test does, again and again


def score_forest(seed):
    """Score a small random forest, made with a seed, by cross-validation."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    forest = RandomForestClassifier(20, random_state=seed)
    return float(cross_val_score(forest, *load_breast_cancer(return_X_y=True), cv=4).sum())


def soak(kind, seed):
    """Do one piece of real work; the same seed gives the same result."""
    return KINDS[kind](seed)


@cache
def _frame(size):
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "key": random.integers(50, size=size),
            "name": random.choice(["north", "south", "east", "west"], size=size),
            "value": random.normal(size=size),
            "time": pd.date_range("2026-01-01", periods=size, freq="min"),
        }
    )


def _grouped(seed):
    frame = _frame(20_000).sample(10_000, random_state=seed)
    spread = frame.groupby("key")["value"].apply(lambda values: float(values.max() - values.min()))
    table = frame.pivot_table(index="key", columns="name", values="value", aggfunc="mean")
    return round(float(spread.sum() + table.to_numpy().sum()), 6)


def _merged(seed):
    frame = _frame(20_000).sample(5_000, random_state=seed).sort_values("time")
    means = frame.groupby("name", as_index=False)["value"].mean()
    merged = frame.merge(means, on="name", suffixes=("", "_mean"))
    daily = merged.set_index("time").sort_index().resample("h")["value"].sum()
    return round(float(daily.rolling(5, min_periods=1).max().sum()), 6)


def _text(seed):
    import io

    import pandas as pd

    frame = _frame(20_000).sample(2_000, random_state=seed)
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)), parse_dates=["time"])
    counts = back["name"].str.upper().value_counts()
    return int(counts["NORTH"]), round(float(back["value"].sum()), 6)


def _linear(seed):
    import numpy as np

    matrix = np.random.default_rng(seed).normal(size=(150, 150))
    _, values, _ = np.linalg.svd(matrix)
    return round(float(values.sum()), 6)


def _arrays(seed):
    import numpy as np

    random = np.random.default_rng(seed)
    signal = random.normal(size=50_000)
    power = np.abs(np.fft.rfft(signal)) ** 2
    words = np.array([f"w{n % 97}" for n in range(2_000)], dtype=object)
    found, counts = np.unique(words, return_counts=True)
    try:
        np.linalg.inv(np.zeros((3, 3)))
    except np.linalg.LinAlgError:
        pass
    return round(float(np.log(power[1:]).mean()), 6), len(found), int(counts.max())


KINDS = {
    "grouped": _grouped,
    "merged": _merged,
    "text": _text,
    "linear": _linear,
    "arrays": _arrays,
    "simulate": simulate,
}

"""Value an option on the average price of a share by simulation, with NumPy.

    python examples/monte_carlo.py --demo
    python examples/monte_carlo.py --paths 2000000 --strike 105 --workers 4

Each task simulates a batch of paths with a stream of random numbers of its own, spawned from one
seed. So the result depends on the seed and the batches, but neither on the number of workers nor on
who is quicker. What comes back of a batch are two sums, however many paths it has.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

try:
    import numpy as np
except ImportError:
    sys.exit("this example needs NumPy: pip install numpy")

from subinterp import InterpreterPool


@dataclass(frozen=True)
class Option:
    """A call on the average of a share's daily prices.

    Attributes
    ----------
    price, strike
        Of the share today, and what the average is compared with.
    rate, volatility
        Interest and standard deviation a year, as fractions.
    days
        Trading days until the end; a year has 252.
    """

    price: float = 100.0
    strike: float = 100.0
    rate: float = 0.03
    volatility: float = 0.2
    days: int = 126


class Sums(NamedTuple):
    """What a batch comes to: how many paths, the sum of their payoffs and of the squares."""

    n: int
    total: float
    squares: float


def simulate(option: Option, batch: "tuple[np.random.SeedSequence, int]") -> Sums:
    """Simulate some paths; runs in a worker."""
    seed, n = batch
    rng = np.random.default_rng(seed)
    step = 1 / 252
    drift = (option.rate - option.volatility**2 / 2) * step
    moves = rng.normal(drift, option.volatility * math.sqrt(step), (n, option.days))
    prices = option.price * np.exp(np.cumsum(moves, axis=1))
    payoffs = np.maximum(prices.mean(axis=1) - option.strike, 0.0)
    payoffs *= math.exp(-option.rate * option.days * step)
    return Sums(n, float(payoffs.sum()), float((payoffs**2).sum()))


def batches(paths: int, size: int, seed: int) -> "list[tuple[np.random.SeedSequence, int]]":
    """Split the paths; each batch gets a stream of random numbers of its own."""
    sizes = [min(size, paths - start) for start in range(0, paths, size)]
    return list(zip(np.random.SeedSequence(seed).spawn(len(sizes)), sizes, strict=True))


def estimate(results: Iterable[Sums]) -> tuple[float, float]:
    """Return the value and its standard error, from batches in order."""
    n, total, squares = (math.fsum(column) for column in zip(*results, strict=True))
    mean = total / n
    return mean, math.sqrt(max(squares / n - mean**2, 0.0) / n)


def value(
    option: Option, paths: int, size: int = 10_000, seed: int = 1, workers: int | None = None
) -> tuple[float, float]:
    """Simulate in workers; return the value and its standard error."""
    with InterpreterPool(workers) as pool:
        return estimate(pool.map(partial(simulate, option), batches(paths, size, seed)))


def main(argv: Sequence[str] | None = None) -> int:
    """Value the option that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", action="store_true", help="value one at the money: the default")
    parser.add_argument("--paths", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=10_000, help="paths in a task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strike", type=float, default=100.0, help="the share is at 100")
    parser.add_argument("--volatility", type=float, default=0.2, help="a year, as a fraction")
    parser.add_argument("--workers", type=int, help="default: as many as there are processors")
    options = parser.parse_args(argv)
    if options.paths < 1 or options.batch < 1:
        parser.error("--paths and --batch must be at least 1")
    if not 0 <= options.volatility < math.inf or not 0 <= options.strike < math.inf:
        parser.error("--strike and --volatility must be numbers from 0 on")
    option = Option(strike=options.strike, volatility=options.volatility)
    try:
        mean, error = value(option, options.paths, options.batch, options.seed, options.workers)
    except ValueError as problem:
        parser.error(str(problem))
    print(f"{mean:.4f} +- {error:.4f} after {options.paths:,} paths")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A pipeline of interpreters joined by channels: parse, transform, aggregate.

    python examples/pipeline.py --demo
    python examples/pipeline.py readings.csv

The input has lines `hour,station,fahrenheit`; the result is the mean of each station in Celsius.
Each stage is a task that runs as long as there is input, in an interpreter of its own, so that all
three work at the same time. The channels hold a few blocks at most: a stage that is slow slows down
those before it, and memory stays small however long the input is.

A stage that fails closes its ends of the channels. Its neighbours then cannot send or receive any
more, and end too, so nobody waits for ever.
"""

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from subinterp import ChannelClosed, InterpreterPool, RecvChannel, SendChannel, create_channel

# Lines that travel at a time: a message for each would cost more than the work on it.
BLOCK = 500

Block = tuple[int, list[str]]
Reading = tuple[int, str, float]


def read_blocks(lines: Iterable[str]) -> Iterator[Block]:
    """Split lines into numbered blocks: the number of the first line, and the lines."""
    rest = iter(lines)
    for first in itertools.count(1, BLOCK):
        block = list(itertools.islice(rest, BLOCK))
        if not block:
            return
        yield first, block


def parse(block: Block) -> list[Reading]:
    """Turn text into values; ValueError names a bad line."""
    first, lines = block
    readings = []
    for number, line in enumerate(lines, first):
        try:
            hour, station, fahrenheit = line.strip().split(",")
            readings.append((int(hour), station.strip(), float(fahrenheit)))
        except ValueError:
            raise ValueError(
                f"line {number} must be hour,station,fahrenheit, not {line.strip()!r}"
            ) from None
    return readings


def transform(readings: list[Reading]) -> list[Reading]:
    """Convert to Celsius, and drop what no thermometer shows."""
    celsius = ((hour, station, (value - 32) / 1.8) for hour, station, value in readings)
    return [reading for reading in celsius if -90 < reading[2] < 60]


def aggregate(blocks: Iterable[list[Reading]]) -> dict[str, float]:
    """Return the mean of each station."""
    sums: dict[str, tuple[float, int]] = {}
    for readings in blocks:
        for _, station, value in readings:
            total, n = sums.get(station, (0.0, 0))
            sums[station] = total + value, n + 1
    return {station: total / n for station, (total, n) in sorted(sums.items())}


def run_stage(work: Callable[[Any], Any], recv: RecvChannel, send: SendChannel) -> None:
    """Work on what comes, until no more can come; runs in a worker."""
    with recv, send:
        for item in recv:
            send.send(work(item))


def run_last(work: Callable[[Iterable[Any]], Any], recv: RecvChannel) -> Any:
    """Give all that comes to a function; runs in a worker."""
    with recv:
        return work(recv)


def run(lines: Iterable[str]) -> dict[str, float]:
    """Send lines through the pipeline; return the mean of each station."""
    channels = [create_channel(maxsize=4) for _ in range(3)]
    (to_parse, source), (to_transform, parsed), (to_aggregate, transformed) = channels
    # A worker for each stage: one that waited for a worker would hold up the one before it.
    with InterpreterPool(3) as pool:
        stages = [
            pool.submit(run_stage, parse, to_parse, parsed),
            pool.submit(run_stage, transform, to_transform, transformed),
            pool.submit(run_last, aggregate, to_aggregate),
        ]
        # The stages have ends of their own. A channel is over once nobody can send any more.
        for end in (to_parse, to_transform, to_aggregate, parsed, transformed):
            end.close()
        try:
            with source:
                for block in read_blocks(lines):
                    source.send(block)
        except ChannelClosed:
            pass  # a stage has failed, and says why
        errors = [error for stage in stages if (error := stage.exception())]
        for error in errors:
            # Not those that only met with a channel's end.
            if not isinstance(error, ChannelClosed):
                raise error
        result: dict[str, float] = stages[-1].result()
        return result


def make_lines(n: int = 20_000) -> Iterator[str]:
    """Make readings; the same ones each time."""
    rng = random.Random(1)
    for k in range(n):
        station = rng.choice(("Accra", "Bergen", "Cusco"))
        yield f"{k // 60 % 24},{station},{rng.gauss(60 + len(station), 15):.1f}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Aggregate the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="lines of hour,station,fahrenheit")
    parser.add_argument("--demo", action="store_true", help="make a file, and work on this one")
    options = parser.parse_args(argv)
    if options.demo == bool(options.file):
        parser.error("name a file, or --demo")
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "readings.csv"
        if options.demo:
            path.write_text("".join(make_lines()))
        try:
            with path.open(encoding="utf-8") as file:
                means = run(file)
        except (OSError, ValueError) as error:
            parser.error(f"{path}: {error}")
    for station, mean in means.items():
        print(f"{station}: {mean:.2f} degrees Celsius")
    return 0


if __name__ == "__main__":
    sys.exit(main())

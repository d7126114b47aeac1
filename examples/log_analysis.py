"""Analyse many log files of a web server at once, gzipped ones too.

    python examples/log_analysis.py --demo
    python examples/log_analysis.py /var/log/nginx/access.log*

Each worker reads a file of its own and sends back a small summary, an object of a class from this
script. `imap_unordered` gives them as they are complete, so that a large file holds nobody up.
"""

import argparse
import gzip
import random
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from subinterp import InterpreterPool

# The common log format, of which the combined one is a longer form.
LINE = re.compile(r'(\S+) \S+ \S+ \[[^]]*\] "(\S+) (\S+)[^"]*" (\d{3}) (\d+|-)')


@dataclass
class Summary:
    """What one log file says, or several."""

    requests: int = 0
    bytes_sent: int = 0
    bad_lines: int = 0
    clients: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def add(self, other: "Summary") -> None:
        """Take what another one says into this one."""
        self.requests += other.requests
        self.bytes_sent += other.bytes_sent
        self.bad_lines += other.bad_lines
        self.clients |= other.clients
        self.statuses += other.statuses
        self.paths += other.paths
        self.unreadable += other.unreadable


def summarise(path: str) -> Summary:
    """Read one file; runs in a worker."""
    summary = Summary()
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            for line in file:
                match = LINE.match(line)
                if match is None:
                    summary.bad_lines += 1
                    continue
                client, _, target, status, size = match.groups()
                summary.requests += 1
                summary.bytes_sent += 0 if size == "-" else int(size)
                summary.clients.add(client)
                summary.statuses[status] += 1
                summary.paths[target.partition("?")[0]] += 1
    except (OSError, EOFError, zlib.error) as error:
        # What was read counts; the rest of the files as well.
        summary.unreadable.append(f"{path}: {error}")
    return summary


def analyse(paths: Iterable[str], workers: int | None = None) -> Summary:
    """Summarise all files, as many at a time as there are workers."""
    total = Summary()
    with InterpreterPool(workers) as pool:
        for summary in pool.imap_unordered(summarise, paths, chunksize=1):
            total.add(summary)
    return total


def show(summary: Summary, n_paths: int) -> None:
    """Print the result."""
    print(f"{summary.requests:,} requests of {len(summary.clients):,} clients")
    print(f"{summary.bytes_sent:,} bytes sent; {summary.bad_lines:,} lines not understood")
    print("statuses:", ", ".join(f"{s}: {n:,}" for s, n in sorted(summary.statuses.items())))
    # Equally frequent ones by name: in which order files were read shall not show.
    frequent = sorted(summary.paths.items(), key=lambda item: (-item[1], item[0]))
    for path, n in frequent[:n_paths]:
        print(f"{n:9,}  {path}")


def make_logs(folder: Path, files: int = 12, lines: int = 5_000) -> list[str]:
    """Write log files to analyse; the same ones each time."""
    rng = random.Random(1)
    paths = []
    for day in range(1, files + 1):
        text = "".join(
            f"10.0.{rng.randrange(4)}.{rng.randrange(256)} - - [{day:02}/Nov/2026:12:00:00 +0000] "
            f'"GET /page{int(rng.expovariate(0.2))}?q={n} HTTP/1.1" '
            f"{rng.choices((200, 304, 404, 500), (90, 5, 4, 1))[0]} {rng.randrange(20_000)}\n"
            for n in range(lines)
        )
        paths.append(str(folder / f"access-{day:02}.log.gz"))
        with gzip.open(paths[-1], "wt", compresslevel=1) as file:
            file.write(text + "not a request\n")
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Analyse what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--demo", action="store_true", help="make files, and analyse these")
    parser.add_argument("--workers", type=int, help="default: as many as there are processors")
    parser.add_argument("--top", type=int, default=5, help="how many paths to show")
    options = parser.parse_args(argv)
    if options.demo == bool(options.files):
        parser.error("name log files, or --demo")
    with tempfile.TemporaryDirectory() as folder:
        paths = make_logs(Path(folder)) if options.demo else options.files
        try:
            summary = analyse(paths, options.workers)
        except ValueError as error:
            parser.error(str(error))
    show(summary, options.top)
    for complaint in summary.unreadable:
        print(f"not read to its end: {complaint}", file=sys.stderr)
    return 1 if summary.unreadable else 0


if __name__ == "__main__":
    sys.exit(main())

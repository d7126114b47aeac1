"""The ways to get the work done that the demo compares.

An engine is a generator function: it takes the paths and a number of workers, makes its
workers, yields the reports in the order of the paths, and ends its workers. The demo times
all of that, but not the imports of the libraries, which are all made up here.
"""

import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import NamedTuple

from analysis import Report, analyse, prepare
from subinterp import InterpreterPool

if sys.version_info >= (3, 14):
    from concurrent.futures import InterpreterPoolExecutor

# Processes need chunks: sent one by one, the paths would cost more than the result is worth.
PROCESS_CHUNK = 16


class Engine(NamedTuple):
    """A name for the tables, and what does the work; or the reason why it is not here."""

    name: str
    run: Callable[[Sequence[str], int], Generator[Report]] | None
    missing: str = ""


def run_serially(paths: Sequence[str], workers: int) -> Generator[Report]:
    """Do it in the main thread: what the others are compared with."""
    prepare()
    yield from map(analyse, paths)


def run_threads(paths: Sequence[str], workers: int) -> Generator[Report]:
    """Do it in threads, which share one lock."""
    with ThreadPoolExecutor(workers, initializer=prepare) as pool:
        yield from pool.map(analyse, paths)


def run_processes(paths: Sequence[str], workers: int) -> Generator[Report]:
    """Do it in processes."""
    with ProcessPoolExecutor(workers, initializer=prepare) as pool:
        yield from pool.map(analyse, paths, chunksize=PROCESS_CHUNK)


if sys.version_info >= (3, 14):

    def run_standard_interpreters(paths: Sequence[str], workers: int) -> Generator[Report]:
        """Do it in the standard library's interpreters."""
        with InterpreterPoolExecutor(workers, initializer=prepare) as pool:
            yield from pool.map(analyse, paths)


def run_subinterp(paths: Sequence[str], workers: int) -> Generator[Report]:
    """Do it in subinterp's interpreters."""
    with InterpreterPool(workers, initializer=prepare) as pool:
        yield from pool.map(analyse, paths)


def all_engines() -> list[Engine]:
    """Return every engine, in the order in which they run; the serial one comes first."""
    if sys.version_info >= (3, 14):
        standard = Engine("InterpreterPoolExecutor", run_standard_interpreters)
    else:
        standard = Engine("InterpreterPoolExecutor", None, "new in Python 3.14")
    return [
        Engine("serial", run_serially),
        Engine("threads", run_threads),
        Engine("processes", run_processes),
        standard,
        Engine("subinterp", run_subinterp),
    ]

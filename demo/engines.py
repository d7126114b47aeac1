"""The ways to get the work done that the demo compares.

An engine is a generator function: it takes the items of a job and a number of workers, makes its
workers, yields the results in the order of the items, and ends its workers. The demo times
all of that, but not the imports of the libraries, which are all made up here.
"""

import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import analysis
import resampling
from subinterp import InterpreterPool

if sys.version_info >= (3, 14):
    from concurrent.futures import InterpreterPoolExecutor


class Job(NamedTuple):
    """What is done to each item, and what each worker does first, with what main has made ready.

    Processes need chunks: sent one by one, the items would cost more than the result is worth.
    """

    function: Callable[[Any], Any]
    prepare: Callable[..., None]
    inputs: Callable[[], tuple[Any, ...]] = tuple
    chunk: int = 16


class Engine(NamedTuple):
    """A name for the tables, and what does the work; or the reason why it is not here."""

    name: str
    run: Callable[[Sequence[Any], int], Generator[Any]] | None
    missing: str = ""


FILES = Job(analysis.analyse, analysis.prepare)
STUDIES = Job(resampling.repeat_study, resampling.prepare, lambda: (resampling.read_patients(),))


def run_serially(items: Sequence[Any], workers: int, job: Job = FILES) -> Generator[Any]:
    """Do it in the main thread: what the others are compared with."""
    job.prepare(*job.inputs())
    yield from map(job.function, items)


def run_threads(items: Sequence[Any], workers: int, job: Job = FILES) -> Generator[Any]:
    """Do it in threads, which share one lock."""
    with ThreadPoolExecutor(workers, initializer=job.prepare, initargs=job.inputs()) as pool:
        yield from pool.map(job.function, items)


def run_processes(items: Sequence[Any], workers: int, job: Job = FILES) -> Generator[Any]:
    """Do it in processes."""
    with ProcessPoolExecutor(workers, initializer=job.prepare, initargs=job.inputs()) as pool:
        yield from pool.map(job.function, items, chunksize=job.chunk)


if sys.version_info >= (3, 14):

    def run_standard_interpreters(
        items: Sequence[Any], workers: int, job: Job = FILES
    ) -> Generator[Any]:
        """Do it in the standard library's interpreters."""
        with InterpreterPoolExecutor(
            workers, initializer=job.prepare, initargs=job.inputs()
        ) as pool:
            yield from pool.map(job.function, items)


def run_subinterp(items: Sequence[Any], workers: int, job: Job = FILES) -> Generator[Any]:
    """Do it in subinterp's interpreters."""
    with InterpreterPool(workers, initializer=job.prepare, initargs=job.inputs()) as pool:
        yield from pool.map(job.function, items)


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


def study_engines() -> list[Engine]:
    """Return every engine for the second part, the serial one first."""
    return [
        Engine("serial", partial(run_serially, job=STUDIES)),
        Engine("threads", partial(run_threads, job=STUDIES)),
        Engine("processes", partial(run_processes, job=STUDIES)),
        Engine("InterpreterPoolExecutor", None, "cannot import NumPy"),
        Engine("subinterp", partial(run_subinterp, job=STUDIES)),
    ]

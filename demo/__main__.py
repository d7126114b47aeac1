"""Compare ways to get work done in parallel: run `make demo`, or `python demo`.

The first part is pure Python: it analyses the whole standard library. The second part is work
for pandas and NumPy, on a data set that scikit-learn ships; it is left out where these packages
are not installed. In each, every engine does the same work on the same items; its time includes
making and ending its workers. All results are compared with those of the serial run. The demo
fails (exit code 1) if one differs or an engine breaks.
"""

import argparse
import contextlib
import gc
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from analysis import Summary, count_problems, find_files, standard_library, summarise
from engines import Engine, all_engines, study_engines
from resampling import Finding, intervals, missing_packages, read_patients
from screen import Progress, Screen, bars, table


class Outcome(NamedTuple):
    """How an engine did."""

    engine: Engine
    seconds: float | None
    verdict: str
    failed: bool = False


def main(
    argv: Sequence[str] | None = None,
    engines: Sequence[Engine] | None = None,
    studies: Sequence[Engine] | None = None,
) -> int:
    """Run the demo; return its exit code."""
    options = parse(argv)
    screen = Screen()
    paths = find_files(options.root or standard_library())[: options.limit]
    if not paths:
        screen.write(f"There are no .py files in {options.root or standard_library()}.")
        return 1
    try:
        failed = analyse_files(screen, options, paths, engines or all_engines())
        failed += repeat_studies(screen, options, studies or study_engines())
    except KeyboardInterrupt:
        screen.write("  Interrupted.")
        return 130
    if failed:
        screen.write(screen.paint(f"  FAILED: {', '.join(failed)}", "red"))
        screen.write()
    return 1 if failed else 0


def analyse_files(
    screen: Screen, options: argparse.Namespace, paths: Sequence[str], engines: Sequence[Engine]
) -> list[str]:
    """Run the first part; return the names of the engines that failed."""
    size = read_once(paths)
    root = options.root or standard_library()
    what = "the standard library of" if options.root is None else f"{root} with"
    screen.write()
    screen.write(
        screen.paint(f"  Analysing {what} CPython {platform.python_version()}", "bold")
        + f": {len(paths):,} files, {size / 1e6:.1f} MB"
    )
    show_workers(screen, options.workers)
    outcomes, reference = compare(screen, engines, paths, options.workers)
    show_outcomes(screen, outcomes, len(paths), "files/s")
    if reference is not None:
        show_findings(screen, summarise(reference, root))
    return [outcome.engine.name for outcome in outcomes if outcome.failed]


def repeat_studies(
    screen: Screen, options: argparse.Namespace, engines: Sequence[Engine]
) -> list[str]:
    """Run the second part; return the names of the engines that failed."""
    if options.repetitions == 0:
        return []
    missing = missing_packages()
    if missing:
        screen.write(f"  The part with pandas and NumPy is left out: no {', '.join(missing)} here.")
        screen.write()
        return []
    seeds = range(options.repetitions)
    patients = len(read_patients())
    screen.write(
        screen.paint("  Repeating a study of diabetes with pandas and NumPy", "bold")
        + f": {len(seeds):,} times, {patients} patients drawn anew each time"
    )
    show_workers(screen, options.workers)
    outcomes, reference = compare(screen, engines, seeds, options.workers)
    show_outcomes(screen, outcomes, len(seeds), "studies/s")
    if reference is not None:
        show_intervals(screen, reference)
    return [f"{outcome.engine.name} (studies)" for outcome in outcomes if outcome.failed]


def show_workers(screen: Screen, workers: int) -> None:
    """Write what all engines have in common."""
    screen.write(
        f"  {plural(workers, 'worker')} on {plural(os.process_cpu_count() or 1, 'CPU')}; "
        "each time includes starting and ending the workers"
    )
    screen.write()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python demo", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--workers",
        type=positive,
        default=os.process_cpu_count() or 1,
        help="threads, processes or interpreters to use (default: one for each usable CPU)",
    )
    parser.add_argument("--limit", type=positive, help="take only the first so many files")
    parser.add_argument("--root", help="analyse this folder instead of the standard library")
    parser.add_argument(
        "--repetitions",
        type=not_negative,
        default=2000,
        help="how often the second part repeats its study (default: 2000; 0 leaves it out)",
    )
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Read a number that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def not_negative(text: str) -> int:
    """Read a number that is at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def plural(number: int, noun: str) -> str:
    """Return the number and its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def read_once(paths: Sequence[str]) -> int:
    """Read every file, so that the first engine does not pay for a cold disk; return the size."""
    size = 0
    for path in paths:
        try:
            with open(path, "rb") as file:
                size += len(file.read())
        except OSError:
            pass  # the analysis reports it
    return size


def compare(
    screen: Screen, engines: Sequence[Engine], items: Sequence[Any], workers: int
) -> tuple[list[Outcome], list[Any] | None]:
    """Run the engines one after the other; the first one's results are the reference."""
    outcomes: list[Outcome] = []
    reference: list[Any] | None = None
    for number, engine in enumerate(engines):
        if engine.run is None:
            outcomes.append(Outcome(engine, None, engine.missing))
            screen.write(f"  {engine.name:<23}   {screen.paint(engine.missing, 'dim')}")
            continue
        try:
            seconds, results = run_engine(screen, engine, items, workers)
        except Exception as error:
            outcomes.append(Outcome(engine, None, f"broke: {type(error).__name__}", failed=True))
            screen.write(f"  {engine.name:<23}   {screen.paint('broke', 'red')}")
            traceback.print_exc()
            continue
        failed = False
        if number == 0:
            reference = results
            verdict = "the reference"
        elif reference is None:
            verdict = "nothing to compare with"
            failed = True
        else:
            difference = find_difference(reference, results)
            verdict = "equal" if difference is None else "WRONG"
            failed = difference is not None
        outcomes.append(Outcome(engine, seconds, verdict, failed))
        screen.write(f"  {engine.name:<23} {seconds:6.2f} s  {verdict}")
        if failed and reference is not None:
            screen.write(screen.paint(f"    {difference}", "red"))
    return outcomes, reference


def run_engine(
    screen: Screen, engine: Engine, items: Sequence[Any], workers: int
) -> tuple[float, list[Any]]:
    """Run one engine to its end; return the seconds it took, and its results."""
    assert engine.run is not None
    results: list[Any] = []
    # Nobody shall pay for the garbage of the engine before.
    gc.collect()
    with Progress(screen, engine.name, len(items)) as progress:
        started = time.perf_counter()
        # Closed at once when interrupted: what has not begun is cancelled then.
        with contextlib.closing(engine.run(items, workers)) as run:
            for result in run:
                results.append(result)
                progress.update(len(results))
        seconds = time.perf_counter() - started
    return seconds, results


def find_difference(expected: Sequence[Any], got: Sequence[Any]) -> str | None:
    """Return what is wrong with the results, or None if they are what was expected.

    They are named tuples; the first field says which item it is.
    """
    if len(got) != len(expected):
        return f"{len(got):,} {kind(expected)} instead of {len(expected):,}"
    for should_be, is_ in zip(expected, got, strict=True):
        if is_ != should_be or type(is_) is not type(should_be):
            return f"{should_be[0]}: {is_} instead of {should_be}"
    return None


def kind(results: Sequence[Any]) -> str:
    """Return what the results are called, several of them."""
    return type(results[0]).__name__.lower() + "s" if results else "results"


def show_outcomes(screen: Screen, outcomes: Sequence[Outcome], items: int, rate: str) -> None:
    """Write the table and the bar chart."""
    base = outcomes[0].seconds
    rows = []
    chart = []
    for engine, seconds, verdict, _failed in outcomes:
        if seconds is None or base is None:
            rows.append((engine.name, "-", "-", "-", verdict))
            continue
        speedup = base / seconds
        rows.append(
            (engine.name, f"{seconds:.2f} s", f"{speedup:.2f}x", f"{items / seconds:,.0f}", verdict)
        )
        chart.append((engine.name, speedup, f"{speedup:.2f}x  {seconds:.2f} s"))
    screen.write()
    lines = table(("", "time", "speed-up", rate, "results"), rows)
    screen.write("  " + screen.paint(lines[0], "bold"))
    for line, outcome in zip(lines[1:], outcomes, strict=True):
        screen.write("  " + (screen.paint(line, "red") if outcome.failed else line))
    if not chart:
        return
    screen.write()
    screen.write("  " + screen.paint("speed-up over the serial run (longer is better)", "bold"))
    for line, (name, _, _) in zip(bars(chart, screen.width - 3, screen.blocks), chart, strict=True):
        screen.write("  " + (screen.paint(line, "cyan") if name == "subinterp" else line))
    screen.write()


def show_findings(screen: Screen, summary: Summary) -> None:
    """Write what the analysis found out."""
    screen.write("  " + screen.paint("what the analysis found", "bold"))
    mean = summary.complexity / summary.functions if summary.functions else 0.0
    screen.write(
        f"  {plural(summary.lines, 'line')}, {plural(summary.functions, 'function')}, "
        f"{summary.classes:,} classes, {summary.branches:,} branches"
    )
    screen.write(f"  cyclomatic complexity of a function: {mean:.2f} on average")
    if summary.most_complex is not None:
        function, path = summary.most_complex
        screen.write(
            f"  most complex function: {function.name} ({function.figure}), {path}:{function.line}"
        )
    if summary.longest is not None:
        function, path = summary.longest
        screen.write(
            f"  longest function: {function.name} ({plural(function.figure, 'line')}), "
            f"{path}:{function.line}"
        )
    if summary.problems:
        kinds = ", ".join(f"{number} {kind}" for kind, number in count_problems(summary).items())
        screen.write(
            f"  not parsed: {plural(len(summary.problems), 'file')} ({kinds}), "
            "found alike by every engine above whose results are equal"
        )
        for path, problem in summary.problems[:10]:
            screen.write(screen.paint(f"    {path}: {problem}", "dim"))
        if len(summary.problems) > 10:
            screen.write(screen.paint(f"    and {len(summary.problems) - 10} more", "dim"))
    screen.write()


def show_intervals(screen: Screen, findings: Sequence[Finding]) -> None:
    """Write what the repeated study found."""
    screen.write("  " + screen.paint("what the repeated study found", "bold"))
    rows = [
        (
            interval.name,
            f"{interval.middle:,.0f}",
            f"{interval.low:,.0f} to {interval.high:,.0f}",
            "" if interval.low <= 0 <= interval.high else "sure",
        )
        for interval in intervals(findings)
    ]
    lines = table(("influence of", "median", "95 % of repetitions", ""), rows)
    screen.write("  " + screen.paint(lines[0], "bold"))
    for line in lines[1:]:
        screen.write("  " + line)
    explained = sorted(finding.explained for finding in findings)[len(findings) // 2]
    screen.write(f"  together they explain {explained:.0%} of how the disease goes on")
    screen.write()


if __name__ == "__main__":
    sys.exit(main())

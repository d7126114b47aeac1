"""Compare ways to analyse the whole standard library: run `make demo`, or `python demo`.

Every engine does the same work on the same files; its time includes making and ending its
workers. All results are compared with those of the serial run. The demo fails (exit code 1) if
one differs or an engine breaks.
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
from typing import NamedTuple

from analysis import Report, Summary, count_problems, find_files, standard_library, summarise
from engines import Engine, all_engines
from screen import Progress, Screen, bars, table


class Outcome(NamedTuple):
    """How an engine did."""

    engine: Engine
    seconds: float | None
    verdict: str
    failed: bool = False


def main(argv: Sequence[str] | None = None, engines: Sequence[Engine] | None = None) -> int:
    """Run the demo; return its exit code."""
    options = parse(argv)
    screen = Screen()
    root = options.root or standard_library()
    paths = find_files(root)[: options.limit]
    if not paths:
        screen.write(f"There are no .py files in {root}.")
        return 1
    size = read_once(paths)

    what = "the standard library of" if options.root is None else f"{root} with"
    screen.write()
    screen.write(
        screen.paint(f"  Analysing {what} CPython {platform.python_version()}", "bold")
        + f": {len(paths):,} files, {size / 1e6:.1f} MB"
    )
    cpus = os.process_cpu_count() or 1
    screen.write(
        f"  {plural(options.workers, 'worker')} on {plural(cpus, 'CPU')}; "
        "each time includes starting and ending the workers"
    )
    screen.write()
    try:
        outcomes, reference = compare(screen, engines or all_engines(), paths, options.workers)
    except KeyboardInterrupt:
        screen.write("  Interrupted.")
        return 130
    show_outcomes(screen, outcomes, len(paths))
    if reference is not None:
        show_findings(screen, summarise(reference, root))
    failed = [outcome.engine.name for outcome in outcomes if outcome.failed]
    if failed:
        screen.write(screen.paint(f"  FAILED: {', '.join(failed)}", "red"))
        screen.write()
    return 1 if failed else 0


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
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Read a number that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
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
    screen: Screen, engines: Sequence[Engine], paths: Sequence[str], workers: int
) -> tuple[list[Outcome], list[Report] | None]:
    """Run the engines one after the other; the first one's results are the reference."""
    outcomes: list[Outcome] = []
    reference: list[Report] | None = None
    for number, engine in enumerate(engines):
        if engine.run is None:
            outcomes.append(Outcome(engine, None, engine.missing))
            screen.write(f"  {engine.name:<23}   {screen.paint(engine.missing, 'dim')}")
            continue
        try:
            seconds, reports = run_engine(screen, engine, paths, workers)
        except Exception as error:
            outcomes.append(Outcome(engine, None, f"broke: {type(error).__name__}", failed=True))
            screen.write(f"  {engine.name:<23}   {screen.paint('broke', 'red')}")
            traceback.print_exc()
            continue
        failed = False
        if number == 0:
            reference = reports
            verdict = "the reference"
        elif reference is None:
            verdict = "nothing to compare with"
            failed = True
        else:
            difference = find_difference(reference, reports)
            verdict = "equal" if difference is None else "WRONG"
            failed = difference is not None
        outcomes.append(Outcome(engine, seconds, verdict, failed))
        screen.write(f"  {engine.name:<23} {seconds:6.2f} s  {verdict}")
        if failed and reference is not None:
            screen.write(screen.paint(f"    {difference}", "red"))
    return outcomes, reference


def run_engine(
    screen: Screen, engine: Engine, paths: Sequence[str], workers: int
) -> tuple[float, list[Report]]:
    """Run one engine to its end; return the seconds it took, and its reports."""
    assert engine.run is not None
    reports: list[Report] = []
    # Nobody shall pay for the garbage of the engine before.
    gc.collect()
    with Progress(screen, engine.name, len(paths)) as progress:
        started = time.perf_counter()
        # Closed at once when interrupted: what has not begun is cancelled then.
        with contextlib.closing(engine.run(paths, workers)) as run:
            for report in run:
                reports.append(report)
                progress.update(len(reports))
        seconds = time.perf_counter() - started
    return seconds, reports


def find_difference(expected: Sequence[Report], got: Sequence[Report]) -> str | None:
    """Return what is wrong with the reports, or None if they are what was expected."""
    if len(got) != len(expected):
        return f"{len(got):,} reports instead of {len(expected):,}"
    for should_be, is_ in zip(expected, got, strict=True):
        if is_ != should_be or type(is_) is not type(should_be):
            return f"{should_be.path}: {is_} instead of {should_be}"
    return None


def show_outcomes(screen: Screen, outcomes: Sequence[Outcome], files: int) -> None:
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
            (engine.name, f"{seconds:.2f} s", f"{speedup:.2f}x", f"{files / seconds:,.0f}", verdict)
        )
        chart.append((engine.name, speedup, f"{speedup:.2f}x  {seconds:.2f} s"))
    screen.write()
    lines = table(("", "time", "speed-up", "files/s", "results"), rows)
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


if __name__ == "__main__":
    sys.exit(main())

"""Races: all contenders of a case in the same process and the same rounds.

The machine's speed drifts, so figures that were taken minutes apart cannot be
divided by each other. A race therefore lets the contenders take turns, A B C,
B C A, C A B, and a ratio is always one of two turns of the same round.

pytest-benchmark measures one function after the other, so a race measures for
itself when the first test of its case runs. Each test then replays its
contender's recorded times to the `benchmark` fixture, by way of a clock that
moves only by those times: statistics, tables, JSON and comparisons of
pytest-benchmark work as ever. Whatever else was measured goes into
`extra_info`, one value for each round.
"""

import gc
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import pytest

from bench.machine import Others


@dataclass(frozen=True)
class Figure:
    """One thing that a turn finds out.

    Attributes
    ----------
    key : str
        Its name in the results.
    title : str
        Its name in the reports.
    unit : str
        ``"s"``, ``"/s"``, ``"B/s"``, ``"B"``, or ``"x"`` for a plain ratio.
    more_is_better : bool
    """

    key: str
    title: str
    unit: str = "s"
    more_is_better: bool = False


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes
    ----------
    rounds : int
        Turns of each contender that count.
    seconds : float
        A turn that repeats something stops after this time.
    count : int
        A turn that repeats something does it at most so many times.
    """

    rounds: int
    seconds: float = 0.0
    count: int = 0


class Case:
    """A subject of measurement; subclasses say what a turn does.

    Attributes
    ----------
    name, title : str
        For results and reports.
    figures : tuple of Figure
        What `turn` returns, besides ``"seconds"``.
    contenders : tuple of Contender
    full, short : Effort
    warm_up : bool
        Whether each contender has a turn that does not count, first.
    """

    name = ""
    title = ""
    figures = ()
    contenders = ()
    full = Effort(rounds=7)
    short = Effort(rounds=3)
    warm_up = True

    def __init__(self, effort):
        self.effort = effort

    def open(self, contender):
        """Return a context manager that holds what `turn` works on."""
        return contender.open()

    def turn(self, contender, opened):
        """Measure once.

        Returns
        -------
        dict of str to float
            One value for each of `figures`, and ``"seconds"``, the time that
            pytest-benchmark shows.
        """
        raise NotImplementedError


class Entry:
    """A contender in a race: its turns, or the error that ended them."""

    def __init__(self, case, contender):
        self.turns = []
        self.error = None
        self._case = case
        self._contender = contender
        self._opened = None

    def open(self, stack):
        """Make what the turns need; `stack` takes it down after the race."""
        holder = ExitStack()
        stack.callback(self._attempt, holder.close)
        opener = self._case.open
        self._opened = self._attempt(lambda: holder.enter_context(opener(self._contender)))

    def turn(self):
        """Take a turn, and return what it measured; None after an error."""
        if self.error is not None:
            return None
        return self._attempt(lambda: self._case.turn(self._contender, self._opened))

    def _attempt(self, action):
        try:
            return action()
        except Exception as error:
            self.error = self.error or error
            return None


def run(case, contenders, tell):
    """Let the contenders take turns.

    Parameters
    ----------
    case : Case
    contenders : list of Contender
        Those that take part.
    tell : callable
        Is given a line about the progress, now and then.

    Returns
    -------
    entries : dict of str to Entry
        By the contender's name. A contender that fails is out of the race,
        the others go on.
    others : float
        How many cores others used meanwhile.
    """
    entries = {contender.name: Entry(case, contender) for contender in contenders}
    line = list(entries.values())
    with ExitStack() as stack:
        for entry in line:
            entry.open(stack)
        others = Others()
        for number in range(0 if case.warm_up else 1, case.effort.rounds + 1):
            tell(f"{case.name}: round {number} of {case.effort.rounds}")
            first = number % len(line)
            for entry in line[first:] + line[:first]:
                gc.collect()  # so that nobody collects another's garbage
                measured = entry.turn()
                if measured is not None and number > 0:
                    entry.turns.append(measured)
        return entries, others.cores()


class Races:
    """The races of one pytest session, each run when it is first asked for.

    Parameters
    ----------
    selected : dict of str to list of str
        The contenders of each case that pytest is about to run.
    short : bool
        Whether to use the short efforts.
    without_ours : bool
        Whether it is expected that subinterp does not take part.
    """

    def __init__(self, selected, *, short=False, without_ours=False):
        self.selected = selected
        self.short = short
        self.without_ours = without_ours
        self.unavailable = {}
        self.failed = {}
        self._run_cases = {}

    def entry(self, case_class, name):
        """Return the contender's entry in the case's race, and its noise.

        The test is skipped if the contender cannot run here.

        Returns
        -------
        entry : Entry
        others : float
            How many cores others used during the race.
        """
        contender = next(c for c in case_class.contenders if c.name == name)
        if reason := self._why_not(contender):
            self.unavailable.setdefault(name, reason)
            if contender.ours and not self.without_ours:
                pytest.fail(f"{name} cannot run: {reason}", pytrace=False)
            pytest.skip(f"{name} cannot run here: {reason}")
        if case_class not in self._run_cases:
            self._run_cases[case_class] = self._run(case_class)
        entries, others = self._run_cases[case_class]
        entry = entries[name]
        if entry.error is not None:
            reason = f"{type(entry.error).__name__}: {entry.error}"
            self.failed[f"{case_class.name}: {name}"] = reason
            raise entry.error
        return entry, others

    def _why_not(self, contender):
        if contender.ours and self.without_ours:
            return "left out on request"
        return contender.unavailable()

    def _run(self, case_class):
        case = case_class(case_class.short if self.short else case_class.full)
        contenders = [
            contender
            for contender in case.contenders
            if contender.name in self.selected[case.name] and not self._why_not(contender)
        ]
        start = time.perf_counter()
        found = run(case, contenders, _tell)
        _tell(f"{case.name}: {time.perf_counter() - start:.1f} s\n")
        return found


def _tell(line):
    end = "" if sys.stderr.isatty() and not line.endswith("\n") else "\n"
    if end == "" or line.endswith("\n"):
        print(f"\r{line.rstrip():60}", end=end, file=sys.stderr, flush=True)


class RecordedTime:
    """A clock that stands still but for the recorded times it is given."""

    def __init__(self):
        self.now = 0.0

    def replay(self, benchmark, times):
        """Make `benchmark` measure `times`, in seconds, one for each round."""
        self.now = 0.0
        remaining = iter(times)

        def advance():
            self.now += next(remaining)

        benchmark.pedantic(advance, rounds=len(times), iterations=1)


_recorded = RecordedTime()


def recorded_time():
    """Tell the time of the record that is being replayed, in seconds."""
    return _recorded.now


def race(case_class):
    """Make the test function of a case, with one test for each contender.

    Modules call it ``bench_`` and the case's name, so that pytest's ``-k`` can select it.
    """

    @pytest.mark.benchmark(group=case_class.name, timer=recorded_time)
    @pytest.mark.parametrize("contender", [c.name for c in case_class.contenders])
    def bench(contender, races, benchmark):
        entry, others = races.entry(case_class, contender)
        benchmark.extra_info.update(
            case=case_class.name,
            title=case_class.title,
            contender=contender,
            others=others,
            figures={
                figure.key: asdict(figure) | {"values": [turn[figure.key] for turn in entry.turns]}
                for figure in case_class.figures
            },
        )
        _recorded.replay(benchmark, [turn["seconds"] for turn in entry.turns])

    bench.case = case_class
    bench.__doc__ = case_class.title
    return bench

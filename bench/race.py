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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

import pytest



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


@dataclass
class Record:
    """The turns of one contender, or the error that ended them."""

    turns: list[dict[str, float]] = field(default_factory=list)
    error: BaseException | None = None


def run(case, contenders, tell: Callable[[str], None]):
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
    dict of str to Record
        By the contender's name. A contender that fails is out of the race,
        the others go on.
    """
    records = {contender.name: Record() for contender in contenders}
    opened = {}

    def attempt(contender, action):
        record = records[contender.name]
        if record.error is None:
            try:
                return action()
            except Exception as error:
                record.error = error
        return None

    with ExitStack() as stack:
        for contender in contenders:
            holder = ExitStack()
            stack.push(_Closing(records[contender.name], holder))
            opened[contender.name] = attempt(
                contender, lambda: holder.enter_context(case.open(contender))
            )
        for number in range(0 if case.warm_up else 1, case.effort.rounds + 1):
            tell(f"{case.name}: round {number} of {case.effort.rounds}")
            first = number % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                gc.collect()  # so that nobody collects another's garbage
                turn = attempt(
                    contender, lambda: case.turn(contender, opened[contender.name])
                )
                if turn is not None and number > 0:
                    records[contender.name].turns.append(turn)
    return records


class _Closing:
    """Close one contender; an error then is the contender's, not the race's."""

    def __init__(self, record, stack):
        self.record = record
        self.stack = stack

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        try:
            self.stack.close()
        except Exception as error:
            self.record.error = self.record.error or error


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
        self._records = {}

    def record(self, case_class, name):
        """Return the contender's record; skip the test if it cannot run here."""
        contender = next(c for c in case_class.contenders if c.name == name)
        if reason := self._why_not(contender):
            self.unavailable.setdefault(name, reason)
            if contender.ours and not self.without_ours:
                pytest.fail(f"{name} cannot run: {reason}", pytrace=False)
            pytest.skip(f"{name} cannot run here: {reason}")
        if case_class not in self._records:
            self._records[case_class] = self._run(case_class)
        record = self._records[case_class][name]
        if record.error is not None:
            reason = f"{type(record.error).__name__}: {record.error}"
            self.failed[f"{case_class.name}: {name}"] = reason
            raise record.error
        return record

    def _why_not(self, contender):
        if contender.ours and self.without_ours:
            return "left out on request"
        return contender.unavailable()

    def _run(self, case_class):
        case = case_class(case_class.short if self.short else case_class.full)
        contenders = [
            contender
            for contender in case.contenders
            if contender.name in self.selected[case.name]
            and not self._why_not(contender)
        ]
        start = time.perf_counter()
        records = run(case, contenders, _tell)
        _tell(f"{case.name}: {time.perf_counter() - start:.1f} s\n")
        return records


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
    """Make the test function of a case, with one test for each contender."""

    @pytest.mark.benchmark(group=case_class.name, timer=recorded_time)
    @pytest.mark.parametrize("contender", [c.name for c in case_class.contenders])
    def bench(contender, races, benchmark):
        record = races.record(case_class, contender)
        benchmark.extra_info.update(
            case=case_class.name,
            title=case_class.title,
            contender=contender,
            figures={
                figure.key: asdict(figure)
                | {"values": [turn[figure.key] for turn in record.turns]}
                for figure in case_class.figures
            },
        )
        _recorded.replay(benchmark, [turn["seconds"] for turn in record.turns])

    bench.case = case_class
    bench.__doc__ = case_class.title
    return bench

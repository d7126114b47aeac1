"""Recorded results -> tables, for the terminal and as Markdown.

Everything is read from the JSON that pytest-benchmark wrote, so a report can
be made again from any file of ``bench/results``.
"""

import json
from dataclasses import dataclass
from statistics import median

from bench.contenders import OURS
from bench.goals import GOALS


@dataclass(frozen=True)
class Spread:
    """A figure over the rounds of a race."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self):
        return median(self.values)

    def __str__(self):
        return show(self.median, self.unit)

    @property
    def noise(self):
        """The smallest and the largest value."""
        least, most = min(self.values), max(self.values)
        return f"{show(least, self.unit)}..{show(most, self.unit)}"


class Results:
    """One run.

    Parameters
    ----------
    path : pathlib.Path
        The JSON file.

    Attributes
    ----------
    cases : dict of str to Case
    """

    def __init__(self, path):
        self.data = json.loads(path.read_text())
        self.cases = {}
        for benchmark in self.data["benchmarks"]:
            info = benchmark["extra_info"]
            case = self.cases.setdefault(info["case"], Case(info))
            case.add(info)

    @property
    def commit(self):
        """The commit's id, and whether the tree differed from it."""
        info = self.data["commit_info"]
        short = (info.get("id") or "unknown")[:12]
        return short + (" with changes" if info.get("dirty") else "")


class Case:
    """The contenders of one race.

    Attributes
    ----------
    title : str
    others : float
        How many cores others used meanwhile.
    figures : dict of str to dict
        What is known about each figure: title, unit, more_is_better.
    spreads : dict of str to dict of str to Spread
        By contender and figure.
    """

    def __init__(self, info):
        self.title = info["title"]
        self.others = info["others"]
        self.figures = info["figures"]
        self.spreads = {}

    def add(self, info):
        self.spreads[info["contender"]] = {
            key: Spread(tuple(figure["values"]), figure["unit"])
            for key, figure in info["figures"].items()
        }

    @property
    def ours(self):
        """The name of the contender that the others are compared with."""
        return next((name for name in self.spreads if name.startswith(OURS)), None)

    def advantage(self, figure, rival, ours=None):
        """Tell how many times better we are, round by round.

        Returns
        -------
        Spread or None
            None if one of the two is missing, or not above zero.
        """
        ours = ours or self.ours
        if ours not in self.spreads or rival not in self.spreads:
            return None
        pairs = zip(
            self.spreads[ours][figure].values,
            self.spreads[rival][figure].values,
            strict=True,
        )
        if not self.figures[figure]["more_is_better"]:
            pairs = ((theirs, own) for own, theirs in pairs)
        pairs = list(pairs)
        if any(more <= 0 or less <= 0 for more, less in pairs):
            return None
        return Spread(tuple(more / less for more, less in pairs), "x")


@dataclass
class Table:
    """Rows of text under a heading; all columns but the first align right."""

    title: str
    header: list[str]
    rows: list[list[str]]

    def text(self):
        """Lay out for a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def lay_out(cells):
            first, *rest = (
                cell.rjust(width) if position else cell.ljust(width)
                for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            return "  ".join([first, *rest]).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, lay_out(self.header), rule, *map(lay_out, self.rows)])

    def markdown(self):
        """Lay out for Markdown."""
        rule = ["---", *("---:" for _ in self.header[1:])]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)]
        return "\n".join([f"### {self.title}", "", *lines])


def goals(results):
    """Set the goals beside what was measured."""
    rows = []
    for goal in GOALS:
        case = results.cases.get(goal.case)
        spread = None
        if case is not None and goal.beside:
            spread = case.advantage(goal.figure, goal.beside, goal.ours)
        elif case is not None and goal.ours in case.spreads:
            spread = case.spreads[goal.ours][goal.figure]
        what = f"{goal.case} {goal.figure}"
        if goal.ours != OURS:
            what += f" ({goal.ours.removeprefix(OURS + ', ')})"
        if spread is None:
            rows.append([what, goal.text, "-", "-", "not measured"])
            continue
        verdict = "met" if goal.met(spread.median) else "MISSED"
        rows.append([what, goal.text, str(spread), spread.noise, verdict])
    return Table(
        "Goals (CPython 3.14, two workers on two cores)",
        ["figure", "goal", "measured", "min..max", "met"],
        rows,
    )


def comparison(name, case):
    """Set all contenders of a case side by side."""
    first, *others = case.figures
    header = ["", case.figures[first]["title"], "min..max"]
    header += [case.figures[key]["title"] for key in others]
    if case.ours is not None:
        header += [f"{case.ours} is better by", "min..max"]
    rows = []
    for contender, spreads in case.spreads.items():
        row = [contender, str(spreads[first]), spreads[first].noise]
        row += [str(spreads[key]) for key in others]
        if case.ours is not None:
            ratio = case.advantage(first, contender)
            if contender == case.ours or ratio is None:
                row += ["-", "-"]
            else:
                row += [str(ratio), ratio.noise]
        rows.append(row)
    rounds = len(spreads[first].values)
    noise = f"rounds: {rounds}; cores that others used: {case.others:.2f}"
    return Table(f"{name}: {case.title} ({noise})", header, rows)


def comparisons(results):
    """Return a table for each case."""
    return [comparison(name, case) for name, case in results.cases.items()]


def change(now, then):
    """Set two runs side by side.

    The last column divides out what befell the rivals as well: the median over
    the rivals of how far our advantage over each has moved.
    """
    rows = []
    for name, case in now.cases.items():
        before = then.cases.get(name)
        if before is None or case.ours is None or case.ours not in before.spreads:
            continue
        for figure, about in case.figures.items():
            new = case.spreads[case.ours][figure]
            old = before.spreads[case.ours][figure]
            moved = [
                new_ratio.median / old_ratio.median
                for rival in case.spreads
                if rival != case.ours
                and (new_ratio := case.advantage(figure, rival))
                and (old_ratio := before.advantage(figure, rival))
            ]
            ratio = _divide(new.median, old.median)
            if not about["more_is_better"]:
                ratio = _divide(old.median, new.median)
            rows.append(
                [
                    f"{name}: {about['title']}",
                    str(old),
                    str(new),
                    show(ratio, "x"),
                    show(median(moved) if moved else None, "x"),
                ]
            )
    return Table(
        f"{then.commit} -> {now.commit}: how many times better",
        ["figure", "before", "now", "better by", "beside the rivals"],
        rows,
    )


def heading(results):
    """Say what was measured, where and when."""
    machine = results.data["machine_info"]
    cpu = machine.get("cpu", {}).get("brand_raw", machine["machine"])
    load = ", ".join(f"{load:.2f}" for load in machine.get("load", []))
    packages = ", ".join(
        f"{name} {version}" for name, version in machine.get("packages", {}).items() if version
    )
    effort = "short run" if results.data["races"]["short"] else "full run"
    return [
        f"commit {results.commit}, {results.data['datetime'][:16]} UTC, {effort}",
        f"Python {machine['python_version']}, {packages}",
        f"{cpu}, {machine.get('cores')} cores, {machine['system']} "
        f"{machine['release']}, load at the end {load}",
        "Medians over interleaved rounds; a ratio is taken within one round. "
        "min..max is over the rounds, and wide on a busy machine.",
    ]


def absent(results):
    """Name the contenders that took no part, and those that failed."""
    races = results.data["races"]
    return [
        *(f"not here: {who}: {why}" for who, why in races["unavailable"].items()),
        *(f"FAILED: {who}: {why}" for who, why in races["failed"].items()),
    ]


def tables(results, then=None):
    """Return all tables of a report, the verdicts first."""
    found = [goals(results)]
    if then is not None:
        found.append(change(results, then))
    return [*found, *comparisons(results)]


def terminal(results, then=None):
    """Make the report for a terminal; the verdicts come last, to be seen."""
    blocks = ["\n".join(heading(results))]
    blocks += [table.text() for table in reversed(tables(results, then))]
    if missing := absent(results):
        blocks.append("\n".join(missing))
    return "\n\n".join(blocks)


def markdown(results, then=None):
    """Make the report in Markdown."""
    blocks = ["# Benchmarks", *("- " + line for line in heading(results))]
    blocks = [blocks[0], "\n".join(blocks[1:])]
    blocks += [table.markdown() for table in tables(results, then)]
    if missing := absent(results):
        blocks.append("\n".join("- " + line for line in missing))
    return "\n\n".join(blocks) + "\n"


def show(value, unit):
    """Format a value with three digits."""
    if value is None:
        return "-"
    if unit == "s":
        return _scaled(value, ((1, "s"), (1e-3, "ms"), (1e-6, "us")))
    if unit == "B":
        return _scaled(value, ((1e6, "MB"), (1e3, "kB"), (1, "B")))
    if unit == "B/s":
        return _scaled(value, ((1e9, "GB/s"), (1e6, "MB/s")))
    if unit == "/s":
        return f"{value:,.0f}/s"
    return f"{value:,.0f}x" if abs(value) >= 100 else f"{value:.3g}x"


def _scaled(value, scales):
    if value == 0:
        return "0"
    scale, name = next(((scale, name) for scale, name in scales if abs(value) >= scale), scales[-1])
    scaled = value / scale
    return f"{scaled:,.0f} {name}" if abs(scaled) >= 100 else f"{scaled:.3g} {name}"


def _divide(one, other):
    return one / other if other else None

"""What the demo computes: simple figures about Python source files.

The work is the same for every engine: read a file, parse it with `ast`, walk the tree. Nothing
here knows who calls it, so that it runs alike in the main thread, in other threads, in other
processes and in other interpreters.
"""

import ast
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# One more path through a function for each of these.
_BRANCHES = (
    ast.If,
    ast.IfExp,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    """Where a function is, and a figure of it by which functions compare."""

    figure: int
    name: str
    line: int


class Report(NamedTuple):
    """The figures of one file.

    A file that cannot be read or parsed has a `problem` and is counted like any other: its
    further figures are zero, beyond the size of what could be read.
    """

    path: str
    size: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    branches: int = 0
    complexity: int = 0
    most_complex: Function | None = None
    longest: Function | None = None
    problem: str = ""


class Summary(NamedTuple):
    """The figures of all files together."""

    files: int
    size: int
    lines: int
    functions: int
    classes: int
    branches: int
    complexity: int
    most_complex: tuple[Function, str] | None
    longest: tuple[Function, str] | None
    problems: list[tuple[str, str]]


def standard_library() -> str:
    """Return the folder of the running Python's standard library."""
    return sysconfig.get_path("stdlib")


def find_files(root: str) -> list[str]:
    """Return the paths of all `.py` files below a folder, in a fixed order.

    Installed packages are not part of the standard library, though they may lie within.
    """
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in ("site-packages", "dist-packages", "__pycache__")
        )
        for name in sorted(names):
            path = os.path.join(folder, name)
            # Some distributions leave links here that lead nowhere.
            if name.endswith(".py") and os.path.isfile(path):
                found.append(path)
    return found


def prepare() -> None:
    """Keep the parser from warning about the sources; each engine calls this in its workers."""
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


def analyse(path: str) -> Report:
    """Return the figures of one file."""
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        return Report(path, problem=f"{type(error).__name__}: {error.strerror}")
    return analyse_source(path, source)


def analyse_source(path: str, source: bytes) -> Report:
    """Return the figures of a source text; its encoding is found as Python would find it."""
    report = Report(path, size=len(source))
    try:
        tree = ast.parse(source)
    except SyntaxError as error:  # bad encodings among them
        return report._replace(problem=f"{type(error).__name__}: {error.msg}")
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; too deeply nested
        return report._replace(problem=f"{type(error).__name__}: {error}")

    functions: list[_Counted] = []
    classes = branches = 0
    # A stack, not recursion: workers need not have stacks of the same size.
    todo: list[tuple[ast.AST, _Counted | None, str]] = [(tree, None, "")]
    while todo:
        node, function, scope = todo.pop()
        if isinstance(node, _FUNCTIONS):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            scope = f"{scope}{node.name}"
            function = _Counted(scope, node.lineno, length)
            functions.append(function)
            scope += "."
        elif isinstance(node, ast.ClassDef):
            classes += 1
            scope = f"{scope}{node.name}."
        else:
            more = 0
            if isinstance(node, _BRANCHES):
                more = 1
            elif isinstance(node, ast.BoolOp):
                more = len(node.values) - 1
            elif isinstance(node, ast.comprehension):
                more = 1 + len(node.ifs)
            if more:
                branches += more
                if function is not None:
                    function.complexity += more
        todo.extend((child, function, scope) for child in ast.iter_child_nodes(node))

    return report._replace(
        lines=source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        functions=len(functions),
        classes=classes,
        branches=branches,
        complexity=sum(function.complexity for function in functions),
        most_complex=_first_largest(
            Function(function.complexity, function.name, function.line) for function in functions
        ),
        longest=_first_largest(
            Function(function.length, function.name, function.line) for function in functions
        ),
    )


def summarise(reports: Iterable[Report], root: str) -> Summary:
    """Add the reports up; paths are given from `root` on."""
    reports = list(reports)

    def best(field: str) -> tuple[Function, str] | None:
        found = [
            (getattr(report, field), os.path.relpath(report.path, root))
            for report in reports
            if getattr(report, field) is not None
        ]
        return max(found, key=lambda pair: pair[0].figure, default=None)

    return Summary(
        files=len(reports),
        size=sum(report.size for report in reports),
        lines=sum(report.lines for report in reports),
        functions=sum(report.functions for report in reports),
        classes=sum(report.classes for report in reports),
        branches=sum(report.branches for report in reports),
        complexity=sum(report.complexity for report in reports),
        most_complex=best("most_complex"),
        longest=best("longest"),
        problems=[
            (os.path.relpath(report.path, root), report.problem)
            for report in reports
            if report.problem
        ],
    )


def count_problems(summary: Summary) -> dict[str, int]:
    """Return how many files were not analysed, by the kind of reason."""
    return dict(Counter(problem.partition(":")[0] for _, problem in summary.problems))


class _Counted:
    """A function whose complexity is still being counted; it starts with one path."""

    __slots__ = ("complexity", "length", "line", "name")

    def __init__(self, name: str, line: int, length: int) -> None:
        self.name = name
        self.line = line
        self.length = length
        self.complexity = 1


def _first_largest(functions: Iterator[Function]) -> Function | None:
    """Return the one with the largest figure; among equals, the one that comes first."""
    return max(functions, key=lambda function: (function.figure, -function.line), default=None)

"""Check all Python files of a tree for some classic mistakes, in parallel.

    python examples/parallel_lint.py --demo
    python examples/parallel_lint.py src tests

Parsing and walking a syntax tree is pure Python and holds the lock: threads would take turns.
Complaints are printed as `path:line: message`, in the same order whatever the number of workers;
the exit status is 1 if there are any.
"""

import argparse
import ast
import sys
import tempfile
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from subinterp import InterpreterPool

DEMO = """\
import os
import json as data


def collect(item, into=[]):
    try:
        into.append(item)
    except:
        pass
    if item == None:
        assert (item, "is nothing")
    return {"a": 1, "b": 2, "a": data.dumps(f"done")}
"""


class Complaint(NamedTuple):
    """What is wrong, and where."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def mistakes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give the line of each mistake, and what it is; in no particular order."""
    imports: dict[str, int] = {}
    # Names that occur, also as strings: in `__all__`.
    used: set[object] = set()
    # What follows the colon in {x:>10} looks like an f-string of its own.
    formats = {n.format_spec for n in ast.walk(tree) if isinstance(n, ast.FormattedValue)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                used.add(name)
            case ast.Constant(value=str(text)):
                used.add(text)
            case ast.Import(names=names):
                for alias in names:
                    imports[alias.asname or alias.name.partition(".")[0]] = node.lineno
            case ast.arguments(defaults=defaults, kw_defaults=kw_defaults):
                for default in [*defaults, *kw_defaults]:
                    if isinstance(default, ast.List | ast.Dict | ast.Set):
                        yield default.lineno, "a mutable default is shared by all calls"
            case ast.ExceptHandler(type=None):
                yield node.lineno, "a bare except also catches KeyboardInterrupt"
            case ast.Compare(ops=[ast.Eq() | ast.NotEq()], comparators=[ast.Constant(value=None)]):
                yield node.lineno, "None is to be compared with `is`"
            case ast.Assert(test=ast.Tuple(elts=[_, *_])):
                yield node.lineno, "an assertion about a tuple always holds"
            case ast.Dict(keys=keys):
                seen = set()
                for key in keys:
                    if isinstance(key, ast.Constant):
                        if key.value in seen:
                            yield key.lineno, f"the key {key.value!r} is there twice"
                        seen.add(key.value)
            case ast.JoinedStr(values=values) if node not in formats:
                if not any(isinstance(value, ast.FormattedValue) for value in values):
                    yield node.lineno, "an f-string without placeholders"
    for name, line in imports.items():
        if name not in used:
            yield line, f"{name} is imported and not used"


def check_file(path: str) -> list[Complaint]:
    """Check one file; runs in a worker."""
    try:
        # As Python reads it: with the encoding that the file declares.
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, on other people's code
            tree = ast.parse(source)
        return sorted(Complaint(path, line, message) for line, message in mistakes(tree))
    except SyntaxError as error:
        return [Complaint(path, error.lineno or 1, f"cannot be parsed: {error.msg}")]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        return [Complaint(path, 1, f"cannot be read: {error}")]


def find_files(places: Iterable[Path]) -> list[str]:
    """Return the Python files that are named, or lie in a folder that is."""
    found: set[str] = set()
    for place in places:
        if place.is_dir():
            found.update(str(path) for path in place.rglob("*.py") if path.is_file())
        elif place.is_file():
            found.add(str(place))
        else:
            raise ValueError(f"there is no file or folder {place}")
    return sorted(found)


def check(paths: Iterable[str], workers: int | None = None) -> list[Complaint]:
    """Check all files, in chunks that the pool chooses."""
    with InterpreterPool(workers) as pool:
        return [complaint for found in pool.map(check_file, paths) for complaint in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Check what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("places", nargs="*", type=Path, metavar="PATH", help="files and folders")
    parser.add_argument("--demo", action="store_true", help="make a file, and check this one")
    parser.add_argument("--workers", type=int, help="default: as many as there are processors")
    options = parser.parse_args(argv)
    if options.demo == bool(options.places):
        parser.error("name files or folders, or --demo")
    with tempfile.TemporaryDirectory() as folder:
        if options.demo:
            options.places = [Path(folder, "demo.py")]
            options.places[0].write_text(DEMO)
        try:
            paths = find_files(options.places)
            complaints = check(paths, options.workers)
        except ValueError as error:
            parser.error(str(error))
    for complaint in complaints:
        print(complaint)
    print(f"{len(complaints)} complaints about {len(paths)} files", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

"""CPython's own tests of `concurrent.interpreters`, run against subinterp.interpreters.

They are taken from the running Python's `test` package, so each version brings
its own. What is changed in their text is the import, and what reaches into private
parts of the module: see CHANGES. The changed modules are put into a package in
a temporary folder, where the interpreters find them as well.

A test that cannot pass is listed in DIFFERENT with its reason, and is reported as
skipped; one that is about the standard's private modules alone in NOT_APPLICABLE.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import pytest

if sys.version_info < (3, 14):
    pytest.skip(
        "before 3.14 CPython's tests are about an older, private module",
        allow_module_level=True,
    )
try:
    import test.test_interpreters as cpython_tests
    from test import support
except ImportError as error:
    if not (error.name or "").startswith("test"):
        raise
    pytest.skip(
        f"this Python has no `test` package ({error}): CPython's tests did not run",
        allow_module_level=True,
    )

# What is replaced in the text of the tests, in order: pattern -> text.
CHANGES = [
    # The import: all that a program has to change.
    (r"from concurrent import interpreters\b", "from subinterp import interpreters"),
    (
        r"from concurrent\.interpreters import _queues as queues, _crossinterp",
        "from subinterp import _queues as queues; from concurrent.interpreters import _crossinterp",
    ),
    (
        r"from concurrent\.interpreters import _queues as queues",
        "from subinterp import _queues as queues",
    ),
    (r"from concurrent\.interpreters import (?!_)", "from subinterp.interpreters import "),
    (r"concurrent\.interpreters\.ExecutionFailed", "subinterp.interpreters.ExecutionFailed"),
    # Private parts.
    (r"except _interpreters\.InterpreterError", "except interpreters.InterpreterError"),
    (r"Interpreter\(\s*interpid,\s*_whence=[^)]*\)", "Interpreter(interpid)"),
    (r"for qid, _, _ in _queues\.list_all\(\):", "for qid in ():"),
]

MODULES = ("test_api", "test_lifecycle", "test_queues", "test_stress")

NOT_APPLICABLE: dict[str, str] = {}

DIFFERENT: dict[str, str] = {}

SLOW: set[str] = set()

PACKAGE = "cpython_interpreters"
_folder = tempfile.mkdtemp(prefix="subinterp-test-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def _changed(text):
    for pattern, new in CHANGES:
        text = re.sub(pattern, new, text)
    return text


def _write_package():
    package = Path(_folder) / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("")
    theirs = Path(cpython_tests.__path__[0])
    for name in ("utils", *MODULES):
        text = (theirs / f"{name}.py").read_text(encoding="utf-8")
        (package / f"{name}.py").write_text(_changed(text), encoding="utf-8")


_write_package()
sys.path.insert(0, _folder)
_modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in MODULES}


@pytest.fixture(autouse=True, scope="module")
def _on_the_path():
    """The scripts that the tests start find the package, too."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_folder, before]))
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
    yield
    sys.path.remove(_folder)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


class _Ours:
    """What every test class gets besides."""

    def setUp(self):
        gc.collect()  # what other tests have left in cycles
        super().setUp()


def _take(module, cls):
    names = {"__module__": __name__}
    for name in dir(cls):
        if not name.startswith("test"):
            continue
        key = f"{module}.{cls.__name__}.{name}"
        reason = NOT_APPLICABLE.get(key) or DIFFERENT.get(key)
        if reason is not None:
            names[name] = unittest.skip(reason)(getattr(cls, name))
        elif key in SLOW:
            names[name] = pytest.mark.slow(getattr(cls, name))
    ours = type(f"{cls.__name__}Of{module[4:].title()}", (_Ours, cls), names)
    globals()[ours.__name__] = ours


for _name, _module in _modules.items():
    for _cls in list(vars(_module).values()):
        if (
            isinstance(_cls, type)
            and issubclass(_cls, unittest.TestCase)
            and _cls.__module__ == _module.__name__
            and any(name.startswith("test") for name in dir(_cls))
        ):
            _take(_name, _cls)

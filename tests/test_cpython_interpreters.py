"""CPython's own tests of interpreters, queues and channels, run against ours.

They are taken from the running Python's `test` package, so each version brings
its own. What is changed in their text is the import, and what reaches into private
parts of the module: see CHANGES. The changed modules are put into a package in
a temporary folder, where the interpreters find them as well.

A test that cannot pass is listed in DIFFERENT with its reason, and is reported as
skipped; one that is about the standard's private modules alone in NOT_APPLICABLE.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import inspect
import os
import re
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

import pytest

import subinterp

if sys.version_info < (3, 14):
    pytest.skip(
        "before 3.14 CPython's tests are about an older, private module",
        allow_module_level=True,
    )
try:
    import test.test_interpreters as cpython_tests
except ImportError as error:
    if not (error.name or "").startswith("test"):
        raise
    pytest.skip(
        f"this Python has no `test` package ({error}): CPython's tests did not run",
        allow_module_level=True,
    )

PACKAGE = "cpython_interpreters"

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
    # PEP 554's channels are a module of CPython's tests: ours stands for it, see CHANNELS.
    (
        r"from test\.support import channels\b,?",
        f"from {PACKAGE} import channels; from test.support import",
    ),
    (r"from test\.support import$", ""),
    # It is the PEP's default, not an exception.
    (r"recv_nowait\(\)", "_recv_nowait()"),
    (r"_channels\.ChannelID", "int"),
    (r"_channels\.get_count\((\w+)\.id\)", r"\1._end.qsize()"),
    # Private parts.
    (r"except _interpreters\.InterpreterError", "except interpreters.InterpreterError"),
    (r"Interpreter\(\s*interpid,\s*_whence=[^)]*\)", "Interpreter(interpid)"),
    (r"for qid, _, _ in _queues\.list_all\(\):", "for qid in ():"),
    # Interpreters that C code makes find the package as well.
    (r"f'import \{__name__\} as", "f'import sys; sys.path[:0] = {PATH!r}; import {__name__} as"),
]

MODULES = ("test_api", "test_channels", "test_lifecycle", "test_queues", "test_stress")

# What stands for CPython's test.support.channels.
CHANNELS = """
from subinterp.pep554 import *
from subinterp.pep554 import create_channel as create
from subinterp.pep554 import list_all_channels as list_all
"""

NOT_APPLICABLE = {
    "test_api.TestInterpreterExec.test_already_running": (
        "expects RuntimeError, as PEP 554 has it; CPython leaves it out as well"
    ),
    "test_queues.TestQueueOps.test_timeout_uses_monotonic_clock": (
        "replaces the module `time`; deadlines are CLOCK_MONOTONIC's, in C"
    ),
    "test_stress.StressTests.test_create_interpreter_no_memory": (
        "about _interpreters.create; see test_interpreters.py::test_create_fails"
    ),
}

_BY_VALUE = (
    "what 3.14 refuses because pickle cannot take it travels by value here: functions with "
    "closures, local classes, what `__main__` defines, dicts"
)
_SCRIPT = (
    "3.14 runs the program's script again in the interpreter, as a module `<fake __main__>`; "
    "here functions of `__main__` travel by value, with the globals that they use, each time"
)
_CODE = "looks at flags of local variables that a code object which travelled by value has not"

# What is different: the whole test, or the subtests that match the pattern.
DIFFERENT = {
    "test_api.InterpreterObjectTests.test_cleanup_in_repl": (
        None,
        "a warning of the standard library about interpreters left at exit; ours are closed then",
    ),
    "test_api.TestInterpreterIsRunning.test_from_subinterpreter": (
        None,
        "asks the private module _interpreters, which does not know that ours runs; "
        "see test_interpreters.py::test_is_running_in_itself",
    ),
    "test_api.TestInterpreterPrepareMain.test_not_shareable": (
        None,
        _BY_VALUE + "; see test_interpreters.py::test_prepare_main_unsendable",
    ),
    "test_api.TestInterpreterCall.test_call_in_thread": ("invalid case", _BY_VALUE),
    "test_api.TestInterpreterCall.test_call_invalid": (
        "get_call_func_closure|call_func_complex",
        _BY_VALUE,
    ),
    "test_api.TestInterpreterCall.test_callable_requires_frame": (
        "globals|locals|vars",
        _BY_VALUE,
    ),
    "test_api.TestInterpreterCall.test_func_in___main___invalid": (".", _BY_VALUE),
    "test_api.TestInterpreterCall.test_func_in___main___hidden": (None, _SCRIPT),
    "test_api.TestInterpreterCall.test_func_in___main___uses_globals": (None, _SCRIPT),
    "test_api.TestInterpreterCall.test_func_in___main___valid": (".", _SCRIPT),
    "test_api.TestInterpreterCall.test_stateless_func_returns_arg": (
        "unpickleable|stateless func .*<locals>",
        f"{_BY_VALUE}; {_CODE}",
    ),
    "test_api.TestInterpreterCall.test_stateless_funcs": (
        "returns (stateless func|unpickleable)",
        f"{_BY_VALUE}; {_CODE}",
    ),
}

_BUFFER = (
    "CPython shares any object's memory, which may go with its interpreter; here a buffer is "
    "copied, unless it is a SharedBuffer's: see test_pep554.py::test_send_buffer"
)
DIFFERENT["test_channels.TestSendRecv.test_send_buffer"] = None, _BUFFER
DIFFERENT["test_channels.TestSendRecv.test_send_buffer_nowait"] = None, _BUFFER

# CPython runs some with 200 interpreters, if told that there is memory for them.
MANY = 40

_folder = tempfile.mkdtemp(prefix="subinterp-test-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def _changed(text):
    for pattern, new in CHANGES:
        text = re.sub(pattern, new, text, flags=re.MULTILINE)
    return text


def _write_package():
    package = Path(_folder) / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "channels.py").write_text(CHANNELS)
    theirs = Path(cpython_tests.__path__[0])
    for name in ("utils", *MODULES):
        text = (theirs / f"{name}.py").read_text(encoding="utf-8")
        text = f"PATH = {[_folder, str(Path(subinterp.__file__).parents[1])]!r}\n{_changed(text)}"
        (package / f"{name}.py").write_text(text, encoding="utf-8")


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

    different = None  # pattern of subtests

    def setUp(self):
        gc.collect()  # what other tests have left in cycles
        super().setUp()
        known = DIFFERENT.get(f"{self.origin}.{self._testMethodName}")
        self.different = known and known[0]

    @contextlib.contextmanager
    def subTest(self, msg="", **params):
        with super().subTest(msg, **params):
            if self.different is None or not re.search(self.different, str(msg)):
                yield
                return
            try:
                yield
            except AssertionError:
                return
            self.fail("it is not different any more")


def _with_size(method, size):
    return lambda self: method(self, size)


def _take(module, cls):
    origin = f"{module}.{cls.__name__}"
    names = {"__module__": __name__, "origin": origin}
    for name in dir(cls):
        if not name.startswith("test"):
            continue
        method = getattr(cls, name)
        part, reason = DIFFERENT.get(f"{origin}.{name}", (None, None))
        reason = NOT_APPLICABLE.get(f"{origin}.{name}", reason)
        if reason is not None and part is None:
            names[name] = unittest.skip(reason)(method)
        elif hasattr(method, "memuse"):
            names[name] = _with_size(inspect.unwrap(method), MANY)
        elif getattr(method, "__unittest_skip_why__", "") == "Fails on FreeBSD":
            names[name] = method.__wrapped__
    ours = type(f"{cls.__name__}Of{module[4:].title()}", (_Ours, cls), names)
    globals()[ours.__name__] = ours


def _take_all():
    for name, module in _modules.items():
        for cls in list(vars(module).values()):
            if (
                isinstance(cls, type)
                and issubclass(cls, unittest.TestCase)
                and cls.__module__ == module.__name__
                # Its tests are about `_interpreters` and `_interpqueues` alone.
                and cls.__name__ != "LowLevelTests"
                and any(name.startswith("test") for name in dir(cls))
            ):
                _take(name, cls)


_take_all()


def test_what_is_listed_exists():
    taken = {
        f"{cls.origin}.{name}"
        for cls in globals().values()
        if isinstance(cls, type) and hasattr(cls, "origin")
        for name in dir(cls)
    }
    assert {*NOT_APPLICABLE, *DIFFERENT} <= taken | {
        "test_queues.TestQueueOps.test_timeout_uses_monotonic_clock"  # not in every version
    }

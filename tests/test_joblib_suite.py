"""joblib's own tests of its parallel backends, run against ours.

They are taken from the installed joblib, so each version brings its own. What differs is the
backend: where they say "loky" or `LokyBackend`, ours is read, and it is the default. Of each
parametrised test the cases remain that concern ours.

A test that cannot apply is listed in NOT_APPLICABLE with its reason, and is
reported as skipped.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

joblib = pytest.importorskip("joblib")
pytest.importorskip("numpy")

from subinterp.integrations import joblib as ours  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.slow]

MODULE = "joblib.test.test_parallel"

# Test, or test and its parameters as pytest writes them -> why it cannot apply, and what checks
# the same thing here.
NOT_APPLICABLE: dict[str, str] = {
}


class _OursForLoky(ast.NodeTransformer):
    """Puts our backend where a test names loky's."""

    def visit_Constant(self, node):
        if node.value == "loky":
            return ast.copy_location(ast.Constant(ours.NAME), node)
        return node

    def visit_Name(self, node):
        if node.id == "LokyBackend":
            node.id = "SubinterpBackend"
        return node

    def visit_Attribute(self, node):
        self.generic_visit(node)
        if node.attr == "LokyBackend":
            return ast.copy_location(ast.Name("SubinterpBackend", node.ctx), node)
        return node


def _load():
    """joblib's module of tests, with our backend for loky's; under its own name."""
    file = importlib.util.find_spec(MODULE).origin
    tree = ast.fix_missing_locations(_OursForLoky().visit(ast.parse(Path(file).read_text())))
    module = types.ModuleType(MODULE)
    module.__file__, module.__package__ = file, MODULE.rpartition(".")[0]
    module.SubinterpBackend = ours.SubinterpBackend
    with mock.patch.dict(joblib.parallel.BACKENDS, clear=False) as backends:
        ours.register()
        del backends["loky"]
        # Workers import the module itself for its functions: they must be found here by that name.
        sys.modules[MODULE] = module
        exec(compile(tree, file, "exec"), vars(module))
    return module


theirs = _load()

# The parameters that name backends.
BACKEND_NAMES = {"backend", "parent_backend", "child_backend", "outer_backend", "inner_backend"}


def _is_ours(value):
    return value is None or value == ours.NAME or isinstance(value, ours.SubinterpBackend)


def _concerns_us(names, values):
    """Whether a case has our backend in it, if it has backends at all."""
    backends = [v for n, v in zip(names, values, strict=True) if n in BACKEND_NAMES]
    return not backends or any(map(_is_ours, backends))


def _taken(test):
    """The test, without the cases that concern other backends only."""
    marks = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name in ("parametrize",):
            names = mark.args[0]
            names = names.split(",") if isinstance(names, str) else list(names)
            names = [name.strip() for name in names]
            cases = []
            for case in mark.args[1]:
                values = case.values if hasattr(case, "values") else case
                if len(names) == 1 and not hasattr(case, "values"):
                    values = (case,)
                if _concerns_us(names, values):
                    cases.append(case)
            kwargs = mark.kwargs
            mark = pytest.mark.parametrize(mark.args[0], cases, **kwargs).mark
        marks.append(mark)
    test.pytestmark = marks
    return test


for _name, _test in list(vars(theirs).items()):
    if _name.startswith("test_") and inspect.isfunction(_test):
        globals()[_name] = _taken(_test)


@pytest.fixture(autouse=True)
def _ours_is_the_default(request):
    """Run each test with our backend as the default, and end its workers."""
    with (
        mock.patch.dict(joblib.parallel.BACKENDS),
        mock.patch.object(joblib.parallel, "DEFAULT_BACKEND", ours.NAME),
        mock.patch.object(joblib.parallel, "DEFAULT_PROCESS_BACKEND", ours.NAME),
    ):
        ours.register()
        yield
    ours.shutdown()

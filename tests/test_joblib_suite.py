"""joblib's own tests of its parallel backends, run against ours.

They are taken from the installed joblib, so each version brings its own. What differs is the
backend: where they say "loky" or `LokyBackend`, ours is read, and it is the default. Of each
parametrised test the cases remain that concern ours.

A test that cannot apply is listed in NOT_APPLICABLE with its reason, and is
reported as skipped.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import itertools
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

from _support import run_script

joblib = pytest.importorskip("joblib")
pytest.importorskip("numpy")
pytest.importorskip("joblib.test.common", reason="this joblib was installed without its tests")

from subinterp.integrations import joblib as ours  # noqa: E402

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.slow,
    # OpenBLAS keeps the threads it was once allowed; pools of threads that tasks make for nested
    # ones keep pipes until their interpreter collects them.
    pytest.mark.leaks("threads", "files"),
]

MODULE = "joblib.test.test_parallel"

_FILES = "expects arrays in mapped files; ours lie in shared memory, see test_joblib.py::"
_PIDS = "tells workers apart by their process; see test_joblib.py::test_the_initializer_"
_PROCESSES = "other processes do not know a backend that was registered in this one"
_ENVIRONMENT = (
    "looks at the environment of the worker, which is that of the process; see "
    "test_joblib.py::test_threads_of_blas_are_limited"
)

# Test, or test with its parameters -> why it cannot apply, and what checks the same thing here.
NOT_APPLICABLE = {
    "test_nested_parallel_warnings[subinterp-subinterp-False]": (
        "loky's workers may have workers of their own; ours run nested tasks one after the other "
        "and warn, see test_joblib.py::test_nested_tasks_that_name_the_backend"
    ),
    "test_nested_parallel_warnings[multiprocessing-subinterp-True]": (
        "loky cannot be used below multiprocessing; ours can, so there is no warning"
    ),
    "test_nested_parallel_warnings[threading-subinterp-True]": (
        "loky cannot be used below threads; ours can, so there is no warning: see "
        "test_joblib.py::test_calls_at_the_same_time"
    ),
    "test_nested_loop[loky-subinterp]": _PROCESSES,
    "test_nested_loop[multiprocessing-subinterp]": _PROCESSES,
    "test_backend_nesting_level[parallel_config-multiprocessing-subinterp]": _PROCESSES,
    "test_backend_nesting_level[parallel_backend-multiprocessing-subinterp]": _PROCESSES,
    "test_parallel_pickling": (
        "expects loky's words; see test_joblib.py::test_what_cannot_be_sent_is_named"
    ),
    "test_parallel_with_interactively_defined_bound_method_loky": (
        "looks for loky's processes in a log; see test_joblib.py::test_methods_of_main"
    ),
    "test_auto_memmap_on_arrays_from_generator": _FILES + "test_arrays_from_a_generator",
    "test_memmapping_leaks": _FILES + "test_large_arrays_are_lent_once_for_a_call",
    "test_multiple_generator_call_separated_gc": (
        "expects that calls at the same time have the same workers and fail together; see "
        "test_joblib.py::test_a_forgotten_generator_stops_its_tasks_only"
    ),
    "test_threadpool_limitation_in_child_override": _ENVIRONMENT,
    "test_initializer_reused": _PIDS + "runs_once_in_each_worker",
    "test_initializer_not_reused": _PIDS + "makes_other_workers",
}


# What joblib's scripts begin with, and what ours have before it.
IMPORT = "from joblib import Parallel, delayed"
REGISTER = "import subinterp.integrations.joblib as ours; ours.register()\n"


class _OursForLoky(ast.NodeTransformer):
    """Puts our backend where a test names loky's."""

    def visit_Constant(self, node):
        if node.value == "loky":
            return ast.copy_location(ast.Constant(ours.NAME), node)
        if isinstance(node.value, str) and IMPORT in node.value:
            script = node.value.replace(IMPORT, REGISTER + IMPORT).replace('"loky"', '"subinterp"')
            return ast.copy_location(ast.Constant(script), node)
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


@contextlib.contextmanager
def _ours_by_default():
    """Have our backend registered, and used where none is named."""
    with (
        mock.patch.dict(joblib.parallel.BACKENDS),
        mock.patch.object(joblib.parallel, "DEFAULT_BACKEND", ours.NAME),
        mock.patch.object(joblib.parallel, "DEFAULT_PROCESS_BACKEND", ours.NAME),
    ):
        ours.register()
        yield


def _load():
    """joblib's module of tests, with our backend for loky's; under its own name."""
    file = importlib.util.find_spec(MODULE).origin
    tree = ast.fix_missing_locations(_OursForLoky().visit(ast.parse(Path(file).read_text())))
    module = types.ModuleType(MODULE)
    module.__file__, module.__package__ = file, MODULE.rpartition(".")[0]
    module.SubinterpBackend = ours.SubinterpBackend
    with _ours_by_default():
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


def _cases(mark):
    """Return the names of a parametrised test's parameters, and each case as a list."""
    names, cases = mark.args
    names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    return names, [[case] if len(names) == 1 else list(case) for case in cases]


def _takes(test):
    """Leave a test the cases that concern us; False if none is left."""
    marks = []
    over = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            (over if BACKEND_NAMES.intersection(_cases(mark)[0]) else marks).append(mark)
        elif mark.name != "xfail":  # what fails with theirs passes with ours
            marks.append(mark)
    if over:
        over.sort(key=lambda mark: _cases(mark)[0][0].partition("_")[0] not in ("parent", "outer"))
        names = [name for mark in over for name in _cases(mark)[0]]
        every = itertools.product(*(_cases(mark)[1] for mark in over))
        cases = [list(itertools.chain(*parts)) for parts in every]
        cases = [case for case in cases if _concerns_us(names, case)]
        if not cases:
            return False
        if len(names) == 1:
            cases = [case[0] for case in cases]
        marks.append(pytest.mark.parametrize(",".join(names), cases).mark)
    test.pytestmark = marks
    return True


with _ours_by_default():  # the parameters of some are all backends that are registered
    TESTS = {
        name: test
        for name, test in vars(theirs).items()
        if name.startswith("test_") and inspect.isfunction(test) and _takes(test)
    }
globals().update(TESTS)

# A nested pool of threads that is interrupted while it ends leaves threads, and with them its
# interpreter, behind: in a process of its own, then.
_nested_exception_dispatch = TESTS["test_nested_exception_dispatch"]


def test_nested_exception_dispatch():
    run_script(
        """
        import test_joblib_suite as suite

        with suite._ours_by_default():
            suite._nested_exception_dispatch("subinterp")
        """
    ).check()


def test_what_is_listed_is_there():
    assert {name.partition("[")[0] for name in NOT_APPLICABLE} <= set(TESTS)
    assert len(TESTS) > 50


@pytest.fixture(autouse=True)
def _ours_is_the_default(request):
    """Run each test with our backend as the default, and end its workers."""
    for name in (request.node.name, request.node.originalname):
        if name in NOT_APPLICABLE:
            pytest.skip(NOT_APPLICABLE[name])
    with _ours_by_default():
        yield
    ours.shutdown()

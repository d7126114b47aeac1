"""Functions: by name or by value, what they refer to, and the errors they end with."""

from __future__ import annotations

import functools
import math
import operator
import os
import pickle
import sys
import threading
import traceback
import types

import pytest

import _work
import subinterp
from _support import run_script
from _work import (
    ArgumentsError,
    AttributeErrorCarrier,
    BadReprError,
    EmptyError,
    FalsyError,
    PlainError,
    Point,
    UnpicklableError,
    add,
    apply,
    capture,
    fail,
    fail_with,
    identity,
    interpreter_id,
)
from subinterp import NotSendableError, RemoteError, RemoteTraceback

LONG = 60


def call(pool, fn, /, *args, **kwargs):
    return pool.submit(fn, *args, **kwargs).result(LONG)


# By name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (abs, (-3,), 3),
        (len, ("abc",), 3),
        (math.sqrt, (16,), 4.0),
        (operator.add, (1, 2), 3),
        (str.upper, ("abc",), "ABC"),
        (int, ("12",), 12),
        (dict, ([("a", 1)],), {"a": 1}),
        ("abc".replace, ("b", "x"), "axc"),
        ([1, 2, 3].count, (2,), 1),
        (int.from_bytes, (b"\x01\x00", "big"), 256),
        (operator.itemgetter(1), ("abc",), "b"),
        (operator.methodcaller("upper"), ("abc",), "ABC"),
        (functools.partial(add, 1), (2,), 3),
        (functools.partial(capture, 1, k=2), (3,), ((1, 3), {"k": 2})),
        (functools.partial(functools.partial(add, 1), 2), (), 3),
        (Point, (1, 2), Point(1, 2)),
        (Point.origin, (), Point(0, 0)),
        (Point.twice, (4,), 8),
        (Point(1, -2).norm1, (), 3),
        (Point(1, 2).add_to, (10,), 11),
        (Point.add_to, (Point(5, 0), 1), 6),
        (Point(1, 2), (3,), Point(3, 6)),
        (os.path.join, ("a", "b"), "a/b"),
        (types.SimpleNamespace, (), types.SimpleNamespace()),
    ],
    ids=lambda value: getattr(value, "__qualname__", None) if callable(value) else None,
)
def test_importable(pool, fn, args, expected):
    for _ in range(3):  # the second time from the caches
        assert call(pool, fn, *args) == expected


def test_runs_in_the_worker_and_not_here(pool):
    assert call(pool, interpreter_id) != interpreter_id()


def test_module_state_is_the_workers(pool1):
    _work.set_state("caller")
    try:
        assert call(pool1, _work.get_state) == "unset"
        call(pool1, _work.set_state, "worker")
        assert call(pool1, _work.get_state) == "worker"
        assert _work.get_state() == "caller"
    finally:
        _work.set_state("unset")


def test_by_name_means_the_workers_module(pool):
    """A monkeypatched name is not what was submitted: it goes by value, or fails; never wrong."""

    def add(x, y):
        return "patched"

    add.__module__, add.__qualname__ = "_work", "add"
    # It says it is _work.add and is not: the caller's function must win.
    assert call(pool, add, 1, 2) == "patched"
    assert call(pool, _work.add, 1, 2) == 3


def test_module_imported_after_the_pool_started(tmp_path, monkeypatch):
    with subinterp.InterpreterPool(1) as pool:
        assert call(pool, add, 1, 2) == 3
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "made_later.py").write_text("def f():\n    return 'later'\n")
        import made_later

        try:
            # Either the worker learns of the new path, or it says what is missing.
            assert call(pool, made_later.f) == "later"
        except ImportError as error:
            text = "".join(traceback.format_exception(error))
            assert "made_later" in text and "sys.path" in text
        finally:
            sys.modules.pop("made_later", None)


# By value ---------------------------------------------------------------------------


def test_lambda(pool):
    assert call(pool, lambda x: x + 1, 2) == 3


def test_closure(pool):
    offset = 10

    def shifted(x):
        return x + offset

    assert call(pool, shifted, 1) == 11


def test_closure_over_functions(pool):
    def inner(x):
        return x * 2

    def outer(x):
        return inner(x) + 1

    assert call(pool, outer, 5) == 11


def test_local_recursive_function(pool):
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    assert call(pool, factorial, 20) == math.factorial(20)


def test_local_functions_that_call_each_other(pool):
    def even(n):
        return True if n == 0 else odd(n - 1)

    def odd(n):
        return False if n == 0 else even(n - 1)

    assert call(pool, even, 10) is True
    assert call(pool, odd, 10) is False


def test_partial_of_a_lambda(pool):
    assert call(pool, functools.partial(lambda a, b, c: (a, b, c), 1, c=3), 2) == (1, 2, 3)


def test_defaults_and_keyword_defaults(pool):
    def f(a, b=[1, 2], *, c={"k": "v"}):  # noqa: B006
        return a, b, c

    assert call(pool, f, 0) == (0, [1, 2], {"k": "v"})
    assert call(pool, f, 0, c=5) == (0, [1, 2], 5)


def test_function_attributes(pool):
    def f():
        return f.note

    f.note = "attribute"
    assert call(pool, f) == "attribute"


def test_local_class(pool):
    class Local:
        def __init__(self, x):
            self.x = x

        def double(self):
            return self.x * 2

    assert call(pool, Local(4).double) == 8
    made = call(pool, Local, 5)
    assert type(made) is Local
    assert made.x == 5


def test_lambda_with_an_import_inside(pool):
    def f():
        import json

        return json.dumps([1])

    assert call(pool, f) == "[1]"


def test_closure_over_a_module(pool):
    import json

    assert call(pool, lambda: json.loads("[1]")) == [1]


def test_functions_in_arguments_and_results(pool):
    assert call(pool, apply, lambda x: x * 3, 4) == 12
    made = call(pool, lambda n: lambda x: x + n, 5)
    assert made(1) == 6
    assert call(pool, made, 10) == 15


def test_decorated(pool):
    def doubled(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return 2 * fn(*args)

        return wrapper

    @doubled
    def f(x):
        return x + 1

    assert call(pool, f, 1) == 4


def test_cached_function(pool):
    @functools.cache
    def f(x):
        return x + 1

    assert call(pool, f, 1) == 2


def test_generator_function_fails_clearly(pool):
    def gen():
        yield 1

    with pytest.raises(NotSendableError, match="generator"):
        call(pool, gen)
    assert call(pool, add, 1, 2) == 3


def test_async_function_fails_clearly(pool):
    async def coro():
        return 1

    with pytest.raises(NotSendableError, match="coroutine"):
        call(pool, coro)
    assert call(pool, add, 1, 2) == 3


# The cache of functions by value -------------------------------------------------------


def test_changed_closure_is_seen(pool):
    x = 0

    def f():
        return x

    for n in range(20):
        x = n
        assert call(pool, f) == n


def test_changed_object_in_a_closure_is_seen(pool):
    items = []

    def f():
        return list(items)

    for n in range(10):
        items.append(n)
        assert call(pool, f) == list(range(n + 1))


def test_changed_object_deep_in_a_closure_is_seen(pool):
    tree = {"a": ({"b": [0]},)}

    def f():
        return tree["a"][0]["b"][0]

    for n in range(10):
        tree["a"][0]["b"][0] = n
        assert call(pool, f) == n


def make_module_function(source):
    """Compile a function whose globals are a dict of their own."""
    namespace = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace


def test_changed_global_is_seen(pool):
    namespace = make_module_function("LIMIT = 0\ndef f():\n    return LIMIT\n")
    for n in range(20):
        namespace["LIMIT"] = n
        assert call(pool, namespace["f"]) == n


def test_changed_mutable_global_is_seen(pool):
    namespace = make_module_function("ITEMS = []\ndef f():\n    return list(ITEMS)\n")
    for n in range(10):
        namespace["ITEMS"].append(n)
        assert call(pool, namespace["f"]) == list(range(n + 1))


def test_changed_global_function_is_seen(pool):
    namespace = make_module_function(
        "def helper():\n    return 'old'\ndef f():\n    return helper()\n"
    )
    assert call(pool, namespace["f"]) == "old"
    exec("def helper():\n    return 'new'\n", namespace)
    assert call(pool, namespace["f"]) == "new"


def test_changed_global_of_a_called_function_is_seen(pool):
    namespace = make_module_function(
        "LIMIT = 0\ndef helper():\n    return LIMIT\ndef f():\n    return helper()\n"
    )
    for n in range(5):
        namespace["LIMIT"] = n
        assert call(pool, namespace["f"]) == n


def test_new_global_is_seen(pool):
    namespace = make_module_function(
        "def f():\n    try:\n        return NEW\n    except NameError:\n        return 'none'\n"
    )
    assert call(pool, namespace["f"]) == "none"
    namespace["NEW"] = "there"
    assert call(pool, namespace["f"]) == "there"
    del namespace["NEW"]
    assert call(pool, namespace["f"]) == "none"


def test_changed_global_used_by_an_inner_function_is_seen(pool):
    namespace = make_module_function("LIMIT = 0\ndef f():\n    return (lambda: LIMIT)()\n")
    for n in range(5):
        namespace["LIMIT"] = n
        assert call(pool, namespace["f"]) == n


def test_changed_class_attribute_is_seen(pool):
    namespace = make_module_function(
        "class Settings:\n    limit = 0\ndef f():\n    return Settings.limit\n"
    )
    for n in range(5):
        namespace["Settings"].limit = n
        assert call(pool, namespace["f"]) == n


def test_changed_defaults_are_seen(pool):
    def f(x=0, *, y=0):
        return x, y

    for n in range(10):
        f.__defaults__ = (n,)
        assert call(pool, f) == (n, n - 1 if n else 0)
        f.__kwdefaults__ = {"y": n}
        assert call(pool, f) == (n, n)


def test_changed_value_in_kwdefaults_is_seen(pool):
    def f(*, y=0):
        return y

    for n in range(5):
        f.__kwdefaults__["y"] = n
        assert call(pool, f) == n


def test_changed_mutable_default_is_seen(pool):
    def f(x=[]):  # noqa: B006
        return list(x)

    for n in range(5):
        f.__defaults__[0].append(n)
        assert call(pool, f) == list(range(n + 1))


def test_changed_code_is_seen(pool):
    def f():
        return "old"

    def g():
        return "new"

    assert call(pool, f) == "old"
    f.__code__ = g.__code__
    assert call(pool, f) == "new"


def test_changed_function_attribute_is_seen(pool):
    def f():
        return f.note

    for n in range(5):
        f.note = n
        assert call(pool, f) == n


def test_worker_does_not_keep_changes_to_mutable_state_wrongly(pool1):
    """What a task does to its copy of a closure never reaches the caller's."""
    items = [0]

    def f():
        items.append(1)
        return len(items)

    call(pool1, f)
    assert items == [0]


def test_a_global_that_grows_back_to_equal_is_seen(pool):
    """Equal is not the same: True and 1 are different values of a global."""
    namespace = make_module_function("VALUE = 1\ndef f():\n    return repr(VALUE)\n")
    for value in (1, True, 1.0, 1, 0.0, -0.0):
        namespace["VALUE"] = value
        assert call(pool, namespace["f"]) == repr(value)


def test_same_code_different_closures(pool):
    def make(n):
        return lambda: n

    functions = [make(n) for n in range(50)]
    for _ in range(3):
        futures = [pool.submit(f) for f in functions]
        assert [future.result(LONG) for future in futures] == list(range(50))


def test_functions_that_come_and_go(pool):
    """Functions at addresses used before are not taken for each other."""
    for n in range(300):
        assert call(pool, eval(f"lambda: {n}")) == n


def test_functions_by_value_do_not_pile_up(pool1):
    before = None
    for n in range(3000):
        assert call(pool1, lambda n=n: n) == n
        if n == 1500:
            before = call(pool1, _work.count_objects)
    # A cache of functions has a bound: the second half adds few objects.
    assert call(pool1, _work.count_objects) < before + 20_000


def test_map_with_a_closure(pool):
    offset = 100
    assert list(pool.map(lambda x: x + offset, range(1000))) == list(range(100, 1100))
    assert sorted(pool.imap_unordered(lambda x: x + offset, range(100))) == list(range(100, 200))
    assert list(pool.starmap(lambda x, y: x * y + offset, [(1, 2), (3, 4)])) == [102, 112]
    assert pool.broadcast(lambda: offset) == [100, 100]


# __main__: scripts, -c, standard input ---------------------------------------------------

MAIN_SCRIPT = """
import functools, sys
from subinterp import InterpreterPool

FACTOR = 3
TABLE = {"a": 1}

def times(x):
    return x * FACTOR

def fact(n):
    return 1 if n < 2 else n * fact(n - 1)

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

def logged(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return ("logged", fn(*args))
    return wrapper

@logged
def decorated(x):
    return times(x)

class Base:
    kind = "base"
    def __init__(self, n):
        self.n = n
    def get(self):
        return self.n, self.kind

class Child(Base):
    kind = "child"
    def get(self):
        return super().get() + ("super",)
    @classmethod
    def make(cls, n):
        return cls(n)
    @staticmethod
    def static(n):
        return n * FACTOR

class MyError(Exception):
    pass

def give_back(obj):
    return obj

def make_child(n):
    return Child(n)

def raise_mine(n):
    raise MyError(n, Child(n))

def run():
    original = Child, Base, MyError
    methods = Child.get, Base.get, Child.__init__
    with InterpreterPool(2) as pool:
        def call(fn, *args):
            return pool.submit(fn, *args).result(60)
        assert call(times, 2) == 6
        assert call(fact, 10) == 3628800
        assert call(even, 10) is True
        assert call(decorated, 2) == ("logged", 6)
        assert call(lambda: TABLE["a"]) == 1
        assert call(functools.partial(times, 5)) == 15
        assert list(pool.map(times, range(100))) == [3 * n for n in range(100)]
        child = Child(7)
        assert call(child.get) == (7, "child", "super")
        assert call(Child.make, 1).get() == (1, "child", "super")
        assert call(Child.static, 2) == 6
        for _ in range(3):
            back = call(give_back, child)
            assert type(back) is Child and isinstance(back, Base), type(back)
            assert back.n == 7 and back is not child
            made = call(make_child, 8)
            assert type(made) is Child and made.n == 8
            assert call(give_back, Child) is Child
            inside = call(give_back, {"k": [child, Base(1)]})
            assert type(inside["k"][0]) is Child and type(inside["k"][1]) is Base
        try:
            call(raise_mine, 4)
        except MyError as error:
            assert type(error) is MyError
            assert error.args[0] == 4 and type(error.args[1]) is Child
        else:
            raise AssertionError("no error")
        # The classes of this script are what they were.
        assert (Child, Base, MyError) == original
        assert (Child.get, Base.get, Child.__init__) == methods
        Child.extra = "changed later"
        back = call(give_back, child)
        assert Child.extra == "changed later" and back.extra == "changed later"
        assert call(lambda: Child.extra) == "changed later"
        global FACTOR
        FACTOR = 10
        assert call(times, 2) == 20
        try:
            call(lambda: undefined_name)
        except NameError as error:
            assert "undefined_name" in str(error)
        else:
            raise AssertionError("no error")
        assert call(lambda: __name__) == "__main__"
    print("all good", *sys.argv[1:])
"""

GUARDED = MAIN_SCRIPT + '\nif __name__ == "__main__":\n    run()\n'
UNGUARDED = MAIN_SCRIPT + '\nprint("top level")\nrun()\n'


@pytest.mark.parametrize("mode", ["file", "-c", "stdin"])
@pytest.mark.parametrize("guard", [True, False], ids=["guarded", "unguarded"])
def test_main(mode, guard):
    result = run_script(GUARDED if guard else UNGUARDED, mode=mode, args=["arg"] * (mode != "-c"))
    result.clean()
    # The workers did not run the script again.
    expected = "all good" + " arg" * (mode != "-c") + "\n"
    assert result.stdout == ("" if guard else "top level\n") + expected


def test_main_of_a_module_run_with_m(tmp_path):
    (tmp_path / "program.py").write_text(GUARDED)
    source = f"""
    import runpy, sys
    sys.path.insert(0, {str(tmp_path)!r})
    runpy.run_module("program", run_name="__main__", alter_sys=True)
    """
    result = run_script(source, mode="-c").clean()
    assert result.stdout == "all good\n"


def test_class_of_main_changed_in_the_worker_does_not_come_back():
    run_script(
        """
        from subinterp import InterpreterPool

        class Thing:
            label = "caller"
            def who(self):
                return "caller's method"

        def tamper():
            Thing.label = "worker"
            Thing.who = lambda self: "worker's method"
            return Thing()

        with InterpreterPool(1) as pool:
            thing = pool.submit(tamper).result(60)
            assert type(thing) is Thing
            assert Thing.label == "caller" and thing.label == "caller"
            assert thing.who() == "caller's method"
        """
    ).clean()


def test_class_made_in_the_worker_comes_by_value():
    """A class that the caller does not have arrives whole."""
    run_script(
        """
        from subinterp import InterpreterPool

        def make():
            class Fresh:
                def hello(self):
                    return "hello"
            return Fresh()

        with InterpreterPool(1) as pool:
            assert pool.submit(make).result(60).hello() == "hello"
        """
    ).clean()


def test_dataclass_enum_namedtuple_of_main():
    run_script(
        """
        import collections, dataclasses, enum
        from typing import NamedTuple
        from subinterp import InterpreterPool

        @dataclasses.dataclass
        class Data:
            a: int
            b: list = dataclasses.field(default_factory=list)

        @dataclasses.dataclass(frozen=True, slots=True)
        class Frozen:
            a: int

        class Color(enum.Enum):
            RED = 1
            BLUE = 2

        class Flags(enum.Flag):
            A = 1
            B = 2

        Pair = collections.namedtuple("Pair", "x y")

        class Typed(NamedTuple):
            x: int
            y: str = "y"

        def same(obj):
            return obj

        def is_red(color):
            return color is Color.RED

        values = [Data(1, [2]), Frozen(3), Color.RED, Flags.A | Flags.B, Pair(1, 2), Typed(1)]
        with InterpreterPool(2) as pool:
            for value in values:
                back = pool.submit(same, value).result(60)
                assert type(back) is type(value), (value, type(back))
                assert back == value
            assert pool.submit(same, Color.RED).result(60) is Color.RED
            assert pool.submit(is_red, Color.RED).result(60) is True
            assert list(pool.map(same, values)) == values
        """
    ).clean()


def test_main_function_submitted_from_a_task():
    run_script(
        """
        from subinterp import InterpreterPool

        def inner(x):
            return x + 1

        def outer(pool):
            return pool.submit(inner, 1).result(60)

        with InterpreterPool(2) as pool:
            assert pool.submit(outer, pool).result(60) == 2
        """
    ).clean()


def test_pool_in_a_global_of_main():
    run_script(
        """
        from subinterp import InterpreterPool

        def inner(x):
            return x + 1

        def outer():
            return pool.submit(inner, 1).result(60)

        if __name__ == "__main__":
            pool = InterpreterPool(2)
            assert pool.submit(outer).result(60) == 2
            pool.shutdown()
        """
    ).clean()


def test_main_module_is_importable_in_nothing_else():
    """A guard-less script that starts its pool at the top level does not recurse."""
    result = run_script(
        """
        from subinterp import InterpreterPool
        print("once")
        pool = InterpreterPool(2)
        print(pool.submit(lambda: 42).result(60))
        pool.shutdown()
        """
    ).clean()
    assert result.stdout == "once\n42\n"


def test_stdlib_modules_used_by_main_functions():
    run_script(
        """
        import json, collections
        import os.path as p
        from math import sqrt
        from subinterp import InterpreterPool

        def f(x):
            return json.dumps([sqrt(x), p.join("a", "b"), collections.Counter("aab")["a"]])

        with InterpreterPool(1) as pool:
            assert pool.submit(f, 4).result(60) == '[2.0, "a/b", 2]'
        """
    ).clean()


# Exceptions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("text"),
        ValueError(),
        KeyError("key"),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        StopIteration(5),
        StopAsyncIteration(),
        PlainError(1, "two", [3]),
        AttributeErrorCarrier("text", {"k": 1}),
        ZeroDivisionError("z"),
        RecursionError("r"),
        MemoryError(),
        TimeoutError("t"),
        AssertionError("a"),
        SystemError("s"),
        ImportError("i", name="n", path="p"),
        KeyboardInterrupt("k"),
        GeneratorExit(),
        SystemExit(3),
        ExceptionGroup("g", [ValueError(1), KeyError(2)]),
        BaseExceptionGroup("b", [SystemExit(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exception_types(pool, error):
    arrived = pool.submit(fail_with, error).exception(LONG)
    assert type(arrived) is type(error)
    if not isinstance(error, BaseExceptionGroup):
        assert arrived.args == error.args
    else:
        assert arrived.message == error.message
        assert [repr(e) for e in arrived.exceptions] == [repr(e) for e in error.exceptions]
    for name, value in vars(error).items():
        assert getattr(arrived, name) == value
    assert call(pool, add, 1, 2) == 3


def test_exception_details(pool):
    arrived = pool.submit(fail_with, OSError(2, "text", "file")).exception(LONG)
    assert type(arrived) is OSError or type(arrived) is FileNotFoundError
    assert (arrived.errno, arrived.strerror, arrived.filename) == (2, "text", "file")
    arrived = pool.submit(fail_with, AttributeErrorCarrier("t", 5)).exception(LONG)
    assert (arrived.extra, arrived.more) == (5, [5])
    arrived = pool.submit(fail_with, ImportError("i", name="n", path="p")).exception(LONG)
    assert (arrived.name, arrived.path) == ("n", "p")


@pytest.mark.parametrize("error_type", [FalsyError, EmptyError])
def test_falsy_exceptions(pool, error_type):
    with pytest.raises(error_type):
        call(pool, fail, error_type)


def test_traceback_of_the_worker_is_the_cause(pool):
    with pytest.raises(LookupError, match="deep in the worker") as caught:
        call(pool, _work.fail_deep_in_worker)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    text = str(cause)
    assert "fail_deep_in_worker" in text and "_work.py" in text
    assert "LookupError: deep in the worker" in text
    # And it is shown.
    shown = "".join(traceback.format_exception(caught.value))
    assert "fail_deep_in_worker" in shown and "direct cause" in shown


def test_traceback_shows_the_lines_of_a_lambda_of_main():
    result = run_script(
        """
        from subinterp import InterpreterPool

        def inner(x):
            return 1 / x  # the guilty line

        with InterpreterPool(1) as pool:
            pool.submit(inner, 0).result(60)
        """
    )
    assert result.returncode == 1
    assert "the guilty line" in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "in inner" in result.stderr


def test_notes(pool):
    error = pool.submit(_work.fail_noted).exception(LONG)
    assert error.__notes__ == ["first note", "second note"]


def causes(error):
    """The causes of an exception without the tracebacks of the worker."""
    chain = []
    error = error.__cause__
    while error is not None:
        if not isinstance(error, RemoteTraceback):
            chain.append(error)
        error = error.__cause__
    return chain


def test_cause_chain(pool):
    error = pool.submit(_work.fail_chained).exception(LONG)
    assert type(error) is ValueError
    text = "".join(traceback.format_exception(error))
    for part in ("innermost", "middle", "outermost", "fail_chained"):
        assert part in text
    assert [type(e) for e in causes(error)] == [OSError, KeyError]
    assert causes(error)[1].args == ("innermost",)


def test_context(pool):
    error = pool.submit(_work.fail_in_context).exception(LONG)
    assert type(error) is ValueError
    assert type(error.__context__) is KeyError
    assert error.__context__.args == ("handled",)
    assert "handled" in "".join(traceback.format_exception(error))


def test_suppressed_context(pool):
    error = pool.submit(_work.fail_suppressed).exception(LONG)
    text = "".join(traceback.format_exception(error))
    assert "shown" in text and "hidden" not in text


def test_groups(pool):
    error = pool.submit(_work.fail_group).exception(LONG)
    assert type(error) is ExceptionGroup
    one, inner = error.exceptions
    assert type(one) is ValueError and one.args == ("one",)
    assert type(inner) is ExceptionGroup and type(inner.exceptions[0]) is KeyError
    with pytest.raises(ExceptionGroup) as caught:
        call(pool, _work.fail_group)
    matched, rest = caught.value.split(ValueError)
    assert matched is not None and rest is not None


def test_notes_on_causes_and_in_groups(pool):
    def fail_all():
        one = ValueError("one")
        one.add_note("note on one")
        cause = KeyError("cause")
        cause.add_note("note on cause")
        raise ExceptionGroup("g", [one]) from cause

    error = pool.submit(fail_all).exception(LONG)
    assert error.exceptions[0].__notes__ == ["note on one"]
    assert causes(error)[0].__notes__ == ["note on cause"]


def test_exception_chain_that_is_a_circle(pool):
    def fail_in_a_circle():
        one, two = ValueError("one"), ValueError("two")
        one.__context__, two.__context__ = two, one
        raise one

    error = pool.submit(fail_in_a_circle).exception(LONG)
    assert type(error) is ValueError


def test_long_exception_chain(pool):
    def fail_long():
        error = None
        for n in range(2000):
            fresh = ValueError(n)
            fresh.__cause__ = error
            error = fresh
        raise error

    error = pool.submit(fail_long).exception(LONG)
    assert isinstance(error, (ValueError, RemoteError))
    assert call(pool, add, 1, 2) == 3


def test_error_in_a_comparison_of_exceptions(pool):
    """The same exception object raised again is not mangled."""
    future = pool.submit(fail, PlainError, "x")
    for _ in range(3):
        with pytest.raises(PlainError) as caught:
            future.result(LONG)
        assert isinstance(caught.value.__cause__, RemoteTraceback)


def test_exception_that_breaks_pickling(pool):
    """`__init__` takes something else than `args`: the text arrives all the same."""
    error = pool.submit(fail, ArgumentsError, 5, reason="because").exception(LONG)
    assert isinstance(error, RemoteError)
    assert "ArgumentsError" in str(error) and "5: because" in str(error)
    assert "in fail" in "".join(traceback.format_exception(error))
    assert call(pool, add, 1, 2) == 3


def test_exception_that_cannot_be_pickled(pool):
    error = pool.submit(fail, UnpicklableError).exception(LONG)
    assert isinstance(error, RemoteError)
    assert "UnpicklableError" in str(error) and "holds a lock" in str(error)
    assert call(pool, add, 1, 2) == 3


def test_exception_whose_registered_reducer_takes_more_along(pool):
    """As tblib's does, the context: that cannot be sent here, and goes apart anyway."""

    def f():
        import copyreg
        import threading

        copyreg.pickle(KeyError, lambda exc: (KeyError, (*exc.args, exc.__context__)))
        try:
            raise ValueError(threading.Lock())
        except ValueError:
            raise KeyError("x")  # noqa: B904

    def forget():
        import copyreg

        copyreg.dispatch_table.pop(KeyError, None)

    error = pool.submit(f).exception(LONG)
    pool.broadcast(forget)
    assert type(error) is KeyError and error.args == ("x",)
    assert isinstance(error.__context__, RemoteError) and "lock" in str(error.__context__)


def test_exception_without_a_text(pool):
    error = pool.submit(fail, BadReprError).exception(LONG)
    assert isinstance(error, RemoteError)
    assert "BadReprError" in str(error)
    assert call(pool, add, 1, 2) == 3


def test_unsendable_exception_in_a_chain(pool):
    def f():
        try:
            raise UnpicklableError
        except UnpicklableError as error:
            raise ValueError("from it") from error

    error = pool.submit(f).exception(LONG)
    assert type(error) is ValueError
    assert "UnpicklableError" in "".join(traceback.format_exception(error))


def test_unsendable_exception_in_a_group(pool):
    def f():
        raise ExceptionGroup("g", [UnpicklableError(), ValueError("v")])

    error = pool.submit(f).exception(LONG)
    text = "".join(traceback.format_exception(error))
    assert "UnpicklableError" in text and "ValueError: v" in text


def test_local_exception_class(pool):
    class LocalError(Exception):
        pass

    with pytest.raises(LocalError) as caught:
        call(pool, fail, LocalError, 1, 2)
    assert caught.value.args == (1, 2)


def test_exception_class_of_the_worker_only(pool, tmp_path):
    """A class that the caller cannot import arrives as text."""
    (tmp_path / "only_in_the_worker.py").write_text("class Special(Exception): pass\n")

    def f(path):
        import sys

        sys.path.insert(0, path)
        import only_in_the_worker

        raise only_in_the_worker.Special("secret text")

    error = pool.submit(f, str(tmp_path)).exception(LONG)
    assert isinstance(error, RemoteError)
    assert "Special" in str(error) and "secret text" in str(error)


def test_remote_error_is_a_subinterp_error():
    assert issubclass(RemoteError, subinterp.SubinterpError)
    assert issubclass(RemoteTraceback, Exception)


def test_system_exit_in_a_task(pool):
    for args in [(), (0,), (7,), ("text",), (None,)]:
        error = pool.submit(_work.exit_with, *args or (None,)).exception(LONG)
        assert type(error) is SystemExit
        assert error.code == (args[0] if args else None)
    assert call(pool, add, 1, 2) == 3


def test_map_error_has_the_traceback_of_the_worker(pool):
    with pytest.raises(PlainError) as caught:
        list(pool.map(_work.fail_sometimes, range(10)))
    assert "fail_sometimes" in str(caught.value.__cause__)


# What cannot be sent ------------------------------------------------------------------------


class Connection:
    """Something with a socket inside, as people have it."""

    def __init__(self):
        self.name = "db"
        self.socket = threading.Lock()


class SlotHolder:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


LOCK_CASES = [
    ((threading.Lock(),), {}, r"args\[0\]"),
    (
        (1, {"conn": types.SimpleNamespace(socket=threading.Lock())}),
        {},
        r"args\[1\]\['conn'\]\.socket",
    ),
    (([0, [1, threading.Lock()]],), {}, r"args\[0\]\[1\]\[1\]"),
    (((0, threading.Lock()),), {}, r"args\[0\]\[1\]"),
    ((), {"key": threading.Lock()}, r"kwargs\['key'\]"),
    ((), {"key": [threading.Lock()]}, r"kwargs\['key'\]\[0\]"),
    (({1: threading.Lock()},), {}, r"args\[0\]\[1\]"),
    (({("a", 2): threading.Lock()},), {}, r"args\[0\]\[\('a', 2\)\]"),
    (
        (1, 2, {"rows": ({"x": {"y": threading.Lock()}},)}),
        {},
        r"args\[2\]\['rows'\]\[0\]\['x'\]\['y'\]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("args", "kwargs", "path"), LOCK_CASES, ids=lambda value: str(value)[:30])
def test_unsendable_argument(pool, args, kwargs, path):
    with pytest.raises(NotSendableError, match=path) as caught:
        pool.submit(capture, *args, **kwargs)
    assert "lock" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, pickle.PicklingError)
    assert isinstance(caught.value, subinterp.SubinterpError)
    assert call(pool, add, 1, 2) == 3


def test_unsendable_argument_of_the_issue(pool):
    with pytest.raises(NotSendableError, match=r"args\[1\]\['conn'\]\.socket"):
        pool.submit(capture, 0, {"conn": Connection()})
    with pytest.raises(NotSendableError, match=r"args\[0\]\.inner\.socket"):
        pool.submit(capture, SlotHolder(Connection()))


def open_file():
    return open(os.devnull, "w")


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        threading.Event,
        lambda: (x for x in ()),
        open_file,
        lambda: sys._getframe(),
        _work.BadReduce,
    ],
)
def test_unsendable_objects(pool, make):
    obj = make()
    try:
        with pytest.raises(NotSendableError, match=r"args\[0\]"):
            pool.submit(identity, obj)
    finally:
        if hasattr(obj, "close"):
            obj.close()
    assert call(pool, add, 1, 2) == 3


def test_error_of_the_object_is_the_cause(pool):
    with pytest.raises(NotSendableError) as caught:
        pool.submit(identity, [_work.BadReduce()])
    error, texts = caught.value, []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("will not be pickled" in text for text in texts)


def test_unsendable_closure(pool):
    lock = threading.Lock()
    with pytest.raises(NotSendableError, match="lock"):
        pool.submit(lambda: lock)
    with pytest.raises(NotSendableError, match="lock"):
        pool.submit(threading.Lock().acquire)
    assert call(pool, add, 1, 2) == 3


def test_unsendable_closure_names_the_variable(pool):
    handle = {"inner": threading.Lock()}

    def task():
        return handle

    with pytest.raises(NotSendableError, match="handle"):
        pool.submit(task)


def test_unsendable_item_of_map(pool):
    for method in (pool.map, pool.imap_unordered):
        with pytest.raises(NotSendableError, match="lock"):
            list(method(identity, [1, 2, threading.Lock(), 4]))
        assert call(pool, add, 1, 2) == 3


def test_unsendable_argument_does_not_stop_others(pool):
    futures = []
    for n in range(100):
        if n % 3 == 0:
            with pytest.raises(NotSendableError):
                pool.submit(identity, threading.Lock())
        else:
            futures.append((n, pool.submit(identity, n)))
    assert [(n, future.result(LONG)) for n, future in futures] == [
        (n, n) for n in range(100) if n % 3
    ]


def test_circular_unsendable(pool):
    circle = []
    circle.append(circle)
    circle.append(threading.Lock())
    with pytest.raises(NotSendableError, match=r"args\[0\]\[1\]"):
        pool.submit(identity, circle)


def test_large_unsendable(pool):
    """Finding the culprit in a big argument ends."""
    data = [[n, {"k": n}] for n in range(20_000)]
    data[19_000][1]["bad"] = threading.Lock()
    with pytest.raises(NotSendableError, match=r"args\[0\]\[19000\]\[1\]\['bad'\]"):
        pool.submit(identity, data)


def test_unsendable_result(pool):
    error = pool.submit(_work.return_unsendable).exception(LONG)
    assert isinstance(error, NotSendableError)
    assert "['rows'][2]" in str(error) and "lock" in str(error)
    assert "result" in str(error)
    error = pool.submit(_work.return_generator).exception(LONG)
    assert isinstance(error, NotSendableError)
    assert "generator" in str(error)
    assert call(pool, add, 1, 2) == 3


def test_unsendable_result_in_map(pool):
    with pytest.raises(NotSendableError, match="lock"):
        list(pool.map(lambda n: threading.Lock() if n == 5 else n, range(10)))
    assert call(pool, add, 1, 2) == 3


def test_result_that_cannot_be_loaded(pool):
    error = pool.submit(_work.BadLoad).exception(LONG)
    assert isinstance(error, Exception)
    assert "will not be loaded" in "".join(traceback.format_exception(error))
    error = pool.submit(_work.BadLoadInWorker).exception(LONG)
    assert isinstance(error, Exception)
    assert call(pool, add, 1, 2) == 3


def test_argument_that_cannot_be_loaded(pool):
    error = pool.submit(identity, _work.BadLoad()).exception(LONG)
    assert error is not None
    assert "will not be loaded" in "".join(traceback.format_exception(error))
    assert call(pool, identity, 1) == 1
    assert call(pool, add, 1, 2) == 3


def test_argument_that_exits_while_loading(pool):
    class Exits:
        def __reduce__(self):
            return sys.exit, (5,)

    error = pool.submit(identity, Exits()).exception(LONG)
    assert error is not None
    assert call(pool, add, 1, 2) == 3


# What a worker cannot import -----------------------------------------------------------------


def test_unimportable_function(tmp_path, monkeypatch):
    """The error says which worker, with which path, and what to do."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "vanishes.py").write_text("def f():\n    return 1\n")
    import vanishes

    (tmp_path / "vanishes.py").unlink()
    for cached in tmp_path.glob("__pycache__/*"):
        cached.unlink()
    try:
        with subinterp.InterpreterPool(1, thread_name_prefix="workshop") as pool:
            error = pool.submit(vanishes.f).exception(LONG)
            assert isinstance(error, ImportError)
            text = "".join(traceback.format_exception(error))
            assert "vanishes" in text
            assert "sys.path" in text and str(tmp_path) in text
            assert "workshop" in text, "which worker?"
            assert call(pool, add, 1, 2) == 3
    finally:
        sys.modules.pop("vanishes", None)


def test_module_that_fails_to_import(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fails_there.py").write_text(
        "import _interpreters\n"
        "current = _interpreters.get_current()\n"
        "current = current[0] if isinstance(current, tuple) else current\n"
        "if current: raise ValueError('not in a worker')\n"
        "def f(): return 1\n"
    )
    import fails_there

    try:
        with subinterp.InterpreterPool(1) as pool:
            error = pool.submit(fails_there.f).exception(LONG)
            assert error is not None
            assert "not in a worker" in "".join(traceback.format_exception(error))
            assert call(pool, add, 1, 2) == 3
    finally:
        sys.modules.pop("fails_there", None)


def test_function_missing_in_the_module_of_the_worker(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "changes.py").write_text("def f(): return 1\n")
    import changes

    (tmp_path / "changes.py").write_text("def g(): return 1\n")
    for cached in tmp_path.glob("__pycache__/*"):
        cached.unlink()
    try:
        with subinterp.InterpreterPool(1) as pool:
            error = pool.submit(changes.f).exception(LONG)
            assert isinstance(error, AttributeError | ImportError)
            assert "changes" in str(error)
    finally:
        sys.modules.pop("changes", None)

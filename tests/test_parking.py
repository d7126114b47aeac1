"""Parked interpreters: what is reused, what is fresh then, and how they end."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

import subinterp
import subinterp.pool
from _support import parked_interpreters, run_script, wait_until
from _tenants import (
    fail,
    hold_copies,
    keep_end,
    leave_executor,
    leave_thread,
    nested,
    run,
    run_holding,
    use_kept_end,
)
from subinterp import _core, interpreters

LIMIT = 8

STRESS = float(os.environ.get("SUBINTERP_STRESS", "1"))


def nobody_is_parked():
    subinterp.set_parked_limit(0)
    wait_until(lambda: _core.live_counts()["parked"] == 0, what="the end of parked interpreters")


@pytest.fixture(autouse=True)
def _alone():
    """None is parked before a test, none after it."""
    nobody_is_parked()
    subinterp.set_parked_limit(LIMIT)
    yield
    nobody_is_parked()
    subinterp.set_parked_limit(LIMIT)


def one_pool(fn, *args, **options):
    """Call a function in the single worker of a pool of its own."""
    with subinterp.InterpreterPool(1, **options) as pool:
        return pool.submit(fn, *args).result(60)


# Reuse -----------------------------------------------------------------------------------


def test_it_does_not_keep_what_the_initializer_got():
    recv, send = subinterp.create_channel()
    one_pool(hold_copies, initializer=len, initargs=((send,),))
    send.close()
    assert len(parked_interpreters()) == 1
    with pytest.raises(subinterp.ChannelClosed):
        recv.recv(timeout=60)


def test_the_next_pool_takes_it():
    first = one_pool(hold_copies)
    assert list(parked_interpreters()) == [first]
    assert one_pool(hold_copies) == first
    assert list(parked_interpreters()) == [first]


def test_without_copies_it_ends():
    number = one_pool(run, "from subinterp import _core; result = _core.current_interpreter_id()")
    assert parked_interpreters() == {}
    assert number not in _core.interpreter_ids()


def test_every_worker_of_a_pool():
    with subinterp.InterpreterPool(3) as pool:
        first = set(pool.broadcast(hold_copies))
    assert set(parked_interpreters()) == first
    with subinterp.InterpreterPool(3) as pool:
        assert set(pool.broadcast(hold_copies)) == first
        assert parked_interpreters() == {}


def test_more_workers_than_are_parked():
    first = one_pool(hold_copies)
    with subinterp.InterpreterPool(3) as pool:
        numbers = pool.broadcast(hold_copies)
    assert first in numbers
    assert len(set(numbers)) == 3


def test_single_interpreters_take_it_too():
    first = one_pool(hold_copies)
    interp = interpreters.create()
    assert interp.id == first
    interp.call(hold_copies)
    interp.close()
    assert list(parked_interpreters()) == [first]


def test_the_one_parked_last_is_taken_first():
    with subinterp.InterpreterPool(1) as first, subinterp.InterpreterPool(1) as second:
        numbers = [pool.submit(hold_copies).result(60) for pool in (first, second)]
    # `second` was left first.
    assert list(parked_interpreters()) == numbers
    assert one_pool(hold_copies) == numbers[0]


def test_same_native_thread_with_the_new_name():
    first = one_pool(hold_copies)
    [thread] = parked_interpreters().values()
    assert Path(f"/proc/self/task/{thread}/comm").read_text() == f"parked-{first}\n"
    source = "import threading; result = threading.get_native_id(), threading.current_thread().name"
    assert one_pool(run_holding, source, thread_name_prefix="one") == (thread, "one-0")
    assert one_pool(run_holding, source, thread_name_prefix="two") == (thread, "two-0")
    with subinterp.InterpreterPool(1, thread_name_prefix="three") as pool:
        pool.submit(hold_copies).result(60)
        assert Path(f"/proc/self/task/{thread}/comm").read_text() == "three-0\n"


def test_other_options_do_not_share():
    def one(extensions):
        with subinterp.InterpreterPool(1, extensions=extensions) as pool:
            return pool.submit(hold_copies).result(60)

    first = one("auto")
    second = one({"a": "copy", "b": "native"})
    assert second != first
    assert one({"b": "native", "a": "copy"}) == second
    assert one("auto") == first
    assert set(parked_interpreters()) == {first, second}


def test_recycled_interpreters_are_fresh():
    with subinterp.InterpreterPool(1, max_tasks_per_child=1) as pool:
        numbers = [pool.submit(hold_copies).result(60) for _ in range(4)]
    assert len(set(numbers)) == 4
    assert set(parked_interpreters()) <= {numbers[-1]}


def test_a_parked_one_is_recycled_too():
    first = one_pool(hold_copies)
    with subinterp.InterpreterPool(1, max_tasks_per_child=2) as pool:
        numbers = [pool.submit(hold_copies).result(60) for _ in range(3)]
    assert numbers[:2] == [first, first]
    assert numbers[2] != first


def test_without_the_extension_module():
    """Workers that only exchange values never load it."""
    first = one_pool(hold_copies)
    with subinterp.InterpreterPool(1) as pool:
        pool.submit(run, "import sys; sys.modules.pop('subinterp._core')").result(60)
    assert list(parked_interpreters()) == [first]
    assert one_pool(run, "import sys; result = 'subinterp._core' in sys.modules") is False
    assert list(parked_interpreters()) == [first]


def test_the_initializer_runs_for_each_pool():
    for value in (1, 2):
        number = one_pool(
            run_holding, "import sys; result = sys.told", initializer=_tell, initargs=(value,)
        )
        assert number == value


def _tell(value):
    import sys

    sys.told = value


def test_it_belongs_to_nobody():
    first = one_pool(hold_copies)
    assert first not in [interp.id for interp in interpreters.list_all()]
    with pytest.raises(interpreters.InterpreterNotFoundError):
        interpreters.Interpreter(first)


def test_an_object_of_one_that_was_parked_stays_closed():
    """Also if the number comes again."""
    old = interpreters.create()
    old.call(hold_copies)
    old.close()
    new = interpreters.create()
    assert new.id == old.id and new is not old
    assert interpreters.Interpreter(old.id) is new
    for call in (old.is_running, old.close, lambda: old.exec("1")):
        with pytest.raises(interpreters.InterpreterNotFoundError):
            call()
    new.exec("x = 1")
    new.close()


def test_it_sleeps():
    one_pool(hold_copies)
    [thread] = parked_interpreters().values()

    def switches():
        status = Path(f"/proc/self/task/{thread}/status").read_text()
        return [line for line in status.splitlines() if "ctxt_switches" in line]

    wait_until(lambda: Path(f"/proc/self/task/{thread}/stat").read_text().split()[2] == "S")
    before = switches()
    time.sleep(0.3)
    assert switches() == before


def test_pools_of_other_interpreters_take_it():
    with subinterp.InterpreterPool(1) as pool:
        outer = pool.submit(hold_copies).result(60)
        inner = pool.submit(nested, False).result(60)
        assert list(parked_interpreters()) == [inner]
        assert pool.submit(nested, False).result(60) == inner
    assert set(parked_interpreters()) == {outer, inner}
    # `inner` was parked first, so `outer` serves here, and takes `inner` inside.
    assert one_pool(nested, False) == inner
    assert set(parked_interpreters()) == {outer, inner}


def test_a_pool_that_a_task_left_open_is_closed():
    inner = one_pool(nested, True)
    assert inner in parked_interpreters()
    assert len(parked_interpreters()) == 2
    assert one_pool(run_holding, "import json; result = repr(json.kept_pool)").endswith(
        "shut down>"
    )
    one_pool(run_holding, "import json; del json.kept_pool")
    assert one_pool(nested, False) == inner


def test_channel_ends_are_given_up():
    recv, send = subinterp.create_channel()
    first = one_pool(keep_end, send)
    send.close()
    with pytest.raises(subinterp.ChannelClosed):
        recv.recv(timeout=30)
    assert one_pool(use_kept_end, b"x" * 100) == "closed"
    assert one_pool(hold_copies) == first


# What is not parked --------------------------------------------------------------------------


def test_a_thread_that_a_task_left():
    one_pool(leave_thread, 0.3)
    assert parked_interpreters() == {}


def test_an_executor_that_a_task_left():
    number = one_pool(leave_executor)
    assert parked_interpreters() == {}
    assert number not in _core.interpreter_ids()


def test_an_initializer_that_fails():
    first = one_pool(hold_copies)
    with (
        subinterp.InterpreterPool(1, initializer=fail) as pool,
        pytest.raises(subinterp.BrokenInterpreterPool),
    ):
        pool.submit(abs, 1).result(60)
    assert parked_interpreters() == {}
    assert one_pool(hold_copies) != first


def test_a_reset_that_fails():
    spoil = """
        import sys
        class Finder:
            def find_spec(self, *args): return None
            def invalidate_caches(self): raise RuntimeError("not today")
        sys.modules["subinterp._worker"]._pristine.lists["meta_path"].append(Finder())
    """
    first = one_pool(run_holding, textwrap.dedent(spoil))
    assert parked_interpreters() == {}
    assert one_pool(hold_copies) != first


def test_a_set_up_that_fails_falls_back_to_a_fresh_one():
    spoil = "import sys; sys.modules['subinterp._worker']._open_streams = None"
    first = one_pool(run_holding, spoil)
    assert first is None
    [first] = parked_interpreters()
    second = one_pool(hold_copies)
    assert second != first
    assert list(parked_interpreters()) == [second]
    assert first not in _core.interpreter_ids()


def test_a_worker_that_was_left_behind():
    """Its end took longer than its pool waits: it is nobody's, and is not parked."""
    source = """
        import threading, time
        threading._register_atexit(time.sleep, 0)
        class Slow:
            def __del__(self): time.sleep(3)
        import __main__
        __main__.slow = Slow()
    """
    one_pool(run_holding, textwrap.dedent(source))
    wait_until(lambda: _core.live_counts()["workers"] == 0)
    assert parked_interpreters() == {}


# The limit -----------------------------------------------------------------------------------


def test_limit():
    subinterp.set_parked_limit(2)
    with subinterp.InterpreterPool(4) as pool:
        numbers = set(pool.broadcast(hold_copies))
    wait_until(lambda: _core.live_counts()["parked"] == 2)
    assert len(parked_interpreters()) == 2
    assert set(parked_interpreters()) < numbers


def test_lowering_the_limit_ends_the_oldest():
    with subinterp.InterpreterPool(1) as first, subinterp.InterpreterPool(1) as second:
        numbers = [pool.submit(hold_copies).result(60) for pool in (first, second)]
    subinterp.set_parked_limit(1)
    assert list(parked_interpreters()) == numbers[:1]
    wait_until(lambda: numbers[1] not in _core.interpreter_ids())


def test_limit_of_zero():
    subinterp.set_parked_limit(0)
    number = one_pool(hold_copies)
    assert parked_interpreters() == {}
    assert number not in _core.interpreter_ids()


def test_limit_from_a_worker():
    one_pool(hold_copies)
    with subinterp.InterpreterPool(1) as pool:
        pool.submit(run_holding, "import subinterp; subinterp.set_parked_limit(0)").result(60)
    assert parked_interpreters() == {}


@pytest.mark.parametrize("bad", [-1, 4097])
def test_limit_out_of_range(bad):
    with pytest.raises(ValueError, match="between 0 and 4096"):
        subinterp.set_parked_limit(bad)


@pytest.mark.parametrize("bad", ["2", 1.5, None])
def test_limit_of_another_type(bad):
    with pytest.raises(TypeError, match="must be an integer"):
        subinterp.set_parked_limit(bad)


# What is fresh -------------------------------------------------------------------------------

# name: what a task does, what can be seen of it. Each changes what is seen, and the next
# pool must see what a fresh interpreter sees.
CHANGES = {
    "__main__": ("import __main__; __main__.x = 1", "__import__('__main__').__dict__.keys()"),
    "__main__ replaced": (
        "import sys; sys.modules['__main__'] = sys",
        "sys.modules['__main__'].__name__",
    ),
    "sys.path": ("sys.path.append('/nowhere')", "sys.path"),
    "sys.path replaced": ("sys.path = ['/nowhere']", "sys.path"),
    "sys.argv": ("sys.argv = ['x']", "sys.argv"),
    "sys.meta_path": (
        "import __main__\nclass F: __module__ = '__main__'\nsys.meta_path.append(F())",
        "[type(f).__name__ for f in sys.meta_path]",
    ),
    "sys.path_hooks": ("sys.path_hooks.clear()", "len(sys.path_hooks)"),
    "sys.path_importer_cache": (
        "sys.path_importer_cache['/x'] = None",
        "'/x' in sys.path_importer_cache",
    ),
    "a name in sys": ("sys.ps1 = '? '", "hasattr(sys, 'ps1')"),
    "a name in builtins": (
        "import builtins; builtins.shout = 1; del builtins.license",
        "[n for n in dir(__builtins__ if type(__builtins__) is type(sys) else "
        "__import__('builtins')) if n in ('shout', 'license')]",
    ),
    "a builtin replaced": ("import builtins; builtins.hex = None", "hex is None"),
    "warning filters": (
        "import warnings; warnings.simplefilter('error')",
        "[f[0] for f in __import__('warnings').filters]",
    ),
    "warning filters replaced": (
        "import warnings; warnings.filters = []",
        "[f[0] for f in __import__('warnings').filters]",
    ),
    "showwarning": (
        "import warnings; warnings.showwarning = print",
        "__import__('warnings').showwarning is print",
    ),
    "recursion limit": ("sys.setrecursionlimit(12345)", "sys.getrecursionlimit()"),
    "switch interval": ("sys.setswitchinterval(0.25)", "sys.getswitchinterval()"),
    "dlopen flags": ("sys.setdlopenflags(1)", "sys.getdlopenflags()"),
    "digits": ("sys.set_int_max_str_digits(0)", "sys.get_int_max_str_digits()"),
    "coroutine origins": (
        "sys.set_coroutine_origin_tracking_depth(3)",
        "sys.get_coroutine_origin_tracking_depth()",
    ),
    "asyncgen hooks": (
        "sys.set_asyncgen_hooks(firstiter=print)",
        "sys.get_asyncgen_hooks().firstiter",
    ),
    "stdout": ("import io; sys.stdout = io.StringIO()", "type(sys.stdout).__name__"),
    "trace function": ("sys.settrace(lambda *a: None)", "sys.gettrace() is None"),
    "profile function": ("sys.setprofile(lambda *a: None)", "sys.getprofile() is None"),
    "threads' trace function": (
        "import threading; threading.settrace(lambda *a: None)",
        "__import__('threading').gettrace() is None",
    ),
    "threads' excepthook": (
        "import threading; threading.excepthook = print",
        "__import__('threading').excepthook is print",
    ),
    "stack size": (
        "import threading; threading.stack_size(1 << 20)",
        "__import__('_thread').stack_size()",
    ),
    "monitoring": ("sys.monitoring.use_tool_id(4, 'x')", "sys.monitoring.get_tool(4)"),
    "gc off": ("import gc; gc.disable()", "__import__('gc').isenabled()"),
    "gc threshold": ("import gc; gc.set_threshold(11, 12)", "__import__('gc').get_threshold()[:2]"),
    "gc callbacks": ("import gc; gc.callbacks.append(print)", "len(__import__('gc').callbacks)"),
    "gc freeze": ("import gc; gc.freeze()", "__import__('gc').get_freeze_count() > 0"),
    "os.environ": (
        "import os; os.environ._data[b'SUBINTERP_TEST'] = b'1'",
        "'SUBINTERP_TEST' in __import__('os').environ",
    ),
    "os.environ replaced": (
        "import os; os.environ = {}",
        "len(__import__('os').environ)",
    ),
    "event loop": (
        "import asyncio; asyncio.set_event_loop(asyncio.new_event_loop())",
        "__import__('asyncio').events._event_loop_policy is None",
    ),
    "decimal's context": (
        "import decimal; decimal.getcontext().prec = 5",
        "__import__('decimal').getcontext().prec",
    ),
    "a forbidden import": ("sys.modules['colorsys'] = None", "'colorsys' in sys.modules"),
}
for hook in ("excepthook", "displayhook", "breakpointhook", "unraisablehook"):
    CHANGES[hook] = f"sys.{hook} = print", f"sys.{hook} is print"
if sys.version_info >= (3, 15):
    CHANGES["lazy imports"] = "sys.set_lazy_imports('all')", "sys.get_lazy_imports()"


@pytest.mark.parametrize("name", CHANGES)
def test_fresh(name):
    change, seen = CHANGES[name]
    look = f"import sys; result = repr({seen})"
    with subinterp.InterpreterPool(1) as pool:
        first = pool.submit(hold_copies).result(60)
        fresh = pool.submit(run, look).result(60)
        pool.submit(run, "import sys\n" + change).result(60)
        assert pool.submit(run, look).result(60) != fresh
    with subinterp.InterpreterPool(1) as pool:
        assert pool.submit(hold_copies).result(60) == first
        assert pool.submit(run, look).result(60) == fresh


def test_the_environment_is_the_one_of_now(monkeypatch):
    source = "import os; result = os.environ.get('SUBINTERP_A'), os.environ.get('SUBINTERP_B')"
    monkeypatch.setenv("SUBINTERP_A", "1")
    assert one_pool(run_holding, source) == ("1", None)
    monkeypatch.delenv("SUBINTERP_A")
    monkeypatch.setenv("SUBINTERP_B", "a=b")
    assert one_pool(run_holding, source) == (None, "a=b")


def test_the_options_are_the_new_pools(monkeypatch):
    source = """
        import sys
        result = sys.path[-1], sys.argv, sys.getrecursionlimit(), sys.getswitchinterval()
    """
    source = textwrap.dedent(source)
    one_pool(run_holding, source)
    limit = sys.getrecursionlimit()
    monkeypatch.setattr(sys, "path", [*sys.path, "/nowhere"])
    monkeypatch.setattr(sys, "argv", ["one", "two"])
    interval = sys.getswitchinterval()
    try:
        sys.setrecursionlimit(limit + 7)
        sys.setswitchinterval(0.25)
        got = one_pool(run_holding, source)
    finally:
        sys.setrecursionlimit(limit)
        sys.setswitchinterval(interval)
    assert got == ("/nowhere", ["one", "two"], limit + 7, 0.25)
    monkeypatch.undo()
    assert one_pool(run_holding, source) == (sys.path[-1], sys.argv, limit, interval)


def test_output_goes_to_the_new_pools_streams(capfd, monkeypatch):
    """Also through a stream that somebody kept."""
    import io

    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", first)
    one_pool(run_holding, "import json, sys; print('one'); json.kept_stream = sys.stdout")
    monkeypatch.setattr(sys, "stdout", second)
    one_pool(
        run_holding, "import json; print('two'); print('kept', file=json.kept_stream, flush=1)"
    )
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    one_pool(run_holding, "import json; print('three', file=json.kept_stream, flush=True)")
    assert first.getvalue() == "one\n"
    assert sorted(second.getvalue().split()) == ["kept", "two"]
    assert capfd.readouterr().out == "three\n"


# Modules -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of modules on the path of pools to come."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_modules_from_outside_are_imported_anew(folder):
    write(folder / "outside.py", "value = 1")
    write(folder / "outsidepkg/__init__.py", "value = 1")
    write(folder / "outsidepkg/inner.py", "value = 1")
    write(folder / "outsidens/inner.py", "value = 1")
    source = """
        import outside, outsidepkg.inner, outsidens.inner
        result = [m.value for m in (outside, outsidepkg, outsidepkg.inner, outsidens.inner)]
    """
    source = textwrap.dedent(source)
    assert one_pool(run_holding, source) == [1, 1, 1, 1]
    for path in ("outside.py", "outsidepkg/__init__.py", "outsidepkg/inner.py"):
        write(folder / path, "value = 22")
    write(folder / "outsidens/inner.py", "value = 22")
    assert one_pool(run_holding, source) == [22, 22, 22, 22]


def test_installed_modules_stay(folder):
    for name in ("json", "cloudpickle", "subinterp.errors"):
        one_pool(run_holding, f"import {name} as m; m.marker = 1")
        assert one_pool(run_holding, f"import {name} as m; result = m.marker; del m.marker") == 1


def test_a_folder_called_site_packages_counts_as_installed(folder):
    write(folder / "site-packages/installed_here.py", "value = 1")
    one_pool(
        run_holding,
        f"import sys; sys.path.append({str(folder / 'site-packages')!r})\n"
        "import installed_here; installed_here.value = 2",
    )
    assert one_pool(run_holding, "import installed_here as m; result = m.value") == 2


def test_submodules_from_outside_leave_their_package(folder):
    write(folder / "json_extra.py", "value = 1")
    source = """
        import json, sys, json_extra
        json.extra = sys.modules["json.extra"] = json_extra
    """
    one_pool(run_holding, textwrap.dedent(source))
    look = "import json, sys; result = hasattr(json, 'extra'), 'json.extra' in sys.modules"
    assert one_pool(run_holding, look) == (False, False)


def test_modules_without_a_file(folder):
    """They go with their package; without one they stay: extension modules make such."""
    write(folder / "outsidepkg/__init__.py")
    source = """
        import sys, json, outsidepkg
        module = type(sys)
        for name in ("json.made", "outsidepkg.made", "outsidepkg.made.below", "made"):
            sys.modules[name] = module(name)
    """
    one_pool(run_holding, textwrap.dedent(source))
    look = "import sys; result = sorted(n for n in sys.modules if 'made' in n.split('.'))"
    assert one_pool(run_holding, look) == ["json.made", "made"]


def test_a_finder_of_an_installed_module_stays():
    source = """
        import json, sys
        class Finder:
            __module__ = "json"
            def find_spec(self, *args): return None
        sys.meta_path.append(Finder())
        sys.path_hooks.append(Finder.find_spec)
        Finder.find_spec.__module__ = "json"
    """
    one_pool(run_holding, textwrap.dedent(source))
    look = """
        import sys
        result = (
            [type(f).__name__ for f in sys.meta_path].count("Finder"),
            [getattr(f, "__name__", "") for f in sys.path_hooks].count("find_spec"),
        )
    """
    assert one_pool(run_holding, textwrap.dedent(look)) == (1, 1)
    assert one_pool(run_holding, textwrap.dedent(look)) == (1, 1)


def test_lazy_modules_are_not_loaded():
    source = """
        import importlib.util, sys
        spec = importlib.util.find_spec("colorsys")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["colorsys"] = module
        spec.loader.exec_module(module)
    """
    one_pool(run_holding, textwrap.dedent(source))
    look = "import sys; result = type(sys.modules['colorsys']).__name__"
    assert one_pool(run_holding, look) == "_LazyModule"


def test_objects_of_the_last_pool_are_collected():
    source = """
        import json, weakref, __main__
        class Thing: pass
        __main__.thing = Thing()
        __main__.thing.itself = __main__.thing
        json.reference = weakref.ref(__main__.thing)
    """
    one_pool(run_holding, textwrap.dedent(source))
    assert one_pool(run_holding, "import json; result = json.reference() is None") is True


def test_classes_of_main_travel_to_each_pool():
    first = one_pool(hold_copies)
    for _ in range(3):
        Point = type("Point", (), {"x": 1, "__module__": "__main__"})
        with subinterp.InterpreterPool(1) as pool:
            assert pool.submit(hold_copies).result(60) == first
            assert type(pool.submit(lambda cls: cls(), Point).result(60)) is Point


# The end of the process ----------------------------------------------------------------------

PREPARE = """
    import os, sys, threading, time
    import subinterp
    from subinterp import InterpreterPool, _core
    from _tenants import hold_copies, run_holding, leave_thread

    def park(n=2, source="result = None"):
        with InterpreterPool(n) as pool:
            pool.broadcast(run_holding, source)
        assert len(_core.parked()) == n, _core.parked()
"""

EXITS = {
    "parked": "park(); print('end')",
    "parked twice": "park(); park(); print('end')",
    "parked, and an open pool": """
        park()
        pool = InterpreterPool(3)
        pool.broadcast(hold_copies)
        print('end')
    """,
    "parked, and a running task": """
        park()
        pool = InterpreterPool(1)
        pool.submit(time.sleep, 0.3)
        print('end')
    """,
    "parked, and a task that never ends": """
        park(3)
        pool = InterpreterPool(1)
        pool.submit(run_holding, "while True: pass")
        pool.shutdown(wait=False, cancel_futures=True)
        print('end')
    """,
    "a thread makes pools": """
        park()
        def work():
            while True:
                try:
                    with InterpreterPool(1) as pool:
                        pool.submit(hold_copies).result()
                except RuntimeError:
                    return
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
        print('end')
    """,
    "the limit was lowered a moment ago": """
        park(4)
        subinterp.set_parked_limit(1)
        print('end')
    """,
    "with a lock held": """
        park(2, "import threading; threading.Lock().acquire()")
        print('end')
    """,
    "nested": """
        import _tenants
        with InterpreterPool(1) as pool:
            pool.submit(_tenants.nested, True).result()
        assert len(_core.parked()) == 2
        print('end')
    """,
    "fork": """
        park()
        pid = os.fork()
        if pid == 0:
            assert _core.parked() == [], _core.parked()
            park(2)
            assert len(_core.parked()) == 2
            sys.exit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert len(_core.parked()) == 2
        park()
        print('end')
    """,
    "fork, nothing in the child": """
        park()
        pid = os.fork()
        if pid == 0:
            sys.exit(7)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        print('end')
    """,
}


# Fork with threads is what some are about; interpreters that remain must not be.
WARNINGS = {"PYTHONWARNINGS": "ignore::DeprecationWarning,default::RuntimeWarning"}


def run_prepared(source):
    return run_script(textwrap.dedent(PREPARE) + textwrap.dedent(source), env=WARNINGS)


@pytest.mark.parametrize("name", EXITS)
def test_exit(name):
    result = run_prepared(EXITS[name]).clean()
    assert result.stdout == "end\n"


def test_exit_runs_what_tasks_registered():
    source = """
    park(2, '''if True:
        import atexit, sys, threading
        # Each writes its line at once: the interpreters end side by side.
        atexit.register(print, "atexit\\\\n", end="")
        atexit.register(sys.stdout.write, "kept stream\\\\n")
        threading._register_atexit(print, "threads\\\\n", end="")
        ''')
    print("end", flush=True)
    """
    result = run_prepared(source).clean()
    lines = result.stdout.splitlines()
    assert lines[0] == "end"
    assert sorted(lines[1:]) == sorted(["atexit", "kept stream", "threads"] * 2)


def test_exit_does_not_wait_for_ever():
    """A callback that never returns is cut off."""
    source = """
    park(1, "import atexit, time; atexit.register(time.sleep, 600)")
    park(2, '''if True:
        import atexit
        def spin():
            while True: pass
        atexit.register(spin)
        ''')
    print("end")
    """
    assert run_prepared(source).clean().stdout == "end\n"


def test_exit_says_what_failed():
    source = """
    park(1, "import atexit; atexit.register(int, 'x')")
    print("end")
    """
    result = run_prepared(source).check()
    assert result.stdout == "end\n"
    assert "invalid literal" in result.stderr


def test_nobody_parks_where_exit_would_not_know():
    """Pools made by an interpreter that is not ours, while main never used the library."""
    result = run_script(
        """
        import _interpreters
        interp = _interpreters.create()
        failed = _interpreters.run_string(interp, '''if True:
            import sys
            import subinterp
            from subinterp import InterpreterPool, _core
            from _tenants import hold_copies
            with InterpreterPool(1) as pool:
                pool.submit(hold_copies).result()
            assert _core.parked() == []
            ''')
        assert failed is None, failed
        _interpreters.destroy(interp)
        print("end")
        """
    ).clean()
    assert result.stdout == "end\n"


# Many at once ----------------------------------------------------------------------------------


def in_threads(n, work):
    errors = []

    def guarded(i):
        try:
            work(i)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive()
    if errors:
        raise ExceptionGroup("in threads", errors)


def test_short_pools_in_many_threads():
    """Also with a limit that is too low for them, and is changed meanwhile."""
    rounds = max(3, int(15 * STRESS))

    def work(i):
        for n in range(rounds):
            with subinterp.InterpreterPool(1 + (i + n) % 3) as pool:
                futures = [pool.submit(run_holding, f"result = {k}") for k in range(5)]
                assert [f.result(60) for f in futures] == list(range(5))
            if i == 0:
                subinterp.set_parked_limit(1 + n % 5)

    in_threads(4, work)
    wait_until(lambda: _core.live_counts()["workers"] == 0)
    wait_until(lambda: _core.live_counts()["parked"] == len(parked_interpreters()))


def test_a_shutdown_races_with_a_new_pool():
    rounds = max(3, int(20 * STRESS))
    for _ in range(rounds):
        old = subinterp.InterpreterPool(2)
        old.broadcast(hold_copies)
        together = threading.Barrier(2)

        def work(i, old=old, together=together):
            together.wait(60)
            if i == 0:
                old.shutdown(wait=True)
            else:
                with subinterp.InterpreterPool(2) as new:
                    assert len(new.broadcast(hold_copies)) == 2

        in_threads(2, work)
    assert 2 <= len(parked_interpreters()) <= 4


def test_pools_that_are_forgotten():
    for _ in range(max(3, int(10 * STRESS))):
        pool = subinterp.InterpreterPool(2)
        future = pool.submit(hold_copies)
        del pool
        assert future.result(60) > 0
    wait_until(lambda: _core.live_counts()["workers"] == 0)
    assert len(parked_interpreters()) >= 1

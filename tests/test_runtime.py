"""The runtime seen from inside: snapshots, layouts, fields, and `info`."""

import concurrent.futures
import dataclasses
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

import _runtimework as work
import subinterp
from _support import SANITIZED, live_objects, run_script, wait_until
from subinterp import _core, _info, runtime

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "subinterp" / "_runtime"
LONG = 60

# A wheel may have been built with another release of this version.
AS_BUILT = _core.built_version() == sys.hexversion

needs_sources = pytest.mark.skipif(
    not (RUNTIME / "si_fields.c").exists(), reason="the sources are not here"
)


@pytest.fixture
def pool():
    with subinterp.InterpreterPool(1) as pool:
        yield pool
        # What a failed test has left running.
        pool.terminate_workers()


def worker_of(pool, seen):
    """The interpreter of a pool's only worker; None: it is being made."""
    found = [
        one
        for one in seen.interpreters
        if any(worker.pool_name == pool._name for worker in one.workers)
    ]
    assert len(found) <= 1
    return found[0] if found else None


def look_until(condition, pool, timeout=1.0):
    """Snapshots until the worker's interpreter is so; returns it."""
    found = []

    def holds():
        found[:] = [worker_of(pool, runtime.snapshot(timeout))]
        return found[0] is not None and condition(found[0])

    wait_until(holds, LONG)
    return found[0]


# ---- what a snapshot says -----------------------------------------------------------------


def test_the_main_interpreter():
    seen = runtime.snapshot()
    work.check(seen)
    assert seen.known and seen.pid == os.getpid() and seen.interpreter == 0
    main = seen.interpreters[0]
    assert (main.id, main.state, main.answer) == (0, "ready", "answered")
    assert main.made_by == "the start of the process"
    assert main.own_lock and not main.own_allocator and main.lock == 0 and main.workers == ()
    assert main.config["fork"] and main.config["threads"] and not main.config["check_extensions"]
    assert set(main.modules) <= set(sys.modules) and "subinterp.runtime" in main.modules
    thread = next(t for t in main.threads if t.native_id == threading.get_native_id())
    assert thread.ident == threading.get_ident() and thread.name == "MainThread"
    # Not its own: another thread may run the library's notifier.
    assert thread.function == "snapshot" and thread.file == runtime.__file__


def test_the_collector():
    import gc

    collector = runtime.snapshot().interpreters[0].collector
    if not AS_BUILT and collector.enabled is None:
        assert collector.counts is collector.thresholds is None
        pytest.skip("the collector's structure is another one in the release this was built with")
    assert collector.enabled is gc.isenabled() and collector.collecting is False
    assert collector.thresholds == gc.get_threshold()
    assert len(collector.counts) == 3
    assert collector.collections[2] == gc.get_stats()[2]["collections"]
    gc.set_threshold(1234, 12, 10)
    gc.disable()
    try:
        collector = runtime.snapshot().interpreters[0].collector
        assert collector.enabled is False and collector.thresholds == gc.get_threshold()
    finally:
        gc.enable()
        gc.set_threshold(2000, 10, 10)


def test_switches_of_a_lock_are_counted():
    def switches():
        return next(lock for lock in runtime.snapshot().locks if lock.interpreter == 0).switches

    before = switches()
    threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert switches() > before


def test_the_interval_of_a_lock():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0125)
    try:
        lock = next(lock for lock in runtime.snapshot().locks if lock.interpreter == 0)
        assert lock.interval == pytest.approx(0.0125)
    finally:
        sys.setswitchinterval(before)


def test_a_worker_that_runs_python_code_says_what(pool):
    receiver, sender = subinterp.create_channel()
    future = pool.submit(work.spin_until, receiver)
    # An import may come first.
    one = look_until(lambda one: one.modules and one.threads[0].file == work.__file__, pool, 10)
    assert one.made_by == "Py_NewInterpreterFromConfig" and one.state == "ready"
    assert one.own_lock and one.own_allocator and one.lock == one.id
    [worker] = one.workers
    assert worker.state == "running" and worker.index == 0
    assert "_runtimework" in one.modules and "test_runtime" not in one.modules
    [thread] = one.threads
    assert thread.native_id == worker.thread_id
    assert thread.function == "spin_until" and thread.line > 0
    sender.send(1)
    assert future.result(LONG) == 1


def test_an_idle_worker_answers_without_a_task(pool):
    pool.submit(len, ()).result(LONG)
    done = pool.stats().tasks_done
    one = look_until(lambda one: one.workers[0].state == "idle", pool, 10)
    assert one.answer == "answered" and one.threads[0].function is None
    assert one.threads[0].lock == "detached" and "sys" in one.modules
    assert pool.stats().tasks_done == done
    assert pool.submit(len, "abc").result(LONG) == 3


def test_workers_that_share_an_interpreter_are_all_there():
    with subinterp.InterpreterPool(1, threads_per_interpreter=3) as pool:
        pool.broadcast(work.sleep, 0)
        one = look_until(lambda one: len(one.workers) == 3, pool, 10)
        assert {worker.index for worker in one.workers} == {0, 1, 2}
        natives = {thread.native_id for thread in one.threads}
        assert {worker.thread_id for worker in one.workers} <= natives
        shown = "\n".join(_info.tree(dataclasses.asdict(runtime.snapshot(10))))
        assert shown.count(f"worker {pool._name}-") == 3


def test_a_worker_that_sleeps_is_blocked(pool):
    receiver, sender = subinterp.create_channel()
    future = pool.submit(work.wait_on, receiver)
    one = look_until(lambda one: one.answer == "blocked", pool, 0.05)
    assert one.modules is None and one.threads[0].function is None
    assert one.threads[0].lock == "detached"
    sender.send(2)
    assert future.result(LONG) == 2
    # And answers afterwards, as if nothing had been asked meanwhile.
    look_until(lambda one: one.answer == "answered", pool, 10)


def test_a_worker_that_holds_its_lock_in_c_is_busy(pool):
    pool.submit(work.hog, 0).result(LONG)
    future = pool.submit(work.hog, 3)
    one = look_until(lambda one: one.answer == "busy", pool, 0.05)
    assert one.threads[0].lock == "holds" and not future.done()
    assert future.result(LONG) == "done"


def test_a_thread_that_waits_for_the_lock(pool):
    receiver, sender = subinterp.create_channel()
    future = pool.submit(work.spin_in_two_threads, receiver)
    one = look_until(
        lambda one: sorted(t.lock or "" for t in one.threads) == ["holds", "waits"], pool, 5
    )
    assert {t.name for t in one.threads} >= {"the second"}
    sender.send(3)
    assert future.result(LONG) == 3


def test_a_snapshot_taken_in_a_worker(pool):
    one = pool.submit(work.own_snapshot).result(LONG)
    assert one.id != 0 and one.answer == "answered" and one.workers[0].state == "running"
    assert one.threads[0].name is not None


def test_two_that_look_at_each_other_both_answer():
    # Each waits without its lock; what it is asked meanwhile it answers.
    with subinterp.InterpreterPool(2) as pool:
        pool.broadcast(work.snapshots, 1)
        futures = [pool.submit(work.ask_back_and_forth, 1) for _ in range(2)]
        # This one is blocked meanwhile, but lets pending calls in.
        answers = [future.result(LONG * 2) for future in futures]
    both = [a for row in answers for a in row]
    assert both and all(row.count("blocked") == 0 for row in both)


def test_an_interpreter_that_shares_the_main_lock_cannot_be_asked():
    run_script(
        """
        import _interpreters
        from subinterp import runtime

        made = _interpreters.create("legacy")
        seen = runtime.snapshot()
        one = next(one for one in seen.interpreters if one.id == made)
        assert one.own_lock is False and one.own_allocator is False and one.lock == 0, one
        assert one.answer == "foreign" and one.modules is None, one
        assert one.made_by == "concurrent.interpreters", one
        assert not one.config["check_extensions"], one
        [lock] = seen.locks
        assert lock.interpreter == 0 and lock.used_by == (0, made), lock
        other = _interpreters.create()
        seen = runtime.snapshot()
        assert [lock.interpreter for lock in seen.locks] == [0, other]
        # One that loads the library can be asked; it is blocked, as nothing runs in it.
        _interpreters.run_string(other, "import subinterp.runtime")
        one = next(one for one in runtime.snapshot(0.01).interpreters if one.id == other)
        assert one.answer == "blocked", one
        _interpreters.destroy(made)
        _interpreters.destroy(other)
        assert [one.id for one in runtime.snapshot().interpreters] == [0]
        """
    ).clean()


def test_a_parked_interpreter_is_not_asked():
    run_script(
        """
        import subinterp
        import _runtimework as work
        from subinterp import runtime

        with subinterp.InterpreterPool(1) as pool:
            parked = pool.submit(work.pretend_copies).result()
        seen = runtime.snapshot(10)
        work.check(seen)
        one = next(one for one in seen.interpreters if one.id == parked)
        assert one.answer == "parked" and one.workers == (), one
        with subinterp.InterpreterPool(1) as pool:
            assert pool.submit(work.own_snapshot).result().id == parked
        """
    ).clean()


def test_an_interpreter_that_was_left_behind_is_not_asked():
    run_script(
        """
        import subinterp
        import _runtimework as work
        from subinterp import runtime

        with subinterp.InterpreterPool(1, interrupt_grace=0.05) as pool:
            pool.submit(work.hog, 0).result()
            future = pool.schedule(work.count, (1 << 29,), timeout=0.05)
            assert isinstance(future.exception(), subinterp.TaskTimeout)
            seen = runtime.snapshot(0.01)
            work.check(seen)
            [left] = [one for one in seen.interpreters if one.answer == "ending"]
            assert left.state == "ready" and left.threads[0].lock == "holds", left
        """
    ).check()


def test_timeouts_are_checked():
    for bad in (None, "1", -1, float("nan"), float("inf"), []):
        with pytest.raises((TypeError, ValueError), match=r"timeout"):
            runtime.snapshot(bad)
    work.check(runtime.snapshot(0))


def test_in_the_child_of_a_fork():
    run_script(
        """
        import os, sys, subinterp
        import _runtimework as work
        from subinterp import runtime

        with subinterp.InterpreterPool(2) as pool:
            pool.broadcast(work.snapshots, 1)
            pid = os.fork()
            if pid == 0:
                try:
                    seen = runtime.snapshot(5)
                    assert [one.id for one in seen.interpreters] == [0], seen
                    assert seen.interpreters[0].answer == "answered"
                    with subinterp.InterpreterPool(1) as mine:
                        assert mine.submit(work.own_snapshot).result().answer == "answered"
                    os._exit(0)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            work.check(runtime.snapshot())
        """,
        env={"PYTHONWARNINGS": "ignore::DeprecationWarning"},
    ).clean()


# ---- asking disturbs nobody ---------------------------------------------------------------


def test_a_task_that_is_asked_all_the_time_is_not_disturbed(pool):
    future = pool.submit(work.catch_nothing, 0.5)
    while not future.done():
        runtime.snapshot(0.05)
    assert future.result(LONG) == "done"


def look_until_told(over):
    while not over.is_set():
        runtime.snapshot(0.1)


def test_an_interruption_is_not_lost_in_a_report(pool):
    # The report runs Python code, which an interruption could be raised in, and swallowed.
    pool.submit(work.name_in_python).result(LONG)
    for _ in range(10):
        future = pool.submit(work.spin, 1000)
        wait_until(future.running)
        over = threading.Event()
        threads = [threading.Thread(target=look_until_told, args=(over,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        future.interrupt()
        with pytest.raises(subinterp.TaskInterrupted):
            future.result(LONG)
        over.set()
        for thread in threads:
            thread.join()


def test_a_name_that_cannot_be_had(pool):
    pool.submit(work.name_in_python, True).result(LONG)
    future = pool.submit(work.catch_nothing, 0.5)
    one = look_until(lambda one: one.workers[0].state == "running" or future.done(), pool, 5)
    assert one.answer == "answered" and one.threads[0].name is not None
    assert future.result(LONG) == "done"


def test_questions_to_a_blocked_interpreter_do_not_pile_up(pool):
    # Its queue of pending calls has a few hundred places.
    receiver, sender = subinterp.create_channel()
    future = pool.submit(work.wait_on, receiver)
    for _ in range(2000):
        runtime.snapshot(0)
    sender.send(4)
    assert future.result(LONG) == 4
    look_until(lambda one: one.answer == "answered", pool, 10)


def test_contexts_are_given_back():
    before = live_objects()["contexts"]
    for _ in range(3):
        with subinterp.InterpreterPool(2) as pool:
            futures = [pool.submit(work.spin, 0.05) for _ in range(4)]
            while not all(future.done() for future in futures):
                runtime.snapshot(0)
    wait_until(lambda: live_objects()["contexts"] <= before)


STRESS = """
import concurrent.futures
import sys, threading, time
import _interpreters
import subinterp
import _runtimework as work
from subinterp import runtime

until = time.monotonic() + float(sys.argv[1])
problems = []

def guarded(function):
    def run():
        try:
            while time.monotonic() < until:
                function()
        except BaseException as exc:
            problems.append(exc)
            raise
    thread = threading.Thread(target=run)
    thread.start()
    return thread

looking = subinterp.InterpreterPool(2)
recycling = subinterp.InterpreterPool(2, max_tasks_per_child=3)
busy = subinterp.InterpreterPool(1)

def look_here():
    work.check(runtime.snapshot(0.02))

def look_there():
    for future in [looking.submit(work.snapshots, 5) for _ in range(2)]:
        future.result()

def recycle():
    list(recycling.map(work.spin, [0.001] * 6, chunksize=1))

def come_and_go():
    with subinterp.InterpreterPool(1) as pool:
        assert pool.submit(work.sleep, 0.001).result() == "done"

def foreign():
    made = _interpreters.create()
    code = "import threading as t; x = t.Thread(target=len, args=((),)); x.start(); x.join()"
    _interpreters.run_string(made, code)
    _interpreters.destroy(made)

def keep_busy():
    assert busy.submit(work.spin, 0.02).result() == "done"
    future = busy.submit(work.spin, 100)
    time.sleep(0.002)
    future.interrupt()
    try:
        future.result()
    except (subinterp.TaskInterrupted, concurrent.futures.CancelledError):
        pass

threads = [
    guarded(f)
    for f in (look_here, look_here, look_there, recycle, come_and_go, foreign, keep_busy)
]
for thread in threads:
    thread.join()
for pool in (looking, recycling, busy):
    pool.shutdown()
assert not problems, problems
seen = runtime.snapshot()
assert [one.id for one in seen.interpreters] == [0], seen
from subinterp import _core
assert _core.live_counts()["contexts"] == 1, _core.live_counts()
"""


@pytest.mark.stress
def test_snapshots_while_interpreters_come_run_and_go():
    seconds = 8 * float(os.environ.get("SUBINTERP_STRESS", "1")) + 2
    run_script(STRESS, args=[str(seconds)], timeout=seconds * 4 + 120).check()


def test_snapshots_while_interpreters_come_run_and_go_briefly():
    run_script(STRESS, args=["1.5"], timeout=120).check()


# ---- layouts ------------------------------------------------------------------------------

# What _core.look_at_runtime needs to say anything at all.
OF_THE_LIST = ("cookie", "version", "free_threaded", "runtime_state.interpreters_head")


def changed(name, value):
    table, places = _core.runtime_table()
    at = places[name]
    return table[:at] + struct.pack("<Q", value & 2**64 - 1) + table[at + 8 :]


def test_the_layout_of_this_python_is_known():
    layout = runtime.layout()
    unknown = {name for name, at in layout.items() if at is None}
    # Fields of thread states that came with 3.15.
    expected = {"thread_waits"} if sys.version_info < (3, 15) else set()
    # What only headers tell, where these are of another release.
    if not AS_BUILT:
        expected |= {"headers", "collector", "collecting", "enabled"}
        expected |= {f"generation_{n}" for n in range(3)}
    assert unknown <= expected


def test_a_table_that_is_the_same_says_the_same():
    table, _ = _core.runtime_table()
    assert _core.runtime_layout(table) == runtime.layout()


@pytest.mark.parametrize("name", OF_THE_LIST)
def test_an_unknown_layout_is_reported_as_unknown(name):
    table = changed(name, 1 << 40)
    assert set(_core.runtime_layout(table).values()) == {None}
    assert _core.look_at_runtime(table) is None
    seen = runtime.snapshot(_table=table)
    assert not seen.known and seen.locks == () and "list" in seen.unknown
    # What an interpreter knows itself it still says.
    main = seen.interpreters[0]
    assert main.id == 0 and main.answer == "answered" and "sys" in main.modules
    assert main.state is main.own_lock is main.threads is main.lock is None
    assert main.config == {} and main.collector.thresholds is None


def test_a_layout_without_threads_leaves_them_out():
    seen = runtime.snapshot(_table=changed("thread_state.native_thread_id", 8))
    assert seen.known and "threads" in seen.unknown
    assert seen.interpreters[0].threads is None and seen.locks[0].locked is not None


def test_a_layout_without_locks_leaves_them_out():
    seen = runtime.snapshot(_table=changed("interpreter_state.ceval_gil", 8))
    assert seen.known and seen.locks == () and "switches" in seen.unknown
    main = seen.interpreters[0]
    assert main.lock is None and main.own_lock is True and main.threads[0].lock is None


def test_a_layout_without_collectors_leaves_them_out():
    seen = runtime.snapshot(_table=changed("gc.size", 8))
    collector = seen.interpreters[0].collector
    assert collector.enabled is collector.thresholds is collector.counts is None
    assert collector.collections is not None  # it says so itself


@pytest.mark.parametrize("name", sorted(_core.runtime_table()[1]))
def test_no_wrong_table_is_believed(name):
    """Whatever an entry says, what is confirmed is right, and nothing crashes."""
    true = runtime.layout()
    _, places = _core.runtime_table()
    table = _core.runtime_table()[0]
    [said] = struct.unpack_from("<Q", table, places[name])
    values = {said + step for step in (-64, -16, -8, -4, 4, 8, 16, 24, 32, 64, 4096)}
    values |= {0, 8, 1 << 20, 1 << 31, 1 << 32, 2**63, 2**64 - 1, 2**64 - 8}
    for value in values - {said}:
        found = _core.runtime_layout(changed(name, value))
        assert {k: v for k, v in found.items() if v is not None and v != true[k]} == {}, value


def test_a_table_of_another_size_is_refused():
    with pytest.raises(ValueError, match="bytes"):
        _core.runtime_layout(b"xdebugpy")


# ---- the list of 2019 ------------------------------------------------------------------------

FIELDS_OF_2019 = [
    "ceval",
    "exitfuncs",
    "nexitfuncs",
    "finalizing",
    "gc",
    "gilstate",
    "interpreters",
    "main_thread",
    "open_code_hook",
    "open_code_userdata",
    "audit_hook_head",
    "pre_initialized",
    "core_initialized",
    "initialized",
    "preconfig",
    "xidregistry",
]


def test_every_field_of_2019_is_there():
    fields = runtime.fields()
    assert {field.name for field in fields} == set(FIELDS_OF_2019)
    for field in fields:
        assert field.where in (
            "_PyRuntimeState",
            "PyInterpreterState",
            "PyThreadState",
            "thread-local",
            "gone",
        )
        assert bool(field.path) == (field.where != "gone")
        assert field.about


def test_values_of_fields():
    import gc

    value = {(f.name, f.part, f.where): f.value for f in runtime.fields()}
    if AS_BUILT:
        assert value["gc", "enabled", "PyInterpreterState"] == int(gc.isenabled())
        assert value["gc", "collecting", "PyInterpreterState"] == 0
    assert value["finalizing", "", "_PyRuntimeState"] == "not set"
    assert value["interpreters", "head", "_PyRuntimeState"] == "set"
    assert value["ceval", "gil", "PyInterpreterState"] == "set"
    if runtime.layout()["headers"] is None:
        return
    main = threading.main_thread().ident
    assert value["main_thread", "", "_PyRuntimeState"] == main
    newest = max(one.id for one in runtime.snapshot(0).interpreters)
    assert value["interpreters", "next_id", "_PyRuntimeState"] > newest
    assert value["initialized", "", "_PyRuntimeState"] == 1
    assert value["ceval", "recursion_limit", "PyInterpreterState"] == sys.getrecursionlimit()
    flags = dict(pair.split("=") for pair in value["preconfig", "", "_PyRuntimeState"].split(", "))
    assert int(flags["utf8_mode"]) == sys.flags.utf8_mode
    assert int(flags["dev_mode"]) == int(sys.flags.dev_mode)
    assert int(flags["isolated"]) == sys.flags.isolated


def test_a_field_of_a_worker_is_its_own(pool):
    def limit():
        import sys

        from subinterp import runtime

        sys.setrecursionlimit(777)
        return [f.value for f in runtime.fields() if f.part == "recursion_limit"]

    if runtime.layout()["headers"] is not None:
        assert pool.submit(limit).result(LONG) == [777]


@needs_sources
def test_the_documentation_has_the_same_table():
    """docs/runtime.md: the column of the running version."""
    text = (ROOT / "docs" / "runtime.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    versions = ["3.12", "3.13", "3.14", "3.15"]
    column = 1 + versions.index(f"{sys.version_info.major}.{sys.version_info.minor}")
    short = {"R": "_PyRuntimeState", "I": "PyInterpreterState", "T": "PyThreadState"}
    documented = set()
    for row in rows:
        if len(row) < 7:
            continue
        name, _, part = row[0].replace("`", "").partition(": ")
        cell = row[column]
        if cell == '"':
            raise AssertionError("each cell says it itself")
        for place in cell.split(", "):
            if place == "gone":
                documented.add((name, part, "gone", ""))
                continue
            where, path = re.fullmatch(r"([\w-]+) `([\w.]+)`", place).groups()
            documented.add((name, part, short.get(where, "thread-local"), path))
    found = {(f.name, f.part, f.where, f.path) for f in runtime.fields()}
    assert documented == found


# ---- claims that are wrong do not compile -----------------------------------------------------


def compiler():
    command = shlex.split(sysconfig.get_config_var("CC") or "gcc")
    for found in (command, ["gcc"]):
        try:
            subprocess.run([*found, "--version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return found
    pytest.skip("no C compiler")


def compile_text(tmp_path, text, *flags):
    """The errors of a compilation against this Python's headers."""
    source = tmp_path / "claims.c"
    source.write_text(text)
    done = subprocess.run(
        [
            *compiler(),
            "-std=gnu11",
            "-fsyntax-only",
            *flags,
            f"-I{RUNTIME}",
            f"-I{sysconfig.get_path('include')}",
            str(source),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},  # messages as they are searched for
    )
    return [line for line in done.stderr.splitlines() if "error:" in line]


@needs_sources
def test_the_claims_compile(tmp_path):
    text = (RUNTIME / "si_fields.c").read_text()
    assert compile_text(tmp_path, text, "-fms-extensions") == []


@needs_sources
def test_without_the_option_that_they_need_they_do_not(tmp_path):
    text = (RUNTIME / "si_fields.c").read_text()
    errors = compile_text(tmp_path, text)
    assert any("compile with -fms-extensions" in line for line in errors)


@needs_sources
@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        # It is said to be here, and is not.
        ('INTERP("gc", "", gc,', 'RUNTIME("gc", "", gc,', "no member named 'gc'"),
        (
            'RUNTIME("main_thread", "", main_thread,',
            'INTERP("main_thread", "", main_thread,',
            "no member named 'main_thread'",
        ),
        ("audit_hooks.head, SET,", "audit_hook_head, SET,", "no member named"),
        # Another type than is said.
        ("recursion_limit, INT,", "recursion_limit, LONG,", "its size"),
        ("XI_REGISTRY, NONE,", "XI_REGISTRY, INT,", "its size"),
        # It is said to be gone, and is there.
        (
            "_gilstate_runtime_state, _is, getframe,",
            "_gilstate_runtime_state, _is, ceval,",
            "duplicate member 'ceval'",
        ),
        (
            "LACKS(pyruntimestate, gc)",
            "LACKS(pyruntimestate, gc) LACKS(pyruntimestate, preconfig)",
            "duplicate member 'preconfig'",
        ),
        (
            "LACKS(_ceval_runtime_state, gil)",
            "LACKS(_ceval_state, gil)",
            "duplicate member 'gil'",
        ),
        # Not thread-local, or no such variable.
        ("IS_THREAD_LOCAL(_Py_tss_tstate,", "IS_THREAD_LOCAL(_PyRuntime,", "_PyRuntime"),
        ("IS_THREAD_LOCAL(_Py_tss_tstate,", "IS_THREAD_LOCAL(_Py_tss_none,", "undeclared"),
    ],
)
def test_a_wrong_claim_does_not_compile(tmp_path, right, wrong, error):
    text = (RUNTIME / "si_fields.c").read_text()
    assert right in text
    errors = compile_text(tmp_path, text.replace(right, wrong), "-fms-extensions")
    assert any(error in line for line in errors), errors


DECLARED = re.compile(r"^        (?:.*?)(\w+)(?:\[\d+\])?(?: +# (from|until) (3\.\d+))?$")


def declared():
    """(structure, field, whether it is in this version) of _runtime.pxd."""
    text = (ROOT / "subinterp" / "_runtime.pxd").read_text()
    part = text[text.index("cdef extern from *:") :]
    part = part[: part.index("\n\n\n")]
    struct_name = None
    for line in part.splitlines():
        begun = re.match(r'    ctypedef struct (\w+)(?: "struct \w+")?:', line)
        if begun:
            struct_name = begun[1]
        elif line.startswith("        "):
            name, word, version = DECLARED.match(line).groups()
            here = True
            if word:
                limit = tuple(map(int, version.split(".")))
                now = sys.version_info[:2]
                here = now >= limit if word == "from" else now <= limit
            yield struct_name, name, here


TAGS = {"PyThreadState": "_ts", "PyInterpreterState": "_is", "_PyRuntimeState": "pyruntimestate"}


@needs_sources
def test_the_declared_structures_are_cpythons(tmp_path):
    """Each field of _runtime.pxd is in this version's headers, or is not, as it says."""
    fields = list(declared())
    assert ("_PyRuntimeState", "main_thread", True) in fields and len(fields) > 40
    lines = ['#include "si_cpython.h"', "#include <stddef.h>"]
    for n, (struct_name, name, here) in enumerate(fields):
        tag = TAGS.get(struct_name, struct_name)
        lines.append(
            f"size_t at_{n} = offsetof(struct {tag}, {name});"
            if here
            else f"struct p_{n} {{ struct {tag}; char {name}; }};"
        )
    assert compile_text(tmp_path, "\n".join(lines) + "\n", "-fms-extensions") == []


# ---- the command ------------------------------------------------------------------------------


def info(*args):
    return subprocess.run(
        [sys.executable, "-m", "subinterp", "info", *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",  # not the checkout, which would hide an installed package
    )


def test_info_is_a_tree():
    done = info()
    assert done.returncode == 0 and done.stderr == ""
    assert f"python: {sys.version.split()[0]}" in done.stdout
    assert re.search(r"^`-- interpreter 0: main; own lock (free|held)", done.stdout, re.MULTILINE)
    assert re.search(r"^    `-- thread \d+ MainThread: ", done.stdout, re.MULTILINE)
    assert "list of interpreters: yes" in done.stdout


def test_info_in_json():
    done = info("--json", "--fields")
    found = json.loads(done.stdout)
    assert found["snapshot"]["interpreters"][0]["id"] == 0
    assert found["support"]["thread states"] == "yes"
    assert {field["name"] for field in found["fields"]} == set(FIELDS_OF_2019)
    assert "fields" not in json.loads(info("--json").stdout)


def test_info_of_something_else():
    done = info("x")
    assert done.returncode == 1 and "'x'" in done.stderr
    done = info("999999999")
    assert done.returncode == 1 and "no process 999999999" in done.stderr


def test_info_shows_interpreters_and_their_threads():
    with subinterp.InterpreterPool(2, thread_name_prefix="shown") as pool:
        pool.broadcast(work.sleep, 0)
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            text = "\n".join(threads.submit(lambda: _info.text(_info.facts())).result())
    assert text.count("worker shown-") == 2
    assert re.search(r"\|-- interpreter \d+: worker shown-\d, idle; own lock free", text)
    assert not SANITIZED or "known" not in text

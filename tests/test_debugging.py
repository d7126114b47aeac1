"""Debugging in workers: breakpoint(), coverage, warnings, current_thread(), profilers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

from _support import HERE, run_script, script_env
from subinterp import InterpreterPool

# ---- breakpoint() -------------------------------------------------------------------

TASK = """
    from subinterp import InterpreterPool

    def task(x):
        y = x * 2
        breakpoint()
        return y

    with InterpreterPool(1) as pool:
        print("result", pool.submit(task, 21).result())
"""


def run_with_input(tmp_path, source, text, env=None):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, str(script)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=tmp_path,
        env=script_env(env),
    )


def test_breakpoint_in_a_task(tmp_path):
    done = run_with_input(tmp_path, TASK, "p 'y is', y\ny = 5\nw\nc\n")
    assert "('y is', 42)" in done.stdout
    assert "task()" in done.stdout
    # What was changed there holds.
    assert done.stdout.endswith("result 5\n")
    assert done.stderr == ""


def test_quitting_the_debugger_fails_the_task_only(tmp_path):
    source = TASK.replace(
        'print("result", pool.submit(task, 21).result())',
        "print(type(pool.submit(task, 21).exception()).__name__, pool.submit(abs, -1).result())",
    )
    done = run_with_input(tmp_path, source, "q\ny\n")
    # From 3.14 on it asks, and raises SystemExit.
    assert done.stdout.endswith(("BdbQuit 1\n", "SystemExit 1\n"))


def test_breakpoint_through_streams_of_the_creator(tmp_path):
    source = """
        import io, sys
        from subinterp import InterpreterPool

        def task():
            breakpoint()
            return 5

        real, sys.stdout = sys.stdout, io.StringIO()
        with InterpreterPool(1) as pool:
            result = pool.submit(task).result()
        text, sys.stdout = sys.stdout.getvalue(), real
        print(result, "(Pdb)" in text, "'of the task'" in text)
    """
    done = run_with_input(tmp_path, source, "p 'of the task'\nc\n")
    assert done.stdout == "5 True True\n"


def test_the_environment_says_what_breakpoint_does(tmp_path):
    done = run_with_input(tmp_path, TASK, "", {"PYTHONBREAKPOINT": "0"})
    assert done.stdout == "result 42\n"
    (tmp_path / "my_debugger.py").write_text("def stop():\n    print('stopped')\n")
    env = {"PYTHONBREAKPOINT": "my_debugger.stop"}
    done = run_with_input(tmp_path, TASK, "", env)
    assert done.stdout == "stopped\nresult 42\n"


def test_post_mortem_in_a_task(tmp_path):
    source = """
        import pdb
        from subinterp import InterpreterPool

        def task(x):
            try:
                return x / 0
            except ZeroDivisionError as error:
                pdb.post_mortem(error.__traceback__)

        with InterpreterPool(1) as pool:
            pool.submit(task, 21).result()
    """
    done = run_with_input(tmp_path, source, "p 'x is', x\nq\n")
    assert "('x is', 21)" in done.stdout


# ---- coverage -------------------------------------------------------------------------


def test_coverage_of_tasks(tmp_path):
    pytest.importorskip("coverage")
    (tmp_path / "covered.py").write_text(
        "def kind(n):\n    if n % 2:\n        return 'odd'\n    return 'even'\n\n\n"
        "def never():\n    return 1\n"
    )
    (tmp_path / "main.py").write_text(
        "import covered\nfrom subinterp import InterpreterPool\n\n"
        "with InterpreterPool(2) as pool:\n"
        "    print(list(pool.map(covered.kind, range(4), chunksize=1)))\n"
    )
    # As docs/observing.md says.
    (tmp_path / ".coveragerc").write_text(
        "[run]\nparallel = true\npatch = subprocess\nsource = .\ndisable_warnings = no-ctracer\n"
    )

    def coverage(*args):
        return subprocess.run(
            [sys.executable, "-m", "coverage", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith(("COV", "COVERAGE"))},
        )

    done = coverage("run", "main.py")
    assert done.stdout == "['even', 'odd', 'even', 'odd']\n"
    assert done.stderr == ""
    coverage("combine")
    report = coverage("report", "-m", "--include=covered.py").stdout
    (line,) = [line for line in report.splitlines() if line.startswith("covered.py")]
    # Lines 2 to 4 ran in workers, line 8 nowhere.
    assert line.split()[-1] == "8", report


# ---- warnings --------------------------------------------------------------------------


def warn(category=UserWarning):
    import warnings

    warnings.warn("from a task", category, stacklevel=1)
    return "went on"


def test_filters_of_the_creator_hold_in_workers(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with InterpreterPool(1) as pool, pytest.raises(UserWarning, match="from a task"):
            pool.submit(warn).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with InterpreterPool(1) as pool:
            assert pool.submit(warn).result() == "went on"
    assert capsys.readouterr().err == ""


def test_warnings_are_shown_on_the_creators_stderr(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with InterpreterPool(1) as pool:
            assert pool.submit(warn).result() == "went on"
    shown = capsys.readouterr().err
    assert "test_debugging.py" in shown and "UserWarning: from a task" in shown


def record_warnings():
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn()
    return [str(w.message) for w in caught]


def test_warnings_are_caught_where_they_happen():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with InterpreterPool(1) as pool:
            assert pool.submit(record_warnings).result() == ["from a task"]
    assert caught == []


# ---- threads ---------------------------------------------------------------------------


def thread_facts():
    import threading

    thread = threading.current_thread()
    return (
        thread.name,
        thread is threading.main_thread(),
        thread.daemon,
        thread.is_alive(),
        thread.ident == threading.get_ident(),
        thread.native_id == threading.get_native_id(),
        [t.name for t in threading.enumerate()],
    )


def test_current_thread():
    with InterpreterPool(1, thread_name_prefix="mine") as pool:
        facts = pool.submit(thread_facts).result()
        (worker,) = pool.stats().workers
    assert facts == ("mine-0", True, False, True, True, True, ["mine-0"])
    assert worker.name == "mine-0"
    assert threading.current_thread().name != "mine-0"


# ---- tracing and profiling ---------------------------------------------------------------


def traced_lines():
    import sys

    lines = []

    def trace(frame, event, arg):
        lines.append(event)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        warn_not()
    finally:
        sys.settrace(before)
    return lines


def warn_not():
    return 1


def test_settrace_in_a_task():
    with InterpreterPool(1) as pool:
        assert pool.submit(traced_lines).result()[:3] == ["call", "line", "return"]


def profiled():
    import cProfile
    import io
    import pstats

    profile = cProfile.Profile()
    profile.runcall(sorted, range(1000), key=lambda n: -n)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).print_stats()
    return text.getvalue()


def test_cprofile_in_a_task():
    with InterpreterPool(1) as pool:
        assert "1000" in pool.submit(profiled).result()


def test_development_mode_says_nothing():
    run_script(
        f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from subinterp import InterpreterPool
        with InterpreterPool(2, logging_to_main=True) as pool:
            print(list(pool.map(abs, [-1, 2], progress=lambda done, total: None)))
            pool.stats()
            if sys.version_info >= (3, 14, 1):
                pool.dump_tracebacks(sys.stdout)
            with pool.trace("run.json"):
                pool.submit(print, "text").result()
        """,
        env={"PYTHONDEVMODE": "1"},
    ).clean()

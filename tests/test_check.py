"""`python -m subinterp check`: what it finds out about modules that behave, and that do not."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from _extbuild import build
from subinterp import check as checking
from subinterp.__main__ import main
from subinterp.check import Result, Run, Target, judge

# Seconds for a process that is to come to its end.
TIMEOUT = 100.0
# Seconds for one that never will: enough to get as far as hanging.
SHORT = 12.0

only_with_copies = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="private copies are made on x86-64 only"
)

# An extension module that executes `run`; `in_worker` tells workers from main.
MODULE = r"""
    #include <signal.h>
    #include <stdlib.h>
    #include <unistd.h>
    static int in_worker(void)
    {
        return PyInterpreterState_GetID(PyInterpreterState_Get()) != 0;
    }
    %(code)s
    static int run(PyObject *m)
    {
        %(run)s
        return 0;
    }
    static PyModuleDef_Slot slots[] = {
        {Py_mod_exec, run},
        %(slots)s
        {0, NULL},
    };
    static struct PyModuleDef def = {
        PyModuleDef_HEAD_INIT, .m_name = NAME, .m_slots = slots, %(fields)s
    };
    PyMODINIT_FUNC INIT(void) { return PyModuleDef_Init(&def); }
"""
PER_INTERPRETER = "{Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},"
SINGLE_PHASE = r"""
    static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = NAME, .m_size = -1};
    PyMODINIT_FUNC INIT(void) { return PyModule_Create(&def); }
"""


def extension(tmp_path, name, *, run="", slots=PER_INTERPRETER, fields="", code=""):
    """Build an extension module whose execution is `run`."""
    build(tmp_path, name, MODULE % {"run": run, "slots": slots, "fields": fields, "code": code})


@pytest.fixture(autouse=True)
def _on_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def command(capsys):
    """A function that runs the command and returns its exit status and what it printed."""

    def run(*args):
        status = main(["check", *args])
        captured = capsys.readouterr()
        assert captured.err == "" or status == 2
        return status, captured.out + captured.err

    return run


@pytest.fixture
def find(command):
    """A function that tries one module, and returns its result and the exit status."""

    def run(name, *args, extensions="strict", timeout=TIMEOUT):
        options = ["--json", "--extensions", extensions, "--timeout", str(timeout)]
        status, text = command(*options, *args, name)
        document = json.loads(text)
        assert len(document["modules"]) == 1
        return Result(**document["modules"][0]), status

    return run


# ---- extension modules --------------------------------------------------------------


def test_one_that_declares_support_loads_as_it_is(tmp_path, find):
    extension(tmp_path, "declares")
    result, status = find("declares")
    assert (result.status, result.ok, result.stage, result.reason) == ("native", True, None, None)
    assert result.native == ["declares"] and result.copies == []
    assert result.seconds["main"] > 0 and len(result.seconds["together"]) == 2
    assert result.seconds["next"] > 0
    assert status == 0


def test_memory_of_one_more_interpreter(tmp_path, find):
    size = 64 << 20
    extension(
        tmp_path,
        "large",
        run=f"volatile char *p = malloc({size}); for (long i = 0; i < {size}; i += 512) p[i] = 1;",
    )
    result, _ = find("large")
    if result.memory["main"] is None:
        pytest.skip("this kernel does not tell a process's share of memory")
    assert size <= result.memory["main"] < 2 * size
    assert size <= result.memory["next"] < 2 * size


NOT_SUPPORTED = "{Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},"


@pytest.fixture(params=["undeclared", "single_phase", "refusing"])
def undeclared(request, tmp_path):
    """The name of an extension module that does not declare support."""
    if request.param == "single_phase":
        build(tmp_path, request.param, SINGLE_PHASE)
    else:
        slots = NOT_SUPPORTED if request.param == "refusing" else ""
        extension(tmp_path, request.param, slots=slots)
    return request.param


def test_strict_refuses_what_does_not_declare_support(undeclared, find):
    result, status = find(undeclared)
    assert (result.status, result.ok, result.stage) == ("refused", False, "together")
    assert undeclared in result.reason and "support" in result.reason
    assert result.seconds["main"] > 0 and result.seconds["together"] == []
    assert "ImportError" in result.output
    assert status == 1


@only_with_copies
def test_auto_copies_what_does_not_declare_support(undeclared, find):
    result, status = find(undeclared, extensions="auto")
    assert (result.status, result.ok, result.reason) == ("copy", True, None)
    assert (result.copies, result.native, result.missing) == ([undeclared], [], [])
    assert len(result.seconds["together"]) == 2 and result.seconds["next"] > 0
    assert result.notes == []
    assert status == 0


@pytest.mark.parametrize("mode", ["auto", "native"])
def test_a_module_that_declares_support_in_other_modes(mode, tmp_path, find):
    extension(tmp_path, "declares")
    result, status = find("declares", extensions=mode)
    assert (result.status, result.native, result.copies) == ("native", ["declares"], [])
    assert (result.notes, status) == ([], 0)


@only_with_copies
def test_native_loads_everything_as_it_is(tmp_path, find):
    extension(tmp_path, "undeclared", slots="")
    result, status = find("undeclared", extensions="native")
    assert (result.status, result.native, status) == ("native", ["undeclared"], 0)


@only_with_copies
def test_a_copy_that_crashes(tmp_path, find):
    extension(tmp_path, "touchy", slots="", run="if (in_worker()) raise(SIGSEGV);")
    result, status = find("touchy", extensions="auto")
    assert (result.status, result.stage, result.signal) == ("crashes", "together", "SIGSEGV")
    assert status == 1


@only_with_copies
def test_a_copy_that_crashes_at_the_end(tmp_path, find):
    extension(
        tmp_path,
        "farewell",
        slots="",
        code="static void leave(void *m) { if (in_worker()) raise(SIGSEGV); }",
        fields=".m_free = leave",
    )
    result, status = find("farewell", extensions="auto")
    # Its interpreter may be kept for later, and end with the process.
    assert (result.status, result.signal) == ("crashes", "SIGSEGV")
    assert result.stage in ("end", "end again", "exit")
    assert (result.copies, status) == (["farewell"], 1)


def test_one_that_raises_in_workers(tmp_path, find):
    extension(
        tmp_path,
        "raises",
        run='if (in_worker()) { PyErr_SetString(PyExc_ValueError, "not\\nhere"); return -1; }',
    )
    result, status = find("raises")
    assert (result.status, result.stage, result.reason) == ("fails", "together", "ValueError: not")
    assert status == 1


def test_one_that_refuses_the_second_interpreter(tmp_path, find):
    extension(
        tmp_path,
        "once",
        code="static _Atomic int times;",
        run='if (times++ == 2) { PyErr_SetString(PyExc_ImportError, "twice"); return -1; }',
    )
    result, status = find("once")
    assert (result.status, result.stage, result.reason) == ("refused", "next", "twice")
    assert result.memory["next"] is None and result.seconds["next"] is None
    assert status == 1


def test_one_that_aborts_in_init(tmp_path, find):
    extension(
        tmp_path,
        "aborts",
        # Only one of the two: the second would cut off what the first has to say.
        code="#include <stdatomic.h>\nstatic atomic_flag said;",
        run="""if (in_worker()) {
                   if (atomic_flag_test_and_set(&said))
                       pause();
                   fputs("the last words\\n", stderr);
                   abort();
               }""",
    )
    result, status = find("aborts")
    assert (result.status, result.stage, result.signal) == ("crashes", "together", "SIGABRT")
    assert result.exit_status is None
    assert "in two workers at once (aborts)" in result.reason
    assert "SIGABRT, the last words, in " in result.reason
    assert "Fatal Python error" in result.output
    assert status == 1


def test_one_that_ends_the_process(tmp_path, find):
    extension(tmp_path, "ends", run="if (in_worker()) _exit(0);")
    result, status = find("ends")
    assert (result.status, result.stage, result.signal) == ("crashes", "together", None)
    assert result.exit_status == 0
    assert "it ended the process with status 0" in result.reason
    assert status == 1


@pytest.mark.slow
def test_one_that_hangs_in_init(tmp_path, find):
    extension(tmp_path, "hangs", run="if (in_worker()) for (;;) pause();")
    result, status = find("hangs", timeout=SHORT)
    assert (result.status, result.stage) == ("hangs", "together")
    assert "(hangs)" in result.reason
    assert status == 1


def test_one_that_crashes_when_its_interpreter_ends(tmp_path, find):
    extension(
        tmp_path,
        "farewell",
        code="static void leave(void *m) { if (in_worker()) raise(SIGSEGV); }",
        fields=".m_free = leave",
    )
    result, status = find("farewell")
    assert (result.status, result.stage, result.signal) == ("crashes", "end", "SIGSEGV")
    assert "when the workers end" in result.reason
    assert result.native == ["farewell"]
    assert result.seconds["next"] > 0
    assert status == 1


def test_one_that_crashes_at_the_end_of_the_process(tmp_path, find):
    extension(tmp_path, "late", run="if (in_worker()) atexit(abort);")
    result, status = find("late")
    assert (result.status, result.stage, result.signal) == ("crashes", "exit", "SIGABRT")
    assert "at exit" in result.reason
    assert status == 1


def test_one_that_crashes_in_main_too(tmp_path, find):
    extension(tmp_path, "always", run="abort();")
    result, status = find("always")
    assert (result.status, result.stage, result.signal) == ("unavailable", "main", "SIGABRT")
    assert status == 1


def test_one_that_crashes_at_exit_of_main_alone_as_well(tmp_path, find):
    extension(tmp_path, "doomed", run="atexit(abort);")
    result, _ = find("doomed")
    assert (result.status, result.stage) == ("crashes", "exit")
    assert "in main alone it crashes at exit, too" in result.notes


def test_extension_modules_below(tmp_path, find):
    extension(tmp_path, "package._part")
    build(tmp_path, "package._other", SINGLE_PHASE)
    (tmp_path / "package" / "__init__.py").write_text("import package._part")
    result, _ = find("package")
    assert (result.status, result.native) == ("native", ["package._part"])
    # As if an installed distribution had them.
    names = ("package._other", "package._part", "package._missing")
    target = Target("package", "package", "1.0", names)
    (result,) = checking.check([target], extensions="strict", deep=True, timeout=TIMEOUT)
    assert (result.status, result.stage) == ("refused", "together")
    assert list(result.failures) == ["package._other"]
    assert result.reason.startswith("package._other: ")


# ---- modules in Python that misbehave -------------------------------------------------


def write(tmp_path, name, text):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))


def test_a_pure_module(tmp_path, find):
    write(tmp_path, "plain", "import json")
    result, status = find("plain")
    assert (result.status, result.native, result.copies) == ("pure", [], [])
    assert status == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys; sys.exit(3)", "it calls sys.exit(3) when it is imported"),
        ("import sys; sys.exit()", "it calls sys.exit() when it is imported"),
        ("input()", "it reads standard input"),
        ("import os; os._exit(0)", "it ended the process with status 0"),
        ("import os; os._exit(7)", "it ended the process with status 7"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class E(Exception):\n  def __str__(self): 1/0\nraise E", "could not be made"),
    ],
)
def test_what_main_cannot_import_either(text, reason, tmp_path, find):
    write(tmp_path, "bad", text)
    result, status = find("bad")
    assert (result.status, result.ok, result.stage) == ("unavailable", False, "main")
    assert reason in result.reason
    assert status == 1


@pytest.mark.slow
def test_one_that_hangs_in_main(tmp_path, find):
    write(tmp_path, "sleeper", "import time\nwhile True: time.sleep(1)")
    result, status = find("sleeper", timeout=SHORT)
    assert (result.status, result.stage) == ("unavailable", "main")
    assert "hangs" in result.reason and "(sleeper.py:2)" in result.reason
    assert status == 1


def test_one_that_prints(tmp_path, find):
    write(tmp_path, "talker", "import sys; print('hello'); print('x', file=sys.stderr)")
    result, status = find("talker")
    assert (result.status, status) == ("pure", 0)
    assert "prints 'hello'" in result.notes


def test_one_that_prints_without_end(tmp_path, find, monkeypatch):
    monkeypatch.setattr(checking, "OUTPUT_LIMIT", 1 << 20)
    write(tmp_path, "flood", "while True: print('x' * 1000)")
    result, status = find("flood")
    assert (result.status, status) == ("unavailable", 1)
    assert "it printed more than 1 MB" in result.reason


def test_one_that_starts_threads(tmp_path, find):
    write(
        tmp_path,
        "threaded",
        """
        import threading
        done = threading.Event()
        threading._register_atexit(done.set)
        for _ in range(2):
            threading.Thread(target=done.wait).start()
        """,
    )
    result, status = find("threaded")
    assert "starts 2 threads" in result.notes
    assert (result.status, status) == ("pure", 0)


@pytest.mark.slow
def test_one_whose_thread_never_ends(tmp_path, find):
    text = "import threading; threading.Thread(target=threading.Event().wait).start()"
    write(tmp_path, "endless", text)
    result, status = find("endless", timeout=SHORT)
    assert "in main alone it hangs at exit, too" in result.notes
    assert result.status in ("hangs", "pure") and status == (result.status == "hangs")


def test_what_a_module_starts_ends_with_it(tmp_path, find):
    write(
        tmp_path,
        "parent",
        """
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(os.path.join(os.path.dirname(__file__), "pids"), "a") as file:
            print(child.pid, file=file)
        """,
    )
    find("parent")
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process that the module started goes on"
        time.sleep(0.05)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_module_that_is_a_program(tmp_path, find):
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").write_text("")
    (tmp_path / "tool" / "__main__.py").write_text("import sys; sys.exit(len(sys.argv))")
    result, status = find("tool.__main__")
    assert (result.status, status) == ("unavailable", 1)
    assert "sys.exit(1)" in result.reason


def test_the_trial_is_not_seen_by_the_module(tmp_path, find):
    """A module finds sys.argv, sys.modules and __main__ as in a program that does nothing."""
    write(
        tmp_path,
        "curious",
        """
        import sys, _interpreters
        assert sys.argv == [""], sys.argv
        ours = ("subinterp", "json", "argparse", "concurrent")
        seen = {m for m in sys.modules if m.partition(".")[0] in ours} - {"subinterp._worker"}
        # Where main imports the module last, the pools are there already.
        assert not seen or not _interpreters.get_current()[0], seen
        """,
    )
    result, status = find("curious")
    assert (result.status, status, result.reason) == ("pure", 0, None)


# ---- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["no_such_module_at_all"], "there is no module 'no_such_module_at_all'"),
        (["no_such_module_at_all.part"], "there is no module 'no_such_module_at_all'"),
        (["cloudpikle"], "do you mean cloudpickle?"),
        (["a-b"], "'a-b' is not the name of a module"),
        ([""], "'' is not the name of a module"),
        (["json."], "'json.' is not the name of a module"),
        ([".json"], "'.json' is not the name of a module"),
        (["class"], "'class' is not the name of a module"),
        (["json;print"], "is not the name of a module"),
        (["a\nb"], "is not the name of a module"),
        (["__main__"], "__main__ is the program that runs"),
        (["--all", "json"], "--all goes without names"),
    ],
)
def test_names_that_are_wrong(names, message, command):
    status, text = command(*names)
    assert status == 2
    assert message in text


def test_a_distribution_is_no_module(command, monkeypatch):
    monkeypatch.setattr(
        checking.importlib.metadata, "packages_distributions", lambda: {"skl": ["Sci-kit.learn"]}
    )
    status, text = command("sci-kit-learn")
    assert status == 2
    assert "the distribution sci-kit-learn has skl" in text


@pytest.mark.parametrize(
    "args",
    [
        ["--timeout", "0"],
        ["--timeout", "-1"],
        ["--timeout", "nan"],
        ["--timeout", "x"],
        ["--jobs", "0"],
        ["--jobs", "1.5"],
        ["--jobs", "1000"],
        ["--extensions", "maybe"],
        ["--no-such-option"],
    ],
)
def test_arguments_that_are_wrong(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check", *args])
    assert caught.value.code == 2
    assert args[0] in capsys.readouterr().err


def test_a_missing_part_of_a_package_is_a_finding(find):
    result, status = find("json.no_such_part")
    assert (result.status, status) == ("unavailable", 1)
    assert "json.no_such_part" in result.reason


def test_each_name_once(command):
    status, text = command("--json", "--extensions", "strict", "json", "string", "json")
    assert [m["module"] for m in json.loads(text)["modules"]] == ["json", "string"]
    assert status == 0


def test_names_of_compiled_files():
    suffix = checking.EXTENSION_SUFFIXES[0]
    files = [
        f"pkg/_fast{suffix}",
        "pkg/stable.abi3.so",
        "pkg/plain.so",
        f"top{suffix}",
        f"pkg/sub/__init__{suffix}",
        "pkg.libs/libthing.so",
        "pkg/libthing.so.1",
        "pkg/__init__.py",
        "../../../lib/other.so",
        f"81d2__mypyc{suffix}",
    ]
    assert checking.extension_names(files) == [
        "pkg._fast",
        "pkg.plain",
        "pkg.stable",
        "pkg.sub",
        "top",
    ]


def install(folder, name, files, version="1.0"):
    """Make an installed distribution with these files."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_what_is_tried_by_default(tmp_path):
    suffix = checking.EXTENSION_SUFFIXES[0]
    install(tmp_path, "first", ["aaa/__init__.py", f"aaa/_c{suffix}", "aaa_helper.py"], "1.2")
    install(tmp_path, "second", ["bbb/__init__.py"])
    found = {target.module: target for target in checking.installed(False)}
    assert found["aaa"] == Target("aaa", "first", "1.2", ("aaa._c",), named=False)
    assert found["aaa_helper"].compiled == ()
    assert "bbb" not in found and "subinterp" not in found
    everything = {target.module: target for target in checking.installed(True)}
    assert everything.keys() >= {"aaa", "aaa_helper", "bbb", "cloudpickle"}
    (target,) = checking.named(["aaa"])
    assert (target.distribution, target.version, target.named) == ("first", "1.2", True)


# ---- the conclusion, from processes that were never run ---------------------------------------


def outcome(error=None, **values):
    loaded = values.setdefault("loaded", {})
    return {"error": error, "seconds": 0.25, "present": list(loaded), "deep": {}, **values}


def error(kind="ImportError", text="no", chain=None):
    chain = chain or [(kind, text)]
    return {"type": kind, "text": text, "chain": chain, "traceback": f"Traceback\n{kind}: {text}"}


def main_run(**values):
    event = {
        "at": "main",
        "outcome": outcome(seconds=0.1),
        "memory": 1000,
        "threads": 0,
        "wrote_bytecode": False,
    }
    return Run([{**event, **values}, {"at": "exit", "stderr": 0}], 0)


def worker_events(loaded, until="exit", **deep):
    one = outcome(loaded=loaded, deep=deep)
    events = [
        {"at": "together"},
        {"at": "together done", "outcomes": [one, one], "in_main": False},
        {"at": "next"},
        {"at": "next done", "outcome": one, "memory": 2_000_000},
        {"at": "end"},
        {"at": "main too"},
        {"at": "again"},
        {"at": "again done", "outcome": one},
        {"at": "end again"},
        {"at": "exit", "stderr": 0},
    ]
    return events[: [e["at"] for e in events].index(until) + 1]


def conclude(events, returncode=0, main_run=main_run(), **values):  # noqa: B008
    return judge(Target("pkg"), main_run, Run(events, returncode, **values))


def test_copies():
    kinds = {"pkg.a": "copy", "pkg.b": "copy", "pkg.c": "native", "_json": "native"}
    kinds["faulthandler"] = "builtin"
    result = conclude(worker_events(kinds))
    assert (result.status, result.ok) == ("copy", True)
    assert (result.copies, result.native) == (["pkg.a", "pkg.b"], ["pkg.c"])
    assert checking.explain(result) == "2 private copies, 1 as is"
    assert result.memory == {"main": 1000, "next": 2_000_000}
    assert result.seconds == {"main": 0.1, "together": [0.25, 0.25], "next": 0.25}


def test_what_later_workers_load_as_it_is_declares_its_support():
    events = worker_events({"pkg.a": "copy", "pkg.b": "copy"})
    later = outcome(loaded={"pkg.a": "native", "pkg.b": "copy"})
    for event in events:
        if "outcome" in event:
            event["outcome"] = later
    result = conclude(events)
    assert (result.copies, result.native) == (["pkg.b"], ["pkg.a"])


def test_what_workers_do_without():
    main = main_run(outcome=outcome(loaded={"pkg.a": "native", "pkg.b": "native", "_x": "?"}))
    events = worker_events({"pkg.a": "native"})
    result = conclude(events, main_run=main)
    assert (result.status, result.missing) == ("native", ["_x", "pkg.b"])
    assert checking.explain(result) == (
        "1 extension module as is, without 2 that main has (_x, pkg.b)"
    )


def test_a_package_that_falls_back(tmp_path, find):
    build(tmp_path, "fallback_c", SINGLE_PHASE)
    write(tmp_path, "fallback", "try: import fallback_c\nexcept ImportError: pass")
    result, status = find("fallback")
    assert (result.status, result.missing, status) == ("pure", ["fallback_c"], 0)


def test_modules_of_the_standard_library_count_only_for_their_own():
    kinds = {"_ctypes": "copy", "_json": "native"}
    assert conclude(worker_events(kinds)).status == "pure"
    result = judge(Target("ctypes"), main_run(), Run(worker_events(kinds), 0))
    assert (result.status, result.copies, result.native) == ("copy", ["_ctypes"], ["_json"])


@pytest.mark.parametrize("stage", ["together", "next", "end", "main too", "again", "exit"])
def test_each_stage_of_a_crash(stage):
    result = conclude(worker_events({"pkg.a": "copy"}, until=stage), -signal.SIGSEGV)
    assert (result.status, result.stage, result.signal) == ("crashes", stage, "SIGSEGV")
    assert checking.STAGES[stage] in result.reason
    assert result.copies == ([] if stage == "together" else ["pkg.a"])


def test_a_crash_counts_more_than_the_refusal_before_it():
    events = worker_events({}, until="together done")
    events[1]["outcomes"] = [outcome(error()), outcome(error())]
    result = conclude([*events, {"at": "end"}], -signal.SIGABRT)
    assert (result.status, result.stage) == ("crashes", "end")
    assert result.notes == ["before: no"]


def test_the_refusal_behind_a_package_s_advice():
    chain = [("ImportError", "Read the manual!"), ("ImportError", "pkg._c does not support it")]
    events = worker_events({}, until="together done")
    events[1]["outcomes"] = [outcome(error(chain=chain)), outcome()]
    result = conclude([*events, {"at": "exit", "stderr": 0}])
    assert (result.status, result.reason) == ("refused", "pkg._c does not support it")


def test_what_was_imported_when_it_crashed():
    events = [
        {"at": "together"},
        {"at": "importing", "name": "pkg"},
        {"at": "imported", "name": "pkg"},
        {"at": "importing", "name": "pkg.b"},
        {"at": "importing", "name": "pkg.a"},
        {"at": "importing", "name": "pkg.a"},
    ]
    assert "(pkg.a and pkg.b)" in conclude(events, -11).reason


def test_a_trial_that_never_began():
    result = conclude([], 1, stderr="Traceback\nModuleNotFoundError: cloudpickle\n")
    assert (result.status, result.stage, result.exit_status) == ("crashes", "together", 1)
    assert "ModuleNotFoundError: cloudpickle" in result.reason


def test_what_is_said_at_exit():
    events = worker_events({"pkg.a": "copy"})
    events[-1]["stderr"] = 6
    result = conclude(events, stderr="early\nlate\nlater\n", stderr_size=17)
    assert (result.status, result.notes) == ("copy", ["at exit: late"])


def test_deep_failures_are_told_once_and_only_those_of_workers():
    two = {"pkg.a": error(text="no a"), "pkg.b": error(text="no b")}
    main = main_run(outcome=outcome(deep={"pkg.b": error()}))
    result = conclude(worker_events({"pkg.c": "native"}, **two), main_run=main)
    assert (result.status, result.failures) == ("refused", {"pkg.a": "ImportError: no a"})
    assert result.reason == "pkg.a: no a"


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "free(): invalid size\nFatal Python error: Aborted\n\nThread 0x1 (most recent):\n"
            '  File "/x/mod.py", line 7 in load\n',
            "SIGABRT, free(): invalid size, in load (mod.py:7)",
        ),
        (
            "Fatal Python error: _PyThreadState_Attach: non-NULL old thread state\n",
            "SIGABRT, _PyThreadState_Attach: non-NULL old thread state",
        ),
        ("Fatal Python error: Segmentation fault\n", "SIGABRT"),
        ("", "SIGABRT"),
    ],
)
def test_last_words(stderr, reason):
    result = conclude(worker_events({}, until="together"), -signal.SIGABRT, stderr=stderr)
    assert result.reason == f"crashes in two workers at once: {reason}"


def test_a_report_that_was_cut_short():
    assert checking._events('{"at": "main"}\nnonsense\n[]\n{"at": "ex') == [{"at": "main"}]


# ---- what is printed -------------------------------------------------------------------------


def example_results():
    native = Result("aa", "aa-dist", "1.0", "native", True, native=["aa._c"])
    native.seconds = {"main": 0.1, "together": [0.2, 0.3], "next": 0.15}
    native.memory = {"main": 10_000_000, "next": 12_000_000}
    crash = Result("bbbb.c", None, None, "crashes", False, "exit", "SIGSEGV", "SIGSEGV")
    crash.output = "Fatal Python error: x\nstack\n"
    crash.notes = ["starts 1 thread"]
    return [native, crash]


def test_the_table():
    lines = checking.as_text(example_results()).splitlines()
    assert lines == [
        "module  version  loads      main    two at once       one more  memory  why",
        "aa      1.0      native   0.10 s  0.30 s (3.0x)  0.15 s (1.5x)   12 MB"
        "  1 extension module as is",
        "bbbb.c           crashes                                                SIGSEGV",
        "",
        "1 of 2 modules load in workers (1 as they are); 1 crashed.",
    ]


def test_the_table_on_a_narrow_terminal():
    lines = checking.as_text(example_results(), width=60).splitlines()
    assert all(len(line) <= 60 for line in lines)


def test_details():
    text = checking.as_text(example_results(), verbose=True)
    assert "    as is: aa._c\n" in text
    assert "    note: starts 1 thread\n    | Fatal Python error: x\n    | stack\n" in text


def test_json():
    document = json.loads(checking.as_json(example_results(), "auto"))
    assert document["schema"] == checking.SCHEMA == 1
    assert document["extensions"] == "auto"
    assert document["python"] == sys.version.split()[0]
    assert document["summary"]["native"] == document["summary"]["crashes"] == 1
    assert set(document["summary"]) == set(checking.STATUSES)
    assert [Result(**m) for m in document["modules"]] == example_results()


@pytest.mark.parametrize(
    ("status", "is_named", "expected"),
    [
        ("native", True, 0),
        ("copy", True, 0),
        ("pure", True, 0),
        ("refused", False, 1),
        ("fails", False, 1),
        ("crashes", False, 1),
        ("hangs", False, 1),
        ("unavailable", False, 0),
        ("unavailable", True, 1),
    ],
)
def test_exit_status(status, is_named, expected):
    result = Result("m", None, None, status, checking.STATUSES[status])
    assert checking.exit_status([result], [Target("m", named=is_named)]) == expected


def test_nothing_to_try(command, monkeypatch):
    monkeypatch.setattr(checking, "installed", lambda include_pure: [])
    status, text = command()
    assert (status, text.count("\n")) == (0, 1)
    status, text = command("--json")
    assert (status, json.loads(text)["modules"]) == (0, [])


# ---- the command in a process of its own -------------------------------------------------------


def python(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "subinterp", *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        **options,
    )


def test_in_the_folder_of_the_module(tmp_path):
    write(tmp_path, "beside", "")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = python("check", "--extensions", "strict", "beside", "string", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^beside +pure ", done.stdout, re.MULTILINE)
    assert "2 of 2 modules load in workers (2 pure Python)." in done.stdout


def test_several_at_a_time(tmp_path):
    names = [f"numbered{i}" for i in range(5)]
    for name in names:
        write(tmp_path, name, "")
    results = checking.check(
        [Target(name) for name in names], extensions="strict", jobs=3, timeout=TIMEOUT
    )
    assert [(r.module, r.status) for r in results] == [(name, "pure") for name in names]


def test_ctrl_c_ends_what_runs(tmp_path):
    write(
        tmp_path,
        "slow",
        """
        import os, time
        with open(os.path.join(os.path.dirname(__file__), "pid.new"), "w") as file:
            print(os.getpid(), file=file)
        os.rename(file.name, file.name.removesuffix(".new"))
        time.sleep(600)
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "subinterp", "check", "slow"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (130, "", "")
    assert not _runs(int((tmp_path / "pid").read_text()))


def test_help_names_the_exit_statuses():
    done = python("check", "--help")
    assert done.returncode == 0
    for status in ("0  ", "1  ", "2  ", "130  "):
        assert f"\n  {status}" in done.stdout
    for status in checking.STATUSES:
        assert f"\n  {status} " in done.stdout


def test_commands_are_listed():
    done = python()
    assert done.returncode == 2 and "check" in done.stderr
    done = python("--version")
    assert done.returncode == 0 and done.stdout.startswith("subinterp ")
    done = python("no-such-command")
    assert done.returncode == 2 and "no-such-command" in done.stderr

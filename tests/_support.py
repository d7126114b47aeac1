"""What tests share: snapshots of what is alive, waits, scripts in subprocesses."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from _work import square

HERE = Path(__file__).resolve().parent

# The sanitizers that are loaded. Each needs memory of its own at any time, and the thread sanitizer
# runs handlers of signals only when the call that they interrupt is over.
SANITIZERS = [s for s in ("libasan", "libtsan") if s in Path("/proc/self/maps").read_text()]
SANITIZED = bool(SANITIZERS)

frees_blocked_calls = pytest.mark.skipif(
    platform.machine() != "x86_64" or "libtsan" in SANITIZERS,
    reason="blocked calls are freed on x86-64, and without the thread sanitizer",
)

# Of what is scaled in tests that make many interpreters: before 3.14.1 each one that ends
# leaves 2 to 5 MB behind.
MANY_INTERPRETERS = 1.0 if sys.version_info >= (3, 14, 1) else 0.2

# Executors ---------------------------------------------------------------------


def _set_path(path):
    import sys

    sys.path[:] = path


def _threads(max_workers, **kwargs):
    return concurrent.futures.ThreadPoolExecutor(max_workers, **kwargs)


def _processes(method, max_workers, **kwargs):
    return concurrent.futures.ProcessPoolExecutor(
        max_workers, mp_context=multiprocessing.get_context(method), **kwargs
    )


def _standard_interpreters(max_workers, **kwargs):
    # Its workers do not know the sys.path of their maker.
    kwargs.setdefault("initializer", _set_path)
    kwargs.setdefault("initargs", (list(sys.path),))
    return concurrent.futures.InterpreterPoolExecutor(max_workers, **kwargs)


def _ours(max_workers, **kwargs):
    import subinterp

    return subinterp.InterpreterPool(max_workers, **kwargs)


ALL_EXECUTORS = {
    "threads": _threads,
    "fork": functools.partial(_processes, "fork"),
    "spawn": functools.partial(_processes, "spawn"),
    "interpreters": _standard_interpreters,
    "ours": _ours,
}

# Those that this Python has; InterpreterPoolExecutor came with 3.14.
EXECUTORS = {
    name: make
    for name, make in ALL_EXECUTORS.items()
    if name != "interpreters" or hasattr(concurrent.futures, "InterpreterPoolExecutor")
}


# What is alive ---------------------------------------------------------------


def live_objects() -> dict[str, int]:
    from subinterp import _core

    return dict(_core.live_counts())


def parked_interpreters() -> dict[int, int]:
    """Return interpreter -> native thread of all that wait for a pool."""
    from subinterp import _core

    return dict(_core.parked())


def interpreter_ids() -> set[int]:
    import _interpreters

    # 3.13 and later give (id, whence) pairs.
    return {item[0] if isinstance(item, tuple) else item for item in _interpreters.list_all()}


def native_threads() -> dict[int, str]:
    """Return id -> name of every native thread of this process."""
    threads = {}
    for tid in os.listdir("/proc/self/task"):
        try:
            name = Path(f"/proc/self/task/{tid}/comm").read_text().strip()
        except OSError:
            continue  # it ended between the listing and the look
        threads[int(tid)] = name
    return threads


def open_files() -> dict[int, str]:
    files = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            files[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the descriptor of the listing itself
    return files


# Threads of the library's that come and go as they are needed, one of each: the one that runs
# callbacks, and the one that watches tasks that are interrupted. As the kernel shortens names.
HELPERS = ("subinterp-notifier"[:15], "subinterp-watch")


class Snapshot:
    """What is alive at one moment."""

    def __init__(self):
        # Parked interpreters and their threads are kept on purpose, by nobody's fault.
        parked = parked_interpreters()
        self.objects = live_objects()
        self.objects["contexts"] -= self.objects.pop("parked")
        self.interpreters = interpreter_ids() - set(parked)
        self.threads = {k: v for k, v in native_threads().items() if k not in parked.values()}
        self.files = open_files()

    def leaks_since(self, before: Snapshot, ignore: set[str]) -> list[str]:
        leaks = []
        if "objects" not in ignore:
            # What pools keep, as the functions they know, they may keep while they live.
            kept = {"functions"} if before.objects.get("pools") else set()
            for name, count in self.objects.items():
                if name not in kept and count > before.objects.get(name, 0):
                    leaks.append(f"{name}: {before.objects.get(name, 0)} before, {count} after")
        if "interpreters" not in ignore:
            new = self.interpreters - before.interpreters
            if new:
                leaks.append(f"interpreters: {sorted(new)} are new")
        if "threads" not in ignore:
            new = {tid: name for tid, name in self.threads.items() if tid not in before.threads}
            for helper in HELPERS:
                found = [tid for tid, name in self.threads.items() if name == helper]
                if len(found) == 1:
                    new.pop(found[0], None)
            if new:
                leaks.append(f"threads: {new} are new")
        if "files" not in ignore:
            new = {fd: name for fd, name in self.files.items() if fd not in before.files}
            if new:
                leaks.append(f"file descriptors: {new} are new")
        return leaks


def wait_until(condition, timeout=30.0, what="the condition"):
    """Wait until `condition()` is true; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout} s")
        time.sleep(0.005)


@contextlib.contextmanager
def fresh_interpreter(module):
    """An interpreter of `subinterp.interpreters` or `subinterp.pep554`; the test may close it."""
    interp = module.create()
    yield interp
    try:
        interp.close()
    except module.InterpreterNotFoundError:
        pass


# Under load ------------------------------------------------------------------


@contextlib.contextmanager
def in_thread(fn, *args):
    """Run `fn` in a thread; at the end it must have ended; gives its outcome."""
    outcome = []

    def run():
        try:
            outcome.append(fn(*args))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield outcome
    thread.join(60)
    assert not thread.is_alive()


def squares_while_resizing(pool, n, pause):
    """Return the squares of n numbers; the pool gets another size every `pause` seconds."""
    results = []

    def feed():
        for start in range(0, n, 100):
            results.extend(pool.map(square, range(start, start + 100), chunksize=3))

    feeder = threading.Thread(target=feed)
    feeder.start()
    turns = 0
    while feeder.is_alive():
        turns += 1
        pool.resize(turns % 4 + 1)
        time.sleep(pause)
    feeder.join()
    return results


# Scripts ----------------------------------------------------------------------


@dataclass
class ScriptResult:
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    def check(self, returncode: int = 0) -> ScriptResult:
        """Fail unless the script ended with `returncode` and no crash report."""
        if self.returncode != returncode or "Fatal Python error" in self.stderr:
            pytest.fail(f"expected exit code {returncode}\n{self}", pytrace=True)
        return self

    def clean(self, returncode: int = 0) -> ScriptResult:
        """Like `check`, and nothing may have been written to stderr."""
        self.check(returncode)
        if self.stderr.strip():
            pytest.fail(f"expected nothing on stderr\n{self}", pytrace=True)
        return self

    def __str__(self) -> str:
        return (
            f"exit code {self.returncode} after {self.seconds:.2f} s\n"
            f"--- stdout ---\n{self.stdout}\n--- stderr ---\n{self.stderr}"
        )


def script_env(env: dict[str, str] | None = None) -> dict[str, str]:
    full = dict(os.environ)
    # So that `_work` is importable in the script, and with it in its workers.
    full["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    )
    full["PYTHONFAULTHANDLER"] = "1"
    full["PYTHON_COLORS"] = "0"
    full.update(env or {})
    return full


def script_command(source: str, args, mode: str, folder: Path) -> tuple[list[str], str | None]:
    """Return the command line and what goes to its standard input."""
    source = textwrap.dedent(source)
    if mode == "file":
        path = folder / "script.py"
        path.write_text(source, encoding="utf-8")
        return [sys.executable, str(path), *args], None
    if mode == "-c":
        return [sys.executable, "-c", source, *args], None
    if mode == "stdin":
        return [sys.executable, "-", *args], source
    raise ValueError(f"mode must be file, -c or stdin, not {mode!r}")


def run_script(source, *, args=(), env=None, timeout=60.0, mode="file") -> ScriptResult:
    """Run `source` in a fresh Python process and wait for its end.

    Parameters
    ----------
    source : str
        Python code, dedented.
    args : sequence of str
        What follows the script on its command line.
    env : dict, optional
        Added to the environment.
    timeout : float
        Seconds until the script is aborted, its stacks shown, and the test
        failed.
    mode : {"file", "-c", "stdin"}
        How the script reaches Python.
    """
    with tempfile.TemporaryDirectory(prefix="subinterp-test-") as folder:
        command, stdin = script_command(source, args, mode, Path(folder))
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env=script_env(env),
            cwd=folder,  # not the checkout, which would hide an installed package
            start_new_session=True,  # its own process group: left-over children die with it
        )
        timed_out = False
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.send_signal(signal.SIGABRT)  # faulthandler shows the stacks
            try:
                stdout, stderr = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                stdout, stderr = process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        result = ScriptResult(process.returncode, stdout, stderr, time.monotonic() - started)
        if timed_out:
            pytest.fail(f"the script did not end within {timeout} s\n{result}", pytrace=True)
        return result

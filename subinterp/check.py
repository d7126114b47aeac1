"""``python -m subinterp check``: which modules load in workers, how, and at what cost.

Each module is tried in two processes of its own, first by a main interpreter alone, then by
workers, so that one that crashes, hangs or ends its process is a finding and does not end the
command. `_trial` is what runs there; it writes down each step, and `judge` draws the
conclusion from the steps, the way the process ended, and what it said on standard error.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from keyword import iskeyword
from typing import IO, Any

import subinterp

__all__ = ["Result", "Run", "check", "judge"]

# Of the JSON form; counts up when a field changes its meaning or goes.
SCHEMA = 1

# What a module can do, and whether that is what one hopes for.
STATUSES = {
    "native": True,  # loads as it is
    "copy": True,  # loads, with private copies of some of its extension modules
    "pure": True,  # loads, and imports no extension modules
    "refused": False,  # an ImportError in workers only
    "fails": False,  # another exception in workers only
    "crashes": False,  # its process ended by a signal, or before its time
    "hangs": False,  # its process did not end in time
    "unavailable": False,  # cannot be imported by a main interpreter either
}

# Seconds that a process gets to show its stacks before it is killed.
GRACE = 5.0
# Seconds between two looks at a running process.
LOOK = 0.05
# Bytes of output after which a process is stopped; a module that prints without end.
OUTPUT_LIMIT = 64 * 2**20
# Bytes of output that are kept.
OUTPUT_KEPT = 2**17

EXIT_OK, EXIT_FOUND, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


# ---- what is to be tried --------------------------------------------------------------


class UsageError(Exception):
    """The command line asks for something that cannot be."""


@dataclass(frozen=True)
class Target:
    """A module to try.

    Attributes
    ----------
    module : str
        Its dotted name.
    distribution, version : str or None
        Where it comes from; None: not from an installed distribution.
    compiled : tuple of str
        The names of the distribution's extension modules that are this module or lie below it.
    named : bool
        True if it was asked for by name.
    """

    module: str
    distribution: str | None = None
    version: str | None = None
    compiled: tuple[str, ...] = ()
    named: bool = True


def extension_names(files: Iterable[Any]) -> list[str]:
    """Return the modules that the compiled files of a distribution are.

    Parameters
    ----------
    files : iterable of path-like
        Relative to the folder that is on ``sys.path``.
    """
    names = []
    for file in files:
        path = str(file)
        suffix = next((s for s in EXTENSION_SUFFIXES if path.endswith(s)), None)
        if suffix is None:
            continue
        parts = path.removesuffix(suffix).split("/")
        if parts[-1] == "__init__":
            del parts[-1]
        # Others are libraries (numpy.libs/libopenblas.so), or lie outside of the path.
        if parts and all(part.isidentifier() for part in parts):
            names.append(".".join(parts))
    return sorted(names)


def _below(names: Iterable[str], module: str) -> tuple[str, ...]:
    return tuple(n for n in names if n == module or n.startswith(module + "."))


def installed(include_pure: bool) -> list[Target]:
    """Return the top-level modules of the installed distributions.

    Parameters
    ----------
    include_pure : bool
        Also those of distributions that ship no compiled file.
    """
    targets = {}
    for top, owners in sorted(importlib.metadata.packages_distributions().items()):
        if top in ("subinterp", "__pycache__") or not top.isidentifier() or iskeyword(top):
            continue
        for owner in owners:
            target = _target(top, owner, named=False)
            names = _compiled(owner)
            if (names or include_pure) and (top not in targets or target.compiled):
                targets[top] = target
    return list(targets.values())


def _compiled(distribution: str) -> list[str]:
    try:
        files = importlib.metadata.files(distribution)
    except importlib.metadata.PackageNotFoundError:
        return []
    return extension_names(files or ())


def _target(module: str, distribution: str | None, named: bool = True) -> Target:
    if distribution is None:
        return Target(module, named=named)
    try:
        version: str | None = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = None
    return Target(
        module, distribution, version, _below(_compiled(distribution), module), named=named
    )


def named(names: Sequence[str]) -> list[Target]:
    """Return the modules of these names.

    Raises
    ------
    UsageError
        If a name is not that of a module, or no module has its first part.
    """
    owners = importlib.metadata.packages_distributions()
    by_distribution: dict[str, list[str]] = {}
    for top, distributions in owners.items():
        for distribution in distributions:
            by_distribution.setdefault(_normalized(distribution), []).append(top)
    targets = []
    for name in dict.fromkeys(names):
        top = name.partition(".")[0]
        if name == "__main__":
            raise UsageError("__main__ is the program that runs; name a module")
        tops = sorted(set(by_distribution.get(_normalized(name), ())) - {name})
        hint = f"; the distribution {name} has {', '.join(tops)}" if tops else ""
        if not all(part.isidentifier() and not iskeyword(part) for part in name.split(".")):
            raise UsageError(f"{name!r} is not the name of a module{hint}")
        if not _exists(top):
            close = difflib.get_close_matches(top, owners, n=1)
            hint = hint or (f"; do you mean {close[0]}?" if close else "")
            raise UsageError(f"there is no module {top!r}{hint}")
        distributions = owners.get(top, [])
        found = [_target(name, distribution) for distribution in dict.fromkeys(distributions)]
        # Of a namespace package, the distribution that has this part of it.
        found.sort(key=lambda target: not target.compiled)
        targets.append(found[0] if found else Target(name))
    return targets


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _exists(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError, AttributeError):
        return top in sys.modules


# ---- one process ----------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """How one process went.

    Attributes
    ----------
    events : list of dict
        What it reported, in order; ``at`` names the step.
    returncode : int
        As of `subprocess.Popen`: negative, the signal that ended it.
    stopped : str or None
        Why it was stopped from outside: "time" or "output".
    stdout, stderr : str
        The ends of what it wrote.
    stderr_size : int
        Bytes it wrote to standard error, before they were cut.
    """

    events: list[dict[str, Any]]
    returncode: int
    stopped: str | None = None
    stdout: str = ""
    stderr: str = ""
    stderr_size: int = 0

    def get(self, at: str) -> dict[str, Any] | None:
        """Return the last event of that step."""
        return next((e for e in reversed(self.events) if e.get("at") == at), None)

    @property
    def finished(self) -> bool:
        """True if the process came to its end on its own, with nothing wrong."""
        return self.returncode == 0 and not self.stopped and self.get("exit") is not None

    def said_at_exit(self) -> str:
        """Return what it wrote to standard error at its very end."""
        last = self.get("exit")
        if last is None:
            return ""
        n = self.stderr_size - last["stderr"]
        return self.stderr.encode()[-n:].decode(errors="replace") if n > 0 else ""


def _tail(file: IO[bytes]) -> tuple[str, int]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OUTPUT_KEPT))
    return file.read().decode("utf-8", "backslashreplace"), size


def _events(text: str) -> list[dict[str, Any]]:
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut short by the end of the process
        if isinstance(event, dict):
            events.append(event)
    return events


def run_trial(
    target: Target,
    where: str,
    *,
    timeout: float,
    deep: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    stop: threading.Event | None = None,
) -> Run:
    """Try a module in a process of its own, and wait for its end.

    Parameters
    ----------
    target : Target
        What to try.
    where : {"main", "workers"}
        Which interpreters import it.
    timeout : float
        Seconds after which the process is ended, and all it started.
    deep : sequence of str
        Modules to import after it.
    options : dict, optional
        Arguments of the pools.
    stop : threading.Event, optional
        Ends the process early, with KeyboardInterrupt raised here.

    Notes
    -----
    Blocks. The process gets no standard input, and leaves no core file.
    """
    source = pkgutil.get_data("subinterp", "_trial.py")
    assert source is not None
    file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_trial.py")
    with (
        tempfile.TemporaryFile() as report,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        config = {
            "module": target.module,
            "where": where,
            "deep": list(deep),
            "options": dict(options or {}),
            "path": [p for p in sys.path if isinstance(p, str)],
            "report": report.fileno(),
        }
        text = source.decode()
        code = (
            f"source = {text!r}\n"
            f"space = {{'__name__': 'subinterp.check', '__file__': {file!r}}}\n"
            "exec(compile(source, space['__file__'], 'exec'), space)\n"
            f"space['start']({config!r}, source)\n"
        )
        process = subprocess.Popen(
            [sys.executable, *_interpreter_flags(), "-X", "faulthandler", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=[report.fileno()],
            start_new_session=True,  # what it starts ends with it
        )
        try:
            try:
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
            except (OSError, ValueError):
                pass  # it has ended already, or may not be limited
            stopped = _wait(process, timeout, (out, err), stop)
        finally:
            _kill_group(process)
        stdout, _ = _tail(out)
        stderr, size = _tail(err)
        report.seek(0)
        events = _events(report.read().decode("utf-8", "replace"))
    return Run(events, process.returncode, stopped, stdout, stderr, size)


def _interpreter_flags() -> list[str]:
    """Return the options of the interpreter that change what an import does."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def _wait(
    process: subprocess.Popen[bytes],
    timeout: float,
    files: Sequence[IO[bytes]],
    stop: threading.Event | None,
) -> str | None:
    """Wait for the end of a process; return why it was stopped, if it was."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            process.wait(LOOK)
            return None
        except subprocess.TimeoutExpired:
            pass
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt
        if any(os.fstat(file.fileno()).st_size > OUTPUT_LIMIT for file in files):
            return "output"
        if time.monotonic() > deadline:
            process.send_signal(signal.SIGABRT)  # faulthandler shows the stacks
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass
            return "time"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


# ---- the conclusion --------------------------------------------------------------------


@dataclass
class Result:
    """What was found out about one module; the form of the JSON's ``modules``.

    Attributes
    ----------
    module : str
        Its name.
    distribution, version : str or None
        The installed distribution it is from.
    status : str
        One of `STATUSES`.
    ok : bool
        True if it loads in workers.
    stage : str or None
        Where it went wrong: "main" (in a main interpreter), "together" (two workers at once),
        "next" (one more), "end" (ending them), "main too" and "again" (main imports it, then
        a new worker), "end again", "exit" (the end of the process).
    reason : str or None
        Why, in one line.
    signal : str or None
        The signal that ended the process.
    exit_status : int or None
        With which it ended before its time.
    compiled : int
        How many extension modules its distribution has at or below it.
    copies, native : list of str
        Extension modules that workers loaded as private copies, and as they are; those of the
        standard library only if the module itself is from there.
    missing : list of str
        Extension modules that main loaded, and workers did without: the package has something
        to fall back on.
    seconds : dict
        Time of the import in seconds: "main" (a main interpreter alone), "together" (a list:
        two workers at once), "next" (one more worker).
    memory : dict
        Bytes by which the process's share of memory (PSS) grew: "main" by the import, "next" by
        one more worker with it. None: not known.
    failures : dict
        Only if the compiled modules below it were tried as well: those that fail in workers,
        and why, in one line.
    notes : list of str
        Other things seen.
    output : str
        The traceback, or the end of what the process wrote to standard error.
    """

    module: str
    distribution: str | None
    version: str | None
    status: str = "unavailable"
    ok: bool = False
    stage: str | None = None
    reason: str | None = None
    signal: str | None = None
    exit_status: int | None = None
    compiled: int = 0
    copies: list[str] = field(default_factory=list)
    native: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seconds: dict[str, Any] = field(
        default_factory=lambda: {"main": None, "together": [], "next": None}
    )
    memory: dict[str, int | None] = field(default_factory=lambda: {"main": None, "next": None})
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output: str = ""


# In which words a stage is told.
STAGES = {
    "main": "in a main interpreter",
    "together": "in two workers at once",
    "next": "in one more worker",
    "end": "when the workers end",
    "main too": "in main, after workers had it",
    "again": "in a new worker beside main",
    "end again": "when the last worker ends",
    "exit": "at exit",
}


def judge(target: Target, main: Run, workers: Run | None) -> Result:
    """Draw the conclusion from the two processes of a module.

    Parameters
    ----------
    target : Target
        What was tried.
    main : Run
        How it went in a main interpreter.
    workers : Run, optional
        How it went in workers; None: not tried, as main could not import it.
    """
    result = Result(
        target.module, target.distribution, target.version, compiled=len(target.compiled)
    )
    event = main.get("main")
    if event is None or event["outcome"]["error"] is not None:
        _explain_main(result, main, event)
        return result
    outcome = event["outcome"]
    result.seconds["main"] = outcome["seconds"]
    result.memory["main"] = event["memory"]
    if event["threads"] > 0:
        result.notes.append(f"starts {_count(event['threads'], 'thread')}")
    if main.stdout.strip():
        result.notes.append(f"prints {_first_line(main.stdout)!r}")
    if not main.finished:
        how, _ = _how_it_ended(main)
        result.notes.append(f"in main alone it {how} at exit, too")
    if workers is not None:
        _judge_workers(result, workers, outcome)
    return result


def _explain_main(result: Result, main: Run, event: dict[str, Any] | None) -> None:
    result.stage = "main"
    if event is not None:
        error = event["outcome"]["error"]
        result.reason = _error_line(error)
        result.output = error["traceback"]
        return
    how, reason = _how_it_ended(main)
    result.reason = f"{how} {STAGES['main']}: {reason}"
    _note_end(result, main)


def _judge_workers(result: Result, run: Run, in_main: dict[str, Any]) -> None:
    together, following, again = (run.get(f"{at} done") for at in ("together", "next", "again"))
    outcomes = list(together["outcomes"]) if together else []
    if all(outcome["error"] is None for outcome in outcomes):  # else: the time until it failed
        result.seconds["together"] = [outcome["seconds"] for outcome in outcomes]
    if following:
        outcomes.append(following["outcome"])
        if following["outcome"]["error"] is None:
            result.seconds["next"] = following["outcome"]["seconds"]
            result.memory["next"] = following["memory"]
    if again:
        outcomes.append(again["outcome"])
    _list_extensions(result, outcomes)
    if together and all(outcome["error"] is None for outcome in together["outcomes"]):
        both = [set(outcome["present"]) for outcome in together["outcomes"]]
        missing = set(in_main["present"]).difference(set.intersection(*both))
        result.missing = sorted(_own(missing, result.module))
    if together and together["in_main"]:
        result.notes.append("a worker's import ran it in the main interpreter")
    said = _first_line(run.said_at_exit())
    if said and run.finished:
        result.notes.append(f"at exit: {said}")

    stages = [*["together"] * (2 if together else 0), *(["next"] if following else []), "again"]
    for stage, outcome in zip(stages, outcomes, strict=False):
        if outcome["error"] is not None:
            _fail(result, stage, outcome["error"])
            break
    if result.stage is None:
        for outcome in outcomes:
            for name, error in outcome["deep"].items():
                if name not in in_main["deep"]:
                    result.failures.setdefault(name, _error_line(error))
                    if result.stage is None:
                        _fail(result, "together", error, name)
    if not run.finished:
        # Worse than what went wrong before it, which it may follow from.
        if result.reason:
            result.notes.append(f"before: {result.reason}")
        _end_early(result, run)
    elif result.stage is None:
        result.status = "copy" if result.copies else "native" if result.native else "pure"
    result.ok = STATUSES[result.status]


def _fail(result: Result, stage: str, error: dict[str, Any], name: str | None = None) -> None:
    # Packages wrap the refusal of one of their extension modules in advice on their build.
    refusals = [text for kind, text in error["chain"] if kind == "ImportError"]
    result.status = "refused" if refusals else "fails"
    result.stage = stage
    line = _shorten(refusals[-1]) if refusals else _error_line(error)
    result.reason = f"{name}: {line}" if name else line
    result.output = error["traceback"]


def _end_early(result: Result, run: Run) -> None:
    steps = [e["at"] for e in run.events if e.get("at") in STAGES]
    result.stage = steps[-1] if steps else "together"
    how, reason = _how_it_ended(run)
    result.status = "hangs" if run.stopped else "crashes"
    under_way = _under_way(run) if result.stage in ("together", "next", "main too", "again") else ""
    result.reason = f"{how} {STAGES[result.stage]}{under_way}: {reason}"
    _note_end(result, run)


def _note_end(result: Result, run: Run) -> None:
    if not run.stopped:
        if run.returncode < 0:
            result.signal = _signal_name(-run.returncode)
        else:
            result.exit_status = run.returncode
    result.output = run.stderr


def _under_way(run: Run) -> str:
    """Name what was imported last, if its import was not over."""
    names: list[str] = []
    for event in reversed(run.events):
        if event["at"] not in ("importing", "collecting"):
            break
        if event["name"] not in names[:2]:
            names.append(event["name"])
        if len(names) == 2:
            break
    return f" ({' and '.join(sorted(names))})" if names else ""


def _how_it_ended(run: Run) -> tuple[str, str]:
    """Return what happened to a process that did not end well, as a verb, and details."""
    if run.stopped == "output":
        return "hangs", f"it printed more than {OUTPUT_LIMIT >> 20} MB"
    if run.stopped:
        frame = _frame(run.stderr)
        return "hangs", "not over when its time was" + (f", {frame}" if frame else "")
    if run.returncode < 0:
        said = _last_words(run.stderr)
        return "crashes", ", ".join(filter(None, [_signal_name(-run.returncode), *said]))
    last = run.stderr.strip().splitlines()[-1:] if run.returncode else []
    return "crashes", ", ".join([f"it ended the process with status {run.returncode}", *last])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_FATAL = re.compile(r"^Fatal Python error: (.*)$", re.MULTILINE)


def _last_words(stderr: str) -> list[str]:
    """Return what was said just before a crash, and where it was."""
    words = []
    match = _FATAL.search(stderr)
    before = stderr[: match.start()] if match else stderr
    said = before.strip().splitlines()[-1:]
    if said:
        words.append(_shorten(said[0]))
    elif match and ":" in match[1]:  # more than the name of a signal
        words.append(_shorten(match[1]))
    frame = _frame(stderr)
    if frame:
        words.append(frame)
    return words


def _frame(stderr: str) -> str:
    """Return the innermost frame that faulthandler showed, as one phrase."""
    match = re.search(r'^  File "(.*)", line (\d+) in (\S+)$', stderr, re.MULTILINE)
    return f"in {match[3]} ({os.path.basename(match[1])}:{match[2]})" if match else ""


def _error_line(error: dict[str, Any]) -> str:
    line = _shorten(error["text"])
    if error["type"] == "SystemExit":
        return f"it calls sys.exit({line}) when it is imported"
    if error["type"] == "EOFError":
        return f"EOFError: {line} (it reads standard input)"
    return f"{error['type']}: {line}" if line else str(error["type"])


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return _shorten(lines[0].strip()) if lines else ""


def _shorten(text: str, width: int = 200) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _list_extensions(result: Result, outcomes: Iterable[dict[str, Any]]) -> None:
    kinds: dict[str, str] = {}
    for outcome in outcomes:
        # The first workers get copies of those that declare support as well: they are asked
        # there. So later ones tell more.
        for name in _own(outcome["loaded"], result.module):
            kinds[name] = outcome["loaded"][name]
    result.copies = sorted(name for name, kind in kinds.items() if kind == "copy")
    result.native = sorted(name for name, kind in kinds.items() if kind == "native")


def _own(names: Iterable[str], module: str) -> list[str]:
    """Leave out the standard library's extension modules, unless `module` is from there."""
    standard = _is_standard(module)
    return [name for name in names if standard or not _is_standard(name)]


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


def _count(n: int, noun: str, plural: str | None = None) -> str:
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


# ---- all modules -------------------------------------------------------------------------


def check(
    targets: Sequence[Target],
    *,
    extensions: str = "auto",
    timeout: float = 120.0,
    jobs: int = 1,
    deep: bool = False,
    progress: Callable[[int, Target], None] | None = None,
) -> list[Result]:
    """Try modules in workers.

    Parameters
    ----------
    targets : sequence of Target
        What to try.
    extensions : {"auto", "strict", "native"}
        How workers load extension modules; see `InterpreterPool`.
    timeout : float
        Seconds for each of a module's two processes.
    jobs : int
        Modules tried at a time. More than one falsifies the times.
    deep : bool
        Also import every extension module that lies below each module.
    progress : callable, optional
        Called with the number of modules begun before and the one that is begun.

    Returns
    -------
    list of Result
        In the order of `targets`.

    Notes
    -----
    Blocks until all are done. KeyboardInterrupt ends the processes that run.
    """
    options = {"extensions": extensions}
    stop = threading.Event()

    def try_one(number: int, target: Target) -> Result:
        if progress is not None:
            progress(number, target)
        below = [name for name in target.compiled if name != target.module] if deep else []
        main = run_trial(target, "main", timeout=timeout, deep=below, stop=stop)
        event = main.get("main")
        if event is None or event["outcome"]["error"] is not None:
            return judge(target, main, None)
        if event["wrote_bytecode"]:
            # The time was that of a compiler, mostly.
            second = run_trial(target, "main", timeout=timeout, deep=below, stop=stop)
            main = second if second.get("main") is not None else main
        # What main cannot import says nothing about workers.
        below = [name for name in below if name not in event["outcome"]["deep"]]
        run = run_trial(target, "workers", timeout=timeout, deep=below, options=options, stop=stop)
        return judge(target, main, run)

    with ThreadPoolExecutor(jobs) as executor:
        futures = [executor.submit(try_one, *item) for item in enumerate(targets)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
            raise


# ---- for people, and for machines ------------------------------------------------------------


def as_json(results: Sequence[Result], extensions: str) -> str:
    """Return the results as a JSON document."""
    summary = dict.fromkeys(STATUSES, 0)
    for result in results:
        summary[result.status] += 1
    document = {
        "schema": SCHEMA,
        "subinterp": subinterp.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "extensions": extensions,
        "summary": summary,
        "modules": [asdict(result) for result in results],
    }
    return json.dumps(document, indent=2)


def _seconds(value: float | None, main: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.2f} s" if value < 9.995 else f"{value:.0f} s"
    # Of a few milliseconds, most is noise.
    if main is not None and main >= 0.01:
        text += f" ({value / main:.1f}x)"
    return text


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f} MB"


def explain(result: Result) -> str:
    """Return in one line why a module's status is what it is."""
    if result.ok:
        parts = []
        if result.copies:
            parts.append(_count(len(result.copies), "private copy", "private copies"))
            if result.native:
                parts.append(f"{len(result.native)} as is")
        elif result.native:
            parts.append(f"{_count(len(result.native), 'extension module')} as is")
        if result.missing:
            names = ", ".join(result.missing[:2]) + (", ..." if len(result.missing) > 2 else "")
            parts.append(f"without {len(result.missing)} that main has ({names})")
        if not parts and result.compiled:
            n = _count(result.compiled, "extension module")
            parts.append(f"imports none of its {n}: try --deep")
        return ", ".join(parts) or "no extension modules"
    more = len(result.failures) - 1
    return (result.reason or "") + (f" (and {more} more)" if more > 0 else "")


def as_text(results: Sequence[Result], *, verbose: bool = False, width: int = 0) -> str:
    """Return the results as a table for people, with a last line that sums up.

    Parameters
    ----------
    results : sequence of Result
        What was found.
    verbose : bool
        Below each module: its extension modules, notes and output.
    width : int
        Columns; longer lines are cut. 0: as long as they are.
    """
    header = ("module", "version", "loads", "main", "two at once", "one more", "memory", "why")
    rows = [
        (
            result.module,
            result.version or "",
            result.status,
            _seconds(result.seconds["main"], None),
            _seconds(max(result.seconds["together"], default=None), result.seconds["main"]),
            _seconds(result.seconds["next"], result.seconds["main"]),
            _megabytes(result.memory["next"]),
            explain(result),
        )
        for result in results
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for number, row in enumerate([header, *rows]):
        cells = [
            cell.rjust(n) if 3 <= i <= 6 else cell.ljust(n)
            for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        lines.append(line if verbose or not width else _shorten(line, max(width, 40)))
        if verbose and number:
            lines += _details(results[number - 1])
    lines += ["", summarize(results)]
    return "\n".join(lines)


def _details(result: Result) -> list[str]:
    lines = []
    for title, names in (
        ("copies", result.copies),
        ("as is", result.native),
        ("in main only", result.missing),
    ):
        if names:
            lines += textwrap.wrap(
                f"{title}: {', '.join(names)}",
                100,
                initial_indent="    ",
                subsequent_indent="      ",
                break_long_words=False,
            )
    lines += [f"    {name}: {why}" for name, why in result.failures.items()]
    lines += [f"    note: {note}" for note in result.notes]
    lines += [f"    | {line}" for line in result.output.rstrip().splitlines()]
    return lines


def summarize(results: Sequence[Result]) -> str:
    """Return one line that counts what was found."""
    n = {status: sum(r.status == status for r in results) for status in STATUSES}
    kinds = [
        f"{n[status]} {words}"
        for status, words in (
            ("native", "as they are"),
            ("copy", "with private copies"),
            ("pure", "pure Python"),
        )
        if n[status]
    ]
    loads = sum(result.ok for result in results)
    text = f"{loads} of {_count(len(results), 'module')} load in workers"
    if kinds:
        text += f" ({', '.join(kinds)})"
    others = [
        f"{n[status]} {words}"
        for status, words in (
            ("refused", "refused"),
            ("fails", "raised"),
            ("crashes", "crashed"),
            ("hangs", "hung"),
            ("unavailable", "cannot be imported at all"),
        )
        if n[status]
    ]
    return text + "".join(f"; {other}" for other in others) + "."


def exit_status(results: Sequence[Result], targets: Sequence[Target]) -> int:
    """Return 0 if all is well, 1 if not.

    What cannot be imported at all counts only if it was named.
    """
    for result, target in zip(results, targets, strict=True):
        if not result.ok and (target.named or result.status != "unavailable"):
            return EXIT_FOUND
    return EXIT_OK


# ---- the command -----------------------------------------------------------------------------

DESCRIPTION = """\
Import modules in workers, and report which of them load, how, and at what cost.

Each module is imported by a main interpreter alone; then, in another process, by two
workers at once, by one more worker, and, when these have ended, by main and a new worker.
A module that crashes, hangs or ends its process is a finding.
"""

EPILOG = """\
loads:
  native       as it is
  copy         with private copies of the extension modules that do not declare support
  pure         it imports no extension modules
  refused      an ImportError, in workers only
  fails        another exception, in workers only
  crashes      the process was ended by a signal, or before its time
  hangs        the process did not end in time
  unavailable  a main interpreter cannot import it either

times: of the import, and compared to main's. memory: by how much the process grows
with one more worker that has the module (its share, PSS).

exit status:
  0  every module loads
  1  one was refused, failed, crashed or hung, or one that was named is unavailable
  2  wrong arguments, or a name that no module has
  130  interrupted
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="module",
        help="dotted names; default: the top-level modules of all installed distributions "
        "that have compiled files",
    )
    parser.add_argument(
        "--all", action="store_true", help="by default, those without compiled files as well"
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="import every extension module below each module as well",
    )
    parser.add_argument(
        "--extensions",
        choices=("auto", "strict", "native"),
        default="auto",
        help="how workers load extension modules, as for InterpreterPool (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds_argument,
        default=120.0,
        metavar="SECONDS",
        help="for each of a module's two processes (default: 120)",
    )
    parser.add_argument(
        "--jobs",
        "-j",
        type=_jobs_argument,
        default=1,
        metavar="N",
        help="modules tried at a time; with more than one (default), times say little",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument(
        "--verbose",
        "-v",
        action="store_true",
        help="list extension modules, notes, and what a module that failed wrote",
    )


def _seconds_argument(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _jobs_argument(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 256")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Carry the command out.

    Parameters
    ----------
    args : argparse.Namespace
        What the parser of `configure` made.

    Returns
    -------
    int
        The exit status.
    """
    try:
        if args.modules and args.all:
            raise UsageError("--all goes without names of modules")
        targets = named(args.modules) if args.modules else installed(args.all)
    except UsageError as error:
        print(f"python -m subinterp check: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    show = _Progress(len(targets)) if sys.stderr.isatty() else None
    try:
        results = check(
            targets,
            extensions=args.extensions,
            timeout=args.timeout,
            jobs=args.jobs,
            deep=args.deep,
            progress=show,
        )
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        if show is not None:
            show.clear()
    if args.json:
        print(as_json(results, args.extensions))
    elif results:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        print(as_text(results, verbose=args.verbose, width=width))
    else:
        print("No installed distribution has compiled files; name modules, or use --all.")
    return exit_status(results, targets)


class _Progress:
    """Shows on a terminal which module is being tried."""

    def __init__(self, total: int) -> None:
        self.total = total

    def __call__(self, number: int, target: Target) -> None:
        sys.stderr.write(f"\r\033[K{number + 1}/{self.total} {target.module}")
        sys.stderr.flush()

    def clear(self) -> None:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()

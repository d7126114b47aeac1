"""What `subinterp.check` runs in a process of its own, to try one module.

The parent passes the text of this file with ``python -c``, so that nothing of
the package is imported where a module is tried in the main interpreter. The
same text is executed inside the workers. What happened is appended to a file,
one line of JSON for each step, so that the parent knows how far a process
came that crashed.
"""

import gc
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def describe(exc: BaseException) -> "dict[str, Any]":
    """Return an exception as plain values."""
    import traceback

    trace = "".join(traceback.format_exception(exc))
    # The exception, then what it came from: type and first line of each.
    chain: list[tuple[str, str]] = []
    last: BaseException | None = exc
    while last is not None and len(chain) < 20:
        kind = "ImportError" if isinstance(last, ImportError) else type(last).__name__
        chain.append((kind, first_line(last)))
        last = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
    return {
        "type": type(exc).__name__,
        "text": first_line(exc),
        "chain": chain,
        "traceback": trace[-20000:],
    }


def first_line(exc: BaseException) -> str:
    """Return the first line of an exception's text that is not empty."""
    try:
        text = str(exc)
    except Exception:
        return "(its text could not be made)"
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def present() -> "set[str]":
    """Return the names of the modules here that came from the files of extension modules."""
    from importlib.machinery import EXTENSION_SUFFIXES

    suffixes = tuple(EXTENSION_SUFFIXES)
    found = set()
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        name, path = getattr(spec, "name", None), getattr(spec, "origin", None)
        if isinstance(name, str) and isinstance(path, str) and path.endswith(suffixes):
            found.add(name)
    return found


def loaded() -> "dict[str, str]":
    """Return name -> kind ("native", "copy", "builtin") of the extension modules loaded here."""
    loader: Any = sys.modules.get("subinterp._extensions")
    return dict.fromkeys(present(), "native") if loader is None else dict(loader.loaded())


def wrote_bytecode(since: float) -> bool:
    """Return True if a module that is loaded was compiled after that time (of `time.time`)."""
    for module in list(sys.modules.values()):
        path = getattr(getattr(module, "__spec__", None), "cached", None)
        try:
            if isinstance(path, str) and os.stat(path).st_mtime >= since:
                return True
        except (OSError, ValueError):
            pass
    return False


def threads() -> int:
    """Return how many native threads this process has."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def try_import(name: str, deep: "list[str]", fd: int) -> "dict[str, Any]":
    """Import a module in this interpreter, then those of `deep`, and look at it.

    Each step is announced in the report `fd`, with the name of what is imported.
    """
    before, present_before = loaded(), present()
    outcome: dict[str, Any] = {"error": None, "deep": {}}
    announce(fd, "importing", name)
    started = time.perf_counter()
    try:
        __import__(name)
    except BaseException as exc:
        outcome["error"] = describe(exc)
    outcome["seconds"] = time.perf_counter() - started
    outcome["present"] = sorted(present() - present_before)
    if outcome["error"] is None:
        for other in deep:
            announce(fd, "importing", other)
            try:
                __import__(other)
            except BaseException as exc:
                outcome["deep"][other] = describe(exc)
        # Visit every object that the module made.
        announce(fd, "collecting", name)
        gc.collect()
    outcome["loaded"] = {k: v for k, v in loaded().items() if k not in before}
    announce(fd, "imported", name)
    return outcome


def announce(fd: int, step: str, name: str) -> None:
    """Tell the parent what is about to be done, without importing anything for it."""
    # A module's name needs no escapes; one write, so that lines of two workers stay whole.
    os.write(fd, f'{{"at": "{step}", "name": "{name}"}}\n'.encode())


def report(fd: int, **values: "Any") -> None:
    """Tell the parent what happened."""
    import json

    # ASCII, so that no surrogate in an exception's text stands in the way.
    os.write(fd, (json.dumps(values) + "\n").encode())


def memory() -> "int | None":
    """Return this process's share of memory (PSS) in bytes, or None if it is not known."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def growth(before: "int | None") -> "int | None":
    """Return by how many bytes the process grew since `before`."""
    now = memory()
    return None if now is None or before is None else now - before


def leave(fd: int) -> None:
    """Announce that nothing is left but the process's end."""
    sys.stderr.flush()
    # Standard error is a file: what is written behind this place belongs to the end.
    report(fd, at="exit", stderr=os.lseek(2, 0, os.SEEK_CUR))


def in_main(config: "dict[str, Any]") -> None:
    """Try the module in the main interpreter."""
    fd = config["report"]
    now, before, n_threads = time.time(), memory(), threads()
    outcome = try_import(config["module"], config["deep"], fd)
    # Not before: it must not be the first to import what the module needs.
    report(
        fd,
        at="main",
        memory=growth(before),
        outcome=outcome,
        threads=threads() - n_threads,
        wrote_bytecode=wrote_bytecode(now),
    )
    leave(fd)


def in_workers(config: "dict[str, Any]", source: str) -> None:
    """Try the module in two workers at once, in one more, and in a later one beside main."""
    fd, name = config["report"], config["module"]
    from subinterp import InterpreterPool

    # Nothing of ours is imported in the workers: a built-in function, plain values.
    expression = "exec(compile(source, file, 'exec'), space) or space['try_import'](*args)"

    def task(deep: "list[str]") -> "tuple[str, dict[str, Any]]":
        space = {"__name__": "subinterp.check"}
        values = {"source": source, "file": __file__, "space": space, "args": (name, deep, fd)}
        return expression, values

    options = config["options"]
    with InterpreterPool(2, **options) as pool, InterpreterPool(1, **options) as third:
        pool.broadcast(eval, "None", {})  # both are there
        report(fd, at="together")
        outcomes = pool.broadcast(eval, *task(config["deep"]))
        report(fd, at="together done", outcomes=outcomes, in_main=name in sys.modules)
        if all(outcome["error"] is None for outcome in outcomes):
            before = memory()
            report(fd, at="next")
            outcome = third.submit(eval, *task([])).result()
            report(fd, at="next done", outcome=outcome, memory=growth(before))
        report(fd, at="end")
    if any(outcome["error"] is not None for outcome in outcomes):
        leave(fd)
        return
    report(fd, at="main too")
    try_import(name, [], fd)
    report(fd, at="again")
    with InterpreterPool(1, **options) as pool:
        outcome = pool.submit(eval, *task(config["deep"])).result()
        report(fd, at="again done", outcome=outcome)
        report(fd, at="end again")
    leave(fd)


def start(config: "dict[str, Any]", source: str) -> None:
    """Do what the parent asks for."""
    sys.argv[:] = [""]
    sys.path[:] = config["path"]
    if config["where"] == "main":
        in_main(config)
    else:
        in_workers(config, source)

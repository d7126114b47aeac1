"""``python -m subinterp info``: the runtime as a tree, versions, what is supported here."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from typing import Any

import subinterp
from subinterp import _core, runtime

DESCRIPTION = """\
Show the runtime of a process as a tree: its interpreters, their threads, who holds
which lock. Without PID: of this command itself, which shows what is supported here.

A program can be looked at once it has called subinterp.serve_top().
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = DESCRIPTION
    parser.add_argument("pid", nargs="?", metavar="PID", help="the process to look at")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--fields",
        action="store_true",
        help="also print where the fields of 2019's _PyRuntimeState live in this version",
    )
    parser.add_argument(
        "--socket", metavar="PATH", help="the path that the program gave to serve_top()"
    )


def run(args: argparse.Namespace) -> int:
    """Print it. Returns the exit status: 1 if the process cannot be looked at."""
    if args.pid is None and args.socket is None:
        found = facts()
    else:
        from subinterp import _top

        try:
            with _top.Client(_top.number(args.pid), args.socket) as client:
                found = client.ask("info")
        except (OSError, ValueError) as exc:
            print(f"subinterp info: {exc}", file=sys.stderr)
            return 1
    if not args.fields:
        del found["fields"]
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(text(found)))
    return 0


def facts() -> dict[str, Any]:
    """Return all of it, as plain values that JSON takes."""
    return {
        "versions": {
            "subinterp": subinterp.__version__,
            "python": platform.python_version(),
            "built with": ".".join(str(_core.built_version() >> at & 255) for at in (24, 16, 8)),
            "platform": platform.platform(),
        },
        "support": support(),
        "snapshot": asdict(runtime.snapshot()),
        "fields": [asdict(field) for field in runtime.fields()],
    }


def support() -> dict[str, str]:
    """Return what is supported in this process: "yes", or why not and what is done instead."""
    layout = runtime.layout()
    no_copies = _core.extensions_unsupported()
    waits = "yes"
    if layout["thread_waits"] is None:
        waits = "from what the system says that threads sleep on"
        if layout["lock_size"] is None:
            waits = "no: this Python does not tell"

    def known(*names: str) -> str:
        if all(layout[name] is not None for name in names):
            return "yes"
        return "no: the layout of this Python's runtime was not recognised there"

    return {
        "interpreters with their own lock": "yes",
        "private copies of extension modules": f"no: {no_copies}" if no_copies else "yes",
        "freeing blocked calls of interrupted tasks": "yes"
        if _core.can_free_blocked_calls()
        else "no: only on x86-64; Python code is interrupted all the same",
        "memory by interpreter": "yes"
        if _core.has_arenas()
        else "no: Python does not use its own allocator here",
        "list of interpreters": known("list"),
        "thread states": known("threads"),
        "locks and their holders": known("lock"),
        "switches of locks": known("switches"),
        "threads that wait for a lock": waits,
        "counters of garbage collectors": known("enabled"),
        "values of the runtime's fields": "yes"
        if layout["headers"] is not None
        else "some: this was built with the headers of another release",
    }


# ---- text --------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> list[str]:
    """Return the lines of `facts`, also of another process."""
    lines = [f"{name}: {value}" for name, value in found["versions"].items()]
    lines += ["", "supported here:"]
    lines += [f"  {name}: {value}" for name, value in found["support"].items()]
    lines += ["", *tree(found["snapshot"])]
    if "fields" in found:
        lines += ["", "fields that _PyRuntimeState had in May 2019:"]
        for field in found["fields"]:
            name = field["name"] + (f" ({field['part']})" if field["part"] else "")
            value = "" if field["value"] is None else f" = {field['value']}"
            path = f".{field['path']}" if field["path"] else ""
            if field["where"] == "thread-local":
                path = f" {field['path']}"
            lines.append(f"  {name}: {field['where']}{path}{value}; {field['about']}")
    return lines


def tree(snapshot: dict[str, Any]) -> list[str]:
    """Return the lines of a snapshot, as plain values."""
    lines = [f"process {snapshot['pid']}"]
    if not snapshot["known"]:
        lines.append("(the layout of its runtime was not recognised)")
    locks = {lock["interpreter"]: lock for lock in snapshot["locks"]}
    interpreters = snapshot["interpreters"]
    for n, one in enumerate(interpreters):
        last = n == len(interpreters) - 1
        lines.append(("`-- " if last else "|-- ") + _interpreter(one, locks))
        stem = "    " if last else "|   "
        threads = one["threads"] or ()
        for k, thread in enumerate(threads):
            branch = "`-- " if k == len(threads) - 1 else "|-- "
            lines.append(stem + branch + _thread(thread))
    return lines


def _interpreter(one: dict[str, Any], locks: dict[int, Any]) -> str:
    parts = []
    if one["id"] == 0:
        parts.append("main")
    elif one["workers"]:
        parts += [
            f"worker {worker['pool_name']}-{worker['index']}, {worker['state']}"
            for worker in one["workers"]
        ]
    elif one["made_by"] is not None:
        parts.append(f"made by {one['made_by']}")
    if one["state"] not in ("ready", None):
        parts.append(one["state"])
    if one["lock"] is not None:
        lock = locks[one["lock"]]
        whose = "own lock" if one["lock"] == one["id"] else f"lock of {one['lock']}"
        held = "free"
        if lock["locked"]:
            held = "held" if lock["holder"] is None else f"held by {lock['holder']}"
        switches = "" if lock["switches"] is None else f", {lock['switches']} switches"
        parts.append(f"{whose} {held}{switches}")
    if one["own_allocator"] is not None:
        parts.append("own allocator" if one["own_allocator"] else "main's allocator")
    if one["modules"] is not None:
        parts.append(f"{len(one['modules'])} modules")
    if one["answer"] != "answered":
        parts.append(one["answer"])
    return f"interpreter {one['id']}: " + "; ".join(parts)


def _thread(thread: dict[str, Any]) -> str:
    what = f"thread {thread['native_id'] or '(none)'}"
    if thread["name"]:
        what += f" {thread['name']}"
    lock = {
        "holds": "holds the lock",
        "waits": "waits for the lock",
        "detached": "without the lock",
    }.get(thread["lock"])
    if lock is not None:
        what += f": {lock}"
    if thread["function"]:
        what += f", in {thread['function']} ({thread['file']}:{thread['line']})"
    return what

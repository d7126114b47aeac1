"""What tests of extension modules send to workers by name; imports only what Python has."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import threading
import traceback

from _work import interpreter_id


def use(module, function, *args):
    """Import a module and call a function of it."""
    return getattr(importlib.import_module(module), function)(*args)


def attempt(module, function=None, *args):
    """Import a module, and call a function of it; tell what came of it.

    Returns
    -------
    kind : str
        "ok", or the name of the exception's type.
    what : object
        The function's result; or the exception's text.
    """
    try:
        module = importlib.import_module(module)
        return "ok", (getattr(module, function)(*args) if function else None)
    except Exception as error:
        return type(error).__name__, str(error)


def explain(module):
    """Import a module that cannot be; return all that can be seen of the error."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return {
            "type": type(error).__name__,
            "bases": [base.__name__ for base in type(error).__mro__],
            "text": str(error),
            "name": getattr(error, "name", None),
            "path": getattr(error, "path", None),
            "traceback": "".join(traceback.format_exception(error)),
            "left": module in sys.modules,
        }
    return {"type": None}


def loaded():
    """Return how this interpreter loaded extension modules (but Python's own): name -> way."""
    extensions = sys.modules.get("subinterp._extensions")
    ways = {} if extensions is None else extensions.loaded()
    return {
        name: way
        for name, way in ways.items()
        if name.partition(".")[0] not in sys.stdlib_module_names
    }


def forget(*names):
    """Take modules out of `sys.modules`."""
    for name in names:
        sys.modules.pop(name, None)


def mapped(part):
    """Count this process's memory maps whose path has this part."""
    with open("/proc/self/maps") as maps:
        return sum(part in line for line in maps)


def places(module):
    """Return every place that says where a module came from."""
    module = importlib.import_module(module)
    return {
        "file": module.__file__,
        "origin": module.__spec__.origin,
        "loader": getattr(module.__loader__, "path", None),
        "repr": repr(module),
        "name": module.__name__,
        "spec name": module.__spec__.name,
        "package": module.__package__,
    }


def use_boxes(module, rounds):
    """Use the static type, the exception and the counter of a STATEFUL module; check it all."""
    import gc

    ext = importlib.import_module(module)
    here = interpreter_id()

    class Derived(ext.Box):
        pass

    first = ext.bump()
    for number in range(rounds):
        box = Derived((here, number))
        assert box.value == (here, number)
        loop = ext.Box()
        loop.__init__([loop])
        before = ext.keep((here, number))
        assert before is None or before[0] == here, before
        try:
            ext.fail("text")
        except ext.Error as error:
            assert str(error) == "text"
        else:
            raise AssertionError("did not raise")
    gc.collect()
    assert Derived in ext.Box.__subclasses__()
    ext.keep(None)
    # All others count in a memory of their own.
    return first, ext.bump(), ext.find() is ext


def call_back(module, threads, calls, how):
    """Have threads of C code call back; tell whether all came to this interpreter."""
    ext = importlib.import_module(module)
    here = interpreter_id()
    seen = set()

    def callback():
        seen.add((interpreter_id(), sys.modules.get("_extwork") is not None))
        return len([[] for _ in range(10)])

    total = ext.run(callback, threads, calls, how)
    return total == threads * calls * 10 and seen == {(here, True)}


def call_back_here(module):
    """The same on the thread that calls, and on threads of `threading`."""
    ext = importlib.import_module(module)
    here = interpreter_id()
    seen = []

    def callback():
        seen.append((interpreter_id(), threading.get_ident()))
        return threading.get_ident()

    answers = []

    def ask():
        answers.append(ext.own(callback) == threading.get_ident())

    ask()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers == [True] * 5 and {interp for interp, _ in seen} == {here}


def pend(module):
    """Have a pending call asked for by a foreign thread; return where it ran."""
    import time

    ext = importlib.import_module(module)
    seen = []
    ext.pend(lambda: seen.append((interpreter_id(), threading.get_ident())))
    deadline = time.monotonic() + 20
    while not seen and time.monotonic() < deadline:
        time.sleep(0.001)
    return seen == [(interpreter_id(), threading.get_ident())]


def import_in_threads(modules, threads):
    """Import modules in several threads at once; return what went wrong, and how many objects."""
    errors, found = [], []
    start = threading.Barrier(threads)

    def run(number):
        start.wait(30)
        order = modules[number % len(modules) :] + modules[: number % len(modules)]
        try:
            found.append({name: id(importlib.import_module(name)) for name in order})
        except BaseException as error:
            errors.append(f"{type(error).__name__}: {error}")

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    same = all(one == found[0] for one in found)
    return errors, same, len(found)


def reload_repeatedly(module, rounds):
    """Import a module again and again; return how many more memory maps its copies take."""
    before = None
    for _ in range(rounds):
        ext = importlib.import_module(module)
        assert ext.filled == 1
        ext.bump()
        with open("/proc/self/maps") as maps:
            count = len(maps.readlines())
        if before is None:
            before = count
        forget(module)
    return count - before


def temp_files():
    """List the temp folder, and what this process has open."""
    listed = sorted(os.listdir(tempfile.gettempdir()))
    opened = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if "memfd:" in target or target.endswith(".so") or " (deleted)" in target:
            opened.append(target)
    return listed, opened

"""What the tests of several workers in one interpreter run in them."""

from __future__ import annotations

import contextvars
import threading
import time

from subinterp import interpreters

mark = contextvars.ContextVar("mark", default=None)
local = threading.local()
seen = []
kept = {}


def where():
    """Return the interpreter, the thread's identity and its name, as `threading` has it."""
    thread = threading.current_thread()
    assert thread.ident == threading.get_ident()
    return interpreters.get_current().id, thread.ident, thread.name


def meet(barrier):
    """Wait until all are there; return where this one is."""
    barrier.wait(60)
    return where()


def note(value):
    """Keep a value in this module; return all that was kept."""
    seen.append(value)
    return list(seen)


def count_objects_of(fn):
    """Keep the function's object; return how many there are of that name here."""
    kept.setdefault(fn.__qualname__, set()).add(id(fn))
    return len(kept[fn.__qualname__])


def leave_marks(barrier, value):
    """Set what belongs to a thread, and return it once the others have set theirs."""
    before = mark.get(), getattr(local, "value", None)
    mark.set(value)
    local.value = value
    barrier.wait(60)
    return before, (mark.get(), local.value)


def spell(barrier, word):
    """Print a line in pieces, while others do so as well."""
    for _ in range(20):
        for letter in word:
            print(letter, end="")
            time.sleep(0.0002)
        print()
    barrier.wait(60)


def log_once(barrier):
    import logging

    barrier.wait(60)
    logging.getLogger("threads").warning("here")
    return where()


def start_thread(daemon):
    thread = threading.Thread(target=pow, args=(2, 3), daemon=daemon)
    thread.start()
    thread.join()
    return thread.daemon


def hold_copies_and_meet(barrier):
    """Make this interpreter one that is worth parking."""
    from subinterp import _core

    _core._pretend_copies()
    barrier.wait(60)
    return interpreters.get_current().id


def hold_the_lock_once_told(flag, steps):
    """Wait for a byte, then compute in C with the interpreter's lock held."""
    import itertools

    flag[0] = 1
    while flag[0] != 2:
        time.sleep(0.001)
    return sum(itertools.repeat(1, steps))


def read_all(fd):
    import os

    return os.read(fd, 100)

"""What the tests of parking run in workers. It lies outside of what a parked interpreter keeps."""

from __future__ import annotations

import sys


def hold_copies():
    """Make this interpreter one that is worth parking; return its number."""
    from subinterp import _core

    _core._pretend_copies()
    return _core.current_interpreter_id()


def run(source):
    """Execute source text; return what it binds to `result`."""
    names = {}
    exec(source, names)
    return names.get("result")


def run_holding(source):
    hold_copies()
    return run(source)


def leave_thread(seconds):
    """Start a thread that outlives the task, and will end by itself."""
    import threading
    import time

    hold_copies()
    threading.Thread(target=time.sleep, args=(seconds,)).start()


def leave_executor():
    """Leave an idle executor, whose thread never ends by itself."""
    from concurrent.futures import ThreadPoolExecutor

    sys.kept = ThreadPoolExecutor(1)
    sys.kept.submit(abs, -1).result()
    return hold_copies()


def fail():
    hold_copies()
    raise ValueError("this initializer fails")


def nested(kept):
    """Use a pool inside a worker; return the interpreters it ran in."""
    import json  # a module that stays
    import threading

    import subinterp

    hold_copies()
    done = threading.Event()
    pool = subinterp.InterpreterPool(1)
    future = pool.submit(hold_copies)
    future.add_done_callback(lambda f: done.set())
    inner = future.result(30)
    assert done.wait(30), "the callback never ran"
    if kept:
        json.kept_pool = pool
    else:
        pool.shutdown()
    return inner


def keep_end(end):
    """Keep a channel's end where it survives."""
    import json

    json.kept_end = end
    return hold_copies()


def use_kept_end(message):
    """Return the error of the end that was kept, after using a new channel."""
    import json

    import subinterp

    recv, send = subinterp.create_channel()
    send.send(message)
    assert recv.recv(timeout=30) == message
    try:
        json.kept_end.send_nowait(message)
    except subinterp.ChannelClosed:
        return "closed"
    finally:
        del json.kept_end
    return "open"

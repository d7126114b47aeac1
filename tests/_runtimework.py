"""Tasks that are looked at, importable by workers: this module imports no test tools."""

import time


def spin(seconds):
    """Run Python code."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "done"


def sleep(seconds):
    time.sleep(seconds)
    return "done"


def count(n):
    """Hold the lock in C, whatever signals come."""
    import itertools

    return sum(itertools.repeat(1, n))


def hog(seconds):
    """Hold the lock in C."""
    import ctypes

    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return "done"


def wait_on(receiver):
    return receiver.recv(timeout=60)


def spin_until(receiver):
    """Run Python code until something comes."""
    from subinterp.errors import ChannelEmpty

    while True:
        try:
            return receiver.recv_nowait()
        except ChannelEmpty:
            pass


def spin_in_two_threads(receiver):
    import threading

    over = threading.Event()

    def inner():
        while not over.is_set():
            pass

    thread = threading.Thread(target=inner, name="the second")
    thread.start()
    try:
        return spin_until(receiver)
    finally:
        over.set()
        thread.join()


def snapshots(n, timeout=0.02):
    """Take snapshots here; return how many interpreters the largest had."""
    from subinterp import runtime

    most = 0
    for _ in range(n):
        seen = runtime.snapshot(timeout)
        check(seen)
        most = max(most, len(seen.interpreters))
    return most


def own(snapshot):
    """The interpreter that looked, in its own snapshot."""
    return next(one for one in snapshot.interpreters if one.id == snapshot.interpreter)


def own_snapshot():
    from subinterp import runtime

    return own(runtime.snapshot())


def ask_back_and_forth(seconds):
    """Look, patiently, for a while; return how often an interpreter with a lock held or free
    was said to be blocked."""
    from subinterp import runtime

    until = time.monotonic() + seconds
    answers = []
    while time.monotonic() < until:
        answers.append([one.answer for one in runtime.snapshot(30).interpreters])
    return answers


def check(seen):
    """What holds of every snapshot, whatever goes on."""
    ids = [one.id for one in seen.interpreters]
    assert len(set(ids)) == len(ids)
    assert 0 in ids and seen.interpreter in ids
    assert {lock.interpreter for lock in seen.locks} <= set(ids)
    for one in seen.interpreters:
        assert one.lock is None or any(lock.interpreter == one.lock for lock in seen.locks)
        assert one.state in ("starting", "ready", "ending")
        assert one.answer in ("answered", "busy", "blocked", "parked", "ending", "foreign")
        assert (one.modules is not None) == (one.answer == "answered")
        for thread in one.threads:
            assert thread.lock in ("holds", "waits", "detached", None)
    for lock in seen.locks:
        holders = [
            thread
            for one in seen.interpreters
            if one.id in lock.used_by
            for thread in one.threads
            if thread.lock == "holds"
        ]
        assert len(holders) <= 1


def name_in_python(raises=False):
    """Have Python code run whenever this thread is asked for its name."""
    import threading

    class Named(threading.Thread):
        @property
        def _name(self):
            if raises:
                raise RuntimeError("not now")
            for _ in range(2000):
                pass
            return "named in Python"

        @_name.setter
        def _name(self, name):
            pass

    threading._active[threading.get_ident()].__class__ = type(
        "Named", (type(threading.current_thread()),), {"_name": Named._name}
    )


def catch_nothing(seconds):
    """Run Python code; report what was raised in it."""
    try:
        return spin(seconds)
    except BaseException as exc:
        return repr(exc)


def pretend_copies():
    from subinterp import _core

    _core._pretend_copies()
    return _core.current_interpreter_id()

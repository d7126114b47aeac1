"""Signals: what Ctrl-C, handlers of the user and the end of the program do to waits and to tasks.

Each script is a process of its own, which says "ready" when it is to get the
next signal. A task runs for ten minutes unless it is stopped, and no script may take
one minute; so whatever is not stopped makes its test fail. What a Ctrl-C does in the
usual waits is in test_life.py, and for locks in test_sync.py, too.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest

from _support import ScriptResult, run_script, script_env

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1

# What the interpreter writes about a KeyboardInterrupt, at whatever moment it comes.
ITS_OWN_WORDS = (
    "Traceback",
    "KeyboardInterrupt",
    "During handling",
    "The above exception",
    "Exception ignored on threading shutdown",
    "Exception ignored in: <module 'threading'",
    "Exception ignored in atexit callback",
    "lost sys.stderr",
    "asyncio.exceptions.CancelledError",
    " ",
)

PRELUDE = """
import asyncio, collections, itertools, os, signal, subprocess, sys, threading, time
import concurrent.futures as futures
from concurrent.futures import as_completed, wait
from subinterp import *
from subinterp import interpreters

def ready():
    import os
    os.write(1, b"ready\\n")

def say(*words):
    print(*words, flush=True)

def watched(running, stopped, seconds=600):
    import time
    running.add(1)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            time.sleep(0.001)
    except BaseException:
        stopped.add(1)
        raise
    return "done"

def swallow(seconds=600):
    import time
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            while time.monotonic() < end:
                time.sleep(0.001)
        except BaseException:
            pass

def keep_the_lock(seconds=40):
    import ctypes
    ctypes.PyDLL(None).sleep(seconds)

def reach(counter, n):
    while counter.get() < n:
        time.sleep(0.002)

running, stopped = Counter(), Counter()
"""


def signalled(source, signals=(), *, flags=(), group=False, pause=0.05, timeout=60.0):
    """Run a script that gets a signal each time it says "ready".

    Parameters
    ----------
    source : str
        Follows the prelude.
    signals : sequence of signals or of (signal, times)
        The next one is sent a moment after the next "ready"; several times: in
        a row, `pause` seconds apart.
    flags : sequence of str
        For Python itself.
    group : bool
        To the whole process group, as a terminal does.
    """
    with tempfile.TemporaryDirectory(prefix="subinterp-test-") as folder:
        path = os.path.join(folder, "script.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(PRELUDE + textwrap.dedent(source))
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *flags, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=script_env(),
            cwd=folder,
            start_new_session=True,
        )
        send = os.killpg if group else os.kill
        waiting = list(signals)
        lines, errors = [], []

        def read():
            for line in process.stdout:
                if line != "ready\n":
                    lines.append(line)
                elif waiting:
                    what = waiting.pop(0)
                    number, times = what if isinstance(what, tuple) else (what, 1)
                    for _ in range(times):
                        time.sleep(pause)
                        with contextlib.suppress(ProcessLookupError):
                            send(process.pid, number)

        readers = [
            threading.Thread(target=read),
            threading.Thread(target=lambda: errors.append(process.stderr.read())),
        ]
        for reader in readers:
            reader.start()
        hung = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            hung = True
            process.send_signal(signal.SIGABRT)  # faulthandler shows the stacks
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
    result = ScriptResult(process.returncode, "".join(lines), errors[0], time.monotonic() - started)
    if hung:
        pytest.fail(f"the script did not end within {timeout} s\n{result}")
    assert not waiting, f"not sent: {waiting}\n{result}"
    return result


def ended_by_ctrl_c(result):
    """Its exit code is Python's own for Ctrl-C, and it says nothing but that."""
    # On 3.13 an evaluation of text, in any interpreter, makes CPython forget this code.
    forgotten = sys.version_info < (3, 14) and result.returncode == 1
    result.check(1 if forgotten else -INT)
    assert "KeyboardInterrupt" in result.stderr, result
    strange = [x for x in result.stderr.splitlines() if x and not x.startswith(ITS_OWN_WORDS)]
    assert not strange, f"{strange}\n{result}"
    return result


# What was waited for ----------------------------------------------------------------------------

SETUP = """
pair = running, stopped

def of_pair(pair):
    return watched(*pair)

def submitted(n=2):
    return [pool.submit(watched, *pair) for _ in range(n)]

async def gather():
    await asyncio.gather(*[pool.run(watched, *pair) for _ in range(2)])

async def amap():
    async for _ in pool.amap(of_pair, [pair] * 2, chunksize=1):
        pass

def when_running(n):
    def tell():
        reach(running, n)
        ready()
    threading.Thread(target=tell, daemon=True).start()

small, pool = InterpreterPool(2), InterpreterPool(3)
others = Counter(), Counter()
other = pool.submit(watched, *others)
reach(others[0], 1)
"""

# What is waited for, and how many tasks that is.
WAITS = {
    "result": ("submitted(1)[0].result()", 1),
    "exception": ("submitted(1)[0].exception(100)", 1),
    "map": ("list(pool.map(watched, [running] * 2, [stopped] * 2, chunksize=1))", 2),
    "imap_unordered": ("list(pool.imap_unordered(of_pair, [pair] * 2, chunksize=1))", 2),
    "starmap": ("pool.starmap(watched, [pair] * 2, chunksize=1)", 2),
    "broadcast": ("small.broadcast(watched, *pair)", 2),
    "wait": ("wait(submitted())", 2),
    "first of wait": ("wait(submitted(), 100, futures.FIRST_COMPLETED)", 2),
    "as_completed": ("list(as_completed(submitted()))", 2),
    "call": ("interpreters.create().call(watched, *pair)", 1),
    "run": ("asyncio.run(pool.run(watched, *pair))", 1),
    "gather": ("asyncio.run(gather())", 2),
    "amap": ("asyncio.run(amap())", 2),
    "shutdown": ("[small.submit(watched, *pair) for _ in pair]; small.shutdown()", 2),
}


@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_stops_what_was_waited_for(what):
    """That, and no more; the pool is as it was."""
    wait, n = WAITS[what]
    result = signalled(
        SETUP
        + f"""
when_running({n})
try:
    {wait}
except KeyboardInterrupt:
    say("interrupted")
reach(stopped, {n})
assert stopped.get() == {n} and not other.done() and others[1].get() == 0
other.interrupt()
assert type(other.exception()) is TaskInterrupted
assert list(pool.map(abs, range(-9, 0))) == list(range(9, 0, -1))
with pool:
    assert pool.submit(abs, -1).result() == 1
""",
        [INT],
    ).clean()
    assert result.stdout == "interrupted\n"


@pytest.mark.parametrize("what", WAITS)
def test_sys_exit_in_a_handler(what):
    """As Ctrl-C: what was waited for stops, or the program would wait for it at its end."""
    wait, n = WAITS[what]
    result = signalled(
        SETUP
        + f"""
signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))
other.interrupt()
when_running({n})
try:
    {wait}
finally:
    reach(stopped, {n})
    say("stopped")
""",
        [TERM],
    ).clean(7)
    assert result.stdout == "stopped\n"


@pytest.mark.parametrize(
    "what", ["result", "broadcast", "wait", "as_completed", "call", "shutdown"]
)
def test_exception_of_a_handler(what):
    """It ends the wait, as a timeout does; the tasks go on."""
    wait, n = WAITS[what]
    result = signalled(
        SETUP
        + f"""
class Alarm(Exception):
    pass

def handler(*args):
    raise Alarm

signal.signal(signal.SIGALRM, handler)
when_running({n})
try:
    {wait}
except Alarm:
    say("alarm")
time.sleep(0.1)
assert stopped.get() == 0 and not other.done()
other.interrupt()
small.terminate_workers()
os._exit(0)
""",
        [signal.SIGALRM],
    ).clean()
    assert result.stdout == "alarm\n"


def test_interrupted_task_stops_what_it_waits_for():
    """In `concurrent.futures.wait` as well: tasks of a second pool."""
    signalled(
        """
def outer(inner, watched, running, stopped):
    from concurrent.futures import wait
    wait([inner.submit(watched, running, stopped) for _ in range(2)])

with InterpreterPool(1) as pool, InterpreterPool(2) as inner:
    future = pool.submit(outer, inner, watched, running, stopped)
    reach(running, 2)
    future.interrupt()
    assert type(future.exception()) is TaskInterrupted
    reach(stopped, 2)
"""
    ).clean()


def test_as_completed_keeps_no_future_that_it_has_yielded():
    signalled(
        """
import weakref
with InterpreterPool(1) as pool:
    waiting = as_completed([pool.submit(time.sleep, 0.01 * n) for n in range(4)])
    seen = []
    for future in waiting:
        seen.append(weakref.ref(future))
        del future
        pool.submit(abs, 1).result()
    assert [ref() for ref in seen] == [None] * 4, seen
"""
    ).clean()


# Handlers ---------------------------------------------------------------------------------------

# What ends each wait comes from the handler only.
HANDLED = {
    "result": "pool.submit(event.wait).result()",
    "map": "list(pool.map(lambda event: event.wait(), [event] * 2))",
    "imap_unordered": "list(pool.imap_unordered(lambda event: event.wait(), [event] * 2))",
    "starmap": "pool.starmap(lambda event: event.wait(), [(event,)])",
    "broadcast": "pool.broadcast(event.wait)",
    "wait": "wait([pool.submit(event.wait)])",
    "as_completed": "list(as_completed([pool.submit(event.wait)]))",
    "recv": "recv.recv()",
    "iteration": "next(recv)",
    "send": "full.send(2)",
    "select": "select(recv, full_recv2)",
    "lock": "lock.acquire()",
    "semaphore": "semaphore.acquire()",
    "event": "event.wait()",
    "barrier": "barrier.wait()",
    "shutdown": "pool.submit(event.wait); pool.shutdown()",
    "exec": "interpreters.create().exec(event.wait)",
    "run": "asyncio.run(pool.run(event.wait))",
}

HANDLED_SETUP = """
pool = InterpreterPool(2)
pool.broadcast(abs, 1)
lock, semaphore, event, barrier = Lock(), Semaphore(0), Event(), Barrier(2)
lock.acquire()
recv, send = create_channel()
full_recv, full = create_channel(1)
full_recv2, full2 = create_channel()
full.send(1)

def handler(*args):
    if event.is_set():
        return
    event.set()
    send.send(1)
    full_recv.recv()
    lock.release()
    semaphore.release()
    threading.Thread(target=barrier.wait, daemon=True).start()
"""


@pytest.mark.parametrize("what", HANDLED)
def test_handler_runs_while_main_waits(what):
    result = signalled(
        HANDLED_SETUP
        + f"""
signal.signal(signal.SIGUSR1, handler)
ready()
{HANDLED[what]}
say("ended")
""",
        [USR1],
    ).clean()
    assert result.stdout == "ended\n"


@pytest.mark.parametrize("what", ["result", "wait", "recv", "lock", "shutdown"])
def test_sigterm_without_a_handler(what):
    signalled(HANDLED_SETUP + f"ready()\n{HANDLED[what]}", [TERM]).clean(-TERM)


def test_timer_and_wakeup_fd():
    """Many signals, from the process itself; no wait ends early."""
    signalled(
        """
import socket
seen = []
a, b = socket.socketpair()
b.setblocking(False)
signal.set_wakeup_fd(b.fileno(), warn_on_full_buffer=False)
signal.signal(signal.SIGALRM, lambda *args: seen.append(1))
with InterpreterPool(2) as pool:
    recv, send = create_channel()
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    for n in range(3):
        assert pool.submit(watched, running, stopped, 0.1).result() == "done"
        assert list(pool.map(abs, range(-200, 0))) == list(range(200, 0, -1))
        try:
            recv.recv(timeout=0.1)
        except RecvTimeout:
            pass
    assert wait([pool.submit(watched, running, stopped, 0.1)], 50).not_done == set()
    while len(seen) < 20:
        Event().wait(0.01)
    signal.setitimer(signal.ITIMER_REAL, 0)
assert stopped.get() == 0
assert set(a.recv(5)) == {signal.SIGALRM}
"""
    ).clean()


def test_signal_that_main_has_blocked():
    """A worker's thread gets it then; the handler runs in the main thread all the same."""
    result = signalled(
        HANDLED_SETUP
        + """
signal.signal(signal.SIGUSR1, handler)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
ready()
pool.submit(event.wait).result()
say("ended")
""",
        [USR1],
    ).clean()
    assert result.stdout == "ended\n"


def test_signal_that_a_task_sends():
    """Workers that compute do not hold it up."""
    result = signalled(
        """
def kill(running):
    import os, signal
    running.add(1)
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass

with InterpreterPool(2) as pool:
    other = pool.submit(watched, running, stopped)
    try:
        pool.submit(kill, running).result()
    except KeyboardInterrupt:
        say("interrupted")
    assert not other.done()
    other.interrupt()
"""
    ).clean()
    assert result.stdout == "interrupted\n"


@pytest.mark.parametrize("number", [INT, TERM])
def test_children_of_tasks_get_signals(number):
    """None is blocked or ignored there; one that goes to the whole group ends them."""
    result = signalled(
        f"""
def state():
    import subprocess, sys
    code = "print(*[x for x in open('/proc/self/status') if x.startswith(('SigBlk', 'SigIgn'))])"
    return subprocess.check_output([sys.executable, "-I", "-S", "-c", code])

def child(running):
    import subprocess
    process = subprocess.Popen(["sleep", "600"])
    running.add(1)
    return process.wait()

signal.signal(signal.{number.name}, lambda *args: say("handled"))
with InterpreterPool(2) as pool:
    assert pool.broadcast(state) == [state()] * 2
    task = pool.submit(child, running)
    reach(running, 1)
    ready()
    assert task.result() == -{number:d}
""",
        [number],
        group=True,
    ).clean()
    assert result.stdout == "handled\n"


# Loops in C that never wait ---------------------------------------------------------------------

ENDLESS = {
    "map": "collections.deque(pool.map(abs, itertools.repeat(-1)), 1)",
    "imap_unordered": "collections.deque(pool.imap_unordered(abs, itertools.repeat(-1)), 1)",
    "recv": "collections.deque(recv, 1)",
}

ENDLESS_SETUP = """
recv, send = create_channel(1000)

def produce(send):
    try:
        while True:
            send.send(1)
    except ChannelClosed:
        pass

producers = InterpreterPool(2)
for _ in range(2):
    producers.submit(produce, send)
"""


@pytest.mark.parametrize("what", ENDLESS)
def test_ctrl_c_in_a_loop_that_never_waits(what):
    result = signalled(
        ENDLESS_SETUP
        + f"""
with InterpreterPool(2) as pool:
    ready()
    try:
        {ENDLESS[what]}
    except KeyboardInterrupt:
        say("interrupted")
recv.close()
producers.shutdown()
""",
        [INT],
    ).clean()
    assert result.stdout == "interrupted\n"


@pytest.mark.parametrize("what", ENDLESS)
def test_interruption_of_a_loop_that_never_waits(what):
    signalled(
        ENDLESS_SETUP
        + f"""
def consume(recv, pool, running):
    import collections, itertools
    running.add(1)
    {ENDLESS[what]}

with InterpreterPool(1) as outer, InterpreterPool(2) as pool:
    future = outer.submit(consume, recv, pool, running)
    reach(running, 1)
    time.sleep(0.1)
    future.interrupt()
    assert type(future.exception()) is TaskInterrupted
recv.close()
producers.shutdown()
"""
    ).clean()


# While a pool winds down ------------------------------------------------------------------------

STUBBORN = {
    "swallows": ("swallow", ""),
    "keeps its lock": ("keep_the_lock", ""),
    "computes in C": ("sum, range(10**12)", ""),
    "initializer": ("abs, 1", "initializer=swallow"),
    "initializer keeps its lock": ("abs, 1", "initializer=keep_the_lock"),
}


@pytest.mark.parametrize("block", [True, False], ids=["with", "exit"])
@pytest.mark.parametrize("what", STUBBORN)
def test_second_ctrl_c_ends_at_once(what, block):
    """It does not wait for the grace period, in which tasks may clean up."""
    task, options = STUBBORN[what]
    ended_by_ctrl_c(
        signalled(
            f"""
import contextlib
import subinterp.pool
subinterp.pool.EXIT_GRACE = 0.1
pool = InterpreterPool(2, interrupt_grace=600, {options})
tasks = [pool.submit({task}) for _ in range(2)]
until = lambda: all(task.running() for task in tasks)
while not until() and not {bool(options)}:
    time.sleep(0.002)
shutdown = pool.shutdown

class Told(type(pool)):
    def shutdown(self, *args, **kwargs):
        ready()
        shutdown(*args, **kwargs)

if {block}:
    pool.__class__ = Told
else:
    threading._register_atexit(ready)
with pool if {block} else contextlib.nullcontext():
    ready()
    tasks[0].result()
""",
            [INT, INT],
            timeout=30,
        )
    )


def test_ctrl_c_ends_the_last_wait():
    """What workers get after all else, to end by themselves."""
    signalled(
        """
import atexit
import subinterp.pool
subinterp.pool.EXIT_GRACE = 600
pool = InterpreterPool(2)
pool.submit(swallow)
atexit.register(ready)      # called before what was registered for the pool
pool.shutdown(wait=False, cancel_futures=True)
sys.exit(5)
""",
        [INT],
        pause=0.5,  # it is on its way into that wait
    ).clean(5)


def test_ctrl_c_at_the_exit_stops_the_tasks_of_every_pool():
    result = signalled(
        """
import subinterp.pool
subinterp.pool.EXIT_GRACE = 600
pools = [InterpreterPool(1) for _ in range(3)]
tasks = [pool.submit(watched, running, stopped) for pool in pools]
reach(running, 3)
threading._register_atexit(ready)
""",
        [INT],
    ).check()
    assert "KeyboardInterrupt" in result.stderr


def test_held_down():
    ended_by_ctrl_c(
        signalled(
            """
with InterpreterPool(2, interrupt_grace=600) as pool:
    tasks = pool.submit(sum, range(10**12)), pool.submit(swallow)
    ready()
    tasks[0].result()
""",
            [(INT, 10)],
            pause=0.1,
        )
    )


LOOPS = {
    "waits": """
with InterpreterPool(2) as pool:
    ready()
    while True:
        list(pool.map(abs, range(500)))
        list(pool.imap_unordered(abs, range(50), chunksize=5))
        wait([pool.submit(pow, n, 2) for n in range(20)])
        list(as_completed([pool.submit(pow, n, 2) for n in range(20)]))
        pool.broadcast(abs, 1)
""",
    "pools": """
ready()
while True:
    with InterpreterPool(2) as pool:
        pool.map(abs, range(1000))
        pool.submit(lambda: 1).result()
""",
    "interpreters": """
ready()
while True:
    interp = interpreters.create()
    interp.exec("import json")
    interp.close()
""",
    "asyncio": """
async def main():
    with InterpreterPool(2) as pool:
        ready()
        while True:
            await asyncio.gather(*[pool.run(abs, n) for n in range(20)])
            async for _ in pool.amap(abs, range(100)):
                pass
asyncio.run(main())
""",
}


@pytest.mark.parametrize("what", LOOPS)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_at_any_moment(what, times):
    for _ in range(2):
        pause = random.uniform(0.01, 0.2)
        ended_by_ctrl_c(signalled(LOOPS[what], [(INT, times)], pause=pause))


def test_ctrl_c_while_a_forgotten_map_sends_its_input():
    """It is sent in a finalizer, whose exceptions nobody gets."""
    result = run_script(
        """
        import signal
        from subinterp import InterpreterPool

        class Input(list):
            def __iter__(self):
                yield from range(500)
                signal.raise_signal(signal.SIGINT)
                yield from range(500)

        with InterpreterPool(1) as pool:
            results = pool.map(abs, Input(range(1000)), chunksize=1)
            try:
                del results
                for _ in range(1000):
                    pass
            except KeyboardInterrupt:
                print("stopped")
        """
    ).clean()
    assert result.stdout == "stopped\n"


@pytest.mark.parametrize("error", ["ValueError", "KeyboardInterrupt"])
def test_shutdown_while_input_is_read(error):
    """The pool is shut down, whatever the input of a map raises."""
    run_script(
        f"""
        from subinterp import InterpreterPool

        class Input(list):
            def __iter__(self):
                yield from range(500)
                raise {error}("of the input")

        pool = InterpreterPool(1)
        results = pool.map(abs, Input(range(1000)), chunksize=1)
        try:
            pool.shutdown()
        except {error} as exc:
            assert "of the input" in str(exc)
        else:
            raise SystemExit("nothing raised")
        try:
            pool.submit(abs, 1)
        except RuntimeError:
            pass
        else:
            raise SystemExit("still open")
        pool.shutdown()
        """
    ).clean()


# Exit codes -------------------------------------------------------------------------------------

ENDS = {
    "tasks run": ("pool.submit(watched, running, stopped, 0.1)", 0),
    "tasks wait": ("[pool.submit(time.sleep, 0.01) for _ in range(10)]", 0),
    "a map that is not read": ("results = pool.map(abs, range(1000))", 0),
    "sys.exit": ("pool.submit(watched, running, stopped, 0.1); sys.exit(3)", 3),
    "os._exit": ("pool.submit(watched, running, stopped); os._exit(4)", 4),
    "SystemExit of a task": ("pool.submit(sys.exit, 5).result()", 5),
    "SystemExit that nobody reads": ("pool.submit(sys.exit, 5)", 0),
    "os._exit in a task": ("pool.submit(os._exit, 6).result()", 6),
    "given up": (
        "pool.submit(swallow); pool.submit(sum, range(10**12)); "
        "pool.shutdown(wait=False, cancel_futures=True); sys.exit(7)",
        7,
    ),
    "killed": (
        "pool.submit(swallow); pool.submit(sum, range(10**12)); pool.kill_workers(); sys.exit(8)",
        8,
    ),
    "daemon thread": (
        "threading.Thread(target=pool.submit(time.sleep, 0.2).result, daemon=True).start(); "
        "sys.exit(9)",
        9,
    ),
    "callback": ("pool.submit(time.sleep, 0.1).add_done_callback(str); sys.exit(10)", 10),
    "event loop": ("asyncio.run(pool.run(abs, 1)); sys.exit(11)", 11),
    "interpreter": ("interpreters.create().exec('import json'); sys.exit(12)", 12),
}


@pytest.mark.parametrize("what", ENDS)
def test_exit_code(what):
    """In development mode, and with every warning an error: nothing is said."""
    source, code = ENDS[what]
    signalled(f"pool = InterpreterPool(2)\n{source}\n", flags=["-X", "dev", "-W", "error"]).clean(
        code
    )


def test_map_that_nobody_reads_is_complete_at_the_exit():
    """As the one of the standard executors; also what was not sent yet."""
    result = signalled(
        """
counter = Counter()
pool = InterpreterPool(2)
results = pool.map(lambda n: counter.add(1), range(3000), chunksize=1)

class Last:
    def __del__(self, counter=counter, say=say):
        say(counter.get())

last = Last()
"""
    ).clean()
    assert result.stdout == "3000\n"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("pool.submit(watched, running, stopped, 0.1); 1 / 0", 1),
        ("pool.submit(sys.exit, 'a text').result()", 1),
        ("pool.submit(os.abort).result()", -signal.SIGABRT),
        ("pool.submit(os.kill, os.getpid(), signal.SIGINT).result(); time.sleep(50)", -INT),
    ],
    ids=["error", "SystemExit with a text", "abort", "Ctrl-C"],
)
def test_exit_code_of_a_failure(source, code):
    result = signalled(f"pool = InterpreterPool(2)\n{source}\n")
    assert result.returncode == code, result

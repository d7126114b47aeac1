"""Life and death: exit, signals, fork, threads, locks that are kept, deep recursion, output.

What could hang or crash is a script in a process of its own. A script that
is to be interrupted gets its SIGINT from a process that this module starts,
so that it comes while the main thread waits.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import subinterp
from _support import SANITIZED, run_script
from _work import (
    add,
    interpreter_id,
    pass_gate,
    recurse,
    recurse_forever,
    say,
    set_flag,
    sleep_return,
    square,
)

LONG = 60

# Seconds until a Ctrl-C must have had its effect. The promise is a tenth of a second;
# the machine may be busy.
PROMPT = 2.0

# What a worker may be busy with.
BUSY = {
    "computing": "while True: pass",
    "sleeping": "import time; time.sleep(600)",
    "waiting": "import threading; threading.Event().wait(600)",
}


# The end of a script ------------------------------------------------------------------------


def test_exit_without_shutdown():
    result = run_script(
        """
        from subinterp import InterpreterPool
        pool = InterpreterPool(2)
        print(pool.submit(pow, 2, 5).result())
        """
    ).clean()
    assert result.stdout == "32\n"


def test_exit_with_an_unused_pool():
    run_script("import subinterp; pool = subinterp.InterpreterPool(3)").clean()


def test_exit_while_workers_boot():
    run_script(
        """
        import subinterp
        pools = [subinterp.InterpreterPool(3) for _ in range(3)]
        futures = [pool.submit(abs, 1) for pool in pools]
        """
    ).clean()


def test_exit_finishes_pending_work():
    """As the standard executors: what was submitted is done before the end."""
    result = run_script(
        """
        import sys, time
        from subinterp import InterpreterPool

        def work(n):
            time.sleep(0.05)
            print("done", n, flush=True)

        pool = InterpreterPool(2)
        for n in range(6):
            pool.submit(work, n)
        print("end of script", flush=True)
        """
    ).clean()
    lines = result.stdout.splitlines()
    assert sorted(lines) == sorted(["end of script", *(f"done {n}" for n in range(6))])


def test_exit_after_shutdown_without_wait():
    result = run_script(
        """
        import time
        from subinterp import InterpreterPool

        def work():
            time.sleep(0.3)
            print("done", flush=True)

        pool = InterpreterPool(2)
        pool.submit(work)
        pool.shutdown(wait=False)
        """
    ).clean()
    assert result.stdout == "done\n"


def test_cancel_futures_at_exit():
    result = run_script(
        """
        import _work
        from subinterp import InterpreterPool
        pool = InterpreterPool()
        pool.submit(_work.sleep_return, 0.1, 1)
        for _ in range(100):
            pool.submit(_work.sleep_return, 60, 1)
        pool.shutdown(wait=False, cancel_futures=True)
        print("end")
        """,
        timeout=200,
    ).clean()
    assert result.stdout == "end\n"


def test_callbacks_run_before_the_end():
    result = run_script(
        """
        import time
        from subinterp import InterpreterPool
        pool = InterpreterPool(1)
        future = pool.submit(time.sleep, 0.2)
        future.add_done_callback(lambda f: print("called back", flush=True))
        """
    ).clean()
    assert result.stdout == "called back\n"


def test_exit_with_a_map_half_read():
    run_script(
        """
        import itertools
        from subinterp import InterpreterPool
        pool = InterpreterPool(2)
        results = pool.map(abs, itertools.count())
        print(next(results), next(results))
        """
    ).clean()


def test_exit_with_open_channels():
    run_script(
        """
        from subinterp import InterpreterPool, create_channel, SharedBuffer
        recv, send = create_channel()
        send.send([create_channel(), SharedBuffer(100)])
        buf = SharedBuffer(1000)
        pool = InterpreterPool(1)
        pool.submit(len, buf)
        kept = pool.submit(list, [send])
        """
    ).clean()


@pytest.mark.parametrize("busy", ["waiting for a message"])
def test_exit_while_a_task_waits_for_a_message(busy):
    """The last sender goes with the script's globals, or the exit says so: it does not hang."""
    run_script(
        """
        from subinterp import InterpreterPool, create_channel
        recv, send = create_channel()
        pool = InterpreterPool(1)
        future = pool.submit(next, iter([1]))
        future.result()

        def receive(recv):
            return recv.recv(timeout=2)

        future = pool.submit(receive, recv)
        """
    ).check()


def test_exit_code_of_an_error():
    result = run_script(
        """
        from subinterp import InterpreterPool
        pool = InterpreterPool(2)
        pool.submit(abs, 1).result()
        raise ValueError("the script fails")
        """
    ).check(1)
    assert "the script fails" in result.stderr


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code_of_sys_exit(code):
    run_script(
        """
        import sys
        from subinterp import InterpreterPool
        pool = InterpreterPool(2)
        pool.submit(abs, 1).result()
        sys.exit(int(sys.argv[1]))
        """,
        args=[str(code)],
    ).clean(code)


def test_unhandled_error_of_a_task():
    result = run_script(
        """
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            pool.submit(int, "no number").result()
        """
    ).check(1)
    assert "ValueError: invalid literal" in result.stderr


def test_os_exit():
    """It ends everything at once, in whatever state."""
    run_script(
        """
        import os
        from subinterp import InterpreterPool
        pool = InterpreterPool(2)
        future = pool.submit(pow, 2, 3)
        future.result()
        os._exit(5)
        """
    ).clean(5)


def test_os_exit_in_a_task():
    run_script(
        """
        import os
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            pool.submit(os._exit, 6).result()
        """
    ).clean(6)


def test_shutdown_in_atexit():
    result = run_script(
        """
        import atexit
        from subinterp import InterpreterPool

        @atexit.register
        def last():
            pool.shutdown()
            print("shut down")

        pool = InterpreterPool(2)
        pool.submit(abs, 1).result()
        """
    ).clean()
    assert result.stdout == "shut down\n"


@pytest.mark.parametrize("first", ["the function", "the pool"])
def test_new_pool_in_atexit(first):
    """What was registered first runs last: then workers have been seen to, and no more are made."""
    result = run_script(
        f"""
        import atexit
        from subinterp import InterpreterPool

        def last():
            try:
                with InterpreterPool(1) as late:
                    print("result", late.submit(abs, -1).result(20))
            except RuntimeError as error:
                print("refused:", error)

        if {first!r} == "the function":
            atexit.register(last)
        InterpreterPool(1).submit(abs, 1).result()
        if {first!r} == "the pool":
            atexit.register(last)
        """
    ).clean()
    if first == "the function":
        assert "refused: the program is ending: no more workers can be started" in result.stdout
    else:
        assert result.stdout.split()[0].rstrip(":") in ("result", "refused")


def test_result_in_a_thread_at_exit():
    """A non-daemon thread still uses the pool when the main thread is done."""
    result = run_script(
        """
        import threading, time
        from subinterp import InterpreterPool
        pool = InterpreterPool(1)

        def later():
            time.sleep(0.3)
            print(future.result())

        future = pool.submit(pow, 2, 5)
        threading.Thread(target=later).start()
        """
    ).clean()
    assert result.stdout == "32\n"


def test_daemon_thread_waits_at_exit():
    run_script(
        """
        import threading, time
        from subinterp import InterpreterPool, create_channel
        pool = InterpreterPool(1)
        recv, send = create_channel()
        threading.Thread(target=recv.recv, daemon=True).start()
        threading.Thread(target=lambda: pool.submit(time.sleep, 0.3).result(), daemon=True).start()
        time.sleep(0.1)
        """
    ).clean()


def test_pool_in_a_cycle_at_exit():
    run_script(
        """
        from subinterp import InterpreterPool

        class Holder:
            pass

        holder = Holder()
        holder.self = holder
        holder.pool = InterpreterPool(1)
        holder.future = holder.pool.submit(abs, -1)
        """
    ).clean()


def test_pool_in_a_module_at_exit(tmp_path):
    (tmp_path / "holds_a_pool.py").write_text(
        "from subinterp import InterpreterPool\npool = InterpreterPool(2)\n"
    )
    run_script(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import holds_a_pool
        holds_a_pool.pool.submit(abs, -1).result()
        """
    ).clean()


@pytest.mark.parametrize("number", range(5))
def test_exit_right_after_submit(number):
    """Again and again: races of start and end show now and then only."""
    run_script(
        """
        import sys, time
        from subinterp import InterpreterPool
        pool = InterpreterPool(3)
        futures = [pool.submit(pow, 2, n) for n in range(20)]
        time.sleep(int(sys.argv[1]) * 0.005)
        """,
        args=[str(number)],
    ).clean()


# Exit in tasks -----------------------------------------------------------------------------------


def test_system_exit_in_a_task_leaves_the_script_alone():
    result = run_script(
        """
        import sys
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            for code in (0, 5, "text"):
                error = pool.submit(sys.exit, code).exception(60)
                print(type(error).__name__, error.code)
            print(pool.submit(abs, -1).result(60))
        """
    ).clean()
    assert result.stdout == "SystemExit 0\nSystemExit 5\nSystemExit text\n1\n"


def test_raised_system_exit_of_a_task_ends_the_script():
    """result() raises it like any other error: the exit code is the task's."""
    run_script(
        """
        import sys
        from subinterp import InterpreterPool
        pool = InterpreterPool(1)
        pool.submit(sys.exit, 9).result()
        """
    ).clean(9)


def test_keyboard_interrupt_in_a_task():
    result = run_script(
        """
        from subinterp import InterpreterPool

        def interrupt():
            raise KeyboardInterrupt

        with InterpreterPool(1) as pool:
            print(type(pool.submit(interrupt).exception(60)).__name__)
            print(pool.submit(abs, -1).result(60))
        """
    ).clean()
    assert result.stdout == "KeyboardInterrupt\n1\n"


def test_atexit_in_a_worker_runs():
    result = run_script(
        """
        from subinterp import InterpreterPool

        def register():
            import atexit
            atexit.register(print, "the worker says goodbye", flush=True)

        with InterpreterPool(1) as pool:
            pool.submit(register).result(60)
        print("end")
        """
    ).clean()
    assert result.stdout == "the worker says goodbye\nend\n"


# Threads that tasks leave running --------------------------------------------------------------


@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "plain"])
@pytest.mark.parametrize("shutdown", [True, False], ids=["shutdown", "exit"])
@pytest.mark.parametrize("what", ["sleeps", "computes", "ends soon"])
def test_left_over_thread(daemon, shutdown, what):
    """It neither hangs nor crashes the script, and the exit code is right."""
    result = run_script(
        f"""
        import sys
        from subinterp import InterpreterPool

        def leave():
            import threading, time

            def run():
                if {what!r} == "computes":
                    while True:
                        pass
                time.sleep(600 if {what!r} == "sleeps" else 0.2)

            threading.Thread(target=run, daemon={daemon}).start()
            return "left"

        pool = InterpreterPool(2)
        print(pool.submit(leave).result(60))
        if {shutdown}:
            pool.shutdown()
            print("shut down")
        sys.exit(7)
        """
    ).check(7)
    assert result.stdout == "left\n" + "shut down\n" * shutdown


def test_threads_of_a_task_work():
    """Threads inside a task are threads of its interpreter."""
    result = run_script(
        """
        from subinterp import InterpreterPool

        def work():
            import threading, _work
            seen = []
            threads = [
                threading.Thread(target=lambda: seen.append(_work.interpreter_id()))
                for _ in range(5)
            ]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            return set(seen) == {_work.interpreter_id()}

        with InterpreterPool(2) as pool:
            assert pool.broadcast(work) == [True, True]
            from concurrent.futures import ThreadPoolExecutor

            def nested():
                from concurrent.futures import ThreadPoolExecutor
                with ThreadPoolExecutor(3) as threads:
                    return list(threads.map(abs, range(-5, 0)))

            assert pool.submit(nested).result(60) == [5, 4, 3, 2, 1]
        """
    ).clean()
    assert result.stdout == ""


def test_ctypes_callbacks_reach_the_right_interpreter():
    run_script(
        """
        from subinterp import InterpreterPool

        def work():
            import ctypes, _work
            seen = []

            @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            def compare(a, b):
                seen.append(_work.interpreter_id())
                return 0

            data = (ctypes.c_int * 3)(3, 1, 2)
            ctypes.CDLL(None).qsort(data, 3, 4, compare)
            return bool(seen) and set(seen) == {_work.interpreter_id()}

        with InterpreterPool(2) as pool:
            assert pool.broadcast(work) == [True, True]
        """
    ).clean()


# A worker that cannot be ended -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "cancelled exit", "sys.exit", "error"])
def test_c_call_that_keeps_its_lock(how):
    """A C function that never lets its lock go is left behind; the exit code is right."""
    code = {"exit": 0, "cancelled exit": 0, "sys.exit": 4, "error": 1}[how]
    result = run_script(
        f"""
        import sys, time
        from subinterp import InterpreterPool, create_channel

        def hog(send):
            import ctypes
            send.send("starts")
            ctypes.PyDLL(None).usleep(3_000_000)  # PyDLL: keeps the lock
            return "done"

        recv, send = create_channel()
        pool = InterpreterPool(2)
        future = pool.submit(hog, send)
        recv.recv(timeout=60)
        print("main goes on", pool.submit(abs, -5).result(60), flush=True)
        if {how!r} == "cancelled exit":
            pool.shutdown(wait=False, cancel_futures=True)
        elif {how!r} == "sys.exit":
            sys.exit(4)
        elif {how!r} == "error":
            raise ValueError
        """
    ).check(code)
    assert result.stdout == "main goes on 5\n"


def test_main_runs_while_a_worker_keeps_its_lock():
    """Callers, other workers, new pools and timeouts do not need that lock."""
    run_script(
        """
        import os, time
        from subinterp import InterpreterPool, create_channel

        def hog(send):
            import ctypes
            send.send("starts")
            ctypes.PyDLL(None).sleep(3)

        recv, send = create_channel()
        pool = InterpreterPool(2)
        future = pool.submit(hog, send)
        recv.recv(timeout=60)
        for n in range(50):
            assert pool.submit(abs, -n).result(60) == n
        with InterpreterPool(1) as other:
            assert other.submit(abs, -5).result(60) == 5
        try:
            future.result(0.05)
        except TimeoutError:
            pass
        else:
            raise AssertionError("it ended too early")
        os._exit(0)
        """
    ).clean()


# Ctrl-C ----------------------------------------------------------------------------------------

INTERRUPT_PRELUDE = """
import os, signal, subprocess, sys, threading, time
from concurrent.futures import wait, as_completed
from subinterp import InterpreterPool, SharedBuffer, TaskInterrupted, create_channel, select

READ, WRITE = os.pipe()

# Waits until it is told that all is under way, then sends SIGINT.
HELPER = '''
import os, signal, sys, time
read, pid, times = map(int, sys.argv[1:])
os.read(read, 1)
for _ in range(times):
    time.sleep(0.3)
    print("sent", repr(time.monotonic()), file=sys.stderr, flush=True)
    os.kill(pid, signal.SIGINT)
'''
helper = subprocess.Popen(
    [sys.executable, "-S", "-c", HELPER, str(READ), str(os.getpid()), sys.argv[1]],
    pass_fds=[READ],
)

def under_way(write=WRITE):
    import os
    os.write(write, b"x")

def compute(seconds=600):
    import time
    under_way()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "computed"
"""


def interrupted(setup, wait, after="", *, times=1, timeout=60):
    """Run a script that is sent SIGINT while it waits; see that the wait ended promptly.

    Parameters
    ----------
    setup : str
        Starts work that calls `under_way`.
    wait : str
        What is to be interrupted.
    after : str
        Runs after that; then the script ends at once, whatever still runs.
    """
    script = (
        INTERRUPT_PRELUDE
        + textwrap.dedent(setup)
        + "\ntry:\n"
        + textwrap.indent(textwrap.dedent(wait).strip(), "    ")
        + "\nexcept KeyboardInterrupt:\n"
        "    print('interrupted', repr(time.monotonic()), flush=True)\n"
        "else:\n"
        "    print('not interrupted', flush=True)\n"
        + textwrap.dedent(after)
        + "\nhelper.wait()\nprint('end', flush=True)\nos._exit(0)\n"
    )
    result = run_script(script, args=[str(times)], timeout=timeout).check()
    assert result.stdout.startswith("interrupted "), str(result)
    assert result.stdout.endswith("end\n"), str(result)
    sent = float(result.stderr.split("sent ")[1].split()[0])
    came = float(result.stdout.split("interrupted ")[1].split()[0])
    assert 0 <= came - sent < PROMPT, str(result)
    return result


WAITS = {
    "result": "future.result()",
    "result with timeout": "future.result(50)",
    "exception": "future.exception()",
    "map": "list(pool.map(pow, range(100), range(100), chunksize=1))",
    "map with timeout": "list(pool.map(abs, range(100), chunksize=1, timeout=50))",
    "imap_unordered": "list(pool.imap_unordered(abs, range(100), chunksize=1))",
    "starmap": "pool.starmap(pow, [(1, 2)] * 100)",
    "broadcast": "pool.broadcast(abs, 1)",
    "recv": "recv.recv()",
    "recv with timeout": "recv.recv(timeout=50)",
    "iteration": "list(recv)",
    "send": "full.send(1)",
    "send with timeout": "full.send(1, timeout=50)",
    "select": "select(recv, other_recv)",
    "shutdown": "pool.shutdown()",
    "with block": "with pool: pass",
    "wait": "wait([future])",
    "as_completed": "list(as_completed([future]))",
    "new interpreter": "from subinterp import interpreters; interpreters.create().call(compute)",
}


@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_while_workers_compute(what):
    interrupted(
        """
        pool = InterpreterPool(2)
        recv, send = create_channel()
        other_recv, other_send = create_channel()
        full_recv, full = create_channel(1)
        full.send("full")
        future, second = pool.submit(compute), pool.submit(compute)
        while not (future.running() and second.running()):
            time.sleep(0.001)
        """,
        WAITS[what],
    )


@pytest.mark.parametrize("busy", BUSY)
def test_ctrl_c_whatever_the_worker_does(busy):
    interrupted(
        f"""
        def work():
            under_way()
            {BUSY[busy]}

        pool = InterpreterPool(1)
        future = pool.submit(work)
        """,
        "future.result()",
    )


def test_ctrl_c_while_a_worker_keeps_its_lock():
    interrupted(
        """
        def hog():
            import ctypes
            under_way()
            ctypes.PyDLL(None).sleep(20)

        pool = InterpreterPool(1)
        future = pool.submit(hog)
        """,
        "future.result()",
    )


def test_ctrl_c_stops_only_what_was_waited_for():
    """Other tasks go on, their futures are good, and so is the pool."""
    interrupted(
        """
        pool = InterpreterPool(2)
        future, second = pool.submit(compute, 2), pool.submit(compute, 2)
        pending = [pool.submit(pow, n, 2) for n in range(20)]
        """,
        "future.result()",
        """
        assert type(future.exception(50)) is TaskInterrupted
        assert second.result(50) == "computed"
        assert [f.result(50) for f in pending] == [n * n for n in range(20)]
        with pool:
            assert pool.submit(abs, -1).result(50) == 1
        """,
    )


def test_ctrl_c_in_a_map_leaves_the_pool_usable():
    interrupted(
        """
        pool = InterpreterPool(2)
        other = pool.submit(compute, 1.5)
        results = pool.map(compute, [1000, 0, 0, 0], chunksize=1)
        """,
        "list(results)",
        """
        assert other.result(50) == "computed"
        with pool:
            assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        """,
    )


def test_ctrl_c_stops_the_chunks_of_a_map():
    interrupted(
        """
        pool = InterpreterPool(2)
        results = pool.imap_unordered(compute, [1000] * 8, chunksize=2)
        """,
        "list(results)",
        """
        with pool:
            assert pool.submit(abs, -1).result(50) == 1
        """,
    )


def test_ctrl_c_and_the_end_of_the_with_block():
    """Leaving the block waits for other tasks, until a second Ctrl-C."""
    result = run_script(
        INTERRUPT_PRELUDE
        + """
others = []
try:
    with InterpreterPool(2) as pool:
        others.append(pool.submit(compute, 1000))
        others += [pool.submit(abs, -n) for n in range(3)]
        others.append(pool.submit(compute, 1000))
        others.append(pool.submit(abs, -3))
        try:
            others[0].result()
        except KeyboardInterrupt:
            print("first", flush=True)
            raise
except KeyboardInterrupt:
    print("second", flush=True)
print([type(f.exception(50)).__name__ for f in others[:-1]], others[-1].done(), flush=True)
""",
        args=["2"],
    ).check()
    outcomes = ["TaskInterrupted", "NoneType", "NoneType", "NoneType", "TaskInterrupted"]
    assert result.stdout == f"first\nsecond\n{outcomes} True\n", str(result)


def test_ctrl_c_in_recv_loses_no_message():
    interrupted(
        """
        pool = InterpreterPool(2)
        recv, send = create_channel()
        future = pool.submit(compute, 1)
        """,
        "recv.recv()",
        """
        for n in range(10):
            send.send(n)
        send.close()
        assert list(recv) == list(range(10))
        assert future.result(50) == "computed"
        """,
    )


def test_ctrl_c_in_send_leaves_the_object_with_the_sender():
    interrupted(
        """
        pool = InterpreterPool(2)
        recv, send = create_channel(1)
        send.send("first")
        inner_recv, inner_send = create_channel()
        future = pool.submit(compute, 1)
        """,
        "send.send(inner_send)",
        """
        assert recv.recv() == "first" and len(recv) == 0
        inner_send.send("still mine")
        assert inner_recv.recv() == "still mine"
        """,
    )


def test_ctrl_c_in_shutdown_can_be_repeated():
    interrupted(
        """
        pool = InterpreterPool(2)
        future = pool.submit(compute, 1000)
        while not future.running():
            time.sleep(0.001)
        """,
        "pool.shutdown()",
        """
        pool.shutdown()
        assert type(future.exception(0)) is TaskInterrupted
        """,
    )


def test_ctrl_c_is_not_seen_by_workers():
    """Only the main interpreter's thread gets it; tasks compute on."""
    interrupted(
        """
        pool = InterpreterPool(2)
        futures = [pool.submit(compute, 1.5) for _ in range(2)]
        """,
        "time.sleep(50)",
        """
        assert [f.result(50) for f in futures] == ["computed"] * 2
        """,
    )


def test_ctrl_c_with_a_handler_of_the_user():
    """A handler that does not raise is run while the wait goes on."""
    result = run_script(
        INTERRUPT_PRELUDE
        + """
signal.signal(signal.SIGINT, lambda *args: print("handled", flush=True))
pool = InterpreterPool(1)
future = pool.submit(compute, 1.5)
print(future.result(50), flush=True)
recv, send = create_channel()
pool.shutdown()
""",
        args=["2"],
    ).check()
    assert result.stdout == "handled\nhandled\ncomputed\n"


def test_unhandled_ctrl_c_ends_the_script():
    result = run_script(
        INTERRUPT_PRELUDE
        + """
pool = InterpreterPool(1)
pool.submit(compute, 1.5).result()
""",
        args=["1"],
    )
    assert "KeyboardInterrupt" in result.stderr
    assert result.returncode in (1, 130, -signal.SIGINT)
    assert "Fatal Python error" not in result.stderr


@pytest.mark.parametrize("busy", BUSY)
def test_ctrl_c_at_the_exit_ends_the_wait_for_tasks(busy):
    """The exit waits for tasks, as that of the standard executors; Ctrl-C ends this, too."""
    result = run_script(
        INTERRUPT_PRELUDE
        + f"""
def work():
    under_way()
    {BUSY[busy]}

pool = InterpreterPool(1)
pool.submit(work)
print("end of script", flush=True)
""",
        args=["2"],
    )
    assert result.stdout == "end of script\n"
    assert result.returncode >= 0 or result.returncode == -signal.SIGINT, str(result)
    assert "Fatal Python error" not in result.stderr


# fork ------------------------------------------------------------------------------------------

FORK_PRELUDE = """
import os, signal, sys, time, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads is what we are about
from subinterp import InterpreterPool, SharedBuffer, create_channel

def in_child(fn):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(40)  # a hang is a failure
            fn()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, os.waitstatus_to_exitcode(status)
"""


def fork_script(source, **kwargs):
    return run_script(FORK_PRELUDE + textwrap.dedent(source), **kwargs).clean()


def test_child_can_make_a_pool():
    fork_script(
        """
        pool = InterpreterPool(2)
        assert pool.submit(abs, -1).result() == 1

        def child():
            with InterpreterPool(2) as mine:
                assert list(mine.map(abs, range(-100, 0))) == list(range(100, 0, -1))
                assert mine.submit(lambda: 5).result(30) == 5

        for _ in range(5):
            in_child(child)
            assert pool.submit(abs, -2).result() == 2
        pool.shutdown()
        """
    )


def test_child_exits_normally():
    """Not only by os._exit: the child goes the whole way to its end."""
    result = fork_script(
        """
        pool = InterpreterPool(2)
        pool.submit(abs, -1).result()
        busy = pool.submit(time.sleep, 0.5)
        pid = os.fork()
        if pid == 0:
            print("child", flush=True)
            sys.exit(5)
        _, status = os.waitpid(pid, 0)
        print("exit code", os.waitstatus_to_exitcode(status))
        """
    )
    assert result.stdout == "child\nexit code 5\n"


def test_inherited_futures_are_broken():
    """They raise instead of hanging; finished ones keep their result."""
    fork_script(
        """
        import threading
        from concurrent.futures import BrokenExecutor, wait
        pool = InterpreterPool(1)
        finished = pool.submit(abs, -7)
        assert finished.result() == 7
        unread = pool.submit(abs, -8)
        wait([unread])
        running = pool.submit(time.sleep, 1)
        pending = [pool.submit(abs, -n) for n in range(5)]

        def child():
            assert finished.result() == 7
            assert unread.result() == 8
            for future in [running, *pending]:
                try:
                    future.result(20)
                except BrokenExecutor:
                    pass
                else:
                    raise AssertionError("no error")
            try:
                pool.submit(abs, 1).result(20)
            except (BrokenExecutor, RuntimeError):
                pass
            else:
                raise AssertionError("an inherited pool took work")
            pool.shutdown()

        in_child(child)
        assert [f.result() for f in pending] == list(range(5))
        pool.shutdown()
        """
    )


def test_inherited_map_and_broadcast():
    fork_script(
        """
        from concurrent.futures import BrokenExecutor
        pool = InterpreterPool(1)
        running = pool.submit(time.sleep, 1)
        results = pool.map(abs, range(10))

        def child():
            for attempt in (lambda: list(results), lambda: pool.broadcast(abs, 1)):
                try:
                    attempt()
                except (BrokenExecutor, RuntimeError):
                    pass
                else:
                    raise AssertionError("no error")

        in_child(child)
        assert list(results) == list(range(10))
        pool.shutdown()
        """
    )


def test_inherited_channel_and_buffer_of_the_child():
    """A channel works inside the child; a buffer is a copy or shared, and readable."""
    fork_script(
        """
        pool = InterpreterPool(1)
        recv, send = create_channel()
        send.send("before")
        buf = SharedBuffer(100)
        memoryview(buf)[3] = 3
        pool.submit(abs, -1).result()

        def child():
            assert memoryview(buf)[3] == 3
            r, s = create_channel()
            s.send(1)
            assert r.recv(timeout=10) == 1
            with InterpreterPool(1) as mine:
                mine.submit(lambda: s.send("from the pool of the child")).result(30)
                assert r.recv(timeout=10) == "from the pool of the child"

        in_child(child)
        assert recv.recv() == "before"
        pool.shutdown()
        """
    )


def test_fork_while_workers_are_busy():
    fork_script(
        """
        pool = InterpreterPool(2)

        def compute():
            end = time.monotonic() + 2
            while time.monotonic() < end:
                [object() for _ in range(100)]
            return "computed"

        futures = [pool.submit(compute) for _ in range(2)]
        time.sleep(0.1)

        def child():
            with InterpreterPool(1) as mine:
                assert mine.submit(abs, -1).result(30) == 1

        for _ in range(10):
            in_child(child)
        assert [f.result() for f in futures] == ["computed"] * 2
        pool.shutdown()
        """
    )


def test_fork_while_threads_submit():
    """Locks of the library may be taken when the fork happens."""
    fork_script(
        """
        import threading
        pool = InterpreterPool(2)
        stop = False

        def submit():
            while not stop:
                assert pool.submit(abs, -3).result() == 3
                list(pool.map(abs, range(50)))

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child():
            with InterpreterPool(1) as mine:
                assert mine.submit(abs, -1).result(30) == 1

        for _ in range(10):
            in_child(child)
        stop = True
        for thread in threads:
            thread.join()
        pool.shutdown()
        """
    )


def test_fork_in_the_child_again():
    fork_script(
        """
        pool = InterpreterPool(1)
        pool.submit(abs, -1).result()

        def grandchild():
            with InterpreterPool(1) as mine:
                assert mine.submit(abs, -3).result(30) == 3

        def child():
            with InterpreterPool(1) as mine:
                assert mine.submit(abs, -2).result(30) == 2
                in_child(grandchild)
                assert mine.submit(abs, -2).result(30) == 2

        in_child(child)
        pool.shutdown()
        """
    )


def test_subprocess_with_a_live_pool():
    fork_script(
        """
        import subprocess
        with InterpreterPool(2) as pool:
            busy = pool.submit(time.sleep, 0.2)
            for n in range(5):
                out = subprocess.run(
                    [sys.executable, "-S", "-c", f"print({n})"], capture_output=True, text=True
                )
                assert out.stdout == f"{n}\\n", out
                out = subprocess.run(
                    ["true"], preexec_fn=lambda: None  # forces a real fork
                )
                assert out.returncode == 0
        """
    )


def test_children_of_workers_take_signals():
    """Signals that workers block would be blocked in the processes they start."""
    fork_script(
        """
        def start():
            import signal, subprocess, time
            child = subprocess.Popen(["sleep", "50"])
            time.sleep(0.1)
            child.send_signal(signal.SIGTERM)
            return child.wait(20)

        with InterpreterPool(1) as pool:
            assert pool.submit(start).result(40) == -signal.SIGTERM
        """
    )


def test_multiprocessing_fork_with_a_live_pool():
    fork_script(
        """
        import concurrent.futures, multiprocessing

        def square(n):
            return n * n

        with InterpreterPool(2) as pool:
            pool.submit(abs, 1).result()
            context = multiprocessing.get_context("fork")
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as processes:
                assert list(processes.map(square, range(10))) == [n * n for n in range(10)]
            assert list(pool.map(square, range(10))) == [n * n for n in range(10)]
        """
    )


def test_child_waits_for_a_channel_in_asyncio_without_any_pool():
    fork_script(
        """
        import asyncio

        async def once():
            recv, send = create_channel()
            asyncio.get_running_loop().call_later(0.05, send.send, "sent")
            return await asyncio.wait_for(recv.recv_async(), 20)

        def child():
            assert asyncio.run(once()) == "sent"

        child()
        for _ in range(3):
            in_child(child)
        """
    )


# Threads that cannot be started -----------------------------------------------------------

# While `no_threads` is set, the system has no threads to give.
NO_THREADS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

int no_threads = 0;

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (no_threads)
        return EAGAIN;
    if (!real)
        real = (__typeof__(real))dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attr, fn, arg);
}
"""

NO_THREADS_PRELUDE = """
import ctypes
import subinterp
from subinterp import BrokenInterpreterPool, InterpreterPool

no_threads = ctypes.c_int.in_dll(ctypes.CDLL(None), "no_threads")

def broken(future):
    try:
        return "result", future.result(30)
    except BrokenInterpreterPool as error:
        return "broken", "no thread could be started" in str(error)
"""


@pytest.fixture
def no_threads_script(tmp_path):
    """A function that runs scripts that can turn the starting of threads off."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to stand in for pthread_create")
    source, library = tmp_path / "no_threads.c", tmp_path / "no_threads.so"
    source.write_text(NO_THREADS)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, cwd=tmp_path
    )
    preload = " ".join(filter(None, [str(library), os.environ.get("LD_PRELOAD", "")]))

    def run(source):
        source = NO_THREADS_PRELUDE + textwrap.dedent(source)
        return run_script(source, env={"LD_PRELOAD": preload})

    return run


def test_no_thread_for_the_first_worker(no_threads_script):
    result = no_threads_script(
        """
        pool = InterpreterPool(2)
        no_threads.value = 1
        try:
            futures = [pool.submit(abs, -1)]
        except BrokenInterpreterPool:
            pass
        else:
            assert broken(futures[0]) == ("broken", True), broken(futures[0])
        try:
            pool.submit(abs, -1)
        except BrokenInterpreterPool:
            pass
        else:
            raise AssertionError("a broken pool takes tasks")
        try:
            print(list(pool.map(abs, range(3))))
        except BrokenInterpreterPool:
            pass
        else:
            raise AssertionError("a broken pool takes a map")
        pool.shutdown()

        # The next one has threads again.
        no_threads.value = 0
        with InterpreterPool(2) as pool:
            assert list(pool.map(abs, range(-3, 0))) == [3, 2, 1]
        """
    ).check()
    # Why a pool broke is logged once.
    assert len(result.stderr.splitlines()) == 1, result
    assert "no thread could be started" in result.stderr


def test_no_thread_for_another_worker(no_threads_script):
    """Those that are there do the work."""
    no_threads_script(
        """
        import time
        pool = InterpreterPool(3)
        assert pool.submit(abs, -1).result(30) == 1
        no_threads.value = 1
        futures = [pool.submit(time.sleep, 0.05) for _ in range(6)]
        assert [broken(future) for future in futures] == [("result", None)] * 6
        assert list(pool.map(abs, range(-100, 0))) == list(range(100, 0, -1))
        no_threads.value = 0
        pool.shutdown()
        """
    ).clean()


def test_exit_of_a_pool_without_threads(no_threads_script):
    no_threads_script(
        """
        no_threads.value = 1
        pool = InterpreterPool(2)
        try:
            future = pool.submit(abs, -1)
        except BrokenInterpreterPool:
            pass
        """
    ).clean()


# Objects that are not made by their makers --------------------------------------------------

UNMADE = {
    "SendChannel()": "TypeError",
    "RecvChannel()": "TypeError",
    "repr(SendChannel.__new__(SendChannel))": "TypeError",
    "SendChannel.__new__(SendChannel).send(1)": "ChannelClosed",
    "RecvChannel.__new__(RecvChannel).recv_nowait()": "ChannelClosed",
    "RecvChannel.__new__(RecvChannel).recv(timeout=0)": "ChannelClosed",
    "len(RecvChannel.__new__(RecvChannel))": "TypeError",
    "RecvChannel.__new__(RecvChannel).id": "TypeError",
    "hash(RecvChannel.__new__(RecvChannel))": "TypeError",
    "Future.__new__(Future).done()": "TypeError",
    "Future.__new__(Future).result(0)": "TypeError",
    "Future.__new__(Future).cancel()": "TypeError",
    "Future.__new__(Future).add_done_callback(print)": "TypeError",
    "repr(Future.__new__(Future))": "TypeError",
    "_core.FutureCore().done()": "TypeError",
    "next(_core.MapIterator())": "TypeError",
    "memoryview(_core.MessageBuffer())": "BufferError",
    "_core._Notifier().run(0.1)": "TypeError",
    # These have nothing to complain about.
    "_core.MessageBuffer()": None,
    "_core._PoolHandle()": None,
    "_core.AsyncWait().cancel()": None,
}


@pytest.mark.parametrize("expression", UNMADE)
def test_unmade_objects_raise(expression):
    result = run_script(
        """
        import gc, sys
        from subinterp import Future, RecvChannel, SendChannel, _core

        try:
            eval(sys.argv[1])
        except Exception as error:
            print(type(error).__name__)
        else:
            print(None)
        gc.collect()
        """,
        args=[expression],
    ).clean()
    assert result.stdout.strip() == str(UNMADE[expression])


# Deep recursion --------------------------------------------------------------------------------


def test_deep_recursion_is_an_error(pool):
    for _ in range(3):
        assert type(pool.submit(recurse_forever).exception(LONG)) is RecursionError
    assert pool.submit(add, 1, 2).result(LONG) == 3


def test_recursion_is_as_deep_as_in_main(pool):
    depth = sys.getrecursionlimit() - 200
    assert pool.submit(recurse, depth).result(LONG) == depth


def test_deep_recursion_through_c():
    """Calls that pass through C use the native stack."""
    run_script(
        """
        import sys
        from subinterp import InterpreterPool

        class Deep:
            def __repr__(self):
                return repr(self)

            def __eq__(self, other):
                return [self] == [other]

        def through_repr():
            return repr(Deep())

        def through_eq():
            return Deep() == Deep()

        def through_sorted(n=0):
            return sorted([0, 1], key=lambda x: through_sorted(n + 1))

        def nested_json():
            import json
            return json.loads("[" * 100_000)  # from 3.14 on, its stack suffices

        def raised_limit():
            import sys
            sys.setrecursionlimit(20_000)
            def f(n):
                return 0 if n == 0 else 1 + f(n - 1)
            return f(15_000)

        with InterpreterPool(1) as pool:
            for fn in (through_repr, through_eq, through_sorted, nested_json):
                error = pool.submit(fn).exception(60)
                assert isinstance(error, RecursionError | ValueError), (fn, error)
            assert pool.submit(raised_limit).result(60) == 15_000
            assert pool.submit(abs, -1).result(60) == 1
        """
    ).clean()


def test_regular_expressions_and_big_frames_have_stack_enough(pool):
    def work():
        import re

        assert re.match("(?:(?:a?)+)+b?", "a" * 5000)
        return compile("+".join(["1"] * 2000), "x", "eval") is not None

    assert pool.submit(work).result(LONG)


# max_workers -----------------------------------------------------------------------------------


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a single core is all there is")
def test_default_workers_honour_affinity():
    result = run_script(
        """
        import os, threading
        from subinterp import InterpreterPool
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:1])
        with InterpreterPool() as pool:
            print(len(pool.broadcast(abs, 1)))
        os.sched_setaffinity(0, cores[:2])
        with InterpreterPool() as pool:
            print(len(pool.broadcast(abs, 1)))
        """
    ).clean()
    one, two = map(int, result.stdout.split())
    assert one == 1
    assert two in (1, 2)  # a quota of the control group may allow less


def test_default_workers_honour_the_cpu_count_of_python():
    result = run_script(
        """
        from subinterp import InterpreterPool
        with InterpreterPool() as pool:
            print(len(pool.broadcast(abs, 1)))
        """,
        env={"PYTHON_CPU_COUNT": "3"},
    ).clean()
    # Either is sensible: what the user says, or what there is.
    assert int(result.stdout) in (3, len(os.sched_getaffinity(0)), 1)


# Output ----------------------------------------------------------------------------------------


def test_capsys_sees_what_tasks_print(pool, capsys):
    pool.submit(say, "to stdout").result(LONG)
    pool.submit(say, "to stderr", file="stderr").result(LONG)
    captured = capsys.readouterr()
    assert "to stdout\n" in captured.out
    assert "to stderr\n" in captured.err


def test_capfd_sees_what_tasks_print(pool, capfd):
    pool.submit(say, "to stdout").result(LONG)
    pool.submit(say, "without an end of line", end="").result(LONG)
    pool.submit(say, "to stderr", file="stderr").result(LONG)
    captured = capfd.readouterr()
    assert captured.out == "to stdout\nwithout an end of line"
    assert captured.err == "to stderr\n"


def test_redirected_stdout_sees_what_tasks_print(pool):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), subinterp.InterpreterPool(1) as inner:
        inner.submit(say, "from a pool made inside").result(LONG)
    assert out.getvalue() == "from a pool made inside\n"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        pool.submit(say, "from a pool made before ä漢").result(LONG)
    assert out.getvalue() == "from a pool made before ä漢\n"


def test_output_of_each_task_is_whole(pool, capfd):
    """Lines of tasks that run side by side are not mixed."""
    list(pool.map(say, [f"line {n} " + "x" * 200 for n in range(300)]))
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"line {n} " + "x" * 200 for n in range(300))


def test_output_of_a_failing_task(pool, capfd):
    def work():
        print("before the error", end="")
        raise ValueError

    assert type(pool.submit(work).exception(LONG)) is ValueError
    assert capfd.readouterr().out == "before the error"


def test_output_of_an_initializer(capfd):
    with subinterp.InterpreterPool(1, initializer=say, initargs=("initializing",)) as pool:
        pool.submit(add, 1, 2).result(LONG)
        assert "initializing\n" in capfd.readouterr().out


@pytest.mark.parametrize("mode", ["file", "-c", "stdin"])
def test_output_of_a_script(mode):
    result = run_script(
        """
        import sys
        from subinterp import InterpreterPool

        def work(n):
            print("out", n, end=";")
            sys.stdout.write("written;")
            print("err", n, file=sys.stderr, end=";")

        with InterpreterPool(1) as pool:
            for n in range(3):
                pool.submit(work, n).result(60)
                print("main", n)
        """,
        mode=mode,
    ).check()
    assert result.stdout == "".join(f"out {n};written;main {n}\n" for n in range(3))
    assert result.stderr == "".join(f"err {n};" for n in range(3))


def test_output_when_stdout_is_closed():
    run_script(
        """
        import os, sys
        from subinterp import InterpreterPool
        sys.stdout = None
        with InterpreterPool(1) as pool:
            pool.submit(print, "nobody hears").result(60)
            assert pool.submit(abs, -1).result(60) == 1
        """
    ).clean()


def test_input_in_a_task():
    """A task does not wait for a terminal that it cannot have."""
    run_script(
        """
        from subinterp import InterpreterPool
        with InterpreterPool(1) as pool:
            error = pool.submit(input).exception(60)
            assert isinstance(error, (EOFError, OSError, RuntimeError)), error
        """
    ).check()


def test_warnings_of_a_task_are_shown():
    result = run_script(
        """
        from subinterp import InterpreterPool

        def work():
            import warnings
            warnings.warn("a warning from the task")

        with InterpreterPool(1) as pool:
            pool.submit(work).result(60)
        """
    ).check()
    assert "a warning from the task" in result.stderr


# Busy pools that are forgotten -----------------------------------------------------------------


def test_pool_forgotten_while_busy(flag):
    mark, gate, started = flag(), flag(), flag()
    pool = subinterp.InterpreterPool(1)
    pool.submit(pass_gate, gate, None, started)
    pool.submit(set_flag, mark)
    assert started.wait(LONG)
    del pool
    gc.collect()
    gate.set()
    assert mark.wait(LONG)


def test_pool_dropped_in_a_task_callback(flag):
    """The last reference goes in the thread that runs callbacks."""
    done = threading.Event()
    holder = [subinterp.InterpreterPool(1)]
    future = holder[0].submit(sleep_return, 0.1, 5)
    future.add_done_callback(lambda f: (holder.clear(), gc.collect(), done.set()))
    assert done.wait(LONG)
    assert future.result(0) == 5


def test_pool_shut_down_by_its_own_task(pool1):
    """It cannot wait for itself: it is told so, or the end comes after the task."""

    def shut_down(pool):
        pool.shutdown(wait=False)
        return "asked"

    assert pool1.submit(shut_down, pool1).result(LONG) == "asked"


def test_many_pools_at_once():
    pools = [subinterp.InterpreterPool(2) for _ in range(8)]
    try:
        futures = [pool.submit(square, n) for n, pool in enumerate(pools)]
        assert [future.result(LONG) for future in futures] == [n * n for n in range(8)]
        ids = [n for pool in pools for n in pool.broadcast(interpreter_id)]
        assert len(set(ids)) == 16
    finally:
        for pool in pools:
            pool.shutdown()


def test_memory_of_large_messages_is_used_again_and_given_back():
    """Of the peak only what may wait is left while the pool is there, and nothing after it."""
    run_script(
        """
        from subinterp import InterpreterPool

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        def total(view):
            return sum(view[::1 << 20])

        each = 16 << 20
        data = memoryview(b"\\1" * each)  # passed on in a block of its own
        with InterpreterPool(1) as pool:
            assert pool.submit(total, data).result() == 16
            before = resident()
            futures = [pool.submit(total, data) for _ in range(40)]
            assert [future.result() for future in futures] == [16] * 40
            del futures
            waiting = resident() - before
            assert waiting <= 20 * each, waiting
        left = resident() - before
        assert left < 4 * each, left
        """
    ).clean()


@pytest.mark.skipif(sys.version_info < (3, 14, 1), reason="this CPython loses memory anyway")
@pytest.mark.skipif(SANITIZED, reason="memory that was freed is kept")
def test_memory_of_interpreters_comes_back():
    """Also if something in them holds a stream to the very end, as threads do."""
    run_script(
        """
        import sys
        from subinterp import InterpreterPool, TaskInterrupted

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        def use_streams():
            import logging, threading
            logging.basicConfig()
            print("x", end="")
            sys.keeps_a_stream = sys.stderr

        def loop():
            import threading
            while True:
                pass

        def rounds(n):
            for _ in range(n):
                with InterpreterPool(1) as pool:
                    pool.submit(use_streams).result()
                with InterpreterPool(1) as pool:
                    future = pool.submit(loop)
                    while not future.running():
                        pass
                    future.interrupt()
                    assert isinstance(future.exception(), TaskInterrupted)

        rounds(5)
        before = resident()
        rounds(15)
        grown = (resident() - before) >> 10
        assert grown < 20_000, grown
        """
    ).clean()


def test_memory_that_is_used_again_belongs_to_one():
    """What is held keeps its content, whatever passes meanwhile."""
    size = 3 << 20

    def filled(n):
        return memoryview(bytes([n]) * (size + n))

    with subinterp.InterpreterPool(2) as pool:
        held = []
        for n in range(60):
            view = pool.submit(filled, n).result(60)
            if n % 3 == 0:
                held.append((n, view))
        for n, view in held:
            assert view == bytes([n]) * (size + n), n


def test_memory_does_not_grow_with_tasks():
    """A leak of even ten bytes a task shows."""
    result = run_script(
        """
        import gc, resource
        from pathlib import Path
        from subinterp import InterpreterPool

        def memory():
            gc.collect()
            return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

        def work(pool):
            for n in range(20_000):
                pool.submit(abs, n).result()
            for _ in pool.map(abs, range(200_000)):
                pass
            for n in range(2000):
                pool.submit(lambda x: x + n, 1).result()
                pool.submit(int, "x").exception()
                pool.submit(len, bytes(100_000)).result()

        with InterpreterPool(2) as pool:
            work(pool)
            work(pool)
            before = memory()
            work(pool)
            work(pool)
            grown = memory() - before
        print(grown)
        assert grown < 8_000_000, grown
        """,
        timeout=200,
    )
    result.clean()

"""`python -m subinterp top`, and `serve_top`."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time

import pytest

import subinterp
from _support import run_script, script_env, wait_until
from subinterp import _top

LONG = 60

# For terminals, which a process gets by a fork.
pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")

PROGRAM = """
import sys
import subinterp


def work(path):
    import os, time

    n = 0
    while not os.path.exists(path):
        n += 1
    return n


subinterp.serve_top(*sys.argv[2:])
with subinterp.InterpreterPool(2, thread_name_prefix="watched") as pool:
    futures = [pool.submit(work, sys.argv[1]) for _ in range(3)]
    print("ready", flush=True)
    for future in futures:
        future.result()
print("over", flush=True)
"""


@contextlib.contextmanager
def program(tmp_path, *args, env=None):
    """A program with two workers, until a file is there."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    end = tmp_path / "end"
    process = subprocess.Popen(
        [sys.executable, str(script), str(end), *args],
        stdout=subprocess.PIPE,
        text=True,
        env=script_env(env),
        cwd=tmp_path,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
        end.touch()
        assert process.stdout.read() == "over\n"
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def top(*args, **kwargs):
    kwargs.setdefault("cwd", "/")  # not the checkout, which would hide an installed package
    return subprocess.run(
        [sys.executable, "-m", "subinterp", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG * 2,
        env=script_env(kwargs.pop("env", None)),
        **kwargs,
    )


@pytest.fixture
def folder(tmp_path):
    """A folder of the user's own, in place of the system's; short, as sockets' paths are."""
    import shutil
    import tempfile

    path = tempfile.mkdtemp(prefix="si-")
    yield {"XDG_RUNTIME_DIR": path}
    shutil.rmtree(path)


# ---- by its number ------------------------------------------------------------------------


def test_a_program_is_looked_at_by_its_number(tmp_path, folder):
    with program(tmp_path, env=folder) as process:
        done = top("top", "-n", "3", "-d", "0.2", str(process.pid), env=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        views = done.stderr.split("subinterp top - ")[1:]
        assert len(views) == 3
        last = views[-1]
        assert f"(process {process.pid}, Python {sys.version.split()[0]})" in last
        assert "pools: 1; workers: 2, 2 running; tasks: 1 queued, 0 done, 0 failed" in last
        rows = re.findall(r"^ +(\d+) (main|watched-\d) +(\w+) +(\S+) +(\S+) ", last, re.MULTILINE)
        assert [row[1] for row in sorted(rows, key=lambda row: row[1])] == [
            "main",
            "watched-0",
            "watched-1",
        ]
        assert re.search(r"watched-0 +running .* (work|exists)$", last, re.MULTILINE)
        # What each of them used of a core between two views.
        assert all(float(row[4]) >= 0 for row in rows)


def test_info_of_a_program(tmp_path, folder):
    with program(tmp_path, env=folder) as process:
        found = {}

        def all_answer():
            done = top("info", "--json", str(process.pid), env=folder)
            found.update(json.loads(done.stdout)["snapshot"])
            return all(one["answer"] == "answered" for one in found["interpreters"][1:])

        # A machine that is busy elsewhere may let a worker miss its time.
        wait_until(all_answer, LONG)
        assert found["pid"] == process.pid and len(found["interpreters"]) == 3
        done = top("info", str(process.pid), env=folder)
        assert done.stdout.count("worker watched-") == 2


def test_a_program_that_has_not_opted_in(folder):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        done = top("top", str(process.pid), env=folder)
        assert done.returncode == 1
        assert "has not called subinterp.serve_top()" in done.stderr
        process.stdin.close()
    done = top("top", "999999999", env=folder)
    assert done.returncode == 1 and "no process 999999999" in done.stderr


def test_a_program_that_was_killed(tmp_path, folder):
    with pytest.raises(AssertionError, match="over"), program(tmp_path, env=folder) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(LONG)
    done = top("top", str(process.pid), env=folder)
    assert done.returncode == 1 and "nobody answers at" in done.stderr
    # Its socket stays, and is no obstacle to the next process of that number.
    path = os.path.join(folder["XDG_RUNTIME_DIR"], f"subinterp-top-{process.pid}.sock")
    assert os.path.exists(path)
    with subinterp.serve_top(path) as server:
        assert server.path == path
    assert not os.path.exists(path)


# ---- who may look --------------------------------------------------------------------------


def test_only_the_user_may_look(tmp_path, folder):
    path = os.path.join(folder["XDG_RUNTIME_DIR"], "s")
    with subinterp.serve_top(path) as server:
        mode = os.lstat(server.path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        with _top.Client(None, path) as client:
            assert client.ask("frame")["pid"] == os.getpid()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_somebody_else_is_turned_away(folder):
    path = os.path.join(folder["XDG_RUNTIME_DIR"], "s")
    os.chmod(folder["XDG_RUNTIME_DIR"], 0o755)
    attempt = textwrap.dedent(
        """
        import os, socket, sys
        os.setgid(65534)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            try:
                s.connect(sys.argv[1])
                s.sendall(b"frame\\n")
                print("got", len(s.recv(100)))
            except OSError as exc:
                print(type(exc).__name__)
        """
    )

    def try_it():
        return subprocess.run(
            [sys.executable, "-I", "-c", attempt, path],
            capture_output=True,
            text=True,
            timeout=LONG,
        ).stdout.strip()

    with subinterp.serve_top(path):
        assert try_it() == "PermissionError"
        # Though the socket let them in, who they are does not.
        os.chmod(path, 0o666)
        assert try_it() in ("got 0", "ConnectionResetError", "BrokenPipeError")


def test_folders_that_others_may_enter_are_not_used(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared))
    assert not _top._is_private(str(shared))
    link = tmp_path / "link"
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    link.symlink_to(private)
    assert _top._is_private(str(private)) and not _top._is_private(str(link))
    monkeypatch.setattr(_top, "_places", lambda: iter([str(shared), str(link)]))
    with pytest.raises(subinterp.SubinterpError, match="yours alone"):
        subinterp.serve_top()


def test_what_cannot_be_served():
    with pytest.raises(ValueError, match="107 bytes"):
        subinterp.serve_top("/tmp/" + "x" * 200)
    with pytest.raises(OSError, match="cannot listen at /nowhere/s"):
        subinterp.serve_top("/nowhere/s")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="cannot listen"):
        subinterp.serve_top(path)
    assert path.read_text() == "mine"


def test_a_worker_cannot_serve():
    with subinterp.InterpreterPool(1) as pool:
        future = pool.submit(subinterp.serve_top)
        assert isinstance(future.exception(LONG), subinterp.SubinterpError)
        assert "main interpreter" in str(future.exception())


# ---- the server ----------------------------------------------------------------------------


def test_serving_twice_is_serving_once(folder):
    path = os.path.join(folder["XDG_RUNTIME_DIR"], "s")
    with subinterp.serve_top(path) as server:
        assert subinterp.serve_top() is server is subinterp.serve_top(path)
        with pytest.raises(ValueError, match="already"):
            subinterp.serve_top(path + "2")
        server.close()
        server.close()
        with subinterp.serve_top(path) as other:
            assert other is not server


def test_clients_that_misbehave(folder):
    path = os.path.join(folder["XDG_RUNTIME_DIR"], "s")
    with subinterp.serve_top(path):
        idle = []
        for _ in range(20):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            idle.append(connection)
        # More than are served at once: the others were turned away.
        for connection in idle:
            connection.close()

        def answers():
            with contextlib.suppress(OSError), _top.Client(None, path) as client:
                return client.ask("frame")["pid"] == os.getpid()

        wait_until(answers)
        with _top.Client(None, path) as client:
            with pytest.raises(OSError, match="there is no 'secrets'"):
                client.ask("secrets")
            with pytest.raises(OSError, match="could not answer"):
                client.ask("x" * 70)
            assert client.ask("frame")["pid"] == os.getpid()
        for rubbish in (b"\0\xff\n", b"x" * 100000, b"frame"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                with contextlib.suppress(OSError):
                    connection.sendall(rubbish)
        wait_until(answers)


def test_many_look_at_once(folder):
    path = os.path.join(folder["XDG_RUNTIME_DIR"], "s")
    pids = []

    def look():
        with _top.Client(None, path) as client:
            pids.extend(client.ask("frame")["pid"] for _ in range(5))

    with subinterp.serve_top(path), subinterp.InterpreterPool(2) as pool:
        future = pool.submit(sum, range(10**6))
        threads = [threading.Thread(target=look) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert future.result(LONG) == 499999500000
    assert pids == [os.getpid()] * 25


def test_the_socket_goes_with_the_process(folder):
    path = os.path.join(folder["XDG_RUNTIME_DIR"], "s")
    run_script(
        """
        import os, sys, subinterp
        server = subinterp.serve_top(sys.argv[1])
        pid = os.fork()
        if pid == 0:
            # The parent's: nobody answers here, and it stays where it is.
            server.close()
            os._exit(0 if os.path.exists(sys.argv[1]) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        pid = os.fork()
        if pid == 0:
            with subinterp.serve_top(sys.argv[1] + "c") as mine:
                os._exit(mine is server)
        assert os.waitpid(pid, 0)[1] == 0
        """,
        args=[path],
        env={"PYTHONWARNINGS": "ignore::DeprecationWarning"},
    ).clean()
    assert not os.path.exists(path)


# ---- running a program ----------------------------------------------------------------------

SCRIPT = """
import colorsys
import sys
import subinterp
from other import VALUE


class Point:
    def __init__(self, x):
        self.x = x


def work(n):
    return Point(n + VALUE)


if __name__ == "__main__":
    print("args", sys.argv[1:], __file__, flush=True)
    assert "" not in sys.path and sys.path[0] == sys.argv[0].rpartition("/")[0], sys.path
    with subinterp.InterpreterPool(2) as pool:
        points = list(pool.map(work, range(10)))
    assert all(isinstance(point, Point) for point in points)
    print("sum", sum(point.x for point in points))
    print("to stderr", file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "other.py").write_text("VALUE = 5\n")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_a_program_is_run(script, tmp_path):
    # Not on the path of a script: where it is started.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "colorsys.py").write_text("raise SystemExit('the wrong one')")
    done = top("top", "-d", "0.1", "--", script, "a", "--flag", "-n", "--", "b", cwd=elsewhere)
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"args ['a', '--flag', '-n', '--', 'b'] {script}\nsum 95\n"
    assert "to stderr\n" in done.stderr and "subinterp top - " in done.stderr


def test_a_program_that_raises(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("def f():\n    raise ValueError('so it is')\nf()\n")
    done = top("top", "--", str(path))
    assert done.returncode == 1
    assert "ValueError: so it is" in done.stderr and "_top.py" not in done.stderr
    assert f'File "{path}", line 3' in done.stderr


def test_a_program_that_ends_at_once_or_is_killed(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("")
    assert top("top", "--", str(path)).returncode == 0
    path.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert top("top", "--", str(path)).returncode == 128 + 9
    path.write_text("import os; os._exit(7)")
    assert top("top", "--", str(path)).returncode == 7


def test_what_the_command_refuses(tmp_path):
    for args, why in (
        ([], "a process's number is needed"),
        (["--", "nowhere.py"], "no file 'nowhere.py'"),
        (["-d", "0", "1"], "delay"),
        (["-n", "0", "1"], "views"),
        (["--socket", "x", "--", "script.py"], "runs already"),
    ):
        done = top("top", *args, cwd=tmp_path)
        assert done.returncode == 2 and why in done.stderr, args
    done = top("top", "--socket", str(tmp_path / "none"))
    assert done.returncode == 1 and "nobody answers at" in done.stderr


# ---- in a terminal ----------------------------------------------------------------------------


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *args, cwd, env=None, columns=100, lines=30):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
                os.chdir(cwd)
                # Not `execv`: readline exports the size of another terminal.
                full = {**script_env(env), "TERM": "xterm"}
                command = [sys.executable, "-m", "subinterp", *args]
                os.execve(sys.executable, command, full)
            finally:
                os._exit(99)
        self.text = ""
        self.status = None

    def read_until(self, pattern):
        deadline = time.monotonic() + LONG
        while not re.search(pattern, self.text, re.DOTALL):
            assert time.monotonic() < deadline, self.text
            if not self.read():
                assert re.search(pattern, self.text, re.DOTALL), self.text
                return

    def read(self):
        if not select.select([self.fd], [], [], 1)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # all its users are gone
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def press(self, keys):
        os.write(self.fd, keys)

    def end(self):
        deadline = time.monotonic() + LONG
        while self.read():
            assert time.monotonic() < deadline, self.text
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def close(self):
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@contextlib.contextmanager
def terminal(*args, **kwargs):
    it = Terminal(*args, **kwargs)
    try:
        yield it
    finally:
        it.close()


ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"

WAITS = """
import os, sys, time
import subinterp

print("first line", flush=True)
with subinterp.InterpreterPool(1, thread_name_prefix="shown") as pool:
    pool.submit(len, ()).result()
    print("\\x1b[31mred\\x1b[0m", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
print("last line")
print(repr(sys.stdin.read()))
"""


@contextlib.contextmanager
def view_of_a_program(tmp_path):
    """The terminal in which `top` runs WAITS, and the file that the program waits for."""
    script = tmp_path / "script.py"
    script.write_text(WAITS)
    end = tmp_path / "end"
    with terminal("top", "-d", "0.1", "--", str(script), str(end), cwd=tmp_path) as it:
        yield it, end


def test_the_view_in_a_terminal(tmp_path):
    with view_of_a_program(tmp_path) as (it, end):
        it.read_until(r"shown-0 .*first line")
        assert it.text.index(ENTER) < it.text.index("shown-0")
        # The program's own commands to the terminal are not obeyed.
        it.read_until(r"\?\[31mred")
        assert "\x1b[31m" not in it.text and LEAVE not in it.text
        end.touch()
        assert it.end() == 0
        _, _, after = it.text.partition(LEAVE)
        assert after.split() == ["first", "line", "\x1b[31mred\x1b[0m", "last", "line", "''"]
        widths = [len(re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", line)) for line in it.text.split("\r\n")]
        assert max(widths) <= 100


def test_leaving_the_view_lets_the_program_run(tmp_path):
    with view_of_a_program(tmp_path) as (it, end):
        it.read_until(r"shown-0")
        it.press(b"q")
        it.read_until(re.escape(LEAVE) + r".*first line")
        end.touch()
        it.read_until("last line")
        assert it.end() == 0


def test_ctrl_c_ends_the_program(tmp_path):
    with view_of_a_program(tmp_path) as (it, _):
        it.read_until(r"shown-0")
        it.press(b"\x03")
        assert it.end() == 128 + signal.SIGINT, it.text
        assert LEAVE in it.text and "KeyboardInterrupt" in it.text.partition(LEAVE)[2]


def test_a_running_program_in_a_terminal(tmp_path, folder):
    with (
        program(tmp_path, env=folder) as process,
        terminal("top", "-d", "0.1", str(process.pid), cwd=tmp_path, env=folder) as it,
    ):
        it.read_until(r"watched-0")
        it.press(b"x")
        it.read_until(r"watched-0.*watched-0")
        it.press(b"q")
        assert it.end() == 0
        assert it.text.rstrip().endswith(LEAVE)


def test_the_view_follows_the_size(tmp_path, folder):
    with (
        program(tmp_path, env=folder) as process,
        terminal("top", "-d", "0.1", str(process.pid), cwd=tmp_path, env=folder, lines=8) as it,
    ):
        it.read_until(r"watched-\d")  # there is room for one
        frames = it.text.split("\x1b[H")[1:]
        assert max(frame.count("\n") for frame in frames) <= 7, it.text
        it.press(b"q")
        assert it.end() == 0


# ---- rendering -------------------------------------------------------------------------------


def test_workers_that_share_an_interpreter_are_one_row():
    with subinterp.InterpreterPool(1, threads_per_interpreter=2, thread_name_prefix="both") as pool:
        pool.broadcast(time.sleep, 0)
        shown = "\n".join(_top.render(_top.frame(), None, 200, 50))
    [row] = [line for line in shown.splitlines() if "both-" in line]
    assert " +1 " in row and " 0 running " in row, shown
    assert "workers: 2, 0 running" in shown


def test_a_frame_is_rendered_within_its_size():
    with subinterp.InterpreterPool(3) as pool:
        pool.broadcast(len, ())
        before = _top.frame()
        now = _top.frame()
    json.dumps(now)
    for width, height in ((200, 50), (80, 24), (20, 5), (1, 1)):
        lines = _top.render(now, before, width, height, ["x" * 300, "last"] * 30)
        assert len(lines) <= height and all(len(line) <= width for line in lines)
    lines = _top.render(now, before, 200, 50, ["the tail"])
    assert lines[-1] == "the tail"
    assert sum(line.split()[1:2] == [f"{pool._name}-{n}"] for line in lines for n in range(3)) == 3


def test_text_of_the_program_is_not_obeyed():
    now = _top.frame()
    now["program"] = "\x1b]0;title\x07\r\n"
    lines = _top.render(now, None, 200, 50, ["\x1b[2J\u202e"])
    assert all(line.isprintable() for line in lines)

"""``python -m subinterp top``, and `serve_top`, which lets a running program be looked at."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO, Any, Self

from subinterp import _core, runtime
from subinterp.errors import SubinterpError

__all__ = ["Client", "TopServer", "frame", "serve_top"]

# How long interpreters have for reporting what they run, in a frame.
_PATIENCE = 0.05
# Connections that are served at once.
_MOST_CLIENTS = 8
# An answer is complete within so many seconds, and so large at most.
_LIMIT_SECONDS = 10.0
_LIMIT_BYTES = 64 << 20
# A path of a Unix socket is shorter.
_LIMIT_PATH = 108
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

type Frame = dict[str, Any]


# ---- what there is to see ----------------------------------------------------------------


def frame() -> Frame:
    """Return what `top` shows of this process, as plain values.

    Notes
    -----
    Blocks for up to 50 ms, if an interpreter does not report itself.
    """
    seen = runtime.snapshot(_PATIENCE)
    at = {"busy": 0, **_core.meter_layout()}
    pools = []
    for number, name, creator, most, (queued, gone, workers) in _core.look_at_pools():
        totals = list(gone)
        rows = []
        for index, state, thread_id, interpreter, memory, since, counts in workers:
            totals = [a + b for a, b in zip(totals, counts, strict=True)]
            rows.append(
                {
                    "name": f"{name or 'subinterp'}-{index}",
                    "state": state,
                    "thread_id": thread_id,
                    "interpreter": interpreter,
                    "memory": memory,
                    "since": max(since, 0) * 1e-9,
                    "done": counts[at["done"]],
                    "failed": counts[at["failed"]],
                }
            )
        pools.append(
            {
                "id": number,
                "name": name,
                "creator": creator,
                "max_workers": most,
                "queued": queued,
                "done": totals[at["done"]],
                "failed": totals[at["failed"]],
                "workers": rows,
            }
        )
    interpreters = []
    for one in seen.interpreters:
        threads = [
            {
                "native_id": thread.native_id,
                "name": thread.name,
                "lock": thread.lock,
                "function": thread.function,
                "cpu": _cpu_seconds(f"/proc/self/task/{thread.native_id}/stat"),
            }
            for thread in one.threads or ()
        ]
        interpreters.append(
            {
                "id": one.id,
                "state": one.state,
                "answer": one.answer,
                "made_by": one.made_by,
                "lock": one.lock,
                "modules": None if one.modules is None else len(one.modules),
                "threads": threads,
            }
        )
    return {
        "pid": seen.pid,
        "program": " ".join(getattr(sys, "argv", [])),
        "python": sys.version.split()[0],
        "time": time.monotonic(),
        "up": _up_seconds(),
        "cpu": _cpu_seconds("/proc/self/stat"),
        "memory": _resident(),
        "cores": _core.usable_cores(),
        "pools": pools,
        "interpreters": interpreters,
    }


def _stat(path: str) -> list[str]:
    """Return the fields after the name; empty if the thread is gone."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(path: str) -> float | None:
    words = _stat(path)
    return (int(words[11]) + int(words[12])) / _TICKS if len(words) > 12 else None


def _up_seconds() -> float | None:
    words = _stat("/proc/self/stat")
    if len(words) <= 19:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / _TICKS


def _resident() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return None


# ---- letting oneself be looked at ----------------------------------------------------------


def _places() -> Iterator[str]:
    """Folders for sockets: the user's own, the best one first."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        yield given
    yield f"/run/user/{os.getuid()}"
    yield os.path.join(tempfile.gettempdir(), f"subinterp-{os.getuid()}")


def _is_private(folder: str) -> bool:
    """Return True for a folder, no link, of this user that nobody else may enter."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and stat.S_IMODE(found.st_mode) & 0o077 == 0
    )


def _own_path(pid: int) -> str:
    """Return the path for this process's socket, in a folder that nobody else may enter."""
    tried = []
    for folder in _places():
        if os.path.basename(folder) == f"subinterp-{os.getuid()}":
            with contextlib.suppress(FileExistsError, OSError):
                os.mkdir(folder, 0o700)
        if _is_private(folder):
            return os.path.join(folder, f"subinterp-top-{pid}.sock")
        tried.append(folder)
    raise SubinterpError(
        "no folder for the socket: none of "
        + ", ".join(tried)
        + " is yours alone (mode 0700); name a path with serve_top(path)"
    )


def _peer(connection: socket.socket) -> tuple[int, int]:
    """(process, user) at the other end."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", data)
    return pid, uid


class _Closed:
    """Closed at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class TopServer(_Closed):
    """Answers `python -m subinterp top` and `info`. Made by `serve_top`.

    Attributes
    ----------
    path : str
        The socket.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid = os.getpid()
        self._closed = False
        self._slots = threading.BoundedSemaphore(_MOST_CLIENTS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _forget_stale(path)
            self._socket.bind(path)
            # Whoever comes before this is turned away by who it is.
            os.chmod(path, 0o600)
            self._socket.listen(_MOST_CLIENTS)
        except OSError as exc:
            self._socket.close()
            raise OSError(exc.errno, f"cannot listen at {path}: {exc.strerror}") from exc
        self._inode = os.lstat(path).st_ino
        threading.Thread(target=self._serve, name="subinterp-top", daemon=True).start()
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<TopServer at {self.path!r}{', closed' * self._closed}>"

    def close(self) -> None:
        """Stop answering and remove the socket. Idempotent; does not block."""
        global _server
        if self._closed:
            return
        self._closed = True
        with _server_lock:
            if _server is self:
                _server = None
        atexit.unregister(self.close)
        if os.getpid() == self._pid:
            # Only what is still ours.
            with contextlib.suppress(OSError):
                if os.lstat(self.path).st_ino == self._inode:
                    os.unlink(self.path)
            # It may be waited on by our thread, which close() alone would not wake.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if not self._closed:
                    time.sleep(0.1)  # too many open files, perhaps
                continue
            if _peer(connection)[1] != os.getuid() or not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._talk, args=(connection,), name="subinterp-top", daemon=True
            ).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as lines:
                connection.settimeout(None)
                while not self._closed:
                    line = lines.readline(80)
                    if not line:
                        break
                    connection.settimeout(_LIMIT_SECONDS)
                    connection.sendall(_answer(line) + b"\n")
                    connection.settimeout(None)
        except (OSError, ValueError):
            pass  # it has gone
        finally:
            self._slots.release()


def _answer(line: bytes) -> bytes:
    what = line.strip().decode("ascii", "replace")
    try:
        if what == "frame":
            return json.dumps(frame()).encode()
        if what == "info":
            from subinterp import _info

            return json.dumps(_info.facts()).encode()
        return json.dumps({"error": f"there is no {what!r}"}).encode()
    except Exception as exc:
        return json.dumps({"error": f"{type(exc).__name__}: {exc}"}).encode()


def _forget_stale(path: str) -> None:
    """Remove a socket that nobody listens at any more."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass


_server_lock = threading.Lock()
_server: TopServer | None = None


def serve_top(path: str | os.PathLike[str] | None = None) -> TopServer:
    """Let this process be looked at by ``python -m subinterp top PID`` and ``info PID``.

    Parameters
    ----------
    path : path-like, optional
        Where the socket shall be, of at most 107 bytes; by default in a folder of the user's own
        (``$XDG_RUNTIME_DIR``, ``/run/user/UID`` or ``/tmp/subinterp-UID``), where
        it is found by the process's number.

    Returns
    -------
    TopServer
        A second call returns the same. It ends with its `close` or the process.

    Raises
    ------
    OSError
        If there can be no socket at `path`.
    SubinterpError
        If no folder is the user's alone, or this is not the main interpreter.
    ValueError
        If `path` is too long, or another one than before.

    Notes
    -----
    Does not block. A daemon thread answers, under the main interpreter's lock; nothing
    runs while nobody asks. Only processes of the same user are answered. In the
    child of a fork nobody answers until it calls this itself.
    """
    global _server
    if _core.current_interpreter_id() != 0:
        raise SubinterpError("serve_top() is for the main interpreter")
    wanted = None if path is None else os.fspath(path)
    with _server_lock:
        if _server is not None and _server._pid != os.getpid():
            _server._socket.close()
            _server = None
        if _server is not None:
            if wanted not in (None, _server.path):
                raise ValueError(f"this process is served at {_server.path} already: close that")
            return _server
        found = wanted if wanted is not None else _own_path(os.getpid())
        if len(os.fsencode(found)) >= _LIMIT_PATH:
            raise ValueError(f"a socket's path has at most {_LIMIT_PATH - 1} bytes: {found}")
        _server = TopServer(found)
        return _server


def _close_in_child() -> None:
    # Its lock may have been held by a thread that the child does not have.
    global _server_lock
    _server_lock = threading.Lock()
    if _server is not None:
        _server._socket.close()


if _core.current_interpreter_id() == 0:
    os.register_at_fork(after_in_child=_close_in_child)


# ---- looking ---------------------------------------------------------------------------------


def number(text: str | None) -> int | None:
    """Return a process's number; raise ValueError if it is none."""
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"a process's number is expected, not {text!r}")
    return int(text)


class Client(_Closed):
    """A connection to a process that called `serve_top`.

    Raises
    ------
    OSError
        If it cannot be reached.
    """

    def __init__(self, pid: int | None, path: str | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_LIMIT_SECONDS)
            self._connect(pid, path)
            self._lines = self._socket.makefile("rb")
        except BaseException:
            self._socket.close()
            raise

    def _connect(self, pid: int | None, path: str | None) -> None:
        if path is None:
            paths = [
                os.path.join(folder, f"subinterp-top-{pid}.sock")
                for folder in _places()
                if _is_private(folder)
            ]
            path = next((found for found in paths if os.path.exists(found)), None)
            if path is None:
                if not os.path.exists(f"/proc/{pid}"):
                    raise ProcessLookupError(f"there is no process {pid}")
                raise FileNotFoundError(
                    f"process {pid} has not called subinterp.serve_top(), or is another user's"
                )
        try:
            self._socket.connect(path)
        except OSError as exc:
            raise type(exc)(f"nobody answers at {path}: {exc.strerror or exc}") from None
        if _peer(self._socket)[1] not in (os.getuid(), 0):
            raise PermissionError(f"{path} is served by another user")

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._socket.close()

    def ask(self, what: str) -> dict[str, Any]:
        """Return the answer to "frame" or "info".

        Raises
        ------
        OSError
            If the process has ended, or does not answer.
        """
        try:
            self._socket.sendall(what.encode() + b"\n")
            line = self._lines.readline(_LIMIT_BYTES)
        except TimeoutError:
            raise TimeoutError(
                "the process does not answer: its main interpreter is busy"
            ) from None
        if not line.endswith(b"\n"):
            raise ConnectionError("the process has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise OSError(f"the process could not answer: {answer['error']}")
        return answer


# ---- the view --------------------------------------------------------------------------------


def _plain(text: object) -> str:
    """Text from another program: nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def _size(n: int | None) -> str:
    if n is None:
        return "-"
    size = float(n)
    for unit in "BKMG":
        if size < 1000 or unit == "G":
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
        size /= 1024
    raise AssertionError


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _share(now: float | None, before: float | None, elapsed: float) -> str:
    if now is None or before is None or elapsed <= 0:
        return "-"
    return f"{max(now - before, 0) / elapsed * 100:.0f}"


def render(
    now: Frame, before: Frame | None, width: int, height: int, tail: Sequence[str] = ()
) -> list[str]:
    """Return the lines of the view.

    Parameters
    ----------
    now, before : dict
        Two frames, for what is counted between them; None: there is none before.
    width, height : int
        Of the terminal: lines are cut, and there are no more of them.
    tail : sequence of str
        What the program has written last.
    """
    elapsed = 0.0 if before is None else now["time"] - before["time"]
    old = before or {"cpu": None, "pools": [], "interpreters": []}
    done = sum(pool["done"] for pool in now["pools"])
    failed = sum(pool["failed"] for pool in now["pools"])
    done_before = sum(pool["done"] for pool in old["pools"])
    workers = [worker for pool in now["pools"] for worker in pool["workers"]]
    running = sum(worker["state"] == "running" for worker in workers)
    rate = f", {max(done - done_before, 0) / elapsed:.0f}/s" if elapsed > 0 else ""
    lines = [
        f"subinterp top - {_plain(now['program'])} (process {now['pid']}, Python {now['python']})",
        f"up {_clock(now['up'])}, {_share(now['cpu'], old['cpu'], elapsed)} %CPU of "
        f"{100 * now['cores']}, memory {_size(now['memory'])}",
        f"pools: {len(now['pools'])}; workers: {len(workers)}, {running} running; "
        f"tasks: {sum(pool['queued'] for pool in now['pools'])} queued, {done} done, "
        f"{failed} failed{rate}",
        "",
        f"{'INTERP':>6} {'WHO':<16} {'STATE':<10} {'LOCK':<8} {'%CPU':>5} {'TIME':>8} "
        f"{'MEM':>7} {'DONE':>9} {'FAILED':>6}  RUNS",
    ]
    by_interpreter: dict[int, list[dict[str, Any]]] = {}
    for worker in workers:
        by_interpreter.setdefault(worker["interpreter"], []).append(worker)
    cpu_before = {
        thread["native_id"]: thread["cpu"]
        for one in old["interpreters"]
        for thread in one["threads"]
    }
    for one in now["interpreters"]:
        inside = by_interpreter.get(one["id"], [])
        threads = one["threads"]
        cpu = sum(thread["cpu"] or 0 for thread in threads)
        known = [thread for thread in threads if cpu_before.get(thread["native_id"]) is not None]
        share = _share(
            sum(thread["cpu"] or 0 for thread in known),
            sum(cpu_before[thread["native_id"]] for thread in known),
            elapsed if known else 0,
        )
        states = {thread["lock"] for thread in threads}
        lock = "held" if "holds" in states else "free" if states else "-"
        waiting = sum(thread["lock"] == "waits" for thread in threads)
        if waiting:
            lock += f"+{waiting}"
        runs = next((thread["function"] for thread in threads if thread["function"]), "")
        if one["answer"] not in ("answered", "parked"):
            runs = f"({one['answer']})"
        who, state, memory = "main" if one["id"] == 0 else "-", one["state"] or "-", None
        done_here, failed_here = "-", "-"
        if inside:
            who, state = inside[0]["name"], inside[0]["state"]
            if len(inside) > 1:
                busy = sum(worker["state"] == "running" for worker in inside)
                who, state = f"{who} +{len(inside) - 1}", f"{busy} running"
            # They share the interpreter, and each of them has its memory.
            memory = max(worker["memory"] or 0 for worker in inside) or None
            done_here = str(sum(worker["done"] for worker in inside))
            failed_here = str(sum(worker["failed"] for worker in inside))
        lines.append(
            f"{one['id']:>6} {_plain(who):<16.16} {state:<10.10} {lock:<8} {share:>5} "
            f"{_clock(cpu):>8} {_size(memory):>7} {done_here:>9} {failed_here:>6}  {_plain(runs)}"
        )
    room = height - len(lines) - 2
    if tail and room > 0:
        lines += ["", *[_plain(line) for line in list(tail)[-room:]]]
    return [line[:width] for line in lines[:height]]


# ---- the command ---------------------------------------------------------------------------------

DESCRIPTION = """\
Show a program's interpreters, workers, tasks, CPU time and memory while it runs.

  python -m subinterp top -- script.py args    runs a program and shows it
  python -m subinterp top PID                  shows one that has called
                                               subinterp.serve_top()

In a terminal the view is refreshed in place (q leaves it); the last lines that the program
prints stand below it, and all of them are printed at its end. Elsewhere the program's output
goes where it would, and the views are written to the standard error stream.
The exit status is the program's.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = DESCRIPTION
    parser.usage = "python -m subinterp top [options] (PID | -- SCRIPT [ARG ...])"
    parser.add_argument(
        "-d", "--delay", type=float, default=1.0, metavar="SECONDS", help="between two views"
    )
    parser.add_argument("-n", "--views", type=int, metavar="N", help="leave after so many views")
    parser.add_argument(
        "--socket", metavar="PATH", help="the path that the program gave to serve_top()"
    )
    parser.add_argument("what", nargs="*", metavar="PID | SCRIPT", help="what is shown")


def run(args: argparse.Namespace) -> int:
    """Show it. Returns the exit status."""
    if not 0.05 <= args.delay <= 3600:
        return _complain("the delay must be between 0.05 and 3600 seconds")
    if args.views is not None and args.views < 1:
        return _complain("the number of views must be at least 1")
    if args.socket is None and not args.what:
        return _complain("a process's number is needed, or a program: top -- script.py")
    is_program = bool(args.what) and not (len(args.what) == 1 and args.what[0].isdecimal())
    if is_program and args.socket is not None:
        return _complain("--socket is for a program that runs already")
    if is_program:
        return _run_program(args.what, args.delay, args.views)
    try:
        client = Client(number(args.what[0] if args.what else None), args.socket)
    except (OSError, ValueError) as exc:
        return _complain(str(exc), 1)
    with client, _screen(sys.stdout) as show:
        try:
            _watch(client, show, args.delay, args.views, lambda: ())
        except KeyboardInterrupt:
            return 0
        except OSError as exc:
            return _complain(str(exc), 1)
    return 0


def _complain(why: str, status: int = 2) -> int:
    print(f"subinterp top: {why}", file=sys.stderr)
    return status


type _Show = Callable[[Frame, Frame | None, Sequence[str]], None]


def _watch(
    client: Client, show: _Show, delay: float, views: int | None, tail: Callable[[], Sequence[str]]
) -> bool:
    """Show frames until the program ends. False: the user has left, or there were enough."""
    before = None
    left = views
    while left is None or left > 0:
        try:
            now = client.ask("frame")
        except ConnectionError:
            return True
        show(now, before, tail())
        before = now
        if left is not None:
            left -= 1
        if left != 0 and _left(delay):
            return False
    return False


def _left(delay: float) -> bool:
    """Wait; True: the user has pressed q."""
    if not _keys_are_ours():
        time.sleep(delay)
        return False
    until = time.monotonic() + delay
    while (rest := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], rest)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q"):
                return True
            if not key:
                time.sleep(max(until - time.monotonic(), 0))
    return False


def _keys_are_ours() -> bool:
    return _is_terminal(sys.stdin) and _is_terminal(sys.stdout)


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


@contextlib.contextmanager
def _screen(stream: IO[str]) -> Iterator[_Show]:
    """Show views on the terminal's other screen; elsewhere as text on the error stream."""

    def show(now: Frame, before: Frame | None, tail: Sequence[str]) -> None:
        size = shutil.get_terminal_size()
        lines = render(now, before, size.columns, size.lines - 1, tail)
        stream.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        stream.flush()

    def write(now: Frame, before: Frame | None, tail: Sequence[str]) -> None:
        print("\n".join(render(now, before, 200, 10000)), end="\n\n", file=sys.stderr, flush=True)

    if not _is_terminal(stream):
        yield write
        return
    import termios
    import tty

    keys = sys.stdin.fileno() if _keys_are_ours() else None
    mode = None if keys is None else termios.tcgetattr(keys)
    stream.write("\x1b[?1049h\x1b[?25l\x1b[2J")
    stream.flush()
    try:
        if keys is not None:
            tty.setcbreak(keys)
        yield show
    finally:
        if keys is not None and mode is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, mode)
        stream.write("\x1b[?25h\x1b[?1049l")
        stream.flush()


class _Output:
    """What a program writes, while the view has the terminal."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=200)
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115
        self._lock = threading.Lock()
        self._passing = False
        self._threads: list[threading.Thread] = []

    def take(self, pipe: IO[bytes], stream: int) -> None:
        thread = threading.Thread(target=self._read, args=(pipe, stream), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read(self, pipe: IO[bytes], stream: int) -> None:
        with pipe:
            for line in iter(pipe.readline, b""):
                with self._lock:
                    self.tail.append(line.decode("utf-8", "replace").rstrip())
                    if self._passing:
                        self._write(line, stream)
                    else:
                        self._kept.write(struct.pack("=BQ", stream, len(line)) + line)

    @staticmethod
    def _write(data: bytes, stream: int) -> None:
        out = sys.stdout if stream == 1 else sys.stderr
        with contextlib.suppress(OSError, ValueError):
            out.flush()
            out.buffer.write(data)
            out.buffer.flush()

    def pass_on(self) -> None:
        """Write what was kept where it belongs, and what comes from now on at once."""
        with self._lock:
            self._kept.seek(0)
            while head := self._kept.read(9):
                stream, n = struct.unpack("=BQ", head)
                self._write(self._kept.read(n), stream)
            self._kept.close()
            self._passing = True

    def finish(self) -> None:
        for thread in self._threads:
            # A process that it has started may keep the pipe open.
            thread.join(timeout=1)


def _run_program(argv: Sequence[str], delay: float, views: int | None) -> int:
    if not os.path.exists(argv[0]):
        return _complain(f"there is no file {argv[0]!r}")
    in_terminal = _is_terminal(sys.stdout)
    with tempfile.TemporaryDirectory(prefix="subinterp-top-") as folder:
        path = os.path.join(folder, "socket")
        command = [
            sys.executable,
            *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
            "-c",
            _START,
            _HOME,
            path,
            *argv,
        ]
        output = _Output() if in_terminal else None
        pipe = subprocess.PIPE if in_terminal else None
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if _keys_are_ours() else None,
            stdout=pipe,
            stderr=pipe,
        )
        try:
            if output is not None:
                assert child.stdout is not None and child.stderr is not None
                output.take(child.stdout, 1)
                output.take(child.stderr, 2)
            client = _connect(child, path)
            if client is not None:
                # A view that was not answered is not worth a message.
                with client, _screen(sys.stdout) as show, contextlib.suppress(OSError):
                    _watch(client, show, delay, views, lambda: output.tail if output else ())
            if output is not None:
                output.pass_on()
            status = child.wait()
        except KeyboardInterrupt:
            # It got the same signal.
            if output is not None and not output._passing:
                output.pass_on()
            status = _wait_interrupted(child)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if output is not None:
            output.finish()
    return status if status >= 0 else 128 - status


def _connect(child: subprocess.Popen[bytes], path: str) -> Client | None:
    """Return the program's socket, once it is there; None: the program has ended before."""
    while child.poll() is None:
        if os.path.exists(path):
            try:
                return Client(None, path)
            except OSError:
                pass  # it is made, but nobody listens yet
        time.sleep(0.02)
    return None


def _wait_interrupted(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGTERM)
        try:
            return child.wait(5)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            child.kill()
            return child.wait()


# In place of the current folder, which is not on the path of a script.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_START = """\
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
sys.path.append(sys.argv.pop(1))
from subinterp._top import main_of_program
sys.path.pop()
main_of_program()
"""


def main_of_program() -> None:
    """In the process that `top` starts: serve, and run the script as Python would."""
    import builtins
    import io
    from types import ModuleType

    path, script, *args = sys.argv[1:]
    serve_top(path)
    sys.argv[:] = [script, *args]
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
    with io.open_code(os.path.abspath(script)) as file:
        code = compile(file.read(), script, "exec")
    main = ModuleType("__main__")
    main.__dict__.update(__file__=script, __builtins__=builtins)
    main.__spec__ = None
    sys.modules["__main__"] = main
    try:
        exec(code, main.__dict__)
    except SystemExit:
        raise
    except BaseException as exc:
        # As if it had been started by itself: without this function.
        trace = exc.__traceback__
        exc.__traceback__ = trace.tb_next if trace is not None else None
        sys.excepthook(type(exc), exc, exc.__traceback__)
        sys.exit(128 + signal.SIGINT if isinstance(exc, KeyboardInterrupt) else 1)

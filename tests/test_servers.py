"""The example servers: light requests beside heavy ones, gone clients, overload, the end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from _support import script_env, wait_until

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

# Trial division up to here takes hours: such a request ends only if its task is stopped.
ENDLESS = 100_000_000

# What uvicorn logs before it cancels requests, and tells what they were at.
CANCELLED = "Cancel 3 running task(s), timeout graceful shutdown exceeded"

# How each server is started, and what it may end with: uvicorn, at its very end, has the signal
# that stopped it act as it would have.
SERVERS = {"asgi": (["--grace", "1"], {0, -signal.SIGTERM}), "wsgi": ([], {0})}


COMMON = ["--port", "0", "--workers", "2", "--queue", "1"]


class Server:
    """A server in a process of its own; two workers, and one request may wait."""

    def __init__(self, kind, folder):
        options, self.good_ends = SERVERS[kind]
        self.log = folder / f"{kind}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, EXAMPLES / f"{kind}_app.py", *COMMON, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=script_env(),
                cwd=folder,  # not the checkout, which would hide an installed package
            )
        try:
            wait_until(self._find_port, 60, f"the start of the server\n{self.text()}")
        except BaseException:
            self.kill()
            raise

    def _find_port(self):
        assert self.process.poll() is None, self.text()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.text())
        if found:
            self.port = int(found[1])
        return found

    def text(self):
        return self.log.read_text()

    def get(self, path, timeout=120):
        """Return the status, the headers, and what the JSON says."""
        with contextlib.closing(self.connect(timeout)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            is_json = response.headers["Content-Type"] == "application/json"
            return response.status, response.headers, json.loads(body) if is_json else body

    def connect(self, timeout=120):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    @contextlib.contextmanager
    def heavy(self, n):
        """Have n requests for endless work under way; their clients go away at the end."""
        before = self.stats()["active"]
        with contextlib.ExitStack() as stack:
            connections = []
            for _ in range(n):
                connection = stack.enter_context(contextlib.closing(self.connect()))
                connection.request("GET", f"/primes?below={ENDLESS}")
                connections.append(connection)
            wait_until(lambda: self.stats()["active"] == before + n, what="so many active requests")
            yield connections

    def stats(self):
        return self.get("/stats")[2]

    def threads(self):
        """Return, of each worker's thread, its processor time in s and how often it slept."""
        found = {}
        for folder in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                stat, status = ((folder / name).read_text() for name in ("stat", "status"))
            except OSError:
                continue  # a thread for one request, which is over
            name, _, rest = stat.partition("(")[2].rpartition(")")
            if re.fullmatch(r"web-\d", name):
                ticks = sum(map(int, rest.split()[11:13]))
                slept = int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.M)[1])
                found[name] = ticks / os.sysconf("SC_CLK_TCK"), slept
        return [found["web-0"], found["web-1"]]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(
    scope="module", params=[pytest.param("asgi", marks=pytest.mark.integrations), "wsgi"]
)
def kind(request):
    if request.param == "asgi":
        pytest.importorskip("starlette")
        pytest.importorskip("uvicorn")
    return request.param


@contextlib.contextmanager
def serving(kind, folder):
    """A server, which in the end has to stop cleanly when it is told to."""
    server = Server(kind, folder)
    try:
        yield server
        if server.process.poll() is None:
            assert server.end() in server.good_ends, server.text()
        assert "Traceback" not in server.text().partition(CANCELLED)[0]
        assert "Fatal Python error" not in server.text()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def shared_server(kind, tmp_path_factory):
    with serving(kind, tmp_path_factory.mktemp(kind)) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """A server that several tests use in turn; `since()` is what this one has changed."""
    wait_until(lambda: shared_server.stats()["active"] == 0)
    before = shared_server.stats()
    shared_server.since = lambda: {
        name: count - before[name]
        for name, count in shared_server.stats().items()
        if name != "workers"
    }
    return shared_server


def percentile_99(durations):
    return statistics.quantiles(durations, n=100)[98]


def test_light_requests_while_heavy_ones_run(server):
    heavy, light = [], []

    def ask_heavy():
        for _ in range(2):
            begun = time.monotonic()
            answer = server.get("/primes?below=150000")[2]
            heavy.append((answer["primes"], time.monotonic() - begun))

    clients = [threading.Thread(target=ask_heavy) for _ in range(2)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        begun = time.monotonic()
        assert server.get("/light")[2] == {"light": True}
        light.append(time.monotonic() - begun)
    for client in clients:
        client.join()
    assert [primes for primes, _ in heavy] == [13_848] * 4
    # With the work in the server's own interpreter, most of them would wait for it.
    assert len(light) > 10 * len(heavy)
    assert percentile_99(light) < statistics.median(seconds for _, seconds in heavy)
    assert server.since()["done"] == 4


def test_heavy_requests_use_a_core_each(server):
    with server.heavy(2):
        wait_until(lambda: server.stats()["workers"] == ["running"] * 2)
        before = server.threads()

        def both_have_worked():
            assert server.get("/light")[0] == 200
            return all(
                now[0] - old[0] > 0.2 for now, old in zip(server.threads(), before, strict=True)
            )

        wait_until(both_have_worked, 120, "0.2 s of work by each worker")
        slept = [now[1] - old[1] for now, old in zip(server.threads(), before, strict=True)]
    # However many cores are free: threads that take turns with one lock sleep every few
    # milliseconds, 40 times and more in this time.
    assert max(slept) < 15, slept


def test_a_client_that_goes_away_stops_its_task(server):
    with server.heavy(2):
        wait_until(lambda: server.stats()["workers"] == ["running"] * 2)
    wait_until(lambda: server.stats()["workers"] == ["idle"] * 2, 60, "the stop of both tasks")
    wait_until(lambda: server.since()["stopped"] == 2)
    assert server.get("/primes?below=100")[2] == {"below": 100, "primes": 25}
    assert server.since() == {"active": 0, "done": 1, "refused": 0, "stopped": 2}


def test_a_connection_that_is_reset_stops_its_task(server):
    with server.heavy(1) as (connection,):
        abort = struct.pack("ii", 1, 0)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abort)
    wait_until(lambda: server.since()["stopped"] == 1)
    wait_until(lambda: "running" not in server.stats()["workers"])


def test_a_waiting_request_whose_client_goes_away_is_never_begun(server):
    with server.heavy(2):
        wait_until(lambda: server.stats()["workers"] == ["running"] * 2)
        with server.heavy(1):
            assert server.get("/primes?below=10")[0] == 503
        wait_until(lambda: server.since()["stopped"] == 1)
        assert server.stats()["workers"] == ["running"] * 2


def test_overload_is_refused_and_light_requests_are_not(server):
    with server.heavy(3):
        for _ in range(5):
            status, headers, _ = server.get("/primes?below=10")
            assert (status, headers["Retry-After"]) == (503, "1")
        assert server.get("/light")[0] == 200
        assert server.since()["refused"] == 5
    wait_until(lambda: server.stats()["active"] == 0)
    assert server.get("/primes?below=10")[2] == {"below": 10, "primes": 4}


def test_bad_input_is_named(server):
    for below in ["", "ten", "-1", "1e3", "100000001", "9" * 5000, "%D9%A3"]:
        status, _, said = server.get(f"/primes?below={below}")
        assert status == 400
        assert "below must be an integer from 0 to 100,000,000, not " in str(said)
    assert server.get("/nothing")[0] == 404


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_end_stops_what_runs(kind, number, tmp_path):
    with serving(kind, tmp_path) as server, server.heavy(3) as connections:
        wait_until(lambda: server.stats()["workers"] == ["running"] * 2)
        code = server.end(number)
        assert code in server.good_ends | {-number}, server.text()
        if kind == "wsgi":
            assert {connection.getresponse().status for connection in connections} == {503}
        else:  # the grace was over
            assert CANCELLED in server.text()
            assert "Application shutdown complete" in server.text()


def test_command_lines_that_make_no_sense(kind):
    for wrong in (["--workers", "0"], ["--queue", "-1"], ["--port", "many"]):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / f"{kind}_app.py"), *wrong],
            capture_output=True,
            text=True,
            timeout=60,
            env=script_env(),
        )
        assert done.returncode == 2
        assert "error: " in done.stderr and wrong[0] in done.stderr


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "wsgi_app.py"), "--port", str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=60,
            env=script_env(),
        )
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1:" in done.stderr

"""A web service whose heavy endpoint runs in a pool: plain WSGI, here with wsgiref and threads.

    python examples/wsgi_app.py --port 8000
    gunicorn --chdir examples --threads 32 'wsgi_app:make_app()'

`/light` answers at once, however busy the workers are. `/primes?below=300000` computes in a worker;
it is stopped if its client goes away, and refused with 503 if too many are under way. `/stats`
tells what has become of them. `Application` runs on any WSGI server with threads; it can tell
whether a client is still there on wsgiref, gunicorn and waitress.
"""

import argparse
import json
import select
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from primes import count_primes, parse_below
from subinterp import InterpreterPool

# Seconds between two looks whether a client that waits is still there.
LOOK_EVERY = 0.1

# Where the handler below puts the connection, as gunicorn does.
SOCKET = "wsgi_app.socket"

Environ = dict[str, Any]


class Refused(Exception):
    """A request that gets no result: its status, and why."""


class Application:
    """A WSGI application that computes in a pool, so many requests at a time and no more.

    Parameters
    ----------
    pool : InterpreterPool
        Made in the process that serves: after a fork, if the server forks.
    limit : int
        How many requests may be computed or wait for a worker; others are refused.
    """

    def __init__(self, pool: InterpreterPool, limit: int) -> None:
        self.pool = pool
        self.room = threading.BoundedSemaphore(limit)
        self.lock = threading.Lock()
        self.counts = Counter(active=0, done=0, refused=0, stopped=0)
        self.pages = {"/light": self.light, "/primes": self.primes, "/stats": self.stats}

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        status, headers = HTTPStatus.OK, [("Content-Type", "application/json")]
        try:
            page = self.pages.get(environ["PATH_INFO"])
            if page is None:
                raise Refused(HTTPStatus.NOT_FOUND, f"there is only {', '.join(self.pages)}")
            answer = page(environ)
        except Refused as refused:
            status, answer = refused.args[0], {"error": refused.args[1]}
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                headers.append(("Retry-After", "1"))
        body = json.dumps(answer).encode()
        start_response(f"{status} {status.phrase}", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def compute(self, environ: Environ, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a worker, as long as the client of the request waits for it."""
        if not self.room.acquire(blocking=False):
            self.count(refused=1)
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "all workers are busy")
        self.count(active=1)
        try:
            future = self.pool.submit(fn, *args)
            while not future.done():
                try:
                    future.exception(LOOK_EVERY)
                except TimeoutError:
                    if client_is_gone(environ):
                        future.interrupt()
                        self.count(stopped=1)
                        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the client is gone") from None
            result = future.result()
        except CancelledError:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down") from None
        finally:
            self.count(active=-1)
            self.room.release()
        self.count(done=1)
        return result

    def count(self, **changes: int) -> None:
        """Change what `/stats` shows."""
        with self.lock:
            self.counts.update(changes)

    def light(self, environ: Environ) -> dict[str, Any]:
        """Answer at once."""
        return {"light": True}

    def primes(self, environ: Environ) -> dict[str, Any]:
        """Count primes in a worker."""
        try:
            below = parse_below(parse_qs(environ.get("QUERY_STRING", "")).get("below", [""])[0])
        except ValueError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        return {"below": below, "primes": self.compute(environ, count_primes, below)}

    def stats(self, environ: Environ) -> dict[str, Any]:
        """Tell what has become of the requests, and what the workers do."""
        workers = [worker.state for worker in self.pool.stats().workers]
        with self.lock:
            return {**self.counts, "workers": workers}


def client_is_gone(environ: Environ) -> bool:
    """Tell whether the client has closed the connection; False where the server does not say."""
    ask = environ.get("waitress.client_disconnected")
    if ask is not None:
        return bool(ask())
    connection = environ.get(SOCKET) or environ.get("gunicorn.socket")
    if connection is None:
        return False
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))  # a connection that was reset is told as well


class Handler(WSGIRequestHandler):
    """Lets the application look at the connection."""

    def get_environ(self) -> Environ:
        """Return what WSGI says of the request, and the connection."""
        return {**super().get_environ(), SOCKET: self.connection}


def make_app(workers: int | None = None, queue: int = 16) -> Application:
    """Make the application and its pool, in the process that serves."""
    pool = InterpreterPool(workers, thread_name_prefix="web")
    # The first requests shall not wait for the workers' start.
    started = pool.broadcast(count_primes, 2)
    return Application(pool, len(started) + queue)


class Server(ThreadingMixIn, WSGIServer):
    """Serves each request in a thread; these only wait, so they need no interpreters."""


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--workers", type=int, help="default: as many as there are processors")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait for a worker")
    options = parser.parse_args()
    if options.queue < 0 or (options.workers is not None and options.workers < 1):
        parser.error("--workers must be at least 1, and --queue at least 0")
    try:
        server = Server((options.host, options.port), Handler)
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen on {options.host}:{options.port}: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    app = make_app(options.workers, options.queue)
    with app.pool, server:
        server.set_app(app)
        print(f"Listening on http://{options.host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            app.pool.terminate_workers()  # who still waits is told 503


if __name__ == "__main__":
    main()

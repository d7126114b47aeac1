"""A web service whose heavy endpoint runs in a pool: ASGI, here with Starlette and uvicorn.

    python examples/asgi_app.py --port 8000
    uvicorn --app-dir examples asgi_app:app

`/light` answers at once, however busy the workers are. `/primes?below=300000` computes in a worker;
it is stopped if its client goes away, and refused with 503 if too many are under way. `/stats`
tells what has become of them. The pool lives from the start of the server to its end.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from primes import count_primes, parse_below
from subinterp import InterpreterPool

# What servers note where there is nobody left to read the answer.
CLIENT_CLOSED_REQUEST = 499


class Service:
    """Runs the requests' functions in a pool, so many at a time and no more.

    Parameters
    ----------
    pool : InterpreterPool
        Where they run.
    limit : int
        How many requests may be computed or wait for a worker; others are refused.
    """

    def __init__(self, pool: InterpreterPool, limit: int) -> None:
        self.pool = pool
        self.limit = limit
        # Only the event loop changes these.
        self.counts = {"active": 0, "done": 0, "refused": 0, "stopped": 0}

    async def compute(self, request: Request, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a worker, as long as the client of the request waits for it."""
        if self.counts["active"] >= self.limit:
            self.counts["refused"] += 1
            raise HTTPException(503, "all workers are busy", headers={"Retry-After": "1"})
        self.counts["active"] += 1
        work = asyncio.ensure_future(self.pool.run(fn, *args))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.counts["stopped"] += 1
                raise HTTPException(CLIENT_CLOSED_REQUEST, "the client is gone")
            result = work.result()
            self.counts["done"] += 1
            return result
        except CancelledError:  # by the pool, not by the event loop
            raise HTTPException(503, "the server is shutting down") from None
        finally:
            self.counts["active"] -= 1
            gone.cancel()
            work.cancel()  # which interrupts the task, if it still runs


async def disconnected(request: Request) -> None:
    """Wait until the client of a request is gone."""
    await request.body()  # comes before, if there is one
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def light(request: Request) -> JSONResponse:
    """Answer at once."""
    return JSONResponse({"light": True})


async def primes(request: Request) -> JSONResponse:
    """Count primes in a worker."""
    try:
        below = parse_below(request.query_params.get("below", ""))
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    count = await request.state.service.compute(request, count_primes, below)
    return JSONResponse({"below": below, "primes": count})


async def stats(request: Request) -> JSONResponse:
    """Tell what has become of the requests, and what the workers do."""
    service = request.state.service
    workers = [worker.state for worker in service.pool.stats().workers]
    return JSONResponse({**service.counts, "workers": workers})


def make_app(workers: int | None = None, queue: int = 16) -> Starlette:
    """Make the application; its pool is made when the server starts it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Service]]:
        with InterpreterPool(workers, thread_name_prefix="web") as pool:
            # The first requests shall not wait for the workers' start.
            started = pool.broadcast(count_primes, 2)
            try:
                yield {"service": Service(pool, len(started) + queue)}
            finally:
                pool.terminate_workers()

    routes = [Route("/light", light), Route("/primes", primes), Route("/stats", stats)]
    return Starlette(routes=routes, lifespan=lifespan)


app = make_app()


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one")
    parser.add_argument("--workers", type=int, help="default: as many as there are processors")
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait for a worker")
    parser.add_argument("--grace", type=int, default=10, help="seconds for requests at the end")
    options = parser.parse_args()
    if options.queue < 0 or (options.workers is not None and options.workers < 1):
        parser.error("--workers must be at least 1, and --queue at least 0")
    uvicorn.run(
        make_app(options.workers, options.queue),
        host=options.host,
        port=options.port,
        timeout_graceful_shutdown=options.grace,
    )


if __name__ == "__main__":
    main()

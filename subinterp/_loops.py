"""Awaiting tasks: the event loops of asyncio and trio, and maps that coroutines read.

Completed tasks reach a loop through the notifier's thread and the loop's
`LoopPort`, as in `_core.pyx`. Here is what differs between the libraries: which
one runs in this thread, how its loop is woken, and what a coroutine awaits.
anyio runs on one of the two; uvloop is a loop of asyncio. None of them is
imported before it runs.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from subinterp._core import LoopPort

if TYPE_CHECKING:
    from types import TracebackType

    from subinterp._core import MapIterator

__all__ = ["AsyncMap", "enter", "pause"]

_T = TypeVar("_T")

# The port of each loop that awaits tasks, by the loop's id. A port keeps its loop, and
# lives as long as a task that is awaited, so an id here is never one of another loop.
_ports: WeakValueDictionary[int, LoopPort] = WeakValueDictionary()

_NO_LOOP = (
    "no event loop runs in this thread: await it in a coroutine of asyncio or trio, "
    "or use submit or map"
)


def _library() -> str:
    """Return the name of the async library that runs here; raise RuntimeError if none does."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        # It knows who runs where one loop is inside another.
        try:
            return str(sniffio.current_async_library())
        except sniffio.AsyncLibraryNotFoundError:
            pass
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return "asyncio"
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return "trio"
    raise RuntimeError(_NO_LOOP)


def _port(key: object, wake: Callable[[Callable[[], object]], object]) -> LoopPort:
    port = _ports.get(id(key))
    if port is None:
        port = _ports[id(key)] = LoopPort(wake)
    return port


def enter() -> tuple[LoopPort, Any]:
    """Get ready to wait in the event loop of this thread.

    Returns
    -------
    tuple of (LoopPort, awaitable)
        The way into the loop, and what to await: it is done once its ``set_result``
        was called in the loop.

    Raises
    ------
    RuntimeError
        If no event loop runs in this thread, or one of a library that is not known.
    """
    library = _library()
    if library == "asyncio":
        loop = sys.modules["asyncio"].get_running_loop()
        return _port(loop, loop.call_soon_threadsafe), loop.create_future()
    if library == "trio":
        token = sys.modules["trio"].lowlevel.current_trio_token()
        return _port(token, token.run_sync_soon), _TrioWaiter()
    raise RuntimeError(
        f"subinterp can be awaited in asyncio and trio, also through anyio, not in {library!r}: "
        "use submit there, and wait in a thread"
    )


async def pause() -> None:
    """Let others have their turn, and be cancelled if that was asked for."""
    if _library() == "trio":
        await sys.modules["trio"].lowlevel.checkpoint()
    else:
        await sys.modules["asyncio"].sleep(0)


class _TrioWaiter:
    """What trio has no object for: waited for by one task, once; as asyncio's futures."""

    __slots__ = ("_done", "_task")

    def __init__(self) -> None:
        self._done = False
        self._task: Any = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None) -> None:
        self._done = True
        if self._task is not None:
            task, self._task = self._task, None
            sys.modules["trio"].lowlevel.reschedule(task)

    def __await__(self) -> Generator[Any, Any]:
        return self._wait().__await__()

    async def _wait(self) -> None:
        lowlevel = sys.modules["trio"].lowlevel
        if self._done:
            await lowlevel.checkpoint()
            return

        def abort(raise_cancel: object) -> Any:
            self._done = True
            self._task = None
            return lowlevel.Abort.SUCCEEDED

        self._task = lowlevel.current_task()
        await lowlevel.wait_task_rescheduled(abort)


_LATER: Any = object()


class AsyncMap(AsyncIterator[_T]):
    """Results of `InterpreterPool.amap`, for ``async for``.

    Leaving the loop early stops the map: chunks that no worker has begun are
    cancelled, those that run are interrupted. That happens as soon as nobody
    holds the iterator any more, which is at once for one that was made in the ``async
    for`` itself; else call `aclose`, or use it in ``async with``.
    """

    def __init__(self, begin: Callable[[LoopPort], MapIterator[_T]]) -> None:
        self._begin: Callable[[LoopPort], MapIterator[_T]] | None = begin
        self._results: MapIterator[_T] | None = None
        self._port: LoopPort | None = None
        self._read = False

    def __aiter__(self) -> AsyncIterator[_T]:
        return self

    async def __anext__(self) -> _T:
        if self._read:
            raise RuntimeError("another task is reading from this map")
        self._read = True
        try:
            results = self._results
            if results is None:
                results = self._started()
            value: Any = results._poll(_LATER, False)
            if value is not _LATER:
                return value  # type: ignore[no-any-return]
            # Once a chunk, so that others get their turn where results are always there.
            await self._stopping_if_raised(pause())
            while (value := results._poll(_LATER, True)) is _LATER:
                port, waiter = enter()
                if port is not self._port:
                    raise RuntimeError("another event loop began to read this map: stay in one")
                results._tell(waiter)
                await self._stopping_if_raised(waiter)
            return value  # type: ignore[no-any-return]
        finally:
            self._read = False

    def _started(self) -> MapIterator[_T]:
        if self._begin is None:
            raise StopAsyncIteration
        self._port, _ = enter()
        begin, self._begin = self._begin, None
        self._results = begin(self._port)
        return self._results

    async def _stopping_if_raised(self, awaitable: Any) -> None:
        """Await; a cancellation ends the map."""
        try:
            await awaitable
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self._begin = None
        if self._results is not None:
            self._results.close()

    async def aclose(self) -> None:
        """Stop what is not read yet: cancel what is queued, interrupt what runs.

        Notes
        -----
        Idempotent. Does not wait for the tasks to stop.
        """
        if self._read:
            raise RuntimeError("another task is reading from this map")
        self._close()

    async def __aenter__(self) -> AsyncMap[_T]:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

"""Channels: queues of messages between interpreters and their threads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

from subinterp._core import RecvEnd, SendEnd, check_timeout, open_channel, select_channels

__all__ = ["RecvChannel", "SendChannel", "create_channel", "select"]

_turn = count()


class SendChannel(SendEnd):
    """The sending end of a channel; made by `create_channel`.

    Ends can be sent through pools and channels; each object counts as a
    handle, given up by `close` or when it is collected. When the last sending
    handle is gone, receivers drain what is left and then get ChannelClosed.
    """


class RecvChannel(RecvEnd):
    """The receiving end of a channel; made by `create_channel`.

    Iterating yields messages until the channel is closed and empty;
    ``async for`` does the same without blocking the event loop.
    """

    async def recv_async(self) -> Any:
        """Receive the next message from a coroutine of asyncio.

        Returns
        -------
        object
            Made in this interpreter, which owns it.

        Raises
        ------
        ChannelClosed
            If this end is closed, or the channel is empty and nobody can send.

        Notes
        -----
        Does not block the event loop, and does not poll: the channel tells
        the loop. A cancelled call takes no message.
        """
        import asyncio

        from subinterp.errors import ChannelEmpty

        loop = asyncio.get_running_loop()
        while True:
            try:
                return self.recv_nowait()
            except ChannelEmpty:
                pass
            told: asyncio.Future[None] = loop.create_future()

            def tell(told: asyncio.Future[None] = told) -> None:
                if not told.done():
                    told.set_result(None)

            def wake(tell: Any = tell) -> bool:
                try:
                    loop.call_soon_threadsafe(tell)
                except RuntimeError:
                    return False  # the loop is closed: nobody waits any more
                return True

            wait = self._async_wait(wake)
            if wait is None:
                continue
            try:
                await told
            finally:
                wait.cancel()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        from subinterp.errors import ChannelClosed

        try:
            return await self.recv_async()
        except ChannelClosed:
            raise StopAsyncIteration from None


def create_channel(maxsize: int = 0) -> tuple[RecvChannel, SendChannel]:
    """Create a channel.

    Parameters
    ----------
    maxsize : int
        Messages it holds at most; a send to a full channel waits. 0: no limit.

    Returns
    -------
    tuple of (RecvChannel, SendChannel)
        Any number of handles of either end may exist in any interpreters.

    Raises
    ------
    TypeError
        If `maxsize` is not an integer.
    ValueError
        If `maxsize` is negative.

    Notes
    -----
    Messages belong to no interpreter: they outlive the one that sent them, and
    are freed when they are received, or when the last receiving end is closed.
    """
    if not isinstance(maxsize, int):
        raise TypeError(f"maxsize must be an integer, not {type(maxsize).__name__}")
    if maxsize < 0:
        raise ValueError(f"maxsize must be >= 0, not {maxsize}")
    return open_channel(maxsize, RecvChannel, SendChannel)


def select(*channels: RecvChannel, timeout: float | None = None) -> tuple[RecvChannel, Any]:
    """Receive from the first of several channels that has a message.

    Parameters
    ----------
    *channels : RecvChannel
        At least one. Where several are ready, they take turns.
    timeout : float, optional
        Seconds to wait at most, fractions count; None: no limit.

    Returns
    -------
    tuple of (RecvChannel, object)
        The end that had the message, and the message.

    Raises
    ------
    ChannelClosed
        If all channels are closed and empty. Those that are, are left out
        while others live.
    RecvTimeout
        If no message came in time.
    TypeError
        If there is no channel, or something else than a receiving end.

    Notes
    -----
    Blocks with the interpreter's lock released, in one wait for all channels.
    """
    if not channels:
        raise TypeError("select needs at least one channel")
    for channel in channels:
        if not isinstance(channel, RecvEnd):
            raise TypeError(f"select takes receiving ends, not {type(channel).__name__}")
    check_timeout(timeout)
    return select_channels(channels, timeout, next(_turn) % len(channels))

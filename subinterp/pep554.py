"""Interpreters and channels as PEP 554 proposed them, on `subinterp.interpreters`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from traceback import TracebackException
from typing import Any
from weakref import WeakValueDictionary

from subinterp import _core, interpreters
from subinterp import channels as _channels
from subinterp._queues import (
    UNBOUND,
    UNBOUND_ERROR,
    UNBOUND_REMOVE,
    Shareable,
    UnboundPolicy,
    checked_id,
    checked_timeout,
    flag_of,
    policy_of,
    resolve_lost,
)
from subinterp._queues import ItemInterpreterDestroyed as _ItemDestroyed
from subinterp.errors import (
    ChannelClosed,
    ChannelEmpty,
    NotSendableError,
    RecvTimeout,
    SendTimeout,
    SubinterpError,
)

__all__ = [
    "UNBOUND",
    "UNBOUND_ERROR",
    "UNBOUND_REMOVE",
    "ChannelClosedError",
    "ChannelEmptyError",
    "ChannelError",
    "ChannelNotFoundError",
    "Interpreter",
    "InterpreterError",
    "InterpreterNotFoundError",
    "ItemInterpreterDestroyed",
    "NotShareableError",
    "RecvChannel",
    "RunFailedError",
    "SendChannel",
    "create",
    "create_channel",
    "get_current",
    "get_main",
    "is_shareable",
    "list_all",
    "list_all_channels",
]


class InterpreterError(SubinterpError, RuntimeError):
    """An interpreter-related error."""


class InterpreterNotFoundError(InterpreterError):
    """The interpreter is gone."""


class NotShareableError(NotSendableError, ValueError):
    """An object cannot be sent; the message names the part of it."""


class RunFailedError(RuntimeError, SubinterpError):
    """Code in an interpreter raised.

    Its cause is a surrogate of the exception: of its own type where that can be had
    here, with its arguments, and with the interpreter's traceback as text for cause.

    Attributes
    ----------
    snapshot : traceback.TracebackException
        The surrogate's traceback, as the standard library describes one.
    """

    def __init__(self, text: str, surrogate: BaseException | None = None) -> None:
        super().__init__(text)
        self.snapshot = None if surrogate is None else TracebackException.from_exception(surrogate)


class ChannelError(SubinterpError, RuntimeError):
    """Base of the channels' exceptions."""


class ChannelNotFoundError(ChannelError):
    """There is no such channel, or not any more."""


class ChannelClosedError(ChannelError):
    """The end is closed, or the other side is."""


class ChannelEmptyError(ChannelError):
    """There is no object in the channel now."""


class ItemInterpreterDestroyed(ChannelError, _ItemDestroyed):
    """The interpreter that sent the object has ended, and the object with it."""


def _not_shareable(exc: NotSendableError) -> NotShareableError:
    return NotShareableError(str(exc))


# ---- interpreters ----------------------------------------------------------------------

# One object for each interpreter and channel end of this interpreter. Guarded by _lock.
_lock = threading.RLock()
_known: WeakValueDictionary[int, Interpreter] = WeakValueDictionary()


class Interpreter:
    """One interpreter, by its number; `create` makes one.

    Parameters
    ----------
    id : int
        Number of an interpreter that exists.

    Raises
    ------
    TypeError, ValueError
        If `id` is not an integer, or negative.
    InterpreterNotFoundError
        If there is no such interpreter.
    """

    _interp: interpreters.Interpreter

    def __new__(cls, id: int) -> Interpreter:  # noqa: D102
        try:
            return _wrapped(interpreters.Interpreter(id))
        except interpreters.InterpreterNotFoundError as exc:
            raise InterpreterNotFoundError(str(exc)) from None

    def __repr__(self) -> str:
        return f"Interpreter(id={self.id})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interpreter):
            return NotImplemented
        return other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> Any:
        return Interpreter, (self.id,)

    @property
    def id(self) -> int:
        """The interpreter's number; constant."""
        return self._interp.id

    def is_running(self) -> bool:
        """Return True if the interpreter runs code now; always for the current one.

        Raises
        ------
        InterpreterNotFoundError
            If it was closed, or has ended.
        """
        if self.id == _core.current_interpreter_id():
            return True
        try:
            return self._interp.is_running()
        except interpreters.InterpreterNotFoundError as exc:
            raise InterpreterNotFoundError(str(exc)) from None

    def close(self) -> None:
        """End the interpreter.

        Raises
        ------
        InterpreterError
            If it is the main or the current interpreter, or runs; a RuntimeError.
        InterpreterNotFoundError
            If it was closed before.

        Notes
        -----
        Blocks until it has ended.
        """
        try:
            self._interp.close()
        except interpreters.InterpreterError as exc:
            raise _converted(exc) from None

    def bind(
        self, ns: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None, /, **kwargs: Any
    ) -> None:
        """Bind objects in the interpreter's `__main__`.

        Parameters
        ----------
        ns : mapping or iterable of pairs, optional
            Names and objects; copied.
        **kwargs
            More of them.

        Raises
        ------
        NotShareableError
            If an object cannot be sent; a ValueError. Then none is bound.
        ValueError, TypeError
            If there are none, or a name is not a string.
        InterpreterError
            If the interpreter runs, or is gone.
        """
        try:
            self._interp.prepare_main(ns, **kwargs)
        except NotSendableError as exc:
            raise _not_shareable(exc) from None
        except interpreters.InterpreterError as exc:
            raise _converted(exc) from None

    def run(self, source: str, /) -> None:
        """Execute source text in the interpreter's `__main__`.

        Parameters
        ----------
        source : str
            Dedented before.

        Raises
        ------
        RunFailedError
            If the code raised, or is no Python; its cause is a surrogate of the exception.
        InterpreterError
            If the interpreter runs already, or is gone.
        TypeError
            If `source` is no string.

        Notes
        -----
        Blocks until the code is done, with this interpreter's lock released.
        """
        if not isinstance(source, str):
            raise TypeError(f"source must be a string, not {type(source).__name__}")
        try:
            self._interp.exec(source)
        except SyntaxError as exc:
            raise RunFailedError(f"SyntaxError: {exc}", exc) from exc
        except interpreters.ExecutionFailed as exc:
            surrogate = exc.exception
            if surrogate is None:
                # The standard library keeps a description alone.
                from subinterp.errors import RemoteError

                surrogate = RemoteError(exc.excinfo.errdisplay or exc.args[0])
            raise RunFailedError(exc.args[0], surrogate) from surrogate
        except interpreters.InterpreterError as exc:
            raise _converted(exc) from None


def _converted(exc: interpreters.InterpreterError) -> Exception:
    if isinstance(exc, interpreters.InterpreterNotFoundError):
        return InterpreterNotFoundError(str(exc))
    if isinstance(exc, interpreters.ExecutionFailed):
        return RunFailedError(exc.args[0], exc.exception)
    return InterpreterError(str(exc))


def _wrapped(interp: interpreters.Interpreter) -> Interpreter:
    with _lock:
        known = _known.get(interp.id)
        if known is None or known._interp is not interp:
            known = object.__new__(Interpreter)
            known._interp = interp
            _known[interp.id] = known
        return known


def create() -> Interpreter:
    """Create an interpreter with its own lock; it is idle until something is run in it.

    Returns
    -------
    Interpreter
        Ended by its `close`, or when no object in another interpreter stands for it.

    Raises
    ------
    InterpreterError
        If CPython could not create it.
    """
    try:
        return _wrapped(interpreters.create())
    except interpreters.InterpreterError as exc:
        raise _converted(exc) from exc


def list_all() -> list[Interpreter]:
    """Return all interpreters of the process, oldest first."""
    return [_wrapped(interp) for interp in interpreters.list_all()]


def get_current() -> Interpreter:
    """Return the interpreter that calls."""
    return _wrapped(interpreters.get_current())


def get_main() -> Interpreter:
    """Return the main interpreter."""
    return _wrapped(interpreters.get_main())


def is_shareable(obj: object) -> bool:
    """Return True if an object reaches other interpreters without pickling.

    As `subinterp.interpreters.is_shareable`.
    """
    return interpreters.is_shareable(obj)


# ---- channels --------------------------------------------------------------------------

_RAISE: Any = object()


class _End(Shareable):
    """What both ends of a channel have in common.

    The object holds a handle on its side of the channel; the side is closed when
    all of its handles, in all interpreters, are given up.
    """

    _side: int
    _id: int
    _end: Any  # the handle; None: there was no such channel
    __slots__ = ("__weakref__", "_end", "_id")

    def __init__(self, id: int) -> None:
        self._id = checked_id(id, "a channel")
        self._end = None
        if self._id < 1 << 63:
            self._end = _core.attach_channel(self._id, _core.CHANNEL_554, self._side)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(id={self._id})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _End) or other._side != self._side:
            return NotImplemented
        return other._id == self._id

    def __hash__(self) -> int:
        return hash((self._side, self._id))

    def __reduce__(self) -> Any:
        return (type(self), (self._id,)) if self._end is None else (_arrive, (self._end,))

    @property
    def id(self) -> int:
        """The channel's number; both ends have the same one."""
        return self._id

    @property
    def is_closed(self) -> bool:
        """True if this end was closed, or nobody has the other one any more."""
        end = self._found()
        return not (end._usable and end._other_side)

    @property
    def unbounditems(self) -> UnboundPolicy:
        """What becomes of objects whose sender's interpreter ends."""
        return policy_of(self._found()._settings[1])

    def close(self) -> None:
        """Give up this end's handle. Idempotent; does not block.

        Whoever waits through it, in another thread, gets ChannelClosedError.
        """
        self._found().close()

    def _found(self) -> Any:
        if self._end is None:
            raise ChannelNotFoundError(f"channel {self._id} not found")
        return self._end

    def _closed(self, exc: ChannelClosed) -> ChannelClosedError:
        return ChannelClosedError(f"channel {self._id}: {exc}")


class RecvChannel(_End):
    """The receiving end of a channel; `create_channel` makes both.

    Parameters
    ----------
    id : int
        Number of a channel. If there is no such one, what the object is used for
        raises ChannelNotFoundError.
    """

    _side = 1
    __slots__ = ()

    def recv(self, timeout: float | None = None) -> Any:
        """Receive the next object, waiting for one.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.

        Returns
        -------
        object
            Made in this interpreter, which owns it; UNBOUND if it was lost with its
            sender's interpreter.

        Raises
        ------
        TimeoutError
            If no object came in time.
        ChannelClosedError
            If this end is closed, or the channel is empty and nobody can send.
        ChannelNotFoundError
            If there is no such channel.
        ItemInterpreterDestroyed
            If the object was lost, and its sender asked for this.

        Notes
        -----
        Blocks with the interpreter's lock released, and does not poll.
        """
        checked_timeout(timeout)
        end = self._found()
        try:
            return _resolved(end.recv(timeout))
        except RecvTimeout:
            raise TimeoutError(f"channel {self._id}: no object in time") from None
        except ChannelClosed as exc:
            raise self._closed(exc) from None

    def recv_nowait(self, default: Any = None) -> Any:
        """Receive the next object; return `default` if there is none now.

        Raises what `recv` does, but no TimeoutError.
        """
        return self._recv_nowait(default)

    def _recv_nowait(self, default: Any = _RAISE) -> Any:
        """As `recv_nowait`; without a default, ChannelEmptyError says that there is none."""
        end = self._found()
        try:
            return _resolved(end.recv_nowait())
        except ChannelEmpty:
            if default is _RAISE:
                raise ChannelEmptyError(f"channel {self._id} is empty") from None
            return default
        except ChannelClosed as exc:
            raise self._closed(exc) from None


class SendChannel(_End):
    """The sending end of a channel; `create_channel` makes both.

    Parameters
    ----------
    id : int
        As for RecvChannel.
    """

    _side = 0
    __slots__ = ()

    def send(
        self,
        obj: Any,
        timeout: float | None = None,
        *,
        unbounditems: UnboundPolicy | None = None,
    ) -> None:
        """Send an object, and wait until it is received.

        Parameters
        ----------
        obj : object
            What is shareable or can be pickled; it is copied now.
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.
        unbounditems : UNBOUND, UNBOUND_ERROR or UNBOUND_REMOVE, optional
            What becomes of the object if this interpreter ends before; None: as
            `create_channel` was told.

        Raises
        ------
        TimeoutError
            If nobody received it in time; it is not in the channel any more.
        ChannelClosedError
            If this end is closed, or nobody can receive any more.
        ChannelNotFoundError
            If there is no such channel.
        NotShareableError
            If the object cannot be sent; a ValueError.

        Notes
        -----
        Blocks with the interpreter's lock released, and does not poll.
        """
        checked_timeout(timeout)
        end = self._found()
        try:
            end._put_and_wait(obj, timeout, self._flag(unbounditems))
        except SendTimeout as exc:
            raise TimeoutError(f"channel {self._id}: {exc}") from None
        except ChannelClosed as exc:
            raise self._closed(exc) from None
        except NotSendableError as exc:
            raise _not_shareable(exc) from None

    def send_nowait(self, obj: Any, *, unbounditems: UnboundPolicy | None = None) -> bool:
        """Send an object without waiting for its receiver.

        Returns
        -------
        bool
            True if a receiver was waiting for it; False: it is in the channel.

        Raises
        ------
        ChannelClosedError, ChannelNotFoundError, NotShareableError
            As `send`.
        """
        end = self._found()
        try:
            met: bool = end._put_nowait(obj, self._flag(unbounditems))
        except ChannelClosed as exc:
            raise self._closed(exc) from None
        except NotSendableError as exc:
            raise _not_shareable(exc) from None
        return met

    def send_buffer(
        self,
        obj: Any,
        timeout: float | None = None,
        *,
        unbounditems: UnboundPolicy | None = None,
    ) -> None:
        """As `send`, for a view of an object's buffer.

        The receiver gets a memoryview: of the same memory if that is a
        `subinterp.SharedBuffer`'s, of a copy otherwise.
        """
        self.send(memoryview(obj), timeout, unbounditems=unbounditems)

    def send_buffer_nowait(self, obj: Any, *, unbounditems: UnboundPolicy | None = None) -> bool:
        """As `send_nowait`, for a view of an object's buffer; see `send_buffer`."""
        return self.send_nowait(memoryview(obj), unbounditems=unbounditems)

    def _flag(self, unbounditems: UnboundPolicy | None) -> int:
        if unbounditems is not None:
            return flag_of(unbounditems)
        flag: int = self._end._settings[1]
        return flag


def _resolved(obj: Any) -> Any:
    if type(obj) is not _core.LostItem:
        return obj
    try:
        return resolve_lost(obj)
    except _ItemDestroyed as exc:
        raise ItemInterpreterDestroyed(str(exc)) from None


def _arrive(end: Any) -> RecvChannel | SendChannel:
    """Return the end of a channel whose handle was sent here."""
    cls: Any = RecvChannel if isinstance(end, _core.RecvEnd) else SendChannel
    made: RecvChannel | SendChannel = object.__new__(cls)
    made._id = end.id
    made._end = end
    return made


def create_channel(*, unbounditems: UnboundPolicy = UNBOUND) -> tuple[RecvChannel, SendChannel]:
    """Create a channel.

    Parameters
    ----------
    unbounditems : UNBOUND, UNBOUND_ERROR or UNBOUND_REMOVE
        What becomes of objects whose sender's interpreter ends before they are
        received: UNBOUND is received in their place, `recv` raises
        ItemInterpreterDestroyed, or they are removed.

    Returns
    -------
    tuple of (RecvChannel, SendChannel)
        Both can be sent to other interpreters, as by `Interpreter.bind`.
    """
    ends = _core.open_channel(
        0, _channels.RecvChannel, _channels.SendChannel, _core.CHANNEL_554, flag_of(unbounditems)
    )
    recv, send = map(_arrive, ends)
    assert isinstance(recv, RecvChannel) and isinstance(send, SendChannel)
    return recv, send


def list_all_channels() -> list[tuple[RecvChannel, SendChannel]]:
    """Return both ends of each channel that is open, oldest first."""
    pairs = []
    for id in _core.list_channels(_core.CHANNEL_554):
        recv, send = RecvChannel(id), SendChannel(id)
        if recv._end is not None and send._end is not None:
            pairs.append((recv, send))
    return pairs

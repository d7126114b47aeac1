"""Queues between interpreters, after PEP 734; public in `subinterp.interpreters`."""

from __future__ import annotations

import operator
import queue
import threading
from typing import Any
from weakref import WeakValueDictionary

from subinterp import _core
from subinterp.channels import RecvChannel, SendChannel
from subinterp.errors import (
    ChannelClosed,
    ChannelEmpty,
    ChannelFull,
    RecvTimeout,
    SendTimeout,
    SubinterpError,
)

__all__ = [
    "UNBOUND",
    "UNBOUND_ERROR",
    "UNBOUND_REMOVE",
    "ItemInterpreterDestroyed",
    "Queue",
    "QueueEmpty",
    "QueueError",
    "QueueFull",
    "QueueNotFoundError",
    "create",
    "list_all",
]


class QueueError(SubinterpError, RuntimeError):
    """Base of the queues' exceptions."""


class QueueNotFoundError(QueueError):
    """There is no such queue, or not any more."""


class QueueEmpty(QueueError, queue.Empty):
    """The queue is empty, or was until the timeout passed."""


class QueueFull(QueueError, queue.Full):
    """The queue is full, or was until the timeout passed."""


class ItemInterpreterDestroyed(QueueError):
    """The interpreter that sent the object has ended, and the object with it."""


class UnboundPolicy:
    """What becomes of an object whose sender's interpreter ends; a constant."""

    __slots__ = ("_flag", "_name")

    def __init__(self, flag: int, name: str) -> None:
        self._flag = flag
        self._name = name

    def __repr__(self) -> str:
        return f"subinterp.interpreters.{self._name}"

    def __reduce__(self) -> str:
        return self._name


UnboundPolicy.__module__ = __name__

# The numbers are the C layer's.
UNBOUND_REMOVE = UnboundPolicy(1, "UNBOUND_REMOVE")
UNBOUND_ERROR = UnboundPolicy(2, "UNBOUND_ERROR")
UNBOUND = UnboundPolicy(3, "UNBOUND")
_POLICIES = {policy._flag: policy for policy in (UNBOUND_REMOVE, UNBOUND_ERROR, UNBOUND)}


class Shareable:
    """Base of what is made of channels, and shared as they are."""

    __slots__ = ()


def policy_of(flag: int) -> UnboundPolicy:
    """Return the policy of the C layer's number."""
    return _POLICIES[flag]


def flag_of(policy: object) -> int:
    """Return the C layer's number of a policy."""
    if not isinstance(policy, UnboundPolicy):
        raise NotImplementedError(
            "unbounditems must be UNBOUND, UNBOUND_ERROR or UNBOUND_REMOVE, "
            f"not {policy!r} (type {type(policy).__name__})"
        )
    return policy._flag


def resolve_lost(item: _core.LostItem) -> UnboundPolicy:
    """Return what stands for an object that was lost, or raise."""
    if item.unbound == UNBOUND_ERROR._flag:
        raise ItemInterpreterDestroyed("the interpreter that sent the object has ended")
    return UNBOUND


def checked_id(id: object, what: str) -> int:
    """Validate the number of an interpreter, queue or channel."""
    if not isinstance(id, int):
        raise TypeError(f"id must be an int, got {id!r}")
    if id < 0:
        raise ValueError(f"the id of {what} must not be negative, got {int(id)}")
    return int(id)


def checked_timeout(timeout: float | None) -> float | None:
    """Validate a timeout as the standard's queues do: a negative one is an error."""
    _core.check_timeout(timeout)
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout value must be non-negative, not {timeout!r}")
    return timeout


# The queues that have an object in this interpreter: one each. Guarded by _lock.
_lock = threading.RLock()
_known: WeakValueDictionary[int, Queue] = WeakValueDictionary()


class Queue(Shareable):
    """A queue that interpreters share; `create_queue` makes one.

    It can be sent through pools, channels, queues and `Interpreter.prepare_main`:
    what arrives is the same queue. It lives as long as an object, in any
    interpreter, or a message under way stands for it.

    Parameters
    ----------
    id : int
        Number of a queue that exists. Within an interpreter, there is one
        object for a number.

    Raises
    ------
    TypeError
        If `id` is not an integer.
    ValueError
        If it is negative.
    QueueNotFoundError
        If there is no such queue.
    """

    _id: int
    _recv: RecvChannel
    _send: SendChannel
    _maxsize: int
    _unbound: int
    __slots__ = ("__weakref__", "_id", "_maxsize", "_recv", "_send", "_unbound")

    def __new__(cls, id: int, /) -> Queue:
        id = checked_id(id, "a queue")
        with _lock:
            known = _known.get(id)
            if known is not None and known._recv._usable:
                return known
            recv = send = None
            if id < 1 << 63:
                recv = _core.attach_channel(id, _core.QUEUE, 1)
                send = _core.attach_channel(id, _core.QUEUE, 0)
            if not (isinstance(recv, RecvChannel) and isinstance(send, SendChannel)):
                raise QueueNotFoundError(f"queue {id} not found")
            return _make(recv, send)

    def __repr__(self) -> str:
        return f"Queue({self._id})"

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Queue):
            return NotImplemented
        return other._id == self._id

    def __reduce__(self) -> Any:
        return _arrive, (self._recv, self._send)

    @property
    def id(self) -> int:
        """The queue's number in this process."""
        return self._id

    @property
    def maxsize(self) -> int:
        """Objects it holds at most, as `create_queue` was told; 0 or less: no limit."""
        return self._maxsize

    @property
    def unbounditems(self) -> UnboundPolicy:
        """What `put` does unless it is told otherwise."""
        return policy_of(self._unbound)

    def qsize(self) -> int:
        """Return how many objects are in the queue, at this moment."""
        return self._recv.qsize()

    def empty(self) -> bool:
        """Return True if the queue is empty, at this moment."""
        return self._recv.qsize() == 0

    def full(self) -> bool:
        """Return True if the queue is full, at this moment."""
        return 0 < self._maxsize <= self._recv.qsize()

    def put(
        self,
        obj: Any,
        block: bool = True,
        timeout: float | None = None,
        *,
        unbounditems: UnboundPolicy | None = None,
    ) -> None:
        """Put an object into the queue, waiting for room.

        Parameters
        ----------
        obj : object
            What is shareable or can be pickled; it is copied now.
        block : bool
            False: as `put_nowait`.
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.
        unbounditems : optional
            What becomes of the object if this interpreter ends before it is
            received: UNBOUND: `get` returns UNBOUND in its place; UNBOUND_ERROR:
            `get` raises ItemInterpreterDestroyed; UNBOUND_REMOVE: it is removed.
            None: as `create_queue` was told.

        Raises
        ------
        QueueFull
            If there was no room in time.
        NotShareableError
            If the object cannot be sent; names the part of it.
        ValueError
            If `timeout` is negative.
        NotImplementedError
            If `unbounditems` is something else.

        Notes
        -----
        Blocks only while the queue is full, asleep, with the interpreter's lock
        released.
        """
        if not block:
            return self.put_nowait(obj, unbounditems=unbounditems)
        flag = self._unbound if unbounditems is None else flag_of(unbounditems)
        if timeout is not None:
            checked_timeout(timeout)
        try:
            self._send._put(obj, timeout, flag)
        except SendTimeout:
            raise QueueFull(f"queue {self._id} is full") from None
        except ChannelClosed as exc:
            raise self._gone(exc) from None

    def put_nowait(self, obj: Any, *, unbounditems: UnboundPolicy | None = None) -> None:
        """As `put`, but raise QueueFull instead of waiting."""
        flag = self._unbound if unbounditems is None else flag_of(unbounditems)
        try:
            self._send._put_nowait(obj, flag)
        except ChannelFull:
            raise QueueFull(f"queue {self._id} is full") from None
        except ChannelClosed as exc:
            raise self._gone(exc) from None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the next object out of the queue, waiting for one.

        Parameters
        ----------
        block : bool
            False: as `get_nowait`.
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.

        Returns
        -------
        object
            Made in this interpreter, which owns it; UNBOUND if it was lost with
            its sender's interpreter.

        Raises
        ------
        QueueEmpty
            If there was no object in time.
        ItemInterpreterDestroyed
            If the next object was lost, and its sender asked for this.
        ValueError
            If `timeout` is negative.

        Notes
        -----
        Blocks with the interpreter's lock released: a short spin, then asleep.
        """
        if not block:
            return self.get_nowait()
        if timeout is not None:
            checked_timeout(timeout)
        try:
            obj = self._recv.recv(timeout)
        except RecvTimeout:
            raise QueueEmpty(f"queue {self._id} is empty") from None
        except ChannelClosed as exc:
            raise self._gone(exc) from None
        return resolve_lost(obj) if type(obj) is _core.LostItem else obj

    def get_nowait(self) -> Any:
        """As `get`, but raise QueueEmpty instead of waiting."""
        try:
            obj = self._recv.recv_nowait()
        except ChannelEmpty:
            raise QueueEmpty(f"queue {self._id} is empty") from None
        except ChannelClosed as exc:
            raise self._gone(exc) from None
        return resolve_lost(obj) if type(obj) is _core.LostItem else obj

    def _gone(self, exc: ChannelClosed) -> QueueNotFoundError:
        """In the child of a fork, or in an interpreter that was abandoned."""
        return QueueNotFoundError(f"queue {self._id} cannot be used here: {exc}")


def _make(recv: RecvChannel, send: SendChannel) -> Queue:
    """Make the object of a queue that has none here; the lock is held."""
    made = object.__new__(Queue)
    made._id = recv.id
    made._recv = recv
    made._send = send
    made._maxsize, made._unbound = recv._settings
    _known[made._id] = made
    return made


def _arrive(recv: RecvChannel, send: SendChannel) -> Queue:
    """Return the queue of two ends that were sent here."""
    with _lock:
        known = _known.get(recv.id)
        if known is not None and known._recv._usable:
            return known
        return _make(recv, send)


def create(maxsize: int = 0, *, unbounditems: UnboundPolicy = UNBOUND) -> Queue:
    """Create a queue.

    Parameters
    ----------
    maxsize : int
        Objects it holds at most; `put` to a full queue waits. 0 or less: no limit.
    unbounditems : UNBOUND, UNBOUND_ERROR or UNBOUND_REMOVE
        What becomes of objects whose sender's interpreter ends; see `Queue.put`.

    Returns
    -------
    Queue
        Shared by all interpreters that get it.

    Raises
    ------
    TypeError
        If `maxsize` is not an integer.
    NotImplementedError
        If `unbounditems` is something else.
    """
    flag = flag_of(unbounditems)
    ends = _core.open_channel(operator.index(maxsize), RecvChannel, SendChannel, _core.QUEUE, flag)
    with _lock:
        return _make(*ends)


def list_all() -> list[Queue]:
    """Return all queues of the process, oldest first."""
    queues = []
    for id in _core.list_channels(_core.QUEUE):
        try:
            queues.append(Queue(id))
        except QueueNotFoundError:
            continue  # it went between the listing and the look
    return queues

"""The exceptions of subinterp.

User errors derive from what the standard library raises in the same place, so
that code written for `concurrent.futures` or `queue` catches them.
"""

import queue
import threading
from concurrent.futures import BrokenExecutor, CancelledError
from pickle import PicklingError

from subinterp._worker import Interrupt

__all__ = [
    "BrokenBarrierError",
    "BrokenInterpreterPool",
    "BrokenLockError",
    "ChannelClosed",
    "ChannelEmpty",
    "ChannelError",
    "ChannelFull",
    "ChannelTimeout",
    "Interrupt",
    "NotSendableError",
    "PoolDeadlockError",
    "RecvTimeout",
    "RemoteError",
    "RemoteTraceback",
    "SendTimeout",
    "SubinterpError",
    "SyncError",
    "TaskAbandoned",
    "TaskInterrupted",
    "TaskTimeout",
]


class SubinterpError(Exception):
    """Base of the exceptions that only this library raises."""


class NotSendableError(SubinterpError, PicklingError, TypeError):
    """An object cannot travel to another interpreter.

    The message names the object and its path inside the value, for example
    ``args[1]['conn'].socket``.
    """


class RemoteError(SubinterpError):
    """An exception in a worker that could not travel itself; carries its text."""


class RemoteTraceback(Exception):
    """The traceback of a worker as text; shown as the cause of its exception.

    Attributes
    ----------
    text : str
        The traceback as the worker would have printed it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class BrokenInterpreterPool(SubinterpError, BrokenExecutor):
    """A pool lost what it needs to run tasks; says why."""


class PoolDeadlockError(SubinterpError, RuntimeError):
    """Every worker of a pool waits for tasks in the pool's own queue."""


class TaskInterrupted(SubinterpError, CancelledError):
    """The task was stopped by `Future.interrupt` while it ran.

    Its cause is the worker's traceback, which shows where it was; its context is what
    was raised there: `Interrupt`, or what the task made of it.
    """


class TaskTimeout(SubinterpError, TimeoutError):
    """The task was stopped when its running time was up; cause and context as `TaskInterrupted`."""


class TaskAbandoned(TaskInterrupted):
    """The task did not stop when it was interrupted, and its worker was left behind.

    It may still run. Another worker takes the place of its own.
    """


class OverdueTaskAbandoned(TaskAbandoned, TaskTimeout):
    """The same, for a task that was interrupted because its running time was up."""


class ChannelError(SubinterpError):
    """Base of the channels' exceptions."""


class ChannelClosed(ChannelError):
    """The other side is gone, or this end was closed."""


class ChannelEmpty(ChannelError, queue.Empty):
    """`recv_nowait` found no message."""


class ChannelFull(ChannelError, queue.Full):
    """`send_nowait` found no room."""


class ChannelTimeout(ChannelError, TimeoutError):
    """A channel operation did not finish in time."""


class SendTimeout(ChannelTimeout, queue.Full):
    """`send` found no room in time; the object stays with the sender."""


class RecvTimeout(ChannelTimeout, queue.Empty):
    """`recv` or `select` got no message in time."""


class SyncError(SubinterpError, RuntimeError):
    """A lock, event, semaphore, barrier or counter is not there: another process made it."""


class BrokenLockError(SyncError):
    """The interpreter that held the lock ended or was abandoned before it released it."""


class BrokenBarrierError(SyncError, threading.BrokenBarrierError):
    """A party did not come to the barrier in time, or somebody aborted or reset it."""

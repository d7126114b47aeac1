"""Pools of interpreters that run ordinary Python in parallel, in one process.

Each worker is a native thread inside a CPython interpreter with a lock of its
own (PEP 684). `InterpreterPool` is a `concurrent.futures.Executor`; channels
and shared buffers exchange data between interpreters.

The names below are loaded on first use, so that importing the package (which
every worker may do) costs next to nothing.
"""

import sys
import sysconfig
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 13):  # noqa: UP036  (where the metadata was not heeded)
    raise ImportError(
        "subinterp needs CPython 3.13 or newer; this is "
        f"{sys.version_info.major}.{sys.version_info.minor}"
    )
if sys.implementation.name != "cpython":
    raise ImportError(f"subinterp needs CPython; this is {sys.implementation.name}")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise ImportError(
        "subinterp needs a build of CPython with the GIL; this is a free-threaded build, "
        "whose threads run in parallel already: use concurrent.futures.ThreadPoolExecutor"
    )
if sys.platform != "linux":
    raise ImportError(f"subinterp runs on Linux with glibc only; this is {sys.platform}")

_HOMES = {
    "InterpreterPool": "pool",
    "Future": "pool",
    "create_channel": "channels",
    "select": "channels",
    "RecvChannel": "channels",
    "SendChannel": "channels",
    "SharedBuffer": "buffers",
    "share": "buffers",
    "Lock": "sync",
    "RLock": "sync",
    "Event": "sync",
    "Semaphore": "sync",
    "BoundedSemaphore": "sync",
    "Barrier": "sync",
    "Counter": "sync",
    "set_parked_limit": "_core",
    "set_spin_time": "_core",
    "PoolStats": "observing",
    "WorkerStats": "observing",
    "Histogram": "observing",
    "Trace": "observing",
    "serve_top": "_top",
    "SubinterpError": "errors",
    "NotSendableError": "errors",
    "Interrupt": "_worker",
    "TaskAbandoned": "errors",
    "TaskInterrupted": "errors",
    "TaskTimeout": "errors",
    "RemoteError": "errors",
    "RemoteTraceback": "errors",
    "BrokenInterpreterPool": "errors",
    "PoolDeadlockError": "errors",
    "ChannelError": "errors",
    "ChannelClosed": "errors",
    "ChannelEmpty": "errors",
    "ChannelFull": "errors",
    "ChannelTimeout": "errors",
    "SendTimeout": "errors",
    "RecvTimeout": "errors",
    "SyncError": "errors",
    "BrokenLockError": "errors",
    "BrokenBarrierError": "errors",
}
_MODULES = (
    "interpreters",
    "pep554",
    "pool",
    "channels",
    "buffers",
    "sync",
    "observing",
    "runtime",
    "errors",
)

if TYPE_CHECKING:
    from subinterp import (
        buffers,
        channels,
        errors,
        interpreters,
        observing,
        pep554,
        pool,
        runtime,
        sync,
    )
    from subinterp._core import set_parked_limit, set_spin_time
    from subinterp._top import serve_top
    from subinterp.buffers import SharedBuffer, share
    from subinterp.channels import RecvChannel, SendChannel, create_channel, select
    from subinterp.errors import (
        BrokenBarrierError,
        BrokenInterpreterPool,
        BrokenLockError,
        ChannelClosed,
        ChannelEmpty,
        ChannelError,
        ChannelFull,
        ChannelTimeout,
        Interrupt,
        NotSendableError,
        PoolDeadlockError,
        RecvTimeout,
        RemoteError,
        RemoteTraceback,
        SendTimeout,
        SubinterpError,
        SyncError,
        TaskAbandoned,
        TaskInterrupted,
        TaskTimeout,
    )
    from subinterp.observing import Histogram, PoolStats, Trace, WorkerStats
    from subinterp.pool import Future, InterpreterPool
    from subinterp.sync import (
        Barrier,
        BoundedSemaphore,
        Counter,
        Event,
        Lock,
        RLock,
        Semaphore,
    )

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "BrokenInterpreterPool",
    "BrokenLockError",
    "ChannelClosed",
    "ChannelEmpty",
    "ChannelError",
    "ChannelFull",
    "ChannelTimeout",
    "Counter",
    "Event",
    "Future",
    "Histogram",
    "InterpreterPool",
    "Interrupt",
    "Lock",
    "NotSendableError",
    "PoolDeadlockError",
    "PoolStats",
    "RLock",
    "RecvChannel",
    "RecvTimeout",
    "RemoteError",
    "RemoteTraceback",
    "Semaphore",
    "SendChannel",
    "SendTimeout",
    "SharedBuffer",
    "SubinterpError",
    "SyncError",
    "TaskAbandoned",
    "TaskInterrupted",
    "TaskTimeout",
    "Trace",
    "WorkerStats",
    "buffers",
    "channels",
    "create_channel",
    "errors",
    "interpreters",
    "observing",
    "pep554",
    "pool",
    "runtime",
    "select",
    "serve_top",
    "set_parked_limit",
    "set_spin_time",
    "share",
    "sync",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"subinterp.{name}")
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("subinterp")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'subinterp' has no attribute {name!r}")
    value = getattr(import_module(f"subinterp.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

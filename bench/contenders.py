"""Everything that is measured, each behind the same small interface.

A contender opens what it measures with `open`, a context manager, and says in
`unavailable` why it cannot run here. It takes no part then, and the report
says so.
"""

import importlib
import multiprocessing
import sys
import threading
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from bench import work

WORKERS = 2
OURS = "subinterp"
ROOT = str(Path(__file__).resolve().parent.parent)

# Interpreters of the standard library start without the importer's sys.path.
FIND_BENCH = f"import sys; {ROOT!r} in sys.path or sys.path.insert(0, {ROOT!r})"


class Contender:
    """One thing to measure.

    Attributes
    ----------
    name : str
        As the reports call it.
    ours : bool
        Whether it is not a rival.
    needs : tuple of str
        Modules, or ``module:attribute``, without which it cannot run.
    """

    name = ""
    ours = False
    needs = ()

    def unavailable(self):
        """Say why this contender cannot run here; an empty string if it can."""
        for need in self.needs:
            module, _, attribute = need.partition(":")
            try:
                found = importlib.import_module(module)
                if attribute:
                    getattr(found, attribute)
            except (ImportError, AttributeError) as error:
                version = ".".join(map(str, sys.version_info[:3]))
                return f"{error} (Python {version})"
        return ""

    def __repr__(self):
        return f"<{type(self).__name__} {self.name!r}>"


class Baseline(Contender):
    """What the case does without any pool."""

    def __init__(self, name):
        self.name = name

    @contextmanager
    def open(self, workers=WORKERS):
        """Open nothing."""
        yield None


# Pools


class Pool(Contender):
    """A `concurrent.futures.Executor`.

    Attributes
    ----------
    map_options : dict
        Keyword arguments for `map` over many small items.
    """

    map_options: ClassVar[dict[str, object]] = {}

    def executor(self, workers):
        """Make the executor; subclasses say how."""
        raise NotImplementedError

    @contextmanager
    def open(self, workers=WORKERS):
        """Make an executor, and shut it down at the end."""
        executor = self.executor(workers)
        try:
            yield executor
        finally:
            executor.shutdown(wait=True)


class SubinterpPool(Pool):
    """Ours."""

    name = OURS
    ours = True
    needs = ("subinterp:InterpreterPool",)

    def executor(self, workers):
        from subinterp import InterpreterPool

        return InterpreterPool(workers)


class StandardInterpreterPool(Pool):
    """The standard library's pool of interpreters, from Python 3.14 on."""

    name = "InterpreterPoolExecutor"
    needs = ("concurrent.futures:InterpreterPoolExecutor",)

    def executor(self, workers):
        return futures.InterpreterPoolExecutor(workers, initializer=exec, initargs=(FIND_BENCH,))


class ThreadPool(Pool):
    """Threads of one interpreter."""

    name = "ThreadPoolExecutor"

    def executor(self, workers):
        return futures.ThreadPoolExecutor(workers)


class ProcessPool(Pool):
    """Processes, from a fork server: the default on Linux from Python 3.14 on."""

    name = "ProcessPoolExecutor"
    map_options: ClassVar[dict[str, object]] = {"chunksize": 1000}

    def executor(self, workers):
        context = multiprocessing.get_context("forkserver")
        return futures.ProcessPoolExecutor(workers, mp_context=context)


class LokyPool(Pool):
    """loky's reusable executor; `open` makes a fresh one."""

    name = "loky"
    needs = ("loky",)
    map_options: ClassVar[dict[str, object]] = {"chunksize": 1000}

    def executor(self, workers):
        import loky

        # Its workers leave after some idle seconds, which would be measured.
        return loky.get_reusable_executor(max_workers=workers, timeout=3600)


# Channels and queues


class Link(Contender):
    """Two queues to `bench.work.peer`, which runs elsewhere."""

    @contextmanager
    def open(self):
        """Start the peer; yield functions (send, receive)."""
        raise NotImplementedError


class SubinterpChannel(Link):
    """Our channels, to a worker of our pool."""

    name = OURS
    ours = True
    needs = ("subinterp:create_channel",)

    @contextmanager
    def open(self):
        from subinterp import InterpreterPool, create_channel

        their_inbox, send = create_channel()
        receive, their_outbox = create_channel()
        with InterpreterPool(1) as pool:
            running = pool.submit(work.peer, their_inbox, their_outbox)
            yield send.send, receive.recv
            send.send(None)
            running.result()


class StandardInterpreterQueue(Link):
    """The standard library's queue, to an interpreter in a thread."""

    name = "interpreters.Queue"
    needs = ("concurrent.interpreters",)

    @contextmanager
    def open(self):
        from concurrent import interpreters

        inbox, outbox = interpreters.create_queue(), interpreters.create_queue()
        peer = interpreters.create()
        peer.exec(FIND_BENCH)
        running = peer.call_in_thread(work.peer, outbox, inbox)
        yield outbox.put, inbox.get
        outbox.put(None)
        running.join()
        peer.close()


class ThreadQueue(Link):
    """`queue.Queue`, to a thread."""

    name = "queue.Queue"

    @contextmanager
    def open(self):
        import queue

        inbox, outbox = queue.Queue(), queue.Queue()
        running = threading.Thread(target=work.peer, args=(outbox, inbox))
        running.start()
        yield outbox.put, inbox.get
        outbox.put(None)
        running.join()


class ProcessQueue(Link):
    """`multiprocessing.Queue`, to a process."""

    name = "multiprocessing.Queue"

    @contextmanager
    def open(self):
        context = multiprocessing.get_context("forkserver")
        inbox, outbox = context.Queue(), context.Queue()
        running = context.Process(target=work.peer, args=(outbox, inbox))
        running.start()
        yield outbox.put, inbox.get
        outbox.put(None)
        running.join()
        running.close()


POOLS = (
    SubinterpPool(),
    StandardInterpreterPool(),
    ThreadPool(),
    ProcessPool(),
    LokyPool(),
)
LINKS = (
    SubinterpChannel(),
    StandardInterpreterQueue(),
    ThreadQueue(),
    ProcessQueue(),
)

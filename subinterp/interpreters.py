"""Interpreters one at a time, after PEP 734's `concurrent.interpreters`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import CodeType, SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

from subinterp import _core
from subinterp._policy import Extensions
from subinterp.errors import RemoteTraceback, SubinterpError
from subinterp.pool import InterpreterPool

__all__ = [
    "ExecutionFailed",
    "Interpreter",
    "InterpreterError",
    "InterpreterNotFoundError",
    "create",
    "get_current",
    "get_main",
    "is_shareable",
    "list_all",
]


class InterpreterError(SubinterpError):
    """An interpreter-related error."""


class InterpreterNotFoundError(InterpreterError):
    """The interpreter is gone."""


class ExecutionFailed(InterpreterError):
    """Code in an interpreter raised; the exception itself is the cause.

    Attributes
    ----------
    excinfo : types.SimpleNamespace
        A snapshot of the exception: ``type`` (with ``__name__``,
        ``__qualname__``, ``__module__``), ``msg``, ``formatted`` and
        ``errdisplay`` (the worker's traceback).
    """

    def __init__(self, exc: BaseException) -> None:
        cls = type(exc)
        try:
            msg = str(exc)
        except Exception:
            msg = "(its text could not be made)"
        formatted = f"{cls.__qualname__}: {msg}" if msg else cls.__qualname__
        super().__init__(formatted)
        last: BaseException | None = exc
        while last is not None and not isinstance(last, RemoteTraceback):
            last = last.__cause__
        self.excinfo = SimpleNamespace(
            type=SimpleNamespace(
                __name__=cls.__name__, __qualname__=cls.__qualname__, __module__=cls.__module__
            ),
            msg=msg,
            formatted=formatted,
            errdisplay=last.text if isinstance(last, RemoteTraceback) else formatted,
        )


# Interpreters that were made here, by id. Guarded by _lock, like their state.
_lock = threading.Lock()
_made: WeakValueDictionary[int, Interpreter] = WeakValueDictionary()


class Interpreter:
    """One interpreter with its own lock, on a native thread of its own.

    Made by `create`. What runs in it runs on its thread, one thing at a time:
    while something runs, `exec`, `call` and `close` raise InterpreterError,
    also when several threads race.
    """

    def __init__(self, id: int, pool: InterpreterPool | None = None) -> None:
        self._interp_id = id
        self._pool = pool
        self._running = False
        self._closed = False

    @property
    def id(self) -> int:
        """The interpreter's number in this process; constant.

        One that was parked keeps its number (see `subinterp.set_parked_limit`).
        """
        return self._interp_id

    def __repr__(self) -> str:
        return f"Interpreter({self._interp_id})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interpreter):
            return NotImplemented
        return other._interp_id == self._interp_id

    def __hash__(self) -> int:
        return hash(self._interp_id)

    def __reduce__(self) -> Any:
        return _by_id, (self._interp_id,)

    def is_running(self) -> bool:
        """Return True if the interpreter is executing something.

        For one that was not made here, only the main and the current
        interpreter are known to be running.

        Raises
        ------
        InterpreterNotFoundError
            If it was closed, or has ended.

        Notes
        -----
        Does not block.
        """
        if self._pool is None:
            self._exists()
            return self._interp_id in (0, _core.current_interpreter_id())
        with _lock:
            self._not_closed()
            return self._running

    def close(self) -> None:
        """End the interpreter.

        Raises
        ------
        InterpreterError
            If it is the main or the current interpreter, runs, or was not
            made by this library.
        InterpreterNotFoundError
            If it was closed before.

        Notes
        -----
        Blocks until its thread has ended or parked it (see
        `subinterp.set_parked_limit`).
        """
        if self._interp_id == 0:
            raise InterpreterError("cannot close the main interpreter")
        if self._interp_id == _core.current_interpreter_id():
            raise InterpreterError("cannot close the current interpreter")
        pool = self._need_own()
        with _lock:
            self._not_closed()
            if self._running:
                raise InterpreterError("cannot close a running interpreter")
            self._closed = True
            _made.pop(self._interp_id, None)
        pool.shutdown(wait=True)

    def prepare_main(self, ns: dict[str, Any] | None = None, /, **kwargs: Any) -> None:
        """Bind objects in the interpreter's `__main__`.

        Parameters
        ----------
        ns : dict, optional
            Names and objects; copied as arguments of a task are.
        **kwargs
            More of them.

        Raises
        ------
        NotSendableError
            If an object cannot be sent.
        InterpreterError
            If the interpreter runs.
        """
        names = {**(ns or {}), **kwargs}
        self._run("prepare_main", (names,))

    def exec(self, code: str | CodeType | Callable[[], object], /) -> None:
        """Execute code in the interpreter's `__main__`.

        Parameters
        ----------
        code : str, code object or function without arguments
            A string is dedented and executed as a module's text.

        Raises
        ------
        ExecutionFailed
            If the code raised; the exception is its cause.
        InterpreterError
            If the interpreter runs already, or was not made by `create` here.
        InterpreterNotFoundError
            If it was closed.
        TypeError
            If `code` is something else.

        Notes
        -----
        Blocks until the code is done, with this interpreter's lock released.
        """
        if isinstance(code, str):
            import textwrap

            self._run("run_source", (textwrap.dedent(code),))
        elif isinstance(code, CodeType):
            import marshal

            self._run("run_source", (marshal.dumps(code),))
        elif callable(code):
            self._call(code, (), {})
        else:
            raise TypeError(
                f"code must be a string, a code object or a function, not {type(code).__name__}"
            )

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in the interpreter and return its result.

        Parameters
        ----------
        fn : callable
            Importable functions travel by name, others by value.
        *args, **kwargs
            Copied, as arguments of a task are.

        Returns
        -------
        object
            Made in the calling interpreter, which owns it.

        Raises
        ------
        ExecutionFailed
            If the function raised; the exception is its cause.
        NotSendableError
            If the function or an argument cannot be sent.
        InterpreterError
            If the interpreter runs already, or was not made by `create` here.
        InterpreterNotFoundError
            If it was closed.

        Notes
        -----
        Blocks until the call is done, with this interpreter's lock released.
        Functions and data travel as through a pool.
        """
        return self._call(fn, args, kwargs)

    def call_in_thread(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> threading.Thread:
        """Call a function in the interpreter, and let a thread wait for it.

        Parameters
        ----------
        fn : callable
            As for `call`.
        *args, **kwargs
            As for `call`.

        Returns
        -------
        threading.Thread
            A started thread of the calling interpreter. The result is dropped;
            what `call` would raise goes to `threading.excepthook`.

        Notes
        -----
        Does not block.
        """
        thread = threading.Thread(
            target=self._call, args=(fn, args, kwargs), name=f"interpreter-{self._interp_id}"
        )
        thread.start()
        return thread

    # ---- how ------------------------------------------------------------------

    def _not_closed(self) -> None:
        if self._closed:
            raise InterpreterNotFoundError(f"interpreter {self._interp_id} was closed")

    def _exists(self) -> None:
        ids = _core.interpreter_ids()
        if ids is not None and self._interp_id not in ids:
            raise InterpreterNotFoundError(f"interpreter {self._interp_id} is gone")

    def _need_own(self) -> InterpreterPool:
        if self._pool is None:
            self._exists()
            raise InterpreterError(
                f"interpreter {self._interp_id} was not made by subinterp.interpreters.create() "
                "in this interpreter, so it cannot be run or closed from here"
            )
        return self._pool

    def _begin(self) -> InterpreterPool:
        pool = self._need_own()
        with _lock:
            self._not_closed()
            if self._running:
                raise InterpreterError(f"interpreter {self._interp_id} is already running")
            self._running = True
        return pool

    def _end(self) -> None:
        with _lock:
            self._running = False

    def _finish(self, future: Any) -> Any:
        """Wait for the task; its own exception becomes ExecutionFailed."""
        try:
            exc = future.exception()
        except BaseException:
            # The wait was interrupted; the task goes on, and `_running` with it.
            future.add_done_callback(lambda _: self._end())
            raise
        self._end()
        if exc is not None:
            raise ExecutionFailed(exc) from exc
        return future.result()

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pool = self._begin()
        try:
            future = pool.submit(fn, *args, **kwargs)
        except BaseException:
            self._end()
            raise
        return self._finish(future)

    def _run(self, name: str, args: tuple[Any, ...]) -> Any:
        pool = self._begin()
        try:
            future = pool._call_worker(name, args)
        except BaseException:
            self._end()
            raise
        return self._finish(future)


def create(*, extensions: Extensions = "auto") -> Interpreter:
    """Create an interpreter with its own lock.

    Parameters
    ----------
    extensions : {"auto", "strict", "native"} or mapping
        How it loads extension modules, as for `InterpreterPool`.

    Returns
    -------
    Interpreter
        Ended by its `close`, or when the object is collected.

    Raises
    ------
    InterpreterError
        If CPython could not create it.
    TypeError, ValueError
        If `extensions` is no such value.

    Notes
    -----
    Blocks until it exists (about 12 ms), with this interpreter's lock
    released; several threads create in parallel.
    """
    pool = InterpreterPool(1, thread_name_prefix="interpreter", extensions=extensions)
    try:
        interp_id = pool._call_worker("interpreter_id", ()).result()
    except BaseException as exc:
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(exc, Exception):
            raise InterpreterError(f"the interpreter could not be created: {exc}") from exc
        raise
    interp = Interpreter(interp_id, pool)
    with _lock:
        _made[interp_id] = interp
    return interp


def _by_id(interp_id: int) -> Interpreter:
    with _lock:
        known = _made.get(interp_id)
    return known if known is not None else Interpreter(interp_id)


def list_all() -> list[Interpreter]:
    """Return every interpreter of the process.

    Returns
    -------
    list of Interpreter
        Oldest first, workers' interpreters and those made by others included;
        only those that `create` made in this interpreter can be run or closed.
    """
    ids = _core.interpreter_ids()
    if ids is None:
        # The runtime's layout was not recognised: at least those known here.
        with _lock:
            ids = [*_made, _core.current_interpreter_id(), 0]
    return [_by_id(i) for i in sorted(set(ids))]


def get_current() -> Interpreter:
    """Return the interpreter that calls."""
    return _by_id(_core.current_interpreter_id())


def get_main() -> Interpreter:
    """Return the main interpreter."""
    return _by_id(0)


def is_shareable(obj: object) -> bool:
    """Return True if an object reaches other interpreters without pickling.

    That is None, bool, int, float, complex, str, bytes, tuples of these,
    memoryview, SharedBuffer, channel ends, and locks and the like. Anything
    else that pickle or cloudpickle takes can be sent as well, as a copy.

    Parameters
    ----------
    obj : object
        Looked at, not sent.

    Returns
    -------
    bool
        A tuple is shareable if all of its items are.
    """
    if obj is None or type(obj) in (bool, int, float, complex, str, bytes):
        return True
    if type(obj) is tuple:
        return all(is_shareable(item) for item in obj)
    return isinstance(obj, (memoryview, _core.ChannelEnd, _core.SharedMemory, _core.SyncCore))

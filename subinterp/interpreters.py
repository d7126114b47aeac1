"""Interpreters one at a time: the module of PEP 734, `concurrent.interpreters`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, Protocol, cast
from weakref import WeakValueDictionary

from subinterp import _core
from subinterp._policy import Extensions
from subinterp._queues import (
    UNBOUND,
    UNBOUND_ERROR,
    UNBOUND_REMOVE,
    ItemInterpreterDestroyed,
    Queue,
    QueueEmpty,
    QueueError,
    QueueFull,
    QueueNotFoundError,
    Shareable,
    checked_id,
)
from subinterp._queues import create as create_queue
from subinterp.errors import (
    BrokenInterpreterPool,
    NotSendableError,
    RemoteTraceback,
    SubinterpError,
    TaskAbandoned,
)
from subinterp.pool import InterpreterPool, _prepare_interpreter

__all__ = [
    "UNBOUND",
    "UNBOUND_ERROR",
    "UNBOUND_REMOVE",
    "ExecutionFailed",
    "Interpreter",
    "InterpreterError",
    "InterpreterNotFoundError",
    "ItemInterpreterDestroyed",
    "NotShareableError",
    "Queue",
    "QueueEmpty",
    "QueueError",
    "QueueFull",
    "QueueNotFoundError",
    "create",
    "create_queue",
    "get_current",
    "get_main",
    "is_shareable",
    "list_all",
]


class InterpreterError(SubinterpError):
    """An interpreter-related error."""


class InterpreterNotFoundError(InterpreterError):
    """The interpreter is gone."""


# A TypeError, as the standard's is.
NotShareableError = NotSendableError


class _ExcType(Protocol):
    __name__: str


class _ExcInfo(Protocol):
    type: Any
    msg: Any
    formatted: Any
    errdisplay: Any


class _Excinfo(SimpleNamespace):
    """A snapshot of an exception, and beside it the exception."""

    __slots__ = ("exception",)
    exception: BaseException | None


class ExecutionFailed(InterpreterError):
    """Code in an interpreter raised.

    Attributes
    ----------
    excinfo : types.SimpleNamespace
        A snapshot of the exception: ``type`` (with ``__name__``,
        ``__qualname__``, ``__module__``), ``msg``, ``formatted`` and
        ``errdisplay`` (the interpreter's traceback).
    exception : BaseException or None
        The exception itself, with its own type where that can be had here; None
        if the interpreter was made by the standard library.
    """

    def __init__(self, excinfo: _ExcInfo) -> None:
        formatted = excinfo.formatted
        if not formatted:
            name = getattr(excinfo.type, "__name__", None)
            formatted = ": ".join(part for part in (name, excinfo.msg) if part)
        super().__init__(formatted)
        self.excinfo = excinfo
        self.exception: BaseException | None = getattr(excinfo, "exception", None)

    def __str__(self) -> str:
        text = super().__str__()
        display = getattr(self.excinfo, "errdisplay", None)
        return f"{text}\n\nUncaught in the interpreter:\n\n{display}" if display else text

    def __reduce__(self) -> Any:
        return type(self), (SimpleNamespace(**vars(self.excinfo)),), {"exception": self.exception}


def _snapshot(exc: BaseException) -> _Excinfo:
    cls = type(exc)
    try:
        msg = str(exc)
    except Exception:
        msg = "(its text could not be made)"
    module = "" if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}."
    formatted = f"{module}{cls.__qualname__}: {msg}"
    last: BaseException | None = exc
    while last is not None and not isinstance(last, RemoteTraceback):
        last = last.__cause__
    excinfo = _Excinfo(
        type=SimpleNamespace(
            __name__=cls.__name__, __qualname__=cls.__qualname__, __module__=cls.__module__
        ),
        msg=msg,
        formatted=formatted,
        errdisplay=last.text.rstrip("\n") if isinstance(last, RemoteTraceback) else formatted,
    )
    excinfo.exception = exc
    return excinfo


def _low_level() -> Any:
    """Return the standard library's module; imported for interpreters that it made."""
    import _interpreters

    return _interpreters


# ---- what runs in an interpreter ----------------------------------------------------

# co_flags: *args, **kwargs; generators, coroutines, asynchronous generators.
_VARIADIC = 0x04 | 0x08
_SUSPENDS = 0x20 | 0x80 | 0x200

# Builtins that look at the names of their caller.
_LOOKING = frozenset({dir, eval, exec, globals, locals, vars})


def _takes_arguments(code: CodeType) -> bool:
    return bool(code.co_argcount or code.co_kwonlyargcount or code.co_flags & _VARIADIC)


def _checked_script(code: CodeType) -> CodeType:
    if _takes_arguments(code):
        raise ValueError("code with args not supported")
    if code.co_freevars:
        raise ValueError("code that uses names of an enclosing function is not supported")
    if code.co_flags & _SUSPENDS:
        raise ValueError("a generator or coroutine is not a script: it would not run")
    return code


def _script(code: str | bytes | CodeType) -> CodeType:
    """Return the code object to be executed in `__main__`."""
    if isinstance(code, CodeType):
        return _checked_script(code)
    if isinstance(code, str):
        import textwrap

        code = textwrap.dedent(code)
    compiled: CodeType = compile(code, "<script>", "exec", dont_inherit=True)
    return compiled


def _needs_only_builtins(code: CodeType, names: dict[str, Any]) -> bool:
    """Return True if the code uses no global names but those of builtins."""
    import builtins

    unknown = {n for n in code.co_names if n in names or not hasattr(builtins, n)}
    if unknown:
        import dis

        # Names of attributes are among them.
        for instruction in dis.get_instructions(code):
            if (
                instruction.opname.endswith(("_GLOBAL", "_NAME"))
                and not instruction.opname.startswith("IMPORT")
                and instruction.argval in unknown
            ):
                return False
    return all(
        _needs_only_builtins(const, names) for const in code.co_consts if type(const) is CodeType
    )


def _is_stateless(fn: object) -> bool:
    """Return True for a function that is no more than its code, and has no name elsewhere."""
    return (
        type(fn) is FunctionType
        and fn.__closure__ is None
        and not fn.__defaults__
        and not fn.__kwdefaults__
        and not hasattr(fn, "__wrapped__")
        and _core.importable(fn) is None
        and _needs_only_builtins(fn.__code__, fn.__globals__)
    )


# ---- interpreters ----------------------------------------------------------------------

# The interpreters that have an object here: one each. Guarded by _lock.
_lock = threading.RLock()
_known: WeakValueDictionary[int, Interpreter] = WeakValueDictionary()

_RUNS, _CLOSED = 1, 2  # si_claim

# As the standard names where an interpreter comes from, by the numbers of `_interpreters`.
_WHENCE = (
    "unknown",
    "runtime init",
    "legacy C-API",
    "C-API",
    "cross-interpreter C-API",
    "_interpreters module",
)
_STANDARD = 5


class Interpreter:
    """One interpreter, by its number; `create` makes one.

    What runs in it runs one thing at a time: while something runs, whoever asked
    for it, `exec`, `call`, `prepare_main` and `close` raise InterpreterError.

    An interpreter that `create` made has its own lock and runs on a native thread
    of its own. It ends when `close` is called, or when no object in another
    interpreter stands for it any more. Interpreters that the standard library made
    can be used as well; of others, only what they are.

    Parameters
    ----------
    id : int
        Number of an interpreter that exists. Within an interpreter, there is one
        object for a number.

    Raises
    ------
    TypeError
        If `id` is not an integer.
    ValueError
        If it is negative.
    InterpreterNotFoundError
        If there is no such interpreter.
    """

    _id: int
    _pool: InterpreterPool | None
    _number: int | None  # of _WHENCE; None: not asked yet
    _decref: Callable[[int], None] | None  # gives up what keeps a standard one

    def __new__(cls, id: int, /) -> Interpreter:  # noqa: D102
        id = checked_id(id, "an interpreter")
        with _lock:
            known = _known.get(id)
            if known is not None and known._pool is not None and not known._is_closed():
                return known
            pool = _core.pool_of_interpreter(id) if id < 1 << 63 else None
            if pool is None:
                _need_exists(id)
                if known is not None and known._pool is None:
                    return known
            # An older object may be of one that was closed, or be from when it was listed
            # while `create` was making it.
            return _make(id, pool)

    @property
    def id(self) -> int:
        """The interpreter's number in this process; constant.

        One that was parked keeps its number (see `subinterp.set_parked_limit`).
        """
        return self._id

    @property
    def whence(self) -> str:
        """Where the interpreter comes from, in the standard's words.

        "_interpreters module": `create` made it, this module's or the standard's, so
        that it can be used and closed. "runtime init": the main interpreter.
        "C-API" and the like: others, workers of pools among them.
        """
        return _WHENCE[self._whence()]

    def __repr__(self) -> str:
        return f"Interpreter({self._id})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Interpreter):
            return NotImplemented
        return other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __reduce__(self) -> Any:
        return Interpreter, (self._id,)

    def __del__(self) -> None:
        decref, self._decref = self._decref, None
        if decref is not None:
            try:
                decref(self._id)
            except Exception:
                pass  # it has ended

    def is_running(self) -> bool:
        """Return True if the interpreter is executing something.

        Threads that code in it has started do not count.

        Raises
        ------
        InterpreterNotFoundError
            If it was closed, or has ended.

        Notes
        -----
        Does not block.
        """
        if self._pool is not None:
            self._need_open(self._pool)
            return self._pool._claimed == _RUNS
        if self._id == 0 or (_core.in_worker() and self._id == _core.current_interpreter_id()):
            return True
        _need_exists(self._id)
        return bool(self._standard(lambda: _low_level().is_running(self._id)))

    def close(self) -> None:
        """End the interpreter.

        Raises
        ------
        InterpreterError
            If it is the main or the current interpreter, runs, or was made neither
            by `create` nor by the standard library.
        InterpreterNotFoundError
            If it was closed before.

        Notes
        -----
        Blocks until its thread has ended or parked it (see
        `subinterp.set_parked_limit`), with the interpreter's lock released.
        """
        if self._id == 0:
            raise InterpreterError("cannot close the main interpreter")
        pool = self._pool
        if pool is None:
            self._need_standard("close")
            self._standard(lambda: _low_level().destroy(self._id, restrict=True))
            return
        if self._id == _core.current_interpreter_id():
            raise InterpreterError("cannot close the current interpreter")
        self._need_open(pool)
        was = pool._claim(_CLOSED)
        if was == _RUNS:
            raise InterpreterError(f"cannot close interpreter {self._id}: it is running")
        if was == _CLOSED:
            self._closed()
        with _lock:
            if _known.get(self._id) is self:
                del _known[self._id]
        pool.shutdown(wait=True)

    def prepare_main(
        self, ns: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None, /, **kwargs: Any
    ) -> None:
        """Bind objects in the interpreter's `__main__`.

        Parameters
        ----------
        ns : mapping or iterable of pairs, optional
            Names and objects; copied as arguments of a task are.
        **kwargs
            More of them.

        Raises
        ------
        NotShareableError
            If an object cannot be sent; then none is bound.
        ValueError
            If there are none, or a name has a null character.
        TypeError
            If a name is not a string.
        InterpreterError
            If the interpreter runs.
        InterpreterNotFoundError
            If it was closed.
        """
        names: dict[Any, Any] = dict(ns, **kwargs) if ns is not None else kwargs
        if not names:
            raise ValueError("prepare_main needs at least one name and object")
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"names must be strings, not {type(name).__name__}")
            if "\0" in name:
                raise ValueError(f"the name {name!r} has a null character")
        if self._pool is None:
            self._need_standard("bind objects in")
            self._standard(lambda: _low_level().set___main___attrs(self._id, names, restrict=True))
            return
        _, excinfo = self._run("prepare_main", (names,))
        if excinfo is not None:
            raise ExecutionFailed(excinfo)

    def exec(self, code: str | bytes | CodeType | Callable[[], object], /) -> None:
        """Execute code in the interpreter's `__main__`.

        Parameters
        ----------
        code : str, bytes, code object or function without arguments
            A string is dedented and executed as a module's text. A function's body
            is executed with the names of that `__main__` as its globals; one that
            uses names of an enclosing function is called, as by `call`.

        Raises
        ------
        ExecutionFailed
            If the code raised.
        SyntaxError
            If the text is no Python.
        ValueError
            If a code object has arguments, or uses names of an enclosing function, or
            is a generator's or a coroutine's.
        InterpreterError
            If the interpreter runs already, or was made neither by `create` nor by
            the standard library.
        InterpreterNotFoundError
            If it was closed.
        TypeError
            If `code` is something else.

        Notes
        -----
        Blocks until the code is done, with this interpreter's lock released.
        """
        if isinstance(code, (str, bytes, CodeType)):
            excinfo = self._exec(_script(code))
        elif (
            type(code) is FunctionType
            and code.__closure__ is None
            and not _takes_arguments(code.__code__)
        ):
            excinfo = self._exec(_checked_script(code.__code__))
        elif callable(code):
            _, excinfo = self._call(code, (), {})
        else:
            raise TypeError(
                f"code must be a string, a code object or a function, not {type(code).__name__}"
            )
        if excinfo is not None:
            raise ExecutionFailed(excinfo)

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in the interpreter and return its result.

        Parameters
        ----------
        fn : callable
            Importable functions travel by name, others by value. One that uses
            nothing but its arguments and builtins has the interpreter's `__main__`
            for its globals, and so have `eval`, `exec`, `dir` and the like.
        *args, **kwargs
            Copied, as arguments of a task are.

        Returns
        -------
        object
            Made in the calling interpreter, which owns it.

        Raises
        ------
        ExecutionFailed
            If the function raised.
        NotShareableError
            If the function, an argument or the result cannot be sent.
        InterpreterError
            If the interpreter runs already, or was made neither by `create` nor by
            the standard library.
        InterpreterNotFoundError
            If it was closed.

        Notes
        -----
        Blocks until the call is done, with this interpreter's lock released.
        Functions and data travel as through a pool.
        """
        result, excinfo = self._call(fn, args, kwargs)
        if excinfo is not None:
            raise ExecutionFailed(excinfo)
        return result

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
        Does not block. The call begins, and arguments are encoded, now.
        """
        target: Callable[[], None]
        pool = self._pool
        if pool is None:

            def target() -> None:
                self.call(fn, *args, **kwargs)
        else:
            try:
                future = self._begin(pool, self._sender(pool, fn, args, kwargs))
            except Exception as exc:
                failure = exc

                def target() -> None:
                    raise failure
            else:

                def target() -> None:
                    excinfo = self._outcome(future)[1]
                    if excinfo is not None:
                        raise ExecutionFailed(excinfo)

        thread = threading.Thread(target=target, name=f"interpreter-{self._id}")
        thread.start()
        return thread

    # ---- how ------------------------------------------------------------------

    def _whence(self) -> int:
        if self._number is None:
            if self._pool is not None:
                self._number = _STANDARD
            elif self._id == 0:
                self._number = 1
            else:
                _need_exists(self._id)
                self._number = self._standard(lambda: int(_low_level().whence(self._id)))
        return cast(int, self._number)

    def _is_closed(self) -> bool:
        """Return True if it was closed, so that the number may be another one's."""
        pool = self._pool
        return pool is not None and (pool._claimed == _CLOSED or pool._is_closing)

    def _closed(self) -> None:
        raise InterpreterNotFoundError(f"interpreter {self._id} was closed")

    def _need_open(self, pool: InterpreterPool) -> None:
        if pool._forked:
            raise InterpreterNotFoundError(
                f"interpreter {self._id} belongs to the parent of this forked process"
            )
        if pool._claimed == _CLOSED or pool._is_closing:
            self._closed()

    def _need_standard(self, what: str) -> None:
        """Refuse one that neither we nor the standard library have made."""
        if self._whence() != _STANDARD:
            raise InterpreterError(
                f"cannot {what} unrecognized interpreter {self._id}: "
                "neither subinterp.interpreters.create() nor the standard library made it"
            )

    def _standard(self, function: Callable[[], Any]) -> Any:
        """Call into the standard library's module; its exceptions become ours."""
        low_level = _low_level()
        try:
            return function()
        except low_level.InterpreterNotFoundError as exc:
            raise InterpreterNotFoundError(str(exc)) from None
        except low_level.InterpreterError as exc:
            raise InterpreterError(str(exc)) from None
        except low_level.NotShareableError as exc:
            raise NotShareableError(str(exc)) from None

    def _begin(self, pool: InterpreterPool, submit: Callable[[], Any]) -> Any:
        """Have the interpreter do something; returns a future.

        The interpreter's own thread ends the claim, whatever becomes of the caller.
        """
        self._need_open(pool)
        was = pool._claim(_RUNS)
        if was == _RUNS:
            raise InterpreterError(f"interpreter {self._id} is already running")
        if was == _CLOSED:
            self._closed()
        try:
            return submit()
        except BaseException as exc:
            pool._unclaim()
            if isinstance(exc, BrokenInterpreterPool):
                raise InterpreterError(
                    f"interpreter {self._id} cannot be used any more: {exc}"
                ) from exc
            if type(exc) is RuntimeError and pool._is_closing:
                self._closed()
            raise

    def _outcome(self, future: Any) -> tuple[Any, _ExcInfo | None]:
        """Wait for the result, or what was raised."""
        failure = future.exception()
        if failure is None:
            return future.result(), None
        if isinstance(failure, (BrokenInterpreterPool, TaskAbandoned)):
            raise InterpreterError(
                f"interpreter {self._id} cannot be used any more: {failure}"
            ) from failure
        if type(failure) is NotSendableError and str(failure).startswith("result"):
            raise NotSendableError(str(failure))
        return None, _snapshot(failure)

    def _exec(self, script: CodeType) -> _ExcInfo | None:
        if self._pool is None:
            self._need_standard("run code in")
            excinfo: _ExcInfo | None = self._standard(
                lambda: _low_level().exec(self._id, script, restrict=True)
            )
            return excinfo
        import marshal

        return self._run("run_source", (marshal.dumps(script),))[1]

    def _call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, _ExcInfo | None]:
        pool = self._pool
        if pool is None:
            return self._standard_call(fn, args, kwargs)
        return self._outcome(self._begin(pool, self._sender(pool, fn, args, kwargs)))

    def _sender(
        self,
        pool: InterpreterPool,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Callable[[], Any]:
        """Return what submits the call."""
        if not callable(fn):
            raise TypeError(f"expected a callable, not {type(fn).__name__}")
        if type(fn) is type(len) and fn in _LOOKING:
            return lambda: pool._call_worker("call_in_main", (fn.__name__, args, kwargs))
        if _is_stateless(fn):
            import marshal

            function = cast(FunctionType, fn)
            code = marshal.dumps(function.__code__)
            sent = code, function.__qualname__, args, kwargs

            def submit() -> Any:
                try:
                    return pool._call_worker("run_function", sent)
                except NotSendableError:
                    return pool.submit(fn, *args, **kwargs)  # it names the argument

            return submit
        return lambda: pool.submit(fn, *args, **kwargs)

    def _run(self, name: str, args: tuple[Any, ...]) -> tuple[Any, _ExcInfo | None]:
        pool = cast(InterpreterPool, self._pool)
        return self._outcome(self._begin(pool, lambda: pool._call_worker(name, args)))

    def _standard_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, _ExcInfo | None]:
        self._need_standard("call a function in")
        # 3.13 takes no arguments: it says so if there are any.
        given = (args, kwargs) if kwargs else (args,) if args else ()
        outcome = self._standard(lambda: _low_level().call(self._id, fn, *given, restrict=True))
        # 3.13 gives no results.
        return outcome if isinstance(outcome, tuple) else (None, outcome)


def _make(id: int, pool: InterpreterPool | None) -> Interpreter:
    """Make the object of an interpreter that has none here; the lock is held."""
    made = object.__new__(Interpreter)
    made._id = id
    made._pool = pool
    made._number = None
    made._decref = None
    if pool is not None:
        # So that `let_go` is called when this interpreter ends.
        _prepare_interpreter()
    elif id not in (0, _core.current_interpreter_id()) and made._whence() == _STANDARD:
        low_level = _low_level()
        made._standard(lambda: low_level.incref(id))
        made._decref = low_level.decref
    _known[id] = made
    return made


def _need_exists(id: int) -> None:
    ids = _core.interpreter_ids()
    if ids is not None and id not in ids:
        raise InterpreterNotFoundError(f"unrecognized interpreter ID {id}")


def let_go() -> None:
    """At the end of this interpreter: it keeps no others any more."""
    if _core.current_interpreter_id() == 0:
        return
    with _lock:
        interps = list(_known.values())
        _known.clear()
    for interp in interps:
        if interp._pool is not None:
            interp._pool._let_go()


def create(*, extensions: Extensions = "auto") -> Interpreter:
    """Create an interpreter with its own lock.

    Parameters
    ----------
    extensions : {"auto", "strict", "native"} or mapping
        How it loads extension modules, as for `InterpreterPool`.

    Returns
    -------
    Interpreter
        Ended by its `close`, or when no object in another interpreter stands for it.

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
    pool = InterpreterPool(
        1, thread_name_prefix="interpreter", extensions=extensions, max_abandoned=0
    )
    try:
        # What it does is no matter: the interpreter is there then.
        pool._call_worker("worker_name", ()).result()
        interp_id = cast(int, pool._look()[2][0][3])
    except BaseException as exc:
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(exc, Exception):
            raise InterpreterError(f"the interpreter could not be created: {exc}") from exc
        raise
    with _lock:
        pool._stand_alone(interp_id)
        return _make(interp_id, pool)


def list_all() -> list[Interpreter]:
    """Return every interpreter of the process.

    Returns
    -------
    list of Interpreter
        Oldest first, workers' interpreters and those made by others included.
    """
    ids = _core.interpreter_ids()
    if ids is None:
        # The runtime's layout was not recognised: at least those known here.
        with _lock:
            ids = [*_known, _core.current_interpreter_id(), 0]
    interps = []
    for id in sorted(set(ids)):
        try:
            interps.append(Interpreter(id))
        except InterpreterNotFoundError:
            continue  # it ended between the listing and the look
    return interps


def get_current() -> Interpreter:
    """Return the interpreter that calls."""
    return Interpreter(_core.current_interpreter_id())


def get_main() -> Interpreter:
    """Return the main interpreter."""
    return Interpreter(0)


def is_shareable(obj: object) -> bool:
    """Return True if an object reaches other interpreters without pickling.

    That is None, bool, int, float, complex, str, bytes, tuples of these,
    memoryview, queues, SharedBuffer, channel ends, and locks and the like. Anything
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
    return isinstance(
        obj, (memoryview, Shareable, _core.ChannelEnd, _core.SharedMemory, _core.SyncCore)
    )

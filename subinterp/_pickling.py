"""The general way into a message, for what a plain pickle cannot take along.

Functions, classes and other things that `__main__` (or a function's body)
defines travel by value, with cloudpickle. Two rules are added to cloudpickle's:

* A class that came from a caller goes back to it as a reference, so that
  ``isinstance(result, MyClass)`` holds there. cloudpickle alone would send it
  by value again, and loading it would reset the caller's class.
* A class that arrives by value where it was defined changes nothing there.

When something cannot be sent, the object graph is searched for the smallest
part that cannot, so that the error names it and its path.
"""

from __future__ import annotations

import functools
import io
import types
from collections import OrderedDict
from typing import Any
from weakref import WeakSet

import cloudpickle
from cloudpickle import cloudpickle as _cp

from subinterp.errors import NotSendableError, RemoteError, RemoteTraceback

# Classes that arrived by value: another interpreter is their home.
_received: WeakSet[type] = WeakSet()
# Classes sent by value, kept so that a reference to them can come back.
_sent: OrderedDict[str, type] = OrderedDict()
_MAX_SENT = 4096


# ---- classes ------------------------------------------------------------------


def forget_classes() -> None:
    """Forget the classes that were sent and received: nobody is left to ask for them."""
    _received.clear()
    _sent.clear()


def make_class(make: Any, args: tuple[Any, ...]) -> type:
    """Return the class of that tracker id: the one known here, or a new one."""
    tracker_id = args[-2]
    with _cp._DYNAMIC_CLASS_TRACKER_LOCK:
        known: type | None = _cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)
    if known is not None:
        return known
    made: type = make(*args)
    _received.add(made)
    return made


def set_class_state(cls: type, state: Any) -> type:
    """Fill a received class; one whose home this is stays as it is."""
    if cls in _received:
        _cp._class_setstate(cls, state)
    return cls


def find_class(tracker_id: str) -> type:
    """Return the class that a reference means."""
    with _cp._DYNAMIC_CLASS_TRACKER_LOCK:
        found: type | None = _cp._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker_id)
    if found is None:
        raise RuntimeError(
            "a result refers to a class that its caller has dropped; keep a reference to the class"
        )
    return found


def _by_value(obj: type) -> bool:
    return not _cp._should_pickle_by_reference(obj)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Writes one message; `writer` is its MessageWriter."""

    def __init__(self, writer: Any, *, buffered: bool = True) -> None:
        super().__init__(writer, protocol=5, buffer_callback=writer if buffered else None)
        self.writer = writer

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if self.writer.handles(cls):
            return self.writer.reduce(obj)
        if (
            isinstance(obj, type)
            and obj not in _BUILTIN
            and _by_value(obj)
            and self.writer.mode == "result"
            and obj in _received
        ):
            with _cp._DYNAMIC_CLASS_TRACKER_LOCK:
                tracker_id = _cp._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(obj)
            if tracker_id is not None:
                return find_class, (tracker_id,)
        if cls is functools._lru_cache_wrapper and not _found_by_name(obj):
            return make_cached, (obj.__wrapped__, obj.cache_parameters())
        reduced = super().reducer_override(obj)
        if (
            type(reduced) is tuple
            and len(reduced) == 6
            and reduced[5] is _cp._class_setstate
            and isinstance(obj, type)
        ):
            make, args, state = reduced[:3]
            _keep(args[-2], obj)
            return make_class, (make, args), state, None, None, set_class_state
        return reduced


def _found_by_name(obj: Any) -> bool:
    """Return True if workers can import the object under its name."""
    from subinterp import _core

    return _core.importable(obj) is not None


def make_cached(function: Any, parameters: dict[str, Any]) -> Any:
    """Wrap a function by `functools.lru_cache` again; its cache stays behind."""
    return functools.lru_cache(**parameters)(function)


_BUILTIN = frozenset({type, object, type(None), type(Ellipsis), type(NotImplemented)})


def _keep(tracker_id: str, cls: type) -> None:
    _sent[tracker_id] = cls
    _sent.move_to_end(tracker_id)
    while len(_sent) > _MAX_SENT:
        _sent.popitem(last=False)


def dump(writer: Any, obj: Any) -> None:
    """Pickle an object into a message."""
    Pickler(writer).dump(obj)


class _Text(io.BytesIO):
    """Stands for a MessageWriter where bytes alone are wanted (exceptions)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode  # type: ignore[misc]  # a plain attribute at run time

    def handles(self, cls: type) -> bool:
        return False

    def reduce(self, obj: Any) -> Any:
        raise AssertionError


class _BarePickler(Pickler):
    """Pickles exceptions by their own methods, not by what was registered for their types.

    tblib registers functions for all of them that take tracebacks, causes and contexts along:
    one that cannot be sent would hold up the exception that was raised.
    """

    @property
    def dispatch_table(self) -> dict[Any, Any]:
        return {
            key: reduce
            for key, reduce in super().dispatch_table.items()
            if not (isinstance(key, type) and issubclass(key, BaseException))
        }


def dumps_exception(exc: BaseException) -> bytes:
    """Pickle an exception on its way back to a caller, as bytes; its causes go apart."""
    try:
        out = _Text("result")
        Pickler(out, buffered=False).dump(exc)
    except Exception:
        out = _Text("result")
        _BarePickler(out, buffered=False).dump(exc)
    return out.getvalue()


# ---- exceptions ------------------------------------------------------------------


def rebuild_exception(tree: dict[str, Any]) -> BaseException:
    """Make an exception from what `_worker.describe` made of it.

    It has its own type, arguments, notes, cause and context. The worker's
    traceback is the cause of the last one in the chain of causes.
    """
    text = tree.get("text", "")
    exc = _rebuild(tree, text)
    last = exc
    seen = {id(last)}
    while last.__cause__ is not None and id(last.__cause__) not in seen:
        last = last.__cause__
        seen.add(id(last))
    last.__cause__ = RemoteTraceback(text)
    return _stopped(exc, tree) if "stopped" in tree else exc


def _stopped(exc: BaseException, tree: dict[str, Any]) -> BaseException:
    """Return the exception of a task that was interrupted; `exc` is what it ended with."""
    from subinterp.errors import TaskInterrupted, TaskTimeout

    outcome: BaseException
    if tree["stopped"] == 2:  # SI_CALL_OVERDUE
        outcome = TaskTimeout("the task exceeded its time limit")
    else:
        outcome = TaskInterrupted("the task was interrupted")
    outcome.__cause__ = RemoteTraceback(tree.get("text", ""))
    outcome.__context__ = exc
    return outcome


def _rebuild(tree: dict[str, Any], text: str) -> BaseException:
    exc = None
    problem = ""
    data = tree.get("data")
    if data is not None:
        import pickle

        try:
            exc = pickle.loads(data)
        except Exception as failure:
            problem = f" (it could not be rebuilt: {type(failure).__name__}: {failure})"
    if not isinstance(exc, BaseException):
        exc = RemoteError(f"a worker raised {tree.get('name', 'an exception')}{problem}\n{text}")
    for key in ("cause", "context"):
        other = tree.get(key)
        if other is not None:
            setattr(exc, f"__{key}__", _rebuild(other, text))
    exc.__suppress_context__ = bool(tree.get("suppress", False))
    children = tree.get("children")
    if children is not None and isinstance(exc, BaseExceptionGroup):
        for child, child_tree in zip(exc.exceptions, children, strict=False):
            _graft(child, child_tree, text)
    return exc


def _graft(exc: BaseException, tree: dict[str, Any], text: str) -> None:
    """Give a group's member the causes it had."""
    for key in ("cause", "context"):
        other = tree.get(key)
        if other is not None:
            setattr(exc, f"__{key}__", _rebuild(other, text))
    exc.__suppress_context__ = bool(tree.get("suppress", False))
    if isinstance(exc, BaseExceptionGroup):
        for child, child_tree in zip(exc.exceptions, tree.get("children", ()), strict=False):
            _graft(child, child_tree, text)


# ---- what cannot be sent --------------------------------------------------------------


class _Probe(_Text):
    """A message that is thrown away."""

    def __init__(self) -> None:
        super().__init__("message")

    def write(self, data: Any) -> int:
        return len(data)

    def __call__(self, buffer: Any) -> None:
        """Let a buffer travel out of band: it is not copied then."""

    def handles(self, cls: type) -> bool:
        from subinterp import _core

        return cls is memoryview or issubclass(
            cls, (_core.ChannelEnd, _core.SharedMemory, _core.SyncCore, _core.PoolCore)
        )

    def reduce(self, obj: Any) -> Any:
        from subinterp import _core
        from subinterp.errors import ChannelClosed

        if isinstance(obj, _core.ChannelEnd) and obj.closed:
            raise ChannelClosed("a closed channel end cannot be sent")
        return (bytes, ())


def _problem(obj: Any) -> Exception | None:
    """Why an object cannot be sent, or None."""
    try:
        Pickler(_Probe()).dump(obj)
    except Exception as exc:
        return exc
    return None


def _children(obj: Any, path: str) -> list[tuple[str, Any]]:
    """Return the parts of an object that its pickle would hold, with their paths."""
    if isinstance(obj, (list, tuple)):
        parts = [(f"{path}[{i}]", item) for i, item in enumerate(obj)]
        return parts + _attributes(obj, path)
    if isinstance(obj, dict):
        parts = []
        for key, value in obj.items():
            parts.append((f"{path}[{key!r}]", value))
            parts.append((f"key {key!r} of {path}", key))
        return parts + _attributes(obj, path)
    if isinstance(obj, (set, frozenset)):
        return [(f"{item!r} in {path}", item) for item in obj]
    if isinstance(obj, types.FunctionType):
        parts = []
        names = obj.__code__.co_freevars
        for name, cell in zip(names, obj.__closure__ or (), strict=True):
            try:
                parts.append((f"{path}.<closure>.{name}", cell.cell_contents))
            except ValueError:
                continue
        parts += [(f"{path}.__defaults__[{i}]", v) for i, v in enumerate(obj.__defaults__ or ())]
        parts += [
            (f"{path}.__kwdefaults__[{k!r}]", v) for k, v in (obj.__kwdefaults__ or {}).items()
        ]
        parts += [(f"{path}.<globals>.{k}", v) for k, v in _globals_of(obj)]
        return parts
    if isinstance(obj, types.MethodType):
        return [(f"{path}.__self__", obj.__self__), (f"{path}.__func__", obj.__func__)]
    if type(obj).__module__ == "functools" and type(obj).__name__ == "partial":
        return [
            (f"{path}.func", obj.func),
            (f"{path}.args", obj.args),
            (f"{path}.keywords", obj.keywords),
        ]
    if isinstance(obj, BaseException):
        return [(f"{path}.args", obj.args), *_attributes(obj, path)]
    if isinstance(obj, (type, types.ModuleType)):
        return []
    return _attributes(obj, path)


def _globals_of(function: types.FunctionType) -> list[tuple[str, Any]]:
    names = _cp._extract_code_globals(function.__code__)
    return [(n, function.__globals__[n]) for n in names if n in function.__globals__]


def _attributes(obj: Any, path: str) -> list[tuple[str, Any]]:
    """Attributes as pickle would save them."""
    try:
        state = obj.__reduce_ex__(5)[2]
    except Exception:
        state = getattr(obj, "__dict__", None)
    parts: list[tuple[str, Any]] = []
    for piece in state if isinstance(state, tuple) else (state,):
        if isinstance(piece, dict):
            parts += [(f"{path}.{name}", value) for name, value in piece.items()]
    return parts


def _find(obj: Any, path: str) -> tuple[str, Any, Exception | None]:
    """Path and object of the smallest part that cannot be sent, and why."""
    reason = _problem(obj)
    seen = {id(obj)}
    if isinstance(reason, RecursionError):
        return path, obj, reason  # nested too deeply: no part of it is to blame
    for _ in range(60):
        for child_path, child in _children(obj, path):
            if id(child) in seen:
                continue
            problem = _problem(child)
            if problem is not None:
                seen.add(id(child))
                obj, path, reason = child, child_path, problem
                break
        else:
            break
    return path, obj, reason


def _describe(obj: Any) -> str:
    try:
        text = repr(obj)
    except Exception:
        text = "?"
    if len(text) > 100:
        text = text[:97] + "..."
    return f"{text} (type {type(obj).__module__}.{type(obj).__qualname__})"


def explain(obj: Any, root: str, exc: BaseException) -> BaseException:
    """Return the error to raise for an object that could not be encoded.

    `exc` is what the encoder raised; errors that are not about the object
    (out of memory, a closed channel end) stay as they are.
    """
    from subinterp.errors import ChannelError, SubinterpError

    if isinstance(exc, (MemoryError, NotSendableError)):
        return exc
    try:
        path, culprit, reason = _find(obj, root)
    except Exception:
        path, culprit, reason = root, obj, None
    why = reason if reason is not None else exc
    if isinstance(why, ChannelError | SubinterpError) and not isinstance(why, NotSendableError):
        why_text = str(why)
    else:
        why_text = f"{type(why).__name__}: {why}"
    return NotSendableError(f"{path} cannot be sent: {_describe(culprit)}: {why_text}")


def explain_call(
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    exc: BaseException,
    fn_name: str = "fn",
    args_name: str = "args",
) -> BaseException:
    """As `explain`, for a function and its arguments."""
    for value, name in ((fn, fn_name), (args, args_name), (kwargs, "kwargs")):
        if _problem(value) is not None:
            return explain(value, name, exc)
    return explain((fn, args, kwargs), "the call", exc)


def explain_items(
    items: list[Any], start: int, n_inputs: int, star: bool, exc: BaseException
) -> BaseException:
    """As `explain`, for a chunk of a map's input that begins at item `start`."""
    for i, item in enumerate(items):
        if _problem(item) is None:
            continue
        if n_inputs == 1:
            return explain(item, f"iterables[0][{start + i}]", exc)
        for j, value in enumerate(item):
            if _problem(value) is not None:
                return explain(value, f"iterables[{j}][{start + i}]", exc)
    return explain(items, "the items", exc)

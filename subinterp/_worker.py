"""What runs in Python inside a worker's interpreter.

The C layer executes this module's code object in each new interpreter before
anything else (it is sent along, so it needs no import), and calls its
functions by name. It imports as little as can be: every module imported here
is paid for by every worker. So annotations that need a name from elsewhere
are strings, and never evaluated.
"""

import _thread
import io
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# The parts of a worker that need more than its thread: set by `boot`, for each pool.
_emit: "Callable[[int, Any, bool], int]"
_log_levels: "dict[str, Any] | None" = None  # `logging_to_main`: what `_logs.begin` needs
_index = 0  # of the worker that set the interpreter up
_indices: "dict[int, int]" = {}  # of each worker in it, by thread
_pool_name = ""
_thread_id = 0
_extensions_hint = ""
_dirty: "memoryview[int]"  # one byte, looked at after each task
_streams: "list[_Text]" = []


class _CoreFinder:
    """Loads the extension module without the main interpreter.

    CPython runs the init function of an extension that a subinterpreter
    imports in the main interpreter, under the main lock (gh-117953): a busy
    main would hold a worker up, and one that waits for the worker would
    deadlock. The module is in this process already; C code makes ours.
    """

    def __init__(
        self,
        core_file: str,
        create: "Callable[[ModuleSpec], ModuleType]",
        execute: "Callable[[ModuleType], None]",
    ) -> None:
        self.core_file = core_file
        self.create = create
        self.execute = execute

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        if name == "threading":
            return _spec_with_step(name, _adopt_thread)
        if name == "logging" and _log_levels is not None:
            return _spec_with_step(name, _send_records)
        if name != "subinterp._core":
            return None
        loader: Any = self
        spec = _ModuleSpec(name, loader, origin=self.core_file)
        spec.has_location = True
        return spec

    def create_module(self, spec: "ModuleSpec") -> "ModuleType":
        return self.create(spec)

    def exec_module(self, module: "ModuleType") -> None:
        self.execute(module)


class _PackageFinder:
    """Finds the package itself where the creator found it, if nobody else does."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        if name != "subinterp":
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(
            name, self.package + "/__init__.py", submodule_search_locations=[self.package]
        )


_ModuleSpec: "type[ModuleSpec]" = type(sys.__spec__)


class Interrupt(BaseException):
    """Raised in a task that is interrupted, by `Future.interrupt` or at its time limit.

    It derives from BaseException, so that ``except Exception`` lets it pass. A task may
    catch it to clean up, and raise it again; one that goes on to its end delivers its
    result.
    """

    def __reduce__(self) -> "tuple[Callable[..., Interrupt], tuple[Any, ...]]":
        # Not by the name of the class, which would import the public package in a worker.
        return _interrupt, self.args


Interrupt.__module__ = "subinterp"


def _interrupt(*args: "Any") -> Interrupt:
    return Interrupt(*args)


# ---- the worker's thread, as `threading` sees it ---------------------------------
# `threading` takes the thread that started the process for every interpreter's
# main thread. A worker's own thread would be a nameless dummy, and a daemon, and
# so would be every thread that a task starts.


class _AfterExec:
    """A loader that adds a step once its module has been executed."""

    def __init__(self, loader: "Any", step: "Callable[[ModuleType], None]") -> None:
        self.loader = loader
        self.step = step

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: "Any") -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.step(module)


def _spec_with_step(name: str, step: "Callable[[ModuleType], None]") -> "ModuleSpec | None":
    from importlib.machinery import PathFinder

    spec: Any = PathFinder.find_spec(name)
    if spec is not None and spec.loader is not None:
        spec.loader = _AfterExec(spec.loader, step)
    found: ModuleSpec | None = spec
    return found


def _adopt_thread(threading: "Any") -> None:
    """Make the worker's thread the main thread of its interpreter."""
    if threading.get_ident() != _thread_id:
        return  # a thread that a task started without `threading` came first
    main = threading._main_thread
    if getattr(main, "_subinterp", False) and main.ident == _thread_id:
        main._name = worker_name()
        return  # an earlier pool's worker did
    for ident, thread in list(threading._active.items()):
        if thread is threading._main_thread or ident == _thread_id:
            del threading._active[ident]
    thread = threading._DummyThread()
    # It would take itself off the list when this thread's locals go, which in
    # 3.13.0 is after the module's globals: stop that, and list it again.
    threading._thread_local_info.__dict__.clear()
    threading._active[_thread_id] = thread
    thread._daemonic = False
    thread._name = worker_name()
    thread._subinterp = True
    threading._main_thread = thread


def boot(
    payload: "dict[str, Any]",
    index: int,
    dirty: memoryview,
    create_core: "Callable[[ModuleSpec], ModuleType]",
    exec_core: "Callable[[ModuleType], None]",
    emit: "Callable[[int, Any, bool], int]",
    report: "Callable[[Any], None]",
    shield: "Callable[[bool], None]",
) -> None:
    """Set the interpreter, new or renewed, up as its pool's options say."""
    global _index, _pool_name, _thread_id, _dirty, _pristine, _installed
    global _extensions_hint, _emit, _log_levels
    if _pristine is None:
        import atexit

        _pristine = _Pristine()
        atexit.register(_give_streams_back)
    _installed = tuple(payload["installed"])
    _index = index
    _indices.clear()
    _indices[_thread.get_ident()] = index
    _pool_name = payload["name"]
    _extensions_hint = payload["extensions_hint"]
    _thread_id = _thread.get_ident()
    _dirty = dirty
    sys.path[:] = payload["path"]
    sys.argv = list(payload["argv"])
    sys.meta_path[:] = [
        _CoreFinder(payload["core"], create_core, exec_core),
        *(f for f in sys.meta_path if not isinstance(f, (_CoreFinder, _PackageFinder))),
        _PackageFinder(payload["package"]),
    ]
    if "threading" in sys.modules:
        _adopt_thread(sys.modules["threading"])
    elif payload["threads"] > 1:
        import threading  # noqa: F401  # here: by another worker, it would know that one only
    if payload["filters"] is not None:
        _set_filters(payload["filters"])
    if payload["switch_interval"] is not None:
        sys.setswitchinterval(payload["switch_interval"])
    if payload["recursion_limit"] != sys.getrecursionlimit():
        sys.setrecursionlimit(payload["recursion_limit"])
    _emit = emit
    _open_streams(payload["streams"])
    sys.unraisablehook = report
    _guard_imports(shield)
    _log_levels = payload["logging"]
    if _log_levels is not None and ("logging" in sys.modules or _log_levels["warnings"]):
        import logging

        _send_records(logging)


def enter(index: int) -> None:
    """Be one more worker's thread in this interpreter."""
    import threading

    me = _thread.get_ident()
    _indices[me] = index
    thread: Any = threading.current_thread()
    # It takes the thread off the list when this one ends, which we do ourselves; on 3.13.0 with
    # an error if the interpreter has ended before.
    local: Any = threading._thread_local_info  # type: ignore[attr-defined]
    vars(local).pop("_track_dummy_thread_ref", None)
    threading._active[me] = thread  # type: ignore[attr-defined]
    thread._name = worker_name()
    thread._daemonic = False  # what it starts is not, either


def leave_to_others() -> None:
    """Take this worker's thread out of the interpreter, which others work in."""
    me = _thread.get_ident()
    _indices.pop(me, None)
    sys.modules["threading"]._active.pop(me, None)


# ---- imports -----------------------------------------------------------------------
# The locks of modules are Python code of the import system. An interruption must not
# end it half-way: others that import the module would wait for ever.


def _guard_imports(shield: "Callable[[bool], None]") -> None:
    importlib: Any = sys.modules["_frozen_importlib"]
    if hasattr(importlib._get_module_lock, "_subinterp"):
        return  # for an earlier pool

    def shielded(function: "Callable[..., Any]") -> "Callable[..., Any]":
        def call(*args: "Any") -> "Any":
            shield(True)
            try:
                return function(*args)
            finally:
                shield(False)

        vars(call)["_subinterp"] = True
        return call

    importlib._get_module_lock = shielded(importlib._get_module_lock)
    for name in ("acquire", "release"):
        setattr(importlib._ModuleLock, name, shielded(getattr(importlib._ModuleLock, name)))


def let_imports_go() -> None:
    """Release the locks that an interrupted task still holds: it imports nothing any more."""
    import _imp

    try:
        while _imp.lock_held():
            _imp.release_lock()
    except RuntimeError:
        pass  # it is another thread's
    importlib: Any = sys.modules["_frozen_importlib"]
    me = _thread.get_ident()
    for ref in list(importlib._module_locks.values()):
        lock = ref()
        while lock is not None and lock.owner == me:
            lock.release()


def _pattern(text: "str | None", flags: "int | None") -> "Any":
    if flags is None:
        return text  # None, or the plain string of a built-in filter
    import re

    return re.compile(text, flags)


class _Named(type):
    """Type of classes that stand for one that is not there yet, by its name."""

    def __subclasscheck__(cls, other: type) -> bool:
        return any(
            base.__module__ == cls.__module__ and base.__qualname__ == cls.__qualname__
            for base in other.__mro__
        )


def _named(module: str, name: str) -> type:
    """Stand for a category of warnings whose module has not been imported."""
    return _Named(name.rpartition(".")[2], (Warning,), {"__module__": module, "__qualname__": name})


def _set_filters(filters: "list[tuple[Any, ...]]") -> None:
    import warnings as _warnings

    warnings: Any = _warnings  # what is used of it is not declared
    rebuilt = []
    for action, message, flags, module, name, in_module, in_flags, lineno in filters:
        category: type
        try:
            # Never by an import: NumPy sets a filter for a warning of its own, and a
            # worker is not to import NumPy for that.
            category = resolve(module, name) if module in sys.modules else _named(module, name)
        except Exception:
            continue  # there is no such class here: it cannot occur either
        rebuilt.append(
            (action, _pattern(message, flags), category, _pattern(in_module, in_flags), lineno)
        )
    _put_filters(warnings, warnings.filters, rebuilt)


def _put_filters(warnings: "Any", filters: "list[Any]", rebuilt: "list[Any]") -> None:
    """Replace the filters; `warnings` is that module, or `_warnings`."""
    if hasattr(warnings, "_acquire_lock"):  # 3.14 and later
        warnings._acquire_lock()
        try:
            filters[:] = rebuilt
            warnings._filters_mutated_lock_held()
        finally:
            warnings._release_lock()
    else:
        filters[:] = rebuilt
        warnings._filters_mutated()


# ---- streams -----------------------------------------------------------------
# Text that a task wrote must be out when the task is done. Flushing after each
# task costs more than a small task; so writing marks a byte that the C loop
# looks at.


#
# Lines of several workers, and of several threads of one, must not be mixed. So
# a thread's line is kept until it is whole (`_Text`), and only whole lines go
# out, each lot at once (`_Lines`), unless a flush is asked for.

# A longer line is not kept together.
_LONGEST = 1 << 20


class _Lines(io.RawIOBase):
    """Writes to a file descriptor, or hands to the creator's interpreter, whole lines."""

    def __init__(self, fd: int, name: str, forward: bool) -> None:
        self._fd = fd
        self._emit = _emit
        self._forward = forward
        self._held = b""
        self.name = name
        self.mode = "wb"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        if self._forward:
            return False
        import posix

        return posix.isatty(self._fd)

    def _out(self, data: bytes) -> None:
        self._emit(self._fd, data, self._forward)

    def write(self, data: "Any", /) -> int:
        new = bytes(data)
        end = new.rfind(b"\n") + 1
        if not end and len(self._held) + len(new) > _LONGEST:
            end = len(new)
        if end:
            whole = self._held + new[:end]
            self._held = b""  # also if it cannot be written
            self._out(whole)
        self._held += new[end:]
        return len(new)

    def flush(self) -> None:
        super().flush()
        rest, self._held = self._held, b""
        if rest:
            self._out(rest)


class _Buffered(io.BufferedWriter):
    def write(self, data: "Any", /) -> int:
        _dirty[0] = 1
        return super().write(data)

    def flush(self) -> None:
        super().flush()
        self.raw.flush()


class _Text(io.TextIOWrapper):
    def __init__(self, *args: "Any", **kwargs: "Any") -> None:
        super().__init__(*args, **kwargs)
        # What each thread has begun of a line: how long it is, and its pieces, which are
        # joined only once. (A document is often written as one line, token by token.)
        self._begun: dict[int, tuple[int, list[str]]] = {}

    def write(self, text: str, /) -> int:
        _dirty[0] = 1
        if self.write_through or not isinstance(text, str):
            return super().write(text)
        me = _thread.get_ident()
        length, pieces = self._begun.pop(me, (0, []))
        end = len(text) if length + len(text) > _LONGEST else text.rfind("\n") + 1
        if end:
            whole = "".join([*pieces, text[:end]])
            length, pieces = 0, []
        pieces.append(text[end:])
        if length := length + len(text) - end:
            self._begun[me] = (length, pieces)
        if end:
            super().write(whole)
        return len(text)

    def flush(self) -> None:
        if self._begun:
            # Not sys._current_frames(): it makes frame objects of all interpreters' threads here.
            others = set(getattr(sys.modules.get("threading"), "_active", ()))
            others.discard(_thread.get_ident())
            # A copy: other threads begin lines meanwhile.
            for thread in list(self._begun):
                if thread not in others:
                    _, pieces = self._begun.pop(thread, (0, []))
                    super().write("".join(pieces))
            if self._begun:
                _dirty[0] = 1  # of other workers here, who flush it with their tasks' ends
        super().flush()


def _open_streams(options: "dict[str, Any]") -> None:
    for fd, name in ((1, "stdout"), (2, "stderr")):
        option = options[name]
        if option is None:
            continue
        old = getattr(sys, name)
        if old is None and not option["forward"]:
            continue
        stream = _Text(
            _Buffered(_Lines(fd, f"<{name}>", option["forward"])),
            encoding=option["encoding"],
            errors=option["errors"],
            line_buffering=fd == 2 or option["line_buffering"],
        )
        stream.mode = "w"  # type: ignore[misc]  # a plain attribute at run time
        _streams.append(stream)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def flush() -> None:
    """Flush what tasks wrote; a stream that cannot be written is left alone."""
    for stream in (*_streams, sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def _give_streams_back() -> None:
    """Have the interpreter's own streams again: its last exit function.

    A stream that is closed only when the modules are gone runs Python code that finds
    nothing any more; CPython then does not give the interpreter's memory back.
    """
    flush()
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        if isinstance(getattr(sys, name, None), _Text) and _pristine is not None:
            setattr(sys, name, _pristine.sys[name])
    # Threads and handlers of `logging` may still have them.
    while _streams:
        try:
            _streams.pop().close()
        except Exception:
            pass


# ---- log records -----------------------------------------------------------------


def _send_records(logging: "Any") -> None:
    """Send what is logged here to the creator's interpreter: `logging_to_main`."""
    from subinterp import _logs

    if _log_levels is not None:
        _logs.begin(_log_levels, worker_name, interpreter_id(), _emit)


# ---- functions by name --------------------------------------------------------


def resolve(module: str, qualname: str) -> "Any":
    """Import and return the object of that name."""
    __import__(module)
    attempts = 0
    while module not in sys.modules and attempts < 100:
        # Another worker here was interrupted while it imported the module, and this one
        # has waited for that (3.14 and earlier).
        attempts += 1
        __import__(module)
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


# ---- exceptions ----------------------------------------------------------------


def worker_name() -> str:
    index = _indices.get(_thread.get_ident(), _index)
    return f"{_pool_name or 'subinterp'}-{index}"


def _note_import_error(exc: BaseException) -> None:
    """Say where an import failed, and what can be done."""
    if any(note.startswith("In worker ") for note in getattr(exc, "__notes__", ())):
        return
    text = str(exc)
    if "interpreters" in text and "support" in text:
        hint = _extensions_hint
    else:
        hint = (
            "A worker starts with its creator's sys.path: extend it before the pool is made, "
            "install the module, or define the function in __main__ so that it travels by value."
        )
    exc.add_note(f"In worker {worker_name()} with sys.path = {sys.path!r}. {hint}")


def text_of(exc: BaseException) -> str:
    """Return the traceback as the interpreter would print it."""
    import traceback

    # Without the frames of this module that lead to the task's own.
    tb = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == text_of.__code__.co_filename:
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(exc), exc, tb))


def _dump(exc: BaseException) -> bytes:
    from _pickle import dumps

    try:
        data = dumps(exc, 5)
    except Exception:
        data = None
    if data is None or b"__main__" in data:
        from subinterp import _pickling

        data = _pickling.dumps_exception(exc)
    return data


def _tree(exc: BaseException, seen: "set[int]", depth: int = 0) -> "dict[str, Any]":
    """Return the exception without its text, as plain values."""
    seen.add(id(exc))
    tree: dict[str, Any] = {"name": type(exc).__qualname__, "data": None}
    try:
        tree["data"] = _dump(exc)
    except Exception:
        pass
    if depth < 50:
        for key, other in (("cause", exc.__cause__), ("context", exc.__context__)):
            if other is not None and id(other) not in seen:
                tree[key] = _tree(other, seen, depth + 1)
        if isinstance(exc, BaseExceptionGroup):
            tree["children"] = [_tree(e, seen, depth + 1) for e in exc.exceptions]
    tree["suppress"] = exc.__suppress_context__
    return tree


def describe(exc: BaseException) -> "dict[str, Any]":
    """Return an exception as plain values, for `_pickling.rebuild_exception`."""
    pending = [exc]
    for e in pending:
        if isinstance(e, ImportError):
            try:
                _note_import_error(e)
            except Exception:
                pass
        for other in (e.__cause__, e.__context__):
            if other is not None and len(pending) < 50 and not any(other is e2 for e2 in pending):
                pending.append(other)
    try:
        text = text_of(exc)
    except Exception:
        text = f"{type(exc).__name__} (its traceback could not be formatted)\n"
    tree = _tree(exc, set())
    tree["text"] = text
    # Break the cycle exception -> traceback -> frame -> exception.
    del exc, pending, e, other
    return tree


# ---- the end ---------------------------------------------------------------------


def finish() -> None:
    """Join the threads that tasks started, as the end of a program does."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    core = sys.modules.get("subinterp._core")
    if core is not None:
        core.stop_notifier()
    flush()


def only_daemons_left() -> bool:
    """Return True if daemon threads are running: nobody will wait for them."""
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    here = threading.get_ident()
    return any(t.daemon and t.ident != here and t.is_alive() for t in threading.enumerate())


def leave() -> None:
    """Run what the end of the interpreter would have run: the process ends."""
    finish()
    import atexit

    atexit._run_exitfuncs()
    flush()


# ---- parking -----------------------------------------------------------------------
# An interpreter that is parked is made as good as new with its old pool, and
# gets what the new pool brings with it by `renew` and `boot`. The exact list of
# what is fresh and what stays is in docs/architecture.md, "Parked interpreters".


class _Pristine:
    """The interpreter as CPython made it, before the first pool's options."""

    def __init__(self) -> None:
        import _warnings
        import builtins
        import gc

        self.main = dict(vars(sys.modules["__main__"]))
        self.builtins = dict(vars(builtins))
        self.sys = dict(vars(sys))
        self.lists = {k: list(v) for k, v in self.sys.items() if type(v) is list}
        self.filters: Any = _warnings.filters
        self.filters_items = list(self.filters)
        self.gc = gc.isenabled(), gc.get_threshold(), gc.get_debug(), list(gc.callbacks)
        self.environ: Any = getattr(sys.modules.get("os"), "environ", None)
        # (function that sets it, arguments) of what `sys` keeps out of its namespace.
        self.settings: list[tuple[Any, tuple[Any, ...]]] = [
            (sys.settrace, (sys.gettrace(),)),
            (sys.setprofile, (sys.getprofile(),)),
            (sys.setrecursionlimit, (sys.getrecursionlimit(),)),
            (sys.setswitchinterval, (sys.getswitchinterval(),)),
            (sys.setdlopenflags, (sys.getdlopenflags(),)),
            (sys.set_int_max_str_digits, (sys.get_int_max_str_digits(),)),
            (sys.set_asyncgen_hooks, tuple(sys.get_asyncgen_hooks())),
            (
                sys.set_coroutine_origin_tracking_depth,
                (sys.get_coroutine_origin_tracking_depth(),),
            ),
        ]
        for name in ("lazy_imports", "lazy_imports_filter"):  # 3.15 and later
            if hasattr(sys, f"set_{name}"):
                setting = getattr(sys, f"set_{name}"), (getattr(sys, f"get_{name}")(),)
                self.settings.append(setting)
        self.tools = [i for i in range(6) if sys.monitoring.get_tool(i) is not None]


_pristine: "_Pristine | None" = None
_installed: "tuple[str, ...]" = ()


def park() -> bool:
    """Make the interpreter as good as new; False: it cannot be reused.

    It may be ended afterwards all the same, also after an exception.
    """
    core = sys.modules.get("subinterp._core")
    if core is not None:
        core.close_pools_of_this_interpreter()
    flush()
    if logs := sys.modules.get("subinterp._logs"):
        logs.end()
    if _pristine is None or _threads_left():
        return False
    _restore_settings(_pristine)
    _drop_modules()
    _restore_namespaces(_pristine)
    _restore_modules(_pristine)
    import gc

    gc.collect()
    return not _threads_left()


def _threads_left() -> bool:
    """Return True if threads of tasks run on, or those of an idle executor."""
    if _thread._count():
        from time import sleep

        for _ in range(20):
            sleep(0.001)  # one may be on its last steps
            if not _thread._count():
                return False
        return True
    return False


def renew(environment: "dict[bytes, bytes]") -> None:
    """Before `boot`, for the next pool: what is of the process, as it is now."""
    core = sys.modules.get("subinterp._core")
    if core is not None:
        core._context.renew()
    if _pristine is not None and _pristine.environ is not None:
        _pristine.environ._data.clear()
        _pristine.environ._data.update(environment)


def _restore_settings(pristine: _Pristine) -> None:
    import gc

    for function, args in pristine.settings:
        function(*args)
    for tool in range(6):
        if tool not in pristine.tools and sys.monitoring.get_tool(tool) is not None:
            sys.monitoring.set_events(tool, 0)
            sys.monitoring.free_tool_id(tool)
    enabled, threshold, debug, callbacks = pristine.gc
    (gc.enable if enabled else gc.disable)()
    gc.set_threshold(*threshold)
    gc.set_debug(debug)
    gc.callbacks[:] = callbacks
    gc.unfreeze()
    gc.garbage.clear()
    _thread.stack_size(0)


def _stays(file: str) -> bool:
    """Return True for a file of the standard library or of an installed package."""
    if file.startswith(_installed) or "/site-packages/" in file or "/dist-packages/" in file:
        return True
    from os.path import realpath

    return realpath(file).startswith(_installed)


def _is_installed(name: str, module: object) -> "bool | None":
    """Return whether a module stays; None: as its package does."""
    if name == "subinterp" or name.startswith("subinterp."):
        # The extension module cannot be executed twice in an interpreter. Integrations hold
        # modules of other packages, which may not stay.
        return not name.startswith("subinterp.integrations.")
    try:
        # Not getattr: a lazy module would be loaded by it.
        names = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return None
    file = names.get("__file__")
    if type(file) is str:
        return _stays(file)
    spec = names.get("__spec__")
    if getattr(spec, "origin", None) in ("built-in", "frozen"):
        return True
    portions = names.get("__path__")
    if portions is not None:  # a namespace package
        return any(_stays(f"{portion}/") for portion in list(portions))
    return None


def _drop_modules() -> None:
    """Forget modules from outside the standard library and installed packages."""
    modules: Any = sys.modules  # tasks may have put anything there
    found: dict[str, bool | None] = {}
    for name, module in list(modules.items()):
        if module is None:
            del modules[name]  # an import that was forbidden
        elif name != "__main__":
            found[name] = _is_installed(name, module)
    kept = {"__main__"}
    for name in found:
        package, stays = name, found[name]
        while stays is None and "." in package:
            package = package.rpartition(".")[0]
            stays = found.get(package)
        # Neither file nor package: made by an extension module, mostly.
        if stays is not False:
            parts = name.split(".")
            kept.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
    for name in found:
        if name in kept:
            continue
        module = modules.pop(name, None)
        package, _, attribute = name.rpartition(".")
        parent = modules.get(package)
        if parent is not None and vars(parent).get(attribute) is module:
            delattr(parent, attribute)


def _restore_names(names: "dict[str, Any]", pristine: "dict[str, Any]") -> None:
    for name in list(names):
        # Extension modules keep under such names what they share with each other.
        if name not in pristine and not name.startswith("__"):
            del names[name]
    names.update(pristine)


def _is_kept(entry: object) -> bool:
    """Return True for a finder or hook whose own module stays."""
    module = getattr(entry, "__module__", None)
    return module != "__main__" and module in sys.modules


def _restore_namespaces(pristine: _Pristine) -> None:
    """Restore `sys`, `builtins` and `__main__`, the import system and the streams."""
    global _dirty
    import builtins

    added = {}  # what an installed module has added goes on finding its modules
    for name in ("meta_path", "path_hooks"):
        known = pristine.lists[name]
        added[name] = [e for e in getattr(sys, name) if e not in known and _is_kept(e)]
    _restore_names(vars(sys), pristine.sys)
    for name, items in pristine.lists.items():
        getattr(sys, name)[:] = items + added.get(name, [])
    sys.path_importer_cache.clear()
    for finder in sys.meta_path:
        if hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()
    _restore_names(vars(builtins), pristine.builtins)
    main = type(sys)("__main__")
    vars(main).update(pristine.main)
    if "__annotations__" in pristine.main:  # up to 3.13
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    _streams.clear()
    _dirty.release()
    _dirty = memoryview(bytearray(1))


def _restore_modules(pristine: _Pristine) -> None:
    """Restore what the standard library and this one keep in modules that stay."""
    import _warnings

    modules: Any = sys.modules
    _put_filters(_warnings, pristine.filters, pristine.filters_items)
    _warnings._onceregistry.clear()
    if warnings := modules.get("warnings"):
        warnings.filters = pristine.filters
        warnings.showwarning = warnings._showwarning_orig
        warnings.formatwarning = warnings._formatwarning_orig
    if pristine.environ is not None:
        modules["os"].environ = pristine.environ
    if threading := modules.get("threading"):
        threading.excepthook = threading.__excepthook__
        threading._trace_hook = threading._profile_hook = None
    if events := modules.get("asyncio.events"):
        events._event_loop_policy = None  # and with it this thread's event loop
    if linecache := modules.get("linecache"):
        linecache.clearcache()
    if pickling := modules.get("subinterp._pickling"):
        pickling.forget_classes()


# ---- what `subinterp.interpreters` runs here ----------------------------------------


def run_source(source: "str | bytes") -> None:
    """Execute source text, or a marshalled code object, in `__main__`."""
    if isinstance(source, str):
        code = compile(source, "<string>", "exec")
    else:
        import marshal

        code = marshal.loads(source)
    exec(code, sys.modules["__main__"].__dict__)


def run_function(code: bytes, qualname: str, args: "Any", kwargs: "dict[str, Any]") -> "Any":
    """Call a function that needs nothing but its code; its globals are those of `__main__`."""
    import marshal

    function_type: Any = type(worker_name)
    function = function_type(marshal.loads(code), sys.modules["__main__"].__dict__)
    function.__qualname__ = qualname
    return function(*args, **kwargs)


def call_in_main(name: str, args: "Any", kwargs: "dict[str, Any]") -> "Any":
    """Call a builtin that looks at its caller's names, as if `__main__` did."""
    names = sys.modules["__main__"].__dict__
    if name == "globals" or (not args and name in ("locals", "vars")):
        return names
    if not args and name == "dir":
        return sorted(names)
    if name in ("eval", "exec") and len(args) == 1 and not kwargs:
        args = (*args, names)
    import builtins

    return getattr(builtins, name)(*args, **kwargs)


def prepare_main(names: "dict[str, Any]") -> None:
    """Bind names in `__main__`."""
    sys.modules["__main__"].__dict__.update(names)


def interpreter_id() -> int:
    """Return the number of this interpreter."""
    import _interpreters

    number: int = _interpreters.get_current()[0]
    return number

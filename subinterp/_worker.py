"""What runs in Python inside a worker's interpreter.

The C layer executes this module's code object in each new interpreter before
anything else (it is sent along, so it needs no import), and calls its
functions by name. It imports as little as can be: every module imported here
is paid for by every worker.
"""

import _thread
import io
import sys

# The parts of a worker that need more than its thread: set by `boot`.
_index = 0
_pool_name = ""
_thread_id = 0
_dirty: "memoryview | None" = None
_streams: list = []


class _CoreFinder:
    """Loads the extension module without the main interpreter.

    CPython runs the init function of an extension that a subinterpreter
    imports in the main interpreter, under the main lock (gh-117953): a busy
    main would hold a worker up, and one that waits for the worker would
    deadlock. The module is in this process already; C code makes ours.
    """

    def __init__(self, package, core_file, create, execute):
        self.package = package
        self.core_file = core_file
        self.create = create
        self.execute = execute

    def find_spec(self, name, path=None, target=None):
        if name == "threading":
            return _threading_spec(name)
        if name != "subinterp._core":
            return None
        spec = _ModuleSpec(name, self, origin=self.core_file)
        spec.has_location = True
        return spec

    def create_module(self, spec):
        return self.create(spec)

    def exec_module(self, module):
        self.execute(module)


class _PackageFinder:
    """Finds the package itself where the creator found it, if nobody else does."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name != "subinterp":
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(
            name, self.package + "/__init__.py", submodule_search_locations=[self.package]
        )


_ModuleSpec = type(sys.__spec__)


# ---- the worker's thread, as `threading` sees it ---------------------------------
# `threading` takes the thread that started the process for every interpreter's
# main thread. A worker's own thread would be a nameless dummy, and a daemon, and
# so would be every thread that a task starts.


class _AfterExec:
    """A loader that adds a step once its module has been executed."""

    def __init__(self, loader, step):
        self.loader = loader
        self.step = step

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.step(module)


def _threading_spec(name):
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(name)
    if spec is not None and spec.loader is not None:
        spec.loader = _AfterExec(spec.loader, _adopt_thread)
    return spec


def _adopt_thread(threading):
    """Make the worker's thread the main thread of its interpreter."""
    if threading.get_ident() != _thread_id:
        return  # a thread that a task started without `threading` came first
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
    threading._main_thread = thread


def boot(payload, index, dirty, create_core, exec_core, emit):
    """Set the new interpreter up as its creator's options say."""
    global _index, _pool_name, _thread_id, _dirty
    _index = index
    _pool_name = payload["name"]
    _thread_id = _thread.get_ident()
    _dirty = dirty
    sys.path[:] = payload["path"]
    sys.argv = list(payload["argv"])
    sys.meta_path.insert(0, _CoreFinder(payload["package"], payload["core"], create_core, exec_core))
    sys.meta_path.append(_PackageFinder(payload["package"]))
    if "threading" in sys.modules:
        _adopt_thread(sys.modules["threading"])
    if payload["filters"] is not None:
        _set_filters(payload["filters"])
    if payload["switch_interval"] is not None:
        sys.setswitchinterval(payload["switch_interval"])
    if payload["recursion_limit"] != sys.getrecursionlimit():
        sys.setrecursionlimit(payload["recursion_limit"])
    _open_streams(payload["streams"], emit)


def _set_filters(filters):
    import warnings

    rebuilt = []
    for action, message, flags, module, name, in_module, in_flags, lineno in filters:
        try:
            category = resolve(module, name)
        except Exception:
            continue  # its module cannot be imported here: it cannot occur either
        if message is not None or in_module is not None:
            import re
        rebuilt.append(
            (
                action,
                None if message is None else re.compile(message, flags),
                category,
                None if in_module is None else re.compile(in_module, in_flags),
                lineno,
            )
        )
    if hasattr(warnings, "_filters_mutated_lock_held"):  # 3.14 and later
        with warnings._lock:
            warnings.filters[:] = rebuilt
            warnings._filters_mutated_lock_held()
    else:
        warnings.filters[:] = rebuilt
        warnings._filters_mutated()


# ---- streams -----------------------------------------------------------------
# Text that a task wrote must be out when the task is done. Flushing after each
# task costs more than a small task; so writing marks a byte that the C loop
# looks at.


class _Forward(io.RawIOBase):
    """Hands bytes to the creator's interpreter, which writes them to its stream."""

    def __init__(self, fd, emit):
        self._fd = fd
        self._emit = emit

    def writable(self):
        return True

    def fileno(self):
        return self._fd

    def write(self, data):
        return self._emit(self._fd, data)


class _Buffered(io.BufferedWriter):
    def write(self, data):
        _dirty[0] = 1
        return super().write(data)


class _Text(io.TextIOWrapper):
    def write(self, text):
        _dirty[0] = 1
        return super().write(text)


def _open_streams(options, emit):
    for fd, name in ((1, "stdout"), (2, "stderr")):
        option = options[name]
        if option is None:
            continue
        old = getattr(sys, name)
        if option["forward"]:
            raw = _Forward(fd, emit)
        elif old is None:
            continue
        else:
            raw = io.FileIO(fd, "w", closefd=False)
        stream = _Text(
            _Buffered(raw),
            encoding=option["encoding"],
            errors=option["errors"],
            line_buffering=fd == 2 or option["line_buffering"],
        )
        stream.mode = "w"
        _streams.append(stream)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def flush():
    """Flush what tasks wrote; a stream that cannot be written is left alone."""
    for stream in (*_streams, sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


# ---- functions by name --------------------------------------------------------


def resolve(module, qualname):
    """The object of that name, imported here."""
    __import__(module)
    found = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


# ---- exceptions ----------------------------------------------------------------


def worker_name():
    return f"{_pool_name or 'subinterp'}-{_index}"


def _note_import_error(exc):
    """Say where an import failed, and what can be done."""
    if any(note.startswith("In worker ") for note in getattr(exc, "__notes__", ())):
        return
    text = str(exc)
    if "interpreters" in text and "support" in text:
        hint = (
            "The extension module does not support an interpreter with its own lock; "
            "run this task in threads or processes."
        )
    else:
        hint = (
            "A worker starts with its creator's sys.path: extend it before the pool is made, "
            "install the module, or define the function in __main__ so that it travels by value."
        )
    exc.add_note(f"In worker {worker_name()} with sys.path = {sys.path!r}. {hint}")


def text_of(exc):
    """The traceback as the interpreter would print it."""
    import traceback

    return "".join(traceback.format_exception(exc))


def _dump(exc):
    from _pickle import dumps

    try:
        data = dumps(exc, 5)
    except Exception:
        data = None
    if data is None or b"__main__" in data:
        from subinterp import _pickling

        data = _pickling.dumps_result(exc)
    return data


def _tree(exc, seen, depth=0):
    """The exception without its text, as plain values."""
    seen.add(id(exc))
    tree = {"name": type(exc).__qualname__, "data": None}
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


def describe(exc):
    """An exception as plain values, for `_pickling.rebuild_exception`."""
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
    exc = pending = e = other = None
    return tree


# ---- the end ---------------------------------------------------------------------


def finish():
    """Join the threads that tasks started, as the end of a program does."""
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    flush()


def only_daemons_left():
    """True if daemon threads are running: nobody will wait for them."""
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    here = threading.get_ident()
    return any(t.daemon and t.ident != here and t.is_alive() for t in threading.enumerate())


# ---- what `subinterp.interpreters` runs here ----------------------------------------


def run_source(source):
    """Execute source text, or a marshalled code object, in `__main__`."""
    if isinstance(source, str):
        code = compile(source, "<string>", "exec")
    else:
        import marshal

        code = marshal.loads(source)
    exec(code, sys.modules["__main__"].__dict__)


def prepare_main(names):
    """Bind names in `__main__`."""
    sys.modules["__main__"].__dict__.update(names)


def interpreter_id():
    """The number of this interpreter."""
    import _interpreters

    return _interpreters.get_current()[0]

"""How a worker loads extension modules.

An extension that was not written for it cannot be loaded into an interpreter
with its own lock: its static variables, among them types and caches, are the
process's, and two interpreters would use them at once without a lock in
common. CPython refuses it. But the file can be loaded once more, from a copy:
then the variables are one interpreter's own. That is what happens here with
every extension that does not declare that it supports such interpreters.

It works since nothing of an extension is shared that it does not share
itself. What remains the process's: the C library, the environment, files,
signals, libraries without Python in them (OpenBLAS, libstdc++), and what the
extension looks up by name at run time.

The parts. The C layer reads and changes files (`si_elf`), loads copies of them
and of the libraries they bring (`si_image`), answers the lock API for one
interpreter (`si_gate`), and runs init functions in the interpreter that
imports (`si_extension`). This module decides what is loaded how, and what is
said if it cannot be. It takes the place of three functions of `_imp`, which
every import of an extension ends in, whoever found it: the import system, an
editable install's finder, a loader of somebody's own.

The first interpreter that imports an extension gets a copy even if it declares
its support, since asking it means to run its init function; the others then
load the original. The standard library is known better, and asked itself.

Like `_worker`, this module's code is sent to workers, and imports little.
"""

import _imp
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# Builtin modules that speak of the process and say so; importing them, which
# is all that most importers want, harms nobody. But what these functions do
# leaves objects of their caller's interpreter in the process's variables.
_BUILTINS: "dict[str, tuple[str, ...]]" = {
    "_suggestions": (),
    "_tracemalloc": ("start", "stop", "clear_traces"),
    "faulthandler": (
        "enable",
        "disable",
        "register",
        "unregister",
        "dump_traceback_later",
        "cancel_dump_traceback_later",
    ),
}

# Of the standard library: declares its support, but its callbacks enter the
# main interpreter when they come from a thread that Python does not know.
_COPIED = frozenset({"_ctypes"})

# Libraries that Python code opens with ctypes and that must not be shared, by the beginning
# of their names: LLVM's table of symbols takes the addresses of the helper functions of numba
# and NumPy in the interpreter that imported numba last.
_COPIED_LIBRARIES = ("libllvmlite.",)

_REFUSED = {
    "readline": "it edits the lines of the process's terminal, which is the main interpreter's"
}


class Importer:
    """Decides how an interpreter's extension modules are loaded, and loads them.

    Parameters
    ----------
    options : dict
        ``default``, ``modules`` (how to load what, see `_policy`) and
        ``stdlib`` (folders).
    loader : dict
        The functions of the C layer (`si_loader_functions`).
    """

    def __init__(self, options: "dict[str, Any]", loader: "dict[str, Callable[..., Any]]") -> None:
        self.default: str = options["default"]
        self.modules: dict[str, str] = options["modules"]
        self.stdlib: tuple[str, ...] = tuple(options["stdlib"])
        self.loader = loader
        self.how: dict[str, str] = {}
        # Made but not yet executed: by id, with the module and what to do.
        self.made: dict[int, tuple[object, int]] = {}
        # Modules of the old kind, which exist once: by file and name.
        self.whole: dict[tuple[str, str], ModuleType] = {}
        self.creating: set[tuple[int, str]] = set()
        self.stock_create = _imp.create_dynamic
        self.stock_exec = _imp.exec_dynamic
        self.stock_builtin = _imp.create_builtin
        self.stock_exec_builtin = _imp.exec_builtin

    def mode(self, name: str, path: str) -> str:
        """Return what was asked for this module, or for the package it is in."""
        asked = self._asked(name)
        if asked is not None:
            return asked
        # "Nothing but these" cannot mean that Python loses a part of itself, without
        # which what is allowed would not work either.
        if self.default == "refuse" and path.startswith(self.stdlib):
            return "auto"
        return self.default

    def _asked(self, name: str) -> "str | None":
        part = name
        while self.modules and part:
            if part in self.modules:
                return self.modules[part]
            part = part.rpartition(".")[0]
        return None

    # ---- in place of `_imp` ----

    def create_dynamic(self, spec: "ModuleSpec", file: object = None) -> "ModuleType":
        """Load the module's file and make the module, to be executed next."""
        name, path = spec.name, spec.origin
        if path is None:
            raise ImportError(f"extension module {name} has no file", name=name)
        mode = self.mode(name, path)
        if mode == "strict":
            made: ModuleType = self.loader["checked"](self.stock_create, spec)
            self.how[name] = "native"
            return made
        if mode == "refuse":
            raise ImportError(
                f"{name} is refused in this interpreter, as the pool's option extensions says",
                name=name,
                path=path,
            )
        sys.audit("import", name, path, None, None, None)
        key = get_ident(), name
        if key in self.creating:
            raise ImportError(
                f"{name} ({path}) is imported by what its own init function imports",
                name=name,
                path=path,
            )
        self.creating.add(key)
        try:
            return self._create(spec, name, path, mode)
        except ImportError as exc:
            _explain(exc, name, path)
            raise
        finally:
            self.creating.discard(key)

    def exec_dynamic(self, module: "ModuleType") -> int:
        """Execute what `create_dynamic` made."""
        made = self.made.pop(id(module), None)
        if made is None:
            self.loader["checked"](self.stock_exec, module)
        else:
            self.loader["execute"](module, made[1])
            if module.__name__ == "_ctypes":
                self._adapt_ctypes(module, self.how.get("_ctypes") != "copy")
        return 0

    def exec_builtin(self, module: "ModuleType") -> int:
        """Execute a module that is part of Python itself."""
        fresh = not hasattr(module, "CFuncPtr")
        self.stock_exec_builtin(module)
        if module.__name__ == "_ctypes" and fresh:
            self._adapt_ctypes(module, True)
        return 0

    def _adapt_ctypes(self, module: "Any", shared: bool) -> None:
        if shared:
            _bind_callbacks(module, self.loader["callback"])
        stock = module.dlopen
        default = self.default

        def dlopen(name: "Any", flag: int = 0, /) -> int:
            handle: int
            if isinstance(name, str) and default in ("auto", "copy"):
                folder, _, file = name.rpartition("/")
                if folder and file.startswith(_COPIED_LIBRARIES):
                    try:
                        handle = self.loader["handle"](self.loader["open"](name, True))
                    except ImportError as exc:
                        raise OSError(str(exc)) from None
                    return handle
            handle = stock(name, flag)
            return handle

        module.dlopen = dlopen

    def create_builtin(self, spec: "ModuleSpec") -> "ModuleType":
        """Make a module that is part of Python itself."""
        made: ModuleType
        asked = self._asked(spec.name) or ("strict" if self.default == "strict" else "auto")
        if spec.name in _BUILTINS and asked not in ("strict", "refuse"):
            made = self.loader["unchecked"](self.stock_builtin, spec)
            for function in _BUILTINS[spec.name]:
                if hasattr(made, function):
                    setattr(made, function, _for_main(made, function))
            self.how[spec.name] = "builtin"
        else:
            made = self.stock_builtin(spec)
        return made

    # ---- loading ----

    def _create(self, spec: "ModuleSpec", name: str, path: str, mode: str) -> "ModuleType":
        short = name.rpartition(".")[2]
        if short.isascii():
            suffix = "_" + short
        else:
            suffix = "U_" + short.encode("punycode").decode().replace("-", "_")
        if mode == "auto":
            if name in _REFUSED:
                raise ImportError(
                    f"it is not for interpreters beside the main one: {_REFUSED[name]}"
                )
            single_phase, declares = self.loader["facts"](path)
            if name in _COPIED:
                mode = "copy"
            elif declares:
                mode = "native"
            elif not single_phase and path.startswith(self.stdlib):
                # Multi-phase: its init function only returns a definition.
                image = self.loader["open"](path, False)
                module, kind, _ = self.loader["create"](image, spec, suffix, True)
                if module is not None:
                    return self._created(name, module, kind, "native")
        whole = self.whole.get((path, name))
        if whole is not None:
            self.made[id(whole)] = whole, 0
            return whole
        image = self.loader["open"](path, mode != "native")
        module, kind, declares = self.loader["create"](image, spec, suffix, False)
        if declares and mode != "native":
            self.loader["declares"](image)
        if kind == 0:
            self.whole[path, name] = module
            _complete(module, name, short, path)
        return self._created(name, module, kind, "native" if mode == "native" else "copy")

    def _created(self, name: str, module: "ModuleType", kind: int, how: str) -> "ModuleType":
        self.made[id(module)] = module, kind
        self.how[name] = how
        return module


def _complete(module: "ModuleType", name: str, short: str, path: str) -> None:
    """Give a module of the old kind the name it would have had from the import system.

    CPython tells the init function the module's full name through a variable
    that is not ours to set; what was made with the short one is corrected.
    """
    module.__name__ = name
    module.__file__ = path
    if name == short:
        return
    for value in vars(module).values():
        if type(value) is _Builtin and value.__module__ == short:
            value.__module__ = name


def _for_main(module: "ModuleType", name: str) -> "Callable[..., None]":
    """Stand for a function that only the main interpreter may call."""

    def function(*args: object, **kwargs: object) -> None:
        # What is asked for is so already: then nothing is to be done.
        if name == "enable" and module.is_enabled():
            return
        raise RuntimeError(
            f"{module.__name__}.{name}() acts on the whole process; call it in the main interpreter"
        )

    function.__name__ = function.__qualname__ = name
    return function


_Builtin = type(len)


def _bind_callbacks(ctypes: "Any", bind: "Callable[[object, int], object]") -> None:
    """Have callbacks enter this interpreter, whichever thread calls them.

    For a `_ctypes` that is no private copy: see `si_gate_callback`.
    """
    base: Any = ctypes.CFuncPtr
    address = ctypes.addressof

    class CFuncPtr(base):  # type: ignore[misc]  # known at run time only
        _flags_ = ctypes.FUNCFLAG_CDECL

        def __new__(cls, *args: "Any", **kwargs: "Any") -> "Any":
            self = super().__new__(cls, *args, **kwargs)
            kept = self._objects
            if kept:
                for thunk in tuple(kept.values()):
                    if type(thunk).__name__ == "CThunkObject":
                        kept["gate"] = bind(thunk, address(self))
            return self

    CFuncPtr.__module__, CFuncPtr.__qualname__ = base.__module__, base.__qualname__
    ctypes.CFuncPtr = CFuncPtr


def _explain(exc: ImportError, name: str, path: str) -> None:
    """Have it name the module and its file, unless it speaks of another one already."""
    if exc.name is not None:
        return
    text = str(exc)
    if path not in text:
        text = f"{path}: {text}"
    exc.msg = f"extension module {name} cannot be loaded: {text}"
    exc.args, exc.name, exc.path = (exc.msg,), name, path


_importer: "Importer | None" = None


def install(options: "dict[str, Any]", loader: "dict[str, Callable[..., Any]]") -> None:
    """Take over the import of extension modules in this interpreter."""
    global _importer
    _importer = Importer(options, loader)
    _imp.create_dynamic = _importer.create_dynamic
    _imp.exec_dynamic = _importer.exec_dynamic
    _imp.create_builtin = _importer.create_builtin
    _imp.exec_builtin = _importer.exec_builtin


def loaded() -> dict[str, str]:
    """Return how this interpreter's extension modules were loaded.

    Returns
    -------
    dict
        For each name "native" (the file itself), "copy" (a private copy) or
        "builtin" (part of Python, and refused by its own rule), in the order in
        which they were loaded.
    """
    return {} if _importer is None else dict(_importer.how)

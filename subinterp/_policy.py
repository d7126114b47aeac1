"""The `extensions` option: which extension modules workers may load, and how."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

from subinterp import _core

MODES = ("auto", "copy", "native", "refuse", "strict")

Extensions = str | Mapping[str, str]


def extension_options(extensions: Extensions) -> tuple[dict[str, Any] | None, str]:
    """Check the option and return it as plain values, for `_extensions.Importer`.

    Parameters
    ----------
    extensions : str or mapping
        As the pool's parameter.

    Returns
    -------
    dict or None
        None: CPython's own rule holds for everything.
    str
        What to tell somebody whose import that rule refuses.

    Raises
    ------
    TypeError, ValueError
        If it is something else; names it.
    """
    default, modules = "auto", {}
    if isinstance(extensions, str):
        if extensions not in ("auto", "native", "strict"):
            raise ValueError(
                f'extensions must be "auto", "strict", "native" or a mapping, not {extensions!r}'
            )
        default = extensions
    elif isinstance(extensions, Mapping):
        for name, mode in extensions.items():
            _check(name, mode)
            if name == "*":
                default = mode
            else:
                modules[str(name)] = str(mode)
    else:
        raise TypeError(
            f"extensions must be a string or a mapping of module names to modes, "
            f"not {type(extensions).__name__}"
        )
    missing = _missing()
    if missing:
        if any(mode in ("copy", "native") for mode in (default, *modules.values())):
            raise ValueError(
                f"extensions={extensions!r} cannot be had: {missing}; use "
                f'extensions="strict", and threads or processes for what it refuses'
            )
        return None, (
            f"Private copies of extension modules, which would make this import work, cannot be "
            f"loaded here: {missing}. Run this task in threads or processes."
        )
    if default == "strict" and not modules:
        return None, (
            'The pool was made with extensions="strict": without it, a private copy of the '
            "extension module would be loaded. Or run this task in threads or processes."
        )
    return {"default": default, "modules": modules, "stdlib": _stdlib_folders()}, (
        "The extension module does not support an interpreter with its own lock; "
        "run this task in threads or processes."
    )


@functools.cache
def _missing() -> str:
    return _core.extensions_unsupported()


def _check(name: object, mode: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"extensions: {name!r} is not the name of a module")
    if name != "*" and not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f'extensions: {name!r} is not the dotted name of a module, nor "*"')
    if not isinstance(mode, str):
        raise TypeError(f"extensions[{name!r}] must be a string, not {type(mode).__name__}")
    if mode not in MODES:
        raise ValueError(f"extensions[{name!r}] must be one of {', '.join(MODES)}, not {mode!r}")


@functools.cache
def _stdlib_folders() -> list[str]:
    """Folders of the standard library's own extension modules."""
    found = {os.path.join(os.path.dirname(os.__file__), "lib-dynload", "")}
    found.update(os.path.join(p, "") for p in sys.path if str(p).endswith("lib-dynload"))
    return sorted(found)

"""Builds small C extensions and shared libraries for tests, with this Python's own compiler.

A test that needs one is skipped, with the reason, where there is no compiler or no header.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sysconfig
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

# Seconds for one run of the compiler.
TIMEOUT = 120.0


@functools.cache
def compiler() -> tuple[str, ...]:
    """Return the command of the C compiler, as this Python was built with it; empty: none."""
    configured = shlex.split(sysconfig.get_config_var("CC") or "")
    for command in (configured, ["cc"], ["gcc"]):
        if command and shutil.which(command[0]):
            return tuple(command)
    return ()


def missing() -> str | None:
    """Return what is missing to build an extension, or None."""
    if not compiler():
        return "needs a C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "needs the C headers of Python"
    return None


def build(
    tmp_path: Path,
    name: str,
    source: str,
    *,
    libs: Sequence[str | Path] = (),
    flags: Sequence[str] = (),
    suffix: str | None = None,
) -> Path:
    """Build the extension module `name` below `tmp_path`.

    Parameters
    ----------
    tmp_path : Path
        The folder to put on ``sys.path``.
    name : str
        The module's name. The folders of a dotted one are made, without ``__init__.py``.
    source : str
        The C source, dedented. The macros ``NAME`` (the last part of `name` as a string),
        ``INIT`` (``PyInit_...``) and ``EXPORT`` (``PyModExport_...``) are defined, and
        ``Python.h`` is included.
    libs : sequence of str or Path
        Libraries to link: a name (``"m"``), or a path that `build_library` returned. Those that
        lie below `tmp_path` are found at run time relative to the module, as those of a wheel.
    flags : sequence of str
        Further arguments of the compiler.
    suffix : str, optional
        How the file's name ends; by default, the suffix for this Python.

    Returns
    -------
    Path
        The built file.
    """
    *folders, last = name.split(".")
    path = tmp_path.joinpath(*folders, last + (suffix or sysconfig.get_config_var("EXT_SUFFIX")))
    return _compile(
        path,
        "#include <Python.h>\n#line 1\n" + textwrap.dedent(source),
        libs,
        [
            f'-DNAME="{last}"',
            f"-DINIT=PyInit_{last}",
            f"-DEXPORT=PyModExport_{last}",
            f"-I{sysconfig.get_path('include')}",
            f"-I{sysconfig.get_path('platinclude')}",
            *flags,
        ],
    )


def build_library(
    tmp_path: Path,
    name: str,
    source: str,
    *,
    libs: Sequence[str | Path] = (),
    flags: Sequence[str] = (),
) -> Path:
    """Build the shared library ``<tmp_path>/<name>``, with its file's name as its SONAME.

    Parameters
    ----------
    tmp_path : Path
        The folder for it.
    name : str
        The file's name, ``libsomething.so.1``; may have folders.
    source : str
        The C source, dedented; includes what it needs itself. Python's headers are found.
    libs, flags
        As for `build`.

    Returns
    -------
    Path
        The built file.
    """
    path = tmp_path / name
    include = f"-I{sysconfig.get_path('include')}"
    return _compile(
        path, textwrap.dedent(source), libs, [f"-Wl,-soname,{path.name}", include, *flags]
    )


def _compile(path: Path, source: str, libs: Sequence[str | Path], flags: Sequence[str]) -> Path:
    reason = missing()
    if reason:
        pytest.skip(reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    linked = []
    for lib in libs:
        if isinstance(lib, Path):
            relative = os.path.relpath(lib.parent, path.parent)
            linked += [str(lib), f"-Wl,-rpath,$ORIGIN/{relative}"]
        else:
            linked.append(f"-l{lib}")
    command = [
        *compiler(),
        "-shared",
        "-fPIC",
        "-O1",
        "-g",
        "-Wall",
        "-Werror",
        "-Wno-unused-function",
        "-pthread",
        "-xc",
        "-",
        "-xnone",
        "-o",
        str(path),
        *flags,
        *linked,
    ]
    done = subprocess.run(
        command, input=source, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        pytest.fail(f"{shlex.join(command)}\n{done.stderr}", pytrace=False)
    return path

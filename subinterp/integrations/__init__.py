"""Subinterp where people already are: one module for each package that can use it.

Nothing here is imported unless it is asked for, and no package is needed that is not.
"""

from importlib import import_module
from types import ModuleType


def _number(part: str) -> int:
    digits = ""
    for character in part:
        if not character.isdigit():
            break
        digits += character
    return int(digits or 0)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in version.split("."))


def need(module: str, minimum: str, extra: str, *, distribution: str | None = None) -> ModuleType:
    """Import a package that an integration stands on, in a version that it was made for.

    Parameters
    ----------
    module
        The name it is imported by.
    minimum
        The oldest version that works, of numbers and points.
    extra
        The extra of subinterp's that installs it.
    distribution
        The name it is installed by; by default `module`.

    Raises
    ------
    ImportError
        If it is not installed or too old; the message says which extra to install.
    """
    name = distribution or module
    remedy = f"pip install 'subinterp[{extra}]'"
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(
            f"this needs {name} {minimum} or newer, which is not installed: {remedy}", name=module
        ) from None
    from importlib import metadata  # here: workers import this package, too

    version = str(getattr(found, "__version__", None) or metadata.version(name))
    if _numbers(version) < _numbers(minimum):
        raise ImportError(
            f"this needs {name} {minimum} or newer; installed is {version}: {remedy}", name=module
        )
    return found


def in_main_interpreter() -> bool:
    """Return whether this code runs in the main interpreter of its process."""
    from subinterp import _core

    return _core.current_interpreter_id() == 0

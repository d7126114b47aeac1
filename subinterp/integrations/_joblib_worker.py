"""What joblib's tasks need in a worker: nothing here is imported by the main interpreter's half.

Kept apart because every worker imports it.
"""

import sys
from collections.abc import Callable
from typing import Any

# How the threads of OpenMP are limited, and how many modules there were when it was found out.
_openmp: tuple[int, Any] | None = None


class AuthKey:
    """The key of `multiprocessing`, in force as soon as it has arrived.

    Proxies of a manager, which may stand beside it, need it to arrive themselves.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Callable[[bytes], None], tuple[bytes]]:
        return set_authkey, (self.key,)


def set_authkey(key: bytes) -> None:
    """Have this interpreter use the key."""
    from multiprocessing.process import current_process

    current_process().authkey = key


def prepare(_: object, initializer: Callable[..., object] | None, initargs: Any) -> None:
    """Make the worker ready before its first task, and call the user's initializer."""
    import joblib.parallel

    joblib.parallel.BACKENDS.setdefault("subinterp", _nested_backend)
    if initializer is not None:
        initializer(*initargs)


def _nested_backend(**options: Any) -> Any:
    """Stand for the backend, which is imported only where a task asks for it."""
    from subinterp.integrations.joblib import SubinterpBackend

    return SubinterpBackend(**options)


def run(batch: Callable[[], list[Any]], openmp: int | None) -> list[Any]:
    """Call joblib's batch of tasks, with so many threads for OpenMP (None: as it is)."""
    if openmp is None:
        return batch()
    with _openmp_of_this_thread().limit(limits=openmp):
        return batch()


def _openmp_of_this_thread() -> Any:
    global _openmp
    # Libraries come with modules.
    if _openmp is None or _openmp[0] != len(sys.modules):
        from threadpoolctl import ThreadpoolController

        found = ThreadpoolController().select(user_api="openmp")
        _openmp = len(sys.modules), found
    return _openmp[1]

"""Progress of `map` and its relatives: `progress=`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from subinterp._core import MapIterator

_T = TypeVar("_T")


class _Bar(Protocol):
    """What is used of a tqdm bar."""

    def update(self, n: int = 1) -> object: ...
    def close(self) -> object: ...


# A bar's class, called with `total`; or called with (results read, how many there will be).
Progress = bool | type[Any] | Callable[[int, int | None], object]


class _Told:
    """Looks like a bar to `Tracked`; tells a callable."""

    def __init__(self, tell: Callable[[int, int | None], object], total: int | None) -> None:
        self.tell = tell
        self.total = total
        self.done = 0

    def update(self, n: int = 1) -> None:
        self.done += n
        self.tell(self.done, self.total)

    def close(self) -> None:
        pass


def check(progress: object) -> None:
    """Raise now what a bad or unavailable kind of progress would raise later."""
    if progress is True:
        _tqdm()
    elif progress is not False and progress is not None and not callable(progress):
        raise TypeError(
            "progress must be True, False, a class such as tqdm, or a callable that takes "
            f"(done, total), not {type(progress).__name__}"
        )


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as exc:
        raise ImportError(
            "progress=True needs tqdm, which is not installed: `pip install tqdm`, or pass a "
            "callable that takes (done, total) instead"
        ) from exc
    return tqdm


def _is_class(progress: Any) -> bool:
    while isinstance(progress, functools.partial):
        progress = progress.func
    return isinstance(progress, type)


def _bar(progress: Any, total: int | None) -> _Bar:
    if progress is True:
        progress = _tqdm()
    elif not _is_class(progress):
        return _Told(progress, total)
    bar: _Bar = progress(total=total)
    return bar


class Tracked(Iterator[_T]):
    """Results of a map, each one counted as it is read.

    Parameters
    ----------
    results : MapIterator
        Closed with this.
    progress : True, class or callable
        As `InterpreterPool.map` takes it.
    goes_on : bool
        An item that raised does not end it (`imap_unordered`).
    """

    def __init__(self, results: MapIterator[_T], progress: Any, goes_on: bool) -> None:
        self._results = results
        self._goes_on = goes_on
        self._bar: _Bar | None = _bar(progress, results._total)

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        try:
            value = next(self._results)
        except StopIteration:
            self._end()
            raise
        except BaseException:
            if self._goes_on and not self._results._ended:
                self._count()
            else:
                self._end()
            raise
        self._count()
        return value

    def _count(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def _end(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def close(self) -> None:
        """Stop: chunks that no worker has begun are cancelled. Idempotent."""
        self._end()
        self._results.close()

    def __del__(self) -> None:
        if hasattr(self, "_bar"):
            self._end()

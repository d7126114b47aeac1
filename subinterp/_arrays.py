"""How NumPy's arrays travel, and how they lie in shared memory.

NumPy's own pickles put most arrays out of band, at one copy. What they would
copy more often goes a way of its own here: arrays with gaps, dates, subclasses.
An array whose memory is shared already, whatever object it came from, is sent
as a place in that memory.

Who sends many tasks can have large arrays lent to them: put into shared memory
once, and read-only where they arrive (see `lending`). What comes back of such an
array is a copy: the loan ends with the tasks.

NumPy is never imported by this module alone: the sender of an array has it,
and the receiver imports it when an array arrives.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from subinterp import _core

# The numbers of NumPy's own types of fixed size, objects included.
_LAST_OF_NUMPY = 23
_HOOKS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


class _Copy:
    """An array whose content is yet to be copied, in the given order of axes."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.order = _order_of(array)
        self.nbytes = int(array.size) * int(array.dtype.itemsize)

    def copy_into(self, buffer: Any) -> None:
        import numpy as np

        array = self.array
        # Bytes are bytes: no need to copy field by field.
        as_bytes = np.dtype((np.void, array.dtype.itemsize))
        if array.dtype.kind == "V" or array.dtype.num > _LAST_OF_NUMPY:
            array = array.view(as_bytes)
        if self.order is not None:
            array = array.transpose(self.order)
        np.copyto(np.ndarray(array.shape, array.dtype, buffer), array)


def _movable(dtype: Any) -> bool:
    """Return True if items are bytes that mean the same everywhere."""
    if dtype.hasobject or dtype.itemsize == 0:
        return False
    return bool(0 <= dtype.num <= _LAST_OF_NUMPY or dtype.isbuiltin == 2)


def is_plain(array: Any) -> bool:
    """Return True if the array is dtype, shape and bytes, and no more."""
    ndarray = sys.modules["numpy"].ndarray
    cls = type(array)
    return _movable(array.dtype) and (
        cls is ndarray or all(getattr(cls, hook) is getattr(ndarray, hook) for hook in _HOOKS)
    )


def _plain(array: Any) -> Any:
    """Return an instance of a subclass as an ndarray, which nobody has redefined."""
    ndarray = sys.modules["numpy"].ndarray
    return array if type(array) is ndarray else ndarray.view(array, ndarray)


def _order_of(array: Any) -> tuple[int, ...] | None:
    """Return the axes, outermost in memory first; None for C order.

    As in NumPy's own pickles, an array with gaps becomes one in C order.
    """
    flags = array.flags
    if flags.c_contiguous:
        return None
    n = array.ndim
    if flags.f_contiguous:
        return tuple(range(n - 1, -1, -1))
    strides = array.strides
    if min(strides) < 0:
        return None
    order = tuple(sorted(range(n), key=lambda axis: -strides[axis]))
    return order if array.transpose(order).flags.c_contiguous else None


def _extent(array: Any) -> tuple[int, int, int]:
    """Return the address of the first item, the lowest and the highest one."""
    address: int = array.__array_interface__["data"][0]
    low = high = address
    for n, stride in zip(array.shape, array.strides, strict=True):
        if stride > 0:
            high += (n - 1) * stride
        else:
            low += (n - 1) * stride
    return address, low, high + array.dtype.itemsize


def reduce_ndarray(array: Any) -> Any:
    """Reduce an array for a message, as `__reduce_ex__` would.

    Parameters
    ----------
    array : numpy.ndarray
        Or an instance of a subclass.
    """
    np = sys.modules["numpy"]
    cls = type(array)
    dtype = array.dtype
    if cls is not np.ndarray and _is_masked(cls):
        return masked_from, (cls, array.data, np.ma.getmaskarray(array), array._fill_value)
    if not array.size or not is_plain(array):
        return array.__reduce_ex__(5)
    plain = _plain(array)
    place = _place(plain)
    lent = place is not None and _is_lent(plain)
    if place is not None and not lent:
        writeable = bool(plain.flags.writeable)
        return shared_array, (cls, *place, plain.shape, dtype, plain.strides, writeable)
    lender = _lenders.get(get_ident()) if _lenders else None
    reduced = lender(array) if lender is not None else None
    if reduced is not None:
        return reduced
    # An ordinary pickle of what is lent would share its memory.
    if cls is np.ndarray and plain.flags.forc and dtype.kind not in "mM" and not lent:
        return array.__reduce_ex__(5)
    copy = _Copy(plain)
    return array_from, (cls, dtype, plain.shape, copy.order, _core.beside(copy))


def _place(array: Any) -> tuple[Any, int] | None:
    """Return the shared memory that an array lies in, and where it begins there; or None."""
    address, low, high = _extent(array)
    found = _core.shared_at(low, high - low)
    if found is None:
        return None
    shared, start = found
    return shared, start + address - low


def _is_masked(cls: type) -> bool:
    masked = sys.modules.get("numpy.ma")
    return masked is not None and cls is masked.MaskedArray


# ---- arrays that are lent ------------------------------------------------------------

# By thread: what reduces the arrays that it sends; None for one that goes its usual way.
_lenders: dict[int, Callable[[Any], Any]] = {}


@contextmanager
def lending(reduce: Callable[[Any], Any]) -> Iterator[None]:
    """Ask `reduce` first about each array that this thread sends meanwhile.

    Parameters
    ----------
    reduce : callable
        Called with an array that does not lie in shared memory; returns what a pickler's
        `__reduce__` does, as `lend` and `lend_file` do, or None: it goes the usual way.
    """
    me = get_ident()
    before = _lenders.get(me)
    _lenders[me] = reduce
    try:
        yield
    finally:
        if before is None:
            del _lenders[me]
        else:
            _lenders[me] = before


def lend(array: Any, writable: bool) -> Any:
    """Reduce an array in shared memory (see `share_ndarray`) to one over the same memory.

    Parameters
    ----------
    array : numpy.ndarray
        Keeps the memory, and so does every message that it is reduced for.
    writable : bool
        False: where it arrives it is read-only, and cannot be made writable.
    """
    if writable:
        return reduce_ndarray(array)
    place = _place(array)
    assert place is not None
    return lent_array, (*place, array.shape, array.dtype, array.strides)


def lend_file(array: Any) -> Any:
    """Reduce an array over a mapped file (`numpy.memmap`) to that file; None: it is no such one."""
    import mmap

    np = sys.modules["numpy"]
    root = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    if not isinstance(root, np.memmap) or not isinstance(root.filename, (str, os.PathLike)):
        return None
    address, low, high = _extent(array)
    offset = root.offset + low - _extent(root)[0]
    mode = "r+" if root.mode == "w+" else root.mode
    where = str(root.filename), mode, offset, high - low
    return mapped_array, (*where, address - low, array.dtype, array.shape, array.strides)


class _Loan:
    """The memory of lent arrays, as they see it: not to be written to."""

    __slots__ = ("shared",)

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self.shared).toreadonly()


def _is_lent(array: Any) -> bool:
    ndarray = sys.modules["numpy"].ndarray
    while isinstance(array, ndarray):
        array = array.base
    return type(array) is _Loan


# ---- in the receiver ---------------------------------------------------------------


def lent_array(
    shared: Any, start: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]
) -> Any:
    """Return an array over shared memory that is read-only for good."""
    import numpy as np

    return np.ndarray(shape, dtype, _Loan(shared), start, strides)


def mapped_array(
    file: str,
    mode: Any,
    offset: int,
    nbytes: int,
    start: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Any:
    """Return an array over a file, mapped here as well."""
    import numpy as np

    memory = np.memmap(file, np.uint8, mode, offset, (nbytes,))
    first = memory[start : start + dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(first, shape, strides, subok=True)


def array_from(
    cls: Any, dtype: Any, shape: tuple[int, ...], order: tuple[int, ...] | None, buffer: Any
) -> Any:
    """Return an array over a received buffer, without a copy."""
    import numpy as np

    if order is None:
        return np.ndarray.__new__(cls, shape, dtype, buffer)
    strides = [0] * len(shape)
    step = dtype.itemsize
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return np.ndarray.__new__(cls, shape, dtype, buffer, 0, strides)


def shared_array(
    cls: Any,
    shared: Any,
    start: int,
    shape: tuple[int, ...],
    dtype: Any,
    strides: tuple[int, ...],
    writeable: bool,
) -> Any:
    """Return an array over shared memory."""
    import numpy as np

    array = np.ndarray.__new__(cls, shape, dtype, shared, start, strides)
    if not writeable:
        array.flags.writeable = False
    return array


def masked_from(cls: Any, data: Any, mask: Any, fill_value: Any) -> Any:
    """Return a masked array of its parts."""
    array = cls(data, mask=mask, shrink=False)
    if fill_value is not None:
        array.fill_value = fill_value
    return array


# ---- SharedBuffer.asarray and share --------------------------------------------------


def over(
    shared: Any, dtype: Any, shape: int | tuple[int, ...] | None, offset: int, order: Any
) -> Any:
    """Return an array over shared memory; see `SharedBuffer.asarray`."""
    try:
        import numpy as np
    except ModuleNotFoundError as exc:
        if exc.name != "numpy":
            raise
        raise ImportError(
            "SharedBuffer.asarray needs numpy, which is not installed here", name="numpy"
        ) from exc
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"items of dtype {dtype} are or hold objects, which cannot be shared")
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    if not 0 <= offset <= shared.nbytes:
        raise ValueError(f"offset {offset} is outside of {shared.nbytes} bytes")
    room = shared.nbytes - offset
    if shape is None:
        if not dtype.itemsize or room % dtype.itemsize:
            raise ValueError(
                f"{room} bytes are not a multiple of the {dtype.itemsize} bytes of an item "
                f"of dtype {dtype}; give a shape"
            )
        shape = (room // dtype.itemsize,)
    else:
        shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        if any(n < 0 for n in shape):
            raise ValueError(f"negative sizes in shape {shape}")
        need = dtype.itemsize
        for n in shape:
            need *= n
        if need > room:
            raise ValueError(
                f"shape {shape} of dtype {dtype} needs {need} bytes, and there are {room} "
                f"from offset {offset} on"
            )
    return np.ndarray(shape, dtype, shared, offset, order=order)


def share_ndarray(array: Any) -> Any:
    """Return a plain array with its content in shared memory; see `share`."""
    plain = _plain(array)
    if plain.size:
        _, low, high = _extent(plain)
        if _core.shared_at(low, high - low) is not None:
            return array
    from subinterp.buffers import SharedBuffer

    copy = _Copy(plain)
    shared = SharedBuffer(copy.nbytes)
    if copy.nbytes:
        shared._expect_large()
        copy.copy_into(shared)
    return array_from(type(array), plain.dtype, plain.shape, copy.order, shared)

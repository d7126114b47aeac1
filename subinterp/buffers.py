"""Memory that is the same in every interpreter."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from subinterp import _core
from subinterp._core import SharedMemory

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.typing import DTypeLike

__all__ = ["SharedBuffer", "share"]


class SharedBuffer(SharedMemory):
    """One block of memory, the same in every interpreter.

    Parameters
    ----------
    nbytes : int
        Size in bytes; fixed. The memory is zeroed.

    Raises
    ------
    MemoryError
        If the system has no such block.
    ValueError
        If `nbytes` is negative.

    Notes
    -----
    It has the buffer protocol (writable, bytes): ``memoryview(buf)`` gives
    views, slices and casts, `asarray` gives NumPy arrays. Sent through a pool
    or a channel, a SharedBuffer or anything that lies in its memory arrives as
    the same memory: nothing is copied, whatever its size. No interpreter owns
    the block; it is freed when the last object or message that holds it goes.
    Nothing orders the accesses of different interpreters except the tasks and
    messages themselves, and locks (`subinterp.Lock`).
    """

    def __repr__(self) -> str:
        return f"<SharedBuffer {self.id} of {self.nbytes} bytes>"

    def asarray(
        self,
        dtype: DTypeLike = "uint8",
        shape: int | tuple[int, ...] | None = None,
        *,
        offset: int = 0,
        order: str = "C",
    ) -> ndarray[Any, Any]:
        """Return a NumPy array over the memory, without a copy.

        Parameters
        ----------
        dtype : data-type, optional
            Type of the items; not one that is or holds Python objects.
        shape : int or tuple of int, optional
            Numbers of items; None: one dimension, all that is there.
        offset : int, optional
            Where the array begins, in bytes.
        order : {"C", "F"}, optional
            Which axis lies closest together in memory: the last or the first.

        Returns
        -------
        numpy.ndarray
            Writable. It keeps the memory alive. The array, and what is cut or
            viewed of it with any strides, is the same memory in every
            interpreter that it is sent to.

        Raises
        ------
        ImportError
            If there is no NumPy.
        TypeError
            If `dtype` is or holds Python objects.
        ValueError
            If the array does not fit.

        Notes
        -----
        Does not block. NumPy is imported in the interpreter that asks.
        """
        from subinterp import _arrays

        made: ndarray[Any, Any] = _arrays.over(self, dtype, shape, offset, order)
        return made


def share(obj: Any, /) -> Any:
    """Return an object with the same content in memory that all interpreters share.

    Parameters
    ----------
    obj : object
        A NumPy array; or anything with the buffer protocol (bytes, bytearray,
        array.array, memoryview); or anything whose pickle (protocol 5) has
        out-of-band buffers, alone or among other things: pandas objects,
        pyarrow's arrays, chunked arrays, record batches and tables, polars'
        series and frames, and lists, dicts and instances that hold such.

    Returns
    -------
    object
        A NumPy array: an array of the same type, dtype and shape, writable.
        With the buffer protocol: a memoryview of the same format and shape,
        writable. Anything else: an object of the same kind. What is in shared
        memory already is returned as it is, or used in place.

    Raises
    ------
    MemoryError
        If there is no room for the copy.
    NotSendableError
        If `obj` cannot be pickled.
    TypeError
        If there is no memory in it that can be shared.

    Notes
    -----
    The content is copied once. Sent through a pool or a channel, what it
    returned arrives as the same memory, in a time that does not depend on its
    size, and so do its slices and views. The memory belongs to no interpreter:
    it is freed when the last object that uses it goes, wherever that is. In
    arrays, writes of one interpreter are seen by all; nothing orders them
    except tasks and messages. Does not block.
    """
    if isinstance(obj, SharedMemory):
        return obj
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    if isinstance(ndarray, type) and isinstance(obj, ndarray):
        from subinterp import _arrays

        if _arrays.is_plain(obj):
            return _arrays.share_ndarray(obj)
    else:
        try:
            view = memoryview(obj)
        except TypeError:
            pass  # it has no buffer itself
        else:
            return obj if isinstance(view.obj, SharedMemory) else _share_view(view)
    try:
        copy, n_shared = _core.share_buffers(obj)
    except Exception as exc:
        from subinterp import _pickling

        raise _pickling.explain(obj, "obj", exc) from exc
    if not n_shared:
        raise TypeError(
            f"there is no memory to share in an object of type "
            f"{type(obj).__module__}.{type(obj).__qualname__}"
        )
    return copy


def _share_view(view: memoryview) -> memoryview:
    format = _core._castable_format(view)
    shared = SharedBuffer(view.nbytes)
    shared._fill(view)
    return _core.memoryview_from(shared, format, view.shape or (1,), False)

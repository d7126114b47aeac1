"""Memory that is the same in every interpreter."""

from subinterp._core import SharedMemory

__all__ = ["SharedBuffer"]


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
    views, slices and casts. Sent through a pool or a channel, a SharedBuffer
    or a contiguous memoryview of it arrives as the same memory: nothing is
    copied, whatever its size. No interpreter owns the block; it is freed when
    the last object or message that holds it goes. Nothing orders the accesses
    of different interpreters except the tasks and messages themselves.
    """

    def __repr__(self) -> str:
        return f"<SharedBuffer {self.id} of {self.nbytes} bytes>"

# cython: language_level=3, subinterpreters_compatible=own_gil
# cython: binding=False, embedsignature=True, embedsignature.format=clinic, cdivision=True
"""The C layer as Python objects.

Each class here is a thin owner of one C handle; policy and conventions live in
the Python modules above. A C status becomes an exception in one place,
`_check`. There are no `cdef` globals: they would be shared by all interpreters
and reset by each that loads the module. What an interpreter needs of its own
hangs on its context, looked up once, when the module is executed in it.

On the way of a task no module state is touched in a worker: the generated
lookups share a cache line between interpreters. Workers run in C.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetInterrupt
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport isnan
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from subinterp._runtime cimport *

cdef extern from "Python.h":
    PyObject *PyIter_Next(PyObject *it)
    int PyDict_Next(object d, Py_ssize_t *pos, PyObject **key, PyObject **value)
    object PyMemoryView_FromMemory(char *mem, Py_ssize_t size, int flags)
    int PyBUF_READ, PyBUF_WRITE
    object PyWeakref_NewRef(object o, object callback)
    bint PyFunction_Check(object o)
    bint PyCFunction_Check(object o)
    bint PyModule_Check(object o)
    object PyErr_GetRaisedException()
    int PyObject_GetBuffer(object o, Py_buffer *view, int flags) except -1
    void PyBuffer_Release(Py_buffer *view)
    bint PyBuffer_IsContiguous(const Py_buffer *view, char order)
    int PyBuffer_ToContiguous(void *buf, const Py_buffer *src, Py_ssize_t n, char order) except -1
    int PyBUF_SIMPLE, PyBUF_FULL_RO, PyBUF_WRITABLE
    PyObject *PyErr_Occurred()
    bint PyIndex_Check(object o)
    object PyNumber_Index(object o)
    int64_t PyLong_AsLongLongAndOverflow(object o, int *overflow) except? -1
    object PyEval_EvalCode(object code, object globals_, object locals_)
    void Py_DECREF_ptr "Py_DECREF" (PyObject *o)
    int PyBuffer_FillInfo(Py_buffer *view, object o, void *buf, Py_ssize_t len, bint readonly, int flags) except -1
    const Py_buffer *PyPickleBuffer_GetBuffer(object o) except NULL

cdef extern from "string.h" nogil:
    int memcmp(const void *a, const void *b, size_t n)
    void *memmem(const void *haystack, size_t n, const void *needle, size_t m)

cdef extern from *:
    """
    PyMODINIT_FUNC PyInit__core(void);
    /* A Python-level new without argument tuples: the type's own slot. */
    static inline PyObject *si_new_instance(PyObject *type, PyObject *empty)
    {
        return ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, empty, NULL);
    }
    """
    PyObject *PyInit__core() noexcept
    object si_new_instance(object type, object empty)


cdef object _address(obj):
    """What `id` gives. (Cython keeps the builtins a module calls in process-wide
    pointers, which the interpreter that loaded the module last has set.)"""
    return <Py_ssize_t><void *>obj


# ---- statuses and waiting ------------------------------------------------------

cdef object _errors():
    from subinterp import errors
    return errors


cdef int _check(si_ret st, object what=None) except -1:
    """The one place where a status becomes an exception."""
    if st == SI_OK:
        return 0
    if st == SI_NOMEM:
        raise MemoryError
    errors = _errors()
    if st == SI_EMPTY:
        raise errors.ChannelEmpty(what or "the channel is empty")
    if st == SI_FULL:
        raise errors.ChannelFull(what or "the channel is full")
    if st == SI_CLOSED:
        raise errors.ChannelClosed(what or "the channel is closed")
    if st == SI_TIMEOUT:
        raise TimeoutError(what or "timed out")
    if st == SI_SHUTDOWN:
        raise RuntimeError(what or "cannot schedule new futures after shutdown")
    if st == SI_BROKEN:
        raise errors.BrokenInterpreterPool(what or "the pool is broken")
    if st == SI_FORKED:
        raise errors.BrokenInterpreterPool(
            "it belongs to the parent of this forked process; make a new one here"
        )
    if st == SI_DEADLOCK:
        raise errors.PoolDeadlockError(
            "every worker of the pool waits for tasks in the pool's own queue; "
            "use more workers, or a second pool for the inner tasks"
        )
    raise SystemError(f"subinterp: unexpected status {<int>st}")


cdef int64_t _deadline(object timeout) except -1:
    """Seconds (None: no limit) to an absolute time in ns."""
    cdef double seconds
    if timeout is None:
        return SI_FOREVER
    seconds = timeout
    if isnan(seconds):
        raise ValueError("timeout must not be NaN")
    if seconds <= 0:
        return si_now()
    if seconds > 9e9:
        return SI_FOREVER
    return si_now() + <int64_t>(seconds * 1e9)


cdef class Context


cdef int _look_around() except -1:
    """After a wait that something has cut short: let in what interrupts one. Signal
    handlers in the main thread; the interruption of the task that waits; pending
    calls and asynchronous exceptions in any thread. For the last two the evaluation
    loop must run, if only for an instant."""
    PyErr_CheckSignals()
    if si_call_take(si_worker_self()):
        from subinterp._worker import Interrupt
        raise Interrupt
    # Not eval of a text: on 3.13 that makes CPython forget that the program ends by Ctrl-C.
    nothing = {}
    PyEval_EvalCode((<Context>_context).instant, nothing, nothing)
    return 0


cdef int _let_in() except -1:
    """As _look_around, for loops in C that may never have to wait: next to nothing
    if nothing came."""
    cdef si_worker *me = si_worker_self()
    PyErr_CheckSignals()
    if me != NULL and si_call_is_asked(me):
        _look_around()
    return 0


cdef bint _is_stop(exc) noexcept:
    """What ended a wait shall stop what was waited for, too: Ctrl-C, `sys.exit` in a signal
    handler, an interruption of the task that waits. An ordinary exception of a handler
    ends the wait only, as a timeout does."""
    return not isinstance(exc, Exception)


cdef int _stop_task(si_task *t) except -1:
    """Cancel a task, or interrupt it if it runs. It is not waited for."""
    if SI_IS_FINAL(si_task_word(t)) or t.generation != si_generation():
        return 0
    with nogil:
        si_stop_task(t)
    return 0


def check_timeout(timeout):
    """Validate a timeout of a channel operation: None or a number of seconds.

    A negative one has passed already, as with futures: deadlines are often
    computed.
    """
    if timeout is not None:
        try:
            if isinstance(timeout, (str, bytes, bytearray)):
                raise TypeError
            float(timeout)
        except TypeError:
            raise TypeError(
                f"timeout must be a number of seconds or None, not {type(timeout).__name__}"
            ) from None
    return timeout


# ---- the interpreter's context ----------------------------------------------------

cdef class PoolCore
cdef class MapIterator


cdef class Context:
    """What this interpreter needs of its own; one instance, `_context`."""
    cdef si_context *cx
    cdef readonly object notifier       # the _Notifier, or None
    cdef dict maps                      # address -> weak reference, of maps that are under way
    cdef object instant                 # code that does nothing; see _look_around
    cdef object writing                 # a lock: held while the output of workers is written

    def renew(self):
        """In the child of a fork, and for the next pool of a parked interpreter: nothing
        from before is waited for."""
        self.cx = si_context_of(PyInterpreterState_Get())
        self.cx.core_loaded = True
        self.notifier = None
        self.maps = {}
        self.writing = _new_lock()

    cdef int feed_maps(self, PoolCore owner, bint cancel) except -1:
        """The pool (None: every one) closes: maps whose results are still to be read get
        all their input first."""
        cdef MapIterator it
        for ref in list(self.maps.values()):
            it = ref()
            if it is None or (owner is not None and it.owner is not owner):
                continue
            self.maps.pop(_address(it), None)
            try:
                it._feed_rest(cancel)
            except Exception as exc:
                if owner is not None:
                    raise
                import sys
                sys.unraisablehook(_Unraisable(exc))    # at exit, when nobody can be told
        return 0


cdef object _new_lock():
    from _thread import RLock
    return RLock()


cdef Context _new_context():
    cdef Context c = Context.__new__(Context)
    c.cx = si_context_of(PyInterpreterState_Get())
    c.cx.core_loaded = True
    c.notifier = None
    c.maps = {}
    c.writing = _new_lock()
    c.instant = compile("None", "<subinterp>", "eval")
    return c


# ---- messages in the general form --------------------------------------------------

cdef class MessageBuffer:
    """Memory of a received out-of-band buffer; the receiver's objects use it in place."""
    cdef si_block *block

    def __dealloc__(self):
        if self.block != NULL:
            si_block_release(self.block)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.block == NULL:
            raise BufferError("this buffer was not received from anybody")
        PyBuffer_FillInfo(view, self, self.block.data, <Py_ssize_t>self.block.size,
                          self.block.readonly, flags)


cdef class _Carrier:
    """Stands in a pickle for a thing the message itself carries.

    Pickle hands it to the buffer callback; on the other side the thing comes
    out of the list of buffers. It must look writable, or pickle wraps what
    comes out in a read-only memoryview.
    """
    cdef object thing
    cdef char byte

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, &self.byte, 1, False, flags)


def received(thing):
    """What a message carried, as the pickle's constructor call returns it."""
    return thing


def memoryview_from(buffer, format, shape, bint readonly):
    """A memoryview of a received buffer, as the sender's was."""
    view = memoryview(buffer)
    if format != "B" or len(shape) != 1:
        view = view.cast(format, shape) if view.nbytes else memoryview(b"").cast(format)
    return view.toreadonly() if readonly else view


def shared_view(SharedMemory shared, Py_ssize_t offset, Py_ssize_t nbytes, format, shape,
                Py_ssize_t step, bint readonly):
    """A memoryview of a part of a SharedBuffer, over the same memory.

    step: every so many items, backwards if negative; 1 for more dimensions.
    """
    view = memoryview(shared)[offset:offset + nbytes]
    if step != 1:
        view = view.cast(format)[::step]
    elif format != "B" or len(shape) != 1:
        view = view.cast(format, shape)
    return view.toreadonly() if readonly else view


def _castable_format(view):
    """The view's item format as `memoryview.cast` takes it."""
    format = view.format
    if len(format) == 2 and (format[0] in "@=" or format[0] == _NATIVE_ORDER):
        format = format[1]
    try:
        same = memoryview(b"").cast(format).itemsize == view.itemsize
    except ValueError:
        same = False
    if not same:
        raise TypeError(
            f"a memoryview of items in the format {view.format!r} cannot be sent; "
            "send its bytes, memoryview.cast('B')"
        )
    return format


import sys as _sys
_NATIVE_ORDER = "<" if _sys.byteorder == "little" else ">"


def array_from(typecode, buffer):
    """An array.array of a received buffer's content."""
    from array import array
    made = array(typecode)
    made.frombytes(buffer)
    return made


cdef class MessageWriter:
    """Where a pickler writes one message: its file, its dispatch table, and
    the owner of the buffers and handles that travel beside the bytes.

    mode: "call" (to a worker), "result" (back to a caller), "message", "share"
    (to ourselves, the buffers in shared memory).

    What travels beside the bytes is only noted while the pickler runs, and
    copied by `attach` once the pickle is known to be good: large buffers are
    not copied for one that fails, or is made again with cloudpickle.
    """
    cdef si_msg *msg            # borrowed; lives as long as the encoding
    cdef si_context *cx
    cdef readonly str mode
    cdef object array_type
    cdef object ndarray         # numpy's, once this interpreter has it
    cdef tuple frames           # Arrow types that are reduced here, once it has them
    cdef list beside            # PickleBuffers, in the order of the pickle

    def write(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not si_put(self.msg, view.buf, <size_t>view.len):
                raise MemoryError
            return view.len
        finally:
            PyBuffer_Release(&view)

    # As the pickler's dispatch_table.
    def __getitem__(self, cls):
        if self.handles(cls):
            return self.reduce
        import copyreg
        return copyreg.dispatch_table[cls]

    def handles(self, cls):
        """True if objects of this type travel in a way of their own."""
        return (
            cls is memoryview
            or (self.array_type is not None and cls is self.array_type)
            or (isinstance(cls, type) and (
                issubclass(cls, _HANDLES)
                or (self.ndarray is not None and issubclass(cls, self.ndarray))
                or (self.frames and issubclass(cls, self.frames))
            ))
        )

    def reduce(self, obj):
        """Reduce an object that `handles` accepted."""
        from _pickle import PickleBuffer
        if isinstance(obj, memoryview):
            return self._reduce_memoryview(obj, PickleBuffer)
        if isinstance(obj, _HANDLES):
            return received, (PickleBuffer(_carrier(obj)),)
        if self.ndarray is not None and isinstance(obj, self.ndarray):
            from subinterp import _arrays
            return _arrays.reduce_ndarray(obj)
        if self.frames and isinstance(obj, self.frames):
            from subinterp import _arrow
            return _arrow.reduce(obj)
        return _array_subclass(type(obj), obj, PickleBuffer)

    def _reduce_memoryview(self, view, PickleBuffer):
        format = _castable_format(view)
        if isinstance(view.obj, SharedMemory):
            return self._reduce_shared(view, format)
        if not view.contiguous or view.ndim == 0:
            return memoryview_from, (
                PickleBuffer(bytearray(view.tobytes())), format, view.shape or (1,), view.readonly,
            )
        return memoryview_from, (PickleBuffer(view), format, view.shape, view.readonly)

    def _reduce_shared(self, view, format):
        cdef Py_buffer b
        cdef SharedMemory shared = view.obj
        cdef Py_ssize_t start, size = view.itemsize, n = view.nbytes, step = 1
        PyObject_GetBuffer(view, &b, PyBUF_FULL_RO)
        start = <char *>b.buf - shared.shared.data
        PyBuffer_Release(&b)
        if not view.c_contiguous and n:
            # A copy would look the same and not be shared: say no instead.
            if view.ndim != 1 or view.strides[0] % size:
                raise TypeError("only one-dimensional strided views of a SharedBuffer can be sent")
            step = view.strides[0] // size
            if step < 0:
                start += (view.shape[0] - 1) * view.strides[0]
            n = (view.shape[0] - 1) * abs(view.strides[0]) + size
        return shared_view, (shared, start, n, format, view.shape, step, view.readonly)

    def __call__(self, pickle_buffer):
        """The pickler's buffer_callback; returning None means out of band."""
        self.beside.append(pickle_buffer)
        return None

    cdef int attach(self) except -1:
        """Make parts of the message of what the pickler left beside it."""
        cdef const Py_buffer *b
        cdef si_shared *common = NULL
        cdef size_t start = 0
        if self.mode == "share":
            common = self._room()
        try:
            for pickle_buffer in self.beside:
                b = PyPickleBuffer_GetBuffer(pickle_buffer)
                if not isinstance(<object>b.obj, _Carrier):
                    start += self._copy(b, NULL, common, start)
                elif isinstance((<_Carrier>b.obj).thing, _HANDLES):
                    self._carry((<_Carrier>b.obj).thing)
                else:
                    start += self._copy(NULL, <PyObject *>(<_Carrier>b.obj).thing, common, start)
        finally:
            if common != NULL:
                si_shared_release(common)
        return 0

    cdef si_shared *_room(self) except? NULL:
        """One block for all that will be copied; NULL if nothing will be."""
        cdef const Py_buffer *b
        cdef size_t n = 0
        cdef si_shared *s
        for pickle_buffer in self.beside:
            b = PyPickleBuffer_GetBuffer(pickle_buffer)
            if not isinstance(<object>b.obj, _Carrier):
                n += _aligned(<size_t>b.len)
            elif not isinstance((<_Carrier>b.obj).thing, _HANDLES):
                n += _aligned(<size_t>(<_Carrier>b.obj).thing.nbytes)
        if n == 0:
            return NULL
        s = si_shared_new(n)
        if s == NULL:
            raise MemoryError(f"no memory for {n} shared bytes")
        si_expect_large(s.data, n)
        return s

    cdef size_t _copy(self, const Py_buffer *b, PyObject *late, si_shared *common,
                      size_t start) except? 1:
        """Add a part: the content of a buffer, or what writes itself into one.

        It is copied into `common` at `start`, if given; into a block of its
        own otherwise; not at all if it lies in shared memory already. Returns
        the bytes used of `common`, a multiple of 64.
        """
        cdef si_block *block
        cdef si_shared *s
        cdef size_t n
        cdef MessageBuffer target
        if late == NULL:
            n = <size_t>b.len
            s = si_shared_at(b.buf, n)
            if s != NULL:
                self._add_view(s, <size_t>(<char *>b.buf - s.data), n)
                return 0
        else:
            n = (<object>late).nbytes
        if common != NULL and n:
            _fill(common.data + start, n, b, late, None)
            si_shared_retain(common)
            self._add_view(common, start, n)
            return _aligned(n)
        block = si_block_new(n)
        if block == NULL:
            raise MemoryError
        # Whoever writes into the block may hold on to it.
        target = MessageBuffer.__new__(MessageBuffer)
        target.block = block
        _fill(block.data, n, b, late, target)
        if late == NULL:
            block.readonly = b.readonly
        si_block_retain(block)
        if not si_msg_part(self.msg, SI_PART_BLOCK, block, n):
            si_block_release(block)
            raise MemoryError
        return 0

    cdef int _add_view(self, si_shared *s, size_t start, size_t n) except -1:
        """Add a part; takes the reference over."""
        if not si_msg_part(self.msg, SI_PART_VIEW, s, n):
            si_shared_release(s)
            raise MemoryError
        self.msg.parts[self.msg.n_parts - 1].start = start
        return 0

    cdef int _carry(self, thing) except -1:
        cdef ChannelEnd end
        cdef SharedMemory shared
        cdef SyncCore sync
        cdef PoolCore pool
        if isinstance(thing, ChannelEnd):
            end = thing
            if not end.open:
                raise _errors().ChannelClosed("a closed channel end cannot be sent")
            _check(si_channel_add_handle(end.handle.channel, end.handle.side, False))
            si_channel_retain(end.handle.channel)
            if not si_msg_part(
                self.msg, SI_PART_SENDER if end.handle.side == SI_SENDER else SI_PART_RECEIVER,
                end.handle.channel, 0
            ):
                si_channel_drop_count(end.handle.channel, end.handle.side)
                si_channel_release(end.handle.channel)
                raise MemoryError
        elif isinstance(thing, SharedMemory):
            shared = thing
            si_shared_retain(shared.shared)
            if not si_msg_part(self.msg, SI_PART_SHARED, shared.shared, 0):
                si_shared_release(shared.shared)
                raise MemoryError
        elif isinstance(thing, SyncCore):
            sync = thing
            sync._prepare()
            si_sync_retain(sync.s)
            if not si_msg_part(self.msg, SI_PART_SYNC, sync.s, 0):
                si_sync_release(sync.s)
                raise MemoryError
        else:
            pool = thing
            si_pool_retain(pool.pool)
            if not si_msg_part(self.msg, SI_PART_POOL, pool.pool, 0):
                si_pool_release(pool.pool)
                raise MemoryError
        return 0


cdef size_t _aligned(size_t n) noexcept nogil:
    """Where the next buffer may begin: Arrow asks for 64."""
    return (n + 63) & ~<size_t>63


cdef int _fill(char *to, size_t n, const Py_buffer *b, PyObject *late, owner) except -1:
    """Copy a buffer's content, or have an object write its own.

    owner: the object that `to` belongs to, or None: for the time of the call.
    """
    if late != NULL:
        if owner is not None:
            (<object>late).copy_into(owner)
            return 0
        view = PyMemoryView_FromMemory(to, <Py_ssize_t>n, PyBUF_WRITE)
        (<object>late).copy_into(view)
        return 0
    if n >= 1 << 20:
        # The pickle holds the object, so its memory stays; others may run.
        with nogil:
            memcpy(to, b.buf, n)
    elif n:
        memcpy(to, b.buf, n)
    return 0


def beside(copy):
    """What stands in a pickle for bytes that are yet to be written.

    copy: has `nbytes`, and `copy_into(buffer)`, which fills as many bytes. It
    is called once the pickle is complete.
    """
    from _pickle import PickleBuffer
    return PickleBuffer(_carrier(copy))


cdef object _carrier(thing):
    cdef _Carrier c = _Carrier.__new__(_Carrier)
    c.thing = thing
    return c


cdef object _array_subclass(cls, obj, PickleBuffer):
    if obj.typecode in "uw" or len(obj) == 0:
        # Text has no buffer format that a PickleBuffer takes everywhere.
        return array_from, (obj.typecode, obj.tobytes())
    return array_from, (obj.typecode, PickleBuffer(obj))


cdef MessageWriter _writer(si_context *cx, si_msg *msg, str mode):
    import sys
    cdef MessageWriter w = MessageWriter.__new__(MessageWriter)
    w.msg = msg
    w.cx = cx
    w.mode = mode
    array = sys.modules.get("array")
    w.array_type = None if array is None else array.array
    # Their modules may be half imported, by another thread.
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    w.ndarray = ndarray if isinstance(ndarray, type) else None
    w.beside = []
    w.frames = ()
    if "polars" in sys.modules or "pyarrow" in sys.modules:
        from subinterp import _arrow
        w.frames = _arrow.types()
    return w


cdef object _by_value_modules():
    """Modules registered with cloudpickle to travel by value; usually none.

    Another thread may be importing cloudpickle at this moment: then none are.
    """
    import sys
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    return getattr(cloudpickle, "_PICKLE_BY_VALUE_MODULES", None)


cdef int _encode_general(si_context *cx, si_msg *msg, obj, str mode) except -1:
    """Append obj as a pickle: plain if that does, else with cloudpickle.

    A plain pickle names what `__main__` defines, which no other interpreter
    has: its name in the bytes tells, at a fraction of what a look at every
    object would cost. A false alarm only costs time.
    """
    cdef MessageWriter writer = _writer(cx, msg, mode)
    cdef size_t start = msg.len
    cdef uint32_t n_parts = msg.n_parts
    from _pickle import Pickler
    plain = not _by_value_modules()
    if plain:
        try:
            pickler = Pickler(writer, 5, buffer_callback=writer)
            pickler.dispatch_table = writer
            pickler.dump(obj)
        except Exception:
            plain = False
        else:
            plain = not _mentions_main(msg.data + start, msg.len - start)
    try:
        if not plain:
            si_msg_cut(msg, start, n_parts)
            writer.beside.clear()
            from subinterp import _pickling
            _pickling.dump(writer, obj)
        if writer.beside:
            writer.attach()
    except BaseException:
        si_msg_cut(msg, start, n_parts)
        raise
    finally:
        writer.msg = NULL
        writer.beside.clear()
    msg.format = SI_FMT_PICKLE
    return 0


cdef bint _mentions_main(const char *data, size_t n) noexcept:
    return memmem(data, n, <const char *>b"__main__", 8) != NULL


cdef int _encode_value(si_context *cx, si_msg *msg, obj, str mode) except -1:
    """A whole message: the fast form if that does."""
    cdef si_encoder e
    si_encoder_init(&e)
    cdef si_ret st = si_encode(&e, msg, <PyObject *>obj)
    if st == SI_OK:
        msg.format = SI_FMT_FAST
        return 0
    si_msg_cut(msg, 0, 0)
    if st == SI_NOMEM:
        raise MemoryError
    return _encode_general(cx, msg, obj, mode)


cdef int _hook_encode(si_context *cx, si_msg *msg, PyObject *obj) except -1:
    value = <object>obj
    try:
        return _encode_general(cx, msg, value, "result")
    except Exception as exc:
        from subinterp import _pickling
        raise _pickling.explain(value, "result", exc) from exc


cdef object _decode_general(si_context *cx, si_msg *msg, bint keep):
    cdef list buffers = []
    cdef uint32_t i
    from _pickle import loads
    for i in range(msg.n_parts):
        buffers.append(_take_part(cx, &msg.parts[i], keep))
    view = _raw_view(msg.data, <Py_ssize_t>msg.len)
    try:
        return loads(view, buffers=buffers)
    finally:
        view.release()


cdef object _raw_view(char *data, Py_ssize_t n):
    return PyMemoryView_FromMemory(data, n, PyBUF_READ)


cdef PyObject *_hook_decode(si_context *cx, si_msg *msg, bint keep) except NULL:
    value = _decode_general(cx, msg, keep)
    Py_INCREF(value)
    return <PyObject *>value


cdef object _take_part(si_context *cx, si_part *part, bint keep):
    """A carried thing as an object of this interpreter. Without `keep` the
    message gives up its share, with it another one is counted."""
    cdef MessageBuffer buf
    cdef SharedMemory shared
    cdef PoolCore pool
    cdef si_block *copy
    if part.kind == SI_PART_BLOCK:
        buf = MessageBuffer.__new__(MessageBuffer)
        if keep:
            copy = si_block_new(part.n)
            if copy == NULL:
                raise MemoryError
            copy.readonly = (<si_block *>part.ptr).readonly
            memcpy(copy.data, (<si_block *>part.ptr).data, part.n)
            buf.block = copy
        else:
            buf.block = <si_block *>part.ptr
            part.kind = SI_PART_NONE
        # As a memoryview, which has the usual methods and can be sent on.
        return memoryview(buf)
    if part.kind == SI_PART_SHARED or part.kind == SI_PART_VIEW:
        whole = part.kind == SI_PART_SHARED
        if keep:
            si_shared_retain(<si_shared *>part.ptr)
        else:
            part.kind = SI_PART_NONE
        shared = _shared_buffer(<si_shared *>part.ptr)
        return shared if whole else memoryview(shared)[part.start:part.start + part.n]
    if part.kind == SI_PART_SYNC:
        if keep:
            si_sync_retain(<si_sync *>part.ptr)
        else:
            part.kind = SI_PART_NONE
        return _sync_object(cx, <si_sync *>part.ptr)
    if part.kind == SI_PART_POOL:
        from subinterp.pool import InterpreterPool
        if not keep:
            part.kind = SI_PART_NONE
        else:
            si_pool_retain(<si_pool *>part.ptr)
        pool = PoolCore.__new__(InterpreterPool)
        pool._adopt(<si_pool *>part.ptr)
        return pool
    if part.kind == SI_PART_SENDER or part.kind == SI_PART_RECEIVER:
        return _take_end(cx, part, keep)
    return None


cdef object _take_end(si_context *cx, si_part *part, bint keep):
    from subinterp import channels
    cdef si_channel *c = <si_channel *>part.ptr
    cdef si_side side = SI_SENDER if part.kind == SI_PART_SENDER else SI_RECEIVER
    if keep:
        _check(si_channel_add_handle(c, side, False))
        si_channel_retain(c)
    else:
        part.kind = SI_PART_NONE
    return _wrap_end(cx, c, side, channels.SendChannel if side == SI_SENDER else channels.RecvChannel)


# ---- tasks and futures -----------------------------------------------------------------

cdef class FunctionRef:
    """A function's encoded form, for as long as its caller may use it again."""
    cdef si_function *f

    def __dealloc__(self):
        if self.f != NULL:
            si_function_retire(self.f)


cdef FunctionRef _function_ref(si_msg *msg, bint by_name):
    cdef FunctionRef ref = FunctionRef.__new__(FunctionRef)
    ref.f = si_function_new(msg, by_name)
    if ref.f == NULL:
        raise MemoryError
    return ref


cdef int _wait_task(si_pool *pool, si_task *t, int64_t deadline) except -1:
    """Wait until the task is final. 0: it is; 1: the deadline passed."""
    cdef si_ret st
    cdef si_worker *me
    cdef bint slice_
    if SI_IS_FINAL(si_task_word(t)):
        return 0
    if deadline != SI_FOREVER and deadline <= si_now():
        return 1
    me = si_worker_self()
    slice_ = si_is_main_thread()
    while True:
        with nogil:
            st = si_pool_wait_task(pool, me, t, deadline, slice_)
        if st == SI_OK:
            return 0
        if st == SI_TIMEOUT:
            return 1
        if st == SI_INTR:
            _look_around()
        else:
            _check(st)


cdef class LoopPort


cdef class _Waiters:
    """Who waits for a future in `concurrent.futures.wait` or `as_completed`, as these see it.

    They know nothing of interruptions: an event of ours takes the place of the one
    that they sleep on.
    """
    cdef FutureCore future

    def append(self, waiter):
        from subinterp import _notify
        self.future.waiters.append(waiter)
        event = _notify.event_of(waiter)
        if event is not None:
            event.futures.add(self.future)

    def remove(self, waiter):
        from subinterp import _notify
        self.future.waiters.remove(waiter)
        event = _notify.event_of(waiter)
        if event is not None:
            event.futures.discard(self.future)


cdef class FutureCore:
    """The C half of a Future: its task, and what Python made of the outcome.

    The standard library's `wait` and `as_completed` look at a future's
    `_condition`, `_state` and `_waiters` under the condition's lock. Making a
    condition costs more than a task; so they exist once somebody asks. From
    then on the future is observed: its completion goes through the notifier
    thread, which changes `_state` under the condition.
    """
    cdef si_task *task
    cdef si_pool *pool
    cdef Context context
    cdef object value           # the result or the exception, once decoded
    cdef object condition
    cdef list waiters, callbacks
    cdef char decoded           # 0 no, 1 result, 2 exception
    cdef object decoder         # while it is made: (thread, Event or None for who else asks)
    cdef bint observed, published
    # Of a task that a coroutine awaits, instead of being observed; see LoopPort.
    cdef LoopPort port
    cdef object waiter          # told by the port; None: nobody waits (any more)

    def __dealloc__(self):
        if self.task != NULL:
            si_task_release(self.task)
        if self.pool != NULL:
            si_pool_release(self.pool)

    cdef uint32_t word(self) except? 255:
        if self.task == NULL:
            raise TypeError("futures are made by a pool")
        if self.task.generation != si_generation() and si_task_orphan(
            self.task, b"the task was under way in the parent of this forked process"
        ):
            # Its observers stayed there too.
            self.published = True
        return si_task_word(self.task) & SI_STATE_MASK

    # What the standard library reads.

    @property
    def _condition(self):
        if self.condition is None:
            self._observe()
        self.word()
        return self.condition

    @property
    def _waiters(self):
        cdef _Waiters waiters
        if self.condition is None:
            self._observe()
        waiters = _Waiters.__new__(_Waiters)
        waiters.future = self
        return waiters

    @property
    def _done_callbacks(self):
        if self.condition is None:
            self._observe()
        return self.callbacks

    @property
    def _state(self):
        cdef uint32_t w = self.word()
        if w == SI_PENDING:
            return "PENDING"
        if w == SI_RUNNING or (self.observed and not self.published):
            return "RUNNING"
        if w == SI_CANCELLED:
            return "CANCELLED_AND_NOTIFIED"
        return "FINISHED"

    @property
    def _result(self):
        self._decode_if_final()
        return self.value if self.decoded == 1 else None

    @property
    def _exception(self):
        self._decode_if_final()
        return self.value if self.decoded == 2 else None

    cdef int _decode_if_final(self) except -1:
        cdef uint32_t w = self.word()
        if w >= SI_DONE and w != SI_CANCELLED:
            self._decode()
        return 0

    cdef int _observe(self) except -1:
        """Give the future its condition, and have its end posted."""
        import threading
        ensure = False
        condition = threading.Condition()
        # Held until all is set, so that nobody sees a half-observed future;
        # making it may have let another thread in, which was first then.
        with condition:
            if self.condition is not None:
                return 0
            self.waiters = []
            self.callbacks = []
            self.condition = condition
            ensure = self._ask_for_post()
        if ensure:
            _notifier(self.context).ensure()
        return 0

    cdef bint _ask_for_post(self) except -1:
        """True: the task will be posted."""
        cdef _Notifier notifier
        if self.word() >= SI_DONE:
            self.observed = self.published = True
            return False
        notifier = _notifier(self.context)
        notifier.outstanding += 1
        # The task keeps the future until it is posted.
        Py_INCREF(self)
        self.task.observer = <PyObject *>self
        self.observed = True
        if not SI_IS_FINAL(si_task_observe(self.task, notifier.cq)):
            return True
        # It came to its end meanwhile: nothing will be posted.
        self.published = True
        self._unobserve()
        return False

    cdef int _publish(self) except -1:
        """Tell those who wait through the condition; called once the task is final."""
        cdef uint32_t w = self.word()
        if self.condition is None:
            return 0    # its coroutine has given up
        with self.condition:
            if self.published:
                return 0
            self.published = True
            for waiter in self.waiters:
                if w == SI_CANCELLED:
                    waiter.add_cancelled(self)
                elif w == SI_DONE:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self.condition.notify_all()
        callbacks = self.callbacks
        self.callbacks = []
        for fn in callbacks:
            self._call_back(fn)
        return 0

    cdef int _call_back(self, fn) except -1:
        try:
            fn(self)
        except Exception:
            from concurrent.futures._base import LOGGER
            LOGGER.exception("exception calling callback for %r", self)
        return 0

    cdef int _decode(self) except -1:
        """Make the outcome a Python object, once: loading may run Python code,
        and with it another thread that asks for the same."""
        cdef si_msg msg
        cdef uint32_t w
        if self.decoded:
            return 0
        _drain_output(self.pool, self.context)
        while not self.decoded and self.decoder is not None:
            self._await_decoder()
        if self.decoded:
            return 0
        import _thread
        self.decoder = [_thread.get_ident(), None]
        si_msg_init(&msg)
        w = self.word()
        try:
            if w != SI_ABANDONED and w != SI_OVERDUE:
                si_msg_move(&msg, &self.task.msg)   # else it is still the worker's
            self._decode_message(w, &msg)
        except Exception as exc:
            self.value = exc
            self.decoded = 2
        finally:
            si_msg_clear(&msg)
            decoder = self.decoder
            self.decoder = None
            if decoder[1] is not None:
                decoder[1].set()
        return 0

    cdef int _decode_message(self, uint32_t w, si_msg *msg) except -1:
        if w == SI_DONE:
            self.value = si_value_decode(self.context.cx, msg, False)
            self.decoded = 1
            return 0
        if w == SI_FAILED:
            value = _failure(self.context.cx, msg)
        elif w == SI_ABANDONED or w == SI_OVERDUE:
            value = _abandoned(w)
        else:
            value = _broken(self.pool, PyBytes_FromStringAndSize(msg.data, <Py_ssize_t>msg.len))
        self.value = value
        self.decoded = 2
        return 0

    cdef int _await_decoder(self) except -1:
        import _thread
        decoder = self.decoder
        if decoder[0] == _thread.get_ident():
            raise RuntimeError("loading a future's result asks for the same result")
        if decoder[1] is None:
            import threading
            event = threading.Event()
            if self.decoder is decoder and decoder[1] is None:
                decoder[1] = event
        if self.decoder is decoder:
            decoder[1].wait()
        return 0

    cdef int _await(self, timeout) except -1:
        if self.word() >= SI_DONE:
            return 0
        try:
            late = _wait_task(self.pool, self.task, _deadline(timeout))
        except BaseException as exc:
            if _is_stop(exc):
                self.interrupt()
            raise
        if late:
            raise TimeoutError
        return 0

    # The public interface of a future.

    def result(self, timeout=None):
        """Return the call's result, waiting for it if need be.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; None: no limit.

        Returns
        -------
        object
            Made in this interpreter from the worker's message at the first
            call, the same object afterwards.

        Raises
        ------
        concurrent.futures.CancelledError
            If the future was cancelled.
        TimeoutError
            If the call was not complete in time.
        BrokenInterpreterPool
            If the pool broke before the call was run.
        PoolDeadlockError
            If this is a worker of the same pool and none is left to run it.
        BaseException
            What the call raised, with the worker's traceback as its cause.

        Notes
        -----
        Blocks with the interpreter's lock released: a short spin, then asleep.
        Ctrl-C meanwhile interrupts the call.
        """
        if self.decoded == 1:
            return self.value
        self._await(timeout)
        if self.word() == SI_CANCELLED:
            from concurrent.futures import CancelledError
            raise CancelledError
        self._decode()
        if self.decoded == 2:
            try:
                raise self.value
            finally:
                # Break the cycle future -> exception -> traceback -> frame.
                self = None
        return self.value

    def exception(self, timeout=None):
        """Return the exception the call raised, or None, waiting if need be.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; None: no limit.

        Returns
        -------
        BaseException or None
            With the worker's traceback as its cause; the same object each time.

        Raises
        ------
        concurrent.futures.CancelledError
            If the future was cancelled.
        TimeoutError
            If the call was not complete in time.
        PoolDeadlockError
            If this is a worker of the same pool and none is left to run it.

        Notes
        -----
        Blocks with the interpreter's lock released.
        """
        self._await(timeout)
        if self.word() == SI_CANCELLED:
            from concurrent.futures import CancelledError
            raise CancelledError
        self._decode()
        return self.value if self.decoded == 2 else None

    def done(self):
        """Return True if the call is complete or was cancelled. Does not block."""
        return self.word() >= SI_DONE

    def running(self):
        """Return True if a worker runs the call now. Does not block."""
        return self.word() == SI_RUNNING

    def cancelled(self):
        """Return True if the call was cancelled. Does not block."""
        return self.word() == SI_CANCELLED

    def cancel(self):
        """Cancel the call, unless a worker has begun it.

        Returns
        -------
        bool
            True if the call is cancelled, now or before.

        Notes
        -----
        Does not wait for a worker. If somebody observes the future, callbacks
        run in this thread.
        """
        cdef uint32_t before, state
        if self.word() >= SI_DONE:
            return self.word() == SI_CANCELLED
        before = si_task_cancel(self.task)
        state = before & SI_STATE_MASK
        if state == SI_PENDING:
            if before & SI_OBSERVED:
                self._unobserve()
                self._publish()
            return True
        return state == SI_CANCELLED

    def interrupt(self):
        """Stop the call, also if a worker runs it.

        One that no worker has begun is cancelled. In one that runs, `Interrupt` is
        raised at the next step of its Python code; on Linux on x86-64 it also
        ends most blocking calls: `time.sleep`, locks, queues, sockets, pipes.

        Returns
        -------
        bool
            True if the call was cancelled, or asked to stop. False if it was
            complete.

        Notes
        -----
        Does not block: the outcome is the future's. It is `TaskInterrupted`, also
        if the task turned the interruption into another exception; its result if
        the task caught `Interrupt` and went on to its end; `TaskAbandoned` if it did
        not stop within the pool's `interrupt_grace`. Calling it again raises
        `Interrupt` again, in a task that went on.
        """
        cdef bint asked
        cdef si_task *t
        if self.cancel():
            return self.word() == SI_CANCELLED
        if self.word() != SI_RUNNING:
            return False
        t = self.task
        with nogil:
            asked = si_stop_task(t)
        return asked

    cdef int _tell(self, LoopPort port, waiter) except -1:
        """Have an event loop told of the end; before the task is pushed."""
        cdef _Notifier notifier = _notifier(self.context)
        notifier.ensure()
        notifier.outstanding += 1
        self.port = port
        self.waiter = waiter
        # The task keeps the future until it is posted.
        Py_INCREF(self)
        self.task.observer = <PyObject *>self
        si_task_observe(self.task, notifier.cq)
        return 0

    def _give_up(self):
        """The coroutine does not wait any more: stop the task, and tell nobody."""
        self.waiter = None
        self.port = None
        self.interrupt()
        self._unobserve()   # the notifier finds nobody, or is over by then

    cdef int _unobserve(self) except -1:
        """Take back the reference that the post would have returned."""
        if self.task.observer != NULL:
            self.task.observer = NULL
            if self.context.notifier is not None:   # not in the child of a fork
                (<_Notifier>self.context.notifier).outstanding -= 1
            Py_DECREF(self)
        return 0

    def add_done_callback(self, fn):
        """Call ``fn(future)`` when the call is complete or cancelled.

        Parameters
        ----------
        fn : callable
            Called with the future; exceptions it raises are logged.

        Notes
        -----
        Does not block. The callback runs in a thread of this interpreter: the
        notifier's, or the one that cancels; in this one, at once, if the future
        is done.
        """
        with self._condition:
            if not self.published:
                self.callbacks.append(fn)
                return
        self._call_back(fn)

    def _get_snapshot(self):
        # asyncio (3.14) reads the outcome through this.
        cdef uint32_t w = self.word()
        if w == SI_CANCELLED:
            return True, True, None, None
        if w >= SI_DONE:
            self._decode()
            if self.decoded == 1:
                return True, False, self.value, None
            return True, False, None, self.value
        return False, False, None, None

    def _executor_only(self, *args):
        """Raise `concurrent.futures.InvalidStateError`: only the pool completes its futures."""
        from concurrent.futures import InvalidStateError
        raise InvalidStateError(f"only the pool completes its futures: {self!r}")

    set_result = set_exception = set_running_or_notify_cancel = _executor_only

    def __repr__(self):
        state = self._state
        names = {"CANCELLED_AND_NOTIFIED": "cancelled"}
        text = f"<{type(self).__name__} at {_address(self):#x} state={names.get(state, state.lower())}"
        if self.decoded == 1:
            text += f" returned {type(self.value).__name__}"
        elif self.decoded == 2:
            text += f" raised {type(self.value).__name__}"
        return text + ">"

    def __reduce__(self):
        raise TypeError("a Future stays in its interpreter; send its result")


cdef object _broken(si_pool *pool, bytes reason):
    """The exception of a broken pool; why it broke is logged once."""
    text = reason.decode("utf-8", "replace")
    if pool.generation == si_generation() and si_pool_tell_broken(pool):
        from concurrent.futures._base import LOGGER
        LOGGER.critical("An interpreter pool is broken: %s", text)
    return _errors().BrokenInterpreterPool(text)


cdef object _abandoned(uint32_t state):
    """The exception of a task that did not stop."""
    errors = _errors()
    if state == SI_OVERDUE:
        return errors.OverdueTaskAbandoned(
            "the task exceeded its time limit and did not stop when it was interrupted; "
            "its worker was abandoned"
        )
    return errors.TaskAbandoned(
        "the task did not stop when it was interrupted; its worker was abandoned"
    )


cdef object _failure(si_context *cx, si_msg *msg):
    """The exception that a message describes."""
    from subinterp import _pickling
    try:
        return _pickling.rebuild_exception(si_value_decode(cx, msg, False))
    except Exception as exc:
        return _errors().RemoteError(f"a worker's exception could not be read: {exc!r}")


cdef int _drain_output(si_pool *pool, Context context) except -1:
    """Write what tasks printed to this interpreter's streams, if it made the pool.

    What another thread is just writing is waited for, so that it is out when this
    returns; not for long, since a stream of the user's may wait for this thread.
    """
    if pool.creator != context.cx.interp_id or not (
        pool.draining or si_pool_has_output(pool, context.cx.interp_id)
    ):
        return 0
    cdef bint held = context.writing.acquire(timeout=1.0)
    pool.draining += 1
    try:
        _write_output(si_pool_take_output(pool, context.cx.interp_id))
    finally:
        pool.draining -= 1
        if held:
            context.writing.release()
    return 0


cdef int _write_output(si_output *o) except -1:
    cdef si_output *following
    import sys
    while o != NULL:
        data = PyBytes_FromStringAndSize(o.data, <Py_ssize_t>o.n)
        number = o.stream
        following = o.next
        free(o)
        o = following
        if number == 3:
            from subinterp import _logs
            _logs.deliver(data)
            continue
        text = data.decode("utf-8", "surrogateescape")
        stream = sys.stdout if number == 1 else sys.stderr
        try:
            stream.write(text)
            stream.flush()
        except Exception:
            pass    # nowhere to write it to
    return 0


# ---- the notifier ----------------------------------------------------------------------

cdef class _Notifier:
    """Publishes completed tasks that somebody observes; see FutureCore.

    One thread an interpreter, started when the first future is observed, over
    when nothing has been outstanding for a while. Its fields are guarded by
    the interpreter's lock.
    """
    cdef si_cq *cq
    cdef Context context
    cdef public int64_t outstanding     # posts to come, and pools that forward output
    cdef object thread                  # the last one started, to be joined; or None
    cdef set forwarding                 # PoolHandles whose output is written here
    cdef bint starting                  # ensure() is at it, or the thread is on its way to run()
    cdef bint running                   # a thread reads the queue
    cdef bint stopping
    cdef list ports                     # LoopPorts that have something to deliver

    def __dealloc__(self):
        if self.cq != NULL:
            si_cq_release(self.cq)

    cdef int ensure(self) except -1:
        if self.running or self.starting:
            return 0
        self.starting = True    # starting a thread lets others come here
        try:
            from subinterp import _notify
            self.thread = _notify.start(self)
        except BaseException:
            self.starting = False
            raise
        return 0

    def run(self, double linger):
        """Publish until nothing is outstanding for `linger` seconds."""
        cdef si_node *node = NULL
        cdef si_ret st
        cdef int64_t deadline
        cdef si_cq *cq = self.cq
        cdef int handled = 0
        if cq == NULL:
            raise TypeError("notifiers are made by futures")
        if self.running:
            return      # the queue has one reader
        self.running = True
        self.starting = False
        si_name_thread(b"subinterp-notif")
        si_cq_retain(cq)
        try:
            while True:
                st = si_cq_pop(cq, &node)
                if st == SI_OK:
                    self._handle(node)
                    handled += 1
                    if handled < TOLD_AT_ONCE:
                        continue
                handled = 0
                if self.ports:
                    self._wake_loops()
                if st == SI_OK:
                    continue
                for handle in list(self.forwarding):
                    _drain_output((<_PoolHandle>handle).pool, self.context)
                if st == SI_CLOSED or self.stopping:
                    break
                deadline = si_now() + <int64_t>(linger * 1e9)
                with nogil:
                    st = si_cq_wait(cq, deadline, NULL)
                if st == SI_TIMEOUT and self.outstanding == 0:
                    st = si_cq_pop(cq, &node)
                    if st != SI_OK:
                        break
                    self._handle(node)
                    self._wake_loops()
                elif st == SI_FORKED:
                    break
        finally:
            self.running = False
            si_cq_release(cq)

    cdef int _handle(self, si_node *node) except -1:
        cdef si_task *t
        cdef si_async *a
        cdef FutureCore fut
        try:
            if node.is_task:
                t = <si_task *>node
                if t.observer != NULL:
                    fut = <FutureCore>t.observer
                    t.observer = NULL
                    self.outstanding -= 1
                    Py_DECREF(fut)
                    si_task_release(t)
                    _drain_output(fut.pool, self.context)
                    if fut.waiter is None:
                        fut._publish()
                    elif fut.port._add(fut):
                        self.ports.append(fut.port)
                else:
                    si_task_release(t)
            else:
                a = <si_async *>node
                if a.owner != NULL:
                    (<AsyncWait>a.owner)._told()
                si_async_release(a)
        except BaseException as exc:
            import sys
            sys.unraisablehook(_Unraisable(exc))
        return 0

    cdef int _wake_loops(self) except -1:
        """Ask event loops to take what was handled: each once for many tasks."""
        cdef LoopPort port
        while self.ports:
            port = self.ports.pop()
            try:
                port.wake(port.deliver)
            except BaseException as exc:
                port._drop()
                if not isinstance(exc, RuntimeError):   # else the loop is closed
                    import sys
                    sys.unraisablehook(_Unraisable(exc))
        return 0

    def stop(self):
        """Publish what is there, then end. (At the end of the interpreter.)"""
        thread = self.thread    # one that is over is joined as well: to its very end
        self.stopping = True
        si_cq_nudge(self.cq)
        if thread is not None:
            thread.join(1.0)
        si_cq_close(self.cq)


cdef enum:
    TOLD_AT_ONCE = 512      # completed tasks after which an event loop is woken, though more may come


cdef class LoopPort:
    """The way of completed tasks into one event loop.

    A call into a loop from another thread costs more than a task. So the
    notifier first takes all that is complete, and then asks each loop once to
    deliver its share. Guarded by the interpreter's lock, which the loop's
    thread and the notifier's have in common.

    Parameters
    ----------
    wake : callable
        ``wake(fn)`` has `fn` called in the loop, from any thread; raises RuntimeError
        if the loop is over.
    """
    cdef readonly object wake
    cdef list told      # FutureCores whose tasks are complete
    cdef bint asked     # the loop is to deliver them, or the notifier is to ask it
    cdef object __weakref__

    def __init__(self, wake):
        self.wake = wake
        self.told = []

    cdef bint _add(self, FutureCore fut) except -1:
        """In the notifier. True: the loop is still to be asked."""
        cdef bint first = not self.asked
        self.told.append(fut)
        self.asked = True
        return first

    cdef int _drop(self) except -1:
        """The loop is over: nobody waits any more."""
        self.asked = False
        self.told = []
        return 0

    def deliver(self):
        """Wake the coroutines whose tasks are complete; called in the loop."""
        cdef FutureCore fut
        self.asked = False      # first: what is added from now on asks again
        told = self.told
        self.told = []
        for fut in told:
            waiter = fut.waiter
            fut.waiter = None
            if waiter is None:
                continue
            try:
                if isinstance(waiter, MapIterator):
                    (<MapIterator>waiter)._arrived(fut)
                elif not waiter.done():
                    waiter.set_result(None)
            except Exception as exc:
                import sys
                sys.unraisablehook(_Unraisable(exc))


cdef class _PoolHandle:
    """Keeps a C pool for the notifier, without keeping the Python one."""
    cdef si_pool *pool

    def __dealloc__(self):
        if self.pool != NULL:
            si_pool_release(self.pool)


class _Unraisable:
    def __init__(self, exc):
        self.exc_type = type(exc)
        self.exc_value = exc
        self.exc_traceback = exc.__traceback__
        self.err_msg = "Exception ignored in subinterp's notifier"
        self.object = None


cdef _Notifier _notifier(Context context):
    cdef _Notifier n
    if context.notifier is None:
        n = _Notifier.__new__(_Notifier)
        n.context = context
        n.forwarding = set()
        n.ports = []
        n.cq = si_cq_new()
        if n.cq == NULL:
            raise MemoryError
        si_cq_retain(n.cq)
        context.cx.notices = n.cq
        context.notifier = n
    return context.notifier


# ---- functions on their way ----------------------------------------------------------------

cdef class _ByValue:
    """A function sent by value: its encoding, and what that was made from.

    The encoding holds as long as the function, and the functions of
    `__main__` it refers to, have the same code, defaults, cells and globals.
    "Same" is identity, and only of immutable objects: where a mutable one is
    involved, `sources` is None, and the function is encoded anew each time,
    to be compared with the bytes it had.
    """
    cdef object ref             # weak
    cdef FunctionRef function
    cdef list sources           # of _Source; None: cannot be told without encoding


cdef class _Source:
    """What one function looked like when it was encoded."""
    cdef object fn              # None: the function itself, which must not be kept alive
    cdef object code, defaults
    cdef tuple cells, names, values

    cdef bint holds(self, object root) except -1:
        fn = root if self.fn is None else self.fn
        cdef Py_ssize_t i
        if (
            fn.__code__ is not self.code or fn.__defaults__ is not self.defaults
            or fn.__kwdefaults__ is not None or fn.__dict__
        ):
            return False
        if self.cells is not None:
            closure = fn.__closure__
            for i in range(len(self.cells)):
                try:
                    if closure[i].cell_contents is not self.cells[i]:
                        return False
                except ValueError:
                    return False
        namespace = fn.__globals__
        for i in range(len(self.names)):
            if namespace.get(self.names[i], _EMPTY) is not self.values[i]:
                return False
        return True


def _unchanging(obj, int depth=0):
    """True if the object can never look different to pickle."""
    cls = type(obj)
    if obj is None or cls in _PLAIN:
        return True
    if cls is tuple:
        if depth >= 4:
            return False
        for o in obj:
            if not _unchanging(o, depth + 1):
                return False
        return True
    return False


_PLAIN = frozenset({int, float, complex, str, bytes, bool, type(Ellipsis), type(NotImplemented)})


def _code_names(code):
    """Names a code object, with those nested in it, may look up as globals."""
    names = set(code.co_names)
    for const in code.co_consts:
        if type(const) is type(code):
            names |= _code_names(const)
    return names


def importable(obj):
    """(module, qualified name) if the object is found under its name, else None."""
    import sys
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None)
    if type(module) is not str or type(name) is not str or module in ("__main__", "__mp_main__"):
        return None
    by_value = _by_value_modules()
    if by_value:
        parent = module
        while parent:
            if parent in by_value:
                return None
            parent = parent.rpartition(".")[0]
    found = sys.modules.get(module)
    if found is None:
        return None
    for part in name.split("."):
        if part == "<locals>":
            return None
        try:
            found = getattr(found, part)
        except AttributeError:
            return None
    return (module, name) if found is obj else None


cdef bint _look(fn, bint root, list sources, set seen) except -1:
    """Note what fn's pickle is made from; False if that may change unseen."""
    cdef _Source source = _Source.__new__(_Source)
    seen.add(_address(fn))
    if fn.__kwdefaults__ is not None or fn.__dict__ or not _unchanging(fn.__defaults__):
        return False
    source.fn = None if root else fn
    source.code = fn.__code__
    source.defaults = fn.__defaults__
    if fn.__closure__ is not None:
        try:
            source.cells = tuple([cell.cell_contents for cell in fn.__closure__])
        except ValueError:
            return False    # a cell without a value yet
    namespace = fn.__globals__
    source.names = tuple(_code_names(fn.__code__))
    source.values = tuple([namespace.get(name, _EMPTY) for name in source.names])
    sources.append(source)
    for value in (source.cells or ()) + source.values:
        if value is _EMPTY or _unchanging(value) or _address(value) in seen:
            continue
        if PyModule_Check(value):
            if getattr(value, "__spec__", None) is None:
                return False
        elif PyFunction_Check(value):
            if importable(value) is None and not _look(value, False, sources, seen):
                return False
        elif not PyCFunction_Check(value) and not (
            type(value) is type and importable(value) is not None
        ):
            return False
    return True


_EMPTY = object()


# ---- pools ------------------------------------------------------------------------------------

cdef class PoolCore:
    """The C half of a pool: the queue's handle, and the functions it has sent."""
    cdef si_pool *pool
    cdef Context context
    cdef object future_type, empty
    cdef PyObject *last_fn              # the function sent last; held by by_name
    cdef FunctionRef last_ref
    cdef dict by_name                   # function -> FunctionRef
    cdef dict by_value                  # id(function) -> _ByValue
    cdef _PoolHandle forwarder          # while the notifier writes its output
    cdef bint owner                     # made here, not received
    cdef bint user                      # stands for a single interpreter, and keeps it
    cdef object __weakref__

    def __dealloc__(self):
        if self.pool != NULL:
            self._drop_user()
            # Forgotten without a shutdown: what is queued is still run.
            if self.owner:
                si_pool_close(self.pool, False, False)
            si_pool_release(self.pool)

    def __del__(self):
        self._stop_forwarding()

    cdef int _start_forwarding(self) except -1:
        """Have the notifier write what tasks print, as soon as it comes."""
        cdef _Notifier notifier = _notifier(self.context)
        cdef _PoolHandle handle = _PoolHandle.__new__(_PoolHandle)
        si_pool_retain(self.pool)
        handle.pool = self.pool
        si_cq_retain(notifier.cq)
        self.pool.out_cq = notifier.cq
        notifier.forwarding.add(handle)
        notifier.outstanding += 1
        self.forwarder = handle
        notifier.ensure()
        return 0

    cdef int _stop_forwarding(self) except -1:
        cdef _Notifier notifier
        if self.forwarder is not None:
            notifier = self.context.notifier
            if notifier is not None and self.forwarder in notifier.forwarding:
                notifier.forwarding.remove(self.forwarder)
                notifier.outstanding -= 1
            _drain_output(self.forwarder.pool, self.context)
            self.forwarder = None
        return 0

    cdef int _adopt(self, si_pool *pool) except -1:
        from subinterp.pool import Future
        self.pool = pool
        self.context = _context
        self.future_type = Future
        self.empty = ()
        self.by_name = {}
        self.by_value = {}
        return 0

    def _open(self, int max_workers, int64_t max_tasks, str name, str key, dict boot, initializer,
              initargs):
        """Make the C pool. Called once by the constructor."""
        cdef si_pool *pool
        if self.pool != NULL:
            raise RuntimeError("the pool was initialised already")
        cdef int threads = boot["threads"]
        encoded = name.encode("utf-8", "replace")
        encoded_key = key.encode("utf-8", "backslashreplace")
        pool = si_pool_new((<Context>_context).cx, max_workers * threads, threads, max_tasks,
                           encoded, encoded_key)
        if pool == NULL:
            raise MemoryError
        try:
            pool.allow_threads = boot["allow_threads"]
            pool.allow_daemon_threads = boot["allow_daemon_threads"]
            pool.forward_output = boot["streams"]["forwards"]
            _encode_value((<Context>_context).cx, &pool.boot, boot, "call")
            if initializer is not None:
                try:
                    _encode_general((<Context>_context).cx, &pool.initializer, (initializer, initargs), "call")
                except Exception as exc:
                    from subinterp import _pickling
                    raise _pickling.explain_call(initializer, initargs, {}, exc,
                                                 "initializer", "initargs") from exc
        except BaseException:
            si_pool_release(pool)
            raise
        self._adopt(pool)
        self.owner = True
        if pool.forward_output or boot["logging"] is not None:
            self._start_forwarding()

    # ---- encoding -----------------------------------------------------------

    cdef FunctionRef _function(self, fn):
        """The function's encoded form, or None if it must travel with its arguments."""
        cdef FunctionRef ref
        if <PyObject *>fn == self.last_fn:
            return self.last_ref
        if not (PyFunction_Check(fn) or PyCFunction_Check(fn) or type(fn) is type):
            return None
        found = self.by_name.get(fn)
        if found is not None:
            ref = found
        else:
            names = importable(fn)
            if names is None:
                return self._by_value(fn) if PyFunction_Check(fn) else None
            ref = _named_ref(names)
            if len(self.by_name) >= 512:
                self._forget_names()
            self.by_name[fn] = ref
        self.last_fn = <PyObject *>fn
        self.last_ref = ref
        return ref

    cdef int _forget_names(self) except -1:
        self.last_fn = NULL
        self.last_ref = None
        self.by_name.clear()
        return 0

    cdef FunctionRef _by_value(self, fn):
        cdef _ByValue known = self.by_value.get(_address(fn))
        cdef si_msg msg
        cdef list sources
        if known is not None:
            if known.ref() is not fn:
                known = None
            elif known.sources is not None and _all_hold(known.sources, fn):
                return known.function
        sources = []
        if not _look(fn, True, sources, set()):
            sources = None
        si_msg_init(&msg)
        try:
            _encode_general(self.context.cx, &msg, fn, "call")
            if msg.n_parts:
                # It carries handles, which must not outlive the call.
                return None
            if known is None:
                if len(self.by_value) >= 512:
                    self.by_value.clear()
                known = _ByValue.__new__(_ByValue)
                known.ref = PyWeakref_NewRef(fn, _Forget(self.by_value, _address(fn)))
                self.by_value[_address(fn)] = known
            if known.function is None or not _same_bytes(&msg, known.function.f):
                known.function = _function_ref(&msg, False)
            known.sources = sources
            return known.function
        finally:
            si_msg_clear(&msg)

    cdef int _encode_call(self, si_task *t, fn, tuple args, dict kwargs) except -1:
        cdef FunctionRef ref
        cdef si_ret st
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        try:
            ref = self._function(fn)
            if ref is None:
                t.kind = SI_CALL_PICKLED
                _encode_general(self.context.cx, &t.msg, (fn, args, kwargs or None), "call")
                return 0
            t.kind = SI_CALL
            si_function_retain(ref.f)
            t.function = ref.f
            st = _encode_args(&t.msg, args, kwargs)
            if st == SI_OK:
                return 0
            si_msg_cut(&t.msg, 0, 0)
            if st == SI_NOMEM:
                raise MemoryError
            _encode_general(self.context.cx, &t.msg, (args, kwargs or None), "call")
            return 0
        except Exception as exc:
            from subinterp import _pickling
            raise _pickling.explain_call(fn, args, kwargs, exc) from exc

    cdef FutureCore _new_future(self, si_task *t):
        cdef FutureCore fut = si_new_instance(self.future_type, self.empty)
        si_pool_retain(self.pool)
        fut.pool = self.pool
        fut.context = self.context
        fut.task = t
        return fut

    cdef int _refused(self, si_ret st) except -1:
        """The exception for a push that failed."""
        cdef char *reason
        if st == SI_BROKEN:
            reason = si_pool_reason(self.pool)
            text = <bytes>reason if reason != NULL else b"the pool is broken"
            free(reason)
            raise _broken(self.pool, text)
        _check(st)
        return 0

    cdef int _need_pool(self) except -1:
        if self.pool == NULL:
            raise RuntimeError("the pool was not initialised: call super().__init__() first")
        return 0

    cdef int _not_from_within(self, str what) except -1:
        """A worker that waited for itself would wait for ever."""
        cdef si_worker *me = si_worker_self()
        if me != NULL and me.pool == self.pool:
            raise RuntimeError(f"a task cannot {what} the pool that runs it")
        return 0

    # ---- the executor's interface ----------------------------------------------

    def submit(self, fn, /, *args, **kwargs):
        """Schedule ``fn(*args, **kwargs)`` on a worker.

        Parameters
        ----------
        fn : callable
            Importable functions travel by name; lambdas, closures and what
            `__main__` defines by value.
        *args, **kwargs
            Anything that pickle or cloudpickle can encode. Buffers are copied
            once; channel ends, `SharedBuffer` and pools are passed on.

        Returns
        -------
        Future
            A `concurrent.futures.Future`.

        Raises
        ------
        NotSendableError
            If an argument cannot be sent; names it and its path.
        BrokenInterpreterPool
            If the pool is broken.
        RuntimeError
            If the pool was shut down.

        Notes
        -----
        Does not block. Arguments are encoded now: changing them afterwards
        has no effect on the task.
        """
        return self._submit(fn, args, kwargs, 0)

    def schedule(self, fn, args=(), kwargs=None, *, timeout=None):
        """Schedule ``fn(*args, **kwargs)`` on a worker, with a limit to its running time.

        Parameters
        ----------
        fn : callable
            As for `submit`.
        args : iterable
            Positional arguments.
        kwargs : mapping, optional
            Keyword arguments.
        timeout : float, optional
            Seconds that the call may run, from when a worker begins it. Then it
            is interrupted, as by `Future.interrupt`. None: no limit.

        Returns
        -------
        Future
            Ends with `TaskTimeout`, a `TimeoutError`, if the time was over; if the
            task did not stop even so, with one that is a `TaskAbandoned` as well.

        Raises
        ------
        TypeError
            If `args` is not iterable, `kwargs` is not a mapping, or `timeout` is not a
            number.
        ValueError
            If `timeout` is not greater than 0.
        NotSendableError, BrokenInterpreterPool, RuntimeError
            As `submit`.

        Notes
        -----
        Does not block. The time in the queue does not count.
        """
        cdef double seconds
        cdef int64_t limit = 0
        if check_timeout(timeout) is not None:
            seconds = timeout
            if isnan(seconds) or seconds <= 0:
                raise ValueError(f"timeout must be greater than 0 seconds, not {timeout!r}")
            if seconds < 9e9:
                limit = max(<int64_t>(seconds * 1e9), 1)
        try:
            args = iter(args)
        except TypeError:
            raise TypeError(
                f"args must be an iterable of positional arguments, not {type(args).__name__}"
            ) from None
        if not (kwargs is None or hasattr(kwargs, "keys")):
            raise TypeError(f"kwargs must be a mapping or None, not {type(kwargs).__name__}")
        return self._submit(fn, tuple(args), {} if kwargs is None else dict(kwargs), limit)

    def _run(self, LoopPort port not None, waiter, fn, tuple args, dict kwargs):
        """Submit, and have an event loop told of the end."""
        return self._submit(fn, args, kwargs, 0, port, waiter)

    cdef FutureCore _submit(self, fn, tuple args, dict kwargs, int64_t limit, LoopPort port=None,
                            waiter=None):
        cdef si_task *t
        cdef FutureCore fut
        cdef si_ret st
        self._need_pool()
        t = si_task_new()
        if t == NULL:
            raise MemoryError
        t.limit_ns = limit
        try:
            self._encode_call(t, fn, args, kwargs)
        except BaseException:
            si_task_free(t)
            raise
        fut = self._new_future(t)
        if port is not None:
            fut._tell(port, waiter)
        si_store_refs(t, 2)
        st = si_pool_push(self.pool, t)
        if st != SI_OK:
            si_store_refs(t, 1)
            if port is not None:
                fut._unobserve()
            self._refused(st)
        return fut

    # ---- single interpreters ------------------------------------------------------

    def _stand_alone(self, int64_t interp_id):
        """From now on this is the pool of one interpreter that is used by itself."""
        self.pool.users = 1
        self.user = True
        self.owner = False
        # Last: from now on others find it.
        self.pool.single = interp_id

    cdef void _drop_user(self) noexcept:
        if self.user:
            self.user = False
            if si_pool_drop_user(self.pool) and self.pool.generation == si_generation():
                _forget_single(self.pool)

    def _let_go(self):
        """The object that keeps the interpreter is gone, or its own interpreter ends."""
        self._drop_user()

    def _claim(self, int how):
        """Take the interpreter, to run something or to close it: 0: done; else who has it."""
        return <int>si_pool_claim(self.pool, <si_claim>how)

    def _unclaim(self):
        si_pool_unclaim(self.pool)

    @property
    def _claimed(self):
        return <int>si_pool_claimed(self.pool)

    @property
    def _forked(self):
        return self.pool.generation != si_generation()

    def _set_stopping(self, double grace, int max_abandoned):
        """Part of the constructor: what becomes of tasks that do not stop."""
        self.pool.grace = <int64_t>(grace * 1e9)
        self.pool.max_left = max_abandoned

    def broadcast(self, fn, /, *args, **kwargs):
        """Call ``fn(*args, **kwargs)`` once in every worker.

        Workers that do not exist yet are started. A busy worker answers when
        its task is done.

        Parameters
        ----------
        fn : callable
            As for `submit`.
        *args, **kwargs
            As for `submit`; each worker gets a copy of its own.

        Returns
        -------
        list
            One result a worker, in no particular order.

        Raises
        ------
        BaseException
            The first exception that a call raised, after all are complete;
            otherwise as `submit`.
        RuntimeError
            If this is a worker of the same pool, or the pool was shut down.

        Notes
        -----
        Blocks until every worker has answered, the lock released.
        """
        cdef int n = 0, i, wanted
        cdef si_task **tasks
        cdef si_ret st
        cdef FutureCore fut
        cdef list futures = []
        self._need_pool()
        self._not_from_within("broadcast to")
        wanted = self.pool.max_workers
        tasks = <si_task **>calloc(<size_t>wanted, sizeof(si_task *))
        if tasks == NULL:
            raise MemoryError
        try:
            for i in range(wanted):
                tasks[i] = si_task_new()
                if tasks[i] == NULL:
                    raise MemoryError
                fut = self._new_future(tasks[i])
                futures.append(fut)
                self._encode_call(tasks[i], fn, args, kwargs)
            for i in range(wanted):
                si_store_refs(tasks[i], 2)
            st = si_pool_broadcast(self.pool, tasks, wanted, &n)
            for i in range(n, wanted):
                si_store_refs(tasks[i], 1)
            del futures[n:]
            if st != SI_OK:
                self._refused(st)
        finally:
            free(tasks)
        try:
            for fut in futures:
                fut._await(None)
        except BaseException as exc:
            if _is_stop(exc):
                for fut in futures:
                    fut.interrupt()
            raise
        results = []
        failure = None
        for fut in futures:
            try:
                error = fut.exception()
            except Exception as exc:        # cancelled, or not to be decoded
                error = exc
            if error is None:
                results.append(fut.value)
            elif failure is None:
                failure = error
        if failure is not None:
            try:
                raise failure
            finally:
                failure = error = None
        return results

    def _map(self, fn, iterables, timeout, chunksize, buffersize, bint star, bint unordered,
             LoopPort port=None):
        """The iterator behind map, imap_unordered, starmap and amap."""
        cdef MapIterator it
        self._need_pool()
        it = MapIterator.__new__(MapIterator)
        it.port = port
        it._begin(self, fn, iterables, timeout, chunksize, buffersize, star, unordered)
        return it

    def _call_worker(self, str name, tuple args):
        """Run a function of subinterp._worker; returns a future."""
        cdef si_task *t = si_task_new()
        cdef FutureCore fut
        cdef si_ret st
        if t == NULL:
            raise MemoryError
        fut = self._new_future(t)
        t.kind = SI_WORKER_CALL
        try:
            _encode_value(self.context.cx, &t.msg, (name, args), "call")
        except Exception as exc:
            from subinterp import _pickling
            raise _pickling.explain(args, "args", exc) from exc
        si_store_refs(t, 2)
        st = si_pool_push(self.pool, t)
        if st != SI_OK:
            si_store_refs(t, 1)
            self._refused(st)
        return fut

    def _resize(self, int max_workers):
        cdef si_ret st
        self._need_pool()
        st = si_pool_resize(self.pool, max_workers * self.pool.per_home)
        if st != SI_OK:
            if st == SI_SHUTDOWN:
                raise RuntimeError("cannot resize a pool after shutdown")
            self._refused(st)

    def _terminate(self, int64_t grace):
        """Cancel what is queued and interrupt what runs; -1: with the pool's own grace."""
        if self.pool == NULL or self.pool.generation != si_generation():
            return
        self.context.feed_maps(self, True)
        self._stop_all(grace)

    def _close(self, bint cancel, bint give_up):
        if self.pool == NULL:
            return
        try:
            self.context.feed_maps(self, cancel)
        except BaseException as exc:
            if _is_stop(exc):
                self._stop_all(-1)
            raise
        finally:
            # Also if an input raised, or Ctrl-C came meanwhile.
            si_pool_close(self.pool, cancel, give_up)
            self._forget_names()
            self.by_value.clear()

    def _join(self, timeout=None):
        """Wait until all workers have ended; False: the timeout passed."""
        cdef int64_t deadline = _deadline(timeout)
        cdef si_ret st
        if self.pool == NULL:
            return True
        self._not_from_within("wait for the end of")
        while True:
            with nogil:
                st = si_pool_join(self.pool, deadline)
            _drain_output(self.pool, self.context)
            if st == SI_OK or st == SI_FORKED:
                self._stop_forwarding()
                return True
            if st == SI_TIMEOUT:
                return False
            try:
                _look_around()
            except BaseException as exc:
                if _is_stop(exc):
                    self._stop_all(-1)
                raise

    cdef int _stop_all(self, int64_t grace) except -1:
        """End without waiting: cancel what is queued, interrupt what runs."""
        si_pool_close(self.pool, True, True)
        with nogil:
            si_stop_all(self.pool, grace)
        return 0

    # ---- observing ------------------------------------------------------------

    def _look(self):
        """(tasks queued, counts of workers that are gone, a tuple for each worker)."""
        cdef int64_t gone[128]              # SI_N_COUNTS, and some
        cdef uint32_t n_queued = 0
        cdef int n, i, room
        cdef si_worker_view *views
        cdef list workers = []
        self._need_pool()
        if self.pool.generation != si_generation():
            return 0, [0] * SI_N_COUNTS, workers   # in the child of a fork
        room = self.pool.n_workers + 8
        while True:
            views = <si_worker_view *>malloc(<size_t>room * sizeof(si_worker_view))
            if views == NULL:
                raise MemoryError
            with nogil:
                n = si_pool_look(self.pool, views, room, gone, &n_queued)
            if n <= room:
                break
            free(views)
            room = n + 8
        for i in range(n - 1, -1, -1):
            workers.append((
                views[i].index, _state_name(views[i].state), views[i].thread_id,
                None if views[i].interp_id < 0 else views[i].interp_id,
                None if views[i].memory < 0 else views[i].memory, views[i].since,
                [views[i].count[j] for j in range(SI_N_COUNTS)],
            ))
        free(views)
        return n_queued, [gone[j] for j in range(SI_N_COUNTS)], workers

    def _worker_threads(self):
        """(index, state, native thread, ns in this state or -1) of each worker."""
        cdef int n, i, room
        cdef si_worker_thread *threads
        self._need_pool()
        if self.pool.generation != si_generation():
            return []
        room = self.pool.n_workers + 64
        while True:
            threads = <si_worker_thread *>malloc(<size_t>room * sizeof(si_worker_thread))
            if threads == NULL:
                raise MemoryError
            with nogil:
                n = si_workers_of(self.pool, threads, room)
            if n <= room:
                break
            free(threads)
            room = n + 64
        found = [
            (threads[i].index, _state_name(threads[i].state), threads[i].thread_id,
             threads[i].since)
            for i in range(n - 1, -1, -1)
        ]
        free(threads)
        return found

    def _dump_worker(self, int64_t thread_id, int signum, double seconds):
        """Have a worker's stack written: between dump_begin and dump_end.

        Returns "" once it is there, or why it is not.
        """
        cdef int number
        cdef bint sent
        cdef si_ret st = SI_TIMEOUT
        cdef int64_t deadline = si_now() + <int64_t>(seconds * 1e9)
        with nogil:
            number = si_dump_ask()
            sent = si_worker_signal(self.pool, thread_id, signum, number)
            if sent:
                st = si_dump_wait(deadline)
        if not sent:
            return "it is ending"
        return "" if st == SI_OK else "no answer: the thread blocks signals, or hangs in the kernel"

    def _trace(self, size_t max_tasks):
        """Begin a trace."""
        cdef TraceCore trace = TraceCore.__new__(TraceCore)
        self._need_pool()
        if self.pool.generation != si_generation():
            _check(SI_FORKED)
        trace.trace = si_trace_new(max_tasks)
        if trace.trace == NULL:
            raise MemoryError
        if not si_pool_trace(self.pool, trace.trace):
            raise RuntimeError("the pool is being traced already: stop that trace first")
        si_pool_retain(self.pool)
        trace.pool = self.pool
        trace.begun = trace.trace.begun
        return trace

    @property
    def _name(self):
        return (<bytes>self.pool.name).decode("utf-8", "replace") if self.pool != NULL else ""

    @property
    def _id(self):
        return self.pool.id if self.pool != NULL else 0

    @property
    def _max_workers(self):
        return self.pool.max_workers // self.pool.per_home if self.pool != NULL else 0

    @property
    def _threads(self):
        return self.pool.per_home if self.pool != NULL else 1

    @property
    def _n_workers(self):
        return self.pool.n_workers if self.pool != NULL else 0

    @property
    def _broken(self):
        return self.pool != NULL and (
            si_pool_is_broken(self.pool) or self.pool.generation != si_generation()
        )

    @property
    def _is_closing(self):
        return self.pool != NULL and si_pool_is_closing(self.pool)

    def __reduce__(self):
        return _pool_by_id, (_process_token(), self._id)


cdef object _state_name(uint32_t state):
    if state == SI_W_STARTING or state == SI_W_PREPARING:
        return "starting"
    if state == SI_W_IDLE:
        return "idle"
    if state == SI_W_RUNNING:
        return "running"
    if state == SI_W_FINISHING or state == SI_W_ENDING:
        return "ending"
    if state == SI_W_ABANDONED or state == SI_W_JAILED:
        return "abandoned"
    return "ended"


cdef class TraceCore:
    """A trace of one pool, until it is stopped; then what is in it."""
    cdef si_trace *trace
    cdef si_pool *pool
    cdef si_trace_segment *at
    cdef readonly int64_t begun, ended  # ns

    def __dealloc__(self):
        self._end()
        if self.trace != NULL:
            si_trace_release(self.trace)

    cdef void _end(self) noexcept:
        if self.pool != NULL:
            if self.pool.generation == si_generation():
                si_pool_untrace(self.pool, self.trace)
            si_pool_release(self.pool)
            self.pool = NULL

    def stop(self):
        """End it; returns how many tasks found no room. None: it belongs to a forked parent."""
        if self.pool == NULL or self.pool.generation != si_generation():
            return None
        self.ended = si_now()
        self._end()
        self.at = si_trace_segments(self.trace)
        return self.trace.n_dropped

    def read(self):
        """The next part: (native thread, index of the worker, list of tasks); None: no more.

        A task is (name, kind, ns of the push or 0, thread that pushed it, ns of
        its beginning, of its end or 0, calls in it, calls that raised).
        """
        cdef si_trace_segment *s = self.at
        cdef si_trace_record *r
        cdef uint32_t i
        cdef int64_t end
        cdef list tasks = []
        if s == NULL:
            return None
        self.at = s.next
        for i in range(si_trace_count(s)):
            r = &s.record[i]
            end = si_trace_end_of(r)
            tasks.append((
                (<bytes>si_trace_name_of(r)).decode("utf-8", "replace"), r.kind,
                r.pushed, r.pushed_by, r.begin, end,
                r.n_items, r.n_failed if end else 0,
            ))
        return s.thread_id, s.index, tasks


def meter_layout():
    """Where the counts of `_look` are, by name, and how many buckets there are."""
    return {
        "done": SI_N_DONE, "failed": SI_N_FAILED, "in": SI_N_IN, "out": SI_N_OUT,
        "busy": SI_N_BUSY, "idle": SI_N_IDLE, "run": SI_N_RUN, "wait": SI_N_WAIT,
        "buckets": SI_BUCKETS,
    }


def dump_signal():
    """The number of a signal that nobody uses, for dumps; -1: there is none."""
    return si_dump_signal()


def dump_begin(int signum):
    """After faulthandler has installed its handler. False: it is not there."""
    return si_dump_begin(signum) == SI_OK


def dump_end():
    """Nothing is written from here on."""
    with nogil:
        si_dump_end()


def _pool_by_id(token, uint64_t id):
    """The pool a plain pickle names, if this process still has it."""
    cdef si_pool *p = si_pool_find(id) if token == _process_token() else NULL
    if p == NULL:
        raise RuntimeError("the pool is gone, or belongs to another process")
    from subinterp.pool import InterpreterPool
    cdef PoolCore core = PoolCore.__new__(InterpreterPool)
    core._adopt(p)
    return core


cdef void _forget_single(si_pool *p) noexcept:
    """Nobody uses the interpreter any more. It ends by itself, but its messages are
    unbound now, so that who has forgotten it finds them so."""
    if si_pool_claim(p, SI_CLAIM_CLOSED) == SI_CLAIM_FREE:
        si_channels_unbind(p.single)
    si_pool_close(p, False, False)


def pool_of_interpreter(int64_t interp_id):
    """The pool of a single interpreter; None: there is no such one."""
    # An interpreter does not keep itself.
    user = interp_id != (<Context>_context).cx.interp_id
    cdef si_pool *p = si_pool_of_single(interp_id, user)
    if p == NULL:
        return None
    from subinterp.pool import InterpreterPool
    cdef PoolCore core
    try:
        core = PoolCore.__new__(InterpreterPool)
        core._adopt(p)
    except BaseException:
        if user and si_pool_drop_user(p):
            _forget_single(p)
        si_pool_release(p)
        raise
    core.user = user
    return core


def close_pools_of_this_interpreter():
    """At the end of an interpreter: no new tasks, wait for those there are."""
    cdef uint64_t ids[1024]
    cdef size_t n, i
    cdef si_pool *p
    cdef bint single
    cdef Context context = _context
    import sys
    interpreters = sys.modules.get("subinterp.interpreters")
    try:
        if interpreters is not None and hasattr(interpreters, "let_go"):
            interpreters.let_go()
        context.feed_maps(None, False)
        # Tasks of pools may use single interpreters to the last.
        for single in (False, True):
            n = min(si_pools_of(context.cx.interp_id, ids, 1024), <size_t>1024)
            for i in range(n):
                p = si_pool_find(ids[i])
                if p == NULL:
                    continue
                try:
                    if (p.single >= 0) == single:
                        _end_pool(p, context)
                finally:
                    si_pool_release(p)
    except BaseException as exc:
        if _is_stop(exc):
            n = min(si_pools_of(context.cx.interp_id, ids, 1024), <size_t>1024)
            for i in range(n):
                p = si_pool_find(ids[i])
                if p != NULL:
                    si_pool_close(p, True, True)
                    with nogil:
                        si_stop_all(p, -1)
                    si_pool_release(p)
        raise
    finally:
        if context.notifier is not None:
            context.notifier.stop()


cdef int _end_pool(si_pool *p, Context context) except -1:
    cdef si_ret st = SI_INTR
    si_pool_close(p, False, False)
    if si_pool_given_up(p):
        return 0
    while st == SI_INTR:
        with nogil:
            st = si_pool_join(p, SI_FOREVER)
        _drain_output(p, context)
        _look_around()
    return 0


def stop_notifier():
    """At the end of a worker's interpreter, which a thread of ours must not hold up."""
    cdef Context context = _context
    if context.notifier is not None:
        context.notifier.stop()


def after_fork_in_child():
    """Forget the parent's notifier and ledger."""
    (<Context>_context).renew()


cdef FunctionRef _named_ref(tuple names):
    cdef si_msg msg
    si_msg_init(&msg)
    data = "\0".join((*names, "")).encode()
    if not si_put(&msg, <char *>data, len(data)):
        raise MemoryError
    return _function_ref(&msg, True)


cdef bint _all_hold(list sources, fn) except -1:
    for source in sources:
        if not (<_Source>source).holds(fn):
            return False
    return True


cdef class _Forget:
    """Drops a collected function from the cache it was in."""
    cdef dict cache
    cdef object key

    def __init__(self, dict cache, key):
        self.cache = cache
        self.key = key

    def __call__(self, ref):
        cdef _ByValue known = self.cache.get(self.key)
        if known is not None and known.ref is ref:
            del self.cache[self.key]


cdef bint _same_bytes(si_msg *msg, si_function *f):
    return (
        f.msg.n_parts == 0 and f.msg.len == msg.len
        and memcmp(f.msg.data, msg.data, msg.len) == 0
    )


cdef si_ret _encode_args(si_msg *m, tuple args, dict kwargs):
    """The fast form of a call's arguments."""
    cdef si_encoder e
    cdef si_ret st
    cdef Py_ssize_t i, n = PyTuple_GET_SIZE(args), pos = 0
    cdef PyObject *key
    cdef PyObject *value
    si_encoder_init(&e)
    if not si_put_u32(m, <uint32_t>n) or not si_put_u32(m, <uint32_t>len(kwargs)):
        return SI_NOMEM
    for i in range(n):
        st = si_encode(&e, m, PyTuple_GET_ITEM(args, i))
        if st != SI_OK:
            return st
    if kwargs:
        while PyDict_Next(kwargs, &pos, &key, &value):
            st = si_encode(&e, m, key)
            if st == SI_OK:
                st = si_encode(&e, m, value)
            if st != SI_OK:
                return st
    m.format = SI_FMT_FAST
    return SI_OK


# ---- map ------------------------------------------------------------------------------------------

# A chunk should keep a worker busy for about this long, hold no more than this
# many bytes, and no more than this share of the input.
cdef enum:
    CHUNK_NS = 1500000
    CHUNK_ITEMS = 32768
    CHUNK_BYTES = 1 << 20
    FLIGHT_BYTES = 32 << 20
    FLIGHT_ITEMS = 256      # single items in flight while their cost is unknown
    REST_ITEMS = 10000000   # input that a pool still takes at its end
    FIRST_LOOK_NS = 200000  # how long map() itself waits to learn the cost


cdef class MapIterator:
    """Results of a function over the items of iterables, chunk by chunk.

    A chunk is one task. The input is read only as far as the bound on what is
    in flight allows, so that an endless one works and a long one needs no
    memory. How many items make a chunk is learned: from the time that the
    function took per item in earlier chunks (also of earlier maps).
    """
    cdef PoolCore owner
    cdef FunctionRef function
    cdef object fn
    cdef list inputs            # iterators
    cdef int64_t deadline
    cdef Py_ssize_t chunksize   # 0: chosen
    cdef Py_ssize_t buffersize  # 0: chosen
    cdef Py_ssize_t length      # of the input if known, else -1
    cdef Py_ssize_t n_read
    cdef Py_ssize_t pickled_items   # how many a pickled chunk may hold: their size shows afterwards
    cdef bint star, unordered, exhausted, closed, started, learned
    cdef bint busy              # a thread is in __next__
    cdef bint reading           # ... and reads the input
    # chunks in flight, oldest first: a ring
    cdef si_task **ring
    cdef Py_ssize_t ring_size, ring_head, ring_len
    cdef Py_ssize_t items_in_flight
    cdef size_t bytes_in_flight
    cdef si_cq *cq              # unordered: where complete chunks come out
    # read by a coroutine: how its loop is told of chunks, and the waiter to tell
    cdef LoopPort port
    cdef object told
    # the chunk that is being read
    cdef si_task *current
    cdef si_reader reader
    cdef Py_ssize_t left        # items of it not yet given out
    cdef list group
    cdef Py_ssize_t group_at
    cdef object __weakref__

    def __dealloc__(self):
        if self.current != NULL:
            si_task_release(self.current)
        while self.ring_len:
            si_task_release(self._pop_ring())
        free(self.ring)
        if self.cq != NULL:
            si_cq_close(self.cq)
            si_cq_release(self.cq)

    def __del__(self):
        # Never read: the calls are made all the same, as by an eager map.
        if self.inputs is None or self.function is None:
            return      # its construction failed
        if not self.started and not self.closed and self.port is None:
            try:
                self._feed_rest(False)
            except KeyboardInterrupt:
                # What a finalizer raises is lost: Ctrl-C comes again, outside of it.
                if not si_is_main_thread():
                    raise
                PyErr_SetInterrupt()
        else:
            self._stop(False)

    def __iter__(self):
        return self

    cdef int _begin(self, PoolCore owner, fn, iterables, timeout, chunksize, buffersize,
                    bint star, bint unordered) except -1:
        cdef Py_ssize_t n
        if not callable(fn):
            raise TypeError(f"fn must be callable, not {type(fn).__name__}")
        self.owner = owner
        self.fn = fn
        self.deadline = _deadline(timeout)
        self.chunksize = chunksize or 0
        self.pickled_items = 1
        self.buffersize = buffersize or 0
        self.star = star
        self.unordered = unordered
        self.inputs = [iter(i) for i in iterables]
        if not self.inputs:
            self.exhausted = True
        self.length = -1
        for source in iterables:
            n = _known_length(source)
            if n < 0:
                self.length = -1
                break
            self.length = n if self.length < 0 else min(self.length, n)
        if len(self.inputs) >= SI_ARITY_STAR:
            raise ValueError(f"map takes at most {SI_ARITY_STAR - 1} iterables")
        if unordered:
            self.cq = si_cq_new()
            if self.cq == NULL:
                raise MemoryError
        try:
            self.function = owner._function(fn)
        except Exception as exc:
            from subinterp import _pickling
            raise _pickling.explain(fn, "fn", exc) from exc
        if self.function is None:
            self.function = self._one_map_function()
        maps = owner.context.maps
        maps[_address(self)] = PyWeakref_NewRef(self, _ForgetMap(maps, _address(self)))
        self._fill()
        if not self.exhausted and not self.chunksize and not self._cost():
            self._first_look()
            self._fill()
        return 0

    cdef FunctionRef _one_map_function(self):
        """Encode a callable that cannot be remembered, once for this map."""
        cdef si_msg msg
        si_msg_init(&msg)
        try:
            _encode_general(self.owner.context.cx, &msg, self.fn, "call")
            return _function_ref(&msg, False)
        except Exception as exc:
            from subinterp import _pickling
            raise _pickling.explain(self.fn, "fn", exc) from exc
        finally:
            si_msg_clear(&msg)

    cdef int64_t _cost(self):
        return si_load_cost(self.function.f)

    cdef int _first_look(self) except -1:
        """Give the first chunk a moment: a fast function is worth long chunks."""
        cdef si_task *t
        cdef int64_t until
        cdef si_ret st
        if self.unordered or self.ring_len == 0 or self.owner.pool.n_workers == 0:
            return 0
        if self.port is not None:
            return 0    # an event loop does not wait
        t = self.ring[self.ring_head]
        until = min(si_now() + FIRST_LOOK_NS, self.deadline)
        with nogil:
            st = si_task_wait(t, until, NULL)
        if st == SI_INTR:
            _look_around()
        if st == SI_OK:
            self._learn(t)
        return 0

    cdef void _learn(self, si_task *t) noexcept:
        cdef int64_t known = self._cost(), one
        if t.n_items == 0 or (si_task_word(t) & SI_STATE_MASK) != SI_DONE:
            return
        one = t.run_ns // <int64_t>t.n_items + 1
        si_store_cost(self.function.f, one if not known else (known + one) // 2)

    # ---- input ------------------------------------------------------------------

    cdef Py_ssize_t _chunk_items(self):
        """How many items the next chunk should have."""
        cdef int64_t cost, n
        cdef Py_ssize_t share, workers = self.owner.pool.max_workers
        if self.chunksize:
            n = self.chunksize
        else:
            cost = self._cost()
            n = 1 if cost == 0 else min(max(CHUNK_NS // cost, 1), CHUNK_ITEMS)
            if self.length >= 0:
                # Towards the end smaller, so that all workers end together.
                share = (self.length - self.n_read) // (4 * workers)
                n = max(min(n, share), min(n, 64), 1)
            if self.buffersize:
                n = min(n, max(self.buffersize // (2 * workers), 1))
        if self.buffersize:
            n = min(n, self.buffersize - self.items_in_flight)
        return <Py_ssize_t>n

    cdef bint _room(self, Py_ssize_t items):
        cdef Py_ssize_t chunks
        if self.buffersize:
            return self.items_in_flight < self.buffersize
        # Large or not: one for each worker, and one that is ready.
        if self.bytes_in_flight >= FLIGHT_BYTES and self.ring_len > self.owner.pool.max_workers:
            return False
        chunks = 2 * self.owner.pool.max_workers + 2
        return self.ring_len < chunks or self.items_in_flight < FLIGHT_ITEMS

    cdef int _fill(self) except -1:
        cdef Py_ssize_t n
        while not self.exhausted and not self.closed:
            n = self._chunk_items()
            if n < 1 or not self._room(n):
                break
            self._send_chunk(n)
            if (
                not self.started and not self.learned and not self.chunksize
                and not self._cost() and self.ring_len >= 2 * self.owner.pool.max_workers
            ):
                # Once: before more single items go, see what one costs.
                self.learned = True
                break
        return 0

    cdef int _send_chunk(self, Py_ssize_t wanted) except -1:
        """Read up to `wanted` items and push them as one task."""
        cdef si_task *t = si_task_new()
        cdef FutureCore fut = None
        cdef si_ret st
        if t == NULL:
            raise MemoryError
        try:
            t.kind = SI_CHUNK
            t.arity = <unsigned char>(SI_ARITY_STAR if self.star else len(self.inputs))
            si_function_retain(self.function.f)
            t.function = self.function.f
            self.reading = True
            try:
                self._read_items(t, wanted)
            finally:
                self.reading = False
        except BaseException:
            si_task_free(t)
            # The input is not asked again after it raised.
            self.exhausted = True
            raise
        if t.n_items == 0:
            si_task_free(t)
            return 0
        t.weight = si_msg_weight(&t.msg)
        if self.unordered and self.port is None:
            si_task_observe(t, self.cq)
        si_store_refs(t, 2)
        self._push_ring(t)
        try:
            if self.port is not None:
                fut = self._announced(t)
            st = si_pool_push(self.owner.pool, t)
        except BaseException:
            self.exhausted = True
            self.ring_len -= 1
            si_store_refs(t, 1)
            si_task_release(t)
            raise
        if st != SI_OK:
            self.ring_len -= 1
            si_store_refs(t, 1 if fut is None else 2)
            if fut is not None:
                fut._unobserve()
            si_task_release(t)
            self.exhausted = True
            self.owner._refused(st)
        self.items_in_flight += t.n_items
        self.bytes_in_flight += t.weight
        return 0

    cdef int _read_items(self, si_task *t, Py_ssize_t wanted) except -1:
        """Encode items into the task's message: fast while that does."""
        cdef si_encoder e
        cdef si_ret st = SI_OK
        cdef Py_ssize_t i, one, arity = len(self.inputs), n = 0
        cdef PyObject *item
        cdef PyObject *only = NULL
        cdef size_t before
        cdef uint32_t parts_before
        cdef list slow = None
        if arity == 1:
            only = <PyObject *>self.inputs[0]
        t.msg.format = SI_FMT_FAST
        while n < wanted and t.msg.len < CHUNK_BYTES:
            before = t.msg.len
            parts_before = t.msg.n_parts
            if only != NULL and not self.star:
                item = PyIter_Next(only)
                if item == NULL:
                    _raise_if_set()
                    self.exhausted = True
                    break
                si_encoder_init(&e)
                st = si_encode(&e, &t.msg, item)
                if st == SI_OK:
                    Py_DECREF_ptr(item)
                    n += 1
                    if t.msg.n_parts and si_msg_weight(&t.msg) >= CHUNK_BYTES:
                        break
                    continue
                value = <object>item
                Py_DECREF_ptr(item)
            else:
                value = self._next_tuple()
                if value is None:
                    self.exhausted = True
                    break
                si_encoder_init(&e)
                if self.star:
                    st = si_encode(&e, &t.msg, <PyObject *>value)
                else:
                    e.depth = 1
                    for i in range(arity):
                        st = si_encode(&e, &t.msg, PyTuple_GET_ITEM(value, i))
                        if st != SI_OK:
                            break
                if st == SI_OK:
                    n += 1
                    if t.msg.n_parts and si_msg_weight(&t.msg) >= CHUNK_BYTES:
                        break
                    continue
            if st == SI_NOMEM:
                raise MemoryError
            # Not a plain value: the chunk becomes a list, pickled as a whole,
            # so that what its items share is sent once.
            si_msg_cut(&t.msg, before, parts_before)
            slow = self._decode_items(t, n)
            slow.append(value)
            n += 1
            break
        if slow is not None:
            si_msg_clear(&t.msg)
            if not self.chunksize:
                wanted = min(wanted, self.pickled_items)
            while n < wanted:
                value = self._next_item()
                if value is None:
                    self.exhausted = True
                    break
                slow.append(value[0])
                n += 1
                if n >= CHUNK_ITEMS:
                    break
            self._encode_slow(t, slow)
            one = <Py_ssize_t>si_msg_weight(&t.msg) // n + 1
            self.pickled_items = max(min(8 * n, CHUNK_BYTES // one), 1)
        t.n_items = <uint32_t>n
        self.n_read += n
        return 0

    cdef int _encode_slow(self, si_task *t, list items) except -1:
        try:
            _encode_general(self.owner.context.cx, &t.msg, items, "call")
        except Exception as exc:
            from subinterp import _pickling
            raise _pickling.explain_items(
                items, self.n_read, len(self.inputs), self.star, exc
            ) from exc
        return 0

    cdef list _decode_items(self, si_task *t, Py_ssize_t n):
        """The plain items encoded so far, as they were."""
        cdef si_reader r
        cdef Py_ssize_t i, j, arity = 1 if self.star else len(self.inputs)
        cdef list items = []
        si_reader_init(&r, &t.msg)
        for i in range(n):
            if arity == 1:
                items.append(si_decode(&r))
            else:
                items.append(tuple([si_decode(&r) for j in range(arity)]))
        return items

    cdef tuple _next_tuple(self):
        """The arguments of the next call, or None at the end."""
        cdef PyObject *item
        cdef list args
        if self.star:
            item = PyIter_Next(<PyObject *>self.inputs[0])
            if item == NULL:
                _raise_if_set()
                return None
            value = <object>item
            Py_DECREF_ptr(item)
            return value if type(value) is tuple else tuple(value)
        args = []
        for source in self.inputs:
            item = PyIter_Next(<PyObject *>source)
            if item == NULL:
                _raise_if_set()
                return None
            args.append(<object>item)
            Py_DECREF_ptr(item)
        return tuple(args)

    cdef tuple _next_item(self):
        """(item,) in the form a slow chunk holds it, or None at the end."""
        cdef tuple args = self._next_tuple()
        if args is None:
            return None
        if self.star or len(self.inputs) > 1:
            return (args,)
        return args

    cdef int _push_ring(self, si_task *t) except -1:
        cdef Py_ssize_t i, size
        cdef si_task **bigger
        if self.ring_len == self.ring_size:
            size = self.ring_size * 2 or 16
            bigger = <si_task **>malloc(<size_t>size * sizeof(si_task *))
            if bigger == NULL:
                si_store_refs(t, 1)
                si_task_free(t)
                raise MemoryError
            for i in range(self.ring_len):
                bigger[i] = self.ring[(self.ring_head + i) % self.ring_size]
            free(self.ring)
            self.ring = bigger
            self.ring_size = size
            self.ring_head = 0
        self.ring[(self.ring_head + self.ring_len) % self.ring_size] = t
        self.ring_len += 1
        return 0

    cdef si_task *_pop_ring(self) noexcept:
        cdef si_task *t = self.ring[self.ring_head]
        self.ring_head = (self.ring_head + 1) % self.ring_size
        self.ring_len -= 1
        return t

    cdef FutureCore _announced(self, si_task *t):
        """Have the event loop told of a chunk; the future only stands for it."""
        cdef FutureCore fut = self.owner._new_future(t)
        si_task_retain(t)
        fut._tell(self.port, self)
        return fut

    cdef int _arrived(self, FutureCore fut) except -1:
        """A chunk is complete; called in the loop."""
        if self.unordered and not self.closed:
            # It has left the notifier's queue: it may enter ours.
            si_task_retain(fut.task)
            if not si_cq_post(self.cq, &fut.task.node):
                si_task_release(fut.task)
        told = self.told
        self.told = None
        if told is not None and not told.done():
            told.set_result(None)
        return 0

    def _tell(self, waiter):
        """Tell this waiter of the next chunk that is complete."""
        self.told = waiter

    def _feed_rest(self, bint cancel):
        """The pool closes, or nobody will read: send what is still to be sent.

        Only input of a known and sane length: an endless one would never let go.
        """
        cdef si_pool *pool = self.owner.pool
        if self.reading or cancel or self.buffersize or not 0 <= self.length - self.n_read <= REST_ITEMS:
            return
        if pool.generation != si_generation() or si_pool_is_closing(pool):
            return      # it takes no more
        while not self.exhausted and not self.closed:
            _let_in()
            self._send_chunk(max(self._chunk_items(), 1))

    # ---- results ------------------------------------------------------------------

    @property
    def _total(self):
        """How many results there will be, or None if that is not known."""
        return self.length if self.length >= 0 else None

    @property
    def _ended(self):
        """No more results will come."""
        return self.closed

    def __next__(self):
        if self.owner is None:
            raise TypeError("made by a pool's map")
        if self.busy:
            raise ValueError("another thread is reading from this map")
        self.busy = True
        try:
            return self._next(None, True)
        finally:
            self.busy = False

    def _poll(self, later, bint further):
        """The next result for a coroutine; `later` if it is not there yet.

        further: go on to the next chunk, if that is complete.
        """
        if self.busy:
            raise ValueError("another thread is reading from this map")
        self.busy = True
        try:
            return self._next(later, further)
        except StopIteration:
            raise StopAsyncIteration from None
        finally:
            self.busy = False

    cdef bint _ready(self):
        """The next chunk is complete."""
        if self.unordered:
            return si_cq_ready(self.cq)
        return SI_IS_FINAL(si_task_word(self.ring[self.ring_head]))

    cdef object _next(self, later, bint further):
        """The next result. later: what to return instead of waiting; None: wait."""
        self.started = True
        while True:
            if self.left > 0:
                return self._item()
            if self.current != NULL:
                self._done_with_current()
            if self.closed:
                raise StopIteration
            if not further:
                return later
            try:
                self._fill()
                if self.ring_len == 0:
                    self._finish()
                    raise StopIteration
                if later is not None and not self._ready():
                    return later
                self._next_chunk()
            except StopIteration:
                raise
            except BaseException as exc:
                self._stop(_is_stop(exc))
                raise

    cdef object _item(self):
        cdef char tag
        cdef uint32_t index
        self.left -= 1
        if self.group is None:
            tag = self.reader.p[0] if self.reader.p < self.reader.end else 0
            if tag != b"G" and tag != b"M" and tag != b"X":
                return si_decode(&self.reader)
            self.reader.p += 1
            if tag == b"X":
                tree = si_decode(&self.reader)
                self._fail(tree)
            if not si_get_u32(&self.reader, &index) or index >= self.current.msg.n_parts:
                raise SystemError("subinterp: a chunk's results do not decode")
            value = si_value_decode(self.owner.context.cx,
                                    <si_msg *>self.current.msg.parts[index].ptr, False)
            if tag == b"M":
                return value
            self.group = value
            self.group_at = 0
        failed, value = self.group[self.group_at]
        self.group[self.group_at] = None
        self.group_at += 1
        if failed:
            self._fail(value)
        return value

    cdef int _fail(self, tree) except -1:
        """Raise a failed item's exception. An ordered map ends with it."""
        from subinterp import _pickling
        try:
            exc = _pickling.rebuild_exception(tree)
        except Exception as problem:
            exc = _errors().RemoteError(f"a worker's exception could not be read: {problem!r}")
        if not self.unordered:
            self._stop(False)
        try:
            raise exc
        finally:
            exc = None

    cdef int _done_with_current(self) except -1:
        si_task_release(self.current)
        self.current = NULL
        self.group = None
        return 0

    cdef int _next_chunk(self) except -1:
        """Wait for the next chunk and make it the current one."""
        cdef si_task *t
        cdef uint32_t word
        _let_in()
        if self.unordered:
            t = self._wait_any()
        else:
            t = self.ring[self.ring_head]
            if _wait_task(self.owner.pool, t, self.deadline):
                raise TimeoutError
            self._pop_ring()
        self.items_in_flight -= t.n_items
        self.bytes_in_flight -= t.weight
        self._learn(t)
        _drain_output(self.owner.pool, self.owner.context)
        word = si_task_word(t) & SI_STATE_MASK
        if word == SI_DONE:
            self.current = t
            self.left = t.n_items
            si_reader_init(&self.reader, &t.msg)
            return 0
        try:
            if word == SI_FAILED:
                raise _failure(self.owner.context.cx, &t.msg)
            if word == SI_CANCELLED:
                from concurrent.futures import CancelledError
                raise CancelledError
            if word == SI_ABANDONED or word == SI_OVERDUE:
                raise _abandoned(word)
            raise _broken(self.owner.pool,
                          PyBytes_FromStringAndSize(t.msg.data, <Py_ssize_t>t.msg.len))
        finally:
            si_task_release(t)

    cdef si_task *_wait_any(self) except NULL:
        """The next complete chunk, whichever it is."""
        cdef si_node *node = NULL
        cdef si_task *t
        cdef si_ret st
        cdef si_worker *me = si_worker_self()
        cdef bint slice_ = si_is_main_thread()
        cdef Py_ssize_t i
        while True:
            st = si_cq_pop(self.cq, &node)
            if st == SI_OK:
                break
            if st == SI_CLOSED:
                raise StopIteration
            with nogil:
                st = si_pool_wait_cq(self.owner.pool, me, self.cq, self.deadline, slice_)
            if st == SI_TIMEOUT:
                raise TimeoutError
            if st == SI_INTR:
                _look_around()
            else:
                _check(st)
        t = <si_task *>node
        # The post's reference goes; the ring's is handed on.
        for i in range(self.ring_len):
            if self.ring[(self.ring_head + i) % self.ring_size] == t:
                self.ring[(self.ring_head + i) % self.ring_size] = self.ring[self.ring_head]
                self._pop_ring()
                break
        si_task_release(t)
        return t

    cdef int _finish(self) except -1:
        self.closed = True
        self.owner.context.maps.pop(_address(self), None)
        return 0

    def close(self):
        """Stop: chunks that no worker has begun are cancelled. Idempotent.

        Those that run go on, except if a coroutine reads the map: then they are
        interrupted.
        """
        if self.busy:
            raise ValueError("another thread is reading from this map")
        self._stop(False)

    cdef int _stop(self, bint interrupt) except -1:
        """Give up what was not read. interrupt: also chunks that run."""
        cdef si_task *t
        cdef FutureCore fut
        if self.closed:
            return 0
        self._finish()
        self.left = 0
        self.inputs = []
        while self.ring_len:
            t = self._pop_ring()
            if self.port is None:
                si_task_cancel(t)
                if interrupt:
                    _stop_task(t)
            elif t.observer != NULL:
                fut = <FutureCore>t.observer
                fut._give_up()
            si_task_release(t)
        return 0


cdef class _ForgetMap:
    """Drops a collected map from the list."""
    cdef dict maps
    cdef object key

    def __init__(self, dict maps, key):
        self.maps = maps
        self.key = key

    def __call__(self, ref):
        if self.maps.get(self.key) is ref:
            del self.maps[self.key]


cdef Py_ssize_t _known_length(source) except -2:
    try:
        return len(source)
    except (TypeError, OverflowError):
        return -1


cdef int _raise_if_set() except -1:
    if PyErr_Occurred():
        raise PyErr_GetRaisedException()
    return 0


# ---- channels -----------------------------------------------------------------------------------------

cdef class ChannelEnd:
    """One end's handle on a channel; see SendChannel and RecvChannel."""
    cdef si_handle handle
    cdef si_context *cx
    cdef bint open              # not closed by this object
    cdef object __weakref__

    def __init__(self):
        raise TypeError("channel ends are made by create_channel")

    cdef int _need_made(self) except -1:
        if self.handle.channel == NULL:
            raise TypeError("channel ends are made by create_channel")
        return 0

    def __dealloc__(self):
        if self.handle.channel != NULL:
            self._drop()
            si_ledger_remove(self.cx, &self.handle)
            si_channel_release(self.handle.channel)
            si_context_release(self.cx)

    cdef void _drop(self) noexcept:
        self.open = False
        if si_handle_claim_drop(&self.handle):
            # Also those who wait through this very handle.
            si_channel_tell_side(self.handle.channel, self.handle.side)
            si_channel_drop_count(self.handle.channel, self.handle.side)

    cdef int _need_open(self) except -1:
        # Not counted: given up with its interpreter's last pool (see si_park.h).
        if not self.open or self.handle.channel == NULL or not si_handle_counted(&self.handle):
            raise _errors().ChannelClosed("this channel end is closed")
        return 0

    def close(self):
        """Give up this end's handle. Idempotent; does not block.

        When the last sending handle goes, receivers drain what is left and
        then get ChannelClosed; when the last receiving handle goes, what is
        left is dropped and senders get ChannelClosed. Whoever waits through
        this very end, in another thread, gets ChannelClosed at once.
        """
        if self.handle.channel != NULL:
            self._drop()

    @property
    def closed(self):
        """True if this end was closed. (The channel may have other handles.)"""
        return not self.open

    @property
    def id(self):
        """Number of the channel in this process."""
        self._need_made()
        return self.handle.channel.id

    @property
    def maxsize(self):
        """Messages the channel holds at most; 0: no limit."""
        self._need_made()
        return self.handle.channel.maxsize

    @property
    def _settings(self):
        """(size that was asked for, what becomes of messages whose interpreter ends)."""
        self._need_made()
        return self.handle.channel.asked, self.handle.channel.unbound

    @property
    def _usable(self):
        """False if it was closed, or given up with its interpreter or a fork's parent."""
        self._need_made()
        return (self.open and si_handle_counted(&self.handle)
                and si_channel_open(self.handle.channel, self.handle.side))

    @property
    def _other_side(self):
        """True if there are handles of the other side."""
        self._need_made()
        return si_channel_open(
            self.handle.channel, SI_SENDER if self.handle.side == SI_RECEIVER else SI_RECEIVER
        )

    def qsize(self):
        """Return how many messages wait in the channel, at this moment."""
        self._need_made()
        return si_channel_size(self.handle.channel)

    def __len__(self):
        self._need_made()
        return si_channel_size(self.handle.channel)

    def __bool__(self):
        return True

    def clone(self):
        """Return another handle on the same end.

        Returns
        -------
        SendChannel or RecvChannel
            To be closed by itself; the channel's side stays open until all are.

        Raises
        ------
        ChannelClosed
            If this end is closed.
        """
        self._need_open()
        _check_channel(si_channel_add_handle(self.handle.channel, self.handle.side, False),
                       self.handle.side)
        si_channel_retain(self.handle.channel)
        return _wrap_end(self.cx, self.handle.channel, self.handle.side, type(self))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __copy__(self):
        return self.clone()

    def __deepcopy__(self, memo):
        return self.clone()

    def __eq__(self, other):
        cdef ChannelEnd o
        if not isinstance(other, ChannelEnd):
            return NotImplemented
        o = other
        return o.handle.channel == self.handle.channel and o.handle.side == self.handle.side

    def __hash__(self):
        self._need_made()
        return hash((self.handle.channel.id, <int>self.handle.side))

    def __repr__(self):
        self._need_made()
        state = f"{si_channel_size(self.handle.channel)} waiting" if self.open else "closed"
        return f"<{type(self).__name__} {self.handle.channel.id} ({state})>"

    def __reduce__(self):
        # A plain pickle: it may be loaded any number of times, so it carries
        # no handle, and the loader takes one of its own while the side lives.
        self._need_open()
        return _end_by_id, (_process_token(), self.handle.channel.id, <int>self.handle.side)


cdef int _check_channel(si_ret st, si_side side) except -1:
    """As _check, in the words of that side of a channel."""
    if st == SI_FORKED:
        raise _errors().ChannelClosed(
            "the channel belongs to the parent of this forked process; make a new one here"
        )
    if st == SI_CLOSED:
        return _check(st, "nobody can receive from the channel any more" if side == SI_SENDER
                      else "the channel is closed and empty")
    return _check(st)


cdef object _wrap_end(si_context *cx, si_channel *c, si_side side, cls):
    """A Python end that takes over a handle and a memory reference."""
    cdef ChannelEnd end
    try:
        end = si_new_instance(cls, ())
    except BaseException:
        si_channel_drop_count(c, side)
        si_channel_release(c)
        raise
    si_handle_init(&end.handle, c, side)
    si_context_retain(cx)
    end.cx = cx
    end.open = True
    si_ledger_add(cx, &end.handle)
    return end


def _end_by_id(token, uint64_t id, int side):
    """The channel end that a plain pickle names."""
    from subinterp import channels
    cdef si_channel *c = si_channel_find(id) if token == _process_token() else NULL
    if c == NULL:
        raise _errors().ChannelClosed("the channel is gone, or belongs to another process")
    cdef si_ret st = si_channel_add_handle(c, <si_side>side, True)
    if st != SI_OK:
        si_channel_release(c)
        _check(st, "the channel end was closed before its pickle was loaded")
    return _wrap_end((<Context>_context).cx, c, <si_side>side,
                     channels.SendChannel if side == SI_SENDER else channels.RecvChannel)


# What a channel is: `kind` of open_channel and the next two.
QUEUE = SI_KIND_QUEUE
CHANNEL_554 = SI_KIND_CHANNEL_554


def open_channel(int64_t maxsize, recv_type, send_type, int kind=SI_KIND_CHANNEL, uint8_t unbound=0):
    """A new channel: (receiving end, sending end)."""
    cdef si_channel *c = si_channel_new(<si_channel_kind>kind, maxsize, unbound)
    cdef si_context *cx = (<Context>_context).cx
    if c == NULL:
        raise MemoryError
    _check(si_channel_add_handle(c, SI_RECEIVER, False))
    recv = _wrap_end(cx, c, SI_RECEIVER, recv_type)
    _check(si_channel_add_handle(c, SI_SENDER, False))
    si_channel_retain(c)
    return recv, _wrap_end(cx, c, SI_SENDER, send_type)


def attach_channel(uint64_t id, int kind, int side):
    """A handle on one side (0: sending) of the channel of that number; None: there is none."""
    from subinterp import channels
    cdef si_channel *c = si_channel_find(id)
    if c == NULL:
        return None
    if c.kind != <si_channel_kind>kind or si_channel_add_handle(c, <si_side>side, True) != SI_OK:
        si_channel_release(c)
        return None
    return _wrap_end((<Context>_context).cx, c, <si_side>side,
                     channels.RecvChannel if side else channels.SendChannel)


def list_channels(int kind):
    """Numbers of the channels of a kind that have handles on both sides, oldest first."""
    cdef size_t n = 64, room = 0
    cdef uint64_t *ids = NULL
    try:
        while n > room:
            room = 2 * n
            free(ids)
            ids = <uint64_t *>malloc(room * sizeof(uint64_t))
            if ids == NULL:
                raise MemoryError
            n = si_channels_list(<si_channel_kind>kind, ids, room)
        return [ids[i] for i in range(<Py_ssize_t>n - 1, -1, -1)]
    finally:
        free(ids)


cdef class SendEnd(ChannelEnd):
    cdef int _encode(self, si_msg *msg, obj) except -1:
        cdef si_encoder e
        cdef si_ret st
        si_msg_init(msg)
        si_encoder_init(&e)
        st = si_encode(&e, msg, <PyObject *>obj)
        if st == SI_OK:
            msg.format = SI_FMT_FAST
            return 0
        si_msg_cut(msg, 0, 0)
        try:
            _encode_general(self.cx, msg, obj, "message")
        except Exception as exc:
            si_msg_clear(msg)
            from subinterp import _pickling
            raise _pickling.explain(obj, "obj", exc) from exc
        return 0

    def send_nowait(self, obj, /):
        """Send a copy of an object, or raise instead of waiting.

        Parameters
        ----------
        obj : object
            Anything that can be pickled; buffers are copied once.

        Raises
        ------
        ChannelFull
            If the channel has no room; the object stays with the caller.
        ChannelClosed
            If this end is closed or nobody can receive any more.
        NotSendableError
            If the object cannot be sent; names the part of it.

        Notes
        -----
        Does not block.
        """
        self._push_nowait(obj, NULL)

    cdef int _push_nowait(self, obj, si_sending *how) except -1:
        cdef si_msg msg
        cdef si_ret st
        self._need_open()
        self._encode(&msg, obj)
        st = si_channel_try_send(self.handle.channel, &msg, how)
        if st != SI_OK:
            si_msg_clear(&msg)
            _check_channel(st, SI_SENDER)
        return 0

    def send(self, obj, timeout=None):
        """Send a copy of an object, waiting for room in a bounded channel.

        Parameters
        ----------
        obj : object
            Anything that can be pickled; buffers are copied once.
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.

        Raises
        ------
        ChannelClosed
            If this end is closed or nobody can receive any more.
        SendTimeout
            If there was no room in time; the object stays with the caller.
        NotSendableError
            If the object cannot be sent; names the part of it.

        Notes
        -----
        Blocks only while a bounded channel is full, with the interpreter's
        lock released. The message belongs to no interpreter: it outlives the
        sender's.
        """
        self._push(obj, timeout, NULL)

    cdef int _push(self, obj, timeout, si_sending *how) except -1:
        cdef si_msg msg
        cdef si_ret st
        cdef int64_t deadline
        self._need_open()
        if timeout is not None:
            check_timeout(timeout)
        self._encode(&msg, obj)
        st = si_channel_try_send(self.handle.channel, &msg, how)
        if st == SI_OK:
            return 0
        try:
            if st == SI_FULL:
                deadline = _deadline(timeout)
                while st == SI_FULL:
                    _wait_channel(self, deadline)
                    st = si_channel_try_send(self.handle.channel, &msg, how)
            _check_channel(st, SI_SENDER)
        finally:
            si_msg_clear(&msg)
        return 0

    def _put(self, obj, timeout, uint8_t unbound):
        """As `send`, and the message is bound to this interpreter."""
        cdef si_sending how = si_sending(self.cx, unbound, NULL, False)
        self._push(obj, timeout, &how)

    def _put_nowait(self, obj, uint8_t unbound):
        """As `send_nowait`, and bound; True if a receiver was waiting."""
        cdef si_sending how = si_sending(self.cx, unbound, NULL, False)
        self._push_nowait(obj, &how)
        return how.met

    def _put_and_wait(self, obj, timeout, uint8_t unbound):
        """As `_put`, until the message is received.

        ChannelClosed: nobody will. SendTimeout: nobody has, and the message is
        taken back.
        """
        cdef si_receipt receipt
        cdef si_sending how = si_sending(self.cx, unbound, &receipt, False)
        cdef si_receipt_state state = SI_IN_CHANNEL
        cdef int64_t deadline = _deadline(check_timeout(timeout)), until
        cdef bint main_thread = si_is_main_thread()
        cdef si_ret st = SI_INTR
        receipt.state = SI_IN_CHANNEL
        self._push(obj, timeout, &how)
        try:
            while st != SI_OK:
                until = min(deadline, si_now() + 50000000) if main_thread else deadline
                with nogil:
                    st = si_channel_await(self.handle.channel, &receipt, until)
                if st == SI_TIMEOUT and until == deadline:
                    break
                if st == SI_TIMEOUT or st == SI_INTR:
                    _look_around()
                elif st != SI_OK:
                    _check_channel(st, SI_SENDER)
        finally:
            state = si_channel_withdraw(self.handle.channel, &receipt)
        if state == SI_IN_CHANNEL:
            raise _errors().SendTimeout("nobody received the object in time")
        if state == SI_DROPPED:
            raise _errors().ChannelClosed("the object was not received: nobody can any more")


cdef int _wait_channel(ChannelEnd end, int64_t deadline) except -1:
    """Wait until it is worth trying again; raises when the time is up."""
    cdef si_side side = end.handle.side
    cdef si_ret st
    cdef int64_t until
    if not end.open:
        raise _errors().ChannelClosed("this channel end was closed while it was waited for")
    until = deadline
    if si_is_main_thread():
        # A signal between the check and the wait would go unseen.
        until = min(deadline, si_now() + 50000000)
    with nogil:
        st = SI_OK
        if side != SI_RECEIVER or not si_channel_spin(end.handle.channel):
            st = si_channel_wait(&end.handle, until)
    if st == SI_OK:
        return 0
    if st == SI_TIMEOUT and until == deadline:
        errors = _errors()
        if side == SI_RECEIVER:
            raise errors.RecvTimeout("no message in time")
        raise errors.SendTimeout("no room in the channel in time")
    if st == SI_TIMEOUT or st == SI_INTR:
        _look_around()
        return 0
    return _check_channel(st, side)


cdef class LostItem:
    """Received in place of an object whose sender's interpreter has ended."""
    cdef readonly uint8_t unbound


cdef class RecvEnd(ChannelEnd):
    cdef object _take(self, si_msg *msg):
        cdef LostItem lost
        try:
            if msg.format == SI_FMT_LOST:
                lost = LostItem.__new__(LostItem)
                lost.unbound = <uint8_t>msg.data[0]
                return lost
            return si_value_decode(self.cx, msg, False)
        finally:
            si_msg_clear(msg)

    cdef si_ret _try(self, si_msg *msg) except <si_ret>-1:
        self._need_open()
        si_msg_init(msg)
        return si_channel_try_recv(self.handle.channel, msg)

    def recv_nowait(self):
        """Receive the next message, or raise instead of waiting.

        Returns
        -------
        object
            Made in this interpreter, which owns it.

        Raises
        ------
        ChannelEmpty
            If there is no message now.
        ChannelClosed
            If this end is closed, or the channel is empty and nobody can send.

        Notes
        -----
        Does not block.
        """
        cdef si_msg msg
        cdef si_ret st = self._try(&msg)
        if st != SI_OK:
            _check_channel(st, SI_RECEIVER)
        return self._take(&msg)

    def recv(self, timeout=None):
        """Receive the next message, waiting for one.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.

        Returns
        -------
        object
            Made in this interpreter, which owns it.

        Raises
        ------
        ChannelClosed
            If this end is closed, or the channel is empty and nobody can send.
        RecvTimeout
            If no message came in time.

        Notes
        -----
        Blocks with the interpreter's lock released: a short spin, then asleep.
        """
        cdef si_msg msg
        cdef si_ret st
        cdef int64_t deadline
        if timeout is not None:
            check_timeout(timeout)
        st = self._try(&msg)
        if st == SI_EMPTY:
            deadline = _deadline(timeout)
            while st == SI_EMPTY:
                _wait_channel(self, deadline)
                st = self._try(&msg)
        if st != SI_OK:
            _check_channel(st, SI_RECEIVER)
        return self._take(&msg)

    def __iter__(self):
        return self

    def __next__(self):
        errors = _errors()
        _let_in()
        try:
            return self.recv()
        except errors.ChannelClosed:
            raise StopIteration from None

    def _async_wait(self, told):
        """Register a callable to be called once there may be a message.

        Returns an AsyncWait, or None if there is something already.
        """
        cdef AsyncWait wait
        self._need_open()
        wait = AsyncWait.__new__(AsyncWait)
        return wait if wait._register(self, told) else None


cdef class AsyncWait:
    """A coroutine's place among a channel's receivers."""
    cdef si_async *a
    cdef object told
    cdef Context context
    cdef bint pending

    def __dealloc__(self):
        if self.a != NULL:
            si_async_release(self.a)

    cdef bint _register(self, RecvEnd end, told) except -1:
        cdef _Notifier notifier = _notifier(_context)
        cdef si_ret st
        self.context = _context
        self.told = told
        self.a = si_async_new(end.handle.channel, notifier.cq)
        if self.a == NULL:
            raise MemoryError
        # Kept until it is told or cancelled.
        self.a.owner = <void *>self
        Py_INCREF(self)
        self.pending = True
        notifier.outstanding += 1
        notifier.ensure()
        st = si_async_register(self.a, &end.handle)
        if st == SI_OK:
            return True
        self._release()
        if st != SI_EMPTY:
            _check_channel(st, SI_RECEIVER)
        return False

    cdef int _release(self) except -1:
        if self.pending:
            self.pending = False
            self.a.owner = NULL
            if self.context.notifier is not None:   # not in the child of a fork
                (<_Notifier>self.context.notifier).outstanding -= 1
            Py_DECREF(self)
        return 0

    cdef int _told(self) except -1:
        told = self.told
        self._release()
        if told() is False:
            # Its event loop is gone: somebody else may want the message.
            si_async_pass_on(self.a)
        return 0

    def cancel(self):
        """Leave the list; a message that was announced is announced to the next."""
        keep = self     # _release may drop the last other reference
        if self.a != NULL:
            si_async_cancel(self.a, SI_RECEIVER)
            self._release()


def select_channels(tuple ends, timeout, Py_ssize_t first):
    """(end, object) of the first channel with a message; see channels.select."""
    cdef Py_ssize_t n = len(ends), i, j, n_closed
    cdef si_handle **channels
    cdef si_link *links
    cdef si_msg msg
    cdef si_ret st
    cdef RecvEnd end
    cdef int64_t deadline = _deadline(check_timeout(timeout)), until
    cdef bint main_thread = si_is_main_thread()
    channels = <si_handle **>malloc(<size_t>n * sizeof(si_handle *))
    links = <si_link *>malloc(<size_t>n * sizeof(si_link))
    try:
        if channels == NULL or links == NULL:
            raise MemoryError
        while True:
            n_closed = 0
            j = 0
            for i in range(n):
                end = ends[(first + i) % n]
                if not end.open:
                    n_closed += 1
                    continue
                st = end._try(&msg)
                if st == SI_OK:
                    return end, end._take(&msg)
                if st == SI_CLOSED:
                    n_closed += 1
                    continue
                if st != SI_EMPTY:
                    _check_channel(st, SI_RECEIVER)
                channels[j] = &end.handle
                j += 1
            if n_closed == n:
                raise _errors().ChannelClosed("all channels are closed and empty")
            until = min(deadline, si_now() + 50000000) if main_thread else deadline
            with nogil:
                st = si_channel_select(channels, links, <uint32_t>j, until)
            if st == SI_TIMEOUT and until == deadline:
                raise _errors().RecvTimeout("no message in time")
            if st == SI_TIMEOUT or st == SI_INTR:
                _look_around()
            elif st != SI_OK:
                _check_channel(st, SI_RECEIVER)
    finally:
        free(channels)
        free(links)


# ---- shared memory ------------------------------------------------------------------------------------------

_FILLED_IN_LATER = object()


cdef class SharedMemory:
    """The C half of a SharedBuffer."""
    cdef si_shared *shared
    cdef object __weakref__

    def __cinit__(self, nbytes):
        cdef Py_ssize_t n
        if nbytes is _FILLED_IN_LATER:
            return
        n = nbytes
        if n < 0:
            raise ValueError(f"nbytes must be >= 0, not {n}")
        self.shared = si_shared_new(<size_t>n)
        if self.shared == NULL:
            raise MemoryError(f"no memory for a SharedBuffer of {n} bytes")

    def __dealloc__(self):
        if self.shared != NULL:
            si_shared_release(self.shared)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.shared.data, <Py_ssize_t>self.shared.size, False, flags)

    def __len__(self):
        return <Py_ssize_t>self.shared.size

    def _expect_large(self):
        """Say that all of the memory is about to be written."""
        si_expect_large(self.shared.data, self.shared.size)

    def _fill(self, data):
        """Copy the content of a buffer of the same size, in C order."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_FULL_RO)
        try:
            if <size_t>view.len != self.shared.size:
                raise ValueError("the sizes differ")
            self._expect_large()
            if view.len >= 1 << 20 and PyBuffer_IsContiguous(&view, b"C"):
                with nogil:
                    memcpy(self.shared.data, view.buf, <size_t>view.len)
            elif view.len:
                PyBuffer_ToContiguous(self.shared.data, &view, view.len, b"C")
        finally:
            PyBuffer_Release(&view)

    @property
    def nbytes(self):
        """Size in bytes; constant."""
        return <Py_ssize_t>self.shared.size

    @property
    def id(self):
        """Number of the block in this process; the same in every interpreter."""
        return self.shared.id

    def __reduce__(self):
        return _shared_by_id, (_process_token(), self.shared.id)


cdef _shared_buffer(si_shared *s):
    """A SharedBuffer of this memory; takes the reference over."""
    from subinterp.buffers import SharedBuffer
    cdef SharedMemory made = SharedMemory.__new__(SharedBuffer, _FILLED_IN_LATER)
    made.shared = s
    return made


def shared_at(size_t address, size_t nbytes):
    """The SharedBuffer that holds these bytes, and where they begin in it.

    Returns None if they are nobody's. The caller keeps the bytes alive.
    """
    cdef si_shared *s = si_shared_at(<const void *>address, nbytes)
    return None if s == NULL else (_shared_buffer(s), address - <size_t>s.data)


def share_buffers(obj):
    """A copy of an object, made by a pickle, with its buffers in shared memory.

    Returns the copy and the number of its buffers that are; those that were
    before are not copied.
    """
    cdef si_msg msg
    cdef uint32_t i, n = 0
    cdef si_context *cx = (<Context>_context).cx
    si_msg_init(&msg)
    try:
        _encode_general(cx, &msg, obj, "share")
        for i in range(msg.n_parts):
            if msg.parts[i].kind == SI_PART_VIEW or msg.parts[i].kind == SI_PART_SHARED:
                n += 1
        return _decode_general(cx, &msg, False), n
    finally:
        si_msg_clear(&msg)


def _shared_by_id(token, uint64_t id):
    """The SharedBuffer that a plain pickle names, if somebody still holds it."""
    cdef si_shared *s = si_shared_find(id) if token == _process_token() else NULL
    if s == NULL:
        raise ValueError("the SharedBuffer is gone, or belongs to another process")
    return _shared_buffer(s)


# ---- locks and the like --------------------------------------------------------------------------------
# See si_sync.h. What they mean stands with the public classes, in sync.py.

cdef int64_t _slice_end(int64_t deadline) noexcept:
    """Until when this thread may sleep in one go."""
    # A signal between the check and the wait would go unseen.
    return min(deadline, si_now() + 50000000) if si_is_main_thread() else deadline


cdef int64_t _int64(value, const char *what) except? -1:
    """A 64-bit integer of an object that is one."""
    cdef int overflow = 0
    cdef int64_t n
    if not PyIndex_Check(value):
        raise TypeError(f"{what.decode()} must be an integer, not {type(value).__name__}")
    n = PyLong_AsLongLongAndOverflow(PyNumber_Index(value), &overflow)
    if overflow:
        raise OverflowError(f"{what.decode()} must fit into 64 bits, with a sign")
    return n


cdef class SyncCore:
    """One object's handle on a primitive that interpreters share."""
    cdef si_sync *s             # NULL: __init__ was not called
    cdef si_sync_handle *handle
    cdef si_context *cx
    cdef object __weakref__

    cdef int _make(self, si_sync_kind kind, int64_t value, int64_t limit, int64_t timeout) except -1:
        cdef si_sync *s
        if self.s != NULL:
            raise TypeError(f"this {type(self).__name__} was initialised before")
        s = si_sync_new(kind, value, limit, timeout)
        if s == NULL:
            raise MemoryError
        return self._adopt((<Context>_context).cx, s)

    cdef int _adopt(self, si_context *cx, si_sync *s) except -1:
        """Takes the reference over."""
        self.handle = si_sync_handle_new(cx, s)
        if self.handle == NULL:
            si_sync_release(s)
            raise MemoryError
        si_context_retain(cx)
        self.cx = cx
        self.s = s
        return 0

    def __dealloc__(self):
        if self.s != NULL:
            si_sync_handle_drop(self.cx, self.handle)
            si_context_release(self.cx)

    cdef int _need_made(self) except -1:
        if self.s == NULL:
            raise TypeError(f"this {type(self).__name__} was not initialised: call super().__init__()")
        return 0

    # No method is overridden by a subclass: when an interpreter loads the module,
    # the table of methods is for an instant the one of the base class.

    cdef int _prepare(self) except -1:
        """Before it is sent."""
        self._need_made()
        if self.s.kind == SI_SYNC_BARRIER:
            (<BarrierCore>self)._encode_action()
        return 0

    cdef int _check(self, si_ret st) except -1:
        """As _check, in the words of this primitive."""
        if st == SI_OK:
            return 0
        errors = _errors()
        name = type(self).__name__
        if st == SI_BROKEN and self.s.kind == SI_SYNC_BARRIER:
            raise errors.BrokenBarrierError(
                f"the {name} is broken: somebody's time ran out, it was aborted or reset, or its action failed"
            )
        if st == SI_FORKED:
            raise errors.SyncError(
                f"the {name} belongs to the parent of this forked process; make a new one here"
            )
        if st == SI_BROKEN:
            raise errors.BrokenLockError(
                f"the {name} is broken: interpreter {(si_sync_state(self.s) >> SI_SYNC_SHIFT) - 1} ended, or "
                f"was abandoned, while it held it. What it guards may be half changed: make a new {name}"
            )
        if st == SI_CLOSED:
            raise errors.BrokenLockError(
                f"the {name} cannot be acquired: this interpreter is ending, or was abandoned by its pool"
            )
        return _check(st)

    cdef int _wait(self, int64_t deadline) except -1:
        """Wait for a lock, a permit or an event. 1: it is there; 0: the deadline passed."""
        cdef si_sync_waiter w
        cdef si_ret st
        cdef int64_t until
        cdef bint event = self.s.kind == SI_SYNC_EVENT
        si_sync_waiter_init(&w, self.cx)
        while True:
            until = _slice_end(deadline)
            with nogil:
                st = si_event_wait(self.s, &w, until) if event else si_sync_wait(self.s, &w, until)
            if st == SI_OK:
                return 1
            if st != SI_TIMEOUT and st != SI_INTR:
                self._check(st)
            if st == SI_TIMEOUT and si_now() >= deadline:
                return 0
            _look_around()

    @property
    def id(self):
        """Number of the primitive in this process; the same in every interpreter."""
        self._need_made()
        return self.s.id

    def __eq__(self, other):
        if not isinstance(other, SyncCore):
            return NotImplemented
        return self is other or (self.s != NULL and (<SyncCore>other).s == self.s)

    def __hash__(self):
        self._need_made()
        return hash(self.s.id)

    def __reduce__(self):
        # A plain pickle: it may be loaded any number of times, so it holds nothing.
        self._prepare()
        return _sync_by_id, (_process_token(), self.s.id)

    cdef str _name(self):
        return f"{type(self).__module__}.{type(self).__qualname__}"

    cdef str _at(self):
        # The primitive's address: objects that are the same one show the same.
        return f"at {<size_t>self.s:#x}"


cdef object _sync_object(si_context *cx, si_sync *s):
    """An object of this interpreter for a primitive; takes the reference over."""
    cdef SyncCore made
    try:
        from subinterp import sync
        if s.kind == SI_SYNC_LOCK:
            cls = sync.Lock
        elif s.kind == SI_SYNC_RLOCK:
            cls = sync.RLock
        elif s.kind == SI_SYNC_SEMAPHORE:
            cls = sync.Semaphore if s.limit < 0 else sync.BoundedSemaphore
        elif s.kind == SI_SYNC_EVENT:
            cls = sync.Event
        elif s.kind == SI_SYNC_BARRIER:
            cls = sync.Barrier
        else:
            cls = sync.Counter
        made = si_new_instance(cls, ())
    except BaseException:
        si_sync_release(s)
        raise
    made._adopt(cx, s)
    return made


def _sync_by_id(token, uint64_t id):
    """The primitive that a plain pickle names, if somebody still holds it."""
    cdef si_sync *s = si_sync_find(id) if token == _process_token() else NULL
    if s == NULL:
        raise _errors().SyncError(
            "the lock (or event, semaphore, barrier, counter) is gone, or belongs to another process"
        )
    return _sync_object((<Context>_context).cx, s)


cdef int64_t _lock_deadline(bint blocking, double timeout) except -1:
    """When to give up; 0: do not wait. The arguments are those of threading.Lock.acquire."""
    if timeout == -1:
        return SI_FOREVER if blocking else 0
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if isnan(timeout):
        raise ValueError("timeout must not be NaN")
    if timeout < 0:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > 9223372036.0:      # threading.TIMEOUT_MAX
        raise OverflowError("timeout value is too large")
    return si_now() + <int64_t>(timeout * 1e9)


cdef class LockCore(SyncCore):
    def __init__(self):
        self._make(SI_SYNC_LOCK, 0, 0, 0)

    cdef int _acquire(self, int64_t deadline) except -1:
        cdef si_ret st
        self._need_made()
        st = si_sync_take(self.s, self.cx)
        if st == SI_OK:
            return 1
        if st != SI_EMPTY:
            self._check(st)
        return 0 if deadline == 0 else self._wait(deadline)

    cdef int _release(self) except -1:
        cdef si_ret st
        self._need_made()
        st = si_sync_give(self.s, self.cx, 1)
        if st == SI_EMPTY:
            raise RuntimeError("release unlocked lock" if self.s.kind == SI_SYNC_LOCK
                               else "cannot release un-acquired lock")
        return self._check(st)

    def acquire(self, *args, **kwargs):
        """Acquire the lock: ``acquire(blocking=True, timeout=-1)``.

        Parameters
        ----------
        blocking : bool
            Whether to wait while it is held.
        timeout : float
            Seconds to wait at most, fractions count; -1: no limit.

        Returns
        -------
        bool
            True: it is held now, by this interpreter. False: it was not free
            (in time).

        Raises
        ------
        BrokenLockError
            If the interpreter that held it ended or was abandoned; or this one was.
        OverflowError
            If `timeout` is larger than threading.TIMEOUT_MAX.
        SyncError
            In the child of a fork, if the parent made the lock.
        ValueError
            If `timeout` is negative (but not -1) or not a number, or given
            although `blocking` is false.

        Notes
        -----
        Blocks with the interpreter's lock released: a short spin, then asleep.
        Signal handlers run meanwhile; one that raises ends the wait.
        """
        # Cython looks the names of arguments up in the module's state, a cache
        # line that interpreters share: only for those who give some.
        if not args and not kwargs:
            return self._acquire(SI_FOREVER) == 1
        return self._acquire_with(*args, **kwargs)

    def _acquire_with(self, bint blocking=True, double timeout=-1):
        return self._acquire(_lock_deadline(blocking, timeout)) == 1

    def release(self):
        """Release the lock.

        A Lock may be released by any thread of any interpreter, an RLock by
        the thread that acquired it, as often as it did.

        Raises
        ------
        BrokenLockError
            If its holder ended or was abandoned before.
        RuntimeError
            If it is not held.
        SyncError
            In the child of a fork, if the parent made the lock.

        Notes
        -----
        Does not block. Somebody who has waited for a millisecond or more is
        given the lock at once; otherwise whoever comes first takes it.
        """
        self._release()

    def locked(self):
        """Return whether the lock is held, or broken, at this moment."""
        self._need_made()
        return si_sync_state(self.s) >> SI_SYNC_SHIFT != 0

    @property
    def broken(self):
        """True if its holder ended or was abandoned: it cannot be used any more."""
        self._need_made()
        return (si_sync_state(self.s) & SI_SYNC_BROKEN) != 0

    def __enter__(self):
        self._acquire(SI_FOREVER)
        return True

    def __exit__(self, exc_type, exc, tb, /):
        self._release()

    cdef str _state(self):
        if self.broken:
            return "broken"
        return "locked" if self.locked() else "unlocked"

    def __repr__(self):
        self._need_made()
        return f"<{self._state()} {self._name()} object {self._at()}>"


cdef class RLockCore(LockCore):
    def __init__(self):
        self._make(SI_SYNC_RLOCK, 0, 0, 0)

    # As threading.Condition asks for them.

    def _is_owned(self):
        self._need_made()
        return si_sync_is_mine(self.s, self.cx)

    def _recursion_count(self):
        self._need_made()
        return self.s.depth if si_sync_is_mine(self.s, self.cx) else 0

    def _release_save(self):
        cdef uint64_t depth
        self._need_made()
        if si_sync_forked(self.s) or not si_sync_is_mine(self.s, self.cx):
            self._release()     # raises
        depth = self.s.depth
        self.s.depth = 1
        self._release()
        return depth

    def _acquire_restore(self, uint64_t depth):
        self._acquire(SI_FOREVER)
        self.s.depth = depth

    def __repr__(self):
        cdef uint64_t state
        self._need_made()
        state = si_sync_state(self.s) >> SI_SYNC_SHIFT
        owner = f"interpreter {state - 1}" if state else None
        return (f"<{self._state()} {self._name()} object owner={owner} "
                f"count={self.s.depth if state else 0} {self._at()}>")


cdef class SemaphoreCore(SyncCore):
    _bounded = False            # BoundedSemaphore's is True

    def __init__(self, value=1):
        cdef int64_t permits = _int64(value, "value")
        if permits < 0:
            raise ValueError("semaphore initial value must be >= 0")
        if permits > SI_SYNC_MAX:
            raise OverflowError(f"semaphore initial value must be at most {SI_SYNC_MAX}")
        self._make(SI_SYNC_SEMAPHORE, permits, permits if self._bounded else -1, 0)


    cdef int _acquire(self, bint blocking, timeout) except -1:
        cdef si_ret st
        cdef int64_t deadline = SI_FOREVER
        self._need_made()
        if timeout is not None:
            if not blocking:
                raise ValueError("can't specify timeout for non-blocking acquire")
            deadline = _deadline(check_timeout(timeout))
        st = si_sync_take(self.s, self.cx)
        if st == SI_OK:
            return 1
        if st != SI_EMPTY:
            self._check(st)
        return self._wait(deadline) if blocking else 0

    def acquire(self, *args, **kwargs):
        """Take a permit: ``acquire(blocking=True, timeout=None)``.

        Parameters
        ----------
        blocking : bool
            Whether to wait while there is none.
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.

        Returns
        -------
        bool
            True: one was taken. False: there was none (in time).

        Raises
        ------
        SyncError
            In the child of a fork, if the parent made the semaphore.
        ValueError
            If `timeout` is given although `blocking` is false.

        Notes
        -----
        Blocks with the interpreter's lock released: a short spin, then asleep.
        Permits belong to nobody: those that an interpreter took and did not
        give back before it ended are lost.
        """
        if not args and not kwargs:     # as Lock.acquire
            return self._acquire(True, None) == 1
        return self._acquire_with(*args, **kwargs)

    def _acquire_with(self, bint blocking=True, timeout=None):
        return self._acquire(blocking, timeout) == 1

    def release(self, *args, **kwargs):
        """Give permits back, or add some: ``release(n=1)``.

        Parameters
        ----------
        n : int
            How many, at least 1.

        Raises
        ------
        OverflowError
            If there would be more permits than 61 bits can count.
        SyncError
            In the child of a fork, if the parent made the semaphore.
        ValueError
            If `n` is less than 1; of a BoundedSemaphore, also if there would be
            more permits than it was made with.

        Notes
        -----
        Does not block. Those who have waited for a millisecond or more are
        given theirs at once.
        """
        if not args and not kwargs:
            self._release(1)
        else:
            self._release_many(*args, **kwargs)

    def _release_many(self, n):
        cdef int64_t permits = _int64(n, "n")
        if permits < 1:
            raise ValueError("n must be one or more")
        self._release(permits)

    cdef int _release(self, int64_t permits) except -1:
        cdef si_ret st
        self._need_made()
        st = si_sync_give(self.s, self.cx, permits)
        if st == SI_FULL:
            if self.s.limit < 0:
                raise OverflowError(f"a semaphore can have {SI_SYNC_MAX} permits at most")
            raise ValueError("Semaphore released too many times")
        return self._check(st)

    def __enter__(self):
        return self._acquire(True, None) == 1

    def __exit__(self, exc_type, exc, tb, /):
        self._release(1)

    def __repr__(self):
        self._need_made()
        bound = "" if self.s.limit < 0 else f"/{self.s.limit}"
        return f"<{self._name()} {self._at()}: value={si_sync_state(self.s) >> SI_SYNC_SHIFT}{bound}>"


cdef class EventCore(SyncCore):
    def __init__(self):
        self._make(SI_SYNC_EVENT, 0, 0, 0)

    def is_set(self):
        """Return whether the event is set."""
        self._need_made()
        return si_sync_state(self.s) != 0

    def set(self):
        """Set the event: all who wait go on, in every interpreter. Does not block.

        Raises
        ------
        SyncError
            In the child of a fork, if the parent made the event.
        """
        self._need_made()
        self._check(si_event_set(self.s))

    def clear(self):
        """Reset the event: later calls of `wait` wait. Does not block.

        Raises
        ------
        SyncError
            In the child of a fork, if the parent made the event.
        """
        self._need_made()
        self._check(si_event_clear(self.s))

    def wait(self, timeout=None):
        """Wait until the event is set.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, fractions count; None: no limit.

        Returns
        -------
        bool
            False if it was not set in time.

        Raises
        ------
        SyncError
            In the child of a fork, if the parent made the event.

        Notes
        -----
        Blocks with the interpreter's lock released. It is noticed also if the
        event is cleared again at once.
        """
        self._need_made()
        if timeout is not None:
            check_timeout(timeout)
        if si_sync_forked(self.s):
            self._check(SI_FORKED)
        if si_sync_state(self.s) != 0:
            return True
        return self._wait(_deadline(timeout)) == 1

    def __repr__(self):
        self._need_made()
        return f"<{self._name()} {self._at()}: {'set' if si_sync_state(self.s) else 'unset'}>"


cdef class BarrierCore(SyncCore):
    cdef object action          # as this interpreter made or received it; None: see _action

    def __init__(self, parties, action=None, timeout=None):
        cdef int64_t n = _int64(parties, "parties")
        cdef int64_t now
        if n < 1:
            raise ValueError("parties must be >= 1")
        if action is not None and not callable(action):
            raise TypeError(f"action must be callable or None, not {type(action).__name__}")
        check_timeout(timeout)
        now = si_now()
        deadline = _deadline(timeout)
        self._make(SI_SYNC_BARRIER, 0, n, SI_FOREVER if deadline == SI_FOREVER else max(0, deadline - now))
        self.action = action

    cdef object _action(self):
        """What the last one calls, in this interpreter; None: nothing."""
        if self.action is None and si_barrier_action(self.s) != NULL:
            self.action = si_value_decode(self.cx, si_barrier_action(self.s), True)
        return self.action

    cdef int _encode_action(self) except -1:
        """The action travels with the barrier, encoded once."""
        cdef si_msg *m
        if self.action is None or si_barrier_action(self.s) != NULL:
            return 0
        m = <si_msg *>malloc(sizeof(si_msg))
        if m == NULL:
            raise MemoryError
        si_msg_init(m)
        try:
            _encode_value(self.cx, m, self.action, "message")
        except BaseException:
            si_msg_clear(m)
            free(m)
            raise
        if not si_barrier_set_action(self.s, m):
            si_msg_clear(m)
            free(m)
        return 0

    def wait(self, timeout=None):
        """Wait until all parties have come.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most, fractions count; None: as the barrier was made.

        Returns
        -------
        int
            How many had come before, from 0 to `parties` - 1: each gets another number. Who
            was interrupted does not count.

        Raises
        ------
        BrokenBarrierError
            If the barrier is broken, or breaks or is reset meanwhile; it
            breaks if the time is up before all have come.
        SyncError
            In the child of a fork, if the parent made the barrier.

        Notes
        -----
        Blocks with the interpreter's lock released. The last one runs the
        action, in its interpreter; an exception from it breaks the barrier.
        """
        cdef si_sync_waiter w
        cdef si_ret st
        cdef int64_t deadline, until
        cdef bint act
        self._need_made()
        check_timeout(timeout)
        if timeout is not None:
            deadline = _deadline(timeout)
        elif self.s.timeout == SI_FOREVER:
            deadline = SI_FOREVER
        else:
            deadline = si_now() + self.s.timeout
        act = self.action is not None or si_barrier_action(self.s) != NULL
        si_sync_waiter_init(&w, self.cx)
        st = si_barrier_arrive(self.s, &w, act)
        while st != SI_OK:
            if st == SI_FULL:
                try:
                    self._action()()
                except BaseException:
                    si_barrier_break(self.s, False)
                    raise
                self._check(si_barrier_open(self.s, &w))
                break
            if st == SI_TIMEOUT and si_now() >= deadline:
                st = si_barrier_leave(self.s, &w, False)
                if st == SI_OK:
                    break
                if st == SI_FULL:
                    deadline = SI_FOREVER       # all have come
                elif st != SI_INTR:
                    self._check(st)
            elif st == SI_TIMEOUT or st == SI_INTR:
                try:
                    _look_around()
                except BaseException:
                    si_barrier_leave(self.s, &w, True)
                    raise
            elif st != SI_EMPTY:
                self._check(st)
            until = _slice_end(deadline)
            with nogil:
                st = si_barrier_wait(self.s, &w, act, until)
        return w.index

    def reset(self):
        """Empty the barrier: who waits gets BrokenBarrierError, a broken one works again.

        Raises
        ------
        SyncError
            In the child of a fork, if the parent made the barrier.
        """
        self._need_made()
        self._check(si_barrier_break(self.s, True))

    def abort(self):
        """Break the barrier: who waits, and whoever comes, gets BrokenBarrierError.

        Raises
        ------
        SyncError
            In the child of a fork, if the parent made the barrier.
        """
        self._need_made()
        self._check(si_barrier_break(self.s, False))

    @property
    def parties(self):
        """How many have to come."""
        self._need_made()
        return self.s.limit

    @property
    def n_waiting(self):
        """How many have come, at this moment."""
        self._need_made()
        return max(0, si_barrier_waiting(self.s))

    @property
    def broken(self):
        """True if the barrier is broken."""
        self._need_made()
        return si_barrier_waiting(self.s) < 0

    def __repr__(self):
        self._need_made()
        cdef int64_t n = si_barrier_waiting(self.s)
        state = "broken" if n < 0 else f"waiters={n}/{self.s.limit}"
        return f"<{self._name()} {self._at()}: {state}>"


cdef class CounterCore(SyncCore):
    def __init__(self, value=0):
        self._make(SI_SYNC_COUNTER, _int64(value, "value"), 0, 0)

    cdef int _need_own(self) except -1:
        self._need_made()
        if si_sync_forked(self.s):
            self._check(SI_FORKED)
        return 0

    cdef object _add(self, tuple args, bint minus):
        cdef int64_t amount = 1
        cdef int64_t total = 0
        if PyTuple_GET_SIZE(args):
            if PyTuple_GET_SIZE(args) > 1:
                raise TypeError(f"{'sub' if minus else 'add'}() takes one number, not {len(args)}")
            amount = _int64(<object>PyTuple_GET_ITEM(args, 0), "n")
        self._need_own()
        if not si_counter_add(self.s, amount, minus, &total):
            raise OverflowError("the counter would not fit into 64 bits, with a sign; it was not changed")
        return total

    def add(self, *args):
        """Add to the counter: ``add(n=1)``, without the name.

        Parameters
        ----------
        n : int
            May be negative.

        Returns
        -------
        int
            The new value.

        Raises
        ------
        OverflowError
            If `n` or the sum does not fit into 64 bits with a sign; the counter is as it was.
        SyncError
            In the child of a fork, if the parent made the counter.
        TypeError
            If `n` is not an integer.

        Notes
        -----
        Does not block: one atomic operation, whoever else changes it.
        """
        return self._add(args, False)

    def sub(self, *args):
        """Subtract from the counter: ``sub(n=1)``; the rest is as for `add`."""
        return self._add(args, True)

    def get(self):
        """Return the value at this moment."""
        self._need_own()
        return si_counter_get(self.s)

    def set(self, value, /):
        """Set the value, whatever it was."""
        cdef int64_t new = _int64(value, "value")
        self._need_own()
        si_counter_exchange(self.s, new)

    def exchange(self, value, /):
        """Set the value, and return what it was."""
        cdef int64_t new = _int64(value, "value")
        self._need_own()
        return si_counter_exchange(self.s, new)

    def compare_exchange(self, expected, value, /):
        """Set the value if it is as expected.

        Parameters
        ----------
        expected, value : int

        Returns
        -------
        bool
            True: it was `expected`, and is `value` now. False: it was
            something else, and still is.
        """
        cdef int64_t old = _int64(expected, "expected")
        cdef int64_t new = _int64(value, "value")
        self._need_own()
        return si_counter_compare_exchange(self.s, old, new)

    def __repr__(self):
        self._need_made()
        return f"<{self._name()} {self._at()}: value={si_counter_get(self.s)}>"


# What travels as itself: the same thing, in another interpreter.
_HANDLES = (ChannelEnd, SharedMemory, SyncCore, PoolCore)


# ---- Arrow data ------------------------------------------------------------------------------------------------
# See si_arrow.h. A tree of plain values describes the structs of a stream:
#   schema: (format, name, metadata, flags, children, dictionary)
#   array: (length, null_count, offset, buffers, children, dictionary)
# A buffer is None or (which memory, where in it): memory 0 is the one copy, the
# others are the SharedBuffers that data lies in already.

cdef extern from "Python.h":
    void *PyCapsule_GetPointer(object capsule, const char *name) except NULL


cdef struct _ArrowSource:
    ArrowSchema schema
    ArrowArray array


cdef class ArrowCopy:
    """The content of Arrow streams that is yet to be copied.

    Parameters
    ----------
    streams : list
        PyCapsules as `__arrow_c_stream__` returns them, all of the same type.

    Raises
    ------
    NotImplementedError
        If there are data of a type that is not known here.

    Notes
    -----
    Only the rows that are there are copied, not the memory around a slice. The
    streams' own memory is given back with this object, in this interpreter.
    """
    cdef _ArrowSource *sources
    cdef Py_ssize_t n_sources, room
    cdef si_arrow_job *jobs
    cdef size_t n_jobs, jobs_room
    cdef readonly size_t nbytes
    cdef readonly object schema
    cdef readonly list chunks, shared

    def __cinit__(self, list streams):
        self.chunks = []
        self.shared = []
        for capsule in streams:
            self._read(<ArrowArrayStream *>PyCapsule_GetPointer(capsule, b"arrow_array_stream"))
        cdef Py_ssize_t i
        for i in range(self.n_sources):
            if self.sources[i].array.release != NULL:
                self.chunks.append(self._plan(
                    &self.sources[i].schema, &self.sources[i].array,
                    self.sources[i].array.offset, self.sources[i].array.length,
                ))
        # Never empty: also buffers of no bytes have an address.
        self.nbytes += 64

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n_sources):
            si_arrow_release_array(&self.sources[i].array)
            si_arrow_release_schema(&self.sources[i].schema)
        free(self.sources)
        free(self.jobs)

    cdef _ArrowSource *_new_source(self, ArrowArrayStream *stream) except NULL:
        """One more, with its schema."""
        cdef _ArrowSource *grown
        if self.n_sources == self.room:
            self.room = self.room * 2 + 4
            grown = <_ArrowSource *>realloc(self.sources, <size_t>self.room * sizeof(_ArrowSource))
            if grown == NULL:
                raise MemoryError
            self.sources = grown
        grown = &self.sources[self.n_sources]
        memset(grown, 0, sizeof(_ArrowSource))
        if si_arrow_get_schema(stream, &grown.schema) != 0:
            raise ValueError(_arrow_error(stream))
        self.n_sources += 1
        return grown

    cdef int _read(self, ArrowArrayStream *stream) except -1:
        cdef _ArrowSource *source
        if stream.release == NULL:
            raise ValueError("the Arrow stream was read before")
        try:
            while True:
                source = self._new_source(stream)
                if self.schema is None:
                    self.schema = _schema_tree(&source.schema)
                if si_arrow_get_next(stream, &source.array) != 0:
                    raise ValueError(_arrow_error(stream))
                if source.array.release == NULL:
                    return 0
        finally:
            si_arrow_release_stream(stream)

    cdef object _add(self, const void *src, size_t n, si_arrow_how how=SI_ARROW_PLAIN):
        """Plan the copy of n bytes, unless they lie in shared memory."""
        cdef si_arrow_job *grown
        if how == SI_ARROW_PLAIN and src != NULL:
            found = shared_at(<size_t>src, n)
            if found is not None:
                return self._place(found)
        if self.n_jobs == self.jobs_room:
            self.jobs_room = self.jobs_room * 2 + 16
            grown = <si_arrow_job *>realloc(self.jobs, self.jobs_room * sizeof(si_arrow_job))
            if grown == NULL:
                raise MemoryError
            self.jobs = grown
        memset(&self.jobs[self.n_jobs], 0, sizeof(si_arrow_job))
        self.jobs[self.n_jobs].how = how
        self.jobs[self.n_jobs].from_ = <const char *>src
        self.jobs[self.n_jobs].n = n
        self.jobs[self.n_jobs].at = self.nbytes
        self.n_jobs += 1
        at = self.nbytes
        self.nbytes += _aligned(n)
        return 0, at

    cdef object _place(self, found):
        cdef Py_ssize_t i
        cdef SharedMemory one, other = found[0]
        for i in range(len(self.shared)):
            one = self.shared[i]
            if one.shared == other.shared:
                return i + 1, found[1]
        self.shared.append(other)
        return len(self.shared), found[1]

    cdef object _plan(self, ArrowSchema *s, ArrowArray *a, int64_t first, int64_t n):
        """The tree of n rows from `first` on, which counts without a.offset."""
        cdef const char *f = s.format
        # Rows before the first, so that its bit stays at its place in a byte.
        cdef int64_t lead = first & 7 if n else 0
        cdef int64_t begin = first - lead, count = n + lead, i, k
        cdef int64_t low, high
        cdef int width
        cdef bint whole = first == a.offset and n == a.length
        cdef const char *validity = NULL
        if f[0] == b"n":
            return n, n, 0, (), (), None
        if f[0] == b"+" and f[1] == b"r":
            # Where runs end is counted from the start of the whole.
            return n, 0, first, (), self._children(s, a, 0, -1), None
        buffers = []
        if not (f[0] == b"+" and f[1] == b"u"):
            validity = <const char *>a.buffers[0] if a.null_count != 0 else NULL
            if validity == NULL:
                buffers.append(None)
            else:
                buffers.append(self._add(validity + begin // 8, <size_t>(count + 7) // 8))
        nulls = 0 if validity == NULL else a.null_count if whole else -1
        children = ()
        if f[0] == b"+":
            if f[1] == b"s":
                children = self._children(s, a, begin, count)
            elif f[1] == b"w":
                k = int(s.format[3:].decode())
                children = self._children(s, a, begin * k, count * k)
            elif f[1] == b"l" or f[1] == b"L" or f[1] == b"m":
                width = 8 if f[1] == b"L" else 4
                low, high = self._offsets(buffers, a.buffers[1], begin, count, width)
                children = self._children(s, a, low, high - low)
            elif f[1] == b"v":
                width = 8 if f[2] == b"L" else 4
                for i in range(1, 3):
                    buffers.append(self._rows(a.buffers[i], begin, count, width))
                children = self._children(s, a, 0, -1)
            elif f[1] == b"u" and f[2] == b"s":
                buffers.append(self._rows(a.buffers[0], begin, count, 1))
                children = self._children(s, a, begin, count)
            elif f[1] == b"u" and f[2] == b"d":
                buffers.append(self._rows(a.buffers[0], begin, count, 1))
                buffers.append(self._rows(a.buffers[1], begin, count, 4))
                children = self._children(s, a, 0, -1)
            else:
                raise NotImplementedError(f"Arrow data of the format {s.format!r}")
        elif f[0] == b"u" or f[0] == b"z" or f[0] == b"U" or f[0] == b"Z":
            width = 8 if f[0] == b"U" or f[0] == b"Z" else 4
            low, high = self._offsets(buffers, a.buffers[1], begin, count, width)
            buffers.append(self._add(<const char *>a.buffers[2] + low if high > low else NULL,
                                     <size_t>(high - low)))
        elif f[0] == b"v":
            self._views(buffers, a, begin, count)
        elif f[0] == b"b":
            buffers.append(self._add(<const char *>a.buffers[1] + begin // 8 if n else NULL,
                                     <size_t>(count + 7) // 8))
        else:
            buffers.append(self._rows(a.buffers[1], begin, count, _arrow_width(s.format)))
        dictionary = None
        if a.dictionary != NULL:
            dictionary = self._plan(s.dictionary, a.dictionary, a.dictionary.offset,
                                    a.dictionary.length)
        return n, nulls, lead, tuple(buffers), children, dictionary

    cdef object _rows(self, const void *src, int64_t begin, int64_t count, int64_t width):
        return self._add(<const char *>src + begin * width if src != NULL and count else NULL,
                         <size_t>(count * width))

    cdef object _children(self, ArrowSchema *s, ArrowArray *a, int64_t begin, int64_t count):
        """Their rows from `begin` on; all of them if the count is negative."""
        cdef int64_t i
        cdef ArrowArray *child
        trees = []
        for i in range(a.n_children):
            child = a.children[i]
            trees.append(self._plan(s.children[i], child, child.offset + begin,
                                    child.length if count < 0 else count))
        return tuple(trees)

    cdef (int64_t, int64_t) _offsets(self, list buffers, const void *src, int64_t begin,
                                     int64_t count, int width) except *:
        """Plan the offsets of a list or string; which of the values are needed?

        They begin with 0 afterwards. Shared memory stays as it is: there they
        may begin anywhere, and the values with the first.
        """
        cdef int64_t low, high
        cdef const char *at
        if src == NULL or count == 0:
            buffers.append(self._add(NULL, <size_t>((count + 1) * width)))
            return 0, 0
        at = <const char *>src + begin * width
        if width == 8:
            low, high = (<const int64_t *>at)[0], (<const int64_t *>at)[count]
        else:
            low, high = (<const int32_t *>at)[0], (<const int32_t *>at)[count]
        n = <size_t>((count + 1) * width)
        if low == 0 or shared_at(<size_t>at, n) is not None:
            buffers.append(self._add(at, n))
            return 0, high
        buffers.append(self._add(at, n, SI_ARROW_OFFSETS_64 if width == 8 else SI_ARROW_OFFSETS_32))
        return low, high

    cdef int _views(self, list buffers, ArrowArray *a, int64_t begin, int64_t count) except -1:
        """Plan views, and the text that they mean, which other rows may share."""
        cdef int64_t i, n_text = a.n_buffers - 3
        cdef const int64_t *sizes = <const int64_t *>a.buffers[a.n_buffers - 1]
        cdef const char *views = <const char *>a.buffers[1] + begin * 16 if count else NULL
        cdef size_t there = 0, needed, n = <size_t>(count * 16)
        cdef si_arrow_job *job
        for i in range(n_text):
            there += <size_t>sizes[i]
        if there > 1 << 16 and shared_at(<size_t>views, n) is None:
            needed = si_arrow_text_size(a, begin, count)
            if needed < there // 2 and needed < 1 << 31:
                buffers.append(self._add(views, n, SI_ARROW_VIEWS))
                job = &self.jobs[self.n_jobs - 1]
                job.array = a
                job.first = begin
                job.text_at = self.nbytes
                buffers.append((0, self.nbytes))
                self.nbytes += _aligned(needed)
                job.size_at = self.nbytes
                buffers.append((0, self.nbytes))
                self.nbytes += _aligned(sizeof(int64_t))
                return 0
        buffers.append(self._add(views, n))
        for i in range(n_text):
            buffers.append(self._add(a.buffers[2 + i], <size_t>sizes[i]))
        buffers.append(self._add(sizes, <size_t>n_text * sizeof(int64_t)))
        return 0

    def copy_into(self, buffer):
        """Copy what was planned."""
        cdef Py_buffer view
        cdef size_t i
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            if <size_t>view.len < self.nbytes:
                raise ValueError("the buffer is too small")
            with nogil:
                for i in range(self.n_jobs):
                    si_arrow_copy(<char *>view.buf, &self.jobs[i])
        finally:
            PyBuffer_Release(&view)


cdef object _arrow_error(ArrowArrayStream *stream):
    cdef const char *text = si_arrow_error(stream)
    return "an Arrow stream failed" if text == NULL else (<bytes>text).decode(errors="replace")


cdef object _schema_tree(ArrowSchema *s):
    cdef int64_t i
    children = []
    for i in range(s.n_children):
        children.append(_schema_tree(s.children[i]))
    return (
        <bytes>s.format,
        None if s.name == NULL else <bytes>s.name,
        PyBytes_FromStringAndSize(s.metadata, <Py_ssize_t>si_arrow_metadata_size(s.metadata)),
        s.flags,
        tuple(children),
        None if s.dictionary == NULL else _schema_tree(s.dictionary),
    )


cdef int64_t _arrow_width(bytes format) except -1:
    """Bytes of an item of fixed size."""
    text = format.decode()
    width = {
        "c": 1, "C": 1, "s": 2, "S": 2, "i": 4, "I": 4, "l": 8, "L": 8, "e": 2, "f": 4, "g": 8,
        "tdD": 4, "tdm": 8, "tts": 4, "ttm": 4, "ttu": 8, "ttn": 8, "tDs": 8, "tDm": 8, "tDu": 8,
        "tDn": 8, "tiM": 4, "tiD": 8, "tin": 16,
        "_pli128": 16, "_plu128": 16,   # polars' own
    }.get(text)
    if width is not None:
        return width
    if text.startswith("ts"):
        return 8
    if text.startswith("w:"):
        return int(text[2:])
    if text.startswith("d:"):
        sizes = text[2:].split(",")
        return 16 if len(sizes) < 3 else int(sizes[2]) // 8
    raise NotImplementedError(f"Arrow data of the format {text!r}")


cdef class ArrowData:
    """Received Arrow data, for libraries that read `__arrow_c_stream__`.

    Notes
    -----
    The memory is kept by what the libraries make of it, and given back by C
    code alone: it does not matter when, and by which thread.
    """
    cdef object schema, chunks
    cdef list memory        # the copy, as a memoryview, then SharedBuffers

    def __arrow_c_stream__(self, requested_schema=None):
        """A new stream over the same memory."""
        cdef ArrowSchema schema
        cdef ArrowArray *arrays
        cdef si_arrow_memory *m
        cdef Py_ssize_t i, n = len(self.chunks)
        memset(&schema, 0, sizeof(schema))
        arrays = <ArrowArray *>calloc(<size_t>n + 1, sizeof(ArrowArray))
        if arrays == NULL:
            raise MemoryError
        m = self._hold()
        try:
            _make_schema(&schema, self.schema)
            for i in range(n):
                self._make_array(&arrays[i], m, self.chunks[i])
        except BaseException:
            for i in range(n):
                si_arrow_release_array(&arrays[i])
            free(arrays)
            si_arrow_release_schema(&schema)
            raise
        finally:
            si_arrow_memory_release(m)
        return si_arrow_stream_capsule(&schema, arrays, <uint32_t>n)

    cdef si_arrow_memory *_hold(self) except NULL:
        cdef si_arrow_memory *m = si_arrow_memory_new(<uint32_t>len(self.memory))
        if m == NULL:
            raise MemoryError
        for memory in self.memory:
            owner = memory.obj if isinstance(memory, memoryview) else memory
            if isinstance(owner, SharedMemory):
                si_arrow_memory_add_shared(m, (<SharedMemory>owner).shared)
            else:
                si_arrow_memory_add_block(m, (<MessageBuffer?>owner).block)
        return m

    cdef int _make_array(self, ArrowArray *a, si_arrow_memory *m, tree) except -1:
        cdef int64_t i
        length, nulls, offset, buffers, children, dictionary = tree
        if not si_arrow_array_init(a, m, length, nulls, offset, len(buffers), len(children),
                                   dictionary is not None):
            raise MemoryError
        for i, buffer in enumerate(buffers):
            if buffer is not None:
                a.buffers[i] = _start_of(self.memory[buffer[0]]) + <Py_ssize_t>buffer[1]
        for i, child in enumerate(children):
            self._make_array(a.children[i], m, child)
        if dictionary is not None:
            self._make_array(a.dictionary, m, dictionary)
        return 0


cdef const char *_start_of(memory) except NULL:
    """The address of a buffer, whose owner is held elsewhere."""
    cdef Py_buffer view
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    cdef const char *start = <const char *>view.buf
    PyBuffer_Release(&view)
    return start


cdef int _make_schema(ArrowSchema *s, tree) except -1:
    cdef int64_t i
    cdef const char *c_name = NULL
    cdef const char *c_metadata
    format, name, metadata, flags, children, dictionary = tree
    if name is not None:
        c_name = name
    c_metadata = metadata
    if not si_arrow_schema_init(s, format, c_name, c_metadata, <size_t>len(metadata), flags,
                                len(children), dictionary is not None):
        raise MemoryError
    for i, child in enumerate(children):
        _make_schema(s.children[i], child)
    if dictionary is not None:
        _make_schema(s.dictionary, dictionary)
    return 0


def arrow_data(schema, chunks, memory, shared):
    """An ArrowData; the arguments are what an ArrowCopy made, and the copy."""
    cdef ArrowData data = ArrowData.__new__(ArrowData)
    data.schema = schema
    data.chunks = chunks
    data.memory = [memory, *shared]
    return data


# ---- the process -----------------------------------------------------------------------------------------------

def _process_token():
    """Tells this process from others that load one of its pickles."""
    import os
    return os.getpid()


def interpreter_ids():
    """Ids of all interpreters of the process, newest first, but for parked ones and
    those that were closed and are about to end."""
    cdef int64_t ids[4096]
    cdef size_t n
    if not si_runtime_known():
        return None
    idle = {interp_id for interp_id, _ in parked()}
    n = min(si_pool_singles_ending(ids, 4096), <size_t>4096)
    idle.update([ids[i] for i in range(<Py_ssize_t>n)])
    with nogil:
        n = si_runtime_list(ids, 4096)
    return [ids[i] for i in range(<Py_ssize_t>min(n, <size_t>4096)) if ids[i] not in idle]


def parked():
    """(id of the interpreter, id of its native thread) of each that is parked, newest first."""
    cdef int64_t interps[4096]
    cdef int64_t threads[4096]
    cdef size_t n = min(si_park_list(interps, threads, 4096), <size_t>4096)
    return [(interps[i], threads[i]) for i in range(<Py_ssize_t>n)]


def arm_parking(int default_limit):
    """Allow parking: the main interpreter calls `abandon_workers` at exit."""
    si_park_arm(default_limit)


def set_parked_limit(limit):
    """Set how many worker interpreters are kept for later pools.

    An interpreter with private copies of extension modules is not ended with
    its pool, since the copies' memory cannot be given back: it is parked, and
    the next pool with the same `extensions` takes it instead of making one.

    Parameters
    ----------
    limit : int
        Parked interpreters in the whole process, at most. 0: none is parked.
        The default is twice the number of usable processors, and at least 4.

    Raises
    ------
    TypeError
        If `limit` is not an integer.
    ValueError
        If it is negative or above 4096.

    Notes
    -----
    Does not block: parked interpreters above the limit, those first that were
    parked first, end in threads of their own. May be called in any interpreter.
    """
    if not isinstance(limit, int):
        raise TypeError(f"limit must be an integer, not {type(limit).__name__}")
    if not 0 <= limit <= 4096:
        raise ValueError("limit must be between 0 and 4096")
    si_park_set_limit(limit)


def _fail_interpreters(int n):
    """For tests: so many of the next attempts to make a worker's interpreter fail."""
    si_fail_for_tests(n)


def _pretend_copies(uint32_t n=1):
    """For tests: act as if this interpreter had loaded private copies."""
    (<Context>_context).cx.n_copies = n


def current_interpreter_id():
    """Id of the interpreter that asks."""
    return (<Context>_context).cx.interp_id


def in_worker():
    """True in a worker's own thread."""
    return si_worker_self() != NULL


def abandon_workers(double grace):
    """At exit of the process: make workers that have not ended harmless.

    Those that may still end are given `grace` seconds, or until Ctrl-C, which has
    its effect thereby: it is not raised.
    """
    cdef int64_t until = si_now() + <int64_t>(grace * 1e9)
    cdef bint ended = False
    si_exit_begin()
    try:
        while not ended and si_now() < until:
            with nogil:
                ended = si_exit_wait(min(until, si_now() + 50000000))
            PyErr_CheckSignals()
    except KeyboardInterrupt:
        pass
    finally:
        with nogil:
            si_exit_abandon()


def set_spin_time(double seconds):
    """Set how long waits look for what they wait for before they sleep.

    Parameters
    ----------
    seconds : float
        At most 1. 0: sleep at once. The default is 50 microseconds, or 0 where
        the process may use one processor only.

    Raises
    ------
    ValueError
        If `seconds` is not between 0 and 1.

    Notes
    -----
    It holds for the whole process, from the next wait on. Waits learn to spin
    less where it does not help, and idle workers do not spin where there are
    more workers than processors.
    """
    if not 0 <= seconds <= 1:
        raise ValueError("seconds must be between 0 and 1")
    si_set_spin(<int64_t>(seconds * 1e9))


def usable_cores():
    """Processors this process may run on."""
    return si_usable_cores()


def extensions_unsupported():
    """Return why private copies of extension modules cannot be loaded here; "": they can."""
    cdef const char *why = si_gate_unsupported()
    return "" if why == NULL else (<bytes>why).decode()


def can_free_blocked_calls():
    """Whether a blocked system call of an interrupted task can be ended here."""
    return si_can_free_blocked_calls()


def has_arenas():
    """Whether Python uses its own allocator, whose memory is counted by interpreter."""
    return si_has_arenas()


def live_counts():
    """Live C objects of the process by kind; tasks and messages in debug builds only."""
    return {
        "contexts": si_live.contexts, "pools": si_live.pools, "workers": si_live.workers,
        "parked": si_live.parked,
        "channels": si_live.channels, "buffers": si_live.shared, "syncs": si_live.syncs,
        "functions": si_live.functions, "tasks": si_live.tasks, "messages": si_live.messages,
    }


# ---- the runtime seen from inside -------------------------------------------------

cdef object _known(int64_t number):
    return None if number < 0 else number


cdef object _flag(int value):
    return None if value < 0 else bool(value)


cdef const si_layout *_layout(object table, si_layout *mine) except NULL:
    """The running Python's layout; or, for tests, what another table would make of it."""
    if table is None:
        return si_runtime_layout()
    if <size_t>len(table) != si_table_size:
        raise ValueError(f"a table has {si_table_size} bytes, not {len(table)}")
    si_layout_read(mine, <const char *>(<bytes>table), PyThreadState_Get())
    return mine


def runtime_layout(table=None):
    """{name: offset, or None where it could not be confirmed} of what is looked at.

    table: for tests, in place of the one at the start of the runtime.
    """
    cdef si_layout mine
    cdef const size_t *offsets = <const size_t *>_layout(table, &mine)
    return {
        si_layout_names[i].decode(): None if offsets[i] == SI_UNKNOWN else offsets[i]
        for i in range(<Py_ssize_t>SI_LAYOUT_N)
    }


def runtime_table():
    """(the table of offsets that the runtime starts with, {name: place} of its entries)."""
    places = {
        si_table[i].name.decode(): si_table[i].at
        for i in range(SI_N_TABLE) if si_table[i].at != SI_UNKNOWN
    }
    return _PyRuntime[:si_table_size], places


def built_version():
    """The version of the headers this was built with, as `sys.hexversion` has it."""
    return si_built_version


def look_at_runtime(table=None):
    """(interpreters, thread states), each a list of tuples; None: the layout is unknown.

    The tuples are as `runtime.snapshot` takes them apart.
    """
    cdef si_layout mine
    cdef const si_layout *l = _layout(table, &mine)
    cdef size_t room_i = 64, room_t = 256, n_i = 0, n_t = 0
    cdef si_interp_view *interps = NULL
    cdef si_thread_view *threads = NULL
    cdef bint good
    try:
        while True:
            interps = <si_interp_view *>malloc(room_i * sizeof(si_interp_view))
            threads = <si_thread_view *>malloc(room_t * sizeof(si_thread_view))
            if interps == NULL or threads == NULL:
                raise MemoryError
            with nogil:
                good = si_look(l, interps, room_i, &n_i, threads, room_t, &n_t)
            if not good:
                return None
            if n_i <= room_i and n_t <= room_t:
                break
            free(interps)
            free(threads)
            interps = NULL
            threads = NULL
            room_i = n_i + 64
            room_t = n_t + 256
        return (
            [(
                interps[i].id, _known(interps[i].whence), bool(interps[i].ready),
                bool(interps[i].finalizing), _flag(interps[i].own_lock),
                _flag(interps[i].own_allocator), _flag(interps[i].allow_fork),
                _flag(interps[i].allow_exec), _flag(interps[i].allow_threads),
                _flag(interps[i].allow_daemon_threads), _flag(interps[i].check_extensions),
                interps[i].lock, interps[i].own, _flag(interps[i].locked),
                _known(interps[i].switches), _known(interps[i].interval),
                _flag(interps[i].gc_enabled), _flag(interps[i].gc_collecting),
                [_known(interps[i].gc_threshold[j]) for j in range(3)],
                [_known(interps[i].gc_count[j]) for j in range(3)],
                None if interps[i].n_threads == SI_UNKNOWN
                else (interps[i].first_thread, interps[i].first_thread + interps[i].n_threads),
            ) for i in range(<Py_ssize_t>n_i)],
            [(threads[i].ident, threads[i].native, _flag(threads[i].holds),
              _flag(threads[i].waits)) for i in range(<Py_ssize_t>n_t)],
        )
    finally:
        free(interps)
        free(threads)


def known_interpreters():
    """{id: whether it can be asked} of the interpreters that have loaded the library."""
    cdef int64_t ids[4096]
    cdef bint ended[4096]
    cdef Py_ssize_t n = 0, i
    cdef si_context *cx
    with nogil:
        cx = si_contexts_lock()
        while cx != NULL and n < 4096:
            ids[n] = cx.interp_id
            ended[n] = cx.ended
            n += 1
            cx = cx.all_next
        si_contexts_unlock()
    return {ids[i]: not ended[i] for i in range(n)}


def ask_interpreters(ids, double timeout):
    """{id: its report (see si_report), or None: no answer in time} of interpreters.

    Those that cannot be asked are left out. Blocks for up to `timeout` seconds, with this
    interpreter's lock released; what this interpreter is asked meanwhile, it answers.
    """
    cdef Py_ssize_t n = 0, room = len(ids)
    cdef int64_t interp_id, deadline, now
    cdef si_context *me = (<Context>_context).cx
    cdef si_ask *ask
    cdef si_ask **asks = <si_ask **>malloc((room + 1) * sizeof(si_ask *))
    cdef list asked = []
    cdef dict reports = {}
    cdef si_ret st
    if asks == NULL:
        raise MemoryError
    try:
        for interp_id in ids:
            if interp_id == me.interp_id:
                continue
            with nogil:
                ask = si_ask_new(interp_id)
            if ask != NULL:
                asks[n] = ask
                n += 1
                asked.append(interp_id)
        deadline = si_now() + <int64_t>(timeout * 1e9)
        if me.interp_id in ids:
            reports[me.interp_id] = si_report(me)
        for i in range(n):
            while True:
                now = si_now()
                with nogil:
                    st = si_ask_wait(asks[i], min(deadline, now + 5000000))
                if st == SI_OK:
                    break
                _look_around()
                if si_now() >= deadline:
                    break
            reports[asked[i]] = None
            if asks[i].state == SI_ASK_ANSWERED:
                reports[asked[i]] = si_value_decode(me, &asks[i].answer, False)
        return reports
    finally:
        for i in range(n):
            si_ask_done(asks[i])
        free(asks)


def runtime_fields():
    """(field, part, where, path, about, value) of what _PyRuntimeState had in May 2019."""
    cdef const si_field *f
    cdef const char *at
    cdef list rows = []
    where = {
        SI_IN_RUNTIME: "_PyRuntimeState", SI_IN_INTERPRETER: "PyInterpreterState",
        SI_IN_THREAD: "PyThreadState", SI_THREAD_LOCAL: "thread-local", SI_GONE: "gone",
    }
    for i in range(<Py_ssize_t>si_n_fields):
        f = &si_fields[i]
        at = <const char *>si_field_at(si_runtime_layout(), f, (<Context>_context).cx.interp)
        value = None
        if at == NULL:
            pass
        elif f.kind == SI_VALUE_INT:
            value = (<const int *>at)[0]
        elif f.kind == SI_VALUE_LONG:
            value = (<const int64_t *>at)[0]
        elif f.kind == SI_VALUE_SET:
            value = "set" if (<void *const *>at)[0] != NULL else "not set"
        elif f.kind == SI_VALUE_PRECONFIG:
            value = ", ".join(
                f"{si_preconfig[j].name.decode()}={(<const int *>(at + si_preconfig[j].offset))[0]}"
                for j in range(<Py_ssize_t>si_n_preconfig)
            )
        rows.append((f.field.decode(), f.part.decode(), where[f.place], f.path.decode(),
                     f.about.decode(), value))
    return rows


def look_at_pools():
    """(id, name, id of the creating interpreter, most workers, `PoolCore._look`) of all pools."""
    cdef uint64_t ids[1024]
    cdef size_t n
    cdef si_pool *pool
    cdef PoolCore core
    cdef list pools = []
    with nogil:
        n = min(si_pools_of(-1, ids, 1024), <size_t>1024)
    for i in range(<Py_ssize_t>n):
        pool = si_pool_find(ids[i])
        if pool == NULL:
            continue
        core = PoolCore.__new__(PoolCore)
        core.pool = pool        # and its reference
        pools.append((pool.id, pool.name.decode("utf-8", "replace"), pool.creator,
                      pool.max_workers, core._look()))
    return pools


_context = _new_context()
si_runtime_init(PyThreadState_Get())
if si_python.init_module == NULL:
    # Once for the process: before the first worker, constant afterwards.
    si_python.init_module = PyInit__core
    si_python.encode = _hook_encode
    si_python.decode = _hook_decode
    si_measure_memory()
preimport_datetime = bool(SI_PREIMPORT_DATETIME)
if (<Context>_context).cx.interp_id == 0:
    import os as _os
    _os.register_at_fork(after_in_child=after_fork_in_child)

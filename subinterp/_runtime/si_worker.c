/* si_worker.c: a native thread inside an interpreter of its own.
 *
 * The thread is created by us and makes its interpreter itself. So it has one
 * thread state for life, PyGILState_* and ctypes callbacks bind to the right
 * interpreter, and no lock but its own interpreter's is ever taken on the way
 * of a task. A threading.Thread of the main interpreter that switches over
 * (what the standard library does) would need the main lock for each wait.
 *
 * Life: STARTING -> IDLE <-> RUNNING -> FINISHING -> ENDING -> ENDED. An
 * interpreter may be ended only by its last thread state; if a task left
 * threads that do not stop, or its code hangs, the interpreter is ABANDONED:
 * it keeps running what runs, holds nothing of the library's, and is made
 * harmless at exit (si_exit_abandon).
 *
 * An interpreter that holds private copies of extension modules is not ended
 * with its pool but PARKED, and its thread becomes another pool's worker later
 * (si_park.h). */
#include "si_park.h"
#include "si_channel.h"
#include "si_extension.h"
#include "si_stop.h"
#include "si_signal.h"

#include <marshal.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

si_hooks si_python;

/* Guards: the list of live workers, parked ones included; and whether there may be more. */
static si_mutex workers_mu;
static si_worker *workers;
static bool exiting;

static __thread si_worker *this_worker;

si_worker *si_worker_self(void)
{
    return this_worker;
}

void si_worker_release(si_worker *w)
{
    if (atomic_fetch_sub_explicit(&w->refs, 1, memory_order_acq_rel) == 1) {
        if (w->trace)
            si_trace_release(w->trace);
        if (w->home)
            si_home_release(w->home);
        free(w->meter);
        free(w);
    }
}

/* ---- memory ------------------------------------------------------------------ */

/* Interpreters share the process's heap, but for objects of up to 512 bytes: each
 * has arenas of its own for them, of a megabyte. So we stand before the
 * allocator of arenas. It is called rarely, by threads that are in the
 * interpreter, or (at the end of one) by the thread that made it. */
static PyObjectArenaAllocator arenas;
/* Of an interpreter that this thread is about to make. */
static __thread int64_t new_arenas;

static void note_arena(int64_t n)
{
    if (this_worker) {
        if (this_worker->cx)
            atomic_fetch_add(&this_worker->cx->arena_bytes, n);
        else
            new_arenas += n;
        return;
    }
    /* A thread that a task started, mostly. */
    PyThreadState *ts = PyThreadState_GetUnchecked();
    PyInterpreterState *interp = ts ? PyThreadState_GetInterpreter(ts) : NULL;
    if (!interp || interp == PyInterpreterState_Main())
        return;
    /* Not for ever: who holds it may wait for a thread that waits for our
     * interpreter's lock (see pass_workers_mu), which cannot be let go here. */
    for (int i = 0; !si_trylock(&workers_mu); i++) {
        if (i == 10000)
            return;
        sched_yield();
    }
    for (si_worker *w = workers; w; w = w->all_next) {
        uint32_t s = atomic_load(&w->state);
        /* It is not being made or ended: we are in it. */
        if ((s == SI_W_PREPARING || s == SI_W_IDLE || s == SI_W_RUNNING || s == SI_W_FINISHING
             || s == SI_W_ABANDONED)
            && w->interp == interp && w->cx) {
            atomic_fetch_add(&w->cx->arena_bytes, n);
            break;
        }
    }
    si_unlock(&workers_mu);
}

static void *new_arena(void *ctx, size_t n)
{
    void *p = arenas.alloc(ctx, n);
    if (p)
        note_arena((int64_t)n);
    return p;
}

static void free_arena(void *ctx, void *p, size_t n)
{
    note_arena(-(int64_t)n);
    arenas.free(ctx, p, n);
}

void si_measure_memory(void)
{
    PyObject_GetArenaAllocator(&arenas);
    /* The same `ctx`: whoever reads half of the old and half of the new is served well. */
    PyObjectArenaAllocator ours = {arenas.ctx, new_arena, free_arena};
    PyObject_SetArenaAllocator(&ours);
}

/* ---- values ---------------------------------------------------------------- */

/* Most pickles carry nothing beside their bytes. For these a worker does not
 * load the extension's module, which costs each interpreter memory (that
 * Cython 3.3 does not give back when the interpreter ends) and time. */
static PyObject *plain_loads(si_msg *m)
{
    PyObject *pickle = PyImport_ImportModule("_pickle");
    PyObject *view = pickle ? PyMemoryView_FromMemory(m->data, (Py_ssize_t)m->len, PyBUF_READ)
                            : NULL;
    PyObject *value = view ? PyObject_CallMethod(pickle, "loads", "O", view) : NULL;
    if (view) {
        /* Nobody may look at the bytes once the message is gone. */
        PyObject *exc = PyErr_GetRaisedException();
        PyObject *r = PyObject_CallMethod(view, "release", NULL);
        Py_XDECREF(r);
        PyErr_Clear();
        if (exc)
            PyErr_SetRaisedException(exc);
        Py_DECREF(view);
    }
    Py_XDECREF(pickle);
    return value;
}

/* True if that did: a result that plain pickle takes, without buffers and
 * without a name of `__main__`, which the caller's differs from. */
static bool plain_dumps(si_msg *m, PyObject *obj)
{
    PyObject *pickle = PyImport_ImportModule("_pickle"), *data = NULL;
    PyObject *buffers = pickle ? PyList_New(0) : NULL;
    PyObject *add = buffers ? PyObject_GetAttrString(buffers, "append") : NULL;
    PyObject *dumps = add ? PyObject_GetAttrString(pickle, "dumps") : NULL;
    PyObject *args = dumps ? Py_BuildValue("(Oi)", obj, 5) : NULL;
    PyObject *kwargs = args ? Py_BuildValue("{s:O}", "buffer_callback", add) : NULL;
    bool done = false;
    if (kwargs)
        data = PyObject_Call(dumps, args, kwargs);
    if (data && PyList_GET_SIZE(buffers) == 0
        && !memmem(PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), "__main__", 8)
        && si_put(m, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data))) {
        m->format = SI_FMT_PICKLE;
        done = true;
    }
    PyErr_Clear();  /* the general encoder says what is wrong */
    Py_XDECREF(data);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(dumps);
    Py_XDECREF(add);
    Py_XDECREF(buffers);
    Py_XDECREF(pickle);
    return done;
}

/* Loaded by us, or imported by a task. */
static bool core_is_there(si_context *cx)
{
    if (!cx->core_loaded) {
        PyObject *modules = PyImport_GetModuleDict();
        cx->core_loaded = modules && PyDict_GetItemString(modules, "subinterp._core");
    }
    return cx->core_loaded;
}

PyObject *si_value_decode(si_context *cx, si_msg *m, bool keep)
{
    if (m->format == SI_FMT_FAST) {
        si_reader r;
        si_reader_init(&r, m);
        r.keep = keep;
        return si_decode(&r);
    }
    if (m->format == SI_FMT_NONE) {
        PyErr_SetString(PyExc_SystemError, "subinterp: an empty message was decoded");
        return NULL;
    }
    if (!core_is_there(cx)) {
        if (m->n_parts == 0)
            return plain_loads(m);
        if (si_load_core(cx) < 0)
            return NULL;
    }
    return si_python.decode(cx, m, keep);
}

int si_value_encode(si_context *cx, si_msg *m, PyObject *obj)
{
    si_encoder e;
    si_encoder_init(&e);
    si_ret st = si_encode(&e, m, obj);
    if (st == SI_OK) {
        m->format = SI_FMT_FAST;
        return 0;
    }
    si_msg_cut(m, 0, 0);
    if (st == SI_NOMEM) {
        PyErr_NoMemory();
        return -1;
    }
    if (!core_is_there(cx)) {
        if (plain_dumps(m, obj))
            return 0;
        si_msg_cut(m, 0, 0);
        if (si_load_core(cx) < 0)
            return -1;
    }
    return si_python.encode(cx, m, obj);
}

/* ---- the extension's own module in a worker -------------------------------- */

/* The module, once it was executed in this interpreter; NULL without an exception. An
 * import that is interrupted after that forgets it, and must find it again: it
 * cannot be executed twice. */
static PyObject *core_made(void)
{
    PyObject *made = NULL;
    if (this_worker && this_worker->cx && this_worker->cx->worker_module)
        made = PyObject_GetAttrString(this_worker->cx->worker_module, "_core_made");
    if (!made)
        PyErr_Clear();
    return made;
}

static PyObject *create_core(PyObject *self, PyObject *spec)
{
    (void)self;
    PyObject *made = core_made();
    if (made)
        return made;
    PyObject *def = si_python.init_module();
    if (!def)
        return NULL;
    /* Multi-phase: PyInit returned the definition. */
    return PyModule_FromDefAndSpec((PyModuleDef *)def, spec);
}

/* One worker at a time executes the module: Cython fills its tables of C
 * methods, which are the process's, each time anew (with what they hold). It
 * is held while Python code runs, by a thread that waits for no other of our
 * locks. */
static si_mutex exec_mu;

static PyObject *exec_core(PyObject *self, PyObject *module)
{
    (void)self;
    PyModuleDef *def = PyModule_GetDef(module);
    if (!def)
        return NULL;
    PyObject *made = core_made();
    Py_XDECREF(made);
    if (made == module)
        Py_RETURN_NONE;
    /* It cannot be executed twice in one interpreter: no task's interruption
     * stops it half-way. */
    si_worker *w = this_worker;
    if (w)
        si_shield(w);
    Py_BEGIN_ALLOW_THREADS
    si_lock(&exec_mu);
    Py_END_ALLOW_THREADS
    int bad = PyModule_ExecDef(module, def);
    si_unlock(&exec_mu);
    if (bad == 0 && w && w->cx && w->cx->worker_module)
        bad = PyObject_SetAttrString(w->cx->worker_module, "_core_made", module);
    if (w)
        si_unshield(w);
    if (bad < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef create_core_def = {"create_core", create_core, METH_O, NULL};
static PyMethodDef exec_core_def = {"exec_core", exec_core, METH_O, NULL};

int si_load_core(si_context *cx)
{
    PyObject *m = PyImport_ImportModule("subinterp._core");
    if (!m)
        return -1;
    Py_DECREF(m);
    cx->core_loaded = true;
    return 0;
}

/* The list of live workers, for si_stop.c. */
si_worker *si_workers_lock(void)
{
    si_lock(&workers_mu);
    return workers;
}

void si_workers_unlock(void)
{
    si_unlock(&workers_mu);
}

/* ---- streams ---------------------------------------------------------------- */

/* One worker at a time writes to the process's own streams, so that what it
 * writes at once, whole lines, stays together even if the system takes it in
 * pieces. It is held while a write blocks, without any interpreter's lock. */
static si_mutex write_mu;

static int write_all(int fd, const char *data, size_t n)
{
    int problem = 0;
    si_lock(&write_mu);
    while (n && !problem) {
        ssize_t done = write(fd, data, n);
        if (done >= 0) {
            data += done;
            n -= (size_t)done;
        }
        else if (errno != EINTR)
            problem = errno;
    }
    si_unlock(&write_mu);
    return problem;
}

#define STREAM_RECORDS 3

static PyObject *emit(PyObject *self, PyObject *const *args, Py_ssize_t n)
{
    Py_buffer b;
    if (n != 3) {
        PyErr_SetString(PyExc_TypeError, "emit takes a stream's number, bytes, and whether to forward");
        return NULL;
    }
    int stream = (int)PyLong_AsLong(args[0]), forward = PyObject_IsTrue(args[2]), problem = 0;
    if ((stream == -1 && PyErr_Occurred()) || forward < 0
        || PyObject_GetBuffer(args[1], &b, PyBUF_SIMPLE) < 0)
        return NULL;
    /* A thread that a task started has none; a stream kept from an earlier pool
     * writes where this pool's output goes. */
    si_pool *p = this_worker ? this_worker->pool : PyCapsule_GetPointer(self, NULL);
    if (stream == STREAM_RECORDS || (forward && p->forward_output)) {
        if (p->out_cq)
            si_pool_output(p, stream, b.buf, (size_t)b.len);
    }
    else {
        Py_BEGIN_ALLOW_THREADS
        problem = write_all(stream, b.buf, (size_t)b.len);
        Py_END_ALLOW_THREADS
    }
    Py_ssize_t len = b.len;
    PyBuffer_Release(&b);
    if (problem) {
        errno = problem;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSsize_t(len);
}

static void drop_pool(PyObject *capsule)
{
    si_pool_release(PyCapsule_GetPointer(capsule, NULL));
}

/* The pool, for a Python object of one of its workers: its memory stays. */
static PyObject *pool_capsule(si_pool *p)
{
    PyObject *capsule = PyCapsule_New(p, NULL, drop_pool);
    if (capsule)
        si_pool_retain(p);
    return capsule;
}

static PyMethodDef emit_def = {"emit", (PyCFunction)(void (*)(void))emit, METH_FASTCALL, NULL};

static void flush_streams(si_worker *w)
{
    w->cx->dirty = 0;  /* set again if text of other threads remains */
    PyObject *r = PyObject_CallMethod(w->cx->worker_module, "flush", NULL);
    if (r)
        Py_DECREF(r);
    else
        PyErr_WriteUnraisable(NULL);
}

/* sys.unraisablehook: an interruption that a finalizer or the callback of a weak
 * reference has swallowed is not lost. In C, so that it is not raised in here. */
static PyObject *report_unraisable(PyObject *self, PyObject *info)
{
    (void)self;
    si_worker *w = this_worker;
    PyObject *type = PyObject_GetAttrString(info, "exc_type"), *ours = NULL;
    if (type && w && w->cx && w->cx->worker_module)
        ours = PyObject_GetAttrString(w->cx->worker_module, "Interrupt");
    bool again = ours && ours == type && si_call_again(w);
    Py_XDECREF(ours);
    Py_XDECREF(type);
    PyErr_Clear();
    if (again)
        Py_RETURN_NONE;
    PyObject *usual = PySys_GetObject("__unraisablehook__");
    if (!usual)
        Py_RETURN_NONE;
    return PyObject_CallOneArg(usual, info);
}

/* shield(bool): this thread is in code of the import system that must not stop
 * half-way, and wait for what others import without being freed. */
static PyObject *shield(PyObject *self, PyObject *on)
{
    (void)self;
    si_worker *w = this_worker;
    if (w && on == Py_True)
        si_shield(w);
    else if (w)
        si_unshield(w);
    Py_RETURN_NONE;
}

static PyMethodDef shield_def = {"shield", shield, METH_O, NULL};

static PyMethodDef report_def = {"unraisablehook", report_unraisable, METH_O, NULL};

/* ---- failures ---------------------------------------------------------------- */

/* The current exception as a tree of plain values (see _worker.describe). */
static PyObject *describe_exception(si_worker *w)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyObject *tree = PyObject_CallMethod(w->cx->worker_module, "describe", "O", exc);
    if (!tree) {
        /* Describing failed as well (out of memory, recursion): say at least which. */
        PyErr_Clear();
        tree = Py_BuildValue("{s:s}", "text", Py_TYPE(exc)->tp_name);
        if (!tree)
            PyErr_Clear();
    }
    Py_DECREF(exc);
    return tree;
}

/* An exception that is raised in between the import system's own steps leaves
 * locks held that others wait for. */
static void let_imports_go(si_worker *w)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyObject *r = PyObject_CallMethod(w->cx->worker_module, "let_imports_go", NULL);
    if (r)
        Py_DECREF(r);
    else
        PyErr_WriteUnraisable(NULL);
    PyErr_SetRaisedException(exc);
}

/* how: the task was interrupted, and the exception is what came of it. */
static void fail_task(si_worker *w, si_task *t, si_call_end how)
{
    PyObject *tree = describe_exception(w);
    if (tree && how != SI_CALL_FREE) {
        PyObject *stopped = PyLong_FromLong(how & ~SI_CALL_CUT_SHORT);
        if (!stopped || PyDict_SetItemString(tree, "stopped", stopped) < 0)
            PyErr_Clear();
        Py_XDECREF(stopped);
    }
    si_msg_clear(&t->msg);
    si_encoder e;
    si_encoder_init(&e);
    if (tree && si_encode(&e, &t->msg, tree) == SI_OK)
        t->msg.format = SI_FMT_FAST;
    else
        si_msg_cut(&t->msg, 0, 0);
    Py_XDECREF(tree);
}

/* ---- functions --------------------------------------------------------------- */

static void forget_function(si_home *h, int i)
{
    PyObject *object = h->cache[i].object;
    si_function *f = h->cache[i].function;
    h->cache[i].id = 0;
    h->cache[i].object = NULL;
    h->cache[i].function = NULL;
    if (f)
        si_function_release(f);
    Py_XDECREF(object);     /* last: Python code may run, and another thread come by */
}

static void forget_functions(si_home *h)
{
    for (int i = 0; i < SI_FUNCTION_CACHE; i++)
        forget_function(h, i);
}

static void forget_retired(si_home *h)
{
    for (int i = 0; i < SI_FUNCTION_CACHE; i++)
        if (h->cache[i].function
            && atomic_load_explicit(&h->cache[i].function->retired, memory_order_acquire))
            forget_function(h, i);
}

/* The function as an object of this interpreter; a new reference. */
static PyObject *resolve(si_worker *w, si_function *f)
{
    si_home *h = w->home;
    int i = (int)(f->id % SI_FUNCTION_CACHE);
    if (h->cache[i].id == f->id)
        return Py_NewRef(h->cache[i].object);
    PyObject *object;
    if (f->by_name) {
        const char *module = f->msg.data, *name = module + strlen(module) + 1;
        object = PyObject_CallMethod(w->cx->worker_module, "resolve", "ss", module, name);
    }
    else
        object = si_value_decode(w->cx, &f->msg, true);
    if (object && f->remember && !atomic_load_explicit(&f->retired, memory_order_acquire)) {
        forget_function(h, i);
        if (h->cache[i].id == 0) {  /* else: another thread was here meanwhile */
            si_function_retain(f);
            h->cache[i].id = f->id;
            h->cache[i].function = f;
            h->cache[i].object = Py_NewRef(object);
        }
    }
    return object;
}

/* ---- running a task ------------------------------------------------------------ */

#define SMALL_ARGS 8

/* FAST form of a call: number of arguments, number of keywords, the values,
 * then name and value of each keyword. */
static PyObject *call_fast(PyObject *fn, si_msg *m)
{
    si_reader r;
    si_reader_init(&r, m);
    uint32_t n, n_kw;
    if (!si_get_u32(&r, &n) || !si_get_u32(&r, &n_kw)) {
        PyErr_SetString(PyExc_SystemError, "subinterp: a call does not decode");
        return NULL;
    }
    PyObject *small[SMALL_ARGS + 1], **args = small;
    if (n + n_kw > SMALL_ARGS) {
        args = PyMem_Malloc((n + n_kw + 1) * sizeof *args);
        if (!args)
            return PyErr_NoMemory();
    }
    PyObject *result = NULL, *names = n_kw ? PyTuple_New(n_kw) : NULL;
    uint32_t got = 0;
    args++; /* room for PY_VECTORCALL_ARGUMENTS_OFFSET */
    if (n_kw && !names)
        goto done;
    for (; got < n + n_kw; got++) {
        if (got >= n) {
            PyObject *name = si_decode(&r);
            if (!name)
                goto done;
            PyUnicode_InternInPlace(&name);
            PyTuple_SET_ITEM(names, got - n, name);
        }
        if (!(args[got] = si_decode(&r)))
            goto done;
    }
    si_msg_clear(m);
    result = PyObject_Vectorcall(fn, args, n | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
done:
    for (uint32_t i = 0; i < got; i++)
        Py_DECREF(args[i]);
    Py_XDECREF(names);
    if (--args != small)
        PyMem_Free(args);
    return result;
}

/* For the trace: what the task that runs calls. */
static void name_record(si_worker *w, PyObject *fn)
{
    if (!w->record)
        return;
    /* An interruption shall not end up in here, where exceptions mean nothing. */
    si_shield(w);
    PyObject *name = PyUnicode_Check(fn) ? Py_NewRef(fn) : NULL;
    if (!name && (PyObject_GetOptionalAttrString(fn, "__qualname__", &name) < 0
                  || (name && !PyUnicode_Check(name)))) {
        PyErr_Clear();
        Py_CLEAR(name);
    }
    const char *text = name ? PyUnicode_AsUTF8(name) : Py_TYPE(fn)->tp_name;
    if (text)
        si_trace_name(w->record, text);
    else
        PyErr_Clear();
    Py_XDECREF(name);
    si_unshield(w);
}

static PyObject *call_task(si_worker *w, si_task *t)
{
    si_context *cx = w->cx;
    PyObject *fn = NULL, *value = NULL, *result = NULL;
    if (t->kind == SI_CALL) {
        if (!(fn = resolve(w, t->function)))
            return NULL;
        name_record(w, fn);
        if (t->msg.format == SI_FMT_FAST)
            result = call_fast(fn, &t->msg);
        else if ((value = si_value_decode(cx, &t->msg, false))) {
            si_msg_clear(&t->msg);
            PyObject *kw = PyTuple_GET_ITEM(value, 1);
            result = PyObject_Call(fn, PyTuple_GET_ITEM(value, 0), kw == Py_None ? NULL : kw);
        }
        Py_DECREF(fn);
    }
    else {
        if (!(value = si_value_decode(cx, &t->msg, false)))
            return NULL;
        si_msg_clear(&t->msg);
        name_record(w, PyTuple_GET_ITEM(value, 0));
        if (t->kind == SI_CALL_PICKLED) {
            PyObject *kw = PyTuple_GET_ITEM(value, 2);
            result = PyObject_Call(PyTuple_GET_ITEM(value, 0), PyTuple_GET_ITEM(value, 1),
                                   kw == Py_None ? NULL : kw);
        }
        else if ((fn = PyObject_GetAttr(cx->worker_module, PyTuple_GET_ITEM(value, 0)))) {
            result = PyObject_Call(fn, PyTuple_GET_ITEM(value, 1), NULL);
            Py_DECREF(fn);
        }
    }
    Py_XDECREF(value);
    return result;
}

/* A value of its own inside a message: tag, and the index of its part. */
static int put_part(si_context *cx, si_msg *out, char tag, PyObject *obj)
{
    si_msg *sub = malloc(sizeof *sub);
    if (!sub) {
        PyErr_NoMemory();
        return -1;
    }
    si_msg_init(sub);
    if (si_value_encode(cx, sub, obj) < 0) {
        si_msg_clear(sub);
        free(sub);
        return -1;
    }
    uint32_t index = out->n_parts;
    if (!si_put(out, &tag, 1) || !si_put_u32(out, index)
        || !si_msg_part(out, SI_PART_MSG, sub, 0)) {
        si_msg_clear(sub);
        free(sub);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* Results of a chunk, one after the other: a plain value as it is; 'X' and the
 * tree of an exception; 'M' and a part, for a value in the general form; or
 * 'G' and a part, a list of all results from here on, pickled together so
 * that what they share is sent once. */
typedef struct {
    si_msg out;
    PyObject *group;    /* list of (failed, value or tree); NULL: not begun */
    uint32_t n_failed;
} chunk_results;

static int put_failure(si_worker *w, chunk_results *c)
{
    PyObject *tree = describe_exception(w);
    int bad = -1;
    c->n_failed++;
    if (tree) {
        si_encoder e;
        si_encoder_init(&e);
        size_t len = c->out.len;
        uint32_t n_parts = c->out.n_parts;
        if (c->group) {
            PyObject *pair = PyTuple_Pack(2, Py_True, tree);
            bad = pair ? PyList_Append(c->group, pair) : -1;
            Py_XDECREF(pair);
        }
        else if (si_put(&c->out, "X", 1) && si_encode(&e, &c->out, tree) == SI_OK)
            bad = 0;
        else
            si_msg_cut(&c->out, len, n_parts);
        Py_DECREF(tree);
    }
    if (bad && !PyErr_Occurred())
        PyErr_NoMemory();
    return bad;
}

static int put_result(chunk_results *c, PyObject *r)
{
    if (!c->group) {
        si_encoder e;
        si_encoder_init(&e);
        size_t len = c->out.len;
        uint32_t n_parts = c->out.n_parts;
        si_ret st = si_encode(&e, &c->out, r);
        if (st == SI_OK)
            return 0;
        si_msg_cut(&c->out, len, n_parts);
        if (st == SI_NOMEM) {
            PyErr_NoMemory();
            return -1;
        }
        if (!(c->group = PyList_New(0)))
            return -1;
    }
    PyObject *pair = PyTuple_Pack(2, Py_False, r);
    int bad = pair ? PyList_Append(c->group, pair) : -1;
    Py_XDECREF(pair);
    return bad;
}

static int put_group(si_worker *w, chunk_results *c)
{
    if (!c->group)
        return 0;
    size_t len = c->out.len;
    uint32_t n_parts = c->out.n_parts;
    if (put_part(w->cx, &c->out, 'G', c->group) == 0)
        return 0;
    PyErr_Clear();
    si_msg_cut(&c->out, len, n_parts);
    /* Something in it cannot be sent: one by one, so that only that one fails. */
    PyObject *group = c->group;
    c->group = NULL;
    int bad = 0;
    for (Py_ssize_t i = 0; !bad && i < PyList_GET_SIZE(group); i++) {
        PyObject *pair = PyList_GET_ITEM(group, i), *v = PyTuple_GET_ITEM(pair, 1);
        if (PyTuple_GET_ITEM(pair, 0) == Py_True) {
            si_encoder e;
            si_encoder_init(&e);
            if (!si_put(&c->out, "X", 1) || si_encode(&e, &c->out, v) != SI_OK)
                bad = -1;
        }
        else if (put_part(w->cx, &c->out, 'M', v) < 0)
            bad = put_failure(w, c);
    }
    Py_DECREF(group);
    if (bad && !PyErr_Occurred())
        PyErr_NoMemory();
    return bad;
}

/* What an interruption raises, by hand. */
static void raise_interrupt(si_worker *w)
{
    PyObject *type = PyObject_GetAttrString(w->cx->worker_module, "Interrupt");
    if (type)
        PyErr_SetNone(type);
    Py_XDECREF(type);
}

/* An interruption ends the chunk: no further item is begun. True, with an
 * exception, if there is one. */
static bool chunk_is_stopped(si_worker *w, bool more)
{
    if (!si_call_is_asked(w))
        return false;
    if (!PyErr_Occurred()) {
        if (!more)
            return false;   /* the last item has made it */
        raise_interrupt(w);
    }
    return true;
}

/* 0, or -1 with an exception that fails the chunk as a whole. Items that
 * raise do not: each has its own outcome. */
static int run_chunk(si_worker *w, si_task *t, uint32_t *n_failed, si_call_end *how)
{
    chunk_results c = {.group = NULL, .n_failed = 0};
    si_msg_init(&c.out);
    PyObject *items = NULL, *fn = resolve(w, t->function);
    int bad = fn ? 0 : -1;
    bool stopped = false;
    if (fn)
        name_record(w, fn);
    uint32_t arity = t->arity;
    si_reader r;
    if (!bad && t->msg.format == SI_FMT_FAST)
        si_reader_init(&r, &t->msg);
    else if (!bad && !(items = si_value_decode(w->cx, &t->msg, false)))
        bad = -1;
    PyObject *args[256 + 1];
    for (uint32_t i = 0; !bad && i < t->n_items; i++) {
        PyObject *result = NULL;
        if (items) {
            PyObject *item = PyList_GET_ITEM(items, i);
            if (arity == SI_ARITY_STAR || arity > 1)
                result = PyObject_Call(fn, item, NULL);
            else
                result = PyObject_CallOneArg(fn, item);
        }
        else if (arity == SI_ARITY_STAR) {
            PyObject *item = si_decode(&r);
            if (!item) {
                bad = -1;
                break;
            }
            result = PyObject_Call(fn, item, NULL);
            Py_DECREF(item);
        }
        else {
            uint32_t got = 0;
            while (got < arity && (args[got + 1] = si_decode(&r)))
                got++;
            if (got == arity)
                result = PyObject_Vectorcall(fn, args + 1,
                                             arity | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
            else
                bad = -1;
            while (got)
                Py_DECREF(args[got--]);
            if (bad)
                break;
        }
        if (result) {
            bad = put_result(&c, result);
            Py_DECREF(result);
            if (!bad && chunk_is_stopped(w, i + 1 < t->n_items)) {
                bad = -1;
                stopped = true;
            }
        }
        else if (chunk_is_stopped(w, true)) {
            bad = -1;
            stopped = true;
        }
        else {
            si_shield(w);
            bad = put_failure(w, &c);
            si_unshield(w);
        }
    }
    uintptr_t call = atomic_load(&w->call);
    *how = si_call_finish(w);
    if (*how != SI_CALL_FREE)
        let_imports_go(w);
    if (stopped && *how == SI_CALL_FREE)
        *how = call & SI_CALL_EXPIRED ? SI_CALL_OVERDUE : SI_CALL_INTERRUPTED;
    if (!bad && *how & SI_CALL_CUT_SHORT) {
        raise_interrupt(w);
        bad = -1;
    }
    if (!bad && *how != SI_CALL_ABANDONED)
        bad = put_group(w, &c);
    Py_XDECREF(fn);
    Py_XDECREF(items);
    Py_XDECREF(c.group);
    if (!bad && *how != SI_CALL_ABANDONED) {
        si_msg_clear(&t->msg);
        si_msg_move(&t->msg, &c.out);
        t->msg.format = SI_FMT_FAST;
        t->failed_items = c.n_failed > 0;
    }
    else
        si_msg_clear(&c.out);
    *n_failed = bad ? t->n_items : c.n_failed;
    return bad;
}

/* This worker was left behind with it: its end was published, and counted for
 * the pool. The trace is told when it was really over. */
static void forget_task(si_worker *w, si_task *t, uint32_t n_calls)
{
    if (w->record) {
        si_trace_end(w->record, n_calls, si_now());
        w->record = NULL;
    }
    PyErr_Clear();
    si_task_release(t);
}

static void run_task(si_worker *w, si_task *t)
{
    si_call_begin(w, t);
    if (!si_task_start(t)) {
        (void)si_call_finish(w);
        si_task_release(t);
        return;
    }
    si_task_state outcome = SI_DONE;
    si_meter *m = w->meter;
    /* When the task before it ended, or the wait for this one. */
    int64_t begin = si_meter_mark(m), end = 0, waited = t->pushed ? begin - t->pushed : -1;
    size_t in = t->msg.n_parts ? si_msg_weight(&t->msg) : t->msg.len;
    uint32_t n_calls = 1, n_failed = 0;
    si_call_end how;
    if (t->pushed && waited < 0)
        waited = 0;
    if (w->trace)
        w->record = si_trace_begin(w->trace, &w->segment, w->thread_id, w->index, t, begin);
    if (t->kind == SI_CHUNK) {
        n_calls = t->n_items;
        int bad = run_chunk(w, t, &n_failed, &how);
        if (how == SI_CALL_ABANDONED) {
            forget_task(w, t, n_calls);
            return;
        }
        if (bad < 0) {
            fail_task(w, t, how);
            outcome = SI_FAILED;
        }
        end = si_now();
        t->run_ns = end - begin;
    }
    else {
        if (t->limit_ns)
            si_call_limit(w, t->limit_ns);
        PyObject *result = call_task(w, t);
        if (t->limit_ns)
            si_call_unlimit(w);
        how = si_call_finish(w);
        if (how != SI_CALL_FREE)
            let_imports_go(w);
        if (how == SI_CALL_ABANDONED) {
            Py_XDECREF(result);
            forget_task(w, t, n_calls);
            return;
        }
        if (result && how & SI_CALL_CUT_SHORT) {
            Py_CLEAR(result);
            raise_interrupt(w);
        }
        if (result) {
            how = SI_CALL_FREE;     /* it was caught, or came too late */
            si_msg_clear(&t->msg);
            if (si_value_encode(w->cx, &t->msg, result) < 0) {
                Py_DECREF(result);
                result = NULL;
            }
        }
        if (result)
            Py_DECREF(result);
        else {
            fail_task(w, t, how);
            outcome = SI_FAILED;
            n_failed = 1;
        }
    }
    /* What the task printed is out before anybody learns that it is done. */
    if (w->cx->dirty)
        flush_streams(w);
    if (w->record) {
        /* Before the announcement: who learns of the end finds it in the trace. */
        end = si_now();
        si_trace_end(w->record, n_failed, end);
        w->record = NULL;
    }
    si_meter_count(m, n_calls - n_failed, n_failed, in,
                   t->msg.n_parts ? si_msg_weight(&t->msg) : t->msg.len, waited);
    si_pool_unclaim(w->pool);
    si_task_finish(t, outcome);
    si_pool_told(w->pool, w, si_meter_ran(m, end ? end : si_now()));
}

/* ---- making and ending the interpreter ------------------------------------------ */

/* How long an ending interpreter waits for threads that Python does not know. */
#define GATE_GRACE 1000000000LL

static bool worker_becomes(si_worker *w, uint32_t from, uint32_t to)
{
    return atomic_compare_exchange_strong(&w->state, &from, to);
}

/* This thread must never run Python code again. */
static _Noreturn void halt(void)
{
    for (;;)
        pause();
}

/* A module whose marshalled code came with the set-up: it need not be found. */
static PyObject *run_sent_code(PyObject *boot, const char *key, const char *name)
{
    PyObject *bytes = PyDict_GetItemString(boot, key), *code = NULL, *module = NULL;
    if (!bytes || !PyBytes_Check(bytes)) {
        PyErr_Format(PyExc_SystemError, "subinterp: a worker's set-up has no %s", key);
        return NULL;
    }
    code = PyMarshal_ReadObjectFromString(PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
    if (code)
        module = PyImport_ExecCodeModule(name, code);
    Py_XDECREF(code);
    return module;
}

/* Take over the import of extension modules, unless CPython's rules shall hold. */
static int begin_loader(si_worker *w, PyObject *boot)
{
    PyObject *options = PyDict_GetItemString(boot, "extensions");
    if (!options || options == Py_None)
        return 0;
    if (si_loader_begin(w->cx, w->interp) < 0)
        return -1;
    PyObject *functions = si_loader_functions(w->cx->loader), *module = NULL, *r = NULL;
    if (functions)
        module = run_sent_code(boot, "extensions_code", "subinterp._extensions");
    if (module)
        r = PyObject_CallMethod(module, "install", "OO", options, functions);
    Py_XDECREF(functions);
    Py_XDECREF(module);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

static int make_worker_module(si_worker *w)
{
    si_pool *p = w->pool;
    PyObject *boot = si_value_decode(w->cx, &p->boot, true);
    if (!boot)
        return -1;
    PyObject *module = NULL, *r = NULL, *dirty = NULL, *create = NULL, *exec = NULL, *out = NULL, *report = NULL, *guard = NULL;
    if (w->cx->worker_module)
        module = Py_NewRef(w->cx->worker_module);   /* from an earlier pool's worker */
    else if ((module = run_sent_code(boot, "worker_code", "subinterp._worker"))
             && begin_loader(w, boot) < 0)
        Py_CLEAR(module);
    if (module)
        dirty = PyMemoryView_FromMemory((char *)&w->cx->dirty, 1, PyBUF_WRITE);
    if (dirty) {
        create = PyCFunction_New(&create_core_def, NULL);
        exec = PyCFunction_New(&exec_core_def, NULL);
        PyObject *capsule = pool_capsule(p);
        out = capsule ? PyCFunction_New(&emit_def, capsule) : NULL;
        Py_XDECREF(capsule);
        report = PyCFunction_New(&report_def, NULL);
        guard = PyCFunction_New(&shield_def, NULL);
    }
    if (create && exec && out && report && guard)
        r = PyObject_CallMethod(module, "boot", "OiOOOOOO", boot, w->index, dirty, create, exec, out,
                                report, guard);
    if (r)
        Py_XSETREF(w->cx->worker_module, Py_NewRef(module));
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_SystemError, "subinterp: a worker's set-up does not decode");
    int bad = r ? 0 : -1;
    Py_XDECREF(r);
    Py_XDECREF(guard);
    Py_XDECREF(report);
    Py_XDECREF(out);
    Py_XDECREF(exec);
    Py_XDECREF(create);
    Py_XDECREF(dirty);
    Py_XDECREF(module);
    Py_DECREF(boot);
    return bad;
}

static void break_with_exception(si_worker *w, const char *what)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyObject *text = NULL;
    if (w->cx && w->cx->worker_module)
        text = PyObject_CallMethod(w->cx->worker_module, "text_of", "O", exc);
    if (!text) {
        PyErr_Clear();
        text = PyObject_Repr(exc);
    }
    const char *s = text ? PyUnicode_AsUTF8(text) : NULL;
    PyErr_Clear();
    char *reason = NULL;
    if (asprintf(&reason, "%s\n%s", what, s ? s : "(no details)") < 0)
        reason = NULL;
    si_pool_break(w->pool, reason ? reason : what);
    free(reason);
    Py_XDECREF(text);
    Py_DECREF(exc);
}

static int run_initializer(si_worker *w)
{
    si_msg *m = &w->pool->initializer;
    if (m->format == SI_FMT_NONE)
        return 0;
    PyObject *value = si_value_decode(w->cx, m, true), *r = NULL;
    if (value)
        r = PyObject_Call(PyTuple_GET_ITEM(value, 0), PyTuple_GET_ITEM(value, 1), NULL);
    Py_XDECREF(value);
    if (w->cx->dirty)
        flush_streams(w);
    if (!r)
        return -1;
    Py_DECREF(r);
    return 0;
}

/* Under the lock, so that whoever leaves this worker behind can take a
 * reference before the worker gives up its own. */
static void set_context(si_worker *w, si_context *cx)
{
    if (w->pool)
        si_lock(&w->pool->mu);
    w->cx = cx;
    if (w->pool)
        si_unlock(&w->pool->mu);
}

typedef enum {
    BEGUN_WELL,     /* its lock is held */
    BEGUN_BADLY,    /* the same, but the pool is broken: it is to be ended */
    BEGUN_NOTHING,  /* there is no interpreter, and the worker is not counted any more */
    BEGUN_LOST,     /* a parked one was no good, and could not be ended */
} begun;

static bool end_interpreter(si_worker *w, bool recycle);

/* The variables of contextvars, decimal's context among them, start afresh
 * with each pool, in each worker. */
static int enter_variables(si_worker *w)
{
    PyObject *variables = PyContext_New();
    if (!variables || PyContext_Enter(variables) < 0) {
        Py_XDECREF(variables);
        return -1;
    }
    w->variables = variables;
    return 0;
}

static bool leave_variables(si_worker *w)
{
    PyObject *variables = w->variables;
    w->variables = NULL;
    bool left = variables && PyContext_Exit(variables) == 0;
    Py_XDECREF(variables);
    return left;
}

/* The environment of the process as it is now, as `posix` reads it. */
static PyObject *read_environment(void)
{
    PyObject *dict = PyDict_New();
    for (char **e = environ; dict && e && *e; e++) {
        const char *end = strchr(*e, '=');
        if (!end)
            continue;
        PyObject *name = PyBytes_FromStringAndSize(*e, end - *e);
        PyObject *value = PyBytes_FromString(end + 1);
        if (!name || !value || !PyDict_SetDefault(dict, name, value))
            Py_CLEAR(dict);
        Py_XDECREF(name);
        Py_XDECREF(value);
    }
    return dict;
}

/* Set a parked interpreter up for its next pool. Its lock is held. */
static int renew_interpreter(si_worker *w)
{
    PyObject *environment = read_environment(), *r = NULL;
    if (environment)
        r = PyObject_CallMethod(w->cx->worker_module, "renew", "O", environment);
    Py_XDECREF(environment);
    if (!r)
        return -1;
    Py_DECREF(r);
    return enter_variables(w) < 0 ? -1 : make_worker_module(w);
}

/* How often a worker tries to make its interpreter. */
#define CREATE_ATTEMPTS 3

/* For tests: so many of the next attempts fail. */
static _Atomic int failures_for_tests;

void si_fail_for_tests(int n)
{
    atomic_store(&failures_for_tests, n);
}

static bool fails_for_tests(void)
{
    int n = atomic_load_explicit(&failures_for_tests, memory_order_relaxed);
    while (n > 0)
        if (atomic_compare_exchange_weak(&failures_for_tests, &n, n - 1))
            return true;
    return false;
}

static begun create_interpreter(si_worker *w)
{
    PyInterpreterConfig config = {
        .use_main_obmalloc = 0,
        .allow_fork = 0,
        .allow_exec = 0,
        .allow_threads = w->pool->allow_threads,
        /* Left-over daemon threads are what abandoning is for. */
        .allow_daemon_threads = w->pool->allow_daemon_threads,
        .check_multi_interp_extensions = 1,
        .gil = PyInterpreterConfig_OWN_GIL,
    };
    PyThreadState *ts = NULL;
    const char *why = NULL;
    for (int attempt = 0; attempt < CREATE_ATTEMPTS && !ts; attempt++) {
        /* What is short may be there again in a moment. */
        if (attempt > 0)
            usleep(20000u << attempt);
        if (fails_for_tests()) {
            why = "a test said so";
            continue;
        }
        new_arenas = 0;
        PyStatus status = Py_NewInterpreterFromConfig(&ts, &config);
        if (PyStatus_Exception(status)) {
            ts = NULL;
            why = status.err_msg;
        }
    }
    if (!ts) {
        char reason[256];
        snprintf(reason, sizeof reason, "an interpreter could not be created: %s",
                 why ? why : "out of memory");
        si_pool_worker_failed(w->pool, w, reason);
        return BEGUN_NOTHING;
    }
    w->ts = ts;
    w->interp = PyThreadState_GetInterpreter(ts);
    si_context *cx = si_context_of(w->interp);
    if (cx) {
        si_context_retain(cx);
        atomic_fetch_add(&cx->arena_bytes, new_arenas);
    }
    set_context(w, cx);
    if (!w->cx || enter_variables(w) < 0 || make_worker_module(w) < 0) {
        break_with_exception(w, "a worker's interpreter could not be set up");
        return BEGUN_BADLY;
    }
    return BEGUN_WELL;
}

static bool is_exiting(void)
{
    si_lock(&workers_mu);
    bool yes = exiting;
    si_unlock(&workers_mu);
    return yes;
}

/* As the founder of its home. */
static begun begin_interpreter(si_worker *w)
{
    begun r = BEGUN_NOTHING;
    if (w->ts) {
        PyEval_RestoreThread(w->ts);
        if (renew_interpreter(w) == 0)
            r = BEGUN_WELL;
        else {
            /* What an earlier pool's tasks left stands in the way: a fresh one. */
            PyErr_Clear();
            if (!end_interpreter(w, true))
                return BEGUN_LOST;
        }
    }
    if (r != BEGUN_WELL)
        r = create_interpreter(w);
    if (r == BEGUN_WELL)
        (void)worker_becomes(w, SI_W_STARTING, SI_W_PREPARING);
    if (r == BEGUN_WELL && run_initializer(w) < 0) {
        break_with_exception(w, "a worker's initializer failed");
        r = BEGUN_BADLY;
    }
    return r;
}

/* In an interpreter that another worker makes or has made. */
static begun join_interpreter(si_worker *w)
{
    si_pool *p = w->pool;
    PyThreadState *ts = NULL;
    if (si_home_wait(w->home) == SI_HOME_READY) {
        si_lock(&w->home->states);
        ts = PyThreadState_New(w->home->interp);
        si_unlock(&w->home->states);
    }
    if (!ts) {
        bool failed = atomic_load(&w->home->ready) == SI_HOME_FAILED;
        (void)si_home_leave(p, w, false);
        if (!failed)
            si_pool_worker_failed(p, w, "a thread state could not be created: out of memory");
        return BEGUN_NOTHING;
    }
    w->ts = ts;
    w->interp = w->home->interp;
    si_context_retain(w->home->cx);
    set_context(w, w->home->cx);
    /* Before it waits for the lock, which may be for long. */
    bool settled = si_home_settle(p, w);
    PyEval_RestoreThread(ts);
    if (!settled)
        return BEGUN_WELL;  /* and is to leave at once */
    PyObject *r = enter_variables(w) < 0
        ? NULL : PyObject_CallMethod(w->cx->worker_module, "enter", "i", w->index);
    if (!r) {
        break_with_exception(w, "a worker could not be set up");
        return BEGUN_BADLY;
    }
    Py_DECREF(r);
    return BEGUN_WELL;
}

/* Found or join a home. Until it is ready and this worker IDLE, or one of the
 * other ends. */
static begun begin_work(si_worker *w)
{
    si_pool *p = w->pool;
    while (!w->founder) {
        begun r = join_interpreter(w);
        if (r != BEGUN_NOTHING || !si_pool_counts(p, w) || si_pool_is_broken(p) || is_exiting())
            return r;
        /* Its founder has failed. Perhaps this one does not. */
        if (!si_home_enter(p, w)) {
            si_pool_worker_failed(p, w, "out of memory");
            return r;
        }
    }
    begun r = begin_interpreter(w);
    if (r == BEGUN_WELL) {
        if (!worker_becomes(w, SI_W_PREPARING, SI_W_IDLE)) {
            PyEval_SaveThread();
            halt();
        }
        w->home->interp = w->interp;
        w->home->cx = w->cx;
    }
    si_home_publish(w->home, r == BEGUN_WELL ? SI_HOME_READY : SI_HOME_FAILED);
    return r;
}

/* Only the last thread state of an interpreter may end it. Threads that were
 * joined may still be deleting theirs. */
static bool only_thread(si_worker *w)
{
    for (int i = 0; i < 200; i++) {
        if (PyInterpreterState_ThreadHead(w->interp) == w->ts && !PyThreadState_Next(w->ts))
            return true;
        /* Daemon threads do not go by waiting. */
        if (i == 20 && w->cx->worker_module) {
            PyObject *r = PyObject_CallMethod(w->cx->worker_module, "only_daemons_left", NULL);
            bool daemons = r == Py_True;
            Py_XDECREF(r);
            PyErr_Clear();
            if (daemons)
                return false;
        }
        Py_BEGIN_ALLOW_THREADS
        usleep(500);
        Py_END_ALLOW_THREADS
    }
    return false;
}

/* Threads of private copies come in no more. False: one is inside, and may be
 * about to make its thread state. */
static bool close_gate(si_worker *w)
{
    si_ret st;
    if (!w->cx || !w->cx->loader)
        return true;
    Py_BEGIN_ALLOW_THREADS
    st = si_gate_close(w->cx->loader->gate, si_now() + GATE_GRACE);
    Py_END_ALLOW_THREADS
    return st == SI_OK;
}

/* Returns true if the interpreter has ended; false: it is abandoned, and its
 * lock is not held any more. */
static bool end_interpreter(si_worker *w, bool recycle)
{
    atomic_store(&w->since, si_now());
    uint32_t s = atomic_load(&w->state);
    while (s < SI_W_FINISHING && !atomic_compare_exchange_weak(&w->state, &s, SI_W_FINISHING))
        ;
    if (w->home)
        forget_functions(w->home);
    if (w->cx && w->cx->worker_module) {
        /* Joins the threads that tasks left behind: may take any time. */
        PyObject *r = PyObject_CallMethod(w->cx->worker_module, "finish", NULL);
        if (r)
            Py_DECREF(r);
        else
            PyErr_WriteUnraisable(NULL);
    }
    bool last = w->cx && close_gate(w) && only_thread(w);
    bool mine = last && (worker_becomes(w, SI_W_FINISHING, SI_W_ENDING)
                         || worker_becomes(w, SI_W_ABANDONED, SI_W_ENDING));
    if (!mine) {
        (void)worker_becomes(w, SI_W_FINISHING, SI_W_ABANDONED);
        if (w->cx)
            si_context_end(w->cx);
        PyEval_SaveThread();
        return false;
    }
    Py_CLEAR(w->cx->worker_module);
    Py_CLEAR(w->variables);
    si_context_end(w->cx);
    /* Extensions may still be imported while it ends: the loader stays. */
    Py_EndInterpreter(w->ts);
    w->ts = NULL;
    w->interp = NULL;
    si_context *cx = w->cx;
    set_context(w, NULL);
    si_context_release(cx);
    if (recycle)
        (void)worker_becomes(w, SI_W_ENDING, SI_W_STARTING);
    return true;
}

/* How long tasks may follow each other before other threads of the interpreter
 * get their turn. Tasks that are C functions never reach the eval loop, where
 * those could ask for it. */
#define TURN 5000000LL

/* Every task that it does in one interpreter. True: go on in another one. */
static bool serve(si_worker *w)
{
    si_pool *p = w->pool;
    uint32_t retired = atomic_load(&si_functions_retired);
    int64_t turn = si_meter_mark(w->meter);
    for (;;) {
        uint32_t now_retired = atomic_load_explicit(&si_functions_retired, memory_order_acquire);
        if (now_retired != retired) {
            retired = now_retired;
            forget_retired(w->home);
        }
        si_task *t = si_pool_next(p, w);
        if (!t)
            return si_pool_moves(p, w);
        if (!worker_becomes(w, SI_W_IDLE, SI_W_RUNNING)) {
            if (atomic_load(&w->state) == SI_W_ABANDONED)
                return false;   /* with another worker of its interpreter: the task went back */
            /* Jailed at exit. */
            PyEval_SaveThread();
            halt();
        }
        w->taken = NULL;
        run_task(w, t);
        if (!worker_becomes(w, SI_W_RUNNING, SI_W_IDLE)) {
            if (atomic_load(&w->state) == SI_W_ABANDONED)
                return false;   /* left behind with a task that has ended after all */
            PyEval_SaveThread();
            halt();
        }
        int64_t now = si_meter_mark(w->meter);
        if (now - turn > TURN) {
            turn = now;
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
    }
}

void si_workers_after_fork(void)
{
    atomic_store(&workers_mu.word, 0);
    atomic_store(&exec_mu.word, 0);
    atomic_store(&write_mu.word, 0);
    workers = NULL;
    exiting = false;
}

/* False: exit has begun, and would not see to another interpreter. */
static bool enlist(si_worker *w)
{
    si_lock(&workers_mu);
    /* A parked one's interpreter exists already. */
    if (exiting && w->pool) {
        si_unlock(&workers_mu);
        return false;
    }
    w->all_prev = NULL;
    w->all_next = workers;
    if (workers)
        workers->all_prev = w;
    workers = w;
    si_unlock(&workers_mu);
    if (w->pool)
        SI_COUNT(workers, 1);
    else
        SI_COUNT(parked, 1);
    return true;
}

static void unlist(si_worker *w)
{
    si_lock(&workers_mu);
    if (w->all_prev)
        w->all_prev->all_next = w->all_next;
    else if (workers == w)
        workers = w->all_next;
    if (w->all_next)
        w->all_next->all_prev = w->all_prev;
    si_unlock(&workers_mu);
    if (w->pool)
        SI_COUNT(workers, -1);
    else
        SI_COUNT(parked, -1);
}

/* ---- parking: see si_park.h -------------------------------------------------------- */

/* As `ps -L` and debuggers show it. The number is never cut. */
static void name_thread(const char *prefix, int number)
{
    char name[16], digits[16];
    size_t n = (size_t)snprintf(digits, sizeof digits, "-%d", number), room = sizeof name - 1 - n;
    size_t begin = strlen(prefix) < room ? strlen(prefix) : room;
    memcpy(name, prefix, begin);
    memcpy(name + begin, digits, n + 1);
    pthread_setname_np(pthread_self(), name);
}

/* Make the interpreter as good as new. False: it is to be ended. Its lock is
 * held, and Python code of its tasks may run (finalizers, mostly). */
static bool reset_interpreter(si_worker *w)
{
    bool good = leave_variables(w);
    if (good) {
        PyObject *r = PyObject_CallMethod(w->cx->worker_module, "park", NULL);
        good = r == Py_True;
        Py_XDECREF(r);
    }
    PyErr_Clear();  /* then it ends as if nobody had tried */
    return good && only_thread(w);
}

/* Make a worker's interpreter and thread ready for another pool. NULL: it is
 * to be ended. Its lock is held before, and is afterwards if NULL. */
static si_worker *leave_pool(si_worker *w)
{
    if (!w->cx || w->cx->n_copies == 0 || !w->variables || !si_park_wanted())
        return NULL;
    si_worker *p = calloc(1, sizeof *p);
    if (p)
        p->key = strdup(w->pool->key);
    if (!p || !p->key) {
        free(p);
        return NULL;
    }
    atomic_store(&w->since, si_now());
    uint32_t s = SI_W_IDLE;
    bool good = atomic_compare_exchange_strong(&w->state, &s, SI_W_FINISHING);
    if (good) {
        forget_functions(w->home);
        good = reset_interpreter(w);
    }
    /* Until it is parked, exit waits for it, as for one that is being made. */
    atomic_init(&p->refs, 1);
    atomic_init(&p->state, SI_W_STARTING);
    p->interp = w->interp;
    p->ts = w->ts;
    p->cx = w->cx;
    p->index = w->index;
    p->thread_id = gettid();
    if (good)
        enlist(p);
    /* From here on nobody may abandon or jail the interpreter through `w`. */
    if (good && !worker_becomes(w, SI_W_FINISHING, SI_W_ENDED)) {
        unlist(p);
        good = false;
    }
    if (!good) {
        free(p->key);
        free(p);
        return NULL;
    }
    set_context(w, NULL);
    si_context_end(p->cx);
    si_context_reopen(p->cx);
    this_worker = NULL;
    name_thread("parked", (int)p->cx->interp_id);
    PyEval_SaveThread();
    return p;
}

static void forget_parked(si_worker *p)
{
    unlist(p);
    free(p->key);
    p->key = NULL;
    si_worker_release(p);
}

/* What the end of an interpreter would have run. It is not taken apart, but
 * made harmless with the abandoned ones. */
static _Noreturn void leave_process(si_worker *p)
{
    PyObject *r = PyObject_CallMethod(p->cx->worker_module, "leave", NULL);
    if (r)
        Py_DECREF(r);
    else
        PyErr_WriteUnraisable(NULL);
    si_context_end(p->cx);
    PyEval_SaveThread();
    (void)worker_becomes(p, SI_W_FINISHING, SI_W_ABANDONED);
    halt();
}

/* Wait for what is to become of a parked thread: another pool's worker, or
 * NULL, for its end. */
static si_worker *stay_parked(si_worker *p)
{
    si_order order = si_park_wait(p);
    if (order == SI_ORDER_SERVE) {
        si_worker *w = p->tenant;
        w->interp = p->interp;
        w->ts = p->ts;
        set_context(w, p->cx);
        atomic_store(&p->state, SI_W_ENDED);
        forget_parked(p);
        return w;
    }
    PyEval_RestoreThread(p->ts);
    if (order == SI_ORDER_EXIT)
        leave_process(p);
    if (!end_interpreter(p, false))
        halt();
    atomic_store(&p->state, SI_W_ENDED);
    forget_parked(p);
    return NULL;
}

/* ---- the thread ---------------------------------------------------------------------- */

/* Leave the interpreter to the others in it. Its lock is held before, and not
 * afterwards. */
static void leave_interpreter(si_worker *w, bool recycle)
{
    uint32_t s = SI_W_IDLE;
    atomic_store(&w->since, si_now());
    (void)atomic_compare_exchange_strong(&w->state, &s, SI_W_FINISHING);
    PyObject *r = PyObject_CallMethod(w->cx->worker_module, "leave_to_others", NULL);
    if (r)
        Py_DECREF(r);
    else
        PyErr_WriteUnraisable(NULL);
    if (!leave_variables(w))
        PyErr_Clear();
    /* From here on exit waits for it, and nobody leaves it behind. */
    if (!worker_becomes(w, SI_W_FINISHING, SI_W_ENDING)
        && !worker_becomes(w, SI_W_ABANDONED, SI_W_ENDING)) {
        PyEval_SaveThread();
        halt();
    }
    PyThreadState_Clear(w->ts);
    si_lock(&w->home->states);
    PyThreadState_DeleteCurrent();
    si_unlock(&w->home->states);
    w->ts = NULL;
    w->interp = NULL;
    si_context *cx = w->cx;
    set_context(w, NULL);
    si_context_release(cx);
    si_home_gone(w->home);
    if (recycle)
        (void)worker_becomes(w, SI_W_ENDING, SI_W_STARTING);
}

/* How long the last worker waits for those that left before it. */
#define LEAVE_GRACE 1000000000LL

/* Be in a home until it is left. Returns whether the thread may go on: false,
 * its thread state stays where it is. *parked: what the thread is now, NULL: it
 * is no interpreter's. *recycle: it is to go on in another home. */
static bool live_in_home(si_worker *w, bool *recycle, si_worker **parked)
{
    si_pool *p = w->pool;
    begun r = begin_work(w);
    si_pool_started(p, w);
    *recycle = false;
    if (r == BEGUN_WELL) {
        si_meter_begin(w->meter);
        *recycle = serve(w);
    }
    if (r == BEGUN_NOTHING || r == BEGUN_LOST) {
        if (w->founder)
            (void)si_home_leave(p, w, false);
        return r == BEGUN_NOTHING;
    }
    bool has_failed = atomic_load(&w->home->ready) == SI_HOME_FAILED;
    if (!si_home_leave(p, w, !has_failed) && !has_failed) {
        leave_interpreter(w, *recycle);
        return true;
    }
    bool alone;
    Py_BEGIN_ALLOW_THREADS
    alone = si_home_wait_alone(w->home, si_now() + LEAVE_GRACE);
    Py_END_ALLOW_THREADS
    if (alone && r == BEGUN_WELL && !*recycle && atomic_load(&w->state) == SI_W_IDLE)
        *parked = leave_pool(w);
    return *parked || end_interpreter(w, *recycle);
}

/* Be one pool's worker. Returns what the thread is afterwards, parked; NULL:
 * it is to end. */
static si_worker *be_worker(si_worker *w)
{
    si_pool *p = w->pool;
    si_worker *parked = NULL;
    bool recycle, ended;
    this_worker = w;
    atomic_store_explicit(&w->thread_id, gettid(), memory_order_relaxed);
    w->ident = PyThread_get_thread_ident();
    name_thread(p->name[0] ? p->name : "subinterp", w->index);
    for (;;) {
        ended = live_in_home(w, &recycle, &parked);
        if (!recycle || !ended || !si_pool_counts(p, w))
            break;
        if (!si_home_enter(p, w)) {
            si_pool_worker_failed(p, w, "out of memory");
            break;
        }
    }
    if (ended)
        atomic_store(&w->state, SI_W_ENDED);
    /* First, so that whoever waits for the end of this pool finds it parked. */
    if (parked)
        si_park_add(parked);
    if (ended) {
        unlist(w);
        si_pool_worker_returned(p, w);
    }
    si_pool_worker_gone(p, w);
    if (!ended)
        halt();     /* its thread state stays; the thread must not run on */
    this_worker = NULL;     /* a signal may still come */
    si_worker_release(w);
    si_pool_release(p);
    return parked;
}

static void *worker_main(void *arg)
{
    si_worker *w = arg;
    while (w) {
        si_worker *parked = be_worker(w);
        w = parked ? stay_parked(parked) : NULL;
    }
    return NULL;
}

si_ret si_worker_start(si_worker *w)
{
    if (!enlist(w))
        return SI_SHUTDOWN;
    if (w->founder && si_park_take(w))
        return SI_OK;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, w->pool->stack_size);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    int bad = pthread_create(&thread, &attr, worker_main, w);
    pthread_attr_destroy(&attr);
    if (bad) {
        unlist(w);
        return SI_NOMEM;
    }
    return SI_OK;
}

/* ---- looking at workers ------------------------------------------------------------ */

int si_workers_of(si_pool *p, si_worker_thread *threads, int max)
{
    int n = 0;
    int64_t now = si_now();
    si_lock(&workers_mu);
    for (si_worker *w = workers; w; w = w->all_next) {
        if (w->pool != p)
            continue;
        if (n < max) {
            uint32_t state = atomic_load(&w->state);
            threads[n] = (si_worker_thread){
                .index = w->index,
                .state = state,
                .thread_id = atomic_load_explicit(&w->thread_id, memory_order_relaxed),
                .since = si_worker_since(w, state, now),
            };
        }
        n++;
    }
    si_unlock(&workers_mu);
    return n;
}

bool si_worker_signal(si_pool *p, int64_t thread_id, int signum, int value)
{
    bool sent = false;
    /* Under the lock: a thread takes its worker off the list before it ends, or
     * never ends; so it is there. One that takes its interpreter apart is left alone. */
    si_lock(&workers_mu);
    for (si_worker *w = workers; w && !sent; w = w->all_next) {
        uint32_t s = atomic_load(&w->state);
        if (w->pool == p && s != SI_W_ENDING && s != SI_W_ENDED && s != SI_W_JAILED
            && atomic_load_explicit(&w->thread_id, memory_order_relaxed) == thread_id)
            sent = si_signal_send(thread_id, signum, (union sigval){.sival_int = value});
    }
    si_unlock(&workers_mu);
    return sent;
}

/* ---- exit ------------------------------------------------------------------------ */

typedef struct {
    PyInterpreterState *interp;
    si_word inside;
} jail;

/* Takes the interpreter's lock and never gives it back: its Python code stops
 * where it next asks for the lock, which is a safe point. */
static void *jailer(void *arg)
{
    jail *j = arg;
    PyThreadState *ts = PyThreadState_New(j->interp);
    if (ts) {
        PyEval_AcquireThread(ts);
        atomic_store(&j->inside, 1);
        si_futex_wake(&j->inside, 1);
    }
    halt();
}

static void jail_interpreter(PyInterpreterState *interp)
{
    /* Never freed: the jailer may come later, or never. */
    jail *j = calloc(1, sizeof *j);
    pthread_t thread;
    if (j) {
        j->interp = interp;
        if (pthread_create(&thread, NULL, jailer, j) == 0) {
            pthread_detach(thread);
            int64_t until = si_now() + 200000000;
            while (atomic_load(&j->inside) == 0 && si_now() < until)
                (void)si_futex_wait(&j->inside, 0, until);
        }
    }
    si_runtime_unlink(interp);
}

/* Workers that have not ended, and may: true if there are any. */
static bool any_live(bool ending_only)
{
    bool any = false;
    si_lock(&workers_mu);
    for (si_worker *w = workers; w && !any; w = w->all_next) {
        uint32_t s = atomic_load(&w->state);
        if (ending_only)
            any = s == SI_W_STARTING || s == SI_W_ENDING;
        else
            any = s != SI_W_ABANDONED && s != SI_W_JAILED && s != SI_W_ENDED;
    }
    si_unlock(&workers_mu);
    return any;
}

void si_exit_begin(void)
{
    si_lock(&workers_mu);
    exiting = true;
    si_unlock(&workers_mu);
    si_park_close();
}

bool si_exit_wait(int64_t until)
{
    while (any_live(false)) {
        if (si_now() >= until)
            return false;
        usleep(1000);
    }
    return true;
}

void si_exit_abandon(void)
{
    /* Half-made and half-ended interpreters cannot be jailed: they finish. */
    int64_t until = si_now() + 10000000000LL;
    for (;;) {
        PyInterpreterState *victim = NULL;
        si_context *cx = NULL;
        si_lock(&workers_mu);
        for (si_worker *w = workers; w && !victim; w = w->all_next) {
            uint32_t s = atomic_load(&w->state);
            if ((s == SI_W_PREPARING || s == SI_W_IDLE || s == SI_W_RUNNING || s == SI_W_FINISHING
                 || s == SI_W_ABANDONED)
                && atomic_compare_exchange_strong(&w->state, &s, SI_W_JAILED)) {
                cx = w->cx;     /* does not change any more */
                if (cx && cx->jailed)
                    continue;   /* with another worker of its interpreter */
                victim = w->interp;
                if (cx) {
                    cx->jailed = true;
                    si_context_retain(cx);
                }
                if (s == SI_W_PREPARING && w->home)
                    si_home_publish(w->home, SI_HOME_FAILED);
            }
        }
        si_unlock(&workers_mu);
        if (victim) {
            jail_interpreter(victim);
            /* What else runs at exit shall not wait for its locks and channels. */
            if (cx) {
                si_context_end(cx);
                si_context_release(cx);
            }
        }
        else if (!any_live(true) || si_now() > until)
            break;
        else
            usleep(1000);
    }
    si_stop_close();
}

#include "si_codec.h" /* first: feature macros */

#include "si_pool.h"
#include "si_stop.h"
#include "si_view.h"

/* ---- looking ------------------------------------------------------------------- */

/* main: the view of the main interpreter, whose lock others may share; NULL: this is it. */
static void look_at_lock(const si_layout *l, PyInterpreterState *interp,
                         const si_interp_view *main, si_interp_view *v)
{
    v->lock = v->own = v->holder = 0;
    v->locked = -1;
    v->switches = v->interval = -1;
    if (!si_knows(l->lock))
        return;
    char *lock = SI_PEEK(char *, interp, l->lock);
    v->own = (uintptr_t)interp + l->own_lock;
    v->lock = (uintptr_t)lock;
    if (!lock)
        return;     /* being made, or taken apart */
    if (main && main->lock == v->lock) {
        v->locked = main->locked;
        v->holder = main->holder;
        v->switches = main->switches;
        v->interval = main->interval;
        return;
    }
    /* -1: not initialised yet. The holder stays when the lock is let go. */
    v->locked = SI_PEEK(int, lock, l->locked) == 1;
    v->holder = v->locked ? SI_PEEK(uintptr_t, lock, l->holder) : 0;
    if (si_knows(l->switches)) {
        v->switches = (int64_t)SI_PEEK(unsigned long, lock, l->switches);
        v->interval = (int64_t)SI_PEEK(unsigned long, lock, l->interval);
    }
}

static void look_at_collector(const si_layout *l, PyInterpreterState *interp, si_interp_view *v)
{
    v->gc_enabled = v->gc_collecting = -1;
    for (int i = 0; i < 3; i++)
        v->gc_threshold[i] = v->gc_count[i] = -1;
    if (!si_knows(l->collector))
        return;
    char *collector = (char *)interp + l->collector;
    v->gc_collecting = SI_PEEK(int, collector, l->collecting);
    v->gc_enabled = SI_PEEK(int, collector, l->enabled);
    for (int i = 0; i < 3; i++) {
        char *generation = collector + l->generation[i];
        v->gc_threshold[i] = SI_PEEK(int, generation, si_headers.threshold);
        v->gc_count[i] = SI_PEEK(int, generation, si_headers.count);
    }
}

/* What it says by functions of its own Python. */
static void look_at_config(PyInterpreterState *interp, si_interp_view *v)
{
    PyInterpreterConfig config;
    v->whence = _PyInterpreterState_GetWhence(interp);
    v->ready = _PyInterpreterState_IsReady(interp) != 0;
    v->finalizing = _Py_IsInterpreterFinalizing(interp) != 0;
    v->own_lock = v->own_allocator = v->allow_fork = v->allow_exec = v->allow_threads = -1;
    v->allow_daemon_threads = v->check_extensions = -1;
    /* Until it is ready its flags are being set. */
    if (!v->ready || _PyInterpreterConfig_InitFromState(&config, interp) < 0)
        return;
    v->own_lock = config.gil == PyInterpreterConfig_OWN_GIL;
    v->own_allocator = !config.use_main_obmalloc;
    v->allow_fork = config.allow_fork;
    v->allow_exec = config.allow_exec;
    v->allow_threads = config.allow_threads;
    v->allow_daemon_threads = config.allow_daemon_threads;
    v->check_extensions = config.check_multi_interp_extensions;
}

static void look_at_thread(const si_layout *l, PyThreadState *ts, const si_interp_view *of,
                           si_thread_view *v)
{
    v->ident = SI_PEEK(unsigned long, ts, l->thread_ident);
    v->native = (int64_t)SI_PEEK(unsigned long, ts, l->thread_native);
    v->holds = si_knows(l->lock) ? of->holder == (uintptr_t)ts : -1;
    v->waits = si_knows(l->thread_waits) ? SI_PEEK(int, ts, l->thread_waits) != 0 : -1;
}

bool si_look(const si_layout *l, si_interp_view *interps, size_t max_interps, size_t *n_interps,
             si_thread_view *threads, size_t max_threads, size_t *n_threads)
{
    *n_interps = *n_threads = 0;
    if (!si_knows(l->list))
        return false;
    si_interp_view main = {.lock = 0};
    PyMutex_Lock(si_list_mutex(l));
    look_at_lock(l, PyInterpreterState_Main(), NULL, &main);
    PyInterpreterState *i = SI_AT(PyInterpreterState *, _PyRuntime, l->list);
    for (; i; i = SI_AT(PyInterpreterState *, i, l->next)) {
        si_interp_view beyond, *v = *n_interps < max_interps ? &interps[*n_interps] : &beyond;
        ++*n_interps;
        v->id = SI_AT(int64_t, i, l->id);
        look_at_config(i, v);
        look_at_lock(l, i, main.lock ? &main : NULL, v);
        look_at_collector(l, i, v);
        v->first_thread = *n_threads;
        v->n_threads = SI_UNKNOWN;
        if (!si_knows(l->threads))
            continue;
        v->n_threads = 0;
        for (PyThreadState *ts = SI_PEEK(PyThreadState *, i, l->threads); ts;
             ts = SI_PEEK(PyThreadState *, ts, l->thread_next), v->n_threads++)
            if ((*n_threads)++ < max_threads)
                look_at_thread(l, ts, v, &threads[*n_threads - 1]);
    }
    PyMutex_Unlock(si_list_mutex(l));
    return true;
}

/* ---- asking ---------------------------------------------------------------------- */

static void ask_release(si_ask *a)
{
    if (atomic_fetch_sub_explicit(&a->refs, 1, memory_order_acq_rel) == 1) {
        si_msg_clear(&a->answer);
        free(a);
    }
}

static void push_ask(si_context *cx, si_ask *a)
{
    a->next = atomic_load(&cx->asks);
    while (!atomic_compare_exchange_weak(&cx->asks, &a->next, a))
        ;
}

/* Off the list with a question, whose state this decides unless nobody waits any more. */
static void settle(si_ask *a, si_ask_state state)
{
    uint32_t open = SI_ASK_OPEN;
    if (atomic_compare_exchange_strong(&a->state, &open, state))
        si_futex_wake(&a->state, 1);
    ask_release(a);
}

/* Questions that nobody waits for go. Under contexts_mu. */
static void sweep(si_context *cx)
{
    si_ask *a = atomic_exchange(&cx->asks, NULL);
    while (a) {
        si_ask *next = a->next;
        if (atomic_load(&a->state) == SI_ASK_OPEN)
            push_ask(cx, a);
        else
            ask_release(a);
        a = next;
    }
}

/* Runs in the interpreter, under its lock, in whichever of its threads comes by; maybe
 * long after it was asked. */
static int answer_cb(void *arg)
{
    si_context *cx = arg;
    if (cx->generation != si_generation())
        return 0;       /* the parent's, with its references */
    atomic_store(&cx->asked, false);
    si_answer(cx);
    si_context_release(cx);
    return 0;
}

/* An idle worker runs no Python code, and so no pending calls: it is woken to look. */
static void wake_idle(PyInterpreterState *interp)
{
    for (si_worker *w = si_workers_lock(); w; w = w->all_next)
        if (atomic_load(&w->state) == SI_W_IDLE && w->interp == interp) {
            atomic_store_explicit(&w->wake, 1, memory_order_release);
            si_futex_wake(&w->wake, 1);
        }
    si_workers_unlock();
}

si_ask *si_ask_new(int64_t interp_id)
{
    si_ask *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    atomic_init(&a->refs, 2);
    PyInterpreterState *interp = NULL;
    for (si_context *cx = si_contexts_lock(); cx; cx = cx->all_next) {
        /* One that has ended, or was left behind, is not disturbed. */
        if (cx->interp_id != interp_id || atomic_load(&cx->ended))
            continue;
        interp = cx->interp;
        sweep(cx);
        push_ask(cx, a);
        if (!atomic_exchange(&cx->asked, true)) {
            si_context_retain(cx);
            if (_PyEval_AddPendingCall(interp, answer_cb, cx, 0) != 0) {
                /* Its queue is full: it may be asked again. */
                atomic_store(&cx->asked, false);
                si_context_release(cx);
            }
        }
        break;
    }
    si_contexts_unlock();
    if (!interp) {
        free(a);
        return NULL;
    }
    wake_idle(interp);
    return a;
}

si_ret si_ask_wait(si_ask *a, int64_t deadline)
{
    while (atomic_load(&a->state) == SI_ASK_OPEN) {
        si_ret st = si_futex_wait(&a->state, SI_ASK_OPEN, deadline);
        if (st != SI_OK)
            return st;
    }
    return SI_OK;
}

void si_ask_done(si_ask *a)
{
    uint32_t open = SI_ASK_OPEN;
    (void)atomic_compare_exchange_strong(&a->state, &open, SI_ASK_GIVEN_UP);
    ask_release(a);
}

void si_asks_drop(si_context *cx)
{
    si_ask *a = atomic_exchange(&cx->asks, NULL);
    while (a) {
        si_ask *next = a->next;
        settle(a, SI_ASK_FAILED);
        a = next;
    }
}

/* ---- reporting ------------------------------------------------------------------- */

/* A new reference to a string that travels: exact, and valid text. NULL: exception. */
static PyObject *plain_text(PyObject *obj)
{
    if (!obj)
        return NULL;
    if (PyUnicode_CheckExact(obj) && PyUnicode_AsUTF8AndSize(obj, NULL))
        return Py_NewRef(obj);
    PyErr_Clear();
    return PyObject_ASCII(obj);
}

/* Append a tuple of so many objects, whose references are taken; NULL among them:
 * exception. 0, or -1. */
static int append(PyObject *list, PyObject *a, PyObject *b, PyObject *c, PyObject *d, int n)
{
    PyObject *items[] = {a, b, c, d};
    PyObject *tuple = PyTuple_New(n);
    int bad = !tuple;
    for (int i = 0; i < n; i++) {
        bad |= !items[i];
        if (tuple)
            PyTuple_SET_ITEM(tuple, i, items[i]);
        else
            Py_XDECREF(items[i]);
    }
    if (!bad)
        bad = PyList_Append(list, tuple) < 0;
    Py_XDECREF(tuple);
    return bad ? -1 : 0;
}

static PyObject *module_names(PyObject *modules)
{
    PyObject *list = PyList_New(0), *key;
    Py_ssize_t at = 0;
    while (list && PyDict_Next(modules, &at, &key, NULL))
        if (PyUnicode_CheckExact(key) && PyUnicode_AsUTF8AndSize(key, NULL)) {
            if (PyList_Append(list, key) < 0)
                Py_CLEAR(list);
        }
        else
            PyErr_Clear();
    return list;
}

/* What a thread runs. */
typedef struct {
    unsigned long ident;
    PyFrameObject *frame;   /* a reference */
} running_thread;

/* The threads of this interpreter that run Python code: up to `max`; how many there are. */
static size_t running_threads(si_context *cx, running_thread *threads, size_t max)
{
    const si_layout *l = si_runtime_layout();
    size_t n = 0;
    if (!si_knows(l->threads))
        return 0;
    /* The lists' mutex keeps thread states, our lock keeps their frames. */
    si_list_lock_attached(l);
    for (PyThreadState *ts = SI_PEEK(PyThreadState *, cx->interp, l->threads); ts;
         ts = SI_PEEK(PyThreadState *, ts, l->thread_next)) {
        PyFrameObject *frame = PyThreadState_GetFrame(ts);
        if (!frame)
            continue;
        if (n < max)
            threads[n] = (running_thread){SI_PEEK(unsigned long, ts, l->thread_ident), frame};
        /* The last reference does not go here: the thread has one. */
        else
            Py_DECREF(frame);
        n++;
    }
    PyMutex_Unlock(si_list_mutex(l));
    return n;
}

/* (thread, function, file, line) of each thread that runs Python code. Not by
 * sys._current_frames: that of 3.13.0 makes frame objects for threads of other interpreters,
 * which run meanwhile. */
static PyObject *running(si_context *cx)
{
    running_thread threads[256];
    size_t n = running_threads(cx, threads, 256);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; i < n && i < 256; i++) {
        PyFrameObject *frame = threads[i].frame;
        if (list) {
            PyCodeObject *code = PyFrame_GetCode(frame);
            if (append(list, PyLong_FromUnsignedLong(threads[i].ident),
                       plain_text(code->co_qualname), plain_text(code->co_filename),
                       PyLong_FromLong(PyFrame_GetLineNumber(frame)), 4) < 0)
                Py_CLEAR(list);
            Py_DECREF(code);
        }
        Py_DECREF(frame);
    }
    return list;
}

/* (thread, name) of each thread that `threading` knows here. */
static PyObject *thread_names(PyObject *modules)
{
    PyObject *list = PyList_New(0);
    PyObject *threading = PyDict_GetItemString(modules, "threading");
    PyObject *active = threading ? PyObject_GetAttrString(threading, "_active") : NULL;
    PyObject *items = active && PyDict_Check(active) ? PyDict_Items(active) : NULL;
    for (Py_ssize_t i = 0; list && items && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        PyObject *name = PyObject_GetAttrString(PyTuple_GET_ITEM(item, 1), "_name");
        if (PyLong_CheckExact(PyTuple_GET_ITEM(item, 0)) && name
            && append(list, Py_NewRef(PyTuple_GET_ITEM(item, 0)), plain_text(name), NULL, NULL, 2) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
        PyErr_Clear();
    }
    PyErr_Clear();
    Py_XDECREF(items);
    Py_XDECREF(active);
    return list;
}

/* Collections so far, and what they found, of each generation; empty: not known. */
static PyObject *collections(PyObject *modules)
{
    PyObject *list = PyList_New(0);
    PyObject *gc = PyDict_GetItemString(modules, "gc");
    PyObject *stats = gc ? PyObject_CallMethod(gc, "get_stats", NULL) : NULL;
    for (Py_ssize_t i = 0; list && stats && PyList_Check(stats) && i < PyList_GET_SIZE(stats); i++) {
        PyObject *entry = PyList_GET_ITEM(stats, i), *found[3];
        const char *const names[] = {"collections", "collected", "uncollectable"};
        for (int j = 0; j < 3; j++) {
            found[j] = PyDict_Check(entry) ? PyDict_GetItemString(entry, names[j]) : NULL;
            found[j] = found[j] && PyLong_CheckExact(found[j]) ? Py_NewRef(found[j])
                                                               : PyLong_FromLong(-1);
        }
        if (append(list, found[0], found[1], found[2], NULL, 3) < 0)
            Py_CLEAR(list);
    }
    PyErr_Clear();
    Py_XDECREF(stats);
    return list;
}

PyObject *si_report(si_context *cx)
{
    PyObject *modules = PySys_GetObject("modules");
    if (!modules || !PyDict_Check(modules)) {
        PyErr_SetString(PyExc_RuntimeError, "this interpreter is ending");
        return NULL;
    }
    PyObject *report = NULL;
    Py_INCREF(modules);
    PyObject *names = module_names(modules), *stats = names ? collections(modules) : NULL;
    PyObject *threads = stats ? thread_names(modules) : NULL;
    PyObject *frames = threads ? running(cx) : NULL;
    if (frames)
        report = PyTuple_Pack(4, names, frames, threads, stats);
    Py_XDECREF(names);
    Py_XDECREF(stats);
    Py_XDECREF(threads);
    Py_XDECREF(frames);
    Py_DECREF(modules);
    return report;
}

void si_answer(si_context *cx)
{
    si_ask *a = atomic_exchange(&cx->asks, NULL);
    if (!a)
        return;
    PyObject *before = PyErr_GetRaisedException();
    /* A thread's class may run Python code when it is asked for its name: an interruption
     * of the task would be lost in it. */
    si_worker *self = si_worker_self();
    if (self && self->cx != cx)
        self = NULL;
    if (self)
        si_shield(self);
    PyObject *report = _Py_IsInterpreterFinalizing(cx->interp) ? NULL : si_report(cx);
    while (a) {
        si_ask *next = a->next;
        si_encoder e;
        si_encoder_init(&e);
        si_msg answer;
        si_msg_init(&answer);
        bool good = report && si_encode(&e, &answer, report) == SI_OK;
        answer.format = SI_FMT_FAST;
        if (good && atomic_load(&a->state) == SI_ASK_OPEN)
            si_msg_move(&a->answer, &answer);
        si_msg_clear(&answer);
        settle(a, good ? SI_ASK_ANSWERED : SI_ASK_FAILED);
        a = next;
    }
    Py_XDECREF(report);
    if (self)
        si_unshield(self);
    PyErr_SetRaisedException(before);
}

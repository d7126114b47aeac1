#include "si_context.h"
#include "si_channel.h"
#include "si_extension.h"
#include "si_layout.h"
#include "si_park.h"
#include "si_pool.h"
#include "si_signal.h"
#include "si_stop.h"
#include "si_sync.h"
#include "si_task.h"
#include "si_view.h"

#include <pthread.h>
#include <sched.h>

static const char CAPSULE[] = "subinterp._core.context";

/* Guards `contexts`, the lists of who asks each of them, and that the interpreters
 * of those listed are not freed. */
static si_mutex contexts_mu;
static si_context *contexts;

/* ---- the runtime's list of interpreters -------------------------------- */

bool si_runtime_known(void)
{
    return si_knows(si_runtime_layout()->list);
}

bool si_runtime_is_in_lock(PyInterpreterState *interp, uintptr_t address)
{
    const si_layout *l = si_runtime_layout();
    return !si_knows(l->own_lock) || address - ((uintptr_t)interp + l->own_lock) < SI_MOST_OF_LOCK;
}

size_t si_runtime_list(int64_t *ids, size_t max)
{
    const si_layout *l = si_runtime_layout();
    size_t n = 0;
    if (!si_runtime_known())
        return 0;
    PyMutex_Lock(si_list_mutex(l));
    for (PyInterpreterState *i = SI_AT(PyInterpreterState *, _PyRuntime, l->list); i;
         i = SI_AT(PyInterpreterState *, i, l->next), n++)
        if (n < max)
            ids[n] = SI_AT(int64_t, i, l->id);
    PyMutex_Unlock(si_list_mutex(l));
    return n;
}

void si_runtime_unlink(PyInterpreterState *interp)
{
    const si_layout *l = si_runtime_layout();
    if (!si_runtime_known())
        return;
    PyMutex_Lock(si_list_mutex(l));
    PyInterpreterState **p = &SI_AT(PyInterpreterState *, _PyRuntime, l->list);
    while (*p && *p != interp)
        p = &SI_AT(PyInterpreterState *, *p, l->next);
    if (*p)
        *p = SI_AT(PyInterpreterState *, interp, l->next);
    PyMutex_Unlock(si_list_mutex(l));
}

/* In the child of a fork only this thread lives, and CPython held the list's
 * mutex across os.fork: no lock is needed, and none could be had. */
void si_runtime_unlink_foreign(PyInterpreterState *main_interp)
{
    const si_layout *l = si_runtime_layout();
    if (!si_runtime_known())
        return;
    SI_AT(PyInterpreterState *, _PyRuntime, l->list) = main_interp;
    SI_AT(PyInterpreterState *, main_interp, l->next) = NULL;
}

/* ---- fork ---------------------------------------------------------------- */

/* os.register_at_fork(after_in_child=...) comes too late: CPython's own
 * handling of the child crashes on the parent's live interpreters before. */
static void child_of_fork(void)
{
    if (atomic_load(&si_live.workers) > 0 || atomic_load(&si_live.parked) > 0)
        si_runtime_unlink_foreign(PyInterpreterState_Main());
    atomic_fetch_add(&si_fork_generation, 1);
    atomic_store(&si_live.workers, 0);
    atomic_store(&si_live.parked, 0);
    si_message_after_fork();
    si_syncs_after_fork();
    si_channels_after_fork();
    si_pools_after_fork();
    si_workers_after_fork();
    si_images_after_fork();
    si_extensions_after_fork();
    si_park_after_fork();
    si_stop_after_fork();
    si_signal_after_fork();
    atomic_store(&contexts_mu.word, 0);
    contexts = NULL;    /* the parent's; whoever goes on gets a new one */
}

si_ret si_runtime_init(PyThreadState *ts)
{
    static _Atomic int done = 0;
    int expected = 0;
    if (!atomic_compare_exchange_strong(&done, &expected, 1))
        return SI_OK;
    si_cores = si_usable_cores();
    si_set_spin(si_cores > 1 ? 50000 : 0);
    si_layout_init(ts);
    if (pthread_atfork(NULL, NULL, child_of_fork) != 0)
        return SI_NOMEM;
    return SI_OK;
}

/* ---- contexts ------------------------------------------------------------ */

void si_context_release(si_context *cx)
{
    if (atomic_fetch_sub_explicit(&cx->refs, 1, memory_order_acq_rel) == 1) {
        if (cx->notices)
            si_cq_release(cx->notices);
        if (cx->loader)
            si_loader_free(cx->loader);
        free(cx);
        SI_COUNT(contexts, -1);
    }
}

void si_context_end(si_context *cx)
{
    if (atomic_exchange(&cx->ended, true))
        return;
    if (cx->generation != si_generation())
        return;
    /* Whoever asks it something has done so now, or will not any more. */
    (void)si_contexts_lock();
    si_contexts_unlock();
    /* One handle at a time: giving one up may free a channel, whose messages
     * may carry further handles. */
    for (;;) {
        si_lock(&cx->mu);
        si_handle *h = cx->ledger;
        while (h && !atomic_exchange(&h->counted, false))
            h = h->next;
        si_channel *channel = NULL;
        si_side side = SI_SENDER;
        if (h) {
            channel = h->channel;
            side = h->side;
            /* The end may be collected as soon as the lock is released. */
            si_channel_retain(channel);
        }
        si_unlock(&cx->mu);
        if (!h)
            break;
        /* Whoever waits through it, in an abandoned interpreter, shall not be the one
         * that is told of a message. */
        si_channel_tell_side(channel, side);
        si_channel_drop_handle(channel, side);
    }
    si_channels_unbind(cx->interp_id);
    si_sync_context_end(cx);
    if (cx->notices)
        si_cq_close(cx->notices);
}

void si_context_reopen(si_context *cx)
{
    struct si_cq *notices = atomic_exchange(&cx->notices, NULL);
    if (notices)
        si_cq_release(notices);
    atomic_store(&cx->ended, false);
}

si_context *si_contexts_lock(void)
{
    while (!si_trylock(&contexts_mu)) {
        bool attached = PyThreadState_GetUnchecked() != NULL;
        PyThreadState *ts = attached ? PyEval_SaveThread() : NULL;
        sched_yield();
        if (attached)
            PyEval_RestoreThread(ts);
    }
    return contexts;
}

void si_contexts_unlock(void)
{
    si_unlock(&contexts_mu);
}

static void enlist(si_context *cx)
{
    cx->all_next = si_contexts_lock();
    if (cx->all_next)
        cx->all_next->all_prev = cx;
    contexts = cx;
    si_contexts_unlock();
}

/* Its interpreter is being taken apart. */
static void unlist(si_context *cx)
{
    if (cx->generation != si_generation())
        return;
    (void)si_contexts_lock();
    if (cx->all_prev)
        cx->all_prev->all_next = cx->all_next;
    else
        contexts = cx->all_next;
    if (cx->all_next)
        cx->all_next->all_prev = cx->all_prev;
    si_contexts_unlock();
    si_asks_drop(cx);
}

static void capsule_destroyed(PyObject *capsule)
{
    si_context *cx = PyCapsule_GetPointer(capsule, CAPSULE);
    if (cx) {
        unlist(cx);
        si_context_end(cx);
        si_context_release(cx);
    }
}

si_context *si_context_of(PyInterpreterState *interp)
{
    PyObject *dict = PyInterpreterState_GetDict(interp);
    if (!dict) {
        PyErr_SetString(PyExc_RuntimeError, "this interpreter is ending");
        return NULL;
    }
    PyObject *capsule = PyDict_GetItemString(dict, CAPSULE);
    if (capsule) {
        si_context *cx = PyCapsule_GetPointer(capsule, CAPSULE);
        if (!cx || cx->generation == si_generation())
            return cx;
        /* Inherited through a fork: the child starts with a fresh one. */
    }
    si_context *cx = calloc(1, sizeof *cx);
    if (!cx)
        return (si_context *)PyErr_NoMemory();
    atomic_init(&cx->refs, 1);
    cx->generation = si_generation();
    cx->interp_id = PyInterpreterState_GetID(interp);
    cx->interp = interp;
    SI_COUNT(contexts, 1);
    PyObject *fresh = PyCapsule_New(cx, CAPSULE, capsule_destroyed);
    if (!fresh) {
        si_context_release(cx);
        return NULL;
    }
    enlist(cx);
    if (capsule)
        PyCapsule_SetDestructor(capsule, NULL);
    int bad = PyDict_SetItemString(dict, CAPSULE, fresh);
    Py_DECREF(fresh);
    if (bad < 0)
        return NULL;
    return cx;
}

void si_ledger_add(si_context *cx, si_handle *h)
{
    si_lock(&cx->mu);
    h->prev = NULL;
    h->next = cx->ledger;
    if (cx->ledger)
        cx->ledger->prev = h;
    cx->ledger = h;
    si_unlock(&cx->mu);
    /* An abandoned interpreter that still runs holds nothing any more. */
    if (atomic_load(&cx->ended) && si_handle_claim_drop(h))
        si_channel_drop_count(h->channel, h->side);
}

void si_ledger_remove(si_context *cx, si_handle *h)
{
    si_lock(&cx->mu);
    if (h->prev)
        h->prev->next = h->next;
    else if (cx->ledger == h)
        cx->ledger = h->next;
    if (h->next)
        h->next->prev = h->prev;
    h->prev = h->next = NULL;
    si_unlock(&cx->mu);
}

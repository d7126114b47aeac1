#include "si_context.h"
#include "si_channel.h"
#include "si_extension.h"
#include "si_park.h"
#include "si_pool.h"
#include "si_signal.h"
#include "si_stop.h"
#include "si_sync.h"
#include "si_task.h"

#include <pthread.h>

static const char CAPSULE[] = "subinterp._core.context";

/* ---- the runtime's list of interpreters -------------------------------- */

/* Set once by si_runtime_init, constant afterwards. */
static struct {
    bool known;
    size_t head, next, id;
} layout;

#define AT(type, base, offset) (*(type *)((char *)(base) + (offset)))

static void find_layout(void)
{
    const si_debug_offsets *d = (const si_debug_offsets *)_PyRuntime;
    if (memcmp(d->cookie, "xdebugpy", 8) != 0
        || (d->version >> 16) != ((uint64_t)PY_VERSION_HEX >> 16))
        return;
    size_t head = d->runtime_state.interpreters_head;
    /* struct pyinterpreters: mutex, head, main. Check what can be checked. */
    if (head < 8 || head > 1 << 20
        || AT(PyInterpreterState *, _PyRuntime, head + 8) != PyInterpreterState_Main())
        return;
    PyInterpreterState *main_interp = PyInterpreterState_Main();
    if (AT(int64_t, main_interp, d->interpreter_state.id) != PyInterpreterState_GetID(main_interp))
        return;
    layout.head = head;
    layout.next = d->interpreter_state.next;
    layout.id = d->interpreter_state.id;
    layout.known = true;
}

static PyMutex *list_mutex(void)
{
    return (PyMutex *)((char *)_PyRuntime + layout.head - 8);
}

bool si_runtime_known(void)
{
    return layout.known;
}

size_t si_runtime_list(int64_t *ids, size_t max)
{
    size_t n = 0;
    if (!layout.known)
        return 0;
    PyMutex_Lock(list_mutex());
    for (PyInterpreterState *i = AT(PyInterpreterState *, _PyRuntime, layout.head); i;
         i = AT(PyInterpreterState *, i, layout.next), n++)
        if (n < max)
            ids[n] = AT(int64_t, i, layout.id);
    PyMutex_Unlock(list_mutex());
    return n;
}

void si_runtime_unlink(PyInterpreterState *interp)
{
    if (!layout.known)
        return;
    PyMutex_Lock(list_mutex());
    PyInterpreterState **p = &AT(PyInterpreterState *, _PyRuntime, layout.head);
    while (*p && *p != interp)
        p = &AT(PyInterpreterState *, *p, layout.next);
    if (*p)
        *p = AT(PyInterpreterState *, interp, layout.next);
    PyMutex_Unlock(list_mutex());
}

/* In the child of a fork only this thread lives, and CPython held the list's
 * mutex across os.fork: no lock is needed, and none could be had. */
void si_runtime_unlink_foreign(PyInterpreterState *main_interp)
{
    if (!layout.known)
        return;
    AT(PyInterpreterState *, _PyRuntime, layout.head) = main_interp;
    AT(PyInterpreterState *, main_interp, layout.next) = NULL;
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
}

si_ret si_runtime_init(void)
{
    static _Atomic int done = 0;
    int expected = 0;
    if (!atomic_compare_exchange_strong(&done, &expected, 1))
        return SI_OK;
    si_cores = si_usable_cores();
    si_set_spin(si_cores > 1 ? 50000 : 0);
    find_layout();
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

static void capsule_destroyed(PyObject *capsule)
{
    si_context *cx = PyCapsule_GetPointer(capsule, CAPSULE);
    if (cx) {
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
    SI_COUNT(contexts, 1);
    PyObject *fresh = PyCapsule_New(cx, CAPSULE, capsule_destroyed);
    if (!fresh) {
        si_context_release(cx);
        return NULL;
    }
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

/* si_context.h: what the library knows of one interpreter.
 *
 * Every interpreter that uses the library has one context. It is found once,
 * when the module is loaded or a worker starts (the roots), and passed on
 * explicitly from there. */
#ifndef SI_CONTEXT_H
#define SI_CONTEXT_H

#include "si_compat.h"
#include "si_base.h"

typedef struct si_channel si_channel;
struct si_loader;
struct si_cq;
struct si_sync_handle;
struct si_ask;

typedef enum { SI_SENDER = 0, SI_RECEIVER = 1 } si_side;

/* One Python channel end's claim on its channel, a member of its context's
 * ledger. The ledger is what an interpreter gives up when it ends or is
 * abandoned, without its objects being asked.
 * prev, next: guarded by the context's mu. counted: atomic, the handle is
 * given up by whoever turns it false. channel: set once, holds memory only. */
typedef struct si_handle {
    struct si_handle *prev, *next;
    si_channel *channel;
    si_side side;
    _Atomic bool counted;
} si_handle;

typedef struct si_context {
    _Atomic int refs;               /* the interpreter, its workers, tasks observed */
    uint32_t generation;            /* of the process that made it; constant */
    int64_t interp_id;              /* constant */
    _Atomic bool ended;             /* ended or abandoned */
    si_mutex mu;                    /* guards the ledger: this and the next two */
    si_handle *ledger;
    struct si_sync_handle *syncs;   /* locks and the like that have an object here (si_sync.h) */
    struct si_sync_handle *orphans; /* locks held here that have none any more */
    _Atomic int64_t arena_bytes;    /* memory of small objects, in workers; see si_worker.c */
    _Atomic(struct si_cq *) notices;      /* completed tasks that Python observes; NULL until asked
                                       for; written under the interpreter's lock */

    /* looked for by others: see si_view.h */
    PyInterpreterState *interp;     /* constant; there while the context is listed */
    struct si_context *all_next, *all_prev; /* every context whose interpreter is there;
                                       guarded by contexts_mu */
    _Atomic(struct si_ask *) asks;  /* who wants to know what it does, the last one first */
    _Atomic bool asked;             /* a pending call is on its way, and holds a reference */

    /* The interpreter's own objects: touched under its lock only. */
    PyObject *worker_module;        /* subinterp._worker, in workers */
    bool core_loaded;               /* the extension's module exists here */
    unsigned char dirty;            /* a stream holds text; written by Python through a memoryview */
    bool jailed;                    /* exit has seen to it; guarded by workers_mu */
    uint32_t n_copies;              /* private copies of extension modules and libraries: their
                                       memory never comes back */
    struct si_loader *loader;       /* of extension modules, in workers that have one; owned */
} si_context;

/* The context of an interpreter, made at the first call; a borrowed pointer
 * that lives as long as the interpreter. Root: called with the lock of
 * `interp` held, at module load and worker start. NULL: exception set. */
si_context *si_context_of(PyInterpreterState *interp);
static inline void si_context_retain(si_context *cx)
{
    atomic_fetch_add_explicit(&cx->refs, 1, memory_order_relaxed);
}
void si_context_release(si_context *cx);
/* Give up everything the interpreter holds; idempotent; any thread. */
void si_context_end(si_context *cx);
/* Use it again, for another pool: by the interpreter's thread, once nobody else
 * may end or abandon the interpreter. What it held stays given up. */
void si_context_reopen(si_context *cx);

/* The contexts of all interpreters that are there (`all_next`), under contexts_mu:
 * while it is held, none of these interpreters is freed. A holder may wait for a
 * mutex of CPython's that a thread keeps until it has its interpreter's lock again;
 * so nobody waits for contexts_mu with that lock held. */
si_context *si_contexts_lock(void);
void si_contexts_unlock(void);

void si_ledger_add(si_context *cx, si_handle *h);
void si_ledger_remove(si_context *cx, si_handle *h);

/* The runtime's own list of interpreters, reached as si_layout.h has it.
 * The mutex that guards the list is taken only by a thread that holds no
 * interpreter's lock: its holder may be waiting for one. */
bool si_runtime_known(void);        /* the layout was recognised */
/* The address is in the interpreter's own lock; or it is not known where that is. From a
 * signal's handler, too. */
bool si_runtime_is_in_lock(PyInterpreterState *interp, uintptr_t address);
size_t si_runtime_list(int64_t *ids, size_t max);
/* Take interpreters out of the list, so that finalization does not see them. */
void si_runtime_unlink(PyInterpreterState *interp);
void si_runtime_unlink_foreign(PyInterpreterState *main_interp); /* child of fork */

/* Called once, when the library is loaded first. ts: the calling thread's. */
si_ret si_runtime_init(PyThreadState *ts);

#endif

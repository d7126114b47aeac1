/* si_sync.h: locks, semaphores, events, barriers and counters that any threads
 * of any interpreters share.
 *
 * A lock is one word: who holds it (which interpreter), whether somebody
 * sleeps, whether it is broken. To take a free one and to give it back costs
 * one atomic operation each. Who finds it held looks for a short while, then
 * enters the list of waiters, ordered by how long they wait, and sleeps on a
 * word of its own. Who gives it back while somebody is listed wakes the first,
 * which takes it if nobody was quicker; one that has waited for a millisecond
 * is given the lock itself, so that a thread which takes and gives it in a
 * loop cannot keep the others out. (A queue that is strictly served in turn was
 * turned down: each hand-over would then cost a switch of threads.)
 *
 * The word names the interpreter, so that the lock can be broken when that
 * one ends or is abandoned: each Python object is listed in the ledger of its
 * context, and si_context_end breaks what is found held there. Nothing has to
 * be noted when a lock is taken. An interpreter that runs on after it was
 * abandoned takes nothing any more: who takes looks at `ended` after writing
 * the word, who ends looks at the words after writing `ended`, both
 * sequentially consistent, so that one of them sees the other.
 *
 * After: "robust" mutexes of POSIX (broken with their holder), WebKit's parking
 * lot and CPython's PyMutex (given over after a while). */
#ifndef SI_SYNC_H
#define SI_SYNC_H

#include "si_context.h" /* first: feature macros */
#include "si_message.h"

#include <pthread.h>

typedef enum {
    SI_SYNC_LOCK = 1,
    SI_SYNC_RLOCK,
    SI_SYNC_SEMAPHORE,
    SI_SYNC_EVENT,
    SI_SYNC_BARRIER,
    SI_SYNC_COUNTER,
} si_sync_kind;

/* Bits of si_sync.state of locks and semaphores; the rest is the tag of the
 * holder, or the permits that are left. */
#define SI_SYNC_WAITERS 1u      /* somebody is listed; changes under mu */
#define SI_SYNC_BROKEN 2u       /* for good; the tag stays; set under mu */
#define SI_SYNC_SHIFT 2
#define SI_SYNC_MAX (INT64_MAX >> SI_SYNC_SHIFT)    /* permits a semaphore can have */

/* What a waiter was told. */
typedef enum {
    SI_TOLD_NOTHING = 0,
    SI_TOLD_LOOK,       /* there may be something: try again */
    SI_TOLD_GIVEN,      /* what it waits for is its own, or has happened */
    SI_TOLD_BROKEN,
} si_told;

/* A thread that waits, on its stack. told: written under the primitive's mu,
 * with which the waiter leaves the list; waiters for locks and semaphores
 * sleep on it, the others on si_sync.epoch. */
typedef struct si_sync_waiter {
    struct si_sync_waiter *prev, *next;
    si_context *cx;
    si_word told;
    bool listed;
    int64_t since;          /* when it began to wait; 0: it has not */
    uint32_t epoch;         /* events: when it was listed first */
    uint64_t round;         /* barriers: which it is the last of */
    int64_t index;          /* barriers: how many came before and are still there; -1: not let in yet */
} si_sync_waiter;

typedef struct si_sync {
    _Atomic int refs;           /* memory: Python objects, messages */
    si_sync_kind kind;          /* this and the next three: constant */
    uint32_t generation;
    int64_t limit;              /* parties of a barrier, bound of a semaphore (-1: none) */
    int64_t timeout;            /* of a barrier by default, ns; SI_FOREVER: none */
    uint64_t id;
    struct si_sync *all_next, *all_prev;    /* guarded by syncs_mu */
    _Atomic(si_msg *) action;   /* of a barrier, encoded; set once, constant then */

    _Alignas(64) _Atomic uint64_t state;    /* as above; an event: 1 if set; a counter's value */
    _Atomic uint64_t thread;    /* RLock: the holder's, 0: none; it alone writes its own */
    _Atomic uint64_t depth;     /* RLock: the holder's; others only show it */

    si_mutex mu;                /* guards the rest, except spin */
    si_word epoch;              /* counts what all waiters of an event or barrier were told */
    si_sync_waiter *first, *last;
    si_spin spin;
    int64_t count;              /* barrier: who has come, this round */
    _Atomic uint64_t acting;    /* barrier: tag of the interpreter that runs the action */
    uint64_t round;
    bool broken;                /* barrier */
} si_sync;

/* One Python object's place in the ledger of its context. It stays there as an
 * orphan if the object goes while its interpreter holds the lock and others know
 * it. prev, next: guarded by the context's mu. sync: constant, one memory
 * reference. */
typedef struct si_sync_handle {
    struct si_sync_handle *prev, *next;
    si_sync *sync;
} si_sync_handle;

/* `value`: permits, the counter's value; `limit`, `timeout` as in the struct.
 * One memory reference. NULL: no memory. */
si_sync *si_sync_new(si_sync_kind kind, int64_t value, int64_t limit, int64_t timeout);
si_sync *si_sync_find(uint64_t id);     /* a memory reference, or NULL */
static inline void si_sync_retain(si_sync *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}
void si_sync_release(si_sync *s);

/* List a new object of that context; takes a memory reference over if it
 * succeeds. NULL: no memory. */
si_sync_handle *si_sync_handle_new(si_context *cx, si_sync *s);
/* The object is gone. Any thread; gives the memory reference up, at the latest
 * when the context ends. */
void si_sync_handle_drop(si_context *cx, si_sync_handle *h);
/* Break what the context holds: it has ended or is abandoned. */
void si_sync_context_end(si_context *cx);

static inline bool si_sync_forked(const si_sync *s)
{
    return s->generation != si_generation();
}

/* How the words name an interpreter. Their numbers are not used again. */
static inline uint64_t si_sync_tag(const si_context *cx)
{
    return ((uint64_t)cx->interp_id + 1) << SI_SYNC_SHIFT;
}

/* ---- locks and semaphores ---- */

/* Take it, or a permit, without waiting. SI_EMPTY: there is none; SI_BROKEN;
 * SI_CLOSED: this interpreter has ended or is abandoned; SI_FORKED. */
si_ret si_sync_take(si_sync *s, si_context *cx);
/* Wait and take. Also SI_TIMEOUT, SI_INTR: not listed then; call again with
 * the same waiter, which keeps its turn. */
si_ret si_sync_wait(si_sync *s, si_sync_waiter *w, int64_t deadline);
/* Give the lock back, whoever holds it (an RLock: its holder only), or `n`
 * permits. SI_EMPTY: it is not held; SI_FULL: more than the semaphore's bound,
 * or than it can count; SI_BROKEN; SI_FORKED. Does not block. */
si_ret si_sync_give(si_sync *s, si_context *cx, int64_t n);
/* RLock: this thread of that interpreter has it. */
bool si_sync_is_mine(si_sync *s, si_context *cx);

static inline uint64_t si_sync_state(si_sync *s)
{
    return atomic_load_explicit(&s->state, memory_order_acquire);
}

/* ---- events ---- */

si_ret si_event_set(si_sync *s);
si_ret si_event_clear(si_sync *s);
/* SI_OK: it is set, or was while we waited. SI_TIMEOUT, SI_INTR, SI_FORKED. */
si_ret si_event_wait(si_sync *s, si_sync_waiter *w, int64_t deadline);

/* ---- barriers ---- */

/* Come to the barrier. SI_OK: all are there; SI_FULL: this is the last one,
 * which runs the action (`act`) and then calls si_barrier_open; SI_EMPTY: wait;
 * SI_BROKEN; SI_FORKED. */
si_ret si_barrier_arrive(si_sync *s, si_sync_waiter *w, bool act);
/* As si_barrier_arrive; SI_TIMEOUT, SI_INTR: still listed, call again or leave. */
si_ret si_barrier_wait(si_sync *s, si_sync_waiter *w, bool act, int64_t deadline);
/* Wait no longer. in_time: the deadline has not passed, somebody interrupts;
 * else the barrier breaks. SI_OK: it had opened; SI_BROKEN; SI_EMPTY: left;
 * SI_FULL: the action runs, wait for its end; SI_INTR: wait on, as before. */
si_ret si_barrier_leave(si_sync *s, si_sync_waiter *w, bool in_time);
/* The action was run. SI_BROKEN: aborted or reset meanwhile. */
si_ret si_barrier_open(si_sync *s, si_sync_waiter *w);
/* Whoever waits gets SI_BROKEN; later ones too, unless `reset`. */
si_ret si_barrier_break(si_sync *s, bool reset);
/* How many wait; -1: it is broken. */
int64_t si_barrier_waiting(si_sync *s);
/* Keep the encoded action; false: there was one, and the caller keeps this one. */
bool si_barrier_set_action(si_sync *s, si_msg *m);

static inline si_msg *si_barrier_action(si_sync *s)
{
    return atomic_load_explicit(&s->action, memory_order_acquire);
}

/* ---- counters ---- */

static inline int64_t si_counter_get(si_sync *s)
{
    return (int64_t)atomic_load(&s->state);
}

static inline int64_t si_counter_exchange(si_sync *s, int64_t value)
{
    return (int64_t)atomic_exchange(&s->state, (uint64_t)value);
}

static inline bool si_counter_compare_exchange(si_sync *s, int64_t expected, int64_t value)
{
    uint64_t e = (uint64_t)expected;
    return atomic_compare_exchange_strong(&s->state, &e, (uint64_t)value);
}

/* False: the sum has no 64 bits; nothing was changed. */
static inline bool si_counter_add(si_sync *s, int64_t n, bool minus, int64_t *sum)
{
    uint64_t old = atomic_load_explicit(&s->state, memory_order_relaxed);
    do {
        if (minus ? __builtin_sub_overflow((int64_t)old, n, sum)
                  : __builtin_add_overflow((int64_t)old, n, sum))
            return false;
    } while (!atomic_compare_exchange_weak(&s->state, &old, (uint64_t)*sum));
    return true;
}

static inline void si_sync_waiter_init(si_sync_waiter *w, si_context *cx)
{
    w->prev = w->next = NULL;
    w->cx = cx;
    atomic_init(&w->told, SI_TOLD_NOTHING);
    w->listed = false;
    w->since = 0;
    w->epoch = 0;
    w->round = 0;
    w->index = -1;
}

void si_syncs_after_fork(void);

#endif

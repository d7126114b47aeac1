/* si_task.h: tasks, functions on their way, and queues of what is complete.
 *
 * A task's state is one atomic word, which is also the futex its waiters
 * sleep on. Who may change it:
 *   PENDING -> RUNNING             the worker that took it from the queue
 *   PENDING -> CANCELLED           anybody who holds a reference
 *   PENDING, RUNNING -> BROKEN     the pool, when no worker will finish it
 *   RUNNING -> DONE, FAILED        the worker that runs it
 *   RUNNING -> ABANDONED, OVERDUE  whoever leaves that worker behind, instead
 *                                  of the worker (which of them: si_stop.h)
 * All but the first are final. The message belongs to the side that may make the
 * next change: to the submitter until the push, to the worker until its final
 * store (release), to the future's interpreter after an acquire load that
 * shows a final state; after ABANDONED and OVERDUE it stays the worker's. WAITED and OBSERVED are added by waiters at any time;
 * the final store's exchange returns them, so a waiter that set its flag
 * before is always told, and one that sets it after sees the final state. */
#ifndef SI_TASK_H
#define SI_TASK_H

#include "si_context.h"
#include "si_message.h"

typedef enum {
    SI_PENDING = 0,
    SI_RUNNING = 1,
    SI_DONE = 2,        /* the message is the result */
    SI_FAILED = 3,      /* the message describes an exception */
    SI_CANCELLED = 4,
    SI_LOST = 5,        /* the pool broke; the message is the reason, as text */
    SI_ABANDONED = 6,   /* it did not stop when it was interrupted; the message stays the worker's */
    SI_OVERDUE = 7,     /* the same, when its time was up */
} si_task_state;

#define SI_STATE_MASK 0x0fu
#define SI_WAITED 0x10u     /* somebody sleeps on the word */
#define SI_OBSERVED 0x20u   /* post to task->cq when final */

#define SI_IS_FINAL(word) (((word) & SI_STATE_MASK) >= SI_DONE)

/* A function in its encoded form, shared by the tasks that call it. Workers
 * remember the object they made of it by `id`; ids are never used again.
 * The message is decoded without being consumed, by any number of workers at
 * once. Everything but refs, retired and cost is constant. */
typedef struct {
    _Atomic int refs;
    _Atomic bool retired;           /* no caller will use it again: workers forget it when idle */
    _Atomic int64_t cost;           /* ns of one call, a running mean; 0: unknown; a hint */
    uint64_t id;
    bool by_name;                   /* msg.data: module, 0, qualified name, 0 */
    bool remember;                  /* false: it carries handles, which must not outlive the call */
    si_msg msg;
} si_function;

/* Takes over the message's content. NULL: no memory. */
si_function *si_function_new(si_msg *msg, bool by_name);
static inline void si_function_retain(si_function *f)
{
    atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
}
/* The caller drops it from its cache. */
void si_function_retire(si_function *f);
void si_function_release(si_function *f);
/* Goes up with each function retired: idle workers compare it. */
extern _Atomic uint32_t si_functions_retired;

/* Arity of a chunk whose items are argument tuples. */
#define SI_ARITY_STAR 255

typedef enum {
    SI_CALL,            /* function(*args, **kwargs) */
    SI_CALL_PICKLED,    /* the message is (function, args, kwargs) */
    SI_CHUNK,           /* n_items calls, arity arguments each */
    SI_WORKER_CALL,     /* the message is (name in subinterp._worker, args) */
} si_task_kind;

/* A member of a list: the pool's queue, a worker's inbox, a completion queue;
 * in one at a time. */
typedef struct si_node {
    struct si_node *next;
    bool is_task;       /* else an asynchronous waiter */
} si_node;

typedef struct si_task {
    si_node node;           /* guarded by the lock of the list it is in */
    si_word state;
    _Atomic int refs;
    uint8_t kind;           /* si_task_kind; constant after the push, like the next ones */
    uint8_t arity;
    bool failed_items;      /* SI_CHUNK: some items raised */
    uint32_t n_items;
    uint32_t generation;
    si_function *function;  /* one reference, or NULL */
    void *pool;             /* compared, never followed: tasks outlive pools */
    struct si_cq *cq;       /* where to post; set before OBSERVED is, one reference */
    PyObject *observer;     /* the future; owned by the observing interpreter's lock */
    int64_t run_ns;         /* time a chunk took; written by the worker */
    size_t weight;          /* SI_CHUNK: bytes of the arguments; its map's, nobody else looks */
    int64_t pushed;         /* ns; when it was queued; 0: not noted. Constant after the push */
    int32_t pushed_by;      /* native thread; noted while the pool is traced, else 0 */
    int64_t limit_ns;       /* time it may take; 0: any; constant after the push */
    si_msg msg;
} si_task;

si_task *si_task_new(void);
void si_task_free(si_task *t);

static inline void si_task_retain(si_task *t)
{
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
}
static inline void si_task_release(si_task *t)
{
    /* Most tasks are released by their last holder, who needs no atomic add. */
    if (atomic_load_explicit(&t->refs, memory_order_acquire) == 1
        || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) == 1)
        si_task_free(t);
}

static inline uint32_t si_task_word(si_task *t)
{
    return atomic_load_explicit(&t->state, memory_order_acquire);
}

/* Final store; wakes waiters and posts. Consumes the caller's reference. */
void si_task_finish(si_task *t, si_task_state state);
/* PENDING -> RUNNING; false: it was cancelled. */
bool si_task_start(si_task *t);
/* PENDING -> CANCELLED. Returns the word found; cancelled if it was pending.
 * Wakes waiters, but posts nothing: the caller publishes. */
uint32_t si_task_cancel(si_task *t);
/* In the child of a fork: a task that was under way in the parent is lost
 * here. True if it became so now. Only one thread may ask: the future's. */
bool si_task_orphan(si_task *t, const char *reason);
/* Ask for a post; returns the word found (final: there will be no post). */
uint32_t si_task_observe(si_task *t, struct si_cq *cq);
/* Sleep until the task is final. SI_OK, SI_TIMEOUT, SI_INTR (look at signals
 * and call again), SI_FORKED. No interpreter's lock is held. */
si_ret si_task_wait(si_task *t, int64_t deadline, si_spin *spin);

/* A queue of completed tasks (and of waiters notified), one reader at a time
 * as a rule, any number of writers. */
typedef struct si_cq {
    _Atomic int refs;
    uint32_t generation;
    si_mutex mu;        /* guards head, tail, closed */
    si_node *head, *tail;
    bool closed;
    si_word seq;        /* goes up with each post and with close; readers sleep on it */
    _Atomic int sleepers;   /* readers asleep or about to be: a post must wake */
} si_cq;

si_cq *si_cq_new(void);
static inline void si_cq_retain(si_cq *q)
{
    atomic_fetch_add_explicit(&q->refs, 1, memory_order_relaxed);
}
void si_cq_release(si_cq *q);
/* Takes over a reference of the node; false: the queue is closed, the caller keeps it. */
bool si_cq_post(si_cq *q, si_node *node);
/* Drops what is in it; posts fail from now on; wakes the reader. */
void si_cq_close(si_cq *q);
/* Make the reader look, though nothing is posted. */
void si_cq_nudge(si_cq *q);
/* The next node, or NULL: SI_EMPTY, SI_CLOSED. */
si_ret si_cq_pop(si_cq *q, si_node **node);
/* Something is there, or the queue is closed. */
bool si_cq_ready(si_cq *q);
/* Sleep until something may be there. SI_OK, SI_TIMEOUT, SI_INTR. */
si_ret si_cq_wait(si_cq *q, int64_t deadline, si_spin *spin);

#endif

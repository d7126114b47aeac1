/* si_pool.h: workers, the queue they share, and how they sleep.
 *
 * One queue under one small lock: with tasks of a microsecond a lock-free
 * queue gains little over an uncontended exchange, and a lock makes "queue
 * empty, so sleep" and "worker asleep, so wake it" one decision. What costs
 * is waking, so at most one idle worker spins for new work (the scheme of
 * Go's scheduler: a pusher wakes nobody while somebody looks); when it takes
 * a task and more remain, it wakes the next. Idle workers sleep on a word of
 * their own and are woken last in, first out, while their caches are warm.
 *
 * Turned down: a queue per worker with stealing (needs a bound on imbalance
 * that a pool of long tasks cannot give), a condition variable (every push
 * would pay for the mutex hand-over). */
#ifndef SI_POOL_H
#define SI_POOL_H

#include "si_codec.h" /* first: feature macros */

#include <pthread.h>

#include "si_meter.h"

typedef struct si_pool si_pool;

typedef enum {
    SI_W_STARTING = 0,  /* its thread creates the interpreter */
    SI_W_PREPARING,     /* runs the initializer */
    SI_W_IDLE,          /* waits, or is about to */
    SI_W_RUNNING,       /* runs a task */
    SI_W_FINISHING,     /* takes no more tasks; Python code of its end may run */
    SI_W_ENDING,        /* inside Py_EndInterpreter */
    SI_W_ENDED,
    SI_W_ABANDONED,     /* its interpreter cannot be ended; left as it is until exit */
    SI_W_JAILED,        /* exit took its lock away and its interpreter off the list */
    SI_W_PARKED,        /* no pool's; waits for one (si_park.h) */
} si_worker_state;

#define SI_FUNCTION_CACHE 64

/* Whether a home's interpreter is there. */
enum { SI_HOME_MAKING = 0, SI_HOME_READY, SI_HOME_FAILED };

/* One interpreter of a pool, and the workers in it: one, or as many as the pool's
 * `per_home` says. Who comes first, the founder, makes the interpreter; the others
 * wait for that, and add a thread state each. Who leaves last ends it, or parks
 * it; until then nobody may, as each worker in it may be about to run code.
 * A home is closed when its interpreter has had its number of tasks, when it is
 * one too many, or when a worker in it was left behind, which may hold the
 * interpreter's lock for good: then those in it leave when their task is done,
 * and go on elsewhere. */
typedef struct si_home {
    _Atomic int refs;           /* workers that are or last were in it */
    struct si_home *next;       /* the pool's list of open ones; guarded by pool->mu, as what follows */
    bool open;                  /* more workers may come in, and take tasks; on the list */
    int n_workers;              /* in it, or on their way into it */
    int n_left;                 /* of them, those that are not expected to leave */
    int n_busy;                 /* of them, those that have a task, or were woken for one */
    int64_t n_taken;            /* tasks; counted if the pool has `max_tasks` */

    si_word ready;              /* SI_HOME_...; written by the founder */
    si_word n_going;            /* have left, but still have a thread state */
    PyInterpreterState *interp; /* this and the next: written by the founder before `ready` */
    si_context *cx;             /* lives as long as somebody is in it */
    si_mutex states;            /* one thread state is made or deleted at a time: 3.13 takes the
                                   first one off the list before it can be used again */

    /* functions as objects of the interpreter, under its lock */
    struct { uint64_t id; si_function *function; PyObject *object; } cache[SI_FUNCTION_CACHE];
} si_home;

/* One native thread that lives inside one interpreter, as one pool's worker.
 * Its interpreter may be handed on to another pool: then the thread goes through
 * a struct without a pool (PARKED) to the struct that the other pool made. */
typedef struct si_worker {
    si_pool *pool;              /* one reference; constant; NULL: parked */
    struct si_worker *next;     /* the pool's list; guarded by pool->mu */
    struct si_worker *all_next, *all_prev; /* every live worker; guarded by workers_mu */
    _Atomic int refs;           /* the thread, the pool's list */
    _Atomic uint32_t state;     /* si_worker_state; changed by compare-and-swap where two sides may */
    _Atomic int64_t since;      /* when it reached FINISHING */
    bool counted;               /* in pool->n_alive; guarded by pool->mu */
    int index;                  /* position in the pool; constant */
    _Atomic(PyInterpreterState *) interp; /* set by the thread before it leaves STARTING */
    PyThreadState *ts;          /* the thread's own */
    PyObject *variables;        /* the contextvars.Context its tasks run in; the thread's own */
    bool founder;               /* it makes its home's interpreter; set with `home` */
    si_context *cx;             /* one reference; changed under pool->mu by the thread */

    /* guarded by pool->mu */
    si_home *home;              /* NULL: parked */
    bool at_home;               /* counted in home->n_workers */
    bool forsaken;              /* ... and in home->n_left */
    bool busy;                  /* ... and in home->n_busy */
    bool starting;              /* counted in pool->n_starting */
    bool woken;                 /* by `choose`, and has not looked yet: counted in pool->n_woken */
    si_task *taken;             /* while IDLE: what it has taken and not begun. Who turns IDLE into
                                   another state owns it: the worker, or who left it behind */
    si_node *inbox_head, *inbox_tail;   /* tasks for this worker alone */
    struct si_worker *idle_next;
    bool idle;
    si_task *awaiting;          /* waits without a deadline for this task of its own pool */
    si_cq *awaiting_cq;         /* the same, for any of several */

    si_word wake;               /* 1: look again; the idle worker sleeps on 0 */

    /* the call under way, and its interruption: see si_stop.h */
    _Atomic uintptr_t call;     /* the task and flags; 0: no task's code runs */
    _Atomic int64_t deadline;   /* until when it may run; 0: any time; -1: passed */
    int64_t signal_at, leave_at;    /* the next signal; when it is left behind; guarded by workers_mu */
    _Atomic bool posted;        /* a pending call is on its way, and holds a reference */
    _Atomic bool delivered;     /* the exception was raised or set */
    _Atomic bool before;        /* ... was raised before, and is to be raised once more */
    _Atomic bool signalled;     /* a signal is on its way */
    _Atomic bool freed;         /* one has ended a blocked call */
    _Atomic bool goes_on;       /* ... and another one, after the first was cleaned up after */
    _Atomic int returns;        /* how often the pending call came again, for that to be over */
    _Atomic uintptr_t blocked_at;   /* where the last signal found it; written by the handler */
    _Atomic uintptr_t handled;  /* the exception that was being handled then; compared, never followed */
    int shield;                 /* > 0: not now; written by the thread, under its interpreter's lock */
    unsigned long ident;        /* as `threading` has it; set by the thread while STARTING */
    bool left_behind;           /* in pool->n_left; guarded by pool->mu, like the next two */
    bool returned;              /* its interpreter has ended */
    bool leaving;               /* in pool->n_leaving: takes no more tasks */

    /* the thread's own, under its interpreter's lock */
    si_trace *trace;            /* the pool's, as it was when the worker last looked; one reference */
    si_trace_segment *segment;  /* that it fills; owned by `trace` */
    si_trace_record *record;    /* of the task that runs; NULL: none */

    si_meter *meter;            /* owned; constant; NULL: parked */

    /* while parked, without a pool */
    struct si_worker *park_next;    /* guarded by park_mu */
    struct si_worker *tenant;       /* written before the order to serve it is given */
    char *key;                      /* the pool's it was made for; owned; constant */
    _Atomic int64_t thread_id;      /* of the native thread; 0: not there yet */
} si_worker;

struct si_pool {
    _Atomic int refs;           /* Python handles, workers, messages that carry it */
    uint32_t generation;
    uint64_t id;
    int64_t creator;            /* id of the interpreter that made it; constant */

    /* of an interpreter that is used by itself (subinterp.interpreters) */
    _Atomic int64_t single;     /* its id; -1: an ordinary pool */
    _Atomic int users;          /* objects that stand for it, in all interpreters but itself;
                                   the last one that goes closes the pool */
    si_word claim;              /* si_claim */

    si_pool *all_next, *all_prev;   /* every live pool; guarded by pools_mu */

    /* constant once made */
    int64_t max_tasks;          /* per interpreter; 0: no limit */
    int per_home;               /* workers in one interpreter */
    bool allow_threads, allow_daemon_threads;   /* what tasks may start */
    size_t stack_size;
    int64_t grace;              /* ns that an interrupted task gets before its worker is left behind */
    int max_left;               /* workers left behind that still run, at most */
    char name[48];              /* prefix of the threads' names */
    char *key;                  /* creation options of its interpreters; owned */
    si_msg boot;                /* what a worker's interpreter is set up with */
    si_msg initializer;         /* (function, args), or SI_FMT_NONE; given up with the last
                                   worker of a closed pool, which nobody can follow */

    /* the queue, on a line of its own */
    _Alignas(64) si_mutex mu;   /* guards what follows, up to `spinning` */
    si_node *head, *tail;
    uint32_t n_queued;
    uint32_t n_pushed;          /* wraps around */
    si_trace *trace;            /* one reference; NULL: none is under way */
    _Atomic uint32_t stamp_mask;    /* the time is noted of pushes whose number has none of these
                                   bits: a hint, written by workers as their tasks get long or short */
    _Atomic int max_workers;    /* read without the lock, where a hint will do */
    _Atomic int n_workers;      /* started and not ended; spinners read it without the lock */
    int n_alive;                /* of them, those that still run or may run tasks */
    int n_starting;
    int n_made;                 /* ever: gives the index */
    int n_blocked;              /* workers that wait for their own pool */
    int n_left;                 /* workers left behind whose task still runs */
    int n_leaving;              /* of n_alive, those that end because the pool was made smaller */
    bool closing;               /* no new tasks; workers end when the queue is empty */
    bool given_up;              /* exit need not wait for running tasks */
    bool broken;
    si_msg reason;              /* of broken: text */
    si_worker *workers;         /* list */
    si_home *homes;             /* list of open ones */
    int n_homes;                /* in it */
    int n_woken;                /* workers on their way to a task */
    si_worker *idle;            /* stack */
    _Atomic bool spinning;      /* a worker looks at the queue: no need to wake one.
                                   Set without the lock, read under it; see next_task */
    _Atomic(si_node *) hint;    /* == head, for spinners to look at without the lock */

    int64_t gone[SI_N_COUNTS];  /* counts of workers that are gone; guarded by mu */

    _Alignas(64) si_word alive; /* == n_alive; shutdown sleeps on it */
    si_spin worker_spin, caller_spin;

    /* output of workers for the creator's sys.stdout; out_mu guards it */
    _Atomic bool told_broken;
    _Atomic int64_t terminated; /* ns that its tasks get to stop, once it is terminated; -1: it is not */
    si_mutex out_mu;
    struct si_output *out_head, *out_tail;
    _Atomic bool has_output;
    bool forward_output;        /* constant once made */
    int draining;               /* threads that write it just now; the creator's interpreter's lock */
    si_cq *out_cq;              /* told of output; one reference; constant once made */
};

typedef struct si_output {
    struct si_output *next;
    int stream;                 /* 1 stdout, 2 stderr, 3 log records */
    size_t n;
    char data[];
} si_output;

/* `max_workers` counts threads: `per_home` for each interpreter. */
si_pool *si_pool_new(si_context *creator, int max_workers, int per_home, int64_t max_tasks,
                     const char *name, const char *key);
static inline void si_pool_retain(si_pool *p)
{
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
}
void si_pool_release(si_pool *p);
si_pool *si_pool_find(uint64_t id); /* a new reference, or NULL */

/* Who uses the one interpreter of a pool: one thing runs in it at a time. */
typedef enum { SI_CLAIM_FREE = 0, SI_CLAIM_RUNS, SI_CLAIM_CLOSED } si_claim;

/* The pool whose worker is that interpreter: a new reference, and one more user
 * if `user`; NULL: there is none, or it is closed. */
si_pool *si_pool_of_single(int64_t interp_id, bool user);
/* One user less; true: it was the last. */
bool si_pool_drop_user(si_pool *p);
/* Ids of the single interpreters that are closed and have not ended yet; returns
 * how many there are. */
size_t si_pool_singles_ending(int64_t *ids, size_t max);
/* Take a free one; returns what it was: SI_CLAIM_FREE if it is the caller's now. */
static inline si_claim si_pool_claim(si_pool *p, si_claim as)
{
    uint32_t was = SI_CLAIM_FREE;
    atomic_compare_exchange_strong(&p->claim, &was, as);
    return (si_claim)was;
}
/* What ran is done. */
static inline void si_pool_unclaim(si_pool *p)
{
    uint32_t was = SI_CLAIM_RUNS;
    /* Looked at first: in an ordinary pool all workers come by after each task. */
    if (atomic_load_explicit(&p->claim, memory_order_relaxed) == was)
        atomic_compare_exchange_strong(&p->claim, &was, SI_CLAIM_FREE);
}
static inline si_claim si_pool_claimed(si_pool *p)
{
    return (si_claim)atomic_load(&p->claim);
}

/* How long a worker in this state has been running, or waiting; ns; -1: it does neither. */
int64_t si_worker_since(si_worker *w, uint32_t state, int64_t now);

/* One worker, as a reader sees it. */
typedef struct {
    int index;
    uint32_t state;             /* si_worker_state */
    int64_t thread_id, interp_id;   /* interp_id: -1: none */
    int64_t memory;             /* bytes of its interpreter's small objects; -1: not known */
    int64_t since;              /* si_worker_since */
    int64_t count[SI_N_COUNTS];
} si_worker_view;

/* Look at the workers, the last one made first: up to `max`; returns how many
 * there are. `gone` gets the counts of those that are not there any more. */
int si_pool_look(si_pool *p, si_worker_view *views, int max, int64_t *gone, uint32_t *n_queued);
/* A worker's thread, those included that were left behind. */
typedef struct {
    int index;
    uint32_t state;
    int64_t thread_id;      /* 0: not there yet */
    int64_t since;          /* si_worker_since */
} si_worker_thread;

/* The threads of a pool's workers, the last one made first: up to `max`; how many there are. */
int si_workers_of(si_pool *p, si_worker_thread *threads, int max);
/* Send a signal to a worker's thread. False: it is gone, or about to end its interpreter. */
bool si_worker_signal(si_pool *p, int64_t thread_id, int signum, int value);
/* Begin to trace; false: a trace is under way. Takes a reference of its own. */
bool si_pool_trace(si_pool *p, si_trace *t);
/* End this trace. Workers let go of it. */
void si_pool_untrace(si_pool *p, si_trace *t);

/* Queue a task; consumes one reference on success. SI_SHUTDOWN, SI_BROKEN, SI_FORKED, SI_NOMEM. */
si_ret si_pool_push(si_pool *p, si_task *t);
/* One task for each worker, all of them started first. `tasks` holds `room`
 * tasks; *n is how many were taken. */
si_ret si_pool_broadcast(si_pool *p, si_task **tasks, int room, int *n);
/* Have at most so many workers from now on. Those above it end when their task
 * is done. SI_SHUTDOWN, SI_BROKEN, SI_FORKED. */
si_ret si_pool_resize(si_pool *p, int max_workers);
/* Take no new tasks. cancel: those still queued are cancelled.
 * give_up: exit does not wait for those that run. */
void si_pool_close(si_pool *p, bool cancel, bool give_up);
/* Wait until every worker has ended or was left behind. SI_OK, SI_TIMEOUT, SI_INTR, SI_FORKED. */
si_ret si_pool_join(si_pool *p, int64_t deadline);
/* No worker can run tasks any more: what waits is lost, with this reason. */
void si_pool_break(si_pool *p, const char *reason);
bool si_pool_is_broken(si_pool *p);
bool si_pool_is_closing(si_pool *p);
/* True for the first caller that asks: it reports why the pool broke. */
bool si_pool_tell_broken(si_pool *p);
bool si_pool_given_up(si_pool *p);
/* A copy of the reason, to be freed; "" if there is none. */
char *si_pool_reason(si_pool *p);

/* Wait as a caller: as si_task_wait or si_cq_wait, and SI_DEADLOCK if this
 * thread is a worker of `p` and no worker is left to make progress. */
si_ret si_pool_wait_task(si_pool *p, si_worker *self, si_task *t, int64_t deadline, bool slice);
si_ret si_pool_wait_cq(si_pool *p, si_worker *self, si_cq *q, int64_t deadline, bool slice);

/* The worker whose thread this is, or NULL. Root: asked by the entry points
 * that wait. */
si_worker *si_worker_self(void);

/* For a worker's thread: the next task (its own lock is released while it
 * waits), or NULL: end. */
si_task *si_pool_next(si_pool *p, si_worker *w);
/* A worker's task took `ran` ns: decides of how many the time they wait is noted. */
void si_pool_told(si_pool *p, si_worker *w, int64_t ran);
/* The worker's home is closed, and it is to go on in another one. */
bool si_pool_moves(si_pool *p, si_worker *w);

/* Have this worker belong to an open home with room, or found one. False: no memory.
 * It keeps its old one if there is none. */
bool si_home_enter(si_pool *p, si_worker *w);
/* It is not starting any more. */
void si_pool_started(si_pool *p, si_worker *w);

/* For the founder: the interpreter is there (SI_HOME_READY), or will not be. */
void si_home_publish(si_home *h, uint32_t ready);
/* For others: wait for that. SI_HOME_READY or SI_HOME_FAILED. */
uint32_t si_home_wait(si_home *h);
/* The worker, which waited for it, may begin to work there: it is IDLE from now
 * on. False: the home was closed; the worker is not counted any more, and leaves
 * as soon as it gets the interpreter's lock. */
bool si_home_settle(si_pool *p, si_worker *w);
/* It leaves. True: it was the last, and sees to the interpreter. lingers: it has a
 * thread state there until si_home_gone, unless it is the last. */
bool si_home_leave(si_pool *p, si_worker *w, bool lingers);
void si_home_gone(si_home *h);
/* For the last one: wait until nobody else has a thread state; false: time is up. */
bool si_home_wait_alone(si_home *h, int64_t deadline);
void si_home_release(si_home *h);
/* A worker could not make its interpreter. The pool breaks, with the reason, if
 * no other worker is there to run its tasks. */
void si_pool_worker_failed(si_pool *p, si_worker *w, const char *reason);
/* The worker ends or is left behind: it is not counted any more. */
void si_pool_worker_gone(si_pool *p, si_worker *w);
/* Its task, of so many calls, does not stop: another worker may take its place.
 * The pool breaks if there are too many. Called without any interpreter's lock. */
void si_pool_leave_worker(si_pool *p, si_worker *w, uint32_t n_calls);
/* One that was left behind has ended after all. */
void si_pool_worker_returned(si_pool *p, si_worker *w);
/* Nobody left this worker behind: it may go on. */
bool si_pool_counts(si_pool *p, si_worker *w);
/* SI_OK; SI_NOMEM; SI_SHUTDOWN: the process exits. */
si_ret si_worker_start(si_worker *w);
/* The list of live workers (`all_next`), under workers_mu. Those in it have their
 * thread; those in a call (si_stop.h) their interpreter as well. */
si_worker *si_workers_lock(void);
void si_workers_unlock(void);
void si_worker_release(si_worker *w);
/* From now on, count the memory of workers' interpreters. Once, under an interpreter's lock. */
void si_measure_memory(void);

void si_pool_output(si_pool *p, int stream, const char *data, size_t n);
/* For the interpreter that made the pool: others get nothing. NULL: there is none. */
bool si_pool_has_output(si_pool *p, int64_t interp_id);
si_output *si_pool_take_output(si_pool *p, int64_t interp_id);

/* Entry points of the upper layer, set once at its first load. Each is called
 * with the lock of the interpreter whose context is given, in which the
 * extension's module exists. */
typedef struct {
    PyObject *(*init_module)(void);     /* PyInit__core */
    /* Append obj in the general form. 0, or -1 with an exception. */
    int (*encode)(si_context *cx, si_msg *m, PyObject *obj);
    PyObject *(*decode)(si_context *cx, si_msg *m, int keep);
} si_hooks;
extern si_hooks si_python;

/* A whole message's value. keep: leave the message as it is. New reference or
 * NULL with an exception. */
PyObject *si_value_decode(si_context *cx, si_msg *m, bool keep);
/* 0, or -1 with an exception. The message is empty before. */
int si_value_encode(si_context *cx, si_msg *m, PyObject *obj);
/* The extension's module, loaded into this interpreter without the import
 * system's detour through the main interpreter. */
int si_load_core(si_context *cx);

/* For tests: so many of the next attempts to make a worker's interpreter fail. */
void si_fail_for_tests(int n);
/* Exit: called by the main interpreter. No more workers are made from here on. */
void si_exit_begin(void);
/* True: all have ended, or never will. */
bool si_exit_wait(int64_t until);
/* What is left is made harmless. */
void si_exit_abandon(void);
/* Ids of the pools that end with an interpreter (-1: of all pools): those it made,
 * but single interpreters end with the main one. Returns how many there are. */
size_t si_pools_of(int64_t creator, uint64_t *ids, size_t max);

void si_message_after_fork(void);
void si_pools_after_fork(void);
void si_workers_after_fork(void);

#endif

/* si_stop.h: interrupting what a worker runs, and leaving behind what does not stop.
 *
 * A worker's `call` says which task's code runs in it, and is the one place
 * where that is decided:
 *   0 -> task                    the worker, before the task becomes RUNNING
 *   task -> task | ASKED         who interrupts, or the monitor when the task's time is up
 *   task (| ASKED) -> 0          the worker, when the task's code is over
 *   task | ASKED -> LEFT         the monitor, after the grace period
 * The last two exclude each other: whoever makes its change publishes the end
 * of the task. ASKED is set, the worker is poked and left behind under
 * workers_mu; a worker that finds ASKED at the end of a call takes that mutex
 * once, so that nobody is still at it. So an interruption reaches the task it
 * was meant for or nothing:
 * - the exception is set inside the worker's interpreter, by a pending call
 *   that holds its lock and looks at `call` first, and what is set but not
 *   raised yet is taken back before the lock is released at the end of a call;
 * - signals are sent while `call` says ASKED, and waited for at its end; the
 *   handler looks at `call` again.
 * Neither happens while `shield` is set: library code runs that must not stop
 * half-way. What describes, encodes and publishes the outcome runs after the
 * end of the call.
 *
 * A blocked call is freed by signals without SA_RESTART, whose handler turns
 * the system call's EINTR, which CPython would retry, into ETIMEDOUT. Only a
 * thread without its interpreter's lock is treated so: one that holds it is in
 * C code that does not expect this. What the freed call raises for it is an
 * ordinary exception, and code that cleans up after it (`except`, `finally`) is
 * not disturbed: the exception of ours comes when that is over, if the task
 * goes on.
 *
 * Turned down: PyThreadState_SetAsyncExc from outside (it looks only in the
 * caller's interpreter); a thread state of ours in the worker's interpreter (it
 * would wait for its lock); ids of tasks in requests (a stale request that
 * finds another task ASKED may as well serve that one). */
#ifndef SI_STOP_H
#define SI_STOP_H

#include "si_pool.h"

#define SI_CALL_ASKED 1u    /* an interruption was asked for; its pokes go on until it lands */
#define SI_CALL_EXPIRED 2u  /* ... because the task's time is up */
#define SI_CALL_LEFT 4u     /* alone: the worker was left behind; the task is not its any more */
#define SI_CALL_FLAGS ((uintptr_t)7)

/* How a call ended, for the worker. */
typedef enum {
    SI_CALL_FREE = 0,           /* nobody interfered, or too late to matter */
    SI_CALL_INTERRUPTED = 1,    /* the exception was raised in it, or a blocked call was freed */
    SI_CALL_OVERDUE = 2,        /* the same, because its time was up */
    SI_CALL_ABANDONED = 3,      /* the task belongs to whoever left the worker behind */
    SI_CALL_CUT_SHORT = 4,      /* added to the first two: the exception was not raised yet, and
                                   what the call returned came of a blocked call that was freed */
} si_call_end;

/* Before the task's start: its code is about to run. */
static inline void si_call_begin(si_worker *w, si_task *t)
{
    w->shield = 0;  /* a task that reaches the limit of recursion may leave it up */
    atomic_store_explicit(&w->call, (uintptr_t)t, memory_order_release);
}

si_call_end si_call_end_asked(si_worker *w, uintptr_t call);

/* The task's code is over: nothing will interrupt this thread any more. The
 * interpreter's lock is held, and let go meanwhile if there was something. */
static inline si_call_end si_call_finish(si_worker *w)
{
    uintptr_t call = atomic_exchange_explicit(&w->call, 0, memory_order_acq_rel);
    return call & SI_CALL_FLAGS ? si_call_end_asked(w, call) : SI_CALL_FREE;
}

/* Somebody asked for the call under way to stop. */
static inline bool si_call_is_asked(si_worker *w)
{
    return atomic_load_explicit(&w->call, memory_order_acquire) & SI_CALL_FLAGS;
}

/* For waits of the library, with the lock held: an interruption is due, and the
 * caller raises it now. w: this thread's worker, or NULL. */
bool si_call_take(si_worker *w);

/* The exception was swallowed by a callback or a finalizer, in which it was
 * raised by chance: raise it again. By the worker's thread, with the lock held.
 * False: no interruption is under way. */
bool si_call_again(si_worker *w);

/* Neither exceptions nor signals until si_unshield; they come afterwards. By the
 * worker's thread, with the lock held. */
void si_shield(si_worker *w);
static inline void si_unshield(si_worker *w)
{
    w->shield--;
}

/* The time that the task may run begins; and is over, before si_call_finish. */
void si_call_limit(si_worker *w, int64_t limit_ns);
void si_call_unlimit(si_worker *w);

/* Interrupt the task if a worker runs it. True: it was asked to stop. Called
 * without any interpreter's lock, and with a reference of the task. */
bool si_stop_task(si_task *t);
/* The same for every task that the pool's workers run or will yet run; it is
 * closed, and its queue was emptied. grace: ns from now on until they are left
 * behind; -1: the pool's own. */
void si_stop_all(si_pool *p, int64_t grace);

/* Exit: nobody is left behind any more. */
void si_stop_close(void);
void si_stop_after_fork(void);

#endif

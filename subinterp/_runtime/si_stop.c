#include "si_stop.h"
#include "si_signal.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

/* A blocked call gets its first signals so long after the pending call was
 * posted, which stops Python code without one, and after each other; once one
 * was freed, others come less often. */
#define FIRST_SIGNAL 2000000LL
#define NEXT_SIGNAL 10000000LL
/* The monitor's thread ends when nothing was to be watched for so long. */
#define LINGER 5000000000LL
/* While an exception is being handled, a pending call comes back at each step
 * so many times in one call, and then with each turn of the monitor only: long
 * clean-ups shall not be slowed down. */
#define RETURNS 3000
/* Workers left behind in one go; more are in the next. */
#define AT_ONCE 16
/* A worker's deadline, once the monitor has seen it pass. */
#define DEADLINE_PASSED (-1)

/* ---- the monitor ------------------------------------------------------------ */

/* Guards: `watching`, and that whoever needs the monitor finds it or starts it. */
static si_mutex monitor_mu;
/* Its thread is there. */
static bool watching;
/* Exit has begun: it is not needed any more. */
static _Atomic bool watch_closed;
/* Counted up to make it look; it sleeps on it. */
static si_word watch_word;
/* When it looks without that. */
static _Atomic int64_t watch_next;

static void *monitor_main(void *arg);

/* It is to look no later than `at`. What it shall see is stored before. */
static void need_monitor(int64_t at)
{
    si_lock(&monitor_mu);
    if (!watching && !atomic_load(&watch_closed)) {
        pthread_attr_t attr;
        pthread_t thread;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attr, 256u << 10);
        atomic_store(&watch_next, SI_FOREVER);
        watching = pthread_create(&thread, &attr, monitor_main, NULL) == 0;
        pthread_attr_destroy(&attr);
    }
    bool wake = at < atomic_load(&watch_next);
    if (wake)
        atomic_fetch_add(&watch_word, 1);
    si_unlock(&monitor_mu);
    if (wake)
        si_futex_wake(&watch_word, 1);
}

/* ---- the signal ---------------------------------------------------------------- */

/* Its number; 0: none was found yet. See si_signal_reserve. */
static _Atomic int signal_number;

/* The exception was raised in the worker's thread, not only set. Asked by that
 * thread, or under workers_mu while it is in the call: then it is a hint. */
static bool has_landed(si_worker *w)
{
    return atomic_load(&w->delivered) && !si_async_exception_is_set(w->ts);
}

/* A blocked call was freed, and what it raised for that is being handled: an
 * `except` or `finally` of the task cleans up. It is left alone until that is
 * over; the exception comes afterwards, if the task goes on. Asked by the
 * thread, or under its interpreter's lock. */
static bool is_cleaning_up(si_worker *w)
{
    if (!atomic_load(&w->freed) || atomic_load(&w->delivered) || atomic_load(&w->goes_on))
        return false;
    PyObject *handled = si_handled_exception(w->ts);
    return handled && (uintptr_t)handled != atomic_load(&w->handled);
}

static void freed_cb(int number, siginfo_t *info, void *context)
{
    (void)number;
    /* Somebody else's: nobody's business. */
    if (info->si_code != SI_QUEUE || info->si_value.sival_ptr != (void *)&signal_number)
        return;
    si_worker *w = si_worker_self();
    if (!w)
        return;
    if (si_call_is_asked(w) && !w->shield && !PyThreadState_GetUnchecked() && !has_landed(w)
        && !is_cleaning_up(w)) {
        /* Not in a lock of CPython's own, which do not expect that their wait
         * fails: that of the interpreter is known by its address, the others are
         * held for an instant, so that nobody is found there twice. */
        uintptr_t place = si_blocked_place(context);
        bool waits_for_lock = place && si_runtime_is_in_lock(atomic_load(&w->interp),
                                                             si_blocked_on(context));
        if (place && !waits_for_lock && place == atomic_load(&w->blocked_at)) {
            si_free_blocked_call(context);
            /* It blocks again after a clean-up in which no pending call is waiting
             * any more: what it raises now need not come before ours. */
            if (atomic_load(&w->returns) >= RETURNS)
                atomic_store(&w->goes_on, true);
            atomic_store(&w->handled, (uintptr_t)si_handled_exception(w->ts));
            atomic_store(&w->freed, true);
        }
        /* A call that CPython repeats is left for the lock, and entered again. */
        if (!waits_for_lock)
            atomic_store(&w->blocked_at, place);
    }
    atomic_store(&w->signalled, false);
}

/* ---- interrupting ------------------------------------------------------------------ */

/* Runs in the worker's interpreter, under its lock, in whichever of its threads
 * comes by; maybe long after the call it was meant for. */
static int deliver_cb(void *arg)
{
    si_worker *w = arg;
    int raised = 0;
    /* The worker has left this interpreter, which others work in; what it does
     * elsewhere is not stopped from here. */
    if (atomic_load(&w->interp) != PyInterpreterState_Get()) {
        atomic_store(&w->posted, false);
        si_worker_release(w);
        return 0;
    }
    if (si_call_is_asked(w) && is_cleaning_up(w) && atomic_load(&w->returns) < RETURNS) {
        atomic_fetch_add(&w->returns, 1);
        if (_PyEval_AddPendingCall(w->interp, deliver_cb, w, 0) == 0)
            return 0;   /* comes again at the next step, with the same reference */
    }
    atomic_store(&w->posted, false);
    if (si_call_is_asked(w) && !w->shield && !atomic_load(&w->delivered) && !is_cleaning_up(w)) {
        PyObject *type = PyObject_GetAttrString(w->cx->worker_module, "Interrupt");
        if (!type)
            PyErr_Clear();  /* tried again */
        else if (PyThread_get_thread_ident() == w->ident) {
            /* At once: an asynchronous exception would wait for the next check,
             * and a blocking call may come before that. */
            PyErr_SetNone(type);
            atomic_store(&w->delivered, true);
            raised = -1;
        }
        else {
            PyThreadState_SetAsyncExc(w->ident, type);
            atomic_store(&w->delivered, true);
        }
        Py_XDECREF(type);
    }
    si_worker_release(w);
    return raised;
}

/* Under workers_mu: the worker is listed and in the call, so its interpreter
 * and its thread are there. */
static void poke_locked(si_worker *w, int64_t now)
{
    if (!atomic_load(&w->delivered) && !atomic_exchange(&w->posted, true)) {
        atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
        if (_PyEval_AddPendingCall(w->interp, deliver_cb, w, 0) != 0) {
            /* Its queue is full: at the next turn. */
            atomic_store(&w->posted, false);
            atomic_fetch_sub_explicit(&w->refs, 1, memory_order_relaxed);
        }
    }
    if (now < w->signal_at)
        return;
    if (has_landed(w)) {
        w->signal_at = w->leave_at;     /* none, unless it is asked once more */
        return;
    }
    w->signal_at = now + (atomic_load(&w->freed) ? NEXT_SIGNAL : FIRST_SIGNAL);
    if (!si_can_free_blocked_calls())
        return;
    /* Blocked calls shall return, and are not restarted. */
    int number = si_signal_reserve(&signal_number, freed_cb, false);
    if (number > 0 && !atomic_exchange(&w->signalled, true)
        && !si_signal_send(atomic_load_explicit(&w->thread_id, memory_order_relaxed), number,
                           (union sigval){.sival_ptr = (void *)&signal_number}))
        atomic_store(&w->signalled, false);
}

/* Under workers_mu. True: the call was under way, and is asked to stop. */
static bool ask_locked(si_worker *w, uintptr_t call, unsigned why, int64_t grace)
{
    uintptr_t task = call & ~SI_CALL_FLAGS;
    if (!task)
        return false;
    int64_t now = si_now();
    if (call & SI_CALL_ASKED) {
        /* Once more, for a task that has swallowed the first. */
        if (has_landed(w)) {
            atomic_store(&w->before, true);
            atomic_store(&w->delivered, false);
            w->signal_at = now + FIRST_SIGNAL;
        }
        if (grace >= 0 && now + grace < w->leave_at)
            w->leave_at = now + grace;
        poke_locked(w, now);
        return true;
    }
    w->signal_at = now + FIRST_SIGNAL;
    w->leave_at = now + (grace >= 0 ? grace : w->pool->grace);
    if (!atomic_compare_exchange_strong(&w->call, &call, task | SI_CALL_ASKED | why))
        return false;
    poke_locked(w, now);
    return true;
}

bool si_stop_task(si_task *t)
{
    bool asked = false;
    for (si_worker *w = si_workers_lock(); w; w = w->all_next) {
        uintptr_t call = atomic_load(&w->call);
        if ((call & ~SI_CALL_FLAGS) == (uintptr_t)t) {
            asked = ask_locked(w, call, 0, -1);
            break;
        }
    }
    si_workers_unlock();
    if (asked)
        need_monitor(0);
    return asked;
}

void si_stop_all(si_pool *p, int64_t grace)
{
    if (grace < 0)
        grace = p->grace;
    /* For the monitor: a worker may have taken a task and not have begun it. */
    atomic_store(&p->terminated, grace);
    for (si_worker *w = si_workers_lock(); w; w = w->all_next)
        if (w->pool == p)
            (void)ask_locked(w, atomic_load(&w->call), 0, grace);
    si_workers_unlock();
    need_monitor(0);
}

/* ---- the worker's side ---------------------------------------------------------------- */

void si_shield(si_worker *w)
{
    w->shield++;
    /* Set by another thread, and not raised yet. */
    if (si_call_is_asked(w) && atomic_load(&w->delivered) && !has_landed(w)) {
        /* In this order: in between the monitor would take it to have landed. */
        atomic_store(&w->delivered, false);
        PyThreadState_SetAsyncExc(w->ident, NULL);
    }
}

/* Whoever holds workers_mu is done when this returns. The interpreter's lock is
 * let go meanwhile: who holds that mutex may be about to add a pending call, and
 * wait for a thread that waits for this lock. */
static void pass_workers_mu(void)
{
    PyThreadState *ts = PyEval_SaveThread();
    (void)si_workers_lock();
    si_workers_unlock();
    PyEval_RestoreThread(ts);
}

void si_call_limit(si_worker *w, int64_t limit_ns)
{
    int64_t now = si_now(), at = limit_ns < SI_FOREVER - now ? now + limit_ns : SI_FOREVER;
    atomic_store(&w->deadline, at);
    need_monitor(at);
}

void si_call_unlimit(si_worker *w)
{
    /* The monitor is just about to ask the call to stop: it shall not find
     * another one in its place. */
    if (atomic_exchange(&w->deadline, 0) == DEADLINE_PASSED)
        pass_workers_mu();
}

bool si_call_take(si_worker *w)
{
    if (!w || !si_call_is_asked(w) || w->shield || has_landed(w) || is_cleaning_up(w))
        return false;
    PyThreadState_SetAsyncExc(w->ident, NULL);
    atomic_store(&w->delivered, true);
    return true;
}

bool si_call_again(si_worker *w)
{
    if (!si_call_is_asked(w))
        return false;
    PyThreadState *ts = PyEval_SaveThread();    /* see pass_workers_mu */
    (void)si_workers_lock();
    w->signal_at = si_now() + FIRST_SIGNAL;
    atomic_store(&w->before, true);
    atomic_store(&w->delivered, false);
    si_workers_unlock();
    PyEval_RestoreThread(ts);
    /* The monitor posts the pending call. */
    need_monitor(0);
    return true;
}

si_call_end si_call_end_asked(si_worker *w, uintptr_t call)
{
    /* Whoever pokes this worker, or leaves it behind, is done with it. */
    pass_workers_mu();
    /* A signal on its way comes with the next system calls, unless the task
     * has blocked it. */
    for (int i = 0; i < 1000 && atomic_load(&w->signalled); i++)
        sched_yield();
    PyThreadState_SetAsyncExc(w->ident, NULL);
    bool delivered = atomic_load(&w->delivered), freed = atomic_load(&w->freed);
    bool before = atomic_load(&w->before);
    atomic_store(&w->signalled, false);
    atomic_store(&w->delivered, false);
    atomic_store(&w->before, false);
    atomic_store(&w->freed, false);
    atomic_store(&w->goes_on, false);
    atomic_store(&w->returns, 0);
    atomic_store(&w->blocked_at, 0);
    if (call & SI_CALL_LEFT)
        return SI_CALL_ABANDONED;
    if (!delivered && !freed && !before)
        return SI_CALL_FREE;
    return (call & SI_CALL_EXPIRED ? SI_CALL_OVERDUE : SI_CALL_INTERRUPTED)
           | (delivered || !freed ? 0 : SI_CALL_CUT_SHORT);
}

/* ---- leaving behind --------------------------------------------------------------------- */

typedef struct {
    si_worker *worker;  /* one reference each */
    si_task *task;
    si_pool *pool;
    bool overdue;
} left_behind;

/* Under workers_mu. */
static bool leave_locked(si_worker *w, uintptr_t call, left_behind *l)
{
    uint32_t running = SI_W_RUNNING;
    si_task *t = (si_task *)(call & ~SI_CALL_FLAGS);
    /* About to begin; or it was cancelled, and the worker finds out just now. */
    if ((si_task_word(t) & SI_STATE_MASK) != SI_RUNNING)
        return false;
    /* The worker would wait for workers_mu before it gave its own ones up. */
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    if (!atomic_compare_exchange_strong(&w->call, &call, SI_CALL_LEFT)) {
        si_task_release(t);
        return false;
    }
    /* Not if exit was first: then it is jailed, and the task's end all the same. */
    (void)atomic_compare_exchange_strong(&w->state, &running, SI_W_ABANDONED);
    atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
    si_pool_retain(w->pool);
    *l = (left_behind){w, t, w->pool, call & SI_CALL_EXPIRED};
    return true;
}

static void leave(left_behind *l)
{
    si_pool_leave_worker(l->pool, l->worker, l->task->kind == SI_CHUNK ? l->task->n_items : 1);
    si_task_finish(l->task, l->overdue ? SI_OVERDUE : SI_ABANDONED);
    si_worker_release(l->worker);
    si_pool_release(l->pool);
}

/* Look at every worker. Returns when to look again. */
static int64_t look(left_behind *left, int *n_left)
{
    int64_t next = SI_FOREVER, now = si_now();
    *n_left = 0;
    for (si_worker *w = si_workers_lock(); w; w = w->all_next) {
        uintptr_t call = atomic_load(&w->call);
        uint32_t state = atomic_load(&w->state);
        int64_t terminated = w->pool ? atomic_load(&w->pool->terminated) : -1;
        if (terminated >= 0 && state <= SI_W_RUNNING && now + NEXT_SIGNAL < next)
            next = now + NEXT_SIGNAL;   /* it may be about to begin a task */
        /* Those that exit has jailed stay as they are. */
        if (!(call & ~SI_CALL_FLAGS) || state != SI_W_RUNNING)
            continue;
        if (!(call & SI_CALL_ASKED) && terminated >= 0)
            (void)ask_locked(w, call, 0, terminated);
        else if (!(call & SI_CALL_ASKED)) {
            int64_t deadline = atomic_load(&w->deadline);
            if (deadline == 0 || deadline == DEADLINE_PASSED)
                continue;
            if (deadline > now) {
                if (deadline < next)
                    next = deadline;
                continue;
            }
            /* Unless the call has ended: then it does not get past this mutex. */
            if (!atomic_compare_exchange_strong(&w->deadline, &deadline, DEADLINE_PASSED)
                || !ask_locked(w, call, SI_CALL_EXPIRED, -1)) {
                next = 0;
                continue;
            }
        }
        else if (now >= w->leave_at) {
            if (*n_left == AT_ONCE)
                next = 0;
            else if (leave_locked(w, call, &left[*n_left]))
                ++*n_left;
            else if (now + FIRST_SIGNAL < next)
                next = now + FIRST_SIGNAL;
            continue;
        }
        else
            poke_locked(w, now);
        int64_t turn = w->signal_at < w->leave_at ? w->signal_at : w->leave_at;
        if (turn < next)
            next = turn;
    }
    si_workers_unlock();
    return next;
}

static void *monitor_main(void *arg)
{
    (void)arg;
    left_behind left[AT_ONCE];
    int64_t idle_since = si_now();
    pthread_setname_np(pthread_self(), "subinterp-watch");
    while (!atomic_load(&watch_closed)) {
        uint32_t seen = atomic_load(&watch_word);
        /* Whoever comes from here on counts the word up, and we look again. */
        atomic_store(&watch_next, SI_FOREVER);
        int n_left;
        int64_t next = look(left, &n_left);
        for (int i = 0; i < n_left; i++)
            leave(&left[i]);
        int64_t until = next;
        if (next == SI_FOREVER)
            until = idle_since + LINGER;
        else
            idle_since = si_now();
        atomic_store(&watch_next, next);
        if (atomic_load(&watch_word) == seen)
            (void)si_futex_wait(&watch_word, seen, until);
        if (next != SI_FOREVER || si_now() < until)
            continue;
        si_lock(&monitor_mu);
        bool end = atomic_load(&watch_word) == seen;
        if (end)
            watching = false;
        si_unlock(&monitor_mu);
        if (end)
            break;
    }
    return NULL;
}

void si_stop_close(void)
{
    si_lock(&monitor_mu);
    atomic_store(&watch_closed, true);
    atomic_fetch_add(&watch_word, 1);
    si_unlock(&monitor_mu);
    si_futex_wake(&watch_word, 1);
}

void si_stop_after_fork(void)
{
    atomic_store(&monitor_mu.word, 0);
    watching = false;
    atomic_store(&watch_closed, false);
}

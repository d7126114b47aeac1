#include "si_pool.h"
#include "si_spare.h"
#include "si_view.h"

#include <stdio.h>
#include <unistd.h>

/* A worker whose interpreter's end hangs (a thread that a task left behind)
 * is given this long before it is left where it is. */
#define FINISH_GRACE 1000000000LL

/* Guards: the list of pools. */
static si_mutex pools_mu;
static si_pool *pools;
static uint64_t next_pool_id = 1;

si_pool *si_pool_new(si_context *creator, int max_workers, int per_home, int64_t max_tasks,
                     const char *name, const char *key)
{
    si_pool *p = NULL;
    if (posix_memalign((void **)&p, 64, sizeof *p) != 0)
        return NULL;
    memset(p, 0, sizeof *p);
    p->key = strdup(key);
    if (!p->key) {
        free(p);
        return NULL;
    }
    atomic_init(&p->refs, 1);
    p->generation = si_generation();
    p->creator = creator->interp_id;
    atomic_init(&p->max_workers, max_workers);
    atomic_init(&p->terminated, -1);
    p->max_tasks = max_tasks;
    p->per_home = per_home;
    p->allow_threads = p->allow_daemon_threads = true;
    p->stack_size = 16u << 20;
    p->grace = 3000000000LL;
    p->max_left = max_workers > 4 ? max_workers : 4;
    strncpy(p->name, name, sizeof p->name - 1);
    si_msg_init(&p->boot);
    si_msg_init(&p->initializer);
    si_msg_init(&p->reason);
    atomic_init(&p->single, -1);
    si_spin_init(&p->worker_spin);
    si_spin_init(&p->caller_spin);
    si_lock(&pools_mu);
    p->id = next_pool_id++;
    p->all_next = pools;
    if (pools)
        pools->all_prev = p;
    pools = p;
    si_unlock(&pools_mu);
    SI_COUNT(pools, 1);
    si_spare_begin();
    return p;
}

/* A task taken out of a queue that no worker will run; consumes the queue's
 * reference. Nothing to do if somebody cancelled it before. */
static void finish_unrun(si_task *t, si_task_state state, const char *reason)
{
    if (!si_task_start(t)) {
        si_task_release(t);
        return;
    }
    si_msg_clear(&t->msg);
    if (reason)
        (void)si_put(&t->msg, reason, strlen(reason));
    si_task_finish(t, state);
}

static void pool_free(si_pool *p)
{
    /* No worker is left (each holds a reference), so nobody runs these. */
    while (p->head) {
        si_task *t = (si_task *)p->head;
        p->head = p->head->next;
        finish_unrun(t, SI_LOST, "the pool is gone");
    }
    si_output *o = p->out_head;
    while (o) {
        si_output *next = o->next;
        free(o);
        o = next;
    }
    if (p->out_cq)
        si_cq_release(p->out_cq);
    si_msg_clear(&p->boot);
    si_msg_clear(&p->initializer);
    si_msg_clear(&p->reason);
    if (p->trace)
        si_trace_release(p->trace);
    free(p->key);
    free(p);
}

void si_pool_release(si_pool *p)
{
    int refs = atomic_load_explicit(&p->refs, memory_order_relaxed);
    while (refs > 1) {
        if (atomic_compare_exchange_weak_explicit(&p->refs, &refs, refs - 1,
                memory_order_acq_rel, memory_order_relaxed))
            return;
    }
    /* The last one goes under the lock, so that no look-up revives it. */
    si_lock(&pools_mu);
    if (atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1) {
        si_unlock(&pools_mu);
        return;
    }
    if (p->all_prev)
        p->all_prev->all_next = p->all_next;
    else if (pools == p)
        pools = p->all_next;
    if (p->all_next)
        p->all_next->all_prev = p->all_prev;
    si_unlock(&pools_mu);
    if (!p->closing)
        SI_COUNT(pools, -1);
    if (p->generation == si_generation()) {
        if (!p->closing)
            si_spare_end();
        pool_free(p);
    }
    /* else: the parent's threads may have left it half changed; leave it */
}

si_pool *si_pool_find(uint64_t id)
{
    si_lock(&pools_mu);
    si_pool *p = pools;
    while (p && p->id != id)
        p = p->all_next;
    if (p)
        si_pool_retain(p);
    si_unlock(&pools_mu);
    return p;
}

si_pool *si_pool_of_single(int64_t interp_id, bool user)
{
    si_lock(&pools_mu);
    si_pool *p = pools;
    while (p && (p->generation != si_generation() || atomic_load(&p->single) != interp_id
                 || si_pool_claimed(p) == SI_CLAIM_CLOSED))
        p = p->all_next;
    int users = p ? atomic_load(&p->users) : 0;
    /* At none it is being closed; the interpreter itself may still ask then. */
    while (p && user && users > 0 && !atomic_compare_exchange_weak(&p->users, &users, users + 1))
        ;
    if (p && user && users == 0)
        p = NULL;
    if (p)
        si_pool_retain(p);
    si_unlock(&pools_mu);
    return p;
}

size_t si_pool_singles_ending(int64_t *ids, size_t max)
{
    size_t n = 0;
    si_lock(&pools_mu);
    for (si_pool *p = pools; p; p = p->all_next) {
        if (p->generation != si_generation() || atomic_load(&p->single) < 0
            || si_pool_claimed(p) != SI_CLAIM_CLOSED || atomic_load(&p->n_workers) == 0)
            continue;
        if (n < max)
            ids[n] = atomic_load(&p->single);
        n++;
    }
    si_unlock(&pools_mu);
    return n;
}

bool si_pool_drop_user(si_pool *p)
{
    return atomic_fetch_sub(&p->users, 1) == 1;
}

size_t si_pools_of(int64_t creator, uint64_t *ids, size_t max)
{
    size_t n = 0;
    si_lock(&pools_mu);
    for (si_pool *p = pools; p; p = p->all_next) {
        int64_t keeper = atomic_load(&p->single) < 0 ? p->creator : 0;
        if ((creator < 0 || keeper == creator) && p->generation == si_generation()) {
            if (n < max)
                ids[n] = p->id;
            n++;
        }
    }
    si_unlock(&pools_mu);
    return n;
}

/* ---- waking and starting --------------------------------------------------- */

/* What to do once the lock is released. */
typedef struct {
    si_worker *wake;
    si_worker *start;
    si_trace *drop;
} after_unlock;

static void wake_worker(si_worker *w)
{
    atomic_store_explicit(&w->wake, 1, memory_order_release);
    si_futex_wake(&w->wake, 1);
    si_worker_release(w);
}

static void set_head(si_pool *p, si_node *head)
{
    p->head = head;
    if (!head)
        p->tail = NULL;
    atomic_store_explicit(&p->hint, head, memory_order_release);
}

/* ---- homes ----------------------------------------------------------------- */

static void note_busy_locked(si_worker *w, bool busy)
{
    if (w->busy != busy) {
        w->busy = busy;
        w->home->n_busy += busy ? 1 : -1;
    }
}

static int homes_wanted(si_pool *p)
{
    return p->max_workers / p->per_home;
}

/* Nobody comes in any more, and those in it leave. */
static void close_home_locked(si_pool *p, si_home *h)
{
    if (!h->open)
        return;
    h->open = false;
    for (si_home **q = &p->homes; *q; q = &(*q)->next) {
        if (*q == h) {
            *q = h->next;
            break;
        }
    }
    p->n_homes--;
    for (si_worker *w = p->idle; w; w = w->idle_next) {
        if (w->home == h) {
            atomic_store_explicit(&w->wake, 1, memory_order_release);
            si_futex_wake(&w->wake, 1);
        }
    }
}

/* New interpreters first, as many as the pool is to have; then the emptiest. */
static bool enter_home_locked(si_pool *p, si_worker *w)
{
    si_home *best = NULL;
    for (si_home *h = p->homes; h && p->n_homes >= homes_wanted(p); h = h->next)
        if (h->n_workers < p->per_home && (!best || h->n_workers < best->n_workers))
            best = h;
    w->founder = !best;
    if (!best) {
        best = calloc(1, sizeof *best);
        if (!best)
            return false;
        atomic_init(&best->refs, 0);
        best->open = true;
        best->next = p->homes;
        p->homes = best;
        p->n_homes++;
    }
    best->n_workers++;
    atomic_fetch_add_explicit(&best->refs, 1, memory_order_relaxed);
    if (w->home)
        si_home_release(w->home);
    w->home = best;
    w->at_home = true;
    return true;
}

bool si_home_enter(si_pool *p, si_worker *w)
{
    si_lock(&p->mu);
    bool entered = enter_home_locked(p, w);
    si_unlock(&p->mu);
    return entered;
}

void si_home_publish(si_home *h, uint32_t ready)
{
    atomic_store_explicit(&h->ready, ready, memory_order_release);
    si_futex_wake(&h->ready, INT32_MAX);
}

uint32_t si_home_wait(si_home *h)
{
    uint32_t ready;
    while ((ready = atomic_load_explicit(&h->ready, memory_order_acquire)) == SI_HOME_MAKING)
        (void)si_futex_wait(&h->ready, SI_HOME_MAKING, SI_FOREVER);
    return ready;
}

/* What the worker's interpreter holds, if nobody in it is expected to give it
 * up any more: a reference, for `give_up`. */
static si_context *deserted_locked(si_worker *w)
{
    if (w->home->n_left < w->home->n_workers || !w->cx)
        return NULL;
    si_context_retain(w->cx);
    return w->cx;
}

/* The worker is not expected to leave. The same. */
static si_context *forsake_locked(si_worker *w)
{
    si_home *h = w->home;
    if (w->at_home && !w->forsaken) {
        w->forsaken = true;
        h->n_left++;
    }
    return deserted_locked(w);
}

/* Without any of our locks. */
static void give_up(si_context *cx)
{
    if (cx) {
        si_context_end(cx);
        si_context_release(cx);
    }
}

static void started_locked(si_pool *p, si_worker *w)
{
    if (w->starting) {
        w->starting = false;
        p->n_starting--;
    }
}

void si_pool_started(si_pool *p, si_worker *w)
{
    si_lock(&p->mu);
    started_locked(p, w);
    si_unlock(&p->mu);
}

bool si_home_settle(si_pool *p, si_worker *w)
{
    uint32_t s = SI_W_STARTING;
    si_context *cx = NULL;
    si_lock(&p->mu);
    started_locked(p, w);
    bool open = w->home->open;
    if (!open)
        cx = forsake_locked(w);
    (void)atomic_compare_exchange_strong(&w->state, &s, open ? SI_W_IDLE : SI_W_ABANDONED);
    si_unlock(&p->mu);
    give_up(cx);
    if (!open)
        si_pool_worker_gone(p, w);
    return open;
}

bool si_home_leave(si_pool *p, si_worker *w, bool lingers)
{
    si_context *cx = NULL;
    si_lock(&p->mu);
    si_home *h = w->home;
    note_busy_locked(w, false);
    w->at_home = false;
    bool last = --h->n_workers == 0;
    if (w->forsaken) {
        w->forsaken = false;
        h->n_left--;
    }
    if (last)
        close_home_locked(p, h);
    else {
        if (lingers)
            atomic_fetch_add(&h->n_going, 1);
        cx = deserted_locked(w);    /* the others do not come back */
    }
    si_unlock(&p->mu);
    give_up(cx);
    return last;
}

void si_home_gone(si_home *h)
{
    if (atomic_fetch_sub(&h->n_going, 1) == 1)
        si_futex_wake(&h->n_going, 1);
}

bool si_home_wait_alone(si_home *h, int64_t deadline)
{
    uint32_t n;
    while ((n = atomic_load(&h->n_going)) != 0)
        if (si_futex_wait(&h->n_going, n, deadline) == SI_TIMEOUT)
            return atomic_load(&h->n_going) == 0;
    return true;
}

void si_home_release(si_home *h)
{
    if (atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) == 1)
        free(h);
}

/* A worker struct that is counted from now on; its thread is started after
 * the lock is released. */
static si_worker *add_worker(si_pool *p)
{
    si_worker *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->meter = si_meter_new();
    if (!w->meter || !enter_home_locked(p, w)) {
        free(w->meter);
        free(w);
        return NULL;
    }
    atomic_init(&w->refs, 2);   /* the thread's and the list's */
    si_pool_retain(p);
    w->pool = p;
    w->index = p->n_made++;
    w->counted = true;
    w->next = p->workers;
    p->workers = w;
    p->n_workers++;
    p->n_alive++;
    p->n_starting++;
    w->starting = true;
    atomic_store(&p->alive, (uint32_t)p->n_alive);
    return w;
}

static void unidle(si_pool *p, si_worker *w)
{
    for (si_worker **q = &p->idle; *q; q = &(*q)->idle_next) {
        if (*q == w) {
            *q = w->idle_next;
            break;
        }
    }
    w->idle = false;
}

/* The last that went to sleep; of several to an interpreter, one in the least
 * busy interpreter. */
static si_worker *best_idle_locked(si_pool *p)
{
    si_worker *best = p->idle;
    if (p->per_home == 1 || !best)
        return best;
    best = NULL;
    for (si_worker *w = p->idle; w && !(best && best->home->n_busy == 0); w = w->idle_next)
        if (w->home->open && (!best || w->home->n_busy < best->home->n_busy))
            best = w;
    return best;
}

/* It was woken, and is here; or will not come. */
static void note_looks_locked(si_pool *p, si_worker *w)
{
    if (w->woken) {
        w->woken = false;
        p->n_woken--;
    }
}

/* Somebody should look at the queue: decide who. Lock held. */
static void choose(si_pool *p, after_unlock *a)
{
    if (!p->head || atomic_load(&p->spinning))
        return;
    /* Whoever was woken comes. One more might be quicker, in a busy interpreter. */
    if (p->per_home > 1 && p->n_queued <= (uint32_t)p->n_woken)
        return;
    bool may_start = p->n_alive - p->n_leaving < p->max_workers
                     && p->n_queued > (uint32_t)p->n_starting && !p->broken;
    si_worker *w = best_idle_locked(p);
    /* Another interpreter, rather than to share the lock of a busy one. */
    if (w && w->home->n_busy > 0 && may_start && p->n_homes < homes_wanted(p))
        w = NULL;
    if (w) {
        unidle(p, w);
        note_busy_locked(w, true);
        w->woken = true;
        p->n_woken++;
        atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
        a->wake = w;
    }
    else if (may_start)
        a->start = add_worker(p);
}

static void worker_gone(si_pool *p, si_worker *w, bool replace);

static void carry_out(si_pool *p, after_unlock *a)
{
    if (a->drop)
        si_trace_release(a->drop);
    if (a->wake)
        wake_worker(a->wake);
    si_ret st = a->start ? si_worker_start(a->start) : SI_OK;
    if (st != SI_OK) {
        si_lock(&p->mu);
        bool none = p->n_alive <= 1;
        si_unlock(&p->mu);
        /* No replacement: that would fail as well, and be tried for ever. */
        worker_gone(p, a->start, false);
        if (a->start->founder)
            si_home_publish(a->start->home, SI_HOME_FAILED);
        (void)si_home_leave(p, a->start, false);
        si_worker_release(a->start);
        if (none && st == SI_SHUTDOWN) {
            (void)si_pool_tell_broken(p);   /* nothing went wrong: who submitted is told */
            si_pool_break(p, "the program is ending: no more workers can be started");
        }
        else if (none)
            si_pool_break(p, "no thread could be started for a worker (out of memory or of threads)");
        si_pool_release(p);
    }
}

static si_ret refuse(si_pool *p)
{
    if (p->generation != si_generation())
        return SI_FORKED;
    return SI_OK;
}

/* When a task is queued. Reading the clock for each would be felt if they are
 * short: then for one in 64. */
#define STAMP_SHORT 63

static void stamp_locked(si_pool *p, si_task *t)
{
    if (p->trace)
        t->pushed_by = (int32_t)gettid();
    else if (p->n_pushed++ & atomic_load_explicit(&p->stamp_mask, memory_order_relaxed))
        return;
    t->pushed = si_now();
}

static si_ret push_locked(si_pool *p, si_task *t)
{
    if (p->broken)
        return SI_BROKEN;
    if (p->closing)
        return SI_SHUTDOWN;
    t->pool = p;
    t->node.next = NULL;
    stamp_locked(p, t);
    if (p->tail) {
        p->tail->next = &t->node;
        p->tail = &t->node;
    }
    else {
        p->tail = &t->node;
        set_head(p, &t->node);
    }
    p->n_queued++;
    return SI_OK;
}

si_ret si_pool_push(si_pool *p, si_task *t)
{
    si_ret st = refuse(p);
    if (st != SI_OK)
        return st;
    after_unlock a = {0};
    si_lock(&p->mu);
    st = push_locked(p, t);
    if (st == SI_OK)
        choose(p, &a);
    si_unlock(&p->mu);
    carry_out(p, &a);
    return st;
}

/* More workers than there shall be, and one of them can go: not if all others
 * wait for tasks of this pool, which it may have to run. */
static bool has_surplus(si_pool *p)
{
    int n = p->n_alive - p->n_leaving;
    return n > p->max_workers && n - 1 >= p->n_blocked + (p->n_blocked > 0);
}

/* More interpreters than there shall be: whole ones go, not a thread of each. Not
 * if their workers would have to make new ones. */
static bool has_surplus_homes(si_pool *p)
{
    return p->per_home > 1 && p->n_homes > homes_wanted(p)
           && (p->n_alive - p->n_leaving <= p->max_workers || has_surplus(p));
}

/* Have those that sleep look whether they are to end. */
static void wake_surplus_locked(si_pool *p)
{
    if (!has_surplus(p) && !has_surplus_homes(p))
        return;
    for (si_worker *w = p->idle; w; w = w->idle_next) {
        atomic_store_explicit(&w->wake, 1, memory_order_release);
        si_futex_wake(&w->wake, 1);
    }
}

/* The pool was made smaller, and this worker is the one to go. */
static bool leaves_locked(si_pool *p, si_worker *w)
{
    if (w->counted && w->home->open && has_surplus_homes(p))
        close_home_locked(p, w->home);
    if (!w->counted || !has_surplus(p) || w->inbox_head || (p->per_home > 1 && w->home->open))
        return false;
    w->leaving = true;
    p->n_leaving++;
    return true;
}

si_ret si_pool_broadcast(si_pool *p, si_task **tasks, int room, int *n)
{
    *n = 0;
    si_ret st = refuse(p);
    if (st != SI_OK)
        return st;
    si_worker **started = calloc((size_t)room, sizeof *started);
    if (!started)
        return SI_NOMEM;
    int n_started = 0;
    si_lock(&p->mu);
    if (p->broken || p->closing)
        st = p->broken ? SI_BROKEN : SI_SHUTDOWN;
    while (st == SI_OK && n_started < room && p->n_alive - p->n_leaving < p->max_workers) {
        si_worker *w = add_worker(p);
        if (!w)
            st = SI_NOMEM;
        else
            started[n_started++] = w;
    }
    if (st == SI_OK) {
        for (si_worker *w = p->workers; w && *n < room; w = w->next) {
            uint32_t s = atomic_load(&w->state);
            /* One that finishes while the pool is open is being recycled. */
            if (s == SI_W_ENDED || s == SI_W_ABANDONED || s == SI_W_JAILED || w->leaving)
                continue;
            si_task *t = tasks[(*n)++];
            t->pool = p;
            t->node.next = NULL;
            stamp_locked(p, t);
            if (w->inbox_tail)
                w->inbox_tail->next = &t->node;
            else
                w->inbox_head = &t->node;
            w->inbox_tail = &t->node;
            if (w->idle)
                unidle(p, w);
            atomic_store_explicit(&w->wake, 1, memory_order_release);
            si_futex_wake(&w->wake, 1);
        }
    }
    si_unlock(&p->mu);
    for (int i = 0; i < n_started; i++) {
        after_unlock a = {.start = started[i]};
        carry_out(p, &a);
    }
    free(started);
    return st;
}

si_ret si_pool_resize(si_pool *p, int max_workers)
{
    si_ret st = refuse(p);
    if (st != SI_OK)
        return st;
    after_unlock a = {0};
    si_lock(&p->mu);
    if (p->broken || p->closing)
        st = p->broken ? SI_BROKEN : SI_SHUTDOWN;
    else {
        p->max_workers = max_workers;
        /* One more for what is queued: each that takes a task sees to the next. */
        choose(p, &a);
        wake_surplus_locked(p);
    }
    si_unlock(&p->mu);
    carry_out(p, &a);
    return st;
}

/* ---- the worker's side ----------------------------------------------------- */

static si_task *take_locked(si_pool *p, si_worker *w, after_unlock *a)
{
    si_node *node;
    if (w->trace != p->trace) {
        a->drop = w->trace;
        w->trace = p->trace;
        w->segment = NULL;
        if (w->trace)
            si_trace_retain(w->trace);
    }
    if (!w->home->open)
        return NULL;
    if (w->inbox_head) {
        node = w->inbox_head;
        w->inbox_head = node->next;
        if (!w->inbox_head)
            w->inbox_tail = NULL;
    }
    else if (p->head) {
        node = p->head;
        set_head(p, node->next);
        p->n_queued--;
    }
    else
        return NULL;
    si_task *t = (si_task *)node;
    w->taken = t;
    note_busy_locked(w, true);
    if (p->max_tasks && !SI_IS_FINAL(si_task_word(t)) && ++w->home->n_taken >= p->max_tasks)
        close_home_locked(p, w->home);
    return t;
}

/* The task at the head is better done in another interpreter, which nobody uses:
 * whoever calls this has `choose` wake a worker there. */
static bool defers_locked(si_pool *p, si_worker *w)
{
    if (p->per_home == 1 || !p->head || w->inbox_head || w->home->n_busy == w->busy)
        return false;
    si_worker *other = best_idle_locked(p);
    return other && other != w && other->home->n_busy == 0;
}

/* The worker is to stop looking for tasks, having found none. */
static bool ends_locked(si_pool *p, si_worker *w)
{
    return p->closing || p->broken || !w->home->open;
}

/* `now`: read a moment ago. */
static bool spin_for_work(si_pool *p, si_worker *w, int64_t now)
{
    if (si_cores < 2 || p->n_workers > si_cores)
        return false;
    int64_t budget = si_spin_budget(&p->worker_spin);
    if (budget <= 0 || atomic_exchange(&p->spinning, true))
        return false;
    int64_t until = now + budget;
    bool found = false;
    do {
        for (int i = 0; i < 32 && !found; i++) {
            found = atomic_load_explicit(&p->hint, memory_order_relaxed)
                    || atomic_load_explicit(&w->wake, memory_order_relaxed);
            si_relax();
        }
    } while (!found && si_now() < until);
    /* Before the lock is taken: a pusher that still sees `spinning` wakes
     * nobody, but its task is then in the queue, and we look under the lock. */
    atomic_store(&p->spinning, false);
    si_spin_learn(&p->worker_spin, found);
    return found;
}

si_task *si_pool_next(si_pool *p, si_worker *w)
{
    after_unlock a = {0};
    si_lock(&p->mu);
    bool leaves = leaves_locked(p, w), defers = defers_locked(p, w);
    si_task *t = leaves || defers ? NULL : take_locked(p, w, &a);
    bool end = !t && (leaves || ends_locked(p, w));
    if (t || end || defers)
        choose(p, &a);
    if (!t)
        note_busy_locked(w, false);
    si_unlock(&p->mu);
    carry_out(p, &a);
    if (t || end)
        return t;

    PyThreadState *ts = PyEval_SaveThread();
    /* Still set from the last wake, it would end the spin at once. What a late
     * waker pushed is found under the lock below. */
    atomic_store_explicit(&w->wake, 0, memory_order_relaxed);
    for (bool woken = false;; woken = true) {
        si_maybe_delay();
        /* After a sleep the work is there already: nothing to look for or learn. */
        if (!woken)
            spin_for_work(p, w, si_meter_mark(w->meter));
        a = (after_unlock){0};
        si_lock(&p->mu);
        note_looks_locked(p, w);
        leaves = leaves_locked(p, w);
        defers = defers_locked(p, w);
        t = leaves || defers ? NULL : take_locked(p, w, &a);
        end = !t && (leaves || ends_locked(p, w));
        if (!t && !end) {
            if (!w->idle) {
                w->idle = true;
                w->idle_next = p->idle;
                p->idle = w;
            }
            note_busy_locked(w, false);
            atomic_store_explicit(&w->wake, 0, memory_order_relaxed);
            if (defers)
                choose(p, &a);
        }
        else {
            if (w->idle)
                unidle(p, w);
            choose(p, &a);
        }
        si_unlock(&p->mu);
        carry_out(p, &a);
        if (t || end)
            break;
        si_maybe_delay();
        int64_t slept = si_now();
        /* Who asks (si_view.h) sets `wake` afterwards, which was just cleared. */
        atomic_thread_fence(memory_order_seq_cst);
        for (;;) {
            if (si_is_asked(w->cx)) {
                PyEval_RestoreThread(ts);
                si_answer(w->cx);
                ts = PyEval_SaveThread();
            }
            if (atomic_load_explicit(&w->wake, memory_order_acquire))
                break;
            (void)si_futex_wait(&w->wake, 0, SI_FOREVER);
        }
        if (si_now() - slept < 60000)
            si_spin_learn(&p->worker_spin, true);
    }
    PyEval_RestoreThread(ts);
    si_meter_waited(w->meter);
    return t;
}

void si_pool_told(si_pool *p, si_worker *w, int64_t ran)
{
    /* Two bounds, so that tasks about as long do not change it all the time. */
    bool is_long = ran > (w->meter->long_tasks ? 10000 : 20000);
    if (is_long != w->meter->long_tasks) {
        w->meter->long_tasks = is_long;
        atomic_store_explicit(&p->stamp_mask, is_long ? 0 : STAMP_SHORT, memory_order_relaxed);
    }
}

bool si_pool_moves(si_pool *p, si_worker *w)
{
    si_lock(&p->mu);
    bool over = w->leaving || ((p->closing || p->broken) && !p->head && !w->inbox_head)
                || leaves_locked(p, w);
    bool moves = w->counted && !w->home->open && !over;
    si_unlock(&p->mu);
    return moves;
}

void si_pool_worker_gone(si_pool *p, si_worker *w)
{
    worker_gone(p, w, true);
}

/* A worker that has no task yet, and perhaps waits for the lock of an interpreter
 * whose other worker was left behind with it, is not waited for. What it has taken
 * goes back. A reference, or NULL: there is none. */
static si_worker *forsake_idle_locked(si_pool *p, si_home *h)
{
    for (si_worker *w = p->workers; w; w = w->next) {
        uint32_t idle = SI_W_IDLE;
        if (w->home != h || !atomic_compare_exchange_strong(&w->state, &idle, SI_W_ABANDONED))
            continue;
        if (w->taken) {
            w->taken->node.next = p->head;
            if (!p->head)
                p->tail = &w->taken->node;
            set_head(p, &w->taken->node);
            p->n_queued++;
            w->taken = NULL;
        }
        atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
        return w;
    }
    return NULL;
}

static void forsake_home(si_pool *p, si_home *h)
{
    for (;;) {
        si_lock(&p->mu);
        close_home_locked(p, h);
        si_worker *w = forsake_idle_locked(p, h);
        si_context *cx = w ? forsake_locked(w) : NULL;
        si_unlock(&p->mu);
        give_up(cx);
        if (!w)
            break;
        si_pool_worker_gone(p, w);
        si_worker_release(w);
    }
}

void si_pool_leave_worker(si_pool *p, si_worker *w, uint32_t n_calls)
{
    si_lock(&p->mu);
    if (w->counted) {
        /* The worker itself will not count this task any more. */
        int64_t ran = si_now() - si_meter_mark(w->meter);
        p->gone[SI_N_FAILED] += n_calls;
        p->gone[SI_N_BUSY] += ran;
        p->gone[SI_N_RUN + si_bucket(ran)]++;
    }
    si_home *h = p->per_home > 1 && w->at_home ? w->home : NULL;
    if (h)
        atomic_fetch_add_explicit(&h->refs, 1, memory_order_relaxed);
    si_context *cx = forsake_locked(w);
    /* Its task may have ended, and the interpreter with it, just after the decision. */
    w->left_behind = !w->returned;
    if (w->left_behind)
        p->n_left++;
    int n = p->n_left;
    bool closing = p->closing;
    si_unlock(&p->mu);
    give_up(cx);
    if (h) {
        forsake_home(p, h);
        si_home_release(h);
    }
    if (n > p->max_left && !closing) {
        char reason[160];
        snprintf(reason, sizeof reason,
                 "%d workers were abandoned, because their tasks do not stop when they are "
                 "interrupted (max_abandoned is %d)", n, p->max_left);
        si_pool_break(p, reason);
    }
    si_pool_worker_gone(p, w);
}

void si_pool_worker_returned(si_pool *p, si_worker *w)
{
    si_lock(&p->mu);
    w->returned = true;
    if (w->left_behind) {
        w->left_behind = false;
        p->n_left--;
    }
    si_unlock(&p->mu);
}

void si_pool_worker_failed(si_pool *p, si_worker *w, const char *reason)
{
    si_lock(&p->mu);
    bool others = p->n_alive - p->n_leaving > 1;
    si_unlock(&p->mu);
    if (!others)
        si_pool_break(p, reason);
    /* No replacement: that would fail as well, and be tried for ever. The next
     * task that is queued asks for one again. */
    worker_gone(p, w, false);
}

bool si_pool_counts(si_pool *p, si_worker *w)
{
    si_lock(&p->mu);
    bool counted = w->counted;
    si_unlock(&p->mu);
    return counted;
}

static void worker_gone(si_pool *p, si_worker *w, bool replace)
{
    si_lock(&p->mu);
    if (!w->counted) {
        si_unlock(&p->mu);
        return;
    }
    w->counted = false;
    started_locked(p, w);
    note_looks_locked(p, w);
    if (w->idle)
        unidle(p, w);
    /* It was left behind while it waited for this pool. */
    if (w->awaiting || w->awaiting_cq) {
        w->awaiting = NULL;
        w->awaiting_cq = NULL;
        p->n_blocked--;
    }
    for (si_worker **q = &p->workers; *q; q = &(*q)->next) {
        if (*q == w) {
            *q = w->next;
            break;
        }
    }
    if (w->leaving)
        p->n_leaving--;
    p->n_workers--;
    p->n_alive--;
    atomic_store(&p->alive, (uint32_t)p->n_alive);
    int64_t counts[SI_N_COUNTS];
    (void)si_meter_read(w->meter, counts);
    for (int i = 0; i < SI_N_COUNTS; i++)
        p->gone[i] += counts[i];
    si_node *inbox = w->inbox_head;
    w->inbox_head = w->inbox_tail = NULL;
    /* What it leaves in the queue needs somebody else. */
    after_unlock a = {0};
    if (replace)
        choose(p, &a);
    /* Parked interpreters keep the pool for their streams, and with it what the message
     * holds, such as ends of channels. */
    si_msg spent;
    si_msg_init(&spent);
    if (p->closing && p->n_workers == 0 && p->n_left == 0 && !p->head)
        si_msg_move(&spent, &p->initializer);
    si_unlock(&p->mu);
    si_futex_wake(&p->alive, INT32_MAX);
    carry_out(p, &a);
    si_msg_clear(&spent);
    while (inbox) {
        si_task *t = (si_task *)inbox;
        inbox = inbox->next;
        finish_unrun(t, SI_LOST, "its worker ended first");
    }
    si_worker_release(w);   /* the list's */
}

/* ---- ending ---------------------------------------------------------------- */

static void wake_all_locked(si_pool *p)
{
    for (si_worker *w = p->workers; w; w = w->next) {
        atomic_store_explicit(&w->wake, 1, memory_order_release);
        si_futex_wake(&w->wake, 1);
    }
}

/* Unhook the queue but for the first `keep` tasks; the caller finishes what it
 * gets after the unlock. */
static si_node *drain_locked(si_pool *p, int keep)
{
    si_node *all = p->head, *last = NULL;
    p->n_queued = 0;
    for (; all && keep > 0; keep--) {
        last = all;
        all = all->next;
        p->n_queued++;
    }
    if (last) {
        last->next = NULL;
        p->tail = last;
    }
    else
        set_head(p, NULL);
    for (si_worker *w = p->workers; w; w = w->next) {
        if (w->inbox_head) {
            w->inbox_tail->next = all;
            all = w->inbox_head;
            w->inbox_head = w->inbox_tail = NULL;
        }
    }
    return all;
}

void si_pool_close(si_pool *p, bool cancel, bool give_up)
{
    if (p->generation != si_generation())
        return;
    si_node *dropped = NULL;
    si_lock(&p->mu);
    bool first = !p->closing;
    if (first)
        SI_COUNT(pools, -1);
    p->closing = true;
    if (give_up)
        p->given_up = true;
    /* A worker that is being made was started for a task at the head of the
     * queue: that one counts as begun. */
    if (cancel)
        dropped = drain_locked(p, give_up ? 0 : p->n_starting);
    wake_all_locked(p);
    si_unlock(&p->mu);
    while (dropped) {
        si_task *t = (si_task *)dropped;
        dropped = dropped->next;
        finish_unrun(t, SI_CANCELLED, NULL);
    }
    if (first)
        si_spare_end();
}

bool si_pool_is_broken(si_pool *p)
{
    si_lock(&p->mu);
    bool b = p->broken;
    si_unlock(&p->mu);
    return b;
}

bool si_pool_is_closing(si_pool *p)
{
    si_lock(&p->mu);
    bool b = p->closing;
    si_unlock(&p->mu);
    return b;
}

bool si_pool_tell_broken(si_pool *p)
{
    return !atomic_exchange(&p->told_broken, true);
}

bool si_pool_given_up(si_pool *p)
{
    si_lock(&p->mu);
    bool b = p->given_up;
    si_unlock(&p->mu);
    return b;
}

char *si_pool_reason(si_pool *p)
{
    si_lock(&p->mu);
    char *copy = strndup(p->reason.data, p->reason.len);
    si_unlock(&p->mu);
    return copy;
}

void si_pool_break(si_pool *p, const char *reason)
{
    si_lock(&p->mu);
    if (!p->broken) {
        p->broken = true;
        (void)si_put(&p->reason, reason, strlen(reason));
    }
    si_node *lost = drain_locked(p, 0);
    wake_all_locked(p);
    si_unlock(&p->mu);
    while (lost) {
        si_task *t = (si_task *)lost;
        lost = lost->next;
        finish_unrun(t, SI_LOST, reason);
    }
}

si_ret si_pool_join(si_pool *p, int64_t deadline)
{
    if (p->generation != si_generation())
        return SI_FORKED;
    for (;;) {
        uint32_t alive = atomic_load(&p->alive);
        if (alive == 0)
            return SI_OK;
        int64_t now = si_now(), until = now + 50000000;
        if (deadline < until)
            until = deadline;
        si_ret st = si_futex_wait(&p->alive, alive, until);
        if (st == SI_INTR)
            return st;
        /* Leave behind those whose end hangs. */
        si_worker *stuck = NULL;
        si_context *cx = NULL;
        si_lock(&p->mu);
        for (si_worker *w = p->workers; w && !stuck; w = w->next) {
            uint32_t s = SI_W_FINISHING;
            if (si_now() - atomic_load(&w->since) > FINISH_GRACE
                && atomic_compare_exchange_strong(&w->state, &s, SI_W_ABANDONED)) {
                stuck = w;
                atomic_fetch_add(&w->refs, 1);
                cx = forsake_locked(w);
            }
        }
        si_unlock(&p->mu);
        if (stuck) {
            give_up(cx);
            si_pool_worker_gone(p, stuck);
            si_worker_release(stuck);
        }
        if (atomic_load(&p->alive) == 0)
            return SI_OK;
        if (deadline != SI_FOREVER && si_now() >= deadline)
            return SI_TIMEOUT;
        if (st == SI_TIMEOUT)
            return SI_INTR; /* a slice ended: the caller looks at signals */
    }
}

/* ---- waiting as a caller ----------------------------------------------------- */

/* Every worker waits for this pool: true if none of them can go on. */
static bool stuck_locked(si_pool *p)
{
    int n = p->n_alive - p->n_leaving;
    if (p->n_blocked < n || n < p->max_workers)
        return false;
    for (si_worker *w = p->workers; w; w = w->next) {
        if (w->awaiting && SI_IS_FINAL(si_task_word(w->awaiting)))
            return false;
        if (w->awaiting_cq && si_cq_ready(w->awaiting_cq))
            return false;
    }
    return true;
}

static bool block(si_pool *p, si_worker *self, si_task *t, si_cq *q)
{
    after_unlock a = {0};
    si_lock(&p->mu);
    if (!self->counted) {
        /* Left behind: whether it waits changes nothing for the pool. */
        si_unlock(&p->mu);
        return true;
    }
    self->awaiting = t;
    self->awaiting_cq = q;
    p->n_blocked++;
    bool stuck = stuck_locked(p);
    if (stuck) {
        p->n_blocked--;
        self->awaiting = NULL;
        self->awaiting_cq = NULL;
    }
    else
        choose(p, &a);
    si_unlock(&p->mu);
    carry_out(p, &a);
    return !stuck;
}

static void unblock(si_pool *p, si_worker *self)
{
    si_lock(&p->mu);
    if (self->awaiting || self->awaiting_cq) {
        p->n_blocked--;
        self->awaiting = NULL;
        self->awaiting_cq = NULL;
        wake_surplus_locked(p);
    }
    si_unlock(&p->mu);
}

static int64_t slice_end(int64_t deadline, bool slice)
{
    if (!slice)
        return deadline;
    int64_t end = si_now() + 50000000;
    return end < deadline ? end : deadline;
}

si_ret si_pool_wait_task(si_pool *p, si_worker *self, si_task *t, int64_t deadline, bool slice)
{
    bool own = self && t->pool == self->pool && deadline == SI_FOREVER;
    if (own && !block(self->pool, self, t, NULL))
        return SI_DEADLOCK;
    int64_t until = slice_end(deadline, slice);
    si_ret st = si_task_wait(t, until, p ? &p->caller_spin : NULL);
    if (own)
        unblock(self->pool, self);
    if (st == SI_TIMEOUT && until < deadline)
        st = SI_INTR;
    return st;
}

si_ret si_pool_wait_cq(si_pool *p, si_worker *self, si_cq *q, int64_t deadline, bool slice)
{
    bool own = self && p == self->pool && deadline == SI_FOREVER;
    if (own && !block(p, self, NULL, q))
        return SI_DEADLOCK;
    int64_t until = slice_end(deadline, slice);
    si_ret st = si_cq_wait(q, until, p ? &p->caller_spin : NULL);
    if (own)
        unblock(p, self);
    if (st == SI_TIMEOUT && until < deadline)
        st = SI_INTR;
    return st;
}

/* ---- output of workers ------------------------------------------------------- */

void si_pool_output(si_pool *p, int stream, const char *data, size_t n)
{
    si_output *o = malloc(sizeof *o + n);
    if (!o)
        return;
    o->next = NULL;
    o->stream = stream;
    o->n = n;
    memcpy(o->data, data, n);
    si_lock(&p->out_mu);
    if (p->out_tail)
        p->out_tail->next = o;
    else
        p->out_head = o;
    p->out_tail = o;
    atomic_store_explicit(&p->has_output, true, memory_order_release);
    si_unlock(&p->out_mu);
    if (p->out_cq)
        si_cq_nudge(p->out_cq);
}

bool si_pool_has_output(si_pool *p, int64_t interp_id)
{
    return atomic_load_explicit(&p->has_output, memory_order_acquire) && p->creator == interp_id
           && p->generation == si_generation();
}

si_output *si_pool_take_output(si_pool *p, int64_t interp_id)
{
    if (!si_pool_has_output(p, interp_id))
        return NULL;
    si_lock(&p->out_mu);
    si_output *o = p->out_head;
    p->out_head = p->out_tail = NULL;
    atomic_store_explicit(&p->has_output, false, memory_order_relaxed);
    si_unlock(&p->out_mu);
    return o;
}

/* ---- observing --------------------------------------------------------------- */

int64_t si_worker_since(si_worker *w, uint32_t state, int64_t now)
{
    if (state != SI_W_RUNNING && state != SI_W_IDLE)
        return -1;
    int64_t since = now - si_meter_mark(w->meter);
    return since > 0 ? since : 0;
}

static int look_locked(si_pool *p, si_worker_view *views, int max, int64_t *gone,
                       uint32_t *n_queued, bool *settled)
{
    int n = 0;
    int64_t now = si_now();
    *settled = true;
    *n_queued = p->n_queued;
    memcpy(gone, p->gone, sizeof p->gone);
    for (si_worker *w = p->workers; w; w = w->next, n++) {
        if (n >= max)
            continue;
        si_worker_view *v = &views[n];
        v->index = w->index;
        v->state = atomic_load(&w->state);
        v->thread_id = atomic_load_explicit(&w->thread_id, memory_order_relaxed);
        v->interp_id = w->cx ? w->cx->interp_id : -1;
        v->memory = w->cx && si_has_arenas() ? atomic_load(&w->cx->arena_bytes) : -1;
        if (!si_meter_read(w->meter, v->count))
            *settled = false;
        v->since = si_worker_since(w, v->state, now);
    }
    return n;
}

int si_pool_look(si_pool *p, si_worker_view *views, int max, int64_t *gone, uint32_t *n_queued)
{
    bool settled = false;
    int n = 0;
    /* A worker that was stopped between the end of a task and the note of its
     * time gets a moment; then it is taken as it is. */
    for (int tries = 0; tries < 20 && !settled; tries++) {
        if (tries)
            usleep(100);
        si_lock(&p->mu);
        n = look_locked(p, views, max, gone, n_queued, &settled);
        si_unlock(&p->mu);
    }
    return n;
}

bool si_pool_trace(si_pool *p, si_trace *t)
{
    si_lock(&p->mu);
    bool free_ = !p->trace;
    if (free_) {
        si_trace_retain(t);
        p->trace = t;
    }
    si_unlock(&p->mu);
    return free_;
}

void si_pool_untrace(si_pool *p, si_trace *t)
{
    si_lock(&p->mu);
    bool mine = p->trace == t;
    if (mine) {
        p->trace = NULL;
        /* Those that sleep look, and let go of it. */
        wake_all_locked(p);
    }
    si_unlock(&p->mu);
    if (mine)
        si_trace_release(t);
}

void si_pools_after_fork(void)
{
    atomic_store(&pools_mu.word, 0);
}

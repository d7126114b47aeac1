#include "si_sync.h"

/* A waiter that has waited so long (ns) is given what is given back. */
#define FAIR_AFTER 1000000
/* Waiters that are woken in one go by a semaphore. */
#define BATCH 16

/* Guards: the list of primitives, and the decision that a memory count of zero
 * is final. */
static si_mutex syncs_mu;
static si_sync *syncs;
static uint64_t next_sync_id = 1;

si_sync *si_sync_new(si_sync_kind kind, int64_t value, int64_t limit, int64_t timeout)
{
    si_sync *s = NULL;
    if (posix_memalign((void **)&s, 64, sizeof *s) != 0)
        return NULL;
    memset(s, 0, sizeof *s);
    atomic_init(&s->refs, 1);
    s->kind = kind;
    s->generation = si_generation();
    s->limit = limit;
    s->timeout = timeout;
    uint64_t state = (uint64_t)value;
    atomic_init(&s->state, kind == SI_SYNC_SEMAPHORE ? state << SI_SYNC_SHIFT : state);
    si_spin_init(&s->spin);
    si_lock(&syncs_mu);
    s->id = next_sync_id++;
    s->all_next = syncs;
    if (syncs)
        syncs->all_prev = s;
    syncs = s;
    si_unlock(&syncs_mu);
    SI_COUNT(syncs, 1);
    return s;
}

/* syncs_mu is held, and released; the memory is freed, for nobody has it. */
static void free_sync(si_sync *s)
{
    if (s->all_prev)
        s->all_prev->all_next = s->all_next;
    else if (syncs == s)
        syncs = s->all_next;
    if (s->all_next)
        s->all_next->all_prev = s->all_prev;
    si_unlock(&syncs_mu);
    SI_COUNT(syncs, -1);
    if (si_sync_forked(s))
        return;
    si_msg *action = si_barrier_action(s);
    if (action) {
        si_msg_clear(action);
        free(action);
    }
    free(s);
}

void si_sync_release(si_sync *s)
{
    int refs = atomic_load_explicit(&s->refs, memory_order_relaxed);
    while (refs > 1) {
        if (atomic_compare_exchange_weak_explicit(&s->refs, &refs, refs - 1,
                memory_order_acq_rel, memory_order_relaxed))
            return;
    }
    /* The last one goes under the lock, so that no look-up revives it. */
    si_lock(&syncs_mu);
    if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) {
        si_unlock(&syncs_mu);
        return;
    }
    free_sync(s);
}

static bool is_last(si_sync *s)
{
    return atomic_load_explicit(&s->refs, memory_order_acquire) == 1;
}

/* Give up a reference if it is the last one; else keep it. */
static bool release_last(si_sync *s)
{
    si_lock(&syncs_mu);
    if (!is_last(s)) {
        si_unlock(&syncs_mu);
        return false;
    }
    free_sync(s);
    return true;
}

si_sync *si_sync_find(uint64_t id)
{
    si_lock(&syncs_mu);
    si_sync *s = syncs;
    while (s && s->id != id)
        s = s->all_next;
    if (s)
        si_sync_retain(s);
    si_unlock(&syncs_mu);
    return s;
}

void si_syncs_after_fork(void)
{
    atomic_store(&syncs_mu.word, 0);
}

/* ---- the ledger ------------------------------------------------------------------ */

/* Something would wait for ever if this interpreter went now. */
static bool held_by(si_sync *s, const si_context *cx)
{
    switch (s->kind) {
    case SI_SYNC_LOCK:
    case SI_SYNC_RLOCK:
        return (atomic_load(&s->state) & ~(uint64_t)SI_SYNC_WAITERS) == si_sync_tag(cx);
    case SI_SYNC_BARRIER:
        return atomic_load(&s->acting) == si_sync_tag(cx);
    default:
        return false;
    }
}

si_sync_handle *si_sync_handle_new(si_context *cx, si_sync *s)
{
    si_sync_handle *h = malloc(sizeof *h);
    if (!h)
        return NULL;
    h->sync = s;
    h->prev = NULL;
    si_lock(&cx->mu);
    h->next = cx->syncs;
    if (cx->syncs)
        cx->syncs->prev = h;
    cx->syncs = h;
    si_unlock(&cx->mu);
    return h;
}

/* The context's mu is held. */
static void unlist_handle(si_sync_handle **list, si_sync_handle *h)
{
    if (h->prev)
        h->prev->next = h->next;
    else
        *list = h->next;
    if (h->next)
        h->next->prev = h->prev;
}

/* A handle that is in no list: free it, or keep it as an orphan if it may be all
 * that tells whose the lock is. */
static void settle(si_context *cx, si_sync_handle *h)
{
    /* Held, but nobody is left to wait for it. */
    if (held_by(h->sync, cx) && release_last(h->sync)) {
        free(h);
        return;
    }
    bool keep = false;
    si_lock(&cx->mu);
    if (held_by(h->sync, cx)) {
        si_sync_handle *o = cx->orphans;
        while (o && o->sync != h->sync)
            o = o->next;
        keep = !o;
    }
    if (keep) {
        h->prev = NULL;
        h->next = cx->orphans;
        if (cx->orphans)
            cx->orphans->prev = h;
        cx->orphans = h;
    }
    si_unlock(&cx->mu);
    if (!keep) {
        si_sync_release(h->sync);
        free(h);
    }
    else if (atomic_load(&cx->ended))
        /* Whoever ended it may have looked while this was in no list. */
        si_sync_context_end(cx);
}

/* Forget orphans of what is not held any more, or what nobody else knows. */
static void sweep(si_context *cx)
{
    si_sync_handle *h;
    do {
        si_lock(&cx->mu);
        h = cx->orphans;
        while (h && held_by(h->sync, cx) && !is_last(h->sync))
            h = h->next;
        if (h)
            unlist_handle(&cx->orphans, h);
        si_unlock(&cx->mu);
        if (h)
            settle(cx, h);
    } while (h);
}

void si_sync_handle_drop(si_context *cx, si_sync_handle *h)
{
    if (cx->generation != si_generation()) {
        /* The list is the parent's, and its lock may be taken for ever. */
        si_sync_release(h->sync);
        return;
    }
    si_lock(&cx->mu);
    unlist_handle(&cx->syncs, h);
    si_unlock(&cx->mu);
    settle(cx, h);
    sweep(cx);
}

static void break_lock(si_sync *s, const si_context *cx);
static void tell_everyone(si_sync *s, si_told how);

void si_sync_context_end(si_context *cx)
{
    for (;;) {
        si_lock(&cx->mu);
        si_sync_handle *h = cx->syncs;
        while (h && !held_by(h->sync, cx))
            h = h->next;
        if (!h) {
            h = cx->orphans;
            while (h && !held_by(h->sync, cx))
                h = h->next;
        }
        si_sync *s = h ? h->sync : NULL;
        if (s)
            si_sync_retain(s);      /* the object may be collected meanwhile */
        si_unlock(&cx->mu);
        if (!s)
            break;
        if (s->kind == SI_SYNC_BARRIER) {
            si_lock(&s->mu);
            if (held_by(s, cx)) {
                s->broken = true;
                tell_everyone(s, SI_TOLD_BROKEN);
            }
            si_unlock(&s->mu);
            si_futex_wake(&s->epoch, INT32_MAX);
        }
        else
            break_lock(s, cx);
        si_sync_release(s);
    }
    sweep(cx);
}

/* ---- the list of waiters ------------------------------------------------------------ */

/* In the order in which they began to wait. mu is held. */
static void list_waiter(si_sync *s, si_sync_waiter *w)
{
    si_sync_waiter *before = s->last;
    while (before && before->since > w->since)
        before = before->prev;
    w->prev = before;
    w->next = before ? before->next : s->first;
    if (w->next)
        w->next->prev = w;
    else
        s->last = w;
    if (before)
        before->next = w;
    else
        s->first = w;
    w->listed = true;
    atomic_store_explicit(&w->told, SI_TOLD_NOTHING, memory_order_relaxed);
}

/* mu is held. */
static void unlist_waiter(si_sync *s, si_sync_waiter *w)
{
    if (w->prev)
        w->prev->next = w->next;
    else
        s->first = w->next;
    if (w->next)
        w->next->prev = w->prev;
    else
        s->last = w->prev;
    w->listed = false;
}

/* Take the first waiter off the list and tell it; it may be gone when this
 * returns. The word to wake, once mu is released: waking an address that is
 * not a word any more is harmless. mu is held. */
static si_word *tell_first(si_sync *s, si_told how)
{
    si_sync_waiter *w = s->first;
    unlist_waiter(s, w);
    atomic_store_explicit(&w->told, how, memory_order_release);
    return &w->told;
}

/* Tell all waiters of an event or a barrier; the caller wakes them by `epoch`
 * once mu is released. The round of a barrier is over. mu is held. */
static void tell_everyone(si_sync *s, si_told how)
{
    while (s->first)
        (void)tell_first(s, s->kind == SI_SYNC_BARRIER && s->first->index < 0 ? SI_TOLD_LOOK : how);
    atomic_fetch_add(&s->epoch, 1);
    s->round++;
    s->count = 0;
    atomic_store(&s->acting, 0);
}

/* False: it was told meanwhile, and must do what it was told. */
static bool stop_waiting(si_sync *s, si_sync_waiter *w)
{
    si_lock(&s->mu);
    bool listed = w->listed;
    if (listed) {
        unlist_waiter(s, w);
        if (!s->first && s->kind != SI_SYNC_EVENT)
            atomic_fetch_and(&s->state, ~(uint64_t)SI_SYNC_WAITERS);
    }
    si_unlock(&s->mu);
    return listed;
}

static bool is_told(si_sync_waiter *w)
{
    return atomic_load_explicit(&w->told, memory_order_acquire) != SI_TOLD_NOTHING;
}

/* ---- locks and semaphores ------------------------------------------------------------- */

static uint64_t this_thread(void)
{
    return (uint64_t)(uintptr_t)pthread_self();
}

bool si_sync_is_mine(si_sync *s, si_context *cx)
{
    /* Both were written by this thread, or differ. */
    return (si_sync_state(s) & ~(uint64_t)SI_SYNC_WAITERS) == si_sync_tag(cx)
           && atomic_load_explicit(&s->thread, memory_order_relaxed) == this_thread();
}

/* The state with one taken. SI_EMPTY: there is none to take; SI_BROKEN. */
static inline si_ret one_taken(const si_sync *s, uint64_t tag, uint64_t state, uint64_t *next)
{
    if (state & SI_SYNC_BROKEN)
        return SI_BROKEN;
    bool is_zero = state >> SI_SYNC_SHIFT == 0;
    if (s->kind == SI_SYNC_SEMAPHORE) {
        *next = state - (1u << SI_SYNC_SHIFT);
        return is_zero ? SI_EMPTY : SI_OK;
    }
    *next = state | tag;
    return is_zero ? SI_OK : SI_EMPTY;
}

static si_ret give_lock(si_sync *s);
static si_ret give_permits(si_sync *s, int64_t n);

/* It was taken by, or given to, this thread. */
static inline si_ret taken(si_sync *s, si_context *cx)
{
    /* An abandoned interpreter that still runs holds nothing any more. The
     * other side of this order is in si_context_end. */
    if (atomic_load(&cx->ended)) {
        (void)(s->kind == SI_SYNC_SEMAPHORE ? give_permits(s, 1) : give_lock(s));
        return SI_CLOSED;
    }
    if (s->kind == SI_SYNC_RLOCK) {
        atomic_store_explicit(&s->thread, this_thread(), memory_order_relaxed);
        s->depth = 1;
    }
    return SI_OK;
}

si_ret si_sync_take(si_sync *s, si_context *cx)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    uint64_t tag = si_sync_tag(cx), next, state = 0;
    if (s->kind != SI_SYNC_LOCK) {
        state = atomic_load_explicit(&s->state, memory_order_relaxed);
        if (s->kind == SI_SYNC_RLOCK && si_sync_is_mine(s, cx)) {
            s->depth++;
            return SI_OK;
        }
    }
    do {
        si_ret st = one_taken(s, tag, state, &next);
        if (st != SI_OK)
            return st;
    } while (!atomic_compare_exchange_weak(&s->state, &state, next));
    return taken(s, cx);
}

/* Take it, or enter the list (SI_EMPTY). */
static si_ret take_or_list(si_sync *s, si_sync_waiter *w)
{
    uint64_t tag = si_sync_tag(w->cx), next;
    si_lock(&s->mu);
    uint64_t state = atomic_load(&s->state);
    for (;;) {
        si_ret st = one_taken(s, tag, state, &next);
        if (st == SI_OK) {
            if (!atomic_compare_exchange_weak(&s->state, &state, next))
                continue;
            si_unlock(&s->mu);
            return taken(s, w->cx);
        }
        if (st != SI_EMPTY) {
            si_unlock(&s->mu);
            return st;
        }
        /* Whoever gives it back from now on sees that somebody is listed. */
        if (state & SI_SYNC_WAITERS
            || atomic_compare_exchange_weak(&s->state, &state, state | SI_SYNC_WAITERS))
            break;
    }
    list_waiter(s, w);
    si_unlock(&s->mu);
    return SI_EMPTY;
}

static si_ret spin_and_take(si_sync *s, si_context *cx)
{
    int64_t budget = si_cores > 1 ? si_spin_budget(&s->spin) : 0;
    if (budget <= 0)
        return SI_EMPTY;
    int64_t until = si_now() + budget;
    uint64_t next;
    do {
        for (int i = 0; i < 32; i++) {
            uint64_t state = atomic_load_explicit(&s->state, memory_order_relaxed);
            if (one_taken(s, 0, state, &next) != SI_EMPTY) {
                si_ret st = si_sync_take(s, cx);
                if (st != SI_EMPTY) {
                    si_spin_learn(&s->spin, true);
                    return st;
                }
            }
            si_relax();
        }
    } while (si_now() < until);
    si_spin_learn(&s->spin, false);
    return SI_EMPTY;
}

si_ret si_sync_wait(si_sync *s, si_sync_waiter *w, int64_t deadline)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    si_ret st = SI_EMPTY;
    if (w->since == 0) {
        w->since = si_now();
        st = spin_and_take(s, w->cx);
    }
    if (st == SI_EMPTY)
        st = take_or_list(s, w);
    while (st == SI_EMPTY) {
        si_maybe_delay();
        switch (atomic_load_explicit(&w->told, memory_order_acquire)) {
        case SI_TOLD_NOTHING: {
            si_ret slept = si_futex_wait(&w->told, SI_TOLD_NOTHING, deadline);
            if (slept != SI_OK && stop_waiting(s, w))
                return slept;
            break;
        }
        case SI_TOLD_LOOK:
            st = take_or_list(s, w);
            break;
        case SI_TOLD_GIVEN:
            st = taken(s, w->cx);
            break;
        default:
            st = SI_BROKEN;
        }
    }
    return st;
}

/* How long the first waiter waits is what decides. mu is held. */
static bool is_due(const si_sync_waiter *w, int64_t now)
{
    return now - w->since >= FAIR_AFTER;
}

static si_ret give_lock(si_sync *s)
{
    uint64_t state = atomic_load_explicit(&s->state, memory_order_relaxed);
    for (;;) {
        if (state & SI_SYNC_BROKEN)
            return SI_BROKEN;
        if (state >> SI_SYNC_SHIFT == 0)
            return SI_EMPTY;
        if (!(state & SI_SYNC_WAITERS)) {
            if (atomic_compare_exchange_weak(&s->state, &state, 0))
                return SI_OK;
            continue;
        }
        si_lock(&s->mu);
        state = atomic_load(&s->state);
        /* Held, with waiters: nobody changes it without mu. */
        if (state & SI_SYNC_WAITERS && state >> SI_SYNC_SHIFT && !(state & SI_SYNC_BROKEN))
            break;
        si_unlock(&s->mu);
    }
    bool give = is_due(s->first, si_now());
    uint64_t next = s->first->next ? SI_SYNC_WAITERS : 0;
    if (give)
        next |= si_sync_tag(s->first->cx);
    atomic_store(&s->state, next);
    si_word *word = tell_first(s, give ? SI_TOLD_GIVEN : SI_TOLD_LOOK);
    si_unlock(&s->mu);
    si_maybe_delay();
    si_futex_wake(word, 1);
    return SI_OK;
}

static si_ret give_permits(si_sync *s, int64_t n)
{
    const int64_t limit = s->limit < 0 ? SI_SYNC_MAX : s->limit;
    uint64_t state = atomic_load_explicit(&s->state, memory_order_relaxed);
    do {
        if (n > limit - (int64_t)(state >> SI_SYNC_SHIFT))
            return SI_FULL;
        if (state & SI_SYNC_WAITERS)
            break;
    } while (!atomic_compare_exchange_weak(&s->state, &state,
                                           state + ((uint64_t)n << SI_SYNC_SHIFT)));
    if (!(state & SI_SYNC_WAITERS))
        return SI_OK;

    /* Those that have waited long get theirs before anybody can take it; the
     * rest is there for whoever comes, and as many are woken to look. */
    si_word *wake[BATCH];
    int n_wake = 0;
    int64_t due = 0, now = si_now();
    si_lock(&s->mu);
    for (si_sync_waiter *w = s->first; w && due < n && due < BATCH && is_due(w, now); w = w->next)
        due++;
    state = atomic_load(&s->state);
    do {
        if (n > limit - (int64_t)(state >> SI_SYNC_SHIFT)) {
            si_unlock(&s->mu);
            return SI_FULL;
        }
    } while (!atomic_compare_exchange_weak(&s->state, &state,
                                           state + ((uint64_t)(n - due) << SI_SYNC_SHIFT)));
    int64_t rest = n;
    while (s->first && rest > 0 && n_wake < BATCH) {
        wake[n_wake] = tell_first(s, n_wake < due ? SI_TOLD_GIVEN : SI_TOLD_LOOK);
        n_wake++;
        rest--;
    }
    for (;;) {
        if (!s->first)
            atomic_fetch_and(&s->state, ~(uint64_t)SI_SYNC_WAITERS);
        bool more = s->first && rest > 0;
        si_unlock(&s->mu);
        si_maybe_delay();
        for (int i = 0; i < n_wake; i++)
            si_futex_wake(wake[i], 1);
        if (!more)
            return SI_OK;
        n_wake = 0;
        si_lock(&s->mu);
        while (s->first && rest > 0 && n_wake < BATCH) {
            wake[n_wake++] = tell_first(s, SI_TOLD_LOOK);
            rest--;
        }
    }
}

si_ret si_sync_give(si_sync *s, si_context *cx, int64_t n)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    if (s->kind == SI_SYNC_SEMAPHORE)
        return give_permits(s, n);
    if (s->kind == SI_SYNC_RLOCK) {
        if (!si_sync_is_mine(s, cx))
            return si_sync_state(s) & SI_SYNC_BROKEN ? SI_BROKEN : SI_EMPTY;
        if (--s->depth)
            return SI_OK;
        atomic_store_explicit(&s->thread, 0, memory_order_relaxed);
    }
    return give_lock(s);
}

/* If that interpreter holds it. */
static void break_lock(si_sync *s, const si_context *cx)
{
    bool broken = false;
    si_word *word;
    do {
        word = NULL;
        si_lock(&s->mu);
        uint64_t state = atomic_load(&s->state);
        while (!broken
               && (state & ~(uint64_t)SI_SYNC_WAITERS) == si_sync_tag(cx))
            broken = atomic_compare_exchange_weak(&s->state, &state,
                                                  si_sync_tag(cx) | SI_SYNC_BROKEN);
        if (broken && s->first)
            word = tell_first(s, SI_TOLD_BROKEN);
        si_unlock(&s->mu);
        if (word)
            si_futex_wake(word, 1);
    } while (word);
}

/* ---- events ----------------------------------------------------------------------------- */

si_ret si_event_set(si_sync *s)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    si_lock(&s->mu);
    bool wake = s->first != NULL;
    if (!atomic_exchange(&s->state, 1))
        tell_everyone(s, SI_TOLD_GIVEN);
    si_unlock(&s->mu);
    if (wake)
        si_futex_wake(&s->epoch, INT32_MAX);
    return SI_OK;
}

si_ret si_event_clear(si_sync *s)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    /* Under mu: waiters are listed only while it is not set. */
    si_lock(&s->mu);
    atomic_store(&s->state, 0);
    si_unlock(&s->mu);
    return SI_OK;
}

/* Sleep until told. Anything else: the reason why not, and it is still listed. */
static si_ret sleep_on_epoch(si_sync *s, si_sync_waiter *w, int64_t deadline)
{
    for (;;) {
        /* Read before `told`, which is written before it is counted up. */
        uint32_t epoch = atomic_load(&s->epoch);
        if (is_told(w))
            return SI_OK;
        si_maybe_delay();
        si_ret st = si_futex_wait(&s->epoch, epoch, deadline);
        if (st != SI_OK && !is_told(w))
            return st;
    }
}

si_ret si_event_wait(si_sync *s, si_sync_waiter *w, int64_t deadline)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    if (si_sync_state(s))
        return SI_OK;
    si_lock(&s->mu);
    uint32_t epoch = atomic_load(&s->epoch);
    /* Set and cleared again, while its thread looked at signals. */
    bool was_set = w->since != 0 && epoch != w->epoch;
    if (atomic_load(&s->state) || was_set) {
        si_unlock(&s->mu);
        return SI_OK;
    }
    if (w->since == 0)
        w->since = si_now();
    w->epoch = epoch;
    list_waiter(s, w);
    si_unlock(&s->mu);
    si_ret st = sleep_on_epoch(s, w, deadline);
    return st == SI_OK || !stop_waiting(s, w) ? SI_OK : st;
}

/* ---- barriers --------------------------------------------------------------------------- */

si_ret si_barrier_arrive(si_sync *s, si_sync_waiter *w, bool act)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    si_ret st = SI_EMPTY;
    si_lock(&s->mu);
    if (s->broken)
        st = SI_BROKEN;
    else if (atomic_load(&s->acting)) {
        /* The round before is not over: stay at the door. */
        w->index = -1;
        list_waiter(s, w);
    }
    else {
        w->index = s->count++;
        w->round = s->round;
        if (s->count < s->limit)
            list_waiter(s, w);
        else if (act) {
            atomic_store(&s->acting, si_sync_tag(w->cx));
            st = SI_FULL;
        }
        else {
            tell_everyone(s, SI_TOLD_GIVEN);
            st = SI_OK;
        }
    }
    si_unlock(&s->mu);
    if (st == SI_OK)
        si_futex_wake(&s->epoch, INT32_MAX);
    /* As with locks: nobody would break it for an interpreter that has ended. */
    if (st == SI_FULL && atomic_load(&w->cx->ended)) {
        (void)si_barrier_break(s, false);
        return SI_BROKEN;
    }
    return st;
}

si_ret si_barrier_wait(si_sync *s, si_sync_waiter *w, bool act, int64_t deadline)
{
    for (;;) {
        si_ret st = sleep_on_epoch(s, w, deadline);
        if (st != SI_OK)
            return st;
        switch (atomic_load_explicit(&w->told, memory_order_acquire)) {
        case SI_TOLD_GIVEN:
            return SI_OK;
        case SI_TOLD_LOOK:
            st = si_barrier_arrive(s, w, act);
            if (st != SI_EMPTY)
                return st;
            break;
        default:
            return SI_BROKEN;
        }
    }
}

si_ret si_barrier_leave(si_sync *s, si_sync_waiter *w, bool in_time)
{
    si_ret st = SI_BROKEN;
    bool wake = false;
    si_lock(&s->mu);
    if (!w->listed) {
        if (atomic_load(&w->told) == SI_TOLD_GIVEN)
            st = SI_OK;
        else if (atomic_load(&w->told) == SI_TOLD_LOOK)
            st = in_time ? SI_EMPTY : SI_INTR;
    }
    else if (!in_time && w->index >= 0 && atomic_load(&s->acting))
        st = SI_FULL;
    else {
        unlist_waiter(s, w);
        if (in_time) {
            st = SI_EMPTY;
            if (w->index >= 0 && !atomic_load(&s->acting)) {
                /* Those that came later move up: no number comes twice. */
                for (si_sync_waiter *later = s->first; later; later = later->next)
                    if (later->index > w->index)
                        later->index--;
                s->count--;
            }
        }
        else {
            wake = s->broken = true;
            tell_everyone(s, SI_TOLD_BROKEN);
        }
    }
    si_unlock(&s->mu);
    if (wake)
        si_futex_wake(&s->epoch, INT32_MAX);
    return st;
}

si_ret si_barrier_open(si_sync *s, si_sync_waiter *w)
{
    si_lock(&s->mu);
    bool open = s->round == w->round && !s->broken;
    if (open)
        tell_everyone(s, SI_TOLD_GIVEN);
    si_unlock(&s->mu);
    if (open)
        si_futex_wake(&s->epoch, INT32_MAX);
    return open ? SI_OK : SI_BROKEN;
}

si_ret si_barrier_break(si_sync *s, bool reset)
{
    if (si_sync_forked(s))
        return SI_FORKED;
    si_lock(&s->mu);
    s->broken = !reset;
    tell_everyone(s, SI_TOLD_BROKEN);
    si_unlock(&s->mu);
    si_futex_wake(&s->epoch, INT32_MAX);
    return SI_OK;
}

int64_t si_barrier_waiting(si_sync *s)
{
    if (si_sync_forked(s))
        return -1;      /* its lock may be taken for ever */
    si_lock(&s->mu);
    int64_t n = s->broken ? -1 : s->count;
    si_unlock(&s->mu);
    return n;
}

bool si_barrier_set_action(si_sync *s, si_msg *m)
{
    si_msg *none = NULL;
    return atomic_compare_exchange_strong(&s->action, &none, m);
}

#include "si_park.h"

/* Guards: what follows, and who gives a parked thread its order. */
static si_mutex park_mu;
/* The one parked last comes first. */
static si_worker *parked;
static int n_parked;
/* -1: not said yet. */
static int limit = -1;
/* Exit of the process will see to parked interpreters; and: it has begun to. */
static bool armed;
static bool closed;

/* It is off the list. As soon as the thread has seen its order and had the
 * mutex, it may free the struct. */
static void order_locked(si_worker *p, si_order order)
{
    if (order != SI_ORDER_SERVE) {
        atomic_store(&p->since, si_now());
        atomic_store(&p->state, SI_W_FINISHING);
    }
    atomic_store_explicit(&p->wake, order, memory_order_release);
    si_futex_wake(&p->wake, 1);
}

static void end_surplus_locked(void)
{
    while (n_parked > 0 && n_parked > limit) {
        si_worker **q = &parked;
        while ((*q)->park_next)
            q = &(*q)->park_next;
        si_worker *oldest = *q;
        *q = NULL;
        n_parked--;
        order_locked(oldest, SI_ORDER_END);
    }
}

void si_park_arm(int default_limit)
{
    si_lock(&park_mu);
    armed = true;
    if (limit < 0)
        limit = default_limit;
    si_unlock(&park_mu);
}

void si_park_set_limit(int n)
{
    si_lock(&park_mu);
    limit = n;
    end_surplus_locked();
    si_unlock(&park_mu);
}

bool si_park_wanted(void)
{
    si_lock(&park_mu);
    bool wanted = armed && !closed && limit > 0;
    si_unlock(&park_mu);
    return wanted;
}

void si_park_add(si_worker *p)
{
    si_lock(&park_mu);
    if (closed)
        order_locked(p, SI_ORDER_END);
    else {
        atomic_store(&p->state, SI_W_PARKED);
        p->park_next = parked;
        parked = p;
        n_parked++;
        end_surplus_locked();
    }
    si_unlock(&park_mu);
}

si_order si_park_wait(si_worker *p)
{
    uint32_t order;
    while ((order = atomic_load_explicit(&p->wake, memory_order_acquire)) == SI_ORDER_NONE)
        (void)si_futex_wait(&p->wake, SI_ORDER_NONE, SI_FOREVER);
    /* Whoever gave the order is done with `p`. */
    si_lock(&park_mu);
    si_unlock(&park_mu);
    return (si_order)order;
}

bool si_park_take(si_worker *w)
{
    si_lock(&park_mu);
    si_worker **q = &parked;
    while (*q && strcmp((*q)->key, w->pool->key) != 0)
        q = &(*q)->park_next;
    si_worker *p = *q;
    if (p) {
        *q = p->park_next;
        n_parked--;
        p->tenant = w;
        order_locked(p, SI_ORDER_SERVE);
    }
    si_unlock(&park_mu);
    return p;
}

void si_park_close(void)
{
    si_lock(&park_mu);
    closed = true;
    while (parked) {
        si_worker *p = parked;
        parked = p->park_next;
        n_parked--;
        order_locked(p, SI_ORDER_EXIT);
    }
    si_unlock(&park_mu);
}

size_t si_park_list(int64_t *interps, int64_t *threads, size_t max)
{
    size_t n = 0;
    si_lock(&park_mu);
    for (si_worker *p = parked; p; p = p->park_next, n++) {
        if (n < max) {
            interps[n] = p->cx->interp_id;
            threads[n] = p->thread_id;
        }
    }
    si_unlock(&park_mu);
    return n;
}

/* The parent's are not there any more. */
void si_park_after_fork(void)
{
    atomic_store(&park_mu.word, 0);
    parked = NULL;
    n_parked = 0;
}

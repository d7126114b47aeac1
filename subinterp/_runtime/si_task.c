#include "si_task.h"
#include "si_channel.h"

static _Atomic uint64_t next_function_id = 1;
_Atomic uint32_t si_functions_retired = 0;

si_function *si_function_new(si_msg *msg, bool by_name)
{
    si_function *f = malloc(sizeof *f);
    if (!f)
        return NULL;
    atomic_init(&f->refs, 1);
    atomic_init(&f->retired, false);
    atomic_init(&f->cost, 0);
    f->id = atomic_fetch_add_explicit(&next_function_id, 1, memory_order_relaxed);
    f->by_name = by_name;
    f->remember = msg->n_parts == 0;
    si_msg_move(&f->msg, msg);
    SI_COUNT(functions, 1);
    return f;
}

void si_function_retire(si_function *f)
{
    atomic_store_explicit(&f->retired, true, memory_order_release);
    atomic_fetch_add_explicit(&si_functions_retired, 1, memory_order_release);
    si_function_release(f);
}

void si_function_release(si_function *f)
{
    if (atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1) {
        si_msg_clear(&f->msg);
        free(f);
        SI_COUNT(functions, -1);
    }
}

si_task *si_task_new(void)
{
    si_task *t = malloc(sizeof *t);
    if (!t)
        return NULL;
    t->node.next = NULL;
    t->node.is_task = true;
    atomic_init(&t->state, SI_PENDING);
    atomic_init(&t->refs, 1);
    t->kind = SI_CALL;
    t->arity = 0;
    t->failed_items = false;
    t->n_items = 0;
    t->generation = si_generation();
    t->function = NULL;
    t->pool = NULL;
    t->cq = NULL;
    t->observer = NULL;
    t->run_ns = 0;
    t->weight = 0;
    t->pushed = 0;
    t->pushed_by = 0;
    t->limit_ns = 0;
    si_msg_init(&t->msg);
    SI_COUNT_HOT(tasks, 1);
    return t;
}

void si_task_free(si_task *t)
{
    if (t->function)
        si_function_release(t->function);
    if (t->cq)
        si_cq_release(t->cq);
    si_msg_clear(&t->msg);
    free(t);
    SI_COUNT_HOT(tasks, -1);
}

void si_task_finish(si_task *t, si_task_state state)
{
    si_maybe_delay();
    uint32_t old = atomic_exchange_explicit(&t->state, state, memory_order_acq_rel);
    if (old & SI_WAITED)
        si_futex_wake(&t->state, INT32_MAX);
    if (old & SI_OBSERVED && si_cq_post(t->cq, &t->node))
        return;
    si_task_release(t);
}

bool si_task_start(si_task *t)
{
    uint32_t word = atomic_load_explicit(&t->state, memory_order_relaxed);
    while ((word & SI_STATE_MASK) == SI_PENDING) {
        /* Release: who sees it RUNNING sees in which worker (si_stop.h). */
        if (atomic_compare_exchange_weak_explicit(&t->state, &word, word | SI_RUNNING,
                memory_order_acq_rel, memory_order_relaxed))
            return true;
    }
    return false;
}

uint32_t si_task_cancel(si_task *t)
{
    uint32_t word = atomic_load_explicit(&t->state, memory_order_acquire);
    while ((word & SI_STATE_MASK) == SI_PENDING) {
        if (atomic_compare_exchange_weak_explicit(&t->state, &word, word | SI_CANCELLED,
                memory_order_acq_rel, memory_order_acquire)) {
            if (word & SI_WAITED)
                si_futex_wake(&t->state, INT32_MAX);
            break;
        }
    }
    return word;
}

bool si_task_orphan(si_task *t, const char *reason)
{
    if (t->generation == si_generation() || SI_IS_FINAL(si_task_word(t)))
        return false;
    /* Not cleared: the parent's thread may have been changing it. */
    si_msg_init(&t->msg);
    (void)si_put(&t->msg, reason, strlen(reason));
    atomic_store(&t->state, SI_LOST);
    return true;
}

uint32_t si_task_observe(si_task *t, si_cq *cq)
{
    if (!t->cq) {
        si_cq_retain(cq);
        t->cq = cq;
    }
    return atomic_fetch_or_explicit(&t->state, SI_OBSERVED, memory_order_acq_rel);
}

si_ret si_task_wait(si_task *t, int64_t deadline, si_spin *spin)
{
    int64_t budget = spin && si_cores > 1 ? si_spin_budget(spin) : 0;
    if (budget > 0) {
        int64_t until = si_now() + budget;
        do {
            for (int i = 0; i < 32; i++) {
                if (SI_IS_FINAL(si_task_word(t))) {
                    si_spin_learn(spin, true);
                    return SI_OK;
                }
                si_relax();
            }
        } while (si_now() < until);
        si_spin_learn(spin, false);
    }
    int64_t slept = si_now();
    for (;;) {
        if (t->generation != si_generation())
            return SI_FORKED;
        uint32_t word = atomic_fetch_or_explicit(&t->state, SI_WAITED, memory_order_acq_rel);
        if (SI_IS_FINAL(word)) {
            /* A short sleep would have been a short spin. */
            if (spin && si_now() - slept < 60000)
                si_spin_learn(spin, true);
            return SI_OK;
        }
        si_ret st = si_futex_wait(&t->state, word | SI_WAITED, deadline);
        if (st != SI_OK)
            return SI_IS_FINAL(si_task_word(t)) ? SI_OK : st;
    }
}

si_cq *si_cq_new(void)
{
    si_cq *q = calloc(1, sizeof *q);
    if (q) {
        atomic_init(&q->refs, 1);
        q->generation = si_generation();
    }
    return q;
}

static void node_drop(si_node *node)
{
    if (node->is_task)
        si_task_release((si_task *)node);
    else
        si_async_release((si_async *)node);
}

void si_cq_release(si_cq *q)
{
    if (atomic_fetch_sub_explicit(&q->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (q->generation == si_generation())
        si_cq_close(q);
    free(q);
}

bool si_cq_post(si_cq *q, si_node *node)
{
    si_lock(&q->mu);
    if (q->closed) {
        si_unlock(&q->mu);
        return false;
    }
    node->next = NULL;
    if (q->tail)
        q->tail->next = node;
    else
        q->head = node;
    q->tail = node;
    atomic_fetch_add(&q->seq, 1);
    bool sleeping = atomic_load(&q->sleepers) > 0;
    /* A reference for the wake: the reader may be done with the queue by then. */
    if (sleeping)
        si_cq_retain(q);
    si_unlock(&q->mu);
    if (sleeping) {
        si_futex_wake(&q->seq, INT32_MAX);
        si_cq_release(q);
    }
    return true;
}

void si_cq_nudge(si_cq *q)
{
    si_lock(&q->mu);
    atomic_fetch_add(&q->seq, 1);
    si_unlock(&q->mu);
    si_futex_wake(&q->seq, INT32_MAX);
}

void si_cq_close(si_cq *q)
{
    if (q->generation != si_generation())
        return;
    si_lock(&q->mu);
    si_node *node = q->head;
    q->head = q->tail = NULL;
    q->closed = true;
    atomic_fetch_add(&q->seq, 1);
    si_unlock(&q->mu);
    si_futex_wake(&q->seq, INT32_MAX);
    while (node) {
        si_node *next = node->next;
        node_drop(node);
        node = next;
    }
}

si_ret si_cq_pop(si_cq *q, si_node **node)
{
    si_lock(&q->mu);
    si_ret st = SI_OK;
    *node = q->head;
    if (q->head) {
        q->head = q->head->next;
        if (!q->head)
            q->tail = NULL;
    }
    else
        st = q->closed ? SI_CLOSED : SI_EMPTY;
    si_unlock(&q->mu);
    return st;
}

bool si_cq_ready(si_cq *q)
{
    si_lock(&q->mu);
    bool ready = q->head || q->closed;
    si_unlock(&q->mu);
    return ready;
}

si_ret si_cq_wait(si_cq *q, int64_t deadline, si_spin *spin)
{
    if (q->generation != si_generation())
        return SI_FORKED;
    uint32_t seq = atomic_load(&q->seq);
    if (si_cq_ready(q))
        return SI_OK;
    int64_t budget = spin && si_cores > 1 ? si_spin_budget(spin) : 0;
    if (budget > 0) {
        int64_t until = si_now() + budget;
        do {
            for (int i = 0; i < 32; i++) {
                if (atomic_load_explicit(&q->seq, memory_order_acquire) != seq) {
                    si_spin_learn(spin, true);
                    return SI_OK;
                }
                si_relax();
            }
        } while (si_now() < until);
        si_spin_learn(spin, false);
    }
    atomic_fetch_add(&q->sleepers, 1);
    si_maybe_delay();
    si_ret st = si_cq_ready(q) ? SI_OK : si_futex_wait(&q->seq, seq, deadline);
    atomic_fetch_sub(&q->sleepers, 1);
    return st;
}

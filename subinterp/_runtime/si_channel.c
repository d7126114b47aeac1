#include "si_channel.h"

#define MAX_SPARE 64

/* Guards: the list of channels, and the decision that a memory count of zero
 * is final. */
static si_mutex channels_mu;
static si_channel *channels;
static uint64_t next_channel_id = 1;

si_channel *si_channel_new(si_channel_kind kind, int64_t maxsize, uint8_t unbound)
{
    si_channel *c = NULL;
    if (posix_memalign((void **)&c, 64, sizeof *c) != 0)
        return NULL;
    memset(c, 0, sizeof *c);
    atomic_init(&c->refs, 1);
    c->generation = si_generation();
    c->kind = kind;
    c->asked = maxsize;
    c->maxsize = maxsize > 0 ? (size_t)maxsize : 0;
    c->unbound = unbound;
    si_spin_init(&c->spin);
    si_lock(&channels_mu);
    c->id = next_channel_id++;
    c->all_next = channels;
    if (channels)
        channels->all_prev = c;
    channels = c;
    si_unlock(&channels_mu);
    SI_COUNT(channels, 1);
    return c;
}

static void free_items(si_item *item)
{
    while (item) {
        si_item *next = item->next;
        si_msg_clear(&item->msg);
        free(item);
        item = next;
    }
}

/* Tell the sender that waits for this item, if any. Lock held: it may go then. */
static void settle(si_item *item, si_receipt_state state)
{
    if (!item->receipt)
        return;
    atomic_store_explicit(&item->receipt->state, state, memory_order_release);
    si_futex_wake(&item->receipt->state, 1);
    item->receipt = NULL;
}

void si_channel_release(si_channel *c)
{
    int refs = atomic_load_explicit(&c->refs, memory_order_relaxed);
    while (refs > 1) {
        if (atomic_compare_exchange_weak_explicit(&c->refs, &refs, refs - 1,
                memory_order_acq_rel, memory_order_relaxed))
            return;
    }
    si_lock(&channels_mu);
    if (atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1) {
        si_unlock(&channels_mu);
        return;
    }
    if (c->all_prev)
        c->all_prev->all_next = c->all_next;
    else if (channels == c)
        channels = c->all_next;
    if (c->all_next)
        c->all_next->all_prev = c->all_prev;
    si_unlock(&channels_mu);
    SI_COUNT(channels, -1);
    if (c->generation == si_generation()) {
        free_items(c->head);
        free_items(c->spare);
        free(c);
    }
}

si_channel *si_channel_find(uint64_t id)
{
    si_lock(&channels_mu);
    si_channel *c = channels;
    while (c && c->id != id)
        c = c->all_next;
    if (c)
        si_channel_retain(c);
    si_unlock(&channels_mu);
    return c;
}

size_t si_channels_list(si_channel_kind kind, uint64_t *ids, size_t max)
{
    size_t n = 0;
    si_lock(&channels_mu);
    for (si_channel *c = channels; c; c = c->all_next) {
        if (c->kind != kind || c->generation != si_generation()
            || atomic_load(&c->handles[SI_SENDER]) == 0
            || atomic_load(&c->handles[SI_RECEIVER]) == 0)
            continue;
        if (n < max)
            ids[n] = c->id;
        n++;
    }
    si_unlock(&channels_mu);
    return n;
}

/* ---- waiters ----------------------------------------------------------------- */

static void list_link(si_channel *c, si_side side, si_link *l)
{
    l->next = NULL;
    l->prev = c->waiting_tail[side];
    if (l->prev)
        l->prev->next = l;
    else
        c->waiting[side] = l;
    c->waiting_tail[side] = l;
    l->listed = true;
}

static void unlist_link(si_channel *c, si_side side, si_link *l)
{
    if (!l->listed)
        return;
    if (l->prev)
        l->prev->next = l->next;
    else
        c->waiting[side] = l->next;
    if (l->next)
        l->next->prev = l->prev;
    else
        c->waiting_tail[side] = l->prev;
    l->listed = false;
}

/* Who is to be woken once the lock is released. */
typedef struct {
    si_word *word;
    si_async *async;
    si_side side;
} wake_up;

/* Tell the first waiter of a side that has not been told elsewhere. Lock held. */
static wake_up tell_one(si_channel *c, si_side side)
{
    si_link *l;
    while ((l = c->waiting[side])) {
        unlist_link(c, side, l);
        uint32_t no = 0;
        /* Read before the waiter is told: then it may go. */
        si_async *async = l->waiter->async;
        if (async)
            atomic_fetch_add_explicit(&async->refs, 1, memory_order_relaxed);
        if (atomic_compare_exchange_strong_explicit(&l->waiter->told, &no, l->index + 1,
                memory_order_acq_rel, memory_order_relaxed))
            return (wake_up){async ? NULL : &l->waiter->told, async, side};
        if (async)
            si_async_release(async);
    }
    return (wake_up){NULL, NULL, side};
}

static void pass_on(si_channel *c, si_side side);

/* The thread's word may be gone by now: waking an unknown address is harmless,
 * every sleeper checks its condition again. */
static void wake(wake_up w)
{
    si_maybe_delay();
    if (w.word)
        si_futex_wake(w.word, 1);
    if (w.async && !si_cq_post(w.async->cq, &w.async->node)) {
        /* Its interpreter is ending: the next one hears of it instead. */
        pass_on(w.async->channel, w.side);
        si_async_release(w.async);
    }
}

static void tell_all(si_channel *c, si_side side)
{
    for (;;) {
        si_lock(&c->mu);
        wake_up w = tell_one(c, side);
        si_unlock(&c->mu);
        if (!w.word && !w.async)
            return;
        wake(w);
    }
}

/* ---- handles ------------------------------------------------------------------- */

si_ret si_channel_add_handle(si_channel *c, si_side side, bool attach)
{
    if (c->generation != si_generation())
        return SI_FORKED;
    si_lock(&c->mu);
    si_ret st = attach && c->handles[side] == 0 ? SI_CLOSED : SI_OK;
    if (st == SI_OK)
        c->handles[side]++;
    si_unlock(&c->mu);
    return st;
}

void si_channel_drop_count(si_channel *c, si_side side)
{
    if (c->generation != si_generation())
        return;
    si_item *dropped = NULL;
    si_lock(&c->mu);
    bool last = --c->handles[side] == 0;
    if (last && side == SI_RECEIVER) {
        /* Nobody can receive these any more. */
        dropped = c->head;
        c->head = c->tail = NULL;
        c->count = 0;
        for (si_item *item = dropped; item; item = item->next)
            settle(item, SI_DROPPED);
    }
    /* Messages may hold the last references to this very channel. */
    si_channel_retain(c);
    si_unlock(&c->mu);
    if (last)
        tell_all(c, side == SI_SENDER ? SI_RECEIVER : SI_SENDER);
    free_items(dropped);
    si_channel_release(c);
}

void si_channel_drop_handle(si_channel *c, si_side side)
{
    si_channel_drop_count(c, side);
    si_channel_release(c);
}

/* ---- sending and receiving ------------------------------------------------------- */

si_ret si_channel_try_send(si_channel *c, si_msg *m, si_sending *how)
{
    if (c->generation != si_generation())
        return SI_FORKED;
    si_lock(&c->mu);
    if (c->handles[SI_RECEIVER] == 0) {
        si_unlock(&c->mu);
        return SI_CLOSED;
    }
    if (c->maxsize && c->count >= c->maxsize) {
        si_unlock(&c->mu);
        return SI_FULL;
    }
    si_item *item = c->spare;
    if (item) {
        c->spare = item->next;
        c->n_spare--;
    }
    else {
        item = malloc(sizeof *item);
        if (!item) {
            si_unlock(&c->mu);
            return SI_NOMEM;
        }
        si_msg_init(&item->msg);
    }
    item->next = NULL;
    item->unbound = how ? how->unbound : SI_UNBOUND_KEEP;
    item->owner = item->unbound ? how->cx->interp_id : -1;
    item->receipt = how ? how->receipt : NULL;
    c->binds |= item->unbound != SI_UNBOUND_KEEP;
    bool bound = item->unbound != SI_UNBOUND_KEEP;
    si_msg_move(&item->msg, m);
    if (c->tail)
        c->tail->next = item;
    else
        c->head = item;
    c->tail = item;
    atomic_store_explicit(&c->count, c->count + 1, memory_order_release);
    wake_up w = tell_one(c, SI_RECEIVER);
    si_unlock(&c->mu);
    if (how)
        how->met = w.word || w.async;
    wake(w);
    /* An abandoned interpreter that still runs: its end has passed. */
    if (bound && atomic_load(&how->cx->ended))
        si_channels_unbind(how->cx->interp_id);
    return SI_OK;
}

si_ret si_channel_try_recv(si_channel *c, si_msg *m)
{
    if (c->generation != si_generation())
        return SI_FORKED;
    if (atomic_load_explicit(&c->count, memory_order_acquire) == 0
        && atomic_load_explicit(&c->handles[SI_SENDER], memory_order_acquire) != 0)
        return SI_EMPTY;
    si_lock(&c->mu);
    si_item *item = c->head;
    if (!item) {
        si_ret st = c->handles[SI_SENDER] == 0 ? SI_CLOSED : SI_EMPTY;
        si_unlock(&c->mu);
        return st;
    }
    c->head = item->next;
    if (!c->head)
        c->tail = NULL;
    atomic_store_explicit(&c->count, c->count - 1, memory_order_release);
    si_msg_move(m, &item->msg);
    settle(item, SI_RECEIVED);
    if (c->n_spare < MAX_SPARE) {
        item->next = c->spare;
        c->spare = item;
        c->n_spare++;
        item = NULL;
    }
    wake_up w = {NULL, NULL, SI_SENDER};
    if (c->maxsize)
        w = tell_one(c, SI_SENDER);
    si_unlock(&c->mu);
    wake(w);
    free(item);
    return SI_OK;
}

si_ret si_channel_await(si_channel *c, si_receipt *receipt, int64_t deadline)
{
    si_ret st = SI_OK;
    while (st == SI_OK
           && atomic_load_explicit(&receipt->state, memory_order_acquire) == SI_IN_CHANNEL)
        st = c->generation == si_generation() ? si_futex_wait(&receipt->state, SI_IN_CHANNEL, deadline)
                                              : SI_FORKED;
    return st;
}

/* Take an item out of the list; `before` is the one before it. Lock held. */
static void unlink_item(si_channel *c, si_item *before, si_item *item)
{
    if (before)
        before->next = item->next;
    else
        c->head = item->next;
    if (c->tail == item)
        c->tail = before;
    atomic_store_explicit(&c->count, c->count - 1, memory_order_release);
}

si_receipt_state si_channel_withdraw(si_channel *c, si_receipt *receipt)
{
    if (c->generation != si_generation())
        return SI_DROPPED;
    wake_up w = {NULL, NULL, SI_SENDER};
    si_lock(&c->mu);
    si_item *before = NULL, *item = c->head;
    while (item && item->receipt != receipt) {
        before = item;
        item = item->next;
    }
    if (item) {
        unlink_item(c, before, item);
        item->next = NULL;
        if (c->maxsize)
            w = tell_one(c, SI_SENDER);
    }
    si_unlock(&c->mu);
    wake(w);
    free_items(item);
    return (si_receipt_state)atomic_load(&receipt->state);
}

/* ---- the end of a sender's interpreter ------------------------------------------- */

/* What was in the channel, to be freed without the lock. */
static si_item *unbind(si_channel *c, int64_t owner)
{
    si_item *removed = NULL, *before = NULL;
    si_lock(&c->mu);
    for (si_item *item = c->binds ? c->head : NULL, *next; item; item = next) {
        next = item->next;
        if (item->unbound == SI_UNBOUND_KEEP || item->owner != owner) {
            before = item;
            continue;
        }
        si_item *out = item;
        if (item->unbound == SI_UNBOUND_REMOVE) {
            unlink_item(c, before, item);
            settle(item, SI_DROPPED);
        }
        else {
            /* Without memory for it the message stays in the channel as it was. */
            out = malloc(sizeof *out);
            if (out) {
                si_msg_init(&out->msg);
                si_msg_move(&out->msg, &item->msg);
                item->msg.data[0] = (char)item->unbound;
                item->msg.len = 1;
                item->msg.format = SI_FMT_LOST;
            }
            item->unbound = SI_UNBOUND_KEEP;
            before = item;
        }
        if (out) {
            out->next = removed;
            removed = out;
        }
    }
    si_unlock(&c->mu);
    return removed;
}

void si_channels_unbind(int64_t interp_id)
{
    si_lock(&channels_mu);
    si_channel *c = channels;
    if (c)
        si_channel_retain(c);
    si_unlock(&channels_mu);
    while (c) {
        if (c->generation == si_generation()) {
            si_item *removed = unbind(c, interp_id);
            if (removed && c->maxsize)
                tell_all(c, SI_SENDER);
            free_items(removed);
        }
        /* What is held stays in the list, and with it the way to the next. */
        si_lock(&channels_mu);
        si_channel *next = c->all_next;
        if (next)
            si_channel_retain(next);
        si_unlock(&channels_mu);
        si_channel_release(c);
        c = next;
    }
}

/* What a waiter of that side waits for is there. Lock held. */
static bool ready_locked(si_channel *c, si_side side)
{
    if (side == SI_RECEIVER)
        return c->count > 0 || c->handles[SI_SENDER] == 0;
    return c->handles[SI_RECEIVER] == 0 || !c->maxsize || c->count < c->maxsize;
}

/* A waiter that was told and takes nothing passes it on. */
static void pass_on(si_channel *c, si_side side)
{
    si_lock(&c->mu);
    wake_up w = {NULL, NULL, SI_SENDER};
    if (ready_locked(c, side))
        w = tell_one(c, side);
    si_unlock(&c->mu);
    wake(w);
}

bool si_channel_spin(si_channel *c)
{
    int64_t budget = si_cores > 1 ? si_spin_budget(&c->spin) : 0;
    if (budget <= 0)
        return false;
    int64_t until = si_now() + budget;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(&c->count, memory_order_relaxed)) {
                si_spin_learn(&c->spin, true);
                return true;
            }
            si_relax();
        }
    } while (si_now() < until);
    si_spin_learn(&c->spin, false);
    return false;
}

void si_channel_tell_side(si_channel *c, si_side side)
{
    if (c->generation == si_generation())
        tell_all(c, side);
}

si_ret si_channel_wait(si_handle *h, int64_t deadline)
{
    si_channel *c = h->channel;
    si_side side = h->side;
    if (c->generation != si_generation())
        return SI_FORKED;
    si_waiter w = {.told = 0, .async = NULL};
    si_link l = {.waiter = &w, .index = 0};
    int64_t slept = si_now();
    si_lock(&c->mu);
    /* The handle under the lock: who gives it up tells the waiters after. */
    if (ready_locked(c, side) || !si_handle_counted(h)) {
        si_unlock(&c->mu);
        return SI_OK;
    }
    list_link(c, side, &l);
    si_unlock(&c->mu);
    si_maybe_delay();
    si_ret st = SI_OK;
    while (st == SI_OK && atomic_load_explicit(&w.told, memory_order_acquire) == 0)
        st = si_futex_wait(&w.told, 0, deadline);
    si_lock(&c->mu);
    unlist_link(c, side, &l);
    si_unlock(&c->mu);
    if (atomic_load_explicit(&w.told, memory_order_acquire)) {
        /* Or it will not look: its interpreter gave the handle up meanwhile. */
        if (st != SI_OK || !si_handle_counted(h))
            pass_on(c, side);
        else if (si_now() - slept < 60000)
            si_spin_learn(&c->spin, true);
    }
    return st;
}

si_ret si_channel_select(si_handle **hs, si_link *links, uint32_t n, int64_t deadline)
{
    si_waiter w = {.told = 0, .async = NULL};
    bool ready = false;
    uint32_t listed = 0;
    for (; listed < n && !ready; listed++) {
        si_channel *c = hs[listed]->channel;
        if (c->generation != si_generation()) {
            ready = true; /* the caller's next try says so */
            break;
        }
        links[listed] = (si_link){.waiter = &w, .index = listed};
        si_lock(&c->mu);
        if (ready_locked(c, SI_RECEIVER) || !si_handle_counted(hs[listed]))
            ready = true;
        else
            list_link(c, SI_RECEIVER, &links[listed]);
        si_unlock(&c->mu);
    }
    si_ret st = SI_OK;
    while (!ready && st == SI_OK && atomic_load_explicit(&w.told, memory_order_acquire) == 0)
        st = si_futex_wait(&w.told, 0, deadline);
    for (uint32_t i = 0; i < listed; i++) {
        si_channel *c = hs[i]->channel;
        si_lock(&c->mu);
        unlist_link(c, SI_RECEIVER, &links[i]);
        si_unlock(&c->mu);
    }
    /* The caller tries all channels in an order of its own, and may take from
     * another one: whoever waits where we were told must hear of it. */
    uint32_t told = atomic_load_explicit(&w.told, memory_order_acquire);
    if (told)
        pass_on(hs[told - 1]->channel, SI_RECEIVER);
    return told ? SI_OK : st;
}

/* ---- coroutines -------------------------------------------------------------------- */

si_async *si_async_new(si_channel *c, si_cq *cq)
{
    si_async *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->node.is_task = false;
    atomic_init(&a->refs, 1);
    a->waiter.async = a;
    a->link.waiter = &a->waiter;
    si_channel_retain(c);
    a->channel = c;
    si_cq_retain(cq);
    a->cq = cq;
    return a;
}

void si_async_release(si_async *a)
{
    if (atomic_fetch_sub_explicit(&a->refs, 1, memory_order_acq_rel) != 1)
        return;
    si_cq_release(a->cq);
    si_channel_release(a->channel);
    free(a);
}

si_ret si_async_register(si_async *a, si_handle *h)
{
    si_channel *c = a->channel;
    if (c->generation != si_generation())
        return SI_FORKED;
    atomic_store(&a->waiter.told, 0);
    si_lock(&c->mu);
    bool ready = ready_locked(c, h->side) || !si_handle_counted(h);
    if (!ready)
        list_link(c, h->side, &a->link);
    si_unlock(&c->mu);
    return ready ? SI_EMPTY : SI_OK;
}

void si_async_cancel(si_async *a, si_side side)
{
    si_channel *c = a->channel;
    if (c->generation != si_generation())
        return;
    si_lock(&c->mu);
    unlist_link(c, side, &a->link);
    si_unlock(&c->mu);
    if (atomic_load(&a->waiter.told))
        pass_on(c, side);
}

void si_async_pass_on(si_async *a)
{
    if (a->channel->generation == si_generation())
        pass_on(a->channel, SI_RECEIVER);
}

void si_channels_after_fork(void)
{
    atomic_store(&channels_mu.word, 0);
}

/* si_channel.h: queues of messages between any threads of any interpreters.
 *
 * A channel is a list of messages under one lock, and two lists of waiters.
 * A sender that finds a waiting receiver takes it off the list, marks its
 * word and wakes it (and the other way round for room in a bounded channel).
 * A waiter that was told but goes away without taking anything (its deadline
 * passed, select found another channel first) tells the next one, so that a
 * message is never there while everybody sleeps. Receivers look for a short
 * while before they enter the list; while they look, a send is no more than
 * a few stores.
 *
 * After: crossbeam-channel (waker lists, select by registering everywhere),
 * trio (memory channels: one object an end, closing by count).
 *
 * A channel is closed for sending when no sending handle is left, and for
 * receiving when no receiving handle is left. Handles are counted in Python
 * objects (through their interpreter's ledger) and in messages under way.
 *
 * A message may be bound to its sender's interpreter (queues after PEP 734):
 * when that ends, it is removed, or what is received says that it is lost. Its
 * sender may wait until it is received (channels after PEP 554). */
#ifndef SI_CHANNEL_H
#define SI_CHANNEL_H

#include "si_context.h"
#include "si_message.h"
#include "si_task.h"

/* What becomes of a message whose sender's interpreter ends. */
typedef enum {
    SI_UNBOUND_KEEP = 0,    /* nothing */
    SI_UNBOUND_REMOVE,
    SI_UNBOUND_ERROR,       /* whoever receives it gets an exception */
    SI_UNBOUND_REPLACE,     /* ... gets a placeholder */
} si_unbound;

/* A sender that waits until its message was received. The word outlives the
 * message in the channel: its owner withdraws it before it goes. */
typedef struct si_receipt {
    si_word state;              /* si_receipt_state; written under the channel's lock */
} si_receipt;

typedef enum { SI_IN_CHANNEL = 0, SI_RECEIVED, SI_DROPPED } si_receipt_state;

/* How a message is sent; NULL: it is bound to nothing, and nobody waits. */
typedef struct {
    si_context *cx;             /* whose interpreter it is bound to */
    uint8_t unbound;            /* si_unbound */
    si_receipt *receipt;        /* NULL: its sender does not wait */
    bool met;                   /* set: a receiver was asleep, and has been woken */
} si_sending;

typedef struct si_item {
    struct si_item *next;
    si_msg msg;
    int64_t owner;              /* id of the interpreter it is bound to */
    uint8_t unbound;            /* si_unbound */
    si_receipt *receipt;        /* borrowed, or NULL */
} si_item;

/* What a channel is to Python. */
typedef enum { SI_KIND_CHANNEL = 0, SI_KIND_QUEUE, SI_KIND_CHANNEL_554 } si_channel_kind;

/* Somebody who waits: a thread (asleep on `word`) or a coroutine (told by a
 * post). told: index of the link it was told by, plus one; 0: not yet. It is
 * changed under the lock of the channel that tells, by compare-and-swap. */
typedef struct si_waiter {
    si_word told;
    struct si_async *async;     /* NULL: a thread */
} si_waiter;

/* A waiter's place in one channel's list; guarded by the channel's lock. */
typedef struct si_link {
    struct si_link *prev, *next;
    si_waiter *waiter;
    uint32_t index;
    bool listed;
} si_link;

struct si_channel {
    _Atomic int refs;           /* memory: Python objects, messages, waits under way */
    uint64_t id;
    uint32_t generation;
    size_t maxsize;             /* 0: unbounded; constant, as the next three are */
    si_channel_kind kind;
    int64_t asked;              /* the maximum size as its maker gave it, for queues */
    uint8_t unbound;            /* si_unbound of messages that do not say */
    struct si_channel *all_next, *all_prev; /* guarded by channels_mu */

    _Alignas(64) si_mutex mu;   /* guards the rest, except spin */
    si_item *head, *tail;
    si_item *spare;             /* emptied items for the next sends */
    int n_spare;
    bool binds;                 /* there have been bound messages */
    _Atomic uint32_t count;     /* messages; receivers look at it without the lock */
    _Atomic int handles[2];     /* by si_side; the same */
    si_link *waiting[2], *waiting_tail[2];  /* by the side that waits */
    si_spin spin;
};

/* A coroutine that waits. refs: its owner, and a post under way. */
typedef struct si_async {
    si_node node;
    _Atomic int refs;
    si_waiter waiter;
    si_link link;
    si_channel *channel;        /* one memory reference */
    si_cq *cq;                  /* one reference: where to post */
    void *owner;                /* Python object of the waiting interpreter, its lock */
} si_async;

/* One memory reference, no handles. */
si_channel *si_channel_new(si_channel_kind kind, int64_t maxsize, uint8_t unbound);
si_channel *si_channel_find(uint64_t id);       /* a memory reference, or NULL */
static inline void si_channel_retain(si_channel *c)
{
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
}
void si_channel_release(si_channel *c);

/* Count one more handle. attach: fails (SI_CLOSED) if the side has none left,
 * since closing is final. */
si_ret si_channel_add_handle(si_channel *c, si_side side, bool attach);
/* One handle less; at none the channel closes that way. */
void si_channel_drop_count(si_channel *c, si_side side);
/* A message's handle: a count and a memory reference. */
void si_channel_drop_handle(si_channel *c, si_side side);

/* Ids of the channels of a kind with handles on both sides, newest first: up to
 * `max`; returns how many there are. */
size_t si_channels_list(si_channel_kind kind, uint64_t *ids, size_t max);

/* Take over the message's content. SI_OK; SI_FULL, SI_CLOSED, SI_FORKED,
 * SI_NOMEM leave it with the caller. */
si_ret si_channel_try_send(si_channel *c, si_msg *m, si_sending *how);
/* Wait for the message of this receipt. SI_OK: see its state; SI_TIMEOUT, SI_INTR,
 * SI_FORKED: it is to be withdrawn, or waited for again. */
si_ret si_channel_await(si_channel *c, si_receipt *receipt, int64_t deadline);
/* Take the message back, if nobody has received it. Afterwards the receipt is its
 * owner's again, and its state final: SI_IN_CHANNEL if it was taken back. */
si_receipt_state si_channel_withdraw(si_channel *c, si_receipt *receipt);
/* The interpreter has ended: what it sent and nobody has received is unbound. */
void si_channels_unbind(int64_t interp_id);
/* SI_OK moves the first message into `m` (empty). SI_EMPTY, SI_CLOSED, SI_FORKED. */
si_ret si_channel_try_recv(si_channel *c, si_msg *m);
/* Wait for room or for a message, by the handle's side. SI_OK: try again (also
 * if the handle was given up meanwhile); SI_TIMEOUT, SI_INTR, SI_FORKED. */
si_ret si_channel_wait(si_handle *h, int64_t deadline);
/* Make every waiter of that side look again: a handle was given up. */
void si_channel_tell_side(si_channel *c, si_side side);
/* Look for a short while for a message; true: there may be one. */
bool si_channel_spin(si_channel *c);

/* Wait until one of the channels may have a message, is closed, or its handle
 * was given up. */
si_ret si_channel_select(si_handle **handles, si_link *links, uint32_t n, int64_t deadline);

/* Register a coroutine that waits through `h`. SI_OK: registered (one more reference);
 * SI_EMPTY: there is something already, try again. */
si_ret si_async_register(si_async *a, si_handle *h);
/* Take it back; if it was told meanwhile, the next waiter is told. */
void si_async_cancel(si_async *a, si_side side);
si_async *si_async_new(si_channel *c, si_cq *cq);
void si_async_release(si_async *a);
/* It was told but will not look: tell the next receiver. */
void si_async_pass_on(si_async *a);

static inline void si_handle_init(si_handle *h, si_channel *c, si_side side)
{
    h->prev = h->next = NULL;
    h->channel = c;
    h->side = side;
    atomic_init(&h->counted, true);
}

static inline bool si_handle_counted(si_handle *h)
{
    return atomic_load_explicit(&h->counted, memory_order_relaxed);
}

/* True for whoever may give the handle's count up. */
static inline bool si_handle_claim_drop(si_handle *h)
{
    return atomic_exchange(&h->counted, false);
}

static inline int si_channel_size(si_channel *c)
{
    return (int)atomic_load_explicit(&c->count, memory_order_relaxed);
}

static inline bool si_channel_open(si_channel *c, si_side side)
{
    return c->generation == si_generation()
           && atomic_load_explicit(&c->handles[side], memory_order_relaxed) > 0;
}

void si_channels_after_fork(void);

#endif

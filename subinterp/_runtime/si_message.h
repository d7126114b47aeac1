/* si_message.h: a value in transit.
 *
 * A message belongs to no interpreter: its bytes come from malloc, so it
 * outlives the interpreter that made it and may be freed by any thread. It is
 * owned by exactly one holder at a time (a task, a queue, a decoder), so it
 * needs no lock and no count of its own; what it carries (blocks of memory,
 * channel handles, shared buffers) is counted by the thing carried.
 *
 * Small values live in `inline_`, so that an ordinary task costs one malloc
 * in all. */
#ifndef SI_MESSAGE_H
#define SI_MESSAGE_H

#include <stdlib.h>
#include <string.h>

#include "si_base.h"

#define SI_INLINE 96
/* Bytes from this size on travel in a block of their own that the receiver
 * takes over: one copy in all. */
#define SI_BIG 65536

/* A piece of memory out of band: an object's buffer, copied once by the
 * sender; the receiver's objects use it in place. refs: atomic. */
typedef struct {
    _Atomic int refs;
    bool readonly;
    size_t size;
    size_t capacity;    /* of the memory, for si_spare_free */
    char *data;
} si_block;

si_block *si_block_new(size_t size);
static inline void si_block_retain(si_block *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
}
void si_block_release(si_block *b);

/* The memory of a SharedBuffer: one block, the same in every interpreter.
 * refs counts the Python objects and messages that hold it. All of them are
 * listed, so that a plain pickle can name one by its id (si_shared_find), and
 * so that memory can be recognised by its address, whatever object it is seen
 * through (si_shared_at). The list holds no count and is guarded by registry_mu. */
typedef struct {
    _Atomic int refs;
    uint64_t id;
    size_t size;
    char *data;
} si_shared;

si_shared *si_shared_new(size_t size);      /* zeroed; NULL: no memory */
si_shared *si_shared_find(uint64_t id);     /* a new reference, or NULL */
/* The block that holds all of these bytes: a new reference, or NULL. The
 * caller keeps them alive meanwhile. */
si_shared *si_shared_at(const void *p, size_t n);
static inline void si_shared_retain(si_shared *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}
void si_shared_release(si_shared *s);

typedef enum {
    SI_PART_NONE = 0,   /* taken by the decoder */
    SI_PART_BYTES,      /* PyMem_RawMalloc block laid out as a bytes object; n is its length */
    SI_PART_BLOCK,      /* si_block */
    SI_PART_SHARED,     /* si_shared, one reference */
    SI_PART_VIEW,       /* si_shared, one reference: `n` bytes of it from `start` on */
    SI_PART_SENDER,     /* si_channel, one sending handle */
    SI_PART_RECEIVER,   /* si_channel, one receiving handle */
    SI_PART_POOL,       /* si_pool, one reference */
    SI_PART_SYNC,       /* si_sync, one reference */
    SI_PART_MSG,        /* si_msg, from malloc: a value of its own */
} si_part_kind;

typedef struct {
    si_part_kind kind;
    size_t n;
    void *ptr;
    size_t start;           /* SI_PART_VIEW only */
} si_part;

/* How `data` reads. */
typedef enum {
    SI_FMT_NONE = 0,    /* no value */
    SI_FMT_FAST,        /* the codec's own form */
    SI_FMT_PICKLE,      /* a pickle, buffers and handles in parts */
    SI_FMT_LOST,        /* its sender's interpreter has ended: one byte, an si_unbound */
} si_format;

typedef struct {
    char *data;             /* inline_, or malloc */
    size_t len, cap;
    si_part *parts;
    uint32_t n_parts, cap_parts;
    uint8_t format;         /* si_format */
    char inline_[SI_INLINE];
} si_msg;

static inline void si_msg_init(si_msg *m)
{
    m->data = m->inline_;
    m->len = 0;
    m->cap = SI_INLINE;
    m->parts = NULL;
    m->n_parts = m->cap_parts = 0;
    m->format = SI_FMT_NONE;
}

void si_msg_clear_slow(si_msg *m);

/* Free what the message owns, give up what it carries; empty afterwards. */
static inline void si_msg_clear(si_msg *m)
{
    if (m->data != m->inline_ || m->parts)
        si_msg_clear_slow(m);
    m->len = 0;
    m->format = SI_FMT_NONE;
}

/* Cut back to an earlier length, dropping the parts added since. */
void si_msg_cut(si_msg *m, size_t len, uint32_t n_parts);
/* Move the content; `to` must be empty, `from` is empty afterwards. */
void si_msg_move(si_msg *to, si_msg *from);

bool si_msg_grow(si_msg *m, size_t extra);

static inline bool si_reserve(si_msg *m, size_t extra)
{
    return m->cap - m->len >= extra || si_msg_grow(m, extra);
}

static inline bool si_put(si_msg *m, const void *p, size_t n)
{
    if (!si_reserve(m, n))
        return false;
    memcpy(m->data + m->len, p, n);
    m->len += n;
    return true;
}

/* Takes over `ptr`; on false (no memory) the caller keeps it. */
bool si_msg_part(si_msg *m, si_part_kind kind, void *ptr, size_t n);
void si_part_drop(si_part *part);
/* Bytes the message holds, parts included: for bounds on what is in flight. */
size_t si_msg_weight(const si_msg *m);

#endif

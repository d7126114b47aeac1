/* si_codec.h: Python values to messages and back, for the plain cases.
 *
 * Most tasks carry numbers, strings and small containers of them. For these a
 * byte a type and the raw value is several times faster than pickle, touches
 * no module state and runs no Python code (so nothing can change under it).
 * Anything else answers SI_NOTFAST and goes through the general encoder
 * (pickle protocol 5, then cloudpickle; see _core.pyx and _pickling.py).
 *
 * What pickle promises is kept: exact types only; an object that occurs twice
 * in a value must come back as one object, so a mutable container that
 * somebody else also holds is remembered, and meeting it again is SI_NOTFAST.
 * (One reference means that only its parent holds it: it cannot recur.)
 *
 * All functions hold the lock of the interpreter the objects belong to. */
#ifndef SI_CODEC_H
#define SI_CODEC_H

#include "si_compat.h"
#include "si_message.h"

/* What one value's encoding remembers; on the stack of the encoder. */
typedef struct {
    int depth;
    int n_seen, n_shared_tuples;
    unsigned n_long;
    PyObject *seen[32];     /* lists and dicts with other holders; borrowed */
    PyObject *longs[8];     /* the last long strings; borrowed */
} si_encoder;

static inline void si_encoder_init(si_encoder *e)
{
    e->depth = e->n_seen = e->n_shared_tuples = 0;
    e->n_long = 0;
}

/* Append one value. SI_OK, SI_NOTFAST (the caller cuts the message back) or SI_NOMEM. */
si_ret si_encode(si_encoder *e, si_msg *m, PyObject *obj);

typedef struct {
    const char *p, *end;
    si_msg *m;
    bool keep;      /* copy large bytes instead of taking them over */
} si_reader;

static inline void si_reader_init(si_reader *r, si_msg *m)
{
    r->p = m->data;
    r->end = m->data + m->len;
    r->m = m;
    r->keep = false;
}

/* The next value: a new reference, or NULL with an exception set. Large bytes
 * are taken over from the message, so a message is decoded once. */
PyObject *si_decode(si_reader *r);

static inline bool si_get_u32(si_reader *r, uint32_t *v)
{
    if (r->end - r->p < 4)
        return false;
    memcpy(v, r->p, 4);
    r->p += 4;
    return true;
}

static inline bool si_put_u32(si_msg *m, uint32_t v)
{
    return si_put(m, &v, 4);
}

/* A large bytes object's block: laid out as the object, so that the receiver
 * makes the object in place. NULL: no memory. */
void *si_bytes_block(const char *data, size_t n);
PyObject *si_bytes_adopt(void *block, size_t n);

#endif

/* si_layout.h: where the running Python keeps what is looked at from outside.
 *
 * Layouts differ even between patch releases (3.13.0 and 3.13.18), so nothing of
 * the headers this was built with is believed by itself. Every Python since 3.13
 * carries a table of offsets at the start of _PyRuntime, for debuggers. An offset
 * is used if the table is recognised and the place holds, at the first load, what
 * the public API says should be there: the main interpreter, this thread's
 * identity, this thread as holder of the lock. Two structures are looked into
 * further than the table goes, the lock and the collector's: only if all that the
 * table says of them is as in the headers, and their values (the switch interval,
 * the thresholds) are as well. What cannot be confirmed is unknown. */
#ifndef SI_LAYOUT_H
#define SI_LAYOUT_H

#include "si_compat.h"
#include "si_fields.h"

#include <sched.h>

/* Offsets, each of them SI_UNKNOWN if it could not be confirmed. */
typedef struct {
    size_t list;            /* in the runtime: the newest interpreter. The list's mutex stands before it */
    size_t finalizing;      /* in the runtime: the thread that ends the process */
    size_t next, id;        /* in an interpreter */
    size_t threads;         /* ... its newest thread state */
    size_t lock;            /* ... the lock in use, a pointer */
    size_t own_lock;        /* ... room for its own */
    size_t collector;       /* ... the garbage collector's structure */
    size_t thread_next, thread_ident, thread_native;    /* in a thread state */
    size_t thread_waits;    /* ... it waits for the lock; since 3.15 */
    size_t locked, holder;  /* in a lock */
    size_t interval, switches, lock_size;   /* ... beyond the table */
    size_t collecting, enabled, generation[3];  /* in a collector's structure; the last ones beyond
                               the table */
    size_t headers;         /* 0: what the headers say of all structures holds here */
} si_layout;

#define SI_LAYOUT_N (sizeof(si_layout) / sizeof(size_t))
extern const char *const si_layout_names[SI_LAYOUT_N];  /* of the fields above, in their order */

/* Read a table (the runtime's own, or a changed copy of it) and confirm what it
 * says. ts: the calling thread's, attached. */
void si_layout_read(si_layout *l, const void *table, PyThreadState *ts);

/* Where the value of a field is, in an interpreter whose lock is held; NULL: not known. */
const void *si_field_at(const si_layout *l, const si_field *f, PyInterpreterState *interp);

/* The running Python's; constant. Read once, by the first load of the library. */
void si_layout_init(PyThreadState *ts);
const si_layout *si_runtime_layout(void);

#define SI_AT(type, base, offset) (*(type *)((char *)(base) + (offset)))

/* No version's lock is larger. What lies behind it is nothing that threads wait for. */
#define SI_MOST_OF_LOCK 512

/* Of what other threads may be changing. */
#define SI_PEEK(type, base, offset) __atomic_load_n(&SI_AT(type, base, offset), __ATOMIC_RELAXED)

static inline bool si_knows(size_t offset)
{
    return offset != SI_UNKNOWN;
}

/* Guards the lists of interpreters and of their threads. PyMutex_Lock is for threads that
 * hold no interpreter's lock only: a thread that does would let it go while it waits, and
 * might wait for it again with the mutex. */
static inline PyMutex *si_list_mutex(const si_layout *l)
{
    return (PyMutex *)(_PyRuntime + l->list - 8);
}

/* The same for a thread that keeps its interpreter's lock, as CPython takes the mutex
 * itself: whoever has it needs no such lock to give it back. */
static inline void si_list_lock_attached(const si_layout *l)
{
    uint8_t *bits = &si_list_mutex(l)->_bits, free_ = 0;
    while (!__atomic_compare_exchange_n(bits, &free_, 1, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
        free_ = 0;
        sched_yield();
    }
}

#endif

/* si_gate.h: the lock API, answered for one interpreter.
 *
 * PyGILState_Ensure takes no argument. In a thread that Python does not know
 * it enters the main interpreter, and there is no way to tell it otherwise: an
 * I/O thread that a worker's copy of an extension has started would run the
 * worker's objects under the wrong lock, with the wrong allocator. But a
 * private copy belongs to one interpreter. So its imports of these functions
 * are pointed at small pieces of machine code, made for that interpreter, that
 * pass its gate on to the functions below.
 *
 * The gate is also what ends: si_gate_close lets no further thread in and waits
 * for those inside. A thread that comes later is held for ever, as CPython does
 * with threads that come after its finalization: its memory, its C++ objects
 * and its locks are left as they are, and it runs nothing that is gone.
 *
 * Turned down: a wrapper library that the copies would link to (the name to
 * resolve is the process's, the interpreter is not); a table of prepared
 * functions (a number of interpreters that nobody can choose well). */
#ifndef SI_GATE_H
#define SI_GATE_H

#include "si_compat.h"
#include "si_base.h"

/* One an interpreter that may load private copies. Never freed once code of one
 * knows it: its threads may knock at any time until the process ends. */
typedef struct si_gate {
    PyInterpreterState *interp; /* not looked into once closed; constant */
    si_word inside;             /* foreign threads between Ensure and its Release; slept on.
                                   Sequentially consistent with `closed`: whoever enters counts
                                   itself first and looks then, the closer the other way round */
    _Atomic bool closed;
    unsigned char *code;        /* the entrances; constant */
    bool handed_out;            /* code knows it; written under the interpreter's lock */
} si_gate;

/* NULL if entrances can be made in this process; else why not (constant text). */
const char *si_gate_unsupported(void);
/* NULL: no; *why says why (constant text). */
si_gate *si_gate_new(PyInterpreterState *interp, const char **why);
/* Nobody but the caller uses it; nothing happens if code knows it. */
void si_gate_free(si_gate *g);
/* Let no foreign thread in any more; wait for those inside. Called without the
 * interpreter's lock. SI_OK, or SI_TIMEOUT: some are inside, and the
 * interpreter must not be ended. */
si_ret si_gate_close(si_gate *g, int64_t deadline);

/* What ctypes hands to C as a callback is a closure of libffi, which calls a
 * function of _ctypes with its thunk object. Where _ctypes is not a copy (it may
 * be built into Python), that function would enter the main interpreter in a
 * foreign thread; so the closure is made to pass the gate first. `thunk` is the
 * object, `entry` the callback's address, which proves that it was understood.
 * A block to be freed after the thunk, or NULL: *known says whether memory ran out
 * or this is not what we know. */
typedef struct si_callback si_callback;
si_callback *si_gate_callback(si_gate *g, void *thunk, void *entry, bool *known);

/* The entrance that stands for the function of that name, or NULL. Whoever
 * lets code have it calls si_gate_hand_out before. */
void *si_gate_entrance(const si_gate *g, const char *name);
void si_gate_hand_out(si_gate *g);

#endif

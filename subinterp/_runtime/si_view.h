/* si_view.h: looking at the runtime: every interpreter, thread state and lock of
 * the process.
 *
 * Two ways, for two kinds of facts:
 * - What lies in plain fields of CPython's structures is read by si_look, under the
 *   mutex that guards the lists of interpreters and thread states: CPython takes
 *   either off its list under that mutex before it frees it. Nothing is allocated
 *   meanwhile, no lock of an interpreter is held, and what another thread changes
 *   is read as it is at that instant.
 * - What only an interpreter itself knows (its modules, what its threads run) it
 *   says itself: a pending call, or its idle worker, makes a report under its lock
 *   (si_answer). One pending call is on its way to an interpreter at most, whoever
 *   asks. An interpreter that does not come by does not answer; who asked stops
 *   waiting, and marks the question.
 *
 * Interpreters that have not loaded the library cannot be asked: nothing would keep
 * CPython from freeing one while the call is added, which takes the lists' mutex
 * itself. */
#ifndef SI_VIEW_H
#define SI_VIEW_H

#include "si_context.h"
#include "si_layout.h"
#include "si_message.h"

/* One interpreter. Numbers are -1 where they are not known. */
typedef struct {
    int64_t id;
    int64_t whence;             /* CPython's number of who made it */
    int ready, finalizing;
    int own_lock, own_allocator;
    int allow_fork, allow_exec, allow_threads, allow_daemon_threads, check_extensions;
    uintptr_t lock, own;        /* address of the lock in use, and of room for its own; compared,
                                   never followed; 0: none yet, or not known */
    int locked;
    uintptr_t holder;           /* address of the thread state that holds it, as of the same moment
                                   for all that share it; compared, never followed */
    int64_t switches, interval; /* of the lock in use; the interval in microseconds */
    int gc_enabled, gc_collecting;
    int gc_threshold[3], gc_count[3];
    size_t first_thread, n_threads;     /* among the threads; -1: not known */
} si_interp_view;

/* One thread state. */
typedef struct {
    uint64_t ident;             /* as threading.get_ident has it; 0: no thread runs it yet */
    int64_t native;
    int holds, waits;           /* its interpreter's lock; -1: not known */
} si_thread_view;

/* Look at everything: up to `max` of each; how many there are of each goes to
 * `n_interps` and `n_threads`. False: the layout does not tell. Called without any
 * interpreter's lock. */
bool si_look(const si_layout *l, si_interp_view *interps, size_t max_interps, size_t *n_interps,
             si_thread_view *threads, size_t max_threads, size_t *n_threads);

/* ---- asking ------------------------------------------------------------------- */

typedef enum { SI_ASK_OPEN = 0, SI_ASK_ANSWERED, SI_ASK_FAILED, SI_ASK_GIVEN_UP } si_ask_state;

/* One question to one interpreter. refs: who asks, and the interpreter's list.
 * next: the list's. state: atomic; OPEN to one of the first two by whoever takes it
 * off the list, to the last by who asked; slept on. answer: written before ANSWERED,
 * by the interpreter, then the asker's. */
typedef struct si_ask {
    _Atomic int refs;
    struct si_ask *next;
    si_word state;
    si_msg answer;
} si_ask;

static inline bool si_is_asked(si_context *cx)
{
    return atomic_load_explicit(&cx->asks, memory_order_relaxed) != NULL;
}

/* Ask an interpreter; NULL: there is none that could answer, or no memory. Called
 * without any interpreter's lock. */
si_ask *si_ask_new(int64_t interp_id);
/* SI_OK: it is answered, or will not be. SI_TIMEOUT, SI_INTR. */
si_ret si_ask_wait(si_ask *a, int64_t deadline);
/* No more is wanted. */
void si_ask_done(si_ask *a);

/* Answer those who ask: by a thread of the interpreter, under its lock. Raises nothing. */
void si_answer(si_context *cx);
/* The report itself: modules, what each thread runs, names of threads, statistics of
 * the collector; all plain values. A new reference, or NULL with an exception. The same. */
PyObject *si_report(si_context *cx);
/* Nobody will answer them. */
void si_asks_drop(si_context *cx);

#endif

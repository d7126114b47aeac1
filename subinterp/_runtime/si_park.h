/* si_park.h: interpreters that wait for a pool.
 *
 * The memory of private copies of extension modules never comes back, so an
 * interpreter that has loaded some is not ended with its pool: it is parked,
 * and the next pool with the same creation options takes it. Its native thread
 * stays with it and sleeps, with the interpreter's lock released.
 *
 * A parked thread is an si_worker without a pool, in state PARKED. It leaves
 * the list here by one order, given by whoever takes it off under park_mu, and
 * carries the order out itself: nobody else ever enters its interpreter.
 *
 * Turned down: parking an interpreter without its thread. Its thread state
 * would have to move to another native thread, and what extension modules keep
 * for the thread (thread-local storage, OpenMP's team) would not come along. */
#ifndef SI_PARK_H
#define SI_PARK_H

#include "si_pool.h"

typedef enum {
    SI_ORDER_NONE = 0,
    SI_ORDER_SERVE,     /* become the worker in `tenant` */
    SI_ORDER_END,       /* end the interpreter and the thread */
    SI_ORDER_EXIT,      /* the process ends: run the interpreter's exit functions */
} si_order;

/* Parking is possible from now on: exit of the process will see to it.
 * default_limit: how many, unless si_park_set_limit said so before. */
void si_park_arm(int default_limit);
/* At most so many; those above it end, the oldest first. */
void si_park_set_limit(int n);
/* Whether it is worth while to make an interpreter ready. */
bool si_park_wanted(void);
/* List a thread, which goes to wait for its order (si_park_wait). It may get
 * one at once, or make room by ending the one that was parked first. */
void si_park_add(si_worker *parked);
si_order si_park_wait(si_worker *parked);
/* Give a pool's new worker a parked thread with its pool's key; false: none. */
bool si_park_take(si_worker *w);
/* Exit: all leave, and none comes any more. */
void si_park_close(void);
/* Interpreters and native threads that are parked; returns how many. */
size_t si_park_list(int64_t *interps, int64_t *threads, size_t max);
void si_park_after_fork(void);

#endif

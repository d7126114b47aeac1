/* si_process.h: small helpers for Cython, which has no atomics of its own. */
#ifndef SI_PROCESS_H
#define SI_PROCESS_H

#include <unistd.h>

#include "si_channel.h"
#include "si_pool.h"

/* The thread that runs signal handlers' Python side: it waits in slices. */
static inline bool si_is_main_thread(void)
{
    return gettid() == getpid();
}

/* As `ps -L` and debuggers show it; CPython itself does so from 3.14 on. */
static inline void si_name_thread(const char *name)
{
    pthread_setname_np(pthread_self(), name);
}

static inline void si_store_cost(si_function *f, int64_t cost)
{
    atomic_store_explicit(&f->cost, cost, memory_order_relaxed);
}

static inline int64_t si_load_cost(si_function *f)
{
    return atomic_load_explicit(&f->cost, memory_order_relaxed);
}

/* Before the push: the task is still the submitter's own. */
static inline void si_store_refs(si_task *t, int refs)
{
    atomic_store_explicit(&t->refs, refs, memory_order_relaxed);
}

#endif

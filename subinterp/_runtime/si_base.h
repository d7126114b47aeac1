/* si_base.h: waiting, locking, time. Knows nothing of Python.
 *
 * Every wait of the library ends in one futex word, so that it can be given a
 * deadline, be woken by exactly one store and cost no system call while the
 * other side is awake. A condition variable would need a mutex around each
 * word; an eventfd would need a system call for each message.
 *
 * Source of the three-state mutex: U. Drepper, "Futexes Are Tricky" (2011),
 * mutex 2, with a short spin in front. */
#ifndef SI_BASE_H
#define SI_BASE_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* What a C function of the library can report. No status defaults to success:
 * the value 0 is SI_OK and is always written by name. (Not si_status: that is a
 * macro of <signal.h>.) */
typedef enum {
    SI_OK = 0,
    SI_EMPTY,       /* nothing there */
    SI_FULL,        /* no room */
    SI_CLOSED,      /* the other side is gone, or this handle was closed */
    SI_TIMEOUT,     /* the deadline passed */
    SI_INTR,        /* a signal arrived or a slice ended: check and call again */
    SI_NOMEM,
    SI_SHUTDOWN,    /* the pool takes no new tasks */
    SI_BROKEN,      /* the pool lost what it needs to run tasks */
    SI_FORKED,      /* made by the parent process of this one */
    SI_DEADLOCK,    /* every worker waits for its own pool's queue */
    SI_NOTFAST,     /* the value needs the general encoder */
} si_ret;

#define SI_FOREVER INT64_MAX

typedef _Atomic uint32_t si_word;

static inline int64_t si_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void si_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

/* Sleep while *word == expected, until `deadline` (CLOCK_MONOTONIC ns, or
 * SI_FOREVER). SI_OK may be spurious: the caller checks its condition again.
 * SI_INTR: a signal, or the task that waits is interrupted (si_stop.h). */
si_ret si_futex_wait(si_word *word, uint32_t expected, int64_t deadline);
void si_futex_wake(si_word *word, int n);

/* 0 free, 1 held, 2 held and somebody sleeps. Held for a few instructions
 * only, never while Python code runs or an interpreter's lock is waited for
 * (the one exception, exec_mu in si_worker.c, says why). */
typedef struct { si_word word; } si_mutex;

void si_mutex_slow(si_mutex *mu);

static inline bool si_trylock(si_mutex *mu)
{
    uint32_t free_ = 0;
    return atomic_compare_exchange_strong_explicit(&mu->word, &free_, 1, memory_order_acquire,
                                                   memory_order_relaxed);
}

static inline void si_lock(si_mutex *mu)
{
    if (!si_trylock(mu))
        si_mutex_slow(mu);
}

static inline void si_unlock(si_mutex *mu)
{
    if (atomic_exchange_explicit(&mu->word, 0, memory_order_release) == 2)
        si_futex_wake(&mu->word, 1);
}

/* Processes: a child of fork must never wait for a thread of its parent.
 * si_fork_generation counts the forks this process descends from; whatever
 * waits compares it with the generation it was made in. */
extern _Atomic uint32_t si_fork_generation;

static inline uint32_t si_generation(void)
{
    return atomic_load_explicit(&si_fork_generation, memory_order_relaxed);
}

/* How long a waiter looks before it sleeps, in ns; 0 turns spinning off.
 * Written by si_set_spin, read by every wait (relaxed: a hint). */
extern _Atomic int64_t si_spin_max;
/* Processors this process may use when the library was loaded. */
extern int si_cores;

/* Fresh memory that is about to be filled: large pages where the system gives
 * them on request, since page faults cost more than the copy. */
void si_expect_large(void *p, size_t n);
/* The same for memory that is used once, which large pages are not worth: virtual
 * machines often get them from their host one by one. */
void si_get_pages(void *p, size_t n);
/* What is in this memory is not needed: the system may take its pages until they are
 * written again. */
void si_lend_pages(void *p, size_t n);

void si_set_spin(int64_t ns);
int si_usable_cores(void);

/* A spin that learns: each success doubles the budget, each failure halves
 * it. Fields are hints, races on them are harmless, hence relaxed atomics. */
typedef struct { _Atomic int64_t budget; } si_spin;

static inline int64_t si_spin_budget(si_spin *s)
{
    int64_t max = atomic_load_explicit(&si_spin_max, memory_order_relaxed);
    int64_t b = atomic_load_explicit(&s->budget, memory_order_relaxed);
    return b < max ? b : max;
}

static inline void si_spin_learn(si_spin *s, bool found)
{
    int64_t b = atomic_load_explicit(&s->budget, memory_order_relaxed);
    int64_t next = found ? b * 2 : b / 2;
    if (next < 1000)
        next = 1000;
    if (next > 100000)
        next = 100000;
    if (next != b)
        atomic_store_explicit(&s->budget, next, memory_order_relaxed);
}

static inline void si_spin_init(si_spin *s)
{
    atomic_init(&s->budget, 100000);
}

/* Live C objects, for the tests' leak checks; pools: those not closed. */
typedef struct {
    _Atomic int64_t contexts, pools, workers, parked, channels, shared, syncs, functions;
    _Atomic int64_t tasks, messages; /* counted in debug builds only: hot */
} si_live_counts;
extern si_live_counts si_live;

#ifdef SI_DEBUG
#  define SI_COUNT_HOT(field, n) atomic_fetch_add_explicit(&si_live.field, (n), memory_order_relaxed)
#else
#  define SI_COUNT_HOT(field, n) ((void)0)
#endif
#define SI_COUNT(field, n) atomic_fetch_add_explicit(&si_live.field, (n), memory_order_relaxed)

/* ThreadSanitizer and the stress tests widen race windows with this. */
#ifdef SI_DEBUG
void si_maybe_delay(void);
#else
static inline void si_maybe_delay(void) {}
#endif

#endif

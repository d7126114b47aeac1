#include "si_base.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

_Atomic uint32_t si_fork_generation = 0;
_Atomic int64_t si_spin_max = 0;
int si_cores = 1;
si_live_counts si_live;

si_ret si_futex_wait(si_word *word, uint32_t expected, int64_t deadline)
{
    struct timespec until, *p = NULL;
    if (deadline != SI_FOREVER) {
        if (deadline < 0)
            deadline = 0;
        until.tv_sec = deadline / 1000000000;
        until.tv_nsec = deadline % 1000000000;
        p = &until;
    }
    /* FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC time. */
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, expected, p, NULL,
                     FUTEX_BITSET_MATCH_ANY);
    if (r == 0 || errno == EAGAIN)
        return SI_OK;
    /* An interruption of the task that waits comes as ETIMEDOUT (si_stop.h). */
    if (errno == ETIMEDOUT && deadline != SI_FOREVER && si_now() >= deadline)
        return SI_TIMEOUT;
    return SI_INTR;
}

void si_futex_wake(si_word *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

void si_mutex_slow(si_mutex *mu)
{
    if (si_cores > 1) {
        for (int i = 0; i < 100; i++) {
            uint32_t free_ = 0;
            if (atomic_load_explicit(&mu->word, memory_order_relaxed) == 0
                && atomic_compare_exchange_weak_explicit(&mu->word, &free_, 1,
                       memory_order_acquire, memory_order_relaxed))
                return;
            si_relax();
        }
    }
    while (atomic_exchange_explicit(&mu->word, 2, memory_order_acquire) != 0)
        (void)si_futex_wait(&mu->word, 2, SI_FOREVER);
}

int si_usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        if (n > 0)
            return n;
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

/* For the whole units, a power of two each, that lie in this memory. */
static void advise(void *p, size_t n, uintptr_t unit, int advice)
{
    uintptr_t from = ((uintptr_t)p + unit - 1) & ~(unit - 1), to = ((uintptr_t)p + n) & ~(unit - 1);
    if (to > from)
        (void)madvise((void *)from, to - from, advice);
}

void si_expect_large(void *p, size_t n)
{
    const uintptr_t huge = 2u << 20;
    if (n >= 2 * huge)
        advise(p, n, huge, MADV_HUGEPAGE);
}

void si_get_pages(void *p, size_t n)
{
#ifdef MADV_POPULATE_WRITE
    if (n >= 1u << 20)
        advise(p, n, (uintptr_t)sysconf(_SC_PAGESIZE), MADV_POPULATE_WRITE);
#else
    (void)p;
    (void)n;
#endif
}

void si_lend_pages(void *p, size_t n)
{
    advise(p, n, (uintptr_t)sysconf(_SC_PAGESIZE), MADV_FREE);
}

void si_set_spin(int64_t ns)
{
    atomic_store_explicit(&si_spin_max, ns, memory_order_relaxed);
}

#ifdef SI_DEBUG
void si_maybe_delay(void)
{
    static _Atomic int on = -1;
    static __thread unsigned seed = 0;
    if (atomic_load_explicit(&on, memory_order_relaxed) < 0)
        atomic_store_explicit(&on, getenv("SUBINTERP_RANDOM_DELAYS") != NULL, memory_order_relaxed);
    if (!atomic_load_explicit(&on, memory_order_relaxed))
        return;
    if (seed == 0)
        seed = (unsigned)si_now() | 1;
    if (rand_r(&seed) % 64 == 0)
        usleep(rand_r(&seed) % 200);
    else if (rand_r(&seed) % 8 == 0)
        sched_yield();
}
#endif

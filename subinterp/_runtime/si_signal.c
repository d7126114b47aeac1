#include "si_signal.h"

#include <sys/syscall.h>
#include <unistd.h>

/* Held while a signal is chosen, so that two do not choose the same. */
static si_mutex reserve_mu;

static bool is_ours(int signum, si_handler handler)
{
    struct sigaction now;
    return sigaction(signum, NULL, &now) == 0 && now.sa_flags & SA_SIGINFO
           && now.sa_sigaction == handler;
}

static bool install(int signum, si_handler handler, bool restart, struct sigaction *before)
{
    struct sigaction ours = {.sa_sigaction = handler,
                             .sa_flags = SA_SIGINFO | SA_ONSTACK | (restart ? SA_RESTART : 0)};
    sigemptyset(&ours.sa_mask);
    return sigaction(signum, &ours, before) == 0;
}

int si_signal_reserve(_Atomic int *number, si_handler handler, bool restart)
{
    si_lock(&reserve_mu);
    int found = atomic_load(number);
    if (!found || !is_ours(found, handler))
        found = -1;
    /* From the end: programs that number their own begin at SIGRTMIN. */
    for (int signum = SIGRTMAX; found < 0 && signum >= SIGRTMIN; signum--) {
        struct sigaction now;
        if (sigaction(signum, NULL, &now) != 0 || now.sa_flags & SA_SIGINFO
            || now.sa_handler != SIG_DFL)
            continue;
        if (install(signum, handler, restart, NULL)) {
            atomic_store(number, signum);
            found = signum;
        }
    }
    si_unlock(&reserve_mu);
    return found;
}

bool si_signal_send(int64_t thread_id, int signum, union sigval value)
{
    siginfo_t info = {0};
    info.si_signo = signum;
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value = value;
    return syscall(SYS_rt_tgsigqueueinfo, getpid(), (pid_t)thread_id, signum, &info) == 0;
}

/* ---- dumps --------------------------------------------------------------------- */

/* The word `dump` holds the number of a request, and how far it is. */
enum { NOBODY = 0, ASKED = 1, WRITING = 2, WRITTEN = 3, PHASE = 3 };

static _Atomic int dump_number;
static si_word dump;
/* faulthandler's handler, while dumps are made. */
typedef void (*stack_writer)(int);
static stack_writer _Atomic write_stack;

static void on_dump(int signum, siginfo_t *info, void *context)
{
    (void)context;
    int saved = errno;
    uint32_t word = (uint32_t)info->si_value.sival_int | ASKED;
    if (info->si_code == SI_QUEUE && info->si_pid == getpid()
        && atomic_compare_exchange_strong(&dump, &word, (word & ~(uint32_t)PHASE) | WRITING)) {
        stack_writer write_it = atomic_load(&write_stack);
        if (write_it)
            write_it(signum);
        atomic_store(&dump, (word & ~(uint32_t)PHASE) | WRITTEN);
        si_futex_wake(&dump, 1);
    }
    errno = saved;
}

int si_dump_signal(void)
{
    return si_signal_reserve(&dump_number, on_dump, true);
}

si_ret si_dump_begin(int signum)
{
    struct sigaction other;
    if (!install(signum, on_dump, true, &other) || other.sa_flags & SA_SIGINFO)
        return SI_CLOSED;
    atomic_store(&write_stack, other.sa_handler);
    return SI_OK;
}

int si_dump_ask(void)
{
    uint32_t next = (atomic_load(&dump) | PHASE) + 1;
    atomic_store(&dump, next | ASKED);
    return (int)next;
}

/* True: the request was taken back, or nobody is at it. */
static bool withdraw(void)
{
    uint32_t word = atomic_load(&dump);
    return (word & PHASE) != WRITING
           && ((word & PHASE) != ASKED
               || atomic_compare_exchange_strong(&dump, &word, word & ~(uint32_t)PHASE));
}

si_ret si_dump_wait(int64_t deadline)
{
    for (;;) {
        uint32_t word = atomic_load(&dump);
        if ((word & PHASE) == WRITTEN)
            return SI_OK;
        /* One that writes comes to its end: it waits for nothing. */
        if (si_now() >= deadline && withdraw())
            return (atomic_load(&dump) & PHASE) == WRITTEN ? SI_OK : SI_TIMEOUT;
        int64_t until = si_now() + 50000000;
        (void)si_futex_wait(&dump, word, until < deadline ? until : deadline + 1000000);
    }
}

void si_dump_end(void)
{
    while (!withdraw())
        usleep(100);
    atomic_store(&write_stack, NULL);
}

void si_signal_after_fork(void)
{
    atomic_store(&reserve_mu.word, 0);
    /* Who writes, or waits for it, is in the parent. */
    atomic_fetch_and(&dump, ~(uint32_t)PHASE);
    atomic_store(&write_stack, NULL);
}

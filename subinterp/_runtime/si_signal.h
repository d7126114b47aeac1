/* si_signal.h: real-time signals of ours, and stacks written on request.
 *
 * There are two: one that frees blocked calls of tasks that are interrupted
 * (si_stop.h), and one for stacks. Each takes a number that nobody else uses.
 *
 * A thread that waits in C or hogs its interpreter's lock can be looked into by
 * one means only: a signal, whose handler runs in that thread wherever it is.
 * CPython's faulthandler has such a handler, which needs no lock; but it writes
 * to one file for all, says nothing when it is done, and leaves the signal's
 * default action (the end of the process) behind for a signal that comes late.
 * So a handler of ours stands before it for good: it lets through what was
 * asked for and is still wanted, and says when it is written. */
#ifndef SI_SIGNAL_H
#define SI_SIGNAL_H

#include <signal.h>

#include "si_base.h"

typedef void (*si_handler)(int, siginfo_t *, void *);

/* The one place where signals are chosen. The number of a real-time signal with
 * this handler: the one of before, if that is still so; else one that nobody
 * has taken (its action is the default one). The handler stays installed: one
 * may be on its way. restart: calls that it cuts short are restarted. -1: none is free.
 * `number` remembers it, for one purpose: a static, 0 at first. */
int si_signal_reserve(_Atomic int *number, si_handler handler, bool restart);
/* Send it to one thread of this process, with a value. The caller makes sure that the thread is
 * there. False: it is not. */
bool si_signal_send(int64_t thread_id, int signum, union sigval value);
void si_signal_after_fork(void);

/* Dumps of stacks; one at a time, see observing.py. The signal for it, or -1. */
int si_dump_signal(void);
/* Another handler was installed meanwhile: put ours before it. */
si_ret si_dump_begin(int signum);
/* Nothing is written from here on. */
void si_dump_end(void);
/* Before the signal is sent: the number to send. */
int si_dump_ask(void);
/* Wait until it is written. SI_TIMEOUT: no answer until `deadline`, and none will come. */
si_ret si_dump_wait(int64_t deadline);

#endif

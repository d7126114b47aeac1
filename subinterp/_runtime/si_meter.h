/* si_meter.h: what a worker notes of itself, for those who look.
 *
 * Counters that several threads add to would move a cache line between
 * processors with every task. So each worker has a block of its own, on lines
 * that nobody else writes: it adds with a load and a store, and whoever wants
 * to know reads them all (relaxed atomics; `seq` tells a reader that came in
 * between). Time is read once for each task: the end of one is taken for the
 * beginning of the next unless the worker waited between them.
 *
 * A trace is a list of records of fixed size, one a task, in segments that one
 * worker fills at a time. A record is there from the beginning of its task,
 * and completed at its end: a task that runs while the trace is read is in it. */
#ifndef SI_METER_H
#define SI_METER_H

#include "si_task.h"

/* Bucket b counts durations of at least 2^(b-1) and less than 2^b ns; the last
 * one (from 1.2 hours on) has no upper end. */
#define SI_BUCKETS 44

/* Indices of the counts. A call is one of submit, or one item of map. */
enum {
    SI_N_DONE,      /* calls that returned */
    SI_N_FAILED,    /* calls that raised */
    SI_N_IN,        /* bytes of the tasks' messages, as they came */
    SI_N_OUT,       /* and of their results */
    SI_N_BUSY,      /* ns */
    SI_N_IDLE,      /* ns */
    SI_N_RUN,       /* buckets: time that tasks took; a chunk of map is one */
    SI_N_WAIT = SI_N_RUN + SI_BUCKETS,  /* buckets: time they waited, where `pushed` was noted */
    SI_N_COUNTS = SI_N_WAIT + SI_BUCKETS,
};

typedef struct {
    _Alignas(64) _Atomic uint32_t seq;  /* odd: a task is counted, its time is not yet */
    bool long_tasks;                    /* what it told its pool last; the worker's own */
    _Atomic int64_t mark;               /* ns; when it last began or ended to wait or to run */
    _Atomic int64_t count[SI_N_COUNTS];
} si_meter;

/* NULL: no memory. Free with free(). */
si_meter *si_meter_new(void);
/* Read all counts; false: the worker was amid a change, the counts are off by a task. */
bool si_meter_read(si_meter *m, int64_t *counts);

static inline void si_meter_add(si_meter *m, int which, int64_t n)
{
    /* One writer: no exchange is needed. */
    int64_t old = atomic_load_explicit(&m->count[which], memory_order_relaxed);
    atomic_store_explicit(&m->count[which], old + n, memory_order_relaxed);
}

static inline int64_t si_meter_mark(si_meter *m)
{
    return atomic_load_explicit(&m->mark, memory_order_relaxed);
}

static inline int si_bucket(int64_t ns)
{
    int b = ns <= 0 ? 0 : 64 - __builtin_clzll((unsigned long long)ns);
    return b < SI_BUCKETS ? b : SI_BUCKETS - 1;
}

/* The worker begins its life, or that of its next interpreter. */
static inline void si_meter_begin(si_meter *m)
{
    atomic_store_explicit(&m->mark, si_now(), memory_order_relaxed);
}

/* It has waited for work. */
static inline void si_meter_waited(si_meter *m)
{
    int64_t now = si_now();
    si_meter_add(m, SI_N_IDLE, now - si_meter_mark(m));
    atomic_store_explicit(&m->mark, now, memory_order_relaxed);
}

/* A task is about to be announced as complete: who learns of its end finds it
 * counted. `waited`: ns, negative: not known. si_meter_ran() must follow. */
static inline void si_meter_count(si_meter *m, int64_t n_done, int64_t n_failed, size_t in,
                                  size_t out, int64_t waited)
{
    uint32_t seq = atomic_load_explicit(&m->seq, memory_order_relaxed);
    atomic_store_explicit(&m->seq, seq + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    if (n_done)
        si_meter_add(m, SI_N_DONE, n_done);
    if (n_failed)
        si_meter_add(m, SI_N_FAILED, n_failed);
    si_meter_add(m, SI_N_IN, (int64_t)in);
    si_meter_add(m, SI_N_OUT, (int64_t)out);
    if (waited >= 0)
        si_meter_add(m, SI_N_WAIT + si_bucket(waited), 1);
}

/* It ended at `now`. Returns how long it took, in ns. The clock is looked at
 * after the announcement, where nobody waits for it. */
static inline int64_t si_meter_ran(si_meter *m, int64_t now)
{
    int64_t ran = now - si_meter_mark(m);
    si_meter_add(m, SI_N_BUSY, ran);
    si_meter_add(m, SI_N_RUN + si_bucket(ran), 1);
    atomic_store_explicit(&m->mark, now, memory_order_relaxed);
    uint32_t seq = atomic_load_explicit(&m->seq, memory_order_relaxed);
    atomic_store_explicit(&m->seq, seq + 1, memory_order_release);
    return ran;
}

/* ---- traces ---------------------------------------------------------------- */

#define SI_TRACE_NAME 84
#define SI_TRACE_SEGMENT 256

typedef struct {
    int64_t pushed;         /* ns; 0: before the trace began */
    int64_t begin;          /* ns */
    _Atomic int64_t end;    /* ns; 0: it still runs. A release store: the rest is constant then */
    int32_t pushed_by;      /* native thread */
    uint32_t n_items;       /* SI_CHUNK: calls in it */
    uint32_t n_failed;
    uint8_t kind;           /* si_task_kind */
    _Atomic bool named;     /* a release store: `name` is constant then */
    char name[SI_TRACE_NAME];
} si_trace_record;

/* Filled by one worker. */
typedef struct si_trace_segment {
    struct si_trace_segment *next;  /* guarded by the trace's mu; constant once listed */
    int64_t thread_id;              /* the worker's; constant */
    int index;                      /* the same */
    _Atomic uint32_t n;             /* records that are there; release stores by the worker */
    si_trace_record record[SI_TRACE_SEGMENT];
} si_trace_segment;

typedef struct si_trace {
    _Atomic int refs;               /* the pool, workers, the reader */
    int64_t begun;                  /* ns; constant */
    _Atomic int64_t n_dropped;      /* tasks without a record: too many, or no memory */
    si_mutex mu;
    size_t room;                    /* records that may still be made; guarded by mu */
    si_trace_segment *segments;     /* the last one first; guarded by mu */
} si_trace;

/* NULL: no memory. */
si_trace *si_trace_new(size_t max_records);
static inline void si_trace_retain(si_trace *t)
{
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
}
void si_trace_release(si_trace *t);
/* A segment for a worker to fill; NULL: there is no room. The trace owns it. */
si_trace_segment *si_trace_segment_new(si_trace *t, int64_t thread_id, int index);
/* The next record of a worker whose current segment is *s, or NULL. */
si_trace_record *si_trace_begin(si_trace *t, si_trace_segment **s, int64_t thread_id, int index,
                                si_task *task, int64_t begin);
void si_trace_name(si_trace_record *r, const char *name);
void si_trace_end(si_trace_record *r, uint32_t n_failed, int64_t end);
/* The segments there are, and how many. Constant as a list from here to its end. */
si_trace_segment *si_trace_segments(si_trace *t);
/* What a reader may look at. */
uint32_t si_trace_count(si_trace_segment *s);
int64_t si_trace_end_of(si_trace_record *r);
const char *si_trace_name_of(si_trace_record *r);

#endif

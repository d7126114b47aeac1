#include "si_meter.h"

#include <stdlib.h>

si_meter *si_meter_new(void)
{
    si_meter *m = NULL;
    if (posix_memalign((void **)&m, 64, sizeof *m) != 0)
        return NULL;
    memset(m, 0, sizeof *m);
    m->long_tasks = true;
    atomic_init(&m->mark, si_now());
    return m;
}

bool si_meter_read(si_meter *m, int64_t *counts)
{
    bool settled = false;
    for (int tries = 0; tries < 100 && !settled; tries++) {
        uint32_t before = atomic_load_explicit(&m->seq, memory_order_acquire);
        for (int i = 0; i < SI_N_COUNTS; i++)
            counts[i] = atomic_load_explicit(&m->count[i], memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
        settled = before % 2 == 0
                  && atomic_load_explicit(&m->seq, memory_order_relaxed) == before;
        if (!settled)
            si_relax();
    }
    return settled;
}

/* ---- traces ---------------------------------------------------------------- */

si_trace *si_trace_new(size_t max_records)
{
    si_trace *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    atomic_init(&t->refs, 1);
    t->begun = si_now();
    t->room = max_records;
    return t;
}

void si_trace_release(si_trace *t)
{
    if (atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1)
        return;
    while (t->segments) {
        si_trace_segment *s = t->segments;
        t->segments = s->next;
        free(s);
    }
    free(t);
}

si_trace_segment *si_trace_segment_new(si_trace *t, int64_t thread_id, int index)
{
    si_trace_segment *s = malloc(sizeof *s);
    if (!s)
        return NULL;
    s->thread_id = thread_id;
    s->index = index;
    atomic_init(&s->n, 0);
    si_lock(&t->mu);
    bool room = t->room > 0;
    if (room) {
        t->room -= t->room < SI_TRACE_SEGMENT ? t->room : SI_TRACE_SEGMENT;
        s->next = t->segments;
        t->segments = s;
    }
    si_unlock(&t->mu);
    if (!room) {
        free(s);
        s = NULL;
    }
    return s;
}

si_trace_record *si_trace_begin(si_trace *t, si_trace_segment **s, int64_t thread_id, int index,
                                si_task *task, int64_t begin)
{
    uint32_t n = *s ? atomic_load_explicit(&(*s)->n, memory_order_relaxed) : SI_TRACE_SEGMENT;
    if (n == SI_TRACE_SEGMENT) {
        n = 0;
        if (!(*s = si_trace_segment_new(t, thread_id, index))) {
            atomic_fetch_add_explicit(&t->n_dropped, 1, memory_order_relaxed);
            return NULL;
        }
    }
    si_trace_record *r = &(*s)->record[n];
    memset(r, 0, sizeof *r);
    r->begin = begin;
    /* Noted before the trace began, for the statistics: its thread is not known. */
    if (task->pushed_by) {
        r->pushed = task->pushed;
        r->pushed_by = task->pushed_by;
    }
    r->n_items = task->n_items;
    r->kind = task->kind;
    if (task->function && task->function->by_name) {
        const char *module = task->function->msg.data;
        si_trace_name(r, module + strlen(module) + 1);
    }
    atomic_store_explicit(&(*s)->n, n + 1, memory_order_release);
    return r;
}

void si_trace_name(si_trace_record *r, const char *name)
{
    if (atomic_load_explicit(&r->named, memory_order_relaxed))
        return;
    strncpy(r->name, name, sizeof r->name - 1);
    atomic_store_explicit(&r->named, true, memory_order_release);
}

void si_trace_end(si_trace_record *r, uint32_t n_failed, int64_t end)
{
    r->n_failed = n_failed;
    atomic_store_explicit(&r->end, end, memory_order_release);
}

si_trace_segment *si_trace_segments(si_trace *t)
{
    si_lock(&t->mu);
    si_trace_segment *s = t->segments;
    si_unlock(&t->mu);
    return s;
}

uint32_t si_trace_count(si_trace_segment *s)
{
    return atomic_load_explicit(&s->n, memory_order_acquire);
}

int64_t si_trace_end_of(si_trace_record *r)
{
    return atomic_load_explicit(&r->end, memory_order_acquire);
}

const char *si_trace_name_of(si_trace_record *r)
{
    return atomic_load_explicit(&r->named, memory_order_acquire) ? r->name : "";
}

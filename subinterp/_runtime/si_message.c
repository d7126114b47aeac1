#include "si_compat.h"
#include "si_message.h"
#include "si_channel.h"
#include "si_pool.h"
#include "si_spare.h"
#include "si_sync.h"

#include <sys/mman.h>

/* All shared buffers, sorted by address. Guards: the list and the decision
 * that a count of zero is final. */
static si_mutex registry_mu;
static si_shared **registry;
static size_t registry_n;
static size_t registry_cap;
static uint64_t registry_next = 1;

/* How many begin at or below this address; registry_mu is held. */
static size_t registry_rank(const char *p)
{
    size_t low = 0, high = registry_n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if ((uintptr_t)registry[mid]->data <= (uintptr_t)p)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool registry_add(si_shared *s)
{
    si_lock(&registry_mu);
    if (registry_n == registry_cap) {
        size_t cap = registry_cap ? registry_cap * 2 : 16;
        si_shared **grown = realloc(registry, cap * sizeof *grown);
        if (!grown) {
            si_unlock(&registry_mu);
            return false;
        }
        registry = grown;
        registry_cap = cap;
    }
    size_t i = registry_rank(s->data);
    memmove(registry + i + 1, registry + i, (registry_n - i) * sizeof *registry);
    registry[i] = s;
    registry_n++;
    s->id = registry_next++;
    si_unlock(&registry_mu);
    return true;
}

si_block *si_block_new(size_t size)
{
    si_block *b = malloc(sizeof *b);
    if (!b)
        return NULL;
    atomic_init(&b->refs, 1);
    b->readonly = false;
    b->size = size;
    b->data = si_spare_alloc(size, &b->capacity);
    if (!b->data) {
        free(b);
        return NULL;
    }
    return b;
}

void si_block_release(si_block *b)
{
    if (atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1) {
        si_spare_free(b->data, b->capacity);
        free(b);
    }
}

si_shared *si_shared_new(size_t size)
{
    si_shared *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    /* Fresh pages: zeroed, page-aligned, and given back whole. */
    void *p = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        free(s);
        return NULL;
    }
    s->data = p;
    s->size = size;
    atomic_init(&s->refs, 1);
    if (!registry_add(s)) {
        munmap(p, size ? size : 1);
        free(s);
        return NULL;
    }
    SI_COUNT(shared, 1);
    return s;
}

si_shared *si_shared_find(uint64_t id)
{
    si_shared *found = NULL;
    si_lock(&registry_mu);
    for (size_t i = 0; i < registry_n && !found; i++)
        if (registry[i]->id == id)
            found = registry[i];
    if (found)
        si_shared_retain(found);
    si_unlock(&registry_mu);
    return found;
}

si_shared *si_shared_at(const void *p, size_t n)
{
    si_shared *found = NULL;
    si_lock(&registry_mu);
    size_t i = n ? registry_rank(p) : 0;
    if (i) {
        si_shared *s = registry[i - 1];
        size_t start = (size_t)((const char *)p - s->data);
        if (start < s->size && n <= s->size - start) {
            si_shared_retain(s);
            found = s;
        }
    }
    si_unlock(&registry_mu);
    return found;
}

void si_shared_release(si_shared *s)
{
    int refs = atomic_load_explicit(&s->refs, memory_order_relaxed);
    while (refs > 1) {
        if (atomic_compare_exchange_weak_explicit(&s->refs, &refs, refs - 1,
                memory_order_acq_rel, memory_order_relaxed))
            return;
    }
    /* The last one goes under the lock, so that no look-up revives it. */
    si_lock(&registry_mu);
    if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) {
        si_unlock(&registry_mu);
        return;
    }
    size_t i = registry_rank(s->data);      /* it is the one before */
    memmove(registry + i - 1, registry + i, (registry_n - i) * sizeof *registry);
    registry_n--;
    si_unlock(&registry_mu);
    munmap(s->data, s->size ? s->size : 1);
    free(s);
    SI_COUNT(shared, -1);
}

void si_message_after_fork(void)
{
    atomic_store(&registry_mu.word, 0);
    si_spare_after_fork();
}

bool si_msg_grow(si_msg *m, size_t extra)
{
    size_t need = m->len + extra;
    if (need < m->len)
        return false;
    size_t cap = m->cap * 2;
    if (cap < need)
        cap = need;
    char *p;
    if (m->data == m->inline_) {
        p = malloc(cap);
        if (p)
            memcpy(p, m->data, m->len);
    }
    else
        p = realloc(m->data, cap);
    if (!p)
        return false;
    m->data = p;
    m->cap = cap;
    return true;
}

bool si_msg_part(si_msg *m, si_part_kind kind, void *ptr, size_t n)
{
    if (m->n_parts == m->cap_parts) {
        uint32_t cap = m->cap_parts ? m->cap_parts * 2 : 4;
        si_part *p = realloc(m->parts, cap * sizeof *p);
        if (!p)
            return false;
        m->parts = p;
        m->cap_parts = cap;
    }
    m->parts[m->n_parts++] = (si_part){kind, n, ptr, 0};
    return true;
}

void si_part_drop(si_part *part)
{
    switch (part->kind) {
    case SI_PART_NONE:
        break;
    case SI_PART_BYTES:
        PyMem_RawFree(part->ptr);
        break;
    case SI_PART_BLOCK:
        si_block_release(part->ptr);
        break;
    case SI_PART_SHARED:
    case SI_PART_VIEW:
        si_shared_release(part->ptr);
        break;
    case SI_PART_SENDER:
        si_channel_drop_handle(part->ptr, SI_SENDER);
        break;
    case SI_PART_RECEIVER:
        si_channel_drop_handle(part->ptr, SI_RECEIVER);
        break;
    case SI_PART_POOL:
        si_pool_release(part->ptr);
        break;
    case SI_PART_SYNC:
        si_sync_release(part->ptr);
        break;
    case SI_PART_MSG:
        si_msg_clear(part->ptr);
        free(part->ptr);
        break;
    }
    part->kind = SI_PART_NONE;
}

void si_msg_cut(si_msg *m, size_t len, uint32_t n_parts)
{
    while (m->n_parts > n_parts)
        si_part_drop(&m->parts[--m->n_parts]);
    m->len = len;
}

void si_msg_clear_slow(si_msg *m)
{
    si_msg_cut(m, 0, 0);
    free(m->parts);
    m->parts = NULL;
    m->cap_parts = 0;
    if (m->data != m->inline_)
        free(m->data);
    m->data = m->inline_;
    m->cap = SI_INLINE;
}

void si_msg_move(si_msg *to, si_msg *from)
{
    *to = *from;
    if (from->data == from->inline_)
        to->data = to->inline_;
    si_msg_init(from);
}

size_t si_msg_weight(const si_msg *m)
{
    size_t n = m->len;
    for (uint32_t i = 0; i < m->n_parts; i++)
        if (m->parts[i].kind == SI_PART_BYTES || m->parts[i].kind == SI_PART_BLOCK)
            n += m->parts[i].n;
        else if (m->parts[i].kind == SI_PART_MSG)
            n += si_msg_weight(m->parts[i].ptr);
    return n;
}

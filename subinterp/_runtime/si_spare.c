#include "si_spare.h"

#include <stdlib.h>
#include <string.h>

/* Smaller memory malloc keeps itself. */
#define LEAST ((size_t)1 << 20)
/* What waits, in all. */
#define MOST ((size_t)256 << 20)
#define N_MOST 32

typedef struct {
    void *p;
    size_t size;
} piece;

/* Guards what follows. */
static si_mutex spare_mu;
static int n_users;             /* pools; without any, nothing waits */
static piece spare[N_MOST];     /* the oldest first */
static int n_spare;
static size_t spare_bytes;

/* spare_mu is held. */
static piece take_out(int i)
{
    piece found = spare[i];
    n_spare--;
    memmove(spare + i, spare + i + 1, (size_t)(n_spare - i) * sizeof *spare);
    spare_bytes -= found.size;
    return found;
}

static void give_back(const piece *pieces, int n)
{
    while (n > 0)
        free(pieces[--n].p);
}

void si_spare_begin(void)
{
    si_lock(&spare_mu);
    n_users++;
    si_unlock(&spare_mu);
}

void si_spare_end(void)
{
    piece out[N_MOST];
    int n = 0;
    si_lock(&spare_mu);
    if (--n_users == 0)
        while (n_spare > 0)
            out[n++] = take_out(n_spare - 1);
    si_unlock(&spare_mu);
    give_back(out, n);
}

void *si_spare_alloc(size_t size, size_t *capacity)
{
    piece found = {NULL, size};
    if (size >= LEAST) {
        int best = -1;
        si_lock(&spare_mu);
        for (int i = 0; i < n_spare; i++)
            if (spare[i].size >= size && spare[i].size - size <= size / 4
                && (best < 0 || spare[i].size <= spare[best].size))
                best = i;
        if (best >= 0)
            found = take_out(best);
        si_unlock(&spare_mu);
    }
    if (!found.p) {
        found.p = malloc(size ? size : 1);
        if (found.p)
            si_expect_large(found.p, size);
    }
    *capacity = found.size;
    return found.p;
}

void si_spare_free(void *p, size_t capacity)
{
    if (capacity < LEAST || capacity > MOST) {
        free(p);
        return;
    }
    si_lend_pages(p, capacity);
    piece out[N_MOST + 1];
    int n = 0;
    si_lock(&spare_mu);
    if (n_users == 0)
        out[n++] = (piece){p, capacity};
    else {
        while (n_spare == N_MOST || spare_bytes + capacity > MOST)
            out[n++] = take_out(0);
        spare[n_spare++] = (piece){p, capacity};
        spare_bytes += capacity;
    }
    si_unlock(&spare_mu);
    give_back(out, n);
}

void si_spare_after_fork(void)
{
    atomic_store(&spare_mu.word, 0);
    /* May be half changed; what waited is lost to the child. */
    n_users = 0;
    n_spare = 0;
    spare_bytes = 0;
}

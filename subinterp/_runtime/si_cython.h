/* si_cython.h: included by the Cython unit only.
 *
 * Cython 3.3.1 keeps the modules of all interpreters in a table that it grows
 * with realloc, and its look-up (__Pyx_State_FindModule) may read the entry
 * behind the last one. What the heap left there can look like the id of a new
 * interpreter, whose import then fails ("has already been imported") or finds
 * a pointer to nothing. Zeroed, the entry can match nobody: id 0 is the main
 * interpreter, which is found before.
 * Remove when the look-up compares with the table's end. */
#ifndef SI_CYTHON_H
#define SI_CYTHON_H

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

static inline void *si_realloc_zeroed(void *old, size_t n)
{
    void *fresh = calloc(1, n);
    if (fresh && old) {
        /* calloc clears all of a block, so the tail of `old` is zero as well. */
        size_t had = malloc_usable_size(old);
        memcpy(fresh, old, had < n ? had : n);
        free(old);
    }
    return fresh;
}

#undef realloc
#define realloc si_realloc_zeroed

#endif

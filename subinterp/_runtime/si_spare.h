/* si_spare.h: memory of large blocks, kept for the next ones.
 *
 * To have a fresh page, cleared by the system, costs more than to copy
 * something into it. As a rule what is passed on and on is of about the same size: so
 * memory that is no longer used waits for the next block, as long as there are
 * pools. Meanwhile the system may take its pages if it needs them
 * (MADV_FREE); then they are fresh ones again. */
#ifndef SI_SPARE_H
#define SI_SPARE_H

#include "si_base.h"

/* A pool begins, or takes no more tasks. With the last one, what waits is given back. */
void si_spare_begin(void);
void si_spare_end(void);

/* At least `size` bytes of any content, or NULL; *capacity is how many. */
void *si_spare_alloc(size_t size, size_t *capacity);
void si_spare_free(void *p, size_t capacity);

void si_spare_after_fork(void);

#endif

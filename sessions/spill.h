/* spill: memory that belongs to a file without a name, so that the system may take its pages back.
 * For results that must stay reachable but would not fit beside everything else. */
#ifndef MLATHE_SESSIONS_SPILL_H
#define MLATHE_SESSIONS_SPILL_H

#include "core/base.h"

struct spill {
    void *data;
    size_t size;
};
/* Moves n arrays (array[i] of count[i] floats, freed; NULL ones are passed over) into one file in
 * folder dir and points array[i] at the read-only copy there. */
int spill_floats(struct spill *s, const char *dir, int n, float **const *array, const size_t *count,
                 struct err *e);
void spill_done(struct spill *s);

#endif

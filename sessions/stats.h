/* stats: a model's calibration statistics in a file, so that a later program start re-solves
 * without a forward pass. NAME.safetensors holds the moments (fp32), NAME.json what they are of
 * (written last: without it the file does not count). */
#ifndef MLATHE_SESSIONS_STATS_H
#define MLATHE_SESSIONS_STATS_H

#include "core/model.h"
#include "core/moments.h"

/* Path prefix of the statistics of a model (fingerprint) on a text (sha256 of its ids): fresh. */
char *stats_path(const char *dir, const char *fingerprint, const char *sha256);
/* Saves layer[L]; keeps the few newest sets of the folder and removes older ones. */
int stats_save(const char *prefix, const struct moments *layer, int n_layer, struct err *e);
/* ERR_IO when there is none. Shapes are checked against the model. layer[L] initialised. */
int stats_load(const char *prefix, const struct model *m, struct moments *layer, struct err *e);

#endif

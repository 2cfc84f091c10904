/* recall: spectra by the statistics that a conversion was made from, long after. */
#ifndef MLATHE_SESSIONS_RECALL_H
#define MLATHE_SESSIONS_RECALL_H

#include "sessions/workspace.h"

/* All layers' spectra by the statistics of the text with this digest, where the workspace or
 * one of the n_dir folders has them; else as workspace_spectra. out[n_layer] is zeroed by the
 * caller, who spectrum_dones it also on failure. */
int workspace_spectra_recalled(struct workspace *w, const char *sha256, const char *const *dir,
                               int n_dir, enum plan_layout layout, const int *rope_dim,
                               struct spectrum *out, const struct progress *p, struct err *e);

#endif

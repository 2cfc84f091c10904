/* figures: the plots of a plan, of spectra, of a conversion's losses, of healing and of
 * measurements, the same in a page (page true) and as a file of their own. Pure. */
#ifndef MLATHE_UI_FIGURES_H
#define MLATHE_UI_FIGURES_H

#include "core/spectrum.h"
#include "sessions/eval_record.h"
#include "sessions/workspace.h"
#include "ui/svg.h"

/* Cached numbers of every layer: rank and rope width, against the original's. */
void figure_plan(struct markup *m, bool page, const struct rankplan *p);
/* All layers' spectra, and the ranks that keep shares of the energy; plan (may be NULL): its ranks
 * beside them. */
void figure_spectra(struct markup *m, bool page, const struct spectrum *s, int n,
                    const struct rankplan *plan);
void figure_losses(struct markup *m, bool page, const struct layer_report *r, int n);
/* KV bytes at context lengths, before and after. */
void figure_memory(struct markup *m, bool page, const struct rankplan *p);
/* What one measurement can show; nothing for one without curves or rates. */
void figure_eval(struct markup *m, bool page, const struct eval_record *r);
/* Held-out KL over the tokens trained on. */
void figure_healing(struct markup *m, bool page, const double *tokens, const double *kl, int n);

/* The smallest rank that keeps a share of the energy. */
int figure_rank_for(const struct spectrum *s, double share);
#define FIGURE_CONTEXTS 5
extern const int figure_contexts[FIGURE_CONTEXTS];
/* Bytes of a plan's cache at a context, F16; of the original's. */
double figure_kv_after(const struct rankplan *p, int context);
double figure_kv_before(const struct rankplan *p, int context);

#endif

/* refit_sums: what a least-squares refit needs of its rows, Σ a aᵀ and Σ a yᵀ: in the backend's
 * memory where it has algebra and room, else on the host. fp32 inside a group, fp64 across groups.
 */
#ifndef MLATHE_SESSIONS_REFIT_SUMS_H
#define MLATHE_SESSIONS_REFIT_SUMS_H

#include "kernels/algebra.h"

struct refit_sums;
/* For inputs a of W numbers and targets y of D, at most group rows at a time. */
int refit_sums_new(struct refit_sums **out, struct backend *b, int group, int W, int D,
                   struct err *e);
void refit_sums_free(struct refit_sums *s);
/* Forgets what was added. */
int refit_sums_start(struct refit_sums *s, struct err *e);
/* Adds n rows, a [n][W] and y [n][D], backend memory. */
void refit_sums_add(struct refit_sums *s, const float *a, const float *y, int n);
/* S[half] [W][W] whole, X[half] [W][D], host memory of s: the caller may work in it until the next
 * start. */
int refit_sums_collect(struct refit_sums *s, double *S[2], double *X[2], struct err *e);
/* Bytes on the host. */
double refit_sums_bytes(int group, int W, int D);

#endif

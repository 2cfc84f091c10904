/* moments_accum: what the rooms of the accumulation share. Not for callers: they include moments.h.
 */
#ifndef MLATHE_CORE_MOMENTS_ACCUM_H
#define MLATHE_CORE_MOMENTS_ACCUM_H

#include "core/moments.h"

#define MOMENTS_PHASE_ROWS 512 /* rows of phase features gathered for one product */

/* Totals in fp64; cko, cv, phase, c and key are packed triangles. */
struct moments_accum {
    struct moments_shape s;
    int w, threads;
    double scale;
    double *freq;           /* [rope_dim/2] */
    float *L;               /* [H][d][d] */
    double tokens, queries; /* of the second moments; of the phase covariances */
    double *c, *m, *key, *cko, *cv, *cvi, *phase, *turn, *six, *sink;
    double *seen;         /* [w] mean spectrum of c at the last look, ascending; NULL: none yet */
    double change, moved; /* since the look before it */
    float *y;             /* batch: [rows][w] */
    float *qr, *kr;       /* rotated copies */
    float *cos, *sin;     /* [T][rope_dim/2] */
    int rows_cap, T_cap;
    float **work; /* one block a thread */
    size_t work_cap;
    /* compact phases */
    int *index;             /* [candidates]; NULL: the first round */
    float complex *T, *P;   /* [candidates][G] */
    float complex *s0, *s1; /* [T][candidates] T_a κ un-rotated and rotated */
    int s_cap;
};

size_t moments_triangle(int n);
/* total's packed triangle += block's upper one, n × n. */
void moments_add_triangle(double *total, const float *block, int n);
/* Room for a batch of rows in sequences of T. */
int moments_reserve(struct moments_accum *a, int rows, int T, struct err *e);
bool moments_regrow(float **p, size_t n);
/* cos and sin for sequences of T. */
int moments_table(struct moments_accum *a, int T, struct err *e);
/* x[T][heads·d] → rotated copy, pairs (j, j + rope_dim/2) of each head. */
void moments_rotate(const struct moments_accum *a, const float *x, float *y, int heads, int T);
/* P[T][T] from rotated q, k of one head (leading dimensions lq, lk). */
void moments_weights(const struct moments_accum *a, const float *q, int lq, const float *k, int lk,
                     int T, float *P);

#endif

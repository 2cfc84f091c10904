/* Phase covariances of a layer's heads: all features of the head, or the compact form. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/moments_accum.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"

#define PHASE_IGNORED 1e-5f /* attention weights below this carry no phase information */

struct phase_job {
    struct moments_accum *a;
    const float *q, *k;
    int T, step;
};

/* ψ of one query and key over all key heads: f numbers. q, qr: this head's; k, kr: all heads'. */
static void features(const struct moments_accum *a, const float *restrict q,
                     const float *restrict qr, const float *restrict k, const float *restrict kr,
                     float *restrict out)
{
    int half = a->s.rope_dim / 2, d = a->s.d, G = a->s.G;
    float *plain = out, *turned = out + 2 * G * half;
    for (int g = 0; g < G; g++) {
        const float *b = k + g * d, *br = kr + g * d;
        for (int j = 0; j < half; j++) {
            plain[2 * (g * half + j)] = q[j] * b[j] + q[j + half] * b[j + half];
            plain[2 * (g * half + j) + 1] = q[j] * b[j + half] - q[j + half] * b[j];
            turned[2 * (g * half + j)] = qr[j] * br[j] + qr[j + half] * br[j + half];
            turned[2 * (g * half + j) + 1] = qr[j] * br[j + half] - qr[j + half] * br[j];
        }
    }
}

/* What one query brings to its features; k, kr are all heads' rows. */
struct query {
    const float *q, *qr; /* this head's */
    const float *k, *kr, *p;
    float complex *c0, *c1; /* compact: [candidates] conj(P_a χ) un-rotated and rotated */
    int m, g;
};

static float complex at_pair(const float *x, int j, int half)
{
    return x[j] + x[j + half] * I;
}

static void put(float *out, float complex z)
{
    out[0] = crealf(z);
    out[1] = cimagf(z);
}

/* The compact features of the query and key n. */
static void few_features(const struct moments_accum *a, const struct query *q, int n, float *out)
{
    int half = a->s.rope_dim / 2, C = a->s.candidates;
    size_t row = (size_t)n * (size_t)a->s.G * (size_t)a->s.d + (size_t)(q->g * a->s.d);
    const float *k = q->k + row, *kr = q->kr + row;
    const float complex *s0 = a->s0 + (size_t)n * (size_t)C, *s1 = a->s1 + (size_t)n * (size_t)C;
    float logit = 0;
    for (int j = 0; j < half; j++) {
        out[2 * j] = q->q[j] * k[j] + q->q[j + half] * k[j + half];
        out[2 * j + 1] = q->q[j] * k[j + half] - q->q[j + half] * k[j];
        logit += q->qr[j] * kr[j] + q->qr[j + half] * kr[j + half];
    }
    out[2 * half] = logit;
    for (int i = 0; i < C; i++) {
        put(out + moments_candidate(&a->s, false, i), q->c0[i] * s0[i]);
        put(out + moments_candidate(&a->s, true, i), q->c1[i] * s1[i]);
    }
}

/* Appends the rows √p·(ψ − ψ̄) of one query to rows[*n]; keys that attention ignores are left out.
 */
static void phase_query(const struct moments_accum *a, const struct query *q, float *mean,
                        float *rows, int *n)
{
    size_t f = (size_t)moments_features(&a->s), ld = (size_t)a->s.G * (size_t)a->s.d;
    int first = *n, C = a->s.candidates, half = a->s.rope_dim / 2;
    float kept = 0;
    for (int i = 0; i < C; i++) {
        float complex p = a->P[(size_t)i * (size_t)a->s.G + (size_t)q->g];
        q->c0[i] = conjf(p * at_pair(q->q, a->index[i], half));
        q->c1[i] = conjf(p * at_pair(q->qr, a->index[i], half));
    }
    memset(mean, 0, f * sizeof *mean);
    for (int i = 0; i <= q->m; i++) {
        if (q->p[i] < PHASE_IGNORED)
            continue;
        float *row = rows + (size_t)(*n)++ * f;
        if (C)
            few_features(a, q, i, row);
        else
            features(a, q->q, q->qr, q->k + (size_t)i * ld, q->kr + (size_t)i * ld, row);
        kept += q->p[i];
        for (size_t j = 0; j < f; j++)
            mean[j] += q->p[i] * row[j];
    }
    for (int i = 0, row = first; i <= q->m; i++) {
        if (q->p[i] < PHASE_IGNORED)
            continue;
        float root = sqrtf(q->p[i]), *x = rows + (size_t)row++ * f;
        for (size_t j = 0; j < f; j++)
            x[j] = root * (x[j] - mean[j] / kept);
    }
}

/* The six covariances of a query's own pairs, added to six[half][6]. */
static void own_query(const struct moments_accum *a, const struct query *q, double *six)
{
    int half = a->s.rope_dim / 2;
    size_t ld = (size_t)a->s.G * (size_t)a->s.d;
    for (int j = 0; j < half; j++) {
        double kept = 0, sum[3] = {0}, sq[6] = {0};
        for (int i = 0; i <= q->m; i++) {
            const float *k = q->k + (size_t)i * ld + (size_t)(q->g * a->s.d);
            const float *kr = q->kr + (size_t)i * ld + (size_t)(q->g * a->s.d);
            double p = q->p[i];
            if (q->p[i] < PHASE_IGNORED)
                continue;
            float complex z = conjf(at_pair(q->q, j, half)) * at_pair(k, j, half);
            double re = crealf(z), im = cimagf(z);
            double y = q->qr[j] * kr[j] + q->qr[j + half] * kr[j + half];
            kept += p;
            sum[0] += p * re, sum[1] += p * im, sum[2] += p * y;
            sq[0] += p * re * re, sq[1] += p * im * im, sq[2] += p * re * im;
            sq[3] += p * re * y, sq[4] += p * im * y, sq[5] += p * y * y;
        }
        const int pair[6][2] = {{0, 0}, {1, 1}, {0, 1}, {0, 2}, {1, 2}, {2, 2}};
        for (int i = 0; i < 6; i++)
            six[6 * j + i] += sq[i] - sum[pair[i][0]] * sum[pair[i][1]] / kept;
    }
}

/* How far the keys that a query reads have turned against it, added to turn[half][2]. */
static void turn_query(const struct moments_accum *a, const struct query *q, double *turn)
{
    int half = a->s.rope_dim / 2;
    double unit = 1 / sqrt(moments_magnitude2(&a->s)); /* the tables carry it once */
    for (int i = 0; i <= q->m; i++) {
        size_t at = (size_t)(q->m - i) * (size_t)half;
        double p = unit * (double)q->p[i];
        for (int j = 0; j < half && q->p[i] >= PHASE_IGNORED; j++) {
            turn[2 * j] += p * (double)a->cos[at + (size_t)j];
            turn[2 * j + 1] -= p * (double)a->sin[at + (size_t)j];
        }
    }
}

static void phase_head(void *arg, int h, int thread)
{
    const struct phase_job *job = arg;
    struct moments_accum *a = job->a;
    int d = a->s.d, H = a->s.H, G = a->s.G, T = job->T, n = 0, f = moments_features(&a->s);
    bool own = a->s.candidates && !a->index;
    size_t ff = (size_t)f * (size_t)f, half = (size_t)(a->s.rope_dim / 2);
    float *P = a->work[thread], *block = P + (size_t)T * (size_t)T, *mean = block + ff;
    float *rows = mean + 2 * (size_t)f;
    struct query q = {.k = job->k, .kr = a->kr, .g = h / (H / G)};
    q.c0 = (float complex *)(void *)(mean + f);
    q.c1 = q.c0 + a->s.candidates;
    memset(block, 0, ff * sizeof *block);
    moments_weights(a, a->qr + h * d, H * d, a->kr + q.g * d, G * d, T, P);
    for (int m = job->step - 1; m < T; m += job->step) {
        size_t at = (size_t)m * (size_t)(H * d) + (size_t)(h * d);
        q.q = job->q + at, q.qr = a->qr + at, q.p = P + (size_t)m * (size_t)T, q.m = m;
        if (!a->index)
            turn_query(a, &q, a->turn + (size_t)h * half * 2);
        if (own) {
            own_query(a, &q, a->six + (size_t)h * half * 6);
            continue;
        }
        phase_query(a, &q, mean, rows, &n);
        if (n < MOMENTS_PHASE_ROWS && m + job->step < T)
            continue;
        linalg_ssyrk_add(NULL, f, n, rows, f, block, f);
        n = 0;
    }
    if (!own)
        moments_add_triangle(a->phase + (size_t)h * moments_triangle(f), block, f);
}

/* T_a κ of every key of the sequence, un-rotated and rotated. */
static void candidate_keys(struct moments_accum *a, const float *k, int T)
{
    int half = a->s.rope_dim / 2, C = a->s.candidates, G = a->s.G, d = a->s.d;
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < C; i++) {
            float complex z = 0, r = 0;
            for (int g = 0; g < G; g++) {
                size_t at = ((size_t)t * (size_t)G + (size_t)g) * (size_t)d;
                z += a->T[i * G + g] * at_pair(k + at, a->index[i], half);
                r += a->T[i * G + g] * at_pair(a->kr + at, a->index[i], half);
            }
            a->s0[(size_t)t * (size_t)C + (size_t)i] = z;
            a->s1[(size_t)t * (size_t)C + (size_t)i] = r;
        }
    }
}

int moments_add_phase(struct moments_accum *a, struct pool *pool, const float *q, const float *k,
                      int T, int step, struct err *e)
{
    int rc = moments_reserve(a, T, T, e);
    if (rc)
        return rc;
    moments_rotate(a, q, a->qr, a->s.H, T);
    moments_rotate(a, k, a->kr, a->s.G, T);
    if (a->index && T > a->s_cap) {
        size_t n = (size_t)T * (size_t)a->s.candidates;
        free(a->s0);
        free(a->s1);
        a->s0 = mem_calloc(n, sizeof *a->s0);
        a->s1 = mem_calloc(n, sizeof *a->s1);
        a->s_cap = a->s0 && a->s1 ? T : 0;
        if (!a->s_cap)
            return err_nomem(e, 2 * n * sizeof *a->s0, "phase features");
    }
    if (a->index)
        candidate_keys(a, k, T);
    struct phase_job job = {a, q, k, T, step};
    pool_for(pool, a->s.H, phase_head, &job);
    if (!a->s.candidates || !a->index)
        a->queries += T / step;
    return OK;
}

int moments_candidates_set(struct moments_accum *a, const int *index, const double complex *T,
                           const double complex *P, struct err *e)
{
    size_t C = (size_t)a->s.candidates, G = (size_t)a->s.G, half = (size_t)(a->s.rope_dim / 2);
    a->index = mem_calloc(C, sizeof *a->index);
    a->T = mem_calloc(C * G, sizeof *a->T);
    a->P = mem_calloc(C * G, sizeof *a->P);
    if (!a->index || !a->T || !a->P)
        return err_nomem(e, C * G * sizeof *a->T, "rope candidates");
    for (size_t i = 0; i < C; i++) {
        a->index[i] = index[i];
        for (size_t g = 0; g < G; g++) {
            size_t at = i * G * half + g * half + (size_t)index[i];
            a->T[i * G + g] = (float complex)T[at];
            a->P[i * G + g] = (float complex)P[at];
        }
    }
    return OK;
}

/* Shrinks and gains of a head's logit, alone and jointly fitted. Every feature of the regression is
 * a linear map of the stored phase features, so no activation is needed again. */
#include <stdlib.h>
#include <string.h>

#include "core/mla.h"
#include "kernels/linalg.h"

#define JOINT_RIDGE 3e-2 /* method step 4: relative to each diagonal entry */
#define JOINT_FLOOR 1e-4 /* and to the mean diagonal */
#define SAME_PAIR 0.999  /* squared cosine: a rope row is the candidate, up to rounding */

int phase_fit_init(struct phase_fit *f, const struct moments *m, const struct rope_choice *rope,
                   const double complex *shrink, struct err *e)
{
    size_t H = (size_t)m->shape.H, half = (size_t)(m->shape.rope_dim / 2);
    size_t pairs = (size_t)rope->pairs;
    f->own = mem_calloc(H * half, sizeof *f->own);
    f->roped = mem_calloc(H * pairs, sizeof *f->roped);
    f->gain = mem_calloc(H * pairs, sizeof *f->gain);
    if (!f->own || !f->roped || !f->gain) {
        phase_fit_done(f);
        return err_nomem(e, H * half * sizeof *f->own, "shrinks");
    }
    for (size_t i = 0; i < H * half; i++)
        f->own[i] = shrink ? shrink[i] : moments_magnitude2(&m->shape);
    for (size_t i = 0; i < H * pairs; i++) {
        f->roped[i] = f->own[i / pairs * half + (size_t)rope->index[i % pairs]];
        f->gain[i] = 1;
    }
    return OK;
}

void phase_fit_done(struct phase_fit *f)
{
    free(f->own);
    free(f->roped);
    free(f->gain);
    *f = (struct phase_fit){0};
}

/* The columns (real part at u un-rotated, at t rotated) of a pair's four rows. */
static void map_pair(double complex w, size_t u, size_t t, double *taken_re, double *taken_im,
                     double *kept_re, double *kept_im)
{
    taken_re[u] = -creal(w);
    taken_re[u + 1] = cimag(w);
    taken_im[u] = cimag(w);
    taken_im[u + 1] = creal(w);
    kept_re[t] = creal(w);
    kept_re[t + 1] = -cimag(w);
    kept_im[t] = -cimag(w);
    kept_im[t + 1] = -creal(w);
}

/* Rows of Φ [2·half + 4·pairs][f]: the regression's features from the stored ones. A complex
 * coefficient c on a complex feature z adds c.re·Re z − c.im·Im z. */
static void feature_map(const struct moments *m, const struct rope_choice *rope, int h, double *map)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2, g = h / (m->shape.H / G);
    int pairs = rope->pairs;
    size_t f = (size_t)moments_features(&m->shape);
    for (int j = 0; j < half; j++) {
        size_t at = (size_t)moments_feature(&m->shape, false, g, j);
        map[(size_t)j * f + at] = 1;
        map[(size_t)(half + j) * f + at + 1] = -1;
    }
    double *taken = map + (size_t)(2 * half) * f, *kept = taken + (size_t)(2 * pairs) * f;
    for (int a = 0; a < pairs; a++) {
        int j = rope->index[a];
        size_t row = (size_t)a * (size_t)(G * half), im = (size_t)(pairs + a) * f;
        for (int k = 0; k < G; k++) {
            double complex w =
                conj(rope->P[row + (size_t)(g * half + j)]) * rope->T[row + (size_t)(k * half + j)];
            size_t u = (size_t)moments_feature(&m->shape, false, k, j);
            size_t t = (size_t)moments_feature(&m->shape, true, k, j), re = (size_t)a * f;
            map_pair(w, u, t, taken + re, taken + im, kept + re, kept + im);
        }
    }
}

/* The stored pair that rope row a is, and what its s is of the stored one's; -1: none. */
static int stored_pair(const struct moments *m, const struct rope_choice *rope, int a, int g,
                       double complex *ratio)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2, j = rope->index[a];
    const double complex *T = rope->T + (size_t)a * (size_t)(G * half);
    const double complex *P = rope->P + (size_t)a * (size_t)(G * half);
    for (int i = 0; i < m->shape.candidates; i++) {
        const float *b = m->basis + (size_t)(i * G) * 4;
        double complex dot = 0;
        double own = 0, has = 0;
        if (m->index[i] != j)
            continue;
        for (int k = 0; k < G; k++) {
            double complex t = b[4 * k] + b[4 * k + 1] * I, mine = T[k * half + j];
            dot += mine * conj(t);
            own += creal(mine * conj(mine));
            has += creal(t * conj(t));
        }
        double complex p = b[4 * g + 2] + b[4 * g + 3] * I;
        if (!(creal(dot * conj(dot)) > SAME_PAIR * own * has) || p == 0)
            continue;
        *ratio = conj(P[g * half + j] / p) * (dot / has);
        return i;
    }
    return -1;
}

/* Whether the statistics can tell what the rows do: in the compact form, candidates only. */
static bool all_stored(const struct moments *m, const struct rope_choice *rope)
{
    double complex w;
    for (int a = 0; a < rope->pairs && m->shape.candidates; a++)
        if (stored_pair(m, rope, a, 0, &w) < 0)
            return false;
    return true;
}

/* The same from the compact form. */
static void compact_map(const struct moments *m, const struct rope_choice *rope, int h, double *map)
{
    int half = m->shape.rope_dim / 2, pairs = rope->pairs, g = h / (m->shape.H / m->shape.G);
    size_t f = (size_t)moments_features(&m->shape);
    for (int j = 0; j < half; j++) {
        map[(size_t)j * f + (size_t)(2 * j)] = 1;
        map[(size_t)(half + j) * f + (size_t)(2 * j + 1)] = -1;
    }
    double *taken = map + (size_t)(2 * half) * f, *kept = taken + (size_t)(2 * pairs) * f;
    for (int a = 0; a < pairs; a++) {
        double complex w;
        int i = stored_pair(m, rope, a, g, &w);
        if (i >= 0)
            map_pair(w, (size_t)moments_candidate(&m->shape, false, i),
                     (size_t)moments_candidate(&m->shape, true, i), taken + (size_t)a * f,
                     taken + (size_t)(pairs + a) * f, kept + (size_t)a * f,
                     kept + (size_t)(pairs + a) * f);
    }
}

/* The head's covariance as a full matrix, and its product with the target (the true logit: the
 * rotated features of the head's own keys). */
static void covariance(const struct moments *m, int h, double *N, double *Ny)
{
    int f = moments_features(&m->shape), half = m->shape.rope_dim / 2;
    int g = h / (m->shape.H / m->shape.G);
    moments_unpack(m->phase, f, h, N);
    if (m->shape.candidates) {
        memcpy(Ny, N + (size_t)(2 * half) * (size_t)f, (size_t)f * sizeof *Ny);
        return;
    }
    memset(Ny, 0, (size_t)f * sizeof *Ny);
    for (int j = 0; j < half; j++) {
        const double *row = N + (size_t)moments_feature(&m->shape, true, g, j) * (size_t)f;
        for (int i = 0; i < f; i++)
            Ny[i] += row[i];
    }
}

/* t[n] holds the prior and becomes the fit: (N + λ) t = y + λ·prior. */
static int ridge(int n, double *N, const double *y, double damping, double *t, struct err *e)
{
    double mean = 0;
    for (int i = 0; i < n; i++)
        mean += N[(size_t)i * (size_t)(n + 1)] / n;
    if (!(mean > 0))
        return OK; /* nothing was seen: the prior it is */
    for (int i = 0; i < n; i++) {
        double *d = &N[(size_t)i * (size_t)(n + 1)];
        double lambda = damping * (JOINT_RIDGE * *d + JOINT_FLOOR * mean);
        *d += lambda;
        t[i] = y[i] + lambda * t[i];
    }
    return linalg_solve_spd(n, 1, N, t, e);
}

static void put_complex(double *t, const double complex *v, int n)
{
    for (int i = 0; i < n; i++) {
        t[i] = creal(v[i]);
        t[n + i] = cimag(v[i]);
    }
}

static void take_complex(const double *t, double complex *v, int n)
{
    for (int i = 0; i < n; i++)
        v[i] = t[i] + t[n + i] * I;
}

static int fit_head(struct phase_fit *fit, const struct moments *m, const struct rope_choice *rope,
                    int h, double damping, double *work, struct err *e)
{
    int f = moments_features(&m->shape), half = m->shape.rope_dim / 2, pairs = rope->pairs;
    int n = 2 * half + 4 * pairs;
    size_t ff = (size_t)f * (size_t)f, nf = (size_t)n * (size_t)f;
    double *N = work, *Ny = N + ff, *map = Ny + f, *mapN = map + nf, *A = mapN + nf;
    double *y = A + (size_t)n * (size_t)n, *t = y + n;
    double complex *own = fit->own + (size_t)h * (size_t)half;
    double complex *roped = fit->roped + (size_t)h * (size_t)pairs;
    double complex *gain = fit->gain + (size_t)h * (size_t)pairs;
    memset(map, 0, nf * sizeof *map);
    (m->shape.candidates ? compact_map : feature_map)(m, rope, h, map);
    covariance(m, h, N, Ny);
    linalg_dgemm(NULL, false, false, n, f, f, 1, map, f, N, f, 0, mapN, f);
    linalg_dgemm(NULL, false, true, n, n, f, 1, mapN, f, map, f, 0, A, n);
    linalg_dgemm(NULL, false, false, n, 1, f, 1, map, f, Ny, 1, 0, y, 1);
    put_complex(t, own, half);
    put_complex(t + 2 * half, roped, pairs);
    put_complex(t + 2 * half + 2 * pairs, gain, pairs);
    int rc = ridge(n, A, y, damping, t, e);
    if (!rc) {
        take_complex(t, own, half);
        take_complex(t + 2 * half, roped, pairs);
        take_complex(t + 2 * half + 2 * pairs, gain, pairs);
    }
    return rc;
}

int phase_fit_joint(struct phase_fit *fit, const struct moments *m, const struct rope_choice *rope,
                    double damping, struct err *e)
{
    size_t f = (size_t)moments_features(&m->shape);
    size_t n = (size_t)(m->shape.rope_dim + 4 * rope->pairs);
    size_t size = f * f + f + 2 * n * f + n * n + 2 * n;
    if (!all_stored(m, rope))
        return OK; /* the shrinks alone: half a fit is worse than none */
    double *work = mem_calloc(size, sizeof *work);
    int rc = work ? OK : err_nomem(e, size * sizeof *work, "a joint fit");
    for (int h = 0; h < m->shape.H && !rc; h++)
        rc = fit_head(fit, m, rope, h, damping, work, e);
    free(work);
    return rc;
}

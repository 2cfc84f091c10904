/* Accumulates a layer's second moments from its queries, keys and values. One task a query head;
 * a head's sums never depend on which thread made them. */
#include "core/moments.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"

#define PHASE_ROWS 512      /* rows of phase features gathered for one product */
#define PHASE_IGNORED 1e-5f /* attention weights below this carry no phase information */

struct moments_accum {
    struct moments_shape s;
    int n, threads;
    double scale;
    double *freq;           /* [rope_dim/2] */
    float *L;               /* [H][d][d] */
    double tokens, queries; /* of the second moments; of the phase covariances */
    double *c, *m, *cko, *cv, *cvi, *phase;
    float *z, *qr, *kr; /* batch: [rows][n], rotated copies */
    float *cos, *sin;   /* [T][rope_dim/2] */
    int rows_cap, T_cap;
    float **work; /* one block a thread */
    size_t work_cap;
};

int moments_n(const struct moments_shape *s)
{
    return 2 * s->G * s->d;
}

double moments_magnitude2(const struct moments_shape *s)
{
    return s->magnitude > 0 ? s->magnitude * s->magnitude : 1;
}

int moments_features(const struct moments_shape *s)
{
    return 4 * s->G * (s->rope_dim / 2);
}

int moments_feature(const struct moments_shape *s, bool rotated, int g, int j)
{
    int half = s->rope_dim / 2;
    return 2 * ((rotated ? s->G * half : 0) + g * half + j);
}

static size_t triangle(int n)
{
    return (size_t)n * ((size_t)n + 1) / 2;
}

int moments_init(struct moments *m, const struct moments_shape *s, bool attended, struct err *e)
{
    size_t n = (size_t)moments_n(s), H = (size_t)s->H, d = (size_t)s->d;
    *m = (struct moments){.shape = *s};
    m->c = mem_calloc(n * n, sizeof *m->c);
    m->m = mem_calloc(H * d * d, sizeof *m->m);
    bool ok = m->c && m->m;
    if (ok && attended) {
        m->cko = mem_calloc(H * triangle((int)n), sizeof *m->cko);
        m->cv = mem_calloc(H * triangle((int)n), sizeof *m->cv);
        m->cvi = mem_calloc(H, sizeof *m->cvi);
        m->phase = mem_calloc(H * triangle(moments_features(s)), sizeof *m->phase);
        ok = m->cko && m->cv && m->cvi && m->phase;
    }
    if (ok)
        return OK;
    moments_done(m);
    return err_nomem(e, H * n * n * sizeof(float), "calibration statistics");
}

void moments_done(struct moments *m)
{
    free(m->c);
    free(m->m);
    free(m->cko);
    free(m->cv);
    free(m->cvi);
    free(m->phase);
    free(m->sample);
    *m = (struct moments){0};
}

void moments_unpack(const float *packed, int n, int head, double *full)
{
    const float *p = packed + (size_t)head * triangle(n);
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++, p++)
            full[(size_t)i * n + j] = full[(size_t)j * n + i] = *p;
}

/* L_h = W_O,hᵀ W_O,h */
static void output_metric(const struct moments_accum *a, const float *wo)
{
    int d = a->s.d, width = a->s.H * d;
    for (int h = 0; h < a->s.H; h++)
        linalg_sgemm(NULL, true, false, d, d, a->s.D, 1, wo + h * d, width, wo + h * d, width, 0,
                     a->L + (size_t)h * d * d, d);
}

int moments_accum_new(struct moments_accum **out, const struct moments_shape *s, const float *wo,
                      const double *freq, double scale, int threads, struct err *e)
{
    size_t n = (size_t)moments_n(s), H = (size_t)s->H, d = (size_t)s->d;
    size_t pairs = (size_t)s->rope_dim / 2, f = (size_t)moments_features(s);
    *out = NULL;
    struct moments_accum *a = mem_calloc(1, sizeof *a);
    if (!a)
        return err_nomem(e, sizeof *a, "calibration");
    a->s = *s;
    a->n = (int)n;
    a->threads = threads;
    a->scale = scale;
    a->freq = mem_calloc(pairs, sizeof *a->freq);
    a->L = mem_calloc(H * d * d, sizeof *a->L);
    a->c = mem_calloc(n * n, sizeof *a->c);
    a->m = mem_calloc(H * d * d, sizeof *a->m);
    a->cko = mem_calloc(H * n * n, sizeof *a->cko);
    a->cv = mem_calloc(H * n * n, sizeof *a->cv);
    a->cvi = mem_calloc(H, sizeof *a->cvi);
    a->phase = mem_calloc(H * f * f, sizeof *a->phase);
    a->work = mem_calloc((size_t)threads, sizeof *a->work);
    if (!a->freq || !a->L || !a->c || !a->m || !a->cko || !a->cv || !a->cvi || !a->phase ||
        !a->work) {
        moments_accum_free(a);
        return err_nomem(e, 2 * H * n * n * sizeof(double), "calibration statistics");
    }
    memcpy(a->freq, freq, pairs * sizeof *freq);
    output_metric(a, wo);
    *out = a;
    return OK;
}

void moments_accum_free(struct moments_accum *a)
{
    if (!a)
        return;
    for (int i = 0; a->work && i < a->threads; i++)
        free(a->work[i]);
    free(a->work);
    free(a->freq);
    free(a->L);
    free(a->c);
    free(a->m);
    free(a->cko);
    free(a->cv);
    free(a->cvi);
    free(a->phase);
    free(a->z);
    free(a->qr);
    free(a->kr);
    free(a->cos);
    free(a->sin);
    free(a);
}

static bool regrow(float **p, size_t n)
{
    free(*p);
    *p = mem_aligned(n, sizeof **p);
    return *p != NULL;
}

static int reserve(struct moments_accum *a, int rows, int T, struct err *e)
{
    size_t n = (size_t)a->n, d = (size_t)a->s.d, t = (size_t)T, pairs = (size_t)a->s.rope_dim / 2;
    double turn = sqrt(moments_magnitude2(&a->s));
    bool ok = true;
    if (rows > a->rows_cap) {
        size_t r = (size_t)rows;
        ok = regrow(&a->z, r * n) && regrow(&a->qr, r * (size_t)a->s.H * d) &&
             regrow(&a->kr, r * (size_t)a->s.G * d);
        a->rows_cap = ok ? rows : 0;
    }
    if (ok && T > a->T_cap) {
        ok = regrow(&a->cos, t * pairs) && regrow(&a->sin, t * pairs);
        for (size_t i = 0; ok && i < t; i++) {
            for (size_t j = 0; j < pairs; j++) {
                a->cos[i * pairs + j] = (float)(turn * cos((double)i * a->freq[j]));
                a->sin[i * pairs + j] = (float)(turn * sin((double)i * a->freq[j]));
            }
        }
        a->T_cap = ok ? T : 0;
    }
    size_t f = (size_t)moments_features(&a->s);
    size_t work = 2 * t * t + 2 * t * n + 2 * t * d + 4 * t + 2 * n * n + d * d;
    size_t phase = t * t + (PHASE_ROWS + t) * f + f + f * f;
    work = phase > work ? phase : work;
    for (int i = 0; ok && work > a->work_cap && i < a->threads; i++)
        ok = regrow(&a->work[i], work);
    if (ok && work > a->work_cap)
        a->work_cap = work;
    return ok ? OK : err_nomem(e, work * sizeof(float), "calibration work space");
}

/* x[T][heads·d] → rotated copy, pairs (j, j + rope_dim/2) of each head. */
static void rotate(const struct moments_accum *a, const float *x, float *y, int heads, int T)
{
    size_t pairs = (size_t)a->s.rope_dim / 2, d = (size_t)a->s.d;
    memcpy(y, x, (size_t)T * (size_t)heads * d * sizeof *x);
    for (size_t t = 0; t < (size_t)T; t++) {
        const float *c = a->cos + t * pairs, *s = a->sin + t * pairs;
        for (size_t h = 0; h < (size_t)heads; h++) {
            float *v = y + (t * (size_t)heads + h) * d;
            for (size_t j = 0; j < pairs; j++) {
                float re = v[j], im = v[j + pairs];
                v[j] = re * c[j] - im * s[j];
                v[j + pairs] = im * c[j] + re * s[j];
            }
        }
    }
}

void moments_softmax(const struct moments_shape *s, float *P, int T)
{
    float cap = (float)s->softcap;
    for (int m = 0; m < T; m++) {
        int first = s->window > 0 && m >= s->window ? m - s->window + 1 : 0;
        float *row = P + (size_t)m * (size_t)T, top = -INFINITY, sum = 0;
        if (cap > 0)
            for (int i = first; i <= m; i++)
                row[i] = cap * tanhf(row[i] / cap);
        for (int i = first; i <= m; i++)
            top = row[i] > top ? row[i] : top;
        memset(row, 0, (size_t)first * sizeof *row);
        for (int i = first; i <= m; i++)
            sum += row[i] = expf(row[i] - top);
        for (int i = first; i <= m; i++)
            row[i] /= sum;
        memset(row + m + 1, 0, (size_t)(T - m - 1) * sizeof *row);
    }
}

/* P[T][T] from rotated q, k of one head (leading dimensions lq, lk). */
static void attention_weights(const struct moments_accum *a, const float *q, int lq, const float *k,
                              int lk, int T, float *P)
{
    linalg_sgemm(NULL, false, true, T, T, a->s.d, (float)a->scale, q, lq, k, lk, 0, P, T);
    moments_softmax(&a->s, P, T);
}

/* One window of one head: P is ready. Adds CV and CKo of the window into bv, bk [n][n] (fp32) and
 * returns this window's share of cvi. */
static double head_window(const struct moments_accum *a, int h, const float *z, int T,
                          const float *P, float *work, float *bk, float *bv)
{
    int n = a->n, d = a->s.d, g = h / (a->s.H / a->s.G), nk = a->s.G * d;
    size_t t = (size_t)T;
    float *zb = work, *zs = zb + t * (size_t)n, *Lv = zs + t * (size_t)n, *Lo = Lv + t * (size_t)d;
    float *vLv = Lo + t * (size_t)d, *oLo = vLv + t, *wk = oLo + t, *w2 = wk + t, *U = w2 + t;
    const float *v = z + nk + g * d, *o = zb + nk + g * d, *L = a->L + (size_t)h * d * d;
    linalg_sgemm(NULL, false, false, T, n, T, 1, P, T, z, n, 0, zb, n);
    linalg_ssyrk_add(n, T, zb, n, bv, n);
    linalg_sgemm(NULL, false, false, T, d, d, 1, v, n, L, d, 0, Lv, d);
    linalg_sgemm(NULL, false, false, T, d, d, 1, o, n, L, d, 0, Lo, d);
    linalg_sgemm(NULL, false, true, T, T, d, 1, o, n, Lv, d, 0, U, T);
    for (int i = 0; i < T; i++) {
        float sv = 0, so = 0;
        for (int j = 0; j < d; j++) {
            sv += v[(size_t)i * n + j] * Lv[(size_t)i * d + j];
            so += o[(size_t)i * n + j] * Lo[(size_t)i * d + j];
        }
        vLv[i] = sv;
        oLo[i] = so;
        wk[i] = w2[i] = 0;
    }
    for (int m = 0; m < T; m++) {
        for (int i = 0; i <= m; i++) {
            float p = P[(size_t)m * T + i], p2 = p * p;
            float u = vLv[i] - 2 * U[(size_t)m * T + i] + oLo[m];
            wk[i] += p2 * (u > 0 ? u : 0);
            w2[i] += p2;
        }
    }
    double cvi = 0;
    for (int i = 0; i < T; i++) {
        float root = sqrtf(wk[i]);
        for (int j = 0; j < n; j++)
            zs[(size_t)i * n + j] = root * z[(size_t)i * n + j];
        cvi += (double)w2[i] * vLv[i];
    }
    linalg_ssyrk_add(n, T, zs, n, bk, n);
    return cvi;
}

struct add_job {
    struct moments_accum *a;
    const float *q;
    int windows, T;
};

static void add_to(double *total, const float *block, size_t n)
{
    for (size_t i = 0; i < n; i++)
        total[i] += block[i];
}

static void add_head(void *arg, int h, int thread)
{
    const struct add_job *job = arg;
    struct moments_accum *a = job->a;
    int d = a->s.d, H = a->s.H, G = a->s.G, g = h / (H / G), T = job->T;
    size_t n = (size_t)a->n, nn = n * n, t = (size_t)T;
    float *bk = a->work[thread], *bv = bk + nn, *bm = bv + nn, *P = bm + (size_t)d * (size_t)d;
    float *rest = P + t * t;
    memset(bk, 0, 2 * nn * sizeof *bk);
    for (int w = 0; w < job->windows; w++) {
        size_t row = (size_t)w * t;
        attention_weights(a, a->qr + (row * (size_t)H + (size_t)h) * (size_t)d, H * d,
                          a->kr + (row * (size_t)G + (size_t)g) * (size_t)d, G * d, T, P);
        a->cvi[h] += head_window(a, h, a->z + row * n, T, P, rest, bk, bv);
    }
    const float *q = job->q + (size_t)h * (size_t)d;
    linalg_sgemm(NULL, true, false, d, d, job->windows * T, 1, q, H * d, q, H * d, 0, bm, d);
    add_to(a->m + (size_t)h * (size_t)(d * d), bm, (size_t)d * (size_t)d);
    add_to(a->cko + (size_t)h * nn, bk, nn);
    add_to(a->cv + (size_t)h * nn, bv, nn);
}

static void add_task(void *arg, int i, int thread)
{
    const struct add_job *job = arg;
    struct moments_accum *a = job->a;
    if (i > 0) {
        add_head(arg, i - 1, thread);
        return;
    }
    size_t n = (size_t)a->n;
    float *block = a->work[thread];
    memset(block, 0, n * n * sizeof *block);
    linalg_ssyrk_add(a->n, job->windows * job->T, a->z, a->n, block, a->n);
    add_to(a->c, block, n * n);
}

int moments_add(struct moments_accum *a, struct pool *pool, const float *q, const float *k,
                const float *v, int windows, int T, struct err *e)
{
    int rows = windows * T, H = a->s.H, G = a->s.G;
    size_t kd = (size_t)G * (size_t)a->s.d, n = (size_t)a->n;
    int rc = reserve(a, rows, T, e);
    if (rc)
        return rc;
    for (size_t i = 0; i < (size_t)rows; i++) {
        memcpy(a->z + i * n, k + i * kd, kd * sizeof *k);
        memcpy(a->z + i * n + kd, v + i * kd, kd * sizeof *v);
    }
    for (int w = 0; w < windows; w++) {
        size_t row = (size_t)w * (size_t)T, qd = (size_t)H * (size_t)a->s.d;
        rotate(a, q + row * qd, a->qr + row * qd, H, T);
        rotate(a, k + row * kd, a->kr + row * kd, G, T);
    }
    struct add_job job = {a, q, windows, T};
    pool_for(pool, H + 1, add_task, &job);
    a->tokens += rows;
    return OK;
}

double moments_phase(const struct moments *m, int h, int i, int j)
{
    int f = moments_features(&m->shape), a = i < j ? i : j, b = i < j ? j : i;
    return m->phase[(size_t)h * triangle(f) + triangle(f) - triangle(f - a) + (size_t)(b - a)];
}

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

/* Appends the rows √p·(ψ − ψ̄) of one query to rows[*n]; keys that attention ignores are left out.
 */
static void phase_query(const struct moments_accum *a, const float *q, const float *qr,
                        const float *k, const float *kr, const float *p, int m, float *mean,
                        float *rows, int *n)
{
    size_t f = (size_t)moments_features(&a->s), ld = (size_t)a->s.G * (size_t)a->s.d;
    int first = *n;
    float kept = 0;
    memset(mean, 0, f * sizeof *mean);
    for (int i = 0; i <= m; i++) {
        if (p[i] < PHASE_IGNORED)
            continue;
        float *row = rows + (size_t)(*n)++ * f;
        features(a, q, qr, k + (size_t)i * ld, kr + (size_t)i * ld, row);
        kept += p[i];
        for (size_t j = 0; j < f; j++)
            mean[j] += p[i] * row[j];
    }
    for (int i = 0, row = first; i <= m; i++) {
        if (p[i] < PHASE_IGNORED)
            continue;
        float root = sqrtf(p[i]), *x = rows + (size_t)row++ * f;
        for (size_t j = 0; j < f; j++)
            x[j] = root * (x[j] - mean[j] / kept);
    }
}

static void phase_head(void *arg, int h, int thread)
{
    const struct phase_job *job = arg;
    struct moments_accum *a = job->a;
    int d = a->s.d, H = a->s.H, G = a->s.G, g = h / (H / G), T = job->T, n = 0;
    int f = moments_features(&a->s);
    size_t ff = (size_t)f * (size_t)f;
    float *P = a->work[thread], *block = P + (size_t)T * (size_t)T, *mean = block + ff;
    float *rows = mean + f;
    memset(block, 0, ff * sizeof *block);
    attention_weights(a, a->qr + h * d, H * d, a->kr + g * d, G * d, T, P);
    for (int m = job->step - 1; m < T; m += job->step) {
        size_t at = (size_t)m * (size_t)(H * d) + (size_t)(h * d);
        phase_query(a, job->q + at, a->qr + at, job->k, a->kr, P + (size_t)m * (size_t)T, m, mean,
                    rows, &n);
        if (n < PHASE_ROWS && m + job->step < T)
            continue;
        linalg_ssyrk_add(f, n, rows, f, block, f);
        n = 0;
    }
    add_to(a->phase + (size_t)h * ff, block, ff);
}

int moments_add_phase(struct moments_accum *a, struct pool *pool, const float *q, const float *k,
                      int T, int step, struct err *e)
{
    int rc = reserve(a, T, T, e);
    if (rc)
        return rc;
    rotate(a, q, a->qr, a->s.H, T);
    rotate(a, k, a->kr, a->s.G, T);
    struct phase_job job = {a, q, k, T, step};
    pool_for(pool, a->s.H, phase_head, &job);
    a->queries += T / step;
    return OK;
}

static void pack(const double *full, int n, double f, float *out)
{
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++)
            *out++ = (float)(full[(size_t)i * n + j] * f);
}

int moments_finish(const struct moments_accum *a, struct moments *m, struct err *e)
{
    int rc = moments_init(m, &a->s, true, e);
    if (rc)
        return rc;
    size_t n = (size_t)a->n, H = (size_t)a->s.H, d = (size_t)a->s.d;
    size_t ff = (size_t)moments_features(&a->s);
    double f = a->tokens > 0 ? 1 / a->tokens : 0, trace = 0;
    m->tokens = a->tokens;
    for (size_t i = 0; i < n; i++)
        for (size_t j = i; j < n; j++)
            m->c[i * n + j] = m->c[j * n + i] = a->c[i * n + j] * f;
    for (size_t i = 0; i < H * d * d; i++)
        m->m[i] = a->m[i] * f;
    for (size_t h = 0; h < H; h++) {
        pack(a->cko + h * n * n, a->n, f, m->cko + h * triangle(a->n));
        pack(a->cv + h * n * n, a->n, f, m->cv + h * triangle(a->n));
        pack(a->phase + h * ff * ff, (int)ff, a->queries > 0 ? 1 / a->queries : 0,
             m->phase + h * triangle((int)ff));
        m->cvi[h] = a->cvi[h] * f;
        trace += m->cvi[h];
    }
    for (size_t i = 0; i < n; i++)
        trace += m->c[i * n + i];
    for (size_t i = 0; i < H * triangle((int)ff); i++)
        trace += m->phase[i];
    if (isfinite(trace))
        return OK;
    moments_done(m);
    return err_set(e, ERR_NUMERIC,
                   "calibration gave NaN or infinity: the model's weights or "
                   "activations are broken");
}

/* Accumulates a layer's second moments from its inputs, queries, keys and values. One task a query
 * head, or a group of them that share statistics; a sum never depends on which thread made it. */
#include "core/moments_accum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"

#define PRODUCT_RIDGE 1e-13 /* of Σ PᵀP, relative to its largest entry: far below fp32 */

size_t moments_triangle(int n)
{
    return (size_t)n * ((size_t)n + 1) / 2;
}

void moments_add_triangle(double *total, const float *block, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++)
            *total++ += block[(size_t)i * (size_t)n + (size_t)j];
}

/* L_h = W_O,hᵀ W_O,h */
static void output_metric(const struct moments_accum *a, const float *wo)
{
    int d = a->s.d, width = a->s.H * d;
    for (int h = 0; h < a->s.H; h++)
        linalg_sgemm(NULL, true, false, d, d, a->s.D, 1, wo + h * d, width, wo + h * d, width, 0,
                     a->L + (size_t)h * d * d, d);
}

static bool make_totals(struct moments_accum *a)
{
    const struct moments_shape *s = &a->s;
    size_t H = (size_t)s->H, d = (size_t)s->d, half = (size_t)s->rope_dim / 2;
    size_t groups = (size_t)moments_groups(s), each = moments_triangle(a->w);
    a->freq = mem_calloc(half, sizeof *a->freq);
    a->L = mem_calloc(H * d * d, sizeof *a->L);
    a->c = mem_calloc(each, sizeof *a->c);
    a->m = mem_calloc(H * d * d, sizeof *a->m);
    a->cko = mem_calloc(groups * each, sizeof *a->cko);
    a->cv = mem_calloc(groups * each, sizeof *a->cv);
    a->cvi = mem_calloc(H, sizeof *a->cvi);
    a->sink = mem_calloc(H, sizeof *a->sink);
    a->turn = mem_calloc(H * half * 2, sizeof *a->turn);
    a->phase = mem_calloc(H * moments_triangle(moments_features(s)), sizeof *a->phase);
    a->work = mem_calloc((size_t)a->threads, sizeof *a->work);
    bool ok = a->freq && a->L && a->c && a->m && a->cko && a->cv && a->cvi && a->sink && a->turn &&
              a->phase && a->work;
    if (ok && s->affine)
        ok = (a->key = mem_calloc(moments_triangle(s->G * s->d), sizeof *a->key)) != NULL;
    if (ok && s->candidates)
        ok = (a->six = mem_calloc(H * half * 6, sizeof *a->six)) != NULL;
    return ok;
}

int moments_accum_new(struct moments_accum **out, const struct moments_shape *s, const float *wo,
                      const double *freq, double scale, int threads, struct err *e)
{
    *out = NULL;
    struct moments_accum *a = mem_calloc(1, sizeof *a);
    if (!a)
        return err_nomem(e, sizeof *a, "calibration");
    a->s = *s;
    a->w = moments_width(s);
    a->threads = threads;
    a->change = -1;
    a->scale = scale;
    if (!make_totals(a)) {
        moments_accum_free(a);
        return err_nomem(e, 2 * (size_t)moments_groups(s) * moments_triangle(a->w) * sizeof(double),
                         "calibration statistics");
    }
    memcpy(a->freq, freq, (size_t)s->rope_dim / 2 * sizeof *freq);
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
    void *all[] = {a->work,  a->freq,  a->L,   a->c,  a->m,  a->key,  a->cko,  a->cv,
                   a->cvi,   a->phase, a->six, a->y,  a->qr, a->kr,   a->cos,  a->sin,
                   a->index, a->T,     a->P,   a->s0, a->s1, a->sink, a->turn, a->seen};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(a);
}

bool moments_regrow(float **p, size_t n)
{
    free(*p);
    *p = mem_aligned(n, sizeof **p);
    return *p != NULL;
}

/* Numbers of one thread's block: of a task of the second moments, or of the phases. */
static size_t work_size(const struct moments_shape *s, size_t t)
{
    size_t w = (size_t)moments_width(s), d = (size_t)s->d, f = (size_t)moments_features(s);
    size_t nk = (size_t)(s->G * s->d), wide = w > nk ? w : nk;
    bool shared = s->affine || s->groups;
    size_t rows = shared ? t * w + 5 * t * t + t * d : 2 * t * w;
    size_t work = 2 * t * t + rows + 2 * t * d + 4 * t + 2 * w * w + d * d;
    size_t phase = t * t + (MOMENTS_PHASE_ROWS + t + 2) * f + f * f;
    work = wide * wide > work ? wide * wide : work;
    return phase > work ? phase : work;
}

double moments_accum_bytes(const struct moments_shape *s, int threads, int rows, int T, int T_long)
{
    double w = moments_width(s), nk = (double)s->G * s->d, H = s->H, d = s->d;
    double each = w * (w + 1) / 2, f = (double)moments_features(s);
    double totals = each * (1 + 2.0 * moments_groups(s)) + H * d * d + H * f * (f + 1) / 2;
    if (s->affine)
        totals += nk * (nk + 1) / 2;
    double work = (double)work_size(s, (size_t)T), phase = (double)work_size(s, (size_t)T_long);
    work = phase > work ? phase : work;
    return totals * sizeof(double) +
           sizeof(float) * (rows * (w + (H + s->G) * d) + threads * work + H * d * s->D);
}

int moments_table(struct moments_accum *a, int T, struct err *e)
{
    size_t t = (size_t)T, pairs = (size_t)a->s.rope_dim / 2;
    double turn = sqrt(moments_magnitude2(&a->s));
    if (T <= a->T_cap)
        return OK;
    a->T_cap = 0;
    if (!moments_regrow(&a->cos, t * pairs) || !moments_regrow(&a->sin, t * pairs))
        return err_nomem(e, t * pairs * sizeof(float), "rotations");
    for (size_t i = 0; i < t; i++) {
        for (size_t j = 0; j < pairs; j++) {
            a->cos[i * pairs + j] = (float)(turn * cos((double)i * a->freq[j]));
            a->sin[i * pairs + j] = (float)(turn * sin((double)i * a->freq[j]));
        }
    }
    a->T_cap = T;
    return OK;
}

int moments_reserve(struct moments_accum *a, int rows, int T, struct err *e)
{
    size_t d = (size_t)a->s.d, t = (size_t)T;
    bool ok = true;
    if (rows > a->rows_cap) {
        size_t r = (size_t)rows;
        ok = moments_regrow(&a->y, r * (size_t)a->w) &&
             moments_regrow(&a->qr, r * (size_t)a->s.H * d) &&
             moments_regrow(&a->kr, r * (size_t)a->s.G * d);
        a->rows_cap = ok ? rows : 0;
    }
    size_t work = work_size(&a->s, t);
    for (int i = 0; ok && work > a->work_cap && i < a->threads; i++)
        ok = moments_regrow(&a->work[i], work);
    if (ok && work > a->work_cap)
        a->work_cap = work;
    return ok ? moments_table(a, T, e)
              : err_nomem(e, work * sizeof(float), "calibration work space");
}

void moments_rotate(const struct moments_accum *a, const float *x, float *y, int heads, int T)
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

void moments_weights(const struct moments_accum *a, const float *q, int lq, const float *k, int lk,
                     int T, float *P)
{
    linalg_sgemm(NULL, false, true, T, T, a->s.d, (float)a->scale, q, lq, k, lk, 0, P, T);
    moments_softmax(&a->s, P, T);
}

/* What a key error does to the output of head h, from v and o = P v (both ld wide): adds
 * p²‖W_O,h(v_n − o_m)‖², summed over the queries, into key[T]; returns this window's share of cvi.
 * work: 2·T·d + T² + 3·T numbers. */
static double key_weights(const struct moments_accum *a, int h, const float *v, int lv,
                          const float *o, int lo, int T, const float *P, float *work, float *key)
{
    int d = a->s.d;
    size_t t = (size_t)T;
    float *Lv = work, *Lo = Lv + t * (size_t)d, *U = Lo + t * (size_t)d;
    float *vLv = U + t * t, *oLo = vLv + t, *w2 = oLo + t;
    const float *L = a->L + (size_t)h * (size_t)(d * d);
    linalg_sgemm(NULL, false, false, T, d, d, 1, v, lv, L, d, 0, Lv, d);
    linalg_sgemm(NULL, false, false, T, d, d, 1, o, lo, L, d, 0, Lo, d);
    linalg_sgemm(NULL, false, true, T, T, d, 1, o, lo, Lv, d, 0, U, T);
    for (int i = 0; i < T; i++) {
        float sv = 0, so = 0;
        for (int j = 0; j < d; j++) {
            sv += v[(size_t)i * lv + j] * Lv[(size_t)i * d + j];
            so += o[(size_t)i * lo + j] * Lo[(size_t)i * d + j];
        }
        vLv[i] = sv;
        oLo[i] = so;
        w2[i] = 0;
    }
    for (int m = 0; m < T; m++) {
        for (int i = 0; i <= m; i++) {
            float p = P[(size_t)m * T + i], p2 = p * p;
            float u = vLv[i] - 2 * U[(size_t)m * T + i] + oLo[m];
            key[i] += p2 * (u > 0 ? u : 0);
            w2[i] += p2;
        }
    }
    double cvi = 0;
    for (int i = 0; i < T; i++)
        cvi += (double)w2[i] * vLv[i];
    return cvi;
}

static void weigh_rows(const float *y, const float *weight, int T, int w, float *out)
{
    for (int i = 0; i < T; i++) {
        float root = sqrtf(weight[i]);
        for (int j = 0; j < w; j++)
            out[(size_t)i * w + j] = root * y[(size_t)i * w + j];
    }
}

/* One window of one head on its own, statistics of z: P is ready. Adds CV and CKo of the window
 * into bv, bk [n][n] (fp32) and returns this window's share of cvi. */
static double head_window(const struct moments_accum *a, int h, const float *z, int T,
                          const float *P, float *work, float *bk, float *bv)
{
    int n = a->w, d = a->s.d, at = (a->s.G + h / (a->s.H / a->s.G)) * d;
    size_t t = (size_t)T;
    float *zb = work, *zs = zb + t * (size_t)n, *key = zs + t * (size_t)n, *rest = key + t;
    linalg_sgemm(NULL, false, false, T, n, T, 1, P, T, z, n, 0, zb, n);
    linalg_ssyrk_add(NULL, n, T, zb, n, bv, n);
    memset(key, 0, t * sizeof *key);
    double cvi = key_weights(a, h, z + at, n, zb + at, n, T, P, rest, key);
    weigh_rows(z, key, T, n, zs);
    linalg_ssyrk_add(NULL, n, T, zs, n, bk, n);
    return cvi;
}

struct add_job {
    struct moments_accum *a;
    const float *q, *k, *v;
    int windows, T;
};

/* Attention weights of head h in window w; what of them lies on its first token is counted. */
static void window_weights(const struct add_job *job, int h, int w, float *P)
{
    struct moments_accum *a = job->a;
    int d = a->s.d, H = a->s.H, G = a->s.G, g = h / (H / G);
    size_t row = (size_t)w * (size_t)job->T;
    moments_weights(a, a->qr + (row * (size_t)H + (size_t)h) * (size_t)d, H * d,
                    a->kr + (row * (size_t)G + (size_t)g) * (size_t)d, G * d, job->T, P);
    for (int m = 0; m < job->T; m++)
        a->sink[h] += (double)P[(size_t)m * (size_t)job->T];
}

/* One window of a group of heads. Their CKo is one product with the summed weights, and with
 * Σ_h P_hᵀ P_h = M Mᵀ so is their CV: Σ_h (P_h y)ᵀ(P_h y) = (Mᵀ y)ᵀ(Mᵀ y). */
static int group_window(const struct add_job *job, int group, int w, float *work, float *bk,
                        float *bv)
{
    struct moments_accum *a = job->a;
    int T = job->T, d = a->s.d, G = a->s.G, per = a->s.H / moments_groups(&a->s);
    size_t t = (size_t)T, tt = t * t, row = (size_t)w * t;
    double *M = (double *)(void *)work, *Pd = M + tt;
    float *P = (float *)(void *)(Pd + tt), *rows = P + tt, *o = rows + t * (size_t)a->w;
    float *key = o + t * (size_t)d, *rest = key + t, *y = a->y + row * (size_t)a->w;
    memset(M, 0, tt * sizeof *M);
    memset(key, 0, t * sizeof *key);
    for (int h = group * per; h < (group + 1) * per; h++) {
        const float *v = job->v + (row * (size_t)G + (size_t)(h / (a->s.H / G))) * (size_t)d;
        window_weights(job, h, w, P);
        linalg_sgemm(NULL, false, false, T, d, T, 1, P, T, v, G * d, 0, o, d);
        a->cvi[h] += key_weights(a, h, v, G * d, o, d, T, P, rest, key);
        for (size_t i = 0; i < tt; i++)
            Pd[i] = P[i];
        linalg_dgemm(NULL, true, false, T, T, T, 1, Pd, T, Pd, T, 1, M, T);
    }
    weigh_rows(y, key, T, a->w, rows);
    linalg_ssyrk_add(NULL, a->w, T, rows, a->w, bk, a->w);
    double top = 0;
    for (size_t i = 0; i < t; i++)
        top = fmax(top, M[i * (t + 1)]);
    for (size_t i = 0; i < t; i++)
        M[i * (t + 1)] += PRODUCT_RIDGE * top;
    int rc = linalg_cholesky(T, M, NULL);
    for (size_t i = 0; i < tt; i++)
        P[i] = (float)M[i];
    linalg_sgemm(NULL, true, false, T, a->w, T, 1, P, T, y, a->w, 0, rows, a->w);
    linalg_ssyrk_add(NULL, a->w, T, rows, a->w, bv, a->w);
    return rc;
}

static void add_queries(const struct add_job *job, int h, float *block)
{
    struct moments_accum *a = job->a;
    int d = a->s.d, H = a->s.H;
    const float *q = job->q + (size_t)h * (size_t)d;
    double *m = a->m + (size_t)h * (size_t)(d * d);
    linalg_sgemm(NULL, true, false, d, d, job->windows * job->T, 1, q, H * d, q, H * d, 0, block,
                 d);
    for (int i = 0; i < d * d; i++)
        m[i] += block[i];
}

static void add_group(const struct add_job *job, int group, int thread)
{
    struct moments_accum *a = job->a;
    int T = job->T, per = a->s.H / moments_groups(&a->s);
    size_t w = (size_t)a->w, each = moments_triangle(a->w), d = (size_t)a->s.d, t = (size_t)T;
    float *bk = a->work[thread], *bv = bk + w * w, *bm = bv + w * w, *P = bm + d * d;
    memset(bk, 0, 2 * w * w * sizeof *bk);
    for (int i = 0; i < job->windows; i++) {
        if (a->s.affine || a->s.groups) {
            /* doubles first: their place must be a multiple of their size */
            if (group_window(job, group, i, P + (d & 1), bk, bv))
                a->cvi[group * per] = NAN; /* found by moments_finish */
        } else {
            window_weights(job, group, i, P);
            a->cvi[group] +=
                head_window(a, group, a->y + (size_t)i * t * w, T, P, P + t * t, bk, bv);
        }
    }
    for (int h = group * per; h < (group + 1) * per; h++)
        add_queries(job, h, bm);
    moments_add_triangle(a->cko + (size_t)group * each, bk, a->w);
    moments_add_triangle(a->cv + (size_t)group * each, bv, a->w);
}

static void add_task(void *arg, int i, int thread)
{
    const struct add_job *job = arg;
    struct moments_accum *a = job->a;
    float *block = a->work[thread];
    int nk = a->s.G * a->s.d, rows = job->windows * job->T;
    if (i > 1) {
        add_group(job, i - 2, thread);
    } else if (i == 0) {
        memset(block, 0, (size_t)a->w * (size_t)a->w * sizeof *block);
        linalg_ssyrk_add(NULL, a->w, rows, a->y, a->w, block, a->w);
        moments_add_triangle(a->c, block, a->w);
    } else if (a->key) {
        memset(block, 0, (size_t)nk * (size_t)nk * sizeof *block);
        linalg_ssyrk_add(NULL, nk, rows, job->k, nk, block, nk);
        moments_add_triangle(a->key, block, nk);
    }
}

/* z = [k; v], or y = [x; 1]. */
static void gather_rows(struct moments_accum *a, const float *x, const float *k, const float *v,
                        int rows)
{
    size_t kd = (size_t)a->s.G * (size_t)a->s.d, D = (size_t)a->s.D;
    for (size_t i = 0; i < (size_t)rows; i++) {
        float *y = a->y + i * (size_t)a->w;
        if (a->s.affine) {
            memcpy(y, x + i * D, D * sizeof *x);
            if (a->s.constant)
                y[D] = 1;
        } else {
            memcpy(y, k + i * kd, kd * sizeof *k);
            memcpy(y + kd, v + i * kd, kd * sizeof *v);
        }
    }
}

int moments_add(struct moments_accum *a, struct pool *pool, const float *x, const float *q,
                const float *k, const float *v, int windows, int T, struct err *e)
{
    int rows = windows * T, H = a->s.H, G = a->s.G;
    size_t kd = (size_t)G * (size_t)a->s.d;
    int rc = moments_reserve(a, rows, T, e);
    if (rc)
        return rc;
    gather_rows(a, x, k, v, rows);
    for (int w = 0; w < windows; w++) {
        size_t row = (size_t)w * (size_t)T, qd = (size_t)H * (size_t)a->s.d;
        moments_rotate(a, q + row * qd, a->qr + row * qd, H, T);
        moments_rotate(a, k + row * kd, a->kr + row * kd, G, T);
    }
    struct add_job job = {a, q, k, v, windows, T};
    pool_for(pool, moments_groups(&a->s) + 2, add_task, &job);
    a->tokens += rows;
    return OK;
}

/* How many of the largest of w[n], ascending, hold MOMENTS_ENERGY of their sum. */
static int energy_rank(const double *w, int n)
{
    double all = 0, sum = 0;
    int r = 0;
    for (int i = 0; i < n; i++)
        all += fmax(w[i], 0);
    while (r < n && sum < MOMENTS_ENERGY * all)
        sum += fmax(w[n - 1 - r++], 0);
    return r;
}

int moments_look(struct moments_accum *a, double *change, struct err *e)
{
    size_t w = (size_t)a->w;
    double *full = (double *)(void *)a->work[0]; /* twice w² floats: see work_size */
    *change = -1;
    if (!full)
        return OK; /* nothing was added yet */
    double *now = mem_calloc(w, sizeof *now);
    int rc = now ? OK : err_nomem(e, w * sizeof *now, "a spectrum");
    const double *c = a->c;
    for (size_t i = 0; i < w && !rc; i++)
        for (size_t j = i; j < w; j++)
            full[i * w + j] = full[j * w + i] = *c++ / (a->tokens > 0 ? a->tokens : 1);
    if (!rc)
        rc = linalg_eigenvalues(a->w, full, now, e);
    if (!rc && a->seen) {
        double apart = 0, all = 0;
        for (size_t i = 0; i < w; i++) {
            apart += fabs(now[i] - a->seen[i]);
            all += fmax(now[i], 0);
        }
        a->change = all > 0 ? apart / all : 0;
        a->moved = abs(energy_rank(now, a->w) - energy_rank(a->seen, a->w));
    }
    if (!rc) {
        free(a->seen);
        a->seen = now;
        now = NULL;
        *change = a->change;
    }
    free(now);
    return rc;
}

static bool take_mean(const double *total, double f, size_t n, float *out)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = (float)(total[i] * f);
        sum += out[i];
    }
    return isfinite(sum);
}

static void take_basis(const struct moments_accum *a, struct moments *m)
{
    size_t G = (size_t)a->s.G;
    for (size_t i = 0; a->index && i < (size_t)a->s.candidates; i++) {
        m->index[i] = a->index[i];
        for (size_t g = 0; g < G; g++) {
            float *to = m->basis + (i * G + g) * 4;
            to[0] = crealf(a->T[i * G + g]), to[1] = cimagf(a->T[i * G + g]);
            to[2] = crealf(a->P[i * G + g]), to[3] = cimagf(a->P[i * G + g]);
        }
    }
}

/* c, m, key and six: what a rope choice needs. */
static bool take_means(const struct moments_accum *a, struct moments *m)
{
    size_t w = (size_t)a->w, H = (size_t)a->s.H, d = (size_t)a->s.d;
    double f = a->tokens > 0 ? 1 / a->tokens : 0, q = a->queries > 0 ? 1 / a->queries : 0;
    double trace = 0;
    const double *c = a->c;
    m->tokens = a->tokens;
    m->change = a->change;
    m->moved = a->moved;
    for (size_t i = 0; i < w; i++)
        for (size_t j = i; j < w; j++)
            m->c[i * w + j] = m->c[j * w + i] = *c++ * f;
    for (size_t i = 0; i < H * d * d; i++)
        m->m[i] = a->m[i] * f;
    for (size_t i = 0; i < w; i++)
        trace += m->c[i * w + i];
    for (size_t i = 0; a->six && i < H * (size_t)(a->s.rope_dim / 2) * 6; i++)
        m->six[i] = a->six[i] * q;
    bool fine = isfinite(trace);
    if (a->key)
        fine &= take_mean(a->key, f, moments_triangle(a->s.G * a->s.d), m->key);
    return fine;
}

int moments_so_far(const struct moments_accum *a, struct moments *m, struct err *e)
{
    int rc = moments_init(m, &a->s, false, e);
    size_t six = (size_t)a->s.H * (size_t)(a->s.rope_dim / 2) * 6;
    if (rc)
        return rc;
    m->six = mem_calloc(six, sizeof *m->six);
    if (m->six && take_means(a, m))
        return OK;
    rc = m->six ? err_set(e, ERR_NUMERIC, "calibration gave NaN or infinity")
                : err_nomem(e, six * sizeof *m->six, "phase moments");
    moments_done(m);
    return rc;
}

int moments_finish(const struct moments_accum *a, struct moments *m, struct err *e)
{
    int rc = moments_init(m, &a->s, true, e);
    if (rc)
        return rc;
    size_t H = (size_t)a->s.H, groups = (size_t)moments_groups(&a->s);
    size_t all = groups * moments_triangle(a->w);
    double f = a->tokens > 0 ? 1 / a->tokens : 0, q = a->queries > 0 ? 1 / a->queries : 0;
    double share = f * (double)groups / (double)H, trace = 0;
    bool fine = take_means(a, m);
    for (size_t h = 0; h < H; h++)
        trace += m->cvi[h] = a->cvi[h] * f;
    for (size_t h = 0; h < H; h++)
        m->sink += a->sink[h] * f / (double)H;
    for (size_t i = 0; i < H * (size_t)(a->s.rope_dim / 2) * 2; i++)
        m->turn[i] = a->turn[i] * q;
    fine &= isfinite(trace);
    fine &= take_mean(a->cko, share, all, m->cko);
    fine &= take_mean(a->cv, share, all, m->cv);
    fine &= take_mean(a->phase, q, H * moments_triangle(moments_features(&a->s)), m->phase);
    take_basis(a, m);
    if (fine)
        return OK;
    moments_done(m);
    return err_set(e, ERR_NUMERIC,
                   "calibration gave NaN or infinity: the model's weights or "
                   "activations are broken");
}

/* Measures what a converted layer does to its attention output, on kept layer inputs. Plain GEMMs
 * on the host; the decompressed form of MLA (keys and values rebuilt a head), so it also checks
 * the maps independently of the absorbed runtime. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mla.h"
#include "kernels/linalg.h"

#define CHECK_BAND 64 /* rows that meet their past together */

/* Work space of one measurement; T rows at a time. */
struct check {
    const struct mla_source *src;
    int T, D, H, G, d;
    float *q, *k, *v; /* projections (MLA: k holds latent | rope key) */
    float *z;         /* keys, while the latent takes their place */
    float *kn, *vn;   /* one head's rebuilt keys, values */
    float *P;         /* [T][T] */
    float *cos, *sin; /* [T][pairs] of the rotation last asked for: */
    const double *turns;
    float *o; /* [T][H·d] */
    float *y; /* [T][D] */
};

/* cos and sin of every position, for all heads alike. */
static void set_turns(struct check *c, const double *freq, int R)
{
    double turn = c->src->shape.magnitude > 0 ? c->src->shape.magnitude : 1;
    if (c->turns == freq)
        return;
    c->turns = freq;
    for (int t = 0; t < c->T; t++)
        for (int j = 0; j < R / 2; j++) {
            c->cos[t * (R / 2) + j] = (float)(turn * cos(t * freq[j]));
            c->sin[t * (R / 2) + j] = (float)(turn * sin(t * freq[j]));
        }
}

static void rotate(const struct check *c, float *x, int ld, int R)
{
    for (int t = 0; t < c->T; t++) {
        const float *cs = c->cos + t * (R / 2), *sn = c->sin + t * (R / 2);
        float *re = x + (size_t)t * (size_t)ld, *im = re + R / 2;
        for (int j = 0; j < R / 2; j++) {
            float was = re[j];
            re[j] = was * cs[j] - im[j] * sn[j];
            im[j] = im[j] * cs[j] + was * sn[j];
        }
    }
}

static void gemm_nt(int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                    int ldb, float beta, float *c, int ldc)
{
    linalg_sgemm(NULL, false, true, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/* P = [P +] alpha·q kᵀ of n numbers, where a token sees its past: in bands of rows. */
static void add_logits(struct check *c, int n, float alpha, const float *q, int ldq, const float *k,
                       int ldk, bool add)
{
    for (int t = 0; t < c->T; t += CHECK_BAND) {
        int rows = c->T - t < CHECK_BAND ? c->T - t : CHECK_BAND;
        gemm_nt(rows, t + rows, n, alpha, q + (size_t)t * (size_t)ldq, ldq, k, ldk, add,
                c->P + (size_t)t * (size_t)c->T, c->T);
    }
}

/* Head h's output: the weights of P times v. */
static void read_values(struct check *c, int h, const float *v, int ldv)
{
    int width = c->H * c->d;
    moments_softmax(&c->src->shape, c->P, c->T);
    for (int t = 0; t < c->T; t += CHECK_BAND) {
        int rows = c->T - t < CHECK_BAND ? c->T - t : CHECK_BAND;
        linalg_sgemm(NULL, false, false, rows, c->d, t + rows, 1, c->P + (size_t)t * (size_t)c->T,
                     c->T, v, ldv, 0, c->o + (size_t)t * (size_t)width + h * c->d, width);
    }
}

static void add_bias(float *y, int rows, int n, const float *bias)
{
    for (int t = 0; bias && t < rows; t++)
        for (int i = 0; i < n; i++)
            y[(size_t)t * (size_t)n + (size_t)i] += bias[i];
}

/* rms-norm of every head of d numbers. */
static void norm_heads(float *y, int rows, int n, int d, const float *gamma, double eps)
{
    for (int at = 0; gamma && at < rows * n; at += d) {
        double sum = 0;
        for (int i = 0; i < d; i++)
            sum += (double)y[at + i] * y[at + i];
        double f = 1 / sqrt(sum / d + eps);
        for (int i = 0; i < d; i++)
            y[at + i] = (float)(y[at + i] * f * gamma[i]);
    }
}

/* The original's before the rotation. */
static void project_queries(struct check *c, const float *x)
{
    int T = c->T, d = c->d, width = c->H * d;
    gemm_nt(T, width, c->D, 1, x, c->D, c->src->wq, c->D, 0, c->q, width);
    add_bias(c->q, T, width, c->src->bq);
    norm_heads(c->q, T, width, d, c->src->q_norm, c->src->norm_eps);
}

static void project_keys(struct check *c, const float *x)
{
    int T = c->T, d = c->d, kd = c->G * d;
    gemm_nt(T, kd, c->D, 1, x, c->D, c->src->wk, c->D, 0, c->k, kd);
    gemm_nt(T, kd, c->D, 1, x, c->D, c->src->wv, c->D, 0, c->v, kd);
    add_bias(c->k, T, kd, c->src->bk);
    add_bias(c->v, T, kd, c->src->bv);
    norm_heads(c->k, T, kd, d, c->src->k_norm, c->src->norm_eps);
}

static void output(struct check *c)
{
    gemm_nt(c->T, c->D, c->H * c->d, 1, c->o, c->H * c->d, c->src->wo, c->H * c->d, 0, c->y, c->D);
}

static void attend_original(struct check *c, const float *x)
{
    int d = c->d, H = c->H, kd = c->G * d, R = c->src->shape.rope_dim;
    project_queries(c, x);
    project_keys(c, x);
    set_turns(c, c->src->freq, R);
    for (int h = 0; h < H; h++)
        rotate(c, c->q + h * d, H * d, R);
    for (int g = 0; g < c->G; g++)
        rotate(c, c->k + g * d, kd, R);
    for (int h = 0; h < H; h++) {
        int g = h / (H / c->G);
        add_logits(c, d, (float)c->src->scale, c->q + h * d, H * d, c->k + g * d, kd, false);
        read_values(c, h, c->v + g * d, kd);
    }
    output(c);
}

/* Queries per head [nope | rope], before the rotation. */
static void project_queries_mla(struct check *c, const struct mla_result *m, const float *x)
{
    int T = c->T, d = c->d, H = c->H, R = m->R, head = d + R;
    if (!m->normed) {
        gemm_nt(T, H * head, c->D, 1, x, c->D, m->q, c->D, 0, c->q, H * head);
        add_bias(c->q, T, H * head, m->q_bias);
        return;
    }
    project_queries(c, x);
    for (int t = T - 1; t >= 0; t--) /* from the end: the wider rows grow over the narrow ones */
        for (int h = H - 1; h >= 0; h--)
            memmove(c->q + (size_t)t * (size_t)(H * head) + h * head,
                    c->q + (size_t)t * (size_t)(H * d) + h * d, (size_t)d * sizeof *c->q);
    for (int h = 0; h < H; h++)
        gemm_nt(T, R, d, 1, c->q + h * head, H * head, m->q + (size_t)h * (size_t)(R * d), d, 0,
                c->q + h * head + d, H * head);
}

/* [latent | rope key], before the rotation. */
static void project_latent(struct check *c, const struct mla_result *m, const float *x)
{
    int T = c->T, width = m->r + m->R, kd = c->G * c->d;
    if (!m->normed) {
        gemm_nt(T, width, c->D, 1, x, c->D, m->kv_a, c->D, 0, c->k, width);
        add_bias(c->k, T, width, m->kv_a_bias);
        return;
    }
    project_keys(c, x);
    memcpy(c->z, c->k, (size_t)T * (size_t)kd * sizeof *c->z);
    gemm_nt(T, width, kd, 1, c->z, kd, m->kv_a, 2 * kd, 0, c->k, width);
    gemm_nt(T, width, kd, 1, c->v, kd, m->kv_a + kd, 2 * kd, 1, c->k, width);
}

/* As attention takes them, into c->q. */
static void turned_queries(struct check *c, const struct mla_result *m, const float *x)
{
    int H = c->H, head = c->d + m->R;
    project_queries_mla(c, m, x);
    set_turns(c, m->freq, m->R);
    for (int h = 0; h < H; h++)
        rotate(c, c->q + h * head + c->d, H * head, m->R);
}

/* q: of these rows, turned; NULL: to be made. */
static void attend_mla(struct check *c, const struct mla_result *m, const float *x, const float *q)
{
    int T = c->T, d = c->d, H = c->H, R = m->R, r = m->r, head = d + R, width = r + R;
    float scale = (float)(m->normed ? c->src->scale : 1 / sqrt(d + R));
    if (!q)
        turned_queries(c, m, x);
    else
        set_turns(c, m->freq, R);
    project_latent(c, m, x);
    rotate(c, c->k + r, width, R);
    for (int h = 0; h < H; h++) {
        const float *ku = m->kv_b + (size_t)h * 2 * (size_t)d * (size_t)r;
        const float *qh = (q ? q : c->q) + h * head;
        gemm_nt(T, d, r, 1, c->k, width, ku, r, 0, c->kn, d);
        gemm_nt(T, d, r, 1, c->k, width, ku + (size_t)d * (size_t)r, r, 0, c->vn, d);
        add_logits(c, d, scale, qh, H * head, c->kn, d, false);
        add_logits(c, R, scale, qh + d, H * head, c->k + r, width, true);
        read_values(c, h, c->vn, d);
    }
    output(c);
}

static int check_init(struct check *c, const struct mla_source *src, int T, int wide, struct err *e)
{
    const struct moments_shape *p = &src->shape;
    *c = (struct check){.src = src, .T = T, .D = p->D, .H = p->H, .G = p->G, .d = p->d};
    size_t t = (size_t)T, d = (size_t)p->d, H = (size_t)p->H, kd = (size_t)p->G * d;
    size_t width = kd > (size_t)wide ? kd : (size_t)wide;
    size_t turns = d + (size_t)wide; /* pairs of the original's rope, or of a result's */
    c->q = mem_calloc(t * H * (d + (size_t)wide), sizeof *c->q);
    c->k = mem_calloc(t * width, sizeof *c->k);
    c->v = mem_calloc(t * kd, sizeof *c->v);
    c->z = mem_calloc(t * kd, sizeof *c->z);
    c->kn = mem_calloc(t * d, sizeof *c->kn);
    c->vn = mem_calloc(t * d, sizeof *c->vn);
    c->P = mem_calloc(t * t, sizeof *c->P);
    c->cos = mem_calloc(t * turns, sizeof *c->cos);
    c->sin = mem_calloc(t * turns, sizeof *c->sin);
    c->o = mem_calloc(t * H * d, sizeof *c->o);
    c->y = mem_calloc(t * (size_t)p->D, sizeof *c->y);
    if (!c->q || !c->k || !c->v || !c->z || !c->kn || !c->vn || !c->P || !c->cos || !c->sin ||
        !c->o || !c->y)
        return err_nomem(e, t * (t + H * d) * sizeof *c->P, "measuring a layer");
    return OK;
}

static void check_done(struct check *c)
{
    float **all[] = {&c->q, &c->k,   &c->v,   &c->z, &c->kn, &c->vn,
                     &c->P, &c->cos, &c->sin, &c->o, &c->y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(*all[i]);
}

int mla_original(const struct mla_source *src, const float *x, int rows, int window, float *y,
                 struct err *e)
{
    struct check c;
    size_t D = (size_t)src->shape.D;
    int rc = check_init(&c, src, window, 0, e);
    for (int at = 0; at + window <= rows && !rc; at += window) {
        attend_original(&c, x + (size_t)at * D);
        memcpy(y + (size_t)at * D, c.y, (size_t)window * D * sizeof *y);
    }
    check_done(&c);
    return rc;
}

int mla_queries(const struct mla_source *src, const float *x, int rows, int window,
                const struct mla_result *m, float *q, struct err *e)
{
    struct check c;
    size_t width = (size_t)src->shape.H * (size_t)(src->shape.d + m->R);
    int rc = check_init(&c, src, window, m->R, e);
    for (int at = 0; at + window <= rows && !rc; at += window) {
        turned_queries(&c, m, x + (size_t)at * (size_t)src->shape.D);
        memcpy(q + (size_t)at * width, c.q, (size_t)window * width * sizeof *q);
    }
    check_done(&c);
    return rc;
}

int mla_measure(const struct mla_source *src, const float *x, const float *q, const float *y,
                int rows, int window, const struct mla_result *m, double *error, struct err *e)
{
    struct check c;
    size_t D = (size_t)src->shape.D, size = (size_t)window * D;
    size_t width = (size_t)src->shape.H * (size_t)(src->shape.d + m->R);
    int rc = check_init(&c, src, window, m->r + m->R, e);
    double base = 0, sum = 0;
    for (int at = 0; at + window <= rows && !rc; at += window) {
        const float *was = y + (size_t)at * D;
        attend_mla(&c, m, x + (size_t)at * D, q ? q + (size_t)at * width : NULL);
        for (size_t j = 0; j < size; j++) {
            base += (double)was[j] * was[j];
            sum += ((double)c.y[j] - was[j]) * ((double)c.y[j] - was[j]);
        }
    }
    *error = sum / (base > 0 ? base : 1);
    check_done(&c);
    return rc;
}

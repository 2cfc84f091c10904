/* The converted layer's tensors from a solved layer: latent and rope-key rows, queries, biases; and
 * the same over normed heads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mla_solve.h"

/* The real form of a complex row f·z[G·half] on the key layout: its real or its imaginary part. */
static void real_row(const struct solve *s, const double complex *z, double complex f, bool imag,
                     double *row)
{
    int half = s->src->shape.rope_dim / 2;
    memset(row, 0, (size_t)s->nk * sizeof *row);
    for (int g = 0; g < s->G; g++) {
        for (int j = 0; j < half; j++) {
            double complex v = f * z[g * half + j];
            row[g * s->d + j] = imag ? cimag(v) : creal(v);
            row[g * s->d + half + j] = imag ? creal(v) : -cimag(v);
        }
    }
}

/* The maps are affine: what W_k and W_v get, their biases get. t = real(T). */
static void down_bias(const struct solve *s, int r, const double *t, float *bias)
{
    int nk = s->nk, R = 2 * s->rope.pairs;
    for (int i = 0; i < r + R; i++) {
        const double *row =
            i < r ? s->A + (size_t)i * (size_t)s->n : t + (size_t)(i - r) * (size_t)nk;
        double sum = 0;
        for (int j = 0; j < nk && s->src->bk; j++)
            sum += row[j] * s->src->bk[j];
        for (int j = 0; j < nk && i < r && s->src->bv; j++)
            sum += row[nk + j] * s->src->bv[j];
        bias[i] = (float)sum;
    }
}

/* kv_a of normed heads: [A; real(T) 0] on z itself. */
static void down_on_heads(const struct solve *s, int r, float *kv_a)
{
    size_t n = (size_t)s->n;
    int pairs = s->rope.pairs, width = s->G * (s->src->shape.rope_dim / 2);
    mla_store(s->A, kv_a, (size_t)r * n);
    for (int a = 0; a < 2 * pairs; a++) {
        double *row = s->t1; /* free by now */
        memset(row, 0, n * sizeof *row);
        real_row(s, s->rope.T + (size_t)(a % pairs) * (size_t)width, 1, a >= pairs, row);
        mla_store(row, kv_a + (size_t)(r + a) * n, n);
    }
}

/* The rope rows of each normed query head: real(conj(gain)·P_g) [R][d]. */
static void query_on_heads(const struct solve *s, float *q)
{
    int d = s->d, pairs = s->rope.pairs, width = s->G * (s->src->shape.rope_dim / 2);
    double *row = s->t1;
    for (int h = 0; h < s->H; h++) {
        for (int a = 0; a < 2 * pairs; a++) {
            int pair = a % pairs;
            real_row(s, s->rope.P + (size_t)pair * (size_t)width,
                     conj(s->fit.gain[h * pairs + pair]), a >= pairs, row);
            mla_store(row + h / (s->H / s->G) * d, q + (size_t)(h * 2 * pairs + a) * (size_t)d,
                      (size_t)d);
        }
    }
}

/* The rows real(T) [R][nk]. */
static void rope_rows(const struct solve *s, double *t)
{
    int pairs = s->rope.pairs, width = s->G * (s->src->shape.rope_dim / 2);
    for (int a = 0; a < 2 * pairs; a++)
        real_row(s, s->rope.T + (size_t)(a % pairs) * (size_t)width, 1, a >= pairs,
                 t + (size_t)a * (size_t)s->nk);
}

/* kv_a = [A; real(T) Q_k] on y = [x; 1]. */
static int down_on_inputs(struct solve *s, int r, float *kv_a, float *bias, struct err *e)
{
    int w = s->w, nk = s->nk, R = 2 * s->rope.pairs;
    size_t D = (size_t)s->D;
    double *t = mem_calloc((size_t)R * (size_t)(nk + w), sizeof *t);
    if (!t)
        return err_nomem(e, (size_t)R * (size_t)(nk + w) * sizeof *t, "rope keys");
    double *rope = t + (size_t)R * (size_t)nk;
    rope_rows(s, t);
    mla_gemm(false, false, R, w, nk, t, nk, s->Q, w, 0, rope, w);
    for (int i = 0; i < r + R; i++) {
        const double *row =
            i < r ? s->A + (size_t)i * (size_t)w : rope + (size_t)(i - r) * (size_t)w;
        mla_store(row, kv_a + (size_t)i * D, D);
        if (bias)
            bias[i] = w > s->D ? (float)row[D] : 0;
    }
    free(t);
    return OK;
}

/* kv_a = [A W_kv; real(T) W_k]; bias may be NULL. */
static int down_map(struct solve *s, int r, float *kv_a, float *bias, struct err *e)
{
    int D = s->D, nk = s->nk, R = 2 * s->rope.pairs, rows = r > R ? r : R;
    size_t kd = (size_t)nk * (size_t)D;
    double *w = mem_calloc(2 * kd, sizeof *w),
           *out = mem_calloc((size_t)rows * (size_t)D, sizeof *out);
    double *t = mem_calloc((size_t)R * (size_t)nk, sizeof *t);
    int rc = w && out && t ? OK : err_nomem(e, 2 * kd * sizeof *w, "key and value weights");
    if (!rc) {
        for (size_t i = 0; i < kd; i++) {
            w[i] = s->src->wk[i];
            w[kd + i] = s->src->wv[i];
        }
        mla_gemm(false, false, r, D, s->n, s->A, s->n, w, D, 0, out, D);
        mla_store(out, kv_a, (size_t)r * (size_t)D);
        rope_rows(s, t);
        mla_sparse_gemm(R, D, nk, t, nk, w, D, out, D);
        mla_store(out, kv_a + (size_t)r * (size_t)D, (size_t)R * (size_t)D);
    }
    if (!rc && bias)
        down_bias(s, r, t, bias);
    free(w);
    free(out);
    free(t);
    return rc;
}

/* q per head: W_q,h rows, then real(conj(gain)·P_g) W_q,h; all times s·√(d+R), which a DeepSeek
 * class divides by √(d+R) again. */
static int query_map(struct solve *s, float *q, float *bias, struct err *e)
{
    int d = s->d, D = s->D, R = 2 * s->rope.pairs, half = s->src->shape.rope_dim / 2;
    size_t wide =
        (size_t)s->nk + (size_t)d * (size_t)D + (size_t)R * (size_t)d + (size_t)R * (size_t)D;
    double *row = mem_calloc(wide, sizeof *row), f = s->src->scale * sqrt(d + R);
    if (!row)
        return err_nomem(e, wide * sizeof *row, "query weights");
    double *w = row + s->nk, *p = w + (size_t)d * (size_t)D, *out = p + (size_t)R * (size_t)d;
    for (int h = 0; h < s->H; h++) {
        int g = h / (s->H / s->G);
        float *to = q + (size_t)h * (size_t)(d + R) * (size_t)D;
        for (size_t i = 0; i < (size_t)d * (size_t)D; i++) {
            w[i] = f * s->src->wq[(size_t)h * (size_t)d * (size_t)D + i];
            to[i] = (float)w[i];
        }
        for (int a = 0; a < R; a++) {
            int pair = a % s->rope.pairs;
            real_row(s, s->rope.P + (size_t)pair * (size_t)(s->G * half),
                     conj(s->fit.gain[h * s->rope.pairs + pair]), a >= s->rope.pairs, row);
            memcpy(p + (size_t)a * (size_t)d, row + g * d, (size_t)d * sizeof *p);
        }
        mla_sparse_gemm(R, D, d, p, d, w, D, out, D);
        mla_store(out, to + (size_t)d * (size_t)D, (size_t)R * (size_t)D);
        for (int i = 0; bias && i < d + R; i++) {
            double sum = i < d ? s->src->bq[h * d + i] : 0;
            for (int j = 0; j < d && i >= d; j++)
                sum += p[(size_t)(i - d) * (size_t)d + (size_t)j] * s->src->bq[h * d + j];
            bias[h * (d + R) + i] = (float)(f * sum);
        }
    }
    free(row);
    return OK;
}

int mla_write_maps(struct solve *s, struct mla_result *out, struct err *e)
{
    if (out->normed) {
        query_on_heads(s, out->q);
        down_on_heads(s, out->r, out->kv_a);
        return OK;
    }
    int rc = query_map(s, out->q, out->q_bias, e);
    if (rc)
        return rc;
    return (s->Q ? down_on_inputs : down_map)(s, out->r, out->kv_a, out->kv_a_bias, e);
}

/* The reference backend: every operation in plain loops with double accumulation. It is the
 * executable definition that the fast backends are tested against; nothing here is tuned. Weights
 * are always used as the fp32 numbers they stand for. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"

struct ref {
    struct backend base;
    struct err fault;
};

struct weight {
    struct matrix m;
};

static void ref_close(struct backend *b)
{
    if (!b)
        return;
    pool_free(b->pool);
    free(b);
}

static int ref_open(struct backend **out, const struct backend_options *opt, struct err *e)
{
    struct ref *b = mem_calloc(1, sizeof *b);
    if (!b)
        return err_nomem(e, sizeof *b, "the reference backend");
    linalg_init();
    b->base.ops = &ref_backend_ops;
    int rc =
        pool_new(&b->base.pool, opt->threads ? opt->threads : pool_cores(), opt->background, e);
    if (rc) {
        ref_close(&b->base);
        return rc;
    }
    *out = &b->base;
    return OK;
}

static void ref_describe(const struct backend *b, char *text, size_t size)
{
    snprintf(text, size, "reference, %d thread%s", pool_threads(b->pool),
             pool_threads(b->pool) == 1 ? "" : "s");
}

static void *ref_alloc(struct backend *b, size_t bytes)
{
    (void)b;
    return mem_aligned(bytes, 1);
}

static void ref_free(struct backend *b, void *p)
{
    (void)b;
    free(p);
}

static void ref_copy(struct backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    memcpy(dst, src, bytes);
}

static int ref_sync(struct backend *b, struct err *e)
{
    struct ref *ref = (struct ref *)b;
    int status = ref->fault.status;
    if (status && e)
        *e = ref->fault;
    ref->fault.status = OK;
    return status;
}

/* Scratch for one operation; a failure latches and the operation is skipped. */
static void *scratch(struct backend *b, size_t n, size_t size)
{
    void *p = mem_calloc(n, size);
    if (!p)
        err_nomem(&((struct ref *)b)->fault, n * size, "the reference backend");
    return p;
}

static int ref_weight_load(struct backend *b, const struct matrix *m, struct weight **out,
                           size_t *owned, struct err *e)
{
    (void)b;
    struct weight *w = mem_calloc(1, sizeof *w);
    if (!w)
        return err_nomem(e, sizeof *w, "a weight");
    w->m = *m;
    *out = w;
    if (owned)
        *owned = 0;
    return OK;
}

static void ref_weight_free(struct backend *b, struct weight *w)
{
    (void)b;
    free(w);
}

static void weight_row(const struct weight *w, int row, float *dst)
{
    size_t cols = (size_t)w->m.cols;
    const char *data = w->m.data;
    dtype_to_f32(w->m.dtype, data + (size_t)row * dtype_bytes(w->m.dtype, cols), dst, cols);
}

static double dot(const float *a, const float *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return s;
}

static void ref_embed(struct backend *b, float *y, const struct weight *w, const int32_t *ids,
                      int T)
{
    (void)b;
    for (int t = 0; t < T; t++)
        weight_row(w, ids[t], y + (size_t)t * w->m.cols);
}

struct linear_rows {
    const struct weight *w;
    float *y;
    const float *x;
    float *rows; /* one dequantised row a thread */
    int T;
    bool add;
};

static void linear_row(void *arg, int i, int thread)
{
    struct linear_rows *l = arg;
    int cols = l->w->m.cols;
    float *row = l->rows + (size_t)thread * cols;
    weight_row(l->w, i, row);
    for (int t = 0; t < l->T; t++) {
        float *y = l->y + (size_t)t * l->w->m.rows + i;
        double v = dot(row, l->x + (size_t)t * cols, cols);
        *y = (float)(l->add ? *y + v : v);
    }
}

static void ref_linear(struct backend *b, int n, const struct weight *const *w, float *const *y,
                       const float *x, int T, bool add)
{
    float *rows = n ? scratch(b, (size_t)pool_threads(b->pool) * w[0]->m.cols, sizeof *rows) : NULL;
    for (int i = 0; i < n && rows; i++) {
        struct linear_rows l = {w[i], y[i], x, rows, T, add};
        pool_for(b->pool, w[i]->m.rows, linear_row, &l);
    }
    free(rows);
}

static void ref_rms_norm(struct backend *b, float *y, const float *x, const float *gamma, float eps,
                         int T, int n)
{
    (void)b;
    for (int t = 0; t < T; t++, x += n, y += n) {
        double scale = 1 / sqrt(dot(x, x, n) / n + eps);
        for (int i = 0; i < n; i++)
            y[i] = (float)(x[i] * scale * gamma[i]);
    }
}

static void ref_rope(struct backend *b, float *x, int ld, int heads, int stride, int R,
                     const float *cos, const float *sin, int T)
{
    (void)b;
    int half = R / 2;
    for (int t = 0; t < T; t++)
        for (int h = 0; h < heads; h++) {
            float *v = x + (size_t)t * ld + (size_t)h * stride;
            for (int j = 0; j < half; j++) {
                double c = cos[(size_t)t * half + j], s = sin[(size_t)t * half + j];
                double re = v[j], im = v[j + half];
                v[j] = (float)(re * c - im * s);
                v[j + half] = (float)(re * s + im * c);
            }
        }
}

static void ref_store(struct backend *b, void *dst, enum dtype kv, int ld_dst, const float *src,
                      int ld_src, int n, int T)
{
    (void)b;
    for (int t = 0; t < T; t++)
        dtype_row_from_f32(kv, src + (size_t)t * ld_src,
                           (char *)dst + dtype_bytes(kv, (size_t)t * ld_dst), (size_t)n);
}

/* Softmax in place over the visible keys [from, to); p[n] = weight of key n. */
static void softmax(double *p, int from, int to, double softcap)
{
    double top = -INFINITY, sum = 0;
    for (int n = from; n < to; n++) {
        if (softcap > 0)
            p[n] = softcap * tanh(p[n] / softcap);
        top = fmax(top, p[n]);
    }
    for (int n = from; n < to; n++)
        sum += p[n] = exp(p[n] - top);
    for (int n = from; n < to; n++)
        p[n] /= sum;
}

static int first_key(int pos, int window)
{
    return window && pos + 1 > window ? pos + 1 - window : 0;
}

static void ref_attn_gqa(struct backend *b, const struct attn_gqa_args *a)
{
    size_t d = (size_t)a->d, ld = (size_t)a->G * d;
    double *p = scratch(b, (size_t)a->past + a->T + d, sizeof *p);
    float *row = scratch(b, d, sizeof *row);
    for (int i = 0; p && row && i < a->T * a->H; i++) {
        int pos = a->past + i / a->H, g = i % a->H / (a->H / a->G);
        int from = first_key(pos, a->window);
        double *out = p + a->past + a->T;
        for (int n = from; n <= pos; n++) {
            size_t at = dtype_bytes(a->kv, (size_t)n * ld + (size_t)g * d);
            dtype_to_f32(a->kv, (const char *)a->k + at, row, d);
            p[n] = a->scale * dot(a->q + (size_t)i * d, row, a->d);
        }
        softmax(p, from, pos + 1, a->softcap);
        memset(out, 0, d * sizeof *out);
        for (int n = from; n <= pos; n++) {
            size_t at = dtype_bytes(a->kv, (size_t)n * ld + (size_t)g * d);
            dtype_to_f32(a->kv, (const char *)a->v + at, row, d);
            for (size_t j = 0; j < d; j++)
                out[j] += p[n] * row[j];
        }
        for (size_t j = 0; j < d; j++)
            a->out[(size_t)i * d + j] = (float)out[j];
    }
    free(p);
    free(row);
}

static void ref_attn_mla(struct backend *b, const struct attn_mla_args *a)
{
    size_t r = (size_t)a->r, R = (size_t)a->R, ld = dtype_padded(a->kv, r + R);
    double *p = scratch(b, (size_t)a->past + a->T + r, sizeof *p);
    float *row = scratch(b, ld, sizeof *row);
    for (int i = 0; p && row && i < a->T * a->H; i++) {
        int pos = a->past + i / a->H, from = first_key(pos, a->window);
        double *out = p + a->past + a->T;
        for (int n = from; n <= pos; n++) {
            dtype_to_f32(a->kv, (const char *)a->cache + dtype_bytes(a->kv, n * ld), row, ld);
            p[n] = a->scale * (dot(a->q_lat + i * r, row, a->r) +
                               (R ? dot(a->q_rope + i * R, row + r, a->R) : 0));
        }
        softmax(p, from, pos + 1, a->softcap);
        memset(out, 0, r * sizeof *out);
        for (int n = from; n <= pos; n++) {
            dtype_to_f32(a->kv, (const char *)a->cache + dtype_bytes(a->kv, n * ld), row, ld);
            for (size_t j = 0; j < r; j++)
                out[j] += p[n] * row[j];
        }
        for (size_t j = 0; j < r; j++)
            a->out[i * r + j] = (float)out[j];
    }
    free(p);
    free(row);
}

static void ref_mla_absorb(struct backend *b, float *q_lat, const float *q, int ld, int stride,
                           const struct weight *kv_b, int H, int P, int Vd, int r, int T)
{
    double *sum = scratch(b, (size_t)r, sizeof *sum);
    float *row = scratch(b, (size_t)r, sizeof *row);
    for (int i = 0; sum && row && i < T * H; i++) {
        int t = i / H, h = i % H;
        memset(sum, 0, (size_t)r * sizeof *sum);
        for (int j = 0; j < P; j++) {
            weight_row(kv_b, h * (P + Vd) + j, row);
            for (int k = 0; k < r; k++)
                sum[k] += (double)q[(size_t)t * ld + (size_t)h * stride + j] * row[k];
        }
        for (int k = 0; k < r; k++)
            q_lat[(size_t)i * r + k] = (float)sum[k];
    }
    free(sum);
    free(row);
}

static void ref_mla_expand(struct backend *b, float *out, const float *lat,
                           const struct weight *kv_b, int H, int P, int Vd, int r, int T)
{
    float *row = scratch(b, (size_t)r, sizeof *row);
    for (int i = 0; row && i < H * Vd; i++) {
        int h = i / Vd, j = i % Vd;
        weight_row(kv_b, h * (P + Vd) + P + j, row);
        for (int t = 0; t < T; t++)
            out[((size_t)t * H + h) * Vd + j] = (float)dot(lat + ((size_t)t * H + h) * r, row, r);
    }
    free(row);
}

static double activate(double g, enum glu_act act)
{
    if (act == GLU_SILU)
        return g / (1 + exp(-g));
    return 0.5 * g * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)));
}

static void ref_glu(struct backend *b, float *y, const float *gate, const float *up,
                    enum glu_act act, size_t n)
{
    (void)b;
    for (size_t i = 0; i < n; i++)
        y[i] = (float)(activate(gate[i], act) * up[i]);
}

static void ref_add(struct backend *b, float *y, const float *x, size_t n)
{
    (void)b;
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void ref_head_norm(struct backend *b, float *x, int ld, int heads, int stride,
                          const float *gamma, float eps, int T, int n)
{
    for (int i = 0; i < T * heads; i++) {
        float *v = x + (size_t)(i / heads) * ld + (size_t)(i % heads) * stride;
        ref_rms_norm(b, v, v, gamma, eps, 1, n);
    }
}

static void ref_add_bias(struct backend *b, float *y, const float *bias, int T, int n)
{
    for (int t = 0; t < T; t++)
        ref_add(b, y + (size_t)t * n, bias, (size_t)n);
}

static void ref_scale(struct backend *b, float *y, float factor, size_t n)
{
    (void)b;
    for (size_t i = 0; i < n; i++)
        y[i] *= factor;
}

static void ref_softcap(struct backend *b, float *y, float cap, size_t n)
{
    (void)b;
    for (size_t i = 0; i < n; i++)
        y[i] = (float)(cap * tanh((double)y[i] / cap));
}

static void ref_take_rows(struct backend *b, float *y, const float *x, const int32_t *rows, int T,
                          int n)
{
    (void)b;
    for (int t = 0; t < T; t++)
        memcpy(y + (size_t)t * n, x + (size_t)rows[t] * n, (size_t)n * sizeof *y);
}

static void ref_add_rows(struct backend *b, float *y, const int32_t *rows, const float *x,
                         const float *factor, int T, int n)
{
    (void)b;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < n; i++)
            y[(size_t)rows[t] * n + i] += factor[t] * x[(size_t)t * n + i];
}

static void place_head(const struct place_args *a, const struct place_part *p, int t, int h)
{
    size_t row = (size_t)t + (size_t)(p->cached ? a->past : 0);
    const float *x = p->src + (size_t)t * p->ld_src + (size_t)h * p->stride_src;
    size_t at = row * (size_t)p->ld_dst + (size_t)h * (size_t)p->stride_dst;
    for (int i = 0; i < p->n; i++) {
        int j = i - p->at, half = p->R / 2;
        float y = x[i];
        if (j >= 0 && j < half) { /* the pair, so that x may be where it goes */
            float c = a->cos[(size_t)t * a->pairs + j], s = a->sin[(size_t)t * a->pairs + j];
            float im = x[i + half], pair[2] = {y * c - im * s, y * s + im * c};
            dtype_from_f32(p->type, &pair[0], (char *)p->dst + dtype_bytes(p->type, at + i), 1);
            dtype_from_f32(p->type, &pair[1], (char *)p->dst + dtype_bytes(p->type, at + i + half),
                           1);
        } else if (j < 0 || j >= p->R) {
            dtype_from_f32(p->type, &y, (char *)p->dst + dtype_bytes(p->type, at + i), 1);
        }
    }
}

static void ref_place(struct backend *b, const struct place_args *a)
{
    (void)b;
    for (int k = 0; k < a->parts; k++)
        for (int t = 0; t < a->T; t++)
            for (int h = 0; h < a->part[k].heads; h++)
                place_head(a, &a->part[k], t, h);
}

static void ref_glu_linear(struct backend *b, float *gate, float *up, const struct weight *w_gate,
                           const struct weight *w_up, enum glu_act act, const float *x, int T)
{
    ref_linear(b, 2, (const struct weight *const[]){w_gate, w_up}, (float *const[]){gate, up}, x, T,
               false);
    ref_glu(b, gate, gate, up, act, (size_t)T * (size_t)w_gate->m.rows);
}

const struct backend_ops ref_backend_ops = {
    .name = "ref",
    .caches = 1u << DTYPE_F32 | 1u << DTYPE_F16 | 1u << DTYPE_BF16 | 1u << DTYPE_Q8_0,
    .open = ref_open,
    .close = ref_close,
    .describe = ref_describe,
    .alloc = ref_alloc,
    .free = ref_free,
    .put = ref_copy,
    .get = ref_copy,
    .sync = ref_sync,
    .weight_load = ref_weight_load,
    .weight_free = ref_weight_free,
    .embed = ref_embed,
    .linear = ref_linear,
    .rms_norm = ref_rms_norm,
    .rope = ref_rope,
    .store = ref_store,
    .attn_gqa = ref_attn_gqa,
    .attn_mla = ref_attn_mla,
    .mla_absorb = ref_mla_absorb,
    .mla_expand = ref_mla_expand,
    .glu = ref_glu,
    .add = ref_add,
    .head_norm = ref_head_norm,
    .add_bias = ref_add_bias,
    .scale = ref_scale,
    .softcap = ref_softcap,
    .take_rows = ref_take_rows,
    .add_rows = ref_add_rows,
    .place = ref_place,
    .glu_linear = ref_glu_linear,
};

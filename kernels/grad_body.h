/* grad_body: the operations of grad.h for one precision; included by grad_f32.c, grad_avx2.c and
 * grad_f64.c, which say what REAL is and how its functions are called.
 *
 * Sums over a row run in REAL within pieces of PIECE and in double across them. Work is cut into
 * parts that depend on sizes only, and sums over parts are taken in their order, so that a step
 * gives the same bits whichever thread did what. */
#include <cblas.h>
#include <math.h>
#include <string.h>

#include "kernels/grad.h"
#include "kernels/pool.h"

enum {
    GRAD_QUERIES = 64, /* query rows of attention at a time */
    GRAD_PIECE = 1024,
    GRAD_PARTS = 16, /* of element-wise work */
};

/* eˣ to a few ulp (of x where |x| is large), in a form that compilers vectorise: 2ⁿ times the
 * Taylor polynomial on |r| ≤ ln2/2. Below −87 it is 0, above 88 it saturates, a NaN stays one. */
static inline float exp_f32(float x)
{
    float z = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    int n = (int)(z * 1.44269504f + (z < 0 ? -0.5f : 0.5f));
    float r = z - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union {
        int32_t bits;
        float scale;
    } two = {.bits = (int32_t)((uint32_t)(n + 127) << 23)};
    return x < -87.0f ? 0.0f : p * two.scale;
}

static REAL *at(const void *p, size_t i)
{
    return (REAL *)(uintptr_t)p + i;
}

static void from_f32(void *dst, const float *src, size_t n)
{
    REAL *d = dst;
    for (size_t i = 0; i < n; i++)
        d[i] = src[i];
}

static void to_f32(float *dst, const void *src, size_t n)
{
    const REAL *s = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = (float)s[i];
}

static double get(const void *p, size_t i)
{
    return (double)*at(p, i);
}

static void set(void *p, size_t i, double v)
{
    *at(p, i) = (REAL)v;
}

/* --- work in parts ------------------------------------------------------------------------ */

/* n things in parts of `step`; part(arg, i, from, to) does things [from, to). */
struct split {
    void (*part)(const void *arg, int i, size_t from, size_t to);
    const void *arg;
    size_t n, step;
};

static void run_part(void *arg, int i, int thread)
{
    const struct split *s = arg;
    size_t from = (size_t)i * s->step, to = from + s->step < s->n ? from + s->step : s->n;
    (void)thread;
    s->part(s->arg, i, from, to);
}

static void in_parts(struct pool *p, size_t n, void (*part)(const void *, int, size_t, size_t),
                     const void *arg)
{
    struct split s = {part, arg, n, (n + GRAD_PARTS - 1) / GRAD_PARTS};
    if (n)
        pool_for(p, (int)((n + s.step - 1) / s.step), run_part, &s);
}

struct product {
    bool ta, tb;
    int m, n, k, step;
    REAL alpha, beta;
    const REAL *a, *b;
    REAL *c;
    int lda, ldb, ldc;
};

static void product_one(const struct product *g)
{
    REAL_GEMM(CblasRowMajor, g->ta ? CblasTrans : CblasNoTrans, g->tb ? CblasTrans : CblasNoTrans,
              g->m, g->n, g->k, g->alpha, g->a, g->lda, g->b, g->ldb, g->beta, g->c, g->ldc);
}

/* One band of the longer side of C; bands are few, since each packs the other operand again. */
static void product_band(void *arg, int i, int thread)
{
    struct product g = *(struct product *)arg;
    (void)thread;
    size_t first = (size_t)i * g.step;
    if (g.m > g.n) {
        g.a += g.ta ? first : first * g.lda;
        g.c += first * g.ldc;
        g.m = g.m - (int)first < g.step ? g.m - (int)first : g.step;
    } else {
        g.b += g.tb ? first * g.ldb : first;
        g.c += first;
        g.n = g.n - (int)first < g.step ? g.n - (int)first : g.step;
    }
    product_one(&g);
}

static void gemm(struct pool *p, bool ta, bool tb, int m, int n, int k, double alpha, const void *a,
                 int lda, const void *b, int ldb, double beta, void *c, int ldc)
{
    struct product g = {ta, tb, m, n, k, 0, (REAL)alpha, (REAL)beta, a, b, c, lda, ldb, ldc};
    int side = m > n ? m : n, threads = p ? pool_threads(p) : 1;
    if (m < 1 || n < 1)
        return;
    g.step = ((side + threads - 1) / threads + 15) & ~15;
    if (threads < 2 || 2.0 * m * n * k < 1e6)
        product_one(&g);
    else
        pool_for(p, (side + g.step - 1) / g.step, product_band, &g);
}

/* --- rows --------------------------------------------------------------------------------- */

struct rows {
    REAL *y;
    const REAL *x, *dy, *gamma;
    int n, ld, ldx;
    double eps;
    bool add;
};

static void move_part(const void *arg, int i, size_t from, size_t to)
{
    const struct rows *r = arg;
    (void)i;
    for (size_t t = from; t < to; t++) {
        REAL *y = r->y + t * r->ld;
        const REAL *x = r->x + t * r->ldx;
        if (!r->add)
            memcpy(y, x, (size_t)r->n * sizeof *y);
        for (int j = 0; r->add && j < r->n; j++)
            y[j] += x[j];
    }
}

static void move(struct pool *p, void *dst, int ld_dst, const void *src, int ld_src, int cols,
                 int rows, bool add)
{
    struct rows r = {.y = dst, .x = src, .n = cols, .ld = ld_dst, .ldx = ld_src, .add = add};
    in_parts(p, (size_t)rows, move_part, &r);
}

static void add_bias(struct pool *p, void *y, const void *bias, int rows, int n)
{
    move(p, y, n, bias, 0, n, rows, true);
}

static double sum_products(const REAL *a, const REAL *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i += GRAD_PIECE) {
        int end = n - i < GRAD_PIECE ? n : i + GRAD_PIECE;
        REAL s = 0;
        for (int j = i; j < end; j++)
            s += a[j] * b[j];
        sum += (double)s;
    }
    return sum;
}

static void norm_part(const void *arg, int i, size_t from, size_t to)
{
    const struct rows *r = arg;
    (void)i;
    for (size_t t = from; t < to; t++) {
        const REAL *x = r->x + t * r->n;
        REAL *y = r->y + t * r->n;
        REAL s = (REAL)(1 / sqrt(sum_products(x, x, r->n) / r->n + r->eps));
        for (int j = 0; j < r->n; j++)
            y[j] = x[j] * s * r->gamma[j];
    }
}

static void norm(struct pool *p, void *y, const void *x, const void *gamma, double eps, int rows,
                 int n)
{
    struct rows r = {.y = y, .x = x, .gamma = gamma, .n = n, .eps = eps};
    in_parts(p, (size_t)rows, norm_part, &r);
}

/* y = x·s·γ with s = (mean x² + eps)^-½: dx = s·(γ∘dy) − x·s³·mean(γ∘dy∘x). */
static void norm_back_part(const void *arg, int i, size_t from, size_t to)
{
    const struct rows *r = arg;
    (void)i;
    for (size_t t = from; t < to; t++) {
        const REAL *x = r->x + t * r->n, *dy = r->dy + t * r->n;
        REAL *dx = r->y + t * r->n;
        double s = 1 / sqrt(sum_products(x, x, r->n) / r->n + r->eps), along = 0;
        for (int at0 = 0; at0 < r->n; at0 += GRAD_PIECE) {
            int end = r->n - at0 < GRAD_PIECE ? r->n : at0 + GRAD_PIECE;
            REAL sum = 0;
            for (int j = at0; j < end; j++)
                sum += r->gamma[j] * dy[j] * x[j];
            along += (double)sum;
        }
        REAL a = (REAL)s, b = (REAL)(s * s * s * along / r->n);
        if (r->add)
            for (int j = 0; j < r->n; j++)
                dx[j] += a * r->gamma[j] * dy[j] - b * x[j];
        else
            for (int j = 0; j < r->n; j++)
                dx[j] = a * r->gamma[j] * dy[j] - b * x[j];
    }
}

static void norm_back(struct pool *p, void *dx, const void *dy, const void *x, const void *gamma,
                      double eps, int rows, int n, bool add)
{
    struct rows r = {.y = dx, .x = x, .dy = dy, .gamma = gamma, .n = n, .eps = eps, .add = add};
    in_parts(p, (size_t)rows, norm_back_part, &r);
}

struct turn {
    REAL *x;
    const REAL *cos, *sin;
    int ld, heads, stride, half;
    bool back;
};

static void rope_part(const void *arg, int i, size_t from, size_t to)
{
    const struct turn *r = arg;
    REAL sign = r->back ? -1 : 1;
    (void)i;
    for (size_t t = from; t < to; t++) {
        const REAL *c = r->cos + t * r->half, *s = r->sin + t * r->half;
        for (int h = 0; h < r->heads; h++) {
            REAL *v = r->x + t * r->ld + (size_t)h * r->stride;
            for (int j = 0; j < r->half; j++) {
                REAL re = v[j], im = v[j + r->half], si = sign * s[j];
                v[j] = re * c[j] - im * si;
                v[j + r->half] = re * si + im * c[j];
            }
        }
    }
}

static void rope(struct pool *p, void *x, int ld, int heads, int stride, int R, const void *cos,
                 const void *sin, int rows, bool back)
{
    struct turn r = {x, cos, sin, ld, heads, stride, R / 2, back};
    if (R)
        in_parts(p, (size_t)rows, rope_part, &r);
}

/* --- gated linear units ------------------------------------------------------------------- */

struct glu {
    REAL *y, *du;
    const REAL *dy, *gate, *up;
    enum glu_act act;
};

/* GELU's tanh form is x·σ(2u) with u = √(2/π)(x + 0.044715 x³). */
#define GELU_A ((REAL)1.5957691216057308) /* 2·√(2/π) */
#define GELU_B ((REAL)0.044715)

static void glu_part(const void *arg, int i, size_t from, size_t to)
{
    const struct glu *g = arg;
    (void)i;
    if (g->act == GLU_SILU)
        for (size_t j = from; j < to; j++)
            g->y[j] = g->gate[j] / (1 + REAL_EXP(-g->gate[j])) * g->up[j];
    else
        for (size_t j = from; j < to; j++) {
            REAL x = g->gate[j];
            g->y[j] = x / (1 + REAL_EXP(-GELU_A * (x + GELU_B * x * x * x))) * g->up[j];
        }
}

static void glu(struct pool *p, void *y, const void *gate, const void *up, enum glu_act act,
                size_t n)
{
    struct glu g = {.y = y, .gate = gate, .up = up, .act = act};
    in_parts(p, n, glu_part, &g);
}

static void glu_back_part(const void *arg, int i, size_t from, size_t to)
{
    const struct glu *g = arg;
    (void)i;
    if (g->act == GLU_SILU)
        for (size_t j = from; j < to; j++) {
            REAL x = g->gate[j], u = g->up[j], dy = g->dy[j];
            REAL s = 1 / (1 + REAL_EXP(-x));
            g->y[j] = dy * u * s * (1 + x * (1 - s));
            g->du[j] = dy * x * s;
        }
    else
        for (size_t j = from; j < to; j++) {
            REAL x = g->gate[j], u = g->up[j], dy = g->dy[j];
            REAL s = 1 / (1 + REAL_EXP(-GELU_A * (x + GELU_B * x * x * x)));
            g->y[j] = dy * u * s * (1 + x * (1 - s) * GELU_A * (1 + 3 * GELU_B * x * x));
            g->du[j] = dy * x * s;
        }
}

static void glu_back(struct pool *p, void *dgate, void *dup, const void *dy, const void *gate,
                     const void *up, enum glu_act act, size_t n)
{
    struct glu g = {dgate, dup, dy, gate, up, act};
    in_parts(p, n, glu_back_part, &g);
}

/* --- attention ---------------------------------------------------------------------------- */

static void small(bool ta, bool tb, int m, int n, int k, double alpha, const REAL *a, int lda,
                  const REAL *b, int ldb, double beta, REAL *c, int ldc)
{
    struct product g = {ta, tb, m, n, k, 0, (REAL)alpha, (REAL)beta, a, b, c, lda, ldb, ldc};
    if (m > 0 && n > 0)
        product_one(&g);
}

/* One head of one sequence: its rows, and n query rows from `first` against keys [from, to). */
struct head {
    const struct grad_attn *a;
    int row, len, h, first, n, from, to;
    REAL *s, *ds, *capped; /* [GRAD_QUERIES][keys] */
};

static struct head head_of(const struct grad_attn *a, int task, int thread)
{
    struct head x = {.a = a, .h = task % a->H};
    int longest = 0;
    for (int i = 0; i < a->n_seq; i++)
        longest = a->start[i + 1] - a->start[i] > longest ? a->start[i + 1] - a->start[i] : longest;
    size_t size = GRAD_QUERIES * (size_t)longest;
    x.row = a->start[task / a->H];
    x.len = a->start[task / a->H + 1] - x.row;
    x.s = (REAL *)a->scratch + (size_t)thread * 3 * size;
    x.ds = x.s + size;
    x.capped = x.ds + size;
    return x;
}

static bool next_queries(struct head *x)
{
    x->first += x->n;
    x->n = x->len - x->first < GRAD_QUERIES ? x->len - x->first : GRAD_QUERIES;
    x->to = x->first + x->n;
    x->from = x->a->window && x->first + 1 > x->a->window ? x->first + 1 - x->a->window : 0;
    return x->n > 0;
}

static REAL *query_at(const struct head *x, const void *base, int row)
{
    const struct grad_attn *a = x->a;
    return at(base, (size_t)(x->row + row) * a->H * (a->P + a->R) + (size_t)x->h * (a->P + a->R));
}

static REAL *kv_at(const struct head *x, const void *base, int row)
{
    const struct grad_attn *a = x->a;
    return at(base, (size_t)(x->row + row) * a->H * (a->P + a->V) + (size_t)x->h * (a->P + a->V));
}

static REAL *out_at(const struct head *x, const void *base, int row)
{
    return at(base, ((size_t)(x->row + row) * x->a->H + (size_t)x->h) * x->a->V);
}

/* The visible scores of a row become weights, the others 0. */
static void softmax_row(REAL *s, int n, int from, int to)
{
    REAL top = s[from], sum = 0;
    for (int j = from; j < to; j++)
        top = s[j] > top ? s[j] : top;
    for (int j = from; j < to; j++)
        s[j] = REAL_EXP(s[j] - top);
    for (int j = from; j < to; j++)
        sum += s[j];
    REAL f = 1 / sum;
    for (int j = from; j < to; j++)
        s[j] *= f;
    memset(s, 0, (size_t)from * sizeof *s);
    memset(s + to, 0, (size_t)(n - to) * sizeof *s);
}

/* x->s = attention weights of the query rows at hand; capped keeps the capped scores. */
static void weights(struct head *x)
{
    const struct grad_attn *a = x->a;
    int dk = a->H * (a->P + a->R), dv = a->H * (a->P + a->V), keys = x->to - x->from;
    const REAL *q = query_at(x, a->q, x->first);
    small(false, true, x->n, keys, a->P, a->scale, q, dk, kv_at(x, a->kv, x->from), dv, 0, x->s,
          keys);
    if (a->R)
        small(false, true, x->n, keys, a->R, a->scale, q + a->P, dk,
              at(a->kr, (size_t)(x->row + x->from) * a->kr_ld), a->kr_ld, 1, x->s, keys);
    if (a->softcap > 0) {
        REAL cap = (REAL)a->softcap;
        for (int i = 0; i < x->n * keys; i++)
            x->capped[i] = x->s[i] = cap * REAL_TANH(x->s[i] / cap);
    }
    for (int i = 0; i < x->n; i++) {
        int pos = x->first + i;
        int first = a->window && pos + 1 > a->window ? pos + 1 - a->window : 0;
        softmax_row(x->s + (size_t)i * keys, keys, first - x->from, pos + 1 - x->from);
    }
}

static void attn_task(void *arg, int task, int thread)
{
    const struct grad_attn *a = arg;
    struct head x = head_of(a, task, thread);
    while (next_queries(&x)) {
        int keys = x.to - x.from;
        weights(&x);
        small(false, false, x.n, a->V, keys, 1, x.s, keys, kv_at(&x, a->kv, x.from) + a->P,
              a->H * (a->P + a->V), 0, out_at(&x, a->out, x.first), a->H * a->V);
    }
}

static void attn(struct pool *p, const struct grad_attn *a)
{
    pool_for(p, a->n_seq * a->H, attn_task, (void *)(uintptr_t)a);
}

/* ds = gradient of the scores before the cap, from dP = dO·Vᵀ. */
static void scores_back(struct head *x)
{
    const struct grad_attn *a = x->a;
    int keys = x->to - x->from;
    REAL cap = (REAL)a->softcap;
    small(false, true, x->n, keys, a->V, 1, out_at(x, a->dout, x->first), a->H * a->V,
          kv_at(x, a->kv, x->from) + a->P, a->H * (a->P + a->V), 0, x->ds, keys);
    for (int i = 0; i < x->n; i++) {
        const REAL *w = x->s + (size_t)i * keys, *c = x->capped + (size_t)i * keys;
        REAL *d = x->ds + (size_t)i * keys;
        REAL mean = (REAL)sum_products(w, d, keys);
        for (int j = 0; j < keys; j++)
            d[j] = w[j] * (d[j] - mean);
        for (int j = 0; cap > 0 && j < keys; j++)
            d[j] *= 1 - c[j] / cap * (c[j] / cap);
    }
}

static void attn_back_task(void *arg, int task, int thread)
{
    const struct grad_attn *a = arg;
    struct head x = head_of(a, task, thread);
    int dk = a->H * (a->P + a->R), dv = a->H * (a->P + a->V), HR = a->H * a->R;
    for (int t = 0; t < x.len; t++) {
        memset(kv_at(&x, a->dkv, t), 0, (size_t)(a->P + a->V) * sizeof(REAL));
        memset(at(a->dkr_heads, (size_t)(x.row + t) * HR + (size_t)x.h * a->R), 0,
               (size_t)a->R * sizeof(REAL));
    }
    while (next_queries(&x)) {
        int keys = x.to - x.from;
        const REAL *q = query_at(&x, a->q, x.first), *k = kv_at(&x, a->kv, x.from);
        REAL *dq = query_at(&x, a->dq, x.first), *dkv = kv_at(&x, a->dkv, x.from);
        weights(&x);
        scores_back(&x);
        small(true, false, keys, a->V, x.n, 1, x.s, keys, out_at(&x, a->dout, x.first), a->H * a->V,
              1, dkv + a->P, dv);
        small(false, false, x.n, a->P, keys, a->scale, x.ds, keys, k, dv, 0, dq, dk);
        small(true, false, keys, a->P, x.n, a->scale, x.ds, keys, q, dk, 1, dkv, dv);
        if (!a->R)
            continue;
        small(false, false, x.n, a->R, keys, a->scale, x.ds, keys,
              at(a->kr, (size_t)(x.row + x.from) * a->kr_ld), a->kr_ld, 0, dq + a->P, dk);
        small(true, false, keys, a->R, x.n, a->scale, x.ds, keys, q + a->P, dk, 1,
              at(a->dkr_heads, (size_t)(x.row + x.from) * HR + (size_t)x.h * a->R), HR);
    }
}

/* The rope key is shared: its gradient is the sum over heads, in their order. */
static void shared_key_part(const void *arg, int i, size_t from, size_t to)
{
    const struct grad_attn *a = arg;
    (void)i;
    for (size_t t = from; t < to; t++) {
        REAL *d = at(a->dkr, t * a->kr_ld);
        memset(d, 0, (size_t)a->R * sizeof *d);
        for (int h = 0; h < a->H; h++)
            for (int j = 0; j < a->R; j++)
                d[j] += *at(a->dkr_heads, (t * a->H + (size_t)h) * a->R + (size_t)j);
    }
}

static void attn_back(struct pool *p, const struct grad_attn *a)
{
    pool_for(p, a->n_seq * a->H, attn_back_task, (void *)(uintptr_t)a);
    in_parts(p, (size_t)a->start[a->n_seq], shared_key_part, a);
}

/* --- the loss ----------------------------------------------------------------------------- */

static double student_exp(const REAL *x, int n, REAL top)
{
    double sum = 0;
    for (int i = 0; i < n; i += GRAD_PIECE) {
        int end = n - i < GRAD_PIECE ? n : i + GRAD_PIECE;
        REAL s = 0;
        for (int j = i; j < end; j++)
            s += REAL_EXP(x[j] - top);
        sum += (double)s;
    }
    return sum;
}

/* Σ exp(t − top), and *apart = Σ exp(t − top)·(t − z). */
static double teacher_exp(const float *t, const REAL *z, int n, float top, double *apart)
{
    double sum = 0, weighted = 0;
    for (int i = 0; i < n; i += GRAD_PIECE) {
        int end = n - i < GRAD_PIECE ? n : i + GRAD_PIECE;
        REAL s = 0, w = 0;
        for (int j = i; j < end; j++) {
            REAL v = REAL_EXP((REAL)t[j] - (REAL)top);
            s += v;
            w += v * ((REAL)t[j] - z[j]);
        }
        sum += (double)s;
        weighted += (double)w;
    }
    *apart = weighted;
    return sum;
}

static void kl_row(const struct grad_kl *a, int row)
{
    const float *t = a->teacher + (size_t)row * a->V;
    float t_top = t[0];
    REAL *z = at(a->student, (size_t)row * a->V), cap = (REAL)a->softcap;
    for (int i = 0; cap > 0 && i < a->V; i++)
        z[i] = cap * REAL_TANH(z[i] / cap);
    REAL z_top = z[0];
    for (int i = 0; i < a->V; i++)
        t_top = t[i] > t_top ? t[i] : t_top;
    for (int i = 0; i < a->V; i++)
        z_top = z[i] > z_top ? z[i] : z_top;
    double apart, t_sum = teacher_exp(t, z, a->V, t_top, &apart);
    double z_sum = student_exp(z, a->V, z_top);
    int target = a->target ? a->target[row] : -1;
    double log_z = (double)z_top + log(z_sum);
    a->kl[row] = apart / t_sum - ((double)t_top + log(t_sum)) + log_z;
    if (a->nll)
        a->nll[row] = target >= 0 ? log_z - (double)z[target] : NAN;
    if (a->weight == 0)
        return;
    double mix = target >= 0 ? a->mix : 0;
    REAL fz = (REAL)(a->weight / z_sum), ft = (REAL)(a->weight * (1 - mix) / t_sum);
    REAL at_target = target >= 0 ? z[target] : 0, inverse = cap > 0 ? 1 / cap : 0;
    for (int i = 0; i < a->V; i++)
        z[i] = (fz * REAL_EXP(z[i] - z_top) - ft * REAL_EXP((REAL)t[i] - (REAL)t_top)) *
               (1 - z[i] * inverse * (z[i] * inverse));
    if (target >= 0)
        z[target] -= (REAL)(a->weight * mix) * (1 - at_target * inverse * (at_target * inverse));
}

static void kl_part(const void *arg, int i, size_t from, size_t to)
{
    (void)i;
    for (size_t row = from; row < to; row++)
        kl_row(arg, (int)row);
}

static void kl(struct pool *p, const struct grad_kl *a)
{
    in_parts(p, (size_t)a->rows, kl_part, a);
}

/* Sums over parts go through a table, so that their order is fixed. */
struct sums {
    const REAL *x;
    const float *want;
    REAL *d, weight;
    double *sum; /* [GRAD_PARTS] */
};

static double sum_parts(struct pool *p, size_t n, struct sums *s,
                        void (*part)(const void *, int, size_t, size_t))
{
    double sum[GRAD_PARTS] = {0}, all = 0;
    s->sum = sum;
    in_parts(p, n, part, s);
    for (int i = 0; i < GRAD_PARTS; i++)
        all += sum[i];
    return all;
}

static void match_part(const void *arg, int part, size_t from, size_t to)
{
    const struct sums *s = arg;
    for (size_t i = from; i < to; i += GRAD_PIECE) {
        size_t end = to - i < GRAD_PIECE ? to : i + GRAD_PIECE;
        REAL sum = 0;
        for (size_t j = i; j < end; j++) {
            REAL off = s->x[j] - (REAL)s->want[j];
            sum += off * off;
            s->d[j] += s->weight * off;
        }
        s->sum[part] += (double)sum;
    }
}

static double match(struct pool *p, void *d, const void *x, const float *want, double weight,
                    size_t n)
{
    struct sums s = {.x = x, .want = want, .d = d, .weight = (REAL)weight};
    return 0.5 * weight * sum_parts(p, n, &s, match_part);
}

/* --- experts ------------------------------------------------------------------------------ */

static void take(void *y, const void *x, const int *rows, int n, int width)
{
    for (int t = 0; t < n; t++)
        memcpy(at(y, (size_t)t * width), at(x, (size_t)rows[t] * width),
               (size_t)width * sizeof(REAL));
}

static void give(void *y, const int *rows, const void *x, const void *factor, int n, int width)
{
    for (int t = 0; t < n; t++) {
        REAL *to = at(y, (size_t)rows[t] * width), f = *at(factor, (size_t)t);
        const REAL *from = at(x, (size_t)t * width);
        for (int j = 0; j < width; j++)
            to[j] += f * from[j];
    }
}

static void dots(void *out, const void *a, const void *b, int n, int width)
{
    for (int t = 0; t < n; t++)
        *at(out, (size_t)t) =
            (REAL)sum_products(at(a, (size_t)t * width), at(b, (size_t)t * width), width);
}

static void stretch(void *x, const void *factor, int n, int width)
{
    for (int t = 0; t < n; t++)
        for (int j = 0; j < width; j++)
            *at(x, (size_t)t * width + (size_t)j) *= *at(factor, (size_t)t);
}

/* --- the optimiser ------------------------------------------------------------------------ */

static void squares_part(const void *arg, int part, size_t from, size_t to)
{
    const struct sums *s = arg;
    for (size_t i = from; i < to; i += GRAD_PIECE)
        s->sum[part] +=
            sum_products(s->x + i, s->x + i, (int)(to - i < GRAD_PIECE ? to - i : GRAD_PIECE));
}

static double sum_squares(struct pool *p, const void *x, size_t n)
{
    struct sums s = {.x = x};
    return sum_parts(p, n, &s, squares_part);
}

struct adam {
    REAL *w, *m, *v;
    const REAL *g;
    const struct grad_adam *a;
};

static void adam_part(const void *arg, int i, size_t from, size_t to)
{
    const struct adam *s = arg;
    REAL b1 = (REAL)s->a->beta1, b2 = (REAL)s->a->beta2, f = (REAL)s->a->factor;
    REAL f1 = (REAL)(1 / s->a->fix1), f2 = (REAL)(1 / s->a->fix2), eps = (REAL)s->a->eps;
    REAL rate = (REAL)s->a->rate;
    (void)i;
    for (size_t j = from; j < to; j++) {
        REAL g = s->g[j] * f;
        REAL m = s->m[j] = b1 * s->m[j] + (1 - b1) * g;
        REAL v = s->v[j] = b2 * s->v[j] + (1 - b2) * g * g;
        s->w[j] -= rate * (m * f1) / (REAL_SQRT(v * f2) + eps);
    }
}

static void adam(struct pool *p, void *w, const void *g, void *m, void *v, size_t n,
                 const struct grad_adam *a)
{
    struct adam s = {w, m, v, g, a};
    in_parts(p, n, adam_part, &s);
}

const struct grad_ops GRAD_TABLE = {
    .name = GRAD_NAME,
    .size = sizeof(REAL),
    .from_f32 = from_f32,
    .to_f32 = to_f32,
    .get = get,
    .set = set,
    .gemm = gemm,
    .move = move,
    .add_bias = add_bias,
    .norm = norm,
    .norm_back = norm_back,
    .rope = rope,
    .glu = glu,
    .glu_back = glu_back,
    .attn = attn,
    .attn_back = attn_back,
    .kl = kl,
    .match = match,
    .take = take,
    .give = give,
    .dots = dots,
    .stretch = stretch,
    .sum_squares = sum_squares,
    .adam = adam,
};

/* A layer's second moments on the backend: the same sums as moments_accum.c, all windows of a batch
 * in each step. fp32 inside a batch, fp64 across batches, as there. Heads that share statistics
 * share products: Σ_h (P_h y)ᵀ(P_h y) = yᵀ (Σ_h P_hᵀ P_h) y.
 *
 * Floating-point operations a token and layer, w wide, windows of T, H heads of d in g groups:
 * H·(6·T·d + 4·d²) for weights and outputs; a group of one head 2·w·T + 2·w², of more 2·w·T + 3·w²
 * and 2·T² for each of its heads. Of 32,768 tokens, in fp32 at 50 TFLOP/s (an H100 has 67):
 *   Llama-3-8B  (w 2048, each head its own, 32 layers)   3.3e14   7 s
 *   Llama-2-7B  (w 4096, 8 groups, 32 layers)            4.6e14   9 s
 *   Llama-3-70B (w 2048, 16 groups, 80 layers)           6.4e14  13 s
 * about what the forward pass of the same tokens takes; two CPU cores at 150 GFLOP/s need 40 to 70
 * minutes. Totals take 4·w²·(1 + 2g) bytes: 1.1, 1.1 and 0.6 GB. Not measured on a device. */
#include "core/moments_device.h"

#include <stdlib.h>
#include <string.h>

#include "core/moments_accum.h"
#include "kernels/algebra.h"

struct moments_device {
    struct backend *b;
    const struct algebra_ops *op;
    struct moments_accum *a;
    struct moments_shape s;
    int w, rows, T, groups;
    double tokens;
    float *cos, *sin; /* host [rows][rope_dim/2] */
    /* backend */
    double *c, *key_total, *m, *cko, *cv, *share; /* packed triangles; share [H][rows] */
    float *sink; /* [H] Σ of what attention parks on first tokens: a figure for the screen, fp32 */
    float *L, *ones, *y, *qr, *kr, *P, *U, *M, *o, *Lv, *Lo, *v_dot, *o_dot, *key, *z, *block;
};

/* The arrays and their bytes; also what a size is asked of. */
struct part {
    void **at;
    size_t bytes;
};
enum { PARTS = 23 };

static int parts_of(struct moments_device *m, struct part part[PARTS])
{
    const struct moments_shape *s = &m->s;
    size_t H = (size_t)s->H, G = (size_t)s->G, d = (size_t)s->d, w = (size_t)m->w, nk = G * d;
    size_t rows = (size_t)m->rows, T = (size_t)m->T, g = (size_t)m->groups, f = sizeof(float);
    size_t each = moments_triangle(m->w) * sizeof(double), wide = w > nk ? w : nk;
    const struct part all[PARTS] = {
        {(void **)&m->c, each},
        {(void **)&m->key_total, s->affine ? moments_triangle((int)nk) * sizeof(double) : 0},
        {(void **)&m->m, H * moments_triangle(s->d) * sizeof(double)},
        {(void **)&m->cko, g * each},
        {(void **)&m->cv, g * each},
        {(void **)&m->share, H * rows * sizeof(double)},
        {(void **)&m->sink, H * f},
        {(void **)&m->L, H * d * d * f},
        {(void **)&m->ones, rows * f},
        {(void **)&m->y, rows * w * f},
        {(void **)&m->qr, rows * H * d * f},
        {(void **)&m->kr, rows * nk * f},
        {(void **)&m->P, rows * T * f},
        {(void **)&m->U, rows * T * f},
        {(void **)&m->M, m->groups < s->H ? rows * T * f : 0},
        {(void **)&m->o, rows * d * f},
        {(void **)&m->Lv, rows * d * f},
        {(void **)&m->Lo, rows * d * f},
        {(void **)&m->v_dot, rows * f},
        {(void **)&m->o_dot, rows * f},
        {(void **)&m->key, rows * f},
        {(void **)&m->z, rows * w * f},
        {(void **)&m->block, wide * wide * f},
    };
    memcpy(part, all, sizeof all);
    return PARTS;
}

static struct moments_device sized(const struct moments_shape *s, int rows, int T)
{
    return (struct moments_device){
        .s = *s, .w = moments_width(s), .rows = rows, .T = T, .groups = moments_groups(s)};
}

double moments_device_bytes(const struct moments_shape *s, int rows, int T)
{
    struct moments_device m = sized(s, rows, T);
    struct part part[PARTS];
    double sum = 0;
    for (int i = parts_of(&m, part) - 1; i >= 0; i--)
        sum += (double)part[i].bytes;
    return sum;
}

/* cos and sin of every sequence of a batch, from the accumulator's of one. */
static bool spread_table(struct moments_device *m)
{
    size_t pairs = (size_t)(m->s.rope_dim / 2), n = (size_t)m->T * pairs;
    m->cos = mem_calloc((size_t)m->rows * pairs + 1, sizeof *m->cos);
    m->sin = mem_calloc((size_t)m->rows * pairs + 1, sizeof *m->sin);
    for (int i = 0; m->cos && m->sin && i < m->rows / m->T && n; i++) {
        memcpy(m->cos + (size_t)i * n, m->a->cos, n * sizeof *m->cos);
        memcpy(m->sin + (size_t)i * n, m->a->sin, n * sizeof *m->sin);
    }
    return m->cos && m->sin;
}

static bool fill_constants(struct moments_device *m)
{
    const struct backend_ops *op = m->b->ops;
    float *ones = mem_calloc((size_t)m->rows, sizeof *ones);
    for (int i = 0; ones && i < m->rows; i++)
        ones[i] = 1;
    if (ones)
        op->put(m->b, m->ones, ones, (size_t)m->rows * sizeof *ones);
    op->put(m->b, m->L, m->a->L, (size_t)(m->s.H * m->s.d * m->s.d) * sizeof *m->L);
    free(ones);
    return ones != NULL;
}

int moments_device_new(struct moments_device **out, struct backend *b, struct moments_accum *a,
                       int rows, int T, struct err *e)
{
    *out = NULL;
    if (!b->algebra)
        return OK;
    struct moments_device *m = mem_calloc(1, sizeof *m);
    int rc = m ? moments_table(a, T, e) : err_nomem(e, sizeof *m, "calibration");
    if (rc) {
        free(m);
        return rc;
    }
    *m = sized(&a->s, rows - rows % T, T);
    m->b = b;
    m->op = b->algebra;
    m->a = a;
    struct part part[PARTS];
    bool room = spread_table(m);
    for (int i = 0, n = parts_of(m, part); room && i < n; i++)
        if (part[i].bytes)
            room = (*part[i].at = b->ops->alloc(b, part[i].bytes)) != NULL;
    if (!room || !fill_constants(m)) {
        moments_device_free(m); /* not enough memory there: the host has it */
        return OK;
    }
    *out = m;
    return OK;
}

void moments_device_free(struct moments_device *m)
{
    if (!m)
        return;
    struct part part[PARTS];
    for (int i = parts_of(m, part) - 1; i >= 0; i--)
        m->b->ops->free(m->b, *part[i].at);
    free(m->cos);
    free(m->sin);
    free(m);
}

static void product(const struct moments_device *m, struct algebra_gemm g)
{
    g.alpha = g.alpha != 0 ? g.alpha : 1;
    m->op->gemm(m->b, &g);
}

/* total += aᵀ a of a batch, n columns. */
static void square(const struct moments_device *m, double *total, const float *a, int lda, int n,
                   int rows)
{
    m->op->syrk_add(m->b, n, rows, a, lda, m->block);
    m->op->fold(m->b, total, m->block, n);
}

/* y = [k; v] or [x; 1], and rotated queries and keys. */
static void prepare(const struct moments_device *m, const float *x, const float *q, const float *k,
                    const float *v, int rows)
{
    const struct backend_ops *op = m->b->ops;
    const struct moments_shape *s = &m->s;
    int kd = s->G * s->d, qd = s->H * s->d;
    if (s->affine) {
        op->store(m->b, m->y, DTYPE_F32, m->w, x, s->D, s->D, rows);
        if (s->constant)
            op->store(m->b, m->y + s->D, DTYPE_F32, m->w, m->ones, 1, 1, rows);
    } else {
        op->store(m->b, m->y, DTYPE_F32, m->w, k, kd, kd, rows);
        op->store(m->b, m->y + kd, DTYPE_F32, m->w, v, kd, kd, rows);
    }
    op->store(m->b, m->qr, DTYPE_F32, qd, q, qd, qd, rows);
    op->store(m->b, m->kr, DTYPE_F32, kd, k, kd, kd, rows);
    if (s->rope_dim) {
        op->rope(m->b, m->qr, qd, s->H, s->d, s->rope_dim, m->cos, m->sin, rows);
        op->rope(m->b, m->kr, kd, s->G, s->d, s->rope_dim, m->cos, m->sin, rows);
    }
}

/* P of head h, what its keys' errors do, and its queries' moment. */
static void add_head(const struct moments_device *m, int h, const float *q, const float *v,
                     int windows)
{
    const struct moments_shape *s = &m->s;
    int d = s->d, T = m->T, rows = windows * T, g = h / (s->H / s->G), kd = s->G * d, qd = s->H * d;
    size_t TT = (size_t)T * (size_t)T, Td = (size_t)T * (size_t)d, t = (size_t)T;
    const float *L = m->L + (size_t)h * (size_t)(d * d), *vg = v + (size_t)(g * d);
    product(m, (struct algebra_gemm){.tb = true,
                                     .m = T,
                                     .n = T,
                                     .k = d,
                                     .count = windows,
                                     .alpha = (float)m->a->scale,
                                     .a = m->qr + (size_t)(h * d),
                                     .b = m->kr + (size_t)(g * d),
                                     .c = m->P,
                                     .lda = qd,
                                     .ldb = kd,
                                     .ldc = T,
                                     .step_a = t * (size_t)qd,
                                     .step_b = t * (size_t)kd,
                                     .step_c = TT});
    m->op->softmax(m->b, m->P, windows, T, s->window, (float)s->softcap);
    product(m, (struct algebra_gemm){.m = 1, /* the first column of each sequence's weights */
                                     .n = 1,
                                     .k = rows,
                                     .count = 1,
                                     .beta = 1,
                                     .a = m->ones,
                                     .b = m->P,
                                     .c = m->sink + h,
                                     .lda = rows,
                                     .ldb = T,
                                     .ldc = 1});
    product(m, (struct algebra_gemm){.m = T,
                                     .n = d,
                                     .k = T,
                                     .count = windows,
                                     .a = m->P,
                                     .b = vg,
                                     .c = m->o,
                                     .lda = T,
                                     .ldb = kd,
                                     .ldc = d,
                                     .step_a = TT,
                                     .step_b = t * (size_t)kd,
                                     .step_c = Td});
    product(m, (struct algebra_gemm){.m = rows,
                                     .n = d,
                                     .k = d,
                                     .count = 1,
                                     .a = vg,
                                     .b = L,
                                     .c = m->Lv,
                                     .lda = kd,
                                     .ldb = d,
                                     .ldc = d});
    product(m, (struct algebra_gemm){.m = rows,
                                     .n = d,
                                     .k = d,
                                     .count = 1,
                                     .a = m->o,
                                     .b = L,
                                     .c = m->Lo,
                                     .lda = d,
                                     .ldb = d,
                                     .ldc = d});
    product(m, (struct algebra_gemm){.tb = true,
                                     .m = T,
                                     .n = T,
                                     .k = d,
                                     .count = windows,
                                     .a = m->o,
                                     .b = m->Lv,
                                     .c = m->U,
                                     .lda = d,
                                     .ldb = d,
                                     .ldc = T,
                                     .step_a = Td,
                                     .step_b = Td,
                                     .step_c = TT});
    m->op->row_dots(m->b, m->v_dot, vg, kd, m->Lv, d, d, rows);
    m->op->row_dots(m->b, m->o_dot, m->o, d, m->Lo, d, d, rows);
    struct algebra_keys keys = {.P = m->P,
                                .U = m->U,
                                .v = m->v_dot,
                                .o = m->o_dot,
                                .key = m->key,
                                .share = m->share + (size_t)h * (size_t)m->rows,
                                .count = windows,
                                .T = T};
    m->op->keys(m->b, &keys);
    square(m, m->m + (size_t)h * moments_triangle(d), q + (size_t)(h * d), qd, d, rows);
}

/* CV of a group: its one head's means, or the products of all its heads' weights. */
static void add_means(const struct moments_device *m, int group, bool alone, int windows)
{
    int T = m->T, w = m->w, rows = windows * T;
    size_t TT = (size_t)T * (size_t)T, Tw = (size_t)T * (size_t)w;
    double *total = m->cv + (size_t)group * moments_triangle(w);
    product(m, (struct algebra_gemm){.m = T,
                                     .n = w,
                                     .k = T,
                                     .count = windows,
                                     .a = alone ? m->P : m->M,
                                     .b = m->y,
                                     .c = m->z,
                                     .lda = T,
                                     .ldb = w,
                                     .ldc = w,
                                     .step_a = TT,
                                     .step_b = Tw,
                                     .step_c = Tw});
    if (alone) {
        square(m, total, m->z, w, w, rows);
        return;
    }
    product(m, (struct algebra_gemm){.ta = true,
                                     .m = w,
                                     .n = w,
                                     .k = rows,
                                     .count = 1,
                                     .a = m->y,
                                     .b = m->z,
                                     .c = m->block,
                                     .lda = w,
                                     .ldb = w,
                                     .ldc = w});
    m->op->fold(m->b, total, m->block, w);
}

void moments_device_add(struct moments_device *m, const float *x, const float *q, const float *k,
                        const float *v, int windows)
{
    const struct moments_shape *s = &m->s;
    int T = m->T, w = m->w, rows = windows * T, per = s->H / m->groups, kd = s->G * s->d;
    size_t TT = (size_t)T * (size_t)T;
    prepare(m, x, q, k, v, rows);
    for (int group = 0; group < m->groups; group++) {
        m->b->ops->scale(m->b, m->key, 0, (size_t)rows);
        for (int h = group * per; h < (group + 1) * per; h++) {
            add_head(m, h, q, v, windows);
            if (per > 1)
                product(m, (struct algebra_gemm){.ta = true,
                                                 .m = T,
                                                 .n = T,
                                                 .k = T,
                                                 .count = windows,
                                                 .beta = h > group * per,
                                                 .a = m->P,
                                                 .b = m->P,
                                                 .c = m->M,
                                                 .lda = T,
                                                 .ldb = T,
                                                 .ldc = T,
                                                 .step_a = TT,
                                                 .step_b = TT,
                                                 .step_c = TT});
        }
        m->op->weigh_rows(m->b, m->z, m->y, m->key, w, rows);
        square(m, m->cko + (size_t)group * moments_triangle(w), m->z, w, w, rows);
        add_means(m, group, per == 1, windows);
    }
    square(m, m->c, m->y, w, w, rows);
    if (s->affine)
        square(m, m->key_total, k, kd, kd, rows);
    m->tokens += rows;
}

/* Packed triangles of the queries' moments are full matrices in the accumulator. */
static void collect_queries(const struct moments_device *m, const double *packed)
{
    size_t d = (size_t)m->s.d;
    for (size_t h = 0; h < (size_t)m->s.H; h++)
        for (size_t i = 0; i < d; i++)
            for (size_t j = i; j < d; j++, packed++) {
                double *full = m->a->m + h * d * d;
                full[i * d + j] += *packed;
                if (j > i)
                    full[j * d + i] += *packed;
            }
}

static void add_to(double *to, const double *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += from[i];
}

int moments_device_collect(struct moments_device *m, struct err *e)
{
    struct moments_accum *a = m->a;
    size_t H = (size_t)m->s.H, rows = (size_t)m->rows, each = moments_triangle(m->w);
    size_t heads = H * moments_triangle(m->s.d), nk = (size_t)(m->s.G * m->s.d);
    const struct {
        double *from, *to;
        size_t n;
    } all[] = {{m->c, a->c, each},
               {m->key_total, a->key, m->s.affine ? moments_triangle((int)nk) : 0},
               {m->cko, a->cko, (size_t)m->groups * each},
               {m->cv, a->cv, (size_t)m->groups * each},
               {m->m, NULL, heads},
               {m->share, NULL, H * rows}};
    size_t most = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        most = all[i].n > most ? all[i].n : most;
    double *host = mem_calloc(most, sizeof *host);
    if (!host)
        return err_nomem(e, most * sizeof *host, "calibration statistics");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].n)
            m->b->ops->get(m->b, host, all[i].from, all[i].n * sizeof *host);
        if (all[i].to)
            add_to(all[i].to, host, all[i].n);
        else if (all[i].from == m->m)
            collect_queries(m, host);
        for (size_t j = 0; all[i].from == m->share && j < all[i].n; j++)
            a->cvi[j / rows] += host[j];
    }
    float *sink = (float *)host;
    m->b->ops->get(m->b, sink, m->sink, H * sizeof *sink);
    for (size_t h = 0; h < H; h++)
        a->sink[h] += (double)sink[h];
    free(host);
    a->tokens += m->tokens;
    m->tokens = 0;
    return m->b->ops->sync(m->b, e);
}

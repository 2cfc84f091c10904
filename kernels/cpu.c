/* The CPU backend: its instance and the small operations. The instruction set is chosen in
 * cpu_isa.c, the matrix products are in cpu_linear.c, attention in cpu_attn.c, kernels in
 * cpu_scalar.c and below. */
#include "kernels/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"

#define CPU_SPLIT 16384 /* numbers below which a small operation stays on the caller */

static void cpu_close(struct backend *base)
{
    struct cpu *b = (struct cpu *)base;
    if (!b)
        return;
    pool_free(b->base.pool);
    free(b->scratch);
    free(b->shared);
    free(b);
}

static int cpu_open(struct backend **out, const struct backend_options *opt, struct err *e)
{
    struct cpu *b = mem_calloc(1, sizeof *b);
    if (!b)
        return err_nomem(e, sizeof *b, "the CPU backend");
    linalg_init();
    b->base.ops = &cpu_backend_ops;
    b->exact = opt->exact;
    b->copies = opt->copies;
    int rc = cpu_isa_choose(&b->isa, opt->isa, e);
    if (!rc)
        rc =
            pool_new(&b->base.pool, opt->threads ? opt->threads : pool_cores(), opt->background, e);
    if (rc) {
        cpu_close(&b->base);
        return rc;
    }
    *out = &b->base;
    return OK;
}

static void cpu_describe(const struct backend *base, char *text, size_t size)
{
    int threads = pool_threads(base->pool);
    const struct cpu *b = (const struct cpu *)base;
    int n =
        snprintf(text, size, "cpu, %d thread%s, %s", threads, threads == 1 ? "" : "s", b->isa.name);
    if (b->in_place && n > 0 && (size_t)n < size) /* slower: the packed kernels need a copy */
        snprintf(text + n, size - (size_t)n, ", %d weights read from the file for want of memory",
                 b->in_place);
}

static void cpu_copy(struct backend *b, void *dst, const void *src, size_t bytes)
{
    (void)b;
    memcpy(dst, src, bytes);
}

static int cpu_sync(struct backend *base, struct err *e)
{
    struct cpu *b = (struct cpu *)base;
    int status = b->fault.status;
    if (status && e)
        *e = b->fault;
    b->fault.status = OK;
    return status;
}

static bool grow(struct cpu *b, void **p, size_t *have, size_t need)
{
    if (need <= *have)
        return true;
    free(*p);
    *have = 0;
    *p = mem_aligned(need, 1);
    if (*p)
        *have = need;
    else
        err_nomem(&b->fault, need, "scratch of the CPU backend");
    return *p != NULL;
}

void *cpu_scratch(struct cpu *b, size_t *size)
{
    *size = (*size + 63) & ~(size_t)63;
    size_t need = *size * (size_t)pool_threads(b->base.pool);
    return grow(b, &b->scratch, &b->scratch_bytes, need) ? b->scratch : NULL;
}

void *cpu_shared(struct cpu *b, size_t size)
{
    return grow(b, &b->shared, &b->shared_bytes, size) ? b->shared : NULL;
}

/* A small operation on rows [from, to). */
struct small {
    struct cpu *b;
    void (*rows)(const struct small *s, int from, int to);
    int T, step;
    void *y;
    const float *x, *z;
    const int32_t *ids;
    const struct weight *w;
    enum dtype kv;
    enum glu_act act;
    int n, ld, ldx, heads, stride;
    float eps;
};

static void small_task(void *arg, int i, int thread)
{
    const struct small *s = arg;
    (void)thread;
    int from = i * s->step, to = from + s->step < s->T ? from + s->step : s->T;
    s->rows(s, from, to);
}

static void small_run(struct small *s, size_t row_cost)
{
    size_t all = row_cost * (size_t)s->T;
    struct pool *p = s->b->base.pool;
    int tasks = all < CPU_SPLIT ? 1 : 4 * pool_threads(p);
    s->step = (s->T + tasks - 1) / tasks;
    if (s->step < 1)
        return;
    pool_for(tasks > 1 ? p : NULL, (s->T + s->step - 1) / s->step, small_task, s);
}

static void embed_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++) {
        float *y = (float *)s->y + (size_t)t * s->n;
        struct cpu_piece row = cpu_weight_piece(s->b, s->w, s->ids[t], 1, 0, s->n, CPU_FEW + 1, y);
        if (row.data != y)
            memcpy(y, row.data, (size_t)s->n * sizeof *y);
    }
}

static void cpu_embed(struct backend *b, float *y, const struct weight *w, const int32_t *ids,
                      int T)
{
    struct small s = {.b = (struct cpu *)b,
                      .rows = embed_rows,
                      .T = T,
                      .y = y,
                      .w = w,
                      .ids = ids,
                      .n = w->m.cols};
    small_run(&s, (size_t)s.n);
}

static void norm_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++)
        s->b->isa.norm((float *)s->y + (size_t)t * s->n, s->x + (size_t)t * s->n, s->z, s->eps,
                       s->n);
}

static void cpu_rms_norm(struct backend *b, float *y, const float *x, const float *gamma, float eps,
                         int T, int n)
{
    struct small s = {.b = (struct cpu *)b,
                      .rows = norm_rows,
                      .T = T,
                      .y = y,
                      .x = x,
                      .z = gamma,
                      .eps = eps,
                      .n = n};
    small_run(&s, (size_t)n);
}

static void rope_rows(const struct small *s, int from, int to)
{
    int half = s->n / 2;
    for (int t = from; t < to; t++)
        for (int h = 0; h < s->heads; h++) {
            float *v = (float *)s->y + (size_t)t * s->ld + (size_t)h * s->stride;
            s->b->isa.rotate(v, v + half, s->x + (size_t)t * half, s->z + (size_t)t * half, half);
        }
}

static void cpu_rope(struct backend *b, float *x, int ld, int heads, int stride, int R,
                     const float *cos, const float *sin, int T)
{
    struct small s = {.b = (struct cpu *)b,
                      .rows = rope_rows,
                      .T = T,
                      .y = x,
                      .ld = ld,
                      .heads = heads,
                      .stride = stride,
                      .n = R,
                      .x = cos,
                      .z = sin};
    small_run(&s, (size_t)heads * R);
}

static void store_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++) {
        const float *src = s->x + (size_t)t * s->ldx;
        void *dst = (char *)s->y + dtype_bytes(s->kv, (size_t)t * s->ld);
        if (s->kv == DTYPE_F32)
            memcpy(dst, src, (size_t)s->n * sizeof *src);
        else
            s->b->isa.narrow(s->kv, src, dst, s->n);
    }
}

static void cpu_store(struct backend *b, void *dst, enum dtype kv, int ld_dst, const float *src,
                      int ld_src, int n, int T)
{
    struct small s = {.b = (struct cpu *)b,
                      .rows = store_rows,
                      .T = T,
                      .y = dst,
                      .kv = kv,
                      .ld = ld_dst,
                      .x = src,
                      .ldx = ld_src,
                      .n = n};
    small_run(&s, (size_t)n);
}

/* glu and add see their n numbers as rows of 1024, the last one shorter. */
#define SMALL_ROW 1024

static size_t clip(const struct small *s, int row)
{
    size_t left = (size_t)s->ld * SMALL_ROW + (size_t)s->n - (size_t)row * SMALL_ROW;
    return left < SMALL_ROW ? left : SMALL_ROW;
}

static struct small flat(struct backend *b, size_t n)
{
    return (struct small){.b = (struct cpu *)b,
                          .T = (int)((n + SMALL_ROW - 1) / SMALL_ROW),
                          .ld = (int)(n / SMALL_ROW),
                          .n = (int)(n % SMALL_ROW)};
}

static void glu_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++) {
        size_t at = (size_t)t * SMALL_ROW;
        s->b->isa.glu((float *)s->y + at, s->x + at, s->z + at, s->act, clip(s, t));
    }
}

static void cpu_glu(struct backend *b, float *y, const float *gate, const float *up,
                    enum glu_act act, size_t n)
{
    struct small s = flat(b, n);
    s.rows = glu_rows, s.y = y, s.x = gate, s.z = up, s.act = act;
    small_run(&s, 2 * SMALL_ROW);
}

static void add_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++) {
        size_t at = (size_t)t * SMALL_ROW;
        s->b->isa.add((float *)s->y + at, s->x + at, clip(s, t));
    }
}

static void cpu_add(struct backend *b, float *y, const float *x, size_t n)
{
    struct small s = flat(b, n);
    s.rows = add_rows, s.y = y, s.x = x;
    small_run(&s, SMALL_ROW / 4);
}

static void head_norm_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++)
        for (int h = 0; h < s->heads; h++) {
            float *v = (float *)s->y + (size_t)t * s->ld + (size_t)h * s->stride;
            s->b->isa.norm(v, v, s->z, s->eps, s->n);
        }
}

static void cpu_head_norm(struct backend *b, float *x, int ld, int heads, int stride,
                          const float *gamma, float eps, int T, int n)
{
    struct small s = {.b = (struct cpu *)b,
                      .rows = head_norm_rows,
                      .T = T,
                      .y = x,
                      .ld = ld,
                      .heads = heads,
                      .stride = stride,
                      .z = gamma,
                      .eps = eps,
                      .n = n};
    small_run(&s, (size_t)heads * n);
}

static void bias_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++)
        s->b->isa.add((float *)s->y + (size_t)t * s->n, s->z, (size_t)s->n);
}

static void cpu_add_bias(struct backend *b, float *y, const float *bias, int T, int n)
{
    struct small s = {.b = (struct cpu *)b, .rows = bias_rows, .T = T, .y = y, .z = bias, .n = n};
    small_run(&s, (size_t)n / 4);
}

static void scale_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++) {
        float *y = (float *)s->y + (size_t)t * SMALL_ROW;
        s->b->isa.scale(y, y, (int)clip(s, t), s->eps);
    }
}

static void cpu_scale(struct backend *b, float *y, float factor, size_t n)
{
    struct small s = flat(b, n);
    s.rows = scale_rows, s.y = y, s.eps = factor;
    small_run(&s, SMALL_ROW / 4);
}

static void softcap_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++)
        s->b->isa.softcap((float *)s->y + (size_t)t * SMALL_ROW, (int)clip(s, t), s->eps);
}

static void cpu_softcap(struct backend *b, float *y, float cap, size_t n)
{
    struct small s = flat(b, n);
    s.rows = softcap_rows, s.y = y, s.eps = cap;
    small_run(&s, 2 * SMALL_ROW);
}

static void take_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++)
        memcpy((float *)s->y + (size_t)t * s->n, s->x + (size_t)s->ids[t] * s->n,
               (size_t)s->n * sizeof *s->x);
}

static void cpu_take_rows(struct backend *b, float *y, const float *x, const int32_t *rows, int T,
                          int n)
{
    struct small s = {
        .b = (struct cpu *)b, .rows = take_rows, .T = T, .y = y, .x = x, .ids = rows, .n = n};
    small_run(&s, (size_t)n / 4);
}

static void weigh_rows(const struct small *s, int from, int to)
{
    for (int t = from; t < to; t++) {
        float *y = (float *)s->y + (size_t)s->ids[t] * s->n, factor = s->z[t];
        const float *x = s->x + (size_t)t * s->n;
        for (int i = 0; i < s->n; i++)
            y[i] += factor * x[i];
    }
}

static void cpu_add_rows(struct backend *b, float *y, const int32_t *rows, const float *x,
                         const float *factor, int T, int n)
{
    struct small s = {.b = (struct cpu *)b,
                      .rows = weigh_rows,
                      .T = T,
                      .y = y,
                      .x = x,
                      .z = factor,
                      .ids = rows,
                      .n = n};
    small_run(&s, (size_t)n / 2);
}

const struct backend_ops cpu_backend_ops = {
    .name = "cpu",
    .caches = 1u << DTYPE_F32 | 1u << DTYPE_F16 | 1u << DTYPE_BF16 | 1u << DTYPE_Q8_0,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .put = cpu_copy,
    .get = cpu_copy,
    .sync = cpu_sync,
    .weight_load = cpu_weight_load,
    .weight_free = cpu_weight_free,
    .embed = cpu_embed,
    .linear = cpu_linear,
    .rms_norm = cpu_rms_norm,
    .rope = cpu_rope,
    .store = cpu_store,
    .attn_gqa = cpu_attn_gqa,
    .attn_mla = cpu_attn_mla,
    .mla_absorb = cpu_mla_absorb,
    .mla_expand = cpu_mla_expand,
    .mla_step = cpu_mla_step,
    .glu = cpu_glu,
    .add = cpu_add,
    .head_norm = cpu_head_norm,
    .add_bias = cpu_add_bias,
    .scale = cpu_scale,
    .softcap = cpu_softcap,
    .take_rows = cpu_take_rows,
    .add_rows = cpu_add_rows,
    .outer = cpu_outer,
};

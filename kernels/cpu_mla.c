/* What MLA has around its attention on the CPU: keys absorbed into queries, values expanded from
 * latents, and for one token over few keys all of it at once. */
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/pool.h"

enum { MLA_CHUNK = 64 }; /* columns or rows of a head's matrix a task; packed, all of them */

struct mla {
    struct cpu *b;
    const struct weight *w;
    float *y;
    const float *x;
    int ld, stride, H, P, Vd, r, T, chunk, chunks;
    bool packed;
    char *scratch;
    size_t scratch_bytes;
};

/* Asks for rows (whole groups) of a packed weight. Pieces this short end before the hardware's own
 * look-ahead has begun. */
static void fetch(const struct weight *w, int row, int rows)
{
    const unsigned char *p = cpu_group(w, row / CPU_GROUP);
    const unsigned char *end = cpu_group(w, (row + rows) / CPU_GROUP);
    for (; p < end; p += 64)
        __builtin_prefetch(p, 0, 2);
}

static void absorb_head(const struct mla *a, int h)
{
    int first = h * (a->P + a->Vd);
    for (int t = 0; t < a->T; t++)
        for (int col = 0; col < a->r; col += CPU_BLOCK)
            a->b->isa.turned(a->w, first / CPU_GROUP, a->P / CPU_GROUP, col / CPU_BLOCK,
                             a->x + (size_t)t * a->ld + (size_t)h * a->stride,
                             a->y + ((size_t)t * a->H + h) * a->r + col);
}

static void expand_head(const struct mla *a, int h)
{
    int first = h * (a->P + a->Vd) + a->P;
    for (int t = 0; t < a->T; t++)
        a->b->isa.matmul_f(a->w, first / CPU_GROUP, a->Vd / CPU_GROUP,
                           a->x + ((size_t)t * a->H + h) * a->r, 1,
                           a->y + ((size_t)t * a->H + h) * a->Vd, a->Vd, false);
}

/* A head's keys, after asking for the next head's and for its values, which come soon. */
static void absorb_packed(const struct mla *a, int h)
{
    int rows = a->P + a->Vd, next = h + pool_threads(a->b->base.pool);
    if (h < next - h)
        fetch(a->w, h * rows, a->P);
    if (next < a->H)
        fetch(a->w, next * rows, a->P);
    fetch(a->w, h * rows + a->P, a->Vd);
    absorb_head(a, h);
}

static void absorb_task(void *arg, int i, int thread)
{
    const struct mla *a = arg;
    float *tile = (float *)(void *)(a->scratch + (size_t)thread * a->scratch_bytes);
    int h = i / a->chunks, col = i % a->chunks * a->chunk;
    int n = a->r - col < a->chunk ? a->r - col : a->chunk;
    if (a->packed) {
        absorb_packed(a, h);
        return;
    }
    struct cpu_piece ku =
        cpu_weight_piece(a->b, a->w, h * (a->P + a->Vd), a->P, col, n, a->T, tile);
    a->b->isa.gemm(a->T, n, a->P, a->x + (size_t)h * a->stride, a->ld, ku.type, ku.data, ku.ld,
                   a->y + (size_t)h * a->r + col, a->H * a->r, false);
}

static void expand_task(void *arg, int i, int thread)
{
    const struct mla *a = arg;
    float *tile = (float *)(void *)(a->scratch + (size_t)thread * a->scratch_bytes);
    int h = i / a->chunks, row = i % a->chunks * a->chunk, first = h * (a->P + a->Vd) + a->P + row;
    int n = a->Vd - row < a->chunk ? a->Vd - row : a->chunk;
    if (a->packed) {
        expand_head(a, h);
        return;
    }
    struct cpu_piece vu = cpu_weight_piece(a->b, a->w, first, n, 0, a->r, a->T, tile);
    a->b->isa.dots(a->T, n, a->r, a->x + (size_t)h * a->r, a->H * a->r, vu.type, vu.data, vu.ld,
                   a->y + (size_t)h * a->Vd + row, a->H * a->Vd, false);
}

/* Heads are whole groups of rows that have kernels. */
static bool packed_heads(const struct cpu *b, const struct weight *w, int P, int Vd)
{
    return w->packed && w->type == DTYPE_Q8_0 && b->isa.turned && P % CPU_GROUP == 0 &&
           Vd % CPU_GROUP == 0;
}

static void mla_run(struct mla *a, int width, int depth, void (*task)(void *, int, int))
{
    a->packed = a->T <= CPU_FEW && packed_heads(a->b, a->w, a->P, a->Vd);
    a->chunk = a->packed ? width : MLA_CHUNK;
    a->chunks = (width + a->chunk - 1) / a->chunk;
    a->scratch_bytes = (size_t)a->chunk * (size_t)depth * sizeof(float);
    a->scratch = cpu_scratch(a->b, &a->scratch_bytes);
    if (a->scratch)
        pool_for(a->b->base.pool, a->H * a->chunks, task, a);
}

static struct mla halves_of(struct backend *b, const struct weight *kv_b, float *y, const float *x,
                            int H, int P, int Vd, int r, int T)
{
    return (struct mla){
        .b = (struct cpu *)b, .w = kv_b, .y = y, .x = x, .H = H, .P = P, .Vd = Vd, .r = r, .T = T};
}

void cpu_mla_absorb(struct backend *b, float *q_lat, const float *q, int ld, int stride,
                    const struct weight *kv_b, int H, int P, int Vd, int r, int T)
{
    struct mla a = halves_of(b, kv_b, q_lat, q, H, P, Vd, r, T);
    a.ld = ld;
    a.stride = stride;
    mla_run(&a, r, P, absorb_task);
}

static void sparse_head(const struct cpu_sparse *s, int rows, const float *x, float *y)
{
    for (int i = 0; i < rows; i++)
        y[i] = s[i].value[0] * x[s[i].at[0]] + s[i].value[1] * x[s[i].at[1]];
}

/* Rows of two numbers: less work than handing it out, unless there are many tokens. */
static void sparse_task(void *arg, int t, int thread)
{
    const struct mla *a = arg;
    (void)thread;
    for (int h = 0; h < a->H; h++)
        sparse_head(a->w->sparse + (size_t)h * (a->P + a->Vd) + a->P, a->Vd,
                    a->x + ((size_t)t * a->H + h) * a->r, a->y + ((size_t)t * a->H + h) * a->Vd);
}

void cpu_mla_expand(struct backend *b, float *out, const float *lat, const struct weight *kv_b,
                    int H, int P, int Vd, int r, int T)
{
    struct mla a = halves_of(b, kv_b, out, lat, H, P, Vd, r, T);
    if (kv_b->sparse)
        pool_for(T > CPU_FEW ? b->pool : NULL, T, sparse_task, &a);
    else
        mla_run(&a, Vd, r, expand_task);
}

/* --- one token over few keys --- */

/* Keys up to which a thread goes alone through its heads: beyond, the cache is worth sharing. */
enum { STEP_KEYS = 512 };

struct step_heads {
    const struct mla_step_args *a;
    struct mla absorb, expand;
};

static void rope_query(const struct cpu *b, const struct mla_step_args *a, int h)
{
    int R = a->attn.R;
    float *to = a->q_rope_out + (size_t)h * R;
    const float *q = a->q + (size_t)h * a->stride;
    if (a->q_rope)
        sparse_head(a->q_rope->sparse + (size_t)h * R, R, q, to);
    else
        memcpy(to, q + a->P, (size_t)R * sizeof *to);
    b->isa.rotate(to, to + R / 2, a->cos, a->sin, R / 2);
}

static void before_heads(void *arg, int first, int heads)
{
    const struct step_heads *s = arg;
    const struct mla_step_args *a = s->a;
    int rows = a->P + a->Vd;
    fetch(a->kv_b, first * rows, a->P);
    for (int h = first; h < first + heads; h++) {
        if (h + 1 < first + heads)
            fetch(a->kv_b, (h + 1) * rows, a->P);
        if (a->attn.R)
            rope_query(s->absorb.b, a, h);
        fetch(a->kv_b, h * rows + a->P, a->Vd);
        absorb_head(&s->absorb, h);
    }
}

static void after_heads(void *arg, int first, int heads)
{
    const struct step_heads *s = arg;
    for (int h = first; h < first + heads; h++)
        expand_head(&s->expand, h);
}

bool cpu_mla_step(struct backend *base, const struct mla_step_args *a)
{
    struct cpu *b = (struct cpu *)base;
    if (a->attn.past >= STEP_KEYS || !packed_heads(b, a->kv_b, a->P, a->Vd) ||
        (a->q_rope && !a->q_rope->sparse))
        return false;
    int H = a->attn.H, r = a->attn.r;
    struct step_heads s = {a, halves_of(base, a->kv_b, a->q_lat_out, a->q, H, a->P, a->Vd, r, 1),
                           halves_of(base, a->kv_b, a->out, a->attn.out, H, a->P, a->Vd, r, 1)};
    s.absorb.stride = a->stride;
    cpu_attn_heads(base, &a->attn, before_heads, after_heads, &s);
    return true;
}

/* Attention of the CPU backend, one driver for GQA and absorbed MLA: a set of query rows (token,
 * head) that share their keys meets the cache tile by tile with a running softmax, so memory does
 * not grow with the context. Tasks are query tiles × KV heads; when these are too few for the
 * threads (decoding), the keys are split too and the parts combined. */
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/pool.h"

enum {
    ATTN_QUERIES = 256,    /* query rows a tile, at most */
    ATTN_LEAST = 64,       /* and at least, where rows are so wide that … */
    ATTN_FLOATS = 1 << 16, /* … queries, scores and sums would leave the second level */
    ATTN_KEYS = 64,        /* keys a tile */
    ATTN_NEAR = 32,        /* keys a tile that is widened once and read twice: it fits L1; … */
    ATTN_NARROW = 112,     /* … twice as many do where keys have at most so many numbers */
    ATTN_SLICE = 32,       /* keys that all heads take together: the cache is read in its order */
    ATTN_MIN_KEYS = 64,    /* a split has at least these */
    ATTN_SPLITS = 256,     /* and there are at most so many */
    ATTN_FEW = 12,         /* rows of a KV head up to which keys are not turned around */
};

struct attn {
    struct cpu *b;
    int T, past, kv_heads, heads; /* heads: query heads that share a KV head */
    int dk, dv, ldkv, step;       /* cache rows ldkv apart, the next KV head step further */
    const void *k, *v;            /* equal for MLA: one tile serves both */
    enum dtype kv;
    const float *q, *q2; /* rows of d1 and, behind them, dk − d1 numbers for (token, head) */
    int d1;
    float *out; /* row (token, kv head, head) of dv numbers */
    float scale, softcap;
    int window;
    int queries, keys; /* rows and keys of a tile */
    int tiles, splits, split_keys;
    int together; /* KV heads a task takes through each tile of keys */
    /* Where a task is some heads of one token: called for them first and last. */
    void (*before)(void *arg, int first, int heads), (*after)(void *arg, int first, int heads);
    void *arg;
    float *parts; /* [kv_heads][tiles][splits]: queries × (dv + 2) */
    char *scratch;
    size_t scratch_bytes;
};

/* Query rows first … first+rows−1 of one KV head against keys [from, to). acc, top and sum are the
 * running softmax, a part; s holds the scores of one tile of keys. */
struct tile {
    int rows, first, from, to;
    float *q, *s, *acc, *top, *sum;
};

/* Whole cache lines. */
static size_t lines(size_t floats)
{
    return (floats + 15) & ~(size_t)15;
}

static size_t part_floats(const struct attn *a)
{
    return lines((size_t)a->queries * (size_t)(a->dv + 2));
}

/* A tile of keys or values, then scores, queries and a part for each KV head. */
static size_t tile_floats(const struct attn *a)
{
    return ATTN_KEYS * (size_t)(a->dk > a->dv ? a->dk : a->dv);
}

static size_t head_floats(const struct attn *a)
{
    return lines((size_t)a->queries * (size_t)(a->dk + ATTN_KEYS)) + part_floats(a);
}

static int position(const struct attn *a, int row)
{
    return a->past + row / a->heads;
}

static int first_key(const struct attn *a, int row)
{
    int pos = position(a, row);
    return a->window && pos + 1 > a->window ? pos + 1 - a->window : 0;
}

static void gather_queries(const struct attn *a, const struct tile *w, int g)
{
    int all = a->heads * a->kv_heads, d2 = a->dk - a->d1;
    for (int i = 0; i < w->rows; i++) {
        int t = (w->first + i) / a->heads, h = g * a->heads + (w->first + i) % a->heads;
        size_t row = (size_t)t * all + h;
        float *q = w->q + (size_t)i * a->dk;
        a->b->isa.scale(q, a->q + row * a->d1, a->d1, a->scale);
        if (d2)
            a->b->isa.scale(q + a->d1, a->q2 + row * d2, d2, a->scale);
    }
}

/* Whether a few rows meet the cache itself; else a tile of it is widened first. */
static bool direct(const struct attn *a, int rows)
{
    return rows <= a->b->isa.direct && a->kv != DTYPE_Q8_0;
}

/* Keys n … n+count−1 of a KV head, `width` numbers of each: the cache itself, or fp32 in tile. */
static struct cpu_piece cache_rows(const struct attn *a, const void *cache, int g, int n, int count,
                                   int width, float *tile)
{
    size_t at = (size_t)n * a->ldkv + (size_t)g * a->step;
    const void *src = (const char *)cache + dtype_bytes(a->kv, at);
    if (!tile || a->kv == DTYPE_F32)
        return (struct cpu_piece){a->kv, src, a->ldkv};
    a->b->isa.widen(a->kv, count, width, src, a->ldkv, tile);
    return (struct cpu_piece){DTYPE_F32, tile, width};
}

/* Scores of one query row against keys n … n+count−1 become weights; keys it cannot see get 0. */
static void soften(const struct attn *a, const struct tile *w, int i, int n, int count)
{
    float *s = w->s + (size_t)i * ATTN_KEYS;
    int from = first_key(a, w->first + i) - n, to = position(a, w->first + i) + 1 - n;
    from = from < 0 ? 0 : from;
    to = to > count ? count : to;
    if (from >= to) {
        memset(s, 0, (size_t)count * sizeof *s);
        return;
    }
    if (a->softcap > 0)
        a->b->isa.softcap(s + from, to - from, a->softcap);
    float top = a->b->isa.max(s + from, to - from);
    if (top > w->top[i]) {
        float shrink = expf(w->top[i] - top); /* 0 at the first tile */
        w->sum[i] *= shrink;
        a->b->isa.scale(w->acc + (size_t)i * a->dv, w->acc + (size_t)i * a->dv, a->dv, shrink);
        w->top[i] = top;
    }
    w->sum[i] += a->b->isa.exp_sum(s + from, to - from, w->top[i]);
    if (from)
        memset(s, 0, (size_t)from * sizeof *s);
    if (to < count)
        memset(s + to, 0, (size_t)(count - to) * sizeof *s);
}

static float *out_row(const struct attn *a, int row, int g)
{
    size_t t = (size_t)(row / a->heads), h = (size_t)(g * a->heads + row % a->heads);
    return a->out + (t * a->heads * a->kv_heads + h) * a->dv;
}

static float *part_of(const struct attn *a, int g, int tile, int split)
{
    size_t index = ((size_t)g * a->tiles + tile) * a->splits + split;
    return a->parts + index * part_floats(a);
}

static struct tile tile_of(const struct attn *a, int index, int split)
{
    struct tile w = {.first = index * a->queries};
    int all = a->T * a->heads - w.first;
    w.rows = all < a->queries ? all : a->queries;
    w.from = first_key(a, w.first);
    w.to = position(a, w.first + w.rows - 1) + 1;
    if (a->splits > 1) {
        int from = split * a->split_keys, to = from + a->split_keys;
        w.from = w.from > from ? w.from : from;
        w.to = w.to < to ? w.to : to;
    }
    return w;
}

/* What a task is about and the memory of its j-th KV head. */
struct team {
    int index, split, first;
    float *scratch;
};

static void open_head(const struct attn *a, struct tile *w, const struct team *team, int j)
{
    w->q = team->scratch + tile_floats(a) + (size_t)j * head_floats(a);
    w->s = w->q + (size_t)a->queries * a->dk;
    w->acc = a->splits > 1 ? part_of(a, team->first + j, team->index, team->split)
                           : w->s + (size_t)a->queries * ATTN_KEYS;
    w->top = w->acc + (size_t)a->queries * a->dv;
    w->sum = w->top + a->queries;
}

static void clear_head(const struct attn *a, const struct tile *w)
{
    memset(w->acc, 0, (size_t)w->rows * a->dv * sizeof *w->acc);
    for (int r = 0; r < w->rows; r++) {
        w->top[r] = -INFINITY;
        w->sum[r] = 0;
    }
}

/* Keys n … n+count−1 against many rows of one KV head: two products of matrices, keys turned
 * around so that neither needs horizontal sums. */
static void attend_many(const struct attn *a, struct tile *w, const struct team *team, int n,
                        int count)
{
    const struct cpu_isa *isa = &a->b->isa;
    size_t at = (size_t)n * a->ldkv + (size_t)team->first * a->step;
    isa->widen_turned(a->kv, count, a->dk, (const char *)a->k + dtype_bytes(a->kv, at), a->ldkv,
                      team->scratch, ATTN_KEYS);
    isa->gemm(w->rows, count, a->dk, w->q, a->dk, DTYPE_F32, team->scratch, ATTN_KEYS, w->s,
              ATTN_KEYS, false);
    for (int i = 0; i < w->rows; i++)
        soften(a, w, i, n, count);
    struct cpu_piece v = cache_rows(a, a->v, team->first, n, count, a->dv, team->scratch);
    isa->gemm(w->rows, a->dv, count, w->s, ATTN_KEYS, v.type, v.data, v.ld, w->acc, a->dv, true);
}

/* The same for few rows of all heads of the team. */
static void attend_few(const struct attn *a, struct tile *w, const struct team *team, int n,
                       int count)
{
    const struct cpu_isa *isa = &a->b->isa;
    float *tile = direct(a, w->rows) ? NULL : team->scratch;
    bool both = a->v == a->k && tile;
    for (int i = 0; i < count; i += ATTN_SLICE)
        for (int j = 0; j < a->together; j++) {
            int keys = count - i < ATTN_SLICE ? count - i : ATTN_SLICE;
            struct cpu_piece k = cache_rows(a, a->k, team->first + j, n + i, keys, a->dk,
                                            both ? tile + (size_t)i * a->dk : tile);
            open_head(a, w, team, j);
            if (isa->scores)
                isa->scores(w->rows, keys, a->dk, w->q, a->dk, k.type, k.data, k.ld, w->s + i,
                            ATTN_KEYS);
            else
                isa->dots(w->rows, keys, a->dk, w->q, a->dk, k.type, k.data, k.ld, w->s + i,
                          ATTN_KEYS, false);
        }
    for (int j = 0; j < a->together; j++) {
        open_head(a, w, team, j);
        for (int i = 0; i < w->rows; i++)
            soften(a, w, i, n, count);
    }
    int slice = both ? count : ATTN_SLICE;
    for (int i = 0; i < count; i += slice)
        for (int j = 0; j < a->together; j++) {
            int keys = count - i < slice ? count - i : slice;
            struct cpu_piece v = {DTYPE_F32, tile, a->dk};
            if (!both || a->kv == DTYPE_F32)
                v = cache_rows(a, a->v, team->first + j, n + i, keys, a->dv, tile);
            open_head(a, w, team, j);
            isa->gemm(w->rows, a->dv, keys, w->s + i, ATTN_KEYS, v.type, v.data, v.ld, w->acc,
                      a->dv, true);
        }
}

static void attn_task(void *arg, int i, int thread)
{
    const struct attn *a = arg;
    int teams = a->kv_heads / a->together;
    struct team team = {.index = a->tiles - 1 - i / a->splits / teams, /* the longest rows first */
                        .split = i % a->splits,
                        .first = i / a->splits % teams * a->together,
                        .scratch =
                            (float *)(void *)(a->scratch + (size_t)thread * a->scratch_bytes)};
    struct tile w = tile_of(a, team.index, team.split);
    if (a->before)
        a->before(a->arg, w.first, w.rows);
    for (int j = 0; j < a->together; j++) {
        open_head(a, &w, &team, j);
        clear_head(a, &w);
        gather_queries(a, &w, team.first + j);
    }
    for (int n = w.from; n < w.to; n += a->keys) {
        int count = w.to - n < a->keys ? w.to - n : a->keys;
        if (w.rows > ATTN_FEW)
            attend_many(a, &w, &team, n, count);
        else
            attend_few(a, &w, &team, n, count);
    }
    for (int j = 0; j < a->together && a->splits == 1; j++) {
        open_head(a, &w, &team, j);
        for (int r = 0; r < w.rows; r++)
            a->b->isa.scale(out_row(a, w.first + r, team.first + j), w.acc + (size_t)r * a->dv,
                            a->dv, 1 / w.sum[r]);
    }
    if (a->after)
        a->after(a->arg, w.first, w.rows);
}

/* out = Σ parts·e^(top−top*) / Σ sums·e^(top−top*) for the query rows of one (tile, KV head). */
static void combine_task(void *arg, int i, int thread)
{
    const struct attn *a = arg;
    (void)thread;
    int g = i % a->kv_heads, index = i / a->kv_heads, first = index * a->queries;
    int rows = a->T * a->heads - first < a->queries ? a->T * a->heads - first : a->queries;
    size_t tops = (size_t)a->queries * a->dv;
    float weight[ATTN_SPLITS];
    for (int r = 0; r < rows; r++) {
        float top = -INFINITY, sum = 0;
        for (int s = 0; s < a->splits; s++)
            top = fmaxf(top, part_of(a, g, index, s)[tops + r]);
        for (int s = 0; s < a->splits; s++) { /* 0 for a split that the row cannot see */
            const float *p = part_of(a, g, index, s);
            weight[s] = expf(p[tops + r] - top);
            sum += p[tops + a->queries + r] * weight[s];
        }
        for (int s = 0; s < a->splits; s++)
            weight[s] /= sum;
        a->b->isa.gemm(1, a->dv, a->splits, weight, a->splits, DTYPE_F32,
                       part_of(a, g, index, 0) + (size_t)r * a->dv, (int)part_floats(a),
                       out_row(a, first + r, g), a->dv, false);
    }
}

static void run(struct attn *a)
{
    struct pool *pool = a->b->base.pool;
    int keys = a->past + a->T, threads = pool_threads(pool);
    int rows = a->T * a->heads;
    a->queries = ATTN_FLOATS / (a->dk + a->dv + ATTN_KEYS);
    a->queries = a->queries < ATTN_LEAST ? ATTN_LEAST : a->queries;
    a->queries = a->queries < ATTN_QUERIES ? a->queries : ATTN_QUERIES;
    a->queries = rows < a->queries ? rows : a->queries;
    if (a->before)
        a->queries = (rows + threads - 1) / threads;
    a->tiles = (rows + a->queries - 1) / a->queries;
    bool few = rows <= ATTN_FEW;
    bool near = few && a->v == a->k && !direct(a, rows) && a->dk > ATTN_NARROW;
    a->keys = near ? ATTN_NEAR : ATTN_KEYS;
    /* A few queries stream the cache: all heads of a row while it is near. Many reuse it, and one
     * head's keys fit the cache better. */
    a->together = few && keys >= 2 * threads * ATTN_MIN_KEYS ? a->kv_heads : 1;
    int tasks = a->tiles * a->kv_heads / a->together;
    a->splits =
        threads == 1 || tasks >= 4 * threads || a->before ? 1 : (4 * threads + tasks - 1) / tasks;
    a->splits = a->splits < ATTN_SPLITS ? a->splits : ATTN_SPLITS;
    a->split_keys = (keys + a->splits - 1) / a->splits;
    a->split_keys = (a->split_keys + ATTN_MIN_KEYS - 1) / ATTN_MIN_KEYS * ATTN_MIN_KEYS;
    a->splits = (keys + a->split_keys - 1) / a->split_keys;
    a->scratch_bytes = (tile_floats(a) + (size_t)a->together * head_floats(a)) * sizeof(float);
    a->scratch = cpu_scratch(a->b, &a->scratch_bytes);
    if (a->splits > 1)
        a->parts = cpu_shared(a->b, (size_t)a->tiles * a->kv_heads * a->splits * part_floats(a) *
                                        sizeof(float));
    if (!a->scratch || (a->splits > 1 && !a->parts))
        return;
    pool_for(pool, tasks * a->splits, attn_task, a);
    if (a->splits > 1)
        pool_for(a->T > 1 ? pool : NULL, a->tiles * a->kv_heads, combine_task, a);
}

void cpu_attn_gqa(struct backend *b, const struct attn_gqa_args *g)
{
    struct attn a = {.b = (struct cpu *)b,
                     .T = g->T,
                     .past = g->past,
                     .kv_heads = g->G,
                     .heads = g->H / g->G,
                     .dk = g->d,
                     .dv = g->d,
                     .ldkv = g->G * g->d,
                     .step = g->d,
                     .k = g->k,
                     .v = g->v,
                     .kv = g->kv,
                     .q = g->q,
                     .d1 = g->d,
                     .out = g->out,
                     .scale = g->scale,
                     .softcap = g->softcap,
                     .window = g->window};
    run(&a);
}

static struct attn of_latents(struct backend *b, const struct attn_mla_args *m)
{
    return (struct attn){.b = (struct cpu *)b,
                         .T = m->T,
                         .past = m->past,
                         .kv_heads = 1,
                         .heads = m->H,
                         .dk = m->r + m->R,
                         .dv = m->r,
                         .ldkv = (int)dtype_padded(m->kv, (size_t)(m->r + m->R)),
                         .k = m->cache,
                         .v = m->cache,
                         .kv = m->kv,
                         .q = m->q_lat,
                         .q2 = m->q_rope,
                         .d1 = m->r,
                         .out = m->out,
                         .scale = m->scale,
                         .softcap = m->softcap,
                         .window = m->window};
}

void cpu_attn_mla(struct backend *b, const struct attn_mla_args *m)
{
    struct attn a = of_latents(b, m);
    run(&a);
}

void cpu_attn_heads(struct backend *b, const struct attn_mla_args *m,
                    void (*before)(void *arg, int first, int heads),
                    void (*after)(void *arg, int first, int heads), void *arg)
{
    struct attn a = of_latents(b, m);
    a.before = before;
    a.after = after;
    a.arg = arg;
    run(&a);
}

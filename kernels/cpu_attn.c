/* Attention of the CPU backend, one driver for GQA and absorbed MLA: a set of query rows (token,
 * head) that share their keys meets the cache tile by tile with a running softmax, so memory does
 * not grow with the context. Tasks are query tiles × KV heads; when these are too few for the
 * threads (decoding), the keys are split too and the parts combined. */
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/pool.h"

enum {
    ATTN_QUERIES = 48,  /* query rows a tile */
    ATTN_KEYS = 64,     /* keys a tile */
    ATTN_MIN_KEYS = 64, /* a split has at least these */
    ATTN_SLICE_KEYS = 8,
    ATTN_SLICE_COLUMNS = 32,
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
    int tiles, splits, split_keys;
    int together; /* KV heads a task takes through each tile of keys */
    bool stream;  /* the cache comes from memory and is read once */
    float *parts; /* [kv_heads][tiles][splits]: ATTN_QUERIES × (dv + 2) */
    char *scratch;
    size_t scratch_bytes;
};

/* Query rows first … first+rows−1 of one KV head against keys [from, to). acc, top and sum are the
 * running softmax, a part; s holds the scores of one tile of keys. */
struct tile {
    int rows, first, from, to;
    float *q, *s, *acc, *top, *sum;
};

static size_t part_floats(const struct attn *a)
{
    return ATTN_QUERIES * (size_t)(a->dv + 2);
}

/* Numbers of a cache row that a task reads: whole rows when it takes all heads through. */
static int row_width(const struct attn *a)
{
    return a->together == a->kv_heads ? a->ldkv : a->dk;
}

/* A tile of keys, then scores, queries and a part for each KV head. */
static size_t scratch_floats(const struct attn *a)
{
    size_t each = ATTN_QUERIES * (size_t)(a->dk + ATTN_KEYS) + part_floats(a);
    return ATTN_KEYS * (size_t)row_width(a) + (size_t)a->together * each;
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

/* Keys n … n+count−1 from KV head `first` on: the cache itself when it is F32 or few queries read
 * it, else as fp32 in tile. Whole rows are one run of memory. */
static struct cpu_piece cache_rows(const struct attn *a, const struct tile *w, const void *cache,
                                   int first, int n, int count, float *tile)
{
    size_t at = (size_t)n * a->ldkv + (size_t)first * a->step;
    int width = row_width(a);
    const char *src = (const char *)cache + dtype_bytes(a->kv, at);
    if (a->kv == DTYPE_F32 || w->rows <= CPU_FEW)
        return (struct cpu_piece){a->kv, src, a->ldkv};
    if (width == a->ldkv)
        a->b->isa.widen(a->kv, 1, count * width, (const uint16_t *)(const void *)src, 0, tile);
    else
        a->b->isa.widen(a->kv, count, width, (const uint16_t *)(const void *)src, a->ldkv, tile);
    return (struct cpu_piece){DTYPE_F32, tile, width};
}

/* Numbers j … of a piece. */
static const void *piece_at(const struct cpu_piece *p, size_t j)
{
    return (const char *)p->data + dtype_bytes(p->type, j);
}

/* The next tile of keys (and values) on its way into the second level while this one is computed:
 * a share before each slice of work, few enough lines that the processor need not wait for them. */
struct ahead {
    const char *k, *v;
    size_t at, keys, all, share; /* bytes */
};

static struct ahead look_ahead(const struct attn *a, int n)
{
    size_t from = dtype_bytes(a->kv, (size_t)n * a->ldkv);
    size_t tile = dtype_bytes(a->kv, (size_t)ATTN_KEYS * a->ldkv);
    int slices = a->together * (ATTN_KEYS / ATTN_SLICE_KEYS + a->dv / ATTN_SLICE_COLUMNS);
    struct ahead f = {(const char *)a->k + from, (const char *)a->v + from, 0, tile, 0, 0};
    f.all = !a->stream ? 0 : a->v == a->k ? tile : 2 * tile;
    f.share = f.all / (size_t)slices + 64;
    return f;
}

static void fetch_share(struct ahead *f)
{
    size_t end = f->at + f->share < f->all ? f->at + f->share : f->all;
    for (; f->at < end; f->at += 64)
        __builtin_prefetch(f->at < f->keys ? f->k + f->at : f->v + (f->at - f->keys), 0, 2);
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
    memset(s, 0, (size_t)from * sizeof *s);
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
    struct tile w = {.first = index * ATTN_QUERIES};
    int all = a->T * a->heads - w.first;
    w.rows = all < ATTN_QUERIES ? all : ATTN_QUERIES;
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
    size_t queries = ATTN_QUERIES * (size_t)a->dk, scores = ATTN_QUERIES * ATTN_KEYS;
    w->q = team->scratch + ATTN_KEYS * (size_t)row_width(a) +
           (size_t)j * (queries + scores + part_floats(a));
    w->s = w->q + queries;
    w->acc = a->splits > 1 ? part_of(a, team->first + j, team->index, team->split) : w->s + scores;
    w->top = w->acc + (size_t)ATTN_QUERIES * a->dv;
    w->sum = w->top + ATTN_QUERIES;
}

static void clear_head(const struct attn *a, const struct tile *w)
{
    memset(w->acc, 0, (size_t)w->rows * a->dv * sizeof *w->acc);
    for (int r = 0; r < w->rows; r++) {
        w->top[r] = -INFINITY;
        w->sum[r] = 0;
    }
}

/* Keys n … n+count−1 for all heads of the team. */
static void attend(const struct attn *a, struct tile *w, const struct team *team, int n, int count)
{
    const struct cpu_isa *isa = &a->b->isa;
    struct ahead ahead = look_ahead(a, n + ATTN_KEYS);
    int slice = a->stream ? ATTN_SLICE_KEYS : ATTN_KEYS;
    struct cpu_piece p = cache_rows(a, w, a->k, team->first, n, count, team->scratch);
    for (int j = 0; j < a->together; j++) {
        open_head(a, w, team, j);
        for (int i = 0; i < count; i += slice) {
            fetch_share(&ahead);
            isa->dots(w->rows, count - i < slice ? count - i : slice, a->dk, w->q, a->dk, p.type,
                      piece_at(&p, (size_t)i * p.ld + (size_t)j * a->step), p.ld, w->s + i,
                      ATTN_KEYS, false);
        }
        for (int i = 0; i < w->rows; i++)
            soften(a, w, i, n, count);
    }
    if (a->v != a->k)
        p = cache_rows(a, w, a->v, team->first, n, count, team->scratch);
    slice = a->stream ? ATTN_SLICE_COLUMNS : a->dv;
    for (int j = 0; j < a->together; j++) {
        open_head(a, w, team, j);
        for (int i = 0; i < a->dv; i += slice) {
            fetch_share(&ahead);
            isa->gemm(w->rows, a->dv - i < slice ? a->dv - i : slice, count, w->s, ATTN_KEYS,
                      p.type, piece_at(&p, (size_t)j * a->step + i), p.ld, w->acc + i, a->dv, true);
        }
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
    for (int j = 0; j < a->together; j++) {
        open_head(a, &w, &team, j);
        clear_head(a, &w);
        gather_queries(a, &w, team.first + j);
    }
    for (int n = w.from; n < w.to; n += ATTN_KEYS)
        attend(a, &w, &team, n, w.to - n < ATTN_KEYS ? w.to - n : ATTN_KEYS);
    for (int j = 0; j < a->together && a->splits == 1; j++) {
        open_head(a, &w, &team, j);
        for (int r = 0; r < w.rows; r++)
            a->b->isa.scale(out_row(a, w.first + r, team.first + j), w.acc + (size_t)r * a->dv,
                            a->dv, 1 / w.sum[r]);
    }
}

/* out = Σ parts·e^(top−top*) / Σ sums·e^(top−top*) for the query rows of one (tile, KV head). */
static void combine_task(void *arg, int i, int thread)
{
    const struct attn *a = arg;
    (void)thread;
    int g = i % a->kv_heads, index = i / a->kv_heads, first = index * ATTN_QUERIES;
    int rows = a->T * a->heads - first < ATTN_QUERIES ? a->T * a->heads - first : ATTN_QUERIES;
    size_t tops = (size_t)ATTN_QUERIES * a->dv;
    for (int r = 0; r < rows; r++) {
        float *out = out_row(a, first + r, g), top = -INFINITY, sum = 0;
        for (int s = 0; s < a->splits; s++)
            top = fmaxf(top, part_of(a, g, index, s)[tops + r]);
        for (int s = 0; s < a->splits; s++) {
            const float *p = part_of(a, g, index, s);
            sum += p[tops + ATTN_QUERIES + r] * expf(p[tops + r] - top);
        }
        memset(out, 0, (size_t)a->dv * sizeof *out);
        for (int s = 0; s < a->splits; s++) {
            const float *p = part_of(a, g, index, s);
            float weight = expf(p[tops + r] - top) / sum;
            if (weight > 0) /* a split that a row cannot see has nothing to give */
                a->b->isa.gemm(1, a->dv, 1, &weight, 1, DTYPE_F32, p + (size_t)r * a->dv, a->dv,
                               out, a->dv, true);
        }
    }
}

static void run(struct attn *a)
{
    struct pool *pool = a->b->base.pool;
    int keys = a->past + a->T, threads = pool_threads(pool);
    a->tiles = (a->T * a->heads + ATTN_QUERIES - 1) / ATTN_QUERIES;
    /* A few queries stream the cache: all heads of a row while it is near. Many reuse it, and one
     * head's keys fit the cache better. */
    a->stream = a->tiles == 1 && keys >= 2 * threads * ATTN_MIN_KEYS;
    a->together = a->stream ? a->kv_heads : 1;
    int tasks = a->tiles * a->kv_heads / a->together;
    a->splits = threads == 1 || tasks >= 4 * threads ? 1 : (4 * threads + tasks - 1) / tasks;
    a->split_keys = (keys + a->splits - 1) / a->splits;
    a->split_keys = (a->split_keys + ATTN_MIN_KEYS - 1) / ATTN_MIN_KEYS * ATTN_MIN_KEYS;
    a->splits = (keys + a->split_keys - 1) / a->split_keys;
    a->scratch_bytes = scratch_floats(a) * sizeof(float);
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

void cpu_attn_mla(struct backend *b, const struct attn_mla_args *m)
{
    struct attn a = {.b = (struct cpu *)b,
                     .T = m->T,
                     .past = m->past,
                     .kv_heads = 1,
                     .heads = m->H,
                     .dk = m->r + m->R,
                     .dv = m->r,
                     .ldkv = m->r + m->R,
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
    run(&a);
}

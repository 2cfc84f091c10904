/* Weights and the matrix products of the CPU backend. Three ways: quantised weights × int8
 * activations (the default), quantised weights × fp32 (exact: in registers for a few tokens, else
 * by panels of dequantised rows), and plain weights × fp32. All split the rows of the weights over
 * the pool and walk tokens in slices that stay in the cache. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/dtype_blocks.h"
#include "kernels/pool.h"

enum {
    LINEAR_TOKENS = 64, /* tokens a slice */
    LINEAR_DEPTH = 384, /* columns at a time of an fp32 product: a panel of them fits L1 */
    LINEAR_TASKS = 8,   /* tasks a thread: the slower one leaves some to the other */
    LINEAR_FEW = 4,     /* tokens that dequantise in registers faster than through a panel */
};

static int groups_of(const struct weight *w)
{
    return (w->m.rows + CPU_GROUP - 1) / CPU_GROUP;
}

/* --- loading --- */

struct pack {
    struct weight *w;
    size_t row_bytes;
    char *scratch; /* a row as fp32 and again as blocks, a thread; NULL: blocks stay */
    size_t scratch_bytes;
};

/* A row's blocks go to lane `lane` of its group: d, m, then quants by 4 bytes. */
static void pack_row(const struct weight *w, const unsigned char *src, unsigned char *group,
                     int lane)
{
    size_t head = cpu_block_head(w->type), bytes = cpu_block_bytes(w->type);
    for (int b = 0; b < w->m.cols / CPU_BLOCK; b++, group += bytes) {
        for (size_t j = 0; j < head / 16; j++, src += 2)
            memcpy(group + j * 16 + 2 * lane, src, 2);
        for (size_t j = head; j < bytes; j += 32, src += 4)
            memcpy(group + j + 4 * lane, src, 4);
    }
}

/* One 32-byte line of a super-block's quants: 4 bytes of this lane. */
static void put4(unsigned char *quants, int line, int lane, const uint8_t *four)
{
    memcpy(quants + 32 * line + 4 * lane, four, 4);
}

/* 32 numbers of up to 6 bits into lane `lane` of a block's quants. */
static void pack_numbers(enum dtype type, const uint8_t *u, unsigned char *quants, int lane)
{
    uint8_t four[4];
    for (int j = 0; j < 4; j++) {
        for (int c = 0; c < 4; c++)
            four[c] = (uint8_t)((u[4 * j + c] & 15) | (u[16 + 4 * j + c] & 15) << 4);
        put4(quants, j, lane, four);
    }
    for (int half = 0; half < (type == DTYPE_Q4_K ? 0 : type == DTYPE_Q5_K ? 1 : 2); half++) {
        int bits = type == DTYPE_Q5_K ? 1 : 2;
        for (int c = 0; c < 4; c++) {
            unsigned high = 0;
            for (int j = 0; j < 8 / bits; j++)
                high |= (unsigned)(u[16 * half + 4 * j + c] >> 4) << bits * j;
            four[c] = (uint8_t)high;
        }
        put4(quants, 4 + half, lane, four);
    }
}

/* A row's super-blocks: the same integers in the order of cpu_quant_k.h. */
static void pack_super_row(const struct weight *w, const unsigned char *src, unsigned char *group,
                           int lane)
{
    enum dtype type = w->type;
    size_t head = cpu_block_head(type), bytes = cpu_block_bytes(type);
    for (int b = 0; b < w->m.cols / 256; b++, src += dtype_traits(type)->block_bytes) {
        struct dtype_super s;
        dtype_open_super(type, src, &s);
        memcpy(group + 2 * lane, &s.d, 2);
        if (type != DTYPE_Q6_K)
            memcpy(group + 16 + 2 * lane, &s.m, 2);
        group += cpu_super_head(type);
        for (int j = 0; j < 8; j++, group += bytes) {
            group[lane] = type == DTYPE_Q6_K ? s.scale[2 * j] : s.scale[j];
            group[8 + lane] = type == DTYPE_Q6_K ? s.scale[2 * j + 1] : s.min[j];
            pack_numbers(type, s.u + 32 * j, group + head, lane);
        }
    }
}

/* A row of Q6_0: the same integers in the order of Q6_K's. */
static void pack_six_row(const struct weight *w, const unsigned char *src, unsigned char *group,
                         int lane)
{
    for (int b = 0; b < w->m.cols / CPU_BLOCK; b++, src += dtype_traits(w->type)->block_bytes) {
        uint8_t u[CPU_BLOCK];
        dtype_open_q6_0(src, u);
        memcpy(group + 2 * lane, src, 2);
        pack_numbers(w->type, u, group + cpu_block_head(w->type), lane);
        group += cpu_block_bytes(w->type);
    }
}

static void pack_group(void *arg, int g, int thread)
{
    const struct pack *p = arg;
    const struct weight *w = p->w;
    size_t cols = (size_t)w->m.cols;
    for (int lane = 0; lane < CPU_GROUP; lane++) {
        int row = g * CPU_GROUP + lane;
        row = row < w->m.rows ? row : w->m.rows - 1; /* spare lanes are never stored */
        const unsigned char *src = (const unsigned char *)w->m.data + (size_t)row * p->row_bytes;
        if (p->scratch) {
            float *numbers = (float *)(void *)(p->scratch + (size_t)thread * p->scratch_bytes);
            unsigned char *recoded = (unsigned char *)(numbers + cols);
            if (dtype_is_q8_0(w->m.dtype)) {
                dtype_as_q8_0(w->m.dtype, src, recoded, cols);
            } else {
                dtype_to_f32(w->m.dtype, src, numbers, cols);
                dtype_from_f32(w->type, numbers, recoded, cols);
            }
            src = recoded;
        }
        unsigned char *to = w->packed + (size_t)g * w->group_bytes;
        if (cpu_is_super(w->type))
            pack_super_row(w, src, to, lane);
        else if (w->type == DTYPE_Q6_0)
            pack_six_row(w, src, to, lane);
        else
            pack_row(w, src, to, lane);
    }
}

static int pack(struct cpu *b, struct weight *w, size_t *bytes, struct err *e)
{
    size_t cols = (size_t)w->m.cols;
    struct pack p = {.w = w, .row_bytes = dtype_bytes(w->m.dtype, cols)};
    if (w->type != w->m.dtype) {
        p.scratch_bytes = cols * sizeof(float) + dtype_bytes(w->type, cols);
        p.scratch = cpu_scratch(b, &p.scratch_bytes);
        if (!p.scratch)
            return err_nomem(e, p.scratch_bytes, "repacking a weight");
    }
    w->group_bytes = cpu_group_bytes(w->type, w->m.cols);
    *bytes = w->group_bytes * (size_t)groups_of(w);
    w->packed = cpu_slab_take(b, *bytes, &w->slab);
    if (!w->packed)
        return err_nomem(e, *bytes, "a repacked weight");
    pool_for(b->base.pool, groups_of(w), pack_group, &p);
    return OK;
}

/* The rows of m as pairs, NULL when one of them has more: such are rope queries read off a head. */
static struct cpu_sparse *sparse_rows(const struct matrix *m)
{
    float row[CPU_SPARSE];
    if (m->cols > CPU_SPARSE || dtype_traits(m->dtype)->block > 1)
        return NULL;
    struct cpu_sparse *s = mem_calloc((size_t)m->rows, sizeof *s);
    size_t bytes = dtype_bytes(m->dtype, (size_t)m->cols);
    for (int i = 0; s && i < m->rows; i++) {
        int n = 0;
        dtype_to_f32(m->dtype, (const char *)m->data + (size_t)i * bytes, row, (size_t)m->cols);
        for (int j = 0; j < m->cols && n <= 2; j++) {
            if (row[j] != 0 && n < 2)
                s[i].at[n] = j, s[i].value[n] = row[j];
            n += row[j] != 0;
        }
        if (n > 2) {
            free(s);
            return NULL;
        }
    }
    return s; /* without memory for it the matrix is used as it is */
}

int cpu_weight_load(struct backend *base, const struct matrix *m, struct weight **out,
                    size_t *owned, struct err *e)
{
    struct cpu *b = (struct cpu *)base;
    struct weight *w = mem_calloc(1, sizeof *w);
    if (!w)
        return err_nomem(e, sizeof *w, "a weight");
    w->m = *m;
    w->type = cpu_can_pack(m->dtype) ? m->dtype : DTYPE_Q8_0;
    bool blocks = dtype_traits(m->dtype)->block > 1,
         can = cpu_can_pack(m->dtype) || dtype_is_q8_0(m->dtype) || !b->exact;
    size_t bytes = 0, all = cpu_group_bytes(w->type, m->cols) * (size_t)groups_of(w);
    bool wanted = blocks && can && b->isa.matmul_q;
    w->crowded = wanted && b->copies && b->copied + all > b->copies;
    int rc = wanted && !w->crowded ? pack(b, w, &bytes, e) : OK;
    b->in_place += w->crowded;
    b->copied += w->bytes = bytes;
    if (rc) {
        free(w);
        return rc;
    }
    w->sparse = sparse_rows(m);
    *out = w;
    if (owned)
        *owned = bytes;
    return OK;
}

void cpu_weight_free(struct backend *base, struct weight *w)
{
    struct cpu *b = (struct cpu *)base;
    if (!w)
        return;
    b->copied -= w->bytes;
    b->in_place -= w->crowded;
    cpu_slab_give(b, w->slab);
    free(w->sparse);
    free(w);
}

/* The file's blocks of a packed row again. */
static void unpack_row(const struct weight *w, int row, int col, int n, float *dst)
{
    size_t head = cpu_block_head(w->m.dtype), bytes = cpu_block_bytes(w->m.dtype);
    size_t lane = (size_t)row % CPU_GROUP;
    float numbers[CPU_BLOCK];
    unsigned char block[4 + CPU_BLOCK];
    for (int at = col - col % CPU_BLOCK; at < col + n; at += CPU_BLOCK) {
        const unsigned char *p = cpu_group(w, row / CPU_GROUP) + (size_t)at / CPU_BLOCK * bytes;
        unsigned char *to = block;
        for (size_t j = 0; j < head / 16; j++, to += 2)
            memcpy(to, p + j * 16 + 2 * lane, 2);
        for (size_t j = head; j < bytes; j += 32, to += 4)
            memcpy(to, p + j + 4 * lane, 4);
        dtype_to_f32(w->m.dtype, block, numbers, CPU_BLOCK);
        for (int c = 0; c < CPU_BLOCK; c++)
            if (at + c >= col && at + c < col + n)
                dst[at + c - col] = numbers[c];
    }
}

/* Columns of a row of blocks as the file has them, which may begin and end inside a block. */
static void read_row(const struct weight *w, int row, int col, int n, float *dst)
{
    const struct dtype_traits *t = dtype_traits(w->m.dtype);
    const char *data =
        (const char *)w->m.data + dtype_bytes(w->m.dtype, (size_t)w->m.cols) * (size_t)row;
    float numbers[256];
    while (n > 0) {
        int skip = col % t->block, take = t->block - skip < n ? t->block - skip : n;
        const char *block = data + (size_t)(col / t->block) * (size_t)t->block_bytes;
        if (!skip && n >= t->block) {
            take = n - n % t->block;
            dtype_to_f32(w->m.dtype, block, dst, (size_t)take);
        } else {
            dtype_to_f32(w->m.dtype, block, numbers, (size_t)t->block);
            memcpy(dst, numbers + skip, (size_t)take * sizeof *dst);
        }
        col += take;
        dst += take;
        n -= take;
    }
}

struct cpu_piece cpu_weight_piece(const struct cpu *b, const struct weight *w, int row, int rows,
                                  int col, int n, int T, float *dst)
{
    const char *data = w->m.data;
    enum dtype type = w->m.dtype;
    size_t cols = (size_t)w->m.cols, at = (size_t)row * cols + (size_t)col;
    /* Files may place numbers at any address; only those at their own alignment are used in place.
     */
    bool aligned = (uintptr_t)data % (type == DTYPE_F32 ? 4 : 2) == 0;
    bool plain = aligned && (type == DTYPE_F16 || type == DTYPE_BF16);
    if (aligned && (type == DTYPE_F32 || (plain && T <= CPU_FEW)))
        return (struct cpu_piece){type, data + dtype_bytes(type, at), w->m.cols};
    if (plain)
        b->isa.widen(type, rows, n, data + dtype_bytes(type, at), w->m.cols, dst);
    for (int i = 0; i < rows && !plain; i++) {
        float *y = dst + (size_t)i * n;
        if (w->packed && w->type == type && !cpu_is_apart(type))
            unpack_row(w, row + i, col, n, y);
        else
            read_row(w, row + i, col, n, y);
    }
    return (struct cpu_piece){DTYPE_F32, dst, n};
}

/* --- linear --- */

struct linear {
    struct cpu *b;
    int n, T, chunk; /* chunk: groups a task, over all weights in a line */
    const struct weight *const *w;
    float *const *y;
    const float *x;
    struct cpu_quants quants;
    bool add;
    char *scratch;
    size_t scratch_bytes;
};

/* Groups [from, to) of one weight, int8 activations. */
static void run_quants(const struct linear *l, int i, int from, int to)
{
    const struct weight *w = l->w[i];
    for (int t = 0; t < l->T; t += LINEAR_TOKENS) {
        int nt = l->T - t < LINEAR_TOKENS ? l->T - t : LINEAR_TOKENS;
        l->b->isa.matmul_q(w, from, to - from, &l->quants, t, nt,
                           l->y[i] + (size_t)t * w->m.rows + (size_t)from * CPU_GROUP, w->m.rows,
                           l->add);
    }
}

/* The same in fp32. panel: [cols][CPU_PANEL]. */
static void run_packed(const struct linear *l, int i, int from, int to, float *panel)
{
    const struct weight *w = l->w[i];
    int cols = w->m.cols, rows = w->m.rows;
    if (l->T <= LINEAR_FEW) {
        l->b->isa.matmul_f(w, from, to - from, l->x, l->T, l->y[i] + (size_t)from * CPU_GROUP, rows,
                           l->add);
        return;
    }
    for (int g = from; g < to; g += CPU_PANEL / CPU_GROUP) {
        int row = g * CPU_GROUP, end = to * CPU_GROUP < rows ? to * CPU_GROUP : rows;
        int n = end - row < CPU_PANEL ? end - row : CPU_PANEL;
        for (int j = 0; j < n; j += CPU_GROUP)
            l->b->isa.unpack(w, g + j / CPU_GROUP, panel + j, CPU_PANEL);
        for (int k = 0; k < cols; k += LINEAR_DEPTH)
            l->b->isa.gemm(l->T, n, cols - k < LINEAR_DEPTH ? cols - k : LINEAR_DEPTH, l->x + k,
                           cols, DTYPE_F32, panel + (size_t)k * CPU_PANEL, CPU_PANEL, l->y[i] + row,
                           rows, l->add || k);
    }
}

/* Weights as the file has them: panels of rows, in blocks of columns when many tokens use them. */
static void run_plain(const struct linear *l, int i, int from, int to, float *panel)
{
    const struct weight *w = l->w[i];
    int cols = w->m.cols, rows = w->m.rows, step = cols;
    int end = to * CPU_GROUP < rows ? to * CPU_GROUP : rows;
    if (l->T > CPU_FEW)
        step = LINEAR_DEPTH - LINEAR_DEPTH % dtype_traits(w->m.dtype)->block;
    for (int row = from * CPU_GROUP; row < end; row += CPU_PANEL) {
        int n = end - row < CPU_PANEL ? end - row : CPU_PANEL;
        for (int k = 0; k < cols; k += step) {
            int depth = cols - k < step ? cols - k : step;
            struct cpu_piece p = cpu_weight_piece(l->b, w, row, n, k, depth, l->T, panel);
            l->b->isa.dots(l->T, n, depth, l->x + k, cols, p.type, p.data, p.ld, l->y[i] + row,
                           rows, l->add || k);
        }
    }
}

static void linear_task(void *arg, int task, int thread)
{
    const struct linear *l = arg;
    float *panel = (float *)(void *)(l->scratch + (size_t)thread * l->scratch_bytes);
    int from = task * l->chunk, to = from + l->chunk;
    for (int i = 0, base = 0; i < l->n && base < to; base += groups_of(l->w[i]), i++) {
        int a = from > base ? from - base : 0, groups = groups_of(l->w[i]);
        int z = to - base < groups ? to - base : groups;
        if (a >= z)
            continue;
        if (!l->w[i]->packed)
            run_plain(l, i, a, z, panel);
        else if (l->b->exact)
            run_packed(l, i, a, z, panel);
        else
            run_quants(l, i, a, z);
    }
}

struct quantise {
    const struct linear *l;
    int step;
};

static void quantise_task(void *arg, int i, int thread)
{
    const struct quantise *q = arg;
    const struct cpu_quants *x = &q->l->quants;
    (void)thread;
    int nb = x->cols / CPU_BLOCK, to = (i + 1) * q->step < q->l->T ? (i + 1) * q->step : q->l->T;
    for (int t = i * q->step; t < to; t++)
        q->l->b->isa.quantise(q->l->x + (size_t)t * x->cols, x->cols, x->q + (size_t)t * x->cols,
                              x->scale + (size_t)t * nb, x->sum + (size_t)t * nb,
                              x->half + (size_t)t * nb * 2);
}

static bool quantise(struct linear *l)
{
    int cols = l->w[0]->m.cols;
    size_t all = (size_t)l->T * cols, blocks = all / CPU_BLOCK;
    size_t q_bytes = (all + 63) & ~(size_t)63;
    char *p = cpu_shared(l->b, q_bytes + blocks * (2 * sizeof(float) + 2 * sizeof(int16_t)));
    if (!p)
        return false;
    l->quants = (struct cpu_quants){.q = (int8_t *)p,
                                    .scale = (float *)(void *)(p + q_bytes),
                                    .sum = (float *)(void *)(p + q_bytes) + blocks,
                                    .half = (int16_t *)(void *)(p + q_bytes) + 4 * blocks,
                                    .cols = cols};
    struct quantise job = {l, l->T < 8 ? l->T : (l->T + 15) / 16};
    pool_for(l->b->base.pool, (l->T + job.step - 1) / job.step, quantise_task, &job);
    return true;
}

void cpu_linear(struct backend *base, int n, const struct weight *const *w, float *const *y,
                const float *x, int T, bool add)
{
    struct linear l = {.b = (struct cpu *)base, .n = n, .T = T, .w = w, .y = y, .x = x, .add = add};
    int groups = 0, packed = 0;
    for (int i = 0; i < n; i++) {
        groups += groups_of(w[i]);
        packed += w[i]->packed != NULL;
    }
    if (!groups || !T)
        return;
    bool whole = T <= CPU_FEW || (packed && l.b->exact);
    int depth = whole ? w[0]->m.cols : LINEAR_DEPTH;
    l.scratch_bytes = (size_t)CPU_PANEL * (size_t)depth * sizeof(float);
    l.scratch = cpu_scratch(l.b, &l.scratch_bytes);
    if (!l.scratch || (packed && !l.b->exact && !quantise(&l)))
        return;
    int tasks = LINEAR_TASKS * pool_threads(base->pool);
    l.chunk = (groups + tasks - 1) / tasks;
    int whole_panels = T > LINEAR_FEW ? CPU_PANEL / CPU_GROUP : 2; /* or pairs of groups */
    l.chunk = (l.chunk + whole_panels - 1) / whole_panels * whole_panels;
    pool_for(base->pool, (groups + l.chunk - 1) / l.chunk, linear_task, &l);
}

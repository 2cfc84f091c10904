/* The CUDA backend's weights: uploaded once where they fit, streamed from the file where they do
 * not. Formats that kernels do not read become fp32 on the way, exactly, for 4 bytes a number.
 *
 * Bytes travel through two pinned buffers: the pool's threads copy into one while the device takes
 * the other, an event says when a buffer may be filled again. On the way they part blocks from
 * their scales, as kernels read them (cuda_quant.h). Free memory decides what stays: an eighth of
 * the device is kept for caches, activations and statistics, and a weight that would reach into it
 * stays in host memory (it must outlive the backend's weight) and comes to a ring in device memory
 * at each use, unless it still lies there from the last. All of it happens in the one stream, so a
 * kernel never meets bytes that another still reads. Refuses weights that neither fit nor find room
 * for that ring.
 *
 * Roofline: PCIe 5 x16 carries 55 GB/s of pinned memory, the host's threads copy 20 GB/s on two
 * cores and more than the link on eight; taking blocks apart is some 5 GB/s a core. Llama-3-8B in
 * BF16 (16 GB) loads in 0.3 s (page cache, 8 cores). Streamed decoding costs the streamed bytes at
 * that rate for every token: of a 70B in Q4_K (40 GB) on 24 GB 19 GB, 0.35 s a token, beside which
 * 12 ms of arithmetic need no overlap. A conversion takes a layer's weights up once, for all
 * windows of it: 70B in BF16 140 GB, 2.6 s in all against 13 s of forward pass. None of it
 * measured. */
#include "kernels/cuda_quant.h"

#include <stdlib.h>
#include <string.h>

extern "C" {
#include "kernels/pool.h"
}

static const size_t STAGE = 16 << 20, PIECE = 1 << 20, ALIGN = 256;
enum { KEPT_SHARE = 8, RING_SHARE = 16 };

/* Bytes on their way into a pinned buffer, PIECE of them a task. */
struct piece {
    char *to;
    const char *from;
    size_t bytes;
};

static void copy_piece(void *arg, int i, int thread)
{
    const struct piece *p = (const struct piece *)arg;
    size_t at = (size_t)i * PIECE, n = p->bytes - at < PIECE ? p->bytes - at : PIECE;
    (void)thread;
    memcpy(p->to + at, p->from + at, n);
}

/* Blocks on their way: bodies from `to` on, heads from `heads` on. */
struct blocks {
    char *to, *heads;
    const char *from;
    size_t n;
};

template <enum dtype type> static void split_piece(void *arg, int i, int thread)
{
    const struct blocks *p = (const struct blocks *)arg;
    constexpr struct cuda_split f = cuda_split_of(type); /* known sizes copy three times as fast */
    constexpr size_t head = f.head, body = f.body, per = PIECE / (head + body);
    size_t from = (size_t)i * per, to = p->n - from < per ? p->n : from + per;
    (void)thread;
    for (size_t b = from; b < to; b++) {
        const char *at = p->from + b * (head + body);
        memcpy(p->heads + b * head, at + f.head_at, head);
        memcpy(p->to + b * body, at + (f.head_at ? 0 : head), body);
    }
}

static void (*split_of(enum dtype type))(void *, int, int)
{
    switch (type) {
    case DTYPE_Q8_0: return split_piece<DTYPE_Q8_0>;
    case DTYPE_Q4_0: return split_piece<DTYPE_Q4_0>;
    case DTYPE_Q4_1: return split_piece<DTYPE_Q4_1>;
    case DTYPE_Q6_K: return split_piece<DTYPE_Q6_K>;
    default: return NULL; /* blocks without heads travel as they are */
    }
}

static bool stage_ready(struct cuda *c)
{
    struct cuda_stage *s = c->stage;
    for (int i = 0; i < 2 && !s[i].host; i++) {
        void *host = NULL;
        if (!cuda_ok(c, cudaEventCreateWithFlags(&s[i].taken, cudaEventDisableTiming),
                     "an event") ||
            !cuda_ok(c, cudaMallocHost(&host, STAGE), "pinned memory"))
            return false;
        s[i].host = (char *)host;
    }
    return s[0].host && s[1].host;
}

/* The next buffer that may be filled; NULL latches a fault. */
static struct cuda_stage *next_stage(struct cuda *c)
{
    cuda_step_spoil(c, "weights travel");
    if (!stage_ready(c))
        return NULL;
    struct cuda_stage *s = &c->stage[c->stage_at++ % 2];
    return cuda_ok(c, cudaEventSynchronize(s->taken), "waiting for an upload") ? s : NULL;
}

static bool send(struct cuda *c, char *to, const char *from, size_t bytes)
{
    return cuda_ok(c, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, c->stream),
                   "upload");
}

void cuda_upload(struct cuda *c, void *to, const void *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += STAGE) {
        struct cuda_stage *s = next_stage(c);
        if (!s)
            return;
        struct piece p = {s->host, (const char *)from + at,
                          bytes - at < STAGE ? bytes - at : STAGE};
        pool_for(c->base.pool, (int)((p.bytes + PIECE - 1) / PIECE), copy_piece, &p);
        if (!send(c, (char *)to + at, s->host, p.bytes) ||
            !cuda_ok(c, cudaEventRecord(s->taken, c->stream), "an event"))
            return;
    }
}

/* Uploads blocks as kernels read them: all bodies, then all heads. */
static void upload_blocks(struct cuda *c, const struct matrix *m, char *to,
                          void (*split)(void *, int, int))
{
    struct cuda_split f = cuda_split_of(m->dtype);
    size_t head = (size_t)f.head, body = (size_t)f.body, all = head + body;
    size_t blocks = (size_t)m->rows * (size_t)(m->cols / f.block), step = STAGE / all;
    for (size_t at = 0; at < blocks; at += step) {
        struct cuda_stage *s = next_stage(c);
        if (!s)
            return;
        size_t n = blocks - at < step ? blocks - at : step, per = PIECE / all;
        struct blocks b = {s->host, s->host + n * body, (const char *)m->data + at * all, n};
        pool_for(c->base.pool, (int)((n + per - 1) / per), split, &b);
        if (!send(c, to + at * body, b.to, n * body) ||
            !send(c, to + blocks * body + at * head, b.heads, n * head) ||
            !cuda_ok(c, cudaEventRecord(s->taken, c->stream), "an event"))
            return;
    }
}

/* Uploads m as fp32, a few rows at a time. */
static void upload_wide(struct cuda *c, const struct matrix *m, float *to)
{
    size_t cols = (size_t)m->cols, row_bytes = dtype_bytes(m->dtype, cols);
    int step = (1 << 20) / m->cols + 1;
    float *host = (float *)mem_calloc((size_t)step * cols, sizeof *host);
    if (!host) {
        err_nomem(&c->fault, (size_t)step * cols * sizeof *host, "a weight on its way");
        return;
    }
    for (int row = 0; row < m->rows; row += step) {
        size_t n = (size_t)(m->rows - row < step ? m->rows - row : step) * cols;
        dtype_to_f32(m->dtype, (const char *)m->data + (size_t)row * row_bytes, host, n);
        cuda_upload(c, to + (size_t)row * cols, host, n * sizeof *host);
    }
    free(host);
}

static void upload(struct cuda *c, const struct weight *w, void *to)
{
    auto split = split_of(w->m.dtype);
    if (w->m.dtype != w->host.dtype)
        upload_wide(c, &w->host, (float *)to);
    else if (split)
        upload_blocks(c, &w->host, (char *)to, split);
    else
        cuda_upload(c, to, w->host.data, w->bytes);
}

/* Gives w the next place of the ring; weights that lay there have to come again. */
static void place(struct cuda *c, struct weight *w)
{
    struct cuda_ring *r = &c->streamed;
    size_t room = (w->bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    if (r->at + room > r->bytes)
        r->at = 0;
    size_t from = r->at, to = from + room;
    for (struct weight **p = &r->present; *p;) {
        struct weight *old = *p;
        size_t begin = (size_t)((char *)old->m.data - r->base);
        if (begin < to && from < begin + old->bytes) {
            *p = old->next;
            old->m.data = NULL;
        } else {
            p = &old->next;
        }
    }
    w->m.data = r->base + from;
    w->next = r->present;
    r->present = w;
    r->at = to;
}

const struct matrix *cuda_weight(struct cuda *c, const struct weight *weight)
{
    struct weight *w = (struct weight *)weight; /* where it lies is the backend's affair */
    if (!w->m.data) {
        place(c, w);
        upload(c, w, (void *)w->m.data);
        c->streamed.uploads++;
    }
    return &w->m;
}

/* A ring that takes the largest streamed weight. */
static int ring_for(struct cuda *c, size_t bytes, struct err *e)
{
    struct cuda_ring *r = &c->streamed;
    size_t free_bytes = 0, all = 0;
    if (bytes + ALIGN <= r->bytes)
        return OK;
    cudaMemGetInfo(&free_bytes, &all);
    size_t want = all / RING_SHARE > bytes + ALIGN ? all / RING_SHARE : bytes + ALIGN;
    void *p = NULL;
    for (struct weight *w = r->present; w; w = w->next)
        w->m.data = NULL;
    cudaFree(r->base);
    *r = (struct cuda_ring){NULL, 0, 0, r->weights, r->uploads, NULL};
    if (cudaMalloc(&p, want) != cudaSuccess) {
        want = bytes + ALIGN;
        cudaGetLastError();
        if (cudaMalloc(&p, want) != cudaSuccess)
            return cuda_no_memory(c, bytes, "a weight", e);
    }
    r->base = (char *)p;
    r->bytes = want;
    return OK;
}

/* Room of its own, NULL where it would reach into what is kept for the rest. */
static void *room_for(size_t bytes)
{
    size_t free_bytes = 0, all = 0;
    void *p = NULL;
    if (cudaMemGetInfo(&free_bytes, &all) != cudaSuccess || free_bytes < bytes + all / KEPT_SHARE ||
        cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
        cudaGetLastError();
        return NULL;
    }
    return p;
}

void cuda_weight_free(struct backend *b, struct weight *w)
{
    struct cuda *c = (struct cuda *)b;
    if (!w)
        return;
    if (!w->streams)
        cudaFree((void *)w->m.data);
    else
        c->streamed.weights -= w->bytes;
    for (struct weight **p = &c->streamed.present; *p; p = &(*p)->next)
        if (*p == w) {
            *p = w->next;
            break;
        }
    free(w);
}

int cuda_weight_load(struct backend *b, const struct matrix *m, struct weight **out, size_t *owned,
                     struct err *e)
{
    struct cuda *c = (struct cuda *)b;
    struct weight *w = (struct weight *)mem_calloc(1, sizeof *w);
    if (!w)
        return err_nomem(e, sizeof *w, "a weight");
    w->m = w->host = *m;
    w->m.dtype = cuda_reads(m->dtype) ? m->dtype : DTYPE_F32;
    w->bytes = (size_t)m->rows * dtype_bytes(w->m.dtype, (size_t)m->cols);
    cudaSetDevice(c->device);
    w->m.data = room_for(w->bytes);
    w->streams = !w->m.data;
    c->streamed.weights += w->streams ? w->bytes : 0;
    int rc = w->streams ? ring_for(c, w->bytes, e) : OK;
    if (!rc && !w->streams) {
        upload(c, w, (void *)w->m.data);
        rc = b->ops->sync(b, e);
    }
    if (rc) {
        cuda_weight_free(b, w);
        return rc;
    }
    *out = w;
    if (owned)
        *owned = w->streams ? 0 : w->bytes;
    return OK;
}

void cuda_weights_close(struct cuda *c)
{
    cudaFree(c->streamed.base);
    for (int i = 0; i < 2; i++) {
        if (c->stage[i].host)
            cudaFreeHost(c->stage[i].host);
        if (c->stage[i].taken)
            cudaEventDestroy(c->stage[i].taken);
    }
}

/* bench_ops [DEVICE [SHRINK]]: how much of the memory's speed the operations of decoding reach, one
 * by one, and what large linear problems take. Weights and caches are taken in turn, more of them
 * than a cache holds; bytes are those that must be read; the measure is a copy within the same
 * memory. SHRINK divides the sizes, to try the tool itself. On demand: ninja bench_ops. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/algebra.h"
#include "kernels/linalg.h"
#include "sessions/clock.h"

enum { IN_TURN = (256 << 20), MOST = 512 };

struct bench {
    struct backend *b;
    const struct backend_ops *op;
    double copy; /* bytes a second */
    int shrink;
    unsigned char *noise; /* IN_TURN bytes of weights: zeros cost as much as any */
};

/* Seconds a call, best of some runs that each take a while. */
static double seconds(struct bench *t, void (*call)(void *arg, int i), void *arg)
{
    double best = INFINITY;
    int n = 16;
    for (int run = 0; run < 5 && !t->op->sync(t->b, NULL); run++) {
        double start = clock_now();
        for (int i = 0; i < n; i++)
            call(arg, i);
        t->op->sync(t->b, NULL);
        double took = fmax(clock_now() - start, 1e-9);
        if (run)
            best = fmin(best, took / n);
        else
            n = (int)fmin(fmax(0.05 / (took / n), 4), 20000);
    }
    return best;
}

static void print(const struct bench *t, const char *name, double s, double bytes)
{
    printf("%-34s %9.1f us %8.0f GB/s %5.0f %%\n", name, s * 1e6, bytes / s * 1e-9,
           100 * bytes / s / t->copy);
    fflush(stdout);
}

struct copy {
    struct bench *t;
    float *from, *to;
    int n;
};

static void copy_call(void *arg, int i)
{
    struct copy *c = arg;
    (void)i;
    c->t->op->store(c->t->b, c->to, DTYPE_F32, c->n, c->from, c->n, c->n, 64);
}

static void bench_copy(struct bench *t)
{
    size_t bytes = IN_TURN / (size_t)t->shrink;
    struct copy c = {t, t->op->alloc(t->b, bytes), t->op->alloc(t->b, bytes), (int)(bytes / 256)};
    t->copy = 1;
    if (c.from && c.to) {
        double s = seconds(t, copy_call, &c);
        t->copy = 2 * (double)bytes / s;
        print(t, "copy", s, 2 * (double)bytes);
    }
    t->op->free(t->b, c.from);
    t->op->free(t->b, c.to);
}

struct linear {
    struct bench *t;
    struct weight *w[MOST];
    float *x, *y;
    int n, T;
};

static void linear_call(void *arg, int i)
{
    struct linear *c = arg;
    const struct weight *one[] = {c->w[i % c->n]};
    c->t->op->linear(c->t->b, 1, one, (float *const[]){c->y}, c->x, c->T, false);
}

static void bench_linear(struct bench *t, enum dtype type, int rows, int cols, int T)
{
    struct linear c = {.t = t, .T = T};
    rows /= t->shrink;
    struct matrix m = {t->noise, type, rows, cols};
    size_t bytes = (size_t)rows * dtype_bytes(type, (size_t)cols), copies = IN_TURN / bytes + 1;
    c.x = t->op->alloc(t->b, (size_t)cols * (size_t)T * sizeof(float));
    c.y = t->op->alloc(t->b, (size_t)rows * (size_t)T * sizeof(float));
    while (c.n < MOST && (size_t)c.n < copies &&
           !t->op->weight_load(t->b, &m, &c.w[c.n], NULL, NULL))
        c.n++;
    if (c.n && c.x && c.y) {
        char name[64];
        snprintf(name, sizeof name, "linear %s %dx%d, %d row%s", dtype_traits(type)->name, rows,
                 cols, T, T > 1 ? "s" : "");
        print(t, name, seconds(t, linear_call, &c), (double)bytes);
    }
    for (int i = 0; i < c.n; i++)
        t->op->weight_free(t->b, c.w[i]);
    t->op->free(t->b, c.x);
    t->op->free(t->b, c.y);
}

struct attention {
    struct bench *t;
    char *cache;
    float *q, *out;
    int n, H, G, d, r, R, ctx;
    size_t bytes; /* of one cache */
};

static void attention_call(void *arg, int i)
{
    struct attention *c = arg;
    char *at = c->cache + (size_t)(i % c->n) * c->bytes;
    if (c->G) {
        struct attn_gqa_args a = {.out = c->out, .q = c->q, .k = at, .v = at + c->bytes / 2};
        a.kv = DTYPE_F16, a.T = 1, a.past = c->ctx - 1;
        a.H = c->H, a.G = c->G, a.d = c->d, a.scale = 0.1f;
        c->t->op->attn_gqa(c->t->b, &a);
    } else {
        struct attn_mla_args a = {.out = c->out, .q_lat = c->q, .q_rope = c->q, .cache = at};
        a.kv = DTYPE_F16, a.T = 1, a.past = c->ctx - 1;
        a.H = c->H, a.r = c->r, a.R = c->R, a.scale = 0.1f;
        c->t->op->attn_mla(c->t->b, &a);
    }
}

static void bench_attention(struct bench *t, struct attention c)
{
    char name[64];
    int width = c.G ? 2 * c.G * c.d : c.r + c.R, most = c.d > c.r + c.R ? c.d : c.r + c.R;
    c.t = t;
    c.ctx /= t->shrink;
    c.bytes = (size_t)c.ctx * (size_t)width * 2;
    c.n = (int)(IN_TURN / c.bytes) + 1;
    c.cache = t->op->alloc(t->b, (size_t)c.n * c.bytes); /* zeros: as much work as any */
    c.q = t->op->alloc(t->b, (size_t)c.H * (size_t)most * sizeof(float));
    c.out = t->op->alloc(t->b, (size_t)c.H * (size_t)most * sizeof(float));
    if (c.G)
        snprintf(name, sizeof name, "GQA %d/%d heads of %d, ctx %d", c.H, c.G, c.d, c.ctx);
    else
        snprintf(name, sizeof name, "MLA %d heads, %d + %d, ctx %d", c.H, c.r, c.R, c.ctx);
    if (c.cache && c.q && c.out)
        print(t, name, seconds(t, attention_call, &c), (double)c.bytes);
    t->op->free(t->b, c.cache);
    t->op->free(t->b, c.q);
    t->op->free(t->b, c.out);
}

/* A problem of n unknowns on the device, whoever is meant for that size, and on the host. */
static void bench_solver(struct bench *t, int n, bool eigen)
{
    size_t N = (size_t)(n /= t->shrink), nn = N * N;
    double *a = malloc(2 * nn * sizeof *a), *x = a + nn, took[2] = {0};
    struct err e = {0};
    for (int host = 0; a && host < 2; host++) {
        const struct algebra_ops *op = t->b->algebra;
        for (size_t i = 0; i < nn; i++)
            a[i] = i % (N + 1)
                       ? 1.0 / (1.0 + (double)(i / N > i % N ? i / N - i % N : i % N - i / N))
                       : 4,
            x[i] = 1;
        double start = clock_now();
        int rc = host    ? (eigen ? linalg_eigh(n, a, x, &e) : linalg_solve_spd(n, n, a, x, &e))
                 : !op   ? ERR_UNSUPPORTED
                 : eigen ? op->eigh(t->b, n, a, x, &e)
                         : op->solve_spd(t->b, n, n, a, x, &e);
        took[host] = rc ? 0 : clock_now() - start;
    }
    char name[64];
    snprintf(name, sizeof name, "%s of %d", eigen ? "eigenvectors" : "least squares", n);
    if (t->b->algebra)
        printf("%-34s %9.1f ms, one host thread %.1f ms\n", name, took[0] * 1e3, took[1] * 1e3);
    else
        printf("%-34s one host thread %.1f ms\n", name, took[1] * 1e3);
    free(a);
}

int main(int argc, char **argv)
{
    static const enum dtype types[] = {DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0,
                                       DTYPE_Q4_1, DTYPE_Q4_K, DTYPE_Q6_K};
    static const struct attention heads[] = {
        {.H = 32, .G = 8, .d = 128, .ctx = 4096},  {.H = 32, .G = 8, .d = 128, .ctx = 32768},
        {.H = 32, .r = 512, .R = 64, .ctx = 4096}, {.H = 32, .r = 512, .R = 64, .ctx = 32768},
        {.H = 32, .r = 256, .R = 32, .ctx = 8192}, {.H = 64, .r = 512, .R = 64, .ctx = 8192}};
    struct err e = {0};
    struct bench t = {.shrink = argc > 2 ? atoi(argv[2]) : 1};
    char text[256];
    if (t.shrink < 1 ||
        backend_open(&t.b, argc > 1 ? argv[1] : "cuda", &(struct backend_options){0}, &e)) {
        fprintf(stderr, "bench_ops: %s\n", e.text[0] ? e.text : "SHRINK is a number from 1 on");
        return 1;
    }
    t.op = t.b->ops;
    t.noise = calloc(IN_TURN, 1);
    t.op->describe(t.b, text, sizeof text);
    printf("%s\n", text);
    bench_copy(&t);
    for (size_t i = 0; t.noise && i < sizeof types / sizeof *types; i++) {
        bench_linear(&t, types[i], 4096, 4096, 1);
        bench_linear(&t, types[i], 14336, 4096, 1);
        bench_linear(&t, types[i], 4096, 14336, 1);
        bench_linear(&t, types[i], 14336, 4096, 8);
    }
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        bench_attention(&t, heads[i]);
    bench_solver(&t, 2048, true);
    bench_solver(&t, 4096, true);
    bench_solver(&t, 4096, false);
    free(t.noise);
    int rc = t.op->sync(t.b, &e);
    if (rc)
        fprintf(stderr, "bench_ops: %s\n", e.text);
    backend_close(t.b);
    return rc ? 1 : 0;
}

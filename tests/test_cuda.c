/* The CUDA backend against the reference, operation by operation at odd sizes, and a conversion and
 * decoding steps through it against the CPU. Built twice: as test_cuda for a real device (skipped
 * where there is none), and as test_cuda_emulated with the kernels' source run on the host. */
#include "kernels/algebra.h"
#include "sessions/chat.h"
#include "sessions/infer.h"
#include "sessions/workspace.h"
#include "tests/support.h"
#include "tests/support_models.h"

#include <unistd.h>

/* fp32 sums against double ones, as in test_backend.c: n terms of random sign are off by about
 * √n·2⁻²⁴ of their size, for the longest here (512 to 576) 1.4e-6, squared 2e-12; exponentials,
 * roots and quotients add a few units in the last place to each number. Exact backends multiply in
 * fp32, so nothing coarser comes in. Squared errors may thus be 50 times what sums alone explain,
 * and one number of a thousand with a single wrong bit among its first 12 is found. */
#define FP32_NMSE 1e-10
/* Logits of a two-layer model with an F16 cache. A number that lies within fp32's error of a tie
 * rounds the other way in F16: that is 2⁻¹¹ of it (2.4e-7 squared) for one in 2¹³/√n = 500, so
 * 5e-10; two layers and the head's norm may add such errors up, 20 times is left for it. */
#define LOGITS_NMSE 1e-8
/* A converted model's subspaces come from eigenvectors, whose sensitivity is 1 / (gap between kept
 * and dropped eigenvalues): this text's and model's gaps decide, no number format does. So the
 * yardstick is another machine of the same arithmetic: the CPU backend against the reference, which
 * sums in double where both round to fp32. The device may be three times as far in each number, 10
 * squared: its sums run in other lengths and orders. */
#define CONVERTED_TIMES 10

struct pair {
    struct backend *ref, *b;
    uint64_t seed;
};

/* Host numbers with a copy on each side. */
struct both {
    float *host;
    void *at[2];
    size_t bytes;
};

static struct backend *side(const struct pair *p, int s)
{
    return s ? p->b : p->ref;
}

static struct both numbers_as(struct pair *p, enum dtype type, size_t n, double spread)
{
    struct both x = {.host = malloc((n + 1) * sizeof(float)), .bytes = dtype_bytes(type, n)};
    void *stored = malloc(x.bytes + 1);
    for (size_t i = 0; i < n; i++)
        x.host[i] = (float)(spread * test_normal(&p->seed));
    dtype_from_f32(type, x.host, stored, n);
    for (int s = 0; s < 2; s++) {
        struct backend *b = side(p, s);
        x.at[s] = b->ops->alloc(b, x.bytes);
        CHECK(x.at[s] != NULL, "alloc");
        b->ops->put(b, x.at[s], stored, x.bytes);
    }
    free(stored);
    return x;
}

static struct both numbers(struct pair *p, size_t n, double spread)
{
    return numbers_as(p, DTYPE_F32, n, spread);
}

/* Numbers that an operation must write: NaN until then. */
static struct both unwritten(struct pair *p, size_t n)
{
    struct both x = numbers(p, n, 1);
    for (size_t i = 0; i < n; i++)
        x.host[i] = NAN;
    for (int s = 0; s < 2; s++)
        side(p, s)->ops->put(side(p, s), x.at[s], x.host, x.bytes);
    return x;
}

static void drop(struct pair *p, struct both *x)
{
    for (int s = 0; s < 2; s++)
        side(p, s)->ops->free(side(p, s), x->at[s]);
    free(x->host);
}

/* Compares and drops. limit 0: to the bit. */
static void compare(struct pair *p, struct both *y, double limit, const char *what)
{
    size_t n = y->bytes / sizeof(float);
    float *got[2];
    for (int s = 0; s < 2; s++) {
        got[s] = malloc(y->bytes + 1);
        side(p, s)->ops->get(side(p, s), got[s], y->at[s], y->bytes);
    }
    struct err e = {0};
    CHECK_OK(p->b->ops->sync(p->b, &e), e);
    if (limit > 0) {
        double nmse = test_nmse(got[1], got[0], n);
        CHECK(nmse <= limit, "%s: nmse %.3g", what, nmse);
    } else {
        CHECK(!memcmp(got[0], got[1], y->bytes), "%s: bits differ", what);
    }
    free(got[0]), free(got[1]);
    drop(p, y);
}

static struct weight *load(struct backend *b, const void *data, enum dtype type, int rows, int cols)
{
    struct err e = {0};
    struct weight *w = NULL;
    struct matrix m = {data, type, rows, cols};
    CHECK_OK(b->ops->weight_load(b, &m, &w, NULL, &e), e);
    return w;
}

/* A weight on both sides; Q4_1 bytes where the type cannot be written stay out. */
static void weight_pair(struct pair *p, enum dtype type, int rows, int cols, struct weight **w)
{
    size_t n = (size_t)rows * (size_t)cols;
    float *x = malloc(n * sizeof *x);
    void *data = malloc(dtype_bytes(type, n) + 1);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(0.1 * test_normal(&p->seed));
    dtype_from_f32(type, x, data, n);
    for (int s = 0; s < 2; s++)
        w[s] = load(side(p, s), data, type, rows, cols);
    free(x);
    if (p->seed) /* the reference keeps pointing at data: freed with the weights */
        w[2] = data;
}

static void drop_weights(struct pair *p, struct weight **w)
{
    for (int s = 0; s < 2; s++)
        side(p, s)->ops->weight_free(side(p, s), w[s]);
    free(w[2]);
}

static void test_linear(struct pair *p, enum dtype type, int rows, int cols, int T, bool add)
{
    struct weight *w[3];
    weight_pair(p, type, rows, cols, w);
    struct both x = numbers(p, (size_t)T * cols, 1);
    struct both y = add ? numbers(p, (size_t)T * rows, 1) : unwritten(p, (size_t)T * rows);
    for (int s = 0; s < 2; s++)
        side(p, s)->ops->linear(side(p, s), 1, (const struct weight *const[]){w[s]},
                                (float *const[]){y.at[s]}, x.at[s], T, add);
    char what[96];
    snprintf(what, sizeof what, "linear %s [%d][%d] T %d", dtype_traits(type)->name, rows, cols, T);
    compare(p, &y, FP32_NMSE, what);
    drop(p, &x);
    drop_weights(p, w);
}

static void test_weights(struct pair *p)
{
    static const int tokens[] = {1, 3, 8, 9, 70};
    for (int type = 0; type < DTYPE_COUNT; type++) {
        if (!dtype_can_write((enum dtype)type))
            continue;
        int block = dtype_traits((enum dtype)type)->block;
        int cols = block == 256 ? 512 : 288;
        for (int i = 0; i < 5; i++)
            test_linear(p, (enum dtype)type, 13 + i, cols, tokens[i], i % 2);
        for (int i = 0; i < 2 && block == 1; i++) {
            test_linear(p, (enum dtype)type, 7, i ? 401 : 1, 1, i);
            test_linear(p, (enum dtype)type, 66, i ? 77 : 15, 11, i);
        }
        struct weight *w[3];
        int32_t ids[] = {36, 0, 5, 5, 17};
        weight_pair(p, (enum dtype)type, 37, cols, w);
        struct both y = unwritten(p, 5 * (size_t)cols);
        for (int s = 0; s < 2; s++)
            side(p, s)->ops->embed(side(p, s), y.at[s], w[s], ids, 5);
        compare(p, &y, 0, "embed");
        drop_weights(p, w);
    }
}

static void test_gqa(struct pair *p, struct attn_gqa_args a)
{
    size_t keys = (size_t)a.past + a.T, n = keys * a.G * a.d, nq = (size_t)a.T * a.H * a.d;
    struct both q = numbers(p, nq, 1), k = numbers_as(p, a.kv, n, 1);
    struct both v = numbers_as(p, a.kv, n, 1), y = unwritten(p, nq);
    a.scale = 1.5f / sqrtf((float)a.d);
    for (int s = 0; s < 2; s++) {
        a.out = y.at[s], a.q = q.at[s], a.k = k.at[s], a.v = v.at[s];
        side(p, s)->ops->attn_gqa(side(p, s), &a);
    }
    char what[96];
    snprintf(what, sizeof what, "attn_gqa T %d past %d H %d G %d d %d window %d", a.T, a.past, a.H,
             a.G, a.d, a.window);
    compare(p, &y, FP32_NMSE, what);
    drop(p, &q), drop(p, &k), drop(p, &v);
}

static void test_mla(struct pair *p, struct attn_mla_args a)
{
    size_t keys = (size_t)a.past + a.T, n = keys * (a.r + a.R), nq = (size_t)a.T * a.H;
    struct both ql = numbers(p, nq * a.r, 1), qr = numbers(p, nq * a.R, 1);
    struct both c = numbers_as(p, a.kv, n, 1), y = unwritten(p, nq * a.r);
    a.scale = 1.5f / sqrtf((float)(a.r + a.R));
    for (int s = 0; s < 2; s++) {
        a.out = y.at[s], a.q_lat = ql.at[s], a.q_rope = qr.at[s], a.cache = c.at[s];
        side(p, s)->ops->attn_mla(side(p, s), &a);
    }
    char what[96];
    snprintf(what, sizeof what, "attn_mla T %d past %d H %d r %d R %d window %d", a.T, a.past, a.H,
             a.r, a.R, a.window);
    compare(p, &y, FP32_NMSE, what);
    drop(p, &ql), drop(p, &qr), drop(p, &c);
}

/* Heads, ranks and rope widths that conversions have and that fit no tile, at contexts around the
 * edges of tiles and splits; caches of both kinds, since they have a kernel each. */
static void test_attention(struct pair *p)
{
    static const int context[] = {1, 63, 64, 65, 300};
    static const int gqa[][3] = {{9, 3, 64}, {1, 1, 16}, {28, 4, 128}, {64, 8, 80}, {3, 1, 18}};
    static const int mla[][3] = {{9, 64, 32},   {1, 128, 0},  {3, 512, 64},  {28, 256, 16},
                                 {9, 448, 128}, {64, 64, 16}, {28, 128, 128}};
    for (int c = 0; c < 5; c++)
        for (int i = 0; i < 14; i++) {
            int T = i < 2 ? 1 + 6 * (c == i) : 1, past = context[c] > T ? context[c] - T : 0;
            enum dtype kv = i % 2 ? DTYPE_F16 : DTYPE_F32;
            int window = (c + i) % 3 ? 0 : 40;
            float cap = (c + i) % 4 ? 0 : 5;
            if (i < 10)
                test_gqa(p, (struct attn_gqa_args){.T = T,
                                                   .past = past,
                                                   .H = gqa[i / 2][0],
                                                   .G = gqa[i / 2][1],
                                                   .d = gqa[i / 2][2],
                                                   .kv = kv,
                                                   .window = window,
                                                   .softcap = cap});
            test_mla(p, (struct attn_mla_args){.T = T,
                                               .past = past,
                                               .H = mla[i / 2][0],
                                               .r = mla[i / 2][1],
                                               .R = mla[i / 2][2],
                                               .kv = kv,
                                               .window = window,
                                               .softcap = cap});
        }
    test_gqa(p, (struct attn_gqa_args){.T = 33, .H = 4, .G = 2, .d = 16, .kv = DTYPE_F16});
    test_gqa(p,
             (struct attn_gqa_args){.T = 40, .past = 30, .H = 4, .G = 1, .d = 64, .kv = DTYPE_F16});
    test_mla(p, (struct attn_mla_args){.T = 33, .past = 4, .H = 3, .r = 50, .R = 2, .window = 9});
    test_mla(p,
             (struct attn_mla_args){.T = 5, .past = 4, .H = 3, .r = 50, .R = 2, .kv = DTYPE_F16});
    test_mla(p, (struct attn_mla_args){.T = 1, .past = 9, .H = 64, .r = 512, .R = 64});
    test_mla(p,
             (struct attn_mla_args){.T = 2, .past = 70, .H = 2, .r = 600, .R = 8, .kv = DTYPE_F16});
}

/* Queries of any size: they are scaled before they become halves. */
static void test_large_queries(struct pair *p)
{
    enum { H = 3, R = 16, L = 64, KEYS = 70 };
    struct both ql = numbers(p, H * L, 3e5), qr = numbers(p, H * R, 1e-3);
    struct both c = numbers_as(p, DTYPE_F16, KEYS * (L + R), 1), y = unwritten(p, H * L);
    for (int s = 0; s < 2; s++)
        side(p, s)->ops->attn_mla(side(p, s), &(struct attn_mla_args){.out = y.at[s],
                                                                      .q_lat = ql.at[s],
                                                                      .q_rope = qr.at[s],
                                                                      .cache = c.at[s],
                                                                      .kv = DTYPE_F16,
                                                                      .T = 1,
                                                                      .past = KEYS - 1,
                                                                      .H = H,
                                                                      .r = L,
                                                                      .R = R,
                                                                      .scale = 1e-6f});
    compare(p, &y, FP32_NMSE, "large queries");
    drop(p, &ql), drop(p, &qr), drop(p, &c);
}

/* Queries, keys and values as a layer places them: H heads of d, of which R rotate. */
static void test_place(struct pair *p, enum dtype kv, int T, int H, int d, int at, int R, int past)
{
    int n = H * d, pad = R % 2 ? 1 : 0, pairs = R / 2;
    struct both q = numbers(p, (size_t)T * n, 1), k = numbers(p, (size_t)T * n, 1);
    struct both cache = numbers_as(p, kv, (size_t)(T + past) * n, 1),
                half = numbers(p, (size_t)T * n, 1);
    struct both table = numbers(p, 2 * (size_t)T * pairs + 1, 1);
    for (int s = 0; s < 2; s++) {
        struct place_args a = {.parts = 3, .T = T, .past = past, .pairs = pairs};
        a.cos = table.host, a.sin = table.host + (size_t)T * pairs;
        a.part[0] =
            (struct place_part){k.at[s], cache.at[s], kv, n, d, n, d, H, d, at, 2 * pairs, 1};
        a.part[1] =
            (struct place_part){q.at[s], q.at[s], DTYPE_F32, n, d, n, d, H, d, at, 2 * pairs, 0};
        a.part[2] = (struct place_part){k.at[s], half.at[s], DTYPE_F32, n, d, n,
                                        d - pad, H,          d / 2,     0, 0, 0};
        side(p, s)->ops->place(side(p, s), &a);
    }
    compare(p, &q, FP32_NMSE, "place: queries");
    compare(p, &half, 0, "place: moved");
    drop(p, &k), drop(p, &table);
    if (kv == DTYPE_F32) {
        compare(p, &cache, FP32_NMSE, "place: keys");
        return;
    }
    /* a rounding that ties may go the other way: one unit of 2⁻¹¹ in a few of them */
    uint16_t *got[2];
    double off = 0, all = 0;
    for (int s = 0; s < 2; s++) {
        got[s] = malloc(cache.bytes);
        side(p, s)->ops->get(side(p, s), got[s], cache.at[s], cache.bytes);
    }
    for (size_t i = 0; i < cache.bytes / 2; i++) {
        double x = f16_to_f32(got[0][i]), y = f16_to_f32(got[1][i]);
        off += (x - y) * (x - y), all += x * x;
    }
    CHECK(off <= LOGITS_NMSE * all, "place: keys in F16 %g", off / all);
    free(got[0]), free(got[1]);
    drop(p, &cache);
}

static void test_glu_linear(struct pair *p, enum dtype type, int rows, int cols, int T)
{
    struct weight *g[3], *u[3];
    weight_pair(p, type, rows, cols, g);
    weight_pair(p, type, rows, cols, u);
    struct both x = numbers(p, (size_t)T * cols, 1), up = unwritten(p, (size_t)T * rows);
    for (int act = GLU_SILU; act <= GLU_GELU_TANH; act++) {
        struct both y = unwritten(p, (size_t)T * rows);
        for (int s = 0; s < 2; s++)
            side(p, s)->ops->glu_linear(side(p, s), y.at[s], up.at[s], g[s], u[s],
                                        (enum glu_act)act, x.at[s], T);
        compare(p, &y, FP32_NMSE, "glu_linear");
    }
    drop(p, &x), drop(p, &up);
    drop_weights(p, g), drop_weights(p, u);
}

/* Three weights of one input, one of another type and an odd number of rows, in as few launches. */
static void test_shared_input(struct pair *p, int T)
{
    static const enum dtype types[] = {DTYPE_Q4_1, DTYPE_Q4_1, DTYPE_Q8_0};
    static const int rows[] = {37, 8, 21};
    struct weight *w[3][3];
    struct both x = numbers(p, (size_t)T * 96, 1), y[3];
    for (int i = 0; i < 3; i++) {
        weight_pair(p, types[i], rows[i], 96, w[i]);
        y[i] = unwritten(p, (size_t)T * rows[i]);
    }
    for (int s = 0; s < 2; s++)
        side(p, s)->ops->linear(
            side(p, s), 3, (const struct weight *const[]){w[0][s], w[1][s], w[2][s]},
            (float *const[]){y[0].at[s], y[1].at[s], y[2].at[s]}, x.at[s], T, false);
    for (int i = 0; i < 3; i++) {
        compare(p, &y[i], FP32_NMSE, "a shared input");
        drop_weights(p, w[i]);
    }
    drop(p, &x);
}

static void test_fused(struct pair *p)
{
    test_large_queries(p);
    test_place(p, DTYPE_F32, 1, 3, 64, 0, 64, 5);
    test_place(p, DTYPE_F16, 9, 2, 80, 64, 16, 0);
    test_place(p, DTYPE_F16, 3, 1, 18, 4, 6, 2);
    test_place(p, DTYPE_F32, 2, 5, 7, 0, 0, 1);
    test_glu_linear(p, DTYPE_F32, 13, 77, 1);
    test_glu_linear(p, DTYPE_BF16, 40, 96, 3);
    test_glu_linear(p, DTYPE_Q4_0, 9, 64, 1);
    test_glu_linear(p, DTYPE_Q6_K, 6, 256, 8);
    test_glu_linear(p, DTYPE_Q8_0, 33, 64, 11);
    test_shared_input(p, 1);
    test_shared_input(p, 5);
    test_shared_input(p, 9);
}

static void test_kv_b(struct pair *p, enum dtype type, int H, int P, int Vd, int r, int T)
{
    int stride = P + 6, ld = H * stride + 3;
    struct weight *w[3];
    weight_pair(p, type, H * (P + Vd), r, w);
    struct both q = numbers(p, (size_t)T * ld, 1), lat = numbers(p, (size_t)T * H * r, 1);
    struct both y = unwritten(p, (size_t)T * H * r), z = unwritten(p, (size_t)T * H * Vd);
    for (int s = 0; s < 2; s++) {
        struct backend *b = side(p, s);
        b->ops->mla_absorb(b, y.at[s], q.at[s], ld, stride, w[s], H, P, Vd, r, T);
        b->ops->mla_expand(b, z.at[s], lat.at[s], w[s], H, P, Vd, r, T);
    }
    compare(p, &y, FP32_NMSE, "mla_absorb");
    compare(p, &z, FP32_NMSE, "mla_expand");
    drop(p, &q), drop(p, &lat);
    drop_weights(p, w);
}

static void test_small(struct pair *p, int T, int n)
{
    enum { NORM, HEADS, SILU, GELU, ADD, ROPE, BIAS, SCALE, CAP, TAKE, ADD_ROWS, STORE, OPS };
    static const char *const names[OPS] = {"rms_norm", "head_norm", "silu",     "gelu",
                                           "add",      "rope",      "add_bias", "scale",
                                           "softcap",  "take_rows", "add_rows", "store"};
    size_t all = (size_t)T * n;
    struct both x = numbers(p, all, 4), u = numbers(p, all, 1), v = numbers(p, (size_t)n, 1);
    struct both table = numbers(p, 2 * all, 1);
    int32_t *rows = malloc((size_t)T * sizeof *rows);
    for (int t = 0; t < T; t++)
        rows[t] = (t + 1) % T;
    for (int op = 0; op < OPS; op++) {
        struct both y = numbers(p, all, 4);
        int half = n / 2;
        for (int s = 0; s < 2; s++) {
            struct backend *b = side(p, s);
            const struct backend_ops *o = b->ops;
            float *to = y.at[s];
            switch (op) {
            case NORM: o->rms_norm(b, to, x.at[s], v.at[s], 1e-5f, T, n); break;
            case HEADS: o->head_norm(b, to, n, 2, half, v.at[s], 1e-5f, T, half); break;
            case SILU: o->glu(b, to, x.at[s], u.at[s], GLU_SILU, all); break;
            case GELU: o->glu(b, to, x.at[s], u.at[s], GLU_GELU_TANH, all); break;
            case ADD: o->add(b, to, u.at[s], all); break;
            case ROPE: o->rope(b, to, n, 1, n, 2 * half, table.host, table.host + all, T); break;
            case BIAS: o->add_bias(b, to, v.at[s], T, n); break;
            case SCALE: o->scale(b, to, 1.7f, all); break;
            case CAP: o->softcap(b, to, 3, all); break;
            case TAKE: o->take_rows(b, to, x.at[s], rows, T, n); break;
            case ADD_ROWS: o->add_rows(b, to, rows, x.at[s], table.host, T, n); break;
            default: o->store(b, to, DTYPE_F16, n + n % 2, x.at[s], n, n, T / 2 + 1); break;
            }
        }
        char what[64];
        snprintf(what, sizeof what, "%s T %d n %d", names[op], T, n);
        compare(p, &y, op == STORE || op == TAKE ? 0 : FP32_NMSE, what);
    }
    drop(p, &x), drop(p, &u), drop(p, &v), drop(p, &table);
    free(rows);
}

/* The same call of both sides' algebra. */
#define EACH_SIDE(call)                                                                            \
    for (int s = 0; s < 2; s++) {                                                                  \
        struct backend *b = side(p, s);                                                            \
        const struct algebra_ops *o = s ? p->b->algebra : &ref_algebra_ops;                        \
        call;                                                                                      \
    }

static void test_products(struct pair *p, int m, int n, int k, int count)
{
    for (int form = 0; form < 4; form++) {
        struct algebra_gemm g = {.ta = form & 1, .tb = form & 2, .m = m, .n = n, .k = k};
        g.count = count, g.alpha = 0.7f, g.beta = form % 3 ? 1 : 0;
        g.lda = (g.ta ? m : k) + 3, g.ldb = (g.tb ? k : n) + 1, g.ldc = n + 2;
        g.step_a = (size_t)(m > k ? m : k) * (size_t)g.lda + 5, g.step_c = (size_t)(m * g.ldc);
        g.step_b = form == 3 ? 0 : (size_t)(n > k ? n : k) * (size_t)g.ldb;
        struct both x = numbers(p, g.step_a * (size_t)count, 1),
                    z = numbers(p, g.step_c * count, 1);
        struct both y = numbers(p, (size_t)(n > k ? n : k) * (size_t)g.ldb * count, 1);
        EACH_SIDE((g.a = x.at[s], g.b = y.at[s], g.c = z.at[s], o->gemm(b, &g)));
        compare(p, &z, FP32_NMSE, "gemm");
        drop(p, &x), drop(p, &y);
    }
    struct both x = numbers(p, (size_t)k * (n + 2), 1), z = numbers(p, (size_t)n * n, 1);
    struct both total = unwritten(p, (size_t)n * (n + 1));
    for (int s = 0; s < 2; s++) { /* doubles: cleared bytes are zeros */
        double *zeros = calloc(total.bytes, 1);
        side(p, s)->ops->put(side(p, s), total.at[s], zeros, total.bytes);
        free(zeros);
    }
    EACH_SIDE((o->syrk_add(b, n, k, x.at[s], n + 2, z.at[s]), o->fold(b, total.at[s], z.at[s], n)));
    double *got[2];
    for (int s = 0; s < 2; s++) {
        got[s] = malloc(total.bytes);
        side(p, s)->ops->get(side(p, s), got[s], total.at[s], total.bytes);
    }
    double off = 0, all = 0;
    for (int i = 0; i < n * (n + 1) / 2; i++) {
        off += (got[1][i] - got[0][i]) * (got[1][i] - got[0][i]);
        all += got[0][i] * got[0][i];
    }
    CHECK(off <= FP32_NMSE * all, "syrk_add and fold %d %d: %g", n, k, off / all);
    free(got[0]), free(got[1]);
    compare(p, &z, 1, "fold leaves zeros"); /* anything else is infinitely far */
    drop(p, &x), drop(p, &total);
}

static void test_weights_of_keys(struct pair *p, int count, int T, int window, float cap)
{
    size_t rows = (size_t)count * T;
    struct both P = numbers(p, rows * T, 2), U = numbers(p, rows * T, 1);
    struct both v = numbers(p, rows, 1), w = numbers(p, rows, 1), key = numbers(p, rows, 0);
    struct both share = numbers(p, 2 * rows, 0), y = numbers(p, rows * 37, 1);
    struct both out = unwritten(p, rows * 37), dots = unwritten(p, rows);
    EACH_SIDE(o->softmax(b, P.at[s], count, T, window, cap));
    EACH_SIDE(o->keys(b, &(struct algebra_keys){P.at[s], U.at[s], v.at[s], w.at[s], key.at[s],
                                                share.at[s], count, T}));
    EACH_SIDE(o->weigh_rows(b, out.at[s], y.at[s], key.at[s], 37, (int)rows));
    EACH_SIDE(o->row_dots(b, dots.at[s], y.at[s], 37, out.at[s], 37, 33, (int)rows));
    compare(p, &P, FP32_NMSE, "softmax");
    compare(p, &key, FP32_NMSE, "keys");
    compare(p, &out, FP32_NMSE, "weigh_rows");
    compare(p, &dots, FP32_NMSE, "row_dots");
    double *got[2], off = 0, all = 0;
    for (int s = 0; s < 2; s++) {
        got[s] = malloc(share.bytes);
        side(p, s)->ops->get(side(p, s), got[s], share.at[s], share.bytes);
    }
    for (size_t i = 0; i < rows; i++) {
        off += (got[1][i] - got[0][i]) * (got[1][i] - got[0][i]);
        all += got[0][i] * got[0][i];
    }
    CHECK(off <= FP32_NMSE * all, "shares: %g", off / all);
    free(got[0]), free(got[1]);
    drop(p, &U), drop(p, &v), drop(p, &w), drop(p, &share), drop(p, &y);
}

/* A = QΛQᵀ from the device: A u = λ u, to fp64's roundings. */
static void test_eigenproblem(struct pair *p, int n)
{
    struct err e = {0};
    size_t N = (size_t)n;
    double *a = calloc(2 * N * N + N, sizeof *a), *u = a + N * N, *w = u + N * N, worst = 0;
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j <= i; j++)
            a[i * N + j] = a[j * N + i] = test_normal(&p->seed);
    memcpy(u, a, N * N * sizeof *u);
    CHECK_OK(p->b->algebra->eigh(p->b, n, u, w, &e), e);
    for (size_t i = 0; i < N; i++)
        for (size_t r = 0; r < N; r++) {
            double sum = -w[i] * u[i * N + r];
            for (size_t j = 0; j < N; j++)
                sum += a[r * N + j] * u[i * N + j];
            worst = fmax(worst, fabs(sum));
        }
    /* backward stable: n·2⁻⁵³ of the norm, 2√n for such a matrix */
    CHECK(worst <= 2 * sqrt(n) * n * 0x1p-53 * 8, "eigenvectors of %d: residual %g", n, worst);
    CHECK(w[0] < w[n - 1], "ascending");
    free(a);
}

/* A X = B: the residual of a backward stable solver, n·2⁻⁵³ of what is added up. */
static void test_least_squares(struct pair *p, int n, int m)
{
    struct err e = {0};
    size_t N = (size_t)n, M = (size_t)m;
    double *a = calloc(2 * N * N + 2 * N * M, sizeof *a), *kept = a + N * N;
    double *b = kept + N * N, *x = b + N * M, worst = 0;
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j <= i; j++)
            a[i * N + j] = a[j * N + i] = test_normal(&p->seed) + (i == j ? 4 * sqrt(n) : 0);
    memcpy(kept, a, N * N * sizeof *a);
    for (size_t i = 0; i < N * M; i++)
        b[i] = x[i] = test_normal(&p->seed);
    CHECK_OK(p->b->algebra->solve_spd(p->b, n, m, a, x, &e), e);
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < M; k++) {
            double sum = -b[i * M + k];
            for (size_t j = 0; j < N; j++)
                sum += kept[i * N + j] * x[j * M + k];
            worst = fmax(worst, fabs(sum));
        }
    CHECK(worst <= n * 0x1p-53 * 8 * 8, "least squares of %d: residual %g", n, worst);
    memset(a, 0, N * N * sizeof *a);
    CHECK(p->b->algebra->solve_spd(p->b, n, m, a, x, &e) == ERR_NUMERIC, "a matrix of zeros");
    free(a);
}

/* Logits as a model has them; the reference sums in double. Absolute: a divergence of 1e-3 has lost
 * three digits of the sums of about 1 that it is a difference of, and fp32 has seven. */
static void test_divergence(struct pair *p, int n, int rows, double apart)
{
    struct both x = numbers(p, (size_t)n * rows, 4), y = numbers(p, (size_t)n * rows, 4);
    struct both out = unwritten(p, (size_t)rows);
    for (int i = 0; i < n * rows; i++)
        y.host[i] = x.host[i] + (float)apart * y.host[i] + 30;
    float got[2][16];
    for (int s = 0; s < 2; s++) {
        struct backend *b = side(p, s);
        b->ops->put(b, y.at[s], y.host, y.bytes);
        (s ? b->algebra : &ref_algebra_ops)->divergence(b, out.at[s], x.at[s], y.at[s], n, rows);
        b->ops->get(b, got[s], out.at[s], out.bytes);
    }
    for (int i = 0; i < rows; i++)
        CHECK(fabsf(got[0][i] - got[1][i]) <= 2e-6f + 1e-5f * got[0][i], "divergence of %d: %g %g",
              n, (double)got[0][i], (double)got[1][i]);
    CHECK(got[0][0] > 0 || n == 1, "apart");
    drop(p, &x), drop(p, &y), drop(p, &out);
}

static void test_algebra(struct pair *p)
{
    if (!p->b->algebra) {
        printf("skipped: no cuBLAS: the host does the conversion's algebra\n");
        return;
    }
    test_products(p, 17, 33, 70, 3);
    test_products(p, 1, 5, 1, 2);
    test_products(p, 130, 64, 31, 1);
    test_weights_of_keys(p, 3, 33, 0, 0);
    test_weights_of_keys(p, 2, 70, 9, 3);
    test_weights_of_keys(p, 4, 1, 0, 0);
    test_eigenproblem(p, 70);
    test_eigenproblem(p, 2);
    test_least_squares(p, 90, 33);
    test_least_squares(p, 1, 3);
    test_divergence(p, 1000, 5, 0.3);
    test_divergence(p, 301, 3, 0.01);
    test_divergence(p, 1, 2, 1);
}

static const char *device(void)
{
    const char *name = getenv("MLATHE_TEST_DEVICE");
    return name ? name : "cuda";
}

static void test_parity(void)
{
    struct err e = {0};
    struct pair p = {.seed = 7};
    struct backend_options opt = {.threads = 1, .exact = true};
    CHECK_OK(backend_open(&p.ref, "ref", &opt, &e), e);
    CHECK_OK(backend_open(&p.b, device(), &opt, &e), e);
    if (p.ref && p.b) {
        char text[128];
        p.b->ops->describe(p.b, text, sizeof text);
        printf("%s\n", text);
        test_weights(&p);
        test_attention(&p);
        test_fused(&p);
        test_kv_b(&p, DTYPE_F32, 9, 64, 64, 128, 1);
        test_kv_b(&p, DTYPE_BF16, 3, 34, 80, 50, 7);
        test_kv_b(&p, DTYPE_F16, 2, 16, 20, 512, 9);
        test_kv_b(&p, DTYPE_Q8_0, 2, 18, 30, 96, 2);
        test_kv_b(&p, DTYPE_Q4_K, 2, 18, 30, 256, 1);
        test_small(&p, 1, 576);
        test_small(&p, 5, 50);
        test_small(&p, 40, 130);
        test_algebra(&p);
    }
    backend_close(p.b);
    backend_close(p.ref);
}

enum { TOKENS = 24, ANSWER = 3 };

/* What a device makes of a model: logits of a prefill and a step of both sides, [4][V], and the
 * first tokens of both sides' answers in a chat. */
struct outcome {
    float *logits;
    int32_t said[2][ANSWER];
};

static void write_text(const char *path)
{
    FILE *f = fopen(path, "w");
    uint64_t seed = 3;
    for (int i = 0; f && i < 4000; i++)
        fputc(i % 60 == 59 ? '\n' : 'a' + (int)(26 * test_uniform(&seed) * test_uniform(&seed)), f);
    CHECK(f && !fclose(f), "%s", path);
}

static int convert(struct workspace *w, struct err *e)
{
    char text[512];
    snprintf(text, sizeof text, "%s/calib.txt", test_tmpdir());
    write_text(text);
    const char *file = text;
    struct calib_options c = {.files = &file, .n_files = 1, .tokens = 512};
    struct model_info info;
    struct rankplan plan;
    workspace_info(w, &info);
    int rc = workspace_calibrate(w, &c, NULL, NULL, NULL, e);
    if (rc)
        return rc;
    rc = rankplan_init(&plan, &info.plan_model, e);
    if (!rc)
        rc = rankplan_uniform(&plan, 32, 8, e);
    if (!rc)
        rc = workspace_convert(w, &plan, NULL, NULL, NULL, e);
    rankplan_done(&plan);
    return rc;
}

static void read_logits(const struct workspace *w, enum side side, float *at, size_t V)
{
    struct err e = {0};
    struct infer *t = NULL;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = 64 + (i * 5 + 3) % 8; /* common letters: directions no text had stay noise */
    CHECK_OK(infer_new(&t, workspace_engine(w, side), TOKENS, DTYPE_F16, &e), e);
    if (!t)
        return;
    CHECK_OK(infer_prefill(t, ids, TOKENS - 1, INFER_LAST, at, NULL, &e), e);
    CHECK_OK(infer_step(t, ids[TOKENS - 1], at + V, &e), e);
    infer_free(t);
}

static void say(struct workspace *w, struct outcome *out)
{
    struct err e = {0};
    struct chat *c = NULL;
    struct chat_settings s = {.max_tokens = ANSWER, .context = 64, .kv = DTYPE_F16}; /* greedy */
    struct chat_sink silent = {0};
    CHECK_OK(chat_new(&c, w, 2, SIDE_ORIGINAL, &s, &e), e);
    CHECK_OK(c ? chat_turn(c, "hi", &silent, &e) : e.status, e);
    for (int side = 0; c && side < 2; side++) {
        int n = 0;
        const int32_t *ids = chat_answer_ids(c, 0, side, &n);
        for (int i = 0; i < ANSWER; i++)
            out->said[side][i] = i < n ? ids[i] : -1;
    }
    chat_free(c);
}

/* Converts the model of `path` on a device and talks to it. */
static void whole(const char *path, const char *device, struct outcome *out, size_t V)
{
    struct err e = {0};
    struct workspace *w = NULL;
    struct workspace_options o = {.device = device, .threads = 1, .exact = true};
    out->logits = calloc(4 * V, sizeof *out->logits);
    CHECK_OK(workspace_new(&w, &o, &e), e);
    if (!w)
        return;
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    CHECK_OK(convert(w, &e), e);
    if (!e.status) {
        read_logits(w, SIDE_ORIGINAL, out->logits, V);
        read_logits(w, SIDE_CONVERTED, out->logits + 2 * V, V);
        say(w, out);
    }
    workspace_free(w);
}

static void test_whole(void)
{
    struct test_model_spec spec = test_model_small();
    char path[512];
    spec.dtype = DTYPE_Q8_0;
    spec.context = 64; /* windows of this length: emulation takes its time */
    snprintf(path, sizeof path, "%s/model.gguf", test_tmpdir());
    if (test_model_write_gguf(path, &spec))
        return;
    size_t V = (size_t)spec.V;
    struct outcome ref = {0}, cpu = {0}, cuda = {0};
    whole(path, "ref", &ref, V);
    whole(path, "cpu", &cpu, V);
    whole(path, device(), &cuda, V);
    static const char *const names[] = {"prefill", "step", "converted: prefill", "converted: step"};
    for (size_t i = 0; i < 4 && ref.logits && cpu.logits && cuda.logits; i++) {
        const float *want = ref.logits + i * V;
        double nmse = test_nmse(cuda.logits + i * V, want, V), limit = LOGITS_NMSE;
        if (i > 1)
            limit += CONVERTED_TIMES * test_nmse(cpu.logits + i * V, want, V);
        printf("%s: NMSE against the reference %.1e, limit %.1e\n", names[i], nmse, limit);
        CHECK(nmse <= limit, "%s: %g", names[i], nmse);
    }
    for (int s = 0; s < 2; s++) {
        CHECK(cpu.said[s][0] >= 0, "side %d says nothing", s);
        CHECK(!memcmp(cpu.said[s], cuda.said[s], sizeof cpu.said[s]), "side %d: other words", s);
    }
    free(ref.logits);
    free(cpu.logits);
    free(cuda.logits);
}

/* "parity" leaves the whole conversion out: under compute-sanitizer it takes its time. */
int main(int argc, char **argv)
{
    struct err e = {0};
    struct backend *b = NULL;
    const char *name = device();
    if (backend_open(&b, name, &(struct backend_options){.threads = 1}, &e)) {
        CHECK(e.status == ERR_DEVICE && strstr(e.text, "--device cpu"), "%s", e.text);
        if (test_failures)
            return test_end("cuda");
        test_skip(e.text);
    }
    backend_close(b);
    test_parity();
    if (argc < 2 || strcmp(argv[1], "parity"))
        test_whole();
    return test_end("cuda");
}

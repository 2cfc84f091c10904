/* Every operation of every backend and instruction set against the reference, by normalised error
 * at odd sizes. Outputs start as NaN, so that a number nobody wrote fails too. */
#include "core/file.h"
#include "core/json.h"
#include "kernels/backend.h"
#include "tests/support.h"

/* fp32 against double accumulation: sums of up to some thousand terms of mixed sign, errors grow
 * like √n·2⁻²⁴; squared and relative to the result's energy that is below 1e-11. */
#define FP32_NMSE 1e-10
/* int8 activations: a block's step is amax/127 ≈ 3σ/127, its rounding error σ²·(3/127)²/12, so
 * ≈ 5e-5 of the energy; blocks with outliers do worse. */
#define INT8_NMSE 2e-4
/* Types that are recoded as Q8_0 round twice, and the blocks of a real quantiser have outliers:
 * amax near 5σ makes (5/127)²/12 = 1.3e-4 beside the activations' 5e-5. Their 512 numbers at hand
 * give few independent outputs, so the error is held against the energy that outputs have on
 * average, Σw² a token, and may be some times its mean. */
#define RECODED_NMSE 6e-4
/* F16 rounding of stored numbers is the same on both sides (nearest even). */

struct pair {
    struct backend *ref, *b;
    bool exact;
    char name[64];
    uint64_t seed;
};

static float *numbers(struct pair *p, size_t n, double spread)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(spread * test_normal(&p->seed));
    return x;
}

static float *nans(size_t n)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = NAN;
    return x;
}

/* n numbers of a type that nobody here can write: the 512 that a real quantiser made, repeated. */
static void stored_blocks(enum dtype type, uint8_t *to, size_t n)
{
    struct err e = {0};
    cJSON *index = NULL;
    struct file_map bin = {0};
    long long at = -1;
    CHECK_OK(json_read_file(&index, test_path("arch/quant/index.json"), 1 << 20, &e), e);
    CHECK_OK(file_map_open(&bin, test_path("arch/quant/quant.bin"), &e), e);
    const cJSON *item;
    cJSON_ArrayForEach(item, json_get(index, "types"))
    {
        if (dtype_from_name(json_str_or(item, "type", "")) == type)
            json_int(item, "raw_offset", 0, 1 << 24, &at, "index", &e);
    }
    CHECK(at >= 0, "no blocks of %s", dtype_traits(type)->name);
    size_t block = (size_t)dtype_traits(type)->block,
           bytes = (size_t)dtype_traits(type)->block_bytes;
    for (size_t i = 0; at >= 0 && i < n / block; i++)
        memcpy(to + i * bytes, bin.data + at + i % (512 / block) * bytes, bytes);
    cJSON_Delete(index);
    file_map_close(&bin);
}

/* The same floats as `type`, or stored blocks of the types with large ones, in fresh memory. */
static void *as_type(enum dtype type, const float *x, size_t n)
{
    void *p = malloc(dtype_bytes(type, n) + 1);
    if (type <= DTYPE_Q4_1 || type == DTYPE_Q6_0)
        dtype_from_f32(type, x, p, n);
    else
        stored_blocks(type, p, n);
    return p;
}

static void compare(const struct pair *p, const char *what, const float *got, const float *want,
                    size_t n, double limit)
{
    double nmse = test_nmse(got, want, n);
    CHECK(nmse <= limit, "%s: %s: nmse %.3g above %.3g", p->name, what, nmse, limit);
}

static struct weight *load(struct backend *b, const void *data, enum dtype type, int rows, int cols)
{
    struct err e = {0};
    struct weight *w = NULL;
    size_t owned;
    struct matrix m = {data, type, rows, cols};
    CHECK_OK(b->ops->weight_load(b, &m, &w, &owned, &e), e);
    return w;
}

static double energy(const float *x, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * x[i];
    return s;
}

/* Against sums of doubles: fp32 sums of n products of numbers around 1. */
static void test_outer(struct pair *p, int W, int D, int n)
{
    float *a = numbers(p, (size_t)n * W, 1), *y = numbers(p, (size_t)n * D, 1);
    float *S = nans((size_t)W * W), *X = nans((size_t)W * D);
    if (p->b->ops->outer && p->b->ops->outer(p->b, S, X, a, W, y, D, n)) {
        double worst = 0;
        for (int i = 0; i < W; i++)
            for (int j = 0; j < W + D; j++) {
                double sum = 0;
                for (int t = 0; t < n; t++)
                    sum += (double)a[t * W + i] * (j < W ? a[t * W + j] : y[t * D + j - W]);
                if (j >= i)
                    worst = fmax(worst, fabs(sum - (j < W ? S[i * W + j] : X[i * D + j - W])));
            }
        CHECK(worst < 1e-6 * n, "%s: outer: %.3g off", p->name, worst);
    }
    free(a);
    free(y);
    free(S);
    free(X);
}

static void test_linear(struct pair *p, enum dtype type, int rows, int cols, int T, bool add)
{
    float *w = numbers(p, (size_t)rows * cols, 0.05), *x = numbers(p, (size_t)T * cols, 1);
    int rows2 = 5;
    void *data = as_type(type, w, (size_t)rows * cols);
    void *data2 = as_type(DTYPE_F32, w, (size_t)rows2 * cols);
    size_t n[2] = {(size_t)T * rows, (size_t)T * rows2};
    float *y[2][2];
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        p->seed = 1 + (uint64_t)T; /* the same start for both sides */
        for (int i = 0; i < 2; i++) {
            y[side][i] = add ? numbers(p, n[i], 0.1) : nans(n[i]);
        }
        struct weight *weights[2] = {load(b, data, type, rows, cols),
                                     load(b, data2, DTYPE_F32, rows2, cols)};
        b->ops->linear(b, 2, (const struct weight *const *)weights, y[side], x, T, add);
        for (int i = 0; i < 2; i++)
            b->ops->weight_free(b, weights[i]);
    }
    char what[128];
    bool quantised = dtype_traits(type)->block > 1 && !p->exact;
    double limit = INT8_NMSE;
    if (type > DTYPE_Q4_1) {
        dtype_to_f32(type, data, w, (size_t)rows * cols);
        bool own = type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q6_K ||
                   type == DTYPE_Q5_0 || type == DTYPE_Q6_0 || type == DTYPE_IQ4_NL;
        limit = own ? INT8_NMSE : RECODED_NMSE; /* packed without rounding */
        limit *= energy(w, (size_t)rows * cols) * T / energy(y[0][0], n[0]);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(what, sizeof what, "linear %s [%d][%d] T %d%s, output %d",
                 dtype_traits(i ? DTYPE_F32 : type)->name, rows, cols, T, add ? " add" : "", i);
        compare(p, what, y[1][i], y[0][i], n[i], quantised && !i ? limit : FP32_NMSE);
        free(y[0][i]);
        free(y[1][i]);
    }
    free(w);
    free(x);
    free(data);
    free(data2);
}

static void test_linears(struct pair *p)
{
    test_outer(p, 150, 40, 300); /* some bands, tokens beyond a tile */
    test_outer(p, 5, 1, 3);
    static const int tokens[] = {1, 2, 5, 7, 33, 130};
    static const int shapes[][2] = {{8, 32}, {17, 64}, {100, 576}, {192, 96}};
    for (int type = 0; type < DTYPE_COUNT; type++) {
        if (type > DTYPE_Q4_1) {
            for (size_t t = 0; t < 3; t++)
                test_linear(p, (enum dtype)type, t ? 21 : 7, t ? 768 : 256, tokens[2 * t], t == 1);
            continue;
        }
        for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++)
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                test_linear(p, (enum dtype)type, shapes[s][0], shapes[s][1], tokens[t],
                            (t + s) % 2);
    }
    static const int odd[] = {1, 2, 15, 77, 401}; /* plain types have no block to respect */
    for (int type = 0; type <= DTYPE_BF16; type++)
        for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
            test_linear(p, (enum dtype)type, 13, odd[i], 1, false);
            test_linear(p, (enum dtype)type, 21, odd[i], 9, true);
        }
}

/* Packed weights give each row of activations the same numbers, bit by bit, alone and among others:
 * passes over guessed tokens rely on it. */
static void test_alone(struct pair *p)
{
    enum { ROWS = 45, COLS = 256, T = 21 };
    float *w = numbers(p, ROWS * COLS, 0.05), *x = numbers(p, T * COLS, 1);
    for (int type = DTYPE_BF16 + 1; type < DTYPE_COUNT && !p->exact; type++) {
        void *data = as_type((enum dtype)type, w, ROWS * COLS);
        struct weight *weight = load(p->b, data, (enum dtype)type, ROWS, COLS);
        float *all = nans(T * ROWS), *one = nans(ROWS);
        p->b->ops->linear(p->b, 1, (const struct weight *const *)&weight, &all, x, T, false);
        for (int t = 0; t < T; t++) {
            p->b->ops->linear(p->b, 1, (const struct weight *const *)&weight, &one,
                              x + (size_t)t * COLS, 1, false);
            CHECK(!memcmp(one, all + (size_t)t * ROWS, sizeof *one * ROWS), "%s: %s, row %d alone",
                  p->name, dtype_traits((enum dtype)type)->name, t);
        }
        p->b->ops->weight_free(p->b, weight);
        free(data), free(all), free(one);
    }
    free(w), free(x);
}

/* A file may place a tensor at an odd address. */
static void test_odd_address(struct pair *p)
{
    for (int type = 0; type <= DTYPE_Q4_1; type++) {
        float *w = numbers(p, 17 * 64, 1), *x = numbers(p, 14 * 64, 1), *y[2][2];
        size_t bytes = dtype_bytes((enum dtype)type, 17 * 64);
        char *data = malloc(bytes + 1);
        void *even = as_type((enum dtype)type, w, 17 * 64);
        memcpy(data + 1, even, bytes);
        for (int side = 0; side < 2; side++) {
            struct weight *weight = load(p->b, side ? data + 1 : even, (enum dtype)type, 17, 64);
            for (int many = 0; many < 2; many++) {
                y[side][many] = nans(14 * 17);
                p->b->ops->linear(p->b, 1, (const struct weight *const *)&weight, &y[side][many], x,
                                  many ? 14 : 1, false);
            }
            p->b->ops->weight_free(p->b, weight);
        }
        compare(p, "odd address", y[1][0], y[0][0], 17, FP32_NMSE);
        compare(p, "odd address", y[1][1], y[0][1], 14 * 17, FP32_NMSE);
        free(w), free(x), free(data), free(even);
        for (int i = 0; i < 4; i++)
            free(y[i / 2][i % 2]);
    }
}

static void test_embed(struct pair *p)
{
    int rows = 37;
    int32_t ids[] = {36, 0, 5, 5, 17};
    for (int type = 0; type < DTYPE_COUNT; type++) {
        int cols = type <= DTYPE_Q4_1 ? 96 : 512;
        float *w = numbers(p, (size_t)rows * cols, 1), *y[2];
        void *data = as_type((enum dtype)type, w, (size_t)rows * cols);
        for (int side = 0; side < 2; side++) {
            struct backend *b = side ? p->b : p->ref;
            struct weight *weight = load(b, data, (enum dtype)type, rows, cols);
            y[side] = nans(5 * (size_t)cols);
            b->ops->embed(b, y[side], weight, ids, 5);
            b->ops->weight_free(b, weight);
        }
        /* Reading a weight is exact in every backend. */
        CHECK(!memcmp(y[0], y[1], 5 * (size_t)cols * sizeof(float)), "%s: embed %s", p->name,
              dtype_traits((enum dtype)type)->name);
        free(w);
        free(data);
        free(y[0]);
        free(y[1]);
    }
}

/* Rows of n numbers as a cache holds them. */
static void *as_cache(enum dtype type, const float *x, size_t rows, size_t n)
{
    size_t bytes = dtype_bytes(type, dtype_padded(type, n));
    char *out = malloc(rows * bytes);
    for (size_t i = 0; i < rows; i++)
        dtype_row_from_f32(type, x + i * n, out + i * bytes, n);
    return out;
}

static void test_gqa(struct pair *p, struct attn_gqa_args a)
{
    size_t keys = (size_t)a.past + a.T, n = keys * a.G * a.d, nq = (size_t)a.T * a.H * a.d;
    float *q = numbers(p, nq, 1), *k = numbers(p, n, 1), *v = numbers(p, n, 1), *y[2];
    void *kc = as_type(a.kv, k, n), *vc = as_type(a.kv, v, n);
    a.q = q, a.k = kc, a.v = vc, a.scale = 1.5f / sqrtf((float)a.d);
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        a.out = y[side] = nans(nq);
        b->ops->attn_gqa(b, &a);
    }
    char what[160];
    snprintf(what, sizeof what, "attn_gqa T %d past %d H %d G %d d %d window %d cap %g %s", a.T,
             a.past, a.H, a.G, a.d, a.window, a.softcap, dtype_traits(a.kv)->name);
    compare(p, what, y[1], y[0], nq, FP32_NMSE);
    free(q), free(k), free(v), free(kc), free(vc), free(y[0]), free(y[1]);
}

static void test_mla(struct pair *p, struct attn_mla_args a)
{
    size_t keys = (size_t)a.past + a.T, n = keys * (a.r + a.R), nq = (size_t)a.T * a.H;
    float *ql = numbers(p, nq * a.r, 1), *qr = numbers(p, nq * a.R, 1), *c = numbers(p, n, 1);
    float *y[2];
    void *cache = as_cache(a.kv, c, keys, (size_t)(a.r + a.R));
    a.q_lat = ql, a.q_rope = qr, a.cache = cache, a.scale = 1.5f / sqrtf((float)(a.r + a.R));
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        a.out = y[side] = nans(nq * a.r);
        b->ops->attn_mla(b, &a);
    }
    char what[160];
    snprintf(what, sizeof what, "attn_mla T %d past %d H %d r %d R %d window %d cap %g %s", a.T,
             a.past, a.H, a.r, a.R, a.window, a.softcap, dtype_traits(a.kv)->name);
    compare(p, what, y[1], y[0], nq * a.r, FP32_NMSE);
    free(ql), free(qr), free(c), free(cache), free(y[0]), free(y[1]);
}

static void test_attention(struct pair *p)
{
    static const int tokens[] = {1, 2, 7, 33}, context[] = {1, 63, 64, 65, 300};
    static const int gqa[][3] = {{9, 3, 64}, {4, 4, 16}, {8, 1, 80}, {64, 8, 128}, {3, 1, 18}};
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0};
    static const int mla[][3] = {{9, 64, 32}, {1, 16, 0}, {64, 512, 64}, {6, 50, 2}, {9, 128, 64}};
    int round = 0;
    for (int t = 0; t < 4; t++)
        for (int c = 0; c < 5; c++)
            for (int s = 0; s < 5; s++, round++) {
                int keys = context[c] > tokens[t] ? context[c] : tokens[t];
                if (keys * tokens[t] > 2000 && (gqa[s][0] == 64 || mla[s][0] == 64))
                    continue; /* the reference takes too long, not the backends */
                enum dtype kv = types[(round + round / 4) % 4];
                enum dtype whole = gqa[s][2] % dtype_traits(kv)->block ? DTYPE_F16 : kv;
                int window = round % 3 == 0 ? 40 : 0;
                float cap = round % 4 == 0 ? 5 : 0;
                test_gqa(p, (struct attn_gqa_args){.T = tokens[t],
                                                   .past = keys - tokens[t],
                                                   .H = gqa[s][0],
                                                   .G = gqa[s][1],
                                                   .d = gqa[s][2],
                                                   .kv = whole,
                                                   .window = window,
                                                   .softcap = cap});
                test_mla(p, (struct attn_mla_args){.T = tokens[t],
                                                   .past = keys - tokens[t],
                                                   .H = mla[s][0],
                                                   .r = mla[s][1],
                                                   .R = mla[s][2],
                                                   .kv = kv,
                                                   .window = window,
                                                   .softcap = cap});
            }
    for (int H = 3; H <= 13; H++) /* each number of rows that has kernels of its own, odd widths */
        for (int kv = 1; kv < 4; kv++)
            test_mla(p, (struct attn_mla_args){.T = 1,
                                               .past = 90 + H,
                                               .H = H,
                                               .r = 11 * H,
                                               .R = H % 5 * 2,
                                               .kv = types[kv],
                                               .window = H % 2 ? 40 : 0});
    test_gqa(p, (struct attn_gqa_args){
                    .T = 1, .past = 1500, .H = 2, .G = 1, .d = 16, .kv = DTYPE_F16, .window = 1});
}

static void test_kv_b(struct pair *p, enum dtype type, int H, int P, int Vd, int r, int T)
{
    int rows = H * (P + Vd), stride = P + 6, ld = H * stride + 3;
    float *w = numbers(p, (size_t)rows * r, 0.1), *q = numbers(p, (size_t)T * ld, 1);
    float *lat = numbers(p, (size_t)T * H * r, 1), *y[2], *z[2];
    void *data = as_type(type, w, (size_t)rows * r);
    size_t ny = (size_t)T * H * r, nz = (size_t)T * H * Vd;
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        struct weight *kv_b = load(b, data, type, rows, r);
        y[side] = nans(ny), z[side] = nans(nz);
        b->ops->mla_absorb(b, y[side], q, ld, stride, kv_b, H, P, Vd, r, T);
        b->ops->mla_expand(b, z[side], lat, kv_b, H, P, Vd, r, T);
        b->ops->weight_free(b, kv_b);
    }
    char what[128];
    snprintf(what, sizeof what, "kv_b %s H %d P %d Vd %d r %d T %d", dtype_traits(type)->name, H, P,
             Vd, r, T);
    compare(p, what, y[1], y[0], ny, FP32_NMSE);
    compare(p, what, z[1], z[0], nz, FP32_NMSE);
    free(w), free(q), free(lat), free(data), free(y[0]), free(y[1]), free(z[0]), free(z[1]);
}

/* Rope queries read two numbers of a head, in places that do not come in order; rows of one or
 * none. */
static void test_sparse(struct pair *p, enum dtype type, int H, int R, int d, int T)
{
    float *w = calloc((size_t)(H * R * d), sizeof *w), *q = numbers(p, (size_t)(T * H * d), 1);
    for (int i = 0; i < H * R; i++)
        for (int k = 0; k < i % 3; k++)
            w[(size_t)i * (size_t)d + (size_t)((i * 7 + k * (d / 2)) % d)] =
                0.3f * (float)(1 + i % 5 - 3 * k);
    void *data = as_type(type, w, (size_t)(H * R * d));
    float *y[2];
    size_t n = (size_t)(T * H * R);
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        struct weight *rope = load(b, data, type, H * R, d);
        y[side] = nans(n);
        b->ops->mla_expand(b, y[side], q, rope, H, 0, R, d, T);
        b->ops->weight_free(b, rope);
    }
    compare(p, "rope queries", y[1], y[0], n, FP32_NMSE);
    free(w), free(q), free(data), free(y[0]), free(y[1]);
}

/* One token from queries to values in one go, against the operations one by one. own: rope queries
 * of two numbers of a head; else they lie behind it. Returns whether the backend did it. */
static bool test_step(struct pair *p, int past, int H, int P, int Vd, int r, int R, bool own)
{
    int rows = H * (P + Vd), stride = P + (own ? 0 : R), width = r + R;
    float *w = numbers(p, (size_t)rows * r, 0.1), *q = numbers(p, (size_t)H * stride, 1);
    float *c = numbers(p, (size_t)(past + 1) * width, 1),
          *cosines = numbers(p, (size_t)R / 2 + 1, 1);
    float *sines = numbers(p, (size_t)R / 2 + 1, 1),
          *x = calloc((size_t)(H * R * P) + 1, sizeof *x);
    for (int i = 0; i < H * R; i++)
        x[(size_t)i * P + (size_t)(i * 7 % P)] = 0.3f * (float)(1 + i % 5);
    void *data = as_type(DTYPE_Q8_0, w, (size_t)rows * r);
    void *cache = as_type(DTYPE_F16, c, (size_t)(past + 1) * width);
    float *y[2] = {nans((size_t)(H * Vd)), nans((size_t)(H * Vd))};
    bool did = false;
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        float *q_lat = nans((size_t)(H * r)), *q_rope = nans((size_t)(H * R) + 1);
        float *lat = nans((size_t)(H * r));
        struct weight *kv_b = load(b, data, DTYPE_Q8_0, rows, r);
        struct weight *rope = own ? load(b, x, DTYPE_F32, H * R, P) : NULL;
        struct attn_mla_args a = {lat, q_lat, q_rope, cache, DTYPE_F16,        1, past, H,
                                  r,   R,     0.2f,   0,     past % 2 ? 40 : 0};
        struct mla_step_args s = {a, y[side], q_lat, q_rope, q,       stride,
                                  P, Vd,      kv_b,  rope,   cosines, sines};
        did = side && b->ops->mla_step && b->ops->mla_step(b, &s);
        if (!did) {
            if (own)
                b->ops->mla_expand(b, q_rope, q, rope, H, 0, R, P, 1);
            else
                b->ops->store(b, q_rope, DTYPE_F32, R, q + P, stride, R, H);
            b->ops->rope(b, q_rope, H * R, H, R, R, cosines, sines, 1);
            b->ops->mla_absorb(b, q_lat, q, H * stride, stride, kv_b, H, P, Vd, r, 1);
            b->ops->attn_mla(b, &a);
            b->ops->mla_expand(b, y[side], lat, kv_b, H, P, Vd, r, 1);
        }
        b->ops->weight_free(b, kv_b);
        if (rope)
            b->ops->weight_free(b, rope);
        free(q_lat), free(q_rope), free(lat);
    }
    compare(p, "a step of MLA", y[1], y[0], (size_t)(H * Vd), FP32_NMSE);
    free(w), free(q), free(c), free(cosines), free(sines), free(x), free(data), free(cache);
    free(y[0]), free(y[1]);
    return did;
}

static void test_steps(struct pair *p)
{
    bool did = test_step(p, 0, 9, 64, 64, 64, 32, true);
    CHECK(did == test_step(p, 130, 9, 64, 64, 64, 32, true), "%s: where it is done", p->name);
    CHECK(did == test_step(p, 77, 5, 40, 24, 96, 8, false), "%s: where it is done", p->name);
    CHECK(did == test_step(p, 200, 1, 16, 8, 32, 0, false), "%s: where it is done", p->name);
    CHECK(!test_step(p, 3000, 3, 16, 16, 32, 4, true), "%s: many keys are shared", p->name);
    CHECK(!test_step(p, 7, 3, 18, 16, 32, 4, true), "%s: heads that end within a group", p->name);
}

static void test_kv_bs(struct pair *p)
{
    static const int tokens[] = {1, 2, 7, 33};
    for (int t = 0; t < 4; t++) {
        test_kv_b(p, DTYPE_F32, 9, 64, 64, 128, tokens[t]);
        test_kv_b(p, DTYPE_BF16, 3, 34, 80, 50, tokens[t]);
        test_kv_b(p, DTYPE_F16, 4, 16, 20, 512, tokens[t]);
        test_kv_b(p, DTYPE_Q8_0, 2, 18, 30, 96, tokens[t]);
        test_kv_b(p, DTYPE_Q8_0, 3, 40, 24, 64,
                  tokens[t]); /* whole groups of rows, an odd number */
        test_kv_b(p, DTYPE_Q8_0, 9, 64, 64, 64, tokens[t]);
        test_sparse(p, DTYPE_F16, 3, 8, 16, tokens[t]);
        test_sparse(p, DTYPE_F32, 9, 32, 64, tokens[t]);
        test_kv_b(p, DTYPE_Q4_K, 2, 18, 30, 256, tokens[t]); /* columns begin inside a block */
    }
}

static void test_small(struct pair *p, int T, int n)
{
    size_t all = (size_t)T * n;
    float *x = numbers(p, all, 4), *u = numbers(p, all, 1), *gamma = numbers(p, (size_t)n, 1);
    float *cosines = numbers(p, all, 1), *sines = numbers(p, all, 1), *y[2];
    int half = n / 2;
    enum { NORM, SILU, GELU, ADD, ROPE, OPS };
    static const char *const names[OPS] = {"rms_norm", "silu", "gelu", "add", "rope"};
    for (int op = 0; op < OPS; op++) {
        for (int side = 0; side < 2; side++) {
            struct backend *b = side ? p->b : p->ref;
            y[side] = op == ADD || op == ROPE ? malloc(all * sizeof(float) + 1) : nans(all);
            if (op == ADD || op == ROPE)
                memcpy(y[side], x, all * sizeof(float));
            if (op == NORM)
                b->ops->rms_norm(b, y[side], x, gamma, 1e-5f, T, n);
            else if (op == ADD)
                b->ops->add(b, y[side], u, all);
            else if (op == ROPE)
                b->ops->rope(b, y[side], n, 1, n, 2 * half, cosines, sines, T);
            else
                b->ops->glu(b, y[side], x, u, op == SILU ? GLU_SILU : GLU_GELU_TANH, all);
        }
        char what[64];
        snprintf(what, sizeof what, "%s T %d n %d", names[op], T, n);
        compare(p, what, y[1], y[0], all, FP32_NMSE);
        free(y[0]), free(y[1]);
    }
    free(x), free(u), free(gamma), free(cosines), free(sines);
}

/* The operations that only some families use. */
static void test_extra(struct pair *p, int T, int n)
{
    size_t all = (size_t)T * n;
    float *x = numbers(p, all, 4), *v = numbers(p, (size_t)n, 1), *f = numbers(p, (size_t)T, 1);
    int32_t *rows = malloc((size_t)T * sizeof *rows);
    float *y[2];
    enum { BIAS, SCALE, CAP, TAKE, ADD_ROWS, OPS };
    static const char *const names[OPS] = {"add_bias", "scale", "softcap", "take_rows", "add_rows"};
    for (int t = 0; t < T; t++)
        rows[t] = (t + 1) % T; /* all different */
    for (int op = 0; op < OPS; op++) {
        for (int side = 0; side < 2; side++) {
            struct backend *b = side ? p->b : p->ref;
            y[side] = nans(all);
            if (op != TAKE)
                memcpy(y[side], x, all * sizeof(float));
            if (op == BIAS)
                b->ops->add_bias(b, y[side], v, T, n);
            else if (op == SCALE)
                b->ops->scale(b, y[side], 1.7f, all);
            else if (op == CAP)
                b->ops->softcap(b, y[side], 3, all);
            else if (op == TAKE)
                b->ops->take_rows(b, y[side], x, rows, T, n);
            else
                b->ops->add_rows(b, y[side], rows, x, f, T, n);
        }
        char what[64];
        snprintf(what, sizeof what, "%s T %d n %d", names[op], T, n);
        compare(p, what, y[1], y[0], all, FP32_NMSE);
        free(y[0]), free(y[1]);
    }
    free(x), free(v), free(f), free(rows);
}

/* Heads inside wider rows, in place, and the cache write beside untouched neighbours. */
static void test_strides(struct pair *p)
{
    int T = 5, ld = 70, heads = 3, stride = 20, R = 14;
    float *x = numbers(p, (size_t)T * ld, 1), *c = numbers(p, 100, 1), *s = numbers(p, 100, 1);
    float *y[2];
    for (int side = 0; side < 2; side++) {
        struct backend *b = side ? p->b : p->ref;
        y[side] = malloc((size_t)T * ld * sizeof(float));
        memcpy(y[side], x, (size_t)T * ld * sizeof(float));
        b->ops->rope(b, y[side] + 6, ld, heads, stride, R, c, s, T);
        b->ops->rms_norm(b, y[side], y[side], c, 1e-5f, 2, ld);
        b->ops->head_norm(b, y[side] + 5, ld, heads, stride, c, 1e-5f, T, R + 3);
    }
    compare(p, "rope with strides, norm in place", y[1], y[0], (size_t)T * ld, FP32_NMSE);
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0};
    x[3] = NAN; /* of a broken model; Q8_0 cannot say it */
    for (int kv = 0; kv < 4; kv++) {
        uint16_t cache[2][500] = {{0}};
        int whole = (int)dtype_padded(types[kv], 43), first = types[kv] == DTYPE_Q8_0 ? 4 : 1;
        for (int side = 0; side < 2; side++) {
            struct backend *b = side ? p->b : p->ref;
            b->ops->store(b, cache[side], types[kv], whole, x + first, ld, 41, T);
        }
        CHECK(!memcmp(cache[0], cache[1], sizeof cache[0]), "%s: store", p->name);
    }
    free(x), free(c), free(s), free(y[0]), free(y[1]);
}

static void test_backend(const char *name, struct backend_options opt)
{
    struct err e = {0};
    struct pair p = {.seed = 12345, .exact = opt.exact};
    struct backend_options plain = {.threads = 2};
    CHECK_OK(backend_open(&p.ref, "ref", &plain, &e), e);
    CHECK_OK(backend_open(&p.b, name, &opt, &e), e);
    if (p.ref && p.b) {
        p.b->ops->describe(p.b, p.name, sizeof p.name - 8);
        strcat(p.name, opt.exact ? ", exact" : "");
        printf("%s\n", p.name);
        test_linears(&p);
        test_alone(&p);
        test_odd_address(&p);
        test_embed(&p);
        test_attention(&p);
        test_kv_bs(&p);
        test_steps(&p);
        test_small(&p, 1, 576);
        test_small(&p, 3, 50);
        test_small(&p, 40, 1030);
        test_small(&p, 2, 2);
        test_extra(&p, 1, 64);
        test_extra(&p, 5, 50);
        test_extra(&p, 40, 1030);
        test_strides(&p);
        CHECK_OK(p.b->ops->sync(p.b, &e), e);
    }
    backend_close(p.b);
    backend_close(p.ref);
}

static void test_refusals(void)
{
    struct err e = {0};
    struct backend *b = NULL;
    struct backend_options opt = {.threads = 1};
    CHECK(backend_open(&b, "cuda:1", &opt, &e) == ERR_DEVICE && !b);
    CHECK(strstr(e.text, "--device cpu"), "%s", e.text);
    CHECK(backend_open(&b, "gpu", &opt, &e) == ERR_ARG && !b);
    opt.isa = "mmx";
    CHECK(backend_open(&b, "cpu", &opt, &e) == ERR_ARG && !b);
    opt = (struct backend_options){.threads = -1};
    CHECK(backend_open(&b, "auto", &opt, &e) == ERR_ARG && !b);
    backend_close(NULL);
}

int main(void)
{
#ifdef __aarch64__
    static const char *const levels[] = {"scalar", "neon", "dotprod"};
#else
    static const char *const levels[] = {"scalar", "avx2", "avx512"};
#endif
    test_refusals();
    for (int i = 0; i < 3; i++) {
        test_backend("cpu", (struct backend_options){.threads = 1 + i, .isa = levels[i]});
        test_backend("cpu",
                     (struct backend_options){.threads = 3 - i, .isa = levels[i], .exact = true});
    }
    return test_end("backend");
}

/* The CPU backend with the instruction sets named as arguments against its scalar kernels, which
 * test_backend holds against the reference: needs nothing but kernels and core/base, so that it
 * runs where the libraries of the program are missing, under an emulator. Prints what each name
 * turned out to be on this machine. usage: isa_parity NAME … */
#include "kernels/backend.h"
#include "tests/support.h"

/* Both sides in fp32 in another order, and int8 activations: as in test_backend. */
#define FP32_NMSE 1e-10
#define INT8_NMSE 2e-4

struct sides {
    struct backend *b[2]; /* scalar, and what is tested */
    bool exact;
    char name[64];
    uint64_t seed;
};

static float *numbers(struct sides *s, size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)test_normal(&s->seed);
    return x;
}

/* Where a block's F16 scales are; −1: none. */
static void scales_of(enum dtype type, int at[2])
{
    at[0] = type == DTYPE_Q6_K ? 208 : 0;
    at[1] = type == DTYPE_Q4_1 || type == DTYPE_Q4_K || type == DTYPE_Q5_K ? 2 : -1;
}

/* n numbers of a type: plain ones rounded, blocks of any bytes with sane scales. */
static void *stored(struct sides *s, enum dtype type, size_t n)
{
    const struct dtype_traits *t = dtype_traits(type);
    uint8_t *p = malloc(dtype_bytes(type, n));
    if (t->block == 1) {
        float *x = numbers(s, n);
        dtype_from_f32(type, x, p, n);
        free(x);
        return p;
    }
    int at[2];
    scales_of(type, at);
    for (size_t i = 0; i < n / (size_t)t->block; i++) {
        uint8_t *block = p + i * (size_t)t->block_bytes;
        for (int j = 0; j < t->block_bytes; j++)
            block[j] = (uint8_t)(test_uniform(&s->seed) * 256);
        for (int j = 0; j < 2 && at[j] >= 0; j++) {
            uint16_t d = f32_to_f16((float)test_uniform(&s->seed) + 0.5f);
            memcpy(block + at[j], &d, sizeof d);
        }
    }
    return p;
}

/* Compares n numbers of both sides and frees them. */
static void compare(const struct sides *s, float *y[2], size_t n, double limit, const char *what)
{
    double error = test_nmse(y[1], y[0], n);
    CHECK(error <= limit, "%s: %s: error %g of the energy, allowed %g", s->name, what, error,
          limit);
    free(y[0]), free(y[1]);
}

static void linear(struct sides *s, enum dtype type, int rows, int cols, int T)
{
    struct matrix m = {stored(s, type, (size_t)rows * cols), type, rows, cols};
    float *x = numbers(s, (size_t)T * cols), *first = numbers(s, (size_t)T * rows), *y[2];
    size_t n = (size_t)T * rows;
    for (int i = 0; i < 2; i++) {
        struct err e = {0};
        struct weight *w = NULL;
        y[i] = malloc(n * sizeof *first);
        memcpy(y[i], first, n * sizeof *first);
        CHECK_OK(s->b[i]->ops->weight_load(s->b[i], &m, &w, NULL, &e), e);
        s->b[i]->ops->linear(s->b[i], 1, (const struct weight *const *)&w, &y[i], x, T, T % 2);
        CHECK_OK(s->b[i]->ops->sync(s->b[i], &e), e);
        s->b[i]->ops->weight_free(s->b[i], w);
    }
    bool fp32 = s->exact || dtype_traits(type)->block == 1;
    compare(s, y, n, fp32 ? FP32_NMSE : INT8_NMSE, dtype_traits(type)->name);
    free((void *)m.data), free(x), free(first);
}

static void attention(struct sides *s, enum dtype kv, int T, int past, int r)
{
    enum { H = 6, G = 2, R = 12 };
    size_t keys = (size_t)(T + past), width = (size_t)(r + R) * G;
    void *k = stored(s, kv, keys * width), *v = stored(s, kv, keys * width);
    float *q = numbers(s, (size_t)T * H * (size_t)(r + R)), *y[2], *z[2];
    for (int i = 0; i < 2; i++) {
        struct backend *b = s->b[i];
        float cap = T % 2 ? 3.0f : 0;
        y[i] = malloc((size_t)T * H * (size_t)r * sizeof *q);
        z[i] = malloc((size_t)T * H * (size_t)r * sizeof *q);
        b->ops->attn_gqa(b, &(struct attn_gqa_args){.out = y[i],
                                                    .q = q,
                                                    .k = k,
                                                    .v = v,
                                                    .kv = kv,
                                                    .T = T,
                                                    .past = past,
                                                    .H = H,
                                                    .G = G,
                                                    .d = r,
                                                    .scale = 0.2f,
                                                    .softcap = cap});
        b->ops->attn_mla(b, &(struct attn_mla_args){.out = z[i],
                                                    .q_lat = q,
                                                    .q_rope = q + (size_t)T * H * (size_t)r,
                                                    .cache = k,
                                                    .kv = kv,
                                                    .T = T,
                                                    .past = past,
                                                    .H = H,
                                                    .r = r,
                                                    .R = R,
                                                    .scale = 0.2f,
                                                    .window = T + past / 2});
    }
    compare(s, y, (size_t)T * H * (size_t)r, FP32_NMSE, "attention");
    compare(s, z, (size_t)T * H * (size_t)r, FP32_NMSE, "MLA attention");
    free(k), free(v), free(q);
}

/* The halves of kv_b, heads of whole groups of rows. */
static void halves_of_kv_b(struct sides *s, int H, int P, int Vd, int r)
{
    int rows = H * (P + Vd);
    struct matrix m = {stored(s, DTYPE_Q8_0, (size_t)rows * (size_t)r), DTYPE_Q8_0, rows, r};
    float *q = numbers(s, (size_t)(H * P)), *lat = numbers(s, (size_t)(H * r)), *y[2], *z[2];
    for (int i = 0; i < 2; i++) {
        struct backend *b = s->b[i];
        struct weight *w = NULL;
        struct err e = {0};
        CHECK_OK(b->ops->weight_load(b, &m, &w, NULL, &e), e);
        y[i] = malloc((size_t)(H * r) * sizeof *q), z[i] = malloc((size_t)(H * Vd) * sizeof *q);
        b->ops->mla_absorb(b, y[i], q, H * P, P, w, H, P, Vd, r, 1);
        b->ops->mla_expand(b, z[i], lat, w, H, P, Vd, r, 1);
        b->ops->weight_free(b, w);
    }
    compare(s, y, (size_t)(H * r), FP32_NMSE, "keys absorbed");
    compare(s, z, (size_t)(H * Vd), FP32_NMSE, "values expanded");
    free((void *)(uintptr_t)m.data), free(q), free(lat);
}

static void small(struct sides *s, int T, int n)
{
    size_t all = (size_t)T * (size_t)n;
    float *x = numbers(s, all), *gamma = numbers(s, (size_t)n), *y[2];
    for (int act = 0; act < 3; act++) {
        for (int i = 0; i < 2; i++) {
            y[i] = malloc(all * sizeof *x);
            if (act < 2)
                s->b[i]->ops->glu(s->b[i], y[i], x, x, act ? GLU_GELU_TANH : GLU_SILU, all);
            else
                s->b[i]->ops->rms_norm(s->b[i], y[i], x, gamma, 1e-5f, T, n);
        }
        compare(s, y, all, FP32_NMSE, act < 2 ? "glu" : "norm");
    }
    for (int i = 0; i < 2; i++) {
        y[i] = malloc(all * sizeof *x);
        memset(y[i], 0, all * sizeof *x);
        s->b[i]->ops->store(s->b[i], y[i], DTYPE_F16, n, x, n, n, T);
    }
    CHECK(!memcmp(y[0], y[1], all * 2), "%s: rounding to F16", s->name);
    free(y[0]), free(y[1]), free(x), free(gamma);
}

static void parity(const char *isa, bool exact)
{
    static const enum dtype types[] = {DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0,
                                       DTYPE_Q4_1, DTYPE_Q6_0, DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
    struct sides s = {.exact = exact, .seed = 99};
    struct backend_options plain = {.threads = 1, .isa = "scalar", .exact = true},
                           opt = {.threads = 1, .isa = isa, .exact = exact};
    struct err e = {0};
    CHECK_OK(backend_open(&s.b[0], "cpu", &plain, &e), e);
    CHECK_OK(backend_open(&s.b[1], "cpu", &opt, &e), e);
    if (s.b[0] && s.b[1]) {
        s.b[1]->ops->describe(s.b[1], s.name, sizeof s.name);
        printf("%s%s: %s\n", isa, exact ? ", exact" : "", s.name);
        for (size_t i = 0; i < sizeof types / sizeof *types; i++)
            for (int T = 1; T <= 19; T += T < 7 ? 1 : 6) /* all remainders of a tile's rows */
                linear(&s, types[i], 77, dtype_traits(types[i])->block == 1 ? 301 : 512, T);
        for (int kv = DTYPE_F32; kv <= DTYPE_F16; kv++) {
            attention(&s, (enum dtype)kv, 1, 150, 33);
            attention(&s, (enum dtype)kv, 2, 70, 40);
            attention(&s, (enum dtype)kv, 21, 5, 37);
        }
        halves_of_kv_b(&s, 3, 40, 24, 64);
        small(&s, 1, 576);
        small(&s, 3, 53);
    }
    backend_close(s.b[0]), backend_close(s.b[1]);
}

int main(int argc, char **argv)
{
    CHECK(argc > 1, "usage: isa_parity NAME …");
    for (int i = 1; i < argc; i++) {
        parity(argv[i], true);
        parity(argv[i], false);
    }
    return test_end("isa_parity");
}

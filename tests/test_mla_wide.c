/* Statistics in other forms give the same conversion: of the layer's input where keys and values
 * are wider than it, shared by heads, and with compact phases. */
#include "core/mla.h"
#include "core/spectrum.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "tests/support.h"

enum { H = 4, G = 4, d = 8, D = 24, T = 19, W = 12, N = 2 * G * d, HALF = d / 2 };

struct layer {
    float wq[H * d][D], wk[G * d][D], wv[G * d][D], wo[D][H * d], bk[G * d], bv[G * d];
    float x[W * T][D], q[W * T][H * d], k[W * T][G * d], v[W * T][G * d];
    double freq[HALF];
};

static void project(const float *w, const float *bias, const float *x, int rows, float *y)
{
    for (int i = 0; i < rows; i++) {
        double sum = bias ? bias[i] : 0;
        for (int j = 0; j < D; j++)
            sum += (double)w[i * D + j] * x[j];
        y[i] = (float)sum;
    }
}

static void make_layer(struct layer *l, bool bias)
{
    uint64_t seed = 17;
    float *all[] = {&l->wq[0][0], &l->wk[0][0], &l->wv[0][0], &l->wo[0][0]};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < H * d * D; j++)
            all[i][j] = (float)(test_normal(&seed) / sqrt(D));
    for (int i = 0; i < G * d; i++) {
        l->bk[i] = bias ? (float)test_normal(&seed) : 0;
        l->bv[i] = bias ? (float)test_normal(&seed) : 0;
    }
    for (int i = 0; i < W * T; i++) {
        for (int j = 0; j < D; j++) /* some directions much stronger than others */
            l->x[i][j] = (float)(test_normal(&seed) * 3 / (1 + j % 7));
        project(l->wq[0], NULL, l->x[i], H * d, l->q[i]);
        project(l->wk[0], l->bk, l->x[i], G * d, l->k[i]);
        project(l->wv[0], l->bv, l->x[i], G * d, l->v[i]);
    }
    for (int j = 0; j < HALF; j++)
        l->freq[j] = pow(100, -1.0 * j / HALF);
}

static void phases(struct moments_accum *a, struct pool *pool, const struct layer *l)
{
    struct err e = {0};
    for (int w = 0; w < W; w++)
        CHECK_OK(moments_add_phase(a, pool, l->q[w * T], l->k[w * T], T, 2, &e), e);
}

static void calibrate(const struct layer *l, const struct moments_shape *s, struct moments *m)
{
    struct err e = {0};
    struct moments_accum *a;
    struct pool *pool;
    CHECK_OK(pool_new(&pool, 2, false, &e), e);
    CHECK_OK(moments_accum_new(&a, s, l->wo[0], l->freq, 0.35, 2, &e), e);
    CHECK_OK(moments_add(a, pool, l->x[0], l->q[0], l->k[0], l->v[0], W / 2, T, &e), e);
    CHECK_OK(moments_add(a, pool, l->x[W / 2 * T], l->q[W / 2 * T], l->k[W / 2 * T],
                         l->v[W / 2 * T], W / 2, T, &e),
             e);
    phases(a, pool, l);
    if (s->candidates) {
        struct moments first;
        struct rope_choice rope;
        double complex c[H * HALF];
        double r2[H * HALF];
        CHECK_OK(moments_so_far(a, &first, &e), e);
        mla_shrink(&first, 0, c, r2);
        CHECK_OK(mla_rope_candidates(&first, r2, s->candidates, &rope, &e), e);
        CHECK_OK(moments_candidates_set(a, rope.index, rope.T, rope.P, &e), e);
        phases(a, pool, l);
        rope_choice_done(&rope);
        moments_done(&first);
    }
    CHECK_OK(moments_finish(a, m, &e), e);
    moments_accum_free(a);
    pool_free(pool);
}

/* Up maps times down maps [H·2d][D + 1], what the layer computes whatever its latent's basis is,
 * then queries and rope keys. */
static double *product(const struct mla_result *r, size_t *n)
{
    size_t wide = (size_t)(H * (d + r->R) * D), rope = (size_t)(r->R * D);
    double *out = calloc((size_t)(H * 2 * d * (D + 1)) + wide + rope, sizeof *out), *to = out;
    for (int i = 0; i < H * 2 * d; i++)
        for (int j = 0; j <= D; j++, to++)
            for (int k = 0; k < r->r; k++)
                *to += (double)r->kv_b[i * r->r + k] * (j < D          ? r->kv_a[k * D + j]
                                                        : r->kv_a_bias ? r->kv_a_bias[k]
                                                                       : 0);
    for (size_t i = 0; i < wide; i++)
        *to++ = r->q[i];
    for (size_t i = 0; i < rope; i++)
        *to++ = r->kv_a[(size_t)(r->r * D) + i];
    *n = (size_t)(to - out);
    return out;
}

static double distance(const double *a, const double *b, size_t n)
{
    double gap = 0, all = 0;
    for (size_t i = 0; i < n; i++) {
        gap += (a[i] - b[i]) * (a[i] - b[i]);
        all += b[i] * b[i];
    }
    return sqrt(gap / all);
}

static void source(const struct layer *l, const struct moments_shape *s, bool bias,
                   struct mla_source *src)
{
    *src = (struct mla_source){.shape = *s,
                               .wq = l->wq[0],
                               .wk = l->wk[0],
                               .wv = l->wv[0],
                               .wo = l->wo[0],
                               .bk = bias ? l->bk : NULL,
                               .bv = bias ? l->bv : NULL,
                               .freq = l->freq,
                               .scale = 0.35};
}

/* Prepared once and completed at any rank, a layer is what solving it at that rank gives. */
static void check_prepared(const struct mla_source *src, const struct moments *m,
                           struct mla_options o)
{
    struct err e = {0};
    struct mla_prepared *p;
    int w = moments_width(&m->shape), half = w / 2;
    /* kept: growing, cut, beyond what is kept, and cut again */
    int ranks[] = {1, o.rank, half, 2, w - 1, w, half - 1};
    o.rank = 0;
    CHECK_OK(mla_prepare(&p, src, m, &o, w, half, &e), e);
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        struct mla_result again, once, copied;
        struct spectrum s;
        size_t n;
        o.rank = ranks[i];
        CHECK_OK(mla_complete(p, src, m, o.rank, &again, &e), e);
        CHECK_OK(mla_solve(src, m, &o, &once, &s, &e), e);
        CHECK_OK(mla_result_copy(&copied, &again, src, &e), e);
        double *a = product(&again, &n), *b = product(&once, &n), *c = product(&copied, &n);
        double gap = distance(a, b, n), energy = mla_prepared_energy(p, o.rank);
        CHECK(gap < 1e-6, "rank %d: prepared and solved at once differ by %g (fp32 maps)", o.rank,
              gap);
        CHECK(distance(c, a, n) == 0, "a copy differs");
        CHECK(fabs(energy - spectrum_energy(&s, o.rank)) < 1e-12, "energy %g", energy);
        free(a);
        free(b);
        free(c);
        spectrum_done(&s);
        mla_result_done(&again);
        mla_result_done(&once);
        mla_result_done(&copied);
    }
    mla_prepared_free(p);
    CHECK_OK(mla_prepare(&p, src, m, &o, 3, 0, &e), e);
    struct mla_result none;
    CHECK(mla_complete(p, src, m, 4, &none, &e) == ERR_ARG, "more rank than was prepared");
    mla_prepared_free(p);
}

/* How far two forms of the statistics are apart in what they make of the layer. */
static double compare(const struct layer *l, const struct mla_source *src, const struct moments *a,
                      const struct moments *b, struct mla_options o, double *spectra)
{
    struct err e = {0};
    struct mla_result x, y;
    struct spectrum sx, sy;
    size_t n;
    CHECK_OK(mla_solve(src, a, &o, &x, &sx, &e), e);
    CHECK_OK(mla_solve(src, b, &o, &y, &sy, &e), e);
    double *px = product(&x, &n), *py = product(&y, &n), gap = distance(px, py, n);
    double error[2], s = 0;
    float original[2 * T * D];
    const struct mla_result *const both[] = {&x, &y};
    float *q = calloc((size_t)(2 * T * H) * (size_t)(d + x.R), sizeof *q);
    double again;
    CHECK_OK(mla_original(src, l->x[0], 2 * T, T, original, &e), e);
    CHECK_OK(mla_queries(src, l->x[0], 2 * T, T, &x, q, &e), e);
    for (int i = 0; i < 2; i++)
        CHECK_OK(mla_measure(src, l->x[0], NULL, original, 2 * T, T, both[i], &error[i], &e), e);
    CHECK_OK(mla_measure(src, l->x[0], q, original, 2 * T, T, &x, &again, &e), e);
    CHECK(again == error[0], "queries made beforehand change the error");
    for (int i = 0; i < sx.n; i++) {
        s = fmax(s, fabs(sx.joint[i] - sy.joint[i]) / sy.joint[0]);
        if (sy.joint[i] > 1e-3 * sy.joint[0])
            s = fmax(s, fabs(sx.key_share[i] - sy.key_share[i]));
    }
    for (int i = 0; i < sx.n_key; i++)
        s = fmax(s, fabs(sx.key[i] - sy.key[i]) / sy.key[0]);
    for (int i = 0; i < sx.n_value; i++)
        s = fmax(s, fabs(sx.value[i] - sy.value[i]) / sy.value[0]);
    *spectra = s;
    printf("%s r%d R%d: maps differ by %.1e, spectra by %.1e; layer errors %.2e, %.2e\n",
           o.method == METHOD_TRANSMLA ? "transmla"
           : o.layout == LAYOUT_STOCK  ? "stock"
                                       : "own",
           o.rank, o.rope_dim, gap, s, error[0], error[1]);
    check_prepared(src, a, o);
    check_prepared(src, b, o);
    free(q);
    free(px);
    free(py);
    spectrum_done(&sx);
    spectrum_done(&sy);
    mla_result_done(&x);
    mla_result_done(&y);
    return gap;
}

/* Statistics of y solve to what those of z do: the rank bound. */
static void check_affine(bool bias)
{
    static struct layer l;
    struct moments_shape zs = {.H = H, .G = G, .d = d, .D = D, .rope_dim = d}, ys = zs;
    struct moments z, y;
    struct mla_source src;
    double spectra;
    make_layer(&l, bias);
    ys.affine = true;
    ys.constant = bias;
    calibrate(&l, &zs, &z);
    calibrate(&l, &ys, &y);
    source(&l, &zs, bias, &src);
    const struct mla_options options[] = {
        {.method = METHOD_MLATHE, .layout = LAYOUT_OWN, .rank = 10, .rope_dim = 8},
        {.method = METHOD_MLATHE, .layout = LAYOUT_STOCK, .rank = 16, .rope_dim = 4},
        {.method = METHOD_TRANSMLA, .rank = 12, .rope_dim = 4, .freqfold = 2},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        double gap = compare(&l, &src, &y, &z, options[i], &spectra);
        /* sums of both kinds run in fp32, and the refits solve with their inverses */
        CHECK(gap < 1e-5, "maps of y differ from those of z: %g", gap);
        CHECK(spectra < 1e-4, "spectra of y differ from those of z: %g", spectra);
    }
    /* Everything kept: exact, with a latent that is no wider than y. */
    struct err e = {0};
    struct mla_result all;
    float original[2 * T * D];
    double error;
    struct mla_options o = {.rank = moments_width(&ys), .rope_dim = G * d};
    CHECK_OK(mla_solve(&src, &y, &o, &all, NULL, &e), e);
    CHECK_OK(mla_original(&src, l.x[0], 2 * T, T, original, &e), e);
    CHECK_OK(mla_measure(&src, l.x[0], NULL, original, 2 * T, T, &all, &error, &e), e);
    printf("everything kept in %d numbers, bias %d: error %.1e\n", o.rank, bias, error);
    CHECK(o.rank == D + bias && error < 1e-9, "full rank: %g", error);
    mla_result_done(&all);
    moments_done(&z);
    moments_done(&y);
}

/* Shared statistics are the means of the heads' own. */
static void check_groups(bool affine)
{
    static struct layer l;
    struct moments_shape one = {.H = H, .G = G, .d = d, .D = D, .rope_dim = d, .affine = affine};
    struct moments_shape two = one;
    struct moments a, b;
    two.groups = 2;
    make_layer(&l, false);
    calibrate(&l, &one, &a);
    calibrate(&l, &two, &b);
    int w = moments_width(&one), size = w * w;
    double *mean = calloc((size_t)(3 * size), sizeof *mean), *x = mean + size, *shared = x + size;
    for (int part = 0; part < 2; part++) {
        for (int g = 0; g < 2; g++) {
            memset(mean, 0, (size_t)size * sizeof *mean);
            for (int h = 2 * g; h < 2 * g + 2; h++) {
                moments_of_head(&a, part ? a.cv : a.cko, h, x);
                for (int i = 0; i < size; i++)
                    mean[i] += x[i] / 2;
            }
            moments_of_head(&b, part ? b.cv : b.cko, 2 * g, shared);
            double gap = distance(shared, mean, (size_t)size);
            CHECK(gap < 1e-5, "%s of group %d: %g", part ? "cv" : "cko", g, gap); /* fp32 sums */
        }
    }
    CHECK(!memcmp(a.cvi, b.cvi, H * sizeof *a.cvi) || affine == false, "cvi stays a head's own");
    free(mean);
    moments_done(&a);
    moments_done(&b);
}

/* With every pair a candidate the compact phases say all that the full ones do. */
static void check_candidates(void)
{
    static struct layer l;
    struct moments_shape full = {.H = H, .G = G, .d = d, .D = D, .rope_dim = d}, few = full;
    struct moments a, b;
    struct mla_source src;
    double spectra;
    few.candidates = G * HALF;
    make_layer(&l, false);
    calibrate(&l, &full, &a);
    calibrate(&l, &few, &b);
    source(&l, &full, false, &src);
    struct mla_options o = {.layout = LAYOUT_OWN, .rank = 20, .rope_dim = 12};
    double gap = compare(&l, &src, &b, &a, o, &spectra);
    CHECK(gap < 1e-5, "compact phases: %g", gap); /* fp32 sums behind a ridge regression */
    o.layout = LAYOUT_STOCK;
    o.rope_dim = 6;
    gap = compare(&l, &src, &b, &a, o, &spectra);
    CHECK(gap < 1e-5, "compact phases, stock: %g", gap);
    moments_done(&b);
    few.candidates = HALF; /* the best of each frequency: all that stock takes */
    calibrate(&l, &few, &b);
    gap = compare(&l, &src, &b, &a, o, &spectra);
    CHECK(gap < 1e-5, "fewest candidates, stock: %g", gap);
    o.layout = LAYOUT_OWN;
    o.rope_dim = 24; /* beyond the candidates: the shrinks alone */
    gap = compare(&l, &src, &b, &a, o, &spectra);
    o.without = STEP_JOINT;
    CHECK(gap > compare(&l, &src, &b, &a, o, &spectra), "candidates are all that can be fitted");
    moments_done(&a);
    moments_done(&b);
}

int main(void)
{
    linalg_init();
    check_affine(false);
    check_affine(true);
    check_groups(false);
    check_groups(true);
    check_candidates();
    return test_end("mla_wide");
}

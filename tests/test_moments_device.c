/* The second moments that a backend makes against those of the host, for every form of statistics;
 * and how far the kept subspace turns when sums are fp32 as they are here, or inputs TF32. */
#include "core/moments_device.h"
#include "kernels/algebra.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "tests/support.h"

enum { H = 4, G = 2, d = 8, T = 24, WINDOWS = 5, BATCH = 2 };

/* Means of fp32 products, summed in another order: √(windows·T)·2⁻²⁴ = 7e-7 of the largest entry,
 * the host's product Mᵀ y of shared heads a few times that. */
#define MEAN_ERROR 1e-5

struct input {
    int D;
    float *x, *q, *k, *v, *wo;
    double freq[d / 2];
};

static float *random_rows(size_t n, double spread, uint64_t *seed)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(spread * test_normal(seed));
    return x;
}

static void input_init(struct input *in, int D)
{
    uint64_t seed = 5;
    size_t rows = WINDOWS * T;
    in->D = D;
    in->x = random_rows(rows * (size_t)D, 1, &seed);
    in->q = random_rows(rows * H * d, 1, &seed);
    in->k = random_rows(rows * G * d, 1, &seed);
    in->v = random_rows(rows * G * d, 1, &seed);
    in->wo = random_rows((size_t)D * H * d, 0.3, &seed);
    for (int j = 0; j < d / 2; j++)
        in->freq[j] = 1 / pow(10, j);
}

static void input_done(struct input *in)
{
    free(in->x), free(in->q), free(in->k), free(in->v), free(in->wo);
}

/* max |a − b| against the largest entry. */
static double gap(const float *a, const float *b, size_t n)
{
    double most = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - b[i]));
        top = fmax(top, fabs(b[i]));
    }
    return most / top;
}

static void compare(const struct moments *got, const struct moments *want, const char *name)
{
    const struct moments_shape *s = &want->shape;
    size_t w = (size_t)moments_width(s), all = (size_t)moments_groups(s) * (w * (w + 1) / 2);
    double error[] = {test_gap(got->c, want->c, w * w),
                      test_gap(got->m, want->m, H * d * d),
                      gap(got->cko, want->cko, all),
                      gap(got->cv, want->cv, all),
                      test_gap(got->cvi, want->cvi, H),
                      s->affine ? gap(got->key, want->key, G * d * (G * d + 1) / 2) : 0,
                      fabs(got->sink / want->sink - 1)};
    static const char *const part[] = {"c", "m", "cko", "cv", "cvi", "key", "sink"};
    CHECK(want->sink > 0, "%s: attention on the first token", name);
    CHECK(got->tokens == want->tokens, "%s: %g tokens", name, got->tokens);
    for (int i = 0; i < 7; i++)
        CHECK(error[i] <= MEAN_ERROR, "%s: %s is off by %.2g", name, part[i], error[i]);
}

/* Both ways over the same windows; the last batch of the device is a smaller one. */
static void test_form(struct backend *b, const struct moments_shape *s, const struct input *in,
                      const char *name)
{
    struct err e = {0};
    struct moments_accum *host = NULL, *other = NULL;
    struct moments_device *dev = NULL;
    struct moments want, got;
    size_t D = (size_t)in->D;
    CHECK_OK(moments_accum_new(&host, s, in->wo, in->freq, 0.35, 1, &e), e);
    CHECK_OK(moments_accum_new(&other, s, in->wo, in->freq, 0.35, 1, &e), e);
    CHECK_OK(moments_add(host, b->pool, in->x, in->q, in->k, in->v, WINDOWS, T, &e), e);
    CHECK_OK(moments_device_new(&dev, b, other, BATCH * T, T, &e), e);
    CHECK(dev != NULL, "%s", name);
    for (int at = 0; dev && at < WINDOWS; at += BATCH) {
        size_t row = (size_t)at * T;
        moments_device_add(dev, in->x + row * D, in->q + row * H * d, in->k + row * G * d,
                           in->v + row * G * d, WINDOWS - at < BATCH ? WINDOWS - at : BATCH);
    }
    CHECK_OK(dev ? moments_device_collect(dev, &e) : e.status, e);
    CHECK_OK(moments_finish(host, &want, &e), e);
    CHECK_OK(moments_finish(other, &got, &e), e);
    compare(&got, &want, name);
    moments_done(&want), moments_done(&got);
    moments_device_free(dev);
    moments_accum_free(host), moments_accum_free(other);
}

static void test_forms(struct backend *b)
{
    struct moments_shape s = {.H = H, .G = G, .d = d, .D = 40, .rope_dim = d};
    struct input wide, narrow;
    input_init(&wide, 40);
    input_init(&narrow, 20);
    test_form(b, &s, &wide, "each head its own");
    s.groups = 2;
    test_form(b, &s, &wide, "two groups");
    s.groups = 1, s.window = 7, s.softcap = 2, s.magnitude = 1.2, s.rope_dim = 4;
    test_form(b, &s, &wide, "one group, window, soft cap, half the head rotates");
    struct moments_shape a = {.H = H, .G = G, .d = d, .D = 20, .rope_dim = d, .affine = true};
    test_form(b, &a, &narrow, "affine");
    a.constant = true, a.groups = 2;
    test_form(b, &a, &narrow, "affine with biases, two groups");
    input_done(&wide), input_done(&narrow);
}

/* ---- the subspace ---- */

enum { N = 48, RANK = 24, ROWS = 4096, BLOCK = 512 };

static float tf32(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = (u + 0xfff + (u >> 13 & 1)) & 0xffffe000u; /* 10 bits after the point, ties to even */
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Eigenvectors of the moment in rows, ascending; fold: fp32 within BLOCK rows, fp64 across. */
static void eigenvectors(const float *x, bool fold, bool rounded, double *u)
{
    static float part[N * N], row[BLOCK * N];
    double w[N];
    struct err e = {0};
    memset(u, 0, N * N * sizeof *u);
    for (int at = 0; at < ROWS; at += BLOCK) {
        const float *from = x + (size_t)at * N;
        for (int i = 0; i < BLOCK * N; i++)
            row[i] = rounded ? tf32(from[i]) : from[i];
        memset(part, 0, sizeof part);
        linalg_ssyrk_add(NULL, N, BLOCK, row, N, part, N);
        for (int i = 0; i < N; i++)
            for (int j = i; j < N; j++) {
                double sum = part[i * N + j];
                if (!fold && !rounded) {
                    sum = 0;
                    for (int t = 0; t < BLOCK; t++)
                        sum += (double)from[t * N + i] * from[t * N + j];
                }
                u[i * N + j] += sum;
                u[j * N + i] = u[i * N + j];
            }
    }
    CHECK_OK(linalg_eigh(N, u, w, &e), e);
}

/* The largest sine of an angle between the kept subspaces is at most this: √ of what of b's kept
 * vectors lies outside a's. */
static double turned(const double *a, const double *b)
{
    double out = 0;
    for (int i = N - RANK; i < N; i++)
        for (int k = 0; k < N - RANK; k++) {
            double dot = 0;
            for (int j = 0; j < N; j++)
                dot += b[i * N + j] * a[k * N + j];
            out += dot * dot;
        }
    return sqrt(out);
}

/* Activations as models have them: sizes over four decades, mixed by a random basis. */
static void test_subspace(void)
{
    static double exact[N * N], fold[N * N], rounded[N * N], basis[N][N];
    float *x = malloc(ROWS * N * sizeof *x);
    uint64_t seed = 11;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            basis[i][j] = test_normal(&seed) / sqrt(N);
    for (int t = 0; t < ROWS; t++) {
        double row[N] = {0};
        for (int i = 0; i < N; i++) {
            double size = pow(10, -4.0 * i / N) * test_normal(&seed);
            for (int j = 0; j < N; j++)
                row[j] += size * basis[i][j];
        }
        for (int j = 0; j < N; j++)
            x[t * N + j] = (float)row[j];
    }
    eigenvectors(x, false, false, exact);
    eigenvectors(x, true, false, fold);
    eigenvectors(x, true, true, rounded);
    double ours = turned(exact, fold), coarse = turned(exact, rounded);
    printf("kept subspace: sin of the angle %.1e with fp32 blocks, %.1e with TF32 inputs\n", ours,
           coarse);
    /* What conversion needs is that the energy lost to the turn, the square of this, is nothing
     * beside 1e-4, the finest step of a plan's error: 1e-3 allows it a hundredth of that. The bound
     * from the format: √BLOCK·2⁻²⁴ = 1.3e-6 of the largest eigenvalue, over a gap of 1e-3 of it
     * around RANK's (10⁻⁴ squared by halves), is 1.3e-3 when all errors add up. TF32 has 2⁻¹¹
     * instead of 2⁻²⁴ for each input, which averages over the rows: several times further. */
    CHECK(ours < 1e-3, "%g", ours);
    CHECK(coarse > 3 * ours, "TF32 %g", coarse);
    free(x);
}

int main(void)
{
    struct err e = {0};
    struct backend *b = NULL;
    CHECK_OK(backend_open(&b, "ref", &(struct backend_options){.threads = 1}, &e), e);
    if (b) {
        b->algebra = &ref_algebra_ops;
        test_forms(b);
    }
    backend_close(b);
    test_subspace();
    return test_end("moments_device");
}

/* The accumulated moments against plain loops in double, straight from their definitions. */
#include <complex.h>

#include "core/moments.h"
#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "tests/support.h"

enum { H = 4, G = 2, d = 8, D = 24, T = 17, W = 3, N = 2 * G * d };

struct input {
    float q[W * T][H * d], k[W * T][G * d], v[W * T][G * d], wo[D][H * d];
    double freq[d / 2], scale;
};

/* p_mn of head h in window w; rotated logits from the complex form. */
static void weights(const struct input *in, int w, int h, double p[T][T])
{
    int g = h / (H / G);
    for (int m = 0; m < T; m++) {
        double sum = 0;
        for (int n = 0; n <= m; n++) {
            double y = 0;
            for (int j = 0; j < d / 2; j++) {
                const float *q = in->q[w * T + m] + h * d, *k = in->k[w * T + n] + g * d;
                double complex z = (q[j] - I * q[j + d / 2]) * (k[j] + I * k[j + d / 2]);
                y += creal(z * cexp(I * in->freq[j] * (n - m)));
            }
            sum += p[m][n] = exp(in->scale * y);
        }
        for (int n = 0; n < T; n++)
            p[m][n] = n <= m ? p[m][n] / sum : 0;
    }
}

static double z_at(const struct input *in, int row, int i)
{
    return i < G * d ? in->k[row][i] : in->v[row][i - G * d];
}

/* x W_O,hᵀ, squared norm. */
static double output_norm(const struct input *in, int h, const double *x)
{
    double sum = 0;
    for (int o = 0; o < D; o++) {
        double y = 0;
        for (int j = 0; j < d; j++)
            y += in->wo[o][h * d + j] * x[j];
        sum += y * y;
    }
    return sum;
}

static void naive_head(const struct input *in, int h, double *cko, double *cv, double *cvi)
{
    static double p[T][T];
    int g = h / (H / G);
    for (int w = 0; w < W; w++) {
        weights(in, w, h, p);
        for (int m = 0; m < T; m++) {
            double zb[N] = {0}, gap[d], vn[d];
            for (int n = 0; n <= m; n++)
                for (int i = 0; i < N; i++)
                    zb[i] += p[m][n] * z_at(in, w * T + n, i);
            for (int i = 0; i < N; i++)
                for (int j = 0; j < N; j++)
                    cv[i * N + j] += zb[i] * zb[j] / (W * T);
            for (int n = 0; n <= m; n++) {
                for (int j = 0; j < d; j++) {
                    vn[j] = in->v[w * T + n][g * d + j];
                    gap[j] = vn[j] - zb[G * d + g * d + j];
                }
                double p2 = p[m][n] * p[m][n], u = output_norm(in, h, gap);
                *cvi += p2 * output_norm(in, h, vn) / (W * T);
                for (int i = 0; i < N; i++)
                    for (int j = 0; j < N; j++)
                        cko[i * N + j] +=
                            p2 * u * z_at(in, w * T + n, i) * z_at(in, w * T + n, j) / (W * T);
            }
        }
    }
}

/* ψ of head h for query a and key n of the first window. */
static void features(const struct input *in, const struct moments *m, int h, int a, int n,
                     double *out)
{
    for (int g = 0; g < G; g++) {
        for (int j = 0; j < d / 2; j++) {
            const float *q = in->q[a] + h * d, *k = in->k[n] + g * d;
            double complex z = (q[j] - I * q[j + d / 2]) * (k[j] + I * k[j + d / 2]);
            double complex r = z * cexp(I * in->freq[j] * (n - a));
            out[moments_feature(&m->shape, false, g, j)] = creal(z);
            out[moments_feature(&m->shape, false, g, j) + 1] = cimag(z);
            out[moments_feature(&m->shape, true, g, j)] = creal(r);
            out[moments_feature(&m->shape, true, g, j) + 1] = cimag(r);
        }
    }
}

enum { F = 4 * G * (d / 2) };

static void check_phase(const struct input *in, const struct moments *m, int h, int step)
{
    static double p[T][T], want[F * F], got[F * F];
    double x[F];
    int queries = 0;
    double complex turn[d / 2] = {0};
    weights(in, 0, h, p);
    memset(want, 0, sizeof want);
    for (int a = step - 1; a < T; a += step, queries++) {
        double mean[F] = {0};
        for (int n = 0; n <= a; n++) {
            features(in, m, h, a, n, x);
            for (int i = 0; i < F; i++)
                mean[i] += p[a][n] * x[i];
            for (int j = 0; j < d / 2; j++)
                turn[j] += p[a][n] * cexp(I * in->freq[j] * (n - a));
        }
        for (int n = 0; n <= a; n++) {
            features(in, m, h, a, n, x);
            for (int i = 0; i < F * F; i++)
                want[i] += p[a][n] * (x[i / F] - mean[i / F]) * (x[i % F] - mean[i % F]);
        }
    }
    for (int j = 0; j < d / 2; j++) {
        const double *got2 = m->turn + 2 * (h * (d / 2) + j);
        /* keys with weights below 1e-5 are left out */
        CHECK(cabs(turn[j] / queries - (got2[0] + I * got2[1])) < 1e-3, "turn %d of head %d", j, h);
    }
    for (int i = 0; i < F * F; i++) {
        want[i] /= queries;
        got[i] = moments_phase(m, h, i / F, i % F);
    }
    CHECK(moments_features(&m->shape) == F, "%d features", moments_features(&m->shape));
    /* keys with weights below 1e-5 are left out, sums are fp32 */
    CHECK(test_gap(got, want, F * F) < 1e-3, "phase of head %d: %g", h, test_gap(got, want, F * F));
}

static void check_moments(const struct input *in, const struct moments *m)
{
    double *full = malloc(N * N * sizeof *full), *cko = malloc(N * N * sizeof *cko);
    double *cv = malloc(N * N * sizeof *cv), c[N * N] = {0};
    for (int row = 0; row < W * T; row++)
        for (int i = 0; i < N * N; i++)
            c[i] += z_at(in, row, i / N) * z_at(in, row, i % N) / (W * T);
    CHECK(test_gap(m->c, c, N * N) < 1e-5, "E[zz']"); /* fp32 block sums */
    for (int h = 0; h < H; h++) {
        double cvi = 0, mh[d * d] = {0};
        memset(cko, 0, N * N * sizeof *cko);
        memset(cv, 0, N * N * sizeof *cv);
        naive_head(in, h, cko, cv, &cvi);
        moments_unpack(m->cko, N, h, full);
        CHECK(test_gap(full, cko, N * N) < 1e-4, "CKo of head %d: %g", h,
              test_gap(full, cko, N * N));
        moments_unpack(m->cv, N, h, full);
        CHECK(test_gap(full, cv, N * N) < 1e-5, "CV of head %d", h);
        CHECK(fabs(m->cvi[h] - cvi) < 1e-5 * cvi, "CVi of head %d: %g, %g", h, m->cvi[h], cvi);
        for (int row = 0; row < W * T; row++)
            for (int i = 0; i < d * d; i++)
                mh[i] += (double)in->q[row][h * d + i / d] * in->q[row][h * d + i % d] / (W * T);
        CHECK(test_gap(m->m + h * d * d, mh, d * d) < 1e-5, "M of head %d", h);
        check_phase(in, m, h, 4);
    }
    free(full);
    free(cko);
    free(cv);
}

int main(void)
{
    static struct input in;
    struct err e = {0};
    uint64_t seed = 7;
    for (float *x = &in.q[0][0]; x < &in.wo[0][0] + D * H * d; x++)
        *x = (float)test_normal(&seed);
    for (int j = 0; j < d / 2; j++)
        in.freq[j] = pow(10000, -2.0 * j / d);
    in.scale = 0.2;
    struct moments_shape shape = {.H = H, .G = G, .d = d, .D = D, .rope_dim = d};
    struct moments_accum *a;
    struct moments m;
    struct pool *pool;
    linalg_init();
    CHECK_OK(pool_new(&pool, 2, false, &e), e);
    CHECK_OK(moments_accum_new(&a, &shape, &in.wo[0][0], in.freq, in.scale, 2, &e), e);
    CHECK_OK(moments_add(a, pool, NULL, &in.q[0][0], &in.k[0][0], &in.v[0][0], 2, T, &e), e);
    double change;
    CHECK_OK(moments_look(a, &change, &e), e);
    CHECK(change == -1, "a first look knows no change: %g", change);
    CHECK_OK(moments_add(a, pool, NULL, in.q[2 * T], in.k[2 * T], in.v[2 * T], 1, T, &e), e);
    CHECK_OK(moments_look(a, &change, &e), e);
    CHECK(change > 0 && change < 1, "a third more tokens changed spectra by %g", change);
    CHECK_OK(moments_look(a, &change, &e), e);
    CHECK(change == 0, "nothing more changed spectra by %g", change);
    CHECK_OK(moments_add_phase(a, pool, &in.q[0][0], &in.k[0][0], T, 4, &e), e);
    CHECK_OK(moments_finish(a, &m, &e), e);
    check_moments(&in, &m);
    in.q[0][0] = NAN;
    CHECK_OK(moments_add(a, pool, NULL, &in.q[0][0], &in.k[0][0], &in.v[0][0], 1, T, &e), e);
    moments_done(&m);
    CHECK(moments_finish(a, &m, &e) == ERR_NUMERIC, "NaN must be refused");
    moments_accum_free(a);
    pool_free(pool);
    return test_end("moments");
}

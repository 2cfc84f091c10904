/* The conventions that linalg.h states, by properties: products against plain loops for every
 * transposition, whatever the threads; eigenvectors in rows that reproduce the matrix; solutions
 * that solve; and refusals of what is not definite. */
#include <complex.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "tests/support.h"

static uint64_t seed = 99;

static double *numbers(size_t n)
{
    double *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = test_normal(&seed);
    return x;
}

/* op(A)[i][l] with A stored lda apart. */
static double at(const double *a, int lda, bool t, int i, int l)
{
    return t ? a[(size_t)l * lda + i] : a[(size_t)i * lda + l];
}

static void test_gemm(struct pool *p, bool ta, bool tb, int m, int n, int k)
{
    int lda = (ta ? m : k) + 3, ldb = (tb ? k : n) + 2, ldc = n + 1;
    size_t na = (size_t)(ta ? k : m) * lda, nb = (size_t)(tb ? n : k) * ldb, nc = (size_t)m * ldc;
    double *a = numbers(na), *b = numbers(nb), *c = numbers(nc), *want = malloc(nc * sizeof *c);
    float *fa = malloc(na * 4), *fb = malloc(nb * 4), *fc = malloc(nc * 4);
    for (size_t i = 0; i < na; i++)
        fa[i] = (float)a[i];
    for (size_t i = 0; i < nb; i++)
        fb[i] = (float)b[i];
    for (size_t i = 0; i < nc; i++)
        fc[i] = (float)c[i];
    memcpy(want, c, nc * sizeof *c);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int l = 0; l < k; l++)
                s += at(a, lda, ta, i, l) * at(b, ldb, tb, l, j);
            want[(size_t)i * ldc + j] = 0.5 * s - 2 * c[(size_t)i * ldc + j];
        }
    linalg_dgemm(p, ta, tb, m, n, k, 0.5, a, lda, b, ldb, -2, c, ldc);
    linalg_sgemm(p, ta, tb, m, n, k, 0.5f, fa, lda, fb, ldb, -2, fc, ldc);
    double worst = 0, worst_single = 0;
    for (size_t i = 0; i < nc; i++) { /* the gaps between rows too: they must stay */
        worst = fmax(worst, fabs(c[i] - want[i]));
        worst_single = fmax(worst_single, fabs(fc[i] - want[i]));
    }
    /* Sums of k products near 1: rounding about √k·ε, and inputs rounded to fp32 likewise. */
    CHECK(worst < 1e-14 * (k + 10), "dgemm %d%d %d %d %d: %g", ta, tb, m, n, k, worst);
    CHECK(worst_single < 2e-6 * (sqrt(k) + 10), "sgemm %d%d %d %d %d: %g", ta, tb, m, n, k,
          worst_single);
    free(a), free(b), free(c), free(want), free(fa), free(fb), free(fc);
}

static void test_syrk(int n, int k)
{
    float *a = malloc((size_t)n * k * 4), *c = malloc((size_t)n * n * 4);
    for (int i = 0; i < n * k; i++)
        a[i] = (float)test_normal(&seed);
    for (int i = 0; i < n * n; i++)
        c[i] = 7;
    linalg_ssyrk_add(NULL, n, k, a, n, c, n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double s = 7;
            for (int l = 0; l < k; l++)
                s += (double)a[(size_t)l * n + i] * a[(size_t)l * n + j];
            double got = c[(size_t)i * n + j], want = j >= i ? s : 7;
            CHECK(fabs(got - want) < 1e-4, "syrk %d %d: %g for %g", i, j, got, want);
        }
    free(a), free(c);
}

static void test_eigh(int n)
{
    struct err e = {0};
    double *r = numbers((size_t)n * n), *a = malloc((size_t)n * n * sizeof *a);
    double *v = malloc((size_t)n * n * sizeof *v), *w = malloc((size_t)n * sizeof *w);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            v[i * n + j] = a[i * n + j] = r[i * n + j] + r[j * n + i];
    CHECK_OK(linalg_eigh(n, v, w, &e), e);
    double worst = 0, skew = 0;
    for (int i = 0; i < n; i++) {
        CHECK(i == 0 || w[i] >= w[i - 1], "eigenvalue %d is out of order", i);
        for (int j = 0; j < n; j++) {
            double product = 0, dot = 0;
            for (int l = 0; l < n; l++) {
                product += a[j * n + l] * v[i * n + l];
                dot += v[i * n + l] * v[j * n + l];
            }
            worst = fmax(worst, fabs(product - w[i] * v[i * n + j]));
            skew = fmax(skew, fabs(dot - (i == j)));
        }
    }
    /* Backward stable: errors are a modest multiple of n·ε·‖A‖ with ‖A‖ ≈ 3√n. */
    CHECK(worst < 1e-13 * n * sqrt(n) + 1e-13, "eigh %d: residual %g", n, worst);
    CHECK(skew < 1e-13 * n, "eigh %d: not orthonormal by %g", n, skew);
    free(r), free(a), free(v), free(w);
}

static void test_eigh_complex(int n)
{
    struct err e = {0};
    double *re = numbers((size_t)n * n), *im = numbers((size_t)n * n);
    double complex *a = malloc((size_t)n * n * sizeof *a), *u = malloc((size_t)n * n * sizeof *u);
    double *w = malloc((size_t)n * sizeof *w);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            u[i * n + j] = a[i * n + j] =
                re[i * n + j] + re[j * n + i] + (im[i * n + j] - im[j * n + i]) * I;
    CHECK_OK(linalg_eigh_complex(n, u, w, &e), e);
    double worst = 0, skew = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double complex product = 0, dot = 0;
            for (int l = 0; l < n; l++) {
                product += a[j * n + l] * u[i * n + l];
                dot += conj(u[i * n + l]) * u[j * n + l];
            }
            worst = fmax(worst, cabs(product - w[i] * u[i * n + j]));
            skew = fmax(skew, cabs(dot - (i == j)));
        }
    CHECK(worst < 1e-13 * n * sqrt(n) + 1e-13, "complex eigh %d: residual %g", n, worst);
    CHECK(skew < 1e-13 * n, "complex eigh %d: not unitary by %g", n, skew);
    free(re), free(im), free(a), free(u), free(w);
}

static void test_definite(int n, int m)
{
    struct err e = {0};
    double *r = numbers((size_t)n * n), *a = malloc((size_t)n * n * sizeof *a);
    double *b = numbers((size_t)n * m), *x = malloc((size_t)n * m * sizeof *x);
    double *f = malloc((size_t)n * n * sizeof *f), *l = malloc((size_t)n * n * sizeof *l);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double s = i == j ? n : 0; /* the shift keeps the condition near 5 */
            for (int h = 0; h < n; h++)
                s += r[i * n + h] * r[j * n + h];
            a[i * n + j] = s;
        }
    memcpy(f, a, (size_t)n * n * sizeof *f);
    memcpy(l, a, (size_t)n * n * sizeof *l);
    memcpy(x, b, (size_t)n * m * sizeof *x);
    CHECK_OK(linalg_solve_spd(n, m, f, x, &e), e);
    CHECK_OK(linalg_cholesky(n, l, &e), e);
    double worst = 0, gap = 0;
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < m; j++) {
            double s = 0;
            for (int h = 0; h < n; h++)
                s += a[i * n + h] * x[h * m + j];
            worst = fmax(worst, fabs(s - b[i * m + j]));
        }
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int h = 0; h < n; h++)
                s += l[i * n + h] * l[j * n + h];
            gap = fmax(gap, fabs(s - a[i * n + j]));
            CHECK(j <= i || l[i * n + j] == 0, "cholesky: %d %d above the diagonal", i, j);
        }
    }
    CHECK(worst < 1e-12 * n, "solve %d × %d: residual %g", n, m, worst);
    CHECK(gap < 1e-13 * n * n, "cholesky %d: %g", n, gap);
    free(r), free(a), free(b), free(x), free(f), free(l);
}

static void test_refusals(void)
{
    struct err e = {0};
    double a[4] = {1, 2, 2, 1}, b[2] = {1, 1}, c[4] = {1, 2, 2, 1};
    CHECK(linalg_solve_spd(2, 1, a, b, &e) == ERR_NUMERIC && e.text[0], "%s", e.text);
    e.text[0] = 0;
    CHECK(linalg_cholesky(2, c, &e) == ERR_NUMERIC && e.text[0], "%s", e.text);
}

int main(void)
{
    struct err e = {0};
    struct pool *p = NULL;
    linalg_init();
    CHECK_OK(pool_new(&p, 3, false, &e), e);
    for (int t = 0; t < 4; t++) {
        test_gemm(p, t & 1, t & 2, 3, 5, 7);
        test_gemm(NULL, t & 1, t & 2, 1, 1, 1);
        test_gemm(p, t & 1, t & 2, 131, 90, 200); /* several bands, a ragged last one */
        test_gemm(p, t & 1, t & 2, 1000, 40, 64);
    }
    test_syrk(33, 50);
    test_syrk(1, 1);
    static const int sizes[] = {1, 2, 17, 90};
    for (int i = 0; i < 4; i++) {
        test_eigh(sizes[i]);
        test_eigh_complex(sizes[i]);
        test_definite(sizes[i], 3);
        test_definite(sizes[i], 1);
    }
    test_refusals();
    pool_free(p);
    return test_end("linalg");
}

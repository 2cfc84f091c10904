/* The conversion's algebra as plain loops with sums in double: the definition that other backends
 * are tested against, and the choice of who solves an eigenproblem. Refuses nothing. */
#include "kernels/algebra.h"

#include <math.h>
#include <string.h>

#include "kernels/linalg.h"

static void ref_gemm(struct backend *b, const struct algebra_gemm *g)
{
    (void)b;
    for (int i = 0; i < g->count; i++) {
        const float *x = g->a + (size_t)i * g->step_a, *y = g->b + (size_t)i * g->step_b;
        float *c = g->c + (size_t)i * g->step_c;
        for (size_t r = 0; r < (size_t)g->m; r++)
            for (size_t s = 0; s < (size_t)g->n; s++) {
                double sum = 0;
                for (size_t k = 0; k < (size_t)g->k; k++)
                    sum += (double)(g->ta ? x[k * (size_t)g->lda + r] : x[r * (size_t)g->lda + k]) *
                           (g->tb ? y[s * (size_t)g->ldb + k] : y[k * (size_t)g->ldb + s]);
                float *to = c + r * (size_t)g->ldc + s;
                *to = (float)(g->alpha * sum + (g->beta != 0 ? g->beta * (double)*to : 0));
            }
    }
}

static void ref_syrk_add(struct backend *b, int n, int k, const float *a, int lda, float *c)
{
    (void)b;
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++) {
            double sum = 0;
            for (int t = 0; t < k; t++)
                sum += (double)a[(size_t)t * (size_t)lda + (size_t)i] *
                       a[(size_t)t * (size_t)lda + (size_t)j];
            c[(size_t)i * (size_t)n + (size_t)j] += (float)sum;
        }
}

static void ref_fold(struct backend *b, double *total, float *c, int n)
{
    (void)b;
    for (int i = 0; i < n; i++)
        for (int j = i; j < n; j++)
            *total++ += c[(size_t)i * (size_t)n + (size_t)j];
    memset(c, 0, (size_t)n * (size_t)n * sizeof *c);
}

static void ref_softmax(struct backend *b, float *P, int count, int T, int window, float softcap)
{
    (void)b;
    for (int i = 0; i < count * T; i++) {
        int m = i % T, first = window > 0 && m >= window ? m - window + 1 : 0;
        float *row = P + (size_t)i * (size_t)T;
        double top = -INFINITY, sum = 0;
        for (int n = first; n <= m; n++) {
            if (softcap > 0)
                row[n] = softcap * tanhf(row[n] / softcap);
            top = fmax(top, row[n]);
        }
        for (int n = first; n <= m; n++)
            sum += exp(row[n] - top);
        for (int n = 0; n < T; n++)
            row[n] = n < first || n > m ? 0 : (float)(exp(row[n] - top) / sum);
    }
}

static void ref_row_dots(struct backend *b, float *out, const float *x, int ldx, const float *y,
                         int ldy, int n, int rows)
{
    (void)b;
    for (int i = 0; i < rows; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++)
            sum += (double)x[(size_t)i * (size_t)ldx + (size_t)j] *
                   y[(size_t)i * (size_t)ldy + (size_t)j];
        out[i] = (float)sum;
    }
}

static void ref_keys(struct backend *b, const struct algebra_keys *a)
{
    (void)b;
    for (int i = 0; i < a->count * a->T; i++) {
        int n = i % a->T, row0 = i - n;
        double key = 0, squares = 0;
        for (int m = n; m < a->T; m++) {
            size_t at = (size_t)(row0 + m) * (size_t)a->T + (size_t)n;
            double p2 = (double)a->P[at] * a->P[at];
            key += p2 * fmax(0, a->v[i] - 2 * a->U[at] + a->o[row0 + m]);
            squares += p2;
        }
        a->key[i] += (float)key;
        a->share[i] += squares * a->v[i];
    }
}

static void ref_weigh_rows(struct backend *b, float *out, const float *y, const float *weight,
                           int n, int rows)
{
    (void)b;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < n; j++)
            out[(size_t)i * (size_t)n + (size_t)j] =
                sqrtf(weight[i]) * y[(size_t)i * (size_t)n + (size_t)j];
}

static double log_sum(const float *x, int n)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        top = fmax(top, x[i]);
    for (int i = 0; i < n; i++)
        sum += exp(x[i] - top);
    return top + log(sum);
}

static void ref_divergence(struct backend *b, float *out, const float *p, const float *q, int n,
                           int rows)
{
    (void)b;
    for (int i = 0; i < rows; i++, p += n, q += n) {
        double zp = log_sum(p, n), zq = log_sum(q, n), sum = 0;
        for (int j = 0; j < n; j++)
            sum += exp(p[j] - zp) * ((p[j] - zp) - (q[j] - zq));
        out[i] = (float)sum;
    }
}

const struct algebra_ops ref_algebra_ops = {
    .gemm = ref_gemm,
    .syrk_add = ref_syrk_add,
    .fold = ref_fold,
    .softmax = ref_softmax,
    .row_dots = ref_row_dots,
    .keys = ref_keys,
    .weigh_rows = ref_weigh_rows,
    .divergence = ref_divergence,
};

int algebra_eigh(struct backend *b, int n, double *a, double *w, struct err *e)
{
    const struct algebra_ops *op = b ? b->algebra : NULL;
    return op && op->eigh && n >= op->eigh_from ? op->eigh(b, n, a, w, e) : linalg_eigh(n, a, w, e);
}

int algebra_solve_spd(struct backend *b, int n, int m, double *a, double *x, struct err *e)
{
    const struct algebra_ops *op = b ? b->algebra : NULL;
    return op && op->solve_spd && n >= op->solve_from ? op->solve_spd(b, n, m, a, x, e)
                                                      : linalg_solve_spd(n, m, a, x, e);
}

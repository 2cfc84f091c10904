/* Queries through a narrow matrix (q_lora_rank) for an export: q ≈ b·a, the least squared error of
 * what the logits see. Inputs weigh by their second moment G, query rows by the size of what they
 * meet in the cache. With rows scaled by w and G = C Cᵀ, the best b·a of a rank keeps the leading
 * right singular vectors V of w Q C: b = Q C V, a = Vᵀ C⁻¹, which gives a's outputs size one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/stock_export.h"
#include "kernels/linalg.h"

#define DAMPING 1e-6   /* of G's mean diagonal: directions that the text never took */
#define ROW_FLOOR 1e-3 /* of the largest row weight */

void stock_queries_done(struct stock_queries *q)
{
    free(q->a);
    free(q->bias);
    free(q->b);
    *q = (struct stock_queries){0};
}

/* √(row G rowᵀ) of each row of t, whose columns are the first of G's n. */
static void row_sizes(const double *rows, int count, int cols, const double *G, int n,
                      double *scratch, double *size)
{
    linalg_dgemm(NULL, false, false, count, cols, cols, 1, rows, cols, G, n, 0, scratch, cols);
    for (int i = 0; i < count; i++) {
        double sum = 0;
        for (int j = 0; j < cols; j++)
            sum += scratch[(size_t)i * (size_t)cols + (size_t)j] *
                   rows[(size_t)i * (size_t)cols + (size_t)j];
        size[i] = sqrt(fmax(sum, 0));
    }
}

static int to_f64(const struct tensor *t, double **out, struct err *e)
{
    float *x;
    size_t n = tensor_elements(t);
    int rc = tensor_to_f32(t, &x, e);
    if (rc)
        return rc;
    *out = mem_calloc(n, sizeof **out);
    for (size_t i = 0; *out && i < n; i++)
        (*out)[i] = x[i];
    free(x);
    return *out ? OK : err_nomem(e, n * sizeof **out, "a layer's queries");
}

/* weight[H·(P+R)]: the size of the number in the cache that each query row is multiplied by. */
static int row_weights(const struct model_layer *y, int H, int n, const double *G, double *weight,
                       struct err *e)
{
    int r = y->kv_lora_rank, R = y->qk_rope_head_dim, P = y->qk_nope_head_dim;
    int V = y->v_head_dim, D = (int)y->kv_a.dim[1], head = P + R;
    size_t wide = (size_t)(r + R) * (size_t)D + (size_t)r * (size_t)r;
    double *down = NULL, *up = NULL, *work = NULL, *size = NULL, most = 0;
    int rc = to_f64(&y->kv_a, &down, e);
    if (!rc)
        rc = to_f64(&y->kv_b, &up, e);
    size_t scratch = (size_t)(P > r ? P : r) * (size_t)(D > r ? D : r);
    work = rc ? NULL : mem_calloc(wide + scratch, sizeof *work);
    size = rc ? NULL : mem_calloc((size_t)(P > R ? P : R), sizeof *size);
    if (!rc && (!work || !size))
        rc = err_nomem(e, wide * sizeof *work, "query weights");
    if (!rc) {
        double *C = work, *temp = work + (size_t)r * (size_t)r; /* latents' moments [r][r] */
        linalg_dgemm(NULL, false, false, r, D, D, 1, down, D, G, n, 0, temp, D);
        linalg_dgemm(NULL, false, true, r, r, D, 1, temp, D, down, D, 0, C, r);
        for (int h = 0; h < H; h++)
            row_sizes(up + (size_t)h * (size_t)(P + V) * (size_t)r, P, r, C, r, temp,
                      weight + (size_t)h * (size_t)head);
        row_sizes(down + (size_t)r * (size_t)D, R, D, G, n, temp, size);
        for (int i = 0; i < H * R; i++)
            weight[i / R * head + P + i % R] = size[i % R];
    }
    for (int i = 0; i < H * head && !rc; i++)
        most = fmax(most, weight[i]);
    for (int i = 0; i < H * head && !rc; i++)
        weight[i] = most > 0 ? fmax(weight[i] / most, ROW_FLOOR) : 1;
    free(down);
    free(up);
    free(work);
    free(size);
    return rc;
}

/* Q [N][n], its biases as the last column where there are any. */
static int read_queries(const struct model_layer *y, int N, int n, double *Q, struct err *e)
{
    size_t D = y->q.dim[1];
    float *row = mem_calloc(D, sizeof *row), *bias = NULL;
    int rc = row ? OK : err_nomem(e, D * sizeof *row, "a row");
    if (!rc && y->q_bias.data)
        rc = tensor_to_f32(&y->q_bias, &bias, e);
    for (int i = 0; i < N && !rc; i++) {
        tensor_row_f32(&y->q, (size_t)i, row);
        for (size_t j = 0; j < D; j++)
            Q[(size_t)i * (size_t)n + j] = row[j];
        if (bias)
            Q[(size_t)i * (size_t)n + D] = bias[i];
    }
    free(row);
    free(bias);
    return rc;
}

/* a, b and bias from Q, C (lower Cholesky factor of G) and V, the singular vectors in rows. */
static int write_factors(struct stock_queries *out, const double *Q, double *C, double *G,
                         const double *V, int N, int n, int D, int rank, struct err *e)
{
    size_t k = (size_t)rank;
    double *cv = mem_calloc((size_t)n * k + (size_t)N * k, sizeof *cv);
    double *b = cv ? cv + (size_t)n * k : NULL;
    out->a = mem_calloc(k * (size_t)D, sizeof *out->a);
    out->bias = mem_calloc(k, sizeof *out->bias);
    out->b = mem_calloc((size_t)N * k, sizeof *out->b);
    int rc = cv && out->a && out->bias && out->b
                 ? OK
                 : err_nomem(e, (size_t)(n + N) * k * sizeof *cv, "narrow queries");
    if (!rc) {
        linalg_dgemm(NULL, false, true, n, rank, n, 1, C, n, V, n, 0, cv, rank);
        linalg_dgemm(NULL, false, false, N, rank, n, 1, Q, n, cv, rank, 0, b, rank);
        for (size_t i = 0; i < (size_t)N * k; i++)
            out->b[i] = (float)b[i];
        rc = linalg_solve_spd(n, rank, G, cv, e); /* C⁻ᵀ V = G⁻¹ C V */
    }
    for (size_t i = 0; i < k && !rc; i++) {
        for (int j = 0; j < D; j++)
            out->a[i * (size_t)D + (size_t)j] = (float)cv[(size_t)j * k + i];
        out->bias[i] = n > D ? (float)cv[(size_t)D * k + i] : 0;
    }
    free(cv);
    return rc;
}

int stock_queries_make(struct stock_queries *out, const struct model_layer *y, int H, int rank,
                       double *G, int n, struct err *e)
{
    int N = (int)y->q.dim[0], D = (int)y->q.dim[1];
    size_t nn = (size_t)n * (size_t)n, qn = (size_t)N * (size_t)n;
    double mean = 0, all = 0, kept = 0;
    *out = (struct stock_queries){0};
    double *Q = mem_calloc(3 * qn + 3 * nn + (size_t)N + (size_t)n, sizeof *Q);
    if (!Q)
        return err_nomem(e, (3 * qn + 3 * nn) * sizeof *Q, "narrow queries");
    double *WQ = Q + qn, *WQC = WQ + qn, *C = WQC + qn, *U = C + nn, *V = U + nn;
    double *weight = V + nn, *val = weight + N;
    for (int i = 0; i < n; i++)
        mean += G[(size_t)i * (size_t)(n + 1)] / n;
    for (int i = 0; i < n; i++)
        G[(size_t)i * (size_t)(n + 1)] += DAMPING * mean;
    int rc = read_queries(y, N, n, Q, e);
    if (!rc)
        rc = row_weights(y, H, n, G, weight, e);
    memcpy(C, G, nn * sizeof *C);
    if (!rc)
        rc = linalg_cholesky(n, C, e);
    for (size_t i = 0; i < qn && !rc; i++)
        WQ[i] = weight[i / (size_t)n] * Q[i];
    if (!rc) {
        linalg_dgemm(NULL, false, false, N, n, n, 1, WQ, n, C, n, 0, WQC, n);
        linalg_dgemm(NULL, true, false, n, n, N, 1, WQC, n, WQC, n, 0, U, n);
        rc = linalg_eigh(n, U, val, e);
    }
    for (int i = 0; i < n && !rc; i++) {
        all += fmax(val[i], 0);
        kept += i >= n - rank ? fmax(val[i], 0) : 0;
    }
    for (int i = 0; i < rank && !rc; i++)
        memcpy(V + (size_t)i * (size_t)n, U + (size_t)(n - 1 - i) * (size_t)n,
               (size_t)n * sizeof *V);
    if (!rc)
        rc = write_factors(out, Q, C, G, V, N, n, D, rank, e);
    out->kept = all > 0 ? kept / all : 1;
    free(Q);
    if (rc)
        stock_queries_done(out);
    return rc;
}

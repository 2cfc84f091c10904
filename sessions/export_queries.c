/* Narrow queries of an export: the factors from the second moments of the layers' inputs, and the
 * model that they make, which the export is then compared with: what narrowing loses is told apart
 * from what writing does. */
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "sessions/export_inputs.h"

int export_queries(struct export_job *j, struct err *e)
{
    struct export_inputs in;
    int L = j->model->hp.n_layer;
    int rc = export_inputs_init(&in, j, j->x.biased, 0, e);
    j->x.narrow = mem_calloc((size_t)L, sizeof *j->x.narrow);
    if (!rc && !j->x.narrow)
        rc = err_nomem(e, (size_t)L * sizeof *j->x.narrow, "narrow queries");
    for (int l = 0; l < L && !rc; l++) {
        if (!progress_report(j->p, "narrowing queries", l, L))
            rc = err_set(e, ERR_CANCELLED, "export stopped");
        if (!rc)
            rc = export_inputs_layer(&in, l, e);
        if (!rc)
            rc = stock_queries_make(&j->x.narrow[l], &j->x.m->layer[l], j->model->hp.n_head,
                                    j->x.narrow_rank, in.G, in.n, e);
        if (!rc)
            j->report->query_kept += j->x.narrow[l].kept / L;
    }
    export_inputs_done(&in);
    return rc;
}

/* q = b·a and its bias of one layer. */
static int multiply(const struct stock_queries *q, int rank, struct model_layer *y, float **made,
                    struct err *e)
{
    size_t N = y->q.dim[0], D = y->q.dim[1], k = (size_t)rank;
    float *dense = mem_aligned(N * D + N, sizeof *dense), *bias = dense ? dense + N * D : NULL;
    *made = dense;
    if (!dense)
        return err_nomem(e, N * D * sizeof *dense, "narrow queries");
    linalg_sgemm(NULL, false, false, (int)N, (int)D, rank, 1, q->b, rank, q->a, (int)D, 0, dense,
                 (int)D);
    for (size_t i = 0; i < N; i++) {
        bias[i] = 0;
        for (size_t c = 0; c < k; c++)
            bias[i] += q->b[i * k + c] * q->bias[c];
    }
    y->q = (struct tensor){.data = dense, .dtype = DTYPE_F32, .rank = 2, .dim = {N, D}};
    if (y->q_bias.data)
        y->q_bias = (struct tensor){.data = bias, .dtype = DTYPE_F32, .rank = 1, .dim = {N}};
    return OK;
}

int export_narrowed_new(struct export_narrowed *n, const struct export_job *j, struct err *e)
{
    size_t L = (size_t)j->model->hp.n_layer;
    *n = (struct export_narrowed){.model = *j->x.m, .n = L};
    n->model.layer = mem_calloc(L, sizeof *n->model.layer);
    n->made = mem_calloc(L, sizeof *n->made);
    int rc = n->model.layer && n->made ? OK : err_nomem(e, L * sizeof *n->made, "narrow queries");
    for (size_t l = 0; l < L && !rc; l++) {
        n->model.layer[l] = j->x.m->layer[l];
        rc = multiply(&j->x.narrow[l], j->x.narrow_rank, &n->model.layer[l], &n->made[l], e);
    }
    return rc;
}

void export_narrowed_free(struct export_narrowed *n)
{
    for (size_t l = 0; n->made && l < n->n; l++)
        free(n->made[l]);
    free(n->made);
    free(n->model.layer);
}

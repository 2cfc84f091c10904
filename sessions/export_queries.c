/* Narrow queries of an export: the second moments of the layers' inputs from a pass over text (or
 * from the norms' weights alone), the factors, and the model that they make, which the export is
 * then compared with: what narrowing loses is told apart from what writing does. */
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "sessions/export.h"
#include "sessions/states.h"

#define QUERY_TOKENS 4096 /* unless told */

/* The tap of a pass: adds a batch's inputs to the moments of its layer. */
struct inputs {
    struct backend *b;
    float *x, *block; /* host: [rows][D], [D][D] */
    double *G;        /* [n][n] */
    int D, n;
};

static void add_inputs(void *user, int layer, const float *x, const float *q, const float *k,
                       const float *v, int rows)
{
    struct inputs *in = user;
    size_t D = (size_t)in->D, n = (size_t)in->n;
    (void)layer;
    (void)q;
    (void)k;
    (void)v;
    in->b->ops->get(in->b, in->x, x, (size_t)rows * D * sizeof *x);
    linalg_sgemm(in->b->pool, true, false, in->D, in->D, rows, 1, in->x, in->D, in->x, in->D, 0,
                 in->block, in->D);
    for (size_t i = 0; i < D; i++)
        for (size_t j = 0; j < D; j++)
            in->G[i * n + j] += (double)in->block[i * D + j];
    for (size_t t = 0; n > D && t < (size_t)rows; t++)
        for (size_t j = 0; j < D; j++)
            in->G[D * n + j] += (double)in->x[t * D + j];
    for (size_t j = 0; n > D && j < D; j++)
        in->G[j * n + D] = in->G[D * n + j];
    if (n > D)
        in->G[D * n + D] += rows;
}

/* As if every direction of the normed input were as likely: the norm's weights alone. */
static int unit_inputs(const struct model_layer *y, int n, double *G, struct err *e)
{
    float *gamma;
    int rc = tensor_to_f32(&y->attn_norm, &gamma, e), D = (int)y->q.dim[1];
    for (int i = 0; i < n && !rc; i++)
        G[(size_t)i * (size_t)(n + 1)] = i < D ? (double)gamma[i] * gamma[i] : 1;
    if (!rc)
        free(gamma);
    return rc;
}

struct pass {
    struct calib_text text;
    struct backend *b;
    struct engine *g;
    struct states s;
    struct inputs in;
};

static int pass_init(struct pass *p, const struct export_job *j, struct err *e)
{
    const struct export_options *o = j->o;
    const struct model *m = j->model;
    struct backend_options opt = {.exact = true, .background = true};
    size_t D = (size_t)m->hp.hidden;
    if (!j->tokenizer)
        return err_set(e, ERR_UNSUPPORTED, "%s: without a tokenizer no text can be read",
                       m->hp.name);
    struct calib_options text = {.files = o->files,
                                 .n_files = o->n_files,
                                 .tokens = o->tokens ? o->tokens : QUERY_TOKENS,
                                 .seed = CALIB_SEED};
    int rc = calib_text_files(&p->text, j->tokenizer, &text, m->hp.context, e);
    if (!rc)
        rc = backend_open(&p->b, "cpu", &opt, e);
    if (!rc)
        rc = engine_new(&p->g, m, p->b, NULL, e);
    if (!rc)
        rc = states_init(&p->s, p->g, &p->text, e);
    if (rc)
        return rc;
    p->in.b = p->b;
    p->in.x = mem_aligned((size_t)states_group_rows(&p->text) * D, sizeof(float));
    p->in.block = mem_aligned(D * D, sizeof(float));
    return p->in.x && p->in.block ? OK : err_nomem(e, D * D * sizeof(float), "input moments");
}

static void pass_done(struct pass *p)
{
    states_done(&p->s);
    engine_free(p->g);
    backend_close(p->b);
    calib_text_done(&p->text);
    free(p->in.x);
    free(p->in.block);
}

/* G of layer l, and the text's states through the layer. */
static int layer_inputs(struct pass *p, const struct export_job *j, int l, struct err *e)
{
    struct states_group group;
    struct forward_tap tap = {add_inputs, &p->in};
    if (!j->o->n_files)
        return unit_inputs(&j->model->layer[l], p->in.n, p->in.G, e);
    for (int i = 0; states_group(&p->text, i, &group); i++)
        states_layer(&p->s, l, &group, &tap);
    double rows = states_rows(&p->text);
    for (size_t i = 0; i < (size_t)p->in.n * (size_t)p->in.n; i++)
        p->in.G[i] /= rows;
    return OK;
}

int export_queries(struct export_job *j, struct err *e)
{
    struct pass p = {0};
    int L = j->model->hp.n_layer, D = j->model->hp.hidden, rc = OK;
    j->x.narrow = mem_calloc((size_t)L, sizeof *j->x.narrow);
    p.in.D = D;
    p.in.n = D + j->x.biased;
    size_t nn = (size_t)p.in.n * (size_t)p.in.n;
    p.in.G = mem_calloc(nn, sizeof *p.in.G);
    if (!j->x.narrow || !p.in.G)
        rc = err_nomem(e, nn * sizeof *p.in.G, "narrow queries");
    if (!rc && j->o->n_files)
        rc = pass_init(&p, j, e);
    for (int l = 0; l < L && !rc; l++) {
        memset(p.in.G, 0, nn * sizeof *p.in.G);
        if (!progress_report(j->p, "narrowing queries", l, L))
            rc = err_set(e, ERR_CANCELLED, "export stopped");
        if (!rc)
            rc = layer_inputs(&p, j, l, e);
        if (!rc)
            rc = stock_queries_make(&j->x.narrow[l], &j->model->layer[l], j->model->hp.n_head,
                                    j->x.narrow_rank, p.in.G, p.in.n, e);
        if (!rc)
            j->report->query_kept += j->x.narrow[l].kept / L;
    }
    free(p.in.G);
    if (p.b)
        pass_done(&p);
    else
        calib_text_done(&p.text);
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
    *n = (struct export_narrowed){.model = *j->model, .n = L};
    n->model.layer = mem_calloc(L, sizeof *n->model.layer);
    n->made = mem_calloc(L, sizeof *n->made);
    int rc = n->model.layer && n->made ? OK : err_nomem(e, L * sizeof *n->made, "narrow queries");
    for (size_t l = 0; l < L && !rc; l++) {
        n->model.layer[l] = j->model->layer[l];
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

/* Second moments of the layers' normed inputs, from a pass over text or from the norms' weights
 * alone: what narrow queries and folded biases are fitted to. */
#include "sessions/export_inputs.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"

static void add_inputs(void *user, int layer, const float *x, const float *q, const float *k,
                       const float *v, int rows)
{
    struct export_inputs *in = user;
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

static int open_text(struct export_inputs *in, const struct export_job *j, long long tokens,
                     struct err *e)
{
    const struct export_options *o = j->o;
    struct backend_options opt = {.exact = true, .background = true};
    bool self = !o->n_files || !strcmp(o->files[0], "self");
    if (!j->tokenizer && !self)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: without a tokenizer no text can be read; --calib self can be done",
                       in->m->hp.name);
    struct calib_options text = {.files = o->files,
                                 .n_files = o->n_files,
                                 .tokens = o->tokens ? o->tokens : tokens,
                                 .seed = CALIB_SEED};
    int rc = backend_open(&in->b, "cpu", &opt, e);
    if (!rc)
        rc = engine_new(&in->g, in->m, in->b, NULL, e);
    if (!rc)
        rc = self
                 ? calib_text_self(&in->text, in->g, j->tokenizer, text.tokens, CALIB_SEED, j->p, e)
                 : calib_text_files(&in->text, j->tokenizer, &text, in->m->hp.context, e);
    return rc ? rc : states_init(&in->s, in->g, &in->text, e);
}

int export_inputs_init(struct export_inputs *in, const struct export_job *j, bool constant,
                       long long tokens, struct err *e)
{
    int rc = OK, D = j->model->hp.hidden;
    *in = (struct export_inputs){.m = j->x.m, .D = D, .n = D + constant};
    size_t nn = (size_t)in->n * (size_t)in->n;
    in->G = mem_calloc(nn, sizeof *in->G);
    if (!in->G)
        return err_nomem(e, nn * sizeof *in->G, "input moments");
    if (!j->o->n_files && !tokens)
        return OK;
    rc = open_text(in, j, tokens ? tokens : EXPORT_TOKENS, e);
    if (rc)
        return rc;
    in->x = mem_aligned((size_t)states_group_rows(&in->text) * (size_t)D, sizeof(float));
    in->block = mem_aligned((size_t)D * (size_t)D, sizeof(float));
    return in->x && in->block ? OK : err_nomem(e, nn * sizeof(float), "input moments");
}

void export_inputs_done(struct export_inputs *in)
{
    if (in->b) {
        states_done(&in->s);
        engine_free(in->g);
        backend_close(in->b);
    }
    calib_text_done(&in->text);
    free(in->x);
    free(in->block);
    free(in->G);
    *in = (struct export_inputs){0};
}

int export_inputs_layer(struct export_inputs *in, int l, struct err *e)
{
    struct states_group group;
    struct forward_tap tap = {add_inputs, in};
    memset(in->G, 0, (size_t)in->n * (size_t)in->n * sizeof *in->G);
    if (!in->b)
        return unit_inputs(&in->m->layer[l], in->n, in->G, e);
    for (int i = 0; states_group(&in->text, i, &group); i++)
        states_layer(&in->s, l, &group, &tap);
    double rows = states_rows(&in->text);
    for (size_t i = 0; i < (size_t)in->n * (size_t)in->n; i++)
        in->G[i] /= rows;
    return OK;
}

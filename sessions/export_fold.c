/* Biases for engines that have none. A normed input has no constant part, so a bias b is replaced
 * by b·(a·x) where a·x is as near to one as it can be: a = argmin E(a·x - 1)² over text, with a
 * ridge. Refuses a bias behind the heads' outputs, which meets no normed input. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "sessions/export_inputs.h"

#define RIDGE 1e-4 /* of the mean square: directions that the text hardly took stay out of it */

void export_folded_free(struct export_folded *f)
{
    for (int i = 0; f->made && i < 2 * f->model.hp.n_layer; i++)
        free(f->made[i]);
    free(f->made);
    free(f->model.layer);
    *f = (struct export_folded){0};
}

/* *to = t + bias·aᵀ in fresh memory. */
static int fold(struct tensor *t, struct tensor *bias, const double *a, float **to, struct err *e)
{
    size_t rows = t->dim[0], D = t->dim[1];
    float *b;
    if (!bias->data)
        return OK;
    int rc = tensor_to_f32(bias, &b, e);
    if (!rc)
        rc = tensor_to_f32(t, to, e);
    for (size_t i = 0; i < rows * D && !rc; i++)
        (*to)[i] = (float)((double)(*to)[i] + (double)b[i / D] * a[i % D]);
    if (!rc)
        free(b);
    *t = (struct tensor){.data = *to, .dtype = DTYPE_F32, .rank = 2, .dim = {rows, D}};
    *bias = (struct tensor){0};
    return rc;
}

/* a[D] from G [D+1][D+1], whose last row holds the means; *left: E(a·x - 1)². */
static int nearest_to_one(double *G, int D, double *a, double *left, struct err *e)
{
    size_t n = (size_t)D + 1;
    double mean = 0, *S = mem_calloc((size_t)D * (size_t)D, sizeof *S);
    if (!S)
        return err_nomem(e, n * n * sizeof *S, "folded biases");
    for (int i = 0; i < D; i++)
        mean += G[(size_t)i * (n + 1)] / D;
    for (size_t i = 0; i < (size_t)D; i++) {
        memcpy(S + i * (size_t)D, G + i * n, (size_t)D * sizeof *S);
        S[i * n] += RIDGE * mean;
        a[i] = G[(n - 1) * n + i];
    }
    int rc = linalg_solve_spd(D, 1, S, a, e);
    *left = 1;
    for (size_t i = 0; i < (size_t)D && !rc; i++) {
        *left -= 2 * a[i] * G[(n - 1) * n + i];
        for (size_t j = 0; j < (size_t)D; j++)
            *left += a[i] * a[j] * G[i * n + j];
    }
    free(S);
    return rc;
}

static int check(const struct export_job *j, struct err *e)
{
    for (int l = 0; l < j->model->hp.n_layer; l++)
        if (j->model->layer[l].o_bias.data)
            return err_set(e, ERR_UNSUPPORTED,
                           "layer %d has a bias behind its heads, which cannot be folded: export "
                           "to hf",
                           l);
    return OK;
}

int export_fold(struct export_folded *f, struct export_job *j, struct err *e)
{
    struct export_inputs in = {0};
    int L = j->model->hp.n_layer, D = j->model->hp.hidden, rc = check(j, e);
    *f = (struct export_folded){.model = *j->model};
    f->model.layer = mem_calloc((size_t)L, sizeof *f->model.layer);
    f->made = mem_calloc(2 * (size_t)L, sizeof *f->made);
    double *a = mem_calloc((size_t)D, sizeof *a), left = 0;
    if (!rc && (!f->model.layer || !f->made || !a))
        rc = err_nomem(e, (size_t)L * sizeof *f->model.layer, "folded biases");
    if (!rc)
        rc = export_inputs_init(&in, j, true, EXPORT_TOKENS, e);
    for (int l = 0; l < L && !rc; l++) {
        struct model_layer *y = &f->model.layer[l];
        *y = j->model->layer[l];
        if (!progress_report(j->p, "folding biases", l, L))
            rc = err_set(e, ERR_CANCELLED, "export stopped");
        if (!rc)
            rc = export_inputs_layer(&in, l, e);
        if (!rc)
            rc = nearest_to_one(in.G, D, a, &left, e);
        if (!rc)
            rc = fold(&y->q, &y->q_bias, a, &f->made[2 * l], e);
        if (!rc)
            rc = fold(&y->kv_a, &y->kv_a_bias, a, &f->made[2 * l + 1], e);
        if (!rc)
            f->left = fmax(f->left, left);
    }
    export_inputs_done(&in);
    free(a);
    return rc;
}

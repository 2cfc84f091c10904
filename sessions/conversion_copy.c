/* A conversion's deep copy: what training changes must be its own. */
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "sessions/conversion.h"

enum { COPIED = 7 }; /* tensors of a layer at most */

static int copy_tensor(struct conversion *c, struct tensor *t, struct err *e)
{
    float *f;
    if (!t->data)
        return OK;
    int rc = tensor_to_f32(t, &f, e);
    if (rc)
        return rc;
    return conversion_take(c, t, f, e);
}

/* from (n numbers, or NULL) in memory that the copy frees with its frequencies. */
static int copy_frequencies(const double *from, int n, double **to, const double **view,
                            struct err *e)
{
    if (!from)
        return OK;
    *to = mem_calloc((size_t)n, sizeof **to);
    if (!*to)
        return err_nomem(e, (size_t)n * sizeof **to, "rope frequencies");
    memcpy(*to, from, (size_t)n * sizeof **to);
    *view = *to;
    return OK;
}

static int copy_layer(struct conversion *c, int l, bool with_o, struct err *e)
{
    struct model_layer *y = &c->model.layer[l];
    bool normed = y->q_rope.data, own_o = with_o || y->o.data != c->base->layer[l].o.data;
    struct tensor *all[COPIED] = {normed ? &y->q_rope : &y->q, &y->kv_a,      &y->kv_b,
                                  &y->q_bias,                  &y->kv_a_bias, own_o ? &y->o : NULL,
                                  y->down.data != c->base->layer[l].down.data ? &y->down : NULL};
    int rc = copy_frequencies(y->rope_freq, y->rope_dim / 2, &c->freq[l], &y->rope_freq, e);
    if (!rc)
        rc = copy_frequencies(y->rope_freq_long, y->rope_dim / 2, &c->freq_long[l],
                              &y->rope_freq_long, e);
    for (int i = 0; i < COPIED && !rc; i++)
        if (all[i])
            rc = copy_tensor(c, all[i], e);
    return rc;
}

int conversion_copy(struct conversion **out, const struct conversion *from, bool with_o,
                    struct err *e)
{
    size_t L = (size_t)from->model.hp.n_layer;
    struct conversion *c;
    *out = NULL;
    int rc = conversion_new(&c, from->base, e);
    if (rc)
        return rc;
    memcpy(c->model.layer, from->model.layer, L * sizeof *c->model.layer);
    for (int l = 0; l < (int)L && !rc; l++)
        rc = copy_layer(c, l, with_o, e);
    if (!rc)
        rc = rankplan_copy(&c->plan, &from->plan, e);
    if (rc) {
        conversion_free(c);
        return rc;
    }
    struct layer_report *layer = c->report.layer;
    memcpy(layer, from->report.layer, L * sizeof *layer);
    c->report = from->report;
    c->report.layer = layer;
    c->report.path[0] = 0;
    c->healing = cJSON_Duplicate(from->healing, true);
    *out = c;
    return OK;
}

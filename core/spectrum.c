/* A layer's spectrum as plain numbers. Sums run from the smallest end, so that a tail far below
 * the head keeps its digits. */
#include "core/spectrum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int spectrum_init(struct spectrum *s, int n, int n_key, int n_value, struct err *e)
{
    *s = (struct spectrum){.n = n, .n_key = n_key, .n_value = n_value, .sink = NAN, .change = NAN};
    if (n < 0 || n_key < 0 || n_value < 0)
        return err_set(e, ERR_ARG, "spectrum of negative length");
    s->joint = mem_calloc((size_t)n, sizeof *s->joint);
    s->key_share = mem_calloc((size_t)n, sizeof *s->key_share);
    s->key = mem_calloc((size_t)n_key, sizeof *s->key);
    s->value = mem_calloc((size_t)n_value, sizeof *s->value);
    if (s->joint && s->key_share && s->key && s->value)
        return OK;
    spectrum_done(s);
    return err_nomem(e, sizeof(double) * 3 * (size_t)n, "a spectrum");
}

void spectrum_done(struct spectrum *s)
{
    free(s->joint);
    free(s->key_share);
    free(s->key);
    free(s->value);
    *s = (struct spectrum){0};
}

int spectrum_copy(struct spectrum *to, const struct spectrum *from, struct err *e)
{
    int rc = spectrum_init(to, from->n, from->n_key, from->n_value, e);
    if (rc)
        return rc;
    memcpy(to->joint, from->joint, (size_t)from->n * sizeof *to->joint);
    memcpy(to->key_share, from->key_share, (size_t)from->n * sizeof *to->key_share);
    memcpy(to->key, from->key, (size_t)from->n_key * sizeof *to->key);
    memcpy(to->value, from->value, (size_t)from->n_value * sizeof *to->value);
    to->calibrated = from->calibrated;
    to->sink = from->sink;
    to->change = from->change;
    to->rope_dim = from->rope_dim;
    return OK;
}

double spectrum_dropped(const struct spectrum *s, int r)
{
    double sum = 0;
    for (int i = s->n - 1; i >= 0 && i >= r; i--)
        sum += s->joint[i];
    return sum;
}

double spectrum_energy(const struct spectrum *s, int r)
{
    double total = spectrum_dropped(s, 0);
    return r >= s->n || total <= 0 ? 1 : 1 - spectrum_dropped(s, r) / total;
}

double spectrum_key_share(const struct spectrum *s, int r)
{
    double sum = 0;
    int n = r < s->n ? r : s->n;
    for (int i = 0; i < n; i++)
        sum += s->key_share[i];
    return n > 0 ? sum / n : 0;
}

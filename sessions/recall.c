/* Spectra by the statistics that a conversion was made from, as long as they lie in the cache;
 * nothing is calibrated and the workspace stays as it is. A digest that is none is not looked for.
 */
#include "sessions/recall.h"

#include <stdlib.h>
#include <string.h>

#include "sessions/memory.h"
#include "sessions/workspace_private.h"

/* The digest becomes part of a path. */
static bool is_digest(const char *s)
{
    return strlen(s) == 64 && strspn(s, "0123456789abcdef") == 64;
}

static struct stats *recall(const struct workspace *w, const char *sha256, const char *cache_dir)
{
    int window = w->base->hp.context < CALIB_WINDOW ? w->base->hp.context : CALIB_WINDOW;
    struct memory_plan plan = memory_plan_for(w->base, w->memory, 0, window, true);
    struct stats *s = NULL;
    char *prefix = stats_path(cache_dir, w->plan_model.fingerprint, sha256, &plan.form);
    if (prefix && stats_open(&s, prefix, w->base, &plan.form, plan.resident, NULL))
        s = NULL;
    free(prefix);
    return s;
}

int workspace_spectra_recalled(struct workspace *w, const char *sha256, const char *const *dir,
                               int n_dir, enum plan_layout layout, const int *rope_dim,
                               struct spectrum *out, const struct progress *p, struct err *e)
{
    enum { BATCH = 4 };
    int n = w->base ? w->base->hp.n_layer : 0, rc = OK;
    struct stats *held = w->stats, *found = NULL;
    for (int i = 0; !held && !found && n && i < n_dir && is_digest(sha256); i++)
        found = recall(w, sha256, dir[i]);
    w->stats = held ? held : found;
    for (int l = 0; l < n && !rc; l += BATCH) {
        int layer[BATCH], k = 0;
        for (; k < BATCH && l + k < n; k++)
            layer[k] = l + k;
        rc = workspace_spectra(w, k, layer, layout, rope_dim + l, out + l, e);
        if (!rc && !progress_report(p, "spectra", l + k, n))
            rc = err_set(e, ERR_CANCELLED, "stopped");
    }
    w->stats = held;
    if (found) { /* a list chosen by these statistics goes with them */
        free(w->shared);
        w->shared = NULL;
    }
    stats_free(found);
    return rc;
}

/* What a plan would cost, measured on text held back from calibration: layer by layer, and for the
 * best division of the cache between rope and latent. */
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/probe.h"
#include "sessions/search.h"
#include "sessions/workspace_private.h"

/* Text that nothing was fitted to. */
static int held_text(struct workspace *w, struct probe_text *text, const struct progress *p,
                     struct err *e)
{
    const struct tokenizer *t = workspace_tokenizer(w, e);
    int rc = t ? OK : e ? e->status : ERR_UNSUPPORTED;
    if (!rc && !w->text.n_held && !strcmp(w->text.source, "self"))
        rc = calib_text_hold_self(&w->text, w->base_engine, t, p, e);
    *text = (struct probe_text){w->text.held, w->text.n_held, w->text.held_len};
    return rc;
}

static int sensitivity_measure(struct workspace *w, const struct rankplan *plan, const int *rank,
                               int n, struct sensitivity *s, const struct progress *p,
                               struct err *e)
{
    struct conversion_input in = {
        .base = w->base, .stats = w->stats, .pool = w->backend->pool, .rounded = w->opt.rounded};
    struct probe_text text;
    int rc = held_text(w, &text, p, e);
    if (!rc)
        rc = workspace_plan_shared_list(w, plan, &in.shared, e);
    if (!rc && !s->n_point)
        rc = probe_energies(w, plan, s, e);
    in.at_once = workspace_layers_at_once(w, s->n);
    workspace_prepare(w, &in);
    return rc ? rc : probe_run(s, rank, n, w->base_engine, &in, plan, &text, p, e);
}

int workspace_search(struct workspace *w, struct rankplan *plan, int even,
                     struct search_result *out, const struct progress *p, struct err *e)
{
    *out = (struct search_result){0};
    if (!w->base || !w->stats)
        return err_set(e, ERR_ARG, "no statistics to search with: calibrate first");
    struct conversion_input in = {.base = w->base,
                                  .stats = w->stats,
                                  .pool = w->backend->pool,
                                  .at_once = workspace_layers_at_once(w, even),
                                  .rounded = w->opt.rounded};
    struct probe_text text;
    int rc = held_text(w, &text, p, e);
    if (!rc)
        rc = (plan->method == METHOD_TRANSMLA ? search_folds : search_rope)(
            out, w->base_engine, &in, plan, even, &text, p, e);
    if (!rc && plan->method == METHOD_TRANSMLA)
        plan->freqfold = out->trial[out->best].freqfold;
    if (!rc)
        memcpy(plan->layer, out->layer, (size_t)out->n_layer * sizeof *plan->layer);
    return rc;
}

int workspace_sensitivity(struct workspace *w, const struct rankplan *plan, int even, bool measure,
                          const char *cache_dir, struct sensitivity *out, const struct progress *p,
                          struct err *e)
{
    int rank[SENSITIVITY_POINTS], n, rc = OK;
    *out = (struct sensitivity){0};
    if (!w->base || !w->stats)
        return err_set(e, ERR_ARG, "no statistics to measure sensitivities with: calibrate first");
    if (plan->method != METHOD_MLATHE)
        return err_set(e, ERR_UNSUPPORTED, "sensitivities are measured for method mlathe only");
    char *path = cache_dir ? probe_path(cache_dir, plan, w->text.sha256) : NULL;
    if (!path || sensitivity_load(out, plan, path, e))
        rc = measure ? sensitivity_init(out, plan, e)
                     : err_set(e, ERR_IO, "no sensitivities are known");
    if (!rc && measure && (n = sensitivity_wanted(out, even, rank)) > 0) {
        rc = sensitivity_measure(w, plan, rank, n, out, p, e);
        if (!rc && path && file_mkdirs(cache_dir, NULL) == OK)
            sensitivity_save(out, path, NULL); /* a full disk must not lose the measurement */
    }
    free(path);
    if (rc)
        sensitivity_done(out);
    return rc;
}

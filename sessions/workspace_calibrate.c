/* Calibration and spectra: statistics of the open model, from the cache or by a pass over text. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/mla.h"
#include "kernels/pool.h"
#include "sessions/clock.h"
#include "sessions/memory.h"
#include "sessions/workspace_device.h"
#include "sessions/workspace_private.h"

#define DEFAULT_TOKENS_FILES 32768
#define DEFAULT_TOKENS_SELF 8192

int workspace_refuse_conversion(const struct workspace *w, struct err *e)
{
    const char *why = model_convertible(w->base);
    return why ? err_set(e, ERR_UNSUPPORTED, "%s cannot be converted: %s", w->base->hp.name, why)
               : OK;
}

/* The shared layout's list of width R; NULL while nothing is calibrated. */
static int shared_list(struct workspace *w, int R, const int **list, struct err *e)
{
    *list = NULL;
    if (!w->stats)
        return OK;
    if (!w->shared || w->shared_rope != R) {
        free(w->shared);
        w->shared_rope = R;
        w->shared = mem_calloc((size_t)R, sizeof *w->shared);
        int rc = w->shared ? conversion_shared_list(w->base, w->stats, R, w->shared, e)
                           : err_nomem(e, (size_t)R * sizeof *w->shared, "a shared rope list");
        if (rc) {
            free(w->shared);
            w->shared = NULL;
            return rc;
        }
    }
    *list = w->shared;
    return OK;
}

/* The shared layout has one rope width, for its list is one. */
int workspace_plan_shared_list(struct workspace *w, const struct rankplan *plan, const int **list,
                               struct err *e)
{
    *list = NULL;
    if (plan->layout != LAYOUT_SHARED || plan->method == METHOD_TRANSMLA)
        return OK;
    for (int l = 1; l < plan->model.n_layer; l++)
        if (plan->layer[l].qk_rope_head_dim != plan->layer[0].qk_rope_head_dim)
            return err_set(e, ERR_ARG,
                           "the shared layout has one rope width for all layers: layer %d has %d, "
                           "layer 0 %d",
                           l, plan->layer[l].qk_rope_head_dim, plan->layer[0].qk_rope_head_dim);
    return shared_list(w, plan->layer[0].qk_rope_head_dim, list, e);
}

/* The spectrum of one layer from moments m, or from the weights alone (m NULL). Without a list the
 * shared layout is shown as the stock one. */
static int layer_spectrum(const struct workspace *w, int layer, const struct moments *m,
                          enum plan_layout layout, const int *list, int rope_dim,
                          struct spectrum *out, struct err *e)
{
    struct mla_options o = {.method = METHOD_MLATHE,
                            .layout = layout == LAYOUT_SHARED && !list ? LAYOUT_STOCK : layout,
                            .shared = list,
                            .rope_dim = rope_dim};
    struct mla_source src;
    struct moments own = {0};
    float *gamma = NULL;
    int rc = conversion_source(w->base, layer, &src, e);
    if (!rc && !m) {
        rc = tensor_to_f32(&w->base->layer[layer].attn_norm, &gamma, e);
        if (!rc)
            rc = mla_weight_moments(&src, gamma, &own, e);
        m = &own;
    }
    if (!rc)
        rc = mla_spectrum(&src, m, &o, out, e);
    free(gamma);
    moments_done(&own);
    conversion_source_done(&src);
    return rc;
}

struct spectra_task {
    const struct workspace *w;
    const int *layer, *rope_dim;
    enum plan_layout layout;
    const int *list; /* of the shared layout, for width[0] */
    bool weights;    /* alone, whatever statistics there are */
    struct spectrum *out;
    struct err *err;
    int *rc;
    int first;
};

/* Wide layers take so much memory to solve that they cannot all be in work together. */
int workspace_layers_at_once(const struct workspace *w, int rank)
{
    return memory_layers_at_once(w->base, w->memory, rank, pool_threads(w->backend->pool));
}

static void spectra_task(void *arg, int task, int thread)
{
    const struct spectra_task *t = arg;
    int i = t->first + task, l = t->layer[i];
    (void)thread;
    const struct moments *m = NULL;
    t->rc[i] = t->w->stats && !t->weights ? stats_layer(t->w->stats, l, &m, &t->err[i]) : OK;
    if (!t->rc[i])
        t->rc[i] =
            layer_spectrum(t->w, l, m, t->layout, t->rope_dim[i] == t->rope_dim[0] ? t->list : NULL,
                           t->rope_dim[i], &t->out[i], &t->err[i]);
    if (m)
        stats_release(t->w->stats, m);
}

static int spectra(struct workspace *w, bool weights, int n, const int *layer,
                   enum plan_layout layout, const int *rope_dim, struct spectrum *out,
                   struct err *e)
{
    memset(out, 0, (size_t)n * sizeof *out);
    for (int i = 0; i < n; i++)
        if (!w->base || layer[i] < 0 || layer[i] >= w->base->hp.n_layer)
            return err_set(e, ERR_ARG, "no layer %d", layer[i]);
    int rc = workspace_refuse_conversion(w, e);
    if (rc)
        return rc;
    struct spectra_task t = {w, layer, rope_dim, layout, NULL, weights, out, NULL, NULL, 0};
    if (layout == LAYOUT_SHARED && n > 0 && !weights)
        rc = shared_list(w, rope_dim[0], &t.list, e);
    if (rc)
        return rc;
    t.err = mem_calloc((size_t)n, sizeof *t.err);
    t.rc = mem_calloc((size_t)n, sizeof *t.rc);
    rc = t.err && t.rc ? OK : err_nomem(e, (size_t)n * sizeof *t.err, "spectra");
    int at_once = workspace_layers_at_once(w, 1);
    for (; !rc && t.first < n; t.first += at_once)
        pool_for(w->backend->pool, n - t.first < at_once ? n - t.first : at_once, spectra_task, &t);
    for (int i = 0; i < n && !rc; i++)
        if ((rc = t.rc[i]) != OK)
            err_set(e, rc, "layer %d: %s", layer[i], t.err[i].text);
    for (int i = 0; rc && i < n; i++)
        spectrum_done(&out[i]);
    free(t.err);
    free(t.rc);
    return rc;
}

int workspace_spectra(struct workspace *w, int n, const int *layer, enum plan_layout layout,
                      const int *rope_dim, struct spectrum *out, struct err *e)
{
    return spectra(w, false, n, layer, layout, rope_dim, out, e);
}

int workspace_weight_spectra(struct workspace *w, int n, const int *layer, enum plan_layout layout,
                             const int *rope_dim, struct spectrum *out, struct err *e)
{
    return spectra(w, true, n, layer, layout, rope_dim, out, e);
}

int workspace_spectrum(struct workspace *w, int layer, enum plan_layout layout, int rope_dim,
                       struct spectrum *out, struct err *e)
{
    return workspace_spectra(w, 1, &layer, layout, &rope_dim, out, e);
}

struct publish {
    const struct workspace *w;
    const struct calib_sink *sink;
};

static void publish_layer(void *user, int layer, const struct moments *m)
{
    const struct publish *p = user;
    struct spectrum s;
    struct err ignored; /* a spectrum that fails here fails again, audibly, when it is asked for */
    if (layer_spectrum(p->w, layer, m, p->sink->layout, NULL, p->sink->rope_dim, &s, &ignored))
        return;
    p->sink->on_layer(p->sink->user, layer, &s);
    spectrum_done(&s);
}

static int calibration_text(struct workspace *w, const struct calib_options *o,
                            struct calib_text *text, const struct progress *p, struct err *e)
{
    const struct tokenizer *t = workspace_tokenizer(w, e);
    long long tokens = o->tokens    ? o->tokens
                       : o->n_files ? DEFAULT_TOKENS_FILES
                                    : DEFAULT_TOKENS_SELF;
    struct calib_options asked = *o;
    asked.tokens = tokens;
    if (!t && o->n_files)
        return e ? e->status : ERR_UNSUPPORTED;
    if (o->n_files)
        return calib_text_files(text, t, &asked, w->base->hp.context, e);
    return calib_text_self(text, w->base_engine, t, tokens, o->seed, p, e);
}

/* Statistics from the cache, or by a pass over the text (then put into the cache). */
static int obtain(struct workspace *w, const struct calib_text *text, const char *cache_dir,
                  const struct memory_plan *plan, const struct calib_sink *sink, struct stats **out,
                  const struct progress *p, struct err *e)
{
    struct publish publish = {w, sink};
    void (*on_layer)(void *, int, const struct moments *) =
        sink && sink->on_layer ? publish_layer : NULL;
    char *prefix = cache_dir
                       ? stats_path(cache_dir, w->plan_model.fingerprint, text->sha256, &plan->form)
                       : NULL;
    int rc = OK;
    if (prefix && stats_open(out, prefix, w->base, &plan->form, plan->resident, NULL) == OK) {
        for (int l = 0; on_layer && l < w->base->hp.n_layer && !rc; l++) {
            const struct moments *m;
            rc = stats_layer(*out, l, &m, e);
            if (!rc)
                on_layer(&publish, l, m);
            if (!rc)
                stats_release(*out, m);
        }
    } else {
        rc = memory_check(w->base, plan, text, pool_threads(w->backend->pool),
                          (double)engine_bytes(w->base_engine), cache_dir, e);
        if (!rc)
            rc = model_check_finite(w->base, p, e);
        if (!rc)
            rc = stats_new(out, w->base, &plan->form, plan->resident, prefix, text->window, e);
        if (!rc)
            rc = calibrate_run(w->base_engine, text, *out, on_layer, &publish, p, e);
    }
    free(prefix);
    if (rc) {
        stats_free(*out);
        *out = NULL;
    }
    return rc;
}

/* Before any work: the tokens' own share is known only with the text. */
static int check_early(const struct workspace *w, const struct memory_plan *plan, int window,
                       const char *cache_dir, struct err *e)
{
    struct calib_text none = {.window = window};
    return memory_check(w->base, plan, &none, pool_threads(w->backend->pool),
                        (double)engine_bytes(w->base_engine), cache_dir, e);
}

int workspace_settled(const struct workspace *w, char *text, size_t size, struct err *e)
{
    struct stats_settled s = {.change = -1};
    int rc = w->stats ? stats_settled(w->stats, &s, e) : OK;
    text[0] = 0;
    if (!rc && s.change >= 0)
        snprintf(
            text, size,
            "since half of its %.0f tokens spectra changed by %.1f %% (layer %d: %.1f %%), the "
            "rank for %.0f %% of the energy by %.1f",
            s.tokens, 100 * s.change, s.layer, 100 * s.worst, 100 * MOMENTS_ENERGY, s.moved);
    return rc;
}

int workspace_calibrate(struct workspace *w, const struct calib_options *o, const char *cache_dir,
                        const struct calib_sink *sink, const struct progress *p, struct err *e)
{
    if (!w->base)
        return err_set(e, ERR_ARG, "no model is open");
    double start = clock_now();
    int window = w->base->hp.context < CALIB_WINDOW ? w->base->hp.context : CALIB_WINDOW;
    struct calib_text text = {0};
    struct stats *stats = NULL;
    const char *folder = cache_dir && file_mkdirs(cache_dir, NULL) == OK ? cache_dir : NULL;
    char *spill = folder ? mem_strdup(folder) : NULL;
    struct memory_plan plan = {0};
    int rc = folder && !spill ? err_nomem(e, 4096, "a path") : workspace_refuse_conversion(w, e);
    if (!rc)
        rc = stats_check_groups(w->base, o->stat_groups, e);
    if (!rc) {
        plan = memory_plan_for(w->base, w->memory, o->stat_groups, window, folder != NULL);
        plan.form.until = o->until;
        rc = check_early(w, &plan, window, folder, e);
    }
    if (!rc)
        rc = calibration_text(w, o, &text, p, e);
    if (!rc)
        rc = obtain(w, &text, folder, &plan, sink, &stats, p, e);
    if (rc) {
        free(spill);
        calib_text_done(&text);
        return workspace_device_reason(w, rc, e);
    }
    workspace_drop_statistics(w);
    w->stats = stats;
    w->spill = spill;
    w->text = text;
    w->seconds_calibrate = clock_now() - start;
    return OK;
}

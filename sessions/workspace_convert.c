/* Conversion of the open model by a plan, and what is done with the result. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "kernels/pool.h"
#include "sessions/clock.h"
#include "sessions/memory.h"
#include "sessions/prepared.h"
#include "sessions/probe.h"
#include "sessions/refit.h"
#include "sessions/workspace_device.h"
#include "sessions/workspace_private.h"

/* TransMLA measures its second moments on the model with the narrowed rope: convert with the
 * latent = z itself, run that model over the same windows. c[L]. */
static int second_pass(struct workspace *w, const struct rankplan *plan, double **c,
                       const struct progress *p, struct err *e)
{
    struct conversion_input in = {
        .base = w->base, .stats = w->stats, .pool = w->backend->pool, .device = w->backend};
    struct rankplan narrow = {0};
    struct conversion *partial = NULL;
    struct engine *g = NULL;
    int rc = rankplan_copy(&narrow, plan, e);
    for (int l = 0; l < w->base->hp.n_layer && !rc; l++) {
        struct moments_shape shape = conversion_shape(w->base, l);
        narrow.layer[l].kv_lora_rank = moments_width(&shape);
    }
    if (!rc)
        rc = conversion_solve(&partial, &in, &narrow, NULL, p, e);
    if (!rc)
        rc = engine_new(&g, &partial->model, w->backend, w->base_engine, e);
    if (!rc)
        rc = calibrate_second(g, &w->text, c, p, e);
    engine_free(g);
    conversion_free(partial);
    rankplan_done(&narrow);
    return rc;
}

/* Only a latent that drops something asks for second moments. */
static bool wants_second(const struct workspace *w, const struct rankplan *plan)
{
    for (int l = 0; l < plan->model.n_layer && plan->method == METHOD_TRANSMLA; l++) {
        struct moments_shape shape = conversion_shape(w->base, l);
        if (plan->layer[l].kv_lora_rank < moments_width(&shape))
            return true;
    }
    return false;
}

/* The published method's second moments of all layers are held together. */
static int check_second_pass(const struct workspace *w, struct err *e)
{
    double sum = 0, have = MEMORY_USABLE * w->memory;
    char needs[32], has[32];
    for (int l = 0; l < w->base->hp.n_layer; l++) {
        struct moments_shape s = conversion_shape(w->base, l);
        sum += sizeof(double) * (double)moments_width(&s) * moments_width(&s);
    }
    kvmem_text(sum, needs, sizeof needs);
    kvmem_text(have, has, sizeof has);
    return sum <= have ? OK
                       : err_set(e, ERR_LIMIT,
                                 "%s: the second pass of method transmla holds %s, %s may be used: "
                                 "use method mlathe",
                                 w->base->hp.name, needs, has);
}

static bool refits(const struct rankplan *plan)
{
    return plan->method == METHOD_MLATHE && !(plan->without & STEP_OUTPUT);
}

/* Said before the layers are solved, not after. */
static int check_refit(const struct workspace *w, const struct rankplan *plan, struct err *e)
{
    double need = refit_bytes(w->base, &w->text, plan->refit_ffn), have = MEMORY_USABLE * w->memory;
    char needs[32], has[32];
    kvmem_text(need, needs, sizeof needs);
    kvmem_text(have, has, sizeof has);
    return need <= have ? OK
                        : err_set(e, ERR_LIMIT,
                                  "%s: refitting output maps holds %s, %s may be used: "
                                  "calibrate on fewer tokens (--tokens), or leave it out "
                                  "(--without output)",
                                  w->base->hp.name, needs, has);
}

/* Layers side by side as memory allows; what would crowd it goes to disk as it is made. */
static void fit_into_memory(const struct workspace *w, const struct rankplan *plan,
                            struct conversion_input *in)
{
    int top = 1;
    for (int l = 0; l < plan->model.n_layer; l++)
        top = plan->layer[l].kv_lora_rank > top ? plan->layer[l].kv_lora_rank : top;
    in->at_once = workspace_layers_at_once(w, top);
    if (conversion_bytes(w->base, plan) > MEMORY_RESIDENT * w->memory)
        in->spill = w->spill;
}

void workspace_prepare(struct workspace *w, struct conversion_input *in)
{
    int L = w->base->hp.n_layer;
    double bytes[2] = {0},
           room = MEMORY_PREPARED * w->memory; /* without heads' moments, and with */
    for (int l = 0; l < L && w->opt.keep && !w->prepared; l++) {
        const struct moments *m;
        bool known = !stats_layer(w->stats, l, &m, NULL);
        for (int i = 0; i < 2; i++)
            bytes[i] += known ? prepared_bytes(m, i) : INFINITY;
        stats_release(w->stats, m);
    }
    if (w->opt.keep && !w->prepared && bytes[0] <= room)
        w->prepared = mem_calloc((size_t)L, sizeof *w->prepared); /* or everything is done anew */
    for (int l = 0; l < L && w->prepared && bytes[1] && bytes[1] <= room; l++)
        w->prepared[l].rich = true;
    in->prepared = w->prepared;
    in->previous = w->conv;
    in->serial = ++w->solves;
}

static int report_copy(struct conversion_report *to, const struct conversion_report *from,
                       struct err *e)
{
    size_t n = (size_t)from->n_layer;
    struct layer_report *layer = mem_calloc(n, sizeof *layer);
    if (!layer)
        return err_nomem(e, n * sizeof *layer, "a report");
    memcpy(layer, from->layer, n * sizeof *layer);
    *to = *from;
    to->layer = layer;
    return OK;
}

/* The KL that a prediction is held against. */
static int measure_held(const struct workspace *w, const struct engine *g, double *kl,
                        const struct progress *p, struct err *e)
{
    struct probe_text text = {w->text.held, w->text.n_held, w->text.held_len};
    struct probe *t;
    *kl = NAN;
    if (!text.windows)
        return OK;
    int rc = probe_open(&t, w->base_engine, &text, p, e);
    if (!rc)
        rc = probe_kl(t, g, kl, e);
    probe_close(t);
    return rc;
}

/* What this conversion showed, for the next prediction. The file may be missing: then it does not.
 */
static void learn(const struct workspace *w, const struct rankplan *plan, double kl)
{
    struct sensitivity s;
    char *path = w->spill && plan->method == METHOD_MLATHE
                     ? probe_path(w->spill, plan, w->text.sha256)
                     : NULL;
    if (path && !sensitivity_load(&s, plan, path, NULL)) {
        if (sensitivity_learn(&s, plan, kl))
            sensitivity_save(&s, path, NULL);
        sensitivity_done(&s);
    }
    free(path);
}

/* c takes the place of the conversion that was there. */
static void hold(struct workspace *w, struct conversion *c, struct engine *g)
{
    workspace_drop_conversion(w);
    w->conv = c;
    w->conv_engine = g;
}

int workspace_convert(struct workspace *w, const struct rankplan *plan,
                      const struct convert_sink *sink, const struct progress *p,
                      struct conversion_report *out, struct err *e)
{
    if (!w->base || !w->stats)
        return err_set(e, ERR_ARG, "nothing to convert with: open a model and calibrate first");
    int L = w->base->hp.n_layer;
    struct conversion_input in = {.base = w->base,
                                  .stats = w->stats,
                                  .pool = w->backend->pool,
                                  .device = w->backend,
                                  .measure = true};
    struct conversion *c = NULL;
    struct engine *g = NULL;
    double **second = NULL, start = clock_now(), refit = NAN;
    fit_into_memory(w, plan, &in);
    workspace_prepare(w, &in);
    int rc = workspace_refuse_conversion(w, e);
    if (!rc)
        rc = workspace_plan_shared_list(w, plan, &in.shared, e);
    bool twice = wants_second(w, plan);
    if (!rc && twice)
        rc = check_second_pass(w, e);
    if (!rc && refits(plan))
        rc = check_refit(w, plan, e);
    if (!rc && twice) {
        second = mem_calloc((size_t)L, sizeof *second);
        rc = second ? second_pass(w, plan, second, p, e)
                    : err_nomem(e, (size_t)L * sizeof *second, "second moments");
        in.c_second = second;
    }
    if (!rc)
        rc = conversion_solve(&c, &in, plan, sink, p, e);
    for (int l = 0; second && l < L; l++)
        free(second[l]);
    free(second);
    double solved = clock_now() - start;
    if (!rc && refits(plan)) {
        const struct refit_options how = {plan->refit_ffn, w->opt.rounded, "refitting output maps"};
        rc = refit_run(c, w->base_engine, &w->text, &how, p, e);
        refit = clock_now() - start - solved;
    }
    if (!rc)
        rc = workspace_converted_engine(w, c, &g, e);
    if (!rc) {
        workspace_stamp_plan(w, &c->plan);
        c->report.seconds_calibrate = w->seconds_calibrate;
        c->report.seconds_solve = solved;
        c->report.seconds_refit = refit;
        rc = measure_held(w, g, &c->report.kl_held, p, e);
        if (!rc)
            learn(w, plan, c->report.kl_held);
    }
    if (!rc && out)
        rc = report_copy(out, &c->report, e);
    if (rc) {
        engine_free(g);
        conversion_free(c);
        return workspace_device_reason(w, rc, e);
    }
    hold(w, c, g);
    return OK;
}

int workspace_adopt(struct workspace *w, struct conversion *c, struct err *e)
{
    struct engine *g = NULL;
    int rc = workspace_converted_engine(w, c, &g, e);
    if (rc) {
        conversion_free(c);
        return rc;
    }
    hold(w, c, g);
    return OK;
}

struct conversion *workspace_held(const struct workspace *w)
{
    return w->conv;
}

int workspace_save(struct workspace *w, const char *dir, struct err *e)
{
    if (!w->conv)
        return err_set(e, ERR_ARG, "nothing is converted yet");
    return conversion_save(w->conv, dir, w->base->path, e);
}

bool workspace_conversion(const struct workspace *w, struct rankplan *plan,
                          struct conversion_report *report, struct err *e)
{
    if (!w->conv)
        return false;
    if (plan && rankplan_copy(plan, &w->conv->plan, e))
        return false;
    if (report && report_copy(report, &w->conv->report, e)) {
        if (plan)
            rankplan_done(plan);
        return false;
    }
    return true;
}

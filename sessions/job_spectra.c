/* Jobs that measure: the spectra of all layers for a layout and rope widths, and calibration,
 * which replaces them layer by layer. They refuse to run without an open model. */
#include "sessions/calibrate.h"
#include "sessions/jobs.h"

#include <stdlib.h>
#include <string.h>

static int need_model(const struct shop *s, struct err *e)
{
    if (!s->w || !workspace_is_open(s->w))
        return err_set(e, ERR_ARG, "no model is open: open one on screen 1");
    return OK;
}

static void spectrum_free(void *data)
{
    struct layer_spectrum *s = data;
    if (s)
        spectrum_done(&s->spectrum);
    free(s);
}

#define SPECTRA_BATCH 4 /* layers between two looks at the cancel flag */

struct spectra_args {
    enum plan_layout layout;
    bool weights;
    int n_layer, first;
    int rope[];
};

void *spectra_args(enum plan_layout layout, const int *rope, int n_layer, int first, bool weights)
{
    struct spectra_args *a = mem_calloc(1, sizeof *a + (size_t)n_layer * sizeof *rope);
    if (!a)
        return NULL;
    a->layout = layout;
    a->weights = weights;
    a->n_layer = n_layer;
    a->first = first;
    memcpy(a->rope, rope, (size_t)n_layer * sizeof *rope);
    return a;
}

/* Layers a->first + from and the next few, posted one by one. */
static int spectra_batch(struct job *j, struct workspace *w, const struct spectra_args *a, int from,
                         struct err *e)
{
    struct spectrum found[SPECTRA_BATCH];
    int layer[SPECTRA_BATCH], rope[SPECTRA_BATCH], n = 0;
    for (; n < SPECTRA_BATCH && from + n < a->n_layer; n++) {
        layer[n] = (a->first + from + n) % a->n_layer;
        rope[n] = a->rope[layer[n]];
    }
    int rc = (a->weights ? workspace_weight_spectra : workspace_spectra)(w, n, layer, a->layout,
                                                                         rope, found, e);
    if (rc)
        return rc;
    for (int i = 0; i < n; i++) {
        struct layer_spectrum *v = mem_calloc(1, sizeof *v);
        if (!v) {
            spectrum_done(&found[i]);
            rc = err_nomem(e, sizeof *v, "spectrum");
            continue;
        }
        *v = (struct layer_spectrum){
            .layer = layer[i], .layout = a->layout, .rope_dim = rope[i], .spectrum = found[i]};
        job_post(j, EVENT_SPECTRUM, v, spectrum_free);
    }
    return rc;
}

static int spectra_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct spectra_args *a = args;
    struct progress p = job_progress(j);
    int rc = need_model(s, e);
    if (rc)
        return rc;
    if (!a)
        return err_nomem(e, sizeof *a, "spectra");
    struct model_info info;
    workspace_info(s->w, &info);
    if (info.n_layer != a->n_layer)
        return err_set(e, ERR_CANCELLED, "the model changed");
    /* The layer on screen first, then round. */
    for (int i = 0; i < a->n_layer && !rc; i += SPECTRA_BATCH) {
        if (!progress_report(&p, "spectra", i, a->n_layer))
            return err_set(e, ERR_CANCELLED, "cancelled");
        rc = spectra_batch(j, s->w, a, i, e);
    }
    return rc;
}

const struct job_kind job_spectra = {"spectra", spectra_run, free};

struct calibrate_args {
    char **file, *cache_dir;
    double *share;
    struct calib_options o;
    enum plan_layout layout;
    int rope_dim;
};

static void calibrate_args_free(void *args)
{
    struct calibrate_args *a = args;
    if (!a)
        return;
    for (int i = 0; a->file && i < a->o.n_files; i++)
        free(a->file[i]);
    free(a->file);
    free(a->share);
    free(a->cache_dir);
    free(a);
}

void *calibrate_args(const struct calib_options *o, const char *cache_dir, enum plan_layout layout,
                     int rope_dim)
{
    struct calibrate_args *a = mem_calloc(1, sizeof *a);
    size_t n = (size_t)o->n_files;
    if (!a)
        return NULL;
    a->o = *o;
    a->o.seed = CALIB_SEED;
    a->layout = layout;
    a->rope_dim = rope_dim;
    a->file = mem_calloc(n + 1, sizeof *a->file);
    a->share = o->shares ? mem_calloc(n + 1, sizeof *a->share) : NULL;
    a->cache_dir = cache_dir ? mem_strdup(cache_dir) : NULL;
    for (size_t i = 0; a->file && i < n; i++) {
        a->file[i] = mem_strdup(o->files[i]);
        if (a->share)
            a->share[i] = o->shares[i];
    }
    a->o.files = (const char *const *)a->file;
    a->o.shares = a->share;
    if (a->file && (a->share || !o->shares))
        return a;
    calibrate_args_free(a);
    return NULL;
}

struct calibration {
    struct job *job;
    const struct calibrate_args *args;
};

static void layer_calibrated(void *user, int layer, const struct spectrum *spectrum)
{
    struct calibration *c = user;
    struct layer_spectrum *v = mem_calloc(1, sizeof *v);
    if (!v)
        return;
    v->layer = layer;
    v->layout = c->args->layout;
    v->rope_dim = c->args->rope_dim;
    if (spectrum_copy(&v->spectrum, spectrum, NULL)) {
        spectrum_free(v);
        return;
    }
    job_post(c->job, EVENT_SPECTRUM, v, spectrum_free);
}

static int calibrate_job(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct calibrate_args *a = args;
    struct progress p = job_progress(j);
    int rc = need_model(s, e);
    if (rc)
        return rc;
    if (!a)
        return err_nomem(e, sizeof *a, "calibration");
    struct calibration c = {j, a};
    struct calib_sink sink = {layer_calibrated, &c, a->layout, a->rope_dim};
    return workspace_calibrate(s->w, &a->o, a->cache_dir, &sink, &p, e);
}

const struct job_kind job_calibrate = {"calibrate", calibrate_job, calibrate_args_free};

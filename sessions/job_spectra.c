/* Jobs that measure: the spectra of all layers for a layout and rope widths, and calibration,
 * which replaces them layer by layer. They refuse to run without an open model. */
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

struct spectra_args {
    enum plan_layout layout;
    int n_layer, first;
    int rope[];
};

void *spectra_args(enum plan_layout layout, const int *rope, int n_layer, int first)
{
    struct spectra_args *a = mem_calloc(1, sizeof *a + (size_t)n_layer * sizeof *rope);
    if (!a)
        return NULL;
    a->layout = layout;
    a->n_layer = n_layer;
    a->first = first;
    memcpy(a->rope, rope, (size_t)n_layer * sizeof *rope);
    return a;
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
    for (int i = 0; i < a->n_layer; i++) {
        /* The layer on screen first, then round. */
        int layer = (a->first + i) % a->n_layer;
        if (!progress_report(&p, "spectra", i, a->n_layer))
            return err_set(e, ERR_CANCELLED, "cancelled");
        struct layer_spectrum *v = mem_calloc(1, sizeof *v);
        if (!v)
            return err_nomem(e, sizeof *v, "spectrum");
        v->layer = layer;
        v->layout = a->layout;
        v->rope_dim = a->rope[layer];
        rc = workspace_spectrum(s->w, layer, a->layout, v->rope_dim, &v->spectrum, e);
        if (rc) {
            spectrum_free(v);
            return rc;
        }
        job_post(j, EVENT_SPECTRUM, v, spectrum_free);
    }
    return OK;
}

const struct job_kind job_spectra = {"spectra", spectra_run, free};

struct calibrate_args {
    char *file, *cache_dir;
    long long tokens;
    enum plan_layout layout;
    int rope_dim;
};

static void calibrate_args_free(void *args)
{
    struct calibrate_args *a = args;
    if (!a)
        return;
    free(a->file);
    free(a->cache_dir);
    free(a);
}

void *calibrate_args(const char *file, long long tokens, const char *cache_dir,
                     enum plan_layout layout, int rope_dim)
{
    struct calibrate_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->file = file ? mem_strdup(file) : NULL;
    a->cache_dir = cache_dir ? mem_strdup(cache_dir) : NULL;
    a->tokens = tokens;
    a->layout = layout;
    a->rope_dim = rope_dim;
    return a;
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

static int calibrate_run(struct job *j, void *shop, void *args, struct err *e)
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
    const char *files[] = {a->file};
    struct calib_options o = {
        .files = files, .n_files = a->file ? 1 : 0, .tokens = a->tokens, .seed = 42};
    return workspace_calibrate(s->w, &o, a->cache_dir, &sink, &p, e);
}

const struct job_kind job_calibrate = {"calibrate", calibrate_run, calibrate_args_free};

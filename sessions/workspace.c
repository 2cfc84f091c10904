/* The open model, its statistics and its conversion, and the jobs on them as blocking calls.
 * Everything new is built aside and swapped in only when it is whole. */
#include "sessions/workspace.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "core/mla.h"
#include "kernels/pool.h"
#include "sessions/calibrate.h"
#include "sessions/conversion.h"
#include "sessions/memory.h"
#include "sessions/probe.h"
#include "sessions/refit.h"
#include "sessions/clock.h"

#define DEFAULT_TOKENS_FILES 32768
#define DEFAULT_TOKENS_SELF 8192

struct workspace {
    struct workspace_options opt;
    struct backend *backend;
    struct model *base;
    struct engine *base_engine;
    struct plan_model plan_model;
    struct tokenizer *tokenizer; /* NULL with the reason in no_tokenizer */
    struct chatfmt *chatfmt;
    struct err no_tokenizer, no_chatfmt;
    struct calib_text text; /* of the statistics */
    struct stats *stats;    /* NULL: not calibrated */
    char *spill;            /* folder for what does not fit into memory, or NULL */
    double memory;          /* bytes that may be used */
    double seconds_calibrate;
    int *shared, shared_rope; /* the shared layout's list and its width, once asked for */
    struct conversion *conv;
    struct engine *conv_engine;
};

int workspace_new(struct workspace **out, const struct workspace_options *o, struct err *e)
{
    struct workspace *w = mem_calloc(1, sizeof *w);
    *out = NULL;
    if (!w)
        return err_nomem(e, sizeof *w, "a workspace");
    w->opt = *o;
    w->memory = memory_limit(o->memory);
    struct backend_options b = {.threads = o->threads,
                                .background = o->background,
                                .exact = o->exact,
                                .copies = (size_t)(w->memory / 2)};
    int rc = backend_open(&w->backend, o->device ? o->device : "auto", &b, e);
    if (rc) {
        free(w);
        return rc;
    }
    *out = w;
    return OK;
}

static void drop_conversion(struct workspace *w)
{
    engine_free(w->conv_engine);
    conversion_free(w->conv);
    w->conv_engine = NULL;
    w->conv = NULL;
}

/* Everything that hangs on the model. */
static void drop_model(struct workspace *w)
{
    drop_conversion(w);
    stats_free(w->stats);
    free(w->spill);
    free(w->shared);
    w->stats = NULL;
    w->spill = NULL;
    w->shared = NULL;
    calib_text_done(&w->text);
    chatfmt_free(w->chatfmt);
    tokenizer_free(w->tokenizer);
    engine_free(w->base_engine);
    model_free(w->base);
    w->chatfmt = NULL;
    w->tokenizer = NULL;
    w->base_engine = NULL;
    w->base = NULL;
}

void workspace_free(struct workspace *w)
{
    if (!w)
        return;
    drop_model(w);
    backend_close(w->backend);
    free(w);
}

void workspace_describe(const struct workspace *w, char *text, size_t size)
{
    w->backend->ops->describe(w->backend, text, size);
}

static int fill_plan_model(struct workspace *w, struct err *e)
{
    const struct model_hparams *hp = &w->base->hp;
    struct plan_model *p = &w->plan_model;
    *p = (struct plan_model){.n_layer = hp->n_layer,
                             .n_head = hp->n_head,
                             .n_kv_head = hp->n_kv_head,
                             .head_dim = hp->head_dim};
    snprintf(p->name, sizeof p->name, "%s", hp->name);
    snprintf(p->family, sizeof p->family, "%s", hp->family);
    return model_fingerprint(w->base, p->fingerprint, e);
}

/* Tokenizer and template are optional: a model without them still gives logits. */
static void open_text(struct workspace *w, const char *path)
{
    w->no_tokenizer = w->no_chatfmt = (struct err){0};
    if (tokenizer_open(&w->tokenizer, path, &w->no_tokenizer)) {
        w->no_chatfmt = w->no_tokenizer;
        return;
    }
    if (tokenizer_size(w->tokenizer) > w->base->hp.vocab) {
        err_set(&w->no_tokenizer, ERR_MISMATCH,
                "%s: the tokenizer has %d tokens, the model's vocabulary %d: they do not belong "
                "together",
                path, tokenizer_size(w->tokenizer), w->base->hp.vocab);
        tokenizer_free(w->tokenizer);
        w->tokenizer = NULL;
        w->no_chatfmt = w->no_tokenizer;
        return;
    }
    chatfmt_new(&w->chatfmt, tokenizer_chat_template(w->tokenizer),
                tokenizer_bos_text(w->tokenizer), tokenizer_eos_text(w->tokenizer), &w->no_chatfmt);
}

static int open_base(struct workspace *w, const char *path, const char *fingerprint,
                     const struct progress *p, struct err *e)
{
    if (!progress_report(p, "opening the model", 0, 1))
        return err_set(e, ERR_CANCELLED, "opening stopped");
    int rc = model_open(&w->base, path, e);
    if (!rc)
        rc = fill_plan_model(w, e);
    if (!rc && fingerprint && strcmp(fingerprint, w->plan_model.fingerprint))
        rc = err_set(e, ERR_MISMATCH,
                     "%s is not the model that the conversion was made from "
                     "(fingerprint %.12s, expected %.12s)",
                     path, w->plan_model.fingerprint, fingerprint);
    if (!rc)
        rc = engine_new(&w->base_engine, w->base, w->backend, NULL, e);
    if (!rc)
        open_text(w, path);
    return rc;
}

static int converted_engine(const struct workspace *w, struct conversion *c, struct engine **out,
                            struct err *e)
{
    const struct model *m;
    int rc = conversion_runtime(c, w->opt.rounded, &m, e);
    return rc ? rc : engine_new(out, m, w->backend, w->base_engine, e);
}

int workspace_open(struct workspace *w, const char *path, const struct progress *p, struct err *e)
{
    struct workspace fresh = {.opt = w->opt, .backend = w->backend, .memory = w->memory};
    char *base = NULL, print[65];
    bool is_conversion = conversion_is_dir(path);
    int rc = is_conversion ? conversion_base(path, &base, print, e) : OK;
    if (!rc && base && !file_exists(base))
        rc = err_set(e, ERR_IO, "%s was made from %s, which is not there: put the model back", path,
                     base);
    if (!rc)
        rc = open_base(&fresh, base ? base : path, base ? print : NULL, p, e);
    if (!rc && is_conversion)
        rc = conversion_open(&fresh.conv, path, fresh.base, &fresh.plan_model, e);
    if (!rc && fresh.conv)
        rc = converted_engine(&fresh, fresh.conv, &fresh.conv_engine, e);
    free(base);
    if (rc) {
        drop_model(&fresh);
        return rc;
    }
    drop_model(w);
    *w = fresh;
    return OK;
}

bool workspace_is_open(const struct workspace *w)
{
    return w->base != NULL;
}

static void copy_text(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
}

void workspace_info(const struct workspace *w, struct model_info *info)
{
    *info = (struct model_info){0};
    if (!w->base)
        return;
    const struct model_hparams *hp = &w->base->hp;
    copy_text(info->name, sizeof info->name, hp->name);
    copy_text(info->family, sizeof info->family, hp->family);
    copy_text(info->format, sizeof info->format, w->base->format == MODEL_GGUF ? "GGUF" : "HF");
    copy_text(info->dtype, sizeof info->dtype, dtype_traits(hp->dtype)->name);
    copy_text(info->path, sizeof info->path, w->base->path);
    info->n_layer = hp->n_layer;
    info->hidden = hp->hidden;
    info->n_head = hp->n_head;
    info->n_kv_head = hp->n_kv_head;
    info->head_dim = hp->head_dim;
    info->ffn = hp->ffn;
    info->vocab = hp->vocab;
    info->context = hp->context;
    info->rope_theta = hp->rope_theta;
    info->parameters = w->base->parameters;
    info->file_bytes = w->base->file_bytes;
    info->plan_model = w->plan_model;
    stock_facts_of(w->base, &info->stock);
    info->kv_bytes_per_token = (size_t)model_kv_numbers(hp) * dtype_bytes(DTYPE_F16, 1);
    info->skipped_layers = hp->skipped_layers;
    const char *why = model_convertible(w->base);
    info->convertible = !why;
    copy_text(info->reason, sizeof info->reason, why ? why : "");
    if (!w->tokenizer)
        snprintf(info->text_reason, sizeof info->text_reason, "%.255s", w->no_tokenizer.text);
}

bool workspace_has_conversion(const struct workspace *w)
{
    return w->conv != NULL;
}

const struct engine *workspace_engine(const struct workspace *w, enum side side)
{
    return side == SIDE_CONVERTED ? w->conv_engine : w->base_engine;
}

const struct model *workspace_model(const struct workspace *w, enum side side)
{
    return side == SIDE_ORIGINAL ? w->base : w->conv ? &w->conv->model : NULL;
}

static const void *present(const void *p, const struct err *why, const char *what, struct err *e)
{
    if (!p && e) {
        *e = *why;
        if (!e->status)
            err_set(e, ERR_ARG, "no %s: no model is open", what);
    }
    return p;
}

const struct tokenizer *workspace_tokenizer(const struct workspace *w, struct err *e)
{
    return present(w->tokenizer, &w->no_tokenizer, "tokenizer", e);
}

const struct chatfmt *workspace_chatfmt(const struct workspace *w, struct err *e)
{
    return present(w->chatfmt, &w->no_chatfmt, "chat template", e);
}

int workspace_vocab_limit(const struct workspace *w)
{
    int vocab = w->base ? w->base->hp.vocab : 0;
    int known = w->tokenizer ? tokenizer_size(w->tokenizer) : vocab;
    return known < vocab ? known : vocab;
}

bool workspace_calibrated(const struct workspace *w)
{
    return w->stats != NULL;
}

void workspace_stamp_plan(const struct workspace *w, struct rankplan *plan)
{
    if (!w->stats)
        return;
    copy_text(plan->calibration.source, sizeof plan->calibration.source, w->text.source);
    copy_text(plan->calibration.sha256, sizeof plan->calibration.sha256, w->text.sha256);
    plan->calibration.tokens = w->text.tokens;
    plan->calibration.seed = (long long)w->text.seed;
}

static int refuse_conversion(const struct workspace *w, struct err *e)
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
static int plan_shared_list(struct workspace *w, const struct rankplan *plan, const int **list,
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
    struct spectrum *out;
    struct err *err;
    int *rc;
    int first;
};

/* Wide layers take so much memory to solve that they cannot all be in work together. */
static int layers_at_once(const struct workspace *w, int rank)
{
    return memory_layers_at_once(w->base, w->memory, rank, pool_threads(w->backend->pool));
}

static void spectra_task(void *arg, int task, int thread)
{
    const struct spectra_task *t = arg;
    int i = t->first + task, l = t->layer[i];
    (void)thread;
    const struct moments *m = NULL;
    t->rc[i] = t->w->stats ? stats_layer(t->w->stats, l, &m, &t->err[i]) : OK;
    if (!t->rc[i])
        t->rc[i] =
            layer_spectrum(t->w, l, m, t->layout, t->rope_dim[i] == t->rope_dim[0] ? t->list : NULL,
                           t->rope_dim[i], &t->out[i], &t->err[i]);
    if (m)
        stats_release(t->w->stats, m);
}

int workspace_spectra(struct workspace *w, int n, const int *layer, enum plan_layout layout,
                      const int *rope_dim, struct spectrum *out, struct err *e)
{
    memset(out, 0, (size_t)n * sizeof *out);
    for (int i = 0; i < n; i++)
        if (!w->base || layer[i] < 0 || layer[i] >= w->base->hp.n_layer)
            return err_set(e, ERR_ARG, "no layer %d", layer[i]);
    int rc = refuse_conversion(w, e);
    if (rc)
        return rc;
    struct spectra_task t = {w, layer, rope_dim, layout, NULL, out, NULL, NULL, 0};
    if (layout == LAYOUT_SHARED && n > 0)
        rc = shared_list(w, rope_dim[0], &t.list, e);
    if (rc)
        return rc;
    t.err = mem_calloc((size_t)n, sizeof *t.err);
    t.rc = mem_calloc((size_t)n, sizeof *t.rc);
    rc = t.err && t.rc ? OK : err_nomem(e, (size_t)n * sizeof *t.err, "spectra");
    int at_once = layers_at_once(w, 1);
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
    if (!t && o->n_files)
        return e ? e->status : ERR_UNSUPPORTED;
    if (o->n_files)
        return calib_text_files(text, t, o->files, o->n_files, tokens, w->base->hp.context, e);
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
    int rc = folder && !spill ? err_nomem(e, 4096, "a path") : refuse_conversion(w, e);
    if (!rc)
        rc = stats_check_groups(w->base, o->stat_groups, e);
    if (!rc) {
        plan = memory_plan_for(w->base, w->memory, o->stat_groups, window, folder != NULL);
        rc = check_early(w, &plan, window, folder, e);
    }
    if (!rc)
        rc = calibration_text(w, o, &text, p, e);
    if (!rc)
        rc = obtain(w, &text, folder, &plan, sink, &stats, p, e);
    if (rc) {
        free(spill);
        calib_text_done(&text);
        return rc;
    }
    stats_free(w->stats);
    free(w->spill);
    free(w->shared);
    w->shared = NULL;
    calib_text_done(&w->text);
    w->stats = stats;
    w->spill = spill;
    w->text = text;
    w->seconds_calibrate = clock_now() - start;
    return OK;
}

/* TransMLA measures its second moments on the model with the narrowed rope: convert with the
 * latent = z itself, run that model over the same windows. c[L]. */
static int second_pass(struct workspace *w, const struct rankplan *plan, double **c,
                       const struct progress *p, struct err *e)
{
    struct conversion_input in = {.base = w->base, .stats = w->stats, .pool = w->backend->pool};
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

/* Layers side by side as memory allows; what would crowd it goes to disk as it is made. */
static void fit_into_memory(const struct workspace *w, const struct rankplan *plan,
                            struct conversion_input *in)
{
    int top = 1;
    for (int l = 0; l < plan->model.n_layer; l++)
        top = plan->layer[l].kv_lora_rank > top ? plan->layer[l].kv_lora_rank : top;
    in->at_once = layers_at_once(w, top);
    if (conversion_bytes(w->base, plan) > MEMORY_RESIDENT * w->memory)
        in->spill = w->spill;
}

static int sensitivity_measure(struct workspace *w, const struct rankplan *plan, const int *rank,
                               int n, struct sensitivity *s, const struct progress *p,
                               struct err *e)
{
    struct conversion_input in = {.base = w->base, .stats = w->stats, .pool = w->backend->pool};
    const struct tokenizer *t = workspace_tokenizer(w, e);
    int rc = t ? OK : e ? e->status : ERR_UNSUPPORTED;
    if (!rc && !w->text.n_held && !strcmp(w->text.source, "self"))
        rc = calib_text_hold_self(&w->text, w->base_engine, t, p, e);
    if (!rc && !s->n_point)
        rc = probe_energies(w, plan, s, e);
    in.at_once = layers_at_once(w, s->n);
    struct probe_text text = {w->text.held, w->text.n_held, w->text.held_len};
    return rc ? rc : probe_run(s, rank, n, w->base_engine, &in, plan, &text, p, e);
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
    *kl = NAN;
    return text.windows ? probe_kl(w->base_engine, g, &text, kl, p, e) : OK;
}

/* What this conversion showed, for the next prediction. The file may be missing: then it does not. */
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

int workspace_convert(struct workspace *w, const struct rankplan *plan,
                      const struct convert_sink *sink, const struct progress *p,
                      struct conversion_report *out, struct err *e)
{
    if (!w->base || !w->stats)
        return err_set(e, ERR_ARG, "nothing to convert with: open a model and calibrate first");
    int L = w->base->hp.n_layer;
    struct conversion_input in = {
        .base = w->base, .stats = w->stats, .pool = w->backend->pool, .measure = true};
    struct conversion *c = NULL;
    struct engine *g = NULL;
    double **second = NULL, start = clock_now();
    fit_into_memory(w, plan, &in);
    int rc = refuse_conversion(w, e);
    if (!rc)
        rc = plan_shared_list(w, plan, &in.shared, e);
    if (!rc && plan->method == METHOD_TRANSMLA)
        rc = check_second_pass(w, e);
    if (!rc && plan->method == METHOD_TRANSMLA) {
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
    if (!rc && plan->method == METHOD_MLATHE && !(plan->without & STEP_OUTPUT))
        rc = refit_outputs(c, w->base_engine, &w->text, p, e);
    if (!rc)
        rc = converted_engine(w, c, &g, e);
    if (!rc) {
        workspace_stamp_plan(w, &c->plan);
        c->report.seconds_calibrate = w->seconds_calibrate;
        c->report.seconds_solve = clock_now() - start;
        rc = measure_held(w, g, &c->report.kl_held, p, e);
        if (!rc)
            learn(w, plan, c->report.kl_held);
    }
    if (!rc && out)
        rc = report_copy(out, &c->report, e);
    if (rc) {
        engine_free(g);
        conversion_free(c);
        return rc;
    }
    drop_conversion(w);
    w->conv = c;
    w->conv_engine = g;
    return OK;
}

int workspace_adopt(struct workspace *w, struct conversion *c, struct err *e)
{
    struct engine *g = NULL;
    int rc = converted_engine(w, c, &g, e);
    if (rc) {
        conversion_free(c);
        return rc;
    }
    drop_conversion(w);
    w->conv = c;
    w->conv_engine = g;
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

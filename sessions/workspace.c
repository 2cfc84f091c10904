/* The open model, its statistics and its conversion. Everything new is built aside and swapped in
 * only when it is whole. The jobs on them are in workspace_calibrate, _measure, _convert and _heal.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/memory.h"
#include "sessions/workspace_device.h"
#include "sessions/prepared.h"
#include "sessions/workspace_private.h"

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

void workspace_drop_conversion(struct workspace *w)
{
    engine_free(w->conv_engine);
    conversion_free(w->conv);
    w->conv_engine = NULL;
    w->conv = NULL;
}

void workspace_drop_statistics(struct workspace *w)
{
    for (int l = 0; w->prepared && l < w->base->hp.n_layer; l++)
        prepared_done(&w->prepared[l]);
    free(w->prepared);
    stats_free(w->stats);
    free(w->spill);
    free(w->shared);
    w->prepared = NULL;
    w->stats = NULL;
    w->spill = NULL;
    w->shared = NULL;
    calib_text_done(&w->text);
}

/* Everything that hangs on the model. */
static void drop_model(struct workspace *w)
{
    workspace_drop_conversion(w);
    workspace_drop_statistics(w);
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

const char *workspace_device_note(const struct workspace *w)
{
    return w->backend->note;
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

int workspace_converted_engine(const struct workspace *w, struct conversion *c, struct engine **out,
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
        rc = workspace_converted_engine(&fresh, fresh.conv, &fresh.conv_engine, e);
    free(base);
    if (rc)
        drop_model(&fresh);
    if (rc == ERR_NOMEM && workspace_may_leave(w)) {
        struct err why = {0};
        snprintf(why.text, sizeof why.text, "%s", e ? e->text : "it does not fit the accelerator");
        if (!workspace_leave_device(w, why.text, NULL))
            return workspace_open(w, path, p, e);
    }
    if (rc)
        return rc;
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

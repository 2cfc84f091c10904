/* What stands beside the weights of an export: tokenizer files (copied, or made from a GGUF's
 * vocabulary), chat template, and a model card that says where everything came from. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "core/tokenizer_write.h"
#include "sessions/eval_record.h"
#include "sessions/export.h"

#define COPY_MAX ((size_t)512 << 20)

static const char *const tokenizer_files[] = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "tekken.json",
    "LICENSE",
    "LICENSE.txt",
};

static int save_text(struct export_job *j, const char *name, const char *text, size_t n,
                     struct err *e)
{
    char *path = path_join(j->dir, name);
    int rc = path && text ? file_save(path, text, n, e) : err_nomem(e, n, name);
    free(path);
    return rc ? rc : export_add_file(j, name, e);
}

int export_save_json(struct export_job *j, const char *name, const cJSON *json, struct err *e)
{
    char *text = json ? json_text(json, true) : NULL;
    int rc = save_text(j, name, text, text ? strlen(text) : 0, e);
    free(text);
    return rc;
}

static int copy_files(struct export_job *j, struct err *e)
{
    int rc = OK;
    for (size_t i = 0; i < sizeof tokenizer_files / sizeof *tokenizer_files && !rc; i++) {
        char *from = path_join(j->base->path, tokenizer_files[i]), *text = NULL;
        size_t n;
        if (!from)
            return err_nomem(e, 4096, "a path");
        if (file_exists(from) && !(rc = file_read(from, COPY_MAX, &text, &n, e)))
            rc = save_text(j, tokenizer_files[i], text, n, e);
        free(text);
        free(from);
    }
    return rc;
}

static int make_files(struct export_job *j, struct err *e)
{
    cJSON *tokenizer = NULL, *config = NULL;
    int rc = tokenizer_json_from_gguf(j->base->path, &tokenizer, &config, e);
    if (rc == ERR_UNSUPPORTED) /* the weights are worth having without; the card says so */
        return OK;
    if (!rc)
        rc = export_save_json(j, "tokenizer.json", tokenizer, e);
    if (!rc)
        rc = export_save_json(j, "tokenizer_config.json", config, e);
    const char *template = json_str_or(config, "chat_template", NULL);
    if (!rc && template)
        rc = save_text(j, "chat_template.jinja", template, strlen(template), e);
    cJSON_Delete(tokenizer);
    cJSON_Delete(config);
    return rc;
}

/* --- the card ----------------------------------------------------------------------------- */

struct card {
    char *text;
    size_t n, cap;
    bool failed;
};

static void line(struct card *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void line(struct card *c, const char *fmt, ...)
{
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof text)
        n = (int)strlen(text);
    if (!mem_grow((void **)&c->text, &c->cap, c->n + (size_t)n + 2, 1)) {
        c->failed = true;
        return;
    }
    memcpy(c->text + c->n, text, (size_t)n);
    c->n += (size_t)n;
    c->text[c->n++] = '\n';
    c->text[c->n] = 0;
}

static double mean_error(const struct conversion_report *r)
{
    double sum = 0;
    for (int l = 0; l < r->n_layer; l++)
        sum += r->layer[l].error / r->n_layer;
    return sum;
}

/* What was measured on the conversion and is kept in its folder. */
static void card_measured(struct card *c, const struct export_job *j)
{
    struct eval_list list = {0};
    if (!j->o->from || eval_list_load(&list, j->o->from, NULL))
        return;
    for (size_t i = 0; i < list.n; i++) {
        const struct eval_record *r = &list.r[i];
        const struct eval_result *p = &r->ppl;
        const struct task_result *t = &r->task;
        enum task_rule rule = eval_headline(t->task);
        if (r->kind == EVAL_PPL)
            line(c, "- %s, %s protocol, windows of %d: perplexity %.3f ± %.3f on %lld tokens.",
                 path_base(r->file), eval_protocol_name(r->protocol), r->ctx, p->ppl, p->ppl_err,
                 p->tokens);
        if (r->kind == EVAL_PPL && p->compared)
            line(c,
                 "  The original: %.3f; KL(original‖converted) %.4f ± %.4f nats a token, same "
                 "first choice %.1f %%.",
                 p->ppl_against, p->kl_mean, p->kl_err, 100 * p->same_top1);
        if (r->kind == EVAL_TASK)
            line(c, "- %s (%s): %.1f %% ± %.1f %% of %d questions.", choice_name(t->task),
                 path_base(r->file), 100 * t->acc[rule].mean, 100 * t->acc[rule].err, t->n);
        if (r->kind == EVAL_TASK && t->compared)
            line(c, "  The original: %.1f %%.", 100 * t->acc_against[rule].mean);
    }
    eval_list_free(&list);
}

/* Healing runs, oldest first. */
static void card_healing(struct card *c, const struct export_job *j)
{
    const cJSON *run;
    cJSON_ArrayForEach(run, j->healing)
    {
        double tokens = 0, before = NAN, after = NAN;
        json_num_opt(run, "tokens", &tokens, "healing", NULL);
        json_num_opt(run, "kl_before", &before, "healing", NULL);
        json_num_opt(run, "kl_after", &after, "healing", NULL);
        if (isfinite(before) && isfinite(after))
            line(c,
                 "- Healed by distillation on %.0f tokens of %.200s: held-out KL %.4f → %.4f "
                 "(trained: %.40s).",
                 tokens, json_str_or(run, "text", "text"), before, after,
                 json_str_or(run, "train", "all"));
    }
}

static void card_losses(struct card *c, const struct export_job *j)
{
    const struct rankplan *p = j->plan;
    double error = mean_error(j->result);
    line(c, "\n## What it cost\n");
    if (isfinite(error))
        line(c,
             "- Attention output of a layer: relative squared error %.4f on average over the "
             "layers, measured on held calibration samples.",
             error);
    if (isfinite(p->predicted_kl))
        line(c, "- Predicted KL(original‖converted): %.3f nats a token.", p->predicted_kl);
    if (isfinite(j->result->kl_held))
        line(c, "- KL on text held back from calibration: %.4f nats a token.", j->result->kl_held);
    card_healing(c, j);
    card_measured(c, j);
    if (j->x.narrow)
        line(c, "- Queries of rank %d keep %.3f %% of their weighted energy.", j->x.narrow_rank,
             100 * j->report->query_kept);
    if (j->x.mtp)
        line(c,
             "- One prediction layer more (num_nextn_predict_layers 1) for speculative decoding: a "
             "copy of the last layer, its projection %s. The text stays what it is without.",
             j->x.join ? "fitted to text" : "not fitted");
    if (j->report->bias_left > 0)
        line(c,
             "- The engine has no biases: they are folded into the matrices, by a combination of "
             "each input that is nearly one (off by %.2g, squared, in the worst layer).",
             j->report->bias_left);
    if (j->x.freq_error > 1e-6)
        line(c,
             "- The engine knows only a geometric grid of rope frequencies: the largest one is off "
             "by %.2g radians a token.",
             j->x.freq_error);
    line(c, "- Measure it on your own text: `mlathe eval CONVERSION --against ORIGINAL --ppl "
            "FILE`.");
}

static void card_how(struct card *c, const struct export_job *j)
{
    const struct stock_export *x = &j->x;
    line(c, "\n## How it loads\n");
    if (x->engine == STOCK_HF) {
        line(c, "- `transformers`: `AutoModelForCausalLM.from_pretrained(DIR)`, without remote "
                "code. vLLM runs it with `--model-impl transformers`.");
        line(c,
             "- Not made for vLLM's and SGLang's own DeepSeek classes: they use another "
             "epsilon in the latent's norm, and would answer nonsense%s.",
             x->latent_eps == x->rms_eps ? " if it differed; here both are the same" : "");
    } else {
        line(c,
             "- %s: `%s DIR`. Not made for `transformers`, whose epsilon in the latent's "
             "norm is another%s.",
             stock_name(x->engine),
             x->engine == STOCK_VLLM ? "vllm serve" : "python -m sglang.launch_server --model-path",
             x->latent_eps == 1e-6 ? "; here both are the same" : "");
    }
    line(c, "- Activations in float16 underflow the scaled latent: run it in bfloat16 or float32.");
    line(c,
         "- The latent's norm is a constant here: kv_a's latent rows are scaled by 2^-%d, so "
         "that the norm divides by sqrt(%g), and its weight undoes both.",
         x->shift, x->latent_eps);
}

static int write_card(struct export_job *j, struct err *e)
{
    const struct rankplan *p = j->plan;
    const struct stock_export *x = &j->x;
    struct card c = {0};
    char before[32], after[32];
    int L = p->model.n_layer;
    kvmem_text((double)rankplan_numbers_gqa(&p->model) * 2, before, sizeof before);
    kvmem_text((double)(x->c + x->R) * L * 2, after, sizeof after);
    line(&c, "---\nlibrary_name: transformers\ntags: [mla, mlathe]\n---\n");
    line(&c, "# %s, as MLA\n", p->model.name);
    line(&c, "Converted from grouped-query to multi-head latent attention by mlathe " MLATHE_VERSION
             ".\n");
    line(&c, "- Original: %s (%s), fingerprint %.16s…", p->model.name, p->model.family,
         p->model.fingerprint);
    line(&c,
         "- Method %s, layout %s: kv_lora_rank %d, qk_rope_head_dim %d, qk_nope_head_dim %d, "
         "v_head_dim %d, %d layers.",
         p->method == METHOD_TRANSMLA ? "transmla" : "mlathe",
         p->layout == LAYOUT_STOCK ? "stock"
         : p->layout == LAYOUT_OWN ? "own"
                                   : "shared",
         x->c, x->R, x->P, x->V, L);
    line(&c, "- KV cache: %s a token instead of %s (16 bits a number), %.1f %%.", after, before,
         100 * j->report->verdict.kept);
    if (p->calibration.source[0])
        line(&c, "- Calibration: %s, %lld tokens, seed %lld, sha256 %.16s….", p->calibration.source,
             p->calibration.tokens, p->calibration.seed, p->calibration.sha256);
    line(&c, "- Numbers: %s%s.", dtype_traits(x->dtype)->name,
         x->fp8 ? ", feed-forward maps in FP8 (E4M3, 128 × 128 blocks)" : "");
    card_losses(&c, j);
    card_how(&c, j);
    line(&c, "\nThe original's licence applies to this model as well.");
    int rc =
        c.failed ? err_nomem(e, c.n, "a model card") : save_text(j, "README.md", c.text, c.n, e);
    free(c.text);
    return rc;
}

int export_text_files(struct export_job *j, struct err *e)
{
    int rc = j->base->format == MODEL_GGUF ? make_files(j, e) : copy_files(j, e);
    return rc ? rc : write_card(j, e);
}

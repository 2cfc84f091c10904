/* logits, generate: running one model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/kvmem.h"
#include "core/sampler.h"
#include "sessions/draft.h"
#include "ui/cli.h"
#include "sessions/clock.h"

#define LOGITS_BLOCK 64 /* positions computed at a time with --all */
#define LOGITS_TOP 10   /* shown without --json */

static int check_ids(const struct ids *ids, int vocab, struct err *e)
{
    if (!ids->n)
        return err_set(e, ERR_ARG, "no tokens: give at least one");
    for (size_t i = 0; i < ids->n; i++)
        if (ids->v[i] < 0 || ids->v[i] >= vocab)
            return err_set(e, ERR_ARG, "id %d: the model has %d tokens: ids are counted from 0",
                           ids->v[i], vocab);
    return OK;
}

/* --- logits ------------------------------------------------------------------------------- */

static void print_row(const float *row, int vocab)
{
    putchar('[');
    for (int i = 0; i < vocab; i++) {
        if (isfinite(row[i])) /* nine digits carry a float exactly */
            printf("%s%.9g", i ? "," : "", (double)row[i]);
        else
            printf("%snull", i ? "," : "");
    }
    putchar(']');
}

static void print_top(const struct workspace *w, const float *row, int vocab)
{
    const struct tokenizer *t = workspace_tokenizer(w, NULL);
    float last = INFINITY;
    int32_t last_id = -1;
    for (int k = 0; k < LOGITS_TOP && k < vocab; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < vocab; i++)
            if ((row[i] < last || (row[i] == last && i > last_id)) &&
                (best < 0 || row[i] > row[best]))
                best = i;
        if (best < 0)
            return;
        last = row[best];
        last_id = best;
        char *text = NULL, clean[256] = "";
        size_t n;
        if (t && best < tokenizer_size(t) && !tokenizer_decode(t, &best, 1, false, &text, &n, NULL))
            cli_clean(text, clean, sizeof clean);
        free(text);
        printf("%8d %12.6f  %s\n", best, (double)row[best], clean);
    }
}

/* Prints as it goes: logits of a long input would not fit a tree of JSON nodes. */
static int logits_all(struct cli *c, struct infer *t, const struct ids *ids, int vocab,
                      struct err *e)
{
    float *rows = mem_aligned((size_t)LOGITS_BLOCK * (size_t)vocab, sizeof *rows);
    int rc = rows ? OK : err_nomem(e, (size_t)vocab * LOGITS_BLOCK * sizeof *rows, "logits");
    printf("{\"logits\": [");
    for (size_t at = 0; at < ids->n && !rc; at += LOGITS_BLOCK) {
        int n = ids->n - at < LOGITS_BLOCK ? (int)(ids->n - at) : LOGITS_BLOCK;
        rc = infer_prefill(t, ids->v + at, n, INFER_ALL, rows, &c->progress, e);
        for (int i = 0; i < n && !rc; i++) {
            fputs(at || i ? ",\n" : "", stdout);
            print_row(rows + (size_t)i * (size_t)vocab, vocab);
        }
    }
    if (!rc)
        puts("]}");
    free(rows);
    return rc;
}

static int logits_last(struct cli *c, const struct workspace *w, struct infer *t,
                       const struct ids *ids, int vocab, struct err *e)
{
    float *row = mem_aligned((size_t)vocab, sizeof *row);
    if (!row)
        return err_nomem(e, (size_t)vocab * sizeof *row, "logits");
    int rc = infer_prefill(t, ids->v, (int)ids->n, INFER_LAST, row, &c->progress, e);
    cli_progress_end(c);
    if (!rc && c->o.json) {
        printf("{\"logits\": ");
        print_row(row, vocab);
        puts("}");
    } else if (!rc) {
        print_top(w, row, vocab);
    }
    free(row);
    return rc;
}

int cli_logits(struct cli *c, struct err *e)
{
    struct workspace *w = NULL;
    struct infer *t = NULL;
    struct ids ids = {0};
    enum dtype kv = DTYPE_F32;
    int vocab = 0;
    if (!c->o.ids)
        return cli_usage(e, "give --ids 1,2,3");
    int rc = cli_parse_ids(c->o.ids, &ids, e);
    if (!rc)
        rc = cli_cache_type(c, &kv, e);
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_EXACT, &w, e);
    if (!rc) {
        const struct engine *g = workspace_engine(w, cli_side(c, w));
        vocab = engine_model(g)->hp.vocab;
        rc = check_ids(&ids, vocab, e);
        if (!rc)
            rc = infer_new(&t, g, (int)ids.n, kv, e);
    }
    if (!rc)
        rc = c->o.all ? logits_all(c, t, &ids, vocab, e) : logits_last(c, w, t, &ids, vocab, e);
    infer_free(t);
    workspace_free(w);
    ids_free(&ids);
    return rc;
}

/* --- generate ----------------------------------------------------------------------------- */

struct generation {
    struct workspace *w;
    const struct tokenizer *t; /* may be NULL */
    struct infer *timeline;
    struct draft *draft; /* or NULL */
    struct sampler *sampler;
    float *logits;
    struct ids prompt, made;
    char *text;
    size_t n, cap;
    struct tokenizer_stream stream;
    const char *stop;
    double seconds;
};

static int prepare(struct cli *c, struct generation *g, struct err *e)
{
    enum dtype kv = DTYPE_F16;
    struct sampler_options so = {c->o.temperature, (int)c->o.top_k, c->o.top_p, c->o.min_p,
                                 (uint64_t)c->o.seed};
    char *text = NULL;
    size_t n = 0;
    int rc = cli_cache_type(c, &kv, e);
    if (!rc && c->o.ids)
        rc = c->o.text || c->o.file ? cli_usage(e, "give --ids or a text, not both")
                                    : cli_parse_ids(c->o.ids, &g->prompt, e);
    else if (!rc)
        rc = cli_input(c, &text, &n, e);
    if (!rc)
        rc = cli_open(c, c->arg[0], CLI_TALK, &g->w, e);
    if (!rc) {
        g->t = workspace_tokenizer(g->w, e);
        if (!c->o.ids)
            rc = !g->t ? e->status
                       : tokenizer_encode(g->t, text, n,
                                          TOKENIZE_BOS | (c->o.special ? TOKENIZE_SPECIAL : 0),
                                          &g->prompt, e);
    }
    free(text);
    if (rc)
        return rc;
    const struct engine *engine = workspace_engine(g->w, cli_side(c, g->w));
    const struct model_hparams *hp = &engine_model(engine)->hp;
    int vocab = hp->vocab;
    long long total = (long long)g->prompt.n + c->o.predict;
    rc = check_ids(&g->prompt, vocab, e);
    if (!rc && g->prompt.n > (size_t)hp->context)
        rc = err_set(e, ERR_LIMIT, "%zu tokens do not fit the model's context of %d", g->prompt.n,
                     hp->context);
    if (total > hp->context) /* the rest is a stop, not an error */
        total = hp->context;
    if (!rc && !(g->logits = mem_aligned((size_t)vocab, sizeof *g->logits)))
        rc = err_nomem(e, (size_t)vocab * sizeof *g->logits, "logits");
    if (!rc)
        rc = sampler_new(&g->sampler, &so, vocab, e);
    if (!rc)
        rc = infer_new(&g->timeline, engine, (int)total, kv, e);
    return rc || !c->o.draft ? rc : draft_new(&g->draft, engine, g->timeline, kv, e);
}

static bool is_end(const struct generation *g, const struct model_hparams *hp, int32_t id)
{
    if (g->t)
        return tokenizer_is_eos(g->t, id);
    for (int i = 0; i < hp->n_eos; i++)
        if (hp->eos[i] == id)
            return true;
    return false;
}

static int emit(struct cli *c, struct generation *g, const char *bytes, size_t n, struct err *e)
{
    void *grown = g->text;
    if (!mem_grow(&grown, &g->cap, g->n + n + 1, 1))
        return err_nomem(e, g->n + n, "the text");
    g->text = grown;
    memcpy(g->text + g->n, bytes, n);
    g->n += n;
    g->text[g->n] = 0;
    if (!c->o.json) {
        cli_print_text(stdout, bytes, n);
        fflush(stdout);
    }
    return OK;
}

static int take(struct cli *c, struct generation *g, int32_t id, struct err *e)
{
    char bytes[TOKENIZER_STREAM_OUT];
    void *grown = g->made.v;
    if (!mem_grow(&grown, &g->made.cap, g->made.n + 1, sizeof id))
        return err_nomem(e, g->made.n * sizeof id, "token ids");
    g->made.v = grown;
    g->made.v[g->made.n++] = id;
    if (g->t)
        return emit(c, g, bytes, tokenizer_stream_push(g->t, &g->stream, id, bytes), e);
    if (!c->o.json)
        printf("%s%d", g->made.n > 1 ? "," : "", id);
    return OK;
}

static int generate(struct cli *c, struct generation *g, struct err *e)
{
    const struct model_hparams *hp = &engine_model(workspace_engine(g->w, cli_side(c, g->w)))->hp;
    int limit = workspace_vocab_limit(g->w);
    int rc = infer_prefill(g->timeline, g->prompt.v, (int)g->prompt.n, INFER_LAST, g->logits,
                           &c->progress, e);
    cli_progress_end(c);
    double start = clock_now();
    g->stop = "length";
    for (long long i = 0; i < c->o.predict && !rc; i++) {
        int32_t id = sampler_next(g->sampler, g->logits, limit);
        rc = take(c, g, id, e);
        if (!rc && !c->o.ignore_eos && is_end(g, hp, id)) {
            g->stop = "eos";
            break;
        }
        if (!rc && cli_interrupted())
            rc = err_set(e, ERR_CANCELLED, "stopped");
        if (draft_pos(g->draft, g->timeline) >= infer_context(g->timeline)) {
            g->stop = i + 1 < c->o.predict ? "context" : g->stop;
            break;
        }
        if (!rc && i + 1 < c->o.predict)
            rc = draft_step(g->draft, g->timeline, id, limit, g->logits, e);
    }
    g->seconds = clock_now() - start;
    char bytes[TOKENIZER_STREAM_OUT];
    if (g->t && !rc)
        rc = emit(c, g, bytes, tokenizer_stream_flush(&g->stream, bytes), e);
    if (!c->o.json)
        putchar('\n');
    return rc;
}

int cli_generate(struct cli *c, struct err *e)
{
    struct generation g = {0};
    if (c->o.predict < 0)
        c->o.predict = 128;
    int rc = prepare(c, &g, e);
    if (!rc)
        rc = generate(c, &g, e);
    struct draft_count n = draft_count(g.draft);
    double rate = g.seconds > 0 ? (double)g.made.n / g.seconds : 0;
    if (!rc && c->o.json) {
        cJSON *o = cJSON_CreateObject();
        cJSON_AddItemToObject(o, "ids", cli_json_ids(g.made.v, g.made.n));
        if (g.t)
            cJSON_AddStringToObject(o, "text", g.text ? g.text : "");
        else
            cJSON_AddNullToObject(o, "text");
        cJSON_AddNumberToObject(o, "prompt_tokens", (double)g.prompt.n);
        cli_json_add(o, "tokens_per_sec", rate);
        cli_json_drafts(o, n.made, n.right);
        cJSON_AddStringToObject(o, "stop", g.stop);
        rc = cli_print_json(o, e);
    } else if (!rc) {
        cli_say(c, "%zu tokens, %.1f tokens/s", g.made.n, rate);
        if (n.made)
            cli_say(c, "guessed ahead: %lld of %lld tokens were right", n.right, n.made);
    }
    free(g.text);
    free(g.logits);
    ids_free(&g.prompt);
    ids_free(&g.made);
    sampler_free(g.sampler);
    draft_free(g.draft);
    infer_free(g.timeline);
    workspace_free(g.w);
    return rc;
}

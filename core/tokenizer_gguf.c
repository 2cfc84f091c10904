/* Reader of the vocabulary inside a GGUF: models "gpt2" (byte-level merges; the pre-tokenizer is
 * named, its regex is ours) and "llama" (SentencePiece: merges follow from the scores). */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/gguf.h"

#define KEY "tokenizer.ggml."

/* token_type values of the format. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

#define DIGITS_GPT2 {pretok_gpt2}, true, false, false, false
static const struct tok_pre_rules families[] = {
    {"gpt-2", {pretok_gpt2}, false, false, false, false},
    {"phi-2", {pretok_gpt2}, false, false, false, false},
    {"mpt", {pretok_gpt2}, false, false, false, false},
    {"olmo", {pretok_gpt2}, false, false, false, false},
    {"smollm", DIGITS_GPT2},
    {"starcoder", DIGITS_GPT2},
    {"refact", DIGITS_GPT2},
    {"command-r", DIGITS_GPT2},
    {"codeshell", DIGITS_GPT2},
    {"exaone", DIGITS_GPT2},
    {"qwen2", {pretok_qwen2}, false, true, false, false},
    {"deepseek-r1-qwen", {pretok_qwen2}, false, true, false, false},
    {"stablelm2", {pretok_qwen2}, false, false, false, false},
    {"llama-bpe", {pretok_llama3}, false, false, true, true},
    {"llama3", {pretok_llama3}, false, false, true, true},
    {"llama-v3", {pretok_llama3}, false, false, true, true},
    {"falcon3", {pretok_llama3}, false, false, true, true},
    {"dbrx", {pretok_llama3}, false, false, false, false},
    {"smaug-bpe", {pretok_llama3}, false, false, false, false},
    {"glm4", {pretok_llama3}, false, false, false, false},
    {"chatglm-bpe", {pretok_llama3}, false, false, false, false},
    {"tekken", {pretok_tekken}, false, false, true, true},
    {"gpt-4o", {pretok_o200k}, false, false, false, false},
    {"llama4", {pretok_o200k}, false, false, false, false},
    {"falcon", {pretok_falcon_marks, pretok_gpt2, "[0-9][0-9][0-9]"}, false, false, false, false},
    {"default",
     {pretok_old_marks, pretok_gpt2, "\\p{N}+|[0-9][0-9][0-9]"},
     false,
     false,
     false,
     false},
    {"deepseek-v3",
     {"\\p{N}{1,3}", pretok_deepseek_han, pretok_deepseek},
     false,
     false,
     false,
     true},
};

struct reader {
    struct tokenizer *t;
    const struct gguf *g;
    const char *path;
    struct err *e;
    struct gguf_str *tokens;
    const uint8_t *types;  /* int32, unaligned; may be NULL */
    const uint8_t *scores; /* float, unaligned; may be NULL */
};

static int32_t type_of(const struct reader *r, int32_t id)
{
    int32_t type = TYPE_NORMAL;
    if (r->types)
        memcpy(&type, r->types + (size_t)id * 4, 4);
    return type;
}

static int read_strings(struct reader *r, const char *key, struct gguf_str **out, size_t *n)
{
    *n = gguf_array_len(r->g, key, GGUF_STRING);
    *out = NULL;
    if (!*n)
        return err_set(r->e, ERR_FORMAT, "%s: %s is missing or empty", r->path, key);
    *out = mem_calloc(*n, sizeof **out);
    if (!*out)
        return err_nomem(r->e, *n * sizeof **out, key);
    return gguf_array_strings(r->g, key, *out, *n, r->e);
}

static int read_tables(struct reader *r)
{
    size_t n;
    int rc = read_strings(r, KEY "tokens", &r->tokens, &n);
    if (!rc)
        rc = tok_reserve(r->t, n, r->e);
    if (rc)
        return rc;
    r->types = gguf_array_data(r->g, KEY "token_type", GGUF_I32);
    r->scores = gguf_array_data(r->g, KEY "scores", GGUF_F32);
    if (r->types && gguf_array_len(r->g, KEY "token_type", GGUF_I32) != n)
        return err_set(r->e, ERR_FORMAT, "%s: token_type has another length than tokens", r->path);
    if (r->scores && gguf_array_len(r->g, KEY "scores", GGUF_F32) != n)
        return err_set(r->e, ERR_FORMAT, "%s: scores has another length than tokens", r->path);
    for (int32_t id = 0; !rc && id < r->t->n; id++)
        rc = tok_set_piece(r->t, id, r->tokens[id].s, r->tokens[id].n, type_of(r, id) == TYPE_BYTE,
                           r->e);
    return rc ? rc : tok_index_keys(r->t, r->e);
}

static int read_added(struct reader *r)
{
    struct gguf_str name = {"", 0};
    if (gguf_has(r->g, "general.name"))
        gguf_string(r->g, "general.name", &name, NULL);
    /* Phi-3's role tokens swallow the white space behind them; only the name tells. */
    bool phi3 = memmem(name.s, name.n, "phi-3", 5) || memmem(name.s, name.n, "Phi-3", 5);
    for (int32_t id = 0; id < r->t->n; id++) {
        int32_t type = type_of(r, id);
        if (type != TYPE_CONTROL && type != TYPE_USER && type != TYPE_UNKNOWN)
            continue;
        struct added_token token = {
            .text = r->tokens[id].s, .n = r->tokens[id].n, .id = id, .special = type != TYPE_USER};
        token.rstrip = phi3 && token.n > 3 && token.text[0] == '<' &&
                       (token.text[1] == '|' || token.text[1] == '/');
        int rc = tok_add_token(r->t, &token, false, r->e);
        if (rc)
            return rc;
    }
    return tok_index_texts(r->t, r->e);
}

static int read_merges(struct reader *r)
{
    struct gguf_str *merges;
    size_t n;
    int rc = read_strings(r, KEY "merges", &merges, &n);
    if (!rc)
        rc = bpe_new(&r->t->bpe, n, r->e);
    for (size_t i = 0; !rc && i < n; i++) {
        struct gguf_str m = merges[i];
        const char *gap = m.n > 2 ? memchr(m.s + 1, ' ', m.n - 1) : NULL;
        size_t left = gap ? (size_t)(gap - m.s) : 0;
        if (!gap)
            rc = err_set(r->e, ERR_FORMAT, "%s: merge %zu is not a pair", r->path, i);
        else
            rc = tok_add_merge(r->t, m.s, left, gap + 1, m.n - left - 1, (uint32_t)i, r->e);
    }
    free(merges);
    return rc;
}

const struct tok_pre_rules *tok_pre_find(const char *pre, size_t n)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strlen(families[i].pre) == n && !memcmp(families[i].pre, pre, n))
            return &families[i];
    return NULL;
}

static int use_family(struct reader *r)
{
    struct gguf_str pre = {"", 0};
    struct tokenizer *t = r->t;
    if (!gguf_has(r->g, KEY "pre"))
        return err_set(r->e, ERR_UNSUPPORTED,
                       "%s: the file does not name its pre-tokenizer (" KEY "pre), so the text "
                       "would be cut in the wrong places; convert it anew",
                       r->path);
    int rc = gguf_string(r->g, KEY "pre", &pre, r->e);
    if (rc)
        return rc;
    const struct tok_pre_rules *f = tok_pre_find(pre.s, pre.n);
    if (f) {
        t->ignore_merges = f->ignore_merges;
        t->adds_bos = f->adds_bos;
        if (f->nfc)
            t->norm[t->n_norm++] = tok_norm_nfc();
        if (f->digits)
            rc = pretok_add_digits(t->pretok, true, r->e);
        for (int k = 0; !rc && k < 3 && f->split[k]; k++)
            rc = pretok_add_split(t->pretok, f->split[k], false, PRETOK_ISOLATED, false, r->e);
        return rc;
    }
    return err_set(r->e, ERR_UNSUPPORTED, "%s: pre-tokenizer \"%.*s\" is not supported", r->path,
                   pre.n > 60 ? 60 : (int)pre.n, pre.s);
}

static int read_byte_level(struct reader *r)
{
    r->t->byte_level = true;
    int rc = use_family(r);
    if (!rc)
        rc = read_tables(r);
    if (!rc)
        rc = read_merges(r);
    return rc;
}

/* The file's scores lie unaligned. */
static int merges_from_scores(struct reader *r)
{
    float *score = mem_calloc((size_t)r->t->n, sizeof *score);
    if (!score)
        return err_nomem(r->e, (size_t)r->t->n * sizeof *score, "scores");
    memcpy(score, r->scores, (size_t)r->t->n * sizeof *score);
    int rc = tok_merges_from_scores(r->t, score, r->path, r->e);
    free(score);
    return rc;
}

static int read_sentencepiece(struct reader *r)
{
    struct tokenizer *t = r->t;
    t->byte_fallback = t->fuse_unk = true;
    t->adds_bos = true;
    bool prefix = gguf_bool_or(r->g, KEY "add_space_prefix", true);
    if (prefix) {
        t->strip_start = true;
        t->norm[t->n_norm].kind = NORM_PREPEND;
        t->norm[t->n_norm++].to = TOK_SPACE;
    }
    t->norm[t->n_norm].kind = NORM_REPLACE;
    t->norm[t->n_norm].from = " ";
    t->norm[t->n_norm++].to = TOK_SPACE;
    int rc = read_tables(r);
    if (!rc && !r->scores)
        rc = err_set(r->e, ERR_FORMAT, "%s: " KEY "scores is missing", r->path);
    if (rc)
        return rc;
    /* Control and unknown pieces are never the result of merging. */
    for (int32_t id = 0; id < t->n; id++)
        if (type_of(r, id) == TYPE_CONTROL || type_of(r, id) == TYPE_UNKNOWN)
            t->pieces[id].key = NULL;
    free(t->by_key.slots);
    t->by_key.slots = NULL;
    rc = tok_index_keys(t, r->e);
    return rc ? rc : merges_from_scores(r);
}

static int32_t id_of(const struct reader *r, const char *key)
{
    long long id = gguf_int_or(r->g, key, -1);
    return id >= 0 && id < r->t->n ? (int32_t)id : -1;
}

static int read_settings(struct reader *r)
{
    static const char *const ends[] = {KEY "eos_token_id", KEY "eot_token_id", KEY "eom_token_id"};
    struct tokenizer *t = r->t;
    struct gguf_str text;
    int rc = OK;
    t->bos = id_of(r, KEY "bos_token_id");
    t->unk = id_of(r, KEY "unknown_token_id");
    t->adds_bos = gguf_bool_or(r->g, KEY "add_bos_token", t->adds_bos);
    if (t->bos >= 0)
        t->bos_text = t->pieces[t->bos].text;
    for (int i = 0; !rc && i < 3; i++)
        rc = tok_add_eos(t, id_of(r, ends[i]), r->e);
    if (t->n_eos)
        t->eos_text = t->pieces[t->eos[0]].text;
    if (rc || !gguf_has(r->g, "tokenizer.chat_template"))
        return rc;
    rc = gguf_string(r->g, "tokenizer.chat_template", &text, r->e);
    if (!rc && !(t->chat_template = tok_keep(t, text.s, text.n)))
        rc = err_nomem(r->e, text.n, "the chat template");
    return rc;
}

static int read_vocabulary(struct reader *r)
{
    struct gguf_str model = {"none", 4};
    int rc = gguf_has(r->g, KEY "model") ? gguf_string(r->g, KEY "model", &model, r->e) : OK;
    if (rc)
        return rc;
#define IS(name) (model.n == strlen(name) && !memcmp(model.s, name, model.n))
    if (IS("none") || IS("no_vocab"))
        return err_set(r->e, ERR_UNSUPPORTED,
                       "%s: the file carries no vocabulary; text cannot be tokenised with it",
                       r->path);
    if (IS("gpt2"))
        rc = read_byte_level(r);
    else if (IS("llama"))
        rc = read_sentencepiece(r);
    else
        return err_set(r->e, ERR_UNSUPPORTED, "%s: tokenizer model \"%.*s\" is not supported",
                       r->path, model.n > 60 ? 60 : (int)model.n, model.s);
#undef IS
    if (!rc)
        rc = read_settings(r);
    return rc ? rc : read_added(r);
}

int tok_read_gguf(struct tokenizer *t, const char *path, struct err *e)
{
    struct gguf *g;
    int rc = gguf_open(&g, path, e);
    if (rc)
        return rc;
    struct reader r = {.t = t, .g = g, .path = path, .e = e};
    rc = read_vocabulary(&r);
    free(r.tokens);
    gguf_close(g);
    return rc;
}

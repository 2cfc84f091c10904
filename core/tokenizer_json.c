/* Reader of Hugging Face tokenizer.json: models BPE and Unigram, with the normalizers,
 * pre-tokenizers and decoders that byte-level and SentencePiece-like vocabularies use. Everything
 * else is refused by its name. Dropout is ignored, as it belongs to training. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

struct reader {
    struct tokenizer *t;
    const char *path;
    struct err *e;
};

typedef int (*item_fn)(struct reader *r, const cJSON *item, const char *type);

static int refuse(struct reader *r, const char *what, const char *name)
{
    return err_set(r->e, ERR_UNSUPPORTED, "%s: %s \"%s\" is not supported", r->path, what, name);
}

static bool flag(const cJSON *obj, const char *key, bool fallback)
{
    const cJSON *item = json_get(obj, key);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : fallback;
}

/* Calls fn for a component, or for the members of a Sequence of components. */
static int each_item(struct reader *r, const cJSON *obj, const char *list, item_fn fn)
{
    const char *type = json_str_or(obj, "type", "");
    const cJSON *item;
    if (!obj || cJSON_IsNull(obj))
        return OK;
    if (strcmp(type, "Sequence"))
        return fn(r, obj, type);
    cJSON_ArrayForEach(item, json_get(obj, list))
    {
        int rc = fn(r, item, json_str_or(item, "type", ""));
        if (rc)
            return rc;
    }
    return OK;
}

/* *step is the new last one. */
static int add_norm(struct reader *r, int kind, const char *from, const char *to,
                    struct norm_step **step)
{
    struct tokenizer *t = r->t;
    if (t->n_norm == TOK_MAX_NORM)
        return err_set(r->e, ERR_LIMIT, "%s: more than %d normalizers", r->path, TOK_MAX_NORM);
    *step = &t->norm[t->n_norm];
    (*step)->kind = kind;
    (*step)->from = from ? tok_keep(t, from, strlen(from)) : NULL;
    (*step)->to = to ? tok_keep(t, to, strlen(to)) : NULL;
    if ((from && !(*step)->from) || (to && !(*step)->to))
        return err_nomem(r->e, 64, "a normalizer");
    t->n_norm++;
    return OK;
}

static const struct {
    const char *type;
    int form;
} forms[] = {{"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
             {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
             {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
             {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};

static int read_norm(struct reader *r, const cJSON *item, const char *type)
{
    const char *pattern = json_str_or(json_get(item, "pattern"), "String", NULL);
    const char *content = json_str_or(item, "content", NULL);
    struct norm_step *step = NULL;
    int rc;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (strcmp(type, forms[i].type))
            continue;
        rc = add_norm(r, NORM_UNICODE, NULL, NULL, &step);
        if (!rc)
            step->form = forms[i].form;
        return rc;
    }
    if (!strcmp(type, "Lowercase"))
        return add_norm(r, NORM_LOWER, NULL, NULL, &step);
    if (!strcmp(type, "Strip")) {
        rc = add_norm(r, NORM_STRIP, NULL, NULL, &step);
        if (!rc) {
            step->left = flag(item, "strip_left", true);
            step->right = flag(item, "strip_right", true);
        }
        return rc;
    }
    if (!strcmp(type, "Precompiled") && !*json_str_or(item, "precompiled_charsmap", ""))
        return OK; /* an empty table changes nothing */
    if (!strcmp(type, "Prepend"))
        return add_norm(r, NORM_PREPEND, NULL, json_str_or(item, "prepend", ""), &step);
    if (!strcmp(type, "Replace") && pattern && content)
        return add_norm(r, NORM_REPLACE, pattern, content, &step);
    return refuse(r, "normalizer", type);
}

static int add_split(struct reader *r, const char *pattern, bool literal, const cJSON *item,
                     const char *fallback)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *behavior = json_str_or(item, "behavior", fallback);
    size_t i = 0;
    while (i < 5 && strcmp(names[i], behavior))
        i++;
    if (i == 5)
        return refuse(r, "split behavior", behavior);
    return pretok_add_split(r->t->pretok, pattern, literal, (enum pretok_behavior)i,
                            flag(item, "invert", false), r->e);
}

static int read_split(struct reader *r, const cJSON *item)
{
    const cJSON *pattern = json_get(item, "pattern");
    const char *regex = json_str_or(pattern, "Regex", NULL);
    const char *text = json_str_or(pattern, "String", NULL);
    if (!regex && !text)
        return refuse(r, "split pattern", "neither Regex nor String");
    return add_split(r, regex ? regex : text, !regex, item, "");
}

static int read_metaspace(struct reader *r, const cJSON *item)
{
    bool prefix = flag(item, "add_prefix_space", true);
    const char *scheme = json_str_or(item, "prepend_scheme", prefix ? "always" : "never");
    enum pretok_scheme s = !strcmp(scheme, "always")  ? PRETOK_ALWAYS
                           : !strcmp(scheme, "first") ? PRETOK_FIRST
                                                      : PRETOK_NEVER;
    return pretok_add_metaspace(r->t->pretok, json_str_or(item, "replacement", TOK_SPACE), s,
                                flag(item, "split", true), r->e);
}

static int read_pretok(struct reader *r, const cJSON *item, const char *type)
{
    struct pretok *p = r->t->pretok;
    if (!strcmp(type, "Split"))
        return read_split(r, item);
    if (!strcmp(type, "Digits"))
        return pretok_add_digits(p, flag(item, "individual_digits", false), r->e);
    if (!strcmp(type, "Metaspace"))
        return read_metaspace(r, item);
    if (!strcmp(type, "Punctuation"))
        return add_split(r, "[\\p{P}!-/:-@\\[-`{-~]", false, item, "Isolated");
    if (strcmp(type, "ByteLevel"))
        return refuse(r, "pre-tokenizer", type);
    int rc = flag(item, "add_prefix_space", true) ? pretok_add_space(p, r->e) : OK;
    if (!rc && flag(item, "use_regex", true))
        rc = pretok_add_split(p, pretok_gpt2, false, PRETOK_ISOLATED, false, r->e);
    return rc;
}

static int note_byte_level(struct reader *r, const cJSON *item, const char *type)
{
    (void)item;
    if (!strcmp(type, "ByteLevel"))
        r->t->byte_level = true;
    return OK;
}

static int read_decoder(struct reader *r, const cJSON *item, const char *type)
{
    const char *pattern = json_str_or(json_get(item, "pattern"), "String", "");
    if (!strcmp(type, "ByteLevel") || !strcmp(type, "ByteFallback") || !strcmp(type, "Fuse"))
        return OK;
    if (!strcmp(type, "Replace") && !strcmp(pattern, TOK_SPACE) &&
        !strcmp(json_str_or(item, "content", ""), " "))
        return OK; /* what a piece's text already is */
    if (!strcmp(type, "Metaspace")) {
        const char *scheme = json_str_or(item, "prepend_scheme", "always");
        r->t->strip_start = flag(item, "add_prefix_space", true) && strcmp(scheme, "never");
        return OK;
    }
    if (!strcmp(type, "Strip") && !strcmp(json_str_or(item, "content", ""), " ")) {
        long long start = 0, stop = 0;
        int rc = json_int_opt(item, "start", 0, 1, &start, r->path, r->e);
        if (!rc)
            rc = json_int_opt(item, "stop", 0, 0, &stop, r->path, r->e);
        r->t->strip_start = start == 1;
        return rc;
    }
    return refuse(r, "decoder", type);
}

/* The highest id of the added tokens, -1: none; a broken one gives -2. */
static double top_added(const cJSON *added)
{
    double top = -1;
    const cJSON *item;
    cJSON_ArrayForEach(item, added)
    {
        const cJSON *id = json_get(item, "id");
        if (!cJSON_IsNumber(id) || !(id->valuedouble >= 0 && id->valuedouble < TOK_MAX_IDS))
            return -2;
        top = id->valuedouble > top ? id->valuedouble : top;
    }
    return top;
}

/* The number of ids: one more than the largest of vocabulary and added tokens. */
static int count_ids(struct reader *r, const cJSON *vocab, const cJSON *added)
{
    double top = top_added(added);
    const cJSON *item;
    cJSON_ArrayForEach(item, vocab)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < TOK_MAX_IDS))
            return err_set(r->e, ERR_FORMAT, "%s: token \"%.40s\" has no usable id", r->path,
                           item->string);
        top = item->valuedouble > top ? item->valuedouble : top;
    }
    if (top_added(added) < -1)
        return err_set(r->e, ERR_FORMAT, "%s: an added token has no usable id", r->path);
    return tok_reserve(r->t, (size_t)(top + 1), r->e);
}

static int read_vocab(struct reader *r, const cJSON *model, const cJSON *added)
{
    struct tokenizer *t = r->t;
    const cJSON *vocab = json_get(model, "vocab"), *item;
    const char *unk = json_str_or(model, "unk_token", NULL);
    if (!cJSON_IsObject(vocab) || !vocab->child)
        return err_set(r->e, ERR_FORMAT, "%s: the model has no vocabulary", r->path);
    int rc = count_ids(r, vocab, added);
    cJSON_ArrayForEach(item, vocab)
    {
        if (!rc)
            rc = tok_set_piece(t, (int32_t)item->valuedouble, item->string, strlen(item->string),
                               t->byte_fallback, r->e);
    }
    if (!rc)
        rc = tok_index_keys(t, r->e);
    if (!rc && unk)
        t->unk = tok_key_id(t, unk, strlen(unk));
    return rc;
}

/* A merge is "left right" (old files) or ["left", "right"]. */
static int read_merge(struct reader *r, const cJSON *item, uint32_t rank)
{
    const cJSON *left = cJSON_IsArray(item) ? item->child : NULL;
    const cJSON *right = left ? left->next : NULL;
    if (cJSON_IsString(left) && cJSON_IsString(right) && !right->next)
        return tok_add_merge(r->t, left->valuestring, strlen(left->valuestring), right->valuestring,
                             strlen(right->valuestring), rank, r->e);
    const char *text = cJSON_IsString(item) ? item->valuestring : "";
    const char *gap = *text ? strchr(text + 1, ' ') : NULL;
    if (!gap || !gap[1])
        return err_set(r->e, ERR_FORMAT, "%s: merge %u is not a pair", r->path, rank);
    return tok_add_merge(r->t, text, (size_t)(gap - text), gap + 1, strlen(gap + 1), rank, r->e);
}

static int read_merges(struct reader *r, const cJSON *model, const cJSON *added)
{
    const cJSON *merges = json_get(model, "merges"), *item;
    struct tokenizer *t = r->t;
    uint32_t rank = 0;
    if (*json_str_or(model, "continuing_subword_prefix", "") ||
        *json_str_or(model, "end_of_word_suffix", ""))
        return refuse(r, "BPE option", "continuing_subword_prefix / end_of_word_suffix");
    if (!cJSON_IsArray(merges))
        return err_set(r->e, ERR_FORMAT, "%s: the model has no merges", r->path);
    t->fuse_unk = flag(model, "fuse_unk", false);
    t->ignore_merges = flag(model, "ignore_merges", false);
    int rc = read_vocab(r, model, added);
    if (!rc)
        rc = bpe_new(&t->bpe, (size_t)cJSON_GetArraySize(merges), r->e);
    cJSON_ArrayForEach(item, merges)
    {
        if (rc)
            break;
        rc = read_merge(r, item, rank++);
    }
    return rc;
}

/* A list of [piece, score]; the place is the id. */
static int read_unigram(struct reader *r, const cJSON *model, const cJSON *added)
{
    struct tokenizer *t = r->t;
    const cJSON *vocab = json_get(model, "vocab"), *item;
    const cJSON *unk = json_get(model, "unk_id");
    double n = cJSON_IsArray(vocab) ? cJSON_GetArraySize(vocab) : 0, top = top_added(added);
    int32_t id = 0;
    if (top < -1)
        return err_set(r->e, ERR_FORMAT, "%s: an added token has no usable id", r->path);
    if (!(n > 0))
        return err_set(r->e, ERR_FORMAT, "%s: the model has no vocabulary", r->path);
    int rc = tok_reserve(t, (size_t)(n > top + 1 ? n : top + 1), r->e);
    cJSON_ArrayForEach(item, added)
    {
        if (rc)
            break;
        int32_t at = (int32_t)json_get(item, "id")->valuedouble;
        t->pieces[at].special = flag(item, "special", false);
    }
    if (!rc)
        rc = unigram_new(&t->unigram, false, r->e);
    cJSON_ArrayForEach(item, vocab)
    {
        const cJSON *piece = cJSON_IsArray(item) ? item->child : NULL;
        const cJSON *score = piece ? piece->next : NULL;
        if (rc)
            break;
        if (!cJSON_IsString(piece) || !cJSON_IsNumber(score))
            return err_set(r->e, ERR_FORMAT, "%s: piece %d is no piece with a score", r->path, id);
        const char *s = piece->valuestring;
        rc = tok_set_piece(t, id, s, strlen(s), t->byte_fallback, r->e);
        /* A special token is none of the model's own: nobody can type it. */
        if (!rc && *s && !t->pieces[id].special)
            rc = unigram_add(t->unigram, s, strlen(s), id, score->valuedouble, false, r->e);
        id++;
    }
    t->fuse_unk = true;
    if (cJSON_IsNumber(unk) && unk->valuedouble >= 0 && unk->valuedouble < n)
        t->unk = (int32_t)unk->valuedouble;
    return rc ? rc : tok_index_keys(t, r->e);
}

static int read_model(struct reader *r, const cJSON *model, const cJSON *added)
{
    const char *type = json_str_or(model, "type", "BPE");
    if (!cJSON_IsObject(model))
        return err_set(r->e, ERR_FORMAT, "%s: no \"model\": not a tokenizer.json", r->path);
    r->t->byte_fallback = flag(model, "byte_fallback", false);
    if (!strcmp(type, "BPE"))
        return read_merges(r, model, added);
    if (!strcmp(type, "Unigram") && !r->t->byte_level)
        return read_unigram(r, model, added);
    return refuse(r, "tokenizer model", type);
}

static int read_added(struct reader *r, const cJSON *added)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, added)
    {
        const char *text = json_str_or(item, "content", NULL);
        if (!text)
            return err_set(r->e, ERR_FORMAT, "%s: an added token has no content", r->path);
        struct added_token token = {.text = text,
                                    .n = strlen(text),
                                    .id = (int32_t)json_get(item, "id")->valuedouble,
                                    .special = flag(item, "special", false),
                                    .lstrip = flag(item, "lstrip", false),
                                    .rstrip = flag(item, "rstrip", false),
                                    .single_word = flag(item, "single_word", false)};
        bool normalized = flag(item, "normalized", !token.special);
        int rc = tok_add_token(r->t, &token, normalized, r->e);
        if (rc)
            return rc;
    }
    return tok_index_texts(r->t, r->e);
}

/* A template that begins with a special token is how these files say "prepend BOS". */
static int read_post(struct reader *r, const cJSON *item, const char *type)
{
    struct tokenizer *t = r->t;
    if (strcmp(type, "TemplateProcessing"))
        return OK;
    const cJSON *single = json_get(item, "single");
    const cJSON *first = cJSON_IsArray(single) ? single->child : NULL;
    const char *name = json_str_or(json_get(first, "SpecialToken"), "id", NULL);
    const cJSON *token = name ? json_get(json_get(item, "special_tokens"), name) : NULL;
    const cJSON *ids = json_get(token, "ids");
    const cJSON *id = cJSON_IsArray(ids) ? ids->child : NULL;
    if (!id)
        return OK;
    if (!cJSON_IsNumber(id) || !(id->valuedouble >= 0 && id->valuedouble < t->n))
        return err_set(r->e, ERR_FORMAT, "%s: the template's \"%.40s\" has no usable id", r->path,
                       name);
    t->bos = (int32_t)id->valuedouble;
    t->adds_bos = true;
    t->bos_text = t->pieces[t->bos].text;
    return OK;
}

int tok_read_json(struct tokenizer *t, const char *path, struct err *e)
{
    struct reader r = {t, path, e};
    cJSON *top;
    int rc = json_read_file(&top, path, JSON_MAX_BYTES, e);
    if (rc)
        return rc;
    const cJSON *added = json_get(top, "added_tokens");
    const cJSON *pretok = json_get(top, "pre_tokenizer"), *decoder = json_get(top, "decoder");
    each_item(&r, pretok, "pretokenizers", note_byte_level);
    each_item(&r, decoder, "decoders", note_byte_level);
    rc = read_model(&r, json_get(top, "model"), added);
    if (!rc)
        rc = each_item(&r, json_get(top, "normalizer"), "normalizers", read_norm);
    if (!rc)
        rc = each_item(&r, pretok, "pretokenizers", read_pretok);
    if (!rc)
        rc = each_item(&r, decoder, "decoders", read_decoder);
    if (!rc)
        rc = read_added(&r, added);
    if (!rc)
        rc = each_item(&r, json_get(top, "post_processor"), "processors", read_post);
    cJSON_Delete(top);
    return rc;
}

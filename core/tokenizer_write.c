/* tokenizer.json of a GGUF's vocabulary: byte-level merges as they are, SentencePiece's from the
 * scores. Refuses vocabularies without tokens or merges and unknown pre-tokenizers. */
#include "core/tokenizer_write.h"

#include <stdlib.h>
#include <string.h>

#include "core/gguf.h"
#include "core/tokenizer_impl.h"
#include "core/utf8.h"

#define KEY "tokenizer.ggml."

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER };

struct writer {
    const struct gguf *g;
    struct err *e;
    struct gguf_str *token;
    const uint8_t *types, *scores; /* unaligned; may be NULL */
    size_t n;
    char text[4 * TOKENIZER_MAX_TOKEN];
};

/* The string, NUL-terminated, until the next call. */
static const char *text_of(struct writer *w, struct gguf_str s)
{
    size_t n = s.n < sizeof w->text - 1 ? s.n : sizeof w->text - 1;
    memcpy(w->text, s.s, n);
    w->text[n] = 0;
    return w->text;
}

static int32_t type_of(const struct writer *w, size_t id)
{
    int32_t type = TYPE_NORMAL;
    if (w->types)
        memcpy(&type, w->types + id * 4, 4);
    return type;
}

static float score_of(const struct writer *w, size_t id)
{
    float score = 0;
    if (w->scores)
        memcpy(&score, w->scores + id * 4, 4);
    return score;
}

static int read_tokens(struct writer *w)
{
    w->n = gguf_array_len(w->g, KEY "tokens", GGUF_STRING);
    if (!w->n || w->n > TOK_MAX_IDS)
        return err_set(w->e, ERR_UNSUPPORTED, "%s: the file carries no vocabulary",
                       gguf_path(w->g));
    w->token = mem_calloc(w->n, sizeof *w->token);
    if (!w->token)
        return err_nomem(w->e, w->n * sizeof *w->token, "the vocabulary");
    if (gguf_array_len(w->g, KEY "token_type", GGUF_I32) == w->n)
        w->types = gguf_array_data(w->g, KEY "token_type", GGUF_I32);
    if (gguf_array_len(w->g, KEY "scores", GGUF_F32) == w->n)
        w->scores = gguf_array_data(w->g, KEY "scores", GGUF_F32);
    return gguf_array_strings(w->g, KEY "tokens", w->token, w->n, w->e);
}

static long long id_of(const struct writer *w, const char *key)
{
    long long id = gguf_int_or(w->g, key, -1);
    return id >= 0 && (size_t)id < w->n ? id : -1;
}

static cJSON *added_tokens(struct writer *w)
{
    cJSON *list = cJSON_CreateArray();
    for (size_t id = 0; id < w->n; id++) {
        int32_t type = type_of(w, id);
        if (type != TYPE_CONTROL && type != TYPE_USER && type != TYPE_UNKNOWN)
            continue;
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "id", (double)id);
        cJSON_AddStringToObject(o, "content", text_of(w, w->token[id]));
        cJSON_AddBoolToObject(o, "single_word", false);
        cJSON_AddBoolToObject(o, "lstrip", false);
        cJSON_AddBoolToObject(o, "rstrip", false);
        cJSON_AddBoolToObject(o, "normalized", false);
        cJSON_AddBoolToObject(o, "special", type != TYPE_USER);
        cJSON_AddItemToArray(list, o);
    }
    return list;
}

static cJSON *typed(const char *type)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "type", type);
    return o;
}

static cJSON *byte_level(bool use_regex)
{
    cJSON *o = typed("ByteLevel");
    cJSON_AddBoolToObject(o, "add_prefix_space", false);
    cJSON_AddBoolToObject(o, "trim_offsets", true);
    cJSON_AddBoolToObject(o, "use_regex", use_regex);
    return o;
}

static cJSON *replace(const char *from, const char *to)
{
    cJSON *o = typed("Replace"), *pattern = cJSON_AddObjectToObject(o, "pattern");
    cJSON_AddStringToObject(pattern, "String", from);
    cJSON_AddStringToObject(o, "content", to);
    return o;
}

static cJSON *sequence(cJSON *top, const char *key, const char *list)
{
    cJSON *o = typed("Sequence");
    cJSON_AddItemToObject(top, key, o);
    return cJSON_AddArrayToObject(o, list);
}

static void add_pair(cJSON *list, const char *left, const char *right)
{
    cJSON *pair = cJSON_CreateArray();
    cJSON_AddItemToArray(pair, cJSON_CreateString(left));
    cJSON_AddItemToArray(pair, cJSON_CreateString(right));
    cJSON_AddItemToArray(list, pair);
}

static int file_merges(struct writer *w, cJSON *list)
{
    size_t n = gguf_array_len(w->g, KEY "merges", GGUF_STRING);
    struct gguf_str *m = n ? mem_calloc(n, sizeof *m) : NULL;
    if (!m)
        return n ? err_nomem(w->e, n * sizeof *m, "merges")
                 : err_set(w->e, ERR_FORMAT, "%s: the vocabulary has no merges", gguf_path(w->g));
    int rc = gguf_array_strings(w->g, KEY "merges", m, n, w->e);
    for (size_t i = 0; i < n && !rc; i++) {
        char *text = (char *)(uintptr_t)text_of(w, m[i]), *gap = strchr(text + (*text != 0), ' ');
        if (!gap) {
            rc = err_set(w->e, ERR_FORMAT, "%s: merge %zu is not a pair", gguf_path(w->g), i);
            break;
        }
        *gap = 0;
        add_pair(list, text, gap + 1);
    }
    free(m);
    return rc;
}

struct scored {
    float score;
    size_t id;
};

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Every way to make a piece of two others, the best pieces first. */
static int score_merges(struct writer *w, const struct tokenizer *t, cJSON *list)
{
    struct scored *order = mem_calloc(w->n, sizeof *order);
    if (!order)
        return err_nomem(w->e, w->n * sizeof *order, "scores");
    for (size_t id = 0; id < w->n; id++)
        order[id] = (struct scored){score_of(w, id), id};
    qsort(order, w->n, sizeof *order, by_score);
    for (size_t i = 0; i < w->n; i++) {
        const struct piece *p = &t->pieces[order[i].id];
        size_t len = 0;
        uint32_t cp;
        if (!p->key || !p->n_key)
            continue;
        utf8_next(p->key, p->n_key, &cp, &len);
        for (size_t at = len; at < p->n_key; at += len) {
            if (tok_key_id(t, p->key, at) >= 0 && tok_key_id(t, p->key + at, p->n_key - at) >= 0) {
                char *left = strndup(p->key, at);
                if (left)
                    add_pair(list, left, p->key + at);
                free(left);
            }
            utf8_next(p->key + at, p->n_key - at, &cp, &len);
        }
    }
    free(order);
    return OK;
}

static int add_model(struct writer *w, const struct tokenizer *t, bool ignore_merges, cJSON *top)
{
    cJSON *o = typed("BPE"), *vocab, *merges;
    long long unk = id_of(w, KEY "unknown_token_id");
    bool bytes = t->byte_level;
    cJSON_AddItemToObject(top, "model", o);
    cJSON_AddNullToObject(o, "dropout");
    if (unk >= 0 && !bytes)
        cJSON_AddStringToObject(o, "unk_token", text_of(w, w->token[unk]));
    else
        cJSON_AddNullToObject(o, "unk_token");
    cJSON_AddNullToObject(o, "continuing_subword_prefix");
    cJSON_AddNullToObject(o, "end_of_word_suffix");
    cJSON_AddBoolToObject(o, "fuse_unk", !bytes);
    cJSON_AddBoolToObject(o, "byte_fallback", !bytes);
    cJSON_AddBoolToObject(o, "ignore_merges", ignore_merges);
    vocab = cJSON_AddObjectToObject(o, "vocab");
    merges = cJSON_AddArrayToObject(o, "merges");
    for (size_t id = 0; id < w->n && vocab; id++)
        cJSON_AddNumberToObject(vocab, text_of(w, w->token[id]), (double)id);
    if (!vocab || !merges)
        return err_nomem(w->e, w->n * 64, "tokenizer.json");
    return bytes ? file_merges(w, merges) : score_merges(w, t, merges);
}

/* How a text is cut and put together again. */
static int add_rules(struct writer *w, const struct tokenizer *t, cJSON *top, bool *ignore_merges)
{
    struct gguf_str pre = {"", 0};
    cJSON *list;
    *ignore_merges = false;
    if (!t->byte_level) {
        list = sequence(top, "normalizer", "normalizers");
        if (t->strip_start) {
            cJSON *o = typed("Prepend");
            cJSON_AddStringToObject(o, "prepend", TOK_SPACE);
            cJSON_AddItemToArray(list, o);
        }
        cJSON_AddItemToArray(list, replace(" ", TOK_SPACE));
        cJSON_AddNullToObject(top, "pre_tokenizer");
        list = sequence(top, "decoder", "decoders");
        cJSON_AddItemToArray(list, replace(TOK_SPACE, " "));
        cJSON_AddItemToArray(list, typed("ByteFallback"));
        cJSON_AddItemToArray(list, typed("Fuse"));
        if (t->strip_start) {
            cJSON *o = typed("Strip");
            cJSON_AddStringToObject(o, "content", " ");
            cJSON_AddNumberToObject(o, "start", 1);
            cJSON_AddNumberToObject(o, "stop", 0);
            cJSON_AddItemToArray(list, o);
        }
        return OK;
    }
    int rc = gguf_string(w->g, KEY "pre", &pre, w->e);
    const struct tok_pre_rules *f = rc ? NULL : tok_pre_find(pre.s, pre.n);
    if (!f)
        return rc ? rc
                  : err_set(w->e, ERR_UNSUPPORTED, "%s: unknown pre-tokenizer", gguf_path(w->g));
    *ignore_merges = f->ignore_merges;
    cJSON_AddItemToObject(top, "normalizer", f->nfc ? typed("NFC") : cJSON_CreateNull());
    list = sequence(top, "pre_tokenizer", "pretokenizers");
    if (f->digits) {
        cJSON *o = typed("Digits");
        cJSON_AddBoolToObject(o, "individual_digits", true);
        cJSON_AddItemToArray(list, o);
    }
    bool plain = !f->split[1] && !strcmp(f->split[0], pretok_gpt2);
    for (int k = 0; !plain && k < 3 && f->split[k]; k++) {
        cJSON *o = typed("Split"), *pattern = cJSON_AddObjectToObject(o, "pattern");
        cJSON_AddStringToObject(pattern, "Regex", f->split[k]);
        cJSON_AddStringToObject(o, "behavior", "Isolated");
        cJSON_AddBoolToObject(o, "invert", false);
        cJSON_AddItemToArray(list, o);
    }
    cJSON_AddItemToArray(list, byte_level(plain));
    cJSON_AddItemToObject(top, "decoder", byte_level(true));
    return OK;
}

static cJSON *template_part(const char *kind, const char *id, int type)
{
    cJSON *o = cJSON_CreateObject(), *in = cJSON_AddObjectToObject(o, kind);
    cJSON_AddStringToObject(in, "id", id);
    cJSON_AddNumberToObject(in, "type_id", type);
    return o;
}

static void add_post(struct writer *w, const struct tokenizer *t, cJSON *top)
{
    if (!t->adds_bos || t->bos < 0) {
        if (t->byte_level)
            cJSON_AddItemToObject(top, "post_processor", byte_level(true));
        else
            cJSON_AddNullToObject(top, "post_processor");
        return;
    }
    const char *bos = text_of(w, w->token[t->bos]);
    cJSON *o = typed("TemplateProcessing"), *single = cJSON_AddArrayToObject(o, "single");
    cJSON *pair = cJSON_AddArrayToObject(o, "pair"), *tokens, *one;
    cJSON_AddItemToArray(single, template_part("SpecialToken", bos, 0));
    cJSON_AddItemToArray(single, template_part("Sequence", "A", 0));
    for (int i = 0; i < 2; i++) {
        cJSON_AddItemToArray(pair, template_part("SpecialToken", bos, i));
        cJSON_AddItemToArray(pair, template_part("Sequence", i ? "B" : "A", i));
    }
    tokens = cJSON_AddObjectToObject(o, "special_tokens");
    one = cJSON_AddObjectToObject(tokens, bos);
    cJSON_AddStringToObject(one, "id", bos);
    cJSON_AddItemToObject(one, "ids", cJSON_CreateIntArray(&t->bos, 1));
    cJSON_AddItemToObject(one, "tokens", cJSON_CreateStringArray(&bos, 1));
    cJSON_AddItemToObject(top, "post_processor", o);
}

static cJSON *settings(struct writer *w, const struct tokenizer *t)
{
    static const struct {
        const char *key, *name;
    } ids[] = {{KEY "bos_token_id", "bos_token"},
               {KEY "eos_token_id", "eos_token"},
               {KEY "unknown_token_id", "unk_token"},
               {KEY "padding_token_id", "pad_token"}};
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "tokenizer_class", "PreTrainedTokenizerFast");
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        long long id = id_of(w, ids[i].key);
        if (id >= 0)
            cJSON_AddStringToObject(o, ids[i].name, text_of(w, w->token[id]));
    }
    cJSON_AddBoolToObject(o, "add_bos_token", t->adds_bos);
    cJSON_AddBoolToObject(o, "clean_up_tokenization_spaces", false);
    if (t->chat_template)
        cJSON_AddStringToObject(o, "chat_template", t->chat_template);
    return o;
}

static int build(struct writer *w, const struct tokenizer *t, cJSON **tokenizer, cJSON **config)
{
    bool ignore_merges;
    int rc = read_tokens(w);
    cJSON *top = rc ? NULL : cJSON_CreateObject();
    if (rc)
        return rc;
    cJSON_AddStringToObject(top, "version", "1.0");
    cJSON_AddNullToObject(top, "truncation");
    cJSON_AddNullToObject(top, "padding");
    cJSON_AddItemToObject(top, "added_tokens", added_tokens(w));
    rc = add_rules(w, t, top, &ignore_merges);
    if (!rc) {
        add_post(w, t, top);
        rc = add_model(w, t, ignore_merges, top);
    }
    if (rc) {
        cJSON_Delete(top);
        return rc;
    }
    *tokenizer = top;
    *config = settings(w, t);
    return OK;
}

int tokenizer_json_from_gguf(const char *path, cJSON **tokenizer, cJSON **config, struct err *e)
{
    struct tokenizer *t = NULL;
    struct gguf *g = NULL;
    int rc = tokenizer_open(&t, path, e);
    if (!rc)
        rc = gguf_open(&g, path, e);
    struct writer *w = rc ? NULL : mem_calloc(1, sizeof *w);
    if (!rc && !w)
        rc = err_nomem(e, sizeof *w, "a tokenizer");
    if (!rc) {
        w->g = g;
        w->e = e;
        rc = build(w, t, tokenizer, config);
        free(w->token);
    }
    free(w);
    gguf_close(g);
    tokenizer_free(t);
    return rc;
}

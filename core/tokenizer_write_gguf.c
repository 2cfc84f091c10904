/* A GGUF's vocabulary from tokenizer.json. Byte-level vocabularies name their pre-tokenizer: found
 * by its rules among those that GGUF has names for, refused when there is none. SentencePiece's
 * scores are gone in tokenizer.json; its ids are in the order of the scores, so minus the id ranks
 * alike. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/gguf_writer.h"
#include "core/tokenizer_impl.h"
#include "core/tokenizer_write.h"

#define KEY "tokenizer.ggml."

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

struct table {
    struct gguf_str *token;
    int32_t *type;
    float *score;
    char (*unused)[24]; /* text of the tokens nobody names */
    int n;
};

static void table_done(struct table *t)
{
    free(t->token);
    free(t->type);
    free(t->score);
    free(t->unused);
}

static int place(struct table *t, const char *text, double id, int32_t type, struct err *e)
{
    if (!(id >= 0 && id < t->n))
        return err_set(e, ERR_MISMATCH,
                       "tokenizer.json has token %.0f, the model's vocabulary ends before", id);
    t->token[(int)id] = (struct gguf_str){text, strlen(text)};
    t->type[(int)id] = type;
    return OK;
}

static int fill(struct table *t, const cJSON *top, bool bytes, struct err *e)
{
    const cJSON *model = json_get(top, "model"), *item;
    const char *unk = json_str_or(model, "unk_token", "");
    size_t n = (size_t)t->n;
    t->token = mem_calloc(n, sizeof *t->token);
    t->type = mem_calloc(n, sizeof *t->type);
    t->score = mem_calloc(n, sizeof *t->score);
    t->unused = mem_calloc(n, sizeof *t->unused);
    int rc = t->token && t->type && t->score && t->unused
                 ? OK
                 : err_nomem(e, n * sizeof *t->unused, "the vocabulary");
    cJSON_ArrayForEach(item, json_get(model, "vocab"))
    {
        int32_t type = bytes                                                   ? TYPE_NORMAL
                       : tok_is_byte_piece(item->string, strlen(item->string)) ? TYPE_BYTE
                       : !strcmp(item->string, unk)                            ? TYPE_UNKNOWN
                                                                               : TYPE_NORMAL;
        if (!rc)
            rc = place(t, item->string, item->valuedouble, type, e);
    }
    cJSON_ArrayForEach(item, json_get(top, "added_tokens"))
    {
        const cJSON *id = json_get(item, "id");
        bool special = cJSON_IsTrue(json_get(item, "special"));
        const char *text = json_str_or(item, "content", "");
        int32_t type = !strcmp(text, unk) && !bytes ? TYPE_UNKNOWN
                       : special                    ? TYPE_CONTROL
                                                    : TYPE_USER;
        if (!rc)
            rc = place(t, text, cJSON_IsNumber(id) ? id->valuedouble : -1, type, e);
    }
    for (int i = 0; i < t->n && !rc; i++) {
        t->score[i] = (float)-i;
        if (t->token[i].s)
            continue;
        snprintf(t->unused[i], sizeof t->unused[i], "[PAD%d]", i);
        place(t, t->unused[i], i, TYPE_UNUSED, NULL);
    }
    return rc;
}

/* The regexes of the splits, digits, as tokenizer.json has them → GGUF's name of such rules. */
static const char *rules_name(const cJSON *top)
{
    static const char *const names[] = {"smollm",    "gpt-2",  "qwen2",  "llama-bpe",  "dbrx",
                                        "stablelm2", "tekken", "gpt-4o", "deepseek-v3"};
    const cJSON *pre = json_get(top, "pre_tokenizer"), *item;
    const cJSON *list = json_get(pre, "pretokenizers");
    const char *split[3] = {NULL, NULL, NULL};
    bool digits = false, nfc = !strcmp(json_str_or(json_get(top, "normalizer"), "type", ""), "NFC");
    bool ignore = cJSON_IsTrue(json_get(json_get(top, "model"), "ignore_merges"));
    int n = 0;
    for (item = list ? list->child : pre; item; item = list ? item->next : NULL) {
        const char *type = json_str_or(item, "type", "");
        const char *regex = json_str_or(json_get(item, "pattern"), "Regex", NULL);
        const cJSON *own = json_get(item, "use_regex");
        digits |= !strcmp(type, "Digits");
        if (!strcmp(type, "Split") && regex && n < 3)
            split[n++] = regex;
        else if (!strcmp(type, "ByteLevel") && !cJSON_IsFalse(own) && n < 3)
            split[n++] = pretok_gpt2;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct tok_pre_rules *f = tok_pre_find(names[i], strlen(names[i]));
        bool same = f && f->digits == digits && f->nfc == nfc && f->ignore_merges == ignore;
        for (int k = 0; k < 3 && same; k++)
            same = !f->split[k] == !split[k] && (!split[k] || !strcmp(f->split[k], split[k]));
        if (same)
            return names[i];
    }
    return NULL;
}

/* Merges are pairs or "left right". */
static int put_merges(const cJSON *list, struct gguf_writer *w, struct err *e)
{
    size_t n = (size_t)cJSON_GetArraySize(list), i = 0;
    struct gguf_str *m = mem_calloc(n, sizeof *m);
    int rc = m ? OK : err_nomem(e, n * sizeof *m, "merges");
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        const cJSON *left = cJSON_IsArray(item) ? item->child : NULL;
        const char *text = cJSON_IsString(item) ? item->valuestring : "";
        char *own = left && left->next && cJSON_IsString(left) && cJSON_IsString(left->next)
                        ? mem_printf("%s %s", left->valuestring, left->next->valuestring)
                        : mem_strdup(text);
        if (!own && !rc)
            rc = err_nomem(e, 64, "merges");
        if (m)
            m[i++] = (struct gguf_str){own, own ? strlen(own) : 0};
        else
            free(own);
    }
    if (!rc)
        gguf_writer_strs(w, KEY "merges", m, n);
    while (i-- > 0)
        free((void *)(uintptr_t)m[i].s);
    free(m);
    return rc;
}

static int put_model(const cJSON *top, const struct tokenizer *t, const char *path,
                     struct gguf_writer *w, struct err *e)
{
    if (!t->byte_level) {
        gguf_writer_str(w, KEY "model", "llama");
        gguf_writer_str(w, KEY "pre", "default");
        gguf_writer_bool(w, KEY "add_space_prefix", t->strip_start);
        return OK;
    }
    const char *pre = rules_name(top);
    if (!pre)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: llama.cpp has no name for the way this tokenizer cuts texts", path);
    gguf_writer_str(w, KEY "model", "gpt2");
    gguf_writer_str(w, KEY "pre", pre);
    return put_merges(json_get(json_get(top, "model"), "merges"), w, e);
}

static void put_settings(const struct tokenizer *t, struct gguf_writer *w)
{
    if (t->bos >= 0)
        gguf_writer_u32(w, KEY "bos_token_id", (uint32_t)t->bos);
    if (t->n_eos > 0)
        gguf_writer_u32(w, KEY "eos_token_id", (uint32_t)t->eos[0]);
    if (t->n_eos > 1)
        gguf_writer_u32(w, KEY "eot_token_id", (uint32_t)t->eos[1]);
    if (t->unk >= 0)
        gguf_writer_u32(w, KEY "unknown_token_id", (uint32_t)t->unk);
    gguf_writer_bool(w, KEY "add_bos_token", t->adds_bos);
    if (t->chat_template)
        gguf_writer_str(w, "tokenizer.chat_template", t->chat_template);
}

int tokenizer_gguf_from_folder(const char *dir, int vocab, struct gguf_writer *w, struct err *e)
{
    struct table table = {.n = vocab};
    struct tokenizer *t = NULL;
    cJSON *top = NULL;
    char *path = path_join(dir, "tokenizer.json");
    if (!path)
        return err_nomem(e, strlen(dir), "a path");
    if (!file_exists(path)) {
        free(path);
        gguf_writer_str(w, KEY "model", "none");
        return OK;
    }
    int rc = tokenizer_open(&t, dir, e);
    if (!rc)
        rc = json_read_file(&top, path, JSON_MAX_BYTES, e);
    if (!rc)
        rc = fill(&table, top, t->byte_level, e);
    if (!rc)
        rc = put_model(top, t, path, w, e);
    if (!rc) {
        size_t n = (size_t)vocab;
        gguf_writer_strs(w, KEY "tokens", table.token, n);
        gguf_writer_array(w, KEY "token_type", GGUF_I32, table.type, n);
        if (!t->byte_level)
            gguf_writer_array(w, KEY "scores", GGUF_F32, table.score, n);
        put_settings(t, w);
    }
    table_done(&table);
    cJSON_Delete(top);
    tokenizer_free(t);
    free(path);
    return rc;
}

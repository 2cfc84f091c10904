/* What a model folder says beside its tokenizer: BOS and EOS, the end-of-generation list, the chat
 * template and, where there is only a SentencePiece model, the tokens added to it. Every file is
 * optional; a present one that is broken is an error. */
#include "core/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/file.h"

#define CONFIG_MAX ((size_t)16 << 20)
#define TEMPLATE_MAX ((size_t)1 << 20)

static int read_optional(cJSON **out, const char *dir, const char *name, struct err *e)
{
    char *path = path_join(dir, name);
    *out = NULL;
    if (!path)
        return err_nomem(e, strlen(name), "a path");
    int rc = file_exists(path) ? json_read_file(out, path, CONFIG_MAX, e) : OK;
    free(path);
    return rc;
}

/* A special token is a string or an object with its content. */
static const char *token_text(const cJSON *config, const char *key)
{
    const cJSON *item = json_get(config, key);
    return cJSON_IsString(item) ? item->valuestring : json_str_or(item, "content", NULL);
}

/* The template string, or the one called "default" of a list. */
static const char *template_text(const cJSON *config)
{
    const cJSON *item = json_get(config, "chat_template"), *one;
    if (cJSON_IsString(item))
        return item->valuestring;
    cJSON_ArrayForEach(one, item)
    {
        if (!strcmp(json_str_or(one, "name", ""), "default"))
            return json_str_or(one, "template", NULL);
    }
    return NULL;
}

static int keep(struct tokenizer *t, const char **out, const char *text, struct err *e)
{
    if (!text)
        return OK;
    *out = tok_keep(t, text, strlen(text));
    return *out ? OK : err_nomem(e, strlen(text), "tokenizer settings");
}

static int use_tokenizer_config(struct tokenizer *t, const cJSON *config, struct err *e)
{
    const char *bos = token_text(config, "bos_token"), *eos = token_text(config, "eos_token");
    int rc = json_bool_opt(config, "add_bos_token", &t->adds_bos, "tokenizer_config.json", e);
    if (!rc)
        rc = keep(t, &t->bos_text, bos, e);
    if (!rc)
        rc = keep(t, &t->eos_text, eos, e);
    if (!rc)
        rc = keep(t, &t->chat_template, template_text(config), e);
    int32_t id = bos ? tokenizer_find(t, bos, strlen(bos)) : -1;
    if (id >= 0)
        t->bos = id;
    id = eos ? tokenizer_find(t, eos, strlen(eos)) : -1;
    return rc || id < 0 ? rc : tok_add_eos(t, id, e);
}

/* eos_token_id is a number or a list of numbers. */
static int use_eos_ids(struct tokenizer *t, const cJSON *config, struct err *e)
{
    const cJSON *item = json_get(config, "eos_token_id");
    const cJSON *one = cJSON_IsArray(item) ? item->child : item;
    for (; one; one = cJSON_IsArray(item) ? one->next : NULL) {
        if (!cJSON_IsNumber(one) || !(one->valuedouble >= 0 && one->valuedouble < t->n))
            continue; /* a config may speak of more ids than the tokenizer has */
        int rc = tok_add_eos(t, (int32_t)one->valuedouble, e);
        if (rc)
            return rc;
    }
    return OK;
}

static int use_template_file(struct tokenizer *t, const char *dir, struct err *e)
{
    char *path = path_join(dir, "chat_template.jinja"), *text = NULL;
    size_t size;
    if (!path)
        return err_nomem(e, 32, "a path");
    int rc = file_exists(path) ? file_read(path, TEMPLATE_MAX, &text, &size, e) : OK;
    if (!rc)
        rc = keep(t, &t->chat_template, text, e);
    free(text);
    free(path);
    return rc;
}

int tok_read_folder(struct tokenizer *t, const char *dir, struct err *e)
{
    static const char *const eos_files[] = {"generation_config.json", "config.json"};
    cJSON *config;
    int rc = read_optional(&config, dir, "tokenizer_config.json", e);
    if (!rc && config)
        rc = use_tokenizer_config(t, config, e);
    cJSON_Delete(config);
    for (int i = 0; !rc && i < 2; i++) {
        rc = read_optional(&config, dir, eos_files[i], e);
        if (!rc)
            rc = use_eos_ids(t, config, e);
        cJSON_Delete(config);
    }
    return rc ? rc : use_template_file(t, dir, e);
}

/* An id that may be written as a number or as a key; -1: none of ours. */
static int32_t added_id(const cJSON *item, bool by_key)
{
    double v = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (by_key) {
        char *end = NULL;
        v = item->string && *item->string ? strtod(item->string, &end) : -1;
        v = end && !*end ? v : -1;
    }
    return v >= 0 && v < TOK_MAX_IDS ? (int32_t)v : -1;
}

static size_t ids_needed(const cJSON *list, bool by_key)
{
    size_t most = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        size_t need = (size_t)(added_id(item, by_key) + 1);
        most = need > most ? need : most;
    }
    return most;
}

static bool is_true(const cJSON *obj, const char *key)
{
    return cJSON_IsTrue(json_get(obj, key));
}

/* tokenizer_config.json: {"32000": {"content": …, "special": …}}; added_tokens.json: {text: id},
 * all special (it is how the chat formats came into the world). */
static int add_tokens(struct tokenizer *t, const cJSON *list, bool by_key, struct err *e)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        const char *text = by_key ? json_str_or(item, "content", NULL) : item->string;
        struct added_token token = {.text = text,
                                    .n = text ? strlen(text) : 0,
                                    .id = added_id(item, by_key),
                                    .special = by_key ? is_true(item, "special") : true,
                                    .lstrip = is_true(item, "lstrip"),
                                    .rstrip = is_true(item, "rstrip"),
                                    .single_word = is_true(item, "single_word")};
        if (!token.n || token.id < 0)
            continue;
        int rc = tok_add_token(t, &token, is_true(item, "normalized"), e);
        if (rc)
            return rc;
    }
    return OK;
}

int tok_read_proto_folder(struct tokenizer *t, const char *dir, const char *path, struct err *e)
{
    cJSON *config = NULL, *more = NULL;
    int rc = read_optional(&config, dir, "tokenizer_config.json", e);
    if (!rc)
        rc = read_optional(&more, dir, "added_tokens.json", e);
    const cJSON *added = json_get(config, "added_tokens_decoder");
    size_t a = ids_needed(added, true), b = ids_needed(more, false);
    if (!rc)
        rc = tok_read_proto(t, path, a > b ? a : b, e);
    /* Without "legacy" a prefix is not put anew after every special token. */
    t->prefix_first = cJSON_IsFalse(json_get(config, "legacy"));
    if (!rc)
        rc = add_tokens(t, more, false, e);
    if (!rc)
        rc = add_tokens(t, added, true, e);
    if (!rc)
        rc = tok_index_texts(t, e);
    cJSON_Delete(config);
    cJSON_Delete(more);
    return rc;
}

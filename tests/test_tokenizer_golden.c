/* Tiny tokenizers in the build of every family (tests/tokenizers, made by make.py there) against
 * what the reference libraries do with them: ids, ids with specials, decoding, streaming. */
#include "tests/support.h"

#include "core/file.h"
#include "core/json.h"
#include "core/tokenizer.h"

static struct err e;

static bool same_ids(const struct ids *got, const cJSON *want)
{
    const cJSON *item;
    size_t i = 0;
    cJSON_ArrayForEach(item, want)
    {
        if (i >= got->n || got->v[i] != item->valueint)
            return false;
        i++;
    }
    return i == got->n;
}

static void check_ids(const struct tokenizer *t, const cJSON *c, const char *key, unsigned flags,
                      struct ids *ids)
{
    const char *text = json_get(c, "text")->valuestring;
    const char *file = json_get(c, "file")->valuestring;
    ids->n = 0;
    CHECK_OK(tokenizer_encode(t, text, strlen(text), flags, ids, &e), e);
    bool same = same_ids(ids, json_get(c, key));
    CHECK(same, "%s: \"%s\" (%s) gave %zu ids", file, text, key, ids->n);
    for (size_t i = 0; !same && i < ids->n; i++)
        printf("%d ", ids->v[i]);
}

static void check_text(const struct tokenizer *t, const struct ids *ids, const char *want)
{
    struct tokenizer_stream s = {.show_special = true};
    char out[TOKENIZER_STREAM_OUT], *text, *streamed = calloc(ids->n + 1, sizeof out);
    size_t n, used = 0;
    CHECK_OK(tokenizer_decode(t, ids->v, ids->n, false, &text, &n, &e), e);
    CHECK(n == strlen(want) && !memcmp(text, want, n), "\"%s\" came back as \"%s\"", want, text);
    for (size_t i = 0; i < ids->n; i++) {
        size_t got = tokenizer_stream_push(t, &s, ids->v[i], out);
        memcpy(streamed + used, out, got);
        used += got;
    }
    used += tokenizer_stream_flush(&s, streamed + used);
    CHECK(used == n && !memcmp(streamed, text, n), "\"%s\" streamed as \"%s\"", want, streamed);
    free(streamed);
    free(text);
}

static void check_case(const struct tokenizer *t, const cJSON *c)
{
    const char *decoded = json_str_or(c, "decoded", NULL);
    struct ids ids = {0};
    bool hf = json_get(c, "special") != NULL; /* that library always parses special tokens */
    check_ids(t, c, "ids", hf ? TOKENIZE_SPECIAL : 0, &ids);
    if (decoded)
        check_text(t, &ids, decoded);
    if (hf)
        check_ids(t, c, "special", TOKENIZE_SPECIAL | TOKENIZE_BOS, &ids);
    ids_free(&ids);
}

int main(void)
{
    char *all, *line, open_name[64] = "", path[128];
    struct tokenizer *t = NULL;
    int n = 0, n_files = 0;
    if (file_read(test_path("tokenizers/cases.jsonl"), 1 << 24, &all, NULL, &e)) {
        CHECK(false, "%s", e.text);
        return test_end("tokenizer_golden");
    }
    for (char *rest = all; (line = strsep(&rest, "\n"));) {
        cJSON *c;
        if (!*line || json_parse(&c, line, strlen(line), "cases.jsonl", &e))
            continue;
        const char *file = json_str_or(c, "file", "");
        if (strcmp(file, open_name)) {
            tokenizer_free(t);
            snprintf(open_name, sizeof open_name, "%s", file);
            snprintf(path, sizeof path, "tokenizers/%s", file);
            CHECK_OK(tokenizer_open(&t, test_path(path), &e), e);
            n_files++;
        }
        if (t)
            check_case(t, c);
        cJSON_Delete(c);
        n++;
    }
    tokenizer_free(t);
    free(all);
    printf("%d cases of %d tokenizers\n", n, n_files);
    CHECK(n_files == 16 && n > 900, "%d cases of %d files are too few", n, n_files);
    return test_end("tokenizer_golden");
}

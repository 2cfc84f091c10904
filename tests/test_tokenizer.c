/* Tokenizers against the reference implementations' ids: hard texts, whole-file counts, the rules
 * that differ from family to family, streaming, long inputs. */
#include "tests/support.h"

#include <time.h>

#include "core/file.h"
#include "core/json.h"
#include "core/tokenizer.h"

static struct err e;

/* A tokenizer from the data folder, unpacked when it is a .gz; NULL (said) when it is not there. */
static struct tokenizer *open_data(const char *name)
{
    const char *path = test_data(name);
    char plain[512], command[2048];
    struct tokenizer *t = NULL;
    size_t n = strlen(name);
    if (!path) {
        printf("skipped: %s is not there\n", name);
        return NULL;
    }
    if (n > 3 && !strcmp(name + n - 3, ".gz")) {
        snprintf(plain, sizeof plain, "%s/%s", test_tmpdir(), path_base(name));
        snprintf(command, sizeof command, "gzip -dc '%s' > '%s'", path, plain);
        if (system(command)) {
            printf("skipped: %s could not be unpacked\n", name);
            return NULL;
        }
        path = plain;
    }
    CHECK_OK(tokenizer_open(&t, path, &e), e);
    return t;
}

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

static void show(const char *text, const struct ids *ids)
{
    printf("  \"%s\" gave", text);
    for (size_t i = 0; i < ids->n && i < 60; i++)
        printf(" %d", ids->v[i]);
    printf("\n");
}

/* The same ids one by one through the stream. */
static void check_stream(const struct tokenizer *t, const struct ids *ids, const char *want,
                         size_t n_want)
{
    struct tokenizer_stream s = {.show_special = true};
    char out[TOKENIZER_STREAM_OUT], *text = calloc(ids->n + 1, sizeof out);
    size_t used = 0;
    for (size_t i = 0; i < ids->n; i++) {
        size_t n = tokenizer_stream_push(t, &s, ids->v[i], out);
        memcpy(text + used, out, n);
        used += n;
    }
    used += tokenizer_stream_flush(&s, text + used);
    CHECK(used == n_want && !memcmp(text, want, used), "streamed \"%s\"", want);
    free(text);
}

/* cJSON ends strings at a NUL, so the cases' NULs travel as U+F123. Gives the true length. */
static size_t restore_nul(char *s)
{
    size_t n = strlen(s);
    for (char *at; (at = strstr(s, "\xef\x84\xa3")); n -= 2) {
        *at = '\0';
        memmove(at + 1, at + 3, n - (size_t)(at - s) - 2);
        s = at + 1;
    }
    return n;
}

static void hide_nul(char *line)
{
    for (char *at = line; (at = strstr(at, "\\u0000"));)
        memcpy(at, "\\uf123", 6);
}

static void check_case(const struct tokenizer *t, const cJSON *c)
{
    char *text = json_get(c, "text")->valuestring;
    char *decoded = json_get(c, "decoded")->valuestring;
    size_t n_text = restore_nul(text), n_decoded = restore_nul(decoded), n;
    struct ids ids = {0};
    char *back;
    CHECK_OK(tokenizer_encode(t, text, n_text, TOKENIZE_SPECIAL, &ids, &e), e);
    CHECK(same_ids(&ids, json_get(c, "ids")));
    if (!same_ids(&ids, json_get(c, "ids")))
        show(text, &ids);
    CHECK_OK(tokenizer_decode(t, ids.v, ids.n, false, &back, &n, &e), e);
    CHECK(n == n_decoded && !memcmp(back, decoded, n), "\"%s\" came back as \"%s\"", decoded, back);
    check_stream(t, &ids, decoded, n_decoded);
    free(back);
    ids.n = 0;
    CHECK_OK(tokenizer_encode(t, text, n_text, TOKENIZE_SPECIAL | TOKENIZE_BOS, &ids, &e), e);
    CHECK(same_ids(&ids, json_get(c, "ids_special")), "\"%s\" with BOS", text);
    ids_free(&ids);
}

static int check_jsonl(const struct tokenizer *t, const char *name)
{
    const char *path = test_data(name);
    char *all, *line, *rest;
    int cases = 0;
    if (!path || file_read(path, 1 << 24, &all, NULL, &e))
        return 0;
    for (rest = all; (line = strsep(&rest, "\n"));) {
        cJSON *c;
        if (!*line)
            continue;
        hide_nul(line);
        CHECK_OK(json_parse(&c, line, strlen(line), name, &e), e);
        check_case(t, c);
        cJSON_Delete(c);
        cases++;
    }
    free(all);
    printf("%s: %d cases\n", name, cases);
    return cases;
}

/* llama.cpp's own cases: texts apart by a marker line, one line of ids each. ids: the file of ids
 * below tests/, NULL: it lies beside the cases. */
static void check_cases(const struct tokenizer *t, const char *stem, const char *ids_name)
{
    char name[256];
    char *in, *out, *ids_rest, *at;
    int cases = 0;
    snprintf(name, sizeof name, "%s.inp", stem);
    const char *path = test_data(name);
    if (!path || file_read(path, 1 << 20, &in, NULL, &e))
        return;
    snprintf(name, sizeof name, "%s.out", stem);
    path = ids_name ? test_path(ids_name) : test_data(name);
    if (!path || file_read(path, 1 << 20, &out, NULL, &e)) {
        free(in);
        return;
    }
    const char *marker = "\n__ggml_vocab_test__\n";
    ids_rest = out;
    for (at = in; at; cases++) {
        char *end = strstr(at, marker), *line = strsep(&ids_rest, "\n");
        size_t n = end ? (size_t)(end - at) : strlen(at);
        struct ids ids = {0};
        bool same = line != NULL;
        CHECK_OK(tokenizer_encode(t, at, n, 0, &ids, &e), e);
        for (size_t i = 0; same && i < ids.n; i++)
            same = strtol(line, &line, 10) == ids.v[i];
        same = same && line[strspn(line, " \r")] == '\0';
        CHECK(same, "%s case %d: \"%.*s\"", stem, cases, (int)n, at);
        ids_free(&ids);
        at = end ? end + strlen(marker) : NULL;
    }
    printf("%s: %d cases\n", stem, cases);
    free(in);
    free(out);
}

static void check_wiki(const struct tokenizer *t, size_t want, bool round_trip)
{
    const char *path = test_data("lm/wiki.test.raw");
    struct ids ids = {0};
    struct timespec a, b;
    char *text;
    size_t n;
    if (!path || file_read(path, 1 << 24, &text, &n, &e)) {
        printf("skipped: lm/wiki.test.raw is not there\n");
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &a);
    CHECK_OK(tokenizer_encode(t, text, n, 0, &ids, &e), e);
    clock_gettime(CLOCK_MONOTONIC, &b);
    double s = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
    printf("wiki.test.raw: %zu tokens in %.2f s\n", ids.n, s);
    CHECK(ids.n == want, "%zu tokens, not %zu", ids.n, want);
    char *back;
    size_t n_back;
    CHECK_OK(tokenizer_decode(t, ids.v, ids.n, false, &back, &n_back, &e), e);
    CHECK(!round_trip || (n_back == n && !memcmp(back, text, n)));
    free(back);
    free(text);
    ids_free(&ids);
}

#ifdef __has_feature
#define SANITIZED __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#elif defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

/* The aim is a second of the processor's time for a megabyte; a busy machine gets twice that, a
 * sanitizer ten times. */
static void check_time(const struct tokenizer *t, const char *what, const char *text, size_t n)
{
    struct ids ids = {0};
    clock_t start = clock();
    CHECK_OK(tokenizer_encode(t, text, n, TOKENIZE_SPECIAL, &ids, &e), e);
    double s = (double)(clock() - start) / CLOCKS_PER_SEC;
    CHECK(s < (SANITIZED ? 10 : 2), "%zu bytes of \"%s\" took %.1f s", n, what, s);
    if (s > 1)
        printf("slow: %zu bytes of \"%s\" took %.2f s\n", n, what, s);
    ids_free(&ids);
}

/* No input may cost more than about n log n. */
static void check_long(const struct tokenizer *t)
{
    static const char *const units[] = {" ", "a",        "\n", "中",  "😀", "=",
                                        "1", "\xcc\x81", "<",  "ab ", "Ab"};
    const size_t n = 1 << 20;
    char *text = malloc(n), *wiki;
    size_t n_wiki, used = 0;
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t m = strlen(units[u]), whole = n / m * m;
        for (size_t i = 0; i < whole; i++)
            text[i] = units[u][i % m];
        check_time(t, units[u], text, whole);
    }
    const char *path = test_data("lm/wiki.test.raw");
    if (path && !file_read(path, 1 << 24, &wiki, &n_wiki, &e)) {
        /* Prose without a gap: one word for every tokenizer. */
        for (size_t i = 0; i < n_wiki && used < n; i++)
            if (wiki[i] != ' ' && wiki[i] != '\n')
                text[used++] = wiki[i];
        check_time(t, "prose without spaces", text, used);
        free(wiki);
    }
    free(text);
}

static void check_ids(const struct tokenizer *t, const char *text, unsigned flags,
                      const int32_t *want, size_t n)
{
    struct ids ids = {0};
    CHECK_OK(tokenizer_encode(t, text, strlen(text), flags, &ids, &e), e);
    bool same = ids.n == n && !memcmp(ids.v, want, n * sizeof *want);
    CHECK(same, "\"%s\"", text);
    if (!same)
        show(text, &ids);
    ids_free(&ids);
}
#define IDS(...) (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / 4

/* Facts about SmolLM2's vocabulary; any file of that model will do. */
static void check_smollm2(const struct tokenizer *t)
{
    int n;
    check_ids(t, "Hello, we can use", TOKENIZE_BOS, IDS(19556, 28, 392, 416, 722));
    check_ids(t, "The capital of France is", 0, IDS(504, 3575, 282, 4649, 314));
    check_ids(t, "Hello world! 123", 0, IDS(19556, 905, 17, 216, 33, 34, 35));
    check_ids(t, "Café déjà vu.", 0, IDS(51, 1939, 2756, 32564, 90, 16739, 386, 101, 30));
    check_ids(t, "  multiple   spaces", 0, IDS(216, 2701, 256, 5600));
    check_ids(t, "\n", 0, IDS(198));
    check_ids(t, "<|im_start|>\n<|im_end|>", TOKENIZE_SPECIAL, IDS(1, 198, 2));
    struct ids ids = {0};
    CHECK_OK(tokenizer_encode(t, "<|im_end|>", 10, 0, &ids, &e), e);
    CHECK(ids.n > 1, "a special token must be plain text unless asked for");
    ids_free(&ids);
    CHECK(tokenizer_size(t) == 49152 && tokenizer_bos(t) == 1 && !tokenizer_adds_bos(t));
    CHECK(tokenizer_is_eos(t, 2) && tokenizer_is_eos(t, 0) && !tokenizer_is_eos(t, 1));
    CHECK(tokenizer_eos(t, &n) && n == 2);
    CHECK(tokenizer_find(t, "<|im_end|>", 10) == 2 && tokenizer_find(t, " capital", 8) == 3575);
    CHECK(tokenizer_find(t, "<|nothing|>", 11) == -1);
    CHECK(tokenizer_chat_template(t) != NULL && !strcmp(tokenizer_eos_text(t), "<|im_end|>"));
}

static void test_default_model(void)
{
    char path[512];
    struct tokenizer *t = NULL;
    snprintf(path, sizeof path, "%s/.local/share/mlathe/models/SmolLM2-135M-Instruct.Q4_1.gguf",
             getenv("HOME") ? getenv("HOME") : "");
    if (!file_exists(path)) {
        printf("skipped: the default model is not there\n");
        return;
    }
    CHECK_OK(tokenizer_open(&t, path, &e), e);
    if (!t)
        return;
    check_smollm2(t);
    check_wiki(t, 303415, true);
    check_long(t);
    tokenizer_free(t);
}

static void test_llama3(void)
{
    struct tokenizer *t = open_data("tok/llama3_1.tokenizer.json.gz");
    if (!t)
        return;
    check_jsonl(t, "tok/llama3_1.jsonl");
    check_cases(t, "tok/ggml-vocab-llama-bpe.gguf", NULL);
    check_wiki(t, 289076, true);
    check_long(t);
    CHECK(tokenizer_bos(t) == 128000 && tokenizer_adds_bos(t));
    check_ids(t, " Việt", 0, IDS(101798)); /* only with ignore_merges */
    CHECK(tokenizer_is_eos(t, tokenizer_find(t, "<|eot_id|>", 10)));
    tokenizer_free(t);
}

static void test_qwen(void)
{
    struct tokenizer *t = open_data("tok/qwen3.tokenizer.json.gz");
    if (!t)
        return;
    check_jsonl(t, "tok/qwen3.jsonl");
    check_cases(t, "tok/ggml-vocab-qwen2.gguf", NULL);
    check_wiki(t, 299078, true);
    CHECK(!tokenizer_adds_bos(t));
    /* Added but not special: matched even where special tokens are not. */
    check_ids(t, "<think>", 0, IDS(151667));
    tokenizer_free(t);
}

static void test_file(const char *vocab, const char *jsonl, const char *cases, size_t wiki,
                      bool round_trip)
{
    struct tokenizer *t = open_data(vocab);
    if (!t)
        return;
    if (jsonl)
        check_jsonl(t, jsonl);
    if (cases)
        check_cases(t, cases, NULL);
    if (wiki)
        check_wiki(t, wiki, round_trip);
    if (!round_trip)
        check_long(t); /* once for a vocabulary that merges characters: a text is one word */
    tokenizer_free(t);
}

static void test_starcoder(void)
{
    struct tokenizer *t = open_data("tok/ggml-vocab-starcoder.gguf");
    if (!t)
        return;
    /* The folder has no ids for this one. These come from the `tokenizers` library over the same
     * vocabulary and merges with Digits and ByteLevel, a setup that gives all of GPT-2's ids. */
    check_cases(t, "tok/ggml-vocab-llama-bpe.gguf", "tokenizers/starcoder.out");
    check_wiki(t, 355915, true);
    tokenizer_free(t);
}

/* A SentencePiece model alone, and what it is for: ids from that library. */
static void test_stories(void)
{
    struct tokenizer *t = open_data("stories260K/tok512.model");
    if (!t)
        return;
    CHECK(tokenizer_size(t) == 512 && tokenizer_bos(t) == 1 && tokenizer_is_eos(t, 2));
    check_ids(t, "Once upon a time", TOKENIZE_BOS, IDS(1, 403, 407, 261, 378));
    check_ids(t, "caf\xc3\xa9 \xf0\x9f\xa6\x99", 0,
              IDS(280, 412, 431, 485, 410, 243, 162, 169, 156));
    tokenizer_free(t);
}

int main(void)
{
    test_default_model();
    test_starcoder();
    test_stories();
    test_llama3();
    test_qwen();
    test_file("tok/llama2.tokenizer.json", "tok/llama2.jsonl", "tok/ggml-vocab-llama-spm.gguf",
              335687, true);
    test_file("tok/mistral-v3.tokenizer.json", "tok/mistral-v3.jsonl", NULL, 328879,
              false); /* the file begins with a space, which this decoder drops */
    test_file("tok/ggml-vocab-gpt-2.gguf", NULL, "tok/ggml-vocab-gpt-2.gguf", 286221, true);
    test_file("tok/ggml-vocab-llama-spm.gguf", "tok/llama2.jsonl", "tok/ggml-vocab-llama-spm.gguf",
              335687, true);
    test_file("tok/ggml-vocab-phi-3.gguf", NULL, "tok/ggml-vocab-phi-3.gguf", 335687, true);
    return test_end("tokenizer");
}

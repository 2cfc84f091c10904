/* Fuzz smoke of everything that reads text from strangers: tokenizer.json, GGUF vocabularies, chat
 * templates and the text to tokenise. Deterministic; mutations of valid inputs. A broken input may
 * be refused or accepted, but must neither crash nor hang, and the properties must hold. */
#include "tests/support_vocab.h"

#include <time.h>

#include "core/chatfmt.h"
#include "core/file.h"
#include "core/jinja.h"
#include "core/tokenizer.h"
#include "core/utf8.h"

static struct err e;
static uint64_t state = 20240726;

static size_t pick(size_t n)
{
    return (size_t)(test_uniform(&state) * (double)n);
}

static const char *const words[] = {
    "{{",       "}}",  "{%",    "%}",       "{#",     "#}",          "|",    "(",      ")",
    "[",        "]",   "'",     "\"",       "if ",    "for ",        "in ",  "endfor", "endif",
    "set ",     " - ", "loop.", "\\u0000",  "\\",     "null",        "true", ",",      ":",
    "{",        "}",   "0",     "-1",       "1e999",  "99999999999", "\xff", "\n",     "namespace(",
    "range(9)", "~",   "*9999", ".items()", "[::-1]", "is ",         "not "};

/* A mutated copy: bytes flipped, stretches cut, doubled or moved, words put in. */
static char *mutate(const char *s, size_t n, size_t *size)
{
    char *out = malloc(2 * n + 256);
    memcpy(out, s, n);
    for (size_t k = 1 + pick(4); k-- > 0 && n;) {
        size_t at = pick(n), len = 1 + pick(n - at < 24 ? n - at : 24);
        const char *w = words[pick(sizeof words / sizeof *words)];
        switch (pick(4)) {
        case 0: out[at] = (char)pick(256); break;
        case 1:
            memmove(out + at, out + at + len, n - at - len);
            n -= len;
            break;
        case 2:
            memmove(out + at + len, out + at, n - at);
            n += len;
            break;
        default:
            len = strlen(w);
            memmove(out + at + len, out + at, n - at);
            memcpy(out + at, w, len);
            n += len;
            break;
        }
    }
    out[n] = '\0';
    *size = n;
    return out;
}

static size_t random_text(char *out, size_t max)
{
    static const char *const bits[] = {" ",        "  ",           "\n",
                                       "a",        "ab",           "1",
                                       "é",        "中",           "\xf0\x9f\xa6\x99",
                                       "<s>",      "<t>",          "<",
                                       "'s",       "\xcc\x81",     "\xe2\x80\x8d",
                                       "\xc2\x85", "\xe1\xa0\x8e", "\xff",
                                       "\xe6\xad", "\xed\xa0\x80", "\t",
                                       "==="};
    size_t n = 0, want = pick(max - 8);
    while (n < want) {
        const char *b = bits[pick(sizeof bits / sizeof *bits)];
        memcpy(out + n, b, strlen(b));
        n += strlen(b);
    }
    return n;
}

/* What holds for every byte-level tokenizer without a normalizer. */
static void check_round_trip(const struct tokenizer *t, const char *text, size_t n)
{
    struct ids ids = {0}, parts = {0};
    struct tokenizer_part all = {0, n};
    struct tokenizer_stream s = {.show_special = true};
    size_t n_fixed, n_back, used = 0;
    char *fixed = utf8_repair(text, n, &n_fixed, NULL, 0), *back, out[TOKENIZER_STREAM_OUT];
    CHECK_OK(tokenizer_encode(t, text, n, TOKENIZE_SPECIAL, &ids, &e), e);
    CHECK_OK(tokenizer_encode_parts(t, text, n, &all, 1, 0, &parts, &e), e);
    CHECK(ids.n == parts.n && (!ids.n || !memcmp(ids.v, parts.v, ids.n * sizeof *ids.v)));
    CHECK_OK(tokenizer_decode(t, ids.v, ids.n, false, &back, &n_back, &e), e);
    CHECK(n_back == n_fixed && !memcmp(back, fixed, n_back));
    for (size_t i = 0; i < ids.n; i++) {
        size_t got = tokenizer_stream_push(t, &s, ids.v[i], out);
        CHECK(used + got <= n_back && !memcmp(back + used, out, got));
        used += got;
    }
    CHECK(used + tokenizer_stream_flush(&s, out) == n_back);
    free(fixed);
    free(back);
    ids_free(&ids);
    ids_free(&parts);
}

static const struct tiny_vocab plain = {.merges = "a b|_ a|ab _a|1 1|= =|== =|c _|c_ d",
                                        .added =
                                            "[{\"id\":300,\"content\":\"<s>\",\"special\":true},"
                                            "{\"id\":301,\"content\":\"<t>\",\"special\":false}]"};

static void fuzz_texts(int rounds)
{
    char text[512], *json = tiny_json(&plain);
    struct tokenizer *t = NULL;
    CHECK_OK(tokenizer_open(&t, tiny_file("fuzz.json", json, strlen(json)), &e), e);
    free(json);
    for (int i = 0; t && i < rounds; i++)
        check_round_trip(t, text, random_text(text, sizeof text));
    tokenizer_free(t);
}

/* Whatever opens must also encode and decode. */
static void use(const char *path)
{
    char text[256], *back;
    struct tokenizer *t;
    struct ids ids = {0};
    size_t n = random_text(text, sizeof text);
    if (tokenizer_open(&t, path, &e))
        return;
    if (!tokenizer_encode(t, text, n, TOKENIZE_SPECIAL | TOKENIZE_BOS, &ids, &e) &&
        !tokenizer_decode(t, ids.v, ids.n, true, &back, &n, &e))
        free(back);
    ids_free(&ids);
    tokenizer_free(t);
}

static void fuzz_files(int rounds)
{
    size_t n_gguf, n;
    char *json = tiny_json(&plain), *bad;
    uint8_t *gguf = tiny_gguf(&(struct tiny_gguf){"gpt2", "smollm", plain.merges, 1}, &n_gguf);
    for (int i = 0; i < rounds; i++) {
        bool text = i % 2;
        bad = mutate(text ? json : (char *)gguf, text ? strlen(json) : n_gguf, &n);
        use(tiny_file("fuzz.bin", bad, n));
        free(bad);
    }
    free(json);
    free(gguf);
}

/* Every form there is: JSON merges, Metaspace, unigram, and SentencePiece models. Half of them are
 * cut short, as torn downloads are. */
static void fuzz_forms(int rounds)
{
    static const char *const names[] = {"gemma.json",    "mistral.json",  "tekken.json",
                                        "unigram.json",  "bpe.model",     "noprefix.model",
                                        "unigram.model", "falcon.json",   "unigram_bytes.model",
                                        "phi4.json",     "deepseek.json", "metaspace_always.json"};
    double worst = 0;
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char path[128], *good = NULL, *bad;
        size_t n_good, n;
        snprintf(path, sizeof path, "tokenizers/%s", names[k]);
        CHECK_OK(file_read(test_path(path), 1 << 20, &good, &n_good, &e), e);
        for (int i = 0; good && i < rounds; i++) {
            clock_t start = clock();
            size_t keep = i % 2 ? n_good : 1 + pick(n_good);
            bad = mutate(good, keep, &n);
            use(tiny_file("form.bin", bad, n));
            free(bad);
            double s = (double)(clock() - start) / CLOCKS_PER_SEC;
            worst = s > worst ? s : worst;
        }
        free(good);
    }
    /* A few kilobytes may not keep anybody waiting; a sanitizer is ten times slower. */
    CHECK(worst < 5, "a damaged tokenizer took %.1f s", worst);
}

/* Sizes that a small file claims are not believed. */
static void small_files_that_ask_for_much(void)
{
    static const struct {
        const char *bytes;
        size_t n;
    } models[] = {
        {"\n\xff\xff\xff\xff\x0f"
         "a",
         7},                                                /* a piece of 4 GiB */
        {"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11}, /* of 2^64 − 1 bytes */
        {"\n\x03\n\x01"
         "a\x1a\x06\x12\x04\xfc\xff\xff\xff",
         13},                                                   /* a table of 4 GiB */
        {"\n\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", 12}, /* a number without an end */
        {"\n\x03\n\x01"
         "a\x0b",
         6}, /* a group */
    };
    static const char *const jsons[] = {
        "{\"model\":{\"merges\":[],\"vocab\":{\"a\":4000000000}}}",
        "{\"model\":{\"merges\":[],\"vocab\":{\"a\":4194304}}}",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]},\"added_tokens\":[{\"id\":4e9}]}",
    };
    struct tokenizer *t;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        e = (struct err){0};
        int rc = tokenizer_open(&t, tiny_file("much.model", models[i].bytes, models[i].n), &e);
        CHECK(rc == ERR_FORMAT && !t && e.text[0], "model %zu: %d %s", i, rc, e.text);
    }
    for (size_t i = 0; i < sizeof jsons / sizeof *jsons; i++) {
        e = (struct err){0};
        int rc = tokenizer_open(&t, tiny_file("much.json", jsons[i], strlen(jsons[i])), &e);
        CHECK(rc == ERR_FORMAT && !t && e.text[0], "json %zu: %d %s", i, rc, e.text);
    }
}

/* A normalizer that blows a text up is stopped, not obeyed. */
static void growing_normalizer(void)
{
    char json[4096], *at = json;
    struct tokenizer *t = NULL;
    struct ids ids = {0};
    at += sprintf(at, "{\"model\":{\"merges\":[],\"vocab\":{\"a\":0}},\"normalizer\":{\"type\":"
                      "\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 8; i++)
        at += sprintf(at,
                      "%s{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":"
                      "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}",
                      i ? "," : "");
    sprintf(at, "]}}");
    CHECK_OK(tokenizer_open(&t, tiny_file("grow.json", json, strlen(json)), &e), e);
    CHECK(t && tokenizer_encode(t, "aaaa", 4, 0, &ids, &e) == ERR_LIMIT, "%s", e.text);
    ids_free(&ids);
    tokenizer_free(t);
}

struct rule {
    const char *source, *vars, *want;
};
static const struct rule rules[] = {
#include "tests/jinja_rules.h"
};

static void fuzz_templates(int rounds)
{
    cJSON *vars = NULL, *item;
    struct jinja_var v[16];
    size_t n_vars = 0, n;
    double worst = 0;
    json_parse(&vars, rules[0].vars, strlen(rules[0].vars), "vars", &e);
    cJSON_ArrayForEach(item, vars) v[n_vars++] = (struct jinja_var){item->string, item, true};
    for (int i = 0; i < rounds; i++) {
        const char *source = rules[pick(sizeof rules / sizeof *rules)].source;
        char *bad = mutate(source, strlen(source), &n);
        struct jinja_text text;
        struct jinja *j;
        clock_t start = clock();
        if (!jinja_new(&j, bad, n, &e)) {
            if (!jinja_render(j, v, n_vars, &text, &e)) {
                CHECK(text.n == strlen(text.s) || memchr(text.s, 0, text.n));
                CHECK(utf8_valid(text.s, text.n), "%s", bad);
                jinja_text_free(&text);
            }
            jinja_free(j);
        }
        double s = (double)(clock() - start) / CLOCKS_PER_SEC;
        worst = s > worst ? s : worst;
        free(bad);
    }
    /* The step and memory limits end anything within a second; sanitizers are slower. */
    CHECK(worst < 15, "a template took %.1f s", worst);
    cJSON_Delete(vars);
}

int main(void)
{
    fuzz_texts(20000);
    fuzz_files(3000);
    fuzz_forms(120);
    small_files_that_ask_for_much();
    growing_normalizer();
    fuzz_templates(60000);
    return test_end("fuzz_text");
}

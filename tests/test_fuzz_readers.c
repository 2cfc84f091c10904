/* A short, repeatable fuzz of everything that reads files: valid small files, then cuts, flips,
 * lies about sizes, and numbers swapped in JSON. Nothing may crash, hang, or take memory out of
 * proportion. MLATHE_FUZZ multiplies the number of rounds. */
#include <sys/resource.h>
#include <unistd.h>

#include "core/file.h"
#include "core/model.h"
#include "tests/support.h"
#include "tests/support_fuzz.h"
#include "tests/support_gguf.h"
#include "tests/support_models.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

typedef int (*target)(const uint8_t *data, size_t size);

static size_t pick(uint64_t *seed, size_t n)
{
    return n ? (size_t)(test_uniform(seed) * (double)n) : 0;
}

/* Sanitizers reserve address space of their own; elsewhere 64 MB must do for files of 60 KB. */
static void limit_memory(void)
{
#ifndef SANITIZED
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    if (f && fscanf(f, "%lu", &pages) == 1) {
        rlim_t bytes = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (64u << 20);
        setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes});
    }
    if (f)
        fclose(f);
#endif
}

static int run(target t, const uint8_t *data, size_t size, const char *what, size_t round)
{
    int rc = t(data, size);
    CHECK(rc != ERR_NOMEM, "%s, round %zu: asked for too much memory", what, round);
    return rc;
}

/* One to four small injuries. focus: most of them fall into the first bytes. */
static void injure(struct bytes *b, size_t focus, uint64_t *seed)
{
    static const uint64_t lies[] = {0,          1,          2,          31,         255,
                                    1ull << 16, 1ull << 31, 1ull << 32, 1ull << 40, 1ull << 62,
                                    1ull << 63, ~0ull,      ~0ull - 7};
    static const char swaps[] = "0123456789-.,:[]{}\"eEtfn/\\u\0 ";
    for (size_t k = 1 + pick(seed, 4); k-- > 0 && b->n;) {
        size_t at = pick(seed, test_uniform(seed) < 0.9 && focus < b->n ? focus : b->n);
        size_t left = b->n - at, len = 1 + pick(seed, 24);
        switch (pick(seed, 6)) {
        case 0: b->data[at] ^= (uint8_t)(1u << pick(seed, 8)); break;
        case 1: b->data[at] = (uint8_t)pick(seed, 256); break;
        case 2: b->data[at] = (uint8_t)swaps[pick(seed, sizeof swaps - 1)]; break;
        case 3:
            memcpy(b->data + at, &lies[pick(seed, sizeof lies / sizeof *lies)],
                   left < 8 ? left : 8);
            break;
        case 4: /* lose some bytes */
            len = len < left ? len : left;
            memmove(b->data + at, b->data + at + len, left - len);
            b->n -= len;
            break;
        case 5: /* say some bytes twice */
            len = len < left ? len : left;
            put_bytes(b, "                        ", len);
            memmove(b->data + at + len, b->data + at, left);
            break;
        }
    }
}

static void fuzz(const char *what, target t, const uint8_t *data, size_t size, size_t focus,
                 size_t rounds)
{
    uint64_t seed = 20 + size;
    size_t accepted = 0;
    CHECK(run(t, data, size, what, 0) == 0, "%s: the file itself opens", what);
    /* Cuts: every length in the part that lies about the rest, then a few of each size. */
    size_t step = focus > 2000 ? focus / 2000 : 1;
    for (size_t n = 0; n < size; n += n < focus ? step : 1 + size / 50)
        if (run(t, data, n, what, n) == 0)
            accepted++;
    CHECK(accepted == 0, "%s: %zu cut files were taken for whole ones", what, accepted);
    for (size_t i = 0; i < rounds; i++) {
        struct bytes b = {0};
        put_bytes(&b, data, size);
        injure(&b, focus, &seed);
        accepted += run(t, b.data, b.n, what, i) == 0;
        put_free(&b);
    }
    printf("%s: %zu injured files, %zu still readable\n", what, rounds, accepted);
}

static void load(const char *path, struct bytes *b)
{
    struct err e = {0};
    struct file_map map;
    CHECK_OK(file_map_open(&map, path, &e), e);
    put_bytes(b, map.data, map.size);
    file_map_close(&map);
}

/* Bytes before the tensors' data; in GGUF that is where the last tensor's record ends. */
static size_t header_size(const struct bytes *b, bool gguf)
{
    uint64_t n;
    if (gguf) {
        static const char last[] = "rope_freqs.weight";
        const uint8_t *p = memmem(b->data, b->n, last, sizeof last - 1);
        return p ? (size_t)(p - b->data) + sizeof last - 1 + 24 : b->n;
    }
    memcpy(&n, b->data, 8);
    return (size_t)n + 8;
}

/* A number anywhere in config.json becomes another one. */
static void fuzz_numbers(const char *config, size_t size)
{
    static const char *const numbers[] = {"0",    "-1",   "1",    "3",         "2147483648", "1e9",
                                          "1e30", "0.5",  "null", "\"text\"",  "[]",         "true",
                                          "{}",   "1e-9", "1023", "4294967297"};
    size_t round = 0;
    for (size_t at = 0; at < size; at++) {
        bool digit = config[at] >= '0' && config[at] <= '9';
        if (!digit || at == 0 || (config[at - 1] != ' ' && config[at - 1] != '\t'))
            continue;
        size_t end = at + strspn(config + at, "0123456789.e+-");
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            struct bytes b = {0};
            put_bytes(&b, config, at);
            put_bytes(&b, numbers[i], strlen(numbers[i]));
            put_bytes(&b, config + end, size - end);
            run(fuzz_config, b.data, b.n, "config numbers", round++);
            put_free(&b);
        }
    }
    CHECK(round >= 8 * sizeof numbers / sizeof *numbers, "%zu numbers tried", round);
}

/* A norm of NaN, wherever it stands, is named when the model is opened; a weight when asked for. */
static void test_not_finite(const struct bytes *file)
{
    struct err e = {0};
    struct model *m = NULL;
    char path[300];
    snprintf(path, sizeof path, "%s/nan.gguf", test_tmpdir());
    CHECK_OK(file_save(path, file->data, file->n, &e), e);
    CHECK_OK(model_open(&m, path, &e), e);
    if (!m)
        return;
    /* Where the views lie in the mapping, relative to the embedding, which comes first. */
    const uint8_t *start = m->embed.data;
    size_t norm = (size_t)((const uint8_t *)m->layer[0].ffn_norm.data - start) + 20;
    size_t weight = (size_t)((const uint8_t *)m->layer[0].up.data - start) + 400;
    const uint8_t *there = memmem(file->data, file->n, start, 64); /* random, so unique */
    size_t data = there ? (size_t)(there - file->data) : 0;
    model_free(m);
    for (int i = 0; i < 2; i++) {
        struct bytes b = {0};
        put_bytes(&b, file->data, file->n);
        memcpy(b.data + data + (i ? weight : norm), i ? "\0\0\x80\x7f" : "\0\0\xc0\x7f", 4);
        CHECK_OK(file_save(path, b.data, b.n, &e), e);
        put_free(&b);
        e = (struct err){0};
        int rc = model_open(&m, path, &e);
        if (i == 0) {
            CHECK(rc == ERR_NUMERIC && strstr(e.text, "blk.0.ffn_norm.weight: number 5 is NaN"),
                  "%d %s", rc, e.text);
            continue;
        }
        CHECK(rc == 0, "%s", e.text);
        CHECK(m && model_check_finite(m, NULL, &e) == ERR_NUMERIC, "a weight is infinite");
        CHECK(strstr(e.text, "layer 0 up: number 100 is infinite"), "%s", e.text);
        model_free(m);
    }
}

static void test_nasty_json(void)
{
    struct bytes b = {0};
    uint64_t n = 60000;
    put_bytes(&b, &n, 8);
    for (size_t i = 0; i < n; i++)
        put_bytes(&b, "[", 1);
    CHECK(run(fuzz_safetensors, b.data, b.n, "nested header", 0) == ERR_FORMAT);
    put_free(&b);
    put_bytes(&b, &n, 8);
    put_bytes(&b, "{\"a\":[0", 7);
    while (b.n < 8 + n - 2)
        put_bytes(&b, ",0", 2);
    put_bytes(&b, "]}", 8 + n - b.n);
    run(fuzz_safetensors, b.data, b.n, "long list", 0);
    put_free(&b);
    CHECK(fuzz_config((const uint8_t *)"", 0) < 0 && fuzz_index((const uint8_t *)"{}", 2) < 0);
}

int main(void)
{
    const char *times = getenv("MLATHE_FUZZ");
    size_t k = times && atoi(times) > 0 ? (size_t)atoi(times) : 1;
    struct test_model_spec spec = {1, 32, 2, 1, 16, 32, 320, DTYPE_F32, 3, false, 0, true, 0};
    struct bytes gguf = {0}, tensors = {0}, config = {0}, index = {0};
    char path[300];
    limit_memory();
    snprintf(path, sizeof path, "%s/tiny.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(path, &spec) == 0);
    load(path, &gguf);
    snprintf(path, sizeof path, "%s/tiny", test_tmpdir());
    CHECK(test_model_write_hf(path, &spec) == 0);
    snprintf(path, sizeof path, "%s/tiny/model.safetensors", test_tmpdir());
    load(path, &tensors);
    snprintf(path, sizeof path, "%s/tiny/config.json", test_tmpdir());
    load(path, &config);
    put_bytes(&index, "{\"weight_map\":{", 15);
    put_bytes(&index, "\"model.norm.weight\": \"part.safetensors\"}}", 41);

    fuzz("gguf", fuzz_gguf, gguf.data, gguf.n, header_size(&gguf, true), 4000 * k);
    fuzz("gguf model", fuzz_gguf_model, gguf.data, gguf.n, header_size(&gguf, true), 3000 * k);
    fuzz("safetensors", fuzz_safetensors, tensors.data, tensors.n, header_size(&tensors, false),
         4000 * k);
    fuzz("config", fuzz_config, config.data, config.n, config.n, 1500 * k);
    fuzz("index", fuzz_index, index.data, index.n, index.n, 1500 * k);
    fuzz_numbers((const char *)config.data, config.n);
    test_not_finite(&gguf);
    test_nasty_json();
    put_free(&gguf);
    put_free(&tensors);
    put_free(&config);
    put_free(&index);
    return test_end("fuzz_readers");
}

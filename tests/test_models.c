/* Finding models: every cache's layout, parts and loops skipped, bad files listed with a reason. */
#include "sessions/models.h"

#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_models.h"

static const char *at(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", test_tmpdir(), name);
    return path;
}

static void folder(const char *name)
{
    struct err e;
    CHECK_OK(file_mkdirs(at(name), &e), e);
}

static void text(const char *name, const char *content)
{
    struct err e;
    CHECK_OK(file_save(at(name), content, strlen(content), &e), e);
}

static const struct model_entry *find(const struct model_entry *m, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(m[i].name, name))
            return &m[i];
    return NULL;
}

static void make_caches(void)
{
    struct test_model_spec spec = test_model_small();
    folder("home/data/models/loop");
    folder("home/data/conversions/half");
    folder("user/.cache/huggingface/hub/models--org--tiny--one/snapshots/abc");
    folder("user/.ollama/models/manifests/example.org/library/tiny");
    folder("user/.ollama/models/blobs");
    folder("user/.cache/llama.cpp");
    test_model_write_gguf(at("home/data/models/own.gguf"), &spec);
    text("home/data/models/broken.gguf", "GGUF but not really");
    text("home/data/models/mmproj-x.gguf", "GGUF");
    text("home/data/models/big-00002-of-00003.gguf", "GGUF");
    text("home/data/conversions/half/mlathe.json",
         "{\"plan\":{\"model\":{\"family\":\"llama\",\"layers\":2},\"prediction\":"
         "{\"kv_bytes_per_token\":128}}}");
    CHECK(symlink("..", at("home/data/models/loop/up")) == 0);
    test_model_write_hf(at("user/.cache/huggingface/hub/models--org--tiny--one/snapshots/abc"),
                        &spec);
    /* Not quite whole: no tokenizer, and a family that nobody knows. */
    folder("home/data/models/bare");
    test_model_write_hf(at("home/data/models/bare"), &spec);
    CHECK(unlink(at("home/data/models/bare/tokenizer.json")) == 0);
    folder("home/data/models/strange");
    text("home/data/models/strange/config.json", "{\"model_type\":\"olmo9\"}");
    char digest[80] = "";
    memset(digest, 'a', 64);
    char blob[160], manifest[400];
    snprintf(blob, sizeof blob, "user/.ollama/models/blobs/sha256-%s", digest);
    test_model_write_gguf(at(blob), &spec);
    snprintf(manifest, sizeof manifest,
             "{\"layers\":[{\"mediaType\":\"application/vnd.ollama.image.model\","
             "\"digest\":\"sha256:%s\"},{\"mediaType\":\"x\",\"digest\":\"sha256:../../x\"},3]}",
             digest);
    text("user/.ollama/models/manifests/example.org/library/tiny/1b", manifest);
}

int main(void)
{
    struct model_entry *m;
    size_t n;
    struct err e;
    char *path;
    make_caches();
    setenv("MLATHE_HOME", at("home"), 1);
    setenv("HOME", at("user"), 1);
    unsetenv("HF_HOME"), unsetenv("HF_HUB_CACHE");
    unsetenv("LLAMA_CACHE"), unsetenv("OLLAMA_MODELS");
    CHECK_OK(models_scan(&m, &n, NULL, 0, &e), e);
    CHECK(n == 7, "%zu models", n);
    const struct model_entry *bare = find(m, n, "bare"), *strange = find(m, n, "strange");
    CHECK(bare && bare->usable && strstr(bare->reason, "no tokenizer"));
    CHECK(strange && !strange->usable && strstr(strange->reason, "\"olmo9\""));
    CHECK(strange && strange->reason[0] != '/', "%s", strange ? strange->reason : "");

    const struct model_entry *own = find(m, n, "own"), *bad = find(m, n, "broken");
    const struct model_entry *hf = find(m, n, "org/tiny--one"), *ollama = find(m, n, "tiny:1b");
    CHECK(own && own->usable && own->n_layer == 2 && own->n_kv_head == 2 && own->bytes > 1000);
    CHECK(own && own->kv_bytes_per_token == 2 * 2 * 2 * 16 * 2); /* L · 2·G·d · F16 */
    CHECK(own && !own->reason[0]);
    CHECK(bad && !bad->usable && bad->reason[0] && bad->reason[0] != '/');
    CHECK(hf && hf->usable && !strcmp(hf->source, "huggingface") && !strcmp(hf->format, "HF"));
    CHECK(ollama && ollama->usable && !strcmp(ollama->source, "ollama"));
    CHECK(find(m, n, "half") && !strcmp(find(m, n, "half")->source, "conversion"));
    CHECK(find(m, n, "half") && find(m, n, "half")->kv_bytes_per_token == 128);
    models_free(m, n);

    struct test_model_spec spec = test_model_small();
    char elsewhere[400];
    snprintf(elsewhere, sizeof elsewhere, "%s", at("elsewhere.gguf"));
    CHECK(test_model_write_gguf(elsewhere, &spec) == 0, "model");
    const char *recent[] = {elsewhere, "/gone.gguf", at("home/data/models/own.gguf")};
    CHECK_OK(models_scan(&m, &n, recent, 3, &e), e);
    CHECK(n == 8, "%zu models: the gone one is left out, the known one stands once", n);
    CHECK(find(m, n, "elsewhere") && !strcmp(find(m, n, "elsewhere")->source, "recent"));
    models_free(m, n);

    CHECK_OK(models_resolve("own", &path, &e), e);
    CHECK(!strcmp(path, at("home/data/models/own.gguf")));
    free(path);
    CHECK_OK(models_resolve("tiny:1b", &path, &e), e);
    free(path);
    CHECK_OK(models_resolve(at("user"), &path, &e), e);
    free(path);
    CHECK(models_resolve("no-such-model", &path, &e) == ERR_ARG && strstr(e.text, "no-such-model"));
    CHECK(models_resolve("", &path, &e) == ERR_ARG);
    CHECK(models_resolve(NULL, &path, &e) == ERR_ARG && strstr(e.text, "./run"));
    return test_end("models");
}

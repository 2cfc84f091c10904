/* Fuzz targets. Files that stand alone live in memory; folders are made once. */
#include "tests/support_fuzz.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/file.h"
#include "core/gguf.h"
#include "core/model.h"
#include "core/safetensors.h"
#include "sessions/conversion.h"
#include "tests/support.h"
#include "tests/support_models.h"

void fuzz_judge(int rc, const struct err *e, const char *names)
{
    bool bad = rc < 0 && (e->status != rc || !strstr(e->text, names));
    for (const char *s = e->text; *s; s++)
        bad = bad || (unsigned char)*s < 32;
    if (bad) {
        printf("status %d without a proper message: \"%s\"\n", rc, e->text);
        fflush(stdout);
        abort();
    }
}

const char *fuzz_file(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0)
        fd = memfd_create("fuzz", MFD_CLOEXEC);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    fuzz_put(fd, path, data, size);
    return path;
}

static void read_tensor(const struct tensor *t)
{
    struct err e;
    if (tensor_elements(t))
        tensor_check_finite(t, "t", &e);
}

int fuzz_gguf(const uint8_t *data, size_t size)
{
    struct err e = {0};
    struct gguf *g;
    const char *path = fuzz_file(data, size);
    int rc = gguf_open(&g, path, &e);
    fuzz_judge(rc, &e, path);
    if (rc)
        return rc;
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        struct tensor t;
        if (gguf_tensor(g, gguf_tensor_name(g, i), &t, &e) == 0)
            read_tensor(&t);
    }
    size_t n = gguf_array_len(g, "tokenizer.ggml.tokens", GGUF_STRING), total = 0;
    struct gguf_str *list = mem_calloc(n, sizeof *list);
    if (list && n && gguf_array_strings(g, "tokenizer.ggml.tokens", list, n, &e) == 0)
        for (size_t i = 0; i < n; i++)
            total += list[i].n ? (size_t)list[i].s[list[i].n - 1] : 0;
    free(list);
    gguf_close(g);
    return total == (size_t)-1 ? 1 : 0; /* keeps the reads */
}

/* Opens, reads every weight, looks; fingerprints some, as that costs the most. */
static int try_model(const char *path, const char *names, bool fingerprint)
{
    struct err e = {0};
    struct model *m;
    char hex[65];
    int rc = model_open(&m, path, &e);
    fuzz_judge(rc, &e, names);
    if (rc == 0) {
        struct err e2 = {0};
        fuzz_judge(model_check_finite(m, NULL, &e2), &e2, names);
        if (fingerprint)
            model_fingerprint(m, hex, &e2);
    }
    model_free(m);
    struct err e3 = {0};
    fuzz_judge(model_look(&m, path, &e3), &e3, names);
    model_free(m);
    return rc;
}

int fuzz_gguf_model(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file(data, size);
    return try_model(path, path, size % 8 == 0);
}

int fuzz_safetensors(const uint8_t *data, size_t size)
{
    struct err e = {0};
    struct safetensors *s;
    const char *path = fuzz_file(data, size);
    int rc = safetensors_open(&s, path, &e);
    fuzz_judge(rc, &e, path);
    for (size_t i = 0; rc == 0 && i < safetensors_count(s); i++) {
        struct tensor t;
        if (safetensors_get(s, safetensors_name(s, i), &t, &e) == 0)
            read_tensor(&t);
    }
    safetensors_close(s);
    return rc;
}

struct fuzzed_folder {
    const char *dir;
    char path[600]; /* of what is fuzzed in it */
    int fd;         /* open on it */
};

/* A folder with a good model, as small as can be: a mutant that opens is read whole. */
static void folder(struct fuzzed_folder *f, const char *name, const char *file)
{
    static char dir[2][300];
    static int used;
    char *d = dir[used++ % 2];
    struct test_model_spec spec = {1, 32, 2, 1, 16, 32, 320, DTYPE_BF16, 3, false, 0, false, 0};
    snprintf(d, 300, "%s/%s", test_tmpdir(), name);
    if (test_model_write_hf(d, &spec))
        abort();
    snprintf(f->path, sizeof f->path, "%s/%s", d, file);
    f->fd = open(f->path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (f->fd < 0)
        abort();
    f->dir = d;
}

int fuzz_config(const uint8_t *data, size_t size)
{
    static struct fuzzed_folder f;
    if (!f.dir)
        folder(&f, "config", "config.json");
    fuzz_put(f.fd, f.path, data, size);
    return try_model(f.dir, f.dir, size % 8 == 0);
}

int fuzz_index(const uint8_t *data, size_t size)
{
    static struct fuzzed_folder f;
    if (!f.dir) {
        char from[600], to[600];
        folder(&f, "index", "model.safetensors.index.json");
        snprintf(from, sizeof from, "%s/model.safetensors", f.dir);
        snprintf(to, sizeof to, "%s/part.safetensors", f.dir);
        if (rename(from, to))
            abort();
    }
    fuzz_put(f.fd, f.path, data, size);
    return try_model(f.dir, f.dir, size % 8 == 0);
}

/* A conversion of the small model, made once: its description is what is fuzzed. */
static void conversion_folder(struct fuzzed_folder *f, struct model **base, struct plan_model *pm)
{
    static char dir[300];
    struct test_model_spec spec = test_model_small();
    struct workspace_options wo = {.device = "cpu", .threads = 1};
    struct calib_options co = {.tokens = 512, .seed = 1};
    struct conversion_report report = {0};
    struct model_info info;
    struct rankplan plan;
    struct workspace *w;
    struct err e = {0};
    char model[300];
    snprintf(model, sizeof model, "%s/base.gguf", test_tmpdir());
    snprintf(dir, sizeof dir, "%s/converted", test_tmpdir());
    snprintf(f->path, sizeof f->path, "%s/mlathe.json", dir);
    if (test_model_write_gguf(model, &spec) || workspace_new(&w, &wo, &e) ||
        workspace_open(w, model, NULL, &e) || workspace_calibrate(w, &co, NULL, NULL, NULL, &e))
        abort();
    workspace_info(w, &info);
    *pm = info.plan_model;
    if (rankplan_init(&plan, pm, &e) || rankplan_uniform(&plan, 24, 8, &e) ||
        workspace_convert(w, &plan, NULL, NULL, &report, &e) || workspace_save(w, dir, &e) ||
        model_open(base, model, &e))
        abort();
    conversion_report_done(&report);
    rankplan_done(&plan);
    workspace_free(w);
    f->fd = open(f->path, O_RDWR | O_CLOEXEC);
    if (f->fd < 0)
        abort();
    f->dir = dir;
}

int fuzz_conversion(const uint8_t *data, size_t size)
{
    static struct plan_model pm;
    static struct model *base;
    static struct fuzzed_folder f;
    struct conversion *c;
    struct err e = {0};
    if (!f.dir)
        conversion_folder(&f, &base, &pm);
    fuzz_put(f.fd, f.path, data, size);
    int rc = conversion_open(&c, f.dir, base, &pm, &e);
    fuzz_judge(rc, &e, f.dir);
    if (rc == OK) {
        char *path, print[65];
        if (conversion_base(f.dir, &path, print, &e) == OK)
            free(path);
        conversion_free(c);
    }
    return rc;
}

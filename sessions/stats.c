/* Statistics as safetensors. Refuses sets whose shapes do not fit the model. */
#include "sessions/stats.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "sessions/conversion.h"

#define STATS_KEEP 4 /* sets in the cache folder */
#define STATS_PARTS 9

/* One array of a layer's moments as a tensor of doubles or floats. */
struct part {
    const char *name;
    int rank;
    size_t dim[3];
    double *d;
    float *f;
};

static void layer_parts(struct moments *m, struct part part[STATS_PARTS])
{
    size_t n = (size_t)moments_n(&m->shape), H = (size_t)m->shape.H, d = (size_t)m->shape.d;
    size_t tri = n * (n + 1) / 2, f = (size_t)moments_features(&m->shape);
    struct part all[STATS_PARTS] = {
        {"c", 2, {n, n}, m->c, NULL},
        {"m", 3, {H, d, d}, m->m, NULL},
        {"cko", 2, {H, tri}, NULL, m->cko},
        {"cv", 2, {H, tri}, NULL, m->cv},
        {"cvi", 1, {H}, m->cvi, NULL},
        {"phase", 2, {H, f * (f + 1) / 2}, NULL, m->phase},
        {"sample", 2, {(size_t)m->sample_rows, (size_t)m->shape.D}, NULL, m->sample},
        {"tokens", 1, {1}, &m->tokens, NULL},
        {"residual", 1, {1}, &m->residual, NULL},
    };
    memcpy(part, all, sizeof all);
}

static size_t part_count(const struct part *p)
{
    size_t n = 1;
    for (int i = 0; i < p->rank; i++)
        n *= p->dim[i];
    return n;
}

char *stats_path(const char *dir, const char *fingerprint, const char *sha256)
{
    return mem_printf("%s/stats-%.12s-%.12s", dir, fingerprint, sha256);
}

static int write_part(struct safetensors_writer *w, const struct part *p, struct err *e)
{
    size_t n = part_count(p);
    if (p->f)
        return safetensors_writer_f32(w, p->f, n, e);
    float *f = mem_calloc(n, sizeof *f);
    if (!f)
        return err_nomem(e, n * sizeof *f, "statistics");
    for (size_t i = 0; i < n; i++)
        f[i] = (float)p->d[i];
    int rc = safetensors_writer_f32(w, f, n, e);
    free(f);
    return rc;
}

static int write_all(struct safetensors_writer *w, const struct moments *layer, int n_layer,
                     struct err *e)
{
    struct part part[STATS_PARTS];
    char name[64];
    int rc = OK;
    for (int l = 0; l < n_layer; l++) {
        struct moments m = layer[l];
        layer_parts(&m, part);
        for (int i = 0; i < STATS_PARTS && !rc; i++) {
            snprintf(name, sizeof name, "layer.%d.%s", l, part[i].name);
            rc = safetensors_writer_declare(w, name, DTYPE_F32, part[i].rank, part[i].dim, e);
        }
    }
    for (int l = 0; l < n_layer && !rc; l++) {
        struct moments m = layer[l];
        layer_parts(&m, part);
        for (int i = 0; i < STATS_PARTS && !rc; i++)
            rc = write_part(w, &part[i], e);
    }
    return rc;
}

struct stats_file {
    char name[256];
    time_t when;
};

static int newest_first(const void *x, const void *y)
{
    const struct stats_file *a = x, *b = y;
    return (a->when < b->when) - (a->when > b->when);
}

static void remove_pair(const char *dir, const char *json_name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, json_name);
    unlink(path);
    snprintf(path, sizeof path, "%s/%.*s.safetensors", dir, (int)strlen(json_name) - 5, json_name);
    unlink(path);
}

/* Best effort: a cache that cannot be pruned is no error. */
static void prune(const char *prefix)
{
    struct stats_file found[64];
    size_t n = 0;
    char *dir = mem_strdup(prefix), path[4096];
    char *slash = dir ? strrchr(dir, '/') : NULL;
    if (slash)
        *slash = 0;
    DIR *d = slash ? opendir(dir) : NULL;
    for (struct dirent *entry; d && n < 64 && (entry = readdir(d));) {
        size_t len = strlen(entry->d_name);
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (len < 12 || strncmp(entry->d_name, "stats-", 6) ||
            strcmp(entry->d_name + len - 5, ".json") || stat(path, &st))
            continue;
        snprintf(found[n].name, sizeof found[n].name, "%s", entry->d_name);
        found[n++].when = st.st_mtime;
    }
    if (d)
        closedir(d);
    qsort(found, n, sizeof *found, newest_first);
    for (size_t i = STATS_KEEP; i < n; i++)
        remove_pair(dir, found[i].name);
    free(dir);
}

int stats_save(const char *prefix, const struct moments *layer, int n_layer, struct err *e)
{
    struct safetensors_writer *w = NULL;
    char *data = mem_printf("%s.safetensors", prefix), *note = mem_printf("%s.json", prefix);
    int rc = data && note ? safetensors_writer_new(&w, data, e) : err_nomem(e, 4096, "a path");
    if (!rc) {
        rc = write_all(w, layer, n_layer, e);
        if (rc)
            safetensors_writer_abort(w);
        else
            rc = safetensors_writer_commit(w, e);
    }
    if (!rc) {
        char text[128];
        int n =
            snprintf(text, sizeof text, "{\"mlathe_stats\": 3, \"layers\": %d, \"window\": %d}\n",
                     n_layer, layer[0].sample_window);
        rc = file_save(note, text, (size_t)n, e);
    }
    if (!rc)
        prune(prefix);
    free(data);
    free(note);
    return rc;
}

static int read_part(const struct safetensors *st, int l, const struct part *p, struct err *e)
{
    struct tensor t;
    char name[64];
    snprintf(name, sizeof name, "layer.%d.%s", l, p->name);
    int rc = safetensors_get(st, name, &t, e);
    if (rc)
        return rc;
    size_t n = part_count(p);
    if (t.dtype != DTYPE_F32 || tensor_elements(&t) != n)
        return err_set(e, ERR_MISMATCH, "statistics: %s has another shape than the model", name);
    const float *from = t.data;
    for (size_t i = 0; i < n; i++) {
        if (p->f)
            p->f[i] = from[i];
        else
            p->d[i] = from[i];
    }
    return OK;
}

static int read_layer(const struct safetensors *st, const struct model *model, int l, int window,
                      struct moments *m, struct err *e)
{
    struct moments_shape shape = conversion_shape(model, l);
    struct part part[STATS_PARTS];
    int rc = moments_init(m, &shape, true, e);
    if (rc)
        return rc;
    m->sample_rows = 2 * window;
    m->sample_window = window;
    m->sample = mem_calloc((size_t)m->sample_rows * (size_t)shape.D, sizeof *m->sample);
    if (!m->sample)
        return err_nomem(e, (size_t)m->sample_rows * (size_t)shape.D * sizeof *m->sample,
                         "a sample");
    layer_parts(m, part);
    for (int i = 0; i < STATS_PARTS && !rc; i++)
        rc = read_part(st, l, &part[i], e);
    return rc;
}

int stats_load(const char *prefix, const struct model *m, struct moments *layer, struct err *e)
{
    struct safetensors *st = NULL;
    cJSON *note = NULL;
    long long version = 0, layers = 0, window = 0;
    int L = m->hp.n_layer;
    char *data = mem_printf("%s.safetensors", prefix), *path = mem_printf("%s.json", prefix);
    memset(layer, 0, (size_t)L * sizeof *layer);
    int rc = data && path ? json_read_file(&note, path, 4096, e) : err_nomem(e, 4096, "a path");
    if (!rc)
        rc = json_int(note, "mlathe_stats", 3, 3, &version, path, e);
    if (!rc)
        rc = json_int(note, "layers", L, L, &layers, path, e);
    if (!rc)
        rc = json_int(note, "window", 1, 1 << 20, &window, path, e);
    if (!rc)
        rc = safetensors_open(&st, data, e);
    for (int l = 0; l < L && !rc; l++)
        rc = read_layer(st, m, l, (int)window, &layer[l], e);
    for (int l = 0; rc && l < L; l++)
        moments_done(&layer[l]);
    safetensors_close(st);
    cJSON_Delete(note);
    free(data);
    free(path);
    return rc;
}

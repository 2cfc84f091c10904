/* Statistics in memory and as safetensors. Refuses sets whose shapes do not fit the model. */
#include "sessions/stats.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "sessions/conversion.h"

#define STATS_VERSION 6
#define STATS_KEEP 4         /* sets in the cache folder */
#define STATS_KEEP_BYTES 8e9 /* that they may take together, the newest apart */
#define STATS_PARTS 17

struct stats {
    const struct model *model;
    struct stats_form form;
    int window; /* of the samples */
    bool resident;
    char *prefix;
    struct moments *layer;            /* [L] resident */
    struct safetensors_writer *write; /* while layers come in */
    struct safetensors *file;         /* streamed, once finished or opened */
};

struct moments_shape stats_shape(const struct model *m, int layer, const struct stats_form *form)
{
    struct moments_shape s = conversion_shape(m, layer);
    int all = s.G * (s.rope_dim / 2);
    s.groups = form->groups;
    s.candidates = form->candidates < all ? form->candidates : all;
    return s;
}

/* One array of a layer's moments as a tensor of doubles, floats or ints. */
struct part {
    const char *name;
    int rank;
    size_t dim[3];
    double *d;
    float **f; /* where the moments keep it: a mapped set points it into the file */
    int *i;
};

/* All parts, absent ones with a dimension of zero. */
static void layer_parts(struct moments *m, struct part part[STATS_PARTS])
{
    const struct moments_shape *s = &m->shape;
    size_t w = (size_t)moments_width(s), H = (size_t)s->H, d = (size_t)s->d, G = (size_t)s->G;
    size_t groups = (size_t)moments_groups(s), tri = w * (w + 1) / 2, nk = G * d;
    size_t f = (size_t)moments_features(s), C = (size_t)s->candidates;
    struct part all[STATS_PARTS] = {
        {"c", 2, {w, w}, m->c, NULL, NULL},
        {"m", 3, {H, d, d}, m->m, NULL, NULL},
        {"cko", 2, {groups, tri}, NULL, &m->cko, NULL},
        {"cv", 2, {groups, tri}, NULL, &m->cv, NULL},
        {"cvi", 1, {H}, m->cvi, NULL, NULL},
        {"phase", 2, {H, f * (f + 1) / 2}, NULL, &m->phase, NULL},
        {"sample", 2, {(size_t)m->sample_rows, (size_t)s->D}, NULL, &m->sample, NULL},
        {"tokens", 1, {1}, &m->tokens, NULL, NULL},
        {"residual", 1, {1}, &m->residual, NULL, NULL},
        {"sink", 1, {1}, &m->sink, NULL, NULL},
        {"change", 1, {1}, &m->change, NULL, NULL},
        {"moved", 1, {1}, &m->moved, NULL, NULL},
        {"turn", 3, {H, (size_t)(s->rope_dim / 2), 2}, m->turn, NULL, NULL},
        {"key", 1, {s->affine ? nk * (nk + 1) / 2 : 0}, NULL, &m->key, NULL},
        {"six", 3, {C ? H : 0, (size_t)(s->rope_dim / 2), 6}, m->six, NULL, NULL},
        {"index", 1, {C}, NULL, NULL, m->index},
        {"basis", 3, {C, G, 4}, NULL, &m->basis, NULL},
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

/* Those that a streamed set leaves in the file. */
static bool part_maps(const struct part *p)
{
    return p->f && strcmp(p->name, "basis") != 0;
}

double stats_bytes(const struct model *m, const struct stats_form *form, int window)
{
    double sum = 0;
    for (int l = 0; l < m->hp.n_layer; l++) {
        struct moments one = {.shape = stats_shape(m, l, form), .sample_rows = 2 * window};
        struct part part[STATS_PARTS];
        layer_parts(&one, part);
        for (int i = 0; i < STATS_PARTS; i++)
            sum += (double)part_count(&part[i]) * sizeof(float);
    }
    return sum;
}

int stats_check_groups(const struct model *m, int groups, struct err *e)
{
    if (groups < 0 || groups > m->hp.n_head || (groups && m->hp.n_head % groups))
        return err_set(e, ERR_ARG, "statistics in %d groups: %s has %d query heads to divide",
                       groups, m->hp.name, m->hp.n_head);
    return OK;
}

struct stats_form stats_choose(const struct model *m, int groups, double bytes, int window)
{
    struct stats_form f = {0}, few = {.groups = groups, .candidates = m->layer[0].rope_dim};
    if (groups)
        return few;
    if (stats_bytes(m, &f, window) <= bytes)
        return f;
    for (few.groups = m->hp.n_head; few.groups > 1; few.groups--)
        if (m->hp.n_head % few.groups == 0 && stats_bytes(m, &few, window) <= bytes)
            break;
    return few;
}

char *stats_path(const char *dir, const char *fingerprint, const char *sha256,
                 const struct stats_form *form)
{
    char until[32] = "";
    if (form->until > 0)
        snprintf(until, sizeof until, "-until%g", form->until);
    if (!form->groups)
        return mem_printf("%s/stats-%.12s-%.12s%s", dir, fingerprint, sha256, until);
    return mem_printf("%s/stats-%.12s-%.12s-%d%s", dir, fingerprint, sha256, form->groups, until);
}

static int part_name(char name[64], int l, const struct part *p)
{
    return snprintf(name, 64, "layer.%d.%s", l, p->name);
}

static int write_part(struct safetensors_writer *w, const struct part *p, struct err *e)
{
    size_t n = part_count(p);
    if (!n)
        return OK;
    if (p->f)
        return safetensors_writer_f32(w, *p->f, n, e);
    float *f = mem_calloc(n, sizeof *f);
    if (!f)
        return err_nomem(e, n * sizeof *f, "statistics");
    for (size_t i = 0; i < n; i++)
        f[i] = p->i ? (float)p->i[i] : (float)p->d[i];
    int rc = safetensors_writer_f32(w, f, n, e);
    free(f);
    return rc;
}

static int declare_all(struct stats *s, struct err *e)
{
    struct part part[STATS_PARTS];
    char name[64];
    int rc = OK;
    for (int l = 0; l < s->model->hp.n_layer; l++) {
        struct moments m = {.shape = stats_shape(s->model, l, &s->form)};
        m.sample_rows = 2 * s->window;
        layer_parts(&m, part);
        for (int i = 0; i < STATS_PARTS && !rc; i++) {
            part_name(name, l, &part[i]);
            if (part_count(&part[i]))
                rc = safetensors_writer_declare(s->write, name, DTYPE_F32, part[i].rank,
                                                part[i].dim, e);
        }
    }
    return rc;
}

struct stats_file {
    char name[256];
    time_t when;
    double bytes;
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
        found[n].when = st.st_mtime;
        snprintf(path, sizeof path, "%s/%.*s.safetensors", dir, (int)len - 5, entry->d_name);
        found[n++].bytes = stat(path, &st) ? 0 : (double)st.st_size;
    }
    if (d)
        closedir(d);
    qsort(found, n, sizeof *found, newest_first);
    double bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += found[i].bytes;
        if (i >= STATS_KEEP || (i > 0 && bytes > STATS_KEEP_BYTES))
            remove_pair(dir, found[i].name);
    }
    free(dir);
}

/* Without a file: an error for a streamed set, nothing at all for one in memory. */
static int give_up_file(struct stats *s, int rc, struct err *e)
{
    safetensors_writer_abort(s->write);
    s->write = NULL;
    if (!rc || !s->resident)
        return rc;
    if (e)
        *e = (struct err){0};
    return OK;
}

int stats_new(struct stats **out, const struct model *m, const struct stats_form *form,
              bool resident, const char *prefix, int window, struct err *e)
{
    struct stats *s = mem_calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_nomem(e, sizeof *s, "statistics");
    *s = (struct stats){.model = m, .form = *form, .window = window, .resident = resident};
    s->layer = mem_calloc((size_t)m->hp.n_layer, sizeof *s->layer);
    s->prefix = prefix ? mem_strdup(prefix) : NULL;
    char *data = prefix ? mem_printf("%s.safetensors", prefix) : NULL;
    int rc = s->layer && (!prefix || (data && s->prefix)) ? OK : err_nomem(e, 4096, "statistics");
    if (!rc && prefix) {
        rc = safetensors_writer_new(&s->write, data, e);
        if (!rc)
            rc = declare_all(s, e);
        if (rc)
            rc = give_up_file(s, rc, e);
    }
    free(data);
    if (rc) {
        stats_free(s);
        return rc;
    }
    *out = s;
    return OK;
}

int stats_put(struct stats *s, int layer, struct moments *m, struct err *e)
{
    struct part part[STATS_PARTS];
    int rc = OK;
    layer_parts(m, part);
    for (int i = 0; i < STATS_PARTS && !rc && s->write; i++)
        rc = write_part(s->write, &part[i], e);
    if (rc)
        rc = give_up_file(s, rc, e);
    if (!rc && s->resident)
        s->layer[layer] = *m;
    else
        moments_done(m);
    *m = (struct moments){0};
    return rc;
}

static int open_file(struct stats *s, struct err *e)
{
    char *data = mem_printf("%s.safetensors", s->prefix);
    int rc = data ? safetensors_open(&s->file, data, e) : err_nomem(e, 4096, "a path");
    free(data);
    return rc;
}

int stats_finish(struct stats *s, struct err *e)
{
    char text[160], *note;
    if (!s->write)
        return OK;
    int rc = safetensors_writer_commit(s->write, e);
    s->write = NULL;
    note = mem_printf("%s.json", s->prefix);
    if (!rc && !note)
        rc = err_nomem(e, 4096, "a path");
    if (!rc) {
        int n = snprintf(text, sizeof text,
                         "{\"mlathe_stats\": %d, \"layers\": %d, \"window\": %d, "
                         "\"groups\": %d, \"candidates\": %d}\n",
                         STATS_VERSION, s->model->hp.n_layer, s->window, s->form.groups,
                         s->form.candidates);
        rc = file_save(note, text, (size_t)n, e);
    }
    free(note);
    if (!rc)
        prune(s->prefix);
    if (!rc && !s->resident)
        rc = open_file(s, e);
    return rc ? give_up_file(s, rc, e) : OK;
}

/* The part's numbers in the file; NULL where there are none. */
static int find_part(const struct safetensors *st, int l, const struct part *p, const float **out,
                     struct err *e)
{
    struct tensor t;
    char name[64];
    size_t n = part_count(p);
    *out = NULL;
    if (!n)
        return OK;
    part_name(name, l, p);
    int rc = safetensors_get(st, name, &t, e);
    if (!rc && (t.dtype != DTYPE_F32 || tensor_elements(&t) != n))
        rc = err_set(e, ERR_MISMATCH, "statistics: %s has another shape than the model", name);
    if (!rc)
        *out = t.data;
    return rc;
}

static int read_part(const struct safetensors *st, int l, const struct part *p, bool map,
                     struct err *e)
{
    const float *from;
    size_t n = part_count(p);
    int rc = find_part(st, l, p, &from, e);
    if (rc || !from)
        return rc;
    if (map) {
        *p->f = (float *)(uintptr_t)from; /* read only: moments are const to all who get them */
        return OK;
    }
    for (size_t i = 0; i < n; i++) {
        if (p->f)
            (*p->f)[i] = from[i];
        else if (p->d)
            p->d[i] = from[i];
        else
            p->i[i] = (int)from[i];
    }
    return OK;
}

/* Rows of frequencies, so that nobody is led out of a table. */
static int check_index(const struct moments *m, int l, struct err *e)
{
    for (int i = 0; i < m->shape.candidates; i++)
        if (m->index[i] < 0 || m->index[i] >= m->shape.rope_dim / 2)
            return err_set(e, ERR_FORMAT, "statistics: layer %d has no frequency %d", l,
                           m->index[i]);
    return OK;
}

static int read_layer(const struct stats *s, int l, bool map, struct moments *m, struct err *e)
{
    struct moments_shape shape = stats_shape(s->model, l, &s->form);
    struct part part[STATS_PARTS];
    int rc = map ? moments_init_mapped(m, &shape, e) : moments_init(m, &shape, true, e);
    if (rc)
        return rc;
    m->sample_rows = 2 * s->window;
    m->sample_window = s->window;
    if (!map)
        m->sample = mem_calloc((size_t)m->sample_rows * (size_t)shape.D, sizeof *m->sample);
    if (!map && !m->sample)
        rc = err_nomem(e, (size_t)m->sample_rows * (size_t)shape.D * sizeof *m->sample, "a sample");
    layer_parts(m, part);
    for (int i = 0; i < STATS_PARTS && !rc; i++)
        rc = read_part(s->file, l, &part[i], map && part_maps(&part[i]), e);
    if (!rc)
        rc = check_index(m, l, e);
    if (rc)
        moments_done(m);
    return rc;
}

/* Whether a layer is there and fits the model, without reading it. */
static int check_layer(const struct stats *s, int l, struct err *e)
{
    struct moments m = {.shape = stats_shape(s->model, l, &s->form), .sample_rows = 2 * s->window};
    struct part part[STATS_PARTS];
    const float *at;
    int rc = OK;
    layer_parts(&m, part);
    for (int i = 0; i < STATS_PARTS && !rc; i++)
        rc = find_part(s->file, l, &part[i], &at, e);
    return rc;
}

static int read_note(struct stats *s, struct err *e)
{
    cJSON *note = NULL;
    long long version = 0, layers = 0, window = 0, groups = 0, candidates = 0;
    int L = s->model->hp.n_layer;
    char *path = mem_printf("%s.json", s->prefix);
    int rc = path ? json_read_file(&note, path, 4096, e) : err_nomem(e, 4096, "a path");
    if (!rc)
        rc = json_int(note, "mlathe_stats", STATS_VERSION, STATS_VERSION, &version, path, e);
    if (!rc)
        rc = json_int(note, "layers", L, L, &layers, path, e);
    if (!rc)
        rc = json_int(note, "window", 1, 1 << 20, &window, path, e);
    if (!rc)
        rc = json_int(note, "groups", s->form.groups, s->form.groups, &groups, path, e);
    if (!rc)
        rc = json_int(note, "candidates", s->form.candidates, s->form.candidates, &candidates, path,
                      e);
    s->window = (int)window;
    cJSON_Delete(note);
    free(path);
    return rc;
}

int stats_open(struct stats **out, const char *prefix, const struct model *m,
               const struct stats_form *form, bool resident, struct err *e)
{
    int L = m->hp.n_layer;
    struct stats *s = mem_calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_nomem(e, sizeof *s, "statistics");
    *s = (struct stats){.model = m, .form = *form, .resident = resident};
    s->layer = mem_calloc((size_t)L, sizeof *s->layer);
    s->prefix = mem_strdup(prefix);
    int rc = s->layer && s->prefix ? read_note(s, e) : err_nomem(e, 4096, "statistics");
    if (!rc)
        rc = open_file(s, e);
    for (int l = 0; l < L && !rc; l++)
        rc = resident ? read_layer(s, l, false, &s->layer[l], e) : check_layer(s, l, e);
    if (rc) {
        stats_free(s);
        return rc;
    }
    if (resident) {
        safetensors_close(s->file);
        s->file = NULL;
    }
    *out = s;
    return OK;
}

void stats_free(struct stats *s)
{
    if (!s)
        return;
    for (int l = 0; s->layer && l < s->model->hp.n_layer; l++)
        moments_done(&s->layer[l]);
    free(s->layer);
    safetensors_writer_abort(s->write);
    safetensors_close(s->file);
    free(s->prefix);
    free(s);
}

struct moments_shape stats_layer_shape(const struct stats *s, int layer)
{
    return stats_shape(s->model, layer, &s->form);
}

int stats_layer(const struct stats *s, int layer, const struct moments **out, struct err *e)
{
    if (!s->file) {
        *out = &s->layer[layer];
        return OK;
    }
    struct moments *m = mem_calloc(1, sizeof *m);
    *out = m;
    if (!m)
        return err_nomem(e, sizeof *m, "statistics");
    int rc = read_layer(s, layer, true, m, e);
    if (rc) {
        free(m);
        *out = NULL;
    }
    return rc;
}

/* The pages may go: they come back from the file. */
static void let_go(const float *p, size_t n)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)p, to;
    to = (from + n * sizeof *p) & ~(page - 1);
    from = (from + page - 1) & ~(page - 1);
    if (to > from)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

void stats_release(const struct stats *s, const struct moments *m)
{
    struct part part[STATS_PARTS];
    if (!m || !s->file)
        return;
    struct moments copy = *m;
    layer_parts(&copy, part);
    for (int i = 0; i < STATS_PARTS; i++)
        if (part_maps(&part[i]) && *part[i].f)
            let_go(*part[i].f, part_count(&part[i]));
    moments_done(&copy);
    free((void *)(uintptr_t)m);
}

double stats_until(const struct stats *s)
{
    return s->form.until;
}

int stats_settled(const struct stats *s, struct stats_settled *out, struct err *e)
{
    int L = s->model->hp.n_layer;
    *out = (struct stats_settled){0};
    for (int l = 0; l < L; l++) {
        const struct moments *m;
        int rc = stats_layer(s, l, &m, e);
        if (rc)
            return rc;
        out->tokens += m->tokens / L;
        out->moved += m->moved / L;
        out->change = m->change < 0 || out->change < 0 ? -1 : out->change + m->change / L;
        if (m->change > out->worst) {
            out->worst = m->change;
            out->layer = l;
        }
        stats_release(s, m);
    }
    return OK;
}

bool stats_streamed(const struct stats *s)
{
    return s->file != NULL;
}

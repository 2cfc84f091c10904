/* Exporting: checks first, then everything under a temporary name, then reading back, then the
 * rename. Refuses targets that exist (unless they are ours and it is told to replace them), folders
 * that cannot be written, and disks that are too full. */
#include "sessions/export.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "core/file.h"
#include "core/fp8.h"
#include "core/gguf.h"
#include "core/kvmem.h"
#include "core/safetensors.h"
#include "sessions/conversion.h"

#define SHARD_BYTES ((size_t)5000000000)
#define TEXT_BYTES ((size_t)32 << 20) /* room for tokenizer, index and headers */

void export_report_done(struct export_report *r)
{
    free(r->file);
    *r = (struct export_report){0};
}

bool export_dtype(const char *name, enum dtype *out, bool *fp8)
{
    char upper[16];
    size_t n = 0;
    for (; name[n] && n < sizeof upper - 1; n++)
        upper[n] = (char)(name[n] >= 'a' && name[n] <= 'z' ? name[n] - 32 : name[n]);
    upper[n] = 0;
    *fp8 = !strcmp(upper, "FP8");
    *out = *fp8 ? DTYPE_BF16 : dtype_from_name(upper);
    return *out != DTYPE_COUNT;
}

/* --- folders ------------------------------------------------------------------------------ */

/* An earlier export says so in its config.json; a GGUF of ours is of the architecture that an
 * export always has, and a model to convert never. */
static bool is_our_gguf(const char *path)
{
    struct gguf *g = NULL;
    struct gguf_str arch;
    bool ours = gguf_open(&g, path, NULL) == OK &&
                gguf_string(g, "general.architecture", &arch, NULL) == OK &&
                arch.n == strlen("deepseek2") && !memcmp(arch.s, "deepseek2", arch.n);
    gguf_close(g);
    return ours;
}

static bool is_ours(const char *path)
{
    char *config = path_join(path, "config.json");
    cJSON *json = NULL;
    bool ours = config && file_exists(config) &&
                json_read_file(&json, config, (size_t)4 << 20, NULL) == OK &&
                json_get(json, "mlathe");
    cJSON_Delete(json);
    free(config);
    return ours;
}

static int check_target(const struct export_options *o, struct err *e)
{
    bool folder = o->to != STOCK_GGUF;
    if (!o->path || !o->path[0])
        return err_set(e, ERR_ARG, "an export needs a name to be written under");
    if (!file_exists(o->path))
        return OK;
    if (!o->force)
        return err_set(e, ERR_IO,
                       "%s is there already: give another name, or --force to replace it", o->path);
    if (file_is_dir(o->path) != folder || !(folder ? is_ours(o->path) : is_our_gguf(o->path)))
        return err_set(e, ERR_IO, "%s is not an export of mlathe, so it will not be replaced",
                       o->path);
    return OK;
}

static int check_space(struct export_job *j, struct err *e)
{
    char *dir = path_parent(j->o->path), needs[32], has[32];
    struct statvfs fs;
    int rc = OK;
    if (!dir)
        return err_nomem(e, strlen(j->o->path), "a path");
    if (!file_is_dir(dir))
        rc = err_set(e, ERR_IO, "%s: the folder %s is not there", j->o->path, dir);
    if (!rc && access(dir, W_OK | X_OK))
        rc = err_errno(e, "%s: cannot write into %s", j->o->path, dir);
    if (!rc && statvfs(dir, &fs))
        rc = err_errno(e, "%s: cannot ask for free space", dir);
    if (!rc) {
        size_t need = j->x.bytes + TEXT_BYTES;
        if (!size_mul((size_t)fs.f_bavail, (size_t)fs.f_frsize, &j->report->free_bytes))
            j->report->free_bytes = SIZE_MAX;
        kvmem_text((double)need, needs, sizeof needs);
        kvmem_text((double)j->report->free_bytes, has, sizeof has);
        if (need > j->report->free_bytes)
            rc = err_set(e, ERR_NOSPACE, "%s: the export takes %s, %s are free", j->o->path, needs,
                         has);
    }
    free(dir);
    return rc;
}

int export_step(struct export_meter *m, double n, struct err *e)
{
    if (!progress_report(m->j->p, "writing tensors", m->done, m->total))
        return err_set(e, ERR_CANCELLED, "export stopped");
    m->done += n;
    return OK;
}

int export_add_file(struct export_job *j, const char *name, struct err *e)
{
    struct export_report *r = j->report;
    struct stat st;
    char *path = j->o->to == STOCK_GGUF ? mem_strdup(j->dir) : path_join(j->dir, name);
    if (!path || !mem_grow((void **)&r->file, &r->cap_file, r->n_file + 1, sizeof *r->file)) {
        free(path);
        return err_nomem(e, 4096, "the list of files");
    }
    struct export_file *f = &r->file[r->n_file++];
    *f = (struct export_file){0};
    snprintf(f->name, sizeof f->name, "%s", name);
    f->bytes = stat(path, &st) ? 0 : (size_t)st.st_size;
    r->bytes += f->bytes;
    free(path);
    return OK;
}

/* --- safetensors -------------------------------------------------------------------------- */

struct sink {
    struct safetensors_writer *w;
    struct export_meter meter;
};

static int put(void *user, const float *numbers, size_t n, struct err *e)
{
    struct sink *s = user;
    int rc = export_step(&s->meter, (double)n, e);
    return rc ? rc : safetensors_writer_part(s->w, numbers, n, e);
}

static size_t elements(const struct stock_tensor *t)
{
    size_t n = 1;
    for (int i = 0; i < t->rank; i++)
        n *= t->dim[i];
    return n;
}

/* Which file each tensor is in: in order, a new one where the limit would be passed. */
static int share_out(const struct stock_export *x, size_t limit, int *file)
{
    size_t used = 0;
    int at = 0;
    for (size_t i = 0; i < x->n; i++) {
        const struct stock_tensor *t = &x->tensor[i];
        size_t bytes =
            t->fp8 ? elements(t) + 4 * stock_scales(t) : dtype_bytes(t->dtype, elements(t));
        if (used && used + bytes > limit) {
            at++;
            used = 0;
        }
        used += bytes;
        file[i] = at;
    }
    return at + 1;
}

static void shard_name(char name[64], int i, int n)
{
    if (n == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05d-of-%05d.safetensors", i + 1, n);
}

/* --- FP8: scales first, then numbers, as offsets must suit the widest type -------------------- */

struct gather {
    float *x;
    size_t n;
};
static int gather(void *user, const float *numbers, size_t n, struct err *e)
{
    struct gather *g = user;
    (void)e;
    memcpy(g->x + g->n, numbers, n * sizeof *numbers);
    g->n += n;
    return OK;
}

static int write_fp8(struct sink *s, const struct stock_tensor *t, bool scales, struct err *e)
{
    size_t n = elements(t), n_scale = stock_scales(t);
    struct gather g = {mem_calloc(n, sizeof(float)), 0};
    float *scale = mem_calloc(n_scale, sizeof *scale);
    uint8_t *q = scales ? NULL : mem_calloc(n, 1);
    int rc = g.x && scale && (scales || q) ? OK : err_nomem(e, n * sizeof(float), t->name);
    if (!rc)
        rc = export_step(&s->meter, scales ? 0 : (double)n, e);
    if (!rc)
        rc = stock_export_values(&s->meter.j->x, t, gather, &g, e);
    if (!rc) {
        fp8_write(g.x, t->dim[0], t->dim[1], scale, q);
        rc = scales ? safetensors_writer_f32(s->w, scale, n_scale, e)
                    : safetensors_writer_raw(s->w, q, n, e);
    }
    free(g.x);
    free(scale);
    free(q);
    return rc;
}

enum turn { TURN_SCALES, TURN_PLAIN, TURN_FP8, TURNS };

static int declare_turn(struct sink *s, const struct stock_tensor *t, enum turn turn, struct err *e)
{
    char name[128];
    if (turn == TURN_PLAIN)
        return safetensors_writer_declare(s->w, t->name, t->dtype, t->rank, t->dim, e);
    if (turn == TURN_FP8)
        return safetensors_writer_declare_raw(s->w, t->name, "F8_E4M3", t->dim[0], t->dim[1], e);
    const size_t dim[2] = {(t->dim[0] + FP8_BLOCK - 1) / FP8_BLOCK,
                           (t->dim[1] + FP8_BLOCK - 1) / FP8_BLOCK};
    snprintf(name, sizeof name, "%s" FP8_SCALE, t->name);
    return safetensors_writer_declare(s->w, name, DTYPE_F32, 2, dim, e);
}

static int write_shard(struct export_job *j, struct sink *s, const int *file, int at,
                       const char *name, struct err *e)
{
    const struct stock_export *x = &j->x;
    char *path = path_join(j->dir, name);
    int rc = path ? safetensors_writer_new(&s->w, path, e) : err_nomem(e, 4096, "a path");
    free(path);
    if (rc)
        return rc;
    for (int pass = 0; pass < 2 * TURNS && !rc; pass++) {
        enum turn turn = (enum turn)(pass % TURNS);
        for (size_t i = 0; i < x->n && !rc; i++) {
            const struct stock_tensor *t = &x->tensor[i];
            if (file[i] != at || t->fp8 != (turn != TURN_PLAIN))
                continue;
            if (pass < TURNS)
                rc = declare_turn(s, t, turn, e);
            else if (turn == TURN_PLAIN)
                rc = stock_export_values(x, t, put, s, e);
            else
                rc = write_fp8(s, t, turn == TURN_SCALES, e);
        }
    }
    if (rc) {
        safetensors_writer_abort(s->w);
        return rc;
    }
    return safetensors_writer_commit(s->w, e);
}

static int write_index(struct export_job *j, const int *file, int n, struct err *e)
{
    const struct stock_export *x = &j->x;
    char name[64];
    cJSON *root = cJSON_CreateObject(), *meta = cJSON_AddObjectToObject(root, "metadata");
    cJSON *map = cJSON_AddObjectToObject(root, "weight_map");
    cJSON_AddNumberToObject(meta, "total_size", (double)x->bytes);
    for (size_t i = 0; i < x->n && map; i++) {
        shard_name(name, file[i], n);
        cJSON_AddStringToObject(map, x->tensor[i].name, name);
        if (x->tensor[i].fp8) {
            char scale[128];
            snprintf(scale, sizeof scale, "%s" FP8_SCALE, x->tensor[i].name);
            cJSON_AddStringToObject(map, scale, name);
        }
    }
    int rc = export_save_json(j, "model.safetensors.index.json", root, e);
    cJSON_Delete(root);
    return rc;
}

int export_weights_hf(struct export_job *j, struct err *e)
{
    const struct stock_export *x = &j->x;
    struct sink s = {.meter = {.j = j}};
    int *file = mem_calloc(x->n, sizeof *file), rc = OK;
    char name[64];
    if (!file)
        return err_nomem(e, x->n * sizeof *file, "the list of files");
    for (size_t i = 0; i < x->n; i++)
        s.meter.total += (double)elements(&x->tensor[i]);
    int n = share_out(x, j->o->shard_bytes ? j->o->shard_bytes : SHARD_BYTES, file);
    for (int i = 0; i < n && !rc; i++) {
        shard_name(name, i, n);
        if (!j->o->dry_run)
            rc = write_shard(j, &s, file, i, name, e);
        if (!rc)
            rc = export_add_file(j, name, e);
    }
    if (!rc && n > 1 && !j->o->dry_run)
        rc = write_index(j, file, n, e);
    if (!rc && !j->o->dry_run) {
        cJSON *config = NULL, *generation = NULL;
        rc = stock_config_json(x, &config, e);
        if (!rc)
            rc = export_save_json(j, "config.json", config, e);
        if (!rc)
            rc = stock_generation_json(x, &generation, e);
        if (!rc)
            rc = export_save_json(j, "generation_config.json", generation, e);
        cJSON_Delete(config);
        cJSON_Delete(generation);
    }
    free(file);
    return rc;
}

/* --- the whole ---------------------------------------------------------------------------- */

/* The earlier export and the new one change names in one step where the file system can; the
 * earlier one is then what is temporary. */
static int replace(struct export_job *j, struct err *e)
{
    const char *path = j->o->path;
    if (!renameat2(AT_FDCWD, j->dir, AT_FDCWD, path, RENAME_EXCHANGE)) {
        file_remove(j->dir);
        return OK;
    }
    char *old = mem_printf("%s.old-%ld", path, (long)getpid());
    int rc = old ? OK : err_nomem(e, strlen(path), "a path");
    if (!rc && rename(path, old))
        rc = err_errno(e, "%s: cannot move the earlier export aside", path);
    if (!rc && rename(j->dir, path)) {
        rc = err_errno(e, "%s: cannot give the export its name", path);
        rename(old, path);
    }
    if (!rc)
        file_remove(old);
    free(old);
    return rc;
}

static int publish(struct export_job *j, struct err *e)
{
    if (file_exists(j->o->path) && j->o->force)
        return replace(j, e);
    return file_rename(j->dir, j->o->path, e);
}

static int write_all(struct export_job *j, struct err *e)
{
    bool gguf = j->o->to == STOCK_GGUF;
    file_sweep(j->o->path);
    if (!gguf && mkdir(j->dir, 0755))
        return err_errno(e, "%s: cannot create the folder", j->dir);
    int rc = gguf ? export_weights_gguf(j, e) : export_weights_hf(j, e);
    if (!rc && !gguf)
        rc = export_text_files(j, e);
    if (!rc && !j->o->no_check)
        rc = export_compare(j, e);
    if (!rc && !progress_report(j->p, "writing tensors", 1, 1))
        rc = err_set(e, ERR_CANCELLED, "export stopped");
    if (!rc)
        rc = publish(j, e);
    if (rc)
        file_remove(j->dir);
    return rc;
}

static int run(struct export_job *j, const struct stock_facts *facts, bool fold, struct err *e)
{
    struct export_folded folded = {0};
    int rc = stock_export_init(&j->x, j->model, facts, j->plan, j->o->to, j->o->dtype, j->o->fp8,
                               j->o->narrow_rank, j->o->mtp, e);
    if (!rc)
        rc = check_target(j->o, e);
    if (!rc)
        rc = check_space(j, e);
    j->report->latent_eps = j->x.latent_eps;
    j->report->freq_error = j->x.freq_error;
    snprintf(j->report->path, sizeof j->report->path, "%s", j->o->path ? j->o->path : "");
    if (!rc && fold && !j->o->dry_run) {
        rc = export_fold(&folded, j, e);
        j->x.m = &folded.model;
        j->report->bias_left = folded.left;
    }
    if (!rc && j->o->narrow_rank && !j->o->dry_run)
        rc = export_queries(j, e);
    if (!rc && j->o->mtp && j->o->n_files && !j->o->dry_run)
        rc = export_join(j, e);
    if (!rc && !j->o->dry_run)
        rc = write_all(j, e);
    else if (!rc && j->o->to != STOCK_GGUF)
        rc = export_weights_hf(j, e); /* the names alone */
    if (!rc && j->o->dry_run)
        j->report->bytes = j->x.bytes;
    stock_export_done(&j->x);
    export_folded_free(&folded);
    return rc;
}

static char *without_slashes(const char *path)
{
    size_t n = path ? strlen(path) : 0;
    while (n > 1 && path[n - 1] == '/')
        n--;
    return strndup(path ? path : "", n);
}

int workspace_export(struct workspace *w, const struct export_options *options,
                     const struct progress *p, struct export_report *out, struct err *e)
{
    struct rankplan plan;
    struct conversion_report result;
    struct stock_facts facts;
    struct export_options o = *options;
    *out = (struct export_report){0};
    if (!workspace_conversion(w, &plan, &result, e))
        return err_set(e, ERR_ARG,
                       "nothing is converted yet: export takes a folder that convert wrote");
    char *path = without_slashes(o.path);
    o.path = path;
    struct export_job j = {.model = workspace_model(w, SIDE_CONVERTED),
                           .base = workspace_model(w, SIDE_ORIGINAL),
                           .tokenizer = workspace_tokenizer(w, NULL),
                           .plan = &plan,
                           .result = &result,
                           .healing = workspace_held(w)->healing,
                           .o = &o,
                           .p = p,
                           .report = out,
                           .dir = path ? mem_printf("%s.tmp-%ld", path, (long)getpid()) : NULL};
    stock_facts_of(j.base, &facts);
    bool fold = o.fold_biases && facts.biases && o.to != STOCK_HF; /* which has biases */
    facts.biases = facts.biases && !fold;
    stock_check(&facts, &plan, o.to, &out->verdict);
    int rc = j.dir ? run(&j, &facts, fold, e) : err_nomem(e, 4096, "a path");
    if (rc)
        export_report_done(out);
    free(j.dir);
    free(path);
    rankplan_done(&plan);
    conversion_report_done(&result);
    return rc;
}

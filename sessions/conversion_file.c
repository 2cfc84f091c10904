/* A conversion folder: mlathe.json (base, plan, frequencies, report) and attention.safetensors
 * (DeepSeek's tensor names). Refuses a folder whose base, shapes or tensors do not fit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "sessions/conversion.h"

#define FOLDER_JSON "mlathe.json"
#define FOLDER_TENSORS "attention.safetensors"
#define FOLDER_TENSORS_2 "attention-2.safetensors" /* when saving over the first */
#define FOLDER_MAX_JSON ((size_t)64 << 20)
#define FOLDER_MAX_FREQ 1e3 /* rad a position: as core/ropefreq */

/* What a layer may have in the file. */
enum stored { Q_PROJ, KV_A, KV_B, Q_ROPE, Q_BIAS, KV_A_BIAS, O_PROJ, DOWN_PROJ, STORED };
static const char *const tensor_names[STORED] = {
    "self_attn.q_proj.weight",
    "self_attn.kv_a_proj_with_mqa.weight",
    "self_attn.kv_b_proj.weight",
    "self_attn.q_rope.weight", /* normed heads only: not a DeepSeek tensor */
    "self_attn.q_proj.bias",
    "self_attn.kv_a_proj_with_mqa.bias",
    "self_attn.o_proj.weight", /* these two where they were refitted */
    "mlp.down_proj.weight"};

static void tensor_name(char name[96], int layer, int which)
{
    snprintf(name, 96, "model.layers.%d.%s", layer, tensor_names[which]);
}

static struct tensor *layer_tensor(struct model_layer *y, int which)
{
    struct tensor *all[STORED] = {&y->q,      &y->kv_a,      &y->kv_b, &y->q_rope,
                                  &y->q_bias, &y->kv_a_bias, &y->o,    &y->down};
    return all[which];
}

/* Whether layer l owns tensor `which`: over normed heads q stays the base's, and so do o and
 * down where they were not refitted. */
static bool layer_stores(const struct conversion *c, int l, int which)
{
    struct model_layer *y = &c->model.layer[l];
    if (which == O_PROJ)
        return y->o.data != c->base->layer[l].o.data;
    if (which == DOWN_PROJ)
        return y->down.data != c->base->layer[l].down.data;
    return layer_tensor(y, which)->data && !(which == Q_PROJ && y->q_rope.data);
}

bool conversion_is_dir(const char *path)
{
    char *json = path_join(path, FOLDER_JSON);
    bool is = json && file_exists(json);
    free(json);
    return is;
}

static int read_folder(const char *dir, cJSON **out, struct err *e)
{
    char *path = path_join(dir, FOLDER_JSON);
    long long version;
    int rc = path ? json_read_file(out, path, FOLDER_MAX_JSON, e) : err_nomem(e, 4096, "a path");
    if (!rc)
        rc = json_int(*out, "mlathe_conversion", 1, 1, &version, path, e);
    if (rc) {
        cJSON_Delete(*out);
        *out = NULL;
    }
    free(path);
    return rc;
}

int conversion_base(const char *dir, char **path, char fingerprint[65], struct err *e)
{
    cJSON *root;
    const char *base = NULL, *print = NULL;
    int rc = read_folder(dir, &root, e);
    if (rc)
        return rc;
    rc = json_str(json_get(root, "base"), "path", &base, dir, e);
    if (!rc)
        rc = json_str(json_get(root, "base"), "fingerprint", &print, dir, e);
    if (!rc && !(*path = mem_strdup(base)))
        rc = err_nomem(e, strlen(base), "a path");
    if (!rc)
        snprintf(fingerprint, 65, "%s", print);
    cJSON_Delete(root);
    return rc;
}

/* The layer's n numbers under key into fresh memory. */
static int read_frequencies(const cJSON *item, const char *key, size_t n, int l, const char *where,
                            double **out, struct err *e)
{
    const cJSON *list = json_get(item, key), *v = list ? list->child : NULL;
    size_t i = 0;
    *out = mem_calloc(n, sizeof **out);
    if (!*out)
        return err_nomem(e, n * sizeof **out, "rope frequencies");
    for (; v && i < n && cJSON_IsNumber(v) && fabs(v->valuedouble) <= FOLDER_MAX_FREQ; v = v->next)
        (*out)[i++] = v->valuedouble;
    if (v || i != n)
        return err_set(e, ERR_FORMAT, "%s: layer %d needs %zu frequencies in %s", where, l, n, key);
    return OK;
}

/* rows 0: the layer has no such tensor; a list has cols 0; it, o and down may be absent. */
static int read_tensor(struct conversion *c, int l, int which, size_t rows, size_t cols,
                       const char *where, struct err *e)
{
    char name[96], label[512];
    struct tensor *to = layer_tensor(&c->model.layer[l], which);
    tensor_name(name, l, which);
    if (!rows || ((!cols || which >= O_PROJ) && !safetensors_has(c->stored, name)))
        return OK;
    int rc = safetensors_get(c->stored, name, to, e);
    if (rc)
        return rc;
    if (to->dim[0] != rows || to->rank != (cols ? 2 : 1) || (cols && to->dim[1] != cols))
        return err_set(e, ERR_MISMATCH, "%s: %s must be %zu × %zu", where, name, rows, cols);
    snprintf(label, sizeof label, "%s: %s", where, name);
    return tensor_check_finite(to, label, e);
}

static int open_layer(struct conversion *c, const cJSON *item, int l, const char *where,
                      struct err *e)
{
    const struct model_hparams *hp = &c->model.hp;
    const struct plan_layer *want = &c->plan.layer[l];
    size_t r = (size_t)want->kv_lora_rank, R = (size_t)want->qk_rope_head_dim;
    size_t H = (size_t)hp->n_head, d = (size_t)hp->head_dim, D = (size_t)hp->hidden;
    const struct model_layer *base = &c->base->layer[l];
    bool has_long = c->model.layer[l].rope_freq_long != NULL;
    int rc = read_frequencies(item, "rope_freq", R / 2, l, where, &c->freq[l], e);
    if (!rc && has_long)
        rc = read_frequencies(item, "rope_freq_long", R / 2, l, where, &c->freq_long[l], e);
    if (rc)
        return rc;
    conversion_set_layer(c, l, (int)r, (int)R, c->freq[l], c->freq_long[l]);
    bool normed = c->model.layer[l].q_norm.data;
    size_t in = normed ? 2 * (size_t)hp->n_kv_head * d : D;
    size_t rows[STORED] = {
        normed ? 0 : H * (d + R), r + R, H * 2 * d, normed ? H * R : 0, normed ? 0 : H * (d + R),
        normed ? 0 : r + R,       D,     base->down.data && !base->expert ? D : 0};
    size_t cols[STORED] = {D, in, r, d, 0, 0, H * d, (size_t)hp->ffn};
    for (int t = 0; t < STORED && !rc; t++)
        rc = read_tensor(c, l, t, rows[t], cols[t], where, e);
    return rc;
}

static double number_or(const cJSON *o, const char *key, double fallback)
{
    const cJSON *v = json_get(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : fallback;
}

static void read_report(struct conversion *c, const cJSON *report)
{
    const cJSON *list = json_get(report, "layers"), *v = list ? list->child : NULL;
    c->report.seconds_calibrate = number_or(report, "seconds_calibrate", NAN);
    c->report.seconds_solve = number_or(report, "seconds_solve", NAN);
    c->report.seconds_refit = number_or(report, "seconds_refit", NAN);
    c->report.kl_held = number_or(report, "kl_held", NAN);
    for (int l = 0; l < c->report.n_layer; l++, v = v ? v->next : NULL) {
        struct layer_report *r = &c->report.layer[l];
        r->kv_lora_rank = c->plan.layer[l].kv_lora_rank;
        r->qk_rope_head_dim = c->plan.layer[l].qk_rope_head_dim;
        r->error = number_or(v, "error", NAN);
        r->loss_rope = number_or(v, "loss_rope", NAN);
        r->loss_layout = number_or(v, "loss_layout", 0);
        r->loss_rank = number_or(v, "loss_rank", NAN);
        r->energy = number_or(v, "energy", NAN);
    }
}

/* The file that the folder's description names: one of two, never a path. */
static const char *tensors_file(const cJSON *root)
{
    bool second = !strcmp(json_str_or(root, "tensors", FOLDER_TENSORS), FOLDER_TENSORS_2);
    return second ? FOLDER_TENSORS_2 : FOLDER_TENSORS;
}

int conversion_open(struct conversion **out, const char *dir, const struct model *base,
                    const struct plan_model *pm, struct err *e)
{
    cJSON *root = NULL;
    struct conversion *c = NULL;
    char *tensors = NULL;
    *out = NULL;
    int rc = read_folder(dir, &root, e);
    if (!rc && !(tensors = path_join(dir, tensors_file(root))))
        rc = err_nomem(e, 4096, "a path");
    if (!rc)
        rc = conversion_new(&c, base, e);
    if (!rc)
        rc = rankplan_from_json(&c->plan, pm, json_get(root, "plan"), dir, e);
    if (!rc)
        rc = safetensors_open(&c->stored, tensors, e);
    const cJSON *list = json_get(root, "layers"), *item = list ? list->child : NULL;
    for (int l = 0; l < base->hp.n_layer && !rc; l++, item = item ? item->next : NULL)
        rc = open_layer(c, item, l, dir, e);
    if (!rc && !(c->dir = mem_strdup(dir)))
        rc = err_nomem(e, strlen(dir), "a path");
    if (!rc) {
        conversion_fill_report(c);
        read_report(c, json_get(root, "report"));
        if (cJSON_IsArray(json_get(root, "healing")))
            c->healing = cJSON_DetachItemFromObjectCaseSensitive(root, "healing");
        snprintf(c->report.path, sizeof c->report.path, "%s", dir);
        *out = c;
    } else {
        conversion_free(c);
    }
    cJSON_Delete(root);
    free(tensors);
    return rc;
}

/* All digits: cJSON itself is content with fifteen, which are not always the same number again. */
static bool add_number(cJSON *o, const char *key, double v)
{
    char text[40];
    snprintf(text, sizeof text, "%.17g", v);
    return isfinite(v) ? cJSON_AddRawToObject(o, key, text) != NULL
                       : cJSON_AddNullToObject(o, key) != NULL;
}

static cJSON *report_json(const struct conversion_report *r)
{
    cJSON *o = cJSON_CreateObject();
    add_number(o, "kept", r->kept);
    add_number(o, "kv_bytes_per_token_before", (double)r->kv_bytes_before);
    add_number(o, "kv_bytes_per_token_after", (double)r->kv_bytes_after);
    add_number(o, "seconds_calibrate", r->seconds_calibrate);
    add_number(o, "seconds_solve", r->seconds_solve);
    add_number(o, "seconds_refit", r->seconds_refit);
    add_number(o, "kl_held", r->kl_held);
    cJSON *list = cJSON_AddArrayToObject(o, "layers");
    for (int l = 0; l < r->n_layer; l++) {
        cJSON *v = cJSON_CreateObject();
        add_number(v, "error", r->layer[l].error);
        add_number(v, "loss_rope", r->layer[l].loss_rope);
        add_number(v, "loss_layout", r->layer[l].loss_layout);
        add_number(v, "loss_rank", r->layer[l].loss_rank);
        add_number(v, "energy", r->layer[l].energy);
        cJSON_AddItemToArray(list, v);
    }
    return o;
}

static int folder_json(const struct conversion *c, const char *base_path, const char *tensors,
                       cJSON **out, struct err *e)
{
    cJSON *plan, *root = cJSON_CreateObject();
    int rc = rankplan_to_json(&c->plan, &plan, e);
    if (rc) {
        cJSON_Delete(root);
        return rc;
    }
    cJSON_AddNumberToObject(root, "mlathe_conversion", 1);
    cJSON *base = cJSON_AddObjectToObject(root, "base");
    cJSON_AddStringToObject(base, "path", base_path);
    cJSON_AddStringToObject(base, "name", c->plan.model.name);
    cJSON_AddStringToObject(base, "fingerprint", c->plan.model.fingerprint);
    cJSON_AddStringToObject(root, "tensors", tensors);
    cJSON_AddItemToObject(root, "plan", plan);
    cJSON *list = cJSON_AddArrayToObject(root, "layers");
    for (int l = 0; l < c->model.hp.n_layer; l++) {
        const struct model_layer *y = &c->model.layer[l];
        cJSON *item = cJSON_CreateObject();
        cJSON_AddNumberToObject(item, "kv_lora_rank", y->kv_lora_rank);
        cJSON_AddNumberToObject(item, "qk_rope_head_dim", y->qk_rope_head_dim);
        cJSON_AddItemToObject(item, "rope_freq",
                              cJSON_CreateDoubleArray(y->rope_freq, y->rope_dim / 2));
        if (y->rope_freq_long)
            cJSON_AddItemToObject(item, "rope_freq_long",
                                  cJSON_CreateDoubleArray(y->rope_freq_long, y->rope_dim / 2));
        cJSON_AddItemToArray(list, item);
    }
    cJSON_AddItemToObject(root, "report", report_json(&c->report));
    if (c->healing)
        cJSON_AddItemToObject(root, "healing", cJSON_Duplicate(c->healing, true));
    *out = root;
    return OK;
}

static int write_tensors(struct conversion *c, const char *path, struct err *e)
{
    struct safetensors_writer *w;
    char name[96];
    int n = STORED * c->model.hp.n_layer, rc = safetensors_writer_new(&w, path, e);
    if (rc)
        return rc;
    for (int i = 0; i < n && !rc; i++) {
        struct model_layer *y = &c->model.layer[i / STORED];
        const struct tensor *t = layer_tensor(y, i % STORED);
        tensor_name(name, i / STORED, i % STORED);
        if (layer_stores(c, i / STORED, i % STORED))
            rc = safetensors_writer_declare(w, name, DTYPE_F32, t->rank, t->dim, e);
    }
    for (int i = 0; i < n && !rc; i++) {
        struct model_layer *y = &c->model.layer[i / STORED];
        const struct tensor *t = layer_tensor(y, i % STORED);
        float *f;
        if (!layer_stores(c, i / STORED, i % STORED))
            continue;
        rc = tensor_to_f32(t, &f, e);
        if (!rc) {
            rc = safetensors_writer_f32(w, f, tensor_elements(t), e);
            free(f);
        }
    }
    if (rc) {
        safetensors_writer_abort(w);
        return rc;
    }
    return safetensors_writer_commit(w, e);
}

/* Which of the two tensor files is free: a folder that is already a conversion keeps its own until
 * the new description is in place, so that dying at any moment leaves one or the other whole. */
static const char *free_tensors_file(const char *dir)
{
    cJSON *root = NULL;
    const char *used = FOLDER_TENSORS_2;
    if (conversion_is_dir(dir) && read_folder(dir, &root, NULL) == OK)
        used = tensors_file(root);
    cJSON_Delete(root);
    return !strcmp(used, FOLDER_TENSORS) ? FOLDER_TENSORS_2 : FOLDER_TENSORS;
}

static void remove_other(const char *dir, const char *tensors)
{
    char *old =
        path_join(dir, !strcmp(tensors, FOLDER_TENSORS) ? FOLDER_TENSORS_2 : FOLDER_TENSORS);
    if (old)
        unlink(old);
    free(old);
}

/* All that a folder holds, into dir, which is there. What was in it stays valid until the end. */
static int write_folder(struct conversion *c, const char *dir, const char *base_path, struct err *e)
{
    cJSON *root = NULL;
    const char *name = free_tensors_file(dir);
    char *json = path_join(dir, FOLDER_JSON), *tensors = path_join(dir, name), *text = NULL;
    char *base = realpath(base_path, NULL);
    int rc = json && tensors ? write_tensors(c, tensors, e) : err_nomem(e, 4096, "a path");
    if (!rc)
        rc = folder_json(c, base ? base : base_path, name, &root, e);
    if (!rc && !(text = json_text(root, true)))
        rc = err_nomem(e, 4096, "a conversion's description");
    if (!rc) /* last: a folder without it is no conversion */
        rc = file_save(json, text, strlen(text), e);
    if (!rc)
        remove_other(dir, name);
    else if (tensors)
        unlink(tensors); /* nothing names it */
    cJSON_Delete(root);
    free(text);
    free(base);
    free(json);
    free(tensors);
    return rc;
}

/* A folder that is not there yet appears whole: it is written under another name. */
static int write_new_folder(struct conversion *c, const char *dir, const char *base_path,
                            struct err *e)
{
    char *parent = path_parent(dir), *tmp = mem_printf("%s.tmp-%ld", dir, (long)getpid());
    int rc = parent && tmp ? file_mkdirs(parent, e) : err_nomem(e, 4096, "a path");
    if (!rc)
        file_sweep(dir);
    if (!rc)
        rc = file_mkdirs(tmp, e);
    if (!rc)
        rc = write_folder(c, tmp, base_path, e);
    if (!rc)
        rc = file_rename(tmp, dir, e);
    if (rc && tmp) {
        char *said = e ? strstr(e->text, tmp) : NULL;
        size_t n = strlen(dir), more = strlen(tmp) - n;
        if (said) /* by the name that the user knows */
            memmove(said + n, said + n + more, strlen(said + n + more) + 1);
        file_remove(tmp);
    }
    free(parent);
    free(tmp);
    return rc;
}

int conversion_save(struct conversion *c, const char *dir, const char *base_path, struct err *e)
{
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/')
        n--;
    char *copy = strndup(dir, n);
    int rc = !copy               ? err_nomem(e, n, "a path")
             : file_is_dir(copy) ? write_folder(c, copy, base_path, e)
                                 : write_new_folder(c, copy, base_path, e);
    if (!rc) {
        snprintf(c->report.path, sizeof c->report.path, "%s", copy);
        free(c->dir);
        c->dir = copy;
        copy = NULL;
    }
    free(copy);
    return rc;
}

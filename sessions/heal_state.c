/* Checkpoints of a healing run: heal.json (what is healed with what, the state, the curve) names
 * one of two files of weights and moments; it is written last, so that dying at any moment leaves
 * one checkpoint whole. The folder itself is a conversion, the best so far. Refuses a checkpoint of
 * another conversion, text or options. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/safetensors.h"
#include "core/sha256.h"
#include "sessions/clock.h"
#include "sessions/heal_run.h"

#define STATE_JSON "heal.json"
#define STATE_MAX ((size_t)64 << 20)
#define HASHED 16384 /* bytes of a tensor that its fingerprint takes */

static const char *const tensor_files[2] = {"heal-a.safetensors", "heal-b.safetensors"};

char *heal_unfinished(const char *dir)
{
    char *path = path_join(dir, STATE_JSON);
    if (path && file_exists(path))
        return path;
    free(path);
    return NULL;
}

void heal_fingerprint(const struct heal *h, char hex[65])
{
    struct sha256 s;
    sha256_init(&s);
    for (int l = 0; l < h->c->model.hp.n_layer; l++) {
        const struct model_layer *y = &h->c->model.layer[l];
        const struct tensor *all[] = {y->q_rope.data ? &y->q_rope : &y->q, &y->kv_a, &y->kv_b,
                                      &y->o, &y->down};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            size_t n = tensor_bytes(all[i]);
            uint64_t shape[2] = {all[i]->dim[0], all[i]->dim[1]};
            sha256_add(&s, shape, sizeof shape);
            sha256_add(&s, all[i]->data, n < HASHED ? n : HASHED);
        }
    }
    sha256_hex(&s, hex);
}

/* --- the description ---------------------------------------------------------------------- */

static void parts_text(unsigned parts, char text[64])
{
    size_t n = 0;
    text[0] = 0;
    for (int i = 0; i < HEAL_PARTS; i++)
        if (parts >> i & 1)
            n += (size_t)snprintf(text + n, 64 - n, "%s%s", n ? "," : "", heal_part_names[i]);
}

/* Numbers that must be the same to go on. */
struct fixed {
    const char *name;
    double value;
};
enum { FIXED = 8 };

static void fixed_options(const struct heal_options *o, struct fixed f[FIXED])
{
    const struct fixed all[FIXED] = {{"seed", (double)o->seed},
                                     {"lr", o->rate},
                                     {"next_token_share", o->mix},
                                     {"match", o->match},
                                     {"exact", o->exact},
                                     {"length", o->length},
                                     {"accumulate", o->accumulate > 0 ? o->accumulate : 1},
                                     {"train", o->parts ? o->parts : HEAL_ALL}};
    memcpy(f, all, sizeof all);
}

static cJSON *curve_json(const struct heal_report *r)
{
    cJSON *list = cJSON_CreateArray();
    for (size_t i = 0; i < r->n; i++) {
        const struct heal_point *p = &r->curve[i];
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "step", (double)p->step);
        cJSON_AddNumberToObject(o, "tokens", (double)p->tokens);
        cJSON_AddNumberToObject(o, "seconds", p->seconds);
        if (isfinite(p->train_kl))
            cJSON_AddNumberToObject(o, "train_kl", p->train_kl);
        cJSON_AddNumberToObject(o, "held_out_kl", p->held_kl);
        cJSON_AddNumberToObject(o, "lr", p->rate);
        cJSON_AddItemToArray(list, o);
    }
    return list;
}

static const struct {
    const char *name;
    size_t at;
    bool whole; /* a long long, else a double */
} state_fields[] = {
    {"step", offsetof(struct heal_state, step), true},
    {"batch", offsetof(struct heal_state, batch), true},
    {"sequence", offsetof(struct heal_state, sequence), true},
    {"tokens", offsetof(struct heal_state, tokens), true},
    {"updates", offsetof(struct heal_state, updates), true},
    {"refit_tokens", offsetof(struct heal_state, refit_tokens), true},
    {"train_steps", offsetof(struct heal_state, train_steps), true},
    {"measured", offsetof(struct heal_state, measured), true},
    {"stale", offsetof(struct heal_state, stale), true},
    {"bad", offsetof(struct heal_state, bad), true},
    {"seconds", offsetof(struct heal_state, seconds), false},
    {"seconds_training", offsetof(struct heal_state, seconds_training), false},
    {"norm_avg", offsetof(struct heal_state, norm_avg), false},
    {"loss_avg", offsetof(struct heal_state, loss_avg), false},
    {"loss_weight", offsetof(struct heal_state, loss_weight), false},
    {"scale", offsetof(struct heal_state, scale), false},
    {"kl_before", offsetof(struct heal_state, kl_before), false},
    {"kl_best", offsetof(struct heal_state, kl_best), false},
    {"train_sum", offsetof(struct heal_state, train_sum), false},
};
enum { STATE_FIELDS = sizeof state_fields / sizeof *state_fields };

static cJSON *state_json(const struct heal *h)
{
    struct heal_state s = h->s;
    cJSON *o = cJSON_CreateObject();
    s.seconds += clock_now() - h->started_sec;
    for (int i = 0; i < STATE_FIELDS; i++) {
        const char *at = (const char *)&s + state_fields[i].at;
        cJSON_AddNumberToObject(o, state_fields[i].name,
                                state_fields[i].whole ? (double)*(const long long *)(const void *)at
                                                      : *(const double *)(const void *)at);
    }
    return o;
}

static int save_description(const struct heal *h, const char *tensors, struct err *e)
{
    struct fixed f[FIXED];
    cJSON *root = cJSON_CreateObject();
    char *path = path_join(h->o.dir, STATE_JSON), *text = NULL;
    fixed_options(&h->o, f);
    cJSON_AddNumberToObject(root, "mlathe_heal", 1);
    cJSON_AddStringToObject(root, "healed", h->source);
    cJSON_AddStringToObject(root, "text", heal_text_sha256(h->text));
    cJSON_AddStringToObject(root, "text_source", heal_text_source(h->text));
    for (int i = 0; i < FIXED; i++)
        cJSON_AddNumberToObject(root, f[i].name, f[i].value);
    cJSON_AddNumberToObject(root, "batch_tokens", h->o.batch);
    cJSON_AddNumberToObject(root, "held_out_tokens", h->o.held_out);
    cJSON_AddStringToObject(root, "tensors", tensors);
    cJSON *sizes = cJSON_AddArrayToObject(root, "rms");
    for (int i = 0; i < heal_net_count(h->net); i++)
        cJSON_AddItemToArray(sizes, cJSON_CreateNumber(h->moment[i].rms));
    cJSON_AddItemToObject(root, "state", state_json(h));
    cJSON_AddItemToObject(root, "curve", curve_json(h->out));
    int rc = path && (text = json_text(root, true)) ? OK : err_nomem(e, 4096, "a checkpoint");
    if (!rc)
        rc = file_save(path, text, strlen(text), e);
    cJSON_Delete(root);
    free(path);
    free(text);
    return rc;
}

/* --- the tensors -------------------------------------------------------------------------- */

static void tensor_name(const struct heal_tensor *t, const char *what, char name[96])
{
    snprintf(name, 96, "model.layers.%d.%s.%s", t->layer, heal_part_names[t->part], what);
}

static const char *const kinds[3] = {"weight", "m", "v"};

static float *part_of(const struct heal *h, int i, int kind)
{
    return kind == 0 ? h->net->tensor[i].w : kind == 1 ? h->moment[i].m : h->moment[i].v;
}

static bool is_kept(const struct heal *h, int i)
{
    return h->net->tensor[i].trained && h->net->tensor[i].rows > 0;
}

static int write_tensors(const struct heal *h, const char *path, struct err *e)
{
    struct safetensors_writer *w;
    char name[96];
    int n = 3 * heal_net_count(h->net), rc = safetensors_writer_new(&w, path, e);
    if (rc)
        return rc;
    for (int i = 0; i < n && !rc; i++) {
        const struct heal_tensor *t = &h->net->tensor[i / 3];
        size_t dim[2] = {t->rows, t->cols};
        tensor_name(t, kinds[i % 3], name);
        if (is_kept(h, i / 3))
            rc = safetensors_writer_declare(w, name, DTYPE_F32, 2, dim, e);
    }
    for (int i = 0; i < n && !rc; i++)
        if (is_kept(h, i / 3))
            rc = safetensors_writer_f32(w, part_of(h, i / 3, i % 3),
                                        h->net->tensor[i / 3].rows * h->net->tensor[i / 3].cols, e);
    if (rc) {
        safetensors_writer_abort(w);
        return rc;
    }
    return safetensors_writer_commit(w, e);
}

static int read_tensors(struct heal *h, const char *path, struct err *e)
{
    struct safetensors *st;
    char name[96];
    int rc = safetensors_open(&st, path, e);
    if (rc)
        return rc;
    for (int i = 0; i < 3 * heal_net_count(h->net) && !rc; i++) {
        const struct heal_tensor *t = &h->net->tensor[i / 3];
        struct tensor from;
        if (!is_kept(h, i / 3))
            continue;
        tensor_name(t, kinds[i % 3], name);
        rc = safetensors_get(st, name, &from, e);
        if (!rc && (from.rank != 2 || from.dim[0] != t->rows || from.dim[1] != t->cols ||
                    from.dtype != DTYPE_F32))
            rc = err_set(e, ERR_MISMATCH, "%s: %s must be F32 %zu × %zu", path, name, t->rows,
                         t->cols);
        if (!rc)
            rc = tensor_check_finite(&from, name, e);
        if (!rc)
            memcpy(part_of(h, i / 3, i % 3), from.data, t->rows * t->cols * sizeof(float));
    }
    safetensors_close(st);
    return rc;
}

/* --- saving ------------------------------------------------------------------------------- */

/* This run as an entry of the conversion's history. */
static int write_history(struct heal *h, bool finished, struct err *e)
{
    char parts[64];
    if (!h->lines && !(h->lines = heal_text_lines(h->text, e)))
        return e ? e->status : ERR_NOMEM;
    cJSON *o = cJSON_CreateObject();
    parts_text(h->o.parts, parts);
    cJSON_AddBoolToObject(o, "finished", finished);
    cJSON_AddNumberToObject(o, "steps", (double)h->s.step);
    cJSON_AddNumberToObject(o, "tokens", (double)h->s.tokens);
    cJSON_AddNumberToObject(o, "refit_tokens", (double)h->s.refit_tokens);
    cJSON_AddNumberToObject(o, "seconds", h->s.seconds + clock_now() - h->started_sec);
    cJSON_AddNumberToObject(o, "kl_before", h->s.kl_before);
    cJSON_AddNumberToObject(o, "kl_after", h->s.kl_best);
    cJSON_AddStringToObject(o, "train", parts);
    cJSON_AddNumberToObject(o, "seed", (double)h->o.seed);
    if (h->o.rate > 0)
        cJSON_AddNumberToObject(o, "lr", h->o.rate);
    cJSON_AddStringToObject(o, "text", heal_text_source(h->text));
    cJSON_AddStringToObject(o, "text_sha256", heal_text_sha256(h->text));
    cJSON_AddStringToObject(o, "text_lines", h->lines);
    cJSON_AddItemToObject(o, "curve", curve_json(h->out));
    if (!h->c->healing)
        h->c->healing = cJSON_CreateArray();
    if (h->history >= 0) {
        cJSON_ReplaceItemInArray(h->c->healing, h->history, o);
    } else {
        h->history = cJSON_GetArraySize(h->c->healing);
        cJSON_AddItemToArray(h->c->healing, o);
    }
    return OK;
}

/* Which of the two files the description does not name. */
static const char *free_file(const struct heal *h)
{
    char *path = heal_unfinished(h->o.dir);
    cJSON *root = NULL;
    const char *used = tensor_files[1];
    if (path && json_read_file(&root, path, STATE_MAX, NULL) == OK &&
        !strcmp(json_str_or(root, "tensors", ""), tensor_files[0]))
        used = tensor_files[0];
    cJSON_Delete(root);
    free(path);
    return used == tensor_files[0] ? tensor_files[1] : tensor_files[0];
}

static void remove_file(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    if (path)
        unlink(path);
    free(path);
}

static int save_best(struct heal *h, bool finished, struct err *e)
{
    int rc = h->best_saved && !finished ? OK : write_history(h, finished, e);
    if (!rc && (!h->best_saved || finished))
        rc = conversion_save(h->c, h->o.dir, h->o.base_path, e);
    h->best_saved = h->best_saved || !rc;
    return rc;
}

int heal_save(struct heal *h, struct err *e)
{
    int rc = save_best(h, false, e);
    const char *name = free_file(h);
    char *path = path_join(h->o.dir, name);
    if (!rc && !path)
        rc = err_nomem(e, 4096, "a path");
    if (!rc)
        rc = write_tensors(h, path, e);
    if (!rc)
        rc = save_description(h, name, e);
    if (!rc)
        remove_file(h->o.dir, name == tensor_files[0] ? tensor_files[1] : tensor_files[0]);
    free(path);
    return rc;
}

int heal_finish(struct heal *h, struct err *e)
{
    int rc = save_best(h, true, e);
    if (!rc)
        heal_forget(h->o.dir);
    return rc;
}

void heal_forget(const char *dir)
{
    remove_file(dir, STATE_JSON); /* first: without it the others are nothing */
    remove_file(dir, tensor_files[0]);
    remove_file(dir, tensor_files[1]);
}

/* --- going on ----------------------------------------------------------------------------- */

static int check_same(const struct heal *h, const cJSON *root, const char *where, struct err *e)
{
    struct fixed f[FIXED];
    const char *text;
    long long version;
    int rc = json_int(root, "mlathe_heal", 1, 1, &version, where, e);
    if (!rc)
        rc = json_str(root, "text", &text, where, e);
    if (!rc && strcmp(text, heal_text_sha256(h->text)))
        rc =
            err_set(e, ERR_MISMATCH,
                    "%s: an unfinished healing on other text (%s): name that text to go on, remove "
                    "the file to start anew, or give another folder",
                    where, json_str_or(root, "text_source", "?"));
    fixed_options(&h->o, f);
    for (int i = 0; i < FIXED && !rc; i++) {
        double v;
        rc = json_num(root, f[i].name, &v, where, e);
        if (!rc && fabs(v - f[i].value) > 1e-12 * fabs(v))
            rc = err_set(e, ERR_MISMATCH,
                         "%s: an unfinished healing with %s %.9g, not %.9g: say the same to go on, "
                         "remove the file to start anew, or give another folder",
                         where, f[i].name, v, f[i].value);
    }
    return rc;
}

int heal_resume(struct heal *h, struct err *e)
{
    char *path = heal_unfinished(h->o.dir);
    long long batch = 0, held = 0;
    if (!path)
        return OK;
    int rc = json_read_file(&h->unfinished, path, STATE_MAX, e);
    if (!rc)
        rc = check_same(h, h->unfinished, path, e);
    if (!rc && strcmp(json_str_or(h->unfinished, "healed", ""), h->source))
        rc =
            err_set(e, ERR_MISMATCH,
                    "%s holds an unfinished healing of another conversion: give another folder, or "
                    "remove its " STATE_JSON,
                    h->o.dir);
    if (!rc)
        rc = json_int(h->unfinished, "batch_tokens", 1, 1 << 24, &batch, path, e);
    if (!rc)
        rc = json_int(h->unfinished, "held_out_tokens", 1, 1 << 24, &held, path, e);
    if (!rc) { /* chosen by the budget then: a longer one goes on with the same */
        h->o.batch = (int)batch;
        h->o.held_out = (int)held;
    }
    free(path);
    return rc;
}

static int read_curve(struct heal *h, const char *where, struct err *e)
{
    const cJSON *list = json_get(h->unfinished, "curve"), *v = list ? list->child : NULL;
    int rc = OK;
    for (; v && !rc; v = v->next) {
        struct heal_point p = {.train_kl = NAN};
        double step = 0, tokens = 0;
        rc = json_num(v, "step", &step, where, e);
        if (!rc)
            rc = json_num(v, "tokens", &tokens, where, e);
        if (!rc)
            rc = json_num(v, "seconds", &p.seconds, where, e);
        if (!rc)
            rc = json_num_opt(v, "train_kl", &p.train_kl, where, e);
        if (!rc)
            rc = json_num(v, "held_out_kl", &p.held_kl, where, e);
        if (!rc)
            rc = json_num(v, "lr", &p.rate, where, e);
        p.step = (long long)step;
        p.tokens = (long long)tokens;
        if (!rc)
            rc = heal_add_point(h->out, &p, e);
    }
    return rc;
}

static int read_state(struct heal *h, const char *where, struct err *e)
{
    const cJSON *o = json_get(h->unfinished, "state");
    int rc = OK;
    for (int i = 0; i < STATE_FIELDS && !rc; i++) {
        char *at = (char *)&h->s + state_fields[i].at;
        double v = 0;
        rc = json_num(o, state_fields[i].name, &v, where, e);
        if (!rc && !(fabs(v) < 1e15))
            rc = err_set(e, ERR_FORMAT, "%s: %s is %g", where, state_fields[i].name, v);
        if (state_fields[i].whole)
            *(long long *)(void *)at = (long long)v;
        else
            *(double *)(void *)at = v;
    }
    return rc;
}

/* t becomes what it is in the folder, where that is not the base's. */
static int take(struct heal *h, struct tensor *t, const struct tensor *best,
                const struct tensor *base, struct err *e)
{
    float *f;
    if (best->data == base->data)
        return OK;
    if (tensor_elements(best) != tensor_elements(t))
        return err_set(e, ERR_MISMATCH, "%s holds another conversion", h->o.dir);
    int rc = tensor_to_f32(best, &f, e);
    return rc ? rc : conversion_take(h->c, t, f, e);
}

int heal_take_best(struct heal *h, struct err *e)
{
    struct conversion *best = NULL;
    int rc = conversion_open(&best, h->o.dir, h->c->base, h->o.plan_model, e);
    for (int l = 0; l < h->c->model.hp.n_layer && !rc; l++) {
        struct model_layer *to = &h->c->model.layer[l], *y = &best->model.layer[l];
        const struct model_layer *b = &h->c->base->layer[l];
        bool normed = y->q_rope.data;
        rc = take(h, normed ? &to->q_rope : &to->q, normed ? &y->q_rope : &y->q, &b->q_rope, e);
        if (!rc)
            rc = take(h, &to->kv_a, &y->kv_a, &b->kv_a, e);
        if (!rc)
            rc = take(h, &to->kv_b, &y->kv_b, &b->kv_b, e);
        if (!rc)
            rc = take(h, &to->o, &y->o, &b->o, e);
        if (!rc)
            rc = take(h, &to->down, &y->down, &b->down, e);
    }
    conversion_free(best);
    return rc;
}

/* What a step is measured by is the size that tensors had at the start. */
static int read_sizes(struct heal *h, const char *where, struct err *e)
{
    const cJSON *v = json_get(h->unfinished, "rms");
    int n = heal_net_count(h->net), i = 0;
    for (v = v ? v->child : NULL; v && i < n && cJSON_IsNumber(v) && v->valuedouble >= 0;
         v = v->next)
        h->moment[i++].rms = v->valuedouble;
    return !v && i == n
               ? OK
               : err_set(e, ERR_FORMAT, "%s/" STATE_JSON ": rms must be %d numbers", where, n);
}

int heal_restore(struct heal *h, struct err *e)
{
    const char *file = json_str_or(h->unfinished, "tensors", "");
    bool known = !strcmp(file, tensor_files[0]) || !strcmp(file, tensor_files[1]);
    char *path = known ? path_join(h->o.dir, file) : NULL;
    int rc =
        path ? OK : err_set(e, ERR_FORMAT, "%s/" STATE_JSON " names no file of weights", h->o.dir);
    if (!rc)
        rc = read_tensors(h, path, e);
    if (!rc)
        rc = read_sizes(h, h->o.dir, e);
    if (!rc)
        rc = read_state(h, h->o.dir, e);
    if (!rc)
        rc = read_curve(h, h->o.dir, e);
    free(path);
    if (!rc) {
        h->best_saved = true;
        if (h->sink && h->sink->note) {
            char text[160];
            snprintf(text, sizeof text, "going on after step %lld (%lld tokens, KL %.4f)",
                     h->s.step, h->s.tokens, h->s.kl_best);
            h->sink->note(h->sink->user, text);
        }
    }
    return rc;
}

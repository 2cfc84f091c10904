/* Results beside the conversion that they measured. The file names, by digest, the description
 * (mlathe.json) it belongs to: results of a conversion that was since replaced do not count.
 * Refuses to write over a file that it does not understand. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/sha256.h"
#include "sessions/eval_record.h"

#define STORE_NAME "evaluations.json"
#define STORE_VERSION 1
#define STORE_MAX_BYTES ((size_t)16 << 20)
#define STORE_MAX_JSON ((size_t)64 << 20)

void eval_list_free(struct eval_list *l)
{
    free(l->r);
    *l = (struct eval_list){0};
}

/* The folder's description and its digest. */
static int read_description(const char *dir, cJSON **out, char digest[65], struct err *e)
{
    char *path = path_join(dir, "mlathe.json"), *text = NULL;
    size_t n = 0;
    int rc = path ? file_read(path, STORE_MAX_JSON, &text, &n, e) : err_nomem(e, 4096, "a path");
    if (!rc) {
        struct sha256 hash;
        sha256_init(&hash);
        sha256_add(&hash, text, n);
        sha256_hex(&hash, digest);
    }
    if (!rc && out)
        rc = json_parse(out, text, n, path, e);
    free(text);
    free(path);
    return rc;
}

/* The store, or an empty one where there is none or it belongs to an earlier conversion. */
static int read_store(const char *dir, const char *digest, cJSON **out, struct err *e)
{
    char *path = path_join(dir, STORE_NAME);
    long long version;
    int rc = path ? OK : err_nomem(e, 4096, "a path");
    *out = NULL;
    if (!rc && file_exists(path)) {
        rc = json_read_file(out, path, STORE_MAX_BYTES, e);
        if (!rc)
            rc = json_int(*out, "mlathe_evaluations", 1, STORE_VERSION, &version, path, e);
        if (!rc && !cJSON_IsArray(json_get(*out, "results")))
            rc = err_set(e, ERR_FORMAT, "%s: has no list of results", path);
        if (rc || strcmp(json_str_or(*out, "conversion", ""), digest) != 0) {
            cJSON_Delete(*out);
            *out = NULL;
        }
    }
    free(path);
    if (rc || *out)
        return rc;
    *out = cJSON_CreateObject();
    cJSON_AddNumberToObject(*out, "mlathe_evaluations", STORE_VERSION);
    cJSON_AddStringToObject(*out, "conversion", digest);
    return cJSON_AddArrayToObject(*out, "results") ? OK : err_nomem(e, 64, "the results");
}

int eval_list_load(struct eval_list *out, const char *dir, struct err *e)
{
    char digest[65];
    cJSON *root = NULL;
    *out = (struct eval_list){0};
    int rc = read_description(dir, NULL, digest, e);
    if (!rc)
        rc = read_store(dir, digest, &root, e);
    const cJSON *list = rc ? NULL : json_get(root, "results");
    for (const cJSON *v = list ? list->child : NULL; v && !rc; v = v->next) {
        void *grown = out->r;
        if (!mem_grow(&grown, &out->cap, out->n + 1, sizeof *out->r))
            rc = err_nomem(e, out->n * sizeof *out->r, "the results");
        out->r = grown;
        if (!rc && eval_record_parse(&out->r[out->n], v, dir, NULL) == OK)
            out->n++;
    }
    cJSON_Delete(root);
    if (rc)
        eval_list_free(out);
    return rc;
}

/* The record's place in the list: that of the same measurement, else behind the last. */
static bool put_record(cJSON *list, const struct eval_record *r)
{
    cJSON *item = eval_record_json(r);
    for (cJSON *v = list->child; v && item; v = v->next) {
        struct eval_record old;
        if (eval_record_parse(&old, v, "", NULL) == OK && eval_record_same(&old, r)) {
            cJSON_Delete(cJSON_DetachItemViaPointer(list, v));
            break;
        }
    }
    return item && cJSON_AddItemToArray(list, item);
}

int eval_store(const char *dir, const struct eval_record *r, struct err *e)
{
    char digest[65], *text = NULL, *path = path_join(dir, STORE_NAME);
    cJSON *root = NULL;
    int rc = path ? read_description(dir, NULL, digest, e) : err_nomem(e, 4096, "a path");
    if (!rc)
        rc = read_store(dir, digest, &root, e);
    if (!rc && (!put_record(cJSON_GetObjectItemCaseSensitive(root, "results"), r) ||
                !(text = json_text(root, true))))
        rc = err_nomem(e, 4096, "the results");
    if (!rc)
        rc = file_save(path, text, strlen(text), e);
    cJSON_Delete(root);
    free(text);
    free(path);
    return rc;
}

/* ---- conversions of one model ---- */

struct siblings {
    struct eval_sibling *s;
    size_t n, cap;
    const char *fingerprint;
};

static int add_sibling(struct siblings *all, const char *dir, struct err *e)
{
    char digest[65];
    cJSON *root = NULL;
    struct eval_list list = {0};
    char *real = realpath(dir, NULL);
    void *grown = all->s;
    int rc = OK;
    for (size_t i = 0; real && i < all->n; i++)
        if (!strcmp(all->s[i].dir, real)) {
            free(real);
            return OK;
        }
    /* A folder that cannot be read is not this function's to complain about. */
    bool ours = real && strlen(real) < sizeof all->s->dir &&
                read_description(real, &root, digest, NULL) == OK &&
                !strcmp(json_str_or(json_get(root, "base"), "fingerprint", ""), all->fingerprint) &&
                eval_list_load(&list, real, NULL) == OK && list.n > 0;
    if (ours && !mem_grow(&grown, &all->cap, all->n + 1, sizeof *all->s))
        rc = err_nomem(e, all->n * sizeof *all->s, "conversions");
    all->s = grown;
    if (ours && !rc) {
        const cJSON *method = json_get(json_get(root, "plan"), "method");
        const cJSON *kept = json_get(json_get(root, "report"), "kept");
        struct eval_sibling *s = &all->s[all->n++];
        *s = (struct eval_sibling){.list = list,
                                   .kept = cJSON_IsNumber(kept) ? kept->valuedouble : NAN};
        snprintf(s->dir, sizeof s->dir, "%s", real);
        snprintf(s->method, sizeof s->method, "%s", json_str_or(method, "name", "?"));
        snprintf(s->layout, sizeof s->layout, "%s", json_str_or(method, "layout", "?"));
    } else {
        eval_list_free(&list);
    }
    cJSON_Delete(root);
    free(real);
    return rc;
}

static int more_kept_first(const void *a, const void *b)
{
    const struct eval_sibling *x = a, *y = b;
    if (x->kept != y->kept && isfinite(x->kept) && isfinite(y->kept))
        return x->kept < y->kept ? 1 : -1;
    return strcmp(x->dir, y->dir);
}

int eval_siblings(struct eval_sibling **out, size_t *n_out, const char *const *dir, size_t n,
                  const char *parent, const char *fingerprint, struct err *e)
{
    struct siblings all = {.fingerprint = fingerprint};
    struct dirent **f = NULL;
    int rc = OK, names = parent ? scandir(parent, &f, NULL, alphasort) : 0;
    for (size_t i = 0; i < n && !rc; i++)
        rc = dir[i] ? add_sibling(&all, dir[i], e) : OK;
    for (int i = 0; i < names; i++) {
        char *path = f[i]->d_name[0] == '.' ? NULL : path_join(parent, f[i]->d_name);
        if (path && !rc)
            rc = add_sibling(&all, path, e);
        free(path);
        free(f[i]);
    }
    free(f);
    if (rc) {
        eval_siblings_free(all.s, all.n);
        all = (struct siblings){0};
    }
    if (all.n)
        qsort(all.s, all.n, sizeof *all.s, more_kept_first);
    *out = all.s;
    *n_out = all.n;
    return rc;
}

void eval_siblings_free(struct eval_sibling *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        eval_list_free(&s[i].list);
    free(s);
}

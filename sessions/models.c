/* Finding models: a table of caches, each with a way to walk it. Folders that cannot be read, loops
 * and odd names are skipped; what cannot be opened is listed with the reason. Refuses nothing. */
#include "sessions/models.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/file.h"
#include "core/json.h"
#include "core/stock.h"
#include "sessions/paths.h"

#define MODELS_MAX 2048    /* entries listed */
#define MODELS_MAX_DEPTH 4 /* folders below a cache's root */
#define MODELS_MAX_MANIFEST ((size_t)16 << 20)

struct scan {
    struct model_entry *v;
    size_t n, cap;
    bool out_of_memory;
};

static void entry_done(struct model_entry *m)
{
    free(m->name);
    free(m->path);
}

void models_free(struct model_entry *m, size_t n)
{
    for (size_t i = 0; i < n; i++)
        entry_done(&m[i]);
    free(m);
}

/* Which engines would take a conversion in their own layout, half of the cache wide; or why none.
 */
static void describe_exports(struct model_entry *m, const struct model *base)
{
    struct stock_facts f;
    struct stock_verdict v;
    struct rankplan p;
    const char *why = model_convertible(base);
    size_t n = 0;
    snprintf(m->converts, sizeof m->converts, "%s", why ? why : "");
    struct plan_model shape = {.n_layer = base->hp.n_layer,
                               .n_head = base->hp.n_head,
                               .n_kv_head = base->hp.n_kv_head,
                               .head_dim = base->hp.head_dim};
    if (why || rankplan_init(&p, &shape, NULL))
        return;
    p.layout = LAYOUT_STOCK;
    stock_facts_of(base, &f);
    int half = shape.n_kv_head * shape.head_dim, rope = rankplan_auto_rope(&shape, p.layout, 0.5);
    if (half > rope && rankplan_uniform(&p, half - rope, rope, NULL) == OK)
        for (int t = 0; t < STOCK_ENGINES && n < sizeof m->exports; t++) {
            stock_check(&f, &p, (enum stock_engine)t, &v);
            bool takes = v.fit != STOCK_NO;
            n += (size_t)snprintf(m->exports + n, sizeof m->exports - n, "%s%s %s%s%s",
                                  n ? ", " : "", stock_name((enum stock_engine)t),
                                  takes ? "✓" : "✗", takes ? "" : " ", takes ? "" : v.brief);
        }
    rankplan_done(&p);
}

static void describe(struct model_entry *m, const char *probe_path)
{
    struct model *base;
    struct err e = {0};
    if (model_look(&base, probe_path, &e)) {
        /* The list shows the path already. */
        const char *why = e.text, *colon = strstr(e.text, ": ");
        if (colon && !strncmp(why, probe_path, strlen(probe_path)))
            why = colon + 2;
        snprintf(m->reason, sizeof m->reason, "%.255s", why);
        return;
    }
    struct model_hparams hp = base->hp;
    m->bytes = base->file_bytes;
    m->parameters = base->parameters;
    describe_exports(m, base);
    model_free(base);
    m->usable = true;
    if (!hp.text)
        snprintf(m->reason, sizeof m->reason,
                 "no tokenizer lies with it: it takes token ids, no text");
    snprintf(m->family, sizeof m->family, "%.15s", hp.family);
    snprintf(m->dtype, sizeof m->dtype, "%s", dtype_traits(hp.dtype)->name);
    m->n_layer = hp.n_layer;
    m->n_head = hp.n_head;
    m->n_kv_head = hp.n_kv_head;
    m->head_dim = hp.head_dim;
    m->context = hp.context;
    m->kv_bytes_per_token = (size_t)model_kv_numbers(&hp) * dtype_bytes(DTYPE_F16, 1);
}

static int small_int(const cJSON *o, const char *key)
{
    long long v = 0;
    return json_int_opt(o, key, 0, 1 << 24, &v, "", NULL) ? 0 : (int)v;
}

/* What a conversion folder's own plan says; whether its base is still there shows on opening. */
static void describe_conversion(struct model_entry *m, const char *dir)
{
    char *file = path_join(dir, "mlathe.json"), *weights = path_join(dir, "attention.safetensors");
    cJSON *json = NULL;
    struct err e = {0};
    struct stat st;
    if (file && json_read_file(&json, file, MODELS_MAX_MANIFEST, &e)) {
        snprintf(m->reason, sizeof m->reason, "%.255s", e.text);
    } else if (file) {
        const cJSON *plan = json_get(json, "plan"), *model = json_get(plan, "model");
        snprintf(m->family, sizeof m->family, "%s", json_str_or(model, "family", ""));
        m->n_layer = small_int(model, "layers");
        m->n_head = small_int(model, "q_heads");
        m->n_kv_head = small_int(model, "kv_heads");
        m->head_dim = small_int(model, "head_dim");
        m->kv_bytes_per_token =
            (size_t)small_int(json_get(plan, "prediction"), "kv_bytes_per_token");
        m->usable = true;
    }
    if (weights && !stat(weights, &st))
        m->bytes = (size_t)st.st_size;
    cJSON_Delete(json);
    free(file);
    free(weights);
}

/* Takes name and path. */
static void add(struct scan *s, const char *source, const char *format, char *name, char *path)
{
    void *grown = s->v;
    struct stat st;
    bool known = false;
    for (size_t i = 0; name && path && i < s->n; i++)
        known = known || !strcmp(s->v[i].path, path);
    if (!name || !path || s->n >= MODELS_MAX || known ||
        !mem_grow(&grown, &s->cap, s->n + 1, sizeof *s->v)) {
        s->out_of_memory = s->out_of_memory || !name || !path;
        free(name);
        free(path);
        return;
    }
    s->v = grown;
    struct model_entry *m = &s->v[s->n++];
    *m = (struct model_entry){.name = name, .path = path};
    snprintf(m->source, sizeof m->source, "%s", source);
    snprintf(m->format, sizeof m->format, "%s", format);
    if (strcmp(format, "conversion"))
        describe(m, path);
    else
        describe_conversion(m, path);
    if (!m->bytes && !stat(path, &st) && S_ISREG(st.st_mode))
        m->bytes = (size_t)st.st_size;
}

/* A name for a GGUF file: without the extension. */
static char *stem(const char *file)
{
    size_t n = strlen(file);
    return mem_printf("%.*s", (int)(n > 5 ? n - 5 : n), file);
}

/* Later parts of a split file, and vision projectors, are no models of their own. */
static bool is_part(const char *file)
{
    const char *of = strstr(file, "-of-");
    if (!strncmp(file, "mmproj", 6))
        return true;
    return of && of - file >= 6 && strncmp(of - 6, "-00001", 6) != 0;
}

static bool has_file(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    bool yes = path && file_exists(path);
    free(path);
    return yes;
}

/* A folder to look into. Links to folders count only at the top of a cache: they may loop. */
static bool is_folder(const char *path, int depth)
{
    struct stat st;
    return (depth ? lstat(path, &st) : stat(path, &st)) == 0 && S_ISDIR(st.st_mode);
}

/* Walks dir: GGUF files, model folders, conversions. name: what a model folder is called, or NULL
 * for its own name. */
static void walk(struct scan *s, const char *source, const char *dir, const char *name, int depth)
{
    struct dirent **list;
    int n = scandir(dir, &list, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *file = list[i]->d_name;
        char *path = file[0] == '.' ? NULL : path_join(dir, file);
        if (path && text_ends_with(file, ".gguf") && !is_part(file) && file_exists(path)) {
            add(s, source, "GGUF", stem(file), mem_strdup(path));
        } else if (path && is_folder(path, depth)) {
            if (has_file(path, "mlathe.json"))
                add(s, "conversion", "conversion", mem_strdup(file), mem_strdup(path));
            else if (has_file(path, "config.json"))
                add(s, source, "HF", mem_strdup(name ? name : file), mem_strdup(path));
            if (depth < MODELS_MAX_DEPTH)
                walk(s, source, path, name, depth + 1);
        }
        free(path);
        free(list[i]);
    }
    if (n >= 0)
        free(list);
}

static void scan_plain(struct scan *s, const char *source, const char *root)
{
    walk(s, source, root, NULL, 0);
}

/* models--ORG--NAME/snapshots/REVISION/… */
static void scan_huggingface(struct scan *s, const char *source, const char *root)
{
    struct dirent **list;
    int n = scandir(root, &list, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *file = list[i]->d_name;
        if (!strncmp(file, "models--", 8)) {
            char *name = mem_strdup(file + 8), *dir = mem_printf("%s/%s/snapshots", root, file);
            char *cut = name ? strstr(name, "--") : NULL;
            if (cut) {
                *cut = '/';
                memmove(cut + 1, cut + 2, strlen(cut + 2) + 1);
            }
            if (name && dir)
                walk(s, source, dir, name, 0);
            free(name);
            free(dir);
        }
        free(list[i]);
    }
    if (n >= 0)
        free(list);
}

/* A manifest names the blob that is the GGUF file. */
static void add_ollama(struct scan *s, const char *source, const char *root, const char *manifest,
                       const char *name)
{
    cJSON *json;
    if (json_read_file(&json, manifest, MODELS_MAX_MANIFEST, NULL))
        return;
    const cJSON *layers = json_get(json, "layers");
    for (const cJSON *l = cJSON_IsArray(layers) ? layers->child : NULL; l; l = l->next) {
        const char *digest = json_str_or(l, "digest", "");
        if (strcmp(json_str_or(l, "mediaType", ""), "application/vnd.ollama.image.model") ||
            strncmp(digest, "sha256:", 7) || strspn(digest + 7, "0123456789abcdef") != 64 ||
            digest[71])
            continue;
        char *path = mem_printf("%s/blobs/sha256-%s", root, digest + 7);
        if (path && file_exists(path))
            add(s, source, "GGUF", mem_strdup(name), mem_strdup(path));
        free(path);
    }
    cJSON_Delete(json);
}

/* manifests/REGISTRY/NAMESPACE/MODEL/TAG; "library" is left out of the name. */
static void walk_ollama(struct scan *s, const char *source, const char *root, const char *dir,
                        const char *name, int depth)
{
    struct dirent **list;
    int n = scandir(dir, &list, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        const char *file = list[i]->d_name;
        char *path = file[0] == '.' ? NULL : path_join(dir, file);
        bool part = depth > 0 && !(depth == 1 && !strcmp(file, "library"));
        char *full = !part          ? mem_strdup("")
                     : name[0] == 0 ? mem_strdup(file)
                     : depth == 3   ? mem_printf("%s:%s", name, file)
                                    : mem_printf("%s/%s", name, file);
        if (path && full && depth < 3 && is_folder(path, depth))
            walk_ollama(s, source, root, path, full, depth + 1);
        else if (path && full && depth == 3)
            add_ollama(s, source, root, path, full);
        free(full);
        free(path);
        free(list[i]);
    }
    if (n >= 0)
        free(list);
}

static void scan_ollama(struct scan *s, const char *source, const char *root)
{
    char *dir = path_join(root, "manifests");
    if (dir)
        walk_ollama(s, source, root, dir, "", 0);
    free(dir);
}

/* A cache: the variable that moves it (used as it is), or a place below HOME. */
struct cache {
    const char *source, *variable, *below;
    void (*scan)(struct scan *s, const char *source, const char *root);
};
static const struct cache caches[] = {
    {"huggingface", "HF_HUB_CACHE", NULL, scan_huggingface},
    {"huggingface", "HF_HOME", "hub", scan_huggingface},
    {"huggingface", "HOME", ".cache/huggingface/hub", scan_huggingface},
    {"llama.cpp", "LLAMA_CACHE", NULL, scan_plain},
    {"llama.cpp", "HOME", ".cache/llama.cpp", scan_plain},
    {"lmstudio", "HOME", ".lmstudio/models", scan_plain},
    {"lmstudio", "HOME", ".cache/lm-studio/models", scan_plain},
    {"ollama", "OLLAMA_MODELS", NULL, scan_ollama},
    {"ollama", "HOME", ".ollama/models", scan_ollama},
};

static void scan_own(struct scan *s)
{
    static const char *const folders[] = {"models", "conversions"};
    struct paths p;
    if (paths_init(&p, NULL))
        return;
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        char *dir = path_join(p.data, folders[i]);
        if (dir)
            walk(s, "mlathe", dir, NULL, 0);
        free(dir);
    }
    paths_done(&p);
}

static void add_recent(struct scan *s, const char *path)
{
    const char *base = path_base(path);
    if (file_is_dir(path) && has_file(path, "config.json"))
        add(s, "recent", "HF", mem_strdup(base), mem_strdup(path));
    else if (text_ends_with(path, ".gguf") && file_exists(path))
        add(s, "recent", "GGUF", stem(base), mem_strdup(path));
}

int models_scan(struct model_entry **out, size_t *n, const char *const *recent, size_t n_recent,
                struct err *e)
{
    struct scan s = {0};
    scan_own(&s);
    for (size_t i = 0; i < sizeof caches / sizeof caches[0]; i++) {
        const char *base = getenv(caches[i].variable);
        if (!base || base[0] != '/')
            continue;
        char *root = caches[i].below ? path_join(base, caches[i].below) : mem_strdup(base);
        if (root)
            caches[i].scan(&s, caches[i].source, root);
        free(root);
    }
    while (n_recent > 0)
        add_recent(&s, recent[--n_recent]);
    if (s.out_of_memory) {
        models_free(s.v, s.n);
        return err_nomem(e, s.n * sizeof *s.v, "the list of models");
    }
    *out = s.v;
    *n = s.n;
    return OK;
}

/* DATA/models/NAME or DATA/conversions/NAME if it exists. */
static char *own_model(const char *name)
{
    static const struct {
        const char *folder, *end;
    } forms[] = {{"models", ""}, {"models", ".gguf"}, {"conversions", ""}};
    struct paths p;
    char *path = NULL;
    if (!name[0] || strchr(name, '/') || paths_init(&p, NULL))
        return NULL;
    for (size_t i = 0; i < sizeof forms / sizeof forms[0] && !path; i++) {
        path = mem_printf("%s/%s/%s%s", p.data, forms[i].folder, name, forms[i].end);
        if (path && !file_exists(path)) {
            free(path);
            path = NULL;
        }
    }
    paths_done(&p);
    return path;
}

int models_resolve(const char *name, char **path, struct err *e)
{
    struct model_entry *list = NULL;
    size_t n = 0;
    *path = own_model(name ? name : MODELS_DEFAULT);
    if (!name)
        return *path ? OK
                     : err_set(
                           e, ERR_ARG,
                           "the default model (%s) is not here: ./run fetches it, or name a model",
                           MODELS_DEFAULT);
    if (file_exists(name)) {
        free(*path);
        *path = mem_strdup(name);
        return *path ? OK : err_nomem(e, strlen(name), "a path");
    }
    if (*path)
        return OK;
    int rc = models_scan(&list, &n, NULL, 0, e);
    if (rc)
        return rc;
    for (size_t i = 0; i < n && !*path; i++)
        if (!strcmp(list[i].name, name))
            *path = mem_strdup(list[i].path);
    models_free(list, n);
    return *path ? OK
                 : err_set(e, ERR_ARG,
                           "%s: no such file, folder or known model (mlathe models lists those)",
                           name);
}

/* Opening a model: which format, which family, and what every family shares (names, special token
 * ids, ownership). Refuses unknown families by name; the family refuses the rest. */
#include "core/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/family.h"
#include "core/file.h"
#include "core/gguf.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "core/sha256.h"

#define CONFIG_MAX ((size_t)4 << 20)

const struct family *const family_table[] = {
    &family_llama, &family_smollm3, &family_mistral,   &family_mixtral,
    &family_qwen2, &family_qwen3,   &family_qwen3_moe, &family_mimo,
    &family_phi3,  &family_gemma2,  &family_gemma3,    &family_deepseek,
    NULL};

static void owner_free(void *owner)
{
    struct model_owner *o = owner;
    for (size_t i = 0; i < o->n_own; i++)
        free(o->own[i]);
    free(o->own);
    gguf_close(o->gguf);
    safetensors_close(o->st);
    free(o);
}

static const struct family *find_family(const char *kind, size_t n, bool gguf)
{
    for (const struct family *const *f = family_table; *f; f++)
        for (const char *const *s = gguf ? (*f)->gguf_archs : (*f)->hf_model_types; *s; s++)
            if (strlen(*s) == n && !memcmp(*s, kind, n))
                return *f;
    return NULL;
}

static int unknown_family(const char *path, const char *kind, size_t n, struct err *e)
{
    char known[256] = "";
    size_t used = 0;
    for (const struct family *const *f = family_table; *f && used < sizeof known; f++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "",
                                 (*f)->name);
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: models of the family \"%.*s\" cannot be opened yet (families that can: %s)",
                   path, n < 64 ? (int)n : 64, kind, known);
}

/* Screens show the name: control characters become blanks, a cut never splits a character. */
static void set_name(struct model *m, const char *s, size_t n)
{
    size_t max = sizeof m->hp.name - 1;
    if (n > max)
        for (n = max; n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80;)
            n--;
    for (size_t i = 0; i < n; i++)
        m->hp.name[i] = (unsigned char)s[i] < 32 || s[i] == 127 ? ' ' : s[i];
    m->hp.name[n] = 0;
}

/* The path's last component, without slashes at the end and, for files, without the extension. */
static void name_from_path(struct model *m, const char *path, bool is_dir)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t at = n;
    while (at > 0 && path[at - 1] != '/')
        at--;
    if (!is_dir && n - at > 5 && !strncmp(path + n - 5, ".gguf", 5))
        n -= 5;
    set_name(m, path + at, n - at);
}

/* An id or a list of ids. */
static bool add_eos_json(struct model_hparams *hp, const cJSON *item)
{
    const cJSON *one = cJSON_IsArray(item) ? item->child : item;
    for (; one; one = cJSON_IsArray(item) ? one->next : NULL)
        if (cJSON_IsNumber(one) && one->valuedouble >= 0 && one->valuedouble < hp->vocab)
            family_add_eos(hp, (long long)one->valuedouble);
    return hp->n_eos > 0;
}

/* generation_config.json knows best what ends a text; config.json is the fallback. */
static int special_ids_hf(struct model *m, const char *dir, const cJSON *config, struct err *e)
{
    struct model_hparams *hp = &m->hp;
    cJSON *generation = NULL;
    char *path = path_join(dir, "generation_config.json");
    if (!path)
        return err_nomem(e, strlen(dir), "a path");
    int rc = file_exists(path) ? json_read_file(&generation, path, CONFIG_MAX, e) : OK;
    free(path);
    if (rc)
        return rc;
    if (!add_eos_json(hp, json_get(generation, "eos_token_id")))
        add_eos_json(hp, json_get(config, "eos_token_id"));
    const cJSON *bos = json_get(config, "bos_token_id");
    if (!bos)
        bos = json_get(generation, "bos_token_id");
    if (cJSON_IsNumber(bos) && bos->valuedouble >= 0 && bos->valuedouble < hp->vocab)
        hp->bos = (int)bos->valuedouble;
    cJSON_Delete(generation);
    return OK;
}

static bool has_file(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    bool is = path && file_exists(path);
    free(path);
    return is;
}

static int open_hf(struct model *m, const char *dir, struct err *e)
{
    struct model_owner *o = m->owner;
    cJSON *config = NULL;
    char *where = path_join(dir, "config.json");
    if (!where)
        return err_nomem(e, strlen(dir), "a path");
    int rc = OK;
    m->format = MODEL_HF;
    if (!file_exists(where))
        rc = err_set(e, ERR_IO,
                     "%s: no config.json in this folder; give a GGUF file or a Hugging "
                     "Face model folder",
                     dir);
    if (!rc)
        rc = json_read_file(&config, where, CONFIG_MAX, e);
    const char *kind = NULL;
    if (!rc)
        rc = json_str(config, "model_type", &kind, where, e);
    const struct family *family = kind ? find_family(kind, strlen(kind), false) : NULL;
    if (!rc && !family)
        rc = unknown_family(where, kind, strlen(kind), e);
    if (!rc)
        rc = safetensors_open(&o->st, dir, e);
    if (!rc) {
        m->file_bytes = safetensors_file_bytes(o->st);
        m->hp.text = has_file(dir, "tokenizer.json") || has_file(dir, "tokenizer.model");
        name_from_path(m, dir, true);
        snprintf(m->hp.family, sizeof m->hp.family, "%s", family->name);
        rc = family->open_hf(m, config, where, o->st, e);
    }
    if (!rc)
        rc = special_ids_hf(m, dir, config, e);
    cJSON_Delete(config);
    free(where);
    return rc;
}

static void special_ids_gguf(struct model *m, const struct gguf *g)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        family_add_eos(&m->hp, gguf_int_or(g, ends[i], -1));
    long long bos = gguf_int_or(g, "tokenizer.ggml.bos_token_id", -1);
    m->hp.bos = bos >= 0 && bos < m->hp.vocab ? (int)bos : -1;
}

static int open_gguf(struct model *m, const char *path, struct err *e)
{
    struct model_owner *o = m->owner;
    struct gguf_str arch;
    m->format = MODEL_GGUF;
    int rc = gguf_open(&o->gguf, path, e);
    if (!rc)
        rc = gguf_string(o->gguf, "general.architecture", &arch, e);
    if (rc)
        return rc;
    const struct family *family = find_family(arch.s, arch.n, true);
    if (!family)
        return unknown_family(path, arch.s, arch.n, e);
    m->file_bytes = gguf_file_bytes(o->gguf);
    m->hp.text = gguf_array_len(o->gguf, "tokenizer.ggml.tokens", GGUF_STRING) > 0;
    /* The file's name, not general.name: it is what the user chose, and says the quantisation. */
    name_from_path(m, path, false);
    snprintf(m->hp.family, sizeof m->hp.family, "%s", family->name);
    rc = family->open_gguf(m, o->gguf, e);
    if (!rc)
        special_ids_gguf(m, o->gguf);
    return rc;
}

static int open_path(struct model **out, const char *path, bool probe, struct err *e)
{
    *out = NULL;
    struct model *m = mem_calloc(1, sizeof *m);
    struct model_owner *o = mem_calloc(1, sizeof *o);
    if (!m || !o) {
        free(m);
        free(o);
        return err_nomem(e, sizeof *m, "a model");
    }
    o->probe = probe;
    m->owner = o;
    m->owner_free = owner_free;
    m->hp.bos = -1;
    m->path = mem_strdup(path);
    int rc;
    if (!m->path)
        rc = err_nomem(e, strlen(path), "a path");
    else if (file_is_dir(path))
        rc = open_hf(m, path, e);
    else if (text_ends_with(path, ".safetensors") || text_ends_with(path, ".json"))
        rc = err_set(e, ERR_ARG, "%s: give the folder that holds this file", path);
    else
        rc = open_gguf(m, path, e);
    if (rc) {
        model_free(m);
        return rc;
    }
    *out = m;
    return OK;
}

int model_open(struct model **out, const char *path, struct err *e)
{
    return open_path(out, path, false, e);
}

void model_free(struct model *m)
{
    if (!m)
        return;
    if (m->owner_free)
        m->owner_free(m->owner);
    free(m->layer);
    free(m->path);
    free(m);
}

int model_look(struct model **out, const char *path, struct err *e)
{
    return open_path(out, path, true, e);
}

static int each_expert(const struct model *m,
                       int (*visit)(void *user, const char *name, const struct tensor *t),
                       void *user)
{
    static const char *const parts[EXPERT_PARTS] = {"gate", "up", "down"};
    int rc = OK, n = m->hp.moe.n * EXPERT_PARTS;
    for (int l = 0; l < m->hp.n_layer; l++)
        for (int i = 0; m->layer[l].expert && i < n && !rc; i++) {
            char name[64];
            snprintf(name, sizeof name, "layer %d expert %d %s", l, i / EXPERT_PARTS,
                     parts[i % EXPERT_PARTS]);
            rc = visit(user, name, &m->layer[l].expert[i]);
        }
    return rc;
}

int model_each_tensor(const struct model *m,
                      int (*visit)(void *user, const char *name, const struct tensor *t),
                      void *user)
{
#define FIELD(f)                                                                                   \
    {                                                                                              \
#f, offsetof(struct model_layer, f)                                                        \
    }
    static const struct {
        const char *name;
        size_t at;
    } fields[] = {
        FIELD(attn_norm),
        FIELD(q),
        FIELD(k),
        FIELD(v),
        FIELD(q_bias),
        FIELD(k_bias),
        FIELD(v_bias),
        FIELD(kv_a),
        FIELD(kv_b),
        FIELD(o),
        FIELD(ffn_norm),
        FIELD(gate),
        FIELD(up),
        FIELD(down),
        FIELD(q_norm),
        FIELD(k_norm),
        FIELD(o_bias),
        FIELD(gate_bias),
        FIELD(up_bias),
        FIELD(down_bias),
        FIELD(q_a),
        FIELD(q_a_bias),
        FIELD(q_a_norm),
        FIELD(kv_a_bias),
        FIELD(kv_a_norm),
        FIELD(post_attn_norm),
        FIELD(post_ffn_norm),
        FIELD(router),
        FIELD(router_bias),
    };
#undef FIELD
    int rc = visit(user, "embed", &m->embed);
    for (int l = 0; l < m->hp.n_layer && !rc; l++)
        for (size_t i = 0; i < sizeof fields / sizeof *fields && !rc; i++) {
            const char *base = (const char *)&m->layer[l];
            const struct tensor *t = (const struct tensor *)(base + fields[i].at);
            char name[64];
            snprintf(name, sizeof name, "layer %d %s", l, fields[i].name);
            if (t->data)
                rc = visit(user, name, t);
        }
    if (!rc)
        rc = each_expert(m, visit, user);
    if (!rc)
        rc = visit(user, "final_norm", &m->final_norm);
    if (!rc && m->head.data != m->embed.data)
        rc = visit(user, "head", &m->head);
    return rc;
}

struct finite {
    const struct model *m;
    const struct progress *p;
    struct err *e;
    double done, total; /* numbers */
};

static int visit_finite(void *user, const char *name, const struct tensor *t)
{
    struct finite *f = user;
    char what[512];
    if (!progress_report(f->p, "check weights", f->done, f->total))
        return err_set(f->e, ERR_CANCELLED, "stopped while checking weights");
    snprintf(what, sizeof what, "%s: %s", f->m->path ? f->m->path : f->m->hp.name, name);
    f->done += (double)tensor_elements(t);
    return tensor_check_finite(t, what, f->e);
}

int model_check_finite(const struct model *m, const struct progress *p, struct err *e)
{
    struct finite f = {.m = m, .p = p, .e = e, .total = (double)m->parameters};
    return model_each_tensor(m, visit_finite, &f);
}

/* Shape, type and up to 16 stretches of 1 KB, evenly spread, first and last included. */
static int visit_fingerprint(void *user, const char *name, const struct tensor *t)
{
    enum { PARTS = 16, PART = 1024 };
    struct sha256 *s = user;
    char line[256];
    int n =
        snprintf(line, sizeof line, "%s %s %d %zu %zu %zu %zu\n", name,
                 dtype_traits(t->dtype)->name, t->rank, t->dim[0], t->dim[1], t->dim[2], t->dim[3]);
    sha256_add(s, line, (size_t)n);
    size_t size = tensor_bytes(t);
    const uint8_t *data = t->data;
    if (size <= (size_t)PARTS * PART) {
        sha256_add(s, data, size);
        return OK;
    }
    for (size_t i = 0; i < PARTS; i++)
        sha256_add(s, data + (size - PART) * i / (PARTS - 1), PART);
    return OK;
}

/* What families other than Llama add; windows and long frequencies come with the layers. */
static void fingerprint_features(struct sha256 *s, const struct model_hparams *hp)
{
    char line[512];
    int n = snprintf(line, sizeof line, "%d %.17g %.17g %.17g %.17g %d %d %d %d %d %d %d %d %d\n",
                     hp->act, hp->attn_softcap, hp->logit_softcap, hp->embed_scale,
                     hp->rope_magnitude, hp->rope_original, hp->q_lora_rank, hp->kv_lora_rank,
                     hp->qk_rope_head_dim, hp->qk_nope_head_dim, hp->v_head_dim, hp->moe.n,
                     hp->moe.used, hp->moe.first_layer);
    sha256_add(s, line, (size_t)n);
}

int model_fingerprint(const struct model *m, char hex[65], struct err *e)
{
    const struct model_hparams *hp = &m->hp;
    struct sha256 s;
    char line[512];
    (void)e;
    /* Not the name: it follows the file's. */
    int n = snprintf(line, sizeof line, "%s L%d D%d H%d G%d d%d F%d V%d %.17g %.17g %.17g %d\n",
                     hp->family, hp->n_layer, hp->hidden, hp->n_head, hp->n_kv_head, hp->head_dim,
                     hp->ffn, hp->vocab, hp->rope_theta, hp->rms_eps, hp->attn_scale, hp->tied);
    sha256_init(&s);
    sha256_add(&s, line, (size_t)n);
    if (model_convertible(m)) /* what converts keeps the fingerprint it has always had */
        fingerprint_features(&s, hp);
    if (hp->rope_magnitude > 0) {
        n = snprintf(line, sizeof line, "%.9g\n", hp->rope_magnitude);
        sha256_add(&s, line, (size_t)n);
    }
    /* Nine digits: the last bits of pow() differ between C libraries. */
    for (int l = 0; l < hp->n_layer; l++)
        for (int j = 0; j < m->layer[l].rope_dim / 2; j++) {
            n = snprintf(line, sizeof line, "%.9g ", m->layer[l].rope_freq[j]);
            sha256_add(&s, line, (size_t)n);
        }
    int rc = model_each_tensor(m, visit_fingerprint, &s);
    sha256_hex(&s, hex);
    return rc;
}

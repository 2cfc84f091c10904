/* Binding shared by all families. Trusts the readers about bytes and the tables about names, and
 * checks every shape against the hyper-parameters, which it checks first. */
#include "core/family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/gguf.h"
#include "core/safetensors.h"

#define MAX_LAYER 1024
#define MAX_WIDTH (1 << 20)
#define MAX_HEAD_DIM 1024
#define MAX_VOCAB (1 << 22)

struct binder {
    struct model *m;
    const struct family_source *src;
    const struct family_map *map;
    struct err *e;
    size_t bound;              /* tensors of the file that a slot took */
    size_t bytes[DTYPE_COUNT]; /* of weights, by type */
};

static bool within(int v, int max)
{
    return v > 0 && v <= max;
}

int family_check_hparams(const struct model_hparams *hp, const char *where, struct err *e)
{
    const struct {
        const char *what;
        int value, max;
    } sizes[] = {
        {"number of layers", hp->n_layer, MAX_LAYER},   {"hidden size", hp->hidden, MAX_WIDTH},
        {"number of query heads", hp->n_head, 4096},    {"number of KV heads", hp->n_kv_head, 4096},
        {"head dimension", hp->head_dim, MAX_HEAD_DIM}, {"feed-forward size", hp->ffn, MAX_WIDTH},
        {"vocabulary", hp->vocab, MAX_VOCAB},           {"context", hp->context, 1 << 28},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!within(sizes[i].value, sizes[i].max))
            return err_set(e, ERR_FORMAT, "%s: %s %d; 1 to %d can be", where, sizes[i].what,
                           sizes[i].value, sizes[i].max);
    if (hp->n_head % hp->n_kv_head)
        return err_set(e, ERR_FORMAT, "%s: %d KV heads do not divide %d query heads", where,
                       hp->n_kv_head, hp->n_head);
    if (hp->head_dim % 2)
        return err_set(e, ERR_FORMAT, "%s: head dimension %d is odd; rope needs pairs", where,
                       hp->head_dim);
    if (!(hp->rms_eps > 0 && hp->rms_eps < 1))
        return err_set(e, ERR_FORMAT, "%s: RMS norm epsilon %g; it must be between 0 and 1", where,
                       hp->rms_eps);
    if (!(hp->attn_scale > 0 && hp->attn_scale <= 1e3))
        return err_set(e, ERR_FORMAT, "%s: attention scale %g", where, hp->attn_scale);
    return OK;
}

void *family_own(struct model *m, size_t n, size_t size)
{
    struct model_owner *o = m->owner;
    if (!mem_grow((void **)&o->own, &o->cap_own, o->n_own + 1, sizeof *o->own))
        return NULL;
    void *p = mem_aligned(n, size);
    if (p)
        o->own[o->n_own++] = p;
    return p;
}

void family_add_eos(struct model_hparams *hp, long long id)
{
    if (id < 0 || id >= hp->vocab || hp->n_eos >= MODEL_MAX_EOS)
        return;
    for (int i = 0; i < hp->n_eos; i++)
        if (hp->eos[i] == id)
            return;
    hp->eos[hp->n_eos++] = (int)id;
}

static size_t dim_of(const struct model_hparams *hp, enum family_dim dim)
{
    switch (dim) {
    case DIM_NONE: return 0;
    case DIM_HIDDEN: return (size_t)hp->hidden;
    case DIM_Q: return (size_t)hp->n_head * (size_t)hp->head_dim;
    case DIM_KV: return (size_t)hp->n_kv_head * (size_t)hp->head_dim;
    case DIM_FFN: return (size_t)hp->ffn;
    case DIM_VOCAB: return (size_t)hp->vocab;
    }
    return 0;
}

static int check_shape(struct binder *b, const struct family_slot *slot, const char *name,
                       const struct tensor *t)
{
    size_t rows = dim_of(&b->m->hp, slot->rows), cols = dim_of(&b->m->hp, slot->cols);
    int rank = slot->cols == DIM_NONE ? 1 : 2;
    if (t->rank == rank && t->dim[0] == rows && (rank == 1 || t->dim[1] == cols))
        return OK;
    char have[96], want[64];
    int n = 0;
    for (int i = 0; i < t->rank && n < (int)sizeof have - 24; i++)
        n += snprintf(have + n, sizeof have - (size_t)n, "[%zu]", t->dim[i]);
    snprintf(want, sizeof want, rank == 1 ? "[%zu]" : "[%zu][%zu]", rows, cols);
    return err_set(b->e, ERR_FORMAT, "%s: tensor %s is %s, but the configuration asks for %s",
                   b->src->where, name, have, want);
}

/* Row j of the first half of a head comes from row 2j, row j of the second half from row 2j+1.
 * Whole rows move, so quantised blocks stay as they are. */
static int undo_rope_rows(struct binder *b, struct tensor *t)
{
    size_t d = (size_t)b->m->hp.head_dim, row = dtype_bytes(t->dtype, t->dim[1]);
    uint8_t *copy = family_own(b->m, t->dim[0], row);
    if (!copy)
        return err_nomem(b->e, t->dim[0] * row, "reordered attention rows");
    for (size_t i = 0; i < t->dim[0]; i++) {
        size_t head = i / d * d, j = i % d;
        size_t from = head + (j < d / 2 ? 2 * j : 2 * (j - d / 2) + 1);
        memcpy(copy + i * row, (const uint8_t *)t->data + from * row, row);
    }
    t->data = copy;
    return OK;
}

/* Kernels read numbers with aligned loads of the number's own size; safetensors promises none. */
static int align_copy(struct binder *b, struct tensor *t)
{
    size_t size = t->dtype == DTYPE_F32 ? 4 : 2;
    if ((uintptr_t)t->data % size == 0)
        return OK;
    void *copy = family_own(b->m, tensor_bytes(t), 1);
    if (!copy)
        return err_nomem(b->e, tensor_bytes(t), "an aligned tensor");
    memcpy(copy, t->data, tensor_bytes(t));
    t->data = copy;
    return OK;
}

static bool source_has(const struct family_source *src, const char *name)
{
    return src->gguf ? gguf_has_tensor(src->gguf, name) : safetensors_has(src->st, name);
}

static size_t source_count(const struct family_source *src)
{
    return src->gguf ? gguf_tensor_count(src->gguf) : safetensors_count(src->st);
}

static int bind_one(struct binder *b, const struct family_slot *slot, const char *name,
                    struct tensor *out)
{
    bool probe = ((struct model_owner *)b->m->owner)->probe;
    if ((slot->flags & SLOT_OPTIONAL) && !source_has(b->src, name))
        return OK;
    int rc = b->src->gguf ? gguf_tensor(b->src->gguf, name, out, b->e)
                          : safetensors_get(b->src->st, name, out, b->e);
    if (!rc)
        rc = check_shape(b, slot, name, out);
    if (rc)
        return rc;
    b->bound++;
    b->m->parameters += tensor_elements(out);
    b->bytes[out->dtype] += tensor_bytes(out);
    if (probe)
        return OK;
    if (b->src->gguf && (slot->flags & SLOT_ROPE_ROWS))
        rc = undo_rope_rows(b, out);
    else
        rc = align_copy(b, out);
    if (!rc && out->rank == 1) {
        char what[512];
        snprintf(what, sizeof what, "%s: tensor %s", b->src->where, name);
        rc = tensor_check_finite(out, what, b->e);
    }
    return rc;
}

static const char *slot_name(const struct binder *b, const struct family_slot *slot)
{
    return b->src->gguf ? slot->gguf : slot->hf;
}

static int bind_layer(struct binder *b, int l)
{
    const char *prefix = b->src->gguf ? b->map->gguf_layer : b->map->hf_layer;
    struct model_layer *layer = &b->m->layer[l];
    int rc = OK;
    for (const struct family_slot *slot = b->map->layer; slot->gguf && !rc; slot++) {
        char name[160];
        snprintf(name, sizeof name, "%s%d.%s", prefix, l, slot_name(b, slot));
        rc = bind_one(b, slot, name, (struct tensor *)((char *)layer + slot->at));
    }
    return rc;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

/* A tensor that some slot of the map would take, or one that carries no weights. */
static bool known(const struct binder *b, const char *name)
{
    for (const struct family_slot *slot = b->map->global; slot->gguf; slot++)
        if (!strcmp(name, slot_name(b, slot)))
            return true;
    for (const char *const *end = b->map->ignored; end && *end; end++)
        if (ends_with(name, *end))
            return true;
    const char *prefix = b->src->gguf ? b->map->gguf_layer : b->map->hf_layer;
    int l = strncmp(name, prefix, strlen(prefix)) ? -1 : atoi(name + strlen(prefix));
    for (const struct family_slot *slot = b->map->layer; slot->gguf; slot++) {
        char want[160];
        snprintf(want, sizeof want, "%s%d.%s", prefix, l, slot_name(b, slot));
        if (l >= 0 && l < b->m->hp.n_layer && !strcmp(name, want))
            return true;
    }
    return false;
}

/* A weight that nobody reads means that the model is not what we take it for. */
static int refuse_strangers(struct binder *b)
{
    size_t n = source_count(b->src);
    if (b->bound == n)
        return OK;
    for (size_t i = 0; i < n; i++) {
        const char *name =
            b->src->gguf ? gguf_tensor_name(b->src->gguf, i) : safetensors_name(b->src->st, i);
        if (!known(b, name))
            return err_set(b->e, ERR_UNSUPPORTED,
                           "%s: tensor %s has no place in the %s family with %d layers",
                           b->src->where, name, b->m->hp.family, b->m->hp.n_layer);
    }
    return OK;
}

/* Frequencies into freq[head_dim/2]; GGUF keeps llama3 scaling as a list of divisors. */
static int rope_table(struct binder *b, const struct rope_spec *rope, double *freq)
{
    const char *name = "rope_freqs.weight";
    float divisor[MAX_HEAD_DIM / 2];
    struct tensor t;
    int half = b->m->hp.head_dim / 2;
    ropefreq_fill(rope, b->m->hp.head_dim, freq);
    if (b->src->gguf && gguf_has_tensor(b->src->gguf, name)) {
        int rc = gguf_tensor(b->src->gguf, name, &t, b->e);
        if (rc)
            return rc;
        if (t.rank != 1 || t.dim[0] != (size_t)half)
            return err_set(b->e, ERR_FORMAT, "%s: tensor %s does not hold %d numbers",
                           b->src->where, name, half);
        dtype_to_f32(t.dtype, t.data, divisor, (size_t)half);
        for (int j = 0; j < half; j++)
            freq[j] /= (double)divisor[j];
        b->bound++;
    }
    for (int j = 0; j < half; j++)
        if (!(freq[j] > 0 && freq[j] <= 1e3))
            return err_set(b->e, ERR_FORMAT, "%s: rope frequency %d is %g", b->src->where, j,
                           freq[j]);
    return OK;
}

static int new_layers(struct binder *b, const struct rope_spec *rope)
{
    struct model *m = b->m;
    /* The file must hold the layers before memory for them is asked for. */
    if ((size_t)m->hp.n_layer > source_count(b->src))
        return err_set(b->e, ERR_FORMAT, "%s: %d layers, but only %zu tensors", b->src->where,
                       m->hp.n_layer, source_count(b->src));
    m->layer = mem_calloc((size_t)m->hp.n_layer, sizeof *m->layer);
    double *freq = family_own(m, (size_t)m->hp.head_dim / 2, sizeof *freq);
    if (!m->layer || !freq)
        return err_nomem(b->e, (size_t)m->hp.n_layer * sizeof *m->layer, "layers");
    for (int l = 0; l < m->hp.n_layer; l++)
        m->layer[l] = (struct model_layer){.attn = ATTN_GQA,
                                           .rope_dim = m->hp.head_dim,
                                           .rope_freq = freq,
                                           .attn_scale = m->hp.attn_scale};
    return rope_table(b, rope, freq);
}

static int settle_head(struct binder *b)
{
    struct model *m = b->m;
    if (b->src->gguf)
        m->hp.tied = !m->head.data;
    if (!m->hp.tied && !m->head.data)
        return err_set(b->e, ERR_FORMAT, "%s: no lm_head.weight, and the embeddings are not tied",
                       b->src->where);
    if (m->hp.tied) {
        m->parameters -= tensor_elements(&m->head);
        m->head = m->embed;
    }
    return OK;
}

int family_bind(struct model *m, const struct family_source *src, const struct family_map *map,
                const struct rope_spec *rope, struct err *e)
{
    struct binder b = {.m = m, .src = src, .map = map, .e = e};
    int rc = family_check_hparams(&m->hp, src->where, e);
    if (!rc)
        rc = new_layers(&b, rope);
    for (const struct family_slot *slot = map->global; slot->gguf && !rc; slot++)
        rc = bind_one(&b, slot, slot_name(&b, slot), (struct tensor *)((char *)m + slot->at));
    for (int l = 0; l < m->hp.n_layer && !rc; l++)
        rc = bind_layer(&b, l);
    if (!rc)
        rc = refuse_strangers(&b);
    if (!rc)
        rc = settle_head(&b);
    if (rc)
        return rc;
    for (int t = 1; t < DTYPE_COUNT; t++)
        if (b.bytes[t] > b.bytes[m->hp.dtype])
            m->hp.dtype = (enum dtype)t;
    return OK;
}

static int refuse_rope(const char *kind, const char *where, struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: rope scaling of type \"%.40s\" cannot be computed yet; default, linear and "
                   "llama3 can",
                   where, kind);
}

int family_rope_hf(const cJSON *config, double theta, struct rope_spec *out, const char *where,
                   struct err *e)
{
    struct rope_spec r = {.theta = theta, .factor = 1};
    double partial = 1;
    const cJSON *set = json_get(config, "rope_scaling");
    if (!set)
        set = json_get(config, "rope_parameters");
    const char *kind = json_str_or(set, "rope_type", json_str_or(set, "type", "default"));
    int rc = json_num_opt(config, "rope_theta", &r.theta, where, e);
    if (!rc)
        rc = json_num_opt(set, "rope_theta", &r.theta, where, e);
    if (!rc)
        rc = json_num_opt(config, "partial_rotary_factor", &partial, where, e);
    if (!rc)
        rc = json_num_opt(set, "partial_rotary_factor", &partial, where, e);
    if (!rc && partial != 1)
        rc = err_set(e, ERR_UNSUPPORTED, "%s: partial rotary embedding (%g of a head)", where,
                     partial);
    if (!rc && !strcmp(kind, "llama3")) {
        r.kind = ROPE_LLAMA3;
        if (!(rc = json_num(set, "low_freq_factor", &r.low, where, e)) &&
            !(rc = json_num(set, "high_freq_factor", &r.high, where, e)))
            rc = json_num(set, "original_max_position_embeddings", &r.original_context, where, e);
    } else if (!rc && !strcmp(kind, "linear")) {
        r.kind = ROPE_LINEAR;
    } else if (!rc && strcmp(kind, "default")) {
        rc = refuse_rope(kind, where, e);
    }
    if (!rc && r.kind != ROPE_DEFAULT)
        rc = json_num(set, "factor", &r.factor, where, e);
    *out = r;
    return rc ? rc : ropefreq_check(&r, where, e);
}

int family_rope_gguf(const struct gguf *g, const char *arch, struct rope_spec *out, struct err *e)
{
    char key[96];
    struct gguf_str kind = {"none", 4};
    struct rope_spec r = {.theta = 10000, .factor = 1};
    int rc = OK;
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    if (gguf_has(g, key))
        rc = gguf_num(g, key, &r.theta, e);
    snprintf(key, sizeof key, "%s.rope.scale_linear", arch); /* before rope.scaling existed */
    r.factor = gguf_num_or(g, key, 1);
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    if (!rc && gguf_has(g, key))
        rc = gguf_string(g, key, &kind, e);
    if (rc)
        return rc;
    snprintf(key, sizeof key, "%s.rope.scaling.factor", arch);
    if (kind.n == 6 && !memcmp(kind.s, "linear", 6)) {
        rc = gguf_num(g, key, &r.factor, e);
    } else if (kind.n != 4 || memcmp(kind.s, "none", 4)) {
        snprintf(key, sizeof key, "%.*s", kind.n < 40 ? (int)kind.n : 40, kind.s);
        rc = refuse_rope(key, gguf_path(g), e);
    }
    if (r.factor != 1)
        r.kind = ROPE_LINEAR;
    *out = r;
    return rc ? rc : ropefreq_check(&r, gguf_path(g), e);
}

int family_gguf_int(const struct gguf *g, const char *arch, const char *name, long long min,
                    long long max, long long fallback, int *out, struct err *e)
{
    char key[128];
    long long v = fallback;
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (gguf_has(g, key) || fallback < 0) {
        int rc = gguf_int(g, key, &v, e);
        if (rc)
            return rc;
    }
    if (v < min || v > max)
        return err_set(e, ERR_FORMAT, "%s: \"%s\" is %lld; %lld to %lld can be", gguf_path(g), key,
                       v, min, max);
    *out = (int)v;
    return OK;
}

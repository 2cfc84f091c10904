/* Binding shared by all families. Trusts the readers about bytes and the tables about names, and
 * checks every shape against the hyper-parameters, which it checks first. */
#include "core/family.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/fp8.h"
#include "core/gguf.h"
#include "core/safetensors.h"

#define MAX_WIDTH (1 << 20)
#define MAX_HEAD_DIM 1024
#define MAX_VOCAB (1 << 22)
#define MAX_CONTEXT (1 << 28)

struct binder {
    struct model *m;
    const struct family_source *src;
    const struct family_map *map;
    struct err *e;
    bool loose;                /* GGUF before experts were stacked: one tensor an expert */
    size_t bound;              /* tensors of the file that a slot took */
    size_t bytes[DTYPE_COUNT]; /* of weights, by type */
};

static bool within(int v, int max)
{
    return v > 0 && v <= max;
}

static int check_mla(const struct model_hparams *hp, const char *where, struct err *e)
{
    bool fine = within(hp->kv_lora_rank, 1 << 14) && within(hp->qk_rope_head_dim, MAX_HEAD_DIM) &&
                within(hp->qk_nope_head_dim, MAX_HEAD_DIM) && within(hp->v_head_dim, MAX_HEAD_DIM);
    fine = fine && (!hp->q_lora_rank || within(hp->q_lora_rank, 1 << 16));
    if (fine && hp->qk_rope_head_dim % 2 == 0)
        return OK;
    return err_set(e, ERR_FORMAT,
                   "%s: latent rank %d, query rank %d, heads of %d + %d and values of %d numbers",
                   where, hp->kv_lora_rank, hp->q_lora_rank, hp->qk_nope_head_dim,
                   hp->qk_rope_head_dim, hp->v_head_dim);
}

static int check_moe(const struct model_moe *moe, const char *where, struct err *e)
{
    int groups = moe->groups ? moe->groups : 1, of = moe->groups ? moe->groups_used : 1;
    bool fine = within(moe->n, MODEL_MAX_EXPERTS) && within(moe->used, moe->n) &&
                within(moe->ffn, MAX_WIDTH) && moe->shared_ffn >= 0 &&
                moe->shared_ffn <= MAX_WIDTH && moe->first_layer >= 0;
    fine = fine && within(groups, moe->n) && moe->n % groups == 0 && within(of, groups) &&
           moe->used <= moe->n / groups * of && moe->scale > 0 && moe->scale <= 1e3;
    if (fine)
        return OK;
    return err_set(e, ERR_FORMAT,
                   "%s: %d of %d experts of width %d (%d shared), %d of %d groups, scale %g", where,
                   moe->used, moe->n, moe->ffn, moe->shared_ffn, of, groups, moe->scale);
}

int family_check_hparams(const struct model_hparams *hp, const char *where, struct err *e)
{
    const struct {
        const char *what;
        int value, max;
    } sizes[] = {
        {"number of layers", hp->n_layer, MODEL_MAX_LAYERS},
        {"hidden size", hp->hidden, MAX_WIDTH},
        {"number of query heads", hp->n_head, 4096},
        {"number of KV heads", hp->n_kv_head, 4096},
        {"head dimension", hp->head_dim, MAX_HEAD_DIM},
        {"feed-forward size", hp->ffn, MAX_WIDTH},
        {"vocabulary", hp->vocab, MAX_VOCAB},
        {"context", hp->context, MAX_CONTEXT},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!within(sizes[i].value, sizes[i].max))
            return err_set(e, ERR_FORMAT, "%s: %s %d; 1 to %d can be", where, sizes[i].what,
                           sizes[i].value, sizes[i].max);
    if (hp->n_head % hp->n_kv_head)
        return err_set(e, ERR_FORMAT, "%s: %d KV heads do not divide %d query heads", where,
                       hp->n_kv_head, hp->n_head);
    if (hp->head_dim % 2 && !hp->kv_lora_rank)
        return err_set(e, ERR_FORMAT, "%s: head dimension %d is odd; rope needs pairs", where,
                       hp->head_dim);
    if (!(hp->rms_eps > 0 && hp->rms_eps < 1))
        return err_set(e, ERR_FORMAT, "%s: RMS norm epsilon %g; it must be between 0 and 1", where,
                       hp->rms_eps);
    if (!(hp->attn_scale > 0 && hp->attn_scale <= 1e3))
        return err_set(e, ERR_FORMAT, "%s: attention scale %g", where, hp->attn_scale);
    if (!(hp->attn_softcap >= 0 && hp->attn_softcap <= 1e6 && hp->logit_softcap >= 0 &&
          hp->logit_softcap <= 1e6))
        return err_set(e, ERR_FORMAT, "%s: soft caps %g and %g", where, hp->attn_softcap,
                       hp->logit_softcap);
    int rc = hp->kv_lora_rank ? check_mla(hp, where, e) : OK;
    return !rc && hp->moe.n ? check_moe(&hp->moe, where, e) : rc;
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

/* Every factor is under its limit of family_check_hparams, so no product overflows. */
static size_t dim_of(const struct model_hparams *hp, enum family_dim dim)
{
    size_t H = (size_t)hp->n_head, G = (size_t)hp->n_kv_head, d = (size_t)hp->head_dim;
    size_t r = (size_t)hp->kv_lora_rank, R = (size_t)hp->qk_rope_head_dim;
    size_t P = (size_t)hp->qk_nope_head_dim, Vd = (size_t)hp->v_head_dim;
    switch (dim) {
    case DIM_NONE: return 0;
    case DIM_HIDDEN: return (size_t)hp->hidden;
    case DIM_Q: return H * d;
    case DIM_KV: return G * d;
    case DIM_FFN: return (size_t)hp->ffn;
    case DIM_VOCAB: return (size_t)hp->vocab;
    case DIM_HEAD: return d;
    case DIM_QKV: return (H + 2 * G) * d;
    case DIM_GATE_UP: return 2 * (size_t)hp->ffn;
    case DIM_Q_LORA: return (size_t)hp->q_lora_rank;
    case DIM_MLA_Q: return H * (P + R);
    case DIM_LATENT: return r;
    case DIM_KV_A: return r + R;
    case DIM_KV_B: return H * (P + Vd);
    case DIM_MLA_OUT: return H * Vd;
    case DIM_EXPERTS: return (size_t)hp->moe.n;
    case DIM_EXPERT_FFN: return (size_t)hp->moe.ffn;
    case DIM_SHARED_FFN: return (size_t)hp->moe.shared_ffn;
    case DIM_NOPE: return P;
    case DIM_VALUE: return Vd;
    case DIM_HIDDEN_TWICE: return 2 * (size_t)hp->hidden;
    case DIM_EXPERT_GATE_UP: return 2 * (size_t)hp->moe.ffn;
    }
    return 0;
}

/* All experts in one tensor, as GGUF has them, and some classes of transformers. */
static bool stacked(const struct binder *b, const struct family_slot *slot)
{
    return (slot->flags & SLOT_STACKED) ||
           (b->src->gguf && !b->loose && (slot->flags & SLOT_EXPERTS));
}

static int check_shape(struct binder *b, const struct family_slot *slot, const char *name,
                       const struct tensor *t)
{
    const struct model_hparams *hp = &b->m->hp;
    size_t want[3];
    int rank = 0;
    if (stacked(b, slot))
        want[rank++] = (size_t)hp->moe.n;
    if (slot->flags & SLOT_KV_SPLIT)
        want[rank++] = (size_t)hp->n_head;
    want[rank++] = dim_of(hp, slot->rows);
    if (slot->cols != DIM_NONE)
        want[rank++] = dim_of(hp, slot->cols);
    if (t->rank == rank && !memcmp(t->dim, want, (size_t)rank * sizeof *want))
        return OK;
    char have[96], asked[96];
    int n = 0, k = 0;
    for (int i = 0; i < t->rank; i++)
        n += snprintf(have + n, sizeof have - (size_t)n, "[%zu]", t->dim[i]);
    for (int i = 0; i < rank; i++)
        k += snprintf(asked + k, sizeof asked - (size_t)k, "[%zu]", want[i]);
    return err_set(b->e, ERR_FORMAT, "%s: tensor %s is %s, but the configuration asks for %s",
                   b->src->where, name, have, asked);
}

/* Of every `head` rows, those from `from` on are interleaved pairs: the first half of them comes
 * from the even ones, the second half from the odd ones. Whole rows move, so quantised blocks stay
 * as they are. */
static int undo_rope_rows(struct binder *b, struct tensor *t, size_t head, size_t from)
{
    size_t row = dtype_bytes(t->dtype, t->rank == 1 ? 1 : t->dim[1]), half = (head - from) / 2;
    uint8_t *copy = family_own(b->m, t->dim[0], row);
    if (!copy)
        return err_nomem(b->e, t->dim[0] * row, "reordered attention rows");
    for (size_t i = 0; i < t->dim[0]; i++) {
        size_t start = i / head * head + from, j = i % head;
        size_t at = j < from          ? i
                    : j - from < half ? start + 2 * (j - from)
                                      : start + 2 * (j - from - half) + 1;
        memcpy(copy + i * row, (const uint8_t *)t->data + at * row, row);
    }
    t->data = copy;
    return OK;
}

static int reorder(struct binder *b, const struct family_slot *slot, struct tensor *t)
{
    const struct model_hparams *hp = &b->m->hp;
    size_t R = (size_t)hp->qk_rope_head_dim;
    if (slot->flags & SLOT_ROPE_ROWS)
        return undo_rope_rows(b, t, (size_t)hp->head_dim, 0);
    bool query = slot->rows == DIM_MLA_Q;
    size_t from = (size_t)(query ? hp->qk_nope_head_dim : hp->kv_lora_rank);
    return undo_rope_rows(b, t, from + R, from);
}

static int add_one(struct binder *b, struct tensor *t)
{
    float *copy = family_own(b->m, t->dim[0], sizeof *copy);
    if (!copy)
        return err_nomem(b->e, t->dim[0] * sizeof *copy, "a norm");
    dtype_to_f32(t->dtype, t->data, copy, t->dim[0]);
    for (size_t i = 0; i < t->dim[0]; i++)
        copy[i] += 1;
    t->data = copy;
    t->dtype = DTYPE_F32;
    return OK;
}

/* Kernels read plain numbers with aligned loads of the number's own size; safetensors promises
 * none. Blocks are read by bytes. */
static int align_copy(struct binder *b, struct tensor *t)
{
    const struct dtype_traits *type = dtype_traits(t->dtype);
    if (type->block > 1 || (uintptr_t)t->data % (size_t)type->block_bytes == 0)
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

/* A matrix in FP8 becomes a matrix in fp32: product of two numbers of the file, nothing is lost. */
static int fetch_fp8(struct binder *b, const char *name, struct tensor *out)
{
    const struct model_owner *o = b->m->owner;
    struct fp8_matrix q;
    int rc = fp8_find(&q, b->src->st, name, o->fp8_block, b->src->where, b->e);
    if (rc)
        return rc;
    b->bound++; /* the scales */
    *out = (struct tensor){.data = q.data, .rank = 2, .dim = {q.rows, q.cols}};
    if (o->probe)
        return OK;
    float *all = family_own(b->m, q.rows * q.cols, sizeof *all);
    if (!all)
        return err_nomem(b->e, q.rows * q.cols * sizeof *all, name);
    fp8_read(&q, all);
    out->data = all;
    return OK;
}

static int fetch(struct binder *b, const char *name, struct tensor *out)
{
    const char *type;
    if (b->src->gguf)
        return gguf_tensor(b->src->gguf, name, out, b->e);
    type = safetensors_dtype(b->src->st, name);
    return type && !strcmp(type, "F8_E4M3") ? fetch_fp8(b, name, out)
                                            : safetensors_get(b->src->st, name, out, b->e);
}

static int bind_one(struct binder *b, const struct family_slot *slot, const char *name,
                    struct tensor *out)
{
    bool probe = ((struct model_owner *)b->m->owner)->probe;
    bool optional = (slot->flags & SLOT_OPTIONAL) ||
                    (b->src->gguf && (slot->flags & (SLOT_ATTN_BIAS | SLOT_MLP_BIAS)));
    if (optional && !source_has(b->src, name))
        return OK;
    int rc = fetch(b, name, out);
    if (!rc)
        rc = check_shape(b, slot, name, out);
    if (rc)
        return rc;
    b->bound++;
    b->m->parameters += tensor_elements(out);
    b->bytes[out->dtype] += tensor_bytes(out);
    if (probe)
        return OK;
    if ((b->src->gguf && (slot->flags & SLOT_ROPE_ROWS)) ||
        ((slot->flags & SLOT_MLA_ROPE) && !b->map->half_split))
        rc = reorder(b, slot, out);
    else if (b->src->st && (slot->flags & SLOT_ADD_ONE))
        rc = add_one(b, out);
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

static bool slot_end(const struct family_slot *slot)
{
    return !slot->gguf && !slot->hf;
}

/* The slot has a tensor in this layer of this model. */
static bool wanted(const struct binder *b, const struct family_slot *slot, int l)
{
    const struct model_hparams *hp = &b->m->hp;
    bool moe = model_layer_moe(hp, l);
    unsigned f = slot->flags, bias = f & (SLOT_ATTN_BIAS | SLOT_MLP_BIAS);
    if (bias && b->src->st && !(b->map->biases & bias))
        return false;
    return slot_name(b, slot) && !((f & SLOT_DENSE) && moe) && !((f & SLOT_MOE) && !moe) &&
           !((f & SLOT_Q_LORA) && !hp->q_lora_rank) && !((f & SLOT_Q_FULL) && hp->q_lora_rank) &&
           !((f & SLOT_SHARED) && !hp->moe.shared_ffn) &&
           !((f & SLOT_EXPERTS) && ((f & SLOT_STACKED) != 0) != b->map->stacked) &&
           !((f & SLOT_KV_WHOLE) && b->map->split_kv) &&
           !((f & SLOT_KV_SPLIT) && !b->map->split_kv);
}

/* Rows [from, from + rows) of a matrix. */
static struct tensor row_view(const struct tensor *t, size_t from, size_t rows)
{
    struct tensor v = *t;
    v.data = (const char *)t->data + from * dtype_bytes(t->dtype, t->dim[1]);
    v.dim[0] = rows;
    return v;
}

static void split(const struct binder *b, const struct family_slot *slot, struct model_layer *y)
{
    struct tensor whole = slot->flags & SLOT_QKV ? y->q : y->gate;
    size_t q = dim_of(&b->m->hp, DIM_Q), kv = dim_of(&b->m->hp, DIM_KV), F = (size_t)b->m->hp.ffn;
    if (slot->flags & SLOT_QKV) {
        y->q = row_view(&whole, 0, q);
        y->k = row_view(&whole, q, kv);
        y->v = row_view(&whole, q + kv, kv);
    } else {
        y->gate = row_view(&whole, 0, F);
        y->up = row_view(&whole, F, F);
    }
}

/* Before experts were stacked, "ffn_up_exps.weight" was "ffn_up.#.weight". */
static const char *loose_pattern(const char *stacked_name, char *to, size_t size)
{
    size_t n = strlen(stacked_name) - strlen("_exps.weight");
    snprintf(to, size, "%.*s.#.weight", (int)n, stacked_name);
    return to;
}

static const char *slot_pattern(const struct binder *b, const struct family_slot *slot, char *to,
                                size_t size)
{
    const char *name = slot_name(b, slot);
    return name && b->loose && (slot->flags & SLOT_EXPERTS) ? loose_pattern(name, to, size) : name;
}

/* pattern with its "#", if any, replaced. */
static void layer_name(const struct binder *b, const char *pattern, int l, int expert, char *name,
                       size_t size)
{
    const char *prefix = b->src->gguf ? b->map->gguf_layer : b->map->hf_layer;
    const char *hash = strchr(pattern, '#');
    if (hash)
        snprintf(name, size, "%s%d.%.*s%d%s", prefix, l, (int)(hash - pattern), pattern, expert,
                 hash + 1);
    else
        snprintf(name, size, "%s%d.%s", prefix, l, pattern);
}

static int bind_experts(struct binder *b, const struct family_slot *slot, int l,
                        struct model_layer *y)
{
    size_t n = (size_t)b->m->hp.moe.n;
    char name[160], buffer[96];
    const char *pattern = slot_pattern(b, slot, buffer, sizeof buffer);
    if (!y->expert && !(y->expert = family_own(b->m, n * EXPERT_PARTS, sizeof *y->expert)))
        return err_nomem(b->e, n * EXPERT_PARTS * sizeof *y->expert, "experts");
    if (!stacked(b, slot)) {
        int rc = OK;
        for (size_t i = 0; i < n && !rc; i++) {
            layer_name(b, pattern, l, (int)i, name, sizeof name);
            rc = bind_one(b, slot, name, &y->expert[i * EXPERT_PARTS + slot->at]);
        }
        return rc;
    }
    struct tensor all;
    layer_name(b, pattern, l, 0, name, sizeof name);
    int rc = bind_one(b, slot, name, &all);
    /* Rows of the parts of an expert follow each other: gate, or gate and then up. */
    size_t parts = slot->flags & SLOT_GATE_UP ? 2 : 1;
    for (size_t i = 0; i < n * parts && !rc; i++) {
        struct tensor one = {
            .dtype = all.dtype, .rank = 2, .dim = {all.dim[1] / parts, all.dim[2]}};
        one.data = (const char *)all.data + i * dtype_bytes(one.dtype, one.dim[0] * one.dim[1]);
        y->expert[i / parts * EXPERT_PARTS + slot->at + i % parts] = one;
    }
    return rc;
}

static int bind_layer(struct binder *b, int l, void *layer)
{
    int rc = OK;
    for (const struct family_slot *slot = b->map->layer; !slot_end(slot) && !rc; slot++) {
        if (!wanted(b, slot, l))
            continue;
        if (slot->flags & SLOT_EXPERTS) {
            rc = bind_experts(b, slot, l, layer);
            continue;
        }
        char name[160];
        layer_name(b, slot_name(b, slot), l, 0, name, sizeof name);
        rc = bind_one(b, slot, name, (struct tensor *)((char *)layer + slot->at));
        if (!rc && (slot->flags & (SLOT_QKV | SLOT_GATE_UP)))
            split(b, slot, layer);
    }
    return rc;
}

/* The tensor that this slot takes in layer l, for some expert where it has several. */
static bool takes(const struct binder *b, const struct family_slot *slot, int l, const char *name)
{
    const char *prefix = b->src->gguf ? b->map->gguf_layer : b->map->hf_layer;
    char want[160], buffer[96];
    const char *pattern = slot_pattern(b, slot, buffer, sizeof buffer);
    const char *hash = pattern ? strchr(pattern, '#') : NULL;
    int expert = 0;
    if (!wanted(b, slot, l))
        return false;
    if (hash) {
        const char *rest = strchr(name + strlen(prefix), '.');
        size_t at = (size_t)(hash - pattern);
        expert = rest && strlen(rest + 1) > at ? atoi(rest + 1 + at) : -1;
        if (expert < 0 || expert >= b->m->hp.moe.n)
            return false;
    }
    layer_name(b, pattern, l, expert, want, sizeof want);
    return !strcmp(name, want);
}

/* Scales belong to the matrix of the same name, which is bound with them. */
static bool is_scale(const struct binder *b, const char *name)
{
    char matrix[512];
    size_t n = strlen(name), k = strlen(FP8_SCALE);
    if (!b->src->st || !text_ends_with(name, FP8_SCALE) || n - k >= sizeof matrix)
        return false;
    snprintf(matrix, sizeof matrix, "%.*s", (int)(n - k), name);
    return safetensors_has(b->src->st, matrix);
}

/* A tensor that some slot of the map would take, or one that carries no weights. */
static bool known(const struct binder *b, const char *name)
{
    const struct model_hparams *hp = &b->m->hp;
    for (const struct family_slot *slot = b->map->global; !slot_end(slot); slot++)
        if (slot_name(b, slot) && !strcmp(name, slot_name(b, slot)))
            return true;
    for (const char *const *end = b->map->ignored; end && *end; end++)
        if (text_ends_with(name, *end))
            return true;
    for (const char *const *start = b->map->left_out; start && *start; start++)
        if (!strncmp(name, *start, strlen(*start)))
            return true;
    const char *prefix = b->src->gguf ? b->map->gguf_layer : b->map->hf_layer;
    int l = strncmp(name, prefix, strlen(prefix)) ? -1 : atoi(name + strlen(prefix));
    if (l >= hp->n_layer && l - hp->n_layer < hp->skipped_layers)
        return true;
    for (const struct family_slot *slot = b->map->layer; !slot_end(slot); slot++)
        if (l >= 0 && l < hp->n_layer && takes(b, slot, l, name))
            return true;
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
        if (!known(b, name) && !is_scale(b, name))
            return err_set(b->e, ERR_UNSUPPORTED,
                           "%s: tensor %s has no place in the %s family with %d layers",
                           b->src->where, name, b->m->hp.family, b->m->hp.n_layer);
    }
    return OK;
}

/* Frequencies into freq[dim/2]; GGUF keeps llama3 scaling as a list of divisors. */
static int rope_table(struct binder *b, const struct rope_spec *rope, int dim, double *freq)
{
    const char *name = "rope_freqs.weight";
    float divisor[MAX_HEAD_DIM / 2];
    struct tensor t;
    int half = dim / 2;
    ropefreq_fill(rope, dim, freq);
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
    return ropefreq_usable(freq, half, b->src->where, b->e);
}

static int rope_width(const struct model_hparams *hp, const struct rope_spec *rope)
{
    return hp->kv_lora_rank ? hp->qk_rope_head_dim : rope->dim ? rope->dim : hp->head_dim;
}

/* The context that yarn stretches is often stated before the stretching. */
static void scale_context(struct model_hparams *hp, const struct rope_spec *rope)
{
    double whole = rope->kind == ROPE_YARN ? rope->factor * rope->original_context : 0;
    if (whole > hp->context)
        hp->context = whole < MAX_CONTEXT ? (int)whole : MAX_CONTEXT;
    if (rope->magnitude > 0)
        hp->rope_magnitude = rope->magnitude;
}

static int new_layers(struct binder *b, const struct rope_spec *rope)
{
    struct model *m = b->m;
    struct model_hparams *hp = &m->hp;
    int dim = rope_width(hp, rope);
    /* The file must hold the layers before memory for them is asked for. */
    if ((size_t)hp->n_layer > source_count(b->src))
        return err_set(b->e, ERR_FORMAT, "%s: %d layers, but only %zu tensors", b->src->where,
                       hp->n_layer, source_count(b->src));
    if (dim < 2 || dim % 2 || dim > hp->head_dim)
        return err_set(b->e, ERR_FORMAT, "%s: %d of %d numbers of a head are rotated",
                       b->src->where, dim, hp->head_dim);
    scale_context(hp, rope);
    m->layer = mem_calloc((size_t)hp->n_layer, sizeof *m->layer);
    double *freq = family_own(m, (size_t)dim / 2, sizeof *freq);
    if (!m->layer || !freq)
        return err_nomem(b->e, (size_t)hp->n_layer * sizeof *m->layer, "layers");
    for (int l = 0; l < hp->n_layer; l++)
        m->layer[l] = (struct model_layer){.attn = hp->kv_lora_rank ? ATTN_MLA : ATTN_GQA,
                                           .kv_lora_rank = hp->kv_lora_rank,
                                           .qk_rope_head_dim = hp->qk_rope_head_dim,
                                           .qk_nope_head_dim = hp->qk_nope_head_dim,
                                           .v_head_dim = hp->v_head_dim,
                                           .rope_dim = dim,
                                           .rope_freq = freq,
                                           .attn_scale = hp->attn_scale};
    return rope_table(b, rope, dim, freq);
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

int family_bind_layer(struct model *m, const struct family_source *src,
                      const struct family_map *map, int l, void *into, struct err *e)
{
    struct binder b = {.m = m, .src = src, .map = map, .e = e};
    return bind_layer(&b, l, into);
}

int family_bind(struct model *m, const struct family_source *src, const struct family_map *map,
                const struct rope_spec *rope, struct err *e)
{
    struct binder b = {.m = m, .src = src, .map = map, .e = e};
    int rc = family_check_hparams(&m->hp, src->where, e);
    char first[64];
    snprintf(first, sizeof first, "blk.%d.ffn_gate.0.weight", m->hp.moe.first_layer);
    b.loose = src->gguf && m->hp.moe.n && gguf_has_tensor(src->gguf, first);
    if (!rc)
        rc = new_layers(&b, rope);
    for (const struct family_slot *slot = map->global; !slot_end(slot) && !rc; slot++)
        rc = bind_one(&b, slot, slot_name(&b, slot), (struct tensor *)((char *)m + slot->at));
    for (int l = 0; l < m->hp.n_layer && !rc; l++)
        rc = bind_layer(&b, l, &m->layer[l]);
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

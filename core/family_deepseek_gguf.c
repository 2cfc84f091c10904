/* DeepSeek V2 and V3 from GGUF (architecture deepseek2, which other MLA models travel as, converted
 * ones among them): sizes of heads, experts, and kv_b either whole or, since llama.cpp absorbs it,
 * a matrix for keys and one for values of each head. The latent's norm uses the one epsilon of the
 * file.
 *
 * Refuses key lengths without room for both parts, unknown gating functions, and what
 * family_config.c and family_rope.c refuse. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/family.h"
#include "core/gguf.h"

static const char arch[] = "deepseek2";

enum { GATING_NONE, GATING_SOFTMAX, GATING_SIGMOID, GATING_SOFTMAX_CHOSEN };

struct number {
    const char *name;
    long long min, max, fallback;
    int *out;
};

static int read_numbers(const struct gguf *g, const struct number *list, size_t n, struct err *e)
{
    int rc = OK;
    for (size_t i = 0; i < n && !rc; i++)
        rc = family_gguf_int(g, arch, list[i].name, list[i].min, list[i].max, list[i].fallback,
                             list[i].out, e);
    return rc;
}

static int read_heads(struct model_hparams *hp, const struct gguf *g, struct err *e)
{
    int key = 0, value = 0, R = 0;
    const struct number plain[] = {
        {"attention.kv_lora_rank", 1, 1 << 14, -1, &hp->kv_lora_rank},
        {"attention.q_lora_rank", 0, 1 << 16, 0, &hp->q_lora_rank},
        {"rope.dimension_count", 2, 1024, -1, &R},
        {"attention.key_length", 1, 1 << 20, -1, &key},
        {"attention.value_length", 1, 1 << 20, -1, &value},
        {"nextn_predict_layers", 0, hp->n_layer - 1, 0, &hp->skipped_layers},
    };
    int rc = read_numbers(g, plain, sizeof plain / sizeof *plain, e);
    /* Of the absorbed form; there the lengths above are the cache's. */
    const struct number absorbed[] = {
        {"attention.key_length_mla", 1, 2048, key, &key},
        {"attention.value_length_mla", 1, 1024, value, &value},
    };
    if (!rc)
        rc = read_numbers(g, absorbed, sizeof absorbed / sizeof *absorbed, e);
    if (!rc && key <= R)
        rc = err_set(e, ERR_FORMAT, "%s: keys of %d numbers a head, %d of them rotated",
                     gguf_path(g), key, R);
    if (rc)
        return rc;
    hp->n_layer -= hp->skipped_layers;
    hp->qk_rope_head_dim = R;
    hp->qk_nope_head_dim = key - R;
    hp->v_head_dim = value;
    hp->n_kv_head = hp->n_head; /* every head has keys of its own once expanded */
    hp->head_dim = key;
    hp->attn_scale = 1 / sqrt(key);
    return OK;
}

static int read_experts(struct model_hparams *hp, const struct gguf *g, struct err *e)
{
    struct model_moe *moe = &hp->moe;
    int shared = 0, gating = 0;
    const struct number numbers[] = {
        {"expert_count", 0, MODEL_MAX_EXPERTS, 0, &moe->n},
        {"expert_used_count", 0, MODEL_MAX_EXPERTS, 0, &moe->used},
        {"expert_feed_forward_length", 0, 1 << 20, 0, &moe->ffn},
        {"expert_shared_count", 0, MODEL_MAX_EXPERTS, 0, &shared},
        {"leading_dense_block_count", 0, 1 << 20, 0, &moe->first_layer},
        {"expert_group_count", 0, MODEL_MAX_EXPERTS, 0, &moe->groups},
        {"expert_group_used_count", 0, MODEL_MAX_EXPERTS, 0, &moe->groups_used},
        {"expert_gating_func", 0, 255, GATING_NONE, &gating},
    };
    int rc = read_numbers(g, numbers, sizeof numbers / sizeof *numbers, e);
    if (rc)
        return rc;
    if (!moe->n || moe->first_layer >= hp->n_layer) {
        *moe = (struct model_moe){0};
        return OK;
    }
    if (gating > GATING_SOFTMAX_CHOSEN)
        return err_set(e, ERR_UNSUPPORTED, "%s: expert_gating_func %d; 1 to 3 can be computed",
                       gguf_path(g), gating);
    if (moe->groups <= 1)
        moe->groups = moe->groups_used = 0;
    moe->shared_ffn = (int)((long long)shared * moe->ffn <= 1 << 20 ? shared * moe->ffn : -1);
    moe->sigmoid = gating == GATING_SIGMOID;
    moe->renormalise =
        gating == GATING_SOFTMAX_CHOSEN || gguf_bool_or(g, "deepseek2.expert_weights_norm", false);
    moe->scale = gguf_num_or(g, "deepseek2.expert_weights_scale", 0);
    if (moe->scale == 0) /* as llama.cpp: not set */
        moe->scale = 1;
    return OK;
}

/* kv_b [H·(P+Vd)][r] from keys [H][r][P] and values [H][Vd][r], in their type if it is plain. */
static int join_layer(struct model *m, struct model_layer *y, struct err *e)
{
    size_t H = (size_t)m->hp.n_head, r = (size_t)m->hp.kv_lora_rank;
    size_t P = (size_t)m->hp.qk_nope_head_dim, Vd = (size_t)m->hp.v_head_dim;
    size_t n = H * (P + Vd) * r;
    bool plain = y->k.dtype == y->v.dtype && dtype_traits(y->k.dtype)->block == 1;
    enum dtype type = plain ? y->k.dtype : DTYPE_F32;
    float *k = NULL, *v = NULL, *all = mem_calloc(n, sizeof *all);
    void *own = family_own(m, n, dtype_bytes(type, 1));
    int rc = all && own ? OK : err_nomem(e, n * sizeof *all, "key and value maps");
    if (!rc)
        rc = tensor_to_f32(&y->k, &k, e);
    if (!rc)
        rc = tensor_to_f32(&y->v, &v, e);
    for (size_t h = 0; h < H && !rc; h++) {
        float *to = all + h * (P + Vd) * r;
        for (size_t p = 0; p < P; p++)
            for (size_t c = 0; c < r; c++)
                to[p * r + c] = k[(h * r + c) * P + p];
        for (size_t i = 0; i < Vd * r; i++)
            to[P * r + i] = v[h * Vd * r + i];
    }
    if (!rc)
        dtype_from_f32(type, all, own, n); /* back to the type that they come from: exact */
    y->kv_b = (struct tensor){.data = own, .dtype = type, .rank = 2, .dim = {H * (P + Vd), r}};
    y->k = y->v = (struct tensor){0};
    free(all);
    free(k);
    free(v);
    return rc;
}

int family_deepseek_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    const struct family_map map = {.global = family_global_slots,
                                   .layer = family_deepseek_slots,
                                   .gguf_layer = "blk.",
                                   .hf_layer = "model.layers.",
                                   .ignored = family_ignored,
                                   .split_kv = !gguf_has_tensor(g, "blk.0.attn_kv_b.weight")};
    struct rope_spec rope;
    int rc = family_gguf_base(m, g, arch, GGUF_EXPERTS | GGUF_MLA, e);
    if (!rc)
        rc = read_heads(&m->hp, g, e);
    if (!rc)
        rc = read_experts(&m->hp, g, e);
    if (!rc)
        rc = family_rope_gguf(g, arch, &rope, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    if (rope.logit_scale > 0)
        m->hp.attn_scale *= rope.logit_scale;
    rc = family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &map, &rope, e);
    for (int l = 0; !rc && l < m->hp.n_layer; l++) {
        m->layer[l].latent_eps = m->hp.rms_eps;
        if (map.split_kv && !((struct model_owner *)m->owner)->probe)
            rc = join_layer(m, &m->layer[l], e);
    }
    return rc;
}

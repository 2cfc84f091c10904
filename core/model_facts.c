/* What can be said about a model without computing anything: whether it converts and why not, and
 * what its cache takes. */
#include "core/kvmem.h"
#include "core/model.h"

/* The attention of one layer, against what the conversion computes. */
static const char *layer_convertible(const struct model *m, int l)
{
    const struct model_layer *y = &m->layer[l];
    if (y->attn == ATTN_MLA)
        return "its attention is MLA already";
    if (y->q_bias.data || y->k_bias.data || y->v_bias.data || y->o_bias.data)
        return "conversion of attention with biases is not built yet";
    if (y->q_norm.data || y->k_norm.data)
        return "conversion of attention that norms its queries and keys is not built yet";
    if (y->window && y->window < m->hp.context)
        return "conversion of attention with a sliding window is not built yet";
    if (y->rope_dim != m->hp.head_dim)
        return "conversion of attention that rotates part of a head is not built yet";
    if (y->rope_freq_long || m->hp.rope_magnitude > 0)
        return "conversion of longrope attention is not built yet";
    if (y->attn_scale != m->layer[0].attn_scale)
        return "conversion of layers that differ from each other is not built yet";
    for (int j = 0; j < y->rope_dim / 2; j++)
        if (y->rope_freq[j] != m->layer[0].rope_freq[j])
            return "conversion of layers with ropes of their own is not built yet";
    return NULL;
}

const char *model_convertible(const struct model *m)
{
    const char *why = NULL;
    for (int l = 0; l < m->hp.n_layer && !why; l++)
        why = layer_convertible(m, l);
    if (why)
        return why;
    if (m->hp.attn_softcap > 0)
        return "conversion of attention with a soft cap is not built yet";
    if (m->hp.moe.n)
        return "conversion of models with experts is not tested yet";
    if (m->hp.logit_softcap > 0 || m->hp.embed_scale > 0 || m->layer[0].post_attn_norm.data)
        return "conversion of models with extra norms or scaled embeddings is not built yet";
    return NULL;
}

long long model_kv_numbers(const struct model_hparams *hp)
{
    int one = hp->kv_lora_rank ? kvmem_mla_numbers(hp->kv_lora_rank, hp->qk_rope_head_dim)
                               : kvmem_gqa_numbers(hp->n_kv_head, hp->head_dim);
    return (long long)hp->n_layer * one;
}

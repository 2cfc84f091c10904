/* What can be said about a model without computing anything: whether it converts and why not, and
 * what its cache takes. */
#include "core/kvmem.h"
#include "core/model.h"

const char *model_convertible(const struct model *m)
{
    for (int l = 0; l < m->hp.n_layer; l++) {
        const struct model_layer *y = &m->layer[l];
        if (y->attn == ATTN_MLA)
            return "its attention is MLA already";
        if (!y->q_norm.data != !y->k_norm.data)
            return "conversion of attention that norms only queries or only keys is not built yet";
        if (y->q_norm.data && (y->q_bias.data || y->k_bias.data || y->v_bias.data))
            return "conversion of attention with both norms and biases is not built yet";
        if (y->rope_dim < 2)
            return "conversion of layers without a rotary part is not built yet";
    }
    return NULL;
}

bool model_layer_moe(const struct model_hparams *hp, int l)
{
    return hp->moe.n && l >= hp->moe.first_layer && !hp->moe.dense[l];
}

long long model_kv_numbers(const struct model_hparams *hp)
{
    int one = hp->kv_lora_rank ? kvmem_mla_numbers(hp->kv_lora_rank, hp->qk_rope_head_dim)
                               : kvmem_gqa_numbers(hp->n_kv_head, hp->head_dim);
    return (long long)hp->n_layer * one;
}

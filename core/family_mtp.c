/* The multi-token prediction layer of a DeepSeek-V3 checkpoint, named as the layer after the last.
 * Copies of the embedding and the head that the file may hold for it are not read: they are shared.
 * Leaves out, and leaves counted, several such layers and layers that another program laid out. */
#include <stdio.h>

#include "core/family.h"
#include "core/mtp.h"
#include "core/safetensors.h"

static const struct family_slot slots[] = {
    {NULL, "enorm.weight", offsetof(struct model_mtp, enorm), DIM_HIDDEN, DIM_NONE, 0},
    {NULL, "hnorm.weight", offsetof(struct model_mtp, hnorm), DIM_HIDDEN, DIM_NONE, 0},
    {NULL, "eh_proj.weight", offsetof(struct model_mtp, eh_proj), DIM_HIDDEN, DIM_HIDDEN_TWICE, 0},
    {NULL, "shared_head.norm.weight", offsetof(struct model_mtp, model.final_norm), DIM_HIDDEN,
     DIM_NONE, 0},
    {0},
};

int family_mtp(struct model *m, const struct family_source *src, const struct family_map *map,
               struct err *e)
{
    int L = m->hp.n_layer;
    char name[96];
    snprintf(name, sizeof name, "%s%d.eh_proj.weight", map->hf_layer, L);
    if (m->hp.skipped_layers != 1 || !src->st || !safetensors_has(src->st, name) ||
        L >= MODEL_MAX_LAYERS)
        return OK;
    struct model_mtp *x = family_own(m, 1, sizeof *x);
    struct model_layer *y = family_own(m, 1, sizeof *y);
    struct family_map own = *map;
    if (!x || !y)
        return err_nomem(e, sizeof *y, "a prediction layer");
    own.layer = slots;
    const struct model_layer *last = &m->layer[L - 1];
    *x = (struct model_mtp){.model = {.hp = m->hp, .format = m->format, .layer = y}};
    *y = (struct model_layer){.attn = last->attn,
                              .kv_lora_rank = last->kv_lora_rank,
                              .qk_rope_head_dim = last->qk_rope_head_dim,
                              .qk_nope_head_dim = last->qk_nope_head_dim,
                              .v_head_dim = last->v_head_dim,
                              .rope_dim = last->rope_dim,
                              .rope_freq = last->rope_freq,
                              .rope_freq_long = last->rope_freq_long,
                              .attn_scale = last->attn_scale,
                              .latent_eps = last->latent_eps};
    int rc = family_bind_layer(m, src, &own, L, x, e);
    if (!rc)
        rc = family_bind_layer(m, src, map, L, y, e);
    if (rc)
        return rc;
    x->model.hp.n_layer = 1;
    x->model.hp.skipped_layers = 0;
    x->model.hp.moe.first_layer = 0;
    x->model.hp.moe.dense[0] = false;
    if (!model_layer_moe(&m->hp, L))
        x->model.hp.moe = (struct model_moe){0};
    x->model.embed = m->embed;
    x->model.head = m->head;
    m->hp.skipped_layers = 0;
    m->mtp = x;
    return OK;
}

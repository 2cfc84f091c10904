/* SmolLM3: Llama with layers that nothing rotates, every fourth unless config.json lists others
 * (GGUF has no key for it). Refuses lists that are too short and what family_config.c and
 * family_rope.c refuse. */
#include <stdio.h>

#include "core/family.h"
#include "core/gguf.h"

#define INTERVAL 4

static const struct family_map map = {
    .global = family_global_slots,
    .layer = family_llama_slots,
    .gguf_layer = "blk.",
    .hf_layer = "model.layers.",
    .ignored = family_ignored,
};

/* Layers whose turns[l] is false keep still. */
static int set_still(struct model *m, const bool *turns, struct err *e)
{
    size_t half = (size_t)m->hp.head_dim / 2;
    double *zero = family_own(m, half, sizeof *zero);
    if (!zero)
        return err_nomem(e, half * sizeof *zero, "rope frequencies");
    for (int l = 0; l < m->hp.n_layer; l++) {
        m->layer[l].no_rope = !turns[l];
        if (!turns[l])
            m->layer[l].rope_freq = zero;
    }
    return OK;
}

static void every(bool *turns, long long interval)
{
    for (int l = 0; l < MODEL_MAX_LAYERS; l++)
        turns[l] = (l + 1) % interval != 0;
}

static int read_turns(const cJSON *config, int n_layer, bool *turns, const char *where,
                      struct err *e)
{
    const cJSON *list = json_get(config, "no_rope_layers"), *item = list ? list->child : NULL;
    long long interval = INTERVAL;
    if (!list) {
        int rc = json_int_opt(config, "no_rope_layer_interval", 1, 1 << 20, &interval, where, e);
        every(turns, interval);
        return rc;
    }
    for (int l = 0; l < n_layer; l++, item = item->next) {
        double v = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (v != 0 && v != 1)
            return err_set(e, ERR_FORMAT,
                           "%s: \"no_rope_layers\" must hold a 1 (rope) or a 0 for each of %d "
                           "layers; layer %d has none",
                           where, n_layer, l);
        turns[l] = v == 1;
    }
    return OK;
}

/* Where windows are used at all, the layers without rope have one unless layer_types differs. */
static int set_windows(struct model *m, const cJSON *config, const char *where, struct err *e)
{
    bool use = false, listed = false;
    int window = 0, rc = json_bool_opt(config, "use_sliding_window", &use, where, e);
    if (rc || !use)
        return rc;
    rc = family_hf_window(config, 0, &window, where, e);
    if (!rc)
        rc = family_hf_layer_types(m, config, window, &listed, where, e);
    for (int l = 0; !rc && !listed && l < m->hp.n_layer; l++)
        m->layer[l].window = m->layer[l].no_rope ? window : 0;
    return rc;
}

static int smollm3_hf(struct model *m, const struct cJSON *config, const char *where,
                      const struct safetensors *st, struct err *e)
{
    static const struct family_defaults defaults = {.theta = 2e6,
                                                    .eps = 1e-6,
                                                    .tied = true,
                                                    .act = "silu",
                                                    .act_key = "hidden_act",
                                                    .biases = true,
                                                    .mlp_biases = true};
    bool turns[MODEL_MAX_LAYERS];
    struct family_map with = map;
    struct rope_spec rope;
    int rc = family_hf_base(m, config, &defaults, where, e);
    if (!rc)
        rc = family_hf_biases(config, &with.biases, where, e);
    if (!rc)
        rc = family_rope_hf(config, defaults.theta, &rope, where, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = where, .st = st}, &with, &rope, e);
    if (!rc)
        rc = read_turns(config, m->hp.n_layer, turns, where, e);
    if (!rc)
        rc = set_still(m, turns, e);
    return rc ? rc : set_windows(m, config, where, e);
}

static int smollm3_gguf(struct model *m, const struct gguf *g, struct err *e)
{
    bool turns[MODEL_MAX_LAYERS];
    struct rope_spec rope;
    int rc = family_gguf_base(m, g, "smollm3", 0, e);
    if (!rc)
        rc = family_rope_gguf(g, "smollm3", &rope, e);
    if (rc)
        return rc;
    m->hp.rope_theta = rope.theta;
    rc = family_bind(m, &(struct family_source){.where = gguf_path(g), .gguf = g}, &map, &rope, e);
    every(turns, INTERVAL);
    return rc ? rc : set_still(m, turns, e);
}

const struct family family_smollm3 = {
    .name = "smollm3",
    .hf_model_types = (const char *const[]){"smollm3", NULL},
    .gguf_archs = (const char *const[]){"smollm3", NULL},
    .open_hf = smollm3_hf,
    .open_gguf = smollm3_gguf,
};

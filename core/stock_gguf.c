/* An export in the names, orders and metadata of llama.cpp's architecture deepseek2: kv_b split
 * into transposed keys and values of each head, one KV head, experts stacked. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/gguf_writer.h"
#include "core/stock_export.h"

struct lister {
    struct stock_export *x;
    int layer, rc;
    struct err *e;
};

/* The type that rows of cols numbers can have, nearest to the wanted one. */
static enum dtype row_type(enum dtype want, size_t cols)
{
    static const struct {
        enum dtype from, to;
    } next[] = {{DTYPE_Q4_K, DTYPE_Q4_1}, {DTYPE_Q6_K, DTYPE_Q8_0}};
    size_t i = 0;
    while (cols % (size_t)dtype_traits(want)->block && i < sizeof next / sizeof *next)
        if (next[i++].from == want)
            want = next[i - 1].to;
    return cols % (size_t)dtype_traits(want)->block ? DTYPE_F16 : want;
}

static struct stock_tensor *add(struct lister *a, const char *name, enum stock_make make,
                                enum dtype want, int rank, const size_t *dim)
{
    struct stock_tensor t = {.make = make, .layer = a->layer, .rank = rank};
    size_t cols = dim[rank - 1];
    if (a->rc)
        return NULL;
    memcpy(t.dim, dim, (size_t)rank * sizeof *dim);
    t.dtype = rank == 1 ? DTYPE_F32 : row_type(want, cols);
    if (a->layer < 0)
        snprintf(t.name, sizeof t.name, "%s", name);
    else
        snprintf(t.name, sizeof t.name, "blk.%d.%s", a->layer, name);
    /* Sizes are counted when the list is complete: callers fill in the rest. */
    a->rc = stock_add(a->x, t, a->e);
    return a->rc ? NULL : &a->x->tensor[a->x->n - 1];
}

static void copy(struct lister *a, const char *name, const struct tensor *from, enum dtype want,
                 double factor)
{
    struct stock_tensor *t = add(a, name, MAKE_COPY, want, from->rank, from->dim);
    if (t) {
        t->from = from;
        t->factor = factor;
    }
}

/* Half precision and blocks cannot hold latents at 2^-32 of their size; with the residual stream
 * scaled they need not be that small. Few as they are, they keep 16 bits. */
static enum dtype latent_type(enum dtype want)
{
    return want == DTYPE_F32 || want == DTYPE_BF16 ? want : DTYPE_F16;
}

static void list_attention(struct lister *a)
{
    struct stock_export *x = a->x;
    size_t H = (size_t)x->m->hp.n_head, D = (size_t)x->m->hp.hidden, c = (size_t)x->c;
    size_t P = (size_t)x->P, R = (size_t)x->R, V = (size_t)x->V;
    size_t q = (size_t)x->narrow_rank;
    if (q) {
        struct stock_tensor *norm =
            add(a, "attn_q_a_norm.weight", MAKE_FILL, DTYPE_F32, 1, (size_t[]){q});
        if (norm)
            norm->factor = x->norm_weight;
        add(a, "attn_q_a.weight", MAKE_NARROW, latent_type(x->dtype), 2, (size_t[]){q, D});
    }
    add(a, q ? "attn_q_b.weight" : "attn_q.weight", MAKE_QUERY, x->dtype, 2,
        (size_t[]){H * (P + R), q ? q : D});
    add(a, "attn_kv_a_mqa.weight", MAKE_LATENT, latent_type(x->dtype), 2, (size_t[]){c + R, D});
    struct stock_tensor *norm =
        add(a, "attn_kv_a_norm.weight", MAKE_FILL, DTYPE_F32, 1, (size_t[]){c});
    if (norm)
        norm->factor = x->norm_weight;
    /* Rows of P numbers do not hold K-quants' blocks; eight bits there cost little. */
    bool small = dtype_traits(x->dtype)->block > 1;
    add(a, "attn_k_b.weight", MAKE_UP_KEY, small ? DTYPE_Q8_0 : x->dtype, 3, (size_t[]){H, c, P});
    add(a, "attn_v_b.weight", MAKE_UP_VALUE, x->dtype, 3, (size_t[]){H, V, c});
}

static void list_experts(struct lister *a)
{
    static const char *const part[EXPERT_PARTS] = {"gate", "up", "down"};
    const struct model *m = a->x->m;
    const struct tensor *expert = m->layer[a->layer].expert;
    size_t E = (size_t)m->hp.moe.n;
    char name[64];
    copy(a, "ffn_gate_inp.weight", &m->layer[a->layer].router, DTYPE_F32, 1);
    for (int p = 0; p < EXPERT_PARTS; p++) {
        const size_t *one = expert[p].dim;
        double factor = p == EXPERT_DOWN ? ldexp(1, a->x->residual) : 1;
        snprintf(name, sizeof name, "ffn_%s_exps.weight", part[p]);
        struct stock_tensor *t =
            add(a, name, MAKE_COPY, a->x->dtype, 3, (size_t[]){E, one[0], one[1]});
        if (t) {
            t->from = &expert[p];
            t->count = (int)E;
            t->stride = EXPERT_PARTS;
            t->factor = factor;
        }
        snprintf(name, sizeof name, "ffn_%s_shexp.weight", part[p]); /* must be there: zeros */
        add(a, name, MAKE_FILL, a->x->dtype, 2, one);
    }
}

int stock_list_gguf(struct stock_export *x, struct err *e)
{
    struct lister a = {.x = x, .layer = -1, .e = e};
    const struct model *m = x->m;
    double residual = ldexp(1, x->residual), embed = m->hp.embed_scale > 0 ? m->hp.embed_scale : 1;
    copy(&a, "token_embd.weight", &m->embed, x->dtype, residual * embed);
    copy(&a, "output_norm.weight", &m->final_norm, DTYPE_F32, 1);
    bool low = dtype_traits(x->dtype)->block > 1;
    copy(&a, "output.weight", &m->head, low ? DTYPE_Q8_0 : x->dtype, 1);
    for (a.layer = 0; a.layer < m->hp.n_layer; a.layer++) {
        const struct model_layer *y = &m->layer[a.layer];
        copy(&a, "attn_norm.weight", &y->attn_norm, DTYPE_F32, 1);
        list_attention(&a);
        copy(&a, "attn_output.weight", &y->o, x->dtype, residual);
        copy(&a, "ffn_norm.weight", &y->ffn_norm, DTYPE_F32, 1);
        if (y->expert) {
            list_experts(&a);
            continue;
        }
        copy(&a, "ffn_gate.weight", &y->gate, x->dtype, 1);
        copy(&a, "ffn_up.weight", &y->up, x->dtype, 1);
        copy(&a, "ffn_down.weight", &y->down, x->dtype, residual);
    }
    return a.rc;
}

/* general.file_type of the format. */
static uint32_t file_type(enum dtype t)
{
    static const struct {
        enum dtype dtype;
        uint32_t number;
    } types[] = {{DTYPE_F32, 0},  {DTYPE_F16, 1},   {DTYPE_Q4_0, 2},  {DTYPE_Q4_1, 3},
                 {DTYPE_Q8_0, 7}, {DTYPE_Q4_K, 15}, {DTYPE_Q6_K, 18}, {DTYPE_BF16, 32}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].dtype == t)
            return types[i].number;
    return 0;
}

void stock_gguf_keys(const struct stock_export *x, const char *name, struct gguf_writer *w)
{
    const struct model_hparams *hp = &x->m->hp;
    bool moe = hp->moe.n > 0;
    const struct {
        const char *key;
        int value;
    } sizes[] = {
        {"deepseek2.block_count", hp->n_layer},
        {"deepseek2.context_length", hp->context},
        {"deepseek2.embedding_length", hp->hidden},
        {"deepseek2.feed_forward_length", hp->ffn},
        {"deepseek2.vocab_size", (int)x->m->embed.dim[0]},
        {"deepseek2.attention.head_count", hp->n_head},
        {"deepseek2.attention.head_count_kv", 1},
        {"deepseek2.attention.q_lora_rank", x->narrow_rank},
        {"deepseek2.attention.kv_lora_rank", x->c},
        {"deepseek2.attention.key_length", x->c + x->R},
        {"deepseek2.attention.value_length", x->c},
        {"deepseek2.attention.key_length_mla", x->P + x->R},
        {"deepseek2.attention.value_length_mla", x->V},
        {"deepseek2.rope.dimension_count", x->R},
        {"deepseek2.leading_dense_block_count", moe ? 0 : hp->n_layer},
        {"deepseek2.expert_feed_forward_length", moe ? hp->moe.ffn : hp->ffn},
        {"deepseek2.expert_shared_count", moe ? 1 : 0},
    };
    gguf_writer_str(w, "general.architecture", "deepseek2");
    gguf_writer_str(w, "general.type", "model");
    gguf_writer_str(w, "general.name", name);
    gguf_writer_u32(w, "general.file_type", file_type(x->dtype));
    gguf_writer_u32(w, "general.quantization_version", 2);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        gguf_writer_u32(w, sizes[i].key, (uint32_t)sizes[i].value);
    gguf_writer_num(w, "deepseek2.attention.layer_norm_rms_epsilon", x->rms_eps);
    gguf_writer_num(w, "deepseek2.rope.freq_base", x->theta);
    if (!moe)
        return;
    gguf_writer_u32(w, "deepseek2.expert_count", (uint32_t)hp->moe.n);
    gguf_writer_u32(w, "deepseek2.expert_used_count", (uint32_t)hp->moe.used);
    gguf_writer_u32(w, "deepseek2.expert_gating_func", 1);      /* softmax, */
    gguf_writer_bool(w, "deepseek2.expert_weights_norm", true); /* then renormalised */
    gguf_writer_num(w, "deepseek2.expert_weights_scale", 1);
}

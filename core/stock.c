/* The matrix of engines: what DeepSeek's classes compute in transformers, vLLM, SGLang and
 * llama.cpp, held against what a model needs. Refuses nothing itself: it says. */
#include "core/stock.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/kvmem.h"

#define GRID_TOLERANCE 1e-6 /* relative; configurations round theta to fp32 */

const char *stock_key(enum stock_engine t)
{
    static const char *const keys[STOCK_ENGINES] = {"hf", "vllm", "sglang", "gguf"};
    return keys[t];
}

bool stock_find(const char *key, enum stock_engine *out)
{
    int t = 0;
    while (t < STOCK_ENGINES && strcmp(key, stock_key((enum stock_engine)t)))
        t++;
    *out = (enum stock_engine)t;
    return t < STOCK_ENGINES;
}

const char *stock_name(enum stock_engine t)
{
    static const char *const names[STOCK_ENGINES] = {"transformers", "vLLM", "SGLang", "llama.cpp"};
    return names[t];
}

/* How many of the frequencies are the unscaled ones. */
static int grid_pairs(const double *freq, int n, double theta)
{
    int j = 0;
    while (j < n && fabs(freq[j] * pow(theta, (double)j / n) - 1) <= GRID_TOLERANCE)
        j++;
    return j;
}

void stock_facts_of(const struct model *base, struct stock_facts *out)
{
    const struct model_hparams *hp = &base->hp;
    int turning = 0;
    while (turning < hp->n_layer - 1 && base->layer[turning].no_rope)
        turning++;
    const struct model_layer *first = &base->layer[turning];
    int half = first->rope_dim / 2;
    *out = (struct stock_facts){.n_head = hp->n_head,
                                .n_kv_head = hp->n_kv_head,
                                .head_dim = hp->head_dim,
                                .rope_dim = first->rope_dim,
                                .experts = hp->moe.n,
                                .soft_caps = hp->attn_softcap > 0 || hp->logit_softcap > 0,
                                .gelu = hp->act != GLU_SILU,
                                .own_router = hp->moe.sigmoid || hp->moe.groups ||
                                              hp->moe.shared_ffn || hp->moe.first_layer};
    if (hp->moe.n)
        out->own_router |= !hp->moe.renormalise || hp->moe.scale != 1;
    for (int l = 0; l < hp->n_layer; l++) {
        const struct model_layer *y = &base->layer[l];
        if (y->window && y->window < hp->context)
            out->window = y->window;
        out->biases |= y->q_bias.data || y->k_bias.data || y->v_bias.data || y->o_bias.data;
        out->head_norms |= y->q_norm.data || y->k_norm.data;
        out->post_norms |= y->post_attn_norm.data || y->post_ffn_norm.data || y->gate_bias.data ||
                           y->up_bias.data || y->down_bias.data;
        out->long_rope |= y->rope_freq_long != NULL;
        out->still |= y->no_rope;
        if (y->no_rope)
            continue;
        out->two_ropes |= y->rope_dim != first->rope_dim ||
                          memcmp(y->rope_freq, first->rope_freq, (size_t)half * sizeof(double));
    }
    out->grid_pairs = grid_pairs(first->rope_freq, half, hp->rope_theta);
}

static void refuse(struct stock_verdict *v, const char *brief, const char *text)
{
    v->fit = STOCK_NO;
    snprintf(v->brief, sizeof v->brief, "%s", brief);
    snprintf(v->text, sizeof v->text, "%s", text);
}

/* What no sizes can mend; false when the model itself fits. */
static bool refuse_model(const struct stock_facts *f, enum stock_engine t, struct stock_verdict *v)
{
    char window[256];
    snprintf(window, sizeof window,
             "its layers see only the last %d tokens, and no MLA class has such a window",
             f->window);
    const bool elsewhere = t != STOCK_HF;
    const struct {
        bool is;
        const char *brief, *text;
    } list[] = {
        {f->head_norms, "normed heads",
         "its heads are normed before the rotation, and no DeepSeek class has such a norm"},
        {f->soft_caps, "soft caps", "its logits have a soft cap, which MLA attention has nowhere"},
        {f->post_norms || f->gelu, "other norms or activation",
         "its layers have norms, feed-forward biases or an activation that DeepSeek classes do not "
         "have"},
        {f->own_router, "other routing",
         "its experts are routed in a way that no engine's MLA class shares"},
        {f->two_ropes, "several ropes",
         "its layers rotate at different frequencies, and MLA classes know one list"},
        {f->window > 0, "sliding window", window},
        {elsewhere && f->biases, "biases",
         "it has query, key and value biases, which the engine drops without a word; export to hf "
         "(vLLM runs that with --model-impl transformers), or nearly, with --fold-biases"},
        {elsewhere && f->long_rope, "longrope",
         "its longrope has two lists of frequencies, which only transformers reads"},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i].is) {
            refuse(v, list[i].brief, list[i].text);
            return true;
        }
    return false;
}

static void extremes(const struct rankplan *p, int *rank, int *rope, int *least_rope)
{
    *rank = *rope = 0;
    *least_rope = p->layer[0].qk_rope_head_dim;
    for (int l = 0; l < p->model.n_layer; l++) {
        int r = p->layer[l].kv_lora_rank, R = p->layer[l].qk_rope_head_dim;
        *rank = r > *rank ? r : *rank;
        *rope = R > *rope ? R : *rope;
        *least_rope = R < *least_rope ? R : *least_rope;
    }
}

bool stock_shares_frequencies(const struct stock_facts *f, const struct rankplan *p)
{
    int rank, rope, least;
    extremes(p, &rank, &rope, &least);
    if (p->method == METHOD_TRANSMLA) /* grids of different steps are different frequencies */
        return rope == least;
    if (p->layout == LAYOUT_OWN) /* every frequency of every head: the list is the same again */
        return !f->still && least == f->n_kv_head * f->rope_dim;
    return true;
}

/* The kernels of the servers are built for a few sizes; what is smaller is filled with zeros. */
static bool served_size(int rank, int rope, struct stock_verdict *v)
{
    static const int sizes[][2] = {{256, 64}, {512, 64}, {448, 128}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (rank > sizes[i][0] || rope > sizes[i][1])
            continue;
        v->kv_lora_rank = sizes[i][0];
        v->qk_rope_head_dim = sizes[i][1];
        return true;
    }
    return false;
}

static void say_size(const struct rankplan *p, int rank, int rope, bool near,
                     struct stock_verdict *v)
{
    char size[128] = "";
    int all = kvmem_gqa_numbers(p->model.n_kv_head, p->model.head_dim);
    v->kept = (double)(v->kv_lora_rank + v->qk_rope_head_dim) / all;
    bool padded =
        rank != v->kv_lora_rank || rope != v->qk_rope_head_dim || v->kept > rankplan_kept(p) + 1e-9;
    snprintf(v->brief, sizeof v->brief, "%s", near ? "nearly" : "");
    if (padded)
        snprintf(v->brief, sizeof v->brief, "as %d+%d", v->kv_lora_rank, v->qk_rope_head_dim);
    if (padded)
        snprintf(size, sizeof size, "as %d+%d with zeros: keeps %.1f %% instead of %.1f %%",
                 v->kv_lora_rank, v->qk_rope_head_dim, 100 * v->kept, 100 * rankplan_kept(p));
    snprintf(v->text, sizeof v->text, "%s%s%s", size, padded && near ? "; " : "",
             near ? "its slowest frequencies are approximated" : "");
    v->fit = near ? STOCK_NEAR : STOCK_YES;
}

void stock_check(const struct stock_facts *f, const struct rankplan *p, enum stock_engine t,
                 struct stock_verdict *out)
{
    int rank, rope, least;
    bool servers = t == STOCK_VLLM || t == STOCK_SGLANG;
    *out = (struct stock_verdict){0};
    if (refuse_model(f, t, out))
        return;
    extremes(p, &rank, &rope, &least);
    if (!stock_shares_frequencies(f, p)) {
        refuse(out, "own layout",
               t == STOCK_HF ? "each layer has rope frequencies of its own: convert with --layout "
                               "shared or --layout stock"
                             : "each layer has rope frequencies of its own: convert with --layout "
                               "stock");
        return;
    }
    bool list = p->method == METHOD_MLATHE && p->layout != LAYOUT_STOCK;
    if (list && t != STOCK_HF && rope == f->n_kv_head * f->rope_dim && f->n_kv_head > 1) {
        refuse(
            out, "rope of every head",
            "it keeps the rope of every head (equal-cache does), a list of frequencies that only "
            "transformers reads (vLLM with --model-impl transformers); a smaller plan of "
            "--layout stock, without that preset, loads");
        return;
    }
    if (list && t != STOCK_HF) {
        refuse(out, p->layout == LAYOUT_OWN ? "own layout" : "shared layout",
               "its rope frequencies are a list of its own, which only transformers reads: convert "
               "with --layout stock");
        return;
    }
    out->kv_lora_rank = rank;
    out->qk_rope_head_dim = rope;
    if (servers && !served_size(rank, rope, out)) {
        snprintf(out->brief, sizeof out->brief, "takes up to 512+64 or 448+128");
        snprintf(out->text, sizeof out->text,
                 "its kernels take at most rank 512 with rope 64 or rank 448 with rope 128, the "
                 "plan has %d and %d",
                 rank, rope);
        return;
    }
    bool transmla = p->method == METHOD_TRANSMLA;
    bool near =
        t != STOCK_HF && (transmla ? f->grid_pairs < f->rope_dim / 2 : rope / 2 > f->grid_pairs);
    say_size(p, rank, rope, near, out);
}

/* stock: what unmodified engines can load. One function says, for a model and a plan, whether an
 * engine takes the conversion and in which sizes; the screens, inspect and the exporter ask it, so
 * that nobody is told one thing before the conversion and another after it. */
#ifndef MLATHE_CORE_STOCK_H
#define MLATHE_CORE_STOCK_H

#include "core/model.h"
#include "core/rankplan.h"

enum stock_engine { STOCK_HF, STOCK_VLLM, STOCK_SGLANG, STOCK_GGUF, STOCK_ENGINES };
const char *stock_key(enum stock_engine t);  /* "hf", "vllm", "sglang", "gguf" */
bool stock_find(const char *key, enum stock_engine *out);
const char *stock_name(enum stock_engine t); /* "transformers", "vLLM", "SGLang", "llama.cpp" */

/* What engines differ about, of a model before its conversion. Plain values. */
struct stock_facts {
    int n_head, n_kv_head, head_dim, rope_dim, experts;
    int window;     /* of the layers that have one within the context; 0: none */
    int grid_pairs; /* leading frequencies that lie on θ^(-2j/rope_dim) */
    bool biases, head_norms, soft_caps, post_norms, gelu, two_ropes, long_rope, own_router;
    bool still; /* some layers do not rotate: zeros stand where the engine's rope would turn */
};
void stock_facts_of(const struct model *base, struct stock_facts *out);

enum stock_fit { STOCK_NO, STOCK_NEAR /* frequencies approximated */, STOCK_YES };
struct stock_verdict {
    enum stock_fit fit;
    int kv_lora_rank, qk_rope_head_dim; /* of every layer as written, zeros included */
    double kept;                        /* of the original's cache, as written */
    char text[256];                     /* why not, or how; "" when there is nothing to add */
    char brief[40];                     /* the same in a few words */
};
void stock_check(const struct stock_facts *f, const struct rankplan *p, enum stock_engine t,
                 struct stock_verdict *out);
/* Layouts whose rope rows lie on one list of frequencies for all layers. */
bool stock_shares_frequencies(const struct stock_facts *f, const struct rankplan *p);

#endif

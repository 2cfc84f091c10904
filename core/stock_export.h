/* stock_export: a converted model in DeepSeek's tensors, as one engine wants them. Made from a
 * conversion's model (MLA layers, no norm on the latent) that must outlive it; holds names, shapes
 * and how to compute each tensor, no numbers.
 *
 * The norm on the latent that every DeepSeek class applies is made an exact constant: latent rows
 * of kv_a are scaled by 2^-shift, so that their mean square vanishes beside the epsilon ε and the
 * norm divides by √ε; its weight is √ε·2^shift rounded to bfloat16, and what rounding left goes
 * into kv_b. ε is 1e-6 in transformers whatever the configuration says, rms_norm_eps everywhere
 * else. With residual J the embedding, o and down are scaled by 2^J and every ε by 4^J, which
 * changes nothing else: shift can then be small enough for half precision. */
#ifndef MLATHE_CORE_STOCK_EXPORT_H
#define MLATHE_CORE_STOCK_EXPORT_H

#include "core/stock.h"

enum stock_make {
    MAKE_COPY,     /* rows of `from` times factor; experts: of expert `index` on, stacked */
    MAKE_FILL,     /* factor everywhere */
    MAKE_QUERY,    /* [H·(P+R)][D], or with biases [H·(P+R)][D+1] for q_b */
    MAKE_IDENTITY, /* q_a of biased queries: [D+1][D], scaled as a latent */
    MAKE_ONE_HOT,  /* its bias: the last is one, scaled as a latent */
    MAKE_NARROW,   /* q_a of narrow queries, scaled as a latent */
    MAKE_NARROW_BIAS,
    MAKE_LATENT, /* kv_a [c+R][D] */
    MAKE_LATENT_BIAS,
    MAKE_UP,       /* kv_b [H·(P+V)][c] */
    MAKE_UP_KEY,   /* its key part, transposed a head: [H][c][P] */
    MAKE_UP_VALUE, /* its value part [H][V][c] */
    MAKE_JOIN,     /* eh_proj [D][2·D] of the prediction layer */
};

struct stock_tensor {
    char name[96];
    enum dtype dtype;
    bool fp8; /* E4M3 in blocks, its scales beside it */
    int rank;
    size_t dim[4];
    enum stock_make make;
    int layer;
    const struct tensor *from; /* MAKE_COPY: `count` tensors, `stride` apart */
    int count, stride;
    double factor;
};

/* A layer's queries as b·(a·x + bias). */
struct stock_queries {
    float *a, *bias, *b; /* [rank][D], [rank], [H·(P+R)][rank] */
    double kept;         /* share of the weighted energy */
};
void stock_queries_done(struct stock_queries *q);
/* The best of the rank for inputs of second moment G [n][n], destroyed; n is D, or D+1 with a last
 * input that is always one, for queries with biases. */
int stock_queries_make(struct stock_queries *out, const struct model_layer *y, int H, int rank,
                       double *G, int n, struct err *e);

struct stock_export {
    const struct model *m;
    enum stock_engine engine;
    enum dtype dtype; /* of matrices */
    bool fp8;         /* of those that DeepSeek's FP8 quantises */
    int c, P, R, V;   /* kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim as written */
    int q_lora;       /* narrow_rank; else D+1 when queries have biases, else 0 */
    int narrow_rank;  /* queries through so many numbers; 0: whole */
    bool mtp;         /* with DeepSeek's prediction layer, a copy of the last one */
    float *join;      /* its eh_proj [D][2·D] for the engines' normed inputs, put in by the caller
                       * before values are asked for; owned; NULL: both halves the identity */
    struct stock_queries *narrow; /* [L], put in by the caller before values are asked for; owned */
    bool biased;
    double latent_eps,
        rms_eps; /* of the latent's norm and of all others, as the engine reads them */
    int shift, residual;
    double norm_weight, left; /* of the latent's norm, and what rounding it left for kv_b */
    double theta;
    const double *freq, *freq_long; /* [pairs] to be listed, or NULL: theta says it */
    int pairs;                      /* frequencies of the conversion, R/2 or fewer */
    int stride;        /* places of the engine's grid from one of them to the next; zeros between */
    double freq_error; /* largest, rad/token, of theta's frequencies */
    struct stock_tensor *tensor;
    size_t n, cap, bytes;
    int *level; /* [L] power of two that gives a layer's latents a size near one */
};

/* plan: of the conversion m; base: facts before it. ERR_UNSUPPORTED with stock_check's sentence,
 * ERR_ARG for a dtype that the engine or the latent cannot have. */
int stock_export_init(struct stock_export *x, const struct model *m, const struct stock_facts *f,
                      const struct rankplan *plan, enum stock_engine engine, enum dtype dtype,
                      bool fp8, int narrow_rank, bool mtp, struct err *e);
void stock_export_done(struct stock_export *x);

/* The numbers of tensor t in order, in pieces of whole rows. A nonzero return of put stops. */
typedef int (*stock_put)(void *user, const float *numbers, size_t n, struct err *e);
int stock_export_values(const struct stock_export *x, const struct stock_tensor *t, stock_put put,
                        void *user, struct err *e);

/* config.json and generation_config.json. */
int stock_config_json(const struct stock_export *x, cJSON **out, struct err *e);
int stock_generation_json(const struct stock_export *x, cJSON **out, struct err *e);

/* The metadata of a GGUF but its tokenizer's. */
struct gguf_writer;
void stock_gguf_keys(const struct stock_export *x, const char *name, struct gguf_writer *w);

/* For the rooms: stock_export.c lists by this, names by engine. */
size_t stock_scales(const struct stock_tensor *t); /* of one in FP8 */
int stock_add(struct stock_export *x, struct stock_tensor t, struct err *e);
int stock_list_hf(struct stock_export *x, struct err *e);
int stock_list_gguf(struct stock_export *x, struct err *e);

#endif

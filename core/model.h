/* model: what a model IS. Hyper-parameters, and a table of named weight views that point into the
 * mapped file. Immutable and shared once opened. Shapes are checked against the hyper-parameters
 * when the weights are bound and trusted afterwards.
 *
 * A family (one file each, core/family_*.c) knows how its config and tensor names map onto this
 * table and nothing else does. A converted model (conversion_open in sessions) is a struct model
 * too: it owns its attention tensors and borrows every other view from the base model. */
#ifndef MLATHE_CORE_MODEL_H
#define MLATHE_CORE_MODEL_H

#include "core/tensor.h"

enum model_format { MODEL_GGUF, MODEL_HF, MODEL_CONVERSION };
enum attn_kind { ATTN_GQA, ATTN_MLA };

#define MODEL_MAX_EOS 16
#define MODEL_MAX_EXPERTS 1024
#define MODEL_MAX_LAYERS 1024

/* Experts of the layers from first_layer on, but for those marked as dense. */
struct model_moe {
    int n, used;             /* experts, and how many of them a token takes; n 0: none */
    int ffn;                 /* width of an expert */
    int shared_ffn, first_layer;
    int groups, groups_used; /* experts are taken from the best groups only; 0: no groups */
    bool sigmoid;            /* scores by sigmoid; else softmax over all experts */
    bool renormalise;        /* the weights of the taken ones add up to one */
    double scale;            /* multiplies the weights */
    bool dense[MODEL_MAX_LAYERS];
};

struct model_hparams {
    char family[32];        /* "llama" */
    char name[128];         /* the folder's or file's name */
    int n_layer;            /* L */
    int hidden;             /* D */
    int n_head, n_kv_head;  /* H, G */
    int head_dim;           /* d */
    int ffn;                /* F */
    int vocab;              /* V (rows of the embedding) */
    int context;            /* tokens the model was trained for */
    double rope_theta, rms_eps;
    double attn_scale;      /* s: head_dim^-1/2 unless the family says otherwise */
    bool tied;              /* the head is the embedding */
    enum dtype dtype;       /* of most weight bytes */
    int bos;                /* -1: none */
    int eos[MODEL_MAX_EOS], n_eos;
    /* What not every family has. Zero is absent everywhere, which is how Llama is. */
    enum glu_act act;
    double attn_softcap, logit_softcap; /* cap·tanh(x / cap) */
    double embed_scale;     /* multiplies the embeddings */
    double rope_magnitude;  /* multiplies cos and sin; 0: 1 */
    int rope_original;      /* longer contexts use the layers' rope_freq_long */
    int q_lora_rank, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim; /* born MLA */
    struct model_moe moe;
    bool text;              /* a tokenizer lies with the weights */
    int skipped_layers;     /* multi-token prediction layers of the file that nothing runs */
};

struct model_layer {
    enum attn_kind attn;
    struct tensor attn_norm;              /* [D] */
    struct tensor q;                      /* GQA [H·d][D]; MLA [H·(P+R)][D], per head nope | rope */
    struct tensor k, v;                   /* GQA [G·d][D]; rows in the half-split rope order */
    struct tensor q_bias, k_bias, v_bias; /* optional */
    struct tensor kv_a;                   /* MLA [r+R][D]: latent rows, then rope-key rows */
    struct tensor kv_b;                   /* MLA [H·(P+Vd)][r], per head key | value */
    int kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim; /* MLA: r R P Vd */
    int rope_dim;                         /* rotary width: d for GQA, R for MLA */
    const double *rope_freq;              /* [rope_dim/2] rad/token, pairs (j, j+rope_dim/2) */
    bool no_rope;                         /* nothing rotates: rope_freq is zero, no magnitude */
    double attn_scale;                    /* multiplies q·k */
    struct tensor o;                      /* [D][H·d] */
    struct tensor ffn_norm;               /* [D] */
    struct tensor gate, up, down;         /* [F][D] [F][D] [D][F]; with experts the shared one */
    /* Absent in Llama. */
    int window;                           /* keys a token sees, itself included; 0: all */
    const double *rope_freq_long;         /* see rope_original */
    struct tensor q_norm, k_norm;         /* [d], each head, before the rotation */
    struct tensor o_bias;                 /* [D] */
    struct tensor gate_bias, up_bias, down_bias; /* [F], [F], [D]; dense layers only */
    /* MLA over heads (own runtime): q as in GQA, the rope query from each head. With normed heads k, v
     * and both norms as in GQA too, and the latent is taken from z = [k; v], kv_a [r+R][2·G·d]. */
    struct tensor q_rope;                 /* [H·R][d] */
    struct tensor q_a;                    /* MLA [q_lora_rank][D]; q is then [H·(P+R)][rank] */
    struct tensor q_a_bias, q_a_norm;     /* [q_lora_rank] */
    struct tensor kv_a_bias, kv_a_norm;   /* MLA [r+R]; [r] */
    double latent_eps;                    /* of q_a_norm and kv_a_norm */
    struct tensor post_attn_norm, post_ffn_norm; /* [D], before the residual is added */
    struct tensor router, router_bias;    /* [experts][D]; [experts], for the choice only */
    struct tensor *expert;                /* [experts][3] */
};
enum { EXPERT_GATE, EXPERT_UP, EXPERT_DOWN, EXPERT_PARTS };

struct model {
    struct model_hparams hp;
    enum model_format format;
    char *path;
    size_t file_bytes;
    size_t parameters;        /* numbers in all bound tensors, a tied head once */
    struct tensor embed;      /* [V][D] */
    struct tensor final_norm; /* [D] */
    struct tensor head;       /* [V][D]; the embedding's view when tied */
    struct model_layer *layer;
    struct model_mtp *mtp;    /* guesses the token after the next (core/mtp.h), or NULL */
    void *owner;              /* mappings and copies behind the views */
    void (*owner_free)(void *owner);
};

/* path: a GGUF file or a Hugging Face folder (config.json). Refuses with a sentence what it cannot
 * run: unknown family, unsupported rope type, tensor type, missing or misshapen tensor, non-finite
 * values in 1-D tensors. */
int model_open(struct model **out, const char *path, struct err *e);
void model_free(struct model *m);
/* For a list of models, without reading weights: shapes are checked, values are not. */
int model_look(struct model **out, const char *path, struct err *e);
/* NULL when the model can be converted, else a sentence that says why not (static memory). */
const char *model_convertible(const struct model *m);
/* Whether layer l has experts. */
bool model_layer_moe(const struct model_hparams *hp, int l);
/* Numbers that a token leaves in the KV cache, all layers together. */
long long model_kv_numbers(const struct model_hparams *hp);
/* Reads every weight; ERR_NUMERIC names the first tensor and index that is NaN or infinite. */
int model_check_finite(const struct model *m, const struct progress *p, struct err *e);
/* The tensors of a model in a fixed order, absent ones left out, a tied head once. Names are those
 * of this header ("embed", "layer 3 kv_a"). A nonzero return of visit stops and comes back. */
int model_each_tensor(const struct model *m,
                      int (*visit)(void *user, const char *name, const struct tensor *t),
                      void *user);
/* 64 hex digits + NUL: SHA-256 over hyper-parameters, shapes, a sample of every tensor's bytes. */
int model_fingerprint(const struct model *m, char hex[65], struct err *e);

/* One family: recognises a config.json or a GGUF architecture, fills hp and binds the weights. */
struct cJSON;
struct gguf;
struct safetensors;
struct family {
    const char *name;
    const char *const *hf_model_types; /* config.json model_type values, NULL-terminated */
    const char *const *gguf_archs;     /* general.architecture values, NULL-terminated */
    int (*open_hf)(struct model *m, const struct cJSON *config, const char *where,
                   const struct safetensors *st, struct err *e);
    int (*open_gguf)(struct model *m, const struct gguf *g, struct err *e);
};
/* The static table, NULL-terminated. */
extern const struct family *const family_table[];

#endif

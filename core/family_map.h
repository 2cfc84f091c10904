/* family_map: a family's tables. Which tensor is called what in which format, its shape in terms of
 * the hyper-parameters, and where its view goes. */
#ifndef MLATHE_CORE_FAMILY_MAP_H
#define MLATHE_CORE_FAMILY_MAP_H

#include "core/base.h"

enum family_dim {
    DIM_NONE,
    DIM_HIDDEN,
    DIM_Q,  /* H·d */
    DIM_KV, /* G·d */
    DIM_FFN,
    DIM_VOCAB,
    DIM_HEAD,    /* d */
    DIM_QKV,     /* (H + 2G)·d */
    DIM_GATE_UP, /* 2F */
    DIM_Q_LORA,
    DIM_MLA_Q,   /* H·(P+R) */
    DIM_LATENT,  /* r */
    DIM_KV_A,    /* r+R */
    DIM_KV_B,    /* H·(P+Vd) */
    DIM_MLA_OUT, /* H·Vd */
    DIM_EXPERTS,
    DIM_EXPERT_FFN,
    DIM_SHARED_FFN,
    DIM_NOPE,  /* P */
    DIM_VALUE, /* Vd */
    DIM_EXPERT_GATE_UP, /* twice an expert's width */
    DIM_HIDDEN_TWICE,
};

enum {
    SLOT_OPTIONAL = 1,
    SLOT_ROPE_ROWS = 2, /* GGUF keeps the rows of a head as interleaved pairs: undo it */
    SLOT_MLA_ROPE = 4,  /* so does DeepSeek with the last R rows of a head */
    SLOT_ADD_ONE = 8,   /* safetensors hold w of a norm that multiplies by 1 + w */
    SLOT_QKV = 16,      /* rows of q, k and v; the slot names q */
    SLOT_GATE_UP = 32,  /* rows of gate and up; the slot names gate */
    SLOT_DENSE = 64,    /* only in layers without experts */
    SLOT_MOE = 128,     /* only in layers with experts */
    SLOT_EXPERTS = 256, /* one a expert ("#" is its number), in GGUF all of them in one tensor */
    SLOT_Q_LORA = 512,  /* only in models with q_lora_rank */
    SLOT_Q_FULL = 1024, /* only in models without */
    SLOT_SHARED = 2048, /* only in models with a shared expert */
    /* Biases: where GGUF has them; in safetensors where config.json says so (family_map.biases). */
    SLOT_ATTN_BIAS = 4096,
    SLOT_MLP_BIAS = 8192,
    SLOT_KV_WHOLE = 16384, /* kv_b as one matrix, */
    SLOT_KV_SPLIT = 32768, /* or a matrix for each head (family_map.split_kv) */
    SLOT_STACKED = 65536,  /* experts: all of them in one tensor (family_map.stacked) */
};

/* A tensor: its name in both formats (NULL: not in this one) and where its view goes (offset in
 * struct model for global slots, in struct model_layer for layer slots, index of the part for
 * experts). cols DIM_NONE: one dimension. */
struct family_slot {
    const char *gguf, *hf;
    size_t at;
    enum family_dim rows, cols;
    unsigned flags;
};

struct family_map {
    const struct family_slot *global, *layer; /* ended by a slot without names */
    const char *gguf_layer, *hf_layer;        /* prefixes, "blk." and "model.layers." */
    const char *const *ignored;               /* name endings that carry no weights, or NULL */
    const char *const *left_out;              /* beginnings of names that nothing runs, or NULL */
    bool half_split;                          /* SLOT_MLA_ROPE rows are in order already */
    unsigned biases;                          /* SLOT_ATTN_BIAS, SLOT_MLP_BIAS */
    bool split_kv;
    bool stacked; /* safetensors hold experts in two stacks, gate above up in the first */
};

#endif

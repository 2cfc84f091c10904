/* family: what the files core/family_*.c share. A family gives tables of names and reads its own
 * configuration; binding, shape checks, row orders and ownership happen here, once. */
#ifndef MLATHE_CORE_FAMILY_H
#define MLATHE_CORE_FAMILY_H

#include "core/family_map.h"
#include "core/json.h"
#include "core/model.h"
#include "core/ropefreq.h"

/* One of the two places that tensors come from; the other pointer is NULL. */
struct family_source {
    const char *where; /* path, for messages */
    const struct gguf *gguf;
    const struct safetensors *st;
};

/* hp makes sense (positive, under sane limits, G divides H …) or a sentence. Sets nothing. */
int family_check_hparams(const struct model_hparams *hp, const char *where, struct err *e);
/* Allocates m->layer (attn, rope_dim, rope_freq, attn_scale filled) and binds every tensor of the
 * map; refuses misshapen tensors, non-finite 1-D tensors and tensors that the map does not know.
 * A GGUF's rope_freqs.weight divides the frequencies of rope, whose magnitude goes to hp. hp.tied
 * is read for safetensors (the file may hold a head all the same) and set for GGUF; hp.dtype and
 * parameters are set. */
int family_bind(struct model *m, const struct family_source *src, const struct family_map *map,
                const struct rope_spec *rope, struct err *e);
/* The map's layer slots of layer l into a struct model_layer, or whatever the slots' offsets mean. */
int family_bind_layer(struct model *m, const struct family_source *src,
                      const struct family_map *map, int l, void *into, struct err *e);
/* DeepSeek's multi-token prediction layer, where the file has one: m->mtp. After family_bind. */
int family_mtp(struct model *m, const struct family_source *src, const struct family_map *map,
               struct err *e);
/* Zeroed memory that lives as long as the model. */
void *family_own(struct model *m, size_t n, size_t size);

/* config.json: what every family reads in the same way. */
struct family_defaults {
    double theta, eps; /* where config.json leaves them out */
    bool tied;
    const char *act;     /* the activation that can be computed */
    const char *act_key; /* "hidden_act" */
    bool own_heads;      /* the family sets head_dim itself */
    bool biases;         /* attention_bias is understood by the family's slots */
    bool mlp_biases;     /* and mlp_bias */
};
/* Sizes, epsilon, activation, tying, attention scale; refuses quantised weights. */
int family_hf_base(struct model *m, const cJSON *config, const struct family_defaults *d,
                   const char *where, struct err *e);
/* sliding_window: fallback when the key is absent, 0 for null. */
int family_hf_window(const cJSON *config, int fallback, int *out, const char *where, struct err *e);
/* Windows from layer_types; *found false when there is none (then the family's own rule holds). */
int family_hf_layer_types(struct model *m, const cJSON *config, int window, bool *found,
                          const char *where, struct err *e);
/* attention_bias and mlp_bias as SLOT_ATTN_BIAS and SLOT_MLP_BIAS. */
int family_hf_biases(const cJSON *config, unsigned *biases, const char *where, struct err *e);
/* rope_theta with rope_scaling or rope_parameters; unknown types are refused by name, and so is a
 * partial rotation. */
int family_rope_hf(const cJSON *config, double theta, struct rope_spec *out, const char *where,
                   struct err *e);
/* The same from one set of parameters (may be NULL); the partial rotation comes back. */
int family_rope_set(const cJSON *config, const cJSON *set, double theta, struct rope_spec *out,
                    double *partial, const char *where, struct err *e);
const cJSON *family_rope_parameters(const cJSON *config);
int family_rope_refuse(const char *kind, const char *where, struct err *e);
/* The second list of frequencies, for contexts beyond the original one, from its divisors. */
int family_rope_long(struct model *m, const struct rope_spec *rope, int dim, const double *divisor,
                     const char *where, struct err *e);
/* ARCH.rope.*; as above. */
int family_rope_gguf(const struct gguf *g, const char *arch, struct rope_spec *out, struct err *e);
/* GGUF: sizes, epsilon and attention scale. handled: keys of what may be on and what off (PARTIAL:
 * a rotation of part of a head; MLA: the sizes of heads are the family's). */
enum { GGUF_WINDOW = 1, GGUF_SOFTCAP = 2, GGUF_EXPERTS = 4, GGUF_PARTIAL = 8, GGUF_MLA = 16 };
int family_gguf_base(struct model *m, const struct gguf *g, const char *arch, unsigned handled,
                     struct err *e);
/* "ARCH.name" as an int within [min, max]; absent: fallback, or an error when fallback < 0. */
int family_gguf_int(const struct gguf *g, const char *arch, const char *name, long long min,
                    long long max, long long fallback, int *out, struct err *e);
/* Adds an end-of-text id; ids outside the vocabulary and repeats are left out. */
void family_add_eos(struct model_hparams *hp, long long id);

/* What m->owner is for models opened from files (model.c). */
struct model_owner {
    struct gguf *gguf;
    struct safetensors *st;
    void **own;
    size_t n_own, cap_own;
    int fp8_block[2]; /* rows and columns that share a scale; 0: no FP8 weights */
    bool probe;       /* only looking: no weight bytes are touched, so rope rows stay as they are */
};

/* For the tables: offsets in struct model or layer, and what most families share. */
#define GLOBAL_AT(field) offsetof(struct model, field)
#define LAYER_AT(field) offsetof(struct model_layer, field)
extern const struct family_slot family_global_slots[]; /* embedding, norm, head */
extern const struct family_slot family_llama_slots[], family_deepseek_slots[];
int family_deepseek_gguf(struct model *m, const struct gguf *g, struct err *e);
extern const char *const family_ignored[]; /* tables of frequencies */

extern const struct family family_llama, family_smollm3, family_mistral, family_mixtral;
extern const struct family family_qwen2, family_qwen3, family_qwen3_moe, family_mimo;
extern const struct family family_phi3, family_gemma2, family_gemma3, family_deepseek;

#endif

/* family: what the files core/family_*.c share. A family gives tables (which tensor is called what
 * in which format) and reads its own configuration; binding, shape checks, row orders and ownership
 * happen here, once. */
#ifndef MLATHE_CORE_FAMILY_H
#define MLATHE_CORE_FAMILY_H

#include "core/json.h"
#include "core/model.h"
#include "core/ropefreq.h"

/* One of the two places that tensors come from; the other pointer is NULL. */
struct family_source {
    const char *where; /* path, for messages */
    const struct gguf *gguf;
    const struct safetensors *st;
};

enum family_dim { DIM_NONE, DIM_HIDDEN, DIM_Q, DIM_KV, DIM_FFN, DIM_VOCAB }; /* DIM_Q: H·d … */

enum {
    SLOT_OPTIONAL = 1,
    SLOT_ROPE_ROWS = 2, /* GGUF keeps the rows of a head as interleaved pairs: undo it */
};

/* A tensor: its name in both formats and where its view goes (offset in struct model for global
 * slots, in struct model_layer for layer slots). cols DIM_NONE: one dimension. */
struct family_slot {
    const char *gguf, *hf;
    size_t at;
    enum family_dim rows, cols;
    unsigned flags;
};

struct family_map {
    const struct family_slot *global, *layer; /* ended by a NULL name */
    const char *gguf_layer, *hf_layer;        /* prefixes, "blk." and "model.layers." */
    const char *const *ignored;               /* name endings that carry no weights, or NULL */
};

/* hp makes sense (positive, under sane limits, G divides H …) or a sentence. Sets nothing. */
int family_check_hparams(const struct model_hparams *hp, const char *where, struct err *e);
/* Allocates m->layer (attn, rope_dim, rope_freq, attn_scale filled) and binds every tensor of the
 * map; refuses misshapen tensors, non-finite 1-D tensors and tensors that the map does not know.
 * A GGUF's rope_freqs.weight divides the frequencies of rope. hp.tied is read for safetensors (the
 * file may hold a head all the same) and set for GGUF; hp.dtype and parameters are set. */
int family_bind(struct model *m, const struct family_source *src, const struct family_map *map,
                const struct rope_spec *rope, struct err *e);
/* Zeroed memory that lives as long as the model. */
void *family_own(struct model *m, size_t n, size_t size);

/* rope_theta with rope_scaling or rope_parameters; types other than default, linear and llama3 are
 * refused by name. */
int family_rope_hf(const cJSON *config, double theta, struct rope_spec *out, const char *where,
                   struct err *e);
/* ARCH.rope.*; as above. */
int family_rope_gguf(const struct gguf *g, const char *arch, struct rope_spec *out, struct err *e);
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
    bool probe; /* only looking: no weight bytes are touched, so rope rows stay as they are */
};

extern const struct family family_llama;

#endif

/* sampler: logits → a token, seeded. Plain state, no allocation a token after the first. */
#ifndef MLATHE_CORE_SAMPLER_H
#define MLATHE_CORE_SAMPLER_H

#include "core/base.h"

/* Applied in this order: top_k, temperature, top_p, min_p (relative to the best token). */
struct sampler_options {
    double temperature; /* 0: greedy */
    int top_k;          /* 0: off */
    double top_p;       /* 1: off */
    double min_p;       /* 0: off */
    uint64_t seed;
};
struct sampler;
int sampler_new(struct sampler **out, const struct sampler_options *o, int vocab, struct err *e);
void sampler_free(struct sampler *s);
/* logits[vocab]; ids ≥ limit are never chosen (padding rows of the embedding). Ties: lowest id. */
int32_t sampler_next(struct sampler *s, const float *logits, int limit);
/* Uniform in [0, 1) from a seed's stream (xoshiro256**), for everything seeded in the program. */
double random_uniform(uint64_t state[4]);
void random_seed(uint64_t state[4], uint64_t seed);

#endif

/* ropefreq: the rotation frequencies of a model's rope, in radians a token. */
#ifndef MLATHE_CORE_ROPEFREQ_H
#define MLATHE_CORE_ROPEFREQ_H

#include "core/base.h"

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };

struct rope_spec {
    enum rope_kind kind;
    double theta;            /* base */
    double factor;           /* how much longer the context became */
    double low, high;        /* llama3: low_freq_factor, high_freq_factor; yarn: beta_slow, _fast */
    double original_context; /* llama3, yarn: original_max_position_embeddings */
    bool smooth_edges;       /* yarn: the ramp's ends are not rounded to whole pairs (truncate) */
    double magnitude;        /* yarn: multiplies cos and sin; 0: 1 */
    double logit_scale;      /* yarn of DeepSeek: multiplies the attention scale; 0: 1 */
    int dim;                 /* rotary width; 0: the whole head */
    const double *divisor;   /* [dim/2] divides the frequencies (longrope); NULL: none */
};

/* ERR_FORMAT, naming where, for values that give no usable frequencies. */
int ropefreq_check(const struct rope_spec *r, const char *where, struct err *e);
/* freq[dim/2]: theta^(-2j/dim), then
 * linear: divided by factor;
 * llama3 (transformers, modeling_rope_utils): wavelengths over original/low are divided by factor,
 * those under original/high stay, between them the two are mixed linearly in original/wavelength;
 * yarn (arXiv 2309.00071, as transformers has it): pairs that turn more than beta_fast times in the
 * original context stay, those under beta_slow turns are divided by factor, between them the two
 * are mixed linearly in the pair's index. */
void ropefreq_fill(const struct rope_spec *r, int dim, double *freq);
/* 1 + 0.1·mscale·ln factor, the magnitude that yarn advises; 1 for factors up to 1. */
double ropefreq_mscale(double factor, double mscale);
/* ERR_FORMAT for a frequency that is not positive or absurdly fast. */
int ropefreq_usable(const double *freq, int n, const char *where, struct err *e);

#endif

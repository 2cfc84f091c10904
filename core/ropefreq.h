/* ropefreq: the rotation frequencies of a model's rope, in radians a token. */
#ifndef MLATHE_CORE_ROPEFREQ_H
#define MLATHE_CORE_ROPEFREQ_H

#include "core/base.h"

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_spec {
    enum rope_kind kind;
    double theta;            /* base */
    double factor;           /* linear and llama3: how much longer the context became */
    double low, high;        /* llama3: low_freq_factor, high_freq_factor */
    double original_context; /* llama3: original_max_position_embeddings */
    int dim;                 /* rotary width; 0: the whole head */
    const double *divisor;   /* [dim/2] divides the frequencies (longrope); NULL: none */
};

/* ERR_FORMAT, naming where, for values that give no usable frequencies. */
int ropefreq_check(const struct rope_spec *r, const char *where, struct err *e);
/* freq[dim/2]: theta^(-2j/dim), then
 * linear: divided by factor;
 * llama3 (transformers, modeling_rope_utils): wavelengths over original/low are divided by factor,
 * those under original/high stay, between them the two are mixed linearly in original/wavelength.
 */
void ropefreq_fill(const struct rope_spec *r, int dim, double *freq);
/* ERR_FORMAT for a frequency that is not positive or absurdly fast. */
int ropefreq_usable(const double *freq, int n, const char *where, struct err *e);

#endif

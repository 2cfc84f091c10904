/* metrics: what a comparison of two models is measured in. KL is KL(original‖converted) in nats. */
#ifndef MLATHE_CORE_METRICS_H
#define MLATHE_CORE_METRICS_H

#include "core/base.h"

/* −log softmax(logits)[target]; fp64 accumulation. */
double metrics_nll(const float *logits, int vocab, int32_t target);
/* KL(softmax p ‖ softmax q). */
double metrics_kl(const float *p_logits, const float *q_logits, int vocab);
int metrics_argmax(const float *logits, int vocab);

/* Everything about one position in one pass: p is the original, q the converted model. */
struct metrics_pair {
    double nll_p, nll_q; /* of target; 0 when target < 0 */
    double kl;           /* ≥ 0 */
    int top_p, top_q;    /* argmax of each */
};
struct metrics_pair metrics_compare(const float *p_logits, const float *q_logits, int vocab,
                                    int32_t target);

/* Mean, standard error, percentiles of a growing sample. */
struct sample { double *v; size_t n, cap; };
bool sample_add(struct sample *s, double v);
void sample_free(struct sample *s);
double sample_mean(const struct sample *s);
double sample_stderr(const struct sample *s);
double sample_percentile(struct sample *s, double p); /* p in [0,100]; sorts */

#endif

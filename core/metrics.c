/* Comparison of two sets of logits. Exponentials are fp32 (7 digits each), sums and differences
 * fp64: identical logits give a KL of exactly 0, and KLs down to 1e-7 are right. */
#include "core/metrics.h"

#include <math.h>
#include <stdlib.h>

int metrics_argmax(const float *logits, int vocab)
{
    int best = 0;
    for (int i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* log Σ exp(logits); NaN when a logit is NaN. */
static double log_sum_exp(const float *logits, int vocab, int top)
{
    float max = logits[top];
    double sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += expf(logits[i] - max);
    return (double)max + log(sum);
}

double metrics_nll(const float *logits, int vocab, int32_t target)
{
    return log_sum_exp(logits, vocab, metrics_argmax(logits, vocab)) - (double)logits[target];
}

struct metrics_pair metrics_compare(const float *p, const float *q, int vocab, int32_t target)
{
    struct metrics_pair m = {.top_p = metrics_argmax(p, vocab), .top_q = metrics_argmax(q, vocab)};
    double zq = log_sum_exp(q, vocab, m.top_q), sum = 0, weighted = 0;
    float max = p[m.top_p];
    for (int i = 0; i < vocab; i++) {
        double w = expf(p[i] - max);
        sum += w;
        if (w > 0) /* 0 · (−∞ + ∞) of a masked token is no number */
            weighted += w * ((double)p[i] - (double)q[i]);
    }
    double zp = (double)max + log(sum);
    m.kl = weighted / sum - (zp - zq);
    if (m.kl < 0) /* rounding only: KL is never negative */
        m.kl = 0;
    if (target >= 0) {
        m.nll_p = zp - (double)p[target];
        m.nll_q = zq - (double)q[target];
    }
    return m;
}

double metrics_kl(const float *p_logits, const float *q_logits, int vocab)
{
    return metrics_compare(p_logits, q_logits, vocab, -1).kl;
}

bool sample_add(struct sample *s, double v)
{
    void *grown = s->v;
    if (!mem_grow(&grown, &s->cap, s->n + 1, sizeof *s->v))
        return false;
    s->v = grown;
    s->v[s->n++] = v;
    return true;
}

void sample_free(struct sample *s)
{
    free(s->v);
    *s = (struct sample){0};
}

double sample_mean(const struct sample *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->n; i++)
        sum += s->v[i];
    return s->n ? sum / (double)s->n : NAN;
}

double sample_stderr(const struct sample *s)
{
    if (s->n < 2)
        return NAN;
    double mean = sample_mean(s), sum = 0;
    for (size_t i = 0; i < s->n; i++)
        sum += (s->v[i] - mean) * (s->v[i] - mean);
    return sqrt(sum / (double)(s->n - 1) / (double)s->n);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double sample_percentile(struct sample *s, double p)
{
    if (!s->n)
        return NAN;
    qsort(s->v, s->n, sizeof *s->v, compare_doubles);
    double at = fmin(fmax(p, 0), 100) / 100 * (double)(s->n - 1);
    size_t i = (size_t)at, j = i + 1 < s->n ? i + 1 : i;
    return s->v[i] + (at - (double)i) * (s->v[j] - s->v[i]);
}

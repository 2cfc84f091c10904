/* NLL, KL and samples against direct fp64 formulas. */
#include "core/metrics.h"
#include "kernels/divergence.h"
#include "tests/support.h"

#define V 997

static double slow_nll(const float *x, int t)
{
    double sum = 0;
    for (int i = 0; i < V; i++)
        sum += exp((double)x[i] - (double)x[t]);
    return log(sum);
}

static void test_kl(void)
{
    static float p[V], q[V];
    uint64_t state = 7;
    for (int i = 0; i < V; i++) {
        p[i] = (float)(4 * test_normal(&state));
        q[i] = p[i] + (float)(0.5 * test_normal(&state));
    }
    double kl = 0;
    for (int i = 0; i < V; i++)
        kl += exp(-slow_nll(p, i)) * (slow_nll(q, i) - slow_nll(p, i));
    struct metrics_pair m = metrics_compare(p, q, V, 5);
    /* fp32 exponentials: 1e-7 relative each, averaging out in the sums. */
    CHECK(fabs(metrics_kl(p, q, V) - kl) < 1e-6 * kl, "%g %g", metrics_kl(p, q, V), kl);
    CHECK(fabs(m.nll_p - slow_nll(p, 5)) < 1e-6);
    CHECK(fabs(m.nll_q - slow_nll(q, 5)) < 1e-6);
    CHECK(fabs(metrics_nll(q, V, 5) - slow_nll(q, 5)) < 1e-6);
    CHECK(m.top_p == metrics_argmax(p, V) && m.top_q == metrics_argmax(q, V));
    CHECK(metrics_kl(p, p, V) == 0);
    for (int i = 0; i < V; i++)
        q[i] = p[i] + 3; /* a shift changes nothing but rounding */
    CHECK(metrics_kl(p, q, V) < 1e-6, "%g", metrics_kl(p, q, V));
    p[3] = q[3] = -INFINITY;
    CHECK(isfinite(metrics_kl(p, q, V)));
}

/* The probes' fast form, at lengths that end within a vector and within a block. */
static void test_divergence(void)
{
    static float p[V], q[V], share[V];
    uint64_t state = 11;
    for (int n = 1; n <= V; n = n < 40 ? n + 1 : n + 319) {
        for (int i = 0; i < n; i++) {
            p[i] = (float)(4 * test_normal(&state));
            q[i] = p[i] + (float)(0.5 * test_normal(&state));
        }
        double sum = divergence_share(share, p, n), all = 0, z = 0;
        for (int i = 0; i < n; i++) {
            all += (double)share[i];
            z += exp((double)p[i]);
        }
        /* its exponential keeps 2e-7, sums of fp32 lanes a little less */
        CHECK(fabs(all - 1) < 1e-6 && fabs(sum - log(z)) < 1e-6, "n %d: %g, %g", n, all, sum);
        double kl = divergence_row(share, p, sum, q, n), is = metrics_kl(p, q, n);
        CHECK(fabs(kl - is) < 2e-6, "n %d: %g, not %g", n, kl, is);
        CHECK(fabs(divergence_row(share, p, sum, p, n)) < 1e-6);
    }
    q[7] = NAN;
    CHECK(isnan(divergence_row(share, p, 0, q, V)), "a logit that is no number went unseen");
}

static void test_sample(void)
{
    struct sample s = {0};
    CHECK(isnan(sample_mean(&s)) && isnan(sample_percentile(&s, 50)));
    for (int i = 100; i >= 0; i--)
        CHECK(sample_add(&s, i));
    CHECK(sample_mean(&s) == 50);
    CHECK(fabs(sample_stderr(&s) - sqrt(858.5 / 101)) < 1e-12); /* variance (n²−1)/12·n/(n−1) */
    CHECK(sample_percentile(&s, 99) == 99 && sample_percentile(&s, 0) == 0);
    CHECK(sample_percentile(&s, 100) == 100 && sample_percentile(&s, 0.5) == 0.5);
    sample_free(&s);
}

int main(void)
{
    test_kl();
    test_divergence();
    test_sample();
    return test_end("metrics");
}

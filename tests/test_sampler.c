/* The sampler: frequencies follow the distribution, limits cut where they say, seeds repeat. */
#include "core/sampler.h"
#include "tests/support.h"

#define V 8
#define DRAWS 40000

static void histogram(struct sampler_options o, const float *logits, int limit, double *share)
{
    struct sampler *s;
    struct err e;
    int count[V] = {0};
    CHECK_OK(sampler_new(&s, &o, V, &e), e);
    for (int i = 0; i < DRAWS; i++)
        count[sampler_next(s, logits, limit)]++;
    for (int i = 0; i < V; i++)
        share[i] = (double)count[i] / DRAWS;
    sampler_free(s);
}

static const float logits[V] = {0, 2, 1, 2, -1, 3, 0.5f, -40};

static void test_distribution(void)
{
    double share[V], want[V], total = 0;
    for (int i = 0; i < V; i++)
        total += want[i] = exp(logits[i] / 0.7);
    histogram((struct sampler_options){0.7, 0, 1, 0, 1}, logits, V, share);
    for (int i = 0; i < V; i++) /* four standard errors of a share ≤ 4·sqrt(.25/40000) */
        CHECK(fabs(share[i] - want[i] / total) < 0.01, "%d: %g %g", i, share[i], want[i] / total);
    /* the ranked path with nothing cut must draw from the same distribution */
    histogram((struct sampler_options){0.7, V - 1, 1, 0, 1}, logits, V, share);
    for (int i = 0; i < V; i++)
        CHECK(fabs(share[i] - want[i] / total) < 0.01, "%d: %g %g", i, share[i], want[i] / total);
}

static void test_limits(void)
{
    double share[V];
    histogram((struct sampler_options){1, 3, 1, 0, 1}, logits, V, share);
    CHECK(share[5] > 0 && share[1] > 0 && share[3] > 0);
    CHECK(share[0] + share[2] + share[4] + share[6] + share[7] == 0);
    /* the best token alone holds more than 0.3 */
    histogram((struct sampler_options){1, 0, 0.3, 0, 1}, logits, V, share);
    CHECK(share[5] == 1);
    histogram((struct sampler_options){1, 4, 0.6, 0, 1}, logits, V, share);
    CHECK(share[5] > 0 && share[1] > 0 && share[5] + share[1] == 1, "ties: the lower id first");
    /* e^-1 = .37 relative to the best */
    histogram((struct sampler_options){1, 0, 1, 0.3, 1}, logits, V, share);
    CHECK(fabs(share[5] + share[1] + share[3] - 1) < 1e-12);
    histogram((struct sampler_options){1, 0, 1, 0, 1}, logits, 5, share);
    CHECK(share[5] + share[6] + share[7] == 0, "beyond the limit");
}

static void test_edges(void)
{
    struct sampler *s;
    struct err e;
    struct sampler_options o = {0, 0, 1, 0, 1};
    float odd[V] = {NAN, 1, NAN, 1, -INFINITY, 0, 0, 0}, none[V];
    CHECK_OK(sampler_new(&s, &o, V, &e), e);
    CHECK(sampler_next(s, logits, V) == 5);
    CHECK(sampler_next(s, logits, 4) == 1, "ties: the lower id");
    CHECK(sampler_next(s, odd, V) == 1);
    sampler_free(s);
    for (int i = 0; i < V; i++)
        none[i] = NAN;
    o.temperature = 1;
    CHECK_OK(sampler_new(&s, &o, V, &e), e);
    CHECK(sampler_next(s, none, V) == 0);
    for (int i = 0; i < 100; i++)
        CHECK(sampler_next(s, odd, V) != 0 && sampler_next(s, odd, V) != 2);
    sampler_free(s);
    o.temperature = -1;
    CHECK(sampler_new(&s, &o, V, &e) == ERR_ARG && !s);
    o.temperature = NAN;
    CHECK(sampler_new(&s, &o, V, &e) == ERR_ARG && !s);
    o = (struct sampler_options){1, 0, 1.5, 0, 1};
    CHECK(sampler_new(&s, &o, V, &e) == ERR_ARG && !s);
}

static void test_seed(void)
{
    uint64_t a[4], b[4];
    double mean = 0;
    random_seed(a, 42);
    random_seed(b, 42);
    for (int i = 0; i < 1000; i++) {
        double u = random_uniform(a);
        CHECK(u == random_uniform(b) && u >= 0 && u < 1);
        mean += u / 1000;
    }
    CHECK(fabs(mean - 0.5) < 0.04); /* four standard errors: 4·sqrt(1/12/1000) */
    random_seed(b, 43);
    CHECK(random_uniform(a) != random_uniform(b));
}

int main(void)
{
    test_distribution();
    test_limits();
    test_edges();
    test_seed();
    return test_end("sampler");
}

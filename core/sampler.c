/* Sampling in this order: top_k, temperature, top_p, min_p. Candidates come off a heap, so a
 * token costs O(vocab) plus log(vocab) a kept candidate: no full sort.
 * Refuses nothing: a logit that is not a number counts as −infinity. */
#include "core/sampler.h"

#include <math.h>
#include <stdlib.h>

struct sampler {
    struct sampler_options o;
    uint64_t state[4];
    int vocab;
    int32_t *heap; /* [vocab] candidate ids, best first in heap order */
    int32_t *kept; /* [vocab] the ids taken off the heap, best first */
    double *p;     /* [vocab] unnormalised probabilities of kept */
};

static uint64_t rotl(uint64_t x, int k)
{
    return (x << k) | (x >> (64 - k));
}

double random_uniform(uint64_t s[4])
{
    uint64_t result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

void random_seed(uint64_t state[4], uint64_t seed)
{
    /* SplitMix64, as the generator's authors advise: never an all-zero state. */
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        state[i] = z ^ (z >> 31);
    }
}

int sampler_new(struct sampler **out, const struct sampler_options *o, int vocab, struct err *e)
{
    *out = NULL;
    if (vocab < 1)
        return err_set(e, ERR_ARG, "sampler: vocabulary of %d tokens", vocab);
    if (!(o->temperature >= 0 && o->temperature <= 100))
        return err_set(e, ERR_ARG, "temperature %g: give a number from 0 to 100", o->temperature);
    if (o->top_k < 0)
        return err_set(e, ERR_ARG, "top_k %d: give 0 (off) or more", o->top_k);
    if (!(o->top_p >= 0 && o->top_p <= 1))
        return err_set(e, ERR_ARG, "top_p %g: give a number from 0 to 1", o->top_p);
    if (!(o->min_p >= 0 && o->min_p <= 1))
        return err_set(e, ERR_ARG, "min_p %g: give a number from 0 to 1", o->min_p);
    struct sampler *s = mem_calloc(1, sizeof *s);
    if (!s)
        return err_nomem(e, sizeof *s, "the sampler");
    s->o = *o;
    s->vocab = vocab;
    s->heap = mem_calloc((size_t)vocab, sizeof *s->heap);
    s->kept = mem_calloc((size_t)vocab, sizeof *s->kept);
    s->p = mem_calloc((size_t)vocab, sizeof *s->p);
    if (!s->heap || !s->kept || !s->p) {
        sampler_free(s);
        return err_nomem(e, (size_t)vocab * 16, "the sampler");
    }
    random_seed(s->state, o->seed);
    *out = s;
    return OK;
}

void sampler_free(struct sampler *s)
{
    if (!s)
        return;
    free(s->heap);
    free(s->kept);
    free(s->p);
    free(s);
}

static double logit(const float *logits, int32_t id)
{
    float v = logits[id];
    return isnan(v) ? -INFINITY : (double)v;
}

/* Higher logit first; ties go to the lower id, so that the order is total. */
static bool before(const float *logits, int32_t a, int32_t b)
{
    double la = logit(logits, a), lb = logit(logits, b);
    return la > lb || (la == lb && a < b);
}

static void sift_down(const float *logits, int32_t *heap, int n, int i)
{
    int32_t id = heap[i];
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(logits, heap[child + 1], heap[child]))
            child++;
        if (!before(logits, heap[child], id))
            break;
        heap[i] = heap[child];
    }
    heap[i] = id;
}

static int32_t heap_pop(const float *logits, int32_t *heap, int *n)
{
    int32_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n)
        sift_down(logits, heap, *n, 0);
    return top;
}

static int32_t greedy(const float *logits, int n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (before(logits, i, best))
            best = i;
    return best;
}

/* Draws among the first n kept candidates by their weights p. */
static int32_t draw(struct sampler *s, int n)
{
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        total += s->p[i];
    double u = random_uniform(s->state) * total;
    for (int i = 0; i < n; i++) {
        sum += s->p[i];
        if (u < sum)
            return s->kept[i];
    }
    return s->kept[0]; /* rounding at the very end of the range: take the likeliest */
}

static double weight(const struct sampler *s, const float *logits, int32_t id, double top)
{
    return exp((logit(logits, id) - top) / s->o.temperature);
}

/* No rank limit: every token that passes min_p, in id order. Needs no ranking at all. */
static int keep_all(struct sampler *s, const float *logits, int n, double top)
{
    int kept = 0;
    for (int32_t i = 0; i < n; i++) {
        double p = weight(s, logits, i, top);
        if (p > 0 && p >= s->o.min_p) { /* the best one has weight 1 */
            s->kept[kept] = i;
            s->p[kept++] = p;
        }
    }
    return kept;
}

/* The first k by rank, cut where they hold top_p of the k's probability, then min_p. */
static int keep_ranked(struct sampler *s, const float *logits, int n, int k, double top)
{
    double total = 0, sum = 0;
    int left = n, kept = 0, cut = 0;
    for (int32_t i = 0; i < n; i++) {
        s->heap[i] = i;
        if (k == n)
            total += weight(s, logits, i, top);
    }
    for (int i = n / 2 - 1; i >= 0; i--)
        sift_down(logits, s->heap, n, i);
    /* With k off the nucleus is known beforehand and few tokens are taken; with k on, the k are. */
    while (kept < k && (kept == 0 || k < n || sum < s->o.top_p * total)) {
        s->kept[kept] = heap_pop(logits, s->heap, &left);
        s->p[kept] = weight(s, logits, s->kept[kept], top);
        sum += s->p[kept++];
    }
    if (k < n)
        total = sum;
    sum = 0;
    while (cut < kept && s->p[cut] > 0 && s->p[cut] >= s->o.min_p &&
           (cut == 0 || s->o.top_p >= 1 || sum < s->o.top_p * total))
        sum += s->p[cut++];
    return cut;
}

int32_t sampler_next(struct sampler *s, const float *logits, int limit)
{
    int n = limit < s->vocab ? limit : s->vocab;
    if (n < 1)
        return 0;
    int32_t best = greedy(logits, n);
    double top = logit(logits, best);
    if (s->o.temperature <= 0 || !isfinite(top))
        return best;
    int k = s->o.top_k > 0 && s->o.top_k < n ? s->o.top_k : n;
    int kept =
        k == n && s->o.top_p >= 1 ? keep_all(s, logits, n, top) : keep_ranked(s, logits, n, k, top);
    return draw(s, kept);
}

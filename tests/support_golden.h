/* support_golden: the golden.json of a tiny checkpoint under tests/arch. */
#ifndef MLATHE_TESTS_SUPPORT_GOLDEN_H
#define MLATHE_TESTS_SUPPORT_GOLDEN_H

#include "core/base.h"

struct golden {
    int32_t *tokens, *greedy;
    int n, n_greedy;
    float *last;   /* [vocab] logits of the last position */
    float *first8; /* [n][8] logits of ids 0…7 at every position */
    int vocab;
    double tolerance; /* of max |gap| / rms(last) */
};
/* path of a golden.json; exits the test on a broken file. */
void golden_load(struct golden *g, const char *path);
void golden_free(struct golden *g);
/* max |logits − golden| / rms(golden last) over every stored logit; all [n][vocab]. */
double golden_error(const struct golden *g, const float *all);

#endif

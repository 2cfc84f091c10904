/* bench: llama-bench's protocol: pp<N> prefill and tg<N> decode at given depths, r repetitions
 * after one warm-up, mean and standard deviation in tokens a second. */
#ifndef MLATHE_SESSIONS_BENCH_H
#define MLATHE_SESSIONS_BENCH_H

#include "sessions/infer.h"

struct bench_options {
    int prompt, generate, repeat;
    const int *depth;
    int n_depth;
    enum dtype kv;
};
struct bench_row {
    char test[16]; /* "pp512", "tg128" */
    int depth;
    double tokens_per_sec, sd, min, max;
    size_t kv_bytes; /* at the end of the test */
};
/* rows: fresh memory, *n of them. */
int bench_run(const struct engine *g, const struct bench_options *o, const struct progress *p,
              struct bench_row **rows, int *n, struct err *e);

#endif

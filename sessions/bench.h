/* bench: llama-bench's protocol: pp<N> prefill and tg<N> decode at given depths, r repetitions
 * after one warm-up, mean and standard deviation in tokens a second. */
#ifndef MLATHE_SESSIONS_BENCH_H
#define MLATHE_SESSIONS_BENCH_H

#include "sessions/infer.h"

/* Another program on the same test, asked after each of our runs, so that both see the same
 * machine. */
struct bench_peer {
    int (*run)(void *user, int depth, int n, bool prefill, double *tokens_per_sec, struct err *e);
    void *user;
};
struct bench_options {
    int prompt, generate, repeat;
    const int *depth;
    int n_depth;
    enum dtype kv;
    const struct bench_peer *peer; /* NULL: none */
};
struct bench_row {
    char test[16]; /* "pp512", "tg128" */
    int depth;
    double tokens_per_sec, sd, min, max;
    size_t kv_bytes;   /* at the end of the test */
    size_t read_bytes; /* a token of a decode test: weights as the file has them, and the cache */
    double peer_tokens_per_sec, ratio; /* medians, ratio run by run; 0: no peer */
    double ratio_min, ratio_max;
};
/* rows: fresh memory, *n of them. */
int bench_run(const struct engine *g, const struct bench_options *o, const struct progress *p,
              struct bench_row **rows, int *n, struct err *e);

/* Bytes a second that all threads together read from memory, by a sweep of our own over more than
 * the caches hold, best of some; on a device what copies within its memory read and write. 0: no
 * room for it. */
double bench_bandwidth(const struct engine *g);
int bench_threads(const struct engine *g);
/* Bytes of weights that one token needs, as the file has them; of experts the chosen ones. */
size_t bench_weight_bytes(const struct model *m);

#endif

/* peer: another program that measures the same file, run as a child process: llama-bench, or any
 * command that prints its rates as JSON. */
#ifndef MLATHE_SESSIONS_PEER_H
#define MLATHE_SESSIONS_PEER_H

#include "core/base.h"

struct peer_test {
    const char *model;
    int threads, depth, n;
    bool prefill;
};
/* command: words, quoted as in a shell ('…' or "…"); no shell sees them. Of {model}, {prompt},
 * {generate}, {depth} and {threads} the values are put in; a command without any is llama-bench's
 * path and gets its options. Output: llama-bench's -o json, or {"rows": [{"test": "tg128",
 * "tokens_per_sec": …}]}. */
int peer_run(const char *command, const struct peer_test *t, double *tokens_per_sec, struct err *e);

#endif

/* eval: perplexity of a model on a text by a named protocol, and KL against another model. */
#ifndef MLATHE_SESSIONS_EVAL_H
#define MLATHE_SESSIONS_EVAL_H

#include "core/tokenizer.h"
#include "sessions/infer.h"

enum eval_protocol {
    /* The usual Hugging Face script: the file's lines are the data set's rows (each keeps its
     * newline; one of only blanks is the empty row), joined by two newlines; whole windows, no BOS;
     * every token but a window's first is scored. */
    EVAL_HF,
    /* llama.cpp's perplexity tool: the file as it is, each window starts with BOS where the model
     * wants one; the second half is scored. */
    EVAL_LLAMACPP,
};
struct eval_options {
    const char *file;
    enum eval_protocol protocol;
    int ctx;
    int windows; /* 0: all; otherwise the first N */
    enum dtype kv; /* cache type: F32 (0) or F16 */
};
struct eval_result {
    double ppl, ppl_err;     /* of the model: exp of the mean NLL, one standard error */
    double ppl_against;      /* of the original, when given */
    /* Over the positions that feed a scored token and, in HF windows, the last. */
    double kl_mean, kl_err, kl_p99, same_top1;
    long long tokens;        /* scored */
    int windows;
    double seconds;
    bool compared;
};
/* Refuses a text shorter than a window, and logits that are no numbers.
 * against: NULL, or the original's engine (same tokenizer). Logits are made in blocks; memory does
 * not grow with the text. */
int eval_ppl(const struct engine *model, const struct engine *against, const struct tokenizer *t,
             const struct eval_options *o, const struct progress *p, struct eval_result *out,
             struct err *e);
/* The token ids of a text file under a protocol (shared with calibration): appends to out. */
int eval_text_ids(const struct tokenizer *t, const char *file, enum eval_protocol protocol,
                  struct ids *out, struct err *e);

#endif

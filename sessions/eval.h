/* eval: perplexity of a model on a text by a named protocol, and KL against another model. */
#ifndef MLATHE_SESSIONS_EVAL_H
#define MLATHE_SESSIONS_EVAL_H

#include "core/tokenizer.h"
#include "sessions/infer.h"

enum eval_protocol {
    EVAL_HF,       /* rows joined by blank lines, whole windows, no BOS, exp of the mean NLL */
    EVAL_LLAMACPP, /* the file as it is, BOS where the model wants it, second halves scored */
};
struct eval_options {
    const char *file;
    enum eval_protocol protocol;
    int ctx;
    int windows; /* 0: all; otherwise the first N */
};
struct eval_result {
    double ppl, ppl_err;     /* of the model */
    double ppl_against;      /* of the original, when given */
    double kl_mean, kl_err, kl_p99, same_top1;
    long long tokens;        /* scored */
    int windows;
    double seconds;
    bool compared;
};
/* against: NULL, or the original's engine (same tokenizer). Logits are made in blocks; memory does
 * not grow with the text. */
int eval_ppl(const struct engine *model, const struct engine *against, const struct tokenizer *t,
             const struct eval_options *o, const struct progress *p, struct eval_result *out,
             struct err *e);
/* The token ids of a text file under a protocol (shared with calibration): appends to out. */
int eval_text_ids(const struct tokenizer *t, const char *file, enum eval_protocol protocol,
                  struct ids *out, struct err *e);

#endif

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
    /* The file as it is, no BOS; windows as in EVAL_HF. */
    EVAL_PLAIN,
};
#define EVAL_PROTOCOLS 3
/* "hf", … */
const char *eval_protocol_name(enum eval_protocol p);
bool eval_protocol_find(const char *name, enum eval_protocol *out);
struct eval_result;
struct eval_options {
    const char *file;
    enum eval_protocol protocol;
    int ctx;
    int windows; /* 0: all; otherwise the first N */
    enum dtype kv; /* cache type: F32 (0) or F16 */
    const char *csv; /* NULL, or a file for a row a scored token */
    void (*partial)(void *user, const struct eval_result *r); /* after each block; may be NULL */
    void *user;
};
#define EVAL_BINS 32 /* stretches of equal length that a window is seen in */
struct eval_bin {
    int from, to;            /* tokens before the one predicted: from … to − 1 */
    long long tokens;        /* scored there, in all windows */
    double nll, nll_against, kl; /* means, nats; NaN where there is nothing */
};
/* Errors are one standard error. A difference of two models is paired: token by token. */
struct eval_result {
    double ppl, ppl_err;     /* of the model: exp of the mean NLL */
    double ppl_against, ppl_against_err; /* of the original, when given */
    /* As ppl_err, from the spread of whole windows: tokens of one window hang together, so this is
     * the honest one where there are many windows. NaN below two. */
    double ppl_err_windows;
    double nll_diff, nll_diff_err, nll_diff_err_windows; /* NLL of the model − the original's */
    /* Over the positions that feed a scored token and, in HF windows, the last. */
    double kl_mean, kl_err, kl_p50, kl_p90, kl_p95, kl_p99, kl_max;
    double same_top1, same_top1_err;
    long long tokens;        /* scored */
    int windows, windows_total; /* done (a begun one counts in partial results), and asked for */
    double seconds;
    bool compared;
    int n_bin;
    struct eval_bin bin[EVAL_BINS];
};
/* 95 % of a normal distribution lie within so many standard errors. */
#define EVAL_CI95 1.959964
/* Refuses a text shorter than a window, and logits that are no numbers.
 * against: NULL, or the original's engine (same tokenizer). Logits are made in blocks; memory does
 * not grow with the text. */
int eval_ppl(const struct engine *model, const struct engine *against, const struct tokenizer *t,
             const struct eval_options *o, const struct progress *p, struct eval_result *out,
             struct err *e);
/* A text as the hf protocol joins its lines, fresh memory (NULL: none left). */
char *eval_join_rows(const char *text, size_t size, size_t *out_size);
/* The token ids of a text file under a protocol (shared with calibration): appends to out. */
int eval_text_ids(const struct tokenizer *t, const char *file, enum eval_protocol protocol,
                  struct ids *out, struct err *e);

#endif

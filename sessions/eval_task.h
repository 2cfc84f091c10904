/* eval_task: multiple choice, as lm-evaluation-harness and llama.cpp score it. The tokens of
 * "context ending" from where the context alone ends are summed as log-probabilities; of equal
 * sums the first answer is taken. BOS where the model wants one; contexts too long for the model
 * lose their beginning. What the answers of a question share is computed once. */
#ifndef MLATHE_SESSIONS_EVAL_TASK_H
#define MLATHE_SESSIONS_EVAL_TASK_H

#include "core/choice.h"
#include "sessions/eval.h"

/* How answers are compared. */
enum task_rule {
    TASK_SUM,       /* "acc": the sum */
    TASK_CHARACTER, /* "acc_norm": divided by the ending's characters (without the blank) */
    TASK_TOKEN,     /* "acc_token": mean over the tokens that not all answers share (llama.cpp) */
    TASK_RULES
};
struct task_result;
struct task_options {
    const char *file;
    enum choice_task task;
    long limit;    /* 0: all; otherwise the first N questions */
    enum dtype kv; /* cache type: F32 (0) or F16 */
    const char *csv; /* NULL, or a file for a row a question */
    void (*partial)(void *user, const struct task_result *r); /* after each batch; may be NULL */
    void *user;
};
struct task_rate {
    double mean, err; /* one standard error; NaN below two questions */
};
struct task_result {
    enum choice_task task;
    int n, total;  /* questions scored, and asked for */
    int truncated; /* of them, with a context cut to fit the model */
    bool compared;
    struct task_rate acc[TASK_RULES];         /* of the model */
    struct task_rate acc_against[TASK_RULES]; /* of the original, when compared */
    struct task_rate diff[TASK_RULES];        /* model − original, paired by question */
    double same[TASK_RULES];                  /* share of questions answered alike */
    long long tokens, tokens_unique; /* read by each model; in the texts, shared ones once */
    double seconds;
};
/* model, against and t as in eval_ppl. */
int eval_task(const struct engine *model, const struct engine *against, const struct tokenizer *t,
              const struct task_options *o, const struct progress *p, struct task_result *out,
              struct err *e);

#endif

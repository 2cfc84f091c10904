/* heal: minutes of distillation that close part of a conversion's gap: the original teaches, the
 * converted attention tensors learn (method: section 9).
 *
 * The best weights by held-out KL are kept, those of the start included, so that healing never
 * makes a conversion worse on that text. With a folder, the best conversion and a checkpoint are
 * written there as training goes: the same call goes on after an interruption, with the same
 * numbers. */
#ifndef MLATHE_SESSIONS_HEAL_H
#define MLATHE_SESSIONS_HEAL_H

#include "core/base.h"

struct plan_model;

/* The tensors that can be trained; over normed heads Q is the rope query q_rope. */
enum heal_part { HEAL_Q, HEAL_KV_A, HEAL_KV_B, HEAL_O, HEAL_PARTS };
#define HEAL_ALL ((1u << HEAL_PARTS) - 1)
extern const char *const heal_part_names[HEAL_PARTS];
/* "kv_b,q" → bits. */
int heal_parts_parse(const char *list, unsigned *parts, struct err *e);

struct heal_options {
    long long tokens; /* stop after so many; 0: no such limit */
    double seconds;   /* of training and measuring; 0: no such limit */
    double until_kl;  /* stop at this held-out KL; 0: no */
    double rate;      /* of a step, relative to each tensor's rms; 0: by the size of the loss */
    unsigned parts;   /* bits of enum heal_part; 0: all */
    uint64_t seed;
    double mix;        /* share of next-token loss */
    double match;      /* weight of matching the layers' outputs */
    int length;        /* tokens of most sequences; 0: 256. Some are four times as long */
    int batch;         /* tokens of a batch; 0: chosen by the budget */
    int accumulate;    /* batches of a step; 0: 1 */
    bool exact;        /* what is not trained multiplies in fp32, not in int8 */
    long long refit_tokens; /* for least squares before training; 0: chosen by the budget, < 0: none */
    int held_out;      /* tokens measured on; 0: chosen by the budget */
    size_t tape_bytes; /* activations kept up to this; 0: 1 GiB. Beyond, they are made again */
    const char *dir;   /* NULL: nothing is written */
    const char *base_path;
    const struct plan_model *plan_model; /* to reopen dir */
    double checkpoint_sec;               /* at most so often; 0: 60, < 0: after every step */
};

struct heal_point {
    long long step, tokens;
    double seconds;
    double train_kl; /* since the last point of a curve, or of this step */
    double held_kl;  /* NAN where it was not measured */
    double rate;
};
struct heal_sink {
    void (*on_step)(void *user, const struct heal_point *p);
    void (*note)(void *user, const char *text); /* what happened on the way, a sentence */
    void *user;
};
struct heal_report {
    long long steps, tokens;
    double seconds, seconds_training; /* all of it; without measuring and saving */
    double tokens_per_sec;            /* of training, the original's forward pass included */
    double kl_before, kl_after;       /* held out */
    struct heal_point *curve;         /* owned: [n], one a measurement */
    size_t n, cap;
    char end[160]; /* why it ended, a sentence's second half */
    bool resumed;
};
void heal_report_done(struct heal_report *r);

/* The file of an unfinished run in dir, fresh memory; NULL when there is none. */
char *heal_unfinished(const char *dir);
/* Removes an unfinished run's checkpoint; the best that it reached stays. */
void heal_forget(const char *dir);

#endif

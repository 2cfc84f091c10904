/* heal_run: a run of healing, and its state, which heal.c moves and heal_state.c saves and
 * restores. */
#ifndef MLATHE_SESSIONS_HEAL_RUN_H
#define MLATHE_SESSIONS_HEAL_RUN_H

#include "core/json.h"
#include "sessions/conversion.h"
#include "sessions/heal_net.h"
#include "sessions/heal_teacher.h"
#include "sessions/heal_text.h"

/* *c: a conversion_copy that owns all that is trained; it becomes the best that was found, or another
 * one takes its place (also when ERR_CANCELLED says that p stopped it: then what was reached is in
 * *c, in out and in the folder). */
int heal_run(struct conversion **c, const struct engine *original, struct heal_text *text,
             const struct heal_options *o, const struct heal_sink *sink, const struct progress *p,
             struct heal_report *out, struct err *e);

#define HEAL_LONG_SHARE 4 /* a quarter of the tokens is in longer sequences */

/* What a run needs to go on; all of it is in a checkpoint. */
struct heal_state {
    long long step, batch, sequence, tokens;
    long long updates; /* since the moments were last emptied */
    double seconds, seconds_training;
    double norm_avg;              /* of gradient norms, for clipping */
    double loss_avg, loss_weight; /* running KL of training */
    double scale;                 /* halvings of the rate */
    double kl_before, kl_best;
    double train_sum; /* of KL since the last measurement */
    long long train_steps;
    long long refit_tokens;
    long long measured, stale, bad; /* measurements; without progress; steps that gave no number */
};

struct heal_moment { /* of a trained tensor */
    float *m, *v;
    double rms;
};

struct heal_held { /* a batch of held-out sequences and the original's last states on it */
    int32_t *ids;
    int *start, n_seq;
    float *states;
};

struct heal {
    struct conversion *c;
    struct heal_text *text;
    struct heal_options o;
    const struct heal_sink *sink;
    const struct progress *p;
    struct heal_net *net;
    struct heal_teacher teacher;
    struct heal_moment *moment; /* [heal_net_count] */
    struct heal_held *held;
    int n_held, rows, length, longer, long_every;
    int32_t *ids, *next;
    int *start;
    struct heal_state s;
    struct heal_report *out;
    char source[65]; /* what was healed: fingerprint of its tensors */
    double started_sec, saved_sec;
    bool best_saved, stopping;
    cJSON *unfinished; /* the description of the run that this one goes on with, or NULL */
    char *lines;       /* filter of the text's lines, once it is made */
    int history;       /* this run's place in c->healing, -1: none yet */
};

/* heal.c: asked before every layer, user is a struct heal; false: stop. */
bool heal_go_on(void *user);
/* heal_setup.c: tokens that the budget will come to; batch, lengths and what else was not said; a net
 * of h->c and its optimiser (in the place of the one before), dropped at the end; the net, a batch's
 * room and the teacher; the held-out batches. */
long long heal_expected_tokens(const struct heal_options *o);
void heal_choose_sizes(struct heal *h);
int heal_make_net(struct heal *h, const struct engine *original, struct err *e);
void heal_drop_net(struct heal *h);
int heal_prepare(struct heal *h, const struct engine *original, struct err *e);
int heal_hold_out(struct heal *h, struct err *e);
/* Sequences of len tokens, numbers *i and on, until rows are full; at most `most` of them. */
int heal_fill(struct heal *h, bool held_out, long long *i, int len, int rows, int most, int32_t *ids,
              int *start, int *n_seq, struct err *e);
/* heal_refit.c: a refitted copy of h->c in *out, NULL where there is too little to do it with. */
int heal_refit(struct heal *h, const struct engine *original, struct conversion **out,
               struct err *e);
/* heal_state.c */
/* Writes the best conversion (when it changed) and a checkpoint into o.dir. */
int heal_save(struct heal *h, struct err *e);
/* Looks for an unfinished run in o.dir; refuses one of another conversion (h->source), other text or
 * options, and takes its sizes. Then h->c becomes the best that it reached, and after the net is made
 * heal_restore goes on where it stopped. */
int heal_resume(struct heal *h, struct err *e);
int heal_take_best(struct heal *h, struct err *e);
int heal_restore(struct heal *h, struct err *e);
/* The run is over: best conversion with its history saved, checkpoint removed. */
int heal_finish(struct heal *h, struct err *e);
void heal_fingerprint(const struct heal *h, char hex[65]);
/* The conversion's own numbers of tensor i of the net. */
float *heal_numbers(const struct heal *h, int i);
int heal_add_point(struct heal_report *r, const struct heal_point *p, struct err *e);

#endif

/* The training loop: batches, losses, Adam with everything that keeps it honest (clipping, warm-up,
 * cosine, held-out measurements, the best kept, steps back from what is no number). Refuses text
 * and memory that are too small. */
#include "sessions/heal_run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "sessions/clock.h"

#define WARM_UP 5 /* steps */
#define CLIP 2.0  /* times the running mean of gradient norms */
#define BETA1 0.9
#define BETA2 0.95
#define BAD_MOST 3           /* losses that are no number */
#define STALE_HALVE 2        /* measurements without progress until the rate is halved, */
#define STALE_STOP 6         /* and until the run ends */
#define MATCHES_TO_KEEP 1e-9 /* a KL this much better counts as progress */

/* The rate for a loss of this size (method: section 9) and a budget. */
static double rate_for(double kl, long long tokens)
{
    /* 1e-4 at .2 and 1e-3 at 1, a power law between and below, for ten thousand tokens. What a
     * larger rate spoils first, a longer run wins back and more: at KL .37, 3e-4 was best for
     * 10,240 tokens, 6e-4 beat it for 40,960. Small losses bear less of that: at .12, 2e-4 lost
     * ground for 13,312 tokens where 5e-5 gained. */
    double most = fmin(fmax(1 + 2 * kl / 0.37, 1), 3);
    double longer = fmin(fmax(sqrt((double)tokens / 1e4), 1), most);
    return 1e-3 * pow(fmin(fmax(kl, 0.02), 1), log(10) / log(5)) * longer;
}

void heal_report_done(struct heal_report *r)
{
    free(r->curve);
    r->curve = NULL;
    r->n = r->cap = 0;
}

int heal_add_point(struct heal_report *r, const struct heal_point *p, struct err *e)
{
    void *grown = r->curve;
    if (!mem_grow(&grown, &r->cap, r->n + 1, sizeof *r->curve))
        return err_nomem(e, r->n * sizeof *r->curve, "a curve");
    r->curve = grown;
    r->curve[r->n++] = *p;
    return OK;
}

static void note(const struct heal *h, const char *text)
{
    if (h->sink && h->sink->note)
        h->sink->note(h->sink->user, text);
}

static double elapsed(const struct heal *h)
{
    return h->s.seconds + clock_now() - h->started_sec;
}

/* How much of the budget is used, 0 … 1. */
static double used(const struct heal *h)
{
    double share = 0;
    if (h->o.tokens)
        share = (double)h->s.tokens / (double)h->o.tokens;
    if (h->o.seconds > 0)
        share = fmax(share, elapsed(h) / h->o.seconds);
    return fmin(share, 1);
}

bool heal_go_on(void *user)
{
    struct heal *h = user;
    char phase[96];
    double speed = h->s.seconds_training > 0 ? (double)h->s.tokens / h->s.seconds_training : 0;
    if (h->s.step && speed > 0)
        snprintf(phase, sizeof phase, "healing: KL %.4f (%.4f before), %.0f tok/s", h->s.kl_best,
                 h->s.kl_before, speed);
    else
        snprintf(phase, sizeof phase, "healing: measuring the start");
    h->stopping = h->stopping || !progress_report(h->p, phase, used(h), 1);
    return !h->stopping;
}

float *heal_numbers(const struct heal *h, int i)
{
    const struct heal_tensor *t = &h->net->tensor[i];
    const struct model_layer *y = &h->c->model.layer[t->layer];
    const void *all[HEAL_PARTS] = {[HEAL_Q] = y->q_rope.data ? y->q_rope.data : y->q.data,
                                   [HEAL_KV_A] = y->kv_a.data,
                                   [HEAL_KV_B] = y->kv_b.data,
                                   [HEAL_O] = y->o.data};
    return (float *)(uintptr_t)all[t->part];
}

static size_t tensor_bytes_of(const struct heal *h, int i)
{
    return h->net->tensor[i].rows * h->net->tensor[i].cols * sizeof(float);
}

static void keep_best(struct heal *h)
{
    for (int i = 0; i < heal_net_count(h->net); i++)
        if (h->net->tensor[i].trained)
            memcpy(heal_numbers(h, i), h->net->tensor[i].w, tensor_bytes_of(h, i));
    h->best_saved = false;
}

/* Back to the best, with empty moments. */
static void go_back(struct heal *h)
{
    for (int i = 0; i < heal_net_count(h->net); i++) {
        if (!h->net->tensor[i].trained || !tensor_bytes_of(h, i))
            continue;
        memcpy(h->net->tensor[i].w, heal_numbers(h, i), tensor_bytes_of(h, i));
        memset(h->moment[i].m, 0, tensor_bytes_of(h, i));
        memset(h->moment[i].v, 0, tensor_bytes_of(h, i));
    }
    h->s.updates = 0;
    h->s.norm_avg = 0;
    h->s.scale *= 0.5;
}

static void fill_next(struct heal *h, int n_seq)
{
    for (int s = 0; s < n_seq; s++)
        for (int t = h->start[s]; t < h->start[s + 1]; t++)
            h->next[t] = t + 1 < h->start[s + 1] ? h->ids[t + 1] : -1;
}

/* --- measuring ---------------------------------------------------------------------------- */

static int measure(struct heal *h, double *kl, struct err *e)
{
    struct heal_loss sum = {0};
    struct heal_target t = {.logits = heal_teacher_logits, .user = &h->teacher};
    int rc = OK;
    for (int i = 0; i < h->n_held && !rc; i++) {
        const struct heal_held *b = &h->held[i];
        rc = heal_net_forward(h->net, b->ids, b->start, b->n_seq, e);
        heal_teacher_put(&h->teacher, b->states, b->start[b->n_seq]);
        if (!rc)
            rc = heal_net_loss(h->net, &t, false, &sum, e);
    }
    *kl = sum.rows ? sum.kl / (double)sum.rows : NAN;
    return rc;
}

static double rate_now(const struct heal *h)
{
    double base = h->o.rate, warm = fmin(1, (double)(h->s.updates + 1) / WARM_UP);
    double left = 0.5 + 0.5 * cos(3.14159265358979 * used(h));
    if (!(base > 0)) /* by the size of the loss, smaller as it falls */
        base =
            rate_for(h->s.loss_weight > 0 ? fmin(h->s.kl_before, h->s.loss_avg / h->s.loss_weight)
                                          : h->s.kl_before,
                     heal_expected_tokens(&h->o));
    return base * warm * left * h->s.scale;
}

/* Measures, keeps what is best, halves the rate where it does not get better. */
static int look(struct heal *h, struct err *e)
{
    double kl;
    int rc = measure(h, &kl, e);
    if (rc)
        return rc;
    struct heal_point p = {.step = h->s.step,
                           .tokens = h->s.tokens,
                           .seconds = elapsed(h),
                           .train_kl =
                               h->s.train_steps ? h->s.train_sum / (double)h->s.train_steps : NAN,
                           .held_kl = kl,
                           .rate = h->s.step ? rate_now(h) : 0};
    h->s.train_sum = 0;
    h->s.train_steps = 0;
    h->s.measured++;
    if (h->s.measured == 1) {
        if (!isfinite(kl))
            return err_set(e, ERR_NUMERIC,
                           "the KL before healing is no number: is the conversion, "
                           "or the original, broken?");
        h->s.kl_before = h->s.kl_best = kl;
    } else if (kl < h->s.kl_best - MATCHES_TO_KEEP) {
        h->s.kl_best = kl;
        h->s.stale = 0;
        keep_best(h);
    } else if (++h->s.stale % STALE_HALVE == 0 && used(h) < 1) {
        char text[160];
        snprintf(text, sizeof text,
                 "held-out KL %.4f is no better than %.4f: back to the best, half the rate", kl,
                 h->s.kl_best);
        note(h, text);
        go_back(h);
    }
    rc = heal_add_point(h->out, &p, e);
    if (!rc && h->sink && h->sink->on_step)
        h->sink->on_step(h->sink->user, &p);
    return rc;
}

/* --- steps -------------------------------------------------------------------------------- */

/* One batch forward and backward; its mean KL. */
static int run_batch(struct heal *h, double *kl, int *rows, struct err *e)
{
    struct heal_loss sum = {0};
    bool longer = h->s.batch % h->long_every == h->long_every - 1;
    int len = longer ? h->longer : h->length, want = longer ? h->longer : h->o.batch, n_seq;
    int rc =
        heal_fill(h, false, &h->s.sequence, len, want, want / len, h->ids, h->start, &n_seq, e);
    if (rc)
        return rc;
    fill_next(h, n_seq);
    *rows = h->start[n_seq];
    struct heal_target t = {.logits = heal_teacher_logits,
                            .user = &h->teacher,
                            .next = h->o.mix > 0 ? h->next : NULL,
                            .mix = h->o.mix,
                            .weight = 1.0 / ((double)*rows * h->o.accumulate),
                            .outputs = (const float *const *)h->teacher.outputs,
                            .match = h->o.match};
    rc = heal_teacher_run(&h->teacher, h->ids, h->start, n_seq, e);
    if (!rc)
        rc = heal_net_forward(h->net, h->ids, h->start, n_seq, e);
    if (!rc)
        rc = heal_net_loss(h->net, &t, true, &sum, e);
    *kl = sum.rows ? sum.kl / (double)sum.rows : NAN;
    return rc;
}

/* Norm of the gradient in units of each tensor's rms. */
static double gradient_norm(const struct heal *h)
{
    double sum = 0;
    for (int i = 0; i < heal_net_count(h->net); i++) {
        const struct heal_tensor *t = &h->net->tensor[i];
        if (t->g && tensor_bytes_of(h, i) > 0)
            sum += h->moment[i].rms * h->moment[i].rms *
                   h->net->op->sum_squares(h->net->pool, t->g, t->rows * t->cols);
    }
    return sqrt(sum);
}

static void update(struct heal *h, double norm)
{
    struct heal_state *s = &h->s;
    double factor = 1, top = CLIP * s->norm_avg;
    if (s->updates >= WARM_UP && norm > top)
        factor = top / norm;
    double seen = s->updates >= WARM_UP ? fmin(norm, top) : norm;
    double keep = s->updates == 0 ? 0 : s->updates < WARM_UP ? 0.5 : 0.9;
    s->norm_avg = keep * s->norm_avg + (1 - keep) * seen;
    double rate = rate_now(h);
    s->updates++;
    for (int i = 0; i < heal_net_count(h->net); i++) {
        const struct heal_tensor *t = &h->net->tensor[i];
        struct grad_adam a = {.rate = rate * h->moment[i].rms,
                              .beta1 = BETA1,
                              .beta2 = BETA2,
                              .eps = 1e-12,
                              .fix1 = 1 - pow(BETA1, (double)s->updates),
                              .fix2 = 1 - pow(BETA2, (double)s->updates),
                              .factor = factor};
        if (t->g && tensor_bytes_of(h, i) > 0)
            h->net->op->adam(h->net->pool, t->w, t->g, h->moment[i].m, h->moment[i].v,
                             t->rows * t->cols, &a);
    }
}

/* What is no number must not spread: back to the best, half the rate. */
static void step_back(struct heal *h, double kl)
{
    char text[160];
    go_back(h);
    if (++h->s.bad >= BAD_MOST) {
        snprintf(h->out->end, sizeof h->out->end,
                 "the loss was no number %lld times; the best before is kept", h->s.bad);
        return;
    }
    snprintf(text, sizeof text,
             "step %lld: the loss is %g, no usable number: back to the best, "
             "half the rate",
             h->s.step + 1, kl);
    note(h, text);
}

static int step(struct heal *h, struct err *e)
{
    double start = clock_now(), sum = 0;
    long long batch = h->s.batch, sequence = h->s.sequence, tokens = 0;
    int rc = OK;
    heal_net_zero(h->net);
    for (int k = 0; k < h->o.accumulate && !rc; k++) {
        double kl;
        int rows = 0;
        rc = run_batch(h, &kl, &rows, e);
        sum += rc ? 0 : kl / h->o.accumulate;
        tokens += rows;
        h->s.batch++;
    }
    if (rc) { /* nothing has changed: this step will be made again */
        h->s.batch = batch;
        h->s.sequence = sequence;
        return rc;
    }
    double norm = gradient_norm(h);
    h->s.tokens += tokens;
    if (!isfinite(sum) || !isfinite(norm)) {
        step_back(h, sum);
    } else {
        update(h, norm);
        h->s.loss_avg = 0.9 * h->s.loss_avg + 0.1 * sum;
        h->s.loss_weight = 0.9 * h->s.loss_weight + 0.1;
        h->s.train_sum += sum;
        h->s.train_steps++;
    }
    h->s.step++;
    h->s.seconds_training += clock_now() - start;
    struct heal_point p = {h->s.step, h->s.tokens, elapsed(h), sum, NAN, rate_now(h)};
    if (!rc && h->sink && h->sink->on_step)
        h->sink->on_step(h->sink->user, &p);
    return rc;
}

/* --- the run ------------------------------------------------------------------------------ */

/* Measurements of a run, spread evenly over it. */
static int looks(const struct heal *h)
{
    return (int)fmin(fmax((double)heal_expected_tokens(&h->o) / 7500, 2), 10);
}

static bool over(struct heal *h)
{
    char *end = h->out->end;
    size_t size = sizeof h->out->end;
    if (end[0])
        return true;
    if (h->o.until_kl > 0 && h->s.kl_best <= h->o.until_kl)
        snprintf(end, size, "held-out KL reached %.4f", h->s.kl_best);
    else if (h->s.stale >= STALE_STOP)
        snprintf(end, size, "held-out KL got no better in %lld measurements", h->s.stale);
    else if (used(h) >= 1)
        snprintf(end, size, "the budget is used");
    return end[0] != 0;
}

static int save_sometimes(struct heal *h, struct err *e)
{
    double now = clock_now();
    if (!h->o.dir || (h->o.checkpoint_sec > 0 && now - h->saved_sec < h->o.checkpoint_sec))
        return OK;
    int rc = heal_save(h, e);
    h->saved_sec = clock_now();
    return rc;
}

static int train(struct heal *h, struct err *e)
{
    int n = looks(h), rc = OK;
    if (!h->out->resumed) /* what least squares have used of the budget needs no measurements */
        h->s.measured = (long long)(used(h) * n) + 1;
    if (h->o.dir && !h->out->resumed)
        rc = heal_save(h, e); /* a disk that is full says so at once */
    while (!rc && !over(h)) {
        rc = step(h, e);
        if (!rc && (used(h) * n >= h->s.measured || h->out->end[0]))
            rc = look(h, e);
        if (!rc)
            rc = save_sometimes(h, e);
    }
    return rc;
}

/* r takes the place of h->c if it is better. Stopped meanwhile, the run has not begun: it will do all
 * of this again. */
static int try_refitted(struct heal *h, const struct engine *original, struct conversion *r,
                        struct err *e)
{
    struct conversion *was = h->c;
    struct err failed;
    double kl = NAN;
    h->c = r;
    int rc = heal_make_net(h, original, e);
    if (!rc)
        rc = look(h, e);
    if (!rc)
        kl = h->out->curve[h->out->n - 1].held_kl;
    if (!rc && kl <= h->s.kl_best) {
        conversion_free(was);
        return OK;
    }
    h->c = was;
    h->s.refit_tokens = 0;
    if (rc)
        h->s.measured = 0, h->out->n = 0;
    else
        note(h, "least squares did not help: left out");
    int again = heal_make_net(h, original, rc ? &failed : e); /* before r, which the net looks at */
    conversion_free(r);
    return rc ? rc : again;
}

static void run_done(struct heal *h)
{
    for (int i = 0; i < h->n_held; i++) {
        free(h->held[i].ids);
        free(h->held[i].start);
        free(h->held[i].states);
    }
    cJSON_Delete(h->unfinished);
    free(h->lines);
    heal_teacher_done(&h->teacher);
    heal_drop_net(h);
    free(h->held);
    free(h->ids);
    free(h->next);
    free(h->start);
}

static void fill_report(struct heal *h)
{
    struct heal_report *r = h->out;
    r->steps = h->s.step;
    r->tokens = h->s.tokens;
    r->seconds = elapsed(h);
    r->seconds_training = h->s.seconds_training;
    r->tokens_per_sec = h->s.seconds_training > 0 ? (double)h->s.tokens / h->s.seconds_training : 0;
    r->kl_before = h->s.kl_before;
    r->kl_after = h->s.kl_best;
}

/* From the start, or from a checkpoint, to where training begins. */
static int begin(struct heal *h, const struct engine *original, struct err *e)
{
    struct conversion *refitted = NULL;
    heal_choose_sizes(h);
    int rc = h->unfinished ? heal_take_best(h, e) : heal_refit(h, original, &refitted, e);
    if (!rc)
        rc = heal_prepare(h, original, e);
    if (!rc && h->unfinished)
        rc = heal_restore(h, e);
    h->out->resumed = !rc && h->unfinished;
    if (!rc)
        rc = heal_hold_out(h, e);
    if (!rc && !h->s.measured)
        rc = look(h, e);
    if (rc)
        conversion_free(refitted);
    else if (refitted)
        rc = try_refitted(h, original, refitted, e);
    return rc;
}

int heal_run(struct conversion **c, const struct engine *original, struct heal_text *text,
             const struct heal_options *o, const struct heal_sink *sink, const struct progress *p,
             struct heal_report *out, struct err *e)
{
    struct heal h = {
        .c = *c, .text = text, .o = *o, .sink = sink, .p = p, .out = out, .history = -1};
    *out = (struct heal_report){0};
    h.s = (struct heal_state){.scale = 1, .kl_before = NAN, .kl_best = NAN};
    h.started_sec = h.saved_sec = clock_now();
    heal_fingerprint(&h, h.source);
    int rc = o->dir ? heal_resume(&h, e) : OK;
    if (!rc)
        rc = begin(&h, original, e);
    if (!rc)
        rc = train(&h, e);
    fill_report(&h);
    if (!rc && o->dir)
        rc = heal_finish(&h, e);
    if (rc == ERR_CANCELLED && h.net && h.s.measured && o->dir) {
        struct err failed = {0};
        if (heal_save(&h, &failed)) /* then the checkpoint before is the last good one */
            note(&h, failed.text);
    }
    if (rc == ERR_CANCELLED)
        snprintf(out->end, sizeof out->end, "stopped");
    *c = h.c;
    run_done(&h);
    return rc;
}

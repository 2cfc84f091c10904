/* Multiple choice. Questions are taken in batches: first what the answers of each share, all
 * questions in common blocks; then, on copies of that cache, the rest of every answer. Refuses
 * vocabularies that differ and endings longer than the model's context. */
#include "sessions/eval_task.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/metrics.h"
#include "kernels/pool.h"
#include "sessions/clock.h"

#define TASK_SLOTS 64                        /* timelines of one model at most */
#define TASK_CACHE_BYTES ((size_t)256 << 20) /* their caches, roughly */
#define TASK_BATCH_ROWS 512                  /* rows of answers worth collecting */

/* One answer as tokens. Token i is predicted by row i − 1. */
struct sequence {
    struct ids ids;
    int scored;     /* first token of the ending */
    int differs;    /* first token that not all answers share, ≥ scored */
    int characters; /* of the ending */
    double logprob[2][TASK_RULES];
};
struct question {
    int n, gold, shared; /* shared: tokens read once for all answers */
    bool cut;
    struct sequence a[CHOICE_MAX];
};

struct task_run {
    const struct engine *engine[2];
    const struct tokenizer *tokenizer;
    const struct task_options *o;
    const struct progress *progress; /* the caller's */
    struct progress relay;           /* what prefills are given */
    struct choice_set set;
    struct question *q; /* [set.n] */
    int vocab, context; /* context: of the timelines */
    struct infer **slot[2];
    int n_slot;
    struct infer_run *run; /* [n_slot] */
    struct sample correct[2][TASK_RULES], diff[TASK_RULES];
    long long same[TASK_RULES];
    long long tokens, unique;
    int truncated, done;
    struct file_writer *csv;
    /* The batch being read: what each kept row must predict, and how that went. */
    int32_t *target;
    double *nll;
    size_t cap_target, cap_nll, n_target, done_target;
    const float *logits;
};

/* ---- text to tokens ---- */

static int characters(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static int tokenize(struct task_run *r, const struct choice_answer *a, struct sequence *s,
                    struct err *e)
{
    struct ids alone = {0};
    size_t n = strlen(a->context), bare = n;
    char *text = mem_printf("%s %s", a->context, a->ending);
    while (bare > 1 && strchr(" \t\r\n", a->context[bare - 1]))
        bare--; /* blanks at its end belong to the ending's first token */
    int rc = text ? tokenizer_encode(r->tokenizer, text, strlen(text), TOKENIZE_BOS, &s->ids, e)
                  : err_nomem(e, n, "a question");
    if (!rc)
        rc = tokenizer_encode(r->tokenizer, a->context, bare, TOKENIZE_BOS, &alone, e);
    free(text);
    s->characters = characters(a->ending);
    s->scored = (int)alone.n;
    ids_free(&alone);
    if (!rc && s->scored >= (int)s->ids.n)
        s->scored = (int)s->ids.n - 1; /* the ending melted into the context's last token */
    if (!rc && s->scored < 1)
        s->scored = 1;
    if (!rc && s->ids.n < 2)
        rc = err_set(e, ERR_FORMAT, "a question of %zu tokens cannot be scored", s->ids.n);
    for (size_t i = 0; i < s->ids.n && !rc; i++)
        if (s->ids.v[i] < 0 || s->ids.v[i] >= r->vocab)
            rc = err_set(e, ERR_MISMATCH, "the tokenizer gives id %d, the model has %d tokens",
                         s->ids.v[i], r->vocab);
    return rc;
}

/* Drops the context's beginning where the model is too short for it all. */
static int fit(struct sequence *s, int most, bool *cut, struct err *e)
{
    int over = (int)s->ids.n - 1 - most; /* the last token is only predicted */
    if (over <= 0)
        return OK;
    if (over >= s->scored)
        return err_set(e, ERR_LIMIT,
                       "an ending of %d tokens does not fit the model's context of %d",
                       (int)s->ids.n - s->scored, most);
    memmove(s->ids.v, s->ids.v + over, (s->ids.n - (size_t)over) * sizeof *s->ids.v);
    s->ids.n -= (size_t)over;
    s->scored -= over;
    *cut = true;
    return OK;
}

static bool all_have(const struct question *q, int at)
{
    for (int i = 0; i < q->n; i++)
        if ((int)q->a[i].ids.n <= at || q->a[i].ids.v[at] != q->a[0].ids.v[at])
            return false;
    return true;
}

static int prepare_question(struct task_run *r, const struct choice_item *item, struct question *q,
                            int most, struct err *e)
{
    int common = 0, rc = OK;
    q->n = item->n;
    q->gold = item->gold;
    for (int i = 0; i < q->n && !rc; i++) {
        rc = tokenize(r, &item->answer[i], &q->a[i], e);
        if (!rc)
            rc = fit(&q->a[i], most, &q->cut, e);
    }
    if (rc)
        return rc;
    while (all_have(q, common))
        common++;
    q->shared = common;
    r->unique += common;
    for (int i = 0; i < q->n; i++) {
        struct sequence *s = &q->a[i];
        int n = (int)s->ids.n;
        s->differs = common > s->scored && common < n ? common : s->scored;
        /* The row that predicts an answer's first token belongs to the answer's own pass. */
        q->shared = s->scored - 1 < q->shared ? s->scored - 1 : q->shared;
        r->unique += n - 1 > common ? n - 1 - common : 0; /* the last is only predicted */
        r->context = n - 1 > r->context ? n - 1 : r->context;
    }
    /* An answer that is the beginning of another has one row of its own at least. */
    for (int i = 0; i < q->n; i++)
        if (q->shared > (int)q->a[i].ids.n - 2)
            q->shared = (int)q->a[i].ids.n - 2;
    r->truncated += q->cut;
    return OK;
}

static int prepare_questions(struct task_run *r, struct err *e)
{
    int most = engine_model(r->engine[0])->hp.context;
    struct err why = {0};
    if (r->engine[1] && engine_model(r->engine[1])->hp.context < most)
        most = engine_model(r->engine[1])->hp.context;
    for (size_t i = 0; i < r->set.n; i++) {
        if (!progress_report(r->progress, "tokenize (questions)", (double)i, (double)r->set.n))
            return err_set(e, ERR_CANCELLED, "evaluation stopped");
        int rc = prepare_question(r, &r->set.item[i], &r->q[i], most, &why);
        if (rc)
            return err_set(e, rc, "%s: question %zu: %s", r->o->file, i + 1, why.text);
    }
    return OK;
}

/* ---- tokens to log-probabilities ---- */

static void nll_row(void *arg, int i, int thread)
{
    struct task_run *r = arg;
    size_t at = r->done_target + (size_t)i;
    (void)thread;
    r->nll[at] = metrics_nll(r->logits + (size_t)i * (size_t)r->vocab, r->vocab, r->target[at]);
}

static void take_rows(void *user, int first, int n, const float *logits)
{
    struct task_run *r = user;
    r->done_target = (size_t)first;
    r->logits = logits;
    pool_for(engine_backend(r->engine[0])->pool, n, nll_row, r);
}

/* Timelines of model m hold what each question of the batch shares; the first of a question read
 * it, the others copy it. */
static int read_shared(struct task_run *r, int m, const struct question *q, int n, struct err *e)
{
    int slot = 0, runs = 0, rc = OK;
    for (int i = 0; i < n; slot += q[i].n, i++) {
        infer_rewind(r->slot[m][slot], 0);
        if (q[i].shared > 0)
            r->run[runs++] = (struct infer_run){r->slot[m][slot], q[i].a[0].ids.v, q[i].shared, 0};
    }
    if (runs)
        rc = infer_prefill_many(r->run, runs, NULL, &r->relay, e);
    slot = 0;
    for (int i = 0; i < n && !rc; slot += q[i].n, i++)
        for (int k = 1; k < q[i].n && !rc; k++)
            rc = infer_copy(r->slot[m][slot + k], r->slot[m][slot], q[i].shared, e);
    return rc;
}

static bool add_target(struct task_run *r, int32_t id)
{
    void *target = r->target, *nll = r->nll;
    bool ok = mem_grow(&target, &r->cap_target, r->n_target + 1, sizeof *r->target);
    r->target = target;
    ok = ok && mem_grow(&nll, &r->cap_nll, r->n_target + 1, sizeof *r->nll);
    r->nll = nll;
    if (ok)
        r->target[r->n_target++] = id;
    return ok;
}

static int read_answers(struct task_run *r, int m, const struct question *q, int n, struct err *e)
{
    struct infer_rows rows = {take_rows, r};
    int runs = 0;
    bool ok = true;
    r->n_target = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < q[i].n; k++) {
            const struct sequence *s = &q[i].a[k];
            int len = (int)s->ids.n;
            r->run[runs] = (struct infer_run){r->slot[m][runs], s->ids.v + q[i].shared,
                                              len - 1 - q[i].shared, len - s->scored};
            runs++;
            for (int j = s->scored; j < len; j++)
                ok = ok && add_target(r, s->ids.v[j]);
        }
    return ok ? infer_prefill_many(r->run, runs, &rows, &r->relay, e)
              : err_nomem(e, r->n_target * sizeof *r->nll, "a batch of questions");
}

static int sum_answers(struct task_run *r, int m, struct question *q, int n, struct err *e)
{
    size_t at = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < q[i].n; k++) {
            struct sequence *s = &q[i].a[k];
            int len = (int)s->ids.n;
            double sum = 0, tail = 0;
            for (int j = s->scored; j < len; j++, at++) {
                sum -= r->nll[at];
                tail -= j >= s->differs ? r->nll[at] : 0;
            }
            if (!isfinite(sum))
                return err_set(e, ERR_NUMERIC, "%s: the logits of an answer are no numbers",
                               r->o->file);
            s->logprob[m][TASK_SUM] = sum;
            s->logprob[m][TASK_CHARACTER] = sum / s->characters;
            s->logprob[m][TASK_TOKEN] = tail / (len - s->differs);
        }
    return OK;
}

/* ---- log-probabilities to results ---- */

static int pick(const struct question *q, int m, enum task_rule rule)
{
    int best = 0;
    for (int k = 1; k < q->n; k++)
        if (q->a[k].logprob[m][rule] > q->a[best].logprob[m][rule])
            best = k;
    return best;
}

static int write_row(struct task_run *r, int index, const struct question *q, struct err *e)
{
    char line[64 + 4 * CHOICE_MAX * 32];
    size_t n = (size_t)snprintf(line, sizeof line, "%d,%d", index, q->gold);
    for (int m = 0; m < 2 && r->engine[m]; m++) {
        for (int rule = 0; rule < TASK_RULES; rule++)
            n += (size_t)snprintf(line + n, sizeof line - n, ",%d", pick(q, m, rule));
        for (int k = 0; k < q->n; k++)
            n += (size_t)snprintf(line + n, sizeof line - n, "%s%.6f", k ? ";" : ",",
                                  q->a[k].logprob[m][TASK_SUM]);
    }
    line[n++] = '\n';
    return file_writer_write(r->csv, line, n, e);
}

static int count_question(struct task_run *r, int index, const struct question *q, struct err *e)
{
    bool ok = true;
    for (int rule = 0; rule < TASK_RULES; rule++) {
        int own = pick(q, 0, rule), other = r->engine[1] ? pick(q, 1, rule) : own;
        double right = own == q->gold, right_other = other == q->gold;
        ok = ok && sample_add(&r->correct[0][rule], right);
        if (r->engine[1])
            ok = ok && sample_add(&r->correct[1][rule], right_other) &&
                 sample_add(&r->diff[rule], right - right_other);
        r->same[rule] += own == other;
    }
    if (!ok)
        return err_nomem(e, r->set.n * sizeof(double), "the results");
    return r->csv ? write_row(r, index, q, e) : OK;
}

static struct task_rate rate(const struct sample *s)
{
    return (struct task_rate){sample_mean(s), sample_stderr(s)};
}

static void summarise(const struct task_run *r, double start, struct task_result *out)
{
    *out = (struct task_result){.task = r->o->task,
                                .n = r->done,
                                .total = (int)r->set.n,
                                .truncated = r->truncated,
                                .compared = r->engine[1] != NULL,
                                .tokens = r->tokens,
                                .tokens_unique = r->unique,
                                .seconds = clock_now() - start};
    for (int rule = 0; rule < TASK_RULES; rule++) {
        out->acc[rule] = rate(&r->correct[0][rule]);
        if (!out->compared)
            continue;
        out->acc_against[rule] = rate(&r->correct[1][rule]);
        out->diff[rule] = rate(&r->diff[rule]);
        out->same[rule] = r->done ? (double)r->same[rule] / r->done : NAN;
    }
}

/* Questions from `from` on that are read together. */
static int batch_size(const struct task_run *r, size_t from)
{
    int n = 0, slots = 0, rows = 0;
    for (size_t i = from; i < r->set.n; i++, n++) {
        const struct question *q = &r->q[i];
        slots += q->n;
        for (int k = 0; k < q->n; k++)
            rows += (int)q->a[k].ids.n - 1 - q->shared;
        if (n && (slots > r->n_slot || rows > TASK_BATCH_ROWS))
            break;
    }
    return n;
}

static int run_batch(struct task_run *r, size_t from, int n, struct err *e)
{
    struct question *q = r->q + from;
    int rc = OK;
    for (int m = 0; m < 2 && r->engine[m] && !rc; m++) {
        rc = read_shared(r, m, q, n, e);
        if (!rc)
            rc = read_answers(r, m, q, n, e);
        if (!rc)
            rc = sum_answers(r, m, q, n, e);
    }
    for (int i = 0; i < n && !rc; i++) {
        r->tokens += q[i].shared;
        for (int k = 0; k < q[i].n; k++)
            r->tokens += (int)q[i].a[k].ids.n - 1 - q[i].shared;
        r->done++;
        rc = count_question(r, r->done, &q[i], e);
    }
    return rc;
}

/* ---- from start to end ---- */

/* Progress of the whole, whatever a prefill says of itself. */
static bool relay(void *user, const char *phase, double done, double total)
{
    const struct task_run *r = user;
    (void)phase, (void)done, (void)total;
    return progress_report(r->progress, "evaluate (questions)", r->done, (double)r->set.n);
}

static int open_slots(struct task_run *r, struct err *e)
{
    int most = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < r->set.n; i++)
        most = r->q[i].n > most ? r->q[i].n : most;
    for (int m = 0; m < 2 && r->engine[m]; m++) {
        r->slot[m] = mem_calloc(TASK_SLOTS, sizeof(struct infer *));
        if (!r->slot[m])
            return err_nomem(e, TASK_SLOTS * sizeof(struct infer *), "timelines");
        int rc = infer_new(&r->slot[m][0], r->engine[m], r->context, r->o->kv, e);
        if (rc)
            return rc;
        bytes += infer_kv_bytes(r->slot[m][0]);
    }
    size_t fits = TASK_CACHE_BYTES / (bytes ? bytes : 1);
    r->n_slot = fits < (size_t)most ? most : fits > TASK_SLOTS ? TASK_SLOTS : (int)fits;
    for (int m = 0; m < 2 && r->engine[m]; m++)
        for (int i = 1; i < r->n_slot; i++) {
            int rc = infer_new(&r->slot[m][i], r->engine[m], r->context, r->o->kv, e);
            if (rc)
                return rc;
        }
    r->run = mem_calloc((size_t)r->n_slot, sizeof *r->run);
    return r->run ? OK : err_nomem(e, (size_t)r->n_slot * sizeof *r->run, "timelines");
}

static int open_csv(struct task_run *r, struct err *e)
{
    static const char one[] = "question,label,pick,pick_norm,pick_token,logprobs";
    static const char two[] = ",original_pick,original_pick_norm,original_pick_token,"
                              "original_logprobs";
    int rc = file_writer_open(&r->csv, r->o->csv, e);
    if (!rc)
        rc = file_writer_write(r->csv, one, strlen(one), e);
    if (!rc && r->engine[1])
        rc = file_writer_write(r->csv, two, strlen(two), e);
    return rc ? rc : file_writer_write(r->csv, "\n", 1, e);
}

static int run_open(struct task_run *r, struct err *e)
{
    if (r->engine[1] && engine_model(r->engine[1])->hp.vocab != r->vocab)
        return err_set(e, ERR_MISMATCH,
                       "vocabularies of %d and %d tokens: paired answers need two models with the "
                       "same tokenizer",
                       r->vocab, engine_model(r->engine[1])->hp.vocab);
    int rc = choice_read(&r->set, r->o->task, r->o->file, r->o->limit, e);
    if (!rc && !(r->q = mem_calloc(r->set.n, sizeof *r->q)))
        rc = err_nomem(e, r->set.n * sizeof *r->q, "questions");
    if (!rc)
        rc = prepare_questions(r, e);
    if (!rc)
        rc = open_slots(r, e);
    if (!rc && r->o->csv)
        rc = open_csv(r, e);
    return rc;
}

static void run_done(struct task_run *r)
{
    for (size_t i = 0; r->q && i < r->set.n; i++)
        for (int k = 0; k < r->q[i].n; k++)
            ids_free(&r->q[i].a[k].ids);
    for (int m = 0; m < 2; m++) {
        for (int i = 0; r->slot[m] && i < TASK_SLOTS; i++)
            infer_free(r->slot[m][i]);
        free(r->slot[m]);
        for (int rule = 0; rule < TASK_RULES; rule++)
            sample_free(&r->correct[m][rule]);
    }
    for (int rule = 0; rule < TASK_RULES; rule++)
        sample_free(&r->diff[rule]);
    if (r->csv)
        file_writer_abort(r->csv);
    choice_done(&r->set);
    free(r->q);
    free(r->run);
    free(r->target);
    free(r->nll);
}

int eval_task(const struct engine *model, const struct engine *against, const struct tokenizer *t,
              const struct task_options *o, const struct progress *p, struct task_result *out,
              struct err *e)
{
    struct task_run r = {.engine = {model, against},
                         .tokenizer = t,
                         .o = o,
                         .progress = p,
                         .vocab = engine_model(model)->hp.vocab};
    double start = clock_now();
    *out = (struct task_result){.task = o->task};
    r.relay = (struct progress){relay, &r};
    int rc = run_open(&r, e);
    for (size_t at = 0; at < r.set.n && !rc;) {
        int n = batch_size(&r, at);
        rc = run_batch(&r, at, n, e);
        at += (size_t)n;
        if (!rc && o->partial) {
            struct task_result now;
            summarise(&r, start, &now);
            o->partial(o->user, &now);
        }
    }
    if (!rc && r.csv) {
        rc = file_writer_commit(r.csv, e);
        r.csv = NULL;
    }
    if (!rc)
        summarise(&r, start, out);
    run_done(&r);
    return rc;
}

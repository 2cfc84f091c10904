/* One turn: encode, prefill what is new on each side, then alternate tokens between the sides.
 * Refuses a conversation that leaves no room for an answer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/metrics.h"
#include "sessions/chat_private.h"
#include "sessions/clock.h"

struct turn_run {
    struct chat *c;
    const struct tokenizer *tokenizer;
    const struct chat_sink *sink;
    struct chat_turn turn;
    struct ids prompt[2];
    struct sampler *sampler[2];
    struct tokenizer_stream stream[2];
    struct chat_stats stats[2];
    double decode_sec[2];
    struct draft_count drafts[2]; /* before the turn */
    struct chat_compare compare;
    double kl_sum;
    int agreed;
    bool live[2]; /* still answering */
    bool same;    /* both sides have the same tokens behind them */
    bool forced;
};

static bool go_on(const struct turn_run *r)
{
    return !r->sink->go_on || r->sink->go_on(r->sink->user);
}

static bool relay_report(void *user, const char *phase, double done, double total)
{
    (void)phase, (void)done, (void)total;
    return go_on(user);
}

static bool ids_push(struct ids *ids, const int32_t *v, size_t n)
{
    void *grown = ids->v;
    if (!mem_grow(&grown, &ids->cap, ids->n + n, sizeof *ids->v))
        return false;
    ids->v = grown;
    memcpy(ids->v + ids->n, v, n * sizeof *v);
    ids->n += n;
    return true;
}

/* Forgets a cache whose content is no longer known. */
static void line_reset(struct chat_line *l)
{
    draft_settle(l->draft);
    infer_rewind(l->timeline, 0);
    l->cached.n = 0;
}

/* Keeps the longest common prefix of the cache and the prompt, computes the rest. */
static int prefill(struct turn_run *r, int s, struct err *e)
{
    struct chat_line *l = &r->c->line[s];
    const struct ids *p = &r->prompt[s];
    struct progress progress = {relay_report, r};
    size_t keep = 0;
    if (p->n >= (size_t)infer_context(l->timeline))
        return err_set(
            e, ERR_LIMIT,
            "the conversation has %zu tokens and leaves no room for an answer in a context "
            "of %d: clear it or give a larger context",
            p->n, infer_context(l->timeline));
    while (keep < p->n && keep < l->cached.n && p->v[keep] == l->cached.v[keep])
        keep++;
    if (keep == p->n) /* the last token is computed again: its logits are needed */
        keep--;
    double start = clock_now();
    draft_settle(l->draft);
    r->drafts[s] = draft_count(l->draft);
    infer_rewind(l->timeline, (int)keep);
    keep = (size_t)infer_pos(l->timeline); /* a window may have forgotten what comes before */
    l->cached.n = keep;
    int rc = infer_prefill(l->timeline, p->v + keep, (int)(p->n - keep), INFER_LAST, l->logits,
                           &progress, e);
    if (!rc && !ids_push(&l->cached, p->v + keep, p->n - keep))
        rc = err_nomem(e, p->n * sizeof *p->v, "the conversation");
    if (rc)
        line_reset(l);
    r->stats[s].ttft_sec = clock_now() - start;
    r->stats[s].prompt_tokens = (int)p->n;
    return rc;
}

/* Adds decoded bytes to the answer and shows them. */
static int say(struct turn_run *r, int s, const char *bytes, size_t n, double lost, struct err *e)
{
    struct chat_answer *a = &r->turn.answer[s];
    void *grown = a->text;
    if (!mem_grow(&grown, &a->cap, a->n + n + 1, 1))
        return err_nomem(e, a->n + n, "the answer");
    a->text = grown;
    memcpy(a->text + a->n, bytes, n);
    a->n += n;
    a->text[a->n] = 0;
    if (n && r->sink->text)
        r->sink->text(r->sink->user, s, bytes, n, r->stats[s].tokens - 1, lost);
    return OK;
}

static int take_token(struct turn_run *r, int s, int32_t id, double lost, struct err *e)
{
    char bytes[TOKENIZER_STREAM_OUT];
    if (!ids_push(&r->turn.answer[s].ids, &id, 1))
        return err_nomem(e, sizeof id, "the answer");
    r->stats[s].tokens++;
    size_t n = tokenizer_stream_push(r->tokenizer, &r->stream[s], id, bytes);
    return say(r, s, bytes, n, lost, e);
}

static void stop(struct turn_run *r, int s, const char *why)
{
    r->live[s] = false;
    r->stats[s].stop = why;
}

/* Feeds a taken token, so that the next one can be chosen, unless a limit ends the answer. */
static int advance(struct turn_run *r, int s, int32_t id, struct err *e)
{
    struct chat_line *l = &r->c->line[s];
    if (r->c->settings.max_tokens && r->stats[s].tokens >= r->c->settings.max_tokens) {
        stop(r, s, "length");
        return OK;
    }
    if (draft_pos(l->draft, l->timeline) >= infer_context(l->timeline)) {
        stop(r, s, "context");
        return OK;
    }
    double start = clock_now();
    int rc = draft_step(l->draft, l->timeline, id, workspace_vocab_limit(r->c->w), l->logits, e);
    if (!rc && !ids_push(&l->cached, &id, 1))
        rc = err_nomem(e, sizeof id, "the conversation");
    r->decode_sec[s] += clock_now() - start;
    return rc;
}

/* Notes that the sides part at token `at` of the answer, where they take a and b. */
static void part(struct turn_run *r, int at, int32_t a, int32_t b)
{
    const struct chat_line *l = r->c->line;
    if (r->compare.first_difference >= 0)
        return;
    r->compare.first_difference = at;
    r->compare.margin = exp(-metrics_nll(l[0].logits, l[0].vocab, a)) -
                        exp(-metrics_nll(l[0].logits, l[0].vocab, b));
}

static void compare(struct turn_run *r)
{
    const struct chat_line *l = r->c->line;
    struct metrics_pair m = metrics_compare(l[0].logits, l[1].logits, l[0].vocab, -1);
    r->compare.compared++;
    r->kl_sum += m.kl;
    r->agreed += m.top_p == m.top_q;
    r->compare.kl_mean = r->kl_sum / r->compare.compared;
    r->compare.agreement = (double)r->agreed / r->compare.compared;
    if (r->forced && m.top_p != m.top_q)
        part(r, r->compare.compared - 1, m.top_p, m.top_q);
}

/* How much probability the converted side lost on the original's token. */
static double probability_lost(const struct turn_run *r, int32_t id)
{
    const struct chat_line *l = r->c->line;
    double p = exp(-metrics_nll(l[0].logits, l[0].vocab, id));
    double q = exp(-metrics_nll(l[1].logits, l[1].vocab, id));
    return fmax(0, p - q);
}

static void send_stats(struct turn_run *r)
{
    for (int s = 0; s < 2; s++) {
        struct chat_stats *st = &r->stats[s];
        if (!r->c->active[s])
            continue;
        st->tokens_per_sec = r->decode_sec[s] > 0 ? st->tokens / r->decode_sec[s] : 0;
        const struct chat_line *l = &r->c->line[s];
        struct draft_count n = draft_count(l->draft);
        st->drafted = n.made - r->drafts[s].made;
        st->accepted = n.right - r->drafts[s].right;
        st->context_used = draft_pos(l->draft, l->timeline);
        st->context = infer_context(r->c->line[s].timeline);
        st->kv_bytes_used = infer_kv_bytes_used(r->c->line[s].timeline);
    }
    if (r->sink->stats)
        r->sink->stats(r->sink->user, r->stats, &r->compare);
}

/* One token on every live side. A side that ends (token −1) parts from one that goes on. */
static int round_of_tokens(struct turn_run *r, struct err *e)
{
    int32_t id[2] = {-1, -1}, taken[2] = {-1, -1}; /* id: −1 at an end */
    double lost = 0;
    int rc = OK, limit = workspace_vocab_limit(r->c->w);
    if (r->same)
        compare(r);
    for (int s = 0; s < 2; s++) {
        if (!r->live[s])
            continue;
        double start = clock_now();
        id[s] = r->forced && s == SIDE_CONVERTED
                    ? id[0]
                    : sampler_next(r->sampler[s], r->c->line[s].logits, limit);
        r->decode_sec[s] += clock_now() - start;
        taken[s] = id[s];
        if (id[s] >= 0 && tokenizer_is_eos(r->tokenizer, id[s]))
            id[s] = -1;
    }
    if (r->forced && id[0] >= 0)
        lost = probability_lost(r, id[0]);
    if (r->live[0] && r->live[1] && !r->forced && id[0] != id[1]) {
        part(r, r->stats[0].tokens, taken[0], taken[1]);
        r->same = false;
    }
    for (int s = 0; s < 2 && !rc; s++) {
        if (!r->live[s])
            continue;
        if (id[s] < 0) {
            stop(r, s, "eos");
            continue;
        }
        rc = take_token(r, s, id[s], s == SIDE_CONVERTED ? lost : 0, e);
        if (!rc)
            rc = advance(r, s, id[s], e);
    }
    r->same = r->same && r->live[0] && r->live[1];
    return rc;
}

static int answer(struct turn_run *r, struct err *e)
{
    int rc = OK;
    while (!rc && (r->live[0] || r->live[1])) {
        if (!go_on(r)) {
            for (int s = 0; s < 2; s++)
                if (r->live[s])
                    stop(r, s, "cancelled");
            break;
        }
        rc = round_of_tokens(r, e);
        /* In forced mode the sides share their tokens, so one cannot go on without the other. */
        if (r->forced && r->live[0] != r->live[1])
            stop(r, r->live[0] ? 0 : 1, r->stats[r->live[0] ? 1 : 0].stop);
        if (!rc)
            send_stats(r);
    }
    for (int s = 0; s < 2 && !rc; s++) {
        char bytes[TOKENIZER_STREAM_OUT];
        if (r->c->active[s])
            rc = say(r, s, bytes, tokenizer_stream_flush(&r->stream[s], bytes), 0, e);
    }
    if (!rc)
        send_stats(r);
    return rc;
}

static int begin(struct turn_run *r, const char *prompt, struct err *e)
{
    struct chat *c = r->c;
    struct sampler_options o = c->settings.sampling;
    o.seed += c->n_turns;
    r->tokenizer = workspace_tokenizer(c->w, e);
    if (!r->tokenizer)
        return e->status;
    if (!(r->turn.prompt = mem_strdup(prompt)))
        return err_nomem(e, strlen(prompt), "the prompt");
    r->compare.first_difference = -1;
    r->compare.margin = NAN;
    r->forced = c->settings.mode == CHAT_FORCED && c->active[0] && c->active[1];
    int rc = OK;
    for (int s = 0; s < 2 && !rc; s++) {
        r->stats[s].stop = "";
        r->live[s] = c->active[s];
        if (!c->active[s])
            continue;
        rc = chat_encode(c, s, prompt, &r->prompt[s], e);
        if (!rc)
            rc = sampler_new(&r->sampler[s], &o, c->line[s].vocab, e);
        if (!rc)
            rc = prefill(r, s, e);
    }
    const struct ids *p = r->prompt;
    r->same = !rc && c->active[0] && c->active[1] && c->line[0].vocab == c->line[1].vocab &&
              p[0].n == p[1].n && !memcmp(p[0].v, p[1].v, p[0].n * sizeof *p[0].v);
    return rc;
}

int chat_turn(struct chat *c, const char *prompt, const struct chat_sink *sink, struct err *e)
{
    struct turn_run r = {.c = c, .sink = sink};
    e->status = OK;
    int rc = begin(&r, prompt, e);
    if (!rc)
        rc = answer(&r, e);
    if (!rc && r.turn.answer[SIDE_CONVERTED].text && r.forced) {
        /* Those were the original's words: the transcript keeps them once. */
        free(r.turn.answer[SIDE_CONVERTED].text);
        ids_free(&r.turn.answer[SIDE_CONVERTED].ids);
        r.turn.answer[SIDE_CONVERTED] = (struct chat_answer){0};
    }
    if (!rc)
        rc = chat_keep_turn(c, &r.turn, e);
    else
        for (int s = 0; s < 2; s++)
            if (c->active[s] && rc != ERR_CANCELLED && rc != ERR_LIMIT)
                line_reset(&c->line[s]);
    chat_drop_turn(&r.turn);
    for (int s = 0; s < 2; s++) {
        ids_free(&r.prompt[s]);
        sampler_free(r.sampler[s]);
    }
    return rc;
}

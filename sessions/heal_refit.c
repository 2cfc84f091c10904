/* Before training, least squares: a share of the text goes through both models, and the maps that
 * write to the residual stream are refitted on it (refit.h), with more text than conversion takes
 * and the feed-forwards' too. A token costs two forward passes here, a third of what it costs in
 * training, and no noise of a gradient. Kept when the held-out KL is lower. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sessions/clock.h"
#include "sessions/heal_run.h"
#include "sessions/refit.h"
#include "sessions/states.h"

#define LEAST 1024 /* tokens that are worth a refit */
#define MOST (1 << 18)
#define SHARE 0.3                  /* of the seconds */
#define PASSES 7                   /* forward passes of the original that a token takes */
#define BYTES ((size_t)1600 << 20) /* hidden states of both models */

/* Seconds of the original's forward pass a token. */
static double pass_seconds(const struct engine *g, const struct calib_text *text, struct err *e)
{
    struct calib_text one = {.ids = text->ids, .windows = 1, .window = text->window};
    double best = INFINITY;
    for (int i = 0; i < 2; i++) { /* the first warms up */
        struct states s;
        struct states_group group;
        int rc = states_init(&s, g, &one, e);
        double start = clock_now();
        for (int l = 0; l < g->model->hp.n_layer && !rc; l++)
            if (states_group(&one, 0, &group))
                states_layer(&s, l, &group, NULL);
        states_done(&s);
        if (rc)
            return NAN;
        best = fmin(best, (clock_now() - start) / text->window);
    }
    return best;
}

static long long most_tokens(const struct heal *h)
{
    const struct model_hparams *hp = &h->c->model.hp;
    double row = sizeof(float) * (2.0 * hp->hidden + (double)hp->n_head * hp->head_dim);
    double most = fmin(MOST, (double)BYTES / row);
    if (h->o.tokens)
        most = fmin(most, (double)h->o.tokens);
    if (h->o.refit_tokens > 0)
        most = (double)h->o.refit_tokens;
    return (long long)fmin(most, (double)heal_text_tokens(h->text));
}

/* Full sequences of the training text, the next ones: n of len, into ids; *got of them. */
static int sequences(struct heal *h, int n, int len, int32_t *ids, int *got, struct err *e)
{
    int rc = OK;
    *got = 0;
    for (int tries = 0; *got < n && tries < 2 * n + 8 && !rc; tries++) {
        int have = 0;
        rc = heal_text_sequence(h->text, false, h->s.sequence++, len, ids + (size_t)*got * len,
                                &have, e);
        *got += !rc && have == len;
    }
    return rc;
}

/* About `tokens` tokens as windows and long windows. */
static int choose_text(struct heal *h, long long tokens, struct calib_text *out, struct err *e)
{
    int longs = h->longer > h->length ? (int)(tokens / HEAL_LONG_SHARE / h->longer) : 0;
    int windows = (int)((tokens - (long long)longs * h->longer) / h->length);
    *out = (struct calib_text){.window = h->length, .long_len = h->longer};
    out->ids = mem_calloc((size_t)windows * (size_t)h->length + (size_t)longs * (size_t)h->longer,
                          sizeof *out->ids);
    if (!out->ids)
        return err_nomem(e, (size_t)tokens * sizeof *out->ids, "text to refit on");
    int rc = sequences(h, windows, h->length, out->ids, &out->windows, e);
    size_t at = (size_t)out->windows * (size_t)h->length;
    return rc ? rc : sequences(h, longs, h->longer, out->ids + at, &out->n_long, e);
}

int heal_refit(struct heal *h, const struct engine *original, struct conversion **out,
               struct err *e)
{
    struct calib_text text = {0};
    long long tokens = most_tokens(h);
    int rc = OK;
    *out = NULL;
    if (h->o.refit_tokens < 0 || tokens < LEAST)
        return OK;
    if (h->o.seconds > 0 && !h->o.refit_tokens) {
        rc = choose_text(h, LEAST, &text, e);
        double each = rc || !text.windows ? NAN : pass_seconds(original, &text, e);
        calib_text_done(&text);
        h->s.sequence = 0;
        if (rc || isnan(each))
            return rc;
        tokens = (long long)fmin((double)tokens, SHARE * h->o.seconds / (PASSES * each));
    }
    if (tokens < LEAST)
        return OK;
    rc = choose_text(h, tokens, &text, e);
    if (!rc && states_rows(&text) >= LEAST)
        rc = conversion_copy(out, h->c, true, e);
    const struct refit_options how = {true, !h->o.exact, "healing: refitting output maps"};
    if (!rc && *out)
        rc = refit_run(*out, original, &text, &how, h->p, e);
    if (*out)
        conversion_runtime_drop(*out); /* training will change the rest */
    h->s.refit_tokens = rc || !*out ? 0 : (long long)states_rows(&text);
    calib_text_done(&text);
    if (rc) {
        conversion_free(*out);
        *out = NULL;
    }
    return rc;
}

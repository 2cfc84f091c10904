/* The transcript: turns, their answers, and what the models see of them. Running a turn is
 * chat_turn.c. Refuses a converted side where no conversion is open. */
#include "sessions/chat.h"

#include <stdlib.h>
#include <string.h>

#include "sessions/chat_private.h"

static int timeline_new(struct chat *c, int s, struct err *e)
{
    const struct engine *g = workspace_engine(c->w, (enum side)s);
    if (!g)
        return err_set(e, ERR_ARG,
                       s == SIDE_CONVERTED ? "nothing is converted yet: convert first"
                                           : "no model is open");
    struct chat_line *l = &c->line[s];
    l->vocab = engine_model(g)->hp.vocab;
    l->logits = mem_aligned((size_t)l->vocab, sizeof *l->logits);
    if (!l->logits)
        return err_nomem(e, (size_t)l->vocab * sizeof *l->logits, "logits");
    int rc = infer_new(&l->timeline, g, c->settings.context, c->settings.kv, e);
    if (!rc && c->settings.draft)
        rc = draft_new(&l->draft, g, l->timeline, c->settings.kv, e);
    return rc;
}

static void timeline_free(struct chat_line *l)
{
    draft_free(l->draft);
    infer_free(l->timeline);
    free(l->logits);
    ids_free(&l->cached);
    *l = (struct chat_line){0};
}

static int timelines_new(struct chat *c, struct err *e)
{
    int rc = OK;
    for (int s = 0; s < 2; s++) {
        timeline_free(&c->line[s]);
        if (!rc && c->active[s])
            rc = timeline_new(c, s, e);
    }
    return rc;
}

static int check_settings(const struct chat_settings *s, struct err *e)
{
    struct sampler *probe;
    if (s->context < 2)
        return err_set(e, ERR_ARG, "context of %d tokens: give 2 or more", s->context);
    if (s->max_tokens < 0)
        return err_set(e, ERR_ARG, "answers of %d tokens: give 0 (no limit) or more",
                       s->max_tokens);
    int rc = sampler_new(&probe, &s->sampling, 1, e); /* its checks are the definition */
    sampler_free(probe);
    return rc;
}

int chat_new(struct chat **out, struct workspace *w, int sides, enum side which,
             const struct chat_settings *s, struct err *e)
{
    *out = NULL;
    int rc = check_settings(s, e);
    if (rc)
        return rc;
    struct chat *c = mem_calloc(1, sizeof *c);
    if (!c)
        return err_nomem(e, sizeof *c, "a chat");
    c->w = w;
    c->settings = *s;
    c->active[SIDE_ORIGINAL] = sides == 2 || which == SIDE_ORIGINAL;
    c->active[SIDE_CONVERTED] = sides == 2 || which == SIDE_CONVERTED;
    rc = timelines_new(c, e);
    if (rc) {
        chat_free(c);
        return rc;
    }
    *out = c;
    return OK;
}

static void turn_done(struct chat_turn *t)
{
    free(t->prompt);
    for (int s = 0; s < 2; s++) {
        free(t->answer[s].text);
        ids_free(&t->answer[s].ids);
    }
    *t = (struct chat_turn){0};
}

void chat_free(struct chat *c)
{
    if (!c)
        return;
    chat_clear(c);
    timeline_free(&c->line[0]);
    timeline_free(&c->line[1]);
    free(c->turn);
    free(c->system);
    free(c);
}

int chat_set(struct chat *c, const struct chat_settings *s, struct err *e)
{
    int rc = check_settings(s, e);
    if (rc)
        return rc;
    struct chat_settings before = c->settings;
    c->settings = *s;
    if (s->context == before.context && s->kv == before.kv)
        return OK;
    rc = timelines_new(c, e);
    if (!rc)
        return OK;
    /* The old caches are gone, but caches of the old size fit a moment ago. */
    c->settings = before;
    struct err ignored;
    (void)timelines_new(c, &ignored);
    return rc;
}

int chat_system(struct chat *c, const char *text, struct err *e)
{
    char *copy = NULL;
    if (text && !(copy = mem_strdup(text)))
        return err_nomem(e, strlen(text), "the system prompt");
    free(c->system);
    c->system = copy;
    return OK; /* the next turn rewinds to what still matches */
}

void chat_undo(struct chat *c)
{
    if (c->n_turns)
        turn_done(&c->turn[--c->n_turns]);
}

void chat_clear(struct chat *c)
{
    while (c->n_turns)
        chat_undo(c);
}

int chat_turns(const struct chat *c)
{
    return (int)c->n_turns;
}

static const struct chat_turn *turn_at(const struct chat *c, int turn)
{
    return turn >= 0 && (size_t)turn < c->n_turns ? &c->turn[turn] : NULL;
}

const char *chat_answer(const struct chat *c, int turn, int side)
{
    const struct chat_turn *t = turn_at(c, turn);
    return t ? t->answer[side].text : NULL;
}

const int32_t *chat_answer_ids(const struct chat *c, int turn, int side, int *n)
{
    const struct chat_turn *t = turn_at(c, turn);
    *n = t ? (int)t->answer[side].ids.n : 0;
    return t ? t->answer[side].ids.v : NULL;
}

const char *chat_prompt(const struct chat *c, int turn)
{
    const struct chat_turn *t = turn_at(c, turn);
    return t ? t->prompt : NULL;
}

int chat_keep_turn(struct chat *c, struct chat_turn *t, struct err *e)
{
    void *grown = c->turn;
    if (!mem_grow(&grown, &c->cap_turns, c->n_turns + 1, sizeof *c->turn)) {
        turn_done(t);
        return err_nomem(e, (c->n_turns + 1) * sizeof *t, "the transcript");
    }
    c->turn = grown;
    c->turn[c->n_turns++] = *t;
    *t = (struct chat_turn){0};
    return OK;
}

void chat_drop_turn(struct chat_turn *t)
{
    turn_done(t);
}

int chat_restore(struct chat *c, const char *prompt, const char *answer0, const char *answer1,
                 struct err *e)
{
    struct chat_turn t = {.prompt = mem_strdup(prompt)};
    const char *text[2] = {answer0, answer1};
    bool ok = t.prompt != NULL;
    for (int s = 0; s < 2; s++) {
        if (text[s])
            ok = (t.answer[s].text = mem_strdup(text[s])) && ok;
    }
    if (!ok) {
        turn_done(&t);
        return err_nomem(e, strlen(prompt), "the transcript");
    }
    return chat_keep_turn(c, &t, e);
}

/* What side s said in a turn, as the conversation goes on: in forced mode both heard the
 * original. */
static const char *heard(const struct chat *c, const struct chat_turn *t, int s)
{
    bool forced = c->settings.mode == CHAT_FORCED && c->active[0] && c->active[1];
    int own = forced ? SIDE_ORIGINAL : s;
    const char *text = t->answer[own].text ? t->answer[own].text : t->answer[!own].text;
    return text ? text : "";
}

int chat_encode(const struct chat *c, int s, const char *prompt, struct ids *out, struct err *e)
{
    const struct tokenizer *t = workspace_tokenizer(c->w, e);
    const struct chatfmt *f = t ? workspace_chatfmt(c->w, e) : NULL;
    if (!f)
        return e->status ? e->status
                         : err_set(e, ERR_UNSUPPORTED, "the model has no chat template");
    size_t n = 0;
    struct chat_message *m = mem_calloc(2 * c->n_turns + 2, sizeof *m);
    if (!m)
        return err_nomem(e, c->n_turns * 2 * sizeof *m, "the conversation");
    if (c->system)
        m[n++] = (struct chat_message){"system", c->system};
    for (size_t i = 0; i < c->n_turns; i++) {
        m[n++] = (struct chat_message){"user", c->turn[i].prompt};
        m[n++] = (struct chat_message){"assistant", heard(c, &c->turn[i], s)};
    }
    m[n++] = (struct chat_message){"user", prompt};
    int rc = chatfmt_encode(f, t, m, n, true, out, e);
    free(m);
    return rc;
}

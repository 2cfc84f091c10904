/* The chat job: one turn on one or two models. The transcript on screen is the truth: before a
 * turn, the chat is rewound to what both agree on and the rest is restored, so that undo, clear,
 * regenerate and a restart need no jobs of their own. */
#include "sessions/jobs.h"

#include <stdlib.h>
#include <string.h>

struct chat_args {
    struct chat_turn_text *past;
    int n;
    char *system, *prompt;
    struct chat_settings settings;
};

void chat_turn_text_done(struct chat_turn_text *t)
{
    free(t->prompt);
    free(t->answer[0]);
    free(t->answer[1]);
    *t = (struct chat_turn_text){0};
}

static void chat_args_free(void *args)
{
    struct chat_args *a = args;
    if (!a)
        return;
    for (int i = 0; i < a->n; i++)
        chat_turn_text_done(&a->past[i]);
    free(a->past);
    free(a->system);
    free(a->prompt);
    free(a);
}

static char *copy(const char *s)
{
    return s ? mem_strdup(s) : NULL;
}

void *chat_args(const struct chat_turn_text *past, int n, const char *system, const char *prompt,
                const struct chat_settings *settings)
{
    struct chat_args *a = mem_calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->past = mem_calloc((size_t)n, sizeof *a->past);
    a->n = a->past ? n : 0;
    for (int i = 0; i < a->n; i++) {
        a->past[i].prompt = copy(past[i].prompt);
        a->past[i].answer[0] = copy(past[i].answer[0]);
        a->past[i].answer[1] = copy(past[i].answer[1]);
    }
    a->system = copy(system);
    a->prompt = copy(prompt);
    a->settings = *settings;
    return a;
}

static bool same(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "") == 0;
}

/* What a side is taken to have said: a side that was not there yet reads the other's answer. */
static const char *said(const struct chat_turn_text *t, int side)
{
    return t->answer[side] ? t->answer[side] : t->answer[!side];
}

static bool matches(const struct shop *s, const struct chat_turn_text *t, int turn)
{
    bool ok = same(chat_prompt(s->chat, turn), t->prompt);
    for (int side = 0; side < s->chat_sides; side++)
        ok = ok && same(chat_answer(s->chat, turn, side), said(t, side));
    return ok;
}

static int restore(struct shop *s, const struct chat_args *a, struct err *e)
{
    int agreed = 0;
    while (agreed < a->n && agreed < chat_turns(s->chat) && matches(s, &a->past[agreed], agreed))
        agreed++;
    while (chat_turns(s->chat) > agreed)
        chat_undo(s->chat);
    for (int i = agreed; i < a->n; i++) {
        const struct chat_turn_text *t = &a->past[i];
        int rc = chat_restore(s->chat, t->prompt ? t->prompt : "", said(t, 0),
                              s->chat_sides == 2 ? said(t, 1) : NULL, e);
        if (rc)
            return rc;
    }
    return OK;
}

/* Makes the chat match the open models, the settings and the system text. */
static int prepare(struct shop *s, const struct chat_args *a, struct err *e)
{
    int sides = workspace_has_conversion(s->w) ? 2 : 1;
    int rc = OK;
    if (s->chat && sides != s->chat_sides) {
        chat_free(s->chat);
        s->chat = NULL;
    }
    bool fresh = !s->chat;
    if (fresh) {
        rc = chat_new(&s->chat, s->w, sides, SIDE_ORIGINAL, &a->settings, e);
        s->chat_sides = sides;
    } else {
        rc = chat_set(s->chat, &a->settings, e);
    }
    if (rc)
        return rc;
    if (fresh ? a->system != NULL : !same(a->system, s->chat_system)) {
        rc = chat_system(s->chat, a->system, e);
        if (rc)
            return rc;
    }
    free(s->chat_system);
    s->chat_system = copy(a->system);
    return restore(s, a, e);
}

static void sink_text(void *user, int side, const char *bytes, size_t n, int token, double lost)
{
    job_text(user, side, bytes, n, token, lost);
}

static void sink_stats(void *user, const struct chat_stats stats[2], const struct chat_compare *c)
{
    job_stats(user, stats, c);
}

static bool sink_go_on(void *user)
{
    return !job_cancelled(user);
}

static void answered_free(void *data)
{
    struct answered_turn *t = data;
    if (!t)
        return;
    free(t->answer[0]);
    free(t->answer[1]);
    free(t);
}

static int chat_run(struct job *j, void *shop, void *args, struct err *e)
{
    struct shop *s = shop;
    struct chat_args *a = args;
    if (!a || !a->prompt)
        return err_nomem(e, sizeof *a, "chat");
    if (!s->w || !workspace_is_open(s->w))
        return err_set(e, ERR_ARG, "no model is open: open one on screen 1");
    int rc = prepare(s, a, e);
    if (rc)
        return rc;
    struct chat_sink sink = {sink_text, sink_stats, sink_go_on, j};
    rc = chat_turn(s->chat, a->prompt, &sink, e);
    if (rc)
        return rc;
    struct answered_turn *t = mem_calloc(1, sizeof *t);
    if (!t)
        return err_nomem(e, sizeof *t, "answer");
    int turn = chat_turns(s->chat) - 1;
    for (int side = 0; side < s->chat_sides && turn >= 0; side++)
        t->answer[side] = copy(chat_answer(s->chat, turn, side));
    t->cut = job_cancelled(j);
    job_post(j, EVENT_ANSWERED, t, answered_free);
    return OK;
}

const struct job_kind job_chat = {"chat", chat_run, chat_args_free};

/* Chat as the screen sees it: the prompt and its history, turns, where two answers part. The
 * transcript lives in the journal; what streams in lives here until the turn ends. */
#include "ui/app_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int chat_init(struct chat_state *c, const struct journal *j, struct err *e)
{
    *c = (struct chat_state){.history_at = j->history.n};
    int rc = textbuf_init(&c->prompt, e);
    if (rc == OK && j->typed)
        textbuf_set(&c->prompt, j->typed);
    return rc;
}

static void live_done(struct chat_state *c)
{
    for (int i = 0; i < 2; i++) {
        free(c->live[i].bytes);
        free(c->live[i].token);
        c->live[i] = (struct side_text){0};
    }
}

void chat_done(struct chat_state *c)
{
    textbuf_done(&c->prompt);
    live_done(c);
    free(c->held);
    free(c->needle);
    *c = (struct chat_state){0};
}

const char *chat_said(const struct app *a, size_t turn, int side, size_t *n)
{
    const struct side_text *live = &a->chat.live[side];
    if (a->chat.answering && turn + 1 == a->j.n_turn) {
        *n = live->n;
        return live->bytes ? live->bytes : "";
    }
    const char *text = a->j.turn[turn].answer[side];
    *n = text ? strlen(text) : 0;
    return text;
}

/* End of the word at a byte: what is marked when the tokens are not known any more. */
static size_t word_end(const char *text, size_t n, size_t at)
{
    size_t end = at;
    while (end < n && text[end] == ' ')
        end++;
    while (end < n && text[end] != ' ' && text[end] != '\n')
        end++;
    return end > at ? end : at + 1 <= n ? at + 1 : n;
}

size_t chat_parts_at(const struct app *a, size_t turn, int side, size_t *end)
{
    size_t n[2], i = 0;
    const char *text[2];
    for (int s = 0; s < 2; s++)
        if (!(text[s] = chat_said(a, turn, s, &n[s])))
            return SIZE_MAX;
    while (i < n[0] && i < n[1] && text[0][i] == text[1][i])
        i++;
    bool streaming = a->chat.answering && turn + 1 == a->j.n_turn;
    if ((i == n[0] && i == n[1]) || (streaming && (i == n[0] || i == n[1])))
        return SIZE_MAX;
    while (i > 0 && i < n[side] && ((unsigned char)text[side][i] & 0xc0) == 0x80)
        i--;
    const struct side_text *live = &a->chat.live[side];
    if (turn + 1 == a->j.n_turn && live->n_token) {
        size_t at = 0;
        for (size_t t = 0; t < live->n_token; t++) {
            if (i < at + live->token[t].bytes) {
                *end = at + live->token[t].bytes;
                /* A blank alone could not be seen. */
                if (strspn(text[side] + at, " \n\t") >= *end - at)
                    *end = word_end(text[side], n[side], *end);
                return at;
            }
            at += live->token[t].bytes;
        }
    }
    *end = word_end(text[side], n[side], i);
    return i;
}

void chat_model_changed(struct app *a)
{
    a->chat.has_stats = false;
    live_done(&a->chat);
}

#define TO_THE_TOP (1 << 28) /* the view knows where it is */

static void scroll_to(struct chat_state *c, int lines)
{
    c->scroll[0] = c->scroll[1] = lines;
}

static void scroll_by(struct chat_state *c, int lines)
{
    for (int side = 0; side < 2; side++) {
        c->scroll[side] += lines;
        c->scroll[side] = c->scroll[side] < 0 ? 0 : c->scroll[side];
    }
}

bool chat_can_talk(struct app *a)
{
    if (a->chat.answering) {
        app_message(a, ROLE_WARN, "an answer is being written: Esc stops it");
        return false;
    }
    if (a->loads) { /* one that is done but not taken may put this transcript away, too */
        app_message(a, ROLE_WARN, "a model is being opened: send it once it is there");
        return false;
    }
    if (!a->has_model || a->chat_reason[0]) {
        app_message(a, ROLE_WARN, "%s",
                    a->has_model ? a->chat_reason : "no model is open: open one on screen 1");
        return false;
    }
    return true;
}

void chat_send(struct app *a, const char *text)
{
    struct chat_state *c = &a->chat;
    struct chat_settings settings = a->j.settings;
    settings.kv = app_cache_type(a);
    if (a->info.context > 0 && settings.context > a->info.context)
        settings.context = a->info.context;
    void *args = chat_args(a->j.turn, (int)a->j.n_turn, a->j.system, text, &settings);
    if (!args || !journal_add_turn(&a->j, text)) {
        if (args)
            job_chat.args_free(args);
        app_message(a, ROLE_BAD, "out of memory: nothing was sent");
        return;
    }
    /* The spectra of a plan that is being edited can wait for an answer. */
    live_done(c);
    c->answering = true;
    c->has_stats = false;
    scroll_to(c, 0);
    worker_submit(a->worker, &job_chat, args);
    app_changed(a);
}

void chat_collect(struct app *a, struct worker_batch *b)
{
    struct chat_state *c = &a->chat;
    for (int i = 0; i < 2; i++) {
        struct side_text *from = &b->text[i], *to = &c->live[i];
        if (!from->n_token || !c->answering ||
            !mem_grow((void **)&to->bytes, &to->cap, to->n + from->n + 1, 1) ||
            !mem_grow((void **)&to->token, &to->cap_token, to->n_token + from->n_token,
                      sizeof *to->token))
            continue;
        if (from->n)
            memcpy(to->bytes + to->n, from->bytes, from->n);
        memcpy(to->token + to->n_token, from->token, from->n_token * sizeof *from->token);
        to->n += from->n;
        to->n_token += from->n_token;
        to->bytes[to->n] = 0;
        /* What was said is kept even if the program dies now. */
        text_set(&a->j.turn[a->j.n_turn - 1].answer[i], to->bytes);
        app_changed(a);
    }
    if (b->has_stats) {
        c->has_stats = true;
        memcpy(c->stats, b->stats, sizeof c->stats);
        c->compare = b->compare;
    }
}

void chat_answered(struct app *a, struct answered_turn *t)
{
    struct chat_state *c = &a->chat;
    if (!c->answering)
        return;
    struct chat_turn_text *turn = &a->j.turn[a->j.n_turn - 1];
    for (int i = 0; i < 2; i++)
        if (t->answer[i])
            text_set(&turn->answer[i], t->answer[i]);
    c->answering = false;
    if (t->cut)
        app_message(a, ROLE_NORMAL, "stopped; what was said is kept");
    app_changed(a);
}

void chat_job_done(struct app *a, const struct event *v)
{
    struct chat_state *c = &a->chat;
    if (!c->answering)
        return;
    struct chat_turn_text *turn = &a->j.turn[a->j.n_turn - 1];
    c->answering = false;
    if (!turn->answer[0] && !turn->answer[1]) {
        /* Nothing was said: the prompt goes back to where it was typed. */
        if (c->prompt.n == 0)
            textbuf_set(&c->prompt, turn->prompt);
        journal_drop_turns(&a->j, a->j.n_turn - 1);
    }
    if (v->status != ERR_CANCELLED)
        app_message(a, ROLE_BAD, "%s", v->text ? v->text : "out of memory");
    app_changed(a);
}

static void browse(struct app *a, int direction)
{
    struct chat_state *c = &a->chat;
    const struct text_list *h = &a->j.history;
    if (direction < 0 ? c->history_at == 0 : c->history_at >= h->n)
        return;
    if (c->history_at == h->n)
        text_set(&c->held, c->prompt.text);
    c->history_at += direction < 0 ? (size_t)-1 : 1;
    textbuf_set(&c->prompt, c->history_at < h->n ? h->text[c->history_at] : c->held ? c->held : "");
}

/* Up and Down move inside the prompt and browse the history at its edges. */
static void up_down(struct app *a, int direction)
{
    struct textbuf *b = &a->chat.prompt;
    bool edge = direction < 0 ? !memchr(b->text, '\n', b->at)
                              : !memchr(b->text + b->at, '\n', b->n - b->at);
    if (edge) {
        browse(a, direction);
        return;
    }
    size_t start = b->at, line, length;
    while (start > 0 && b->text[start - 1] != '\n')
        start--;
    int col = sanitize_width(b->text + start, b->at - start);
    if (direction < 0) {
        line = start - 1;
        length = 0;
        while (line > 0 && b->text[line - 1] != '\n') {
            line--;
            length++;
        }
    } else {
        line = b->at + strcspn(b->text + b->at, "\n") + 1;
        length = strcspn(b->text + line, "\n");
    }
    b->at = text_at(b->text, &(struct text_line){line, length, 0}, col);
}

static void submit_prompt(struct app *a)
{
    struct chat_state *c = &a->chat;
    struct textbuf *b = &c->prompt;
    if (b->n && b->text[b->n - 1] == '\\' && b->at == b->n) {
        textbuf_delete(b, TEXT_LEFT);
        textbuf_insert(b, "\n", 1);
        return;
    }
    if (strspn(b->text, " \t\n") == b->n) {
        app_message(a, ROLE_DIM, "type something first; /help lists keys and commands");
        return;
    }
    bool slash = b->text[0] == '/' && b->text[1] != '/';
    if (!slash && !chat_can_talk(a))
        return; /* what is typed stays */
    char *text = mem_strdup(b->text + (b->text[0] == '/' && b->text[1] == '/'));
    if (!text)
        return;
    text_list_add(&a->j.history, b->text, JOURNAL_HISTORY);
    c->history_at = a->j.history.n;
    textbuf_clear(b);
    if (slash)
        chat_command(a, text);
    else
        chat_send(a, text);
    free(text);
}

static void interrupt(struct app *a)
{
    struct chat_state *c = &a->chat;
    if (c->answering) {
        worker_cancel_kind(a->worker, &job_chat);
    } else if (c->prompt.n) {
        text_list_add(&a->j.history, c->prompt.text, JOURNAL_HISTORY);
        c->history_at = a->j.history.n;
        textbuf_clear(&c->prompt);
        app_message(a, ROLE_DIM, "cleared; Up brings it back");
    } else if (a->leave_warned) {
        a->quit = true;
    } else {
        a->leave_warned = 2;
        app_message(a, ROLE_NORMAL, "Ctrl-C again leaves mlathe");
    }
}

static void toggle_mode(struct app *a)
{
    struct chat_settings *s = &a->j.settings;
    s->mode = s->mode == CHAT_FREE ? CHAT_FORCED : CHAT_FREE;
    app_message(a, ROLE_NORMAL,
                s->mode == CHAT_FREE ? "free: each side continues its own answer"
                                     : "forced: the converted model scores the original's answer");
    app_changed(a);
}

bool chat_request(struct app *a, enum request r, int key)
{
    struct chat_state *c = &a->chat;
    int page = a->options.rows > 12 ? a->options.rows - 8 : 4;
    if (r != REQ_SEARCH_PAST)
        text_set(&c->needle, NULL);
    switch (r) {
    case REQ_STOP:
        if (c->answering)
            worker_cancel_kind(a->worker, &job_chat);
        else if (c->scroll[0] || c->scroll[1] || c->found.n)
            scroll_to(c, 0);
        else
            return false;
        c->found = (struct found_text){0};
        return true;
    case REQ_SEARCH_PAST: chat_search_past(a); return true;
    case REQ_DIFFERENCE: chat_to_difference(a); return true;
    case REQ_REGEN: chat_command(a, "/regen"); return true;
    case REQ_EDIT:
        chat_command(a, "/edit");
        c->in_transcript = c->prompt.n == 0;
        return true;
    case REQ_INTERRUPT: interrupt(a); return true;
    case REQ_MODE: toggle_mode(a); return true;
    case REQ_FOCUS:
        if (c->in_transcript || !chat_complete_command(&c->prompt))
            c->in_transcript = !c->in_transcript;
        return true;
    case REQ_PAGE_UP: scroll_by(c, page); return true;
    case REQ_PAGE_DOWN: scroll_by(c, -page); return true;
    default: break;
    }
    if (c->in_transcript) {
        if (r == REQ_UP)
            scroll_by(c, 1);
        else if (r == REQ_DOWN)
            scroll_by(c, -1);
        else if (r == REQ_FIRST)
            scroll_to(c, TO_THE_TOP);
        else if (r == REQ_LAST)
            scroll_to(c, 0);
        else
            return false;
        return true;
    }
    if (r == REQ_SEND)
        submit_prompt(a);
    else if (r == REQ_NEWLINE)
        textbuf_insert(&c->prompt, "\n", 1);
    else if (r == REQ_EDIT_UP || r == REQ_EDIT_DOWN)
        up_down(a, r == REQ_EDIT_UP ? -1 : 1);
    else if (!edit_key(&c->prompt, r, key))
        return false;
    app_changed(a);
    return true;
}

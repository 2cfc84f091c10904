/* The transcript's uses: as Markdown or JSON in a file, a search through earlier inputs, and where
 * two answers part. Refuses names that say neither form. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"
#include "ui/app_parts.h"
#include "ui/markup.h"

/* Text from models and users as a quotation; control characters stay out. */
static void quote(struct markup *m, const char *text)
{
    for (const char *at = text; *at; at += strcspn(at, "\n"), at += *at == '\n') {
        markup_put(m, "> ");
        for (const char *c = at; *c && *c != '\n'; c++)
            if ((unsigned char)*c >= 32 ? *c != 127 : *c == '\t')
                markup_printf(m, "%c", *c);
        markup_put(m, "\n");
    }
    markup_put(m, "\n");
}

static char *markdown(const struct app *a)
{
    static const char *const side[] = {"Original", "Converted"};
    struct markup m = {0};
    const struct chat_settings *s = &a->j.settings;
    markup_printf(&m, "# A chat with %s\n\n", a->has_model ? a->info.name : "a model");
    if (a->has_conversion && a->convert.has_result)
        markup_printf(&m, "The conversion keeps %.0f %% of the KV cache. ",
                      100 * a->convert.result.kept);
    markup_printf(&m, "Temperature %g, seed %llu, %s.\n\n", s->sampling.temperature,
                  (unsigned long long)s->sampling.seed,
                  s->mode == CHAT_FORCED ? "forced: the conversion scored the original's answer"
                                         : "free: each model went on with its own answer");
    if (a->j.system) {
        markup_put(&m, "## System\n\n");
        quote(&m, a->j.system);
    }
    for (size_t i = 0; i < a->j.n_turn; i++) {
        const struct chat_turn_text *t = &a->j.turn[i];
        markup_printf(&m, "## %zu\n\n", i + 1);
        quote(&m, t->prompt);
        for (int k = 0; k < 2; k++)
            if (t->answer[k]) {
                markup_printf(&m, "**%s**\n\n", side[k]);
                quote(&m, t->answer[k]);
            }
    }
    if (!m.failed)
        return m.text;
    markup_done(&m);
    return NULL;
}

static bool ends_in(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n > k && !strcasecmp(text + n - k, end);
}

void chat_export(struct app *a, const char *name)
{
    char *path = ask_expand_home(name);
    bool md = path && ends_in(path, ".md"), json = path && ends_in(path, ".json");
    if (path && !md && !json) {
        app_message(a, ROLE_WARN, "/export FILE.md writes Markdown, /export FILE.json JSON");
    } else {
        char *text = !path ? NULL : md ? markdown(a) : journal_chat_text(&a->j);
        if (!text || !saver_put(a->saver, path, text, false))
            app_message(a, ROLE_BAD, "out of memory: not written");
    }
    free(path);
}

/* Each press goes on to the next earlier input that holds what was typed before the first. */
void chat_search_past(struct app *a)
{
    struct chat_state *c = &a->chat;
    const struct text_list *h = &a->j.history;
    if (!c->needle) {
        if (!c->prompt.n) {
            app_message(a, ROLE_DIM, "type a part of an earlier input, then search for it");
            return;
        }
        text_set(&c->held, c->prompt.text);
        text_set(&c->needle, c->prompt.text);
        c->needle_at = h->n;
    }
    for (size_t i = c->needle_at; c->needle && i-- > 0;) {
        if (!strstr(h->text[i], c->needle) || !strcmp(h->text[i], c->prompt.text))
            continue;
        c->needle_at = c->history_at = i;
        textbuf_set(&c->prompt, h->text[i]);
        app_message(a, ROLE_NORMAL, "holds \"%s\"; once more: further back, Down: forward",
                    c->needle);
        app_changed(a);
        return;
    }
    app_message(a, ROLE_WARN, "no earlier input holds \"%s\"", c->needle ? c->needle : "");
}

void chat_to_difference(struct app *a)
{
    size_t n[2], end[2], at[2];
    if (!a->j.n_turn) {
        app_message(a, ROLE_DIM, "nothing has been answered yet");
        return;
    }
    size_t turn = a->j.n_turn - 1;
    const char *text[2];
    for (int k = 0; k < 2; k++) {
        text[k] = chat_said(a, turn, k, &n[k]);
        at[k] = text[k] ? chat_parts_at(a, turn, k, &end[k]) : SIZE_MAX;
    }
    if (at[0] == SIZE_MAX && at[1] == SIZE_MAX) {
        app_message(a, ROLE_DIM,
                    text[0] && text[1] ? "the newest answers do not part"
                                       : "there is one answer: nothing to part from");
        return;
    }
    a->chat.find_difference = true;
    app_message(
        a, ROLE_NORMAL, "they part at \"%.*s\" and \"%.*s\"",
        at[0] == SIZE_MAX ? 0 : (int)(end[0] - at[0]), at[0] == SIZE_MAX ? "" : text[0] + at[0],
        at[1] == SIZE_MAX ? 0 : (int)(end[1] - at[1]), at[1] == SIZE_MAX ? "" : text[1] + at[1]);
}

/* The transcript as a file under data/chats; returns its path for a message. */
bool chat_save(struct app *a, const char *name, bool quiet, char shown[1024])
{
    char *dir = path_join(a->paths.data, "chats");
    const char *base = a->j.model ? path_base(a->j.model) : "chat"; /* whose answers these are */
    char model[96];
    snprintf(model, sizeof model, "%.*s", (int)strcspn(base, "."), base);
    char *path = name && name[0] ? ask_expand_home(name)
                 : dir           ? path_free(dir, model, ".chat.json")
                                 : NULL;
    char *text = path ? journal_chat_text(&a->j) : NULL;
    bool ok = text && saver_put(a->saver, path, text, quiet);
    if (ok)
        app_path_text(path, shown);
    free(path);
    free(dir);
    return ok;
}

/* Cleared from the screen, not from the disk: a chat is never lost. */
void chat_put_away(struct app *a)
{
    char shown[1024];
    if (a->j.n_turn && a->lock >= 0 && chat_save(a, NULL, true, shown))
        app_message(a, ROLE_NORMAL, "a new chat; the one before is in %s", shown);
    chat_model_changed(a);
    journal_drop_turns(&a->j, 0);
}

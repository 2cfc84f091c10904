/* Looking for a word (/) on the screen that is shown, and for its next place (n). Every search
 * begins after what is selected or was found, and goes around once. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "ui/app_parts.h"
#include "ui/eval_text.h"

void find_ask(struct app *a)
{
    ask_open(a, REQ_FIND, a->j.screen == SCREEN_RANKS && !a->help ? "to layer" : "find", "", false);
}

/* Without regard to the case of ASCII letters; NULL when it is not there. */
static const char *find_in(const char *text, size_t n, const char *word)
{
    size_t k = strlen(word);
    for (size_t i = 0; k && i + k <= n; i++) {
        size_t same = 0;
        while (same < k &&
               tolower((unsigned char)text[i + same]) == tolower((unsigned char)word[same]))
            same++;
        if (same == k)
            return text + i;
    }
    return NULL;
}

static bool holds(const char *text, const char *word)
{
    return text && find_in(text, strlen(text), word);
}

/* The lists, by what a row of them says. */
static bool model_holds(const struct app *a, int row)
{
    const struct model_entry *m = &a->found.entry[row];
    return holds(m->name, a->find) || holds(m->path, a->find) || holds(m->family, a->find);
}

static bool result_holds(const struct app *a, int row)
{
    char text[EVAL_TEXT];
    eval_text_title(&a->eval.list.r[row], text);
    return holds(text, a->find) || holds(a->eval.list.r[row].file, a->find);
}

static bool conversion_holds(const struct app *a, int row)
{
    const struct eval_sibling *c = &a->eval.known.s[row];
    return holds(path_base(c->dir), a->find) || holds(c->method, a->find) ||
           holds(c->layout, a->find);
}

static bool engine_holds(const struct app *a, int row)
{
    return holds(stock_name((enum stock_engine)row), a->find);
}

/* Moves *at, in a list of n, to the next row that holds the word. */
static bool in_list(const struct app *a, bool (*row_holds)(const struct app *, int), int n, int *at)
{
    for (int i = 1; i <= n; i++)
        if (row_holds(a, (*at + i) % n)) {
            *at = (*at + i) % n;
            return true;
        }
    return false;
}

/* Layers have numbers. */
static bool to_layer(struct app *a)
{
    char *end;
    long layer = strtol(a->find, &end, 10);
    if (*end || layer < 0 || layer >= a->info.n_layer)
        return false;
    if (a->j.screen == SCREEN_CONVERT)
        a->convert.top = (int)layer;
    else
        a->ranks.layer = (int)layer;
    return true;
}

static bool in_help(struct app *a)
{
    size_t n;
    const struct binding *table = keys_table(&n);
    enum context where = app_help_context(a);
    int rows = 0, row = 0, best = -1;
    char key[32];
    for (size_t i = 0; i < n; i++)
        rows += (table[i].where & where) != 0;
    for (size_t i = 0; i < n; i++) {
        if (!(table[i].where & where))
            continue;
        bool here = holds(table[i].help, a->find) || holds(table[i].hint, a->find);
        for (int k = 0; k < BINDING_KEYS && table[i].key[k]; k++)
            here = here || holds(keys_name(table[i].key[k], false, key), a->find);
        /* The nearest one below the top line, around the end. */
        int below = (row - a->help_top - 1 + rows) % rows;
        if (here && (best < 0 || below < (best - a->help_top - 1 + rows) % rows))
            best = row;
        row++;
    }
    if (best >= 0)
        a->help_top = best;
    return best >= 0;
}

/* The text of turn t: its prompt, or what a side answered. */
static const char *said(const struct app *a, size_t t, int what, size_t *n)
{
    if (what < 2)
        return chat_said(a, t, what, n);
    *n = strlen(a->j.turn[t].prompt);
    return a->j.turn[t].prompt;
}

/* From the newest words to the oldest. */
static bool in_transcript(struct app *a)
{
    struct found_text *f = &a->chat.found;
    size_t all = 3 * a->j.n_turn, from = f->n && f->turn < a->j.n_turn
                                             ? 3 * (a->j.n_turn - 1 - f->turn) + (size_t)f->what
                                             : all;
    for (size_t i = 1; i <= all; i++) {
        size_t at = (from + i) % (all + 1), n;
        if (at == all)
            continue;
        size_t turn = a->j.n_turn - 1 - at / 3;
        const char *text = said(a, turn, (int)(at % 3), &n), *here = NULL;
        if (!text || !(here = find_in(text, n, a->find)))
            continue;
        *f = (struct found_text){turn, (int)(at % 3), (size_t)(here - text), strlen(a->find), true};
        return true;
    }
    return false;
}

static bool in_screen(struct app *a)
{
    struct eval_state *v = &a->eval;
    switch (a->j.screen) {
    case SCREEN_MODEL: return in_list(a, model_holds, (int)a->found.n, &a->found_selected);
    case SCREEN_CHAT: return in_transcript(a);
    case SCREEN_EVAL:
        return v->conversions ? in_list(a, conversion_holds, (int)v->known.n, &v->top)
                              : in_list(a, result_holds, (int)v->list.n, &v->at);
    case SCREEN_EXPORT: return in_list(a, engine_holds, STOCK_ENGINES, &a->export.at);
    default: return a->has_model && to_layer(a);
    }
}

void find_next(struct app *a)
{
    if (!a->find[0]) {
        find_ask(a);
        return;
    }
    bool found = a->help ? in_help(a) : in_screen(a);
    bool layers = !a->help && (a->j.screen == SCREEN_RANKS || a->j.screen == SCREEN_CONVERT);
    if (!found)
        app_message(a, ROLE_WARN,
                    layers ? "no layer %s: give a layer's number" : "nothing here holds \"%s\"",
                    a->find);
    else if (!layers)
        app_message(a, ROLE_DIM, "n goes on to the next");
}

void find_answer(struct app *a, const char *text)
{
    if (*text) { /* nothing: the same again */
        snprintf(a->find, sizeof a->find, "%.*s", (int)sizeof a->find - 1, text);
        a->chat.found = (struct found_text){0};
    }
    if (a->find[0])
        find_next(a);
}

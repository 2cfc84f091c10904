/* Looking for a word (/) on the screen that is shown, and for its next place (n). Every search
 * begins after what is selected or was found, and goes around once. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ui/app_parts.h"

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

static bool in_models(struct app *a)
{
    int n = (int)a->found.n;
    for (int i = 1; i <= n; i++) {
        const struct model_entry *m = &a->found.entry[(a->found_selected + i) % n];
        if (holds(m->name, a->find) || holds(m->path, a->find) || holds(m->family, a->find)) {
            a->found_selected = (a->found_selected + i) % n;
            return true;
        }
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

void find_next(struct app *a)
{
    if (!a->find[0]) {
        find_ask(a);
        return;
    }
    bool found = a->help                       ? in_help(a)
                 : a->j.screen == SCREEN_MODEL ? in_models(a)
                 : a->j.screen == SCREEN_CHAT  ? in_transcript(a)
                 : a->has_model                ? to_layer(a)
                                               : false;
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

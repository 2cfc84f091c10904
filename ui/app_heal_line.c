/* How to heal, typed in one line: for how long, then knobs and their values, then a text file:
 * "10", "50000 tokens", "kl 0.3 lr 0.002 train q,kv_b ~/wiki.txt". What is not named is chosen by
 * the budget. Refuses amounts, values and parts that do not exist. */
#include "ui/app_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"

/* The names and bounds of the command line's options. */
enum { REFIT, TRAIN, RATE, MIX, MATCH, LENGTH, BATCH, ACCUMULATE, KNOBS };
static const struct knob {
    const char *name;
    double least, most;
    bool whole;
} knobs[KNOBS] = {
    [REFIT] = {"refit", 0, 1 << 22, true}, [TRAIN] = {"train", 0, 0, false}, /* a list of parts */
    [RATE] = {"lr", 1e-7, 0.1, false},     [MIX] = {"next-token", 0, 1, false},
    [MATCH] = {"match", 0, 100, false},    [LENGTH] = {"length", 8, 65536, true},
    [BATCH] = {"batch", 8, 1 << 20, true}, [ACCUMULATE] = {"accumulate", 1, 10000, true},
};

static void set_knob(struct heal_options *o, int k, double v)
{
    switch (k) {
    case REFIT: o->refit_tokens = v > 0 ? (long long)v : -1; break;
    case RATE: o->rate = v; break;
    case MIX: o->mix = v; break;
    case MATCH: o->match = v; break;
    case LENGTH: o->length = (int)v; break;
    case BATCH: o->batch = (int)v; break;
    default: o->accumulate = (int)v;
    }
}

/* The next word of *at, cut off, and *at behind it; "" at the end. */
static char *next_word(char **at)
{
    char *word = *at + strspn(*at, " ");
    *at = word + strcspn(word, " ");
    if (**at)
        *(*at)++ = 0;
    return word;
}

static bool begins(const char *word, const char *of)
{
    return *word && !strncasecmp(word, of, strlen(word));
}

/* "10", "10 m", "10m", "50000 tokens", "kl 0.3"; *at moves on. */
static int read_amount(struct heal_options *o, char **at, struct err *e)
{
    char *word = next_word(at), *unit;
    bool kl = !strcasecmp(word, "kl");
    double v = strtod(kl ? word = next_word(at) : word, &unit);
    bool none = unit == word;
    if (!*unit && !kl) { /* the unit may stand apart */
        char *after = *at + strspn(*at, " ");
        size_t n = strcspn(after, " ");
        if (n && (!strncasecmp(after, "tokens", n) || !strncasecmp(after, "minutes", n)))
            unit = next_word(at);
    }
    bool tokens = begins(unit, "tokens"), known = !*unit || (!kl && begins(unit, "minutes"));
    if (none || !(v > 0 && v < 1e9) || !(tokens || known))
        return err_set(e, ERR_ARG,
                       "say 10 (minutes), 50000 tokens, or kl 0.3; then, if you like, how and on "
                       "which text file");
    o->tokens = tokens ? (long long)v : 0;
    o->until_kl = kl ? v : 0;
    o->seconds = tokens ? 0 : kl ? 3600 : 60 * v; /* for a KL an hour at most */
    return OK;
}

static int read_knob(struct heal_options *o, int k, const char *value, struct err *e)
{
    const struct knob *knob = &knobs[k];
    char *end;
    if (k == TRAIN)
        return heal_parts_parse(value, &o->parts, e);
    double v = strtod(value, &end);
    if (end == value || *end || !(v >= knob->least && v <= knob->most) ||
        (knob->whole && v != floor(v)))
        return err_set(e, ERR_ARG, "%s takes a %snumber from %g to %.8g, not \"%.40s\"", knob->name,
                       knob->whole ? "whole " : "", knob->least, knob->most, value);
    set_knob(o, k, v);
    return OK;
}

static int read_knobs(struct heal_options *o, char **at, struct err *e)
{
    for (int rc = OK, k = 0; !rc;) {
        char *word = *at += strspn(*at, " ");
        size_t n = strcspn(word, " ");
        for (k = 0; k < KNOBS; k++)
            if (strlen(knobs[k].name) == n && !strncasecmp(word, knobs[k].name, n))
                break;
        if (k == KNOBS)
            return OK; /* the file */
        next_word(at);
        if ((rc = read_knob(o, k, next_word(at), e)) != OK)
            return rc;
    }
    return OK;
}

/* Nobody wants to hear after minutes that it is not there. */
static int read_file(const char *text, char **file, struct err *e)
{
    char names[128];
    size_t n = 0;
    *file = ask_expand_home(text);
    if (!*file)
        return err_nomem(e, strlen(text), "a path");
    if (file_exists(*file))
        return OK;
    for (int k = 0; k < KNOBS; k++)
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", k ? ", " : "", knobs[k].name);
    err_set(e, ERR_ARG, "%.400s is not there, and no knob (%s)", *file, names);
    free(*file);
    *file = NULL;
    return e->status;
}

int heal_parse(struct heal_options *o, const char *text, char **file, struct err *e)
{
    char *copy = mem_strdup(text), *at = copy;
    *o = (struct heal_options){0};
    *file = NULL;
    int rc = copy ? read_amount(o, &at, e) : err_nomem(e, strlen(text), "a line");
    if (!rc)
        rc = read_knobs(o, &at, e);
    if (!rc && *at)
        rc = read_file(at, file, e);
    free(copy);
    return rc;
}

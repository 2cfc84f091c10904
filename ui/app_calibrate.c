/* What to calibrate on, typed in one line: files, each with its share if they are not equal, how
 * many tokens, and until when: "wiki.txt 2 code.txt 1 32768 tokens until 2%". Nothing: the model's
 * own text. A line that is one file's name means that file, whatever is in the name. */
#include "ui/app_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"

struct calib_wish {
    char *file[CALIBRATE_FILES];
    double share[CALIBRATE_FILES];
    int n;
    long long tokens;
    double until; /* a share, not % */
};

static void wish_done(struct calib_wish *w)
{
    for (int i = 0; i < w->n; i++)
        free(w->file[i]);
    *w = (struct calib_wish){0};
}

/* A file must be there: nobody wants to hear that after minutes. */
static int add_file(struct calib_wish *w, const char *word, struct err *e)
{
    if (w->n == CALIBRATE_FILES)
        return err_set(e, ERR_ARG, "at most %d files", CALIBRATE_FILES);
    if (!strcasecmp(word, "tokens"))
        return err_set(e, ERR_ARG, "how many stands before that word: 32768 tokens");
    char *path = ask_expand_home(word);
    if (!path || !file_exists(path) || file_is_dir(path)) {
        err_set(e, ERR_ARG, "%s: no such file", path ? path : word);
        free(path);
        return e->status;
    }
    w->share[w->n] = 1;
    w->file[w->n++] = path;
    return OK;
}

/* A number counts tokens before that word, else it is the share of the file before it. */
static int add_number(struct calib_wish *w, double v, bool tokens, struct err *e)
{
    if (tokens && !(v >= 256 && v <= 1e9))
        return err_set(e, ERR_ARG, "calibration takes 256 tokens or more");
    if (!tokens && (!w->n || !(v > 0 && v < 1e9)))
        return err_set(e, ERR_ARG, "%g: a share stands behind its file, and is above 0", v);
    if (tokens)
        w->tokens = (long long)v;
    else
        w->share[w->n - 1] = v;
    return OK;
}

static int add_until(struct calib_wish *w, const char *word, struct err *e)
{
    char *end;
    w->until = strtod(word, &end) / 100;
    if ((*end && strcmp(end, "%")) || !(w->until > 0 && w->until < 1))
        return err_set(e, ERR_ARG, "until takes a percentage: until 2%%");
    return OK;
}

static int parse_words(struct calib_wish *w, char *text, struct err *e)
{
    char *word[2 * CALIBRATE_FILES + 8], *end;
    int n = 0, rc = OK;
    char *at = text;
    while (at && n < (int)(sizeof word / sizeof *word) - 1)
        if (*(word[n] = strsep(&at, " ")))
            n++;
    if (at)
        return err_set(e, ERR_ARG, "too many words: at most %d files", CALIBRATE_FILES);
    word[n] = ""; /* what follows the last one */
    for (int i = 0; i < n && !rc; i++) {
        const char *next = word[i + 1 < n ? i + 1 : n];
        bool tokens = *next && !strncasecmp("tokens", next, strlen(next));
        double v = strtod(word[i], &end);
        if (!strcasecmp(word[i], "until"))
            rc = add_until(w, word[++i < n ? i : n], e);
        else if (*end)
            rc = add_file(w, word[i], e);
        else if ((rc = add_number(w, v, tokens, e)) == OK)
            i += tokens;
    }
    return rc;
}

static int parse(struct calib_wish *w, const char *text, struct err *e)
{
    *w = (struct calib_wish){0};
    char *whole = ask_expand_home(text ? text : "");
    if (!whole)
        return err_nomem(e, 64, "a line");
    if (whole[0] && file_exists(whole) && !file_is_dir(whole)) {
        w->file[0] = whole;
        w->share[0] = 1;
        w->n = 1;
        return OK;
    }
    int rc = parse_words(w, whole, e);
    free(whole);
    if (rc)
        wish_done(w);
    return rc;
}

static void submit(struct app *a, const struct calib_wish *w, const struct rankplan *p)
{
    char *cache = path_join(a->paths.cache, "calibration");
    struct calib_options o = {.files = (const char *const *)w->file,
                              .n_files = w->n,
                              .shares = w->share,
                              .tokens = w->tokens ? w->tokens : PLAN_TOKENS,
                              .until = w->until};
    worker_cancel_kind(a->worker, &job_calibrate);
    worker_submit(a->worker, &job_calibrate,
                  calibrate_args(&o, cache, p->layout, p->layer[0].qk_rope_head_dim));
    free(cache);
}

bool calibrate_answer(struct app *a, const char *text)
{
    struct calib_wish w;
    struct err e = {0};
    char of[64];
    if (parse(&w, text, &e))
        return ask_refuse(a, &e);
    text_set(&a->j.calibration, text[strspn(text, " ")] ? text : NULL);
    app_changed(a);
    submit(a, &w, &a->ranks.plan);
    if (w.n == 1)
        snprintf(of, sizeof of, "%.60s", path_base(w.file[0]));
    else
        snprintf(of, sizeof of, w.n ? "%d files" : "the model's own text", w.n);
    app_message(a, ROLE_NORMAL, "calibrating on %lld tokens of %s: spectra are replaced as it goes",
                w.tokens ? w.tokens : PLAN_TOKENS, of);
    wish_done(&w);
    return true;
}

void calibrate_again(struct app *a, const struct rankplan *p)
{
    struct calib_wish w;
    struct err e = {0};
    if (parse(&w, a->j.calibration, &e)) /* the job says what is wrong with it */
        w = (struct calib_wish){.file = {mem_strdup(a->j.calibration)}, .n = 1};
    submit(a, &w, p);
    wish_done(&w);
}

char *calibrate_file(const struct app *a)
{
    struct calib_wish w;
    struct err e = {0};
    if (!a->j.calibration || parse(&w, a->j.calibration, &e) || !w.n)
        return NULL;
    char *first = mem_strdup(w.file[0]);
    wish_done(&w);
    return first;
}

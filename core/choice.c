/* Questions in the words of the protocol. Refuses drafts that lack a part. */
#include "core/choice.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"

static const char *const names[CHOICE_TASKS] = {"arc",        "hellaswag", "piqa",
                                                "winogrande", "obqa",      "mmlu"};

const char *choice_name(enum choice_task task)
{
    return names[task];
}

bool choice_find(const char *name, enum choice_task *task)
{
    for (int i = 0; i < CHOICE_TASKS; i++)
        if (!strcmp(name, names[i])) {
            *task = (enum choice_task)i;
            return true;
        }
    return false;
}

bool choice_guess(const char *path, enum choice_task *task)
{
    const char *base = path_base(path);
    for (size_t n = strlen(base), i = 0; i < n; i++) {
        if (!strncasecmp(base + i, "openbook", 8)) {
            *task = CHOICE_OBQA;
            return true;
        }
        /* "arc" begins a name or nothing: "search.txt" is not meant. */
        for (int t = 0; t < CHOICE_TASKS; t++)
            if (!strncasecmp(base + i, names[t], strlen(names[t])) && (t != CHOICE_ARC || i == 0)) {
                *task = (enum choice_task)t;
                return true;
            }
    }
    return false;
}

void choice_done(struct choice_set *s)
{
    for (size_t i = 0; i < s->n; i++)
        for (int k = 0; k < s->item[i].n; k++) {
            free(s->item[i].answer[k].context);
            free(s->item[i].answer[k].ending);
        }
    free(s->item);
    *s = (struct choice_set){0};
}

/* "A. first\nB. second\n…" */
static char *lettered(const struct choice_draft *d)
{
    char *text = mem_strdup("");
    for (int i = 0; i < d->n && text; i++) {
        char *more = mem_printf("%s%c. %s\n", text, 'A' + i, d->ending[i]);
        free(text);
        text = more;
    }
    return text;
}

static char *mmlu_context(const struct choice_draft *d, const char *subject)
{
    char *answers = lettered(d);
    char *text = answers ? mem_printf("The following are multiple choice questions (with answers) "
                                      "about %s.\n\n%s\n%sAnswer:",
                                      subject ? subject : "anything", d->question, answers)
                         : NULL;
    free(answers);
    return text;
}

static char *context_of(enum choice_task task, const struct choice_draft *d, int k,
                        const char *subject)
{
    const char *q = d->question, *gap = strchr(q, '_');
    switch (task) {
    case CHOICE_ARC:
    case CHOICE_PIQA: return mem_printf("Question: %s\nAnswer:", q);
    case CHOICE_MMLU: return mmlu_context(d, subject);
    case CHOICE_WINOGRANDE: return mem_printf("%.*s%s", (int)(gap - q), q, d->ending[k]);
    default: return mem_strdup(q);
    }
}

/* Without blanks at both ends. */
static char *trimmed(const char *text)
{
    size_t n = strlen(text), from = strspn(text, " \t\r\n");
    while (n > from && strchr(" \t\r\n", text[n - 1]))
        n--;
    return mem_printf("%.*s", (int)(n - from), text + from);
}

static char *ending_of(enum choice_task task, const struct choice_draft *d, int k)
{
    switch (task) {
    case CHOICE_MMLU: return mem_printf("%c", 'A' + k);
    case CHOICE_WINOGRANDE: return trimmed(strchr(d->question, '_') + 1);
    default: return mem_strdup(d->ending[k]);
    }
}

static bool empty(const char *text)
{
    return !text[strspn(text, " \t\r\n")];
}

static int check_draft(const struct choice_set *s, const struct choice_draft *d, const char *where,
                       struct err *e)
{
    size_t at = s->n + 1;
    if (d->n < 2)
        return err_set(e, ERR_FORMAT, "%s: question %zu has %d answers: at least 2 are needed",
                       where, at, d->n);
    if (!d->question || empty(d->question))
        return err_set(e, ERR_FORMAT, "%s: question %zu has no text", where, at);
    for (int i = 0; i < d->n; i++)
        if (!d->ending[i] || empty(d->ending[i]))
            return err_set(e, ERR_FORMAT, "%s: answer %d of question %zu is empty", where, i + 1,
                           at);
    if (d->gold < 0 || d->gold >= d->n)
        return err_set(e, ERR_FORMAT, "%s: the label of question %zu names none of its %d answers",
                       where, at, d->n);
    const char *gap = s->task == CHOICE_WINOGRANDE ? strchr(d->question, '_') : NULL;
    if (s->task == CHOICE_WINOGRANDE && (!gap || empty(gap + 1)))
        return err_set(e, ERR_FORMAT, "%s: question %zu needs a blank (_) and words after it",
                       where, at);
    return OK;
}

int choice_add(struct choice_set *s, const struct choice_draft *d, const char *subject,
               const char *where, struct err *e)
{
    void *grown = s->item;
    int rc = check_draft(s, d, where, e);
    if (rc)
        return rc;
    if (!mem_grow(&grown, &s->cap, s->n + 1, sizeof *s->item))
        return err_nomem(e, s->n * sizeof *s->item, "questions");
    s->item = grown;
    struct choice_item *item = &s->item[s->n++];
    *item = (struct choice_item){.n = d->n, .gold = d->gold};
    for (int i = 0; i < d->n; i++) {
        item->answer[i].context = context_of(s->task, d, i, subject);
        item->answer[i].ending = ending_of(s->task, d, i);
        if (!item->answer[i].context || !item->answer[i].ending)
            return err_nomem(e, strlen(d->question), "questions");
    }
    return OK;
}

/* The files of multiple-choice questions: JSON lists and lines, llama.cpp's HellaSwag text, MMLU's
 * CSV. Bounded reading of what anybody may have written; refuses packed files with a hint. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/choice.h"
#include "core/file.h"
#include "core/json.h"

#define CHOICE_MAX_FILE ((size_t)256 << 20)

static void draft_done(struct choice_draft *d)
{
    free(d->question);
    for (int i = 0; i < CHOICE_MAX; i++)
        free(d->ending[i]);
    *d = (struct choice_draft){0};
}

/* ---- the instruction form ---- */

static char *piece(const char *from, const char *end)
{
    return mem_printf("%.*s", (int)(end - from), from);
}

/* The number at the end of "answer3", −1 when there is none. */
static int label_number(const char *label)
{
    size_t n = strlen(label), at = n;
    while (at > 0 && label[at - 1] >= '0' && label[at - 1] <= '9')
        at--;
    bool minus = at > 0 && label[at - 1] == '-';
    return n - at > 0 && n - at < 4 && !minus ? atoi(label + at) : -1;
}

static const char *last_of(const char *text, const char *what)
{
    const char *found = NULL;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at++)
        found = at;
    return found;
}

/* The separator before a marker is one blank, or an empty line. */
static const char *before(const char *from, const char *marker)
{
    size_t n = (size_t)(marker - from);
    if (n >= 2 && !memcmp(marker - 2, "\n\n", 2))
        return marker - 2;
    return n >= 1 && marker[-1] == ' ' ? marker - 1 : marker;
}

/* "Please choose …: QUESTION\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2". What is
 * not there stays NULL in the draft, and is refused later. */
static int parse_instruction(struct choice_draft *d, const char *text, const char *label)
{
    static const char format[] = "Answer format: ";
    const char *end = last_of(text, format), *start = strstr(text, ": ");
    char word[32], mark[48];
    if (!end || !start || start > end || sscanf(end + strlen(format), "%30[a-z]", word) != 1)
        return OK;
    int n = 1;
    for (const char *c = end; *c && *c != '\n'; c++)
        n += *c == '/';
    word[0] = (char)(word[0] - 'a' + 'A');
    d->n = n < CHOICE_MAX ? n : CHOICE_MAX;
    d->gold = label_number(label) - 1;
    const char *at = start + 2;
    for (int i = 0; i <= d->n; i++) {
        const char *next = end;
        snprintf(mark, sizeof mark, "%s%d: ", word, i + 1);
        if (i < d->n)
            next = strstr(at, mark);
        if (!next || next > end)
            return OK;
        char **to = i ? &d->ending[i - 1] : &d->question;
        if (!(*to = piece(at, before(at, next))))
            return ERR_NOMEM;
        at = next + (i < d->n ? strlen(mark) : 0);
    }
    return OK;
}

/* ---- the data sets' own keys ---- */

/* HellaSwag's captions from WikiHow carry marks: " [title]" ends a sentence, others go. */
static char *clean_caption(const char *text)
{
    char *out = mem_calloc(strlen(text) + 3, 1);
    size_t n = 0;
    for (const char *c = text + strspn(text, " "); out && *c;) {
        const char *close = *c == '[' ? strchr(c, ']') : NULL;
        if (!strncmp(c, " [title]", 8)) {
            memcpy(out + n, ". ", 2);
            n += 2;
            c += 8;
        } else if (close) {
            c = close + 1;
        } else {
            out[n++] = *c++;
        }
        while (n > 1 && out[n - 1] == ' ' && out[n - 2] == ' ')
            n--;
    }
    if (out)
        out[n] = 0;
    return out;
}

static char *hellaswag_question(const cJSON *o)
{
    const char *label = json_str_or(o, "activity_label", NULL);
    const char *a = json_str_or(o, "ctx_a", NULL), *b = json_str_or(o, "ctx_b", "");
    char *all = NULL, *clean;
    if (!label || !a)
        return mem_strdup(json_str_or(o, "ctx", ""));
    all = mem_printf("%s: %s %s", label, a, b);
    if (!all)
        return NULL;
    char *first = all + strlen(label) + 2 + strlen(a) + 1; /* ctx_b begins with a capital */
    if (*first >= 'a' && *first <= 'z')
        *first = (char)(*first - 'a' + 'A');
    clean = clean_caption(all);
    free(all);
    return clean;
}

/* A label as text: a string, or a number written out. */
static const char *label_of(const cJSON *v, char text[16])
{
    if (cJSON_IsString(v))
        return v->valuestring;
    text[0] = 0;
    if (cJSON_IsNumber(v))
        snprintf(text, 16, "%d", v->valueint);
    return text;
}

static bool add_ending(struct choice_draft *d, const char *text)
{
    if (d->n >= CHOICE_MAX || !text)
        return true;
    return (d->ending[d->n++] = mem_strdup(text)) != NULL;
}

/* {"question", "choices": {"text": […], "label": […]}, "answerKey"}, or AI2's own
 * {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}. */
static bool parse_keyed(struct choice_draft *d, const cJSON *o)
{
    const cJSON *q = json_get(o, "question"), *inner = cJSON_IsObject(q) ? q : o;
    const cJSON *choices = json_get(inner, "choices"), *labels = json_get(choices, "label");
    const cJSON *list = cJSON_IsArray(choices) ? choices : json_get(choices, "text");
    const cJSON *label = labels ? labels->child : NULL;
    const char *key = json_str_or(o, "answerKey", ""), *stem = json_str_or(inner, "stem", NULL);
    stem = stem ? stem : json_str_or(o, "question_stem", json_str_or(o, "question", ""));
    bool ok = (d->question = mem_strdup(stem)) != NULL;
    for (const cJSON *v = list ? list->child : NULL; v && ok; v = v->next) {
        const char *name = cJSON_IsObject(v)       ? json_str_or(v, "label", "")
                           : cJSON_IsString(label) ? label->valuestring
                                                   : "";
        if (d->gold < 0 && name[0] && !strcmp(name, key))
            d->gold = d->n;
        ok = add_ending(d, cJSON_IsObject(v)   ? json_str_or(v, "text", "")
                           : cJSON_IsString(v) ? v->valuestring
                                               : "");
        label = label ? label->next : NULL;
    }
    return ok;
}

static bool parse_own(struct choice_draft *d, enum choice_task task, const cJSON *o)
{
    char text[16];
    bool ok = true;
    const cJSON *endings = json_get(o, "endings");
    switch (task) {
    case CHOICE_PIQA:
        d->question = mem_strdup(json_str_or(o, "goal", ""));
        d->gold = label_number(label_of(json_get(o, "label"), text));
        ok = add_ending(d, json_str_or(o, "sol1", "")) && add_ending(d, json_str_or(o, "sol2", ""));
        break;
    case CHOICE_WINOGRANDE:
        d->question = mem_strdup(json_str_or(o, "sentence", ""));
        d->gold = label_number(label_of(json_get(o, "answer"), text)) - 1;
        ok = add_ending(d, json_str_or(o, "option1", "")) &&
             add_ending(d, json_str_or(o, "option2", ""));
        break;
    case CHOICE_HELLASWAG:
        d->question = hellaswag_question(o);
        d->gold = label_number(label_of(json_get(o, "label"), text));
        for (const cJSON *v = endings ? endings->child : NULL; v && ok; v = v->next) {
            char *clean = clean_caption(cJSON_IsString(v) ? v->valuestring : "");
            ok = clean && add_ending(d, clean);
            free(clean);
        }
        break;
    default: ok = parse_keyed(d, o); break;
    }
    return ok && d->question;
}

static int add_object(struct choice_set *s, const cJSON *o, const char *path, struct err *e)
{
    struct choice_draft d = {.gold = -1};
    const char *text = json_str_or(o, "instruction", NULL);
    int rc = OK;
    if (!cJSON_IsObject(o))
        rc = err_set(e, ERR_FORMAT, "%s: question %zu is no JSON object", path, s->n + 1);
    else if (text ? parse_instruction(&d, text, json_str_or(o, "answer", "")) != OK
                  : !parse_own(&d, s->task, o))
        rc = err_nomem(e, 4096, "a question");
    if (!rc)
        rc = choice_add(s, &d, NULL, path, e);
    draft_done(&d);
    return rc;
}

static bool enough(const struct choice_set *s, long limit, size_t before_file)
{
    return limit > 0 && s->n - before_file >= (size_t)limit;
}

static int read_json(struct choice_set *s, const char *text, size_t size, const char *path,
                     long limit, struct err *e)
{
    cJSON *root;
    int rc = json_parse(&root, text, size, path, e);
    for (const cJSON *v = rc ? NULL : root->child; v && !rc && !enough(s, limit, 0); v = v->next)
        rc = add_object(s, v, path, e);
    cJSON_Delete(root);
    return rc;
}

static int read_json_lines(struct choice_set *s, const char *text, const char *path, long limit,
                           struct err *e)
{
    int rc = OK;
    for (const char *at = text; *at && !rc && !enough(s, limit, 0);) {
        size_t n = strcspn(at, "\n");
        cJSON *o = NULL;
        if (strspn(at, " \t\r") < n) {
            rc = json_parse(&o, at, n, path, e);
            if (!rc)
                rc = add_object(s, o, path, e);
            cJSON_Delete(o);
        }
        at += n + (at[n] == '\n');
    }
    return rc;
}

/* ---- llama.cpp's HellaSwag ---- */

static int read_six_lines(struct choice_set *s, const char *text, const char *path, long limit,
                          struct err *e)
{
    int rc = OK;
    for (const char *at = text; *at && !rc && !enough(s, limit, 0);) {
        struct choice_draft d = {.n = 4, .gold = -1};
        char *line[6] = {0};
        for (int i = 0; i < 6; i++) {
            size_t n = strcspn(at, "\n");
            line[i] = piece(at, at + n);
            if (line[i] && n && line[i][n - 1] == '\r')
                line[i][n - 1] = 0;
            at += n + (at[n] == '\n');
        }
        if (line[1] && line[1][0] >= '0' && line[1][0] <= '3' && !line[1][1])
            d.gold = line[1][0] - '0';
        d.question = line[0];
        memcpy(d.ending, line + 2, 4 * sizeof *line);
        rc = choice_add(s, &d, NULL, path, e);
        free(line[1]);
        draft_done(&d);
    }
    return rc;
}

/* ---- MMLU's CSV ---- */

/* One field, unquoted, in fresh memory; *at moves behind it and its comma. last: no more in this
 * row. */
static char *csv_field(const char **at, bool *last)
{
    const char *c = *at;
    bool quoted = *c == '"';
    size_t n = 0, cap = 64;
    char *out = mem_calloc(cap, 1);
    void *grown = out;
    for (c += quoted; out && *c; c++) {
        if (quoted && *c == '"') {
            if (c[1] != '"') {
                quoted = false;
                continue;
            }
            c++;
        } else if (!quoted && (*c == ',' || *c == '\n')) {
            break;
        }
        if (!mem_grow(&grown, &cap, n + 2, 1)) {
            free(out);
            return NULL;
        }
        out = grown;
        out[n++] = *c;
    }
    if (!out)
        return NULL;
    n -= n && out[n - 1] == '\r';
    out[n] = 0;
    *last = *c != ',';
    *at = c + (*c != 0);
    return out;
}

static int mmlu_gold(const char *label)
{
    bool one = label[0] && !label[1 + strspn(label + 1, " ")];
    if (one && label[0] >= '0' && label[0] <= '3')
        return label[0] - '0';
    return one && label[0] >= 'A' && label[0] <= 'D' ? label[0] - 'A' : -1;
}

/* A row: question, four answers, label. */
static int read_row(struct choice_set *s, const char **at, bool first, const char *subject,
                    const char *path, struct err *e)
{
    struct choice_draft d = {.n = 4, .gold = -1};
    char *label = NULL;
    bool last = false;
    int n = 0, rc = OK;
    for (; !last && !rc; n++) {
        char *field = csv_field(at, &last);
        if (!field)
            rc = err_nomem(e, 4096, "a row");
        else if (n == 0)
            d.question = field;
        else if (n <= 4)
            d.ending[n - 1] = field;
        else if (n == 5)
            label = field;
        else
            free(field);
    }
    bool blank = n == 1 && d.question && !d.question[0];
    if (!rc && n != 6 && !blank)
        rc = err_set(e, ERR_FORMAT,
                     "%s: question %zu has %d columns; question, 4 answers and a "
                     "label are 6",
                     path, s->n + 1, n);
    d.gold = label ? mmlu_gold(label) : -1;
    bool header = first && d.question && !strcmp(d.question, "question");
    if (!rc && !header && !blank)
        rc = choice_add(s, &d, subject, path, e);
    free(label);
    draft_done(&d);
    return rc;
}

/* "abstract_algebra_test.csv" → "abstract algebra" */
static char *subject_of(const char *path)
{
    static const char *const suffix[] = {".csv", "_test", "_val", "_dev"};
    char *name = mem_strdup(path_base(path));
    for (size_t i = 0; name && i < sizeof suffix / sizeof *suffix; i++) {
        size_t n = strlen(name), k = strlen(suffix[i]);
        if (n > k && !strcmp(name + n - k, suffix[i]))
            name[n - k] = 0;
    }
    for (char *c = name; c && *c; c++)
        *c = *c == '_' ? ' ' : *c;
    return name;
}

static int read_csv(struct choice_set *s, const char *text, const char *path, long limit,
                    struct err *e)
{
    size_t start = s->n;
    char *subject = subject_of(path);
    int rc = subject ? OK : err_nomem(e, 64, "a subject");
    for (const char *at = text; *at && !rc && !enough(s, limit, start);)
        rc = read_row(s, &at, at == text, subject, path, e);
    free(subject);
    return rc;
}

/* ---- any file ---- */

static const char *packed_with(const char *text, size_t n)
{
    if (n > 2 && !memcmp(text, "BZh", 3))
        return "bunzip2 -k";
    if (n > 1 && !memcmp(text, "\x1f\x8b", 2))
        return "tar -xzf (or gunzip -k)";
    return n > 3 && !memcmp(text, "PK\x03\x04", 4) ? "unzip" : NULL;
}

static int read_file(struct choice_set *s, const char *path, long limit, struct err *e)
{
    char *text;
    size_t size;
    int rc = file_read(path, CHOICE_MAX_FILE, &text, &size, e);
    if (rc)
        return rc;
    const char *tool = packed_with(text, size);
    const char *first = text + strspn(text, " \t\r\n");
    if (tool)
        rc = err_set(e, ERR_UNSUPPORTED, "%s: is packed; unpack it first: %s %s", path, tool, path);
    else if (strlen(text) != size)
        rc = err_set(e, ERR_FORMAT, "%s: has zero bytes: no file of questions", path);
    else if (s->task == CHOICE_MMLU)
        rc = read_csv(s, text, path, limit, e);
    else if (*first == '[')
        rc = read_json(s, text, size, path, limit, e);
    else if (*first == '{')
        rc = read_json_lines(s, text, path, limit, e);
    else if (s->task == CHOICE_HELLASWAG)
        rc = read_six_lines(s, text, path, limit, e);
    else
        rc = err_set(e, ERR_FORMAT,
                     "%s: neither a JSON list nor JSON lines: give the task's file as published",
                     path);
    free(text);
    return rc;
}

static int is_csv(const struct dirent *f)
{
    size_t n = strlen(f->d_name);
    return n > 4 && f->d_name[0] != '.' && !strcmp(f->d_name + n - 4, ".csv");
}

static int read_folder(struct choice_set *s, const char *path, long limit, struct err *e)
{
    struct dirent **f = NULL;
    int n = scandir(path, &f, is_csv, alphasort), rc = OK;
    if (n < 0)
        return err_errno(e, "%s", path);
    for (int i = 0; i < n; i++) {
        char *file = path_join(path, f[i]->d_name);
        if (!rc)
            rc = file ? read_file(s, file, limit, e) : err_nomem(e, 4096, "a path");
        free(file);
        free(f[i]);
    }
    free(f);
    return rc;
}

int choice_read(struct choice_set *out, enum choice_task task, const char *path, long limit,
                struct err *e)
{
    out->task = task;
    int rc = task == CHOICE_MMLU && file_is_dir(path) ? read_folder(out, path, limit, e)
                                                      : read_file(out, path, limit, e);
    if (!rc && !out->n)
        rc = err_set(e, ERR_FORMAT, "%s: holds no question", path);
    return rc;
}

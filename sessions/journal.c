/* The persistent state of a workspace. Bounded reading of what may have been edited by hand or cut
 * off; refuses files of a newer version instead of guessing. */
#include "sessions/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/file.h"

#define JOURNAL_MAX_BYTES ((size_t)64 << 20)

bool text_set(char **slot, const char *text)
{
    char *fresh = text ? mem_strdup(text) : NULL;
    if (text && !fresh)
        return false;
    free(*slot);
    *slot = fresh;
    return true;
}

void text_list_done(struct text_list *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->text[i]);
    free(l->text);
    *l = (struct text_list){0};
}

bool text_list_add(struct text_list *l, const char *text, size_t keep)
{
    char *fresh = mem_strdup(text);
    if (!fresh || !mem_grow((void **)&l->text, &l->cap, l->n + 1, sizeof *l->text)) {
        free(fresh);
        return false;
    }
    if (l->n >= keep) {
        free(l->text[0]);
        memmove(l->text, l->text + 1, (l->n - 1) * sizeof *l->text);
        l->n--;
    }
    l->text[l->n++] = fresh;
    return true;
}

bool text_list_last(struct text_list *l, const char *text, size_t keep)
{
    size_t i = 0;
    while (i < l->n && strcmp(l->text[i], text) != 0)
        i++;
    if (i == l->n)
        return text_list_add(l, text, keep);
    char *found = l->text[i];
    memmove(l->text + i, l->text + i + 1, (l->n - i - 1) * sizeof *l->text);
    l->text[l->n - 1] = found;
    return false;
}

int journal_init(struct journal *j, struct err *e)
{
    *j = (struct journal){.context = 8192, .batch = 1, .memory_bytes = 24.0 * 0x1p30};
    j->settings.sampling = (struct sampler_options){.temperature = 0, .top_p = 1, .seed = 42};
    j->eval = (struct eval_setup){.ctx = 512, .windows = 8, .limit = 100};
    j->settings.max_tokens = 512;
    j->settings.context = 4096;
    if (!text_set(&j->budget, "50%") || !text_set(&j->typed, ""))
        return err_nomem(e, 16, "journal");
    return OK;
}

void journal_drop_turns(struct journal *j, size_t keep)
{
    while (j->n_turn > keep)
        chat_turn_text_done(&j->turn[--j->n_turn]);
}

void journal_done(struct journal *j)
{
    journal_drop_turns(j, 0);
    free(j->turn);
    free(j->model);
    free(j->conversion);
    cJSON_Delete(j->plan);
    cJSON_Delete(j->plan_b);
    cJSON_Delete(j->queue);
    free(j->budget);
    free(j->calibration);
    free(j->typed);
    free(j->system);
    free(j->eval.text);
    free(j->eval.questions);
    text_list_done(&j->conversions);
    text_list_done(&j->history);
    text_list_done(&j->recent);
    *j = (struct journal){0};
}

bool journal_add_turn(struct journal *j, const char *prompt)
{
    char *fresh = mem_strdup(prompt);
    if (!fresh || !mem_grow((void **)&j->turn, &j->cap_turn, j->n_turn + 1, sizeof *j->turn)) {
        free(fresh);
        return false;
    }
    j->turn[j->n_turn++] = (struct chat_turn_text){.prompt = fresh};
    return true;
}

static cJSON *list_json(const struct text_list *l)
{
    cJSON *a = cJSON_CreateArray();
    for (size_t i = 0; i < l->n; i++)
        cJSON_AddItemToArray(a, cJSON_CreateString(l->text[i]));
    return a;
}

static void add_text(cJSON *o, const char *key, const char *text)
{
    if (text)
        cJSON_AddStringToObject(o, key, text);
}

static cJSON *chat_json(const struct journal *j)
{
    const struct chat_settings *s = &j->settings;
    cJSON *chat = cJSON_CreateObject();
    add_text(chat, "system", j->system);
    cJSON *set = cJSON_AddObjectToObject(chat, "settings");
    cJSON_AddNumberToObject(set, "temperature", s->sampling.temperature);
    cJSON_AddNumberToObject(set, "top_k", s->sampling.top_k);
    cJSON_AddNumberToObject(set, "top_p", s->sampling.top_p);
    cJSON_AddNumberToObject(set, "min_p", s->sampling.min_p);
    char seed[24]; /* a string: JSON numbers are doubles */
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)s->sampling.seed);
    cJSON_AddStringToObject(set, "seed", seed);
    cJSON_AddNumberToObject(set, "max_tokens", s->max_tokens);
    cJSON_AddNumberToObject(set, "context", s->context);
    cJSON_AddStringToObject(set, "mode", s->mode == CHAT_FORCED ? "forced" : "free");
    cJSON *turns = cJSON_AddArrayToObject(chat, "turns");
    for (size_t i = 0; i < j->n_turn; i++) {
        cJSON *t = cJSON_CreateObject();
        add_text(t, "prompt", j->turn[i].prompt);
        add_text(t, "original", j->turn[i].answer[0]);
        add_text(t, "converted", j->turn[i].answer[1]);
        cJSON_AddItemToArray(turns, t);
    }
    return chat;
}

static cJSON *eval_json(const struct eval_setup *s)
{
    cJSON *o = cJSON_CreateObject();
    int task = s->what - EVAL_WHAT_TASK;
    add_text(o, "what",
             s->what == EVAL_WHAT_PPL     ? "perplexity"
             : s->what == EVAL_WHAT_SPEED ? "speed"
                                          : choice_name((enum choice_task)task));
    add_text(o, "text", s->text);
    add_text(o, "questions_file", s->questions);
    add_text(o, "protocol", s->protocol == EVAL_HF ? "hf" : "llamacpp");
    cJSON_AddNumberToObject(o, "ctx", (double)s->ctx);
    cJSON_AddNumberToObject(o, "windows", (double)s->windows);
    cJSON_AddNumberToObject(o, "questions", (double)s->limit);
    return o;
}

static char *finish(cJSON *o)
{
    char *text = json_text(o, true);
    cJSON_Delete(o);
    return text;
}

char *journal_text(const struct journal *j)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "mlathe_workspace", JOURNAL_VERSION);
    add_text(o, "model", j->model);
    add_text(o, "conversion", j->conversion);
    cJSON_AddNumberToObject(o, "screen", j->screen);
    if (j->plan)
        cJSON_AddItemToObject(o, "plan", cJSON_Duplicate(j->plan, true));
    if (j->plan_b)
        cJSON_AddItemToObject(o, "plan_b", cJSON_Duplicate(j->plan_b, true));
    if (j->queue)
        cJSON_AddItemToObject(o, "queue", cJSON_Duplicate(j->queue, true));
    add_text(o, "budget", j->budget);
    add_text(o, "calibration", j->calibration);
    cJSON *w = cJSON_AddObjectToObject(o, "what_if");
    cJSON_AddNumberToObject(w, "context", (double)j->context);
    cJSON_AddNumberToObject(w, "batch", (double)j->batch);
    cJSON_AddNumberToObject(w, "memory_bytes", j->memory_bytes);
    cJSON_AddItemToObject(o, "evaluate", eval_json(&j->eval));
    cJSON_AddItemToObject(o, "conversions", list_json(&j->conversions));
    cJSON_AddItemToObject(o, "recent", list_json(&j->recent));
    cJSON_AddItemToObject(o, "history", list_json(&j->history));
    add_text(o, "typed", j->typed);
    cJSON_AddItemToObject(o, "chat", chat_json(j));
    return finish(o);
}

char *journal_chat_text(const struct journal *j)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "mlathe_chat", JOURNAL_VERSION);
    add_text(o, "model", j->model);
    add_text(o, "conversion", j->conversion);
    cJSON_AddItemToObject(o, "chat", chat_json(j));
    return finish(o);
}

static int read_list(struct text_list *l, const cJSON *a, size_t keep, struct err *e)
{
    for (const cJSON *i = a ? a->child : NULL; i; i = i->next)
        if (cJSON_IsString(i) && !text_list_add(l, i->valuestring, keep))
            return err_nomem(e, 64, "list");
    return OK;
}

static int read_settings(struct chat_settings *s, const cJSON *o, const char *where, struct err *e)
{
    long long top_k = s->sampling.top_k, max = s->max_tokens, context = s->context;
    const char *mode = json_str_or(o, "mode", "free");
    int rc = OK;
    if (!rc)
        rc = json_num_opt(o, "temperature", &s->sampling.temperature, where, e);
    if (!rc)
        rc = json_int_opt(o, "top_k", 0, 1000000, &top_k, where, e);
    if (!rc)
        rc = json_num_opt(o, "top_p", &s->sampling.top_p, where, e);
    if (!rc)
        rc = json_num_opt(o, "min_p", &s->sampling.min_p, where, e);
    if (!rc)
        rc = json_int_opt(o, "max_tokens", 0, 1 << 30, &max, where, e);
    if (!rc)
        rc = json_int_opt(o, "context", 16, 1 << 30, &context, where, e);
    if (rc)
        return rc;
    s->sampling.top_k = (int)top_k;
    s->sampling.seed = strtoull(json_str_or(o, "seed", "42"), NULL, 10);
    s->max_tokens = (int)max;
    s->context = (int)context;
    s->mode = strcmp(mode, "forced") == 0 ? CHAT_FORCED : CHAT_FREE;
    return OK;
}

static int read_chat(struct journal *j, const cJSON *chat, const char *where, struct err *e)
{
    const cJSON *turns = json_get(chat, "turns"), *set = json_get(chat, "settings");
    int rc = set ? read_settings(&j->settings, set, where, e) : OK;
    if (rc)
        return rc;
    bool ok = text_set(&j->system, json_str_or(chat, "system", NULL));
    for (const cJSON *t = turns ? turns->child : NULL; ok && t; t = t->next) {
        ok = journal_add_turn(j, json_str_or(t, "prompt", ""));
        struct chat_turn_text *turn = ok ? &j->turn[j->n_turn - 1] : NULL;
        ok = ok && text_set(&turn->answer[0], json_str_or(t, "original", NULL)) &&
             text_set(&turn->answer[1], json_str_or(t, "converted", NULL));
    }
    return ok ? OK : err_nomem(e, 64, "chat");
}

static int read_eval(struct eval_setup *s, const cJSON *o, const char *where, struct err *e)
{
    const char *what = json_str_or(o, "what", "perplexity");
    enum choice_task task;
    int rc;
    s->what = choice_find(what, &task)     ? EVAL_WHAT_TASK + (int)task
              : strcmp(what, "speed") == 0 ? EVAL_WHAT_SPEED
                                           : EVAL_WHAT_PPL;
    s->protocol = strcmp(json_str_or(o, "protocol", "hf"), "hf") ? EVAL_LLAMACPP : EVAL_HF;
    if (!text_set(&s->text, json_str_or(o, "text", NULL)) ||
        !text_set(&s->questions, json_str_or(o, "questions_file", NULL)))
        return err_nomem(e, 64, "journal");
    if ((rc = json_int_opt(o, "ctx", 2, 1 << 30, &s->ctx, where, e)) ||
        (rc = json_int_opt(o, "windows", 0, 1 << 30, &s->windows, where, e)))
        return rc;
    return json_int_opt(o, "questions", 0, 1 << 30, &s->limit, where, e);
}

static int read_journal(struct journal *j, const cJSON *o, const char *where, struct err *e)
{
    long long version = 0, screen = 0;
    int rc = json_int(o, "mlathe_workspace", 1, 1000000, &version, where, e);
    if (rc)
        return rc;
    if (version > JOURNAL_VERSION)
        return err_set(e, ERR_UNSUPPORTED, "%s: written by a newer mlathe (version %lld)", where,
                       version);
    bool ok = text_set(&j->model, json_str_or(o, "model", NULL)) &&
              text_set(&j->conversion, json_str_or(o, "conversion", NULL)) &&
              text_set(&j->budget, json_str_or(o, "budget", "50%")) &&
              text_set(&j->calibration, json_str_or(o, "calibration", NULL)) &&
              text_set(&j->typed, json_str_or(o, "typed", ""));
    if (!ok)
        return err_nomem(e, 64, "journal");
    const cJSON *w = json_get(o, "what_if"), *plan = json_get(o, "plan");
    const cJSON *plan_b = json_get(o, "plan_b"), *queue = json_get(o, "queue");
    plan = cJSON_IsObject(plan) ? plan : NULL; /* what is none would not be read again */
    plan_b = cJSON_IsObject(plan_b) ? plan_b : NULL;
    if ((rc = json_int_opt(o, "screen", 0, 5, &screen, where, e)))
        return rc;
    j->screen = (int)screen;
    if (w && ((rc = json_int_opt(w, "context", 1, 1LL << 40, &j->context, where, e)) ||
              (rc = json_int_opt(w, "batch", 1, 1LL << 30, &j->batch, where, e)) ||
              (rc = json_num_opt(w, "memory_bytes", &j->memory_bytes, where, e))))
        return rc;
    if (plan && !(j->plan = cJSON_Duplicate(plan, true)))
        return err_nomem(e, 64, "plan");
    if (plan_b && !(j->plan_b = cJSON_Duplicate(plan_b, true)))
        return err_nomem(e, 64, "plan B");
    if (cJSON_IsArray(queue) && !(j->queue = cJSON_Duplicate(queue, true)))
        return err_nomem(e, 64, "queue");
    if ((rc = read_eval(&j->eval, json_get(o, "evaluate"), where, e)))
        return rc;
    if ((rc = read_list(&j->conversions, json_get(o, "conversions"), 10000, e)) ||
        (rc = read_list(&j->recent, json_get(o, "recent"), JOURNAL_RECENT, e)) ||
        (rc = read_list(&j->history, json_get(o, "history"), JOURNAL_HISTORY, e)))
        return rc;
    return read_chat(j, json_get(o, "chat"), where, e);
}

int journal_parse(struct journal *j, const char *text, size_t n, const char *where, struct err *e)
{
    cJSON *o = NULL;
    int rc = json_parse(&o, text, n, where, e);
    if (rc)
        return rc;
    struct journal fresh;
    rc = journal_init(&fresh, e);
    if (!rc)
        rc = read_journal(&fresh, o, where, e);
    cJSON_Delete(o);
    if (rc) {
        journal_done(&fresh);
        return rc;
    }
    journal_done(j);
    *j = fresh;
    return OK;
}

int journal_chat_parse(struct journal *j, const char *text, size_t n, const char *where,
                       struct err *e)
{
    cJSON *o = NULL;
    struct journal fresh;
    long long version;
    int rc = json_parse(&o, text, n, where, e);
    if (rc)
        return rc;
    rc = journal_init(&fresh, e);
    if (!rc)
        rc = json_int(o, "mlathe_chat", 1, JOURNAL_VERSION, &version, where, e);
    if (!rc)
        rc = read_chat(&fresh, json_get(o, "chat"), where, e);
    cJSON_Delete(o);
    if (!rc) {
        /* Swap what a transcript holds; the rest of fresh is thrown away with the old one. */
        struct journal old = *j;
        j->turn = fresh.turn;
        j->n_turn = fresh.n_turn;
        j->cap_turn = fresh.cap_turn;
        j->system = fresh.system;
        j->settings = fresh.settings;
        fresh.turn = old.turn;
        fresh.n_turn = old.n_turn;
        fresh.cap_turn = old.cap_turn;
        fresh.system = old.system;
    }
    journal_done(&fresh);
    return rc;
}

/* Renames path to path.bad-N, the first N that is free. */
static char *put_aside(const char *path)
{
    for (int i = 1; i < 10000; i++) {
        char *to = mem_printf("%s.bad-%d", path, i);
        if (!to)
            return NULL;
        if (!file_exists(to) && rename(path, to) == 0)
            return to;
        free(to);
    }
    return NULL;
}

int journal_load(struct journal *j, const char *path, char **note, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    struct err why = {0};
    *note = NULL;
    if (!file_exists(path))
        return OK;
    int rc = file_read(path, JOURNAL_MAX_BYTES, &text, &n, &why);
    if (rc == OK)
        rc = journal_parse(j, text, n, path_base(path), &why);
    free(text);
    if (rc == OK)
        return OK;
    if (rc == ERR_IO || rc == ERR_NOMEM)
        return err_set(e, rc, "%s", why.text); /* perhaps a good file: do not touch it */
    char *to = put_aside(path);
    if (!to)
        return err_set(e, ERR_IO, "%s (and it could not be renamed)", why.text);
    *note = mem_printf("%s; kept as %s, starting afresh", why.text, path_base(to));
    free(to);
    return OK;
}

int journal_lock(const char *path, struct err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) {
        err_errno(e, "%s", path);
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    if (errno == EWOULDBLOCK)
        err_set(e, ERR_ARG, "another mlathe uses this workspace: this one saves nothing by itself");
    else
        err_errno(e, "%s", path);
    close(fd);
    return -1;
}

void journal_unlock(int fd)
{
    if (fd >= 0)
        close(fd);
}

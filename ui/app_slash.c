/* The chat's slash commands: what they are called and what each does. Refuses commands and settings
 * that do not exist, and what would change a turn that is being answered. */
#include "ui/app_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/file.h"

typedef void (*command_run)(struct app *a, const char *rest);

static void cmd_help(struct app *a, const char *rest)
{
    (void)rest;
    a->help = true;
    a->help_top = 0;
}

static void cmd_system(struct app *a, const char *rest)
{
    text_set(&a->j.system, rest[0] ? rest : NULL);
    app_message(a, ROLE_NORMAL,
                rest[0] ? "system text set: both models read it from now on"
                        : "system text removed: the model's own applies");
}

static void show_settings(struct app *a)
{
    const struct chat_settings *s = &a->j.settings;
    app_message(a, ROLE_NORMAL,
                "temperature %g  top_k %d  top_p %g  min_p %g  seed %llu  max_tokens %d  "
                "context %d  (/set seed 7)",
                s->sampling.temperature, s->sampling.top_k, s->sampling.top_p, s->sampling.min_p,
                (unsigned long long)s->sampling.seed, s->max_tokens, s->context);
}

static void cmd_set(struct app *a, const char *rest)
{
    struct chat_settings *s = &a->j.settings;
    char key[32] = "";
    double v = 0;
    int n = sscanf(rest, " %31[a-z_] = %lf", key, &v);
    if (n < 2)
        n = sscanf(rest, " %31[a-z_] %lf", key, &v);
    bool ok = n == 2 && v >= 0;
    if (n < 1) {
        show_settings(a);
        return;
    }
    if (ok && strncmp(key, "temp", 4) == 0 && v <= 100)
        s->sampling.temperature = v;
    else if (ok && strcmp(key, "top_k") == 0 && v <= 1e6)
        s->sampling.top_k = (int)v;
    else if (ok && strcmp(key, "top_p") == 0 && v > 0 && v <= 1)
        s->sampling.top_p = v;
    else if (ok && strcmp(key, "min_p") == 0 && v < 1)
        s->sampling.min_p = v;
    else if (ok && strcmp(key, "seed") == 0 && v < 0x1p53)
        s->sampling.seed = (uint64_t)v;
    else if (ok && strcmp(key, "max_tokens") == 0 && v <= 1 << 20)
        s->max_tokens = (int)v;
    else if (ok && strcmp(key, "context") == 0 && v >= 64 && v <= 1 << 22)
        s->context = (int)v;
    else {
        app_message(a, ROLE_BAD,
                    "/set %s: give temperature, top_k, top_p, min_p, seed, "
                    "max_tokens or context, and a number in range",
                    key);
        return;
    }
    show_settings(a);
}

static void cmd_undo(struct app *a, const char *rest)
{
    (void)rest;
    if (a->chat.answering || a->j.n_turn == 0) {
        app_message(a, ROLE_WARN,
                    a->chat.answering ? "Esc stops the answer first" : "nothing to undo");
        return;
    }
    chat_model_changed(a);
    if (a->chat.prompt.n == 0)
        textbuf_set(&a->chat.prompt, a->j.turn[a->j.n_turn - 1].prompt);
    journal_drop_turns(&a->j, a->j.n_turn - 1);
}

static void cmd_regen(struct app *a, const char *rest)
{
    (void)rest;
    if (!chat_can_talk(a))
        return;
    if (a->j.n_turn == 0) {
        app_message(a, ROLE_WARN, "nothing to answer again");
        return;
    }
    char *prompt = mem_strdup(a->j.turn[a->j.n_turn - 1].prompt);
    if (!prompt)
        return;
    journal_drop_turns(&a->j, a->j.n_turn - 1);
    chat_send(a, prompt);
    free(prompt);
}

static void cmd_clear(struct app *a, const char *rest)
{
    (void)rest;
    if (a->chat.answering)
        app_message(a, ROLE_WARN, "Esc stops the answer first");
    else
        chat_put_away(a);
}

static void cmd_save(struct app *a, const char *rest)
{
    char shown[1024];
    if (!chat_save(a, rest, false, shown))
        app_message(a, ROLE_BAD, "out of memory: not saved");
}

static void cmd_load(struct app *a, const char *rest)
{
    struct err e = {0};
    char *text = NULL;
    size_t n = 0;
    if (!rest[0] || a->chat.answering) {
        app_message(a, ROLE_WARN, rest[0] ? "Esc stops the answer first" : "/load FILE");
        return;
    }
    char *path = ask_expand_home(rest);
    int rc = path ? file_read(path, (size_t)64 << 20, &text, &n, &e) : ERR_NOMEM;
    if (rc == OK)
        rc = journal_chat_parse(&a->j, text, n, path_base(path), &e);
    if (rc == OK)
        chat_model_changed(a);
    if (rc == OK)
        app_message(a, ROLE_GOOD, "%zu turns loaded", a->j.n_turn);
    else
        app_message(a, ROLE_BAD, "%s", e.text);
    free(text);
    free(path);
}

static void cmd_stats(struct app *a, const char *rest)
{
    const struct chat_state *c = &a->chat;
    char rate[2][32];
    (void)rest;
    if (!c->has_stats) {
        app_message(a, ROLE_NORMAL, "no answer yet in this session");
        return;
    }
    app_message(a, ROLE_NORMAL,
                "prompt %d/%d tokens, answer %d/%d, %s and %s, KL %.4f nats, same top-1 %.1f%% "
                "of %d tokens",
                c->stats[0].prompt_tokens, c->stats[1].prompt_tokens, c->stats[0].tokens,
                c->stats[1].tokens, app_rate(a, c->stats[0].tokens_per_sec, rate[0]),
                app_rate(a, c->stats[1].tokens_per_sec, rate[1]), c->compare.kl_mean,
                100 * c->compare.agreement, c->compare.compared);
}

static void cmd_edit(struct app *a, const char *rest)
{
    (void)rest;
    if (a->j.n_turn == 0) {
        app_message(a, ROLE_WARN, "nothing to edit");
        return;
    }
    cmd_undo(a, "");
}

static void cmd_quit(struct app *a, const char *rest)
{
    (void)rest;
    a->quit = true;
}

static void cmd_export(struct app *a, const char *rest)
{
    chat_export(a, rest);
}

static const struct {
    const char *name;
    command_run run;
} commands[] = {
    {"/help", cmd_help}, {"/system", cmd_system}, {"/set", cmd_set},       {"/regen", cmd_regen},
    {"/edit", cmd_edit}, {"/undo", cmd_undo},     {"/clear", cmd_clear},   {"/save", cmd_save},
    {"/load", cmd_load}, {"/stats", cmd_stats},   {"/export", cmd_export}, {"/quit", cmd_quit},
};
#define N_COMMANDS (sizeof commands / sizeof *commands)

void chat_command(struct app *a, const char *line)
{
    size_t n = strcspn(line, " \t\n");
    const char *rest = line + n + strspn(line + n, " \t\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strlen(commands[i].name) == n && strncasecmp(line, commands[i].name, n) == 0) {
            commands[i].run(a, rest);
            app_changed(a);
            return;
        }
    app_message(a, ROLE_BAD, "%.*s is no command: /help lists them", (int)n, line);
}

bool chat_complete_command(struct textbuf *b)
{
    if (b->text[0] != '/' || strchr(b->text, ' '))
        return false;
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strncmp(commands[i].name, b->text, b->n) == 0) {
            textbuf_set(b, commands[i].name);
            textbuf_insert(b, " ", 1);
            return true;
        }
    return false;
}

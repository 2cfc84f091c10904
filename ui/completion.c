/* Completion scripts for bash, zsh and fish. An option that takes a value completes its words where
 * it has a list of them, file names otherwise. Refuses shells that it does not know. */
#include <string.h>

#include "ui/manual.h"

const char *manual_words(const char *option)
{
    static const struct {
        const char *option, *words;
    } table[] = {
        {"--method", "mlathe transmla"},
        {"--layout", "own shared stock"},
        {"--alloc", "uniform energy sensitivity"},
        {"--protocol", "hf llamacpp plain"},
        {"--task", "arc hellaswag piqa winogrande obqa mmlu"},
        {"--to", "hf vllm sglang gguf plan"},
        {"--engine", "hf vllm sglang gguf"},
        {"--dtype", "bf16 f32 fp8 f16 q8_0 q6_k q4_k q4_0"},
        {"--kv", "f16 f32 bf16 q8_0"},
        {"--device", "auto cpu ref"},
        {"--kept", "75% 50% 25% 12.5%"},
        {"--completion", "bash zsh fish"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (!strcmp(table[i].option, option))
            return table[i].words;
    return NULL;
}

/* Both lists of a command, its own first; NULL behind the last. */
static const struct cli_option *option_at(const struct cli_command *c, size_t i)
{
    const struct cli_option *o = c->options;
    for (; o && o->name; o++)
        if (!i--)
            return o;
    for (o = cli_common; o->name; o++)
        if (!i--)
            return o;
    return NULL;
}

/* Text inside single quotes: how each shell leaves them differs. also: characters that get a
 * backslash. */
static void put_quoted(struct markup *m, const char *text, const char *leave, const char *also)
{
    char two[3] = "\\";
    for (; *text; text++) {
        two[1] = *text;
        markup_put(m, *text == '\'' ? leave : strchr(also, *text) ? two : two + 1);
    }
}

/* ---- bash ---- */

static const struct cli_command *command_at(const struct manual *of, size_t i)
{
    return i < of->n ? &of->command[i] : of->screens;
}

/* Whether an earlier command has that option too. */
static bool named_before(const struct manual *of, size_t i, const char *name)
{
    for (size_t k = 0; k < i; k++)
        for (const struct cli_option *o = command_at(of, k)->options; o && o->name; o++)
            if (!strcmp(o->name, name))
                return true;
    return false;
}

static void bash_value(struct markup *m, const struct cli_option *o)
{
    const char *words = manual_words(o->name);
    if (words)
        markup_printf(m, "    %s) COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")); return ;;\n",
                      o->name, words);
    else if (o->value)
        markup_printf(m, "    %s%s%s) return ;;\n", o->name, o->brief ? "|" : "",
                      o->brief ? o->brief : "");
}

static void bash_values(struct markup *m, const struct manual *of)
{
    markup_put(m, "    case $prev in\n");
    for (size_t i = 0; i <= of->n; i++)
        for (const struct cli_option *o = command_at(of, i)->options; o && o->name; o++)
            if (!named_before(of, i, o->name))
                bash_value(m, o);
    for (const struct cli_option *o = cli_common; o->name; o++)
        bash_value(m, o);
    markup_put(m, "    esac\n");
}

static void bash_options(struct markup *m, const struct cli_command *c)
{
    const struct cli_option *o;
    markup_printf(m, "    %s) words=\"", c->name[0] ? c->name : "*");
    for (size_t k = 0; (o = option_at(c, k)); k++)
        markup_printf(m, "%s%s", k ? " " : "", o->name);
    markup_put(m, "\" ;;\n");
}

static void bash(struct markup *m, const struct manual *of)
{
    markup_put(m, "# bash completion for mlathe, made by mlathe --completion bash\n"
                  "_mlathe()\n{\n"
                  "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words\n"
                  "    COMPREPLY=()\n");
    bash_values(m, of);
    markup_put(m, "    case ${COMP_WORDS[1]} in\n");
    for (size_t i = 0; i < of->n; i++)
        bash_options(m, &of->command[i]);
    bash_options(m, of->screens);
    markup_put(m, "    esac\n    if [[ $cur == -* ]]; then\n"
                  "        COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
                  "    elif ((COMP_CWORD == 1)); then\n        COMPREPLY=($(compgen -W \"");
    for (size_t i = 0; i < of->n; i++)
        markup_printf(m, "%s%s", i ? " " : "", of->command[i].name);
    markup_put(m, "\" -- \"$cur\"))\n    fi\n}\n"
                  "complete -o bashdefault -o default -F _mlathe mlathe\n");
}

/* ---- zsh ---- */

static void zsh_option(struct markup *m, const struct cli_option *o)
{
    const char *names[] = {o->name, o->brief};
    for (int i = 0; i < 2 && names[i]; i++) {
        markup_printf(m, " \\\n            '*%s[", names[i]);
        put_quoted(m, o->help, "'\\''", "[]\\:");
        markup_put(m, "]");
        if (o->value) {
            markup_put(m, ":");
            put_quoted(m, o->value, "'\\''", "[]\\:");
            if (manual_words(o->name))
                markup_printf(m, ":(%s)", manual_words(o->name));
            else
                markup_put(m, ":_files");
        }
        markup_put(m, "'");
    }
}

static void zsh_case(struct markup *m, const struct cli_command *c)
{
    const struct cli_option *o;
    markup_printf(m, "    %s)\n        _arguments", c->name[0] ? c->name : "*");
    for (size_t k = 0; (o = option_at(c, k)); k++)
        zsh_option(m, o);
    markup_put(m, " \\\n            '*:file:_files' ;;\n");
}

static void zsh(struct markup *m, const struct manual *of)
{
    markup_put(m, "#compdef mlathe\n# made by mlathe --completion zsh\n"
                  "_mlathe() {\n    local -a commands\n    commands=(\n");
    for (size_t i = 0; i < of->n; i++) {
        markup_printf(m, "        '%s:", of->command[i].name);
        put_quoted(m, of->command[i].summary, "'\\''", "\\:");
        markup_put(m, "'\n");
    }
    markup_put(m, "    )\n    if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then\n"
                  "        _describe command commands\n        _files\n        return\n    fi\n"
                  "    case $words[2] in\n");
    for (size_t i = 0; i < of->n; i++)
        zsh_case(m, &of->command[i]);
    zsh_case(m, of->screens);
    markup_put(m, "    esac\n}\n_mlathe \"$@\"\n");
}

/* ---- fish ---- */

static void fish_option(struct markup *m, const char *condition, const struct cli_option *o)
{
    markup_printf(m, "complete -c mlathe -n '%s' -l %s", condition, o->name + 2);
    if (o->brief)
        markup_printf(m, " -s %s", o->brief + 1);
    if (o->value && manual_words(o->name))
        markup_printf(m, " -x -a '%s'", manual_words(o->name));
    else if (o->value)
        markup_put(m, " -r -F");
    markup_put(m, " -d '");
    put_quoted(m, o->help, "\\'", "\\");
    markup_put(m, "'\n");
}

static void fish(struct markup *m, const struct manual *of)
{
    char condition[96];
    markup_put(m, "# fish completion for mlathe, made by mlathe --completion fish\n");
    for (size_t i = 0; i < of->n; i++) {
        const struct cli_command *c = &of->command[i];
        markup_printf(m, "complete -c mlathe -n __fish_use_subcommand -a %s -d '", c->name);
        put_quoted(m, c->summary, "\\'", "\\");
        markup_put(m, "'\n");
        snprintf(condition, sizeof condition, "__fish_seen_subcommand_from %s", c->name);
        for (const struct cli_option *o = c->options; o && o->name; o++)
            fish_option(m, condition, o);
    }
    for (const struct cli_option *o = of->screens->options; o->name; o++)
        fish_option(m, "__fish_use_subcommand", o);
    for (const struct cli_option *o = cli_common; o->name; o++)
        fish_option(m, "true", o);
}

bool manual_completion(struct markup *m, const struct manual *of, const char *shell)
{
    static const struct {
        const char *name;
        void (*write)(struct markup *m, const struct manual *of);
    } table[] = {{"bash", bash}, {"zsh", zsh}, {"fish", fish}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (!strcmp(table[i].name, shell)) {
            table[i].write(m, of);
            return true;
        }
    return false;
}

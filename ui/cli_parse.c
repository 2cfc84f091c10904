/* Options, their help, and the nearest word to a mistyped one. Refuses unknown options, missing and
 * out-of-range values, and more words than a command takes. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "ui/cli.h"

const struct cli_option cli_common[] = {
    {"--device", NULL, "NAME", "auto, cpu, ref or cuda[:N]", CLI_TEXT, CLI_AT(device), 0, 0},
    {"--threads", NULL, "N", "compute threads (0: all cores)", CLI_INT, CLI_AT(threads), 0, 1024},
    {"--seed", NULL, "N", "of everything random (42)", CLI_INT, CLI_AT(seed), 0, 0x1p53},
    {"--exact", NULL, NULL, "never quantise activations", CLI_FLAG, CLI_AT(exact), 0, 0},
    {"--fast", NULL, NULL, "quantise activations where it is faster", CLI_FLAG, CLI_AT(fast), 0, 0},
    {"--json", NULL, NULL, "one JSON document on stdout", CLI_FLAG, CLI_AT(json), 0, 0},
    {"--quiet", "-q", NULL, "only errors on stderr", CLI_FLAG, CLI_AT(quiet), 0, 0},
    {"--progress", NULL, NULL, "progress lines even without a terminal", CLI_FLAG, CLI_AT(progress),
     0, 0},
    {"--log", NULL, "FILE", "also write messages there", CLI_TEXT, CLI_AT(log), 0, 0},
    {"--help", "-h", NULL, "this text", CLI_FLAG, CLI_AT(help), 0, 0},
    {0},
};

void cli_defaults(struct cli_options *o)
{
    *o = (struct cli_options){.device = "auto",
                              .seed = 42,
                              .top_p = 1,
                              .predict = -1,
                              .refit_tokens = -1,
                              .repeat = 5,
                              .bench_prompt = 512,
                              .bench_generate = 128,
                              .depth = "0"};
}

static const struct cli_option *find_in(const struct cli_option *list, const char *name, size_t n)
{
    for (; list && list->name; list++)
        if ((strlen(list->name) == n && !memcmp(list->name, name, n)) ||
            (list->brief && strlen(list->brief) == n && !memcmp(list->brief, name, n)))
            return list;
    return NULL;
}

static const struct cli_option *find(const struct cli *c, const char *name, size_t n)
{
    const struct cli_option *own = find_in(c->command->options, name, n);
    return own ? own : find_in(cli_common, name, n);
}

static int set_number(const struct cli_option *opt, void *at, const char *value, struct err *e)
{
    char *end;
    errno = 0;
    double v = strtod(value, &end);
    bool whole = opt->kind == CLI_INT;
    if (end == value || *end || !(v >= opt->min && v <= opt->max) || (whole && v != floor(v)))
        return cli_usage(e, "%s takes a %snumber from %g to %g, not \"%s\"", opt->name,
                         whole ? "whole " : "", opt->min, opt->max, value);
    if (whole)
        *(long long *)at = (long long)v;
    else
        *(double *)at = v;
    return OK;
}

static int set_list(const struct cli_option *opt, struct cli_list *list, const char *value,
                    struct err *e)
{
    if (list->n >= CLI_MAX_LIST)
        return cli_usage(e, "%s: at most %d of them", opt->name, CLI_MAX_LIST);
    list->v[list->n++] = value;
    return OK;
}

static int set(struct cli *c, const struct cli_option *opt, const char *value, struct err *e)
{
    void *at = (char *)&c->o + opt->at;
    switch (opt->kind) {
    case CLI_FLAG: *(bool *)at = true; return OK;
    case CLI_TEXT: *(const char **)at = value; return OK;
    case CLI_FILES:
    case CLI_LIST: return set_list(opt, at, value, e);
    default: return set_number(opt, at, value, e);
    }
}

static int unknown_option(const struct cli *c, const char *word, size_t n, struct err *e)
{
    const char *known[64];
    char name[64];
    size_t k = 0;
    for (const struct cli_option *o = c->command->options; o && o->name && k < 64; o++)
        known[k++] = o->name;
    for (const struct cli_option *o = cli_common; o->name && k < 64; o++)
        known[k++] = o->name;
    snprintf(name, sizeof name, "%.*s", n < 63 ? (int)n : 63, word);
    const char *near = cli_nearest(name, known, k);
    return cli_usage(e, "unknown option %s%s%s%s", name, near ? ": did you mean " : "",
                     near ? near : "", near ? "?" : "");
}

/* A word after --calib FILE that goes on with the list: a file that cannot be the model. */
static bool is_text_file(const char *word)
{
    size_t n = strlen(word);
    return word[0] != '-' && file_exists(word) && !file_is_dir(word) &&
           !(n > 5 && !strcmp(word + n - 5, ".gguf"));
}

/* argv[*i] is an option: reads it and its value, or values. */
static int parse_option(struct cli *c, int argc, char **argv, int *i, struct err *e)
{
    const char *word = argv[*i], *equals = strchr(word, '=');
    size_t n = equals ? (size_t)(equals - word) : strlen(word);
    const struct cli_option *opt = find(c, word, n);
    if (!opt)
        return unknown_option(c, word, n, e);
    if (opt->kind == CLI_FLAG)
        return equals ? cli_usage(e, "%s takes no value", opt->name) : set(c, opt, NULL, e);
    if (!equals && *i + 1 >= argc)
        return cli_usage(e, "%s needs a value: %s %s", opt->name, opt->name, opt->value);
    int rc = set(c, opt, equals ? equals + 1 : argv[++*i], e);
    while (!rc && !equals && opt->kind == CLI_FILES && *i + 1 < argc && is_text_file(argv[*i + 1]))
        rc = set(c, opt, argv[++*i], e);
    return rc;
}

int cli_parse(struct cli *c, int argc, char **argv, struct err *e)
{
    bool only_words = false;
    int rc = OK;
    for (int i = 0; i < argc && !rc; i++) {
        if (!only_words && !strcmp(argv[i], "--"))
            only_words = true;
        else if (!only_words && argv[i][0] == '-' && argv[i][1])
            rc = parse_option(c, argc, argv, &i, e);
        else if (c->n_args < c->command->max_args)
            c->arg[c->n_args++] = argv[i];
        else
            rc = cli_usage(e, "%s is one word too many", argv[i]);
    }
    return rc;
}

static void help_options(const struct cli_option *list)
{
    for (; list && list->name; list++) {
        char head[64];
        snprintf(head, sizeof head, "%s%s%s%s%s", list->brief ? list->brief : "",
                 list->brief ? ", " : "", list->name, list->value ? " " : "",
                 list->value ? list->value : "");
        printf("  %-26s %s\n", head, list->help);
    }
}

void cli_help(const struct cli_command *command)
{
    printf("Examples:\n%s\nmlathe %s %s\n  %s\n", command->examples, command->name, command->args,
           command->summary);
    if (command->options && command->options->name) {
        puts("\nOptions:");
        help_options(command->options);
    }
    puts("\nCommon options:");
    help_options(cli_common);
}

/* Edits (insert, delete, replace, swap of neighbours) from a to b; lengths below 32. */
static int distance(const char *a, const char *b)
{
    int n = (int)strlen(a), m = (int)strlen(b), d[32][32];
    if (n > 31 || m > 31)
        return 99;
    for (int i = 0; i <= n; i++)
        for (int j = 0; j <= m; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            best = d[i - 1][j] + 1 < best ? d[i - 1][j] + 1 : best;
            best = d[i][j - 1] + 1 < best ? d[i][j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

const char *cli_nearest(const char *word, const char *const *known, size_t n)
{
    const char *best = NULL;
    int least = strlen(word) < 5 ? 2 : 3; /* found only below this many edits */
    for (size_t i = 0; i < n; i++) {
        int d = distance(word, known[i]);
        if (d < least) {
            least = d;
            best = known[i];
        }
    }
    return best;
}

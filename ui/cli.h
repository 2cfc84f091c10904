/* cli: the subcommands. One table of commands; each names the options it takes and a function. A
 * command reads struct cli, prints data on stdout and everything else through cli_say (stderr). */
#ifndef MLATHE_UI_CLI_H
#define MLATHE_UI_CLI_H

#include <signal.h>
#include <stdio.h>

#include "core/json.h"
#include "sessions/workspace.h"

#define CLI_MAX_LIST 64
/* A command returns OK, an enum status (exit code 1; ERR_CANCELLED: 130) or this: exit code 2. */
#define CLI_USAGE 2

struct cli_list {
    const char *v[CLI_MAX_LIST];
    int n;
};
/* Every option of every command. Defaults are in cli_parse.c's cli_defaults. */
struct cli_options {
    const char *device, *log, *script, *size;
    long long threads, seed, tokens, context, predict, repeat, windows, rank, rope, freqfold, limit;
    long long rounds, stride, refit_tokens;
    long long stat_groups, memory;
    double temperature, top_p, min_p, balance, damping, until;
    long long top_k;
    bool quiet, json, progress, exact, fast, help, version;
    const char *text, *file, *ids, *messages, *output, *plan, *kept, *bytes_per_token, *fit;
    const char *alloc, *method, *without, *shares, *layout, *against, *ppl, *protocol, *task, *csv,
        *system, *depth, *kv, *peer;
    struct cli_list calib, prompt, texts;
    const char *train;
    double minutes, until_kl, rate, next_token, match;
    long long batch, accumulate, length;
    long long bench_prompt, bench_generate;
    bool search, refit_ffn, special, skip_special, no_generation_prompt, all, ignore_eos, weights_only, forced;
    bool original, store, markdown;
    const char *to, *dtype, *engine, *svg, *shell, *preset;
    long long narrow_rank;
    bool dry_run, force, no_check, fold_biases, mtp, draft, lines, man;
};
struct cli {
    const struct cli_command *command;
    struct cli_options o;
    const char *arg[2]; /* MODEL and what else stands alone */
    int n_args;
    FILE *log;
    struct progress progress; /* for jobs: stderr line, and stops on Ctrl-C */
    char phase[128];          /* of the progress line now shown; "" none */
    double shown_at;
    bool line_open;
};

enum cli_kind { CLI_FLAG, CLI_TEXT, CLI_INT, CLI_NUMBER, CLI_LIST, CLI_FILES /* one or more */ };
struct cli_option {
    const char *name;  /* "--text" */
    const char *brief; /* "-n" or NULL */
    const char *value; /* "S"; NULL for a flag */
    const char *help;
    enum cli_kind kind;
    size_t at;       /* offset in struct cli_options */
    double min, max; /* CLI_INT, CLI_NUMBER */
};
#define CLI_AT(field) offsetof(struct cli_options, field)

struct cli_command {
    const char *name, *args, *summary, *examples;
    int max_args;
    bool stops; /* Ctrl-C asks the job to stop instead of ending the process */
    const struct cli_option *options; /* ends with a NULL name */
    int (*run)(struct cli *c, struct err *e);
};

/* cli_parse.c */
extern const struct cli_option cli_common[];
void cli_defaults(struct cli_options *o);
int cli_parse(struct cli *c, int argc, char **argv, struct err *e);
void cli_help(const struct cli_command *command);
/* The known word nearest to a mistyped one, NULL when none is near. */
const char *cli_nearest(const char *word, const char *const *known, size_t n);

/* cli_kit.c */
void cli_say(struct cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* m becomes the file of --svg, said, and is done. */
struct markup;
int cli_save_svg(struct cli *c, struct markup *m, struct err *e);
int cli_usage(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void cli_progress_start(struct cli *c);
void cli_progress_end(struct cli *c);
bool cli_interrupted(void);
void cli_interrupt_clear(void);
void cli_catch_interrupt(void);
/* Prints the document and frees it; NULL: out of memory while building it. */
int cli_print_json(cJSON *json, struct err *e);
/* Model or file text: as it is into a file, sanitised on a terminal. */
void cli_print_text(FILE *to, const char *text, size_t n);
/* As cli_print_text on a terminal, into text[size]. */
void cli_clean(const char *from, char *text, size_t size);
int cli_parse_ids(const char *text, struct ids *out, struct err *e);
cJSON *cli_json_ids(const int32_t *ids, size_t n);
/* The text of --text or --file ("-": stdin) in fresh memory. */
int cli_input(const struct cli *c, char **text, size_t *n, struct err *e);
/* How numbers are treated unless --exact or --fast says otherwise. */
enum cli_care {
    CLI_FAST,  /* int8 activations, conversions on rounded attention weights: bench, convert */
    CLI_TALK,  /* fp32 activations, rounded attention weights: what people read */
    CLI_EXACT, /* fp32 throughout: what is measured */
};
/* A workspace with MODEL open. */
int cli_open(struct cli *c, const char *model, enum cli_care care, struct workspace **out,
             struct err *e);
/* The side that a command about one model means: the converted one of a conversion folder. */
enum side cli_side(const struct cli *c, const struct workspace *w);
int cli_cache_type(const struct cli *c, enum dtype *kv, struct err *e);
bool cli_json_add(cJSON *obj, const char *key, double v); /* NaN: null */
/* drafted, accepted and acceptance, where anything was guessed ahead. */
void cli_json_drafts(cJSON *obj, long long made, long long right);

/* The commands. */
int cli_models(struct cli *c, struct err *e);
int cli_inspect(struct cli *c, struct err *e);
int cli_paths(struct cli *c, struct err *e);
int cli_tokenize(struct cli *c, struct err *e);
int cli_detokenize(struct cli *c, struct err *e);
int cli_render(struct cli *c, struct err *e);
int cli_logits(struct cli *c, struct err *e);
int cli_generate(struct cli *c, struct err *e);
int cli_bench(struct cli *c, struct err *e);
int cli_bench_solve(struct cli *c, struct workspace *w, struct err *e); /* --plan */
int cli_spectra(struct cli *c, struct err *e);
int cli_plan(struct cli *c, struct err *e);
int cli_convert(struct cli *c, struct err *e);
int cli_heal(struct cli *c, struct err *e);
int cli_check_folder(const char *path, struct err *e); /* to write a conversion into */
int cli_eval(struct cli *c, struct err *e);
int cli_chat(struct cli *c, struct err *e);
int cli_export(struct cli *c, struct err *e);
int cli_report(struct cli *c, struct err *e);
int cli_doctor(struct cli *c, struct err *e);

/* Runs argv; the process's exit code. */
int cli_main(int argc, char **argv);

#endif

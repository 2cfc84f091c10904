/* The table of subcommands and what decides between them and the screens. Refuses mistyped
 * commands with the nearest one. */
#include "ui/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "sessions/models.h"
#include "ui/manual.h"
#include "ui/ui.h"

#define OPT_TEXT(name, brief, value, help, field)                                                  \
    {                                                                                              \
        name, brief, value, help, CLI_TEXT, CLI_AT(field), 0, 0                                    \
    }
#define OPT_FLAG(name, help, field)                                                                \
    {                                                                                              \
        name, NULL, NULL, help, CLI_FLAG, CLI_AT(field), 0, 0                                      \
    }
#define OPT_INT(name, brief, help, field, min, max)                                                \
    {                                                                                              \
        name, brief, "N", help, CLI_INT, CLI_AT(field), min, max                                   \
    }
#define OPT_NUM(name, help, field, min, max)                                                       \
    {                                                                                              \
        name, NULL, "X", help, CLI_NUMBER, CLI_AT(field), min, max                                 \
    }
#define OPT_LIST(name, value, help, field)                                                         \
    {                                                                                              \
        name, NULL, value, help, CLI_LIST, CLI_AT(field), 0, 0                                     \
    }
#define OPT_FILES(name, value, help, field)                                                        \
    {                                                                                              \
        name, NULL, value, help, CLI_FILES, CLI_AT(field), 0, 0                                    \
    }
#define OPT_END                                                                                    \
    {                                                                                              \
        0                                                                                          \
    }

#define OPT_INPUT                                                                                  \
    OPT_TEXT("--text", NULL, "S", "the text", text),                                               \
        OPT_TEXT("--file", NULL, "F", "a file that holds it (- reads stdin)", file)
#define OPT_SAMPLING                                                                               \
    OPT_NUM("--temp", "temperature (0: always the likeliest token)", temperature, 0, 100),         \
        OPT_INT("--top-k", NULL, "only the N likeliest tokens (0: off)", top_k, 0, 1e9),           \
        OPT_NUM("--top-p", "only the likeliest tokens that hold this share (1: off)", top_p, 0,    \
                1),                                                                                \
        OPT_NUM("--min-p", "only tokens this likely relative to the best (0: off)", min_p, 0, 1)
#define OPT_ORIGINAL                                                                               \
    OPT_FLAG("--original", "of a conversion folder: the model it was made from", original)
#define OPT_KV OPT_TEXT("--kv", NULL, "TYPE", "cache numbers: f16, f32, bf16, q8_0", kv)
#define OPT_CALIB                                                                                  \
    OPT_TEXT("--shares", NULL, "N,…", "of the tokens, for each --calib file: 2,1 (equal)",         \
             shares),                                                                              \
        OPT_FILES("--calib", "F ...",                                                              \
                  "calibration text files, or \"self\": text the model writes", calib),            \
        OPT_INT("--tokens", NULL, "calibration tokens (32768 from files, 8192 self)", tokens, 256, \
                1e9),                                                                              \
        OPT_NUM("--until",                                                                         \
                "stop collecting in layers whose spectra change by less, in %: 2 (0: never)",      \
                until, 0, 100),                                                                    \
        OPT_INT("--stat-groups", NULL,                                                             \
                "query heads share statistics in N groups (as memory "                             \
                "allows)",                                                                         \
                stat_groups, 1, 65536),                                                            \
        OPT_INT("--memory", NULL, "MiB that may be used (what the machine has)", memory, 64, 1e9)
#define OPT_LAYOUT                                                                                 \
    OPT_TEXT("--layout", NULL, "L", "own (best), shared (one list) or stock (any engine)", layout), \
        OPT_INT("--rope", NULL, "rotary numbers (R) a token and layer, even", rope, 2, 65536)
#define OPT_BUDGET                                                                                 \
    OPT_TEXT("--kept", NULL, "P", "share of the KV cache to keep: 25%", kept),                     \
        OPT_TEXT("--bytes-per-token", NULL, "N", "KV bytes a token (F16 cache)", bytes_per_token), \
        OPT_TEXT("--fit", NULL, "M,CxB", "what must fit where: 24GiB,8192x16", fit),               \
        OPT_TEXT("--preset", NULL, "NAME", "equal-cache: MLA of the same size, nothing lost",      \
                 preset),                                                                          \
        OPT_INT("--rank", NULL, "latent numbers (r) a token, in every layer", rank, 1, 1e7),       \
        OPT_TEXT("--alloc", NULL, "A",                                                             \
                 "uniform, energy, or sensitivity (measured; default with calibration)", alloc),   \
        OPT_TEXT("--method", NULL, "M", "mlathe (default) or transmla (the baseline)", method),    \
        OPT_FLAG("--search", "measure the best rope widths (transmla: folding)", search),          \
        OPT_TEXT("--without", NULL, "S,…", "leave steps out: joint, output, heads, …", without),   \
        OPT_INT("--freqfold", NULL, "transmla: frequencies folded together (0: automatic)",        \
                freqfold, 0, 65536),                                                               \
        OPT_INT("--rounds", NULL, "rounds of alternating least squares on the latent (0)", rounds, \
                0, PLAN_MAX_ROUNDS),                                                               \
        OPT_INT("--stride", NULL, "stock layout: every Nth frequency (1)", stride, 0, 65536),      \
        OPT_FLAG("--refit-ffn",                                                                    \
                 "refit feed-forward output maps as well: a larger folder, a smaller loss",        \
                 refit_ffn),                                                                       \
        OPT_NUM("--balance", "weight of keys against values, times the measured one (1)", balance, \
                0, 1e9),                                                                           \
        OPT_NUM("--damping", "of the recipe's least squares, times the usual (1)", damping, 0,     \
                1e9)

#define OPT_SVG OPT_TEXT("--svg", NULL, "F", "also a picture, as SVG", svg)
#define OPT_ENGINE                                                                                 \
    OPT_TEXT("--engine", NULL, "E", "what must load it: hf, vllm, sglang or gguf (stock layout)",  \
             engine)

static const struct cli_option inspect_options[] = {OPT_END};
static const struct cli_option tokenize_options[] = {
    OPT_INPUT,
    OPT_FLAG("--special", "parse special tokens, add BOS where the model wants it", special),
    OPT_END};
static const struct cli_option detokenize_options[] = {
    OPT_TEXT("--ids", NULL, "1,2,3", "the token ids", ids),
    OPT_FLAG("--skip-special", "leave special tokens out", skip_special), OPT_END};
static const struct cli_option render_options[] = {
    OPT_TEXT("--messages", NULL, "F",
             "JSON: a list of messages, or an object with messages and "
             "template variables (- reads stdin)",
             messages),
    OPT_FLAG("--no-generation-prompt", "do not open the assistant's turn", no_generation_prompt),
    OPT_END};
static const struct cli_option logits_options[] = {
    OPT_TEXT("--ids", NULL, "1,2,3", "the token ids", ids),
    OPT_FLAG("--all", "at every position, not only the last", all), OPT_KV, OPT_ORIGINAL, OPT_END};
static const struct cli_option generate_options[] = {
    OPT_TEXT("--ids", NULL, "1,2,3", "start from these token ids", ids),
    OPT_INPUT,
    OPT_FLAG("--special", "parse special tokens in the text", special),
    OPT_INT("--predict", "-n", "tokens to make (128)", predict, 0, 1e7),
    OPT_SAMPLING,
    OPT_FLAG("--ignore-eos", "go on after an end-of-text token", ignore_eos),
    OPT_FLAG("--draft", "guess ahead with the model's prediction layer: the same text, other speed", draft),
    OPT_KV,
    OPT_ORIGINAL,
    OPT_END};
static const struct cli_option spectra_options[] = {
    OPT_FLAG("--weights-only", "no calibration: as if every input were equally likely",
             weights_only),
    OPT_CALIB, OPT_LAYOUT, OPT_SVG, OPT_END};
static const struct cli_option plan_options[] = {
    OPT_BUDGET,
    OPT_LAYOUT,
    OPT_ENGINE,
    OPT_CALIB,
    OPT_FLAG("--weights-only", "spectra for --alloc energy from the weights alone", weights_only),
    OPT_TEXT("--output", "-o", "F", "write the plan there", output),
    OPT_SVG,
    OPT_END};
static const struct cli_option convert_options[] = {
    OPT_TEXT("--plan", NULL, "F", "a plan file instead of the options below", plan),
    OPT_BUDGET,
    OPT_LAYOUT,
    OPT_ENGINE,
    OPT_CALIB,
    OPT_TEXT("--output", "-o", "DIR", "the conversion folder", output),
    OPT_END};
static const struct cli_option heal_options[] = {
    OPT_NUM("--minutes", "train so long (10)", minutes, 0.01, 1e6),
    OPT_INT("--tokens", NULL, "train on so many tokens", tokens, 256, 1e12),
    OPT_NUM("--kl", "stop when the held-out KL is this small", until_kl, 0, 100),
    OPT_FILES("--text", "F ...", "text files or folders, or \"self\": the original writes it (self)",
              texts),
    OPT_INT("--refit", NULL, "tokens of least squares before training (by the budget; 0: none)",
            refit_tokens, 0, 1 << 22),
    OPT_TEXT("--train", NULL, "LIST", "of kv_b,q,o,kv_a (all)", train),
    OPT_NUM("--lr", "step size relative to each tensor's rms (by the size of the KL)", rate, 1e-7,
            0.1),
    OPT_NUM("--next-token", "share of next-token loss in the loss (0)", next_token, 0, 1),
    OPT_NUM("--match", "weight of matching the layers' outputs (0)", match, 0, 100),
    OPT_INT("--length", NULL, "tokens of most sequences (256)", length, 8, 65536),
    OPT_INT("--batch", NULL, "tokens of a batch (256 or 512)", batch, 8, 1 << 20),
    OPT_INT("--accumulate", NULL, "batches of a step (1)", accumulate, 1, 10000),
    OPT_TEXT("--output", "-o", "DIR", "the healed conversion's folder", output),
    OPT_END};
static const struct cli_option eval_options[] = {
    OPT_TEXT("--ppl", NULL, "F", "perplexity on this text file", ppl),
    OPT_TEXT("--against", NULL, "ORIGINAL", "also KL(ORIGINAL‖MODEL) on the same tokens", against),
    OPT_TEXT("--protocol", NULL, "P", "hf (default), llamacpp, or plain: the file as it is",
             protocol),
    OPT_INT("--ctx", NULL, "window length (hf 2048, llamacpp 512)", context, 2, 1e7),
    OPT_INT("--windows", NULL, "only the first N windows", windows, 0, 1e9),
    OPT_TEXT("--task", NULL, "T", "multiple choice: arc hellaswag piqa winogrande obqa mmlu", task),
    OPT_TEXT("--file", NULL, "F", "the task's questions, unpacked (mmlu: a CSV or a folder)", file),
    OPT_INT("--limit", NULL, "only the first N questions", limit, 1, 1e9),
    OPT_TEXT("--csv", NULL, "F", "also a row a scored token, or a question, as CSV", csv),
    OPT_SVG,
    OPT_FLAG("--store", "keep the result with the conversion, for screen 5", store),
    OPT_KV,
    OPT_ORIGINAL,
    OPT_END};
static const struct cli_option chat_options[] = {
    OPT_LIST("--prompt", "S", "say this instead of reading stdin (may repeat)", prompt),
    OPT_TEXT("--system", NULL, "S", "system prompt", system),
    OPT_INT("--predict", "-n", "tokens an answer (0: until the context is full)", predict, 0, 1e7),
    OPT_INT("--ctx", NULL, "context of each side (4096)", context, 2, 1e7),
    OPT_SAMPLING,
    OPT_FLAG("--forced", "the converted model scores the original's answer", forced),
    OPT_KV,
    OPT_FLAG("--draft", "guess ahead with the model's prediction layer: the same text, other speed", draft),
    OPT_ORIGINAL,
    OPT_END};
static const struct cli_option bench_options[] = {
    OPT_INT("--pp", "-p", "prompt tokens (512; 0: no prefill test)", bench_prompt, 0, 1e7),
    OPT_INT("--tg", "-n", "generated tokens (128; 0: no decode test)", bench_generate, 0, 1e7),
    OPT_INT("--repeat", "-r", "repetitions (5)", repeat, 1, 1000),
    OPT_TEXT("--depth", "-d", "N,…", "tokens already in the cache (0)", depth),
    OPT_KV,
    OPT_TEXT("--peer", NULL, "CMD", "llama-bench, or a command with {model}: run in turn, for ratios",
             peer),
    OPT_FLAG("--markdown", "the table in Markdown", markdown),
    OPT_ORIGINAL,
    OPT_TEXT("--plan", NULL, "F", "instead: how long this plan takes to solve, first and again", plan),
    OPT_CALIB,
    OPT_END};

static const struct cli_option export_options[] = {
    OPT_TEXT("--to", NULL, "E", "hf, vllm, sglang, gguf or plan", to),
    OPT_TEXT("--dtype", NULL, "T", "bf16 (default), f32, fp8; in GGUF also f16, q8_0, q6_k, q4_k, q4_0", dtype),
    OPT_TEXT("--output", "-o", "PATH", "the folder or GGUF file to write", output),
    OPT_INT("--q-lora-rank", NULL, "queries through so many numbers (0: whole; says what it costs)",
            narrow_rank, 0, 65536),
    OPT_FLAG("--fold-biases", "for engines without biases: the nearest model without (see --calib)",
             fold_biases),
    OPT_FLAG("--mtp", "add DeepSeek's prediction layer, which guesses the token after the next", mtp),
    OPT_FILES("--calib", "F ...", "text that narrow queries, folded biases and --mtp are fitted to, or \"self\"", calib),
    OPT_INT("--tokens", NULL, "of that text (4096; for --mtp 16384)", tokens, 256, 1e9),
    OPT_FLAG("--dry-run", "say what would be written, write nothing", dry_run),
    OPT_FLAG("--force", "replace an earlier export", force),
    OPT_FLAG("--no-check", "do not read the export back and compare", no_check),
    OPT_END};

static const struct cli_option report_options[] = {
    OPT_TEXT("--output", "-o", "F", "the HTML file to write", output), OPT_END};

static const struct cli_command commands[] = {
    {"models", "", "lists the models found on this machine",
     "  mlathe models\n  mlathe models --json\n", 0, false, NULL, cli_models},
    {"inspect", "[MODEL]", "shows a model's shape, its KV memory, and whether it can be converted",
     "  mlathe inspect\n  mlathe inspect ./Llama-3.2-1B --json\n", 1, false, inspect_options,
     cli_inspect},
    {"tokenize", "[MODEL] --text S | --file F", "text to token ids",
     "  mlathe tokenize --text 'Hello world'\n  mlathe tokenize tokenizer.json --file a.txt "
     "--special\n",
     1, false, tokenize_options, cli_tokenize},
    {"detokenize", "[MODEL] --ids 1,2,3", "token ids to text",
     "  mlathe detokenize --ids 19556,905\n", 1, false, detokenize_options, cli_detokenize},
    {"render", "[MODEL] --messages F", "a conversation through the model's chat template",
     "  mlathe render --messages chat.json\n  mlathe render llama-3.jinja --messages chat.json\n",
     1, false, render_options, cli_render},
    {"logits", "[MODEL] --ids 1,2,3 [--all]", "logits after the given tokens",
     "  mlathe logits --ids 1,2,3 --json\n  mlathe logits converted/ --ids 1,2,3 --exact\n", 1,
     true, logits_options, cli_logits},
    {"generate", "[MODEL] --text S | --file F | --ids 1,2,3", "continues a text",
     "  mlathe generate --text 'Once upon a time' -n 64\n"
     "  mlathe generate converted/ --text 'Once upon a time' --temp 0.8 --seed 7\n",
     1, true, generate_options, cli_generate},
    {"spectra", "[MODEL]", "singular values of every layer: what a rank would keep",
     "  mlathe spectra --weights-only\n  mlathe spectra --calib my-text.txt --json\n", 1, true,
     spectra_options, cli_spectra},
    {"plan", "[MODEL] --kept P | --bytes-per-token N | --fit M,CxB | --rank r",
     "chooses ranks and rope widths for a budget",
     "  mlathe plan --kept 25% -o plan.json\n  mlathe plan --fit 24GiB,8192x16\n"
     "  mlathe plan --rank 64 --rope 32\n",
     1, true, plan_options, cli_plan},
    {"convert", "[MODEL] --plan F | --kept P | --rank r [--rope R] -o DIR",
     "converts a model and writes a conversion folder",
     "  mlathe convert --kept 50% -o converted\n"
     "  mlathe convert --plan plan.json --calib wiki.txt code.txt -o converted\n"
     "  mlathe convert --rank 128 --rope 64 --method transmla -o baseline\n",
     1, true, convert_options, cli_convert},
    {"heal", "DIR [--minutes M | --tokens N | --kl X] [--text F …] -o DIR2",
     "trains a conversion's attention on the original's answers for some minutes",
     "  mlathe heal converted --minutes 10 --text my-text.txt -o healed\n"
     "  mlathe heal converted --tokens 50000 --text folder/ --train kv_b,q -o healed\n",
     1, true, heal_options, cli_heal},
    {"eval", "[MODEL] --ppl F | --task T --file F [--against ORIGINAL]",
     "perplexity, KL against another model, multiple choice",
     "  mlathe eval --ppl wiki.test.raw --ctx 1024 --windows 12\n"
     "  mlathe eval converted/ --against original.gguf --ppl wiki.test.raw\n"
     "  mlathe eval converted/ --against original.gguf --task arc --file ARC-Easy.test.json\n",
     1, true, eval_options, cli_eval},
    {"chat", "[MODEL] [OTHER]", "a conversation, line by line, with one model or two",
     "  mlathe chat\n  mlathe chat original.gguf converted/ --prompt 'What is a lathe?'\n", 2, true,
     chat_options, cli_chat},
    {"bench", "[MODEL] [-p 512] [-n 128] [-r 5] [-d 0,4096]", "speed, by llama-bench's protocol",
     "  mlathe bench\n  mlathe bench converted/ -p 512 -n 128 -d 0,4096\n"
     "  mlathe bench model.gguf --peer llama-bench\n"
     "  mlathe bench model.gguf --plan plan.json --calib my.txt   converting at other ranks\n",
     1, true, bench_options,
     cli_bench},
    {"export", "DIR --to E -o PATH", "writes a conversion for stock engines",
     "  mlathe export converted --to hf -o model-mla\n"
     "  mlathe export converted --to gguf --dtype q8_0 -o model-mla.gguf\n"
     "  mlathe export converted --to vllm --dry-run -o model-mla\n",
     1, true, export_options, cli_export},
    {"report", "DIR -o F.html", "a conversion as one page: plan, memory, losses, evaluation",
     "  mlathe report converted -o report.html\n", 1, true, report_options, cli_report},
    {"doctor", "", "what this machine has and lacks, and how to mend it",
     "  mlathe doctor\n  mlathe doctor --json\n", 0, false, NULL, cli_doctor},
    {"paths", "", "where mlathe keeps its files", "  mlathe paths\n", 0, false, NULL, cli_paths},
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

/* The screens, as a command that has no name. */
static const struct cli_option screen_options[] = {
    OPT_TEXT("--script", NULL, "FILE", "keystrokes to play without a terminal", script),
    OPT_TEXT("--size", NULL, "CxR", "screen size of a script (80x24)", size),
    OPT_FLAG("--lines", "lines instead of screens, for screen readers and pipes", lines),
    OPT_FLAG("--version", "print the version", version),
    OPT_FLAG("--man", "print the man page", man),
    OPT_TEXT("--completion", NULL, "SHELL", "print the completion for bash, zsh or fish", shell),
    OPT_END};
static const struct cli_command screens = {"", "[MODEL]", "the screens",  "",
                                           1,  false,     screen_options, NULL};

static void help(FILE *to)
{
    fputs("Examples:\n"
          "  mlathe                                   opens the screens\n"
          "  mlathe inspect model.gguf                what a model is\n"
          "  mlathe convert --kept 50% -o converted   keep half of the KV cache\n"
          "  mlathe chat model.gguf converted         talk to both\n"
          "\nmlathe [MODEL] [--lines | --script FILE [--size 80x24]] | mlathe COMMAND …\n\nCommands "
          "(mlathe COMMAND --help says more):\n",
          to);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  %-11s %s\n", commands[i].name, commands[i].summary);
    fputs("\nMODEL is a GGUF file, a Hugging Face folder, a conversion folder, or a name that "
          "mlathe models lists.\n",
          to);
}

static void list_commands(char *text, size_t size)
{
    size_t n = 0;
    text[0] = 0;
    for (size_t i = 0; i < N_COMMANDS && n < size; i++)
        n += (size_t)snprintf(text + n, size - n, "%s%s", i ? " " : "", commands[i].name);
}

static int exit_code(struct cli *c, int rc, struct err *e)
{
    cli_progress_end(c);
    if (rc == OK && fflush(stdout))
        rc = err_errno(e, "cannot write the output");
    if (rc == OK)
        return 0;
    c->o.quiet = false; /* errors are always said */
    const char *name = c->command && c->command->name[0] ? c->command->name : NULL;
    if (rc == ERR_CANCELLED)
        cli_say(c, "mlathe%s%s: stopped", name ? " " : "", name ? name : "");
    else
        cli_say(c, "mlathe%s%s: %s", name ? " " : "", name ? name : "", e->text);
    if (rc == CLI_USAGE)
        cli_say(c, "mlathe%s%s --help shows how", name ? " " : "", name ? name : "");
    return rc == CLI_USAGE ? 2 : rc == ERR_CANCELLED ? 130 : 1;
}

static int run_command(struct cli *c, int argc, char **argv, struct err *e)
{
    int rc = cli_parse(c, argc, argv, e);
    if (c->o.help) {
        cli_help(c->command);
        return OK;
    }
    if (!rc && c->o.exact && c->o.fast)
        rc = cli_usage(e, "--exact and --fast exclude each other");
    if (!rc && c->o.log && !(c->log = fopen(c->o.log, "a")))
        rc = err_errno(e, "%s: cannot open the log", c->o.log);
    if (rc)
        return rc;
    if (c->command->stops)
        cli_catch_interrupt();
    cli_progress_start(c);
    rc = c->command->run(c, e);
    return rc == OK && ferror(stdout) ? err_set(e, ERR_IO, "cannot write the output") : rc;
}

static int parse_size(const char *text, struct ui_options *o, struct err *e)
{
    char extra;
    if (text && (sscanf(text, "%dx%d%c", &o->cols, &o->rows, &extra) != 2 || o->cols < 1 ||
                 o->rows < 1 || o->cols > 1000 || o->rows > 1000))
        return cli_usage(e, "--size takes COLUMNSxROWS (80x24), not \"%s\"", text);
    return OK;
}

/* A word that is neither a command nor a model. */
static int unknown_word(const char *word, struct err *e)
{
    const char *names[N_COMMANDS];
    char list[256];
    for (size_t i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i].name;
    const char *near = cli_nearest(word, names, N_COMMANDS);
    list_commands(list, sizeof list);
    if (near)
        return cli_usage(e, "unknown command %.60s: did you mean %s?", word, near);
    return cli_usage(e, "%.200s is neither a model nor a command (%s)", word, list);
}

static int print_manual(const struct cli *c, struct err *e)
{
    const struct manual of = {commands, &screens, N_COMMANDS};
    struct markup m = {0};
    int rc = OK;
    if (c->o.man)
        manual_page(&m, &of);
    else if (!manual_completion(&m, &of, c->o.shell))
        rc = cli_usage(e, "--completion takes bash, zsh or fish, not \"%.40s\"", c->o.shell);
    if (!rc && m.failed)
        rc = err_nomem(e, m.cap, "the text");
    if (!rc)
        fputs(m.text, stdout);
    markup_done(&m);
    return rc;
}

static int run_screens(struct cli *c, int argc, char **argv, struct err *e)
{
    struct ui_options o = {0};
    char *path = NULL, list[256];
    int rc = cli_parse(c, argc, argv, e);
    if (c->o.help || (!rc && c->o.version)) {
        if (c->o.help)
            help(stdout);
        else
            puts("mlathe " MLATHE_VERSION);
        return OK;
    }
    if (!rc && (c->o.man || c->o.shell))
        return print_manual(c, e);
    if (!rc)
        rc = parse_size(c->o.size, &o, e);
    if (!rc && c->n_args && models_resolve(c->arg[0], &path, e))
        rc =
            strchr(c->arg[0], '/') || strchr(c->arg[0], '.') ? ERR_ARG : unknown_word(c->arg[0], e);
    free(path);
    if (rc)
        return rc;
    if (!c->o.script && !c->o.lines && (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))) {
        list_commands(list, sizeof list);
        return cli_usage(e, "the screens need a terminal; without one there are the commands %s",
                         list);
    }
    o.model = c->n_args ? c->arg[0] : NULL;
    o.script = c->o.script;
    o.lines = c->o.lines;
    o.device = c->o.device;
    o.threads = (int)c->o.threads;
    return ui_run(&o, e);
}

int cli_main(int argc, char **argv)
{
    struct cli c = {.command = &screens};
    struct err e = {0};
    int rc;
    cli_defaults(&c.o);
    for (size_t i = 0; argc > 1 && i < N_COMMANDS; i++)
        if (!strcmp(argv[1], commands[i].name))
            c.command = &commands[i];
    if (argc > 1 && !strcmp(argv[1], "help")) {
        help(stdout);
        rc = OK;
    } else if (c.command != &screens) {
        rc = run_command(&c, argc - 2, argv + 2, &e);
    } else {
        rc = run_screens(&c, argc > 0 ? argc - 1 : 0, argv + 1, &e);
    }
    rc = exit_code(&c, rc, &e);
    if (c.log)
        fclose(c.log);
    return rc;
}

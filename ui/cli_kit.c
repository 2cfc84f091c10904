/* What the subcommands share: messages, progress, Ctrl-C, safe text, opening a model. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/kvmem.h"
#include "core/file.h"
#include "sessions/models.h"
#include "ui/cli.h"
#include "ui/markup.h"
#include "ui/sanitize.h"
#include "sessions/clock.h"

#define CLI_MAX_INPUT ((size_t)1 << 30)
#define CLI_MAX_IDS 10000000

/* A signal handler can reach nothing but this. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

/* The first Ctrl-C asks; SA_RESETHAND makes a second one end the process at once. */
void cli_catch_interrupt(void)
{
    struct sigaction a = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

void cli_interrupt_clear(void)
{
    interrupted = 0;
}

int cli_usage(struct err *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    e->status = ERR_ARG;
    return CLI_USAGE;
}

void cli_say(struct cli *c, const char *fmt, ...)
{
    char text[2048], clean[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    cli_clean(text, clean, sizeof clean);
    if (c->log)
        fprintf(c->log, "%s\n", clean);
    if (c->o.quiet)
        return;
    cli_progress_end(c);
    fprintf(stderr, "%s\n", clean);
}

int cli_save_svg(struct cli *c, struct markup *m, struct err *e)
{
    int rc = markup_save(m, c->o.svg, e);
    if (!rc)
        cli_say(c, "wrote %s", c->o.svg);
    markup_done(m);
    return rc;
}

/* --- progress ----------------------------------------------------------------------------- */

static void show_progress(struct cli *c, const char *phase, double done, double total)
{
    char clean[160];
    double now = clock_now();
    bool terminal = isatty(STDERR_FILENO), changed = strncmp(phase, c->phase, sizeof c->phase - 1);
    if (c->o.quiet || (!terminal && !c->o.progress))
        return;
    if (!changed && now - c->shown_at < (terminal ? 0.1 : 2.0))
        return;
    snprintf(c->phase, sizeof c->phase, "%s", phase);
    c->shown_at = now;
    cli_clean(phase, clean, sizeof clean);
    double share = total > 0 ? 100 * fmin(fmax(done / total, 0), 1) : 0;
    fprintf(stderr, terminal ? "\r%s %.0f %%\033[K" : "%s %.0f %%\n", clean, share);
    fflush(stderr);
    c->line_open = terminal;
}

static bool report(void *user, const char *phase, double done, double total)
{
    show_progress(user, phase, done, total);
    return !interrupted;
}

void cli_progress_start(struct cli *c)
{
    c->progress = (struct progress){report, c};
    c->phase[0] = 0;
    c->line_open = false;
}

void cli_progress_end(struct cli *c)
{
    if (c->line_open)
        fputs("\r\033[K", stderr);
    c->line_open = false;
    c->phase[0] = 0;
}

/* --- output ------------------------------------------------------------------------------- */

int cli_print_json(cJSON *json, struct err *e)
{
    char *text = json ? json_text(json, true) : NULL;
    cJSON_Delete(json);
    if (!text)
        return err_nomem(e, 4096, "the JSON document");
    puts(text);
    free(text);
    return OK;
}

void cli_json_drafts(cJSON *obj, long long made, long long right)
{
    if (!made)
        return;
    cJSON_AddNumberToObject(obj, "drafted", (double)made);
    cJSON_AddNumberToObject(obj, "accepted", (double)right);
    cJSON_AddNumberToObject(obj, "acceptance", (double)right / (double)made);
}

bool cli_json_add(cJSON *obj, const char *key, double v)
{
    return isfinite(v) ? cJSON_AddNumberToObject(obj, key, v) != NULL
                       : cJSON_AddNullToObject(obj, key) != NULL;
}

cJSON *cli_json_ids(const int32_t *ids, size_t n)
{
    return n ? cJSON_CreateIntArray((const int *)ids, (int)n) : cJSON_CreateArray();
}

/* Calls put for pieces of text that a terminal may see; lines and tabs stay. */
static void clean_pieces(const char *text, size_t n, void (*put)(void *, const char *, size_t),
                         void *user)
{
    struct cluster c;
    for (size_t i = 0, k; i < n; i += k) {
        if (text[i] == '\n' || text[i] == '\t') {
            put(user, text + i, k = 1);
            continue;
        }
        k = sanitize_next(text + i, n - i, &c);
        put(user, c.text, strlen(c.text));
    }
}

static void put_file(void *user, const char *s, size_t n)
{
    fwrite(s, 1, n, user);
}

void cli_print_text(FILE *to, const char *text, size_t n)
{
    if (isatty(fileno(to)))
        clean_pieces(text, n, put_file, to);
    else
        fwrite(text, 1, n, to);
}

struct buffer {
    char *text;
    size_t n, size;
};
static void put_buffer(void *user, const char *s, size_t n)
{
    struct buffer *b = user;
    if (b->n + n + 1 > b->size)
        return;
    memcpy(b->text + b->n, s, n);
    b->n += n;
}

void cli_clean(const char *from, char *text, size_t size)
{
    struct buffer b = {text, 0, size};
    clean_pieces(from, strlen(from), put_buffer, &b);
    text[b.n] = 0;
}

/* --- input -------------------------------------------------------------------------------- */

int cli_parse_ids(const char *text, struct ids *out, struct err *e)
{
    const char *s = text;
    while (*s) {
        char *end;
        errno = 0;
        long v = strtol(s, &end, 10);
        if (end == s || errno || v < 0 || v > INT32_MAX)
            return cli_usage(e, "--ids: \"%.40s\" is no token id (give 1,2,3)", s);
        void *grown = out->v;
        if (out->n >= CLI_MAX_IDS || !mem_grow(&grown, &out->cap, out->n + 1, sizeof *out->v))
            return err_nomem(e, out->n * sizeof *out->v, "token ids");
        out->v = grown;
        out->v[out->n++] = (int32_t)v;
        for (s = end; *s == ',' || *s == ' '; s++)
            ;
    }
    return OK;
}

static int read_stdin(char **text, size_t *n, struct err *e)
{
    char *data = NULL;
    size_t have = 0, cap = 0;
    for (size_t got = 1; got;) {
        void *grown = data;
        if (have > CLI_MAX_INPUT || !mem_grow(&grown, &cap, have + 65536, 1)) {
            free(data);
            return err_nomem(e, have, "standard input");
        }
        data = grown;
        got = fread(data + have, 1, cap - have - 1, stdin);
        have += got;
    }
    data[have] = 0;
    *text = data;
    *n = have;
    return OK;
}

int cli_input(const struct cli *c, char **text, size_t *n, struct err *e)
{
    if (!c->o.text == !c->o.file)
        return cli_usage(e, "give --text or --file (one of them)");
    if (c->o.file)
        return strcmp(c->o.file, "-") ? file_read(c->o.file, CLI_MAX_INPUT, text, n, e)
                                      : read_stdin(text, n, e);
    *n = strlen(c->o.text);
    *text = mem_strdup(c->o.text);
    return *text ? OK : err_nomem(e, *n, "the text");
}

int cli_open(struct cli *c, const char *model, enum cli_care care, struct workspace **out,
             struct err *e)
{
    if (c->o.exact || c->o.fast)
        care = c->o.exact ? CLI_EXACT : CLI_FAST;
    struct workspace_options o = {.device = c->o.device,
                                  .threads = (int)c->o.threads,
                                  .memory = (size_t)c->o.memory << 20,
                                  .exact = care != CLI_FAST,
                                  .keep = c->command->run == cli_bench ||
                                          c->command->run == cli_convert,
                                  .rounded = care != CLI_EXACT};
    char *path;
    *out = NULL;
    int rc = models_resolve(model, &path, e);
    if (rc)
        return rc;
    rc = workspace_new(out, &o, e);
    if (!rc)
        rc = workspace_open(*out, path, &c->progress, e);
    cli_progress_end(c);
    free(path);
    if (rc) {
        workspace_free(*out);
        *out = NULL;
    }
    return rc;
}

enum side cli_side(const struct cli *c, const struct workspace *w)
{
    return workspace_has_conversion(w) && !c->o.original ? SIDE_CONVERTED : SIDE_ORIGINAL;
}

int cli_cache_type(const struct cli *c, enum dtype *kv, struct err *e)
{
    if (!c->o.kv)
        return OK;
    *kv = kvmem_type(c->o.kv);
    if (*kv == DTYPE_COUNT)
        return cli_usage(e, "--kv takes " KVMEM_TYPES ", not \"%s\"", c->o.kv);
    return OK;
}

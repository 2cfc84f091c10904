/* The man page. Refuses nothing; everything is escaped for roff. */
#include "ui/manual.h"

#include <string.h>

#include "ui/keys.h"

/* Roff's own marks: backslashes, hyphens that must stay hyphens, and dots and quotes where a
 * request would begin. */
static void put(struct markup *m, const char *text)
{
    char one[2] = "";
    bool start = !m->n || m->text[m->n - 1] == '\n';
    for (; *text; text++) {
        if (start && (*text == '.' || *text == '\''))
            markup_put(m, "\\&");
        start = *text == '\n';
        one[0] = *text;
        markup_put(m, *text == '\\' ? "\\e" : *text == '-' ? "\\-" : one);
    }
}

static void put_option(struct markup *m, const struct cli_option *o)
{
    markup_put(m, ".TP\n\\fB");
    if (o->brief) {
        put(m, o->brief);
        markup_put(m, "\\fR, \\fB");
    }
    put(m, o->name);
    markup_put(m, "\\fR");
    if (o->value) {
        markup_put(m, " \\fI");
        put(m, o->value);
        markup_put(m, "\\fR");
    }
    markup_put(m, "\n");
    put(m, o->help);
    markup_put(m, "\n");
}

static void put_options(struct markup *m, const struct cli_option *list)
{
    for (; list && list->name; list++)
        put_option(m, list);
}

static void put_command(struct markup *m, const struct cli_command *c)
{
    markup_put(m, ".SS mlathe ");
    put(m, c->name);
    markup_put(m, " ");
    put(m, c->args);
    markup_put(m, "\n");
    put(m, c->summary);
    markup_put(m, ".\n.PP\n.nf\n");
    put(m, c->examples);
    markup_put(m, ".fi\n");
    put_options(m, c->options);
}

static void put_keys(struct markup *m)
{
    static const struct {
        unsigned where;
        const char *name;
    } screen[] = {{IN_MODEL, "Model"},   {IN_RANKS, "Ranks"},   {IN_CONVERT, "Convert"},
                  {IN_TALK, "Chat"},     {IN_EVAL, "Evaluate"}, {IN_EXPORT, "Export"},
                  {IN_PROMPT, "Prompt"}, {IN_ASK, "Questions"}};
    size_t n;
    const struct binding *b = keys_table(&n);
    char name[32];
    markup_put(m, ".SH KEYS\nThe screens' keys; ? shows those of the screen at hand.\n");
    for (size_t s = 0; s < sizeof screen / sizeof screen[0]; s++) {
        markup_printf(m, ".SS %s\n", screen[s].name);
        for (size_t i = 0; i < n; i++) {
            /* What holds on every screen is said once, on the first. */
            bool first = !(b[i].where & (screen[s].where - 1) & IN_SCREENS);
            if (!(b[i].where & screen[s].where) || !b[i].help || !first)
                continue;
            markup_put(m, ".TP\n\\fB");
            for (int k = 0; k < BINDING_KEYS && b[i].key[k]; k++) {
                markup_put(m, k ? "\\fR, \\fB" : "");
                put(m, keys_name(b[i].key[k], false, name));
            }
            markup_put(m, "\\fR\n");
            put(m, b[i].help);
            markup_put(m, "\n");
        }
    }
}

static void put_rest(struct markup *m)
{
    markup_put(
        m, ".SH ENVIRONMENT\n"
           ".TP\n\\fBMLATHE_HOME\\fR\none folder for everything, instead of the four below\n"
           ".TP\n\\fBXDG_CONFIG_HOME\\fR, \\fBXDG_DATA_HOME\\fR, \\fBXDG_STATE_HOME\\fR, "
           "\\fBXDG_CACHE_HOME\\fR\nwhere settings, models and conversions, the session, and "
           "statistics are kept; \\fBmlathe paths\\fR shows the folders\n"
           ".TP\n\\fBNO_COLOR\\fR\nwhen not empty: no colours; marks and letters carry everything\n"
           ".TP\n\\fBCLICOLOR\\fR, \\fBCLICOLOR_FORCE\\fR\n0: no colours; not 0: colours all the "
        "same\n"
        ".TP\n\\fBTERM\\fR, \\fBLC_ALL\\fR, \\fBLANG\\fR\nwhat the terminal is, and whether it "
           "shows UTF\\-8\n"
           ".SH FILES\n.TP\n\\fI~/.config/mlathe/settings\\fR\nthe theme (dark, light, mono, contrast), the mouse, "
        "ASCII borders, and keys of your own; the file lists them all\n"
        ".SH EXIT STATUS\n"
           ".TP\n0\ndone\n.TP\n1\nfailed; the message says what, where, and what to do\n"
           ".TP\n2\nthe command line is wrong\n.TP\n130\nstopped by Ctrl\\-C\n"
           ".SH NOTES\nmlathe never uses a network.\n");
}

void manual_page(struct markup *m, const struct manual *of)
{
    markup_put(m, ".TH MLATHE 1 \"\" \"mlathe " MLATHE_VERSION "\" \"User Commands\"\n"
                  ".SH NAME\nmlathe \\- convert language models from GQA to MLA attention, talk to "
                  "both, measure, export\n"
                  ".SH SYNOPSIS\n.B mlathe\n.RI [ MODEL ]\n.br\n.B mlathe\n.I COMMAND\n"
                  ".RI [ options ]\n"
                  ".SH DESCRIPTION\nWithout a command, \\fBmlathe\\fR opens its screens on a "
                  "terminal: a model's spectra, the ranks to keep, conversion, a conversation with "
                  "the original and the converted model side by side, measurement, export. The "
                  "commands do the same without a terminal. Data goes to standard output, messages "
                  "and progress to standard error.\n.PP\n\\fIMODEL\\fR is a GGUF file, a Hugging "
                  "Face folder, a conversion folder, or a name that \\fBmlathe models\\fR "
                  "lists.\n.SH OPTIONS OF THE SCREENS\n");
    put_options(m, of->screens->options);
    markup_put(m, ".SH COMMANDS\n");
    for (size_t i = 0; i < of->n; i++)
        put_command(m, &of->command[i]);
    markup_put(m, ".SH COMMON OPTIONS\n");
    put_options(m, cli_common);
    put_keys(m);
    put_rest(m);
}

/* The table of keys. */
#include "ui/keys.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <utf8proc.h>

#define ALT(k) ((k) | UI_ALT)
#define LISTS (IN_MODEL | IN_RANKS | IN_CONVERT | IN_TALK | IN_EVAL | IN_EXPORT | IN_HELP)

static const struct binding table[] = {
    /* what each screen is for, first */
    {REQ_OPEN, IN_MODEL, {UI_ENTER}, "open", "open the selected model"},
    {REQ_PATH, IN_MODEL, {'p', 'o'}, "type a path", "type a path or a name (Tab completes)"},
    {REQ_SCAN, IN_MODEL, {'r'}, "look again", "look for models again"},

    {REQ_LESS, IN_RANKS, {UI_LEFT, '-', 'h'}, "rank", "lower the rank of this layer one step"},
    {REQ_MORE, IN_RANKS, {UI_RIGHT, '+', '=', 'l'}, NULL, "raise the rank one step"},
    {REQ_LESS_FAST, IN_RANKS, {UI_SHIFT_LEFT, '<'}, NULL, "lower the rank four steps"},
    {REQ_MORE_FAST, IN_RANKS, {UI_SHIFT_RIGHT, '>'}, NULL, "raise it four steps"},
    {REQ_AUTO, IN_RANKS, {'a'}, "auto", "spend the budget: by measured layers (p), else evenly"},
    {REQ_BUDGET, IN_RANKS, {'b'}, "budget", "type a budget: 50%, bytes a token, or 24GiB,8192x16"},
    {REQ_UNIFORM, IN_RANKS, {'u'}, "same", "give every layer this layer's rank"},
    {REQ_ROPE, IN_RANKS, {'R'}, "rope", "type the rope width R (rotary numbers cached a token)"},
    {REQ_CALIBRATE, IN_RANKS, {'t'}, "calibrate", "calibrate on text: files, or the model's own"},
    {REQ_START, IN_RANKS | IN_CONVERT, {'c'}, "convert", "convert the model by this plan"},
    {REQ_HEAL, IN_CONVERT, {'h'}, "heal", "train it on the original's answers for a while"},
    {REQ_PAUSE, IN_CONVERT, {'p'}, "pause", "pause healing, and go on with it"},
    {REQ_UNDO, IN_CONVERT, {'z'}, NULL, "back to the conversion before it was healed"},
    {REQ_SAVE_PLAN, IN_RANKS, {'s'}, "save", "save the plan to a file (JSON)"},
    {REQ_ENERGY, IN_RANKS, {'e'}, NULL, "spend the budget where it keeps most energy"},
    {REQ_PROBE, IN_RANKS, {'p'}, NULL, "measure what each layer costs, and spend by that"},
    {REQ_SEARCH, IN_RANKS, {'w'}, NULL, "find the best rope width for the budget by measuring"},
    {REQ_BUDGET_LESS, IN_RANKS, {'['}, NULL, "budget one percent lower, ranks follow"},
    {REQ_BUDGET_MORE, IN_RANKS, {']'}, NULL, "one percent higher"},
    {REQ_LAYOUT, IN_RANKS, {'f'}, "layout", "own, shared (transformers) or stock (every engine)"},
    {REQ_METHOD, IN_RANKS, {'m'}, "method", "mlathe, or transmla as published"},
    {REQ_RECIPE, IN_RANKS, {'r'}, NULL, "the recipe: rounds, balance, steps left out …"},
    {REQ_LOAD_PLAN, IN_RANKS, {'o'}, NULL, "load a plan from a file"},
    {REQ_UNDO, IN_RANKS, {'z'}, "undo", "undo the last change of the plan"},
    {REQ_REDO, IN_RANKS, {'y'}, NULL, "redo it"},
    {REQ_HOLD, IN_RANKS, {'B'}, NULL, "hold this plan as B, to compare with; again: let go"},
    {REQ_SWAP, IN_RANKS, {'v'}, NULL, "swap plans A and B"},
    {REQ_MARK, IN_RANKS, {' ', 'V'}, NULL, "mark a range of layers: changes count for all of it"},
    {REQ_SCALE, IN_RANKS, {'L'}, NULL, "spectra in decades, or linear"},
    {REQ_ZOOM, IN_RANKS, {'Z'}, NULL, "a closer look at the spectrum around its cut"},
    {REQ_CURVES, IN_RANKS, {'K'}, NULL, "the spectrum of keys and values together, or of one"},
    {REQ_WEIGHTS, IN_RANKS, {'W'}, NULL, "beside it, what the weights alone would say"},
    {REQ_WHATIF, IN_RANKS, {'x'}, NULL, "type context x batch and a memory: 8192x1 24GiB"},

    {REQ_START, IN_EVAL, {UI_ENTER, 'r'}, "run", "measure"},
    {REQ_EVAL_WHAT, IN_EVAL, {'t'}, "what", "perplexity, multiple choice, or speed"},
    {REQ_EVAL_FILE, IN_EVAL, {'f'}, "file", "type the text's or the questions' file"},
    {REQ_FOCUS, IN_EVAL, {UI_TAB}, "conversions", "this result, or all conversions of the model"},
    {REQ_EVAL_COUNT, IN_EVAL, {'c'}, NULL, "type how many windows or questions (0: all)"},
    {REQ_EVAL_CTX, IN_EVAL, {'x'}, NULL, "type the window length in tokens"},
    {REQ_EVAL_PROTOCOL, IN_EVAL, {'p'}, NULL, "protocol of perplexity: hf or llamacpp"},
    {REQ_EVAL_CURVE, IN_EVAL, {'v'}, "curve", "loss or KL against the position"},
    {REQ_EVAL_WRITE, IN_EVAL, {'w'}, "write", "write this result as JSON or CSV"},

    {REQ_EXPORT_PATH, IN_EXPORT, {UI_ENTER, 'w'}, "write", "write the export; asks for its name"},
    {REQ_EXPORT_TYPE, IN_EXPORT, {'t'}, "numbers", "another type of numbers"},
    {REQ_EXPORT_QUERIES, IN_EXPORT, {'r'}, NULL, "type a rank for the queries (0: as they are)"},
    {REQ_EXPORT_MTP, IN_EXPORT, {'m'}, NULL, "with DeepSeek's layer that predicts one token more"},
    {REQ_EXPORT_FOLD, IN_EXPORT, {'b'}, NULL, "fold biases, for engines that have none"},
    {REQ_EXPORT_DRY, IN_EXPORT, {'d'}, "dry run", "say what would be written, write nothing"},

    {REQ_SEND, IN_PROMPT, {UI_ENTER}, "send", "send the prompt; after a trailing \\: a new line"},
    {REQ_NEWLINE, IN_PROMPT, {ALT(UI_ENTER), UI_CTRL('j')}, "new line", "start a new line"},
    {REQ_MODE,
     IN_PROMPT | IN_TALK,
     {UI_CTRL('t'), UI_F7},
     "free/forced",
     "free answers, or scoring the original's answer"},
    {REQ_SEARCH_PAST, IN_PROMPT, {UI_CTRL('r')}, NULL, "search earlier inputs for what is typed"},
    {REQ_FOCUS, IN_PROMPT, {UI_TAB}, "transcript", "to the transcript; completes a /command"},
    {REQ_FOCUS, IN_TALK, {UI_TAB}, "prompt", "back to the prompt"},
    {REQ_DIFFERENCE, IN_TALK, {'d'}, "difference", "to where the two newest answers part"},
    {REQ_EDIT, IN_TALK, {'e'}, "edit", "take the last prompt back, to change and send it"},
    {REQ_REGEN, IN_TALK, {'r'}, "again", "answer the last prompt once more"},
    {REQ_INTERRUPT,
     IN_PROMPT | IN_TALK,
     {UI_CTRL('c')},
     NULL,
     "stop the answer; twice when nothing runs: leave"},
    {REQ_INTERRUPT, IN_SCREENS & ~IN_TALK, {UI_CTRL('c')}, NULL, "twice: leave"},

    {REQ_ACCEPT, IN_ASK, {UI_ENTER}, "accept", "accept what is typed"},
    {REQ_COMPLETE, IN_ASK, {UI_TAB}, "complete", "complete a path"},
    {REQ_STOP, IN_ASK, {UI_ESC, UI_CTRL('c')}, "cancel", "leave the question"},

    /* moving */
    {REQ_UP, LISTS, {UI_UP, 'k', UI_WHEEL_UP}, NULL, "one up"},
    {REQ_DOWN, LISTS, {UI_DOWN, 'j', UI_WHEEL_DOWN}, NULL, "one down"},
    {REQ_PAGE_UP, LISTS, {UI_PAGE_UP}, NULL, "a page up"},
    {REQ_PAGE_UP, IN_PROMPT, {UI_PAGE_UP, UI_WHEEL_UP}, NULL, "a page up in the transcript"},
    {REQ_PAGE_DOWN, LISTS, {UI_PAGE_DOWN}, NULL, "a page down"},
    {REQ_PAGE_DOWN, IN_PROMPT, {UI_PAGE_DOWN, UI_WHEEL_DOWN}, NULL, "a page down"},
    {REQ_FIRST, LISTS, {UI_HOME, 'g'}, NULL, "to the first"},
    {REQ_LAST, LISTS, {UI_END, 'G'}, NULL, "to the last"},
    {REQ_FIND, LISTS, {'/'}, NULL, "look for a word, or a layer's number"},
    {REQ_FIND_NEXT, LISTS, {'n'}, NULL, "to the next place that holds it"},

    /* editing */
    {REQ_EDIT_LEFT, IN_TEXT, {UI_LEFT, UI_CTRL('b')}, NULL, "one character left"},
    {REQ_EDIT_RIGHT, IN_TEXT, {UI_RIGHT, UI_CTRL('f')}, NULL, "one character right"},
    {REQ_EDIT_UP, IN_PROMPT, {UI_UP, UI_CTRL('p')}, NULL, "a line up, or the input before"},
    {REQ_EDIT_DOWN, IN_PROMPT, {UI_DOWN, UI_CTRL('n')}, NULL, "a line down, or the input after"},
    {REQ_WORD_LEFT, IN_TEXT, {ALT('b'), UI_SHIFT_LEFT}, NULL, "one word left"},
    {REQ_WORD_RIGHT, IN_TEXT, {ALT('f'), UI_SHIFT_RIGHT}, NULL, "one word right"},
    {REQ_LINE_START, IN_TEXT, {UI_HOME, UI_CTRL('a')}, NULL, "to the start of the line"},
    {REQ_LINE_END, IN_TEXT, {UI_END, UI_CTRL('e')}, NULL, "to the end of the line"},
    {REQ_BACKSPACE, IN_TEXT, {UI_BACKSPACE, UI_CTRL('h')}, NULL, "delete to the left"},
    {REQ_DELETE, IN_TEXT, {UI_DELETE, UI_CTRL('d')}, NULL, "delete to the right"},
    {REQ_DELETE_WORD,
     IN_TEXT,
     {UI_CTRL('w'), ALT(UI_BACKSPACE)},
     NULL,
     "delete a word to the left"},
    {REQ_KILL_START, IN_TEXT, {UI_CTRL('u')}, NULL, "delete to the start of the line"},
    {REQ_KILL_END, IN_TEXT, {UI_CTRL('k')}, NULL, "delete to the end of the line"},

    /* everywhere */
    {REQ_STOP,
     IN_SCREENS | IN_PROMPT | IN_HELP,
     {UI_ESC},
     "stop",
     "stop what runs; leave the help"},
    {REQ_MODEL, IN_SCREENS | IN_HELP, {'1', UI_F1, ALT('1')}, NULL, "screen 1: model"},
    {REQ_RANKS, IN_SCREENS | IN_HELP, {'2', UI_F2, ALT('2')}, NULL, "screen 2: ranks"},
    {REQ_CONVERT, IN_SCREENS | IN_HELP, {'3', UI_F3, ALT('3')}, NULL, "screen 3: convert"},
    {REQ_CHAT, IN_SCREENS | IN_HELP, {'4', UI_F4, ALT('4')}, NULL, "screen 4: chat"},
    {REQ_EVAL, IN_SCREENS | IN_HELP, {'5', UI_F5, ALT('5')}, NULL, "screen 5: evaluate"},
    {REQ_EXPORT, IN_SCREENS | IN_HELP, {'6', UI_F6, ALT('6')}, NULL, "screen 6: export"},
    {REQ_MODEL, IN_PROMPT, {UI_F1, ALT('1')}, "screens", "screen 1: model"},
    {REQ_RANKS, IN_PROMPT, {UI_F2, ALT('2')}, NULL, "screen 2: ranks"},
    {REQ_CONVERT, IN_PROMPT, {UI_F3, ALT('3')}, NULL, "screen 3: convert"},
    {REQ_CHAT, IN_PROMPT, {UI_F4, ALT('4')}, NULL, "screen 4: chat"},
    {REQ_EVAL, IN_PROMPT, {UI_F5, ALT('5')}, NULL, "screen 5: evaluate"},
    {REQ_EXPORT, IN_PROMPT, {UI_F6, ALT('6')}, NULL, "screen 6: export"},
    {REQ_HELP, IN_SCREENS | IN_HELP, {'?', UI_F9}, "help", "this help"},
    {REQ_HELP, IN_PROMPT, {UI_F9}, "help", "this help"},
    {REQ_QUIT, IN_SCREENS | IN_HELP, {'q', UI_F10, UI_CTRL('q')}, "leave", "leave mlathe"},
    {REQ_QUIT, IN_TEXT, {UI_F10, UI_CTRL('q')}, NULL, "leave mlathe"},
    {REQ_REDRAW, IN_SCREENS | IN_TEXT | IN_HELP, {UI_CTRL('l')}, NULL, "paint the screen anew"},
    {REQ_SUSPEND,
     IN_SCREENS | IN_TEXT | IN_HELP,
     {UI_CTRL('z')},
     NULL,
     "suspend mlathe (fg brings it back)"},
};

const struct binding *keys_table(size_t *n)
{
    *n = sizeof table / sizeof *table;
    return table;
}

static const char *const request_names[REQ_COUNT] = {
    [REQ_MODEL] = "model",
    [REQ_RANKS] = "ranks",
    [REQ_CONVERT] = "convert",
    [REQ_CHAT] = "chat",
    [REQ_EVAL] = "evaluate",
    [REQ_EXPORT] = "export",
    [REQ_HELP] = "help",
    [REQ_QUIT] = "leave",
    [REQ_REDRAW] = "redraw",
    [REQ_SUSPEND] = "suspend",
    [REQ_FOCUS] = "focus",
    [REQ_STOP] = "stop",
    [REQ_UP] = "up",
    [REQ_DOWN] = "down",
    [REQ_PAGE_UP] = "page-up",
    [REQ_PAGE_DOWN] = "page-down",
    [REQ_FIRST] = "first",
    [REQ_LAST] = "last",
    [REQ_FIND] = "find",
    [REQ_FIND_NEXT] = "find-next",
    [REQ_OPEN] = "open",
    [REQ_PATH] = "path",
    [REQ_SCAN] = "scan",
    [REQ_LESS] = "rank-less",
    [REQ_MORE] = "rank-more",
    [REQ_LESS_FAST] = "rank-less-fast",
    [REQ_MORE_FAST] = "rank-more-fast",
    [REQ_AUTO] = "auto",
    [REQ_ENERGY] = "energy",
    [REQ_BUDGET] = "budget",
    [REQ_UNIFORM] = "uniform",
    [REQ_ROPE] = "rope",
    [REQ_LAYOUT] = "layout",
    [REQ_METHOD] = "method",
    [REQ_WHATIF] = "what-if",
    [REQ_MARK] = "mark",
    [REQ_SCALE] = "scale",
    [REQ_ZOOM] = "zoom",
    [REQ_UNDO] = "undo",
    [REQ_REDO] = "redo",
    [REQ_PROBE] = "probe",
    [REQ_SEARCH] = "search-rope",
    [REQ_HOLD] = "hold",
    [REQ_SWAP] = "swap",
    [REQ_BUDGET_LESS] = "budget-less",
    [REQ_BUDGET_MORE] = "budget-more",
    [REQ_SAVE_PLAN] = "save-plan",
    [REQ_LOAD_PLAN] = "load-plan",
    [REQ_CURVES] = "curves",
    [REQ_WEIGHTS] = "weights-alone",
    [REQ_RECIPE] = "recipe",
    [REQ_CALIBRATE] = "calibrate",
    [REQ_HEAL] = "heal",
    [REQ_PAUSE] = "pause",
    [REQ_START] = "start",
    [REQ_EVAL_WHAT] = "eval-what",
    [REQ_EVAL_FILE] = "eval-file",
    [REQ_EVAL_PROTOCOL] = "eval-protocol",
    [REQ_EVAL_CTX] = "eval-window",
    [REQ_EVAL_COUNT] = "eval-count",
    [REQ_EVAL_CURVE] = "eval-curve",
    [REQ_EVAL_WRITE] = "eval-write",
    [REQ_EXPORT_TYPE] = "export-numbers",
    [REQ_EXPORT_DRY] = "export-dry",
    [REQ_EXPORT_PATH] = "export-write",
    [REQ_EXPORT_QUERIES] = "export-queries",
    [REQ_EXPORT_MTP] = "export-prediction",
    [REQ_EXPORT_FOLD] = "export-fold",
    [REQ_SEND] = "send",
    [REQ_NEWLINE] = "new-line",
    [REQ_MODE] = "mode",
    [REQ_INTERRUPT] = "interrupt",
    [REQ_SEARCH_PAST] = "search-past",
    [REQ_DIFFERENCE] = "difference",
    [REQ_EDIT] = "edit",
    [REQ_REGEN] = "regenerate",
    [REQ_ACCEPT] = "accept",
    [REQ_COMPLETE] = "complete",
    [REQ_EDIT_LEFT] = "left",
    [REQ_EDIT_RIGHT] = "right",
    [REQ_EDIT_UP] = "line-up",
    [REQ_EDIT_DOWN] = "line-down",
    [REQ_WORD_LEFT] = "word-left",
    [REQ_WORD_RIGHT] = "word-right",
    [REQ_LINE_START] = "line-start",
    [REQ_LINE_END] = "line-end",
    [REQ_BACKSPACE] = "backspace",
    [REQ_DELETE] = "delete",
    [REQ_DELETE_WORD] = "delete-word",
    [REQ_KILL_START] = "delete-to-start",
    [REQ_KILL_END] = "delete-to-end",
};

const char *keys_request_name(enum request r)
{
    return request_names[r];
}

int keys_of(const struct keymap *m, const struct binding *b, int k)
{
    if (!m || !m->own[b->request])
        return b->key[k];
    int n = 0;
    for (int i = 0; i < BINDING_KEYS; i++) {
        int key = m->key[b->request][i];
        if (key && !((b->where & IN_TEXT) && keys_is_text(key)) && n++ == k)
            return key;
    }
    return n ? 0 : b->key[k]; /* none of them can be pressed here */
}

static enum request look(const struct keymap *m, bool own, enum context where, int key)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (int k = 0; (table[i].where & where) && k < BINDING_KEYS; k++)
            if ((m && m->own[table[i].request]) == own && keys_of(m, &table[i], k) == key)
                return table[i].request;
    return REQ_NONE;
}

enum request keys_lookup(const struct keymap *m, enum context where, int key)
{
    if (key == '\n' && where != IN_PROMPT)
        key = UI_ENTER;
    if (!key)
        return REQ_NONE;
    enum request r = look(m, true, where, key);
    return r != REQ_NONE ? r : look(m, false, where, key);
}

int keymap_set(struct keymap *m, const char *name, const char *words, struct err *e)
{
    int r = REQ_NONE + 1, key[BINDING_KEYS] = {0}, n = 0;
    while (r < REQ_COUNT && strcmp(request_names[r], name) != 0)
        r++;
    if (r == REQ_COUNT)
        return err_set(e, ERR_FORMAT, "no action is called %s (the settings file lists them)",
                       name);
    for (const char *at = words; *(at += strspn(at, " \t"));) {
        char word[32];
        size_t len = strcspn(at, " \t");
        snprintf(word, sizeof word, "%.*s", (int)(len < 31 ? len : 31), at);
        if (n == BINDING_KEYS)
            return err_set(e, ERR_FORMAT, "%s may have %d keys", name, BINDING_KEYS);
        if (!(key[n++] = keys_parse(word)))
            return err_set(e, ERR_FORMAT,
                           "%s is no key (write q, Ctrl-K, Alt-Enter, F5, PgUp, Space)", word);
        at += len;
    }
    if (!n)
        return err_set(e, ERR_FORMAT, "%s needs a key (write q, Ctrl-K, Alt-Enter, F5)", name);
    m->own[r] = true;
    memcpy(m->key[r], key, sizeof key);
    return OK;
}

static const struct {
    int key;
    const char *name, *brief;
} names[] = {
    {UI_UP, "Up", "↑"},
    {UI_DOWN, "Down", "↓"},
    {UI_LEFT, "Left", "←"},
    {UI_RIGHT, "Right", "→"},
    {UI_HOME, "Home", NULL},
    {UI_END, "End", NULL},
    {UI_PAGE_UP, "PgUp", NULL},
    {UI_PAGE_DOWN, "PgDn", NULL},
    {UI_SHIFT_LEFT, "Shift-Left", "⇧←"},
    {UI_SHIFT_RIGHT, "Shift-Right", "⇧→"},
    {UI_SHIFT_TAB, "Shift-Tab", NULL},
    {UI_INSERT, "Ins", NULL},
    {UI_DELETE, "Del", NULL},
    {UI_BACKSPACE, "Backspace", NULL},
    {UI_F1, "F1", NULL},
    {UI_F2, "F2", NULL},
    {UI_F3, "F3", NULL},
    {UI_F4, "F4", NULL},
    {UI_F5, "F5", NULL},
    {UI_F6, "F6", NULL},
    {UI_F7, "F7", NULL},
    {UI_F8, "F8", NULL},
    {UI_F9, "F9", NULL},
    {UI_F10, "F10", NULL},
    {UI_WHEEL_UP, "Wheel-Up", NULL},
    {UI_WHEEL_DOWN, "Wheel-Down", NULL},
    {UI_ENTER, "Enter", "⏎"},
    {UI_TAB, "Tab", NULL},
    {UI_ESC, "Esc", NULL},
    {' ', "Space", NULL},
};
#define N_NAMES (sizeof names / sizeof *names)

const char *keys_name(int key, bool brief, char text[32])
{
    const char *alt = key & UI_ALT ? "Alt-" : "";
    int bare = key & ~UI_ALT;
    for (size_t i = 0; i < N_NAMES; i++)
        if (names[i].key == bare) {
            snprintf(text, 32, "%s%s", alt,
                     brief && names[i].brief ? names[i].brief : names[i].name);
            return text;
        }
    if (bare < 32) {
        snprintf(text, 32, "%sCtrl-%c", alt, bare + '@');
    } else {
        unsigned char utf8[5] = {0};
        utf8proc_encode_char(bare, utf8);
        snprintf(text, 32, "%s%s", alt, (char *)utf8);
    }
    return text;
}

int keys_parse(const char *name)
{
    int alt = 0;
    if (strncasecmp(name, "Alt-", 4) == 0 && name[4]) {
        alt = UI_ALT;
        name += 4;
    }
    for (size_t i = 0; i < N_NAMES; i++)
        if (strcasecmp(name, names[i].name) == 0)
            return names[i].key | alt;
    if (strncasecmp(name, "Ctrl-", 5) == 0 && name[5] && !name[6])
        return UI_CTRL(name[5]) | alt;
    utf8proc_int32_t cp;
    utf8proc_ssize_t all = (utf8proc_ssize_t)strlen(name);
    bool one = all > 0 && utf8proc_iterate((const utf8proc_uint8_t *)name, all, &cp) == all;
    return one && cp >= 32 ? (int)cp | alt : 0;
}

bool keys_is_text(int key)
{
    return key >= 32 && key != 127 && key < UI_UP; /* 127 never comes: term.c names it */
}

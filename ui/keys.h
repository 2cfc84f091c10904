/* keys: one table says what every key does where, and what the help says about it; the help screen,
 * the hints in the last line and the dispatch all read it. */
#ifndef MLATHE_UI_KEYS_H
#define MLATHE_UI_KEYS_H

#include "core/base.h"

/* A key is a Unicode code point, a control character, or one of these; KEY_ALT may be added. */
enum {
    UI_UP = 0x110000, UI_DOWN, UI_LEFT, UI_RIGHT, UI_HOME, UI_END, UI_PAGE_UP, UI_PAGE_DOWN,
    UI_SHIFT_LEFT, UI_SHIFT_RIGHT, UI_SHIFT_TAB, UI_INSERT, UI_DELETE, UI_BACKSPACE,
    UI_F1, UI_F2, UI_F3, UI_F4, UI_F5, UI_F6, UI_F7, UI_F8, UI_F9, UI_F10,
    UI_WHEEL_UP, UI_WHEEL_DOWN, UI_RESIZE, UI_LAST = UI_RESIZE,
    UI_ENTER = '\r', UI_TAB = '\t', UI_ESC = 27,
    UI_ALT = 1 << 24,
};
#define UI_CTRL(c) ((c) & 31)

/* Where keys go. Contexts are bits. */
enum context {
    IN_MODEL = 1, IN_RANKS = 2, IN_CONVERT = 4, IN_TALK = 8 /* transcript */, IN_EVAL = 16,
    IN_EXPORT = 32, IN_PROMPT = 64 /* the chat's prompt */, IN_ASK = 128 /* a question */,
    IN_HELP = 256,
    IN_SCREENS = 63, IN_TEXT = IN_PROMPT | IN_ASK,
};

enum request {
    REQ_NONE,
    REQ_MODEL, REQ_RANKS, REQ_CONVERT, REQ_CHAT, REQ_EVAL, REQ_EXPORT, /* in screen order */
    REQ_HELP, REQ_QUIT, REQ_REDRAW, REQ_SUSPEND, REQ_FOCUS, REQ_STOP,
    REQ_UP, REQ_DOWN, REQ_PAGE_UP, REQ_PAGE_DOWN, REQ_FIRST, REQ_LAST, REQ_FIND, REQ_FIND_NEXT,
    REQ_OPEN, REQ_PATH, REQ_SCAN,
    REQ_LESS, REQ_MORE, REQ_LESS_FAST, REQ_MORE_FAST, REQ_AUTO, REQ_ENERGY, REQ_BUDGET, REQ_UNIFORM, REQ_ROPE,
    REQ_LAYOUT, REQ_METHOD, REQ_WHATIF, REQ_MARK, REQ_SCALE, REQ_ZOOM, REQ_UNDO, REQ_REDO, REQ_PROBE, REQ_SEARCH, REQ_HOLD, REQ_SWAP, REQ_BUDGET_LESS,
    REQ_BUDGET_MORE, REQ_SAVE_PLAN, REQ_LOAD_PLAN,
    REQ_CURVES, REQ_WEIGHTS, REQ_RECIPE, REQ_CALIBRATE, REQ_HEAL, REQ_PAUSE, REQ_START,
    REQ_EVAL_WHAT, REQ_EVAL_FILE, REQ_EVAL_PROTOCOL, REQ_EVAL_CTX, REQ_EVAL_COUNT, REQ_EVAL_CURVE,
    REQ_EVAL_WRITE,
    REQ_EXPORT_TYPE, REQ_EXPORT_DRY, REQ_EXPORT_PATH, REQ_EXPORT_QUERIES, REQ_EXPORT_MTP,
    REQ_EXPORT_FOLD,
    REQ_SEND, REQ_NEWLINE, REQ_MODE, REQ_INTERRUPT, REQ_SEARCH_PAST, REQ_DIFFERENCE, REQ_EDIT, REQ_REGEN,
    REQ_ACCEPT, REQ_COMPLETE,
    REQ_EDIT_LEFT, REQ_EDIT_RIGHT, REQ_EDIT_UP, REQ_EDIT_DOWN, REQ_WORD_LEFT, REQ_WORD_RIGHT,
    REQ_LINE_START, REQ_LINE_END, REQ_BACKSPACE, REQ_DELETE, REQ_DELETE_WORD, REQ_KILL_START,
    REQ_KILL_END,
    REQ_COUNT
};

#define BINDING_KEYS 4
struct binding {
    enum request request;
    unsigned where;            /* contexts */
    int key[BINDING_KEYS];     /* 0: none */
    const char *hint;          /* a few words for the last line, NULL: not shown there */
    const char *help;
};
/* In the order of hints and help; *n rows. */
const struct binding *keys_table(size_t *n);

/* A user's own keys (the settings file's key.NAME = KEY …): they take the place of the table's for a
 * request. Zeroed: none. */
struct keymap {
    bool own[REQ_COUNT];
    int key[REQ_COUNT][BINDING_KEYS];
};
/* m NULL: the table alone. A key of the user's own wins over the table's. */
enum request keys_lookup(const struct keymap *m, enum context where, int key);
/* The k-th key that counts for a row, 0: none. Where text is typed a key that is text never does. */
int keys_of(const struct keymap *m, const struct binding *b, int k);
/* "rank-less"; words: key names with blanks between. Refuses unknown names and keys. */
const char *keys_request_name(enum request r);
int keymap_set(struct keymap *m, const char *name, const char *words, struct err *e);
/* "c", "Ctrl-L", "Shift-Left", "Alt-Enter" … both ways. keys_name writes ≤ 31 bytes; short form:
 * arrows as signs. keys_parse: 0 when unknown. */
const char *keys_name(int key, bool brief, char text[32]);
int keys_parse(const char *name);
/* True when a key inserts itself into a text. */
bool keys_is_text(int key);

#endif

/* jinja_syntax: tokens and the syntax tree of a template. */
#ifndef MLATHE_CORE_JINJA_SYNTAX_H
#define MLATHE_CORE_JINJA_SYNTAX_H

#include "core/jinja_value.h"

enum jtoken_kind {
    JT_END,
    JT_TEXT,
    JT_VAR_BEGIN,
    JT_VAR_END,
    JT_BLOCK_BEGIN,
    JT_BLOCK_END,
    JT_NAME,
    JT_STR,
    JT_INT,
    JT_FLOAT,
    JT_OP
};
struct jtoken {
    enum jtoken_kind kind;
    int line;
    const char *s; /* name, text, operator, unescaped string; NUL-terminated except text */
    size_t n;
    struct jvalue value; /* of numbers */
};
struct jtokens {
    struct jtoken *v;
    size_t n, cap;
};
/* source stays in the arena; the token array is malloc'ed. */
int jinja_lex(struct jarena *a, const char *source, size_t n, struct jtokens *out, struct err *e);

enum jnode_kind {
    JN_CONST,
    JN_NAME,
    JN_LIST,
    JN_DICT,
    JN_ATTR,
    JN_INDEX,
    JN_SLICE,
    JN_CALL,
    JN_FILTER,
    JN_TEST,
    JN_NOT,
    JN_NEGATE,
    JN_POSITIVE,
    JN_AND,
    JN_OR,
    JN_COND,
    JN_BINARY,
    JN_ARG,
    JN_TEXT,
    JN_OUTPUT,
    JN_IF,
    JN_FOR,
    JN_SET,
    JN_SET_BLOCK,
    JN_MACRO,
    JN_BREAK,
    JN_CONTINUE
};
/* One shape for all. a, b, c, d by kind:
 *   list: a items; dict: a keys, b values (each linked by next); attr: a.name; index: a[b];
 *   slice: a[b:c:d]; call: a(args); filter: a|name(args); test: a is name(args);
 *   cond: b if a else c; binary: a name b; arg: a, name when given by name
 *   output: a; if: a, body, orelse; for: targets, a iterable, b filter, body, orelse
 *   set: targets (a name or an attr), a value; set block and macro: name, args, body */
struct jnode {
    enum jnode_kind kind;
    int line;
    const char *name;
    struct jvalue value;
    struct jnode *a, *b, *c, *d, *args, *targets, *body, *orelse, *next;
};
int jinja_parse(struct jarena *a, const struct jtokens *tokens, struct jnode **out, struct err *e);

#endif

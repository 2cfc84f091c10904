/* Tokens to a syntax tree, with Jinja's precedences. Refuses by name, with the line: include,
 * import, extends, block, call, filter, with, raw, recursive loops and unknown filters or tests. */
#include "core/jinja_impl.h"

#include <stdlib.h>
#include <string.h>

struct parser {
    struct jarena *arena;
    const struct jtoken *t; /* the current token; the last one is JT_END */
    int nesting;
    struct err *e;
    bool failed; /* the first message stays */
};

/* Every parse function gives NULL after setting the message. */
static void *wrong(struct parser *p, int status, const char *what, const char *name)
{
    if (!p->failed)
        err_set(p->e, status, "chat template line %d: %s%s%.60s%s", p->t->line, what,
                *name ? " \"" : "", name, *name ? "\"" : "");
    p->failed = true;
    return NULL;
}

static void *unexpected(struct parser *p)
{
    switch (p->t->kind) {
    case JT_END: return wrong(p, ERR_FORMAT, "the template ends too early", "");
    case JT_VAR_END:
    case JT_BLOCK_END: return wrong(p, ERR_FORMAT, "the tag ends too early", "");
    case JT_TEXT:
    case JT_VAR_BEGIN:
    case JT_BLOCK_BEGIN: return wrong(p, ERR_FORMAT, "text where a tag should go on", "");
    default: return wrong(p, ERR_FORMAT, "unexpected", p->t->s);
    }
}

static struct jnode *new_node(struct parser *p, enum jnode_kind kind, struct jnode *a)
{
    struct jnode *n = jarena_alloc(p->arena, sizeof *n);
    if (!n) {
        p->failed = true;
        err_nomem(p->e, sizeof *n, "a chat template");
        return NULL;
    }
    n->kind = kind;
    n->line = p->t->line;
    n->a = a;
    return n;
}

static bool is_op(const struct parser *p, const char *op)
{
    return p->t->kind == JT_OP && !strcmp(p->t->s, op);
}

static bool is_word(const struct parser *p, const char *name)
{
    return p->t->kind == JT_NAME && !strcmp(p->t->s, name);
}

static bool take_op(struct parser *p, const char *op)
{
    bool yes = is_op(p, op);
    p->t += yes;
    return yes;
}

static bool take_word(struct parser *p, const char *name)
{
    bool yes = is_word(p, name);
    p->t += yes;
    return yes;
}

static bool need_op(struct parser *p, const char *op)
{
    if (take_op(p, op))
        return true;
    unexpected(p);
    return false;
}

static const char *need_name(struct parser *p)
{
    if (p->t->kind == JT_NAME)
        return (p->t++)->s;
    return unexpected(p);
}

static struct jnode *parse_expr(struct parser *p);
static struct jnode *parse_or(struct parser *p);
static struct jnode *parse_unary(struct parser *p, bool filters);

/* Items up to the closing bracket, linked by next; *out is NULL for none. */
static bool parse_items(struct parser *p, const char *close, struct jnode **out)
{
    struct jnode **tail = out;
    *out = NULL;
    while (!take_op(p, close)) {
        struct jnode *item = parse_expr(p);
        if (!item)
            return false;
        /* The same node may not stand in two lists, so each item gets its own link. */
        *tail = new_node(p, JN_ARG, item);
        if (!*tail)
            return false;
        tail = &(*tail)->next;
        if (!take_op(p, ",") && !is_op(p, close)) {
            unexpected(p);
            return false;
        }
    }
    return true;
}

static bool parse_args(struct parser *p, struct jnode **out)
{
    struct jnode **tail = out;
    *out = NULL;
    while (!take_op(p, ")")) {
        const char *name = NULL;
        if (is_op(p, "*") || is_op(p, "**")) {
            wrong(p, ERR_UNSUPPORTED, "spread arguments are not supported", "");
            return false;
        }
        if (p->t->kind == JT_NAME && p->t[1].kind == JT_OP && !strcmp(p->t[1].s, "=")) {
            name = p->t->s;
            p->t += 2;
        }
        struct jnode *value = parse_expr(p);
        *tail = value ? new_node(p, JN_ARG, value) : NULL;
        if (!*tail)
            return false;
        (*tail)->name = name;
        tail = &(*tail)->next;
        if (!take_op(p, ",") && !is_op(p, ")")) {
            unexpected(p);
            return false;
        }
    }
    return true;
}

static struct jnode *parse_dict(struct parser *p)
{
    struct jnode *n = new_node(p, JN_DICT, NULL);
    struct jnode **keys = n ? &n->a : NULL, **values = n ? &n->b : NULL;
    while (n && !take_op(p, "}")) {
        struct jnode *key = parse_expr(p);
        struct jnode *value = key && need_op(p, ":") ? parse_expr(p) : NULL;
        *keys = value ? new_node(p, JN_ARG, key) : NULL;
        *values = *keys ? new_node(p, JN_ARG, value) : NULL;
        if (!*values)
            return NULL;
        keys = &(*keys)->next;
        values = &(*values)->next;
        if (!take_op(p, ",") && !is_op(p, "}"))
            return unexpected(p);
    }
    return n;
}

/* (x) is x; (x,) and (x, y) are lists to us. */
static struct jnode *parse_paren(struct parser *p)
{
    struct jnode *n, *first;
    if (take_op(p, ")"))
        return new_node(p, JN_LIST, NULL);
    first = parse_expr(p);
    if (!first || take_op(p, ")"))
        return first;
    if (!need_op(p, ",") || !(n = new_node(p, JN_LIST, NULL)))
        return NULL;
    n->a = new_node(p, JN_ARG, first);
    return n->a && parse_items(p, ")", &n->a->next) ? n : NULL;
}

static struct jnode *constant(struct parser *p, struct jvalue v)
{
    struct jnode *n = new_node(p, JN_CONST, NULL);
    if (n)
        n->value = v;
    return n;
}

static struct jnode *parse_name(struct parser *p)
{
    static const char *const words[] = {"true", "True", "false", "False", "none", "None"};
    const char *name = (p->t++)->s;
    for (int i = 0; i < 6; i++)
        if (!strcmp(name, words[i]))
            return constant(p, i < 4 ? (struct jvalue){J_BOOL, {.b = i < 2}}
                                     : (struct jvalue){J_NONE, {0}});
    struct jnode *n = new_node(p, JN_NAME, NULL);
    if (n)
        n->name = name;
    return n;
}

/* Neighbouring string literals are one. */
static struct jnode *parse_strings(struct parser *p)
{
    size_t n = 0, used = 0;
    const struct jtoken *first = p->t;
    for (; p->t->kind == JT_STR; p->t++)
        n += p->t->n;
    if (p->t == first + 1)
        return constant(p, (struct jvalue){J_STR, {.str = {first->s, NULL, first->n}}});
    char *joined = jarena_alloc(p->arena, n + 1);
    if (!joined)
        return wrong(p, ERR_NOMEM, "out of memory", "");
    for (; first < p->t; used += first->n, first++)
        memcpy(joined + used, first->s, first->n);
    return constant(p, (struct jvalue){J_STR, {.str = {joined, NULL, n}}});
}

static struct jnode *parse_primary(struct parser *p)
{
    struct jnode *n;
    switch (p->t->kind) {
    case JT_NAME: return parse_name(p);
    case JT_STR: return parse_strings(p);
    case JT_INT:
    case JT_FLOAT: return constant(p, (p->t++)->value);
    default: break;
    }
    if (take_op(p, "("))
        return parse_paren(p);
    if (take_op(p, "{"))
        return parse_dict(p);
    if (!take_op(p, "["))
        return unexpected(p);
    n = new_node(p, JN_LIST, NULL);
    return n && parse_items(p, "]", &n->a) ? n : NULL;
}

/* Behind "obj[": an index or a slice, up to and with "]". */
static struct jnode *parse_subscript(struct parser *p, struct jnode *obj)
{
    struct jnode *part[3] = {NULL, NULL, NULL};
    int colons = 0;
    while (!is_op(p, "]")) {
        if (is_op(p, ":") && colons < 2) {
            colons++;
            p->t++;
            continue;
        }
        if (part[colons])
            return unexpected(p);
        part[colons] = parse_expr(p);
        if (!part[colons])
            return NULL;
    }
    p->t++;
    if (!colons && !part[0])
        return unexpected(p);
    struct jnode *n = new_node(p, colons ? JN_SLICE : JN_INDEX, obj);
    if (n) {
        n->b = part[0];
        n->c = part[1];
        n->d = part[2];
    }
    return n;
}

static struct jnode *parse_call(struct parser *p, struct jnode *callee)
{
    struct jnode *n = new_node(p, JN_CALL, callee);
    return n && parse_args(p, &n->args) ? n : NULL;
}

static struct jnode *parse_postfix(struct parser *p, struct jnode *n)
{
    while (n) {
        if (take_op(p, "(")) {
            n = parse_call(p, n);
        } else if (take_op(p, "[")) {
            n = parse_subscript(p, n);
        } else if (take_op(p, ".")) {
            if (p->t->kind == JT_INT) { /* items.0 */
                struct jnode *key = constant(p, (p->t++)->value);
                n = key ? new_node(p, JN_INDEX, n) : NULL;
                if (n)
                    n->b = key;
                continue;
            }
            const char *name = need_name(p);
            n = name ? new_node(p, JN_ATTR, n) : NULL;
            if (n)
                n->name = name;
        } else {
            break;
        }
    }
    return n;
}

static struct jnode *parse_filter(struct parser *p, struct jnode *obj)
{
    if (p->t->kind == JT_NAME && !jfind_filter(p->t->s))
        return wrong(p, ERR_UNSUPPORTED, "unknown filter", p->t->s);
    const char *name = need_name(p);
    struct jnode *n = name ? new_node(p, JN_FILTER, obj) : NULL;
    if (!n)
        return NULL;
    n->name = name;
    return !take_op(p, "(") || parse_args(p, &n->args) ? n : NULL;
}

/* A test may take one argument without brackets: "x is divisibleby 3". */
static bool test_argument_follows(const struct parser *p)
{
    if (p->t->kind == JT_NAME)
        return !is_word(p, "else") && !is_word(p, "or") && !is_word(p, "and") &&
               !is_word(p, "if") && !is_word(p, "is") && !is_word(p, "in") && !is_word(p, "not");
    return p->t->kind == JT_STR || p->t->kind == JT_INT || p->t->kind == JT_FLOAT ||
           is_op(p, "[") || is_op(p, "{");
}

static struct jnode *parse_test(struct parser *p, struct jnode *obj)
{
    bool negate = take_word(p, "not");
    if (p->t->kind == JT_NAME && !jfind_test(p->t->s))
        return wrong(p, ERR_UNSUPPORTED, "unknown test", p->t->s);
    const char *name = need_name(p);
    struct jnode *n = name ? new_node(p, JN_TEST, obj) : NULL;
    if (!n)
        return NULL;
    n->name = name;
    if (take_op(p, "(")) {
        if (!parse_args(p, &n->args))
            return NULL;
    } else if (test_argument_follows(p)) {
        struct jnode *arg = parse_postfix(p, parse_primary(p));
        n->args = arg ? new_node(p, JN_ARG, arg) : NULL;
        if (!n->args)
            return NULL;
    }
    return negate ? new_node(p, JN_NOT, n) : n;
}

static struct jnode *parse_filters(struct parser *p, struct jnode *n)
{
    while (n) {
        if (take_op(p, "|"))
            n = parse_filter(p, n);
        else if (take_word(p, "is"))
            n = parse_test(p, n);
        else if (take_op(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    return n;
}

static struct jnode *parse_unary(struct parser *p, bool filters)
{
    struct jnode *n;
    if (++p->nesting > JINJA_MAX_NESTING)
        return wrong(p, ERR_LIMIT, "too deeply nested", "");
    if (take_op(p, "-")) {
        n = parse_unary(p, false);
        n = n ? new_node(p, JN_NEGATE, n) : NULL;
    } else if (take_op(p, "+")) {
        n = parse_unary(p, false);
        n = n ? new_node(p, JN_POSITIVE, n) : NULL;
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    p->nesting--;
    return filters ? parse_filters(p, n) : n;
}

static struct jnode *binary(struct parser *p, const char *op, struct jnode *a, struct jnode *b)
{
    struct jnode *n = a && b ? new_node(p, JN_BINARY, a) : NULL;
    if (n) {
        n->name = op;
        n->b = b;
    }
    return n;
}

/* The binary operators by rising precedence; comparisons are apart, as they chain. */
static const char *const levels[][4] = {{"+", "-"}, {"~"}, {"*", "/", "//", "%"}};

static struct jnode *parse_level(struct parser *p, int level)
{
    struct jnode *n = level == 3 ? parse_unary(p, true) : parse_level(p, level + 1);
    while (n && level < 3) {
        const char *op = NULL;
        for (int i = 0; i < 4 && levels[level][i]; i++)
            if (take_op(p, levels[level][i]))
                op = levels[level][i];
        if (!op)
            break;
        n = binary(p, op, n, parse_level(p, level + 1));
    }
    if (n && level == 3 && is_op(p, "**"))
        return wrong(p, ERR_UNSUPPORTED, "unknown operator", "**");
    return n;
}

static const char *take_comparison(struct parser *p)
{
    static const char *const ops[] = {"==", "!=", "<=", ">=", "<", ">"};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (take_op(p, ops[i]))
            return ops[i];
    if (take_word(p, "in"))
        return "in";
    if (is_word(p, "not") && p->t[1].kind == JT_NAME && !strcmp(p->t[1].s, "in")) {
        p->t += 2;
        return "not in";
    }
    return NULL;
}

static struct jnode *parse_compare(struct parser *p)
{
    struct jnode *left = parse_level(p, 0), *all = NULL, *one;
    const char *op;
    while (left && (op = take_comparison(p))) {
        struct jnode *right = parse_level(p, 0);
        one = binary(p, op, left, right);
        if (one && all) { /* a < b < c is a < b and b < c */
            struct jnode *both = new_node(p, JN_AND, all);
            if (both)
                both->b = one;
            one = both;
        }
        if (!one)
            return NULL;
        all = one;
        left = right;
    }
    return all ? all : left;
}

static struct jnode *parse_not(struct parser *p)
{
    if (!take_word(p, "not"))
        return parse_compare(p);
    if (++p->nesting > JINJA_MAX_NESTING)
        return wrong(p, ERR_LIMIT, "too deeply nested", "");
    struct jnode *n = parse_not(p);
    p->nesting--;
    return n ? new_node(p, JN_NOT, n) : NULL;
}

static struct jnode *parse_and(struct parser *p)
{
    struct jnode *n = parse_not(p);
    while (n && take_word(p, "and")) {
        struct jnode *b = parse_not(p);
        n = b ? new_node(p, JN_AND, n) : NULL;
        if (n)
            n->b = b;
    }
    return n;
}

static struct jnode *parse_or(struct parser *p)
{
    struct jnode *n = parse_and(p);
    while (n && take_word(p, "or")) {
        struct jnode *b = parse_and(p);
        n = b ? new_node(p, JN_OR, n) : NULL;
        if (n)
            n->b = b;
    }
    return n;
}

static struct jnode *parse_expr(struct parser *p)
{
    if (++p->nesting > JINJA_MAX_NESTING)
        return wrong(p, ERR_LIMIT, "too deeply nested", "");
    struct jnode *n = parse_or(p);
    while (n && take_word(p, "if")) {
        struct jnode *test = parse_or(p), *other = NULL;
        if (test && take_word(p, "else"))
            other = parse_expr(p);
        if (!test || p->failed)
            return NULL;
        struct jnode *cond = new_node(p, JN_COND, test);
        if (cond) {
            cond->b = n;
            cond->c = other;
        }
        n = cond;
    }
    p->nesting--;
    return n;
}

static bool parse_body(struct parser *p, const char *const *ends, struct jnode **out);

static bool block_end(struct parser *p)
{
    if (p->t->kind == JT_BLOCK_END) {
        p->t++;
        return true;
    }
    unexpected(p);
    return false;
}

static struct jnode *parse_if(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct jnode *n = new_node(p, JN_IF, NULL), *first = n;
    for (;;) {
        if (!n || !(n->a = parse_expr(p)) || !block_end(p) || !parse_body(p, ends, &n->body))
            return NULL;
        if (!take_word(p, "elif"))
            break;
        n->orelse = new_node(p, JN_IF, NULL);
        n = n->orelse;
    }
    if (take_word(p, "else") && (!block_end(p) || !parse_body(p, ends + 2, &n->orelse)))
        return NULL;
    return take_word(p, "endif") ? first : unexpected(p);
}

/* Names, "a, b" or "(a, b)", linked by next. */
static bool parse_targets(struct parser *p, struct jnode **out)
{
    bool paren = take_op(p, "(");
    for (;;) {
        const char *name = need_name(p);
        struct jnode *n = name ? new_node(p, JN_NAME, NULL) : NULL;
        if (!n)
            return false;
        n->name = name;
        *out = n;
        out = &n->next;
        if (!take_op(p, ","))
            return !paren || need_op(p, ")");
    }
}

static struct jnode *parse_for(struct parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct jnode *n = new_node(p, JN_FOR, NULL);
    if (!n || !parse_targets(p, &n->targets))
        return NULL;
    if (!take_word(p, "in"))
        return unexpected(p);
    n->a = parse_or(p);
    if (n->a && take_word(p, "if") && !(n->b = parse_expr(p)))
        return NULL;
    if (is_word(p, "recursive"))
        return wrong(p, ERR_UNSUPPORTED, "recursive loops are not supported", "");
    if (!n->a || !block_end(p) || !parse_body(p, ends, &n->body))
        return NULL;
    if (take_word(p, "else") && (!block_end(p) || !parse_body(p, ends + 1, &n->orelse)))
        return NULL;
    return take_word(p, "endfor") ? n : unexpected(p);
}

static struct jnode *parse_set(struct parser *p)
{
    static const char *const ends[] = {"endset", NULL};
    struct jnode *n = new_node(p, JN_SET, NULL);
    if (!n)
        return NULL;
    if (p->t->kind == JT_NAME && p->t[1].kind == JT_OP && !strcmp(p->t[1].s, ".")) {
        const char *space = (p->t++)->s;
        p->t++;
        const char *name = need_name(p);
        n->targets = name ? new_node(p, JN_ATTR, new_node(p, JN_NAME, NULL)) : NULL;
        if (!n->targets || !n->targets->a)
            return NULL;
        n->targets->name = name;
        n->targets->a->name = space;
    } else if (!parse_targets(p, &n->targets)) {
        return NULL;
    }
    if (take_op(p, "=")) {
        n->a = parse_expr(p);
        if (n->a && is_op(p, ",")) { /* a = b, c */
            struct jnode *list = new_node(p, JN_LIST, NULL);
            if (!list || !(list->a = new_node(p, JN_ARG, n->a)))
                return NULL;
            for (struct jnode **tail = &list->a->next; take_op(p, ","); tail = &(*tail)->next) {
                struct jnode *item = parse_expr(p);
                if (!item || !(*tail = new_node(p, JN_ARG, item)))
                    return NULL;
            }
            n->a = list;
        }
        return n->a ? n : NULL;
    }
    if (n->targets->kind != JN_NAME || n->targets->next || p->t->kind != JT_BLOCK_END)
        return unexpected(p);
    n->kind = JN_SET_BLOCK;
    n->name = n->targets->name;
    if (!block_end(p) || !parse_body(p, ends, &n->body))
        return NULL;
    return take_word(p, "endset") ? n : unexpected(p);
}

static struct jnode *parse_macro(struct parser *p)
{
    static const char *const ends[] = {"endmacro", NULL};
    struct jnode *n = new_node(p, JN_MACRO, NULL), **tail = n ? &n->args : NULL;
    if (!n || !(n->name = need_name(p)) || !need_op(p, "("))
        return NULL;
    while (!take_op(p, ")")) {
        const char *name = need_name(p);
        struct jnode *arg = name ? new_node(p, JN_ARG, NULL) : NULL;
        if (!arg)
            return NULL;
        arg->name = name;
        if (take_op(p, "=") && !(arg->a = parse_expr(p)))
            return NULL;
        *tail = arg;
        tail = &arg->next;
        if (!take_op(p, ",") && !is_op(p, ")"))
            return unexpected(p);
    }
    if (!block_end(p) || !parse_body(p, ends, &n->body))
        return NULL;
    take_word(p, "endmacro");
    if (p->t->kind == JT_NAME) /* endmacro may repeat the name */
        p->t++;
    return n;
}

/* transformers marks the assistant's words for training; here the body is what counts. */
static struct jnode *parse_generation(struct parser *p)
{
    static const char *const ends[] = {"endgeneration", NULL};
    struct jnode *n = new_node(p, JN_IF, NULL);
    if (!n || !(n->a = constant(p, jbool(true))) || !block_end(p) || !parse_body(p, ends, &n->body))
        return NULL;
    return take_word(p, "endgeneration") ? n : unexpected(p);
}

static struct jnode *parse_statement(struct parser *p)
{
    struct jnode *n;
    if (p->t->kind != JT_NAME)
        return unexpected(p);
    if (take_word(p, "if"))
        n = parse_if(p);
    else if (take_word(p, "for"))
        n = parse_for(p);
    else if (take_word(p, "set"))
        n = parse_set(p);
    else if (take_word(p, "macro"))
        n = parse_macro(p);
    else if (take_word(p, "generation"))
        n = parse_generation(p);
    else if (take_word(p, "break"))
        n = new_node(p, JN_BREAK, NULL);
    else if (take_word(p, "continue"))
        n = new_node(p, JN_CONTINUE, NULL);
    else
        return wrong(p, ERR_UNSUPPORTED, "unknown statement", p->t->s);
    return n && block_end(p) ? n : NULL;
}

static struct jnode *parse_piece(struct parser *p)
{
    struct jnode *n;
    if (p->t->kind == JT_TEXT) {
        n = new_node(p, JN_TEXT, NULL);
        if (n)
            n->value = jtext(p->t->s, p->t->n);
        p->t++;
        return n;
    }
    if (p->t->kind == JT_BLOCK_BEGIN) {
        p->t++;
        return parse_statement(p);
    }
    p->t++; /* JT_VAR_BEGIN */
    n = parse_expr(p);
    n = n ? new_node(p, JN_OUTPUT, n) : NULL;
    if (n && p->t->kind != JT_VAR_END)
        return unexpected(p);
    p->t++;
    return n;
}

static bool ends_here(const struct parser *p, const char *const *ends)
{
    if (p->t->kind != JT_BLOCK_BEGIN)
        return false;
    for (; *ends; ends++)
        if (p->t[1].kind == JT_NAME && !strcmp(p->t[1].s, *ends))
            return true;
    return false;
}

/* Pieces up to one of the ends, whose name is then the current token. */
static bool parse_body(struct parser *p, const char *const *ends, struct jnode **out)
{
    static const char *const stray[] = {"else",     "elif",   "endif",         "endfor",
                                        "endmacro", "endset", "endgeneration", NULL};
    if (++p->nesting > JINJA_MAX_NESTING) {
        wrong(p, ERR_LIMIT, "too deeply nested", "");
        return false;
    }
    while (!ends_here(p, ends)) {
        if (p->t->kind == JT_END && !*ends) {
            p->nesting--;
            return true;
        }
        if (p->t->kind == JT_END || ends_here(p, stray)) {
            p->t += p->t->kind != JT_END;
            unexpected(p);
            return false;
        }
        *out = parse_piece(p);
        if (!*out)
            return false;
        out = &(*out)->next;
    }
    p->t++;
    p->nesting--;
    return true;
}

int jinja_parse(struct jarena *a, const struct jtokens *tokens, struct jnode **out, struct err *e)
{
    static const char *const none[] = {NULL};
    struct err own = {0};
    struct parser p = {.arena = a, .t = tokens->v, .e = e ? e : &own};
    *out = NULL;
    return parse_body(&p, none, out) ? OK : p.e->status ? p.e->status : ERR_FORMAT;
}

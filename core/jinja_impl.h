/* jinja_impl: what the rooms of the interpreter share: memory, tokens, syntax tree, values. */
#ifndef MLATHE_CORE_JINJA_IMPL_H
#define MLATHE_CORE_JINJA_IMPL_H

#include "core/jinja.h"

#define JINJA_MAX_SOURCE ((size_t)1 << 20)
#define JINJA_MAX_MEMORY ((size_t)128 << 20) /* values of one rendering */
#define JINJA_MAX_OUTPUT ((size_t)32 << 20)
#define JINJA_MAX_STEPS 4000000L
#define JINJA_MAX_NESTING 100 /* of brackets and blocks in the source */
#define JINJA_MAX_DEPTH 600   /* of evaluation; a frame takes well under 2 KiB of stack */
#define JINJA_MAX_RANGE 100000

/* Memory that goes all at once. */
struct jarena {
    struct jblock *blocks;
    size_t total, limit;
};
/* Zeroed; NULL when memory or the limit is out. */
void *jarena_alloc(struct jarena *a, size_t n);
void jarena_free(struct jarena *a);

enum jkind {
    J_UNDEF,
    J_NONE,
    J_BOOL,
    J_INT,
    J_FLOAT,
    J_STR,
    J_LIST,
    J_MAP,
    J_NAMESPACE,
    J_LOOP,
    J_FUNC,
    J_METHOD,
    J_MACRO
};

struct jstr {
    const char *s;
    const char *mark; /* a byte each, 1: the user's; NULL: all the template's */
    size_t n;
};

struct jvalue {
    enum jkind kind;
    union {
        bool b;
        int64_t i;
        double f;
        const char *why; /* J_UNDEF: what is missing */
        struct jstr str;
        struct jlist *list;
        struct jmap *map;
        struct jloop *loop;
        const struct jfunc *func;
        struct jmethod *method;
        const struct jnode *macro;
    } u;
};

struct jlist {
    struct jvalue *v;
    size_t n, cap;
};
struct jmap {
    struct jvalue *keys, *values;
    size_t n, cap;
};
struct jloop {
    const struct jlist *items;
    size_t at;
};
struct jmethod {
    struct jvalue self;
    const struct jfunc *func;
};

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

/* Growing text with its marks. */
struct jbuf {
    char *s, *mark;
    size_t n, s_cap, mark_cap;
};

struct jrun {
    struct jarena arena;
    struct jscope *scope, *root;
    struct jbuf *out;
    struct err *e;
    const struct jnode *at; /* the node being worked on, for messages */
    long steps;
    int depth;
    bool breaks, continues;
    int year, month, day;
};

struct jargs {
    const struct jvalue *v;
    const char *const *names; /* NULL: by position */
    size_t n;
};
typedef int (*jcall_fn)(struct jrun *r, struct jvalue self, const struct jargs *args,
                        struct jvalue *out);
struct jfunc {
    const char *name;
    jcall_fn call;
};
/* The argument called name or at position at; false when it is not given. */
bool jarg(const struct jargs *args, size_t at, const char *name, struct jvalue *out);

/* jinja_value.c. jfail gives ERR_UNSUPPORTED with the line; jspend counts work. */
int jfail(struct jrun *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int jspend(struct jrun *r, size_t work);
void *jalloc(struct jrun *r, size_t n);
int jnomem(struct jrun *r);
struct jvalue jbool(bool b);
struct jvalue jint(int64_t i);
struct jvalue jtext(const char *s, size_t n); /* borrowed, the template's */
int jundef(struct jrun *r, struct jvalue *out, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const char *jtype_name(const struct jvalue *v);
struct jvalue jsub(struct jstr s, size_t begin, size_t end);
int jconcat(struct jrun *r, struct jstr a, struct jstr b, struct jvalue *out);
int jlist_new(struct jrun *r, size_t cap, struct jvalue *out);
int jlist_push(struct jrun *r, struct jlist *l, struct jvalue v);
int jmap_new(struct jrun *r, size_t cap, struct jvalue *out);
int jmap_set(struct jrun *r, struct jmap *m, struct jvalue key, struct jvalue v);
/* NULL when there is none. */
const struct jvalue *jmap_get(const struct jmap *m, const char *key, size_t n);
bool jtruth(const struct jvalue *v);
int jequal(struct jrun *r, const struct jvalue *a, const struct jvalue *b, bool *out);
int jcontains(struct jrun *r, const struct jvalue *in, const struct jvalue *what, bool *out);
/* The items of anything that can be looped over. */
int jitems(struct jrun *r, const struct jvalue *v, struct jlist **out);
int jimport(struct jrun *r, const cJSON *item, bool user, int depth, struct jvalue *out);

/* jinja_text.c */
int jbuf_put(struct jrun *r, struct jbuf *b, const char *s, const char *mark, char fill, size_t n);
void jbuf_free(struct jbuf *b);
/* The buffer's content as a value; frees the buffer. */
int jbuf_take(struct jrun *r, struct jbuf *b, struct jvalue *out);
/* What {{ v }} prints. */
int jprint(struct jrun *r, struct jbuf *b, const struct jvalue *v);
int jto_str(struct jrun *r, const struct jvalue *v, struct jstr *out);
/* indent < 0: on one line. */
int jto_json(struct jrun *r, struct jbuf *b, const struct jvalue *v, int indent);

/* jinja_eval.c */
int jcall(struct jrun *r, const struct jvalue *callee, const struct jargs *args,
          struct jvalue *out);
int jattr(struct jrun *r, const struct jvalue *obj, const char *name, struct jvalue *out);
int jindex(struct jrun *r, const struct jvalue *obj, const struct jvalue *key, struct jvalue *out);

/* jinja_lib.c and jinja_str.c; NULL when unknown. Tests give a bool. */
const struct jfunc *jfind_filter(const char *name);
const struct jfunc *jfind_test(const char *name);
const struct jfunc *jfind_global(const char *name);
const struct jfunc *jfind_method(enum jkind kind, const char *name);
int jstr_strip(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out);
int jstr_replace(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out);
int jstr_upper(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out);
int jstr_lower(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out);
int jstr_title(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out);
int jstr_capitalize(struct jrun *r, struct jvalue self, const struct jargs *args,
                    struct jvalue *out);
size_t jstr_length(struct jstr s);

#endif

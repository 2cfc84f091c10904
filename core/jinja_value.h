/* jinja_value: limits, memory and the types of values of the interpreter. */
#ifndef MLATHE_CORE_JINJA_VALUE_H
#define MLATHE_CORE_JINJA_VALUE_H

#include "core/base.h"

#define JINJA_MAX_SOURCE ((size_t)1 << 20)
#ifndef JINJA_MAX_STEPS /* fuzzers have less, to reach the limits more often */
#define JINJA_MAX_MEMORY ((size_t)128 << 20) /* values of one rendering */
#define JINJA_MAX_OUTPUT ((size_t)32 << 20)
#define JINJA_MAX_STEPS 4000000L
#endif
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

#endif

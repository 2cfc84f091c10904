/* jinja_impl: a rendering's state and what the rooms of the interpreter offer each other. */
#ifndef MLATHE_CORE_JINJA_IMPL_H
#define MLATHE_CORE_JINJA_IMPL_H

#include "core/jinja.h"
#include "core/jinja_syntax.h"

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
    bool lacking; /* it failed for something that we do not have */
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
/* As jfail, for what a complete interpreter would do. */
int jlack(struct jrun *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
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

/* jinja_ops.c */
int jattr(struct jrun *r, const struct jvalue *obj, const char *name, struct jvalue *out);
int jindex(struct jrun *r, const struct jvalue *obj, const struct jvalue *key, struct jvalue *out);
int jarithmetic(struct jrun *r, const char *op, const struct jvalue *a, const struct jvalue *b,
                struct jvalue *out);
/* Any operator of two values but and, or. */
int jbinary(struct jrun *r, const char *op, const struct jvalue *a, const struct jvalue *b,
            struct jvalue *out);

/* jinja_eval.c */
int jcall(struct jrun *r, const struct jvalue *callee, const struct jargs *args,
          struct jvalue *out);

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

/* Expressions and statements. Scopes are linked lists, as chat templates have a handful of names;
 * a loop's body and a macro get their own scope, an if does not (as in Jinja). */
#include "core/jinja_impl.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ARGS 32

struct jname {
    struct jname *next;
    const char *name;
    struct jvalue value;
};
struct jscope {
    struct jscope *outer;
    struct jname *names;
};

struct jinja {
    struct jarena arena;
    struct jnode *body;
};

static int eval(struct jrun *r, const struct jnode *n, struct jvalue *out);
static int exec_list(struct jrun *r, const struct jnode *n);

/* Every eval and exec enters here: it counts steps and depth. */
static int enter(struct jrun *r, const struct jnode *n)
{
    r->at = n;
    if (++r->depth > JINJA_MAX_DEPTH) {
        r->depth--;
        return err_set(r->e, ERR_LIMIT, "chat template line %d: nested too deeply", n->line);
    }
    int rc = jspend(r, 0);
    r->depth -= rc != 0;
    return rc;
}

static int set_name(struct jrun *r, struct jscope *scope, const char *name, struct jvalue v)
{
    for (struct jname *at = scope->names; at; at = at->next)
        if (!strcmp(at->name, name)) {
            at->value = v;
            return OK;
        }
    struct jname *own = jalloc(r, sizeof *own);
    if (!own)
        return ERR_LIMIT;
    *own = (struct jname){scope->names, name, v};
    scope->names = own;
    return OK;
}

static int get_name(struct jrun *r, const char *name, struct jvalue *out)
{
    for (const struct jscope *s = r->scope; s; s = s->outer)
        for (const struct jname *at = s->names; at; at = at->next)
            if (!strcmp(at->name, name)) {
                *out = at->value;
                return OK;
            }
    const struct jfunc *f = jfind_global(name);
    if (!f)
        return jundef(r, out, "'%.60s' is undefined", name);
    *out = (struct jvalue){J_FUNC, {.func = f}};
    return OK;
}

static struct jscope *new_scope(struct jrun *r, struct jscope *outer)
{
    struct jscope *s = jalloc(r, sizeof *s);
    if (s)
        s->outer = outer;
    return s;
}

static int eval_items(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    int rc = jlist_new(r, 0, out);
    for (const struct jnode *item = n->a; !rc && item; item = item->next) {
        struct jvalue v;
        rc = eval(r, item->a, &v);
        if (!rc)
            rc = jlist_push(r, out->u.list, v);
    }
    return rc;
}

static int eval_dict(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    const struct jnode *k = n->a, *v = n->b;
    int rc = jmap_new(r, 0, out);
    for (; !rc && k; k = k->next, v = v->next) {
        struct jvalue key, value;
        rc = eval(r, k->a, &key);
        if (!rc)
            rc = eval(r, v->a, &value);
        if (!rc)
            rc = jmap_set(r, out->u.map, key, value);
    }
    return rc;
}

/* One bound of a slice: absent leaves *out alone. */
static int eval_bound(struct jrun *r, const struct jnode *n, int64_t *out, bool *given)
{
    struct jvalue v = {J_NONE, {0}};
    int rc = n ? eval(r, n, &v) : OK;
    *given = false;
    if (rc || v.kind == J_NONE)
        return rc;
    if (v.kind != J_INT)
        return jfail(r, "a slice bound must be a whole number, not %s", jtype_name(&v));
    *out = v.u.i;
    *given = true;
    return OK;
}

static int64_t clamp(int64_t v, int64_t lo, int64_t hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

/* Python's rules: negative bounds count from the end, out-of-range ones are clamped. */
static int eval_slice(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    struct jvalue obj;
    struct jlist *items;
    int64_t from = 0, to = 0, step = 1;
    bool has_from, has_to, has_step;
    int rc = eval(r, n->a, &obj);
    if (!rc)
        rc = eval_bound(r, n->b, &from, &has_from);
    if (!rc)
        rc = eval_bound(r, n->c, &to, &has_to);
    if (!rc)
        rc = eval_bound(r, n->d, &step, &has_step);
    if (rc)
        return rc;
    if (obj.kind == J_UNDEF)
        return jfail(r, "%s", obj.u.why);
    if (obj.kind != J_LIST && obj.kind != J_STR)
        return jfail(r, "%s cannot be sliced", jtype_name(&obj));
    if (step == 0)
        return jfail(r, "slice step cannot be zero");
    rc = jitems(r, &obj, &items);
    if (rc)
        return rc;
    int64_t len = (int64_t)items->n, lo = step < 0 ? -1 : 0, hi = step < 0 ? len - 1 : len;
    step = clamp(step, -len - 1, len + 1);
    from = has_from ? clamp(from < 0 ? from + len : from, lo, hi) : step < 0 ? hi : lo;
    to = has_to ? clamp(to < 0 ? to + len : to, lo, hi) : step < 0 ? lo : hi;
    rc = jlist_new(r, 0, out);
    struct jbuf text = {0};
    for (int64_t i = from; !rc && (step < 0 ? i > to : i < to); i += step) {
        const struct jvalue *v = &items->v[i];
        rc = obj.kind == J_LIST ? jlist_push(r, out->u.list, *v) : jprint(r, &text, v);
    }
    if (obj.kind == J_STR && !rc)
        return jbuf_take(r, &text, out);
    jbuf_free(&text);
    return rc;
}

bool jarg(const struct jargs *args, size_t at, const char *name, struct jvalue *out)
{
    size_t position = 0;
    for (size_t i = 0; i < args->n; i++) {
        bool named = args->names[i] != NULL;
        if (named ? !strcmp(args->names[i], name) : position == at) {
            *out = args->v[i];
            return true;
        }
        position += !named;
    }
    return false;
}

static int eval_args(struct jrun *r, const struct jnode *arg, struct jvalue *v, const char **names,
                     struct jargs *out)
{
    int rc = OK;
    *out = (struct jargs){v, names, 0};
    for (; !rc && arg; arg = arg->next) {
        if (out->n == MAX_ARGS)
            return jfail(r, "more than %d arguments", MAX_ARGS);
        names[out->n] = arg->name;
        rc = eval(r, arg->a, &v[out->n++]);
    }
    return rc;
}

static int call_macro(struct jrun *r, const struct jnode *macro, const struct jargs *args,
                      struct jvalue *out)
{
    struct jscope *outer = r->scope, *own = new_scope(r, r->root);
    struct jbuf text = {0}, *before = r->out;
    const struct jnode *at = r->at;
    size_t position = 0;
    int rc = own ? enter(r, macro) : ERR_LIMIT;
    if (rc)
        return rc;
    r->scope = own;
    for (const struct jnode *p = macro->args; !rc && p; p = p->next, position++) {
        struct jvalue v;
        if (!jarg(args, position, p->name, &v))
            rc = p->a ? eval(r, p->a, &v)
                      : jundef(r, &v, "parameter '%.60s' was not provided", p->name);
        if (!rc)
            rc = set_name(r, own, p->name, v);
    }
    r->out = &text;
    if (!rc)
        rc = exec_list(r, macro->body);
    r->out = before;
    r->scope = outer;
    r->at = at;
    r->depth--;
    if (!rc)
        return jbuf_take(r, &text, out);
    jbuf_free(&text);
    return rc;
}

int jcall(struct jrun *r, const struct jvalue *callee, const struct jargs *args, struct jvalue *out)
{
    struct jvalue none = {J_NONE, {0}};
    switch (callee->kind) {
    case J_FUNC: return callee->u.func->call(r, none, args, out);
    case J_METHOD: return callee->u.method->func->call(r, callee->u.method->self, args, out);
    case J_MACRO: return call_macro(r, callee->u.macro, args, out);
    case J_UNDEF: return jlack(r, "%s", callee->u.why);
    default: return jfail(r, "a %s cannot be called", jtype_name(callee));
    }
}

/* call, filter and test: a value in front and arguments in brackets. Not inlined, so that its
 * arrays do not sit in every frame of the recursion. */
static __attribute__((noinline)) int eval_call(struct jrun *r, const struct jnode *n,
                                               struct jvalue *out)
{
    struct jvalue self, v[MAX_ARGS];
    const char *names[MAX_ARGS];
    struct jargs args;
    int rc = eval(r, n->a, &self);
    if (!rc)
        rc = eval_args(r, n->args, v, names, &args);
    r->at = n;
    if (rc)
        return rc;
    if (n->kind == JN_CALL)
        return jcall(r, &self, &args, out);
    const struct jfunc *f = n->kind == JN_FILTER ? jfind_filter(n->name) : jfind_test(n->name);
    return f->call(r, self, &args, out);
}

static int eval_binary(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    struct jvalue a, b;
    int rc = eval(r, n->a, &a);
    if (!rc)
        rc = eval(r, n->b, &b);
    r->at = n;
    return rc ? rc : jbinary(r, n->name, &a, &b, out);
}

static int eval_logic(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    struct jvalue v;
    int rc = eval(r, n->a, &v);
    if (rc)
        return rc;
    switch (n->kind) {
    case JN_NOT: *out = jbool(!jtruth(&v)); return OK;
    case JN_AND:
    case JN_OR:
        if (jtruth(&v) == (n->kind == JN_AND))
            return eval(r, n->b, out);
        *out = v;
        return OK;
    default:
        if (jtruth(&v))
            return eval(r, n->b, out);
        if (n->c)
            return eval(r, n->c, out);
        return jundef(r, out,
                      "the inline if-expression evaluated to false and no else section "
                      "was defined");
    }
}

static int eval_sign(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    struct jvalue v, zero = jint(0);
    int rc = eval(r, n->a, &v);
    return rc ? rc : jarithmetic(r, n->kind == JN_NEGATE ? "-" : "+", &zero, &v, out);
}

static int eval_path(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    struct jvalue obj, key;
    int rc = eval(r, n->a, &obj);
    if (!rc && n->kind == JN_INDEX)
        rc = eval(r, n->b, &key);
    r->at = n;
    if (rc)
        return rc;
    return n->kind == JN_INDEX ? jindex(r, &obj, &key, out) : jattr(r, &obj, n->name, out);
}

static int eval(struct jrun *r, const struct jnode *n, struct jvalue *out)
{
    int rc = enter(r, n);
    if (rc)
        return rc;
    switch (n->kind) {
    case JN_CONST: *out = n->value; break;
    case JN_NAME: rc = get_name(r, n->name, out); break;
    case JN_LIST: rc = eval_items(r, n, out); break;
    case JN_DICT: rc = eval_dict(r, n, out); break;
    case JN_ATTR:
    case JN_INDEX: rc = eval_path(r, n, out); break;
    case JN_SLICE: rc = eval_slice(r, n, out); break;
    case JN_CALL:
    case JN_FILTER:
    case JN_TEST: rc = eval_call(r, n, out); break;
    case JN_NOT:
    case JN_AND:
    case JN_OR:
    case JN_COND: rc = eval_logic(r, n, out); break;
    case JN_NEGATE:
    case JN_POSITIVE: rc = eval_sign(r, n, out); break;
    case JN_BINARY: rc = eval_binary(r, n, out); break;
    default: rc = jfail(r, "not an expression"); break;
    }
    r->depth--;
    return rc;
}

/* Assigns to one name, or takes a list apart over several. */
static int assign(struct jrun *r, const struct jnode *targets, struct jvalue v)
{
    struct jlist *items;
    size_t n = 0;
    if (!targets->next)
        return set_name(r, r->scope, targets->name, v);
    for (const struct jnode *t = targets; t; t = t->next)
        n++;
    int rc = jitems(r, &v, &items);
    if (rc)
        return rc;
    if (items->n != n)
        return jfail(r, "%zu values for %zu names", items->n, n);
    for (size_t i = 0; !rc && i < n; i++, targets = targets->next)
        rc = set_name(r, r->scope, targets->name, items->v[i]);
    return rc;
}

static int exec_set(struct jrun *r, const struct jnode *n)
{
    struct jvalue v, space;
    int rc = eval(r, n->a, &v);
    if (rc || n->targets->kind == JN_NAME)
        return rc ? rc : assign(r, n->targets, v);
    rc = get_name(r, n->targets->a->name, &space);
    if (rc)
        return rc;
    if (space.kind != J_NAMESPACE)
        return jfail(r, "only a namespace's attributes can be set, not those of a %s",
                     jtype_name(&space));
    return jmap_set(r, space.u.map, jtext(n->targets->name, strlen(n->targets->name)), v);
}

static int exec_set_block(struct jrun *r, const struct jnode *n)
{
    struct jbuf text = {0}, *before = r->out;
    struct jvalue v;
    r->out = &text;
    int rc = exec_list(r, n->body);
    r->out = before;
    if (!rc)
        rc = jbuf_take(r, &text, &v);
    jbuf_free(&text);
    return rc ? rc : set_name(r, r->scope, n->name, v);
}

/* The items of a loop that its "if" lets pass. */
static int filter_items(struct jrun *r, const struct jnode *n, struct jlist **items)
{
    struct jscope *outer = r->scope;
    struct jvalue kept;
    int rc = jlist_new(r, 0, &kept);
    for (size_t i = 0; !rc && i < (*items)->n; i++) {
        struct jvalue yes;
        r->scope = new_scope(r, outer);
        rc = r->scope ? assign(r, n->targets, (*items)->v[i]) : ERR_LIMIT;
        if (!rc)
            rc = eval(r, n->b, &yes);
        if (!rc && jtruth(&yes))
            rc = jlist_push(r, kept.u.list, (*items)->v[i]);
    }
    r->scope = outer;
    *items = kept.u.list;
    return rc;
}

static int exec_for(struct jrun *r, const struct jnode *n)
{
    struct jscope *outer = r->scope;
    struct jvalue over;
    struct jlist *items;
    int rc = eval(r, n->a, &over);
    if (!rc)
        rc = jitems(r, &over, &items);
    if (!rc && n->b)
        rc = filter_items(r, n, &items);
    if (rc)
        return rc;
    if (!items->n)
        return exec_list(r, n->orelse);
    struct jloop *loop = jalloc(r, sizeof *loop);
    if (!loop)
        return ERR_LIMIT;
    loop->items = items;
    for (; !rc && loop->at < items->n && !r->breaks; loop->at++) {
        r->at = n;
        rc = jspend(r, 0);
        r->scope = rc ? outer : new_scope(r, outer);
        if (!r->scope)
            rc = ERR_LIMIT;
        if (!rc)
            rc = assign(r, n->targets, items->v[loop->at]);
        if (!rc)
            rc = set_name(r, r->scope, "loop", (struct jvalue){J_LOOP, {.loop = loop}});
        if (!rc)
            rc = exec_list(r, n->body);
        r->continues = false;
    }
    r->breaks = false;
    r->scope = outer;
    return rc;
}

static int exec(struct jrun *r, const struct jnode *n)
{
    struct jvalue v;
    int rc = enter(r, n);
    if (rc)
        return rc;
    switch (n->kind) {
    case JN_TEXT: rc = jprint(r, r->out, &n->value); break;
    case JN_OUTPUT:
        rc = eval(r, n->a, &v);
        if (!rc)
            rc = jprint(r, r->out, &v);
        break;
    case JN_IF:
        rc = eval(r, n->a, &v);
        if (!rc)
            rc = exec_list(r, jtruth(&v) ? n->body : n->orelse);
        break;
    case JN_FOR: rc = exec_for(r, n); break;
    case JN_SET: rc = exec_set(r, n); break;
    case JN_SET_BLOCK: rc = exec_set_block(r, n); break;
    case JN_MACRO:
        rc = set_name(r, r->scope, n->name, (struct jvalue){J_MACRO, {.macro = n}});
        break;
    case JN_BREAK: r->breaks = true; break;
    case JN_CONTINUE: r->continues = true; break;
    default: rc = jfail(r, "not a statement"); break;
    }
    r->depth--;
    return rc;
}

static int exec_list(struct jrun *r, const struct jnode *n)
{
    int rc = OK;
    for (; !rc && n && !r->breaks && !r->continues; n = n->next)
        rc = exec(r, n);
    return rc;
}

int jinja_new(struct jinja **out, const char *source, size_t n, struct err *e)
{
    struct jtokens tokens = {0};
    struct jinja *j = mem_calloc(1, sizeof *j);
    *out = NULL;
    if (!j)
        return err_nomem(e, sizeof *j, "a chat template");
    j->arena.limit = JINJA_MAX_MEMORY;
    int rc = jinja_lex(&j->arena, source, n, &tokens, e);
    if (!rc)
        rc = jinja_parse(&j->arena, &tokens, &j->body, e);
    free(tokens.v);
    if (rc)
        jinja_free(j);
    else
        *out = j;
    return rc;
}

void jinja_free(struct jinja *j)
{
    if (j)
        jarena_free(&j->arena);
    free(j);
}

static void use_date(struct jrun *r, const cJSON *date)
{
    long long year = 2024, month = 7, day = 26;
    json_int_opt(date, "year", 1, 9999, &year, "__date", NULL);
    json_int_opt(date, "month", 1, 12, &month, "__date", NULL);
    json_int_opt(date, "day", 1, 31, &day, "__date", NULL);
    r->year = (int)year;
    r->month = (int)month;
    r->day = (int)day;
}

/* The output and the stretches of it that are the template's. */
static int finish(struct jbuf *b, struct jinja_text *out, struct err *e)
{
    size_t cap = 0, parts_cap = 0;
    if (!b->s && !mem_grow((void **)&b->s, &cap, 1, 1))
        return err_nomem(e, 1, "a chat");
    b->s[b->n] = '\0';
    for (size_t i = 0; i < b->n; i++) {
        if (b->mark[i])
            continue;
        size_t begin = i;
        while (i < b->n && !b->mark[i])
            i++;
        if (!mem_grow((void **)&out->parts, &parts_cap, out->n_parts + 1, sizeof *out->parts))
            return err_nomem(e, 16, "a chat");
        out->parts[out->n_parts++] = (struct tokenizer_part){begin, i};
    }
    out->s = b->s;
    out->n = b->n;
    b->s = NULL;
    return OK;
}

int jinja_render(const struct jinja *j, const struct jinja_var *vars, size_t n_vars,
                 struct jinja_text *out, struct err *e)
{
    struct jbuf text = {0};
    struct jrun r = {.arena.limit = JINJA_MAX_MEMORY, .out = &text, .e = e};
    struct jvalue v;
    int rc = OK;
    *out = (struct jinja_text){0};
    use_date(&r, NULL);
    r.scope = r.root = new_scope(&r, NULL);
    if (!r.root)
        rc = ERR_NOMEM;
    for (size_t i = 0; !rc && i < n_vars; i++) {
        if (!strcmp(vars[i].name, "__date")) {
            use_date(&r, vars[i].value);
            continue;
        }
        rc = jimport(&r, vars[i].value, vars[i].user, 0, &v);
        if (!rc)
            rc = set_name(&r, r.root, vars[i].name, v);
    }
    if (!rc)
        rc = exec_list(&r, j->body);
    if (!rc)
        rc = finish(&text, out, e);
    if (rc)
        jinja_text_free(out);
    out->lacking = rc && r.lacking;
    jbuf_free(&text);
    jarena_free(&r.arena);
    return rc;
}

void jinja_text_free(struct jinja_text *t)
{
    free(t->s);
    free(t->parts);
    *t = (struct jinja_text){0};
}

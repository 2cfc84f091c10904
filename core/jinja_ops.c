/* Operators on values: attributes and elements, comparison, arithmetic, concatenation. */
#include "core/jinja_impl.h"

#include <math.h>
#include <string.h>

#include "core/utf8.h"

/* Position of code point at (negative: from the end), or false. */
static bool char_at(struct jstr s, int64_t at, size_t *begin, size_t *end)
{
    int64_t n = (int64_t)jstr_length(s), i = 0;
    size_t len, pos = 0;
    uint32_t cp;
    at = at < 0 ? at + n : at;
    if (at < 0 || at >= n)
        return false;
    for (;; i++, pos += len) {
        utf8_next(s.s + pos, s.n - pos, &cp, &len);
        if (i == at)
            break;
    }
    *begin = pos;
    *end = pos + len;
    return true;
}

static int loop_attr(struct jrun *r, const struct jloop *l, const char *name, struct jvalue *out)
{
    int64_t at = (int64_t)l->at, n = (int64_t)l->items->n;
    if (!strcmp(name, "index0"))
        *out = jint(at);
    else if (!strcmp(name, "index"))
        *out = jint(at + 1);
    else if (!strcmp(name, "first"))
        *out = jbool(at == 0);
    else if (!strcmp(name, "last"))
        *out = jbool(at + 1 == n);
    else if (!strcmp(name, "length"))
        *out = jint(n);
    else if (!strcmp(name, "revindex"))
        *out = jint(n - at);
    else if (!strcmp(name, "revindex0"))
        *out = jint(n - at - 1);
    else if (!strcmp(name, "previtem") && at > 0)
        *out = l->items->v[at - 1];
    else if (!strcmp(name, "nextitem") && at + 1 < n)
        *out = l->items->v[at + 1];
    else if (!strcmp(name, "previtem") || !strcmp(name, "nextitem"))
        return jundef(r, out, "there is no %s item", *name == 'p' ? "previous" : "next");
    else
        return jlack(r, "unknown loop attribute \"%.60s\"", name);
    return OK;
}

int jattr(struct jrun *r, const struct jvalue *obj, const char *name, struct jvalue *out)
{
    if (obj->kind == J_UNDEF)
        return jfail(r, "%s", obj->u.why);
    if (obj->kind == J_LOOP)
        return loop_attr(r, obj->u.loop, name, out);
    const struct jfunc *f = jfind_method(obj->kind, name);
    if (f) {
        struct jmethod *m = jalloc(r, sizeof *m);
        if (!m)
            return ERR_LIMIT;
        *m = (struct jmethod){*obj, f};
        *out = (struct jvalue){J_METHOD, {.method = m}};
        return OK;
    }
    bool map = obj->kind == J_MAP || obj->kind == J_NAMESPACE;
    const struct jvalue *item = map ? jmap_get(obj->u.map, name, strlen(name)) : NULL;
    if (!item)
        return jundef(r, out, "'%s' has no attribute '%.60s'", jtype_name(obj), name);
    *out = *item;
    return jspend(r, obj->u.map->n / 8);
}

int jindex(struct jrun *r, const struct jvalue *obj, const struct jvalue *key, struct jvalue *out)
{
    size_t begin, end;
    if (obj->kind == J_UNDEF)
        return jfail(r, "%s", obj->u.why);
    if (obj->kind == J_LIST && key->kind == J_INT) {
        int64_t n = (int64_t)obj->u.list->n, at = key->u.i < 0 ? key->u.i + n : key->u.i;
        if (at < 0 || at >= n)
            return jundef(r, out, "list object has no element %lld", (long long)key->u.i);
        *out = obj->u.list->v[at];
        return OK;
    }
    if (obj->kind == J_STR && key->kind == J_INT) {
        if (!char_at(obj->u.str, key->u.i, &begin, &end))
            return jundef(r, out, "str object has no element %lld", (long long)key->u.i);
        *out = jsub(obj->u.str, begin, end);
        return jspend(r, obj->u.str.n / 16);
    }
    if (obj->kind == J_MAP) {
        for (size_t i = 0; i < obj->u.map->n; i++) {
            bool same;
            int rc = jequal(r, &obj->u.map->keys[i], key, &same);
            if (rc)
                return rc;
            if (same) {
                *out = obj->u.map->values[i];
                return OK;
            }
        }
    }
    if (key->kind == J_STR) {
        char name[128];
        size_t n = key->u.str.n < sizeof name - 1 ? key->u.str.n : sizeof name - 1;
        memcpy(name, key->u.str.s, n);
        name[n] = '\0';
        return jattr(r, obj, name, out);
    }
    return jundef(r, out, "%s has no such element", jtype_name(obj));
}

static int compare(struct jrun *r, const struct jvalue *a, const struct jvalue *b, int *out)
{
    if (a->kind == J_STR && b->kind == J_STR) {
        size_t n = a->u.str.n < b->u.str.n ? a->u.str.n : b->u.str.n;
        int c = n ? memcmp(a->u.str.s, b->u.str.s, n) : 0;
        *out = c ? c : (a->u.str.n > b->u.str.n) - (a->u.str.n < b->u.str.n);
        return jspend(r, n / 64);
    }
    double x[2];
    const struct jvalue *v[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (v[i]->kind == J_UNDEF)
            return jfail(r, "%s", v[i]->u.why);
        if (v[i]->kind != J_INT && v[i]->kind != J_FLOAT && v[i]->kind != J_BOOL)
            return jfail(r, "%s and %s cannot be ordered", jtype_name(a), jtype_name(b));
        x[i] = v[i]->kind == J_FLOAT ? v[i]->u.f
               : v[i]->kind == J_INT ? (double)v[i]->u.i
                                     : v[i]->u.b;
    }
    *out = (x[0] > x[1]) - (x[0] < x[1]);
    return OK;
}

static int whole_numbers(struct jrun *r, char op, int64_t x, int64_t y, struct jvalue *out)
{
    int64_t v = 0;
    bool over = false;
    if ((op == 'f' || op == '%') && y == 0)
        return jfail(r, "division by zero");
    switch (op) {
    case '+': over = __builtin_add_overflow(x, y, &v); break;
    case '-': over = __builtin_sub_overflow(x, y, &v); break;
    case '*': over = __builtin_mul_overflow(x, y, &v); break;
    case 'f': /* Python rounds down */
        over = x == INT64_MIN && y == -1;
        v = over ? 0 : x / y - (x % y != 0 && (x < 0) != (y < 0));
        break;
    default: v = y == -1 ? 0 : x % y + (x % y != 0 && (x < 0) != (y < 0) ? y : 0); break;
    }
    *out = jint(v);
    return over ? jfail(r, "a number is too large") : OK;
}

int jarithmetic(struct jrun *r, const char *name, const struct jvalue *a, const struct jvalue *b,
                struct jvalue *out)
{
    char op = !strcmp(name, "//") ? 'f' : *name;
    double x[2];
    const struct jvalue *v[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (v[i]->kind == J_UNDEF)
            return jfail(r, "%s", v[i]->u.why);
        if (v[i]->kind != J_INT && v[i]->kind != J_FLOAT && v[i]->kind != J_BOOL)
            return jfail(r, "%s %s %s is not possible", jtype_name(a), name, jtype_name(b));
        x[i] = v[i]->kind == J_FLOAT ? v[i]->u.f
               : v[i]->kind == J_INT ? (double)v[i]->u.i
                                     : v[i]->u.b;
    }
    if (op != '/' && a->kind != J_FLOAT && b->kind != J_FLOAT)
        return whole_numbers(r, op, a->kind == J_INT ? a->u.i : a->u.b,
                             b->kind == J_INT ? b->u.i : b->u.b, out);
    if ((op == '/' || op == 'f' || op == '%') && x[1] == 0)
        return jfail(r, "division by zero");
    out->kind = J_FLOAT;
    switch (op) {
    case '+': out->u.f = x[0] + x[1]; break;
    case '-': out->u.f = x[0] - x[1]; break;
    case '*': out->u.f = x[0] * x[1]; break;
    case '/': out->u.f = x[0] / x[1]; break;
    case 'f': out->u.f = floor(x[0] / x[1]); break;
    default: out->u.f = x[0] - x[1] * floor(x[0] / x[1]); break;
    }
    return OK;
}

static int repeat(struct jrun *r, struct jstr s, int64_t times, struct jvalue *out)
{
    struct jbuf b = {0};
    int rc = OK;
    for (int64_t i = 0; !rc && s.n && i < times; i++) {
        rc = jspend(r, 0);
        if (!rc)
            rc = jbuf_put(r, &b, s.s, s.mark, 0, s.n);
    }
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

static int join_lists(struct jrun *r, const struct jlist *a, const struct jlist *b,
                      struct jvalue *out)
{
    int rc = jlist_new(r, a->n + b->n, out);
    for (size_t i = 0; !rc && i < a->n; i++)
        rc = jlist_push(r, out->u.list, a->v[i]);
    for (size_t i = 0; !rc && i < b->n; i++)
        rc = jlist_push(r, out->u.list, b->v[i]);
    return rc ? rc : jspend(r, a->n + b->n);
}

static int repeat_list(struct jrun *r, const struct jlist *l, int64_t times, struct jvalue *out)
{
    int rc = jlist_new(r, 0, out);
    for (; !rc && times > 0 && l->n; times--) {
        rc = jspend(r, l->n);
        for (size_t i = 0; !rc && i < l->n; i++)
            rc = jlist_push(r, out->u.list, l->v[i]);
    }
    return rc;
}

int jbinary(struct jrun *r, const char *op, const struct jvalue *a, const struct jvalue *b,
            struct jvalue *out)
{
    struct jstr x, y;
    bool yes;
    int order = 0, rc;
    if (!strcmp(op, "==") || !strcmp(op, "!=")) {
        rc = jequal(r, a, b, &yes);
        *out = jbool(yes == (*op == '='));
        return rc;
    }
    if (!strcmp(op, "in") || !strcmp(op, "not in")) {
        rc = jcontains(r, b, a, &yes);
        *out = jbool(yes == (*op == 'i'));
        return rc;
    }
    if (*op == '<' || *op == '>') {
        rc = compare(r, a, b, &order);
        *out = jbool(!rc && (order == 0 ? op[1] == '=' : (order < 0) == (*op == '<')));
        return rc;
    }
    if (*op == '~') {
        rc = jto_str(r, a, &x);
        if (!rc)
            rc = jto_str(r, b, &y);
        return rc ? rc : jconcat(r, x, y, out);
    }
    if (*op == '+' && a->kind == J_STR && b->kind == J_STR)
        return jconcat(r, a->u.str, b->u.str, out);
    if (*op == '+' && a->kind == J_LIST && b->kind == J_LIST)
        return join_lists(r, a->u.list, b->u.list, out);
    if (*op == '*' && a->kind == J_STR && b->kind == J_INT)
        return repeat(r, a->u.str, b->u.i, out);
    if (*op == '*' && a->kind == J_LIST && b->kind == J_INT)
        return repeat_list(r, a->u.list, b->u.i, out);
    if (*op == '%' && a->kind == J_STR)
        return jlack(r, "formatting with %% is not supported");
    if (*op == '+' && a->kind == J_STR && b->kind != J_UNDEF)
        return jfail(r, "can only concatenate str (not \"%s\") to str", jtype_name(b));
    return jarithmetic(r, op, a, b, out);
}

/* Filters, tests and global functions. What is not in these tables is refused when the template
 * is parsed, by its name. */
#include "core/jinja_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FN(name)                                                                                   \
    static int name(struct jrun *r, struct jvalue self, const struct jargs *args,                  \
                    struct jvalue *out)

FN(filter_length)
{
    (void)args;
    switch (self.kind) {
    case J_UNDEF: *out = jint(0); return OK;
    case J_STR: *out = jint((int64_t)jstr_length(self.u.str)); return jspend(r, self.u.str.n / 64);
    case J_LIST: *out = jint((int64_t)self.u.list->n); return OK;
    case J_MAP: *out = jint((int64_t)self.u.map->n); return OK;
    default: return jfail(r, "%s has no length", jtype_name(&self));
    }
}

FN(filter_tojson)
{
    struct jvalue v;
    struct jbuf b = {0};
    int indent = -1;
    if (jarg(args, 0, "indent", &v) && v.kind != J_NONE) {
        if (v.kind != J_INT || v.u.i < 0 || v.u.i > 16)
            return jfail(r, "tojson: indent must be a whole number up to 16");
        indent = (int)v.u.i;
    }
    if ((jarg(args, 99, "separators", &v) && v.kind != J_NONE) ||
        (jarg(args, 99, "sort_keys", &v) && jtruth(&v)) ||
        (jarg(args, 99, "ensure_ascii", &v) && jtruth(&v)))
        return jlack(r, "tojson: separators, sort_keys and ensure_ascii are not supported");
    int rc = jto_json(r, &b, &self, indent);
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

FN(filter_string)
{
    struct jstr s;
    int rc = jto_str(r, &self, &s);
    (void)args;
    if (!rc)
        *out = (struct jvalue){J_STR, {.str = s}};
    return rc;
}

FN(filter_same)
{
    (void)r, (void)args;
    *out = self;
    return OK;
}

FN(filter_list)
{
    struct jlist *items;
    (void)args;
    int rc = jitems(r, &self, &items);
    if (!rc)
        rc = jlist_new(r, items->n, out);
    for (size_t i = 0; !rc && i < items->n; i++)
        rc = jlist_push(r, out->u.list, items->v[i]);
    return rc ? rc : jspend(r, items->n);
}

/* An attribute path "a.b" of an item; fallback (may be NULL) stands in wherever it is undefined. */
static int attribute(struct jrun *r, const struct jvalue *item, const struct jvalue *path,
                     const struct jvalue *fallback, struct jvalue *out)
{
    struct jvalue at = *item, key = *path;
    if (path->kind != J_STR)
        return jindex(r, item, path, out);
    struct jstr rest = path->u.str;
    for (;;) {
        const char *dot = rest.n ? memchr(rest.s, '.', rest.n) : NULL;
        size_t n = dot ? (size_t)(dot - rest.s) : rest.n;
        key = jtext(rest.s, n);
        int rc = jindex(r, &at, &key, out);
        if (!rc && fallback && out->kind == J_UNDEF)
            *out = *fallback;
        if (rc || !dot)
            return rc;
        at = *out;
        rest = jsub(rest, n + 1, rest.n).u.str;
    }
}

FN(filter_join)
{
    struct jvalue sep = jtext("", 0), path, item;
    struct jlist *items;
    struct jbuf b = {0};
    jarg(args, 0, "d", &sep);
    bool by_path = jarg(args, 1, "attribute", &path);
    int rc = jitems(r, &self, &items);
    for (size_t i = 0; !rc && i < items->n; i++) {
        item = items->v[i];
        if (i)
            rc = jprint(r, &b, &sep);
        if (!rc && by_path)
            rc = attribute(r, &items->v[i], &path, NULL, &item);
        if (!rc)
            rc = jprint(r, &b, &item);
    }
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

FN(filter_items)
{
    const struct jfunc *f = jfind_method(J_MAP, "items");
    if (self.kind == J_UNDEF)
        return jlist_new(r, 0, out);
    if (self.kind != J_MAP)
        return jfail(r, "items: %s is not a mapping", jtype_name(&self));
    return f->call(r, self, args, out);
}

FN(filter_default)
{
    struct jvalue v = jtext("", 0), falsy = jbool(false);
    jarg(args, 0, "default_value", &v);
    jarg(args, 1, "boolean", &falsy);
    (void)r;
    *out = self.kind == J_UNDEF || (jtruth(&falsy) && !jtruth(&self)) ? v : self;
    return OK;
}

/* The first or the last item. */
static int one_end(struct jrun *r, const struct jvalue *self, bool last, struct jvalue *out)
{
    struct jlist *items;
    int rc = jitems(r, self, &items);
    if (rc)
        return rc;
    if (!items->n)
        return jundef(r, out, "no %s item, sequence was empty", last ? "last" : "first");
    *out = items->v[last ? items->n - 1 : 0];
    return OK;
}

FN(filter_first)
{
    (void)args;
    return one_end(r, &self, false, out);
}

FN(filter_last)
{
    (void)args;
    return one_end(r, &self, true, out);
}

FN(filter_reverse)
{
    struct jlist *items;
    struct jbuf b = {0};
    (void)args;
    int rc = jitems(r, &self, &items);
    if (!rc)
        rc = jlist_new(r, items->n, out);
    for (size_t i = rc ? 0 : items->n; !rc && i-- > 0;)
        rc = self.kind == J_STR ? jprint(r, &b, &items->v[i])
                                : jlist_push(r, out->u.list, items->v[i]);
    if (!rc && self.kind == J_STR)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

FN(filter_int)
{
    struct jvalue fallback = jint(0);
    char text[64], *end;
    jarg(args, 0, "default", &fallback);
    *out = fallback;
    if (self.kind == J_BOOL) {
        *out = jint(self.u.b);
    } else if (self.kind == J_INT) {
        *out = self;
    } else if (self.kind == J_FLOAT && self.u.f > -9e18 && self.u.f < 9e18) {
        *out = jint((int64_t)self.u.f);
    } else if (self.kind == J_STR && self.u.str.n < sizeof text) {
        memcpy(text, self.u.str.s, self.u.str.n);
        text[self.u.str.n] = '\0';
        double v = strtod(text, &end);
        if (end != text && !*end && v > -9e18 && v < 9e18)
            *out = jint((int64_t)v);
    }
    return jspend(r, 0);
}

FN(filter_float)
{
    char text[64], *end = NULL;
    double v = 0;
    if (self.kind == J_STR && self.u.str.n < sizeof text) {
        memcpy(text, self.u.str.s, self.u.str.n);
        text[self.u.str.n] = '\0';
        v = strtod(text, &end);
        v = end != text && !*end ? v : 0;
    } else if (self.kind == J_INT || self.kind == J_BOOL) {
        v = self.kind == J_INT ? (double)self.u.i : self.u.b;
    } else if (self.kind == J_FLOAT) {
        v = self.u.f;
    }
    *out = (struct jvalue){J_FLOAT, {.f = v}};
    if (v == 0 && self.kind == J_STR)
        jarg(args, 0, "default", out);
    return jspend(r, 0);
}

/* Stable, by comparison; lists in templates are short, and the work is counted. */
FN(filter_sort)
{
    struct jlist *items;
    struct jvalue reverse = jbool(false), before;
    if (jarg(args, 2, "attribute", &before) || jarg(args, 1, "case_sensitive", &before))
        return jlack(r, "sort: attribute and case_sensitive are not supported");
    jarg(args, 0, "reverse", &reverse);
    int rc = jitems(r, &self, &items);
    if (!rc)
        rc = jlist_new(r, items->n, out);
    for (size_t i = 0; !rc && i < items->n; i++) {
        struct jlist *l = out->u.list;
        rc = jlist_push(r, l, items->v[i]);
        for (size_t k = i; !rc && k > 0; k--) {
            struct jvalue a = l->v[k], b = l->v[k - 1];
            bool texts = a.kind == J_STR && b.kind == J_STR;
            struct jvalue x = a, y = b;
            if (texts) /* Jinja ignores case */
                rc = jstr_lower(r, a, &(struct jargs){0}, &x);
            if (texts && !rc)
                rc = jstr_lower(r, b, &(struct jargs){0}, &y);
            if (!rc)
                rc = jbinary(r, jtruth(&reverse) ? ">" : "<", &x, &y, &before);
            if (rc || !jtruth(&before))
                break;
            l->v[k] = b;
            l->v[k - 1] = a;
            rc = jspend(r, 0);
        }
    }
    return rc;
}

FN(filter_indent)
{
    struct jvalue width = jint(4), first = jbool(false), blank = jbool(false);
    struct jstr s;
    struct jbuf b = {0};
    jarg(args, 0, "width", &width);
    jarg(args, 1, "first", &first);
    jarg(args, 2, "blank", &blank);
    if (width.kind != J_INT || width.u.i < 0 || width.u.i > 64)
        return jfail(r, "indent: the width must be a whole number up to 64");
    char spaces[64];
    memset(spaces, ' ', sizeof spaces);
    int rc = jto_str(r, &self, &s);
    for (size_t i = 0; !rc && i < s.n;) {
        const char *at = memchr(s.s + i, '\n', s.n - i);
        size_t end = at ? (size_t)(at - s.s) + 1 : s.n;
        bool empty = s.s[i] == '\n';
        if ((i || jtruth(&first)) && (!empty || jtruth(&blank)))
            rc = jbuf_put(r, &b, spaces, NULL, 0, (size_t)width.u.i);
        if (!rc)
            rc = jbuf_put(r, &b, s.s + i, s.mark ? s.mark + i : NULL, 0, end - i);
        i = end;
    }
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

/* The arguments without the first skip positional ones. */
static struct jargs rest_of(const struct jargs *args, size_t skip)
{
    skip = skip < args->n ? skip : args->n;
    return (struct jargs){args->v + skip, args->names + skip, args->n - skip};
}

/* Does the item pass the test that the arguments name (none: is it true)? */
static int passes(struct jrun *r, const struct jvalue *item, const struct jargs *args, size_t at,
                  bool *out)
{
    struct jvalue name, verdict;
    char text[64];
    *out = jtruth(item);
    if (args->n <= at)
        return OK;
    name = args->v[at];
    if (name.kind != J_STR || name.u.str.n >= sizeof text)
        return jfail(r, "the name of a test must be a string");
    memcpy(text, name.u.str.s, name.u.str.n);
    text[name.u.str.n] = '\0';
    const struct jfunc *f = jfind_test(text);
    if (!f)
        return jlack(r, "unknown test \"%s\"", text);
    struct jargs rest = rest_of(args, at + 1);
    int rc = f->call(r, *item, &rest, &verdict);
    *out = !rc && jtruth(&verdict);
    return rc;
}

static int choose(struct jrun *r, const struct jvalue *self, const struct jargs *args, bool by_path,
                  bool want, struct jvalue *out)
{
    struct jlist *items;
    int rc = jitems(r, self, &items);
    if (!rc && by_path && !args->n)
        return jfail(r, "selectattr and rejectattr need an attribute");
    if (!rc)
        rc = jlist_new(r, 0, out);
    for (size_t i = 0; !rc && i < items->n; i++) {
        struct jvalue item = items->v[i];
        bool yes;
        if (by_path)
            rc = attribute(r, &items->v[i], &args->v[0], NULL, &item);
        if (!rc)
            rc = passes(r, &item, args, by_path, &yes);
        if (!rc && yes == want)
            rc = jlist_push(r, out->u.list, items->v[i]);
    }
    return rc;
}

FN(filter_select)
{
    return choose(r, &self, args, false, true, out);
}

FN(filter_reject)
{
    return choose(r, &self, args, false, false, out);
}

FN(filter_selectattr)
{
    return choose(r, &self, args, true, true, out);
}

FN(filter_rejectattr)
{
    return choose(r, &self, args, true, false, out);
}

/* map(attribute=path [, default=v]) or map("filter", arguments…) */
FN(filter_map)
{
    struct jvalue path, fallback, v;
    struct jlist *items;
    char name[64] = "";
    const struct jfunc *f = NULL;
    bool has_fallback = jarg(args, 99, "default", &fallback);
    bool by_path = jarg(args, 99, "attribute", &path);
    if (!by_path) {
        if (!args->n || args->v[0].kind != J_STR || args->v[0].u.str.n >= sizeof name)
            return jfail(r, "map needs an attribute or a filter");
        memcpy(name, args->v[0].u.str.s, args->v[0].u.str.n);
        f = jfind_filter(name);
        if (!f)
            return jlack(r, "unknown filter \"%s\"", name);
    }
    struct jargs rest = rest_of(args, 1);
    int rc = jitems(r, &self, &items);
    if (!rc)
        rc = jlist_new(r, items->n, out);
    for (size_t i = 0; !rc && i < items->n; i++) {
        if (by_path)
            rc = attribute(r, &items->v[i], &path, has_fallback ? &fallback : NULL, &v);
        else
            rc = f->call(r, items->v[i], &rest, &v);
        if (!rc)
            rc = jlist_push(r, out->u.list, v);
    }
    return rc;
}

#define KIND_TEST(name, condition)                                                                 \
    FN(name)                                                                                       \
    {                                                                                              \
        (void)r, (void)args;                                                                       \
        *out = jbool(condition);                                                                   \
        return OK;                                                                                 \
    }

KIND_TEST(test_defined, self.kind != J_UNDEF)
KIND_TEST(test_undefined, self.kind == J_UNDEF)
KIND_TEST(test_none, self.kind == J_NONE)
KIND_TEST(test_string, self.kind == J_STR)
KIND_TEST(test_mapping, self.kind == J_MAP)
/* Undefined counts as an empty sequence, in Jinja too. */
KIND_TEST(test_iterable,
          self.kind == J_STR || self.kind == J_LIST || self.kind == J_MAP || self.kind == J_UNDEF)
KIND_TEST(test_number, self.kind == J_INT || self.kind == J_FLOAT || self.kind == J_BOOL)
KIND_TEST(test_integer, self.kind == J_INT)
KIND_TEST(test_float, self.kind == J_FLOAT)
KIND_TEST(test_boolean, self.kind == J_BOOL)
KIND_TEST(test_true, self.kind == J_BOOL && self.u.b)
KIND_TEST(test_false, self.kind == J_BOOL && !self.u.b)
KIND_TEST(test_callable, self.kind == J_FUNC || self.kind == J_METHOD || self.kind == J_MACRO)

static int test_same(struct jrun *r, const struct jvalue *self, const struct jargs *args, bool want,
                     struct jvalue *out)
{
    struct jvalue other;
    bool same;
    if (!jarg(args, 0, "other", &other))
        return jfail(r, "this test needs an argument");
    int rc = jequal(r, self, &other, &same);
    *out = jbool(same == want);
    return rc;
}

FN(test_equal)
{
    return test_same(r, &self, args, true, out);
}

FN(test_unequal)
{
    return test_same(r, &self, args, false, out);
}

FN(test_in)
{
    struct jvalue in;
    bool yes;
    if (!jarg(args, 0, "seq", &in))
        return jfail(r, "in: needs an argument");
    int rc = jcontains(r, &in, &self, &yes);
    *out = jbool(yes);
    return rc;
}

static int parity(struct jrun *r, const struct jvalue *self, int64_t want, struct jvalue *out)
{
    if (self->kind == J_UNDEF)
        return jfail(r, "%s", self->u.why);
    if (self->kind != J_INT && self->kind != J_BOOL)
        return jfail(r, "odd and even need a whole number, not %s", jtype_name(self));
    *out = jbool((self->kind == J_INT ? self->u.i : self->u.b) % 2 == want);
    return OK;
}

FN(test_odd)
{
    (void)args;
    int rc = parity(r, &self, 0, out);
    *out = jbool(!jtruth(out));
    return rc;
}

FN(test_even)
{
    (void)args;
    return parity(r, &self, 0, out);
}

FN(test_divisible)
{
    struct jvalue by;
    if (!jarg(args, 0, "num", &by) || by.kind != J_INT || !by.u.i || self.kind != J_INT)
        return jfail(r, "divisibleby: needs whole numbers");
    *out = jbool(by.u.i == -1 || self.u.i % by.u.i == 0);
    return OK;
}

FN(global_range)
{
    struct jvalue v;
    int64_t part[3] = {0, 0, 1}, n = 0;
    (void)self;
    for (size_t i = 0; i < args->n && i < 3; i++) {
        v = args->v[i];
        if (v.kind != J_INT)
            return jfail(r, "range: needs whole numbers");
        part[i] = v.u.i;
    }
    if (!args->n || args->n > 3 || part[2] == 0)
        return jfail(r, "range: needs one to three numbers and a step that is not zero");
    if (args->n == 1) {
        part[1] = part[0];
        part[0] = 0;
    }
    int rc = jlist_new(r, 0, out);
    for (int64_t i = part[0]; !rc && (part[2] > 0 ? i < part[1] : i > part[1]);) {
        if (n++ == JINJA_MAX_RANGE)
            return err_set(r->e, ERR_LIMIT, "chat template line %d: range above %d",
                           r->at ? r->at->line : 0, JINJA_MAX_RANGE);
        rc = jlist_push(r, out->u.list, jint(i));
        if (__builtin_add_overflow(i, part[2], &i))
            break;
    }
    return rc ? rc : jspend(r, (size_t)n);
}

/* namespace(a=1) and dict(a=1) */
static int keyword_map(struct jrun *r, const struct jargs *args, struct jvalue *out)
{
    int rc = jmap_new(r, args->n, out);
    for (size_t i = 0; !rc && i < args->n; i++) {
        const struct jmap *from = args->v[i].u.map;
        if (args->names[i]) {
            rc = jmap_set(r, out->u.map, jtext(args->names[i], strlen(args->names[i])), args->v[i]);
            continue;
        }
        if (args->v[i].kind != J_MAP)
            return jfail(r, "namespace and dict take arguments by name or a mapping");
        for (size_t k = 0; !rc && k < from->n; k++)
            rc = jmap_set(r, out->u.map, from->keys[k], from->values[k]);
    }
    return rc;
}

FN(global_dict)
{
    (void)self;
    return keyword_map(r, args, out);
}

FN(global_namespace)
{
    (void)self;
    int rc = keyword_map(r, args, out);
    out->kind = J_NAMESPACE;
    return rc;
}

FN(global_raise)
{
    struct jvalue v = jtext("", 0);
    struct jstr s;
    (void)self, (void)out;
    jarg(args, 0, "message", &v);
    int rc = jto_str(r, &v, &s);
    if (rc)
        return rc;
    return err_set(r->e, ERR_UNSUPPORTED, "%.*s", s.n > 900 ? 900 : (int)s.n, s.s);
}

/* Sakamoto's rule; 0 is Sunday. */
static int weekday(int y, int m, int d)
{
    static const int shift[] = {0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4};
    y -= m < 3;
    return (y + y / 4 - y / 100 + y / 400 + shift[m - 1] + d) % 7;
}

static const char *const months[] = {"January",   "February", "March",    "April",
                                     "May",       "June",     "July",     "August",
                                     "September", "October",  "November", "December"};
static const char *const days[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                   "Thursday", "Friday", "Saturday"};

/* One directive of strftime; false when we do not know it. Core has no clock: it is midnight. */
static bool put_date(const struct jrun *r, char c, bool bare, char *to, size_t room)
{
    int day = weekday(r->year, r->month, r->day);
    switch (c) {
    case 'd': snprintf(to, room, bare ? "%d" : "%02d", r->day); return true;
    case 'm': snprintf(to, room, bare ? "%d" : "%02d", r->month); return true;
    case 'Y': snprintf(to, room, "%d", r->year); return true;
    case 'y': snprintf(to, room, "%02d", r->year % 100); return true;
    case 'B': snprintf(to, room, "%s", months[r->month - 1]); return true;
    case 'b': snprintf(to, room, "%.3s", months[r->month - 1]); return true;
    case 'A': snprintf(to, room, "%s", days[day]); return true;
    case 'a': snprintf(to, room, "%.3s", days[day]); return true;
    case 'H':
    case 'M':
    case 'S': snprintf(to, room, "00"); return true;
    case '%': snprintf(to, room, "%%"); return true;
    default: return false;
    }
}

FN(global_strftime)
{
    struct jvalue format;
    struct jbuf b = {0};
    char part[32];
    (void)self;
    if (!jarg(args, 0, "format", &format) || format.kind != J_STR)
        return jfail(r, "strftime_now needs a format");
    struct jstr s = format.u.str;
    int rc = OK;
    for (size_t i = 0; !rc && i < s.n; i++) {
        if (s.s[i] != '%') {
            rc = jbuf_put(r, &b, s.s + i, NULL, 0, 1);
            continue;
        }
        bool bare = i + 1 < s.n && s.s[i + 1] == '-';
        i += 1 + (size_t)bare;
        if (i >= s.n || !put_date(r, s.s[i], bare, part, sizeof part)) {
            jbuf_free(&b);
            return jlack(r, "strftime_now: unknown directive in \"%.*s\"", s.n > 60 ? 60 : (int)s.n,
                         s.s);
        }
        rc = jbuf_put(r, &b, part, NULL, 0, strlen(part));
    }
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

static const struct jfunc filters[] = {{"trim", jstr_strip},
                                       {"length", filter_length},
                                       {"count", filter_length},
                                       {"tojson", filter_tojson},
                                       {"string", filter_string},
                                       {"safe", filter_same},
                                       {"list", filter_list},
                                       {"join", filter_join},
                                       {"items", filter_items},
                                       {"default", filter_default},
                                       {"d", filter_default},
                                       {"first", filter_first},
                                       {"last", filter_last},
                                       {"reverse", filter_reverse},
                                       {"int", filter_int},
                                       {"float", filter_float},
                                       {"sort", filter_sort},
                                       {"indent", filter_indent},
                                       {"select", filter_select},
                                       {"reject", filter_reject},
                                       {"selectattr", filter_selectattr},
                                       {"rejectattr", filter_rejectattr},
                                       {"map", filter_map},
                                       {"replace", jstr_replace},
                                       {"upper", jstr_upper},
                                       {"lower", jstr_lower},
                                       {"title", jstr_title},
                                       {"capitalize", jstr_capitalize},
                                       {NULL, NULL}};

static const struct jfunc tests[] = {{"defined", test_defined},
                                     {"undefined", test_undefined},
                                     {"none", test_none},
                                     {"string", test_string},
                                     {"mapping", test_mapping},
                                     {"sequence", test_iterable},
                                     {"iterable", test_iterable},
                                     {"number", test_number},
                                     {"integer", test_integer},
                                     {"float", test_float},
                                     {"boolean", test_boolean},
                                     {"true", test_true},
                                     {"false", test_false},
                                     {"odd", test_odd},
                                     {"even", test_even},
                                     {"callable", test_callable},
                                     {"equalto", test_equal},
                                     {"eq", test_equal},
                                     {"sameas", test_equal},
                                     {"==", test_equal},
                                     {"ne", test_unequal},
                                     {"!=", test_unequal},
                                     {"in", test_in},
                                     {"divisibleby", test_divisible},
                                     {NULL, NULL}};

static const struct jfunc globals[] = {
    {"range", global_range},           {"namespace", global_namespace},   {"dict", global_dict},
    {"raise_exception", global_raise}, {"strftime_now", global_strftime}, {NULL, NULL}};

static const struct jfunc *lookup(const struct jfunc *table, const char *name)
{
    for (; table->name; table++)
        if (!strcmp(table->name, name))
            return table;
    return NULL;
}

const struct jfunc *jfind_filter(const char *name)
{
    return lookup(filters, name);
}

const struct jfunc *jfind_test(const char *name)
{
    return lookup(tests, name);
}

const struct jfunc *jfind_global(const char *name)
{
    return lookup(globals, name);
}

/* String operations, by code point and with marks kept, and the tables of methods. */
#include "core/jinja_impl.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/utf8.h"

size_t jstr_length(struct jstr s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++)
        n += ((uint8_t)s.s[i] & 0xc0) != 0x80;
    return n;
}

/* self as a string; undefined is empty, as Jinja's filters see it. */
static int own_text(struct jrun *r, const struct jvalue *self, struct jstr *out)
{
    int rc = jto_str(r, self, out);
    return rc ? rc : jspend(r, out->n / 64);
}

/* The argument as a string; *given tells whether there was one (none counts as absent). */
static int text_arg(struct jrun *r, const struct jargs *args, size_t at, const char *name,
                    struct jstr *out, bool *given)
{
    struct jvalue v;
    *given = jarg(args, at, name, &v) && v.kind != J_NONE;
    if (*given && v.kind != J_STR)
        return jfail(r, "argument \"%s\" must be a string, not %s", name, jtype_name(&v));
    if (*given)
        *out = v.u.str;
    return OK;
}

static int need_text(struct jrun *r, const struct jargs *args, size_t at, const char *name,
                     struct jstr *out)
{
    bool given;
    int rc = text_arg(r, args, at, name, out, &given);
    return rc || given ? rc : jfail(r, "argument \"%s\" is missing", name);
}

static int count_arg(struct jrun *r, const struct jargs *args, size_t at, const char *name,
                     int64_t *out)
{
    struct jvalue v;
    if (!jarg(args, at, name, &v) || v.kind == J_NONE)
        return OK;
    if (v.kind != J_INT)
        return jfail(r, "argument \"%s\" must be a whole number", name);
    *out = v.u.i;
    return OK;
}

/* Python's white space: Unicode's and the four separators U+001C … U+001F. */
static bool is_space(uint32_t cp)
{
    return utf8_is_space(cp) || (cp >= 0x1c && cp <= 0x1f);
}

static bool in_set(uint32_t cp, struct jstr set, bool given)
{
    uint32_t one;
    size_t len;
    if (!given)
        return is_space(cp);
    for (size_t i = 0; i < set.n; i += len) {
        utf8_next(set.s + i, set.n - i, &one, &len);
        if (one == cp)
            return true;
    }
    return false;
}

static struct jvalue strip(struct jstr s, struct jstr set, bool given, bool left, bool right)
{
    size_t begin = 0, end = s.n, len;
    uint32_t cp;
    while (left && begin < end) {
        utf8_next(s.s + begin, end - begin, &cp, &len);
        if (!in_set(cp, set, given))
            break;
        begin += len;
    }
    while (right && end > begin) {
        size_t at = end;
        do
            at--;
        while (at > begin && ((uint8_t)s.s[at] & 0xc0) == 0x80);
        utf8_next(s.s + at, end - at, &cp, &len);
        if (!in_set(cp, set, given))
            break;
        end = at;
    }
    return jsub(s, begin, end);
}

static int strip_sides(struct jrun *r, struct jvalue self, const struct jargs *args, bool left,
                       bool right, struct jvalue *out)
{
    struct jstr s, set = {"", NULL, 0};
    bool given;
    int rc = own_text(r, &self, &s);
    if (!rc)
        rc = text_arg(r, args, 0, "chars", &set, &given);
    if (!rc)
        rc = jspend(r, given && set.n > 8 ? s.n / 8 * (set.n / 8) : 0);
    if (!rc)
        *out = strip(s, set, given, left, right);
    return rc;
}

int jstr_strip(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out)
{
    return strip_sides(r, self, args, true, true, out);
}

static int str_lstrip(struct jrun *r, struct jvalue self, const struct jargs *args,
                      struct jvalue *out)
{
    return strip_sides(r, self, args, true, false, out);
}

static int str_rstrip(struct jrun *r, struct jvalue self, const struct jargs *args,
                      struct jvalue *out)
{
    return strip_sides(r, self, args, false, true, out);
}

/* Where needle next occurs at or after from, or s.n. */
static size_t find(struct jstr s, struct jstr needle, size_t from)
{
    const char *at = s.n > from ? memmem(s.s + from, s.n - from, needle.s, needle.n) : NULL;
    return at ? (size_t)(at - s.s) : s.n;
}

static int split_space(struct jrun *r, struct jstr s, int64_t max, struct jlist *out)
{
    size_t i = 0, len;
    uint32_t cp;
    int rc = OK;
    while (!rc) {
        while (i < s.n && utf8_next(s.s + i, s.n - i, &cp, &len) == UTF8_GOOD && is_space(cp))
            i += len;
        if (i >= s.n)
            return OK;
        size_t begin = i;
        if (max-- == 0)
            return jlist_push(r, out, jsub(s, begin, s.n));
        while (i < s.n && utf8_next(s.s + i, s.n - i, &cp, &len) == UTF8_GOOD && !is_space(cp))
            i += len;
        rc = jspend(r, 0);
        if (!rc)
            rc = jlist_push(r, out, jsub(s, begin, i));
    }
    return rc;
}

static int str_split(struct jrun *r, struct jvalue self, const struct jargs *args,
                     struct jvalue *out)
{
    struct jstr s, sep = {0};
    bool given;
    int64_t max = -1;
    size_t done = 0;
    int rc = own_text(r, &self, &s);
    if (!rc)
        rc = text_arg(r, args, 0, "sep", &sep, &given);
    if (!rc)
        rc = count_arg(r, args, 1, "maxsplit", &max);
    if (!rc)
        rc = jlist_new(r, 0, out);
    if (rc || !given)
        return rc ? rc : split_space(r, s, max, out->u.list);
    if (!sep.n)
        return jfail(r, "empty separator");
    for (; !rc && max != 0; max--) {
        size_t at = find(s, sep, done);
        if (at == s.n)
            break;
        rc = jspend(r, 0);
        if (!rc)
            rc = jlist_push(r, out->u.list, jsub(s, done, at));
        done = at + sep.n;
    }
    return rc ? rc : jlist_push(r, out->u.list, jsub(s, done, s.n));
}

/* As split, but counted from the end: what is left of the last cut stays whole. */
static int str_rsplit(struct jrun *r, struct jvalue self, const struct jargs *args,
                      struct jvalue *out)
{
    struct jstr s, sep = {0};
    bool given;
    int64_t max = -1;
    int rc = own_text(r, &self, &s);
    if (!rc)
        rc = text_arg(r, args, 0, "sep", &sep, &given);
    if (!rc)
        rc = count_arg(r, args, 1, "maxsplit", &max);
    if (rc || max < 0)
        return rc ? rc : str_split(r, self, args, out);
    if (!given || !sep.n)
        return jlack(r, "rsplit by white space is not supported");
    rc = jlist_new(r, 0, out);
    size_t end = s.n;
    for (size_t at = s.n; !rc && max > 0 && at-- > 0;) {
        if (end - at < sep.n || memcmp(s.s + at, sep.s, sep.n))
            continue;
        rc = jspend(r, 0);
        if (!rc)
            rc = jlist_push(r, out->u.list, jsub(s, at + sep.n, end));
        end = at;
        max--;
    }
    if (!rc)
        rc = jlist_push(r, out->u.list, jsub(s, 0, end));
    struct jlist *l = out->u.list;
    for (size_t i = 0; !rc && i < l->n / 2; i++) {
        struct jvalue v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
    return rc ? rc : jspend(r, s.n / 16);
}

static int str_splitlines(struct jrun *r, struct jvalue self, const struct jargs *args,
                          struct jvalue *out)
{
    struct jstr s, newline = {"\n", NULL, 1};
    int rc = own_text(r, &self, &s);
    (void)args;
    if (!rc)
        rc = jlist_new(r, 0, out);
    for (size_t done = 0; !rc && done < s.n;) {
        size_t at = find(s, newline, done), end = at;
        end -= at < s.n && end > done && s.s[end - 1] == '\r';
        rc = jspend(r, 0);
        if (!rc)
            rc = jlist_push(r, out->u.list, jsub(s, done, end));
        done = at + 1;
    }
    return rc;
}

/* One of the given string or list of strings stands at that end. */
static int ends_with(struct jrun *r, const struct jvalue *self, const struct jargs *args, bool end,
                     struct jvalue *out)
{
    struct jvalue what;
    struct jlist one = {&what, 1, 1}, *list = &one;
    struct jstr s;
    bool yes = false;
    int rc = own_text(r, self, &s);
    if (!rc && !jarg(args, 0, end ? "suffix" : "prefix", &what))
        return jfail(r, "startswith and endswith need an argument");
    if (!rc && what.kind == J_LIST)
        list = what.u.list;
    for (size_t i = 0; !rc && !yes && i < list->n; i++) {
        if (list->v[i].kind != J_STR)
            return jfail(r, "startswith and endswith need strings, not %s",
                         jtype_name(&list->v[i]));
        struct jstr p = list->v[i].u.str;
        yes = p.n <= s.n && (!p.n || !memcmp(s.s + (end ? s.n - p.n : 0), p.s, p.n));
        rc = jspend(r, p.n / 64);
    }
    *out = jbool(yes);
    return rc;
}

static int str_startswith(struct jrun *r, struct jvalue self, const struct jargs *args,
                          struct jvalue *out)
{
    return ends_with(r, &self, args, false, out);
}

static int str_endswith(struct jrun *r, struct jvalue self, const struct jargs *args,
                        struct jvalue *out)
{
    return ends_with(r, &self, args, true, out);
}

int jstr_replace(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out)
{
    struct jstr s, from = {0}, to = {0};
    struct jbuf b = {0};
    int64_t count = -1;
    size_t done = 0;
    int rc = own_text(r, &self, &s);
    if (!rc)
        rc = need_text(r, args, 0, "old", &from);
    if (!rc)
        rc = need_text(r, args, 1, "new", &to);
    if (!rc)
        rc = count_arg(r, args, 2, "count", &count);
    if (!rc && !from.n)
        return jlack(r, "replacing the empty string is not supported");
    for (; !rc && count != 0; count--) {
        size_t at = find(s, from, done);
        if (at == s.n)
            break;
        rc = jbuf_put(r, &b, s.s + done, s.mark ? s.mark + done : NULL, 0, at - done);
        if (!rc)
            rc = jbuf_put(r, &b, to.s, to.mark, 0, to.n);
        done = at + from.n;
    }
    if (!rc && done == 0) {
        *out = (struct jvalue){J_STR, {.str = s}};
        return OK;
    }
    if (!rc)
        rc = jbuf_put(r, &b, s.s + done, s.mark ? s.mark + done : NULL, 0, s.n - done);
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

enum change { UPPER, LOWER, TITLE, TITLE_FILTER, CAPITALIZE };

static uint32_t change_case(uint32_t cp, enum change how, bool first)
{
    bool up = how == UPPER || (how != LOWER && first);
    utf8proc_int32_t c = (utf8proc_int32_t)cp;
    return (uint32_t)(up ? utf8proc_toupper(c) : utf8proc_tolower(c));
}

static bool is_letter(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

/* The filter title, unlike the method, knows only these as the beginning of a word. */
static bool starts_word(uint32_t cp)
{
    return is_space(cp) || (cp < 128 && cp && strchr("-({[<", (int)cp));
}

static int change_text(struct jrun *r, struct jvalue self, enum change how, struct jvalue *out)
{
    struct jstr s;
    struct jbuf b = {0};
    bool first = true;
    char one[4];
    uint32_t cp;
    size_t len;
    int rc = own_text(r, &self, &s);
    for (size_t i = 0; !rc && i < s.n; i += len) {
        utf8_next(s.s + i, s.n - i, &cp, &len);
        size_t n = utf8_put(change_case(cp, how, first), one);
        rc = jbuf_put(r, &b, one, NULL, s.mark ? s.mark[i] : 0, n);
        first = how == TITLE ? !is_letter(cp) : how == TITLE_FILTER && starts_word(cp);
    }
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

int jstr_upper(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out)
{
    (void)args;
    return change_text(r, self, UPPER, out);
}

int jstr_lower(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out)
{
    (void)args;
    return change_text(r, self, LOWER, out);
}

int jstr_title(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out)
{
    (void)args;
    return change_text(r, self, TITLE_FILTER, out);
}

static int str_title(struct jrun *r, struct jvalue self, const struct jargs *args,
                     struct jvalue *out)
{
    (void)args;
    return change_text(r, self, TITLE, out);
}

int jstr_capitalize(struct jrun *r, struct jvalue self, const struct jargs *args,
                    struct jvalue *out)
{
    (void)args;
    return change_text(r, self, CAPITALIZE, out);
}

static int str_find(struct jrun *r, struct jvalue self, const struct jargs *args,
                    struct jvalue *out)
{
    struct jstr s, what = {0};
    int rc = own_text(r, &self, &s);
    if (!rc)
        rc = need_text(r, args, 0, "sub", &what);
    if (rc)
        return rc;
    size_t at = find(s, what, 0);
    bool found = at < s.n || !what.n;
    *out = jint(found ? (int64_t)jstr_length(jsub(s, 0, at).u.str) : -1);
    if (found && !what.n)
        *out = jint(0);
    return OK;
}

static int str_count(struct jrun *r, struct jvalue self, const struct jargs *args,
                     struct jvalue *out)
{
    struct jstr s, what = {0};
    int64_t n = 0;
    int rc = own_text(r, &self, &s);
    if (!rc)
        rc = need_text(r, args, 0, "sub", &what);
    if (rc)
        return rc;
    if (!what.n)
        return jlack(r, "counting the empty string is not supported");
    for (size_t at = find(s, what, 0); at < s.n; at = find(s, what, at + what.n))
        n++;
    *out = jint(n);
    return OK;
}

static int str_isdigit(struct jrun *r, struct jvalue self, const struct jargs *args,
                       struct jvalue *out)
{
    struct jstr s;
    int rc = own_text(r, &self, &s);
    (void)args;
    if (rc)
        return rc;
    bool yes = s.n > 0;
    for (size_t i = 0; yes && i < s.n; i++)
        yes = s.s[i] >= '0' && s.s[i] <= '9';
    *out = jbool(yes);
    return OK;
}

/* "sep".join(list) */
static int str_join(struct jrun *r, struct jvalue self, const struct jargs *args,
                    struct jvalue *out)
{
    struct jvalue list;
    struct jlist *items;
    struct jbuf b = {0};
    if (!jarg(args, 0, "iterable", &list))
        return jfail(r, "join needs a list");
    int rc = jitems(r, &list, &items);
    for (size_t i = 0; !rc && i < items->n; i++) {
        if (i)
            rc = jprint(r, &b, &self);
        if (!rc)
            rc = jprint(r, &b, &items->v[i]);
    }
    if (!rc)
        return jbuf_take(r, &b, out);
    jbuf_free(&b);
    return rc;
}

static int pairs(struct jrun *r, const struct jmap *m, struct jvalue *out)
{
    int rc = jlist_new(r, m->n, out);
    for (size_t i = 0; !rc && i < m->n; i++) {
        struct jvalue pair;
        rc = jlist_new(r, 2, &pair);
        if (!rc)
            rc = jlist_push(r, pair.u.list, m->keys[i]);
        if (!rc)
            rc = jlist_push(r, pair.u.list, m->values[i]);
        if (!rc)
            rc = jlist_push(r, out->u.list, pair);
    }
    return rc ? rc : jspend(r, m->n);
}

static int map_items(struct jrun *r, struct jvalue self, const struct jargs *args,
                     struct jvalue *out)
{
    (void)args;
    return pairs(r, self.u.map, out);
}

static int map_part(struct jrun *r, struct jvalue *from, size_t n, struct jvalue *out)
{
    int rc = jlist_new(r, n, out);
    for (size_t i = 0; !rc && i < n; i++)
        rc = jlist_push(r, out->u.list, from[i]);
    return rc ? rc : jspend(r, n);
}

static int map_keys(struct jrun *r, struct jvalue self, const struct jargs *args,
                    struct jvalue *out)
{
    (void)args;
    return map_part(r, self.u.map->keys, self.u.map->n, out);
}

static int map_values(struct jrun *r, struct jvalue self, const struct jargs *args,
                      struct jvalue *out)
{
    (void)args;
    return map_part(r, self.u.map->values, self.u.map->n, out);
}

static int map_get(struct jrun *r, struct jvalue self, const struct jargs *args, struct jvalue *out)
{
    struct jvalue key;
    if (!jarg(args, 0, "key", &key))
        return jfail(r, "get needs a key");
    int rc = jindex(r, &self, &key, out);
    bool found = out->kind != J_UNDEF && out->kind != J_METHOD;
    if (!rc && !found && !jarg(args, 1, "default", out))
        *out = (struct jvalue){J_NONE, {0}};
    return rc;
}

static const struct jfunc str_methods[] = {
    {"strip", jstr_strip},      {"lstrip", str_lstrip},         {"rstrip", str_rstrip},
    {"split", str_split},       {"rsplit", str_rsplit},         {"startswith", str_startswith},
    {"endswith", str_endswith}, {"replace", jstr_replace},      {"upper", jstr_upper},
    {"lower", jstr_lower},      {"title", str_title},           {"capitalize", jstr_capitalize},
    {"find", str_find},         {"count", str_count},           {"isdigit", str_isdigit},
    {"join", str_join},         {"splitlines", str_splitlines}, {NULL, NULL}};
static const struct jfunc map_methods[] = {{"items", map_items},
                                           {"keys", map_keys},
                                           {"values", map_values},
                                           {"get", map_get},
                                           {NULL, NULL}};

const struct jfunc *jfind_method(enum jkind kind, const char *name)
{
    const struct jfunc *f = kind == J_STR ? str_methods : kind == J_MAP ? map_methods : NULL;
    for (; f && f->name; f++)
        if (!strcmp(f->name, name))
            return f;
    return NULL;
}

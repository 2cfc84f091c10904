/* Values as text: what a tag prints (Python's str and repr) and JSON (Python's json.dumps with
 * ensure_ascii off). Marks go along: punctuation is the template's, strings keep their own. */
#include "core/jinja_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int jbuf_put(struct jrun *r, struct jbuf *b, const char *s, const char *mark, char fill, size_t n)
{
    if (n > JINJA_MAX_OUTPUT - b->n)
        return err_set(r->e, ERR_LIMIT, "a chat template wrote more than %zu MB",
                       JINJA_MAX_OUTPUT >> 20);
    if (!mem_grow((void **)&b->s, &b->s_cap, b->n + n + 1, 1) ||
        !mem_grow((void **)&b->mark, &b->mark_cap, b->n + n + 1, 1))
        return err_nomem(r->e, b->n + n, "a chat template's output");
    if (n)
        memcpy(b->s + b->n, s, n);
    if (n && mark)
        memcpy(b->mark + b->n, mark, n);
    else
        memset(b->mark + b->n, fill, n);
    b->n += n;
    b->s[b->n] = '\0';
    return jspend(r, n / 64);
}

void jbuf_free(struct jbuf *b)
{
    free(b->s);
    free(b->mark);
    *b = (struct jbuf){0};
}

int jbuf_take(struct jrun *r, struct jbuf *b, struct jvalue *out)
{
    struct jstr all = {b->s, b->mark, b->n}, none = {"", NULL, 0};
    int rc = jconcat(r, all, none, out);
    jbuf_free(b);
    return rc;
}

static int put_str(struct jrun *r, struct jbuf *b, struct jstr s)
{
    return jbuf_put(r, b, s.s, s.mark, 0, s.n);
}

static int put(struct jrun *r, struct jbuf *b, const char *s)
{
    return jbuf_put(r, b, s, NULL, 0, strlen(s));
}

/* The shortest digits that read back the same, in Python's spelling. */
static int put_float(struct jrun *r, struct jbuf *b, double f)
{
    char text[64];
    if (isnan(f) || isinf(f))
        return put(r, b, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
    int digits = 1;
    do
        snprintf(text, sizeof text, "%.*g", digits, f);
    while (strtod(text, NULL) != f && ++digits <= 17);
    if (fabs(f) >= 1e-4 && fabs(f) < 1e16 && strchr(text, 'e'))
        snprintf(text, sizeof text, "%.1f", f);
    if (!strpbrk(text, ".e"))
        strcat(text, ".0");
    return put(r, b, text);
}

static int put_scalar(struct jrun *r, struct jbuf *b, const struct jvalue *v)
{
    char text[32];
    switch (v->kind) {
    case J_BOOL: return put(r, b, v->u.b ? "True" : "False");
    case J_NONE: return put(r, b, "None");
    case J_FLOAT: return put_float(r, b, v->u.f);
    case J_INT: snprintf(text, sizeof text, "%lld", (long long)v->u.i); return put(r, b, text);
    default: return jfail(r, "a %s cannot be printed", jtype_name(v));
    }
}

/* Python's repr of a string: single quotes unless only those occur inside. */
static int put_repr(struct jrun *r, struct jbuf *b, struct jstr s)
{
    bool doubled = s.n && memchr(s.s, '\'', s.n) && !memchr(s.s, '"', s.n);
    char quote[2] = {doubled ? '"' : '\'', '\0'}, code[8];
    int rc = put(r, b, quote);
    for (size_t i = 0; !rc && i < s.n; i++) {
        char c = s.s[i], mark = s.mark ? s.mark[i] : 0;
        const char *as = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : NULL;
        if (c == '\\' || c == *quote) {
            snprintf(code, sizeof code, "\\%c", c);
            as = code;
        } else if (!as && ((uint8_t)c < 32 || c == 127)) {
            snprintf(code, sizeof code, "\\x%02x", (uint8_t)c);
            as = code;
        }
        rc = as ? jbuf_put(r, b, as, NULL, mark, strlen(as)) : jbuf_put(r, b, &c, NULL, mark, 1);
    }
    return rc ? rc : put(r, b, quote);
}

static int put_value(struct jrun *r, struct jbuf *b, const struct jvalue *v, bool inside);

static int put_members(struct jrun *r, struct jbuf *b, const struct jvalue *v)
{
    bool map = v->kind == J_MAP;
    size_t n = map ? v->u.map->n : v->u.list->n;
    int rc = put(r, b, map ? "{" : "[");
    for (size_t i = 0; !rc && i < n; i++) {
        rc = i ? put(r, b, ", ") : OK;
        if (!rc && map)
            rc = put_value(r, b, &v->u.map->keys[i], true);
        if (!rc && map)
            rc = put(r, b, ": ");
        if (!rc)
            rc = put_value(r, b, map ? &v->u.map->values[i] : &v->u.list->v[i], true);
    }
    return rc ? rc : put(r, b, map ? "}" : "]");
}

static int put_value(struct jrun *r, struct jbuf *b, const struct jvalue *v, bool inside)
{
    if (v->kind == J_STR)
        return inside ? put_repr(r, b, v->u.str) : put_str(r, b, v->u.str);
    if (v->kind == J_UNDEF)
        return put(r, b, inside ? "Undefined" : "");
    if (v->kind != J_LIST && v->kind != J_MAP)
        return put_scalar(r, b, v);
    if (++r->depth > JINJA_MAX_DEPTH)
        return err_set(r->e, ERR_LIMIT, "chat template: values nested too deeply");
    int rc = jspend(r, 0);
    if (!rc)
        rc = put_members(r, b, v);
    r->depth--;
    return rc;
}

int jprint(struct jrun *r, struct jbuf *b, const struct jvalue *v)
{
    return put_value(r, b, v, false);
}

int jto_str(struct jrun *r, const struct jvalue *v, struct jstr *out)
{
    struct jbuf b = {0};
    struct jvalue text;
    if (v->kind == J_STR) {
        *out = v->u.str;
        return OK;
    }
    int rc = jprint(r, &b, v);
    if (rc) {
        jbuf_free(&b);
        return rc;
    }
    rc = jbuf_take(r, &b, &text);
    if (!rc)
        *out = text.u.str;
    return rc;
}

static int json_string(struct jrun *r, struct jbuf *b, struct jstr s)
{
    static const char plain[] = "\"\\\n\r\t\b\f", codes[] = "\"\\nrtbf";
    size_t done = 0;
    char code[8];
    int rc = put(r, b, "\"");
    for (size_t i = 0; !rc && i < s.n; i++) {
        const char *at = s.s[i] ? strchr(plain, s.s[i]) : NULL;
        if (!at && (uint8_t)s.s[i] >= 32)
            continue;
        if (at)
            snprintf(code, sizeof code, "\\%c", codes[at - plain]);
        else
            snprintf(code, sizeof code, "\\u%04x", (uint8_t)s.s[i]);
        rc = put_str(r, b, jsub(s, done, i).u.str);
        if (!rc)
            rc = jbuf_put(r, b, code, NULL, s.mark ? s.mark[i] : 0, strlen(code));
        done = i + 1;
    }
    if (!rc)
        rc = put_str(r, b, jsub(s, done, s.n).u.str);
    return rc ? rc : put(r, b, "\"");
}

static int json_break(struct jrun *r, struct jbuf *b, int spaces)
{
    int rc = put(r, b, "\n");
    for (int i = 0; !rc && i < spaces; i++)
        rc = put(r, b, " ");
    return rc;
}

static int json_value(struct jrun *r, struct jbuf *b, const struct jvalue *v, int indent,
                      int level);

static int json_members(struct jrun *r, struct jbuf *b, const struct jvalue *v, int indent,
                        int level)
{
    bool map = v->kind == J_MAP;
    size_t n = map ? v->u.map->n : v->u.list->n;
    int rc = put(r, b, map ? "{" : "[");
    for (size_t i = 0; !rc && i < n; i++) {
        if (i)
            rc = put(r, b, indent < 0 ? ", " : ",");
        if (!rc && indent >= 0)
            rc = json_break(r, b, indent * (level + 1));
        if (!rc && map && v->u.map->keys[i].kind != J_STR)
            return jfail(r, "tojson: a key is not a string");
        if (!rc && map)
            rc = json_string(r, b, v->u.map->keys[i].u.str);
        if (!rc && map)
            rc = put(r, b, ": ");
        if (!rc)
            rc = json_value(r, b, map ? &v->u.map->values[i] : &v->u.list->v[i], indent, level + 1);
    }
    if (!rc && n && indent >= 0)
        rc = json_break(r, b, indent * level);
    return rc ? rc : put(r, b, map ? "}" : "]");
}

static int json_value(struct jrun *r, struct jbuf *b, const struct jvalue *v, int indent, int level)
{
    int rc = jspend(r, 0);
    if (rc)
        return rc;
    switch (v->kind) {
    case J_STR: return json_string(r, b, v->u.str);
    case J_BOOL: return put(r, b, v->u.b ? "true" : "false");
    case J_NONE: return put(r, b, "null");
    case J_INT:
    case J_FLOAT: return put_scalar(r, b, v);
    case J_LIST:
    case J_MAP: break;
    default: return jfail(r, "tojson: %s is not JSON serializable", jtype_name(v));
    }
    if (++r->depth > JINJA_MAX_DEPTH)
        return err_set(r->e, ERR_LIMIT, "chat template: values nested too deeply");
    rc = json_members(r, b, v, indent, level);
    r->depth--;
    return rc;
}

int jto_json(struct jrun *r, struct jbuf *b, const struct jvalue *v, int indent)
{
    return json_value(r, b, v, indent, 0);
}

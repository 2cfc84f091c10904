/* Values of a rendering: memory, strings with marks, lists, maps, truth, equality, import. */
#include "core/jinja_impl.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

#define BLOCK ((size_t)32 << 10)

struct jblock {
    struct jblock *next;
    size_t used, size;
    max_align_t bytes[];
};

void *jarena_alloc(struct jarena *a, size_t n)
{
    struct jblock *b = a->blocks;
    n = (n + 15) & ~(size_t)15;
    if (!b || b->size - b->used < n) {
        size_t size = n > BLOCK ? n : BLOCK;
        if (size > a->limit - a->total || !(b = calloc(1, sizeof *b + size)))
            return NULL;
        b->size = size;
        b->next = a->blocks;
        a->blocks = b;
        a->total += size;
    }
    void *p = (char *)b->bytes + b->used;
    b->used += n;
    return p;
}

void jarena_free(struct jarena *a)
{
    while (a->blocks) {
        struct jblock *next = a->blocks->next;
        free(a->blocks);
        a->blocks = next;
    }
    a->total = 0;
}

static int fail(struct jrun *r, const char *fmt, va_list ap)
{
    char why[512];
    vsnprintf(why, sizeof why, fmt, ap);
    return err_set(r->e, ERR_UNSUPPORTED, "chat template line %d: %s", r->at ? r->at->line : 0,
                   why);
}

int jfail(struct jrun *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = fail(r, fmt, ap);
    va_end(ap);
    return rc;
}

int jlack(struct jrun *r, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int rc = fail(r, fmt, ap);
    va_end(ap);
    r->lacking = true;
    return rc;
}

int jspend(struct jrun *r, size_t work)
{
    r->steps += 1 + (long)(work < JINJA_MAX_STEPS ? work : JINJA_MAX_STEPS);
    if (r->steps <= JINJA_MAX_STEPS)
        return OK;
    return err_set(r->e, ERR_LIMIT, "chat template line %d: too many steps (limit %ld)",
                   r->at ? r->at->line : 0, JINJA_MAX_STEPS);
}

int jnomem(struct jrun *r)
{
    if (r->arena.total + BLOCK < r->arena.limit / 2)
        return err_set(r->e, ERR_NOMEM, "out of memory in a chat template");
    return err_set(r->e, ERR_LIMIT, "chat template line %d: uses more than %zu MB",
                   r->at ? r->at->line : 0, JINJA_MAX_MEMORY >> 20);
}

void *jalloc(struct jrun *r, size_t n)
{
    void *p = jarena_alloc(&r->arena, n);
    if (!p)
        jnomem(r);
    return p;
}

struct jvalue jbool(bool b)
{
    return (struct jvalue){J_BOOL, {.b = b}};
}

struct jvalue jint(int64_t i)
{
    return (struct jvalue){J_INT, {.i = i}};
}

struct jvalue jtext(const char *s, size_t n)
{
    return (struct jvalue){J_STR, {.str = {s, NULL, n}}};
}

int jundef(struct jrun *r, struct jvalue *out, const char *fmt, ...)
{
    char why[256], *copy;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    copy = jalloc(r, strlen(why) + 1);
    if (!copy)
        return ERR_LIMIT;
    strcpy(copy, why);
    *out = (struct jvalue){J_UNDEF, {.why = copy}};
    return OK;
}

const char *jtype_name(const struct jvalue *v)
{
    switch (v->kind) {
    case J_UNDEF: return "undefined";
    case J_NONE: return "None";
    case J_BOOL: return "bool object";
    case J_INT: return "int object";
    case J_FLOAT: return "float object";
    case J_STR: return "str object";
    case J_LIST: return "list object";
    case J_MAP: return "dict object";
    case J_NAMESPACE: return "namespace object";
    case J_LOOP: return "loop object";
    default: return "function object";
    }
}

struct jvalue jsub(struct jstr s, size_t begin, size_t end)
{
    struct jstr part = {s.s + begin, s.mark ? s.mark + begin : NULL, end - begin};
    return (struct jvalue){J_STR, {.str = part}};
}

int jconcat(struct jrun *r, struct jstr a, struct jstr b, struct jvalue *out)
{
    size_t n = a.n + b.n;
    bool marked = a.mark || b.mark;
    if (n > JINJA_MAX_OUTPUT)
        return err_set(r->e, ERR_LIMIT, "chat template line %d: a string exceeds %zu MB",
                       r->at ? r->at->line : 0, JINJA_MAX_OUTPUT >> 20);
    char *s = jalloc(r, n * (marked ? 2 : 1) + 1);
    if (!s)
        return ERR_LIMIT;
    char *mark = marked ? s + n : NULL;
    if (a.n)
        memcpy(s, a.s, a.n);
    if (b.n)
        memcpy(s + a.n, b.s, b.n);
    if (a.mark && a.n)
        memcpy(mark, a.mark, a.n);
    if (b.mark && b.n)
        memcpy(mark + a.n, b.mark, b.n);
    *out = (struct jvalue){J_STR, {.str = {s, mark, n}}};
    return OK;
}

/* Arena memory grows by moving; what is left behind is at most what is in use. */
static int grow(struct jrun *r, struct jvalue **v, size_t cap, size_t new_cap)
{
    struct jvalue *moved = jalloc(r, new_cap * sizeof *moved);
    if (!moved)
        return ERR_LIMIT;
    if (cap)
        memcpy(moved, *v, cap * sizeof *moved);
    *v = moved;
    return OK;
}

int jlist_new(struct jrun *r, size_t cap, struct jvalue *out)
{
    struct jlist *l = jalloc(r, sizeof *l);
    if (!l || (cap && grow(r, &l->v, 0, cap)))
        return ERR_LIMIT;
    l->cap = cap;
    *out = (struct jvalue){J_LIST, {.list = l}};
    return OK;
}

int jlist_push(struct jrun *r, struct jlist *l, struct jvalue v)
{
    if (l->n == l->cap) {
        size_t cap = l->cap * 2 + 4;
        if (grow(r, &l->v, l->n, cap))
            return ERR_LIMIT;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return OK;
}

int jmap_new(struct jrun *r, size_t cap, struct jvalue *out)
{
    struct jmap *m = jalloc(r, sizeof *m);
    if (!m || (cap && (grow(r, &m->keys, 0, cap) || grow(r, &m->values, 0, cap))))
        return ERR_LIMIT;
    m->cap = cap;
    *out = (struct jvalue){J_MAP, {.map = m}};
    return OK;
}

int jmap_set(struct jrun *r, struct jmap *m, struct jvalue key, struct jvalue v)
{
    int rc = jspend(r, m->n / 8);
    for (size_t i = 0; !rc && i < m->n; i++) {
        bool same;
        rc = jequal(r, &m->keys[i], &key, &same);
        if (!rc && same) {
            m->values[i] = v;
            return OK;
        }
    }
    if (!rc && m->n == m->cap) {
        size_t cap = m->cap * 2 + 4;
        rc = grow(r, &m->keys, m->n, cap);
        if (!rc)
            rc = grow(r, &m->values, m->n, cap);
        m->cap = cap;
    }
    if (rc)
        return rc;
    m->keys[m->n] = key;
    m->values[m->n++] = v;
    return OK;
}

const struct jvalue *jmap_get(const struct jmap *m, const char *key, size_t n)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct jvalue *k = &m->keys[i];
        if (k->kind == J_STR && k->u.str.n == n && !memcmp(k->u.str.s, key, n))
            return &m->values[i];
    }
    return NULL;
}

bool jtruth(const struct jvalue *v)
{
    switch (v->kind) {
    case J_UNDEF:
    case J_NONE: return false;
    case J_BOOL: return v->u.b;
    case J_INT: return v->u.i != 0;
    case J_FLOAT: return v->u.f != 0;
    case J_STR: return v->u.str.n != 0;
    case J_LIST: return v->u.list->n != 0;
    case J_MAP: return v->u.map->n != 0;
    default: return true;
    }
}

static bool is_number(const struct jvalue *v)
{
    return v->kind == J_BOOL || v->kind == J_INT || v->kind == J_FLOAT;
}

static double number(const struct jvalue *v)
{
    return v->kind == J_FLOAT ? v->u.f : v->kind == J_INT ? (double)v->u.i : v->u.b;
}

static int equal_lists(struct jrun *r, const struct jlist *a, const struct jlist *b, bool *out)
{
    int rc = OK;
    *out = a->n == b->n;
    for (size_t i = 0; !rc && *out && i < a->n; i++)
        rc = jequal(r, &a->v[i], &b->v[i], out);
    return rc;
}

static int equal_maps(struct jrun *r, const struct jmap *a, const struct jmap *b, bool *out)
{
    int rc = OK;
    *out = a->n == b->n;
    for (size_t i = 0; !rc && *out && i < a->n; i++) {
        bool found = false;
        for (size_t k = 0; !rc && !found && k < b->n; k++) {
            rc = jequal(r, &a->keys[i], &b->keys[k], &found);
            if (!rc && found)
                rc = jequal(r, &a->values[i], &b->values[k], out);
        }
        *out = *out && found;
    }
    return rc;
}

int jequal(struct jrun *r, const struct jvalue *a, const struct jvalue *b, bool *out)
{
    int rc = jspend(r, 0);
    *out = false;
    if (rc)
        return rc;
    if (is_number(a) && is_number(b)) {
        bool whole = a->kind == J_INT && b->kind == J_INT;
        *out = whole ? a->u.i == b->u.i : number(a) == number(b);
        return OK;
    }
    if (a->kind != b->kind)
        return OK;
    if (++r->depth > JINJA_MAX_DEPTH)
        return err_set(r->e, ERR_LIMIT, "chat template: values nested too deeply");
    switch (a->kind) {
    case J_UNDEF:
    case J_NONE: *out = true; break;
    case J_STR:
        *out = a->u.str.n == b->u.str.n &&
               (!a->u.str.n || !memcmp(a->u.str.s, b->u.str.s, a->u.str.n));
        rc = jspend(r, *out ? a->u.str.n / 64 : 0);
        break;
    case J_LIST: rc = equal_lists(r, a->u.list, b->u.list, out); break;
    case J_MAP: rc = equal_maps(r, a->u.map, b->u.map, out); break;
    default: *out = a->u.map == b->u.map; break;
    }
    r->depth--;
    return rc;
}

int jcontains(struct jrun *r, const struct jvalue *in, const struct jvalue *what, bool *out)
{
    struct jlist *items;
    *out = false;
    if (in->kind == J_STR) {
        if (what->kind != J_STR)
            return jfail(r, "'in <string>' requires string as left operand, not %s",
                         jtype_name(what));
        const struct jstr *a = &in->u.str, *b = &what->u.str;
        *out = !b->n || (a->n && memmem(a->s, a->n, b->s, b->n));
        return jspend(r, a->n / 64);
    }
    int rc = jitems(r, in, &items);
    for (size_t i = 0; !rc && !*out && i < items->n; i++)
        rc = jequal(r, &items->v[i], what, out);
    return rc;
}

static int characters(struct jrun *r, struct jstr s, struct jvalue *out)
{
    uint32_t cp;
    size_t len;
    int rc = jlist_new(r, 0, out);
    for (size_t i = 0; !rc && i < s.n; i += len) {
        utf8_next(s.s + i, s.n - i, &cp, &len);
        rc = jlist_push(r, out->u.list, jsub(s, i, i + len));
    }
    return rc ? rc : jspend(r, s.n);
}

int jitems(struct jrun *r, const struct jvalue *v, struct jlist **out)
{
    struct jvalue list;
    struct jlist *l;
    int rc;
    switch (v->kind) {
    case J_LIST: *out = v->u.list; return OK;
    case J_UNDEF: rc = jlist_new(r, 0, &list); break;
    case J_STR: rc = characters(r, v->u.str, &list); break;
    case J_MAP:
        l = jalloc(r, sizeof *l);
        if (!l)
            return ERR_LIMIT;
        *l = (struct jlist){v->u.map->keys, v->u.map->n, v->u.map->n};
        *out = l;
        return OK;
    default: return jfail(r, "%s is not iterable", jtype_name(v));
    }
    if (!rc)
        *out = list.u.list;
    return rc;
}

static int import_text(struct jrun *r, const char *text, bool user, struct jvalue *out)
{
    size_t n;
    char *fixed = utf8_repair(text, strlen(text), &n, NULL, 0);
    char *s = fixed ? jalloc(r, n * (user ? 2 : 1) + 1) : NULL;
    if (!s) {
        free(fixed);
        return fixed ? ERR_LIMIT : err_nomem(r->e, n, "a message");
    }
    memcpy(s, fixed, n);
    if (user)
        memset(s + n, 1, n);
    free(fixed);
    *out = (struct jvalue){J_STR, {.str = {s, user ? s + n : NULL, n}}};
    return OK;
}

static int import_members(struct jrun *r, const cJSON *item, bool user, int depth,
                          struct jvalue *out)
{
    const cJSON *one;
    struct jvalue key, value;
    bool map = cJSON_IsObject(item);
    int rc = map ? jmap_new(r, 0, out) : jlist_new(r, 0, out);
    cJSON_ArrayForEach(one, item)
    {
        bool role = map && !strcmp(one->string, "role");
        if (!rc)
            rc = jimport(r, one, user && !role, depth + 1, &value);
        if (!rc && map)
            rc = import_text(r, one->string, user, &key);
        if (!rc)
            rc = map ? jmap_set(r, out->u.map, key, value) : jlist_push(r, out->u.list, value);
        if (rc)
            break;
    }
    return rc;
}

int jimport(struct jrun *r, const cJSON *item, bool user, int depth, struct jvalue *out)
{
    int rc = jspend(r, 0);
    if (rc)
        return rc;
    if (depth > JINJA_MAX_NESTING)
        return err_set(r->e, ERR_LIMIT, "a chat variable is nested too deeply");
    if (cJSON_IsString(item))
        return import_text(r, item->valuestring, user, out);
    if (cJSON_IsArray(item) || cJSON_IsObject(item))
        return import_members(r, item, user, depth, out);
    if (cJSON_IsBool(item)) {
        *out = jbool(cJSON_IsTrue(item));
    } else if (cJSON_IsNumber(item)) {
        double v = item->valuedouble;
        bool whole = v == floor(v) && fabs(v) < 9e15;
        *out = whole ? jint((int64_t)v) : (struct jvalue){J_FLOAT, {.f = v}};
    } else {
        *out = (struct jvalue){J_NONE, {0}};
    }
    return OK;
}

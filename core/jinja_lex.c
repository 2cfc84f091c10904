/* Template source to tokens: tags, their white-space control, and the words inside them. */
#include "core/jinja_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/utf8.h"

struct lexer {
    struct jarena *arena;
    const char *s;
    size_t n, i;
    size_t counted; /* lines are counted up to here */
    int line;
    struct jtokens *out;
    struct err *e;
};

static int line_at(struct lexer *x, size_t pos)
{
    for (; x->counted < pos; x->counted++)
        x->line += x->s[x->counted] == '\n';
    return x->line;
}

static int broken(struct lexer *x, const char *what)
{
    return err_set(x->e, ERR_FORMAT, "chat template line %d: %s", line_at(x, x->i), what);
}

static int emit(struct lexer *x, enum jtoken_kind kind, const char *s, size_t n)
{
    struct jtokens *t = x->out;
    if (!mem_grow((void **)&t->v, &t->cap, t->n + 1, sizeof *t->v))
        return err_nomem(x->e, sizeof *t->v, "a chat template");
    t->v[t->n++] = (struct jtoken){.kind = kind, .line = line_at(x, x->i), .s = s, .n = n};
    return OK;
}

/* As emit, with a NUL-terminated copy of the text. */
static int emit_copy(struct lexer *x, enum jtoken_kind kind, const char *s, size_t n)
{
    char *copy = jarena_alloc(x->arena, n + 1);
    if (!copy)
        return err_nomem(x->e, n + 1, "a chat template");
    memcpy(copy, s, n);
    return emit(x, kind, copy, n);
}

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void skip_blanks(struct lexer *x)
{
    while (x->i < x->n && is_blank(x->s[x->i]))
        x->i++;
}

static bool is_name(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (!first && c >= '0' && c <= '9');
}

static int hex_digits(const char *s, const char *end, int want, uint32_t *out)
{
    uint32_t v = 0;
    for (int i = 0; i < want; i++, s++) {
        if (s >= end)
            return 0;
        char c = *s;
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return 0;
        v = v << 4 | (uint32_t)d;
    }
    *out = v;
    return want;
}

/* One escape at s (behind the backslash); writes to *to and returns the bytes read, 0: unknown. */
static size_t unescape(const char *s, const char *end, char **to)
{
    static const char names[] = "nrtbfva\\'\"", values[] = "\n\r\t\b\f\v\a\\'\"";
    const char *at = memchr(names, *s, sizeof names - 1);
    uint32_t cp = 0;
    int want = *s == 'x' ? 2 : *s == 'u' ? 4 : *s == 'U' ? 8 : 0;
    if (at) {
        *(*to)++ = values[at - names];
        return 1;
    }
    if (*s == '\n')
        return 1;
    if (want && hex_digits(s + 1, end, want, &cp)) {
        *to += utf8_put(cp, *to);
        return (size_t)want + 1;
    }
    size_t n = 0;
    for (; n < 3 && s + n < end && s[n] >= '0' && s[n] <= '7'; n++)
        cp = cp << 3 | (uint32_t)(s[n] - '0');
    if (n)
        *to += utf8_put(cp, *to);
    return n;
}

static int lex_string(struct lexer *x)
{
    const char *end = x->s + x->n, *s = x->s + x->i + 1, *close = s;
    char quote = s[-1];
    while (close < end && *close != quote)
        close += *close == '\\' && close + 1 < end ? 2 : 1;
    if (close >= end)
        return broken(x, "a string is not closed");
    /* \x is at least as long as the UTF-8 it stands for. */
    char *copy = jarena_alloc(x->arena, (size_t)(close - s) + 1), *to = copy;
    if (!copy)
        return err_nomem(x->e, (size_t)(close - s), "a chat template");
    while (s < close) {
        size_t used = *s == '\\' ? unescape(s + 1, close, &to) : 0;
        if (used)
            s += used + 1;
        else
            *to++ = *s++;
    }
    int rc = emit(x, JT_STR, copy, (size_t)(to - copy));
    x->i = (size_t)(close - x->s) + 1;
    return rc;
}

static int lex_number(struct lexer *x)
{
    size_t begin = x->i, i = begin;
    bool real = false;
    char digits[64];
    while (i < x->n && ((x->s[i] >= '0' && x->s[i] <= '9') || x->s[i] == '_'))
        i++;
    if (i + 1 < x->n && x->s[i] == '.' && x->s[i + 1] >= '0' && x->s[i + 1] <= '9') {
        real = true;
        for (i++; i < x->n && x->s[i] >= '0' && x->s[i] <= '9';)
            i++;
    }
    size_t sign = i + 1 < x->n && (x->s[i + 1] == '-' || x->s[i + 1] == '+');
    if (i + sign + 1 < x->n && (x->s[i] == 'e' || x->s[i] == 'E') && x->s[i + sign + 1] >= '0' &&
        x->s[i + sign + 1] <= '9') {
        real = true;
        for (i += sign + 1; i < x->n && x->s[i] >= '0' && x->s[i] <= '9';)
            i++;
    }
    if (i - begin >= sizeof digits)
        return broken(x, "a number is too long");
    size_t used = 0;
    for (size_t k = begin; k < i; k++)
        if (x->s[k] != '_')
            digits[used++] = x->s[k];
    digits[used] = '\0';
    errno = 0;
    struct jvalue v = real ? (struct jvalue){J_FLOAT, {.f = strtod(digits, NULL)}}
                           : jint(strtoll(digits, NULL, 10));
    if (errno)
        return broken(x, "a number is too large");
    int rc = emit(x, real ? JT_FLOAT : JT_INT, x->s + begin, i - begin);
    if (!rc)
        x->out->v[x->out->n - 1].value = v;
    x->i = i;
    return rc;
}

static int lex_operator(struct lexer *x, int *depth)
{
    static const char *const two[] = {"==", "!=", "<=", ">=", "//", "**"};
    const char *s = x->s + x->i;
    size_t n = 1;
    for (size_t k = 0; k < sizeof two / sizeof *two; k++)
        if (x->n - x->i >= 2 && !memcmp(s, two[k], 2))
            n = 2;
    if (n == 1 && !memchr("+-*/%~<>=.,:|()[]{}", *s, 19)) {
        char what[] = "unexpected character ' '";
        what[22] = *s >= 32 && *s < 127 ? *s : '?';
        return broken(x, what);
    }
    if (n == 1 && memchr("([{", *s, 3))
        ++*depth;
    if (n == 1 && memchr(")]}", *s, 3))
        --*depth;
    int rc = emit_copy(x, JT_OP, s, n);
    x->i += n;
    return rc;
}

/* Length of a closing tag (with its sign) at the current place, 0 when there is none. */
static size_t closing(const struct lexer *x, const char *end)
{
    const char *s = x->s + x->i;
    size_t left = x->n - x->i, sign = left && (*s == '-' || (*s == '+' && *end == '%'));
    return left >= sign + 2 && !memcmp(s + sign, end, 2) ? sign + 2 : 0;
}

/* After a closing tag: - strips all white space, otherwise a block loses one newline. */
static void trim_after(struct lexer *x, char sign, bool block)
{
    if (sign == '-')
        skip_blanks(x);
    else if (block && sign != '+' && x->i < x->n && x->s[x->i] == '\n')
        x->i++;
}

static int lex_tag(struct lexer *x, bool block)
{
    const char *end = block ? "%}" : "}}";
    int depth = 0, rc = emit(x, block ? JT_BLOCK_BEGIN : JT_VAR_BEGIN, "", 0);
    while (!rc) {
        size_t n;
        skip_blanks(x);
        if (x->i >= x->n)
            return broken(x, block ? "a {% is not closed" : "a {{ is not closed");
        if (depth <= 0 && (n = closing(x, end))) {
            char sign = x->s[x->i];
            rc = emit(x, block ? JT_BLOCK_END : JT_VAR_END, "", 0);
            x->i += n;
            trim_after(x, sign, block);
            return rc;
        }
        char c = x->s[x->i];
        if (is_name(c, true)) {
            size_t begin = x->i;
            while (x->i < x->n && is_name(x->s[x->i], false))
                x->i++;
            rc = emit_copy(x, JT_NAME, x->s + begin, x->i - begin);
        } else if (c >= '0' && c <= '9') {
            rc = lex_number(x);
        } else if (c == '\'' || c == '"') {
            rc = lex_string(x);
        } else {
            rc = lex_operator(x, &depth);
        }
    }
    return rc;
}

static int skip_comment(struct lexer *x)
{
    const char *close = memmem(x->s + x->i, x->n - x->i, "#}", 2);
    if (!close)
        return broken(x, "a comment is not closed");
    char sign = close > x->s + x->i ? close[-1] : ' ';
    x->i = (size_t)(close - x->s) + 2;
    trim_after(x, sign, true);
    return OK;
}

/* Text before a tag at p: - strips all white space, and a block or comment that stands first on
 * its line loses the blanks before it (lstrip_blocks). */
static int lex_text(struct lexer *x, size_t p, char tag, char sign)
{
    size_t end = p, start = p;
    bool line_start = x->i == 0 || x->s[x->i - 1] == '\n';
    if (sign == '-') {
        while (end > x->i && is_blank(x->s[end - 1]))
            end--;
    } else if (sign != '+' && tag != '{') {
        while (start > x->i && is_blank(x->s[start - 1]) && x->s[start - 1] != '\n')
            start--;
        if (start > x->i ? x->s[start - 1] == '\n' : line_start)
            end = start;
    }
    return end > x->i ? emit(x, JT_TEXT, x->s + x->i, end - x->i) : OK;
}

static size_t find_tag(const struct lexer *x)
{
    for (size_t p = x->i; p + 1 < x->n; p++)
        if (x->s[p] == '{' && memchr("{%#", x->s[p + 1], 3))
            return p;
    return x->n;
}

static int lex_all(struct lexer *x)
{
    int rc = OK;
    while (!rc && x->i < x->n) {
        size_t p = find_tag(x);
        if (p == x->n)
            return emit(x, JT_TEXT, x->s + x->i, x->n - x->i);
        char tag = x->s[p + 1], sign = p + 2 < x->n ? x->s[p + 2] : ' ';
        rc = lex_text(x, p, tag, sign);
        x->i = p + 2 + (sign == '-' || sign == '+');
        if (!rc)
            rc = tag == '#' ? skip_comment(x) : lex_tag(x, tag == '%');
    }
    return rc;
}

int jinja_lex(struct jarena *a, const char *source, size_t n, struct jtokens *out, struct err *e)
{
    if (n > JINJA_MAX_SOURCE)
        return err_set(e, ERR_LIMIT, "a chat template of %zu bytes is too long", n);
    char *fixed = utf8_repair(source, n, &n, NULL, 0);
    char *copy = fixed ? jarena_alloc(a, n + 1) : NULL;
    size_t used = 0;
    if (!copy) {
        free(fixed);
        return err_nomem(e, n, "a chat template");
    }
    for (size_t i = 0; i < n; i++) {
        bool crlf = fixed[i] == '\r' && i + 1 < n && fixed[i + 1] == '\n';
        if (!crlf)
            copy[used++] = fixed[i] == '\r' ? '\n' : fixed[i];
    }
    free(fixed);
    if (used && copy[used - 1] == '\n')
        used--;
    struct lexer x = {.arena = a, .s = copy, .n = used, .line = 1, .out = out, .e = e};
    int rc = lex_all(&x);
    return rc ? rc : emit(&x, JT_END, "", 0);
}

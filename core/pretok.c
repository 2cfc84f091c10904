/* Pre-tokenizer steps over PCRE2 (with JIT where there is one). The subject of a step is the piece
 * alone, so that look-ahead ends where the piece ends, as in the reference implementation.
 *
 * Two known differences to the reference's regex engine: \s is rewritten, as PCRE2 counts U+180E
 * as white space; and letters that Unicode added after PCRE2's tables count as non-letters. */
#include "core/pretok.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "core/utf8.h"

#define MAX_STEPS 16
#define MAX_PATTERN 8192
#define MATCH_LIMIT 100000000 /* a run of 1 MB backtracks about 10⁶ times; only bombs need more */

#define LETTER_WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"

const char pretok_gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                           "|\\s+(?!\\S)|\\s+";
const char pretok_llama3[] =
    CONTRACTIONS "|" LETTER_WORD "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES;
const char pretok_qwen2[] =
    CONTRACTIONS "|" LETTER_WORD "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES;
const char pretok_tekken[] = "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+"
                             "|[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER "]*"
                             "|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES;
const char pretok_o200k[] = "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+" CONTRACTIONS "?"
                            "|[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER "]*" CONTRACTIONS "?"
                            "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES;
const char pretok_falcon_marks[] = "[\\p{P}$+<=>^~|`]+";
const char pretok_old_marks[] = "[\\p{P}$+<=>^~|]+";
const char pretok_deepseek_han[] = "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+";
const char pretok_deepseek[] =
    "[!\"#$%&'()*+,\\-./"
    ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES;

enum step_kind { STEP_SPLIT, STEP_DIGITS, STEP_SPACE, STEP_METASPACE };

struct step {
    enum step_kind kind;
    pcre2_code *code;
    enum pretok_behavior behavior;
    bool invert;
    bool single; /* digits: each alone; metaspace: split */
    enum pretok_scheme scheme;
    char mark[8];
    size_t n_mark;
};

struct pretok {
    struct step steps[MAX_STEPS];
    int n;
};

struct run {
    const struct pretok *p;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    bool at_start;
    pretok_word_fn word;
    void *user;
    struct err *e;
};

int pretok_new(struct pretok **out, struct err *e)
{
    *out = mem_calloc(1, sizeof **out);
    return *out ? OK : err_nomem(e, sizeof **out, "the pre-tokenizer");
}

void pretok_free(struct pretok *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n; i++)
        pcre2_code_free(p->steps[i].code);
    free(p);
}

/* NULL, with the message set, when there are too many. */
static struct step *add_step(struct pretok *p, enum step_kind kind, struct err *e)
{
    if (p->n == MAX_STEPS) {
        err_set(e, ERR_LIMIT, "pre-tokenizer: more than %d steps", MAX_STEPS);
        return NULL;
    }
    p->steps[p->n].kind = kind;
    return &p->steps[p->n++];
}

#define SPACE_RANGES                                                                               \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"

/* The pattern with \s and \S as White_Space (see the top); fresh memory, NULL when out of it. */
static char *fix_spaces(const char *pattern)
{
    bool in_class = false;
    size_t used = 0, n = strlen(pattern);
    char *out = malloc(n * (sizeof SPACE_RANGES + 4) + 1);
    if (!out)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        char next = pattern[i] == '\\' ? pattern[i + 1] : '\0';
        if (next == 's' || next == 'S') {
            const char *with = next == 's' ? (in_class ? SPACE_RANGES : "[" SPACE_RANGES "]")
                                           : (in_class ? "\\S\\x{180e}" : "[^" SPACE_RANGES "]");
            used += (size_t)(stpcpy(out + used, with) - (out + used));
            i++;
            continue;
        }
        out[used++] = pattern[i];
        if (next) {
            out[used++] = pattern[++i];
            continue;
        }
        if (pattern[i] == '[' && !in_class) {
            in_class = true;
            /* A ] right after [ or [^ is a literal one. */
            if (pattern[i + 1] == '^')
                out[used++] = pattern[++i];
            if (pattern[i + 1] == ']')
                out[used++] = pattern[++i];
        } else if (pattern[i] == ']') {
            in_class = false;
        }
    }
    out[used] = '\0';
    return out;
}

int pretok_add_split(struct pretok *p, const char *pattern, bool literal,
                     enum pretok_behavior behavior, bool invert, struct err *e)
{
    struct step *step = add_step(p, STEP_SPLIT, e);
    PCRE2_SIZE at;
    int code;
    if (!step)
        return ERR_LIMIT;
    if (strlen(pattern) > MAX_PATTERN)
        return err_set(e, ERR_LIMIT, "pre-tokenizer: a pattern of %zu bytes is too long",
                       strlen(pattern));
    char *fixed = literal ? mem_strdup(pattern) : fix_spaces(pattern);
    if (!fixed)
        return err_nomem(e, strlen(pattern), "a pre-tokenizer pattern");
    uint32_t flags = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    step->code = pcre2_compile((PCRE2_SPTR)fixed, PCRE2_ZERO_TERMINATED, flags, &code, &at, NULL);
    free(fixed);
    if (!step->code) {
        PCRE2_UCHAR why[128];
        pcre2_get_error_message(code, why, sizeof why);
        return err_set(e, ERR_UNSUPPORTED, "pre-tokenizer: pattern %.200s: %s", pattern,
                       (const char *)why);
    }
    /* Without JIT on this machine matching still works, only slower. */
    pcre2_jit_compile(step->code, PCRE2_JIT_COMPLETE);
    step->behavior = behavior;
    step->invert = invert;
    return OK;
}

int pretok_add_digits(struct pretok *p, bool individual, struct err *e)
{
    struct step *step = add_step(p, STEP_DIGITS, e);
    if (!step)
        return ERR_LIMIT;
    step->behavior = individual ? PRETOK_ISOLATED : PRETOK_CONTIGUOUS;
    return OK;
}

int pretok_add_space(struct pretok *p, struct err *e)
{
    return add_step(p, STEP_SPACE, e) ? OK : ERR_LIMIT;
}

int pretok_add_metaspace(struct pretok *p, const char *mark, enum pretok_scheme scheme, bool split,
                         struct err *e)
{
    struct step *step = add_step(p, STEP_METASPACE, e);
    if (!step)
        return ERR_LIMIT;
    step->n_mark = strlen(mark);
    uint32_t cp;
    size_t len = 0;
    if (step->n_mark)
        utf8_next(mark, step->n_mark, &cp, &len);
    /* One character, as in the reference; so no chain of steps can make a text grow and grow. */
    if (!step->n_mark || len != step->n_mark)
        return err_set(e, ERR_UNSUPPORTED, "pre-tokenizer: Metaspace replacement \"%.20s\"", mark);
    memcpy(step->mark, mark, step->n_mark + 1);
    step->scheme = scheme;
    step->single = split;
    step->behavior = PRETOK_MERGED_WITH_NEXT;
    return OK;
}

static int run_steps(struct run *r, int k, const char *s, size_t n);

/* Turns the stream of matches and gaps of one step into pieces for the next one. */
struct cutter {
    struct run *r;
    int k;
    const char *s;
    enum pretok_behavior behavior;
    size_t begin, end; /* the piece held back, when held */
    bool held, held_match, last_match;
};

static int cut_flush(struct cutter *c)
{
    if (!c->held)
        return OK;
    c->held = false;
    return run_steps(c->r, c->k + 1, c->s + c->begin, c->end - c->begin);
}

static int cut(struct cutter *c, size_t begin, size_t end, bool match)
{
    bool join = false;
    if (begin == end || (c->behavior == PRETOK_REMOVED && match))
        return OK;
    switch (c->behavior) {
    case PRETOK_ISOLATED:
    case PRETOK_REMOVED: break;
    case PRETOK_MERGED_WITH_PREVIOUS: join = match && !c->last_match; break;
    case PRETOK_MERGED_WITH_NEXT: join = c->held_match && !match; break;
    case PRETOK_CONTIGUOUS: join = c->held_match == match; break;
    }
    c->last_match = match;
    if (join && c->held) {
        c->end = end;
        c->held_match = match;
        return OK;
    }
    int rc = cut_flush(c);
    c->begin = begin;
    c->end = end;
    c->held = true;
    c->held_match = match;
    return rc;
}

static int match_next(struct run *r, const pcre2_code *code, const char *s, size_t n, size_t from)
{
    uint32_t flags = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(code, (PCRE2_SPTR)s, n, from, flags, r->match, r->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(code, (PCRE2_SPTR)s, n, from, flags | PCRE2_NO_JIT, r->match, r->limits);
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH)
        return rc;
    PCRE2_UCHAR why[128];
    pcre2_get_error_message(rc, why, sizeof why);
    err_set(r->e, ERR_LIMIT, "pre-tokenizer: %s in a piece of %zu bytes", (const char *)why, n);
    return rc;
}

static int run_split(struct run *r, int k, const char *s, size_t n)
{
    const struct step *step = &r->p->steps[k];
    struct cutter c = {.r = r, .k = k, .s = s, .behavior = step->behavior};
    const PCRE2_SIZE *found = pcre2_get_ovector_pointer(r->match);
    size_t done = 0, from = 0;
    int rc = OK;
    while (!rc && from < n) {
        int got = match_next(r, step->code, s, n, from);
        if (got == PCRE2_ERROR_NOMATCH)
            break;
        if (got < 0)
            return ERR_LIMIT;
        size_t begin = found[0], end = found[1];
        if (end <= begin) { /* an empty match cuts nothing */
            uint32_t cp;
            size_t len;
            if (end >= n)
                break;
            utf8_next(s + end, n - end, &cp, &len);
            from = end + len;
            continue;
        }
        rc = cut(&c, done, begin, step->invert);
        if (!rc)
            rc = cut(&c, begin, end, !step->invert);
        done = from = end;
    }
    if (!rc)
        rc = cut(&c, done, n, step->invert);
    return rc ? rc : cut_flush(&c);
}

static bool is_numeric(uint32_t cp)
{
    if (cp < 128)
        return cp >= '0' && cp <= '9';
    utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)cp);
    return cat == UTF8PROC_CATEGORY_ND || cat == UTF8PROC_CATEGORY_NL ||
           cat == UTF8PROC_CATEGORY_NO;
}

static int run_digits(struct run *r, int k, const char *s, size_t n)
{
    struct cutter c = {.r = r, .k = k, .s = s, .behavior = r->p->steps[k].behavior};
    size_t done = 0, len;
    uint32_t cp;
    int rc = OK;
    for (size_t i = 0; !rc && i < n; i += len) {
        utf8_next(s + i, n - i, &cp, &len);
        if (!is_numeric(cp))
            continue;
        rc = cut(&c, done, i, false);
        if (!rc)
            rc = cut(&c, i, i + len, true);
        done = i + len;
    }
    if (!rc)
        rc = cut(&c, done, n, false);
    return rc ? rc : cut_flush(&c);
}

static int run_space(struct run *r, int k, const char *s, size_t n)
{
    if (s[0] == ' ')
        return run_steps(r, k + 1, s, n);
    char *copy = malloc(n + 1);
    if (!copy)
        return err_nomem(r->e, n + 1, "a piece of text");
    copy[0] = ' ';
    memcpy(copy + 1, s, n);
    int rc = run_steps(r, k + 1, copy, n + 1);
    free(copy);
    return rc;
}

static int cut_before_marks(struct run *r, int k, const char *s, size_t n)
{
    const struct step *step = &r->p->steps[k];
    struct cutter c = {.r = r, .k = k, .s = s, .behavior = PRETOK_MERGED_WITH_NEXT};
    size_t done = 0;
    int rc = OK;
    const char *at;
    while (!rc && (at = memmem(s + done, n - done, step->mark, step->n_mark))) {
        size_t begin = (size_t)(at - s);
        rc = cut(&c, done, begin, false);
        if (!rc)
            rc = cut(&c, begin, begin + step->n_mark, true);
        done = begin + step->n_mark;
    }
    if (!rc)
        rc = cut(&c, done, n, false);
    return rc ? rc : cut_flush(&c);
}

static int run_metaspace(struct run *r, int k, const char *s, size_t n)
{
    const struct step *step = &r->p->steps[k];
    size_t used = 0, room;
    char *copy = size_mul(n + 1, step->n_mark, &room) ? malloc(room) : NULL;
    if (!copy)
        return err_nomem(r->e, n, "a piece of text");
    bool marked = s[0] == ' ' || (n >= step->n_mark && !memcmp(s, step->mark, step->n_mark));
    if (!marked && (step->scheme == PRETOK_ALWAYS || (step->scheme == PRETOK_FIRST && r->at_start)))
        used = (size_t)(stpcpy(copy, step->mark) - copy);
    for (size_t i = 0; i < n; i++) {
        if (s[i] == ' ')
            memcpy(copy + used, step->mark, step->n_mark), used += step->n_mark;
        else
            copy[used++] = s[i];
    }
    int rc = step->single ? cut_before_marks(r, k, copy, used) : run_steps(r, k + 1, copy, used);
    free(copy);
    return rc;
}

static int run_steps(struct run *r, int k, const char *s, size_t n)
{
    if (!n)
        return OK;
    if (k == r->p->n)
        return r->word(r->user, s, n, r->e);
    switch (r->p->steps[k].kind) {
    case STEP_SPLIT: return run_split(r, k, s, n);
    case STEP_DIGITS: return run_digits(r, k, s, n);
    case STEP_SPACE: return run_space(r, k, s, n);
    case STEP_METASPACE: return run_metaspace(r, k, s, n);
    }
    return OK;
}

int pretok_run(const struct pretok *p, const char *text, size_t n, bool at_start,
               pretok_word_fn word, void *user, struct err *e)
{
    struct run r = {.p = p, .at_start = at_start, .word = word, .user = user, .e = e};
    r.match = pcre2_match_data_create(1, NULL);
    r.limits = pcre2_match_context_create(NULL);
    int rc = r.match && r.limits ? OK : err_nomem(e, 256, "matching");
    if (!rc) {
        pcre2_set_match_limit(r.limits, MATCH_LIMIT);
        rc = run_steps(&r, 0, text, n);
    }
    pcre2_match_data_free(r.match);
    pcre2_match_context_free(r.limits);
    return rc;
}

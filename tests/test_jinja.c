/* The template interpreter: reference renders of published templates, the rules of the language
 * one by one (expected texts come from Python's jinja2), marks, refusals and limits. */
#include "tests/support.h"

#include <time.h>

#include "core/chatfmt.h"
#include "core/file.h"
#include "core/jinja.h"

static struct err e;

static void check_golden(const cJSON *c)
{
    const char *name = json_str_or(c, "template", ""), *want = json_str_or(c, "rendered", NULL);
    const char *error = json_str_or(c, "error", NULL);
    char path[256], *source = NULL, *text = NULL;
    struct chatfmt *f = NULL;
    size_t n;
    snprintf(path, sizeof path, "chat/%s.jinja", name);
    if (!test_data(path))
        return;
    CHECK_OK(file_read(test_data(path), 1 << 20, &source, &n, &e), e);
    CHECK_OK(chatfmt_new(&f, source, json_str_or(c, "bos_token", ""),
                         json_str_or(c, "eos_token", ""), &e),
             e);
    free(source);
    if (!f)
        return;
    e.text[0] = '\0';
    bool prompt = cJSON_IsTrue(json_get(c, "add_generation_prompt"));
    int rc = chatfmt_render_json(f, json_get(c, "messages"), prompt, NULL, &text, &e);
    const char *where = json_str_or(c, "conversation", "");
    if (error) {
        const char *words = strchr(error, ' ') + 1;
        bool raised = !strncmp(error, "TemplateError", 13);
        CHECK(rc == ERR_UNSUPPORTED, "%s %s: %d instead of \"%s\"", name, where, rc, error);
        CHECK(raised ? !strcmp(e.text, words) : strstr(e.text, words) != NULL, "%s: \"%s\"", name,
              e.text);
    } else {
        CHECK(rc == 0 && !strcmp(text, want), "%s %s: %s\n--- got\n%s\n--- wanted\n%s", name, where,
              rc ? e.text : "", rc ? "" : text, want);
    }
    free(text);
    chatfmt_free(f);
}

static void test_golden(void)
{
    const char *path = test_data("chat/golden.jsonl");
    char *all, *line, *rest;
    int n = 0;
    if (!path || file_read(path, 1 << 24, &all, NULL, &e)) {
        printf("skipped: chat/golden.jsonl is not there\n");
        return;
    }
    for (rest = all; (line = strsep(&rest, "\n"));) {
        cJSON *c;
        if (!*line)
            continue;
        CHECK_OK(json_parse(&c, line, strlen(line), path, &e), e);
        check_golden(c);
        cJSON_Delete(c);
        n++;
    }
    free(all);
    printf("golden.jsonl: %d renders\n", n);
}

/* Renders source with the variables of a JSON object; NULL and a message on failure. */
static char *render(const char *source, const char *vars_json, bool user, struct jinja_text *text)
{
    struct jinja_var vars[16];
    struct jinja *j;
    cJSON *vars_tree = NULL, *item;
    size_t n = 0;
    *text = (struct jinja_text){0};
    if (jinja_new(&j, source, strlen(source), &e))
        return NULL;
    json_parse(&vars_tree, vars_json, strlen(vars_json), "vars", &e);
    cJSON_ArrayForEach(item, vars_tree) vars[n++] = (struct jinja_var){item->string, item, user};
    int rc = jinja_render(j, vars, n, text, &e);
    cJSON_Delete(vars_tree);
    jinja_free(j);
    return rc ? NULL : text->s;
}

struct rule {
    const char *source, *vars, *want;
};

static const struct rule rules[] = {
#include "tests/jinja_rules.h"
};

static void test_rules(void)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        const struct rule *c = &rules[i];
        struct jinja_text text;
        const char *got = render(c->source, c->vars, true, &text);
        CHECK(got && !strcmp(got, c->want), "%s gave \"%s\", not \"%s\"", c->source,
              got ? got : e.text, c->want);
        jinja_text_free(&text);
    }
}

struct refusal {
    const char *source;
    int status;
    const char *words;
};

static const struct refusal refusals[] = {
    {"{{ x | frobnicate }}", ERR_UNSUPPORTED, "line 1: unknown filter \"frobnicate\""},
    {"\n\n{% include 'x' %}", ERR_UNSUPPORTED, "line 3: unknown statement \"include\""},
    {"{{ x is prime }}", ERR_UNSUPPORTED, "unknown test \"prime\""},
    {"{{ 2 ** 3 }}", ERR_UNSUPPORTED, "\"**\""},
    {"{% if x %}", ERR_FORMAT, "ends too early"},
    {"{% endif %}", ERR_FORMAT, "\"endif\""},
    {"{{ x", ERR_FORMAT, "not closed"},
    {"{{ 'x }}", ERR_FORMAT, "not closed"},
    {"{# x", ERR_FORMAT, "not closed"},
    {"{{ }}", ERR_FORMAT, "ends too early"},
    {"{{ a b }}", ERR_FORMAT, "\"b\""},
    {"{{ 1 & 2 }}", ERR_FORMAT, "unexpected character"},
    {"a\n{{ x.y.z }}", ERR_UNSUPPORTED, "line 2: 'x' is undefined"},
    {"{{ [].x.y }}", ERR_UNSUPPORTED, "'list object' has no attribute 'x'"},
    {"{{ 'a' + 1 }}", ERR_UNSUPPORTED, "concatenate"},
    {"{{ 1 + nothing }}", ERR_UNSUPPORTED, "'nothing' is undefined"},
    {"{{ 1 // 0 }}", ERR_UNSUPPORTED, "zero"},
    {"{{ raise_exception('no ' ~ 1) }}", ERR_UNSUPPORTED, "no 1"},
    {"{{ strftime_now('%Q') }}", ERR_UNSUPPORTED, "%Q"},
    {"{{ [].append(1) }}", ERR_UNSUPPORTED, "append"},
    {"{{ 9223372036854775807 + 1 }}", ERR_UNSUPPORTED, "too large"},
    {"{% for i in range(1000000) %}{% endfor %}", ERR_LIMIT, "range"},
    {"{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", ERR_LIMIT, ""},
    {"{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
     ERR_LIMIT, ""},
    {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ERR_LIMIT, "nested too deeply"},
    {"{{ 'x' * 1000000000 }}", ERR_LIMIT, ""},
    {"{% set n = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(40) %}{% set n.s = n.s + n.s "
     "%}{% endfor %}",
     ERR_LIMIT, "exceeds"},
    {"{% set n = namespace(l=[1]) %}{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor "
     "%}{{ n.l }}",
     ERR_LIMIT, ""},
    {"{% set n = namespace(l=[1]) %}{% for i in range(5000) %}{% set n.l = [n.l] %}{% endfor %}{{ "
     "n.l == n.l }}{{ n.l | tojson }}",
     ERR_LIMIT, "nested too deeply"},
};

static void test_refusals(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refusal *c = &refusals[i];
        struct jinja_text text;
        clock_t start = clock();
        e = (struct err){0};
        char *got = render(c->source, "{}", true, &text);
        double s = (double)(clock() - start) / CLOCKS_PER_SEC;
        CHECK(!got && e.status == c->status && strstr(e.text, c->words), "%s gave %d \"%s\"",
              c->source, e.status, got ? got : e.text);
        /* A limit must end the work in no time; sanitizers are ten times slower. */
        CHECK(s < 10, "%s took %.1f s", c->source, s);
        jinja_text_free(&text);
    }
}

/* Brackets without end: the parser's own depth is limited. */
static void test_nesting(void)
{
    static const char *const opens[] = {"(", "[", "-", "not ", "{% if x %}", "{'a':", "a if "};
    for (size_t k = 0; k < sizeof opens / sizeof *opens; k++) {
        size_t m = strlen(opens[k]), n = 3;
        char *source = malloc(m * 20000 + 8);
        struct jinja *j;
        strcpy(source, *opens[k] == '{' && opens[k][1] == '%' ? "   " : "{{ ");
        for (int i = 0; i < 20000; i++, n += m)
            memcpy(source + n, opens[k], m);
        CHECK(jinja_new(&j, source, n, &e) != 0);
        free(source);
    }
}

/* Lower-case for what the template wrote, upper-case for the user's bytes (the texts have only
 * lower-case letters). */
static void check_marks(const char *source, const char *vars, const char *want)
{
    struct jinja_text text;
    char *got = render(source, vars, true, &text);
    if (!got) {
        CHECK(false, "%s: %s", source, e.text);
        return;
    }
    for (size_t i = 0, p = 0; i < text.n; i++) {
        while (p < text.n_parts && text.parts[p].end <= i)
            p++;
        bool ours = p < text.n_parts && text.parts[p].begin <= i;
        if (!ours && got[i] >= 'a' && got[i] <= 'z')
            got[i] = (char)(got[i] - 32);
    }
    CHECK(!strcmp(got, want), "%s gave \"%s\", not \"%s\"", source, got, want);
    jinja_text_free(&text);
}

static void test_marks(void)
{
    const char *v = "{\"m\": {\"role\": \"user\", \"content\": \"  a b \", \"l\": [\"x\", \"y\"]}}";
    check_marks("{{ '<' + m.role + '>' + m.content | trim + '<end>' }}", v, "<user>A B<end>");
    check_marks("{{ m.content.strip().split(' ')[1] ~ 'z' }}", v, "Bz");
    check_marks("{{ m.content | replace('b', 'q') | trim }}", v, "A q");
    check_marks("{{ 'abc' | replace('b', m.content | trim) }}", v, "aA Bc");
    check_marks("{{ m.content[2:3] + 'k' * 2 }}", v, "Akk");
    check_marks("{{ m.l | join('-and-') }}", v, "X-and-Y");
    check_marks("{{ {'k': m.content | trim} | tojson }}", v, "{\"k\": \"A B\"}");
    check_marks("{{ m.l }}", v, "['X', 'Y']");
    check_marks("{% for c in 'q' + m.l[0] %}{{ c }}.{% endfor %}", v, "q.X.");
    check_marks("{% set t %}t{{ m.l[0] }}{% endset %}{{ t + 'u' }}", v, "tXu");
    check_marks("{% macro f(a) %}f{{ a }}{% endmacro %}{{ f(m.l[1]) }}", v, "fY");
    check_marks("{{ m.content | upper | lower | trim }}", v, "A B");
    check_marks("{{ ('a' ~ m.l[0])[::-1] }}", v, "Xa");
    check_marks("{{ m.content | trim | indent(2, true) }}", v, "  A B");
}

static void test_date(void)
{
    struct jinja_text text;
    const char *date = "{\"__date\": {\"year\": 2031, \"month\": 3, \"day\": 5}}";
    const char *got = render("{{ strftime_now('%d %b %Y, %A %-d.%-m.%y') }}", date, false, &text);
    CHECK(got && !strcmp(got, "05 Mar 2031, Wednesday 5.3.31"), "%s", got ? got : e.text);
    jinja_text_free(&text);
}

int main(void)
{
    test_golden();
    test_rules();
    test_refusals();
    test_nesting();
    test_marks();
    test_date();
    return test_end("jinja");
}

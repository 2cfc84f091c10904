/* Markup, plots and the report page: escapes, well-formedness, ranges, and what hostile names do.
 */
#include "core/file.h"
#include "tests/support.h"
#include "ui/figures.h"
#include "ui/report.h"

#define HOSTILE "</title><script>alert(1)</script>\"'&\033[31m\xff\xe2\x80\xae"

static void test_escape(void)
{
    struct markup m = {0};
    markup_escape(&m, "a<b>&\"'");
    CHECK(!m.failed && !strcmp(m.text, "a&lt;b&gt;&amp;&quot;&#39;"), "%s", m.text);
    markup_done(&m);
    markup_escape(&m, HOSTILE);
    CHECK(m.text && !strpbrk(m.text, "<>\"'\033\xff"), "%s", m.text);
    CHECK(!strstr(m.text, "\xe2\x80\xae"), "a reordering mark came through");
    markup_done(&m);
    markup_printf(&m, "%0999d", 7); /* longer than the buffer on the way */
    CHECK(m.n == 999 && m.text[998] == '7', "%zu", m.n);
    markup_done(&m);
}

/* Tags close in order, attributes are quoted: what an XML parser asks of our own output. */
static bool well_formed(const char *s)
{
    char open[64][16];
    int depth = 0;
    while ((s = strchr(s, '<'))) {
        const char *end = strchr(s, '>');
        bool closing = s[1] == '/', empty = end && end[-1] == '/';
        char name[16] = "";
        if (!end || depth >= 63)
            return false;
        sscanf(s + 1 + closing, "%15[a-z0-9]", name);
        if (!closing && !empty)
            snprintf(open[depth++], sizeof open[0], "%s", name);
        else if (closing && (--depth < 0 || strcmp(open[depth], name) != 0))
            return false;
        s = end;
    }
    return depth == 0;
}

static void test_plot(void)
{
    const double y[] = {1, 0.1, NAN, 1e-30, 0, -1, INFINITY, 0.5}, one[] = {3};
    const struct svg_series s[] = {{HOSTILE, y, NULL, 8}, {"flat", one, one, 1}};
    struct svg_plot p = {.title = HOSTILE,
                         .x_label = "x",
                         .y_label = "y",
                         .series = s,
                         .n_series = 2,
                         .level = NAN,
                         .mark = 3,
                         .mark_name = HOSTILE};
    for (int kind = SVG_LINES; kind <= SVG_GROUPED; kind++)
        for (int log = 0; log < 2; log++)
            for (int n = 0; n <= 2; n++) {
                struct markup m = {0};
                p.kind = (enum svg_kind)kind;
                p.log_y = log;
                p.n_series = n;
                svg_document(&m, &p, 1);
                CHECK(!m.failed && well_formed(m.text), "kind %d log %d n %d", kind, log, n);
                CHECK(!strstr(m.text, "<script") && !strstr(m.text, "nan") &&
                          !strstr(m.text, "inf\""),
                      "kind %d log %d n %d", kind, log, n);
                CHECK(n > 0 || strstr(m.text, "no numbers"), "an empty plot says so");
                markup_done(&m);
            }
}

/* A line of two points runs from the left edge of the axes to the right one. */
static void test_positions(void)
{
    const double y[] = {0, 1};
    const struct svg_series s = {"s", y, NULL, 2};
    const struct svg_plot p = {.title = "t",
                               .x_label = "x",
                               .y_label = "y",
                               .series = &s,
                               .n_series = 1,
                               .level = NAN,
                               .mark = NAN};
    struct markup m = {0};
    double x0 = 0, y0 = 0, x1 = 0, y1 = 0;
    svg_document(&m, &p, 1);
    const char *line = strstr(m.text, "class=\"line s0\" d=\"M");
    CHECK(line && sscanf(line, "class=\"line s0\" d=\"M%lf %lfL%lf %lf", &x0, &y0, &x1, &y1) == 4,
          "no line");
    CHECK(x0 == 72 && x1 == SVG_WIDTH - 16 && y1 < y0, "%g %g to %g %g", x0, y0, x1, y1);
    markup_done(&m);
}

static void fill_plan(struct rankplan *p)
{
    struct plan_model pm = {.n_layer = 3, .n_head = 4, .n_kv_head = 2, .head_dim = 16};
    struct err e = {0};
    snprintf(pm.name, sizeof pm.name, "%s", HOSTILE);
    CHECK_OK(rankplan_init(p, &pm, &e), e);
    CHECK_OK(rankplan_uniform(p, 8, 4, &e), e);
    snprintf(p->calibration.source, sizeof p->calibration.source, "%s", HOSTILE);
    CHECK(figure_kv_before(p, 10) == 10 * 2 * 3 * 64.0, "%g", figure_kv_before(p, 10));
    CHECK(figure_kv_after(p, 10) == 10 * 2 * 3 * 12.0, "%g", figure_kv_after(p, 10));
}

static void test_report(void)
{
    struct layer_report layers[3] = {{.error = 0.1, .loss_rope = 0.04, .loss_rank = 0.06},
                                     {.error = NAN, .loss_rope = NAN, .loss_rank = NAN},
                                     {.error = 0.2, .loss_rope = 0.1, .loss_rank = 0.1}};
    struct report_source s = {.dir = ".", .layer = layers};
    struct err e = {0};
    struct markup m = {0};
    cJSON *description = NULL;
    const char *text =
        "{\"base\":{\"path\":\"/x/<b>.gguf\"},\"report\":{\"kl_held\":0.25},\"healing\":[{"
        "\"steps\":5,\"text\":\"<i>\",\"kl_before\":0.5,\"kl_after\":0.125,\"curve\":["
        "{\"tokens\":0,\"held_out_kl\":0.5},{\"tokens\":9,\"held_out_kl\":0.125}]},7]}";
    CHECK_OK(json_parse(&description, text, strlen(text), "test", &e), e);
    s.description = description;
    snprintf(s.no_spectra, sizeof s.no_spectra, "%s", HOSTILE);
    fill_plan(&s.plan);
    report_html(&m, &s);
    CHECK(!m.failed, "memory");
    CHECK(!strstr(m.text, "<script") && !strstr(m.text, "http://") && !strstr(m.text, "src=") &&
              !strstr(m.text, "<i>") && !strstr(m.text, "<b>."),
          "the page has something that it must not have");
    CHECK(strstr(m.text, "18.8 %") && strstr(m.text, "0.2500") && strstr(m.text, "0.1250") &&
              strstr(m.text, "Left out: "),
          "the page lacks a figure");
    size_t plots = 0;
    for (const char *p = m.text; (p = strstr(p, "<svg ")); p++)
        plots++;
    CHECK(plots == 4, "%zu plots: plan, memory, losses, healing", plots);
    markup_done(&m);
    rankplan_done(&s.plan);
    cJSON_Delete(description);
}

int main(void)
{
    test_escape();
    test_plot();
    test_positions();
    test_report();
    return test_end("figures");
}

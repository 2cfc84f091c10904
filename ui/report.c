/* The page, section by section. Refuses nothing: what the folder does not say is left out or shown
 * as a dash. */
#include "ui/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/file.h"
#include "core/kvmem.h"
#include "ui/eval_text.h"
#include "ui/figures.h"

#define MAX_POINTS 100000 /* of a healing curve */

static const char page_style[] =
    ":root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--soft:#59636e;--rule:#d9dee3}\n"
    "@media(prefers-color-scheme:dark){:root{--fg:#e6edf3;--bg:#0d1117;--soft:#9aa4af;"
    "--rule:#323941}}\n"
    "body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:62rem;"
    "margin:2rem auto;padding:0 1rem;overflow-wrap:anywhere}\n"
    "h1{font-size:1.6rem}h2{margin-top:2.2rem;border-bottom:1px solid var(--rule)}"
    "p.soft,figcaption{color:var(--soft)}\n"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{text-align:right;padding:.15rem .8rem .15rem 0;border-bottom:1px solid var(--rule)}"
    "th:first-child,td:first-child{text-align:left}td.w,th.w{text-align:left}\n"
    ".cards{display:flex;flex-wrap:wrap;gap:1rem;padding:0;list-style:none}"
    ".cards li{border:1px solid var(--rule);border-radius:.5rem;padding:.6rem 1rem}"
    ".cards b{display:block;font-size:1.4rem}pre{overflow-x:auto}\n";

static double number(const cJSON *o, const char *key)
{
    const cJSON *v = json_get(o, key);
    return cJSON_IsNumber(v) ? v->valuedouble : NAN;
}

static void put_number(struct markup *m, const char *format, double v)
{
    char text[64];
    snprintf(text, sizeof text, format, v);
    markup_put(m, isfinite(v) ? text : "–");
}

static void put_bytes(struct markup *m, double bytes)
{
    char text[32];
    kvmem_text(bytes, text, sizeof text);
    markup_put(m, isfinite(bytes) ? text : "–");
}

static void row(struct markup *m, const char *name, const char *value)
{
    markup_printf(m, "<tr><th class=\"w\">%s</th><td class=\"w\">", name);
    markup_escape(m, value && value[0] ? value : "–");
    markup_put(m, "</td></tr>\n");
}

static void put_head(struct markup *m, const struct report_source *s)
{
    markup_put(m, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                  "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                  "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
                  "style-src 'unsafe-inline'; img-src data:\">\n"
                  "<link rel=\"icon\" href=\"data:,\">\n<title>");
    markup_escape(m, s->plan.model.name);
    markup_printf(m, ": conversion to MLA</title>\n<style>%s%s</style>\n</head>\n<body>\n<h1>",
                  page_style, svg_style());
    markup_escape(m, s->plan.model.name);
    markup_put(m, ": conversion to MLA</h1>\n");
}

static void card(struct markup *m, const char *name, const char *format, double v)
{
    if (!isfinite(v))
        return;
    markup_put(m, "<li><b>");
    put_number(m, format, v);
    markup_printf(m, "</b>%s</li>\n", name);
}

static double healed_kl(const struct report_source *s)
{
    const cJSON *list = json_get(s->description, "healing");
    double kl = NAN;
    for (const cJSON *v = list ? list->child : NULL; v; v = v->next)
        kl = number(v, "kl_after");
    return kl;
}

static void put_cards(struct markup *m, const struct report_source *s)
{
    markup_put(m, "<ul class=\"cards\">\n");
    card(m, "of the KV cache kept", "%.1f %%", 100 * rankplan_kept(&s->plan));
    markup_put(m, "<li><b>");
    put_bytes(m, figure_kv_before(&s->plan, 1));
    markup_put(m, " → ");
    put_bytes(m, figure_kv_after(&s->plan, 1));
    markup_put(m, "</b>a token (F16)</li>\n");
    card(m, "KL predicted, nats a token", "%.4f", s->plan.predicted_kl);
    card(m, "KL measured on text held back", "%.4f",
         number(json_get(s->description, "report"), "kl_held"));
    card(m, "KL after healing, on its held-out text", "%.4f", healed_kl(s));
    markup_put(m, "</ul>\n");
}

static void put_model(struct markup *m, const struct report_source *s)
{
    const struct plan_model *p = &s->plan.model;
    const char *path = json_str_or(json_get(s->description, "base"), "path", "");
    char text[160];
    markup_put(m, "<h2>Model</h2>\n<table>\n");
    row(m, "name", p->name);
    row(m, "file", path_base(path));
    row(m, "family", p->family);
    snprintf(text, sizeof text, "%d layers, %d query heads, %d KV heads of %d", p->n_layer,
             p->n_head, p->n_kv_head, p->head_dim);
    row(m, "attention", text);
    row(m, "fingerprint", p->fingerprint);
    markup_put(m, "</table>\n");
}

static void put_plan(struct markup *m, const struct report_source *s)
{
    const struct rankplan *p = &s->plan;
    char text[64];
    markup_put(m, "<h2>Plan</h2>\n<table>\n");
    row(m, "method", p->method == METHOD_TRANSMLA ? "transmla" : "mlathe");
    row(m, "layout", plan_layout_name(p->layout));
    for (int bit = 0; bit < PLAN_STEPS; bit++)
        if (p->without & 1u << bit)
            row(m, "left out", plan_step_name(bit));
    row(m, "calibrated on", p->calibration.source);
    snprintf(text, sizeof text, "%lld", p->calibration.tokens);
    row(m, "tokens", text);
    snprintf(text, sizeof text, "%lld", p->calibration.seed);
    row(m, "seed", text);
    row(m, "text sha256", p->calibration.sha256);
    markup_put(m, "</table>\n");
    figure_plan(m, true, p);
}

static void put_memory(struct markup *m, const struct report_source *s)
{
    markup_put(m, "<h2>KV memory</h2>\n<table>\n<tr><th>context</th><th>original</th>"
                  "<th>converted</th><th>saved</th></tr>\n");
    for (int i = 0; i < FIGURE_CONTEXTS; i++) {
        double before = figure_kv_before(&s->plan, figure_contexts[i]);
        double after = figure_kv_after(&s->plan, figure_contexts[i]);
        markup_printf(m, "<tr><td>%d</td><td>", figure_contexts[i]);
        put_bytes(m, before);
        markup_put(m, "</td><td>");
        put_bytes(m, after);
        markup_put(m, "</td><td>");
        put_bytes(m, before - after);
        markup_put(m, "</td></tr>\n");
    }
    markup_put(m, "</table>\n<p class=\"soft\">One sequence, F16 cache, every layer keeping all "
                  "tokens.</p>\n");
    figure_memory(m, true, &s->plan);
}

static void put_losses(struct markup *m, const struct report_source *s)
{
    int n = s->plan.model.n_layer;
    markup_put(m, "<h2>Layers</h2>\n<p>Error is the attention output's squared change over its "
                  "square, on samples held back.</p>\n");
    figure_losses(m, true, s->layer, n);
    markup_put(m, "<details><summary>All layers as numbers</summary>\n<table>\n<tr><th>layer</th>"
                  "<th>rank</th><th>rope</th><th>kept</th><th>error</th><th>of it rope</th>"
                  "<th>of that layout</th><th>of it rank</th><th>energy kept</th></tr>\n");
    int all = kvmem_gqa_numbers(s->plan.model.n_kv_head, s->plan.model.head_dim);
    for (int l = 0; l < n; l++) {
        const struct layer_report *r = &s->layer[l];
        int rank = s->plan.layer[l].kv_lora_rank, rope = s->plan.layer[l].qk_rope_head_dim;
        markup_printf(m, "<tr><td>%d</td><td>%d</td><td>%d</td><td>%.1f %%</td><td>", l, rank, rope,
                      100.0 * kvmem_mla_numbers(rank, rope) / all);
        put_number(m, "%.5f", r->error);
        markup_put(m, "</td><td>");
        put_number(m, "%.5f", r->loss_rope);
        markup_put(m, "</td><td>");
        put_number(m, "%.5f", r->loss_layout);
        markup_put(m, "</td><td>");
        put_number(m, "%.5f", r->loss_rank);
        markup_put(m, "</td><td>");
        put_number(m, "%.3f %%", 100 * r->energy);
        markup_put(m, "</td></tr>\n");
    }
    markup_put(m, "</table>\n</details>\n");
}

static void put_spectra(struct markup *m, const struct report_source *s)
{
    markup_put(m, "<h2>Spectra</h2>\n");
    if (s->spectra) {
        figure_spectra(m, true, s->spectra, s->plan.model.n_layer, &s->plan);
        if (!s->spectra[0].calibrated)
            markup_put(m, "<p class=\"soft\">The statistics of the calibration are no longer at "
                          "hand: these are of the weights alone.</p>\n");
        return;
    }
    markup_put(m, "<p class=\"soft\">Left out: ");
    markup_escape(m, s->no_spectra);
    markup_put(m, "</p>\n");
}

static void put_date(struct markup *m, long long when)
{
    struct tm tm;
    time_t t = (time_t)when;
    char text[40];
    if (when > 0 && gmtime_r(&t, &tm) && strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &tm))
        markup_printf(m, "<p class=\"soft\">measured %s</p>\n", text);
}

static void put_evaluations(struct markup *m, const struct report_source *s)
{
    char text[EVAL_TEXT];
    markup_put(m, "<h2>Evaluation</h2>\n");
    if (!s->evaluations.n)
        markup_put(m, "<p class=\"soft\">None is stored with the conversion. mlathe eval DIR "
                      "--against MODEL --ppl FILE --store adds one.</p>\n");
    for (size_t i = 0; i < s->evaluations.n; i++) {
        const struct eval_record *r = &s->evaluations.r[i];
        eval_text_title(r, text);
        markup_put(m, "<h3>");
        markup_escape(m, text);
        markup_put(m, "</h3>\n");
        put_date(m, r->when_sec);
        markup_put(m, "<pre>");
        for (int line = 0; eval_text_line(r, line, true, text); line++) {
            markup_escape(m, text);
            markup_put(m, "\n");
        }
        markup_put(m, "</pre>\n");
        figure_eval(m, true, r);
    }
}

static void put_curve(struct markup *m, const cJSON *curve)
{
    int n = 0;
    for (const cJSON *v = curve ? curve->child : NULL; v && n < MAX_POINTS; v = v->next)
        n++;
    double *x = n > 1 ? mem_calloc((size_t)n * 2, sizeof *x) : NULL;
    int k = 0;
    const cJSON *v = x ? curve->child : NULL;
    for (int i = 0; v && i < n; i++, v = v->next) {
        double tokens = number(v, "tokens"), kl = number(v, "held_out_kl");
        if (!isfinite(tokens) || !isfinite(kl) || (k > 0 && tokens <= x[k - 1]))
            continue; /* an axis of time goes forward */
        x[k] = tokens;
        x[n + k++] = kl;
    }
    if (x)
        figure_healing(m, true, x, x + n, k);
    free(x);
}

static void put_healing(struct markup *m, const struct report_source *s)
{
    const cJSON *list = json_get(s->description, "healing");
    if (!list || !list->child)
        return;
    markup_put(m, "<h2>Healing</h2>\n");
    for (const cJSON *v = list->child; v; v = v->next) {
        markup_put(m, "<p>");
        put_number(m, "%.0f", number(v, "steps"));
        markup_put(m, " steps, ");
        put_number(m, "%.0f", number(v, "tokens"));
        markup_put(m, " tokens of ");
        markup_escape(m, json_str_or(v, "text", "?"));
        markup_put(m, ", ");
        put_number(m, "%.1f", number(v, "seconds") / 60);
        markup_put(m, " minutes; trained ");
        markup_escape(m, json_str_or(v, "train", "?"));
        markup_put(m, ". Held-out KL ");
        put_number(m, "%.4f", number(v, "kl_before"));
        markup_put(m, " → ");
        put_number(m, "%.4f", number(v, "kl_after"));
        markup_put(m, "</p>\n");
        put_curve(m, json_get(v, "curve"));
    }
}

void report_html(struct markup *m, const struct report_source *s)
{
    put_head(m, s);
    put_cards(m, s);
    put_model(m, s);
    put_plan(m, s);
    put_memory(m, s);
    put_losses(m, s);
    put_spectra(m, s);
    put_evaluations(m, s);
    put_healing(m, s);
    markup_put(m, "<p class=\"soft\">Made by mlathe " MLATHE_VERSION ".</p>\n</body>\n</html>\n");
}

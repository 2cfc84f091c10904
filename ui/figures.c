/* Arrays out of plans, spectra and measurements, and what their axes are called. Refuses nothing; a
 * figure for which memory is out marks the document as failed. */
#include "ui/figures.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/kvmem.h"
#include "ui/eval_text.h"

#define NUMBER_BYTES 2 /* of an F16 cache */

static void draw(struct markup *m, bool page, const struct svg_plot *p, int n)
{
    for (int i = 0; page && i < n; i++)
        svg_element(m, &p[i]);
    if (!page)
        svg_document(m, p, n);
}

/* n lists of k numbers in one block; NULL marks the document. */
static double *numbers(struct markup *m, int n, int k)
{
    double *v = n > 0 && k > 0 ? mem_calloc((size_t)n * (size_t)k, sizeof *v) : NULL;
    m->failed = m->failed || !v;
    return v;
}

void figure_plan(struct markup *m, bool page, const struct rankplan *p)
{
    int n = p->model.n_layer;
    double *rank = numbers(m, n, 2), *rope = rank ? rank + n : NULL;
    for (int l = 0; rank && l < n; l++) {
        rank[l] = p->layer[l].kv_lora_rank;
        rope[l] = p->layer[l].qk_rope_head_dim;
    }
    const struct svg_series s[] = {{"rank r", rank, NULL, n}, {"rope width R", rope, NULL, n}};
    const struct svg_plot plot = {.title = "Cached numbers a token",
                                  .x_label = "layer",
                                  .y_label = "numbers a token",
                                  .kind = SVG_STACKED,
                                  .series = s,
                                  .n_series = 2,
                                  .level = kvmem_gqa_numbers(p->model.n_kv_head, p->model.head_dim),
                                  .level_name = "original",
                                  .mark = NAN};
    if (rank)
        draw(m, page, &plot, 1);
    free(rank);
}

int figure_rank_for(const struct spectrum *s, double share)
{
    int low = 0, high = s->n;
    while (low < high) {
        int mid = low + (high - low) / 2;
        if (spectrum_energy(s, mid) >= share)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static void draw_spectra(struct markup *m, bool page, const struct svg_series *family, int n,
                         const struct svg_series *rank, int n_rank, bool calibrated)
{
    const struct svg_plot plot[] = {
        {.title = calibrated ? "Spectra of the weighted K/V second moments (calibrated)"
                             : "Spectra of keys and values (weights only)",
         .x_label = "component",
         .y_label = calibrated ? "energy over the stream's" : "share of the layer's energy",
         .kind = SVG_LINES,
         .log_y = true,
         .many = true,
         .series = family,
         .n_series = n,
         .level = NAN,
         .mark = NAN},
        {.title = "Rank that keeps a share of the energy",
         .x_label = "layer",
         .y_label = "rank",
         .kind = SVG_LINES,
         .series = rank,
         .n_series = n_rank,
         .level = NAN,
         .mark = NAN}};
    draw(m, page, plot, 2);
}

void figure_spectra(struct markup *m, bool page, const struct spectrum *s, int n,
                    const struct rankplan *plan)
{
    static const double share[] = {0.9, 0.99, 0.999};
    struct svg_series *family = mem_calloc((size_t)n, sizeof *family);
    char(*name)[24] = mem_calloc((size_t)n, sizeof *name);
    double *rank = numbers(m, n, 4);
    m->failed = m->failed || !family || !name;
    for (int l = 0; !m->failed && l < n; l++) {
        snprintf(name[l], sizeof name[l], "layer %d", l);
        family[l] = (struct svg_series){name[l], s[l].joint, NULL, s[l].n};
        for (int k = 0; k < 3; k++)
            rank[k * n + l] = figure_rank_for(&s[l], share[k]);
        rank[3 * n + l] = plan ? plan->layer[l].kv_lora_rank : NAN;
    }
    if (!m->failed && n > 0) {
        const struct svg_series ranks[] = {{"90 %", rank, NULL, n},
                                           {"99 %", rank + n, NULL, n},
                                           {"99.9 %", rank + 2 * n, NULL, n},
                                           {"the plan's", rank + 3 * n, NULL, n}};
        draw_spectra(m, page, family, n, ranks, plan ? 4 : 3, s[0].calibrated);
    }
    free(family);
    free(name);
    free(rank);
}

void figure_losses(struct markup *m, bool page, const struct layer_report *r, int n)
{
    double *rope = numbers(m, n, 2), *rank = rope ? rope + n : NULL;
    for (int l = 0; rope && l < n; l++) {
        rope[l] = r[l].loss_rope;
        rank[l] = r[l].loss_rank;
    }
    const struct svg_series s[] = {{"narrowing the rope", rope, NULL, n},
                                   {"the latent rank", rank, NULL, n}};
    const struct svg_plot plot = {.title = "Where quality was lost",
                                  .x_label = "layer",
                                  .y_label = "relative error",
                                  .kind = SVG_STACKED,
                                  .series = s,
                                  .n_series = 2,
                                  .level = NAN,
                                  .mark = NAN};
    if (rope)
        draw(m, page, &plot, 1);
    free(rope);
}

const int figure_contexts[FIGURE_CONTEXTS] = {2048, 8192, 32768, 65536, 131072};

double figure_kv_after(const struct rankplan *p, int context)
{
    return (double)rankplan_numbers(p) * NUMBER_BYTES * context;
}

double figure_kv_before(const struct rankplan *p, int context)
{
    return (double)rankplan_numbers_gqa(&p->model) * NUMBER_BYTES * context;
}

void figure_memory(struct markup *m, bool page, const struct rankplan *p)
{
    static const char *const names[] = {"2k", "8k", "32k", "64k", "128k"};
    double before[FIGURE_CONTEXTS], after[FIGURE_CONTEXTS];
    for (int i = 0; i < FIGURE_CONTEXTS; i++) {
        before[i] = figure_kv_before(p, figure_contexts[i]) / (1 << 20);
        after[i] = figure_kv_after(p, figure_contexts[i]) / (1 << 20);
    }
    const struct svg_series s[] = {{"original", before, NULL, FIGURE_CONTEXTS},
                                   {"converted", after, NULL, FIGURE_CONTEXTS}};
    const struct svg_plot plot = {.title = "KV cache of one sequence (F16)",
                                  .x_label = "context, tokens",
                                  .y_label = "MiB",
                                  .x_names = names,
                                  .kind = SVG_GROUPED,
                                  .series = s,
                                  .n_series = 2,
                                  .level = NAN,
                                  .mark = NAN};
    draw(m, page, &plot, 1);
}

void figure_healing(struct markup *m, bool page, const double *tokens, const double *kl, int n)
{
    const struct svg_series s = {"held-out KL", kl, NULL, n};
    const struct svg_plot plot = {.title = "Healing: KL on held-out text",
                                  .x_label = "tokens trained on",
                                  .y_label = "nats a token",
                                  .x = tokens,
                                  .kind = SVG_LINES,
                                  .series = &s,
                                  .n_series = 1,
                                  .level = NAN,
                                  .mark = NAN};
    if (n > 1)
        draw(m, page, &plot, 1);
}

static void figure_positions(struct markup *m, bool page, const struct eval_result *r)
{
    double x[EVAL_BINS], nll[EVAL_BINS], against[EVAL_BINS], kl[EVAL_BINS];
    int n = r->n_bin < EVAL_BINS ? r->n_bin : EVAL_BINS;
    for (int i = 0; i < n; i++) {
        x[i] = (r->bin[i].from + r->bin[i].to) / 2.0;
        nll[i] = r->bin[i].nll;
        against[i] = r->bin[i].nll_against;
        kl[i] = r->bin[i].kl;
    }
    const struct svg_series loss[] = {{r->compared ? "converted" : "model", nll, NULL, n},
                                      {"original", against, NULL, n}};
    const struct svg_series divergence = {"KL(original‖converted)", kl, NULL, n};
    const struct svg_plot plot[] = {{.title = "Negative log-likelihood by position",
                                     .x_label = "position in the window, tokens",
                                     .y_label = "nats a token",
                                     .x = x,
                                     .series = loss,
                                     .n_series = r->compared ? 2 : 1,
                                     .level = NAN,
                                     .mark = NAN},
                                    {.title = "KL by position",
                                     .x_label = "position in the window, tokens",
                                     .y_label = "nats a token",
                                     .x = x,
                                     .series = &divergence,
                                     .n_series = 1,
                                     .level = NAN,
                                     .mark = NAN}};
    draw(m, page, plot, r->compared ? 2 : 1);
}

static void figure_rates(struct markup *m, bool page, const struct task_result *r)
{
    static const char *const names[] = {"acc", "acc_norm", "acc_token"};
    double rate[2][TASK_RULES], err[2][TASK_RULES];
    char title[96];
    for (int i = 0; i < TASK_RULES; i++) {
        rate[0][i] = 100 * r->acc[i].mean;
        err[0][i] = 100 * EVAL_CI95 * r->acc[i].err;
        rate[1][i] = 100 * r->acc_against[i].mean;
        err[1][i] = 100 * EVAL_CI95 * r->acc_against[i].err;
    }
    snprintf(title, sizeof title, "%s, %d questions, 95 %% intervals", choice_name(r->task), r->n);
    const struct svg_series s[] = {
        {r->compared ? "converted" : "model", rate[0], err[0], TASK_RULES},
        {"original", rate[1], err[1], TASK_RULES}};
    const struct svg_plot plot = {.title = title,
                                  .x_label = "rule by which answers are compared",
                                  .y_label = "answered rightly, %",
                                  .x_names = names,
                                  .kind = SVG_GROUPED,
                                  .series = s,
                                  .n_series = r->compared ? 2 : 1,
                                  .level = NAN,
                                  .mark = NAN};
    draw(m, page, &plot, 1);
}

void figure_eval(struct markup *m, bool page, const struct eval_record *r)
{
    if (r->kind == EVAL_PPL && r->ppl.n_bin > 1)
        figure_positions(m, page, &r->ppl);
    else if (r->kind == EVAL_TASK)
        figure_rates(m, page, &r->task);
    else if (!page)
        svg_document(m,
                     &(struct svg_plot){.title = "No curve to draw",
                                        .level = NAN,
                                        .mark = NAN,
                                        .x_label = "",
                                        .y_label = ""},
                     1);
}

/* Ranks and rope widths of a plan: budgets, allocation, memory. Reading and writing plans is
 * rankplan_json.c. Refuses ranks and widths that no layer of the model can have. */
#include "core/rankplan.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/kvmem.h"

#define RANKPLAN_MAX_LAYERS 100000
#define RANKPLAN_MAX_DIM 65536

int rankplan_init(struct rankplan *p, const struct plan_model *m, struct err *e)
{
    *p = (struct rankplan){.model = *m, .predicted_kl = NAN};
    if (m->n_layer < 1 || m->n_layer > RANKPLAN_MAX_LAYERS || m->n_kv_head < 1 ||
        m->n_kv_head > RANKPLAN_MAX_DIM || m->head_dim < 2 || m->head_dim > RANKPLAN_MAX_DIM ||
        (long long)m->n_kv_head * m->head_dim > 1 << 22)
        return err_set(e, ERR_ARG, "no plan for %d layers of %d KV heads of %d numbers", m->n_layer,
                       m->n_kv_head, m->head_dim);
    p->layer = mem_calloc((size_t)m->n_layer, sizeof *p->layer);
    return p->layer ? OK : err_nomem(e, (size_t)m->n_layer * sizeof *p->layer, "a plan");
}

void rankplan_done(struct rankplan *p)
{
    free(p->layer);
    cJSON_Delete(p->extra);
    *p = (struct rankplan){0};
}

int rankplan_copy(struct rankplan *to, const struct rankplan *from, struct err *e)
{
    *to = *from;
    to->extra = NULL;
    to->layer = mem_calloc((size_t)from->model.n_layer, sizeof *to->layer);
    if (!to->layer)
        goto fail;
    memcpy(to->layer, from->layer, (size_t)from->model.n_layer * sizeof *to->layer);
    if (from->extra && !(to->extra = cJSON_Duplicate(from->extra, true)))
        goto fail;
    return OK;
fail:
    rankplan_done(to);
    return err_nomem(e, (size_t)from->model.n_layer * sizeof *to->layer, "a plan");
}

static const char *const step_names[PLAN_STEPS] = {"rope",    "benefit", "shrink", "phase", "joint",
                                                   "weights", "heads",   "output", "own",   "fit",
                                                   "balance", "keys",    "values"};

const char *plan_step_name(int bit)
{
    return step_names[bit];
}

static int unknown_step(const char *text, int n, struct err *e)
{
    char known[256] = "";
    for (int i = 0; i < PLAN_STEPS; i++) {
        size_t at = strlen(known);
        snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", step_names[i]);
    }
    return err_set(e, ERR_ARG, "\"%.*s\" is no step of the recipe: %s", n, text, known);
}

int plan_steps_parse(const char *text, unsigned *steps, struct err *e)
{
    *steps = 0;
    while (*text) {
        size_t n = strcspn(text, ",");
        int bit = 0;
        while (bit < PLAN_STEPS &&
               (strlen(step_names[bit]) != n || strncmp(text, step_names[bit], n)))
            bit++;
        if (bit == PLAN_STEPS)
            return unknown_step(text, n < 40 ? (int)n : 40, e);
        *steps |= 1u << bit;
        text += n + (text[n] == ',');
    }
    return OK;
}

bool rankplan_equal(const struct rankplan *a, const struct rankplan *b)
{
    if (a->method != b->method || a->layout != b->layout || a->freqfold != b->freqfold ||
        a->without != b->without || a->rounds != b->rounds || a->stride != b->stride ||
        a->balance != b->balance || a->damping != b->damping || a->refit_ffn != b->refit_ffn ||
        a->model.n_layer != b->model.n_layer)
        return false;
    for (int l = 0; l < a->model.n_layer; l++)
        if (a->layer[l].kv_lora_rank != b->layer[l].kv_lora_rank ||
            a->layer[l].qk_rope_head_dim != b->layer[l].qk_rope_head_dim)
            return false;
    return true;
}

static int layer_numbers(const struct plan_layer *l)
{
    return kvmem_mla_numbers(l->kv_lora_rank, l->qk_rope_head_dim);
}

long long rankplan_numbers(const struct rankplan *p)
{
    long long sum = 0;
    for (int l = 0; l < p->model.n_layer; l++)
        sum += layer_numbers(&p->layer[l]);
    return sum;
}

long long rankplan_numbers_gqa(const struct plan_model *m)
{
    return (long long)m->n_layer * kvmem_gqa_numbers(m->n_kv_head, m->head_dim);
}

double rankplan_kept(const struct rankplan *p)
{
    return (double)rankplan_numbers(p) / (double)rankplan_numbers_gqa(&p->model);
}

void rankplan_layer_numbers(const struct rankplan *p, int *numbers)
{
    for (int l = 0; l < p->model.n_layer; l++)
        numbers[l] = layer_numbers(&p->layer[l]);
}

int rankplan_max_rank(const struct plan_model *m)
{
    return kvmem_gqa_numbers(m->n_kv_head, m->head_dim);
}

int rankplan_auto_rope(const struct plan_model *m, enum plan_layout layout, double kept)
{
    /* The widths that measured best at each share of the cache; halving keeps both the fast
     * frequencies of the stock grid and whole folds possible. Both layouts agree so far. */
    (void)layout;
    int rope = kept >= 0.4 ? m->head_dim : kept >= 0.15 ? m->head_dim / 2 : m->head_dim / 4;
    double third = kept * kvmem_gqa_numbers(m->n_kv_head, m->head_dim) / 3;
    while (rope > third && rope >= 4)
        rope /= 2;
    rope -= rope % 2;
    return rope < 2 ? 2 : rope;
}

int rankplan_freqfold(const struct rankplan *p, int rope_dim)
{
    if (p->freqfold > 0)
        return p->freqfold;
    /* Two frequencies folded for each one that survives; at most all of them. */
    int d = p->model.head_dim, collapse = rope_dim > 0 && rope_dim < d ? d / rope_dim : 1;
    return 2 * collapse <= d / 2 ? 2 * collapse : collapse;
}

static int check_rope(const struct rankplan *p, int rope_dim, struct err *e)
{
    int max = p->model.head_dim * (p->layout == LAYOUT_STOCK ? 1 : p->model.n_kv_head);
    if (rope_dim >= 2 && rope_dim <= max && rope_dim % 2 == 0)
        return OK;
    return err_set(e, ERR_ARG, "rope width %d: give an even number from 2 to %d", rope_dim, max);
}

int rankplan_uniform(struct rankplan *p, int rank, int rope_dim, struct err *e)
{
    int max = rankplan_max_rank(&p->model), rc = check_rope(p, rope_dim, e);
    if (rc)
        return rc;
    if (rank < 1 || rank > max)
        return err_set(e, ERR_ARG, "rank %d: give a number from 1 to %d", rank, max);
    for (int l = 0; l < p->model.n_layer; l++)
        p->layer[l] = (struct plan_layer){rank, rope_dim};
    return OK;
}

int rankplan_equal_cache(struct rankplan *p, int rope_dim, struct err *e)
{
    int rope = p->model.n_kv_head * rope_dim;
    if (p->layout == LAYOUT_STOCK || p->method != METHOD_MLATHE)
        return err_set(e, ERR_ARG,
                       "equal cache keeps the rope of every head: layout own or shared, method "
                       "mlathe");
    p->without = STEP_OUTPUT; /* nothing to make good */
    return rankplan_uniform(p, rankplan_max_rank(&p->model) - rope, rope, e);
}

static long long rope_numbers(const struct rankplan *p)
{
    long long sum = 0;
    for (int l = 0; l < p->model.n_layer; l++)
        sum += p->layer[l].qk_rope_head_dim;
    return sum;
}

static int too_small(const struct rankplan *p, long long numbers, int rank, struct err *e)
{
    return err_set(e, ERR_ARG,
                   "a budget of %lld numbers a token is too small: rope keys take %lld of them and "
                   "%d layers of rank %d take %lld; give more or narrow the rope",
                   numbers, rope_numbers(p), p->model.n_layer, rank,
                   (long long)rank * p->model.n_layer);
}

int rankplan_spread(struct rankplan *p, long long numbers, struct err *e)
{
    long long rank = (numbers - rope_numbers(p)) / p->model.n_layer;
    int max = rankplan_max_rank(&p->model);
    if (numbers <= rope_numbers(p) || rank < 1)
        return too_small(p, numbers, 1, e);
    for (int l = 0; l < p->model.n_layer; l++)
        p->layer[l].kv_lora_rank = rank < max ? (int)rank : max;
    return OK;
}

/* What the next block of a layer is worth, per number. Spectra descend, so gains do too, and
 * taking the best block each time is exact: the blocks cost the same and one never has to be
 * taken before a better one. */
static double block_gain(const struct spectrum *s, int rank, int step)
{
    double sum = 0;
    for (int i = rank + step - 1; i >= rank; i--)
        sum += i < s->n ? s->joint[i] : 0;
    return sum / step;
}

int rankplan_allocate(struct rankplan *p, const struct spectrum *spectra, long long numbers,
                      int min, int max, int step, double *price, struct err *e)
{
    int n = p->model.n_layer, top = rankplan_max_rank(&p->model);
    if (step < 1 || min < 1 || max < min)
        return err_set(e, ERR_ARG, "ranks from %d to %d in steps of %d", min, max, step);
    int low = (min + step - 1) / step * step, high = (max < top ? max : top) / step * step;
    if (high < low)
        return err_set(e, ERR_ARG, "no multiple of %d lies between ranks %d and %d", step, min,
                       max < top ? max : top);
    long long left = numbers - rope_numbers(p) - (long long)low * n;
    if (left < 0)
        return too_small(p, numbers, low, e);
    double *gain = mem_calloc((size_t)n, sizeof *gain), last = 0;
    if (!gain)
        return err_nomem(e, (size_t)n * sizeof *gain, "rank gains");
    for (int l = 0; l < n; l++) {
        p->layer[l].kv_lora_rank = low;
        gain[l] = low < high ? block_gain(&spectra[l], low, step) : 0;
    }
    for (; left >= step; left -= step) {
        int best = 0;
        for (int l = 1; l < n; l++)
            if (gain[l] > gain[best])
                best = l;
        if (!(gain[best] > 0))
            break; /* what is left of the budget would buy nothing */
        last = gain[best];
        int rank = p->layer[best].kv_lora_rank += step;
        gain[best] = rank + step <= high ? block_gain(&spectra[best], rank, step) : 0;
    }
    free(gain);
    if (price)
        *price = last;
    return OK;
}

/* A number, times its binary unit if there is one (*plain: there was none). Moves *text past. */
static bool parse_size(const char **text, double *value, bool *plain)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {
        {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"K", 0x1p10},
        {"M", 0x1p20},   {"G", 0x1p30},   {"T", 0x1p40},   {"B", 1},
    };
    char *end;
    if ((!isdigit((unsigned char)**text) && **text != '.') || (*text)[1] == 'x')
        return false; /* no sign, no "inf", no leading blanks, no hexadecimal */
    *value = strtod(*text, &end);
    if (end == *text || !isfinite(*value))
        return false;
    *plain = true;
    for (size_t i = 0; i < sizeof units / sizeof units[0] && *plain; i++) {
        size_t length = strlen(units[i].name);
        if (strncasecmp(end, units[i].name, length) == 0) {
            *plain = false;
            *value *= units[i].bytes;
            end += length;
        }
    }
    *text = end;
    return true;
}

/* "24GiB,8192x16": memory, tokens, sequences (1 when left out). */
static bool parse_fit(const char *text, double bytes, double *per_token)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    double tokens = (double)strtoull(text, &end, 10), sequences = 1;
    if (*end == 'x' || *end == 'X') {
        const char *second = end + 1;
        if (!isdigit((unsigned char)*second))
            return false;
        sequences = (double)strtoull(second, &end, 10);
    }
    if (*end || tokens < 1 || sequences < 1)
        return false;
    *per_token = bytes / (tokens * sequences);
    return true;
}

int rankplan_budget(const struct plan_model *m, const char *text, int kv_bytes, long long *numbers,
                    struct err *e)
{
    const char *rest = text;
    double value, per_token, all = (double)rankplan_numbers_gqa(m), want = -1;
    bool plain;
    if (kv_bytes > 0 && parse_size(&rest, &value, &plain)) {
        if (plain && rest[0] == '%' && !rest[1])
            want = value / 100 * all;
        else if (rest[0] == ',' && parse_fit(rest + 1, value, &per_token))
            want = per_token / kv_bytes;
        else if (!rest[0])
            want = plain && value <= 1 ? value * all : value / kv_bytes;
    }
    if (want < 0)
        return err_set(
            e, ERR_ARG,
            "budget \"%s\": give a share (25%%), bytes a token (5760) or memory and what "
            "must fit (24GiB,8192x16)",
            text);
    if (plain && rest[0] == '%' && value > 100)
        return err_set(e, ERR_ARG, "budget \"%s\": more than the whole cache; give up to 100%%",
                       text);
    /* A hair of slack, so that 33.333% of 384 is 128 and not 127. Room for more than the original's
     * cache is room for all of it. */
    *numbers = (long long)floor(fmin(want, all) + 1e-3);
    if (*numbers < 2LL * m->n_layer)
        return err_set(e, ERR_ARG,
                       "budget \"%s\" leaves %lld numbers a token for %d layers: give more", text,
                       *numbers, m->n_layer);
    return OK;
}

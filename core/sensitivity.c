/* Curves through measured KLs, prediction and allocation. Reading and writing is
 * sensitivity_json.c. Refuses plans of other shapes than what was measured. */
#include "core/sensitivity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int sensitivity_init(struct sensitivity *s, const struct rankplan *plan, struct err *e)
{
    size_t L = (size_t)plan->model.n_layer;
    *s = (struct sensitivity){.n_layer = plan->model.n_layer,
                              .n = rankplan_max_rank(&plan->model),
                              .method = plan->method,
                              .layout = plan->layout};
    s->rope_dim = mem_calloc(L, sizeof *s->rope_dim);
    s->energy = mem_calloc(L * (SENSITIVITY_GRID + 1), sizeof *s->energy);
    if (!s->rope_dim || !s->energy) {
        sensitivity_done(s);
        return err_nomem(e, L * SENSITIVITY_GRID * sizeof(double), "sensitivities");
    }
    for (size_t l = 0; l < L; l++)
        s->rope_dim[l] = plan->layer[l].qk_rope_head_dim;
    return OK;
}

void sensitivity_done(struct sensitivity *s)
{
    free(s->rope_dim);
    free(s->energy);
    for (int i = 0; i < s->n_point; i++)
        free(s->point[i].kl);
    *s = (struct sensitivity){0};
}

int sensitivity_copy(struct sensitivity *to, const struct sensitivity *from, struct err *e)
{
    size_t L = (size_t)from->n_layer;
    *to = *from;
    to->n_point = 0;
    to->rope_dim = mem_calloc(L, sizeof *to->rope_dim);
    to->energy = mem_calloc(L * (SENSITIVITY_GRID + 1), sizeof *to->energy);
    bool ok = to->rope_dim && to->energy;
    for (int i = 0; i < from->n_point && ok; i++) {
        double *kl = mem_calloc(L, sizeof *kl);
        ok = kl != NULL;
        if (ok) {
            memcpy(kl, from->point[i].kl, L * sizeof *kl);
            to->point[to->n_point++].kl = kl;
        }
    }
    if (!ok) {
        sensitivity_done(to);
        return err_nomem(e, L * SENSITIVITY_GRID * sizeof(double), "sensitivities");
    }
    memcpy(to->rope_dim, from->rope_dim, L * sizeof *to->rope_dim);
    memcpy(to->energy, from->energy, L * (SENSITIVITY_GRID + 1) * sizeof *to->energy);
    return OK;
}

bool sensitivity_fits(const struct sensitivity *s, const struct rankplan *plan)
{
    if (!s->n_point || s->method != plan->method || s->layout != plan->layout ||
        s->n_layer != plan->model.n_layer || s->n != rankplan_max_rank(&plan->model))
        return false;
    for (int l = 0; l < s->n_layer; l++)
        if (s->rope_dim[l] != plan->layer[l].qk_rope_head_dim)
            return false;
    return true;
}

struct sensitivity_point *sensitivity_point(struct sensitivity *s, int rank)
{
    int at = 0;
    while (at < s->n_point && s->point[at].rank < rank)
        at++;
    if (at < s->n_point && s->point[at].rank == rank)
        return &s->point[at];
    double *kl =
        s->n_point < SENSITIVITY_POINTS ? mem_calloc((size_t)s->n_layer, sizeof *kl) : NULL;
    if (!kl)
        return NULL;
    memmove(&s->point[at + 1], &s->point[at], (size_t)(s->n_point - at) * sizeof s->point[0]);
    s->n_point++;
    s->point[at] = (struct sensitivity_point){.rank = rank, .total = NAN, .kl = kl};
    return &s->point[at];
}

static bool has_near(const struct sensitivity *s, int rank, double factor)
{
    for (int i = 0; i < s->n_point; i++)
        if (s->point[i].rank <= rank * factor && s->point[i].rank >= rank / factor)
            return true;
    return false;
}

int sensitivity_wanted(const struct sensitivity *s, int even, int *rank)
{
    static const double part[] = {0.6, 1.6};
    int n = 0;
    for (int i = 0; i < 2; i++) {
        int r = (int)lround(even * part[i]);
        r = r < 1 ? 1 : r;
        /* A rank within a quarter of it is as good; next to full rank, so is the rope alone. */
        if (s->n_point + n < SENSITIVITY_POINTS - 1 && r < s->n * 7 / 8 && !has_near(s, r, 1.25))
            rank[n++] = r;
    }
    if (!has_near(s, s->n, 1))
        rank[n++] = s->n;
    return n;
}

static int grid_rank(const struct sensitivity *s, int i)
{
    return (int)((long long)i * s->n / SENSITIVITY_GRID);
}

void sensitivity_set_energy(struct sensitivity *s, int layer, const struct spectrum *x)
{
    double *e = s->energy + (size_t)layer * (SENSITIVITY_GRID + 1);
    for (int i = 0; i <= SENSITIVITY_GRID; i++)
        e[i] = spectrum_dropped(x, grid_rank(s, i));
}

/* log of the dropped energy at a rank: straight between the grid's ranks. The floor stands for what
 * a spectrum's rounding leaves. */
static double log_energy(const struct sensitivity *s, int layer, int rank)
{
    const double *e = s->energy + (size_t)layer * (SENSITIVITY_GRID + 1);
    int i = (int)((long long)rank * SENSITIVITY_GRID / s->n);
    i = i < 0 ? 0 : i >= SENSITIVITY_GRID ? SENSITIVITY_GRID - 1 : i;
    double least = 1e-9 * e[0] + 1e-300;
    int a = grid_rank(s, i), b = grid_rank(s, i + 1);
    double t = b > a ? (double)(rank - a) / (b - a) : 0;
    return (1 - t) * log(fmax(e[i], least)) + t * log(fmax(e[i + 1], least));
}

double sensitivity_rope(const struct sensitivity *s, int layer)
{
    return s->n_point && s->point[s->n_point - 1].rank == s->n ? s->point[s->n_point - 1].kl[layer]
                                                               : 0;
}

/* log of the part of a measured KL that the rank costs. Noise may leave less than nothing: a
 * hundredth of the whole stands in then. Ranks below cost no less. */
static double log_cost(const struct sensitivity *s, int layer, int point)
{
    double rope = sensitivity_rope(s, layer), cost = 0;
    for (int i = point; i < s->n_point && s->point[i].rank < s->n; i++) {
        double kl = s->point[i].kl[layer];
        cost = fmax(cost, fmax(kl - rope, 0.01 * kl));
    }
    return log(fmax(cost, 1e-12));
}

double sensitivity_layer(const struct sensitivity *s, int layer, int rank)
{
    int n = s->n_point;
    while (n > 0 && s->point[n - 1].rank >= s->n)
        n--;
    if (rank >= s->n || n == 0)
        return sensitivity_rope(s, layer);
    double x = log_energy(s, layer, rank), y;
    if (n == 1) {
        y = log_cost(s, layer, 0) + x - log_energy(s, layer, s->point[0].rank);
    } else {
        int i = 0;
        while (i + 2 < n && s->point[i + 1].rank < rank)
            i++;
        double x0 = log_energy(s, layer, s->point[i].rank), y0 = log_cost(s, layer, i);
        double x1 = log_energy(s, layer, s->point[i + 1].rank), y1 = log_cost(s, layer, i + 1);
        double slope = x0 > x1 ? (y0 - y1) / (x0 - x1) : 1;
        bool inside = rank >= s->point[i].rank && rank <= s->point[i + 1].rank;
        if (!inside) /* far from what was measured: towards proportional to the energy */
            slope = fmin(fmax(slope, 0.5), 2);
        y = rank <= s->point[i].rank ? y0 + slope * (x - x0) : y1 + slope * (x - x1);
    }
    return sensitivity_rope(s, layer) + exp(y);
}

static double point_sum(const struct sensitivity *s, int point)
{
    double sum = 0;
    for (int l = 0; l < s->n_layer; l++)
        sum += s->point[point].kl[l];
    return sum;
}

/* Straight in logarithms through (sum, total) of the points, the same ratio beyond the ends. */
double sensitivity_total(const struct sensitivity *s, double sum)
{
    double x0 = 0, y0 = 0; /* the last point with a smaller sum */
    bool first = true;
    for (int i = s->n_point - 1; i >= 0; i--) {
        double x = point_sum(s, i), y = s->point[i].total;
        if (!(x > x0) || !(y > 0))
            continue;
        if (sum <= x) {
            if (first)
                return sum / x * y;
            return y0 * pow(y / y0, log(sum / x0) / log(x / x0));
        }
        x0 = x;
        y0 = y;
        first = false;
    }
    return first ? sum : sum / x0 * y0;
}

static double plan_sum(const struct sensitivity *s, const struct rankplan *plan)
{
    double sum = 0;
    for (int l = 0; l < s->n_layer; l++)
        sum += sensitivity_layer(s, l, plan->layer[l].kv_lora_rank);
    return sum;
}

/* The KL of layers whose KLs sum up to sum, with the outputs refitted if the plan has them so. */
static double outcome(const struct sensitivity *s, const struct rankplan *plan, double sum)
{
    double plain = sensitivity_total(s, sum);
    if (plan->without & STEP_OUTPUT || !(plain > 0))
        return plain;
    double usual = fmin(SENSITIVITY_REFIT * pow(plain, SENSITIVITY_REFIT_POWER), 1);
    return plain * (s->refit > 0 ? s->refit : usual);
}

double sensitivity_predict(const struct sensitivity *s, const struct rankplan *plan)
{
    return sensitivity_fits(s, plan) ? outcome(s, plan, plan_sum(s, plan)) : NAN;
}

bool sensitivity_learn(struct sensitivity *s, const struct rankplan *plan, double kl)
{
    double plain = sensitivity_fits(s, plan) ? sensitivity_total(s, plan_sum(s, plan)) : 0;
    if (plan->without & STEP_OUTPUT || !(plain > 0) || !(kl > 0))
        return false;
    /* Bounded: one odd conversion must not spoil every later prediction. */
    s->refit = fmin(fmax(kl / plain, 0.3), 1.2);
    return true;
}

double sensitivity_gain(const struct sensitivity *s, const struct rankplan *plan, int layer,
                        int more)
{
    if (!sensitivity_fits(s, plan))
        return NAN;
    int rank = plan->layer[layer].kv_lora_rank;
    double sum = plan_sum(s, plan);
    double less = sensitivity_layer(s, layer, rank) - sensitivity_layer(s, layer, rank + more);
    return outcome(s, plan, sum) - outcome(s, plan, sum - less);
}

/* Lower convex hull of cost[0 … n], in place: where a curve is not convex, half a block alone buys
 * less than it seems, so that the straight line over it is what ranks are worth. */
static void convexify(double *cost, int n, int *stack)
{
    int top = 0;
    for (int i = 0; i <= n; i++) {
        while (top >= 2) {
            int a = stack[top - 2], b = stack[top - 1];
            if ((cost[b] - cost[a]) * (i - a) <= (cost[i] - cost[a]) * (b - a))
                break;
            top--;
        }
        stack[top++] = i;
    }
    for (int k = 0; k + 1 < top; k++)
        for (int a = stack[k], b = stack[k + 1], i = a + 1; i < b; i++)
            cost[i] = cost[a] + (cost[b] - cost[a]) * (i - a) / (b - a);
}

int sensitivity_allocate(const struct sensitivity *s, struct rankplan *plan, long long numbers,
                         int min, int max, int step, double *price, struct err *e)
{
    size_t L = (size_t)s->n_layer, n = (size_t)s->n;
    if (!sensitivity_fits(s, plan))
        return err_set(e, ERR_MISMATCH, "sensitivities were measured for other rope widths");
    double *cost = mem_calloc(L * (n + 1), sizeof *cost);
    struct spectrum *gain = mem_calloc(L, sizeof *gain);
    int *stack = mem_calloc(n + 1, sizeof *stack), rc = OK;
    if (!cost || !gain || !stack)
        rc = err_nomem(e, L * (n + 1) * sizeof *cost, "sensitivity curves");
    for (size_t l = 0; l < L && !rc; l++) {
        double *c = cost + l * (n + 1);
        for (int r = 0; r <= s->n; r++)
            c[r] = sensitivity_layer(s, (int)l, r);
        convexify(c, s->n, stack);
        /* What each number takes off: descending, as the water-filling wants it. */
        for (int r = 0; r < s->n; r++)
            c[r] = fmax(c[r] - c[r + 1], 0);
        gain[l] = (struct spectrum){.n = s->n, .joint = c};
    }
    if (!rc)
        rc = rankplan_allocate(plan, gain, numbers, min, max, step, price, e);
    free(stack);
    free(gain);
    free(cost);
    return rc;
}

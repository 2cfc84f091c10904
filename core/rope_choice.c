/* Which key directions keep their rotation. Free and stock choices by benefit, and TransMLA's
 * folded PCA. Complex coordinates are (g, j), j < rope_dim/2; dims beyond rope_dim never rotate
 * and take no part here. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/mla.h"
#include "kernels/linalg.h"

#define SHRINK_RIDGE 1e-2 /* method step 1: λ relative to (rr + ii)/2 */
#define TURN_FLOOR 1e-4   /* smallest 1 − |c|² of a mean rotation */
#define WORTH_FLOOR 1e-9  /* a direction no query reads still needs a finite P */

void rope_choice_done(struct rope_choice *c)
{
    free(c->T);
    free(c->P);
    free(c->index);
    *c = (struct rope_choice){0};
}

static int choice_init(struct rope_choice *c, int pairs, size_t width, struct err *e)
{
    size_t n = (size_t)pairs * width;
    *c = (struct rope_choice){.pairs = pairs};
    c->T = mem_calloc(n, sizeof *c->T);
    c->P = mem_calloc(n, sizeof *c->P);
    c->index = mem_calloc((size_t)pairs, sizeof *c->index);
    if (c->T && c->P && c->index)
        return OK;
    rope_choice_done(c);
    return err_nomem(e, 2 * n * sizeof *c->T, "rope directions");
}

/* c from the mean rotation alone; most of what it explains still counts as worth something. */
static void shrink_by_turn(const struct moments *m, double complex *c, double *r2)
{
    for (int i = 0; i < m->shape.H * (m->shape.rope_dim / 2); i++) {
        double complex turn = m->turn[2 * i] + m->turn[2 * i + 1] * I;
        c[i] = turn * moments_magnitude2(&m->shape);
        r2[i] = fmin(creal(turn * conj(turn)), 1 - TURN_FLOOR);
    }
}

static void share_shrinks(const struct moments *m, double complex *c)
{
    int half = m->shape.rope_dim / 2, H = m->shape.H;
    for (int j = 0; j < half; j++) {
        double complex mean = 0;
        for (int h = 0; h < H; h++)
            mean += c[h * half + j] / H;
        for (int h = 0; h < H; h++)
            c[h * half + j] = mean;
    }
}

/* c and R² by regression of the rotated part on the un-rotated one. */
static void shrink_by_fit(const struct moments *m, bool real, double complex *c, double *r2)
{
    int half = m->shape.rope_dim / 2;
    for (int i = 0; i < m->shape.H * half; i++) {
        double six[6];
        c[i] = moments_magnitude2(&m->shape);
        r2[i] = 0;
        if (!m->phase && !m->six)
            continue;
        moments_six(m, i / half, i % half, six);
        double rr = six[0], ii = six[1], ri = six[2], ry = six[3], iy = six[4], yy = six[5];
        if (!(yy > 0))
            continue;
        double ridge = SHRINK_RIDGE * (rr + ii) / 2 + 1e-30, a = rr + ridge, b = ii + ridge;
        double det = a * b - ri * ri;
        double al = real ? ry / a : (b * ry - ri * iy) / det;
        double be = real ? 0 : (a * iy - ri * ry) / det;
        double left = yy - 2 * (al * ry + be * iy) + al * al * rr + be * be * ii + 2 * al * be * ri;
        c[i] = al - be * I;
        r2[i] = fmin(1, fmax(0, 1 - left / yy));
    }
}

void mla_shrink(const struct moments *m, unsigned without, double complex *c, double *r2)
{
    if (without & STEP_FIT && m->turn)
        shrink_by_turn(m, c, r2);
    else
        shrink_by_fit(m, without & STEP_PHASE, c, r2);
    if (without & STEP_OWN)
        share_shrinks(m, c);
}

/* E[κ_a conj(κ_b)] of complex key coordinates a = (g, j), b = (g2, j2). */
static double complex key_moment(const struct moments *m, int g, int j, int g2, int j2)
{
    int d = m->shape.d, half = m->shape.rope_dim / 2;
    int ar = g * d + j, ai = ar + half, br = g2 * d + j2, bi = br + half;
    return moments_key(m, ar, br) + moments_key(m, ai, bi) +
           I * (moments_key(m, ai, br) - moments_key(m, ar, bi));
}

/* Σ over the group's heads of E|χ_{h,j}|² (1 − R²): what keeping the rotation is worth; [G][half].
 * Floored, so that 1/√w stays finite. */
static void rope_worth(const struct moments *m, const double *r2, double *w)
{
    const struct moments_shape *s = &m->shape;
    int d = s->d, half = s->rope_dim / 2, per = s->H / s->G;
    double top = 0;
    for (int g = 0; g < s->G; g++) {
        for (int j = 0; j < half; j++) {
            double sum = 0;
            for (int h = g * per; h < (g + 1) * per; h++) {
                const double *mh = m->m + (size_t)h * (size_t)(d * d);
                double chi =
                    mh[(size_t)j * (size_t)(d + 1)] + mh[(size_t)(j + half) * (size_t)(d + 1)];
                sum += chi * (1 - r2[h * half + j]);
            }
            w[g * half + j] = sum;
            top = fmax(top, sum);
        }
    }
    for (int i = 0; i < s->G * half; i++)
        w[i] = fmax(w[i], WORTH_FLOOR * top + DBL_MIN);
}

/* Eigenpairs of diag(√w) E[κ_j κ_jᴴ] diag(√w) at frequency j: U rows, e ascending. */
static int components(const struct moments *m, const double *w, int j, double complex *U, double *e,
                      struct err *err)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2;
    for (int a = 0; a < G; a++)
        for (int b = 0; b < G; b++)
            U[a * G + b] = sqrt(w[a * half + j] * w[b * half + j]) * key_moment(m, a, j, b, j);
    return linalg_eigh_complex(G, U, e, err);
}

/* Row `row` of the choice: component u [G] at frequency j. */
static void set_row(struct rope_choice *c, int row, const struct moments *m, const double *w,
                    const double complex *u, int j)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2;
    size_t at = (size_t)row * (size_t)(G * half);
    for (int g = 0; g < G; g++) {
        double root = sqrt(w[g * half + j]);
        c->T[at + (size_t)(g * half + j)] = conj(u[g]) * root;
        c->P[at + (size_t)(g * half + j)] = conj(u[g]) / root;
    }
    c->index[row] = j;
}

struct candidate {
    double value;
    int j, a;
};

static int by_value(const void *x, const void *y)
{
    const struct candidate *a = x, *b = y;
    if (a->value != b->value)
        return a->value < b->value ? 1 : -1;
    return a->j != b->j ? (a->j > b->j) - (a->j < b->j) : (a->a > b->a) - (a->a < b->a);
}

static int by_frequency(const void *x, const void *y)
{
    const struct candidate *a = x, *b = y;
    return a->j != b->j ? (a->j > b->j) - (a->j < b->j) : (a->a > b->a) - (a->a < b->a);
}

static int check_width(const struct moments *m, int R, int most, struct err *e)
{
    if (R < 2 || R % 2 || R > most)
        return err_set(e, ERR_ARG, "rope width %d: this layer takes even widths from 2 to %d", R,
                       most);
    if (m->shape.rope_dim < 2)
        return err_set(e, ERR_UNSUPPORTED, "this layer has no rotary part");
    return OK;
}

/* Every component of every frequency. */
struct component_list {
    int n; /* half·G */
    double *w, *val;
    double complex *U;
    struct candidate *item; /* [n] a: rank at its frequency, best 0 */
};

static void list_done(struct component_list *c)
{
    free(c->w);
    free(c->val);
    free(c->U);
    free(c->item);
}

static int list_components(struct component_list *c, const struct moments *m, const double *r2,
                           struct err *e)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2, rc = OK;
    size_t gg = (size_t)G * (size_t)G, all = (size_t)half * (size_t)G;
    *c = (struct component_list){.n = half * G};
    c->w = mem_calloc(all, sizeof *c->w);
    c->val = mem_calloc(all, sizeof *c->val);
    c->U = mem_calloc((size_t)half * gg, sizeof *c->U);
    c->item = mem_calloc(all, sizeof *c->item);
    if (!c->w || !c->val || !c->U || !c->item)
        rc = err_nomem(e, (size_t)half * gg * sizeof *c->U, "rope directions");
    if (!rc)
        rope_worth(m, r2, c->w);
    for (int j = 0; j < half && !rc; j++) {
        rc = components(m, c->w, j, c->U + (size_t)j * gg, c->val + j * G, e);
        for (int a = 0; a < G; a++)
            c->item[j * G + a] = (struct candidate){c->val[j * G + a], j, G - 1 - a};
    }
    return rc;
}

/* Row `row` of the choice: the list's item i. */
static void take_item(struct rope_choice *out, int row, const struct moments *m,
                      const struct component_list *c, int i)
{
    int G = m->shape.G;
    const struct candidate *t = &c->item[i];
    size_t gg = (size_t)G * (size_t)G;
    set_row(out, row, m, c->w, c->U + (size_t)t->j * gg + (size_t)((G - 1 - t->a) * G), t->j);
}

int mla_rope_own(const struct moments *m, const double *r2, int R, struct rope_choice *out,
                 struct err *e)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2, rc = check_width(m, R, 2 * G * half, e);
    struct component_list list;
    *out = (struct rope_choice){0};
    if (rc)
        return rc;
    rc = list_components(&list, m, r2, e);
    if (!rc)
        rc = choice_init(out, R / 2, (size_t)(half * G), e);
    if (!rc) {
        qsort(list.item, (size_t)list.n, sizeof *list.item, by_value);
        qsort(list.item, (size_t)(R / 2), sizeof *list.item, by_frequency);
        for (int i = 0; i < R / 2; i++)
            take_item(out, i, m, &list, i);
    }
    list_done(&list);
    return rc;
}

/* The best components of all frequencies first, so that stock choices are among them. */
int mla_rope_candidates(const struct moments *m, const double *r2, int pairs,
                        struct rope_choice *out, struct err *e)
{
    struct component_list list;
    *out = (struct rope_choice){0};
    int rc = list_components(&list, m, r2, e);
    if (!rc)
        rc = choice_init(out, pairs, (size_t)list.n, e);
    for (int i = 0; i < list.n && !rc; i++)
        if (list.item[i].a == 0)
            list.item[i].value = DBL_MAX;
    if (!rc)
        qsort(list.item, (size_t)list.n, sizeof *list.item, by_value);
    for (int i = 0; i < pairs && i < list.n && !rc; i++)
        take_item(out, i, m, &list, i);
    list_done(&list);
    return rc;
}

/* Place of the k-th best component at frequency j, in a list that is not sorted yet. */
static int list_place(const struct moments *m, int j, int k)
{
    return j * m->shape.G + m->shape.G - 1 - k;
}

int mla_rope_list(const struct moments *m, const double *r2, const int *index, int R,
                  struct rope_choice *out, struct err *e)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2, rc = check_width(m, R, 2 * G * half, e);
    struct component_list list;
    *out = (struct rope_choice){0};
    if (rc)
        return rc;
    rc = list_components(&list, m, r2, e);
    if (!rc)
        rc = choice_init(out, R / 2, (size_t)(half * G), e);
    for (int i = 0, k = 0; i < R / 2 && !rc; i++) {
        k = i && index[i] == index[i - 1] ? k + 1 : 0;
        if (index[i] < 0 || index[i] >= half || k >= G || (i && index[i] < index[i - 1]))
            rc = err_set(e, ERR_ARG, "rope frequency %d of the list does not fit this layer", i);
        else
            take_item(out, i, m, &list, list_place(m, index[i], k));
    }
    if (rc)
        rope_choice_done(out);
    list_done(&list);
    return rc;
}

int mla_rope_values(const struct moments *m, const double *r2, double *value, struct err *e)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2;
    struct component_list list;
    int rc = list_components(&list, m, r2, e);
    for (int j = 0; j < half && !rc; j++)
        for (int k = 0; k < G; k++)
            value[j * G + k] = fmax(list.item[list_place(m, j, k)].value, 0);
    list_done(&list);
    return rc;
}

/* Gains add up, and a frequency's components get worth less one by one: taking the best next one is
 * the best list. */
int mla_rope_share(double *const *value, int layers, int half, int G, int R, int *index,
                   struct err *e)
{
    int *taken = mem_calloc((size_t)half, sizeof *taken);
    if (!taken)
        return err_nomem(e, (size_t)half * sizeof *taken, "a rope list");
    for (int i = 0; i < R / 2; i++) {
        double most = -1;
        int best = 0;
        for (int j = 0; j < half; j++) {
            double gain = 0;
            for (int l = 0; l < layers && taken[j] < G; l++)
                gain += value[l][j * G + taken[j]];
            if (taken[j] < G && gain > most) {
                most = gain;
                best = j;
            }
        }
        taken[best]++;
    }
    for (int j = 0, i = 0; j < half; j++)
        for (int k = 0; k < taken[j]; k++)
            index[i++] = j;
    free(taken);
    return OK;
}

int mla_rope_none(const struct moments *m, int R, struct rope_choice *out, struct err *e)
{
    int G = m->shape.G, half = m->shape.rope_dim / 2, rc = check_width(m, R, 2 * half, e);
    *out = (struct rope_choice){0};
    return rc ? rc : choice_init(out, R / 2, (size_t)(G * half), e);
}

/* Eigenvectors (rows of U [m][m], ascending) of the pooled real second moment of one group: M
 * neighbouring frequencies from j0, all G heads, entries ordered (g, j). */
static int fold_components(const struct moments *m, int j0, int fold, double *U, double *val,
                           struct err *e)
{
    int G = m->shape.G, size = G * fold;
    for (int a = 0; a < size; a++)
        for (int b = 0; b < size; b++)
            U[a * size + b] =
                creal(key_moment(m, a / fold, j0 + a % fold, b / fold, j0 + b % fold));
    return linalg_eigh(size, U, val, e);
}

int mla_rope_transmla(const struct moments *m, int R, int fold, struct rope_choice *out,
                      double **rest, struct err *e)
{
    int G = m->shape.G, d = m->shape.d, half = m->shape.rope_dim / 2;
    int rc = check_width(m, R, 2 * half, e);
    *out = (struct rope_choice){0};
    if (rest)
        *rest = NULL;
    if (rc)
        return rc;
    int collapse = d / R, kd = G * d, size = G * fold;
    if (m->shape.rope_dim != d || d % R || fold < 1 || half % fold || fold % collapse)
        return err_set(e, ERR_ARG,
                       "transmla: rope width %d must divide the head dim %d, and freqfold %d must "
                       "divide %d and be a multiple of %d",
                       R, d, fold, half, collapse);
    double *U = mem_calloc((size_t)size * (size_t)size, sizeof *U);
    double *val = mem_calloc((size_t)size, sizeof *val);
    double *N = rest ? mem_calloc((size_t)(kd - R) * (size_t)kd, sizeof *N) : NULL;
    if (!U || !val || (rest && !N))
        rc = err_nomem(e, (size_t)kd * (size_t)kd * sizeof *N, "rope directions");
    if (!rc)
        rc = choice_init(out, R / 2, (size_t)(G * half), e);
    int row = 0, keep = fold / collapse, spare = 0, spares = (kd - R) / 2;
    for (int i = 0; i < half / fold && !rc; i++) {
        rc = fold_components(m, i * fold, fold, U, val, e);
        for (int a = 0; a < size && !rc; a++) {
            const double *u = U + (size_t)(size - 1 - a) * (size_t)size;
            for (int b = 0; b < size; b++) {
                int g = b / fold, j = i * fold + b % fold;
                if (a < keep) {
                    size_t at = (size_t)row * (size_t)(G * half) + (size_t)(g * half + j);
                    out->T[at] = out->P[at] = u[b];
                } else if (N) {
                    N[(size_t)spare * (size_t)kd + (size_t)(g * d + j)] = u[b];
                    N[(size_t)(spares + spare) * (size_t)kd + (size_t)(g * d + half + j)] = u[b];
                }
            }
            if (a < keep)
                out->index[row++] = i * fold + a * collapse;
            else
                spare++;
        }
    }
    free(U);
    free(val);
    if (rc) {
        free(N);
        rope_choice_done(out);
    } else if (rest) {
        *rest = N;
    }
    return rc;
}

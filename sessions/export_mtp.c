/* The prediction layer of an export. It is a copy of the last layer with the shared head, so its
 * projection should give what the last layer reads one token later: from the state behind token t
 * and the embedding of token t+1, by least squares over text. Rows count by their size relative to
 * the target's, which the layer norms away.
 *
 * Refuses to publish an export whose guesses change the text. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/linalg.h"
#include "kernels/pool.h"
#include "sessions/draft.h"
#include "sessions/export_inputs.h"

#define JOIN_TOKENS 16384 /* unless told */
#define RIDGE 1e-3        /* of the mean square */
#define PROMPT 16         /* tokens, and how many follow */
#define FOLLOW 48

struct join {
    struct export_inputs in;
    float *target;          /* [rows][D]: what the last layer reads */
    float *F, *Y, *AF, *BF; /* [T][2·D], [T][D], [2·D][2·D], [2·D][D] */
    double *A, *B;          /* sums of FᵀF and FᵀY */
};

static void join_done(struct join *k)
{
    void *all[] = {k->target, k->F, k->Y, k->AF, k->BF, k->A, k->B};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    export_inputs_done(&k->in);
}

static int join_init(struct join *k, const struct export_job *j, struct err *e)
{
    *k = (struct join){0};
    int rc = export_inputs_init(&k->in, j, false, JOIN_TOKENS, e);
    if (rc)
        return rc;
    size_t D = (size_t)k->in.D, rows = states_rows(&k->in.text);
    size_t T =
        (size_t)(k->in.text.long_len > k->in.text.window ? k->in.text.long_len : k->in.text.window);
    k->target = mem_aligned(rows * D, sizeof *k->target);
    k->F = mem_aligned(2 * T * D, sizeof *k->F);
    k->Y = mem_aligned(T * D, sizeof *k->Y);
    k->AF = mem_aligned(4 * D * D, sizeof *k->AF);
    k->BF = mem_aligned(2 * D * D, sizeof *k->BF);
    k->A = mem_calloc(4 * D * D, sizeof *k->A);
    k->B = mem_calloc(2 * D * D, sizeof *k->B);
    bool got = k->target && k->F && k->Y && k->AF && k->BF && k->A && k->B;
    return got ? OK : err_nomem(e, (rows * D + 10 * D * D) * sizeof(float), "a prediction layer");
}

static float inverse_rms(const float *x, size_t n, double eps)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return (float)(1 / sqrt(sum / (double)n + eps));
}

/* The n rows at row `from` into columns `at` of F, each of mean square one. */
static void features(struct join *k, const float *rows, int n, size_t at)
{
    size_t D = (size_t)k->in.D;
    for (size_t i = 0; i < (size_t)n; i++) {
        float f = inverse_rms(rows + i * D, D, k->in.m->hp.rms_eps);
        for (size_t c = 0; c < D; c++)
            k->F[i * 2 * D + at + c] = f * rows[i * D + c];
    }
}

/* Adds one sequence of T tokens from row `first`: states 0 … T-2, tokens and targets 1 … T-1. */
static void add_sequence(struct join *k, size_t first, int T)
{
    struct backend *b = k->in.b;
    const struct engine *g = k->in.g;
    int D = k->in.D, n = T - 1;
    size_t wide = (size_t)D, bytes = (size_t)n * wide * sizeof(float);
    float *x = k->in.s.scratch.x;
    forward_embed(g, x, k->in.text.ids + first + 1, n);
    b->ops->get(b, k->Y, x, bytes);
    features(k, k->Y, n, 0);
    b->ops->rms_norm(b, x, k->in.s.h + first * wide, g->final_norm, (float)k->in.m->hp.rms_eps, n,
                     D);
    b->ops->get(b, k->Y, x, bytes);
    features(k, k->Y, n, wide);
    for (size_t i = 0; i < (size_t)n; i++) {
        const float *y = k->target + (first + 1 + i) * wide;
        float f = inverse_rms(y, wide, k->in.m->hp.rms_eps);
        for (size_t c = 0; c < wide; c++)
            k->Y[i * wide + c] = f * y[c];
        for (size_t c = 0; c < 2 * wide; c++)
            k->F[i * 2 * wide + c] *= f;
    }
    linalg_sgemm(b->pool, true, false, 2 * D, 2 * D, n, 1, k->F, 2 * D, k->F, 2 * D, 0, k->AF,
                 2 * D);
    linalg_sgemm(b->pool, true, false, 2 * D, D, n, 1, k->F, 2 * D, k->Y, D, 0, k->BF, D);
    for (size_t i = 0; i < 4 * wide * wide; i++)
        k->A[i] += (double)k->AF[i];
    for (size_t i = 0; i < 2 * wide * wide; i++)
        k->B[i] += (double)k->BF[i];
}

static int run_layers(struct join *k, const struct export_job *j, struct err *e)
{
    struct states_group group;
    struct states *s = &k->in.s;
    int L = k->in.m->hp.n_layer;
    size_t bytes = states_rows(&k->in.text) * (size_t)k->in.D * sizeof(float);
    for (int l = 0; l < L; l++) {
        if (!progress_report(j->p, "fitting the prediction layer", l, L))
            return err_set(e, ERR_CANCELLED, "export stopped");
        if (l == L - 1)
            k->in.b->ops->get(k->in.b, k->target, s->h, bytes);
        for (int i = 0; states_group(&k->in.text, i, &group); i++)
            states_layer(s, l, &group, NULL);
    }
    for (int i = 0; states_group(&k->in.text, i, &group); i++)
        for (int at = 0; at < group.n; at += group.T)
            add_sequence(k, group.first + (size_t)at, group.T);
    return k->in.b->ops->sync(k->in.b, e);
}

int export_join(struct export_job *j, struct err *e)
{
    struct join k;
    int rc = join_init(&k, j, e), D = k.in.D;
    size_t n = 2 * (size_t)D;
    double mean = 0;
    if (!rc)
        rc = run_layers(&k, j, e);
    for (size_t i = 0; i < n && !rc; i++)
        mean += k.A[i * (n + 1)] / (double)n;
    for (size_t i = 0; i < n && !rc; i++)
        k.A[i * (n + 1)] += RIDGE * mean;
    if (!rc)
        rc = linalg_solve_spd((int)n, D, k.A, k.B, e);
    if (!rc && !(j->x.join = mem_calloc(n * (size_t)D, sizeof *j->x.join)))
        rc = err_nomem(e, n * (size_t)D * sizeof(float), "a prediction layer");
    for (size_t i = 0; i < n && !rc; i++)
        for (size_t c = 0; c < (size_t)D; c++)
            j->x.join[c * n + i] = (float)k.B[i * (size_t)D + c];
    join_done(&k);
    return rc;
}

/* --- reading back ------------------------------------------------------------------------- */

/* FOLLOW greedy tokens after the prompt, with guesses or token by token. */
static int write_text(const struct engine *g, const struct ids *ids, bool guess, int32_t *out,
                      struct draft_count *count, struct err *e)
{
    int V = engine_model(g)->hp.vocab, prompt = ids->n < PROMPT ? (int)ids->n : PROMPT;
    struct infer *t = NULL;
    struct draft *d = NULL;
    float *logits = mem_calloc((size_t)V, sizeof *logits);
    int rc = logits ? OK : err_nomem(e, (size_t)V * sizeof *logits, "logits");
    if (!rc)
        rc = infer_new(&t, g, prompt + FOLLOW, DTYPE_F32, e);
    if (!rc && guess)
        rc = draft_new(&d, g, t, DTYPE_F32, e);
    if (!rc)
        rc = infer_prefill(t, ids->v, prompt, INFER_LAST, logits, NULL, e);
    for (int i = 0; i < FOLLOW && !rc; i++) {
        out[i] = 0;
        for (int v = 1; v < V; v++)
            if (logits[v] > logits[out[i]])
                out[i] = v;
        if (i + 1 < FOLLOW)
            rc = draft_step(d, t, out[i], V, logits, e);
    }
    *count = draft_count(d);
    draft_free(d);
    infer_free(t);
    free(logits);
    return rc;
}

int export_check_drafts(struct export_job *j, const struct model *back, struct backend *b,
                        const struct ids *ids, struct err *e)
{
    int32_t plain[FOLLOW], guessed[FOLLOW];
    struct draft_count count = {0};
    struct engine *g;
    if (back->hp.context < PROMPT + FOLLOW)
        return OK;
    int rc = engine_new(&g, back, b, NULL, e);
    if (!rc)
        rc = write_text(g, ids, false, plain, &count, e);
    if (!rc)
        rc = write_text(g, ids, true, guessed, &count, e);
    if (!rc && memcmp(plain, guessed, sizeof plain))
        rc = err_set(e, ERR_NUMERIC,
                     "the prediction layer changes the text, which must not be: it was not kept");
    j->report->drafted = (int)count.made;
    j->report->accepted = (int)count.right;
    engine_free(g);
    return rc;
}

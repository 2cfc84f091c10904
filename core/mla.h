/* mla: one layer's conversion from GQA to MLA, a pure function of the layer's weights, its moments
 * and what is wanted (rank, rope width, method, layout). No model, no file, no thread.
 *
 * Complex view (method: section 1): κ_{g,j} = k_g[j] + i·k_g[j + d/2], χ_{h,j} likewise for q.
 * A rope choice is R/2 rows: key row T over the G·d/2 complex key coordinates (g, j), query row P,
 * each rotating at one frequency; T and P live at a single j (free and stock choices) or a few
 * neighbouring ones (TransMLA's folding). What is not in a row loses its rotation. */
#ifndef MLATHE_CORE_MLA_H
#define MLATHE_CORE_MLA_H

#include <complex.h>

#include "core/moments.h"
#include "core/rankplan.h"

struct backend;

/* A GQA layer's attention, dequantised. Borrowed. */
struct mla_source {
    struct moments_shape shape;
    const float *wq;           /* [H·d][D] */
    const float *wk;           /* [G·d][D] */
    const float *wv;           /* [G·d][D] */
    const float *wo;           /* [D][H·d] */
    const float *q_norm, *k_norm; /* [d] or NULL: heads are normed before the rotation */
    double norm_eps;
    const float *bq, *bk, *bv; /* [H·d], [G·d], [G·d] or NULL */
    const double *freq;        /* [rope_dim/2] rad/token */
    const double *freq_long;   /* of contexts beyond the original one, or NULL */
    double scale;              /* s */
    struct backend *device;    /* solves large eigenproblems; NULL: the host */
};

struct rope_choice {
    int pairs;         /* R/2 */
    double complex *T; /* [pairs][G·d/2] */
    double complex *P; /* [pairs][G·d/2] */
    int *index;        /* [pairs] into freq: the frequency each row rotates at */
};
void rope_choice_done(struct rope_choice *c);

/* Shrinks c_{h,j} = α − iβ [H][d/2] and explained fractions R² [H][d/2] from the phase moments
 * (method: step 1). Without phase moments (all zero): c = 1, R² = 0. without STEP_PHASE: β = 0;
 * STEP_OWN: the mean over heads; STEP_FIT: the mean rotation under attention, R² = |c|². */
void mla_shrink(const struct moments *m, unsigned without, double complex *c, double *r2);
/* Free choice: the R/2 pairs worth most (method: step 2, own layout). */
int mla_rope_own(const struct moments *m, const double *r2, int R, struct rope_choice *out,
                 struct err *e);
/* The best components at the R/2 listed frequencies (ascending; a frequency listed k times gives its
 * k best): the fastest ones for the stock layout, a list for all layers for the shared one. */
int mla_rope_list(const struct moments *m, const double *r2, const int *index, int R,
                  struct rope_choice *out, struct err *e);
/* value[rope_dim/2][G]: what keeping the k-th best component at a frequency is worth. */
int mla_rope_values(const struct moments *m, const double *r2, double *value, struct err *e);
/* The shared layout's list index[R/2], ascending, from the values of all layers [layers]. */
int mla_rope_share(double *const *value, int layers, int half, int G, int R, int *index,
                   struct err *e);
/* Rows of zeros, for a layer without rope in a layout whose rope rows must turn. */
int mla_rope_none(const struct moments *m, int R, struct rope_choice *out, struct err *e);
/* TransMLA's RoRoPE with FreqFold M (method: section 2); rest (may be NULL): the basis of the
 * components that lose their rotation, real [G·d − R][G·d]. */
int mla_rope_transmla(const struct moments *m, int R, int fold, struct rope_choice *out,
                      double **rest, struct err *e);
/* The rows that compact phase covariances are kept for: the best component of every frequency, then
 * the best of the rest. */
int mla_rope_candidates(const struct moments *m, const double *r2, int pairs,
                        struct rope_choice *out, struct err *e);
/* How the logit of each head is put together from what is kept (method: steps 1 and 4): shrinks of
 * its own key's frequencies and of the roped part where it is taken out again, and a gain on each
 * rope row's query. */
struct phase_fit {
    double complex *own;   /* [H][rope_dim/2] */
    double complex *roped; /* [H][pairs] */
    double complex *gain;  /* [H][pairs] */
};
/* The shrinks alone: own from mla_shrink, roped the same at each row's frequency, gain 1. */
int phase_fit_init(struct phase_fit *f, const struct moments *m, const struct rope_choice *rope,
                   const double complex *shrink, struct err *e);
void phase_fit_done(struct phase_fit *f);
/* Step 4: the three fitted jointly by attention-centred ridge regression towards those values.
 * Rows of rope must live at one frequency each (own and stock choices). damping: 1 is usual. */
int phase_fit_joint(struct phase_fit *f, const struct moments *m, const struct rope_choice *rope,
                    double damping, struct err *e);
/* The converted layer, DeepSeek's tensors with P = Vd = d; queries carry s·sqrt(d + R). */
struct mla_result {
    int r, R;
    double *freq;              /* [R/2] */
    double *freq_long;         /* [R/2] or NULL */
    bool normed;   /* of a source with normed heads: q holds rope rows of the normed head [H·R][d],
                    * kv_a acts on z = [k; v] after the norm [r+R][n]; no biases, scale stays s */
    float *q_bias, *kv_a_bias; /* [H·(d+R)], [r+R] or NULL */
    float *q;                  /* [H·(d+R)][D], per head nope | rope */
    float *kv_a;               /* [r+R][D] */
    float *kv_b;               /* [H·2d][r], per head key | value */
};
void mla_result_done(struct mla_result *r);
/* Of the same layer; without o. */
int mla_result_copy(struct mla_result *out, const struct mla_result *from,
                    const struct mla_source *src, struct err *e);

struct mla_options {
    enum plan_method method;
    enum plan_layout layout;
    int rank, rope_dim;
    int freqfold;           /* transmla */
    const int *shared;      /* shared layout: the list of all layers [rope_dim/2] */
    unsigned without;       /* mlathe: enum plan_step left out */
    int rounds;             /* mlathe: alternating least squares on the latent */
    int stride;             /* stock layout: every so many-th frequency; 0: 1 */
    double balance;         /* mlathe: keys against values, times the natural one; 0: 1 */
    double damping;         /* mlathe: of the joint fit and the heads' refit, times theirs; 0: 1 */
    const double *c_second; /* transmla: [w][w] as m->c, on the partial-rope model; NULL: m->c */
};
/* Solves a layer. spectrum (may be NULL) receives the joint spectrum. From rank w = moments_width on
 * the latent is z (affine: y) itself: partial rope alone, nothing lost but rotations. */
/* About what it takes at rank r, beside the source. */
double mla_solve_bytes(const struct moments_shape *s, int r);
int mla_solve(const struct mla_source *src, const struct moments *m, const struct mla_options *o,
              struct mla_result *out, struct spectrum *spectrum, struct err *e);
/* What of a solve no rank changes: mla_complete makes of it what mla_solve would at that rank (up to
 * rounding), from the same source, moments and options. It holds a latent of `most` numbers; beyond,
 * it can only be completed where nothing is dropped. Of ranks up to `kept` (0: none) it remembers what
 * completing found, which lower ones, and the lower part of higher ones, need not find again. */
struct mla_prepared;
double mla_prepared_bytes(const struct moments_shape *s, int most, int kept); /* at most */
int mla_prepare(struct mla_prepared **out, const struct mla_source *src, const struct moments *m,
                const struct mla_options *o, int most, int kept, struct err *e);
void mla_prepared_free(struct mla_prepared *p);
/* The energy that rank r keeps, as spectrum_energy says it. */
double mla_prepared_energy(const struct mla_prepared *p, int r);
int mla_complete(struct mla_prepared *p, const struct mla_source *src,
                 const struct moments *m, int r, struct mla_result *out, struct err *e);

/* y[rows][D] = attention outputs of the original on layer inputs x [rows][D], sequences of `window`
 * rows starting at position 0. */
int mla_original(const struct mla_source *src, const float *x, int rows, int window, float *y,
                 struct err *e);
/* q[rows][H·(d+R)]: the queries of a result on these inputs, turned; its rank does not matter. */
int mla_queries(const struct mla_source *src, const float *x, int rows, int window,
                const struct mla_result *m, float *q, struct err *e);
/* error = |attention output change|² / |attention output|²; q: its queries or NULL, y: of the original. */
int mla_measure(const struct mla_source *src, const float *x, const float *q, const float *y,
                int rows, int window, const struct mla_result *m, double *error, struct err *e);
int mla_spectrum(const struct mla_source *src, const struct moments *m, const struct mla_options *o,
                 struct spectrum *out, struct err *e); /* the spectrum alone */
/* Of a layer that was never run: identity input moment through the norm's gamma [D]. */
int mla_weight_moments(const struct mla_source *src, const float *gamma, struct moments *out,
                       struct err *e);

#endif

/* moments: what calibration remembers of a layer. Second moments of what flows through its
 * attention, centred and weighted by the model's own attention (method: section 3), enough to
 * solve the conversion for every rank, rope width and layout without another forward pass.
 *
 * z = [k; v] of a token, un-rotated, n = 2·G·d numbers: all G key heads, then all G value heads.
 * p: attention weights of a query head. L_h = W_O,hᵀ W_O,h. Sums run in fp32 inside a batch of
 * windows and in fp64 across batches; the finished n × n moments a head are stored packed in
 * fp32 (upper triangle by rows). */
#ifndef MLATHE_CORE_MOMENTS_H
#define MLATHE_CORE_MOMENTS_H

#include "core/base.h"

struct pool;

struct moments_shape {
    int H, G, d, D;
    int rope_dim; /* rotary width of a head: pairs (j, j + rope_dim/2) */
    /* Zero where there is none: */
    int window;       /* keys a token sees, itself included */
    double softcap;   /* of the logit */
    double magnitude; /* of cos and sin; 0: 1 */
    bool still;       /* nothing rotates: the frequencies are zero */
};
/* What a rotated query times a rotated key is scaled by: magnitude². */
double moments_magnitude2(const struct moments_shape *s);
/* n = 2·G·d */
int moments_n(const struct moments_shape *s);

/* Phase features of a query head h: ψ_{g,j} = conj(χ_{h,j}) κ_{g,j} for every key head g and
 * frequency j, un-rotated and rotated by e^{iθ_j(n−m)}: 4·G·rope_dim/2 real numbers. Their
 * attention-centred covariance predicts, for any rope choice, the true logit from what is kept. */
int moments_features(const struct moments_shape *s);
/* Place of Re ψ_{g,j}; the imaginary part follows at once. */
int moments_feature(const struct moments_shape *s, bool rotated, int g, int j);

struct moments {
    struct moments_shape shape;
    double tokens;
    double residual; /* median |h|² of the residual stream that enters the layer; 0: never run */
    double *c;    /* [n][n] E[z zᵀ] */
    double *m;    /* [H][d][d] E[q_h q_hᵀ] */
    float *cko;   /* [H][n(n+1)/2] E_m Σ_n p² ‖W_O,h(v_n − o_m)‖² z_n z_nᵀ */
    float *cv;    /* [H][n(n+1)/2] E_m z̄ z̄ᵀ, z̄ = Σ_n p z_n */
    double *cvi;  /* [H] tr(L_h E_m Σ_n p² v_n v_nᵀ) */
    float *phase; /* [H][f(f+1)/2] E_m Σ_n p (ψ − ψ̄)(ψ − ψ̄)ᵀ, f = moments_features */
    int sample_rows;
    float *sample;     /* [sample_rows][D] layer inputs (normed) kept to measure errors on */
    int sample_window; /* the sample is sample_rows / sample_window sequences */
};
/* attended: with room for cko, cv, cvi and phase (weight-only moments have none: NULL). */
int moments_init(struct moments *m, const struct moments_shape *s, bool attended, struct err *e);
void moments_done(struct moments *m);
/* Entry (i, j) of head h's phase covariance. */
double moments_phase(const struct moments *m, int h, int i, int j);
/* Packed triangle of head h → full symmetric [n][n]. */
void moments_unpack(const float *packed, int n, int head, double *full);

/* P[T][T] logits → attention weights: causal, within the window, after the soft cap. */
void moments_softmax(const struct moments_shape *s, float *P, int T);

struct moments_accum;
/* wo [D][H·d]; freq [rope_dim/2] rad/token; scale multiplies q·k. */
int moments_accum_new(struct moments_accum **out, const struct moments_shape *s, const float *wo,
                      const double *freq, double scale, int threads, struct err *e);
void moments_accum_free(struct moments_accum *a);
/* Adds windows independent sequences of T tokens: q [windows·T][H·d], k, v [windows·T][G·d],
 * un-rotated, starting at position 0 each. */
int moments_add(struct moments_accum *a, struct pool *pool, const float *q, const float *k,
                const float *v, int windows, int T, struct err *e);
/* Phase covariances from one sequence of T tokens, every step-th query. */
int moments_add_phase(struct moments_accum *a, struct pool *pool, const float *q, const float *k,
                      int T, int step, struct err *e);
/* Means into m (initialised by the call). ERR_NUMERIC when a moment is not finite. */
int moments_finish(const struct moments_accum *a, struct moments *m, struct err *e);

#endif

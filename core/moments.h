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

#include <complex.h>

#include "core/base.h"

struct pool;

#define MOMENTS_ENERGY 0.99

struct moments_shape {
    int H, G, d, D;
    int rope_dim; /* rotary width of a head: pairs (j, j + rope_dim/2) */
    /* Zero where there is none: */
    int window;       /* keys a token sees, itself included */
    double softcap;   /* of the logit */
    double magnitude; /* of cos and sin; 0: 1 */
    bool still;       /* nothing rotates: the frequencies are zero */
    /* How the statistics are kept; zero: of z, and for each query head alone. */
    bool affine;    /* of y instead, with z = Q·y: the layer input, which is narrower than z */
    bool constant;  /* y ends with a 1: keys or values have biases */
    int groups;     /* cko and cv are shared by runs of H/groups query heads; 0: by none */
    int candidates; /* the compact form of the phase covariances, for so many pairs; 0: all */
};
/* What a rotated query times a rotated key is scaled by: magnitude². */
double moments_magnitude2(const struct moments_shape *s);
/* n = 2·G·d */
int moments_n(const struct moments_shape *s);
/* w: n, or D (+ 1) of affine statistics. Never larger than it need be: z has rank D (+ 1) at most.
 * Everything of the layer's statistics and latent then lives in y; Q is [W_k b_k; W_v b_v]. */
int moments_width(const struct moments_shape *s);
int moments_groups(const struct moments_shape *s);

/* Phase features of a query head h: ψ_{g,j} = conj(χ_{h,j}) κ_{g,j} for every key head g and
 * frequency j, un-rotated and rotated by e^{iθ_j(n−m)}: 4·G·rope_dim/2 real numbers. Their
 * attention-centred covariance predicts, for any rope choice, the true logit from what is kept. */
int moments_features(const struct moments_shape *s);
/* Place of Re ψ_{g,j}; the imaginary part follows at once. */
int moments_feature(const struct moments_shape *s, bool rotated, int g, int j);
/* The compact form has these features of a head instead: its own ψ_{g(h),j} un-rotated (real and
 * imaginary part by j), the true logit, and s_a = conj(P_a χ)(T_a κ) of each candidate pair a,
 * un-rotated and rotated: 2·half + 1 + 4·candidates numbers. Place of Re s_a: */
int moments_candidate(const struct moments_shape *s, bool rotated, int a);

struct moments {
    struct moments_shape shape;
    double tokens;
    double residual; /* median |h|² of the residual stream that enters the layer; 0: never run */
    double sink;     /* attention's share on a sequence's first token, mean over heads */
    double change; /* of c's spectrum since half of the tokens, Σ|λ − λ'|/Σλ; -1: not known */
    double moved;  /* and of the rank that keeps MOMENTS_ENERGY of it, in numbers */
    double *c;     /* [w][w] E[z zᵀ]; affine: E[y yᵀ] */
    double *m;     /* [H][d][d] E[q_h q_hᵀ] */
    float *key;    /* affine: [nk(nk+1)/2] E[k kᵀ], nk = G·d; else NULL */
    float *cko; /* [groups][w(w+1)/2] E_m Σ_n p² ‖W_O,h(v_n − o_m)‖² z_n z_nᵀ, group mean */
    float *cv;    /* [groups][w(w+1)/2] E_m z̄ z̄ᵀ, z̄ = Σ_n p z_n, group mean */
    double *cvi;  /* [H] tr(L_h E_m Σ_n p² v_n v_nᵀ) */
    float *phase; /* [H][f(f+1)/2] E_m Σ_n p (ψ − ψ̄)(ψ − ψ̄)ᵀ, f = moments_features */
    double *turn; /* [H][half] re, im of E_m Σ_n p e^{iθ_j(n−m)} */
    double *six;  /* compact: [H][half][6], see moments_six */
    int *index;   /* compact: [candidates] frequency */
    float *basis; /* compact: [candidates][G] T and P at that frequency: re, im, re, im */
    int sample_rows;
    float *sample;     /* [sample_rows][D] layer inputs (normed) kept to measure errors on */
    int sample_window; /* the sample is sample_rows / sample_window sequences */
    bool mapped;       /* key, cko, cv, phase and sample belong to a mapped file */
};
/* attended: with room for cko, cv, cvi and phase (weight-only moments have none: NULL). */
int moments_init(struct moments *m, const struct moments_shape *s, bool attended, struct err *e);
/* The same with room for what is not mapped only. */
int moments_init_mapped(struct moments *m, const struct moments_shape *s, struct err *e);
void moments_done(struct moments *m);
/* Entry (i, j) of head h's phase covariance. */
double moments_phase(const struct moments *m, int h, int i, int j);
/* Packed triangle number i → full symmetric [n][n]. */
void moments_unpack(const float *packed, int n, int i, double *full);
/* cko or cv of query head h → full symmetric [w][w]. */
void moments_of_head(const struct moments *m, const float *packed, int h, double *full);
/* Entry (i, j) of E[k kᵀ]. */
double moments_key(const struct moments *m, int i, int j);
/* rr ii ri ry iy yy of (h, j): the phase covariances of the head's own key (method: section 3). */
void moments_six(const struct moments *m, int h, int j, double six[6]);

/* P[T][T] logits → attention weights: causal, within the window, after the soft cap. */
void moments_softmax(const struct moments_shape *s, float *P, int T);

struct moments_accum;
/* wo [D][H·d]; freq [rope_dim/2] rad/token; scale multiplies q·k. */
int moments_accum_new(struct moments_accum **out, const struct moments_shape *s, const float *wo,
                      const double *freq, double scale, int threads, struct err *e);
void moments_accum_free(struct moments_accum *a);
/* What one takes: batches of rows, sequences of T, phase sequences of T_long. */
double moments_accum_bytes(const struct moments_shape *s, int threads, int rows, int T, int T_long);
/* Adds windows independent sequences of T tokens: q [windows·T][H·d], k, v [windows·T][G·d],
 * un-rotated, starting at position 0 each; x [windows·T][D] the layer input (affine; else NULL). */
int moments_add(struct moments_accum *a, struct pool *pool, const float *x, const float *q,
                const float *k, const float *v, int windows, int T, struct err *e);
/* Looks at the spectrum of E[z zᵀ] so far, and at what became of it since the last look; the tokens
 * should have doubled. change: -1 at the first look. */
int moments_look(struct moments_accum *a, double *change, struct err *e);
/* Phase covariances from one sequence of T tokens, every step-th query. In the compact form the
 * first round over the sequences gives the six of each (h, j); moments_candidates_set starts the
 * second, over the same ones. */
int moments_add_phase(struct moments_accum *a, struct pool *pool, const float *q, const float *k,
                      int T, int step, struct err *e);
/* Without cko, cv and phase: enough to choose rope candidates from, between the rounds. */
int moments_so_far(const struct moments_accum *a, struct moments *m, struct err *e);
/* T, P [candidates][G·half], one frequency each (as in struct rope_choice). */
int moments_candidates_set(struct moments_accum *a, const int *index, const double complex *T,
                           const double complex *P, struct err *e);
/* Means into m (initialised by the call). ERR_NUMERIC when a moment is not finite. */
int moments_finish(const struct moments_accum *a, struct moments *m, struct err *e);

#endif

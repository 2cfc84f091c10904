/* backend: the table of operations that inference runs on, and the axis legend.
 *
 * Axes: T tokens (rows of activations), D hidden, H query heads, G KV heads, d head dim, R rope
 * width (rotary numbers cached a token), r latent rank, L layers, V vocabulary, F feed-forward,
 * P = qk_nope_head_dim, Vd = v_head_dim. Everything is row-major; a weight is [out][in].
 *
 * Activation pointers come from alloc() and live where the backend lives; ids, cos/sin tables and
 * argument structs are host memory. Operations return nothing: faults latch and surface at sync().
 * Every operation has a scalar twin in ref.c (backend "ref"), the executable definition. */
#ifndef MLATHE_KERNELS_BACKEND_H
#define MLATHE_KERNELS_BACKEND_H

#include "kernels/backend_args.h"

struct algebra_ops;
struct backend;
struct pool;
struct step;   /* a recorded step; opaque */
struct weight; /* a matrix made ready by one backend; opaque */

/* A weight as the file has it: rows = out, cols = in, data borrowed. */
struct matrix {
    const void *data;
    enum dtype dtype;
    int rows, cols;
};

struct backend_options {
    int threads;     /* 0: all cores */
    int device;      /* accelerator index */
    bool background; /* helper threads at nice +10 (the screens) */
    bool exact;      /* fp32 activations: never quantise them to int8 */
    size_t copies; /* bytes that copies of weights may take, 0: any; beyond it they are used as the
                    * file has them, more slowly */
    const char *isa; /* the most to use, for tests: a name of cpu_isa.c such as "avx2"; NULL: all */
};

struct backend_ops {
    const char *name;
    unsigned caches; /* bit DTYPE_…: what store writes and attention reads */
    int (*open)(struct backend **out, const struct backend_options *opt, struct err *e);
    void (*close)(struct backend *b);
    /* One line for the screen: "cpu 2 threads AVX2". */
    void (*describe)(const struct backend *b, char *text, size_t size);

    void *(*alloc)(struct backend *b, size_t bytes); /* zeroed; NULL when out of memory */
    void (*free)(struct backend *b, void *p);
    void (*put)(struct backend *b, void *dst, const void *src, size_t bytes);
    void (*get)(struct backend *b, void *dst, const void *src, size_t bytes);
    int (*sync)(struct backend *b, struct err *e);

    /* Makes a weight usable: may repack or upload, or keep pointing at m->data (which must then
     * outlive it). *owned = bytes the backend allocated for it. */
    int (*weight_load)(struct backend *b, const struct matrix *m, struct weight **out,
                       size_t *owned, struct err *e);
    void (*weight_free)(struct backend *b, struct weight *w);

    /* y[T][cols] = rows ids[T] of w. */
    void (*embed)(struct backend *b, float *y, const struct weight *w, const int32_t *ids, int T);
    /* y[i][T][rows_i] = x[T][in] · w[i]ᵀ for the n weights that share an input; + y if add. */
    void (*linear)(struct backend *b, int n, const struct weight *const *w, float *const *y,
                   const float *x, int T, bool add);
    /* y[T][n] = x / sqrt(mean x² + eps) · gamma[n]. y may be x. */
    void (*rms_norm)(struct backend *b, float *y, const float *x, const float *gamma, float eps,
                     int T, int n);
    /* Rotates in place, pairs (j, j + R/2) of each head: row t, head h at x + t·ld + h·stride.
     * cos, sin: [T][R/2]. */
    void (*rope)(struct backend *b, float *x, int ld, int heads, int stride, int R,
                 const float *cos, const float *sin, int T);
    /* Cache write: row t of dst (ld_dst elements of type kv, whole blocks) = src + t·ld_src, n
     * numbers. */
    void (*store)(struct backend *b, void *dst, enum dtype kv, int ld_dst, const float *src,
                  int ld_src, int n, int T);
    void (*attn_gqa)(struct backend *b, const struct attn_gqa_args *a);
    void (*attn_mla)(struct backend *b, const struct attn_mla_args *a);
    /* kv_b [H·(P+Vd)][r], per head P key rows then Vd value rows.
     * absorb: q_lat[T][H·r] = q_nope_h · ku_h, q_nope of head h at q + t·ld + h·stride (P numbers).
     * expand: out[T][H·Vd] = lat_h · vu_hᵀ with lat[T][H·r]. */
    void (*mla_absorb)(struct backend *b, float *q_lat, const float *q, int ld, int stride,
                       const struct weight *kv_b, int H, int P, int Vd, int r, int T);
    void (*mla_expand)(struct backend *b, float *out, const float *lat, const struct weight *kv_b,
                       int H, int P, int Vd, int r, int T);
    /* y[n] = act(gate) · up; y may be gate. */
    void (*glu)(struct backend *b, float *y, const float *gate, const float *up, enum glu_act act,
                size_t n);
    void (*add)(struct backend *b, float *y, const float *x, size_t n); /* y += x */

    /* What some families need besides; rows and factor are host memory. */
    /* rms_norm in place of n numbers of each head: row t, head h at x + t·ld + h·stride. */
    void (*head_norm)(struct backend *b, float *x, int ld, int heads, int stride,
                      const float *gamma, float eps, int T, int n);
    void (*add_bias)(struct backend *b, float *y, const float *bias, int T, int n); /* each row */
    void (*scale)(struct backend *b, float *y, float factor, size_t n);
    void (*softcap)(struct backend *b, float *y, float cap, size_t n); /* y = cap·tanh(y / cap) */
    /* y[t] = x[rows[t]]; and back, weighted: y[rows[t]] += factor[t]·x[t], rows all different. */
    void (*take_rows)(struct backend *b, float *y, const float *x, const int32_t *rows, int T,
                      int n);
    void (*add_rows)(struct backend *b, float *y, const int32_t *rows, const float *x,
                     const float *factor, int T, int n);

    /* What some backends do in one go; NULL: rope and store, linear and glu, attn_mla. */
    void (*place)(struct backend *b, const struct place_args *a);
    /* False: nothing was done, call the operations. */
    bool (*mla_step)(struct backend *b, const struct mla_step_args *a);
    /* gate[T][F] = act(x · w_gateᵀ) · (x · w_upᵀ); up is room for as many. */
    void (*glu_linear)(struct backend *b, float *gate, float *up, const struct weight *w_gate,
                       const struct weight *w_up, enum glu_act act, const float *x, int T);
    /* S[W][W] = Σ_t a_t a_tᵀ, its upper triangle, and X[W][D] = Σ_t a_t y_tᵀ over n rows. False (or
     * NULL): linalg's are faster. */
    bool (*outer)(struct backend *b, float *S, float *X, const float *a, int W, const float *y,
                  int D, int n);
    /* A step that comes again and again: the operations from step_begin to step_end, the same with
     * the same pointers and sizes each time; only ids, tables and past differ. A backend may record
     * them and do them all at the end. *slot: NULL at first, then the backend's. step_end false:
     * nothing of it was done, call the operations again. step_free when a pointer changes, or at
     * the end. NULL: nothing to call. */
    void (*step_begin)(struct backend *b, struct step **slot);
    bool (*step_end)(struct backend *b);
    void (*step_free)(struct backend *b, struct step *s);
};

/* First member of every backend's own struct. */
struct backend {
    const struct backend_ops *ops;
    struct pool *pool;                 /* host threads for conversion work; never NULL */
    const struct algebra_ops *algebra; /* the conversion's algebra; NULL: the host does it */
    char note[256]; /* why "auto" did not take an accelerator; empty: there was none to try */
};

/* The static table, NULL-terminated: "cpu", "ref" (and "cuda" when built in). */
extern const struct backend_ops *const backend_table[];
extern const struct backend_ops cpu_backend_ops, ref_backend_ops, cuda_backend_ops;
/* name "auto", "cpu", "ref", "cuda", "cuda:1". */
int backend_open(struct backend **out, const char *name, const struct backend_options *opt,
                 struct err *e);
void backend_close(struct backend *b);

#endif

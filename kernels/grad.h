/* grad: what training a converted model needs beside a backend: its operations and their gradients,
 * on host memory, over BLAS and a pool.
 *
 * One table a precision from one source (grad_body.h): fp32 trains, fp64 is there to be checked
 * against finite differences, and what it proves holds for fp32, which is the same code. Numbers
 * are therefore void pointers to elements of op->size bytes; leading dimensions count elements.
 * Axis letters as in backend.h; P and R are the parts of a query without and with rotation. */
#ifndef MLATHE_KERNELS_GRAD_H
#define MLATHE_KERNELS_GRAD_H

#include "kernels/backend.h"

/* Causal attention of MLA in its decompressed form over sequences laid end to end: rows
 * start[i] … start[i+1]−1 are sequence i. Head h: query at q + h·(P+R), key and value at
 * kv + h·(P+V), and the rotated key row that all heads share. */
struct grad_attn {
    int H, P, R, V;
    double scale, softcap; /* softcap 0: none */
    int window;            /* 0: none; counts the token itself */
    const int *start;      /* [n_seq + 1] */
    int n_seq;
    const void *q, *kv, *kr; /* [rows][H·(P+R)], [rows][H·(P+V)], [rows] R numbers kr_ld apart */
    int kr_ld;
    void *out;     /* [rows][H·V] */
    void *scratch; /* grad_attn_scratch() elements */
    /* Backward: dout in; the others are written. dkr has kr's spacing. */
    const void *dout;
    void *dq, *dkv, *dkr, *dkr_heads; /* dkr_heads: work space [rows][H·R] */
};
size_t grad_attn_scratch(const struct grad_attn *a, int threads);

/* Distillation of rows of logits. loss = (1 − mix)·KL(teacher‖student) + mix·NLL(target). */
struct grad_kl {
    int rows, V;
    float *teacher; /* [rows][V] logits; destroyed */
    void *student;  /* [rows][V] raw logits → their gradient times weight; NULL weight: loss */
    double softcap; /* of the student's logits; the teacher's are final */
    double mix, weight;    /* weight 0: the loss alone, student destroyed */
    const int32_t *target; /* [rows], −1: none (then KL alone); NULL: none at all */
    double *kl, *nll;      /* [rows] out; nll may be NULL and is NAN without a target */
};

struct grad_adam {
    double rate; /* of this step, in units of the tensor */
    double beta1, beta2, eps;
    double fix1, fix2; /* 1 − βᵗ */
    double factor;     /* multiplies the gradient first */
};

struct grad_ops {
    const char *name;
    size_t size; /* bytes a number */
    void (*from_f32)(void *dst, const float *src, size_t n);
    void (*to_f32)(float *dst, const void *src, size_t n);
    double (*get)(const void *p, size_t i);
    void (*set)(void *p, size_t i, double v);

    /* C[m][n] = alpha · op(A) op(B) + beta · C, as linalg_sgemm. */
    void (*gemm)(struct pool *p, bool ta, bool tb, int m, int n, int k, double alpha, const void *a,
                 int lda, const void *b, int ldb, double beta, void *c, int ldc);
    /* dst (+)= src, cols numbers a row. */
    void (*move)(struct pool *p, void *dst, int ld_dst, const void *src, int ld_src, int cols,
                 int rows, bool add);
    void (*add_bias)(struct pool *p, void *y, const void *bias, int rows, int n);
    /* y = x / sqrt(mean x² + eps) · gamma; back: dx (+)= its gradient, dx may be dy unless add. */
    void (*norm)(struct pool *p, void *y, const void *x, const void *gamma, double eps, int rows,
                 int n);
    void (*norm_back)(struct pool *p, void *dx, const void *dy, const void *x, const void *gamma,
                      double eps, int rows, int n, bool add);
    /* As backend's rope with cos, sin [rows][R/2]; back: the opposite turn (magnitude kept). */
    void (*rope)(struct pool *p, void *x, int ld, int heads, int stride, int R, const void *cos,
                 const void *sin, int rows, bool back);
    void (*glu)(struct pool *p, void *y, const void *gate, const void *up, enum glu_act act,
                size_t n);
    /* Fastest when no two of its rows are the same memory. */
    void (*glu_back)(struct pool *p, void *dgate, void *dup, const void *dy, const void *gate,
                     const void *up, enum glu_act act, size_t n);
    void (*attn)(struct pool *p, const struct grad_attn *a);
    void (*attn_back)(struct pool *p, const struct grad_attn *a);
    void (*kl)(struct pool *p, const struct grad_kl *a);
    /* d += weight·(x − want); returns ½·weight·Σ(x − want)². */
    double (*match)(struct pool *p, void *d, const void *x, const float *want, double weight,
                    size_t n);
    /* Rows chosen by number, for experts: y[t] = x[rows[t]]; y[rows[t]] += factor[t]·x[t], rows all
     * different; out[t] = a[t]·b[t] (dot product); x[t] *= factor[t]. factor: op's numbers. */
    void (*take)(void *y, const void *x, const int *rows, int n, int width);
    void (*give)(void *y, const int *rows, const void *x, const void *factor, int n, int width);
    void (*dots)(void *out, const void *a, const void *b, int n, int width);
    void (*stretch)(void *x, const void *factor, int n, int width);
    /* Of the optimiser. */
    double (*sum_squares)(struct pool *p, const void *x, size_t n);
    void (*adam)(struct pool *p, void *w, const void *g, void *m, void *v, size_t n,
                 const struct grad_adam *a);
};

extern const struct grad_ops grad_f64, grad_f32;
#ifdef __x86_64__
extern const struct grad_ops grad_avx2; /* fp32 */
#endif
/* The fastest fp32 table of this machine. */
const struct grad_ops *grad_fast(void);

#endif

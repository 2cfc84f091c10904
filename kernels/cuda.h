/* cuda: the CUDA backend's inside, shared by its .cu files. C++20 that compiles twice: by nvcc for
 * the device, and by the host's compiler with cuda_emu.h (CUDA_EMULATE) for the tests. */
#ifndef MLATHE_KERNELS_CUDA_H
#define MLATHE_KERNELS_CUDA_H

#include <pthread.h>
#include <type_traits>

extern "C" {
#include "kernels/algebra.h"
}

#ifdef CUDA_EMULATE
#include "kernels/cuda_emu.h"
#define LAUNCH(kernel, grid, threads, bytes, stream, ...)                                          \
    ((void)(stream), emu_launch(grid, threads, bytes, [=] { kernel(__VA_ARGS__); }))
#define SHARED(type, name, n) type *const name = (type *)emu_shared(__LINE__, (n) * sizeof(type))
#define SHARED_DYNAMIC(type, name) type *const name = (type *)emu_shared(-2, emu.dynamic)
static inline float cuda_half(uint16_t h)
{
    return f16_to_f32(h);
}
static inline uint16_t cuda_to_half(float f)
{
    return f32_to_f16(f);
}
static inline float cuda_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline uint32_t cuda_word(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, threads, bytes, stream, ...)                                          \
    kernel<<<grid, threads, bytes, stream>>>(__VA_ARGS__)
#define SHARED(type, name, n) __shared__ type name[n]
#define SHARED_DYNAMIC(type, name)                                                                 \
    extern __shared__ uint4 dynamic_shared[];                                                      \
    type *const name = (type *)dynamic_shared
static __device__ __forceinline__ float cuda_half(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}
static __device__ __forceinline__ uint16_t cuda_to_half(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}
static __device__ __forceinline__ float cuda_bits(uint32_t u)
{
    return __uint_as_float(u);
}
static __device__ __forceinline__ uint32_t cuda_word(float f)
{
    return __float_as_uint(f);
}
#endif

enum {
    CUDA_THREADS = 128,   /* of most kernels */
    CUDA_FEW = 8,         /* rows of activations up to which weights are dequantised at each use */
    CUDA_RING = 4 << 20,  /* bytes of the ring that carries ids and tables to the device */
    CUDA_PANEL = 1 << 24, /* numbers of a weight that are fp32 at a time in prefill */
    CUDA_SMALL = 1 << 20, /* bytes up to which a copy to the host goes through pinned memory */
};

struct weight {
    struct matrix m;    /* data and dtype as they are on the device; data NULL: not there now */
    struct matrix host; /* as the file has it */
    size_t bytes;       /* on the device */
    bool streams;
    struct weight *next; /* of those in the ring */
};

/* Where weights lie that stream, and how many bytes do. */
struct cuda_ring {
    char *base;
    size_t bytes, at, weights;
    long uploads;
    struct weight *present;
};

struct cuda_stage {
    char *host; /* pinned */
    cudaEvent_t taken;
};

/* The BLAS that does prefill; its library is looked for at run time. */
struct cuda_blas {
    void *library, *handle;
    void *gemm, *gemm_batch, *syrk, *trsm;
};

/* The eigensolver of large problems, opened at the first one. */
struct cuda_solver {
    pthread_mutex_t lock;
    cudaStream_t stream;
    bool tried;
    void *library, *handle, *params;
    void *size, *syevd, *factor_size, *potrf;
    struct cuda_blas blas; /* of this stream */
};

struct cuda {
    struct backend base;
    int device, processors;
    size_t shared_most; /* bytes of shared memory a block may ask for */
    bool exact;
    char name[64];
    cudaStream_t stream;
    struct cuda_blas blas;
    struct cuda_solver solver;
    struct cuda_stage stage[2];
    unsigned stage_at;
    struct cuda_ring streamed;
    unsigned char *ring, *ring_host; /* device and pinned, CUDA_RING bytes */
    size_t ring_at;
    unsigned char *small_host; /* pinned, CUDA_SMALL bytes */
    struct step *step;         /* between step_begin and step_end */
    const char *no_steps;      /* why steps are launched one by one; NULL: they are not */
    void *scratch;             /* attention's parts, or a panel of a weight */
    size_t scratch_bytes;
    struct err fault; /* latched until sync */
};

/* Latches what the runtime says about `what`; true when all is well. */
bool cuda_ok(struct cuda *c, cudaError_t rc, const char *what);
/* Host bytes in device memory, good for what is launched next; NULL latches a fault. */
const void *cuda_carry(struct cuda *c, const void *host, size_t bytes);
/* Device scratch, good until the next call; NULL latches a fault. */
void *cuda_scratch(struct cuda *c, size_t bytes);

/* A launch within a step (cuda_step.cu): adds what was asked for to the step's check; true: do not
 * launch, the graph will. */
void cuda_step_note(struct cuda *c, const void *p, size_t n);
bool cuda_step_repeats(const struct cuda *c);
/* What no graph can hold happens within a step. */
void cuda_step_spoil(struct cuda *c, const char *why);
/* Host bytes in the step's own memory on the device; NULL: there is no step. */
const void *cuda_step_carry(struct cuda *c, const void *host, size_t bytes);
void cuda_step_begin(struct backend *b, struct step **slot);
bool cuda_step_end(struct backend *b);
void cuda_step_free(struct backend *b, struct step *s);

/* Launches a kernel; what goes wrong latches. All of the backend's launches go this way. */
template <class... P>
static inline void cuda_launch(struct cuda *c, const char *what, void (*kernel)(P...), dim3 grid,
                               unsigned threads, size_t bytes, std::type_identity_t<P>... args)
{
    if (c->step) {
        cuda_step_note(c, &kernel, sizeof kernel);
        cuda_step_note(c, &grid, sizeof grid);
        (cuda_step_note(c, &args, sizeof args), ...);
        if (cuda_step_repeats(c))
            return;
    }
    LAUNCH(kernel, grid, threads, bytes, c->stream, args...);
    cuda_ok(c, cudaGetLastError(), what);
}

/* ERR_NOMEM: what was wanted, and what there is. */
int cuda_no_memory(struct cuda *c, size_t bytes, const char *what, struct err *e);

/* Host bytes to the device by way of pinned memory; from may change when it returns. */
void cuda_upload(struct cuda *c, void *to, const void *from, size_t bytes);
/* The weight on the device, brought there if need be: good for the next launch. */
const struct matrix *cuda_weight(struct cuda *c, const struct weight *w);
int cuda_weight_load(struct backend *b, const struct matrix *m, struct weight **out, size_t *owned,
                     struct err *e);
void cuda_weight_free(struct backend *b, struct weight *w);
void cuda_weights_close(struct cuda *c);

int cuda_blas_open(struct cuda_blas *b, cudaStream_t stream);
void cuda_blas_close(struct cuda_blas *b);
/* y[T][rows of ldy] = (y if add) + x[T][cols] · w[rows][cols]ᵀ, all fp32 on the device. */
int cuda_blas_gemm(const struct cuda_blas *b, bool exact, int rows, int T, int cols, const float *w,
                   const float *x, float *y, int ldy, bool add);

/* The same in batches, and sums of squares; row-major, as struct algebra_ops says. */
int cuda_blas_gemm_batch(const struct cuda_blas *b, const struct algebra_gemm *g);
int cuda_blas_syrk(const struct cuda_blas *b, int n, int k, const float *a, int lda, float *c);
/* x[n][m] becomes the solution of L Lᵀ X = x, L [n][n] a column-major lower factor; fp64. */
int cuda_blas_back(const struct cuda_blas *b, int n, int m, const double *factor, double *x);

void cuda_solver_init(struct cuda_solver *s);
void cuda_solver_close(struct cuda_solver *s);
/* struct algebra_ops: eigh, solve_spd. */
int cuda_eigh(struct backend *b, int n, double *a, double *w, struct err *e);
int cuda_solve_spd(struct backend *b, int n, int m, double *a, double *x, struct err *e);

/* The operations that are not in cuda.cu. */
void cuda_embed(struct backend *b, float *y, const struct weight *w, const int32_t *ids, int T);
void cuda_linear(struct backend *b, int n, const struct weight *const *w, float *const *y,
                 const float *x, int T, bool add);
/* linear for up to CUDA_FEW rows, and glu_linear (false: not for these weights). */
void cuda_gemv(struct cuda *c, int n, const struct weight *const *w, float *const *y,
               const float *x, int T, bool add);
bool cuda_gemv_glu(struct cuda *c, const struct weight *gate, const struct weight *up,
                   enum glu_act act, const float *x, int T, float *y);
void cuda_mla_absorb(struct backend *b, float *q_lat, const float *q, int ld, int stride,
                     const struct weight *kv_b, int H, int P, int Vd, int r, int T);
void cuda_mla_expand(struct backend *b, float *out, const float *lat, const struct weight *kv_b,
                     int H, int P, int Vd, int r, int T);
void cuda_attn_gqa(struct backend *b, const struct attn_gqa_args *a);
void cuda_attn_mla(struct backend *b, const struct attn_mla_args *a);
void cuda_rms_norm(struct backend *b, float *y, const float *x, const float *gamma, float eps,
                   int T, int n);
void cuda_head_norm(struct backend *b, float *x, int ld, int heads, int stride, const float *gamma,
                    float eps, int T, int n);
void cuda_rope(struct backend *b, float *x, int ld, int heads, int stride, int R, const float *cos,
               const float *sin, int T);
void cuda_store(struct backend *b, void *dst, enum dtype kv, int ld_dst, const float *src,
                int ld_src, int n, int T);
void cuda_glu(struct backend *b, float *y, const float *gate, const float *up, enum glu_act act,
              size_t n);
void cuda_glu_linear(struct backend *b, float *gate, float *up, const struct weight *w_gate,
                     const struct weight *w_up, enum glu_act act, const float *x, int T);
void cuda_place(struct backend *b, const struct place_args *a);
void cuda_add(struct backend *b, float *y, const float *x, size_t n);
void cuda_add_bias(struct backend *b, float *y, const float *bias, int T, int n);
void cuda_scale(struct backend *b, float *y, float factor, size_t n);
void cuda_softcap(struct backend *b, float *y, float cap, size_t n);
void cuda_take_rows(struct backend *b, float *y, const float *x, const int32_t *rows, int T, int n);
void cuda_add_rows(struct backend *b, float *y, const int32_t *rows, const float *x,
                   const float *factor, int T, int n);

#endif

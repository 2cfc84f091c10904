/* The CPU backend's inside: its instance, its weights and the kernels of one instruction set.
 *
 * Quantised weights are repacked at load into groups of 8 rows, so that one 32-byte register holds
 * 4 consecutive numbers of each row and one activation load feeds 8 rows without horizontal sums.
 * A group is one stream of blocks, each with its F16 scales before its quants. */
#ifndef MLATHE_KERNELS_CPU_H
#define MLATHE_KERNELS_CPU_H

#include "kernels/backend.h"

enum {
    CPU_GROUP = 8,    /* rows of a packed group */
    CPU_BLOCK = 32,   /* numbers a quantised block */
    CPU_PANEL = 32,   /* rows dequantised at a time for the fp32 product */
    CPU_SPARSE = 512, /* columns up to which plain matrices are looked at for rows of two numbers */
    CPU_FEW = 12,     /* rows of activations up to which numbers are converted at each use */
};

/* A row with at most two numbers that are not zero. */
struct cpu_sparse {
    int at[2];
    float value[2];
};

struct cpu_slab;
struct weight {
    struct matrix m;           /* data is not read again once packed as its own type */
    enum dtype type;           /* of the packed blocks */
    unsigned char *packed;     /* NULL: rows are read from m.data */
    struct cpu_slab *slab;     /* whose memory that is */
    struct cpu_sparse *sparse; /* [rows] of a matrix of such rows, else NULL */
    size_t group_bytes, bytes;
    bool crowded; /* not packed for want of room */
};

/* T rows of activations as int8: x ≈ scale·q by blocks of 32; sum = scale·Σq of a block, half = Σq
 * of its halves. */
struct cpu_quants {
    int8_t *q;          /* [T][cols] */
    float *scale, *sum; /* [T][cols/32] */
    int16_t *half;      /* [T][cols/16] */
    int cols;
};

/* One instruction set's kernels, run inside one thread. m, n, k are any positive sizes. */
struct cpu_isa {
    const char *name;
    int direct; /* rows of a up to which 16-bit numbers are best widened where they are used */
    /* c[m][n] = (c if add) + Σ_k a[i][k]·b[j][k]; b is F32, F16 or BF16. */
    void (*dots)(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                 int ldb, float *c, int ldc, bool add);
    /* c[m][n] = a · bᵀ in whatever order suits few rows: what attention asks for. NULL: dots do. */
    void (*scores)(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                   int ldb, float *c, int ldc);
    bool fast_gemm; /* than the BLAS's, for F32 of hundreds of rows and columns */
    /* c[m][n] = (c if add) + Σ_k a[i][k]·b[k][j]. */
    void (*gemm)(int m, int n, int k, const float *a, int lda, enum dtype type, const void *b,
                 int ldb, float *c, int ldc, bool add);
    /* dst[rows][n] = F16, BF16 or Q8_0 rows that are ld apart (whole blocks). */
    void (*widen)(enum dtype type, int rows, int n, const void *src, int ld, float *dst);
    /* dst[n][ld_dst] columns 0 … rows−1 = the rows, F32 too. */
    void (*widen_turned)(enum dtype type, int rows, int n, const void *src, int ld, float *dst,
                         int ld_dst);
    /* The way back: dst[n], whole blocks. */
    void (*narrow)(enum dtype type, const float *src, void *dst, int n);
    float (*max)(const float *x, int n);
    /* x = exp(x − top); returns the sum. */
    float (*exp_sum)(float *x, int n, float top);
    void (*softcap)(float *x, int n, float cap);                  /* x = cap·tanh(x / cap) */
    void (*scale)(float *y, const float *x, int n, float factor); /* y = factor·x */
    void (*norm)(float *y, const float *x, const float *gamma, float eps, int n);
    void (*rotate)(float *re, float *im, const float *cos, const float *sin, int n);
    void (*glu)(float *y, const float *gate, const float *up, enum glu_act act, size_t n);
    void (*add)(float *y, const float *x, size_t n);
    /* The packed formats; NULL where weights are used as the file has them. */
    void (*quantise)(const float *x, int n, int8_t *q, float *scale, float *sum, int16_t *half);
    /* y[T][8·groups] (ldy apart) = the rows of groups first … first+groups−1; rows beyond the
     * matrix are not written. */
    void (*matmul_q)(const struct weight *w, int first, int groups, const struct cpu_quants *x,
                     int t0, int T, float *y, int ldy, bool add);
    void (*matmul_f)(const struct weight *w, int first, int groups, const float *x, int T, float *y,
                     int ldy, bool add);
    /* y[32] = Σ over the rows of groups of Q8_0 of x[row]·(their block's numbers). */
    void (*turned)(const struct weight *w, int first, int groups, int block, const float *x,
                   float *y);
    /* dst[cols][ld] columns 0 … 7 = the rows of a group. */
    void (*unpack)(const struct weight *w, int group, float *dst, int ld);
};

extern const struct cpu_isa cpu_scalar;
#if defined __x86_64__
extern const struct cpu_isa cpu_avx2;
/* Replaces the kernels of AVX2 that AVX-512 does better; the second: those of packed weights. */
void cpu_avx512_use(struct cpu_isa *isa);
void cpu_avx512_use_packed(struct cpu_isa *isa);
#elif defined __aarch64__
/* Replaces the scalar kernels that NEON does better, then those that its dot products do. */
void cpu_neon_use(struct cpu_isa *isa);
void cpu_neon_dot_use(struct cpu_isa *isa);
#endif
/* The best of this machine, or of it up to the one named (NULL: any). */
int cpu_isa_choose(struct cpu_isa *isa, const char *cap, struct err *e);

struct cpu {
    struct backend base;
    struct cpu_isa isa;
    bool exact;
    size_t copied, copies; /* bytes of packed weights; the most there may be, 0: any */
    int in_place;          /* weights that stayed in the file for that */
    struct cpu_slab *slab; /* where the next weight goes */
    struct err fault;      /* latched until sync */
    void *scratch, *shared;
    size_t scratch_bytes, shared_bytes;
};

/* Backend memory, zeroed (cpu_memory.c). */
void *cpu_alloc(struct backend *b, size_t bytes);
void cpu_free(struct backend *b, void *p);
/* Memory of one weight, given back with the slab it is from (NULL: nothing). */
void *cpu_slab_take(struct cpu *b, size_t bytes, struct cpu_slab **from);
void cpu_slab_give(struct cpu *b, struct cpu_slab *s);
/* size bytes for each thread, thread i at + i·size rounded up to 64: NULL latches a fault. Both
 * grow and stay, so that a token allocates nothing. */
void *cpu_scratch(struct cpu *b, size_t *size);
void *cpu_shared(struct cpu *b, size_t size);

bool cpu_outer(struct backend *b, float *S, float *X, const float *a, int W, const float *y, int D,
               int n);
/* A piece of a matrix as dots and gemm take it. */
struct cpu_piece {
    enum dtype type;
    const void *data;
    int ld;
};
/* Columns [col, col + n) of rows row … row+rows−1. What a few rows of activations will read
 * (T ≤ CPU_FEW) stays as it is where it can; else it becomes fp32 in dst [rows][n]. */
struct cpu_piece cpu_weight_piece(const struct cpu *b, const struct weight *w, int row, int rows,
                                  int col, int n, int T, float *dst);
int cpu_weight_load(struct backend *b, const struct matrix *m, struct weight **out, size_t *owned,
                    struct err *e);
void cpu_weight_free(struct backend *b, struct weight *w);

void cpu_linear(struct backend *b, int n, const struct weight *const *w, float *const *y,
                const float *x, int T, bool add);
void cpu_attn_gqa(struct backend *b, const struct attn_gqa_args *a);
void cpu_attn_mla(struct backend *b, const struct attn_mla_args *a);
/* attn_mla of one token, each thread some heads; before and after are called for them. */
void cpu_attn_heads(struct backend *b, const struct attn_mla_args *a,
                    void (*before)(void *arg, int first, int heads),
                    void (*after)(void *arg, int first, int heads), void *arg);
bool cpu_mla_step(struct backend *b, const struct mla_step_args *a);
void cpu_mla_absorb(struct backend *b, float *q_lat, const float *q, int ld, int stride,
                    const struct weight *kv_b, int H, int P, int Vd, int r, int T);
void cpu_mla_expand(struct backend *b, float *out, const float *lat, const struct weight *kv_b,
                    int H, int P, int Vd, int r, int T);

/* Super-blocks of 256. */
static inline bool cpu_is_super(enum dtype type)
{
    return type == DTYPE_Q4_K || type == DTYPE_Q5_K || type == DTYPE_Q6_K;
}

/* Six bits a number. */
static inline bool cpu_is_six(enum dtype type)
{
    return type == DTYPE_Q6_0 || type == DTYPE_Q6_K;
}

/* Numbers whose bits are put in another order: single ones are read from the file. */
static inline bool cpu_is_apart(enum dtype type)
{
    return type == DTYPE_Q6_0 || cpu_is_super(type);
}

/* The block types that have packed kernels. The others become Q8_0 on their way: Q5_0 and IQ4_NL
 * exactly; with the rest that adds about as much error as the int8 activations, so exact backends
 * dequantise them as they are needed. */
static inline bool cpu_can_pack(enum dtype type)
{
    return type == DTYPE_Q8_0 || type == DTYPE_Q4_0 || type == DTYPE_Q4_1 || cpu_is_apart(type);
}

/* A packed block: d of the 8 rows, their m (Q4_1), then the quants. In super-blocks
 * (cpu_quant_k.h) the block has small integers instead, and every eighth one d (and m) before it.
 */
static inline size_t cpu_block_head(enum dtype type)
{
    return type == DTYPE_Q4_1 ? 32 : 16;
}

static inline size_t cpu_block_bytes(enum dtype type)
{
    size_t quants = type == DTYPE_Q8_0   ? 256
                    : cpu_is_six(type)   ? 192
                    : type == DTYPE_Q5_K ? 160
                                         : 128;
    return cpu_block_head(type) + quants;
}

static inline size_t cpu_super_head(enum dtype type)
{
    return type == DTYPE_Q6_K ? 16 : cpu_is_super(type) ? 32 : 0;
}

static inline size_t cpu_group_bytes(enum dtype type, int cols)
{
    size_t blocks = (size_t)cols / CPU_BLOCK;
    return blocks * cpu_block_bytes(type) + blocks / 8 * cpu_super_head(type);
}

static inline const unsigned char *cpu_group(const struct weight *w, int group)
{
    return w->packed + (size_t)group * w->group_bytes;
}

#endif

/* cuda_attn: what the two attention kernels share: cuda_attn.cu's, which takes everything, and
 * cuda_attn_mma.cu's for F16 caches. */
#ifndef MLATHE_KERNELS_CUDA_ATTN_H
#define MLATHE_KERNELS_CUDA_ATTN_H

#include "kernels/cuda_quant.h"

struct attn_args {
    float *out;             /* [T][H][dv] */
    const float *q, *q2;    /* [T][H][dq], [T][H][dk − dq] */
    const void *k, *v;      /* rows of ldk numbers, head g from g·dk; v NULL: the first dv of k */
    float *part;            /* [T·H][splits][2 + dv]: maximum, sum, weighted values; or NULL */
    const int32_t *past_at; /* where past is, or NULL */
    int T, past, H, G, dq, dk, dv, ldk, splits, window;
    float scale, softcap;
};

enum { CUDA_MOST_SPLITS = 128 };

static __device__ __forceinline__ int attn_past(const struct attn_args &a)
{
    return a.past_at ? *a.past_at : a.past;
}

/* The keys that some of queries row0 … row0 + count − 1 of a group sees, and of those the ones of
 * the block's split: whole tiles, at least `least` of them, so that short contexts use fewer
 * splits. */
template <int KEYS>
static __device__ __forceinline__ void attn_range(const struct attn_args &a, int past, int row0,
                                                  int count, int least, int *from, int *to)
{
    int per = a.H / a.G, rows = a.T * per;
    int last = row0 + count < rows ? row0 + count - 1 : rows - 1;
    int first = past + row0 / per + 1 - a.window;
    *from = a.window && first > 0 ? first : 0;
    *to = past + last / per + 1;
    int tiles = (*to - *from + KEYS - 1) / KEYS, share = (tiles + a.splits - 1) / a.splits;
    share = share < least && a.splits > 1 ? least : share;
    *from += (int)blockIdx.z * share * KEYS;
    *to = *from + share * KEYS < *to ? *from + share * KEYS : *to;
}

/* Number j of query i of group g. */
static __device__ __forceinline__ float attn_query(const struct attn_args &a, int g, int i, int j)
{
    int per = a.H / a.G;
    size_t at = (size_t)(i / per) * a.H + g * per + i % per;
    return j < a.dq ? a.q[at * a.dq + j] : a.q2[at * (a.dk - a.dq) + j - a.dq];
}

/* Splits for so many blocks of queries: two blocks for each processor. Never by the number of keys,
 * so that a recorded step serves every position; splits without keys end at once. */
int cuda_attn_splits(const struct cuda *c, int blocks);
/* The tensor cores' attention; false: it is not for these widths. Splits are chosen and joined. */
bool cuda_attn_mma(struct cuda *c, struct attn_args *a);
/* Room for the parts of a->splits; false latches a fault. */
bool cuda_attn_parts(struct cuda *c, struct attn_args *a);
void cuda_attn_join(struct cuda *c, const struct attn_args *a);

#endif

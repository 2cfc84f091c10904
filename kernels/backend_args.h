/* backend_args: what the operations of backend.h with many arguments are given, attention and the
 * placing of vectors before it. Axes and conventions are those of backend.h. */
#ifndef MLATHE_KERNELS_BACKEND_ARGS_H
#define MLATHE_KERNELS_BACKEND_ARGS_H

#include "kernels/dtype.h"

/* out[T][H·d]; q[T][H·d] rotated, the query rows sit at positions past … past+T−1.
 * k, v: cache rows 0 … past+T−1 of G·d numbers each. */
struct attn_gqa_args {
    float *out;
    const float *q;
    const void *k, *v;
    enum dtype kv; /* one of the backend's caches; d is whole blocks of it */
    int T, past, H, G, d;
    float scale;
    float softcap; /* 0: none */
    int window;    /* 0: none; counts the token itself */
};

/* Absorbed MLA. out[T][H·r]: attention-weighted latents. q_lat[T][H·r] and q_rope[T][H·R].
 * cache rows 0 … past+T−1: r latent numbers, then R rotated key numbers, padded to whole blocks. */
struct attn_mla_args {
    float *out;
    const float *q_lat, *q_rope;
    const void *cache;
    enum dtype kv;
    int T, past, H, r, R;
    float scale, softcap;
    int window;
};

/* One token's absorbed attention from queries to values: what mla_expand of the rope queries, rope,
 * mla_absorb, attn_mla and mla_expand do, its key placed. attn.out, q_lat_out and q_rope_out are
 * room on the way, the latter two what attn.q_lat and attn.q_rope point to. */
struct weight;
struct mla_step_args {
    struct attn_mla_args attn; /* T is 1 */
    float *out;                /* [H·Vd] */
    float *q_lat_out, *q_rope_out;
    const float *q; /* of head h at q + h·stride: P numbers, then R where q_rope is NULL */
    int stride, P, Vd;
    const struct weight *kv_b, *q_rope; /* q_rope [H·R][P] */
    const float *cos, *sin;             /* host, [R/2] */
};

enum glu_act { GLU_SILU, GLU_GELU_TANH };

/* Vectors on their way from projections to where attention reads them: n numbers of each of heads
 * heads, of which R from at on rotate, pairs (at + j, at + j + R/2). Row t, head h lies at src +
 * t·ld_src + h·stride_src and goes to dst + (row + t)·ld_dst + h·stride_dst, numbers of type. */
struct place_part {
    const float *src;
    void *dst; /* may be src where type is F32 and nothing moves */
    enum dtype type;
    int ld_src, stride_src, ld_dst, stride_dst;
    int heads, n, at, R;
    int cached; /* 1: row is past; else 0 */
};
enum { PLACE_PARTS = 3 };
struct place_args {
    struct place_part part[PLACE_PARTS];
    int parts, T, past;
    const float *cos, *sin; /* host, [T][pairs]; every part's R is 2·pairs or 0 */
    int pairs;
};

#endif

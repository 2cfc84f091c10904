/* forward: one layer over a batch of rows. The piece that inference (all layers, KV caches) and
 * calibration (one layer over all windows, a tap on the way) share. Rows are grouped in segments,
 * each a run of consecutive positions of one sequence with its own cache for this layer. */
#ifndef MLATHE_SESSIONS_FORWARD_H
#define MLATHE_SESSIONS_FORWARD_H

#include "sessions/infer.h"

enum forward_slot {
    W_Q,
    W_K,
    W_V,
    W_O,
    W_GATE,
    W_UP,
    W_DOWN,
    W_KV_A,
    W_KV_B,
    W_Q_A,
    W_Q_ROPE,
    W_ROUTER,
    W_COUNT
};
/* Vectors that not every layer has. */
enum forward_vector {
    V_Q_BIAS,
    V_K_BIAS,
    V_V_BIAS,
    V_O_BIAS,
    V_Q_NORM,
    V_K_NORM,
    V_Q_A_BIAS,
    V_Q_A_NORM,
    V_KV_A_BIAS,
    V_KV_A_NORM,
    V_POST_ATTN,
    V_POST_FFN,
    V_GATE_BIAS,
    V_UP_BIAS,
    V_DOWN_BIAS,
    V_COUNT
};

struct engine_layer {
    float *attn_norm, *ffn_norm; /* [D] backend memory */
    struct weight *w[W_COUNT];   /* NULL where the layer has none */
    bool borrowed[W_COUNT];
    float *v[V_COUNT];           /* backend memory or NULL */
    struct weight **expert;      /* [experts][EXPERT_PARTS] or NULL */
    float *router_bias;          /* host memory or NULL */
};

struct engine {
    const struct model *model;
    struct backend *backend;
    struct engine_layer *layer;
    struct weight *embed, *head;
    size_t owned; /* bytes of the weights, beside the model's own */
    bool embed_borrowed, head_borrowed;
    float *final_norm;
};

/* Another matrix for a slot of an engine that nobody shares yet. */
int engine_replace(struct engine *g, int layer, int slot, const struct tensor *t, struct err *e);

/* One layer's cache of one sequence: GQA a = K rows, b = V rows [ctx][G·d]; MLA a [ctx][r+R]. */
struct layer_cache {
    void *a, *b;
    int first; /* position of row 0: windows forget what lies before */
    int rows;  /* room; where first moves */
    int keep;  /* rows that stay when it moves; 0: it never does */
};
struct segment {
    int row, n; /* rows row … row+n−1 of the batch */
    int past;   /* position of the first one */
    struct layer_cache cache;
    bool long_rope; /* the timeline's context is longer than hp.rope_original */
};

/* Activations for up to a number of rows; grows, never shrinks. */
struct scratch {
    struct backend *backend;
    int rows;
    float *x, *q, *k, *v, *att, *lat, *q_rope, *gate, *up;
    float *z;       /* MLA over normed heads: k, v, then [k; v] */
    float *q_a, *scores, *expert_in, *expert_out; /* NULL in models that need none */
    struct moe_plan *plan;                        /* host: who goes to which expert */
    float *cos, *sin;         /* host, [rows][rope_dim/2] of the last table */
    const double *table_freq; /* the list that cos/sin were made for; NULL: none */
    int table_pairs;
};
int scratch_reserve(struct scratch *s, const struct engine *g, int rows, struct err *e);
void scratch_done(struct scratch *s);
/* Forgets the rope table: call when the batch's positions change. */
void scratch_new_batch(struct scratch *s);

/* Looks at a layer's attention on the way: x [rows][D] the normed input; q, k, v before rotation
 * (GQA only). Pointers are backend memory. */
struct forward_tap {
    void (*attention)(void *user, int layer, const float *x, const float *q, const float *k,
                      const float *v, int rows);
    void *user;
};

/* h[rows][D] → the next layer's input, in place: attention and feed-forward with residuals. */
void forward_layer(const struct engine *g, int layer, float *h, int rows,
                   const struct segment *seg, int n_seg, enum dtype kv, struct scratch *s,
                   const struct forward_tap *tap);
/* Its three parts. att[rows][H·Vd]: heads' outputs from normed input x, into s->att; */
void forward_attention(const struct engine *g, int layer, const float *x, int rows,
                       const struct segment *seg, int n_seg, enum dtype kv, struct scratch *s,
                       const struct forward_tap *tap);
/* h += o · att; */
void forward_output(const struct engine *g, int layer, float *h, const float *att, int rows,
                    struct scratch *s);
/* h += the feed-forward of h. */
void forward_ffn(const struct engine *g, int layer, float *h, int rows, struct scratch *s);

/* h[n][D] = the first layer's input of n ids; and logits[n][V] of n rows of the last one's output h
 * (s->x must hold n rows). */
void forward_embed(const struct engine *g, float *h, const int32_t *ids, int n);
void forward_head(const struct engine *g, float *logits, const float *h, int n, struct scratch *s);

/* The feed-forward of a layer with experts, without the shared one: h += Σ weight · expert(x), x the
 * normed input [rows][D]. (moe.c) */
void forward_experts(const struct engine *g, int layer, float *h, const float *x, int rows,
                     struct scratch *s);
int moe_plan_new(struct moe_plan **out, const struct model_moe *moe, int rows, struct err *e);
void moe_plan_free(struct moe_plan *p);

#endif

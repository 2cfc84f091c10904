/* heal_net: a converted model as a function whose attention tensors can be improved: the forward
 * pass with what the backward pass needs (a tape a layer), the loss in blocks of rows, and
 * gradients of the trained tensors through everything else. In fp32 to train, in fp64 to be
 * checked.
 *
 * It keeps its own dequantised copies of the model's weights. Layers without converted attention
 * are refused. */
#ifndef MLATHE_SESSIONS_HEAL_NET_H
#define MLATHE_SESSIONS_HEAL_NET_H

#include "core/model.h"
#include "kernels/grad.h"
#include "sessions/heal.h"
#include "sessions/heal_frozen.h"

struct engine;

struct heal_tensor {
    int layer;
    enum heal_part part;
    size_t rows, cols;
    bool trained;
    void *w, *g; /* op's numbers [rows][cols]; g NULL unless trained */
};

enum heal_vector {
    N_ATTN,
    N_FFN,
    N_POST_ATTN,
    N_POST_FFN,
    N_Q,
    N_K,
    N_Q_BIAS,
    N_KV_A_BIAS,
    N_O_BIAS,
    N_VECTORS
};
/* Weights that stay as they are. */
enum heal_fixed { F_GATE, F_UP, F_DOWN, F_ROUTER, F_WQ, F_WK, F_WV, F_COUNT };

/* What a layer remembers of a batch of rows. NULL where the layer has none. */
struct heal_tape {
    void *h_in, *h_mid;  /* [rows][D] residual stream before attention, before the feed-forward */
    void *q, *ckr;       /* [rows][H·(P+R)], [rows][r+R], rotated */
    void *att;           /* [rows][H·V] heads' outputs */
    void *y_att, *y_ffn; /* [rows][D] before a norm of theirs */
    void *gate, *up;     /* [rows][F] */
    void *q0, *z;        /* normed heads: queries before their norm, [k; v] after it */
    void *k0;            /* and keys before theirs */
    void *scores, *e_gate, *e_up; /* experts: router's output, [rows·used][F] */
    int *choice;                  /* [rows][used] */
};

struct heal_layer {
    const struct model_layer *y;
    int P, R, V, r;
    bool normed;
    struct heal_frozen frozen[F_COUNT]; /* then f is NULL there */
    void *v[N_VECTORS], *f[F_COUNT], **expert; /* [experts][EXPERT_PARTS] */
    int ffn;                                   /* width of gate; 0: none */
    float *router_bias;
    struct heal_tensor *t[HEAL_PARTS];
    void *cos, *sin; /* [longest][R/2] */
};

struct heal_net {
    const struct model *model;
    const struct grad_ops *op;
    struct pool *pool;
    struct heal_layer *layer;
    struct heal_tensor *tensor; /* [L·HEAL_PARTS] */
    void *final_norm, *head;
    struct heal_frozen frozen_head; /* then head is NULL */
    int rows, longest; /* room */
    bool keep;         /* a tape for every layer; else inputs only, the rest is done again */
    struct heal_tape *tape;
    /* The batch at hand, and work space. */
    int n, n_seq;
    const int *start;
    void *h, *dh; /* [rows][D] */
    void *x, *dx, *kv, *dkv, *dq, *dckr, *dkr, *datt, *wide, *wide2, *wide3;
    void *scratch;
    int block; /* rows of logits at a time */
    void *logits;
    float *teacher;
    double *kl, *nll;
    /* Asked before every layer; false abandons the pass with ERR_CANCELLED. May be NULL. */
    bool (*go_on)(void *user);
    void *go_on_user;
    bool failed; /* work space of experts ran out: said by heal_net_forward or _loss */
};

struct heal_net_options {
    const struct grad_ops *op;
    struct pool *pool;
    unsigned parts;    /* to train: bits of enum heal_part */
    int rows, longest; /* of a batch, of a sequence */
    size_t tape_bytes; /* tapes of all layers are kept when they fit */
    /* The original on the host: what is not trained goes through its weights (op: fp32). NULL: all
     * through copies in op's precision. */
    const struct engine *engine;
};
/* Bytes that a net takes, its tapes included. */
double heal_net_bytes(const struct model *m, const struct heal_net_options *o);
int heal_net_new(struct heal_net **out, const struct model *m, const struct heal_net_options *o,
                 struct err *e);
void heal_net_free(struct heal_net *n);
int heal_net_count(const struct heal_net *n); /* of tensor[] */
void heal_net_zero(struct heal_net *n);       /* gradients */

/* ids of n_seq sequences laid end to end, sequence i = rows start[i] … start[i+1]−1 (borrowed
 * until the loss). Leaves the last layer's output in h. */
int heal_net_forward(struct heal_net *n, const int32_t *ids, const int *start, int n_seq,
                     struct err *e);

struct heal_target {
    /* The teacher's logits of rows first … first+n−1 of the batch. */
    int (*logits)(void *user, int first, int n, float *out, struct err *e);
    void *user;
    const int32_t *next; /* [rows] the token that follows, −1: none; NULL: no next-token loss */
    double mix;          /* share of the next-token loss */
    double weight;       /* of a row: 1 / rows of the step */
    const float *const *outputs; /* [L] the teacher's layer outputs, or NULL */
    double match;                /* weight of matching them */
};
struct heal_loss {
    double kl, nll;   /* sums over rows */
    double objective; /* what the gradients are of */
    long long rows, nll_rows;
};
/* Adds the batch's losses to *out and, when back, its gradients. */
int heal_net_loss(struct heal_net *n, const struct heal_target *t, bool back, struct heal_loss *out,
                  struct err *e);

/* heal_layer.c: rows of the batch through layer l, and back: dh of its output → of its input. */
void heal_layer_forward(struct heal_net *n, int l, bool inner);
void heal_layer_back(struct heal_net *n, int l);
/* heal_experts.c: h += experts(x); dx += their gradient by dh. */
void heal_experts_forward(struct heal_net *n, int l, struct heal_tape *t, bool inner);
void heal_experts_back(struct heal_net *n, int l, struct heal_tape *t);

#endif

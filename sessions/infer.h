/* infer: running a model. An engine is a model's weights made ready on one backend: immutable,
 * shared, and able to share another engine's weights where two models use the same tensors. A
 * timeline (struct infer) is one sequence with its KV cache: mutable, single-threaded. */
#ifndef MLATHE_SESSIONS_INFER_H
#define MLATHE_SESSIONS_INFER_H

#include "core/model.h"

struct engine;
/* share: NULL, or an engine on the same backend whose weights are reused where the tensor data is
 * the same memory; it must outlive this one. m and b must outlive the engine. */
int engine_new(struct engine **out, const struct model *m, struct backend *b,
               const struct engine *share, struct err *e);
void engine_free(struct engine *g);
/* Bytes of weights that the backend holds beside the model's mapping, borrowed ones left out. */
size_t engine_bytes(const struct engine *g);
const struct model *engine_model(const struct engine *g);
struct backend *engine_backend(const struct engine *g);

struct infer;
/* A timeline of at most n_ctx tokens; kv: F16, F32, or what else the backend caches. Layers with a window keep what it needs and a
 * stretch more (window.c); kvmem_bytes_each() is the cache exactly. */
int infer_new(struct infer **out, const struct engine *g, int n_ctx, enum dtype kv, struct err *e);
void infer_free(struct infer *t);
int infer_pos(const struct infer *t);     /* tokens in the cache */
int infer_context(const struct infer *t); /* n_ctx */
size_t infer_kv_bytes(const struct infer *t);      /* allocated */
size_t infer_kv_bytes_used(const struct infer *t); /* of the tokens present */
/* Forgets everything from position pos on (0 ≤ pos ≤ infer_pos). When a window has forgotten what
 * comes before pos, everything: see infer_pos. */
void infer_rewind(struct infer *t, int pos);

enum infer_out { INFER_NONE, INFER_LAST, INFER_ALL };
/* Appends n ids and computes logits into out (host memory): LAST [V] of the last token, ALL
 * [n][V]. Works in blocks; p is asked between them. ERR_LIMIT when the context is full (nothing is
 * appended then); on ERR_CANCELLED the timeline is rewound to where it was. */
int infer_prefill(struct infer *t, const int32_t *ids, int n, enum infer_out want, float *out,
                  const struct progress *p, struct err *e);
/* Looks at what a timeline reads: x [n][D] (backend memory, for the moment), the states behind the
 * final norm of ids[n] at positions first … first+n-1. Not at infer_step_many's and _prefill_many's.
 * rows NULL: nobody looks. */
struct infer_watch {
    void (*rows)(void *user, const float *x, const int32_t *ids, int first, int n);
    void *user;
};
void infer_watch(struct infer *t, struct infer_watch watch);
/* Appends n ≤ INFER_BLOCK rows h [n][D] (backend memory) in place of embeddings; logits [V] of the
 * last one, NULL when nobody wants them. */
#define INFER_BLOCK 512 /* rows a prefill block */
int infer_rows(struct infer *t, const float *h, int n, float *logits, struct err *e);
/* A few tokens in one pass over the weights, each attending by itself, as steps would: the same
 * logits [n][V] bit by bit as n steps give (on a backend whose rows do not depend on their number). */
#define INFER_FEW 8
int infer_few(struct infer *t, const int32_t *ids, int n, float *logits, struct err *e);
/* One token → logits[V]. */
int infer_step(struct infer *t, int32_t id, float *logits, struct err *e);
/* One token for each of n timelines of the same engine in one pass: logits [n][V]. */
int infer_step_many(struct infer *const *t, const int32_t *ids, int n, float *logits,
                    struct err *e);

/* What infer_prefill_many does for one of its timelines: appends ids[n]; the logits of the last
 * keep of them are wanted. */
struct infer_run {
    struct infer *t;
    const int32_t *ids;
    int n, keep;
};
/* The kept rows of all runs, in order, a few at a time: rows first … first+n−1, logits [n][V]. */
struct infer_rows {
    void (*take)(void *user, int first, int n, const float *logits);
    void *user;
};
/* Different timelines of one engine read in common blocks: short texts cost what one long text of
 * their tokens costs. rows: NULL when nothing is kept. All or nothing, as infer_prefill. */
int infer_prefill_many(const struct infer_run *run, int n, const struct infer_rows *rows,
                       const struct progress *p, struct err *e);
/* Timeline to holds the first pos tokens of from (same engine and cache type), nothing else. */
int infer_copy(struct infer *to, const struct infer *from, int pos, struct err *e);

#endif

/* calibrate: text → moments of every layer, in one pass. Hidden states of all calibration tokens
 * travel through the model layer by layer, so that a layer's statistics are complete (and can be
 * shown) as soon as it is done, and only one layer's sums are alive at a time. */
#ifndef MLATHE_SESSIONS_CALIBRATE_H
#define MLATHE_SESSIONS_CALIBRATE_H

#include "core/moments.h"
#include "core/tokenizer.h"
#include "sessions/infer.h"
#include "sessions/stats.h"
#include "sessions/workspace.h"

#define CALIB_WINDOW 256   /* tokens of a window, or the model's context where that is shorter */
#define CALIB_LONG 1024    /* tokens of a long window (phase statistics), likewise */
#define CALIB_SEED 42      /* unless told */
#define CALIB_LONG_COUNT 8 /* long windows over all files */
#define CALIB_HELD 256     /* tokens of a window held back for measuring, likewise */
#define CALIB_HELD_COUNT 4 /* over all files; fewer where the text has no room */

/* The chosen token ids: windows of `window` tokens, then long windows of long_len each. */
struct calib_text {
    int32_t *ids;
    int windows, window, n_long, long_len;
    char source[512], sha256[65];
    long long tokens;
    uint64_t seed;
    int32_t *held; /* [n_held][held_len] of the same text, outside all windows: never fitted to */
    int n_held, held_len;
};
/* o->tokens in windows spread over each file (evenly with CALIB_SEED, otherwise each somewhere in its
 * share of the file), files getting o->shares of them. */
int calib_text_files(struct calib_text *out, const struct tokenizer *t,
                     const struct calib_options *o, int context, struct err *e);
/* Text that the model writes itself, batched sampling at temperature 1, seeded. */
/* t NULL: sequences begin with the model's own BOS, or with ids all over the vocabulary. */
int calib_text_self(struct calib_text *out, const struct engine *g, const struct tokenizer *t,
                    long long tokens, uint64_t seed, const struct progress *p, struct err *e);
/* Held windows of self-written text, which is written only when it is wanted. */
int calib_text_hold_self(struct calib_text *t, const struct engine *g, const struct tokenizer *tok,
                         const struct progress *p, struct err *e);
void calib_text_done(struct calib_text *t);

/* Memory that the pass takes: all hidden states, a group of windows, and one layer's statistics. */
double calibrate_hidden_bytes(const struct model *m, const struct calib_text *t);
double calibrate_bytes(const struct model *m, const struct calib_text *t,
                       const struct stats_form *form, int threads);
/* Moments of every layer into a fresh stats_new, which is finished when all went well. on_layer
 * (may be NULL) looks at each as it is done. */
int calibrate_run(const struct engine *g, const struct calib_text *text, struct stats *into,
                  void (*on_layer)(void *user, int layer, const struct moments *m), void *user,
                  const struct progress *p, struct err *e);
/* TransMLA's second pass: E[z zᵀ] (affine: E[y yᵀ]) of every layer on the partial-rope model (an
 * MLA engine whose latent is that itself): c[n_layer][w·w], fresh memory each. */
int calibrate_second(const struct engine *partial, const struct calib_text *text, double **c,
                     const struct progress *p, struct err *e);

#endif

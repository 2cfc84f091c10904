/* states: the hidden states of a whole calibration text on their way through one model, layer by
 * layer, a group of its sequences at a time. */
#ifndef MLATHE_SESSIONS_STATES_H
#define MLATHE_SESSIONS_STATES_H

#include "sessions/calibrate.h"
#include "sessions/forward.h"

#define STATES_GROUP 8 /* windows that go through a layer together */

struct states {
    const struct engine *g;
    const struct calib_text *text;
    float *h;                 /* backend [rows][D] */
    struct layer_cache cache; /* backend, one group */
    int wide_a, wide_b;       /* numbers a cache row */
    struct scratch scratch;
};
/* n rows from row first: n/T sequences of T tokens. */
struct states_group {
    size_t first;
    int n, T;
};
size_t states_rows(const struct calib_text *t);
int states_group_rows(const struct calib_text *t); /* the largest group's */
/* Groups of windows, which come first; then a group each long window. */
int states_window_groups(const struct calib_text *t);
/* The i-th group of the text; false when there is none. */
bool states_group(const struct calib_text *t, int i, struct states_group *out);

/* The text's embeddings. g and text must outlive s; states_done also after a failure. */
int states_init(struct states *s, const struct engine *g, const struct calib_text *text,
                struct err *e);
void states_done(struct states *s);
/* The group's states through the layer: heads' outputs into s->scratch.att, its states left alone; */
void states_attention(struct states *s, int layer, const struct states_group *group,
                      const struct forward_tap *tap);
/* the output projection of s->scratch.att added to them; */
void states_output(struct states *s, int layer, const struct states_group *group);
/* the feed-forward. */
void states_ffn(struct states *s, int layer, const struct states_group *group);
/* All three. */
void states_layer(struct states *s, int layer, const struct states_group *group,
                  const struct forward_tap *tap);

#endif

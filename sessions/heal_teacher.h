/* heal_teacher: the original model beside a net in training: several sequences at once, layer by
 * layer on one layer's cache, and logits in blocks of rows. */
#ifndef MLATHE_SESSIONS_HEAL_TEACHER_H
#define MLATHE_SESSIONS_HEAL_TEACHER_H

#include "sessions/forward.h"

struct heal_teacher {
    const struct engine *g;
    int rows, block;          /* room; rows of logits at a time */
    float *h, *logits;        /* backend [rows][D], [block][V] */
    struct layer_cache cache; /* backend, of one layer */
    struct scratch scratch;
    float **outputs; /* host [L][rows][D], NULL unless wanted */
};
/* block: the most rows that heal_teacher_logits is asked for. */
int heal_teacher_init(struct heal_teacher *t, const struct engine *g, int rows, int block,
                      bool outputs, struct err *e);
void heal_teacher_done(struct heal_teacher *t);
/* The sequences of a batch, laid out as heal_net_forward takes them. */
int heal_teacher_run(struct heal_teacher *t, const int32_t *ids, const int *start, int n_seq,
                     struct err *e);
/* struct heal_target's logits; user is the teacher. */
int heal_teacher_logits(void *user, int first, int n, float *out, struct err *e);
/* The batch's last states [rows][D], to keep and to put back. */
void heal_teacher_get(struct heal_teacher *t, float *states, int rows);
void heal_teacher_put(struct heal_teacher *t, const float *states, int rows);

#endif

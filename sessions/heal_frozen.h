/* heal_frozen: a matrix that healing leaves as it is. Products with it are the original engine's
 * own, in int8; the way back has a transposed copy in Q8_0 blocks. Against copies in fp32 that is a
 * quarter of the memory and some three times the speed; the error is that of int8 activations, far
 * below the noise of a batch. */
#ifndef MLATHE_SESSIONS_HEAL_FROZEN_H
#define MLATHE_SESSIONS_HEAL_FROZEN_H

#include "core/tensor.h"
#include "kernels/backend.h"

struct heal_frozen {
    struct backend *b;          /* NULL: not in use */
    const struct weight *there; /* [out][in], the engine's or own */
    struct weight *own, *back;  /* back: [in][out] */
    void *own_data, *back_data;
};
/* Whether t [out][in] divides into blocks; NULL or absent does not. */
bool heal_frozen_can(const struct tensor *t);
/* t: what w was made from; w NULL: t is not the engine's, its numbers in Q8_0 blocks are. */
int heal_frozen_init(struct heal_frozen *f, struct backend *b, const struct weight *w,
                     const struct tensor *t, struct err *e);
void heal_frozen_done(struct heal_frozen *f);
/* y[rows][out] (+)= x[rows][in] · wᵀ; dx[rows][in] (+)= dy[rows][out] · w. Host memory. */
void heal_frozen_apply(const struct heal_frozen *f, float *y, const float *x, int rows, bool add);
void heal_frozen_back(const struct heal_frozen *f, float *dx, const float *dy, int rows, bool add);

#endif

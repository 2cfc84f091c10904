/* router: which experts a token takes and how much each of them counts. */
#ifndef MLATHE_CORE_ROUTER_H
#define MLATHE_CORE_ROUTER_H

#include "core/model.h"

/* From one token's scores[moe->n] (the router's output, overwritten) the moe->used experts that it
 * takes, best first, and their weights. bias (may be NULL): added to the scores for the choice
 * only. Equal scores: the lower number first. */
void router_choose(const struct model_moe *moe, float *scores, const float *bias, int *expert,
                   float *weight);

#endif

/* mtp: DeepSeek-V3's multi-token prediction layer. From the state behind token t and the embedding
 * of token t+1 it guesses token t+2: one projection of both, normed, one layer, a head. The
 * embedding and the head are the model's own. */
#ifndef MLATHE_CORE_MTP_H
#define MLATHE_CORE_MTP_H

#include "core/model.h"

struct model_mtp {
    struct model model;         /* of the one layer; final_norm is its own */
    struct tensor enorm, hnorm; /* [D]: of the embedding; of the state behind the final norm */
    struct tensor eh_proj;      /* [D][2·D], the embedding's columns first */
};

#endif

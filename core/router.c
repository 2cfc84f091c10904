/* Routing of tokens to experts as Mixtral and DeepSeek define it. Trusts that the numbers of
 * experts and groups fit together (family_check_hparams). */
#include "core/router.h"

#include <math.h>

static void to_scores(const struct model_moe *moe, float *x)
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < moe->n; i++)
        top = fmax(top, (double)x[i]);
    for (int i = 0; i < moe->n; i++) {
        double v = moe->sigmoid ? 1 / (1 + exp(-(double)x[i])) : exp((double)x[i] - top);
        sum += v;
        x[i] = (float)v;
    }
    for (int i = 0; i < moe->n && !moe->sigmoid; i++)
        x[i] = (float)((double)x[i] / sum);
}

static float choice_score(const float *scores, const float *bias, int i)
{
    return bias ? scores[i] + bias[i] : scores[i];
}

/* A group is as good as its best two experts where scores are corrected, else as its best one. */
static float group_score(const struct model_moe *moe, const float *scores, const float *bias,
                         int group)
{
    int size = moe->n / moe->groups;
    float best = -INFINITY, second = -INFINITY;
    for (int i = group * size; i < (group + 1) * size; i++) {
        float v = choice_score(scores, bias, i);
        if (v > best) {
            second = best;
            best = v;
        } else if (v > second) {
            second = v;
        }
    }
    return moe->sigmoid && size > 1 ? best + second : best;
}

/* Groups that may be taken from. */
static void allow_groups(const struct model_moe *moe, const float *scores, const float *bias,
                         bool *allowed)
{
    float score[MODEL_MAX_EXPERTS];
    for (int g = 0; g < moe->groups; g++) {
        score[g] = group_score(moe, scores, bias, g);
        allowed[g] = false;
    }
    for (int k = 0; k < moe->groups_used; k++) {
        int best = -1;
        for (int g = 0; g < moe->groups; g++)
            if (!allowed[g] && (best < 0 || score[g] > score[best]))
                best = g;
        allowed[best] = true;
    }
}

void router_choose(const struct model_moe *moe, float *scores, const float *bias, int *expert,
                   float *weight)
{
    bool allowed[MODEL_MAX_EXPERTS], taken[MODEL_MAX_EXPERTS] = {false};
    int size = moe->groups ? moe->n / moe->groups : moe->n;
    double sum = 0;
    to_scores(moe, scores);
    allowed[0] = true;
    if (moe->groups)
        allow_groups(moe, scores, bias, allowed);
    for (int k = 0; k < moe->used; k++) {
        int best = -1;
        for (int i = 0; i < moe->n; i++)
            if (allowed[i / size] && !taken[i] &&
                (best < 0 || choice_score(scores, bias, i) > choice_score(scores, bias, best)))
                best = i;
        taken[best] = true;
        expert[k] = best;
        weight[k] = scores[best];
        sum += (double)scores[best];
    }
    for (int k = 0; k < moe->used; k++)
        weight[k] = (float)((double)weight[k] / (moe->renormalise ? sum + 1e-20 : 1) * moe->scale);
}

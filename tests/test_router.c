/* Which experts a token takes: by hand, for both kinds of routers, and with broken scores. */
#include "core/router.h"
#include "tests/support.h"

static void test_softmax(void)
{
    struct model_moe moe = {.n = 4, .used = 2, .renormalise = true, .scale = 1};
    float scores[] = {0, 2, 1, -1}, weight[2];
    int expert[2];
    router_choose(&moe, scores, NULL, expert, weight);
    CHECK(expert[0] == 1 && expert[1] == 2, "%d %d", expert[0], expert[1]);
    double want = 1 / (1 + exp(-1.0)); /* e² / (e² + e) */
    CHECK(fabs(weight[0] - want) < 1e-6 && fabs(weight[1] - (1 - want)) < 1e-6, "%g",
          (double)weight[0]);
    float same[] = {1, 1, 1, 1};
    moe.renormalise = false;
    moe.scale = 2;
    router_choose(&moe, same, NULL, expert, weight);
    CHECK(expert[0] == 0 && expert[1] == 1 && fabs((double)weight[0] - 0.5) < 1e-6, "%g",
          (double)weight[0]);
}

/* The bias decides who is taken and does not change the weight. */
static void test_bias(void)
{
    struct model_moe moe = {.n = 3, .used = 1, .sigmoid = true, .scale = 1};
    float scores[] = {1, 0, -1}, bias[] = {0, 0, 1}, weight[1];
    int expert[1];
    router_choose(&moe, scores, bias, expert, weight);
    CHECK(expert[0] == 2, "%d", expert[0]);
    CHECK(fabs(weight[0] - 1 / (1 + exp(1.0))) < 1e-6, "%g", (double)weight[0]);
}

/* The best expert sits in a group whose two best are worse together than another's: out of reach,
 * even where all that is left scores below nothing. */
static void test_groups(void)
{
    struct model_moe moe = {
        .n = 6, .used = 2, .groups = 3, .groups_used = 1, .sigmoid = true, .scale = 1};
    float scores[] = {3, -9, 1, 1, -9, -9}, weight[2];
    float low[] = {0, 0, 0, 0, 0, 0}, bias[] = {-2, -2, -1, -1, -2, -2};
    int expert[2];
    router_choose(&moe, scores, NULL, expert, weight);
    CHECK(expert[0] == 2 && expert[1] == 3, "%d %d", expert[0], expert[1]);
    router_choose(&moe, low, bias, expert, weight);
    CHECK(expert[0] == 2 && expert[1] == 3, "%d %d", expert[0], expert[1]);
    moe.sigmoid = false; /* here a group is as good as its best expert */
    float again[] = {3, -9, 1, 1, -9, -9};
    router_choose(&moe, again, NULL, expert, weight);
    CHECK(expert[0] == 0 && expert[1] == 1, "%d %d", expert[0], expert[1]);
}

/* Broken numbers give valid, different experts; the logits say the rest. */
static void test_broken(void)
{
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int kind = 0; kind < 6; kind++) {
        struct model_moe moe = {.n = 4, .used = 2, .sigmoid = kind > 2, .scale = 1};
        float scores[4], weight[2];
        int expert[2] = {-1, -1};
        moe.groups = moe.groups_used = kind % 2 ? 2 : 0;
        for (int i = 0; i < 4; i++)
            scores[i] = bad[kind % 3];
        router_choose(&moe, scores, NULL, expert, weight);
        CHECK(expert[0] >= 0 && expert[0] < 4 && expert[1] >= 0 && expert[1] < 4, "%d", kind);
        CHECK(expert[0] != expert[1], "%d", kind);
    }
}

int main(void)
{
    test_softmax();
    test_bias();
    test_groups();
    test_broken();
    return test_end("router");
}

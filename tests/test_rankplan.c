/* Plans: allocation against brute force, budgets, JSON round trips, refusals. */
#include "core/file.h"
#include "core/rankplan.h"

#include "tests/support.h"

static const struct plan_model smol = {"SmolLM2", "llama", "abc", 30, 9, 3, 64};

/* Least dropped energy over every choice of ranks, by trying them all. */
static double brute(const struct spectrum *s, int n, long long budget, int min, int max, int step)
{
    if (n == 0)
        return 0;
    double best = INFINITY;
    for (int r = (min + step - 1) / step * step; r <= max && r <= budget; r += step) {
        double rest = brute(s + 1, n - 1, budget - r, min, max, step);
        best = fmin(best, spectrum_dropped(s, r) + rest);
    }
    return best;
}

static void fill(struct spectrum *s, uint64_t *state)
{
    double v = exp(3 * test_normal(state));
    for (int i = 0; i < s->n; i++)
        s->joint[i] = v *= test_uniform(state);
    if (test_uniform(state) < 0.3) /* rank-deficient layers happen */
        for (int i = s->n / 2; i < s->n; i++)
            s->joint[i] = 0;
}

static void test_allocate(void)
{
    struct plan_model m = {"t", "llama", "", 4, 2, 1, 4};
    struct spectrum s[4];
    struct rankplan p;
    struct err e;
    uint64_t state = 3;
    CHECK_OK(rankplan_init(&p, &m, &e), e);
    CHECK_OK(rankplan_uniform(&p, 1, 2, &e), e);
    for (int l = 0; l < 4; l++)
        CHECK_OK(spectrum_init(&s[l], 8, 4, 4, &e), e);
    for (int round = 0; round < 300; round++) {
        for (int l = 0; l < 4; l++)
            fill(&s[l], &state);
        int step = 1 + round % 3, min = 1 + round % 2, max = 5 + round % 4;
        int low = (min + step - 1) / step * step;
        long long ranks = 4 * low + (long long)(test_uniform(&state) * 20);
        double price, dropped = 0;
        long long spent = 0;
        CHECK_OK(rankplan_allocate(&p, s, ranks + 8, min, max, step, &price, &e), e);
        for (int l = 0; l < 4; l++) {
            int r = p.layer[l].kv_lora_rank;
            CHECK(r >= min && r <= max && r % step == 0, "rank %d", r);
            CHECK(p.layer[l].qk_rope_head_dim == 2);
            spent += r;
            dropped += spectrum_dropped(&s[l], r);
        }
        CHECK(spent <= ranks && price >= 0);
        double best = brute(s, 4, ranks, min, max, step);
        /* both are sums of the same few doubles in another order */
        CHECK(dropped <= best + 1e-12 * (1 + best), "round %d: %g, best %g", round, dropped, best);
    }
    CHECK(rankplan_allocate(&p, s, 4 + 8 - 1, 1, 8, 1, NULL, &e) == ERR_ARG);
    CHECK(rankplan_allocate(&p, s, 100, 5, 7, 4, NULL, &e) == ERR_ARG, "no multiple of 4 in 5..7");
    for (int l = 0; l < 4; l++)
        spectrum_done(&s[l]);
    rankplan_done(&p);
}

static long long budget(const char *text)
{
    struct err e;
    long long n = -1;
    return rankplan_budget(&smol, text, 2, &n, &e) ? -1 : n;
}

static void test_budget(void)
{
    CHECK(rankplan_numbers_gqa(&smol) == 11520);
    CHECK(budget("25%") == 2880);
    CHECK(budget("0.25") == 2880);
    CHECK(budget("5760") == 2880 && budget("5760B") == 2880 && budget("5.625KiB") == 2880);
    CHECK(budget("100%") == 11520);
    /* 24 GiB for 16 sequences of 8192 tokens: 196608 B a token, more than the whole cache */
    CHECK(budget("24GiB,8192x16") == 11520, "%lld", budget("24GiB,8192x16"));
    CHECK(budget("101%") == -1 && budget("300%") == -1);
    CHECK(budget("45MiB,8192") == 2880);
    CHECK(budget("45MiB,4096x2") == 2880 && budget("45m,4096x2") == 2880);
    static const char *const bad[] = {"",        "x", "-5%",   "25%%",     "nan",   "inf",
                                      "1e999",   "0", "0%",    "25 %",     "1GiB,", "1GiB,x2",
                                      "1GiB,8x", "%", "5760q", "1GiB,0x4", "1,2,3"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(budget(bad[i]) == -1, "\"%s\" gave %lld", bad[i], budget(bad[i]));
}

static void test_shapes(void)
{
    struct rankplan p;
    struct err e;
    CHECK_OK(rankplan_init(&p, &smol, &e), e);
    CHECK(rankplan_auto_rope(&smol, LAYOUT_OWN, 0.5) == 64);
    CHECK(rankplan_auto_rope(&smol, LAYOUT_OWN, 0.25) == 32);
    CHECK(rankplan_auto_rope(&smol, LAYOUT_OWN, 0.125) == 16);
    CHECK(rankplan_auto_rope(&smol, LAYOUT_OWN, 0.001) == 2);
    for (double kept = 0.02; kept < 1; kept += 0.01) {
        int rope = rankplan_auto_rope(&smol, LAYOUT_STOCK, kept);
        CHECK(rope % 2 == 0 && rope <= 64 && rope <= fmax(2, kept * 384 / 3), "%g: %d", kept, rope);
    }
    CHECK(rankplan_freqfold(&p, 64) == 2 && rankplan_freqfold(&p, 32) == 4);
    CHECK(rankplan_freqfold(&p, 16) == 8);
    CHECK_OK(rankplan_uniform(&p, 64, 32, &e), e);
    CHECK(rankplan_numbers(&p) == 2880 && rankplan_kept(&p) == 0.25);
    CHECK_OK(rankplan_spread(&p, 5760, &e), e);
    CHECK(p.layer[29].kv_lora_rank == 160);
    CHECK(rankplan_spread(&p, 32 * 30 + 29, &e) == ERR_ARG);
    CHECK(rankplan_uniform(&p, 0, 32, &e) == ERR_ARG &&
          rankplan_uniform(&p, 385, 32, &e) == ERR_ARG);
    CHECK(rankplan_uniform(&p, 64, 31, &e) == ERR_ARG &&
          rankplan_uniform(&p, 64, 0, &e) == ERR_ARG);
    p.layout = LAYOUT_STOCK;
    CHECK(rankplan_uniform(&p, 64, 66, &e) == ERR_ARG);
    rankplan_done(&p);
    struct plan_model none = {.n_layer = 0, .n_kv_head = 1, .head_dim = 64};
    CHECK(rankplan_init(&p, &none, &e) == ERR_ARG);
    none = (struct plan_model){.n_layer = 1, .n_kv_head = 65536, .head_dim = 65536};
    CHECK(rankplan_init(&p, &none, &e) == ERR_ARG);
}

static void test_json(void)
{
    char path[512];
    struct rankplan p, q, r;
    struct err e;
    cJSON *json;
    snprintf(path, sizeof path, "%s/plan.json", test_tmpdir());
    CHECK_OK(rankplan_init(&p, &smol, &e), e);
    CHECK_OK(rankplan_uniform(&p, 64, 32, &e), e);
    p.layer[3].kv_lora_rank = 80;
    p.method = METHOD_TRANSMLA;
    p.layout = LAYOUT_STOCK;
    p.freqfold = 4;
    p.budget_kept = 0.25;
    p.calibration.tokens = 32768;
    p.calibration.seed = 42;
    snprintf(p.calibration.source, sizeof p.calibration.source, "a \"b\".txt");
    CHECK_OK(rankplan_save(&p, path, &e), e);
    CHECK_OK(rankplan_load(&q, &smol, path, &e), e);
    CHECK(rankplan_equal(&p, &q) && q.freqfold == 4 && q.budget_kept == 0.25);
    CHECK(!strcmp(q.calibration.source, "a \"b\".txt") && q.calibration.seed == 42);
    CHECK(isnan(q.predicted_kl));
    /* Keys of others survive reading, copying, editing and writing, at every level. */
    CHECK_OK(rankplan_to_json(&q, &json, &e), e);
    cJSON_AddStringToObject(json, "theirs", "x");
    cJSON_AddNumberToObject(cJSON_GetObjectItem(json, "method"), "weight", 3);
    cJSON_AddTrueToObject(cJSON_GetArrayItem(cJSON_GetObjectItem(json, "layers"), 7), "pinned");
    rankplan_done(&q);
    CHECK_OK(rankplan_from_json(&q, &smol, json, "test", &e), e);
    cJSON_Delete(json);
    q.layer[7].kv_lora_rank = 48;
    CHECK_OK(rankplan_copy(&r, &q, &e), e);
    CHECK_OK(rankplan_to_json(&r, &json, &e), e);
    const cJSON *seven = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "layers"), 7);
    CHECK(!strcmp(json_str_or(json, "theirs", ""), "x"));
    CHECK(json_get(json_get(json, "method"), "weight"));
    CHECK(cJSON_IsTrue(json_get(seven, "pinned")));
    CHECK(cJSON_GetObjectItem(seven, "kv_lora_rank")->valueint == 48);
    cJSON_Delete(json);
    rankplan_done(&p);
    rankplan_done(&q);
    rankplan_done(&r);
    CHECK(rankplan_save(&p, "/nonexistent/plan.json", &e) < 0);
}

static void refuse(const char *text, const struct plan_model *m, int status, const char *word)
{
    struct rankplan p;
    struct err e = {0};
    cJSON *json;
    CHECK_OK(json_parse(&json, text, strlen(text), "test", &e), e);
    int rc = rankplan_from_json(&p, m, json, "plan.json", &e);
    CHECK(rc == status && strstr(e.text, word) && strstr(e.text, "plan.json"), "%d %s", rc, e.text);
    cJSON_Delete(json);
}

static void test_refusals(void)
{
    const struct plan_model m = {"tiny", "llama", "f00", 1, 2, 1, 4};
#define LAYERS ",\"layers\":[{\"kv_lora_rank\":2,\"qk_rope_head_dim\":2}]}"
#define START "{\"mlathe_plan\":1,\"model\":"
    refuse(START "{\"family\":\"gemma\"}" LAYERS, &m, ERR_MISMATCH, "model.family");
    refuse(START "{\"kv_heads\":3}" LAYERS, &m, ERR_MISMATCH, "model.kv_heads");
    refuse(START "{\"head_dim\":8}" LAYERS, &m, ERR_MISMATCH, "model.head_dim");
    refuse(START "{\"q_heads\":8}" LAYERS, &m, ERR_MISMATCH, "model.q_heads");
    refuse(START "{\"fingerprint\":\"f01\"}" LAYERS, &m, ERR_MISMATCH, "model.fingerprint");
    refuse(START "{\"name\":\"other\"}" LAYERS, &m, ERR_MISMATCH, "model.name");
    refuse(START "{},\"layers\":[]}", &m, ERR_MISMATCH, "layers");
    refuse(START "{}}", &m, ERR_FORMAT, "layers");
    refuse("{\"mlathe_plan\":1" LAYERS, &m, ERR_FORMAT, "model");
    refuse("{\"mlathe_plan\":2,\"model\":{}" LAYERS, &m, ERR_UNSUPPORTED, "version 2");
    refuse("{}", &m, ERR_FORMAT, "mlathe_plan");
    refuse("[]", &m, ERR_FORMAT, "object");
    refuse(START "{},\"layers\":[{\"kv_lora_rank\":9,\"qk_rope_head_dim\":2}]}", &m, ERR_FORMAT,
           "layer 0");
    refuse(START "{},\"layers\":[{\"kv_lora_rank\":2,\"qk_rope_head_dim\":3}]}", &m, ERR_FORMAT,
           "even");
    refuse(START "{},\"layers\":[3]}", &m, ERR_FORMAT, "kv_lora_rank");
    refuse(START "{},\"method\":{\"name\":\"magic\"}" LAYERS, &m, ERR_UNSUPPORTED, "magic");
    refuse(START "{},\"calibration\":{\"tokens\":-1}" LAYERS, &m, ERR_FORMAT, "tokens");
    refuse(START "{},\"method\":\"mlathe\"" LAYERS, &m, ERR_FORMAT, "object");
    refuse(START "{},\"method\":{\"without\":5}" LAYERS, &m, ERR_FORMAT, "without");
    refuse(START "{},\"method\":{\"without\":[[]]}" LAYERS, &m, ERR_UNSUPPORTED, "without");
    refuse(START "{},\"method\":{\"layout\":\"odd\"}" LAYERS, &m, ERR_UNSUPPORTED, "shared");
}

/* -o beside a model must not cost its weights. */
static void test_targets(void)
{
    const struct plan_model m = {"tiny", "llama", "f00", 1, 2, 1, 4};
    struct rankplan p;
    struct err e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/target", test_tmpdir());
    CHECK_OK(rankplan_init(&p, &m, &e), e);
    CHECK_OK(rankplan_uniform(&p, 2, 2, &e), e);
    CHECK_OK(file_save(path, "weights", 7, &e), e);
    CHECK(rankplan_save(&p, path, &e) == ERR_ARG && strstr(e.text, "no plan"), "%s", e.text);
    CHECK_OK(file_save(path, "", 0, &e), e);
    CHECK_OK(rankplan_save(&p, path, &e), e);
    CHECK_OK(rankplan_save(&p, path, &e), e); /* over a plan */
    rankplan_done(&p);
}

int main(void)
{
    test_allocate();
    test_budget();
    test_shapes();
    test_json();
    test_refusals();
    test_targets();
    return test_end("rankplan");
}

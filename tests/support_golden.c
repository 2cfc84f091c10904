/* Reads golden.json files. */
#include "tests/support_golden.h"

#include "core/json.h"
#include "tests/support.h"

static float *numbers(const cJSON *list, int *n)
{
    float *v = malloc((size_t)(cJSON_GetArraySize(list) + 1) * sizeof *v);
    *n = 0;
    for (const cJSON *i = list ? list->child : NULL; i; i = i->next)
        v[(*n)++] = (float)i->valuedouble;
    return v;
}

static int32_t *whole(const cJSON *list, int *n)
{
    int32_t *v = malloc((size_t)(cJSON_GetArraySize(list) + 1) * sizeof *v);
    *n = 0;
    for (const cJSON *i = list ? list->child : NULL; i; i = i->next)
        v[(*n)++] = (int32_t)i->valuedouble;
    return v;
}

void golden_load(struct golden *g, const char *path)
{
    struct err e;
    cJSON *root;
    if (json_read_file(&root, path, JSON_MAX_BYTES, &e)) {
        printf("FAIL %s\n", e.text);
        exit(1);
    }
    g->tokens = whole(json_get(root, "tokens"), &g->n);
    g->greedy = whole(json_get(root, "greedy"), &g->n_greedy);
    g->last = numbers(json_get(root, "logits_last"), &g->vocab);
    g->tolerance = json_get(root, "tolerance")->valuedouble;
    g->first8 = malloc((size_t)g->n * 8 * sizeof *g->first8);
    int row = 0, n;
    for (const cJSON *i = json_get(root, "logits_first8")->child; i; i = i->next, row++) {
        float *v = numbers(i, &n);
        memcpy(g->first8 + row * 8, v, 8 * sizeof *v);
        free(v);
    }
    cJSON_Delete(root);
}

void golden_free(struct golden *g)
{
    free(g->tokens);
    free(g->greedy);
    free(g->last);
    free(g->first8);
}

double golden_error(const struct golden *g, const float *all)
{
    double sum = 0, worst = 0;
    for (int i = 0; i < g->vocab; i++) {
        sum += (double)g->last[i] * g->last[i];
        worst = fmax(worst, fabs((double)all[(size_t)(g->n - 1) * g->vocab + i] - g->last[i]));
    }
    for (int t = 0; t < g->n; t++)
        for (int i = 0; i < 8; i++)
            worst = fmax(worst, fabs((double)all[(size_t)t * g->vocab + i] - g->first8[t * 8 + i]));
    return worst / sqrt(sum / g->vocab);
}

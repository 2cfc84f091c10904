/* core/json: what is written reads back as it was: every double, bit by bit. */
#include "core/json.h"
#include "tests/support.h"

static void check_number(double v, bool pretty)
{
    struct err e = {0};
    cJSON *o = cJSON_CreateObject(), *back = NULL;
    cJSON *list = cJSON_AddArrayToObject(o, "list");
    cJSON_AddItemToArray(list, cJSON_CreateNumber(v));
    cJSON_AddNumberToObject(o, "seven", 7);
    char *text = json_text(o, pretty);
    CHECK(text && strstr(text, pretty ? "\t7\n" : ":7}"), "%s", text ? text : "no text");
    CHECK(cJSON_IsNumber(list->child) && list->child->valuedouble == v, "writing changed the tree");
    CHECK_OK(text ? json_parse(&back, text, strlen(text), "test", &e) : ERR_NOMEM, e);
    const cJSON *read = json_get(back, "list");
    CHECK(read && read->child && read->child->valuedouble == v, "%.17g became %s", v, text);
    cJSON_Delete(back);
    cJSON_Delete(o);
    free(text);
}

int main(void)
{
    const double v[] = {0,       1,      -1,     0.1,        0.5,
                        1.0 / 3, 1e-300, 5e-324, 1e15 + 0.5, 9007199254740993.0};
    uint64_t seed = 3;
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        check_number(v[i], i % 2);
    for (int i = 0; i < 5000; i++)
        check_number(test_normal(&seed) * pow(10, 40 * test_uniform(&seed) - 20), i % 2);
    return test_end("json");
}

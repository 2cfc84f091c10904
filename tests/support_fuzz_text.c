/* Fuzz targets of what is text: JSON, tokenizers, templates, plans, journals, settings, and the
 * screen that shows it all. */
#include <fcntl.h>

#include "core/choice.h"
#include "core/file.h"
#include "core/jinja.h"
#include "core/rankplan.h"
#include "core/tokenizer.h"
#include "core/utf8.h"
#include "sessions/eval_record.h"
#include "sessions/journal.h"
#include "tests/support.h"
#include "tests/support_fuzz.h"
#include "ui/screen.h"
#include "ui/settings.h"

const struct fuzz_target fuzz_targets[] = {
    {"gguf", fuzz_gguf},           {"gguf_model", fuzz_gguf_model},
    {"config", fuzz_config},       {"safetensors", fuzz_safetensors},
    {"index", fuzz_index},         {"json", fuzz_json},
    {"template", fuzz_template},   {"tokenizer", fuzz_tokenizer},
    {"plan", fuzz_plan},           {"conversion", fuzz_conversion},
    {"journal", fuzz_journal},     {"results", fuzz_results},
    {"questions", fuzz_questions}, {"settings", fuzz_settings},
    {"screen", fuzz_screen},       {NULL, NULL},
};

static void broken(const char *what)
{
    printf("%s\n", what);
    fflush(stdout);
    abort();
}

int fuzz_json(const uint8_t *data, size_t size)
{
    struct err e = {0};
    cJSON *root = NULL, *again = NULL;
    int rc = json_parse(&root, (const char *)data, size, "a.json", &e);
    fuzz_judge(rc, &e, "a.json");
    if (rc)
        return rc;
    char *text = json_text(root, size % 2), *second;
    if (!text || json_parse(&again, text, strlen(text), "again", &e))
        broken("what was written cannot be read");
    second = json_text(again, size % 2);
    if (!second || strcmp(text, second) != 0)
        broken("written, read and written again is not the same");
    free(text);
    free(second);
    cJSON_Delete(root);
    cJSON_Delete(again);
    return OK;
}

/* Whatever opens must also encode, and give its ids back as text. */
int fuzz_tokenizer(const uint8_t *data, size_t size)
{
    static const char text[] =
        "Ab ab  1 12 \xc3\xa9\xe4\xb8\xad\xf0\x9f\xa6\x99 <s><|x|>\n\xff end";
    struct err e = {0};
    struct tokenizer *t;
    struct ids ids = {0};
    const char *path = fuzz_file(data, size);
    int rc = tokenizer_open(&t, path, &e);
    fuzz_judge(rc, &e, path);
    if (rc)
        return rc;
    char *back;
    size_t n;
    if (!tokenizer_encode(t, text, sizeof text - 1, TOKENIZE_SPECIAL | TOKENIZE_BOS, &ids, &e)) {
        for (size_t i = 0; i < ids.n; i++)
            if (ids.v[i] < 0 || ids.v[i] >= tokenizer_size(t))
                broken("an id beyond the vocabulary");
        if (!tokenizer_decode(t, ids.v, ids.n, size % 2, &back, &n, &e)) {
            if (!utf8_valid(back, n))
                broken("decoded text is not UTF-8");
            free(back);
        }
    }
    ids_free(&ids);
    tokenizer_free(t);
    return OK;
}

int fuzz_template(const uint8_t *data, size_t size)
{
    static const char values[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"be kind\"},{\"role\":\"user\","
        "\"content\":\"hi {{ x }}\"},{\"role\":\"assistant\",\"content\":null}],"
        "\"tools\":[{\"name\":\"f\",\"n\":3.5}],\"bos_token\":\"<s>\",\"eos_token\":\"</s>\","
        "\"add_generation_prompt\":true}";
    struct err e = {0};
    struct jinja *j;
    cJSON *root = NULL, *item;
    struct jinja_var var[8];
    struct jinja_text text;
    size_t n = 0;
    int rc = jinja_new(&j, (const char *)data, size, &e);
    if (rc && !e.text[0])
        broken("a template refused without a word");
    if (rc)
        return rc;
    if (json_parse(&root, values, sizeof values - 1, "values", &e))
        broken("values");
    cJSON_ArrayForEach(item, root)
    {
        var[n] = (struct jinja_var){item->string, item, n == 0};
        n++;
    }
    rc = jinja_render(j, var, n, &text, &e);
    if (rc == OK) {
        if (!utf8_valid(text.s, text.n) || text.s[text.n])
            broken("a rendering is not UTF-8");
        for (size_t i = 0; i < text.n_parts; i++)
            if (text.parts[i].begin > text.parts[i].end || text.parts[i].end > text.n ||
                (i && text.parts[i].begin < text.parts[i - 1].end))
                broken("parts of a rendering out of order");
        jinja_text_free(&text);
    }
    cJSON_Delete(root);
    jinja_free(j);
    return rc;
}

static const struct plan_model tiny = {"tiny", "llama", "00", 2, 4, 2, 16};

/* What a plan promises: every layer within bounds, and written it is read as the same. */
int fuzz_plan(const uint8_t *data, size_t size)
{
    struct err e = {0};
    struct rankplan p, again;
    cJSON *root = NULL, *out = NULL;
    int rc = json_parse(&root, (const char *)data, size, "a.plan", &e);
    if (rc == OK)
        rc = rankplan_from_json(&p, &tiny, root, "a.plan", &e);
    fuzz_judge(rc, &e, "a.plan");
    cJSON_Delete(root);
    if (rc)
        return rc;
    for (int l = 0; l < p.model.n_layer; l++)
        if (p.layer[l].kv_lora_rank < 1 || p.layer[l].kv_lora_rank > rankplan_max_rank(&tiny) ||
            p.layer[l].qk_rope_head_dim < 0 || p.layer[l].qk_rope_head_dim % 2)
            broken("a plan beyond its bounds");
    if (rankplan_to_json(&p, &out, &e) || rankplan_from_json(&again, &tiny, out, "again", &e) ||
        !rankplan_equal(&p, &again))
        broken("a plan is not the same after writing and reading");
    cJSON_Delete(out);
    rankplan_done(&again);
    rankplan_done(&p);
    return OK;
}

/* Bytes are a workspace and a transcript: both written and read again give the same text. */
int fuzz_journal(const uint8_t *data, size_t size)
{
    struct err e = {0};
    struct journal j, again;
    if (journal_init(&j, &e) || journal_init(&again, &e))
        broken("journal");
    int rc = journal_parse(&j, (const char *)data, size, "workspace.json", &e);
    fuzz_judge(rc, &e, "workspace.json");
    if (rc == OK) {
        char *text = journal_text(&j), *second;
        if (!text || journal_parse(&again, text, strlen(text), "again", &e))
            broken("a journal that was written cannot be read");
        second = journal_text(&again);
        if (!second || strcmp(text, second) != 0)
            broken("a journal is not the same after writing and reading");
        free(text);
        free(second);
    }
    e = (struct err){0};
    int chat = journal_chat_parse(&again, (const char *)data, size, "a.chat", &e);
    fuzz_judge(chat, &e, "a.chat");
    journal_done(&j);
    journal_done(&again);
    return rc && chat ? rc : OK;
}

int fuzz_results(const uint8_t *data, size_t size)
{
    static char dir[300], path[400];
    static int fd;
    struct err e = {0};
    struct eval_list list = {0};
    if (!dir[0]) {
        snprintf(dir, sizeof dir, "%s/results", test_tmpdir());
        snprintf(path, sizeof path, "%s/mlathe.json", dir); /* results name it by its digest */
        if (file_mkdirs(dir, &e) || file_save(path, "{}", 2, &e))
            broken(e.text);
        snprintf(path, sizeof path, "%s/evaluations.json", dir);
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    }
    fuzz_put(fd, path, data, size);
    int rc = eval_list_load(&list, dir, &e);
    fuzz_judge(rc, &e, dir);
    for (size_t i = 0; rc == OK && i < list.n; i++) {
        cJSON *o = eval_record_json(&list.r[i]);
        char *csv = eval_record_csv(&list.r[i]);
        if (!o || !csv)
            broken("a result that cannot be written");
        cJSON_Delete(o);
        free(csv);
    }
    eval_list_free(&list);
    return rc;
}

int fuzz_questions(const uint8_t *data, size_t size)
{
    const char *path = fuzz_file(data, size);
    int best = ERR_FORMAT;
    for (int task = 0; task < CHOICE_TASKS; task++) {
        struct err e = {0};
        struct choice_set set = {0};
        int rc = choice_read(&set, (enum choice_task)task, path, 0, &e);
        fuzz_judge(rc, &e, path);
        for (size_t i = 0; rc == OK && i < set.n; i++)
            if (set.item[i].n < 2 || set.item[i].gold < 0 || set.item[i].gold >= set.item[i].n)
                broken("a question without an answer");
        best = rc == OK ? OK : best;
        choice_done(&set);
    }
    return best;
}

int fuzz_settings(const uint8_t *data, size_t size)
{
    struct err e = {0};
    struct settings s;
    char *text = mem_calloc(size + 1, 1);
    memcpy(text, data, size);
    int rc = settings_parse(&s, text, "settings", &e);
    fuzz_judge(rc, &e, "settings");
    if (s.theme < 0 || s.theme >= THEME_COUNT)
        broken("a theme that is none");
    free(text);
    return rc;
}

/* No control character and nothing ill-formed in any cell; rows are as wide as the screen. */
int fuzz_screen(const uint8_t *data, size_t size)
{
    struct screen s;
    if (screen_init(&s, 3, 40, size % 2, NULL))
        broken("screen");
    for (int row = -1; row < 4; row++) {
        screen_putn(&s, row, row * 7, 40, ROLE_NORMAL, (const char *)data, size);
        screen_putn(&s, row, 3, 5, ROLE_DIM, (const char *)data, size);
    }
    for (int i = 0; i < s.rows * s.cols; i++) {
        const struct cell *c = &s.cell[i];
        size_t n = strlen(c->text);
        if (n >= sizeof c->text || !utf8_valid(c->text, n) || (c->width == 0) != (n == 0))
            broken("a cell holds what it may not");
        for (size_t k = 0; k < n; k++)
            if ((unsigned char)c->text[k] < 32 || c->text[k] == 127 ||
                (s.ascii && (unsigned char)c->text[k] > 126))
                broken("a control character reached a cell");
        if (n == 2 && (unsigned char)c->text[0] == 0xc2 && (unsigned char)c->text[1] < 0xa0)
            broken("a C1 control reached a cell");
        if (c->width == 2 && (i % s.cols + 1 == s.cols || c[1].width != 0))
            broken("half a wide character");
    }
    screen_done(&s);
    return OK;
}

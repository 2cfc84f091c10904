/* The app without a screen: undo, budgets, what engines take, where answers part, what happens to
 * plans and chats when the model changes, and two programs on one workspace. */
#include <unistd.h>

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_app.h"
#include "tests/support_models.h"

static char one[300], other[300];

static int files_in(const char *name)
{
    char path[400];
    int n = 0;
    for (int i = 1; i < 10; i++) {
        snprintf(path, sizeof path, "%s/data/%s-%d%s", test_tmpdir(), name, i,
                 strstr(name, "plans") ? ".plan.json" : ".chat.json");
        n += file_exists(path);
    }
    return n;
}

static void test_undo(void)
{
    struct app *a = test_app_start(one, "ref");
    struct rankplan first, last;
    struct err e;
    test_app_press(a, "2");
    CHECK(a->ranks.has_plan, "%s", a->message);
    CHECK(fabs(rankplan_kept(&a->ranks.plan) - 0.5) < 1e-9, "a first plan keeps half");
    CHECK_OK(rankplan_copy(&first, &a->ranks.plan, &e), e);
    test_app_press(a, "Right Right Down Left f m u a e Shift-Right < > z y");
    test_app_settle(a);
    CHECK_OK(rankplan_copy(&last, &a->ranks.plan, &e), e);
    for (int i = 0; i < 40; i++)
        test_app_press(a, "z");
    CHECK(rankplan_equal(&a->ranks.plan, &first), "all the way back");
    for (int i = 0; i < 40; i++)
        test_app_press(a, "y");
    CHECK(rankplan_equal(&a->ranks.plan, &last), "and forth");
    for (int i = 0; i < 500; i++)
        test_app_press(a, i % 2 ? "Left" : "Right");
    CHECK(a->ranks.n_past <= 201, "undo is bounded: %zu", a->ranks.n_past);
    for (int i = 0; i < 100; i++)
        test_app_press(a, "Shift-Left");
    CHECK(a->ranks.plan.layer[a->ranks.layer].kv_lora_rank == 1, "the least rank is 1");
    for (int i = 0; i < 100; i++)
        test_app_press(a, ">");
    CHECK(a->ranks.plan.layer[a->ranks.layer].kv_lora_rank ==
              rankplan_max_rank(&a->ranks.plan.model),
          "and the most is all of it");
    rankplan_done(&first);
    rankplan_done(&last);
    test_app_leave(a);
}

/* Plan B: held, swapped, undone, found again at the next start, let go. */
static void test_two_plans(void)
{
    struct app *a = test_app_start(one, "ref");
    char text[256];
    int numbers = 0;
    double kl;
    test_app_press(a, "2 v");
    CHECK(a->ranks.has_plan && !a->ranks.has_other, "nothing to swap with");
    test_app_press(a, "B");
    CHECK(a->ranks.has_other && compare_layer(a, 0, &numbers, &kl) && numbers == 0, "held");
    int before = a->ranks.plan.layer[0].kv_lora_rank;
    test_app_press(a, "Home Right");
    int step = a->ranks.plan.layer[0].kv_lora_rank - before;
    CHECK(step > 0 && compare_layer(a, 0, &numbers, &kl) && numbers == step, "%d", numbers);
    CHECK(compare_layer(a, 1, &numbers, &kl) && numbers == 0, "the other layers are alike");
    long long apart = rankplan_numbers(&a->ranks.plan) - rankplan_numbers(&a->ranks.other);
    snprintf(text, sizeof text, "KV/token +%lld B", 2 * apart);
    char line[256];
    CHECK(compare_text(a, line, sizeof line) && strstr(line, text), "%s", line);
    test_app_press(a, "v");
    CHECK(a->ranks.plan.layer[0].kv_lora_rank == before &&
              a->ranks.other.layer[0].kv_lora_rank == before + step,
          "swapped");
    test_app_press(a, "z");
    CHECK(a->ranks.plan.layer[0].kv_lora_rank == before + step, "a swap can be undone");
    test_app_press(a, "v v Left");
    test_app_leave(a);
    a = test_app_start(one, "ref");
    test_app_press(a, "2");
    CHECK(a->ranks.has_other && a->ranks.other.layer[0].kv_lora_rank == before + step,
          "plan B is there again");
    test_app_press(a, "v B B");
    CHECK(!a->ranks.has_other, "let go");
    test_app_leave(a);
}

/* Layers measured: prediction, ranks by it, a budget that is dragged, other widths unknown. */
static void test_measured(void)
{
    struct app *a = test_app_start(one, "ref");
    char path[300], text[128];
    snprintf(path, sizeof path, "%s/measure.txt", test_tmpdir());
    FILE *f = fopen(path, "w");
    uint64_t seed = 3;
    for (int i = 0; i < 60000; i++)
        fputc(i % 60 == 59 ? '\n' : 'a' + (int)(26 * test_uniform(&seed) * test_uniform(&seed)), f);
    fclose(f);
    test_app_press(a, "2");
    test_app_press(a, a->ranks.plan.method == METHOD_MLATHE ? "" : "m");
    while (a->ranks.plan.layout != LAYOUT_OWN)
        test_app_press(a, "f");
    CHECK(plan_answer(a, REQ_BUDGET, "50%"), "%s", a->ask.error);
    test_app_settle(a);
    test_app_press(a, "p");
    CHECK(!a->ranks.sensitivity_pending && strstr(a->message, "calibrate first"), "%s", a->message);
    CHECK(plan_answer(a, REQ_CALIBRATE, path), "%s", a->ask.error);
    test_app_settle(a);
    CHECK(isnan(a->ranks.plan.predicted_kl) && !sensitivity_now(a), "nothing is measured yet");
    test_app_press(a, "p");
    test_app_settle(a);
    const struct sensitivity *s = sensitivity_now(a);
    CHECK(s && !a->ranks.sensitivity_pending, "%s", a->message);
    double half = a->ranks.plan.predicted_kl, kept = rankplan_kept(&a->ranks.plan);
    CHECK(half > 0 && kept <= 0.5, "KL %g, kept %g", half, kept);
    sensitivity_wants(a, text, sizeof text);
    CHECK(strstr(text, "layer "), "\"%s\"", text);
    test_app_press(a, "[ [ [ [ [ [ [ [ [ [");
    CHECK(!strcmp(a->j.budget, "40%") && rankplan_kept(&a->ranks.plan) <= 0.4, "%s", a->j.budget);
    CHECK(a->ranks.plan.predicted_kl > half, "less cache, more KL");
    test_app_press(a, "] ] ] ] ] ] ] ] ] ]");
    CHECK(a->ranks.plan.predicted_kl == half && rankplan_kept(&a->ranks.plan) == kept, "and back");
    test_app_press(a, "u a");
    CHECK(a->ranks.plan.predicted_kl == half, "auto spends by what was measured");
    CHECK(plan_answer(a, REQ_ROPE, "4"), "%s", a->ask.error);
    test_app_settle(a);
    CHECK(!sensitivity_now(a) && isnan(a->ranks.plan.predicted_kl), "of another rope width");
    test_app_press(a, "z");
    test_app_settle(a);
    CHECK(sensitivity_now(a) && a->ranks.plan.predicted_kl == half, "undone");
    int even = plan_even_numbers(a);
    test_app_press(a, "w");
    test_app_settle(a);
    const struct plan_layer *l = a->ranks.plan.layer;
    CHECK(strstr(a->message, "the best of "), "%s", a->message);
    for (int i = 0; i < 2; i++)
        CHECK(l[i].kv_lora_rank + l[i].qk_rope_head_dim == even,
              "layer %d: rank %d, rope %d for %d numbers", i, l[i].kv_lora_rank,
              l[i].qk_rope_head_dim, even);
    test_app_leave(a);
}

static void test_budget(void)
{
    struct app *a = test_app_start(one, "ref");
    static const char *const wrong[] = {"", "x", "-5%", "0%", "1GiB,0x0"};
    test_app_press(a, "2");
    for (int i = 0; i < 5; i++) {
        double kept = rankplan_kept(&a->ranks.plan);
        CHECK(!plan_answer(a, REQ_BUDGET, wrong[i]) && a->ask.error[0], "\"%s\"", wrong[i]);
        CHECK(rankplan_kept(&a->ranks.plan) == kept, "unchanged");
    }
    CHECK(!plan_answer(a, REQ_ROPE, "7") && !plan_answer(a, REQ_ROPE, "four"), "odd widths");
    CHECK(!plan_answer(a, REQ_WHATIF, "10") && !plan_answer(a, REQ_WHATIF, "0x1 1GiB"), "what-if");
    CHECK(!plan_answer(a, REQ_LOAD_PLAN, "/nonexistent.json"), "no such plan");
    CHECK(!plan_answer(a, REQ_CALIBRATE, "/nonexistent.txt"), "no such text");
    CHECK(plan_answer(a, REQ_WHATIF, "4096x16 80GiB") && a->j.batch == 16 &&
              a->j.memory_bytes == 80 * 0x1p30,
          "%s", a->ask.error);
    static const int percents[] = {30, 40, 50, 60, 80};
    for (int i = 0; i < 5; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d%%", percents[i]);
        CHECK(plan_answer(a, REQ_BUDGET, text), "%s", a->ask.error);
        test_app_settle(a);
        double kept = 100 * rankplan_kept(&a->ranks.plan);
        /* Ranks come in steps: a plan may stay a step a layer below its budget, never above. */
        double slack = 100.0 * plan_step(a) / rankplan_max_rank(&a->ranks.plan.model);
        CHECK(kept <= percents[i] + 1e-6 && kept >= percents[i] - slack, "%d%%: %g", percents[i],
              kept);
    }
    test_app_leave(a);
}

/* What a question may meet: a cursor inside a cluster at any width, and a model without a plan. */
static void test_question(void)
{
    struct app *a = test_app_start(one, "ref");
    struct screen s;
    struct err e = {0};
    CHECK_OK(screen_init(&s, 6, 80, false, &e), e);
    test_app_press(a, "2 b Ctrl-U");
    for (int i = 0; i < 40; i++)
        app_paste(a, "e\xcc\x81\xcc\x88", 5);
    while (a->ask.text.at > 0) {
        a->ask.text.at--; /* also where keys do not put it */
        for (int cols = 1; cols < 60; cols += 7) {
            screen_resize(&s, 6, cols);
            app_draw(a, &s);
            CHECK(s.cursor_col < cols, "cursor %d of %d", s.cursor_col, cols);
        }
    }
    screen_done(&s);
    plan_drop(a);
    static const enum request asked[] = {REQ_BUDGET, REQ_ROPE, REQ_SAVE_PLAN, REQ_CALIBRATE};
    for (int i = 0; i < 4; i++) {
        a->ask.error[0] = 0;
        CHECK(!plan_answer(a, asked[i], "8") && a->ask.error[0], "question %d", i);
    }
    test_app_leave(a);
}

/* The recipe's knobs as words: said, shown, undone, refused. */
static void test_recipe(void)
{
    struct app *a = test_app_start(one, "ref");
    static const char *const wrong[] = {"rounds",    "rounds x",   "rounds 1.5", "rounds 99",
                                        "balance 0", "balance -1", "speed 3",    "without speed",
                                        "stride 2",  "fold 4"};
    char text[256];
    struct rankplan *p = &a->ranks.plan;
    CHECK(plan_answer(a, REQ_RECIPE, " Rounds 2  balance 1.5 without joint,output "), "%s",
          a->ask.error);
    CHECK(p->rounds == 2 && p->balance == 1.5 && p->without == (STEP_JOINT | STEP_OUTPUT), "knobs");
    recipe_text(p, false, text, sizeof text);
    CHECK(!strcmp(text, "rounds 2 balance 1.5 without joint,output"), "%s", text);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(!plan_answer(a, REQ_RECIPE, wrong[i]) && a->ask.error[0] && p->rounds == 2, "\"%s\"",
              wrong[i]);
    CHECK(plan_answer(a, REQ_RECIPE, "") && !p->rounds && !p->without, "as usual");
    test_app_press(a, "F2 z");
    CHECK(p->rounds == 2, "undone");
    test_app_leave(a);
}

/* Calibration on files with shares and a limit; then what the weights alone say stands beside. */
static void test_calibration(void)
{
    struct app *a = test_app_start(one, "cpu");
    static const char *const wrong[] = {"~/none.txt",        "~/a.txt until", "~/a.txt until 200%",
                                        "~/a.txt 10 tokens", "3 ~/a.txt",     "~/a.txt 0"};
    char line[400];
    struct err e = {0};
    char *text = mem_calloc(4001, 1), *first;
    for (int i = 0; i < 4000; i += 5)
        memcpy(text + i, i % 3 ? "stone" : "rive\n", 5);
    for (int i = 0; i < 2; i++) {
        snprintf(line, sizeof line, "%s/%s", test_tmpdir(), i ? "b c.txt" : "a.txt");
        CHECK_OK(file_save(line, text, 4000, &e), e);
    }
    free(text);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(!plan_answer(a, REQ_CALIBRATE, wrong[i]) && a->ask.error[0], "\"%s\"", wrong[i]);
    CHECK(plan_answer(a, REQ_CALIBRATE, "~/b c.txt"), "a name with a blank: %s", a->ask.error);
    snprintf(line, sizeof line, "~/a.txt 2 ~/a.txt 1 512 tokens until 50%%");
    CHECK(plan_answer(a, REQ_CALIBRATE, line), "%s", a->ask.error);
    first = calibrate_file(a);
    CHECK(first && strstr(first, "/a.txt"), "%s", first ? first : "none");
    free(first);
    test_app_settle(a);
    CHECK(a->calibrated && a->ranks.curve[0].spectrum.calibrated, "%s", a->message);
    CHECK(!plan_weights(a, 0), "not asked for");
    test_app_press(a, "F2 W");
    test_app_settle(a);
    const struct spectrum *w = plan_weights(a, 0);
    CHECK(w && !w->calibrated && a->ranks.curve[0].spectrum.calibrated, "both are there: %s",
          a->message);
    CHECK(plan_answer(a, REQ_CALIBRATE, line), "%s", a->ask.error);
    test_app_press(a, "F2 Esc");
    test_app_settle(a);
    CHECK(strstr(a->message, "stopped"), "a stopped calibration says so: %s", a->message);
    test_app_leave(a);
}

/* A word in the help, the list and the transcript, and layers by number; clicks select. */
static void test_find(void)
{
    struct app *a = test_app_start(one, "cpu");
    struct screen s;
    struct err e = {0};
    CHECK_OK(screen_init(&s, 24, 80, false, &e), e);
    test_app_press(a, "2 / 1 Enter");
    CHECK(a->ranks.layer == 1, "layer %d", a->ranks.layer);
    test_app_press(a, "/ 7 Enter");
    CHECK(a->ranks.layer == 1 && a->message[0], "no such layer");
    test_app_press(a, "? / s u s p e n d Enter");
    CHECK(a->help && a->help_top > 0, "line %d", a->help_top);
    test_app_press(a, "Esc");
    app_draw(a, &s);
    app_click(a, a->rows.y, a->rows.x);
    CHECK(a->ranks.layer == 0, "clicked");
    app_click(a, 0, 0);
    app_click(a, 23, 79);
    CHECK(a->ranks.layer == 0 && a->ranks.has_plan, "nothing stands there");
    static const char *const words[] = {"/clear", "/set max_tokens 3", "red stone", "blue river",
                                        "Stone age"};
    for (int i = 0; i < 5; i++) {
        test_app_press(a, "F4");
        app_paste(a, words[i], strlen(words[i]));
        test_app_press(a, "Enter");
        test_app_settle(a);
    }
    test_app_press(a, "Tab / S T O N E Enter");
    CHECK(a->chat.found.n == 5 && a->chat.found.turn == 2 && a->chat.found.what == 2,
          "the newest of %zu: %s", a->j.n_turn, a->message);
    app_draw(a, &s);
    test_app_press(a, "n");
    CHECK(a->chat.found.turn == 0 && a->chat.found.at == 4, "turn %zu", a->chat.found.turn);
    app_draw(a, &s);
    test_app_press(a, "n");
    CHECK(a->chat.found.turn == 2, "around");
    test_app_press(a, "Tab");
    app_paste(a, "/clear", 6);
    test_app_press(a, "Enter");
    screen_done(&s);
    test_app_leave(a);
}

static bool loads(const struct rankplan *p, enum stock_engine t)
{
    struct stock_facts f = {
        .n_head = 32, .n_kv_head = 8, .head_dim = 128, .rope_dim = 128, .grid_pairs = 64};
    struct stock_verdict v;
    stock_check(&f, p, t, &v);
    CHECK(v.fit != STOCK_NO || (v.text[0] && v.brief[0]), "a refusal gives its reason");
    return v.fit == STOCK_YES;
}

static void test_engines(void)
{
    struct rankplan p;
    struct plan_model m = {
        .name = "m", .n_layer = 3, .n_head = 32, .n_kv_head = 8, .head_dim = 128};
    struct err e;
    CHECK_OK(rankplan_init(&p, &m, &e), e);
    CHECK_OK(rankplan_uniform(&p, 512, 64, &e), e);
    CHECK(!loads(&p, STOCK_HF) && !loads(&p, STOCK_GGUF), "own layout stays here");
    p.layout = LAYOUT_STOCK;
    CHECK(loads(&p, STOCK_HF) && loads(&p, STOCK_VLLM) && loads(&p, STOCK_GGUF), "512+64");
    p.layer[1].kv_lora_rank = 448;
    CHECK(loads(&p, STOCK_GGUF) && loads(&p, STOCK_VLLM), "zeros fill smaller ranks");
    CHECK_OK(rankplan_uniform(&p, 576, 64, &e), e);
    CHECK(loads(&p, STOCK_GGUF) && !loads(&p, STOCK_SGLANG), "servers know three sizes");
    rankplan_done(&p);
}

static bool screen_says(const struct screen *s, const char *words)
{
    bool found = false;
    for (int y = 0; y < s->rows && !found; y++) {
        char *row = screen_row(s, y);
        found = row && strstr(row, words);
        free(row);
    }
    return found;
}

/* A short answer beside a long one: each side scrolls as far as it has lines. */
static void test_scroll_apart(void)
{
    struct app *a = test_app_start(one, "cpu");
    struct screen s;
    struct err e = {0};
    char text[2000] = "the ";
    for (int i = 0; i < 100; i++)
        snprintf(text + strlen(text), 16, "line %d\n", i);
    CHECK_OK(screen_init(&s, 24, 120, false, &e), e);
    test_app_press(a, "F4");
    journal_add_turn(&a->j, "prompt");
    text_set(&a->j.turn[0].answer[0], "the short");
    text_set(&a->j.turn[0].answer[1], text);
    app_draw(a, &s);
    CHECK(screen_says(&s, "line 99") && !screen_says(&s, "the line 0"), "the end first");
    test_app_press(a, "PgUp");
    app_draw(a, &s);
    CHECK(!screen_says(&s, "line 99") && screen_says(&s, "the short"), "a page up");
    test_app_press(a, "PgDn Tab d");
    app_draw(a, &s);
    CHECK(screen_says(&s, "the line 0") && screen_says(&s, "the short"), "where they part");
    test_app_press(a, "End");
    app_draw(a, &s);
    CHECK(screen_says(&s, "line 99"), "and the end again");
    test_app_press(a, "/");
    app_paste(a, "line 50", 7);
    test_app_press(a, "Enter");
    app_draw(a, &s);
    CHECK(screen_says(&s, "line 50") && screen_says(&s, "the short"), "a word");
    journal_drop_turns(&a->j, 0);
    screen_done(&s);
    test_app_leave(a);
}

static void test_parting(void)
{
    static const struct {
        const char *a, *b;
        long at; /* -1: nowhere */
        long end;
    } cases[] = {
        {"the cat sat", "the cat sat", -1, 0},
        {"the cat sat", "the dog sat", 4, 7},
        {"the cat", "the cat sat", 7, 7},
        {"é", "è", 0, 2},
        {"", "x", 0, 0},
        {"one two", "one", 3, 7},
    };
    struct app a = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t end = 0;
        journal_add_turn(&a.j, "prompt");
        text_set(&a.j.turn[0].answer[0], cases[i].a);
        text_set(&a.j.turn[0].answer[1], cases[i].b);
        size_t at = chat_parts_at(&a, 0, 0, &end);
        CHECK(cases[i].at < 0 ? at == SIZE_MAX
                              : at == (size_t)cases[i].at && end == (size_t)cases[i].end,
              "%s | %s: %zu to %zu", cases[i].a, cases[i].b, at, end);
        journal_drop_turns(&a.j, 0);
    }
    journal_add_turn(&a.j, "prompt");
    size_t end;
    text_set(&a.j.turn[0].answer[0], "only one side");
    CHECK(chat_parts_at(&a, 0, 0, &end) == SIZE_MAX, "one side cannot part");
    journal_drop_turns(&a.j, 0);
    free(a.j.turn);
}

/* A plan or a chat of another model is put into a file, not dropped. */
static void test_other_model(void)
{
    struct app *a = test_app_start(one, "ref");
    test_app_press(a, "2 Right");
    journal_add_turn(&a->j, "who are you?");
    text_set(&a->j.turn[0].answer[0], "tiny");
    app_changed(a);
    test_app_leave(a);
    a = test_app_start(NULL, "ref");
    CHECK(a->j.n_turn == 1 && a->ranks.has_plan && strcmp(a->j.model, one) == 0, "found again");
    int rank = a->ranks.plan.layer[0].kv_lora_rank;
    test_app_leave(a);
    a = test_app_start(one, "ref");
    CHECK(a->j.n_turn == 1 && a->ranks.plan.layer[0].kv_lora_rank == rank, "the same by name");
    test_app_leave(a);
    int plans = files_in("plans/one"), chats = files_in("chats/one");
    a = test_app_start(other, "ref");
    CHECK(a->j.n_turn == 0 && strcmp(a->j.model, other) == 0, "another model, another chat");
    test_app_leave(a); /* writes what is on its way */
    CHECK(files_in("plans/one") == plans + 1, "the plan is in a file");
    CHECK(files_in("chats/one") == chats + 1, "and the chat");
}

static void test_two_programs(void)
{
    struct app *a = test_app_start(one, "ref"), *b = test_app_start(one, "ref");
    CHECK(a->lock >= 0 && b->lock < 0, "one holds the workspace");
    CHECK(strstr(b->message, "another mlathe") != NULL || b->has_model, "%s", b->message);
    journal_add_turn(&b->j, "lost on purpose");
    app_changed(b);
    test_app_leave(b);
    test_app_leave(a);
    a = test_app_start(NULL, "ref");
    CHECK(a->lock >= 0 && a->j.n_turn == 0, "the second one wrote nothing");
    test_app_leave(a);
}

static void test_broken_journal(void)
{
    char path[400], bad[420];
    struct err e;
    snprintf(path, sizeof path, "%s/state/workspace.json", test_tmpdir());
    snprintf(bad, sizeof bad, "%s.bad-1", path);
    CHECK_OK(file_save(path, "{\"mlathe_workspace\": 1, ", 24, &e), e);
    struct app *a = test_app_start(one, "ref");
    CHECK(file_exists(bad), "kept aside");
    CHECK(a->has_model && a->lock >= 0, "and the program goes on");
    test_app_leave(a);
}

static void test_bad_model_keeps_the_good_one(void)
{
    struct app *a = test_app_start(one, "ref");
    char path[400];
    struct err e;
    snprintf(path, sizeof path, "%s/not-a-model.gguf", test_tmpdir());
    CHECK_OK(file_save(path, "GGUF\3\0\0\0nonsense", 16, &e), e);
    test_app_press(a, "1");
    app_open(a, path, NULL);
    test_app_settle(a);
    CHECK(a->has_model && strcmp(a->j.model, one) == 0 && a->message_role == ROLE_BAD, "%s",
          a->message);
    CHECK(a->ranks.has_plan, "plan and all");
    test_app_leave(a);
}

/* What is sent while another model opens would belong to a transcript that is put away. */
static void test_sent_while_opening(void)
{
    struct app *a = test_app_start(one, "cpu");
    test_app_press(a, "F4 h i Enter");
    test_app_settle(a);
    app_open(a, other, NULL);
    test_app_press(a, "m o r e Enter");
    CHECK(!a->chat.answering && strstr(a->message, "opened"), "%s", a->message);
    CHECK(strcmp(a->chat.prompt.text, "more") == 0, "typed: %s", a->chat.prompt.text);
    for (int i = 0; i < 6000 && worker_count(a->worker, &job_load); i++)
        usleep(10000);
    test_app_press(a, "Enter"); /* it is open, but the screens do not know yet */
    CHECK(!a->chat.answering && strstr(a->message, "opened"), "%s", a->message);
    test_app_settle(a);
    CHECK(a->j.n_turn == 0, "the other model's chat is put away");
    test_app_leave(a);
}

/* A model opened by a name in the working folder is found from another one, and listed. */
static void test_recent(void)
{
    char here[400];
    CHECK(getcwd(here, sizeof here) && chdir(test_tmpdir()) == 0, "folder");
    struct app *a = test_app_start("one.gguf", "cpu");
    CHECK(a->j.model && strcmp(a->j.model, one) == 0, "%s", a->j.model);
    test_app_settle(a);
    bool listed = false;
    for (size_t i = 0; i < a->found.n; i++)
        listed = listed || (!strcmp(a->found.entry[i].path, one) &&
                            !strcmp(a->found.entry[i].source, "recent"));
    CHECK(listed, "%zu models", a->found.n);
    test_app_leave(a);
    CHECK(chdir(here) == 0, "back");
}

/* Plans that wait, and the one that was being converted, wait on after leaving. */
static void test_queue(void)
{
    struct app *a = test_app_start(one, "cpu");
    size_t made = a->j.conversions.n;
    test_app_press(a, "F2 c F2 Right c F2 Right c");
    CHECK(a->convert.n_queue == 2, "%zu wait: %s", a->convert.n_queue, a->message);
    test_app_leave(a);
    a = test_app_start(NULL, "cpu");
    CHECK(a->convert.n_queue == 3 && a->j.conversions.n == made && strstr(a->message, "3 plans"),
          "%zu wait: %s", a->convert.n_queue, a->message);
    test_app_press(a, "F3 c");
    test_app_settle(a);
    CHECK(a->convert.n_queue == 0 && a->j.conversions.n == made + 3, "%zu wait, %zu made: %s",
          a->convert.n_queue, a->j.conversions.n, a->message);
    test_app_press(a, "F2 Right c F2 Right c");
    test_app_leave(a);
    int plans = files_in("plans/one");
    a = test_app_start(NULL, "cpu");
    CHECK(a->convert.n_queue == 2, "%zu wait", a->convert.n_queue);
    test_app_press(a, "F3 Esc");
    CHECK(a->convert.n_queue == 0, "let go");
    test_app_leave(a);
    CHECK(files_in("plans/one") == plans + 2, "and kept as files");
    a = test_app_start(NULL, "cpu");
    CHECK(a->convert.n_queue == 0 && a->j.conversions.n == made + 3, "they do not come back");
    test_app_leave(a);
}

int main(void)
{
    struct test_model_spec spec = test_model_small();
    setenv("MLATHE_HOME", test_tmpdir(), 1);
    setenv("HOME", test_tmpdir(), 1);
    snprintf(one, sizeof one, "%s/one.gguf", test_tmpdir());
    snprintf(other, sizeof other, "%s/other.gguf", test_tmpdir());
    CHECK(test_model_write_gguf(one, &spec) == 0, "model");
    spec.seed = 99;
    CHECK(test_model_write_gguf(other, &spec) == 0, "model");
    test_undo();
    test_two_plans();
    test_measured();
    test_budget();
    test_question();
    test_recipe();
    test_calibration();
    test_find();
    test_engines();
    test_parting();
    test_scroll_apart();
    test_other_model();
    test_recent();
    test_queue();
    test_sent_while_opening();
    test_two_programs();
    test_broken_journal();
    test_bad_model_keeps_the_good_one();
    return test_end("app");
}

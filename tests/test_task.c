/* Multiple choice: the readers against files written here (good and hostile), the protocol's words,
 * scores against one plain pass an answer, hand-computed rates and paired errors, ties, contexts
 * cut to fit, and results kept beside a conversion. */
#include <sys/stat.h>

#include "core/file.h"
#include "core/metrics.h"
#include "sessions/eval_record.h"
#include "sessions/workspace.h"
#include "tests/support.h"
#include "tests/support_models.h"

static const char *write_file(const char *name, const char *text)
{
    static char ring[4][512];
    static int next;
    char *path = ring[next++ % 4];
    struct err e;
    snprintf(path, 512, "%s/%s", test_tmpdir(), name);
    CHECK_OK(file_save(path, text, strlen(text), &e), e);
    return path;
}

/* ---- reading ---- */

struct expect {
    enum choice_task task;
    const char *name, *text;
    int n, gold;
    const char *context, *first, *last; /* of the first answer; the endings of first and last */
};
#define ASK "Please choose the correct answer to the question: "
static const struct expect good[] = {
    {CHOICE_ARC, "arc.json",
     "[{\"instruction\": \"" ASK
     "Why: is it so?\\n\\nAnswer1: one: two Answer2: b. Answer3: c\\n\\n"
     "Answer format: answer1/answer2/answer3\", \"answer\": \"answer3\"}]",
     3, 2, "Question: Why: is it so?\nAnswer:", "one: two", "c"},
    {CHOICE_ARC, "arc.jsonl",
     "\n{\"question\": {\"stem\": \"Why?\", \"choices\": [{\"text\": \"x\", \"label\": \"A\"}, "
     "{\"text\": \"y\", \"label\": \"B\"}]}, \"answerKey\": \"B\"}\n",
     2, 1, "Question: Why?\nAnswer:", "x", "y"},
    {CHOICE_OBQA, "obqa.jsonl",
     "{\"question_stem\": \"The sun is\", \"choices\": {\"text\": [\"hot\", \"cold\", \"wet\"], "
     "\"label\": [\"A\", \"B\", \"C\"]}, \"answerKey\": \"A\"}",
     3, 0, "The sun is", "hot", "wet"},
    {CHOICE_PIQA, "piqa.json",
     "[{\"instruction\": \"Please choose the correct solution to the question: dresser\\n\\n"
     "Solution1: with  pin \\n\\nSolution2: finish \\n\\nAnswer format: solution1/solution2\", "
     "\"answer\": \"solution2\"}]",
     2, 1, "Question: dresser\nAnswer:", "with  pin ", "finish "},
    {CHOICE_PIQA, "piqa.jsonl", "{\"goal\": \"g\", \"sol1\": \"s\", \"sol2\": \"t\", \"label\": 0}",
     2, 0, "Question: g\nAnswer:", "s", "t"},
    {CHOICE_WINOGRANDE, "winogrande.json",
     "[{\"instruction\": \"Please choose the correct answer to fill in the blank to complete the "
     "given sentence: Ann saw Bea, so _ left.\\n\\nOption1: Ann Option2: Bea Answer format: "
     "option1/option2\", \"answer\": \"option2\"}]",
     2, 1, "Ann saw Bea, so Ann", "left.", "left."},
    {CHOICE_WINOGRANDE, "winogrande.jsonl",
     "{\"sentence\": \"a _ b\", \"option1\": \"x\", \"option2\": \"y\", \"answer\": \"1\"}", 2, 0,
     "a x", "b", "b"},
    {CHOICE_HELLASWAG, "hellaswag.txt", "Roof: A man. he\r\n3\na\nb\nc\nd d\n", 4, 3,
     "Roof: A man. he", "a", "d d"},
    {CHOICE_HELLASWAG, "hellaswag.jsonl",
     "{\"activity_label\": \"Bake\", \"ctx_a\": \"A [step] pan.\", \"ctx_b\": \"she\", "
     "\"endings\": [\"x [title] y\", \"b\", \"c\", \"d\"], \"label\": \"1\"}",
     4, 1, "Bake: A pan. She", "x. y", "d"},
    {CHOICE_MMLU, "high_school_art_test.csv",
     "question,choice0,choice1,choice2,choice3,answer\n\"Is \"\"it\"\", so\nto say\",p,\"q,r\",s,t,"
     "1\n",
     4, 1,
     "The following are multiple choice questions (with answers) about high school art.\n\n"
     "Is \"it\", so\nto say\nA. p\nB. q,r\nC. s\nD. t\nAnswer:",
     "A", "D"},
    {CHOICE_MMLU, "old.csv", "q,a,b,c,d,C\r\n", 4, 2,
     "The following are multiple choice questions (with answers) about old.\n\nq\nA. a\nB. b\nC. "
     "c\nD. d\nAnswer:",
     "A", "D"},
};

static void test_readers(void)
{
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        const struct expect *x = &good[i];
        struct choice_set set = {0};
        enum choice_task guess;
        struct err e = {0};
        const char *path = write_file(x->name, x->text);
        CHECK_OK(choice_read(&set, x->task, path, 0, &e), e);
        CHECK(set.n == 1, "%s: %zu questions", x->name, set.n);
        if (set.n == 1) {
            const struct choice_item *q = &set.item[0];
            CHECK(q->n == x->n && q->gold == x->gold, "%s: %d %d", x->name, q->n, q->gold);
            CHECK(!strcmp(q->answer[0].context, x->context), "%s: \"%s\"", x->name,
                  q->answer[0].context);
            CHECK(!strcmp(q->answer[0].ending, x->first), "%s: \"%s\"", x->name,
                  q->answer[0].ending);
            CHECK(!strcmp(q->answer[q->n - 1].ending, x->last), "%s: \"%s\"", x->name,
                  q->answer[q->n - 1].ending);
        }
        if (x->task != CHOICE_MMLU)
            CHECK(choice_guess(path, &guess) && guess == x->task, "%s", x->name);
        choice_done(&set);
    }
}

static const struct {
    enum choice_task task;
    const char *text, *said;
} hostile[] = {
    {CHOICE_ARC, "", "neither"},
    {CHOICE_ARC, "[]", "no question"},
    {CHOICE_ARC, "[{\"instruction\": \"Please", "not valid JSON"},
    {CHOICE_ARC, "[1, 2]", "no JSON object"},
    {CHOICE_ARC, "[{}]", "0 answers"},
    {CHOICE_ARC, "[{\"instruction\": 7, \"answer\": []}]", "0 answers"},
    {CHOICE_ARC, "[{\"instruction\": \"Answer format: answer1/answer2: x\"}]", "0 answers"},
    {CHOICE_ARC,
     "[{\"instruction\": \"Q: q Answer1: a\\n\\nAnswer format: answer1/answer2\", "
     "\"answer\": \"answer1\"}]",
     "is empty"},
    {CHOICE_ARC,
     "[{\"instruction\": \"Q: q\\n\\nAnswer1: a Answer2:  \\n\\nAnswer format: answer1/answer2\", "
     "\"answer\": \"answer1\"}]",
     "answer 2 of question 1 is empty"},
    {CHOICE_ARC,
     "[{\"instruction\": \"Q: q\\n\\nAnswer1: a Answer2: b\\n\\nAnswer format: answer1/answer2\", "
     "\"answer\": \"answer3\"}]",
     "label"},
    {CHOICE_ARC,
     "[{\"instruction\": \"Q: q\\n\\nAnswer1: a Answer2: b\\n\\nAnswer format: answer1/answer2\", "
     "\"answer\": \"answer-1\"}]",
     "label"},
    {CHOICE_ARC,
     "[{\"instruction\": \"Q:  \\n\\nAnswer1: a Answer2: b\\n\\nAnswer format: answer1/answer2\", "
     "\"answer\": \"answer1\"}]",
     "no text"},
    {CHOICE_PIQA, "{\"goal\": \"g\", \"sol1\": \"s\", \"sol2\": \"t\"}", "label"},
    {CHOICE_PIQA, "{\"goal\": \"g\", \"sol1\": \"s\", \"label\": 0}", "is empty"},
    {CHOICE_WINOGRANDE,
     "{\"sentence\": \"no gap\", \"option1\": \"x\", \"option2\": \"y\", \"answer\": \"1\"}",
     "blank"},
    {CHOICE_WINOGRANDE,
     "{\"sentence\": \"at the end _\", \"option1\": \"x\", \"option2\": \"y\", \"answer\": \"1\"}",
     "blank"},
    {CHOICE_HELLASWAG, "ctx\n4\na\nb\nc\nd\n", "label"},
    {CHOICE_HELLASWAG, "ctx\n1\na\nb\n", "is empty"},
    {CHOICE_HELLASWAG, "BZh91AY&SY", "bunzip2"},
    {CHOICE_MMLU, "q,a,b,c,d\n", "columns"},
    {CHOICE_MMLU, "q,a,b,c,d,E\n", "label"},
    {CHOICE_MMLU, "q,a,b,c,d,A,more\n", "columns"},
    {CHOICE_MMLU, "\"never closed,a,b,c,d,A\n", "columns"},
    {CHOICE_MMLU, "PK\x03\x04", "unzip"},
};

static void test_hostile(void)
{
    struct err e;
    struct choice_set set = {0};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        e = (struct err){0};
        set = (struct choice_set){0};
        int rc = choice_read(&set, hostile[i].task, write_file("hostile", hostile[i].text), 0, &e);
        CHECK(rc != 0 && strstr(e.text, hostile[i].said), "%zu: \"%s\" does not say \"%s\"", i,
              e.text, hostile[i].said);
        choice_done(&set);
    }
    CHECK(choice_read(&set, CHOICE_ARC, "/nonexistent", 0, &e) == ERR_IO);
    choice_done(&set);
    /* One line of a million letters is a question like any other. */
    size_t n = 1 << 20;
    char *text = mem_calloc(n + 64, 1);
    memset(text, 'x', n);
    memcpy(text + n, "\n0\na\nb\nc\nd\n", 11);
    CHECK_OK(choice_read(&set, CHOICE_HELLASWAG, write_file("long", text), 0, &e), e);
    CHECK(set.n == 1 && strlen(set.item[0].answer[3].context) == n);
    choice_done(&set);
    free(text);
}

/* Good files with bytes changed, cut and doubled: read or refused with a sentence, never more. */
static void test_mutated(void)
{
    uint64_t seed = 3;
    int refused = 0, tries = 0;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        for (int k = 0; k < 120; k++, tries++) {
            struct choice_set set = {0};
            struct err e = {0};
            char *text = mem_strdup(good[i].text);
            size_t n = strlen(text);
            static const char odd[] = "\"\\{}[],:\n_\xff\xc3 A1-";
            for (int j = 0; j < 1 + k % 4; j++)
                text[(size_t)(test_uniform(&seed) * (double)n)] =
                    odd[(size_t)(test_uniform(&seed) * (sizeof odd - 1))];
            if (k % 3 == 0)
                text[(size_t)(test_uniform(&seed) * (double)n)] = 0;
            int rc = choice_read(&set, good[i].task, write_file("mutated", text), 0, &e);
            CHECK(rc == 0 || e.text[0], "a refusal without a sentence");
            for (size_t q = 0; rc == 0 && q < set.n; q++)
                CHECK(set.item[q].gold < set.item[q].n && set.item[q].answer[0].context[0]);
            refused += rc != 0;
            choice_done(&set);
            free(text);
        }
    CHECK(refused > tries / 4 && refused < tries, "%d of %d refused", refused, tries);
}

static void test_published(void)
{
    static const struct {
        enum choice_task task;
        const char *file;
        size_t n;
        int most;
    } files[] = {
        {CHOICE_ARC, "eval/ARC-Easy.test.json", 2376, 5},
        {CHOICE_ARC, "eval/ARC-Challenge.test.json", 1172, 5},
        {CHOICE_OBQA, "eval/openbookqa.test.json", 500, 4},
        {CHOICE_PIQA, "eval/piqa.test.json", 1838, 2},
        {CHOICE_WINOGRANDE, "eval/winogrande.test.json", 1267, 2},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const char *path = test_data(files[i].file);
        struct choice_set set = {0};
        struct err e = {0};
        int most = 0;
        if (!path) {
            printf("skipped: %s (no test data)\n", files[i].file);
            continue;
        }
        CHECK_OK(choice_read(&set, files[i].task, path, 0, &e), e);
        for (size_t q = 0; q < set.n; q++)
            most = set.item[q].n > most ? set.item[q].n : most;
        CHECK(set.n == files[i].n && most == files[i].most, "%s: %zu questions of %d", path, set.n,
              most);
        choice_done(&set);
    }
}

/* ---- several timelines at once ---- */

static struct workspace *open_tiny(const char *name, uint64_t seed)
{
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = true};
    struct test_model_spec spec = test_model_small();
    struct workspace *w;
    struct err e = {0};
    char path[512];
    spec.seed = seed;
    snprintf(path, sizeof path, "%s/%s.gguf", test_tmpdir(), name);
    CHECK(test_model_write_gguf(path, &spec) == 0);
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    return w;
}

struct taken {
    float *rows;
    int n, vocab;
};
static void take(void *user, int first, int n, const float *logits)
{
    struct taken *t = user;
    CHECK(first == t->n, "rows come in order");
    memcpy(t->rows + (size_t)first * (size_t)t->vocab, logits,
           (size_t)n * (size_t)t->vocab * sizeof *logits);
    t->n += n;
}

/* Runs of 5, 700 and 30 tokens, the last from a copy, against each alone: blocks are crossed. */
static void test_prefill_many(const struct engine *g)
{
    enum { N = 3, LONG = 700 };
    static const int n[N] = {5, LONG, 30}, keep[N] = {5, 90, 1};
    struct infer *t[N] = {0}, *alone;
    struct err e = {0};
    size_t V = (size_t)engine_model(g)->hp.vocab;
    int32_t ids[LONG + N];
    float *want = mem_calloc(LONG * V, sizeof *want);
    struct taken got = {mem_calloc((5 + 90 + 1) * V, sizeof(float)), 0, (int)V};
    struct infer_rows rows = {take, &got};
    struct infer_run run[N];
    for (int i = 0; i < LONG + N; i++)
        ids[i] = i * 37 % 300;
    for (int i = 0; i < N; i++) {
        CHECK_OK(infer_new(&t[i], g, 800, DTYPE_F32, &e), e);
        run[i] = (struct infer_run){t[i], ids + i, n[i], keep[i]};
    }
    CHECK_OK(infer_prefill(t[0], ids + 100, 20, INFER_NONE, NULL, NULL, &e), e);
    CHECK_OK(infer_copy(t[2], t[0], 11, &e), e);
    infer_rewind(t[0], 0);
    CHECK_OK(infer_prefill_many(run, N, &rows, NULL, &e), e);
    CHECK(got.n == 96 && infer_pos(t[0]) == 5 && infer_pos(t[1]) == LONG && infer_pos(t[2]) == 41);
    for (int i = 0, at = 0; i < N; at += keep[i], i++) {
        CHECK_OK(infer_new(&alone, g, 800, DTYPE_F32, &e), e);
        if (i == 2)
            CHECK_OK(infer_prefill(alone, ids + 100, 11, INFER_NONE, NULL, NULL, &e), e);
        CHECK_OK(infer_prefill(alone, ids + i, n[i] == LONG ? LONG - 2 : n[i], INFER_ALL, want,
                               NULL, &e),
                 e);
        if (n[i] == LONG)
            CHECK_OK(infer_prefill(alone, ids + i + LONG - 2, 2, INFER_ALL, want + (LONG - 2) * V,
                                   NULL, &e),
                     e);
        /* fp32 sums in another order: a few ulp of the largest logit */
        CHECK(test_rel_error(got.rows + (size_t)at * V, want + (size_t)(n[i] - keep[i]) * V,
                             (size_t)keep[i] * V) < 1e-4,
              "run %d", i);
        infer_free(alone);
    }
    run[1].n = 200; /* 700 + 200 do not fit: nothing moves */
    CHECK(infer_prefill_many(run, N, &rows, NULL, &e) == ERR_LIMIT && infer_pos(t[0]) == 5);
    CHECK(infer_copy(t[2], t[0], 6, &e) == ERR_ARG);
    for (int i = 0; i < N; i++)
        infer_free(t[i]);
    free(want);
    free(got.rows);
}

/* ---- scoring ---- */

/* The sum of the tokens of `ending` after `context`, by one pass over everything. */
static double plain_score(const struct engine *g, const struct tokenizer *t, const char *context,
                          const char *ending, int *scored)
{
    struct ids all = {0}, head = {0};
    struct err e = {0};
    struct infer *line;
    double sum = 0;
    size_t V = (size_t)engine_model(g)->hp.vocab;
    char *text = mem_printf("%s %s", context, ending);
    CHECK_OK(tokenizer_encode(t, text, strlen(text), TOKENIZE_BOS, &all, &e), e);
    CHECK_OK(tokenizer_encode(t, context, strlen(context), TOKENIZE_BOS, &head, &e), e);
    float *logits = mem_calloc(all.n * V, sizeof *logits);
    CHECK_OK(infer_new(&line, g, (int)all.n, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(line, all.v, (int)all.n, INFER_ALL, logits, NULL, &e), e);
    for (size_t i = head.n; i < all.n; i++)
        sum -= metrics_nll(logits + (i - 1) * V, (int)V, all.v[i]);
    *scored = (int)(all.n - head.n);
    infer_free(line);
    free(logits);
    free(text);
    ids_free(&all);
    ids_free(&head);
    return sum;
}

static const char *task_text(void)
{
    static char text[16384];
    size_t n = 0;
    for (int i = 0; i < 40; i++)
        n += (size_t)snprintf(text + n, sizeof text - n,
                              "%s%s the of %d\n%d\n%s of it\nof the %d\n%d is what they said\nthe "
                              "the the\n",
                              i % 5 ? "A man" : "In another place", i % 3 ? " said" : " went", i,
                              i % 4, i % 2 ? "long" : "short", i * 13, i * 7);
    return text;
}

/* Picks of one model by plain passes, into correct[3][n]. */
static void plain_picks(const struct engine *g, const struct tokenizer *t,
                        const struct choice_set *set, int (*pick)[3])
{
    for (size_t q = 0; q < set->n; q++) {
        double best[2] = {-INFINITY, -INFINITY};
        for (int k = 0; k < set->item[q].n; k++) {
            const struct choice_answer *a = &set->item[q].answer[k];
            int scored;
            double sum = plain_score(g, t, a->context, a->ending, &scored);
            double value[2] = {sum, sum / (double)strlen(a->ending)}; /* ASCII here */
            for (int rule = 0; rule < 2; rule++)
                if (value[rule] > best[rule]) {
                    best[rule] = value[rule];
                    pick[q][rule] = k;
                }
        }
    }
}

static void test_scores(struct workspace *w, struct workspace *other)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    const struct engine *h = workspace_engine(other, SIDE_ORIGINAL);
    struct err e = {0};
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    const char *file = write_file("hellaswag_many.txt", task_text());
    char csv[512];
    snprintf(csv, sizeof csv, "%s/rows.csv", test_tmpdir());
    struct task_options o = {.file = file, .task = CHOICE_HELLASWAG, .csv = csv};
    struct task_result r;
    struct choice_set set = {0};
    int pick[2][64][3];
    CHECK_OK(eval_task(g, h, t, &o, NULL, &r, &e), e);
    CHECK_OK(choice_read(&set, o.task, file, 0, &e), e);
    CHECK(r.n == 40 && r.total == 40 && r.compared && set.n == 40);
    plain_picks(g, t, &set, pick[0]);
    plain_picks(h, t, &set, pick[1]);
    for (int rule = 0; rule < 2; rule++) {
        /* Mean, sample variance and paired difference from the counts, by hand. */
        double right[2] = {0, 0}, d = 0, dd = 0, same = 0, n = 40;
        for (int q = 0; q < 40; q++) {
            int a = pick[0][q][rule] == set.item[q].gold, b = pick[1][q][rule] == set.item[q].gold;
            right[0] += a;
            right[1] += b;
            d += a - b;
            dd += (a - b) * (a - b);
            same += pick[0][q][rule] == pick[1][q][rule];
        }
        double p = right[0] / n;
        CHECK(fabs(r.acc[rule].mean - p) < 1e-12, "rule %d: %g %g", rule, r.acc[rule].mean, p);
        CHECK(fabs(r.acc[rule].err - sqrt(p * (1 - p) / (n - 1))) < 1e-12);
        CHECK(fabs(r.acc_against[rule].mean - right[1] / n) < 1e-12);
        CHECK(fabs(r.diff[rule].mean - d / n) < 1e-12);
        CHECK(fabs(r.diff[rule].err - sqrt((dd - d * d / n) / (n - 1) / n)) < 1e-12);
        CHECK(fabs(r.same[rule] - same / n) < 1e-12);
    }
    /* What is shared is read once; one row an answer is read again. */
    CHECK(r.tokens >= r.tokens_unique && r.tokens <= r.tokens_unique + 40 * 4, "%lld %lld",
          r.tokens, r.tokens_unique);
    choice_done(&set);

    char *text = NULL;
    int line = 0, index, gold, own[3];
    double lp;
    CHECK_OK(file_read(csv, 1 << 20, &text, NULL, &e), e);
    for (char *at = text; at && (at = strchr(at, '\n')) && at[1]; at++, line++) {
        CHECK(sscanf(at + 1, "%d,%d,%d,%d,%d,%lf", &index, &gold, own, own + 1, own + 2, &lp) == 6);
        CHECK(index == line + 1 && gold == line % 4 && own[0] == pick[0][line][0] && lp < 0);
    }
    CHECK(line == 40, "%d rows", line);
    free(text);
}

static void test_winogrande(struct workspace *w)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    struct err e = {0};
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    int n[2];
    double a = plain_score(g, t, "Ann saw Bea, so Ann", "left the house.", &n[0]);
    double b = plain_score(g, t, "Ann saw Bea, so Bea", "left the house.", &n[1]);
    const char *file = write_file(
        "w.jsonl", "{\"sentence\": \"Ann saw Bea, so _ left the house.\", \"option1\": \"Ann\", "
                   "\"option2\": \"Bea\", \"answer\": \"1\"}");
    struct task_options o = {.file = file, .task = CHOICE_WINOGRANDE};
    struct task_result r;
    CHECK_OK(eval_task(g, NULL, t, &o, NULL, &r, &e), e);
    CHECK(r.acc[TASK_SUM].mean == (a > b) && n[0] == n[1] && isnan(r.acc[TASK_SUM].err));
}

/* Answers with the same words have the same sum: the first is taken. */
static void test_ties(struct workspace *w)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    struct err e = {0};
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    for (int gold = 0; gold < 4; gold++) {
        char text[128];
        snprintf(text, sizeof text, "They are alike:\n%d\nthe same\nthe same\nthe same\nthe same\n",
                 gold);
        struct task_options o = {.file = write_file("ties.txt", text), .task = CHOICE_HELLASWAG};
        struct task_result r;
        CHECK_OK(eval_task(g, g, t, &o, NULL, &r, &e), e);
        for (int rule = 0; rule < TASK_RULES; rule++)
            CHECK(r.acc[rule].mean == (gold == 0) && r.diff[rule].mean == 0 && r.same[rule] == 1);
    }
}

/* A context that is too long loses its beginning, and nothing else. */
static void test_cut(struct workspace *w)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    struct err e = {0};
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    char *text = mem_calloc(8192, 1), *at = text;
    for (int i = 0; i < 2500; i++)
        *at++ = "0123456789"[i % 10]; /* a token a digit */
    strcpy(at, "\n0\na\nb\nc\nd\n");
    struct task_options o = {.file = write_file("cut.txt", text), .task = CHOICE_HELLASWAG};
    struct task_result r;
    CHECK_OK(eval_task(g, NULL, t, &o, NULL, &r, &e), e);
    CHECK(r.n == 1 && r.truncated == 1);
    memset(text, 'z', 2500); /* now the first ending is too long */
    memcpy(text, "x\n0\n", 4);
    strcpy(text + 2500, "\nb\nc\nd\n");
    CHECK(eval_task(
              g, NULL, t,
              &(struct task_options){.file = write_file("cut.txt", text), .task = CHOICE_HELLASWAG},
              NULL, &r, &e) == ERR_LIMIT &&
              strstr(e.text, "question 1"),
          "%s", e.text);
    free(text);
}

struct stop {
    int left, partial;
};
static bool count_down(void *user, const char *phase, double done, double total)
{
    struct stop *s = user;
    CHECK(phase[0] && done >= 0 && done <= total, "%s %g/%g", phase, done, total);
    return s->left-- > 0;
}
static void partial(void *user, const struct task_result *r)
{
    struct stop *s = user;
    CHECK(r->n > 0 && r->n <= r->total && r->acc[0].mean >= 0);
    s->partial++;
}

static void test_cancel(struct workspace *w)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    struct err e = {0};
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    struct stop s = {45, 0};
    struct progress p = {count_down, &s};
    struct task_options o = {.file = write_file("hellaswag_many.txt", task_text()),
                             .task = CHOICE_HELLASWAG,
                             .partial = partial,
                             .user = &s};
    struct task_result r;
    CHECK(eval_task(g, NULL, t, &o, &p, &r, &e) == ERR_CANCELLED && r.n == 0);
    CHECK(s.partial >= 1 && s.left == -1, "%d %d", s.partial, s.left);
}

/* ---- perplexity: what came to the means ---- */

static void test_positions(struct workspace *w, struct workspace *other)
{
    const struct engine *g = workspace_engine(w, SIDE_ORIGINAL);
    const struct engine *h = workspace_engine(other, SIDE_ORIGINAL);
    struct err e = {0};
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    struct eval_options o = {
        .file = write_file("ppl.txt", task_text()), .protocol = EVAL_HF, .ctx = 100, .windows = 4};
    struct eval_result r;
    long long tokens = 0;
    double sum = 0, against = 0;
    CHECK_OK(eval_ppl(g, h, t, &o, NULL, &r, &e), e);
    CHECK(r.n_bin == EVAL_BINS && r.bin[0].from == 1 && r.bin[EVAL_BINS - 1].to == 101);
    for (int i = 0; i < r.n_bin; i++) {
        const struct eval_bin *b = &r.bin[i];
        CHECK(i == 0 || b->from == r.bin[i - 1].to);
        /* The last position of a window feeds no scored token. */
        CHECK(b->tokens == 4 * (b->to - b->from - (b->to == 101)), "bin %d: %lld", i, b->tokens);
        tokens += b->tokens;
        sum += b->nll * (double)b->tokens;
        against += b->nll_against * (double)b->tokens;
        CHECK(b->kl > 0);
    }
    CHECK(tokens == r.tokens && r.tokens == 4 * 99);
    /* The same fp64 numbers summed in another order. */
    CHECK(fabs(sum / (double)tokens - log(r.ppl)) < 1e-10);
    CHECK(fabs(against / (double)tokens - log(r.ppl_against)) < 1e-10);
    CHECK(fabs(r.nll_diff - (log(r.ppl) - log(r.ppl_against))) < 1e-10);
    CHECK(r.nll_diff_err > 0 && r.ppl_err_windows > 0 && r.nll_diff_err_windows > 0);
    CHECK(r.kl_p50 <= r.kl_p90 && r.kl_p90 <= r.kl_p95 && r.kl_p95 <= r.kl_p99);
    CHECK(r.kl_p99 <= r.kl_max && r.kl_mean < r.kl_max);
    CHECK(fabs(r.same_top1_err - sqrt(r.same_top1 * (1 - r.same_top1) / (4 * 100 - 1))) < 1e-12);
    o.windows = 1;
    CHECK_OK(eval_ppl(g, NULL, t, &o, NULL, &r, &e), e);
    CHECK(isnan(r.ppl_err_windows) && isnan(r.bin[3].kl) && !r.compared);
}

/* ---- kept results ---- */

static struct eval_record task_record(void)
{
    struct eval_record r = {.kind = EVAL_TASK, .limit = 50, .when_sec = 1700000000};
    snprintf(r.file, sizeof r.file, "/texts/arc.json");
    r.task = (struct task_result){.task = CHOICE_ARC, .n = 50, .total = 50, .compared = true};
    for (int i = 0; i < TASK_RULES; i++) {
        r.task.acc[i] = (struct task_rate){0.5 + 0.01 * i, 0.07};
        r.task.acc_against[i] = (struct task_rate){0.6, 0.06};
        r.task.diff[i] = (struct task_rate){-0.1 + 0.01 * i, 0.05};
        r.task.same[i] = 0.8;
    }
    return r;
}

static void test_record(void)
{
    struct eval_record r = task_record(), back;
    struct err e = {0};
    cJSON *o = eval_record_json(&r);
    const cJSON *ci = json_get(o, "diff_ci95");
    CHECK_OK(eval_record_parse(&back, o, "record", &e), e);
    CHECK(eval_record_same(&r, &back) && back.when_sec == r.when_sec && back.task.n == 50);
    CHECK(!memcmp(back.task.diff, r.task.diff, sizeof r.task.diff));
    CHECK(!memcmp(back.task.acc, r.task.acc, sizeof r.task.acc));
    /* −0.1 ± 1.96 · 0.05 */
    CHECK(fabs(ci->child->valuedouble + 0.198) < 1e-4 &&
          fabs(ci->child->next->valuedouble + 0.002) < 1e-4);
    cJSON_Delete(o);
    back.limit = 0;
    CHECK(!eval_record_same(&r, &back));
    char *csv = eval_record_csv(&r);
    CHECK(csv && strstr(csv, "arc,50,acc_norm,0.51,0.07,0.6,0.06,-0.09,0.05,0.8\n"), "%s", csv);
    free(csv);

    struct eval_record p = {.kind = EVAL_PPL, .ctx = 64, .protocol = EVAL_LLAMACPP};
    p.ppl = (struct eval_result){.ppl = 12.5,
                                 .ppl_err = 0.5,
                                 .tokens = 100,
                                 .windows = 2,
                                 .ppl_err_windows = NAN,
                                 .n_bin = 2};
    p.ppl.bin[1] = (struct eval_bin){.from = 33, .to = 65, .tokens = 50, .nll = 2.5, .kl = NAN};
    o = eval_record_json(&p);
    CHECK_OK(eval_record_parse(&back, o, "record", &e), e);
    CHECK(eval_record_same(&p, &back) && back.ppl.ppl == 12.5 && isnan(back.ppl.ppl_err_windows));
    CHECK(back.ppl.n_bin == 2 && back.ppl.bin[1].nll == 2.5 && isnan(back.ppl.bin[1].kl));
    cJSON_Delete(o);
    static const char *const bad[] = {
        "{}", "{\"kind\": \"perplexity\"}", "[]",
        "{\"kind\": \"perplexity\", \"protocol\": \"hf\", \"ctx\": -1}",
        "{\"kind\": \"multiple_choice\", \"task\": \"arc\", \"n\": 1e99}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_OK(json_parse(&o, bad[i], strlen(bad[i]), "bad", &e), e);
        CHECK(eval_record_parse(&back, o, "bad", &e) != 0, "%s", bad[i]);
        cJSON_Delete(o);
    }
}

static void folder(const char *name, char path[512], const char *fingerprint, const char *kept)
{
    char file[600], text[300];
    struct err e = {0};
    snprintf(path, 512, "%s/%s", test_tmpdir(), name);
    CHECK_OK(file_mkdirs(path, &e), e);
    snprintf(file, sizeof file, "%s/mlathe.json", path);
    snprintf(text, sizeof text,
             "{\"base\": {\"fingerprint\": \"%s\"}, \"plan\": {\"method\": "
             "{\"name\": \"mlathe\", \"layout\": \"own\"}}, \"report\": {\"kept\": %s}}",
             fingerprint, kept);
    CHECK_OK(file_save(file, text, strlen(text), &e), e);
}

static void test_store(void)
{
    char a[512], b[512], c[512], file[600];
    struct err e = {0};
    struct eval_list list;
    struct eval_record r = task_record();
    folder("all/a", a, "f1", "0.25");
    folder("all/b", b, "f1", "0.5");
    folder("all/c", c, "f2", "0.5");
    CHECK_OK(eval_list_load(&list, a, &e), e);
    CHECK(list.n == 0);
    CHECK_OK(eval_store(a, &r, &e), e);
    r.task.n = 49;
    CHECK_OK(eval_store(a, &r, &e), e); /* the same measurement again */
    r.limit = 10;
    CHECK_OK(eval_store(a, &r, &e), e);
    CHECK_OK(eval_store(b, &r, &e), e);
    CHECK_OK(eval_store(c, &r, &e), e);
    CHECK_OK(eval_list_load(&list, a, &e), e);
    CHECK(list.n == 2 && list.r[0].task.n == 49 && list.r[1].limit == 10, "%zu", list.n);
    eval_list_free(&list);

    struct eval_sibling *s;
    size_t n;
    char parent[512];
    snprintf(parent, sizeof parent, "%s/all", test_tmpdir());
    CHECK_OK(
        eval_siblings(&s, &n, (const char *const[]){a, NULL, "/nonexistent"}, 3, parent, "f1", &e),
        e);
    CHECK(n == 2 && s[0].kept == 0.5 && s[1].kept == 0.25 && s[1].list.n == 2, "%zu", n);
    eval_siblings_free(s, n);

    folder("all/a", a, "f1", "0.75"); /* converted anew: the old results are of something else */
    CHECK_OK(eval_list_load(&list, a, &e), e);
    CHECK(list.n == 0);
    snprintf(file, sizeof file, "%s/evaluations.json", b);
    CHECK_OK(file_save(file, "{\"mlathe_eval", 13, &e), e);
    CHECK(eval_store(b, &r, &e) == ERR_FORMAT); /* not understood: left alone */
    char *text = NULL;
    CHECK_OK(file_read(file, 100, &text, NULL, &e), e);
    CHECK(text && !strcmp(text, "{\"mlathe_eval"));
    free(text);
    CHECK(eval_list_load(&list, b, &e) == ERR_FORMAT && list.n == 0);
}

/* The default model, where it is: sums that llama.cpp b9190 gave to the same first questions, every
 * answer a fresh sequence. */
enum { ORACLE_N = 4 };
static const double oracle[ORACLE_N][4] = {{-23.4781, -34.1142, -32.3927, -29.2437},
                                           {-15.3694, -16.4873, -15.2011, -21.6066},
                                           {-20.8696, -24.7652, -22.7268, -19.8143},
                                           {-12.6863, -11.5436, -12.5463, -10.6958}};
static void test_real(void)
{
    const char *home = getenv("HOME"), *questions = test_data("eval/ARC-Easy.test.json");
    char path[600], file[600], csv[600];
    struct err e = {0};
    struct workspace *w;
    struct workspace_options wo = {.device = "cpu", .threads = 2, .exact = true};
    snprintf(path, sizeof path, "%s/.local/share/mlathe/models/SmolLM2-135M-Instruct.Q4_1.gguf",
             home ? home : "");
    if (!questions || !file_exists(path)) {
        printf("skipped: ARC on the default model (no model or no test data)\n");
        return;
    }
    snprintf(file, sizeof file, "%s", questions);
    snprintf(csv, sizeof csv, "%s/arc.csv", test_tmpdir());
    CHECK_OK(workspace_new(&w, &wo, &e), e);
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    struct task_options o = {.file = file, .task = CHOICE_ARC, .limit = 4, .csv = csv};
    struct task_result r;
    const struct tokenizer *t = workspace_tokenizer(w, &e);
    CHECK_OK(eval_task(workspace_engine(w, SIDE_ORIGINAL), NULL, t, &o, NULL, &r, &e), e);
    char *text = NULL;
    CHECK_OK(file_read(csv, 1 << 20, &text, NULL, &e), e);
    char *at = text;
    for (size_t i = 0; i < ORACLE_N; i++) {
        int index, gold, pick[3], n = 0;
        at = strchr(at, '\n') + 1;
        CHECK(sscanf(at, "%d,%d,%d,%d,%d,%n", &index, &gold, pick, pick + 1, pick + 2, &n) == 5);
        for (int k = 0; k < 4; k++) {
            double got = strtod(at + n, &at);
            n = 1;
            /* The stock engine rounds activations to 8 bits for this file type: over 50 questions
             * the sums (10 … 50 nats) differ by 0.2 on average and 0.8 at most. Another token
             * boundary or a lost token would be whole nats. */
            CHECK(fabs(got - oracle[i][k]) < 0.8, "question %zu, answer %d: %g, stock %g", i + 1, k,
                  got, oracle[i][k]);
        }
    }
    free(text);
    workspace_free(w);
}

int main(void)
{
    struct workspace *w = open_tiny("one", 1), *other = open_tiny("two", 5);
    test_readers();
    test_hostile();
    test_mutated();
    test_published();
    test_prefill_many(workspace_engine(w, SIDE_ORIGINAL));
    test_scores(w, other);
    test_winogrande(w);
    test_ties(w);
    test_cut(w);
    test_cancel(w);
    test_positions(w, other);
    test_record();
    test_store();
    workspace_free(w);
    workspace_free(other);
    test_real();
    return test_end("task");
}

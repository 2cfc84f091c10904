/* Healing end to end on a tiny model: the KL falls and never ends worse, stopping and killing
 * change nothing, healed conversions reload, and what cannot be healed is refused with the last
 * good state kept. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/file.h"
#include "core/json.h"
#include "core/rankplan.h"
#include "kernels/backend.h"
#include "sessions/heal.h"
#include "sessions/heal_text.h"
#include "sessions/workspace.h"
#include "tests/support.h"
#include "tests/support_models.h"

static char base[600], text[600], other_text[600], converted[600], other[600];

static const char *in_tmp(char *to, const char *name)
{
    snprintf(to, 600, "%s/%s", test_tmpdir(), name);
    return to;
}

/* Words in an order of their own. */
static void write_text(const char *path, uint64_t seed, size_t size)
{
    static const char *const words[] = {"the ",    "lathe ", "turns ", "a ",
                                        "head ",   "into ",  "two ",   "rope ",
                                        "waters ", "slow, ", "then ",  "it stops.\n"};
    struct err e = {0};
    char *s = malloc(size + 16);
    size_t n = 0;
    while (n < size) {
        const char *w = words[(size_t)(test_uniform(&seed) * 12)];
        memcpy(s + n, w, strlen(w));
        n += strlen(w);
    }
    CHECK_OK(file_save(path, s, n, &e), e);
    free(s);
}

static struct workspace *open_at(const char *path)
{
    struct err e = {0};
    struct workspace *w = NULL;
    struct workspace_options o = {.device = "cpu", .threads = 2, .exact = true};
    CHECK_OK(workspace_new(&w, &o, &e), e);
    CHECK_OK(workspace_open(w, path, NULL, &e), e);
    return w;
}

static void convert(const char *from, int rank, const char *to)
{
    struct err e = {0};
    struct workspace *w = open_at(from);
    const char *files[] = {text};
    struct calib_options c = {.files = files, .n_files = 1, .tokens = 2048, .seed = 1};
    struct model_info info;
    struct rankplan plan;
    struct conversion_report report = {0};
    workspace_info(w, &info);
    CHECK_OK(workspace_calibrate(w, &c, NULL, NULL, NULL, &e), e);
    CHECK_OK(rankplan_init(&plan, &info.plan_model, &e), e);
    for (int l = 0; l < info.n_layer; l++)
        plan.layer[l] = (struct plan_layer){rank, 4};
    CHECK_OK(workspace_convert(w, &plan, NULL, NULL, &report, &e), e);
    CHECK_OK(workspace_save(w, to, &e), e);
    conversion_report_done(&report);
    rankplan_done(&plan);
    workspace_free(w);
}

static struct heal_options usual(const char *dir)
{
    return (struct heal_options){.tokens = 32 * 40,
                                 .length = 32,
                                 .batch = 64,
                                 .held_out = 256,
                                 .seed = 7,
                                 .rate = 3e-3,
                                 .dir = dir,
                                 .checkpoint_sec = -1};
}

/* What happened, and when to stop. */
struct watch {
    long long stop_at, steps;
    char notes[2000];
};

static bool watching(void *user, const char *phase, double done, double total)
{
    const struct watch *w = user;
    (void)phase, (void)done, (void)total;
    return !w->stop_at || w->steps < w->stop_at;
}

static void stepped(void *user, const struct heal_point *p)
{
    struct watch *w = user;
    w->steps = p->step;
}

static void noted(void *user, const char *s)
{
    struct watch *w = user;
    strncat(w->notes, s, sizeof w->notes - strlen(w->notes) - 2);
    strcat(w->notes, "\n");
}

/* Heals `from` with file; the error's sentence in e. */
static int heal(const char *from, const char *file, const struct heal_options *o, struct watch *w,
                struct heal_report *r, struct err *e)
{
    struct workspace *space = open_at(from);
    struct heal_sink sink = {stepped, noted, w};
    struct progress p = {watching, w};
    bool changed;
    int rc = workspace_heal(space, o, &file, file ? 1 : 0, &sink, &p, r, &changed, e);
    CHECK(changed == (rc == OK || (rc == ERR_CANCELLED && r->n)), "changed after %d", rc);
    workspace_free(space);
    return rc;
}

static float *logits(const char *path)
{
    struct err e = {0};
    struct workspace *w = open_at(path);
    struct infer *t = NULL;
    const struct engine *g =
        workspace_engine(w, workspace_has_conversion(w) ? SIDE_CONVERTED : SIDE_ORIGINAL);
    float *out = calloc(24 * 320, sizeof *out);
    int32_t ids[24];
    for (int i = 0; i < 24; i++)
        ids[i] = (i * 37 + 5) % 256;
    CHECK_OK(infer_new(&t, g, 24, DTYPE_F32, &e), e);
    CHECK_OK(infer_prefill(t, ids, 24, INFER_ALL, out, NULL, &e), e);
    infer_free(t);
    workspace_free(w);
    return out;
}

/* Same steps and KLs up to fp32 rounding (none: the same operations in the same order). */
static void check_curves(const struct heal_report *a, const struct heal_report *b, const char *what)
{
    CHECK(a->n == b->n && a->steps == b->steps && a->tokens == b->tokens,
          "%s: %zu points of %lld "
          "steps, not %zu of %lld",
          what, a->n, a->steps, b->n, b->steps);
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        double off = fabs(a->curve[i].held_kl - b->curve[i].held_kl);
        bool trained = !isnan(b->curve[i].train_kl); /* neither before nor by least squares */
        double train = trained ? fabs(a->curve[i].train_kl - b->curve[i].train_kl) : 0;
        CHECK(off <= 1e-9 * b->curve[i].held_kl && train <= 1e-6 &&
                  trained == !isnan(a->curve[i].train_kl),
              "%s: point %zu is off by %g, %g", what, i, off, train);
    }
}

static void test_heals(struct heal_report *want)
{
    struct err e = {0};
    char dir[600], again[600];
    struct watch w = {0};
    struct heal_options o = usual(in_tmp(dir, "healed"));
    CHECK_OK(heal(converted, text, &o, &w, want, &e), e);
    printf("KL %.4f -> %.4f in %lld steps, %zu measurements; %s\n", want->kl_before, want->kl_after,
           want->steps, want->n, want->end);
    /* A random model on random words has little to learn, but something. */
    CHECK(want->kl_after < 0.97 * want->kl_before, "KL %g of %g", want->kl_after, want->kl_before);
    CHECK(want->tokens >= o.tokens && want->tokens_per_sec > 0, "%lld tokens", want->tokens);
    CHECK(!heal_unfinished(dir), "a checkpoint is left");
    float *before = logits(converted), *after = logits(dir), *original = logits(base);
    double was = test_nmse(before, original, 24 * 320), is = test_nmse(after, original, 24 * 320);
    CHECK(memcmp(before, after, 24 * 320 * sizeof *before), "the folder is not healed");
    printf("logits apart %.4f -> %.4f\n", was, is);
    free(before);
    free(after);
    free(original);
    /* A second healing goes on from the first, and the history holds both. */
    struct heal_report more = {0};
    o.dir = in_tmp(again, "healed again");
    o.parts = 1u << HEAL_KV_B | 1u << HEAL_Q;
    o.mix = 0.1;
    o.match = 0.1;
    o.accumulate = 2;
    CHECK_OK(heal(dir, text, &o, &w, &more, &e), e);
    CHECK(more.kl_after <= more.kl_before && fabs(more.kl_before - want->kl_after) < 1e-4,
          "second healing: %g -> %g", more.kl_before, more.kl_after);
    char json[700];
    cJSON *root = NULL;
    snprintf(json, sizeof json, "%s/mlathe.json", again);
    CHECK_OK(json_read_file(&root, json, 1 << 24, &e), e);
    const cJSON *list = json_get(root, "healing");
    CHECK(cJSON_GetArraySize(list) == 2, "%d healings in the history", cJSON_GetArraySize(list));
    const cJSON *lines = json_get(list ? list->child : NULL, "text_lines");
    CHECK(cJSON_IsString(lines) && heal_lines_shared(lines->valuestring, text) == 1 &&
              heal_lines_shared(lines->valuestring, other_text) < 0.6,
          "lines of the text: %g of the same, %g of another",
          heal_lines_shared(lines->valuestring, text),
          heal_lines_shared(lines->valuestring, other_text));
    cJSON_Delete(root);
    struct workspace *space = open_at(again);
    CHECK(workspace_healed_on(space, text) == 1 && workspace_healed_on(space, other_text) < 0.6,
          "the text is known by %g, another by %g", workspace_healed_on(space, text),
          workspace_healed_on(space, other_text));
    workspace_free(space);
    heal_report_done(&more);
}

/* Stopped in mid-step, then called again: before a measurement of the training, and after one. */
static void test_stop(const struct heal_report *want, int at, const char *name)
{
    struct err e = {0};
    char dir[600], words[64];
    struct watch w = {.stop_at = at};
    struct heal_report r = {0};
    struct heal_options o = usual(in_tmp(dir, name));
    CHECK(heal(converted, text, &o, &w, &r, &e) == ERR_CANCELLED, "not stopped: %s", e.text);
    CHECK(r.steps == at && r.kl_after <= r.kl_before, "stopped after %lld steps", r.steps);
    char *left = heal_unfinished(dir);
    CHECK(left, "no checkpoint");
    free(left);
    free(logits(dir)); /* opens: the best so far */
    heal_report_done(&r);
    w.stop_at = 0;
    CHECK_OK(heal(converted, text, &o, &w, &r, &e), e);
    snprintf(words, sizeof words, "going on after step %d", at);
    CHECK(r.resumed && strstr(w.notes, words), "not resumed: %s", w.notes);
    check_curves(&r, want, "stopped and resumed");
    heal_report_done(&r);
}

/* Killed at some moment, three times. */
static void test_kill(const struct heal_report *want)
{
    struct err e = {0};
    char dir[600], state[700];
    struct watch w = {0};
    struct heal_report r = {0};
    struct heal_options o = usual(in_tmp(dir, "killed"));
    snprintf(state, sizeof state, "%s/heal.json", dir);
    int kills = 0;
    for (int i = 0; i < 3; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            heal(converted, text, &o, &w, &r, &e);
            _exit(0);
        }
        int status = 0;
        for (int ms = 0; ms < 20000 && !file_exists(state); ms++) /* until there is something */
            usleep(1000);
        usleep(30000 + 40000 * i);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        kills += WIFSIGNALED(status);
        if (!WIFSIGNALED(status))
            break;
        free(logits(dir));
    }
    printf("killed %d times\n", kills);
    if (!file_exists(state)) /* it was through before the last blow: nothing to go on with */
        return;
    CHECK_OK(heal(converted, text, &o, &w, &r, &e), e);
    CHECK(r.resumed, "not resumed");
    check_curves(&r, want, "killed and resumed");
    heal_report_done(&r);
}

static void refused(int status, const char *sentence, int rc, const struct err *e)
{
    CHECK(rc == status && strstr(e->text, sentence), "status %d, \"%s\" instead of \"%s\"", rc,
          e->text, sentence);
}

static void test_refusals(void)
{
    struct err e = {0};
    char dir[600], path[600];
    struct watch w = {.stop_at = 2};
    struct heal_report r = {0};
    struct heal_options o = usual(in_tmp(dir, "refused"));
    in_tmp(path, "short.txt");
    CHECK_OK(file_save(path, "a few words", 11, &e), e);
    refused(ERR_ARG, "11 bytes of text are less than", heal(converted, path, &o, &w, &r, &e), &e);
    CHECK(!file_exists(dir), "a refused run wrote something");
    refused(ERR_IO, "none.txt", heal(converted, in_tmp(path, "none.txt"), &o, &w, &r, &e), &e);
    refused(ERR_ARG, "nothing to heal", heal(base, text, &o, &w, &r, &e), &e);
    o.dir = converted;
    refused(ERR_ARG, "is the conversion to heal", heal(converted, text, &o, &w, &r, &e), &e);
    /* A checkpoint goes on with its own conversion, text and options only. */
    o.dir = dir;
    CHECK(heal(converted, text, &o, &w, &r, &e) == ERR_CANCELLED, "not stopped: %s", e.text);
    heal_report_done(&r);
    w.stop_at = 0;
    refused(ERR_MISMATCH, "of another conversion", heal(other, text, &o, &w, &r, &e), &e);
    refused(ERR_MISMATCH, "other text", heal(converted, other_text, &o, &w, &r, &e), &e);
    o.seed = 8;
    refused(ERR_MISMATCH, "with seed 7, not 8", heal(converted, text, &o, &w, &r, &e), &e);
    char *left = heal_unfinished(dir);
    CHECK(left, "a refused run removed the checkpoint");
    CHECK_OK(file_save(left, "{\"mlathe_heal\": 1, \"text\": 5}", 29, &e), e);
    refused(ERR_FORMAT, "text", heal(converted, text, &o, &w, &r, &e), &e);
    free(left);
}

/* Steps so large that the loss is no number: three times back, and the start is kept. */
static void test_no_number(void)
{
    struct err e = {0};
    char dir[600];
    struct watch w = {0};
    struct heal_report r = {0};
    struct heal_options o = usual(in_tmp(dir, "exploded"));
    o.rate = 1e20;
    o.refit_tokens = -1;
    CHECK_OK(heal(converted, text, &o, &w, &r, &e), e);
    CHECK(strstr(r.end, "no number 3 times"), "it ended since %s", r.end);
    CHECK(strstr(w.notes, "back to the best, half the rate"), "notes: %s", w.notes);
    CHECK(r.kl_after == r.kl_before, "KL %g, %g before", r.kl_after, r.kl_before);
    float *a = logits(converted), *b = logits(dir);
    CHECK(!memcmp(a, b, 24 * 320 * sizeof *a), "the start is not kept");
    free(a);
    free(b);
    heal_report_done(&r);
}

/* No room for a checkpoint: the run ends with a sentence and what was there stays. */
static void test_full_disk(void)
{
    struct err e = {0};
    char dir[600];
    struct watch w = {0};
    struct heal_report r = {0};
    struct heal_options o = usual(in_tmp(dir, "full"));
    struct rlimit was, tight = {150 << 10, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &was);
    tight.rlim_max = was.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &tight); /* enough for the conversion, not for Adam's moments */
    int rc = heal(converted, text, &o, &w, &r, &e);
    setrlimit(RLIMIT_FSIZE, &was);
    CHECK(rc && strstr(e.text, "heal-"), "status %d: %s", rc, e.text);
    char *left = heal_unfinished(dir);
    CHECK(!left, "a checkpoint without its weights");
    free(left);
    free(logits(dir)); /* the unhealed conversion is whole */
    heal_report_done(&r);
}

/* Text of its own, and a folder of texts; undo. */
static void test_sources(void)
{
    struct err e = {0};
    char dir[600], one[700];
    struct watch w = {0};
    struct heal_report r = {0};
    struct heal_options o = usual(NULL);
    o.tokens = 256;
    CHECK_OK(heal(converted, NULL, &o, &w, &r, &e), e);
    CHECK(r.kl_after <= r.kl_before, "self: KL %g, %g before", r.kl_after, r.kl_before);
    heal_report_done(&r);
    CHECK_OK(file_mkdirs(in_tmp(dir, "texts/deeper"), &e), e);
    for (int i = 0; i < 5; i++) {
        snprintf(one, sizeof one, "%s/texts/%s%d.txt", test_tmpdir(), i % 2 ? "deeper/" : "", i);
        write_text(one, 50 + (uint64_t)i, 3000);
    }
    CHECK_OK(heal(converted, in_tmp(dir, "texts"), &o, &w, &r, &e), e);
    heal_report_done(&r);
    struct workspace *space = open_at(converted);
    const char *file = text;
    bool changed = false;
    CHECK_OK(workspace_heal(space, &o, &file, 1, NULL, NULL, &r, &changed, &e), e);
    heal_report_done(&r);
    CHECK_OK(workspace_take(space, converted, &e), e);
    CHECK(workspace_take(space, base, &e) != OK && workspace_has_conversion(space),
          "a model is no conversion to go back to");
    workspace_free(space);
}

int main(void)
{
    struct err e = {0};
    struct heal_report want = {0};
    struct test_model_spec spec = test_model_small();
    in_tmp(base, "tiny.gguf");
    CHECK(test_model_write_gguf(base, &spec) == 0, "no model");
    write_text(in_tmp(text, "text.txt"), 11, 40000);
    write_text(in_tmp(other_text, "other.txt"), 12, 40000);
    convert(base, 8, in_tmp(converted, "converted"));
    convert(base, 10, in_tmp(other, "other conversion"));
    (void)e;
    test_heals(&want);
    test_stop(&want, 7, "stopped");
    test_stop(&want, 14, "stopped later");
    test_kill(&want);
    test_refusals();
    test_no_number();
    test_full_disk();
    test_sources();
    heal_report_done(&want);
    return test_end("heal");
}

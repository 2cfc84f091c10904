/* Random keys on the real screens, with jobs starting and being cancelled on a tiny model, hostile
 * pastes and every size of window; now and then the program is left and started again. Nothing may
 * be drawn outside a frame, and memory and descriptors at the end are what they were after the
 * warm-up. test_soak [MINUTES [SEED]]; tests/soak.sh runs it as users have it and under the address
 * sanitizer, which finds errors but whose own records grow: some 200 to 500 bytes for each thread
 * that ever was, never given back. Resident memory is therefore judged without it, what is
 * allocated with it as well. */
#include <dirent.h>
#include <ftw.h>
#include <malloc.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/file.h"
#include "core/utf8.h"
#include "sessions/clock.h"
#include "tests/support.h"
#include "tests/support_app.h"
#include "tests/support_models.h"

#if defined(__SANITIZE_ADDRESS__)
/* Stacks are short and little is held back, for speed. A seed that fails is run again with more:
 * ASAN_OPTIONS=malloc_context_size=30:quarantine_size_mb=64. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "malloc_context_size=2:quarantine_size_mb=4:thread_local_quarantine_size_kb=64:"
           "allocator_release_to_os_interval_ms=500:detect_leaks=1";
}
size_t __sanitizer_get_current_allocated_bytes(void);
void __sanitizer_purge_allocator(void);
static const bool resident_counts = false;
#else
static const bool resident_counts = true;
#endif

static uint64_t seed;

static int pick(int n)
{
    return (int)(test_uniform(&seed) * n);
}

struct level {
    double resident, heap; /* bytes; heap: what is allocated */
    int descriptors;
};

/* What is allocated, after what is free went back to the system. */
static double allocated(void)
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_purge_allocator(); /* what is held back to catch its use as well */
    return (double)__sanitizer_get_current_allocated_bytes();
#else
    malloc_trim(0);
    struct mallinfo2 m = mallinfo2();
    return (double)(m.uordblks + m.hblkhd);
#endif
}

/* Measured where every round stands alike: a fresh start, the model open, nothing running. */
static struct level measure(void)
{
    struct level l = {0};
    long pages = 0, resident = 0;
    l.heap = allocated();
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%ld %ld", &pages, &resident) == 2, "statm");
    if (f)
        fclose(f);
    l.resident = (double)resident * (double)sysconf(_SC_PAGESIZE);
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        l.descriptors++;
    if (d)
        closedir(d);
    return l;
}

/* What came of the jobs: every batch that the app takes is looked at on its way (the linker wraps
 * worker_take). */
enum { JOBS_MAX = 24 };
static struct tally {
    const char *kind;
    int done, stopped, failed;
} tally[JOBS_MAX];

void __real_worker_take(struct worker *w, struct worker_batch *out);
void __wrap_worker_take(struct worker *w, struct worker_batch *out);
void __wrap_worker_take(struct worker *w, struct worker_batch *out)
{
    __real_worker_take(w, out);
    for (const struct event *e = out->events; e; e = e->next) {
        if (e->kind != EVENT_DONE || !e->job_kind)
            continue;
        struct tally *t = tally;
        while (t->kind && strcmp(t->kind, e->job_kind->name) != 0 && t < tally + JOBS_MAX - 1)
            t++;
        t->kind = e->job_kind->name;
        *(e->status == OK ? &t->done : e->status == ERR_CANCELLED ? &t->stopped : &t->failed) += 1;
    }
}

/* Each kind of work that users wait for has come to its end at least once. */
static bool everything_was_used(void)
{
    static const struct job_kind *const kinds[] = {
        &job_load,        &job_spectra, &job_calibrate, &job_convert, &job_chat,
        &job_sensitivity, &job_search,  &job_eval,      &job_export,  &job_heal};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct tally *t = tally;
        while (t->kind && strcmp(t->kind, kinds[i]->name) != 0)
            t++;
        if (!t->kind || !t->done)
            return false;
    }
    return true;
}

static void print_tally(void)
{
    for (const struct tally *t = tally; t < tally + JOBS_MAX && t->kind; t++)
        printf("%-12s %6d done %6d stopped %6d failed\n", t->kind, t->done, t->stopped, t->failed);
}

/* Every cell holds one character that may be shown, wide ones have their other half, and the cursor
 * is on the screen. */
static void check_frame(const struct screen *s)
{
    bool fine = s->cursor_row >= -1 && s->cursor_row < s->rows && s->cursor_col < s->cols;
    for (int i = 0; i < s->rows * s->cols; i++) {
        const struct cell *c = &s->cell[i];
        size_t n = strnlen(c->text, sizeof c->text);
        fine = fine && n < sizeof c->text && (n > 0) == (c->width > 0) && c->role < ROLE_COUNT &&
               (unsigned char)c->text[0] != 127 && (!n || (unsigned char)c->text[0] >= 32) &&
               utf8_valid(c->text, n) && (!s->ascii || (unsigned char)c->text[0] < 127);
        if (c->width == 2)
            fine = fine && i % s->cols + 1 < s->cols && c[1].width == 0;
        else if (c->width == 0)
            fine = fine && i % s->cols > 0 && c[-1].width == 2;
    }
    CHECK(fine, "a frame of %dx%d", s->cols, s->rows);
}

static const char *const answers[] = {
    "~/calib.txt",
    "50%",
    "12%",
    "64",
    "8",
    "8192x4 24GiB",
    "~/a.json",
    "~/out",
    "256 tokens",
    "kl 0.1 ~/calib.txt",
    "nonsense",
    "-1",
    "99999999999999999999",
    "~/data/models/tiny.gguf", /* also as the name of what is written */
    "24GiB,8192x16",
    "~/b.csv",
    "16",
    "0",
    "2-5",
    "/set max_tokens 9",
    "/system be \xe4\xb8\xad\xf0\x9f\xa6\x99",
    "/regen",
    "/undo",
    "/clear",
    "/save ~/chat.json",
    "/load ~/chat.json",
    "/export ~/chat.md",
    "/stats",
    "/help",
    "/nothing",
    "tell me",
    "\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9 \xe2\x80\xae hidden \x1b[2J\x07 \xff\xfe",
};

static void type(struct app *a)
{
    const char *text = answers[pick((int)(sizeof answers / sizeof *answers))];
    app_key(a, UI_CTRL('u'));
    app_paste(a, text, strlen(text));
    if (pick(4))
        app_key(a, UI_ENTER);
}

static int random_key(const struct app *a)
{
    size_t n;
    const struct binding *table = keys_table(&n);
    enum context where = app_context(a);
    for (int tries = 0; tries < 200; tries++) {
        const struct binding *b = &table[pick((int)n)];
        int key = b->key[pick(BINDING_KEYS)];
        bool leaves = b->request == REQ_QUIT || b->request == REQ_SUSPEND;
        if (key && (b->where & where) && !(leaves && pick(20)))
            return key;
    }
    return UI_ESC;
}

/* What users come for; keys alone hardly ever answer its questions. */
static const struct deed {
    const char *step[8];      /* keys and what is typed then, in turn, to the first NULL */
    const struct deed *first; /* what it takes, done before if it is not there */
    int sec;                  /* to its end, in a sanitizer's build beside others' work */
} calibrating = {{"F2 t", "~/calib.txt"}, NULL, 30}, converting = {{"F2 c"}, NULL, 30},
  deeds[] = {
      {{"F2 t", "~/calib.txt"}, NULL, 30},
      {{"F2 c"}, NULL, 30},
      {{"F2 p"}, &calibrating, 30},
      {{"F2 w"}, &calibrating, 120},
      {{"F3 h", "256 tokens ~/calib.txt"}, &converting, 120},
      {{"F4", "tell me more"}, &converting, 4},
      {{"F5 f", "~/calib.txt", "c", "2", "x", "64", "r"}, &converting, 30},
      {{"F6 Enter", "~/data/exports/e"}, &converting, 4},
      {{"F6 d"}, &converting, 4},
};

static void wait_for(struct app *a, double sec)
{
    for (double until = clock_now() + sec; app_busy(a) && clock_now() < until;) {
        usleep(2000);
        worker_drain(a->worker);
        app_collect(a);
    }
}

static void start(struct app *a, const struct deed *d)
{
    test_app_press(a, app_context(a) & (IN_ASK | IN_HELP) ? "Esc" : "F1");
    for (const char *const *s = d->step; *s; s += s[1] ? 2 : 1) {
        test_app_press(a, s[0]);
        if (s[1] && app_context(a) == IN_TALK)
            test_app_press(a, "Tab");
        if (s[1] && (app_context(a) & IN_TEXT)) {
            app_key(a, UI_CTRL('u'));
            app_paste(a, s[1], strlen(s[1]));
            app_key(a, UI_ENTER);
        }
    }
}

/* Begins one of them; it then runs on under random keys, or is stopped, or is let come to its end.
 */
static void begin(struct app *a)
{
    const struct deed *d = &deeds[pick((int)(sizeof deeds / sizeof *deeds))], *first = d->first;
    if (first && !(first == &calibrating ? a->calibrated : a->has_conversion)) {
        start(a, first);
        wait_for(a, first->sec);
    }
    start(a, d);
    int then = pick(4);
    if (then)
        wait_for(a, then < 3 ? d->sec : 0.2 * test_uniform(&seed));
    if (then == 3)
        app_key(a, UI_ESC);
}

static void press(struct app *a, struct screen *s)
{
    int kind = pick(100);
    if (kind < 3)
        screen_resize(s, 1 + pick(pick(2) ? 100 : 25), 1 + pick(pick(2) ? 400 : 90));
    else if (kind < 4)
        s->ascii = !s->ascii;
    else if (kind < 12 && (app_context(a) & IN_TEXT))
        type(a);
    else if (kind < 18)
        app_key(a, 32 + pick(pick(3) ? 95 : 0x2fff));
    else if (kind < 19)
        app_key(a, pick(UI_LAST + 10) | (pick(9) ? 0 : UI_ALT));
    else
        app_key(a, random_key(a));
    if (pick(5) == 0) {
        worker_drain(a->worker);
        app_collect(a);
    }
    if (pick(60) == 0)
        usleep((unsigned)pick(60000)); /* jobs get somewhere */
    app_save(a, false);
    app_draw(a, s);
    check_frame(s);
    a->suspend = false;
}

static int drop(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st, (void)kind;
    if (where->level > 0)
        remove(path);
    return 0;
}

/* The disk is not what is measured: what rounds leave there would be listed, longer and longer. */
static void clear_disk(void)
{
    static const char *const folders[] = {"data/conversions", "data/plans", "data/chats",
                                          "data/exports", "state"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", test_tmpdir(), folders[i]);
        nftw(path, drop, 16, FTW_DEPTH | FTW_PHYS);
    }
}

/* The model and the text, which random answers may have replaced. */
static void write_inputs(void)
{
    struct test_model_spec spec = test_model_small();
    char path[400], text[40000];
    struct err e = {0};
    uint64_t words = 1;
    size_t n = 0;
    snprintf(path, sizeof path, "%s/data/models/tiny.gguf", test_tmpdir());
    CHECK_OK(file_mkdirs("data/models", &e), e);
    CHECK(test_model_write_gguf(path, &spec) == 0);
    while (n < sizeof text - 20) {
        double u = test_uniform(&words);
        n += (size_t)snprintf(text + n, 20, "%s ", u < .5 ? "stone" : u < .75 ? "the" : "river.\n");
    }
    CHECK_OK(file_save("calib.txt", text, n, &e), e);
}

/* Leaves and starts again. */
static void start_again(struct app *a, bool fresh)
{
    char path[400];
    struct ui_options o = {.device = "cpu", .threads = 1, .rows = 24, .cols = 80};
    struct err e = {0};
    snprintf(path, sizeof path, "%s/data/models/tiny.gguf", test_tmpdir());
    o.model = fresh ? path : NULL;
    app_done(a);
    if (fresh) {
        clear_disk();
        write_inputs();
    }
    CHECK_OK(app_init(a, &o, &e), e);
    if (fresh) {
        test_app_settle(a);
        CHECK(a->has_model && a->ranks.has_plan, "the model is not open: %s", a->message);
    }
}

static void prepare(void)
{
    setenv("HOME", test_tmpdir(), 1);
    setenv("MLATHE_HOME", test_tmpdir(), 1);
    CHECK(chdir(test_tmpdir()) == 0, "folder");
}

int main(int argc, char **argv)
{
    double minutes = argc > 1 ? atof(argv[1]) : 0.1;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t first_seed = seed;
    struct app a = {.lock = -1};
    struct screen s;
    struct err e = {0};
    struct level warm = {0}, now = {0};
    long keys = 0;
    int rounds = 0, warm_round = 0;
    mem_return_freed(); /* as the program does */
    prepare();
    CHECK_OK(screen_init(&s, 24, 80, false, &e), e);
    start_again(&a, true);
    double start = clock_now(), end = start + 60 * minutes, slow = 0;
    double round_sec = 60 * minutes / 20;
    for (double next = start + round_sec; clock_now() < end && !test_failures;) {
        if (pick(150) == 0)
            begin(&a);
        double before = clock_now();
        press(&a, &s);
        double took = clock_now() - before;
        slow = took > slow ? took : slow;
        keys++;
        if (a.quit)
            start_again(&a, false);
        if (clock_now() < next)
            continue;
        next = clock_now() + round_sec;
        screen_resize(&s, 24, 80);
        start_again(&a, true);
        now = measure();
        if (++rounds >= 5 && !warm_round && everything_was_used()) {
            warm = now;
            warm_round = rounds;
        }
        if (minutes >= 1)
            printf("%s%6.0f s  %8ld keys  %6.1f MiB, %.3f of them allocated  %d descriptors\n",
                   warm_round == rounds ? "warm " : "     ", clock_now() - start, keys,
                   now.resident / 0x1p20, now.heap / 0x1p20, now.descriptors);
        fflush(stdout);
    }
    app_done(&a);
    screen_done(&s);
    printf("seed %llu: %ld keys in %.0f s (%.0f s of processor), slowest %.0f ms; warm %.1f MiB, "
           "end %.1f MiB\n",
           (unsigned long long)first_seed, keys, clock_now() - start,
           (double)clock() / CLOCKS_PER_SEC, 1e3 * slow, warm.resident / 0x1p20,
           now.resident / 0x1p20);
    print_tally();
    if (minutes >= 10 && !test_failures) { /* less is all warm-up */
        CHECK(warm_round && warm_round <= rounds / 2,
              "half of the time was not enough for everything to be used");
        CHECK(!resident_counts || now.resident <= 1.05 * warm.resident, "resident memory grew");
        CHECK(now.heap <= 1.05 * warm.heap, "allocated memory grew");
        CHECK(now.descriptors <= warm.descriptors, "%d descriptors, %d after the warm-up",
              now.descriptors, warm.descriptors);
    }
    return test_end("soak");
}

/* Golden screens: playing scripts without a terminal, workspaces for them, and what of a screen
 * stays the same when the method's results change. */
#include "tests/support_screens.h"

#include <fcntl.h>
#include <unistd.h>

#include "core/file.h"
#include "tests/support.h"
#include "ui/ui.h"

/* True for what stays: no digits, signs and points, no braille, no bars; runs of blanks and of
 * lines count as one. */
static bool stays(const unsigned char *s, size_t n, const char *out, size_t k)
{
    bool blank = k > 0 && out[k - 1] == ' ';
    bool rule = k > 2 && memcmp(out + k - 3, "\xe2\x94\x80", 3) == 0;
    if (n == 1)
        return !strchr("0123456789.%+-()#", s[0]) && !(s[0] == ' ' && (blank || rule));
    if (n == 3 && s[0] == 0xe2 && (s[1] >= 0xa0 || s[1] == 0x96 || s[1] == 0x97))
        return s[1] == 0x96 && s[2] >= 0xb0; /* ▶ is a mark, bars and dots are not */
    return !(rule && memcmp(s, "\xe2\x94\x80", 3) == 0);
}

/* A row inside a box that is neither the prompt ("> ") nor its continuation: an answer, or empty.
 */
static bool is_answer(const char *row)
{
    bool ascii = strncmp(row, "| ", 2) == 0;
    const char *at = row + (ascii ? 2 : 4);
    if (!ascii && strncmp(row, "\xe2\x94\x82 ", 4) != 0)
        return false;
    return *at != '>' && !(at[0] == ' ' && at[1] == ' ' && at[2] != ' ');
}

static bool holds(const char *row, size_t n, const char *what)
{
    const char *at = strstr(row, what);
    return at && at < row + n;
}

char *screens_words(const char *name, const char *text, size_t n)
{
    char *out = mem_calloc(n + 1, 1);
    bool chat = strstr(name, "chat") != NULL, plot = false;
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        const char *row = text + i;
        size_t end = i + strcspn(row, "\n");
        /* Comparisons of two answers, and answers, come and go with the method. */
        bool answer = chat && is_answer(row);
        if (answer)
            end = i;
        else if (chat && (strncmp(row, " free", 5) == 0 || strncmp(row, " forced", 7) == 0))
            end = i + 4;
        /* A plot in ASCII has marks that are words' too. */
        size_t row_end = i + strcspn(row, "\n");
        if (plot)
            end = i;
        plot = holds(row, row_end - i, "by position") ||
               (plot && !holds(row, row_end - i, " tokens "));
        while (i < end) {
            unsigned char c = (unsigned char)text[i];
            size_t bytes = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
            bool axis = i > 0 && text[i - 1] == '1' && c == 'e';    /* 1e-4 */
            bool cut = bytes == 3 && memcmp(text + i, "┊", 3) == 0; /* hides behind the curve */
            if (!axis && !cut && stays((const unsigned char *)text + i, bytes, out, k)) {
                memcpy(out + k, text + i, bytes);
                k += bytes;
            }
            i += bytes;
        }
        i = (size_t)(row - text) + strcspn(row, "\n") + 1;
        if (!answer)
            out[k++] = '\n';
    }
    return out;
}

char *screens_play(const char *keys, const char *model)
{
    char out[300];
    struct ui_options o = {.model = model, .device = "cpu", .threads = 1, .script = keys};
    struct err e = {0};
    char *text = NULL;
    snprintf(out, sizeof out, "%s/screens.out", test_tmpdir());
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), to = open(out, O_RDWR | O_CREAT | O_TRUNC, 0600);
    dup2(to, STDOUT_FILENO);
    int rc = ui_run(&o, &e);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    close(to);
    CHECK(rc == 0, "%s: %s", keys, e.text);
    CHECK_OK(file_read(out, 64 << 20, &text, NULL, &e), e);
    return text;
}

static void write_text(const char *path)
{
    static const char *const words[] = {"stone", "river", "the",   "of",   "slowly",
                                        "turns", "and",   "under", "lamp", "seven"};
    char *text = mem_calloc(32768, 1);
    size_t n = 0;
    uint64_t seed = 11;
    struct err e = {0};
    while (n < 12000)
        n += (size_t)sprintf(text + n, "%s%s", words[(int)(test_uniform(&seed) * 10)],
                             test_uniform(&seed) < 0.1 ? ".\n" : " ");
    CHECK_OK(file_save(path, text, n, &e), e);
    free(text);
}

static void write_questions(const char *path)
{
    char *text = mem_calloc(32768, 1);
    size_t n = 0;
    struct err e = {0};
    for (int i = 0; i < 12; i++)
        n += (size_t)snprintf(text + n, 32768 - n,
                              "%s{\"instruction\": \"Please choose the correct answer to the "
                              "question: What turns %d times?\\n\\nAnswer1: the stone Answer2: a "
                              "lamp Answer3: seven rivers\\n\\nAnswer format: "
                              "answer1/answer2/answer3\", \"answer\": \"answer%d\"}",
                              i ? ",\n" : "[", i, i % 3 + 1);
    snprintf(text + n, 32768 - n, "]");
    CHECK_OK(file_save(path, text, strlen(text), &e), e);
    free(text);
}

void screens_home(const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", test_tmpdir(), name);
    setenv("HOME", path, 1);
    setenv("MLATHE_HOME", path, 1);
    static const char *const others[] = {"HF_HOME",       "HF_HUB_CACHE",   "LLAMA_CACHE",
                                         "OLLAMA_MODELS", "XDG_CACHE_HOME", "XDG_DATA_HOME"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        unsetenv(others[i]);
    CHECK(file_mkdirs(path, NULL) == 0, "folder");
    snprintf(path, sizeof path, "%s/%s/calib.txt", test_tmpdir(), name);
    write_text(path);
    snprintf(path, sizeof path, "%s/%s/arc.json", test_tmpdir(), name);
    write_questions(path);
}

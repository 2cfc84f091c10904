/* Training text by random access. Refuses text shorter than four cells of the smallest size. */
#include "sessions/heal_text.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/file.h"
#include "core/sampler.h"
#include "core/sha256.h"
#include "sessions/eval.h"

enum {
    CELL_LEAST = 2 << 10,
    CELL_MOST = 16 << 10,
    CELLS_WANTED = 64, /* small texts get smaller cells */
    HELD_EVERY = 16,
    BYTES_A_TOKEN = 8,  /* at most, of most texts */
    BYTES_LIKELY = 4,
    WORD_MOST = 64, /* bytes to look for the end of a word */
    SAMPLE = 4096,  /* bytes of a file that its fingerprint takes */
    MAX_FILES = 1 << 20,
    MAX_DEPTH = 16,
};

struct text_file {
    char *path;
    uint64_t size;
    uint64_t cell; /* number of its first cell */
};

struct heal_text {
    const struct tokenizer *tokenizer;
    struct text_file *file;
    size_t n_file, cap_file;
    uint64_t bytes, cells, cell; /* cell: bytes */
    int32_t *ids;                /* or windows, one a cell */
    int window;
    uint64_t seed;
    char source[512], sha256[65];
};

void heal_text_free(struct heal_text *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_file; i++)
        free(t->file[i].path);
    free(t->file);
    free(t->ids);
    free(t);
}

/* --- the files ---------------------------------------------------------------------------- */

static int add_file(struct heal_text *t, const char *path, uint64_t size, struct err *e)
{
    void *grown = t->file;
    if (t->n_file >= MAX_FILES)
        return err_set(e, ERR_LIMIT, "%s: more than %d files of text", path, MAX_FILES);
    if (!mem_grow(&grown, &t->cap_file, t->n_file + 1, sizeof *t->file))
        return err_nomem(e, t->n_file * sizeof *t->file, "a list of files");
    t->file = grown;
    t->file[t->n_file] = (struct text_file){mem_strdup(path), size, 0};
    if (!t->file[t->n_file].path)
        return err_nomem(e, strlen(path), "a path");
    t->n_file++;
    return OK;
}

static int add_path(struct heal_text *t, const char *path, int depth, struct err *e);

static int not_hidden(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

/* In the order of names, so that a seed means the same everywhere. */
static int add_folder(struct heal_text *t, const char *path, int depth, struct err *e)
{
    struct dirent **entry;
    int n = scandir(path, &entry, not_hidden, alphasort), rc = OK;
    if (n < 0)
        return err_errno(e, "%s: cannot list the folder", path);
    for (int i = 0; i < n; i++) {
        char *one = rc ? NULL : path_join(path, entry[i]->d_name);
        if (!rc && !one)
            rc = err_nomem(e, strlen(path), "a path");
        if (!rc)
            rc = add_path(t, one, depth + 1, e);
        free(one);
        free(entry[i]);
    }
    free(entry);
    return rc;
}

static int add_path(struct heal_text *t, const char *path, int depth, struct err *e)
{
    struct stat s;
    if (stat(path, &s))
        return err_errno(e, "%s: cannot read the text", path);
    if (S_ISDIR(s.st_mode))
        return depth < MAX_DEPTH ? add_folder(t, path, depth, e) : OK;
    if (S_ISREG(s.st_mode) && s.st_size > 0)
        return add_file(t, path, (uint64_t)s.st_size, e);
    return depth ? OK : err_set(e, ERR_ARG, "%s is empty, or no file: give text to heal on", path);
}

static int read_piece(const struct text_file *f, uint64_t at, size_t want, char *out, size_t *got,
                      struct err *e)
{
    FILE *file = fopen(f->path, "rb");
    if (!file)
        return err_errno(e, "%s: cannot open the text", f->path);
    int rc = fseeko(file, (off_t)at, SEEK_SET) ? err_errno(e, "%s: cannot seek", f->path) : OK;
    if (!rc)
        *got = fread(out, 1, want, file);
    if (!rc && (ferror(file) || !*got))
        rc = err_set(e, ERR_IO, "%s: cannot read at byte %llu: did the file shrink?", f->path,
                     (unsigned long long)at);
    fclose(file);
    return rc;
}

static int fingerprint(struct heal_text *t, struct err *e)
{
    struct sha256 s;
    char bytes[SAMPLE];
    int rc = OK;
    sha256_init(&s);
    for (size_t i = 0; i < t->n_file && !rc; i++) {
        size_t n = 0;
        const char *name = path_base(t->file[i].path);
        rc = read_piece(&t->file[i], 0, sizeof bytes, bytes, &n, e);
        sha256_add(&s, name, strlen(name) + 1);
        sha256_add(&s, &t->file[i].size, sizeof t->file[i].size);
        sha256_add(&s, bytes, n);
    }
    sha256_hex(&s, t->sha256);
    return rc;
}

static void name_source(struct heal_text *t, const char *const *paths, int n)
{
    size_t at = 0;
    for (int i = 0; i < n && at < sizeof t->source; i++) {
        int put = snprintf(t->source + at, sizeof t->source - at, "%s%s", i ? ", " : "",
                           path_base(paths[i]));
        at += put > 0 ? (size_t)put : 0;
    }
}

int heal_text_open(struct heal_text **out, const struct tokenizer *tokenizer,
                   const char *const *paths, int n, uint64_t seed, struct err *e)
{
    struct heal_text *t = mem_calloc(1, sizeof *t);
    *out = NULL;
    if (!t)
        return err_nomem(e, sizeof *t, "text to heal on");
    t->tokenizer = tokenizer;
    t->seed = seed;
    int rc = OK;
    for (int i = 0; i < n && !rc; i++)
        rc = add_path(t, paths[i], 0, e);
    for (size_t i = 0; i < t->n_file; i++)
        t->bytes += t->file[i].size;
    if (!rc && t->bytes < 4 * CELL_LEAST)
        rc = err_set(e, ERR_ARG,
                     "%s: %llu bytes of text are less than a few sequences: give at least %d KiB",
                     n ? paths[0] : "no text", (unsigned long long)t->bytes, 4 * CELL_LEAST / 1024);
    t->cell = t->bytes / CELLS_WANTED;
    t->cell = t->cell < CELL_LEAST ? CELL_LEAST : t->cell > CELL_MOST ? CELL_MOST : t->cell;
    for (size_t i = 0; i < t->n_file; i++) {
        t->file[i].cell = t->cells;
        t->cells += (t->file[i].size + t->cell - 1) / t->cell;
    }
    if (!rc)
        rc = fingerprint(t, e);
    if (rc) {
        heal_text_free(t);
        return rc;
    }
    name_source(t, paths, n);
    *out = t;
    return OK;
}

int heal_text_ids(struct heal_text **out, const int32_t *ids, int windows, int window,
                  const char *source, uint64_t seed, struct err *e)
{
    struct heal_text *t = mem_calloc(1, sizeof *t);
    size_t n = (size_t)windows * (size_t)window;
    struct sha256 s;
    *out = NULL;
    if (windows < 2 || window < 2) {
        free(t);
        return err_set(e, ERR_ARG, "%d windows of %d tokens are too few to heal on", windows,
                       window);
    }
    if (!t || !(t->ids = mem_calloc(n, sizeof *ids))) {
        free(t);
        return err_nomem(e, n * sizeof *ids, "text to heal on");
    }
    memcpy(t->ids, ids, n * sizeof *ids);
    t->cells = (uint64_t)windows;
    t->window = window;
    t->seed = seed;
    snprintf(t->source, sizeof t->source, "%s", source);
    sha256_init(&s);
    sha256_add(&s, ids, n * sizeof *ids);
    sha256_hex(&s, t->sha256);
    *out = t;
    return OK;
}

const char *heal_text_source(const struct heal_text *t)
{
    return t->source;
}

const char *heal_text_sha256(const struct heal_text *t)
{
    return t->sha256;
}

/* --- sequences ---------------------------------------------------------------------------- */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* Cells of one kind: the held-out ones are the last of every HELD_EVERY, and at least one. */
static uint64_t held_cells(const struct heal_text *t)
{
    return t->cells < HELD_EVERY ? 1 : t->cells / HELD_EVERY;
}

static uint64_t cell_number(const struct heal_text *t, bool held_out, uint64_t k)
{
    if (t->cells < HELD_EVERY)
        return held_out ? t->cells - 1 : k;
    if (held_out)
        return k * HELD_EVERY + HELD_EVERY - 1;
    uint64_t whole = t->cells / HELD_EVERY * (HELD_EVERY - 1);
    return k < whole ? k / (HELD_EVERY - 1) * HELD_EVERY + k % (HELD_EVERY - 1)
                     : t->cells / HELD_EVERY * HELD_EVERY + (k - whole);
}

/* Position i of a walk that meets each of n cells once a round, in another order each round. */
static uint64_t shuffled(const struct heal_text *t, uint64_t i, uint64_t n)
{
    uint64_t state[4], round = i / n, step;
    random_seed(state, t->seed * 1000003u + round);
    do
        step = 1 + (uint64_t)(random_uniform(state) * (double)(n > 1 ? n - 1 : 1));
    while (gcd(step, n) != 1);
    uint64_t first = (uint64_t)(random_uniform(state) * (double)n);
    return (first + (i % n) * (step % n)) % n; /* n is far below 2³² */
}

/* Where a word begins at or after s[at]; a code point at least. */
static size_t next_word(const char *s, size_t n, size_t at)
{
    size_t i = at;
    for (; i < n && i < at + WORD_MOST; i++)
        if (s[i] == ' ' || s[i] == '\n')
            return i;
    for (i = at; i < n && ((unsigned char)s[i] & 0xc0) == 0x80; i++)
        ;
    return i;
}

static int encode(struct heal_text *t, const char *text, size_t n, int len, int32_t *out, int *got,
                  struct err *e)
{
    struct ids ids = {0};
    size_t joined_size;
    char *joined = eval_join_rows(text, n, &joined_size);
    int rc = joined ? OK : err_nomem(e, n, "a piece of text");
    if (!rc)
        rc = tokenizer_encode(t->tokenizer, joined, joined_size, 0, &ids, e);
    /* The last token may be one that the end of the piece cut. */
    size_t whole = ids.n ? ids.n - 1 : 0;
    *got = whole < (size_t)len ? (int)whole : len;
    if (!rc)
        memcpy(out, ids.v, (size_t)*got * sizeof *out);
    ids_free(&ids);
    free(joined);
    return rc;
}

static int from_cell(struct heal_text *t, uint64_t cell, double where, int len, int32_t *out,
                     int *n, struct err *e)
{
    size_t f = 0, got = 0, want = (size_t)len * BYTES_A_TOKEN + WORD_MOST;
    while (f + 1 < t->n_file && t->file[f + 1].cell <= cell)
        f++;
    uint64_t begin = (cell - t->file[f].cell) * t->cell, end = begin + t->cell;
    end = end < t->file[f].size ? end : t->file[f].size;
    uint64_t slack = end - begin > want ? end - begin - want : 0;
    uint64_t at = begin + (uint64_t)(where * (double)slack);
    want = end - at < want ? (size_t)(end - at) : want;
    char *text = malloc(want + 1);
    if (!text)
        return err_nomem(e, want, "a piece of text");
    int rc = read_piece(&t->file[f], at, want, text, &got, e);
    size_t first = rc || at == 0 ? 0 : next_word(text, got, 0);
    if (!rc)
        rc = encode(t, text + first, got - first, len, out, n, e);
    free(text);
    return rc;
}

long long heal_text_tokens(const struct heal_text *t)
{
    uint64_t train = t->cells - held_cells(t);
    return (long long)(t->ids ? train * (uint64_t)t->window : train * t->cell / BYTES_LIKELY);
}

int heal_text_sequence(struct heal_text *t, bool held_out, long long i, int len, int32_t *out,
                       int *n, struct err *e)
{
    uint64_t held = held_cells(t), count = held_out ? held : t->cells - held, state[4];
    *n = 0;
    /* Blank stretches of a file give no tokens: the next cell has some. */
    for (uint64_t tries = 0; tries < 1000; tries++) {
        uint64_t k = (uint64_t)i + tries * 7919;
        uint64_t cell = cell_number(t, held_out, shuffled(t, k, count));
        random_seed(state, (t->seed ^ 0x9e3779b97f4a7c15u) + k * 2 + held_out);
        if (t->ids) {
            *n = len < t->window ? len : t->window;
            memcpy(out, t->ids + cell * (uint64_t)t->window, (size_t)*n * sizeof *out);
            return OK;
        }
        int rc = from_cell(t, cell, random_uniform(state), len, out, n, e);
        if (rc || *n >= (len < 16 ? 2 : len / 8))
            return rc;
    }
    return err_set(e, ERR_ARG, "%s: too few words to make sequences of: give other text",
                   t->source);
}

/* --- overlap ------------------------------------------------------------------------------ */

enum {
    LINE_LEAST = 40,     /* bytes: shorter lines repeat everywhere */
    FILTER_BITS = 65536, /* 6,500 lines at 1 % of false alarms */
    FILTER_HASHES = 7,
    FILTER_LINES = 6500,
    LINES_READ = 32 << 20, /* bytes of text looked at */
};

static uint64_t hash_line(const char *s, size_t n)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 1099511628211u;
    return h ^ h >> 29;
}

/* Calls see(user, hash) for each line of size bytes that is long enough. */
static void each_line(const char *text, size_t size, void (*see)(void *, uint64_t), void *user)
{
    for (size_t at = 0; at < size;) {
        const char *nl = memchr(text + at, '\n', size - at);
        size_t end = nl ? (size_t)(nl - text) : size, from = at, to = end;
        while (from < to && (text[from] == ' ' || text[from] == '\t'))
            from++;
        while (to > from && memchr(" \t\r", text[to - 1], 3))
            to--;
        if (to - from >= LINE_LEAST)
            see(user, hash_line(text + from, to - from));
        at = end + 1;
    }
}

struct lines {
    unsigned char bit[FILTER_BITS / 8];
    uint64_t every; /* lines whose hash is a multiple are looked at */
    uint64_t seen, known;
};

static size_t bit_of(uint64_t h, int i)
{
    return (size_t)((h + (uint64_t)i * (h >> 32 | 1)) % FILTER_BITS);
}

static void count_line(void *user, uint64_t h)
{
    (void)h;
    ((struct lines *)user)->seen++;
}

static void learn_line(void *user, uint64_t h)
{
    struct lines *l = user;
    for (int i = 0; h / 64 % l->every == 0 && i < FILTER_HASHES; i++)
        l->bit[bit_of(h, i) / 8] |= (unsigned char)(1 << bit_of(h, i) % 8);
}

static void look_line(void *user, uint64_t h)
{
    struct lines *l = user;
    if (h / 64 % l->every)
        return;
    bool all = true;
    for (int i = 0; i < FILTER_HASHES; i++)
        all = all && l->bit[bit_of(h, i) / 8] >> bit_of(h, i) % 8 & 1;
    l->seen++;
    l->known += all;
}

static int read_lines(struct heal_text *t, void (*see)(void *, uint64_t), struct lines *l,
                      struct err *e)
{
    uint64_t left = LINES_READ;
    for (size_t i = 0; i < t->n_file && left; i++) {
        size_t want = (size_t)(t->file[i].size < left ? t->file[i].size : left), got = 0;
        char *text = malloc(want);
        if (!text)
            return err_nomem(e, want, "lines of text");
        int rc = read_piece(&t->file[i], 0, want, text, &got, e);
        if (!rc)
            each_line(text, got, see, l);
        free(text);
        if (rc)
            return rc;
        left -= want;
    }
    return OK;
}

char *heal_text_lines(struct heal_text *t, struct err *e)
{
    struct lines *l = mem_calloc(1, sizeof *l);
    char *hex = malloc(2 * sizeof l->bit + 32);
    int rc = l && hex ? read_lines(t, count_line, l, e) : err_nomem(e, sizeof *l, "a filter");
    if (!rc) {
        l->every = 1 + l->seen / FILTER_LINES;
        rc = read_lines(t, learn_line, l, e);
    }
    if (!rc) {
        int n = snprintf(hex, 32, "%llu:", (unsigned long long)l->every);
        for (size_t i = 0; i < sizeof l->bit; i++)
            snprintf(hex + n + 2 * (int)i, 3, "%02x", l->bit[i]);
    } else {
        free(hex);
        hex = NULL;
    }
    free(l);
    return hex;
}

static bool read_filter(const char *filter, struct lines *l)
{
    char *colon;
    unsigned long long every = strtoull(filter, &colon, 10);
    if (!every || *colon != ':' || strlen(colon + 1) != 2 * sizeof l->bit)
        return false;
    l->every = every;
    for (size_t i = 0; i < sizeof l->bit; i++) {
        unsigned v;
        if (sscanf(colon + 1 + 2 * i, "%2x", &v) != 1)
            return false;
        l->bit[i] = (unsigned char)v;
    }
    return true;
}

double heal_lines_shared(const char *filter, const char *file)
{
    struct lines *l = mem_calloc(1, sizeof *l);
    char *text = NULL;
    size_t size;
    double share = -1;
    if (l && read_filter(filter, l) && file_read(file, (size_t)1 << 30, &text, &size, NULL) == OK) {
        each_line(text, size, look_line, l);
        share = l->seen ? (double)l->known / (double)l->seen : 0;
    }
    free(text);
    free(l);
    return share;
}

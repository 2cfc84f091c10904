/* safetensors: what the writer writes, the reader reads; shards; and every rule of the header. */
#include "core/file.h"
#include "core/safetensors.h"
#include "tests/support.h"

static const char *tmp(const char *name)
{
    static char path[4][400];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, 400, "%s/%s", test_tmpdir(), name);
    return p;
}

static void write_sample(const char *path)
{
    struct err e = {0};
    struct safetensors_writer *w = NULL;
    float x[9000];
    for (int i = 0; i < 9000; i++)
        x[i] = (float)(i - 40) / 4;
    CHECK_OK(safetensors_writer_new(&w, path, &e), e);
    CHECK_OK(safetensors_writer_declare(w, "b.weight", DTYPE_F32, 2, (size_t[]){3, 5}, &e), e);
    CHECK_OK(safetensors_writer_declare(w, "big", DTYPE_BF16, 2, (size_t[]){9, 1000}, &e), e);
    CHECK_OK(safetensors_writer_declare(w, "a \"quoted\"", DTYPE_F16, 1, (size_t[]){7}, &e), e);
    CHECK(safetensors_writer_declare(w, "big", DTYPE_F16, 1, (size_t[]){1}, &e) == ERR_ARG);
    CHECK(safetensors_writer_declare(w, "q", DTYPE_Q8_0, 1, (size_t[]){32}, &e) == ERR_ARG);
    CHECK(safetensors_writer_declare(w, "odd", DTYPE_F32, 1, (size_t[]){1}, &e) == ERR_ARG);
    CHECK(safetensors_writer_f32(w, x, 14, &e) == ERR_ARG, "%s", e.text);
    CHECK_OK(safetensors_writer_f32(w, x, 15, &e), e);
    CHECK(!file_exists(path), "appears at commit only");
    CHECK_OK(safetensors_writer_f32(w, x, 9000, &e), e);
    CHECK_OK(safetensors_writer_f32(w, x, 7, &e), e);
    CHECK_OK(safetensors_writer_commit(w, &e), e);
}

static void test_round_trip(void)
{
    struct err e = {0};
    struct safetensors *s = NULL;
    struct tensor t;
    const char *path = tmp("sample.safetensors");
    write_sample(path);
    CHECK_OK(safetensors_open(&s, path, &e), e);
    if (!s)
        return;
    CHECK(safetensors_count(s) == 3 && !strcmp(safetensors_name(s, 2), "big"));
    CHECK_OK(safetensors_get(s, "big", &t, &e), e);
    CHECK(t.dtype == DTYPE_BF16 && t.rank == 2 && t.dim[0] == 9 && t.dim[1] == 1000);
    float row[1000];
    tensor_row_f32(&t, 0, row);
    CHECK(row[0] == -10 && row[999] == 240, "%g %g", (double)row[0], (double)row[999]);
    CHECK_OK(safetensors_get(s, "a \"quoted\"", &t, &e), e);
    CHECK(t.dtype == DTYPE_F16 && t.rank == 1 && t.dim[0] == 7);
    CHECK_OK(safetensors_get(s, "b.weight", &t, &e), e);
    tensor_row_f32(&t, 2, row);
    CHECK(row[4] == (14 - 40) / 4.0f);
    CHECK((uintptr_t)t.data % 8 == 0, "data begins at a multiple of eight");
    CHECK(safetensors_get(s, "c", &t, &e) == ERR_FORMAT && strstr(e.text, "tensor c"), "%s",
          e.text);
    safetensors_close(s);

    struct safetensors_writer *w = NULL;
    CHECK_OK(safetensors_writer_new(&w, tmp("short.safetensors"), &e), e);
    CHECK_OK(safetensors_writer_declare(w, "x", DTYPE_F32, 1, (size_t[]){4}, &e), e);
    CHECK(safetensors_writer_commit(w, &e) == ERR_ARG && !file_exists(tmp("short.safetensors")));
}

/* A file of this header and n zero bytes of data. */
static int open_header(const char *header, size_t n, struct safetensors **s, struct err *e)
{
    uint64_t length = strlen(header);
    uint8_t file[4096] = {0};
    const char *path = tmp("header.safetensors");
    memcpy(file, &length, sizeof length);
    memcpy(file + 8, header, length);
    CHECK_OK(file_save(path, file, 8 + length + n, e), *e);
    *e = (struct err){0};
    return safetensors_open(s, path, e);
}

#define X "\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

static void test_rules(void)
{
    static const struct {
        const char *header;
        size_t n;
        const char *says; /* NULL: fine */
    } cases[] = {
        {"{" X "}", 8, NULL},
        {"{" X "}  ", 8, NULL},
        {"{}", 0, NULL},
        {"{\"__metadata__\":{\"format\":\"pt\"}," X "}", 8, NULL},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, NULL},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[0,0]}}", 0, NULL},
        {"{\"x\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, NULL},
        {"{" X "}", 7, "incomplete"},
        {"{" X "}", 9, "1 bytes after"},
        {"{" X "," X "}", 8, "expected"},
        {"{" X ",\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16, "twice"},
        {"{" X ",\"y\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12,
         "expected 8"},
        {"{" X ",\"y\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9,17]}}", 17,
         "expected 8"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, "other than 8"},
        {"{\"x\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "F31"},
        {"{\"x\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype"},
        {"{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "shape"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8, "data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "dimension 0"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,8]}}", 8, "dimension 0"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[281474976710656,65536],\"data_offsets\":[0,8]}}", 8,
         "dimension 1"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[1e300],\"data_offsets\":[0,8]}}", 8, "dimension 0"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "name"},
        {"{\"\\u001b[2J\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "name"},
        {"{\"x\":7}", 0, "dtype"},
        {"[1]", 0, "no JSON object"},
        {"{\"x\"", 0, "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        struct safetensors *s = NULL;
        int rc = open_header(cases[i].header, cases[i].n, &s, &e);
        if (cases[i].says)
            CHECK(rc < 0 && strstr(e.text, cases[i].says) && strstr(e.text, "header.safetensors"),
                  "case %zu: %d %s", i, rc, e.text);
        else
            CHECK(rc == 0, "case %zu: %s", i, e.text);
        safetensors_close(s);
    }
    struct err e = {0};
    struct safetensors *s = NULL;
    struct tensor t;
    CHECK_OK(open_header(cases[6].header, 8, &s, &e), e);
    CHECK(s && safetensors_get(s, "x", &t, &e) == ERR_UNSUPPORTED && strstr(e.text, "I64"), "%s",
          e.text);
    safetensors_close(s);
    static const uint64_t huge[1] = {1ull << 60};
    CHECK_OK(file_save(tmp("huge.safetensors"), huge, 8, &e), e);
    CHECK(safetensors_open(&s, tmp("huge.safetensors"), &e) == ERR_FORMAT, "%s", e.text);
    CHECK_OK(file_save(tmp("empty.safetensors"), "", 0, &e), e);
    CHECK(safetensors_open(&s, tmp("empty.safetensors"), &e) == ERR_FORMAT, "%s", e.text);
    CHECK(safetensors_open(&s, tmp("none.safetensors"), &e) == ERR_IO, "%s", e.text);
    CHECK(safetensors_open(&s, test_tmpdir(), &e) == ERR_IO, "%s", e.text);
}

static void test_shards(void)
{
    struct err e = {0};
    struct safetensors *s = NULL;
    struct tensor t;
    CHECK_OK(safetensors_open(&s, test_path("arch/llama3_rope"), &e), e);
    CHECK(s && safetensors_count(s) == 3 * 9 + 3, "%zu", s ? safetensors_count(s) : 0);
    if (s) {
        CHECK_OK(safetensors_get(s, "model.layers.2.mlp.down_proj.weight", &t, &e), e);
        CHECK_OK(safetensors_get(s, "lm_head.weight", &t, &e), e);
    }
    safetensors_close(s);

    static const struct {
        const char *map, *says;
    } cases[] = {
        {"{\"x\":\"../sample.safetensors\"}", "plain name"},
        {"{\"x\":\"/etc/passwd\"}", "plain name"},
        {"{\"x\":\"..\"}", "plain name"},
        {"{\"x\":7}", "plain name"},
        {"{\"x\":\"gone.safetensors\"}", "gone.safetensors"},
        {"{\"y\":\"one.safetensors\"}", "tensor y is not in"},
        {"{\"x\":\"one.safetensors\",\"y\":\"two.safetensors\"}", "twice"},
        {"{}", "no tensors"},
        {"7", "no weight_map"},
    };
    char dir[300], path[400], text[400];
    snprintf(dir, sizeof dir, "%s/shards", test_tmpdir());
    CHECK_OK(file_mkdirs(dir, &e), e);
    for (int i = 0; i < 2; i++) {
        static const char body[] = "{" X "}";
        uint8_t file[128] = {sizeof body - 1};
        memcpy(file + 8, body, sizeof body - 1);
        snprintf(path, sizeof path, "%s/%s.safetensors", dir, i ? "two" : "one");
        CHECK_OK(file_save(path, file, 8 + sizeof body - 1 + 8, &e), e);
    }
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "{\"metadata\":{},\"weight_map\":%s}", cases[i].map);
        CHECK_OK(file_save(path, text, strlen(text), &e), e);
        CHECK(safetensors_open(&s, dir, &e) < 0 && !s && strstr(e.text, cases[i].says),
              "case %zu: %s", i, e.text);
    }
}

int main(void)
{
    test_round_trip();
    test_rules();
    test_shards();
    return test_end("safetensors");
}

/* The GGUF reader: values of every type, lookups, and each rule broken once. */
#include "core/file.h"
#include "tests/support.h"
#include "tests/support_gguf.h"
#include "tests/support_models.h"

static const char *tmp(const char *name)
{
    static char path[4][400];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, 400, "%s/%s", test_tmpdir(), name);
    return p;
}

/* Saves, opens, and frees the bytes. */
static int open_bytes(struct bytes *b, struct gguf **g, struct err *e)
{
    const char *path = tmp("bytes.gguf");
    *g = NULL;
    CHECK_OK(file_save(path, b->n ? (void *)b->data : "", b->n, e), *e);
    put_free(b);
    *e = (struct err){0};
    return gguf_open(g, path, e);
}

static void put_key_raw(struct bytes *b, const char *key, enum gguf_type type, const void *v,
                        size_t n)
{
    put_string(b, key);
    put_u32(b, type);
    put_bytes(b, v, n);
}

static void put_values(struct bytes *b)
{
    put_key_raw(b, "u8", GGUF_U8, "\xff", 1);
    put_key_raw(b, "i8", GGUF_I8, "\xff", 1);
    put_key_raw(b, "u16", GGUF_U16, "\xfe\xff", 2);
    put_key_raw(b, "i16", GGUF_I16, "\xfe\xff", 2);
    put_key_raw(b, "u32", GGUF_U32, "\xff\xff\xff\xff", 4);
    put_key_raw(b, "i32", GGUF_I32, "\xff\xff\xff\xff", 4);
    put_key_raw(b, "u64", GGUF_U64, "\0\0\0\0\1\0\0\0", 8);
    put_key_raw(b, "u64huge", GGUF_U64, "\0\0\0\0\0\0\0\x80", 8);
    put_key_raw(b, "i64", GGUF_I64, "\xfe\xff\xff\xff\xff\xff\xff\xff", 8);
    put_key_raw(b, "f64", GGUF_F64, &(double){1.5}, 8);
    put_key_f32(b, "f32", 0.25f);
    put_key_bool(b, "yes", true);
    put_key_string(b, "text", "words");
    put_key_string(b, "empty", "");
    put_key_array(b, "ids", GGUF_U16, 3);
    put_bytes(b, "\1\0\2\0\3\0", 6);
    put_key_array(b, "names", GGUF_STRING, 3);
    put_string(b, "one");
    put_string(b, "");
    put_string(b, "three");
    put_key_array(b, "none", GGUF_F32, 0);
}

static void test_values(void)
{
    struct err e = {0};
    struct bytes b = {0};
    struct gguf *g;
    put_header(&b, 0, 17);
    put_values(&b);
    CHECK_OK(open_bytes(&b, &g, &e), e);
    if (!g)
        return;
    static const struct {
        const char *key;
        long long v;
    } ints[] = {{"u8", 255},         {"i8", -1},  {"u16", 65534},      {"i16", -2},
                {"u32", 4294967295}, {"i32", -1}, {"u64", 4294967296}, {"i64", -2}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        long long v = 0;
        double d = 0;
        CHECK(gguf_int(g, ints[i].key, &v, &e) == 0 && v == ints[i].v, "%s", ints[i].key);
        CHECK(gguf_num(g, ints[i].key, &d, &e) == 0 && d == (double)v, "%s", ints[i].key);
    }
    long long v;
    double d;
    struct gguf_str s, list[3];
    CHECK(gguf_int(g, "u64huge", &v, &e) == ERR_FORMAT && strstr(e.text, "u64huge"), "%s", e.text);
    CHECK(gguf_int(g, "f32", &v, &e) == ERR_FORMAT && strstr(e.text, "whole number"), "%s", e.text);
    CHECK(gguf_int(g, "gone", &v, &e) == ERR_FORMAT && strstr(e.text, "missing"), "%s", e.text);
    CHECK(strstr(e.text, "bytes.gguf"), "%s", e.text);
    CHECK(gguf_num(g, "f64", &d, &e) == 0 && d == 1.5);
    CHECK(gguf_num(g, "text", &d, &e) == ERR_FORMAT);
    CHECK(gguf_int_or(g, "gone", 7) == 7 && gguf_num_or(g, "f32", 0) == 0.25);
    CHECK(gguf_bool_or(g, "yes", false) && gguf_bool_or(g, "gone", true));
    CHECK(gguf_string(g, "text", &s, &e) == 0 && s.n == 5 && !memcmp(s.s, "words", 5));
    CHECK(gguf_string(g, "empty", &s, &e) == 0 && s.n == 0);
    CHECK(gguf_string(g, "u8", &s, &e) == ERR_FORMAT);
    CHECK(gguf_array_len(g, "ids", GGUF_U16) == 3 && gguf_array_len(g, "ids", GGUF_U32) == 0);
    const uint8_t *ids = gguf_array_data(g, "ids", GGUF_U16);
    CHECK(ids && ids[4] == 3 && !gguf_array_data(g, "names", GGUF_STRING));
    CHECK(gguf_array_len(g, "names", GGUF_STRING) == 3 && gguf_array_len(g, "u8", GGUF_U8) == 0);
    CHECK(gguf_array_strings(g, "names", list, 3, &e) == 0);
    CHECK(list[0].n == 3 && list[1].n == 0 && !memcmp(list[2].s, "three", 5));
    CHECK(gguf_array_strings(g, "names", list, 4, &e) == ERR_FORMAT);
    CHECK(gguf_has(g, "none") && !gguf_has(g, "non") && !gguf_has(g, ""));
    CHECK(gguf_tensor_count(g) == 0);
    gguf_close(g);
}

/* Two tensors "a" F32 [2][4] and "b" Q8_0 [64], as the format wants them; the caller may bend what
 * it likes through the arguments. */
struct bend {
    uint64_t ne0, offset, count;
    uint32_t type;
    const char *name;
    size_t cut; /* bytes missing at the end */
    uint32_t align;
};

static int open_bent(struct bend x, struct gguf **g, struct err *e)
{
    struct bytes b = {0};
    put_header(&b, x.count, x.align != 0);
    if (x.align)
        put_key_u32(&b, "general.alignment", x.align);
    put_tensor_info(&b, "a", 4, 2, 0, 0);
    put_tensor_info(&b, x.name, x.ne0, 0, x.type, x.offset);
    put_padding(&b, x.align ? x.align : 32);
    for (int i = 0; i < 8; i++)
        put_bytes(&b, &(float){(float)i}, 4);
    put_padding(&b, x.align ? x.align : 32);
    for (size_t i = 0; i < 68 - x.cut; i++)
        put_bytes(&b, "\1", 1);
    return open_bytes(&b, g, e);
}

static void test_tensors(void)
{
    struct err e = {0};
    struct gguf *g;
    struct tensor t;
    static const struct bend fine = {64, 32, 2, 8, "b", 0, 0};
    CHECK_OK(open_bent(fine, &g, &e), e);
    if (!g)
        return;
    CHECK(gguf_tensor_count(g) == 2 && !strcmp(gguf_tensor_name(g, 1), "b"));
    CHECK_OK(gguf_tensor(g, "a", &t, &e), e);
    float row[4];
    tensor_row_f32(&t, 1, row);
    CHECK(t.rank == 2 && t.dim[0] == 2 && t.dim[1] == 4 && row[3] == 7);
    CHECK_OK(gguf_tensor(g, "b", &t, &e), e);
    CHECK(t.rank == 1 && t.dtype == DTYPE_Q8_0 && tensor_bytes(&t) == 68);
    CHECK(gguf_tensor(g, "c", &t, &e) == ERR_FORMAT && strstr(e.text, "tensor c"), "%s", e.text);
    CHECK(gguf_has_tensor(g, "a") && !gguf_has_tensor(g, "aa"));
    gguf_close(g);
    struct bend x = fine;
    x.align = 64, x.offset = 64;
    CHECK_OK(open_bent(x, &g, &e), e);
    gguf_close(g);
    x = fine, x.type = 13, x.ne0 = 256, x.cut = 68 - 64; /* one block of Q5_K: 176 bytes */
    CHECK(open_bent(x, &g, &e) == ERR_FORMAT, "%s", e.text);

    static const struct {
        struct bend x;
        const char *says;
    } bad[] = {
        {{64, 32, 2, 8, "b", 1, 0}, "incomplete download"},
        {{64, 32, 2, 8, "a", 0, 0}, "twice"},
        {{64, 32, 2, 8, "", 0, 0}, "name"},
        {{64, 32, 2, 8, "b\x1b[2J", 0, 0}, "control characters"},
        {{64, 32, 2, 8, "a name of sixty-four characters and more is not what the format allows", 0,
          0},
         "too long"},
        {{65, 32, 2, 8, "b", 0, 0}, "whole Q8_0 blocks"},
        {{0, 32, 2, 8, "b", 0, 0}, "not possible"},
        {{1ull << 63, 32, 2, 8, "b", 0, 0}, "not possible"},
        {{~0ull, 32, 2, 0, "b", 0, 0}, "not possible"},
        {{64, 0, 2, 8, "b", 0, 0}, "expected 32"},
        {{64, 64, 2, 8, "b", 0, 0}, "expected 32"},
        {{64, ~0ull, 2, 8, "b", 0, 0}, "expected 32"},
        {{64, 32, 2, 77, "b", 0, 0}, "type number 77"},
        {{64, 32, 2, 4, "b", 0, 0}, "type number 4"},
        {{64, 32, 3, 8, "b", 0, 0}, "byte"},
        {{64, 32, 1ull << 40, 8, "b", 0, 0}, "tensor count"},
        {{64, 32, ~0ull, 8, "b", 0, 0}, "tensor count"},
        {{64, 32, 2, 8, "b", 0, 24}, "alignment 24"},
        {{64, 32, 2, 8, "b", 0, 1}, "alignment 1"},
        {{64, 32, 2, 8, "b", 0, 1u << 17}, "alignment 131072"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int rc = open_bent(bad[i].x, &g, &e);
        CHECK(rc < 0 && !g && strstr(e.text, bad[i].says) && strstr(e.text, "bytes.gguf"),
              "case %zu: %s", i, e.text);
        gguf_close(g);
    }
}

static void test_unreadable_type(void)
{
    struct err e = {0};
    struct bytes b = {0};
    struct gguf *g;
    struct tensor t;
    put_header(&b, 1, 0);
    put_tensor_info(&b, "k", 256, 0, 16, 0);
    put_padding(&b, 32);
    for (int i = 0; i < 66; i++)
        put_bytes(&b, "", 1);
    CHECK_OK(open_bytes(&b, &g, &e), e);
    CHECK(g && gguf_tensor(g, "k", &t, &e) == ERR_UNSUPPORTED, "%s", e.text);
    CHECK(strstr(e.text, "IQ2_XXS") && strstr(e.text, "16"), "%s", e.text);
    gguf_close(g);
}

/* What only hand-made bytes can say. */
static void test_hostile(void)
{
    struct err e = {0};
    struct gguf *g;
    for (int i = 0;; i++) {
        struct bytes b = {0};
        const char *says = "byte";
        switch (i) {
        case 0: put_bytes(&b, "GGUF", 4); break;
        case 1: put_bytes(&b, "GGML\3\0\0\0", 8), says = "not a GGUF file"; break;
        case 2: put_bytes(&b, "GGUF\0\0\0\3", 8), says = "big-endian"; break;
        case 3: put_bytes(&b, "GGUF\1\0\0\0", 8), says = "version 1"; break;
        case 4: put_header(&b, 0, ~0ull), says = "key count"; break;
        case 5: /* key length */
            put_header(&b, 0, 1), put_u64(&b, ~0ull), put_u64(&b, 0);
            says = "a key";
            break;
        case 6: /* array length */
            put_header(&b, 0, 1), put_key_array(&b, "k", GGUF_U64, 1ull << 61);
            says = "an array";
            break;
        case 7: put_header(&b, 0, 1), put_key_array(&b, "k", GGUF_STRING, 1ull << 40); break;
        case 8: /* nesting */
            put_header(&b, 0, 1), put_key_array(&b, "k", GGUF_ARRAY, 1);
            says = "array of arrays";
            break;
        case 9: /* value type */
            put_header(&b, 0, 1), put_string(&b, "k"), put_u32(&b, 13), put_u64(&b, 0);
            says = "value type 13";
            break;
        case 10:
            put_header(&b, 0, 2), put_key_u32(&b, "k", 1), put_key_u32(&b, "k", 2);
            says = "\"k\" appears twice";
            break;
        case 11: /* a string in an array runs past the end */
            put_header(&b, 0, 1), put_key_array(&b, "k", GGUF_STRING, 2);
            put_u64(&b, 3), put_bytes(&b, "abc", 3), put_u64(&b, 9);
            says = "string in an array";
            break;
        case 12: /* rank */
            put_header(&b, 1, 0), put_string(&b, "t"), put_u32(&b, 5);
            for (int k = 0; k < 6; k++)
                put_u64(&b, 1);
            says = "5 dimensions";
            break;
        case 13: put_header(&b, 1, 0), put_tensor_info(&b, "t", 4, 0, 0, 0); break;
        case 14: break; /* empty file */
        default:
            CHECK(gguf_open(&g, tmp("gone.gguf"), &e) == ERR_IO && strstr(e.text, "gone.gguf"),
                  "%s", e.text);
            CHECK(gguf_open(&g, test_tmpdir(), &e) == ERR_IO, "%s", e.text);
            return;
        }
        if (i == 14)
            says = "not a GGUF file";
        int rc = open_bytes(&b, &g, &e);
        CHECK(rc < 0 && !g && strstr(e.text, says), "case %d: %s", i, e.text);
        gguf_close(g);
    }
}

/* The tokenizer metadata that the generator promises. */
static void test_generated(void)
{
    struct err e = {0};
    struct gguf *g = NULL;
    struct test_model_spec spec = test_model_small();
    CHECK(test_model_write_gguf(tmp("tiny.gguf"), &spec) == 0);
    CHECK_OK(gguf_open(&g, tmp("tiny.gguf"), &e), e);
    if (!g)
        return;
    CHECK(gguf_array_len(g, "tokenizer.ggml.tokens", GGUF_STRING) == 320);
    CHECK(gguf_array_len(g, "tokenizer.ggml.merges", GGUF_STRING) == TEST_MERGES);
    CHECK(gguf_array_len(g, "tokenizer.ggml.token_type", GGUF_I32) == 320);
    CHECK(gguf_int_or(g, "tokenizer.ggml.eos_token_id", -1) == TEST_IM_END);
    struct gguf_str tokens[320];
    CHECK_OK(gguf_array_strings(g, "tokenizer.ggml.tokens", tokens, 320, &e), e);
    CHECK(tokens[0].n == 1 && tokens[0].s[0] == '!');
    CHECK(tokens[258].n == 5 && !memcmp(tokens[258].s, "Ġthe", 5));
    CHECK(tokens[220].n == 2 && !memcmp(tokens[220].s, "Ġ", 2), "the blank, as in GPT-2");
    gguf_close(g);
}

int main(void)
{
    test_values();
    test_tensors();
    test_unreadable_type();
    test_hostile();
    test_generated();
    return test_end("gguf");
}

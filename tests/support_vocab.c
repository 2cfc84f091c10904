/* Tiny vocabularies, written as text and bytes by hand so that they do not share code with the
 * readers that they test. */
#include "tests/support_vocab.h"

#include "core/utf8.h"

/* GPT-2's character for a byte. */
static size_t byte_char(int byte, char *out)
{
    bool plain =
        (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    int n = 0;
    for (int b = 0; b < byte; b++)
        n += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255));
    return utf8_put((uint32_t)(plain ? byte : 256 + n), out);
}

/* Merge number at of the list, split; false behind the last. A space inside is written _. */
static bool merge_at(const char *merges, int at, char *left, char *right)
{
    for (; merges && *merges; at--) {
        size_t n = strcspn(merges, "|");
        if (at == 0) {
            snprintf(left, 64, "%.*s", (int)n, merges);
            char *gap = strchr(left, ' ');
            snprintf(right, 64, "%s", gap + 1);
            *gap = '\0';
            return true;
        }
        merges += n + (merges[n] == '|');
    }
    return false;
}

/* ASCII with _ for a space, in the alphabet. */
static void spell(const char *s, char *out)
{
    for (; *s; s++)
        out += byte_char(*s == '_' ? ' ' : *s, out);
    *out = '\0';
}

char *tiny_json(const struct tiny_vocab *v)
{
    char *text = NULL, left[64], right[64], a[128], b[128], one[8];
    size_t size;
    FILE *f = open_memstream(&text, &size);
    fprintf(f, "{\"added_tokens\":%s,\"normalizer\":%s,\"pre_tokenizer\":%s,",
            v->added ? v->added : "[]", v->normalizer ? v->normalizer : "null",
            v->pretok ? v->pretok : BYTE_LEVEL);
    fprintf(f, "\"post_processor\":%s,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{%s",
            v->post ? v->post : "null", v->extra ? v->extra : "");
    fprintf(f, "\"type\":\"BPE\",\"vocab\":{");
    for (int i = 0; i < 256; i++) {
        one[byte_char(i, one)] = '\0';
        fprintf(f, "%s\"%s%s\":%d", i ? "," : "", *one == '"' || *one == '\\' ? "\\" : "", one, i);
    }
    for (int i = 0; merge_at(v->merges, i, left, right); i++) {
        spell(left, a);
        spell(right, b);
        fprintf(f, ",\"%s%s\":%d", a, b, 256 + i);
    }
    fprintf(f, "},\"merges\":[");
    for (int i = 0; merge_at(v->merges, i, left, right); i++) {
        spell(left, a);
        spell(right, b);
        /* Both shapes that files have. */
        fprintf(f, i % 2 ? "%s[\"%s\",\"%s\"]" : "%s\"%s %s\"", i ? "," : "", a, b);
    }
    fprintf(f, "]}}");
    fclose(f);
    return text;
}

const char *tiny_file(const char *name, const void *data, size_t n)
{
    static char ring[8][512];
    static unsigned next;
    char *path = ring[next++ % 8];
    snprintf(path, 512, "%s/%s", test_tmpdir(), name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) {
        perror(path);
        exit(1);
    }
    return path;
}

static void put_int(FILE *f, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        fputc((int)(v >> 8 * i & 255), f);
}

static void put_text(FILE *f, const char *s)
{
    put_int(f, strlen(s), 8);
    fputs(s, f);
}

static void put_key(FILE *f, const char *key, unsigned type)
{
    put_text(f, key);
    put_int(f, type, 4);
}

static void put_tokens(FILE *f, const char *merges, int n)
{
    char left[64], right[64], a[128], b[128], one[8];
    put_key(f, "tokenizer.ggml.tokens", 9);
    put_int(f, 8, 4);
    put_int(f, (uint64_t)(256 + n + 1), 8);
    for (int i = 0; i < 256; i++) {
        one[byte_char(i, one)] = '\0';
        put_text(f, one);
    }
    for (int i = 0; merge_at(merges, i, left, right); i++) {
        spell(left, a);
        spell(right, b);
        put_text(f, strcat(a, b));
    }
    put_text(f, "<|x|>");
    put_key(f, "tokenizer.ggml.token_type", 9);
    put_int(f, 5, 4);
    put_int(f, (uint64_t)(256 + n + 1), 8);
    for (int i = 0; i < 256 + n + 1; i++)
        put_int(f, i == 256 + n ? 3 : 1, 4);
    put_key(f, "tokenizer.ggml.merges", 9);
    put_int(f, 8, 4);
    put_int(f, (uint64_t)n, 8);
    for (int i = 0; merge_at(merges, i, left, right); i++) {
        spell(left, a);
        spell(right, b);
        put_text(f, strcat(strcat(a, " "), b));
    }
}

uint8_t *tiny_gguf(const struct tiny_gguf *v, size_t *size)
{
    char *bytes = NULL, left[64], right[64];
    int n = 0;
    while (merge_at(v->merges, n, left, right))
        n++;
    FILE *f = open_memstream(&bytes, size);
    fputs("GGUF", f);
    put_int(f, 3, 4);
    put_int(f, 0, 8);
    put_int(f, (uint64_t)(4 + (v->model != NULL) + (v->pre != NULL) + (v->add_bos >= 0)), 8);
    if (v->model) {
        put_key(f, "tokenizer.ggml.model", 8);
        put_text(f, v->model);
    }
    if (v->pre) {
        put_key(f, "tokenizer.ggml.pre", 8);
        put_text(f, v->pre);
    }
    if (v->add_bos >= 0) {
        put_key(f, "tokenizer.ggml.add_bos_token", 7);
        put_int(f, (uint64_t)v->add_bos, 1);
    }
    put_tokens(f, v->merges, n);
    put_key(f, "tokenizer.ggml.bos_token_id", 4);
    put_int(f, (uint64_t)(256 + n), 4);
    fclose(f);
    return (uint8_t *)bytes;
}

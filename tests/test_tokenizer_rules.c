/* The tokenizer's rules one by one, on vocabularies small enough to check by hand, and what it
 * refuses. Needs no data. */
#include "tests/support_vocab.h"

#include <sys/stat.h>

#include "core/tokenizer.h"
#include "core/utf8.h"

static struct err e;

static struct tokenizer *open_tiny(const struct tiny_vocab *v)
{
    struct tokenizer *t = NULL;
    char *json = tiny_json(v);
    CHECK_OK(tokenizer_open(&t, tiny_file("tiny.json", json, strlen(json)), &e), e);
    free(json);
    return t;
}

/* Ids as text: bytes as themselves, others as [id]. */
static const char *ids_text(const struct ids *ids)
{
    static char text[1024];
    size_t n = 0;
    for (size_t i = 0; i < ids->n && n < 900; i++) {
        bool byte = ids->v[i] < 127 && ids->v[i] > 32;
        n += (size_t)snprintf(text + n, 100, byte ? "%s%c" : "%s[%d]", i ? " " : "", ids->v[i]);
    }
    text[n] = '\0';
    return text;
}

static void check(const struct tokenizer *t, const char *text, unsigned flags, const char *want)
{
    struct ids ids = {0};
    CHECK_OK(tokenizer_encode(t, text, strlen(text), flags, &ids, &e), e);
    CHECK(!strcmp(ids_text(&ids), want), "\"%s\" gave %s, not %s", text, ids_text(&ids), want);
    ids_free(&ids);
}

/* The pair of the lowest rank goes first, the leftmost of equals, wherever it stands. */
static void test_merges(void)
{
    struct tokenizer *t = open_tiny(&(struct tiny_vocab){.merges = "b c|a b|bc d|a a"});
    check(t, "abc", 0, "a [256]");
    check(t, "ab", 0, "[257]");
    check(t, "abcd", 0, "a [258]");
    check(t, "aaa", 0, "[259] a");
    check(t, "aaaa", 0, "[259] [259]");
    check(t, "ab ab", 0, "[257] [32] [257]");
    tokenizer_free(t);
    t = open_tiny(&(struct tiny_vocab){.merges = "b c|ab c|a b", .extra = ""});
    check(t, "abc", 0, "a [256]");
    tokenizer_free(t);
    t = open_tiny(
        &(struct tiny_vocab){.merges = "b c|ab c|a b", .extra = "\"ignore_merges\":true,"});
    check(t, "abc", 0, "[257]");
    tokenizer_free(t);
}

static void test_pretok(void)
{
    const char *merges = "1 2|1 1|a 1|_ a|a _|_ _|a b";
    struct tokenizer *t = open_tiny(&(struct tiny_vocab){.merges = merges});
    check(t, "a1", 0, "a 1");
    check(t, "12", 0, "[256]");
    check(t, "a a", 0, "a [259]");
    check(t, "a   a", 0, "a [261] [259]");
    check(t, "a  ", 0, "a [261]");
    tokenizer_free(t);
    t = open_tiny(&(struct tiny_vocab){
        .merges = merges,
        .pretok = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
                  "\"individual_digits\":true}," BYTE_LEVEL "]}"});
    check(t, "12", 0, "1 2");
    check(t, "a 1", 0, "a [32] 1"); /* the space does not join a digit */
    tokenizer_free(t);
    t = open_tiny(&(struct tiny_vocab){
        .merges = merges, .pretok = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"});
    check(t, "a", 0, "[259]");
    check(t, " a", 0, "[259]");
    tokenizer_free(t);
}

/* A split of "-": what becomes of the matches. Merges exist for every neighbourhood. */
static void test_behaviors(void)
{
    static const struct {
        const char *behavior, *invert, *want;
    } cases[] = {
        {"Isolated", "false", "a - - b"},
        {"Removed", "false", "a b"},
        {"Removed", "true", "- -"},
        {"MergedWithPrevious", "false", "[256] - b"},
        {"MergedWithNext", "false", "a - [257]"},
        {"Contiguous", "false", "a [258] b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char pretok[512];
        snprintf(pretok, sizeof pretok,
                 "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                 "{\"%s\":\"-\"},\"behavior\":\"%s\",\"invert\":%s},{\"type\":\"ByteLevel\","
                 "\"add_prefix_space\":false,\"use_regex\":false}]}",
                 i % 2 ? "Regex" : "String", cases[i].behavior, cases[i].invert);
        struct tokenizer *t =
            open_tiny(&(struct tiny_vocab){.merges = "a -|- b|- -", .pretok = pretok});
        check(t, "a--b", 0, cases[i].want);
        tokenizer_free(t);
    }
}

static void test_added(void)
{
    struct tokenizer *t = open_tiny(&(struct tiny_vocab){
        .merges = "a b",
        .added = "[{\"id\":300,\"content\":\"<s>\",\"special\":true},"
                 "{\"id\":301,\"content\":\"<s>>\",\"special\":true},"
                 "{\"id\":302,\"content\":\"<t>\",\"special\":false,\"normalized\":false},"
                 "{\"id\":303,\"content\":\"<l>\",\"special\":true,\"lstrip\":true},"
                 "{\"id\":304,\"content\":\"<r>\",\"special\":true,\"rstrip\":true},"
                 "{\"id\":305,\"content\":\"foo\",\"special\":false,\"single_word\":true}]"});
    check(t, "a<s>b", TOKENIZE_SPECIAL, "a [300] b");
    check(t, "<s>>", TOKENIZE_SPECIAL, "[301]");
    check(t, "<s>", 0, "< s >");
    check(t, "a<t>", 0, "a [302]");
    check(t, "a \n<l> b", TOKENIZE_SPECIAL, "a [303] [32] b");
    check(t, "a <r>\xe3\x80\x80 b", TOKENIZE_SPECIAL, "a [32] [304] b");
    check(t, "a<r>  ", TOKENIZE_SPECIAL, "a [304]");
    check(t, "foo foos", 0, "[305] [32] f o o s");
    check(t, "xfoo,foo", 0, "x f o o , [305]");
    CHECK(tokenizer_size(t) == 306 && tokenizer_find(t, "<l>", 3) == 303);
    CHECK(tokenizer_find(t, "ab", 2) == 256 && tokenizer_find(t, "", 0) == -1);
    /* 257 … 299 are holes: they decode to nothing. */
    char *text;
    size_t n;
    CHECK_OK(tokenizer_decode(t, (int32_t[]){'a', 280, 300, 'b'}, 4, true, &text, &n, &e), e);
    CHECK(n == 2 && !strcmp(text, "ab"));
    free(text);
    CHECK(tokenizer_decode(t, (int32_t[]){306}, 1, true, &text, &n, &e) == ERR_ARG);
    CHECK(tokenizer_decode(t, (int32_t[]){-1}, 1, true, &text, &n, &e) == ERR_ARG);
    tokenizer_free(t);
}

static void test_normalizer(void)
{
    struct tokenizer *t = open_tiny(&(struct tiny_vocab){.normalizer = "{\"type\":\"NFC\"}"});
    check(t, "e\xcc\x81", 0, "[195] [169]");
    tokenizer_free(t);
    t = open_tiny(&(struct tiny_vocab){0});
    check(t, "e\xcc\x81", 0, "e [204] [129]");
    check(t, "\xff\xe6\xad!", 0, "[239] [191] [189] [239] [191] [189] !");
    tokenizer_free(t);
}

/* A code point in three tokens comes out once it is whole; broken bytes as U+FFFD. */
static void test_stream(void)
{
    struct tokenizer *t = open_tiny(
        &(struct tiny_vocab){.added = "[{\"id\":256,\"content\":\"<s>\",\"special\":true}]"});
    struct tokenizer_stream s = {0};
    char out[TOKENIZER_STREAM_OUT];
    CHECK(tokenizer_stream_push(t, &s, 0xe4, out) == 0);
    CHECK(tokenizer_stream_push(t, &s, 0xb8, out) == 0);
    CHECK(tokenizer_stream_push(t, &s, 0xad, out) == 3 && !memcmp(out, "中", 3));
    CHECK(tokenizer_stream_push(t, &s, 'a', out) == 1 && *out == 'a');
    CHECK(tokenizer_stream_push(t, &s, 0xe4, out) == 0);
    CHECK(tokenizer_stream_push(t, &s, 'b', out) == 4 && !memcmp(out,
                                                                 "\xef\xbf\xbd"
                                                                 "b",
                                                                 4));
    CHECK(tokenizer_stream_push(t, &s, 256, out) == 0);
    CHECK(tokenizer_stream_push(t, &s, 0xf0, out) == 0);
    CHECK(tokenizer_stream_push(t, &s, 0x9f, out) == 0);
    CHECK(tokenizer_stream_flush(&s, out) == 3 && tokenizer_stream_flush(&s, out) == 0);
    CHECK(tokenizer_stream_push(t, &s, 9999, out) == 0);
    s.show_special = true;
    CHECK(tokenizer_stream_push(t, &s, 256, out) == 3 && !memcmp(out, "<s>", 3));
    tokenizer_free(t);
}

/* Merging over characters: ▁ for spaces, bytes for unknown characters where there are any. */
#define SPM(normalizer, pretok)                                                                    \
    "{\"model\":{\"byte_fallback\":true,\"fuse_unk\":true,\"unk_token\":\"<unk>\",\"vocab\":{"     \
    "\"<unk>\":0,\"<0x0A>\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"\u2581\":4,\"a\":5,\"b\":6,"             \
    "\"\u2581a\":7,\"ab\":8,\"\u2581\u2581\":9},\"merges\":[\"\u2581 a\",[\"a\",\"b\"]]},"         \
    "\"normalizer\":" normalizer ",\"pre_tokenizer\":" pretok                                      \
    ",\"decoder\":{\"type\":\"Sequence\","                                                         \
    "\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1," \
    "\"stop\":0}]},\"added_tokens\":[{\"id\":10,\"content\":\"<s>\",\"special\":true},"            \
    "{\"id\":9,\"content\":\"\u2581\u2581\",\"special\":false,\"normalized\":false}]}"

static struct tokenizer *open_text(const char *json)
{
    struct tokenizer *t = NULL;
    CHECK_OK(tokenizer_open(&t, tiny_file("spm.json", json, strlen(json)), &e), e);
    return t;
}

static void test_sentencepiece(void)
{
    struct tokenizer *t = open_text(
        SPM("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"
            "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]}",
            "null"));
    char *text;
    size_t n;
    check(t, "ab", 0, "[7] [6]"); /* the mark merges first */
    check(t, " a", 0, "[4] [7]"); /* a mark is put before a space as well */
    check(t, "b<s>b", TOKENIZE_SPECIAL, "[4] [6] [10] [4] [6]"); /* and after a special token */
    check(t, "b\n\xc3\xa9", 0, "[4] [6] [1] [2] [3]");
    check(t, "b\xc3\xbfxyb", 0, "[4] [6] [0] [6]"); /* unknown characters fuse */
    CHECK_OK(tokenizer_decode(t, (int32_t[]){7, 6, 2, 3, 9, 5}, 6, true, &text, &n, &e), e);
    CHECK(!strcmp(text, "ab\xc3\xa9  a"), "\"%s\"", text);
    free(text);
    CHECK(tokenizer_find(t, "<s>", 3) == 10 && tokenizer_find(t, "\n", 1) == 1);
    tokenizer_free(t);
    t = open_text(
        SPM("null", "{\"type\":\"Metaspace\",\"prepend_scheme\":\"first\",\"split\":false}"));
    check(t, "a a", 0, "[7] [7]");
    check(t, " a", 0, "[7]");                                /* already begins with one */
    check(t, "b<s>b", TOKENIZE_SPECIAL, "[4] [6] [10] [6]"); /* only at the very start */
    tokenizer_free(t);
    t = open_text(SPM("null", "{\"type\":\"Metaspace\",\"prepend_scheme\":\"always\"}"));
    check(t, "b<s>b", TOKENIZE_SPECIAL, "[4] [6] [10] [4] [6]");
    tokenizer_free(t);
}

static void write_in(const char *dir, const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    tiny_file(path, text, strlen(text));
}

#define SPECIALS                                                                                   \
    "[{\"id\":256,\"content\":\"<s>\",\"special\":true},{\"id\":257,\"content\":\"</s>\","         \
    "\"special\":true},{\"id\":258,\"content\":\"<|eot_id|>\",\"special\":true},"                  \
    "{\"id\":259,\"content\":\"<|stop|>\",\"special\":true}]"

static void test_folder(void)
{
    char dir[512], *json = tiny_json(&(struct tiny_vocab){.added = SPECIALS});
    struct tokenizer *t = NULL;
    snprintf(dir, sizeof dir, "%s/m", test_tmpdir());
    mkdir(dir, 0755);
    CHECK(tokenizer_open(&t, dir, &e) == ERR_UNSUPPORTED && strstr(e.text, "tokenizer.json"));
    write_in("m", "tokenizer.json", json);
    free(json);
    CHECK_OK(tokenizer_open(&t, dir, &e), e);
    CHECK(tokenizer_bos(t) == -1 && !tokenizer_adds_bos(t) && !tokenizer_chat_template(t));
    tokenizer_free(t);
    write_in("m", "tokenizer_config.json",
             "{\"bos_token\":{\"content\":\"<s>\"},\"eos_token\":\"</s>\",\"add_bos_token\":true,"
             "\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"no\"},"
             "{\"name\":\"default\",\"template\":\"yes\"}],\"model_max_length\":1e30}");
    write_in("m", "generation_config.json", "{\"eos_token_id\":[257,259,70000]}");
    CHECK_OK(tokenizer_open(&t, dir, &e), e);
    CHECK(tokenizer_bos(t) == 256 && tokenizer_adds_bos(t));
    CHECK(!strcmp(tokenizer_bos_text(t), "<s>") && !strcmp(tokenizer_eos_text(t), "</s>"));
    CHECK(tokenizer_is_eos(t, 257) && tokenizer_is_eos(t, 258) && tokenizer_is_eos(t, 259));
    CHECK(!tokenizer_is_eos(t, 256) && !strcmp(tokenizer_chat_template(t), "yes"));
    check(t, "a", TOKENIZE_BOS, "[256] a");
    tokenizer_free(t);
    write_in("m", "chat_template.jinja", "file");
    CHECK_OK(tokenizer_open(&t, dir, &e), e);
    CHECK(!strcmp(tokenizer_chat_template(t), "file"));
    tokenizer_free(t);
    write_in("m", "generation_config.json", "{");
    CHECK(tokenizer_open(&t, dir, &e) == ERR_FORMAT);
}

static void test_bos_of_template(void)
{
    struct tokenizer *t = open_tiny(&(struct tiny_vocab){
        .added = SPECIALS,
        .post = "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"
                "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},"
                "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"ids\":[256]}}}]}"});
    CHECK(tokenizer_bos(t) == 256 && tokenizer_adds_bos(t));
    tokenizer_free(t);
}

/* BOS of a GGUF: the family's habit unless the file says otherwise. */
static void test_gguf(void)
{
    static const struct {
        const char *pre;
        int add_bos;
        bool adds;
    } cases[] = {{"smollm", -1, false}, {"smollm", 1, true},     {"llama-bpe", -1, true},
                 {"qwen2", -1, false},  {"llama-bpe", 0, false}, {"tekken", -1, true},
                 {"gpt-2", -1, false},  {"dbrx", -1, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tiny_gguf v = {"gpt2", cases[i].pre, "a b|1 2", cases[i].add_bos};
        struct tokenizer *t = NULL;
        size_t n;
        uint8_t *bytes = tiny_gguf(&v, &n);
        CHECK_OK(tokenizer_open(&t, tiny_file("tiny.gguf", bytes, n), &e), e);
        free(bytes);
        if (!t)
            continue;
        CHECK(tokenizer_adds_bos(t) == cases[i].adds, "%s", cases[i].pre);
        check(t, "ab<|x|>", TOKENIZE_SPECIAL, "[256] [258]");
        check(t, "12", 0,
              !strcmp(v.pre, "smollm") || !strcmp(v.pre, "qwen2") || !strcmp(v.pre, "tekken")
                  ? "1 2"
                  : "[257]");
        tokenizer_free(t);
    }
}

static void refuse_json(const struct tiny_vocab *v, int status, const char *words)
{
    struct tokenizer *t;
    char *json = tiny_json(v);
    e = (struct err){0};
    int rc = tokenizer_open(&t, tiny_file("bad.json", json, strlen(json)), &e);
    CHECK(rc == status && !t && strstr(e.text, words), "%d \"%s\" instead of \"%s\"", rc, e.text,
          words);
    free(json);
}

static void refuse_text(const char *json, int status, const char *words)
{
    struct tokenizer *t;
    e = (struct err){0};
    int rc = tokenizer_open(&t, tiny_file("bad.json", json, strlen(json)), &e);
    CHECK(rc == status && !t && strstr(e.text, words), "%d \"%s\" instead of \"%s\"", rc, e.text,
          words);
}

static void refuse_gguf(const struct tiny_gguf *v, int status, const char *words)
{
    struct tokenizer *t;
    size_t n;
    uint8_t *bytes = tiny_gguf(v, &n);
    e = (struct err){0};
    int rc = tokenizer_open(&t, tiny_file("bad.gguf", bytes, n), &e);
    CHECK(rc == status && !t && strstr(e.text, words), "%d \"%s\" instead of \"%s\"", rc, e.text,
          words);
    free(bytes);
}

static void test_refusals(void)
{
    refuse_json(&(struct tiny_vocab){.pretok = "{\"type\":\"BertPreTokenizer\"}"}, ERR_UNSUPPORTED,
                "pre-tokenizer \"BertPreTokenizer\"");
    refuse_json(&(struct tiny_vocab){.normalizer = "{\"type\":\"StripAccents\"}"}, ERR_UNSUPPORTED,
                "normalizer \"StripAccents\"");
    refuse_json(&(struct tiny_vocab){.pretok = "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
                                               "\"behavior\":\"Isolated\"}"},
                ERR_UNSUPPORTED, "pattern (");
    refuse_json(&(struct tiny_vocab){.extra = "\"end_of_word_suffix\":\"</w>\","}, ERR_UNSUPPORTED,
                "end_of_word_suffix");
    refuse_json(&(struct tiny_vocab){.added = "[{\"id\":-1,\"content\":\"x\"}]"}, ERR_FORMAT,
                "no usable id");
    refuse_json(&(struct tiny_vocab){.added = "[{\"id\":1e9,\"content\":\"x\"}]"}, ERR_FORMAT,
                "no usable id");
    refuse_json(&(struct tiny_vocab){.added = "[{\"id\":300}]"}, ERR_FORMAT, "no content");
    refuse_text("{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", ERR_FORMAT, "no vocabulary");
    refuse_text("{\"model\":{\"type\":\"WordPiece\"}}", ERR_UNSUPPORTED, "\"WordPiece\"");
    refuse_text("{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{}}}", ERR_FORMAT,
                "no vocabulary");
    refuse_text("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", ERR_FORMAT, "no merges");
    refuse_text("{\"model\":{\"merges\":[\"a b\"],\"vocab\":{\"a\":0,\"b\":1}}}", ERR_FORMAT,
                "not in the vocabulary");
    refuse_text("{\"model\":{\"merges\":[\"ab\"],\"vocab\":{\"a\":0,\"b\":1}}}", ERR_FORMAT,
                "not a pair");
    refuse_text("{\"model\":{\"merges\":[],\"vocab\":{\"a\":0,\"b\":0}}}", ERR_FORMAT, "share");
    refuse_text("{}", ERR_FORMAT, "not a tokenizer.json");
    refuse_text("[1]", ERR_FORMAT, "not a tokenizer.json");
    refuse_gguf(&(struct tiny_gguf){NULL, NULL, "a b", -1}, ERR_UNSUPPORTED, "no vocabulary");
    refuse_gguf(&(struct tiny_gguf){"none", NULL, "a b", -1}, ERR_UNSUPPORTED, "no vocabulary");
    refuse_gguf(&(struct tiny_gguf){"bert", NULL, "a b", -1}, ERR_UNSUPPORTED, "\"bert\"");
    refuse_gguf(&(struct tiny_gguf){"gpt2", NULL, "a b", -1}, ERR_UNSUPPORTED, "pre-tokenizer");
    refuse_gguf(&(struct tiny_gguf){"gpt2", "mystery", "a b", -1}, ERR_UNSUPPORTED, "\"mystery\"");
    struct tokenizer *t;
    CHECK(tokenizer_open(&t, "/nonexistent/file", &e) == ERR_IO && !t);
}

int main(void)
{
    test_merges();
    test_pretok();
    test_behaviors();
    test_added();
    test_normalizer();
    test_stream();
    test_sentencepiece();
    test_folder();
    test_bos_of_template();
    test_gguf();
    test_refusals();
    tokenizer_free(NULL);
    return test_end("tokenizer_rules");
}

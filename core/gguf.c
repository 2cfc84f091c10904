/* Reader of GGUF 2 and 3 (the same bytes on little-endian machines). Everything is walked and
 * checked when the file is opened; lookups afterwards are binary searches that cannot fail.
 *
 * Refuses: big-endian files, nested arrays, tensors of unknown type number (their size is unknown,
 * so no later offset could be checked), holes, overlaps, duplicate names, zero-sized tensors. */
#include "core/gguf.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/cursor.h"
#include "core/file.h"

#define GGUF_NAME 64       /* with the terminating NUL, as the format has it */
#define GGUF_KV_MIN 14     /* key of one byte, type, value of one byte */
#define GGUF_TENSOR_MIN 33 /* name of one byte, rank, one dimension, type, offset */
#define GGUF_ALIGN_MAX 65536u

/* Every block type that files may hold, so that sizes can be checked and refusals have a name. */
static const struct ggml_type {
    int id;
    const char *name;
    int block, bytes;
} ggml_types[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},      {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 56},   {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
};

struct kv {
    struct gguf_str key;
    enum gguf_type type, elem; /* elem: of an array */
    size_t n;                  /* elements of an array */
    const uint8_t *value;      /* the scalar, the string's bytes, or the first element */
    size_t bytes;              /* of a string */
    const uint8_t *raw;        /* the value as it is in the file, after its type */
    size_t raw_bytes;
};

struct info {
    char name[GGUF_NAME];
    const struct ggml_type *type;
    int rank;
    size_t dim[4]; /* outermost first */
    size_t offset, bytes;
};

struct gguf {
    struct file_map map;
    struct kv *kv;                 /* sorted by key */
    struct info *info;             /* in file order */
    size_t n_kv, n_info, *by_name; /* by_name: indices of info sorted by name */
    const uint8_t *data;
};

static const size_t scalar_bytes[] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,     [GGUF_U16] = 2,   [GGUF_I16] = 2, [GGUF_U32] = 4,
    [GGUF_I32] = 4, [GGUF_F32] = 4,    [GGUF_BOOL] = 1,  [GGUF_U64] = 8, [GGUF_I64] = 8,
    [GGUF_F64] = 8, [GGUF_STRING] = 0, [GGUF_ARRAY] = 0,
};

static struct gguf_str read_string(struct cursor *c, const char *what)
{
    size_t n = cursor_count(c, 1, what);
    const uint8_t *p = cursor_take(c, n, what);
    return (struct gguf_str){(const char *)p, p ? n : 0};
}

/* Names reach messages and screens: no control characters, no quiet truncation. */
static bool printable(struct gguf_str s)
{
    for (size_t i = 0; i < s.n; i++)
        if ((unsigned char)s.s[i] < 32 || s.s[i] == 127)
            return false;
    return s.n > 0;
}

static enum gguf_type read_type(struct cursor *c)
{
    uint32_t type = cursor_u32(c, "a value's type");
    if (type > GGUF_F64)
        cursor_fail(c, ERR_FORMAT, "value type %u does not exist", type);
    return c->status ? GGUF_U8 : (enum gguf_type)type;
}

static void read_array(struct cursor *c, struct kv *kv)
{
    kv->elem = read_type(c);
    if (kv->elem == GGUF_ARRAY)
        cursor_fail(c, ERR_UNSUPPORTED, "an array of arrays");
    bool strings = kv->elem == GGUF_STRING;
    size_t each = strings ? 8 : scalar_bytes[kv->elem];
    kv->n = cursor_count(c, each ? each : 1, "an array");
    kv->value = c->status ? NULL : c->data + c->at;
    if (!strings)
        cursor_take(c, kv->n * each, "an array");
    for (size_t i = 0; strings && i < kv->n && !c->status; i++)
        read_string(c, "a string in an array");
}

static void read_kv(struct cursor *c, struct kv *kv)
{
    kv->key = read_string(c, "a key");
    if (!c->status && (!printable(kv->key) || kv->key.n > 65535))
        cursor_fail(c, ERR_FORMAT, "a key is empty, too long or holds control characters");
    kv->type = read_type(c);
    size_t begin = c->at;
    if (kv->type == GGUF_ARRAY) {
        read_array(c, kv);
    } else if (kv->type == GGUF_STRING) {
        struct gguf_str s = read_string(c, "a string");
        kv->value = (const uint8_t *)s.s;
        kv->bytes = s.n;
    } else {
        kv->value = cursor_take(c, scalar_bytes[kv->type], "a value");
    }
    kv->raw = c->status ? NULL : c->data + begin;
    kv->raw_bytes = c->status ? 0 : c->at - begin;
}

static int key_order(struct gguf_str a, struct gguf_str b)
{
    int order = memcmp(a.s, b.s, a.n < b.n ? a.n : b.n);
    return order ? order : (a.n > b.n) - (a.n < b.n);
}

static int kv_order(const void *a, const void *b)
{
    return key_order(((const struct kv *)a)->key, ((const struct kv *)b)->key);
}

static int read_kvs(struct gguf *g, struct cursor *c)
{
    g->kv = mem_calloc(g->n_kv, sizeof *g->kv);
    if (!g->kv)
        return cursor_fail(c, ERR_NOMEM, "out of memory for %zu keys", g->n_kv);
    for (size_t i = 0; i < g->n_kv && !c->status; i++)
        read_kv(c, &g->kv[i]);
    if (c->status)
        return c->status;
    qsort(g->kv, g->n_kv, sizeof *g->kv, kv_order);
    for (size_t i = 1; i < g->n_kv; i++)
        if (!kv_order(&g->kv[i - 1], &g->kv[i]))
            return cursor_fail(c, ERR_FORMAT, "key \"%.*s\" appears twice", (int)g->kv[i].key.n,
                               g->kv[i].key.s);
    return OK;
}

static const struct ggml_type *ggml_type(uint32_t id)
{
    for (size_t i = 0; i < sizeof ggml_types / sizeof *ggml_types; i++)
        if ((uint32_t)ggml_types[i].id == id)
            return &ggml_types[i];
    return NULL;
}

/* Shape → bytes; ne[0] varies fastest and must hold whole blocks. */
static void measure(struct cursor *c, struct info *t)
{
    size_t n = 1, fast = t->dim[t->rank - 1];
    for (int i = 0; i < t->rank; i++)
        if (t->dim[i] == 0 || !size_mul(n, t->dim[i], &n) || n > (size_t)1 << 48)
            cursor_fail(c, ERR_FORMAT, "tensor %s: dimension %d of %zu is not possible", t->name,
                        t->rank - 1 - i, t->dim[i]);
    if (!c->status && fast % (size_t)t->type->block)
        cursor_fail(c, ERR_FORMAT, "tensor %s: rows of %zu numbers do not hold whole %s blocks",
                    t->name, fast, t->type->name);
    if (!c->status) /* n < 2⁴⁸ and at most 8 bytes a number */
        t->bytes = n / (size_t)t->type->block * (size_t)t->type->bytes;
}

static void read_info(struct cursor *c, struct info *t)
{
    struct gguf_str name = read_string(c, "a tensor name");
    if (!c->status && (!printable(name) || name.n >= GGUF_NAME))
        cursor_fail(c, ERR_FORMAT, "a tensor name is empty, too long or holds control characters");
    if (c->status)
        return;
    memcpy(t->name, name.s, name.n);
    uint32_t rank = cursor_u32(c, "a tensor's rank");
    if (!c->status && (rank < 1 || rank > 4))
        cursor_fail(c, ERR_FORMAT, "tensor %s: %u dimensions; 1 to 4 can be", t->name, rank);
    t->rank = c->status ? 1 : (int)rank;
    for (int i = t->rank; i-- > 0;)
        t->dim[i] = cursor_u64(c, "a tensor's shape");
    uint32_t type = cursor_u32(c, "a tensor's type");
    t->offset = cursor_u64(c, "a tensor's offset");
    if (c->status)
        return;
    t->type = ggml_type(type);
    if (!t->type)
        cursor_fail(c, ERR_UNSUPPORTED, "tensor %s has the unknown type number %u", t->name, type);
    else
        measure(c, t);
}

static int name_order(const void *a, const void *b, void *user)
{
    const struct info *info = user;
    return strcmp(info[*(const size_t *)a].name, info[*(const size_t *)b].name);
}

static int read_infos(struct gguf *g, struct cursor *c)
{
    g->info = mem_calloc(g->n_info, sizeof *g->info);
    g->by_name = mem_calloc(g->n_info, sizeof *g->by_name);
    if (!g->info || !g->by_name)
        return cursor_fail(c, ERR_NOMEM, "out of memory for %zu tensors", g->n_info);
    for (size_t i = 0; i < g->n_info && !c->status; i++) {
        read_info(c, &g->info[i]);
        g->by_name[i] = i;
    }
    if (c->status)
        return c->status;
    qsort_r(g->by_name, g->n_info, sizeof *g->by_name, name_order, g->info);
    for (size_t i = 1; i < g->n_info; i++)
        if (!strcmp(g->info[g->by_name[i - 1]].name, g->info[g->by_name[i]].name))
            return cursor_fail(c, ERR_FORMAT, "tensor %s appears twice",
                               g->info[g->by_name[i]].name);
    return OK;
}

/* The format leaves no choice: each offset is the padded end of the tensor before. That excludes
 * overlaps and holes at once. */
static int place_data(struct gguf *g, struct cursor *c)
{
    long long align = gguf_int_or(g, "general.alignment", 32);
    if (align < 8 || align > GGUF_ALIGN_MAX || (align & (align - 1)))
        return cursor_fail(c, ERR_FORMAT, "alignment %lld; a power of two from 8 to %u can be",
                           align, GGUF_ALIGN_MAX);
    size_t mask = (size_t)align - 1, start = (c->at + mask) & ~mask, at = 0;
    if (g->n_info == 0)
        return OK;
    if (start > c->size)
        return cursor_fail(c, ERR_FORMAT, "the file ends before its tensors begin");
    for (size_t i = 0; i < g->n_info; i++) {
        const struct info *t = &g->info[i];
        if (t->offset != at)
            return cursor_fail(c, ERR_FORMAT, "tensor %s is at offset %zu, expected %zu", t->name,
                               t->offset, at);
        if (t->bytes > c->size - start || at > c->size - start - t->bytes)
            return cursor_fail(c, ERR_FORMAT,
                               "tensor %s ends at byte %zu of a file of %zu (an incomplete "
                               "download?)",
                               t->name, start + at + t->bytes, c->size);
        at = (at + t->bytes + mask) & ~mask;
    }
    g->data = g->map.data + start;
    return OK;
}

static int parse(struct gguf *g, struct cursor *c)
{
    const uint8_t *magic = cursor_take(c, 4, "the magic number");
    if (!magic || memcmp(magic, "GGUF", 4))
        return err_set(c->e, ERR_FORMAT, "%s: not a GGUF file: give one, or a Hugging Face folder",
                       c->where);
    uint32_t version = cursor_u32(c, "the version");
    if (!c->status && version != 2 && version != 3)
        return cursor_fail(c, ERR_UNSUPPORTED, "GGUF version %u (2 and 3 can be read)%s", version,
                           version & 0xffff ? "" : "; is it a big-endian file?");
    g->n_info = cursor_count(c, GGUF_TENSOR_MIN, "the tensor count");
    g->n_kv = cursor_count(c, GGUF_KV_MIN, "the key count");
    if (c->status || read_kvs(g, c) || read_infos(g, c))
        return c->status;
    return place_data(g, c);
}

int gguf_open(struct gguf **out, const char *path, struct err *e)
{
    *out = NULL;
    struct gguf *g = mem_calloc(1, sizeof *g);
    if (!g)
        return err_nomem(e, sizeof *g, "a GGUF file");
    int rc = file_map_open(&g->map, path, e);
    if (!rc) {
        struct cursor c = cursor_over(g->map.data, g->map.size, path, e);
        rc = parse(g, &c);
    }
    if (rc) {
        gguf_close(g);
        return rc;
    }
    *out = g;
    return OK;
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    file_map_close(&g->map);
    free(g->kv);
    free(g->info);
    free(g->by_name);
    free(g);
}

const char *gguf_path(const struct gguf *g)
{
    return g->map.path;
}

size_t gguf_file_bytes(const struct gguf *g)
{
    return g->map.size;
}

static const struct kv *find(const struct gguf *g, const char *key)
{
    struct kv want = {.key = {key, strlen(key)}};
    return bsearch(&want, g->kv, g->n_kv, sizeof want, kv_order);
}

size_t gguf_key_count(const struct gguf *g)
{
    return g->n_kv;
}

struct gguf_value gguf_value(const struct gguf *g, size_t i)
{
    const struct kv *kv = &g->kv[i];
    return (struct gguf_value){kv->key, kv->type, kv->raw, kv->raw_bytes};
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

/* false when the value is no integer or does not fit. */
static bool as_int(const struct kv *kv, long long *out)
{
    switch (kv->type) {
    case GGUF_U8: *out = kv->value[0]; return true;
    case GGUF_I8: *out = (int8_t)kv->value[0]; return true;
#define FIXED(tag, type)                                                                           \
    case tag: {                                                                                    \
        type v;                                                                                    \
        memcpy(&v, kv->value, sizeof v);                                                           \
        *out = (long long)v;                                                                       \
        return true;                                                                               \
    }
        FIXED(GGUF_U16, uint16_t)
        FIXED(GGUF_I16, int16_t)
        FIXED(GGUF_U32, uint32_t)
        FIXED(GGUF_I32, int32_t)
        FIXED(GGUF_I64, int64_t)
#undef FIXED
    case GGUF_U64: {
        uint64_t v;
        memcpy(&v, kv->value, sizeof v);
        *out = (long long)(v & LLONG_MAX);
        return v <= LLONG_MAX;
    }
    default: return false;
    }
}

static bool as_num(const struct kv *kv, double *out)
{
    float f;
    long long i;
    if (kv->type == GGUF_F64)
        memcpy(out, kv->value, sizeof *out);
    else if (kv->type == GGUF_F32)
        *out = (memcpy(&f, kv->value, sizeof f), (double)f);
    else if (as_int(kv, &i))
        *out = (double)i;
    else
        return false;
    return true;
}

static int missing(const struct gguf *g, const char *key, const struct kv *kv, const char *want,
                   struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: key \"%s\" is %s%s", g->map.path, key,
                   kv ? "not " : "missing; it must be ", want);
}

int gguf_int(const struct gguf *g, const char *key, long long *out, struct err *e)
{
    const struct kv *kv = find(g, key);
    return kv && as_int(kv, out) ? OK : missing(g, key, kv, "a whole number", e);
}

int gguf_num(const struct gguf *g, const char *key, double *out, struct err *e)
{
    const struct kv *kv = find(g, key);
    return kv && as_num(kv, out) ? OK : missing(g, key, kv, "a number", e);
}

int gguf_string(const struct gguf *g, const char *key, struct gguf_str *out, struct err *e)
{
    const struct kv *kv = find(g, key);
    if (!kv || kv->type != GGUF_STRING)
        return missing(g, key, kv, "a string", e);
    *out = (struct gguf_str){(const char *)kv->value, kv->bytes};
    return OK;
}

long long gguf_int_or(const struct gguf *g, const char *key, long long fallback)
{
    const struct kv *kv = find(g, key);
    long long v;
    return kv && as_int(kv, &v) ? v : fallback;
}

double gguf_num_or(const struct gguf *g, const char *key, double fallback)
{
    const struct kv *kv = find(g, key);
    double v;
    return kv && as_num(kv, &v) ? v : fallback;
}

bool gguf_bool_or(const struct gguf *g, const char *key, bool fallback)
{
    const struct kv *kv = find(g, key);
    return kv && kv->type == GGUF_BOOL ? kv->value[0] != 0 : fallback;
}

static const struct kv *find_array(const struct gguf *g, const char *key, enum gguf_type elem)
{
    const struct kv *kv = find(g, key);
    return kv && kv->type == GGUF_ARRAY && kv->elem == elem ? kv : NULL;
}

size_t gguf_array_len(const struct gguf *g, const char *key, enum gguf_type elem)
{
    const struct kv *kv = find_array(g, key, elem);
    return kv ? kv->n : 0;
}

int gguf_array_strings(const struct gguf *g, const char *key, struct gguf_str *out, size_t n,
                       struct err *e)
{
    const struct kv *kv = find_array(g, key, GGUF_STRING);
    if (!kv || n > kv->n)
        return missing(g, key, find(g, key), "an array of that many strings", e);
    /* Walked when the file was opened, so this cannot fail. */
    struct cursor c =
        cursor_over(kv->value, (size_t)(g->map.data + g->map.size - kv->value), g->map.path, e);
    for (size_t i = 0; i < n; i++)
        out[i] = read_string(&c, "a string in an array");
    return c.status;
}

const void *gguf_array_data(const struct gguf *g, const char *key, enum gguf_type elem)
{
    const struct kv *kv = elem == GGUF_STRING ? NULL : find_array(g, key, elem);
    return kv ? kv->value : NULL;
}

size_t gguf_tensor_count(const struct gguf *g)
{
    return g->n_info;
}

const char *gguf_tensor_name(const struct gguf *g, size_t i)
{
    return g->info[i].name;
}

static const struct info *find_info(const struct gguf *g, const char *name)
{
    size_t low = 0, high = g->n_info;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct info *t = &g->info[g->by_name[mid]];
        int order = strcmp(name, t->name);
        if (order == 0)
            return t;
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

bool gguf_has_tensor(const struct gguf *g, const char *name)
{
    return find_info(g, name) != NULL;
}

int gguf_tensor(const struct gguf *g, const char *name, struct tensor *out, struct err *e)
{
    const struct info *t = find_info(g, name);
    if (!t)
        return err_set(e, ERR_FORMAT, "%s: tensor %s is missing", g->map.path, name);
    enum dtype dtype = dtype_from_ggml(t->type->id);
    if (dtype == DTYPE_COUNT)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: tensor %s is stored as %s (type %d), which cannot be read yet; take a "
                       "file in another block type, BF16, F16 or F32",
                       g->map.path, name, t->type->name, t->type->id);
    *out = (struct tensor){.data = g->data + t->offset, .dtype = dtype, .rank = t->rank};
    memcpy(out->dim, t->dim, sizeof out->dim);
    return OK;
}

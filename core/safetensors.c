/* Reader of safetensors: one file, or a folder with one file or an index and its shards.
 *
 * Refuses: headers over 100 MB, duplicate names (across shards too), ranges with holes or overlaps
 * or past the end, sizes that contradict shape and dtype, shard names that leave the folder. */
#include "core/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "core/cursor.h"
#include "core/file.h"
#include "core/json.h"

#define HEADER_MAX ((size_t)100000000)
#define SHARDS_MAX 4096
#define DIM_MAX ((long long)1 << 48)

/* Every dtype of the format; those with a readable twin have its number. */
static const struct st_dtype {
    const char *name;
    int bytes;
    enum dtype dtype;
} st_dtypes[] = {
    {"F32", 4, DTYPE_F32},       {"F16", 2, DTYPE_F16},       {"BF16", 2, DTYPE_BF16},
    {"BOOL", 1, DTYPE_COUNT},    {"U8", 1, DTYPE_COUNT},      {"I8", 1, DTYPE_COUNT},
    {"F8_E5M2", 1, DTYPE_COUNT}, {"F8_E4M3", 1, DTYPE_COUNT}, {"F8_E8M0", 1, DTYPE_COUNT},
    {"I16", 2, DTYPE_COUNT},     {"U16", 2, DTYPE_COUNT},     {"I32", 4, DTYPE_COUNT},
    {"U32", 4, DTYPE_COUNT},     {"I64", 8, DTYPE_COUNT},     {"U64", 8, DTYPE_COUNT},
    {"F64", 8, DTYPE_COUNT},     {"C64", 8, DTYPE_COUNT},
};

struct entry {
    char *name;
    const struct st_dtype *type;
    int rank; /* as in the file; over 4 is listed but cannot be got */
    size_t dim[4];
    size_t begin, end; /* in the file's data */
    size_t file;       /* index into map */
    const uint8_t *data;
};

struct safetensors {
    struct file_map *map;
    size_t n_map, cap_map;
    struct entry *entry; /* sorted by name once open */
    size_t n, cap;
    size_t file_bytes;
    char *path;
};

static const struct st_dtype *find_dtype(const char *name)
{
    for (size_t i = 0; i < sizeof st_dtypes / sizeof *st_dtypes; i++)
        if (!strcmp(st_dtypes[i].name, name))
            return &st_dtypes[i];
    return NULL;
}

/* An element of a list of whole numbers. */
static bool whole(const cJSON *item, long long max, size_t *out)
{
    double v = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(v >= 0 && v <= (double)max) || v != (double)(long long)v)
        return false;
    *out = (size_t)v;
    return true;
}

static int read_shape(struct entry *t, const cJSON *shape, size_t *elements, const char *where,
                      struct err *e)
{
    const cJSON *item;
    *elements = 1;
    if (!cJSON_IsArray(shape))
        return err_set(e, ERR_FORMAT, "%s: tensor %s has no shape", where, t->name);
    cJSON_ArrayForEach(item, shape)
    {
        size_t dim;
        if (!whole(item, DIM_MAX, &dim) || !size_mul(*elements, dim, elements) ||
            *elements > (size_t)DIM_MAX)
            return err_set(e, ERR_FORMAT, "%s: tensor %s: dimension %d is not possible", where,
                           t->name, t->rank);
        if (t->rank < 4)
            t->dim[t->rank] = dim;
        t->rank++;
    }
    if (t->rank == 0)
        t->dim[t->rank++] = 1; /* a scalar */
    return OK;
}

static int read_entry(struct entry *t, const cJSON *item, const char *where, struct err *e)
{
    size_t elements, bytes;
    const char *dtype = json_str_or(item, "dtype", "");
    t->type = find_dtype(dtype);
    if (!t->type)
        return err_set(e, ERR_FORMAT, "%s: tensor %s has the unknown dtype \"%.32s\"", where,
                       t->name, dtype);
    int rc = read_shape(t, json_get(item, "shape"), &elements, where, e);
    if (rc)
        return rc;
    const cJSON *range = json_get(item, "data_offsets");
    const cJSON *begin = cJSON_IsArray(range) ? range->child : NULL;
    if (!begin || !begin->next || begin->next->next || !whole(begin, (1LL << 53), &t->begin) ||
        !whole(begin->next, (1LL << 53), &t->end) || t->end < t->begin)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: data_offsets must be [begin, end]", where,
                       t->name);
    if (!size_mul(elements, (size_t)t->type->bytes, &bytes) || bytes != t->end - t->begin)
        return err_set(e, ERR_FORMAT, "%s: tensor %s: shape and %s need other than %zu bytes",
                       where, t->name, t->type->name, t->end - t->begin);
    return OK;
}

static bool printable(const char *s)
{
    const char *at = s;
    while ((unsigned char)*at >= 32 && *at != 127)
        at++;
    return at > s && !*at;
}

static int add_entry(struct safetensors *s, const cJSON *item, const char *where, struct err *e)
{
    if (!printable(item->string) || strlen(item->string) > 512)
        return err_set(e, ERR_FORMAT,
                       "%s: a tensor name is empty, too long or holds control characters", where);
    if (!mem_grow((void **)&s->entry, &s->cap, s->n + 1, sizeof *s->entry))
        return err_nomem(e, (s->n + 1) * sizeof *s->entry, where);
    struct entry *t = &s->entry[s->n];
    *t = (struct entry){.name = mem_strdup(item->string), .file = s->n_map - 1};
    if (!t->name)
        return err_nomem(e, strlen(item->string), where);
    s->n++;
    return read_entry(t, item, where, e);
}

static int by_offset(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int order = (x->begin > y->begin) - (x->begin < y->begin);
    return order ? order : (x->end > y->end) - (x->end < y->end);
}

/* Ranges must tile the data exactly, which excludes overlaps, holes and truncation at once. */
static int check_tiling(struct entry *t, size_t n, size_t size, const uint8_t *data,
                        const char *where, struct err *e)
{
    size_t at = 0;
    if (n)
        qsort(t, n, sizeof *t, by_offset);
    for (size_t i = 0; i < n; i++) {
        if (t[i].end > size)
            return err_set(e, ERR_FORMAT,
                           "%s: tensor %s ends at byte %zu of %zu bytes of data (an incomplete "
                           "download?)",
                           where, t[i].name, t[i].end, size);
        if (t[i].begin != at)
            return err_set(e, ERR_FORMAT, "%s: tensor %s begins at byte %zu, expected %zu", where,
                           t[i].name, t[i].begin, at);
        t[i].data = data + t[i].begin;
        at = t[i].end;
    }
    if (at != size)
        return err_set(e, ERR_FORMAT, "%s: %zu bytes after the last tensor", where, size - at);
    return OK;
}

static int read_header(struct safetensors *s, const struct file_map *map, struct err *e)
{
    struct cursor c = cursor_over(map->data, map->size, map->path, e);
    uint64_t n = cursor_u64(&c, "the header's length");
    if (!c.status && n > HEADER_MAX)
        return cursor_fail(&c, ERR_FORMAT, "a header of %llu bytes; not a safetensors file?",
                           (unsigned long long)n);
    const uint8_t *text = cursor_take(&c, c.status ? 0 : (size_t)n, "the header");
    if (c.status)
        return c.status;
    cJSON *header;
    int rc = json_parse(&header, (const char *)text, (size_t)n, map->path, e);
    if (rc)
        return rc;
    size_t first = s->n;
    if (!cJSON_IsObject(header))
        rc = err_set(e, ERR_FORMAT, "%s: the header is no JSON object", map->path);
    for (const cJSON *item = header->child; item && !rc; item = item->next)
        if (strcmp(item->string, "__metadata__"))
            rc = add_entry(s, item, map->path, e);
    cJSON_Delete(header);
    if (rc)
        return rc;
    struct entry *mine = s->n > first ? s->entry + first : NULL;
    return check_tiling(mine, s->n - first, c.size - c.at, c.data + c.at, map->path, e);
}

static int open_file(struct safetensors *s, const char *path, struct err *e)
{
    if (!mem_grow((void **)&s->map, &s->cap_map, s->n_map + 1, sizeof *s->map))
        return err_nomem(e, sizeof *s->map, path);
    int rc = file_map_open(&s->map[s->n_map], path, e);
    if (rc)
        return rc;
    s->file_bytes += s->map[s->n_map].size;
    s->n_map++;
    return read_header(s, &s->map[s->n_map - 1], e);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int sort_entries(struct safetensors *s, struct err *e)
{
    if (s->n)
        qsort(s->entry, s->n, sizeof *s->entry, by_name);
    for (size_t i = 1; i < s->n; i++)
        if (!by_name(&s->entry[i - 1], &s->entry[i]))
            return err_set(e, ERR_FORMAT, "%s: tensor %s appears twice", s->path, s->entry[i].name);
    return OK;
}

static const struct entry *find(const struct safetensors *s, const char *name)
{
    struct entry want = {.name = (char *)(uintptr_t)name};
    return s->n ? bsearch(&want, s->entry, s->n, sizeof want, by_name) : NULL;
}

static int by_string(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A name from the index stays inside the folder. */
static bool plain_name(const char *name)
{
    return printable(name) && !strchr(name, '/') && name[0] != '.' && strlen(name) < 256;
}

/* Distinct shard names of a weight_map, sorted, in *names (pointing into the tree). */
static int shard_names(const cJSON *map, const char ***names, size_t *n, const char *where,
                       struct err *e)
{
    size_t count = 0, cap = 0;
    *names = NULL;
    for (const cJSON *item = map->child; item; item = item->next) {
        if (!cJSON_IsString(item) || !plain_name(item->valuestring))
            return err_set(e, ERR_FORMAT,
                           "%s: tensor %.200s: its file must be a plain name in "
                           "the same folder",
                           where, item->string);
        if (!mem_grow((void **)names, &cap, count + 1, sizeof **names))
            return err_nomem(e, count * sizeof **names, where);
        (*names)[count++] = item->valuestring;
    }
    if (!count)
        return err_set(e, ERR_FORMAT, "%s: weight_map names no tensors", where);
    qsort(*names, count, sizeof **names, by_string);
    *n = 1;
    for (size_t i = 1; i < count; i++)
        if (strcmp((*names)[i], (*names)[*n - 1]))
            (*names)[(*n)++] = (*names)[i];
    if (*n > SHARDS_MAX)
        return err_set(e, ERR_LIMIT, "%s: %zu files; %d are the most", where, *n, SHARDS_MAX);
    return OK;
}

static int open_shards(struct safetensors *s, const char *dir, const cJSON *map, const char *where,
                       struct err *e)
{
    const char **names = NULL;
    size_t n = 0;
    int rc = shard_names(map, &names, &n, where, e);
    for (size_t i = 0; i < n && !rc; i++) {
        char *path = path_join(dir, names[i]);
        rc = path ? open_file(s, path, e) : err_nomem(e, strlen(dir), "a path");
        free(path);
    }
    free(names);
    if (!rc)
        rc = sort_entries(s, e);
    for (const cJSON *item = map->child; item && !rc; item = item->next) {
        const struct entry *t = find(s, item->string);
        if (!t || strcmp(path_base(s->map[t->file].path), item->valuestring))
            rc = err_set(e, ERR_FORMAT, "%s: tensor %.200s is not in %s", where, item->string,
                         item->valuestring);
    }
    return rc;
}

static int open_index(struct safetensors *s, const char *dir, const char *index, struct err *e)
{
    cJSON *root;
    int rc = json_read_file(&root, index, HEADER_MAX, e);
    if (rc)
        return rc;
    const cJSON *map = json_get(root, "weight_map");
    if (cJSON_IsObject(map))
        rc = open_shards(s, dir, map, index, e);
    else
        rc = err_set(e, ERR_FORMAT, "%s: no weight_map", index);
    cJSON_Delete(root);
    return rc;
}

static int open_folder(struct safetensors *s, const char *dir, struct err *e)
{
    char *single = path_join(dir, "model.safetensors");
    char *index = path_join(dir, "model.safetensors.index.json");
    int rc;
    if (!single || !index)
        rc = err_nomem(e, strlen(dir), "a path");
    else if (file_exists(single))
        rc = open_file(s, single, e);
    else if (file_exists(index))
        rc = open_index(s, dir, index, e);
    else
        rc = err_set(e, ERR_IO,
                     "%s: neither model.safetensors nor model.safetensors.index.json is there: put "
                     "the weights beside config.json",
                     dir);
    free(single);
    free(index);
    return rc ? rc : sort_entries(s, e);
}

int safetensors_open(struct safetensors **out, const char *path, struct err *e)
{
    *out = NULL;
    struct safetensors *s = mem_calloc(1, sizeof *s);
    if (!s)
        return err_nomem(e, sizeof *s, "a safetensors file");
    int rc;
    s->path = mem_strdup(path);
    if (!s->path)
        rc = err_nomem(e, strlen(path), "a path");
    else if (file_is_dir(path))
        rc = open_folder(s, path, e);
    else if (!(rc = open_file(s, path, e)))
        rc = sort_entries(s, e);
    if (rc) {
        safetensors_close(s);
        return rc;
    }
    *out = s;
    return OK;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_map; i++)
        file_map_close(&s->map[i]);
    for (size_t i = 0; i < s->n; i++)
        free(s->entry[i].name);
    free(s->map);
    free(s->entry);
    free(s->path);
    free(s);
}

size_t safetensors_count(const struct safetensors *s)
{
    return s->n;
}

const char *safetensors_name(const struct safetensors *s, size_t i)
{
    return s->entry[i].name;
}

bool safetensors_has(const struct safetensors *s, const char *name)
{
    return find(s, name) != NULL;
}

int safetensors_get(const struct safetensors *s, const char *name, struct tensor *out,
                    struct err *e)
{
    const struct entry *t = find(s, name);
    if (!t)
        return err_set(e, ERR_FORMAT, "%s: tensor %s is missing", s->path, name);
    const char *path = s->map[t->file].path;
    if (t->type->dtype == DTYPE_COUNT)
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: tensor %s is stored as %s; F32, F16, BF16 and FP8 blocks can be read",
                       path, name, t->type->name);
    if (t->rank > 4)
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s has %d dimensions; 4 are the most", path,
                       name, t->rank);
    *out = (struct tensor){.data = t->data, .dtype = t->type->dtype, .rank = t->rank};
    memcpy(out->dim, t->dim, sizeof out->dim);
    return OK;
}

int safetensors_get_raw(const struct safetensors *s, const char *name, const char *dtype,
                        struct tensor *out, struct err *e)
{
    const struct entry *t = find(s, name);
    if (!t || strcmp(t->type->name, dtype) || t->rank != 2)
        return err_set(e, ERR_FORMAT, "%s: tensor %s is no matrix of %s", s->path, name, dtype);
    *out = (struct tensor){.data = t->data, .dtype = DTYPE_COUNT, .rank = t->rank};
    memcpy(out->dim, t->dim, sizeof out->dim);
    return OK;
}

const char *safetensors_dtype(const struct safetensors *s, const char *name)
{
    const struct entry *t = find(s, name);
    return t ? t->type->name : NULL;
}

size_t safetensors_file_bytes(const struct safetensors *s)
{
    return s->file_bytes;
}

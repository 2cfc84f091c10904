/* cJSON behind bounds. cJSON itself limits nesting (CJSON_NESTING_LIMIT); size is limited here. */
#include "core/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

int json_parse(cJSON **out, const char *text, size_t size, const char *where, struct err *e)
{
    const char *end = NULL;
    *out = NULL;
    if (size > JSON_MAX_BYTES)
        return err_set(e, ERR_LIMIT, "%s: JSON of %zu bytes is too large", where, size);
    cJSON *value = cJSON_ParseWithLengthOpts(text, size, &end, false);
    if (!value) {
        ptrdiff_t at = end ? end - text : 0;
        bool cut = at + 1 >= (ptrdiff_t)size; /* cJSON points at the last byte it can */
        return err_set(e, ERR_FORMAT, "%s: not valid JSON near byte %td%s", where, at,
                       cut ? ", its end: cut short?" : ": correct it there");
    }
    while (end < text + size && (!*end || strchr(" \t\r\n", *end))) /* headers are padded */
        end++;
    if (end < text + size) {
        cJSON_Delete(value);
        return err_set(e, ERR_FORMAT, "%s: byte %td comes after the end of the JSON value", where,
                       end - text);
    }
    *out = value;
    return OK;
}

int json_read_file(cJSON **out, const char *path, size_t max, struct err *e)
{
    char *text;
    size_t size;
    *out = NULL;
    int rc = file_read(path, max, &text, &size, e);
    if (rc)
        return rc;
    rc = json_parse(out, text, size, path, e);
    free(text);
    return rc;
}

/* cJSON settles for 15 digits where they are within an epsilon of the number: its last bit is lost.
 */
static bool inexact(const cJSON *v)
{
    char text[32];
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble) || v->valuedouble == v->valueint)
        return false;
    snprintf(text, sizeof text, "%.15g", v->valuedouble);
    return strtod(text, NULL) != v->valuedouble;
}

static bool any_inexact(const cJSON *v)
{
    bool found = inexact(v);
    for (const cJSON *item = v ? v->child : NULL; item && !found; item = item->next)
        found = any_inexact(item);
    return found;
}

/* Such numbers become text of 17 digits; false: no memory. */
static bool write_digits(cJSON *v)
{
    bool ok = true;
    if (inexact(v)) {
        v->type = cJSON_Raw;
        ok = (v->valuestring = mem_printf("%.17g", v->valuedouble)) != NULL;
    }
    for (cJSON *item = v->child; item && ok; item = item->next)
        ok = write_digits(item);
    return ok;
}

char *json_text(const cJSON *value, bool pretty)
{
    cJSON *copy = NULL;
    char *text = NULL;
    bool ok = true;
    if (any_inexact(value)) {
        copy = cJSON_Duplicate(value, true);
        ok = copy && write_digits(copy);
        value = copy;
    }
    if (ok)
        text = pretty ? cJSON_Print(value) : cJSON_PrintUnformatted(value);
    cJSON_Delete(copy);
    return text;
}

const cJSON *json_get(const cJSON *obj, const char *key)
{
    const cJSON *item = cJSON_IsObject(obj) ? cJSON_GetObjectItemCaseSensitive(obj, key) : NULL;
    return item && !cJSON_IsNull(item) ? item : NULL;
}

static int missing(const char *key, const char *where, struct err *e)
{
    return err_set(e, ERR_FORMAT, "%s: key \"%s\" is missing", where, key);
}

int json_int_opt(const cJSON *obj, const char *key, long long min, long long max, long long *out,
                 const char *where, struct err *e)
{
    const cJSON *item = json_get(obj, key);
    if (!item)
        return OK;
    double v = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (!(v >= (double)min && v <= (double)max) || v != floor(v))
        return err_set(e, ERR_FORMAT, "%s: \"%s\" must be a whole number from %lld to %lld", where,
                       key, min, max);
    *out = (long long)v;
    return OK;
}

int json_int(const cJSON *obj, const char *key, long long min, long long max, long long *out,
             const char *where, struct err *e)
{
    return json_get(obj, key) ? json_int_opt(obj, key, min, max, out, where, e)
                              : missing(key, where, e);
}

int json_num_opt(const cJSON *obj, const char *key, double *out, const char *where, struct err *e)
{
    const cJSON *item = json_get(obj, key);
    if (!item)
        return OK;
    if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble))
        return err_set(e, ERR_FORMAT, "%s: \"%s\" must be a number", where, key);
    *out = item->valuedouble;
    return OK;
}

int json_num(const cJSON *obj, const char *key, double *out, const char *where, struct err *e)
{
    return json_get(obj, key) ? json_num_opt(obj, key, out, where, e) : missing(key, where, e);
}

int json_bool_opt(const cJSON *obj, const char *key, bool *out, const char *where, struct err *e)
{
    const cJSON *item = json_get(obj, key);
    if (!item)
        return OK;
    if (!cJSON_IsBool(item))
        return err_set(e, ERR_FORMAT, "%s: \"%s\" must be true or false", where, key);
    *out = cJSON_IsTrue(item);
    return OK;
}

int json_str(const cJSON *obj, const char *key, const char **out, const char *where, struct err *e)
{
    const cJSON *item = json_get(obj, key);
    if (!item)
        return missing(key, where, e);
    if (!cJSON_IsString(item))
        return err_set(e, ERR_FORMAT, "%s: \"%s\" must be a string", where, key);
    *out = item->valuestring;
    return OK;
}

const char *json_str_or(const cJSON *obj, const char *key, const char *fallback)
{
    const cJSON *item = json_get(obj, key);
    return cJSON_IsString(item) ? item->valuestring : fallback;
}

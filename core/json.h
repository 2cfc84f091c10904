/* json: cJSON behind bounds and sentences. Reading checks size, depth and types and names the key
 * in its errors; object walks use child/next. Writing uses cJSON's own builders and json_text. */
#ifndef MLATHE_CORE_JSON_H
#define MLATHE_CORE_JSON_H

#include <cjson/cJSON.h>

#include "core/base.h"

#define JSON_MAX_BYTES ((size_t)256 << 20)

/* Parses size bytes (need not be NUL-terminated). where names the source in errors. */
int json_parse(cJSON **out, const char *text, size_t size, const char *where, struct err *e);
int json_read_file(cJSON **out, const char *path, size_t max, struct err *e);
/* Pretty text in fresh memory (free()), numbers with 17 significant digits only where needed. */
char *json_text(const cJSON *value, bool pretty);

/* Case-sensitive member or NULL; NULL as well when obj is no object or the value is null. */
const cJSON *json_get(const cJSON *obj, const char *key);
/* Required and optional members. Optional ones leave *out alone when absent; a present member of
 * the wrong type or out of range is always an error naming where and key. */
int json_int(const cJSON *obj, const char *key, long long min, long long max, long long *out,
             const char *where, struct err *e);
int json_int_opt(const cJSON *obj, const char *key, long long min, long long max, long long *out,
                 const char *where, struct err *e);
int json_num(const cJSON *obj, const char *key, double *out, const char *where, struct err *e);
int json_num_opt(const cJSON *obj, const char *key, double *out, const char *where, struct err *e);
int json_bool_opt(const cJSON *obj, const char *key, bool *out, const char *where, struct err *e);
/* *out points into the tree. */
int json_str(const cJSON *obj, const char *key, const char **out, const char *where, struct err *e);
const char *json_str_or(const cJSON *obj, const char *key, const char *fallback);

#endif

/* How configurations describe their rope. Refuses what changes with the length of a text (dynamic)
 * or mixes two rules (yarn); longrope is read by the family that has it. */
#include <stdio.h>
#include <string.h>

#include "core/family.h"
#include "core/gguf.h"

int family_rope_refuse(const char *kind, const char *where, struct err *e)
{
    return err_set(e, ERR_UNSUPPORTED,
                   "%s: rope scaling of type \"%.40s\" cannot be computed yet; default, linear and "
                   "llama3 can",
                   where, kind);
}

const cJSON *family_rope_parameters(const cJSON *config)
{
    const cJSON *set = json_get(config, "rope_scaling");
    return set ? set : json_get(config, "rope_parameters");
}

int family_rope_set(const cJSON *config, const cJSON *set, double theta, struct rope_spec *out,
                    double *partial, const char *where, struct err *e)
{
    struct rope_spec r = {.theta = theta, .factor = 1};
    const char *kind = json_str_or(set, "rope_type", json_str_or(set, "type", "default"));
    *partial = 1;
    int rc = json_num_opt(config, "rope_theta", &r.theta, where, e);
    if (!rc)
        rc = json_num_opt(set, "rope_theta", &r.theta, where, e);
    if (!rc)
        rc = json_num_opt(config, "partial_rotary_factor", partial, where, e);
    if (!rc)
        rc = json_num_opt(set, "partial_rotary_factor", partial, where, e);
    if (!rc && !strcmp(kind, "llama3")) {
        r.kind = ROPE_LLAMA3;
        if (!(rc = json_num(set, "low_freq_factor", &r.low, where, e)) &&
            !(rc = json_num(set, "high_freq_factor", &r.high, where, e)))
            rc = json_num(set, "original_max_position_embeddings", &r.original_context, where, e);
    } else if (!rc && !strcmp(kind, "linear")) {
        r.kind = ROPE_LINEAR;
    } else if (!rc && strcmp(kind, "default")) {
        rc = family_rope_refuse(kind, where, e);
    }
    if (!rc && r.kind != ROPE_DEFAULT)
        rc = json_num(set, "factor", &r.factor, where, e);
    *out = r;
    return rc ? rc : ropefreq_check(&r, where, e);
}

int family_rope_hf(const cJSON *config, double theta, struct rope_spec *out, const char *where,
                   struct err *e)
{
    double partial;
    int rc =
        family_rope_set(config, family_rope_parameters(config), theta, out, &partial, where, e);
    if (!rc && partial != 1)
        rc = err_set(e, ERR_UNSUPPORTED, "%s: partial rotary embedding (%g of a head)", where,
                     partial);
    return rc;
}

int family_rope_gguf(const struct gguf *g, const char *arch, struct rope_spec *out, struct err *e)
{
    char key[96];
    struct gguf_str kind = {"none", 4};
    struct rope_spec r = {.theta = 10000, .factor = 1};
    int rc = OK;
    snprintf(key, sizeof key, "%s.rope.freq_base", arch);
    if (gguf_has(g, key))
        rc = gguf_num(g, key, &r.theta, e);
    snprintf(key, sizeof key, "%s.rope.scale_linear", arch); /* before rope.scaling existed */
    r.factor = gguf_num_or(g, key, 1);
    snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
    if (!rc && gguf_has(g, key))
        rc = gguf_string(g, key, &kind, e);
    if (rc)
        return rc;
    snprintf(key, sizeof key, "%s.rope.scaling.factor", arch);
    if (kind.n == 6 && !memcmp(kind.s, "linear", 6)) {
        rc = gguf_num(g, key, &r.factor, e);
    } else if (kind.n != 4 || memcmp(kind.s, "none", 4)) {
        snprintf(key, sizeof key, "%.*s", kind.n < 40 ? (int)kind.n : 40, kind.s);
        rc = family_rope_refuse(key, gguf_path(g), e);
    }
    if (r.factor != 1)
        r.kind = ROPE_LINEAR;
    *out = r;
    return rc ? rc : ropefreq_check(&r, gguf_path(g), e);
}

/* How configurations describe their rope. Refuses types it does not know, by name; longrope is read
 * by the family that has it.
 *
 * Dynamic scaling changes the base with every token beyond the trained context and nothing within
 * it: it is read as no scaling at all, and since no timeline is longer than the trained context,
 * that is exact. */
#include <stdio.h>
#include <string.h>

#include "core/family.h"
#include "core/gguf.h"

#define BETA_FAST 32 /* yarn, where nothing else is said */
#define BETA_SLOW 1

int family_rope_refuse(const char *kind, const char *where, struct err *e)
{
    return err_set(
        e, ERR_UNSUPPORTED,
        "%s: rope scaling of type \"%.40s\" cannot be computed; default, linear, llama3, "
        "yarn and dynamic can, and longrope in Phi models",
        where, kind);
}

const cJSON *family_rope_parameters(const cJSON *config)
{
    const cJSON *set = json_get(config, "rope_scaling");
    return set ? set : json_get(config, "rope_parameters");
}

/* Numbers for which 0, null and absence mean the same. */
static int number_or(const cJSON *set, const char *key, double fallback, double *out,
                     const char *where, struct err *e)
{
    int rc = json_num_opt(set, key, out, where, e);
    if (!rc && *out == 0)
        *out = fallback;
    return rc;
}

/* transformers, modeling_rope_utils: the magnitude is given, or follows from mscale and
 * mscale_all_dim where both are given, or from the factor. */
static int yarn_hf(const cJSON *config, const cJSON *set, struct rope_spec *r, const char *where,
                   struct err *e)
{
    double mscale = 0, all = 0, context = 2048;
    bool truncate = true;
    const struct {
        const cJSON *from;
        const char *key;
        double *out;
    } numbers[] = {
        {set, "beta_fast", &r->high},
        {set, "beta_slow", &r->low},
        {set, "mscale", &mscale},
        {set, "mscale_all_dim", &all},
        {set, "attention_factor", &r->magnitude},
        {config, "max_position_embeddings", &context},
        {set, "original_max_position_embeddings", &r->original_context},
        {config, "original_max_position_embeddings", &r->original_context},
    };
    int rc = json_bool_opt(set, "truncate", &truncate, where, e);
    r->factor = 0;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers && !rc; i++)
        rc = number_or(numbers[i].from, numbers[i].key, *numbers[i].out, numbers[i].out, where, e);
    if (!rc && r->original_context == 0)
        r->original_context = context;
    if (!rc)
        rc = number_or(set, "factor", context / r->original_context, &r->factor, where, e);
    r->smooth_edges = !truncate;
    if (!rc && r->magnitude == 0)
        r->magnitude = mscale != 0 && all != 0
                           ? ropefreq_mscale(r->factor, mscale) / ropefreq_mscale(r->factor, all)
                           : ropefreq_mscale(r->factor, 1);
    double m = ropefreq_mscale(r->factor, all);
    r->logit_scale = m * m;
    return rc;
}

static int scaling_hf(const cJSON *config, const cJSON *set, const char *kind, struct rope_spec *r,
                      const char *where, struct err *e)
{
    int rc = OK;
    if (!strcmp(kind, "llama3")) {
        r->kind = ROPE_LLAMA3;
        if (!(rc = json_num(set, "low_freq_factor", &r->low, where, e)) &&
            !(rc = json_num(set, "high_freq_factor", &r->high, where, e)))
            rc = json_num(set, "original_max_position_embeddings", &r->original_context, where, e);
        return rc ? rc : json_num(set, "factor", &r->factor, where, e);
    }
    if (!strcmp(kind, "linear")) {
        r->kind = ROPE_LINEAR;
        return json_num(set, "factor", &r->factor, where, e);
    }
    if (!strcmp(kind, "yarn")) {
        r->kind = ROPE_YARN;
        r->high = BETA_FAST;
        r->low = BETA_SLOW;
        return yarn_hf(config, set, r, where, e);
    }
    if (!strcmp(kind, "dynamic") && json_get(set, "alpha"))
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: dynamic rope scaling by \"alpha\" cannot be computed", where);
    return strcmp(kind, "default") && strcmp(kind, "dynamic") ? family_rope_refuse(kind, where, e)
                                                              : OK;
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
    if (!rc)
        rc = scaling_hf(config, set, kind, &r, where, e);
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

static double number_of(const struct gguf *g, const char *arch, const char *name, double fallback)
{
    char key[96];
    snprintf(key, sizeof key, "%s.rope.scaling.%s", arch, name);
    return gguf_num_or(g, key, fallback);
}

/* As llama.cpp computes it, and with the keys that its converter writes from the model's own
 * configuration though it reads them for few architectures: yarn_beta_fast and yarn_beta_slow, and
 * yarn_attn_factor, the whole magnitude. attn_factor multiplies. DeepSeek files hold a tenth of
 * mscale_all_dim as yarn_log_multiplier; it equals mscale there and scales the logits. */
static int yarn_gguf(const struct gguf *g, const char *arch, struct rope_spec *r, struct err *e)
{
    bool deepseek = !strcmp(arch, "deepseek2");
    double all = deepseek ? 10 * number_of(g, arch, "yarn_log_multiplier", 0) : 0;
    double extra = number_of(g, arch, "yarn_ext_factor", 1), context;
    char key[96];
    snprintf(key, sizeof key, "%s.context_length", arch);
    context = gguf_num_or(g, key, 0);
    r->kind = ROPE_YARN;
    r->factor = number_of(g, arch, "factor", 0);
    r->original_context = number_of(g, arch, "original_context_length", context);
    r->high = number_of(g, arch, "yarn_beta_fast", BETA_FAST);
    r->low = number_of(g, arch, "yarn_beta_slow", BETA_SLOW);
    if (extra >= 0 && extra != 1) /* negative: not set */
        return err_set(e, ERR_UNSUPPORTED,
                       "%s: \"%s.rope.scaling.yarn_ext_factor\" is %g; 1 can be computed",
                       gguf_path(g), arch, extra);
    double usual = all != 0 ? 1 : ropefreq_mscale(r->factor, 1);
    r->magnitude = number_of(g, arch, "yarn_attn_factor", usual);
    r->magnitude *= number_of(g, arch, "attn_factor", 1);
    double m = r->magnitude * ropefreq_mscale(r->factor, all);
    r->logit_scale = deepseek ? m * m : 1;
    return OK;
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
    if (kind.n == 8 && !memcmp(kind.s, "longrope", 8) && !strcmp(arch, "phi3")) {
        /* the family has the lists */
    } else if (kind.n == 4 && !memcmp(kind.s, "yarn", 4)) {
        rc = yarn_gguf(g, arch, &r, e);
    } else if (kind.n == 6 && !memcmp(kind.s, "linear", 6)) {
        rc = gguf_num(g, key, &r.factor, e);
    } else if (kind.n != 4 || memcmp(kind.s, "none", 4)) {
        snprintf(key, sizeof key, "%.*s", kind.n < 40 ? (int)kind.n : 40, kind.s);
        rc = family_rope_refuse(key, gguf_path(g), e);
    }
    if (r.kind == ROPE_DEFAULT) {
        r.kind = r.factor != 1 ? ROPE_LINEAR : ROPE_DEFAULT;
        r.magnitude = number_of(g, arch, "attn_factor", 0);
    }
    *out = r;
    return rc ? rc : ropefreq_check(&r, gguf_path(g), e);
}

int family_rope_long(struct model *m, const struct rope_spec *rope, int dim, const double *divisor,
                     const char *where, struct err *e)
{
    struct rope_spec spec = *rope;
    double *freq = family_own(m, (size_t)dim / 2, sizeof *freq);
    if (!freq)
        return err_nomem(e, (size_t)dim / 2 * sizeof *freq, "rope frequencies");
    spec.divisor = divisor;
    ropefreq_fill(&spec, dim, freq);
    for (int l = 0; l < m->hp.n_layer; l++)
        m->layer[l].rope_freq_long = freq;
    return ropefreq_usable(freq, dim / 2, where, e);
}

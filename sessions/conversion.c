/* Solves all layers of a plan and assembles the converted model. Layers are independent: a round
 * solves one a thread; progress and cancel are looked at between rounds, on the caller's thread. */
#include "sessions/conversion.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/json.h"
#include "core/kvmem.h"
#include "core/safetensors.h"
#include "kernels/pool.h"
#include "sessions/prepared.h"
#include "sessions/spill.h"

struct moments_shape conversion_shape(const struct model *m, int layer)
{
    const struct model_layer *y = &m->layer[layer];
    struct moments_shape s = {.H = m->hp.n_head,
                              .G = m->hp.n_kv_head,
                              .d = m->hp.head_dim,
                              .D = m->hp.hidden,
                              .rope_dim = y->rope_dim,
                              .window = y->window,
                              .softcap = m->hp.attn_softcap,
                              .still = y->no_rope,
                              .magnitude = y->no_rope ? 0 : m->hp.rope_magnitude};
    bool bias = y->k_bias.data || y->v_bias.data, normed = y->q_norm.data || y->k_norm.data;
    s.affine = !normed && moments_n(&s) > s.D + bias; /* a norm makes keys more than a linear map */
    s.constant = s.affine && bias;
    return s;
}

int conversion_source(const struct model *m, int layer, struct mla_source *out, struct err *e)
{
    const struct model_layer *y = &m->layer[layer];
    *out = (struct mla_source){.shape = conversion_shape(m, layer),
                               .freq = y->rope_freq,
                               .freq_long = y->rope_freq_long,
                               .scale = y->attn_scale,
                               .norm_eps = m->hp.rms_eps};
    const struct {
        const struct tensor *from;
        const float **to;
    } part[] = {{&y->q, &out->wq},      {&y->k, &out->wk},          {&y->v, &out->wv},
                {&y->o, &out->wo},      {&y->q_bias, &out->bq},     {&y->k_bias, &out->bk},
                {&y->v_bias, &out->bv}, {&y->q_norm, &out->q_norm}, {&y->k_norm, &out->k_norm}};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        float *f;
        if (!part[i].from->data)
            continue;
        int rc = tensor_to_f32(part[i].from, &f, e);
        if (rc) {
            conversion_source_done(out);
            return rc;
        }
        *part[i].to = f;
    }
    return OK;
}

void conversion_source_done(struct mla_source *s)
{
    const float *all[] = {s->wq, s->wk, s->wv, s->wo, s->bq, s->bk, s->bv, s->q_norm, s->k_norm};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free((void *)(uintptr_t)all[i]);
    *s = (struct mla_source){0};
}

/* One round of layers; each task writes only its own slots. */
struct round {
    const struct conversion_input *in;
    const struct rankplan *plan;
    struct conversion *c;
    int first;
    int *rc;
    struct err *err;
};

/* What a solved layer does to its output, in parts. */
static int measure(const struct mla_source *src, const struct moments *m,
                   const struct prepared_layer *p, const struct mla_result *made,
                   struct layer_report *r, struct err *e)
{
    int rc = mla_measure(src, m->sample, p->q, p->y, m->sample_rows, m->sample_window, made,
                         &r->error, e);
    r->loss_rope = fmin(r->error, p->loss_rope);
    r->loss_layout = fmax(fmin(p->loss_layout, r->loss_rope), 0);
    r->loss_rank = r->error - r->loss_rope;
    return rc;
}

/* The whole error alone. */
static int measure_brief(const struct mla_source *src, const struct moments *m,
                         const struct mla_result *made, struct layer_report *r, struct err *e)
{
    size_t size = (size_t)m->sample_rows * (size_t)m->shape.D;
    float *y = mem_calloc(size, sizeof *y);
    int rc = y ? mla_original(src, m->sample, m->sample_rows, m->sample_window, y, e)
               : err_nomem(e, size * sizeof *y, "measuring a layer");
    if (!rc)
        rc = mla_measure(src, m->sample, NULL, y, m->sample_rows, m->sample_window, made, &r->error,
                         e);
    free(y);
    return rc;
}

/* Moves a solved layer's tensors to disk. */
static int spill_layer(struct conversion *c, int l, const char *dir, struct err *e)
{
    const struct model_hparams *hp = &c->model.hp;
    struct mla_result *m = &c->made[l];
    size_t D = (size_t)hp->hidden, H = (size_t)hp->n_head, d = (size_t)hp->head_dim;
    size_t r = (size_t)m->r, R = (size_t)m->R, kd = (size_t)hp->n_kv_head * d;
    float **const array[] = {&m->q, &m->kv_a, &m->kv_b};
    const size_t count[] = {m->normed ? H * R * d : H * (d + R) * D,
                            (r + R) * (m->normed ? 2 * kd : D), H * 2 * d * r};
    return spill_floats(&c->spilled[l], dir, 3, array, count, e);
}

static struct mla_options layer_options(const struct round *r, int l)
{
    const struct plan_layer *want = &r->plan->layer[l];
    return (struct mla_options){.method = r->plan->method,
                                .layout = r->plan->layout,
                                .rank = want->kv_lora_rank,
                                .rope_dim = want->qk_rope_head_dim,
                                .shared = r->in->shared,
                                .without = r->plan->without,
                                .rounds = r->plan->rounds,
                                .stride = r->plan->stride,
                                .balance = r->plan->balance,
                                .damping = r->plan->damping,
                                .freqfold = rankplan_freqfold(r->plan, want->qk_rope_head_dim),
                                .c_second = r->in->c_second ? r->in->c_second[l] : NULL};
}

/* A layer with its report; what no rank changes, and all of it where nothing changed, from before.
 */
static int solve_prepared(const struct round *r, int l, const struct mla_source *src,
                          const struct moments *m, const struct mla_options *o, struct err *e)
{
    const struct conversion *was = r->in->previous;
    struct mla_result *made = &r->c->made[l];
    struct layer_report *report = &r->c->report.layer[l];
    struct prepared_layer own = {0};
    bool keep = r->in->prepared && !o->c_second;
    struct prepared_layer *p = keep ? &r->in->prepared[l] : &own;
    int rc = prepared_fill(p, src, m, o, keep ? moments_width(&m->shape) : o->rank, e);
    bool again = !rc && was && was->made && !was->spilled && p->serial == was->serial &&
                 p->serial && p->rank == o->rank;
    if (again) {
        rc = mla_result_copy(made, &was->made[l], src, e);
        *report = p->report;
    } else if (!rc) {
        rc = mla_complete(p->solve, src, m, o->rank, made, e);
        report->energy = mla_prepared_energy(p->solve, o->rank);
        if (!rc && m->sample)
            rc = measure(src, m, p, made, report, e);
    }
    if (!rc && keep) {
        p->serial = r->in->serial;
        p->rank = o->rank;
        p->report = *report;
    }
    prepared_done(&own);
    return rc;
}

static void solve_layer(void *arg, int i, int thread)
{
    struct round *r = arg;
    int l = r->first + i;
    struct layer_report *report = &r->c->report.layer[l];
    struct mla_options o = layer_options(r, l);
    struct mla_source src = {0};
    (void)thread;
    struct err *e = &r->err[i];
    const struct moments *m = NULL;
    int rc = stats_layer(r->in->stats, l, &m, e);
    if (!rc)
        rc = conversion_source(r->in->base, l, &src, e);
    src.device = r->in->device;
    *report = (struct layer_report){.kv_lora_rank = o.rank, .qk_rope_head_dim = o.rope_dim};
    report->energy = report->error = report->loss_rope = report->loss_layout = report->loss_rank =
        NAN;
    if (!rc && r->in->measure && !r->in->brief) {
        rc = solve_prepared(r, l, &src, m, &o, e);
    } else if (!rc) {
        rc = mla_solve(&src, m, &o, &r->c->made[l], NULL, e);
        if (!rc && r->in->measure && m->sample)
            rc = measure_brief(&src, m, &r->c->made[l], report, e);
    }
    if (!rc && r->c->spilled)
        rc = spill_layer(r->c, l, r->in->spill, e);
    conversion_source_done(&src);
    stats_release(r->in->stats, m);
    r->rc[i] = rc;
}

static struct tensor f32_view(const float *data, size_t rows, size_t cols)
{
    return (struct tensor){.data = data, .dtype = DTYPE_F32, .rank = 2, .dim = {rows, cols}};
}

static struct tensor f32_list(const float *data, size_t n)
{
    return (struct tensor){.data = data, .dtype = DTYPE_F32, .rank = 1, .dim = {n}};
}

void conversion_set_layer(struct conversion *c, int l, int r, int R, const double *freq,
                          const double *freq_long)
{
    const struct model_hparams *hp = &c->model.hp;
    struct model_layer *y = &c->model.layer[l];
    y->attn = ATTN_MLA;
    bool normed = y->q_norm.data; /* q, k, v and their norms stay: the latent comes after them */
    if (!normed)
        y->k = y->v = y->q_bias = y->k_bias = y->v_bias = (struct tensor){0};
    y->kv_lora_rank = r;
    y->qk_rope_head_dim = y->rope_dim = R;
    y->qk_nope_head_dim = y->v_head_dim = hp->head_dim;
    y->rope_freq = freq;
    y->rope_freq_long = freq_long;
    if (!normed)
        y->attn_scale = 1 / sqrt(hp->head_dim + R);
}

static void bind_made(struct conversion *c)
{
    const struct model_hparams *hp = &c->model.hp;
    size_t D = (size_t)hp->hidden, H = (size_t)hp->n_head, d = (size_t)hp->head_dim;
    for (int l = 0; l < hp->n_layer; l++) {
        const struct mla_result *m = &c->made[l];
        struct model_layer *y = &c->model.layer[l];
        if (!m->kv_a)
            continue; /* not asked for */
        size_t r = (size_t)m->r, R = (size_t)m->R;
        conversion_set_layer(c, l, m->r, m->R, m->freq, m->freq_long);
        if (m->normed)
            y->q_rope = f32_view(m->q, H * R, d);
        else
            y->q = f32_view(m->q, H * (d + R), D);
        y->kv_a = f32_view(m->kv_a, r + R, m->normed ? 2 * (size_t)hp->n_kv_head * d : D);
        y->kv_b = f32_view(m->kv_b, H * 2 * d, r);
        if (m->q_bias)
            y->q_bias = f32_list(m->q_bias, H * (d + R));
        if (m->kv_a_bias)
            y->kv_a_bias = f32_list(m->kv_a_bias, r + R);
    }
}

int conversion_new(struct conversion **out, const struct model *base, struct err *e)
{
    size_t L = (size_t)base->hp.n_layer;
    struct conversion *c = mem_calloc(1, sizeof *c);
    *out = NULL;
    if (!c)
        return err_nomem(e, sizeof *c, "a conversion");
    c->base = base;
    c->model = *base;
    c->model.format = MODEL_CONVERSION;
    c->model.owner = NULL;
    c->model.owner_free = NULL;
    c->model.path = NULL;
    c->model.layer = mem_calloc(L, sizeof *c->model.layer);
    c->report.layer = mem_calloc(L, sizeof *c->report.layer);
    c->report.n_layer = (int)L;
    c->report.kl_held = NAN;
    c->freq = mem_calloc(L, sizeof *c->freq);
    c->freq_long = mem_calloc(L, sizeof *c->freq_long);
    if (!c->model.layer || !c->report.layer || !c->freq || !c->freq_long) {
        conversion_free(c);
        return err_nomem(e, L * sizeof *c->model.layer, "a conversion");
    }
    memcpy(c->model.layer, base->layer, L * sizeof *base->layer);
    *out = c;
    return OK;
}

int conversion_take(struct conversion *c, struct tensor *t, float *f, struct err *e)
{
    size_t i = 0;
    void *grown = c->taken;
    while (i < c->n_taken && c->taken[i] != t->data)
        i++;
    if (i < c->n_taken) {
        free(c->taken[i]);
    } else if (!mem_grow(&grown, &c->cap_taken, c->n_taken + 1, sizeof *c->taken)) {
        free(f);
        return err_nomem(e, c->n_taken * sizeof *c->taken, "a conversion's tensors");
    } else {
        c->taken = grown;
        c->n_taken++;
    }
    c->taken[i] = f;
    t->data = f;
    t->dtype = DTYPE_F32;
    return OK;
}

double conversion_bytes(const struct model *m, const struct rankplan *plan)
{
    double D = m->hp.hidden, H = m->hp.n_head, d = m->hp.head_dim, sum = 0;
    for (int l = 0; l < m->hp.n_layer; l++) {
        double r = plan->layer[l].kv_lora_rank, R = plan->layer[l].qk_rope_head_dim;
        sum += H * (d + R) * D + (r + R) * D + 2 * H * d * r;
    }
    return sizeof(float) * sum;
}

double conversion_layer_bytes(const struct model *m, int r)
{
    double D = m->hp.hidden, d = m->hp.head_dim, most = 0;
    double heads = d * (2.0 * m->hp.n_head + 2.0 * m->hp.n_kv_head);
    for (int l = 0; l < m->hp.n_layer; l++) {
        struct moments_shape s = conversion_shape(m, l);
        double bytes = mla_solve_bytes(&s, r);
        most = bytes > most ? bytes : most;
    }
    return most + sizeof(float) * heads * D;
}

void conversion_fill_report(struct conversion *c)
{
    const struct plan_model *m = &c->plan.model;
    size_t one = dtype_bytes(DTYPE_F16, 1);
    c->report.kept = rankplan_kept(&c->plan);
    c->report.kv_bytes_before = (size_t)rankplan_numbers_gqa(m) * one;
    c->report.kv_bytes_after = (size_t)rankplan_numbers(&c->plan) * one;
}

static int solve_rounds(struct conversion *c, const struct conversion_input *in,
                        const struct convert_sink *sink, const struct progress *p, struct err *e)
{
    int threads = pool_threads(in->pool), rc = OK;
    int first = in->count ? in->first : 0, L = in->count ? first + in->count : in->base->hp.n_layer;
    if (in->at_once && in->at_once < threads)
        threads = in->at_once;
    int *codes = mem_calloc((size_t)threads, sizeof *codes);
    struct err *errs = mem_calloc((size_t)threads, sizeof *errs);
    if (!codes || !errs)
        rc = err_nomem(e, (size_t)threads * sizeof *errs, "a round of layers");
    for (int l = first; l < L && !rc; l += threads) {
        int n = L - l < threads ? L - l : threads;
        struct round round = {in, &c->plan, c, l, codes, errs};
        if (!progress_report(p, "solving layers", l, L)) {
            rc = err_set(e, ERR_CANCELLED, "conversion stopped");
            break;
        }
        pool_for(in->pool, n, solve_layer, &round);
        for (int i = 0; i < n && !rc; i++) {
            if ((rc = codes[i]) != OK)
                err_set(e, rc, "layer %d: %s", l + i, errs[i].text);
            else if (sink && sink->on_layer)
                sink->on_layer(sink->user, l + i, &c->report.layer[l + i]);
        }
    }
    free(codes);
    free(errs);
    return rc;
}

static int layer_values(const struct stats *stats, int l, double *value, struct err *e)
{
    const struct moments *m;
    int rc = stats_layer(stats, l, &m, e);
    if (rc)
        return rc;
    size_t pairs = (size_t)m->shape.H * (size_t)(m->shape.rope_dim / 2);
    double complex *shrink = mem_calloc(pairs, sizeof *shrink);
    double *r2 = mem_calloc(pairs, sizeof *r2);
    rc = shrink && r2 ? OK : err_nomem(e, pairs * sizeof *shrink, "shrinks");
    if (!rc) {
        mla_shrink(m, 0, shrink, r2);
        rc = mla_rope_values(m, r2, value, e);
    }
    free(shrink);
    free(r2);
    stats_release(stats, m);
    return rc;
}

int conversion_shared_list(const struct model *base, const struct stats *stats, int R, int *list,
                           struct err *e)
{
    int L = base->hp.n_layer, G = base->hp.n_kv_head, half = 0, n = 0;
    double **value = mem_calloc((size_t)L, sizeof *value);
    int rc = value ? OK : err_nomem(e, (size_t)L * sizeof *value, "a shared rope list");
    for (int l = 0; l < L && !rc; l++) {
        struct moments_shape s = stats_layer_shape(stats, l);
        if (s.still) /* rows that never turn fit any list */
            continue;
        half = s.rope_dim / 2;
        value[n] = mem_calloc((size_t)(half * G), sizeof **value);
        rc = value[n] ? layer_values(stats, l, value[n], e)
                      : err_nomem(e, (size_t)(half * G) * sizeof **value, "a shared rope list");
        n++;
    }
    if (!rc && (R < 2 || R > 2 * G * half))
        rc = err_set(e, ERR_ARG, "rope width %d: this model takes 2 to %d", R, 2 * G * half);
    if (!rc)
        rc = mla_rope_share(value, n, half, G, R, list, e);
    for (int l = 0; value && l < n; l++)
        free(value[l]);
    free(value);
    return rc;
}

int conversion_solve(struct conversion **out, const struct conversion_input *in,
                     const struct rankplan *plan, const struct convert_sink *sink,
                     const struct progress *p, struct err *e)
{
    struct conversion *c;
    int rc = conversion_new(&c, in->base, e);
    *out = NULL;
    if (rc)
        return rc;
    rc = rankplan_copy(&c->plan, plan, e);
    c->serial = in->serial;
    c->made = rc ? NULL : mem_calloc((size_t)in->base->hp.n_layer, sizeof *c->made);
    if (!rc && in->spill)
        c->spilled = mem_calloc((size_t)in->base->hp.n_layer, sizeof *c->spilled);
    if (!rc && (!c->made || (in->spill && !c->spilled)))
        rc = err_nomem(e, sizeof *c->made, "a conversion");
    if (!rc)
        rc = solve_rounds(c, in, sink, p, e);
    if (rc) {
        conversion_free(c);
        return rc;
    }
    bind_made(c);
    conversion_fill_report(c);
    *out = c;
    return OK;
}

void conversion_free(struct conversion *c)
{
    if (!c)
        return;
    conversion_runtime_drop(c);
    for (int l = 0; l < c->report.n_layer; l++) {
        if (c->spilled && c->spilled[l].data) {
            c->made[l].q = c->made[l].kv_a = c->made[l].kv_b = NULL;
            spill_done(&c->spilled[l]);
        }
        if (c->made)
            mla_result_done(&c->made[l]);
        if (c->freq)
            free(c->freq[l]);
        if (c->freq_long)
            free(c->freq_long[l]);
    }
    free(c->spilled);
    for (size_t i = 0; i < c->n_taken; i++)
        free(c->taken[i]);
    free(c->taken);
    cJSON_Delete(c->healing);
    free(c->made);
    free(c->freq);
    free(c->freq_long);
    free(c->model.layer);
    free(c->dir);
    safetensors_close(c->stored);
    rankplan_done(&c->plan);
    conversion_report_done(&c->report);
    free(c);
}

void conversion_report_done(struct conversion_report *r)
{
    free(r->layer);
    *r = (struct conversion_report){0};
}

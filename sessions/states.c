/* Hidden states of a text, kept for all its tokens; caches and activations for one group. */
#include "sessions/states.h"

#include <string.h>

size_t states_rows(const struct calib_text *t)
{
    return (size_t)t->windows * (size_t)t->window + (size_t)t->n_long * (size_t)t->long_len;
}

int states_group_rows(const struct calib_text *t)
{
    int rows = STATES_GROUP * t->window;
    return t->long_len > rows ? t->long_len : rows;
}

int states_window_groups(const struct calib_text *t)
{
    return (t->windows + STATES_GROUP - 1) / STATES_GROUP;
}

bool states_group(const struct calib_text *t, int i, struct states_group *out)
{
    int groups = states_window_groups(t), from = i * STATES_GROUP;
    if (i < groups) {
        int count = t->windows - from < STATES_GROUP ? t->windows - from : STATES_GROUP;
        *out =
            (struct states_group){(size_t)from * (size_t)t->window, count * t->window, t->window};
        return true;
    }
    i -= groups;
    *out = (struct states_group){(size_t)t->windows * (size_t)t->window +
                                     (size_t)i * (size_t)t->long_len,
                                 t->long_len, t->long_len};
    return i < t->n_long;
}

/* The widest cache row of any layer. */
static void cache_widths(struct states *s)
{
    const struct model_hparams *hp = &s->g->model->hp;
    for (int l = 0; l < hp->n_layer; l++) {
        const struct model_layer *y = &s->g->model->layer[l];
        int b = y->attn == ATTN_MLA ? 0 : hp->n_kv_head * hp->head_dim;
        int a = y->attn == ATTN_MLA ? y->kv_lora_rank + y->qk_rope_head_dim : b;
        s->wide_a = a > s->wide_a ? a : s->wide_a;
        s->wide_b = b > s->wide_b ? b : s->wide_b;
    }
}

int states_init(struct states *s, const struct engine *g, const struct calib_text *text,
                struct err *e)
{
    struct backend *b = g->backend;
    size_t rows = states_rows(text), group = (size_t)states_group_rows(text);
    size_t D = (size_t)g->model->hp.hidden;
    *s = (struct states){.g = g, .text = text};
    cache_widths(s);
    s->h = b->ops->alloc(b, rows * D * sizeof(float));
    s->cache.a = b->ops->alloc(b, group * (size_t)s->wide_a * sizeof(float));
    if (s->wide_b)
        s->cache.b = b->ops->alloc(b, group * (size_t)s->wide_b * sizeof(float));
    if (!s->h || !s->cache.a || (s->wide_b && !s->cache.b))
        return err_nomem(e, rows * D * sizeof(float),
                         "the text's hidden states: use fewer tokens (--tokens)");
    int rc = scratch_reserve(&s->scratch, g, (int)group, e);
    for (size_t i = 0; i < rows && !rc; i += group)
        forward_embed(g, s->h + i * D, text->ids + i, (int)(rows - i < group ? rows - i : group));
    return rc ? rc : b->ops->sync(b, e);
}

void states_done(struct states *s)
{
    if (s->g) {
        struct backend *b = s->g->backend;
        b->ops->free(b, s->h);
        b->ops->free(b, s->cache.a);
        b->ops->free(b, s->cache.b);
    }
    scratch_done(&s->scratch);
    *s = (struct states){0};
}

static int segments(const struct states *s, const struct states_group *group,
                    struct segment seg[STATES_GROUP])
{
    int n = group->n / group->T;
    for (int i = 0; i < n; i++) {
        size_t row = (size_t)i * (size_t)group->T;
        seg[i] = (struct segment){.row = (int)row, .n = group->T};
        seg[i].cache.a = (float *)s->cache.a + row * (size_t)s->wide_a;
        seg[i].cache.b = s->wide_b ? (float *)s->cache.b + row * (size_t)s->wide_b : NULL;
    }
    return n;
}

static float *rows_of(const struct states *s, const struct states_group *group)
{
    return s->h + group->first * (size_t)s->g->model->hp.hidden;
}

void states_attention(struct states *s, int layer, const struct states_group *group,
                      const struct forward_tap *tap)
{
    const struct model_hparams *hp = &s->g->model->hp;
    struct backend *b = s->g->backend;
    struct segment seg[STATES_GROUP];
    int n = segments(s, group, seg);
    scratch_new_batch(&s->scratch);
    b->ops->rms_norm(b, s->scratch.x, rows_of(s, group), s->g->layer[layer].attn_norm,
                     (float)hp->rms_eps, group->n, hp->hidden);
    forward_attention(s->g, layer, s->scratch.x, group->n, seg, n, DTYPE_F32, &s->scratch, tap);
}

void states_output(struct states *s, int layer, const struct states_group *group)
{
    forward_output(s->g, layer, rows_of(s, group), s->scratch.att, group->n, &s->scratch);
}

void states_ffn(struct states *s, int layer, const struct states_group *group)
{
    forward_ffn(s->g, layer, rows_of(s, group), group->n, &s->scratch);
}

void states_layer(struct states *s, int layer, const struct states_group *group,
                  const struct forward_tap *tap)
{
    states_attention(s, layer, group, tap);
    states_output(s, layer, group);
    states_ffn(s, layer, group);
}

/* moments as values: room, access, and the softmax that everybody shares. */
#include "core/moments.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int moments_n(const struct moments_shape *s)
{
    return 2 * s->G * s->d;
}

int moments_width(const struct moments_shape *s)
{
    return s->affine ? s->D + s->constant : moments_n(s);
}

int moments_groups(const struct moments_shape *s)
{
    return s->groups ? s->groups : s->H;
}

double moments_magnitude2(const struct moments_shape *s)
{
    return s->magnitude > 0 ? s->magnitude * s->magnitude : 1;
}

int moments_features(const struct moments_shape *s)
{
    int half = s->rope_dim / 2;
    return s->candidates ? 2 * half + 1 + 4 * s->candidates : 4 * s->G * half;
}

int moments_feature(const struct moments_shape *s, bool rotated, int g, int j)
{
    int half = s->rope_dim / 2;
    return 2 * ((rotated ? s->G * half : 0) + g * half + j);
}

int moments_candidate(const struct moments_shape *s, bool rotated, int a)
{
    return s->rope_dim / 2 * 2 + 1 + 2 * ((rotated ? s->candidates : 0) + a);
}

static size_t triangle(int n)
{
    return (size_t)n * ((size_t)n + 1) / 2;
}

/* What a mapped set keeps in its file. */
static bool init_large(struct moments *m, bool attended)
{
    const struct moments_shape *s = &m->shape;
    size_t groups = (size_t)moments_groups(s), each = triangle(moments_width(s));
    if (s->affine && !(m->key = mem_calloc(triangle(s->G * s->d), sizeof *m->key)))
        return false;
    if (!attended)
        return true;
    m->cko = mem_calloc(groups * each, sizeof *m->cko);
    m->cv = mem_calloc(groups * each, sizeof *m->cv);
    m->phase = mem_calloc((size_t)s->H * triangle(moments_features(s)), sizeof *m->phase);
    return m->cko && m->cv && m->phase;
}

static bool init_small(struct moments *m, bool attended)
{
    const struct moments_shape *s = &m->shape;
    size_t w = (size_t)moments_width(s), d = (size_t)s->d, H = (size_t)s->H;
    size_t half = (size_t)(s->rope_dim / 2), C = (size_t)s->candidates, G = (size_t)s->G;
    m->c = mem_calloc(w * w, sizeof *m->c);
    m->m = mem_calloc(H * d * d, sizeof *m->m);
    if (!m->c || !m->m || !attended)
        return m->c && m->m;
    m->cvi = mem_calloc(H, sizeof *m->cvi);
    m->turn = mem_calloc(H * half * 2, sizeof *m->turn);
    if (!C || !m->cvi || !m->turn)
        return m->cvi && m->turn;
    m->six = mem_calloc(H * half * 6, sizeof *m->six);
    m->index = mem_calloc(C, sizeof *m->index);
    m->basis = mem_calloc(C * G * 4, sizeof *m->basis);
    return m->six && m->index && m->basis;
}

static int no_room(struct moments *m, struct err *e)
{
    size_t w = (size_t)moments_width(&m->shape), groups = (size_t)moments_groups(&m->shape);
    moments_done(m);
    return err_nomem(e, groups * w * w * sizeof(float), "calibration statistics");
}

int moments_init(struct moments *m, const struct moments_shape *s, bool attended, struct err *e)
{
    *m = (struct moments){.shape = *s};
    return init_small(m, attended) && init_large(m, attended) ? OK : no_room(m, e);
}

int moments_init_mapped(struct moments *m, const struct moments_shape *s, struct err *e)
{
    *m = (struct moments){.shape = *s, .mapped = true};
    return init_small(m, true) ? OK : no_room(m, e);
}

void moments_done(struct moments *m)
{
    if (!m->mapped) {
        free(m->cko);
        free(m->cv);
        free(m->phase);
        free(m->key);
        free(m->sample);
    }
    free(m->c);
    free(m->m);
    free(m->cvi);
    free(m->turn);
    free(m->six);
    free(m->index);
    free(m->basis);
    *m = (struct moments){0};
}

void moments_unpack(const float *packed, int n, int head, double *full)
{
    enum { TILE = 16 }; /* mirrored in tiles: whole columns would miss the cache at every number */
    const float *p = packed + (size_t)head * triangle(n);
    for (int i = 0; i < n; p += n - i, i++)
        for (int j = i; j < n; j++)
            full[(size_t)i * n + j] = p[j - i];
    for (int i = 0; i < n; i += TILE)
        for (int j = i; j < n; j += TILE)
            for (int y = j; y < n && y < j + TILE; y++)
                for (int x = i; x < i + TILE && x < y; x++)
                    full[(size_t)y * n + x] = full[(size_t)x * n + y];
}

void moments_of_head(const struct moments *m, const float *packed, int h, double *full)
{
    int per = m->shape.H / moments_groups(&m->shape);
    moments_unpack(packed, moments_width(&m->shape), h / per, full);
}

double moments_key(const struct moments *m, int i, int j)
{
    int a = i < j ? i : j, b = i < j ? j : i, nk = m->shape.G * m->shape.d;
    if (!m->shape.affine)
        return m->c[(size_t)i * (size_t)moments_n(&m->shape) + (size_t)j];
    return m->key[triangle(nk) - triangle(nk - a) + (size_t)(b - a)];
}

double moments_phase(const struct moments *m, int h, int i, int j)
{
    int f = moments_features(&m->shape), a = i < j ? i : j, b = i < j ? j : i;
    return m->phase[(size_t)h * triangle(f) + triangle(f) - triangle(f - a) + (size_t)(b - a)];
}

void moments_six(const struct moments *m, int h, int j, double six[6])
{
    const struct moments_shape *s = &m->shape;
    if (m->six) {
        memcpy(six, m->six + (size_t)(h * (s->rope_dim / 2) + j) * 6, 6 * sizeof *six);
        return;
    }
    int g = h / (s->H / s->G), re = moments_feature(s, false, g, j), im = re + 1;
    int y = moments_feature(s, true, g, j);
    const int at[6][2] = {{re, re}, {im, im}, {re, im}, {re, y}, {im, y}, {y, y}};
    for (int i = 0; i < 6; i++)
        six[i] = moments_phase(m, h, at[i][0], at[i][1]);
}

void moments_softmax(const struct moments_shape *s, float *P, int T)
{
    float cap = (float)s->softcap;
    for (int m = 0; m < T; m++) {
        int first = s->window > 0 && m >= s->window ? m - s->window + 1 : 0;
        float *row = P + (size_t)m * (size_t)T, top = -INFINITY, sum = 0;
        if (cap > 0)
            for (int i = first; i <= m; i++)
                row[i] = cap * tanhf(row[i] / cap);
        for (int i = first; i <= m; i++)
            top = row[i] > top ? row[i] : top;
        memset(row, 0, (size_t)first * sizeof *row);
        for (int i = first; i <= m; i++)
            sum += row[i] = expf(row[i] - top);
        for (int i = first; i <= m; i++)
            row[i] /= sum;
        memset(row + m + 1, 0, (size_t)(T - m - 1) * sizeof *row);
    }
}

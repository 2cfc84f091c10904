/* Screen 1: the models found on this machine, and what is known about the selected one. */
#include <stdio.h>
#include <string.h>

#include "core/kvmem.h"
#include "ui/app_parts.h"

static void count_text(double n, char text[16])
{
    if (n >= 1e9)
        snprintf(text, 16, "%.1f G", n / 1e9);
    else if (n >= 1e6)
        snprintf(text, 16, "%.0f M", n / 1e6);
    else
        snprintf(text, 16, "%.0f k", n / 1e3);
}

static bool is_open(const struct app *a, const struct model_entry *m)
{
    return a->has_model && m->path &&
           ((a->j.model && strcmp(m->path, a->j.model) == 0) ||
            (a->j.conversion && strcmp(m->path, a->j.conversion) == 0));
}

static void draw_row(const struct app *a, struct screen *s, int y, struct rect in, int i)
{
    const struct model_entry *m = &a->found.entry[i];
    bool selected = i == a->found_selected;
    enum role role = selected ? ROLE_SELECTED : m->usable ? ROLE_NORMAL : ROLE_DIM;
    char size[32], count[16], rest[128];
    int rest_width = in.w >= 56 ? 34 : in.w >= 40 ? 19 : 0;
    kvmem_text((double)m->bytes, size, sizeof size);
    count_text((double)m->parameters, count);
    if (selected) {
        screen_fill(s, (struct rect){y, in.x, 1, in.w}, role);
        screen_cursor(s, y, in.x);
    }
    screen_put(s, y, in.x, 1, role, selected ? "▶" : " ");
    screen_put(s, y, in.x + 1, 1, role, is_open(a, m) ? "●" : m->usable ? " " : "✗");
    screen_put(s, y, in.x + 3, in.w - 3 - rest_width - 1, role, m->name ? m->name : "?");
    if (m->parameters == 0)
        snprintf(rest, sizeof rest, "%*s", rest_width, m->source);
    else if (rest_width == 34)
        snprintf(rest, sizeof rest, "%-7.7s %8s %-6.6s %10s", m->family, count, m->dtype, size);
    else
        snprintf(rest, sizeof rest, "%8s %10s", count, size);
    if (rest_width)
        screen_put(s, y, in.x + in.w - rest_width, rest_width, role, rest);
}

static void draw_list(struct app *a, struct screen *s, struct rect r)
{
    struct rect in = layout_inside(r);
    char title[64];
    int n = (int)a->found.n;
    snprintf(title, sizeof title, "models on this machine: %d", n);
    screen_box(s, r, ROLE_FOCUS, a->scanned ? title : "models on this machine: looking…");
    if (in.h < 1)
        return;
    if (n == 0 && a->scanned) {
        screen_put(s, in.y, in.x + 1, in.w - 2, ROLE_NORMAL,
                   "None found. p types a path: a GGUF file or a Hugging Face folder.");
        return;
    }
    a->found_top = layout_scroll(a->found_top, a->found_selected, in.h, n);
    view_rows(a, in, a->found_top, n, &a->found_selected);
    for (int i = 0; i < in.h && a->found_top + i < n; i++)
        draw_row(a, s, in.y + i, in, a->found_top + i);
    if (a->found_top + in.h < n)
        screen_right(s, r.y + r.h - 1, r.x, r.w - 2, ROLE_FOCUS, " ↓ more ");
}

static int fact(struct screen *s, struct rect in, int row, enum role role, const char *key,
                const char *text)
{
    if (row >= in.h)
        return row;
    screen_put(s, in.y + row, in.x + 1, in.w - 2, ROLE_DIM, key);
    if (strcmp(key, "where") == 0)
        screen_tail(s, in.y + row, in.x + 13, in.w - 14, role, text);
    else
        screen_put(s, in.y + row, in.x + 13, in.w - 14, role, text);
    return row + 1;
}

static void draw_entry(const struct model_entry *m, bool open, struct screen *s, struct rect in)
{
    char text[1200], shown[1024], a[32], b[32], count[16];
    int row = 0;
    row = fact(s, in, row, ROLE_NORMAL, "where", app_path_text(m->path ? m->path : "", shown));
    if (m->parameters == 0) {
        row = fact(s, in, row, ROLE_NORMAL, "what", m->source);
        fact(s, in, row, m->usable ? ROLE_GOOD : ROLE_WARN, m->usable ? "✓" : "✗",
             m->usable ? "can be opened here (Enter)" : m->reason);
        return;
    }
    count_text((double)m->parameters, count);
    kvmem_text((double)m->bytes, a, sizeof a);
    snprintf(text, sizeof text, "%s, %s, %s parameters, %s, %s; found in %s", m->family, m->format,
             count, m->dtype, a, m->source);
    row = fact(s, in, row, ROLE_NORMAL, "what", text);
    snprintf(text, sizeof text, "%d layers, %d query and %d KV heads of %d; context %d tokens",
             m->n_layer, m->n_head, m->n_kv_head, m->head_dim, m->context);
    row = fact(s, in, row, ROLE_NORMAL, "shape", text);
    kvmem_text((double)m->kv_bytes_per_token * 8192, b, sizeof b);
    snprintf(text, sizeof text, "%zu B a token (F16), %s at 8192 tokens", m->kv_bytes_per_token, b);
    row = fact(s, in, row, ROLE_NORMAL, "KV cache", text);
    if (m->usable && m->exports[0]) {
        snprintf(text, sizeof text, "%s (stock layout)", m->exports);
        row = fact(s, in, row, ROLE_NORMAL, "exports to", text);
    }
    const char *can = open ? "is open" : "can be opened (Enter)";
    bool fine = m->usable && !m->reason[0] && !m->converts[0];
    if (!m->usable)
        snprintf(text, sizeof text, "%s", m->reason);
    else
        snprintf(text, sizeof text, "%s%s%s%s%s", can, m->reason[0] ? "; " : "", m->reason,
                 m->converts[0] ? "; cannot be converted: " : "; can be converted (screen 2)",
                 m->converts);
    fact(s, in, row, fine ? ROLE_GOOD : ROLE_WARN, m->usable ? "✓" : "✗", text);
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    struct list_layout l = layout_list(body, 6);
    draw_list(a, s, l.list);
    struct rect in = layout_inside(l.detail);
    if (in.h < 1)
        return;
    bool any = a->found_selected < (int)a->found.n;
    const struct model_entry *m = any ? &a->found.entry[a->found_selected] : NULL;
    screen_box(s, l.detail, ROLE_BORDER, m && m->name ? m->name : "model");
    if (m)
        draw_entry(m, is_open(a, m), s, in);
}

const struct view_ops view_model = {"model", IN_MODEL, draw};

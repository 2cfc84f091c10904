/* Screen 6 of this version: says honestly what can be taken away now and how. */
#include <stdio.h>

#include "ui/app_parts.h"

static void draw(struct app *a, struct screen *s, struct rect body)
{
    char path[1024], why[64];
    static const char *const engine[] = {"own runtime", "llama.cpp", "vLLM"};
    struct rect in = layout_inside(body);
    int y = in.y, x = in.x + 1, w = in.w - 2;
    screen_box(s, body, ROLE_FOCUS, "export");
    if (in.h < 4)
        return;
    screen_put(s, y++, x, w, ROLE_NORMAL, "This screen is not in this version. What there is:");
    y++;
    screen_put(s, y++, x, w, ROLE_NORMAL, "plan (JSON)    s on screen 2");
    if (a->j.conversion) {
        int k = screen_put(s, y, x, w, ROLE_NORMAL, "own format     ");
        screen_tail(s, y++, x + k, w - k, ROLE_NORMAL, app_path_text(a->j.conversion, path));
    } else
        screen_put(s, y++, x, w, ROLE_NORMAL, "own format     c on screen 2 writes it");
    if (!a->ranks.has_plan || y + 4 > in.y + in.h)
        return;
    y++;
    screen_put(s, y++, x, w, ROLE_NORMAL, "The plan of screen 2 would load in:");
    for (int i = 0; i < 3 && y < in.y + in.h; i++) {
        bool ok = plan_loads_in(&a->ranks.plan, i, why);
        screen_putf(s, y++, x, w, ok ? ROLE_GOOD : ROLE_NORMAL, "  %-12s %s %s", engine[i],
                    ok ? "✓" : "✗", why);
    }
}

const struct view_ops view_export = {"export", IN_EXPORT, draw};

/* Screen 5 of this version: says honestly that measuring is done on the command line, with the
 * command filled in for what is open. */
#include <stdio.h>

#include "ui/app.h"

static void draw(struct app *a, struct screen *s, struct rect body)
{
    char model[1024], conversion[1024], text[2300];
    struct rect in = layout_inside(body);
    int y = in.y, x = in.x + 1, w = in.w - 2;
    screen_box(s, body, ROLE_FOCUS, "evaluate");
    if (in.h < 4)
        return;
    screen_put(s, y++, x, w, ROLE_NORMAL, "This screen is not in this version. Use, in a shell:");
    y++;
    app_path_text(a->j.model ? a->j.model : "MODEL", model);
    if (a->j.conversion)
        snprintf(text, sizeof text, "mlathe eval %s \\",
                 app_path_text(a->j.conversion, conversion));
    else
        snprintf(text, sizeof text, "mlathe eval %s --ppl TEXT.txt", model);
    screen_put(s, y++, x, w, ROLE_KEY, text);
    if (a->j.conversion) {
        snprintf(text, sizeof text, "    --against %s --ppl TEXT.txt", model);
        screen_put(s, y++, x, w, ROLE_KEY, text);
    }
    if (y < in.y + in.h - 1)
        screen_put(s, y + 1, x, w, ROLE_DIM,
                   a->j.conversion ? "perplexity of the conversion, and its KL from the original"
                                   : "perplexity; with a conversion also its KL from the original");
}

const struct view_ops view_eval = {"evaluate", IN_EVAL, draw};

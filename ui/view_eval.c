/* Screen 5 of this version: says honestly that measuring is done on the command line, with the
 * command filled in for what is open. */
#include <stdio.h>
#include <string.h>

#include "ui/app_parts.h"

/* How the command line would name a model: short when the list of models knows it. */
static const char *name_of(const struct app *a, const char *path, char text[1024])
{
    for (size_t i = 0; path && i < a->found.n; i++)
        if (a->found.entry[i].path && strcmp(a->found.entry[i].path, path) == 0 &&
            !strchr(a->found.entry[i].name, ' '))
            return a->found.entry[i].name;
    return path ? app_path_text(path, text) : "MODEL";
}

/* Words of a command, broken with a backslash so that the whole of it can be copied. */
static int put_command(struct screen *s, struct rect in, int y, const char *const *word, int n)
{
    int x = 0, w = in.w - 4;
    for (int i = 0; i < n && y < in.y + in.h; i++) {
        int need = sanitize_width(word[i], strlen(word[i])) + 1;
        if (x > 0 && x + need > w) {
            screen_put(s, y++, in.x + 2 + x, 1, ROLE_KEY, "\\");
            x = 4;
        }
        x += screen_put(s, y, in.x + 2 + x, w - x, ROLE_KEY, word[i]) + 1;
    }
    return y + 1;
}

static void draw(struct app *a, struct screen *s, struct rect body)
{
    char model[1024], conversion[1024];
    struct rect in = layout_inside(body);
    int y = in.y;
    screen_box(s, body, ROLE_FOCUS, "evaluate");
    screen_put(s, y, in.x + 1, in.w - 2, ROLE_NORMAL,
               "This screen is not in this version. Use, in a shell:");
    y += 2;
    if (a->j.conversion) {
        const char *const word[] = {"mlathe",
                                    "eval",
                                    name_of(a, a->j.conversion, conversion),
                                    "--against",
                                    name_of(a, a->j.model, model),
                                    "--ppl",
                                    "TEXT.txt"};
        y = put_command(s, in, y, word, 7);
    } else {
        const char *const word[] = {"mlathe", "eval", name_of(a, a->j.model, model), "--ppl",
                                    "TEXT.txt"};
        y = put_command(s, in, y, word, 5);
    }
    if (y + 1 < in.y + in.h)
        screen_put(s, y + 1, in.x + 1, in.w - 2, ROLE_DIM,
                   a->j.conversion ? "perplexity of the conversion, and its KL from the original"
                                   : "perplexity; with a conversion also its KL from the original");
}

const struct view_ops view_eval = {"evaluate", IN_EVAL, draw};

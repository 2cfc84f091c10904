/* layout: (rows, columns, what is shown) → rectangles. Pure: no terminal, no state. Whatever the
 * size, rectangles lie inside the screen, do not overlap, and may be empty (h or w 0). */
#ifndef MLATHE_UI_LAYOUT_H
#define MLATHE_UI_LAYOUT_H

#include "core/base.h"

struct rect {
    int y, x, h, w;
};
#define LAYOUT_WIDE 120    /* columns from which two plots stand side by side */
#define LAYOUT_COLUMNS 100 /* columns from which chats stand side by side */

struct frame_layout {
    struct rect head, body, foot; /* one line, the screen, one line */
};
struct ranks_layout {
    struct rect list, plot, plot2, facts; /* plot2: only when wide; facts: without a box */
};
struct list_layout {
    struct rect list, detail; /* boxes */
};
struct chat_layout {
    struct rect side[2], middle, input; /* middle: one line of comparison */
};
struct frame_layout layout_frame(int rows, int cols);
/* facts: lines of text below the boxes. */
struct ranks_layout layout_ranks(struct rect body, int facts);
/* detail: lines wanted inside the lower box. */
struct list_layout layout_list(struct rect body, int detail);
/* sides 1 or 2; input_lines the prompt wants. */
struct chat_layout layout_chat(struct rect body, int sides, int input_lines);
/* Without the border; boxes too small for one have none. */
struct rect layout_inside(struct rect box);

/* First visible row of a list so that selected is visible; keeps top where it can. */
int layout_scroll(int top, int selected, int visible, int total);

#endif

/* Tables of keys: what curses calls them, and what terminals send when their description is wrong
 * or knows less. */
#include "ui/term_keys.h"

#include <curses.h>
#include <stdlib.h>
#include <string.h>

#include "ui/keys.h"

int term_keys_code(int key)
{
    static const struct {
        int from, to;
    } table[] = {
        {KEY_UP, UI_UP},
        {KEY_DOWN, UI_DOWN},
        {KEY_LEFT, UI_LEFT},
        {KEY_RIGHT, UI_RIGHT},
        {KEY_HOME, UI_HOME},
        {KEY_END, UI_END},
        {KEY_PPAGE, UI_PAGE_UP},
        {KEY_NPAGE, UI_PAGE_DOWN},
        {KEY_SLEFT, UI_SHIFT_LEFT},
        {KEY_SRIGHT, UI_SHIFT_RIGHT},
        {KEY_BTAB, UI_SHIFT_TAB},
        {KEY_IC, UI_INSERT},
        {KEY_DC, UI_DELETE},
        {KEY_BACKSPACE, UI_BACKSPACE},
        {KEY_ENTER, UI_ENTER},
        {KEY_A1, UI_HOME},
        {KEY_C1, UI_END},
        {KEY_RESIZE, UI_RESIZE},
    };
    if (key >= KEY_F(1) && key <= KEY_F(10))
        return UI_F1 + (key - KEY_F(1));
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].from == key)
            return table[i].to;
    return 0;
}

bool term_keys_goes_on(const char *text)
{
    size_t n = strlen(text);
    unsigned char last = (unsigned char)text[n - 1];
    if (text[0] == 'O')
        return n == 1;
    return text[0] == '[' && (n == 1 || last < 0x40); /* parameters, then one that ends it */
}

/* "[1;3A": the number before the end, or a letter that is the key itself, and what is held. */
int term_keys_sequence(const char *text)
{
    static const struct {
        char end;
        int number; /* before '~' */
        int key;
    } table[] = {
        {'~', 1, UI_HOME},   {'~', 7, UI_HOME},   {'~', 4, UI_END},       {'~', 8, UI_END},
        {'~', 2, UI_INSERT}, {'~', 3, UI_DELETE}, {'~', 5, UI_PAGE_UP},   {'~', 6, UI_PAGE_DOWN},
        {'A', 0, UI_UP},     {'B', 0, UI_DOWN},   {'C', 0, UI_RIGHT},     {'D', 0, UI_LEFT},
        {'H', 0, UI_HOME},   {'F', 0, UI_END},    {'Z', 0, UI_SHIFT_TAB}, {'M', 0, UI_ENTER},
        {'P', 0, UI_F1},     {'Q', 0, UI_F2},     {'R', 0, UI_F3},        {'S', 0, UI_F4},
        {'~', 11, UI_F1},    {'~', 12, UI_F2},    {'~', 13, UI_F3},       {'~', 14, UI_F4},
        {'~', 15, UI_F5},    {'~', 17, UI_F6},    {'~', 18, UI_F7},       {'~', 19, UI_F8},
        {'~', 20, UI_F9},    {'~', 21, UI_F10},
    };
    size_t n = strlen(text);
    if (n < 2 || (text[0] != '[' && text[0] != 'O'))
        return 0;
    char *at;
    long number = strtol(text + 1, &at, 10), held = 1; /* 1: nothing, 2: Shift, 3: Alt, 5: Ctrl */
    if (*at == ';')
        held = strtol(at + 1, &at, 10);
    if (at != text + n - 1 || (text[0] == 'O' && n != 2))
        return 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int key = table[i].key;
        if (table[i].end != *at || (*at == '~' && table[i].number != number))
            continue;
        if (held == 3)
            return key | UI_ALT;
        if (held > 1 && (key == UI_LEFT || key == UI_RIGHT))
            return key == UI_LEFT ? UI_SHIFT_LEFT : UI_SHIFT_RIGHT;
        return key;
    }
    return 0;
}

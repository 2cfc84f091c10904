/* manual: the man page and the shells' completions, written out of the table of commands and the
 * table of keys, so that they cannot say anything else. Pure. */
#ifndef MLATHE_UI_MANUAL_H
#define MLATHE_UI_MANUAL_H

#include "ui/cli.h"
#include "ui/markup.h"

/* screens: the command without a name, for its options. */
struct manual {
    const struct cli_command *command, *screens;
    size_t n;
};
void manual_page(struct markup *m, const struct manual *of); /* roff, section 1 */
/* "bash", "zsh" or "fish"; false for another shell. */
bool manual_completion(struct markup *m, const struct manual *of, const char *shell);

/* The words that an option takes, separated by blanks; NULL when it takes anything (a file, a
 * number). */
const char *manual_words(const char *option);

#endif

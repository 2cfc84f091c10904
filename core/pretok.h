/* pretok: the rules that cut a text into words before merging, as a sequence of steps; each step
 * cuts every piece that the one before it left. */
#ifndef MLATHE_CORE_PRETOK_H
#define MLATHE_CORE_PRETOK_H

#include "core/base.h"

/* What happens to the matches of a split (names of the Hugging Face format). */
enum pretok_behavior {
    PRETOK_ISOLATED,
    PRETOK_REMOVED,
    PRETOK_MERGED_WITH_PREVIOUS,
    PRETOK_MERGED_WITH_NEXT,
    PRETOK_CONTIGUOUS,
};
enum pretok_scheme { PRETOK_NEVER, PRETOK_FIRST, PRETOK_ALWAYS };

/* Regexes of the well-known families (Hugging Face spelling); llama3 is cl100k's as well. */
extern const char pretok_gpt2[], pretok_llama3[], pretok_qwen2[], pretok_tekken[], pretok_o200k[];
/* Steps of families that cut in several. */
extern const char pretok_falcon_marks[], pretok_old_marks[], pretok_deepseek_han[],
    pretok_deepseek[];

struct pretok;
int pretok_new(struct pretok **out, struct err *e);
void pretok_free(struct pretok *p);

/* Cuts at the matches of a regex, or of a literal string; invert swaps matches and gaps. */
int pretok_add_split(struct pretok *p, const char *pattern, bool literal,
                     enum pretok_behavior behavior, bool invert, struct err *e);
/* Cuts out digits (general category N), each alone or in runs. */
int pretok_add_digits(struct pretok *p, bool individual, struct err *e);
/* A space before every piece that does not begin with one (ByteLevel's add_prefix_space). */
int pretok_add_space(struct pretok *p, struct err *e);
/* Spaces become mark (UTF-8); a piece gets a leading mark as the scheme says; split cuts before
 * every mark. */
int pretok_add_metaspace(struct pretok *p, const char *mark, enum pretok_scheme scheme, bool split,
                         struct err *e);

/* Called for every word, in order; a non-zero return stops the run and is passed on. */
typedef int (*pretok_word_fn)(void *user, const char *word, size_t n, struct err *e);
/* text is well-formed UTF-8. at_start: it is the beginning of the whole input. */
int pretok_run(const struct pretok *p, const char *text, size_t n, bool at_start,
               pretok_word_fn word, void *user, struct err *e);

#endif

/* heal_text: where training sequences come from: text files and folders of them, read a piece at a
 * time, or windows that the original model wrote.
 *
 * Files are cut into cells of some KiB. Every 16th cell is held out: it is measured on and never
 * trained on. Sequence number i is a function of the seed and i alone, so a run can go on anywhere.
 * Lines are joined as the hf protocol of eval joins them. */
#ifndef MLATHE_SESSIONS_HEAL_TEXT_H
#define MLATHE_SESSIONS_HEAL_TEXT_H

#include "core/tokenizer.h"

struct heal_text;
/* paths: files, or folders whose files (.txt, .md, .text, .raw, .jsonl … every regular one) are
 * taken. Refuses what is too short to train on and to measure. t must outlive it. */
int heal_text_open(struct heal_text **out, const struct tokenizer *t, const char *const *paths,
                   int n, uint64_t seed, struct err *e);
/* windows of `window` ids each, copied; source names them ("self"). */
int heal_text_ids(struct heal_text **out, const int32_t *ids, int windows, int window,
                  const char *source, uint64_t seed, struct err *e);
void heal_text_free(struct heal_text *t);

/* Sequence i of the training text (or of the held-out text): up to len ids into out, *n of them,
 * at least 2. */
int heal_text_sequence(struct heal_text *t, bool held_out, long long i, int len, int32_t *out,
                       int *n, struct err *e);
/* About how many tokens there are to train on. */
long long heal_text_tokens(const struct heal_text *t);
/* What it is ("wiki.txt, c4.txt"), and a fingerprint of its names, sizes and some of its bytes. */
const char *heal_text_source(const struct heal_text *t);
const char *heal_text_sha256(const struct heal_text *t);
/* Share of a text's longer lines that training lines are like: exact up to 1 % of false alarms. */
/* A filter of the lines of the text (a sample of them in a large one), as hex; fresh memory. */
char *heal_text_lines(struct heal_text *t, struct err *e);
/* The share of file's longer lines that such a filter knows; −1 when file or filter cannot be
 * read. */
double heal_lines_shared(const char *filter, const char *file);

#endif

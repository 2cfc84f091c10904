/* support_screens: scripts played on the screens, and screens compared as text. */
#ifndef MLATHE_TESTS_SUPPORT_SCREENS_H
#define MLATHE_TESTS_SUPPORT_SCREENS_H

#include <stddef.h>

/* A fresh home of that name under test_tmpdir(), with calib.txt and arc.json in it. */
void screens_home(const char *name);
/* What the script (a path) prints, in fresh memory; one thread computes. */
char *screens_play(const char *keys, const char *model);
/* A shot's words, marks and frames: without numbers, curves, bars and answers. Fresh memory. */
char *screens_words(const char *name, const char *text, size_t n);

#endif

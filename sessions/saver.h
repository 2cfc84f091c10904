/* saver: a thread that writes small files whole (temporary name, fsync, rename), so that the screen
 * never waits for a disk. A file asked for again before it was written is written once, newest. */
#ifndef MLATHE_SESSIONS_SAVER_H
#define MLATHE_SESSIONS_SAVER_H

#include "core/base.h"

struct saver;
/* Called on the saver's thread after each file; quiet is what saver_put was told. */
typedef void (*saver_done)(void *user, const char *path, bool quiet, int status, const char *text);

int saver_new(struct saver **out, saver_done done, void *user, struct err *e);
/* Writes what is still waiting, then stops. */
void saver_free(struct saver *s);
/* Takes text over (a string; freed in any case). False when memory is out: nothing is saved. */
bool saver_put(struct saver *s, const char *path, char *text, bool quiet);
/* Waits until everything put so far is written. */
void saver_flush(struct saver *s);

#endif

/* file: read-only maps, bounded reads, and writes that appear whole or not at all.
 *
 * A writer fills PATH.tmp-<pid>-<n> in the target's folder; commit syncs and renames it, abort (or
 * a failed commit) removes it. Nothing is ever half written under the final name; what a killed
 * writer leaves behind is removed by the next writer of the same path. */
#ifndef MLATHE_CORE_FILE_H
#define MLATHE_CORE_FILE_H

#include "core/base.h"

/* A whole file, mapped read-only. data stays valid until close. An empty file has data NULL. */
struct file_map {
    const uint8_t *data;
    size_t size;
    char *path;
};
int file_map_open(struct file_map *map, const char *path, struct err *e);
void file_map_close(struct file_map *map);

/* Whole file as NUL-terminated fresh memory (size excludes the NUL); ERR_LIMIT above max bytes. */
int file_read(const char *path, size_t max, char **text, size_t *size, struct err *e);

struct file_writer;
int file_writer_open(struct file_writer **w, const char *path, struct err *e);
/* Appends; errors are sticky and come back from commit as well. */
int file_writer_write(struct file_writer *w, const void *data, size_t size, struct err *e);
/* fsync + rename + fsync of the folder, then frees w whatever happens. */
int file_writer_commit(struct file_writer *w, struct err *e);
void file_writer_abort(struct file_writer *w);

/* One-shot atomic write. */
int file_save(const char *path, const void *data, size_t size, struct err *e);
/* Creates a folder and its parents (mode 0755); fine when it exists. */
int file_mkdirs(const char *path, struct err *e);
bool file_exists(const char *path);
bool file_is_dir(const char *path);
/* path, or the working folder and path; fresh memory. Links stay as they are. */
char *path_absolute(const char *path);
/* "a/b" in fresh memory. */
char *path_join(const char *dir, const char *name);
/* dir/NAME-<n>SUFFIX, the first n that is free; the name reduced to harmless characters ("model"
 * where nothing is left of it). Fresh memory; NULL without it, or where all are taken. */
char *path_free(const char *dir, const char *name, const char *suffix);
/* Last component, pointing into path. */
const char *path_base(const char *path);
/* What comes before it, "." where nothing does; fresh memory. */
char *path_parent(const char *path);
/* Two names of one thing that exists; NULL names nothing. */
bool path_same(const char *a, const char *b);
/* rename + fsync of the folder. */
int file_rename(const char *from, const char *to, struct err *e);
/* Removes a file, or a folder with the files in it; one that holds folders stays. Best effort. */
void file_remove(const char *path);
/* Removes what writers of path left behind when they were killed: PATH.tmp-<pid>… of processes that
 * are gone. Best effort. */
void file_sweep(const char *path);
/* The same for every path in a folder of the program's own, and in folders below it down to depth. A
 * NAME.old-<pid> (an old state set aside by a replacement that died) becomes NAME again where that is
 * missing. */
void file_sweep_folder(const char *dir, int depth);

#endif

/* chatfmt_builtin: the well-known conversation formats, for templates that we cannot run. */
#ifndef MLATHE_CORE_CHATFMT_BUILTIN_H
#define MLATHE_CORE_CHATFMT_BUILTIN_H

/* The template of the format that source speaks of (by the special tokens in it) and its name;
 * ChatML when it speaks of none. */
const char *chatfmt_builtin(const char *source, const char **name);

#endif

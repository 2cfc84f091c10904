/* workspace_device: what a workspace does when its accelerator is gone (a crashed driver, a device
 * that fell off the bus, a kernel that faulted: nothing on it can be used any more). */
#ifndef MLATHE_SESSIONS_WORKSPACE_DEVICE_H
#define MLATHE_SESSIONS_WORKSPACE_DEVICE_H

#include "sessions/workspace.h"

/* Asked after a failure: true when the backend cannot work any more. */
bool workspace_device_lost(struct workspace *w);
/* Of a failed job: the device's own sentence and status where it is the reason; else rc, e as it is.
 * (Numbers from a lost device fail later as matrices that nobody can factor.) */
int workspace_device_reason(struct workspace *w, int rc, struct err *e);
/* True where "auto" chose an accelerator, so that another device may be chosen as well. */
bool workspace_may_leave(const struct workspace *w);
/* Goes on with the CPU and says why in the device line: model, statistics and conversion stay as they are, engines are made anew.
 * Nothing may still use the old engines (chats, timelines). On failure nothing has changed. */
int workspace_leave_device(struct workspace *w, const char *why, struct err *e);

#endif

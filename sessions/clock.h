/* clock: the time that durations are measured in. */
#ifndef MLATHE_SESSIONS_CLOCK_H
#define MLATHE_SESSIONS_CLOCK_H

/* Seconds since some fixed moment; never runs backwards. */
double clock_now(void);

#endif

/* support_app: the program's state behind its screens, driven by a test. */
#ifndef MLATHE_TESTS_SUPPORT_APP_H
#define MLATHE_TESTS_SUPPORT_APP_H

#include "ui/app_parts.h"

/* 80x24, one thread; settled. */
struct app *test_app_start(const char *model, const char *device);
void test_app_leave(struct app *a);
/* Until no job runs and its events have arrived. */
void test_app_settle(struct app *a);
/* Keys by name, blanks between them. */
void test_app_press(struct app *a, const char *keys);

#endif

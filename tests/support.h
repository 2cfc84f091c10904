/* support: the test suite's small kit. A test is one executable; CHECK counts failures and goes
 * on, test_end prints the verdict. Data beyond tests/ is optional: skip visibly without it. */
#ifndef MLATHE_TESTS_SUPPORT_H
#define MLATHE_TESTS_SUPPORT_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base.h"

extern int test_failures;

#define CHECK(cond, ...)                                                                          \
    do {                                                                                          \
        if (!(cond)) {                                                                            \
            test_failures++;                                                                      \
            printf("FAIL %s:%d: %s:", __FILE__, __LINE__, #cond);                                \
            printf(" " __VA_ARGS__);                                                               \
            printf("\n");                                                                         \
        }                                                                                         \
    } while (0)
#define CHECK_OK(call, e) CHECK((call) == 0, "%s", (e).text)

/* 0 when all checks held, 1 otherwise. */
int test_end(const char *name);
/* Prints "skipped: why" and exits 77. */
void test_skip(const char *why) __attribute__((noreturn));

/* Path of a file under tests/, in a static ring of buffers. */
const char *test_path(const char *name);
/* Path of a file in the optional data folder (MLATHE_TEST_DATA, or ../shared/data beside the
 * source tree); NULL when it is not there. */
const char *test_data(const char *name);
/* A fresh empty folder, removed at exit. */
const char *test_tmpdir(void);
/* xorshift: uniform in [0,1), and roughly normal. */
double test_uniform(uint64_t *state);
double test_normal(uint64_t *state);
/* max |a-b| / rms(b). */
double test_rel_error(const float *a, const float *b, size_t n);
/* |a-b|² / |b|². */
double test_nmse(const float *a, const float *b, size_t n);
/* The largest difference, relative to the largest |b|. */
double test_gap(const double *a, const double *b, size_t n);

#endif

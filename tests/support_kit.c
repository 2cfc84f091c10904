/* The test kit: failure counting, paths, temporary folders, random numbers, error measures. */
#include "tests/support.h"

#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

int test_failures;
static char tmpdir[256];

int test_end(const char *name)
{
    printf("%s: %s\n", name, test_failures ? "FAILED" : "ok");
    return test_failures ? 1 : 0;
}

void test_skip(const char *why)
{
    printf("skipped: %s\n", why);
    exit(77);
}

static char *ring(void)
{
    static char buffers[8][1024];
    static unsigned next;
    return buffers[next++ % 8];
}

const char *test_path(const char *name)
{
    char *s = ring();
    snprintf(s, 1024, "%s/%s", TESTS_DIR, name);
    return s;
}

const char *test_data(const char *name)
{
    const char *dir = getenv("MLATHE_TEST_DATA");
    char *s = ring();
    if (dir)
        snprintf(s, 1024, "%s/%s", dir, name);
    else
        snprintf(s, 1024, "%s/../../shared/data/%s", TESTS_DIR, name);
    return access(s, R_OK) == 0 ? s : NULL;
}

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void remove_tmpdir(void)
{
    nftw(tmpdir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *test_tmpdir(void)
{
    if (!tmpdir[0]) {
        const char *under = getenv("TMPDIR");
        snprintf(tmpdir, sizeof tmpdir, "%s/mlathe-test-XXXXXX", under ? under : "/tmp");
        if (!mkdtemp(tmpdir)) {
            perror("mkdtemp");
            exit(1);
        }
        atexit(remove_tmpdir);
    }
    return tmpdir;
}

double test_uniform(uint64_t *state)
{
    uint64_t x = *state ? *state : 88172645463325252ull;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    return (double)(x >> 11) * 0x1p-53;
}

double test_normal(uint64_t *state)
{
    double s = 0;
    for (int i = 0; i < 12; i++)
        s += test_uniform(state);
    return s - 6;
}

double test_rel_error(const float *a, const float *b, size_t n)
{
    double worst = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double gap = fabs((double)a[i] - b[i]);
        worst = gap > worst || isnan(gap) ? gap : worst;
        sum += (double)b[i] * b[i];
    }
    return worst / sqrt(sum / (double)(n ? n : 1) + 1e-300);
}

double test_nmse(const float *a, const float *b, size_t n)
{
    double gap = 0, sum = 0;
    for (size_t i = 0; i < n; i++) {
        double diff = (double)a[i] - b[i];
        gap += diff * diff;
        sum += (double)b[i] * b[i];
    }
    return gap / (sum + 1e-300);
}

double test_gap(const double *a, const double *b, size_t n)
{
    double gap = 0, top = 0;
    for (size_t i = 0; i < n; i++) {
        gap = fmax(gap, fabs(a[i] - b[i]));
        top = fmax(top, fabs(b[i]));
    }
    return gap / top;
}

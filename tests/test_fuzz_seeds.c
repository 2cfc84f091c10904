/* Replays every committed fuzzing input (tests/fuzz/seeds/TARGET/) through its target: what a
 * fuzzer found once stays found. Files of other tests serve as seeds too. Files named bad-… must be
 * refused, files named good-… must open, the rest may do either. */
#include <dirent.h>
#include <time.h>

#include "core/file.h"
#include "tests/support.h"
#include "tests/support_fuzz.h"

static int replay(const struct fuzz_target *t, const char *dir)
{
    struct dirent *entry;
    DIR *d = opendir(dir);
    int n = 0;
    while (d && (entry = readdir(d))) {
        char path[1024], *data = NULL;
        size_t size = 0;
        struct err e = {0};
        snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
        if (entry->d_name[0] == '.' || file_is_dir(path))
            continue;
        CHECK_OK(file_read(path, 1 << 20, &data, &size, &e), e);
        clock_t start = clock();
        int rc = data ? t->run((const uint8_t *)data, size) : -1;
        double sec = (double)(clock() - start) / CLOCKS_PER_SEC;
        CHECK(rc != ERR_NOMEM, "%s asked for too much memory", path);
        CHECK(rc == OK || strncmp(entry->d_name, "good-", 5), "%s: status %d", path, rc);
        CHECK(rc != OK || strncmp(entry->d_name, "bad-", 4), "%s was taken", path);
        /* Under a sanitizer, on a busy machine; alone it takes milliseconds. */
        CHECK(sec < 10, "%s took %.1f s", path, sec);
        free(data);
        n++;
    }
    if (d)
        closedir(d);
    return n;
}

int main(void)
{
    for (const struct fuzz_target *t = fuzz_targets; t->name; t++) {
        char dir[64];
        snprintf(dir, sizeof dir, "fuzz/seeds/%s", t->name);
        int n = replay(t, test_path(dir));
        CHECK(n > 0, "%s has no seeds", t->name);
        if (t->run == fuzz_tokenizer)
            n += replay(t, test_path("tokenizers"));
        printf("%s: %d inputs\n", t->name, n);
    }
    return test_end("fuzz_seeds");
}

/* Files appear whole or not at all, and killed writers leave nothing for good. */
#include "core/file.h"
#include "tests/support.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static bool holds(const char *path, const char *want)
{
    char *text = NULL;
    struct err e = {0};
    bool same = file_read(path, 1 << 20, &text, NULL, &e) == OK && !strcmp(text, want);
    free(text);
    return same;
}

/* A child writes half of path and dies without a word; returns its temporary file. */
static void killed_writer(const char *path, char tmp[700])
{
    pid_t pid = fork();
    if (pid == 0) {
        struct file_writer *w;
        static char big[200000];
        if (file_writer_open(&w, path, NULL) == OK)
            file_writer_write(w, big, sizeof big, NULL);
        kill(getpid(), SIGKILL);
    }
    int status;
    waitpid(pid, &status, 0);
    snprintf(tmp, 700, "%s.tmp-%ld-0", path, (long)pid);
}

int main(void)
{
    char path[600], tmp[700], live[700];
    struct err e = {0};
    struct file_writer *w;
    snprintf(path, sizeof path, "%s/note.txt", test_tmpdir());
    killed_writer(path, tmp);
    CHECK(file_exists(tmp) && !file_exists(path), "a killed writer left %s", path);
    snprintf(live, sizeof live, "%s.tmp-%ld-999", path, (long)getpid());
    CHECK_OK(file_save(live, "mine", 4, &e), e);
    CHECK_OK(file_save(path, "first", 5, &e), e);
    CHECK(!file_exists(tmp), "the dead writer's file is still there");
    CHECK(file_exists(live), "a living writer's file was removed");
    CHECK(holds(path, "first"), "content");
    CHECK_OK(file_writer_open(&w, path, &e), e);
    CHECK_OK(file_writer_write(w, "second", 6, &e), e);
    CHECK(holds(path, "first"), "visible before commit");
    file_writer_abort(w);
    CHECK(holds(path, "first"), "changed by an aborted write");
    CHECK(file_save("/dev/full/x", "a", 1, &e) < 0 && strstr(e.text, "/dev/full"), "%s", e.text);
    CHECK(file_read(path, 3, &(char *){NULL}, NULL, &e) == ERR_LIMIT, "size limit");
    CHECK(file_read("/dev/zero", 10, &(char *){NULL}, NULL, &e) == ERR_IO, "not a regular file");
    return test_end("file");
}

/* A disk that fails at one operation: preloaded, it counts what a process does to files below one folder.

   At the n-th operation it kills the process before it (KILL), does half of a write or all of anything else and then
   kills it (HALF), refuses everything that needs space from there on (FULL), or refuses this one (BROKEN).
   tests/faults.py arms it in a process that has been forked for one trial. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NONE, KILL, HALF, FULL, BROKEN };
enum action { GO, REFUSE, GO_AND_DIE };

static char below[PATH_MAX];
static long fatal_operation, count;
static enum fault fault;

void faults_arm(const char *folder, long n, int which)
{
    snprintf(below, sizeof below, "%s", folder);
    count = 0;
    fatal_operation = n;
    fault = (enum fault)which;
}

long faults_count(void) { return count; }

static void die(void) { kill(getpid(), SIGKILL); }

static int is_below(const char *path)
{
    size_t length = strlen(below);
    return length && strncmp(path, below, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int path_of_descriptor(int descriptor, char *path, size_t size)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
    return length >= 0;
}

static int concerns_path(int folder, const char *name)
{
    char start[PATH_MAX], path[2 * PATH_MAX];
    if (!below[0] || !name)
        return 0;
    if (name[0] == '/')
        return is_below(name);
    if (folder == AT_FDCWD ? !getcwd(start, sizeof start) : !path_of_descriptor(folder, start, sizeof start))
        return 0;
    snprintf(path, sizeof path, "%s/%s", start, name);
    return is_below(path);
}

static int concerns_descriptor(int descriptor)
{
    char path[PATH_MAX];
    return below[0] && path_of_descriptor(descriptor, path, sizeof path) && is_below(path);
}

static enum action next(int concerned, int needs_space)
{
    if (!concerned)
        return GO;
    count++;
    if (fault == FULL && count >= fatal_operation && needs_space) {
        errno = ENOSPC;
        return REFUSE;
    }
    if (count != fatal_operation)
        return GO;
    if (fault == KILL)
        die();
    if (fault == BROKEN) {
        errno = EIO;
        return REFUSE;
    }
    return fault == HALF ? GO_AND_DIE : GO;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(result, name, concerned, needs_space, ...)                                                               \
    enum action action = next(concerned, needs_space);                                                                \
    if (action == REFUSE)                                                                                             \
        return (result)-1;                                                                                            \
    result value = REAL(name)(__VA_ARGS__);                                                                           \
    if (action == GO_AND_DIE)                                                                                         \
        die();                                                                                                        \
    return value

#define WRITING (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#define MODE                                                                                                          \
    va_list rest;                                                                                                     \
    va_start(rest, flags);                                                                                            \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                         \
    va_end(rest)
#define OPENS(folder, path) ((flags & WRITING) && concerns_path(folder, path))

int open(const char *path, int flags, ...) { MODE; CALL(int, open, OPENS(AT_FDCWD, path), flags & O_CREAT, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; CALL(int, open64, OPENS(AT_FDCWD, path), flags & O_CREAT, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE; CALL(int, openat, OPENS(at, path), flags & O_CREAT, at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE; CALL(int, openat64, OPENS(at, path), flags & O_CREAT, at, path, flags, mode); }

/* Half of a write is a write of half; one of several pieces is cut at the first. */
ssize_t write(int file, const void *data, size_t size)
{
    enum action action = next(concerns_descriptor(file), 1);
    if (action == REFUSE)
        return -1;
    ssize_t written = REAL(write)(file, data, action == GO_AND_DIE ? size / 2 : size);
    if (action == GO_AND_DIE)
        die();
    return written;
}

ssize_t writev(int file, const struct iovec *pieces, int number)
{
    enum action action = next(concerns_descriptor(file), 1);
    if (action == REFUSE)
        return -1;
    if (action == GO_AND_DIE) {
        ssize_t written = REAL(write)(file, pieces[0].iov_base, pieces[0].iov_len / 2);
        die();
        return written;
    }
    return REAL(writev)(file, pieces, number);
}

#define PWRITE(name, offset_type)                                                                                     \
    ssize_t name(int file, const void *data, size_t size, offset_type offset)                                         \
    {                                                                                                                 \
        enum action action = next(concerns_descriptor(file), 1);                                                      \
        if (action == REFUSE)                                                                                         \
            return -1;                                                                                                \
        ssize_t written = REAL(name)(file, data, action == GO_AND_DIE ? size / 2 : size, offset);                     \
        if (action == GO_AND_DIE)                                                                                     \
            die();                                                                                                    \
        return written;                                                                                               \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

int fsync(int file) { CALL(int, fsync, concerns_descriptor(file), 1, file); }
int fdatasync(int file) { CALL(int, fdatasync, concerns_descriptor(file), 1, file); }
int ftruncate(int file, off_t size) { CALL(int, ftruncate, concerns_descriptor(file), 0, file, size); }
int ftruncate64(int file, off64_t size) { CALL(int, ftruncate64, concerns_descriptor(file), 0, file, size); }
int truncate(const char *path, off_t size) { CALL(int, truncate, concerns_path(AT_FDCWD, path), 0, path, size); }
int rename(const char *from, const char *to) { CALL(int, rename, concerns_path(AT_FDCWD, to), 1, from, to); }
int renameat(int at, const char *from, int to_at, const char *to) { CALL(int, renameat, concerns_path(to_at, to), 1, at, from, to_at, to); }
int link(const char *from, const char *to) { CALL(int, link, concerns_path(AT_FDCWD, to), 1, from, to); }
int unlink(const char *path) { CALL(int, unlink, concerns_path(AT_FDCWD, path), 0, path); }
int unlinkat(int at, const char *path, int flags) { CALL(int, unlinkat, concerns_path(at, path), 0, at, path, flags); }
int mkdir(const char *path, mode_t mode) { CALL(int, mkdir, concerns_path(AT_FDCWD, path), 1, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { CALL(int, mkdirat, concerns_path(at, path), 1, at, path, mode); }
int rmdir(const char *path) { CALL(int, rmdir, concerns_path(AT_FDCWD, path), 0, path); }

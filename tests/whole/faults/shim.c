/* Counts the calls that touch files under one folder, and lets the n-th one fail.
 *
 * Preloaded below Python, so that it sees the writers in C++ and Rust too. The harness sets
 * FAULT_ROOT and calls `fault_arm(n, kind)`; `fault_log` gives every call so far, a line each: its
 * letter and its path. Flushes are counted and may fail, but are not made: nobody cuts the power.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL_BEFORE, KILL_AFTER, NO_SPACE, IO_ERROR, SHORT_WRITE, NO_ACCESS };

#define MOST (4 << 20)
#define FILES 65536
static char calls[MOST];
static long length, count, target = -1;
static int kind = NONE, struck;
static char *names[FILES]; /* paths of the descriptors under the root */

void fault_arm(long n, int what) {
    count = length = struck = 0;
    target = n;
    kind = what;
    calls[0] = 0;
}
const char *fault_log(void) { return calls; }
int fault_struck(void) { return struck; }

static const char *root(void) { return getenv("FAULT_ROOT"); }

static int under(const char *path) {
    return root() && path && !strncmp(path, root(), strlen(root()));
}

static void note(char letter, const char *path) {
    long size = strlen(path) - strlen(root()) + 3;
    long start = __atomic_fetch_add(&length, size, __ATOMIC_SEQ_CST);
    if (start + size >= MOST) return;
    char line[4200];
    snprintf(line, sizeof line, "%c %s\n", letter, path + strlen(root()));
    memcpy(calls + start, line, size);
}

/* The fault that this call is to have. A full disk stays full. */
static int turn(char letter, const char *path) {
    long n = __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
    note(letter, path);
    int full = kind == NO_SPACE && n > target && target >= 0 && strchr("cwsrm", letter);
    int fault = n == target || full ? kind : NONE;
    if (fault != NONE) struck = 1;
    if (fault == KILL_BEFORE) _exit(137);
    return fault;
}

static int refused(int fault) {
    if (fault == NO_SPACE) errno = ENOSPC;
    else if (fault == IO_ERROR) errno = EIO;
    else if (fault == NO_ACCESS) errno = EACCES;
    else return 0;
    return 1;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

/* A call on `path`: the real one unless the path is another's, with the fault of its turn. */
#define CALL(type, failed, letter, ours, path, real)                                     \
    do {                                                                                 \
        if (!(ours)) return real;                                                        \
        int fault = turn(letter, path);                                                  \
        if (refused(fault)) return failed;                                               \
        type result = real;                                                              \
        if (fault == KILL_AFTER) _exit(137);                                             \
        return result;                                                                   \
    } while (0)

static int known(int fd) { return fd >= 0 && fd < FILES && names[fd]; }

static int opened(const char *path, int fd) {
    if (fd >= 0 && fd < FILES && under(path)) names[fd] = strdup(path);
    return fd;
}

static char made(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? 'c' : 'o'; }

#define MODE                                                                             \
    mode_t mode = 0;                                                                     \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                 \
        va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest);     \
    }
#define OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                         \
        MODE                                                                             \
        CALL(int, -1, made(flags), under(path), path,                                    \
             opened(path, REAL(int, name, const char *, int, ...)(path, flags, mode)));  \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                     \
    int name(int folder, const char *path, int flags, ...) {                             \
        MODE                                                                             \
        CALL(int, -1, made(flags), under(path), path,                                    \
             opened(path, REAL(int, name, int, const char *, int, ...)(folder, path, flags, mode))); \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    if (known(fd)) { free(names[fd]); names[fd] = NULL; }
    return REAL(int, close, int)(fd);
}

#define READ(name, ...)                                                                  \
    CALL(ssize_t, -1, 'i', known(fd), names[fd], REAL(ssize_t, name, int, void *, size_t, off_t)(__VA_ARGS__))
ssize_t read(int fd, void *data, size_t size) { READ(read, fd, data, size, 0); }
ssize_t pread(int fd, void *data, size_t size, off_t at) { READ(pread, fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off_t at) { READ(pread64, fd, data, size, at); }

#define WRITE(name, ...)                                                                 \
    ssize_t (*real)(int, const void *, size_t, off_t) = REAL(ssize_t, name, int, const void *, size_t, off_t); \
    if (!known(fd)) return real(__VA_ARGS__);                                            \
    int fault = turn('w', names[fd]);                                                    \
    if (refused(fault)) return -1;                                                       \
    if (fault == SHORT_WRITE && size > 1) size /= 2;                                     \
    ssize_t result = real(__VA_ARGS__);                                                  \
    if (fault == KILL_AFTER) _exit(137);                                                 \
    return result;
ssize_t write(int fd, const void *data, size_t size) { WRITE(write, fd, data, size, 0) }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { WRITE(pwrite, fd, data, size, at) }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { WRITE(pwrite64, fd, data, size, at) }

ssize_t writev(int fd, const struct iovec *parts, int size) {
    CALL(ssize_t, -1, 'w', known(fd), names[fd], REAL(ssize_t, writev, int, const struct iovec *, int)(fd, parts, size));
}
ssize_t sendfile(int fd, int from, off_t *at, size_t size) {
    CALL(ssize_t, -1, 'w', known(fd), names[fd], REAL(ssize_t, sendfile, int, int, off_t *, size_t)(fd, from, at, size));
}
ssize_t sendfile64(int fd, int from, off64_t *at, size_t size) {
    CALL(ssize_t, -1, 'w', known(fd), names[fd], REAL(ssize_t, sendfile64, int, int, off64_t *, size_t)(fd, from, at, size));
}

int fsync(int fd) { CALL(int, -1, 's', known(fd), names[fd], 0); }
int fdatasync(int fd) { CALL(int, -1, 's', known(fd), names[fd], 0); }

int rename(const char *from, const char *to) {
    CALL(int, -1, 'r', under(from), from, REAL(int, rename, const char *, const char *)(from, to));
}
int unlink(const char *path) { CALL(int, -1, 'u', under(path), path, REAL(int, unlink, const char *)(path)); }
int rmdir(const char *path) { CALL(int, -1, 'u', under(path), path, REAL(int, rmdir, const char *)(path)); }
int unlinkat(int folder, const char *path, int flags) {
    CALL(int, -1, 'u', under(path) || known(folder), under(path) ? path : names[folder],
         REAL(int, unlinkat, int, const char *, int)(folder, path, flags));
}
int mkdir(const char *path, mode_t mode) {
    CALL(int, -1, 'm', under(path), path, REAL(int, mkdir, const char *, mode_t)(path, mode));
}
DIR *opendir(const char *path) {
    CALL(DIR *, NULL, 'd', under(path), path, REAL(DIR *, opendir, const char *)(path));
}

#define STAT(name, form)                                                                 \
    int name(const char *path, struct form *found) {                                     \
        CALL(int, -1, 't', under(path), path, REAL(int, name, const char *, struct form *)(path, found)); \
    }
STAT(stat, stat)
STAT(lstat, stat)
STAT(stat64, stat64)
STAT(lstat64, stat64)
int fstatat(int folder, const char *path, struct stat *found, int flags) {
    CALL(int, -1, 't', under(path), path, REAL(int, fstatat, int, const char *, struct stat *, int)(folder, path, found, flags));
}
int fstatat64(int folder, const char *path, struct stat64 *found, int flags) {
    CALL(int, -1, 't', under(path), path, REAL(int, fstatat64, int, const char *, struct stat64 *, int)(folder, path, found, flags));
}

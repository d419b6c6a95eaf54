/* Counts the calls that touch files under one folder, and lets the n-th one fail.
 *
 * Preloaded below Python, so that it sees the writers in C++ and Rust too. The harness sets
 * FAULT_ROOT and calls `fault_arm(n, kind)`; `fault_log` gives the letter of every call so far.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, KILL_BEFORE, KILL_AFTER, NO_SPACE, IO_ERROR, SHORT_WRITE, NO_ACCESS };

#define MOST 200000
static char calls[MOST + 1];
static long count, target = -1;
static int kind = NONE;
static char ours[65536]; /* descriptors of files under the root */

void fault_arm(long n, int what) { count = 0; target = n; kind = what; memset(calls, 0, MOST); }
const char *fault_log(void) { return calls; }

static int under(const char *path) {
    const char *root = getenv("FAULT_ROOT");
    return root && path && !strncmp(path, root, strlen(root));
}

/* The fault that this call is to have. */
static int turn(char letter) {
    long n = __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
    if (n < MOST) calls[n] = letter;
    int fault = n == target ? kind : NONE;
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
#define DONE(fault, result) do { if ((fault) == KILL_AFTER) _exit(137); return (result); } while (0)

static int opened(const char *path, int flags, int result) {
    if (result >= 0 && result < (int)sizeof ours) ours[result] = 1;
    (void)path; (void)flags;
    return result;
}

#define OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                         \
        mode_t mode = 0;                                                                 \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, int); va_end(a); } \
        if (!under(path)) return REAL(int, name, const char *, int, ...)(path, flags, mode); \
        int fault = turn(flags & (O_WRONLY | O_RDWR | O_CREAT) ? 'c' : 'o');             \
        if (refused(fault)) return -1;                                                   \
        int result = opened(path, flags, REAL(int, name, const char *, int, ...)(path, flags, mode)); \
        DONE(fault, result);                                                             \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                     \
    int name(int folder, const char *path, int flags, ...) {                             \
        mode_t mode = 0;                                                                 \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, int); va_end(a); } \
        if (!under(path)) return REAL(int, name, int, const char *, int, ...)(folder, path, flags, mode); \
        int fault = turn(flags & (O_WRONLY | O_RDWR | O_CREAT) ? 'c' : 'o');             \
        if (refused(fault)) return -1;                                                   \
        int result = opened(path, flags, REAL(int, name, int, const char *, int, ...)(folder, path, flags, mode)); \
        DONE(fault, result);                                                             \
    }
OPENAT(openat)
OPENAT(openat64)

static int known(int fd) { return fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

int close(int fd) {
    if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = 0;
    return REAL(int, close, int)(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t, write, int, const void *, size_t);
    if (!known(fd)) return real(fd, data, size);
    int fault = turn('w');
    if (refused(fault)) return -1;
    if (fault == SHORT_WRITE && size > 1) size /= 2;
    ssize_t result = real(fd, data, size);
    DONE(fault, result);
}

int fsync(int fd) {
    if (!known(fd)) return REAL(int, fsync, int)(fd);
    int fault = turn('s');
    if (refused(fault)) return -1;
    int result = REAL(int, fsync, int)(fd);
    DONE(fault, result);
}

int rename(const char *from, const char *to) {
    if (!under(from)) return REAL(int, rename, const char *, const char *)(from, to);
    int fault = turn('r');
    if (refused(fault)) return -1;
    int result = REAL(int, rename, const char *, const char *)(from, to);
    DONE(fault, result);
}

#define ONE(name, letter)                                                                \
    int name(const char *path) {                                                         \
        if (!under(path)) return REAL(int, name, const char *)(path);                    \
        int fault = turn(letter);                                                        \
        if (refused(fault)) return -1;                                                   \
        int result = REAL(int, name, const char *)(path);                                \
        DONE(fault, result);                                                             \
    }
ONE(unlink, 'u')
ONE(rmdir, 'u')

int unlinkat(int folder, const char *path, int flags) {
    if (!under(path) && !known(folder)) return REAL(int, unlinkat, int, const char *, int)(folder, path, flags);
    int fault = turn('u');
    if (refused(fault)) return -1;
    int result = REAL(int, unlinkat, int, const char *, int)(folder, path, flags);
    DONE(fault, result);
}

int mkdir(const char *path, mode_t mode) {
    if (!under(path)) return REAL(int, mkdir, const char *, mode_t)(path, mode);
    int fault = turn('m');
    if (refused(fault)) return -1;
    int result = REAL(int, mkdir, const char *, mode_t)(path, mode);
    DONE(fault, result);
}

/* Preloaded into User-mode Linux on processors with more registers than it has room for (up to 6.12 it cannot start there): of a process's extended
   registers it is given as many as it can take, and those that it does not know stay as they are. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { GETREGSET = 0x4204, SETREGSET = 0x4205, XSTATE = 0x202, MOST = 65536, FEATURES = 512 };
/* Those whose registers come within 2696 bytes: all up to the keys of memory. */
static const unsigned long known = 0x2ff;

static long traced(long request, long pid, long kind, void *data) {
    return syscall(SYS_ptrace, request, pid, kind, data);
}

long ptrace(int request, ...) {
    va_list rest;
    va_start(rest, request);
    long pid = va_arg(rest, int);
    long kind = (long)va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if (request == SETREGSET || request == GETREGSET) {
        struct iovec *asked = data;
        static char whole[MOST] __attribute__((aligned(64)));
        struct iovec all = {whole, MOST};
        if (kind != XSTATE)
            return traced(request, pid, kind, data);
        if (traced(GETREGSET, pid, kind, &all) < 0)
            return -1;
        size_t length = asked->iov_len < all.iov_len ? asked->iov_len : all.iov_len;
        unsigned long *features = (unsigned long *)(whole + FEATURES);
        if (request == SETREGSET) {
            unsigned long others = *features & ~known;
            memcpy(whole, asked->iov_base, length);
            *features |= others;
            return traced(SETREGSET, pid, kind, &all);
        }
        *features &= known;
        memcpy(asked->iov_base, whole, length);
        asked->iov_len = length;
        return 0;
    }
    /* What glibc does of itself: the words that are read come as results. */
    if (request >= 1 && request <= 3) {
        long word;
        long result = traced(request, pid, kind, &word);
        if (result < 0)
            return result;
        errno = 0;
        return word;
    }
    return traced(request, pid, kind, data);
}

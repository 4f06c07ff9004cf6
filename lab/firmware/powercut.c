/* SPDX-License-Identifier: MIT */
/*
 * Counts the reads and writes of one file in a process that this is preloaded
 * into, and ends the process at the chosen one, half of a write done: the power
 * cut of a virtual board whose flash chip the file is. What the guest had not
 * sent to the chip is lost with the process.
 *
 * NPULAB_CUT_FILE names the file, NPULAB_CUT_PAGE 32 bytes that both sides map:
 * writes so far, the write to cut at, reads so far, the read to cut at. A cut
 * at 0 is none; the first is 1.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile uint64_t *page;
static dev_t device;
static ino_t inode;

__attribute__((constructor)) static void start(void)
{
    const char *file = getenv("NPULAB_CUT_FILE");
    const char *shared = getenv("NPULAB_CUT_PAGE");
    struct stat st;
    int fd;

    if (!file || !shared || stat(file, &st)) {
        return;
    }
    fd = open(shared, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return;
    }
    device = st.st_dev;
    inode = st.st_ino;
    page = mmap(NULL, 32, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) {
        page = NULL;
    }
}

/* Whether this access of the file is the one to die at; which: 0 write, 2 read */
static int cut(int fd, int which)
{
    struct stat st;
    uint64_t number;

    if (!page || fstat(fd, &st) || st.st_dev != device || st.st_ino != inode) {
        return 0;
    }
    number = __atomic_add_fetch(&page[which], 1, __ATOMIC_SEQ_CST);
    return page[which + 1] && number == page[which + 1];
}

static void power_off(void)
{
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);

    if (!real) {
        real = dlsym(RTLD_NEXT, "pwrite64");
    }
    if (cut(fd, 0)) {
        real(fd, data, size / 2, at);
        power_off();
    }
    return real(fd, data, size, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at)
{
    static ssize_t (*real)(int, const struct iovec *, int, off64_t);

    if (!real) {
        real = dlsym(RTLD_NEXT, "pwritev64");
    }
    if (cut(fd, 0)) {
        real(fd, parts, count / 2, at);
        power_off();
    }
    return real(fd, parts, count, at);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t at)
{
    static ssize_t (*real)(int, void *, size_t, off64_t);

    if (!real) {
        real = dlsym(RTLD_NEXT, "pread64");
    }
    if (cut(fd, 2)) {
        power_off();
    }
    return real(fd, data, size, at);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t at)
{
    static ssize_t (*real)(int, const struct iovec *, int, off64_t);

    if (!real) {
        real = dlsym(RTLD_NEXT, "preadv64");
    }
    if (cut(fd, 2)) {
        power_off();
    }
    return real(fd, parts, count, at);
}

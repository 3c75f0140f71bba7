/* The system calls of the data plane, and the seam to systems that are not Linux. No Python here. */
#ifndef DCMHAUL_SOCKIO_H
#define DCMHAUL_SOCKIO_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/sendfile.h>
#endif

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif
#ifndef MSG_MORE
#define MSG_MORE 0
#endif

/* TCP_QUICKACK is not sticky: it is set again before every receive, so that a peer that sends in two
 * small writes with Nagle's algorithm on does not wait for a delayed acknowledgement. */
static inline void rearm_quickack(int fd)
{
#ifdef TCP_QUICKACK
    int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
#else
    (void)fd;
#endif
}

/* Sends a range of a file. Returns bytes sent, 0 at the end of the file, -1 with errno. */
static inline ssize_t send_file_range(int out, int in, int64_t offset, size_t length)
{
#ifdef __linux__
    off_t position = (off_t)offset;
    return sendfile(out, in, &position, length);
#else
    char buffer[65536];
    ssize_t got = pread(in, buffer, length < sizeof buffer ? length : sizeof buffer, (off_t)offset);
    return got <= 0 ? got : send(out, buffer, (size_t)got, MSG_NOSIGNAL);
#endif
}

/* Whether a send that failed has its file to blame: nothing can be read there. Leaves errno as it is. */
static inline int file_is_spent(int fd, int64_t offset)
{
    char byte;
    int failure = errno;
    ssize_t got = pread(fd, &byte, 1, (off_t)offset);
    errno = failure;
    return got != 1;
}

static inline int64_t monotonic_us(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

#endif

/* faults.h - allocations, threads and system calls that fail on demand, a clock that jumps, and a count of what is
 * not freed yet.
 *
 * The linker sends every call of the linked objects to malloc, calloc, free, pthread_create, clock_gettime and the
 * system calls below through here (--wrap).
 */
#pragma once

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* The n-th allocation from now (1: the next one) fails, once. 0: none does. */
void faults_fail_allocation(long n);

/* Whether that failure is still to come; disarms it. */
bool faults_disarm(void);

/* Every pthread_create fails with EAGAIN while this is on. */
void faults_fail_threads(bool on);

/* Stand in for sendmmsg, recvmmsg, writev, both of readv and read, poll, epoll_wait and ioctl; NULL: the kernel does
 * it again. */
typedef int faults_send(int fd, struct mmsghdr *batch, unsigned count, int flags);
typedef int faults_receive(int fd, struct mmsghdr *batch, unsigned count, int flags);
typedef ssize_t faults_write(int fd, const struct iovec *iov, int count);
typedef ssize_t faults_read(int fd, const struct iovec *iov, int count);
typedef int faults_poll(struct pollfd *sockets, nfds_t count, int milliseconds);
typedef int faults_wait(int fd, struct epoll_event *events, int count, int milliseconds);
typedef int faults_ioctl(int fd, unsigned long request, void *argument);
void faults_replace_send(faults_send *send);
void faults_replace_receive(faults_receive *receive);
void faults_replace_write(faults_write *write);
void faults_replace_read(faults_read *read);
void faults_replace_poll(faults_poll *ask);
void faults_replace_wait(faults_wait *wait);
void faults_replace_ioctl(faults_ioctl *control);

/* The kernel's own calls, for the replacements. */
faults_send faults_real_send;
faults_receive faults_real_receive;
faults_write faults_real_write;
faults_read faults_real_read;
faults_poll faults_real_poll;
faults_wait faults_real_wait;
faults_ioctl faults_real_ioctl;

/* The kernel reports this many more drops for every socket than there were. */
void faults_add_drops(uint32_t drops);

/* CLOCK_MONOTONIC goes forward by so many seconds at once. */
void faults_advance_clock(unsigned seconds);

/* Allocations not freed yet. */
long faults_live(void);

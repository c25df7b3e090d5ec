/* faults.h - allocations, threads and system calls that fail on demand, and counts: of what is not freed yet, and of
 * sleeps.
 *
 * The linker sends every malloc, calloc, free, pthread_create, sendmmsg, writev and epoll_wait of the linked objects
 * through here (--wrap).
 */
#ifndef FLANNEL_UDP_TESTS_FAULTS_H
#define FLANNEL_UDP_TESTS_FAULTS_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* The n-th allocation from now (1: the next one) fails, once. 0: none does. */
void faults_fail_allocation(long n);

/* Whether that failure is still to come; disarms it. */
bool faults_disarm(void);

/* Every pthread_create fails with EAGAIN while this is on. */
void faults_fail_threads(bool on);

/* Stands in for sendmmsg, and for writev; NULL: the kernel does it again. */
typedef int faults_send(int fd, struct mmsghdr *batch, unsigned count, int flags);
typedef ssize_t faults_write(int fd, const struct iovec *iov, int count);
void faults_replace_send(faults_send *send);
void faults_replace_write(faults_write *write);

/* The kernel's, for those who stand in. */
faults_send faults_real_send;
faults_write faults_real_write;

/* How often epoll_wait was called. */
unsigned long faults_sleeps(void);

/* Allocations not freed yet. */
long faults_live(void);

#endif

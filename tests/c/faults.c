#include "faults.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <time.h>

static atomic_long countdown, live;
static atomic_bool no_threads;
static _Atomic(faults_send *) send_stand_in;
static _Atomic(faults_receive *) receive_stand_in;
static _Atomic(faults_write *) write_stand_in;
static _Atomic(faults_read *) read_stand_in;
static _Atomic(faults_poll *) poll_stand_in;
static _Atomic(faults_wait *) wait_stand_in;
static _Atomic(faults_ioctl *) ioctl_stand_in;
static atomic_uint seconds_ahead, drops_ahead;

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): the linker makes these names */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void __real_free(void *memory);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                          void *argument);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void __wrap_free(void *memory);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                          void *argument);
int __real_sendmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags);
int __wrap_sendmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags);
int __real_recvmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags, struct timespec *timeout);
int __wrap_recvmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags, struct timespec *timeout);
ssize_t __real_writev(int fd, const struct iovec *iov, int count);
ssize_t __wrap_writev(int fd, const struct iovec *iov, int count);
ssize_t __real_readv(int fd, const struct iovec *iov, int count);
ssize_t __wrap_readv(int fd, const struct iovec *iov, int count);
ssize_t __real_read(int fd, void *buffer, size_t size);
ssize_t __wrap_read(int fd, void *buffer, size_t size);
int __real_poll(struct pollfd *sockets, nfds_t count, int milliseconds);
int __wrap_poll(struct pollfd *sockets, nfds_t count, int milliseconds);
int __real_epoll_wait(int fd, struct epoll_event *events, int count, int milliseconds);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int milliseconds);
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __real_getsockopt(int fd, int level, int option, void *value, socklen_t *size);
int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *size);
int __real_ioctl(int fd, unsigned long request, void *argument);
int __wrap_ioctl(int fd, unsigned long request, void *argument);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

void faults_fail_allocation(long n)
{
    atomic_store(&countdown, n);
}

bool faults_disarm(void)
{
    return atomic_exchange(&countdown, 0) > 0;
}

void faults_fail_threads(bool on)
{
    atomic_store(&no_threads, on);
}

long faults_live(void)
{
    return atomic_load(&live);
}

static bool fails_now(void)
{
    return atomic_load(&countdown) > 0 && atomic_fetch_sub(&countdown, 1) == 1;
}

static void *counted(void *memory)
{
    if (memory != NULL)
        atomic_fetch_add(&live, 1);
    return memory;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : counted(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : counted(__real_calloc(count, size));
}

void __wrap_free(void *memory)
{
    if (memory != NULL)
        atomic_fetch_sub(&live, 1);
    __real_free(memory);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                          void *argument)
{
    return atomic_load(&no_threads) ? EAGAIN : __real_pthread_create(thread, attributes, start, argument);
}

void faults_advance_clock(unsigned seconds)
{
    atomic_fetch_add(&seconds_ahead, seconds);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int error = __real_clock_gettime(clock, now);
    if (clock == CLOCK_MONOTONIC)
        now->tv_sec += atomic_load(&seconds_ahead);
    return error;
}

void faults_add_drops(uint32_t drops)
{
    atomic_store(&drops_ahead, drops);
}

int __wrap_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
    int error = __real_getsockopt(fd, level, option, value, size);
    if (error == 0 && level == SOL_SOCKET && option == SO_MEMINFO)
        ((uint32_t *)value)[SK_MEMINFO_DROPS] += atomic_load(&drops_ahead);
    return error;
}

/* ---- system calls ---- */

void faults_replace_send(faults_send *send)
{
    atomic_store(&send_stand_in, send);
}

int faults_real_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    return __real_sendmmsg(fd, batch, count, flags);
}

int __wrap_sendmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    faults_send *send = atomic_load(&send_stand_in);
    return send == NULL ? __real_sendmmsg(fd, batch, count, flags) : send(fd, batch, count, flags);
}

void faults_replace_receive(faults_receive *receive)
{
    atomic_store(&receive_stand_in, receive);
}

int faults_real_receive(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    return __real_recvmmsg(fd, batch, count, flags, NULL);
}

int __wrap_recvmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags, struct timespec *timeout)
{
    faults_receive *receive = atomic_load(&receive_stand_in);
    return receive == NULL ? __real_recvmmsg(fd, batch, count, flags, timeout) : receive(fd, batch, count, flags);
}

void faults_replace_write(faults_write *write)
{
    atomic_store(&write_stand_in, write);
}

ssize_t faults_real_write(int fd, const struct iovec *iov, int count)
{
    return __real_writev(fd, iov, count);
}

ssize_t __wrap_writev(int fd, const struct iovec *iov, int count)
{
    faults_write *write = atomic_load(&write_stand_in);
    return write == NULL ? __real_writev(fd, iov, count) : write(fd, iov, count);
}

void faults_replace_read(faults_read *read)
{
    atomic_store(&read_stand_in, read);
}

ssize_t faults_real_read(int fd, const struct iovec *iov, int count)
{
    return __real_readv(fd, iov, count);
}

ssize_t __wrap_readv(int fd, const struct iovec *iov, int count)
{
    faults_read *read = atomic_load(&read_stand_in);
    return read == NULL ? __real_readv(fd, iov, count) : read(fd, iov, count);
}

ssize_t __wrap_read(int fd, void *buffer, size_t size)
{
    faults_read *read = atomic_load(&read_stand_in);
    struct iovec iov = {buffer, size};
    return read == NULL ? __real_read(fd, buffer, size) : read(fd, &iov, 1);
}

void faults_replace_poll(faults_poll *ask)
{
    atomic_store(&poll_stand_in, ask);
}

int faults_real_poll(struct pollfd *sockets, nfds_t count, int milliseconds)
{
    return __real_poll(sockets, count, milliseconds);
}

int __wrap_poll(struct pollfd *sockets, nfds_t count, int milliseconds)
{
    faults_poll *ask = atomic_load(&poll_stand_in);
    return ask == NULL ? __real_poll(sockets, count, milliseconds) : ask(sockets, count, milliseconds);
}

void faults_replace_wait(faults_wait *wait)
{
    atomic_store(&wait_stand_in, wait);
}

int faults_real_wait(int fd, struct epoll_event *events, int count, int milliseconds)
{
    return __real_epoll_wait(fd, events, count, milliseconds);
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int milliseconds)
{
    faults_wait *wait = atomic_load(&wait_stand_in);
    return wait == NULL ? __real_epoll_wait(fd, events, count, milliseconds) : wait(fd, events, count, milliseconds);
}

void faults_replace_ioctl(faults_ioctl *control)
{
    atomic_store(&ioctl_stand_in, control);
}

int faults_real_ioctl(int fd, unsigned long request, void *argument)
{
    return __real_ioctl(fd, request, argument);
}

int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
    faults_ioctl *control = atomic_load(&ioctl_stand_in);
    return control == NULL ? __real_ioctl(fd, request, argument) : control(fd, request, argument);
}

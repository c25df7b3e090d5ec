#include "faults.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/epoll.h>

static atomic_long countdown, live;
static atomic_bool no_threads;
static _Atomic(faults_send *) send_stand_in;
static _Atomic(faults_write *) write_stand_in;
static atomic_ulong sleeps;

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
ssize_t __real_writev(int fd, const struct iovec *iov, int count);
ssize_t __wrap_writev(int fd, const struct iovec *iov, int count);
int __real_epoll_wait(int fd, struct epoll_event *events, int most, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int most, int timeout_ms);
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

void faults_replace_send(faults_send *send)
{
    atomic_store(&send_stand_in, send);
}

void faults_replace_write(faults_write *write)
{
    atomic_store(&write_stand_in, write);
}

int faults_real_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    return __real_sendmmsg(fd, batch, count, flags);
}

ssize_t faults_real_write(int fd, const struct iovec *iov, int count)
{
    return __real_writev(fd, iov, count);
}

int __wrap_sendmmsg(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    faults_send *send = atomic_load(&send_stand_in);
    return send == NULL ? __real_sendmmsg(fd, batch, count, flags) : send(fd, batch, count, flags);
}

ssize_t __wrap_writev(int fd, const struct iovec *iov, int count)
{
    faults_write *write = atomic_load(&write_stand_in);
    return write == NULL ? __real_writev(fd, iov, count) : write(fd, iov, count);
}

unsigned long faults_sleeps(void)
{
    return atomic_load(&sleeps);
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int most, int timeout_ms)
{
    atomic_fetch_add(&sleeps, 1);
    return __real_epoll_wait(fd, events, most, timeout_ms);
}

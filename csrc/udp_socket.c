#include "udp_socket.h"

#include <errno.h>
#include <linux/sock_diag.h>
#include <unistd.h>

/* Room for a burst while the worker is descheduled: 4 MiB hold about 20 ms at 1.5 Gbit/s. */
enum { SOCKET_BUFFER = 4 << 20 };

static int set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

/* FORCE passes net.core.*mem_max but takes CAP_NET_ADMIN; without it the plain option gets what it may. */
static void enlarge_buffers(int fd)
{
    if (set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER) < 0)
        (void)set_int(fd, SOL_SOCKET, SO_RCVBUF, SOCKET_BUFFER);
    if (set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER) < 0)
        (void)set_int(fd, SOL_SOCKET, SO_SNDBUF, SOCKET_BUFFER);
}

int udp_socket_open(uint32_t address, uint16_t port)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_UDP);
    if (fd < 0)
        return -errno;
    enlarge_buffers(fd);
    struct sockaddr_in local = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(address),
    };
    /* WANT: a datagram above the path MTU the kernel has learned is fragmented, not refused. */
    int error = set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_WANT);
    if (error == 0 && bind(fd, (const struct sockaddr *)&local, sizeof local) < 0)
        error = -errno;
    if (error < 0) {
        close(fd);
        return error;
    }
    return fd;
}

int udp_socket_send_batch(int fd, struct mmsghdr *batch, size_t count)
{
    int n;
    do {
        n = sendmmsg(fd, batch, (unsigned)count, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

enum send_verdict udp_socket_judge_send(int error, enum filter_drop *drop)
{
    switch (-error) {
    case EAGAIN:
        return SEND_WAIT;
    case EBADF:
    case ENOTSOCK:
    case EPIPE: /* shut down for writing */
        return SEND_DEAD;
    case EPERM: /* a netfilter rule; EACCES: a prohibit route, or a broadcast address */
    case EACCES:
        *drop = DROP_TUN_SEND_FIREWALL;
        return SEND_DROP;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case EINVAL: /* a blackhole route */
    case EADDRNOTAVAIL:
        *drop = DROP_TUN_SEND_UNREACHABLE;
        return SEND_DROP;
    case EMSGSIZE:
        *drop = DROP_TUN_SEND_TOO_LARGE;
        return SEND_DROP;
    default: /* ENOBUFS, ENOMEM, and what no kernel is known to answer here */
        *drop = DROP_TUN_SEND_FAILED;
        return SEND_DROP;
    }
}

int udp_socket_receive_batch(int fd, struct mmsghdr *batch, size_t count)
{
    int n;
    do {
        n = recvmmsg(fd, batch, (unsigned)count, MSG_DONTWAIT, NULL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

bool udp_socket_is_dead(int error)
{
    return error == -EBADF || error == -ENOTSOCK || error == -ENOTCONN || error == -EFAULT;
}

int udp_socket_clear_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
        return -errno;
    return -error;
}

uint64_t udp_socket_overflows(int fd)
{
    uint32_t info[SK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof info;
    if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &size) < 0)
        return 0;
    return info[SK_MEMINFO_DROPS];
}

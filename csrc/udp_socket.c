#include "udp_socket.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 /* Linux 4.18 */
#endif
#ifndef UDP_GRO
#define UDP_GRO 104 /* Linux 5.0 */
#endif

enum {
    /* Room for a burst while the worker is descheduled: about 20 ms at 1.5 Gbit/s. */
    RECEIVE_BUFFER = 4 << 20,
    /* Packets for silent neighbours count against this until the kernel drops them, up to 208 KiB for each
     * (unres_qlen_bytes). When it is full, all sending pauses. The kernel doubles it: that takes 150 neighbours. */
    SEND_BUFFER = 16 << 20,
};

static int set_int(int fd, int level, int option, int value)
{
    return setsockopt(fd, level, option, &value, sizeof value) < 0 ? -errno : 0;
}

/* The FORCE options may exceed net.core.*mem_max but need CAP_NET_ADMIN; the plain ones are limited to that. */
static void enlarge_buffers(int fd)
{
    if (set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER) < 0)
        (void)set_int(fd, SOL_SOCKET, SO_RCVBUF, RECEIVE_BUFFER);
    if (set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER) < 0)
        (void)set_int(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER);
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
    if (bind(fd, (const struct sockaddr *)&local, sizeof local) == 0)
        return fd;
    int error = -errno;
    close(fd);
    return error;
}

/* ---- probing the offloads ---- */

enum { TRIAL_SIZE = 64, TRIAL_BYTES = 2 * TRIAL_SIZE, TRIAL_PATIENCE_MS = 100 };

/* Receives the two datagrams of TRIAL_SIZE bytes that a trial sent, in one receive or in two. 0, -EBADMSG for any
 * other content, -EAGAIN if nothing comes. */
static int receive_trial(int fd, const uint8_t sent[TRIAL_BYTES])
{
    for (size_t got = 0; got < TRIAL_BYTES;) {
        uint8_t received[TRIAL_BYTES + 1], control[UDP_CONTROL_SIZE] __attribute__((aligned(8)));
        struct iovec iov = {received, sizeof received};
        struct mmsghdr message = {.msg_hdr = {.msg_iov = &iov,
                                              .msg_iovlen = 1,
                                              .msg_control = control,
                                              .msg_controllen = sizeof control}};
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        if (poll(&readable, 1, TRIAL_PATIENCE_MS) <= 0 || udp_socket_receive_batch(fd, &message, 1) < 0)
            return -EAGAIN;
        if (udp_socket_datagram_size(&message) != TRIAL_SIZE || got + message.msg_len > TRIAL_BYTES ||
            memcmp(received, sent + got, message.msg_len) != 0)
            return -EBADMSG;
        got += message.msg_len;
    }
    return 0;
}

/* Sends two datagrams in one send from the socket to itself. Returns which of `promised` work: all if it cannot be
 * tried. */
static unsigned try_with(int fd, unsigned promised)
{
    struct sockaddr_in own;
    socklen_t size = sizeof own;
    uint8_t bytes[TRIAL_BYTES], control[UDP_CONTROL_SIZE] __attribute__((aligned(8))) = {0};
    struct iovec iov = {bytes, sizeof bytes};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1}};
    if (getsockname(fd, (struct sockaddr *)&own, &size) < 0 ||
        connect(fd, (const struct sockaddr *)&own, size) < 0) /* receive no other sender's datagrams */
        return promised;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)i;
    udp_socket_set_segment_size(&message.msg_hdr, control, TRIAL_SIZE);
    int n = udp_socket_send_batch(fd, &message, 1);
    if (n < 0)
        return udp_socket_refused_segments(n) ? promised & ~(unsigned)OFFLOAD_UDP_GSO : promised;
    /* Nothing comes: a firewall on lo. Two receives: this kernel merges on physical devices only (5.10 does). */
    return receive_trial(fd, bytes) == -EBADMSG ? 0 : promised;
}

/* Tries over loopback what setsockopt has promised. Returns what works: all where lo is down or no socket is left. */
static unsigned try_segments(unsigned promised)
{
    unsigned works = promised;
    /* Without UDP_SEGMENT, UDP_GRO cannot be tried. */
    int fd = promised & OFFLOAD_UDP_GSO ? udp_socket_open(INADDR_LOOPBACK, 0) : -1;
    if (fd < 0)
        return promised;
    if (!(promised & OFFLOAD_UDP_GRO) || set_int(fd, IPPROTO_UDP, UDP_GRO, 1) == 0)
        works = try_with(fd, promised);
    close(fd);
    return works;
}

/* OMIT: routers fragment what is too large for a link behind them, and the kernel ignores the ICMP errors that say so.
 * Anybody can forge those for a known pair of ports, and one holds for ten minutes. Kernels before 3.15 have WANT. */
static void ignore_path_mtu(int fd)
{
    if (set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT) < 0)
        (void)set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_WANT);
}

unsigned udp_socket_attach(int fd, unsigned wanted)
{
    ignore_path_mtu(fd); /* here, because an older version may have opened the socket */
    unsigned promised = 0;
    /* A size of 0 changes nothing: it only shows whether the kernel has the option. */
    if (wanted & OFFLOAD_UDP_GSO && set_int(fd, IPPROTO_UDP, UDP_SEGMENT, 0) == 0)
        promised |= OFFLOAD_UDP_GSO;
    if (wanted & OFFLOAD_UDP_GRO && set_int(fd, IPPROTO_UDP, UDP_GRO, 1) == 0)
        promised |= OFFLOAD_UDP_GRO;
    unsigned on = try_segments(promised);
    if (!(on & OFFLOAD_UDP_GRO))
        (void)set_int(fd, IPPROTO_UDP, UDP_GRO, 0); /* may fail: the kernel does not have it */
    return on;
}

/* ---- messages ---- */

void udp_socket_set_segment_size(struct msghdr *message, uint8_t control[UDP_CONTROL_SIZE], size_t size)
{
    uint16_t value = (uint16_t)size;
    message->msg_control = size == 0 ? NULL : control;
    message->msg_controllen = size == 0 ? 0 : CMSG_SPACE(sizeof value);
    if (size == 0)
        return;
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    header->cmsg_level = IPPROTO_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof value);
    memcpy(CMSG_DATA(header), &value, sizeof value);
}

size_t udp_socket_datagram_size(const struct mmsghdr *message)
{
    struct msghdr header = message->msg_hdr; /* CMSG_NXTHDR wants it writable */
    for (struct cmsghdr *at = CMSG_FIRSTHDR(&header); at != NULL; at = CMSG_NXTHDR(&header, at)) {
        int size;
        if (at->cmsg_level != IPPROTO_UDP || at->cmsg_type != UDP_GRO ||
            at->cmsg_len < CMSG_LEN(sizeof size))
            continue;
        memcpy(&size, CMSG_DATA(at), sizeof size);
        if (size > 0)
            return (size_t)size;
    }
    return message->msg_len;
}

int udp_socket_send_batch(int fd, struct mmsghdr *batch, size_t count)
{
    int n;
    do {
        n = sendmmsg(fd, batch, (unsigned)count, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    int error = -errno;
    /* It is shut down for writing, which no poll reports. Shut down wholly, it polls as lost to everybody. */
    if (error == -EPIPE)
        (void)shutdown(fd, SHUT_RDWR); /* ENOTCONN, and yet it is done */
    return error;
}

bool udp_socket_is_writable(int fd)
{
    struct pollfd socket = {.fd = fd, .events = POLLOUT};
    return poll(&socket, 1, 0) == 1 && (socket.revents & POLLOUT) != 0;
}

enum send_verdict udp_socket_judge_send(int error, enum drop_reason *drop)
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
    default: /* ENOBUFS, ENOMEM, and errors that no kernel is known to return here */
        *drop = DROP_TUN_SEND_FAILED;
        return SEND_DROP;
    }
}

bool udp_socket_refused_segments(int error)
{
    /* EIO: the egress device has no checksum offload (kernels up to 6.10), or an xfrm policy applies.
     * EINVAL, EMSGSIZE: a segment is larger than the interface's MTU, which a single datagram may be. */
    return error == -EIO || error == -EINVAL || error == -EMSGSIZE;
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

/* ---- the filter, and what it and a full buffer drop ---- */

bool udp_socket_set_filter(int fd, uint16_t port, const struct flood_filter *filter)
{
    enum { SOURCE = SKF_NET_OFF + 12, PASS = -1 };
    struct sock_filter code[FLOOD_SOURCES + 8];
    unsigned short n = 0;
    if (filter->count == 0 && !filter->ports) {
        (void)set_int(fd, SOL_SOCKET, SO_DETACH_FILTER, 0); /* ENOENT: there is none */
        return false;
    }
    /* Relative jumps to the sample are as far as what follows them is long. */
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)SOURCE);
    for (size_t i = 0; i < filter->count; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, filter->sources[i],
                                                 (uint8_t)(filter->count - i - 1 + 3), 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0); /* the UDP header begins with it */
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, port, 0, filter->ports ? 1 : 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (unsigned)PASS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)(SKF_AD_OFF + SKF_AD_RANDOM));
    code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, FLOOD_SAMPLE - 1, 1, 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (unsigned)PASS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = {.len = n, .filter = code};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0;
}

/* How often the receive buffer of a UDP socket was full in the network namespace of this thread; 0 if it is unknown. */
static uint64_t read_full_buffers(void)
{
    enum { FULL = 4, NO_MEMORY = 8, COLUMNS }; /* RcvbufErrors, MemErrors; kernels add columns only at the end */
    uint64_t values[COLUMNS] = {0};
    char text[8192];
    int fd = open("/proc/thread-self/net/snmp", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = '\0';
    const char title[] = "\nUdp:"; /* of a line of names, then of one of values */
    char *at = strstr(text, title);
    at = at == NULL ? NULL : strstr(at + 1, title);
    if (at != NULL)
        at += strlen(title);
    for (size_t i = 0; i < COLUMNS && at != NULL; i++)
        values[i] = strtoull(at, &at, 10);
    return values[FULL] + values[NO_MEMORY];
}

void udp_socket_count_overflows(int fd, bool had_filter, struct udp_overflows *overflows)
{
    uint32_t info[SK_MEMINFO_VARS] = {0};
    uint64_t cookie = 0;
    socklen_t size = sizeof info, cookie_size = sizeof cookie;
    if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &cookie_size) < 0)
        return;
    if (overflows->socket != cookie) {
        overflows->socket = cookie;
        overflows->seen = 0;
    }
    uint32_t dropped = info[SK_MEMINFO_DROPS] - overflows->seen; /* correct also after a wrap */
    uint64_t full = read_full_buffers(), newly_full = full - overflows->full;
    overflows->seen = info[SK_MEMINFO_DROPS];
    overflows->full = full;
    if (!had_filter || newly_full > dropped)
        newly_full = dropped;
    overflows->total += newly_full;
    overflows->filtered += dropped - newly_full;
}

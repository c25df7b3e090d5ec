/* udp_socket.h - the outer UDP socket: open, offload probe, batch send, batch receive. The only file that knows
 * its errnos and control messages. */
#pragma once

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "drop.h"
#include "flood.h"

enum {
    UDP_SEND_MAX = 65507,   /* bytes of payload in one send, all segments together */
    UDP_SEGMENTS_MAX = 63,  /* segments in one send: 64 equal ones fail on older kernels */
    UDP_CONTROL_SIZE = 64,  /* room for a control message of ours */
};

/* Opens a non-blocking, close-on-exec socket bound to address:port (host byte order) with large buffers.
 * Returns the descriptor or -errno: -EADDRINUSE (port taken), -EADDRNOTAVAIL (not our address), -EACCES. */
int udp_socket_open(uint32_t address, uint16_t port);

/* Has the kernel ignore path MTUs, and switches on those of the wanted OFFLOAD_UDP_* that work, and the others off. Returns those that are on. They are
 * tried over loopback in the caller's network namespace; where lo is down, the result of setsockopt counts. UDP GRO
 * that leaves datagrams on lo unmerged works: a kernel may merge on physical devices only. */
unsigned udp_socket_attach(int fd, unsigned wanted);

/* Makes a message ask for segments of `size` bytes, in its control buffer; 0: for none. */
void udp_socket_set_segment_size(struct msghdr *message, uint8_t control[UDP_CONTROL_SIZE], size_t size);

/* The size of the datagrams that a received message holds one after another; the last may be shorter. */
size_t udp_socket_datagram_size(const struct mmsghdr *message);

/* Sends messages from the front of the batch; count must not be 0. Returns how many the kernel took, at least one, or
 * -errno, which is about the first message only. */
int udp_socket_send_batch(int fd, struct mmsghdr *batch, size_t count);

/* Whether the socket has room for another message. */
bool udp_socket_is_writable(int fd);

/* What to do with a message that could not be sent. */
enum send_verdict {
    SEND_WAIT, /* the socket is full: keep the message until it is writable. If it is writable, try once more: EAGAIN
                * is then about this message */
    SEND_DROP, /* this message is lost; try the next */
    SEND_DEAD, /* the socket itself is unusable */
};

/* Decides about an error of udp_socket_send_batch; for SEND_DROP *drop is the reason. */
enum send_verdict udp_socket_judge_send(int error, enum drop_reason *drop);

/* Whether a segmented send that failed with this error may pass as single datagrams. */
bool udp_socket_refused_segments(int error);

/* Receives up to count messages. Returns their number; -EAGAIN when there is none; any other -errno. */
int udp_socket_receive_batch(int fd, struct mmsghdr *batch, size_t count);

/* Whether this receive error means that the socket is unusable, not that one datagram was lost. */
bool udp_socket_is_dead(int error);

/* Clears the pending error of the socket, so that it stops waking us. Returns it as -errno, or 0. */
int udp_socket_clear_error(int fd);

/* Has the kernel drop, unread, what the filter says, all but one in FLOOD_SAMPLE; where that fails, nothing. Returns
 * whether it drops anything. */
bool udp_socket_set_filter(int fd, uint16_t port, const struct flood_filter *filter);

/* Datagrams that the kernel dropped because the receive buffer was full, or because of the filter. It counts both
 * together, per socket and in 32 bits. */
struct udp_overflows {
    uint64_t socket;   /* its cookie */
    uint32_t seen;     /* of that socket, already in total or filtered */
    uint64_t full;     /* buffers, as counted for the whole network namespace, already looked at */
    uint64_t total;    /* of all sockets: the buffer was full */
    uint64_t filtered; /* of all sockets */
};

/* Adds those of the socket that were not counted yet. If there was a filter, the full buffers of the caller's network
 * namespace tell both kinds apart. The sums stay where the kernel has no count (before 4.12) or there is no socket. */
void udp_socket_count_overflows(int fd, bool had_filter, struct udp_overflows *overflows);

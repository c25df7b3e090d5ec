/* udp_socket.h - the outer UDP socket: open, offload probe, batch send, batch receive. The only file that knows
 * its errnos and control messages. */
#ifndef FLANNEL_UDP_UDP_SOCKET_H
#define FLANNEL_UDP_UDP_SOCKET_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "drop.h"

enum {
    UDP_SEND_MAX = 65507,   /* bytes of payload one send takes, all segments together */
    UDP_SEGMENTS_MAX = 63,  /* segments one send takes: 64 equal ones fail on older kernels */
    UDP_CONTROL_SIZE = 64,  /* room for a control message of ours */
};

/* Opens a non-blocking, close-on-exec socket bound to address:port (host byte order) with large buffers.
 * The descriptor or -errno: -EADDRINUSE (port taken), -EADDRNOTAVAIL (not our address), -EACCES. */
int udp_socket_open(uint32_t address, uint16_t port);

/* Switches on those of the wanted OFFLOAD_UDP_* that the kernel has, and the others off. Which are on. They are tried
 * over loopback in the caller's network namespace; where lo is down, what setsockopt says is believed. */
unsigned udp_socket_attach(int fd, unsigned wanted);

/* Makes a message's control buffer ask for segments of `size` bytes; 0 asks for nothing. */
void udp_socket_set_segment_size(struct msghdr *message, uint8_t control[UDP_CONTROL_SIZE], size_t size);

/* The size of the datagrams that a received message holds one after another: its own if there is but one. */
size_t udp_socket_datagram_size(const struct mmsghdr *message);

/* Sends messages from the front of the batch; count must not be 0. How many the kernel took, at least one;
 * or -errno, which speaks of the first message only. */
int udp_socket_send_batch(int fd, struct mmsghdr *batch, size_t count);

/* What to do about a message that could not be sent. */
enum send_verdict {
    SEND_WAIT, /* the socket is full: keep the message until it is writable */
    SEND_DROP, /* this message is lost, the next may pass */
    SEND_DEAD, /* the socket itself is unusable */
};

/* Judges an error of udp_socket_send_batch; for SEND_DROP *drop names the counter. */
enum send_verdict udp_socket_judge_send(int error, enum drop_reason *drop);

/* Whether a segmented send that failed so may pass as single datagrams. */
bool udp_socket_refused_segments(int error);

/* Receives up to count messages. How many; -EAGAIN when there is none; any other -errno. */
int udp_socket_receive_batch(int fd, struct mmsghdr *batch, size_t count);

/* Whether this receive error means the socket is unusable, not that one datagram was lost. */
bool udp_socket_is_dead(int error);

/* Takes the pending error off the socket, so that it stops waking us. That error as -errno, or 0. */
int udp_socket_clear_error(int fd);

/* Datagrams the kernel dropped because the receive buffer was full. It counts them for each socket and in 32 bits. */
struct udp_overflows {
    uint64_t socket; /* its cookie */
    uint32_t seen;   /* of that socket's, already counted */
    uint64_t total;  /* of all sockets */
};

/* Counts those of the socket that are not counted yet. The total; unchanged if the kernel does not tell (before 4.12)
 * or there is no socket. */
uint64_t udp_socket_overflows(int fd, struct udp_overflows *overflows);

#endif

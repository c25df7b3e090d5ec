/* udp_socket.h - the outer UDP socket: open, send a batch, receive a batch. The only file that knows its errnos. */
#ifndef FLANNEL_UDP_UDP_SOCKET_H
#define FLANNEL_UDP_UDP_SOCKET_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "filter.h"

/* Opens a non-blocking, close-on-exec socket bound to address:port (host byte order) with large buffers.
 * The descriptor or -errno: -EADDRINUSE (port taken), -EADDRNOTAVAIL (not our address), -EACCES. */
int udp_socket_open(uint32_t address, uint16_t port);

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
enum send_verdict udp_socket_judge_send(int error, enum filter_drop *drop);

/* Receives up to count datagrams. How many; -EAGAIN when there is none; any other -errno. */
int udp_socket_receive_batch(int fd, struct mmsghdr *batch, size_t count);

/* Whether this receive error means the socket is unusable, not that one datagram was lost. */
bool udp_socket_is_dead(int error);

/* Takes the pending error off the socket, so that it stops waking us. That error as -errno, or 0. */
int udp_socket_clear_error(int fd);

/* Datagrams the kernel dropped because the receive buffer was full, since the socket was opened; 0 if the
 * kernel does not tell (before 4.12). */
uint64_t udp_socket_overflows(int fd);

#endif

/* outbox.h - packets on their way to the socket, gathered into messages.
 *
 * A message is a run of packets for one peer, all of one size but the last, which may be shorter: with
 * UDP_SEGMENT it leaves in one send. Without (or for a peer whose way out refused it) every packet of the run
 * is a send of its own. Either way many sends share one system call. Packets of one peer leave in the order
 * they were added.
 *
 * Payload is pointed at, not copied: it must stay until the outbox is empty again. Whoever adds asks
 * outbox_has_room before each superpacket or packet.
 */
#ifndef FLANNEL_UDP_OUTBOX_H
#define FLANNEL_UDP_OUTBOX_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "counters.h"
#include "peer_table.h"
#include "segment.h"
#include "udp_socket.h"

enum {
    OUTBOX_PACKETS = 2 * SEGMENT_COUNT_MAX, /* segments, whose headers lie here */
    OUTBOX_MESSAGES = 192,
    OUTBOX_WINDOW = 64,       /* sends in one system call */
    OUTBOX_PIECES = 2,        /* iovecs of a packet: one, or header and payload */
};

struct message {
    struct peer *peer;
    size_t packet_size; /* of every packet but the last */
    size_t length;      /* all packets, bytes */
    uint16_t packets;
    uint16_t sent;      /* packets that have left one by one */
    uint8_t pieces;     /* iovecs of each packet, 1..OUTBOX_PIECES */
    bool open;          /* one more packet may follow */
    bool segmented;     /* leaves in one send */
    bool refused;       /* was to leave in one send, but the kernel refused it */
    struct iovec iov[UDP_SEGMENTS_MAX * OUTBOX_PIECES];
};

struct outbox {
    size_t first, count; /* messages [first, count) are still to be sent */
    size_t headers;      /* of headers[], used */
    bool gso;            /* the socket takes UDP_SEGMENT */
    uint16_t port;       /* of every peer */
    bool offload_changed; /* since the owner reset it, a peer's path began or ceased to refuse segments */
    struct worker_counters *counters;
    struct message messages[OUTBOX_MESSAGES];
    uint8_t header_pool[OUTBOX_PACKETS][SEGMENT_HEADER_MAX];
    /* One system call's worth of sends, made from the messages. */
    struct mmsghdr window[OUTBOX_WINDOW];
    struct sockaddr_in to[OUTBOX_WINDOW];
    uint8_t control[OUTBOX_WINDOW][UDP_CONTROL_SIZE] __attribute__((aligned(8)));
};

/* Empties the outbox. */
void outbox_reset(struct outbox *outbox);

/* Whether the outbox takes one more superpacket, however small its segments are. */
bool outbox_has_room(const struct outbox *outbox);

/* Room for the headers of one more segment. */
uint8_t *outbox_new_header(struct outbox *outbox);

/* Adds a packet of one or two pieces for the peer. */
void outbox_add(struct outbox *outbox, struct peer *peer, const struct iovec *pieces, size_t count);

/* Sends what the outbox holds. 0 when it is empty; 1 when the socket is full and the rest must wait;
 * -errno when the socket is unusable. `now_ns` is CLOCK_MONOTONIC. */
int outbox_flush(struct outbox *outbox, int fd, uint64_t now_ns);

/* Gives up what the outbox holds, which is counted as not sent. */
void outbox_abandon(struct outbox *outbox);

static inline bool outbox_is_empty(const struct outbox *outbox)
{
    return outbox->first == outbox->count;
}

#endif

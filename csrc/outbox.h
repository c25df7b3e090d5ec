/* outbox.h - packets on their way to the socket, gathered into messages.
 *
 * A message is a run of packets for one peer, all of one size except a shorter last. With UDP_SEGMENT it leaves in
 * one send. Without it, or on a path that refused it, every packet of the run is a send of its own. Either way many
 * sends share one system call. Packets for one peer leave in the order in which they were added.
 *
 * Payload is not copied: it must stay in place until the outbox is empty. The caller checks outbox_has_room before
 * each superpacket or packet.
 */
#pragma once

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
    /* Segments, whose headers are kept here: the most of one superpacket, or 2048 and then the most of one more. */
    OUTBOX_PACKETS = 2048 + SEGMENT_COUNT_MAX,
    OUTBOX_MESSAGES = 256,
    OUTBOX_WINDOW = 64,       /* sends in one system call */
    OUTBOX_PIECES = 2,        /* iovecs of a packet: one, or header and payload */
};

struct message {
    struct peer *peer;
    size_t packet_size; /* of every packet but the last, bytes */
    size_t length;      /* of all packets, bytes */
    uint16_t packets;
    uint16_t sent;      /* packets that were sent one by one */
    uint8_t pieces;     /* iovecs of each packet, 1..OUTBOX_PIECES */
    bool open;          /* one more packet may follow */
    bool segmented;     /* leaves in one send */
    bool refused;       /* was to leave in one send, but the kernel refused it */
    struct iovec iov[UDP_SEGMENTS_MAX * OUTBOX_PIECES];
};

struct outbox {
    size_t first, count; /* messages [first, count) are still to be sent */
    size_t headers;      /* of header_pool[], used */
    bool gso;            /* the socket takes UDP_SEGMENT */
    uint16_t port;       /* of every peer */
    bool offload_changed; /* the path to a peer began or ceased to refuse segments (the owner resets it) */
    struct worker_counters *counters;
    struct message messages[OUTBOX_MESSAGES];
    uint8_t header_pool[OUTBOX_PACKETS][SEGMENT_HEADER_MAX];
    /* The sends of one system call, made from the messages. */
    struct mmsghdr window[OUTBOX_WINDOW];
    struct sockaddr_in to[OUTBOX_WINDOW];
    uint8_t control[OUTBOX_WINDOW][UDP_CONTROL_SIZE] __attribute__((aligned(8)));
};

/* Empties the outbox. */
void outbox_reset(struct outbox *outbox);

/* Whether there is room for one more superpacket, however small its segments are. */
bool outbox_has_room(const struct outbox *outbox);

/* Where the headers of one more segment are to be written. */
uint8_t *outbox_new_header(struct outbox *outbox);

/* Adds a packet of one or two pieces for the peer. */
void outbox_add(struct outbox *outbox, struct peer *peer, const struct iovec *pieces, size_t count);

/* Sends what the outbox holds. 0 when it is empty; 1 when the socket is full and the rest must wait;
 * -errno when the socket is unusable. `now_ns` is CLOCK_MONOTONIC. */
int outbox_flush(struct outbox *outbox, int fd, uint64_t now_ns);

/* Empties the outbox and counts what it held as not sent. */
void outbox_abandon(struct outbox *outbox);

static inline bool outbox_is_empty(const struct outbox *outbox)
{
    return outbox->first == outbox->count;
}

/* tunnel.h - what both directions work with: the TUN device and the socket, the tables, the buffers, the counters.
 *
 * outbound.c carries packets from the TUN to the socket, inbound.c from the socket to the TUN, one turn at a time.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "coalesce.h"
#include "counters.h"
#include "filter.h"
#include "flood.h"
#include "icmp.h"
#include "outbox.h"
#include "refusal.h"
#include "tables.h"
#include "tun_device.h"
#include "udp_socket.h"

enum {
    /* One turn of one direction carries at most this much, so that the other one and a stop wait no longer than that.
     * Four superpackets, because their runs join: a single one leaves in a long send and a short one. */
    TURN_PACKETS = 64,
    TURN_BYTES = 256 << 10,
    /* Receives in a batch with UDP_GRO: a superpacket leaves its sender in two sends, whose packets are joined again
     * only within one batch. */
    TURN_MERGED_RECEIVES = 16,

    SLOT_SIZE = PACKET_MAX + 1,           /* a longer datagram than any packet is seen, not cut to fit */
    INBOUND_STRIDE = SLOT_SIZE + 17 * 64, /* an odd number of cache lines: slots do not share cache sets */
};

struct inbox {
    size_t size; /* messages that one receive asks for */
    struct mmsghdr headers[TURN_PACKETS];
    struct iovec iov[TURN_PACKETS];
    struct sockaddr_in from[TURN_PACKETS];
    uint8_t control[TURN_PACKETS][UDP_CONTROL_SIZE] __attribute__((aligned(8)));
};

struct tunnel_buffers {
    struct outbox outbox;
    struct inbox inbox;
    struct coalescer coalescer;
    uint8_t outbound[TURN_BYTES + SLOT_SIZE];
    uint8_t inbound[TURN_PACKETS][INBOUND_STRIDE];
};

/* What the tunnel joins. The descriptors are borrowed. */
struct tunnel_ends {
    struct tun_device tun;
    int udp_fd;
    uint16_t port;     /* the socket's, and that of every peer */
    unsigned offloads; /* enum offload: those in use */
};

struct tunnel {
    /* fixed while the worker runs */
    const struct filter_identity *own;
    struct tables *tables;
    struct tunnel_ends ends;
    uint32_t tun_address; /* source of ICMP replies, host byte order */
    int event_fd; /* eventfd: a refusal to log, an offload that is refused from now on or no longer, a failed worker */
    struct tunnel_buffers *buffers;

    /* shared with the controlling thread */
    struct refusal_queue refusals;
    atomic_uint refused_offloads;         /* OFFLOAD_TSO, OFFLOAD_USO: superpackets that the TUN refuses just now */
    atomic_uint_fast64_t offload_changes; /* of these, and of peers whose path refuses segments */
    atomic_bool had_filter;               /* the socket has one, or has had one (flood.h) */
    struct worker_counters counters;

    /* the worker's own */
    struct icmp_limits icmp_limits;
    struct flood flood;
    uint64_t filter_until_ns;     /* the filter must be made anew then */
    uint64_t now_ns;              /* CLOCK_MONOTONIC at this turn */
    uint64_t tcp_single_until_ns; /* the TUN refused a TCP superpacket: not tried before then */
    uint64_t udp_single_until_ns;
};

/* Makes the buffers and the event descriptor. 0 or -errno, and then some exist: tunnel_clear. */
int tunnel_init(struct tunnel *tunnel);

/* Frees what tunnel_init made; the worker must be stopped. */
void tunnel_clear(struct tunnel *tunnel);

/* Looks which of the wanted offloads (enum offload) the ends have, and switches them on. 0 or -errno. */
int tunnel_probe(struct tunnel_ends *ends, int tun_fd, int udp_fd, unsigned wanted);

/* Joins the tunnel to these ends, with empty buffers and no offload refused; the worker must be stopped. */
void tunnel_join(struct tunnel *tunnel, const struct tunnel_ends *ends);

/* Gives the socket the filter that the floods of this moment need. */
void tunnel_set_filter(struct tunnel *tunnel);

/* Makes event_fd readable. */
void tunnel_signal_event(const struct tunnel *tunnel);

/* Reports that a use of an offload is refused from now on, or no longer. */
void tunnel_note_offload_change(struct tunnel *tunnel);

static inline void tunnel_count_drop(struct tunnel *tunnel, enum drop_reason drop)
{
    counter_add(&tunnel->counters.drops[drop], 1);
}

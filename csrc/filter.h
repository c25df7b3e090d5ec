/* filter.h - which packets the pump carries (pure). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "drop.h"
#include "packet.h"
#include "peer_table.h"

/* What is ours, in host byte order; fixed for the life of a pump, except the content of `addresses`. */
struct filter_identity {
    uint32_t network, network_mask; /* the overlay's Network */
    uint32_t subnet, subnet_mask;   /* our lease */
    uint32_t public_ip;             /* our PublicIP */
    const struct route_table *addresses; /* of this host. Its kernel does not refuse them as sources, or it would refuse
                                          * the pump's ICMP replies, too (accept_local) */
    bool check_source;              /* the outer source must be a peer, and lease the inner source */
    bool check_port;                /* the outer source port must be the overlay's */
};

/* A packet read from the TUN device: DROP_NONE and its peer, or why it is dropped. */
enum drop_reason filter_outbound(const struct filter_identity *own, const struct route_table *routes,
                                 const struct peer_table *peers, const struct packet *packet,
                                 struct peer **peer);

/* A packet received from `outer_source` (host byte order): DROP_NONE, or why it is dropped. *peer is the sender, NULL
 * if it is unknown (its packets pass only without the source check). */
enum drop_reason filter_inbound(const struct filter_identity *own, const struct route_table *routes,
                                const struct peer_table *peers, const struct packet *packet,
                                uint32_t outer_source, struct peer **peer);

/* Why a datagram with this fault is dropped. */
enum drop_reason filter_inbound_fault(enum packet_fault fault);

/* filter.h - which packets the pump carries (pure). */
#ifndef FLANNEL_UDP_FILTER_H
#define FLANNEL_UDP_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#include "drop.h"
#include "packet.h"
#include "peer_table.h"

/* What is ours, in host byte order; fixed for the life of a pump, but for what `addresses` holds. */
struct filter_identity {
    uint32_t network, network_mask; /* the overlay's Network */
    uint32_t subnet, subnet_mask;   /* our lease */
    uint32_t public_ip;             /* our PublicIP */
    const struct route_table *addresses; /* every address of this host: its kernel must not do this check, because
                                          * it would drop the pump's ICMP replies with it (accept_local) */
    bool check_source;              /* outer and inner sources must belong together */
};

/* A packet read from the TUN device: DROP_NONE and its peer, or why not. */
enum drop_reason filter_outbound(const struct filter_identity *own, const struct route_table *routes,
                                 const struct peer_table *peers, const struct packet *packet,
                                 struct peer **peer);

/* A packet received from `outer_source` (host byte order): DROP_NONE, or why not. *peer is the sender's, NULL
 * for an unknown one (which passes only without the source check). */
enum drop_reason filter_inbound(const struct filter_identity *own, const struct route_table *routes,
                                const struct peer_table *peers, const struct packet *packet,
                                uint32_t outer_source, struct peer **peer);

/* The counter of a datagram that packet_parse refused. */
enum drop_reason filter_inbound_fault(enum packet_fault fault);

#endif

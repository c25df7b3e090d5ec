/* filter.h - which packets the pump carries: every refusal, with the name of its counter (pure). */
#ifndef FLANNEL_UDP_FILTER_H
#define FLANNEL_UDP_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#include "packet.h"
#include "peer_table.h"

/* Reasons a packet is not carried, in the order they are shown. tun_*: on its way out of this host, udp_*: in. */
#define FILTER_DROPS(X)                                                                                      \
    X(TUN_READ_FAILED, tun_read_failed)             /* the kernel lost the packet while we read it */        \
    X(TUN_IPV6, tun_ipv6)                           /* IPv6 noise from our own kernel */                     \
    X(TUN_MALFORMED, tun_malformed)                 /* not a whole IPv4 packet */                            \
    X(TUN_NOT_UNICAST, tun_not_unicast)             /* to a multicast, broadcast or loopback address */      \
    X(TUN_NO_ROUTE, tun_no_route)                   /* no lease holds the destination */                     \
    X(TUN_SEND_FIREWALL, tun_send_firewall)         /* EPERM, EACCES: a local firewall refused the datagram */ \
    X(TUN_SEND_UNREACHABLE, tun_send_unreachable)   /* ENETUNREACH, EHOSTUNREACH, ...: no way to the peer */ \
    X(TUN_SEND_TOO_LARGE, tun_send_too_large)       /* EMSGSIZE */                                           \
    X(TUN_SEND_FAILED, tun_send_failed)             /* any other errno */                                    \
    X(UDP_TRUNCATED, udp_truncated)                 /* the datagram did not fit the buffer */                \
    X(UDP_NOT_IP, udp_not_ip)                       /* neither IPv4 nor IPv6 */                              \
    X(UDP_IPV6, udp_ipv6)                           /* IPv6: the overlay carries IPv4 */                     \
    X(UDP_BAD_HEADER, udp_bad_header)               /* header length below 20 or beyond the datagram */      \
    X(UDP_BAD_LENGTH, udp_bad_length)               /* total length unequal to the datagram's */             \
    X(UDP_UNKNOWN_PEER, udp_unknown_peer)           /* outer source is no lease's PublicIP */                \
    X(UDP_SPOOFED_SOURCE, udp_spoofed_source)       /* inner source leased by another host, or by none */    \
    X(UDP_MARTIAN_SOURCE, udp_martian_source)       /* inner source loopback, multicast, ours, ... */        \
    X(UDP_WRONG_DESTINATION, udp_wrong_destination) /* inner destination outside our subnet */               \
    X(UDP_TUN_REFUSED, udp_tun_refused)             /* the TUN device took no packet (down, no memory) */

enum filter_drop {
#define FILTER_ENUM(upper, lower) DROP_##upper,
    FILTER_DROPS(FILTER_ENUM)
#undef FILTER_ENUM
    DROP_COUNT,
    DROP_NONE = DROP_COUNT, /* the packet is carried */
};

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
enum filter_drop filter_outbound(const struct filter_identity *own, const struct route_table *routes,
                                 const struct peer_table *peers, const struct packet *packet,
                                 struct peer **peer);

/* A packet received from `outer_source` (host byte order): DROP_NONE, or why not. *peer is the sender's, NULL
 * for an unknown one (which passes only without the source check). */
enum filter_drop filter_inbound(const struct filter_identity *own, const struct route_table *routes,
                                const struct peer_table *peers, const struct packet *packet,
                                uint32_t outer_source, struct peer **peer);

/* The counter of a datagram that packet_parse refused. */
enum filter_drop filter_inbound_fault(enum packet_fault fault);

#endif

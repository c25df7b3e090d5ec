/* drop.h - why a packet is not carried: every reason, with the name of its counter. */
#pragma once

/* In the order in which they are shown. tun_*: packets that leave this host, udp_*: packets that arrive. */
#define DROP_REASONS(X)                                                                                      \
    X(TUN_READ_FAILED, tun_read_failed)             /* the kernel lost the packet while we read it */        \
    X(TUN_IPV6, tun_ipv6)                           /* IPv6 from our own kernel: the overlay carries IPv4 */    \
    X(TUN_MALFORMED, tun_malformed)                 /* not a whole IPv4 packet */                            \
    X(TUN_NOT_UNICAST, tun_not_unicast)             /* to a multicast, broadcast or loopback address */      \
    X(TUN_NO_ROUTE, tun_no_route)                   /* no lease holds the destination */                     \
    X(TUN_SEND_FIREWALL, tun_send_firewall)         /* EPERM, EACCES: a local firewall refused the datagram */ \
    X(TUN_SEND_UNREACHABLE, tun_send_unreachable)   /* ENETUNREACH, EHOSTUNREACH, ...: no route to the peer */ \
    X(TUN_SEND_TOO_LARGE, tun_send_too_large)       /* EMSGSIZE */                                           \
    X(TUN_SEND_FAILED, tun_send_failed)             /* any other errno */                                    \
    X(UDP_TRUNCATED, udp_truncated)                 /* the datagram did not fit the buffer */                \
    X(UDP_NOT_IP, udp_not_ip)                       /* neither IPv4 nor IPv6 */                              \
    X(UDP_IPV6, udp_ipv6)                           /* IPv6: the overlay carries IPv4 */                     \
    X(UDP_BAD_HEADER, udp_bad_header)               /* header length below 20 or beyond the datagram */      \
    X(UDP_BAD_LENGTH, udp_bad_length)               /* total length unequal to the datagram's */             \
    X(UDP_WRONG_PORT, udp_wrong_port)               /* outer source port is not the overlay's */              \
    X(UDP_FLOOD, udp_flood)                         /* the socket's filter dropped it, unread (flood.h) */   \
    X(UDP_UNKNOWN_PEER, udp_unknown_peer)           /* outer source is no lease's PublicIP */                \
    X(UDP_SPOOFED_SOURCE, udp_spoofed_source)       /* inner source leased by another host, or by none */    \
    X(UDP_MARTIAN_SOURCE, udp_martian_source)       /* inner source loopback, multicast, ours, ... */        \
    X(UDP_WRONG_DESTINATION, udp_wrong_destination) /* inner destination outside our subnet */               \
    X(UDP_TUN_REFUSED, udp_tun_refused)             /* the TUN device refused the packet (down, no memory) */

enum drop_reason {
#define DROP_ENUM(upper, lower) DROP_##upper,
    DROP_REASONS(DROP_ENUM)
#undef DROP_ENUM
    DROP_COUNT,
    DROP_NONE = DROP_COUNT, /* the packet is carried */
};

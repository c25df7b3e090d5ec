/* icmp.h - the destination unreachable reply to a packet nobody leases the destination of (pure).
 *
 * RFC 792 gives the form; RFC 1122 3.2.2 and RFC 1812 4.3.2 say when it must not be sent.
 */
#ifndef FLANNEL_UDP_ICMP_H
#define FLANNEL_UDP_ICMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "limiter.h"
#include "packet.h"

enum { ICMP_REPLY_MAX = 576 }; /* RFC 1812 4.3.2.3: as much of the packet as fits 576 bytes */

/* Whether RFC 1122 and RFC 1812 let an ICMP error answer this packet. */
bool icmp_may_answer(const struct packet *packet);

/* Writes a "network unreachable" from `source` (host byte order) about the packet. The length of the reply. */
size_t icmp_net_unreachable(uint8_t reply[ICMP_REPLY_MAX], uint32_t source, const struct packet *packet);

enum { ICMP_RATE = 1000, ICMP_BURST = 50 }; /* replies a second, after a burst */

/* Whether one more reply may leave now. */
static inline bool icmp_limiter_allow(struct limiter *limiter, uint64_t now_ns)
{
    return limiter_allow(limiter, ICMP_RATE, ICMP_BURST, now_ns);
}

#endif

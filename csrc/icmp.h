/* icmp.h - the "network unreachable" reply to a packet whose destination no host leases (pure).
 *
 * RFC 792 gives the form; RFC 1122 3.2.2 and RFC 1812 4.3.2 say when it must not be sent.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "packet.h"

enum {
    ICMP_REPLY_MAX = 576, /* RFC 1812 4.3.2.3: quotes as much of the packet as fits into 576 bytes */
    ICMP_RATE = 1000,     /* replies a second ... */
    ICMP_BURST = 50,      /* ... after this many at once */
};

/* Whether RFC 1122 and RFC 1812 let an ICMP error answer this packet. */
bool icmp_may_answer(const struct packet *packet);

/* Writes the reply from `source` (host byte order) about the packet. Returns its length. */
size_t icmp_net_unreachable(uint8_t reply[ICMP_REPLY_MAX], uint32_t source, const struct packet *packet);

/* icmp.h - the "network unreachable" reply to a packet whose destination no host leases (pure).
 *
 * RFC 792 gives the form; RFC 1122 3.2.2 and RFC 1812 4.3.2 say when it must not be sent.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "limiter.h"
#include "packet.h"

enum {
    ICMP_REPLY_MAX = 576, /* RFC 1812 4.3.2.3: quotes as much of the packet as fits into 576 bytes */
    ICMP_RATE = 1000,     /* replies a second to all ... */
    ICMP_BURST = 50,      /* ... after this many at once */
    ICMP_SOURCE_RATE = 100, /* and to one source, so that a container that scans leaves some to the others */
    ICMP_SOURCE_BURST = 10,
    ICMP_SOURCES = 1024,  /* the containers of a subnet of 22 bits or more share nothing */
};

struct icmp_limits {
    struct limiter all;
    struct limiter sources[ICMP_SOURCES]; /* by the last bits of the address */
};

/* Whether one more reply to this source is allowed now (CLOCK_MONOTONIC). */
bool icmp_allow(struct icmp_limits *limits, uint32_t source, uint64_t now_ns);

/* Whether RFC 1122 and RFC 1812 let an ICMP error answer this packet. */
bool icmp_may_answer(const struct packet *packet);

/* Writes the reply from `source` (host byte order) about the packet. Returns its length. */
size_t icmp_net_unreachable(uint8_t reply[ICMP_REPLY_MAX], uint32_t source, const struct packet *packet);

/* counters.h - what the worker counts. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "drop.h"

/* A counter with one incrementing thread: a relaxed load and store, no locked instruction. */
typedef _Atomic uint64_t counter;

static inline void counter_add(counter *c, uint64_t n)
{
    /* relaxed: counters order nothing; readers want a recent value, not a consistent set */
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline uint64_t counter_read(const counter *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

/* In the order the statistics show them. Bytes are those of inner packets. */
#define WORKER_COUNTERS(X)                                                                                   \
    X(tun_read_packets) /* as the kernel counts them: a superpacket is one */                                \
    X(tun_read_bytes)                                                                                        \
    X(tun_read_superpackets)                                                                                 \
    X(udp_sent_packets) /* datagrams on the wire */                                                          \
    X(udp_sent_bytes)                                                                                        \
    X(udp_segmented_sends) /* sends of more than one datagram */                                             \
    X(udp_received_packets)                                                                                  \
    X(udp_received_bytes)                                                                                    \
    X(udp_merged_receives) /* receives of more than one datagram */                                          \
    X(tun_written_packets) /* as they arrived */                                                             \
    X(tun_written_bytes)                                                                                     \
    X(tun_written_superpackets)                                                                              \
    X(send_fallbacks)  /* segmented sends that the kernel refused: the run, and the peer's next ones, left plain */ \
    X(write_fallbacks) /* superpackets that the TUN refused: their packets were written one by one */        \
    X(icmp_replies)    /* net unreachable written to the TUN */                                              \
    X(icmp_suppressed) /* not written: RFC 1122 forbids one, or the rate limit */                            \
    X(send_pauses)     /* times the socket was full and TUN reads paused */                                  \
    X(receive_errors)  /* errors the socket reported instead of a datagram */                                \
    X(wakeups)

struct worker_counters {
#define WORKER_FIELD(name) counter name;
    WORKER_COUNTERS(WORKER_FIELD)
#undef WORKER_FIELD
    counter drops[DROP_COUNT]; /* by enum drop_reason */
};

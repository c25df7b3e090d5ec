/* worker.h - the thread that moves packets: one TUN queue, one UDP socket, one epoll set.
 *
 * tunpump.c sets a worker up, starts and stops it; everything in between happens in worker.c.
 */
#ifndef FLANNEL_UDP_WORKER_H
#define FLANNEL_UDP_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "filter.h"
#include "icmp.h"
#include "peer_table.h"
#include "refusal.h"
#include "route_table.h"
#include "tun_device.h"

/* What the worker counts, in the order the statistics show it. Bytes are those of inner packets. */
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
    X(send_fallbacks)  /* segmented sends the kernel refused: sent one by one, and their peer's for a while */ \
    X(write_fallbacks) /* superpackets the TUN refused: written one by one, and the next for a while */      \
    X(icmp_replies)    /* net unreachable written to the TUN */                                              \
    X(icmp_suppressed) /* not written: RFC 1122 forbids one, or the rate limit */                            \
    X(send_pauses)     /* times the socket was full and TUN reads paused */                                  \
    X(receive_errors)  /* errors the socket reported instead of a datagram */                                \
    X(wakeups)

struct worker_counters {
#define WORKER_FIELD(name) counter name;
    WORKER_COUNTERS(WORKER_FIELD)
#undef WORKER_FIELD
    counter drops[DROP_COUNT];
};

struct worker_buffers;

struct worker {
    /* fixed before the thread starts */
    const struct filter_identity *own;
    const struct route_table *routes;
    const struct peer_table *peers;
    uint32_t tun_address; /* source of ICMP replies, host byte order */
    int tun_fd, udp_fd;   /* borrowed */
    uint64_t busy_poll_ns; /* looks for packets this long, at most, before it sleeps */
    unsigned wanted;      /* enum offload */
    unsigned offloads;    /* of these, those the kernel has */
    struct tun_device tun;
    int epoll_fd;
    int wake_fd;  /* eventfd: Python -> worker */
    int event_fd; /* eventfd: worker -> Python (a refusal to log, an offload refused, or the worker has stopped) */
    struct worker_buffers *buffers;
    pthread_t thread;
    bool started;

    /* shared with the controlling thread */
    atomic_bool stop;
    atomic_int failure;     /* -errno that ended the worker, 0 while it is well */
    atomic_uint_fast64_t passes; /* odd while the worker may hold pointers into the tables */
    struct refusal_queue refusals;
    atomic_uint refused_offloads;          /* OFFLOAD_TSO, OFFLOAD_USO: superpackets that the TUN refuses for a while */
    atomic_uint_fast64_t offload_changes;  /* of these, and of peers whose way out refuses segments */
    struct worker_counters counters;
    counter ended_cpu_ns; /* of this thread, once it has nothing more to do; 0 until then */
    uint64_t past_cpu_ns; /* of those before it (the controlling thread's own) */

    /* the worker's own */
    struct limiter limiter;         /* of ICMP replies */
    uint64_t now_ns;                /* CLOCK_MONOTONIC at this turn */
    uint64_t moved_ns;              /* at the last one that moved packets */
    unsigned poll_streak;           /* turns for which busy polling would have paid */
    uint64_t tcp_single_until_ns;   /* the TUN refused a TCP superpacket: not tried before then */
    uint64_t udp_single_until_ns;
    bool paused; /* TUN reads wait for the socket */
};

/* Probes the offloads, sets up the epoll set, the eventfds and the buffers. 0 or -errno; on error nothing is left behind. */
int worker_init(struct worker *worker);

/* Joins a worker whose thread is stopped or has ended to other ends, as worker_init does: ready to start. What
 * waited for the old socket is lost; counters go on. 0 or -errno; after an error it has its old ends. */
int worker_rejoin(struct worker *worker, int tun_fd, int udp_fd);

/* Starts the thread, with all signals blocked. 0 or -errno. */
int worker_start(struct worker *worker);

/* Stops the thread and waits for it. Fine on a worker that was never started or has failed. */
void worker_stop(struct worker *worker);

/* Frees what worker_init made; the thread must be stopped. */
void worker_destroy(struct worker *worker);

#endif

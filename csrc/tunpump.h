/* tunpump.h - the packet pump: a native thread that carries packets between a TUN device and a UDP socket.
 *
 * Read the essay on top of tunpump.c first. All addresses are IPv4 in host byte order.
 */
#ifndef FLANNEL_UDP_TUNPUMP_H
#define FLANNEL_UDP_TUNPUMP_H

#include <stddef.h>
#include <stdint.h>

#include "counters.h"
#include "drop.h"
#include "offload.h"
#include "refusal.h"
#include "tables.h"

struct pump;

struct pump_config {
    int tun_fd, udp_fd;       /* borrowed until pump_free; both non-blocking */
    uint32_t network;         /* the overlay's Network */
    uint32_t network_length;  /* prefix length 0..32 */
    uint32_t subnet;          /* our lease */
    uint32_t subnet_length;   /* prefix length 0..32 */
    uint32_t public_ip;       /* our PublicIP */
    uint32_t tun_address;     /* the TUN device's own address, source of ICMP replies */
    int check_source;         /* 0: accept packets whose outer source is no lease's PublicIP */
    unsigned offloads;        /* enum offload: those to use where the kernel has them */
    uint32_t busy_poll_us;    /* look for packets this long, at most, before sleeping; 0: sleep at once */
};

/* The statistics of a pump, an array of 64-bit values: the worker's counters, then these, then one "drop_<reason>"
 * for each of drop.h. */
#define PUMP_GAUGES(X)                                                                                       \
    X(udp_overflows) /* datagrams the kernel dropped before we could read them */                            \
    X(cpu_ns)        /* CPU time of the worker, all its threads */                                           \
    X(routes)        /* in the table now */

enum pump_stat {
#define PUMP_STAT(name) PUMP_STAT_##name,
    WORKER_COUNTERS(PUMP_STAT) PUMP_GAUGES(PUMP_STAT)
#undef PUMP_STAT
    PUMP_STAT_FIRST_DROP,
    PUMP_STAT_COUNT = PUMP_STAT_FIRST_DROP + DROP_COUNT,
};

/* The name of a statistic; NULL from PUMP_STAT_COUNT on. */
const char *pump_stat_name(unsigned stat);

struct pump_peer_stats {
    uint32_t public_ip;
    uint32_t refuses_segments; /* 1 if its way out refused UDP_SEGMENT the last time: its packets leave one by one */
    uint64_t sent_packets, sent_bytes, received_packets, received_bytes, dropped_packets;
};

/* A pump that does not run yet, in *out. 0, -EINVAL for an impossible config, -ENOMEM or another -errno. */
int pump_create(const struct pump_config *config, struct pump **out);

/* Starts carrying packets. 0, -EALREADY, or -errno. */
int pump_start(struct pump *pump);

/* Stops carrying packets if it does, and starts again between other ends, with the same routes, peers and counters:
 * after its device or socket was lost. 0 or -errno; after an error it does not run and may be restarted again. */
int pump_restart(struct pump *pump, int tun_fd, int udp_fd);

/* Stops for good and waits for the worker; fine at any time. */
void pump_stop(struct pump *pump);

/* Stops and frees the pump; the descriptors stay open. NULL is fine. */
void pump_free(struct pump *pump);

/* Makes these the routes, each prefix at most once. While it runs every address keeps its old next hop or has
 * its new one. 0; -EINVAL for a bad route, and then nothing has changed; -ENOMEM or -ENOSPC: part of it is done. */
int pump_replace(struct pump *pump, const struct pump_route *routes, size_t count);

/* Adds, changes and withdraws (public_ip 0) routes, each prefix at most once; the others stay. Errors as
 * pump_replace; withdrawing a route that is not there is fine. */
int pump_update(struct pump *pump, const struct pump_route *changes, size_t count);

/* Makes these the addresses of this host, which no inner source may have; it starts with none. 0 or -ENOMEM, and
 * then some of them may be. */
int pump_set_addresses(struct pump *pump, const uint32_t *addresses, size_t count);

/* The statistics now: values[] has room for `capacity` of them, of which the first PUMP_STAT_COUNT are written. */
void pump_read_stats(struct pump *pump, uint64_t *values, size_t capacity);

/* Up to `capacity` peers with their counters. How many there are, which may be more than capacity. */
size_t pump_read_peers(struct pump *pump, struct pump_peer_stats *peers, size_t capacity);

/* The next hop of an address as the worker sees it, 0 if there is none. */
uint32_t pump_lookup(struct pump *pump, uint32_t address);

/* The offloads in use (enum offload). */
unsigned pump_offloads(struct pump *pump);

/* Of these, OFFLOAD_TSO and OFFLOAD_USO if the TUN refused a superpacket of that kind the last time. */
unsigned pump_refused_offloads(const struct pump *pump);

/* How often it has changed which offloads are refused, by the TUN or on the way to a peer. */
uint64_t pump_offload_changes(const struct pump *pump);

/* Becomes readable when there is a refusal to log, pump_offload_changes has moved or the worker has failed; reading
 * it (8 bytes) resets it. */
int pump_event_fd(const struct pump *pump);

/* The oldest unread refusal. 1 if there was one, else 0. */
int pump_next_refusal(struct pump *pump, struct refusal *refusal);

/* 0 while the worker is well, else the -errno that ended it. */
int pump_failure(const struct pump *pump);

#endif

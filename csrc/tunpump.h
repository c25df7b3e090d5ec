/* tunpump.h - the packet pump: a native thread that carries packets between a TUN device and a UDP socket.
 *
 * tunpump.c begins with the theory of operation and a glossary. All addresses are IPv4 in host byte order.
 */
#pragma once

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
    int check_source;         /* not 0: the outer source must be a peer, and lease the inner source */
    int check_port;           /* not 0: the outer source port must be that of the socket */
    unsigned offloads;        /* enum offload: those to use where the kernel has them */
    uint32_t busy_poll_us;    /* poll this long, at most, before sleeping; 0: sleep at once */
};

/* The statistics of a pump are an array of 64-bit values: the worker's counters, then these, then one
 * "drop_<reason>" for each reason of drop.h. */
#define PUMP_GAUGES(X)                                                                                       \
    X(udp_overflows) /* datagrams the kernel dropped because the receive buffer was full */                  \
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
    uint32_t refuses_segments; /* 1 if the path to it refused UDP_SEGMENT the last time: its packets leave one by one */
    uint64_t sent_packets, sent_bytes, received_packets, received_bytes, dropped_packets;
};

/* A pump that does not run yet, in *out. 0, -EINVAL for an invalid prefix, -ENOMEM or another -errno. */
int pump_create(const struct pump_config *config, struct pump **out);

/* Starts carrying packets. 0, -EALREADY, or -errno. */
int pump_start(struct pump *pump);

/* Stops if it runs, and starts again between other ends with the same routes, peers and counters: for a pump that
 * lost its device or socket. 0; -ECANCELED after pump_stop; or -errno, and then it does not run and may be restarted
 * again. */
int pump_restart(struct pump *pump, int tun_fd, int udp_fd);

/* Stops for good and waits for the worker: no later start or restart succeeds. May be called at any time. */
void pump_stop(struct pump *pump);

/* Stops and frees the pump; the descriptors stay open. NULL does nothing. */
void pump_free(struct pump *pump);

/* Makes these the only routes, each prefix at most once. Meanwhile every address has its old or its new next hop. 0;
 * -EINVAL for an invalid route, and then nothing has changed; -ENOMEM or -ENOSPC: part of it is done. */
int pump_replace(struct pump *pump, const struct pump_route *routes, size_t count);

/* Adds, changes and withdraws (public_ip 0) routes, each prefix at most once; the others stay. Withdrawing a route
 * that does not exist does nothing. Errors as pump_replace. */
int pump_update(struct pump *pump, const struct pump_route *changes, size_t count);

/* Makes these the addresses of this host, which no inner source may have; at first there are none. 0; -ENOMEM: part
 * of it is done. */
int pump_set_addresses(struct pump *pump, const uint32_t *addresses, size_t count);

/* Writes the current statistics, at most `capacity` of them, to values[]. */
void pump_read_stats(struct pump *pump, uint64_t *values, size_t capacity);

/* Writes up to `capacity` peers with their counters. Returns how many peers exist, which may be more. */
size_t pump_read_peers(struct pump *pump, struct pump_peer_stats *peers, size_t capacity);

/* The PublicIP that packets for this address are sent to, 0 if there is no route. */
uint32_t pump_lookup(struct pump *pump, uint32_t address);

/* The offloads in use (enum offload). */
unsigned pump_offloads(struct pump *pump);

/* OFFLOAD_TSO and OFFLOAD_USO, each if the TUN refused the last superpacket of that kind. */
unsigned pump_refused_offloads(const struct pump *pump);

/* How many times an offload began or ceased to be refused, by the TUN or on the path to a peer. */
uint64_t pump_offload_changes(const struct pump *pump);

/* Becomes readable when there is a refusal to log, pump_offload_changes has increased or the worker has failed;
 * reading it (8 bytes) resets it. */
int pump_event_fd(const struct pump *pump);

/* Takes the oldest unread refusal. 1 if there was one, else 0. */
int pump_next_refusal(struct pump *pump, struct refusal *refusal);

/* The -errno that ended the worker, 0 if none did. */
int pump_failure(const struct pump *pump);

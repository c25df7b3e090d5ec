/* tunpump.c - the packet pump: life cycle, routes, statistics.
 *
 * THEORY OF OPERATION
 *
 * A pump joins a TUN device and a UDP socket. A packet that our kernel routes into the TUN is looked up in the
 * route table and leaves as one datagram to the PublicIP of the host that leases its destination; there is no
 * overlay header. A datagram that arrives is checked, and its packet is written to the TUN, where our kernel
 * routes it on. The filter decides about every packet before anything else is done with it.
 *
 * Packets are cheap because most system calls move many. Outbound, one read from the TUN returns a superpacket;
 * segment.c cuts it without copying payload, and outbox.c gathers the packets for one peer into runs, each of
 * which leaves in one send. Inbound, one receive returns many datagrams of one size; coalesce.c joins the packets
 * of one flow into superpackets, each of which is written at once. Each of these offloads may be missing, and a
 * superpacket or run that the kernel refuses is carried packet by packet.
 *
 * One native thread, the worker, does all of this: worker.c decides when, outbound.c and inbound.c do one turn of
 * either direction. It sleeps in epoll_wait on the TUN, the socket and an eventfd; while small packets come and
 * go, it reads both ends again and again instead (busy polling). A turn is bounded, so that neither direction,
 * nor a stop, starves. When the socket is full, TUN reads pause: the unsent rest of the batch stays in the outbox
 * until the socket is writable. EAGAIN twice from a socket that is writable is about one datagram, which is dropped:
 * to wait would delay every peer. A socket that is shut down, even in one direction, ends the worker.
 *
 * The controlling thread (Python) changes routes while packets flow, one call at a time under `lock`; the worker
 * takes no lock. The route table is changed entry by entry, each with one atomic store (route_table.h), and the
 * changes of a batch are ordered so that every address has its old or its new next hop throughout (tables.c).
 * What a change takes out (trie nodes, peer slots) is freed one grace period later (epoch.h).
 *
 * Nothing here prints, exits or is global. Errors are -errno. A pump whose device or socket is lost stops,
 * keeps the reason in `failure` and makes the event descriptor readable. pump_restart gives it new ends and keeps
 * routes, peers and counters.
 *
 * GLOSSARY (smallest to largest)
 *   packet       one inner IPv4 packet, as a container sent it
 *   datagram     the payload of one outer UDP datagram: exactly one packet
 *   segment      one of the packets that a superpacket is cut into
 *   superpacket  up to 64 KiB of one flow behind the headers of one packet: what the kernel's offloads exchange
 *   run          packets for one peer, all of one size except a shorter last, that may leave in one send
 *   message      a run in the outbox, on its way to the socket
 *   bundle       packets of one flow on their way to the TUN; written as a superpacket if there are several
 *   batch        what one turn of one direction reads and sends
 *   turn         one batch of one direction
 *   look         an attempt at a turn of both directions while busy polling; it may find nothing
 *   peer         a host that holds a lease, known by its PublicIP
 *   route        a leased subnet and its peer (the next hop)
 *   own          our lease, our PublicIP, our Network
 */
#include "tunpump.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "filter.h"
#include "prefix.h"
#include "udp_socket.h"
#include "worker.h"

struct pump {
    pthread_mutex_t lock; /* one controlling thread at a time */
    bool stopped;         /* for good, as after a lost lease: no restart may carry packets again */
    struct filter_identity own;
    struct tables tables;
    struct udp_overflows overflows;
    struct worker worker;
};

/* ---- life cycle ---- */

static struct filter_identity identity_of(const struct pump_config *config)
{
    return (struct filter_identity){
        .network = config->network,
        .network_mask = prefix_mask(config->network_length),
        .subnet = config->subnet,
        .subnet_mask = prefix_mask(config->subnet_length),
        .public_ip = config->public_ip,
        .check_source = config->check_source != 0,
        .check_port = config->check_port != 0,
    };
}

int pump_create(const struct pump_config *config, struct pump **out)
{
    if (!prefix_is_valid(config->network, config->network_length) ||
        !prefix_is_valid(config->subnet, config->subnet_length))
        return -EINVAL;
    struct pump *pump = calloc(1, sizeof *pump);
    if (pump == NULL)
        return -ENOMEM;
    int error = -pthread_mutex_init(&pump->lock, NULL);
    if (error < 0) {
        free(pump);
        return error;
    }
    struct worker *worker = &pump->worker;
    worker->wanted = config->offloads;
    worker->busy_poll_ns = (uint64_t)config->busy_poll_us * 1000;
    worker->tunnel.own = &pump->own;
    worker->tunnel.tables = &pump->tables;
    worker->tunnel.tun_address = config->tun_address;
    error = worker_init(worker, config->tun_fd, config->udp_fd);
    if (error == 0)
        error = tables_init(&pump->tables);
    if (error < 0) {
        pump_free(pump);
        return error;
    }
    pump->own = identity_of(config);
    pump->own.addresses = pump->tables.addresses;
    *out = pump;
    return 0;
}

int pump_start(struct pump *pump)
{
    pthread_mutex_lock(&pump->lock);
    /* relaxed: only the callers of start and stop touch it, and they hold the lock */
    bool stopped = atomic_load_explicit(&pump->worker.stop, memory_order_relaxed);
    int error = pump->worker.started || stopped ? -EALREADY : worker_start(&pump->worker);
    pthread_mutex_unlock(&pump->lock);
    return error;
}

/* Counts the kernel's drops of the socket, up to now. */
static void count_overflows(struct pump *pump)
{
    const struct tunnel *tunnel = &pump->worker.tunnel;
    /* relaxed: see tunnel_set_filter. At first there may have been one: of the process before this one. */
    bool had_filter = atomic_load_explicit(&tunnel->had_filter, memory_order_relaxed) || pump->overflows.socket == 0;
    udp_socket_count_overflows(tunnel->ends.udp_fd, had_filter, &pump->overflows);
}

int pump_restart(struct pump *pump, int tun_fd, int udp_fd)
{
    pthread_mutex_lock(&pump->lock);
    if (pump->stopped) {
        pthread_mutex_unlock(&pump->lock);
        return -ECANCELED;
    }
    worker_stop(&pump->worker);
    count_overflows(pump); /* the last ones, if the socket still exists */
    int error = worker_join(&pump->worker, tun_fd, udp_fd);
    if (error == 0)
        error = worker_start(&pump->worker);
    pthread_mutex_unlock(&pump->lock);
    return error;
}

void pump_stop(struct pump *pump)
{
    pthread_mutex_lock(&pump->lock);
    pump->stopped = true;
    worker_stop(&pump->worker);
    /* An older version may go on with the socket, and would not know of it. */
    (void)udp_socket_set_filter(pump->worker.tunnel.ends.udp_fd, 0, &(struct flood_filter){0});
    pthread_mutex_unlock(&pump->lock);
}

void pump_free(struct pump *pump)
{
    if (pump == NULL)
        return;
    worker_stop(&pump->worker);
    worker_destroy(&pump->worker);
    tables_clear(&pump->tables);
    pthread_mutex_destroy(&pump->lock);
    free(pump);
}

/* ---- routes ---- */

static int change_routes(struct pump *pump, const struct pump_route *routes, size_t count, bool replace)
{
    struct pump_route *sorted;
    int error = tables_sort(routes, count, !replace, &sorted);
    if (error < 0)
        return error;
    pthread_mutex_lock(&pump->lock);
    error = tables_apply(&pump->tables, sorted, count, replace);
    pthread_mutex_unlock(&pump->lock);
    free(sorted);
    return error;
}

int pump_replace(struct pump *pump, const struct pump_route *routes, size_t count)
{
    return change_routes(pump, routes, count, true);
}

int pump_update(struct pump *pump, const struct pump_route *changes, size_t count)
{
    return change_routes(pump, changes, count, false);
}

int pump_set_addresses(struct pump *pump, const uint32_t *addresses, size_t count)
{
    pthread_mutex_lock(&pump->lock);
    int error = tables_set_addresses(&pump->tables, addresses, count);
    pthread_mutex_unlock(&pump->lock);
    return error;
}

uint32_t pump_lookup(struct pump *pump, uint32_t address)
{
    pthread_mutex_lock(&pump->lock);
    uint32_t public_ip = tables_lookup(&pump->tables, address);
    pthread_mutex_unlock(&pump->lock);
    return public_ip;
}

/* ---- counters and events ---- */

const char *pump_stat_name(unsigned stat)
{
    static const char *const names[PUMP_STAT_COUNT] = {
#define PUMP_NAME(name) [PUMP_STAT_##name] = #name,
        WORKER_COUNTERS(PUMP_NAME) PUMP_GAUGES(PUMP_NAME)
#undef PUMP_NAME
#define PUMP_NAME(upper, lower) [PUMP_STAT_FIRST_DROP + DROP_##upper] = "drop_" #lower,
        DROP_REASONS(PUMP_NAME)
#undef PUMP_NAME
    };
    return stat < PUMP_STAT_COUNT ? names[stat] : NULL;
}

void pump_read_stats(struct pump *pump, uint64_t *values, size_t capacity)
{
    uint64_t all[PUMP_STAT_COUNT];
    pthread_mutex_lock(&pump->lock);
    const struct worker_counters *counters = &pump->worker.tunnel.counters;
#define PUMP_COPY(name) all[PUMP_STAT_##name] = counter_read(&counters->name);
    WORKER_COUNTERS(PUMP_COPY)
#undef PUMP_COPY
    for (size_t i = 0; i < DROP_COUNT; i++)
        all[PUMP_STAT_FIRST_DROP + i] = counter_read(&counters->drops[i]);
    count_overflows(pump);
    all[PUMP_STAT_udp_overflows] = pump->overflows.total;
    all[PUMP_STAT_FIRST_DROP + DROP_UDP_FLOOD] += pump->overflows.filtered;
    all[PUMP_STAT_cpu_ns] = worker_cpu_ns(&pump->worker);
    all[PUMP_STAT_routes] = route_table_count(pump->tables.routes);
    pthread_mutex_unlock(&pump->lock);
    memcpy(values, all, (capacity < PUMP_STAT_COUNT ? capacity : PUMP_STAT_COUNT) * sizeof *values);
}

size_t pump_read_peers(struct pump *pump, struct pump_peer_stats *peers, size_t capacity)
{
    pthread_mutex_lock(&pump->lock);
    size_t count = 0;
    for (uint32_t slot = 0; slot < pump->tables.peers->slots; slot++) {
        const struct peer *peer = peer_table_at(pump->tables.peers, slot);
        if (peer->references == 0)
            continue;
        if (count < capacity) {
            peers[count] = (struct pump_peer_stats){
                .public_ip = peer->address,
                .refuses_segments = counter_read(&peer->plain_until_ns) != 0,
                .sent_packets = counter_read(&peer->sent_packets),
                .sent_bytes = counter_read(&peer->sent_bytes),
                .received_packets = counter_read(&peer->received_packets),
                .received_bytes = counter_read(&peer->received_bytes),
                .dropped_packets = counter_read(&peer->dropped_packets),
            };
        }
        count++;
    }
    pthread_mutex_unlock(&pump->lock);
    return count;
}

unsigned pump_offloads(struct pump *pump)
{
    pthread_mutex_lock(&pump->lock); /* a restart probes them again */
    unsigned offloads = pump->worker.tunnel.ends.offloads;
    pthread_mutex_unlock(&pump->lock);
    return offloads;
}

unsigned pump_refused_offloads(const struct pump *pump)
{
    return atomic_load_explicit(&pump->worker.tunnel.refused_offloads, memory_order_relaxed);
}

uint64_t pump_offload_changes(const struct pump *pump)
{
    /* acquire: pairs with the release in tunnel_note_offload_change */
    return atomic_load_explicit(&pump->worker.tunnel.offload_changes, memory_order_acquire);
}

int pump_event_fd(const struct pump *pump)
{
    return pump->worker.tunnel.event_fd;
}

int pump_next_refusal(struct pump *pump, struct refusal *refusal)
{
    pthread_mutex_lock(&pump->lock);
    bool taken = refusal_take(&pump->worker.tunnel.refusals, refusal); /* only one thread at a time may take */
    pthread_mutex_unlock(&pump->lock);
    return taken ? 1 : 0;
}

int pump_failure(const struct pump *pump)
{
    /* acquire: pairs with the release in worker_main */
    return atomic_load_explicit(&pump->worker.failure, memory_order_acquire);
}

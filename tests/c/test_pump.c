/* The pump's public API on a real TUN device and real sockets: life cycle, routes, refusals, counters. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "oracle.h"
#include "packets.h"
#include "rig.h"
#include "tun_device.h"
#include "udp_socket.h"

static struct rig rig;

static struct pump *created(void)
{
    struct pump *pump;
    CHECK_EQ(pump_create(&rig.config, &pump), 0);
    return pump;
}

static struct pump_route route(const char *prefix, uint32_t length, const char *public_ip)
{
    return (struct pump_route){.prefix = address(prefix),
                               .length = length,
                               .public_ip = public_ip == NULL ? 0 : address(public_ip)};
}

/* ---- life cycle ---- */

static void starts_and_stops_in_every_order_leave_nothing_behind(void)
{
    enum { MOST = 4 };
    size_t descriptors = rig_descriptors();
    long live = faults_live();
    for (unsigned order = 0; order < 1U << MOST; order++) {
        for (unsigned steps = 0; steps <= MOST; steps++) {
            struct pump *pump = created();
            bool started = false;
            for (unsigned step = 0; step < steps; step++) {
                if (order >> step & 1) {
                    int error = pump_start(pump);
                    CHECK(error == (started ? -EALREADY : 0) || (!started && error == -EALREADY));
                    started = true;
                } else {
                    pump_stop(pump);
                }
                CHECK_EQ(pump_failure(pump), 0);
            }
            pump_free(pump);
            CHECK_EQ(rig_descriptors(), descriptors);
            CHECK_EQ(faults_live(), live);
        }
    }
    pump_free(NULL);
}

static void a_stopped_pump_does_not_start_again(void)
{
    struct pump *pump = created();
    CHECK_EQ(pump_start(pump), 0);
    CHECK_EQ(pump_start(pump), -EALREADY);
    pump_stop(pump);
    CHECK_EQ(pump_start(pump), -EALREADY);
    pump_free(pump);
}

static void a_pump_that_was_stopped_before_its_start_does_not_start(void)
{
    struct pump *pump = created();
    pump_stop(pump);
    CHECK_EQ(pump_start(pump), -EALREADY);
    pump_free(pump);
}

static void impossible_configs_are_refused(void)
{
    struct pump *pump = NULL;
    struct pump_config bad[5];
    for (size_t i = 0; i < 5; i++)
        bad[i] = rig.config;
    bad[0].network_length = 33;
    bad[1].subnet_length = UINT32_MAX;
    bad[2].network |= 1;
    bad[3].subnet |= 1;
    bad[4].network_length = 0;
    for (size_t i = 0; i < 5; i++)
        CHECK_EQ(pump_create(&bad[i], &pump), -EINVAL);
    CHECK(pump == NULL);
}

static void bad_descriptors_are_refused_and_nothing_leaks(void)
{
    int file = open("/proc/self/exe", O_RDONLY), closed = dup(file), ends[2];
    CHECK_EQ(pipe(ends), 0);
    close(closed);
    long live = faults_live();
    size_t descriptors = rig_descriptors();
    struct {
        int tun_fd, udp_fd;
    } bad[] = {{-1, rig.config.udp_fd},   {rig.config.tun_fd, -1},     {closed, rig.config.udp_fd},
               {rig.config.tun_fd, file}, {file, rig.config.udp_fd},   {rig.config.tun_fd, ends[0]},
               {rig.config.tun_fd, closed}, {rig.config.udp_fd, rig.config.udp_fd}, {-1, -1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pump_config config = rig.config;
        struct pump *pump = NULL;
        config.tun_fd = bad[i].tun_fd;
        config.udp_fd = bad[i].udp_fd;
        CHECK(pump_create(&config, &pump) < 0);
        CHECK(pump == NULL);
        CHECK_EQ(faults_live(), live);
        CHECK_EQ(rig_descriptors(), descriptors);
    }
    close(file);
    close(ends[0]);
    close(ends[1]);
}

static void without_memory_or_descriptors_a_pump_is_not_made(void)
{
    struct pump *pump = NULL;
    long live = faults_live();
    size_t descriptors = rig_descriptors();
    for (long n = 1;; n++) {
        faults_fail_allocation(n);
        int error = pump_create(&rig.config, &pump);
        if (faults_disarm()) {
            CHECK_EQ(error, 0);
            pump_free(pump);
            break;
        }
        CHECK_EQ(error, -ENOMEM);
        CHECK_EQ(faults_live(), live);
        CHECK_EQ(rig_descriptors(), descriptors);
    }

    struct rlimit before;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    int next = dup(0);
    close(next);
    int error = -EMFILE;
    for (rlim_t spare = 0; error < 0; spare++) {
        struct rlimit tight = {.rlim_cur = (rlim_t)next + spare, .rlim_max = before.rlim_max};
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
        error = pump_create(&rig.config, &pump);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
        CHECK(error == 0 || error == -EMFILE);
        if (error < 0)
            CHECK_EQ(faults_live(), live);
        else
            pump_free(pump);
        CHECK_EQ(rig_descriptors(), descriptors);
        CHECK(spare < 100);
    }
}

static void a_pump_without_a_thread_can_start_later(void)
{
    struct pump *pump = created();
    faults_fail_threads(true);
    CHECK_EQ(pump_start(pump), -EAGAIN);
    faults_fail_threads(false);
    CHECK_EQ(pump_start(pump), 0);
    pump_free(pump);
}

/* ---- routes ---- */

static struct oracle before, after;

static uint32_t known(struct pump *pump, uint32_t at)
{
    return pump_lookup(pump, at);
}

static void check_edges(struct pump *pump, const struct oracle *oracle)
{
    for (size_t i = 0; i < oracle->count; i++) {
        uint32_t first = oracle->routes[i].prefix, last = first | ~oracle_mask(oracle->routes[i].length);
        uint32_t edges[] = {first - 1, first, last, last + 1};
        for (size_t j = 0; j < 4; j++) {
            uint32_t hop = known(pump, edges[j]);
            CHECK(hop == oracle_lookup(&before, edges[j], 0) || hop == oracle_lookup(&after, edges[j], 0));
        }
    }
}

/* Some changes with different prefixes; *is_replace: all of them add. */
static size_t random_changes(uint64_t *seed, struct pump_route *changes, bool is_replace)
{
    size_t wanted = oracle_random(seed) % 40, count = 0;
    struct oracle *used = malloc(sizeof *used);
    CHECK(used != NULL);
    used->count = 0;
    while (count < wanted) {
        uint8_t length;
        uint32_t prefix = oracle_random_prefix(seed, &length);
        if (!is_replace && after.count != 0 && oracle_random(seed) % 2 == 0) { /* one that is there */
            const struct oracle_route *old = &after.routes[oracle_random(seed) % after.count];
            prefix = old->prefix;
            length = old->length;
        }
        if (oracle_find(used, prefix, length) != NULL) {
            wanted--;
            continue;
        }
        oracle_insert(used, prefix, length, 1);
        uint32_t hop = is_replace || oracle_random(seed) % 2 ? 1 + (uint32_t)(oracle_random(seed) % 20) : 0;
        changes[count++] = (struct pump_route){.prefix = prefix, .length = length, .public_ip = hop};
    }
    free(used);
    return count;
}

static void change_oracle(const struct pump_route *changes, size_t count, bool is_replace)
{
    if (is_replace)
        after.count = 0;
    for (size_t i = 0; i < count; i++) {
        if (changes[i].public_ip == 0)
            oracle_remove(&after, changes[i].prefix, (uint8_t)changes[i].length);
        else
            oracle_insert(&after, changes[i].prefix, (uint8_t)changes[i].length, changes[i].public_ip);
    }
}

static void check_peers(struct pump *pump)
{
    struct pump_peer_stats peers[64];
    size_t count = pump_read_peers(pump, peers, 64), expected = 0;
    for (uint32_t hop = 1; hop <= 20; hop++) {
        bool is_used = false, is_there = false;
        for (size_t i = 0; i < after.count; i++)
            is_used |= after.routes[i].next_hop == hop;
        for (size_t i = 0; i < count; i++)
            is_there |= peers[i].public_ip == hop;
        CHECK_EQ(is_there, is_used);
        expected += is_used;
    }
    CHECK_EQ(count, expected);
}

/* With every allocation failing in turn, each address has its old next hop or its new one. */
static void apply_without_memory(struct pump *pump, const struct pump_route *changes, size_t count, bool is_replace)
{
    for (long n = 1;; n++) {
        faults_fail_allocation(n);
        int error = is_replace ? pump_replace(pump, changes, count) : pump_update(pump, changes, count);
        if (faults_disarm()) {
            CHECK_EQ(error, 0);
            return;
        }
        CHECK_EQ(error, -ENOMEM);
        check_edges(pump, &before);
        check_edges(pump, &after);
    }
}

static void run_random_changes(bool is_started)
{
    uint64_t seed = is_started;
    long live = faults_live();
    struct pump *pump = created();
    if (is_started)
        CHECK_EQ(pump_start(pump), 0);
    before.count = after.count = 0;
    for (size_t i = 0; i < 400; i++) {
        struct pump_route changes[64];
        bool is_replace = oracle_random(&seed) % 8 == 0;
        size_t count = random_changes(&seed, changes, is_replace);
        change_oracle(changes, count, is_replace);
        apply_without_memory(pump, changes, count, is_replace);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_routes), after.count);
        struct oracle *old = malloc(sizeof *old);
        CHECK(old != NULL);
        *old = before;
        before = after; /* only the new next hop is right from here on */
        check_edges(pump, old);
        check_edges(pump, &after);
        free(old);
        check_peers(pump);
    }
    pump_free(pump);
    CHECK_EQ(faults_live(), live);
}

static void any_changes_answer_like_the_oracle_also_without_memory(void)
{
    run_random_changes(false);
    run_random_changes(true);
}

static void one_bad_route_and_nothing_changes(void)
{
    struct pump *pump = created();
    struct pump_route good[] = {route("10.1.6.0", 24, "172.30.0.6"), route("10.1.7.0", 24, "172.30.0.7")};
    CHECK_EQ(pump_replace(pump, good, 2), 0);
    struct pump_route bad[] = {route("10.1.6.1", 24, "172.30.0.8"), route("10.1.6.0", 33, "172.30.0.8"),
                               route("10.0.0.0", 0, "172.30.0.8"), route("10.1.6.0", UINT32_MAX, "172.30.0.8"),
                               route("10.1.6.0", 256 + 24, "172.30.0.8"), route("10.1.6.1", 24, NULL)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pump_route changes[] = {route("10.1.9.0", 24, "172.30.0.9"), bad[i]};
        CHECK_EQ(pump_update(pump, changes, 2), -EINVAL);
        CHECK_EQ(pump_replace(pump, changes, 2), -EINVAL);
    }
    struct pump_route withdrawal = route("10.1.6.0", 24, NULL);
    CHECK_EQ(pump_replace(pump, &withdrawal, 1), -EINVAL);
    CHECK_EQ(pump_lookup(pump, address("10.1.6.1")), address("172.30.0.6"));
    CHECK_EQ(pump_lookup(pump, address("10.1.7.1")), address("172.30.0.7"));
    CHECK_EQ(pump_lookup(pump, address("10.1.9.1")), 0);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_routes), 2);
    CHECK_EQ(pump_read_peers(pump, NULL, 0), 2);
    pump_free(pump);
}

static void no_routes_are_routes_too(void)
{
    struct pump *pump = created();
    struct pump_route default_route = route("0.0.0.0", 0, "172.30.0.6");
    CHECK_EQ(pump_update(pump, NULL, 0), 0);
    CHECK_EQ(pump_replace(pump, &default_route, 1), 0);
    CHECK_EQ(pump_update(pump, NULL, 0), 0);
    CHECK_EQ(pump_lookup(pump, UINT32_MAX), address("172.30.0.6"));
    CHECK_EQ(pump_replace(pump, NULL, 0), 0);
    CHECK_EQ(pump_lookup(pump, UINT32_MAX), 0);
    CHECK_EQ(pump_read_peers(pump, NULL, 0), 0);
    default_route.public_ip = 0;
    CHECK_EQ(pump_update(pump, &default_route, 1), 0); /* not there: fine */
    pump_free(pump);
}

static void a_prefix_named_twice_costs_no_peer(void)
{
    struct pump *pump = created();
    for (size_t i = 0; i < 10; i++) {
        struct pump_route twice[] = {route("10.1.6.0", 24, "172.30.0.6"), route("10.1.6.0", 24, "172.30.0.7"),
                                     route("10.1.6.0", 24, "172.30.0.6")};
        CHECK_EQ(pump_replace(pump, twice, 3), 0);
        CHECK_EQ(pump_read_peers(pump, NULL, 0), 1);
        struct pump_route gone[] = {route("10.1.6.0", 24, NULL), route("10.1.6.0", 24, "172.30.0.9"),
                                    route("10.1.6.0", 24, NULL)};
        CHECK_EQ(pump_update(pump, gone, 3), 0);
        CHECK_EQ(pump_read_peers(pump, NULL, 0), 0);
    }
    pump_free(pump);
}

static void churn_does_not_grow_a_running_or_a_stopped_pump(void)
{
    for (int phase = 0; phase < 3; phase++) {
        struct pump *pump = created();
        if (phase > 0)
            CHECK_EQ(pump_start(pump), 0);
        if (phase == 2)
            pump_stop(pump);
        long live = 0;
        for (uint32_t i = 0; i < 3000; i++) {
            struct pump_route fresh = {.prefix = i << 12, .length = 28, .public_ip = 1 + i * 65537};
            CHECK_EQ(pump_replace(pump, &fresh, 1), 0);
            if (i == 100)
                live = faults_live();
        }
        CHECK(faults_live() < live + 20);
        pump_free(pump);
    }
}

/* ---- packets ---- */

static const struct pump_route PEERS[] = {{0x0a010600, 24, 0x7f000006}, {0x0a010700, 24, 0x7f000007}};

static struct pump *carrying(void)
{
    struct pump *pump = created();
    CHECK_EQ(pump_replace(pump, PEERS, 2), 0);
    CHECK_EQ(pump_start(pump), 0);
    return pump;
}

static size_t from_host(uint8_t *bytes, const char *source, const char *destination, size_t payload)
{
    static const uint8_t zeroes[1400];
    return packet_build_udp(bytes, address(source), address(destination), 4000, zeroes, payload);
}

/* Every packet read was sent or dropped, every datagram delivered or dropped. Only for a pump at rest. */
static void counters_balance(struct pump *pump)
{
    uint64_t v[PUMP_STAT_COUNT], dropped_out = 0, dropped_in = 0;
    pump_read_stats(pump, v, PUMP_STAT_COUNT);
    for (unsigned i = 0; i < DROP_COUNT; i++)
        *(i < DROP_UDP_TRUNCATED ? &dropped_out : &dropped_in) += v[PUMP_STAT_FIRST_DROP + i];
    CHECK_EQ(v[PUMP_STAT_tun_read_packets], v[PUMP_STAT_udp_sent_packets] + dropped_out);
    CHECK_EQ(v[PUMP_STAT_udp_received_packets], v[PUMP_STAT_tun_written_packets] + dropped_in);
}

static void packets_and_bytes_are_counted_once_both_ways(void)
{
    struct pump *pump = carrying();
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT), stranger = rig_socket(address("127.0.0.66"), RIG_PORT);
    int host = rig_socket(address("10.1.5.1"), 4000);
    uint8_t packet[1500], received[1500];
    uint64_t in_bytes = 0, out_bytes = 0;
    for (size_t i = 0; i < 300; i++) {
        size_t length = from_host(packet, "10.1.6.2", "10.1.5.1", i);
        rig_send(peer, address("127.0.0.1"), RIG_PORT, packet, length);
        CHECK_EQ(recv(host, received, sizeof received, 0), i);
        in_bytes += length;
        rig_send(host, address("10.1.6.2"), 4000, packet, i);
        CHECK_EQ(recv(peer, received, sizeof received, 0), 28 + i);
        out_bytes += 28 + i;
        rig_send(stranger, address("127.0.0.1"), RIG_PORT, packet, i);
    }
    rig_await(pump, PUMP_STAT_udp_received_packets, 600);
    pump_stop(pump);
    uint64_t v[PUMP_STAT_COUNT];
    pump_read_stats(pump, v, PUMP_STAT_COUNT);
    CHECK_EQ(v[PUMP_STAT_tun_written_packets], 300);
    CHECK_EQ(v[PUMP_STAT_tun_written_bytes], in_bytes);
    CHECK_EQ(v[PUMP_STAT_udp_sent_packets], 300);
    CHECK_EQ(v[PUMP_STAT_udp_sent_bytes], out_bytes);
    CHECK_EQ(v[PUMP_STAT_tun_read_bytes], out_bytes);
    counters_balance(pump);
    struct pump_peer_stats peers[2];
    CHECK_EQ(pump_read_peers(pump, peers, 2), 2);
    const struct pump_peer_stats *six = &peers[peers[0].public_ip == address("127.0.0.6") ? 0 : 1];
    CHECK_EQ(six->sent_packets, 300);
    CHECK_EQ(six->sent_bytes, out_bytes);
    CHECK_EQ(six->received_packets, 300);
    CHECK_EQ(six->received_bytes, in_bytes);
    CHECK_EQ(six->dropped_packets, 0);
    pump_free(pump);
    close(peer);
    close(stranger);
    close(host);
}

static void readers_write_no_further_than_they_may(void)
{
    struct pump *pump = carrying();
    uint64_t values[PUMP_STAT_COUNT + 1];
    for (size_t capacity = 0; capacity <= PUMP_STAT_COUNT + 1; capacity++) {
        memset(values, 0xaa, sizeof values);
        pump_read_stats(pump, values, capacity);
        for (size_t i = capacity; i <= PUMP_STAT_COUNT; i++)
            CHECK(values[i] == UINT64_C(0xaaaaaaaaaaaaaaaa));
    }
    CHECK(values[PUMP_STAT_COUNT] == UINT64_C(0xaaaaaaaaaaaaaaaa));
    for (unsigned i = 0; i < PUMP_STAT_COUNT; i++)
        CHECK(pump_stat_name(i) != NULL);
    CHECK(pump_stat_name(PUMP_STAT_COUNT) == NULL);
    CHECK(pump_stat_name(UINT32_MAX) == NULL);
    struct pump_peer_stats peers[2] = {0};
    CHECK_EQ(pump_read_peers(pump, peers, 1), 2);
    CHECK(peers[0].public_ip != 0 && peers[1].public_ip == 0);
    pump_free(pump);
}

static bool event_is_set(struct pump *pump)
{
    struct pollfd event = {.fd = pump_event_fd(pump), .events = POLLIN};
    return poll(&event, 1, 0) == 1;
}

/* A datagram from each of `count` sources, starting with 127.1.0.1; returns when the pump is done with them. */
static void speak_as_strangers(struct pump *pump, uint32_t count)
{
    uint64_t written = rig_stat(pump, PUMP_STAT_tun_written_packets);
    for (uint32_t i = 0; i < count; i++) {
        int stranger = rig_socket(address("127.1.0.1") + i, RIG_PORT);
        rig_send(stranger, address("127.0.0.1"), RIG_PORT, "\x45", 1);
        close(stranger);
    }
    /* Datagrams are served in order: when a peer's packet is through, those before it are. */
    uint8_t packet[64];
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    rig_send(peer, address("127.0.0.1"), RIG_PORT, packet, from_host(packet, "10.1.6.2", "10.1.5.1", 0));
    rig_await(pump, PUMP_STAT_tun_written_packets, written + 1);
    close(peer);
}

static void each_source_is_reported_once_and_a_full_ring_forgets_nobody(void)
{
    struct pump *pump = carrying();
    struct refusal refusal;
    CHECK_EQ(pump_next_refusal(pump, &refusal), 0);
    CHECK(!event_is_set(pump));
    speak_as_strangers(pump, REFUSAL_RING + 20);
    CHECK(event_is_set(pump));
    for (uint32_t i = 0; i < REFUSAL_RING; i++) {
        CHECK_EQ(pump_next_refusal(pump, &refusal), 1);
        CHECK_EQ(refusal.outer_source, address("127.1.0.1") + i);
        CHECK_EQ(refusal.reason, DROP_UDP_BAD_HEADER);
        CHECK_EQ(refusal.inner_source, 0);
    }
    CHECK_EQ(pump_next_refusal(pump, &refusal), 0);
    /* The twenty that found the ring full are reported now, the others are known. */
    speak_as_strangers(pump, REFUSAL_RING + 20);
    uint32_t late = 0;
    while (pump_next_refusal(pump, &refusal) == 1)
        late += refusal.outer_source > address("127.1.0.0") + REFUSAL_RING;
    CHECK_EQ(late, 20);
    speak_as_strangers(pump, REFUSAL_RING + 20);
    uint64_t events;
    CHECK_EQ(read(pump_event_fd(pump), &events, sizeof events), 8);
    CHECK(!event_is_set(pump));
    pump_stop(pump);
    CHECK_EQ(rig_stat(pump, rig_drop(DROP_UDP_BAD_HEADER)), 3 * (REFUSAL_RING + 20));
    counters_balance(pump);
    pump_free(pump);
}

static void refusals_of_a_stopped_pump_can_still_be_read(void)
{
    struct pump *pump = carrying();
    speak_as_strangers(pump, 3);
    pump_stop(pump);
    struct refusal refusal;
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(pump_next_refusal(pump, &refusal), 1);
    CHECK_EQ(pump_next_refusal(pump, &refusal), 0);
    pump_free(pump);
}

static void a_lost_socket_ends_the_worker_and_tells(void)
{
    struct pump *pump = carrying();
    (void)shutdown(rig.config.udp_fd, SHUT_RDWR); /* ENOTCONN, and yet it is shut down */
    struct pollfd event = {.fd = pump_event_fd(pump), .events = POLLIN};
    CHECK_EQ(poll(&event, 1, RIG_PATIENCE_MS), 1);
    CHECK(pump_failure(pump) < 0);
    CHECK_EQ(pump_start(pump), -EALREADY);
    /* Its tables still serve the controlling thread. */
    for (uint32_t i = 0; i < 1000; i++) {
        struct pump_route fresh = {.prefix = i << 8, .length = 24, .public_ip = 1 + i};
        CHECK_EQ(pump_replace(pump, &fresh, 1), 0);
    }
    CHECK_EQ(pump_lookup(pump, 999 << 8), 1000);
    pump_stop(pump);
    CHECK(pump_failure(pump) < 0);
    pump_free(pump);
}

static void it_stops_at_once_under_traffic(void)
{
    int host = rig_socket(address("10.1.5.1"), 4000), peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    uint8_t packet[1500];
    size_t length = from_host(packet, "10.1.6.2", "10.1.5.1", 100);
    for (size_t i = 0; i < 20; i++) {
        struct pump *pump = carrying();
        for (size_t j = 0; j < 200; j++) {
            rig_send(host, address("10.1.6.2"), 4000, packet, 100);
            rig_send(peer, address("127.0.0.1"), RIG_PORT, packet, length);
        }
        int64_t begin = rig_now_ms();
        pump_stop(pump);
        CHECK(rig_now_ms() - begin < 1000);
        counters_balance(pump);
        pump_free(pump);
    }
    close(host);
    close(peer);
}

/* ---- a full socket ---- */

/* A host whose Ethernet neighbours are silent: packets for them wait in the kernel, on the socket's account. */
struct ether_rig {
    struct rig rig;
    int wire; /* the TAP device */
};

static void ether_open(struct ether_rig *ether)
{
    struct ifreq request = {.ifr_name = "wire0", .ifr_flags = IFF_TAP | IFF_NO_PI};
    ether->wire = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    CHECK(ether->wire >= 0);
    CHECK_EQ(ioctl(ether->wire, TUNSETIFF, &request), 0);
    rig_configure("wire0", address("172.30.0.1"), 24);
    ether->rig = rig;
    ether->rig.config.public_ip = address("172.30.0.1");
    ether->rig.config.udp_fd = udp_socket_open(address("172.30.0.1"), RIG_PORT);
    int least = 1;
    CHECK_EQ(setsockopt(ether->rig.config.udp_fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof least), 0);
}

static void ether_close(struct ether_rig *ether)
{
    close(ether->rig.config.udp_fd);
    close(ether->wire);
}

/* Answers the next question for a neighbour's address (RFC 826), then counts the datagrams until `count`. */
static void answer_and_receive(struct ether_rig *ether, size_t count)
{
    enum { ETHERNET = 14, OPERATION = ETHERNET + 6, SENDER = ETHERNET + 8, TARGET = ETHERNET + 18, PAIR = 10 };
    static const uint8_t hardware[6] = {2, 0, 0, 0, 0, 6};
    size_t datagrams = 0;
    while (datagrams < count) {
        struct pollfd ready = {.fd = ether->wire, .events = POLLIN};
        CHECK_EQ(poll(&ready, 1, RIG_PATIENCE_MS), 1);
        uint8_t frame[2048];
        ssize_t n = read(ether->wire, frame, sizeof frame);
        CHECK(n >= ETHERNET + 20);
        unsigned type = (unsigned)frame[12] << 8 | frame[13];
        if (type == ETHERTYPE_IP) {
            datagrams++;
        } else if (type == ETHERTYPE_ARP && frame[OPERATION + 1] == ARPOP_REQUEST) {
            uint8_t asker[PAIR];
            memcpy(asker, frame + SENDER, PAIR);
            memcpy(frame, frame + ETHER_ADDR_LEN, ETHER_ADDR_LEN);
            memcpy(frame + ETHER_ADDR_LEN, hardware, ETHER_ADDR_LEN);
            frame[OPERATION + 1] = ARPOP_REPLY;
            memcpy(frame + SENDER, hardware, ETHER_ADDR_LEN);
            memcpy(frame + SENDER + ETHER_ADDR_LEN, frame + TARGET + ETHER_ADDR_LEN, 4);
            memcpy(frame + TARGET, asker, PAIR);
            CHECK_EQ(write(ether->wire, frame, (size_t)n), n);
        }
    }
}

static struct pump *paused(struct ether_rig *ether, size_t packets)
{
    ether_open(ether);
    struct pump *pump;
    CHECK_EQ(pump_create(&ether->rig.config, &pump), 0);
    struct pump_route peer = route("10.1.6.0", 24, "172.30.0.6");
    CHECK_EQ(pump_replace(pump, &peer, 1), 0);
    CHECK_EQ(pump_start(pump), 0);
    int host = rig_socket(address("10.1.5.1"), 4000);
    uint8_t payload[1000] = {0};
    for (size_t i = 0; i < packets; i++)
        rig_send(host, address("10.1.6.2"), 4000, payload, sizeof payload);
    close(host);
    rig_await(pump, PUMP_STAT_send_pauses, 1);
    return pump;
}

static void a_full_socket_delays_and_loses_nothing(void)
{
    struct ether_rig ether;
    struct pump *pump = paused(&ether, 200);
    answer_and_receive(&ether, 200);
    rig_await(pump, PUMP_STAT_udp_sent_packets, 200);
    counters_balance(pump);
    pump_free(pump);
    ether_close(&ether);
}

static void a_peer_that_goes_during_a_pause_keeps_its_slot(void)
{
    struct ether_rig ether;
    struct pump *pump = paused(&ether, 130); /* more than one send takes, however many datagrams one may hold */
    /* Were the withdrawn peer's slot free, one of these would inherit its packets. */
    for (uint32_t i = 0; i < 20; i++) {
        struct pump_route fresh = {.prefix = i << 8, .length = 24, .public_ip = 1 + i};
        CHECK_EQ(pump_replace(pump, &fresh, 1), 0);
    }
    uint64_t batch = rig_stat(pump, PUMP_STAT_tun_read_packets);
    CHECK(batch > rig_stat(pump, PUMP_STAT_udp_sent_packets));
    answer_and_receive(&ether, batch);
    rig_await(pump, PUMP_STAT_udp_sent_packets, batch);
    rig_await(pump, rig_drop(DROP_TUN_NO_ROUTE), 130 - batch);
    counters_balance(pump);
    struct pump_peer_stats peer;
    CHECK_EQ(pump_read_peers(pump, &peer, 1), 1);
    CHECK_EQ(peer.public_ip, 20);
    CHECK_EQ(peer.sent_packets, 0);
    pump_free(pump);
    ether_close(&ether);
}

static void a_full_socket_stops_at_once_and_still_receives(void)
{
    struct ether_rig ether;
    struct pump *pump = paused(&ether, 200);
    struct pump_route here = route("10.1.7.0", 24, "172.30.0.1");
    CHECK_EQ(pump_update(pump, &here, 1), 0);
    int host = rig_socket(address("10.1.5.1"), 4000), self = rig_socket(address("172.30.0.1"), 4001);
    uint8_t packet[1500], received[1500];
    size_t length = from_host(packet, "10.1.7.2", "10.1.5.1", 5);
    rig_send(self, address("172.30.0.1"), RIG_PORT, packet, length);
    CHECK_EQ(recv(host, received, sizeof received, 0), 5);
    close(host);
    close(self);
    int64_t begin = rig_now_ms();
    pump_stop(pump);
    CHECK(rig_now_ms() - begin < 1000);
    pump_free(pump);
    ether_close(&ether);
}

/* Each test has a device of its own: packets that one left unread are none of the next one's. */
#define RUN_ON_RIG(test, offloads) (rig_open(&rig, offloads), RUN(test), rig_close(&rig))

int main(void)
{
    static const unsigned offloads[] = {0, OFFLOAD_TSO, OFFLOAD_UDP_GSO | OFFLOAD_UDP_GRO, OFFLOAD_ALL};
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN_ON_RIG(starts_and_stops_in_every_order_leave_nothing_behind, OFFLOAD_ALL);
    RUN_ON_RIG(a_stopped_pump_does_not_start_again, OFFLOAD_ALL);
    RUN_ON_RIG(a_pump_that_was_stopped_before_its_start_does_not_start, OFFLOAD_ALL);
    RUN_ON_RIG(impossible_configs_are_refused, OFFLOAD_ALL);
    RUN_ON_RIG(bad_descriptors_are_refused_and_nothing_leaks, OFFLOAD_ALL);
    RUN_ON_RIG(without_memory_or_descriptors_a_pump_is_not_made, OFFLOAD_ALL);
    RUN_ON_RIG(a_pump_without_a_thread_can_start_later, OFFLOAD_ALL);
    RUN_ON_RIG(any_changes_answer_like_the_oracle_also_without_memory, OFFLOAD_ALL);
    RUN_ON_RIG(one_bad_route_and_nothing_changes, OFFLOAD_ALL);
    RUN_ON_RIG(no_routes_are_routes_too, OFFLOAD_ALL);
    RUN_ON_RIG(a_prefix_named_twice_costs_no_peer, OFFLOAD_ALL);
    RUN_ON_RIG(churn_does_not_grow_a_running_or_a_stopped_pump, OFFLOAD_ALL);
    for (size_t i = 0; i < sizeof offloads / sizeof *offloads; i++) {
        RUN_ON_RIG(packets_and_bytes_are_counted_once_both_ways, offloads[i]);
        RUN_ON_RIG(readers_write_no_further_than_they_may, offloads[i]);
        RUN_ON_RIG(each_source_is_reported_once_and_a_full_ring_forgets_nobody, offloads[i]);
        RUN_ON_RIG(refusals_of_a_stopped_pump_can_still_be_read, offloads[i]);
        RUN_ON_RIG(a_lost_socket_ends_the_worker_and_tells, offloads[i]);
        RUN_ON_RIG(it_stops_at_once_under_traffic, offloads[i]);
        RUN_ON_RIG(a_full_socket_delays_and_loses_nothing, offloads[i]);
        RUN_ON_RIG(a_peer_that_goes_during_a_pause_keeps_its_slot, offloads[i]);
        RUN_ON_RIG(a_full_socket_stops_at_once_and_still_receives, offloads[i]);
    }
}

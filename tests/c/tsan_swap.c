/* Table swaps and restarts under traffic: nothing of a stable route is lost, duplicated or sent elsewhere.
 *
 * Three streams of numbered packets run through a real pump. `stable` leaves through a route that every swap
 * keeps; `moving` leaves through one whose next hop every swap changes or uncovers; `inbound` arrives from the
 * stable peer. Meanwhile the main thread swaps tables, another one joins the pump to the same ends again and
 * again, and a third reads all there is to read and lets strangers speak. Packets come singly and in bursts, which
 * are superpackets and runs where the offloads allow it. Each stream keeps a window, so no queue of the kernel
 * overflows and every loss is the pump's. Argument: how many seconds (10), for all sets of offloads together.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "oracle.h"
#include "packets.h"
#include "rig.h"

enum { STREAM_PORT = 4000, WINDOW = 64, BURST = 8, MOST = 1 << 24 };
enum { HEADERS = 28, PAYLOAD = 40, PACKET = HEADERS + PAYLOAD }; /* the payload begins with the number */
enum { SWAPS_PER_SECOND = 500 };
enum { STABLE_HOST = 6, MOVING_FIRST = 7, MOVING_LAST = 9, PEERS = 4 };

struct stream {
    const char *name;
    atomic_uint sent, received;
    uint8_t *seen; /* how often each number arrived; the receiver's own */
};

static struct stream stable = {.name = "stable"}, moving = {.name = "moving"}, inbound = {.name = "inbound"};
static struct rig rig;
static struct pump *pump;
static int peer_sockets[PEERS];      /* of the hosts 127.0.0.6 to .9 */
static int inbound_socket;           /* bound before anything is sent: else the kernel answers "port unreachable" */
static atomic_bool senders_stop, receivers_stop;
static unsigned strangers; /* datagrams sent; the reader's own until it ended */
static atomic_uint restarts;

static uint32_t host(uint32_t number)
{
    return address("127.0.0.0") + number;
}

/* Waits until the stream has room for one more burst. False when it is time to stop. */
static bool has_room(struct stream *stream)
{
    int64_t deadline = rig_now_ms() + RIG_PATIENCE_MS;
    while (atomic_load(&stream->sent) - atomic_load(&stream->received) + BURST > WINDOW) {
        if (rig_now_ms() > deadline) {
            check_failed_eq(__FILE__, __LINE__, "patience ended", stream->name, atomic_load(&stream->received),
                            atomic_load(&stream->sent));
        }
        usleep(50);
    }
    return !atomic_load(&senders_stop) && atomic_load(&stream->sent) + BURST < MOST;
}

/* The next `count` packets of an outward stream, in one send. */
static void send_burst(int from, const char *to, struct stream *stream, uint32_t count)
{
    uint8_t burst[BURST * PAYLOAD] = {0};
    uint32_t first = atomic_fetch_add(&stream->sent, count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = first + i;
        memcpy(burst + (size_t)i * PAYLOAD, &number, sizeof number);
    }
    rig_send_run(from, address(to), STREAM_PORT, burst, (size_t)count * PAYLOAD, PAYLOAD);
}

static void *send_outward(void *unused)
{
    int from = rig_socket(address("10.1.5.1"), STREAM_PORT + 1);
    for (uint32_t i = 0; has_room(&stable) && has_room(&moving); i++) {
        send_burst(from, "10.1.6.2", &stable, 1 + i % BURST);
        send_burst(from, "10.1.9.2", &moving, 1 + i % BURST);
    }
    close(from);
    return unused;
}

static void *send_inward(void *unused)
{
    for (uint32_t i = 0; has_room(&inbound); i++) {
        uint8_t burst[BURST * PACKET], payload[PAYLOAD] = {0};
        uint32_t count = 1 + i % BURST, first = atomic_fetch_add(&inbound.sent, count);
        for (uint32_t j = 0; j < count; j++) {
            uint8_t *packet = burst + (size_t)j * PACKET;
            uint32_t number = first + j;
            memcpy(payload, &number, sizeof number);
            (void)packet_build_udp(packet, address("10.1.6.2"), address("10.1.5.1"), STREAM_PORT, payload, PAYLOAD);
            packet[4] = (uint8_t)(number >> 8); /* its id: what follows each other may be merged */
            packet[5] = (uint8_t)number;
            packet_finish(packet, PACKET);
        }
        rig_send_run(peer_sockets[0], host(1), RIG_PORT, burst, (size_t)count * PACKET, PACKET);
    }
    return unused;
}

static void arrived(struct stream *stream, uint32_t number)
{
    CHECK(number < atomic_load(&stream->sent));
    CHECK_EQ(stream->seen[number], 0);
    stream->seen[number] = 1;
    atomic_fetch_add(&stream->received, 1);
}

/* One datagram at the host's socket: its packet belongs to a stream that may come here. */
static void check_datagram(uint32_t at, const uint8_t *packet, ssize_t length)
{
    uint32_t number, destination;
    CHECK_EQ(length, PACKET);
    CHECK_EQ(plain_checksum(packet, 20), 0);
    memcpy(&number, packet + HEADERS, sizeof number);
    destination = (uint32_t)packet[16] << 24 | (uint32_t)packet[17] << 16 | (uint32_t)packet[18] << 8 | packet[19];
    if (destination == address("10.1.6.2")) {
        CHECK_EQ(at, STABLE_HOST);
        arrived(&stable, number);
    } else {
        CHECK_EQ(destination, address("10.1.9.2"));
        CHECK(at >= MOVING_FIRST && at <= MOVING_LAST);
        arrived(&moving, number);
    }
}

static void *receive_outward(void *unused)
{
    while (!atomic_load(&receivers_stop)) {
        struct pollfd ready[PEERS];
        for (size_t i = 0; i < PEERS; i++)
            ready[i] = (struct pollfd){.fd = peer_sockets[i], .events = POLLIN};
        CHECK(poll(ready, PEERS, 100) >= 0);
        for (uint32_t i = 0; i < PEERS; i++) {
            uint8_t packet[128];
            if (!(ready[i].revents & POLLIN))
                continue;
            ssize_t length = recv(peer_sockets[i], packet, sizeof packet, 0);
            check_datagram(STABLE_HOST + i, packet, length);
        }
    }
    return unused;
}

static void *receive_inward(void *unused)
{
    while (!atomic_load(&receivers_stop)) {
        struct pollfd ready = {.fd = inbound_socket, .events = POLLIN};
        CHECK(poll(&ready, 1, 100) >= 0);
        uint8_t payload[2 * PAYLOAD];
        if (ready.revents & POLLIN) {
            uint32_t number;
            CHECK_EQ(recv(inbound_socket, payload, sizeof payload, 0), PAYLOAD);
            memcpy(&number, payload, sizeof number);
            arrived(&inbound, number);
        }
    }
    return unused;
}

/* Reads what can be read while packets and tables move, and has strangers refused all the time. */
static void *read_all(void *unused)
{
    uint64_t values[PUMP_STAT_COUNT], last = 0, cpu_ns = 0;
    struct pump_peer_stats peers[64];
    struct refusal refusal;
    while (!atomic_load(&senders_stop)) {
        CHECK_EQ(pump_offloads(pump), rig.config.offloads);
        pump_read_stats(pump, values, PUMP_STAT_COUNT);
        CHECK(values[PUMP_STAT_udp_sent_packets] >= last);
        CHECK(values[PUMP_STAT_cpu_ns] >= cpu_ns);
        last = values[PUMP_STAT_udp_sent_packets];
        cpu_ns = values[PUMP_STAT_cpu_ns];
        CHECK(pump_read_peers(pump, peers, 64) >= 2);
        CHECK_EQ(pump_lookup(pump, address("10.1.6.2")), host(STABLE_HOST));
        uint32_t hop = pump_lookup(pump, address("10.1.9.2"));
        CHECK(hop >= host(MOVING_FIRST) && hop <= host(MOVING_LAST));
        CHECK_EQ(pump_failure(pump), 0);
        while (pump_next_refusal(pump, &refusal) == 1) {
            CHECK_EQ(refusal.outer_source >> 16, address("127.9.0.0") >> 16);
            CHECK_EQ(refusal.reason, DROP_UDP_NOT_IP);
        }
        int stranger = rig_socket(address("127.9.0.0") + strangers % 300, RIG_PORT);
        rig_send(stranger, host(1), RIG_PORT, "?", 1);
        close(stranger);
        strangers++;
        usleep(500);
    }
    return unused;
}

/* What waits in the kernel's queues outlives the worker, and between two turns nothing waits elsewhere. */
static void *restart(void *unused)
{
    while (!atomic_load(&senders_stop)) {
        CHECK_EQ(pump_restart(pump, rig.config.tun_fd, rig.config.udp_fd), 0);
        atomic_fetch_add(&restarts, 1);
        usleep(50000);
    }
    return unused;
}

static struct pump_route to(const char *prefix, uint32_t length, uint32_t number)
{
    return (struct pump_route){.prefix = address(prefix), .length = length, .public_ip = number == 0 ? 0 : host(number)};
}

/* The routes of one round. The stable one is always there, and so is some way for 10.1.9.2. */
static size_t table_of(uint32_t round, struct pump_route routes[16])
{
    size_t count = 0;
    routes[count++] = to("10.1.6.0", 24, STABLE_HOST);
    /* The moving stream's way: a subnet, a host route below it, or only the wide cover. */
    if (round % 4 != 3)
        routes[count++] = to("10.1.9.0", 24, MOVING_FIRST + round % 2);
    if (round % 3 == 0)
        routes[count++] = to("10.1.9.2", 32, MOVING_FIRST + round % 2);
    if (round % 5 == 0)
        routes[count++] = to("0.0.0.0", 0, 9);
    routes[count++] = to("10.1.0.0", 16, 9);
    /* Unrelated ones, some in the nodes of the stable route, from hosts that come and go. */
    if (round % 2 == 0)
        routes[count++] = to("10.1.6.128", 25, 20 + round % 50);
    if (round % 3 == 1)
        routes[count++] = to("10.1.7.0", 24, 80 + round % 7);
    if (round % 5 == 2)
        routes[count++] = to("192.168.0.0", 17, 6);
    for (uint32_t i = 0; i < 4; i++)
        routes[count++] = (struct pump_route){.prefix = 0x0b000000 + ((round * 4 + i) << 6 & 0xffffff),
                                              .length = 26,
                                              .public_ip = host(256 + (round + i) % 1000)};
    return count;
}

static void swap(uint32_t round)
{
    struct pump_route routes[16];
    uint32_t addresses[] = {host(2000), host(2000 + round % 3), 0x0d000000 + round};
    CHECK_EQ(pump_set_addresses(pump, addresses, 3), 0);
    if (round % 3 != 2) {
        size_t count = table_of(round, routes);
        CHECK_EQ(pump_replace(pump, routes, count), 0);
        return;
    }
    /* Adds, changes and withdraws at once: the subnet goes and the cover takes over, or the other way round. */
    struct pump_route changes[] = {to("10.1.9.0", 24, round % 2 == 0 ? 0 : MOVING_FIRST),
                                   to("10.1.9.2", 32, 0),
                                   to("10.1.0.0", 16, 9),
                                   to("10.1.6.0", 24, STABLE_HOST),
                                   to("10.1.6.0", 30, round % 2 == 0 ? STABLE_HOST : 0),
                                   to("10.1.6.192", 26, 30 + round % 50)};
    CHECK_EQ(pump_update(pump, changes, sizeof changes / sizeof *changes), 0);
}

/* Whether as much has happened as makes the test worth its time, however slow the machine is. */
static bool has_done_enough(int64_t rounds, int64_t duration)
{
    return rounds >= 100 * duration / 1000 && atomic_load(&restarts) >= 5 * duration / 1000;
}

static void await_all(struct stream *stream)
{
    int64_t deadline = rig_now_ms() + RIG_PATIENCE_MS;
    while (atomic_load(&stream->received) < atomic_load(&stream->sent)) {
        CHECK(rig_now_ms() < deadline);
        usleep(1000);
    }
    printf("%s: %u packets, each once\n", stream->name, atomic_load(&stream->sent));
}

static void check_counters(void)
{
    uint64_t v[PUMP_STAT_COUNT];
    pump_read_stats(pump, v, PUMP_STAT_COUNT);
    uint64_t out = (uint64_t)atomic_load(&stable.sent) + atomic_load(&moving.sent), in = atomic_load(&inbound.sent);
    CHECK_EQ(v[PUMP_STAT_udp_sent_packets], out);
    CHECK_EQ(v[PUMP_STAT_tun_written_packets], in);
    CHECK_EQ(v[PUMP_STAT_udp_received_packets], in + strangers);
    CHECK_EQ(v[rig_drop(DROP_UDP_NOT_IP)], strangers);
    CHECK_EQ(v[PUMP_STAT_icmp_replies], 0);
    unsigned offloads = rig.config.offloads;
    CHECK_EQ(v[PUMP_STAT_tun_read_superpackets] > 0, (offloads & OFFLOAD_USO) != 0);
    CHECK_EQ(v[PUMP_STAT_tun_written_superpackets] > 0, (offloads & OFFLOAD_USO) != 0);
    CHECK_EQ(v[PUMP_STAT_udp_segmented_sends] > 0, (offloads & OFFLOAD_UDP_GSO) != 0);
    CHECK_EQ(v[PUMP_STAT_udp_merged_receives] > 0, (offloads & OFFLOAD_UDP_GRO) != 0);
    if (!(offloads & OFFLOAD_USO))
        CHECK_EQ(v[PUMP_STAT_tun_read_packets], out);
    struct pump_peer_stats peers[64];
    size_t count = pump_read_peers(pump, peers, 64);
    for (size_t i = 0; i < count && i < 64; i++) {
        if (peers[i].public_ip == host(STABLE_HOST)) {
            CHECK_EQ(peers[i].sent_packets, atomic_load(&stable.sent));
            CHECK_EQ(peers[i].received_packets, in);
        }
    }
}

static void start_anew(struct stream *stream)
{
    memset(stream->seen, 0, atomic_load(&stream->sent));
    atomic_store(&stream->sent, 0);
    atomic_store(&stream->received, 0);
}

/* Swaps tables until enough has happened. */
static void swap_for(int64_t duration)
{
    int64_t begin = rig_now_ms(), rounds = 0;
    for (int64_t elapsed = 0; elapsed < duration || !has_done_enough(rounds, duration); elapsed = rig_now_ms() - begin) {
        if (rounds < elapsed * SWAPS_PER_SECOND / 1000)
            swap((uint32_t)rounds++);
        else
            usleep(500);
    }
    printf("%" PRId64 " swaps, %u restarts in %" PRId64 " ms\n", rounds, atomic_load(&restarts),
           rig_now_ms() - begin);
}

static void nothing_is_lost_or_doubled(unsigned offloads, int64_t duration)
{
    struct stream *streams[] = {&stable, &moving, &inbound};
    rig_open(&rig, offloads);
    inbound_socket = rig_socket(address("10.1.5.1"), STREAM_PORT);
    for (size_t i = 0; i < 3; i++)
        start_anew(streams[i]);
    strangers = 0;
    atomic_store(&restarts, 0);
    atomic_store(&senders_stop, false);
    atomic_store(&receivers_stop, false);
    CHECK_EQ(pump_create(&rig.config, &pump), 0);
    struct pump_route routes[16];
    CHECK_EQ(pump_replace(pump, routes, table_of(0, routes)), 0);
    CHECK_EQ(pump_start(pump), 0);

    void *(*const work[])(void *) = {receive_outward, receive_inward, send_outward, send_inward, read_all, restart};
    enum { THREADS = sizeof work / sizeof *work, RECEIVERS = 2 };
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, work[i], NULL), 0);
    swap_for(duration);
    atomic_store(&senders_stop, true);
    for (size_t i = RECEIVERS; i < THREADS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    for (size_t i = 0; i < 3; i++)
        await_all(streams[i]);
    rig_await(pump, PUMP_STAT_udp_received_packets, (uint64_t)atomic_load(&inbound.sent) + strangers);
    atomic_store(&receivers_stop, true);
    for (size_t i = 0; i < RECEIVERS; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    pump_stop(pump);
    check_counters();
    printf("ok offloads %u, %u strangers refused\n", offloads, strangers);
    pump_free(pump);
    close(inbound_socket);
    rig_close(&rig);
}

int main(int argc, char **argv)
{
    int64_t duration = 1000 * (argc < 2 ? 10 : strtol(argv[1], NULL, 10));
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    struct stream *streams[] = {&stable, &moving, &inbound};
    for (size_t i = 0; i < 3; i++) {
        streams[i]->seen = calloc(MOST, 1);
        CHECK(streams[i]->seen != NULL);
    }
    for (uint32_t i = 0; i < PEERS; i++)
        peer_sockets[i] = rig_socket(host(STABLE_HOST + i), RIG_PORT);
    for (size_t i = 0; i < RIG_PRESETS; i++)
        nothing_is_lost_or_doubled(rig_presets[i], duration / RIG_PRESETS);
    for (size_t i = 0; i < 3; i++)
        free(streams[i]->seen);
    for (size_t i = 0; i < PEERS; i++)
        close(peer_sockets[i]);
}

/* The worker at work: counters, refusals, a lost socket, a stop. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "packets.h"
#include "rig.h"
#include "udp_socket.h"

static struct rig rig;

static void packets_and_bytes_are_counted_once_both_ways(void)
{
    struct pump *pump = rig_carrying(&rig);
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT), stranger = rig_socket(address("127.0.0.66"), RIG_PORT);
    int host = rig_socket(address("10.1.5.1"), 4000);
    uint8_t packet[1500], received[1500];
    uint64_t in_bytes = 0, out_bytes = 0;
    for (size_t i = 0; i < 300; i++) {
        size_t length = rig_packet(packet, "10.1.6.2", "10.1.5.1", i);
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
    rig_check_balance(pump);
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

static void readers_write_only_as_much_as_the_capacity(void)
{
    struct pump *pump = rig_carrying(&rig);
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
    rig_send(peer, address("127.0.0.1"), RIG_PORT, packet, rig_packet(packet, "10.1.6.2", "10.1.5.1", 0));
    rig_await(pump, PUMP_STAT_tun_written_packets, written + 1);
    close(peer);
}

static void each_source_is_reported_once_also_after_a_full_ring(void)
{
    struct pump *pump = rig_carrying(&rig);
    struct refusal refusal;
    uint64_t events;
    CHECK_EQ(pump_next_refusal(pump, &refusal), 0);
    CHECK(!event_is_set(pump));
    speak_as_strangers(pump, REFUSAL_RING + 20);
    CHECK_EQ(read(pump_event_fd(pump), &events, sizeof events), 8);
    CHECK_EQ(events, 1);
    for (uint32_t i = 0; i < REFUSAL_RING; i++) {
        CHECK_EQ(pump_next_refusal(pump, &refusal), 1);
        CHECK_EQ(refusal.outer_source, address("127.1.0.1") + i);
        CHECK_EQ(refusal.reason, DROP_UDP_BAD_HEADER);
        CHECK_EQ(refusal.inner_source, 0);
    }
    CHECK_EQ(pump_next_refusal(pump, &refusal), 0);
    /* The twenty that found the ring full are reported as the rate allows, the others are known. */
    uint32_t late = 0, rounds = 1;
    for (int64_t begin = rig_now_ms(); late < 20; rounds++) {
        CHECK(rig_now_ms() - begin < RIG_PATIENCE_MS);
        speak_as_strangers(pump, REFUSAL_RING + 20);
        while (pump_next_refusal(pump, &refusal) == 1) {
            CHECK(refusal.outer_source > address("127.1.0.0") + REFUSAL_RING);
            late++;
        }
    }
    CHECK_EQ(read(pump_event_fd(pump), &events, sizeof events), 8);
    speak_as_strangers(pump, REFUSAL_RING + 20);
    CHECK(!event_is_set(pump));
    pump_stop(pump);
    CHECK_EQ(late, 20);
    CHECK_EQ(rig_stat(pump, rig_drop(DROP_UDP_BAD_HEADER)), (rounds + 1) * (REFUSAL_RING + 20));
    rig_check_balance(pump);
    pump_free(pump);
}

static void refusals_of_a_stopped_pump_can_still_be_read(void)
{
    struct pump *pump = rig_carrying(&rig);
    speak_as_strangers(pump, 3);
    pump_stop(pump);
    struct refusal refusal;
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(pump_next_refusal(pump, &refusal), 1);
    CHECK_EQ(pump_next_refusal(pump, &refusal), 0);
    pump_free(pump);
}

static void a_lost_socket_ends_the_worker_and_is_reported(void)
{
    struct pump *pump = rig_carrying(&rig);
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

/* By somebody with a copy of the descriptor. Without an end, a socket shut down for reading wakes the worker for ever,
 * and one shut down for writing looks well to those who are to replace it. */
static void a_socket_shut_down_in_one_direction_ends_the_worker_and_polls_as_lost(void)
{
    static const int directions[] = {SHUT_RD, SHUT_WR};
    int host = rig_socket(address("10.1.5.1"), 4000);
    for (size_t i = 0; i < 2; i++) {
        struct rig doomed = rig;
        doomed.config.udp_fd = udp_socket_open(address("127.0.0.2"), RIG_PORT);
        CHECK(doomed.config.udp_fd >= 0);
        struct pump *pump = rig_carrying(&doomed);
        (void)shutdown(doomed.config.udp_fd, directions[i]);
        rig_send(host, address("10.1.6.2"), 4000, "", 1); /* only a send meets the end of writing */
        struct pollfd event = {.fd = pump_event_fd(pump), .events = POLLIN};
        CHECK_EQ(poll(&event, 1, RIG_PATIENCE_MS), 1);
        CHECK(pump_failure(pump) < 0);
        struct pollfd lost = {.fd = doomed.config.udp_fd, .events = POLLRDHUP};
        CHECK_EQ(poll(&lost, 1, 0), 1);
        pump_free(pump);
        close(doomed.config.udp_fd);
    }
    close(host);
}

static void a_stop_under_traffic_is_immediate(void)
{
    int host = rig_socket(address("10.1.5.1"), 4000), peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    uint8_t packet[1500];
    size_t length = rig_packet(packet, "10.1.6.2", "10.1.5.1", 100);
    for (size_t i = 0; i < 20; i++) {
        struct pump *pump = rig_carrying(&rig);
        for (size_t j = 0; j < 200; j++) {
            rig_send(host, address("10.1.6.2"), 4000, packet, 100);
            rig_send(peer, address("127.0.0.1"), RIG_PORT, packet, length);
        }
        int64_t begin = rig_now_ms();
        pump_stop(pump);
        CHECK(rig_now_ms() - begin < 1000);
        rig_check_balance(pump);
        pump_free(pump);
    }
    close(host);
    close(peer);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    for (size_t i = 0; i < RIG_PRESETS; i++) {
        RUN_ON_RIG(packets_and_bytes_are_counted_once_both_ways, rig_presets[i]);
        RUN_ON_RIG(readers_write_only_as_much_as_the_capacity, rig_presets[i]);
        RUN_ON_RIG(each_source_is_reported_once_also_after_a_full_ring, rig_presets[i]);
        RUN_ON_RIG(refusals_of_a_stopped_pump_can_still_be_read, rig_presets[i]);
        RUN_ON_RIG(a_lost_socket_ends_the_worker_and_is_reported, rig_presets[i]);
        RUN_ON_RIG(a_socket_shut_down_in_one_direction_ends_the_worker_and_polls_as_lost, rig_presets[i]);
        RUN_ON_RIG(a_stop_under_traffic_is_immediate, rig_presets[i]);
    }
}

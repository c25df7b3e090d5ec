/* A full socket: TUN reads pause, and nothing is lost that the TUN's queue holds. */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "packets.h"
#include "rig.h"
#include "udp_socket.h"

static struct rig rig;

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
    int least = 1;
    ether_open(ether);
    CHECK_EQ(setsockopt(ether->rig.config.udp_fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof least), 0);
    struct pump *pump;
    CHECK_EQ(pump_create(&ether->rig.config, &pump), 0);
    struct pump_route peer = rig_route("10.1.6.0", 24, "172.30.0.6");
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
    rig_check_balance(pump);
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
    rig_check_balance(pump);
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
    struct pump_route here = rig_route("10.1.7.0", 24, "172.30.0.1");
    CHECK_EQ(pump_update(pump, &here, 1), 0);
    int host = rig_socket(address("10.1.5.1"), 4000), self = rig_socket(address("172.30.0.1"), 4001);
    uint8_t packet[1500], received[1500];
    size_t length = rig_packet(packet, "10.1.7.2", "10.1.5.1", 5);
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

/* What waits for a neighbour that does not answer is on the socket's account, up to unres_qlen_bytes of each. */
static void a_hundred_silent_neighbours_pause_nobody(void)
{
    enum { NEIGHBOURS = 100, PACKETS = 110 };
    struct ether_rig ether;
    static const uint8_t payload[1400];
    ether_open(&ether);
    struct pump *pump = rig_create(&ether.rig);
    CHECK_EQ(pump_start(pump), 0);
    int host = rig_socket(address("10.1.5.1"), 4000);
    for (uint32_t i = 0; i < NEIGHBOURS; i++) {
        struct pump_route route = {
            .prefix = address("10.1.100.0") + (i << 8), .length = 24, .public_ip = address("172.30.0.100") + i};
        CHECK_EQ(pump_update(pump, &route, 1), 0);
        for (size_t j = 0; j < PACKETS; j++)
            rig_send(host, route.prefix + 2, 4000, payload, sizeof payload);
        rig_await(pump, PUMP_STAT_udp_sent_packets, (uint64_t)(i + 1) * PACKETS);
    }
    CHECK_EQ(rig_stat(pump, PUMP_STAT_send_pauses), 0);
    pump_free(pump);
    close(host);
    ether_close(&ether);
}

static void a_restart_ends_a_pause_and_continues(void)
{
    struct ether_rig ether;
    struct pump *pump = paused(&ether, 200);
    uint64_t read = rig_stat(pump, PUMP_STAT_tun_read_packets), sent = rig_stat(pump, PUMP_STAT_udp_sent_packets);
    CHECK(read < 200);
    /* As after a lost socket: what waited for the old one is lost. */
    int udp_fd = udp_socket_open(address("172.30.0.1"), RIG_PORT + 1);
    CHECK(udp_fd >= 0);
    CHECK_EQ(pump_restart(pump, ether.rig.config.tun_fd, udp_fd), 0);
    rig_await(pump, PUMP_STAT_tun_read_packets, 200);
    rig_await(pump, PUMP_STAT_udp_sent_packets, sent + 200 - read);
    CHECK_EQ(pump_failure(pump), 0);
    CHECK_EQ(rig_stat(pump, rig_drop(DROP_TUN_SEND_FAILED)), read - sent);
    struct pump_peer_stats peer;
    CHECK_EQ(pump_read_peers(pump, &peer, 1), 1);
    CHECK_EQ(peer.dropped_packets, read - sent);
    rig_check_balance(pump);
    pump_free(pump);
    close(udp_fd);
    ether_close(&ether);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    for (size_t i = 0; i < RIG_PRESETS; i++) {
        RUN_ON_RIG(a_full_socket_delays_and_loses_nothing, rig_presets[i]);
        RUN_ON_RIG(a_peer_that_goes_during_a_pause_keeps_its_slot, rig_presets[i]);
        RUN_ON_RIG(a_full_socket_stops_at_once_and_still_receives, rig_presets[i]);
        RUN_ON_RIG(a_restart_ends_a_pause_and_continues, rig_presets[i]);
        RUN_ON_RIG(a_hundred_silent_neighbours_pause_nobody, rig_presets[i]);
    }
}

/* One turn from the TUN to the socket, with every result that both may give. */
#include "outbound.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "offload.h"
#include "packets.h"

enum { TUN = 7, SOCKET = 8, PORT = 8285, SCRIPT_MAX = 16 };

static struct filter_identity own;
static struct tables tables;
static struct tunnel tunnel;

/* ---- what the TUN gives: errors, or packets with their vnet header ---- */

struct reading {
    int error;
    const char *destination; /* of a UDP packet; NULL: `bytes` instead */
    uint8_t bytes[4];
    struct virtio_net_hdr vnet;
    size_t payload;
};

static const struct reading *script;
static size_t script_left;

static ssize_t scripted_read(int fd, const struct iovec *iov, int count)
{
    if (fd != TUN)
        return faults_real_read(fd, iov, count); /* the event descriptor */
    CHECK(count == 2 && iov[0].iov_len == sizeof(struct virtio_net_hdr));
    if (script_left == 0) {
        errno = EAGAIN;
        return -1;
    }
    const struct reading *reading = script++;
    script_left--;
    if (reading->error != 0) {
        errno = reading->error;
        return -1;
    }
    static const uint8_t zeroes[60000];
    size_t length = sizeof reading->bytes;
    memcpy(iov[0].iov_base, &reading->vnet, sizeof reading->vnet);
    if (reading->destination == NULL)
        memcpy(iov[1].iov_base, reading->bytes, length);
    else
        length = packet_build_udp(iov[1].iov_base, address("10.1.5.2"), address(reading->destination), 4000, zeroes,
                                  reading->payload);
    return (ssize_t)(sizeof reading->vnet + length);
}

/* ---- what it takes, and the socket ---- */

static int write_error, segments_error;
static unsigned sent, written;

static ssize_t scripted_write(int fd, const struct iovec *iov, int count)
{
    CHECK(fd == TUN && count == 2);
    written++;
    errno = write_error;
    return write_error == 0 ? (ssize_t)iov[1].iov_len : -1;
}

static int scripted_send(int fd, struct mmsghdr *batch, unsigned count, int flags)
{
    CHECK(fd == SOCKET && flags == MSG_DONTWAIT);
    for (unsigned i = 0; i < count; i++) {
        if (batch[i].msg_hdr.msg_controllen != 0 && segments_error != 0) {
            errno = segments_error;
            return i == 0 ? -1 : (int)i;
        }
        sent++;
    }
    return (int)count;
}

/* ---- */

static int serve(const struct reading *readings, size_t count)
{
    struct tunnel_ends ends = {.tun = {.fd = TUN, .vnet_header = true, .offloads = OFFLOAD_TSO | OFFLOAD_USO},
                               .udp_fd = SOCKET,
                               .port = PORT,
                               .offloads = OFFLOAD_ALL};
    CHECK(count <= SCRIPT_MAX);
    memset(&tunnel.counters, 0, sizeof tunnel.counters);
    sent = written = 0;
    script = readings;
    script_left = count;
    tunnel.now_ns += UINT64_C(1000000000);
    tunnel_join(&tunnel, &ends);
    return outbound_serve(&tunnel, TURN_PACKETS);
}

static void what_is_no_packet_is_counted_by_kind_and_the_next_leaves(void)
{
    static const struct reading readings[] = {{.bytes = {0x60}},
                                              {.bytes = {0x45, 0, 0, 4}},
                                              {.bytes = {0}},
                                              {.error = EINVAL}, /* one packet is lost, the device works */
                                              {.error = EINTR},
                                              {.destination = "10.1.6.2", .payload = 100}};
    CHECK_EQ(serve(readings, 6), 0);
    CHECK_EQ(tunnel.counters.drops[DROP_TUN_IPV6], 1);
    CHECK_EQ(tunnel.counters.drops[DROP_TUN_MALFORMED], 2);
    CHECK_EQ(tunnel.counters.drops[DROP_TUN_READ_FAILED], 1);
    CHECK_EQ(tunnel.counters.tun_read_packets, 5);
    CHECK_EQ(sent, 1);
}

static void a_vnet_header_that_does_not_fit_costs_its_packet_alone(void)
{
    static const struct reading readings[] = {
        {.destination = "10.1.6.2", .payload = 100, .vnet = {.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4}},
        {.destination = "10.1.6.2", .payload = 100, .vnet = {.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 10}},
        {.destination = "10.1.6.2",
         .payload = 100,
         .vnet = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 12, .csum_offset = 4}},
        {.destination = "10.1.6.2", .payload = 100}};
    CHECK_EQ(serve(readings, 4), 0);
    CHECK_EQ(tunnel.counters.drops[DROP_TUN_MALFORMED], 3);
    CHECK_EQ(sent, 1);
}

static void a_tun_that_is_lost_ends_the_turn_after_what_was_read_is_sent(void)
{
    static const int lost[] = {EBADFD, EBADF, ENODEV};
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) {
        const struct reading answered[] = {{.destination = "10.1.6.2", .payload = 100},
                                           {.destination = "10.1.99.2", .payload = 100}},
                             read[] = {answered[0], {.error = lost[i]}};
        write_error = lost[i];
        CHECK_EQ(serve(answered, 2), -lost[i]); /* found when the ICMP answer is written */
        CHECK(sent == 1 && written == 1);
        CHECK_EQ(serve(read, 2), -lost[i]);
        CHECK(sent == 1 && written == 0);
        write_error = ENOBUFS; /* one answer is lost, the device works */
        CHECK_EQ(serve(answered, 2), 0);
        CHECK_EQ(tunnel.counters.icmp_suppressed, 1);
    }
    write_error = 0;
}

static void refused_segments_are_reported_once_and_leave_singly(void)
{
    static const struct reading readings[] = {
        {.destination = "10.1.6.2",
         .payload = 5000,
         .vnet = {.gso_type = VIRTIO_NET_HDR_GSO_UDP_L4, .gso_size = 1000, .csum_start = 20, .csum_offset = 6}}};
    uint64_t events = 0, changes = atomic_load(&tunnel.offload_changes);
    segments_error = EIO;
    CHECK_EQ(serve(readings, 1), 0);
    CHECK_EQ(sent, 5);
    CHECK_EQ(atomic_load(&tunnel.offload_changes), changes + 1);
    CHECK_EQ(read(tunnel.event_fd, &events, sizeof events), 8);
    segments_error = 0;
    CHECK_EQ(serve(readings, 1), 0); /* the path to the peer is not tried again yet */
    CHECK_EQ(sent, 5);
    CHECK_EQ(atomic_load(&tunnel.offload_changes), changes + 1);
}

static void set_up(void)
{
    uint32_t slot, previous;
    CHECK_EQ(tables_init(&tables), 0);
    CHECK_EQ(peer_table_acquire(tables.peers, address("172.30.0.6"), &slot), 0);
    CHECK_EQ(route_table_insert(tables.routes, address("10.1.6.0"), 24, slot, &previous), 0);
    CHECK_EQ(tunnel_init(&tunnel), 0);
    own = (struct filter_identity){.network = address("10.1.0.0"),
                                   .network_mask = address("255.255.0.0"),
                                   .subnet = address("10.1.5.0"),
                                   .subnet_mask = address("255.255.255.0"),
                                   .public_ip = address("172.30.0.1"),
                                   .addresses = tables.addresses};
    tunnel.own = &own;
    tunnel.tables = &tables;
    faults_replace_read(scripted_read);
    faults_replace_write(scripted_write);
    faults_replace_send(scripted_send);
}

int main(void)
{
    set_up();
    RUN(what_is_no_packet_is_counted_by_kind_and_the_next_leaves);
    RUN(a_vnet_header_that_does_not_fit_costs_its_packet_alone);
    RUN(a_tun_that_is_lost_ends_the_turn_after_what_was_read_is_sent);
    RUN(refused_segments_are_reported_once_and_leave_singly);
    tunnel_clear(&tunnel);
    tables_clear(&tables);
}

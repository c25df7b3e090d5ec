/* Vnet headers that a program with CAP_NET_RAW can make: what they ask for is carried whole or refused, and never
 * changes what the filter has decided. */
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "faults.h"
#include "packets.h"
#include "rig.h"
#include "segment.h"
#include "transport.h"
#include "udp_socket.h"

static struct rig rig;

/* Sends a packet with this vnet header straight out of the device, as AF_PACKET lets a program do. */
static void send_raw(const struct virtio_net_hdr *vnet, const uint8_t *packet, size_t length)
{
    static uint8_t frame[sizeof *vnet + PACKET_MAX];
    int one = 1, fd = socket(AF_PACKET, SOCK_RAW, htons(ETHERTYPE_IP));
    struct sockaddr_ll to = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE_IP), .sll_ifindex = (int)if_nametoindex(rig.device)};
    CHECK(fd >= 0);
    CHECK_EQ(setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one), 0);
    memcpy(frame, vnet, sizeof *vnet);
    memcpy(frame + sizeof *vnet, packet, length);
    CHECK_EQ(sendto(fd, frame, sizeof *vnet + length, 0, (const struct sockaddr *)&to, sizeof to),
             sizeof *vnet + length);
    close(fd);
}

/* 64 KiB in segments of 8 bytes, as TCP makes them with the smallest MSS and 40 bytes of options. */
static void a_superpacket_of_the_smallest_segments_arrives_whole(void)
{
    enum { IP_HEADER = 20, TCP_HEADER = 60, HEADERS = IP_HEADER + TCP_HEADER, PIECE = 8, PIECES = 8180 };
    static uint8_t packet[PACKET_MAX];
    size_t length = packet_build(packet, &(struct packet_form){.source = address("10.1.5.1"),
                                                               .destination = address("10.1.6.2"),
                                                               .protocol = PROTOCOL_TCP,
                                                               .payload_length = TCP_HEADER + PIECES * PIECE});
    uint8_t *tcp = packet + IP_HEADER, received[2 * HEADERS];
    memset(tcp, 0, TCP_HEADER);
    tcp[TCP_OFFSET] = TCP_HEADER / 4 << 4;
    tcp[TCP_FLAGS] = TCP_FLAG_ACK;
    for (size_t i = 0; i < PIECES; i++)
        write_u32(packet + HEADERS + i * PIECE, (uint32_t)i);
    packet_finish(packet, length);
    int peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    struct pump *pump = rig_carrying(&rig);
    send_raw(&(struct virtio_net_hdr){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                      .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
                                      .gso_size = PIECE,
                                      .hdr_len = HEADERS,
                                      .csum_start = IP_HEADER,
                                      .csum_offset = TCP_CHECKSUM},
             packet, length);
    for (uint32_t i = 0; i < PIECES; i++) {
        CHECK_EQ(recv(peer, received, sizeof received, 0), HEADERS + PIECE);
        CHECK_EQ(read_u32(received + HEADERS), i);
        CHECK_EQ(read_u32(received + IP_HEADER + TCP_SEQUENCE), i * PIECE);
        CHECK_EQ(plain_transport_checksum(received, HEADERS + PIECE), 0);
    }
    rig_await(pump, PUMP_STAT_udp_sent_packets, PIECES);
    CHECK_EQ(rig_stat(pump, rig_drop(DROP_TUN_MALFORMED)), 0);
    pump_free(pump);
    close(peer);
}

/* ---- the position of a checksum ---- */

static atomic_int csum_start, csum_offset; /* of every packet that is read; -1: as the kernel says */

static ssize_t forged_read(int fd, const struct iovec *iov, int count)
{
    struct virtio_net_hdr vnet;
    ssize_t n = faults_real_read(fd, iov, count);
    if (n <= 0 || atomic_load(&csum_start) < 0)
        return n;
    CHECK(iov[0].iov_len == sizeof vnet);
    memcpy(&vnet, iov[0].iov_base, sizeof vnet);
    vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    vnet.csum_start = (uint16_t)atomic_load(&csum_start);
    vnet.csum_offset = (uint16_t)atomic_load(&csum_offset);
    memcpy(iov[0].iov_base, &vnet, sizeof vnet);
    return n;
}

/* The kernel gives a socket's own packets no other position, so the forged one stands in for a container's. */
static void a_checksum_in_the_ip_header_changes_no_address(void)
{
    static const int fields[] = {0, IPV4_TOTAL_LENGTH, IPV4_PROTOCOL, IPV4_SOURCE, IPV4_SOURCE + 2,
                                 IPV4_DESTINATION, IPV4_DESTINATION + 2};
    uint64_t refused = 0;
    uint8_t received[64];
    int host = rig_socket(address("10.1.5.1"), 4000), peer = rig_socket(address("127.0.0.6"), RIG_PORT);
    struct pump *pump = rig_carrying(&rig);
    faults_replace_read(forged_read);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        for (int start = 0; start <= fields[i]; start++) {
            atomic_store(&csum_offset, fields[i] - start);
            atomic_store(&csum_start, start);
            rig_send(host, address("10.1.6.2"), 4000, "forged", 6);
            rig_await(pump, rig_drop(DROP_TUN_MALFORMED), ++refused);
        }
    }
    atomic_store(&csum_start, -1);
    rig_send(host, address("10.1.6.2"), 4000, "honest", 6);
    CHECK_EQ(recv(peer, received, sizeof received, 0), 20 + 8 + 6); /* nothing came before */
    CHECK(memcmp(received + 28, "honest", 6) == 0);
    faults_replace_read(NULL);
    pump_stop(pump);
    rig_check_balance(pump);
    pump_free(pump);
    close(host);
    close(peer);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN_ON_RIG(a_superpacket_of_the_smallest_segments_arrives_whole, OFFLOAD_ALL);
    RUN_ON_RIG(a_superpacket_of_the_smallest_segments_arrives_whole, OFFLOAD_TSO);
    RUN_ON_RIG(a_checksum_in_the_ip_header_changes_no_address, OFFLOAD_ALL);
    RUN_ON_RIG(a_checksum_in_the_ip_header_changes_no_address, OFFLOAD_TSO);
}

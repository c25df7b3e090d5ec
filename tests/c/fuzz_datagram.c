/* Any bytes as a datagram and as a packet from the TUN: parsed, filtered and answered within their bounds.
 *
 * Input: one byte that picks the outer source and the source check, then the datagram.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "filter.h"
#include "icmp.h"
#include "packets.h"

static struct route_table *routes;
static struct peer_table *peers;
static struct route_table *addresses;

static void lease(const char *subnet, uint8_t length, const char *public_ip)
{
    uint32_t slot, previous;
    CHECK_EQ(peer_table_acquire(peers, address(public_ip), &slot), 0);
    CHECK_EQ(route_table_insert(routes, address(subnet), length, slot, &previous), 0);
}

static void write_seeds(const char *directory)
{
    static const char *const ends[][2] = {{"10.1.6.2", "10.1.5.2"}, {"10.1.5.2", "10.1.6.2"},
                                          {"10.1.5.2", "10.1.99.1"}, {"192.168.1.1", "10.1.5.2"},
                                          {"127.0.0.1", "224.0.0.1"}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        for (size_t header = 20; header <= 60; header += 20) {
            uint8_t input[1 + 60 + 600] = {(uint8_t)i};
            size_t length = packet_build(input + 1, &(struct packet_form){.source = address(ends[i][0]),
                                                                          .destination = address(ends[i][1]),
                                                                          .protocol = i % 2 == 0 ? 1 : 17,
                                                                          .header_length = header,
                                                                          .payload_length = header * 10});
            corpus_write(directory, input, length + 1);
        }
    }
    corpus_write(directory, (const uint8_t *)"\0\x60", 2);
}

/* NOLINTNEXTLINE(readability-non-const-parameter): as libFuzzer declares it */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    CHECK_EQ(route_table_create(&routes), 0);
    CHECK_EQ(peer_table_create(&peers), 0);
    CHECK_EQ(route_table_create(&addresses), 0);
    uint32_t previous;
    CHECK_EQ(route_table_insert(addresses, address("192.168.1.2"), 32, 0, &previous), 0);
    lease("10.1.6.0", 24, "172.30.0.6");
    lease("10.1.7.0", 24, "172.30.0.7");
    lease("10.1.0.0", 16, "172.30.0.8");
    corpus_fill(*argc, *argv, write_seeds);
    return 0;
}

static void check_inbound(const struct filter_identity *own, const struct packet *packet, uint32_t outer_source)
{
    struct peer *peer = NULL;
    enum drop_reason drop = filter_inbound(own, routes, peers, packet, outer_source, &peer);
    if (drop != DROP_NONE) {
        CHECK(drop >= DROP_UDP_UNKNOWN_PEER && drop <= DROP_UDP_WRONG_DESTINATION);
        return;
    }
    /* What passes is for our subnet, and its source is none of our addresses. */
    CHECK((packet->destination & own->subnet_mask) == own->subnet);
    CHECK((packet->source & own->subnet_mask) != own->subnet);
    CHECK(packet->source != address("192.168.1.2"));
    CHECK(packet->source != own->public_ip && address_is_unicast(packet->source));
    CHECK(!own->check_source || (peer != NULL && peer->address == outer_source));
}

static void check_outbound(const struct filter_identity *own, const struct packet *packet)
{
    struct peer *peer = NULL;
    enum drop_reason drop = filter_outbound(own, routes, peers, packet, &peer);
    CHECK((drop == DROP_NONE) == (peer != NULL));
    if (drop == DROP_NONE || !icmp_may_answer(packet))
        return;
    uint8_t reply[ICMP_REPLY_MAX];
    struct packet answer;
    size_t length = icmp_net_unreachable(reply, address("10.1.5.0"), packet);
    CHECK(length <= ICMP_REPLY_MAX && length <= 28 + packet->length);
    CHECK_EQ(packet_parse(&answer, reply, length), PACKET_OK);
    CHECK(answer.destination == packet->source);
    CHECK(!icmp_may_answer(&answer));
    CHECK_EQ(plain_checksum(reply, 20), 0);
    CHECK_EQ(plain_checksum(reply + 20, length - 20), 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const outer[] = {"172.30.0.6", "172.30.0.7", "172.30.0.66", "172.30.0.1"};
    if (size == 0)
        return 0;
    struct filter_identity own = {.network = address("10.1.0.0"),
                                  .network_mask = address("255.255.0.0"),
                                  .subnet = address("10.1.5.0"),
                                  .subnet_mask = address("255.255.255.0"),
                                  .public_ip = address("172.30.0.1"),
                                  .addresses = addresses,
                                  .check_source = data[0] & 4};
    /* A copy of exactly its length, for ASan to see a read beyond. */
    uint8_t *bytes = malloc(size);
    CHECK(bytes != NULL);
    memcpy(bytes, data + 1, size - 1);
    struct packet packet;
    enum packet_fault fault = packet_parse(&packet, bytes, size - 1);
    CHECK((fault == PACKET_OK) == (filter_inbound_fault(fault) == DROP_NONE));
    if (fault == PACKET_OK) {
        CHECK(packet.header_length >= 20 && packet.header_length <= packet.length && packet.length == size - 1);
        check_inbound(&own, &packet, address(outer[data[0] & 3]));
        check_outbound(&own, &packet);
    }
    free(bytes);
    return 0;
}

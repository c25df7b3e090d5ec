/* Any superpacket with any vnet header is refused, or cut into valid packets that together hold its payload.
 *
 * Input: struct recipe, then the packet's first bytes; they are repeated to the length the recipe asks for, so
 * that a short input can make 64 KiB.
 */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "packets.h"
#include "segment.h"
#include "transport.h"

struct recipe {
    uint8_t flags, gso_type;
    uint8_t gso_size[2], csum_start[2], csum_offset[2], length[2];
};

static void write_seeds(const char *directory)
{
    static const struct {
        uint8_t protocol, gso_type, header;
        uint16_t gso_size, length;
    } seeds[] = {{6, 1, 20, 1432, 65535}, {6, 0x81, 60, 1400, 30000}, {6, 1, 20, 48, 65535}, {17, 5, 20, 1200, 60000},
                 {17, 5, 24, 8, 9000},    {6, 1, 20, 100, 141},       {17, 0, 20, 0, 1000}};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        uint8_t input[sizeof(struct recipe) + 200];
        struct recipe recipe = {.flags = 1, .gso_type = seeds[i].gso_type};
        write_u16(recipe.gso_size, seeds[i].gso_size);
        write_u16(recipe.length, seeds[i].length);
        write_u16(recipe.csum_start, seeds[i].header);
        write_u16(recipe.csum_offset, seeds[i].protocol == PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
        memcpy(input, &recipe, sizeof recipe);
        uint8_t *packet = input + sizeof recipe;
        memset(packet, (int)i, 200);
        packet_build(packet, &(struct packet_form){.source = address("10.1.6.2"),
                                                   .destination = address("10.1.5.2"),
                                                   .protocol = seeds[i].protocol,
                                                   .header_length = seeds[i].header,
                                                   .payload_length = 100});
        if (seeds[i].protocol == PROTOCOL_TCP)
            packet[seeds[i].header + TCP_OFFSET] = 0x50;
        corpus_write(directory, input, sizeof input);
        packet[seeds[i].header + TCP_OFFSET] = 0x40; /* shorter than any header of TCP */
        corpus_write(directory, input, sizeof input);
    }
}

/* NOLINTNEXTLINE(readability-non-const-parameter): as libFuzzer declares it */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    corpus_fill(*argc, *argv, write_seeds);
    return 0;
}

/* A buffer of exactly its length, for ASan to see an access beyond; a packet of version 4 and that length. */
static uint8_t *packet_of(const uint8_t *pattern, size_t size, size_t length)
{
    uint8_t *bytes = malloc(length);
    CHECK(bytes != NULL);
    for (size_t i = 0; i < length; i++)
        bytes[i] = size == 0 ? 0 : pattern[i % size];
    bytes[0] = (uint8_t)(0x40 | (bytes[0] & 0xf));
    write_u16(bytes + IPV4_TOTAL_LENGTH, (uint16_t)length);
    return bytes;
}

static void check_headers(const struct segmenter *cut, size_t index, const uint8_t *segment)
{
    const uint8_t *whole = cut->bytes, *tcp = segment + cut->ip_header, *before = whole + cut->ip_header;
    bool first = index == 0, last = index + 1 == cut->count;
    CHECK_EQ(read_u16(segment + IPV4_ID), (uint16_t)(read_u16(whole + IPV4_ID) + index));
    CHECK(segment[IPV4_TOS] == whole[IPV4_TOS] && segment[IPV4_TTL] == whole[IPV4_TTL]);
    CHECK(memcmp(segment + IPV4_FRAGMENT, whole + IPV4_FRAGMENT, 2) == 0);
    CHECK(memcmp(segment + IPV4_SOURCE, whole + IPV4_SOURCE, cut->ip_header - IPV4_SOURCE) == 0);
    CHECK(memcmp(tcp, before, 4) == 0); /* ports */
    if (cut->protocol == PROTOCOL_UDP)
        return;
    uint8_t dropped = (uint8_t)((last ? 0 : TCP_FIN | TCP_PSH) | (first ? 0 : TCP_CWR));
    CHECK_EQ(tcp[TCP_FLAGS], before[TCP_FLAGS] & ~dropped);
    CHECK_EQ(read_u32(tcp + TCP_SEQUENCE), read_u32(before + TCP_SEQUENCE) + (uint32_t)(index * cut->payload_size));
    CHECK(memcmp(tcp + TCP_ACK, before + TCP_ACK, 5) == 0);
    CHECK(memcmp(tcp + TCP_CHECKSUM + 2, before + TCP_CHECKSUM + 2, cut->headers - cut->ip_header - 18) == 0);
}

static void check_segment(const struct segmenter *cut, size_t index)
{
    struct iovec payload;
    uint8_t *header = malloc(cut->headers);
    CHECK(header != NULL && cut->headers <= SEGMENT_HEADER_MAX);
    segment_make(cut, index, header, &payload);
    CHECK(payload.iov_base == cut->bytes + cut->headers + index * cut->payload_size);
    CHECK_EQ(payload.iov_len, index + 1 < cut->count ? cut->payload_size
                                                     : cut->payload - index * cut->payload_size);
    size_t length = cut->headers + payload.iov_len;
    uint8_t *segment = malloc(length);
    CHECK(segment != NULL);
    memcpy(segment, header, cut->headers);
    memcpy(segment + cut->headers, payload.iov_base, payload.iov_len);
    struct packet packet;
    CHECK_EQ(packet_parse(&packet, segment, length), PACKET_OK);
    CHECK_EQ(plain_checksum(segment, cut->ip_header), 0);
    CHECK_EQ(plain_transport_checksum(segment, length), 0);
    if (cut->protocol == PROTOCOL_UDP) {
        CHECK(read_u16(segment + cut->ip_header + UDP_CHECKSUM) != 0);
        CHECK_EQ(read_u16(segment + cut->ip_header + UDP_LENGTH), length - cut->ip_header);
    }
    check_headers(cut, index, segment);
    free(segment);
    free(header);
}

static void check_cutting(const struct packet *packet, const struct virtio_net_hdr *vnet)
{
    struct segmenter cut;
    int error = segment_begin(&cut, packet, vnet);
    if (error < 0) {
        CHECK_EQ(error, -EINVAL);
        return;
    }
    CHECK(cut.payload > 0 && cut.payload_size == vnet->gso_size);
    CHECK_EQ(cut.headers + cut.payload, packet->length);
    CHECK_EQ(cut.count, (cut.payload + cut.payload_size - 1) / cut.payload_size);
    CHECK(cut.count >= 1 && cut.count <= SEGMENT_COUNT_MAX);
    for (size_t i = 0; i < cut.count; i++)
        check_segment(&cut, i);
}

/* Completes the checksum of a copy: only its two bytes change, to the complement of the sum from csum_start on, and
 * they are behind the IP header. */
static void check_completing(const struct packet *packet, const struct virtio_net_hdr *vnet)
{
    size_t start = vnet->csum_start, field = start + vnet->csum_offset;
    uint8_t *done = malloc(packet->length);
    CHECK(done != NULL);
    memcpy(done, packet->bytes, packet->length);
    if (segment_complete_checksum(done, packet, vnet) < 0) {
        CHECK(start < packet->header_length || field + 2 > packet->length);
        CHECK(memcmp(done, packet->bytes, packet->length) == 0);
    } else {
        uint16_t expected = plain_checksum(packet->bytes + start, packet->length - start);
        CHECK(start >= packet->header_length && field + 2 <= packet->length);
        CHECK_EQ(read_u16(done + field), expected == 0 && packet->protocol == PROTOCOL_UDP ? 0xffff : expected);
        CHECK(memcmp(done, packet->bytes, field) == 0);
        CHECK(memcmp(done + field + 2, packet->bytes + field + 2, packet->length - field - 2) == 0);
    }
    free(done);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct recipe recipe;
    struct packet packet;
    if (size < sizeof recipe)
        return 0;
    memcpy(&recipe, data, sizeof recipe);
    struct virtio_net_hdr vnet = {.flags = recipe.flags,
                                  .gso_type = recipe.gso_type,
                                  .gso_size = read_u16(recipe.gso_size),
                                  .csum_start = read_u16(recipe.csum_start),
                                  .csum_offset = read_u16(recipe.csum_offset)};
    size_t length = read_u16(recipe.length);
    if (length < IPV4_MIN_HEADER)
        return 0;
    uint8_t *bytes = packet_of(data + sizeof recipe, size - sizeof recipe, length);
    if (packet_parse(&packet, bytes, length) == PACKET_OK) {
        check_cutting(&packet, &vnet);
        check_completing(&packet, &vnet);
    }
    free(bytes);
    return 0;
}

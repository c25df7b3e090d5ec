/* Any packets of some flows: what is merged gives the same packets when it is cut again, in their order.
 *
 * Input: records of struct step, each of which makes the next packet of one of eight flows, with a quirk.
 */
#include <string.h>

#include "check.h"
#include "coalesce.h"
#include "corpus.h"
#include "packets.h"
#include "transport.h"

enum { FLOWS = 8, MOST = 300, OPTIONS = 12, CWR = 0x80 };

struct step {
    uint8_t flow, quirk, detail, size;
};

enum quirk { NONE, FLIP, FLIP_AND_FINISH, GAP, ACK, FLAGS, TCP_OPTIONS, IP_OPTIONS, SHORT, LARGE, EMPTY, QUIRKS };

struct flow {
    uint32_t sequence, ack;
    uint16_t id;
};

struct arrival {
    uint8_t *bytes; /* of exactly its length, for ASan to see an access beyond */
    size_t length;
    bool seen;
};

static struct coalescer coalescer;
static struct arrival arrivals[MOST];
static size_t arrived;

static void write_seeds(const char *directory)
{
    for (unsigned seed = 0; seed < 2 * QUIRKS; seed++) {
        struct step steps[100];
        for (unsigned i = 0; i < 100; i++) {
            steps[i] = (struct step){.flow = (uint8_t)(i % (1 + seed % 4)),
                                     .quirk = (uint8_t)(i % 16 == 15 ? seed : NONE),
                                     .detail = (uint8_t)(i * 7),
                                     .size = 100};
        }
        corpus_write(directory, (const uint8_t *)steps, sizeof steps);
    }
    static const struct step pushed[] = {{0, NONE, 0, 9}, {0, FLAGS, TCP_FLAG_ACK | TCP_PSH, 9}, {0, NONE, 0, 9}};
    corpus_write(directory, (const uint8_t *)pushed, sizeof pushed);
}

/* NOLINTNEXTLINE(readability-non-const-parameter): as libFuzzer declares it */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    corpus_fill(*argc, *argv, write_seeds);
    return 0;
}

static size_t payload_size(const struct step *step, enum quirk quirk)
{
    switch (quirk) {
    case SHORT:
        return 1;
    case LARGE:
        return 40 * ((size_t)step->detail + 1);
    case EMPTY:
        return 0;
    default:
        return 4 * (size_t)step->size + 1;
    }
}

/* Fills in the transport header of a flow's next packet. */
static void fill_tcp(uint8_t *tcp, const struct flow *flow, size_t header, uint8_t flags)
{
    write_u32(tcp + TCP_SEQUENCE, flow->sequence);
    write_u32(tcp + TCP_ACK, flow->ack);
    tcp[TCP_OFFSET] = (uint8_t)(header / 4 << 4);
    tcp[TCP_FLAGS] = flags;
    memset(tcp + TCP_MIN_HEADER, 1, header - TCP_MIN_HEADER);
}

/* The next packet of the step's flow. Its length; bytes[] holds any of them. */
static size_t make_packet(const struct step *step, struct flow *flow, uint8_t *bytes)
{
    enum quirk quirk = (enum quirk)(step->quirk % QUIRKS);
    bool is_tcp = step->flow % 2 == 0;
    size_t ip_header = quirk == IP_OPTIONS ? 24 : 20, payload = payload_size(step, quirk);
    size_t header = !is_tcp ? UDP_HEADER : quirk == TCP_OPTIONS ? TCP_MIN_HEADER + OPTIONS : TCP_MIN_HEADER;
    flow->sequence += quirk == GAP ? step->detail : 0;
    flow->ack += quirk == ACK ? step->detail : 0;
    size_t length = packet_build(bytes, &(struct packet_form){.source = address("10.1.6.2"),
                                                              .destination = address("10.1.5.2") + step->flow % 4,
                                                              .protocol = is_tcp ? PROTOCOL_TCP : PROTOCOL_UDP,
                                                              .header_length = ip_header,
                                                              .payload_length = header + payload,
                                                              .fragment = step->flow % 8 < 4 ? 0x4000 : 0});
    write_u16(bytes + IPV4_ID, flow->id++);
    uint8_t *transport = bytes + ip_header;
    write_u16(transport, step->flow);
    if (is_tcp)
        fill_tcp(transport, flow, header, quirk == FLAGS ? step->detail : TCP_FLAG_ACK);
    else
        write_u16(transport + UDP_LENGTH, (uint16_t)(length - ip_header));
    memset(transport + header, (int)flow->sequence, payload);
    flow->sequence += (uint32_t)payload;
    uint8_t *flipped = bytes + step->detail % length;
    if (quirk == FLIP_AND_FINISH)
        *flipped ^= (uint8_t)(step->size | 1);
    if (quirk != FLIP_AND_FINISH || (bytes[0] == 0x45 && (bytes[9] == PROTOCOL_TCP || bytes[9] == PROTOCOL_UDP)))
        packet_finish(bytes, length);
    if (quirk == FLIP)
        *flipped ^= (uint8_t)(step->size | 1);
    return length;
}

static void arrive(const struct step *step, struct flow *flow)
{
    static uint8_t room[16384];
    size_t length = make_packet(step, flow, room);
    struct arrival *arrival = &arrivals[arrived];
    arrival->bytes = malloc(length);
    CHECK(arrival->bytes != NULL);
    memcpy(arrival->bytes, room, length);
    arrival->length = length;
    arrival->seen = false;
    struct packet packet;
    if (packet_parse(&packet, arrival->bytes, length) != PACKET_OK) {
        free(arrival->bytes);
        return;
    }
    arrived++;
    CHECK(coalesce_add(&coalescer, &packet));
}

/* Whether two packets are of one flow, as a router sees it. */
static bool same_flow(const struct arrival *a, const struct arrival *b)
{
    return memcmp(a->bytes + IPV4_SOURCE, b->bytes + IPV4_SOURCE, 8) == 0 && a->bytes[9] == b->bytes[9] &&
           (a->bytes[0] & 0xf) == (b->bytes[0] & 0xf) && a->length >= 24 && b->length >= 24 &&
           memcmp(a->bytes + 20, b->bytes + 20, 4) == 0;
}

/* Finds the packet among the arrivals: the first unseen one of the same bytes (the id aside with DF, where it
 * means nothing: RFC 6864), with no earlier one of its flow unseen. */
static void account_for(uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < arrived; i++) {
        struct arrival *arrival = &arrivals[i];
        if (arrival->seen || arrival->length != length)
            continue;
        if (bytes[IPV4_FRAGMENT] & 0x40) { /* the id, and with it the header's checksum */
            memcpy(bytes + IPV4_ID, arrival->bytes + IPV4_ID, 2);
            write_u16(bytes + IPV4_CHECKSUM, 0);
            write_u16(bytes + IPV4_CHECKSUM, plain_checksum(bytes, 20));
        }
        if (memcmp(arrival->bytes, bytes, length) != 0)
            continue;
        for (size_t j = 0; j < i; j++)
            CHECK(arrivals[j].seen || !same_flow(&arrivals[j], arrival));
        arrival->seen = true;
        return;
    }
    check_failed(__FILE__, __LINE__, __func__, "a packet came out that never went in");
}

/* Cutting would not restore these flags, so packets with them must not be merged. */
static void check_may_merge(const uint8_t *merged, const struct bundle *bundle)
{
    const uint8_t *transport = merged + 20;
    CHECK(merged[0] == 0x45 && bundle->count <= COALESCE_SEGMENTS);
    CHECK_EQ(read_u16(merged + IPV4_FRAGMENT) & 0x3fff, 0);
    if (bundle->protocol == PROTOCOL_TCP)
        CHECK_EQ(transport[TCP_FLAGS] & ~TCP_PSH, TCP_FLAG_ACK);
    else
        CHECK_EQ(read_u16(transport + UDP_LENGTH), read_u16(merged + 2) - 20);
}

static void check_superpacket(const uint8_t *merged, size_t length, const struct virtio_net_hdr *vnet,
                              const struct bundle *bundle)
{
    struct packet packet;
    struct segmenter cut;
    CHECK_EQ(packet_parse(&packet, merged, length), PACKET_OK);
    CHECK_EQ(plain_checksum(merged, 20), 0);
    check_may_merge(merged, bundle);
    CHECK(vnet->flags == VIRTIO_NET_HDR_F_NEEDS_CSUM && vnet->csum_start == 20);
    CHECK_EQ(segment_begin(&cut, &packet, vnet), 0);
    CHECK_EQ(cut.count, bundle->count);
    CHECK_EQ(vnet->hdr_len, cut.headers);
    for (size_t i = 0; i < cut.count; i++) {
        static uint8_t segment[65536];
        struct iovec payload;
        segment_make(&cut, i, segment, &payload);
        memcpy(segment + cut.headers, payload.iov_base, payload.iov_len);
        account_for(segment, cut.headers + payload.iov_len);
    }
}

/* A single packet is written as it came, with an empty vnet header. */
static void check_single(const struct iovec *iov, const struct virtio_net_hdr *vnet)
{
    const uint8_t *bytes = iov->iov_base;
    for (size_t i = 0; i < arrived; i++) {
        if (arrivals[i].bytes != bytes)
            continue;
        CHECK(!arrivals[i].seen && iov->iov_len == arrivals[i].length);
        for (size_t j = 0; j < i; j++)
            CHECK(arrivals[j].seen || !same_flow(&arrivals[j], &arrivals[i]));
        arrivals[i].seen = true;
        CHECK_EQ(vnet->gso_type, VIRTIO_NET_HDR_GSO_NONE);
        CHECK_EQ(vnet->flags, 0);
        return;
    }
    check_failed(__FILE__, __LINE__, __func__, "a packet was written from elsewhere");
}

static void check_bundle(size_t index)
{
    static uint8_t merged[65536];
    const struct bundle *bundle = &coalescer.bundles[index];
    struct virtio_net_hdr vnet;
    uint8_t header[SEGMENT_HEADER_MAX];
    struct iovec iov[COALESCE_IOVECS];
    size_t count = coalesce_build(&coalescer, index, &vnet, header, iov), length = 0;
    CHECK(count >= 2 && count <= COALESCE_IOVECS);
    CHECK(iov[0].iov_base == &vnet && iov[0].iov_len == sizeof vnet);
    if (bundle->count == 1) {
        CHECK_EQ(count, 2);
        check_single(&iov[1], &vnet);
        return;
    }
    for (size_t i = 1; i < count; i++) {
        CHECK(length + iov[i].iov_len <= PACKET_MAX);
        memcpy(merged + length, iov[i].iov_base, iov[i].iov_len);
        length += iov[i].iov_len;
    }
    check_superpacket(merged, length, &vnet, bundle);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct flow flows[FLOWS] = {{0}};
    flows[0].sequence = UINT32_MAX - 1000; /* its numbers wrap */
    flows[4].id = UINT16_MAX - 3;
    coalescer.tcp = size == 0 || (data[0] & 0x80) == 0;
    coalescer.udp = size == 0 || (data[0] & 0x40) == 0;
    coalesce_reset(&coalescer);
    for (arrived = 0; size >= sizeof(struct step) && arrived < MOST; size -= sizeof(struct step)) {
        struct step step;
        memcpy(&step, data, sizeof step);
        data += sizeof step;
        step.flow %= FLOWS;
        arrive(&step, &flows[step.flow]);
    }
    CHECK_EQ(coalescer.packet_count, arrived);
    for (size_t i = 0; i < coalescer.bundle_count; i++)
        check_bundle(i);
    for (size_t i = 0; i < arrived; i++) {
        CHECK(arrivals[i].seen);
        free(arrivals[i].bytes);
    }
    return 0;
}

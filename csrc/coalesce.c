#include "coalesce.h"

#include <string.h>

#include "transport.h"
#include "tun_device.h"

enum { NO_OPTIONS = 0x45, TCP_OFFSET_RESERVED = 0x0f };

void coalesce_reset(struct coalescer *coalescer)
{
    coalescer->packet_count = coalescer->bundle_count = 0;
    memset(coalescer->open, 0, sizeof coalescer->open);
}

/* Whether both checksums are right. A merged packet gets new ones, which would hide damage. */
static bool checksums_are_good(const struct packet *packet)
{
    if (checksum_of(packet->bytes, packet->header_length) != 0)
        return false;
    const uint8_t *transport = packet->bytes + packet->header_length;
    size_t length = packet->length - packet->header_length;
    uint64_t sum = transport_pseudo_sum(packet->bytes, packet->protocol, length);
    return checksum_fold(checksum_add_payload(sum, transport, length)) == UINT16_MAX;
}

static bool udp_may_merge(const uint8_t *udp, size_t length)
{
    return read_u16(udp + UDP_LENGTH) == length && read_u16(udp + UDP_CHECKSUM) != 0;
}

/* Flags exactly ACK, or ACK and PSH. SYN, FIN, RST, URG, CWR, ECE and AccECN mean something in their own packet. */
static bool tcp_may_merge(const uint8_t *tcp)
{
    return (tcp[TCP_OFFSET] & TCP_OFFSET_RESERVED) == 0 &&
           (tcp[TCP_FLAGS] & ~TCP_PSH) == TCP_FLAG_ACK;
}

/* Whether the packet, with a transport header of this length, may be part of a superpacket. */
static bool may_merge(const struct coalescer *coalescer, const struct packet *packet, size_t header)
{
    const uint8_t *transport = packet->bytes + packet->header_length;
    size_t length = packet->length - packet->header_length;
    /* No flag but DF, not even the reserved one, as in the kernel's GRO; no fragment. */
    bool is_plain = (read_u16(packet->bytes + IPV4_FRAGMENT) & ~(unsigned)IPV4_DONT_FRAGMENT) == 0;
    if (packet->bytes[0] != NO_OPTIONS || !is_plain || header == length)
        return false;
    bool fits = packet->protocol == PROTOCOL_TCP ? coalescer->tcp && tcp_may_merge(transport)
                                                 : coalescer->udp && udp_may_merge(transport, length);
    return fits && checksums_are_good(packet);
}

/* ---- flows ---- */

static uint16_t *flow_set(struct coalescer *coalescer, const struct packet *packet)
{
    uint32_t hash = (packet->source ^ (packet->destination * 31)) * UINT32_C(2654435761);
    return coalescer->open[(hash >> 16) % COALESCE_SETS];
}

static bool same_flow(const struct coalescer *coalescer, const struct bundle *bundle,
                      const struct packet *packet)
{
    const uint8_t *first = coalescer->packets[bundle->first].bytes;
    return bundle->protocol == packet->protocol &&
           memcmp(first + IPV4_SOURCE, packet->bytes + IPV4_SOURCE, 8) == 0 &&
           memcmp(first + IPV4_MIN_HEADER, packet->bytes + packet->header_length, 4) == 0; /* ports */
}

/* Removes the entry at `way` from its set; those behind it move up. */
static void set_remove(uint16_t set[COALESCE_WAYS], size_t way)
{
    memmove(&set[way], &set[way + 1], (COALESCE_WAYS - way - 1) * sizeof *set);
    set[COALESCE_WAYS - 1] = 0;
}

/* Adds an open bundle to its set; the oldest one of a full set is closed. */
static void set_push(uint16_t set[COALESCE_WAYS], size_t bundle)
{
    memmove(&set[1], &set[0], (COALESCE_WAYS - 1) * sizeof *set);
    set[0] = (uint16_t)(bundle + 1);
}

/* The place of the flow's open bundle in its set, COALESCE_WAYS if it has none. */
static size_t find_open(const struct coalescer *coalescer, const uint16_t set[COALESCE_WAYS],
                        const struct packet *packet)
{
    size_t way = 0;
    while (way < COALESCE_WAYS && set[way] != 0 &&
           !same_flow(coalescer, &coalescer->bundles[set[way] - 1], packet))
        way++;
    return way < COALESCE_WAYS && set[way] != 0 ? way : COALESCE_WAYS;
}

/* ---- merging ---- */

/* Whether the IP headers differ only in what cutting restores. */
static bool ip_continues(const struct bundle *bundle, const uint8_t *first, const uint8_t *next)
{
    bool dont_fragment = (read_u16(first + IPV4_FRAGMENT) & IPV4_DONT_FRAGMENT) != 0;
    return first[IPV4_TOS] == next[IPV4_TOS] && first[IPV4_TTL] == next[IPV4_TTL] &&
           memcmp(first + IPV4_FRAGMENT, next + IPV4_FRAGMENT, 2) == 0 &&
           (dont_fragment || read_u16(next + IPV4_ID) == bundle->next_id);
}

static bool tcp_continues(const struct bundle *bundle, const uint8_t *first, const uint8_t *next,
                          size_t header)
{
    return !bundle->pushed && read_u32(next + TCP_SEQUENCE) == bundle->next_sequence &&
           memcmp(first + TCP_ACK, next + TCP_ACK, 4) == 0 && first[TCP_OFFSET] == next[TCP_OFFSET] &&
           memcmp(first + TCP_WINDOW, next + TCP_WINDOW, 2) == 0 &&
           memcmp(first + TCP_CHECKSUM + 2, next + TCP_CHECKSUM + 2, header - TCP_CHECKSUM - 2) == 0;
}

/* Whether the packet is the next one of the bundle. */
static bool continues(const struct coalescer *coalescer, const struct bundle *bundle,
                      const struct packet *packet, size_t headers)
{
    const uint8_t *first = coalescer->packets[bundle->first].bytes;
    size_t payload = packet->length - headers;
    if (bundle->headers != headers || bundle->count == COALESCE_SEGMENTS ||
        payload > bundle->payload_size || bundle->payload % bundle->payload_size != 0 ||
        headers + bundle->payload + payload > PACKET_MAX ||
        !ip_continues(bundle, first, packet->bytes))
        return false;
    return bundle->protocol == PROTOCOL_UDP ||
           tcp_continues(bundle, first + IPV4_MIN_HEADER, packet->bytes + IPV4_MIN_HEADER,
                         headers - IPV4_MIN_HEADER);
}

/* Notes what may follow the packet, which is now the bundle's last. */
static void note_last(struct bundle *bundle, const struct packet *packet, size_t headers)
{
    size_t payload = packet->length - headers;
    bundle->payload += (uint32_t)payload;
    bundle->next_id = (uint16_t)(read_u16(packet->bytes + IPV4_ID) + 1);
    if (bundle->protocol == PROTOCOL_TCP) {
        const uint8_t *tcp = packet->bytes + IPV4_MIN_HEADER;
        bundle->next_sequence = read_u32(tcp + TCP_SEQUENCE) + (uint32_t)payload;
        bundle->pushed = (tcp[TCP_FLAGS] & TCP_PSH) != 0;
    }
}

static void start_bundle(struct coalescer *coalescer, uint16_t index, const struct packet *packet,
                         size_t headers)
{
    struct bundle *bundle = &coalescer->bundles[coalescer->bundle_count++];
    *bundle = (struct bundle){
        .first = index,
        .last = index,
        .count = 1,
        .headers = (uint16_t)headers,
        .protocol = packet->protocol,
    };
    if (headers != 0) {
        bundle->payload_size = (uint16_t)(packet->length - headers);
        note_last(bundle, packet, headers);
    }
}

static void extend_bundle(struct coalescer *coalescer, struct bundle *bundle, uint16_t index,
                          const struct packet *packet)
{
    coalescer->packets[bundle->last].next = index;
    bundle->last = index;
    bundle->count++;
    note_last(bundle, packet, bundle->headers);
}

bool coalesce_add(struct coalescer *coalescer, const struct packet *packet)
{
    if (coalescer->packet_count == COALESCE_PACKETS)
        return false;
    uint16_t index = (uint16_t)coalescer->packet_count++;
    coalescer->packets[index] = (struct coalesced_packet){packet->bytes, (uint16_t)packet->length, 0};
    uint16_t *set = flow_set(coalescer, packet);
    size_t header = packet->is_fragment
                        ? 0
                        : transport_header_length(packet->protocol, packet->bytes + packet->header_length,
                                                  packet->length - packet->header_length);
    if (header == 0) {
        /* Its flow is not known: it closes all flows between the two addresses. */
        memset(set, 0, COALESCE_WAYS * sizeof *set);
        start_bundle(coalescer, index, packet, 0);
        return true;
    }
    size_t headers = may_merge(coalescer, packet, header) ? packet->header_length + header : 0;
    size_t way = find_open(coalescer, set, packet);
    if (way < COALESCE_WAYS) {
        struct bundle *bundle = &coalescer->bundles[set[way] - 1];
        if (headers != 0 && continues(coalescer, bundle, packet, headers)) {
            extend_bundle(coalescer, bundle, index, packet);
            return true;
        }
        set_remove(set, way);
    }
    if (headers != 0)
        set_push(set, coalescer->bundle_count);
    start_bundle(coalescer, index, packet, headers);
    return true;
}

/* ---- writing ---- */

/* The headers of a superpacket: the first packet's, with the lengths and flags of the whole and a partial checksum. */
static void merge_headers(const struct coalescer *coalescer, const struct bundle *bundle,
                          struct virtio_net_hdr *vnet, uint8_t header[SEGMENT_HEADER_MAX])
{
    size_t length = bundle->headers + bundle->payload;
    size_t transport_length = length - IPV4_MIN_HEADER;
    memcpy(header, coalescer->packets[bundle->first].bytes, bundle->headers);
    write_u16(header + IPV4_TOTAL_LENGTH, (uint16_t)length);
    transport_finish_ip(header, IPV4_MIN_HEADER);

    uint8_t *transport = header + IPV4_MIN_HEADER;
    if (bundle->protocol == PROTOCOL_UDP)
        write_u16(transport + UDP_LENGTH, (uint16_t)transport_length);
    else if (bundle->pushed)
        transport[TCP_FLAGS] |= TCP_PSH;
    /* NEEDS_CSUM: the field holds the sum of the pseudo header, and the kernel computes the rest for every segment. */
    uint16_t partial = checksum_fold(transport_pseudo_sum(header, bundle->protocol, transport_length));
    memcpy(transport + transport_checksum_offset(bundle->protocol), &partial, sizeof partial);

    *vnet = (struct virtio_net_hdr){
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = bundle->protocol == PROTOCOL_TCP ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4,
        .hdr_len = bundle->headers,
        .gso_size = bundle->payload_size,
        .csum_start = IPV4_MIN_HEADER,
        .csum_offset = (uint16_t)transport_checksum_offset(bundle->protocol),
    };
}

/* An iovec over bytes that are only read. */
static struct iovec iovec_of(const uint8_t *bytes, size_t length)
{
    return (struct iovec){(void *)(uintptr_t)bytes, length};
}

size_t coalesce_build(const struct coalescer *coalescer, size_t index, struct virtio_net_hdr *vnet,
                      uint8_t header[SEGMENT_HEADER_MAX], struct iovec iov[COALESCE_IOVECS])
{
    const struct bundle *bundle = &coalescer->bundles[index];
    const struct coalesced_packet *packet = &coalescer->packets[bundle->first];
    iov[0] = (struct iovec){vnet, sizeof *vnet};
    if (bundle->count == 1) {
        *vnet = (struct virtio_net_hdr){0};
        iov[1] = iovec_of(packet->bytes, packet->length);
        return 2;
    }
    merge_headers(coalescer, bundle, vnet, header);
    iov[1] = iovec_of(header, bundle->headers);
    size_t count = 2;
    for (;;) {
        iov[count++] = iovec_of(packet->bytes + bundle->headers, (size_t)packet->length - bundle->headers);
        if (packet == &coalescer->packets[bundle->last])
            return count;
        packet = &coalescer->packets[packet->next];
    }
}

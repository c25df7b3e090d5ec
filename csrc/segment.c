#include "segment.h"

#include <errno.h>
#include <string.h>

#include "transport.h"
#include "tun_device.h"

/* The protocol that the vnet header of a superpacket names, 0 for one that we do not cut. */
static uint8_t gso_protocol(const struct virtio_net_hdr *vnet)
{
    switch (vnet->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
        return PROTOCOL_TCP;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        return PROTOCOL_UDP;
    default:
        return 0;
    }
}

int segment_begin(struct segmenter *segmenter, const struct packet *packet,
                  const struct virtio_net_hdr *vnet)
{
    uint8_t protocol = gso_protocol(vnet);
    if (protocol == 0 || protocol != packet->protocol || vnet->gso_size == 0 || packet->is_fragment)
        return -EINVAL;
    /* The vnet header's hdr_len is only a hint; the packet itself says where its headers end. */
    size_t transport = transport_header_length(protocol, packet->bytes + packet->header_length,
                                               packet->length - packet->header_length);
    if (transport == 0)
        return -EINVAL;
    *segmenter = (struct segmenter){
        .bytes = packet->bytes,
        .ip_header = packet->header_length,
        .headers = packet->header_length + transport,
        .payload = packet->length - packet->header_length - transport,
        .payload_size = vnet->gso_size,
        .protocol = protocol,
    };
    segmenter->count = (segmenter->payload + segmenter->payload_size - 1) / segmenter->payload_size;
    return segmenter->count == 0 || segmenter->count > SEGMENT_COUNT_MAX ? -EINVAL : 0;
}

/* Corrects what differs from segment to segment in a TCP header. */
static void fix_tcp(uint8_t *tcp, size_t offset, bool first, bool last)
{
    write_u32(tcp + TCP_SEQUENCE, read_u32(tcp + TCP_SEQUENCE) + (uint32_t)offset);
    if (!last)
        tcp[TCP_FLAGS] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (!first)
        tcp[TCP_FLAGS] &= (uint8_t)~TCP_CWR; /* RFC 3168 6.1.2: it answers one ECE, once */
}

void segment_make(const struct segmenter *segmenter, size_t index, uint8_t header[SEGMENT_HEADER_MAX],
                  struct iovec *payload)
{
    size_t offset = index * segmenter->payload_size;
    bool last = index + 1 == segmenter->count;
    size_t length = last ? segmenter->payload - offset : segmenter->payload_size;
    size_t transport_length = segmenter->headers - segmenter->ip_header + length;
    /* A send only reads what its iovecs point to, whatever the type of iov_base. */
    payload->iov_base = (void *)(uintptr_t)(segmenter->bytes + segmenter->headers + offset);
    payload->iov_len = length;

    memcpy(header, segmenter->bytes, segmenter->headers);
    write_u16(header + IPV4_TOTAL_LENGTH, (uint16_t)(segmenter->headers + length));
    write_u16(header + IPV4_ID, (uint16_t)(read_u16(header + IPV4_ID) + index));
    transport_finish_ip(header, segmenter->ip_header);

    uint8_t *transport = header + segmenter->ip_header;
    if (segmenter->protocol == PROTOCOL_TCP)
        fix_tcp(transport, offset, index == 0, last);
    else
        write_u16(transport + UDP_LENGTH, (uint16_t)transport_length);
    uint8_t *checksum = transport + transport_checksum_offset(segmenter->protocol);
    write_u16(checksum, 0);
    uint64_t sum = transport_pseudo_sum(header, segmenter->protocol, transport_length);
    sum = checksum_add(sum, transport, segmenter->headers - segmenter->ip_header);
    sum = checksum_add_payload(sum, payload->iov_base, length);
    transport_store_checksum(checksum, segmenter->protocol, sum);
}

int segment_complete_checksum(uint8_t *bytes, const struct packet *packet, const struct virtio_net_hdr *vnet)
{
    size_t length = packet->length, start = vnet->csum_start, field = start + vnet->csum_offset;
    if (start < packet->header_length || start > length || field + 2 > length)
        return -EINVAL;
    /* The field holds the sum of the pseudo header, so adding it up with the rest completes the sum. */
    transport_store_checksum(bytes + field, packet->protocol, checksum_add_payload(0, bytes + start, length - start));
    return 0;
}

#include "packet.h"

enum packet_fault packet_parse(struct packet *packet, const uint8_t *bytes, size_t length)
{
    if (length == 0)
        return PACKET_NOT_IP;
    unsigned version = bytes[0] >> 4;
    if (version == 6)
        return PACKET_IPV6;
    if (version != 4)
        return PACKET_NOT_IP;
    size_t header_length = (size_t)(bytes[0] & 0xf) * 4;
    if (header_length < IPV4_MIN_HEADER || header_length > length)
        return PACKET_BAD_HEADER;
    if (read_u16(bytes + IPV4_TOTAL_LENGTH) != length)
        return PACKET_BAD_LENGTH;
    unsigned fragment = read_u16(bytes + IPV4_FRAGMENT);
    *packet = (struct packet){
        .bytes = bytes,
        .length = length,
        .header_length = header_length,
        .source = read_u32(bytes + IPV4_SOURCE),
        .destination = read_u32(bytes + IPV4_DESTINATION),
        .protocol = bytes[IPV4_PROTOCOL],
        .is_fragment = (fragment & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK)) != 0,
        .later_fragment = (fragment & IPV4_OFFSET_MASK) != 0,
    };
    return PACKET_OK;
}

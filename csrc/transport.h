/* transport.h - the headers of TCP (RFC 9293) and UDP (RFC 768): offsets of their fields, checksum. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "checksum.h"
#include "packet.h"

enum {
    TCP_SEQUENCE = 4, TCP_ACK = 8, TCP_OFFSET = 12, TCP_FLAGS = 13, TCP_WINDOW = 14, TCP_CHECKSUM = 16,
    TCP_MIN_HEADER = 20,
    TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_FLAG_ACK = 0x10, TCP_CWR = 0x80,

    UDP_LENGTH = 4, UDP_CHECKSUM = 6, UDP_HEADER = 8,
};

/* The sum of the pseudo header for the addresses at `ip` and `length` bytes of transport header and payload. */
static inline uint64_t transport_pseudo_sum(const uint8_t *ip, uint8_t protocol, size_t length)
{
    uint8_t tail[4] = {0, protocol};
    write_u16(tail + 2, (uint16_t)length);
    return checksum_add(checksum_add(0, ip + IPV4_SOURCE, 8), tail, sizeof tail);
}

/* The length of the transport header at `at`, of which `room` bytes exist; 0 if it is not complete. */
static inline size_t transport_header_length(uint8_t protocol, const uint8_t *at, size_t room)
{
    if (protocol == PROTOCOL_UDP)
        return room < UDP_HEADER ? 0 : UDP_HEADER;
    if (protocol != PROTOCOL_TCP || room < TCP_MIN_HEADER)
        return 0;
    size_t length = (size_t)(at[TCP_OFFSET] >> 4) * 4;
    return length < TCP_MIN_HEADER || length > room ? 0 : length;
}

static inline size_t transport_checksum_offset(uint8_t protocol)
{
    return protocol == PROTOCOL_TCP ? TCP_CHECKSUM : UDP_CHECKSUM;
}

/* Stores a complete sum as a checksum. A UDP checksum of zero means "none", so all ones are sent instead. */
static inline void transport_store_checksum(uint8_t *at, uint8_t protocol, uint64_t sum)
{
    uint16_t checksum = (uint16_t)~checksum_fold(sum);
    if (checksum == 0 && protocol == PROTOCOL_UDP)
        checksum = UINT16_MAX;
    memcpy(at, &checksum, sizeof checksum);
}

/* Recomputes the checksum of an IPv4 header. */
static inline void transport_finish_ip(uint8_t *ip, size_t header_length)
{
    write_u16(ip + IPV4_CHECKSUM, 0);
    uint16_t checksum = checksum_of(ip, header_length);
    memcpy(ip + IPV4_CHECKSUM, &checksum, sizeof checksum);
}

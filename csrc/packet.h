/* packet.h - one inner IPv4 packet (RFC 791), read byte by byte from a buffer of known length. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    IPV4_MIN_HEADER = 20, PACKET_MAX = 65535,

    /* offsets of the header fields */
    IPV4_TOS = 1, IPV4_TOTAL_LENGTH = 2, IPV4_ID = 4, IPV4_FRAGMENT = 6, IPV4_TTL = 8, IPV4_PROTOCOL = 9,
    IPV4_CHECKSUM = 10, IPV4_SOURCE = 12, IPV4_DESTINATION = 16,
    IPV4_DONT_FRAGMENT = 0x4000, IPV4_MORE_FRAGMENTS = 0x2000, IPV4_OFFSET_MASK = 0x1fff,

    PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17,
};

enum packet_fault {
    PACKET_OK,
    PACKET_NOT_IP,       /* empty, or a version that is neither 4 nor 6 */
    PACKET_IPV6,         /* the overlay carries IPv4 */
    PACKET_BAD_HEADER,   /* header length below 20 or beyond the buffer */
    PACKET_BAD_LENGTH,   /* total length unequal to the buffer's */
};

struct packet {
    const uint8_t *bytes;
    size_t length;
    size_t header_length; /* 20..60, within length */
    uint32_t source;      /* host byte order, like destination */
    uint32_t destination;
    uint8_t protocol;
    bool is_fragment;    /* the first fragment or a later one */
    bool later_fragment; /* not the first: it has no transport header */
};

static inline uint16_t read_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t read_u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void write_u16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline void write_u32(uint8_t *at, uint32_t value)
{
    write_u16(at, (uint16_t)(value >> 16));
    write_u16(at + 2, (uint16_t)value);
}

/* Fills *packet from a buffer that must hold exactly one packet. After a fault *packet is undefined. */
enum packet_fault packet_parse(struct packet *packet, const uint8_t *bytes, size_t length);

/* Class E, 240.0.0.0/4. Linux allows its use as unicast addresses; RFC 1122 does not. */
static inline bool address_is_reserved(uint32_t address)
{
    return address >> 28 == 0xf;
}

/* An address that one host may have (RFC 1122 3.2.1.3): not this-network, loopback, multicast or broadcast. */
static inline bool address_is_unicast(uint32_t address)
{
    return address >> 24 != 0 && address >> 24 != 127 && address >> 28 != 0xe && address != UINT32_MAX;
}

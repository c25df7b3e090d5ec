/* packets.h - IPv4 packets for the tests, built and summed independently of the code under test. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* An address from its dotted form, host byte order. */
uint32_t address(const char *dotted);

/* The internet checksum, one byte after another (RFC 1071). 0 for bytes that hold their own right checksum. */
uint16_t plain_checksum(const uint8_t *bytes, size_t length);

/* The same for a packet's transport header and payload, with the pseudo header. */
uint16_t plain_transport_checksum(const uint8_t *packet, size_t length);

/* Gives a TCP or UDP packet its total length and right checksums. */
void packet_finish(uint8_t *packet, size_t length);

struct packet_form {
    uint32_t source, destination; /* host byte order */
    uint8_t protocol;
    size_t header_length; /* 20..60; options are no-operations. 0: 20 */
    size_t payload_length;
    uint16_t fragment; /* flags and offset */
};

/* Writes the packet with its payload zeroed. Its length: header and payload. */
size_t packet_build(uint8_t *bytes, const struct packet_form *form);

/* Writes a UDP packet with `length` bytes of payload and no UDP checksum. Its length. */
size_t packet_build_udp(uint8_t *bytes, uint32_t source, uint32_t destination, uint16_t port, const void *payload,
                        size_t length);

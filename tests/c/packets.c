#include "packets.h"

#include <arpa/inet.h>
#include <string.h>

#include "check.h"

enum { MIN_HEADER = 20, UDP_HEADER = 8, UDP = 17, NO_OPERATION = 1 };

static void put16(uint8_t *at, size_t value)
{
    at[0] = (uint8_t)(value >> 8 & 0xff);
    at[1] = (uint8_t)(value & 0xff);
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

uint32_t address(const char *dotted)
{
    struct in_addr parsed;
    CHECK_EQ(inet_pton(AF_INET, dotted, &parsed), 1);
    return ntohl(parsed.s_addr);
}

static uint64_t plain_sum(const uint8_t *bytes, size_t length)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum += i % 2 == 0 ? (uint64_t)bytes[i] << 8 : bytes[i];
    return sum;
}

static uint16_t complement(uint64_t sum)
{
    while (sum > 0xffff)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)(0xffff - sum);
}

uint16_t plain_checksum(const uint8_t *bytes, size_t length)
{
    return complement(plain_sum(bytes, length));
}

uint16_t plain_transport_checksum(const uint8_t *packet, size_t length)
{
    size_t header = (size_t)(packet[0] & 0xf) * 4;
    uint64_t pseudo = plain_sum(packet + 12, 8) + packet[9] + (length - header);
    return complement(pseudo + plain_sum(packet + header, length - header));
}

void packet_finish(uint8_t *packet, size_t length)
{
    size_t header = (size_t)(packet[0] & 0xf) * 4;
    uint8_t *transport = packet + header, *field = transport + (packet[9] == UDP ? 6 : 16);
    put16(packet + 2, length);
    put16(packet + 10, 0);
    put16(packet + 10, plain_checksum(packet, header));
    put16(field, 0);
    uint16_t checksum = plain_transport_checksum(packet, length);
    put16(field, checksum == 0 && packet[9] == UDP ? 0xffff : checksum);
}

size_t packet_build(uint8_t *bytes, const struct packet_form *form)
{
    size_t header = form->header_length == 0 ? MIN_HEADER : form->header_length;
    size_t length = header + form->payload_length;
    memset(bytes, 0, length);
    bytes[0] = (uint8_t)(0x40 | header / 4);
    put16(bytes + 2, length);
    put16(bytes + 6, form->fragment);
    bytes[8] = 64;
    bytes[9] = form->protocol;
    put32(bytes + 12, form->source);
    put32(bytes + 16, form->destination);
    memset(bytes + MIN_HEADER, NO_OPERATION, header - MIN_HEADER);
    put16(bytes + 10, plain_checksum(bytes, header));
    return length;
}

size_t packet_build_udp(uint8_t *bytes, uint32_t source, uint32_t destination, uint16_t port, const void *payload,
                        size_t length)
{
    size_t total = packet_build(bytes, &(struct packet_form){.source = source,
                                                             .destination = destination,
                                                             .protocol = UDP,
                                                             .payload_length = UDP_HEADER + length});
    uint8_t *udp = bytes + MIN_HEADER;
    put16(udp, port);
    put16(udp + 2, port);
    put16(udp + 4, UDP_HEADER + length);
    memcpy(udp + UDP_HEADER, payload, length);
    return total;
}

#include "icmp.h"

#include <string.h>

#include "transport.h"

enum {
    ICMP_TYPE = 0, ICMP_CODE = 1, ICMP_CHECKSUM = 2, ICMP_HEADER = 8,
    TYPE_UNREACHABLE = 3, CODE_NETWORK = 0,
};

/* The types that report an error. Any other type, also an unknown one, may be answered by one (RFC 1122 3.2.2). */
static bool is_error_type(uint8_t type)
{
    /* destination unreachable, source quench, redirect; time exceeded, parameter problem */
    return (type >= 3 && type <= 5) || type == 11 || type == 12;
}

bool icmp_may_answer(const struct packet *packet)
{
    if (packet->later_fragment || !address_is_unicast(packet->source) ||
        address_is_reserved(packet->source) || !address_is_unicast(packet->destination))
        return false;
    if (packet->protocol != PROTOCOL_ICMP)
        return true;
    /* A packet that ends before its ICMP type might be an error, so it gets no answer. */
    return packet->length > packet->header_length && !is_error_type(packet->bytes[packet->header_length]);
}

bool icmp_allow(struct icmp_limits *limits, uint32_t source, uint64_t now_ns)
{
    /* Its own limit comes first: what that refuses takes nothing from the others. */
    struct limiter *own = &limits->sources[source % ICMP_SOURCES];
    return limiter_take(own, ICMP_SOURCE_RATE, ICMP_SOURCE_BURST, 1, now_ns) &&
           limiter_take(&limits->all, ICMP_RATE, ICMP_BURST, 1, now_ns);
}

size_t icmp_net_unreachable(uint8_t reply[ICMP_REPLY_MAX], uint32_t source, const struct packet *packet)
{
    size_t quoted = ICMP_REPLY_MAX - IPV4_MIN_HEADER - ICMP_HEADER;
    if (quoted > packet->length)
        quoted = packet->length;
    size_t length = IPV4_MIN_HEADER + ICMP_HEADER + quoted;

    memset(reply, 0, IPV4_MIN_HEADER + ICMP_HEADER);
    reply[0] = 0x45; /* IPv4 without options */
    reply[IPV4_TOS] = 0xc0; /* precedence internetwork control (RFC 1812 4.3.2.5) */
    write_u16(reply + IPV4_TOTAL_LENGTH, (uint16_t)length);
    reply[IPV4_TTL] = 64;
    reply[IPV4_PROTOCOL] = PROTOCOL_ICMP;
    write_u32(reply + IPV4_SOURCE, source);
    write_u32(reply + IPV4_DESTINATION, packet->source);
    transport_finish_ip(reply, IPV4_MIN_HEADER);

    uint8_t *icmp = reply + IPV4_MIN_HEADER;
    icmp[ICMP_TYPE] = TYPE_UNREACHABLE;
    icmp[ICMP_CODE] = CODE_NETWORK;
    memcpy(icmp + ICMP_HEADER, packet->bytes, quoted);
    uint16_t sum = checksum_of(icmp, ICMP_HEADER + quoted);
    memcpy(icmp + ICMP_CHECKSUM, &sum, sizeof sum);
    return length;
}

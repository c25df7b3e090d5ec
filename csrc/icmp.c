#include "icmp.h"

#include <string.h>

#include "transport.h"

enum { ICMP_HEADER = 8, TYPE_UNREACHABLE = 3, CODE_NETWORK = 0 };

/* The types that report an error; of all others, and of unknown ones, an error may be sent (RFC 1122 3.2.2). */
static bool is_error_type(uint8_t type)
{
    switch (type) {
    case 3:  /* destination unreachable */
    case 4:  /* source quench */
    case 5:  /* redirect */
    case 11: /* time exceeded */
    case 12: /* parameter problem */
        return true;
    default:
        return false;
    }
}

bool icmp_may_answer(const struct packet *packet)
{
    if (packet->later_fragment || !address_is_unicast(packet->source) ||
        address_is_reserved(packet->source) || !address_is_unicast(packet->destination))
        return false;
    if (packet->protocol != PROTOCOL_ICMP)
        return true;
    /* Cut off before its type: it might be an error, so it gets no answer. */
    return packet->length > packet->header_length && !is_error_type(packet->bytes[packet->header_length]);
}

size_t icmp_net_unreachable(uint8_t reply[ICMP_REPLY_MAX], uint32_t source, const struct packet *packet)
{
    size_t quoted = ICMP_REPLY_MAX - IPV4_MIN_HEADER - ICMP_HEADER;
    if (quoted > packet->length)
        quoted = packet->length;
    size_t length = IPV4_MIN_HEADER + ICMP_HEADER + quoted;

    memset(reply, 0, IPV4_MIN_HEADER + ICMP_HEADER);
    reply[0] = 0x45;
    reply[1] = 0xc0; /* precedence internetwork control (RFC 1812 4.3.2.5) */
    write_u16(reply + 2, (uint16_t)length);
    reply[8] = 64;
    reply[9] = PROTOCOL_ICMP;
    write_u32(reply + 12, source);
    write_u32(reply + 16, packet->source);
    uint16_t sum = checksum_of(reply, IPV4_MIN_HEADER);
    memcpy(reply + 10, &sum, sizeof sum);

    uint8_t *icmp = reply + IPV4_MIN_HEADER;
    icmp[0] = TYPE_UNREACHABLE;
    icmp[1] = CODE_NETWORK;
    memcpy(icmp + ICMP_HEADER, packet->bytes, quoted);
    sum = checksum_of(icmp, ICMP_HEADER + quoted);
    memcpy(icmp + 2, &sum, sizeof sum);
    return length;
}

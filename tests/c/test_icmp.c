/* The unreachable replies: form, what is never answered (RFC 1122 3.2.2); and the checksum. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "checksum.h"
#include "icmp.h"
#include "oracle.h"
#include "packets.h"

enum { ICMP = 1, UDP = 17 };

static struct packet parsed(const uint8_t *bytes, size_t length)
{
    struct packet packet;
    CHECK_EQ(packet_parse(&packet, bytes, length), PACKET_OK);
    return packet;
}

/* Both buffers are exactly as long as they say, for ASan to see. */
static void check_reply(const uint8_t *bytes, size_t length)
{
    uint8_t *exact = malloc(length), *reply = malloc(ICMP_REPLY_MAX);
    CHECK(exact != NULL && reply != NULL);
    memcpy(exact, bytes, length);
    memset(reply, 0xaa, ICMP_REPLY_MAX);
    struct packet packet = parsed(exact, length);
    size_t size = icmp_net_unreachable(reply, address("10.1.5.0"), &packet);
    size_t quoted = length < 548 ? length : 548;
    CHECK_EQ(size, 28 + quoted);

    struct packet answer = parsed(reply, size);
    CHECK_EQ(answer.header_length, 20);
    CHECK_EQ(answer.protocol, ICMP);
    CHECK_EQ(answer.source, address("10.1.5.0"));
    CHECK_EQ(answer.destination, packet.source);
    CHECK(!answer.later_fragment);
    CHECK_EQ(plain_checksum(reply, 20), 0);
    CHECK_EQ(plain_checksum(reply + 20, size - 20), 0);
    CHECK_EQ(reply[20], 3);
    CHECK_EQ(reply[21], 0);
    CHECK(memcmp(reply + 24, "\0\0\0\0", 4) == 0);
    CHECK(memcmp(reply + 28, exact, quoted) == 0);
    CHECK(!icmp_may_answer(&answer)); /* or two hosts would answer each other for ever */
    for (size_t i = size; i < ICMP_REPLY_MAX; i++)
        CHECK_EQ(reply[i], 0xaa);
    free(exact);
    free(reply);
}

static void a_reply_quotes_as_much_as_fits_576_bytes(void)
{
    uint64_t seed = 1;
    uint8_t *bytes = malloc(PACKET_MAX);
    CHECK(bytes != NULL);
    for (size_t header = 20; header <= 60; header += 4) {
        for (size_t payload = 0; payload <= PACKET_MAX - header; payload += payload < 600 ? 1 : 7919) {
            size_t length = packet_build(bytes, &(struct packet_form){.source = address("10.1.5.2"),
                                                                      .destination = address("10.1.9.9"),
                                                                      .protocol = UDP,
                                                                      .header_length = header,
                                                                      .payload_length = payload});
            for (size_t i = header; i < length && i < 600; i++)
                bytes[i] = (uint8_t)oracle_random(&seed);
            check_reply(bytes, length);
        }
    }
    free(bytes);
}

static bool may_answer(struct packet_form form, int icmp_type)
{
    uint8_t bytes[128];
    form.protocol = icmp_type < 0 ? UDP : ICMP;
    form.source = form.source == 0 ? address("10.1.5.2") : form.source;
    form.destination = form.destination == 0 ? address("10.1.9.9") : form.destination;
    size_t length = packet_build(bytes, &form);
    if (form.payload_length != 0 && icmp_type >= 0)
        bytes[length - form.payload_length] = (uint8_t)icmp_type;
    uint8_t *exact = malloc(length);
    CHECK(exact != NULL);
    memcpy(exact, bytes, length);
    struct packet packet = parsed(exact, length);
    bool may = icmp_may_answer(&packet);
    free(exact);
    return may;
}

static void every_icmp_error_type_stays_unanswered_with_any_header_length(void)
{
    for (size_t header = 20; header <= 60; header += 4) {
        for (int type = 0; type < 256; type++) {
            bool is_error = type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
            struct packet_form form = {.header_length = header, .payload_length = 1};
            CHECK_EQ(may_answer(form, type), !is_error);
        }
        /* The type itself is cut off. */
        CHECK(!may_answer((struct packet_form){.header_length = header}, 8));
        CHECK(may_answer((struct packet_form){.header_length = header}, -1));
    }
}

static void later_fragments_and_addresses_of_no_single_host_stay_unanswered(void)
{
    struct packet_form form = {.payload_length = 8};
    CHECK(may_answer(form, -1));
    form.fragment = 0x2000; /* the first fragment of many */
    CHECK(may_answer(form, -1));
    form.fragment = 0x2001;
    CHECK(!may_answer(form, -1));
    static const char *const many[] = {"0.0.0.1", "127.0.0.1", "224.0.0.1", "239.255.255.255", "255.255.255.255"};
    for (size_t i = 0; i < 5; i++) {
        CHECK(!may_answer((struct packet_form){.source = address(many[i])}, -1));
        CHECK(!may_answer((struct packet_form){.destination = address(many[i])}, -1));
    }
    CHECK(!may_answer((struct packet_form){.source = address("240.0.0.1")}, -1)); /* class E: RFC 1122 3.2.2 */
    CHECK(may_answer((struct packet_form){.destination = address("240.0.0.1")}, -1));
}

static void the_checksum_is_the_plain_one(void)
{
    uint64_t seed = 9;
    uint8_t *bytes = malloc(70000);
    CHECK(bytes != NULL);
    for (size_t length = 0; length < 70000; length += length < 300 ? 1 : 6971) {
        for (size_t offset = 0; offset < 4; offset++) {
            for (size_t i = 0; i < length; i++)
                bytes[i] = length % 3 == 0 ? 0xff : (uint8_t)oracle_random(&seed);
            uint8_t *exact = malloc(length + offset + 1);
            CHECK(exact != NULL);
            memcpy(exact + offset, bytes, length);
            uint16_t sum = checksum_of(exact + offset, length);
            uint8_t stored[2];
            memcpy(stored, &sum, 2);
            CHECK_EQ(stored[0] << 8 | stored[1], plain_checksum(bytes, length));
            free(exact);
        }
    }
    free(bytes);
}

enum { SECOND = 1000000000 };

static struct icmp_limits limits;

static void a_source_that_asks_all_the_time_takes_nothing_from_the_others(void)
{
    uint64_t now = SECOND;
    size_t answered = 0;
    limits = (struct icmp_limits){0};
    for (size_t ms = 0; ms < 1000; ms++, now += SECOND / 1000) {
        for (size_t i = 0; i < 100; i++)
            answered += icmp_allow(&limits, address("10.1.5.2"), now);
        if (ms % 20 == 0)
            CHECK(icmp_allow(&limits, address("10.1.5.3"), now));
    }
    CHECK(answered >= ICMP_SOURCE_RATE && answered <= ICMP_SOURCE_RATE + ICMP_SOURCE_BURST);
}

static void all_sources_together_have_a_limit(void)
{
    uint64_t now = SECOND;
    size_t answered = 0;
    limits = (struct icmp_limits){0};
    for (size_t ms = 0; ms < 1000; ms++, now += SECOND / 1000) {
        for (uint32_t i = 0; i < ICMP_SOURCES; i++)
            answered += icmp_allow(&limits, address("10.1.4.0") + i, now);
    }
    CHECK(answered >= ICMP_RATE - 1 && answered <= ICMP_RATE + ICMP_BURST);
}

int main(void)
{
    RUN(a_reply_quotes_as_much_as_fits_576_bytes);
    RUN(every_icmp_error_type_stays_unanswered_with_any_header_length);
    RUN(later_fragments_and_addresses_of_no_single_host_stay_unanswered);
    RUN(the_checksum_is_the_plain_one);
    RUN(a_source_that_asks_all_the_time_takes_nothing_from_the_others);
    RUN(all_sources_together_have_a_limit);
}

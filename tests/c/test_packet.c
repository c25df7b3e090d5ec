/* packet_parse on every truncation, length and first byte; buffers are as long as they say, for ASan to see. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "packet.h"
#include "packets.h"

static enum packet_fault parse(struct packet *packet, const uint8_t *bytes, size_t length, uint8_t **copy)
{
    *copy = malloc(length == 0 ? 1 : length);
    CHECK(*copy != NULL);
    memcpy(*copy, bytes, length);
    return packet_parse(packet, *copy, length);
}

static enum packet_fault fault_of(const uint8_t *bytes, size_t length)
{
    struct packet packet;
    uint8_t *copy;
    enum packet_fault fault = parse(&packet, bytes, length, &copy);
    free(copy);
    return fault;
}

static void every_field_of_a_packet_is_read(void)
{
    uint8_t bytes[128];
    for (size_t header = 20; header <= 60; header += 4) {
        struct packet_form form = {.source = address("10.1.6.2"),
                                   .destination = address("255.254.253.252"),
                                   .protocol = 200,
                                   .header_length = header,
                                   .payload_length = 33};
        size_t length = packet_build(bytes, &form);
        struct packet packet;
        uint8_t *copy;
        CHECK_EQ(parse(&packet, bytes, length, &copy), PACKET_OK);
        CHECK(packet.bytes == copy);
        CHECK_EQ(packet.length, length);
        CHECK_EQ(packet.header_length, header);
        CHECK_EQ(packet.source, form.source);
        CHECK_EQ(packet.destination, form.destination);
        CHECK_EQ(packet.protocol, 200);
        CHECK(!packet.later_fragment);
        free(copy);
    }
}

static void every_truncation_is_refused(void)
{
    uint8_t bytes[128];
    for (size_t header = 20; header <= 60; header += 4) {
        size_t length = packet_build(bytes, &(struct packet_form){.header_length = header, .payload_length = 10});
        for (size_t cut = 0; cut < length; cut++) {
            enum packet_fault expected = cut == 0       ? PACKET_NOT_IP
                                         : cut < header ? PACKET_BAD_HEADER
                                                        : PACKET_BAD_LENGTH;
            CHECK_EQ(fault_of(bytes, cut), expected);
        }
        CHECK_EQ(fault_of(bytes, length), PACKET_OK);
        CHECK_EQ(fault_of(bytes, length + 1), PACKET_BAD_LENGTH);
    }
}

static void every_version_and_header_length_is_accepted_or_refused(void)
{
    uint8_t bytes[60];
    for (unsigned first = 0; first < 256; first++) {
        packet_build(bytes, &(struct packet_form){.header_length = 60});
        bytes[0] = (uint8_t)first;
        enum packet_fault expected = first >> 4 == 6          ? PACKET_IPV6
                                     : first >> 4 != 4        ? PACKET_NOT_IP
                                     : (first & 15) * 4 < 20 ? PACKET_BAD_HEADER
                                                              : PACKET_OK;
        CHECK_EQ(fault_of(bytes, 60), expected);
        CHECK_EQ(fault_of(bytes, 1), expected == PACKET_OK ? PACKET_BAD_HEADER : expected);
    }
}

static void the_total_length_must_equal_the_buffer_length(void)
{
    uint8_t *bytes = calloc(1, PACKET_MAX + 2);
    CHECK(bytes != NULL);
    for (size_t length = 20; length <= PACKET_MAX; length += length < 300 ? 1 : 977) {
        packet_build(bytes, &(struct packet_form){.payload_length = length - 20});
        CHECK_EQ(fault_of(bytes, length), PACKET_OK);
        CHECK_EQ(fault_of(bytes, length + 1), PACKET_BAD_LENGTH);
        if (length > 20)
            CHECK_EQ(fault_of(bytes, length - 1), PACKET_BAD_LENGTH);
    }
    packet_build(bytes, &(struct packet_form){.payload_length = PACKET_MAX - 20});
    CHECK_EQ(fault_of(bytes, PACKET_MAX), PACKET_OK);
    /* 65536 is 0 in sixteen bits: it must not pass for a total length of 0. */
    bytes[2] = bytes[3] = 0;
    CHECK_EQ(fault_of(bytes, PACKET_MAX + 1), PACKET_BAD_LENGTH);
    free(bytes);
}

static void an_offset_or_the_mf_flag_makes_a_fragment_and_an_offset_a_later_one(void)
{
    uint8_t bytes[20];
    struct {
        uint16_t fragment;
        bool is_fragment, is_later;
    } cases[] = {{0, false, false},     {0x8000, false, false}, {0x4000, false, false}, {0x2000, true, false},
                 {0xe000, true, false}, {1, true, true},        {0x2001, true, true},   {0x1fff, true, true},
                 {0x0100, true, true},  {0x5000, true, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct packet packet;
        uint8_t *copy;
        size_t length = packet_build(bytes, &(struct packet_form){.fragment = cases[i].fragment});
        CHECK_EQ(parse(&packet, bytes, length, &copy), PACKET_OK);
        CHECK_EQ(packet.is_fragment, cases[i].is_fragment);
        CHECK_EQ(packet.later_fragment, cases[i].is_later);
        free(copy);
    }
}

static void unicast_is_what_one_host_may_answer_to(void)
{
    static const char *const good[] = {"1.0.0.0",         "10.1.5.0",        "126.255.255.255", "128.0.0.0",
                                       "223.255.255.255", "240.0.0.0",       "255.255.255.254"};
    static const char *const bad[] = {"0.0.0.0",   "0.255.255.255",   "127.0.0.0",      "127.255.255.255",
                                      "224.0.0.0", "239.255.255.255", "255.255.255.255"};
    for (size_t i = 0; i < 7; i++) {
        CHECK(address_is_unicast(address(good[i])));
        CHECK(!address_is_unicast(address(bad[i])));
    }
}

int main(void)
{
    RUN(every_field_of_a_packet_is_read);
    RUN(every_truncation_is_refused);
    RUN(every_version_and_header_length_is_accepted_or_refused);
    RUN(the_total_length_must_equal_the_buffer_length);
    RUN(an_offset_or_the_mf_flag_makes_a_fragment_and_an_offset_a_later_one);
    RUN(unicast_is_what_one_host_may_answer_to);
}

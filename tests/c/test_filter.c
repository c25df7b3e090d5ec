/* The filter: every reason it gives, and the cases next to it that pass. */
#include "check.h"
#include "filter.h"
#include "packets.h"

static struct route_table *routes;
static struct peer_table *peers;
static struct route_table *addresses;
static struct filter_identity own;

static void lease(const char *subnet, uint8_t length, const char *public_ip)
{
    uint32_t slot, previous;
    CHECK_EQ(peer_table_acquire(peers, address(public_ip), &slot), 0);
    CHECK_EQ(route_table_insert(routes, address(subnet), length, slot, &previous), 0);
}

static void set_up(void)
{
    CHECK_EQ(route_table_create(&routes), 0);
    CHECK_EQ(peer_table_create(&peers), 0);
    CHECK_EQ(route_table_create(&addresses), 0);
    uint32_t previous;
    CHECK_EQ(route_table_insert(addresses, address("192.168.9.1"), 32, 0, &previous), 0);
    own = (struct filter_identity){.network = address("10.1.0.0"),
                                   .network_mask = address("255.255.0.0"),
                                   .subnet = address("10.1.5.0"),
                                   .subnet_mask = address("255.255.255.0"),
                                   .public_ip = address("172.30.0.1"),
                                   .addresses = addresses,
                                   .check_source = true};
    lease("10.1.6.0", 24, "172.30.0.6");
    lease("10.1.7.0", 24, "172.30.0.7");
    lease("10.1.7.128", 25, "172.30.0.6");
}

static void tear_down(void)
{
    route_table_free(routes);
    peer_table_free(peers);
    route_table_free(addresses);
}

static enum drop_reason outbound(const char *destination, const char *expected_peer)
{
    struct packet packet = {.source = address("10.1.5.2"), .destination = address(destination)};
    struct peer *peer = NULL;
    enum drop_reason drop = filter_outbound(&own, routes, peers, &packet, &peer);
    CHECK_EQ(drop == DROP_NONE, expected_peer != NULL);
    CHECK(expected_peer == NULL || peer->address == address(expected_peer));
    return drop;
}

static enum drop_reason inbound(const char *outer, const char *source, const char *destination)
{
    struct packet packet = {.source = address(source), .destination = address(destination)};
    struct peer *peer = NULL;
    enum drop_reason drop = filter_inbound(&own, routes, peers, &packet, address(outer), &peer);
    CHECK(peer == peer_table_find(peers, address(outer)));
    return drop;
}

static void a_packet_for_a_lease_leaves_for_its_host(void)
{
    CHECK_EQ(outbound("10.1.6.0", "172.30.0.6"), DROP_NONE);
    CHECK_EQ(outbound("10.1.6.255", "172.30.0.6"), DROP_NONE);
    CHECK_EQ(outbound("10.1.7.127", "172.30.0.7"), DROP_NONE);
    CHECK_EQ(outbound("10.1.7.128", "172.30.0.6"), DROP_NONE);
}

static void a_packet_without_a_route_or_not_for_one_host_is_dropped(void)
{
    CHECK_EQ(outbound("10.1.8.1", NULL), DROP_TUN_NO_ROUTE);
    CHECK_EQ(outbound("8.8.8.8", NULL), DROP_TUN_NO_ROUTE);
    CHECK_EQ(outbound("172.30.0.6", NULL), DROP_TUN_NO_ROUTE);
    static const char *const not_unicast[] = {"224.0.0.1", "239.1.1.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"};
    for (size_t i = 0; i < 5; i++)
        CHECK_EQ(outbound(not_unicast[i], NULL), DROP_TUN_NOT_UNICAST);
}

static void our_own_subnet_never_leaves_whatever_leases_say(void)
{
    lease("10.1.0.0", 16, "172.30.0.9");
    lease("10.1.5.0", 24, "172.30.0.9");
    lease("10.1.5.7", 32, "172.30.0.9");
    CHECK_EQ(outbound("10.1.5.0", NULL), DROP_TUN_NO_ROUTE);
    CHECK_EQ(outbound("10.1.5.7", NULL), DROP_TUN_NO_ROUTE);
    CHECK_EQ(outbound("10.1.5.255", NULL), DROP_TUN_NO_ROUTE);
    CHECK_EQ(outbound("10.1.4.255", "172.30.0.9"), DROP_NONE);
}

static void the_default_route_does_not_make_multicast_leave(void)
{
    lease("0.0.0.0", 0, "172.30.0.9");
    CHECK_EQ(outbound("8.8.8.8", "172.30.0.9"), DROP_NONE);
    CHECK_EQ(outbound("224.0.0.1", NULL), DROP_TUN_NOT_UNICAST);
    CHECK_EQ(outbound("127.0.0.1", NULL), DROP_TUN_NOT_UNICAST);
}

static void a_source_in_a_lease_of_the_peer_or_outside_the_network_passes(void)
{
    CHECK_EQ(inbound("172.30.0.6", "10.1.6.2", "10.1.5.2"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.6", "10.1.6.0", "10.1.5.0"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.6", "10.1.7.128", "10.1.5.255"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.7", "192.168.1.1", "10.1.5.2"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.7", "172.30.0.7", "10.1.5.2"), DROP_NONE);
}

static void an_outer_source_that_is_no_peer_is_dropped(void)
{
    CHECK_EQ(inbound("172.30.0.66", "10.1.6.2", "10.1.5.2"), DROP_UDP_UNKNOWN_PEER);
    CHECK_EQ(inbound("172.30.0.66", "192.168.1.1", "10.1.5.2"), DROP_UDP_UNKNOWN_PEER);
    CHECK_EQ(inbound("172.30.0.1", "10.1.6.2", "10.1.5.2"), DROP_UDP_UNKNOWN_PEER);
    CHECK_EQ(inbound("0.0.0.0", "10.1.6.2", "10.1.5.2"), DROP_UDP_UNKNOWN_PEER);
}

static void a_source_that_another_peer_or_no_peer_leases_is_dropped(void)
{
    CHECK_EQ(inbound("172.30.0.6", "10.1.7.127", "10.1.5.2"), DROP_UDP_SPOOFED_SOURCE);
    CHECK_EQ(inbound("172.30.0.7", "10.1.7.128", "10.1.5.2"), DROP_UDP_SPOOFED_SOURCE);
    CHECK_EQ(inbound("172.30.0.6", "10.1.99.1", "10.1.5.2"), DROP_UDP_SPOOFED_SOURCE);
    CHECK_EQ(inbound("172.30.0.6", "10.1.255.255", "10.1.5.2"), DROP_UDP_SPOOFED_SOURCE);
}

static const char *const martians[] = {"127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0",
                                       "172.30.0.1", "192.168.9.1", "10.1.5.0", "10.1.5.255"};

static void a_martian_source_is_refused(void)
{
    for (size_t i = 0; i < sizeof martians / sizeof *martians; i++)
        CHECK_EQ(inbound("172.30.0.6", martians[i], "10.1.5.2"), DROP_UDP_MARTIAN_SOURCE);
}

static void only_our_subnet_is_a_destination(void)
{
    static const char *const wrong[] = {"172.30.0.1", "10.1.4.255",      "10.1.6.0",       "8.8.8.8",
                                        "127.0.0.1",  "255.255.255.255", "224.0.0.1",      "0.0.0.0"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_EQ(inbound("172.30.0.6", "10.1.6.2", wrong[i]), DROP_UDP_WRONG_DESTINATION);
}

static void without_the_source_check_any_outer_source_passes_but_no_martian(void)
{
    own.check_source = false;
    CHECK_EQ(inbound("172.30.0.66", "10.1.6.2", "10.1.5.2"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.6", "10.1.7.2", "10.1.5.2"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.66", "10.1.99.2", "10.1.5.2"), DROP_NONE);
    CHECK_EQ(inbound("172.30.0.66", "10.1.6.2", "8.8.8.8"), DROP_UDP_WRONG_DESTINATION);
    for (size_t i = 0; i < sizeof martians / sizeof *martians; i++)
        CHECK_EQ(inbound("172.30.0.66", martians[i], "10.1.5.2"), DROP_UDP_MARTIAN_SOURCE);
}

static void with_a_network_of_length_zero_every_source_is_inside(void)
{
    own.network = own.network_mask = 0;
    CHECK_EQ(inbound("172.30.0.6", "8.8.8.8", "10.1.5.2"), DROP_UDP_SPOOFED_SOURCE);
    CHECK_EQ(inbound("172.30.0.6", "10.1.6.2", "10.1.5.2"), DROP_NONE);
}

static void every_parse_fault_has_its_counter(void)
{
    CHECK_EQ(filter_inbound_fault(PACKET_OK), DROP_NONE);
    CHECK_EQ(filter_inbound_fault(PACKET_NOT_IP), DROP_UDP_NOT_IP);
    CHECK_EQ(filter_inbound_fault(PACKET_IPV6), DROP_UDP_IPV6);
    CHECK_EQ(filter_inbound_fault(PACKET_BAD_HEADER), DROP_UDP_BAD_HEADER);
    CHECK_EQ(filter_inbound_fault(PACKET_BAD_LENGTH), DROP_UDP_BAD_LENGTH);
}

#define RUN_IN_NETWORK(test) (set_up(), RUN(test), tear_down())

int main(void)
{
    RUN_IN_NETWORK(a_packet_for_a_lease_leaves_for_its_host);
    RUN_IN_NETWORK(a_packet_without_a_route_or_not_for_one_host_is_dropped);
    RUN_IN_NETWORK(our_own_subnet_never_leaves_whatever_leases_say);
    RUN_IN_NETWORK(the_default_route_does_not_make_multicast_leave);
    RUN_IN_NETWORK(a_source_in_a_lease_of_the_peer_or_outside_the_network_passes);
    RUN_IN_NETWORK(an_outer_source_that_is_no_peer_is_dropped);
    RUN_IN_NETWORK(a_source_that_another_peer_or_no_peer_leases_is_dropped);
    RUN_IN_NETWORK(a_martian_source_is_refused);
    RUN_IN_NETWORK(only_our_subnet_is_a_destination);
    RUN_IN_NETWORK(without_the_source_check_any_outer_source_passes_but_no_martian);
    RUN_IN_NETWORK(with_a_network_of_length_zero_every_source_is_inside);
    RUN(every_parse_fault_has_its_counter);
}

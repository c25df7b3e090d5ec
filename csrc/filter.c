#include "filter.h"

static bool in_network(const struct filter_identity *own, uint32_t address)
{
    return (address & own->network_mask) == own->network;
}

static bool in_own_subnet(const struct filter_identity *own, uint32_t address)
{
    return (address & own->subnet_mask) == own->subnet;
}

enum drop_reason filter_outbound(const struct filter_identity *own, const struct route_table *routes,
                                 const struct peer_table *peers, const struct packet *packet,
                                 struct peer **peer)
{
    if (!address_is_unicast(packet->destination))
        return DROP_TUN_NOT_UNICAST;
    /* A packet for our own subnet never leaves, even if a wider lease covers it: its host would send it back. */
    if (in_own_subnet(own, packet->destination))
        return DROP_TUN_NO_ROUTE;
    uint32_t slot = route_table_lookup(routes, packet->destination);
    if (slot == ROUTE_NONE)
        return DROP_TUN_NO_ROUTE;
    *peer = peer_table_at(peers, slot);
    return DROP_NONE;
}

static bool is_ours(const struct filter_identity *own, uint32_t address)
{
    return address == own->public_ip || in_own_subnet(own, address) ||
           route_table_lookup(own->addresses, address) != ROUTE_NONE;
}

static enum drop_reason check_source(const struct filter_identity *own, const struct route_table *routes,
                                     const struct peer_table *peers, uint32_t source,
                                     const struct peer *sender)
{
    if (!address_is_unicast(source) || is_ours(own, source))
        return DROP_UDP_MARTIAN_SOURCE;
    /* A source outside Network passes: a host may forward packets of its LAN. */
    if (!own->check_source || !in_network(own, source))
        return DROP_NONE;
    uint32_t slot = route_table_lookup(routes, source);
    if (slot == ROUTE_NONE || peer_table_at(peers, slot) != sender)
        return DROP_UDP_SPOOFED_SOURCE;
    return DROP_NONE;
}

enum drop_reason filter_inbound(const struct filter_identity *own, const struct route_table *routes,
                                const struct peer_table *peers, const struct packet *packet,
                                uint32_t outer_source, struct peer **peer)
{
    *peer = peer_table_find(peers, outer_source);
    if (*peer == NULL && own->check_source)
        return DROP_UDP_UNKNOWN_PEER;
    enum drop_reason drop = check_source(own, routes, peers, packet->source, *peer);
    if (drop != DROP_NONE)
        return drop;
    return in_own_subnet(own, packet->destination) ? DROP_NONE : DROP_UDP_WRONG_DESTINATION;
}

enum drop_reason filter_inbound_fault(enum packet_fault fault)
{
    static const enum drop_reason drops[] = {
        [PACKET_OK] = DROP_NONE,
        [PACKET_NOT_IP] = DROP_UDP_NOT_IP,
        [PACKET_IPV6] = DROP_UDP_IPV6,
        [PACKET_BAD_HEADER] = DROP_UDP_BAD_HEADER,
        [PACKET_BAD_LENGTH] = DROP_UDP_BAD_LENGTH,
    };
    return drops[fault];
}

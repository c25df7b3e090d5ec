/* address_set.h - single addresses, replaced by one writer while readers look them up without a lock.
 *
 * It is a route table in which every prefix has 32 bits and the next hop says nothing: what holds for its nodes
 * holds here, and its owner calls route_table_reclaim for it.
 */
#ifndef FLANNEL_UDP_ADDRESS_SET_H
#define FLANNEL_UDP_ADDRESS_SET_H

#include <stdbool.h>

#include "route_table.h"

/* Whether the address (host byte order) is in the set. */
static inline bool address_set_holds(const struct route_table *set, uint32_t address)
{
    return route_table_lookup(set, address) != ROUTE_NONE;
}

/* Makes these the addresses in the set; one that stays is in it throughout. 0, or -ENOMEM, and then some of the
 * change may have been made. */
int address_set_replace(struct route_table *set, const uint32_t *addresses, size_t count);

#endif

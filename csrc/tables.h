/* tables.h - what the worker looks up for every packet and the controlling thread changes: routes, peers and the
 * addresses of this host.
 *
 * One thread at a time calls these functions; the worker reads meanwhile, without a lock, and says in `epoch` when it
 * holds no pointer. While a batch of routes is applied, every address keeps its old next hop or has its new one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "epoch.h"
#include "peer_table.h"
#include "route_table.h"

struct tables {
    struct route_table *routes;    /* prefix -> slot in peers */
    struct route_table *addresses; /* of this host: a route of 32 bits for each, whose next hop means nothing */
    struct peer_table *peers;
    struct epoch epoch;
};

struct pump_route {
    uint32_t prefix, length; /* length 0..32, host bits zero */
    uint32_t public_ip;      /* the peer that leases it; 0 withdraws the route (in pump_update only) */
};

/* Empty tables. 0 or -ENOMEM, and then some exist: tables_clear. */
int tables_init(struct tables *tables);

/* Frees what the tables hold; the worker must be stopped. */
void tables_clear(struct tables *tables);

/* A copy of the routes in the order in which they are applied, in *sorted, to be freed. 0, -ENOMEM, or -EINVAL for an
 * invalid prefix or, unless the routes may be withdrawn, a public_ip of 0. */
int tables_sort(const struct pump_route *routes, size_t count, bool may_withdraw, struct pump_route **sorted);

/* Adds, changes and withdraws sorted routes; with `replace` every other route is withdrawn, too. 0; -ENOMEM or -ENOSPC:
 * part of it is done. */
int tables_apply(struct tables *tables, const struct pump_route *sorted, size_t count, bool replace);

/* Makes these the addresses of this host; one that stays is in the table throughout. 0; -ENOMEM: part of it is done. */
int tables_set_addresses(struct tables *tables, const uint32_t *addresses, size_t count);

/* The public address that packets for this address are sent to, 0 if there is no route. */
uint32_t tables_lookup(const struct tables *tables, uint32_t address);

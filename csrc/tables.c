#include "tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "prefix.h"

int tables_init(struct tables *tables)
{
    int error = route_table_create(&tables->routes);
    if (error == 0)
        error = route_table_create(&tables->addresses);
    return error < 0 ? error : peer_table_create(&tables->peers);
}

void tables_clear(struct tables *tables)
{
    route_table_free(tables->routes);
    route_table_free(tables->addresses);
    peer_table_free(tables->peers);
}

static void reclaim(struct tables *tables)
{
    if (!epoch_grace_is_over(&tables->epoch))
        return;
    route_table_reclaim(tables->routes);
    route_table_reclaim(tables->addresses);
    peer_table_reclaim(tables->peers);
    epoch_begin_grace(&tables->epoch);
}

/* The new routes come first, the longest of them before the others, so that a short one is never visible where a
 * longer new one follows. Then the withdrawn ones, the shortest first, so that no older route becomes visible. */
static int compare_changes(const void *left, const void *right)
{
    const struct pump_route *a = left, *b = right;
    bool a_withdraws = a->public_ip == 0, b_withdraws = b->public_ip == 0;
    if (a_withdraws != b_withdraws)
        return a_withdraws ? 1 : -1;
    if (a->length == b->length)
        return 0;
    bool a_first = a_withdraws ? a->length < b->length : a->length > b->length;
    return a_first ? -1 : 1;
}

int tables_sort(const struct pump_route *routes, size_t count, bool may_withdraw, struct pump_route **sorted)
{
    for (size_t i = 0; i < count; i++) {
        if (!prefix_is_valid(routes[i].prefix, routes[i].length) || (routes[i].public_ip == 0 && !may_withdraw))
            return -EINVAL;
    }
    *sorted = malloc((count + 1) * sizeof **sorted);
    if (*sorted == NULL)
        return -ENOMEM;
    if (count != 0)
        memcpy(*sorted, routes, count * sizeof **sorted);
    qsort(*sorted, count, sizeof **sorted, compare_changes);
    return 0;
}

static int add_route(struct tables *tables, const struct pump_route *route)
{
    uint32_t slot, previous;
    int error = peer_table_acquire(tables->peers, route->public_ip, &slot);
    if (error < 0)
        return error;
    error = route_table_insert(tables->routes, route->prefix, (uint8_t)route->length, slot, &previous);
    if (error < 0)
        peer_table_release(tables->peers, slot);
    else if (previous != ROUTE_NONE)
        peer_table_release(tables->peers, previous);
    return error;
}

/* Withdraws a route of `table`, which is that of the routes or of the addresses. */
static void withdraw(struct tables *tables, struct route_table *table, const struct pump_route *route)
{
    uint32_t previous;
    if (route_table_remove(table, route->prefix, (uint8_t)route->length, &previous) == 0 && table == tables->routes)
        peer_table_release(tables->peers, previous);
}

static int apply(struct tables *tables, const struct pump_route *sorted, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (sorted[i].public_ip == 0) {
            withdraw(tables, tables->routes, &sorted[i]);
            continue;
        }
        int error = add_route(tables, &sorted[i]);
        if (error < 0)
            return error;
    }
    return 0;
}

/* Withdraws what has not the current generation of the table. 0 or -ENOMEM. */
static int withdraw_stale(struct tables *tables, struct route_table *table)
{
    size_t count = 0;
    struct pump_route *stale = malloc((table->set.count + 1) * sizeof *stale);
    if (stale == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < table->set.capacity; i++) {
        const struct route_item *item = &table->set.items[i];
        if (item->used && item->generation != table->generation)
            stale[count++] = (struct pump_route){.prefix = item->prefix, .length = item->length};
    }
    qsort(stale, count, sizeof *stale, compare_changes);
    for (size_t i = 0; i < count; i++)
        withdraw(tables, table, &stale[i]);
    free(stale);
    return 0;
}

int tables_apply(struct tables *tables, const struct pump_route *sorted, size_t count, bool replace)
{
    tables->routes->generation += replace;
    int error = apply(tables, sorted, count);
    if (error == 0 && replace)
        error = withdraw_stale(tables, tables->routes);
    reclaim(tables);
    return error;
}

int tables_set_addresses(struct tables *tables, const uint32_t *addresses, size_t count)
{
    struct route_table *table = tables->addresses;
    uint32_t previous;
    int error = 0;
    table->generation++;
    for (size_t i = 0; i < count && error == 0; i++)
        error = route_table_insert(table, addresses[i], 32, 0, &previous);
    if (error == 0)
        error = withdraw_stale(tables, table);
    reclaim(tables);
    return error;
}

uint32_t tables_lookup(const struct tables *tables, uint32_t address)
{
    uint32_t slot = route_table_lookup(tables->routes, address);
    return slot == ROUTE_NONE ? 0 : peer_table_at(tables->peers, slot)->address;
}

#include "tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

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

static void withdraw_route(struct tables *tables, uint32_t prefix, uint8_t length)
{
    uint32_t previous;
    if (route_table_remove(tables->routes, prefix, length, &previous) == 0)
        peer_table_release(tables->peers, previous);
}

static int apply(struct tables *tables, const struct pump_route *sorted, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (sorted[i].public_ip == 0) {
            withdraw_route(tables, sorted[i].prefix, (uint8_t)sorted[i].length);
            continue;
        }
        int error = add_route(tables, &sorted[i]);
        if (error < 0)
            return error;
    }
    return 0;
}

/* The routes that have not the current generation of the table, in *stale, to be freed. Returns their number or
 * -ENOMEM. */
static ssize_t list_stale(const struct route_table *table, struct pump_route **stale)
{
    size_t count = 0;
    *stale = malloc((table->set.count + 1) * sizeof **stale);
    if (*stale == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < table->set.capacity; i++) {
        const struct route_item *item = &table->set.items[i];
        if (item->used && item->generation != table->generation)
            (*stale)[count++] = (struct pump_route){.prefix = item->prefix, .length = item->length};
    }
    return (ssize_t)count;
}

static int withdraw_stale(struct tables *tables)
{
    struct pump_route *stale;
    ssize_t count = list_stale(tables->routes, &stale);
    if (count < 0)
        return (int)count;
    qsort(stale, (size_t)count, sizeof *stale, compare_changes);
    int error = apply(tables, stale, (size_t)count);
    free(stale);
    return error;
}

int tables_apply(struct tables *tables, const struct pump_route *sorted, size_t count, bool replace)
{
    tables->routes->generation += replace;
    int error = apply(tables, sorted, count);
    if (error == 0 && replace)
        error = withdraw_stale(tables);
    reclaim(tables);
    return error;
}

int tables_set_addresses(struct tables *tables, const uint32_t *addresses, size_t count)
{
    struct route_table *set = tables->addresses;
    struct pump_route *stale;
    uint32_t previous;
    int error = 0;
    set->generation++;
    for (size_t i = 0; i < count && error == 0; i++)
        error = route_table_insert(set, addresses[i], 32, 0, &previous);
    if (error < 0)
        return error;
    ssize_t stale_count = list_stale(set, &stale);
    if (stale_count < 0)
        return (int)stale_count;
    for (ssize_t i = 0; i < stale_count; i++)
        (void)route_table_remove(set, stale[i].prefix, 32, &previous); /* it is there: it was listed */
    free(stale);
    reclaim(tables);
    return 0;
}

uint32_t tables_lookup(const struct tables *tables, uint32_t address)
{
    uint32_t slot = route_table_lookup(tables->routes, address);
    return slot == ROUTE_NONE ? 0 : peer_table_at(tables->peers, slot)->address;
}

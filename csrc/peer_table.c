#include "peer_table.h"

#include <errno.h>
#include <stdlib.h>

int peer_table_create(struct peer_table **out)
{
    struct peer_table *table = calloc(1, sizeof *table);
    if (table == NULL)
        return -ENOMEM;
    int error = route_table_create(&table->by_address);
    if (error < 0) {
        free(table);
        return error;
    }
    table->free = table->retired = table->condemned = ROUTE_NONE;
    *out = table;
    return 0;
}

void peer_table_free(struct peer_table *table)
{
    if (table == NULL)
        return;
    for (size_t i = 0; i < PEER_CHUNKS; i++)
        free(atomic_load_explicit(&table->chunks[i], memory_order_relaxed)); /* relaxed: no reader is left */
    route_table_free(table->by_address);
    free(table);
}

/* An unused slot, its counters at zero. */
static int take_slot(struct peer_table *table, uint32_t *slot)
{
    if (table->free != ROUTE_NONE) {
        *slot = table->free;
        table->free = peer_table_at(table, *slot)->next;
        struct peer *peer = peer_table_at(table, *slot);
        counter *counters[] = {&peer->sent_packets, &peer->sent_bytes, &peer->received_packets,
                               &peer->received_bytes, &peer->dropped_packets, &peer->plain_until_ns};
        for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
            atomic_store_explicit(counters[i], 0, memory_order_relaxed); /* as counter_add */
        return 0;
    }
    if (table->slots == PEER_CHUNKS * PEER_CHUNK_SIZE)
        return -ENOSPC;
    if (table->slots % PEER_CHUNK_SIZE == 0) {
        struct peer *chunk = calloc(PEER_CHUNK_SIZE, sizeof *chunk);
        if (chunk == NULL)
            return -ENOMEM;
        /* release: pairs with peer_table_at */
        atomic_store_explicit(&table->chunks[table->slots / PEER_CHUNK_SIZE], chunk, memory_order_release);
    }
    *slot = table->slots++;
    return 0;
}

static void put_slot(struct peer_table *table, uint32_t *list, uint32_t slot)
{
    peer_table_at(table, slot)->next = *list;
    *list = slot;
}

int peer_table_acquire(struct peer_table *table, uint32_t address, uint32_t *slot)
{
    *slot = route_table_lookup(table->by_address, address);
    if (*slot != ROUTE_NONE) {
        peer_table_at(table, *slot)->references++;
        return 0;
    }
    uint32_t fresh, previous;
    int error = take_slot(table, &fresh);
    if (error < 0)
        return error;
    struct peer *peer = peer_table_at(table, fresh);
    peer->address = address;
    peer->references = 1;
    error = route_table_insert(table->by_address, address, 32, fresh, &previous);
    if (error < 0) {
        peer->references = 0;
        put_slot(table, &table->free, fresh);
        return error;
    }
    *slot = fresh;
    return 0;
}

void peer_table_release(struct peer_table *table, uint32_t slot)
{
    struct peer *peer = peer_table_at(table, slot);
    if (--peer->references != 0)
        return;
    uint32_t previous;
    (void)route_table_remove(table->by_address, peer->address, 32, &previous); /* it is there: acquire has added it */
    put_slot(table, &table->retired, slot);
}

void peer_table_reclaim(struct peer_table *table)
{
    route_table_reclaim(table->by_address);
    while (table->condemned != ROUTE_NONE) {
        uint32_t slot = table->condemned;
        table->condemned = peer_table_at(table, slot)->next;
        put_slot(table, &table->free, slot);
    }
    table->condemned = table->retired;
    table->retired = ROUTE_NONE;
}

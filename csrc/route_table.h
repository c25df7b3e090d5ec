/* route_table.h - longest prefix match over IPv4, one writer, any number of readers without a lock.
 *
 * A trie with strides of 16, 8 and 8 bits. An entry is one 64-bit word: either the longest match of all addresses
 * below it (next hop and prefix length), or a pointer to a node of 256 entries. Shorter routes are copied into the
 * entries that they cover, so a lookup reads one to three words.
 *
 * A change stores single entries in place, so every address moves from its old next hop to its new one in one atomic
 * store. A reader may still be in a node that a change takes out: the node is retired, and freed by the second
 * route_table_reclaim after that.
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "route_set.h"

#define ROUTE_NONE UINT32_MAX /* no next hop */

enum { ROUTE_ROOT_ENTRIES = 1 << 16, ROUTE_NODE_ENTRIES = 1 << 8 };

struct route_node {
    _Atomic uint64_t entries[ROUTE_NODE_ENTRIES];
    size_t routes; /* that end in this node or below it; a node without any is retired */
    struct route_node *next;
};

struct route_table {
    struct route_set set;
    uint32_t generation;          /* of routes inserted now; the owner counts it up before it replaces all */
    struct route_node *retired;   /* since the last reclaim */
    struct route_node *condemned; /* retired before the last reclaim */
    _Atomic uint64_t root[ROUTE_ROOT_ENTRIES];
};

#define ROUTE_CHILD_BIT UINT64_C(1)

static inline struct route_node *route_entry_child(uint64_t entry)
{
    return (struct route_node *)(uintptr_t)(entry & ~ROUTE_CHILD_BIT);
}

/* The next hop of the longest prefix that holds the address (host byte order), ROUTE_NONE if none does. */
static inline uint32_t route_table_lookup(const struct route_table *table, uint32_t address)
{
    /* acquire: pairs with the writer's release store, so whoever sees a node sees it filled */
    uint64_t entry = atomic_load_explicit(&table->root[address >> 16], memory_order_acquire);
    if (entry & ROUTE_CHILD_BIT) {
        const struct route_node *node = route_entry_child(entry);
        entry = atomic_load_explicit(&node->entries[(address >> 8) & 0xff], memory_order_acquire);
        if (entry & ROUTE_CHILD_BIT) {
            node = route_entry_child(entry);
            entry = atomic_load_explicit(&node->entries[address & 0xff], memory_order_acquire);
        }
    }
    return (uint32_t)(entry >> 32);
}

/* An empty table in *out. 0 or -ENOMEM. */
int route_table_create(struct route_table **out);

/* Frees the table; no reader may be left. NULL does nothing. */
void route_table_free(struct route_table *table);

/* Adds prefix/length or changes its next hop, and gives the route the current generation. *previous is the next hop it
 * had, ROUTE_NONE if it is new.
 * 0; -EINVAL for host bits, a length above 32 or the next hop ROUTE_NONE; -ENOMEM. On error nothing has changed. */
int route_table_insert(struct route_table *table, uint32_t prefix, uint8_t length, uint32_t next_hop,
                       uint32_t *previous);

/* Removes prefix/length. *previous is the next hop it had. 0, -EINVAL, or -ENOENT if it is not there. */
int route_table_remove(struct route_table *table, uint32_t prefix, uint8_t length, uint32_t *previous);

/* Frees the nodes that were retired before the last call: a grace period (epoch.h) must lie between two calls. */
void route_table_reclaim(struct route_table *table);

/* The number of routes. */
size_t route_table_count(const struct route_table *table);

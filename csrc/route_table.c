#include "route_table.h"

#include <errno.h>
#include <stdlib.h>

#include "prefix.h"

#define NO_ROUTE_ENTRY ((uint64_t)ROUTE_NONE << 32)

enum { LEVELS = 3 };

/* How many bits of an address select a slot below this many nodes. */
static unsigned depth_below(size_t nodes)
{
    return 16 + 8 * (unsigned)nodes;
}

/* How many slots below this many nodes a prefix spans. */
static size_t span_of(size_t nodes, uint8_t length)
{
    return (size_t)1 << (depth_below(nodes) - length);
}

/* A leaf: next hop in the high half, prefix length above the child bit. */
static uint64_t leaf_entry(uint32_t next_hop, uint8_t length)
{
    return (uint64_t)next_hop << 32 | (uint64_t)length << 1;
}

static uint8_t leaf_length(uint64_t entry)
{
    return (uint8_t)((entry & 0xff) >> 1);
}

static uint64_t writer_load(_Atomic uint64_t *slot)
{
    /* relaxed: only the writer stores entries, and it reads its own */
    return atomic_load_explicit(slot, memory_order_relaxed);
}

static void publish(_Atomic uint64_t *slot, uint64_t entry)
{
    /* release: whoever sees the entry sees what it leads to (a filled node, a peer's address) */
    atomic_store_explicit(slot, entry, memory_order_release);
}

/* Stores `leaf` in every entry at and below these slots that does not belong to a longer route. */
static void paint(_Atomic uint64_t *slots, size_t count, uint8_t length, uint64_t leaf)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t entry = writer_load(&slots[i]);
        if (entry & ROUTE_CHILD_BIT)
            paint(route_entry_child(entry)->entries, ROUTE_NODE_ENTRIES, length, leaf);
        else if (leaf_length(entry) <= length)
            publish(&slots[i], leaf);
    }
}

/* The node below the slot; a new one repeats the leaf that it replaces. NULL when out of memory. */
static struct route_node *ensure_child(_Atomic uint64_t *slot)
{
    uint64_t entry = writer_load(slot);
    if (entry & ROUTE_CHILD_BIT)
        return route_entry_child(entry);
    struct route_node *node = malloc(sizeof *node);
    if (node == NULL)
        return NULL;
    node->routes = 0;
    node->next = NULL;
    for (size_t i = 0; i < ROUTE_NODE_ENTRIES; i++)
        atomic_init(&node->entries[i], entry);
    publish(slot, (uint64_t)(uintptr_t)node | ROUTE_CHILD_BIT);
    return node;
}

/* Makes the nodes on the path to a prefix where they are missing. slots[] receives the slot that holds the prefix, or
 * its first address, in the root and in each node. Returns the number of nodes; fewer than needed: out of memory. */
static size_t ensure_path(struct route_table *table, uint32_t prefix, uint8_t length, _Atomic uint64_t *slots[LEVELS])
{
    size_t nodes = 0;
    _Atomic uint64_t *slot = &table->root[prefix >> 16];
    slots[0] = slot;
    for (unsigned depth = 16; depth < length; depth += 8) {
        struct route_node *node = ensure_child(slot);
        if (node == NULL)
            break;
        slot = &node->entries[(prefix >> (24 - depth)) & 0xff];
        slots[++nodes] = slot;
    }
    return nodes;
}

/* Adds a route to the count of every node on its path, or takes it away. */
static void count_route(_Atomic uint64_t *const *slots, size_t nodes, int change)
{
    for (size_t i = 0; i < nodes; i++) {
        struct route_node *node = route_entry_child(writer_load(slots[i]));
        node->routes = change > 0 ? node->routes + 1 : node->routes - 1;
    }
}

/* Retires those of the nodes below these slots that hold no route any more, lowest first; `cover` takes their place. */
static void prune(struct route_table *table, _Atomic uint64_t *const *slots, size_t nodes, uint64_t cover)
{
    while (nodes-- > 0) {
        struct route_node *node = route_entry_child(writer_load(slots[nodes]));
        if (node->routes != 0)
            return;
        /* Every entry of a node without routes of its own is a copy of the cover. */
        publish(slots[nodes], cover);
        node->next = table->retired;
        table->retired = node;
    }
}

int route_table_create(struct route_table **out)
{
    struct route_table *table = calloc(1, sizeof *table);
    if (table == NULL)
        return -ENOMEM;
    int error = route_set_init(&table->set);
    if (error < 0) {
        free(table);
        return error;
    }
    for (size_t i = 0; i < ROUTE_ROOT_ENTRIES; i++)
        atomic_init(&table->root[i], NO_ROUTE_ENTRY);
    *out = table;
    return 0;
}

static void free_list(struct route_node *node)
{
    while (node != NULL) {
        struct route_node *next = node->next;
        free(node);
        node = next;
    }
}

static void free_below(_Atomic uint64_t *slots, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t entry = writer_load(&slots[i]);
        if (entry & ROUTE_CHILD_BIT) {
            free_below(route_entry_child(entry)->entries, ROUTE_NODE_ENTRIES);
            free(route_entry_child(entry));
        }
    }
}

void route_table_free(struct route_table *table)
{
    if (table == NULL)
        return;
    free_below(table->root, ROUTE_ROOT_ENTRIES);
    free_list(table->retired);
    free_list(table->condemned);
    route_set_clear(&table->set);
    free(table);
}

int route_table_insert(struct route_table *table, uint32_t prefix, uint8_t length, uint32_t next_hop,
                       uint32_t *previous)
{
    if (!prefix_is_valid(prefix, length) || next_hop == ROUTE_NONE)
        return -EINVAL;
    struct route_item *item = route_set_find(&table->set, prefix, length);
    if (item == NULL && route_set_reserve(&table->set) < 0)
        return -ENOMEM;
    _Atomic uint64_t *slots[LEVELS];
    size_t nodes = ensure_path(table, prefix, length, slots);
    if (depth_below(nodes) < length) {
        prune(table, slots, nodes, writer_load(slots[nodes]));
        return -ENOMEM;
    }
    if (item == NULL) {
        *previous = ROUTE_NONE;
        item = route_set_add(&table->set, prefix, length);
        count_route(slots, nodes, +1);
    } else {
        *previous = item->next_hop;
    }
    item->generation = table->generation;
    item->next_hop = next_hop;
    if (*previous != next_hop)
        paint(slots[nodes], span_of(nodes, length), length, leaf_entry(next_hop, length));
    return 0;
}

int route_table_remove(struct route_table *table, uint32_t prefix, uint8_t length, uint32_t *previous)
{
    if (!prefix_is_valid(prefix, length))
        return -EINVAL;
    struct route_item *item = route_set_find(&table->set, prefix, length);
    if (item == NULL)
        return -ENOENT;
    *previous = item->next_hop;
    route_set_remove(&table->set, item);
    const struct route_item *cover = route_set_cover(&table->set, prefix, length);
    uint64_t leaf = cover == NULL ? NO_ROUTE_ENTRY : leaf_entry(cover->next_hop, cover->length);
    _Atomic uint64_t *slots[LEVELS];
    size_t nodes = ensure_path(table, prefix, length, slots); /* it exists, for the route does */
    paint(slots[nodes], span_of(nodes, length), length, leaf);
    count_route(slots, nodes, -1);
    prune(table, slots, nodes, leaf);
    return 0;
}

void route_table_reclaim(struct route_table *table)
{
    free_list(table->condemned);
    table->condemned = table->retired;
    table->retired = NULL;
}

size_t route_table_count(const struct route_table *table)
{
    return table->set.count;
}

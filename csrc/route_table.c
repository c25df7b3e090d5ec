#include "route_table.h"

#include <errno.h>
#include <stdlib.h>

#include "prefix.h"

#define NO_ROUTE_ENTRY ((uint64_t)ROUTE_NONE << 32)

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
    /* release: what the entry leads to (a filled node, a peer's address) is visible before the entry is */
    atomic_store_explicit(slot, entry, memory_order_release);
}

/* Gives `leaf` to every address below the slot that belongs to no longer route than `length`. */
static void paint(_Atomic uint64_t *slot, uint8_t length, uint64_t leaf)
{
    uint64_t entry = writer_load(slot);
    if (entry & ROUTE_CHILD_BIT) {
        struct route_node *node = route_entry_child(entry);
        for (size_t i = 0; i < ROUTE_NODE_ENTRIES; i++)
            paint(&node->entries[i], length, leaf);
    } else if (leaf_length(entry) <= length) {
        publish(slot, leaf);
    }
}

static void paint_range(_Atomic uint64_t *first, size_t count, uint8_t length, uint64_t leaf)
{
    for (size_t i = 0; i < count; i++)
        paint(&first[i], length, leaf);
}

/* The slot whose subtree is exactly the route's last stride, and how many slots the route spans from there.
 * Every node on the way must exist. */
static _Atomic uint64_t *locate(struct route_table *table, uint32_t prefix, uint8_t length, size_t *span)
{
    _Atomic uint64_t *slot = &table->root[prefix >> 16];
    unsigned depth = 16;
    for (; depth < length; depth += 8) {
        struct route_node *node = route_entry_child(writer_load(slot));
        slot = &node->entries[(prefix >> (24 - depth)) & 0xff];
    }
    *span = (size_t)1 << (depth - length);
    return slot;
}

/* The child below the slot, made from the leaf that stands there if need be. NULL when out of memory. */
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

/* Counts a route in (or out of) every node on its way. */
static void count_on_path(struct route_table *table, uint32_t prefix, uint8_t length, int change)
{
    _Atomic uint64_t *slot = &table->root[prefix >> 16];
    for (unsigned depth = 16; depth < length; depth += 8) {
        struct route_node *node = route_entry_child(writer_load(slot));
        node->routes = change > 0 ? node->routes + 1 : node->routes - 1;
        slot = &node->entries[(prefix >> (24 - depth)) & 0xff];
    }
}

static void retire(struct route_table *table, struct route_node *node)
{
    node->next = table->retired;
    table->retired = node;
}

/* Takes out the nodes on the path that hold no route any more, lowest first; `cover` shows through. */
static void prune(struct route_table *table, uint32_t prefix, uint8_t length, uint64_t cover)
{
    _Atomic uint64_t *slots[2];
    size_t levels = 0;
    _Atomic uint64_t *slot = &table->root[prefix >> 16];
    for (unsigned depth = 16; depth < length; depth += 8) {
        uint64_t entry = writer_load(slot);
        if (!(entry & ROUTE_CHILD_BIT))
            break;
        slots[levels++] = slot;
        slot = &route_entry_child(entry)->entries[(prefix >> (24 - depth)) & 0xff];
    }
    while (levels-- > 0) {
        struct route_node *node = route_entry_child(writer_load(slots[levels]));
        if (node->routes != 0)
            return;
        /* A node without routes of its own holds nothing but what its slot would hold, in every entry. */
        publish(slots[levels], cover);
        retire(table, node);
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

/* Makes the nodes a new route needs. What was made before an -ENOMEM is pruned again. */
static int ensure_path(struct route_table *table, uint32_t prefix, uint8_t length)
{
    _Atomic uint64_t *slot = &table->root[prefix >> 16];
    for (unsigned depth = 16; depth < length; depth += 8) {
        uint64_t below = writer_load(slot);
        struct route_node *node = ensure_child(slot);
        if (node == NULL) {
            prune(table, prefix, length, below);
            return -ENOMEM;
        }
        slot = &node->entries[(prefix >> (24 - depth)) & 0xff];
    }
    return 0;
}

int route_table_insert(struct route_table *table, uint32_t prefix, uint8_t length, uint32_t next_hop,
                       uint32_t *previous)
{
    if (!prefix_is_valid(prefix, length) || next_hop == ROUTE_NONE)
        return -EINVAL;
    struct route_item *item = route_set_find(&table->set, prefix, length);
    if (item != NULL) {
        *previous = item->next_hop;
        item->generation = table->generation;
        if (item->next_hop == next_hop)
            return 0;
        item->next_hop = next_hop;
    } else {
        *previous = ROUTE_NONE;
        int error = ensure_path(table, prefix, length);
        if (error < 0)
            return error;
        error = route_set_add(&table->set, (struct route_item){.prefix = prefix,
                                                               .length = length,
                                                               .next_hop = next_hop,
                                                               .generation = table->generation});
        if (error < 0) {
            const struct route_item *cover = route_set_cover(&table->set, prefix, length);
            prune(table, prefix, length,
                  cover == NULL ? NO_ROUTE_ENTRY : leaf_entry(cover->next_hop, cover->length));
            return error;
        }
        count_on_path(table, prefix, length, +1);
    }
    size_t span;
    _Atomic uint64_t *slot = locate(table, prefix, length, &span);
    paint_range(slot, span, length, leaf_entry(next_hop, length));
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
    size_t span;
    _Atomic uint64_t *slot = locate(table, prefix, length, &span);
    paint_range(slot, span, length, leaf);
    count_on_path(table, prefix, length, -1);
    prune(table, prefix, length, leaf);
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

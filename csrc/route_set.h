/* route_set.h - the routes as a hash set keyed by prefix and length, for the writer of the route table alone.
 *
 * The trie holds only the longest match of every address. When a route is removed, the set gives the next shorter
 * one that covers it; and it distinguishes a changed route from a new one.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct route_item {
    uint32_t prefix; /* host byte order, host bits zero */
    uint32_t next_hop;
    uint32_t generation; /* of the table at the last insert */
    uint8_t length;      /* 0..32 */
    uint8_t used;
};

struct route_set {
    struct route_item *items; /* open addressing, linear probing; capacity is a power of two */
    size_t capacity;
    size_t count;
    size_t count_by_length[33];
};

/* Makes an empty set. 0 or -ENOMEM. */
int route_set_init(struct route_set *set);

/* Frees what the set holds. */
void route_set_clear(struct route_set *set);

/* The item of exactly this prefix and length, NULL if there is none. Valid until the next add or remove. */
struct route_item *route_set_find(const struct route_set *set, uint32_t prefix, uint8_t length);

/* Makes room for one more item. 0 or -ENOMEM. */
int route_set_reserve(struct route_set *set);

/* Adds an item that is not there yet, for which there is room; the caller sets its next hop and generation. */
struct route_item *route_set_add(struct route_set *set, uint32_t prefix, uint8_t length);

/* Removes an item that route_set_find returned. */
void route_set_remove(struct route_set *set, struct route_item *item);

/* The longest route that covers prefix/length and is shorter than it, NULL if there is none. */
const struct route_item *route_set_cover(const struct route_set *set, uint32_t prefix, uint8_t length);

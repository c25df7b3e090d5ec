/* route_set.h - the routes as a set keyed by prefix and length: the writer's memory behind the route table.
 *
 * The trie holds only the winner for every address. When a route goes, the set tells which shorter route
 * shows through, and it tells a changed route from a new one. Writer only; no reader ever looks here.
 */
#ifndef FLANNEL_UDP_ROUTE_SET_H
#define FLANNEL_UDP_ROUTE_SET_H

#include <stddef.h>
#include <stdint.h>

struct route_item {
    uint32_t prefix; /* host byte order, host bits zero */
    uint32_t next_hop;
    uint32_t generation; /* of the last insert */
    uint8_t length;      /* 0..32 */
    uint8_t used;
};

struct route_set {
    struct route_item *items; /* open addressing, linear probing; capacity is a power of two */
    size_t capacity;
    size_t count;
    size_t count_by_length[33];
};

/* Starts an empty set. 0 or -ENOMEM. */
int route_set_init(struct route_set *set);

/* Frees what the set holds. */
void route_set_clear(struct route_set *set);

/* The item of exactly this prefix and length, NULL if there is none. Valid until the next add or remove. */
struct route_item *route_set_find(const struct route_set *set, uint32_t prefix, uint8_t length);

/* Adds an item that is not there yet. 0 or -ENOMEM, and then nothing has changed. */
int route_set_add(struct route_set *set, struct route_item item);

/* Removes an item that route_set_find returned. */
void route_set_remove(struct route_set *set, struct route_item *item);

/* The longest route that covers prefix/length and is shorter than it, NULL if there is none. */
const struct route_item *route_set_cover(const struct route_set *set, uint32_t prefix, uint8_t length);

#endif

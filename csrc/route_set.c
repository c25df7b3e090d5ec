#include "route_set.h"

#include <errno.h>
#include <stdlib.h>

#include "prefix.h"

enum { INITIAL_CAPACITY = 64 };

static size_t home_of(const struct route_set *set, uint32_t prefix, uint8_t length)
{
    uint64_t key = ((uint64_t)prefix << 8) | length;
    key *= UINT64_C(0x9e3779b97f4a7c15); /* Fibonacci hashing: the high bits are the well-mixed ones */
    return (size_t)(key >> 32) & (set->capacity - 1);
}

/* The item, or the free place for it. At most 3/4 of the places are taken, so there is one. */
static struct route_item *probe(const struct route_set *set, uint32_t prefix, uint8_t length)
{
    for (size_t i = home_of(set, prefix, length);; i = (i + 1) & (set->capacity - 1)) {
        struct route_item *item = &set->items[i];
        if (!item->used || (item->prefix == prefix && item->length == length))
            return item;
    }
}

int route_set_init(struct route_set *set)
{
    *set = (struct route_set){.capacity = INITIAL_CAPACITY};
    set->items = calloc(set->capacity, sizeof *set->items);
    return set->items == NULL ? -ENOMEM : 0;
}

void route_set_clear(struct route_set *set)
{
    free(set->items);
    *set = (struct route_set){0};
}

struct route_item *route_set_find(const struct route_set *set, uint32_t prefix, uint8_t length)
{
    struct route_item *item = probe(set, prefix, length);
    return item->used ? item : NULL;
}

int route_set_reserve(struct route_set *set)
{
    if ((set->count + 1) * 4 <= set->capacity * 3)
        return 0;
    struct route_set bigger = *set;
    bigger.capacity = set->capacity * 2;
    bigger.items = calloc(bigger.capacity, sizeof *bigger.items);
    if (bigger.items == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < set->capacity; i++) {
        if (set->items[i].used)
            *probe(&bigger, set->items[i].prefix, set->items[i].length) = set->items[i];
    }
    free(set->items);
    *set = bigger;
    return 0;
}

struct route_item *route_set_add(struct route_set *set, uint32_t prefix, uint8_t length)
{
    struct route_item *item = probe(set, prefix, length);
    *item = (struct route_item){.prefix = prefix, .length = length, .used = 1};
    set->count++;
    set->count_by_length[length]++;
    return item;
}

void route_set_remove(struct route_set *set, struct route_item *item)
{
    size_t mask = set->capacity - 1;
    size_t hole = (size_t)(item - set->items);
    set->count--;
    set->count_by_length[item->length]--;
    /* Backward shift: an item that probing would no longer reach across the hole moves into it. */
    for (size_t i = (hole + 1) & mask; set->items[i].used; i = (i + 1) & mask) {
        size_t home = home_of(set, set->items[i].prefix, set->items[i].length);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            set->items[hole] = set->items[i];
            hole = i;
        }
    }
    set->items[hole].used = 0;
}

const struct route_item *route_set_cover(const struct route_set *set, uint32_t prefix, uint8_t length)
{
    while (length-- > 0) {
        if (set->count_by_length[length] == 0)
            continue;
        const struct route_item *item = route_set_find(set, prefix & prefix_mask(length), length);
        if (item != NULL)
            return item;
    }
    return NULL;
}

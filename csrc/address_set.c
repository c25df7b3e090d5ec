#include "address_set.h"

#include <errno.h>
#include <stdlib.h>

/* Removes every address that the current generation has not stamped. 0 or -ENOMEM. */
static int remove_stale(struct route_table *table)
{
    /* A list first: a removal moves other items of the set. */
    uint32_t *stale = malloc((table->set.count + 1) * sizeof *stale);
    if (stale == NULL)
        return -ENOMEM;
    size_t count = 0;
    for (size_t i = 0; i < table->set.capacity; i++) {
        const struct route_item *item = &table->set.items[i];
        if (item->used && item->generation != table->generation)
            stale[count++] = item->prefix;
    }
    uint32_t previous;
    for (size_t i = 0; i < count; i++)
        (void)route_table_remove(table, stale[i], 32, &previous); /* it is there: it was found */
    free(stale);
    return 0;
}

int address_set_replace(struct route_table *set, const uint32_t *addresses, size_t count)
{
    uint32_t previous;
    set->generation++;
    for (size_t i = 0; i < count; i++) {
        int error = route_table_insert(set, addresses[i], 32, 0, &previous);
        if (error < 0)
            return error;
    }
    return remove_stale(set);
}

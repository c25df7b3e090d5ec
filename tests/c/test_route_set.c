/* The set behind the route table: what was added is found, what was removed is not, whatever the order. */
#include <errno.h>

#include "check.h"
#include "faults.h"
#include "oracle.h"
#include "route_set.h"

static struct oracle oracle;

static void add(struct route_set *set, uint32_t prefix, uint8_t length, uint32_t next_hop)
{
    CHECK_EQ(route_set_reserve(set), 0);
    route_set_add(set, prefix, length)->next_hop = next_hop;
    oracle_insert(&oracle, prefix, length, next_hop);
}

static void check_same(const struct route_set *set)
{
    size_t by_length[33] = {0};
    CHECK_EQ(set->count, oracle.count);
    for (size_t i = 0; i < oracle.count; i++) {
        const struct oracle_route *route = &oracle.routes[i];
        const struct route_item *item = route_set_find(set, route->prefix, route->length);
        CHECK(item != NULL);
        CHECK_EQ(item->next_hop, route->next_hop);
        by_length[route->length]++;
    }
    for (size_t i = 0; i < 33; i++)
        CHECK_EQ(set->count_by_length[i], by_length[i]);
}

/* The longest route strictly shorter than prefix/length that holds it, by a search from end to end. */
static const struct oracle_route *cover_of(uint32_t prefix, uint8_t length)
{
    const struct oracle_route *best = NULL;
    for (size_t i = 0; i < oracle.count; i++) {
        const struct oracle_route *route = &oracle.routes[i];
        if (route->length < length && (prefix & oracle_mask(route->length)) == route->prefix &&
            (best == NULL || route->length > best->length))
            best = route;
    }
    return best;
}

static void any_sequence_of_changes_answers_like_the_oracle(void)
{
    uint64_t seed = 1;
    struct route_set set;
    CHECK_EQ(route_set_init(&set), 0);
    oracle.count = 0;
    for (uint32_t i = 0; i < 20000; i++) {
        uint8_t length;
        uint32_t prefix = oracle_random_prefix(&seed, &length);
        const struct route_item *cover = route_set_cover(&set, prefix, length);
        const struct oracle_route *expected = cover_of(prefix, length);
        CHECK_EQ(cover == NULL, expected == NULL);
        CHECK(cover == NULL || cover->next_hop == expected->next_hop);

        struct route_item *item = route_set_find(&set, prefix, length);
        CHECK_EQ(item != NULL, oracle_find(&oracle, prefix, length) != NULL);
        if (item == NULL && oracle.count < 1000) {
            add(&set, prefix, length, i);
        } else if (item != NULL) {
            route_set_remove(&set, item);
            CHECK(oracle_remove(&oracle, prefix, length));
            CHECK(route_set_find(&set, prefix, length) == NULL);
        }
        if (i % 100 == 0)
            check_same(&set);
    }
    route_set_clear(&set);
}

static void a_removal_in_a_cluster_hides_no_other_item(void)
{
    /* 47 of 64 places are taken, so clusters are long and wrap round the end: empty it in every rotation. */
    for (uint32_t start = 0; start < 47; start++) {
        struct route_set set;
        CHECK_EQ(route_set_init(&set), 0);
        oracle.count = 0;
        for (uint32_t i = 0; i < 47; i++)
            add(&set, i << 8, 24, i);
        CHECK_EQ(set.capacity, 64);
        for (uint32_t i = 0; i < 47; i++) {
            uint32_t prefix = (start + i * 5) % 47 << 8;
            route_set_remove(&set, route_set_find(&set, prefix, 24));
            CHECK(oracle_remove(&oracle, prefix, 24));
            check_same(&set);
        }
        CHECK_EQ(set.count, 0);
        route_set_clear(&set);
    }
}

static void growth_without_memory_changes_nothing(void)
{
    long live = faults_live();
    struct route_set set;
    faults_fail_allocation(1);
    CHECK_EQ(route_set_init(&set), -ENOMEM);
    CHECK_EQ(faults_live(), live);

    CHECK_EQ(route_set_init(&set), 0);
    oracle.count = 0;
    int failures = 0;
    for (uint32_t i = 0; i < 3000; i++) {
        faults_fail_allocation(1);
        int error = route_set_reserve(&set);
        (void)faults_disarm();
        if (error < 0) {
            CHECK_EQ(error, -ENOMEM);
            failures++;
            check_same(&set);
            CHECK(route_set_find(&set, i << 8, 24) == NULL);
        }
        add(&set, i << 8, 24, i);
    }
    CHECK_EQ(failures, 6); /* 64 places become 4096 */
    check_same(&set);
    route_set_clear(&set);
    CHECK_EQ(faults_live(), live);
}

int main(void)
{
    RUN(any_sequence_of_changes_answers_like_the_oracle);
    RUN(a_removal_in_a_cluster_hides_no_other_item);
    RUN(growth_without_memory_changes_nothing);
}

/* The route table against an oracle, also when memory runs out at any point. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "faults.h"
#include "oracle.h"
#include "route_table.h"

static struct oracle oracle;

static void check_address(const struct route_table *table, uint32_t address)
{
    CHECK_EQ(route_table_lookup(table, address), oracle_lookup(&oracle, address, ROUTE_NONE));
}

/* A route is right if it is at both its ends and just outside of them. */
static void check_edges(const struct route_table *table, uint32_t prefix, uint8_t length)
{
    uint32_t last = prefix | ~oracle_mask(length);
    check_address(table, prefix);
    check_address(table, prefix - 1);
    check_address(table, last);
    check_address(table, last + 1);
}

static void check_same(const struct route_table *table, uint64_t *seed)
{
    CHECK_EQ(route_table_count(table), oracle.count);
    for (size_t i = 0; i < oracle.count; i++)
        check_edges(table, oracle.routes[i].prefix, oracle.routes[i].length);
    for (size_t i = 0; i < 100; i++)
        check_address(table, (uint32_t)oracle_random(seed));
}

static size_t count_nodes(const _Atomic uint64_t *entries, size_t count)
{
    size_t nodes = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t entry = entries[i];
        if (entry & ROUTE_CHILD_BIT)
            nodes += 1 + count_nodes(route_entry_child(entry)->entries, ROUTE_NODE_ENTRIES);
    }
    return nodes;
}

/* The nodes the routes need: one per /16 with a route longer than 16 in it, one per /24 with one longer than 24. */
static size_t nodes_needed(void)
{
    size_t needed = 0;
    for (uint8_t depth = 16; depth <= 24; depth += 8) {
        for (size_t i = 0; i < oracle.count; i++) {
            uint32_t place = oracle.routes[i].prefix & oracle_mask(depth);
            bool is_first = oracle.routes[i].length > depth;
            for (size_t j = 0; j < i && is_first; j++)
                is_first = oracle.routes[j].length <= depth || (oracle.routes[j].prefix & oracle_mask(depth)) != place;
            needed += is_first;
        }
    }
    return needed;
}

static void reclaim_all(struct route_table *table)
{
    route_table_reclaim(table);
    route_table_reclaim(table);
    CHECK(table->retired == NULL && table->condemned == NULL);
}

static int insert(struct route_table *table, uint32_t prefix, uint8_t length, uint32_t next_hop)
{
    const struct oracle_route *old = oracle_find(&oracle, prefix, length);
    uint32_t expected = old == NULL ? ROUTE_NONE : old->next_hop, previous = 12345;
    int error = route_table_insert(table, prefix, length, next_hop, &previous);
    if (error == 0) {
        CHECK_EQ(previous, expected);
        oracle_insert(&oracle, prefix, length, next_hop);
    }
    return error;
}

static void take_out(struct route_table *table, uint32_t prefix, uint8_t length)
{
    const struct oracle_route *old = oracle_find(&oracle, prefix, length);
    uint32_t expected = old == NULL ? 12345 : old->next_hop, previous = 12345;
    CHECK_EQ(route_table_remove(table, prefix, length, &previous), old == NULL ? -ENOENT : 0);
    CHECK_EQ(previous, expected);
    oracle_remove(&oracle, prefix, length);
}

static void take_out_all(struct route_table *table, uint64_t *seed)
{
    while (oracle.count != 0) {
        struct oracle_route victim = oracle.routes[oracle_random(seed) % oracle.count];
        take_out(table, victim.prefix, victim.length);
        check_edges(table, victim.prefix, victim.length);
    }
    CHECK_EQ(route_table_count(table), 0);
    CHECK_EQ(count_nodes(table->root, ROUTE_ROOT_ENTRIES), 0);
}

static void change(struct route_table *table, uint64_t *seed, size_t most)
{
    uint8_t length;
    uint32_t prefix = oracle_random_prefix(seed, &length);
    if (oracle_random(seed) % 3 == 0 || oracle.count >= most)
        take_out(table, prefix, length);
    else
        CHECK_EQ(insert(table, prefix, length, (uint32_t)oracle_random(seed) % 100), 0);
    check_edges(table, prefix, length);
}

static void any_sequence_of_changes_answers_like_the_oracle(void)
{
    for (uint64_t round = 0; round < 8; round++) {
        uint64_t seed = round;
        long live = faults_live();
        struct route_table *table;
        CHECK_EQ(route_table_create(&table), 0);
        oracle.count = 0;
        size_t most = round < 4 ? 30 : 600;
        for (size_t i = 0; i < 4000; i++) {
            change(table, &seed, most);
            if (oracle_random(&seed) % 8 == 0)
                route_table_reclaim(table);
            if (i % 200 == 0) {
                check_same(table, &seed);
                CHECK_EQ(count_nodes(table->root, ROUTE_ROOT_ENTRIES), nodes_needed());
            }
        }
        take_out_all(table, &seed);
        reclaim_all(table);
        CHECK_EQ(faults_live(), live + 2); /* the table and its set */
        route_table_free(table);
        CHECK_EQ(faults_live(), live);
    }
}

static void a_table_full_of_routes_is_freed_whole(void)
{
    long live = faults_live();
    uint64_t seed = 7;
    struct route_table *table;
    CHECK_EQ(route_table_create(&table), 0);
    oracle.count = 0;
    for (size_t i = 0; i < 2000; i++)
        change(table, &seed, 1000);
    route_table_free(table); /* with live, retired and condemned nodes */
    route_table_free(NULL);
    CHECK_EQ(faults_live(), live);
}

/* Every change is tried with its first, its second, ... allocation failing, until it needs none that fails. */
static void without_memory_an_insert_changes_nothing(void)
{
    uint64_t seed = 3;
    long live = faults_live();
    for (long n = 1; n <= 2; n++) {
        struct route_table *table;
        faults_fail_allocation(n);
        CHECK_EQ(route_table_create(&table), -ENOMEM);
        CHECK_EQ(faults_live(), live);
    }
    struct route_table *table;
    CHECK_EQ(route_table_create(&table), 0);
    oracle.count = 0;
    size_t failures = 0;
    for (size_t i = 0; i < 4000; i++) {
        uint8_t length;
        uint32_t prefix = oracle_random_prefix(&seed, &length), next_hop = (uint32_t)oracle_random(&seed) % 100;
        reclaim_all(table);
        if (oracle_random(&seed) % 3 == 0 || oracle.count > 300) {
            faults_fail_allocation(1); /* a removal takes none */
            take_out(table, prefix, length);
            CHECK(faults_disarm());
            continue;
        }
        long before = faults_live();
        size_t nodes = count_nodes(table->root, ROUTE_ROOT_ENTRIES);
        for (long n = 1;; n++) {
            faults_fail_allocation(n);
            int error = insert(table, prefix, length, next_hop);
            if (faults_disarm()) {
                CHECK_EQ(error, 0);
                break;
            }
            CHECK_EQ(error, -ENOMEM);
            failures++;
            check_edges(table, prefix, length);
            CHECK_EQ(route_table_count(table), oracle.count);
            CHECK_EQ(count_nodes(table->root, ROUTE_ROOT_ENTRIES), nodes);
            reclaim_all(table);
            CHECK_EQ(faults_live(), before);
        }
        if (i % 200 == 0)
            check_same(table, &seed);
    }
    CHECK(failures > 100);
    check_same(table, &seed);
    take_out_all(table, &seed);
    reclaim_all(table);
    CHECK_EQ(faults_live(), live + 2);
    route_table_free(table);
    CHECK_EQ(faults_live(), live);
}

static void out_of_memory_while_the_set_grows_leaves_no_new_node(void)
{
    struct route_table *table;
    CHECK_EQ(route_table_create(&table), 0);
    oracle.count = 0;
    CHECK_EQ(insert(table, 0, 0, 1), 0);
    for (uint32_t i = 0; i < 47; i++) /* with the default route: as many as the first 64 places take */
        CHECK_EQ(insert(table, i << 16, 16, i), 0);
    long live = faults_live();
    uint32_t fresh = UINT32_C(0x0a010203), previous;
    for (int nth = 1; nth <= 3; nth += 2) { /* the set; then, with room for one more item, the second of two nodes */
        faults_fail_allocation(nth);
        CHECK_EQ(route_table_insert(table, fresh, 32, 9, &previous), -ENOMEM);
        CHECK(!faults_disarm());
        check_edges(table, fresh, 32);
        CHECK_EQ(count_nodes(table->root, ROUTE_ROOT_ENTRIES), 0);
        reclaim_all(table);
        CHECK_EQ(faults_live(), live);
    }
    route_table_free(table);
}

static void what_is_no_prefix_is_refused_and_changes_nothing(void)
{
    struct route_table *table;
    CHECK_EQ(route_table_create(&table), 0);
    uint32_t previous = 12345;
    CHECK_EQ(route_table_insert(table, 0, 33, 1, &previous), -EINVAL);
    CHECK_EQ(route_table_insert(table, 0, 255, 1, &previous), -EINVAL);
    CHECK_EQ(route_table_insert(table, 1, 31, 1, &previous), -EINVAL);
    CHECK_EQ(route_table_insert(table, UINT32_C(0x80000000), 0, 1, &previous), -EINVAL);
    CHECK_EQ(route_table_insert(table, 0, 0, ROUTE_NONE, &previous), -EINVAL);
    CHECK_EQ(route_table_remove(table, 1, 31, &previous), -EINVAL);
    CHECK_EQ(route_table_remove(table, 0, 33, &previous), -EINVAL);
    CHECK_EQ(route_table_remove(table, 0, 0, &previous), -ENOENT);
    CHECK_EQ(previous, 12345);
    CHECK_EQ(route_table_count(table), 0);
    CHECK_EQ(route_table_lookup(table, 0), ROUTE_NONE);
    route_table_free(table);
}

static void a_node_taken_out_lives_until_the_second_reclaim(void)
{
    struct route_table *table;
    uint32_t previous;
    CHECK_EQ(route_table_create(&table), 0);
    long bare = faults_live();
    CHECK_EQ(route_table_insert(table, 0x0a010203, 32, 5, &previous), 0);
    const struct route_node *node = route_entry_child(table->root[0x0a01]);
    CHECK_EQ(route_table_remove(table, 0x0a010203, 32, &previous), 0);
    /* A reader that is still in the node sees this change of the address and no later one. */
    CHECK_EQ(node->entries[2] >> 32, ROUTE_NONE);
    CHECK_EQ(faults_live(), bare + 2);
    route_table_reclaim(table);
    CHECK_EQ(faults_live(), bare + 2);
    CHECK_EQ(node->entries[2] >> 32, ROUTE_NONE);
    route_table_reclaim(table);
    CHECK_EQ(faults_live(), bare);
    route_table_free(table);
}

static void an_insert_gives_the_route_the_current_generation(void)
{
    struct route_table *table;
    uint32_t previous;
    CHECK_EQ(route_table_create(&table), 0);
    CHECK_EQ(route_table_insert(table, 0, 8, 5, &previous), 0);
    table->generation = 4;
    CHECK_EQ(route_table_insert(table, 0, 8, 5, &previous), 0); /* the same next hop */
    CHECK_EQ(previous, 5);
    CHECK_EQ(route_set_find(&table->set, 0, 8)->generation, 4);
    CHECK_EQ(route_table_count(table), 1);
    route_table_free(table);
}

int main(void)
{
    RUN(any_sequence_of_changes_answers_like_the_oracle);
    RUN(a_table_full_of_routes_is_freed_whole);
    RUN(without_memory_an_insert_changes_nothing);
    RUN(out_of_memory_while_the_set_grows_leaves_no_new_node);
    RUN(what_is_no_prefix_is_refused_and_changes_nothing);
    RUN(a_node_taken_out_lives_until_the_second_reclaim);
    RUN(an_insert_gives_the_route_the_current_generation);
}

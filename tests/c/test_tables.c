/* The tables as the controlling thread changes them: the addresses of this host, and when memory is freed. */
#include "tables.h"

#include <errno.h>

#include "check.h"
#include "faults.h"

static struct tables tables;

static bool holds(uint32_t address)
{
    return route_table_lookup(tables.addresses, address) != ROUTE_NONE;
}

static void addresses_are_replaced_as_a_whole(void)
{
    static const uint32_t first[] = {1, 2, 0x0a010502, UINT32_MAX}, second[] = {0x0a010502, 7, 7};
    CHECK_EQ(tables_set_addresses(&tables, first, 4), 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(holds(first[i]));
    CHECK(!holds(3) && !holds(0));
    CHECK_EQ(tables_set_addresses(&tables, second, 3), 0);
    CHECK(holds(7) && holds(0x0a010502));
    CHECK(!holds(1) && !holds(2) && !holds(UINT32_MAX));
    CHECK_EQ(route_table_count(tables.addresses), 2);
    CHECK_EQ(tables_set_addresses(&tables, NULL, 0), 0);
    CHECK_EQ(route_table_count(tables.addresses), 0);
}

static void many_addresses_come_and_go(void)
{
    enum { MANY = 5000 };
    static uint32_t addresses[MANY];
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < MANY; i++)
            addresses[i] = (round * MANY / 2 + i) * UINT32_C(65537);
        CHECK_EQ(tables_set_addresses(&tables, addresses, MANY), 0);
        CHECK_EQ(route_table_count(tables.addresses), MANY);
    }
}

static void without_memory_an_address_that_stays_is_still_there(void)
{
    static const uint32_t before[] = {0x0a000001, 0x0b000001}, after[] = {0x0a000001, 0x0c000001};
    for (int nth = 1;; nth++) {
        CHECK_EQ(tables_set_addresses(&tables, before, 2), 0);
        faults_fail_allocation(nth);
        int error = tables_set_addresses(&tables, after, 2);
        bool spared = faults_disarm();
        CHECK(holds(0x0a000001));
        if (spared)
            break;
        CHECK_EQ(error, -ENOMEM);
    }
    CHECK(holds(0x0c000001) && !holds(0x0b000001));
}

/* A route that comes and goes: the trie nodes it needed are retired. */
static void change_twice(void)
{
    static const struct pump_route added = {0x0a010203, 32, 7}, withdrawn = {0x0a010203, 32, 0};
    CHECK_EQ(tables_apply(&tables, &added, 1, false), 0);
    CHECK_EQ(tables_apply(&tables, &withdrawn, 1, false), 0);
}

static void nothing_is_freed_while_the_worker_stays_in_one_epoch(void)
{
    epoch_toggle_active(&tables.epoch);
    change_twice(); /* the grace period now begins in an active epoch */
    change_twice();
    long live = faults_live();
    for (size_t i = 0; i < 10; i++)
        change_twice();
    long held = faults_live();
    CHECK(held >= live + 10);
    epoch_pass(&tables.epoch);
    change_twice();
    epoch_pass(&tables.epoch);
    change_twice();
    CHECK(faults_live() <= live);
}

static void everything_is_freed_while_the_worker_sleeps(void)
{
    change_twice();
    change_twice();
    long live = faults_live();
    for (size_t i = 0; i < 10; i++)
        change_twice();
    CHECK_EQ(faults_live(), live);
}

static void set_up(void)
{
    tables = (struct tables){0};
    CHECK_EQ(tables_init(&tables), 0);
}

#define RUN_WITH_TABLES(test) (set_up(), RUN(test), tables_clear(&tables))

int main(void)
{
    RUN_WITH_TABLES(addresses_are_replaced_as_a_whole);
    RUN_WITH_TABLES(many_addresses_come_and_go);
    RUN_WITH_TABLES(without_memory_an_address_that_stays_is_still_there);
    RUN_WITH_TABLES(nothing_is_freed_while_the_worker_stays_in_one_epoch);
    RUN_WITH_TABLES(everything_is_freed_while_the_worker_sleeps);
}

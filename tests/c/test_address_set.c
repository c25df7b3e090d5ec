/* The set of single addresses: what is in it, and that what stays is never missing. */
#include "address_set.h"

#include <errno.h>

#include "check.h"
#include "faults.h"

static struct route_table *set;

static void a_replacement_is_whole(void)
{
    static const uint32_t first[] = {1, 2, 0x0a010502, UINT32_MAX}, second[] = {0x0a010502, 7, 7};
    CHECK_EQ(address_set_replace(set, first, 4), 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(address_set_holds(set, first[i]));
    CHECK(!address_set_holds(set, 3) && !address_set_holds(set, 0));
    CHECK_EQ(address_set_replace(set, second, 3), 0);
    CHECK(address_set_holds(set, 7) && address_set_holds(set, 0x0a010502));
    CHECK(!address_set_holds(set, 1) && !address_set_holds(set, 2) && !address_set_holds(set, UINT32_MAX));
    CHECK_EQ(route_table_count(set), 2);
    CHECK_EQ(address_set_replace(set, NULL, 0), 0);
    CHECK_EQ(route_table_count(set), 0);
}

static void many_come_and_go(void)
{
    enum { MANY = 5000 };
    static uint32_t addresses[MANY];
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < MANY; i++)
            addresses[i] = (round * MANY / 2 + i) * UINT32_C(65537);
        CHECK_EQ(address_set_replace(set, addresses, MANY), 0);
        CHECK_EQ(route_table_count(set), MANY);
        route_table_reclaim(set);
    }
}

static void without_memory_what_stays_is_still_there(void)
{
    static const uint32_t before[] = {0x0a000001, 0x0b000001}, after[] = {0x0a000001, 0x0c000001};
    for (int nth = 1;; nth++) {
        CHECK_EQ(address_set_replace(set, before, 2), 0);
        faults_fail_allocation(nth);
        int error = address_set_replace(set, after, 2);
        bool spared = faults_disarm();
        CHECK(address_set_holds(set, 0x0a000001));
        if (spared)
            break;
        CHECK_EQ(error, -ENOMEM);
    }
    CHECK(address_set_holds(set, 0x0c000001) && !address_set_holds(set, 0x0b000001));
}

static void set_up(void)
{
    CHECK_EQ(route_table_create(&set), 0);
}

#define RUN_WITH_SET(test) (set_up(), RUN(test), route_table_free(set))

int main(void)
{
    RUN_WITH_SET(a_replacement_is_whole);
    RUN_WITH_SET(many_come_and_go);
    RUN_WITH_SET(without_memory_what_stays_is_still_there);
}

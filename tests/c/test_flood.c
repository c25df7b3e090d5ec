/* Floods: when the kernel is to drop datagrams, of whom, and until when. */
#include "flood.h"

#include "check.h"

enum { SECOND = 1000000000 };

static struct flood flood;
static struct flood_filter filter;

static void set_up(void)
{
    flood = (struct flood){0};
}

/* So many datagrams of a stranger at one moment. Returns how often the filter is to be made anew. */
static size_t strangers(uint32_t address, size_t count, uint64_t now)
{
    size_t changes = 0;
    for (size_t i = 0; i < count; i++)
        changes += flood_note(&flood, address, now);
    return changes;
}

static size_t sources(uint64_t now)
{
    flood_make_filter(&flood, &filter, now);
    return filter.count;
}

static void a_burst_and_the_rate_are_no_flood(void)
{
    uint64_t now = SECOND;
    CHECK_EQ(strangers(7, FLOOD_BURST, now), 0);
    for (size_t i = 0; i < (size_t)3 * FLOOD_RATE; i++) {
        now += SECOND / FLOOD_RATE;
        CHECK(!flood_note(&flood, 7, now));
        CHECK_EQ(i < FLOOD_BURST && flood_note(&flood, FLOOD_OF_PORTS, now), 0);
    }
    CHECK_EQ(sources(now), 0);
    CHECK(!filter.ports);
}

static void what_floods_is_filtered_and_nothing_else(void)
{
    CHECK_EQ(strangers(7, FLOOD_BURST + 2, SECOND), 1);
    CHECK_EQ(strangers(8, 1, SECOND), 0);
    CHECK_EQ(sources(SECOND), 1);
    CHECK_EQ(filter.sources[0], 7);
    CHECK(!filter.ports);
    size_t changes = 0;
    for (size_t i = 0; i < FLOOD_BURST + 2; i++)
        changes += flood_note(&flood, FLOOD_OF_PORTS, SECOND);
    CHECK_EQ(changes, 1);
    CHECK_EQ(sources(SECOND), 1);
    CHECK(filter.ports);
    CHECK_EQ(sources(SECOND + FLOOD_HOLD_NS), 0);
    CHECK(!filter.ports);
}

static void the_filter_stays_while_its_samples_show_a_flood(void)
{
    uint64_t now = SECOND;
    CHECK_EQ(strangers(7, FLOOD_BURST + 1, now), 1);
    for (size_t i = 0; i < 100; i++) { /* twice the rate: a sample in 128 ms */
        now += UINT64_C(1000000) * FLOOD_SAMPLE / 2;
        CHECK_EQ(strangers(7, 1, now), 0);
        CHECK_EQ(sources(now), 1);
    }
    now += FLOOD_HOLD_NS;
    CHECK_EQ(sources(now), 0);
    CHECK_EQ(strangers(7, 1, now), 0);
}

static void a_flood_from_very_many_addresses_changes_the_filter_seldom(void)
{
    size_t changes = 0;
    for (uint32_t i = 0; i < 10000000; i++) /* a million a second for ten seconds */
        changes += flood_note(&flood, i * UINT32_C(40503) ^ i << 16, SECOND + i * UINT64_C(1000));
    CHECK(changes > 0 && changes <= UINT64_C(10) * FLOOD_SOURCES);
    CHECK(sources(UINT64_C(11) * SECOND) <= FLOOD_SOURCES);
}

#define RUN_FRESH(test) (set_up(), RUN(test))

int main(void)
{
    RUN_FRESH(a_burst_and_the_rate_are_no_flood);
    RUN_FRESH(what_floods_is_filtered_and_nothing_else);
    RUN_FRESH(the_filter_stays_while_its_samples_show_a_flood);
    RUN_FRESH(a_flood_from_very_many_addresses_changes_the_filter_seldom);
}

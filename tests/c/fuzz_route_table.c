/* Any sequence of table changes, with and without memory, answers like the oracle and leaves nothing behind.
 *
 * Input: records of six bytes: what to do, a prefix length, the prefix. Prefixes shorter than SHORTEST are
 * left to the unit test: they paint thousands of entries each, and the fuzzer would spend its time on them.
 * One table serves all inputs, as each takes out what it put in.
 */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "corpus.h"
#include "faults.h"
#include "oracle.h"
#include "route_table.h"

enum { RECORD = 6, MOST = 100, SHORTEST = 12 };

static struct oracle oracle;
static struct route_table *table;

static void write_seeds(const char *directory)
{
    for (uint64_t seed = 0; seed < 8; seed++) {
        uint64_t state = seed;
        uint8_t records[RECORD * 40];
        for (uint8_t *record = records; record < records + sizeof records; record += RECORD) {
            uint32_t prefix = oracle_random_prefix(&state, &record[1]);
            record[0] = (uint8_t)oracle_random(&state);
            memcpy(record + 2, &prefix, sizeof prefix);
        }
        corpus_write(directory, records, sizeof records);
    }
}

/* NOLINTNEXTLINE(readability-non-const-parameter): as libFuzzer declares it */
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    CHECK_EQ(route_table_create(&table), 0);
    corpus_fill(*argc, *argv, write_seeds);
    return 0;
}

static void check_edges(uint32_t prefix, uint8_t length)
{
    uint32_t last = prefix | ~oracle_mask(length), edges[] = {prefix - 1, prefix, last, last + 1};
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(route_table_lookup(table, edges[i]), oracle_lookup(&oracle, edges[i], ROUTE_NONE));
}

static void insert(uint32_t prefix, uint8_t length, uint8_t what)
{
    uint32_t previous, next_hop = what >> 4;
    faults_fail_allocation(what >> 2 & 3);
    int error = route_table_insert(table, prefix, length, next_hop, &previous);
    (void)faults_disarm();
    CHECK(error == 0 || error == -ENOMEM);
    if (error == 0)
        oracle_insert(&oracle, prefix, length, next_hop);
}

static void take_out(uint32_t prefix, uint8_t length)
{
    uint32_t previous;
    int error = route_table_remove(table, prefix, length, &previous);
    CHECK_EQ(error, oracle_remove(&oracle, prefix, length) ? 0 : -ENOENT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    long live = faults_live();
    if (size > (size_t)RECORD * MOST)
        size = (size_t)RECORD * MOST;
    for (; size >= RECORD; data += RECORD, size -= RECORD) {
        uint8_t length = (uint8_t)(SHORTEST + data[1] % (33 - SHORTEST));
        uint32_t prefix;
        memcpy(&prefix, data + 2, sizeof prefix);
        prefix &= oracle_mask(length);
        if ((data[0] & 3) == 3)
            route_table_reclaim(table);
        else if ((data[0] & 3) == 2)
            take_out(prefix, length);
        else
            insert(prefix, length, data[0]);
        check_edges(prefix, length);
    }
    CHECK_EQ(route_table_count(table), oracle.count);
    for (size_t i = 0; i < oracle.count; i++)
        check_edges(oracle.routes[i].prefix, oracle.routes[i].length);
    while (oracle.count != 0) {
        struct oracle_route route = oracle.routes[0];
        take_out(route.prefix, route.length);
        check_edges(route.prefix, route.length);
    }
    route_table_reclaim(table);
    route_table_reclaim(table);
    CHECK_EQ(faults_live(), live); /* every node is gone */
    return 0;
}

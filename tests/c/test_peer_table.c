/* The peers: use counts, slots that are not reused under a reader, and memory that runs out. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "faults.h"
#include "oracle.h"
#include "peer_table.h"

enum { HOSTS = 64 };

static struct peer_table *created(void)
{
    struct peer_table *table;
    CHECK_EQ(peer_table_create(&table), 0);
    return table;
}

static uint32_t acquired(struct peer_table *table, uint32_t address)
{
    uint32_t slot;
    CHECK_EQ(peer_table_acquire(table, address, &slot), 0);
    CHECK_EQ(peer_table_at(table, slot)->address, address);
    CHECK(peer_table_find(table, address) == peer_table_at(table, slot));
    return slot;
}

static void routes_to_one_address_share_a_slot_until_the_last_goes(void)
{
    struct peer_table *table = created();
    uint32_t slot = acquired(table, 7);
    CHECK_EQ(acquired(table, 7), slot);
    CHECK(acquired(table, 8) != slot);
    CHECK_EQ(peer_table_at(table, slot)->references, 2);
    peer_table_release(table, slot);
    CHECK(peer_table_find(table, 7) == peer_table_at(table, slot));
    peer_table_release(table, slot);
    CHECK(peer_table_find(table, 7) == NULL);
    CHECK(peer_table_find(table, 8) != NULL);
    peer_table_free(table);
    peer_table_free(NULL);
}

static void a_slot_is_reused_only_after_two_reclaims(void)
{
    struct peer_table *table = created();
    uint32_t slot = acquired(table, 7);
    const struct peer *peer = peer_table_at(table, slot);
    peer_table_release(table, slot);
    for (uint32_t reclaims = 0; reclaims < 2; reclaims++) {
        /* The address is intact under a reader, and the same host gets another slot. */
        CHECK_EQ(peer->address, 7);
        CHECK(acquired(table, 100 + reclaims) != slot);
        peer_table_reclaim(table);
    }
    CHECK_EQ(acquired(table, 9), slot);
    CHECK_EQ(peer->references, 1);
    CHECK_EQ(table->slots, 3);
    peer_table_free(table);
}

static void a_host_that_comes_back_before_the_reclaim_gets_another_slot(void)
{
    struct peer_table *table = created();
    uint32_t slot = acquired(table, 7);
    counter_add(&peer_table_at(table, slot)->sent_packets, 3);
    peer_table_release(table, slot);
    uint32_t again = acquired(table, 7);
    CHECK(again != slot);
    CHECK_EQ(counter_read(&peer_table_at(table, again)->sent_packets), 0);
    peer_table_reclaim(table);
    peer_table_reclaim(table);
    CHECK(peer_table_find(table, 7) == peer_table_at(table, again));
    peer_table_free(table);
}

static void a_reused_slot_starts_with_counters_at_zero(void)
{
    struct peer_table *table = created();
    uint32_t slot = acquired(table, 7);
    struct peer *peer = peer_table_at(table, slot);
    counter *counters[] = {&peer->sent_packets, &peer->sent_bytes, &peer->received_packets, &peer->received_bytes,
                           &peer->dropped_packets};
    for (size_t i = 0; i < 5; i++)
        counter_add(counters[i], i + 1);
    peer_table_release(table, slot);
    peer_table_reclaim(table);
    peer_table_reclaim(table);
    CHECK_EQ(acquired(table, 8), slot);
    for (size_t i = 0; i < 5; i++)
        CHECK_EQ(counter_read(counters[i]), 0);
    peer_table_free(table);
}

static void any_sequence_of_uses_keeps_the_counts(void)
{
    long live = faults_live();
    uint64_t seed = 5;
    struct peer_table *table = created();
    uint32_t references[HOSTS] = {0}, slots[HOSTS];
    for (size_t i = 0; i < 50000; i++) {
        size_t host = oracle_random(&seed) % HOSTS;
        uint32_t address = (uint32_t)(0xac1e0000 + host * 0x4321); /* several nodes of the address table */
        uint64_t dice = oracle_random(&seed) % 5;
        if (dice < 2) {
            uint32_t slot = acquired(table, address);
            CHECK(references[host] == 0 || slot == slots[host]);
            slots[host] = slot;
            references[host]++;
        } else if (dice < 4 && references[host] != 0) {
            peer_table_release(table, slots[host]);
            references[host]--;
            CHECK_EQ(peer_table_find(table, address) != NULL, references[host] != 0);
        } else {
            peer_table_reclaim(table);
        }
    }
    for (size_t host = 0; host < HOSTS; host++) {
        CHECK(references[host] == 0 || peer_table_at(table, slots[host])->references == references[host]);
        for (size_t other = 0; other < host; other++)
            CHECK(references[host] == 0 || references[other] == 0 || slots[host] != slots[other]);
    }
    CHECK(table->slots <= 3 * HOSTS); /* used, retired and condemned ones: churn does not grow the table */
    peer_table_free(table);
    CHECK_EQ(faults_live(), live);
}

static void without_memory_an_acquire_changes_nothing(void)
{
    long live = faults_live();
    struct peer_table *table;
    for (long n = 1;; n++) {
        faults_fail_allocation(n);
        int error = peer_table_create(&table);
        if (faults_disarm()) {
            CHECK_EQ(error, 0);
            break;
        }
        CHECK_EQ(error, -ENOMEM);
        CHECK_EQ(faults_live(), live);
    }
    size_t failures = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t address = i * 0x10101, slot;
        for (long n = 1;; n++) {
            faults_fail_allocation(n);
            int error = peer_table_acquire(table, address, &slot);
            if (faults_disarm()) {
                CHECK_EQ(error, 0);
                break;
            }
            CHECK_EQ(error, -ENOMEM);
            failures++;
            CHECK(peer_table_find(table, address) == NULL);
            CHECK(i == 0 || peer_table_find(table, 0) == peer_table_at(table, 0));
        }
        CHECK_EQ(slot, i); /* a failed acquire gives its slot back */
        CHECK_EQ(peer_table_at(table, slot)->references, 1);
        peer_table_reclaim(table);
    }
    CHECK(failures > 1000);
    peer_table_free(table);
    CHECK_EQ(faults_live(), live);
}

static void a_million_peers_is_the_limit(void)
{
    struct peer_table *table = created();
    uint32_t slot, most = PEER_CHUNKS * PEER_CHUNK_SIZE;
    for (uint32_t i = 0; i < most; i++)
        CHECK_EQ(peer_table_acquire(table, i, &slot), 0);
    CHECK_EQ(peer_table_acquire(table, most, &slot), -ENOSPC);
    CHECK(peer_table_find(table, most) == NULL);
    CHECK_EQ(acquired(table, 5), 5); /* one that is there still takes another route */
    peer_table_release(table, most - 1);
    CHECK_EQ(peer_table_acquire(table, most, &slot), -ENOSPC);
    peer_table_reclaim(table);
    peer_table_reclaim(table);
    CHECK_EQ(acquired(table, most), most - 1);
    peer_table_free(table);
}

int main(void)
{
    RUN(routes_to_one_address_share_a_slot_until_the_last_goes);
    RUN(a_slot_is_reused_only_after_two_reclaims);
    RUN(a_host_that_comes_back_before_the_reclaim_gets_another_slot);
    RUN(a_reused_slot_starts_with_counters_at_zero);
    RUN(any_sequence_of_uses_keeps_the_counts);
    RUN(without_memory_an_acquire_changes_nothing);
    RUN(a_million_peers_is_the_limit);
}

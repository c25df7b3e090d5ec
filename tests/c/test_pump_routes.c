/* The pump's routes, running or not, with and without memory, against the oracle. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "faults.h"
#include "oracle.h"
#include "packets.h"
#include "rig.h"

static struct rig rig;

static struct oracle before, after;

static uint32_t known(struct pump *pump, uint32_t at)
{
    return pump_lookup(pump, at);
}

static void check_edges(struct pump *pump, const struct oracle *oracle)
{
    for (size_t i = 0; i < oracle->count; i++) {
        uint32_t first = oracle->routes[i].prefix, last = first | ~oracle_mask(oracle->routes[i].length);
        uint32_t edges[] = {first - 1, first, last, last + 1};
        for (size_t j = 0; j < 4; j++) {
            uint32_t hop = known(pump, edges[j]);
            CHECK(hop == oracle_lookup(&before, edges[j], 0) || hop == oracle_lookup(&after, edges[j], 0));
        }
    }
}

/* Some changes with different prefixes; *is_replace: all of them add. */
static size_t random_changes(uint64_t *seed, struct pump_route *changes, bool is_replace)
{
    size_t wanted = oracle_random(seed) % 40, count = 0;
    struct oracle *used = malloc(sizeof *used);
    CHECK(used != NULL);
    used->count = 0;
    while (count < wanted) {
        uint8_t length;
        uint32_t prefix = oracle_random_prefix(seed, &length);
        if (!is_replace && after.count != 0 && oracle_random(seed) % 2 == 0) { /* one that is there */
            const struct oracle_route *old = &after.routes[oracle_random(seed) % after.count];
            prefix = old->prefix;
            length = old->length;
        }
        if (oracle_find(used, prefix, length) != NULL) {
            wanted--;
            continue;
        }
        oracle_insert(used, prefix, length, 1);
        uint32_t hop = is_replace || oracle_random(seed) % 2 ? 1 + (uint32_t)(oracle_random(seed) % 20) : 0;
        changes[count++] = (struct pump_route){.prefix = prefix, .length = length, .public_ip = hop};
    }
    free(used);
    return count;
}

static void change_oracle(const struct pump_route *changes, size_t count, bool is_replace)
{
    if (is_replace)
        after.count = 0;
    for (size_t i = 0; i < count; i++) {
        if (changes[i].public_ip == 0)
            oracle_remove(&after, changes[i].prefix, (uint8_t)changes[i].length);
        else
            oracle_insert(&after, changes[i].prefix, (uint8_t)changes[i].length, changes[i].public_ip);
    }
}

static void check_peers(struct pump *pump)
{
    struct pump_peer_stats peers[64];
    size_t count = pump_read_peers(pump, peers, 64), expected = 0;
    for (uint32_t hop = 1; hop <= 20; hop++) {
        bool is_used = false, is_there = false;
        for (size_t i = 0; i < after.count; i++)
            is_used |= after.routes[i].next_hop == hop;
        for (size_t i = 0; i < count; i++)
            is_there |= peers[i].public_ip == hop;
        CHECK_EQ(is_there, is_used);
        expected += is_used;
    }
    CHECK_EQ(count, expected);
}

/* With every allocation failing in turn, each address has its old next hop or its new one. */
static void apply_without_memory(struct pump *pump, const struct pump_route *changes, size_t count, bool is_replace)
{
    for (long n = 1;; n++) {
        faults_fail_allocation(n);
        int error = is_replace ? pump_replace(pump, changes, count) : pump_update(pump, changes, count);
        if (faults_disarm()) {
            CHECK_EQ(error, 0);
            return;
        }
        CHECK_EQ(error, -ENOMEM);
        check_edges(pump, &before);
        check_edges(pump, &after);
    }
}

static void run_random_changes(bool is_started)
{
    uint64_t seed = is_started;
    long live = faults_live();
    struct pump *pump = rig_create(&rig);
    if (is_started)
        CHECK_EQ(pump_start(pump), 0);
    before.count = after.count = 0;
    for (size_t i = 0; i < 400; i++) {
        struct pump_route changes[64];
        bool is_replace = oracle_random(&seed) % 8 == 0;
        size_t count = random_changes(&seed, changes, is_replace);
        change_oracle(changes, count, is_replace);
        apply_without_memory(pump, changes, count, is_replace);
        CHECK_EQ(rig_stat(pump, PUMP_STAT_routes), after.count);
        struct oracle *old = malloc(sizeof *old);
        CHECK(old != NULL);
        *old = before;
        before = after; /* only the new next hop is right from here on */
        check_edges(pump, old);
        check_edges(pump, &after);
        free(old);
        check_peers(pump);
    }
    pump_free(pump);
    CHECK_EQ(faults_live(), live);
}

static void any_changes_answer_like_the_oracle_also_without_memory(void)
{
    run_random_changes(false);
    run_random_changes(true);
}

static void with_one_invalid_route_nothing_changes(void)
{
    struct pump *pump = rig_create(&rig);
    struct pump_route good[] = {rig_route("10.1.6.0", 24, "172.30.0.6"), rig_route("10.1.7.0", 24, "172.30.0.7")};
    CHECK_EQ(pump_replace(pump, good, 2), 0);
    struct pump_route bad[] = {rig_route("10.1.6.1", 24, "172.30.0.8"), rig_route("10.1.6.0", 33, "172.30.0.8"),
                               rig_route("10.0.0.0", 0, "172.30.0.8"), rig_route("10.1.6.0", UINT32_MAX, "172.30.0.8"),
                               rig_route("10.1.6.0", 256 + 24, "172.30.0.8"), rig_route("10.1.6.1", 24, NULL)};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct pump_route changes[] = {rig_route("10.1.9.0", 24, "172.30.0.9"), bad[i]};
        CHECK_EQ(pump_update(pump, changes, 2), -EINVAL);
        CHECK_EQ(pump_replace(pump, changes, 2), -EINVAL);
    }
    struct pump_route withdrawal = rig_route("10.1.6.0", 24, NULL);
    CHECK_EQ(pump_replace(pump, &withdrawal, 1), -EINVAL);
    CHECK_EQ(pump_lookup(pump, address("10.1.6.1")), address("172.30.0.6"));
    CHECK_EQ(pump_lookup(pump, address("10.1.7.1")), address("172.30.0.7"));
    CHECK_EQ(pump_lookup(pump, address("10.1.9.1")), 0);
    CHECK_EQ(rig_stat(pump, PUMP_STAT_routes), 2);
    CHECK_EQ(pump_read_peers(pump, NULL, 0), 2);
    pump_free(pump);
}

static void an_empty_table_withdraws_all_routes(void)
{
    struct pump *pump = rig_create(&rig);
    struct pump_route default_route = rig_route("0.0.0.0", 0, "172.30.0.6");
    CHECK_EQ(pump_update(pump, NULL, 0), 0);
    CHECK_EQ(pump_replace(pump, &default_route, 1), 0);
    CHECK_EQ(pump_update(pump, NULL, 0), 0);
    CHECK_EQ(pump_lookup(pump, UINT32_MAX), address("172.30.0.6"));
    CHECK_EQ(pump_replace(pump, NULL, 0), 0);
    CHECK_EQ(pump_lookup(pump, UINT32_MAX), 0);
    CHECK_EQ(pump_read_peers(pump, NULL, 0), 0);
    default_route.public_ip = 0;
    CHECK_EQ(pump_update(pump, &default_route, 1), 0); /* withdrawing what is not there does nothing */
    pump_free(pump);
}

static void a_prefix_given_twice_leaks_no_peer(void)
{
    struct pump *pump = rig_create(&rig);
    for (size_t i = 0; i < 10; i++) {
        struct pump_route twice[] = {rig_route("10.1.6.0", 24, "172.30.0.6"), rig_route("10.1.6.0", 24, "172.30.0.7"),
                                     rig_route("10.1.6.0", 24, "172.30.0.6")};
        CHECK_EQ(pump_replace(pump, twice, 3), 0);
        CHECK_EQ(pump_read_peers(pump, NULL, 0), 1);
        struct pump_route gone[] = {rig_route("10.1.6.0", 24, NULL), rig_route("10.1.6.0", 24, "172.30.0.9"),
                                    rig_route("10.1.6.0", 24, NULL)};
        CHECK_EQ(pump_update(pump, gone, 3), 0);
        CHECK_EQ(pump_read_peers(pump, NULL, 0), 0);
    }
    pump_free(pump);
}

static void churn_does_not_grow_a_running_or_a_stopped_pump(void)
{
    for (int phase = 0; phase < 3; phase++) {
        struct pump *pump = rig_create(&rig);
        if (phase > 0)
            CHECK_EQ(pump_start(pump), 0);
        if (phase == 2)
            pump_stop(pump);
        long live = 0;
        for (uint32_t i = 0; i < 3000; i++) {
            struct pump_route fresh = {.prefix = i << 12, .length = 28, .public_ip = 1 + i * 65537};
            CHECK_EQ(pump_replace(pump, &fresh, 1), 0);
            if (i == 100)
                live = faults_live();
        }
        CHECK(faults_live() < live + 20);
        pump_free(pump);
    }
}

static void what_the_pump_was_given_can_be_read_again(void)
{
    static const uint32_t addresses[] = {0x0a000001, 0x0a000002};
    struct pump *pump = rig_create(&rig);
    CHECK_EQ(pump_offloads(pump), OFFLOAD_ALL); /* every kernel that runs these tests has them */
    CHECK_EQ(pump_set_addresses(pump, addresses, 2), 0);
    faults_fail_allocation(1);
    CHECK_EQ(pump_set_addresses(pump, addresses, 1), -ENOMEM);
    CHECK(!faults_disarm());
    pump_free(pump);
}

int main(void)
{
    (void)setvbuf(stdout, NULL, _IOLBF, 0);
    rig_enter_namespace();
    RUN_ON_RIG(any_changes_answer_like_the_oracle_also_without_memory, OFFLOAD_ALL);
    RUN_ON_RIG(with_one_invalid_route_nothing_changes, OFFLOAD_ALL);
    RUN_ON_RIG(an_empty_table_withdraws_all_routes, OFFLOAD_ALL);
    RUN_ON_RIG(what_the_pump_was_given_can_be_read_again, OFFLOAD_ALL);
    RUN_ON_RIG(a_prefix_given_twice_leaks_no_peer, OFFLOAD_ALL);
    RUN_ON_RIG(churn_does_not_grow_a_running_or_a_stopped_pump, OFFLOAD_ALL);
}

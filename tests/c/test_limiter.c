/* The token bucket: the burst, the rate, and what a rest saves up. */
#include "limiter.h"

#include <stddef.h>

#include "check.h"

enum { SECOND = 1000000000, RATE = 1000, BURST = 50 };

static size_t burst(struct limiter *limiter, uint64_t now)
{
    size_t allowed = 0;
    while (allowed < (size_t)10 * BURST && limiter_take(limiter, RATE, BURST, 1, now))
        allowed++;
    return allowed;
}

static void a_burst_is_followed_by_the_rate(void)
{
    static const uint64_t starts[] = {1, SECOND, UINT64_C(1) << 62, UINT64_MAX - 20 * (uint64_t)SECOND};
    for (size_t i = 0; i < 4; i++) {
        struct limiter limiter = {0};
        uint64_t now = starts[i];
        CHECK_EQ(burst(&limiter, now), BURST);
        CHECK_EQ(burst(&limiter, now), 0);
        size_t allowed = 0;
        for (size_t step = 0; step < 100000; step++) { /* ten seconds in steps of 100 us */
            now += SECOND / 10000;
            allowed += limiter_take(&limiter, RATE, BURST, 1, now);
        }
        CHECK_EQ(allowed, 10 * RATE);
    }
}

static void a_long_pause_saves_up_one_burst(void)
{
    struct limiter limiter = {0};
    CHECK_EQ(burst(&limiter, 5), BURST);
    CHECK_EQ(burst(&limiter, UINT64_MAX), BURST);
    CHECK_EQ(burst(&limiter, UINT64_MAX), 0);
}

static void a_refused_event_does_not_delay_the_next(void)
{
    struct limiter limiter = {0};
    uint64_t now = SECOND;
    CHECK_EQ(burst(&limiter, now), BURST);
    for (size_t i = 1; i < SECOND / RATE; i += 1000)
        CHECK(!limiter_take(&limiter, RATE, BURST, 1, now + i));
    CHECK(limiter_take(&limiter, RATE, BURST, 1, now + SECOND / RATE));
}

int main(void)
{
    RUN(a_burst_is_followed_by_the_rate);
    RUN(a_long_pause_saves_up_one_burst);
    RUN(a_refused_event_does_not_delay_the_next);
}

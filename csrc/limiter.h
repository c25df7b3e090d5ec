/* limiter.h - a token bucket (pure). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct limiter {
    uint64_t tokens;     /* saved up, in nanoseconds: one event costs a second divided by the rate */
    uint64_t updated_ns; /* CLOCK_MONOTONIC; 0 before the first use */
};

/* Whether so many more events are allowed now: `rate` a second, after a burst of `burst`. If not, none is counted. */
bool limiter_take(struct limiter *limiter, uint32_t rate, uint32_t burst, uint32_t events, uint64_t now_ns);

/* limiter.h - a token bucket (pure). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct limiter {
    uint64_t tokens;     /* saved up, in nanoseconds: one event costs a second divided by the rate */
    uint64_t updated_ns; /* CLOCK_MONOTONIC; 0 before the first use */
};

/* Whether one more event is allowed now: `rate` a second, after a burst of `burst`. */
bool limiter_allow(struct limiter *limiter, uint32_t rate, uint32_t burst, uint64_t now_ns);

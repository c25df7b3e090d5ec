/* refusal.h - reports of refused datagrams, which Python may log.
 *
 * The first refusal of an outer source and reason is reported, and again after a minute. A flood from forged sources
 * must not cost much, so only a few a second are reported; the counters count all.
 *
 * The worker adds reports to a ring, one thread at a time takes them; neither waits for the other.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "limiter.h"

struct refusal {
    uint32_t outer_source, outer_port;         /* host byte order, all of them */
    uint32_t inner_source, inner_destination;  /* 0 without a valid packet */
    uint32_t reason;                           /* enum drop_reason */
};

enum {
    REFUSAL_RING = 64,
    REFUSAL_SEEN = 256,
    REFUSAL_RATE = 50, /* reports a second, after a burst that fills the ring */
};

/* The same source and reason is not reported again for this long. */
#define REFUSAL_QUIET_NS UINT64_C(60000000000)

struct refusal_queue {
    /* the adding thread's own */
    struct limiter limiter;
    struct {
        uint32_t outer_source, reason;
        uint64_t until_ns; /* CLOCK_MONOTONIC */
    } seen[REFUSAL_SEEN];  /* by hash; after a collision a source is reported again, at the limited rate */

    /* shared */
    struct refusal ring[REFUSAL_RING];
    atomic_uint written, read;
};

/* Reports the refusal, or not, as above. Returns whether the taking thread must be woken. */
bool refusal_add(struct refusal_queue *queue, const struct refusal *refusal, uint64_t now_ns);

/* Takes the oldest report. Returns whether there was one. */
bool refusal_take(struct refusal_queue *queue, struct refusal *refusal);

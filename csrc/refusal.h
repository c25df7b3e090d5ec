/* refusal.h - which refused datagrams are worth a word to Python, and the ring that carries them there.
 *
 * The first of an outer source and reason is, and again after a minute: Python decides what the log says. A flood
 * from forged sources must cost neither side much, so few a second are reported; the counters have them all.
 *
 * One thread adds (the worker), one at a time takes; neither waits for the other.
 */
#ifndef FLANNEL_UDP_REFUSAL_H
#define FLANNEL_UDP_REFUSAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "limiter.h"

struct refusal {
    uint32_t outer_source, inner_source, inner_destination; /* host byte order; inner ones 0 if not parsed */
    uint32_t reason;                                        /* enum drop_reason */
};

enum {
    REFUSAL_RING = 64,
    REFUSAL_SEEN = 256,
    REFUSAL_RATE = 50, /* reports a second, after a burst of a full ring */
};

/* A source and reason that was reported is reported again after this long. */
#define REFUSAL_QUIET_NS UINT64_C(60000000000)

struct refusal_queue {
    /* the adding thread's own */
    struct limiter limiter;
    struct {
        uint32_t outer_source, reason;
        uint64_t until_ns; /* CLOCK_MONOTONIC */
    } seen[REFUSAL_SEEN];  /* by hash: a collision costs a repeat, which the limiter bounds */

    /* shared */
    struct refusal ring[REFUSAL_RING];
    atomic_uint written, read;
};

/* Reports the refusal, if it is worth it. Whether the taking thread may sleep and must be woken. */
bool refusal_add(struct refusal_queue *queue, const struct refusal *refusal, uint64_t now_ns);

/* Takes the oldest one not yet taken. Whether there was one. */
bool refusal_take(struct refusal_queue *queue, struct refusal *refusal);

#endif

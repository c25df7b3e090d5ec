/* epoch.h - the grace period: what a change takes out of a table is freed only when the worker cannot use it any more.
 *
 * The worker, the one reader, counts epochs. The count is odd while it may hold pointers into the tables (active),
 * even while it sleeps. The writer begins a grace period after it has published a change. The period is over as soon
 * as the worker is seen asleep or its count has moved: it then finds only what the tables hold since the change.
 * Nobody waits for that; the writer checks at its next change.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct epoch {
    atomic_uint_fast64_t count;
    uint_fast64_t grace_began; /* the count at that moment (the writer's own) */
};

/* The worker becomes active, or has let go of all pointers. acq_rel: see epoch_begin_grace. */
static inline void epoch_toggle_active(struct epoch *epoch)
{
    atomic_fetch_add_explicit(&epoch->count, 1, memory_order_acq_rel);
}

/* An active worker holds no pointer at this moment. acq_rel: as above. */
static inline void epoch_pass(struct epoch *epoch)
{
    atomic_fetch_add_explicit(&epoch->count, 2, memory_order_acq_rel);
}

static inline void epoch_begin_grace(struct epoch *epoch)
{
    /* A read-modify-write, so that it is ordered against the worker's: if ours comes first, the worker's next one
     * synchronises with it and the worker sees every change; if the worker's came first, we see that it is active. */
    epoch->grace_began = atomic_fetch_add_explicit(&epoch->count, 0, memory_order_acq_rel);
}

static inline bool epoch_grace_is_over(const struct epoch *epoch)
{
    if (epoch->grace_began % 2 == 0)
        return true; /* it was asleep, and wakes up to the changed tables */
    /* acquire: the worker's last use of the old pointers happened before the count moved */
    return atomic_load_explicit(&epoch->count, memory_order_acquire) != epoch->grace_began;
}

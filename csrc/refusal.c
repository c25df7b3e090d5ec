#include "refusal.h"

#include <stddef.h>

/* The index of a source and reason in `seen`. */
static size_t place_of(const struct refusal *refusal)
{
    return ((refusal->outer_source ^ refusal->reason << 27) * UINT32_C(2654435761)) >> 24;
}

bool refusal_add(struct refusal_queue *queue, const struct refusal *refusal, uint64_t now_ns)
{
    _Static_assert(REFUSAL_SEEN == 1 << 8, "place_of gives 8 bits");
    size_t place = place_of(refusal);
    if (queue->seen[place].outer_source == refusal->outer_source &&
        queue->seen[place].reason == refusal->reason && now_ns < queue->seen[place].until_ns)
        return false;
    /* relaxed: only this thread writes it; acquire: the reader has copied the entries before the index it stored */
    unsigned written = atomic_load_explicit(&queue->written, memory_order_relaxed);
    unsigned read = atomic_load_explicit(&queue->read, memory_order_acquire);
    if (written - read == REFUSAL_RING)
        return false; /* the ring is full: a later refusal of this source is reported */
    if (!limiter_take(&queue->limiter, REFUSAL_RATE, REFUSAL_RING, 1, now_ns))
        return false; /* likewise */
    queue->seen[place].outer_source = refusal->outer_source;
    queue->seen[place].reason = refusal->reason;
    queue->seen[place].until_ns = now_ns + REFUSAL_QUIET_NS;
    queue->ring[written % REFUSAL_RING] = *refusal;
    /* seq_cst, as in refusal_take: each side stores its own index, then loads the other's, so at least one sees the
     * other's store. Either the reader finds this entry, or we find that it has taken all entries before it. */
    atomic_store_explicit(&queue->written, written + 1, memory_order_seq_cst);
    return atomic_load_explicit(&queue->read, memory_order_seq_cst) == written;
}

bool refusal_take(struct refusal_queue *queue, struct refusal *refusal)
{
    /* relaxed: only this thread writes it; seq_cst: see refusal_add */
    unsigned read = atomic_load_explicit(&queue->read, memory_order_relaxed);
    if (read == atomic_load_explicit(&queue->written, memory_order_seq_cst))
        return false;
    *refusal = queue->ring[read % REFUSAL_RING];
    atomic_store_explicit(&queue->read, read + 1, memory_order_seq_cst);
    return true;
}

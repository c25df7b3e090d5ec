/* peer_table.h - the hosts that hold leases: public address, use count, traffic counters.
 *
 * A peer lives in a slot whose number is the next hop in the route table. Slots lie in chunks that never
 * move, so a reader follows a slot number without a lock. A second route table maps public addresses to slots.
 * One writer owns addresses and references; the pump's worker alone counts; anyone may read the counters.
 */
#ifndef FLANNEL_UDP_PEER_TABLE_H
#define FLANNEL_UDP_PEER_TABLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "counters.h"
#include "route_table.h"

struct peer {
    uint32_t address;    /* host byte order; fixed while the slot is in use */
    uint32_t references; /* routes that lead here (writer) */
    uint32_t next;       /* slot after this one in a list (writer) */
    uint16_t latest_message; /* the worker's own: of those in its outbox, see outbox.c */
    counter sent_packets, sent_bytes;         /* inner packets and their bytes handed to the socket */
    counter received_packets, received_bytes; /* inner packets and their bytes accepted from the peer */
    counter dropped_packets;                  /* packets for the peer that the kernel refused to send */
    counter plain_until_ns; /* its way out refused UDP_SEGMENT: not asked before then (CLOCK_MONOTONIC); else 0 */
};

enum { PEER_CHUNK_SIZE = 256, PEER_CHUNKS = 4096 };

struct peer_table {
    struct route_table *by_address;           /* public address/32 -> slot */
    _Atomic(struct peer *) chunks[PEER_CHUNKS];
    uint32_t slots;                           /* ever used */
    uint32_t free, retired, condemned;        /* lists of slots, ended by ROUTE_NONE */
};

/* An empty table in *out. 0 or -ENOMEM. */
int peer_table_create(struct peer_table **out);

/* Frees the table; no reader may be left. NULL is fine. */
void peer_table_free(struct peer_table *table);

/* The peer in a slot that a lookup returned. */
static inline struct peer *peer_table_at(const struct peer_table *table, uint32_t slot)
{
    /* acquire: a chunk is filled with zeroes before it is published */
    struct peer *chunk = atomic_load_explicit(&table->chunks[slot / PEER_CHUNK_SIZE], memory_order_acquire);
    return &chunk[slot % PEER_CHUNK_SIZE];
}

/* The peer with this public address (host byte order), NULL if no route leads to it. */
static inline struct peer *peer_table_find(const struct peer_table *table, uint32_t address)
{
    uint32_t slot = route_table_lookup(table->by_address, address);
    return slot == ROUTE_NONE ? NULL : peer_table_at(table, slot);
}

/* One more route leads to the address; *slot is where it lives. 0, -ENOMEM, -ENOSPC (a million peers). */
int peer_table_acquire(struct peer_table *table, uint32_t address, uint32_t *slot);

/* One route less leads to the slot. The last one retires it. */
void peer_table_release(struct peer_table *table, uint32_t slot);

/* Makes the slots condemned at the last call usable again and condemns those retired since. */
void peer_table_reclaim(struct peer_table *table);

#endif

/* peer_table.h - the hosts that hold leases: public address, reference count, traffic counters.
 *
 * A peer occupies a slot, whose number is the next hop in the route table. Slots are in chunks that never move, so a
 * reader follows a slot number without a lock. A second route table maps public addresses to slots. One writer owns
 * addresses and references; only the worker counts; any thread may read the counters.
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "counters.h"
#include "route_table.h"

struct peer {
    uint32_t address;    /* host byte order; fixed while the slot is in use */
    uint32_t references; /* routes to this peer (writer) */
    uint32_t next;       /* the slot after this one in a list (writer) */
    uint16_t latest_message; /* of the peer's messages in the outbox, by index (worker; see outbox.c) */
    counter sent_packets, sent_bytes;         /* inner packets and their bytes handed to the socket */
    counter received_packets, received_bytes; /* inner packets and their bytes accepted from the peer */
    counter dropped_packets;                  /* packets for the peer that the kernel refused to send */
    counter plain_until_ns; /* the path to it refused UDP_SEGMENT: not tried before then (CLOCK_MONOTONIC); else 0 */
};

enum { PEER_CHUNK_SIZE = 256, PEER_CHUNKS = 4096 };

struct peer_table {
    struct route_table *by_address;           /* public address/32 -> slot */
    _Atomic(struct peer *) chunks[PEER_CHUNKS];
    uint32_t slots;                           /* used so far */
    uint32_t free, retired, condemned;        /* lists of slots, ended by ROUTE_NONE */
};

/* An empty table in *out. 0 or -ENOMEM. */
int peer_table_create(struct peer_table **out);

/* Frees the table; no reader may be left. NULL does nothing. */
void peer_table_free(struct peer_table *table);

/* The peer in a slot that a lookup returned. */
static inline struct peer *peer_table_at(const struct peer_table *table, uint32_t slot)
{
    /* acquire: a chunk is filled with zeroes before it is published */
    struct peer *chunk = atomic_load_explicit(&table->chunks[slot / PEER_CHUNK_SIZE], memory_order_acquire);
    return &chunk[slot % PEER_CHUNK_SIZE];
}

/* The peer with this public address (host byte order), NULL if it has no route. */
static inline struct peer *peer_table_find(const struct peer_table *table, uint32_t address)
{
    uint32_t slot = route_table_lookup(table->by_address, address);
    return slot == ROUTE_NONE ? NULL : peer_table_at(table, slot);
}

/* Adds a reference to the peer with this address, in *slot. 0, -ENOMEM, -ENOSPC (a million peers). */
int peer_table_acquire(struct peer_table *table, uint32_t address, uint32_t *slot);

/* Takes one reference away. Without references the slot is retired. */
void peer_table_release(struct peer_table *table, uint32_t slot);

/* Makes the slots usable again that were retired before the last call: a grace period must lie between two calls. */
void peer_table_reclaim(struct peer_table *table);

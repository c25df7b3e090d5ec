/* flood.h - whose datagrams the kernel is to drop before they take the receive buffer from peers (pure).
 *
 * Refused datagrams are read, counted by their reason and reported, up to FLOOD_RATE a second of one kind. Beyond that
 * the socket gets a filter. It drops those from another port than the overlay's, or from the addresses that are no
 * peers' and send that much, but passes one in FLOOD_SAMPLE. While these show that the flood goes on, the filter stays.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "limiter.h"

enum {
    FLOOD_RATE = 1000,  /* datagrams a second, from all wrong ports or from one address */
    FLOOD_BURST = 1024, /* so many at once are no flood */
    FLOOD_SAMPLE = 256, /* a power of two */
    FLOOD_SOURCES = 64,
};

/* The filter is made anew this often, and what was no flood since then is dropped no more: a stranger may become a
 * peer. */
#define FLOOD_HOLD_NS UINT64_C(1000000000)

#define FLOOD_OF_PORTS 0 /* the "address" of all datagrams from wrong ports */

struct flood {
    struct {
        uint32_t address; /* host byte order */
        struct limiter limiter;
        uint64_t until_ns; /* filtered before then (CLOCK_MONOTONIC) */
    } kinds[FLOOD_SOURCES + 1]; /* the wrong ports, then addresses by hash; those of one place share its limit, one of
                                 * them is filtered */
};

/* What the filter drops. */
struct flood_filter {
    bool ports; /* other source ports than the overlay's */
    size_t count;
    uint32_t sources[FLOOD_SOURCES]; /* host byte order */
};

/* Counts a refused datagram of an address that is no peer's, or FLOOD_OF_PORTS. Returns whether the filter must be made
 * anew. */
bool flood_note(struct flood *flood, uint32_t address, uint64_t now_ns);

/* Makes the filter that is right from now on. */
void flood_make_filter(const struct flood *flood, struct flood_filter *filter, uint64_t now_ns);

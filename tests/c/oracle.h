/* oracle.h - longest prefix match the plain way: a list of routes, searched from end to end. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct oracle_route {
    uint32_t prefix, next_hop;
    uint8_t length;
};

enum { ORACLE_CAPACITY = 4096 };

struct oracle {
    size_t count;
    struct oracle_route routes[ORACLE_CAPACITY];
};

/* The netmask of a prefix length 0..32. */
uint32_t oracle_mask(uint8_t length);

/* The route of exactly this prefix, NULL if there is none. */
struct oracle_route *oracle_find(struct oracle *oracle, uint32_t prefix, uint8_t length);

/* Adds a route or changes its next hop. */
void oracle_insert(struct oracle *oracle, uint32_t prefix, uint8_t length, uint32_t next_hop);

/* Whether there was such a route to remove. */
bool oracle_remove(struct oracle *oracle, uint32_t prefix, uint8_t length);

/* The next hop of the longest prefix that holds the address, `none` if none does. */
uint32_t oracle_lookup(const struct oracle *oracle, uint32_t address, uint32_t none);

/* The next number of a reproducible sequence (splitmix64). */
uint64_t oracle_random(uint64_t *state);

/* A prefix from a small, crowded part of the address space: many nest, and many share a node. */
uint32_t oracle_random_prefix(uint64_t *state, uint8_t *length);

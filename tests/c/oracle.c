#include "oracle.h"

#include "check.h"

uint32_t oracle_mask(uint8_t length)
{
    uint32_t mask = 0;
    for (uint8_t i = 0; i < length; i++)
        mask = mask >> 1 | UINT32_C(1) << 31;
    return mask;
}

struct oracle_route *oracle_find(struct oracle *oracle, uint32_t prefix, uint8_t length)
{
    for (size_t i = 0; i < oracle->count; i++) {
        if (oracle->routes[i].prefix == prefix && oracle->routes[i].length == length)
            return &oracle->routes[i];
    }
    return NULL;
}

void oracle_insert(struct oracle *oracle, uint32_t prefix, uint8_t length, uint32_t next_hop)
{
    struct oracle_route *route = oracle_find(oracle, prefix, length);
    if (route == NULL) {
        CHECK(oracle->count < ORACLE_CAPACITY);
        route = &oracle->routes[oracle->count++];
    }
    *route = (struct oracle_route){.prefix = prefix, .length = length, .next_hop = next_hop};
}

bool oracle_remove(struct oracle *oracle, uint32_t prefix, uint8_t length)
{
    struct oracle_route *route = oracle_find(oracle, prefix, length);
    if (route == NULL)
        return false;
    *route = oracle->routes[--oracle->count];
    return true;
}

uint32_t oracle_lookup(const struct oracle *oracle, uint32_t address, uint32_t none)
{
    const struct oracle_route *best = NULL;
    for (size_t i = 0; i < oracle->count; i++) {
        const struct oracle_route *route = &oracle->routes[i];
        if ((address & oracle_mask(route->length)) == route->prefix &&
            (best == NULL || route->length > best->length))
            best = route;
    }
    return best == NULL ? none : best->next_hop;
}

uint64_t oracle_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t oracle_random_prefix(uint64_t *state, uint8_t *length)
{
    static const uint32_t corners[] = {0, UINT32_MAX, UINT32_C(0x0a010000), UINT32_C(0x0a01ffff),
                                       UINT32_C(0x0a020000), UINT32_C(0x80000000)};
    uint64_t dice = oracle_random(state);
    uint32_t near = corners[dice % (sizeof corners / sizeof *corners)];
    uint32_t scatter = (uint32_t)(dice >> 32) & ((UINT32_C(1) << (dice >> 8 & 15)) - 1);
    /* Half of the lengths are those of real leases and their neighbours, where the strides end. */
    static const uint8_t strides[] = {15, 16, 17, 23, 24, 25, 31, 32};
    *length = dice >> 16 & 1 ? strides[dice >> 17 & 7] : (uint8_t)((dice >> 17 & 0xff) % 33);
    return (near ^ scatter) & oracle_mask(*length);
}

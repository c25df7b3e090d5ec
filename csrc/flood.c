#include "flood.h"

static size_t place_of(uint32_t address)
{
    _Static_assert(FLOOD_SOURCES == 1 << 6, "the hash has 6 bits");
    return address == FLOOD_OF_PORTS ? 0 : 1 + ((address * UINT32_C(2654435761)) >> 26);
}

bool flood_note(struct flood *flood, uint32_t address, uint64_t now_ns)
{
    size_t place = place_of(address);
    bool was_filtered = now_ns < flood->kinds[place].until_ns;
    if (was_filtered && flood->kinds[place].address != address)
        return false;
    flood->kinds[place].address = address;
    if (limiter_take(&flood->kinds[place].limiter, FLOOD_RATE, FLOOD_BURST, was_filtered ? FLOOD_SAMPLE : 1, now_ns))
        return false;
    flood->kinds[place].until_ns = now_ns + FLOOD_HOLD_NS;
    return !was_filtered;
}

void flood_make_filter(const struct flood *flood, struct flood_filter *filter, uint64_t now_ns)
{
    *filter = (struct flood_filter){.ports = now_ns < flood->kinds[0].until_ns};
    for (size_t i = 1; i <= FLOOD_SOURCES; i++) {
        if (now_ns < flood->kinds[i].until_ns)
            filter->sources[filter->count++] = flood->kinds[i].address;
    }
}

#include "flood.h"

static bool is_filtered(const struct flood_kind *kind, uint64_t now_ns)
{
    return now_ns < kind->until_ns;
}

static bool note(struct flood_kind *kind, uint64_t now_ns)
{
    bool was_filtered = is_filtered(kind, now_ns);
    if (limiter_take(&kind->limiter, FLOOD_RATE, FLOOD_BURST, was_filtered ? FLOOD_SAMPLE : 1, now_ns))
        return false;
    kind->until_ns = now_ns + FLOOD_HOLD_NS;
    return !was_filtered;
}

bool flood_note_port(struct flood *flood, uint64_t now_ns)
{
    return note(&flood->ports, now_ns);
}

bool flood_note_stranger(struct flood *flood, uint32_t address, uint64_t now_ns)
{
    _Static_assert(FLOOD_SOURCES == 1 << 6, "the hash has 6 bits");
    size_t place = (address * UINT32_C(2654435761)) >> 26;
    if (flood->strangers[place].address != address) {
        if (is_filtered(&flood->strangers[place].kind, now_ns))
            return false;
        flood->strangers[place].address = address;
    }
    return note(&flood->strangers[place].kind, now_ns);
}

static void hold_until(struct flood_filter *filter, const struct flood_kind *kind)
{
    if (kind->until_ns < filter->until_ns)
        filter->until_ns = kind->until_ns;
}

void flood_make_filter(const struct flood *flood, struct flood_filter *filter, uint64_t now_ns)
{
    *filter = (struct flood_filter){.ports = is_filtered(&flood->ports, now_ns), .until_ns = UINT64_MAX};
    if (filter->ports)
        hold_until(filter, &flood->ports);
    for (size_t i = 0; i < FLOOD_SOURCES; i++) {
        if (!is_filtered(&flood->strangers[i].kind, now_ns))
            continue;
        filter->sources[filter->count++] = flood->strangers[i].address;
        hold_until(filter, &flood->strangers[i].kind);
    }
}

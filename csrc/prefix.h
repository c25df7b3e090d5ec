/* prefix.h - IPv4 prefixes, in host byte order. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* The netmask of a prefix length 0..32. */
static inline uint32_t prefix_mask(uint32_t length)
{
    return length == 0 ? 0 : UINT32_MAX << (32 - length);
}

/* Whether the length is at most 32 and all host bits are zero. */
static inline bool prefix_is_valid(uint32_t prefix, uint32_t length)
{
    return length <= 32 && (prefix & ~prefix_mask(length)) == 0;
}

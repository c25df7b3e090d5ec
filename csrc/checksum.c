#include "checksum.h"

#if defined(__x86_64__)

/* Four 64-bit lanes: one AVX2 register. */
typedef uint64_t lanes __attribute__((vector_size(32)));

/* The halves of each lane are summed separately, so no carry is lost below 2^32 additions. `length` is a multiple of
 * 64. */
__attribute__((target("avx2"))) static uint64_t add_blocks_avx2(uint64_t sum, const uint8_t *at, size_t length)
{
    const lanes low = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
    lanes a = {0}, b = {0}, c = {0}, d = {0};
    for (; length >= 64; at += 64, length -= 64) {
        lanes first, second;
        memcpy(&first, at, sizeof first);
        memcpy(&second, at + 32, sizeof second);
        a += first & low;
        b += first >> 32;
        c += second & low;
        d += second >> 32;
    }
    a += b + c + d;
    return sum + a[0] + a[1] + a[2] + a[3];
}

#endif

uint64_t checksum_add_payload(uint64_t sum, const void *bytes, size_t length)
{
    size_t blocks = 0;
#if defined(__x86_64__)
    if (length >= 64 && __builtin_cpu_supports("avx2")) {
        blocks = length & ~(size_t)63;
        sum = add_blocks_avx2(sum, bytes, blocks);
    }
#endif
    return checksum_add(sum, (const uint8_t *)bytes + blocks, length - blocks);
}

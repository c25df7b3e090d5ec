/* kernels.c - loops over the pure parts of the pump, and over the least work that any code would have to do instead.
 *
 * Every function repeats its work `times` times. The results go to a volatile variable, so that the compiler does not
 * remove the work.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "checksum.h"
#include "coalesce.h"
#include "packet.h"
#include "route_table.h"
#include "segment.h"

volatile uint64_t kernels_result;

void run_memcpy(uint8_t *to, const uint8_t *from, size_t length, size_t times)
{
    for (size_t i = 0; i < times; i++) {
        memcpy(to, from, length);
        __asm__ volatile("" : : "r"(to) : "memory");
    }
}

void run_checksum(const uint8_t *bytes, size_t length, size_t times)
{
    for (size_t i = 0; i < times; i++) {
        kernels_result += checksum_of(bytes, length);
        __asm__ volatile("" : : "r"(bytes) : "memory");
    }
}

void run_lookup(const struct route_table *table, const uint32_t *addresses, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += route_table_lookup(table, addresses[i]);
    kernels_result += sum;
}

void run_array_reads(const uint64_t *array, const uint32_t *indexes, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += array[indexes[i]];
    kernels_result += sum;
}

/* A table of the first `count` subnets of length 24, each with its own next hop. NULL on error. */
struct route_table *new_table(uint32_t network, size_t count)
{
    struct route_table *table;
    uint32_t previous;
    if (route_table_create(&table) != 0)
        return NULL;
    for (uint32_t at = 0; at < count; at++)
        if (route_table_insert(table, network + (at << 8), 24, at, &previous) != 0)
            abort();
    return table;
}

/* The memory of such a table in bytes, without the writer's hash set. */
size_t table_bytes(size_t count)
{
    size_t nodes = (count + ROUTE_NODE_ENTRIES - 1) / ROUTE_NODE_ENTRIES;
    return sizeof(struct route_table) + nodes * sizeof(struct route_node);
}

void run_build(uint32_t network, size_t count)
{
    route_table_free(new_table(network, count));
}

/* Changes the next hop of the subnet `times` times. */
void run_changes(struct route_table *table, uint32_t subnet, size_t times)
{
    uint32_t previous;
    for (uint32_t at = 0; at < times; at++)
        if (route_table_insert(table, subnet, 24, at, &previous) != 0)
            abort();
}

/* Cuts the superpacket. Without `to` only the headers are made, as in the pump; with it whole packets are written one
 * after another. Returns their number, 0 on error. */
size_t run_segment(uint8_t *to, const uint8_t *bytes, size_t length, uint16_t size, size_t times)
{
    static uint8_t headers[SEGMENT_COUNT_MAX][SEGMENT_HEADER_MAX];
    const struct virtio_net_hdr vnet = {.gso_type = VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = size};
    struct packet packet;
    struct segmenter segmenter = {0};
    struct iovec payload;
    for (size_t i = 0; i < times; i++) {
        if (packet_parse(&packet, bytes, length) != 0 || segment_begin(&segmenter, &packet, &vnet) < 0)
            return 0;
        for (size_t at = 0; at < segmenter.count; at++) {
            segment_make(&segmenter, at, headers[at], &payload);
            if (to == NULL)
                continue;
            memcpy(to, headers[at], segmenter.headers);
            memcpy(to + segmenter.headers, payload.iov_base, payload.iov_len);
            to += segmenter.headers + payload.iov_len;
        }
        __asm__ volatile("" : : "r"(headers) : "memory");
    }
    return segmenter.count;
}

/* Merges `length` bytes of packets of `size` bytes, the last perhaps shorter. Returns the number of superpackets. */
size_t run_coalesce(const uint8_t *bytes, size_t length, size_t size, size_t times)
{
    static struct coalescer coalescer = {.tcp = true, .udp = true};
    struct virtio_net_hdr vnet;
    uint8_t header[SEGMENT_HEADER_MAX];
    struct iovec iov[COALESCE_IOVECS];
    for (size_t i = 0; i < times; i++) {
        coalesce_reset(&coalescer);
        for (size_t at = 0; at < length; at += size) {
            struct packet packet;
            if (packet_parse(&packet, bytes + at, length - at < size ? length - at : size) != 0)
                return 0;
            (void)coalesce_add(&coalescer, &packet);
        }
        for (size_t at = 0; at < coalescer.bundle_count; at++)
            kernels_result += coalesce_build(&coalescer, at, &vnet, header, iov);
    }
    return coalescer.bundle_count;
}

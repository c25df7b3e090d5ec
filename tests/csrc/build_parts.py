"""The extension ``csrc_parts``: the parts of the pump that the tests call by themselves.

``python -m tests.csrc.build_parts build/parts`` compiles it into that folder, which pytest's
``pythonpath`` names. It is made of the same C files as the pump and is never installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cffi import FFI

from build_ext import OPTIONS

ffi = FFI()

ffi.cdef(
    """
    #define ROUTE_NONE ...
    struct route_table;
    int route_table_create(struct route_table **out);
    void route_table_free(struct route_table *table);
    uint32_t route_table_lookup(const struct route_table *table, uint32_t address);
    int route_table_insert(struct route_table *table, uint32_t prefix, uint8_t length,
                           uint32_t next_hop, uint32_t *previous);
    int route_table_remove(struct route_table *table, uint32_t prefix, uint8_t length,
                           uint32_t *previous);
    void route_table_reclaim(struct route_table *table);
    size_t route_table_count(const struct route_table *table);

    #define ICMP_REPLY_MAX ...
    struct packet { ...; };
    int packet_parse(struct packet *packet, const uint8_t *bytes, size_t length);
    _Bool icmp_may_answer(const struct packet *packet);
    size_t icmp_net_unreachable(uint8_t *reply, uint32_t source, const struct packet *packet);
    uint16_t checksum_of(const void *bytes, size_t length);
    uint64_t checksum_add_payload(uint64_t sum, const void *bytes, size_t length);
    uint16_t checksum_fold(uint64_t sum);

    #define SEGMENT_HEADER_MAX ...
    #define COALESCE_IOVECS ...
    struct iovec { void *iov_base; size_t iov_len; };
    struct virtio_net_hdr {
        uint8_t flags, gso_type;
        uint16_t hdr_len, gso_size, csum_start, csum_offset;
    };
    struct segmenter { size_t headers, count; ...; };
    int segment_begin(struct segmenter *segmenter, const struct packet *packet,
                      const struct virtio_net_hdr *vnet);
    void segment_make(const struct segmenter *segmenter, size_t index, uint8_t *header,
                      struct iovec *payload);
    int segment_complete_checksum(uint8_t *bytes, const struct packet *packet,
                                  const struct virtio_net_hdr *vnet);
    struct coalescer { _Bool tcp, udp; size_t packet_count, bundle_count; ...; };
    void coalesce_reset(struct coalescer *coalescer);
    _Bool coalesce_add(struct coalescer *coalescer, const struct packet *packet);
    size_t coalesce_build(const struct coalescer *coalescer, size_t index,
                          struct virtio_net_hdr *vnet, uint8_t *header, struct iovec *iov);
    """
)

ffi.set_source(
    "csrc_parts",
    """
    #include "checksum.h"
    #include "coalesce.h"
    #include "icmp.h"
    #include "route_table.h"
    #include "segment.h"
    """,
    **OPTIONS,
)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    ffi.compile(str(folder))

"""The compiled extension of backends.pump: cffi in API mode over the C files in csrc/."""

import sys
from pathlib import Path

from cffi import FFI

CSRC = Path("csrc")
SOURCES = (
    "address_set",
    "checksum",
    "coalesce",
    "filter",
    "icmp",
    "inbound",
    "limiter",
    "outbound",
    "outbox",
    "packet",
    "peer_table",
    "refusal",
    "route_set",
    "route_table",
    "segment",
    "tun_device",
    "tunpump",
    "udp_socket",
    "worker",
)

# Some 32-bit machines (mips, powerpc, armel) have no 64-bit atomics but those of libatomic. On the
# others --as-needed leaves it out, and 64-bit ones may not even have it installed.
LIBATOMIC = ["-Wl,--as-needed", "-latomic", "-Wl,--no-as-needed"] if sys.maxsize < 2**32 else []

ffi = FFI()

ffi.cdef(
    """
    struct pump_config {
        int tun_fd, udp_fd;
        uint32_t network, network_length, subnet, subnet_length, public_ip, tun_address;
        int check_source;
        unsigned offloads;
        uint32_t busy_poll_us;
    };
    #define OFFLOAD_TSO ...
    #define OFFLOAD_USO ...
    #define OFFLOAD_UDP_GSO ...
    #define OFFLOAD_UDP_GRO ...
    struct pump_route { uint32_t prefix, length, public_ip; };
    struct pump_peer_stats {
        uint32_t public_ip, refuses_segments;
        uint64_t sent_packets, sent_bytes, received_packets, received_bytes, dropped_packets;
    };
    struct refusal { uint32_t outer_source, inner_source, inner_destination, reason; };
    struct pump;

    int pump_create(const struct pump_config *config, struct pump **out);
    int pump_start(struct pump *pump);
    int pump_restart(struct pump *pump, int tun_fd, int udp_fd);
    void pump_stop(struct pump *pump);
    void pump_free(struct pump *pump);
    int pump_replace(struct pump *pump, const struct pump_route *routes, size_t count);
    int pump_update(struct pump *pump, const struct pump_route *changes, size_t count);
    int pump_set_addresses(struct pump *pump, const uint32_t *addresses, size_t count);
    const char *pump_stat_name(unsigned stat);
    void pump_read_stats(struct pump *pump, uint64_t *values, size_t capacity);
    size_t pump_read_peers(struct pump *pump, struct pump_peer_stats *peers, size_t capacity);
    uint32_t pump_lookup(struct pump *pump, uint32_t address);
    unsigned pump_offloads(struct pump *pump);
    unsigned pump_refused_offloads(const struct pump *pump);
    uint64_t pump_offload_changes(const struct pump *pump);
    int pump_event_fd(const struct pump *pump);
    int pump_next_refusal(struct pump *pump, struct refusal *refusal);
    int pump_failure(const struct pump *pump);

    #define TUN_NAME_SIZE ...
    int tun_device_open(const char *pattern, _Bool vnet_header, char *name);
    int tun_device_identify(int fd, char *name, _Bool *vnet_header);
    struct tun_device { unsigned offloads; ...; };
    int tun_device_attach(struct tun_device *tun, int fd, unsigned wanted);
    unsigned udp_socket_attach(int fd, unsigned wanted);
    int udp_socket_open(uint32_t address, uint16_t port);

    /* The pure parts, for the tests and the benchmarks. */
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
    int segment_complete_checksum(uint8_t *bytes, size_t length, uint8_t protocol,
                                  const struct virtio_net_hdr *vnet);
    struct coalescer { _Bool tcp, udp; size_t packet_count, bundle_count; ...; };
    void coalesce_reset(struct coalescer *coalescer);
    _Bool coalesce_add(struct coalescer *coalescer, const struct packet *packet);
    size_t coalesce_build(const struct coalescer *coalescer, size_t index,
                          struct virtio_net_hdr *vnet, uint8_t *header, struct iovec *iov);
    """
)

ffi.set_source(
    "flannel_udp.backends.pump._pump",
    """
    #include "checksum.h"
    #include "coalesce.h"
    #include "icmp.h"
    #include "route_table.h"
    #include "segment.h"
    #include "tun_device.h"
    #include "tunpump.h"
    #include "udp_socket.h"
    """,
    sources=[str(CSRC / f"{name}.c") for name in SOURCES],
    include_dirs=[str(CSRC)],
    depends=[str(header) for header in sorted(CSRC.glob("*.h"))],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O3", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"],
    libraries=["pthread"],
    extra_link_args=LIBATOMIC,
)

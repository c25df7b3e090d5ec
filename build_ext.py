"""The compiled extension of backends.pump, made by cffi in API mode from the C files in csrc/."""

import platform
import sys
from pathlib import Path
from typing import Any

from cffi import FFI

CSRC = Path(__file__).parent / "csrc"

# Some 32-bit machines (mips, powerpc, armel) need libatomic for 64-bit atomics; on the others
# --as-needed leaves it out. A 64-bit machine may not have it installed.
LIBATOMIC = ["-Wl,--as-needed", "-latomic", "-Wl,--no-as-needed"] if sys.maxsize < 2**32 else []

# What limits the damage of a fault in the C files. Level 3 of _FORTIFY_SOURCE needs gcc 12 or
# clang 9; glibc warns if others ask for it. Off under ASan, which intercepts plain calls only.
FORTIFY = "(__SANITIZE_ADDRESS__ ? 0 : __GNUC__ > 11 || __clang_major__ > 8 ? 3 : 2)"
BRANCHES = {"x86_64": ["-fcf-protection=full"], "aarch64": ["-mbranch-protection=standard"]}
HARDENING = [
    *("-U_FORTIFY_SOURCE", f"-D_FORTIFY_SOURCE={FORTIFY}"),
    *("-fstack-protector-strong", "-fstack-clash-protection"),
    *BRANCHES.get(platform.machine(), []),
]

# How every extension made of the C files is compiled, also those of the tests and the benchmarks.
OPTIONS: dict[str, Any] = {
    "sources": [str(source) for source in sorted(CSRC.glob("*.c"))],
    "include_dirs": [str(CSRC)],
    "depends": [str(header) for header in sorted(CSRC.glob("*.h"))],
    "define_macros": [("_GNU_SOURCE", None)],
    "extra_compile_args": [
        *("-std=gnu11", "-O3", "-g", "-fvisibility=hidden", "-Wall", "-Wextra"),
        *HARDENING,
    ],
    "libraries": ["pthread"],
    "extra_link_args": ["-Wl,-z,relro,-z,now,-z,noexecstack", *LIBATOMIC],
}

ffi = FFI()

ffi.cdef(
    """
    struct pump_config {
        int tun_fd, udp_fd;
        uint32_t network, network_length, subnet, subnet_length, public_ip, tun_address;
        int check_source, check_port;
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
    struct refusal { uint32_t outer_source, outer_port, inner_source, inner_destination, reason; };
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
    """
)

ffi.set_source(
    "flannel_udp.backends.pump._pump",
    """
    #include "tun_device.h"
    #include "tunpump.h"
    #include "udp_socket.h"
    """,
    **OPTIONS,
)

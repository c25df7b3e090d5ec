"""A thin wrapper of the packet pump: checks lengths, calls C, turns -errno into OSError.

It holds no logic, and is the only module that imports the compiled extension. Callers pass
``ipaddress`` types, which become 32-bit integers in host byte order.
"""

import enum
import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Self

from flannel_udp.backends.pump._pump import ffi, lib


class Offload(enum.Flag):
    """Kernel features that carry many packets at once (csrc/offload.h)."""

    TSO = lib.OFFLOAD_TSO
    USO = lib.OFFLOAD_USO
    UDP_GSO = lib.OFFLOAD_UDP_GSO
    UDP_GRO = lib.OFFLOAD_UDP_GRO


NO_OFFLOADS = Offload(0)
_ROUTE_SIZE = ffi.sizeof("struct pump_route")
ALL_OFFLOADS = Offload.TSO | Offload.USO | Offload.UDP_GSO | Offload.UDP_GRO


@dataclass(frozen=True, slots=True)
class PumpConfig:
    """The descriptors, which are borrowed until ``Pump.close``, and the addresses of this host.

    ``offloads`` are used where the kernel has them; ``busy_poll_us`` is how many microseconds the
    worker polls for packets before it sleeps.
    """

    tun_fd: int
    udp_fd: int
    network: IPv4Network
    subnet: IPv4Network
    public_ip: IPv4Address
    tun_address: IPv4Address
    check_source: bool = True
    offloads: Offload = NO_OFFLOADS
    busy_poll_us: int = 0
    check_port: bool = False


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One peer's traffic since its first route: inner packets and their bytes.

    ``dropped_packets`` counts what the kernel refused to send to it; ``refuses_gso``: at present
    it refuses UDP GSO towards this peer.
    """

    public_ip: IPv4Address
    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    dropped_packets: int
    refuses_gso: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first refused datagram of an outer source; ``reason`` is the counter in ``Pump.stats``.

    The inner addresses are 0.0.0.0 if the datagram held no IPv4 packet.
    """

    outer_source: IPv4Address
    outer_port: int
    inner_source: IPv4Address
    inner_destination: IPv4Address
    reason: str


def _check(rc: int) -> int:
    if rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


def _stat_names() -> tuple[str, ...]:
    names: list[str] = []
    while (name := lib.pump_stat_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return tuple(names)


STAT_NAMES = _stat_names()
_DROP_NAMES = tuple(name for name in STAT_NAMES if name.startswith("drop_"))


def open_tun(pattern: str = "flannel%d", *, vnet_header: bool = True) -> tuple[int, str]:
    """A TUN device's descriptor and name; ``%d`` becomes the first free number.

    Without ``vnet_header`` the device can have no offloads. Raises OSError.
    """
    name = ffi.new("char[]", lib.TUN_NAME_SIZE)
    fd = _check(lib.tun_device_open(pattern.encode(), vnet_header, name))
    return fd, ffi.string(name).decode()


def identify_tun(fd: int) -> tuple[str, bool]:
    """The name of an open TUN device and whether it has vnet headers. Raises OSError."""
    name = ffi.new("char[]", lib.TUN_NAME_SIZE)
    vnet_header = ffi.new("_Bool *")
    _check(lib.tun_device_identify(fd, name, vnet_header))
    return ffi.string(name).decode(), bool(vnet_header[0])


def open_udp(address: IPv4Address, port: int) -> int:
    """A UDP socket's descriptor, bound to ``address:port``. Raises OSError."""
    return _check(lib.udp_socket_open(int(address), port))


def probe_offloads(tun_fd: int, udp_fd: int, wanted: Offload) -> Offload:
    """Enable those of the wanted offloads that the kernel has, and return them. Raises OSError."""
    tun = ffi.new("struct tun_device *")
    _check(lib.tun_device_attach(tun, tun_fd, wanted.value))
    return Offload(tun.offloads | lib.udp_socket_attach(udp_fd, wanted.value))


class Pump:
    """A native thread that carries packets between a TUN device and a UDP socket.

    Any thread may call any method, also during ``close``; route changes are serialised in C.
    """

    def __init__(self, config: PumpConfig) -> None:
        c_config = ffi.new(
            "struct pump_config *",
            {
                "tun_fd": config.tun_fd,
                "udp_fd": config.udp_fd,
                "network": int(config.network.network_address),
                "network_length": config.network.prefixlen,
                "subnet": int(config.subnet.network_address),
                "subnet_length": config.subnet.prefixlen,
                "public_ip": int(config.public_ip),
                "tun_address": int(config.tun_address),
                "check_source": config.check_source,
                "check_port": config.check_port,
                "offloads": config.offloads.value,
                "busy_poll_us": config.busy_poll_us,
            },
        )
        out = ffi.new("struct pump **")
        _check(lib.pump_create(c_config, out))
        self._open: Any = ffi.gc(out[0], lib.pump_free)

    @property
    def _pump(self) -> Any:
        """The pump in C. It is freed with the last reference to it: a call under way holds one."""
        pump = self._open
        if pump is None:
            raise OSError(errno.EBADF, "the packet pump is closed")
        return pump

    def start(self) -> None:
        """Starts carrying packets. Raises OSError."""
        _check(lib.pump_start(self._pump))

    def restart(self, tun_fd: int, udp_fd: int) -> None:
        """Runs again between other ends, with the same routes, peers and counters.

        For a pump whose device or socket is gone. After an OSError it does not run and may be
        restarted again, unless it is ECANCELED: ``stop`` was called, and that is final.
        """
        _check(lib.pump_restart(self._pump, tun_fd, udp_fd))

    def stop(self) -> None:
        """Stops carrying packets for good; the routes and the counters stay."""
        lib.pump_stop(self._pump)

    def close(self) -> None:
        """Stops the worker, waits for it, and has later calls raise OSError.

        The descriptors stay open.
        """
        pump, self._open = self._open, None
        if pump is not None:
            lib.pump_stop(pump)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def replace(self, routes: Mapping[IPv4Network, IPv4Address]) -> None:
        """Makes these the routes (subnet -> PublicIP of its host). Raises OSError."""
        c_routes = _routes(routes)
        _check(lib.pump_replace(self._pump, c_routes, len(c_routes)))

    def update(
        self, added: Mapping[IPv4Network, IPv4Address], removed: Iterable[IPv4Network] = ()
    ) -> None:
        """Adds or changes some routes and withdraws others; the rest stay. Raises OSError."""
        c_changes = _routes(added, removed)
        _check(lib.pump_update(self._pump, c_changes, len(c_changes)))

    def load(self, table: bytes) -> None:
        """Makes a packed table the routes, fast. Raises OSError, ValueError if it is cut short."""
        if len(table) % _ROUTE_SIZE:
            raise ValueError(f"a table of {len(table)} bytes does not end with a route")
        c_routes = ffi.from_buffer("struct pump_route[]", table)
        _check(lib.pump_replace(self._pump, c_routes, len(c_routes)))

    def set_addresses(self, addresses: Iterable[IPv4Address]) -> None:
        """Sets this host's addresses, which no peer may use as an inner source. Raises OSError."""
        c_addresses = ffi.new("uint32_t[]", [int(address) for address in addresses])
        _check(lib.pump_set_addresses(self._pump, c_addresses, len(c_addresses)))

    def lookup(self, address: IPv4Address) -> IPv4Address | None:
        """The PublicIP a packet to ``address`` would be sent to."""
        public_ip = lib.pump_lookup(self._pump, int(address))
        return IPv4Address(public_ip) if public_ip else None

    def stats(self) -> dict[str, int]:
        """Every statistic by name: packets, bytes, ``drop_<reason>``, CPU nanoseconds."""
        values = ffi.new("uint64_t[]", len(STAT_NAMES))
        lib.pump_read_stats(self._pump, values, len(values))
        return dict(zip(STAT_NAMES, values, strict=True))

    def peers(self) -> list[PeerStats]:
        """Every peer that a route leads to, with its traffic."""
        capacity = lib.pump_read_peers(self._pump, ffi.NULL, 0)
        rows = ffi.new("struct pump_peer_stats[]", capacity)
        count = min(capacity, lib.pump_read_peers(self._pump, rows, capacity))
        return [
            PeerStats(
                IPv4Address(row.public_ip),
                row.sent_packets,
                row.sent_bytes,
                row.received_packets,
                row.received_bytes,
                row.dropped_packets,
                bool(row.refuses_segments),
            )
            for row in rows[0:count]
        ]

    @property
    def offloads(self) -> Offload:
        """The offloads in use."""
        return Offload(lib.pump_offloads(self._pump))

    @property
    def refused_offloads(self) -> Offload:
        """TSO or USO, if the TUN device at present refuses superpackets of that kind."""
        return Offload(lib.pump_refused_offloads(self._pump))

    @property
    def offload_changes(self) -> int:
        """How often the refusals of the TUN device, or of the path to a peer, have changed."""
        return int(lib.pump_offload_changes(self._pump))

    @property
    def event_fd(self) -> int:
        """Readable (8 bytes): a refusal waits, ``offload_changes`` grew or the worker failed."""
        return int(lib.pump_event_fd(self._pump))

    def refusals(self) -> list[Refusal]:
        """The refusals not yet read, oldest first."""
        found = []
        row = ffi.new("struct refusal *")
        while lib.pump_next_refusal(self._pump, row):
            found.append(
                Refusal(
                    IPv4Address(row.outer_source),
                    row.outer_port,
                    IPv4Address(row.inner_source),
                    IPv4Address(row.inner_destination),
                    _DROP_NAMES[row.reason],
                )
            )
        return found

    @property
    def failure(self) -> OSError | None:
        """Why the worker ended by itself (its device or socket is gone); None if it did not."""
        rc = lib.pump_failure(self._pump)
        return OSError(-rc, os.strerror(-rc)) if rc else None


def pack(routes: Mapping[IPv4Network, IPv4Address]) -> bytes:
    """The routes as ``Pump.load`` takes them, on this machine."""
    return bytes(ffi.buffer(_routes(routes)))


def _routes(added: Mapping[IPv4Network, IPv4Address], removed: Iterable[IPv4Network] = ()) -> Any:
    rows = [(int(net.network_address), net.prefixlen, int(hop)) for net, hop in added.items()]
    rows += [(int(net.network_address), net.prefixlen, 0) for net in removed]
    return ffi.new("struct pump_route[]", rows)

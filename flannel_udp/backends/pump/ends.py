"""The two ends that the pump joins, a TUN device and a UDP socket: opened, probed, reopened."""

import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from flannel_udp.backends.pump.fallbacks import kernel_fault
from flannel_udp.backends.pump.port_guard import PortGuard
from flannel_udp.backends.pump.pump import (
    ALL_OFFLOADS,
    NO_OFFLOADS,
    Offload,
    PumpConfig,
    identify_tun,
    open_tun,
    open_udp,
    probe_offloads,
)
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.lease import OwnLease
from flannel_udp.errors import DeviceError, HandoverError
from flannel_udp.host import shortage
from flannel_udp.host.shortage import device_error
from flannel_udp.options import Options

log = logging.getLogger(__name__)

# What each --offload preset asks for.
_WANTED = {
    "auto": ALL_OFFLOADS,
    "full": ALL_OFFLOADS,
    "tso": Offload.TSO | Offload.USO,
    "none": NO_OFFLOADS,
}


@dataclass(frozen=True, slots=True)
class Tunnel:
    """``device`` is the TUN's name; ``offloads`` are in use. The owner closes both descriptors and
    releases the port."""

    device: str
    tun_fd: int
    udp_fd: int
    offloads: Offload
    guard: PortGuard = field(default_factory=PortGuard)

    def pump_config(self, options: Options, config: NetworkConfig, own: OwnLease) -> PumpConfig:
        """The configuration of a pump between these ends."""
        return PumpConfig(
            tun_fd=self.tun_fd,
            udp_fd=self.udp_fd,
            network=config.network,
            subnet=own.subnet,
            public_ip=own.public_ip,
            tun_address=own.subnet.network_address,
            check_source=options.source_check != "off",
            check_port=options.source_check == "full",
            offloads=self.offloads,
            busy_poll_us=options.busy_poll_us,
        )


@contextlib.contextmanager
def open_tunnel(address: IPv4Address, port: int, preset: str) -> Iterator[Tunnel]:
    """Open both ends, and close them when the block is left, which removes the TUN device with its
    address and routes.

    Raises DeviceError, also if the preset is ``full`` and the kernel lacks an offload.
    """
    with contextlib.ExitStack() as opened:
        tun_fd, device = _open_tun("flannel%d", wants_vnet_header(preset))
        opened.callback(os.close, tun_fd)
        udp_fd = _open_udp(address, port)
        opened.callback(os.close, udp_fd)
        tunnel = Tunnel(device, tun_fd, udp_fd, _probe(device, tun_fd, udp_fd, preset))
        opened.callback(tunnel.guard.release)
        tunnel.guard.hold(udp_fd)
        yield tunnel


def adopt_tunnel(
    tun_fd: int, udp_fd: int, device: str, address: IPv4Address, port: int, preset: str
) -> Tunnel:
    """Use the ends that another process opened; the caller still owns the descriptors.

    Raises HandoverError unless they are that device and a socket on that address and port, and
    DeviceError as ``open_tunnel`` does.
    """
    try:
        name, vnet_header = identify_tun(tun_fd)
    except OSError as error:
        raise HandoverError(f"{device} is gone ({error.strerror})") from None
    if (name, vnet_header) != (device, wants_vnet_header(preset)):
        raise HandoverError(f"the TUN device is {name} with other flags, not {device}")
    try:
        with socket.socket(fileno=os.dup(udp_fd)) as udp:
            bound = udp.family, udp.type, udp.getsockname()
    except OSError as error:
        raise HandoverError(f"the UDP socket cannot be used ({error.strerror})") from None
    if bound != (socket.AF_INET, socket.SOCK_DGRAM, (str(address), port)):
        raise HandoverError(f"the UDP socket is bound to {bound[2]}, not to {address} port {port}")
    for descriptor in (tun_fd, udp_fd):
        os.set_blocking(descriptor, False)
    return Tunnel(device, tun_fd, udp_fd, _probe(device, tun_fd, udp_fd, preset))


def wants_vnet_header(preset: str) -> bool:
    """Whether this --offload preset needs a TUN device with vnet headers."""
    return _WANTED[preset] != NO_OFFLOADS


def _probe(device: str, tun_fd: int, udp_fd: int, preset: str) -> Offload:
    """Enable the offloads that the preset wants and the kernel has, and return them."""
    wanted = _WANTED[preset]
    try:
        offloads = probe_offloads(tun_fd, udp_fd, wanted)
    except OSError as error:
        raise DeviceError(f"cannot set up {device}: {error.strerror}; try --offload none") from None
    if preset == "full" and offloads != wanted:
        raise DeviceError(
            f"cannot use --offload full: this kernel has no {describe(wanted ^ offloads)};"
            " use --offload auto"
        )
    log.info("offloads in use: %s (--offload %s)", describe(offloads), preset)
    if fault := kernel_fault(os.uname().release, names(offloads)):
        log.warning("%s", fault)
    return offloads


def has_lost_ends(tunnel: Tunnel) -> bool:
    """Whether something on this host has removed one of them."""
    return _is_deleted(tunnel.tun_fd) or _is_shut_down(tunnel.udp_fd)


def reopen_lost_ends(tunnel: Tunnel, address: IPv4Address, port: int) -> list[str]:
    """Open lost ends again; the descriptors keep their numbers. Returns the names of what was lost.

    The device gets its old name, but no address and no routes. Raises DeviceError; it may then be
    called again.
    """
    lost = []
    if _is_deleted(tunnel.tun_fd):
        lost.append(tunnel.device)
        _replace(tunnel.tun_fd, _open_tun(tunnel.device, tunnel.offloads != NO_OFFLOADS)[0])
    if _is_shut_down(tunnel.udp_fd):
        lost.append("the UDP socket")
        tunnel.guard.release()
        _free_port(tunnel.udp_fd)
        _replace(tunnel.udp_fd, _open_udp(address, port))
        tunnel.guard.hold(tunnel.udp_fd)
    return lost


def _is_deleted(tun_fd: int) -> bool:
    return _polls(tun_fd, select.POLLERR)


def _is_shut_down(udp_fd: int) -> bool:
    return _polls(udp_fd, select.POLLHUP | select.POLLRDHUP)


def _polls(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return any(events & (event | select.POLLNVAL) for _, events in poll.poll(0))


def _free_port(fd: int) -> None:
    """Replace the socket by one that polls as lost too but does not hold the port."""
    closed_end, other_end = socket.socketpair()
    other_end.close()
    _replace(fd, closed_end.detach())


def _replace(fd: int, new: int) -> None:
    os.dup2(new, fd, inheritable=False)
    os.close(new)


def names(offloads: Offload) -> list[str]:
    """Their names: ``["TSO", "UDP GSO"]``."""
    return [str(each.name).replace("_", " ") for each in Offload if each in offloads]


def superpackets(offloads: Offload) -> list[str]:
    """The protocols whose superpackets these offloads carry."""
    named = {Offload.TSO: "TCP", Offload.USO: "UDP"}
    return [protocol for offload, protocol in named.items() if offload in offloads]


def describe(offloads: Offload) -> str:
    """Their names in a sentence: ``TSO, UDP GSO``."""
    return ", ".join(names(offloads)) or "none"


def _open_tun(pattern: str, vnet_header: bool) -> tuple[int, str]:
    try:
        try:
            return open_tun(pattern, vnet_header=vnet_header)
        except OSError as error:
            if not vnet_header or error.errno != errno.EINVAL:
                raise
            return open_tun(pattern, vnet_header=False)  # a kernel without vnet headers
    except OSError as error:
        advice = {
            errno.ENOENT: "load the tun module, or give the container --device /dev/net/tun",
            errno.EPERM: "run as root (CAP_NET_ADMIN)",
            errno.EACCES: "run as root (CAP_NET_ADMIN)",
            errno.EMFILE: shortage.ADVICE,
            errno.EBUSY: f"another program has made a device of the name {pattern}: delete it",
        }.get(error.errno or 0, "check that the kernel has TUN (CONFIG_TUN)")
        raise device_error(
            error, f"cannot open a TUN device through /dev/net/tun: {error.strerror}; {advice}"
        ) from None


def _open_udp(address: IPv4Address, port: int) -> int:
    try:
        return open_udp(address, port)
    except OSError as error:
        advice = {
            errno.EADDRINUSE: "another program has the port: stop it (ss -lunp shows it), or set"
            " another Backend.Port for the whole network",
            errno.EMFILE: shortage.ADVICE,
            errno.EACCES: "ports below 1024 need root (CAP_NET_BIND_SERVICE)",
        }.get(error.errno or 0, "check the interface's address")
        raise device_error(
            error, f"cannot receive on {address} UDP port {port}: {error.strerror}; {advice}"
        ) from None

"""What other programs do to the host's network: that something changed, and what is amiss now.

The kernel's messages only ring; what is true is then read. So nothing depends on their order, nor
on having received them all.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_LINK,
)

from flannel_udp.host import netlink as netdev
from flannel_udp.host.interface import ExternalInterface

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBB")  # struct rtmsg: family, dst_len, src_len, tos, table
_MOST_BYTES = 1 << 16  # the kernel's messages come in datagrams of a few pages at most


@dataclass(frozen=True, slots=True)
class TunnelState:
    """``faults`` are clauses about the device: "its route to 10.1.0.0/16 was missing". ``strays``
    are others' routes that take packets away from it, as ``ip route`` shows them."""

    faults: tuple[str, ...]
    strays: tuple[str, ...]


def inspect_tunnel(name: str, subnet: IPv4Network, mtu: int, network: IPv4Network) -> TunnelState:
    """What configure_tunnel would change, and which routes bypass the tunnel.

    Raises DeviceError if there is no such device.
    """
    address = subnet.network_address
    with netdev.netlink(f"look at {name}") as ip:
        index = netdev.index_of(ip, name)
        (link,) = ip.link("get", index=index)
        addresses = {a.get("local") for a in netdev.dump(ip.addr, family=AF_INET, index=index)}
        routes = [route for route in netdev.read_routes(ip) if route.is_main]
        others = netdev.foreign_routes(routes, network, tunnel=index)
        faults = []
        if not link["flags"] & netdev.IFF_UP:
            faults.append("it was down")
        if link.get("mtu") != mtu:
            faults.append(f"its MTU was {link.get('mtu')}")
        if str(address) not in addresses:
            faults.append(f"its address {address} was missing")
        names = netdev.interface_names(ip) if others else {}
        equal = [route for route in routes if route.dst == network and not route.tos]
        # The kernel takes the lowest metric, and of several the one that it lists first.
        first = min(equal, key=lambda route: route.metric, default=None)
        if not any(route.devices == (index,) for route in equal):
            instead = "".join(f" beside {route.text(names)}" for route in equal)
            faults.append(f"its route to {network} was missing{instead}")
        elif first and first.devices != (index,):
            faults.append(f"its route to {network} came after {first.text(names)}")
        strays = [
            route.text(names)
            for route in others
            if route.is_unicast
            and (route.dst != network or route.tos)
            and not (route.gateway is None and route.dst.subnet_of(subnet))
        ]
    return TunnelState(tuple(faults), tuple(strays))


@dataclass(frozen=True, slots=True)
class ExternalFault:
    """``sentence``: "eth0 is down"."""

    sentence: str
    lost_address: bool


def external_fault(external: ExternalInterface) -> ExternalFault | None:
    """Why nothing can be sent from its address now; None if it can.

    The address may have moved to another interface, as when eth0 becomes the port of a bridge.
    """
    with netdev.netlink(f"look at {external.name}") as ip:
        addresses = netdev.dump(ip.addr, family=AF_INET)
        holders = [a["index"] for a in addresses if a.get("local") == str(external.address)]
        if not holders:
            return ExternalFault(f"{external.address} is gone from {external.name}", True)
        for link in netdev.dump(ip.link):
            if link["index"] in holders and link["flags"] & netdev.IFF_UP:
                return None
    return ExternalFault(f"{external.name} is down", False)


def own_addresses() -> frozenset[IPv4Address]:
    """Every IPv4 address of this host."""
    with netdev.netlink("list the addresses") as ip:
        found = netdev.dump(ip.addr, family=AF_INET)
    return frozenset(IPv4Address(each.get("local") or each.get("address")) for each in found)


class HostChanges:
    """Becomes readable when a link, an IPv4 address or a route has changed. Owned by one thread."""

    def __init__(self, kernel: socket.socket, network: IPv4Network) -> None:
        self._kernel, self._network = kernel, network

    def fileno(self) -> int:
        return self._kernel.fileno()

    def drain(self) -> bool:
        """Take what waits; whether any of it may concern ``network`` or a link."""
        matters = False
        while True:
            try:
                messages = self._kernel.recv(_MOST_BYTES)
            except BlockingIOError:
                return matters
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                matters = True  # some were lost
            else:
                matters = matters or any(map(self._matters, _split(messages)))

    def _matters(self, message: bytes) -> bool:
        kind = _HEADER.unpack_from(message)[1]
        if kind in (RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR):
            return True
        if kind not in (RTM_NEWROUTE, RTM_DELROUTE):
            return False
        # A host may learn many routes a second: only those that may lie inside Network count.
        _, length, _, _, table = _ROUTE.unpack_from(message, _HEADER.size)
        return bool(table == netdev.MAIN_TABLE and length >= self._network.prefixlen)


@contextmanager
def host_changes(network: IPv4Network) -> Iterator[HostChanges]:
    """From here on no change is missed."""
    with socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        NETLINK_ROUTE,
    ) as kernel:
        kernel.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))
        yield HostChanges(kernel, network)


def _split(messages: bytes) -> Iterator[bytes]:
    """The messages of one datagram, each padded to four bytes (netlink(7))."""
    while len(messages) >= _HEADER.size:
        length = max(_HEADER.size, _HEADER.unpack_from(messages)[0])
        yield messages[:length]
        messages = messages[length + 3 & ~3 :]

"""The TUN device in the kernel: its address, MTU, route and mark, its faults, its removal.

``backends/pump/ends.py`` opens the device; here is what rtnetlink sets up on it afterwards.
"""

import errno
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.host import sysctl
from flannel_udp.host.kernel_routes import Route, foreign_routes, read_routes, refuse_taken
from flannel_udp.host.netlink import IFF_UP, dump, index_of, interface_names, netlink, tolerate_gone

OUTER_HEADERS = 28  # bytes: IPv4 without options (20) and UDP (8)

# The TUN ring holds this many packets while the pump is busy, not scheduled or being restarted;
# what does not fit is dropped. The kernel counts packets, not bytes, and containers choose what
# fills it: superpackets of 64 KiB pin 64 MiB of this host's memory.
QUEUE_LENGTH = 1024

_SCOPE_LINK = 253
_MARK = "flannel-udp port "  # in the alias that "ip link" shows


@dataclass(frozen=True, slots=True)
class TunnelState:
    """``faults`` are clauses about the device: "its route to 10.1.0.0/16 was missing". ``strays``
    are others' routes that take packets away from it, as ``ip route`` shows them."""

    faults: tuple[str, ...]
    strays: tuple[str, ...]


def mtu_inside(external_mtu: int, cap: int | None) -> int:
    """Bytes of inner packet that fit an outer one; ``cap`` is the config's ``Backend.MTU``."""
    room = external_mtu - OUTER_HEADERS
    return room if cap is None else min(room, cap)


def configure(
    name: str, address: IPv4Address, mtu: int, network: IPv4Network, *, displace: bool = False
) -> None:
    """Give the device its address (as /32), MTU and the route to ``network``, and bring it up.

    May be repeated on a device that was configured before, also with another address.
    Raises DeviceError, also if the host already routes exactly ``network`` elsewhere; with
    ``displace``, our route takes that one's place.
    """
    with netlink(f"set up {name}") as ip:
        index = index_of(ip, name)
        if not displace:
            refuse_taken(ip, network, tunnel=index)
        # Without these, the kernel sends router solicitations into an IPv4-only tunnel, and drops
        # as martian the ICMP errors that the pump writes with this device's own address as source.
        sysctl.write(f"ipv6/conf/{name}/addr_gen_mode", "1", optional=True)  # 1 = none
        sysctl.write(f"ipv4/conf/{name}/accept_local", "1")
        ip.link("set", index=index, mtu=mtu, txqlen=QUEUE_LENGTH)
        for old in dump(ip.addr, family=AF_INET, index=index):
            if old.get("local") != str(address):
                ip.addr("del", index=index, address=old.get("local"), prefixlen=old["prefixlen"])
        ip.addr("replace", index=index, address=str(address), prefixlen=32)
        ip.link("set", index=index, state="up")
        _put_route_first(ip, dst=str(network), oif=index, scope=_SCOPE_LINK, prefsrc=str(address))


def _put_route_first(ip: IPRoute, **route: object) -> None:
    try:
        ip.route("replace", **route)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        # An equal route of another program precedes ours. The kernel replaces the first one, but
        # not by a route that exists already further down.
        ip.route("del", **route)
        ip.route("replace", **route)


def inspect(name: str, subnet: IPv4Network, mtu: int, network: IPv4Network) -> TunnelState:
    """What ``configure`` would change, and which routes bypass the tunnel.

    Raises DeviceError if there is no such device.
    """
    address = subnet.network_address
    with netlink(f"look at {name}") as ip:
        index = index_of(ip, name)
        (link,) = ip.link("get", index=index)
        addresses = {a.get("local") for a in dump(ip.addr, family=AF_INET, index=index)}
        routes = [route for route in read_routes(ip) if route.is_main]
        others = foreign_routes(routes, network, tunnel=index)
        names = interface_names(ip) if others else {}
    faults = []
    if not link["flags"] & IFF_UP:
        faults.append("it was down")
    if link.get("mtu") != mtu:
        faults.append(f"its MTU was {link.get('mtu')}")
    if str(address) not in addresses:
        faults.append(f"its address {address} was missing")
    equal = [route for route in routes if route.dst == network and not route.tos]
    faults += _route_faults(equal, index, names, network)
    strays = [
        route.text(names)
        for route in others
        if route.is_unicast
        and (route.dst != network or route.tos)
        and not (route.gateway is None and route.dst.subnet_of(subnet))
    ]
    return TunnelState(tuple(faults), tuple(strays))


def _route_faults(
    equal: list[Route], tunnel: int, names: dict[int, str], network: IPv4Network
) -> list[str]:
    """``equal`` are all routes to exactly ``network``, in the kernel's order."""
    if not any(route.devices == (tunnel,) for route in equal):
        instead = "".join(f" beside {route.text(names)}" for route in equal)
        return [f"its route to {network} was missing{instead}"]
    # The kernel takes the lowest metric, and of several the one that it lists first.
    first = min(equal, key=lambda route: route.metric)
    if first.devices != (tunnel,):
        return [f"its route to {network} came after {first.text(names)}"]
    return []


def mark(name: str, port: int) -> None:
    """Write onto the device, for operators and for cleanup, that it is ours, and our UDP port."""
    with netlink(f"set up {name}") as ip:
        ip.link("set", index=index_of(ip, name), ifalias=f"{_MARK}{port}")


def marked() -> dict[str, int]:
    """The devices that bear our mark, and the UDP port of the daemon that made each."""
    with netlink("list the interfaces") as ip:
        marks = {link.get("ifname"): link.get("ifalias") or "" for link in dump(ip.link)}
    return {
        name: int(mark.removeprefix(_MARK))
        for name, mark in marks.items()
        if mark.startswith(_MARK) and mark.removeprefix(_MARK).isdecimal()
    }


def delete(name: str) -> None:
    """Delete the device with its address and routes; nothing to do if it is gone."""
    with netlink(f"delete {name}") as ip, tolerate_gone():
        for index in ip.link_lookup(ifname=name):
            ip.link("del", index=index)


def queue_drops(name: str) -> int:
    """Packets that the device's queue did not take since it was made; 0 if the device is gone."""
    with netlink(f"look at {name}") as ip:
        try:
            (link,) = ip.link("get", ifname=name)
        except NetlinkError:
            return 0
    return int(link.get("stats64")["tx_dropped"])

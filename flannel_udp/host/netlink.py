"""The host's interfaces, addresses and routes: the one door to rtnetlink and /proc/sys/net.

Everything here speaks of the network namespace of the calling thread; no call leaves state behind.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from socket import AF_INET
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.errors import DeviceError, DeviceGoneError
from flannel_udp.host.interface import Choice, ExternalInterface, Hop, Link, choose
from flannel_udp.options import Options

log = logging.getLogger(__name__)

OUTER_HEADERS = 28  # bytes: IPv4 without options (20) and UDP (8)

# The TUN ring holds this many packets while the pump is busy, not scheduled or being restarted. The
# kernel's default of 500 is half a millisecond of small packets at full rate; what does not fit is
# dropped. Full of superpackets it holds 256 MiB: docs/operations.md tells how to bound that.
TUN_QUEUE_LENGTH = 4096

# The route of the bridge that carries the subnet has metric 0 and must win over the blackhole.
BLACKHOLE_METRIC = 0xFFFFFFFF

_MARK = "flannel-udp port "  # in the alias that "ip link" shows

_INTERRUPTED_DUMP_TRIES = 8
MAIN_TABLE = 254
_SCOPE_LINK = 253
_TYPE_UNICAST, _TYPE_BLACKHOLE = 1, 6
_TYPE_NAMES = {_TYPE_BLACKHOLE: "blackhole ", 7: "unreachable ", 8: "prohibit ", 9: "throw "}
IFF_UP = 0x1
_IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x20, 0x80
_GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)

Message = Any  # pyroute2's decoded netlink message: a dict with get()


def choose_interface(options: Options) -> tuple[ExternalInterface, IPv4Address]:
    """The interface and address to send from, and the PublicIP to publish.

    Raises InterfaceError with all that was tried and all that exists; see interface.choose.
    """
    choice, links = _choose(options)
    log.debug("this host has %s", ", ".join(map(str, links)))
    for reason in choice.passed_over:
        log.warning("passed over while choosing the external interface: %s", reason)
    chosen = choice.interface
    public_ip = options.public_ip or chosen.address
    log.info(
        "external interface %s, MTU %d, address %s, public IP %s",
        *(chosen.name, chosen.mtu, chosen.address, public_ip),
    )
    if not next(link.is_up for link in links if link.index == chosen.index):
        log.warning("%s is down: nothing can be sent until it is up", chosen.name)
    return chosen, public_ip


def current_interface(options: Options) -> ExternalInterface:
    """What a start would choose now, without a word in the log. Raises InterfaceError."""
    return _choose(options)[0].interface


def _choose(options: Options) -> tuple[Choice, list[Link]]:
    with netlink("list the interfaces") as ip:
        links = _read_links(ip)
        target = options.iface_can_reach
        reach = _hop_to(ip, target) if target else None
        return choose(options, links, reach, _default_route(ip)), links


def _read_links(ip: IPRoute) -> list[Link]:
    ranked: dict[int, list[tuple[bool, bool, IPv4Address]]] = {}
    for message in dump(ip.addr, family=AF_INET):
        address = IPv4Address(message.get("local") or message.get("address"))
        if address.is_loopback or address.is_multicast or message["flags"] & _IFA_F_DEPRECATED:
            continue
        is_temporary = not message["flags"] & _IFA_F_PERMANENT
        rank = (address.is_link_local, is_temporary, address)
        ranked.setdefault(message["index"], []).append(rank)
    return [
        Link(
            message.get("ifname"),
            message["index"],
            message.get("mtu"),
            bool(message["flags"] & IFF_UP),
            # Sorting is stable: equal ranks stay in the kernel's order, primary addresses first.
            tuple(a for *_, a in sorted(ranked.get(message["index"], []), key=lambda r: r[:2])),
        )
        for message in dump(ip.link)
    ]


def _hop_to(ip: IPRoute, target: IPv4Address) -> Hop | None:
    try:
        route = ip.route("get", dst=str(target))[0]
    except NetlinkError as error:
        log.debug("no route to %s: %s", target, error.args[1])
        return None
    if route["type"] != _TYPE_UNICAST:
        return None  # our own address, a broadcast, a multicast group
    return Hop(route.get("oif"), IPv4Address(route.get("prefsrc") or "0.0.0.0"))


def _default_route(ip: IPRoute) -> Hop | None:
    defaults = [r for r in read_routes(ip) if r.is_main and not r.dst.prefixlen and r.devices]
    best = min(defaults, key=lambda route: route.metric, default=None)
    return Hop(best.devices[0]) if best else None


def tunnel_mtu(external_mtu: int, cap: int | None) -> int:
    """Bytes of inner packet that fit an outer one; ``cap`` is the config's ``Backend.MTU``."""
    room = external_mtu - OUTER_HEADERS
    return room if cap is None else min(room, cap)


def configure_tunnel(
    name: str, address: IPv4Address, mtu: int, network: IPv4Network, *, displace: bool = False
) -> None:
    """Give the TUN device its address (as /32), MTU and the route to ``network``, and bring it up.

    May be repeated on a device that was configured before, also with another address.
    Raises DeviceError, also if the host already routes exactly ``network`` elsewhere; with
    ``displace``, our route takes that one's place.
    """
    with netlink(f"set up {name}") as ip:
        index = index_of(ip, name)
        if not displace:
            _refuse_taken(ip, foreign_routes(read_routes(ip), network, tunnel=index), network)
        # Without these, the kernel sends router solicitations into an IPv4-only tunnel, and drops
        # as martian the ICMP errors that the pump writes in the name of this device's own address.
        _write_sysctl(f"ipv6/conf/{name}/addr_gen_mode", "1", optional=True)  # 1 = none
        _write_sysctl(f"ipv4/conf/{name}/accept_local", "1")
        ip.link("set", index=index, mtu=mtu, txqlen=TUN_QUEUE_LENGTH)
        for old in dump(ip.addr, family=AF_INET, index=index):
            if old.get("local") != str(address):
                ip.addr("del", index=index, address=old.get("local"), prefixlen=old["prefixlen"])
        ip.addr("replace", index=index, address=str(address), prefixlen=32)
        ip.link("set", index=index, state="up")
        ours = {"dst": str(network), "oif": index, "scope": _SCOPE_LINK, "prefsrc": str(address)}
        try:
            ip.route("replace", **ours)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            # Another one stands before it. The kernel replaces the first, but not by one it has.
            ip.route("del", **ours)
            ip.route("replace", **ours)


def remove_tunnel_route(name: str, network: IPv4Network) -> None:
    """Stop routing ``network`` into the device; fine if the route or the device is gone."""
    with netlink(f"remove the route to {network}") as ip, _tolerate(*_GONE):
        for index in ip.link_lookup(ifname=name):
            ip.route("del", dst=str(network), oif=index, scope=_SCOPE_LINK)


def mark_tunnel(name: str, port: int) -> None:
    """Write onto the device, for people and for cleanup, that it is ours and whose."""
    with netlink(f"set up {name}") as ip:
        ip.link("set", index=index_of(ip, name), ifalias=f"{_MARK}{port}")


def marked_tunnels() -> dict[str, int]:
    """The devices that bear our mark, and the UDP port of the daemon that made each."""
    with netlink("list the interfaces") as ip:
        marks = {link.get("ifname"): link.get("ifalias") or "" for link in dump(ip.link)}
    return {
        name: int(mark.removeprefix(_MARK))
        for name, mark in marks.items()
        if mark.startswith(_MARK) and mark.removeprefix(_MARK).isdecimal()
    }


def delete_tunnel(name: str) -> None:
    """With it go its address and its routes; fine if it is gone."""
    with netlink(f"delete {name}") as ip, _tolerate(*_GONE):
        for index in ip.link_lookup(ifname=name):
            ip.link("del", index=index)


def add_blackhole(subnet: IPv4Network) -> None:
    """Drop what nobody in the subnet answers to, instead of sending it along the default route."""
    with netlink(f"add the blackhole route for {subnet}") as ip:
        ip.route("replace", dst=str(subnet), type=_TYPE_BLACKHOLE, priority=BLACKHOLE_METRIC)


def remove_blackhole(subnet: IPv4Network) -> None:
    """Undo add_blackhole; nothing to do if the route is gone."""
    with netlink(f"remove the blackhole route for {subnet}") as ip, _tolerate(*_GONE):
        ip.route("del", dst=str(subnet), type=_TYPE_BLACKHOLE, priority=BLACKHOLE_METRIC)


def blackholes() -> list[IPv4Network]:
    """The subnets with a blackhole route of ours, or of a run that was killed."""
    with netlink("read the routes") as ip:
        return [
            _route(message).dst
            for message in dump(ip.route, family=AF_INET)
            if message["type"] == _TYPE_BLACKHOLE and message.get("priority") == BLACKHOLE_METRIC
        ]


def is_served(network: IPv4Network) -> bool:
    """Whether a device of flannel's (``flannel0``, ``flannel.1``) leads to a part of it."""
    with netlink("read the routes") as ip:
        names = interface_names(ip)
        return any(
            route.dst.overlaps(network)
            for route in read_routes(ip)
            for index in route.devices
            if route.is_main and names.get(index, "").startswith("flannel")
        )


def refuse_taken(network: IPv4Network) -> None:
    """Raises DeviceError if the host already routes exactly ``network`` somewhere."""
    with netlink("read the routes") as ip:
        _refuse_taken(ip, foreign_routes(read_routes(ip), network), network)


def foreign_routes(
    routes: Iterable[Route], network: IPv4Network, tunnel: int | None = None
) -> list[Route]:
    """Those inside ``network`` through other devices than the tunnel."""
    return [
        route
        for route in routes
        if route.is_main and tunnel not in route.devices and route.dst.subnet_of(network)
    ]


def _refuse_taken(ip: IPRoute, foreign: list[Route], network: IPv4Network) -> None:
    for route in foreign:
        if route.dst == network and route.is_unicast:
            raise DeviceError(
                f"cannot route {network} into the tunnel: the host already has the route"
                f" '{route.text(interface_names(ip))}'; remove it or choose another Network in the"
                " etcd config"
            )


def interface_names(ip: IPRoute) -> dict[int, str]:
    """The interfaces' names by index."""
    return {link["index"]: link.get("ifname") for link in dump(ip.link)}


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route; ``devices`` are interface indexes, several if it is multipath. With ``tos``
    it is for packets of that type of service alone."""

    table: int
    dst: IPv4Network
    tos: int
    metric: int
    devices: tuple[int, ...]
    gateway: str | None
    type: int

    @property
    def is_unicast(self) -> bool:
        return self.type == _TYPE_UNICAST

    @property
    def is_main(self) -> bool:
        return self.table == MAIN_TABLE

    def text(self, names: dict[int, str]) -> str:
        via = f" via {self.gateway}" if self.gateway else ""
        kind = _TYPE_NAMES.get(self.type, "")
        tos = f" tos {self.tos:#x}" if self.tos else ""
        devices = "".join(f" dev {names.get(i, i)}" for i in self.devices)
        return f"{kind}{self.dst}{tos}{via}{devices}"


def gateway_route_covering(subnet: IPv4Network, network: IPv4Network | None = None) -> str | None:
    """The text of a route through a gateway that covers the subnet, as ``ip route`` shows it.

    Such a route, often left by another backend, fights with the bridge for the subnet; flannel's
    mk-docker-opts.sh refuses it. A route wider than ``network`` (the default route, a company's
    10.0.0.0/8) does no harm, because the tunnel's own route to ``network`` is the longer prefix;
    without ``network``, only the default route is known to be harmless.
    """
    narrowest = network.prefixlen if network else 1
    with netlink("read the routes") as ip:
        for route in read_routes(ip):
            if (
                route.is_main
                and route.gateway
                and route.dst.prefixlen >= narrowest
                and subnet.subnet_of(route.dst)
            ):
                return route.text(interface_names(ip))
    return None


def read_routes(ip: IPRoute) -> list[Route]:
    return [_route(message) for message in dump(ip.route, family=AF_INET)]


def _route(message: Message) -> Route:
    hops = message.get("multipath") or [message]
    devices = [hop.get("oif") or hop.get("ifindex") for hop in hops]
    gateways = [hop.get("gateway") or (hop.get("via") or {}).get("addr") for hop in hops]
    return Route(
        table=message.get("table"),
        dst=IPv4Network((message.get("dst") or "0.0.0.0", message["dst_len"])),
        tos=message["tos"],
        metric=message.get("priority") or 0,
        devices=tuple(index for index in devices if index),
        gateway=next((gateway for gateway in gateways if gateway), None),
        type=message["type"],
    )


def _write_sysctl(path: str, value: str, *, optional: bool = False) -> None:
    """``optional``: a missing entry is fine (a kernel without IPv6)."""
    try:
        Path("/proc/sys/net", path).write_text(value)
    except OSError as error:
        if optional and error.errno == errno.ENOENT:
            return
        raise DeviceError(
            f"cannot write {value} to /proc/sys/net/{path}: {error.strerror};"
            " run as root with a writable /proc/sys"
        ) from None


@contextmanager
def netlink(doing: str) -> Iterator[IPRoute]:
    """A netlink socket; what the kernel refuses inside the block becomes a DeviceError."""
    try:
        # No multicast groups: on a busy host their messages would only fill the receive buffer.
        with IPRoute(groups=0, ext_ack=True) as ip:
            yield ip
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise DeviceError(
                f"cannot {doing}: not permitted; run as root (CAP_NET_ADMIN)"
            ) from None
        raise DeviceError(f"cannot {doing}: the kernel answered '{error.args[1]}'") from None


@contextmanager
def _tolerate(*codes: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise


def dump(read: Callable[..., Any], **query: Any) -> list[Message]:
    """All objects of a kind; read again if the kernel says that the list changed meanwhile."""
    for _ in range(_INTERRUPTED_DUMP_TRIES):
        messages = list(read("dump", **query))
        if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in messages):
            break
    return messages


def index_of(ip: IPRoute, name: str) -> int:
    for index in ip.link_lookup(ifname=name):
        return int(index)
    raise DeviceGoneError(f"network device {name} is missing: something else removed it")

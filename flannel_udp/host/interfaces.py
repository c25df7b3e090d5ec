"""The host's interfaces as the kernel lists them: the external one, all addresses, the bridges.

The rules of the choice are in ``interface_choice.py``.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import AF_INET

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flannel_udp.host.interface_choice import (
    Bridge,
    Choice,
    ExternalInterface,
    Hop,
    Link,
    choose,
    external_names,
)
from flannel_udp.host.kernel_routes import TYPE_UNICAST, read_routes
from flannel_udp.host.netlink import IFF_UP, Message, dump, netlink
from flannel_udp.options import Options

log = logging.getLogger(__name__)

_IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x20, 0x80
_IFF_LOOPBACK = 0x8


def choose_external(options: Options) -> tuple[ExternalInterface, IPv4Address]:
    """The interface and address to send from, and the PublicIP to publish.

    Raises InterfaceError with all that was tried and all that may be named; see
    interface_choice.choose.
    """
    choice, links = _choose(options)
    log.debug("this host has %s", external_names(links))
    for reason in choice.passed_over:
        log.warning("passed over while choosing the external interface: %s", reason)
    chosen = choice.interface
    public_ip = options.public_ip or chosen.address
    log.info(
        "external interface %s, MTU %d, address %s, public IP %s",
        chosen.name,
        chosen.mtu,
        chosen.address,
        public_ip,
    )
    if not next(link.is_up for link in links if link.index == chosen.index):
        log.warning("%s is down: nothing can be sent until it is up", chosen.name)
    return chosen, public_ip


def current_external(options: Options) -> ExternalInterface:
    """What a start would choose now; logs nothing. Raises InterfaceError."""
    return _choose(options)[0].interface


def _choose(options: Options) -> tuple[Choice, list[Link]]:
    with netlink("list the interfaces") as ip:
        links = _read_links(ip)
        target = options.iface_can_reach
        reach = _hop_to(ip, target) if target else None
        return choose(options, links, reach, _default_route(ip)), links


def _read_links(ip: IPRoute) -> list[Link]:
    ranked: dict[int, list[tuple[bool, bool, IPv4Address]]] = defaultdict(list)
    for message in dump(ip.addr, family=AF_INET):
        address = _address(message)
        if address.is_loopback or address.is_multicast or message["flags"] & _IFA_F_DEPRECATED:
            continue
        is_temporary = not message["flags"] & _IFA_F_PERMANENT
        ranked[message["index"]].append((address.is_link_local, is_temporary, address))
    messages = dump(ip.link)
    kinds = {message["index"]: _kind(message) for message in messages}
    return [
        Link(
            message.get("ifname"),
            message["index"],
            message.get("mtu"),
            bool(message["flags"] & IFF_UP),
            # Sorting is stable: equal ranks stay in the kernel's order, primary addresses first.
            tuple(a for *_, a in sorted(ranked[message["index"]], key=lambda r: r[:2])),
            kind=kinds[message["index"]],
            in_bridge=kinds.get(message.get("master")) == "bridge",
            is_loopback=bool(message["flags"] & _IFF_LOOPBACK),
        )
        for message in messages
    ]


def _kind(message: Message) -> str:
    return (message.get("linkinfo") or {}).get("kind") or ""


def _address(message: Message) -> IPv4Address:
    return IPv4Address(message.get("local") or message.get("address"))


def _hop_to(ip: IPRoute, target: IPv4Address) -> Hop | None:
    try:
        route = ip.route("get", dst=str(target))[0]
    except NetlinkError as error:
        log.debug("no route to %s: %s", target, error.args[1])
        return None
    if route["type"] != TYPE_UNICAST:
        return None  # our own address, a broadcast, a multicast group
    return Hop(route.get("oif"), IPv4Address(route.get("prefsrc") or "0.0.0.0"))


def _default_route(ip: IPRoute) -> Hop | None:
    defaults = [r for r in read_routes(ip) if r.is_main and not r.dst.prefixlen and r.devices]
    best = min(defaults, key=lambda route: route.metric, default=None)
    return Hop(best.devices[0]) if best else None


@dataclass(frozen=True, slots=True)
class ExternalFault:
    """``sentence``: "eth0 is down"."""

    sentence: str
    lost_address: bool


def external_fault(external: ExternalInterface) -> ExternalFault | None:
    """Why nothing can be sent from its address now; None if it can.

    The address may have moved to another interface, as when eth0 becomes the port of a bridge.
    """
    with netlink(f"look at {external.name}") as ip:
        addresses = dump(ip.addr, family=AF_INET)
        holders = [a["index"] for a in addresses if a.get("local") == str(external.address)]
        if not holders:
            return ExternalFault(f"{external.address} is gone from {external.name}", True)
        for link in dump(ip.link):
            if link["index"] in holders and link["flags"] & IFF_UP:
                return None
    return ExternalFault(f"{external.name} is down", False)


def own_addresses() -> frozenset[IPv4Address]:
    """Every IPv4 address of this host."""
    with netlink("list the addresses") as ip:
        return frozenset(map(_address, dump(ip.addr, family=AF_INET)))


def bridges() -> list[Bridge]:
    """All of this host, by name."""
    with netlink("list the bridges") as ip:
        links = dump(ip.link)
        addresses: dict[int, list[IPv4Address]] = defaultdict(list)
        for message in dump(ip.addr, family=AF_INET):
            addresses[message["index"]].append(IPv4Address(message.get("local")))
    mtus: dict[int, list[int]] = defaultdict(list)
    for link in links:
        if master := link.get("master"):
            mtus[master].append(link.get("mtu"))
    return sorted(
        Bridge(
            link.get("ifname"),
            tuple(addresses[link["index"]]),
            max(mtus[link["index"]], default=None),
        )
        for link in links
        if _kind(link) == "bridge"
    )

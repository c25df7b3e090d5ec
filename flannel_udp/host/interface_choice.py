"""The host's interfaces as values, and the choice of the external one (pure)."""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from flannel_udp.errors import InterfaceError
from flannel_udp.options import Options

_GO_CLASS = re.compile(r"\[:\^?\w+:\]")
_TUNNEL = re.compile(r"flannel[.0-9]+")  # ours, and those of flannel's backends
_BRIDGE_OF_CONTAINERS = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}|cni.*|podman\d+")


@dataclass(frozen=True, slots=True)
class ExternalInterface:
    """The interface that carries the outer packets; ``address`` is their source."""

    name: str
    index: int
    mtu: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of the host and its usable IPv4 addresses, best first.

    ``kind``: the kernel's, such as "veth" or "bridge"; "" for a physical one and for loopback.
    ``in_bridge``: whether it is a port of a bridge.
    """

    name: str
    index: int
    mtu: int
    is_up: bool
    addresses: tuple[IPv4Address, ...]
    kind: str = ""
    in_bridge: bool = False
    is_loopback: bool = False

    @property
    def may_be_external(self) -> bool:
        """False for loopback, tunnels of flannel, and what connects this host's containers.

        A veth with an address stays: it is the eth0 of a host that is a container itself.
        """
        if self.kind == "veth":
            return bool(self.addresses) and not self.in_bridge
        if self.kind == "bridge":
            return not _BRIDGE_OF_CONTAINERS.fullmatch(self.name)
        return not self.is_loopback and not _TUNNEL.fullmatch(self.name)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.addresses)) or 'no IPv4 address'})"

    def at(self, address: IPv4Address) -> ExternalInterface:
        return ExternalInterface(self.name, self.index, self.mtu, address)


@dataclass(frozen=True, slots=True, order=True)
class Bridge:
    """A bridge of the host, its IPv4 addresses, and the largest MTU of what is plugged into it.

    The bridge's own MTU is not used: with nothing plugged in it is the kernel's default.
    """

    name: str
    addresses: tuple[IPv4Address, ...]
    port_mtu: int | None


@dataclass(frozen=True, slots=True)
class Hop:
    """Where the kernel sends a packet: the interface index, and the source address it prefers."""

    index: int
    source: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen interface, and why each one that was asked for before it did not fit."""

    interface: ExternalInterface
    passed_over: tuple[str, ...]


def choose(
    options: Options, links: Sequence[Link], reach: Hop | None, default_route: Hop | None
) -> Choice:
    """The first candidate that fits, in flannel's order: ``--iface`` values, ``--iface-regex``
    values, ``--iface-can-reach``; if none of these was given, the owner of ``--public-ip``, then
    the interface of the default route.

    ``reach`` is where packets to ``--iface-can-reach`` go, if anywhere outside this host.
    Raises InterfaceError with all that was tried and all that may be named.
    """
    passed_over: list[str] = []
    for tried, result in _candidates(options, links, reach, default_route):
        if isinstance(result, ExternalInterface):
            # Behind NAT the public IP is on no interface: that is not reported.
            asked_for = (each for each in passed_over if not each.startswith("--public-ip "))
            return Choice(result, tuple(asked_for))
        passed_over.append(f"{tried}: {result}")
    offered = (
        f"{names}: name one of them with --iface"
        if (names := external_names(links))
        else "none that reaches other hosts: connect it to a network"
    )
    raise InterfaceError(
        f"no external interface fits ({'; '.join(passed_over)}); this host has {offered}"
    )


def external_names(links: Sequence[Link]) -> str:
    """Those that may be the external interface, with their addresses; "" if there is none."""
    return ", ".join(str(link) for link in links if link.may_be_external)


_Result = ExternalInterface | str  # str: why the candidate does not fit


def _candidates(
    options: Options, links: Sequence[Link], reach: Hop | None, default_route: Hop | None
) -> Iterator[tuple[str, _Result]]:
    for wanted in options.iface:
        yield f"--iface {wanted}", _by_name_or_address(wanted, links)
    for pattern in options.iface_regex:
        yield f"--iface-regex {pattern}", _by_regex(pattern, links)
    if options.iface_can_reach is not None:
        yield (
            f"--iface-can-reach {options.iface_can_reach}",
            _by_hop(reach, links) if reach else "no route leads from this host to it",
        )
    if options.iface or options.iface_regex or options.iface_can_reach:
        return
    if options.public_ip is not None:
        yield f"--public-ip {options.public_ip}", _by_address(options.public_ip, links)
    yield "default route", _by_hop(default_route, links) if default_route else "there is none"


def _by_name_or_address(wanted: str, links: Sequence[Link]) -> _Result:
    try:
        address = IPv4Address(wanted)
    except ValueError:
        named = [link for link in links if link.name == wanted]
        return _first_address(named) if named else "no such interface"
    return _by_address(address, links)


def _by_address(address: IPv4Address, links: Sequence[Link]) -> _Result:
    for link in links:
        if address in link.addresses:
            return link.at(address)
    return "no interface has this address"


def _by_regex(pattern: str, links: Sequence[Link]) -> _Result:
    try:
        matches = compile_regex(pattern).search
    except re.error as error:
        return f"not a regular expression ({error})"
    for link in links:
        for address in link.addresses:
            if matches(str(address)):
                return link.at(address)
    named = [link for link in links if matches(link.name)]
    return _first_address(named) if named else "no address and no name matches"


def compile_regex(pattern: str) -> re.Pattern[str]:
    """Raises re.error for what Python's ``re`` cannot compile, or understands otherwise than Go."""
    if go_class := _GO_CLASS.search(pattern):
        raise re.error(f"{go_class[0]} is Go's syntax; write 0-9 for [:digit:], a-z for [:lower:]")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # Go takes "[[a]" and "[&&]" as they are
            return re.compile(pattern)
    except RecursionError:
        raise re.error("it is nested too deeply") from None
    except (FutureWarning, OverflowError) as error:
        raise re.error(str(error)) from None


def _by_hop(hop: Hop, links: Sequence[Link]) -> _Result:
    named = [link for link in links if link.index == hop.index]
    for link in named:
        if hop.source in link.addresses:
            return link.at(hop.source)
    return _first_address(named)


def _first_address(links: Sequence[Link]) -> _Result:
    for link in links:
        if link.addresses:
            return link.at(link.addresses[0])
    return f"{links[0].name} has no usable IPv4 address"

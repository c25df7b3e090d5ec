"""Which addresses this host cannot send outer packets to, by its routing tables."""

from collections.abc import Callable
from ipaddress import IPv4Address

from flannel_udp.host.kernel_routes import (
    LOCAL_TABLE,
    MAIN_TABLE,
    TYPE_BROADCAST,
    TYPE_LOCAL,
    Route,
    read_routes,
)
from flannel_udp.host.netlink import index_of, netlink


def flaw_by_routes(tunnel: str) -> Callable[[IPv4Address], str]:
    """A function that returns what is wrong with an address as another host's PublicIP, or "".

    The flaw is a clause: "its PublicIP is an address of this host too". The function uses the
    routes of this moment (tables local and main, longest prefix, lowest metric), so that tens of
    thousands of addresses cost one route dump. Raises DeviceError if there is no such device.
    """
    with netlink(f"read the routes through {tunnel}") as ip:
        index = index_of(ip, tunnel)
        routes = read_routes(ip)
    tables = [
        _longest_prefix_table([route for route in routes if route.table == table], index)
        for table in (LOCAL_TABLE, MAIN_TABLE)
    ]

    def flaw(address: IPv4Address) -> str:
        number = int(address)
        for table in tables:
            for shift, flaws in table:
                found = flaws.get(number >> shift)
                if found is not None:
                    return found
        return ""

    return flaw


def _longest_prefix_table(routes: list[Route], tunnel: int) -> list[tuple[int, dict[int, str]]]:
    """Per prefix length, longest first: the host bits to shift out, and network -> flaw."""
    by_shift: dict[int, dict[int, str]] = {}
    for route in sorted(routes, key=lambda route: route.metric):
        shift = 32 - route.dst.prefixlen
        flaws = by_shift.setdefault(shift, {})
        flaws.setdefault(int(route.dst.network_address) >> shift, _flaw(route, tunnel))
    return sorted(by_shift.items())


def _flaw(route: Route, tunnel: int) -> str:
    if route.type == TYPE_LOCAL:
        return "its PublicIP is an address of this host too"
    if route.type == TYPE_BROADCAST:
        return "its PublicIP is a broadcast address of this host's networks"
    if route.is_unicast and tunnel in route.devices:
        return "this host reaches its PublicIP through the tunnel itself"
    return ""

"""The IPv4 routes in the kernel: reading them, those that conflict with ours, and blackholes."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from socket import AF_INET

from pyroute2 import IPRoute

from flannel_udp.errors import DeviceError
from flannel_udp.host.netlink import Message, dump, interface_names, netlink, tolerate_gone

LOCAL_TABLE, MAIN_TABLE = 255, 254
TYPE_UNICAST, TYPE_LOCAL, TYPE_BROADCAST, _TYPE_BLACKHOLE = 1, 2, 3, 6
_TYPE_NAMES = {_TYPE_BLACKHOLE: "blackhole ", 7: "unreachable ", 8: "prohibit ", 9: "throw "}

# The route of the bridge that carries the subnet has metric 0 and must win over the blackhole.
BLACKHOLE_METRIC = 0xFFFFFFFF


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
        return self.type == TYPE_UNICAST

    @property
    def is_main(self) -> bool:
        return self.table == MAIN_TABLE

    def text(self, names: dict[int, str]) -> str:
        """As ``ip route`` shows it; ``names`` are the interfaces' by index."""
        via = f" via {self.gateway}" if self.gateway else ""
        kind = _TYPE_NAMES.get(self.type, "")
        tos = f" tos {self.tos:#x}" if self.tos else ""
        devices = "".join(f" dev {names.get(i, i)}" for i in self.devices)
        return f"{kind}{self.dst}{tos}{via}{devices}"


def read_routes(ip: IPRoute) -> list[Route]:
    """The routes of all tables."""
    return [_route(message) for message in dump(ip.route, family=AF_INET)]


def foreign_routes(
    routes: Iterable[Route], network: IPv4Network, tunnel: int | None = None
) -> list[Route]:
    """Those inside ``network`` through other devices than the tunnel."""
    return [
        route
        for route in routes
        if route.is_main and tunnel not in route.devices and route.dst.subnet_of(network)
    ]


def refuse_taken(ip: IPRoute, network: IPv4Network, tunnel: int | None = None) -> None:
    """Raises DeviceError if the host already routes exactly ``network`` to another device than the
    tunnel."""
    for route in foreign_routes(read_routes(ip), network, tunnel):
        if route.dst == network and route.is_unicast:
            raise DeviceError(
                f"cannot route {network} into the tunnel: the host already has the route"
                f" '{route.text(interface_names(ip))}'; remove it or choose another Network in the"
                " etcd config"
            )


def check_free(network: IPv4Network) -> None:
    """Raises DeviceError if the host already routes exactly ``network`` somewhere."""
    with netlink("read the routes") as ip:
        refuse_taken(ip, network)


def is_served(network: IPv4Network) -> bool:
    """Whether a route leads to a part of it through a device of flannel's (``flannel0``,
    ``flannel.1``)."""
    with netlink("read the routes") as ip:
        names = interface_names(ip)
        return any(
            route.dst.overlaps(network)
            for route in read_routes(ip)
            for index in route.devices
            if route.is_main and names.get(index, "").startswith("flannel")
        )


def gateway_route_covering(subnet: IPv4Network, network: IPv4Network | None = None) -> str | None:
    """The text of a route through a gateway that covers the subnet, as ``ip route`` shows it.

    Such a route, often left by another backend, conflicts with the bridge's own; flannel's
    mk-docker-opts.sh refuses it. A route wider than ``network`` (the default route, a company's
    10.0.0.0/8) does no harm, because the tunnel's own route to ``network`` has the longer prefix;
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


def add_blackhole(subnet: IPv4Network) -> None:
    """Drop packets to addresses of the subnet that no container has, which would otherwise follow
    the default route."""
    with netlink(f"add the blackhole route for {subnet}") as ip:
        ip.route("replace", dst=str(subnet), type=_TYPE_BLACKHOLE, priority=BLACKHOLE_METRIC)


def remove_blackhole(subnet: IPv4Network) -> None:
    """Undo add_blackhole; nothing to do if the route is gone."""
    with netlink(f"remove the blackhole route for {subnet}") as ip, tolerate_gone():
        ip.route("del", dst=str(subnet), type=_TYPE_BLACKHOLE, priority=BLACKHOLE_METRIC)


def blackholes() -> list[IPv4Network]:
    """The subnets with a blackhole route of ours, or of a run that was killed."""
    with netlink("read the routes") as ip:
        return [
            route.dst
            for route in read_routes(ip)
            if route.type == _TYPE_BLACKHOLE and route.metric == BLACKHOLE_METRIC
        ]


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

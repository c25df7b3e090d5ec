"""Routes in the real kernel, each test in a network namespace of its own."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannel_udp.host import kernel_routes
from flannel_udp.host.netns import Namespace

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")


def ip(namespace: Namespace, *words: str) -> str:
    return namespace.run(["ip", *words]).stdout


def test_blackholes_of_the_operator_are_not_ours(host: Namespace) -> None:
    ip(host, "route", "add", "blackhole", "10.1.6.0/24")
    host.call(kernel_routes.add_blackhole, SUBNET)
    assert host.call(kernel_routes.blackholes) == [SUBNET]


@pytest.mark.parametrize(("device", "served"), [("flannel0", True), ("tun7", False)])
def test_a_network_is_served_by_flannels_devices_only(
    host: Namespace, device: str, served: bool
) -> None:
    ip(host, "link", "set", "eth1", "name", device)
    ip(host, "route", "add", str(NETWORK), "dev", device)
    assert host.call(kernel_routes.is_served, NETWORK) is served
    assert host.call(kernel_routes.is_served, SUBNET) is served
    assert not host.call(kernel_routes.is_served, IPv4Network("10.2.0.0/16"))


def test_blackhole_drops_only_what_the_bridge_does_not_carry(host: Namespace) -> None:
    host.add_route(IPv4Network("0.0.0.0/0"), via=IPv4Address("172.30.0.254"))
    host.call(kernel_routes.add_blackhole, SUBNET)
    host.call(kernel_routes.add_blackhole, SUBNET)  # left by a killed run
    assert host.run(["ip", "route", "get", "10.1.5.9"]).returncode != 0
    host.add_bridge("docker0")
    host.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    assert " dev docker0 " in ip(host, "route", "get", "10.1.5.9")
    host.call(kernel_routes.remove_blackhole, SUBNET)
    host.call(kernel_routes.remove_blackhole, SUBNET)
    assert "blackhole" not in ip(host, "route")
    assert " dev docker0 " in ip(host, "route", "get", "10.1.5.9")


@pytest.mark.parametrize(
    ("route", "network", "expected"),
    [
        ("10.1.5.0/24 via 172.30.0.9", None, "10.1.5.0/24 via 172.30.0.9 dev eth0"),
        ("10.1.0.0/16 via 172.30.0.9", NETWORK, "10.1.0.0/16 via 172.30.0.9 dev eth0"),
        ("10.0.0.0/8 via 172.30.0.9", None, "10.0.0.0/8 via 172.30.0.9 dev eth0"),
        ("10.0.0.0/8 via 172.30.0.9", NETWORK, None),
        ("10.1.5.0/25 via 172.30.0.9", None, None),
        ("10.1.5.0/24 dev eth0", None, None),
        ("default via 172.30.0.9", None, None),
        ("10.1.5.0/24 via 172.30.0.9 table 100", None, None),
    ],
)
def test_gateway_route_covering_the_subnet(
    host: Namespace, route: str, network: IPv4Network | None, expected: str | None
) -> None:
    ip(host, "route", "add", *route.split())
    assert host.call(kernel_routes.gateway_route_covering, SUBNET, network) == expected

"""Which addresses cannot be sent to; the kernel's own lookups are the oracle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flannel_udp.backends.pump.pump import open_tun
from flannel_udp.host import tunnel_device
from flannel_udp.host.netns import Namespace
from flannel_udp.routing.reachability import flaw_by_routes

NETWORK, ADDRESS = IPv4Network("10.1.0.0/16"), IPv4Address("10.1.5.0")
OURS = "an address of this host too"
BROADCAST = "a broadcast address of this host's networks"
TUNNEL = "through the tunnel itself"


@pytest.fixture
def host(namespace: Namespace) -> Iterator[Namespace]:
    """eth0 with two addresses, docker0, and the tunnel."""
    namespace.add_veth("eth0", namespace, "peer")
    namespace.add_address("eth0", IPv4Interface("172.30.0.1/24"))
    namespace.add_address("eth0", IPv4Interface("198.51.100.7/24"))
    namespace.add_bridge("docker0")
    namespace.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    fd, name = namespace.call(open_tun)
    assert name == "flannel0"
    namespace.call(tunnel_device.configure, name, ADDRESS, 1472, NETWORK)
    yield namespace
    os.close(fd)


def kernels_flaw(line: str) -> tuple[str, str]:
    """Address and flaw, from a line of ``ip -o route get``."""
    kind, address, *_ = line.split()
    if kind in ("local", "broadcast"):
        return address, OURS if kind == "local" else BROADCAST
    return kind, TUNNEL if " dev flannel0 " in line else ""


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    routes=st.lists(
        st.tuples(
            st.integers(0, 255),
            st.integers(10, 32),
            st.sampled_from(["flannel0", "eth0", "docker0"]),
            st.integers(0, 2),
        ),
        max_size=12,
    ),
    tails=st.lists(st.integers(0, 2**20 - 1), min_size=10, max_size=20),
)
def test_the_flaws_are_those_of_the_kernels_lookups(
    host: Namespace, routes: list[tuple[int, int, str, int]], tails: list[int]
) -> None:
    host.run(["ip", "route", "flush", "proto", "77"])
    for tail, length, device, metric in routes:
        network = IPv4Network((f"10.1.{tail}.{tail}", length), strict=False)
        extra = ("proto", "77", "metric", str(metric))
        host.run(["ip", "route", "add", str(network), "dev", device, *extra])
    flaw = host.call(flaw_by_routes, "flannel0")
    addresses = [IPv4Address(0x0A000000 + tail) for tail in tails]
    addresses += [IPv4Address(a) for a in ("10.1.5.0", "10.1.5.1", "10.1.5.2", "10.1.5.255")]
    addresses += [IPv4Address(a) for a in ("172.30.0.1", "172.30.0.255", "198.51.100.7")]
    batch = "".join(f"route get {address}\n" for address in addresses)
    lines = host.run(["ip", "-o", "-force", "-batch", "-"], input=batch).stdout.splitlines()
    flaws = dict(map(kernels_flaw, lines))
    assert len(flaws) > 6
    for address in addresses:
        assert flaw(address).endswith(flaws.get(str(address), ""))
        assert bool(flaw(address)) == bool(flaws.get(str(address)))


def test_gateway_and_multipath_routes_are_followed(host: Namespace) -> None:
    host.run(["ip", "route", "add", "192.0.2.0/24", "via", "10.1.9.9"], check=True)
    hops = ("nexthop", "via", "172.30.0.9", "nexthop", "dev", "flannel0")
    host.run(["ip", "route", "add", "203.0.113.0/24", *hops], check=True)
    flaw = host.call(flaw_by_routes, "flannel0")
    assert flaw(IPv4Address("192.0.2.1")).endswith(TUNNEL)
    assert flaw(IPv4Address("203.0.113.1")).endswith(TUNNEL)
    assert flaw(IPv4Address("172.30.0.9")) == ""
    assert flaw(IPv4Address("8.8.8.8")) == ""

"""What is amiss with the tunnel and the external interface, and when to look, on a real kernel."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannel_udp.backends.pump.pump import open_tun
from flannel_udp.errors import DeviceError
from flannel_udp.host import changes as netdev_watch
from flannel_udp.host import netlink as netdev
from flannel_udp.host.changes import ExternalFault, HostChanges, TunnelState
from flannel_udp.host.interface import ExternalInterface
from flannel_udp.host.netns import Namespace

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
MTU = 1472
PATIENCE = 5.0  # seconds


@pytest.fixture
def host(namespace: Namespace) -> Iterator[Namespace]:
    """eth0 with 172.30.0.1, and a tunnel that is as it should be."""
    namespace.add_veth("eth0", namespace, "peer")
    namespace.add_address("eth0", IPv4Interface("172.30.0.1/24"))
    fd, name = namespace.call(open_tun)
    assert name == "flannel0"
    namespace.call(netdev.configure_tunnel, name, SUBNET.network_address, MTU, NETWORK)
    yield namespace
    os.close(fd)


@pytest.fixture
def changes(namespace: Namespace) -> Iterator[HostChanges]:
    """Opened in the namespace, and to be read from anywhere."""
    opened = netdev_watch.host_changes(NETWORK)
    yield namespace.call(opened.__enter__)
    opened.__exit__(None, None, None)


def ip(namespace: Namespace, words: str) -> None:
    namespace.run(["ip", *words.split()], check=True)


def state(host: Namespace) -> TunnelState:
    return host.call(netdev_watch.inspect_tunnel, "flannel0", SUBNET, MTU, NETWORK)


# --- the tunnel


def test_a_tunnel_as_it_was_configured_has_no_fault(host: Namespace) -> None:
    assert state(host) == TunnelState((), ())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("link set flannel0 down", "it was down"),
        ("link set flannel0 mtu 1400", "its MTU was 1400"),
        ("address del 10.1.5.0/32 dev flannel0", "its address 10.1.5.0 was missing"),
        ("route del 10.1.0.0/16", "its route to 10.1.0.0/16 was missing"),
        (
            "route replace 10.1.0.0/16 via 172.30.0.9",
            "its route to 10.1.0.0/16 was missing beside 10.1.0.0/16 via 172.30.0.9 dev eth0",
        ),
        (
            "route prepend 10.1.0.0/16 via 172.30.0.9",
            "its route to 10.1.0.0/16 came after 10.1.0.0/16 via 172.30.0.9 dev eth0",
        ),
        (
            "route prepend unreachable 10.1.0.0/16",
            "its route to 10.1.0.0/16 came after unreachable 10.1.0.0/16",
        ),
    ],
)
def test_every_fault_is_a_clause_and_configuring_cures_it(
    host: Namespace, change: str, fault: str
) -> None:
    ip(host, change)
    assert fault in state(host).faults
    address = SUBNET.network_address
    host.call(netdev.configure_tunnel, "flannel0", address, MTU, NETWORK, displace=True)
    assert state(host) == TunnelState((), ())


def test_a_missing_device_is_one_sentence(host: Namespace) -> None:
    host.delete_link("flannel0")
    with pytest.raises(DeviceError, match="network device flannel0 is missing"):
        state(host)


def test_narrower_routes_of_others_are_named_and_the_own_bridge_is_not(host: Namespace) -> None:
    host.add_bridge("docker0")
    host.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    for route in (
        "10.1.5.7/32 dev docker0",
        "10.1.7.0/24 via 172.30.0.7",
        "10.1.8.0/24 dev eth0",
        "blackhole 10.1.6.0/24",
        "10.1.0.0/16 via 172.30.0.9 metric 7",  # ours comes first
        "10.1.0.0/16 via 172.30.0.9 tos 0x10",
        "10.0.0.0/8 via 172.30.0.9",
    ):
        ip(host, f"route add {route}")
    assert state(host) == TunnelState(
        (),
        (
            "10.1.0.0/16 tos 0x10 via 172.30.0.9 dev eth0",
            "10.1.7.0/24 via 172.30.0.7 dev eth0",
            "10.1.8.0/24 dev eth0",
        ),
    )


def test_routes_of_the_containers_are_no_strays_without_a_bridge(host: Namespace) -> None:
    """As the CNI plugin ptp wires them."""
    ip(host, "route add 10.1.5.7/32 dev eth0")
    assert state(host).strays == ()


def test_stale_route_of_another_backend_to_the_own_subnet_is_named(host: Namespace) -> None:
    ip(host, "route add 10.1.5.0/24 via 172.30.0.7")
    assert state(host).strays == ("10.1.5.0/24 via 172.30.0.7 dev eth0",)


# --- the external interface


def fault_of(host: Namespace) -> ExternalFault | None:
    external = ExternalInterface("eth0", 2, 1500, IPv4Address("172.30.0.1"))
    return host.call(netdev_watch.external_fault, external)


def test_an_interface_that_is_up_with_its_address_has_no_fault(host: Namespace) -> None:
    assert fault_of(host) is None


def test_down_and_without_its_address_are_told_apart(host: Namespace) -> None:
    host.set_link("eth0", state="down")
    assert fault_of(host) == ExternalFault("eth0 is down", lost_address=False)
    ip(host, "address del 172.30.0.1/24 dev eth0")
    assert fault_of(host) == ExternalFault("172.30.0.1 is gone from eth0", lost_address=True)


def test_an_address_that_moved_to_a_bridge_still_serves(host: Namespace) -> None:
    ip(host, "address del 172.30.0.1/24 dev eth0")
    host.add_bridge("br0")
    host.set_link("eth0", master="br0")
    host.add_address("br0", IPv4Interface("172.30.0.1/24"))
    assert fault_of(host) is None


# --- when to look


def rings(changes: HostChanges) -> bool:
    """Whether what has happened so far is a reason to look."""
    return bool(select.select([changes], [], [], 0)[0]) and changes.drain()


@pytest.mark.parametrize(
    "change",
    [
        "link set flannel0 down",
        "link del flannel0",
        "address add 172.30.0.2/24 dev eth0",
        "route del 10.1.0.0/16",
        "route add 10.1.7.0/24 via 172.30.0.7",
    ],
)
def test_what_may_concern_the_tunnel_rings(
    host: Namespace, changes: HostChanges, change: str
) -> None:
    ip(host, change)
    assert rings(changes)


@pytest.mark.parametrize(
    "change", ["route add 192.0.0.0/8 dev lo", "route add 10.1.7.0/24 dev lo table 7"]
)
def test_routes_elsewhere_do_not_ring(
    namespace: Namespace, changes: HostChanges, change: str
) -> None:
    ip(namespace, change)
    assert select.select([changes], [], [], PATIENCE)[0]
    assert not changes.drain()


def test_messages_that_were_lost_ring(namespace: Namespace, changes: HostChanges) -> None:
    with socket.socket(fileno=os.dup(changes.fileno())) as kernel:
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    lines = "".join(f"route add 192.0.{n}.0/24 dev lo table 7\n" for n in range(200))
    namespace.run(["ip", "-batch", "-"], input=lines, check=True)
    assert changes.drain()

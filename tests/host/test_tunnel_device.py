"""The tunnel device in the real kernel, each test in a network namespace of its own."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import BinaryIO

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.errors import DeviceError
from flannel_udp.host import tunnel_device
from flannel_udp.host.netns import Namespace
from flannel_udp.host.tunnel_device import TunnelState

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
ADDRESS, MTU = SUBNET.network_address, 1472

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


@pytest.fixture
def tun(namespace: Namespace) -> Iterator[BinaryIO]:
    """The device flannel0, kept alive by an open file as the pump does."""
    request = struct.pack("16sH22x", b"flannel0", IFF_TUN | IFF_NO_PI)
    with namespace.call(open, "/dev/net/tun", "r+b", buffering=0) as device:
        fcntl.ioctl(device, TUNSETIFF, request)
        yield device


def ip(namespace: Namespace, *words: str) -> str:
    return namespace.run(["ip", *words]).stdout


def configure(namespace: Namespace, address: IPv4Address = ADDRESS) -> None:
    namespace.call(tunnel_device.configure, "flannel0", address, 1472, NETWORK)


def state(host: Namespace) -> TunnelState:
    return host.call(tunnel_device.inspect, "flannel0", SUBNET, MTU, NETWORK)


@pytest.mark.parametrize(
    ("external", "cap", "expected"), [(1500, None, 1472), (1500, 1400, 1400), (1400, 1450, 1372)]
)
def test_tunnel_mtu_leaves_room_for_the_outer_headers(
    external: int, cap: int | None, expected: int
) -> None:
    assert tunnel_device.mtu_inside(external, cap) == expected


def test_tunnel_has_address_mtu_queue_and_one_route(namespace: Namespace, tun: BinaryIO) -> None:
    configure(namespace)
    link = ip(namespace, "-6", "address", "show", "dev", "flannel0")
    assert link == ""  # no IPv6 link-local address, so nothing is solicited
    link = ip(namespace, "address", "show", "dev", "flannel0")
    assert "mtu 1472 " in link
    assert "inet 10.1.5.0/32 " in link
    assert f"qlen {tunnel_device.QUEUE_LENGTH}" in link
    route = "10.1.0.0/16 dev flannel0 proto static scope link src 10.1.5.0"
    assert [line.strip() for line in ip(namespace, "route").splitlines()] == [route]


def test_host_sends_to_remote_containers_from_the_tunnel_address(
    host: Namespace, tun: BinaryIO
) -> None:
    configure(host)
    assert " dev flannel0 src 10.1.5.0 " in ip(host, "route", "get", "10.1.9.9")


def test_configuring_again_replaces_address_and_keeps_one_route(
    namespace: Namespace, tun: BinaryIO
) -> None:
    configure(namespace)
    configure(namespace)
    configure(namespace, IPv4Address("10.1.8.0"))
    link = ip(namespace, "-4", "-brief", "address", "show", "dev", "flannel0")
    assert link.split()[2:] == ["10.1.8.0/32"]
    routes = ip(namespace, "route").splitlines()
    assert [route.split()[-1] for route in routes] == ["10.1.8.0"]


def test_container_receives_packets_from_the_tunnel_address(
    namespace: Namespace, tun: BinaryIO
) -> None:
    """The kernel drops packets from one of its own addresses as martian, unless configured."""
    configure(namespace)
    container = Namespace(f"{namespace.name}-c")
    container.create()
    try:
        namespace.add_veth("docker0", container, "eth0")
        namespace.add_address("docker0", IPv4Interface("10.1.5.1/24"))
        container.add_address("eth0", IPv4Interface("10.1.5.2/24"))
        namespace.sysctl("ipv4/ip_forward", 1)
        with container.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("10.1.5.2", 9))
            receiver.settimeout(5)
            packet = IP(src="10.1.5.0", dst="10.1.5.2") / UDP(sport=7, dport=9) / b"unreachable"
            os.write(tun.fileno(), bytes(packet))
            assert receiver.recvfrom(100) == (b"unreachable", ("10.1.5.0", 7))
    finally:
        container.delete()


@pytest.mark.parametrize("metric", ["0", "100"])
def test_equal_route_through_another_device_is_refused_and_kept(
    host: Namespace, tun: BinaryIO, metric: str
) -> None:
    ip(host, "route", "add", "10.1.0.0/16", "via", "172.30.0.9", "metric", metric)
    before = ip(host, "route")
    with pytest.raises(DeviceError, match=r"'10\.1\.0\.0/16 via 172\.30\.0\.9 dev eth0'"):
        configure(host)
    assert ip(host, "route") == before
    assert ip(host, "-4", "address", "show", "dev", "flannel0") == ""


def test_equal_route_is_displaced_on_request(host: Namespace, tun: BinaryIO) -> None:
    ip(host, "route", "add", "10.1.0.0/16", "via", "172.30.0.9")
    host.call(tunnel_device.configure, "flannel0", ADDRESS, 1472, NETWORK, displace=True)
    assert ip(host, "route", "show", "10.1.0.0/16").split()[:3] == [
        "10.1.0.0/16",
        "dev",
        "flannel0",
    ]


def test_missing_device_is_one_sentence(namespace: Namespace) -> None:
    with pytest.raises(DeviceError, match="network device flannel0 is missing"):
        configure(namespace)


def test_refusal_by_the_kernel_is_one_sentence(namespace: Namespace, tun: BinaryIO) -> None:
    with pytest.raises(DeviceError, match="cannot set up flannel0: the kernel answered 'mtu"):
        namespace.call(tunnel_device.configure, "flannel0", ADDRESS, 7, NETWORK)


def test_a_tunnel_as_it_was_configured_has_no_fault(tunnel_host: Namespace) -> None:
    assert state(tunnel_host) == TunnelState((), ())


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
def test_every_fault_is_a_clause_and_configuring_repairs_it(
    tunnel_host: Namespace, change: str, fault: str
) -> None:
    ip(tunnel_host, *change.split())
    assert fault in state(tunnel_host).faults
    address = SUBNET.network_address
    tunnel_host.call(tunnel_device.configure, "flannel0", address, MTU, NETWORK, displace=True)
    assert state(tunnel_host) == TunnelState((), ())


def test_inspecting_a_missing_device_is_one_sentence(tunnel_host: Namespace) -> None:
    tunnel_host.delete_link("flannel0")
    with pytest.raises(DeviceError, match="network device flannel0 is missing"):
        state(tunnel_host)


def test_others_routes_inside_the_network_are_strays_except_the_bridges(
    tunnel_host: Namespace,
) -> None:
    tunnel_host.add_bridge("docker0")
    tunnel_host.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    for route in (
        "10.1.5.7/32 dev docker0",
        "10.1.7.0/24 via 172.30.0.7",
        "10.1.8.0/24 dev eth0",
        "blackhole 10.1.6.0/24",
        "10.1.0.0/16 via 172.30.0.9 metric 7",  # ours comes first
        "10.1.0.0/16 via 172.30.0.9 tos 0x10",
        "10.0.0.0/8 via 172.30.0.9",
    ):
        ip(tunnel_host, "route", "add", *route.split())
    assert state(tunnel_host) == TunnelState(
        (),
        (
            "10.1.0.0/16 tos 0x10 via 172.30.0.9 dev eth0",
            "10.1.7.0/24 via 172.30.0.7 dev eth0",
            "10.1.8.0/24 dev eth0",
        ),
    )


def test_routes_of_the_containers_are_no_strays_without_a_bridge(tunnel_host: Namespace) -> None:
    """As the CNI plugin ptp wires them."""
    ip(tunnel_host, "route", "add", "10.1.5.7/32", "dev", "eth0")
    assert state(tunnel_host).strays == ()


def test_a_gateway_route_to_our_own_subnet_is_a_stray(tunnel_host: Namespace) -> None:
    ip(tunnel_host, "route", "add", "10.1.5.0/24", "via", "172.30.0.7")
    assert state(tunnel_host).strays == ("10.1.5.0/24 via 172.30.0.7 dev eth0",)


def test_a_device_that_is_gone_has_dropped_nothing(namespace: Namespace) -> None:
    assert namespace.call(tunnel_device.queue_drops, "flannel0") == 0

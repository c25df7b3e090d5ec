"""netdev.py against the real kernel, each test in a network namespace of its own."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import BinaryIO

import pytest
from scapy.layers.inet import IP, UDP

from flannel_udp.errors import DeviceError, InterfaceError
from flannel_udp.host import netlink as netdev
from flannel_udp.host.netns import Namespace
from flannel_udp.options import Options

NETWORK = IPv4Network("10.1.0.0/16")
SUBNET = IPv4Network("10.1.5.0/24")
ADDRESS = IPv4Address("10.1.5.0")

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


@pytest.fixture
def tun(namespace: Namespace) -> Iterator[BinaryIO]:
    """The device flannel0, kept alive by an open file as the pump does."""
    request = struct.pack("16sH22x", b"flannel0", IFF_TUN | IFF_NO_PI)
    with namespace.call(open, "/dev/net/tun", "r+b", buffering=0) as device:
        fcntl.ioctl(device, TUNSETIFF, request)
        yield device


@pytest.fixture
def host(namespace: Namespace) -> Namespace:
    """Interfaces eth0 (172.30.0.1) and eth1 (172.31.0.1), each cabled to an unused peer."""
    for name, address in (("eth0", "172.30.0.1/24"), ("eth1", "172.31.0.1/24")):
        namespace.add_veth(name, namespace, f"{name}peer")
        namespace.add_address(name, IPv4Interface(address))
    return namespace


def ip(namespace: Namespace, *words: str) -> str:
    return namespace.run(["ip", *words]).stdout


def configure(namespace: Namespace, address: IPv4Address = ADDRESS) -> None:
    namespace.call(netdev.configure_tunnel, "flannel0", address, 1472, NETWORK)


# --- choosing the external interface


def chosen_address(namespace: Namespace, options: Options) -> str:
    return str(namespace.call(netdev.choose_interface, options)[0].address)


def test_choice_carries_name_index_mtu_and_public_ip(host: Namespace) -> None:
    host.set_link("eth0", mtu=1400)
    options = Options(iface=("eth0",), public_ip=IPv4Address("203.0.113.1"))
    chosen, public_ip = host.call(netdev.choose_interface, options)
    assert (chosen.name, chosen.mtu) == ("eth0", 1400)
    assert host.call(socket.if_indextoname, chosen.index) == "eth0"
    assert public_ip == IPv4Address("203.0.113.1")


def test_default_route_with_the_lowest_metric_decides(host: Namespace) -> None:
    default = IPv4Network("0.0.0.0/0")
    host.add_route(default, via=IPv4Address("172.30.0.254"), priority=200)
    host.add_route(default, via=IPv4Address("172.31.0.254"), priority=100)
    assert chosen_address(host, Options()) == "172.31.0.1"


def test_the_owner_of_the_public_ip_is_before_the_default_route(
    host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    host.add_route(IPv4Network("0.0.0.0/0"), via=IPv4Address("172.30.0.254"))
    assert chosen_address(host, Options()) == "172.30.0.1"
    assert chosen_address(host, Options(public_ip=IPv4Address("172.31.0.1"))) == "172.31.0.1"
    assert "external interface eth1" in caplog.messages[-1]
    behind_nat = Options(public_ip=IPv4Address("203.0.113.1"))
    assert chosen_address(host, behind_nat) == "172.30.0.1"
    assert caplog.messages[-1].endswith("address 172.30.0.1, public IP 203.0.113.1")
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_can_reach_takes_interface_and_source_of_the_route(host: Namespace) -> None:
    host.add_address("eth1", IPv4Interface("172.31.0.2/24"))
    host.add_route(
        IPv4Network("192.0.2.0/24"), via=IPv4Address("172.31.0.254"), prefsrc="172.31.0.2"
    )
    assert chosen_address(host, Options(iface_can_reach=IPv4Address("192.0.2.7"))) == "172.31.0.2"


@pytest.mark.parametrize("target", ["198.51.100.1", "172.30.0.1", "172.30.0.255", "127.0.0.1"])
def test_can_reach_refuses_what_is_not_another_host(host: Namespace, target: str) -> None:
    with pytest.raises(InterfaceError, match=f"--iface-can-reach {target}: no route leads"):
        chosen_address(host, Options(iface_can_reach=IPv4Address(target)))


def test_global_address_is_preferred_to_link_local(host: Namespace) -> None:
    ip(host, "address", "flush", "dev", "eth0")
    ip(host, "address", "add", "169.254.7.7/16", "dev", "eth0", "scope", "link")
    assert chosen_address(host, Options(iface=("eth0",))) == "169.254.7.7"
    ip(host, "address", "add", "192.0.2.1/24", "dev", "eth0")
    assert chosen_address(host, Options(iface=("eth0",))) == "192.0.2.1"


def test_permanent_address_is_preferred_and_deprecated_is_skipped(host: Namespace) -> None:
    ip(host, "address", "flush", "dev", "eth0")
    lifetime = ("valid_lft", "1000", "preferred_lft")
    ip(host, "address", "add", "192.0.2.1/24", "dev", "eth0", *lifetime, "0")
    with pytest.raises(InterfaceError, match="eth0 has no usable IPv4 address"):
        chosen_address(host, Options(iface=("eth0",)))
    ip(host, "address", "add", "192.0.3.1/24", "dev", "eth0", *lifetime, "900")
    assert chosen_address(host, Options(iface=("eth0",))) == "192.0.3.1"
    ip(host, "address", "add", "192.0.4.1/24", "dev", "eth0")
    assert chosen_address(host, Options(iface=("eth0",))) == "192.0.4.1"


def test_address_of_a_point_to_point_link_is_the_local_one(host: Namespace) -> None:
    ip(host, "address", "flush", "dev", "eth0")
    ip(host, "address", "add", "192.0.2.1", "peer", "192.0.2.2", "dev", "eth0")
    assert chosen_address(host, Options(iface=("eth0",))) == "192.0.2.1"


def test_loopback_is_no_external_interface(host: Namespace) -> None:
    with pytest.raises(InterfaceError, match="lo has no usable IPv4 address"):
        chosen_address(host, Options(iface=("lo",)))


def test_interface_that_is_down_is_taken_with_a_warning(
    host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    host.set_link("eth0", state="down")
    assert chosen_address(host, Options(iface=("eth0",))) == "172.30.0.1"
    assert "eth0 is down" in caplog.text


# --- the tunnel device


@pytest.mark.parametrize(
    ("external", "cap", "expected"), [(1500, None, 1472), (1500, 1400, 1400), (1400, 1450, 1372)]
)
def test_tunnel_mtu_leaves_room_for_the_outer_headers(
    external: int, cap: int | None, expected: int
) -> None:
    assert netdev.tunnel_mtu(external, cap) == expected


def test_tunnel_has_address_mtu_queue_and_one_route(namespace: Namespace, tun: BinaryIO) -> None:
    configure(namespace)
    link = ip(namespace, "-6", "address", "show", "dev", "flannel0")
    assert link == ""  # no IPv6 link-local address, so nothing is solicited
    link = ip(namespace, "address", "show", "dev", "flannel0")
    assert "mtu 1472 " in link
    assert "inet 10.1.5.0/32 " in link
    assert f"qlen {netdev.TUN_QUEUE_LENGTH}" in link
    route = "10.1.0.0/16 dev flannel0 proto static scope link src 10.1.5.0"
    assert [line.strip() for line in ip(namespace, "route").splitlines()] == [route]


def test_host_speaks_to_remote_containers_as_the_tunnel_address(
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


def test_container_receives_what_the_pump_sends_as_the_tunnel_address(
    namespace: Namespace, tun: BinaryIO
) -> None:
    """The kernel drops packets from one of its own addresses as martian, unless told otherwise."""
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


def test_equal_route_gives_way_where_it_may_be_displaced(host: Namespace, tun: BinaryIO) -> None:
    ip(host, "route", "add", "10.1.0.0/16", "via", "172.30.0.9")
    host.call(netdev.configure_tunnel, "flannel0", ADDRESS, 1472, NETWORK, displace=True)
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
        namespace.call(netdev.configure_tunnel, "flannel0", ADDRESS, 7, NETWORK)


def test_missing_rights_are_one_sentence(namespace: Namespace, tun: BinaryIO) -> None:
    program = (
        "from flannel_udp.host import netlink as netdev\n"
        "from flannel_udp.errors import DeviceError\n"
        "from ipaddress import ip_network\n"
        "try: netdev.add_blackhole(ip_network('10.1.5.0/24'))\n"
        "except DeviceError as error: print(error)\n"
    )
    drop = ("setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin")
    repository = Path(__file__).parents[2]
    result = namespace.run(
        [*drop, sys.executable, "-c", program], cwd=repository, stderr=subprocess.STDOUT
    )
    assert result.stdout == (
        "cannot add the blackhole route for 10.1.5.0/24: not permitted; "
        "run as root (CAP_NET_ADMIN)\n"
    )


def test_tunnel_route_can_be_removed_more_than_once(namespace: Namespace, tun: BinaryIO) -> None:
    configure(namespace)
    namespace.call(netdev.remove_tunnel_route, "flannel0", NETWORK)
    assert ip(namespace, "route") == ""
    namespace.call(netdev.remove_tunnel_route, "flannel0", NETWORK)
    tun.close()
    namespace.call(netdev.remove_tunnel_route, "flannel0", NETWORK)


def test_blackholes_of_earlier_runs_are_told_from_the_operators(host: Namespace) -> None:
    ip(host, "route", "add", "blackhole", "10.1.6.0/24")
    host.call(netdev.add_blackhole, SUBNET)
    assert host.call(netdev.blackholes) == [SUBNET]


@pytest.mark.parametrize(("device", "served"), [("flannel0", True), ("tun7", False)])
def test_a_network_is_served_by_flannels_devices_only(
    host: Namespace, device: str, served: bool
) -> None:
    ip(host, "link", "set", "eth1", "name", device)
    ip(host, "route", "add", str(NETWORK), "dev", device)
    assert host.call(netdev.is_served, NETWORK) is served
    assert host.call(netdev.is_served, SUBNET) is served
    assert not host.call(netdev.is_served, IPv4Network("10.2.0.0/16"))


def test_blackhole_yields_to_the_bridge_and_stops_the_rest(host: Namespace) -> None:
    host.add_route(IPv4Network("0.0.0.0/0"), via=IPv4Address("172.30.0.254"))
    host.call(netdev.add_blackhole, SUBNET)
    host.call(netdev.add_blackhole, SUBNET)  # left over by a killed run
    assert host.run(["ip", "route", "get", "10.1.5.9"]).returncode != 0
    host.add_bridge("docker0")
    host.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    assert " dev docker0 " in ip(host, "route", "get", "10.1.5.9")
    host.call(netdev.remove_blackhole, SUBNET)
    host.call(netdev.remove_blackhole, SUBNET)
    assert "blackhole" not in ip(host, "route")
    assert " dev docker0 " in ip(host, "route", "get", "10.1.5.9")


# --- routes


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
    assert host.call(netdev.gateway_route_covering, SUBNET, network) == expected

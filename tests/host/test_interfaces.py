"""The host's interfaces in the real kernel, each test in a network namespace of its own."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannel_udp.errors import InterfaceError
from flannel_udp.host import interfaces
from flannel_udp.host.interface_choice import Bridge, ExternalInterface
from flannel_udp.host.interfaces import ExternalFault
from flannel_udp.host.netns import Namespace
from flannel_udp.options import Options


def ip(namespace: Namespace, *words: str) -> str:
    return namespace.run(["ip", *words]).stdout


def chosen_address(namespace: Namespace, options: Options) -> str:
    return str(namespace.call(interfaces.choose_external, options)[0].address)


def test_choice_carries_name_index_mtu_and_public_ip(host: Namespace) -> None:
    host.set_link("eth0", mtu=1400)
    options = Options(iface=("eth0",), public_ip=IPv4Address("203.0.113.1"))
    chosen, public_ip = host.call(interfaces.choose_external, options)
    assert (chosen.name, chosen.mtu) == ("eth0", 1400)
    assert host.call(socket.if_indextoname, chosen.index) == "eth0"
    assert public_ip == IPv4Address("203.0.113.1")


def test_default_route_with_the_lowest_metric_decides(host: Namespace) -> None:
    default = IPv4Network("0.0.0.0/0")
    host.add_route(default, via=IPv4Address("172.30.0.254"), priority=200)
    host.add_route(default, via=IPv4Address("172.31.0.254"), priority=100)
    assert chosen_address(host, Options()) == "172.31.0.1"


def test_the_owner_of_the_public_ip_precedes_the_default_route(
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


def test_interfaces_of_containers_are_not_offered_but_accepted(
    tunnel_host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    host = tunnel_host
    for bridge, address in (("docker0", "10.1.5.1/24"), ("br0", "192.0.2.1/24")):
        host.add_bridge(bridge)
        host.add_address(bridge, IPv4Interface(address))
    host.add_veth("veth0", host, "inside")
    host.set_link("veth0", master="docker0")
    offered = "this host has eth0 (172.30.0.1), eth1 (172.31.0.1), br0 (192.0.2.1)"
    with pytest.raises(InterfaceError, match=re.escape(f"; {offered}: name one of them")):
        chosen_address(host, Options())
    caplog.set_level("DEBUG")
    assert chosen_address(host, Options(iface=("docker0",))) == "10.1.5.1"
    assert offered in caplog.messages


def test_interface_that_is_down_is_chosen_with_a_warning(
    host: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    host.set_link("eth0", state="down")
    assert chosen_address(host, Options(iface=("eth0",))) == "172.30.0.1"
    assert "eth0 is down" in caplog.text


def fault_of(host: Namespace) -> ExternalFault | None:
    external = ExternalInterface("eth0", 2, 1500, IPv4Address("172.30.0.1"))
    return host.call(interfaces.external_fault, external)


def test_an_interface_that_is_up_with_its_address_has_no_fault(host: Namespace) -> None:
    assert fault_of(host) is None


def test_a_lost_address_differs_from_an_interface_that_is_down(host: Namespace) -> None:
    host.set_link("eth0", state="down")
    assert fault_of(host) == ExternalFault("eth0 is down", lost_address=False)
    ip(host, "address", "del", "172.30.0.1/24", "dev", "eth0")
    assert fault_of(host) == ExternalFault("172.30.0.1 is gone from eth0", lost_address=True)


def test_an_address_that_moved_to_a_bridge_is_no_fault(host: Namespace) -> None:
    ip(host, "address", "del", "172.30.0.1/24", "dev", "eth0")
    host.add_bridge("br0")
    host.set_link("eth0", master="br0")
    host.add_address("br0", IPv4Interface("172.30.0.1/24"))
    assert fault_of(host) is None


def test_bridges_have_the_largest_mtu_of_their_ports(namespace: Namespace) -> None:
    assert namespace.call(interfaces.bridges) == []
    namespace.add_bridge("docker0")
    namespace.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    namespace.add_bridge("br-empty")
    for number, mtu in enumerate((1472, 1400)):
        namespace.add_veth(f"c{number}", namespace, f"inside{number}", mtu=mtu)
        namespace.set_link(f"c{number}", master="docker0")
    assert namespace.call(interfaces.bridges) == [
        Bridge("br-empty", (), None),
        Bridge("docker0", (IPv4Address("10.1.5.1"),), 1472),
    ]

"""The host's own settings, each test in a network namespace of its own."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Interface

from flannel_udp.host import settings as netdev_host
from flannel_udp.host.interface import Bridge
from flannel_udp.host.netns import Namespace


def test_ip_forward_is_that_of_the_namespace(namespace: Namespace) -> None:
    for value in (0, 1):
        namespace.sysctl("ipv4/ip_forward", value)
        assert namespace.call(netdev_host.ip_forward_enabled) is bool(value)


def test_whether_iptables_sees_bridged_packets_is_read(namespace: Namespace) -> None:
    for value in (0, 1):
        namespace.sysctl("bridge/bridge-nf-call-iptables", value)
        assert namespace.call(netdev_host.bridged_packets_meet_iptables) is bool(value)
    hide = 'mount -t tmpfs tmpfs /proc/sys/net; exec "$@"'
    ask = "from flannel_udp.host import settings; print(settings.bridged_packets_meet_iptables())"
    program = ["unshare", "--mount", "sh", "-ec", hide, "sh", sys.executable, "-c", ask]
    assert namespace.run(program, check=True).stdout == "None\n"


def test_bridges_are_told_with_the_largest_mtu_plugged_in(namespace: Namespace) -> None:
    assert namespace.call(netdev_host.bridges) == []
    namespace.add_bridge("docker0")
    namespace.add_address("docker0", IPv4Interface("10.1.5.1/24"))
    namespace.add_bridge("br-empty")
    for number, mtu in enumerate((1472, 1400)):
        namespace.add_veth(f"c{number}", namespace, f"inside{number}", mtu=mtu)
        namespace.set_link(f"c{number}", master="docker0")
    assert namespace.call(netdev_host.bridges) == [
        Bridge("br-empty", (), None),
        Bridge("docker0", (IPv4Address("10.1.5.1"),), 1472),
    ]


def test_a_device_that_is_gone_has_dropped_nothing(namespace: Namespace) -> None:
    assert namespace.call(netdev_host.queue_drops, "flannel0") == 0

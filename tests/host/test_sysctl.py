"""The kernel's network settings, each test in a network namespace of its own."""

from __future__ import annotations

import sys

from flannel_udp.host import sysctl
from flannel_udp.host.netns import Namespace


def test_ip_forward_is_that_of_the_namespace(namespace: Namespace) -> None:
    for value in (0, 1):
        namespace.sysctl("ipv4/ip_forward", value)
        assert namespace.call(sysctl.ip_forward_enabled) is bool(value)


def test_whether_iptables_sees_bridged_packets_is_read(namespace: Namespace) -> None:
    for value in (0, 1):
        namespace.sysctl("bridge/bridge-nf-call-iptables", value)
        assert namespace.call(sysctl.bridged_packets_meet_iptables) is bool(value)
    hide = 'mount -t tmpfs tmpfs /proc/sys/net; exec "$@"'
    ask = "from flannel_udp.host import sysctl; print(sysctl.bridged_packets_meet_iptables())"
    program = ["unshare", "--mount", "sh", "-ec", hide, "sh", sys.executable, "-c", ask]
    assert namespace.run(program, check=True).stdout == "None\n"

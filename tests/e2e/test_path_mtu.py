"""The path MTU between two hosts becomes smaller, and large again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

import pytest
from etcd_server import wait_until
from instruments import log_lines, unreachable
from scapy.layers.inet import ICMP, IP, UDP
from transfers import MIB, segmented_burst, transfer

from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import DEFAULT_CONFIG, UNDERLAY, Host, Lab

NARROW = 1400  # bytes of a frame's IP packet, where the hosts' interfaces take 1500
SIZE = 1444  # the largest datagram that fits the tunnel's MTU
COUNT = 40
GSO_AGAIN_WITHIN = 20.0  # seconds; the pump tries after 10

NEAR, FAR = "172.30.0.0/24", "172.31.0.0/24"
FAR_HOST, FAR_ROUTER = "172.31.0.2", "172.31.0.254"


@pytest.fixture
def presets() -> tuple[str, str]:
    """``--offload`` of the two hosts."""
    return "auto", "auto"


@pytest.fixture
def network_config() -> dict[str, object]:
    """What differs from the lab's."""
    return {}


@pytest.fixture
def routed_lab(
    network_rights: None, presets: tuple[str, str], network_config: dict[str, object]
) -> Iterator[Lab]:
    """The second host is behind a router: the switch, which now routes between two networks."""
    config = {**DEFAULT_CONFIG, **network_config}
    with Lab(hosts=2, start_daemons=False, presets=presets, config=config) as lab:
        far = lab.hosts[1]
        for command in ("ip link set host2 nomaster", f"ip addr add {FAR_ROUTER}/24 dev host2"):
            lab.switch.run(command.split(), check=True)
        lab.switch.sysctl("ipv4/ip_forward", 1)
        for command in (
            "ip addr flush dev eth0",
            f"ip addr add {FAR_HOST}/24 dev eth0",
            f"ip route add default via {FAR_ROUTER}",
        ):
            far.run(command.split(), check=True)
        far.address = IPv4Address(FAR_HOST)
        lab.start_daemons()
        assert unreachable(lab) == []
        yield lab


def set_path_mtu(lab: Lab, mtu: int) -> None:
    """Sets the MTU of both directions through the router, which fragments what is larger."""
    for network, device in ((NEAR, "underlay"), (FAR, "host2")):
        route = f"ip route change {network} dev {device} mtu {mtu}"
        lab.switch.run(route.split(), check=True)


def set_device_mtu(host: Host, mtu: int) -> None:
    host.run(["ip", "link", "set", "eth0", "mtu", str(mtu)], check=True)


def stats(host: Host) -> dict[str, int]:
    counters: dict[str, int] = host.status()["stats"]
    return counters


def burst(near: Host, far: Host) -> int:
    """Sends superpackets, which must arrive exactly once; returns how many left with GSO."""
    sent, arrived = stats(near)["udp_segmented_sends"], stats(far)["udp_received_packets"]
    payload = os.urandom(SIZE * COUNT)
    whole = [payload[at : at + SIZE] for at in range(0, len(payload), SIZE)]
    ends = near.containers[0], far.containers[0]
    assert segmented_burst(*ends, payload, SIZE, gro=False)[0] == whole
    assert stats(far)["udp_received_packets"] == arrived + COUNT
    return stats(near)["udp_segmented_sends"] - sent


def test_lower_path_mtu_loses_nothing_and_keeps_gso(routed_lab: Lab) -> None:
    """From the first packet on: nothing has to be learned."""
    near, far = routed_lab.hosts
    assert burst(near, far) > 0
    set_path_mtu(routed_lab, NARROW)
    assert burst(near, far) > 0
    assert burst(far, near) > 0
    assert stats(near)["send_fallbacks"] == 0


def test_forged_path_mtu_changes_nothing(routed_lab: Lab) -> None:
    """Whoever knows the port of the overlay can forge "fragmentation needed"."""
    near, far = routed_lab.hosts
    quoted = IP(src=str(near.address), dst=FAR_HOST, flags="DF", len=1500)
    quoted /= UDP(sport=8285, dport=8285, len=1480)
    error = IP(src=str(UNDERLAY.ip), dst=str(near.address))
    error /= ICMP(type="dest-unreach", code="fragmentation-needed", nexthopmtu=576) / quoted
    with routed_lab.switch.call(
        socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
    ) as forger:
        for _ in range(3):
            forger.sendto(bytes(error), (str(near.address), 0))
    assert int(near.run(["nstat", "-asz", "IcmpInDestUnreachs"]).stdout.split()[-2]) >= 3
    before = fragments(near)
    assert burst(near, far) > 0
    assert fragments(near) == before
    assert stats(near)["send_fallbacks"] == 0
    assert "mtu 576" not in near.run(["ip", "route", "get", FAR_HOST]).stdout


def fragments(host: Host) -> int:
    """How many its kernel has made."""
    return int(host.run(["nstat", "-asz", "IpFragCreates"], check=True).stdout.split()[-2])


def test_lower_device_mtu_loses_nothing_and_gso_returns_after_it(routed_lab: Lab) -> None:
    near, far = routed_lab.hosts

    def shown() -> str:
        command = [
            sys.executable,
            "-m",
            "flannel_udp",
            "status",
            f"--subnet-file={near.subnet_file}",
        ]
        return near.run(command, timeout=60, env=child_environment()).stdout

    assert burst(near, far) > 0
    set_device_mtu(near, NARROW)
    # The kernel refuses this run with GSO, and fragments its packets when sent one by one.
    assert burst(near, far) == 0
    assert stats(near)["send_fallbacks"] == 1
    assert burst(near, far) == 0
    refusal = f"the kernel refuses UDP GSO on the way to {FAR_HOST}: nothing is lost"
    wait_until(lambda: bool(log_lines(near, refusal)), "the line in the log")
    assert "UDP GSO is refused on the way to 1 of 1 peers (172.31.0.2)" in shown()
    transfer(((near.containers[0], far.containers[0]),), 16 * MIB)  # a veth refuses larger ones

    set_device_mtu(near, 1500)
    wait_until(lambda: burst(near, far) > 0, "sending whole runs again", GSO_AGAIN_WITHIN)
    assert "refused" not in shown()
    assert len(log_lines(near, "refuses UDP GSO")) == 1


@pytest.mark.parametrize("presets", [("auto", "auto"), ("none", "tso")], ids="-".join)
def test_tcp_streams_survive_a_lowered_path_mtu(routed_lab: Lab, presets: tuple[str, str]) -> None:
    near, far = routed_lab.hosts
    amount = 256 * MIB if "auto" in presets else 64 * MIB
    ends = near.containers[0], far.containers[0]
    before = stats(near)["udp_sent_packets"]
    with ThreadPoolExecutor(1) as pool:
        streams = pool.submit(transfer, (ends, ends[::-1]), amount)
        wait_until(lambda: stats(near)["udp_sent_packets"] > before + 10_000, "streams flowing")
        set_path_mtu(routed_lab, NARROW)
        assert not streams.done(), "they were too short to notice"
        streams.result()
    for host in routed_lab.hosts:
        assert stats(host)["send_fallbacks"] == 0


@pytest.mark.parametrize("network_config", [{}, {"EnableNFTables": True}], ids=["iptables", "nft"])
def test_large_packets_cross_a_narrow_path_behind_a_stateful_firewall(routed_lab: Lab) -> None:
    """Which accepts only what belongs to a connection."""
    near, far = routed_lab.hosts
    for rule in (
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -p udp --dport 8285 -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-P INPUT DROP",
    ):
        near.run(["iptables", "-w", "20", *rule.split()], check=True)
    set_path_mtu(routed_lab, NARROW)
    assert burst(near, far) > 0
    assert burst(far, near) > 0

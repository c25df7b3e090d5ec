"""The path MTU between two hosts becomes smaller, and large again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

import pytest
from etcd_server import wait_until
from instruments import log_lines, unreachable
from transfers import MIB, segmented_burst, transfer

from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import DEFAULT_CONFIG, Host, Lab

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
    """Sets the MTU of both directions through the router, which sends ICMP to senders."""
    for network, device in ((NEAR, "underlay"), (FAR, "host2")):
        route = f"ip route change {network} dev {device} mtu {mtu}"
        lab.switch.run(route.split(), check=True)


def learn_path_mtu(lab: Lab, source: Host, target: Host) -> None:
    """Waits until large packets pass: the first ones are lost while the kernels learn the MTU."""
    target_address = str(target.containers[0].address)
    ping = ["ping", "-n", "-M", "dont", "-c", "1", "-W", "1", "-s", "1400", target_address]
    wait_until(lambda: source.containers[0].run(ping).returncode == 0, "large packets passing")


def stats(host: Host) -> dict[str, int]:
    counters: dict[str, int] = host.status()["stats"]
    return counters


def test_lower_path_mtu_loses_nothing_and_gso_returns_after_it(routed_lab: Lab) -> None:
    near, far = routed_lab.hosts

    def burst() -> int:
        """Sends superpackets, which must arrive exactly once; returns how many left with GSO."""
        sent, arrived = stats(near)["udp_segmented_sends"], stats(far)["udp_received_packets"]
        payload = os.urandom(SIZE * COUNT)
        whole = [payload[at : at + SIZE] for at in range(0, len(payload), SIZE)]
        ends = near.containers[0], far.containers[0]
        assert segmented_burst(*ends, payload, SIZE, gro=False)[0] == whole
        assert stats(far)["udp_received_packets"] == arrived + COUNT
        return stats(near)["udp_segmented_sends"] - sent

    def shown() -> str:
        command = [
            sys.executable,
            "-m",
            "flannel_udp",
            "status",
            f"--subnet-file={near.subnet_file}",
        ]
        return near.run(command, timeout=60, env=child_environment()).stdout

    assert burst() > 0
    set_path_mtu(routed_lab, NARROW)
    for source, target in ((near, far), (far, near)):
        learn_path_mtu(routed_lab, source, target)
    assert stats(near)["send_fallbacks"] == 0
    # The kernel refuses this run with GSO, and fragments its packets when sent one by one.
    assert burst() == 0
    assert stats(near)["send_fallbacks"] == 1
    assert burst() == 0
    refusal = f"the kernel refuses UDP GSO on the way to {FAR_HOST}: nothing is lost"
    wait_until(lambda: bool(log_lines(near, refusal)), "the line in the log")
    assert "UDP GSO is refused on the way to 1 of 1 peers (172.31.0.2)" in shown()
    transfer(
        ((near.containers[0], far.containers[0]), (far.containers[0], near.containers[0])), 16 * MIB
    )

    set_path_mtu(routed_lab, 1500)
    for host in routed_lab.hosts:
        # Otherwise the kernels remember the MTU for ten minutes.
        host.run(["ip", "route", "flush", "cache"], check=True)
    wait_until(lambda: burst() > 0, "sending whole runs again", GSO_AGAIN_WITHIN)
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
    for host, preset in zip(routed_lab.hosts, presets, strict=True):
        assert (stats(host)["send_fallbacks"] > 0) == (preset == "auto")


@pytest.mark.parametrize("network_config", [{}, {"EnableNFTables": True}], ids=["iptables", "nft"])
def test_path_mtu_is_learned_behind_a_stateful_firewall(routed_lab: Lab) -> None:
    """Which accepts an ICMP error only if it belongs to a connection."""
    near, far = routed_lab.hosts
    for rule in (
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -p udp --dport 8285 -j ACCEPT",
        "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-P INPUT DROP",
    ):
        near.run(["iptables", "-w", "20", *rule.split()], check=True)
    set_path_mtu(routed_lab, NARROW)
    learn_path_mtu(routed_lab, near, far)

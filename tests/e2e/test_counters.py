"""Status and metrics agree with the kernel's interface statistics and nftables counters.

Without offloads one packet is one datagram everywhere, and both can be compared one to one.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from typing import Any

import pytest
from etcd_server import wait_until
from instruments import HEALTH_FLAGS, metrics
from scapy.layers.inet import IP, UDP

from flannel_udp.host.netns import freeze
from flannel_udp.host.tunnel_device import QUEUE_LENGTH
from flannel_udp.lab.lab import UNDERLAY, Host, Lab

OUTER = 28  # bytes of IPv4 and UDP in front of what is carried
NOBODY = IPv4Address("10.1.0.77")  # the first subnet is never leased


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=3, daemon_args=(*HEALTH_FLAGS, "--offload=none")) as lab:
        assert None not in lab.ping_matrix().values()
        yield lab


@contextmanager
def nft_counters(host: Host, rules: Mapping[str, tuple[str, str]]) -> Iterator[Callable[[], Any]]:
    """``rules``: name -> hook and match. Yields a function: name -> (packets, bytes)."""
    script = ["add table ip count"]
    for name, (hook, match) in rules.items():
        chain = f"{{ type filter hook {hook} priority 0; }}"
        script += [f"add counter ip count {name}", f"add chain ip count {name} {chain}"]
        script.append(f"add rule ip count {name} {match.replace('COUNT', f'counter name {name}')}")
    host.run(["nft", "-f", "-"], input="\n".join(script), check=True)

    def read() -> dict[str, tuple[int, int]]:
        shown = host.run(["nft", "-j", "list", "counters", "table", "ip", "count"], check=True)
        found = [each["counter"] for each in json.loads(shown.stdout)["nftables"][1:]]
        return {each["name"]: (each["packets"], each["bytes"]) for each in found}

    try:
        yield read
    finally:
        host.run(["nft", "delete table ip count"], check=True)


def counters(host: Host) -> dict[str, int]:
    """All counters of the status; those of a peer have its address after the name."""
    status = host.status()
    counters: dict[str, int] = dict(status["stats"])
    for peer in status["peers"]:
        counters |= {f"{name} {peer['public_ip']}": value for name, value in peer.items()}
    return counters


def metric(name: str) -> str:
    """The name in /metrics of one of ``counters``."""
    if name.startswith("drop_"):
        return " ".join(("flannel_dropped_packets_total", *name.split("_", 2)[1:]))
    if " " in name:
        field, peer = name.split()
        return f"flannel_peer_{field}_total {peer}"
    return f"flannel_{name}_total"


class Growth:
    """The growth of the counters from now on; status and metrics must agree."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._counters, self._metrics = counters(host), metrics(host)

    def of(self, name: str) -> int:
        return counters(self._host)[name] - self._counters[name]

    def agrees_with(self, expected: Mapping[str, int]) -> None:
        """Waits a little, because a packet is counted after it was sent."""

        def grown() -> dict[str, int]:
            return {name: self.of(name) for name in expected}

        with suppress(AssertionError):  # the one below says more
            wait_until(lambda: grown() == expected, "agreement")
        assert grown() == expected
        now = metrics(self._host)
        grown_there = {name: now[metric(name)] - self._metrics[metric(name)] for name in expected}
        assert grown_there == expected


def kernel_counters(host: Host) -> dict[str, int]:
    """The statistics of flannel0; ``rx`` counts what the daemon wrote."""
    shown = host.run(["ip", "-json", "-s", "link", "show", "flannel0"], check=True).stdout
    stats = json.loads(shown)[0]["stats64"]
    return {
        "tun_read_packets": stats["tx"]["packets"],
        "tun_read_bytes": stats["tx"]["bytes"],
        "tun_written_packets": stats["rx"]["packets"],
        "tun_written_bytes": stats["rx"]["bytes"],
        "drop_tun_queue_full": stats["tx"]["dropped"],
    }


def burst(lab: Lab, target: IPv4Address, count: int) -> None:
    """Sends small UDP packets from the first host's container as fast as possible."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(count):
                sender.sendto(b"x", (str(target), 9))

    lab.containers[0].netns.call(send)


def test_traffic_counters_equal_the_kernels(lab: Lab) -> None:
    host, *others = lab.hosts
    tunnel_before, growth = kernel_counters(host), Growth(host)
    rules = {}
    for number, peer in enumerate(others):
        rules[f"to{number}"] = ("output", f"ip daddr {peer.address} udp dport 8285 COUNT")
        rules[f"from{number}"] = ("input", f"ip saddr {peer.address} udp sport 8285 COUNT")
    with nft_counters(host, rules) as counted:
        for peer, count in zip(others, (200, 100), strict=True):
            ping = ["ping", "-n", "-c", f"{count}", "-i", "0.002", "-s", "500"]
            output = lab.containers[0].run([*ping, str(peer.ping_address)], check=True).stdout
            assert " 0% packet loss" in output
        seen = counted()
    assert [seen[name][0] for name in ("to0", "from0", "to1", "from1")] == [200, 200, 100, 100]
    expected = {}
    for number, peer in enumerate(others):
        for way, field in (("to", "sent"), ("from", "received")):
            packets, size = seen[f"{way}{number}"]
            expected[f"{field}_packets {peer.address}"] = packets
            expected[f"{field}_bytes {peer.address}"] = size - OUTER * packets
    for field in ("sent", "received"):
        for unit in ("packets", "bytes"):
            expected[f"udp_{field}_{unit}"] = sum(
                expected[f"{field}_{unit} {peer.address}"] for peer in others
            )
    growth.agrees_with(expected)
    tunnel = kernel_counters(host)
    growth.agrees_with({name: value - tunnel_before[name] for name, value in tunnel.items()})


def test_drop_counters_equal_the_kernels(lab: Lab) -> None:
    host, refused, _ = lab.hosts
    growth = Growth(host)
    rules = {
        "unrouted": ("forward", f"oifname flannel0 ip daddr {NOBODY} COUNT"),
        "unknown_host": ("input", f"ip saddr {UNDERLAY.ip} udp dport 8285 COUNT"),
        "blocked": ("output", f"ip daddr {refused.address} udp dport 8285 COUNT drop"),
    }

    inner = bytes(IP(src="10.1.0.9", dst=str(lab.containers[0].address)) / UDP() / b"x")

    def intrude() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unknown_host:
            unknown_host.bind(("", 8285))
            for _ in range(30):
                unknown_host.sendto(inner, (str(host.address), 8285))

    with nft_counters(host, rules) as counted:
        burst(lab, NOBODY, 20)
        burst(lab, refused.ping_address, 25)
        lab.switch.call(intrude)
        wait_until(lambda: counted()["blocked"][0] == 25, "the firewall counting")
        seen = {name: packets for name, (packets, _) in counted().items()}
    assert seen == {"unrouted": 20, "unknown_host": 30, "blocked": 25}
    growth.agrees_with(
        {
            "drop_tun_no_route": seen["unrouted"],
            "drop_udp_unknown_peer": seen["unknown_host"],
            "drop_tun_send_firewall": seen["blocked"],
            f"dropped_packets {refused.address}": seen["blocked"],
        }
    )


def test_packets_dropped_by_a_full_tunnel_queue_are_counted(lab: Lab) -> None:
    """The worker is stopped, so the queue fills; afterwards it reads what is in the queue."""
    host, other = lab.hosts[0], lab.hosts[1]
    before, growth = kernel_counters(host), Growth(host)
    rules = {"sent": ("forward", f"oifname flannel0 ip daddr {other.ping_address} COUNT")}
    with nft_counters(host, rules) as counted:
        assert host.daemon
        freeze(host.daemon)
        burst(lab, other.ping_address, QUEUE_LENGTH + 1000)
        host.daemon.send_signal(signal.SIGCONT)
        sent = counted()["sent"][0]
    assert sent == QUEUE_LENGTH + 1000
    lost = kernel_counters(host)["drop_tun_queue_full"] - before["drop_tun_queue_full"]
    assert 900 < lost < 1100, "the kernel's ring has room for about that many"
    growth.agrees_with({"drop_tun_queue_full": lost, "tun_read_packets": sent - lost})

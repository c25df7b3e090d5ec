"""Packets that the host's own kernel does not send: refused by the firewall, or too many."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median

import pytest
from conftest import MIXED_PRESETS
from etcd_server import wait_until
from instruments import drops, listen
from transfers import BURST, exchange

from flannel_udp.lab.lab import Container, Host, Lab

ROUNDS = 3
REFUSAL = """
table inet refusal {
    chain out {
        type filter hook output priority 0
        ip daddr %s udp dport 8285 drop
    }
}
"""
FLOOD = """
import socket, sys
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    flood.sendto(bytes(1400), (sys.argv[1], 9))
"""


@contextmanager
def refused(host: Host, peer: Host) -> Iterator[None]:
    """The host's firewall drops what its tunnel sends to the peer."""
    host.run(["nft", "-f", "-"], input=REFUSAL % peer.address, check=True)
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "inet", "refusal"], check=True)


@contextmanager
def flood(source: Container, target: Container) -> Iterator[None]:
    command = (sys.executable, "-c", FLOOD, str(target.address))
    with source.netns.popen(command) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def slow_link(host: Host) -> Iterator[None]:
    """The host's interface is slow, with a queue larger than a socket's buffer."""
    limits = "tbf rate 10mbit burst 100kb limit 64mb"
    host.run(["tc", "qdisc", "add", "dev", "eth0", "root", *limits.split()], check=True)
    try:
        yield
    finally:
        host.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=True)


def dropped_by_peer(host: Host) -> dict[str, int]:
    return {peer["public_ip"]: peer["dropped_packets"] for peer in host.peer_counters()}


def tunnel_drops(host: Host) -> int:
    """The kernel's count of packets that did not fit into the tunnel's queue."""
    shown = host.run(["ip", "-j", "-s", "link", "show", "flannel0"], check=True).stdout
    (link,) = json.loads(shown)
    return int(link["stats64"]["tx"]["dropped"])


@pytest.fixture(params=range(len(MIXED_PRESETS)), ids=MIXED_PRESETS)
def hosts(lab: Lab, request: pytest.FixtureRequest) -> list[Host]:
    """Each host in turn is the sender, because each has other offloads."""
    first: int = request.param
    return lab.hosts[first:] + lab.hosts[:first]


def test_packets_for_a_refused_peer_are_counted_without_losing_others(hosts: list[Host]) -> None:
    host, refused_peer, peer = hosts
    before, refusals = dropped_by_peer(host), drops(host).get("tun_send_firewall", 0)
    payloads = [os.urandom(1000) for _ in range(500)]
    arrived = []
    with (
        refused(host, refused_peer),
        listen(host.containers[0], socket.SOCK_DGRAM) as ours,
        listen(peer.containers[0], socket.SOCK_DGRAM) as theirs,
    ):
        targets = [
            (str(refused_peer.containers[0].address), theirs.getsockname()[1]),
            (str(peer.containers[0].address), theirs.getsockname()[1]),
        ]
        for start in range(0, len(payloads), BURST):
            burst = payloads[start : start + BURST]
            for payload in burst:
                for target in targets:
                    ours.sendto(payload, target)
            arrived += [theirs.recv(1001) for _ in burst]
    assert arrived == payloads
    assert drops(host)["tun_send_firewall"] == refusals + len(payloads)
    after = dropped_by_peer(host)
    assert after[str(refused_peer.address)] == before[str(refused_peer.address)] + len(payloads)
    assert after[str(peer.address)] == before[str(peer.address)]
    assert exchange(host.containers[0], refused_peer.containers[0], payloads) == payloads


def test_flood_to_a_refused_peer_does_not_slow_others(lab: Lab) -> None:
    host, refused_peer, peer = lab.hosts
    rates: dict[str, list[float]] = {"refused": [], "open": []}
    with flood(host.containers[0], refused_peer.containers[0]):
        for _ in range(ROUNDS):
            for name, way in (("open", nullcontext()), ("refused", refused(host, refused_peer))):
                with way:
                    rates[name].append(lab.throughput(host.containers[1], peer.containers[0]))
    # Below half, refusals would cost more than sends.
    assert median(rates["refused"]) > 0.5 * median(rates["open"]), rates


def test_overload_is_dropped_and_counted_in_the_tunnel_queue(lab: Lab, hosts: list[Host]) -> None:
    host, peer, _ = hosts
    ours, theirs = host.containers[0], peer.containers[0]
    before, pauses = tunnel_drops(host), host.status()["stats"]["send_pauses"]
    payloads = [os.urandom(1000) for _ in range(500)]
    with slow_link(host), listen(ours, socket.SOCK_DGRAM) as out:

        def overflow() -> bool:
            for _ in range(1000):
                out.sendto(bytes(1400), (str(theirs.address), 9))
            return tunnel_drops(host) > before

        wait_until(overflow, "an overflow of the tunnel's queue", 20)
        assert host.status()["stats"]["send_pauses"] > pauses
        # The other direction is not delayed.
        assert exchange(theirs, ours, payloads) == payloads
    wait_until(lambda: lab.ping(ours, theirs) is not None, "sending again")
    assert exchange(ours, theirs, payloads) == payloads

"""On a lossy network, the overlay loses no larger share of its throughput than kernel VXLAN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ipaddress import IPv4Network
from statistics import median

import pytest
from instruments import unreachable

from flannel_udp.lab.lab import Host, Lab

# Measured on two idle processors: 0.8 of the throughput is left, of VXLAN's 0.5 to 0.65. Beside
# programs that use up both processors the two come closer, for then these are the limit, not the
# loss, and single rounds say little: a verdict against us takes all the rounds there may be.
ROUNDS, MOST_ROUNDS = 5, 15
TOLERANCE = 0.95

VXLAN_PORT = 8472
VXLAN_MTU = 1450

# Each frame of both overlays is lost with a probability of 1 %, in both directions.
LOSSES = f"""
table bridge losses {{
    chain forward {{
        type filter hook forward priority 0
        udp dport {{ 8285, {VXLAN_PORT} }} numgen random mod 100 < 1 drop
    }}
}}
"""


@contextmanager
def loss(lab: Lab) -> Iterator[None]:
    lab.switch.run(["nft", "-f", "-"], input=LOSSES, check=True)
    yield
    lab.switch.run(["nft", "delete", "table", "bridge", "losses"], check=True)


def subnet_of(host: Host) -> IPv4Network:
    assert host.subnet
    return host.subnet


def add_vxlan(host: Host, peer: Host) -> None:
    """Set up as by flannel's vxlan backend, but without the route."""
    ends = f"local {host.address} remote {peer.address} dev eth0 dstport {VXLAN_PORT}"
    for command in (
        f"ip link add vxlan1 mtu {VXLAN_MTU} type vxlan id 1 {ends}",
        f"ip addr add {subnet_of(host).network_address}/32 dev vxlan1",
        "ip link set vxlan1 up",
    ):
        host.run(command.split(), check=True)


@contextmanager
def through_vxlan(lab: Lab) -> Iterator[None]:
    """Routes between the same containers through kernel VXLAN."""
    routes = []
    for host, peer in (lab.hosts, lab.hosts[::-1]):
        subnet = subnet_of(peer)
        routes.append((host, f"{subnet} via {subnet.network_address} dev vxlan1 onlink".split()))
    for host, route in routes:
        host.run(["ip", "route", "add", *route], check=True)
    yield
    for host, route in routes:
        host.run(["ip", "route", "del", *route], check=True)


@pytest.fixture
def lossy_lab(network_rights: None) -> Iterator[Lab]:
    """Frames of at most 1500 bytes, so that a loss hits one of them; one MTU for both overlays."""
    with Lab(hosts=2, underlay="wire") as lab:
        assert unreachable(lab) == []
        for host, peer in (lab.hosts, lab.hosts[::-1]):
            add_vxlan(host, peer)
            host.containers[0].netns.set_link("eth0", mtu=VXLAN_MTU)
        yield lab


def compare_shares(lab: Lab) -> float:
    """The share of our throughput that remains with loss, divided by that of VXLAN.

    The four are measured in an order that takes a steady change of the machine's load out of it.
    """
    one, other = (host.containers[0] for host in lab.hosts)

    def measure(way: AbstractContextManager[None], losses: AbstractContextManager[None]) -> float:
        with way, losses:
            return lab.throughput(one, other)

    ours = measure(nullcontext(), nullcontext())
    theirs = measure(through_vxlan(lab), nullcontext())
    left_of_theirs = measure(through_vxlan(lab), loss(lab))
    left_of_ours = measure(nullcontext(), loss(lab))
    return (left_of_ours / ours) / (left_of_theirs / theirs)


def test_loss_costs_no_more_throughput_than_with_kernel_vxlan(lossy_lab: Lab) -> None:
    ratios: list[float] = []
    for _ in range(ROUNDS, MOST_ROUNDS + 1, ROUNDS):
        ratios += [compare_shares(lossy_lab) for _ in range(ROUNDS)]
        if median(ratios) >= TOLERANCE:
            return
    pytest.fail(f"of VXLAN's share {median(ratios):.2f} is left, of {TOLERANCE}: {ratios}")

"""From leases to routes published in a real pump."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from bench.conftest import Replay
from bench.parts import Part, interleave
from bench.plan import Plan
from flannel_udp.backends.pump.pump import Pump, PumpConfig, open_tun, open_udp
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.held_leases import HeldLeases
from flannel_udp.cluster.lease import Events, Lease, LeaseAdded, Snapshot, encode_key
from flannel_udp.host.netns import Namespace
from flannel_udp.routing.reconciler import Reconciler
from flannel_udp.routing.routes import RouteSet

ROUTES = (10, 1_000, 65_536)
CONFIG = NetworkConfig.parse('{"Network": "10.0.0.0/8"}')  # 65,536 subnets of length 24
OWN_SUBNET = IPv4Network("11.0.0.0/24")  # not one of them, so that each is a route
OWN_IP = IPv4Address("172.30.0.1")
FIRST_HOST = IPv4Address("172.16.0.0")
CHANGES = 200

GROUPS = {
    "build": "One lease of a snapshot, to routes of the pump",
    "event": "One lease change, event in to published",
}
NAMES = tuple(f"{kind}/{count} routes" for kind in GROUPS for count in ROUTES)


@pytest.fixture(scope="module")
def samples(plan: Plan) -> dict[str, list[float]]:
    namespace = Namespace(f"flbench-{random.getrandbits(32):08x}")
    namespace.create()
    try:
        namespace.add_address("lo", IPv4Interface(f"{OWN_IP}/32"))
        with ExitStack() as pumps:
            parts: dict[str, Part] = {}
            for count in ROUTES:
                full, other = (pumps.enter_context(_reconciler(namespace)) for _ in range(2))
                leases = _leases(count)
                full.apply(Snapshot(leases, 1))
                parts[f"build/{count} routes"] = _build(other, leases)
                parts[f"event/{count} routes"] = _change(full, leases[count // 2])
            return interleave(parts, plan.part_rounds)
    finally:
        namespace.delete()


@pytest.mark.parametrize("name", NAMES)
def test_routes(samples: Mapping[str, list[float]], replay: Replay, name: str) -> None:
    """Seconds per lease."""
    kind, _, _ = name.partition("/")
    replay(GROUPS[kind], f"parts/{name}", samples[name], f"parts/{kind}/{ROUTES[0]} routes")


def _build(reconciler: Reconciler, leases: tuple[Lease, ...]) -> Part:
    return Part(
        len(leases),
        work=lambda: reconciler.apply(Snapshot(leases, 1)),
        prepare=lambda: reconciler.apply(Snapshot((), 1)),
    )


def _change(reconciler: Reconciler, lease: Lease) -> Part:
    """A host that moves between two public addresses."""
    moved = replace(lease, public_ip=lease.public_ip + (1 << 17))
    to_and_fro = [Events((LeaseAdded(each),), 2) for each in (moved, lease)]

    def work() -> None:
        for _ in range(CHANGES // 2):
            for events in to_and_fro:
                reconciler.apply(events)

    return Part(CHANGES, work)


def _leases(count: int) -> tuple[Lease, ...]:
    """Each lease is held by another host."""
    subnets = CONFIG.network.subnets(new_prefix=CONFIG.subnet_len)
    return tuple(
        Lease(encode_key(subnet), subnet, FIRST_HOST + number)
        for number, subnet in zip(range(count), subnets, strict=False)
    )


@contextmanager
def _reconciler(namespace: Namespace) -> Iterator[Reconciler]:
    tun_fd, _ = namespace.call(open_tun)
    udp_fd = namespace.call(open_udp, OWN_IP, 0)
    config = PumpConfig(
        tun_fd, udp_fd, CONFIG.network, OWN_SUBNET, OWN_IP, OWN_SUBNET.network_address
    )
    try:
        with Pump(config) as pump:
            pump.start()
            routes = RouteSet(CONFIG, OWN_SUBNET, OWN_IP)
            held = HeldLeases(OWN_IP, 0, routes.is_sound)
            yield Reconciler(routes, pump, held, print)
    finally:
        os.close(tun_fd)
        os.close(udp_fd)

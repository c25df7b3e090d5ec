"""The path of a lease from etcd's watch to the pump is short enough to be read in one sitting."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

from etcd3 import etcdrpc

import flannel_udp
from flannel_udp.backends.backend import Backend
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.follower import Follower
from flannel_udp.cluster.held_leases import HeldLeases
from flannel_udp.cluster.lease import OwnLease, Snapshot
from flannel_udp.cluster.registry import Registry
from flannel_udp.etcd.client import Etcd
from flannel_udp.etcd.watch_stream import Watch
from flannel_udp.log_limits import LineBudget
from flannel_udp.routing.reconciler import Reconciler
from flannel_udp.routing.routes import RouteSet

PACKAGE = Path(flannel_udp.__file__).parent
FOLDER = "/coreos.com/network/subnets"
CONFIG = NetworkConfig.parse('{"Network":"10.1.0.0/16"}')
SUBNET, ADDRESS = IPv4Network("10.1.5.0/24"), IPv4Address("172.30.0.1")
OWN = OwnLease(SUBNET, ADDRESS, f"{FOLDER}/10.1.5.0-24", 1, 1, None)
PEER_SUBNET, PEER = IPv4Network("10.1.6.0/24"), IPv4Address("172.30.0.2")
PATH = {
    "etcd.watch_stream", "cluster.registry", "cluster.lease", "cluster.follower",
    "routing.reconciler", "cluster.held_leases", "routing.routes", "backends.pump.pump",
}  # fmt: skip
TOUCHED: set[str] = set()
BESIDE = {"cluster.go_json", "clock"}  # the JSON reader and the clock, which know no lease


class Stream:
    """What etcd answers on a watch: that it is created, and one lease."""

    def __init__(self, *_: object, **__: object) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __iter__(self) -> Iterator[Any]:
        header = etcdrpc.ResponseHeader(revision=2)
        yield etcdrpc.WatchResponse(header=header, created=True)
        event = etcdrpc.WatchResponse(header=header).events.add()
        event.kv.key = f"{FOLDER}/10.1.6.0-24".encode()
        event.kv.value = b'{"PublicIP":"172.30.0.2","PublicIPv6":null}'
        event.kv.mod_revision, event.kv.lease = 2, 7
        TOUCHED.clear()  # what opened the watch is not on the path
        yield etcdrpc.WatchResponse(header=header, events=[event])


def open_watch(prefix: str, start: int, decode: Any) -> Watch[Any]:
    failed = cast(Any, None)
    return Watch(Stream, prefix, start, decode, metadata=(), failed=failed, timeout=60)


def test_a_lease_passes_eight_modules_on_its_way_to_the_pump() -> None:
    updates: list[object] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and not updates and path.is_relative_to(PACKAGE):
            TOUCHED.add(".".join(path.relative_to(PACKAGE).with_suffix("").parts))

    def update(added: object, removed: object) -> None:
        updates.append(added)
        follower.stop()

    pump = cast(Backend, SimpleNamespace(update=update))
    routes = RouteSet(CONFIG, SUBNET, ADDRESS)
    reconciler = Reconciler(routes, pump, HeldLeases(ADDRESS, 60, routes.is_sound), updates.append)
    etcd = cast(Etcd, SimpleNamespace(lines=LineBudget(), watch=open_watch))
    follower = Follower(
        Registry(etcd, "/coreos.com/network"),
        OWN,
        Snapshot((), 1),
        consumers=(reconciler.apply,),
        on_fatal=updates.append,
    )
    follower._just_resynced = True  # etcd is not asked whether it still has the same history
    sys.setprofile(note)
    try:
        follower._follow()
    finally:
        sys.setprofile(None)
    assert updates == [{PEER_SUBNET: PEER}]
    assert TOUCHED - BESIDE | {"backends.pump.pump"} == PATH
    assert len(PATH) == 8

"""Changes of other leases do not affect the packets of an unchanged route."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
from etcd_server import wait_until
from instruments import EtcdWriter, drops, lease_value, log_lines, routes, wait_until_seen
from streams import streams_both_ways

from flannel_udp.lab.lab import UNDERLAY, Lab

RATE = 100  # changes a second
SECONDS = 10
INTERVAL = 0.0005  # seconds between two packets of the stream


class Churn:
    """Leases that are added, changed and removed; the streams use none of them."""

    def __init__(self, lab: Lab, writer: EtcdWriter, seed: int) -> None:
        self._writer = writer
        self._random = random.Random(seed)
        self._narrow = [f"10.1.{third}.0-24" for third in range(150, 250)]
        # Contains the subnets of the streams: the longest prefix must win.
        self._wide = ["10.1.0.0-17", "10.1.0.0-18", "10.1.64.0-18"]
        self._holders = [f"172.30.0.{last}" for last in (lab.hosts[2].address.packed[3], 50, 51)]
        self._present: set[str] = set()

    def step(self) -> None:
        name = self._random.choice(self._narrow + self._wide * 10)
        if name in self._present and self._random.random() < 0.5:
            self._writer.delete(name)
            self._present.remove(name)
        else:
            self._writer.put(name, lease_value(self._random.choice(self._holders)))
            self._present.add(name)

    def withdraw_all(self) -> None:
        for name in self._present:
            self._writer.delete(name)
        self._present.clear()


def paced(step: Callable[[], None]) -> int:
    """Call ``step`` RATE times a second for SECONDS; returns how often it was called."""
    started, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < SECONDS:
        if count <= elapsed * RATE:
            step()
            count += 1
        else:
            time.sleep(count / RATE - elapsed)
    return count


@pytest.fixture
def writer(lab: Lab) -> EtcdWriter:
    return EtcdWriter(lab)


def test_changes_of_other_leases_lose_or_misroute_no_packet(lab: Lab, writer: EtcdWriter) -> None:
    before = [routes(host) for host in lab.hosts]
    quiet = [drops(host) for host in lab.hosts]
    churn = Churn(lab, writer, seed=8285)
    pair = lab.hosts[0].containers[0], lab.hosts[1].containers[0]
    with streams_both_ways(pair, interval=INTERVAL) as streams:
        changes = paced(churn.step)
        churn.withdraw_all()
        wait_until_seen(lab, writer.put("10.1.251.0-24", lease_value("172.30.0.50")))
        wait_until_seen(lab, writer.delete("10.1.251.0-24"))
    assert changes >= 0.95 * RATE * SECONDS
    assert min(stream.sent for stream in streams) > 1000
    assert [routes(host) for host in lab.hosts] == before
    # The host would count a misrouted packet as a drop.
    assert [drops(host) for host in lab.hosts] == quiet


def test_resync_after_an_outage_of_etcd_loses_no_packet(lab: Lab) -> None:
    """The change that the hosts miss is compacted, so that each must read all leases again."""
    hosts = lab.hosts[:2]
    etcd = IPv4Network(UNDERLAY.ip)
    pair = hosts[0].containers[0], hosts[1].containers[0]
    with streams_both_ways(pair, interval=INTERVAL):
        for host in hosts:
            host.netns.add_route(etcd, type="blackhole")
        lab.etcd.restart()
        writer = EtcdWriter(lab)
        writer.put("10.1.251.0-24", lease_value("172.30.0.50"))
        lab.etcdctl("compact", str(writer.put("10.1.252.0-24", lease_value("172.30.0.51"))))
        for host in hosts:
            assert "10.1.251.0/24" not in routes(host)
            host.run(["ip", "route", "del", "blackhole", str(etcd)], check=True)
        wait_until(
            lambda: all("10.1.251.0/24" in routes(host) for host in hosts), "reading all leases"
        )
    for host in hosts:
        assert log_lines(host, "read all leases again")

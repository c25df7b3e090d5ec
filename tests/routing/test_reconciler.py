"""Leases in, the pump's own table and the log out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from etcd_server import wait_until

from flannel_udp.backends.pump.pump import Pump, PumpConfig, open_tun, open_udp
from flannel_udp.clock import boottime
from flannel_udp.cluster.config import NetworkConfig
from flannel_udp.cluster.held_leases import HeldLeases
from flannel_udp.cluster.lease import Events, Lease, LeaseAdded, LeaseRemoved, Snapshot, encode_key
from flannel_udp.host.netns import Namespace
from flannel_udp.routing.reconciler import Reconciler
from flannel_udp.routing.routes import RouteSet

CONFIG = NetworkConfig.parse('{"Network": "10.1.0.0/16"}')
OWN_SUBNET = IPv4Network("10.1.5.0/24")
OWN_IP = IPv4Address("172.30.0.1")
HOLD = 0.3  # seconds


@pytest.fixture
def pump(namespace: Namespace) -> Iterator[Pump]:
    """A pump that does not run: its table is what counts here."""
    namespace.add_address("lo", IPv4Interface(f"{OWN_IP}/32"))
    tun_fd, _ = namespace.call(open_tun)
    udp_fd = namespace.call(open_udp, OWN_IP, 8285)
    config = PumpConfig(
        tun_fd, udp_fd, CONFIG.network, OWN_SUBNET, OWN_IP, OWN_SUBNET.network_address
    )
    with Pump(config) as pump:
        yield pump
    os.close(tun_fd)
    os.close(udp_fd)


@pytest.fixture
def reconciler(pump: Pump, caplog: pytest.LogCaptureFixture) -> Iterator[Reconciler]:
    caplog.set_level(logging.INFO)
    fatal: list[BaseException] = []
    routes = RouteSet(CONFIG, OWN_SUBNET, OWN_IP)
    held = HeldLeases(OWN_IP, HOLD, routes.is_sound)
    reconciler = Reconciler(routes, pump, held, fatal.append)
    yield reconciler
    reconciler.close()
    assert fatal == []


def lease(number: int, public_ip: str, revision: int = 1) -> Lease:
    subnet = IPv4Network(f"10.1.{number}.0/24")
    return Lease(encode_key(subnet), subnet, IPv4Address(public_ip), mod_revision=revision)


def hop(pump: Pump, address: str) -> str | None:
    found = pump.lookup(IPv4Address(address))
    return str(found) if found else None


def test_a_snapshot_becomes_the_whole_table(reconciler: Reconciler, pump: Pump) -> None:
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"), lease(7, "172.30.0.3")), 10))
    assert hop(pump, "10.1.6.9") == "172.30.0.2"
    reconciler.apply(Snapshot((lease(7, "172.30.0.4"), lease(8, "172.30.0.5")), 20))
    assert hop(pump, "10.1.6.9") is None
    assert hop(pump, "10.1.7.9") == "172.30.0.4"
    assert hop(pump, "10.1.8.9") == "172.30.0.5"
    assert pump.stats()["routes"] == 2


def test_after_close_no_change_reaches_the_backend(reconciler: Reconciler, pump: Pump) -> None:
    """A follower that hangs in a call to etcd outlives the pump, which is then closed."""
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"),), 10))
    reconciler.close()
    reconciler.apply(Snapshot((lease(7, "172.30.0.3"),), 20))
    reconciler.apply(Events((LeaseRemoved("10.1.6.0-24"),), 21))
    assert hop(pump, "10.1.6.9") == "172.30.0.2"
    assert hop(pump, "10.1.7.9") is None
    known, _ = reconciler.known()
    assert known.snapshot.revision == 10  # where the next process goes on
    pump.close()
    reconciler.apply(Snapshot((), 30))


def test_a_snapshot_heals_a_table_that_went_astray(reconciler: Reconciler, pump: Pump) -> None:
    snapshot = Snapshot((lease(6, "172.30.0.2"),), 10)
    reconciler.apply(snapshot)
    pump.update({IPv4Network("10.1.9.0/24"): IPv4Address("172.30.0.9")}, snapshot_subnets(snapshot))
    reconciler.apply(snapshot)
    assert hop(pump, "10.1.6.9") == "172.30.0.2"
    assert hop(pump, "10.1.9.9") is None


def snapshot_subnets(snapshot: Snapshot) -> list[IPv4Network]:
    return [each.subnet for each in snapshot.leases]


def test_events_change_only_what_they_name(reconciler: Reconciler, pump: Pump) -> None:
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"), lease(7, "172.30.0.3")), 10))
    events = (LeaseAdded(lease(8, "172.30.0.4")), LeaseRemoved("10.1.6.0-24"))
    reconciler.apply(Events(events, 12))
    assert [hop(pump, f"10.1.{n}.1") for n in (6, 7, 8)] == [None, "172.30.0.3", "172.30.0.4"]


def test_our_own_lease_is_no_route_and_no_news(
    reconciler: Reconciler, pump: Pump, caplog: pytest.LogCaptureFixture
) -> None:
    reconciler.apply(Snapshot((lease(5, str(OWN_IP)),), 10))
    assert pump.stats()["routes"] == 0
    assert not caplog.records


def test_the_routes_are_listed_by_peer(reconciler: Reconciler) -> None:
    leases = (lease(7, "172.30.0.2"), lease(6, "172.30.0.2"), lease(8, "172.30.0.3"))
    reconciler.apply(Snapshot(leases, 10))
    assert reconciler.subnets_by_peer() == {
        IPv4Address("172.30.0.2"): [IPv4Network("10.1.6.0/24"), IPv4Network("10.1.7.0/24")],
        IPv4Address("172.30.0.3"): [IPv4Network("10.1.8.0/24")],
    }


def test_each_change_is_one_line_and_a_flood_is_one_line(
    reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"),), 10))
    reconciler.apply(Events((LeaseRemoved("10.1.6.0-24"),), 11))
    reconciler.apply(Snapshot(tuple(lease(n, "172.30.0.9") for n in range(20, 60)), 12))
    assert caplog.messages == [
        "route 10.1.6.0/24 goes to 172.30.0.2",
        "route 10.1.6.0/24 removed",
        "40 routes added or changed, 0 removed",
    ]


def test_refused_leases_are_warnings_of_limited_number(
    reconciler: Reconciler, pump: Pump, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = lease(6, "172.30.0.2"), lease(7, "127.0.0.1")
    reconciler.apply(Snapshot((good, bad), 10))
    assert hop(pump, "10.1.6.1") == "172.30.0.2"
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "no route for lease 10.1.7.0-24 of 127.0.0.1: its PublicIP is a loopback address"
    ]
    caplog.clear()
    reconciler.apply(Events(tuple(LeaseAdded(lease(n, "127.0.0.2")) for n in range(8, 58)), 12))
    assert caplog.messages[-1] == "no route for 30 more leases"
    assert len(caplog.messages) == 21


def test_the_route_of_a_lost_lease_stays_for_its_time_and_goes_then(
    reconciler: Reconciler, pump: Pump, caplog: pytest.LogCaptureFixture
) -> None:
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"), lease(7, "172.30.0.3")), 10))
    caplog.clear()
    started = boottime()
    reconciler.apply(Snapshot((), 1, history_lost=True))
    assert [held.lease.key for held in reconciler.held()] == ["10.1.6.0-24", "10.1.7.0-24"]
    reconciler.apply(Events((LeaseAdded(lease(6, "172.30.0.2", 2)),), 2))
    assert (hop(pump, "10.1.6.9"), hop(pump, "10.1.7.9")) == ("172.30.0.2", "172.30.0.3")
    wait_until(lambda: hop(pump, "10.1.7.9") is None, "the end of the hold")
    assert boottime() - started >= HOLD
    assert hop(pump, "10.1.6.9") == "172.30.0.2"
    assert reconciler.held() == []
    wait_until(lambda: len(caplog.messages) == 4, "the lines")
    assert caplog.messages == [
        "etcd lost 2 leases: their routes stay until their hosts come back",
        "lease 10.1.6.0-24 of 172.30.0.2 is held no longer: it is in etcd again",
        "lease 10.1.7.0-24 of 172.30.0.3 is held no longer: its host did not come back in time",
        "route 10.1.7.0/24 removed",
    ]


def test_garbage_in_etcd_takes_no_route_of_a_lost_lease(reconciler: Reconciler, pump: Pump) -> None:
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"),), 10))
    reconciler.apply(Snapshot((), 1, history_lost=True))
    everywhere = Lease("0.0.0.0-0", IPv4Network("0.0.0.0/0"), IPv4Address("172.30.0.66"))
    reconciler.apply(Events((LeaseAdded(everywhere), LeaseAdded(lease(5, "172.30.0.2"))), 2))
    assert hop(pump, "10.1.6.9") == "172.30.0.2"


def test_holds_of_different_ends_each_end_in_time(reconciler: Reconciler, pump: Pump) -> None:
    reconciler.apply(Snapshot((lease(6, "172.30.0.2"), lease(7, "172.30.0.3")), 10))
    reconciler.apply(Snapshot((lease(7, "172.30.0.3"),), 1, history_lost=True))
    reconciler.apply(Snapshot((), 1, history_lost=True))
    assert hop(pump, "10.1.6.9") == "172.30.0.2"
    assert hop(pump, "10.1.7.9") == "172.30.0.3"
    wait_until(lambda: pump.stats()["routes"] == 0, "the end of both holds")

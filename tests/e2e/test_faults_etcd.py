"""Faults of etcd cost no packet, and all hosts agree with it afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from etcd_server import wait_until
from fault_timer import AFTER_SILENCE, NOTICED_AT_ONCE, NOTICED_IN_SILENCE, RECOVERY, timed_fault
from faults import (
    CONFIG,
    DROP,
    RECOVER_WITHIN,
    RESET,
    UNKNOWN_HOST,
    await_agreement,
    cut_off,
    fault_lab,
    has_new_lease,
    state,
)
from instruments import EtcdWriter, lease_value, log_lines, routes

from flannel_udp.lab.lab import Host, Lab


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with fault_lab() as lab:
        yield lab


def make_etcd_speak(lab: Lab) -> None:
    """A reject rule acts on sent packets. Without the answer to this event, the fault would
    be noticed only by the connection test every ten seconds."""
    lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(CONFIG))


def await_routes(host: Host, least: int) -> None:
    wait_until(lambda: len(routes(host)) >= least, f"{least} routes", RECOVER_WITHIN)


def assert_outage_is_survived(
    lab: Lab, what: str, begin: Callable[[], None], end: Callable[[], None], within: float
) -> None:
    with timed_fault(what, lab.hosts) as timer:
        begin()
        timer.expect_noticed(*lab.hosts, within=within)
        end()
        timer.start()
        timer.expect_recovery(lab.hosts, lab.etcdctl, lab.prefix)


def test_killed_server_costs_no_packet_and_is_used_again(lab: Lab) -> None:
    etcd = lab.etcd
    assert_outage_is_survived(
        lab, "etcd killed and started again", etcd.kill, etcd.start, NOTICED_AT_ONCE
    )


def test_frozen_server_is_noticed_and_costs_no_packet(lab: Lab) -> None:
    assert_outage_is_survived(
        lab, "etcd frozen", lab.etcd.pause, lab.etcd.resume, NOTICED_IN_SILENCE
    )


def test_cut_off_hosts_lose_no_packet_and_catch_up(lab: Lab) -> None:
    """Only the third host sees the change at once; the others see it after the cut."""
    dropped, reset, whole = lab.hosts
    key = f"{lab.prefix}/subnets/10.1.251.0-24"
    with timed_fault("etcd unreachable", lab.hosts) as timer:
        with cut_off(dropped, DROP), cut_off(reset, RESET):
            make_etcd_speak(lab)
            timer.start()
            timer.expect_noticed(reset, within=NOTICED_AT_ONCE, what="reset noticed")
            timer.expect_noticed(dropped, within=NOTICED_IN_SILENCE, what="drop noticed")
            assert state(whole) == "watching"
            lab.etcdctl("put", key, lease_value(UNKNOWN_HOST))
            wait_until(lambda: has_new_lease(whole), "the new lease on the third host")
            assert not has_new_lease(dropped)
            assert not has_new_lease(reset)
        timer.start()
        agreement = partial(await_agreement, lab.hosts, lab.etcdctl, lab.prefix)
        timer.expect("caught up", agreement, within=AFTER_SILENCE)
        assert all(map(has_new_lease, lab.hosts))
        lab.etcdctl("del", key)
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
    assert not log_lines(dropped, "reading all leases again")


def test_leases_are_read_in_a_large_answer_after_a_compaction(lab: Lab) -> None:
    """The answer is larger than the 4 MB that gRPC accepts by default."""
    host = lab.hosts[0]
    writer = EtcdWriter(lab)
    names = [f"10.1.{number}.128-26" for number in range(130, 210)]
    large = json.dumps({"PublicIP": UNKNOWN_HOST, "PublicIPv6": None, "Note": "x" * 60_000})
    with timed_fault("history compacted, 80 leases of 60 kB", lab.hosts) as timer:
        with cut_off(host, RESET):
            make_etcd_speak(lab)
            timer.start()
            timer.expect_noticed(host, within=NOTICED_AT_ONCE)
            for name in names:
                writer.put(name, large)
            lab.etcdctl("compact", str(writer.delete("10.1.199.0-24")))
        timer.start()
        timer.expect("read again", partial(await_routes, host, len(names)), within=RECOVERY)
        assert log_lines(host, "compacted its history", "reading all leases again")
        assert host.status()["etcd"]["history_losses"] == 0
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
        for name in names:
            writer.delete(name)
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)

"""Whatever etcd does, no packet is lost that has nothing to do with it, and all hosts find back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from etcd_server import wait_until
from faults import (
    CONFIG,
    DROP,
    NOTICE_WITHIN,
    RESET,
    STRANGER,
    await_agreement,
    await_loss,
    await_news,
    cut_off,
    has_news,
    no_packet_lost,
    state,
)
from instruments import EtcdWriter, lease_value, log_lines, routes

from flannel_udp.lab import Lab


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=3, config=CONFIG) as lab:
        yield lab
        assert [host.daemon.poll() for host in lab.hosts if host.daemon] == [None, None, None]
        for host in lab.hosts:
            assert "Traceback" not in host.log_path.read_text()


def await_recovery(lab: Lab) -> None:
    await_news(lab.hosts, lab.etcdctl, lab.prefix)


def test_a_killed_server_costs_no_packet_and_is_found_again(lab: Lab) -> None:
    with no_packet_lost(lab.hosts):
        lab.etcd.kill()
        await_loss(*lab.hosts)
        lab.etcd.start()
        await_recovery(lab)


def test_a_frozen_server_costs_no_packet_and_is_noticed(lab: Lab) -> None:
    with no_packet_lost(lab.hosts):
        lab.etcd.pause()
        await_loss(*lab.hosts)
        lab.etcd.resume()
        await_recovery(lab)


def test_hosts_cut_off_by_drop_and_by_reset_lose_no_packet_and_catch_up(lab: Lab) -> None:
    """The third host hears everything; the news of the meantime reaches all in the end."""
    dropped, reset, whole = lab.hosts
    key = f"{lab.prefix}/subnets/10.1.251.0-24"
    with no_packet_lost(lab.hosts):
        with cut_off(dropped, DROP), cut_off(reset, RESET):
            await_loss(dropped, reset)
            assert state(whole) == "watching"
            lab.etcdctl("put", key, lease_value(STRANGER))
            wait_until(lambda: has_news(whole), "the news on the third host")
            assert not has_news(dropped)
            assert not has_news(reset)
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
        assert all(map(has_news, lab.hosts))
        lab.etcdctl("del", key)
        await_recovery(lab)
    assert not log_lines(dropped, "reading all leases again")


def test_a_compacted_history_and_an_answer_of_more_than_four_megabytes(lab: Lab) -> None:
    """All must be read anew, in one answer larger than gRPC takes by default."""
    host = lab.hosts[0]
    writer = EtcdWriter(lab)
    names = [f"10.1.{number}.128-26" for number in range(130, 210)]
    large = json.dumps({"PublicIP": STRANGER, "PublicIPv6": None, "Note": "x" * 60_000})
    with no_packet_lost(lab.hosts):
        with cut_off(host, RESET):
            await_loss(host)
            for name in names:
                writer.put(name, large)
            lab.etcdctl("compact", str(writer.delete("10.1.199.0-24")))
        wait_until(lambda: len(routes(host)) >= len(names), "reading all leases", NOTICE_WITHIN)
        assert log_lines(host, "compacted its history", "reading all leases again")
        assert host.status()["etcd"]["history_losses"] == 0
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
        for name in names:
            writer.delete(name)
        await_recovery(lab)


def test_an_outage_fills_no_log(lab: Lab) -> None:
    """The tests above were five outages and more: a few lines each, however often it was tried."""
    for host in lab.hosts:
        told = log_lines(host, "cannot be followed")
        assert 2 <= len(told) <= 20, told

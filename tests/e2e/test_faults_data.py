"""Etcd lost or replaced its data: every host keeps its subnet and its routes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from etcd_server import wait_until
from fault_timer import RECOVERY, timed_fault
from faults import (
    CONFIG,
    RECOVER_WITHIN,
    RESET,
    await_agreement,
    await_loss,
    cut_off,
    fault_lab,
    leases_in,
    no_packet_lost,
)
from heartbeat import heartbeat_between
from instruments import EtcdWriter, lease_value, log_lines, routes

from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import Host, Lab

UNKNOWN_HOSTS = {f"10.1.{number}.0-24": f"172.30.0.{number}" for number in (200, 201, 202)}


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with fault_lab() as lab:
        yield lab


def put(lab: Lab, name: str, public_ip: str, *, leased: bool = False) -> None:
    lease = f"--lease={lab.etcdctl('lease', 'grant', '600').split()[1]}" if leased else "--lease=0"
    lab.etcdctl("put", f"{lab.prefix}/subnets/{name}", lease_value(public_ip), lease)


def put_config(lab: Lab) -> None:
    lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(CONFIG))


def route(host: Host, subnet: str) -> str | None:
    return routes(host).get(subnet)


def subnets(lab: Lab) -> list[IPv4Network | None]:
    return [host.subnet for host in lab.hosts]


def held(host: Host) -> set[str]:
    return {each["subnet"] for each in host.status()["held"]}


def shown_status(host: Host) -> str:
    command = (sys.executable, "-m", "flannel_udp", "status", "--subnet-file", host.subnet_file)
    return host.run(list(map(str, command)), check=True, env=child_environment()).stdout


def await_own_leases(lab: Lab) -> None:
    """Waits until etcd has exactly the leases of the lab's hosts."""
    ours = {host.subnet: str(host.address) for host in lab.hosts}
    wait_until(lambda: leases_in(lab.etcdctl, lab.prefix) == ours, "our leases", RECOVER_WITHIN)


def awaits(lab: Lab, condition: Callable[[Host], object], what: str) -> None:
    wait_until(lambda: all(condition(host) for host in lab.hosts), what, RECOVER_WITHIN)


@pytest.mark.parametrize("how", ["wiped", "restored from an old backup"])
def test_routes_survive_lost_data_until_new_leases_contradict_them(
    lab: Lab, tmp_path: Path, how: str
) -> None:
    """The other leases are not written again, as those of a flanneld before its next renewal."""
    before = subnets(lab)
    backup = tmp_path / "backup" if how != "wiped" else None
    if backup:
        lab.etcd.kill()
        lab.etcd.backup(backup)
        lab.etcd.start()
    losses = [host.status()["etcd"]["history_losses"] for host in lab.hosts]
    for name, public_ip in UNKNOWN_HOSTS.items():
        put(lab, name, public_ip)
    awaits(lab, lambda host: route(host, "10.1.202.0/24"), "the unknown hosts' routes")
    with timed_fault(f"data {how}", lab.hosts) as timer:
        lab.etcd.kill()
        lab.etcd.wipe(backup)
        lab.etcd.start()
        put_config(lab)
        timer.start()
        hold = partial(awaits, lab, lambda host: len(held(host)) >= len(UNKNOWN_HOSTS), "the hold")
        timer.expect("noticed", hold, within=RECOVERY)
        timer.expect("own leases back", partial(await_own_leases, lab), within=RECOVERY)
        awaits(lab, lambda host: len(held(host)) == len(UNKNOWN_HOSTS), "the end of our own holds")
        for host in lab.hosts:
            assert route(host, "10.1.200.0/24") == "172.30.0.200"
            assert log_lines(host, "etcd lost", "their routes stay until their hosts come back")
        assert [host.status()["etcd"]["history_losses"] for host in lab.hosts] == [
            count + 1 for count in losses
        ]

        put(lab, "10.1.200.0-24", "172.30.0.200")
        put(lab, "10.1.211.0-24", "172.30.0.201")
        put(lab, "10.1.202.0-24", "172.30.0.212")
        awaits(lab, lambda host: not held(host), "the end of all holds")
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
        for host in lab.hosts:
            assert route(host, "10.1.200.0/24") == "172.30.0.200"
            assert route(host, "10.1.201.0/24") is None
            assert route(host, "10.1.202.0/24") == "172.30.0.212"
    assert subnets(lab) == before
    for number in (200, 202, 211):
        lab.etcdctl("del", f"{lab.prefix}/subnets/10.1.{number}.0-24")
    await_agreement(lab.hosts, lab.etcdctl, lab.prefix)


def test_hosts_remove_their_old_leases_and_all_keep_their_subnets(lab: Lab) -> None:
    """The old data has a lease of the second host on the first one's subnet, and a former lease of
    the third. Its revision is higher than ours, so that only its content shows the replacement."""
    first, second, third = lab.hosts
    put(lab, "10.1.250.0-24", str(third.address))
    awaits(lab, lambda host: host is third or route(host, "10.1.250.0/24"), "the former lease")
    lab.etcdctl("del", f"{lab.prefix}/subnets/10.1.250.0-24")
    await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
    before, revision = subnets(lab), first.status()["etcd"]["revision"]
    contested = str(first.subnet).replace("/", "-")
    with (
        heartbeat_between(first.containers[0], third.containers[0]) as heartbeat,
        timed_fault("old data with a false owner", [second, third]) as timer,
    ):
        with ExitStack() as cuts:
            for host in lab.hosts:
                cuts.enter_context(cut_off(host, RESET))
            lab.etcd.kill()
            lab.etcd.wipe()
            lab.etcd.start()
            put_config(lab)
            put(lab, contested, str(second.address), leased=True)
            put(lab, "10.1.250.0-24", str(third.address), leased=True)
            writer = EtcdWriter(lab)
            while writer.put("10.1.251.0-24", lease_value("172.30.0.251")) < revision + 10:
                pass
            writer.delete("10.1.251.0-24")
            await_loss(*lab.hosts)
        timer.start()
        # Two hosts must reconnect to etcd one after the other, each at its own next attempt.
        timer.expect("withdrawn", partial(await_own_leases, lab), within=RECOVERY + 3)
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
        # The first host's peers use the old lease until the second host has removed it.
        heartbeat.seconds_until_back(time.monotonic())
        outage = heartbeat.outage()
        lasted = timer.net_duration(outage.began, outage.ended) if outage else 0.0
        print(f"{outage.lost if outage else 0} packets of the contested subnet lost in {lasted} s")
        assert lasted < RECOVERY + 3
    assert subnets(lab) == before
    assert log_lines(second, "removed lease", str(first.subnet), "old data brought back")
    assert log_lines(third, "removed lease 10.1.250.0/24")
    for host, removed in ((first, 0), (second, 1), (third, 1)):
        etcd = host.status()["etcd"]
        assert (etcd["lease_contested"], etcd["stale_leases_removed"]) == (None, removed)
    assert lab.ping(first.containers[0], second.containers[0]) is not None


def test_status_shows_a_contested_lease_while_the_claim_exists(lab: Lab) -> None:
    first = lab.hosts[0]
    before, contested = subnets(lab), str(first.subnet).replace("/", "-")
    with no_packet_lost(lab.hosts[1:]):
        with cut_off(first, RESET):
            lab.etcd.kill()
            lab.etcd.wipe()
            lab.etcd.start()
            put_config(lab)
            put(lab, contested, "172.30.0.77", leased=True)
            await_loss(first)
        wait_until(lambda: first.status()["etcd"]["lease_contested"], "the contest", RECOVER_WITHIN)
        assert f"another host claims {first.subnet}" in shown_status(first)
        lab.etcdctl("del", f"{lab.prefix}/subnets/{contested}")
        await_agreement(lab.hosts, lab.etcdctl, lab.prefix)
    assert "another host claims" not in shown_status(first)
    assert subnets(lab) == before


def test_held_route_ends_after_stale_hold(lab: Lab) -> None:
    short, long = lab.hosts[0], lab.hosts[1]
    assert short.stop_daemon() == 0
    short.start_daemon(["--stale-hold=2s"])
    put(lab, "10.1.200.0-24", "172.30.0.200")
    awaits(lab, lambda host: route(host, "10.1.200.0/24"), "the unknown host's route")
    with no_packet_lost(lab.hosts[1:]):
        lab.etcd.kill()
        lab.etcd.wipe()
        lab.etcd.start()
        put_config(lab)
        wait_until(lambda: log_lines(short, "did not come back in time"), "the end", RECOVER_WITHIN)
        wait_until(lambda: route(short, "10.1.200.0/24") is None, "the route's end")
        assert route(long, "10.1.200.0/24") == "172.30.0.200"
        (left,) = [
            each["seconds_left"] for each in long.status()["held"] if "200" in each["subnet"]
        ]
        assert 86_000 < left <= 86_400
        assert "lost the lease of 172.30.0.200 on 10.1.200.0/24" in shown_status(long)

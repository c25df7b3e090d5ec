"""A revoked or taken lease ends only its own daemon; an expired one is created again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest
from etcd_server import wait_until
from fault_timer import NOTICED_AT_ONCE, RECOVERY, FaultTimer, timed_fault
from faults import NOTICE_WITHIN, RESET, UNKNOWN_HOST, await_agreement, cut_off, fault_lab
from instruments import devices, lease_value, log_lines, routes

from flannel_udp.lab.lab import Host, Lab

SHORT_LIFE = 5  # seconds


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with fault_lab() as lab:
        yield lab


def key_of(lab: Lab, host: Host) -> str:
    return f"{lab.prefix}/subnets/{str(host.subnet).replace('/', '-')}"


def ends(host: Host) -> None:
    assert host.daemon
    assert host.daemon.wait(NOTICE_WITHIN) == 1
    assert devices(host) == []


def await_route(hosts: list[Host], subnet: str, public_ip: str | None) -> None:
    """Waits until all hosts have this route for the subnet, or none."""
    moved = f"{subnet} leading to {public_ip}"
    wait_until(lambda: all(routes(host).get(subnet) == public_ip for host in hosts), moved)


def expect_well_again(timer: FaultTimer, lab: Lab) -> None:
    timer.start()
    agreement = partial(await_agreement, lab.hosts, lab.etcdctl, lab.prefix)
    timer.expect("well again", agreement, within=RECOVERY)


@pytest.mark.parametrize("how", ["deleted key", "revoked etcd lease"])
def test_revoked_lease_ends_only_its_own_daemon(lab: Lab, how: str) -> None:
    victim, *others = lab.hosts
    subnet = str(victim.subnet)
    with timed_fault(f"lease revoked, {how}", others) as timer:
        if how == "deleted key":
            lab.etcdctl("del", key_of(lab, victim))
        else:
            (kv,) = json.loads(lab.etcdctl("get", "-w", "json", key_of(lab, victim)))["kvs"]
            lab.etcdctl("lease", "revoke", f"{kv['lease']:x}")
        timer.start()
        timer.expect("ended", partial(ends, victim), within=NOTICED_AT_ONCE)
        await_route(others, subnet, None)
        victim.start_daemon()
        expect_well_again(timer, lab)
    assert str(victim.subnet) == subnet
    assert log_lines(victim, "flannel-udp: ", "was revoked")


def test_lease_taken_over_by_another_host_ends_only_its_daemon(lab: Lab) -> None:
    victim, *others = lab.hosts
    key, subnet = key_of(lab, victim), str(victim.subnet)
    with timed_fault("lease stolen", others) as timer:
        lab.etcdctl("put", key, lease_value(UNKNOWN_HOST))
        timer.start()
        timer.expect("ended", partial(ends, victim), within=NOTICED_AT_ONCE)
        await_route(others, subnet, UNKNOWN_HOST)
        victim.start_daemon()
        expect_well_again(timer, lab)
    assert str(victim.subnet) != subnet
    assert log_lines(victim, "flannel-udp: ", f"taken over by {UNKNOWN_HOST}")
    lab.etcdctl("del", key)


def test_lease_that_expired_while_cut_off_is_created_again(lab: Lab) -> None:
    """The etcd lease no longer exists then: the first renewal returns a TTL of 0."""
    victim, *others = lab.hosts
    key, subnet, known = key_of(lab, victim), str(victim.subnet), routes(victim)
    short = lab.etcdctl("lease", "grant", str(SHORT_LIFE)).split()[1]
    with timed_fault("lease expired while cut off", others) as timer:
        lab.etcdctl("put", key, lease_value(str(victim.address)), f"--lease={short}")
        wait_until(lambda: log_lines(victim, f"now under etcd lease {short}"), "the other lease")
        with cut_off(victim, RESET):
            wait_until(lambda: not lab.etcdctl("get", key), "the expiry", NOTICE_WITHIN)
            await_route(others, subnet, None)
            assert routes(victim) == known
            assert victim.status()["ready"]
        expect_well_again(timer, lab)
    assert str(victim.subnet) == subnet
    assert log_lines(victim, "expired while etcd could not be reached")
    assert lab.ping(victim.containers[0], others[0].containers[0]) is not None

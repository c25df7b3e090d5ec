"""A lease that is revoked or stolen ends its own host alone, and a minute without etcd nobody."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from ipaddress import IPv4Network

import pytest
from course import AFTER_SILENCE, AT_ONCE, RECOVERY, Course, course_of
from etcd_server import wait_until
from faults import (
    CONFIG,
    DROP,
    NOTICE_WITHIN,
    RESET,
    STRANGER,
    await_agreement,
    await_loss,
    cut_off,
    cut_off_by,
    leases_in,
)
from instruments import control_seconds, devices, lease_value, log_lines, routes

from flannel_udp.lab import Host, Lab

CONTEST = 60.0  # seconds for which a claim in replaced data may be old news, by the contract
SHORT_LIFE = 5  # seconds
MOST_LINES = 10 + 1  # of a daemon in a minute without etcd
MOST_CPU = 0.01


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=4, config=CONFIG) as lab:
        yield lab
        for host in lab.hosts:
            print(f"--- daemon log of {host.name}\n{host.log_path.read_text()}")
        for host in lab.hosts:
            assert "Traceback" not in host.log_path.read_text()


def key_of(lab: Lab, host: Host) -> str:
    return f"{lab.prefix}/subnets/{str(host.subnet).replace('/', '-')}"


def ends(host: Host) -> None:
    assert host.daemon
    assert host.daemon.wait(NOTICE_WITHIN) == 1
    assert devices(host) == []


def await_route(hosts: list[Host], subnet: str, public_ip: str | None) -> None:
    """Until all of them send what is for the subnet there, or nowhere."""
    moved = f"{subnet} leading to {public_ip}"
    wait_until(lambda: all(routes(host).get(subnet) == public_ip for host in hosts), moved)


def is_well_again(course: Course, lab: Lab, within: float = RECOVERY) -> None:
    course.begin()
    agreement = partial(await_agreement, lab.hosts, lab.etcdctl, lab.prefix)
    course.comes("well again", agreement, within=within)


@pytest.mark.parametrize("how", ["deleted key", "revoked etcd lease"])
def test_a_revoked_lease_ends_its_host_alone(lab: Lab, how: str) -> None:
    victim, *others = lab.hosts
    subnet = str(victim.subnet)
    with course_of(f"lease revoked, {how}", others) as course:
        if how == "deleted key":
            lab.etcdctl("del", key_of(lab, victim))
        else:
            (kv,) = json.loads(lab.etcdctl("get", "-w", "json", key_of(lab, victim)))["kvs"]
            lab.etcdctl("lease", "revoke", f"{kv['lease']:x}")
        course.begin()
        course.comes("ended", partial(ends, victim), within=AT_ONCE)
        await_route(others, subnet, None)
        victim.start_daemon()
        is_well_again(course, lab)
    assert str(victim.subnet) == subnet
    assert log_lines(victim, "flannel-udp: ", "was revoked")


def test_a_stolen_lease_ends_its_host_alone_and_stays_the_thiefs(lab: Lab) -> None:
    victim, *others = lab.hosts
    key, subnet = key_of(lab, victim), str(victim.subnet)
    with course_of("lease stolen", others) as course:
        lab.etcdctl("put", key, lease_value(STRANGER))
        course.begin()
        course.comes("ended", partial(ends, victim), within=AT_ONCE)
        await_route(others, subnet, STRANGER)
        victim.start_daemon()
        is_well_again(course, lab)
    assert str(victim.subnet) != subnet
    assert log_lines(victim, "flannel-udp: ", f"taken over by {STRANGER}")
    lab.etcdctl("del", key)


def test_a_lease_that_expires_while_its_host_is_cut_off_comes_back_with_it(lab: Lab) -> None:
    """The etcd lease is gone then: the first renewal is answered with a life of 0 seconds."""
    victim, *others = lab.hosts
    key, subnet, known = key_of(lab, victim), str(victim.subnet), routes(victim)
    short = lab.etcdctl("lease", "grant", str(SHORT_LIFE)).split()[1]
    with course_of("lease expired while cut off", others) as course:
        lab.etcdctl("put", key, lease_value(str(victim.address)), f"--lease={short}")
        wait_until(lambda: log_lines(victim, f"now under etcd lease {short}"), "the other lease")
        with cut_off(victim, RESET):
            wait_until(lambda: not lab.etcdctl("get", key), "the expiry", NOTICE_WITHIN)
            await_route(others, subnet, None)
            assert routes(victim) == known
            assert victim.status()["ready"]
        is_well_again(course, lab)
    assert str(victim.subnet) == subnet
    assert log_lines(victim, "expired while etcd could not be reached")
    assert lab.ping(victim.containers[0], others[0].containers[0]) is not None


def test_a_minute_without_etcd_fills_no_log_and_a_claim_in_old_data_wins_after_it(
    lab: Lab,
) -> None:
    """Three hosts are cut off from etcd, the last one of them in ways that take turns. The fourth
    finds etcd's data replaced, and in it a claim on its subnet that nobody withdraws."""

    def await_end() -> None:
        assert victim.daemon
        for how in itertools.cycle((DROP, RESET)):
            cut_off_by(third, how)
            with suppress(subprocess.TimeoutExpired):
                assert victim.daemon.wait(4) == 1
                return

    *cut, victim = lab.hosts
    dropped, reset, third = cut
    key, subnet = key_of(lab, victim), str(victim.subnet)
    with course_of("a minute without etcd", cut) as course:
        with ExitStack() as cuts:
            for host, how in ((dropped, DROP), (reset, RESET), (third, RESET)):
                cuts.enter_context(cut_off(host, how))
            before = {host: len(log_lines(host)) for host in cut}
            lab.etcd.kill()
            lab.etcd.wipe()
            lab.etcd.start()
            lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(CONFIG))
            lab.etcdctl("put", key, lease_value(STRANGER))
            wait_until(lambda: log_lines(victim, "another host claims", subnet), "the contest")
            course.begin()
            await_loss(*cut)
            used = {host: control_seconds(host) for host in cut}
            course.comes("claim accepted", await_end, within=CONTEST + RECOVERY)
            lasted = course.seconds
            assert lasted > CONTEST - 1
            for host in cut:
                share = (control_seconds(host) - used[host]) / lasted
                lines = len(log_lines(host)) - before[host]
                print(f"{host.name}: {lines} lines, {share:.2%} of a processor")
                assert share < MOST_CPU
                assert lines <= MOST_LINES
                assert not log_lines(host, "the call failed"), "a cause without its own words"
        assert log_lines(victim, "flannel-udp: ", f"taken over by {STRANGER}")
        assert leases_in(lab.etcdctl, lab.prefix)[IPv4Network(subnet)] == STRANGER
        victim.start_daemon()
        is_well_again(course, lab, AFTER_SILENCE)
    assert str(victim.subnet) != subnet

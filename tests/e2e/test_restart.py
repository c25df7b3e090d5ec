"""After every kind of end, the next daemon starts and gets the same subnet."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from etcd_server import wait_until
from instruments import delete_leases, devices, drops, lease_value, leases, log_lines, unreachable

from flannel_udp.lab.lab import Host, Lab

EXIT_WITHIN = 10.0  # seconds


@pytest.fixture(scope="module")
def pair_lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2, start_daemons=False, presets=("none", "tso")) as lab:
        yield lab


@pytest.fixture
def running(pair_lab: Lab) -> Iterator[Lab]:
    """The pair with both daemons running, on new leases."""
    delete_leases(pair_lab)
    for host in pair_lab.hosts:
        host.subnet_file.unlink(missing_ok=True)
        host.log_path.unlink(missing_ok=True)
    pair_lab.start_daemons()
    assert unreachable(pair_lab) == []
    yield pair_lab
    for host in pair_lab.hosts:
        assert host.daemon
        if host.daemon.poll() is None:
            assert host.stop_daemon() == 0
        assert "Traceback" not in host.log_path.read_text()


def network_routes(host: Host) -> list[str]:
    """The devices of the routes to Network."""
    shown = json.loads(host.run(["ip", "-j", "route", "show", "10.1.0.0/16"], check=True).stdout)
    return [route["dev"] for route in shown]


def ends(host: Host) -> int:
    assert host.daemon
    return host.daemon.wait(EXIT_WITHIN)


def assert_restart_works(lab: Lab, host: Host) -> None:
    """The daemon starts with the subnet it had, and all is as before."""
    before = host.subnet
    old = leases(lab)
    host.start_daemon()
    assert host.subnet == before
    assert leases(lab) == old
    assert devices(host) == ["flannel0"]
    assert network_routes(host) == ["flannel0"]
    assert unreachable(lab) == []


def test_killed_daemon_starts_again_with_its_subnet(running: Lab) -> None:
    host = running.hosts[0]
    host.kill_daemon()
    assert_restart_works(running, host)


def test_killed_daemon_finds_its_subnet_in_etcd_alone(running: Lab) -> None:
    """subnet.env is in /run, which is empty after a reboot."""
    host = running.hosts[0]
    before = host.subnet
    host.kill_daemon()
    host.subnet_file.unlink()
    host.start_daemon()
    assert host.subnet == before
    assert unreachable(running) == []


def test_killed_daemon_finds_its_subnet_in_subnet_env_alone(running: Lab) -> None:
    """The containers still use it after its lease has expired."""
    host = running.hosts[0]
    before = host.subnet
    host.kill_daemon()
    delete_leases(running)
    host.start_daemon()
    assert host.subnet == before


def test_daemon_killed_during_its_start_does_not_block_the_next(running: Lab) -> None:
    """Kills it after each line that the start logs."""
    host = running.hosts[0]
    assert host.stop_daemon() == 0
    for stage in ("external interface", "forwarding", "following"):
        host.log_path.unlink()
        host.start_daemon(wait=False)
        wait_until(partial(log_lines, host, stage), stage)
        host.kill_daemon()
    assert_restart_works(running, host)


def test_sigterm_keeps_only_the_lease_and_subnet_env(running: Lab) -> None:
    host = running.hosts[0]
    before, env = leases(running), host.subnet_file.read_text()
    assert host.stop_daemon(signal.SIGTERM) == 0
    assert leases(running) == before
    assert host.subnet_file.read_text() == env
    assert devices(host) == []
    assert network_routes(host) == []
    assert sorted(os.listdir(host.directory)) == ["daemon.log", "notify", "subnet.env"]
    assert_restart_works(running, host)


def test_sigint_ends_the_daemon_like_sigterm(running: Lab) -> None:
    host = running.hosts[0]
    assert host.stop_daemon(signal.SIGINT) == 0
    assert devices(host) == []


def test_further_signals_are_ignored_during_the_cleanup(running: Lab) -> None:
    host = running.hosts[0]
    assert host.daemon
    while host.daemon.poll() is None:
        host.daemon.send_signal(signal.SIGTERM)
    assert ends(host) == 0
    assert devices(host) == []
    assert len(log_lines(host, "stopping")) == 1


STUCK = """
import time
from flannel_udp.cluster.follower import Follower

join = Follower.join
Follower.join = lambda self, timeout=None: time.sleep(2.5) or join(self)
"""


def test_lost_lease_ends_forwarding_first(make_lab: Callable[[Lab], Lab], tmp_path: Path) -> None:
    """Even if the end takes long, for example because a thread waits for a frozen etcd."""
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    lab = make_lab(Lab(hosts=2, daemon_env={"PYTHONPATH": str(tmp_path)}))
    host, other = lab.hosts
    assert unreachable(lab) == []
    key = str(host.subnet).replace("/", "-")
    lab.etcdctl("del", f"{lab.prefix}/subnets/{key}")
    wait_until(lambda: log_lines(host, "ERROR", "was revoked"), "the loss")
    before = drops(other)  # it no longer accepts our packets
    assert lab.ping(host.containers[0], other.containers[0], wait=1) is None
    assert drops(other) == before, "a packet was sent"
    assert host.daemon
    assert host.daemon.poll() is None, "it has ended already: this test shows nothing"
    assert ends(host) == 1
    assert devices(host) == []


def test_deleted_key_ends_the_daemon_with_a_sentence(running: Lab) -> None:
    host, other = running.hosts
    key = str(host.subnet).replace("/", "-")
    running.etcdctl("del", f"{running.prefix}/subnets/{key}")
    assert ends(host) == 1
    (sentence,) = log_lines(host, "flannel-udp: ")
    assert str(host.subnet) in sentence
    assert "revoked" in sentence
    assert devices(host) == []
    assert running.ping(other.containers[0], host.containers[0], wait=1) is None
    assert key not in leases(running)
    host.start_daemon()
    assert unreachable(running) == []


def test_key_taken_over_by_another_host_ends_the_daemon(running: Lab) -> None:
    host = running.hosts[0]
    key = str(host.subnet).replace("/", "-")
    running.etcdctl("put", f"{running.prefix}/subnets/{key}", lease_value("172.30.0.50"))
    assert ends(host) == 1
    (sentence,) = log_lines(host, "flannel-udp: ")
    assert str(host.subnet) in sentence
    assert "172.30.0.50" in sentence
    assert devices(host) == []
    assert leases(running)[key] == lease_value("172.30.0.50"), "it touched another host's lease"
    lost = host.subnet
    host.start_daemon()
    assert host.subnet != lost
    assert unreachable(running) == []


def test_reservation_gets_no_etcd_lease(running: Lab) -> None:
    """A key that an operator wrote by hand is used, gets no TTL and is not deleted."""
    host = running.hosts[0]
    assert host.stop_daemon() == 0
    delete_leases(running)
    host.subnet_file.unlink()
    key = f"{running.prefix}/subnets/10.1.222.0-24"
    running.etcdctl("put", key, lease_value(str(host.address)))
    host.start_daemon()
    assert str(host.subnet) == "10.1.222.0/24"
    assert host.status()["reservation"]
    assert host.stop_daemon() == 0
    (kv,) = json.loads(running.etcdctl("get", "--write-out=json", key))["kvs"]
    assert "lease" not in kv

"""A restart keeps device, socket and routes: packets wait a moment, and nothing breaks."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Interface

import pytest
from continuity import Traffic, traffic
from etcd_server import make_tls_files, wait_until
from faults import RESET, cut_off
from instruments import (
    devices,
    lease_value,
    leases,
    log_lines,
    routes,
    udp_socket_of,
    unreachable,
)
from restarts import (
    EXIT_WITHIN,
    STORED,
    both_running,
    device_index,
    lose_data,
    stored,
    stored_lab,
    terminate,
    went_on,
)

from flannel_udp.lab import Host, Lab


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    with stored_lab() as lab:
        yield lab


@pytest.fixture
def running(lab: Lab) -> Iterator[Lab]:
    with both_running(lab):
        yield lab


@pytest.mark.parametrize(
    ("end", "lost"),
    # A packet that the worker holds at the moment of kill -9 dies with it.
    [(terminate, 0), (Host.kill_daemon, 2)],
    ids=["stopped", "killed"],
)
def test_restart_loses_no_connection(running: Lab, end: Callable[[Host], None], lost: int) -> None:
    host = running.hosts[0]
    before, env, known = device_index(host), host.subnet_file.read_text(), routes(host)
    with traffic(running) as flow:
        for number in (1, 2):
            end(host)
            assert stored(host) == STORED
            host.start_daemon()
            assert went_on(host) == number
        flow.assert_unharmed(lost=number * lost)
    assert device_index(host) == before
    assert host.subnet_file.read_text() == env
    assert routes(host) == known
    assert stored(host) == STORED
    assert unreachable(running) == []


def test_restart_needs_no_etcd_and_catches_up_when_it_is_back(running: Lab) -> None:
    host = running.hosts[0]
    old = leases(running)
    with traffic(running) as flow:
        running.etcd.kill()
        terminate(host)
        host.start_daemon()
        assert host.status()["ready"]
        flow.assert_unharmed()
    running.etcd.start()
    running.etcdctl("put", f"{running.prefix}/subnets/10.1.177.0-24", lease_value("172.30.0.77"))
    wait_until(lambda: "10.1.177.0/24" in routes(host), "the new route")
    running.etcdctl("del", f"{running.prefix}/subnets/10.1.177.0-24")
    wait_until(lambda: "10.1.177.0/24" not in routes(host), "the end of the route")
    assert leases(running) == old
    assert log_lines(host, "read all leases again") == []


def test_what_changed_in_between_is_not_missed(running: Lab) -> None:
    host, other = running.hosts
    folder = f"{running.prefix}/subnets/"
    running.etcdctl("put", f"{folder}10.1.188.0-24", lease_value("172.30.0.88"))
    wait_until(lambda: "10.1.188.0/24" in routes(host), "the first route")
    terminate(host)
    running.etcdctl("del", f"{folder}10.1.188.0-24")
    running.etcdctl("put", f"{folder}10.1.199.0-24", lease_value("172.30.0.99"))
    host.start_daemon()
    wait_until(lambda: "10.1.199.0/24" in routes(host), "the second route")
    assert routes(host) == {str(other.subnet): str(other.address), "10.1.199.0/24": "172.30.0.99"}
    running.etcdctl("del", f"{folder}10.1.199.0-24")


def held(host: Host) -> dict[str, float]:
    """Subnet -> seconds for which its route stays although etcd lost the lease."""
    return {each["subnet"]: each["seconds_left"] for each in host.status()["held"]}


def test_held_routes_are_held_on_and_not_for_longer(running: Lab) -> None:
    host = running.hosts[0]
    stranger = f"{running.prefix}/subnets/10.1.166.0-24", lease_value("172.30.0.66")
    running.etcdctl("put", *stranger)
    wait_until(lambda: "10.1.166.0/24" in routes(host), "the stranger's route")
    lose_data(running)
    wait_until(lambda: list(held(host)) == ["10.1.166.0/24"], "the hold")
    before = held(host)["10.1.166.0/24"]
    with traffic(running) as flow:
        terminate(host)
        host.start_daemon()
        assert held(host)["10.1.166.0/24"] < before
        assert routes(host)["10.1.166.0/24"] == "172.30.0.66"
        flow.assert_unharmed()
    wait_until(lambda: host.status()["etcd"]["state"] == "watching", "the watch")
    assert "10.1.166.0/24" in held(host)
    running.etcdctl("put", *stranger)
    wait_until(lambda: not held(host), "the end of the hold")
    assert routes(host)["10.1.166.0/24"] == "172.30.0.66"
    running.etcdctl("del", stranger[0])
    wait_until(lambda: "10.1.166.0/24" not in routes(host), "the end of the route")


def test_data_that_was_lost_in_between_is_noticed(running: Lab) -> None:
    """Etcd comes back with a revision beyond the one that the last process knew."""
    host, other = running.hosts
    subnet, revision = host.subnet, host.status()["etcd"]["revision"]
    with traffic(running) as flow:
        with cut_off(host, RESET):
            lose_data(running)
            for number in range(revision + 10):
                running.etcdctl("put", "/elsewhere", str(number))
            terminate(host)
            host.start_daemon()
        assert routes(host) == {str(other.subnet): str(other.address)}
        wait_until(lambda: host.status()["etcd"]["history_losses"] == 1, "the loss")
        wait_until(lambda: len(leases(running)) == 2, "both leases")
        flow.assert_unharmed()
    assert host.subnet == subnet
    assert f'"{host.address}"' in leases(running)[str(subnet).replace("/", "-")]
    wait_until(lambda: not held(host), "the end of the hold")


def test_a_frozen_etcd_holds_up_neither_the_stop_nor_the_start(running: Lab) -> None:
    host = running.hosts[0]
    with traffic(running) as flow:
        running.etcd.pause()
        terminate(host)
        host.start_daemon()
        assert host.status()["ready"]
        flow.assert_unharmed()
    running.etcd.resume()
    wait_until(lambda: host.status()["etcd"]["state"] == "watching", "the watch", 30)
    assert log_lines(host, "read all leases again") == []


def test_killed_daemon_has_left_its_newest_routes(running: Lab) -> None:
    """They are recorded now and then, not only at the end."""
    host = running.hosts[0]
    folder = f"{running.prefix}/subnets/"
    running.etcdctl("put", f"{folder}10.1.155.0-24", lease_value("172.30.0.155"))

    def recorded() -> bool:
        return b"10.1.155.0-24" in state(host)

    wait_until(recorded, "the record of the new lease")
    host.kill_daemon()
    running.etcd.kill()
    host.start_daemon()
    assert routes(host)["10.1.155.0/24"] == "172.30.0.155"
    running.etcd.start()
    running.etcdctl("del", f"{folder}10.1.155.0-24")


@pytest.mark.parametrize("keeps", [True, False], ids=["stored", "without systemd"])
def test_sigusr2_executes_the_program_again(running: Lab, keeps: bool) -> None:
    host = running.hosts[0]
    if not keeps:
        terminate(host)
        host.manager.drop_descriptors()
        host.manager.keeps_descriptors = False
        host.start_daemon()
        assert unreachable(running) == []
    try:
        before = device_index(host)
        assert host.daemon
        with traffic(running) as flow:
            for number in (1, 2):
                host.daemon.send_signal(signal.SIGUSR2)
                host.wait_until_ready()
                assert went_on(host) == number
            flow.assert_unharmed()
        assert device_index(host) == before
        assert stored(host) == (STORED if keeps else [])
        assert unreachable(running) == []
        terminate(host)
        assert devices(host) == (["flannel0"] if keeps else [])
    finally:
        host.manager.keeps_descriptors = True


def state(host: Host) -> bytes:
    """What the daemon has recorded for its successor."""
    descriptor = host.manager.stored["state"]
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def test_a_lost_lease_is_not_handed_over(running: Lab) -> None:
    host = running.hosts[0]
    key = str(host.subnet).replace("/", "-")
    running.etcdctl("del", f"{running.prefix}/subnets/{key}")
    assert host.daemon
    assert host.daemon.wait(EXIT_WITHIN) == 1
    assert stored(host) == []
    assert devices(host) == []
    host.start_daemon()
    assert unreachable(running) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(("del",), "was revoked"), (("put", lease_value("172.30.0.99")), "was taken over by")],
    ids=["revoked", "stolen"],
)
def test_a_lease_that_was_lost_before_the_restart_is_lost_after_it(
    running: Lab, change: tuple[str, ...], sentence: str
) -> None:
    """The last process heard of it and could not look into it: its calls were refused by then."""
    host = running.hosts[0]
    key = f"{running.prefix}/subnets/{str(host.subnet).replace('/', '-')}"
    root = "--user=root:secret"
    running.etcdctl("user", "add", "root:secret")
    running.etcdctl("user", "grant-role", "root", "root")
    running.etcdctl("auth", "enable")
    try:
        running.etcdctl(root, change[0], key, *change[1:])
        wait_until(lambda: log_lines(host, "cannot be kept up", "asks for a login"), "the refusal")
        terminate(host)
        host.start_daemon()
        assert went_on(host) == 1
    finally:
        running.etcdctl(root, "auth", "disable")
        running.etcdctl("user", "delete", "root")
    assert host.daemon
    assert host.daemon.wait(EXIT_WITHIN) == 1
    assert log_lines(host, sentence)
    assert not log_lines(host, "its data was lost or restored")
    assert stored(host) == []
    left = running.etcdctl("get", "--print-value-only", key).strip()
    assert left == "".join(change[1:]), "it wrote over somebody else's key"
    running.etcdctl("del", key)
    host.start_daemon()
    assert unreachable(running) == []


def made(host: Host) -> tuple[bool, bool]:
    """Whether it has the rules of --ip-masq, and the route of --ip-blackhole-route."""
    rules, table = host.run(["iptables-save"]).stdout, host.run(["ip", "route"]).stdout
    return "FLANNEL-POSTRTG" in rules, f"blackhole {host.subnet}" in table


def spoil_certificate(host: Host) -> None:
    """As in the middle of a rotation."""
    (host.directory / "ca.pem").write_text("half of a certi")


def restore_certificate(host: Host) -> None:
    authority = make_tls_files(host.directory / "tls").ca
    (host.directory / "ca.pem").write_text(authority.read_text())


def take_address(host: Host) -> None:
    host.run(["ip", "address", "flush", "dev", "eth0"], check=True)


def give_address(host: Host) -> None:
    host.netns.add_address("eth0", IPv4Interface(f"{host.address}/24"))


@pytest.mark.parametrize(
    ("fault", "cure", "sentence", "judge"),
    [
        (spoil_certificate, restore_certificate, "ca.pem", Traffic.assert_unharmed),
        (take_address, give_address, "no external interface fits", Traffic.assert_connected),
    ],
    ids=["half a certificate", "no address"],
)
def test_what_a_start_lacks_is_waited_for_while_packets_flow(
    running: Lab,
    fault: Callable[[Host], None],
    cure: Callable[[Host], None],
    sentence: str,
    judge: Callable[[Traffic], None],
) -> None:
    host = running.hosts[0]
    flags = ("--etcd-cafile", str(host.directory / "ca.pem"))
    restore_certificate(host)
    terminate(host)
    host.start_daemon(flags)
    before = device_index(host)
    with traffic(running) as flow:
        terminate(host)
        fault(host)
        host.start_daemon(flags, wait=False)
        wait_until(lambda: log_lines(host, sentence, "trying again"), "the sentence")
        assert sentence in host.status()["reason"]
        if judge is Traffic.assert_unharmed:
            flow.wait_for_more()
        cure(host)
        host.wait_until_ready()
        judge(flow)
    assert log_lines(host, "the start goes on")
    assert went_on(host) == 2
    assert device_index(host) == before
    assert unreachable(running) == []


def test_a_start_that_fails_leaves_all_to_the_next_one(running: Lab) -> None:
    host = running.hosts[0]
    flags = ("--ip-masq", "--ip-blackhole-route")
    terminate(host)
    host.start_daemon(flags)
    before = device_index(host)
    with traffic(running) as flow:
        terminate(host)
        host.start_daemon(("--etcd-endpoints", "ftp://etcd"), wait=False)
        assert host.daemon
        assert host.daemon.wait(EXIT_WITHIN) == 1
        assert log_lines(host, "flannel-udp: ", "ftp://etcd")
        assert stored(host) == STORED
        assert made(host) == (True, True)
        host.start_daemon(flags)
        flow.assert_unharmed()
    assert went_on(host) == 3
    assert device_index(host) == before


def test_a_route_of_others_that_came_in_between_makes_way(running: Lab) -> None:
    """As it would while the daemon runs."""
    host = running.hosts[0]
    before = device_index(host)
    with traffic(running) as flow:
        terminate(host)
        host.run(["ip", "route", "replace", "10.1.0.0/16", "via", "172.30.0.9"], check=True)
        host.start_daemon()
        flow.assert_connected()
    assert went_on(host) == 1
    assert device_index(host) == before
    assert unreachable(running) == []


def test_a_device_made_anew_is_handed_over_too(running: Lab) -> None:
    host = running.hosts[0]
    deleted = device_index(host)
    host.netns.delete_link("flannel0")
    wait_until(lambda: log_lines(host, "flannel0", "made anew"), "the repair")
    made_anew = device_index(host)
    assert made_anew != deleted
    wait_until(lambda: stored(host) == STORED, "the new descriptors")
    with traffic(running) as flow:
        terminate(host)
        host.start_daemon()
        flow.assert_unharmed()
    assert went_on(host) == 1
    assert device_index(host) == made_anew


def test_a_device_that_is_always_deleted_is_not_handed_over(running: Lab) -> None:
    host = running.hosts[0]
    assert host.daemon
    deadline = time.monotonic() + 60
    while host.daemon.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            host.netns.delete_link("flannel0")
    assert host.daemon.wait(1) == 1
    assert stored(host) == []
    assert devices(host) == []
    host.start_daemon()
    assert went_on(host) == 0
    assert unreachable(running) == []


def test_a_socket_that_was_shut_down_is_made_anew_once_the_manager_has_let_go_of_it(
    running: Lab,
) -> None:
    """Its copy holds the port."""
    host = running.hosts[0]
    with host.manager._lock:  # it hears nothing
        with suppress(OSError), udp_socket_of(host) as stolen:
            stolen.shutdown(socket.SHUT_RDWR)
        time.sleep(0.2)  # in which a daemon that did not wait would try and fail
    wait_until(lambda: log_lines(host, "the UDP socket", "made anew"), "the repair")
    assert not log_lines(host, "Address already in use")
    wait_until(lambda: stored(host) == STORED, "the new descriptors")
    assert unreachable(running) == []
    with traffic(running) as flow:
        terminate(host)
        host.start_daemon()
        flow.assert_unharmed()
    assert went_on(host) == 1


def test_rules_and_routes_of_the_host_stay_for_the_next_process(running: Lab) -> None:
    host = running.hosts[0]
    terminate(host)
    host.manager.drop_descriptors()
    flags = ("--ip-masq", "--ip-blackhole-route")
    host.start_daemon(flags)
    terminate(host)

    assert made(host) == (True, True)
    host.start_daemon(flags)
    assert went_on(host) == 1
    assert made(host) == (True, True)
    terminate(host)
    # A stop for good: systemd closes the descriptors, and nobody is left to remove the rest.
    host.manager.drop_descriptors()
    assert devices(host) == []
    host.run([sys.executable, "-m", "flannel_udp", "cleanup"], check=True)
    assert made(host) == (False, False)
    host.start_daemon()

"""A restart keeps device, socket and routes: packets wait, and no connection breaks."""

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
from etcd_server import make_tls_files, wait_until
from faults import delete_device_until_exit
from instruments import HEALTH_FLAGS, devices, health, log_lines, routes, udp_socket_of, unreachable
from restart_traffic import Traffic, traffic
from restarts import EXIT_WITHIN, STORED, device_index, stored, takeovers, terminate

from flannel_udp.lab.lab import Host, Lab


def known_since(host: Host) -> float:
    """When the host's only peer got its route, as time.monotonic()."""
    (peer,) = host.status()["peers"]
    return time.monotonic() - float(peer["age_seconds"])


@pytest.mark.parametrize(
    ("index", "end", "lost"),
    # A packet that the worker has read but not sent at kill -9 is lost.
    [(0, terminate, 0), (0, Host.kill_daemon, 2), (1, terminate, 0)],
    ids=["stopped", "killed", "stopped without offloads"],
)
def test_restart_loses_no_connection(
    running: Lab, index: int, end: Callable[[Host], None], lost: int
) -> None:
    host = running.hosts[index]
    before, env, known = device_index(host), host.subnet_file.read_text(), routes(host)
    since = known_since(host)
    with traffic(running) as flow:
        for number in (1, 2):
            end(host)
            assert stored(host) == STORED
            host.start_daemon()
            assert takeovers(host) == number
        flow.assert_unharmed(most_lost=number * lost)
    assert device_index(host) == before
    assert host.subnet_file.read_text() == env
    assert routes(host) == known
    assert abs(known_since(host) - since) < 1, "the peer's age does not go on"
    assert stored(host) == STORED
    assert unreachable(running) == []


def test_health_port_taken_during_the_restart_costs_no_packet(running: Lab) -> None:
    host = running.hosts[0]
    with traffic(running) as flow:
        with host.netns.call(socket.create_server, ("127.0.0.1", 8080)):
            terminate(host)
            host.start_daemon(HEALTH_FLAGS)
            assert takeovers(host) == 1
            wait_until(lambda: log_lines(host, "health", "8080", "trying again"), "the line")
        wait_until(lambda: health(host, "/readyz")[0] == 200, "the health port")
        flow.assert_unharmed()
    (line,) = log_lines(host, "cannot serve health checks")
    assert f"port 8080: Address already in use by python, process {os.getpid()};" in line
    assert len(log_lines(host, "the health port is served now")) == 1


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
                assert takeovers(host) == number
            flow.assert_unharmed()
        assert device_index(host) == before
        assert stored(host) == (STORED if keeps else [])
        assert unreachable(running) == []
        terminate(host)
        assert devices(host) == (["flannel0"] if keeps else [])
    finally:
        host.manager.keeps_descriptors = True


def made(host: Host) -> tuple[bool, bool]:
    """Whether the host has the rules of --ip-masq, and the route of --ip-blackhole-route."""
    rules, table = host.run(["iptables-save"]).stdout, host.run(["ip", "route"]).stdout
    return "FLANNEL-POSTRTG" in rules, f"blackhole {host.subnet}" in table


@pytest.fixture
def unkept(running: Lab) -> Iterator[Host]:
    """A host without a descriptor store, whose daemon has rules and a blackhole route."""
    host = running.hosts[0]
    terminate(host)
    host.manager.drop_descriptors()
    host.manager.keeps_descriptors = False
    host.start_daemon(("--ip-masq", "--ip-blackhole-route"))
    assert made(host) == (True, True)
    yield host
    host.manager.keeps_descriptors = True


def restart(host: Host) -> None:
    assert host.daemon
    host.daemon.send_signal(signal.SIGUSR2)
    wait_until(lambda: log_lines(host, "restarting: SIGUSR2"), "the end of the first program")


def test_stop_during_a_restart_removes_everything(unkept: Host) -> None:
    """The signal stays pending for the next program, which has not created anything itself."""
    restart(unkept)
    terminate(unkept)
    assert takeovers(unkept) == 1
    assert made(unkept) == (False, False)
    assert devices(unkept) == []


def test_device_deleted_during_a_restart_is_created_again(running: Lab, unkept: Host) -> None:
    restart(unkept)
    wait_until(lambda: takeovers(unkept), "the next program")
    unkept.netns.delete_link("flannel0")
    unkept.wait_until_ready()
    wait_until(lambda: not unreachable(running), "packets through the new device")
    assert made(unkept) == (True, True)


def spoil_certificate(host: Host) -> None:
    """As during a rotation."""
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
def test_packets_flow_while_a_start_waits_for_something_missing(
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
    assert takeovers(host) == 2
    assert device_index(host) == before
    assert unreachable(running) == []


def test_failed_start_leaves_the_tunnel_to_the_next_one(running: Lab) -> None:
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
    assert takeovers(host) == 3
    assert device_index(host) == before


def test_route_replaced_during_the_restart_is_restored(running: Lab) -> None:
    """As while the daemon runs."""
    host = running.hosts[0]
    before = device_index(host)
    with traffic(running) as flow:
        terminate(host)
        host.run(["ip", "route", "replace", "10.1.0.0/16", "via", "172.30.0.9"], check=True)
        host.start_daemon()
        flow.assert_connected()
    assert takeovers(host) == 1
    assert device_index(host) == before
    assert unreachable(running) == []


def test_recreated_device_is_handed_over(running: Lab) -> None:
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
    assert takeovers(host) == 1
    assert device_index(host) == made_anew


def test_repeatedly_deleted_device_is_not_handed_over(running: Lab) -> None:
    host = running.hosts[0]
    delete_device_until_exit(host)
    assert stored(host) == []
    assert devices(host) == []
    host.start_daemon()
    assert takeovers(host) == 0
    assert unreachable(running) == []


def test_shut_down_socket_is_recreated_after_its_copy_is_closed(running: Lab) -> None:
    """The copy in the store holds the port."""
    host = running.hosts[0]
    with host.manager._lock:  # the store answers nothing
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
    assert takeovers(host) == 1


def test_firewall_rules_and_blackhole_route_stay_for_the_next_process(running: Lab) -> None:
    host = running.hosts[0]
    terminate(host)
    host.manager.drop_descriptors()
    flags = ("--ip-masq", "--ip-blackhole-route")
    host.start_daemon(flags)
    terminate(host)

    assert made(host) == (True, True)
    host.start_daemon(flags)
    assert takeovers(host) == 1
    assert made(host) == (True, True)
    terminate(host)
    # After a final stop systemd closes the descriptors, and no process removes the rest.
    host.manager.drop_descriptors()
    assert devices(host) == []
    host.run([sys.executable, "-m", "flannel_udp", "cleanup"], check=True)
    assert made(host) == (False, False)
    host.start_daemon()

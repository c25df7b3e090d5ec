"""A restart while etcd is down, frozen or has lost its data: packets flow, no change is missed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from etcd_server import wait_until
from faults import RESET, cut_off
from instruments import devices, lease_value, leases, log_lines, routes, unreachable
from restart_traffic import traffic
from restarts import EXIT_WITHIN, lose_data, stored, takeovers, terminate

from flannel_udp.lab.lab import Host, Lab


def assert_restart_is_unharmed_after(lab: Lab, stop_etcd: Callable[[], None]) -> None:
    host = lab.hosts[0]
    with traffic(lab) as flow:
        stop_etcd()
        terminate(host)
        host.start_daemon()
        assert host.status()["ready"]
        flow.assert_unharmed()


def test_restart_without_etcd_catches_up_when_etcd_returns(running: Lab) -> None:
    host = running.hosts[0]
    old = leases(running)
    assert_restart_is_unharmed_after(running, running.etcd.kill)
    running.etcd.start()
    running.etcdctl("put", f"{running.prefix}/subnets/10.1.177.0-24", lease_value("172.30.0.77"))
    wait_until(lambda: "10.1.177.0/24" in routes(host), "the new route")
    running.etcdctl("del", f"{running.prefix}/subnets/10.1.177.0-24")
    wait_until(lambda: "10.1.177.0/24" not in routes(host), "the end of the route")
    assert leases(running) == old
    assert log_lines(host, "read all leases again") == []


def test_changes_during_the_restart_are_not_missed(running: Lab) -> None:
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


def test_restart_keeps_held_routes_and_does_not_extend_the_hold(running: Lab) -> None:
    host = running.hosts[0]
    unknown_host = f"{running.prefix}/subnets/10.1.166.0-24", lease_value("172.30.0.66")
    running.etcdctl("put", *unknown_host)
    wait_until(lambda: "10.1.166.0/24" in routes(host), "the unknown host's route")
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
    running.etcdctl("put", *unknown_host)
    wait_until(lambda: not held(host), "the end of the hold")
    assert routes(host)["10.1.166.0/24"] == "172.30.0.66"
    running.etcdctl("del", unknown_host[0])
    wait_until(lambda: "10.1.166.0/24" not in routes(host), "the end of the route")


def test_loss_of_etcds_data_during_the_restart_is_noticed(running: Lab) -> None:
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


def test_frozen_etcd_delays_neither_stop_nor_start(running: Lab) -> None:
    host = running.hosts[0]
    assert_restart_is_unharmed_after(running, running.etcd.pause)
    running.etcd.resume()
    wait_until(lambda: host.status()["etcd"]["state"] == "watching", "the watch", 30)
    assert log_lines(host, "read all leases again") == []


def test_killed_daemon_has_recorded_its_newest_routes(running: Lab) -> None:
    """They are recorded repeatedly, not only at the end."""
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


def state(host: Host) -> bytes:
    """The state that the daemon has recorded for the next process."""
    descriptor = host.manager.stored["state"]
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def test_lost_lease_is_not_handed_over(running: Lab) -> None:
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
def test_lease_lost_before_the_restart_ends_the_next_daemon(
    running: Lab, change: tuple[str, ...], sentence: str
) -> None:
    """The last process received the event but could not check it: etcd refused its calls."""
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
        assert takeovers(host) == 1
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

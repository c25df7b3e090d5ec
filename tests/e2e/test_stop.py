"""An etcd that hangs does not hold up the end of a daemon."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator

import pytest
from etcd_server import wait_until
from faults import await_loss
from instruments import devices, log_lines

from flannel_udp.lab.lab import Host, Lab

STOP_WITHIN = 5.0  # seconds
SILENT = (7001, 7002)  # ports


@pytest.fixture(scope="module")
def hung_lab(network_rights: None) -> Iterator[Lab]:
    """Two of three endpoints never answer; the third one is paused by the tests."""
    with Lab(1, start_daemons=False) as lab:
        yield lab


@pytest.fixture
def host(hung_lab: Lab) -> Iterator[Host]:
    host = hung_lab.hosts[0]
    host.log_path.unlink(missing_ok=True)
    silent = [
        host.netns.call(socket.create_server, ("127.0.0.1", port), backlog=1000) for port in SILENT
    ]
    yield host
    hung_lab.etcd.resume()
    for each in silent:
        each.close()
    print(host.log_path.read_text())
    assert "Traceback" not in host.log_path.read_text()
    assert host.daemon
    if host.daemon.poll() is None:
        host.kill_daemon()


def start(lab: Lab, host: Host, *flags: str, wait: bool = True) -> None:
    silent = ",".join(f"http://127.0.0.1:{port}" for port in SILENT)
    host.start_daemon((f"--etcd-endpoints={lab.etcd.url},{silent}", *flags), wait=wait)


def assert_ends_in_time(host: Host, signal_: signal.Signals = signal.SIGTERM) -> None:
    began = time.monotonic()
    before = len(log_lines(host, "WARNING"))
    assert host.stop_daemon(signal_) == 0
    took = time.monotonic() - began
    print(f"stopped in {took:.2f} s")
    assert took < STOP_WITHIN
    assert len(log_lines(host, "WARNING")) == before
    assert devices(host) == []


def test_a_forwarding_daemon_stops_in_time(hung_lab: Lab, host: Host) -> None:
    start(hung_lab, host)
    hung_lab.etcd.pause()
    await_loss(host)
    time.sleep(1)  # all of its threads are inside a call by then
    assert_ends_in_time(host)


def test_a_starting_daemon_stops_in_time(hung_lab: Lab, host: Host) -> None:
    hung_lab.etcd.pause()
    start(hung_lab, host, "--v=1", wait=False)
    wait_until(lambda: log_lines(host, "Range by", "no answer"), "the first endpoint given up", 20)
    assert_ends_in_time(host)


def test_a_daemon_whose_address_has_changed_ends_in_time(hung_lab: Lab, host: Host) -> None:
    """It gives back its lease, if etcd answers."""
    start(hung_lab, host)
    hung_lab.etcd.pause()
    assert host.daemon
    host.run(f"ip addr del {host.address}/24 dev eth0".split(), check=True)
    host.run(["ip", "addr", "add", "172.30.0.77/24", "dev", "eth0"], check=True)
    try:
        wait_until(lambda: log_lines(host, "is gone from"), "noticing")
        began = time.monotonic()
        assert host.daemon.wait(30) == 1
    finally:
        host.run(["ip", "addr", "del", "172.30.0.77/24", "dev", "eth0"], check=True)
        host.run(f"ip addr add {host.address}/24 dev eth0".split(), check=True)
    took = time.monotonic() - began
    print(f"ended in {took:.2f} s, three of which an address may be missing")
    assert took < 3 + STOP_WITHIN
    assert log_lines(host, "could not be given back")

"""/healthz and /readyz answer as flannel's do; /metrics uses the same port."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from clock_shim import ClockShim
from etcd_server import wait_until
from instruments import HEALTH_FLAGS, health, log_lines

from flannel_udp.lab.lab import Host, Lab


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> ClockShim:
    return ClockShim(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def health_lab(network_rights: None, clock: ClockShim) -> Iterator[Lab]:
    environment = clock.environment
    with Lab(1, start_daemons=False, daemon_args=HEALTH_FLAGS, daemon_env=environment) as lab:
        yield lab


@pytest.fixture
def host(health_lab: Lab) -> Iterator[Host]:
    host = health_lab.hosts[0]
    yield host
    if host.daemon and host.daemon.poll() is None:
        host.kill_daemon()


def test_health_answers_at_once_and_readiness_follows_forwarding(
    health_lab: Lab, host: Host
) -> None:
    assert health(host, "/healthz") == (0, "")
    health_lab.etcd.kill()
    host.start_daemon(wait=False)
    wait_until(lambda: health(host, "/healthz") == (200, "flanneld is running"), "/healthz")
    code, text = health(host, "/readyz")
    assert code == 503
    assert text.splitlines()[0] == "flanneld is not ready yet"
    wait_until(lambda: "connection refused" in health(host, "/readyz")[1], "the reason")
    assert "connection refused" in host.status()["reason"]
    assert "flannel_ready 0.0" in health(host, "/metrics")[1].splitlines()
    health_lab.etcd.start()
    host.wait_until_ready()
    assert health(host, "/readyz") == (200, "flanneld is ready")
    assert health(host, "/healthz") == (200, "flanneld is running")
    assert "flannel_ready 1.0" in health(host, "/metrics")[1].splitlines()
    assert host.stop_daemon() == 0
    assert health(host, "/healthz") == (0, "")


def test_daemon_stays_ready_while_etcd_does_not_answer(health_lab: Lab, host: Host) -> None:
    """Otherwise one outage of etcd would make every host of the cluster unready."""
    host.log_path.unlink(missing_ok=True)
    host.start_daemon()
    revision = host.status()["etcd"]["revision"]
    health_lab.etcd.kill()
    wait_until(lambda: log_lines(host, "cannot be followed"), "noticing that etcd is away")
    assert host.status()["etcd"]["state"] != "watching"
    stale = rf"flanneld is ready\netcd silent for \d+ s, routes of revision {revision}"
    wait_until(lambda: re.fullmatch(stale, health(host, "/readyz")[1]), "the age of the routes")
    assert health(host, "/readyz")[0] == 200
    assert health(host, "/healthz") == (200, "flanneld is running")
    health_lab.etcd.start()
    wait_until(lambda: host.status()["etcd"]["state"] == "watching", "following again")
    assert health(host, "/readyz") == (200, "flanneld is ready")


def test_changed_clock_has_no_effect(health_lab: Lab, host: Host, clock: ClockShim) -> None:
    host.start_daemon()
    wait_until(lambda: host.status()["etcd"]["state"] == "watching", "following etcd")
    before = host.status()
    clock.set_ahead(100_000)  # longer than a lease lives
    until = time.monotonic() + 3
    while time.monotonic() < until:
        after = host.status()
        assert after["etcd"]["state"] == "watching"
        time.sleep(0.1)
    clock.set_ahead(0)
    assert 0 <= before["lease_seconds_left"] - after["lease_seconds_left"] < 60
    assert health(host, "/readyz") == (200, "flanneld is ready")
    assert host.stop_daemon() == 0

"""Helpers of the restart tests: hosts whose service manager stores the daemon's descriptors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from instruments import devices, log_lines, unreachable

from flannel_udp.lab.lab import DEFAULT_CONFIG, Host, Lab

STORED = ["tun", "udp", "state"]
EXIT_WITHIN = 10.0  # seconds


def storing_lab() -> Lab:
    """Two hosts with a descriptor store and no running daemon; the second one has no offloads."""
    return Lab(hosts=2, start_daemons=False, keeps_descriptors=True, presets=("auto", "none"))


@contextmanager
def both_running(lab: Lab) -> Iterator[Lab]:
    """Both daemons forward; afterwards they stop for good."""
    for host in lab.hosts:
        host.log_path.unlink(missing_ok=True)
    lab.start_daemons()
    assert unreachable(lab) == []
    yield lab
    ends = [host.stop_daemon() for host in lab.hosts]
    for host in lab.hosts:
        host.manager.drop_descriptors()
        print(f"--- daemon log of {host.name}\n{host.log_path.read_text()}")
    assert ends == [0, 0]
    for host in lab.hosts:
        assert "Traceback" not in host.log_path.read_text()
        assert devices(host) == []


def device_index(host: Host) -> str:
    """The interface index of flannel0, which changes when the device is created again."""
    return host.run(["cat", "/sys/class/net/flannel0/ifindex"], check=True).stdout


def stored(host: Host) -> list[str]:
    return list(host.manager.stored)


def terminate(host: Host) -> None:
    assert host.stop_daemon() == 0


def takeovers(host: Host) -> int:
    """How often a daemon took over the device and socket of the previous process."""
    return len(log_lines(host, "going on with", "before etcd is asked"))


def lose_data(lab: Lab) -> None:
    """Etcd comes back with nothing but the network config."""
    lab.etcd.kill()
    lab.etcd.wipe()
    lab.etcd.start()
    lab.etcdctl("put", f"{lab.prefix}/config", json.dumps(DEFAULT_CONFIG))

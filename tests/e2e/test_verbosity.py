"""``--v=1`` logs decisions, 2 also checks, calls and libraries; none logs a secret."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from etcd_server import wait_until
from instruments import HEALTH_FLAGS, health, lease_value, log_lines

from flannel_udp.lab.lab import Host, Lab

PASSWORD = "not-for-any-log"
NEW_LEASE, UNKNOWN_HOST = "10.1.251.0-24", "172.30.0.50"


@pytest.fixture(scope="module")
def lab(network_rights: None) -> Iterator[Lab]:
    """One host at each level; they log in, although this etcd requires no password."""
    flags = (*HEALTH_FLAGS, "--iptables-resync=1", "--etcd-username=flannel")
    with Lab(
        hosts=3,
        daemon_args=flags,
        daemon_env={"FLANNELD_ETCD_PASSWORD": PASSWORD},
        start_daemons=False,
    ) as lab:
        for level, host in enumerate(lab.hosts):
            host.start_daemon([f"--v={level}"])
        yield lab
        assert not [host.name for host in lab.hosts if PASSWORD in host.log_path.read_text()]


def told(host: Host, *words: str) -> bool:
    return bool(log_lines(host, *words))


def test_each_log_level_adds_its_lines(lab: Lab) -> None:
    plain, decisions, everything = lab.hosts

    def await_both(*words: str) -> None:
        """A line of level 1: the second and third host log it, the first does not."""
        for host in (decisions, everything):
            wait_until(partial(told, host, "DEBUG", *words), f"{words} in the log of {host.name}")
        assert not log_lines(plain, "DEBUG", *words)

    await_both("this host has eth0 (172.30.0.")
    await_both("wrote", "subnet.env")
    await_both("to the service manager: READY=1")
    await_both("login as flannel at http://172.30.0.254:2379: not needed")
    await_both("etcd has the history that was known: cluster ")
    lab.etcdctl("put", f"{lab.prefix}/subnets/{NEW_LEASE}", lease_value(UNKNOWN_HOST))
    await_both(f"lease {NEW_LEASE} is of {UNKNOWN_HOST}, a reservation")
    lab.etcdctl("del", f"{lab.prefix}/subnets/{NEW_LEASE}")
    await_both(f"lease {NEW_LEASE} is gone")
    for host in lab.hosts:
        host.run(["iptables", "-F", "FLANNEL-FWD"], check=True)
    await_both("iptables-restore: *filter", "-A FLANNEL-FWD")
    lab.etcd.kill()
    await_both("Range by http://172.30.0.254:2379: connection refused")
    await_both("asking etcd for the leases again in ")
    lab.etcd.start()

    assert health(everything, "/healthz")[0] == 200
    for words in ("the firewall rules are as they must be", "Range by http", "looked at flannel0"):
        wait_until(partial(told, everything, "DETAIL", words), f"{words} at level 2")
    assert log_lines(everything, "DETAIL", "GET /healthz")
    assert log_lines(everything, "DEBUG", "RTM_NEWLINK"), "libraries are not heard"
    for host in (plain, decisions):
        assert not log_lines(host, "DETAIL")
        assert not log_lines(host, "RTM_NEWLINK")

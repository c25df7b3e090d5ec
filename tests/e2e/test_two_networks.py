"""Two daemons on one host, for two networks, do not disturb each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from etcd_server import wait_until
from instruments import devices, leases

from flannel_udp.host import subnet_env
from flannel_udp.lab.etcd import child_environment
from flannel_udp.lab.lab import Host, Lab

CONFIG = '{"Network":"10.2.0.0/16","Backend":{"Type":"udp","Port":8286}}'
PREFIX = "/second/network"


@pytest.fixture
def seconds(lab: Lab) -> Iterator[list[subprocess.Popen[Any]]]:
    """The daemons of the second network, one on each host in addition to the first network's."""
    lab.etcdctl("put", f"{PREFIX}/config", CONFIG)
    daemons = []
    for host in lab.hosts:
        flags = [
            "-ip-masq",
            "-iface=eth0",
            f"-etcd-endpoints={lab.etcd.url}",
            f"-etcd-prefix={PREFIX}",
        ]
        command = [sys.executable, "-m", "flannel_udp", *flags, f"-subnet-file={file_of(host)}"]
        with (host.directory / "second.log").open("wb") as log:
            daemons.append(
                host.netns.popen(command, env=child_environment(), stdout=log, stderr=log)
            )
    wait_until(lambda: all(map(second_address, lab.hosts)), "the second network getting ready")
    yield daemons
    for daemon in daemons:
        daemon.terminate()
        assert daemon.wait(10) == 0


def file_of(host: Host) -> Path:
    return host.directory / "second.env"


def second_address(host: Host) -> IPv4Address | None:
    """The host's own address in the second network."""
    env = subnet_env.read(file_of(host))
    return env.subnet_with_gateway.network.network_address if env else None


def assert_second_network_works(lab: Lab, hosts: list[Host]) -> None:
    for source in hosts:
        for target in (host for host in hosts if host != source):
            address = second_address(target)
            assert address
            wait_until(
                partial(lab.ping, source, address, wait=1),
                f"{source.name} reaching {target.name} in the second network",
            )


def rules(host: Host, network: str) -> list[str]:
    """The host's firewall rules that name the network."""
    saved = host.run(["iptables-save"], check=True).stdout.splitlines()
    return [line for line in saved if line.startswith("-A FLANNEL-") and network in line]


def test_both_networks_work_and_each_daemon_removes_only_its_own(
    lab: Lab, seconds: list[subprocess.Popen[Any]]
) -> None:
    first = lab.hosts[0]
    first.run(["iptables", "-w", "20", "-P", "FORWARD", "DROP"], check=True)
    ours, theirs = rules(first, "10.1.0.0/16"), rules(first, "10.2.0.0/16")
    assert (len(ours), len(theirs)) == (2, 2 + 5), "forward rules of both, and one masquerades"
    assert [devices(host) for host in lab.hosts] == [["flannel0", "flannel1"]] * 3
    assert len(leases(lab)) == 3, "the second network's leases are under the first one's prefix"
    assert None not in lab.ping_matrix().values()
    assert_second_network_works(lab, lab.hosts)

    assert first.stop_daemon() == 0
    assert devices(first) == ["flannel1"]
    assert (rules(first, "10.1.0.0/16"), rules(first, "10.2.0.0/16")) == ([], theirs)
    assert_second_network_works(lab, lab.hosts)

    first.start_daemon()
    assert devices(first) == ["flannel1", "flannel0"]
    assert (rules(first, "10.1.0.0/16"), rules(first, "10.2.0.0/16")) == (ours, theirs)
    assert None not in lab.ping_matrix().values()

    seconds[0].terminate()
    assert seconds[0].wait(10) == 0
    assert devices(first) == ["flannel0"]
    assert (rules(first, "10.1.0.0/16"), rules(first, "10.2.0.0/16")) == (ours, [])
    assert "FLANNEL-POSTRTG" not in first.run(["iptables-save"]).stdout
    assert None not in lab.ping_matrix().values()
    assert_second_network_works(lab, lab.hosts[1:])
    first.run(["iptables", "-w", "20", "-P", "FORWARD", "ACCEPT"], check=True)

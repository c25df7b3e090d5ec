"""A member that runs another program: packets flow both ways, and each reads all leases."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from etcd_server import wait_until
from instruments import leases, log_lines, routes

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.etcd import find_program
from flannel_udp.lab.lab import Container, Host, Lab

SUBNET = IPv4Network("10.1.200.0/24")  # behind the first 100, so no other host takes it
NAME = "10.1.200.0-24"
PROGRAM = Path(__file__).with_name("foreign_daemon.py")


@pytest.fixture(scope="module")
def mixed_lab(network_rights: None) -> Iterator[Lab]:
    """Two hosts with our daemon and a third, the last, without one."""
    with Lab(hosts=3, start_daemons=False) as lab:
        for host in lab.hosts[:2]:
            host.start_daemon()
        plug_container(lab.hosts[2])
        yield lab


def plug_container(host: Host) -> None:
    """A container, as the lab makes it on hosts with our daemon."""
    netns = Namespace(f"{host.netns.name}-c1")
    netns.create()
    host.netns.add_bridge("docker0")
    host.netns.add_address("docker0", IPv4Interface((SUBNET[1], 24)))
    host.netns.add_veth("c1", netns, "eth0", mtu=1472)
    host.netns.set_link("c1", master="docker0")
    netns.add_address("eth0", IPv4Interface((SUBNET[2], 24)))
    netns.add_route(IPv4Network("0.0.0.0/0"), via=SUBNET[1])
    host.containers = [Container("foreign-c1", netns, SUBNET[2])]


@pytest.fixture
def foreigner(mixed_lab: Lab) -> Iterator[subprocess.Popen[Any]]:
    """The other program, running on the third host."""
    host = mixed_lab.hosts[2]
    words = (
        find_program("etcdctl"),
        mixed_lab.etcd.url,
        mixed_lab.prefix,
        str(host.address),
        str(SUBNET),
    )
    output = host.log_path.open("w")
    with (
        output,
        host.netns.popen(
            [sys.executable, str(PROGRAM), *words], stdout=output, stderr=output
        ) as process,
    ):
        wait_until(lambda: log_lines(host, "ready"), "the other program getting ready")
        yield process
        if process.poll() is None:
            leave(process)
    assert process.returncode == 0, host.log_path.read_text()


def leave(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)


def wait_for_route(lab: Lab, address: IPv4Address | None) -> None:
    """Waits until our hosts have this next hop, or none, for the other program's subnet."""
    expected = str(address) if address else None
    wait_until(
        lambda: all(routes(host).get(str(SUBNET)) == expected for host in lab.hosts[:2]),
        f"{SUBNET} going to {expected}",
    )


def wait_until_acquainted(lab: Lab) -> None:
    """Waits until both programs have read each other's leases."""
    *ours, foreign = lab.hosts
    wait_for_route(lab, foreign.address)
    learned = [f"learned {str(host.subnet).replace('/', '-')} {host.address}" for host in ours]
    wait_until(
        lambda: all(log_lines(foreign, words) for words in learned),
        "the other program reading our leases",
    )


@pytest.mark.usefixtures("foreigner")
def test_pings_work_both_ways_and_both_programs_read_all_leases(mixed_lab: Lab) -> None:
    wait_until_acquainted(mixed_lab)
    assert None not in mixed_lab.ping_matrix().values()
    assert NAME in leases(mixed_lab)


@pytest.mark.usefixtures("foreigner")
def test_packets_of_every_size_pass_between_the_two_programs(mixed_lab: Lab) -> None:
    wait_until_acquainted(mixed_lab)
    one, other = mixed_lab.hosts[0].containers[0], mixed_lab.hosts[2].containers[0]
    for source, target in ((one, other), (other, one)):
        for size in ("0", "1444", "20000"):
            ping = ["ping", "-n", "-c", "3", "-i", "0.01", "-W", "2", "-s", size]
            answer = source.run([*ping, str(target.address)])
            assert "3 received" in answer.stdout, f"{size} bytes from {source.name}"


def test_route_is_removed_when_the_other_program_leaves(
    mixed_lab: Lab, foreigner: subprocess.Popen[Any]
) -> None:
    wait_for_route(mixed_lab, mixed_lab.hosts[2].address)
    leave(foreigner)
    wait_for_route(mixed_lab, None)
    assert NAME not in leases(mixed_lab)
    answer = mixed_lab.containers[0].run(["ping", "-c", "1", "-W", "2", str(SUBNET[2])])
    assert "Destination Net Unreachable" in answer.stdout

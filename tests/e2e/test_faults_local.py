"""Changes by other programs to a host's network are repaired within a second."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest
from etcd_server import wait_until
from faults import delete_device_until_exit
from heartbeat import Heartbeat, heartbeat_between
from instruments import leases, log_lines, routes, udp_socket_of, unreachable
from starvation import Starvation

from flannel_udp.lab.lab import Host, Lab

BACK_WITHIN = 1.0  # seconds in which packets may be lost
PATIENCE = 10.0  # seconds after which the daemon gives up a device that cannot be opened
GRACE = 3.0  # seconds for which an address may be gone, as docs/operations.md says
ARP_RETRY = 1.0  # seconds after which the kernel asks for a neighbour's address again
NETWORK = "10.1.0.0/16"


@dataclass
class Scene:
    """Two hosts, the first of which has the faults, and traffic between their containers."""

    lab: Lab
    heartbeat: Heartbeat
    starvation: Starvation

    @property
    def host(self) -> Host:
        return self.lab.hosts[0]

    @property
    def device_address(self) -> str:
        assert self.host.subnet
        return f"{self.host.subnet.network_address}/32"

    def ip(self, words: str) -> None:
        self.host.run(["ip", *words.split()], check=True)

    def await_return(self) -> float:
        """Seconds until a packet arrives that is sent after this call, without the time in which
        the machine ran other programs."""
        since = time.monotonic()
        seconds = self.heartbeat.seconds_until_back(since)
        return self.starvation.net_duration(since, since + seconds)

    def down_for(self) -> float:
        """Seconds in which packets were lost so far, without the time in which the machine ran
        other programs."""
        outage = self.heartbeat.outage()
        if outage is None:
            return 0.0
        seconds = self.starvation.net_duration(outage.began, outage.ended)
        print(
            f"{outage.lost} packets lost in {outage.ended - outage.began:.3f} s, {seconds:.3f} s"
            " of it not for want of a processor"
        )
        return seconds

    def delete_device(self) -> None:
        self.host.netns.delete_link("flannel0")

    def shut_down_socket(self, how: int = socket.SHUT_RDWR) -> None:
        with suppress(OSError), udp_socket_of(self.host) as stolen:
            stolen.shutdown(how)


@pytest.fixture(scope="module")
def pair_lab(network_rights: None) -> Iterator[Lab]:
    with Lab(hosts=2) as lab:
        yield lab


@pytest.fixture
def scene(pair_lab: Lab) -> Iterator[Scene]:
    """The same daemons run in all tests, because none of the faults ends them."""
    one, other = pair_lab.hosts
    for host in pair_lab.hosts:
        host.log_path.write_text("")
    beats = heartbeat_between(one.containers[0], other.containers[0])
    with Starvation(one, other) as starvation, beats as heartbeat:
        yield Scene(pair_lab, heartbeat, starvation)
    for host in pair_lab.hosts:
        assert host.daemon
        assert host.daemon.poll() is None
        assert host.status()["ready"]
        assert "Traceback" not in host.log_path.read_text()


def network_of(host: Host) -> dict[str, Any]:
    """The device and the route of the daemon, as ``ip`` shows them."""
    (link,) = json.loads(host.run(["ip", "-j", "address", "show", "flannel0"], check=True).stdout)
    (route,) = json.loads(host.run(["ip", "-j", "route", "show", NETWORK], check=True).stdout)
    addresses = [each["local"] for each in link["addr_info"]]
    flags = [flag for flag in link["flags"] if flag != "NO-CARRIER"]
    return {"mtu": link["mtu"], "flags": flags, "addresses": addresses, "route": route}


def cpu_seconds(host: Host) -> float:
    """User and system time of the daemon's process (proc(5))."""
    assert host.daemon
    with open(f"/proc/{host.daemon.pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def worker_seconds(host: Host) -> float:
    """CPU time of the pump's worker."""
    return float(host.status()["stats"]["cpu_ns"]) / 1e9


FAULTS: dict[str, tuple[Callable[[Scene], None], str]] = {
    "device set down": (
        lambda scene: scene.ip("link set flannel0 down"),
        "repaired flannel0: it was down",
    ),
    "device deleted": (
        Scene.delete_device,
        "flannel0 had been removed by something else on this host",
    ),
    "address removed": (
        lambda scene: scene.ip(f"address del {scene.device_address} dev flannel0"),
        "its address 10.1.",
    ),
    "route removed": (
        lambda scene: scene.ip(f"route del {NETWORK}"),
        f"repaired flannel0: its route to {NETWORK} was missing",
    ),
    "route replaced": (
        lambda scene: scene.ip(f"route replace {NETWORK} via 172.30.0.9 dev eth0"),
        f"was missing beside {NETWORK} via 172.30.0.9 dev eth0",
    ),
    "route set before": (
        lambda scene: scene.ip(f"route prepend unreachable {NETWORK}"),
        f"came after unreachable {NETWORK}",
    ),
    "MTU changed": (
        lambda scene: scene.ip("link set flannel0 mtu 1300"),
        "repaired flannel0: its MTU was 1300",
    ),
    "socket shut down": (
        Scene.shut_down_socket,
        "the UDP socket had been removed by something else on this host",
    ),
    "socket shut down for reading": (
        lambda scene: scene.shut_down_socket(socket.SHUT_RD),
        "the UDP socket had been removed by something else on this host",
    ),
    "socket shut down for writing": (
        lambda scene: scene.shut_down_socket(socket.SHUT_WR),
        "the UDP socket had been removed by something else on this host",
    ),
}

HARMLESS = {"MTU changed"}


@pytest.mark.parametrize("fault", FAULTS)
def test_forwarding_resumes_within_a_second_of_a_fault(scene: Scene, fault: str) -> None:
    inflict, line = FAULTS[fault]
    before, table = network_of(scene.host), routes(scene.host)
    offloads = scene.host.status()["offloads"]
    began, worked = time.monotonic(), worker_seconds(scene.host)
    inflict(scene)
    wait_until(lambda: log_lines(scene.host, line), "the line")
    scene.await_return()
    assert worker_seconds(scene.host) - worked < (time.monotonic() - began) / 2, "it spins"
    assert scene.down_for() < BACK_WITHIN
    assert fault not in HARMLESS or scene.heartbeat.outage() is None
    assert network_of(scene.host) == before
    assert routes(scene.host) == table
    assert scene.host.status()["offloads"] == offloads
    assert unreachable(scene.lab) == []
    # If the repair happens between two steps of the fault, each step has a line.
    warnings = [text.partition("WARNING ")[2] for text in log_lines(scene.host, "WARNING")]
    assert len(set(warnings)) == len(warnings) <= 2


def test_counters_survive_a_deleted_device(scene: Scene) -> None:
    before = scene.host.status()
    scene.delete_device()
    wait_until(lambda: log_lines(scene.host, "made anew"), "the repair")
    scene.await_return()
    after = scene.host.status()
    for name in ("tun_read_packets", "udp_received_packets", "cpu_ns", "wakeups"):
        assert after["stats"][name] > before["stats"][name]
    assert after["peers"][0]["sent_packets"] > before["peers"][0]["sent_packets"]


def test_interface_going_down_is_logged_and_forwarding_resumes(scene: Scene) -> None:
    scene.host.netns.set_link("eth0", state="down")
    wait_until(lambda: log_lines(scene.host, "eth0 is down: nothing can be sent"), "the line")
    scene.host.netns.set_link("eth0", state="up")
    assert scene.await_return() < BACK_WITHIN + ARP_RETRY
    wait_until(lambda: log_lines(scene.host, "eth0 and 172.30.0.1 are back"), "the line")
    assert len(log_lines(scene.host, "eth0 is down")) == 1
    assert network_of(scene.host)["flags"].count("UP") == 1


def test_address_that_is_removed_and_added_ends_no_daemon(scene: Scene) -> None:
    scene.ip("address del 172.30.0.1/24 dev eth0")
    wait_until(lambda: log_lines(scene.host, "172.30.0.1 is gone from eth0"), "the line")
    scene.host.netns.add_address("eth0", IPv4Interface("172.30.0.1/24"))
    assert scene.await_return() < BACK_WITHIN + ARP_RETRY
    wait_until(lambda: log_lines(scene.host, "eth0 and 172.30.0.1 are back"), "the line")


def test_daemon_is_not_ready_while_it_cannot_forward(scene: Scene) -> None:
    """The socket is shut down, and a copy of it still holds the port."""
    with udp_socket_of(scene.host) as stolen:
        with suppress(OSError):
            stolen.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not scene.host.status()["ready"], "not being ready")
        assert "the tunnel is not whole: " in scene.host.status()["reason"]
    wait_until(lambda: scene.host.status()["ready"], "being ready again")
    scene.await_return()


def test_a_shortage_of_descriptors_ends_no_daemon_however_long_it_lasts(scene: Scene) -> None:
    """The device is deleted meanwhile: nothing can be repaired, and yet the daemon does not give up
    as it does where a device cannot be opened for ten seconds."""
    daemon = scene.host.daemon
    assert daemon
    limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    numbers = {int(name) for name in os.listdir(f"/proc/{daemon.pid}/fd")}
    lowest = min(set(range(len(numbers) + 1)) - numbers)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
    scene.delete_device()
    wait_until(lambda: log_lines(scene.host, "Too many open files"), "the line")
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(PATIENCE + 2)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: log_lines(scene.host, "made anew, forwarding goes on"), "the repair")
    scene.await_return()


def test_route_that_bypasses_the_tunnel_is_logged_until_removed(scene: Scene) -> None:
    stray = str(scene.lab.hosts[1].subnet)
    scene.ip(f"route add {stray} via 172.30.0.9")
    line = f"these routes inside {NETWORK} bypass the tunnel: {stray} via 172.30.0.9 dev eth0"
    wait_until(lambda: log_lines(scene.host, line), "the line")
    scene.ip(f"route del {stray}")
    assert scene.await_return() < BACK_WITHIN
    wait_until(lambda: log_lines(scene.host, "no route bypasses the tunnel any more"), "the line")
    assert len(log_lines(scene.host, "bypass")) == 2


def test_repeated_deletion_of_the_route_costs_little_cpu_and_log(scene: Scene) -> None:
    began, before = time.monotonic(), cpu_seconds(scene.host)
    undone = 0
    while undone <= 5 or time.monotonic() - began < 3:
        assert time.monotonic() - began < 60, f"repaired {undone} times only"
        undone += scene.host.run(["ip", "route", "del", NETWORK]).returncode == 0
    used, passed = cpu_seconds(scene.host) - before, time.monotonic() - began
    assert scene.await_return() < BACK_WITHIN
    print(f"undone {undone} times in {passed:.1f} s for {used:.2f} s of CPU")
    assert used < passed / 2  # a loop that never pauses takes all of it
    lines = log_lines(scene.host, "WARNING")
    assert len(lines) <= 6  # fewer when the same was repaired a moment before
    assert "something undoes this again and again" in lines[-1]


def test_repeatedly_deleted_device_ends_the_daemon(pair_lab: Lab) -> None:
    host = pair_lab.hosts[0]
    delete_device_until_exit(host)
    (sentence,) = log_lines(host, "flannel-udp: ")
    assert "flannel0" in sentence  # lost too often, or missing for too long on a busy machine
    host.start_daemon()
    assert unreachable(pair_lab) == []


def test_new_address_ends_the_daemon_and_keeps_the_subnet(pair_lab: Lab) -> None:
    """The last test here, because the host keeps the new address. Connections survive."""
    host, other = pair_lab.hosts
    assert host.daemon
    host.log_path.write_text("")
    subnet, containers = host.subnet, host.containers
    beats = heartbeat_between(host.containers[0], other.containers[0])
    with Starvation(host, other) as starvation, beats as heartbeat:
        host.run(["ip", "address", "del", "172.30.0.1/24", "dev", "eth0"], check=True)
        changed = time.monotonic()
        host.netns.add_address("eth0", IPv4Interface("172.30.0.51/24"))
        assert host.daemon.wait(30) == 1
        ended = time.monotonic()
        assert ended - changed >= GRACE
        assert starvation.net_duration(changed, ended) < GRACE + 1
        (sentence,) = log_lines(host, "flannel-udp: ")
        assert "the address of eth0 has changed from 172.30.0.1 to 172.30.0.51" in sentence
        assert log_lines(host, f"gave back lease {subnet} of 172.30.0.1")
        assert str(subnet).replace("/", "-") not in leases(pair_lab)
        host.address = IPv4Address("172.30.0.51")
        host.start_daemon()
        ready = time.monotonic()
        heartbeat.seconds_until_back(ready)
        wait_until(lambda: routes(other) == {str(subnet): "172.30.0.51"}, "the route's move")
        assert starvation.net_duration(ready, time.monotonic()) < BACK_WITHIN
    assert host.subnet == subnet
    assert host.containers == containers
    assert unreachable(pair_lab) == []

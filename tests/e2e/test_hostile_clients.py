"""Clients that mean harm cost neither the probes an answer nor the overlay a packet."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import await_new_lease, no_packet_lost
from hostile_clients import HEALTH, DrippingClients
from instruments import HEALTH_FLAGS, health
from pings import Pings, lost
from starvation import Starvation

from flannel_udp.lab.lab import Host, Lab

SECONDS = 12.0  # of hostility
READY_WITHIN = 1.0  # seconds, as probes give up
MOST_DESCRIPTORS, MOST_THREADS = 256, 40


def usage(host: Host) -> tuple[int, int]:
    """Descriptors and threads of the daemon."""
    assert host.daemon
    process = Path(f"/proc/{host.daemon.pid}")
    return len(os.listdir(process / "fd")), len(os.listdir(process / "task"))


def probe(host: Host, seconds: float) -> tuple[float, int, int]:
    """Asks /readyz again and again: the longest time until an answer, without that in which the
    machine ran other programs, and the most descriptors and threads."""
    slowest, descriptors, threads = 0.0, 0, 0
    until = time.monotonic() + seconds
    with Starvation(host) as starvation:
        while time.monotonic() < until:
            began = time.monotonic()
            assert health(host, "/readyz") == (200, "flanneld is ready")
            slowest = max(slowest, starvation.net_duration(began, time.monotonic()))
            now = usage(host)
            descriptors, threads = max(descriptors, now[0]), max(threads, now[1])
            time.sleep(0.1)
    return slowest, descriptors, threads


def test_two_thousand_dripping_clients_cost_no_probe_and_no_packet(
    make_lab: Callable[[Lab], Lab],
) -> None:
    lab = make_lab(Lab(2, daemon_args=HEALTH_FLAGS))
    host, other = lab.hosts
    ping = Pings(host.containers[0].netns, other.containers[0].address)
    with ping, DrippingClients(host.netns, HEALTH, 2000) as clients:
        slowest, descriptors, threads = probe(host, SECONDS)
        answered = ping.stop()
    print(f"{slowest:.3f} s, {descriptors} descriptors, {threads} threads, {clients.made} made")
    assert clients.made >= 2000
    assert lost(answered) == []
    assert slowest < READY_WITHIN
    assert descriptors < MOST_DESCRIPTORS
    assert threads < MOST_THREADS


@contextmanager
def flickering_containers(host: Host) -> Iterator[list[int]]:
    """Containers start and end one after another, at most fifty a second; yields their count."""
    counts, stopping = [0], threading.Event()
    # As docker does. A bridge without a fixed address takes the lowest of its ports, and what
    # containers send to its last one is lost.
    show = "cat /sys/class/net/docker0/address"
    host.run(["sh", "-c", f"ip link set docker0 address $({show})"], check=True)

    def run() -> None:
        while not stopping.wait(0.02):
            name = f"f{counts[0] % 10}"
            add = f"ip link add {name} type veth peer name {name}p; ip link set {name} up"
            host.run(["sh", "-c", f"{add}; ip link set {name} master docker0; ip link del {name}"])
            counts[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counts
    finally:
        stopping.set()
        thread.join()


def test_a_flood_with_few_descriptors_costs_no_packet(make_lab: Callable[[Lab], Lab]) -> None:
    """Connections to the health port, and containers that come and go."""
    lab = make_lab(Lab(2, daemon_args=HEALTH_FLAGS))
    host, other = lab.hosts
    assert host.daemon
    resource.prlimit(host.daemon.pid, resource.RLIMIT_NOFILE, (256, 256))
    ping = Pings(host.containers[0].netns, other.containers[0].address)
    flood = DrippingClients(host.netns, HEALTH, 500, every=0.5)
    with ping, no_packet_lost(lab.hosts), flood, flickering_containers(host) as containers:
        slowest, descriptors, threads = probe(host, SECONDS)
        await_new_lease(lab.hosts, lab.etcdctl, lab.prefix)  # its control plane works too
        answered = ping.stop()
    print(f"{slowest:.3f} s, {descriptors} descriptors, {threads} threads, {containers} starts")
    assert flood.made > 2000
    assert containers[0] > 50
    assert lost(answered) == []
    assert slowest < READY_WITHIN
    assert descriptors < 256
    assert threads < MOST_THREADS
    assert host.daemon.poll() is None

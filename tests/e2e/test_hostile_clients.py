"""Clients that mean harm cost neither the probes an answer nor the overlay a packet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from hostile_clients import DrippingClients
from instruments import HEALTH_FLAGS, health
from pings import Pings, lost

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
    """Asks /readyz again and again: the longest time until an answer, and the most descriptors and
    threads."""
    slowest, descriptors, threads = 0.0, 0, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert health(host, "/readyz") == (200, "flanneld is ready")
        slowest = max(slowest, time.monotonic() - began)
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
    with ping, DrippingClients(host.netns, ("127.0.0.1", 8080), 2000) as clients:
        slowest, descriptors, threads = probe(host, SECONDS)
        answered = ping.stop()
    print(f"{slowest:.3f} s, {descriptors} descriptors, {threads} threads, {clients.made} made")
    assert clients.made >= 2000
    assert lost(answered) == []
    assert slowest < READY_WITHIN
    assert descriptors < MOST_DESCRIPTORS
    assert threads < MOST_THREADS

"""Memory under lasting traffic and table changes.

``--soak-seconds`` makes it longer, and so finds smaller leaks: ``make soak`` lasts five minutes.
"""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from instruments import EtcdWriter
from test_table_swaps import RATE, Churn

from flannel_udp.lab.host import Host
from flannel_udp.lab.lab import Lab

WARM_UP = 10.0  # seconds in which caches and arenas fill
# How many bytes a daemon may grow by: some pages that still fill, and for each change of a table
# less than the size of any object that it could leak.
SETTLING, PER_CHANGE = 128 << 10, 50


def memory(host: Host) -> int:
    """Bytes of the daemon's private memory, of Python and the pump."""
    assert host.daemon is not None
    status = Path(f"/proc/{host.daemon.pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def keep_sending(lab: Lab, stop: threading.Event) -> float:
    """Runs TCP between two containers until stopped; returns the slowest round in Gbit/s."""
    ends = lab.hosts[0].containers[0], lab.hosts[1].containers[0]
    slowest = float("inf")
    while not stop.is_set():
        slowest = min(slowest, lab.throughput(*ends, seconds=2))
    return slowest


def run(lab: Lab, churn: Churn, seconds: float) -> tuple[list[int], int]:
    """Changes routes for so long; returns each daemon's peak memory, and the changes."""
    peaks = [0] * len(lab.hosts)
    started, count, looks = time.monotonic(), 0, 0
    while (elapsed := time.monotonic() - started) < seconds:
        if count <= elapsed * RATE:
            churn.step()
            count += 1
        else:
            time.sleep(count / RATE - elapsed)
        if looks <= elapsed:
            looks += 1
            peaks = [max(peak, memory(host)) for peak, host in zip(peaks, lab.hosts, strict=True)]
    return peaks, count


def test_memory_does_not_grow_under_traffic_and_table_changes(
    lab: Lab, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("--soak-seconds")
    churn, stop = Churn(lab, EtcdWriter(lab), seed=3), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        traffic = pool.submit(keep_sending, lab, stop)
        try:
            run(lab, churn, WARM_UP)
            before, _ = run(lab, churn, seconds / 3)
            _, between = run(lab, churn, seconds / 3)
            after, changes = run(lab, churn, seconds / 3)
        finally:
            stop.set()
        assert traffic.result() > 0
    print(f"most memory in the first and in the last third, bytes: {before}, {after}")
    growth = [late - early for early, late in zip(before, after, strict=True)]
    assert changes > 0.5 * RATE * seconds / 3
    assert max(growth) < SETTLING + PER_CHANGE * (between + changes)

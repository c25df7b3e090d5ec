"""Measures how long programs were ready to run while the machine ran others."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from flannel_udp.lab.lab import Host

_INTERVAL = 0.05  # seconds between two samples


class Starvation:
    """Samples this process and the daemons of the hosts, also those that are started meanwhile.

    Owns a thread from ``__enter__`` to ``__exit__``. Times are those of ``time.monotonic()``.
    """

    def __init__(self, *hosts: Host) -> None:
        self._hosts = hosts
        self._waits: dict[Path, int] = {}
        self._stolen = _stolen()
        self._samples: list[tuple[float, float]] = []  # time, and seconds starved until then
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Starvation:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def net_duration(self, began: float, ended: float) -> float:
        """Seconds from ``began`` to ``ended``, without those spent waiting for a processor."""
        samples = list(self._samples)
        before = max((starved for at, starved in samples if at <= began), default=0.0)
        until = min((starved for at, starved in samples if at >= ended), default=samples[-1][1])
        return ended - began - (until - before)

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL):
            self._sample()

    def _sample(self) -> None:
        """Adds the longest wait of a thread since the last sample: threads act one after the other.
        The kernel counts a wait when it ends, so it is limited to the time since that sample."""
        waits, stolen, now = self._runnable(), _stolen(), time.monotonic()
        starved = 0.0
        if self._samples:
            at, starved = self._samples[-1]
            longest = max(ns - self._waits.get(task, 0) for task, ns in waits.items()) * 1e-9
            starved += min(longest + stolen - self._stolen, now - at)
        self._samples.append((now, starved))
        self._waits, self._stolen = waits, stolen

    def _runnable(self) -> dict[Path, int]:
        """Nanoseconds for which each thread was ready and did not run (proc(5), schedstat)."""
        pids = [os.getpid(), *(host.daemon.pid for host in self._hosts if host.daemon)]
        waits = {}
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with suppress(OSError):  # the thread has ended
                    waits[task] = int((task / "schedstat").read_text().split()[1])
        return waits


def _stolen() -> float:
    """Seconds that the hypervisor gave to other machines."""
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")

"""How long programs were ready to run while the machine ran others, which is no fault of theirs."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from flannel_udp.lab.lab import Host

_INTERVAL = 0.05  # seconds between two looks


class Starvation:
    """Watches this process and the daemons of the hosts, also those that are started meanwhile.

    Owns a thread from ``__enter__`` to ``__exit__``. Times are those of ``time.monotonic()``.
    """

    def __init__(self, *hosts: Host) -> None:
        self._hosts = hosts
        self._waits: dict[Path, int] = {}
        self._stolen = _stolen()
        self._looks: list[tuple[float, float]] = []  # when, and the seconds starved until then
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Starvation:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def net(self, began: float, ended: float) -> float:
        """The seconds something took, less those in which it waited for a processor: next to none
        on a machine that has one to spare."""
        looks = list(self._looks)
        before = max((starved for at, starved in looks if at <= began), default=0.0)
        until = min((starved for at, starved in looks if at >= ended), default=looks[-1][1])
        return ended - began - (until - before)

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        """One thread acts after the other, so that since the last look the longest wait counts; as
        far as it was since then, for the kernel counts a wait when it ends."""
        waits, stolen, now = self._runnable(), _stolen(), time.monotonic()
        starved = 0.0
        if self._looks:
            at, starved = self._looks[-1]
            longest = max(ns - self._waits.get(task, 0) for task, ns in waits.items()) * 1e-9
            starved += min(longest + stolen - self._stolen, now - at)
        self._looks.append((now, starved))
        self._waits, self._stolen = waits, stolen

    def _runnable(self) -> dict[Path, int]:
        """Nanoseconds in which a thread was ready and did not run (proc(5), schedstat)."""
        pids = [os.getpid(), *(host.daemon.pid for host in self._hosts if host.daemon)]
        waits = {}
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with suppress(OSError):  # it has ended
                    waits[task] = int((task / "schedstat").read_text().split()[1])
        return waits


def _stolen() -> float:
    """Seconds that the hypervisor gave to others."""
    with open("/proc/stat") as stat:
        return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")

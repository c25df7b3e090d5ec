"""Rates: the difference of the counters in two statuses, by time (pure)."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT = 60  # statuses


@dataclass(slots=True)
class Traffic:
    """Bytes a second in each direction, newest last, and packets dropped a second now."""

    sent: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    received: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    dropped_packets: float = 0.0


class History:
    """Rates from one status to the next. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self.peers: dict[str, Traffic] = {}
        self.whole = Traffic()
        self.cpu = 0.0  # of the worker thread; 1.0 is one processor
        self._last: Mapping[str, Any] | None = None
        self._at = 0.0

    def observe(self, status: Mapping[str, Any], at: float) -> None:
        """``at`` is in seconds, on a monotonic clock."""
        last, seconds = self._last, at - self._at
        if "stats" not in status:
            self._last = None
            return
        if last is None or status["stats"]["wakeups"] < last["stats"]["wakeups"]:
            # The first status, or that of another daemon: no difference to compute.
            self._last, self._at = status, at
            return
        if seconds <= 0:
            return
        stats, before = status["stats"], last["stats"]
        self.cpu = (stats["cpu_ns"] - before["cpu_ns"]) / 1e9 / seconds
        whole = Traffic(self.whole.sent, self.whole.received)
        known = {peer["public_ip"]: peer for peer in last["peers"]}
        peers = {}
        for peer in status["peers"]:
            name = peer["public_ip"]
            earlier = known.get(name, peer)
            rate = {key: max(0, peer[key] - earlier[key]) / seconds for key in _COUNTED}
            traffic = peers[name] = self.peers.get(name) or Traffic()
            traffic.sent.append(rate["sent_bytes"])
            traffic.received.append(rate["received_bytes"])
            traffic.dropped_packets = rate["dropped_packets"]
        whole.sent.append(sum(traffic.sent[-1] for traffic in peers.values()))
        whole.received.append(sum(traffic.received[-1] for traffic in peers.values()))
        whole.dropped_packets = sum(
            max(0, value - before.get(name, 0)) / seconds
            for name, value in stats.items()
            if name.startswith("drop_")
        )
        self.peers, self.whole = peers, whole
        self._last, self._at = status, at


_COUNTED = ("sent_bytes", "received_bytes", "dropped_packets")

"""Counters become rates: what happened between two looks at the status (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEPT = 60  # looks


@dataclass(slots=True)
class Traffic:
    """Bytes a second of one direction pair, newest last, and packets a second now."""

    sent: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    received: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    sent_packets: float = 0.0
    received_packets: float = 0.0
    dropped_packets: float = 0.0


class History:
    """Takes one status after the other. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self.peers: dict[str, Traffic] = {}
        self.whole = Traffic()
        self.cpu = 0.0  # of one processor, used by the thread that carries packets
        self._last: Mapping[str, Any] | None = None
        self._at = 0.0

    def observe(self, status: Mapping[str, Any], at: float) -> None:
        """``at`` is in seconds, on any clock that does not jump."""
        last, seconds = self._last, at - self._at
        if "stats" not in status:
            self._last = None
            return
        if last is None or status["stats"]["wakeups"] < last["stats"]["wakeups"]:
            # The first look, or another daemon: nothing to compare with.
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
            traffic.sent_packets = rate["sent_packets"]
            traffic.received_packets = rate["received_packets"]
            traffic.dropped_packets = rate["dropped_packets"]
            whole.sent_packets += traffic.sent_packets
            whole.received_packets += traffic.received_packets
        whole.sent.append(sum(traffic.sent[-1] for traffic in peers.values()))
        whole.received.append(sum(traffic.received[-1] for traffic in peers.values()))
        whole.dropped_packets = sum(
            max(0, value - before.get(name, 0)) / seconds
            for name, value in stats.items()
            if name.startswith("drop_")
        )
        self.peers, self.whole = peers, whole
        self._last, self._at = status, at


_COUNTED = ("sent_packets", "sent_bytes", "received_packets", "received_bytes", "dropped_packets")

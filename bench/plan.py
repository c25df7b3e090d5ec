"""What is measured, in which units, and how long each measurement may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Underlay = Literal["direct", "wire"]
UNDERLAYS: tuple[Underlay, ...] = ("direct", "wire")

BUSY_POLL_US = 50
WAYS = {
    "plain": "no overlay",
    "vxlan": "kernel VXLAN",
    "auto": "auto",
    "busy": f"auto, busy poll {BUSY_POLL_US} us",
    "tso": "tso",
    "none": "none",
    "loop": "one read, one send",
}
FURTHER_DAEMONS = {  # beside those of the way auto
    "busy": ("--busy-poll-us", str(BUSY_POLL_US)),
    "tso": ("--offload", "tso"),
    "none": ("--offload", "none"),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure is kept as seconds per something, and shown as people speak of it.

    ``scale / seconds`` is what is shown of a rate, ``scale * seconds`` of a duration.
    """

    title: str
    unit: str
    scale: float
    is_rate: bool = True
    of_pump: bool = False  # only daemons have it

    def shown(self, seconds: float) -> float:
        return self.scale / seconds if self.is_rate else self.scale * seconds


FIGURES = {
    "tcp1": Figure("TCP, 1 stream", "Gbit/s", 8),  # seconds per 10^9 bytes
    "tcp4": Figure("TCP, 4 streams", "Gbit/s", 8),
    "udp64": Figure("UDP, 64 bytes, received", "1000/s", 1e-3),  # seconds per datagram
    "udp1400": Figure("UDP, 1,400 bytes, received", "1000/s", 1e-3),
    "rtt_p50": Figure("Round trip, median", "us", 1e6, is_rate=False),
    "rtt_p99": Figure("Round trip, 99th percentile", "us", 1e6, is_rate=False),
    "loaded_rtt": Figure("Round trip beside 1 TCP stream, median", "us", 1e6, is_rate=False),
    "cpu": Figure("CPU of both pumps, TCP", "s/GB", 1, is_rate=False, of_pump=True),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds of one measurement; 0 leaves it out."""

    rounds: int
    part_rounds: int  # of the parts, which take milliseconds
    ways: tuple[str, ...]
    tcp1: int
    tcp4: int
    udp64: float
    udp1400: float
    round_trip: float

    def figures(self, way: str) -> list[str]:
        """What the plan measures of a way."""
        left_out = {name for name in ("tcp4", "udp1400") if not getattr(self, name)}
        has_pump = way == "auto" or way in FURTHER_DAEMONS
        return [
            name
            for name, figure in FIGURES.items()
            if name not in left_out and (has_pump or not figure.of_pump)
        ]


PLANS = {
    "full": Plan(5, 15, tuple(WAYS), tcp1=2, tcp4=2, udp64=1, udp1400=1, round_trip=0.5),
    "quick": Plan(1, 3, tuple(WAYS), tcp1=1, tcp4=1, udp64=0.3, udp1400=0.3, round_trip=0.2),
    "gate": Plan(7, 15, ("vxlan", "auto"), tcp1=1, tcp4=0, udp64=0.5, udp1400=0, round_trip=0.5),
}

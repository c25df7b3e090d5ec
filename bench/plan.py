"""What is measured, in which units, and how long each measurement takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Underlay = Literal["direct", "wire"]
UNDERLAYS: tuple[Underlay, ...] = ("direct", "wire")

BUSY_POLL_US = 200
DATAPATHS = {
    "plain": "no overlay",
    "vxlan": "kernel VXLAN",
    "auto": "auto",
    "busy": f"busy poll {BUSY_POLL_US} us",
    "tso": "tso",
    "none": "none",
    "loop": "one read, one send",
    "copies": "copies alone",
}


@dataclass(frozen=True, slots=True)
class Daemons:
    """Additional arguments and environment of a datapath's daemons."""

    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


DAEMONS = {
    "auto": Daemons(),
    "busy": Daemons(("--busy-poll-us", str(BUSY_POLL_US))),
    "tso": Daemons(("--offload", "tso")),
    "none": Daemons(("--offload", "none")),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure is stored as seconds per unit, and shown in its usual unit.

    A rate is shown as ``scale / seconds``, a duration as ``scale * seconds``.
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
    "loaded_rtt": Figure("Round trip beside TCP", "us", 1e6, is_rate=False),
    "cpu": Figure("CPU of both pumps, TCP", "s/GB", 1, is_rate=False, of_pump=True),
}
MEASUREMENTS = {  # the figures that each measurement gives
    "tcp1": ("tcp1", "loaded_rtt", "cpu"),
    "tcp4": ("tcp4",),
    "udp64": ("udp64",),
    "udp1400": ("udp1400",),
    "rtt": ("rtt_p50", "rtt_p99"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """``seconds`` is the duration of each measurement; others are not measured.

    ``part_rounds`` is the number of rounds of the parts, which take milliseconds. A datapath in
    ``daemons`` is a pair of daemons.
    """

    rounds: int
    part_rounds: int
    datapaths: tuple[str, ...]
    seconds: Mapping[str, float]
    daemons: Mapping[str, Daemons] = field(default_factory=lambda: DAEMONS)

    def figures(self, datapath: str) -> list[str]:
        """The figures that the plan measures of a datapath."""
        return [
            figure
            for measurement in self.seconds
            for figure in MEASUREMENTS[measurement]
            if datapath in self.daemons or not FIGURES[figure].of_pump
        ]


PLANS = {
    "full": Plan(
        5, 15, tuple(DATAPATHS), {"tcp1": 1, "tcp4": 1, "udp64": 0.6, "udp1400": 0.6, "rtt": 0.5}
    ),
    "quick": Plan(
        1, 3, tuple(DATAPATHS), {"tcp1": 1, "tcp4": 1, "udp64": 0.3, "udp1400": 0.3, "rtt": 0.2}
    ),
    "gate": Plan(7, 7, ("vxlan", "auto", "copies"), {"tcp1": 1, "udp64": 0.5, "rtt": 0.5}),
}

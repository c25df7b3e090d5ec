"""A clock that only ``advance`` moves.

The benchmarks interleave: A B C A B C. pytest-benchmark runs all rounds of A before those of B, so
each round is measured before, and this clock replays its duration.
"""

from __future__ import annotations

_now = 0.0


def now() -> float:
    """Seconds."""
    return _now


def advance(seconds: float) -> None:
    global _now
    _now += seconds

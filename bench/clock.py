"""A clock that moves only when told to.

The benchmarks interleave: A B C A B C. pytest-benchmark runs all rounds of A before those of B, so
each round is measured beforehand and its duration played back on this clock.
"""

from __future__ import annotations

_now = 0.0


def now() -> float:
    """Seconds."""
    return _now


def advance(seconds: float) -> None:
    global _now
    _now += seconds

"""Times small pieces of work in turn, for several rounds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """``work`` repeats something ``times`` times; ``prepare`` runs before it and is not timed."""

    times: int
    work: Callable[[], object]
    prepare: Callable[[], object] = lambda: None

    def seconds(self) -> float:
        """The seconds of one repetition."""
        self.prepare()
        start = time.perf_counter()
        self.work()
        return (time.perf_counter() - start) / self.times


def interleave(parts: Mapping[str, Part], rounds: int) -> dict[str, list[float]]:
    """The seconds of every part in every round, after one more round that warms up."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(1 + rounds):
        for name, part in parts.items():
            found[name].append(part.seconds())
    return {name: seconds[1:] for name, seconds in found.items()}

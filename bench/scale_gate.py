"""Judges the results of bench/scale.py: ``python -m bench.scale_gate``.

Reads docs/scale.json; prints what is beyond its limit or missing, and exits with 1 then.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import median

from bench.scale import SIZES, Figures, quantile, read

RESULTS = Path(__file__).parent.parent / "docs/scale.json"

MOST_START = 6.0  # seconds
MOST_DELAY = 0.020  # seconds, of 99 % of the changes
LEAST_RATE = 980.0  # changes a second, of a thousand requested
LEAST_SECONDS = 29.0  # of changes, of thirty requested
# CPU per change, from a thousand leases on; below, the cost per transaction dominates.
FLAT_FROM, MOST_GROWTH = 1_000, 2.0

LIMITS = (
    f"a start within {MOST_START:g} s; 99 % of the changes routes within {MOST_DELAY * 1e3:g} ms,"
    " a thousand changes a second for thirty seconds; no ping lost; from"
    f" {FLAT_FROM:,} leases on, CPU for a change that is less than {MOST_GROWTH:g} times as much"
    " with any number of leases as with another"
)


def objections(results: Collection[Figures]) -> Iterator[str]:
    """One sentence for each figure that is beyond its limit."""
    if missing := set(SIZES) - {each.leases for each in results}:
        yield f"not measured: {', '.join(f'{size:,}' for size in sorted(missing))} leases"
    for each in results:
        for objection in _of_one(each):
            yield f"{each.leases:,} leases: {objection}"
    costs = [each.cpu_per_change for each in results if each.leases >= FLAT_FROM]
    if costs and max(costs) >= MOST_GROWTH * min(costs):
        yield (
            f"CPU for a change is from {min(costs) * 1e6:.0f} to {max(costs) * 1e6:.0f} us: it"
            " depends on the number of leases"
        )


def _of_one(figures: Figures) -> Iterator[str]:
    start, delay = median(figures.starts), quantile(figures.delays, 0.99)
    seconds = figures.changes / figures.changes_per_second
    if start >= MOST_START:
        yield f"a start takes {start:.2f} s"
    if delay >= MOST_DELAY:
        yield f"99 % of the changes are routes after {delay * 1e3:.1f} ms"
    if figures.changes_per_second < LEAST_RATE or seconds < LEAST_SECONDS:
        yield f"{figures.changes_per_second:.0f} changes a second for {seconds:.0f} s"
    if figures.busy.unanswered:
        yield f"{figures.busy.unanswered} of {figures.busy.answered:,} pings are lost"


def main() -> int:
    found = list(objections(read(RESULTS).values()))
    print("\n".join(found) or f"within the limits: {LIMITS}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

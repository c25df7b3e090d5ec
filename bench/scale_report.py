"""Page and chart of what bench/scale.py measured: ``python -m bench.scale_report``.

Reads docs/scale.json, writes docs/scale.md and docs/scale.svg.
"""

from __future__ import annotations

import os
import platform
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pygal
from pygal.style import CleanStyle

from bench.scale import BATCH, SIZES, STARTS, Figures, quantile, read
from bench.scale_gate import LIMITS

DOCS = Path(__file__).parent.parent / "docs"

_HEAD = f"""\
# Scale

Written by `make bench-scale`, from [scale.json](scale.json); do not edit it by hand.

Two hosts in network namespaces with a daemon each, and etcd with its data on tmpfs, share the
machine's processors. etcd holds this many leases; one daemon is started {STARTS} times. Then leases
change, up to {BATCH} in one transaction, while pings go from a container of one host to one of the
other. As under systemd, a service manager stores the descriptors, and the daemons keep recording
their state for the next process.

- **start**: from the start of the process to readiness, with all routes in the table; median.
- **memory**: resident, right after the start, and the peak.
- **to route**: from etcd's answer to the write until the kernel saw the first packet leave on the
  new route. etcd answers the daemon and the writer at the same time, so 0 means that the route
  existed before the writer had its answer. A packet is sent every millisecond.
- **CPU**: of the daemon per change, without its pump.
- **other traffic**: round trips of the pings while leases change, and in brackets before.

Limits of `make bench-scale`: {textwrap.fill(LIMITS, 100)}.

![Cost by the number of leases](scale.svg)
"""

_COLUMNS: dict[str, Callable[[Figures], str]] = {
    "leases": lambda each: f"{each.leases:,}",
    "start, s": lambda each: f"{median(each.starts):.2f}",
    "memory, MB": lambda each: f"{each.memory / 1e6:.0f}, {each.memory_most / 1e6:.0f}",
    "changes a second": lambda each: f"{each.changes_per_second:.0f}",
    "changes": lambda each: f"{each.changes:,}",
    "to route, ms: median": lambda each: f"{quantile(each.delays, 0.5) * 1e3:.1f}",
    "99 %": lambda each: f"{quantile(each.delays, 0.99) * 1e3:.1f}",
    "most": lambda each: f"{max(each.delays) * 1e3:.1f}",
    "CPU, us": lambda each: f"{each.cpu_per_change * 1e6:.0f}",
    "other traffic, us: median": lambda each: _pair(each.busy.median, each.quiet.median),
    "99 % ": lambda each: _pair(each.busy.p99, each.quiet.p99),
    "lost": lambda each: f"{each.busy.unanswered} of {each.busy.answered:,}",
}

_CURVES: dict[str, Callable[[Figures], float]] = {
    "Start with all routes, ms": lambda each: median(each.starts) * 1e3,
    "Memory, MB": lambda each: each.memory / 1e6,
    "CPU for one lease change, us": lambda each: each.cpu_per_change * 1e6,
    "Change to route, median, ms": lambda each: quantile(each.delays, 0.5) * 1e3,
    "Change to route, 99 %, ms": lambda each: quantile(each.delays, 0.99) * 1e3,
}


def _pair(busy: float, quiet: float) -> str:
    return f"{busy * 1e6:.0f} ({quiet * 1e6:.0f})"


def page(results: Sequence[Figures]) -> str:
    """docs/scale.md."""
    rows = [list(_COLUMNS), ["---"] * len(_COLUMNS)]
    rows += [[cell(each) for cell in _COLUMNS.values()] for each in results]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    machine = f"{os.cpu_count()} processors ({platform.machine()}), Linux {platform.release()}"
    return f"{_HEAD}\n{machine}, Python {platform.python_version()}.\n\n{table}"


def chart(results: Sequence[Figures]) -> bytes:
    """An SVG: cost against the number of leases, both logarithmic."""
    picture = pygal.Line(
        title="Cost by the number of leases",
        x_title="leases",
        x_labels=[f"{each.leases:,}" for each in results],
        logarithmic=True,
        value_formatter=lambda value: f"{value:,.3g}",
        legend_at_bottom=True,
        legend_at_bottom_columns=2,
        width=900,
        height=560,
        style=CleanStyle(font_family="sans-serif", title_font_size=20, legend_font_size=15),
        js=(),
        no_prefix=True,
    )
    for name, of in _CURVES.items():
        picture.add(name, [of(each) for each in results])
    return bytes(picture.render())


def main() -> int:
    results = list(read(DOCS / "scale.json").values())
    if missing := set(SIZES) - {each.leases for each in results}:
        print(f"{DOCS / 'scale.json'} lacks {sorted(missing)} leases", file=sys.stderr)
        return 1
    (DOCS / "scale.md").write_text(page(results))
    (DOCS / "scale.svg").write_bytes(chart(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

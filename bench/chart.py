"""The chart of the overlay relative to kernel VXLAN."""

from __future__ import annotations

from collections.abc import Callable, Container

import pygal
from pygal.style import CleanStyle

from bench.plan import DATAPATHS, UNDERLAYS

BARS = {  # all are rates: longer is better
    "tcp1": "TCP, 1 stream",
    "tcp4": "TCP, 4 streams",
    "udp64": "UDP, 64 bytes",
    "udp1400": "UDP, 1,400 bytes",
    "rtt_p50": "Round trips/s",
}
COLORS = {
    "plain": "#b8bcc2",
    "vxlan": "#6b7280",
    "auto": "#1f6fd6",
    "busy": "#7fb3f5",
    "tso": "#1f9d6b",
    "none": "#e0a526",
    "loop": "#c4513d",
    "copies": "#8a63d2",
}
BASELINE = "vxlan"
STEP = 0.5


def draw(ratio: Callable[[str, str], float], names: Container[str]) -> bytes:
    """Returns an SVG. ``ratio`` is of the seconds of two names; only ``names`` were measured."""
    groups = [(underlay, figure) for underlay in UNDERLAYS for figure in BARS]
    bars: dict[str, list[float | None]] = {}
    for datapath, title in DATAPATHS.items():
        bars[title] = []
        for underlay, figure in groups:
            name, baseline = f"{underlay}/{figure}/{datapath}", f"{underlay}/{figure}/{BASELINE}"
            known = name in names and baseline in names
            bars[title].append(1 / ratio(name, baseline) if known else None)
    longest = max(bar for each in bars.values() for bar in each if bar is not None)
    picture = pygal.Bar(
        title="Times as fast as kernel VXLAN",
        x_labels=[f"{BARS[figure]}, {underlay}" for underlay, figure in groups],
        y_labels=[STEP * number for number in range(int(longest / STEP) + 2)],
        x_label_rotation=25,
        truncate_label=-1,
        truncate_legend=-1,
        legend_at_bottom=True,
        legend_at_bottom_columns=len(DATAPATHS),
        legend_box_size=14,
        width=1200,
        height=560,
        margin_bottom=30,
        value_formatter=lambda value: f"{value:.2f}",
        style=CleanStyle(
            background="#ffffff",
            plot_background="#ffffff",
            colors=tuple(COLORS[datapath] for datapath in DATAPATHS),
            font_family="sans-serif",
            title_font_size=20,
            label_font_size=13,
            legend_font_size=13,
            opacity="1",
        ),
        js=(),
    )
    picture.uuid = "benchmarks"  # a fixed id, so that the same figures give the same file
    for title, heights in bars.items():
        picture.add(title, heights)
    return bytes(picture.render())

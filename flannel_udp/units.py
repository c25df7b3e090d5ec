"""Numbers formatted for people (pure)."""

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_SCALE = ("", "k", "M", "G", "T")


def scaled(value: float, unit: str = "") -> str:
    """In steps of 1,000 with three digits: ``1.23 MB``, ``12.3 k``, ``999``."""
    step = 0
    while value >= 999.5 and step < len(_SCALE) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {_SCALE[step]}{unit}".rstrip()


def span(seconds: float) -> str:
    """The two largest units: ``23 h 59 min``, ``4 s``."""
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    shown = [f"{value} {unit}" for value, unit in parts if value][:2]
    return " ".join(shown) or "0 s"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as bars, the highest of them full; right-aligned."""
    last = values[-width:]
    highest = max(last, default=0)
    if highest <= 0:
        return (" " * len(last)).rjust(width)
    top = len(_BARS) - 1
    return "".join(_BARS[round(value / highest * top)] if value else " " for value in last).rjust(
        width
    )

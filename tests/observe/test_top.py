"""``top`` fits into the narrowest terminal, whatever it shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from flannel_udp.backends.pump.pump import STAT_NAMES
from flannel_udp.observe.rates import History
from flannel_udp.observe.top import picture

LINES, COLUMNS = 24, 80
STATUSES = 20


def status(second: int, peers: int = 30) -> dict[str, Any]:
    """The widest values; what a peer sends, receives and drops grows with its number."""
    shown_peers = [
        {
            "public_ip": f"198.251.100.{100 + number}",
            "subnets": [f"100.127.{100 + number}.252/30", *["100.64.0.0/30"] * (number % 10)],
            **{f"{direction}_packets": number * second**2 for direction in ("sent", "received")},
            **{
                f"{direction}_bytes": number * second**2 * 1000
                for direction in ("sent", "received")
            },
            "dropped_packets": 1000 * number * second,
        }
        for number in range(1, peers + 1)
    ]
    return {
        **{"version": "0.1.0", "ready": True, "reason": None},
        **{"device": "flannel0", "subnet": "100.127.255.252/30", "interface": "enp130s0f1np1v2"},
        **{"public_ip": "198.251.100.100", "offloads": ["TSO", "USO", "UDP GSO", "UDP GRO"]},
        "etcd": {"state": "connecting"},
        "stats": dict.fromkeys(STAT_NAMES, 123_456_789 + second) | {"routes": 65_536},
        "peers": shown_peers,
    }


def shown(now: dict[str, Any], history: History, trouble: str = "") -> list[str]:
    """The lines on a screen without colours."""
    screen = Console(file=io.StringIO(), width=COLUMNS, height=LINES, color_system=None)
    with screen.capture() as captured:
        screen.print(picture(now, history, trouble, LINES))
    return captured.get().splitlines()


def peers_in(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("198.251")]


@pytest.fixture
def lines() -> list[str]:
    history = History()
    for second in range(STATUSES):
        history.observe(status(second), second)
    return shown(status(STATUSES - 1), history)


def test_the_widest_values_are_shown_in_full(lines: list[str]) -> None:
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    assert "…" not in "".join(lines)
    assert len(peers_in(lines)) == LINES - 9
    first, second, *_ = (" ".join(line.split()) for line in peers_in(lines))
    assert first.startswith("198.251.100.130 100.127.130.252/30 1.11 MB ")
    assert second.startswith("198.251.100.129 100.127.129.252/30 +9 1.07 MB ")
    assert "TSO, USO, UDP GSO, UDP GRO" in "".join(lines)


def test_the_newest_rate_is_the_last_bar(lines: list[str]) -> None:
    """The traffic grows, so the newest bar is the highest."""
    assert all(line.count("▅▆▆▆▇▇██ ") == 2 for line in peers_in(lines))


def test_each_peers_drops_are_shown(lines: list[str]) -> None:
    assert [line.split()[-2:] for line in peers_in(lines)[:2]] == [["30.0", "k"], ["29.0", "k"]]


def test_reasons_for_drops_that_do_not_fit_are_counted(lines: list[str]) -> None:
    (line,) = [line for line in lines if line.startswith("drops ")]
    count = sum(name.startswith("drop_") for name in STAT_NAMES)
    assert line.count(" 123,456,") == 2
    assert line.endswith(f" and {count - 2} more")


def test_a_daemon_that_does_not_answer_is_reported() -> None:
    starting = {"version": "0.1.0", "ready": False, "reason": "starting" * 20}
    lines = shown(starting, History(), "no daemon runs here")
    assert max(map(len, lines)) <= COLUMNS
    assert lines[-1] == "no daemon runs here"

"""What ``top`` shows fits into the narrowest terminal, whatever there is to show."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from flannel_udp.backends.pump.pump import STAT_NAMES
from flannel_udp.observe.rates import History
from flannel_udp.observe.top import picture

LINES, COLUMNS = 24, 80
LOOKS = 20


def status(look: int, peers: int = 30) -> dict[str, Any]:
    """The widest of everything; what a peer sends, receives and loses grows with its number."""
    told = [
        {
            "public_ip": f"198.251.100.{100 + number}",
            "subnets": [f"100.127.{100 + number}.252/30", *["100.64.0.0/30"] * (number % 10)],
            **{f"{way}_packets": number * look**2 for way in ("sent", "received")},
            **{f"{way}_bytes": number * look**2 * 1000 for way in ("sent", "received")},
            "dropped_packets": 1000 * number * look,
        }
        for number in range(1, peers + 1)
    ]
    return {
        **{"version": "0.1.0", "ready": True, "reason": None},
        **{"device": "flannel0", "subnet": "100.127.255.252/30", "interface": "enp130s0f1np1v2"},
        **{"public_ip": "198.251.100.100", "offloads": ["TSO", "USO", "UDP GSO", "UDP GRO"]},
        "etcd": {"state": "connecting"},
        "stats": dict.fromkeys(STAT_NAMES, 123_456_789 + look) | {"routes": 65_536},
        "peers": told,
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
    for look in range(LOOKS):
        history.observe(status(look), look)
    return shown(status(LOOKS - 1), history)


def test_the_widest_of_everything_is_shown_whole(lines: list[str]) -> None:
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    assert "…" not in "".join(lines)
    assert len(peers_in(lines)) == LINES - 9
    first, second, *_ = (" ".join(line.split()) for line in peers_in(lines))
    assert first.startswith("198.251.100.130 100.127.130.252/30 1.11 MB ")
    assert second.startswith("198.251.100.129 100.127.129.252/30 +9 1.07 MB ")
    assert "TSO, USO, UDP GSO, UDP GRO" in "".join(lines)


def test_the_newest_sample_is_seen(lines: list[str]) -> None:
    """The traffic grows, so that the newest is the highest."""
    assert all(line.count("▅▆▆▆▇▇██ ") == 2 for line in peers_in(lines))


def test_each_peers_drops_are_shown(lines: list[str]) -> None:
    assert [line.split()[-2:] for line in peers_in(lines)[:2]] == [["30.0", "k"], ["29.0", "k"]]


def test_reasons_for_drops_that_do_not_fit_are_counted(lines: list[str]) -> None:
    (line,) = [line for line in lines if line.startswith("drops ")]
    count = sum(name.startswith("drop_") for name in STAT_NAMES)
    assert line.count(" 123,456,") == 2
    assert line.endswith(f" and {count - 2} more")


def test_a_daemon_that_is_not_there_yet_is_said() -> None:
    starting = {"version": "0.1.0", "ready": False, "reason": "starting" * 20}
    lines = shown(starting, History(), "no daemon runs here")
    assert max(map(len, lines)) <= COLUMNS
    assert lines[-1] == "no daemon runs here"

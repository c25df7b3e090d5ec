"""Rates computed from the counters of two statuses."""

from __future__ import annotations

from typing import Any

from flannel_udp.observe.rates import KEPT, History


def status(sent: int, *, received: int = 0, wakeups: int = 1, drops: int = 0) -> dict[str, Any]:
    peer = {
        "public_ip": "172.30.0.2",
        "sent_bytes": sent,
        "received_bytes": received,
        "dropped_packets": 0,
    }
    stats = {"wakeups": wakeups, "cpu_ns": sent * 1000, "drop_tun_no_route": drops}
    return {"stats": stats, "peers": [peer]}


def test_a_rate_is_the_difference_divided_by_the_time() -> None:
    history = History()
    history.observe(status(1000), at=10)
    assert not history.peers
    history.observe(status(5000, received=600, drops=4), at=12)
    traffic = history.peers["172.30.0.2"]
    assert ([*traffic.sent], [*traffic.received]) == ([2000], [300])
    assert [*history.whole.sent] == [2000]
    assert history.whole.dropped_packets == 2
    assert history.cpu == 0.002


def test_only_the_newest_rates_are_kept() -> None:
    history = History()
    for second in range(KEPT + 10):
        history.observe(status(second * second), at=second)
    sent = [*history.peers["172.30.0.2"].sent]
    assert len(sent) == KEPT
    assert sent[-2:] == [2 * (KEPT + 8) - 1, 2 * (KEPT + 8) + 1]


def test_a_restarted_daemon_gives_no_negative_rate() -> None:
    history = History()
    history.observe(status(5000, wakeups=50), at=1)
    history.observe(status(6000, wakeups=51), at=2)
    history.observe(status(10, wakeups=2), at=3)
    history.observe(status(20, wakeups=3), at=4)
    assert [*history.peers["172.30.0.2"].sent] == [1000, 10]


def test_no_rate_spans_a_restart_of_the_daemon() -> None:
    history = History()
    history.observe(status(5000), at=1)
    history.observe({"ready": False}, at=2)
    history.observe(status(7000), at=3)
    assert not history.peers


def test_a_new_peer_starts_at_zero_and_a_removed_one_is_forgotten() -> None:
    history = History()
    history.observe(status(5000) | {"peers": []}, at=1)
    history.observe(status(5000), at=2)
    assert [*history.peers["172.30.0.2"].sent] == [0]
    history.observe(status(5000) | {"peers": []}, at=3)
    assert not history.peers

"""What the log says of offloads that the kernel refuses while packets flow."""

from __future__ import annotations

from ipaddress import IPv4Address

from flannel_udp.backends.pump.fallbacks import Fallbacks

A, B, C, D, E = (IPv4Address(f"172.30.0.{number}") for number in range(2, 7))
PEERS = {A, B, C, D, E}


def test_each_refusal_is_told_once_with_the_peer_or_the_protocol() -> None:
    fallbacks = Fallbacks()
    begun, ended = fallbacks.observe(["TCP"], {A}, PEERS, 5.0)
    assert [line.partition(":")[0] for line in begun] == [
        "the kernel refuses TCP superpackets on the tunnel device",
        "the kernel refuses UDP GSO on the way to 172.30.0.2",
    ]
    assert fallbacks.observe(["TCP"], {A}, PEERS, 500.0) == ([], [])
    assert (ended, fallbacks.due) == ([], None)


def test_many_peers_are_one_line() -> None:
    (line,), _ = Fallbacks().observe([], PEERS, PEERS, 5.0)
    assert "on the way to 172.30.0.2, 172.30.0.3, 172.30.0.4 and 2 more:" in line


def test_the_end_is_told_after_a_minute_without_a_refusal() -> None:
    fallbacks = Fallbacks()
    fallbacks.observe(["UDP"], {A}, PEERS, 5.0)
    assert fallbacks.observe([], set(), PEERS, 10.0) == ([], [])
    assert fallbacks.due == 70.0
    assert fallbacks.observe([], set(), PEERS, 69.0) == ([], [])
    _, ended = fallbacks.observe([], set(), PEERS, 70.0)
    assert ended == [
        "the kernel takes UDP superpackets on the tunnel device again",
        "the kernel takes UDP GSO on the way to 172.30.0.2 again",
    ]
    assert fallbacks.due is None
    begun, _ = fallbacks.observe([], {A}, PEERS, 90.0)
    assert len(begun) == 1


def test_a_way_that_takes_some_runs_and_refuses_others_is_told_once() -> None:
    fallbacks = Fallbacks()
    lines = [
        fallbacks.observe([], {A} if second % 20 < 10 else set(), PEERS, float(second))
        for second in range(0, 3600, 5)
    ]
    assert sum(len(begun) for begun, _ in lines) == 1
    assert not any(ended for _, ended in lines)


def test_a_peer_whose_lease_ends_is_forgotten_without_a_word() -> None:
    fallbacks = Fallbacks()
    fallbacks.observe([], {A}, PEERS, 5.0)
    assert fallbacks.observe([], set(), PEERS - {A}, 10.0) == ([], [])
    assert fallbacks.due is None

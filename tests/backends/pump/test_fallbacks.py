"""What the log says of offloads that the kernel refuses while packets flow."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from flannel_udp.backends.pump.fallbacks import Fallbacks, kernel_fault

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


@pytest.mark.parametrize(
    "release",
    [
        "7.0.0-rc1",
        "7.0.0",
        "7.0",
        "7.0.12-arch1-1",
        "7.0.0-31-generic",
        "7.1.0-rc6",
        "7.1.4",
        "7.1.4-200.fc45.x86_64",
        "7.1.4+",
    ],
)
def test_kernels_that_may_mangle_udp_gso_are_named(release: str) -> None:
    assert f"kernel {release} may mangle" in str(kernel_fault(release, ["TSO", "UDP GSO"]))
    assert kernel_fault(release, ["TSO", "UDP GRO"]) is None


@pytest.mark.parametrize(
    "release",
    [
        "6.19.11",
        "6.18.44-fc-v595",
        "5.4.0-216-generic",
        "7.1.5",
        "7.1.5-rc1",
        "7.1.10",
        "7.2.0-rc1",
        "7.10.0",
        "8.0.0",
        "17.0.0",
        "3.10.0-1160.el7",
        "custom",
        "",
    ],
)
def test_other_kernels_have_no_known_fault(release: str) -> None:
    assert kernel_fault(release, ["UDP GSO"]) is None

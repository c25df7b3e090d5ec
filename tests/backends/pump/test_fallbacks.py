"""What the log says of offloads that the kernel refuses while packets flow."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from flannel_udp.backends.pump.fallbacks import begun, ended, kernel_fault

A, B, C, D, E = (IPv4Address(f"172.30.0.{number}") for number in range(2, 7))


def test_a_refusal_names_the_protocol_or_the_peer() -> None:
    assert [line.partition(":")[0] for line in begun({"TCP", A})] == [
        "the kernel refuses TCP superpackets on the tunnel device",
        "the kernel refuses UDP GSO on the way to 172.30.0.2",
    ]
    assert ended({"UDP", A}) == [
        "the kernel takes UDP superpackets on the tunnel device again",
        "the kernel takes UDP GSO on the way to 172.30.0.2 again",
    ]
    assert begun(set()) == ended(set()) == []


def test_many_peers_are_one_line() -> None:
    (line,) = begun({A, B, C, D, E})
    assert "on the way to 172.30.0.2, 172.30.0.3, 172.30.0.4 and 2 more:" in line


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

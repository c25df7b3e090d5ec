"""Packets merged into superpackets: cutting gives them back, and only what GRO merges is merged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_flows import datagrams, flow_of, stream, traffic, without_id_if_df
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.packet import Raw
from superpackets import GSO_TCPV4, GSO_UDP_L4, OPTIONS, Vnet, coalesce, segments, tcp, udp


@given(
    payload=st.binary(min_size=2, max_size=20000),
    size=st.integers(400, 1500),
    dont_fragment=st.booleans(),
    protocol=st.sampled_from([GSO_TCPV4, GSO_UDP_L4]),
)
def test_what_was_cut_is_joined_again_byte_for_byte(
    payload: bytes, size: int, dont_fragment: bool, protocol: int
) -> None:
    flags = "DF" if dont_fragment else ""
    whole = tcp(payload, ip_flags=flags) if protocol == GSO_TCPV4 else udp(payload, flags=flags)
    cut = segments(whole, Vnet(protocol, size))
    assert cut is not None
    (bundle,) = coalesce(cut)
    assert bundle.packets == cut
    if len(cut) > 1:
        assert (bundle.vnet.gso_type, bundle.vnet.gso_size) == (protocol, size)
        assert bundle.data[40:] == whole[40:]


@settings(max_examples=60)
@given(traffic())
def test_any_traffic_leaves_unchanged_and_in_order_within_each_flow(packets: list[bytes]) -> None:
    out = [packet for bundle in coalesce(packets) for packet in bundle.packets]
    assert len(out) == len(packets)
    for flow in {flow_of(packet) for packet in packets}:
        before = [without_id_if_df(p) for p in packets if flow_of(p) == flow]
        after = [without_id_if_df(p) for p in out if flow_of(p) == flow]
        assert after == before


def test_interleaved_flows_are_merged_each_by_itself() -> None:
    a, b, c = stream(5), stream(5, sport=1001), datagrams(5)
    mixed = [packet for trio in zip(a, b, c, strict=True) for packet in trio]
    bundles = coalesce(mixed)
    assert [bundle.packets for bundle in bundles] == [a, b, c]


def test_a_shorter_packet_and_a_push_end_a_superpacket() -> None:
    packets = stream(3, last=60)
    packets += [tcp(b"x" * 100, seq=265, ip_id=10), tcp(b"y" * 100, seq=365, ip_id=11, flags="PA")]
    packets += [tcp(b"z" * 100, seq=465, ip_id=12)]
    sizes = [len(bundle.packets) for bundle in coalesce(packets)]
    assert sizes == [3, 2, 1]


def test_a_pushed_last_packet_pushes_the_superpacket_and_only_its_last_segment() -> None:
    packets = [*stream(2), tcp(b"x" * 100, seq=205, ip_id=9, flags="PA")]
    (bundle,) = coalesce(packets)
    assert IP(bundle.data)[TCP].flags == "PA"
    assert bundle.packets == packets


@pytest.mark.parametrize(
    "changed",
    [
        {"ack": 10},
        {"window": 1},
        {"urgptr": 1},
        {"options": OPTIONS},
        {"seq": 106},
        {"seq": 5},
        {"ip_ttl": 63},
        {"ip_tos": 1},
        {"ip_flags": "DF"},
        {"ip_id": 9},
        {"ip_options": [IPOption(b"\x01" * 4)]},
        {"sport": 1001},
        {"ip_src": "10.1.5.3"},
        {"flags": "FA"},
        {"flags": "SA"},
        {"flags": "RA"},
        {"flags": "UA"},
        {"flags": "EA"},
        {"flags": "CA"},
        {"flags": "NA"},
        {"flags": "P"},
        {"chksum": 1},
        {"ip_chksum": 1},
        {"ip_flags": "MF"},
        {"ip_flags": "evil"},
        {"ip_frag": 1},
    ],
    ids=str,
)
def test_tcp_that_differs_is_not_merged(changed: dict[str, Any]) -> None:
    first = tcp(b"a" * 100)
    second = tcp(b"b" * 100, **{"seq": 105, "ip_id": 8} | changed)
    bundles = coalesce([first, second])
    assert [bundle.data for bundle in bundles] == [first, second]


def test_tcp_that_differs_in_nothing_is_merged() -> None:
    assert len(coalesce([tcp(b"a" * 100), tcp(b"b" * 100, seq=105, ip_id=8)])) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"ttl": 63},
        {"tos": 1},
        {"flags": "DF"},
        {"id": 9},
        {"frag": 1},
        {"dst": "10.1.6.3"},
        {"chksum": 1},
    ],
)
def test_udp_that_differs_is_not_merged(changed: dict[str, Any]) -> None:
    first, second = udp(b"a" * 100), udp(b"b" * 100, **{"id": 8} | changed)
    assert [bundle.data for bundle in coalesce([first, second])] == [first, second]


@pytest.mark.parametrize("flags", ["evil", "evil+DF"])
def test_the_reserved_flag_keeps_packets_alone_also_where_all_have_it(flags: str) -> None:
    for packets in (stream(3, ip_flags=flags), datagrams(3, flags=flags)):
        assert [bundle.data for bundle in coalesce(packets)] == packets


def test_udp_without_a_checksum_or_with_a_false_length_passes_alone() -> None:
    fields: list[dict[str, Any]] = [{"chksum": 0}, {"len": 50}]
    for field in fields:
        odd = [
            bytes(IP(src="10.1.5.2", dst="10.1.6.2", id=n) / UDP(sport=1, dport=2, **field) / data)
            for n, data in enumerate((Raw(b"a" * 100), Raw(b"b" * 100)))
        ]
        assert [bundle.data for bundle in coalesce(odd)] == odd


def test_a_packet_with_a_bad_checksum_passes_alone_and_unchanged() -> None:
    good = stream(3)
    bad = good[1][:-1] + b"\xff"
    bundles = coalesce([good[0], bad, good[2]])
    assert [bundle.data for bundle in bundles] == [good[0], bad, good[2]]
    assert [bundle.vnet.flags for bundle in bundles] == [0, 0, 0]


def test_with_df_packets_with_any_ids_are_merged() -> None:
    packets = stream(4, ip_flags="DF", ip_id=0)
    assert len(coalesce(packets)) == 1


def test_a_longer_packet_starts_a_new_bundle() -> None:
    assert len(coalesce([tcp(b"a" * 100), tcp(b"b" * 101, seq=105, ip_id=8)])) == 2


def test_superpackets_stay_within_64_kilobytes_and_64_segments() -> None:
    assert [len(b.packets) for b in coalesce(stream(100, 1420))] == [46, 46, 8]
    assert [len(b.packets) for b in coalesce(stream(100, 10))] == [64, 36]
    assert [len(b.packets) for b in coalesce(datagrams(100, 10))] == [64, 36]
    assert all(len(b.data) <= 65535 for b in coalesce(stream(100, 1420)))


def test_a_packet_that_cannot_be_merged_keeps_its_place_in_the_flow() -> None:
    data = stream(6)
    fin = tcp(b"", seq=305, flags="FA", ip_id=99)
    pieces = [data[0], data[1], fin, data[2]]
    out = [packet for bundle in coalesce(pieces) for packet in bundle.packets]
    assert out == pieces


def test_a_fragment_closes_every_flow_between_its_two_hosts() -> None:
    data = stream(2)
    fragment = udp(b"f" * 100, frag=5)
    out = [bundle.data for bundle in coalesce([data[0], fragment, data[1]])]
    assert out == [data[0], fragment, data[1]]


def test_other_protocols_pass_through() -> None:
    packets = [
        bytes(IP(src="10.1.5.2", dst="10.1.6.2") / ICMP(seq=n) / Raw(b"ping")) for n in range(5)
    ]
    assert [bundle.data for bundle in coalesce(packets)] == packets


def test_what_is_switched_off_is_not_merged() -> None:
    packets = stream(3) + datagrams(3)
    assert [len(b.packets) for b in coalesce(packets, tcp=False)] == [1, 1, 1, 3]
    assert [len(b.packets) for b in coalesce(packets, udp=False)] == [3, 1, 1, 1]

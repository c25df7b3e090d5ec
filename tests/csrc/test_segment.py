"""Superpackets cut into packets: every one is what scapy would have built for that payload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.packet import Raw
from superpackets import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_UDP_L4,
    NEEDS_CSUM,
    OPTIONS,
    Vnet,
    complete_checksum,
    segments,
    tcp,
    udp,
)


@given(
    payload=st.binary(min_size=1, max_size=9000),
    size=st.integers(8, 3000),
    seq=st.integers(0, 2**32 - 1),
    ip_id=st.integers(0, 0xFFFF),
    flags=st.sampled_from(["A", "PA", "FA", "FPA", "CA", "CEPFA"]),
    options=st.sampled_from([[], OPTIONS, [("EOL", None)] * 40]),
)
def test_tcp_segments_are_what_scapy_would_build(
    payload: bytes, size: int, seq: int, ip_id: int, flags: str, options: list[Any]
) -> None:
    whole = tcp(payload, seq=seq, flags=flags, options=options, ip_id=ip_id)
    cut = segments(whole, Vnet(GSO_TCPV4 | GSO_ECN, size))
    assert cut is not None
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    assert len(cut) == len(parts)
    for index, (packet, part) in enumerate(zip(cut, parts, strict=True)):
        first, last = index == 0, index == len(parts) - 1
        expected_flags = "".join(
            flag for flag in flags if (flag not in "FP" or last) and (flag != "C" or first)
        )
        assert packet == tcp(
            part,
            seq=(seq + index * size) % 2**32,
            flags=expected_flags,
            options=options,
            ip_id=(ip_id + index) % 2**16,
        )


@given(payload=st.binary(min_size=1, max_size=9000), size=st.integers(8, 3000))
def test_udp_segments_are_what_scapy_would_build(payload: bytes, size: int) -> None:
    cut = segments(udp(payload), Vnet(GSO_UDP_L4, size))
    assert cut is not None
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    assert cut == [udp(part, id=7 + index) for index, part in enumerate(parts)]


def test_a_udp_checksum_of_zero_is_sent_as_all_ones() -> None:
    # What complements the sum of the rest makes the whole sum all ones, whose complement is zero.
    payload = IP(udp(b"\0\0"))[UDP].chksum.to_bytes(2, "big")
    cut = segments(udp(payload + b"\0\0"), Vnet(GSO_UDP_L4, 2))
    assert cut is not None
    assert IP(cut[0])[UDP].chksum == 0xFFFF


@pytest.mark.parametrize("words", [0, 1, 10])
def test_ip_options_and_the_largest_superpacket_are_cut(words: int) -> None:
    """Every segment has the options, as the kernel's own segmentation does it."""
    ip: dict[str, Any] = {"flags": "DF", "options": [IPOption(b"\x01" * (4 * words))] * (words > 0)}
    head: dict[str, Any] = {f"ip_{name}": value for name, value in ip.items()}
    head["options"] = [("EOL", None)] * 40
    payload = (bytes(range(256)) * 256)[: 65535 - 20 - 4 * words - 60]
    whole = tcp(payload, **head)
    assert (IP(whole).ihl, IP(whole)[TCP].dataofs, len(whole)) == (5 + words, 15, 65535)
    cut = segments(whole, Vnet(GSO_TCPV4, 1420))
    parts = [payload[at : at + 1420] for at in range(0, len(payload), 1420)]
    assert cut == [
        tcp(part, seq=5 + 1420 * index, ip_id=7 + index, **head) for index, part in enumerate(parts)
    ]
    datagrams = segments(udp(payload, **ip), Vnet(GSO_UDP_L4, 1420))
    assert datagrams == [udp(part, id=7 + index, **ip) for index, part in enumerate(parts)]


@pytest.mark.parametrize(
    ("data", "vnet"),
    [
        (tcp(b"x" * 100), Vnet(GSO_TCPV4, 0)),
        (tcp(b"x" * 100), Vnet(GSO_UDP_L4, 10)),
        (udp(b"x" * 100), Vnet(GSO_TCPV4, 10)),
        (udp(b"x" * 100), Vnet(3, 10)),  # UFO
        (tcp(b"x" * 100), Vnet(4, 10)),  # TCPV6
        (tcp(b""), Vnet(GSO_TCPV4, 10)),
        (tcp(b"x" * 100, ip_frag=1), Vnet(GSO_TCPV4, 10)),
        (tcp(b"x" * 100, ip_flags="MF"), Vnet(GSO_TCPV4, 10)),
        (tcp(b"x" * 100, dataofs=4), Vnet(GSO_TCPV4, 10)),
        (tcp(b"x" * 10, dataofs=15), Vnet(GSO_TCPV4, 10)),
        (tcp(b"x" * 60000), Vnet(GSO_TCPV4, 7)),  # more segments than any kernel asks for
        (bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=6) / Raw(b"x" * 19)), Vnet(GSO_TCPV4, 10)),
        (bytes(IP(src="1.1.1.1", dst="2.2.2.2", proto=17) / Raw(b"x" * 7)), Vnet(GSO_UDP_L4, 10)),
    ],
)
def test_what_is_no_superpacket_is_refused(data: bytes, vnet: Vnet) -> None:
    assert segments(data, vnet) is None


@given(
    data=st.binary(min_size=20, max_size=200),
    gso_type=st.integers(0, 255),
    gso_size=st.integers(0, 0xFFFF),
    protocol=st.sampled_from([6, 17]),
)
def test_any_bytes_are_cut_or_refused_within_bounds(
    data: bytes, gso_type: int, gso_size: int, protocol: int
) -> None:
    whole = bytearray(data)
    whole[0] = 0x45 + min((data[0] & 15) % 11, len(data) // 4 - 5)
    whole[2:4] = len(whole).to_bytes(2, "big")
    whole[9] = protocol
    for packet in segments(bytes(whole), Vnet(gso_type, gso_size)) or []:
        assert len(packet) <= len(whole)


@given(payload=st.binary(max_size=3000))
def test_partial_checksums_are_completed(payload: bytes) -> None:
    ip: dict[str, Any] = {"options": [IPOption(b"\x01" * 8)]}
    for whole, protocol, offset in (
        (tcp(payload), 6, 16),
        (udp(payload), 17, 6),
        (udp(payload, **ip), 17, 6),
    ):
        parsed = IP(whole)
        head = 4 * parsed.ihl
        pseudo = whole[12:20] + bytes([0, protocol]) + (len(whole) - head).to_bytes(2, "big")
        total = sum(int.from_bytes(pseudo[i : i + 2], "big") for i in range(0, 12, 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        at = head + offset
        partial = whole[:at] + total.to_bytes(2, "big") + whole[at + 2 :]
        vnet = Vnet(flags=NEEDS_CSUM, csum_start=head, csum_offset=offset)
        assert complete_checksum(partial, vnet) == whole


@given(
    packet=st.sampled_from([tcp(b"x" * 9), udp(b"x" * 9), udp(b"x", options=[IPOption(b"\x01")])]),
    start=st.integers(0, 64) | st.integers(0, 0xFFFF),
    offset=st.integers(0, 64) | st.integers(0, 0xFFFF),
)
def test_a_checksum_in_the_ip_header_or_outside_the_packet_is_refused(
    packet: bytes, start: int, offset: int
) -> None:
    """In the IP header it would change an address that the filter has already judged."""
    vnet = Vnet(flags=NEEDS_CSUM, csum_start=start, csum_offset=offset)
    done, head = complete_checksum(packet, vnet), 4 * IP(packet).ihl
    assert (done is None) == (start < head or start + offset + 2 > len(packet))
    assert done is None or done[:head] == packet[:head]


def test_the_smallest_segments_that_linux_makes_are_cut() -> None:
    """48 bytes of payload and options (net.ipv4.tcp_min_snd_mss), 40 of them options."""
    payload = bytes(range(256)) * 255
    cut = segments(tcp(payload, options=[("EOL", None)] * 40), Vnet(GSO_TCPV4, 8))
    assert cut is not None
    assert (len(cut), b"".join(bytes(IP(each)[TCP].payload) for each in cut)) == (8160, payload)

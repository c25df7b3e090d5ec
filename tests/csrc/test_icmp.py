"""ICMP replies, checked by scapy: when they may be sent, and that they are what RFC 792 says."""

from __future__ import annotations

import random
import sys
from ipaddress import IPv4Address
from typing import Any

import pytest
from csrc_parts import ffi, lib
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.packet import Raw
from scapy.utils import checksum


def parse(data: bytes) -> tuple[int, Any]:
    packet = ffi.new("struct packet *")
    buffer = ffi.from_buffer(data)
    fault = lib.packet_parse(packet, buffer, len(data))
    return fault, (packet, buffer)


def may_answer(packet: Any) -> bool:
    fault, (parsed, _keep) = parse(bytes(packet))
    assert fault == 0
    return bool(lib.icmp_may_answer(parsed))


def reply_to(packet: Any, source: str = "10.1.5.0") -> bytes:
    _fault, (parsed, _keep) = parse(bytes(packet))
    out = ffi.new("uint8_t[]", lib.ICMP_REPLY_MAX)
    length = lib.icmp_net_unreachable(out, int(IPv4Address(source)), parsed)
    return bytes(ffi.buffer(out, length))


def udp(**fields: Any) -> IP:
    return IP(**{"src": "10.1.5.2", "dst": "10.1.9.9"} | fields) / UDP(sport=1, dport=2)


@pytest.mark.parametrize("size", [0, 1, 519, 520, 521, 1400])
def test_reply_quotes_the_packet_up_to_576_bytes_with_valid_checksums(size: int) -> None:
    packet = udp() / Raw((bytes(range(256)) * 6)[:size])
    data = reply_to(packet)
    reply = IP(data)
    assert (reply.src, reply.dst, reply.proto) == ("10.1.5.0", "10.1.5.2", 1)
    assert (reply[ICMP].type, reply[ICMP].code) == (3, 0)
    assert data[28:] == bytes(packet)[: 576 - 28]
    assert len(data) == reply.len
    assert checksum(data[:20]) == checksum(data[20:]) == 0


def test_reply_quotes_a_60_byte_header() -> None:
    packet = IP(src="10.1.5.2", dst="10.1.9.9", options=[IPOption(b"\x01" * 40)]) / UDP()
    assert packet.__class__(bytes(packet)).ihl == 15
    assert reply_to(packet)[28:] == bytes(packet)


@pytest.mark.parametrize(
    "packet",
    [
        udp(),
        IP(src="10.1.5.2", dst="10.1.9.9") / TCP(),
        IP(src="10.1.5.2", dst="10.1.9.9") / ICMP(type=8),
        IP(src="10.1.5.2", dst="10.1.9.9") / ICMP(type=0),
        udp(flags="MF", frag=0),
    ],
)
def test_ordinary_packets_are_answered(packet: Any) -> None:
    assert may_answer(packet)


@pytest.mark.parametrize(
    "packet",
    [
        *(IP(src="10.1.5.2", dst="10.1.9.9") / ICMP(type=t) for t in (3, 4, 5, 11, 12)),
        IP(src="10.1.5.2", dst="10.1.9.9", proto=1),  # ICMP cut off before its type
        udp(frag=1),
        udp(flags="MF", frag=100),
        udp(dst="224.0.0.5"),
        udp(dst="255.255.255.255"),
        udp(src="0.0.0.0"),
        udp(src="127.0.0.1"),
        udp(src="239.1.1.1"),
        udp(src="240.0.0.1"),
        udp(src="255.255.255.254"),
        udp(src="255.255.255.255"),
    ],
)
def test_icmp_errors_fragments_and_sources_of_no_single_host_get_no_answer(packet: Any) -> None:
    assert not may_answer(packet)


@given(st.binary(max_size=100))
def test_parse_accepts_only_what_a_plain_reading_of_rfc_791_accepts(data: bytes) -> None:
    fault, (_parsed, _keep) = parse(data)
    version = data[0] >> 4 if data else 0
    header = (data[0] & 15) * 4 if data else 0
    whole = version == 4 and 20 <= header <= len(data)
    whole = whole and int.from_bytes(data[2:4], "big") == len(data)
    assert (fault == 0) == whole


@given(st.binary(min_size=0, max_size=3000))
def test_checksum_is_the_one_scapy_computes(data: bytes) -> None:
    value = lib.checksum_of(ffi.from_buffer(data), len(data))
    assert value.to_bytes(2, sys.byteorder) == checksum(data).to_bytes(2, "big")
    wide = ~lib.checksum_fold(lib.checksum_add_payload(0, ffi.from_buffer(data), len(data)))
    assert wide & 0xFFFF == value


def test_checksum_of_large_buffers_does_not_overflow() -> None:
    data = random.Random(2).randbytes(65535)
    for sample in (data, b"\xff" * 65535, b"\xff" * 65534):
        value = lib.checksum_of(ffi.from_buffer(sample), len(sample))
        wide = ~lib.checksum_fold(lib.checksum_add_payload(0, ffi.from_buffer(sample), len(sample)))
        assert wide & 0xFFFF == value
        assert value.to_bytes(2, sys.byteorder) == checksum(sample).to_bytes(2, "big")

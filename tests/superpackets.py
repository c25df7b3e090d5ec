"""The C segmenter and coalescer, called on bytes, and packets for them; shared by their tests."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from csrc_parts import ffi, lib
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

GSO_NONE, GSO_TCPV4, GSO_UDP_L4, GSO_ECN = 0, 1, 5, 0x80  # linux/virtio_net.h
NEEDS_CSUM = 1
EINVAL = 22

OPTIONS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]


def tcp(payload: bytes, **fields: Any) -> bytes:
    """A TCP packet; fields of its IP header start with ``ip_``."""
    ip: dict[str, Any] = {"src": "10.1.5.2", "dst": "10.1.6.2", "id": 7}
    ip |= {name[3:]: value for name, value in fields.items() if name.startswith("ip_")}
    head: dict[str, Any] = {"sport": 1000, "dport": 2000, "seq": 5, "ack": 9, "flags": "A"}
    head |= {name: value for name, value in fields.items() if not name.startswith("ip_")}
    return bytes(IP(**ip) / TCP(**head) / Raw(payload))


def udp(payload: bytes, **fields: Any) -> bytes:
    """A UDP packet; fields are those of its IP header."""
    ip: dict[str, Any] = {"src": "10.1.5.2", "dst": "10.1.6.2", "id": 7} | fields
    return bytes(IP(**ip) / UDP(sport=1, dport=2) / Raw(payload))


@dataclass(frozen=True)
class Vnet:
    """The fields of struct virtio_net_hdr that matter."""

    gso_type: int = GSO_NONE
    gso_size: int = 0
    flags: int = 0
    hdr_len: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def to_c(self) -> Any:
        return ffi.new("struct virtio_net_hdr *", vars(self))


def parse(data: bytes) -> Any:
    """A C packet over the bytes, or None if they are no IPv4 packet; keeps the bytes alive."""
    packet = ffi.new("struct packet *")
    buffer = ffi.from_buffer(data)
    _alive[packet] = buffer
    return packet if lib.packet_parse(packet, buffer, len(data)) == 0 else None


_alive: Any = weakref.WeakKeyDictionary()


def segments(data: bytes, vnet: Vnet) -> list[bytes] | None:
    """The packets a superpacket is cut into; None if it is refused."""
    packet = parse(data)
    assert packet is not None
    segmenter = ffi.new("struct segmenter *")
    rc = lib.segment_begin(segmenter, packet, vnet.to_c())
    if rc < 0:
        assert rc == -EINVAL
        return None
    cut = []
    for index in range(segmenter.count):
        header = ffi.new("uint8_t[]", lib.SEGMENT_HEADER_MAX)
        payload = ffi.new("struct iovec *")
        lib.segment_make(segmenter, index, header, payload)
        head = bytes(ffi.buffer(header, segmenter.headers))
        cut.append(head + bytes(ffi.buffer(payload.iov_base, payload.iov_len)))
    return cut


def complete_checksum(data: bytes, vnet: Vnet) -> bytes | None:
    """The packet with its checksum completed; None if its position is refused, and then nothing may
    have changed."""
    packet, buffer = parse(data), bytearray(data)
    assert packet is not None
    with ffi.from_buffer("uint8_t[]", buffer) as view:
        rc = lib.segment_complete_checksum(view, packet, vnet.to_c())
    assert rc == 0 or (rc, bytes(buffer)) == (-EINVAL, data)
    return bytes(buffer) if rc == 0 else None


@dataclass
class Bundle:
    """What is written to the TUN at once: a vnet header and a packet or superpacket."""

    vnet: Vnet
    data: bytes
    packets: list[bytes] = field(default_factory=list)

    @property
    def is_superpacket(self) -> bool:
        return self.vnet.gso_type != GSO_NONE


def coalesce(packets: list[bytes], *, tcp: bool = True, udp: bool = True) -> list[Bundle]:
    """One batch; ``packets`` of a bundle are what cutting it gives back."""
    coalescer = ffi.new("struct coalescer *")
    coalescer.tcp, coalescer.udp = tcp, udp
    lib.coalesce_reset(coalescer)
    parsed = [parse(data) for data in packets]
    for packet in parsed:
        assert lib.coalesce_add(coalescer, packet)
    return [_built(coalescer, index) for index in range(coalescer.bundle_count)]


def _built(coalescer: Any, index: int) -> Bundle:
    vnet = ffi.new("struct virtio_net_hdr *")
    header = ffi.new("uint8_t[]", lib.SEGMENT_HEADER_MAX)
    iov = ffi.new("struct iovec[]", lib.COALESCE_IOVECS)
    count = lib.coalesce_build(coalescer, index, vnet, header, iov)
    data = b"".join(bytes(ffi.buffer(v.iov_base, v.iov_len)) for v in iov[1:count])
    names = ("gso_type", "gso_size", "flags", "hdr_len", "csum_start", "csum_offset")
    bundle = Bundle(Vnet(**{name: getattr(vnet, name) for name in names}), data)
    cut = segments(data, bundle.vnet) if bundle.is_superpacket else [data]
    assert cut is not None
    bundle.packets = cut
    return bundle

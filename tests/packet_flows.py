"""Packets of TCP and UDP flows: runs without a gap, and random traffic, some of which differs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw
from superpackets import OPTIONS, tcp, udp


def stream(count: int, size: int = 100, last: int | None = None, **fields: Any) -> list[bytes]:
    """``count`` TCP packets that follow each other."""
    return [
        tcp(
            bytes([index % 256]) * (last if last and index == count - 1 else size),
            **{"seq": 5 + index * size, "ip_id": (7 + index) % 2**16} | fields,
        )
        for index in range(count)
    ]


def datagrams(count: int, size: int = 100, last: int | None = None, **ip: Any) -> list[bytes]:
    return [
        udp(
            bytes([index % 256]) * (last if last and index == count - 1 else size),
            **{"id": 7 + index} | ip,
        )
        for index in range(count)
    ]


class Flow:
    """Draws packets of one TCP or UDP flow, most of which continue the one before."""

    def __init__(self, number: int) -> None:
        self.number, self.seq, self.ack, self.ip_id = number, number * 1000, 1, 100
        self.is_tcp = number % 2 == 0

    def packet(self, draw: Any) -> bytes:
        size = draw(st.sampled_from([1, 40, 100, 100, 100, 100]))
        quirk = draw(st.sampled_from(["none"] * 6 + QUIRKS))
        self.seq += 7 if quirk == "gap" else 0
        self.ack += 1 if quirk == "ack" else 0
        self.ip_id += 3 if quirk == "id" else 0
        ip: dict[str, Any] = {
            "src": "10.1.5.2",
            "dst": f"10.1.6.{self.number // 4}",
            "id": self.ip_id % 2**16,
            "flags": "DF" if quirk == "df" else "MF" if quirk == "fragment" else "",
            "ttl": 9 if quirk == "ttl" else 64,
            "tos": 2 if quirk == "tos" else 0,
        }
        payload = draw(st.binary(min_size=size, max_size=size))
        layer = (
            TCP(
                sport=self.number,
                dport=80,
                seq=self.seq % 2**32,
                ack=self.ack,
                flags=draw(st.sampled_from(["A", "PA", "FA", "SA", "RA", "UA", "EA"]))
                if quirk == "flags"
                else "A",
                options=OPTIONS if quirk == "options" else [],
                window=1 if quirk == "window" else 8192,
                urgptr=1 if quirk == "urgent" else 0,
            )
            if self.is_tcp
            else UDP(sport=self.number, dport=80)
        )
        self.seq += size
        self.ip_id += 1
        data = bytes(IP(**ip) / layer / Raw(payload))
        return data[:-1] + bytes([data[-1] ^ 1]) if quirk == "corrupt" else data


QUIRKS = ["gap", "ack", "window", "urgent", "flags", "options"]
QUIRKS += ["id", "df", "fragment", "ttl", "tos", "corrupt"]


@st.composite
def traffic(draw: Any) -> list[bytes]:
    flows = [Flow(number) for number in range(8)]
    return [draw(st.sampled_from(flows)).packet(draw) for _ in range(draw(st.integers(1, 60)))]


def flow_of(data: bytes) -> tuple[bytes, ...]:
    return (data[9:10], data[12:20], data[20:24])


def without_id_if_df(data: bytes) -> bytes:
    """With DF set the id means nothing (RFC 6864), and cutting renumbers."""
    return data[:4] + b"\0\0" + data[6:10] + b"\0\0" + data[12:] if data[6] & 0x40 else data

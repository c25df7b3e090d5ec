"""Bad datagrams are counted by reason and never reach a container or the host."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface

import pytest
from conftest import MIXED_PRESETS
from etcd_server import wait_until
from instruments import drops, log_lines
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import Container, Host, Lab

PORT = 8285
DAEMON_ARGUMENTS = ("--source-check=address",)  # the members' daemons have the overlay's port
UNKNOWN_HOST = IPv4Address("172.30.0.66")
MARK = b"a good packet"
ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800  # linux/if_ether.h
SOL_UDP, UDP_SEGMENT = 17, 103  # linux/udp.h; not in Python's socket module


class Sniffer:
    """Reads the packets that an interface receives, without link headers."""

    def __init__(self, netns: Namespace, interface: str, protocol: int) -> None:
        def open_there() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            sniffer.bind((interface, protocol))
            return sniffer

        self._socket = netns.call(open_there)
        self._socket.setblocking(False)

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def packets(self) -> list[bytes]:
        """The packets since the last call."""
        found: list[bytes] = []
        while True:
            try:
                packet, (_, _, direction, *_) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return found
            if direction != socket.PACKET_OUTGOING:
                found.append(packet)


@dataclass(frozen=True)
class Field:
    """A lab in which a member (the next host) and an unknown host send to one of the hosts."""

    lab: Lab
    unknown: Namespace
    target: Host
    member: Host
    third: Host

    @property
    def container(self) -> Container:
        return self.target.containers[0]

    @property
    def source(self) -> Container:
        """The container whose packets the member may carry."""
        return self.member.containers[0]

    def packet(self, payload: bytes = b"garbage", *, src: str = "", dst: str = "") -> bytes:
        """A packet that must pass, unless an address is given."""
        addresses = IP(src=src or str(self.source.address), dst=dst or str(self.container.address))
        return bytes(addresses / UDP(sport=9, dport=9) / payload)

    def received(self) -> int:
        """The number of datagrams that the target's pump has processed."""
        stats: dict[str, int] = self.target.status()["stats"]
        assert stats["udp_overflows"] == 0, "the kernel dropped some: send more slowly"
        return stats["udp_received_packets"]

    def udp_drops(self) -> Counter[str]:
        reasons = drops(self.target).items()
        return Counter({name[4:]: n for name, n in reasons if name.startswith("udp_")})

    def wait_until_judged(self, count: int) -> None:
        wait_until(lambda: self.received() >= count, f"{count} datagrams being received")


@pytest.fixture(scope="module")
def unknown_host(lab: Lab) -> Namespace:
    unknown_host = Namespace(f"{lab.record.prefix}unknown")
    unknown_host.create()
    lab.switch.add_veth("unknown", unknown_host, "eth0")
    lab.switch.set_link("unknown", master="underlay")
    unknown_host.add_address("eth0", IPv4Interface((UNKNOWN_HOST, 24)))
    return unknown_host


@pytest.fixture(scope="module", params=range(len(MIXED_PRESETS)), ids=MIXED_PRESETS)
def field(lab: Lab, unknown_host: Namespace, request: pytest.FixtureRequest) -> Field:
    """Each host in turn is the target, because each has other offloads."""
    target, member, third = lab.hosts[request.param :] + lab.hosts[: request.param]
    field = Field(lab, unknown_host, target, member, third)
    assert lab.ping(field.source, field.container) is not None
    return field


def sender(field: Field, netns: Namespace) -> socket.socket:
    """A UDP socket that sends to the target's pump, from another port than flannel's."""
    out = netns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    out.connect((str(field.target.address), PORT))
    return out


def forged(field: Field, source: str, payload: bytes) -> None:
    """One datagram of the unknown host with a forged outer source."""
    target = str(field.target.address)
    out = field.unknown.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with out:
        datagram = IP(src=source, dst=target) / UDP(sport=PORT, dport=PORT) / payload
        out.sendto(bytes(datagram), (target, 0))


def altered(packet: bytes, at: int, value: bytes) -> bytes:
    return packet[:at] + value + packet[at + len(value) :]


Maker = Callable[[Field], bytes]

# What a member sends: the reason it is refused for, and the datagrams.
FROM_MEMBER: dict[str, tuple[str, list[Maker]]] = {
    "no packet": (
        "not_ip",
        [
            lambda _: b"",
            lambda _: b"\0",
            lambda _: b"\0" * 1472,
            lambda _: b"\xff" * 1472,
            lambda f: altered(f.packet(), 0, b"\x55"),
        ],
    ),
    "IPv6": (
        "ipv6",
        [
            lambda _: b"\x60",
            lambda _: bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"garbage"),
        ],
    ),
    "bad header": (
        "bad_header",
        [
            lambda _: b"\x45",
            lambda f: f.packet()[:19],
            lambda f: altered(f.packet(), 0, b"\x44"),
            lambda f: altered(f.packet(), 0, b"\x40"),
            lambda f: altered(f.packet(), 0, b"\x4f"),
        ],
    ),
    "bad length": (
        "bad_length",
        [
            lambda f: f.packet()[:20],
            lambda f: f.packet()[:-1],
            lambda f: f.packet() + b"\0",
            lambda f: altered(f.packet(), 2, b"\0\0"),
            lambda f: altered(f.packet(), 2, b"\xff\xff"),
            lambda f: f.packet() + f.packet(),
            lambda _: b"\x45" + os.urandom(65506),
        ],
    ),
    "source of another host": (
        "spoofed_source",
        [
            lambda f: f.packet(src=str(f.third.containers[0].address)),
            lambda f: f.packet(src="10.1.250.1"),
        ],
    ),
    "impossible source": (
        "martian_source",
        [
            lambda f: f.packet(src=str(f.container.address)),
            lambda f: f.packet(src=str(f.target.containers[1].address)),
            lambda f: f.packet(src=str(f.target.address)),
            lambda f: f.packet(src="127.0.0.1"),
            lambda f: f.packet(src="0.0.0.0"),
            lambda f: f.packet(src="224.0.0.1"),
            lambda f: f.packet(src="255.255.255.255"),
        ],
    ),
    "destination elsewhere": (
        "wrong_destination",
        [
            lambda f: f.packet(dst=str(f.target.address)),
            lambda f: f.packet(dst=str(f.third.containers[0].address)),
            lambda f: f.packet(dst="172.30.0.254"),
            lambda f: f.packet(dst="127.0.0.1"),
            lambda f: f.packet(dst="192.0.2.1"),
            lambda f: f.packet(dst="224.0.0.251"),
            lambda f: f.packet(dst="255.255.255.255"),
        ],
    ),
}


def shoot_and_count(field: Field, shots: int, shoot: Callable[[], None]) -> Counter[str]:
    """What ``shoot`` adds to the target's counters. Its packets must not pass; a valid one must."""
    with (
        Sniffer(field.target.netns, "flannel0", ETH_P_ALL) as tunnel,
        Sniffer(field.container.netns, "eth0", ETH_P_IP) as container,
        sender(field, field.member.netns) as out,
    ):
        before, start = field.udp_drops(), field.received()
        shoot()
        field.wait_until_judged(start + shots)
        good = field.packet(MARK)
        out.send(good)
        field.wait_until_judged(start + shots + 1)
        passed = [MARK in packet for packet in tunnel.packets()]
        assert passed == [True], "something else came out of the tunnel"
        arrived: list[bytes] = []

        def times_arrived() -> int:  # its host may speak to the container, too
            arrived.extend(container.packets())
            return sum(MARK in packet for packet in arrived)

        wait_until(times_arrived, "the good packet reaching the container")
        assert times_arrived() == 1
    assert field.received() == start + shots + 1
    return field.udp_drops() - before


@pytest.mark.parametrize("kind", FROM_MEMBER)
def test_malformed_datagram_from_a_member_is_counted_and_dropped(field: Field, kind: str) -> None:
    reason, makers = FROM_MEMBER[kind]
    shots = [make(field) for make in makers]

    def shoot() -> None:
        with sender(field, field.member.netns) as out:
            for shot in shots:
                out.send(shot)

    assert shoot_and_count(field, len(shots), shoot) == {reason: len(shots)}


def test_new_address_of_the_host_is_refused_as_source(field: Field) -> None:
    """No member may send from it, although flannel0 accepts packets from local addresses."""
    address = IPv4Interface("203.0.113.7/32")
    shot = field.packet(src=str(address.ip))
    with (
        sender(field, field.member.netns) as out,
        Sniffer(field.target.netns, "flannel0", ETH_P_ALL) as tunnel,
    ):
        field.target.netns.add_address("lo", address)
        before = field.udp_drops()["martian_source"]

        def is_refused() -> bool:
            out.send(shot)
            return field.udp_drops()["martian_source"] > before

        wait_until(is_refused, "a packet in the host's name being refused")
        tunnel.packets()
        field.target.run(["ip", "address", "del", str(address), "dev", "lo"], check=True)

        def passes() -> bool:
            out.send(shot)
            return shot in tunnel.packets()

        wait_until(passes, "the address being another's again")


def test_datagrams_from_an_unknown_peer_are_dropped(field: Field) -> None:
    def shoot() -> None:
        with sender(field, field.unknown) as out:
            out.send(field.packet())
        forged(field, "172.30.0.67", field.packet())
        forged(field, "172.30.0.254", field.packet())

    assert shoot_and_count(field, 3, shoot) == {"unknown_peer": 3}


def test_forged_outer_source_is_limited_to_that_members_subnet(field: Field) -> None:
    """UDP is not authenticated: who forges a member's address is treated as that member."""
    theirs = field.packet(src=str(field.third.containers[0].address))
    count = shoot_and_count(field, 1, lambda: forged(field, str(field.member.address), theirs))
    assert count == {"spoofed_source": 1}


def test_only_the_bad_packets_of_one_send_are_dropped(field: Field) -> None:
    """One send with UDP_SEGMENT carries many datagrams, and the pump sends them this way too."""
    good = field.packet(MARK + b"0123456789")
    shots = [good, altered(good, 0, b"\x44"), good, altered(good, 12, b"\x0a\x01\xfa\x01"), good]
    shots += [altered(good, 2, b"\0\x14"), altered(good, 0, b"\0"), good[:-1]]
    with (
        Sniffer(field.target.netns, "flannel0", ETH_P_ALL) as tunnel,
        sender(field, field.member.netns) as out,
    ):
        before, start = field.udp_drops(), field.received()
        segment = struct.pack("H", len(good))
        out.sendmsg([b"".join(shots)], [(SOL_UDP, UDP_SEGMENT, segment)])
        field.wait_until_judged(start + len(shots))
        passed = tunnel.packets()
    assert b"".join(passed).count(MARK) == 3
    assert field.udp_drops() - before == {
        "bad_header": 1,
        "spoofed_source": 1,
        "bad_length": 2,
        "not_ip": 1,
    }


def judged(datagram: bytes, of_unknown_host: bool) -> str:
    """The reason with which the pump must refuse a random datagram."""
    if not datagram or datagram[0] >> 4 not in (4, 6):
        return "not_ip"
    if datagram[0] >> 4 == 6:
        return "ipv6"
    if not 20 <= (datagram[0] & 15) * 4 <= len(datagram):
        return "bad_header"
    if int.from_bytes(datagram[2:4], "big") != len(datagram):
        return "bad_length"
    return "unknown_peer" if of_unknown_host else "addresses"


def mutated(good: bytes, chance: random.Random) -> bytes:
    """A valid packet with a few changed header bytes, or another length."""
    packet = bytearray(good)
    for _ in range(chance.randrange(4)):
        packet[chance.randrange(20)] = chance.randrange(256)
    return bytes(packet)[: chance.choice((len(good), len(good), chance.randrange(len(good))))]


def test_hundred_thousand_random_datagrams_are_all_refused(field: Field) -> None:
    """Random bytes from a member, and from an unknown host random bytes and almost valid packets:
    so few that they are no flood, which the kernel would drop."""
    chance = random.Random(8285)
    good = field.packet()
    expected: Counter[str] = Counter()
    batch = 500  # the socket's buffer holds as many of the largest
    with sender(field, field.unknown) as unknown, sender(field, field.member.netns) as member:

        def shoot() -> None:
            start = field.received()
            for shot in range(100_000):
                of_unknown_host = shot % 200 < 2
                if shot % 200 == 1:
                    datagram = mutated(good, chance)
                else:
                    datagram = chance.randbytes(chance.choice((20, 60, 200, 1472)))
                    datagram = datagram[: chance.randrange(len(datagram) + 1)]
                expected[judged(datagram, of_unknown_host)] += 1
                (unknown if of_unknown_host else member).send(datagram)
                if (shot + 1) % batch == 0:
                    field.wait_until_judged(start + shot + 1)

        counted = shoot_and_count(field, 100_000, shoot)
    assert counted == expected
    assert sum(counted.values()) == 100_000
    assert field.lab.ping(field.source, field.container) is not None


def test_each_bad_source_is_logged_once_for_each_reason(field: Field) -> None:
    sources = {UNKNOWN_HOST: field.unknown, field.member.address: field.member.netns}
    for netns in sources.values():
        with sender(field, netns) as out:
            out.send(b"garbage")
    for source in sources:
        words = (f"refused a packet from {source},", ": udp_not_ip;")
        wait_until(partial(log_lines, field.target, *words), f"a line about {source}")
        (line,) = log_lines(field.target, *words)
        assert "further such packets from there are only counted" in line


def test_line_about_an_unknown_peer_names_source_check(field: Field) -> None:
    source = "172.30.0.68"
    forged(field, source, field.packet())
    words = f"refused a packet from {source},"
    wait_until(partial(log_lines, field.target, words), f"a line about {source}")
    assert log_lines(field.target, words, "unknown_peer", "--source-check off")

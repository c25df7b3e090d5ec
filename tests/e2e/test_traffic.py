"""Data of every size arrives unchanged; ICMP errors reach the sender."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Literal

import pytest
from instruments import connect, drops, listen, unreachable
from transfers import BURST, GIB, MIB, UDP_MOST, exchange, segmented_burst, transfer

from flannel_udp.lab.lab import Container, Lab

PRESETS = (
    ("auto", "auto"),
    ("full", "full"),
    ("tso", "tso"),
    ("none", "none"),
    ("auto", "none"),
    ("tso", "full"),
    ("none", "tso"),
)
PLAIN_MOST = 1444  # bytes of UDP payload in one packet: the MTU of 1472 without 28 of headers


@pytest.fixture(scope="module", params=["direct", "wire"])
def underlay(request: pytest.FixtureRequest) -> Literal["direct", "wire"]:
    chosen: Literal["direct", "wire"] = request.param
    return chosen


@pytest.fixture(scope="module")
def traffic_lab(network_rights: None, underlay: Literal["direct", "wire"]) -> Iterator[Lab]:
    with Lab(hosts=2, underlay=underlay, start_daemons=False) as lab:
        yield lab


@pytest.fixture(scope="module", params=PRESETS, ids="-".join)
def presets(request: pytest.FixtureRequest, traffic_lab: Lab) -> Iterator[tuple[str, str]]:
    """``--offload`` of each of the two hosts, whose daemons run with them."""
    chosen: tuple[str, str] = request.param
    for host, preset in zip(traffic_lab.hosts, chosen, strict=True):
        host.start_daemon(("--offload", preset), wait=False)
    for host in traffic_lab.hosts:
        host.wait_until_ready()
    assert unreachable(traffic_lab) == []
    yield chosen
    for host in traffic_lab.hosts:
        host.stop_daemon()


@pytest.fixture
def pair(traffic_lab: Lab, presets: tuple[str, str]) -> tuple[Container, Container]:
    """Two containers on two hosts."""
    first, second = (host.containers[0] for host in traffic_lab.hosts)
    return first, second


def test_streams_both_ways_at_once_arrive_unchanged(
    traffic_lab: Lab, underlay: str, presets: tuple[str, str], pair: tuple[Container, Container]
) -> None:
    amount = GIB if (underlay, *presets) == ("direct", "auto", "auto") else 32 * MIB
    refused = [drops(host) for host in traffic_lab.hosts]
    transfer((pair, pair[::-1]), amount)
    for host, preset in zip(traffic_lab.hosts, presets, strict=True):
        stats = host.status()["stats"]
        used = {
            name: stats[name] > 0
            for name in ("tun_read_superpackets", "tun_written_superpackets", "udp_segmented_sends")
        }
        assert used == {
            "tun_read_superpackets": preset != "none",
            "tun_written_superpackets": preset != "none",
            "udp_segmented_sends": preset in ("auto", "full"),
        }
        assert (stats["send_fallbacks"], stats["write_fallbacks"]) == (0, 0)
    assert [drops(host) for host in traffic_lab.hosts] == refused


def test_datagrams_of_every_size_that_fits_one_packet_arrive_unchanged(
    pair: tuple[Container, Container],
) -> None:
    payloads = [os.urandom(size) for size in range(PLAIN_MOST + 1)]
    for source, target in (pair, pair[::-1]):
        assert exchange(source, target, payloads) == payloads


def test_datagrams_in_fragments_arrive_unchanged(pair: tuple[Container, Container]) -> None:
    edges = [PLAIN_MOST + 1, PLAIN_MOST + 2, 2 * PLAIN_MOST, 2 * 1452, UDP_MOST - 1, UDP_MOST]
    sample = random.Random(8285).sample(range(PLAIN_MOST + 1, UDP_MOST), 60)
    payloads = [os.urandom(size) for size in edges + sample]
    for source, target in (pair, pair[::-1]):
        # One at a time, because the receiver's memory for reassembly is limited.
        arrived = [got for payload in payloads for got in exchange(source, target, [payload])]
        assert arrived == payloads


@pytest.mark.parametrize("gro", [False, True], ids=["plain", "gro"])
def test_datagrams_sent_with_udp_segment_arrive_separately(
    underlay: str, presets: tuple[str, str], pair: tuple[Container, Container], *, gro: bool
) -> None:
    # One call sends at most 64 datagrams; one of the pump's sends 63.
    wholes = [(1, 64), (33, 63), (1200, 53), (PLAIN_MOST, 44), (1200, 2), (PLAIN_MOST, 1)]
    cuts = [(size, size * count + rest) for size, count in wholes for rest in (0, 1, size - 1)]
    for source, target in (pair, pair[::-1]):
        for size, length in cuts:
            payload = os.urandom(min(length, 64 * size))
            whole = [payload[at : at + size] for at in range(0, len(payload), size)]
            arrived, receives = segmented_burst(source, target, payload, size, gro=gro)
            assert arrived == whole
            if not gro:
                assert receives == len(whole)
            elif (underlay, *presets) == ("direct", "full", "full") and len(whole) > 2:
                assert receives < len(whole), "they crossed one by one"


def test_container_gets_icmp_when_nobody_leases_the_subnet(
    traffic_lab: Lab, pair: tuple[Container, Container]
) -> None:
    """The answer's source is the tunnel's own address, which the kernel drops by default."""
    host, container = traffic_lab.hosts[0], pair[0]
    assert host.subnet
    answer = container.run(["ping", "-n", "-c", "1", "-W", "2", "10.1.250.7"])
    tunnel_address = host.subnet.network_address
    assert f"From {tunnel_address} icmp_seq=1 Destination Net Unreachable" in answer.stdout
    assert drops(host)["tun_no_route"] >= 1


def test_program_gets_the_error_of_its_own_connection(pair: tuple[Container, Container]) -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match="unreachable"):
        connect(pair[0], IPv4Address("10.1.250.8"), 80)
    assert time.monotonic() - started < 5, "it waited for a time-out"


def test_container_gets_icmp_for_a_closed_port_of_the_peer(
    pair: tuple[Container, Container],
) -> None:
    with listen(pair[1], socket.SOCK_DGRAM) as closing:
        port = closing.getsockname()[1]
    with listen(pair[0], socket.SOCK_DGRAM) as ours:
        ours.connect((str(pair[1].address), port))
        ours.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            ours.recv(1)


def test_undeliverable_packets_never_stop_the_others(
    traffic_lab: Lab, pair: tuple[Container, Container]
) -> None:
    """They exhaust the rate limit of ICMP errors, but do not block the overlay."""
    payloads = [os.urandom(1000) for _ in range(500)]
    arrived = []
    with listen(pair[0], socket.SOCK_DGRAM) as nowhere:
        for start in range(0, len(payloads), BURST):
            # In total fewer than fit into the tunnel's queue.
            for last in range(1000):
                with suppress(OSError):  # the error of an earlier packet
                    nowhere.sendto(b"x" * 100, (f"10.1.250.{last % 250 + 1}", 9))
            arrived += exchange(*pair, payloads[start : start + BURST])
    assert arrived == payloads
    assert traffic_lab.hosts[0].status()["stats"]["icmp_suppressed"] > 0

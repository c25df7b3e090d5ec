"""What containers send is what arrives, whatever its size; errors reach who caused them."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import IPv4Address

import pytest
from instruments import connect, drops, listen

from flannel_udp.lab import Container, Lab

GIB = 1 << 30
BLOCK = 1 << 20
PLAIN_MOST = 1444  # bytes of UDP payload in one packet: the MTU of 1472 without 28 of headers
UDP_MOST = 65507
BURST = 64  # datagrams on their way at once: a receive buffer of the default size holds them


@pytest.fixture(scope="module")
def pair(lab: Lab) -> tuple[Container, Container]:
    """Two containers on two hosts."""
    return lab.hosts[0].containers[0], lab.hosts[1].containers[0]


def send_gibibyte(stream: socket.socket) -> str:
    """Random bytes; returns their SHA-256."""
    digest = hashlib.sha256()
    with stream:
        for _ in range(GIB // BLOCK):
            block = os.urandom(BLOCK)
            digest.update(block)
            stream.sendall(block)
    return digest.hexdigest()


def receive_all(listener: socket.socket) -> tuple[int, str]:
    """How many bytes came until the sender closed, and their SHA-256."""
    digest, count = hashlib.sha256(), 0
    buffer = bytearray(BLOCK)
    with listener:
        stream, _ = listener.accept()
    with stream:
        stream.settimeout(30)
        while size := stream.recv_into(buffer):
            digest.update(memoryview(buffer)[:size])
            count += size
    return count, digest.hexdigest()


def test_a_gibibyte_each_way_at_once_arrives_unchanged(pair: tuple[Container, Container]) -> None:
    with ThreadPoolExecutor(4) as pool:
        sent: list[Future[str]] = []
        received: list[Future[tuple[int, str]]] = []
        for source, target in (pair, pair[::-1]):
            listener = listen(target, socket.SOCK_STREAM)
            received.append(pool.submit(receive_all, listener))
            stream = connect(source, target.address, listener.getsockname()[1])
            stream.settimeout(30)
            sent.append(pool.submit(send_gibibyte, stream))
        for there, here in zip(sent, received, strict=True):
            assert here.result(timeout=90) == (GIB, there.result(timeout=90))


def exchange(source: Container, target: Container, payloads: list[bytes]) -> list[bytes]:
    """What arrives of these datagrams, in the order of arrival."""
    arrived: list[bytes] = []
    with listen(source, socket.SOCK_DGRAM) as ours, listen(target, socket.SOCK_DGRAM) as theirs:
        theirs.settimeout(2)
        address = str(target.address), theirs.getsockname()[1]
        for start in range(0, len(payloads), BURST):
            burst = payloads[start : start + BURST]
            for payload in burst:
                ours.sendto(payload, address)
            arrived += [theirs.recv(UDP_MOST + 1) for _ in burst]
    return arrived


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
        # One at a time: the receiver's memory for reassembly holds only some.
        arrived = [got for payload in payloads for got in exchange(source, target, [payload])]
        assert arrived == payloads


def test_container_hears_that_nobody_holds_the_subnet(
    lab: Lab, pair: tuple[Container, Container]
) -> None:
    """The answer comes from the tunnel's own address, which a kernel drops unless told not to."""
    host, container = lab.hosts[0], pair[0]
    assert host.subnet
    answer = container.run(["ping", "-n", "-c", "1", "-W", "2", "10.1.250.7"])
    tunnel_address = host.subnet.network_address
    assert f"From {tunnel_address} icmp_seq=1 Destination Net Unreachable" in answer.stdout
    assert drops(host)["tun_no_route"] >= 1


def test_program_in_a_container_gets_the_error_of_its_own_connection(
    pair: tuple[Container, Container],
) -> None:
    started = time.monotonic()
    with pytest.raises(OSError, match="unreachable"):
        connect(pair[0], IPv4Address("10.1.250.8"), 80)
    assert time.monotonic() - started < 5, "it waited for a time-out"


def test_container_hears_of_a_port_that_is_closed_at_the_other_end(
    pair: tuple[Container, Container],
) -> None:
    with listen(pair[1], socket.SOCK_DGRAM) as closing:
        port = closing.getsockname()[1]
    with listen(pair[0], socket.SOCK_DGRAM) as ours:
        ours.connect((str(pair[1].address), port))
        ours.send(b"anybody there?")
        with pytest.raises(ConnectionRefusedError):
            ours.recv(1)


def test_unanswerable_packets_never_stop_the_others(pair: tuple[Container, Container]) -> None:
    """A flood to nowhere uses up the limit of error messages, not the overlay."""
    stop = threading.Event()

    def flood(nowhere: socket.socket) -> None:
        with nowhere:
            while not stop.is_set():
                for last in range(1, 255):
                    try:
                        nowhere.sendto(b"x" * 100, (f"10.1.250.{last}", 9))
                    except OSError:
                        continue  # the error of an earlier one

    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flood, listen(pair[0], socket.SOCK_DGRAM))
        try:
            payloads = [os.urandom(1000) for _ in range(500)]
            assert exchange(*pair, payloads) == payloads
        finally:
            stop.set()
        flooding.result()

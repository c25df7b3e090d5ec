"""Sends TCP streams and datagrams from one node to another and checks or returns what arrives."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from instruments import connect, listen

from flannel_udp.lab.lab import Container, Node

MIB = 1 << 20
GIB = 1 << 30
UDP_MOST = 65507  # bytes of payload in one datagram
# linux/udp.h; not in Python's socket module
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104

BURST = 64  # datagrams sent at once: a receive buffer of the default size has room for them


def transfer(pairs: Iterable[tuple[Node, Node]], size: int, patience: float = 90.0) -> None:
    """Sends ``size`` random bytes (whole MiB) over TCP from the first node of each pair to the
    second, for all pairs at once.

    Every byte must arrive, unchanged and in order.
    """
    pairs = list(pairs)
    with ThreadPoolExecutor(2 * len(pairs)) as pool:
        transfers = []
        for source, target in pairs:
            listener = listen(target, socket.SOCK_STREAM)
            arriving = pool.submit(_receive_all, listener)
            stream = connect(source, target.ping_address, listener.getsockname()[1])
            stream.settimeout(30)
            transfers.append((pool.submit(_send_random, stream, size), arriving))
        for sent, received in transfers:
            assert received.result(timeout=patience) == (size, sent.result(timeout=patience))


def _send_random(stream: socket.socket, size: int) -> str:
    """Returns the SHA-256 of the sent bytes."""
    digest = hashlib.sha256()
    with stream:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            stream.sendall(block)
    return digest.hexdigest()


def _receive_all(listener: socket.socket) -> tuple[int, str]:
    """Returns the number of bytes until the sender closed, and their SHA-256."""
    digest, count = hashlib.sha256(), 0
    buffer = bytearray(MIB)
    with listener:
        stream, _ = listener.accept()
    with stream:
        stream.settimeout(30)
        while size := stream.recv_into(buffer):
            digest.update(memoryview(buffer)[:size])
            count += size
    return count, digest.hexdigest()


def exchange(source: Container, target: Container, payloads: Sequence[bytes]) -> list[bytes]:
    """Sends the datagrams and returns those that arrive, in the order of arrival."""
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


def segmented_burst(
    source: Container, target: Container, payload: bytes, size: int, *, gro: bool
) -> tuple[list[bytes], int]:
    """Sends ``payload`` with UDP_SEGMENT, as QUIC does: the kernel cuts it every ``size`` bytes.

    Returns the datagrams that arrived and the number of receives; ``gro`` lets the receiver's
    kernel join datagrams.
    """
    arrived: list[bytes] = []
    receives = 0
    with listen(source, socket.SOCK_DGRAM) as ours, listen(target, socket.SOCK_DGRAM) as theirs:
        theirs.settimeout(2)
        theirs.setsockopt(SOL_UDP, UDP_GRO, gro)
        address = str(target.address), theirs.getsockname()[1]
        control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))]
        assert ours.sendmsg([payload], control, 0, address) == len(payload)
        while sum(map(len, arrived)) < len(payload):
            data, ancillary, _, _ = theirs.recvmsg(UDP_MOST, socket.CMSG_SPACE(4))
            step = len(data)
            for level, kind, value in ancillary:
                assert (level, kind) == (SOL_UDP, UDP_GRO)
                (step,) = struct.unpack("=i", value)
            arrived += [data[at : at + step] for at in range(0, len(data), step)]
            receives += 1
    return arrived, receives

"""Numbered datagrams between containers, by which every lost, doubled or misled packet shows."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from instruments import listen

from flannel_udp.lab.lab import Container

SO_RCVBUFFORCE = 33  # asm-generic/socket.h; not in Python's socket module

BUFFER = 8 << 20  # bytes: what arrives while Python is busy elsewhere waits here


class Stream:
    """One way from one container to another, as sent and as received."""

    def __init__(self, source: Container, target: Container, interval: float) -> None:
        """``interval`` in seconds between two packets."""
        self.way = f"{source.name} to {target.name}"
        self._interval = interval
        self._out = listen(source, socket.SOCK_DGRAM)
        self._in = listen(target, socket.SOCK_DGRAM)
        self._in.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._in.settimeout(1)
        self._address = str(target.address), self._in.getsockname()[1]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        self.sent = 0
        self.received: list[int] = []

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def finish(self) -> None:
        """Returns when nothing more arrives."""
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def _send(self) -> None:
        while not self._stop.wait(self._interval):
            self._out.sendto(self.sent.to_bytes(8, "big"), self._address)
            self.sent += 1

    def _receive(self) -> None:
        while True:
            try:
                self.received.append(int.from_bytes(self._in.recv(64), "big"))
            except TimeoutError:
                if self._stop.is_set():
                    return


@contextmanager
def streams_both_ways(
    *pairs: tuple[Container, Container], interval: float
) -> Iterator[list[Stream]]:
    """Traffic while the block runs; afterwards every packet must have arrived once, in order."""
    ways = [way for one, other in pairs for way in ((one, other), (other, one))]
    streams = [Stream(*way, interval) for way in ways]
    for stream in streams:
        stream.start()
    try:
        yield streams
    finally:
        for stream in streams:
            stream.stop()
        for stream in streams:
            stream.finish()
    for stream in streams:
        lost = sorted(set(range(stream.sent)) - set(stream.received))
        assert not lost, f"{stream.way}: {len(lost)} of {stream.sent}, {lost[0]} to {lost[-1]}"
        assert stream.received == list(range(stream.sent))

"""Numbered datagrams between containers, which show every lost, duplicated or misrouted packet."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from instruments import listen

from flannel_udp.lab.lab import Container

SO_RCVBUFFORCE = 33  # asm-generic/socket.h; not in Python's socket module

BUFFER = 8 << 20  # bytes that can arrive while the receiving thread does not run


class Stream:
    """Datagrams from one container to another, as sent and as received."""

    def __init__(self, source: Container, target: Container, interval: float) -> None:
        """``interval`` in seconds between two packets."""
        self.direction = f"{source.name} to {target.name}"
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
    """Sends datagrams during the block; every one must arrive exactly once and in order."""
    directions = [each for one, other in pairs for each in ((one, other), (other, one))]
    streams = [Stream(*each, interval) for each in directions]
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
        lost_of = f"{stream.direction}: {len(lost)} of {stream.sent}"
        assert not lost, f"{lost_of}, {lost[0]} to {lost[-1]}"
        assert stream.received == list(range(stream.sent))

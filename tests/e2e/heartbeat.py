"""Numbered datagrams that a container echoes, to measure when traffic stopped and came back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from etcd_server import wait_until
from instruments import connect, listen

from flannel_udp.lab.lab import Container

INTERVAL = 0.005  # seconds between two beats


@dataclass(frozen=True, slots=True)
class Outage:
    """From the first lost beat to the return of the first beat after the last lost one."""

    began: float  # CLOCK_MONOTONIC
    ended: float
    lost: int


class Heartbeat:
    """A beat leaves the source every 5 ms and the target sends it back."""

    def __init__(self, source: Container, target: Container) -> None:
        self._out, self._in = listen(source, socket.SOCK_DGRAM), listen(target, socket.SOCK_DGRAM)
        for end in (self._out, self._in):
            end.settimeout(0.1)
        self._address = str(target.address), self._in.getsockname()[1]
        self._stop = threading.Event()
        self._sent: list[float] = []  # CLOCK_MONOTONIC, by number
        self._returned: dict[int, float] = {}  # the same
        self._threads = [
            threading.Thread(target=each) for each in (self._send, self._reflect, self._receive)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()

    def seconds_until_back(self, since: float, patience: float = 10.0) -> float:
        """From ``since`` (CLOCK_MONOTONIC) to the return of the first beat that left after it."""

        def returns() -> list[float]:
            return [at for n, at in dict(self._returned).items() if self._sent[n] > since]

        wait_until(returns, "a heartbeat", patience)
        return min(returns()) - since

    def outage(self) -> Outage | None:
        """The time in which beats were lost, or None. A beat is lost if it did not return although
        a later one did; so call this when beats return again."""
        returned = dict(self._returned)
        lost = sorted(set(range(max(returned))) - set(returned))
        if not lost:
            return None
        first_after = min(number for number in returned if number > lost[-1])
        return Outage(self._sent[lost[0]], returned[first_after], len(lost))

    def _send(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._sent.append(time.monotonic())
            self._out.sendto((len(self._sent) - 1).to_bytes(8, "big"), self._address)

    def _reflect(self) -> None:
        while not self._stop.is_set():
            try:
                beat, source = self._in.recvfrom(64)
            except TimeoutError:
                continue
            self._in.sendto(beat, source)

    def _receive(self) -> None:
        while not self._stop.is_set():
            try:
                number = int.from_bytes(self._out.recv(64), "big")
            except TimeoutError:
                continue
            self._returned[number] = time.monotonic()


@contextmanager
def heartbeat_between(source: Container, target: Container) -> Iterator[Heartbeat]:
    """Sends beats during the block; also holds a TCP connection, which must survive the block."""
    heartbeat = Heartbeat(source, target)
    with listen(target, socket.SOCK_STREAM) as listener:
        client = connect(source, target.address, listener.getsockname()[1])
        server, _ = listener.accept()
    with client, server:
        heartbeat.start()
        try:
            heartbeat.seconds_until_back(time.monotonic())
            yield heartbeat
        finally:
            heartbeat.stop()
        for sender, receiver in ((client, server), (server, client)):
            receiver.settimeout(10)
            sender.sendall(b"still here")
            assert receiver.recv(64) == b"still here"

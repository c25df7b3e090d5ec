"""Clients that mean harm: they keep a server waiting, a few bytes at a time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from flannel_udp.host.netns import Namespace

_TICK = 0.02  # seconds
_ENDLESS = b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000  # a request that never ends


class DrippingClients:
    """Connections that send a byte every two seconds, and are made again when they are closed.

    Owns a thread from ``__enter__`` to ``__exit__``.
    """

    def __init__(
        self, source: Namespace, address: tuple[str, int], count: int, *, every: float = 2.0
    ) -> None:
        self._source, self._address, self._every = source, address, every
        self._clients: list[_Client | None] = [None] * count
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=source.call, args=(self._run,))
        self.made = 0  # connections

    def __enter__(self) -> DrippingClients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for client in self._clients:
            if client:
                client.close()

    def _run(self) -> None:
        """Visits every client once in ``every`` seconds."""
        began, visited, count = time.monotonic(), 0, len(self._clients)
        while not self._stopping.wait(_TICK):
            due = int((time.monotonic() - began) / self._every * count)
            for number in range(visited, min(due, visited + count)):
                self._visit(number % count)
            visited = due

    def _visit(self, number: int) -> None:
        client = self._clients[number]
        if client and client.drip():
            return
        if client:
            client.close()
        self._clients[number] = _Client(self._address)
        self.made += 1


class _Client:
    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            self._socket.connect(address)
        self._sent = 0
        self.drip()

    def drip(self) -> bool:
        """Send the next byte; False if the server has closed the connection."""
        try:
            self._socket.send(_ENDLESS[self._sent : self._sent + 1])
            self._sent += 1
            return bool(self._socket.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()

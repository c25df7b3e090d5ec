"""Programs that mean harm: clients that keep a server waiting, strangers' datagrams, and scans."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from etcd_server import wait_until
from instruments import listen
from scapy.layers.inet import IP, UDP

from flannel_udp.host.netns import Namespace
from flannel_udp.lab.lab import Host, Lab

HEALTH = "127.0.0.1", 8080  # of daemons with HEALTH_FLAGS
OVERLAY_PORT = 8285
DISCARD = 9  # a port that nobody has

_TICK = 0.02  # seconds
_ENDLESS = b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000  # a request that never ends


@contextmanager
def hostile_neighbourhood(lab: Lab) -> Iterator[None]:
    """A hundred dripping clients of each daemon's health port; a hundred times a second a datagram
    to the first host from a program on the second one and from a stranger, and a packet to anywhere
    from a container of the first."""
    with ExitStack() as stack:
        for host in lab.hosts:
            stack.enter_context(DrippingClients(host.netns, HEALTH, 100))
        stack.enter_context(_sprayed(lab))
        yield
    # Else their descriptors would be taken for a leak, or hide one.
    wait_until(lambda: not any(map(_clients_of, lab.hosts)), "all their connections being closed")


def _clients_of(host: Host) -> str:
    states = ["state", "established", "state", "close-wait"]
    return host.run(["ss", "-Htn", *states, "sport", "=", f":{HEALTH[1]}"], check=True).stdout


@contextmanager
def _sprayed(lab: Lab) -> Iterator[None]:
    target, member = lab.hosts[:2]
    container = target.containers[-1]
    inner = bytes(IP(src=str(member.containers[0].address), dst=str(container.address)) / UDP())
    stopping = threading.Event()
    with ExitStack() as sockets:
        another_port = sockets.enter_context(listen(member, socket.SOCK_DGRAM))
        stranger = sockets.enter_context(
            lab.switch.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        )
        scanner = sockets.enter_context(listen(container, socket.SOCK_DGRAM))

        def spray() -> None:
            while not stopping.wait(0.01):
                with suppress(OSError):  # a fault of the network, or an answer to the scan
                    another_port.sendto(inner, (str(target.address), OVERLAY_PORT))
                    stranger.sendto(inner, (str(target.address), OVERLAY_PORT))
                    address = f"10.1.{random.randrange(256)}.{random.randrange(256)}"
                    scanner.sendto(b"scan", (address, DISCARD))

        thread = threading.Thread(target=spray)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


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
        with suppress(OSError):  # nobody listens
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

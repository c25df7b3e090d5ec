"""The server of the health port and of the status socket: one thread, and every use is bounded.

A client sends one request and gets one answer, within one deadline for both. Slow clients cost no
thread, and few descriptors: who has kept us waiting longest makes room for the next.
"""

import logging
import os
import queue
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from flannel_udp.errors import DeviceError
from flannel_udp.log_limits import ChangeLog
from flannel_udp.retry import retry_until
from flannel_udp.threads import Service

log = logging.getLogger(__name__)

BACKLOG = 1024  # connections that wait to be accepted; the kernel drops what comes beyond
MOST_CLIENTS = 64
_DEADLINE = 10.0  # seconds from accept to the end of the answer; Prometheus waits no longer
_MOST_REQUEST = 1 << 14  # bytes; longer ones are answered as if they ended there
_MOST_UNSENT = 1 << 27  # bytes of answers in all; one of 65,536 peers has some 30 MB
_MOST_ACCEPTED = 16  # before the clients that we have are looked at again
_PAUSE = 0.1  # seconds without accepting, after the kernel refused to


class Answers(Protocol):
    """The protocol that a server speaks."""

    def is_complete(self, request: bytes) -> bool: ...

    def is_slow(self, request: bytes) -> bool:
        """Whether the answer takes so long that others must not wait for it."""

    def answer(self, request: bytes) -> bytes: ...


@dataclass(eq=False, slots=True)
class _Client:
    connection: socket.socket
    address: Any
    until: float  # CLOCK_MONOTONIC
    request: bytes = b""
    has_asked: bool = False
    answer: memoryview | None = None  # what is left of it

    @property
    def events(self) -> int:
        """What to wait for; nothing while the answer is being made."""
        if self.has_asked:
            return select.POLLOUT if self.answer is not None else 0
        return select.POLLIN


class Server(Service):
    """Its thread alone touches the clients. It holds the listener until ``__exit__``."""

    def __init__(
        self, what: str, answers: Answers, listen: Callable[[], socket.socket], *, patient: bool
    ) -> None:
        """``what`` it is called in the log. ``listen`` opens a listener that does not block, or
        raises DeviceError. If ``patient``, the thread calls it until it succeeds."""
        super().__init__(what, None)
        self._listener = None if patient else listen()
        self._what, self._answers, self._listen = what, answers, listen
        self._accept_at = 0.0  # CLOCK_MONOTONIC
        self._refusals = ChangeLog(log)
        self._clients: dict[int, _Client] = {}  # by descriptor, the oldest first
        self._worker = _Worker(f"{what}, slow")
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def port(self) -> int:
        """0 while it cannot listen."""
        return int(self._listener.getsockname()[1]) if self._listener else 0

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._worker.__exit__(*exception)
        os.close(self._wake_fd)
        if self._listener:
            self._listener.close()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _serve(self) -> None:
        works = f"the {self._what} is served now"
        self._listener = self._listener or retry_until(
            self._stopping, self._listen, log, retry_on=(DeviceError,), works=works
        )
        try:
            while self._listener and not self._stopping.is_set():
                self._turn(self._listener)
        finally:
            for client in [*self._clients.values()]:
                self._drop(client)

    def _turn(self, listener: socket.socket) -> None:
        """Wait for something to happen, and have it done."""
        poll, now = select.poll(), time.monotonic()
        poll.register(self._wake_fd, select.POLLIN)
        times = [client.until for client in self._clients.values()]
        if now < self._accept_at:
            times.append(self._accept_at)
        else:
            poll.register(listener, select.POLLIN)
        for descriptor, client in self._clients.items():
            if client.events:
                poll.register(descriptor, client.events)
        ready = dict(poll.poll(max(0.0, min(times) - now) * 1000 if times else None))
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        for client in [*self._clients.values()]:
            if client.answer is not None or client.connection.fileno() in ready:
                self._advance(client)
            if client.until <= time.monotonic():
                self._drop(client)
        while sum(len(client.answer or b"") for client in self._clients.values()) > _MOST_UNSENT:
            self._drop(next(client for client in self._clients.values() if client.answer))
        if listener.fileno() in ready:
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            for _ in range(_MOST_ACCEPTED):
                connection, address = listener.accept()
                self._refusals.works(f"the {self._what} accepts clients again")
                connection.setblocking(False)
                if len(self._clients) == MOST_CLIENTS:
                    self._make_room()
                client = _Client(connection, address, time.monotonic() + _DEADLINE)
                self._clients[connection.fileno()] = client
                self._advance(client)  # most requests are here already
        except BlockingIOError:
            pass
        except OSError as error:
            # The listener stays readable, so polling it would not wait.
            self._accept_at = time.monotonic() + _PAUSE
            why = f"the {self._what} accepts no clients: {error.strerror}"
            self._refusals.failed(f"{why}; trying again")
            self._make_room()

    def _make_room(self) -> None:
        """Drop a client of the address that has the most: the oldest, first of those that have not
        sent their request."""
        clients = self._clients.values()
        hosts = Counter(client.address[:1] for client in clients)
        if clients:
            self._drop(max(clients, key=lambda each: (hosts[each.address[:1]], not each.has_asked)))

    def _advance(self, client: _Client) -> None:
        try:
            if not client.has_asked:
                self._read(client)
            if client.answer is not None:
                client.answer = client.answer[client.connection.send(client.answer) :]
                if not client.answer:
                    self._drop(client)
        except BlockingIOError:
            pass
        except OSError as error:  # as of a probe that resets
            log.debug("%s broke off: %s", client.address, error.strerror or error)
            self._drop(client)

    def _read(self, client: _Client) -> None:
        """Read what has arrived of the request; have it answered if it is complete."""
        if not self._answers.is_complete(client.request):
            chunk = client.connection.recv(_MOST_REQUEST)
            client.request += chunk
            if not client.request:
                self._drop(client)
                return
            is_over = not chunk or len(client.request) >= _MOST_REQUEST
            if not is_over and not self._answers.is_complete(client.request):
                return
        client.has_asked = True
        if self._answers.is_slow(client.request):
            self._worker.do(partial(self._answer, client))
        else:
            self._answer(client)

    def _answer(self, client: _Client) -> None:
        """In either thread."""
        answer = b""
        if client.connection.fileno() >= 0:  # it was not dropped meanwhile
            try:
                answer = self._answers.answer(client.request)
            except Exception:
                log.exception("an answer failed")
        client.answer = memoryview(answer)
        self._wake()

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.connection.fileno(), None)
        client.connection.close()


class _Worker(Service):
    """Does what takes long, one after another."""

    def __init__(self, name: str) -> None:
        super().__init__(name, None)
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_started = False

    def do(self, task: Callable[[], None]) -> None:
        """Any thread but its own may call; the first call starts the thread."""
        self._tasks.put(task)
        if not self._is_started:
            self._is_started = True
            self.start()

    def _wake(self) -> None:
        self._tasks.put(lambda: None)

    def _serve(self) -> None:
        while not self._stopping.is_set():
            self._tasks.get()()
